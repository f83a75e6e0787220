/* SPDX-License-Identifier: MIT */
#include "image-chain.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gmem-image.h"
#include "text.h"

/* ---- reading ---- */

static void check(const struct image_source *source, bool is_right)
{
	if (is_right)
		return;
	print_error("%s: damaged: record %" PRIu64 " of the image is not right, or no longer",
		    source->file->name, source->records);
	exit(exit_damaged);
}

/* What is to be read at @at is behind the end of the file. */
__attribute__((noreturn))
static void fail_short(const struct image_source *source, uint64_t at)
{
	const uint64_t size = source->file->size;

	print_error("%s: not complete: it ends at 0x%" PRIx64 ", where an image should go on, or another one follow",
		    source->file->name, size && size < at ? size : at);
	exit(exit_damaged);
}

/* Reads bytes of the record at hand. */
static void load(struct image_source *source, uint64_t from, uint64_t end)
{
	ssize_t count;

	if (end > source->room) {
		source->record = check_memory(realloc(source->record, end));
		source->room = end;
	}
	for (; from < end; from += (uint64_t)count) {
		count = pread(source->file->fd, source->record + from, end - from,
			      (off_t)(source->start + source->position + from));
		if (count < 0 && errno == EINTR)
			count = 0;
		else if (count < 0) {
			print_error("%s: %s", source->file->name, strerror(errno));
			exit(EXIT_NO_IMAGE);
		} else if (count == 0) {
			fail_short(source, source->start + source->position + from);
		}
	}
	source->loaded = end;
}

static struct image_record *record_of(const struct image_source *source)
{
	return (void *)source->record;
}

/* Version 1 has one table in a record, whose entries are checked where they are used. */
static bool are_tables_right(const struct image_source *source)
{
	return source->origin.version == IMAGE_VERSION ||
	       !gmem_image_check_tables(record_of(source), source->loaded);
}

/* Reads the record at the position, or only its tables if @whole is false. */
static void begin_record(struct image_source *source, bool whole)
{
	const struct image_record *record;

	load(source, 0, IMAGE_BLOCK);
	record = record_of(source);
	check(source, record->size >= IMAGE_BLOCK && record->size % IMAGE_BLOCK == 0 &&
		      record->size <= IMAGE_UNIT - source->position % IMAGE_UNIT &&
		      record->number == source->records && record->id == source->origin.id);
	if (whole || !are_tables_right(source)) {
		load(source, IMAGE_BLOCK, record->size);
		record = record_of(source);
		check(source, gmem_image_checksum(record) == record->checksum && are_tables_right(source));
	}
	source->cursor = (struct gmem_image_cursor){ 0 };
	source->contents = IMAGE_BLOCK;
}

static void end_record(struct image_source *source)
{
	source->position += record_of(source)->size;
	source->records++;
}

/* Goes on to the next table of the record at hand; false: there is none. */
static bool next_table(struct image_source *source)
{
	source->entry = 0;
	return gmem_image_next_table(record_of(source), source->origin.version, &source->cursor, &source->table);
}

/* ---- the lists ---- */

static void read_head(struct image_source *source)
{
	load(source, 0, IMAGE_BLOCK);
	check(source, gmem_image_kind(record_of(source)->kind) == IMAGE_HEAD &&
		      !gmem_image_read_origin(record_of(source), &source->origin));
}

static bool is_followed(const struct image_source *source)
{
	return source->origin.flags & IMAGE_FOLLOWED;
}

static void append(const struct image_source *source, void **list, size_t *count, size_t size)
{
	const struct gmem_image_table *table = &source->table;

	check(source, gmem_image_has_entries(table, size));
	*list = check_memory(reallocarray(*list, *count + table->count, size));
	memcpy((char *)*list + *count * size, table->entries, table->count * size);
	*count += table->count;
}

/* False: the table is no list. */
static bool read_list(struct image_source *source)
{
	if (source->table.kind == IMAGE_REGIONS)
		append(source, (void **)&source->regions, &source->region_count, sizeof(*source->regions));
	else if (source->table.kind == IMAGE_ELSEWHERE)
		append(source, (void **)&source->elsewhere, &source->elsewhere_count,
		       sizeof(*source->elsewhere));
	else if (source->table.kind == IMAGE_PRIVATE)
		append(source, (void **)&source->privates, &source->private_count,
		       sizeof(*source->privates));
	else
		return false;
	return true;
}

/* Reads up to the first table that is no list. */
static void read_lists(struct image_source *source)
{
	for (;; end_record(source)) {
		begin_record(source, true);
		while (next_table(source))
			if (!read_list(source))
				return;
	}
}

/* ---- what is in the image, by address ---- */

static void take_entry(struct image_source *source)
{
	const struct gmem_image_run run = gmem_image_run_at(&source->table, source->entry++);
	const uint64_t before = source->piece.last;

	check(source, run.size && run.gpa + (run.size - 1) >= run.gpa &&
		      (!source->has_piece || run.gpa > before));
	source->piece = (struct piece){ .gpa = run.gpa, .last = run.gpa + (run.size - 1) };
	source->has_piece = true;
	if (run.kind == IMAGE_RUN_DATA) {
		check(source, run.size <= record_of(source)->size - source->contents);
		source->piece.what = PIECE_DATA;
		source->piece.bytes = source->record + source->contents;
		source->contents += run.size;
	} else {
		source->piece.what = run.kind == IMAGE_RUN_ZEROS ? PIECE_ZERO : PIECE_LOST;
	}
}

