/* SPDX-License-Identifier: MIT */
/* regions: holes, regions and states are walked up to the end of the address space */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "region/regions.h"
#include "unit.h"

#define PAGE	((uint64_t)4096)
#define END	16	/* this many of the highest pages have a region of their own */

enum who { A, B, DEVICE, C, LAST, REGIONS };

/* The layout below is all that these functions look at: there is no kernel. */
static struct gmem_vm vm;
static struct gmem_region regions[REGIONS];

static const struct {
	uint64_t page;
	uint64_t pages;
} home[REGIONS] = {
	[A] = { 4, 8 },
	[B] = { 12, 4 },	/* right behind A */
	[DEVICE] = { 20, 4 },	/* behind a hole */
	[C] = { 24, 4 },
	[LAST] = { 0 - (uint64_t)END, END },
};

static int begin(void **state)
{
	(void)state;
	fake_set_page_size(PAGE);
	memset(&vm, 0, sizeof(vm));
	memset(regions, 0, sizeof(regions));
	for (int i = 0; i < REGIONS; i++) {
		regions[i].gpa.start = home[i].page * PAGE;
		regions[i].gpa.size = home[i].pages * PAGE;
		regions[i].is_device = i == DEVICE;
		gmem_range_insert(&vm.regions, &regions[i].gpa);
		if (i != DEVICE && i != LAST)
			assert_ok(gmem_states_new(&regions[i].states, regions[i].gpa.size, GMEM_PAGE_BITS));
	}
	return 0;
}

static int end(void **state)
{
	(void)state;
	for (int i = 0; i < REGIONS; i++)
		gmem_states_free(&regions[i].states);
	return 0;
}

static void make_private(uint64_t page, uint64_t pages)
{
	struct gmem_stretch at = GMEM_REGIONS_WALK(&vm, page * PAGE, (page + pages) * PAGE - 1);

	while (gmem_regions_walk_whole(&at))
		if (at.region)
			gmem_states_set(&at.region->states, GMEM_PAGE_PRIVATE, at.gpa - at.region->gpa.start,
					at.size, true);
}

static char letter(const struct gmem_stretch *at)
{
	static const char shared[] = "abdcl", private[] = "ABDCL";
	size_t i;

	if (!at->region)
		return '.';
	i = (size_t)(at->region - regions);
	return at->is_private ? private[i] : shared[i];
}

/* The walk, a letter for each page, "|" between stretches */
static const char *draw(uint64_t first, uint64_t last, bool (*walk)(struct gmem_stretch *at))
{
	struct gmem_stretch at = GMEM_REGIONS_WALK(&vm, first * PAGE, last * PAGE + PAGE - 1);
	static char text[128];
	size_t length = 0;

	while (walk(&at)) {
		assert_int_equal(at.size % PAGE, 0);
		assert_in_range(length + at.size / PAGE, 1, sizeof(text) - 2);
		memset(text + length, letter(&at), at.size / PAGE);
		length += at.size / PAGE;
		text[length++] = '|';
	}
	text[length - 1] = '\0';
	return text;
}

static void walk_stops_at_holes_regions_and_states(void **state)
{
	(void)state;
	assert_string_equal(draw(0, 29, gmem_regions_walk),
			    "....|aaaaaaaa|bbbb|....|dddd|cccc|..");
	make_private(6, 2);
	make_private(10, 4);
	make_private(24, 4);
	assert_string_equal(draw(0, 29, gmem_regions_walk),
			    "....|aa|AA|aa|AA|BB|bb|....|dddd|CCCC|..");
}

static void walk_may_begin_and_end_anywhere(void **state)
{
	(void)state;
	make_private(6, 2);
	assert_string_equal(draw(7, 9, gmem_regions_walk), "A|aa");
	assert_string_equal(draw(5, 6, gmem_regions_walk), "a|A");
	assert_string_equal(draw(17, 18, gmem_regions_walk), "..");
	assert_string_equal(draw(11, 12, gmem_regions_walk), "a|b");
	assert_string_equal(draw(23, 23, gmem_regions_walk), "d");
}

static void walk_of_whole_regions_does_not_ask_for_states(void **state)
{
	(void)state;
	make_private(6, 8);
	for (int i = 0; i < 2; i++)
		assert_string_equal(draw(2, 25, gmem_regions_walk_whole),
				    "..|aaaaaaaa|bbbb|....|dddd|cc");
}

