/* SPDX-License-Identifier: MIT */
/* region_memory and present_pages: the two sides of a region's memory, discarded and walked */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "os/sys.h"
#include "region/host_look.h"
#include "region/present_pages.h"
#include "region/region_memory.h"
#include "unit.h"

static struct gmem_region *begin(struct unit *unit, const struct unit_way *way, uint64_t pages)
{
	unit_begin_vm(unit, way->kernel);
	return unit_region_backed(unit, 16, pages, way->backing);
}

static void touch(const struct unit *unit, const struct gmem_region *region, uint64_t page)
{
	memset((char *)gmem_region_hva(region) + PAGES(unit, page), 0x5a, unit->page);
}

static uint64_t resident(const struct gmem_region *region, uint32_t side)
{
	uint64_t bytes = UINT64_MAX;

	assert_ok(gmem_region_memory_resident(region, side, 0, gmem_region_size(region), &bytes));
	return bytes;
}

static int discard_side(struct gmem_region *region, uint32_t side, uint64_t offset, uint64_t size,
			uint64_t *ret_done)
{
	struct gmem_host_look look = GMEM_HOST_LOOK;
	const struct gmem_discard_how how = { 0, &look };
	int err = gmem_region_memory_discard(region, side, offset, size, &how, ret_done);

	gmem_host_look_end(&look);
	return err;
}

static int walk_pages(const struct gmem_region *region, uint32_t side, uint64_t offset, uint64_t size,
		      gmem_present_pages_fn fn, void *data)
{
	struct gmem_host_look look = GMEM_HOST_LOOK;
	int err = gmem_region_present_pages(region, side, offset, size, &look, fn, data);

	gmem_host_look_end(&look);
	return err;
}

/* ---- presence, as a string of pages: "#" there, "." not ---- */

struct picture {
	const struct unit *unit;
	char pages[80];
	unsigned int calls;
	int answer;
};

static int draw(void *data, uint64_t offset, uint64_t size)
{
	struct picture *picture = data;

	assert_true(size > 0);
	memset(picture->pages + offset / picture->unit->page, '#', size / picture->unit->page);
	picture->calls++;
	return picture->answer;
}

static void assert_picture(const struct unit *unit, const struct gmem_region *region,
			   uint32_t side, const char *expected)
{
	struct picture picture = { .unit = unit };

	memset(picture.pages, '.', gmem_region_size(region) / unit->page);
	assert_ok(walk_pages(region, side, 0, gmem_region_size(region), draw, &picture));
	assert_string_equal(picture.pages, expected);
}

static void discard_gives_back_what_was_asked_for(void **state)
{
	struct gmem_region *region;
	struct unit unit;
	uint64_t done;
	char *hva;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(unit_ways); i++) {
		region = begin(&unit, &unit_ways[i], 8);
		hva = gmem_region_hva(region);
		memset(hva, 0x5a, PAGES(&unit, 8));
		assert_int_equal(resident(region, GMEM_SIDE_SHARED), PAGES(&unit, 8));

		done = 0;
		assert_ok(discard_side(region, GMEM_SIDE_SHARED, PAGES(&unit, 2),
						     PAGES(&unit, 3), &done));
		assert_int_equal(done, PAGES(&unit, 3));
		assert_int_equal(resident(region, GMEM_SIDE_SHARED), PAGES(&unit, 5));
		assert_picture(&unit, region, GMEM_SIDE_SHARED, "##...###");
		assert_int_equal(hva[PAGES(&unit, 2)], 0);
		assert_int_equal(hva[PAGES(&unit, 5) - 1], 0);
		assert_int_equal(hva[PAGES(&unit, 2) - 1], 0x5a);
		assert_int_equal(hva[PAGES(&unit, 5)], 0x5a);
		unit_end(&unit);
	}
}

