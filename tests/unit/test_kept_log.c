/* SPDX-License-Identifier: MIT */
/* kept_log: what a dirty log said outlives its memslot */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "os/sys.h"
#include "region/kept_log.h"
#include "unit.h"

#define BITS	200

static bool test_bit(const uint64_t *bits, uint64_t n)
{
	return bits[n / 64] >> (n % 64) & 1;
}

static void merging_sets_the_same_bits_as_one_by_one(void **state)
{
	uint64_t from[BITS / 64 + 1], to[BITS / 64 + 1], expected[BITS / 64 + 1];
	uint64_t a, b, count, i;
	int round;

	(void)state;
	srandom(1);
	for (round = 0; round < 20000; round++) {
		for (i = 0; i < ARRAY_SIZE(from); i++) {
			from[i] = (uint64_t)random() << 32 ^ (uint64_t)random();
			to[i] = round % 2 ? 0 : (uint64_t)random() & (uint64_t)random() << 20;
		}
		count = (uint64_t)random() % BITS + 1;
		a = (uint64_t)random() % (BITS - count + 1);
		b = (uint64_t)random() % (BITS - count + 1);
		memcpy(expected, to, sizeof(to));
		for (i = 0; i < count; i++)
			expected[(a + i) / 64] |= (uint64_t)(round % 3 == 0 || test_bit(from, b + i))
						  << ((a + i) % 64);
		if (round % 3 == 0)
			gmem_kept_log_fill(to, a, count);
		else
			gmem_kept_log_merge(to, a, from, b, count);
		assert_memory_equal(to, expected, sizeof(to));
	}
}

static struct gmem_region *logging_region(const struct unit *unit, uint64_t page, uint64_t pages)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_DIRTY_LOG);
	struct gmem_plan *plan = unit_plan(unit, GMEM_BACKING_MAPPED);
	struct gmem_region *region;

	opts.plan = plan;
	assert_ok(gmem_region_add(unit->vm, PAGES(unit, page), PAGES(unit, pages), &opts, &region));
	gmem_plan_free(plan);
	return region;
}

static void check_log(struct gmem_region *region, uint64_t first, uint64_t second)
{
	uint64_t log[2] = { 0, 0 };

	assert_ok(gmem_region_get_dirty_log(region, log, 2));
	assert_int_equal(log[0], first);
	assert_int_equal(log[1], second);
}

static void a_log_is_split_with_its_region(void **state)
{
	struct gmem_region *region, *upper, *top;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	region = logging_region(&unit, 0, 100);
	fake_write_page(unit.vm_fd, 0, 3);
	fake_write_page(unit.vm_fd, 0, 70);
	fake_write_page(unit.vm_fd, 0, 99);
	assert_ok(gmem_region_split(region, PAGES(&unit, 67), &upper));
	fake_write_page(unit.vm_fd, gmem_region_slot(region), 66);
	/* and again, before anybody read it */
	assert_ok(gmem_region_split(upper, PAGES(&unit, 20), &top));
	check_log(region, 1 << 3, 1 << 2);
	check_log(upper, 1 << 3, 0);
	check_log(top, 1 << 12, 0);
	check_log(region, 0, 0);
	check_log(top, 0, 0);
	unit_end(&unit);
}

/* KVM moves the memslot, and its log with it. */
static void a_move_is_one_call_and_keeps_the_log(void **state)
{
	struct gmem_region *region;
	struct unit unit;
	unsigned calls;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	region = logging_region(&unit, 0, 8);
	fake_write_page(unit.vm_fd, 0, 5);
	calls = fake_count_all();
	assert_ok(gmem_region_move(region, PAGES(&unit, 4)));
	assert_int_equal(fake_count_all(), calls + 1);
	check_log(region, 1 << 5, 0);
	unit_end(&unit);
}

static void regions_that_trade_places_keep_their_logs(void **state)
{
	struct gmem_region *a, *b;
	struct gmem_change *change;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	a = logging_region(&unit, 0, 8);
	b = logging_region(&unit, 8, 8);
	fake_write_page(unit.vm_fd, 0, 1);
	fake_write_page(unit.vm_fd, 1, 2);
	assert_ok(gmem_change_new(unit.vm, &change));
	assert_ok(gmem_change_move(change, a, PAGES(&unit, 8)));
	assert_ok(gmem_change_move(change, b, 0));
	assert_ok(gmem_change_apply(change));
	check_log(a, 1 << 1, 0);
	check_log(b, 1 << 2, 0);
	gmem_change_free(change);
	unit_end(&unit);
}

