/* SPDX-License-Identifier: MIT */
/* dirty_ring: what vCPUs note in rings is marked, and the rings are given back */
#include <errno.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "os/kvm_compat.h"
#include "unit.h"
#include "unit_alloc.h"

/* A VM with rings, two vCPUs, and a region that is tracked */
struct rings {
	struct unit unit;
	int vcpus[2];
	struct gmem_region *region;
	struct gmem_dirty *dirty;
};

static void begin_rings(struct rings *r, enum fake_ring ring)
{
	GMEM_OPTS(gmem_dirty_opts, opts, .flags = GMEM_DIRTY_RINGS | GMEM_DIRTY_FROM_NOW);

	unit_begin(&r->unit, "arm64-6.18");
	fake_set_dirty_ring(r->unit.vm_fd, ring);
	assert_ok(gmem_vm_new(r->unit.vm_fd, NULL, &r->unit.vm));
	for (int i = 0; i < 2; i++) {
		r->vcpus[i] = fake_new_vcpu(r->unit.vm_fd);
		assert_ok(gmem_vm_add_dirty_ring(r->unit.vm, r->vcpus[i], r->unit.page));
	}
	r->region = unit_region_backed(&r->unit, 16, 64, GMEM_BACKING_HOST);
	assert_ok(gmem_dirty_new(r->unit.vm, &opts, &r->dirty));
}

static void end_rings(struct rings *r)
{
	gmem_dirty_free(r->dirty);
	for (int i = 0; i < 2; i++) {
		assert_ok(gmem_vm_remove_dirty_ring(r->unit.vm, r->vcpus[i]));
		fake_close(r->vcpus[i]);
	}
	unit_end(&r->unit);
}

static uint64_t collect(struct rings *r)
{
	GMEM_OPTS(gmem_dirty_info, info, .bytes = 0);

	assert_ok(gmem_dirty_collect(r->dirty, &info));
	return info.bytes / r->unit.page;
}

static bool push(struct rings *r, int vcpu, uint64_t page)
{
	return fake_push_dirty(r->vcpus[vcpu], gmem_region_slot(r->region), page);
}

static void rings_of_all_vcpus_are_read(void **state)
{
	struct gmem_dirty_range range;
	struct rings r;

	(void)state;
	begin_rings(&r, FAKE_RING_ALONE);
	/* many times around */
	for (uint64_t i = 0; i < 10000; i++) {
		assert_true(push(&r, 0, i % 64));
		assert_true(push(&r, 1, (i + 1) % 64));
		if (i % 100 == 0) {
			assert_int_not_equal(collect(&r), 0);
			assert_int_equal(fake_ring_used(r.vcpus[0]) + fake_ring_used(r.vcpus[1]), 0);
		}
	}
	collect(&r);
	assert_int_equal(collect(&r), 0);
	push(&r, 1, 63);
	assert_int_equal(collect(&r), 1);
	assert_ok(gmem_dirty_next(r.dirty, 0, &range));
	assert_int_equal(range.gpa, PAGES(&r.unit, 79));
	end_rings(&r);
}

static void ring_and_bitmap_are_both_read(void **state)
{
	struct rings r;

	(void)state;
	begin_rings(&r, FAKE_RING_AND_BITMAP);
	push(&r, 0, 1);
	fake_write_page(r.unit.vm_fd, gmem_region_slot(r.region), 2);
	assert_int_equal(collect(&r), 2);
	assert_int_equal(collect(&r), 0);
	end_rings(&r);
}

