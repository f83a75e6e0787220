/* SPDX-License-Identifier: MIT */
/* gmem-image diff: in which pages two images differ. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gmem-image.h"
#include "text.h"

/* What is said of a range */
enum difference { SAME, CONTENTS, IN_FIRST, IN_SECOND, PRIVATE, LOST, ELSEWHERE, DIFFERENCES };

static const struct {
	const char *name;	/* in JSON */
	const char *text;
} differences[DIFFERENCES] = {
	[CONTENTS] = { "contents", "contents differ" },
	[IN_FIRST] = { "first", "memory of the first image alone" },
	[IN_SECOND] = { "second", "memory of the second image alone" },
	[PRIVATE] = { "private", "private in one of them" },
	[LOST] = { "lost", "lost in one of them" },
	[ELSEWHERE] = { "elsewhere", "memory of another kind or identity, whose contents are elsewhere" },
};

struct comparison {
	const struct options *options;
	enum difference what;		/* of the range that is being gathered; SAME: there is none */
	uint64_t gpa, last;
	uint64_t ranges, different, compared, private;	/* how many, and bytes */
};

/* ---- which images ---- */

/* The first image of a file is based on *@ret_parent, the last one has *@ret_id. */
static void look_at(const struct image_file *file, uint64_t *ret_parent, uint64_t *ret_id)
{
	struct image_chain chain = { 0 };

	chain_add(&chain, file);
	*ret_parent = chain.sources->origin.parent;
	*ret_id = chain_newest(&chain)->origin.id;
	chain_free(&chain);
}

/* Begins a chain with those of --parent, up to the image with @id. False: it is none of them. */
static bool add_parents(const struct options *options, uint64_t id, struct image_chain *chain)
{
	for (size_t i = 0; i < options->parent_count; i++) {
		chain_add(chain, &options->parents[i]);
		if (chain_newest(chain)->origin.id == id)
			return true;
	}
	chain_free(chain);
	return false;
}

static void make_chains(const struct options *options, struct image_chain *first, struct image_chain *second)
{
	const struct image_file *files = options->files;
	uint64_t parents[2], ids[2];

	look_at(&files[0], &parents[0], &ids[0]);
	look_at(&files[1], &parents[1], &ids[1]);
	if (parents[0])
		add_parents(options, parents[0], first);
	chain_add(first, &files[0]);

	if (parents[1] && parents[1] == ids[0]) {
		if (parents[0])
			add_parents(options, parents[0], second);
		chain_add(second, &files[0]);
	} else if (parents[1]) {
		add_parents(options, parents[1], second);
	}
	chain_add(second, &files[1]);
}

/* ---- what differs ---- */

static void end_range(struct comparison *comparison)
{
	const uint64_t size = comparison->last - comparison->gpa + 1;
	char address[24], text[SIZE_TEXT];

	if (comparison->what == SAME)
		return;
	if (comparison->options->json) {
		printf("%s\n{\"gpa\":%" PRIu64 ",\"size\":%" PRIu64 ",\"what\":\"%s\"}",
		       comparison->ranges ? "," : "", comparison->gpa, size, differences[comparison->what].name);
	} else if (!comparison->options->quiet) {
		snprintf(address, sizeof(address), "0x%" PRIx64, comparison->gpa);
		printf("%18s  %9s  %s\n", address, size_text(size, text), differences[comparison->what].text);
	}
	comparison->ranges++;
	comparison->different += size;
	comparison->what = SAME;
}

static void tell(struct comparison *comparison, enum difference what, uint64_t gpa, uint64_t last)
{
	if (comparison->what != what || comparison->last + 1 != gpa)
		end_range(comparison);
	if (what == SAME)
		return;
	if (comparison->what == SAME)
		comparison->gpa = gpa;
	comparison->what = what;
	comparison->last = last;
}

static bool is_same_block(const struct piece *first, const struct piece *second, uint64_t at)
{
	static const char zeros[IMAGE_BLOCK];
	const char *one = first->what == PIECE_DATA ? first->bytes + at : zeros;
	const char *other = second->what == PIECE_DATA ? second->bytes + at : zeros;

	return !memcmp(one, other, IMAGE_BLOCK);
}

