/* SPDX-License-Identifier: MIT */
/* Discard: whole ranges, pieces, and the list of a balloon */
#include <linux/falloc.h>
#include <fcntl.h>
#include <stdlib.h>

#include "bench.h"
#include "move.h"

#define PIECE	(2 * MIB)
#define BLOCK	((uint64_t)64 << 10)	/* every second one is in the list */

static struct gmem_gpa_range *list;
static size_t list_count;

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

/* Single pages in no order, as a guest would name them */
static void make_list(void)
{
	size_t pages = BLOCK / move.page, blocks = move.size / BLOCK / 2;

	list_count = pages * blocks;
	list = calloc(list_count, sizeof(*list));
	bench_must(list ? 0 : -1, "calloc");
	for (size_t i = 0; i < list_count; i++)
		list[i] = (struct gmem_gpa_range){ i / pages * 2 * BLOCK + i % pages * move.page, move.page };
	for (size_t i = list_count - 1; i > 0; i--) {
		size_t k = bench_random(i + 1);
		struct gmem_gpa_range swapped = list[i];

		list[i] = list[k];
		list[k] = swapped;
	}
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
			{ "PUNCH_HOLE for each page", move_fill, punch_list, move_empty, 0, 0 },
			{ "gmem_vm_discard_list", move_fill, discard_list, move_empty, 0.35, 0 },
		},
		.count = 2,
	};
	struct move_table *const all[] = { &whole, &pieces, &scattered };

	make_list();
	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
		all[i]->bytes = move.size;
		move_run(all[i]);
	}
	free(list);
}
