/* SPDX-License-Identifier: MIT */
/* vcpu: conversions that a guest asks for, their limits and their cost */
#include <errno.h>
#include <linux/kvm.h>
#include <linux/kvm_para.h>
#include <pthread.h>
#include <string.h>

#include "os/kvm_compat.h"
#include "region/region.h"
#include "unit.h"

#define FIRST	16	/* page */
#define COUNT	32	/* pages */

/* The attribute of KVM_HC_MAP_GPA_RANGE for private memory */
#define TO_PRIVATE	UINT64_C(0x10)
#define TO_SHARED	UINT64_C(0)

struct fixture {
	struct unit unit;
	struct gmem_region *region;
	struct gmem_vcpu *vcpu;
	int fd;
	struct kvm_run run;
	struct gmem_exit exit;
};

static void begin_with(struct fixture *f, const char *kernel, const struct gmem_vcpu_opts *opts)
{

	memset(f, 0, sizeof(*f));
	unit_begin_vm(&f->unit, kernel);
	f->region = unit_region_backed(&f->unit, FIRST, COUNT, GMEM_BACKING_PRIVATE);
	f->fd = fake_new_vcpu(f->unit.vm_fd);
	assert_ok(gmem_vcpu_new(f->unit.vm, f->fd, opts, &f->vcpu));
}

/* One region of so many pages from 0 */
static void begin_big(struct fixture *f, uint64_t pages, const struct gmem_vcpu_opts *opts)
{
	memset(f, 0, sizeof(*f));
	unit_begin_vm(&f->unit, "7.3-swp-t1");
	f->region = unit_region_backed(&f->unit, 0, pages, GMEM_BACKING_PRIVATE);
	f->fd = fake_new_vcpu(f->unit.vm_fd);
	assert_ok(gmem_vcpu_new(f->unit.vm, f->fd, opts, &f->vcpu));
}

static void begin(struct fixture *f)
{
	begin_with(f, "7.3-swp-t1", NULL);
}

static void end(struct fixture *f)
{
	gmem_vcpu_free(f->vcpu);
	fake_close(f->fd);
	unit_end(&f->unit);
}

static uint64_t page(const struct fixture *f, uint64_t n)
{
	return PAGES(&f->unit, n);
}

static int fault(struct fixture *f, uint64_t n, uint64_t flags)
{
	const struct gmem_kvm_memory_fault fault = {
		.flags = flags, .gpa = page(f, n), .size = f->unit.page,
	};

	memset(&f->run, 0, sizeof(f->run));
	f->run.exit_reason = KVM_EXIT_MEMORY_FAULT;
	memcpy(&f->run.hw, &fault, sizeof(fault));
	return gmem_vcpu_handle_exit(f->vcpu, &f->run, -1, EFAULT, &f->exit);
}

static int fault_private(struct fixture *f, uint64_t n)
{
	return fault(f, n, KVM_MEMORY_EXIT_FLAG_PRIVATE);
}

static int fault_shared(struct fixture *f, uint64_t n)
{
	return fault(f, n, 0);
}

static void set_request(struct kvm_run *run, uint64_t gpa, uint64_t pages, uint64_t attributes)
{
	memset(run, 0, sizeof(*run));
	run->exit_reason = KVM_EXIT_HYPERCALL;
	run->hypercall.nr = KVM_HC_MAP_GPA_RANGE;
	run->hypercall.args[0] = gpa;
	run->hypercall.args[1] = pages;
	run->hypercall.args[2] = attributes;
	run->hypercall.ret = 77;
}

static int request(struct fixture *f, uint64_t n, uint64_t pages, uint64_t attributes)
{
	set_request(&f->run, page(f, n), pages, attributes);
	return gmem_vcpu_handle_exit(f->vcpu, &f->run, 0, 0, &f->exit);
}

static int64_t answer(const struct fixture *f)
{
	return (int64_t)f->run.hypercall.ret;
}

static int leave_for_something_else(struct fixture *f)
{
	memset(&f->run, 0, sizeof(f->run));
	f->run.exit_reason = KVM_EXIT_MMIO;
	return gmem_vcpu_handle_exit(f->vcpu, &f->run, 0, 0, &f->exit);
}

static struct gmem_stats stats_of(struct fixture *f)
{
	GMEM_OPTS(gmem_stats, stats, .flags = GMEM_STATS_RESIDENT);

	assert_ok(gmem_vm_stats(f->unit.vm, &stats));
	assert_int_equal(stats.made_private - stats.made_shared, stats.bytes_private);
	return stats;
}

static uint64_t exits_counted(const struct gmem_stats *stats)
{
	return stats->faults_private + stats->faults_shared + stats->faults_late +
	       stats->faults_stuck + stats->faults_hole + stats->faults_refused +
	       stats->faults_poison + stats->faults_unknown_reason + stats->faults_no_address +
	       stats->requests + stats->requests_refused;
}

