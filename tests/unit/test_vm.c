/* SPDX-License-Identifier: MIT */
/* vm, vm_core and slots: slot numbers, the log, lookups, and the end of a handle */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "unit.h"

#define NO_VM_HANDLE	UNTOUCHED(struct gmem_vm)
#define NO_REGION	UNTOUCHED(struct gmem_region)

static struct gmem_region *add_at_slot(const struct unit *unit, uint64_t gpa_page,
				       uint32_t slot)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_SLOT, .slot = slot);
	struct gmem_region *region = NULL;

	assert_ok(gmem_region_add(unit->vm, PAGES(unit, gpa_page), unit->page, &opts,
				  &region));
	return region;
}

static uint32_t next_slot(const struct unit *unit, uint64_t gpa_page)
{
	return gmem_region_slot(unit_region(unit, gpa_page, 1, NULL));
}

/* ---- attach ---- */

static void handle_makes_its_own_report(void **state)
{
	struct fake_snapshot *before;
	struct gmem_finding f;
	struct gmem_vm *vm;
	int fd;

	(void)state;
	fake_boot("6.18");
	fd = fake_new_vm();
	before = fake_snapshot();
	assert_ok(gmem_vm_new(fd, NULL, &vm));
	assert_ok(gmem_caps_get(gmem_vm_caps(vm), GMEM_CAP_BIND, &f));
	assert_int_equal(f.answer, GMEM_YES);
	gmem_vm_free(vm);
	assert_true(fake_equal(before));
	fake_close(fd);
	assert_int_equal(fake_halt(), 0);
}

static void handle_without_self_test_only_asks(void **state)
{
	GMEM_OPTS(gmem_vm_opts, opts, .flags = GMEM_VM_NO_SELFTEST);
	struct gmem_finding f;
	struct gmem_vm *vm;
	int fd;

	(void)state;
	fake_boot("6.18");
	fd = fake_new_vm();
	assert_ok(gmem_vm_new(fd, &opts, &vm));
	assert_int_equal(fake_count(FAKE_CREATE_GMEMFD), 0);
	assert_int_equal(fake_count(FAKE_SET_SLOT), 0);
	assert_ok(gmem_caps_get(gmem_vm_caps(vm), GMEM_CAP_BIND, &f));
	assert_int_equal(f.answer, GMEM_UNKNOWN);
	gmem_vm_free(vm);
	fake_close(fd);
	assert_int_equal(fake_halt(), 0);
}

static void handle_copies_the_report_it_is_given(void **state)
{
	struct gmem_finding f;
	struct unit unit;
	unsigned calls;

	(void)state;
	unit_begin(&unit, "6.18");
	GMEM_OPTS(gmem_vm_opts, opts, .caps = unit.caps);
	calls = fake_count_all();
	assert_ok(gmem_vm_new(unit.vm_fd, &opts, &unit.vm));
	/* it duplicates the VM fd, and asks whether that is a VM, too, and not /dev/kvm */
	assert_int_equal(fake_count_all(), calls + fake_count(FAKE_DUP) + 2);
	assert_int_equal(fake_count(FAKE_DUP), 1);
	gmem_caps_free(unit.caps);
	unit.caps = NULL;
	assert_ok(gmem_caps_get(gmem_vm_caps(unit.vm), GMEM_CAP_MEMSLOTS, &f));
	assert_int_equal(f.value, 32764);
	unit_region(&unit, 0, 1, NULL);
	unit_end(&unit);
}