static void next_piece(struct image_source *source)
{
	const struct gmem_image_table *table = &source->table;

	while (table->kind != IMAGE_END && source->entry == table->count)
		while (!next_table(source)) {
			end_record(source);
			begin_record(source, true);
		}
	if (table->kind == IMAGE_END) {
		source->at_end = true;
		return;
	}
	check(source, table->kind == IMAGE_DATA ? gmem_image_has_entries(table, sizeof(struct image_run))
						: table->kind == IMAGE_LOST &&
						  gmem_image_has_entries(table, sizeof(struct image_range)));
	take_entry(source);
}

/* ---- the chain ---- */

/* Where the image ends. Reads the tables, and no contents. */
static uint64_t find_end(const struct image_source *source)
{
	struct image_source walk = { .file = source->file, .start = source->start, .origin = source->origin };

	do {
		begin_record(&walk, false);
		while (next_table(&walk) && walk.table.kind != IMAGE_END)
			;
		end_record(&walk);
	} while (walk.table.kind != IMAGE_END);
	free(walk.record);
	return walk.position;
}

static void check_link(const struct image_source *older, const struct image_source *source)
{
	if (source->origin.parent == older->origin.id && source->origin.generation > older->origin.generation)
		return;
	if (!source->origin.parent)
		print_error("%s: not its parents: it is based on no other image, and cannot come after %s", source->file->name,
			    older->file->name);
	else
		print_error("%s: not its parents: the image is based on image 0x%016" PRIx64 " of a generation below %" PRIu64
			    ", and not on image 0x%016" PRIx64 " of generation %" PRIu64 ", which %s has",
			    source->file->name, source->origin.parent, source->origin.generation, older->origin.id, older->origin.generation,
			    older->file->name);
	exit(exit_damaged);
}

void chain_add(struct image_chain *chain, const struct image_file *file)
{
	struct image_source *source;
	uint64_t start = file->offset;

	do {
		chain->sources = check_memory(reallocarray(chain->sources, chain->count + 1,
							   sizeof(*chain->sources)));
		source = &chain->sources[chain->count];
		*source = (struct image_source){ .file = file, .start = start };
		read_head(source);
		if (chain->count)
			check_link(source - 1, source);
		read_lists(source);
		chain->count++;
		if (is_followed(source)) {
			source->size = find_end(source);
			start += source->size;
			if (file->size && start > file->size)
				fail_short(source, start);
		}
		if (chain->found)
			chain->found(source);
	} while (is_followed(source));
}

void chain_free(struct image_chain *chain)
{
	for (size_t i = 0; i < chain->count; i++) {
		free(chain->sources[i].regions);
		free(chain->sources[i].elsewhere);
		free(chain->sources[i].privates);
		free(chain->sources[i].record);
	}
	free(chain->sources);
	*chain = (struct image_chain){ 0 };
}

static void end_at(struct piece *piece, uint64_t last)
{
	piece->last = last < piece->last ? last : piece->last;
}

/*
 * Does the piece begin in the range, if that is the first one that does not end before? If so,
 * it ends with it at the latest, and otherwise where it begins.
 */
static bool is_in(struct piece *piece, uint64_t gpa, uint64_t size)
{
	end_at(piece, gpa > piece->gpa ? gpa - 1 : gpa + (size - 1));
	return gpa <= piece->gpa;
}

#define SKIP_BEFORE(piece, list, count, at) \
	while ((at) < (count) && (list)[at].gpa + ((list)[at].size - 1) < (piece)->gpa) \
		(at)++

/* Is there memory with contents at the piece's start? If not, sets what there is. */
static bool is_shared(struct image_source *source, struct piece *piece)
{
	SKIP_BEFORE(piece, source->regions, source->region_count, source->region);
	SKIP_BEFORE(piece, source->privates, source->private_count, source->private);
	SKIP_BEFORE(piece, source->elsewhere, source->elsewhere_count, source->other);

	piece->what = PIECE_PRIVATE;
	if (source->private < source->private_count &&
	    is_in(piece, source->privates[source->private].gpa, source->privates[source->private].size))
		return false;
	if (source->region < source->region_count &&
	    is_in(piece, source->regions[source->region].gpa, source->regions[source->region].size))
		return true;
	piece->what = PIECE_NOTHING;
	if (source->other == source->elsewhere_count ||
	    !is_in(piece, source->elsewhere[source->other].gpa, source->elsewhere[source->other].size))
		return false;
	piece->what = PIECE_ELSEWHERE;
	piece->elsewhere = &source->elsewhere[source->other];
	return false;
}

/* Has the image an entry for the piece's start? If not, the piece ends where the next one begins. */
static bool has_entry(struct image_source *source, struct piece *piece)
{
	const struct piece *entry = &source->piece;

	while (!source->at_end && (!source->has_piece || entry->last < piece->gpa))
		next_piece(source);
	if (source->at_end)
		return false;
	if (entry->gpa > piece->gpa) {
		end_at(piece, entry->gpa - 1);
		return false;
	}
	end_at(piece, entry->last);
	piece->what = entry->what;
	piece->bytes = entry->bytes ? entry->bytes + (piece->gpa - entry->gpa) : NULL;
	return true;
}

/*
 * The newest entry counts. Where there is none, it is as in the image before. It is zero where
 * that one had no contents, and if there is none before.
 */
void chain_look(struct image_chain *chain, uint64_t gpa, struct piece *ret)
{
	struct image_source *source = chain_newest(chain);

	*ret = (struct piece){ .gpa = gpa, .last = UINT64_MAX };
	if (!is_shared(source, ret))
		return;
	while (!has_entry(source, ret)) {
		if (source == chain->sources && source->origin.parent) {
			ret->what = PIECE_OLDER;
			return;
		}
		if (source == chain->sources || !is_shared(source - 1, ret)) {
			ret->what = PIECE_ZERO;
			return;
		}
		source--;
	}
}