static void assert_private(struct fixture *f, uint64_t n, uint64_t pages, bool is_private)
{
	for (uint64_t i = n; i < n + pages; i++) {
		struct gmem_state_range range;

		assert_int_equal(fake_is_private(f->unit.vm_fd, page(f, i)), is_private);
		assert_int_equal(gmem_vm_state(f->unit.vm, page(f, i), f->unit.page, &range, 1), 1);
		assert_int_equal(range.state, is_private ? GMEM_STATE_PRIVATE : GMEM_STATE_SHARED);
	}
}

/* ---- faults ---- */

static void touching_converts_the_page(void **state)
{
	struct gmem_stats stats;
	struct fixture f;

	(void)state;
	begin(&f);
	((char *)gmem_region_hva(f.region))[page(&f, 3)] = 1;
	assert_int_equal(fault_private(&f, FIRST + 3), 1);
	assert_int_equal(f.exit.kind, GMEM_EXIT_FAULT);
	assert_private(&f, FIRST + 3, 1, true);
	assert_private(&f, FIRST, 3, false);
	assert_private(&f, FIRST + 4, COUNT - 4, false);
	assert_int_equal(fault_shared(&f, FIRST + 3), 1);
	assert_private(&f, FIRST, COUNT, false);

	stats = stats_of(&f);
	assert_int_equal(stats.faults_private, 1);
	assert_int_equal(stats.faults_shared, 1);
	assert_int_equal(stats.conversions, 2);
	assert_int_equal(stats.resident_shared, 0);
	assert_int_equal(stats.doubled, 0);
	end(&f);
}

static void exits_not_about_memory_are_the_callers(void **state)
{
	struct gmem_stats stats;
	struct fixture f;

	(void)state;
	begin(&f);
	assert_int_equal(leave_for_something_else(&f), 0);
	assert_int_equal(f.exit.kind, GMEM_EXIT_OTHER);
	assert_int_equal(gmem_vcpu_handle_exit(f.vcpu, &f.run, -1, EINTR, NULL), 0);
	stats = stats_of(&f);
	assert_int_equal(exits_counted(&stats), 0);
	end(&f);
}

static void a_fault_without_memory_is_reported(void **state)
{
	GMEM_OPTS(gmem_region_opts, device, .flags = GMEM_REGION_DEVICE);
	struct gmem_region *region;
	struct gmem_stats stats;
	struct fixture f;

	(void)state;
	begin(&f);
	assert_refused(-ENOENT, "gpa 0x0", fault_private(&f, 0));
	assert_ok(gmem_region_add(f.unit.vm, page(&f, 100), page(&f, 4), &device, &region));
	assert_refused(-ENXIO, "device", fault_private(&f, 101));
	stats = stats_of(&f);
	assert_int_equal(stats.faults_hole, 2);
	assert_int_equal(exits_counted(&stats), 2);
	end(&f);
}

static void a_fault_that_cannot_be_converted_is_reported(void **state)
{
	struct gmem_plan *plan;
	struct gmem_stats stats;
	struct fixture f;

	(void)state;
	begin(&f);
	plan = unit_plan(&f.unit, GMEM_BACKING_HOST);
	unit_region(&f.unit, 100, 4, plan);
	assert_refused(-EOPNOTSUPP, "host", fault_private(&f, 101));
	stats = stats_of(&f);
	assert_int_equal(stats.faults_refused, 1);
	gmem_plan_free(plan);
	end(&f);
}

static void explicit_mode_converts_nothing_on_touch(void **state)
{
	GMEM_OPTS(gmem_vcpu_opts, opts, .flags = GMEM_VCPU_EXPLICIT);
	struct fixture f;

	(void)state;
	begin_with(&f, "7.3-swp-t1", &opts);
	assert_refused(-EACCES, "shall convert nothing", fault_private(&f, FIRST));
	assert_int_equal(f.exit.gpa, page(&f, FIRST));
	assert_int_equal(request(&f, FIRST, 1, TO_PRIVATE), 1);
	assert_private(&f, FIRST, 1, true);
	end(&f);
}

static void poison_and_unknown_faults_are_reported(void **state)
{
	struct gmem_stats stats;
	struct fixture f;

	(void)state;
	begin(&f);
	fault_private(&f, FIRST + 1);
	f.run.exit_reason = KVM_EXIT_MEMORY_FAULT;
	assert_refused(-EHWPOISON, "lost the memory at gpa 0x11000",
		       gmem_vcpu_handle_exit(f.vcpu, &f.run, -1, EHWPOISON, &f.exit));
	assert_int_equal(f.exit.kind, GMEM_EXIT_POISON);
	f.run.exit_reason = 0;
	assert_refused(-EHWPOISON, "does not say where",
		       gmem_vcpu_handle_exit(f.vcpu, &f.run, -1, EHWPOISON, &f.exit));
	assert_refused(-EFAULT, "not mapped",
		       gmem_vcpu_handle_exit(f.vcpu, &f.run, -1, EFAULT, &f.exit));
	assert_refused(-EPROTO, "flags 0x10", fault(&f, FIRST + 2, 0x18));
	assert_private(&f, FIRST + 2, 1, false);
	stats = stats_of(&f);
	assert_int_equal(stats.faults_poison, 2);
	assert_int_equal(stats.faults_no_address, 1);
	assert_int_equal(stats.faults_unknown_reason, 1);
	assert_int_equal(exits_counted(&stats), 5);
	end(&f);
}