/* Such as of a memslot that is gone */
static void entries_of_no_memory_are_left_out(void **state)
{
	static const uint32_t slots[] = { 7, 1 << 16, UINT32_MAX, 0x8000 };
	struct rings r;
	uint32_t own;

	(void)state;
	begin_rings(&r, FAKE_RING_ALONE);
	own = gmem_region_slot(r.region);
	for (size_t i = 0; i < ARRAY_SIZE(slots); i++)
		assert_true(fake_push_dirty(r.vcpus[0], slots[i], 0));
	assert_true(fake_push_dirty(r.vcpus[0], own, 64));
	assert_true(fake_push_dirty(r.vcpus[0], own, UINT64_MAX));
	assert_true(fake_push_dirty(r.vcpus[0], own, UINT64_C(1) << 52));
	assert_int_equal(collect(&r), 0);
	assert_int_equal(fake_ring_used(r.vcpus[0]), 0);

	assert_ok(gmem_vm_mark_slot_dirty(r.unit.vm, own, 5));
	assert_ok(gmem_vm_mark_slot_dirty(r.unit.vm, own, 64));
	assert_ok(gmem_vm_mark_slot_dirty(r.unit.vm, own | 1 << 16, 6));
	assert_ok(gmem_vm_mark_slot_dirty(r.unit.vm, own + 1, 7));
	assert_refused(-EINVAL, "NULL", gmem_vm_mark_slot_dirty(NULL, own, 7));
	assert_int_equal(collect(&r), 1);
	end_rings(&r);
}

static void a_full_ring_is_emptied_at_the_exit(void **state)
{
	struct kvm_run run = { .exit_reason = KVM_EXIT_DIRTY_RING_FULL };
	struct gmem_vcpu *vcpu;
	struct rings r;
	uint64_t pages = 0;

	(void)state;
	begin_rings(&r, FAKE_RING_ALONE);
	assert_ok(gmem_vcpu_new(r.unit.vm, r.vcpus[0], NULL, &vcpu));
	while (push(&r, 0, pages % 64))
		pages++;
	assert_int_equal(gmem_vcpu_handle_exit(vcpu, &run, 0, 0, NULL), 1);
	assert_int_equal(fake_ring_used(r.vcpus[0]), 0);
	assert_int_equal(collect(&r), 64);
	fake_fail_next(FAKE_OTHER_IOCTL, -EIO);
	assert_refused(-EIO, "KVM_RESET_DIRTY_RINGS", gmem_vcpu_handle_exit(vcpu, &run, 0, 0, NULL));

	/* another's ring is the VMM's business, and without a tracker it is emptied, too */
	gmem_dirty_free(r.dirty);
	r.dirty = NULL;
	push(&r, 0, 0);
	assert_int_equal(gmem_vcpu_handle_exit(vcpu, &run, 0, 0, NULL), 1);
	assert_int_equal(fake_ring_used(r.vcpus[0]), 0);
	assert_ok(gmem_vm_remove_dirty_ring(r.unit.vm, r.vcpus[0]));
	assert_int_equal(gmem_vcpu_handle_exit(vcpu, &run, 0, 0, NULL), 0);
	assert_ok(gmem_vm_add_dirty_ring(r.unit.vm, r.vcpus[0], r.unit.page));
	gmem_vcpu_free(vcpu);
	end_rings(&r);
}

/* Whoever read it before may have stopped anywhere. */
static void a_ring_is_taken_over_where_it_is(void **state)
{
	struct rings r;

	(void)state;
	begin_rings(&r, FAKE_RING_ALONE);
	for (uint64_t at = 0; at < 600; at += 37) {
		for (uint64_t i = 0; i < 37; i++)
			push(&r, 0, i);
		assert_int_equal(collect(&r), 37);
		assert_ok(gmem_vm_remove_dirty_ring(r.unit.vm, r.vcpus[0]));
		push(&r, 0, 60);
		push(&r, 0, 61);
		assert_ok(gmem_vm_add_dirty_ring(r.unit.vm, r.vcpus[0], r.unit.page));
		assert_int_equal(collect(&r), 2);
	}
	/* removing reads it once more */
	push(&r, 0, 5);
	assert_ok(gmem_vm_remove_dirty_ring(r.unit.vm, r.vcpus[0]));
	assert_int_equal(collect(&r), 1);
	assert_ok(gmem_vm_add_dirty_ring(r.unit.vm, r.vcpus[0], r.unit.page));
	end_rings(&r);
}

