/* SPDX-License-Identifier: MIT */
/* ram_layout: the RAM of common machines */
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "unit.h"

#define KIB	((uint64_t)1 << 10)
#define MIB	((uint64_t)1 << 20)
#define GIB	((uint64_t)1 << 30)
#define TIB	((uint64_t)1 << 40)
#define PAGE	(4 * KIB)

#define X86	GMEM_MACHINE_X86_64
#define ARM64	GMEM_MACHINE_ARM64

static const struct {
	uint64_t ram;
	uint32_t machine;
	uint64_t hole_start;
	uint64_t base;
	int count;
	struct gmem_ram_range ranges[4];
} layouts[] = {
	{ PAGE, X86, 0, 0, 1, { { 0, PAGE, 0 } } },
	{ 3 * GIB - PAGE, X86, 0, 0, 1, { { 0, 3 * GIB - PAGE, 0 } } },
	{ 3 * GIB, X86, 0, 0, 1, { { 0, 3 * GIB, 0 } } },
	{ 3 * GIB + PAGE, X86, 0, 0, 2, { { 0, 3 * GIB, 0 }, { 4 * GIB, PAGE, 3 * GIB } } },
	{ 4 * GIB, X86, 0, 0, 2, { { 0, 3 * GIB, 0 }, { 4 * GIB, GIB, 3 * GIB } } },
	/* up to HyperTransport's addresses, and around them */
	{ 1011 * GIB, X86, 0, 0, 2, { { 0, 3 * GIB, 0 }, { 4 * GIB, 1008 * GIB, 3 * GIB } } },
	{
		1011 * GIB + PAGE, X86, 0, 0, 3,
		{ { 0, 3 * GIB, 0 }, { 4 * GIB, 1008 * GIB, 3 * GIB }, { TIB, PAGE, 1011 * GIB } },
	},
	{
		12 * TIB, X86, 0, 0, 4,
		{ { 0, 3 * GIB, 0 }, { 4 * GIB, 1008 * GIB, 3 * GIB },
		  { TIB, 8 * TIB - GIB, 1011 * GIB },
		  { 9 * TIB - GIB, 3 * TIB + 14 * GIB, 8 * TIB + 1010 * GIB } },
	},
	{ 4 * GIB, X86, 2 * GIB, 0, 2, { { 0, 2 * GIB, 0 }, { 4 * GIB, 2 * GIB, 2 * GIB } } },
	{ GIB, X86, PAGE, 0, 2, { { 0, PAGE, 0 }, { 4 * GIB, GIB - PAGE, PAGE } } },
	/* no hole at all: still two ranges, one file */
	{ 5 * GIB, X86, 4 * GIB, 0, 2, { { 0, 4 * GIB, 0 }, { 4 * GIB, GIB, 4 * GIB } } },
	{ 4 * GIB, X86, 4 * GIB, 0, 1, { { 0, 4 * GIB, 0 } } },
	{ PAGE, ARM64, 0, 0, 1, { { GIB, PAGE, 0 } } },
	{ 2 * TIB, ARM64, 0, 0, 1, { { GIB, 2 * TIB, 0 } } },
	{ 8 * TIB - PAGE, ARM64, 0, 0, 1, { { GIB, 8 * TIB - PAGE, 0 } } },
	{
		8 * TIB, ARM64, 0, 0, 2,
		{ { GIB, 8 * TIB - GIB, 0 }, { 8 * TIB, GIB, 8 * TIB - GIB } },
	},
	/* from a base that is no multiple of a large page, cut where one begins */
	{
		8 * TIB, ARM64, 0, 3 * PAGE, 2,
		{ { 3 * PAGE, 8 * TIB - 3 * PAGE, 0 }, { 8 * TIB, 3 * PAGE, 8 * TIB - 3 * PAGE } },
	},
	{ GIB, ARM64, 0, 2 * GIB + PAGE, 1, { { 2 * GIB + PAGE, GIB, 0 } } },
	{ GIB, ARM64, 0, 0 - GIB, 1, { { 0 - GIB, GIB, 0 } } },
	/* what is for the other machine is not read */
	{ 2 * GIB, X86, 0, 0 - GIB, 1, { { 0, 2 * GIB, 0 } } },
	{ GIB, X86, 0, 1, 1, { { 0, GIB, 0 } } },
	{ GIB, ARM64, 8 * GIB + 1, 0, 1, { { GIB, GIB, 0 } } },
};