static void attach_rejects_bad_arguments(void **state)
{
	GMEM_OPTS(gmem_vm_opts, opts, .flags = 0);
	struct gmem_vm *vm = NO_VM_HANDLE;
	struct gmem_caps *host = NULL;
	int fd, kvm_fd, other, bit;

	(void)state;
	fake_boot("6.18");
	fd = fake_new_vm();
	kvm_fd = fake_new_kvm();
	other = dup(STDERR_FILENO);
	assert_refused(-EINVAL, "NULL", gmem_vm_new(fd, NULL, NULL));
	for (bit = 3; bit < 64; bit++) {
		opts.flags = (uint64_t)1 << bit;
		assert_refused(-EINVAL, "flags", gmem_vm_new(fd, &opts, &vm));
	}
	assert_refused(-EINVAL, "/dev/kvm", gmem_vm_new(kvm_fd, NULL, &vm));
	assert_refused(-EBADF, "-1", gmem_vm_new(GMEM_NO_VM, NULL, &vm));
	assert_refused(-EBADF, "900", gmem_vm_new(900, NULL, &vm));
	assert_refused(-ENOTTY, "", gmem_vm_new(other, NULL, &vm));

	assert_ok(gmem_caps_new(GMEM_NO_VM, NULL, &host));
	opts.flags = 0;
	opts.caps = host;
	assert_refused(-EINVAL, "without a VM", gmem_vm_new(fd, &opts, &vm));
	gmem_caps_free(host);

	fake_kill_vm(fd);
	assert_refused(-EIO, "", gmem_vm_new(fd, NULL, &vm));
	assert_ptr_equal(vm, NO_VM_HANDLE);
	close(other);
	fake_close(kvm_fd);
	fake_close(fd);
	assert_int_equal(fake_halt(), 0);
}

static void null_handle_is_harmless(void **state)
{
	struct gmem_region *region = NO_REGION;

	(void)state;
	fake_boot("6.18");
	gmem_vm_free(NULL);
	assert_null(gmem_vm_caps(NULL));
	assert_refused(-EINVAL, "NULL", gmem_vm_reserve_slots(NULL, 0, 1));
	assert_refused(-EINVAL, "NULL", gmem_vm_find_hva(NULL, &region, &region, NULL));
	assert_refused(-EINVAL, "NULL", gmem_region_add(NULL, 0, 4096, NULL, &region));
	assert_ptr_equal(region, NO_REGION);
	fake_halt();
}

/* ---- slot numbers ---- */

static void slots_are_handed_out_lowest_first_and_reused(void **state)
{
	struct gmem_region *regions[6];
	struct unit unit;
	uint32_t i;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	for (i = 0; i < 6; i++) {
		regions[i] = unit_region(&unit, i, 1, NULL);
		assert_int_equal(gmem_region_slot(regions[i]), i);
	}
	assert_ok(gmem_region_remove(regions[4]));
	assert_ok(gmem_region_remove(regions[1]));
	assert_int_equal(next_slot(&unit, 10), 1);
	assert_int_equal(next_slot(&unit, 11), 4);
	assert_int_equal(next_slot(&unit, 12), 6);
	unit_end(&unit);
}

static void reserved_slots_are_only_had_by_number(void **state)
{
	struct gmem_region *region;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	assert_ok(gmem_vm_reserve_slots(unit.vm, 0, 2));
	assert_ok(gmem_vm_reserve_slots(unit.vm, 3, 1));
	assert_ok(gmem_vm_reserve_slots(unit.vm, 0, 4));
	assert_int_equal(next_slot(&unit, 0), 4);
	region = add_at_slot(&unit, 1, 1);
	assert_int_equal(gmem_region_slot(region), 1);
	assert_ok(gmem_region_remove(region));
	assert_int_equal(next_slot(&unit, 2), 5);
	unit_end(&unit);
}

static void reservation_spares_slots_in_use(void **state)
{
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	add_at_slot(&unit, 0, 7);
	assert_refused(-EEXIST, "7", gmem_vm_reserve_slots(unit.vm, 0, 8));
	assert_refused(-EEXIST, "7", gmem_vm_reserve_slots(unit.vm, 7, 1));
	/* nothing of the refused range was reserved */
	assert_int_equal(next_slot(&unit, 1), 0);
	assert_ok(gmem_vm_reserve_slots(unit.vm, 8, 1));
	unit_end(&unit);
}

