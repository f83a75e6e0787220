/* SPDX-License-Identifier: MIT */
/* stats: the counts of a VM's and a region's memory add up */
#include <errno.h>
#include <string.h>

#include "unit.h"

static struct gmem_stats stats_of(const struct unit *unit, uint64_t flags)
{
	GMEM_OPTS(gmem_stats, stats, .flags = flags);

	assert_ok(gmem_vm_stats(unit->vm, &stats));
	return stats;
}

static struct gmem_stats region_stats(struct gmem_region *region)
{
	GMEM_OPTS(gmem_stats, stats, .flags = GMEM_STATS_RESIDENT);

	assert_ok(gmem_region_stats(region, &stats));
	return stats;
}

static struct gmem_region *add(const struct unit *unit, uint32_t backing, uint64_t page,
			       uint64_t pages)
{
	struct gmem_plan *plan = unit_plan(unit, backing);
	struct gmem_region *region = unit_region(unit, page, pages, plan);

	gmem_plan_free(plan);
	return region;
}

static void convert(const struct unit *unit, uint64_t page, uint64_t pages, uint32_t to,
		    uint32_t discard)
{
	GMEM_OPTS(gmem_convert_opts, opts, .discard = discard);

	assert_ok(gmem_vm_convert(unit->vm, PAGES(unit, page), PAGES(unit, pages), to, &opts, NULL));
}

static void touch(const struct unit *unit, struct gmem_region *region, uint64_t page, uint64_t pages)
{
	memset((char *)gmem_region_hva(region) + PAGES(unit, page), 0x5a, PAGES(unit, pages));
}

/* Allocates private pages as a guest's accesses do. */
static void allocate(const struct unit *unit, struct gmem_region *region, uint64_t page,
		     uint64_t pages)
{
	assert_ok(gmem_file_allocate(gmem_region_file(region, NULL), PAGES(unit, page),
				     PAGES(unit, pages), NULL));
}

static void a_vm_without_memory_has_nothing(void **state)
{
	GMEM_OPTS(gmem_stats, nothing, .flags = GMEM_STATS_RESIDENT);
	struct gmem_stats stats;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "7.3-swp-t1");
	stats = stats_of(&unit, GMEM_STATS_RESIDENT);
	assert_memory_equal(&stats, &nothing, sizeof(stats));
	unit_end(&unit);
}

static void shared_and_private_are_all_there_is(void **state)
{
	GMEM_OPTS(gmem_region_opts, device, .flags = GMEM_REGION_DEVICE);
	struct gmem_region *first, *second, *region;
	struct gmem_stats stats;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "7.3-swp-t1");
	first = add(&unit, GMEM_BACKING_PRIVATE, 16, 8);
	second = add(&unit, GMEM_BACKING_PRIVATE, 24, 8);
	add(&unit, GMEM_BACKING_HOST, 64, 4);
	assert_ok(gmem_region_add(unit.vm, PAGES(&unit, 128), PAGES(&unit, 16), &device, &region));
	stats = stats_of(&unit, 0);
	assert_int_equal(stats.bytes_shared, PAGES(&unit, 20));
	assert_int_equal(stats.bytes_private, 0);

	convert(&unit, 20, 8, GMEM_STATE_PRIVATE, GMEM_DISCARD_NOW);
	convert(&unit, 22, 1, GMEM_STATE_SHARED, GMEM_DISCARD_NOW);
	stats = stats_of(&unit, 0);
	assert_int_equal(stats.bytes_shared, PAGES(&unit, 13));
	assert_int_equal(stats.bytes_private, PAGES(&unit, 7));
	assert_int_equal(stats.made_private, PAGES(&unit, 8));
	assert_int_equal(stats.made_shared, PAGES(&unit, 1));
	assert_int_equal(stats.conversions, 2);
	assert_int_equal(stats.convert_ioctls, 2);

	stats = region_stats(first);
	assert_int_equal(stats.bytes_private, PAGES(&unit, 3));
	assert_int_equal(stats.made_private, PAGES(&unit, 4));
	assert_int_equal(stats.conversions, 2);
	stats = region_stats(second);
	assert_int_equal(stats.bytes_private, PAGES(&unit, 4));
	assert_int_equal(stats.made_private, PAGES(&unit, 4));
	assert_int_equal(stats.made_shared, 0);
	assert_int_equal(stats.conversions, 1);

	/* a removed range is shared again, and counted */
	assert_ok(gmem_region_remove(second));
	stats = stats_of(&unit, 0);
	assert_int_equal(stats.bytes_private, PAGES(&unit, 3));
	assert_int_equal(stats.bytes_shared, PAGES(&unit, 9));
	assert_int_equal(stats.made_private - stats.made_shared, stats.bytes_private);
	unit_end(&unit);
}

