/* SPDX-License-Identifier: MIT */
/* exit: memory faults and requests of the guest, and those that are malformed */
#include <errno.h>
#include <linux/kvm.h>
#include <linux/kvm_para.h>
#include <string.h>

#include "os/kvm_compat.h"
#include "unit.h"

#define GUEST_PAGE	UINT64_C(4096)
#define ADDRESS_END	(UINT64_C(1) << 52)

/* The attribute of KVM_HC_MAP_GPA_RANGE for private memory */
#define ENCRYPTED	UINT64_C(0x10)

static struct kvm_run run;

static void set_fault(uint64_t flags, uint64_t gpa, uint64_t size)
{
	const struct gmem_kvm_memory_fault fault = { .flags = flags, .gpa = gpa, .size = size };

	memset(&run, 0, sizeof(run));
	run.exit_reason = KVM_EXIT_MEMORY_FAULT;
	memcpy(&run.hw, &fault, sizeof(fault));
}

static void set_hypercall(uint64_t gpa, uint64_t pages, uint64_t attributes)
{
	memset(&run, 0, sizeof(run));
	run.exit_reason = KVM_EXIT_HYPERCALL;
	run.hypercall.nr = KVM_HC_MAP_GPA_RANGE;
	run.hypercall.args[0] = gpa;
	run.hypercall.args[1] = pages;
	run.hypercall.args[2] = attributes;
}

static struct gmem_exit decode(int result, int error)
{
	struct gmem_exit exit;

	memset(&exit, 0xff, sizeof(exit));
	assert_int_equal(gmem_exit_decode(&run, result, error, &exit), 0);
	assert_int_equal(exit.repeats, 0);
	return exit;
}

static void assert_other(int result, int error)
{
	const struct gmem_exit nothing = { .kind = GMEM_EXIT_OTHER };
	struct gmem_exit exit = decode(result, error);

	assert_memory_equal(&exit, &nothing, sizeof(exit));
}

/* ---- faults ---- */

static void a_fault_names_its_page_and_the_state_it_wants(void **state)
{
	struct gmem_exit exit;

	(void)state;
	fake_boot("7.3-swp-t1");
	set_fault(KVM_MEMORY_EXIT_FLAG_PRIVATE, 0x7000, 0x1000);
	exit = decode(-1, EFAULT);
	assert_int_equal(exit.kind, GMEM_EXIT_FAULT);
	assert_int_equal(exit.state, GMEM_STATE_PRIVATE);
	assert_int_equal(exit.gpa, 0x7000);
	assert_int_equal(exit.size, 0x1000);
	assert_int_equal(exit.error, -EFAULT);

	set_fault(0, 0x8000, 0x1000);
	exit = decode(-1, EFAULT);
	assert_int_equal(exit.kind, GMEM_EXIT_FAULT);
	assert_int_equal(exit.state, GMEM_STATE_SHARED);
	assert_int_equal(exit.gpa, 0x8000);
	fake_halt();
}

static void a_fault_finer_than_the_page_is_rounded_out(void **state)
{
	static const struct {
		uint64_t gpa, size, start, bytes;
	} cases[] = {
		{ 0x10000, 0x1000, 0x10000, 0x4000 },
		{ 0x13000, 0x1000, 0x10000, 0x4000 },
		{ 0x13fff, 1, 0x10000, 0x4000 },
		/* the access's address, and the page's size */
		{ 0x13fff, 2, 0x10000, 0x4000 },
		{ 0x12340, 0x4000, 0x10000, 0x4000 },
		{ 0x12340, 0x4001, 0x10000, 0x8000 },
		{ 0x13210, 0, 0x10000, 0x4000 },
		{ UINT64_MAX, 1, UINT64_MAX - 0x3fff, 0x4000 },
		{ UINT64_MAX - 0x3fff, UINT64_MAX, UINT64_MAX - 0x3fff, 0x4000 },
		{ UINT64_MAX - 0x4000, 0x8000, UINT64_MAX - 0x7fff, 0x8000 },
		{ UINT64_MAX - 0x4000, 0xc000, UINT64_MAX - 0x7fff, 0x8000 },
		{ 0, UINT64_MAX, 0, UINT64_MAX - 0x3fff },
	};

	(void)state;
	fake_boot("arm64-7.3-16k");
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct gmem_exit exit;

		set_fault(0, cases[i].gpa, cases[i].size);
		exit = decode(-1, EFAULT);
		assert_int_equal(exit.kind, GMEM_EXIT_FAULT);
		assert_int_equal(exit.gpa, cases[i].start);
		assert_int_equal(exit.size, cases[i].bytes);
	}
	fake_halt();
}