static void ram_goes_where_the_machine_has_it(void **state)
{
	struct gmem_ram_range ranges[5];
	struct unit unit;
	size_t i;

	(void)state;
	unit_begin(&unit, "6.18");
	for (i = 0; i < ARRAY_SIZE(layouts); i++) {
		GMEM_OPTS(gmem_ram_layout_opts, opts, .machine = layouts[i].machine,
			  .hole_start = layouts[i].hole_start, .base = layouts[i].base);

		memset(ranges, 0x5a, sizeof(ranges));
		assert_int_equal(gmem_ram_layout(layouts[i].ram, &opts, ranges, 4),
				 layouts[i].count);
		assert_memory_equal(ranges, layouts[i].ranges,
				    (size_t)layouts[i].count * sizeof(ranges[0]));
		/* not beyond what it says */
		assert_int_equal(ranges[layouts[i].count].gpa, 0x5a5a5a5a5a5a5a5a);
	}
	unit_end(&unit);
}

static void machine_is_this_one_unless_named(void **state)
{
	GMEM_OPTS(gmem_ram_layout_opts, opts, .machine = GMEM_MACHINE_NATIVE);
	struct gmem_ram_range named[2], unnamed[2];
	struct unit unit;
	int count;

	(void)state;
	unit_begin(&unit, "6.18");
	count = gmem_ram_layout(8 * GIB, &opts, named, 2);
	assert_true(count > 0);
	assert_int_equal(gmem_ram_layout(8 * GIB, NULL, unnamed, 2), count);
	assert_memory_equal(named, unnamed, (size_t)count * sizeof(named[0]));
	unit_end(&unit);
}

static void layout_rejects_what_is_no_machine(void **state)
{
	static const struct {
		uint64_t ram;
		struct gmem_ram_layout_opts opts;
		int err;
		const char *sentence;
	} cases[] = {
#define OPTS(...)	{ .size = sizeof(struct gmem_ram_layout_opts), __VA_ARGS__ }
		{ 0, OPTS(.machine = X86), -EINVAL, "size 0" },
		{ 1, OPTS(.machine = X86), -EINVAL, "multiple" },
		{ PAGE + 1, OPTS(.machine = ARM64), -EINVAL, "multiple" },
		{ PAGE, OPTS(.machine = 3), -EINVAL, "3 is no machine" },
		{ PAGE, OPTS(.machine = UINT32_MAX), -EINVAL, "no machine" },
		{ PAGE, OPTS(.machine = X86, .flags = 2), -EINVAL, "flags" },
		{ PAGE, OPTS(.machine = X86, .hole_start = 1), -EINVAL, "hole_start" },
		{ PAGE, OPTS(.machine = X86, .hole_start = 4 * GIB + PAGE), -EINVAL, "4 GiB" },
		{ PAGE, OPTS(.machine = ARM64, .base = 1), -EINVAL, "base" },
		{ 2 * GIB, OPTS(.machine = ARM64, .base = 0 - GIB), -EINVAL, "wraps" },
		{ 0 - GIB, OPTS(.machine = X86), -EINVAL, "room for 0xfffffffcc0000000 bytes" },
		{ 0 - PAGE, OPTS(.machine = X86, .base = PAGE), -EINVAL, "room" },
		{ PAGE, { .size = 8 }, -EINVAL, "gmem_ram_layout_opts" },
#undef OPTS
	};
	struct gmem_ram_range *untouched = UNTOUCHED(struct gmem_ram_range);
	struct unit unit;
	size_t i;

	(void)state;
	unit_begin(&unit, "6.18");
	for (i = 0; i < ARRAY_SIZE(cases); i++)
		assert_refused(cases[i].err, cases[i].sentence,
			       gmem_ram_layout(cases[i].ram, &cases[i].opts, untouched, 2));
	assert_refused(-EINVAL, "NULL", gmem_ram_layout(PAGE, NULL, NULL, 2));
	unit_end(&unit);
}

/* ---- HyperTransport ---- */

