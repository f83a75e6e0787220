/* SPDX-License-Identifier: MIT */
/* Discard: whole ranges, pieces, and the list of a balloon */
#include <endian.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdbool.h>
#include <stdlib.h>

#include "bench.h"
#include "move.h"

#define PIECE	(2 * MIB)
#define BLOCK	((uint64_t)64 << 10)	/* every second one is in the list */
#define BALLOON	256			/* pages in one request */

static struct gmem_gpa_range *list, *blocks, *halves;
static size_t list_count, block_count, half_count;
static uint32_t *pfns;			/* of @halves */

static void punch(uint64_t at, uint64_t size)
{
	bench_must(fallocate(move.gmemfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at,
			     (off_t)size), "punching a hole");
}

static void punch_all(void)
{
	punch(0, move.size);
}

static void punch_pieces(void)
{
	for (uint64_t at = 0; at < move.size; at += PIECE)
		punch(at, PIECE);
}

static void punch_list(void)
{
	for (size_t i = 0; i < list_count; i++)
		punch(list[i].gpa, list[i].size);
}

static void discard(uint64_t at, uint64_t size, struct gmem_footprint *ret)
{
	bench_gmem_must(gmem_vm_discard(move.vm, at, size, NULL, ret), "gmem_vm_discard");
}

static void discard_all(void)
{
	discard(0, move.size, NULL);
}

static void discard_all_counted(void)
{
	struct gmem_footprint footprint;

	discard(0, move.size, &footprint);
	if (!footprint.counted || footprint.before != move.size || footprint.after)
		abort();
}

static void discard_pieces(void)
{
	for (uint64_t at = 0; at < move.size; at += PIECE)
		discard(at, PIECE, NULL);
}

static void discard_list(void)
{
	bench_gmem_must(gmem_vm_discard_list(move.vm, list, list_count, NULL, NULL),
			"gmem_vm_discard_list");
}

static void use_blocks(void)
{
	list = blocks;
	list_count = block_count;
	move_fill();
}

static void use_halves(void)
{
	list = halves;
	list_count = half_count;
	move_fill();
}

/* As a balloon's queue has them, 256 at a time */
static void discard_pfns(void)
{
	for (size_t i = 0; i < half_count; i += BALLOON)
		bench_gmem_must(gmem_vm_discard_pfns(move.vm, pfns + i, half_count - i < BALLOON ?
						     half_count - i : BALLOON, NULL, NULL),
				"gmem_vm_discard_pfns");
}

/* Single pages in no order, as a guest would name them: those of every second block, or of all */
static struct gmem_gpa_range *make_list(uint64_t block, bool at_random, size_t *ret_count)
{
	struct gmem_gpa_range *pages = calloc(move.size / move.page, sizeof(*pages)), swapped;
	size_t count = 0;

	bench_must(pages ? 0 : -1, "calloc");
	for (uint64_t at = 0; at < move.size; at += move.page)
		if (at_random ? bench_random(2) : at / block % 2 == 0)
			pages[count++] = (struct gmem_gpa_range){ at, move.page };
	for (size_t i = count - 1; i > 0; i--) {
		size_t k = bench_random(i + 1);

		swapped = pages[i];
		pages[i] = pages[k];
		pages[k] = swapped;
	}
	*ret_count = count;
	return pages;
}

static void make_lists(void)
{
	blocks = make_list(BLOCK, false, &block_count);
	halves = make_list(0, true, &half_count);
	pfns = calloc(half_count, sizeof(*pfns));
	bench_must(pfns ? 0 : -1, "calloc");
	for (size_t i = 0; i < half_count; i++)
		pfns[i] = htole32((uint32_t)(halves[i].gpa >> 12));
}

void move_discard_tables(void)
{
	static struct move_table whole = {
		.title = "discard, all at once; base: PUNCH_HOLE",
		.row = "discard/all",
		.sides = {
			{ "PUNCH_HOLE", move_fill, punch_all, move_empty, 0, 0 },
			{ "gmem_vm_discard", move_fill, discard_all, move_empty, 0.55, 0 },
			{ "gmem_vm_discard, counted", move_fill, discard_all_counted, move_empty,
			  0.6, 0 },
		},
		.count = 3,
	};
	static struct move_table pieces = {
		.title = "discard, pieces of 2 MiB; base: PUNCH_HOLE",
		.row = "discard/pieces",
		.sides = {
			{ "PUNCH_HOLE", move_fill, punch_pieces, move_empty, 0, 0 },
			{ "gmem_vm_discard", move_fill, discard_pieces, move_empty, 0.55, 0 },
		},
		.count = 2,
	};
	static struct move_table scattered = {
		.title = "discard, a list of pages (every second 64 KiB); base: PUNCH_HOLE for each",
		.row = "discard/list",
		.sides = {
			{ "PUNCH_HOLE for each page", use_blocks, punch_list, move_empty, 0, 0 },
			{ "gmem_vm_discard_list", use_blocks, discard_list, move_empty, 0.3, 0 },
		},
		.count = 2,
	};
	/* Half of the runs are single pages, for which the kernel needs as long as by hand. */
	static struct move_table fragments = {
		.title = "discard, a list of half of all pages, at random; base: PUNCH_HOLE for each",
		.row = "discard/random",
		.sides = {
			{ "PUNCH_HOLE for each page", use_halves, punch_list, move_empty, 0, 0 },
			{ "gmem_vm_discard_list", use_halves, discard_list, move_empty, 0.8, 0 },
			{ "gmem_vm_discard_pfns, 256 each", use_halves, discard_pfns, move_empty, 1.2, 0 },
		},
		.count = 3,
	};
	struct move_table *const all[] = { &whole, &pieces, &scattered, &fragments };

	make_lists();
	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
		all[i]->bytes = move.size;
		move_run(all[i]);
	}
	free(blocks);
	free(halves);
	free(pfns);
}
