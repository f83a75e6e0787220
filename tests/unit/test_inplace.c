/* SPDX-License-Identifier: MIT */
/*
 * inplace: conversion by attributes on the guest_memfd itself, on a scripted kernel
 * that has the call of the proposal under a number of the test's own
 */
#include <errno.h>
#include <string.h>

#include "os/kvm.h"
#include "region/region.h"
#include "unit.h"

#define REQUEST	_IOWR(KVMIO, 0xfe, struct gmem_kvm_file_attributes)
#define BOTH	(GMEM_CREATE_MMAP | GMEM_CREATE_INIT_SHARED)

struct scene {
	struct unit unit;
	struct gmem_plan *plan;
	struct gmem_view *view;
	struct gmem_region *a;	/* pages 4 to 11 */
	struct gmem_region *b;	/* right behind it, pages 12 to 19 */
};

static int new_vm(struct unit *unit, uint64_t request, uint64_t create_flags)
{
	GMEM_OPTS(gmem_inplace_opts, inplace, .request = request, .create_flags = create_flags);
	GMEM_OPTS(gmem_vm_opts, opts, .caps = unit->caps, .inplace = &inplace);

	return gmem_vm_new(unit->vm_fd, &opts, &unit->vm);
}

static int plan_in_place(const struct unit *unit, struct gmem_plan **ret)
{
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_INPLACE },
		  .needs = GMEM_NEED_CONVERSION);

	return gmem_plan_new(gmem_vm_caps(unit->vm), &request, ret);
}

static void scene_begin(struct scene *s)
{
	memset(s, 0, sizeof(*s));
	unit_begin(&s->unit, "future-t1");
	fake.inplace_request = REQUEST;
	assert_ok(new_vm(&s->unit, REQUEST, BOTH));
	assert_ok(plan_in_place(&s->unit, &s->plan));
	s->a = unit_region(&s->unit, 4, 8, s->plan);
	s->b = unit_region(&s->unit, 12, 8, s->plan);
	assert_ok(gmem_view_new(s->unit.vm, &s->view));
}

static void scene_end(struct scene *s)
{
	gmem_view_free(s->view);
	gmem_plan_free(s->plan);
	unit_end(&s->unit);
}

static int convert(struct scene *s, uint64_t page, uint64_t pages, uint32_t state)
{
	return gmem_vm_convert(s->unit.vm, PAGES(&s->unit, page), PAGES(&s->unit, pages), state,
			       NULL, NULL);
}

static int fd_of(const struct gmem_region *region)
{
	return gmem_file_fd(gmem_region_file(region, NULL));
}

/* The files and the readers have exactly these pages private. */
static void check_private(struct scene *s, uint64_t page, uint64_t pages)
{
	uint64_t i;
	void *hva;

	gmem_view_begin(s->view);
	for (i = 4; i < 20; i++) {
		const struct gmem_region *region = i < 12 ? s->a : s->b;
		bool is_private = i >= page && i < page + pages;

		assert_int_equal(fake_is_file_private(fd_of(region), PAGES(&s->unit, i < 12 ? i - 4
											    : i - 12)),
				 is_private);
		assert_int_equal(gmem_view_hva(s->view, PAGES(&s->unit, i), 8, &hva),
				 is_private ? -EACCES : 0);
	}
	gmem_view_end(s->view);
}

static void no_known_kernel_converts_in_place(void **state)
{
	static const char *const kernels[] = { "6.18", "7.3-swp-t1", "arm64-7.3-16k", "6.1" };
	struct gmem_finding line;
	struct gmem_plan *plan;
	struct unit unit;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(kernels); i++) {
		unit_begin(&unit, kernels[i]);
		assert_ok(new_vm(&unit, REQUEST, BOTH));
		assert_ok(gmem_caps_get(gmem_vm_caps(unit.vm), GMEM_CAP_IN_PLACE, &line));
		assert_int_equal(line.answer, GMEM_NO);
		assert_non_null(strstr(line.reason, "request 0x"));
		assert_non_null(line.remedy);
		assert_refused(-EOPNOTSUPP, "request 0x", plan_in_place(&unit, &plan));
		unit_end(&unit);
	}
}

