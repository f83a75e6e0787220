/* SPDX-License-Identifier: MIT */
/* dirty_log: KVM's dirty log of one region */
#include <errno.h>
#include <string.h>

#include "os/kvm_compat.h"
#include "unit.h"

static uint32_t flags_of(const struct unit *unit, const struct gmem_region *region)
{
	struct fake_slot slot;

	assert_true(fake_get_slot(unit->vm_fd, gmem_region_slot(region), &slot));
	return slot.flags;
}

static void dirty_log_goes_on_and_off(void **state)
{
	static const uint32_t backings[] = { GMEM_BACKING_HOST, GMEM_BACKING_MAPPED };
	struct gmem_region *region, *upper;
	uint64_t bitmap[3];
	struct unit unit;
	size_t i;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	for (i = 0; i < ARRAY_SIZE(backings); i++) {
		struct gmem_plan *plan = unit_plan(&unit, backings[i]);
		GMEM_OPTS(gmem_region_opts, opts, .plan = plan, .flags = GMEM_REGION_READONLY);

		assert_ok(gmem_region_add(unit.vm, 0, PAGES(&unit, 65), &opts, &region));
		assert_refused(-ENOENT, "memslot 0", gmem_region_get_dirty_log(region, bitmap, 2));
		assert_ok(gmem_region_set_dirty_log(region, 1));
		assert_int_equal(flags_of(&unit, region), KVM_MEM_READONLY | KVM_MEM_LOG_DIRTY_PAGES);
		assert_ok(gmem_region_set_dirty_log(region, 1));

		/* exactly as many words as the region needs */
		memset(bitmap, 0x5a, sizeof(bitmap));
		assert_refused(-EINVAL, "needs 2", gmem_region_get_dirty_log(region, bitmap, 1));
		assert_refused(-EINVAL, "NULL", gmem_region_get_dirty_log(region, NULL, 2));
		assert_int_equal(bitmap[0], 0x5a5a5a5a5a5a5a5a);
		assert_ok(gmem_region_get_dirty_log(region, bitmap, 2));
		assert_int_equal(bitmap[0] | bitmap[1], 0);
		assert_int_equal(bitmap[2], 0x5a5a5a5a5a5a5a5a);

		/* a region that moves or is split goes on being logged */
		assert_ok(gmem_region_move(region, unit.page));
		assert_ok(gmem_region_split(region, PAGES(&unit, 64), &upper));
		assert_int_equal(flags_of(&unit, upper), KVM_MEM_READONLY | KVM_MEM_LOG_DIRTY_PAGES);
		assert_ok(gmem_region_get_dirty_log(upper, bitmap, 1));
		assert_ok(gmem_region_set_dirty_log(region, 0));
		assert_int_equal(flags_of(&unit, region), KVM_MEM_READONLY);
		assert_int_equal(flags_of(&unit, upper), KVM_MEM_READONLY | KVM_MEM_LOG_DIRTY_PAGES);
		assert_ok(gmem_region_remove(region));
		assert_ok(gmem_region_remove(upper));
		gmem_plan_free(plan);
	}
	unit_end(&unit);
}

static void dirty_log_is_refused_where_there_is_none(void **state)
{
	static const struct unit_way cases[] = {
		{ "6.18", GMEM_BACKING_SHARED },
		{ "arm64-6.18", GMEM_BACKING_SHARED },
		{ "7.3-swp-t1", GMEM_BACKING_PRIVATE },
	};
	struct gmem_region *region;
	struct gmem_plan *plan;
	uint64_t word = 77;
	struct unit unit;
	unsigned calls;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		unit_begin_vm(&unit, cases[i].kernel);
		plan = unit_plan(&unit, cases[i].backing);
		region = unit_region(&unit, 0, 1, plan);
		calls = fake_count_all();
		assert_refused(-EOPNOTSUPP, gmem_backing_name(cases[i].backing),
			       gmem_region_set_dirty_log(region, 1));
		assert_refused(-EOPNOTSUPP, "dirty log", gmem_region_get_dirty_log(region, &word, 1));
		assert_int_equal(fake_count_all(), calls);
		assert_int_equal(word, 77);
		gmem_plan_free(plan);
		unit_end(&unit);
	}
}

static void dirty_log_changes_nothing_if_it_fails(void **state)
{
	struct gmem_region *region;
	struct gmem_plan *host;
	uint64_t word = 77;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	host = unit_plan(&unit, GMEM_BACKING_HOST);
	region = unit_region(&unit, 0, 1, host);
	assert_refused(-EINVAL, "2", gmem_region_set_dirty_log(region, 2));
	assert_refused(-EINVAL, "-1", gmem_region_set_dirty_log(region, -1));
	assert_refused(-EINVAL, "NULL", gmem_region_set_dirty_log(NULL, 1));
	assert_refused(-EINVAL, "NULL", gmem_region_get_dirty_log(NULL, &word, 1));
	fake_fail_next(FAKE_SET_SLOT, -ENOMEM);
	assert_refused(-ENOMEM, "memslot 0", gmem_region_set_dirty_log(region, 1));
	/* it is not thought to be on */
	assert_ok(gmem_region_move(region, unit.page));
	assert_int_equal(flags_of(&unit, region), 0);
	fake_fail_next(FAKE_OTHER_IOCTL, -EFAULT);
	assert_refused(-EFAULT, "memslot 0", gmem_region_get_dirty_log(region, &word, 1));
	assert_int_equal(word, 77);
	gmem_plan_free(host);
	unit_end(&unit);
}

