/* SPDX-License-Identifier: MIT */
/* discard and section: memory goes back to the host, range by range and in lists */
#include <errno.h>
#include <stdlib.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "unit.h"
#include "unit_alloc.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

/* A region of full pages at page 16 */
static struct gmem_region *begin(struct unit *unit, const struct unit_way *way, uint64_t pages)
{
	struct gmem_region *region;

	unit_begin_vm(unit, way->kernel);
	region = unit_region_backed(unit, 16, pages, way->backing);
	memset(gmem_region_hva(region), 0x5a, PAGES(unit, pages));
	return region;
}

static struct gmem_region *begin_shared(struct unit *unit, uint64_t pages)
{
	static const struct unit_way way = { "6.18", GMEM_BACKING_SHARED };

	return begin(unit, &way, pages);
}

/* Compares a string of pages: "#" still has its contents, "." reads as zero. */
static void assert_left(const struct unit *unit, const struct gmem_region *region,
			const char *expected)
{
	const char *hva = gmem_region_hva(region);
	char left[80] = "";

	for (size_t i = 0; i < gmem_region_size(region) / unit->page; i++)
		left[i] = hva[PAGES(unit, i)] == 0x5a ? '#' : '.';
	assert_string_equal(left, expected);
}

/* ---- one range ---- */

static void discarded_pages_are_zero_and_counted(void **state)
{
	struct gmem_footprint footprint;
	struct gmem_region *region;
	struct unit unit;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(unit_ways); i++) {
		region = begin(&unit, &unit_ways[i], 8);
		assert_ok(gmem_vm_discard(unit.vm, PAGES(&unit, 18), PAGES(&unit, 4), NULL,
					  &footprint));
		unit_check_footprint(&footprint, PAGES(&unit, 4), PAGES(&unit, 4), 0);
		assert_left(&unit, region, "##....##");

		/* A second discard has nothing left to free. */
		assert_ok(gmem_vm_discard(unit.vm, PAGES(&unit, 18), PAGES(&unit, 4), NULL,
					  &footprint));
		assert_int_equal(footprint.done, PAGES(&unit, 4));
		assert_int_equal(footprint.after, 0);
		unit_end(&unit);
	}
}

static void range_may_span_regions_and_ways_of_backing(void **state)
{
	struct gmem_footprint footprint;
	struct gmem_region *low, *high;
	struct unit unit;

	(void)state;
	low = begin_shared(&unit, 4);
	high = unit_region_backed(&unit, 20, 4, GMEM_BACKING_HOST);
	memset(gmem_region_hva(high), 0x5a, PAGES(&unit, 4));

	assert_ok(gmem_vm_discard(unit.vm, PAGES(&unit, 18), PAGES(&unit, 5), NULL, &footprint));
	unit_check_footprint(&footprint, PAGES(&unit, 5), PAGES(&unit, 5), 0);
	assert_left(&unit, low, "##..");
	assert_left(&unit, high, "...#");
	unit_end(&unit);
}

/* Each byte is freed on the side its state says, and there alone. */
static void side_is_the_one_the_guest_uses(void **state)
{
	static const struct unit_way way = { "7.3-swp-t1", GMEM_BACKING_PRIVATE };
	GMEM_OPTS(gmem_convert_opts, keep, .discard = GMEM_DISCARD_NEVER);
	struct gmem_footprint footprint;
	struct gmem_region *region;
	struct gmem_file *file;
	struct unit unit;

	(void)state;
	region = begin(&unit, &way, 8);
	file = gmem_region_file(region, NULL);
	assert_ok(gmem_file_allocate(file, 0, PAGES(&unit, 8), NULL));
	assert_ok(gmem_vm_convert(unit.vm, PAGES(&unit, 18), PAGES(&unit, 4), GMEM_STATE_PRIVATE,
				  &keep, NULL));

	assert_ok(gmem_vm_discard(unit.vm, PAGES(&unit, 17), PAGES(&unit, 6), NULL, &footprint));
	unit_check_footprint(&footprint, PAGES(&unit, 6), PAGES(&unit, 6), 0);
	assert_left(&unit, region, "#.####.#");
	assert_true(fake_is_allocated(gmem_file_fd(file), 0, PAGES(&unit, 2)));
	assert_false(fake_is_allocated(gmem_file_fd(file), PAGES(&unit, 2), unit.page));
	assert_false(fake_is_allocated(gmem_file_fd(file), PAGES(&unit, 5), unit.page));
	assert_true(fake_is_allocated(gmem_file_fd(file), PAGES(&unit, 6), PAGES(&unit, 2)));
	unit_end(&unit);
}