static void private_side_is_the_file(void **state)
{
	static const struct unit_way way = { "7.3-swp-t1", GMEM_BACKING_PRIVATE };
	struct gmem_region *region;
	struct unit unit;

	(void)state;
	region = begin(&unit, &way, 8);
	assert_false(gmem_region_is_both_sides(region));
	assert_ok(gmem_file_allocate(gmem_region_file(region, NULL), PAGES(&unit, 1),
				     PAGES(&unit, 4), NULL));
	touch(&unit, region, 7);
	assert_int_equal(resident(region, GMEM_SIDE_PRIVATE), PAGES(&unit, 4));
	assert_int_equal(resident(region, GMEM_SIDE_SHARED), PAGES(&unit, 1));
	assert_picture(&unit, region, GMEM_SIDE_PRIVATE, ".####...");
	assert_picture(&unit, region, GMEM_SIDE_SHARED, ".......#");

	assert_ok(discard_side(region, GMEM_SIDE_PRIVATE, PAGES(&unit, 2), unit.page, NULL));
	assert_picture(&unit, region, GMEM_SIDE_PRIVATE, ".#.##...");
	assert_picture(&unit, region, GMEM_SIDE_SHARED, ".......#");
	unit_end(&unit);
}

/* The guest uses the file in either state: nothing is beside it. */
static void mappable_private_file_is_both_sides(void **state)
{
	struct gmem_region *region;
	struct gmem_plan *plan;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "7.3-swp-t1");
	plan = unit_plan_mappable_private(&unit);
	region = unit_region(&unit, 16, 4, plan);
	gmem_plan_free(plan);

	assert_true(gmem_region_is_both_sides(region));
	assert_ok(gmem_file_allocate(gmem_region_file(region, NULL), 0, unit.page, NULL));
	assert_int_equal(resident(region, GMEM_SIDE_SHARED), unit.page);
	assert_int_equal(resident(region, GMEM_SIDE_PRIVATE), unit.page);
	unit_end(&unit);
}

static void only_private_backing_has_a_private_side(void **state)
{
	struct gmem_region *region;
	struct unit unit;
	uint64_t bytes;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(unit_ways); i++) {
		region = begin(&unit, &unit_ways[i], 2);
		if (unit_ways[i].backing != GMEM_BACKING_PRIVATE) {
			assert_refused(-EOPNOTSUPP, gmem_backing_name(unit_ways[i].backing),
				       discard_side(region, GMEM_SIDE_PRIVATE, 0, unit.page, NULL));
			assert_refused(-EOPNOTSUPP, "no private side",
				       gmem_region_memory_resident(region, GMEM_SIDE_PRIVATE, 0, unit.page,
								   &bytes));
		}
		assert_refused(-EINVAL, "the end of the region",
			       discard_side(region, GMEM_SIDE_SHARED, unit.page,
							  PAGES(&unit, 2), NULL));
		assert_refused(-EINVAL, "size 0",
			       discard_side(region, GMEM_SIDE_SHARED, 0, 0, NULL));
		unit_end(&unit);
	}
}

static void devices_have_no_sides(void **state)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_DEVICE);
	struct gmem_region *region;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	assert_ok(gmem_region_add(unit.vm, 0, unit.page, &opts, &region));
	assert_refused(-ENXIO, "a device's",
		       discard_side(region, GMEM_SIDE_SHARED, 0, unit.page, NULL));
	unit_end(&unit);
}

/* ---- files ---- */

static void file_is_unmapped_before_it_is_punched(void **state)
{
	static const struct unit_way way = { "6.18", GMEM_BACKING_SHARED };
	struct gmem_region *region;
	struct unit unit;
	unsigned int before;
	uint64_t done;

	(void)state;
	region = begin(&unit, &way, 8);
	before = fake_count(FAKE_MADVISE);
	assert_ok(discard_side(region, GMEM_SIDE_SHARED, 0, PAGES(&unit, 8), NULL));
	assert_int_equal(fake_count(FAKE_MADVISE), before + 1);

	/* A single page, too, which the hardware may have lost */
	assert_ok(discard_side(region, GMEM_SIDE_SHARED, 0, PAGES(&unit, 1), NULL));
	assert_int_equal(fake_count(FAKE_MADVISE), before + 2);

	/* MADV_DONTNEED only saves time: the discard does not depend on it. */
	touch(&unit, region, 1);
	fake_fail_next(FAKE_MADVISE, -EINVAL);
	assert_ok(discard_side(region, GMEM_SIDE_SHARED, 0, PAGES(&unit, 8), &done));
	assert_true(fake_fail_struck());
	assert_int_equal(done, PAGES(&unit, 8));
	assert_int_equal(resident(region, GMEM_SIDE_SHARED), 0);
	unit_end(&unit);
}