static void pages_converted_already_count_for_nothing(void **state)
{
	struct gmem_stats before, after;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "7.3-swp-t1");
	add(&unit, GMEM_BACKING_PRIVATE, 16, 8);
	convert(&unit, 16, 4, GMEM_STATE_PRIVATE, GMEM_DISCARD_NOW);
	before = stats_of(&unit, 0);
	convert(&unit, 16, 4, GMEM_STATE_PRIVATE, GMEM_DISCARD_NOW);
	convert(&unit, 20, 4, GMEM_STATE_SHARED, GMEM_DISCARD_NOW);
	after = stats_of(&unit, 0);
	assert_memory_equal(&before, &after, sizeof(before));

	/* half of it is */
	convert(&unit, 18, 4, GMEM_STATE_PRIVATE, GMEM_DISCARD_NOW);
	after = stats_of(&unit, 0);
	assert_int_equal(after.made_private, PAGES(&unit, 6));
	assert_int_equal(after.bytes_private, PAGES(&unit, 6));
	unit_end(&unit);
}

static void a_refused_conversion_counts_its_call_and_nothing_else(void **state)
{
	struct gmem_stats stats;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "7.3-swp-t1");
	add(&unit, GMEM_BACKING_PRIVATE, 16, 8);
	fake_fail_next(FAKE_SET_ATTRIBUTES, -EINVAL);
	assert_int_equal(gmem_vm_convert(unit.vm, PAGES(&unit, 16), PAGES(&unit, 8),
					 GMEM_STATE_PRIVATE, NULL, NULL), -EINVAL);
	stats = stats_of(&unit, 0);
	assert_int_equal(stats.convert_ioctls, 1);
	assert_int_equal(stats.conversions, 0);
	assert_int_equal(stats.made_private, 0);
	assert_int_equal(stats.bytes_private, 0);
	unit_end(&unit);
}

static void memory_is_doubled_where_both_sides_have_it(void **state)
{
	struct gmem_region *region;
	struct gmem_stats stats;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "7.3-swp-t1");
	region = add(&unit, GMEM_BACKING_PRIVATE, 16, 16);
	touch(&unit, region, 0, 6);
	stats = stats_of(&unit, GMEM_STATS_RESIDENT);
	assert_int_equal(stats.resident_shared, PAGES(&unit, 6));
	assert_int_equal(stats.resident_private, 0);
	assert_int_equal(stats.doubled, 0);

	/* kept: pages 4 and 5 have both */
	convert(&unit, 20, 8, GMEM_STATE_PRIVATE, GMEM_DISCARD_NEVER);
	allocate(&unit, region, 4, 8);
	stats = stats_of(&unit, GMEM_STATS_RESIDENT);
	assert_int_equal(stats.resident_shared, PAGES(&unit, 6));
	assert_int_equal(stats.resident_private, PAGES(&unit, 8));
	assert_int_equal(stats.doubled, PAGES(&unit, 2));
	assert_int_equal(stats.discards, 0);

	/* given back */
	convert(&unit, 20, 8, GMEM_STATE_SHARED, GMEM_DISCARD_NOW);
	stats = stats_of(&unit, GMEM_STATS_RESIDENT);
	assert_int_equal(stats.resident_private, 0);
	assert_int_equal(stats.doubled, 0);
	assert_int_equal(stats.discards, 1);
	assert_int_equal(stats.discarded, PAGES(&unit, 8));
	convert(&unit, 16, 16, GMEM_STATE_PRIVATE, GMEM_DISCARD_NOW);
	stats = region_stats(region);
	assert_int_equal(stats.resident_shared, 0);
	assert_int_equal(stats.discards, 2);
	assert_int_equal(stats.discarded, PAGES(&unit, 24));
	unit_end(&unit);
}

static void doubled_pages_are_found_one_by_one(void **state)
{
	struct gmem_region *region;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "7.3-swp-t1");
	region = add(&unit, GMEM_BACKING_PRIVATE, 0, 4096 + 64);
	for (uint64_t i = 1; i < 4096; i += 2)
		allocate(&unit, region, i, 1);
	for (uint64_t i = 0; i < 4096 + 64; i += 3)
		touch(&unit, region, i, 1);
	/* every odd multiple of 3 below 4096 */
	assert_int_equal(stats_of(&unit, GMEM_STATS_RESIDENT).doubled, PAGES(&unit, 683));
	unit_end(&unit);
}