static void compare_contents(struct comparison *comparison, const struct piece *first,
			     const struct piece *second, uint64_t last)
{
	comparison->compared += last - first->gpa + 1;
	if (first->what == PIECE_ZERO && second->what == PIECE_ZERO) {
		tell(comparison, SAME, first->gpa, last);
		return;
	}
	for (uint64_t at = 0; at <= last - first->gpa; at += IMAGE_BLOCK)
		tell(comparison, is_same_block(first, second, at) ? SAME : CONTENTS, first->gpa + at,
		     first->gpa + at + (IMAGE_BLOCK - 1));
}

__attribute__((noreturn))
static void fail_older(const struct image_chain *chain, uint64_t gpa)
{
	print_error("%s: what is at 0x%" PRIx64 " is in image 0x%016" PRIx64
		    ", on which it is based: give that with --parent", chain->sources->file->name, gpa,
		    chain->sources->origin.parent);
	exit(EXIT_NO_IMAGE);
}

/* What differs between two pieces that are not both contents */
static enum difference difference_of(const struct piece *first, const struct piece *second)
{
	const struct image_elsewhere *one = first->elsewhere, *other = second->elsewhere;

	if (one && other)
		return one->kind == other->kind && one->identity == other->identity ? SAME : ELSEWHERE;
	if (first->what == second->what)
		return SAME;
	if (second->what == PIECE_NOTHING)
		return IN_FIRST;
	if (first->what == PIECE_NOTHING)
		return IN_SECOND;
	if (one || other)
		return ELSEWHERE;
	return first->what == PIECE_PRIVATE || second->what == PIECE_PRIVATE ? PRIVATE : LOST;
}

static bool has_contents(const struct piece *piece)
{
	return piece->what == PIECE_DATA || piece->what == PIECE_ZERO;
}

/* What is as in an image that is not here can be compared with the same alone. */
static bool are_known(const struct image_chain *chains, const struct piece *first, const struct piece *second)
{
	if (first->what == PIECE_OLDER && second->what == PIECE_OLDER)
		return chains[0].sources->origin.parent == chains[1].sources->origin.parent;
	return (first->what != PIECE_OLDER || (!has_contents(second) && second->what != PIECE_LOST)) &&
	       (second->what != PIECE_OLDER || (!has_contents(first) && first->what != PIECE_LOST));
}

static void compare(struct comparison *comparison, struct image_chain *chains)
{
	struct piece first, second;
	uint64_t gpa = 0, last;

	do {
		chain_look(&chains[0], gpa, &first);
		chain_look(&chains[1], gpa, &second);
		last = first.last < second.last ? first.last : second.last;
		if (!are_known(chains, &first, &second))
			fail_older(&chains[first.what != PIECE_OLDER], gpa);
		if (has_contents(&first) && has_contents(&second))
			compare_contents(comparison, &first, &second, last);
		else
			tell(comparison, difference_of(&first, &second), gpa, last);
		if (first.what == PIECE_PRIVATE && second.what == PIECE_PRIVATE)
			comparison->private += last - gpa + 1;
		gpa = last + 1;
	} while (gpa);
	end_range(comparison);
}

/* ---- telling ---- */

static void print_sums(const struct comparison *comparison)
{
	char text[SIZE_TEXT], all[SIZE_TEXT];

	if (comparison->ranges)
		printf("%s in %" PRIu64 " range%s differ; %s of contents compared\n",
		       size_text(comparison->different, text), comparison->ranges,
		       comparison->ranges == 1 ? "" : "s", size_text(comparison->compared, all));
	else
		printf("no difference in %s of contents\n", size_text(comparison->compared, all));
	if (comparison->private)
		printf("%s was private in both, and is in neither\n", size_text(comparison->private, text));
}

enum exit_status diff(const struct options *options)
{
	struct comparison comparison = { .options = options };
	struct image_chain chains[2] = { { 0 }, { 0 } };

	for (size_t i = 0; i < options->parent_count; i++)
		verify_alone(options, &options->parents[i]);
	for (size_t i = 0; i < options->file_count; i++)
		verify_alone(options, &options->files[i]);
	make_chains(options, &chains[0], &chains[1]);

	if (options->json)
		printf("{\"schema\":1,\"ranges\":[");
	compare(&comparison, chains);
	if (options->json)
		printf("],\n\"different\":%" PRIu64 ",\"compared\":%" PRIu64 ",\"private\":%" PRIu64 "}\n",
		       comparison.different, comparison.compared, comparison.private);
	else if (!options->quiet)
		print_sums(&comparison);
	chain_free(&chains[0]);
	chain_free(&chains[1]);
	return comparison.ranges ? EXIT_DIFFERENT : EXIT_FINE;
}