/* Switching the log on or off must not bring the memslot back by accident. */
static void region_that_lost_its_slot_has_no_dirty_log(void **state)
{
	struct gmem_region *region;
	struct gmem_plan *host;
	struct unit unit;
	uint64_t word = 0;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	host = unit_plan(&unit, GMEM_BACKING_HOST);
	region = unit_region(&unit, 0, 1, host);
	/* KVM does not move it, nor add it, nor put it back */
	fake_fail_kind(FAKE_SET_SLOT, 0, 3, -EINVAL);
	assert_int_equal(gmem_region_move(region, unit.page), -ENOTRECOVERABLE);
	assert_refused(-ENOTRECOVERABLE, "removed", gmem_region_set_dirty_log(region, 1));
	assert_refused(-ENOTRECOVERABLE, "removed", gmem_region_get_dirty_log(region, &word, 1));
	assert_int_equal(fake_slot_count(unit.vm_fd), 0);
	assert_ok(gmem_region_remove(region));
	gmem_plan_free(host);
	unit_end(&unit);
}

/* ---- VMs whose VMM changed how they log ---- */

/* Pages all over, read in parts: each is reported once for each time it is written. */
static void check_each_write_is_reported_once(bool by_hand)
{
	static const uint64_t writes[][3] = { { 0, 1, 63 }, { 64, 65, 129 }, { 129, 129, 129 } };
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_DIRTY_LOG);
	struct gmem_region *region;
	uint64_t bitmap[3];
	struct unit unit;

	unit_begin_vm(&unit, "6.18");
	if (by_hand)
		fake_clear_log_by_hand(unit.vm_fd);
	opts.plan = unit_plan(&unit, GMEM_BACKING_MAPPED);
	assert_ok(gmem_region_add(unit.vm, 0, PAGES(&unit, 130), &opts, &region));
	for (size_t i = 0; i < ARRAY_SIZE(writes); i++) {
		uint64_t expected[3] = { 0 };

		for (size_t n = 0; n < 3; n++) {
			fake_write_page(unit.vm_fd, gmem_region_slot(region), writes[i][n]);
			expected[writes[i][n] / 64] |= UINT64_C(1) << (writes[i][n] % 64);
		}
		assert_ok(gmem_region_get_dirty_log(region, bitmap, 3));
		assert_memory_equal(bitmap, expected, sizeof(bitmap));
		assert_ok(gmem_region_get_dirty_log(region, bitmap, 3));
		assert_int_equal(bitmap[0] | bitmap[1] | bitmap[2], 0);
	}
	gmem_plan_free((struct gmem_plan *)opts.plan);
	unit_end(&unit);
}

static void each_write_is_reported_once(void **state)
{
	(void)state;
	check_each_write_is_reported_once(false);
	check_each_write_is_reported_once(true);
}

static void a_log_without_bits_is_not_cleared_again(void **state)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_DIRTY_LOG);
	struct gmem_region *region;
	struct unit unit;
	uint64_t word;
	unsigned calls;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	opts.plan = unit_plan(&unit, GMEM_BACKING_HOST);
	assert_ok(gmem_region_add(unit.vm, 0, PAGES(&unit, 64), &opts, &region));
	calls = fake_count_all();
	assert_ok(gmem_region_get_dirty_log(region, &word, 1));
	assert_int_equal(fake_count_all(), calls + 1);
	gmem_plan_free((struct gmem_plan *)opts.plan);
	unit_end(&unit);
}

static void note_log(void *data, int error, const char *message)
{
	*(int *)data = error;
	assert_non_null(strstr(message, "does not clear it"));
}