static void pages_are_counted_only_for_a_footprint(void **state)
{
	struct unit unit;
	unsigned int before;

	(void)state;
	begin_shared(&unit, 4);
	before = fake_count(FAKE_CACHESTAT) + fake_count(FAKE_MINCORE);
	assert_ok(gmem_vm_discard(unit.vm, PAGES(&unit, 16), unit.page, NULL, NULL));
	assert_int_equal(fake_count(FAKE_CACHESTAT) + fake_count(FAKE_MINCORE), before);
	unit_end(&unit);
}

static void pages_that_cannot_be_counted_are_discarded_all_the_same(void **state)
{
	static const struct unit_way way = { "7.3-swp-t1", GMEM_BACKING_PRIVATE };
	struct gmem_footprint footprint;
	struct unit unit;

	(void)state;
	begin(&unit, &way, 2);
	assert_ok(gmem_vm_convert(unit.vm, PAGES(&unit, 16), unit.page, GMEM_STATE_PRIVATE, NULL,
				  NULL));
	fake.no_cachestat = true;
	assert_ok(gmem_vm_discard(unit.vm, PAGES(&unit, 16), unit.page, NULL, &footprint));
	assert_int_equal(footprint.done, unit.page);
	assert_int_equal(footprint.counted, 0);
	unit_end(&unit);
}

static void range_must_be_memory_throughout(void **state)
{
	GMEM_OPTS(gmem_region_opts, device, .flags = GMEM_REGION_DEVICE);
	struct gmem_footprint footprint;
	struct gmem_region *region, *other;
	struct unit unit;

	(void)state;
	region = begin_shared(&unit, 4);
	assert_ok(gmem_region_add(unit.vm, PAGES(&unit, 20), unit.page, &device, &other));
	assert_refused(-ENXIO, "device at gpa 0x14000",
		       gmem_vm_discard(unit.vm, PAGES(&unit, 18), PAGES(&unit, 4), NULL,
				       &footprint));
	unit_check_footprint(&footprint, 0, 0, 0);
	assert_refused(-ENOENT, "no region at gpa 0xf000",
		       gmem_vm_discard(unit.vm, PAGES(&unit, 15), PAGES(&unit, 4), NULL, NULL));
	assert_left(&unit, region, "####");
	unit_end(&unit);
}

static void bad_arguments_are_refused(void **state)
{
	GMEM_OPTS(gmem_discard_opts, flags, .flags = UNIT_UNKNOWN_BIT);
	GMEM_OPTS(gmem_discard_opts, reserved, .reserved = 1);
	struct gmem_gpa_range range;
	uint64_t gpa;
	struct unit unit;

	(void)state;
	begin_shared(&unit, 4);
	gpa = PAGES(&unit, 16);
	range = (struct gmem_gpa_range){ gpa, unit.page };
	assert_refused(-EINVAL, "vm is NULL", gmem_vm_discard(NULL, gpa, unit.page, NULL, NULL));
	assert_refused(-EINVAL, "ranges is NULL",
		       gmem_vm_discard_list(unit.vm, NULL, 1, NULL, NULL));
	assert_refused(-EINVAL, "size 0", gmem_vm_discard(unit.vm, gpa, 0, NULL, NULL));
	assert_refused(-EINVAL, "not a multiple",
		       gmem_vm_discard(unit.vm, gpa + 1, unit.page, NULL, NULL));
	assert_refused(-EINVAL, "last guest address",
		       gmem_vm_discard(unit.vm, (uint64_t)1 << 63, unit.page, NULL, NULL));
	assert_refused(-EINVAL, "", gmem_vm_discard(unit.vm, 0 - unit.page, PAGES(&unit, 2), NULL,
						    NULL));
	assert_refused(-EINVAL, "bits", gmem_vm_discard(unit.vm, gpa, unit.page, &flags, NULL));
	assert_refused(-EINVAL, "reserved", gmem_vm_discard(unit.vm, gpa, unit.page, &reserved,
							    NULL));
	assert_refused(-EINVAL, "", gmem_vm_discard_list(unit.vm, &range, SIZE_MAX, NULL, NULL));
	unit_end(&unit);
}