/* The exit reason of an earlier exit stays in kvm_run. */
static void fault_needs_its_errno(void **state)
{
	static const int errors[] = { EINTR, EAGAIN, EINVAL, EIO, ENOMEM, ENOEXEC, -EFAULT, 0 };

	(void)state;
	fake_boot("7.3-swp-t1");
	set_fault(KVM_MEMORY_EXIT_FLAG_PRIVATE, 0x7000, 0x1000);
	for (size_t i = 0; i < ARRAY_SIZE(errors); i++)
		assert_other(-1, errors[i]);
	assert_other(0, EFAULT);
	assert_other(1, EHWPOISON);
	fake_halt();
}

static void a_fault_without_its_exit_has_no_address(void **state)
{
	static const uint32_t reasons[] = { 0, KVM_EXIT_MMIO, KVM_EXIT_HYPERCALL, 40, UINT32_MAX };

	(void)state;
	fake_boot("7.3-swp-t1");
	for (size_t i = 0; i < ARRAY_SIZE(reasons); i++) {
		struct gmem_exit exit;

		set_fault(KVM_MEMORY_EXIT_FLAG_PRIVATE, 0x7000, 0x1000);
		run.exit_reason = reasons[i];
		exit = decode(-1, EFAULT);
		assert_int_equal(exit.kind, GMEM_EXIT_NO_ADDRESS);
		assert_int_equal(exit.state, 0);
		assert_int_equal(exit.gpa, 0);
		assert_int_equal(exit.size, 0);
		assert_int_equal(exit.error, -EFAULT);
	}
	fake_halt();
}

static void lost_memory_is_told_with_and_without_its_place(void **state)
{
	struct gmem_exit exit;

	(void)state;
	fake_boot("6.18");
	set_fault(0, 0x9000, 0x1000);
	exit = decode(-1, EHWPOISON);
	assert_int_equal(exit.kind, GMEM_EXIT_POISON);
	assert_int_equal(exit.state, GMEM_STATE_SHARED);
	assert_int_equal(exit.gpa, 0x9000);
	assert_int_equal(exit.size, 0x1000);
	assert_int_equal(exit.error, -EHWPOISON);

	set_fault(KVM_MEMORY_EXIT_FLAG_PRIVATE, 0x9000, 0x1000);
	assert_int_equal(decode(-1, EHWPOISON).state, GMEM_STATE_PRIVATE);

	run.exit_reason = KVM_EXIT_UNKNOWN;
	exit = decode(-1, EHWPOISON);
	assert_int_equal(exit.kind, GMEM_EXIT_POISON);
	assert_int_equal(exit.size, 0);
	fake_halt();
}

static void unknown_flags_make_the_reason_unknown(void **state)
{
	(void)state;
	fake_boot("7.3-swp-t1");
	for (int bit = 0; bit < 64; bit++) {
		uint64_t flag = UINT64_C(1) << bit;
		struct gmem_exit exit;

		if (flag == KVM_MEMORY_EXIT_FLAG_PRIVATE)
			continue;
		set_fault(flag | KVM_MEMORY_EXIT_FLAG_PRIVATE, 0x7000, 0x1000);
		exit = decode(-1, EFAULT);
		assert_int_equal(exit.kind, GMEM_EXIT_UNKNOWN_REASON);
		assert_int_equal(exit.unknown, flag);
		assert_int_equal(exit.state, 0);
		assert_int_equal(exit.gpa, 0x7000);

		/* but poison is poison */
		exit = decode(-1, EHWPOISON);
		assert_int_equal(exit.kind, GMEM_EXIT_POISON);
		assert_int_equal(exit.unknown, flag);
	}
	fake_halt();
}