static void a_lease_in_the_way_is_named(void **state)
{
	GMEM_OPTS(gmem_lease_opts, opts, .holder = "disk");
	struct gmem_lease *lease;
	struct gmem_stats stats;
	struct fixture f;

	(void)state;
	begin(&f);
	assert_ok(gmem_lease_new(f.unit.vm, page(&f, FIRST), f.unit.page, &opts, &lease));
	assert_refused(-EBUSY, "disk", fault_private(&f, FIRST));
	assert_int_equal(request(&f, FIRST, 4, TO_PRIVATE), 1);
	assert_int_equal(answer(&f), -EAGAIN);
	assert_private(&f, FIRST, 4, false);
	gmem_lease_free(lease);
	assert_int_equal(request(&f, FIRST, 4, TO_PRIVATE), 1);
	assert_int_equal(answer(&f), 0);
	stats = stats_of(&f);
	assert_int_equal(stats.faults_refused, 1);
	assert_int_equal(stats.requests_refused, 1);
	assert_int_equal(stats.requests, 1);
	end(&f);
}

/* ---- faults that come back ---- */

static void a_fault_without_progress_is_reported_in_the_end(void **state)
{
	struct gmem_stats stats;
	struct fixture f;

	(void)state;
	begin(&f);
	assert_int_equal(fault_private(&f, FIRST), 1);
	for (uint32_t i = 1; i < 16; i++) {
		assert_int_equal(fault_private(&f, FIRST), 1);
		assert_int_equal(f.exit.repeats, i);
	}
	assert_refused(-ELOOP, "for the 16. time", fault_private(&f, FIRST));
	assert_int_equal(f.exit.repeats, 16);
	assert_int_equal(fake_count(FAKE_SET_ATTRIBUTES), 1);

	/* until the vCPU got somewhere */
	assert_int_equal(leave_for_something_else(&f), 0);
	assert_int_equal(fault_private(&f, FIRST), 1);
	assert_int_equal(f.exit.repeats, 0);
	stats = stats_of(&f);
	assert_int_equal(stats.faults_private, 1);
	assert_int_equal(stats.faults_late, 16);
	assert_int_equal(stats.faults_stuck, 1);
	end(&f);
}

static void two_faults_by_turns_are_no_progress_either(void **state)
{
	GMEM_OPTS(gmem_vcpu_opts, opts, .max_stuck_faults = 3);
	struct fixture f;

	(void)state;
	begin_with(&f, "7.3-swp-t1", &opts);
	assert_int_equal(request(&f, FIRST, 2, TO_PRIVATE), 1);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(fault_private(&f, FIRST), 1);
		assert_int_equal(fault_private(&f, FIRST + 1), 1);
	}
	assert_int_equal(fault_private(&f, FIRST), -ELOOP);
	end(&f);
}

/* Behind another vCPU that converts what it is about to touch */
static void a_vcpu_that_is_always_late_but_moves_on_is_not_stuck(void **state)
{
	GMEM_OPTS(gmem_vcpu_opts, opts, .max_stuck_faults = 2);
	struct fixture f;

	(void)state;
	begin_with(&f, "7.3-swp-t1", &opts);
	assert_int_equal(request(&f, FIRST, COUNT, TO_PRIVATE), 1);
	for (uint64_t i = 0; i < COUNT; i++)
		assert_int_equal(fault_private(&f, FIRST + i), 1);
	end(&f);
}

static void a_signal_is_no_progress(void **state)
{
	GMEM_OPTS(gmem_vcpu_opts, opts, .max_stuck_faults = 3);
	struct fixture f;

	(void)state;
	begin_with(&f, "7.3-swp-t1", &opts);
	assert_int_equal(request(&f, FIRST, 1, TO_PRIVATE), 1);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(fault_private(&f, FIRST), 1);
		assert_int_equal(gmem_vcpu_handle_exit(f.vcpu, &f.run, -1, EINTR, NULL), 0);
	}
	assert_int_equal(fault_private(&f, FIRST), -ELOOP);
	end(&f);
}

/* The limit of repeats is one failure, what is in the way is another. */
static void a_failure_is_told_with_its_own_sentence(void **state)
{
	GMEM_OPTS(gmem_vcpu_opts, opts, .max_repeats = 2);
	GMEM_OPTS(gmem_lease_opts, lease_opts, .holder = "disk");
	struct gmem_lease *lease;
	struct fixture f;

	(void)state;
	begin_with(&f, "7.3-swp-t1", &opts);
	assert_ok(gmem_lease_new(f.unit.vm, page(&f, FIRST), f.unit.page, &lease_opts, &lease));
	for (uint32_t i = 0; i < 5; i++) {
		assert_refused(-EBUSY, "\"disk\" holds a lease", fault_private(&f, FIRST));
		assert_int_equal(f.exit.repeats, i);
	}
	gmem_lease_free(lease);
	assert_int_equal(fault_private(&f, FIRST), -ELOOP);
	assert_non_null(strstr(gmem_last_error(), "6 times in a row"));
	end(&f);
}