/* It was read, so KVM may not have it any more: bits come twice, but none is lost. */
static void a_log_that_cannot_be_cleared_is_given_all_the_same(void **state)
{
	int logged = 0;
	GMEM_OPTS(gmem_vm_opts, vm_opts, .log = note_log, .log_data = &logged);
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_DIRTY_LOG);
	struct gmem_region *region;
	struct gmem_vm *vm;
	struct unit unit;
	uint64_t word = 0;

	(void)state;
	unit_begin(&unit, "6.18");
	vm_opts.caps = unit.caps;
	assert_ok(gmem_vm_new(unit.vm_fd, &vm_opts, &vm));
	fake_clear_log_by_hand(unit.vm_fd);
	opts.plan = unit_plan(&unit, GMEM_BACKING_HOST);
	assert_ok(gmem_region_add(vm, 0, PAGES(&unit, 64), &opts, &region));
	fake_write_page(unit.vm_fd, gmem_region_slot(region), 7);
	fake_fail_kind(FAKE_OTHER_IOCTL, 1, 1, -EPERM);
	assert_ok(gmem_region_get_dirty_log(region, &word, 1));
	assert_int_equal(word, 1 << 7);
	assert_int_equal(logged, -EPERM);
	assert_ok(gmem_region_get_dirty_log(region, &word, 1));
	assert_int_equal(word, 1 << 7);
	assert_ok(gmem_region_get_dirty_log(region, &word, 1));
	assert_int_equal(word, 0);
	gmem_plan_free((struct gmem_plan *)opts.plan);
	gmem_vm_free(vm);
	unit_end(&unit);
}

static struct gmem_caps *report_with_ring(const char *kernel, enum fake_ring ring, int *ret_fd)
{
	struct gmem_caps *caps;

	fake_boot(kernel);
	*ret_fd = fake_new_vm();
	fake_set_dirty_ring(*ret_fd, ring);
	assert_ok(gmem_caps_new(*ret_fd, NULL, &caps));
	return caps;
}

static void check_vm_with_ring(const char *kernel, enum fake_ring ring, int64_t value, const char *says)
{
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_HOST },
		  .needs = GMEM_NEED_DIRTY_LOG);
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_DIRTY_LOG);
	GMEM_OPTS(gmem_vm_opts, vm_opts, .flags = 0);
	struct gmem_region *region, *upper;
	struct gmem_finding f;
	struct gmem_plan *plan;
	struct gmem_caps *caps;
	struct gmem_vm *vm;
	uint64_t word = 77;
	int fd;

	caps = report_with_ring(kernel, ring, &fd);
	assert_ok(gmem_caps_get(caps, GMEM_CAP_DIRTY_LOG, &f));
	assert_int_equal(f.answer, GMEM_YES);
	assert_int_equal(f.value, value);
	assert_non_null(strstr(f.reason, says));
	assert_ok(gmem_plan_new(caps, &request, &plan));
	vm_opts.caps = caps;
	opts.plan = plan;
	assert_ok(gmem_vm_new(fd, &vm_opts, &vm));
	assert_ok(gmem_region_add(vm, 0, 64 * fake.page_size, &opts, &region));
	if (ring == FAKE_RING_ALONE) {
		assert_refused(-EOPNOTSUPP, "dirty rings", gmem_region_get_dirty_log(region, &word, 1));
		assert_int_equal(word, 77);
	} else {
		fake_write_page(fd, gmem_region_slot(region), 3);
		assert_ok(gmem_region_get_dirty_log(region, &word, 1));
		assert_int_equal(word, 1 << 3);
	}
	assert_ok(gmem_region_set_dirty_log(region, 0));
	assert_ok(gmem_region_set_dirty_log(region, 1));
	/* memslots that come and go are no different */
	assert_ok(gmem_region_move(region, 128 * fake.page_size));
	assert_ok(gmem_region_split(region, 32 * fake.page_size, &upper));
	assert_ok(gmem_region_remove(upper));
	gmem_plan_free(plan);
	gmem_vm_free(vm);
	gmem_caps_free(caps);
	fake_close(fd);
	assert_int_equal(fake_halt(), 0);
}

static void a_vm_with_a_ring_logs_and_says_where(void **state)
{
	(void)state;
	check_vm_with_ring("6.18", FAKE_RING_ALONE, GMEM_DIRTY_RING, "rings");
	check_vm_with_ring("6.1", FAKE_RING_ALONE, GMEM_DIRTY_RING, "rings");
	check_vm_with_ring("arm64-7.3-4k", FAKE_RING_ALONE, GMEM_DIRTY_RING, "rings");
	check_vm_with_ring("arm64-7.3-4k", FAKE_RING_AND_BITMAP, GMEM_DIRTY_RING_AND_BITMAP,
			   "bitmaps");
	check_vm_with_ring("arm64-7.3-4k", FAKE_RING_NONE, 0, "read from a memslot");
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(each_write_is_reported_once),
	cmocka_unit_test(a_log_without_bits_is_not_cleared_again),
	cmocka_unit_test(a_log_that_cannot_be_cleared_is_given_all_the_same),
	cmocka_unit_test(a_vm_with_a_ring_logs_and_says_where),
	cmocka_unit_test(dirty_log_goes_on_and_off),
	cmocka_unit_test(dirty_log_is_refused_where_there_is_none),
	cmocka_unit_test(dirty_log_changes_nothing_if_it_fails),
	cmocka_unit_test(region_that_lost_its_slot_has_no_dirty_log),
};

UNIT_MAIN(tests)