static void slot_numbers_end_where_the_vm_s_do(void **state)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_SLOT);
	static const struct {
		const char *kernel;
		uint32_t slots;
	} cases[] = { { "6.18", 32764 }, { "arm64-6.18", 32767 } };
	struct gmem_region *region;
	struct unit unit;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		const uint32_t slots = cases[i].slots;

		unit_begin_vm(&unit, cases[i].kernel);
		assert_refused(-EINVAL, "", gmem_vm_reserve_slots(unit.vm, 0, 0));
		assert_refused(-EINVAL, "", gmem_vm_reserve_slots(unit.vm, slots, 1));
		assert_refused(-EINVAL, "", gmem_vm_reserve_slots(unit.vm, slots - 1, 2));
		assert_refused(-EINVAL, "", gmem_vm_reserve_slots(unit.vm, 0, slots + 1));
		assert_refused(-EINVAL, "", gmem_vm_reserve_slots(unit.vm, UINT32_MAX, 1));
		assert_refused(-EINVAL, "", gmem_vm_reserve_slots(unit.vm, 1, UINT32_MAX));
		assert_ok(gmem_vm_reserve_slots(unit.vm, slots - 1, 1));
		add_at_slot(&unit, 0, slots - 1);

		region = NO_REGION;
		opts.slot = slots;
		assert_refused(-EINVAL, "memslot 327",
			       gmem_region_add(unit.vm, unit.page, unit.page, &opts, &region));
		opts.slot = 1 << 16;
		assert_refused(-EINVAL, "65536",
			       gmem_region_add(unit.vm, unit.page, unit.page, &opts, &region));
		opts.slot = UINT32_MAX;
		assert_refused(-EINVAL, "4294967295",
			       gmem_region_add(unit.vm, unit.page, unit.page, &opts, &region));
		opts.slot = slots - 1;
		assert_refused(-EEXIST, "memslot 327",
			       gmem_region_add(unit.vm, unit.page, unit.page, &opts, &region));
		assert_ptr_equal(region, NO_REGION);
		unit_end(&unit);
	}
}

/* There can be as many regions as slots, and not one more. */
static void every_slot_of_the_vm_can_be_used(void **state)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_HVA);
	struct gmem_region *region = NULL, *last = NULL;
	struct gmem_plan *host;
	struct unit unit;
	uint32_t i;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	host = unit_plan(&unit, GMEM_BACKING_HOST);
	opts.plan = host;
	opts.hva = unit_memory(&unit, 1);
	for (i = 0; i < 32764; i++) {
		assert_ok(gmem_region_add(unit.vm, PAGES(&unit, 2 * i), unit.page, &opts,
					  &region));
		assert_int_equal(gmem_region_slot(region), i);
		if (i == 12345)
			last = region;
	}
	region = NO_REGION;
	assert_refused(-ENOSPC, "32764",
		       gmem_region_add(unit.vm, PAGES(&unit, 2 * i), unit.page, &opts, &region));
	assert_ptr_equal(region, NO_REGION);

	assert_ok(gmem_region_remove(last));
	assert_ok(gmem_region_add(unit.vm, PAGES(&unit, 2 * i), unit.page, &opts, &region));
	assert_int_equal(gmem_region_slot(region), 12345);
	gmem_vm_free(unit.vm);
	unit.vm = NULL;
	assert_int_equal(fake_slot_count(unit.vm_fd), 0);
	gmem_plan_free(host);
	unit_memory_free(opts.hva);
	unit_end(&unit);
}

static void slot_that_is_not_the_library_s_is_left_alone(void **state)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_SLOT, .slot = 3);
	struct gmem_region *region = NO_REGION;
	struct fake_slot slot;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	assert_ok(fake_add_slot(unit.vm_fd, 3, PAGES(&unit, 8), unit.page));
	/* the slot was not reserved: the kernel refuses it */
	assert_refused(-EEXIST, "memslot 3",
		       gmem_region_add(unit.vm, 0, unit.page, &opts, &region));
	/* another's memory at that address */
	assert_refused(-EEXIST, "0x8000",
		       gmem_region_add(unit.vm, PAGES(&unit, 8), unit.page, NULL, &region));
	assert_ptr_equal(region, NO_REGION);
	assert_true(fake_get_slot(unit.vm_fd, 3, &slot));
	assert_int_equal(next_slot(&unit, 0), 0);
	unit_end(&unit);
}

/* ---- the log ---- */

struct log {
	unsigned count;
	int error;
	char message[400];
};

static void remember(void *data, int error, const char *message)
{
	struct log *log = data;

	log->count++;
	log->error = error;
	snprintf(log->message, sizeof(log->message), "%s", message);
}

/* What the log of one VM does with another */
struct other {
	struct gmem_vm *vm;
	struct gmem_region *region;
	unsigned int calls;
};