static void conversion_in_place_is_proved_by_doing_it(void **state)
{
	struct gmem_finding line;
	struct gmem_plan *plan;
	struct unit unit;
	unsigned n;

	(void)state;
	unit_begin(&unit, "future-t1");
	fake.inplace_request = REQUEST;
	assert_ok(new_vm(&unit, REQUEST, BOTH));
	assert_ok(gmem_caps_get(gmem_vm_caps(unit.vm), GMEM_CAP_IN_PLACE, &line));
	assert_int_equal(line.answer, GMEM_YES);
	assert_int_equal(line.value, BOTH);
	assert_ok(plan_in_place(&unit, &plan));
	assert_int_equal(gmem_plan_backing(plan), GMEM_BACKING_INPLACE);
	assert_int_equal(gmem_plan_create_flags(plan), BOTH);
	assert_int_equal(gmem_plan_attributes(plan), GMEM_ATTRIBUTES_FILE);
	gmem_plan_free(plan);
	gmem_vm_free(unit.vm);

	/*
	 * a failure anywhere in the proof is a no; there are more than five calls, after
	 * the three that duplicate the VM fd and ask whether the duplicate is a VM
	 */
	for (n = 4;; n++) {
		fake_fail_call(n, -EPERM);
		assert_ok(new_vm(&unit, REQUEST, BOTH));
		if (!fake_fail_struck())
			break;
		assert_ok(gmem_caps_get(gmem_vm_caps(unit.vm), GMEM_CAP_IN_PLACE, &line));
		/* but that the host cannot reach what is private is what was wanted */
		if (line.answer == GMEM_NO)
			assert_non_null(strstr(line.reason, "EPERM"));
		gmem_vm_free(unit.vm);
	}
	assert_true(n > 5);
	gmem_vm_free(unit.vm);

	/* a call that succeeds and does nothing does not count */
	fake.inplace_is_hollow = true;
	assert_ok(new_vm(&unit, REQUEST, BOTH));
	assert_ok(gmem_caps_get(gmem_vm_caps(unit.vm), GMEM_CAP_IN_PLACE, &line));
	assert_int_equal(line.answer, GMEM_NO);
	assert_non_null(strstr(line.reason, "the host reaches what was made private"));
	unit_end(&unit);
}

static void malformed_numbers_are_refused(void **state)
{
	GMEM_OPTS(gmem_inplace_opts, inplace, .request = REQUEST, .create_flags = BOTH);
	struct gmem_vm *vm = UNTOUCHED(struct gmem_vm);
	struct unit unit;

	(void)state;
	unit_begin(&unit, "future-t1");
	GMEM_OPTS(gmem_vm_opts, opts, .caps = unit.caps, .inplace = &inplace);
	inplace.request = _IOWR(KVMIO, 0xfe, uint64_t);
	assert_refused(-EINVAL, "128 bytes", gmem_vm_new(unit.vm_fd, &opts, &vm));
	inplace.request = REQUEST | UNIT_UNKNOWN_BIT;
	assert_refused(-EINVAL, "128 bytes", gmem_vm_new(unit.vm_fd, &opts, &vm));
	inplace.request = REQUEST;
	inplace.size = 8;
	assert_refused(-EINVAL, "gmem_inplace_opts", gmem_vm_new(unit.vm_fd, &opts, &vm));
	assert_ptr_equal(vm, UNTOUCHED(struct gmem_vm));
	unit_end(&unit);
}