/* ---- hypercalls ---- */

static void a_request_names_its_range_and_the_state_it_wants(void **state)
{
	static const struct {
		uint64_t attributes, page_size;
		uint32_t wants;
	} cases[] = {
		{ 0x00, GUEST_PAGE, GMEM_STATE_SHARED },
		{ 0x10, GUEST_PAGE, GMEM_STATE_PRIVATE },
		{ 0x01, UINT64_C(2) << 20, GMEM_STATE_SHARED },
		{ 0x11, UINT64_C(2) << 20, GMEM_STATE_PRIVATE },
		{ 0x12, UINT64_C(1) << 30, GMEM_STATE_PRIVATE },
		{ 0x02, UINT64_C(1) << 30, GMEM_STATE_SHARED },
		{ 0x03, 0, GMEM_STATE_SHARED },
		{ 0x1f, 0, GMEM_STATE_PRIVATE },
	};

	(void)state;
	fake_boot("7.3-swp-t1");
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct gmem_exit exit;

		set_hypercall(0x100000, 3, cases[i].attributes);
		exit = decode(0, 0);
		assert_int_equal(exit.kind, GMEM_EXIT_CONVERT);
		assert_int_equal(exit.state, cases[i].wants);
		assert_int_equal(exit.page_size, cases[i].page_size);
		assert_int_equal(exit.gpa, 0x100000);
		assert_int_equal(exit.size, 3 * GUEST_PAGE);
		assert_int_equal(exit.error, 0);
	}
	fake_halt();
}

static void a_requests_pages_are_4_KiB_whatever_the_page(void **state)
{
	struct gmem_exit exit;

	(void)state;
	fake_boot("7.3-swp-t1");
	fake_set_page_size(65536);
	set_hypercall(0x1000, 5, ENCRYPTED);
	exit = decode(0, 0);
	assert_int_equal(exit.kind, GMEM_EXIT_CONVERT);
	assert_int_equal(exit.gpa, 0x1000);
	assert_int_equal(exit.size, 5 * GUEST_PAGE);
	fake_halt();
}

static void a_request_may_reach_the_last_address_there_is(void **state)
{
	struct gmem_exit exit;

	(void)state;
	fake_boot("7.3-swp-t1");
	set_hypercall(0, ADDRESS_END / GUEST_PAGE, ENCRYPTED);
	exit = decode(0, 0);
	assert_int_equal(exit.kind, GMEM_EXIT_CONVERT);
	assert_int_equal(exit.size, ADDRESS_END);
	set_hypercall(ADDRESS_END - GUEST_PAGE, 1, 0);
	assert_int_equal(decode(0, 0).kind, GMEM_EXIT_CONVERT);
	fake_halt();
}