/* ---- lists ---- */

static void neighbours_in_a_list_are_one_call(void **state)
{
	struct gmem_footprint footprint;
	struct gmem_gpa_range list[6];
	struct gmem_region *region;
	unsigned int before;
	struct unit unit;

	(void)state;
	region = begin_shared(&unit, 12);
	list[0] = (struct gmem_gpa_range){ PAGES(&unit, 26), PAGES(&unit, 1) };
	list[1] = (struct gmem_gpa_range){ PAGES(&unit, 17), PAGES(&unit, 2) };
	list[2] = (struct gmem_gpa_range){ PAGES(&unit, 25), PAGES(&unit, 1) };
	list[3] = (struct gmem_gpa_range){ PAGES(&unit, 18), PAGES(&unit, 3) };
	list[4] = (struct gmem_gpa_range){ PAGES(&unit, 18), PAGES(&unit, 1) };
	list[5] = (struct gmem_gpa_range){ PAGES(&unit, 21), PAGES(&unit, 1) };
	before = fake_count(FAKE_FALLOCATE);
	assert_ok(gmem_vm_discard_list(unit.vm, list, ARRAY_SIZE(list), NULL, &footprint));
	assert_int_equal(fake_count(FAKE_FALLOCATE), before + 2);
	unit_check_footprint(&footprint, PAGES(&unit, 7), PAGES(&unit, 7), 0);
	assert_left(&unit, region, "#.....###..#");

	assert_ok(gmem_vm_discard_list(unit.vm, NULL, 0, NULL, &footprint));
	unit_check_footprint(&footprint, 0, 0, 0);
	unit_end(&unit);
}

/* A long list, of pieces of all sizes that overlap and come again and again, in no order */
#define LIST_PAGES 1500
#define LIST_COUNT 100000

static void long_lists_free_what_they_name(void **state)
{
	struct gmem_gpa_range *list = calloc(LIST_COUNT, sizeof(*list));
	bool named[LIST_PAGES] = { false };
	struct gmem_footprint footprint;
	struct gmem_region *region;
	unsigned int before, runs;
	uint64_t page, pages;
	struct unit unit;
	uint32_t x = 1;

	(void)state;
	assert_non_null(list);
	region = begin_shared(&unit, LIST_PAGES);
	for (size_t i = 0; i < LIST_COUNT; i++) {
		x = x * 1664525 + 1013904223;
		page = (x >> 8) % (LIST_PAGES - 3);
		pages = page % 7 ? 1 : 3;
		page -= page % 3 ? 0 : page % 2;	/* leaves some out */
		list[i] = (struct gmem_gpa_range){ PAGES(&unit, 16 + page), PAGES(&unit, pages) };
		for (uint64_t k = page; k < page + pages; k++)
			named[k] = true;
	}
	for (page = pages = runs = 0; page < LIST_PAGES; page++) {
		pages += named[page];
		runs += named[page] && (page == 0 || !named[page - 1]);
	}

	before = fake_count(FAKE_FALLOCATE);
	assert_ok(gmem_vm_discard_list(unit.vm, list, LIST_COUNT, NULL, &footprint));
	assert_int_equal(fake_count(FAKE_FALLOCATE), before + runs);
	unit_check_footprint(&footprint, PAGES(&unit, pages), PAGES(&unit, pages), 0);
	for (page = 0; page < LIST_PAGES; page++)
		assert_int_equal(((char *)gmem_region_hva(region))[PAGES(&unit, page)] == 0, named[page]);
	unit_end(&unit);
	free(list);
}