static void use_other_vm(void *data, int error, const char *message)
{
	struct gmem_state_range range;
	struct other *other = data;
	struct gmem_lease *lease;

	(void)error;
	(void)message;
	other->calls++;
	assert_int_equal(gmem_vm_state(other->vm, 0, gmem_region_size(other->region), &range, 1), 1);
	assert_ok(gmem_lease_new(other->vm, 0, gmem_region_size(other->region), NULL, &lease));
	gmem_lease_free(lease);
	assert_ok(gmem_recovery_enable());
	gmem_recovery_disable();
	/* the failure that is being told stays the one told */
	assert_refused(-EINVAL, "neither 0 nor 1", gmem_region_set_dirty_log(other->region, 2));
}

/* The failure is logged while the lock of the VM is held. */
static void log_may_use_another_vm(void **state)
{
	struct other other = { .calls = 0 };
	struct gmem_vm *vm;
	struct unit unit;
	int vm_fd;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	other.vm = unit.vm;
	assert_ok(gmem_region_add(unit.vm, 0, PAGES(&unit, 4), NULL, &other.region));

	GMEM_OPTS(gmem_vm_opts, opts, .log = use_other_vm, .log_data = &other);
	vm_fd = fake_new_vm();
	assert_ok(gmem_vm_new(vm_fd, &opts, &vm));
	assert_refused(-EINVAL, "memslots", gmem_vm_reserve_slots(vm, 0, 0));
	assert_int_equal(other.calls, 1);
	gmem_vm_free(vm);
	fake_close(vm_fd);
	unit_end(&unit);
}

static void log_hears_each_failure_once(void **state)
{
	struct gmem_region *region = NO_REGION;
	struct log log = { .count = 0 };
	struct unit unit;

	(void)state;
	unit_begin(&unit, "6.18");
	GMEM_OPTS(gmem_vm_opts, opts, .caps = unit.caps, .log = remember, .log_data = &log);
	assert_ok(gmem_vm_new(unit.vm_fd, &opts, &unit.vm));
	assert_int_equal(log.count, 0);

	assert_int_equal(gmem_region_add(unit.vm, 1, unit.page, NULL, &region), -EINVAL);
	assert_int_equal(log.count, 1);
	assert_int_equal(log.error, -EINVAL);
	assert_string_equal(log.message, gmem_last_error());
	assert_null(strchr(log.message, '\n'));

	fake_fail_next(FAKE_SET_SLOT2, -ENOMEM);
	assert_int_equal(gmem_region_add(unit.vm, 0, unit.page, NULL, &region), -ENOMEM);
	assert_int_equal(log.count, 2);
	assert_int_equal(log.error, -ENOMEM);

	assert_int_equal(gmem_vm_reserve_slots(unit.vm, 0, 0), -EINVAL);
	assert_int_equal(log.count, 3);

	region = unit_region(&unit, 0, 1, NULL);
	assert_int_equal(log.count, 3);
	fake_fail_next(FAKE_DELETE_SLOT, -EIO);
	assert_int_equal(gmem_region_remove(region), -EIO);
	assert_int_equal(log.count, 4);
	assert_int_equal(log.error, -EIO);
	unit_end(&unit);
}

static void log_hears_what_free_cannot_return(void **state)
{
	struct log log = { .count = 0 };
	struct unit unit;

	(void)state;
	unit_begin(&unit, "6.18");
	GMEM_OPTS(gmem_vm_opts, opts, .caps = unit.caps, .log = remember, .log_data = &log);
	assert_ok(gmem_vm_new(unit.vm_fd, &opts, &unit.vm));
	unit_region_backed(&unit, 0, 1, GMEM_BACKING_HOST);
	fake_fail_kind(FAKE_DELETE_SLOT, 0, 3, -EINTR);
	gmem_vm_free(unit.vm);
	assert_int_equal(log.count, 1);
	assert_int_equal(log.error, -EINTR);
	unit.vm = NULL;
	unit_end(&unit);
}

/* ---- lookup ---- */

