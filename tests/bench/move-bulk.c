/* SPDX-License-Identifier: MIT */
/* Much memory written at once: by a loop of memcpy() and through a view */
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "move.h"

#define HOT		(1 * MIB)
#define HOT_PIECE	((uint64_t)64 << 10)
#define FRESH_PIECE	(2 * MIB)
#define COLD_PIECE	(4 * MIB)

static struct gmem_view *view;
static char *source;	/* as much as the guest has */

static void copy_by_hand(uint64_t from, uint64_t to, uint64_t piece)
{
	for (uint64_t at = from; at < to; at += piece)
		memcpy(move.hva + at, source + at, piece);
}

static void copy_through_view(uint64_t from, uint64_t to, uint64_t piece)
{
	for (uint64_t at = from; at < to; at += piece)
		bench_gmem_must(gmem_view_write(view, at, source + at, piece, NULL), "gmem_view_write");
}

static void fresh_by_hand(void)
{
	copy_by_hand(0, move.size, FRESH_PIECE);
}

static void fresh_through_view(void)
{
	copy_through_view(0, move.size, FRESH_PIECE);
}

static void cold_by_hand(void)
{
	copy_by_hand(0, move.size, COLD_PIECE);
}

static void cold_through_view(void)
{
	copy_through_view(0, move.size, COLD_PIECE);
}

static void hot_by_hand(void)
{
	for (uint64_t i = 0; i < move.size / HOT; i++)
		copy_by_hand(0, HOT, HOT_PIECE);
}

static void hot_through_view(void)
{
	for (uint64_t i = 0; i < move.size / HOT; i++)
		copy_through_view(0, HOT, HOT_PIECE);
}

void move_bulk_tables(void)
{
	static struct move_table fresh = {
		.title = "write, pieces of 2 MiB into memory that does not exist; base: memcpy()",
		.row = "bulk/fresh",
		.sides = {
			{ "memcpy", move_empty, fresh_by_hand, move_empty, 0, 0 },
			{ "gmem_view_write", move_empty, fresh_through_view, move_empty, 1 / 1.25, 0 },
		},
		.count = 2,
	};
	static struct move_table cold = {
		.title = "write, pieces of 4 MiB, not in the cache; base: memcpy()",
		.row = "bulk/cold-4M",
		.sides = {
			{ "memcpy", move_fill, cold_by_hand, NULL, 0, 0 },
			{ "gmem_view_write", move_fill, cold_through_view, NULL, 1 / 1.3, 0 },
		},
		.count = 2,
	};
	static struct move_table hot = {
		.title = "write, pieces of 64 KiB, 1 MiB again and again; base: memcpy()",
		.row = "bulk/hot-64K",
		.sides = {
			{ "memcpy", move_fill, hot_by_hand, NULL, 0, 0 },
			{ "gmem_view_write", move_fill, hot_through_view, NULL, 1 / 0.95, 0 },
		},
		.count = 2,
	};
	struct move_table *const all[] = { &fresh, &cold, &hot };

	source = malloc(move.size);
	bench_must(source ? 0 : -1, "malloc");
	memset(source, 1, move.size);
	bench_gmem_must(gmem_recovery_enable(), "gmem_recovery_enable");
	bench_gmem_must(gmem_view_new(move.vm, &view), "gmem_view_new");
	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
		all[i]->bytes = move.size;
		move_run(all[i]);
	}
	move_empty();
	gmem_view_free(view);
	gmem_recovery_disable();
	free(source);
}