/* What a balloon sends is in any order, and has what it likes. */
static void pages_of_a_balloon_are_freed_in_whole_pages_of_the_host(void **state)
{
	static const struct unit_way ways[] = {
		{ "6.18", GMEM_BACKING_SHARED },
		{ "arm64-7.3-16k", GMEM_BACKING_SHARED },
		{ "6.18", GMEM_BACKING_HOST },
	};
	struct gmem_footprint footprint;
	struct gmem_region *region;
	uint32_t pfns[64], count, of_page;
	unsigned int before;
	struct unit unit;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(ways); i++) {
		region = begin(&unit, &ways[i], 8);
		of_page = (uint32_t)(unit.page / 4096);
		/* pages 17, 18 and 20 of the host, backwards and each twice; of 22 only a part */
		for (count = 0; count < 2 * of_page; count++)
			pfns[count] = 19 * of_page - 1 - count;
		for (uint32_t n = 0; n < of_page; n++)
			pfns[count++] = 20 * of_page + n;
		memcpy(pfns + count, pfns, count * sizeof(pfns[0]));
		count *= 2;
		if (of_page > 1)
			pfns[count++] = 22 * of_page;

		before = fake_count(FAKE_FALLOCATE);
		assert_ok(gmem_vm_discard_pfns(unit.vm, pfns, count, NULL, &footprint));
		unit_check_footprint(&footprint, PAGES(&unit, 3), PAGES(&unit, 3), 0);
		assert_left(&unit, region, "#..#.###");
		if (ways[i].backing == GMEM_BACKING_SHARED)
			assert_int_equal(fake_count(FAKE_FALLOCATE), before + 2);

		unit_end(&unit);
	}
}

static void lists_of_a_balloon_are_checked(void **state)
{
	GMEM_OPTS(gmem_discard_opts, opts, .flags = UNIT_UNKNOWN_BIT);
	uint32_t pfns[2] = { 16, UINT32_MAX };
	struct gmem_footprint footprint;
	struct gmem_region *region;
	struct unit unit;

	(void)state;
	region = begin_shared(&unit, 2);
	assert_refused(-EINVAL, "vm is NULL", gmem_vm_discard_pfns(NULL, pfns, 1, NULL, NULL));
	assert_refused(-EINVAL, "pfns is NULL", gmem_vm_discard_pfns(unit.vm, NULL, 1, NULL, NULL));
	assert_refused(-EINVAL, "flags", gmem_vm_discard_pfns(unit.vm, pfns, 1, &opts, NULL));
	assert_refused(-ENOMEM, "pages", gmem_vm_discard_pfns(unit.vm, pfns, SIZE_MAX, NULL, NULL));
	assert_refused(-ENOENT, "0xffffffff000", gmem_vm_discard_pfns(unit.vm, pfns, 2, NULL, NULL));
	assert_left(&unit, region, "##");
	for (unsigned n = 1; n <= 2; n++) {
		unit_fail_alloc(n);
		assert_refused(-ENOMEM, "no memory", gmem_vm_discard_pfns(unit.vm, pfns, 1, NULL, NULL));
		assert_true(unit_alloc_struck());
	}
	assert_ok(gmem_vm_discard_pfns(unit.vm, NULL, 0, NULL, &footprint));
	unit_check_footprint(&footprint, 0, 0, 0);
	unit_end(&unit);
}

/* ---- one of two sides ---- */