static void punching_survives_signals_and_tells_how_far_it_got(void **state)
{
	static const struct unit_way way = { "6.18", GMEM_BACKING_SHARED };
	struct gmem_region *region;
	struct unit unit;
	uint64_t done = UINT64_MAX;

	(void)state;
	region = begin(&unit, &way, 8);
	memset(gmem_region_hva(region), 1, PAGES(&unit, 8));
	fake_interrupt(3, 1);
	assert_ok(discard_side(region, GMEM_SIDE_SHARED, 0, PAGES(&unit, 8), NULL));
	assert_int_equal(resident(region, GMEM_SIDE_SHARED), 0);

	fake_fail_next(FAKE_FALLOCATE, -EIO);
	assert_int_equal(discard_side(region, GMEM_SIDE_SHARED, 0, unit.page, &done), -EIO);
	assert_int_equal(done, 0);
	unit_end(&unit);
}

static void mincore_is_not_believed_where_it_hides(void **state)
{
	static const struct unit_way way = { "6.18", GMEM_BACKING_SHARED };
	struct gmem_region *region;
	struct unit unit;

	(void)state;
	region = begin(&unit, &way, 11);
	touch(&unit, region, 0);
	touch(&unit, region, 6);
	touch(&unit, region, 7);
	touch(&unit, region, 10);
	fake.mincore_hides = true;
	assert_int_equal(resident(region, GMEM_SIDE_SHARED), PAGES(&unit, 4));
	assert_picture(&unit, region, GMEM_SIDE_SHARED, "#.....##..#");

	/* Without cachestat, mincore() cannot be checked: every page may be there. */
	fake.no_cachestat = true;
	assert_picture(&unit, region, GMEM_SIDE_SHARED, "###########");
	fake.mincore_hides = false;
	assert_picture(&unit, region, GMEM_SIDE_SHARED, "#.....##..#");
	assert_int_equal(resident(region, GMEM_SIDE_SHARED), PAGES(&unit, 4));
	unit_end(&unit);
}

static void looking_allocates_nothing(void **state)
{
	struct gmem_region *region;
	struct unit unit;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(unit_ways); i++) {
		region = begin(&unit, &unit_ways[i], 16);
		assert_picture(&unit, region, GMEM_SIDE_SHARED, "................");
		assert_picture(&unit, region, GMEM_SIDE_SHARED, "................");
		assert_int_equal(resident(region, GMEM_SIDE_SHARED), 0);
		unit_end(&unit);
	}
}

/* Allocated pages are resident; those of them that nobody used are zero. */
static void unused_pages_are_resident_and_may_be_left_out(void **state)
{
	static const struct unit_way way = { "6.18", GMEM_BACKING_SHARED };
	struct gmem_region *region;
	struct unit unit;

	(void)state;
	region = begin(&unit, &way, 8);
	touch(&unit, region, 1);
	assert_ok(gmem_file_allocate(gmem_region_file(region, NULL), PAGES(&unit, 4),
				     PAGES(&unit, 2), NULL));
	assert_int_equal(resident(region, GMEM_SIDE_SHARED), PAGES(&unit, 3));
	assert_picture(&unit, region, GMEM_SIDE_SHARED, ".#......");
	unit_end(&unit);
}