static void flipping_one_page_is_bounded_if_asked_for(void **state)
{
	GMEM_OPTS(gmem_vcpu_opts, opts, .max_repeats = 100);
	struct gmem_stats stats;
	struct fixture f;

	(void)state;
	begin_with(&f, "7.3-swp-t1", &opts);
	for (uint32_t i = 0; i < 100; i++) {
		assert_int_equal(i % 2 ? fault_shared(&f, FIRST) : fault_private(&f, FIRST), 1);
		assert_int_equal(f.exit.repeats, i);
	}
	assert_refused(-ELOOP, "101 times in a row", fault_shared(&f, FIRST));
	assert_int_equal(leave_for_something_else(&f), 0);
	assert_int_equal(request(&f, FIRST, 1, TO_PRIVATE), 1);
	stats = stats_of(&f);
	assert_int_equal(exits_counted(&stats), 102);
	assert_int_equal(stats.doubled, 0);
	end(&f);
}

/* ---- requests ---- */

static void a_request_is_done_and_answered(void **state)
{
	struct gmem_stats stats;
	struct fixture f;

	(void)state;
	begin(&f);
	assert_int_equal(request(&f, FIRST + 2, 5, TO_PRIVATE), 1);
	assert_int_equal(answer(&f), 0);
	assert_private(&f, FIRST + 2, 5, true);
	assert_int_equal(request(&f, FIRST + 3, 1, TO_SHARED), 1);
	assert_int_equal(answer(&f), 0);
	assert_private(&f, FIRST + 3, 1, false);
	assert_private(&f, FIRST + 4, 3, true);
	stats = stats_of(&f);
	assert_int_equal(stats.requests, 2);
	assert_int_equal(stats.bytes_private, page(&f, 4));
	end(&f);
}

static void hostile_requests_are_answered_and_change_nothing(void **state)
{
	static const struct {
		uint64_t gpa, pages, attributes;
	} cases[] = {
		{ FIRST * 4096, 0, TO_PRIVATE },
		{ FIRST * 4096 + 1, 1, TO_PRIVATE },
		{ FIRST * 4096, 1, 0x30 },
		{ FIRST * 4096, UINT64_MAX, TO_PRIVATE },
		{ FIRST * 4096, UINT64_MAX / 4096, TO_PRIVATE },
		{ UINT64_MAX - 4095, 2, TO_PRIVATE },
		{ 0, 1, TO_PRIVATE },
		{ 0, FIRST + 1, TO_PRIVATE },
		{ 0, FIRST + 1, TO_SHARED },
		{ (FIRST + COUNT - 1) * 4096, 2, TO_PRIVATE },
		{ (FIRST + COUNT - 1) * 4096, UINT64_C(1) << 39, TO_PRIVATE },
		{ UINT64_C(1) << 51, 1, TO_PRIVATE },
	};
	struct fake_snapshot *before;
	struct gmem_stats stats;
	struct fixture f;

	(void)state;
	begin(&f);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		before = fake_snapshot();
		set_request(&f.run, cases[i].gpa, cases[i].pages, cases[i].attributes);
		assert_int_equal(gmem_vcpu_handle_exit(f.vcpu, &f.run, 0, 0, &f.exit), 1);
		assert_int_equal(answer(&f), -EINVAL);
		assert_true(fake_equal(before));
	}
	assert_int_equal(fake_count(FAKE_SET_ATTRIBUTES), 0);
	stats = stats_of(&f);
	assert_int_equal(stats.requests_refused, ARRAY_SIZE(cases));
	assert_int_equal(exits_counted(&stats), ARRAY_SIZE(cases));
	end(&f);
}

static void a_range_without_memory_may_be_called_shared(void **state)
{
	GMEM_OPTS(gmem_region_opts, device, .flags = GMEM_REGION_DEVICE);
	struct gmem_region *region;
	struct fixture f;

	(void)state;
	begin(&f);
	assert_ok(gmem_region_add(f.unit.vm, page(&f, 100), page(&f, 4), &device, &region));
	assert_int_equal(request(&f, 96, 16, TO_SHARED), 1);
	assert_int_equal(answer(&f), 0);
	assert_int_equal(request(&f, 96, 16, TO_PRIVATE), 1);
	assert_int_equal(answer(&f), -EINVAL);
	end(&f);
}

