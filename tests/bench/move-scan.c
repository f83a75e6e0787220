/* SPDX-License-Identifier: MIT */
/* Finding the pages of a guest that exist, and those of them that are zero */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "bench.h"
#include "os/sys.h"
#include "region/host_look.h"
#include "region/present_pages.h"
#include "region/region_memory.h"
#include "transfer/leased_memory.h"
#include "move.h"

#define EXTENT	((uint64_t)64 << 10)

static unsigned char *marks;
static char *zeros;		/* one page */
static uint64_t found;

static void ask_mincore(void)
{
	bench_must(mincore(move.hva, move.size, marks), "mincore");
	for (uint64_t i = 0; i < move.size / move.page; i++)
		found += marks[i] & 1;
}

static int add(void *data, uint64_t offset, uint64_t size)
{
	(void)data;
	(void)offset;
	found += size / move.page;
	return 0;
}

static void walk(void)
{
	struct gmem_host_look look = GMEM_HOST_LOOK;

	bench_gmem_must(gmem_region_present_pages(move.region, GMEM_SIDE_SHARED, 0, move.size, &look, add,
						  NULL), "gmem_region_present_pages");
	gmem_host_look_end(&look);
}

/* Every eighth page, alone: what the walk cannot skip */
static void fill_thinly(void)
{
	for (uint64_t at = 0; at < move.size; at += 8 * move.page)
		move.hva[at] = 1;
}

static void unmap(void)
{
	bench_must(madvise(move.hva, move.size, MADV_DONTNEED), "MADV_DONTNEED");
}

static void fill_unmapped(void)
{
	move_fill();
	unmap();
}

static void fill_extents(void)
{
	for (uint64_t at = 0; at < move.size; at += move.page)
		if (at / EXTENT % 4 == 0)
			move.hva[at] = 1;
	unmap();
}

static void populate(void)
{
	bench_must(madvise(move.hva, move.size, MADV_POPULATE_READ), "MADV_POPULATE_READ");
}

static void compare(void)
{
	for (uint64_t at = 0; at < move.size; at += move.page)
		found += memcmp(move.hva + at, zeros, move.page) == 0;
}

static void test_zero(void)
{
	for (uint64_t at = 0; at < move.size; at += move.page)
		found += gmem_is_zero(move.hva + at, move.page);
}

void move_scan_tables(void)
{
	static struct move_table holes = {
		.title = "scan of holes; base: mincore()",
		.row = "scan/holes",
		.most_ms = 15,
		.sides = {
			{ "mincore", move_empty, ask_mincore, NULL, 0, 0 },
			{ "gmem_region_present_pages", move_empty, walk, NULL, 0.1, 0 },
		},
		.count = 2,
	};
	static struct move_table full = {
		.title = "scan of memory that exists; base: mincore()",
		.row = "scan/full",
		.sides = {
			{ "mincore", move_fill, ask_mincore, move_empty, 0, 0 },
			{ "gmem_region_present_pages", move_fill, walk, move_empty, 1.2, 0 },
		},
		.count = 2,
	};
	/* As a guest leaves it, whose accesses map nothing here */
	static struct move_table unmapped = {
		.title = "scan of memory that exists and is not mapped; base: mincore()",
		.row = "scan/unmapped",
		.sides = {
			{ "mincore", fill_unmapped, ask_mincore, move_empty, 0, 0 },
			{ "gmem_region_present_pages", fill_unmapped, walk, move_empty, 1, 0 },
		},
		.count = 2,
	};
	static struct move_table thin = {
		.title = "scan, every eighth page exists; base: mincore()",
		.row = "scan/thin",
		.sides = {
			{ "mincore", fill_thinly, ask_mincore, move_empty, 0, 0 },
			{ "gmem_region_present_pages", fill_thinly, walk, move_empty, 1, 0 },
		},
		.count = 2,
	};
	static struct move_table extents = {
		.title = "scan, every fourth 64 KiB exist and are not mapped; base: mincore()",
		.row = "scan/extents",
		.most_ms = 15,
		.sides = {
			{ "mincore", fill_extents, ask_mincore, move_empty, 0, 0 },
			{ "gmem_region_present_pages", fill_extents, walk, move_empty, 1.3, 0 },
		},
		.count = 2,
	};
	static struct move_table zero = {
		.title = "which pages are zero (all); base: memcmp() with a page of zeros",
		.row = "scan/zero",
		.sides = {
			{ "memcmp", populate, compare, NULL, 0, 0 },
			{ "gmem_is_zero", populate, test_zero, NULL, 1 / 0.8, 0 },
		},
		.count = 2,
	};
	struct move_table *const all[] = { &holes, &full, &unmapped, &thin, &extents, &zero };

	marks = malloc(move.size / move.page);
	zeros = calloc(1, move.page);
	bench_must(marks && zeros ? 0 : -1, "malloc");
	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
		all[i]->bytes = move.size;
		move_run(all[i]);
	}
	free(marks);
	free(zeros);
}