static void lookup_finds_the_region_behind_an_address(void **state)
{
	static const char *const kernels[] = { "6.18", "arm64-7.3-64k" };
	struct gmem_region *regions[8], *found;
	struct unit unit;
	uint64_t offset;
	size_t k, i;
	char *hva;

	(void)state;
	for (k = 0; k < ARRAY_SIZE(kernels); k++) {
		unit_begin_vm(&unit, kernels[k]);
		for (i = 0; i < 8; i++)
			regions[i] = unit_region(&unit, 10 * i, i + 1, NULL);
		for (i = 0; i < 8; i++) {
			hva = gmem_region_hva(regions[i]);
			assert_ok(gmem_vm_find_hva(unit.vm, hva, &found, &offset));
			assert_ptr_equal(found, regions[i]);
			assert_int_equal(offset, 0);
			assert_ok(gmem_vm_find_hva(unit.vm, hva + PAGES(&unit, i + 1) - 1,
						   &found, &offset));
			assert_ptr_equal(found, regions[i]);
			assert_int_equal(offset, PAGES(&unit, i + 1) - 1);
			assert_ok(gmem_vm_find_hva(unit.vm, hva + 5, &found, NULL));
		}
		unit_end(&unit);
	}
}

static void lookup_forgets_what_was_removed(void **state)
{
	struct gmem_region *region, *found = NO_REGION;
	struct unit unit;
	uint64_t offset = 77;
	void *hva;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	region = unit_region(&unit, 0, 2, NULL);
	hva = gmem_region_hva(region);
	assert_refused(-EINVAL, "NULL", gmem_vm_find_hva(unit.vm, hva, NULL, &offset));
	assert_ok(gmem_region_remove(region));
	assert_refused(-ENOENT, "0x", gmem_vm_find_hva(unit.vm, hva, &found, &offset));
	assert_refused(-ENOENT, "0x", gmem_vm_find_hva(unit.vm, NULL, &found, &offset));
	assert_refused(-ENOENT, "0x", gmem_vm_find_hva(unit.vm, &unit, &found, &offset));
	assert_ptr_equal(found, NO_REGION);
	assert_int_equal(offset, 77);
	unit_end(&unit);
}

static void lookup_knows_every_way_of_backing(void **state)
{
	static const struct unit_way cases[] = {
		{ "6.1", GMEM_BACKING_HOST },
		{ "6.18", GMEM_BACKING_MAPPED },
		{ "6.18", GMEM_BACKING_SHARED },
		{ "7.3-swp-t1", GMEM_BACKING_PRIVATE },
	};
	struct gmem_region *region, *found;
	struct unit unit;
	uint64_t offset;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		unit_begin_vm(&unit, cases[i].kernel);
		region = unit_region_backed(&unit, 4, 2, cases[i].backing);
		assert_ok(gmem_vm_find_hva(unit.vm, (char *)gmem_region_hva(region) + 1,
					   &found, &offset));
		assert_ptr_equal(found, region);
		assert_int_equal(offset, 1);
		unit_end(&unit);
	}
}

static void lookup_leaves_memory_of_the_caller_s_own_alone(void **state)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_HVA);
	struct gmem_region *region, *found = NO_REGION;
	struct gmem_plan *host;
	struct unit unit;
	uint64_t offset = 0;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	host = unit_plan(&unit, GMEM_BACKING_HOST);
	opts.plan = host;
	opts.hva = unit_memory(&unit, 2);
	assert_ok(gmem_region_add(unit.vm, 0, PAGES(&unit, 2), &opts, &region));
	/* Two regions may share it, so no answer would be the answer. */
	assert_refused(-ENOENT, "belongs to no region",
		       gmem_vm_find_hva(unit.vm, (char *)opts.hva + unit.page, &found, &offset));
	assert_ptr_equal(found, NO_REGION);
	assert_int_equal(offset, 0);
	assert_ok(gmem_region_remove(region));
	gmem_plan_free(host);
	unit_memory_free(opts.hva);
	unit_end(&unit);
}

/* ---- the end ---- */

static void free_takes_every_region_along(void **state)
{
	struct gmem_plan *host, *mapped;
	struct unit unit;
	uint64_t i;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	host = unit_plan(&unit, GMEM_BACKING_HOST);
	mapped = unit_plan(&unit, GMEM_BACKING_MAPPED);
	for (i = 0; i < 30; i++)
		unit_region(&unit, 2 * i, 1, i % 3 == 0 ? NULL : i % 3 == 1 ? host : mapped);
	gmem_plan_free(host);
	gmem_plan_free(mapped);
	assert_int_equal(fake_slot_count(unit.vm_fd), 30);
	gmem_vm_free(unit.vm);
	unit.vm = NULL;
	assert_int_equal(fake_slot_count(unit.vm_fd), 0);
	assert_int_equal(fake_open_mappings(), 0);
	assert_int_equal(fake_open_fds(), 1);
	unit_end(&unit);
}