static void a_refusal_of_the_kernel_reaches_guest_and_caller(void **state)
{
	struct gmem_stats stats;
	struct fixture f;

	(void)state;
	begin(&f);
	fake_fail_next(FAKE_SET_ATTRIBUTES, -ENOMEM);
	assert_int_equal(request(&f, FIRST, 2, TO_PRIVATE), -ENOMEM);
	assert_int_equal(answer(&f), -EINVAL);
	fake_fail_next(FAKE_SET_ATTRIBUTES, -ENOMEM);
	assert_int_equal(fault_private(&f, FIRST), -ENOMEM);
	assert_private(&f, FIRST, COUNT, false);
	stats = stats_of(&f);
	assert_int_equal(stats.requests_refused, 1);
	assert_int_equal(stats.faults_refused, 1);
	end(&f);
}

/* ---- requests of more than a GiB ---- */

#define GIB		(UINT64_C(1) << 30)
#define GIB_PAGES	(GIB / 4096)

static uint64_t private_bytes(struct fixture *f)
{
	GMEM_OPTS(gmem_stats, stats, .flags = 0);

	assert_ok(gmem_vm_stats(f->unit.vm, &stats));
	return stats.bytes_private;
}

static void a_large_request_is_cut_at_whole_gib(void **state)
{
	struct fixture f;

	(void)state;
	begin_big(&f, 4 * GIB_PAGES, NULL);
	assert_int_equal(request(&f, 1, 3 * GIB_PAGES, TO_PRIVATE), 1);
	assert_int_equal(answer(&f), 0);
	assert_int_equal(fake_count(FAKE_SET_ATTRIBUTES), 4);
	assert_int_equal(private_bytes(&f), 3 * GIB);
	assert_private(&f, 0, 1, false);
	assert_private(&f, 1, 1, true);
	assert_private(&f, 3 * GIB_PAGES, 1, true);
	assert_private(&f, 3 * GIB_PAGES + 1, 1, false);

	/* what is so already is not asked of the kernel */
	assert_int_equal(request(&f, 1, 3 * GIB_PAGES, TO_PRIVATE), 1);
	assert_int_equal(fake_count(FAKE_SET_ATTRIBUTES), 4);
	end(&f);
}

static void a_large_request_with_a_hole_changes_nothing(void **state)
{
	struct fixture f;

	(void)state;
	begin_big(&f, 3 * GIB_PAGES, NULL);
	assert_int_equal(request(&f, 0, 3 * GIB_PAGES + 1, TO_PRIVATE), 1);
	assert_int_equal(answer(&f), -EINVAL);
	assert_int_equal(request(&f, 0, UINT64_C(1) << 40, TO_PRIVATE), 1);
	assert_int_equal(answer(&f), -EINVAL);
	assert_int_equal(fake_count(FAKE_SET_ATTRIBUTES), 0);
	assert_int_equal(private_bytes(&f), 0);
	end(&f);
}

/* Record and kernel agree, and the guest that asks again gets past what is done. */
static void a_large_request_that_is_refused_midway_goes_on_when_asked_again(void **state)
{
	GMEM_OPTS(gmem_lease_opts, opts, .holder = "disk");
	struct gmem_lease *lease;
	struct fixture f;

	(void)state;
	begin_big(&f, 4 * GIB_PAGES, NULL);
	assert_ok(gmem_lease_new(f.unit.vm, 2 * GIB, f.unit.page, &opts, &lease));
	assert_int_equal(request(&f, 0, 4 * GIB_PAGES, TO_PRIVATE), 1);
	assert_int_equal(answer(&f), -EAGAIN);
	assert_int_equal(private_bytes(&f), 2 * GIB);
	assert_private(&f, 2 * GIB_PAGES - 1, 1, true);
	assert_private(&f, 2 * GIB_PAGES, 1, false);
	gmem_lease_free(lease);
	assert_int_equal(request(&f, 0, 4 * GIB_PAGES, TO_PRIVATE), 1);
	assert_int_equal(answer(&f), 0);
	assert_int_equal(fake_count(FAKE_SET_ATTRIBUTES), 4);
	assert_int_equal(private_bytes(&f), 4 * GIB);
	end(&f);
}

static int ask_again(struct fixture *f)
{
	return gmem_vcpu_handle_exit(f->vcpu, &f->run, 0, 0, &f->exit);
}

static void a_large_request_gives_the_thread_back_when_asked_to(void **state)
{
	GMEM_OPTS(gmem_vcpu_opts, opts, .max_repeats = 1);
	struct gmem_stats stats;
	struct fixture f;

	(void)state;
	begin_big(&f, 3 * GIB_PAGES, &opts);
	set_request(&f.run, 0, 3 * GIB_PAGES, TO_PRIVATE);
	f.run.immediate_exit = 1;
	assert_int_equal(ask_again(&f), -EINTR);
	assert_non_null(strstr(gmem_last_error(), "from gpa 0x40000000 is not done"));
	/* if the vCPU runs all the same */
	assert_int_equal(answer(&f), -EAGAIN);
	assert_int_equal(private_bytes(&f), GIB);

	/* there is progress in each piece that is not done yet */
	f.run.immediate_exit = 0;
	assert_int_equal(ask_again(&f), 1);
	assert_int_equal(answer(&f), 0);
	assert_int_equal(f.exit.repeats, 0);
	assert_int_equal(private_bytes(&f), 3 * GIB);
	stats = stats_of(&f);
	assert_int_equal(stats.requests, 1);
	assert_int_equal(stats.requests_refused, 0);

	/* a request of one piece is done whatever happens */
	set_request(&f.run, 0, GIB_PAGES, TO_SHARED);
	f.run.immediate_exit = 1;
	assert_int_equal(ask_again(&f), -ELOOP);
	assert_int_equal(answer(&f), 0);
	end(&f);
}