static void each_file_takes_a_call_of_its_own(void **state)
{
	struct gmem_conversion done;
	struct gmem_state_range range;
	struct scene s;

	(void)state;
	scene_begin(&s);
	check_private(&s, 0, 0);
	assert_ok(gmem_vm_convert(s.unit.vm, PAGES(&s.unit, 6), PAGES(&s.unit, 8),
				  GMEM_STATE_PRIVATE, NULL, &done));
	assert_int_equal(done.ioctls, 2);
	assert_int_equal(done.discarded, 0);
	assert_int_equal(done.converted, PAGES(&s.unit, 8));
	check_private(&s, 6, 8);
	assert_int_equal(gmem_vm_state(s.unit.vm, PAGES(&s.unit, 6), PAGES(&s.unit, 8), &range, 1), 1);
	assert_int_equal(range.state, GMEM_STATE_PRIVATE);
	assert_int_equal(range.backing, GMEM_BACKING_INPLACE);
	assert_ok(convert(&s, 4, 4, GMEM_STATE_SHARED));
	check_private(&s, 8, 6);
	assert_ok(convert(&s, 4, 16, GMEM_STATE_SHARED));
	check_private(&s, 0, 0);
	scene_end(&s);
}

static void refusal_by_one_file_is_undone_in_the_other(void **state)
{
	struct scene s;

	(void)state;
	scene_begin(&s);
	fake_fail_kind(FAKE_SET_ATTRIBUTES, 1, 1, -ENOMEM);
	assert_refused(-ENOMEM, "guest_memfd fd", convert(&s, 6, 8, GMEM_STATE_PRIVATE));
	check_private(&s, 0, 0);
	assert_ok(convert(&s, 6, 8, GMEM_STATE_PRIVATE));
	fake_fail_kind(FAKE_SET_ATTRIBUTES, 1, 1, -ENOMEM);
	assert_refused(-ENOMEM, "guest_memfd fd", convert(&s, 4, 16, GMEM_STATE_SHARED));
	check_private(&s, 6, 8);
	scene_end(&s);
}

static void undo_leaves_pages_that_were_so_before(void **state)
{
	GMEM_OPTS(gmem_convert_opts, all, .flags = GMEM_CONVERT_ALL);
	struct scene s;

	(void)state;
	scene_begin(&s);
	assert_ok(convert(&s, 6, 2, GMEM_STATE_PRIVATE));
	fake_fail_kind(FAKE_SET_ATTRIBUTES, 1, 1, -ENOMEM);
	assert_refused(-ENOMEM, "guest_memfd fd",
		       gmem_vm_convert(s.unit.vm, PAGES(&s.unit, 4), PAGES(&s.unit, 16),
				       GMEM_STATE_PRIVATE, &all, NULL));
	check_private(&s, 6, 2);
	scene_end(&s);
}

static void pinned_page_is_waited_for_then_named(void **state)
{
	GMEM_OPTS(gmem_convert_opts, wait, .wait_ms = 600000);
	struct scene s;

	(void)state;
	scene_begin(&s);
	fake_pin(fd_of(s.b), PAGES(&s.unit, 1), 3);
	assert_ok(convert(&s, 6, 8, GMEM_STATE_PRIVATE));
	check_private(&s, 6, 8);
	assert_ok(convert(&s, 6, 8, GMEM_STATE_SHARED));

	fake_pin(fd_of(s.b), PAGES(&s.unit, 1), 100);
	assert_ok(gmem_vm_convert(s.unit.vm, PAGES(&s.unit, 6), PAGES(&s.unit, 8),
				  GMEM_STATE_PRIVATE, &wait, NULL));
	assert_ok(convert(&s, 6, 8, GMEM_STATE_SHARED));

	fake_pin(fd_of(s.b), PAGES(&s.unit, 1), 100000);
	assert_refused(-EBUSY, "gpa 0xd000 cannot become private", convert(&s, 6, 8, GMEM_STATE_PRIVATE));
	fake_pin(fd_of(s.b), 0, 0);
	check_private(&s, 0, 0);
	scene_end(&s);
}