static void a_hostile_request_is_told_from_a_good_one(void **state)
{
	static const struct {
		uint64_t gpa, pages, attributes, unknown;
		const char *says;
	} cases[] = {
		{ 0x100000, 0, ENCRYPTED, 0, "no pages" },
		{ 0x100001, 1, ENCRYPTED, 0, "not a multiple of 4096" },
		{ 0x100800, 1, 0, 0, "not a multiple of 4096" },
		{ ADDRESS_END, 1, 0, 0, "no processor" },
		{ ADDRESS_END - GUEST_PAGE, 2, 0, 0, "no processor" },
		{ 0, ADDRESS_END / GUEST_PAGE + 1, 0, 0, "no processor" },
		{ 0x1000, ADDRESS_END / GUEST_PAGE, 0, 0, "no processor" },
		{ 0x1000, UINT64_MAX, 0, 0, "no processor" },
		{ 0x1000, UINT64_MAX / GUEST_PAGE, 0, 0, "no processor" },
		{ 0x1000, UINT64_C(1) << 52, 0, 0, "no processor" },
		{ UINT64_MAX - 0xfff, 1, 0, 0, "no processor" },
		{ UINT64_MAX - 0xfff, 2, 0, 0, "no processor" },
		{ UINT64_C(1) << 63, UINT64_C(1) << 51, 0, 0, "no processor" },
		{ 0x100000, 1, 0x20, 0x20, "reserved bits, 0x20" },
		{ 0x100000, 1, 0x90, 0x80, "reserved bits, 0x80" },
		{ 0x100000, 1, 0x110, 0x100, "reserved bits, 0x100" },
		{ 0x100000, 1, UINT64_MAX, ~UINT64_C(0x1f), "reserved bits" },
	};

	(void)state;
	fake_boot("7.3-swp-t1");
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct gmem_exit exit;

		set_hypercall(cases[i].gpa, cases[i].pages, cases[i].attributes);
		exit = decode(0, 0);
		assert_int_equal(exit.kind, GMEM_EXIT_BAD_CONVERT);
		assert_int_equal(exit.error, -EINVAL);
		assert_int_equal(exit.state, 0);
		assert_int_equal(exit.size, 0);
		assert_int_equal(exit.gpa, cases[i].gpa);
		assert_int_equal(exit.unknown, cases[i].unknown);
		assert_non_null(strstr(gmem_last_error(), cases[i].says));
	}
	fake_halt();
}

static void other_hypercalls_and_failed_ones_are_the_callers(void **state)
{
	(void)state;
	fake_boot("7.3-swp-t1");
	set_hypercall(0x100000, 1, ENCRYPTED);
	assert_other(-1, EINTR);
	run.hypercall.nr = KVM_HC_KICK_CPU;
	assert_other(0, 0);
	run.hypercall.nr = KVM_HC_MAP_GPA_RANGE | UINT64_C(1) << 32;
	assert_other(0, 0);
	set_hypercall(0x100000, 1, ENCRYPTED);
	run.exit_reason = KVM_EXIT_MMIO;
	assert_other(0, 0);
	fake_halt();
}

static void on_arm64_the_hypercall_is_the_callers(void **state)
{
	(void)state;
	fake_boot("arm64-7.3-4k");
	set_hypercall(0x100000, 1, ENCRYPTED);
	assert_other(0, 0);
	assert_int_equal(gmem_exit_reply(&run, 0, 0), -EINVAL);
	fake_halt();
}

/* ---- answers ---- */

static void an_answer_is_in_the_guests_own_numbers(void **state)
{
	static const int cases[][2] = {
		{ 0, 0 },
		{ -EINVAL, -22 },
		{ -ENOENT, -22 },
		{ -ENOMEM, -22 },
		{ -EACCES, -22 },
		{ -EPERM, -1 },
		{ -E2BIG, -7 },
		{ -EFAULT, -14 },
		{ -EOPNOTSUPP, -95 },
		{ -EAGAIN, -11 },
		{ -EBUSY, -11 },
		{ -EINTR, -11 },
	};

	(void)state;
	fake_boot("7.3-swp-t1");
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		set_hypercall(0x100000, 1, ENCRYPTED);
		run.hypercall.ret = 77;
		assert_int_equal(gmem_exit_reply(&run, 0, cases[i][0]), 0);
		assert_int_equal((int64_t)run.hypercall.ret, cases[i][1]);
	}

	/* a malformed request is answered, too */
	set_hypercall(1, 0, UINT64_MAX);
	assert_int_equal(gmem_exit_reply(&run, 0, -EINVAL), 0);
	assert_int_equal((int64_t)run.hypercall.ret, -22);
	fake_halt();
}

/* What KVM takes of SNP and TDX, Linux 7.3: KVM_RUN fails on any other number. */
static bool kvm_takes(uint64_t answer)
{
	return answer == 0 || answer == EINVAL || answer == EAGAIN;
}