/* ---- answers that the VM's type takes ---- */

static int64_t answer_of_type(uint32_t vm_types, uint64_t told, bool is_told, bool by_report)
{
	GMEM_OPTS(gmem_caps_opts, caps_opts, .flags = by_report && is_told ? GMEM_CAPS_VM_TYPE : 0,
		  .vm_type = told);
	GMEM_OPTS(gmem_vm_opts, opts, .flags = !by_report && is_told ? GMEM_VM_TYPE : 0,
		  .vm_type = told);
	struct gmem_vcpu *vcpu;
	struct gmem_caps *caps;
	struct kvm_run run;
	struct gmem_vm *vm;
	int fd;

	fake_boot("7.3-swp-t1");
	fake.vm.vm_types = (int)vm_types;
	fd = fake_new_vm();
	assert_ok(gmem_caps_new(fd, &caps_opts, &caps));
	opts.caps = caps;
	assert_ok(gmem_vm_new(fd, &opts, &vm));
	assert_ok(gmem_vcpu_new(vm, -1, NULL, &vcpu));
	set_request(&run, 0, 1, TO_PRIVATE);
	assert_int_equal(gmem_vcpu_handle_exit(vcpu, &run, 0, 0, NULL), 1);
	gmem_vcpu_free(vcpu);
	gmem_vm_free(vm);
	gmem_caps_free(caps);
	fake_close(fd);
	assert_int_equal(fake_halt(), 0);
	return (int64_t)run.hypercall.ret;
}

static void an_answer_is_one_that_the_vms_type_takes(void **state)
{
	(void)state;
	for (int by_report = 0; by_report < 2; by_report++) {
		assert_int_equal(answer_of_type(0x3f, KVM_X86_SNP_VM, true, by_report), EINVAL);
		assert_int_equal(answer_of_type(0x3f, KVM_X86_TDX_VM, true, by_report), EINVAL);
		assert_int_equal(answer_of_type(0x3f, KVM_X86_SW_PROTECTED_VM, true, by_report), -EINVAL);
		assert_int_equal(answer_of_type(0x3f, 0, true, by_report), -EINVAL);
		/* it outweighs what the host offers */
		assert_int_equal(answer_of_type(0x03, KVM_X86_SNP_VM, true, by_report), EINVAL);
	}
}

static void an_untold_type_is_found_by_what_the_host_offers(void **state)
{
	(void)state;
	assert_int_equal(answer_of_type(0x03, 0, false, true), -EINVAL);
	assert_int_equal(answer_of_type(0x01, 0, false, true), -EINVAL);
	assert_int_equal(answer_of_type(0x1d, 0, false, true), EINVAL);
	assert_int_equal(answer_of_type(0x21, 0, false, true), EINVAL);
	/* the one case that cannot be told: KVM_RUN must not fail */
	assert_int_equal(answer_of_type(0x3f, 0, false, true), EINVAL);
}

/* ---- storms ---- */

#define VCPUS	4
#define EXITS	600

struct storm {
	struct fixture *f;
	unsigned int seed;
	uint64_t done;
	uint64_t stuck;
	int failed;
};

static unsigned int next_random(struct storm *storm)
{
	storm->seed = storm->seed * 1103515245 + 12345;
	return storm->seed >> 16;
}

static void set_fault(struct kvm_run *run, uint64_t gpa, uint64_t flags, uint64_t size)
{
	const struct gmem_kvm_memory_fault fault = { .flags = flags, .gpa = gpa, .size = size };

	memset(run, 0, sizeof(*run));
	run->exit_reason = KVM_EXIT_MEMORY_FAULT;
	memcpy(&run->hw, &fault, sizeof(fault));
}