static void walk_ends_with_the_address_space(void **state)
{
	struct gmem_stretch at = GMEM_REGIONS_WALK(&vm, 28 * PAGE, UINT64_MAX);

	(void)state;
	assert_true(gmem_regions_walk(&at));
	assert_null(at.region);
	assert_int_equal(at.gpa, 28 * PAGE);
	assert_int_equal(at.gpa + at.size, 0 - END * PAGE);
	assert_true(gmem_regions_walk(&at));
	assert_ptr_equal(at.region, &regions[LAST]);
	assert_false(at.is_private);
	assert_int_equal(at.gpa + (at.size - 1), UINT64_MAX);
	assert_false(gmem_regions_walk(&at));
	assert_false(gmem_regions_walk(&at));
}

/* A caller may drop the lock between two calls: the rest is walked as it is then. */
static void walk_goes_on_in_a_layout_that_changed(void **state)
{
	struct gmem_stretch at = GMEM_REGIONS_WALK(&vm, 4 * PAGE, 28 * PAGE - 1);

	(void)state;
	assert_true(gmem_regions_walk(&at));
	gmem_range_remove(&vm.regions, &regions[A].gpa);
	gmem_range_remove(&vm.regions, &regions[B].gpa);
	assert_true(gmem_regions_walk(&at));
	assert_null(at.region);
	assert_int_equal(at.gpa, 12 * PAGE);
	assert_int_equal(at.size, 8 * PAGE);
}

static void lookup_finds_the_first_region_of_a_range(void **state)
{
	(void)state;
	assert_null(gmem_regions_at(&vm, 4 * PAGE - 1));
	assert_ptr_equal(gmem_regions_at(&vm, 4 * PAGE), &regions[A]);
	assert_ptr_equal(gmem_regions_at(&vm, 12 * PAGE - 1), &regions[A]);
	assert_ptr_equal(gmem_regions_at(&vm, 12 * PAGE), &regions[B]);
	assert_ptr_equal(gmem_regions_at(&vm, UINT64_MAX), &regions[LAST]);

	assert_ptr_equal(gmem_regions_next(&vm, 0, UINT64_MAX), &regions[A]);
	assert_ptr_equal(gmem_regions_next(&vm, 0, 4 * PAGE), &regions[A]);
	assert_null(gmem_regions_next(&vm, 0, 4 * PAGE - 1));
	assert_ptr_equal(gmem_regions_next(&vm, 16 * PAGE, UINT64_MAX), &regions[DEVICE]);
	assert_ptr_equal(gmem_regions_next(&vm, 28 * PAGE, UINT64_MAX), &regions[LAST]);
}

static void next_memory_passes_over_devices(void **state)
{
	(void)state;
	assert_ptr_equal(gmem_regions_next_memory(&vm, 0), &regions[A]);
	assert_ptr_equal(gmem_regions_next_memory(&vm, 16 * PAGE), &regions[C]);
	assert_ptr_equal(gmem_regions_next_memory(&vm, 22 * PAGE), &regions[C]);
	assert_ptr_equal(gmem_regions_next_memory(&vm, 28 * PAGE), &regions[LAST]);
	/* A device at the very end has nothing behind it. */
	regions[LAST].is_device = true;
	assert_null(gmem_regions_next_memory(&vm, 28 * PAGE));
	assert_null(gmem_regions_next_memory(&vm, UINT64_MAX));
}

static void refusals_say_what_is_at_the_address(void **state)
{
	(void)state;
	assert_int_equal(gmem_regions_check_memory(NULL, 17 * PAGE), -ENOENT);
	assert_string_equal(gmem_last_error(), "there is no region at gpa 0x11000");
	assert_int_equal(gmem_regions_check_memory(&regions[DEVICE], 21 * PAGE), -ENXIO);
	assert_string_equal(gmem_last_error(), "there is a device at gpa 0x15000");
	assert_ok(gmem_regions_check_memory(&regions[A], 5 * PAGE));

	assert_ok(gmem_regions_check_slot(&regions[A]));
	regions[A].lost = true;
	assert_ok(gmem_regions_check_memory(&regions[A], 5 * PAGE));
	assert_int_equal(gmem_regions_check_slot(&regions[A]), -ENOTRECOVERABLE);
	assert_string_equal(gmem_last_error(), "the region at gpa 0x4000 lost its memslot; "
					       "it can only be removed");
}

#define TEST(name)	cmocka_unit_test_setup_teardown(name, begin, end)

static const struct CMUnitTest tests[] = {
	TEST(walk_stops_at_holes_regions_and_states),
	TEST(walk_may_begin_and_end_anywhere),
	TEST(walk_of_whole_regions_does_not_ask_for_states),
	TEST(walk_ends_with_the_address_space),
	TEST(walk_goes_on_in_a_layout_that_changed),
	TEST(lookup_finds_the_first_region_of_a_range),
	TEST(next_memory_passes_over_devices),
	TEST(refusals_say_what_is_at_the_address),
};

UNIT_MAIN(tests)