static void free_works_after_the_vm_fd_was_closed(void **state)
{
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	unit_region(&unit, 0, 1, NULL);
	unit_region(&unit, 1, 1, NULL);
	fake_close(unit.vm_fd);
	assert_true(fake_vm_exists(unit.vm_fd));
	gmem_vm_free(unit.vm);
	assert_false(fake_vm_exists(unit.vm_fd));
	assert_int_equal(fake_open_fds(), 0);
	unit.vm = NULL;
	unit.vm_fd = -1;
	unit_end(&unit);
}

static void free_works_on_a_dead_vm(void **state)
{
	struct gmem_region *region;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	region = unit_region(&unit, 0, 1, NULL);
	fake_kill_vm(unit.vm_fd);
	assert_refused(-EIO, "memslot 0", gmem_region_remove(region));
	fake_close(unit.vm_fd);
	gmem_vm_free(unit.vm);
	assert_int_equal(fake_open_fds(), 0);
	assert_int_equal(fake_open_mappings(), 0);
	unit.vm = NULL;
	unit.vm_fd = -1;
	unit_end(&unit);
}

static void two_handles_keep_apart(void **state)
{
	struct unit a, b;

	(void)state;
	unit_begin_vm(&a, "6.18");
	b = a;
	b.vm_fd = fake_new_vm();
	b.caps = NULL;
	GMEM_OPTS(gmem_vm_opts, opts, .caps = a.caps);
	assert_ok(gmem_vm_new(b.vm_fd, &opts, &b.vm));
	assert_int_equal(next_slot(&a, 0), 0);
	assert_int_equal(next_slot(&b, 0), 0);
	gmem_vm_free(b.vm);
	assert_int_equal(fake_slot_count(a.vm_fd), 1);
	assert_int_equal(fake_slot_count(b.vm_fd), 0);
	fake_close(b.vm_fd);
	unit_end(&a);
}

/* ---- address spaces ---- */

/* The handle of the second address space of the unit's VM */
static struct gmem_vm *second_space(const struct unit *unit)
{
	GMEM_OPTS(gmem_vm_opts, opts, .flags = GMEM_VM_ADDRESS_SPACE, .caps = unit->caps,
		  .address_space = 1);
	struct gmem_vm *vm = NULL;

	assert_ok(gmem_vm_new(unit->vm_fd, &opts, &vm));
	return vm;
}

static void address_spaces_have_memslots_and_regions_of_their_own(void **state)
{
	struct gmem_region *first, *second, *upper;
	struct gmem_region_info info;
	struct fake_slot slot;
	struct unit unit;
	struct gmem_vm *vm;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	vm = second_space(&unit);
	first = unit_region(&unit, 16, 4, NULL);
	assert_ok(gmem_region_add(vm, PAGES(&unit, 16), PAGES(&unit, 4), NULL, &second));
	assert_int_equal(gmem_region_slot(first), 0);
	assert_int_equal(gmem_region_slot(second), 0x10000);
	assert_ok(gmem_vm_find_slot(vm, 0x10000, &info));
	assert_ptr_equal(info.region, second);
	assert_int_equal(info.slot, 0x10000);
	assert_refused(-ENOENT, "memslot 0", gmem_vm_find_slot(vm, 0, &info));
	assert_true(fake_get_slot(unit.vm_fd, 0x10000, &slot));
	assert_ptr_equal((void *)slot.hva, gmem_region_hva(second));

	assert_ok(gmem_region_split(second, unit.page, &upper));
	assert_int_equal(gmem_region_slot(upper), 0x10001);
	assert_ok(gmem_region_move(upper, PAGES(&unit, 64)));
	assert_ok(gmem_region_remove(second));
	assert_int_equal(fake_slot_count(unit.vm_fd), 2);
	assert_true(fake_get_slot(unit.vm_fd, 0, &slot));

	/* Each handle deletes its own. */
	gmem_vm_free(vm);
	assert_int_equal(fake_slot_count(unit.vm_fd), 1);
	unit_check_region(&unit, first);
	vm = second_space(&unit);
	assert_ok(gmem_region_add(vm, PAGES(&unit, 16), PAGES(&unit, 4), NULL, &second));
	assert_ok(gmem_region_remove(first));
	assert_true(fake_get_slot(unit.vm_fd, 0x10000, &slot));
	gmem_vm_free(vm);
	unit_end(&unit);
}