/* Ranges anywhere, good and bad, and faults at any page; 1 and, of faults, -ELOOP are right */
static void *rage(void *data)
{
	struct storm *storm = data;
	struct fixture *f = storm->f;
	struct gmem_vcpu *vcpu = NULL;
	struct kvm_run run;
	int ret;

	if (gmem_vcpu_new(f->unit.vm, -1, NULL, &vcpu)) {
		storm->failed = 1;
		return NULL;
	}
	for (int i = 0; i < EXITS; i++) {
		uint64_t gpa = page(f, FIRST - 2 + next_random(storm) % (COUNT + 4));
		uint64_t flags = next_random(storm) % 2 ? KVM_MEMORY_EXIT_FLAG_PRIVATE : 0;
		bool is_fault = next_random(storm) % 2;
		bool is_memory = gpa >= page(f, FIRST) && gpa < page(f, FIRST + COUNT);

		if (is_fault)
			set_fault(&run, gpa, flags, f->unit.page);
		else
			set_request(&run, gpa, next_random(storm) % 8, flags ? TO_PRIVATE : TO_SHARED);
		ret = gmem_vcpu_handle_exit(vcpu, &run, is_fault ? -1 : 0, EFAULT, NULL);
		if (is_fault && !is_memory)
			storm->failed |= ret != -ENOENT;
		else if (is_fault && ret == -ELOOP)
			storm->stuck++;
		else
			storm->failed |= ret != 1;
		storm->done++;
	}
	gmem_vcpu_free(vcpu);
	return NULL;
}

static void a_storm_from_several_vcpus_adds_up(void **state)
{
	struct storm storms[VCPUS];
	pthread_t threads[VCPUS];
	struct gmem_stats stats;
	uint64_t done = 0, stuck = 0;
	struct fixture f;

	(void)state;
	begin(&f);
	for (unsigned int i = 0; i < VCPUS; i++) {
		storms[i] = (struct storm){ .f = &f, .seed = i };
		assert_int_equal(pthread_create(&threads[i], NULL, rage, &storms[i]), 0);
	}
	for (unsigned int i = 0; i < VCPUS; i++) {
		pthread_join(threads[i], NULL);
		assert_int_equal(storms[i].failed, 0);
		done += storms[i].done;
		stuck += storms[i].stuck;
	}
	assert_int_equal(done, VCPUS * EXITS);

	stats = stats_of(&f);
	assert_int_equal(exits_counted(&stats), done);
	assert_int_equal(stats.faults_stuck, stuck);
	assert_int_equal(stats.doubled, 0);
	assert_int_equal(stats.bytes_private + stats.bytes_shared, page(&f, COUNT));
	for (uint64_t i = FIRST; i < FIRST + COUNT; i++)
		assert_private(&f, i, 1, fake_is_private(f.unit.vm_fd, page(&f, i)));
	assert_false(fake_is_private(f.unit.vm_fd, page(&f, FIRST - 1)));
	assert_false(fake_is_private(f.unit.vm_fd, page(&f, FIRST + COUNT)));
	end(&f);
}

/* ---- pre-faulting ---- */

static void prefaulting_goes_on_after_partial_calls_and_signals(void **state)
{
	struct gmem_file *file;
	struct fixture f;
	uint64_t done = 0;

	(void)state;
	begin(&f);
	file = gmem_region_file(f.region, NULL);
	assert_int_equal(request(&f, FIRST, COUNT, TO_PRIVATE), 1);
	fake_limit_prefault(3, 4);
	assert_ok(gmem_vcpu_prefault(f.vcpu, page(&f, FIRST), page(&f, 10), &done));
	assert_int_equal(done, page(&f, 10));
	assert_int_equal(fake_count(FAKE_PRE_FAULT), 8);
	assert_true(fake_is_allocated(gmem_file_fd(file), 0, page(&f, 10)));
	assert_false(fake_is_allocated(gmem_file_fd(file), page(&f, 10), f.unit.page));
	end(&f);
}

static void prefaulting_past_the_memory_says_how_far_it_came(void **state)
{
	struct fixture f;
	uint64_t done = 7;

	(void)state;
	begin(&f);
	assert_refused(-ENOENT, "gpa 0x30000",
		       gmem_vcpu_prefault(f.vcpu, page(&f, FIRST + COUNT - 2), page(&f, 4), &done));
	assert_int_equal(done, page(&f, 2));
	assert_refused(-ENOENT, "gpa 0x0", gmem_vcpu_prefault(f.vcpu, 0, page(&f, 1), &done));
	assert_int_equal(done, 0);
	end(&f);
}

static void prefaulting_gives_up_on_signals_without_end(void **state)
{
	struct fixture f;

	(void)state;
	begin(&f);
	fake_limit_prefault(0, 1000);
	assert_refused(-EINTR, "EINTR",
		       gmem_vcpu_prefault(f.vcpu, page(&f, FIRST), page(&f, 1), NULL));
	assert_int_equal(fake_count(FAKE_PRE_FAULT), 16);
	end(&f);
}

