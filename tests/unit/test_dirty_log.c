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
		assert_refused(-EINVAL, "needs 2", gmem_region_get_dirty_log(region, NULL, 2));
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

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(dirty_log_goes_on_and_off),
	cmocka_unit_test(dirty_log_is_refused_where_there_is_none),
	cmocka_unit_test(dirty_log_changes_nothing_if_it_fails),
	cmocka_unit_test(region_that_lost_its_slot_has_no_dirty_log),
};

UNIT_MAIN(tests)