static void ram_is_where_amd_has_hypertransport_only_if_asked_for(void **state)
{
	GMEM_OPTS(gmem_ram_layout_opts, opts, .machine = X86, .flags = GMEM_RAM_LAYOUT_HYPERTRANSPORT);
	struct gmem_ram_range ranges[2];
	struct unit unit;

	(void)state;
	unit_begin(&unit, "6.18");
	assert_int_equal(gmem_ram_layout(2 * TIB, &opts, ranges, 2), 2);
	assert_int_equal(ranges[1].gpa, 4 * GIB);
	assert_int_equal(ranges[1].size, 2 * TIB - 3 * GIB);

	/* there is none on arm64 */
	opts = (struct gmem_ram_layout_opts){ .size = sizeof(opts), .machine = ARM64 };
	assert_int_equal(gmem_ram_layout(2 * TIB, &opts, ranges, 2), 1);
	unit_end(&unit);
}

/* ---- holes ---- */

#define HOLES 6

static const struct {
	uint64_t ram;
	struct gmem_gpa_range holes[HOLES];	/* up to one of size 0 */
	int count;
	struct gmem_ram_range ranges[4];
} with_holes[] = {
	/* around one, on both sides of it */
	{
		GIB, { { 512 * MIB, MIB } }, 2,
		{ { 0, 512 * MIB, 0 }, { 513 * MIB, 512 * MIB, 512 * MIB } },
	},
	/* unsorted */
	{
		GIB, { { 768 * MIB, MIB }, { 256 * MIB, MIB } }, 3,
		{ { 0, 256 * MIB, 0 }, { 257 * MIB, 511 * MIB, 256 * MIB },
		  { 769 * MIB, 257 * MIB, 767 * MIB } },
	},
	/* overlapping, touching, inside each other, and twice the same */
	{
		GIB,
		{ { 100 * MIB, 50 * MIB }, { 140 * MIB, 20 * MIB }, { 160 * MIB, 10 * MIB },
		  { 110 * MIB, MIB }, { 100 * MIB, 50 * MIB } },
		2, { { 0, 100 * MIB, 0 }, { 170 * MIB, 924 * MIB, 100 * MIB } },
	},
	/* at the start, and where RAM would begin again */
	{
		4 * GIB, { { 0, MIB }, { 4 * GIB, GIB } }, 2,
		{ { MIB, 3 * GIB - MIB, 0 }, { 5 * GIB, GIB + MIB, 3 * GIB - MIB } },
	},
	/* overlapping the machine's: RAM above 4 GiB goes to 1 TiB, as with QEMU */
	{
		8 * GIB, { { 2 * GIB, 2 * GIB }, { 4 * GIB, 1020 * GIB } }, 2,
		{ { 0, 2 * GIB, 0 }, { TIB, 6 * GIB, 2 * GIB } },
	},
	/* where no RAM comes, the last address of all included */
	{ GIB, { { GIB, GIB }, { 3 * GIB, GIB }, { 0 - PAGE, PAGE } }, 1, { { 0, GIB, 0 } } },
	/* RAM ends with the hole */
	{ GIB, { { GIB - PAGE, PAGE } }, 2, { { 0, GIB - PAGE, 0 }, { GIB, PAGE, GIB - PAGE } } },
	/* one that leaves the last page of all addresses */
	{ 2 * PAGE, { { PAGE, 0 - 2 * PAGE } }, 2, { { 0, PAGE, 0 }, { 0 - PAGE, PAGE, PAGE } } },
};

static uint64_t count_holes(const struct gmem_gpa_range *holes)
{
	uint64_t count = 0;

	while (count < HOLES && holes[count].size)
		count++;
	return count;
}

static void ram_goes_around_holes(void **state)
{
	struct gmem_ram_range ranges[5];
	struct unit unit;

	(void)state;
	unit_begin(&unit, "6.18");
	for (size_t i = 0; i < ARRAY_SIZE(with_holes); i++) {
		GMEM_OPTS(gmem_ram_layout_opts, opts, .machine = X86, .holes = with_holes[i].holes,
			  .hole_count = count_holes(with_holes[i].holes));

		memset(ranges, 0x5a, sizeof(ranges));
		assert_int_equal(gmem_ram_layout(with_holes[i].ram, &opts, ranges, 4),
				 with_holes[i].count);
		assert_memory_equal(ranges, with_holes[i].ranges,
				    (size_t)with_holes[i].count * sizeof(ranges[0]));
		assert_int_equal(ranges[with_holes[i].count].gpa, 0x5a5a5a5a5a5a5a5a);
	}
	unit_end(&unit);
}