/* Pages 18 to 21 are private, and all pages are there on both sides. */
static void side_may_be_chosen(void **state)
{
	static const struct unit_way way = { "7.3-swp-t1", GMEM_BACKING_PRIVATE };
	GMEM_OPTS(gmem_convert_opts, keep, .discard = GMEM_DISCARD_NEVER);
	GMEM_OPTS(gmem_discard_opts, shared, .flags = GMEM_DISCARD_SHARED_SIDE);
	GMEM_OPTS(gmem_discard_opts, private, .flags = GMEM_DISCARD_PRIVATE_SIDE);
	struct gmem_footprint footprint;
	struct gmem_region *region;
	struct unit unit;
	int fd;

	(void)state;
	region = begin(&unit, &way, 8);
	fd = gmem_file_fd(gmem_region_file(region, NULL));
	assert_ok(gmem_file_allocate(gmem_region_file(region, NULL), 0, PAGES(&unit, 8), NULL));
	assert_ok(gmem_vm_convert(unit.vm, PAGES(&unit, 18), PAGES(&unit, 4), GMEM_STATE_PRIVATE,
				  &keep, NULL));

	assert_ok(gmem_vm_discard(unit.vm, PAGES(&unit, 17), PAGES(&unit, 2), &shared, &footprint));
	unit_check_footprint(&footprint, PAGES(&unit, 2), PAGES(&unit, 2), 0);
	assert_left(&unit, region, "#..#####");
	assert_true(fake_is_allocated(fd, 0, PAGES(&unit, 8)));

	assert_ok(gmem_vm_discard(unit.vm, PAGES(&unit, 20), PAGES(&unit, 4), &private, &footprint));
	unit_check_footprint(&footprint, PAGES(&unit, 4), PAGES(&unit, 4), 0);
	assert_left(&unit, region, "#..#####");
	assert_true(fake_is_allocated(fd, 0, PAGES(&unit, 4)));
	for (uint64_t page = 4; page < 8; page++)
		assert_false(fake_is_allocated(fd, PAGES(&unit, page), unit.page));
	unit_end(&unit);
}

static void memory_with_one_side_has_none_to_choose(void **state)
{
	static const uint64_t sides[] = { GMEM_DISCARD_SHARED_SIDE, GMEM_DISCARD_PRIVATE_SIDE };
	GMEM_OPTS(gmem_discard_opts, opts, .flags = sides[0] | sides[1]);
	struct gmem_region *region;
	struct gmem_plan *plan;
	struct unit unit;

	(void)state;
	for (size_t i = 0; i < 2 * ARRAY_SIZE(unit_ways); i++) {
		if (unit_ways[i / 2].backing == GMEM_BACKING_PRIVATE)
			continue;
		region = begin(&unit, &unit_ways[i / 2], 4);
		opts.flags = sides[i % 2];
		assert_refused(-EOPNOTSUPP, "one memory", gmem_vm_discard(unit.vm, PAGES(&unit, 16),
									   unit.page, &opts, NULL));
		assert_left(&unit, region, "####");
		unit_end(&unit);
	}

	unit_begin_vm(&unit, "7.3-swp-t1");
	plan = unit_plan_mappable_private(&unit);
	unit_region(&unit, 0, 1, plan);
	gmem_plan_free(plan);
	assert_refused(-EOPNOTSUPP, "one memory", gmem_vm_discard(unit.vm, 0, unit.page, &opts, NULL));
	opts.flags = sides[0] | sides[1];
	assert_refused(-EINVAL, "the shared side and", gmem_vm_discard(unit.vm, 0, unit.page, &opts, NULL));
	unit_end(&unit);
}

/* A guest of 4 KiB pages on a host of 16 KiB pages */
static void small_pages_free_the_large_ones_they_make_up(void **state)
{
	static const struct unit_way way = { "arm64-7.3-16k", GMEM_BACKING_SHARED };
	GMEM_OPTS(gmem_discard_opts, inward, .flags = GMEM_DISCARD_INWARD);
	struct gmem_footprint footprint;
	struct gmem_gpa_range list[9];
	struct gmem_region *region;
	struct unit unit;
	uint64_t base;

	(void)state;
	region = begin(&unit, &way, 6);
	base = PAGES(&unit, 16);
	/* all of page 1, most of page 2, one of page 4, and page 5 with its end */
	for (uint64_t i = 0; i < 7; i++)
		list[i] = (struct gmem_gpa_range){ base + unit.page + i * 4096, 4096 };
	list[7] = (struct gmem_gpa_range){ base + PAGES(&unit, 4) + 4096, 4096 };
	list[8] = (struct gmem_gpa_range){ base + PAGES(&unit, 5) - 100, unit.page + 100 };
	assert_ok(gmem_vm_discard_list(unit.vm, list, ARRAY_SIZE(list), &inward, &footprint));
	unit_check_footprint(&footprint, PAGES(&unit, 2), PAGES(&unit, 2), 0);
	assert_left(&unit, region, "#.###.");

	assert_refused(-EINVAL, "not a multiple",
		       gmem_vm_discard_list(unit.vm, list, ARRAY_SIZE(list), NULL, NULL));
	list[3].size = 0;
	assert_refused(-EINVAL, "no range",
		       gmem_vm_discard_list(unit.vm, list, ARRAY_SIZE(list), &inward, NULL));
	list[3].size = UINT64_MAX;
	assert_refused(-EINVAL, "no range",
		       gmem_vm_discard_list(unit.vm, list, ARRAY_SIZE(list), &inward, NULL));

	/* An entry without a whole page is no error and frees nothing. */
	assert_ok(gmem_vm_discard_list(unit.vm, list, 3, &inward, &footprint));
	unit_check_footprint(&footprint, 0, 0, 0);
	unit_end(&unit);
}