static void dirty_log_is_that_of_the_address_space(void **state)
{
	struct gmem_region *first, *second;
	struct gmem_plan *plan;
	struct gmem_vm *vm;
	struct unit unit;
	uint64_t bits;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	vm = second_space(&unit);
	plan = unit_plan(&unit, GMEM_BACKING_HOST);
	GMEM_OPTS(gmem_region_opts, opts, .plan = plan, .flags = GMEM_REGION_DIRTY_LOG);
	assert_ok(gmem_region_add(unit.vm, 0, PAGES(&unit, 4), &opts, &first));
	assert_ok(gmem_region_add(vm, 0, PAGES(&unit, 4), &opts, &second));
	fake_write_page(unit.vm_fd, gmem_region_slot(second), 2);
	assert_ok(gmem_region_get_dirty_log(first, &bits, 1));
	assert_int_equal(bits, 0);
	assert_ok(gmem_region_get_dirty_log(second, &bits, 1));
	assert_int_equal(bits, 1 << 2);
	assert_ok(gmem_region_set_dirty_log(second, 0));
	assert_ok(gmem_region_get_dirty_log(first, &bits, 1));
	gmem_plan_free(plan);
	gmem_vm_free(vm);
	unit_end(&unit);
}

static void address_space_that_is_not_there_is_refused(void **state)
{
	GMEM_OPTS(gmem_vm_opts, opts, .flags = GMEM_VM_ADDRESS_SPACE, .address_space = 2);
	struct gmem_vm *vm = NO_VM_HANDLE;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	opts.caps = unit.caps;
	assert_refused(-EINVAL, "has 2", gmem_vm_new(unit.vm_fd, &opts, &vm));
	opts.address_space = UINT32_MAX;
	assert_refused(-EINVAL, "4294967295", gmem_vm_new(unit.vm_fd, &opts, &vm));
	assert_ptr_equal(vm, NO_VM_HANDLE);
	/* Without the flag the member is not read, and an older program has none. */
	opts.flags = 0;
	assert_ok(gmem_vm_new(unit.vm_fd, &opts, &vm));
	gmem_vm_free(vm);
	opts.flags = GMEM_VM_ADDRESS_SPACE;
	opts.address_space = 0;
	assert_ok(gmem_vm_new(unit.vm_fd, &opts, &vm));
	gmem_vm_free(vm);
	unit_end(&unit);
}

static void memory_is_in_both_address_spaces_by_its_host_address(void **state)
{
	struct gmem_region *ram, *again;
	struct gmem_plan *host, *mapped;
	struct gmem_file *file;
	struct gmem_vm *vm;
	struct unit unit;
	uint64_t offset;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	vm = second_space(&unit);
	host = unit_plan(&unit, GMEM_BACKING_HOST);
	mapped = unit_plan(&unit, GMEM_BACKING_MAPPED);
	ram = unit_region(&unit, 16, 4, NULL);
	file = gmem_region_file(ram, &offset);
	GMEM_OPTS(gmem_region_opts, opts, .file = file, .file_offset = offset);
	assert_refused(-EEXIST, "bound already",
		       gmem_region_add(vm, 0, PAGES(&unit, 4), &opts, &again));
	opts.plan = mapped;
	assert_ok(gmem_region_add(vm, 0, PAGES(&unit, 4), &opts, &again));
	assert_ok(gmem_region_remove(again));

	GMEM_OPTS(gmem_region_opts, by_hva, .plan = host, .flags = GMEM_REGION_HVA,
		  .hva = gmem_region_hva(ram));
	assert_ok(gmem_region_add(vm, PAGES(&unit, 16), PAGES(&unit, 4), &by_hva, &again));
	assert_ptr_equal(gmem_region_hva(again), gmem_region_hva(ram));
	gmem_plan_free(host);
	gmem_plan_free(mapped);
	gmem_vm_free(vm);
	unit_check_region(&unit, ram);
	unit_end(&unit);
}