static void holes_are_on_arm64_too(void **state)
{
	const struct gmem_gpa_range hole = { 2 * GIB, GIB };
	GMEM_OPTS(gmem_ram_layout_opts, opts, .machine = ARM64, .holes = &hole, .hole_count = 1);
	struct gmem_ram_range ranges[2];
	struct unit unit;

	(void)state;
	unit_begin(&unit, "6.18");
	assert_int_equal(gmem_ram_layout(4 * GIB, &opts, ranges, 2), 2);
	assert_int_equal(ranges[0].size, GIB);
	assert_int_equal(ranges[1].gpa, 3 * GIB);
	assert_int_equal(ranges[1].size, 3 * GIB);
	unit_end(&unit);
}

static void layout_rejects_what_is_no_hole(void **state)
{
	static const struct {
		struct gmem_gpa_range holes[2];
		uint64_t count;
		const char *sentence;
	} cases[] = {
		{ { { GIB, 0 } }, 1, "hole 0x40000000 has size 0" },
		{ { { 1, PAGE } }, 1, "hole 0x1 is not a multiple" },
		{ { { GIB, PAGE }, { 0, PAGE + 1 } }, 2, "size 0x1001" },
		{ { { 0 - PAGE, 2 * PAGE } }, 1, "wraps" },
		/* they cover everything, alone or together */
		{ { { 0, 0 - PAGE }, { 0 - PAGE, PAGE } }, 2, "room for 0x0 bytes of RAM, not for 0x40000000" },
		{ { { 0, 0 - PAGE } }, 1, "room for 0x1000 bytes" },
		{ { { 4 * GIB, 0 - 4 * GIB }, { PAGE, 4 * GIB } }, 2, "room for 0x1000 bytes" },
	};
	struct gmem_ram_range *untouched = UNTOUCHED(struct gmem_ram_range);
	GMEM_OPTS(gmem_ram_layout_opts, none, .hole_count = 1);
	struct unit unit;

	(void)state;
	unit_begin(&unit, "6.18");
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		GMEM_OPTS(gmem_ram_layout_opts, opts, .machine = X86, .holes = cases[i].holes,
			  .hole_count = cases[i].count);

		assert_refused(-EINVAL, cases[i].sentence, gmem_ram_layout(GIB, &opts, untouched, 2));
	}
	assert_refused(-EINVAL, "holes is NULL", gmem_ram_layout(GIB, &none, untouched, 2));
	unit_end(&unit);
}

/* A layout by the page: slow, and simple */
static bool model_is_hole(const struct gmem_ram_layout_opts *opts, uint64_t gpa)
{
	bool is_hole = gpa >= opts->hole_start && gpa < 4 * GIB;

	for (uint64_t i = 0; i < opts->hole_count; i++)
		is_hole |= gpa >= opts->holes[i].gpa && gpa - opts->holes[i].gpa < opts->holes[i].size;
	return is_hole;
}

#define MODEL_PAGES 64

static void check_against_model(unsigned int *seed)
{
	struct gmem_ram_range ranges[MODEL_PAGES];
	struct gmem_gpa_range holes[HOLES];
	GMEM_OPTS(gmem_ram_layout_opts, opts, .machine = X86, .holes = holes, .hole_start = 4 * GIB);
	uint64_t ram = (1 + (uint64_t)rand_r(seed) % 16) * PAGE, gpa = 0, done = 0;
	int count;

	opts.hole_count = (uint64_t)rand_r(seed) % (HOLES + 1);
	for (uint64_t i = 0; i < opts.hole_count; i++) {
		holes[i].gpa = (uint64_t)rand_r(seed) % 32 * PAGE;
		holes[i].size = (1 + (uint64_t)rand_r(seed) % 6) * PAGE;
	}
	count = gmem_ram_layout(ram, &opts, ranges, MODEL_PAGES);
	for (int i = 0; i < count; i++) {
		assert_true(i == 0 || gpa < ranges[i].gpa);
		for (; gpa < ranges[i].gpa; gpa += PAGE)
			assert_true(model_is_hole(&opts, gpa));
		assert_int_equal(ranges[i].offset, done);
		for (; gpa < ranges[i].gpa + ranges[i].size; gpa += PAGE)
			assert_false(model_is_hole(&opts, gpa));
		done += ranges[i].size;
	}
	assert_int_equal(done, ram);
}

static void ram_is_what_a_page_by_page_model_says(void **state)
{
	unsigned int seed = 15;
	struct unit unit;

	(void)state;
	unit_begin(&unit, "6.18");
	for (int i = 0; i < 20000; i++)
		check_against_model(&seed);
	unit_end(&unit);
}