static void a_refused_reset_loses_no_entries(void **state)
{
	struct rings r;

	(void)state;
	begin_rings(&r, FAKE_RING_ALONE);
	push(&r, 0, 7);
	fake_fail_next(FAKE_OTHER_IOCTL, -EPERM);
	assert_int_equal(gmem_dirty_collect(r.dirty, NULL), -EPERM);
	fake_fail_next(FAKE_OTHER_IOCTL, -EPERM);
	assert_ok(gmem_vm_remove_dirty_ring(r.unit.vm, r.vcpus[0]));
	assert_true(fake_fail_struck());
	assert_int_equal(collect(&r), 1);
	assert_int_equal(collect(&r), 0);
	assert_ok(gmem_vm_add_dirty_ring(r.unit.vm, r.vcpus[0], r.unit.page));

	/* a child of fork() takes nothing from its parent */
	push(&r, 0, 8);
	fake_fail_next(FAKE_OTHER_IOCTL, -EIO);
	assert_ok(gmem_vm_remove_dirty_ring(r.unit.vm, r.vcpus[0]));
	assert_int_equal(fake_ring_used(r.vcpus[0]), 1);
	assert_ok(gmem_vm_add_dirty_ring(r.unit.vm, r.vcpus[0], r.unit.page));
	assert_int_equal(collect(&r), 1);
	end_rings(&r);
}

static void changes_lose_no_entries(void **state)
{
	struct gmem_region *upper;
	struct rings r;

	(void)state;
	begin_rings(&r, FAKE_RING_ALONE);
	push(&r, 0, 40);
	assert_ok(gmem_region_split(r.region, PAGES(&r.unit, 32), &upper));
	/* the entry's page is in another memslot now */
	assert_int_equal(collect(&r), 64);
	assert_int_equal(collect(&r), 0);

	/* entries of a memslot that the layout did not get */
	fake_push_dirty(r.vcpus[0], gmem_region_slot(upper) + 1, 3);
	fake_fail_kind(FAKE_SET_SLOT, 2, 1, -ENOMEM);
	assert_int_equal(gmem_region_split(upper, PAGES(&r.unit, 16), &upper), -ENOMEM);
	assert_int_equal(collect(&r), 32);
	assert_int_equal(collect(&r), 0);
	end_rings(&r);
}

static void rings_are_checked(void **state)
{
	GMEM_OPTS(gmem_dirty_opts, opts, .flags = GMEM_DIRTY_FROM_NOW);
	struct gmem_dirty *dirty;
	struct rings r;
	int other;

	(void)state;
	begin_rings(&r, FAKE_RING_ALONE);
	assert_refused(-EOPNOTSUPP, "GMEM_DIRTY_RINGS", gmem_dirty_new(r.unit.vm, &opts, &dirty));
	assert_refused(-EEXIST, "added before", gmem_vm_add_dirty_ring(r.unit.vm, r.vcpus[0], r.unit.page));
	other = fake_new_vcpu(r.unit.vm_fd);
	assert_refused(-EINVAL, "NULL", gmem_vm_add_dirty_ring(NULL, other, r.unit.page));
	assert_refused(-EINVAL, "no size", gmem_vm_add_dirty_ring(r.unit.vm, other, 0));
	assert_refused(-EINVAL, "no size", gmem_vm_add_dirty_ring(r.unit.vm, other, 3 * r.unit.page));
	assert_refused(-EINVAL, "no size", gmem_vm_add_dirty_ring(r.unit.vm, other, r.unit.page / 2));
	assert_refused(-EINVAL, "no size", gmem_vm_add_dirty_ring(r.unit.vm, other, UINT64_C(1) << 21));
	assert_refused(-EINVAL, "has not", gmem_vm_add_dirty_ring(r.unit.vm, other, 2 * r.unit.page));
	assert_refused(-EBADF, "fd -1", gmem_vm_add_dirty_ring(r.unit.vm, -1, r.unit.page));
	assert_refused(-ENOENT, "not added", gmem_vm_remove_dirty_ring(r.unit.vm, other));
	assert_refused(-EINVAL, "NULL", gmem_vm_remove_dirty_ring(NULL, other));
	fake_fail_next(FAKE_MMAP, -ENOMEM);
	assert_refused(-ENOMEM, "mapping", gmem_vm_add_dirty_ring(r.unit.vm, other, r.unit.page));
	unit_fail_alloc(1);
	assert_refused(-ENOMEM, "no memory", gmem_vm_add_dirty_ring(r.unit.vm, other, r.unit.page));
	assert_true(unit_alloc_struck());
	/* one that is not removed ends with the VM */
	assert_ok(gmem_vm_add_dirty_ring(r.unit.vm, other, r.unit.page));
	fake_close(other);
	end_rings(&r);
}