static void prefaulting_is_refused_where_it_cannot_be(void **state)
{
	struct gmem_vcpu *vcpu;
	struct fixture f;
	struct unit unit;

	(void)state;
	begin(&f);
	assert_refused(-EINVAL, "vcpu is NULL", gmem_vcpu_prefault(NULL, 0, f.unit.page, NULL));
	assert_refused(-EINVAL, "size 0", gmem_vcpu_prefault(f.vcpu, page(&f, FIRST), 0, NULL));
	assert_refused(-EINVAL, "multiple", gmem_vcpu_prefault(f.vcpu, 1, f.unit.page, NULL));
	assert_refused(-EINVAL, "wraps",
		       gmem_vcpu_prefault(f.vcpu, ~UINT64_C(0xfff), page(&f, 2), NULL));
	fake_fail_next(FAKE_PRE_FAULT, -EFAULT);
	assert_refused(-EFAULT, "without a guest_memfd",
		       gmem_vcpu_prefault(f.vcpu, page(&f, FIRST), f.unit.page, NULL));
	fake_fail_next(FAKE_PRE_FAULT, -EHWPOISON);
	assert_refused(-EHWPOISON, "pre-faulting",
		       gmem_vcpu_prefault(f.vcpu, page(&f, FIRST), f.unit.page, NULL));
	assert_ok(gmem_vcpu_new(f.unit.vm, -1, NULL, &vcpu));
	assert_refused(-EBADF, "no vCPU fd",
		       gmem_vcpu_prefault(vcpu, page(&f, FIRST), f.unit.page, NULL));
	gmem_vcpu_free(vcpu);
	end(&f);

	unit_begin_vm(&unit, "6.18-pvm");
	assert_ok(gmem_vcpu_new(unit.vm, 1, NULL, &vcpu));
	assert_refused(-EOPNOTSUPP, "no KVM_PRE_FAULT_MEMORY",
		       gmem_vcpu_prefault(vcpu, 0, unit.page, NULL));
	gmem_vcpu_free(vcpu);
	unit_end(&unit);
}

static void bad_arguments_are_refused(void **state)
{
	GMEM_OPTS(gmem_vcpu_opts, opts, .flags = 0);
	struct gmem_vcpu *vcpu = NULL;
	struct fixture f;

	(void)state;
	begin(&f);
	assert_refused(-EINVAL, "vm is NULL", gmem_vcpu_new(NULL, -1, NULL, &vcpu));
	assert_refused(-EINVAL, "ret is NULL", gmem_vcpu_new(f.unit.vm, -1, NULL, NULL));
	opts.flags = UNIT_UNKNOWN_BIT;
	assert_refused(-EINVAL, "flags", gmem_vcpu_new(f.unit.vm, -1, &opts, &vcpu));
	opts.flags = 0;
	opts.discard = 3;
	assert_refused(-EINVAL, "discard 3", gmem_vcpu_new(f.unit.vm, -1, &opts, &vcpu));
	assert_null(vcpu);
	assert_refused(-EINVAL, "vcpu is NULL",
		       gmem_vcpu_handle_exit(NULL, &f.run, 0, 0, NULL));
	assert_refused(-EINVAL, "run is NULL", gmem_vcpu_handle_exit(f.vcpu, NULL, 0, 0, NULL));
	gmem_vcpu_free(NULL);
	end(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(touching_converts_the_page),
		cmocka_unit_test(exits_not_about_memory_are_the_callers),
		cmocka_unit_test(a_fault_without_memory_is_reported),
		cmocka_unit_test(a_fault_that_cannot_be_converted_is_reported),
		cmocka_unit_test(explicit_mode_converts_nothing_on_touch),
		cmocka_unit_test(poison_and_unknown_faults_are_reported),
		cmocka_unit_test(a_lease_in_the_way_is_named),
		cmocka_unit_test(a_fault_without_progress_is_reported_in_the_end),
		cmocka_unit_test(two_faults_by_turns_are_no_progress_either),
		cmocka_unit_test(a_vcpu_that_is_always_late_but_moves_on_is_not_stuck),
		cmocka_unit_test(a_signal_is_no_progress),
		cmocka_unit_test(flipping_one_page_is_bounded_if_asked_for),
		cmocka_unit_test(a_request_is_done_and_answered),
		cmocka_unit_test(hostile_requests_are_answered_and_change_nothing),
		cmocka_unit_test(a_range_without_memory_may_be_called_shared),
		cmocka_unit_test(a_refusal_of_the_kernel_reaches_guest_and_caller),
		cmocka_unit_test(a_failure_is_told_with_its_own_sentence),
		cmocka_unit_test(a_large_request_is_cut_at_whole_gib),
		cmocka_unit_test(a_large_request_with_a_hole_changes_nothing),
		cmocka_unit_test(a_large_request_that_is_refused_midway_goes_on_when_asked_again),
		cmocka_unit_test(a_large_request_gives_the_thread_back_when_asked_to),
		cmocka_unit_test(an_answer_is_one_that_the_vms_type_takes),
		cmocka_unit_test(an_untold_type_is_found_by_what_the_host_offers),
		cmocka_unit_test(a_storm_from_several_vcpus_adds_up),
		cmocka_unit_test(prefaulting_goes_on_after_partial_calls_and_signals),
		cmocka_unit_test(prefaulting_past_the_memory_says_how_far_it_came),
		cmocka_unit_test(prefaulting_gives_up_on_signals_without_end),
		cmocka_unit_test(prefaulting_is_refused_where_it_cannot_be),
		cmocka_unit_test(bad_arguments_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