static void layout_and_states_go_together(void **state)
{
	struct gmem_file *file;
	struct scene s;

	(void)state;
	scene_begin(&s);
	assert_ok(convert(&s, 6, 8, GMEM_STATE_PRIVATE));
	assert_ok(gmem_file_new_raw(s.unit.vm_fd, PAGES(&s.unit, 8), BOTH, &file));
	assert_refused(-EACCES, "another file", gmem_region_rebind(s.a, file, 0));
	assert_refused(-EACCES, "private in part", gmem_region_move(s.a, PAGES(&s.unit, 100)));
	check_private(&s, 6, 8);
	assert_ok(convert(&s, 4, 8, GMEM_STATE_SHARED));
	assert_ok(gmem_region_rebind(s.a, file, 0));
	assert_ok(convert(&s, 4, 4, GMEM_STATE_PRIVATE));
	assert_true(fake_is_file_private(gmem_file_fd(file), 0));

	/* the file outlives the region: it is shared again */
	assert_ok(gmem_region_remove(s.a));
	assert_false(fake_is_file_private(gmem_file_fd(file), 0));
	gmem_file_free(file);
	scene_end(&s);
}

/* Private or shared, it is the same memory of the same file. */
static void memory_in_place_is_one_memory(void **state)
{
	struct gmem_footprint done;
	GMEM_OPTS(gmem_stats, stats, .flags = GMEM_STATS_RESIDENT);
	struct scene s;
	uint64_t size;
	int fd;

	(void)state;
	scene_begin(&s);
	size = gmem_region_size(s.a);
	fd = gmem_file_fd(gmem_region_file(s.a, NULL));
	assert_ok(convert(&s, 4, 3, GMEM_STATE_PRIVATE));
	assert_ok(gmem_vm_populate(s.unit.vm, gmem_region_gpa(s.a), size, NULL, &done));
	assert_int_equal(done.done, size);
	/* The host cannot touch what is private, so that is allocated. */
	assert_true(fake_is_allocated(fd, 0, PAGES(&s.unit, 3)));
	assert_ok(gmem_region_stats(s.a, &stats));
	assert_int_equal(stats.resident_private, 0);
	assert_true(stats.resident_shared >= PAGES(&s.unit, 3));
	assert_int_equal(stats.bytes_private, PAGES(&s.unit, 3));

	assert_ok(gmem_vm_discard(s.unit.vm, gmem_region_gpa(s.a), size, NULL, &done));
	assert_int_equal(done.done, size);
	assert_false(fake_is_allocated(fd, 0, s.unit.page));
	assert_false(fake_is_allocated(fd, size - s.unit.page, s.unit.page));
	scene_end(&s);
}

/* There is no other side to give back, so nothing is owed. */
static void conversion_in_place_owes_nothing(void **state)
{
	GMEM_OPTS(gmem_convert_opts, later, .discard = GMEM_DISCARD_LATER);
	struct gmem_conversion done;
	struct scene s;
	uint64_t bytes;

	(void)state;
	scene_begin(&s);
	assert_ok(gmem_vm_convert(s.unit.vm, gmem_region_gpa(s.a), s.unit.page, GMEM_STATE_PRIVATE,
				  &later, &done));
	assert_int_equal(done.owed, 0);
	assert_int_equal(done.converted, s.unit.page);
	assert_ok(gmem_vm_discard_owed(s.unit.vm, &bytes));
	assert_int_equal(bytes, 0);
	scene_end(&s);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(no_known_kernel_converts_in_place),
	cmocka_unit_test(conversion_in_place_is_proved_by_doing_it),
	cmocka_unit_test(malformed_numbers_are_refused),
	cmocka_unit_test(each_file_takes_a_call_of_its_own),
	cmocka_unit_test(refusal_by_one_file_is_undone_in_the_other),
	cmocka_unit_test(undo_leaves_pages_that_were_so_before),
	cmocka_unit_test(pinned_page_is_waited_for_then_named),
	cmocka_unit_test(layout_and_states_go_together),
	cmocka_unit_test(memory_in_place_is_one_memory),
	cmocka_unit_test(conversion_in_place_owes_nothing),
};

UNIT_MAIN(tests)
