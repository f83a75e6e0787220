/* SPDX-License-Identifier: MIT */
/* ram_layout: the RAM of common machines */
#include <errno.h>
#include <string.h>

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
	struct gmem_ram_range ranges[2];
} layouts[] = {
	{ PAGE, X86, 0, 0, 1, { { 0, PAGE, 0 } } },
	{ 3 * GIB - PAGE, X86, 0, 0, 1, { { 0, 3 * GIB - PAGE, 0 } } },
	{ 3 * GIB, X86, 0, 0, 1, { { 0, 3 * GIB, 0 } } },
	{ 3 * GIB + PAGE, X86, 0, 0, 2, { { 0, 3 * GIB, 0 }, { 4 * GIB, PAGE, 3 * GIB } } },
	{ 4 * GIB, X86, 0, 0, 2, { { 0, 3 * GIB, 0 }, { 4 * GIB, GIB, 3 * GIB } } },
	{ 12 * TIB, X86, 0, 0, 2, { { 0, 3 * GIB, 0 }, { 4 * GIB, 12 * TIB - 3 * GIB, 3 * GIB } } },
	{ 4 * GIB, X86, 2 * GIB, 0, 2, { { 0, 2 * GIB, 0 }, { 4 * GIB, 2 * GIB, 2 * GIB } } },
	{ GIB, X86, PAGE, 0, 2, { { 0, PAGE, 0 }, { 4 * GIB, GIB - PAGE, PAGE } } },
	/* no hole at all: still two ranges, one file */
	{ 5 * GIB, X86, 4 * GIB, 0, 2, { { 0, 4 * GIB, 0 }, { 4 * GIB, GIB, 4 * GIB } } },
	{ 4 * GIB, X86, 4 * GIB, 0, 1, { { 0, 4 * GIB, 0 } } },
	{ PAGE, ARM64, 0, 0, 1, { { GIB, PAGE, 0 } } },
	{ 12 * TIB, ARM64, 0, 0, 1, { { GIB, 12 * TIB, 0 } } },
	{ GIB, ARM64, 0, 2 * GIB + PAGE, 1, { { 2 * GIB + PAGE, GIB, 0 } } },
	{ GIB, ARM64, 0, 0 - GIB, 1, { { 0 - GIB, GIB, 0 } } },
};

static void ram_goes_where_the_machine_has_it(void **state)
{
	struct gmem_ram_range ranges[3];
	struct unit unit;
	size_t i;

	(void)state;
	unit_begin(&unit, "6.18");
	for (i = 0; i < ARRAY_SIZE(layouts); i++) {
		GMEM_OPTS(gmem_ram_layout_opts, opts, .machine = layouts[i].machine,
			  .hole_start = layouts[i].hole_start, .base = layouts[i].base);

		memset(ranges, 0x5a, sizeof(ranges));
		assert_int_equal(gmem_ram_layout(layouts[i].ram, &opts, ranges, 2),
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
		{ PAGE, OPTS(.machine = X86, .reserved = 1), -EINVAL, "reserved" },
		{ PAGE, OPTS(.machine = X86, .hole_start = 1), -EINVAL, "hole_start" },
		{ PAGE, OPTS(.machine = X86, .hole_start = 4 * GIB + PAGE), -EINVAL, "4 GiB" },
		{ PAGE, OPTS(.machine = ARM64, .base = 1), -EINVAL, "base" },
		{ 2 * GIB, OPTS(.machine = ARM64, .base = 0 - GIB), -EINVAL, "wraps" },
		{ 0 - GIB, OPTS(.machine = X86), -EINVAL, "" },
		{ 0 - PAGE, OPTS(.machine = X86, .base = PAGE), -EINVAL, "" },
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
	assert_int_equal(gmem_ram_layout(PAGE, &opts, &one, 1), 1);
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

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(ram_goes_where_the_machine_has_it),
	cmocka_unit_test(machine_is_this_one_unless_named),
	cmocka_unit_test(layout_rejects_what_is_no_machine),
	cmocka_unit_test(layout_fits_or_says_so),
	cmocka_unit_test(layout_makes_regions_of_one_file),
};

UNIT_MAIN(tests)