static void unmappable_file_without_cachestat_is_unknown(void **state)
{
	static const struct unit_way way = { "6.12-swp-t1", GMEM_BACKING_PRIVATE };
	struct gmem_region *region;
	struct unit unit;
	uint64_t bytes = 5;

	(void)state;
	region = begin(&unit, &way, 4);
	fake.no_cachestat = true;
	assert_refused(-EOPNOTSUPP, "cachestat",
		       gmem_region_memory_resident(region, GMEM_SIDE_PRIVATE, 0, PAGES(&unit, 4), &bytes));
	assert_int_equal(bytes, 5);
	assert_picture(&unit, region, GMEM_SIDE_PRIVATE, "####");
	unit_end(&unit);
}

static void walk_ends_where_it_is_told_to(void **state)
{
	static const struct unit_way way = { "6.18", GMEM_BACKING_SHARED };
	struct picture picture = { .answer = -ECANCELED };
	struct gmem_region *region;
	struct unit unit;

	(void)state;
	region = begin(&unit, &way, 8);
	touch(&unit, region, 1);
	touch(&unit, region, 3);
	touch(&unit, region, 5);
	picture.unit = &unit;
	assert_int_equal(walk_pages(region, GMEM_SIDE_SHARED, 0, PAGES(&unit, 8), draw,
						   &picture), -ECANCELED);
	assert_int_equal(picture.calls, 1);
	assert_int_equal(picture.pages[1], '#');
	unit_end(&unit);
}

static void walk_is_of_the_range_only(void **state)
{
	struct picture picture = { .unit = NULL };
	struct gmem_region *region;
	struct unit unit;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(unit_ways); i++) {
		region = begin(&unit, &unit_ways[i], 8);
		memset(gmem_region_hva(region), 1, PAGES(&unit, 8));
		picture.unit = &unit;
		picture.calls = 0;
		memset(picture.pages, 0, sizeof(picture.pages));
		memset(picture.pages, '.', 8);
		assert_ok(walk_pages(region, GMEM_SIDE_SHARED, PAGES(&unit, 2),
						    PAGES(&unit, 3), draw, &picture));
		assert_string_equal(picture.pages, "..###...");
		assert_int_equal(picture.calls, 1);
		unit_end(&unit);
	}
}

static void every_failed_look_is_reported(void **state)
{
	static const enum fake_call calls[] = { FAKE_CACHESTAT, FAKE_MINCORE, FAKE_PAGEMAP };
	static const struct unit_way host = { "6.18", GMEM_BACKING_HOST };
	static const struct unit_way shared = { "6.18", GMEM_BACKING_SHARED };
	static const struct unit_way private = { "7.3-swp-t1", GMEM_BACKING_PRIVATE };
	struct gmem_region *region;
	struct unit unit;
	uint64_t bytes;

	(void)state;
	region = begin(&unit, &shared, 4);
	touch(&unit, region, 1);
	/* Each stands in for the other. */
	fake_fail_next(calls[0], -EIO);
	assert_picture(&unit, region, GMEM_SIDE_SHARED, ".#..");
	fake_fail_next(calls[1], -EAGAIN);
	assert_int_equal(walk_pages(region, GMEM_SIDE_SHARED, 0, unit.page * 4, draw,
						   NULL), -EAGAIN);
	assert_true(fake_fail_struck());
	unit_end(&unit);

	region = begin(&unit, &private, 4);
	fake_fail_next(calls[0], -EIO);
	assert_refused(-EIO, "counted", walk_pages(region, GMEM_SIDE_PRIVATE, 0,
								  unit.page * 4, draw, NULL));
	fake_fail_next(calls[0], -EIO);
	assert_refused(-EIO, "cachestat", gmem_region_memory_resident(region, GMEM_SIDE_PRIVATE, 0,
								      unit.page * 4, &bytes));
	unit_end(&unit);

	region = begin(&unit, &host, 4);
	fake_fail_next(calls[2], -EACCES);
	assert_picture(&unit, region, GMEM_SIDE_SHARED, "####");
	fake_fail_next(calls[1], -EAGAIN);
	assert_refused(-EAGAIN, "in memory", gmem_region_memory_resident(region, GMEM_SIDE_SHARED, 0,
									 unit.page * 4, &bytes));
	unit_end(&unit);
}