/* KVM takes them as long as there is no vCPU. */
static void a_tracker_from_before_the_rings_misses_nothing_in_silence(void **state)
{
	static const enum fake_ring kinds[] = { FAKE_RING_ALONE, FAKE_RING_AND_BITMAP };
	GMEM_OPTS(gmem_dirty_opts, opts, .flags = GMEM_DIRTY_FROM_NOW);
	GMEM_OPTS(gmem_dirty_info, info, .bytes = 0);
	struct gmem_region *upper;
	struct gmem_dirty *before;
	struct rings r;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		unit_begin_vm(&r.unit, "arm64-6.18");
		r.region = unit_region_backed(&r.unit, 16, 64, GMEM_BACKING_HOST);
		assert_ok(gmem_dirty_new(r.unit.vm, &opts, &before));
		assert_ok(gmem_dirty_collect(before, NULL));

		fake_set_dirty_ring(r.unit.vm_fd, kinds[i]);
		assert_refused(-EOPNOTSUPP, "GMEM_DIRTY_RINGS", gmem_dirty_collect(before, NULL));
		assert_refused(-EOPNOTSUPP, "GMEM_DIRTY_RINGS", gmem_dirty_peek(before, &info));

		/* one that knows of them loses nothing to the other, whatever changes */
		opts.flags |= GMEM_DIRTY_RINGS;
		assert_ok(gmem_dirty_new(r.unit.vm, &opts, &r.dirty));
		opts.flags = GMEM_DIRTY_FROM_NOW;
		assert_ok(gmem_region_split(r.region, PAGES(&r.unit, 32), &upper));
		assert_int_equal(collect(&r), 64);
		gmem_dirty_free(before);
		gmem_dirty_free(r.dirty);
		unit_end(&r.unit);
	}
}

static void a_vm_without_rings_has_none(void **state)
{
	struct unit unit;
	int vcpu;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	vcpu = fake_new_vcpu(unit.vm_fd);
	assert_refused(-EOPNOTSUPP, "KVM_CAP_DIRTY_LOG_RING", gmem_vm_add_dirty_ring(unit.vm, vcpu, unit.page));
	fake_close(vcpu);
	unit_end(&unit);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rings_of_all_vcpus_are_read),
		cmocka_unit_test(ring_and_bitmap_are_both_read),
		cmocka_unit_test(entries_of_no_memory_are_left_out),
		cmocka_unit_test(a_full_ring_is_emptied_at_the_exit),
		cmocka_unit_test(a_ring_is_taken_over_where_it_is),
		cmocka_unit_test(a_refused_reset_loses_no_entries),
		cmocka_unit_test(changes_lose_no_entries),
		cmocka_unit_test(rings_are_checked),
		cmocka_unit_test(a_tracker_from_before_the_rings_misses_nothing_in_silence),
		cmocka_unit_test(a_vm_without_rings_has_none),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