static void bad_entry_leaves_the_others_alone(void **state)
{
	struct gmem_footprint footprint;
	struct gmem_gpa_range list[3];
	struct gmem_region *region;
	struct unit unit;

	(void)state;
	region = begin_shared(&unit, 4);
	list[0] = (struct gmem_gpa_range){ PAGES(&unit, 16), unit.page };
	list[1] = (struct gmem_gpa_range){ PAGES(&unit, 99), unit.page };
	list[2] = (struct gmem_gpa_range){ PAGES(&unit, 18), unit.page };
	assert_refused(-ENOENT, "0x63000", gmem_vm_discard_list(unit.vm, list, 3, NULL, &footprint));
	unit_check_footprint(&footprint, 0, 0, 0);
	list[1].size = 5;
	assert_refused(-EINVAL, "size 0x5", gmem_vm_discard_list(unit.vm, list, 3, NULL, NULL));
	list[1] = list[0];
	unit_fail_alloc(1);
	assert_refused(-ENOMEM, "list of 3", gmem_vm_discard_list(unit.vm, list, 3, NULL, NULL));
	assert_true(unit_alloc_struck());
	assert_left(&unit, region, "####");
	unit_end(&unit);
}

static void failure_tells_what_was_freed(void **state)
{
	struct gmem_footprint footprint;
	struct gmem_gpa_range list[2];
	struct gmem_region *region;
	struct unit unit;

	(void)state;
	region = begin_shared(&unit, 8);
	list[0] = (struct gmem_gpa_range){ PAGES(&unit, 16), PAGES(&unit, 2) };
	list[1] = (struct gmem_gpa_range){ PAGES(&unit, 20), PAGES(&unit, 3) };
	fake_fail_kind(FAKE_FALLOCATE, 1, 1, -EIO);
	assert_int_equal(gmem_vm_discard_list(unit.vm, list, 2, NULL, &footprint), -EIO);
	assert_true(fake_fail_struck());
	unit_check_footprint(&footprint, PAGES(&unit, 2), PAGES(&unit, 5), PAGES(&unit, 3));
	assert_left(&unit, region, "..######");
	unit_end(&unit);
}

/* ---- leases ---- */

/* Of a memfd that is sealed against writing, no page can be freed; no other seal forbids it. */
static void discard_that_a_seal_forbids_names_the_seal(void **state)
{
	static const int seals[] = { F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL, F_SEAL_FUTURE_WRITE };
	struct gmem_footprint footprint;
	struct gmem_region *region;
	struct gmem_plan *plan;
	struct unit unit;
	uint64_t size;
	void *hva;
	int fd;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(seals); i++) {
		unit_begin_vm(&unit, "6.18");
		size = PAGES(&unit, 4);
		plan = unit_plan(&unit, GMEM_BACKING_HOST);
		fd = memfd_create("sealed", MFD_ALLOW_SEALING | MFD_CLOEXEC);
		assert_int_equal(ftruncate(fd, (off_t)size), 0);
		hva = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		assert_ptr_not_equal(hva, MAP_FAILED);
		assert_int_equal(fcntl(fd, F_ADD_SEALS, seals[i]), 0);
		GMEM_OPTS(gmem_region_opts, opts, .plan = plan, .flags = GMEM_REGION_HVA, .hva = hva);
		assert_ok(gmem_region_add(unit.vm, 0, size, &opts, &region));
		memset(hva, 1, size);
		if (seals[i] & F_SEAL_FUTURE_WRITE)
			assert_refused(-EPERM, "the file is sealed with F_SEAL_FUTURE_WRITE: its pages cannot be freed",
				       gmem_vm_discard(unit.vm, 0, size, NULL, NULL));
		else
			assert_ok(gmem_vm_discard(unit.vm, 0, size, NULL, &footprint));
		assert_int_equal(*(char *)hva, seals[i] & F_SEAL_FUTURE_WRITE ? 1 : 0);
		gmem_vm_free(unit.vm);
		unit.vm = NULL;
		gmem_plan_free(plan);
		munmap(hva, size);
		close(fd);
		unit_end(&unit);
	}
}