/* ---- host memory ---- */

/* A region of memory that is the test's own */
static struct gmem_region *borrow(struct unit *unit, void *hva, uint64_t pages)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_HVA, .hva = hva);
	struct gmem_region *region;
	struct gmem_plan *plan;

	unit_begin_vm(unit, "6.18");
	plan = unit_plan(unit, GMEM_BACKING_HOST);
	opts.plan = plan;
	assert_ok(gmem_region_add(unit->vm, 0, PAGES(unit, pages), &opts, &region));
	gmem_plan_free(plan);
	return region;
}

static void callers_memory_is_freed_whatever_it_is(void **state)
{
	static const int kinds[] = { MAP_PRIVATE, MAP_SHARED };
	struct gmem_region *region;
	struct unit unit;
	uint64_t bytes, size;
	char *hva;
	size_t i;

	(void)state;
	fake_boot("6.18");
	size = 4 * gmem_sys_page_size();
	for (i = 0; i < ARRAY_SIZE(kinds); i++) {
		hva = mmap(NULL, size, PROT_READ | PROT_WRITE, kinds[i] | MAP_ANONYMOUS, -1, 0);
		assert_true(hva != MAP_FAILED);
		region = borrow(&unit, hva, 4);
		memset(hva, 1, size);
		assert_picture(&unit, region, GMEM_SIDE_SHARED, "####");
		assert_ok(discard_side(region, GMEM_SIDE_SHARED, unit.page, unit.page, NULL));
		assert_ok(gmem_region_memory_resident(region, GMEM_SIDE_SHARED, 0, size, &bytes));
		assert_int_equal(bytes, PAGES(&unit, 3));
		assert_picture(&unit, region, GMEM_SIDE_SHARED, "#.##");
		assert_int_equal(hva[0], 1);
		assert_int_equal(hva[unit.page], 0);
		unit_end(&unit);
		munmap(hva, size);
	}
}

static void locked_memory_is_freed_too(void **state)
{
	static const struct unit_way way = { "6.18", GMEM_BACKING_HOST };
	struct gmem_region *region;
	struct unit unit;

	(void)state;
	region = begin(&unit, &way, 4);
	memset(gmem_region_hva(region), 1, PAGES(&unit, 4));
	fake_fail_next(FAKE_MADVISE, -EINVAL);
	assert_int_equal(discard_side(region, GMEM_SIDE_SHARED, 0, PAGES(&unit, 4), NULL), 0);
	assert_true(fake_fail_struck());
	assert_int_equal(resident(region, GMEM_SIDE_SHARED), 0);

	fake_fail_kind(FAKE_MADVISE, 0, 2, -EINVAL);
	assert_refused(-EINVAL, "up to 0x0", discard_side(region, GMEM_SIDE_SHARED, 0,
									PAGES(&unit, 4), NULL));
	unit_end(&unit);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(discard_gives_back_what_was_asked_for),
	cmocka_unit_test(private_side_is_the_file),
	cmocka_unit_test(mappable_private_file_is_both_sides),
	cmocka_unit_test(only_private_backing_has_a_private_side),
	cmocka_unit_test(devices_have_no_sides),
	cmocka_unit_test(file_is_unmapped_before_it_is_punched),
	cmocka_unit_test(punching_survives_signals_and_tells_how_far_it_got),
	cmocka_unit_test(mincore_is_not_believed_where_it_hides),
	cmocka_unit_test(looking_allocates_nothing),
	cmocka_unit_test(unused_pages_are_resident_and_may_be_left_out),
	cmocka_unit_test(unmappable_file_without_cachestat_is_unknown),
	cmocka_unit_test(walk_ends_where_it_is_told_to),
	cmocka_unit_test(walk_is_of_the_range_only),
	cmocka_unit_test(every_failed_look_is_reported),
	cmocka_unit_test(callers_memory_is_freed_whatever_it_is),
	cmocka_unit_test(locked_memory_is_freed_too),
};

UNIT_MAIN_SMALL_PAGES(tests)