static void one_memory_for_both_sides_counts_once(void **state)
{
	struct gmem_region *region;
	struct gmem_stats stats;
	struct gmem_plan *plan;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "7.3-swp-t1");
	plan = unit_plan_mappable_private(&unit);
	region = unit_region(&unit, 16, 8, plan);
	allocate(&unit, region, 0, 4);
	convert(&unit, 16, 2, GMEM_STATE_PRIVATE, GMEM_DISCARD_NOW);
	stats = stats_of(&unit, GMEM_STATS_RESIDENT);
	assert_int_equal(stats.resident_shared, 0);
	assert_int_equal(stats.resident_private, PAGES(&unit, 4));
	assert_int_equal(stats.doubled, 0);
	assert_int_equal(stats.bytes_private, PAGES(&unit, 2));
	gmem_plan_free(plan);
	unit_end(&unit);
}

static void other_ways_of_backing_are_all_shared(void **state)
{
	static const uint32_t ways[] = {
		GMEM_BACKING_HOST, GMEM_BACKING_MAPPED, GMEM_BACKING_SHARED,
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(ways); i++) {
		struct gmem_region *region;
		struct gmem_stats stats;
		struct unit unit;

		unit_begin_vm(&unit, "arm64-7.3-16k");
		region = add(&unit, ways[i], 16, 8);
		touch(&unit, region, 2, 3);
		stats = region_stats(region);
		assert_int_equal(stats.bytes_shared, PAGES(&unit, 8));
		assert_int_equal(stats.resident_shared, PAGES(&unit, 3));
		assert_int_equal(stats.bytes_private, 0);
		assert_int_equal(stats.resident_private, 0);
		assert_int_equal(stats.doubled, 0);
		unit_end(&unit);
	}
}

static void the_upper_part_of_a_split_begins_at_nothing(void **state)
{
	struct gmem_region *region, *upper;
	struct gmem_stats stats;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "7.3-swp-t1");
	region = add(&unit, GMEM_BACKING_PRIVATE, 16, 8);
	convert(&unit, 16, 8, GMEM_STATE_PRIVATE, GMEM_DISCARD_NOW);
	assert_ok(gmem_region_split(region, PAGES(&unit, 4), &upper));
	stats = region_stats(upper);
	assert_int_equal(stats.made_private, 0);
	assert_int_equal(stats.conversions, 0);
	assert_int_equal(stats.bytes_private, PAGES(&unit, 4));
	assert_int_equal(region_stats(region).made_private, PAGES(&unit, 8));
	unit_end(&unit);
}

static void refusals_leave_the_struct_alone(void **state)
{
	GMEM_OPTS(gmem_stats, stats, .flags = GMEM_STATS_RESIDENT, .doubled = 77);
	struct gmem_region *region;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "7.3-swp-t1");
	region = add(&unit, GMEM_BACKING_PRIVATE, 16, 8);
	assert_refused(-EINVAL, "vm is NULL", gmem_vm_stats(NULL, &stats));
	assert_refused(-EINVAL, "region is NULL", gmem_region_stats(NULL, &stats));
	assert_refused(-EINVAL, "stats is NULL", gmem_vm_stats(unit.vm, NULL));
	assert_refused(-EINVAL, "stats is NULL", gmem_region_stats(region, NULL));
	fake.no_cachestat = true;
	assert_refused(-EOPNOTSUPP, "cachestat", gmem_vm_stats(unit.vm, &stats));
	fake.no_cachestat = false;
	fake_fail_next(FAKE_MINCORE, -EAGAIN);
	assert_refused(-EAGAIN, "in memory", gmem_region_stats(region, &stats));
	stats.flags = UNIT_UNKNOWN_BIT;
	assert_refused(-EINVAL, "flags", gmem_vm_stats(unit.vm, &stats));
	stats.flags = 0;
	stats.size = 16;
	assert_refused(-EINVAL, "size is 16", gmem_vm_stats(unit.vm, &stats));
	assert_int_equal(stats.doubled, 77);
	unit_end(&unit);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_vm_without_memory_has_nothing),
		cmocka_unit_test(shared_and_private_are_all_there_is),
		cmocka_unit_test(pages_converted_already_count_for_nothing),
		cmocka_unit_test(a_refused_conversion_counts_its_call_and_nothing_else),
		cmocka_unit_test(memory_is_doubled_where_both_sides_have_it),
		cmocka_unit_test(doubled_pages_are_found_one_by_one),
		cmocka_unit_test(one_memory_for_both_sides_counts_once),
		cmocka_unit_test(other_ways_of_backing_are_all_shared),
		cmocka_unit_test(the_upper_part_of_a_split_begins_at_nothing),
		cmocka_unit_test(refusals_leave_the_struct_alone),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