/* ---- memslots ---- */

static void ranges_begin_with_the_largest_pages_there_are(void **state)
{
	static const struct {
		uint64_t page, largest;
	} sizes[] = { { 4 * KIB, GIB }, { 16 * KIB, 64 * GIB }, { 64 * KIB, 4 * TIB } };
	GMEM_OPTS(gmem_ram_layout_opts, opts, .machine = ARM64);
	struct gmem_ram_range ranges[8];
	struct unit unit;
	uint64_t ram;
	int count;

	(void)state;
	unit_begin(&unit, "arm64-6.18");
	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		fake_set_page_size(sizes[i].page);
		ram = ((uint64_t)1 << 31) * sizes[i].page * 3;
		count = gmem_ram_layout(ram, &opts, ranges, 8);
		assert_int_equal(count, 4);
		for (int k = 0; k < count; k++) {
			assert_true(ranges[k].size < ((uint64_t)1 << 31) * sizes[i].page);
			assert_int_equal(ranges[k].gpa % sizes[i].largest, k ? 0 : GIB % sizes[i].largest);
			assert_int_equal(ranges[k].offset + GIB, ranges[k].gpa);
		}
		assert_int_equal(ranges[3].offset + ranges[3].size, ram);
	}
	unit_end(&unit);
}

static void layout_fits_or_says_so(void **state)
{
	GMEM_OPTS(gmem_ram_layout_opts, opts, .machine = X86);
	struct gmem_ram_range *untouched = UNTOUCHED(struct gmem_ram_range);
	struct gmem_ram_range one;
	struct unit unit;

	(void)state;
	unit_begin(&unit, "6.18");
	assert_refused(-ENOSPC, "2", gmem_ram_layout(4 * GIB, &opts, untouched, 1));
	assert_refused(-ENOSPC, "0", gmem_ram_layout(PAGE, &opts, untouched, 0));
	assert_refused(-ENOSPC, "5 ranges", gmem_ram_layout(24 * TIB, &opts, untouched, 4));
	assert_int_equal(gmem_ram_layout(PAGE, &opts, &one, 1), 1);
	unit_end(&unit);
}

static void layout_tells_the_number_of_its_ranges(void **state)
{
	GMEM_OPTS(gmem_ram_layout_opts, opts, .machine = X86);
	struct unit unit;

	(void)state;
	unit_begin(&unit, "6.18");
	assert_int_equal(gmem_ram_layout(PAGE, &opts, NULL, 0), 1);
	assert_int_equal(gmem_ram_layout(4 * GIB, &opts, NULL, 0), 2);
	assert_int_equal(gmem_ram_layout(12 * TIB, &opts, NULL, 0), 4);
	assert_int_equal(gmem_ram_layout(16 * TIB, &opts, NULL, 0), 4);
	assert_int_equal(gmem_ram_layout(24 * TIB, &opts, NULL, 0), 5);
	assert_refused(-EINVAL, "size 0", gmem_ram_layout(0, &opts, NULL, 0));
	unit_end(&unit);
}

/* The ranges can be added as they are, as regions of one file. */
static void layout_makes_regions_of_one_file(void **state)
{
	GMEM_OPTS(gmem_ram_layout_opts, layout, .machine = X86, .hole_start = 64 * KIB);
	GMEM_OPTS(gmem_region_opts, opts, .flags = 0);
	struct gmem_ram_range ranges[2];
	struct gmem_region *region;
	struct unit unit;
	int i, count;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	opts.file = unit_file(&unit, 32);
	count = gmem_ram_layout(PAGES(&unit, 32), &layout, ranges, 2);
	assert_int_equal(count, 2);
	for (i = 0; i < count; i++) {
		opts.file_offset = ranges[i].offset;
		assert_ok(gmem_region_add(unit.vm, ranges[i].gpa, ranges[i].size, &opts, &region));
	}
	gmem_file_free(opts.file);
	unit_end(&unit);
}

/* ---- machines of many TiB ---- */

/* Write a number at both ends of each range, and find it in the region's memory. */
static void check_ends(struct gmem_view *view, const struct gmem_ram_range *range,
		       struct gmem_region *region)
{
	const uint64_t ends[] = { 0, range->size - sizeof(uint64_t) };
	uint64_t value, got;