static void private_memory_is_for_the_first_address_space(void **state)
{
	struct gmem_region *region;
	struct gmem_vcpu *vcpu;
	struct gmem_plan *plan;
	struct gmem_vm *vm;
	struct unit unit;

	(void)state;
	fake_boot("7.3-swp-t1");
	fake.vm.address_spaces = 2;
	unit.vm_fd = fake_new_vm();
	unit.page = 4096;
	assert_ok(gmem_caps_new(unit.vm_fd, NULL, &unit.caps));
	vm = second_space(&unit);
	plan = unit_plan(&unit, GMEM_BACKING_PRIVATE);
	GMEM_OPTS(gmem_region_opts, opts, .plan = plan);
	assert_refused(-EOPNOTSUPP, "address space 0, not 1",
		       gmem_region_add(vm, 0, unit.page, &opts, &region));
	assert_refused(-EOPNOTSUPP, "address space", gmem_vcpu_new(vm, 3, NULL, &vcpu));
	gmem_plan_free(plan);
	gmem_vm_free(vm);
	gmem_caps_free(unit.caps);
	fake_close(unit.vm_fd);
	assert_int_equal(fake_halt(), 0);
}

static void memslot_of_another_handle_is_recognised_in_its_address_space(void **state)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_SLOT, .slot = 0);
	struct gmem_region *region;
	struct gmem_vm *vm, *other;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	unit_region(&unit, 16, 4, NULL);
	vm = second_space(&unit);
	other = second_space(&unit);
	assert_ok(gmem_region_add(vm, 0, unit.page, &opts, &region));
	assert_refused(-EEXIST, "this handle did not set it",
		       gmem_region_add(other, PAGES(&unit, 16), PAGES(&unit, 2), &opts, &region));
	opts.slot = 1;
	assert_refused(-EEXIST, "overlaps", gmem_region_add(other, 0, unit.page, &opts, &region));
	gmem_vm_free(other);
	gmem_vm_free(vm);
	unit_end(&unit);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(address_spaces_have_memslots_and_regions_of_their_own),
	cmocka_unit_test(dirty_log_is_that_of_the_address_space),
	cmocka_unit_test(address_space_that_is_not_there_is_refused),
	cmocka_unit_test(memory_is_in_both_address_spaces_by_its_host_address),
	cmocka_unit_test(private_memory_is_for_the_first_address_space),
	cmocka_unit_test(memslot_of_another_handle_is_recognised_in_its_address_space),
	cmocka_unit_test(handle_makes_its_own_report),
	cmocka_unit_test(handle_without_self_test_only_asks),
	cmocka_unit_test(handle_copies_the_report_it_is_given),
	cmocka_unit_test(attach_rejects_bad_arguments),
	cmocka_unit_test(null_handle_is_harmless),
	cmocka_unit_test(slots_are_handed_out_lowest_first_and_reused),
	cmocka_unit_test(reserved_slots_are_only_had_by_number),
	cmocka_unit_test(reservation_spares_slots_in_use),
	cmocka_unit_test(slot_numbers_end_where_the_vm_s_do),
	cmocka_unit_test(every_slot_of_the_vm_can_be_used),
	cmocka_unit_test(slot_that_is_not_the_library_s_is_left_alone),
	cmocka_unit_test(log_may_use_another_vm),
	cmocka_unit_test(log_hears_each_failure_once),
	cmocka_unit_test(log_hears_what_free_cannot_return),
	cmocka_unit_test(lookup_finds_the_region_behind_an_address),
	cmocka_unit_test(lookup_forgets_what_was_removed),
	cmocka_unit_test(lookup_knows_every_way_of_backing),
	cmocka_unit_test(lookup_leaves_memory_of_the_caller_s_own_alone),
	cmocka_unit_test(free_takes_every_region_along),
	cmocka_unit_test(free_works_after_the_vm_fd_was_closed),
	cmocka_unit_test(free_works_on_a_dead_vm),
	cmocka_unit_test(two_handles_keep_apart),
};

UNIT_MAIN(tests)