/* The region that a later step's refusal brings back has its log, too. */
static void a_refused_change_keeps_the_log(void **state)
{
	struct gmem_region *removed, *moved, *added;
	struct gmem_change *change;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	removed = logging_region(&unit, 0, 8);
	moved = logging_region(&unit, 8, 8);
	fake_write_page(unit.vm_fd, 0, 6);
	fake_write_page(unit.vm_fd, 1, 7);
	assert_ok(fake_add_slot(unit.vm_fd, 99, PAGES(&unit, 200), unit.page));
	assert_ok(gmem_change_new(unit.vm, &change));
	assert_ok(gmem_change_remove(change, removed));
	assert_ok(gmem_change_move(change, moved, 0));
	assert_ok(gmem_change_add(change, PAGES(&unit, 200), unit.page, NULL, &added));
	assert_int_equal(gmem_change_apply(change), -EEXIST);
	check_log(removed, 1 << 6, 0);
	check_log(moved, 1 << 7, 0);
	gmem_change_free(change);
	unit_end(&unit);
}

static struct {
	const struct unit *unit;
	unsigned stores;
} guest;

static void store_to_page_2(void)
{
	struct fake_slot slot;

	guest.stores += fake_guest_stores(guest.unit->vm_fd, PAGES(guest.unit, 2), &slot);
}

/* Between reading the log and deleting the memslot no store can come: it is elsewhere. */
static void a_store_at_the_last_moment_is_not_missed(void **state)
{
	struct gmem_region *region, *upper;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	guest.unit = &unit;
	guest.stores = 0;
	region = logging_region(&unit, 0, 8);
	fake_before_slot = store_to_page_2;
	assert_ok(gmem_region_split(region, PAGES(&unit, 4), &upper));
	fake_before_slot = NULL;
	assert_true(guest.stores > 0);
	check_log(region, 1 << 2, 0);
	check_log(upper, 0, 0);
	unit_end(&unit);
}

/* Some KVM moves no memslot, so nobody knows what was written: then all was. */
static void a_log_that_cannot_be_had_says_everything(void **state)
{
	struct gmem_region *region, *upper;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	region = logging_region(&unit, 0, 8);
	fake_fail_kind(FAKE_SET_SLOT, 0, 4, -EINVAL);
	assert_ok(gmem_region_split(region, PAGES(&unit, 3), &upper));
	assert_true(fake_fail_struck());
	check_log(region, 0x7, 0);
	check_log(upper, 0x1f, 0);
	check_log(region, 0, 0);
	unit_end(&unit);
}

/* Dirty rings are not memslots': nothing is lost with one. */
static void with_dirty_rings_nothing_is_kept(void **state)
{
	struct gmem_region *region, *upper;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	region = logging_region(&unit, 0, 8);
	fake_set_dirty_ring(unit.vm_fd, FAKE_RING_ALONE);
	assert_ok(gmem_region_split(region, PAGES(&unit, 3), &upper));
	fake_set_dirty_ring(unit.vm_fd, FAKE_RING_NONE);
	check_log(region, 0, 0);
	unit_end(&unit);
}

static void switched_off_nothing_is_kept(void **state)
{
	struct gmem_region *region, *upper;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	region = logging_region(&unit, 0, 8);
	fake_write_page(unit.vm_fd, 0, 1);
	assert_ok(gmem_region_split(region, PAGES(&unit, 4), &upper));
	assert_ok(gmem_region_set_dirty_log(region, 0));
	assert_ok(gmem_region_set_dirty_log(region, 1));
	check_log(region, 0, 0);
	unit_end(&unit);
}

/* A call that fails delivers nothing, so it drops nothing. */
static void a_failed_read_keeps_the_log(void **state)
{
	struct gmem_region *region, *upper;
	struct unit unit;
	uint64_t log = 0;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	region = logging_region(&unit, 0, 8);
	fake_write_page(unit.vm_fd, 0, 1);
	assert_ok(gmem_region_split(region, PAGES(&unit, 4), &upper));
	fake_fail_next(FAKE_OTHER_IOCTL, -EFAULT);
	assert_refused(-EFAULT, "memslot 0", gmem_region_get_dirty_log(region, &log, 1));
	check_log(region, 1 << 1, 0);
	unit_end(&unit);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(merging_sets_the_same_bits_as_one_by_one),
	cmocka_unit_test(a_log_is_split_with_its_region),
	cmocka_unit_test(a_move_is_one_call_and_keeps_the_log),
	cmocka_unit_test(regions_that_trade_places_keep_their_logs),
	cmocka_unit_test(a_refused_change_keeps_the_log),
	cmocka_unit_test(a_store_at_the_last_moment_is_not_missed),
	cmocka_unit_test(a_log_that_cannot_be_had_says_everything),
	cmocka_unit_test(with_dirty_rings_nothing_is_kept),
	cmocka_unit_test(switched_off_nothing_is_kept),
	cmocka_unit_test(a_failed_read_keeps_the_log),
};

UNIT_MAIN(tests)