	for (size_t i = 0; i < ARRAY_SIZE(ends); i++) {
		value = range->gpa + ends[i];
		assert_ok(gmem_view_write(view, value, &value, sizeof(value), NULL));
		assert_ok(gmem_view_read(view, value, &got, sizeof(got), NULL));
		assert_int_equal(got, value);
		assert_memory_equal(unit_at(gmem_region_hva(region), ends[i]), &value, sizeof(value));
	}
}

static void add_ram(struct unit *unit, struct gmem_view *view, uint64_t ram, struct gmem_plan *plan)
{
	GMEM_OPTS(gmem_ram_layout_opts, where, .machine = X86);
	GMEM_OPTS(gmem_region_opts, opts, .plan = plan);
	GMEM_OPTS(gmem_stats, stats, .flags = 0);
	struct gmem_region *regions[8];
	struct gmem_ram_range ranges[8];
	struct gmem_change *change;
	int count = gmem_ram_layout(ram, &where, ranges, 8);

	assert_true(count > 2);
	assert_ok(gmem_change_new(unit->vm, &change));
	for (int i = 0; i < count; i++)
		assert_ok(gmem_change_add(change, ranges[i].gpa, ranges[i].size, &opts, &regions[i]));
	assert_ok(gmem_change_apply(change));

	for (int i = 0; i < count; i++)
		check_ends(view, &ranges[i], regions[i]);
	assert_ok(gmem_vm_stats(unit->vm, &stats));
	assert_int_equal(stats.bytes_shared, ram);
	for (int i = 0; i < count; i++)
		assert_ok(gmem_change_remove(change, regions[i]));
	assert_ok(gmem_change_apply(change));
	gmem_change_free(change);
}

/* Under valgrind, and with RLIMIT_AS, it has not. */
static bool process_has_addresses(uint64_t size)
{
	void *hva = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (hva == MAP_FAILED)
		return false;
	munmap(hva, size);
	return true;
}

static void machine_of_many_tebibytes_is_there(void **state)
{
	static const uint64_t sizes[] = { 12 * TIB, 16 * TIB, 24 * TIB };
	static const uint32_t backings[] = { GMEM_BACKING_HOST, GMEM_BACKING_SHARED };
	struct gmem_plan *plan;
	struct gmem_view *view;
	struct unit unit;

	(void)state;
	if (!process_has_addresses(32 * TIB))
		return;
	unit_begin_vm(&unit, "6.18");
	assert_ok(gmem_view_new(unit.vm, &view));
	for (size_t i = 0; i < ARRAY_SIZE(backings); i++) {
		plan = unit_plan(&unit, backings[i]);
		for (size_t k = 0; k < ARRAY_SIZE(sizes); k++)
			add_ram(&unit, view, sizes[k], plan);
		gmem_plan_free(plan);
	}
	gmem_view_free(view);
	unit_end(&unit);
}

static void region_of_several_memslots_is_told_how_many(void **state)
{
	struct gmem_region *untouched = UNTOUCHED(struct gmem_region);
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	assert_refused(-EINVAL, "takes 2 regions",
		       gmem_region_add(unit.vm, TIB, 8 * TIB, NULL, &untouched));
	assert_refused(-EINVAL, "takes 4 regions",
		       gmem_region_add(unit.vm, TIB, 24 * TIB, NULL, &untouched));
	unit_end(&unit);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(ram_goes_where_the_machine_has_it),
	cmocka_unit_test(machine_is_this_one_unless_named),
	cmocka_unit_test(layout_rejects_what_is_no_machine),
	cmocka_unit_test(layout_fits_or_says_so),
	cmocka_unit_test(layout_makes_regions_of_one_file),
	cmocka_unit_test(ram_is_where_amd_has_hypertransport_only_if_asked_for),
	cmocka_unit_test(ram_goes_around_holes),
	cmocka_unit_test(holes_are_on_arm64_too),
	cmocka_unit_test(layout_rejects_what_is_no_hole),
	cmocka_unit_test(ram_is_what_a_page_by_page_model_says),
	cmocka_unit_test(ranges_begin_with_the_largest_pages_there_are),
	cmocka_unit_test(layout_tells_the_number_of_its_ranges),
	cmocka_unit_test(machine_of_many_tebibytes_is_there),
	cmocka_unit_test(region_of_several_memslots_is_told_how_many),
};

UNIT_MAIN(tests)