static void leased_memory_is_refused_with_the_holders_name(void **state)
{
	GMEM_OPTS(gmem_lease_opts, holder, .holder = "disk 0");
	struct gmem_footprint footprint;
	struct gmem_lease *lease;
	struct gmem_region *region;
	struct gmem_gpa_range list[2];
	struct unit unit;

	(void)state;
	region = begin_shared(&unit, 8);
	list[0] = (struct gmem_gpa_range){ PAGES(&unit, 16), unit.page };
	list[1] = (struct gmem_gpa_range){ PAGES(&unit, 20), PAGES(&unit, 2) };
	assert_ok(gmem_lease_new(unit.vm, PAGES(&unit, 21) + 5, 1, &holder, &lease));
	assert_refused(-EBUSY, "\"disk 0\"", gmem_vm_discard_list(unit.vm, list, 2, NULL,
								  &footprint));
	unit_check_footprint(&footprint, 0, 0, 0);
	assert_left(&unit, region, "########");

	/* Its neighbours are free. */
	assert_ok(gmem_vm_discard(unit.vm, PAGES(&unit, 20), unit.page, NULL, NULL));
	gmem_lease_free(lease);
	assert_ok(gmem_vm_discard_list(unit.vm, list, 2, NULL, &footprint));
	assert_left(&unit, region, ".###..##");
	unit_end(&unit);
}

static void wait_for_a_lease_has_a_limit(void **state)
{
	GMEM_OPTS(gmem_discard_opts, patient, .wait_ms = 1);
	struct gmem_lease *lease;
	struct gmem_region *region;
	struct unit unit;

	(void)state;
	region = begin_shared(&unit, 4);
	assert_ok(gmem_lease_new(unit.vm, PAGES(&unit, 16), unit.page, NULL, &lease));
	assert_refused(-EBUSY, "unnamed", gmem_vm_discard(unit.vm, PAGES(&unit, 16), unit.page,
							  &patient, NULL));
	assert_left(&unit, region, "####");
	gmem_lease_free(lease);
	assert_ok(gmem_vm_discard(unit.vm, PAGES(&unit, 16), unit.page, &patient, NULL));
	assert_left(&unit, region, ".###");
	unit_end(&unit);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(discarded_pages_are_zero_and_counted),
	cmocka_unit_test(range_may_span_regions_and_ways_of_backing),
	cmocka_unit_test(side_is_the_one_the_guest_uses),
	cmocka_unit_test(pages_are_counted_only_for_a_footprint),
	cmocka_unit_test(pages_that_cannot_be_counted_are_discarded_all_the_same),
	cmocka_unit_test(range_must_be_memory_throughout),
	cmocka_unit_test(bad_arguments_are_refused),
	cmocka_unit_test(neighbours_in_a_list_are_one_call),
	cmocka_unit_test(long_lists_free_what_they_name),
	cmocka_unit_test(small_pages_free_the_large_ones_they_make_up),
	cmocka_unit_test(pages_of_a_balloon_are_freed_in_whole_pages_of_the_host),
	cmocka_unit_test(lists_of_a_balloon_are_checked),
	cmocka_unit_test(side_may_be_chosen),
	cmocka_unit_test(memory_with_one_side_has_none_to_choose),
	cmocka_unit_test(bad_entry_leaves_the_others_alone),
	cmocka_unit_test(failure_tells_what_was_freed),
	cmocka_unit_test(discard_that_a_seal_forbids_names_the_seal),
	cmocka_unit_test(leased_memory_is_refused_with_the_holders_name),
	cmocka_unit_test(wait_for_a_lease_has_a_limit),
};

UNIT_MAIN_SMALL_PAGES(tests)