static void snp_and_tdx_get_answers_that_kvm_takes(void **state)
{
	static const uint64_t types[] = { KVM_X86_SNP_VM, KVM_X86_TDX_VM };

	(void)state;
	fake_boot("7.3-swp-t1");
	for (size_t i = 0; i < ARRAY_SIZE(types); i++)
		for (int error = 0; error >= -4095; error--) {
			bool again = error == -EAGAIN || error == -EBUSY || error == -EINTR;

			set_hypercall(0x100000, 1, ENCRYPTED);
			run.hypercall.ret = 77;
			assert_int_equal(gmem_exit_reply(&run, types[i], error), 0);
			assert_true(kvm_takes(run.hypercall.ret));
			assert_int_equal(run.hypercall.ret, error == 0 ? 0 : again ? EAGAIN : EINVAL);
		}
	fake_halt();
}

static void other_types_get_negative_answers(void **state)
{
	static const uint64_t types[] = { 0, 1, 2, 3, 6, UINT64_MAX };

	(void)state;
	fake_boot("7.3-swp-t1");
	for (size_t i = 0; i < ARRAY_SIZE(types); i++)
		for (int error = 0; error >= -4095; error--) {
			set_hypercall(0x100000, 1, ENCRYPTED);
			assert_int_equal(gmem_exit_reply(&run, types[i], error), 0);
			assert_true((int64_t)run.hypercall.ret <= 0);
			assert_int_equal(run.hypercall.ret == 0, error == 0);
		}
	fake_halt();
}

static void an_answer_needs_a_request(void **state)
{
	struct kvm_run before;

	(void)state;
	fake_boot("7.3-swp-t1");
	set_fault(0, 0x7000, 0x1000);
	before = run;
	assert_refused(-EINVAL, "exit reason 39", gmem_exit_reply(&run, 0, 0));
	assert_memory_equal(&run, &before, sizeof(run));

	set_hypercall(0x100000, 1, 0);
	before = run;
	assert_refused(-EINVAL, "not a negative errno", gmem_exit_reply(&run, 0, EINVAL));
	assert_memory_equal(&run, &before, sizeof(run));
	assert_refused(-EINVAL, "run is NULL", gmem_exit_reply(NULL, 0, 0));
	fake_halt();
}

static void null_arguments_are_refused(void **state)
{
	struct gmem_exit exit;

	(void)state;
	fake_boot("7.3-swp-t1");
	assert_refused(-EINVAL, "run is NULL", gmem_exit_decode(NULL, 0, 0, &exit));
	assert_refused(-EINVAL, "ret is NULL", gmem_exit_decode(&run, 0, 0, NULL));
	fake_halt();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_fault_names_its_page_and_the_state_it_wants),
		cmocka_unit_test(a_fault_finer_than_the_page_is_rounded_out),
		cmocka_unit_test(fault_needs_its_errno),
		cmocka_unit_test(a_fault_without_its_exit_has_no_address),
		cmocka_unit_test(lost_memory_is_told_with_and_without_its_place),
		cmocka_unit_test(unknown_flags_make_the_reason_unknown),
		cmocka_unit_test(a_request_names_its_range_and_the_state_it_wants),
		cmocka_unit_test(a_requests_pages_are_4_KiB_whatever_the_page),
		cmocka_unit_test(a_request_may_reach_the_last_address_there_is),
		cmocka_unit_test(a_hostile_request_is_told_from_a_good_one),
		cmocka_unit_test(other_hypercalls_and_failed_ones_are_the_callers),
		cmocka_unit_test(on_arm64_the_hypercall_is_the_callers),
		cmocka_unit_test(an_answer_is_in_the_guests_own_numbers),
		cmocka_unit_test(snp_and_tdx_get_answers_that_kvm_takes),
		cmocka_unit_test(other_types_get_negative_answers),
		cmocka_unit_test(an_answer_needs_a_request),
		cmocka_unit_test(null_arguments_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
