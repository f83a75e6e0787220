/* SPDX-License-Identifier: MIT */
/* caps, probe_slot and probe_guest: the capability report of every kernel, line by line */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "unit.h"

#include "base/error.h"
#include "caps/caps.h"

/*
 * The answers, one letter a line: y, n or ?. In the order of enum gmem_cap:
 * what KVM says, what trying proves, what the host is.
 *
 *   K kvm  2 user-memory2  F memory-fault-info  A memory-attributes
 *   G guest-memfd  T vm-types  P pre-fault  C create-flags  M memslots
 *   S address-spaces  R readonly
 *   c create  b bind  h host-access  p private-memory  i in-place
 *   d dirty-log  a address-bits  g guest-uses-file
 *   A architecture  P page-size  N numa-nodes  p numa-policy  u io-uring
 */
static const struct {
	const char *kernel;
	const char *answers;
} reports[] = {
	/*                 K2FAGTPCMSR cbhpidag APNpu */
	{ "6.1",          "ynnnnnnnyyy nnnn?yyn yynny" },
	{ "6.12",         "yyynnyynyyy nnnn?yyn yynny" },
	{ "6.17",         "yyynnyynyyy nnnn?yyn yynny" },
	{ "6.12-sev",     "yyynnyynyyy ynnn?yyn yynny" },
	{ "6.17-sev",     "yyynnyynyyy ynnn?yyn yynny" },
	{ "6.12-swp-t0",  "yyynnyynyyy ynnn?yyn yynny" },
	{ "6.12-swp-t1",  "yyyyyyynyyy yyny?yyy yynny" },
	{ "6.18-rc1",     "yyynyyynyyy yynn?yyn yynny" },
	{ "6.18",         "yyynyyyyyyy yyyn?yyy yynny" },
	{ "6.18-swp-t0",  "yyynyyyyyyy yyyn?yyy yynny" },
	{ "6.18-swp-t1",  "yyyyyyyyyyy yyny?yyy yynny" },
	{ "6.19",         "yyynyyyyyyy yyyn?yyy yynyy" },
	{ "7.2",          "yyynyyyyyyy yyyn?yyy yynyy" },
	{ "7.3-swp-t0",   "yyynyyyyyyy yyyn?yyy yynyy" },
	{ "7.3-swp-t1",   "yyyyyyyyyyy yyny?yyy yynyy" },
	{ "7.3-npt0",     "yyynyynyyyy yyyn?yyn yynyy" },
	{ "6.18-pvm",     "yyynyynyyyy yyyn?yyn yynny" },
	{ "arm64-6.17",   "yynnn?nnyyy nnnn?yyn yynny" },
	{ "arm64-6.18",   "yy?ny?nyyyy yyyn?yy? yynny" },
	{ "arm64-7.3-4k", "yy?ny?nyyyy yyyn?yy? yynyy" },
	{ "arm64-7.3-16k", "yy?ny?nyyyy yyyn?yy? yynyy" },
	{ "arm64-7.3-64k", "yy?ny?nyyyy yyyn?yy? yynyy" },
	{ "future-t0",    "yyynyyyyyyy yyyn?yyy yynyy" },
	{ "future-t1",    "yyyyyyyyyyy yyyy?yyy yynyy" },
	{ "negative",     "ynnnnnnnyyn nnnn?yyn yynny" },
};

static char letter_of(uint32_t answer)
{
	return answer == GMEM_YES ? 'y' : answer == GMEM_NO ? 'n' : '?';
}

/* A sound line: names, a reason, and a remedy exactly where the answer is no */
static void check_line(const char *kernel, const struct gmem_finding *f)
{
	if (!f->name || !f->title || !f->reason || !*f->name || !*f->title || !*f->reason)
		fail_msg("%s: a line without name, title or reason", kernel);
	if (strchr(f->reason, '\n') || strchr(f->title, '\n'))
		fail_msg("%s: %s has a newline", kernel, f->name);
	if (f->answer > GMEM_YES || f->has_value > 1)
		fail_msg("%s: %s answers %u", kernel, f->name, f->answer);
	if (f->answer == GMEM_NO && (!f->remedy || !*f->remedy))
		fail_msg("%s: %s says no without a remedy", kernel, f->name);
	if (f->answer != GMEM_NO && f->remedy)
		fail_msg("%s: %s has a remedy for nothing", kernel, f->name);
	if (!f->has_value && f->value)
		fail_msg("%s: %s has a value that means nothing", kernel, f->name);
}

static void check_report(const char *kernel, const struct gmem_caps *caps,
			 const char *answers)
{
	struct gmem_finding f;
	uint32_t cap = 0;
	bool same = true;
	const char *p;

	for (p = answers; *p; p++) {
		if (*p == ' ')
			continue;
		assert_ok(gmem_caps_get(caps, cap++, &f));
		check_line(kernel, &f);
		if (letter_of(f.answer) != *p) {
			print_error("%s: %s is '%c' (%s), not '%c'\n", kernel, f.name,
				    letter_of(f.answer), f.reason, *p);
			same = false;
		}
	}
	assert_int_equal(cap, GMEM_CAP_COUNT);
	assert_int_equal(gmem_caps_get(caps, cap, &f), -ENOENT);
	assert_true(same);
}

static struct gmem_caps *report(int vm_fd, uint64_t flags)
{
	GMEM_OPTS(gmem_caps_opts, opts, .flags = flags, .vm_type = fake.vm_type);
	struct gmem_caps *caps = NULL;

	assert_ok(gmem_caps_new(vm_fd, &opts, &caps));
	return caps;
}

/* The report of a VM on this kernel; both live until free_and_halt(). */
static struct gmem_caps *boot_and_report(const char *kernel, uint64_t flags, int *ret_fd)
{
	fake_boot(kernel);
	*ret_fd = fake_new_vm();
	return report(*ret_fd, flags);
}

static void free_and_halt(struct gmem_caps *caps, int fd)
{
	gmem_caps_free(caps);
	fake_close(fd);
	assert_int_equal(fake_halt(), 0);
}

static struct gmem_finding line_of(const struct gmem_caps *caps, enum gmem_cap cap)
{
	struct gmem_finding f;

	assert_ok(gmem_caps_get(caps, cap, &f));
	return f;
}

#define PROVEN	(GMEM_CAPS_RUN_GUEST | GMEM_CAPS_VM_TYPE)

static void report_says_what_each_kernel_can_do(void **state)
{
	struct gmem_caps *caps;
	size_t i;
	int fd;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(reports); i++) {
		caps = boot_and_report(reports[i].kernel, PROVEN, &fd);
		check_report(reports[i].kernel, caps, reports[i].answers);
		free_and_halt(caps, fd);
	}
}

static void every_kernel_has_a_row(void **state)
{
	size_t i, j;

	(void)state;
	for (i = 0; i < fake_kernel_count; i++) {
		for (j = 0; j < ARRAY_SIZE(reports); j++)
			if (strcmp(reports[j].kernel, fake_kernels[i].name) == 0)
				break;
		if (j == ARRAY_SIZE(reports) && !fake_kernels[i].kvm_errno)
			fail_msg("no expected report of %s", fake_kernels[i].name);
	}
}

static int64_t at_least(int value, int least)
{
	return value < least ? least : value;
}

/* The create flags worth proving: those of shared memory, where both are offered */
static int64_t tried_flags(void)
{
	return fake.vm.create_flags > 0 && (fake.vm.create_flags & 3) == 3 ? 3 : 0;
}

static void check_value(const struct gmem_caps *caps, enum gmem_cap cap, int64_t expected)
{
	struct gmem_finding f = line_of(caps, cap);

	if (f.has_value != 1 || f.value != expected)
		fail_msg("%s: value of %s is %lld (%u), not %lld", fake.name, f.name,
			 (long long)f.value, f.has_value, (long long)expected);
}

static void report_has_the_numbers(void **state)
{
	struct gmem_caps *caps;
	size_t i;
	int fd;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(reports); i++) {
		caps = boot_and_report(reports[i].kernel, 0, &fd);
		check_value(caps, GMEM_CAP_MEMORY_ATTRIBUTES,
			    at_least(fake.vm.memory_attributes, 0));
		check_value(caps, GMEM_CAP_CREATE_FLAGS, at_least(fake.vm.create_flags, 0));
		check_value(caps, GMEM_CAP_VM_TYPES, at_least(fake.vm.vm_types, 0));
		check_value(caps, GMEM_CAP_MEMSLOTS, fake.vm.memslots);
		check_value(caps, GMEM_CAP_ADDRESS_SPACES,
			    at_least(fake.vm.address_spaces, 1));
		check_value(caps, GMEM_CAP_ADDRESS_BITS, fake.address_bits);
		check_value(caps, GMEM_CAP_PAGE_SIZE, (int64_t)fake.page_size);
		check_value(caps, GMEM_CAP_NUMA_NODES, 1);
		if (line_of(caps, GMEM_CAP_CREATE).answer == GMEM_YES)
			check_value(caps, GMEM_CAP_CREATE, tried_flags());
		assert_string_equal(line_of(caps, GMEM_CAP_ARCHITECTURE).reason,
				    fake.arm64 ? "arm64" : "x86_64");
		gmem_caps_free(caps);
		fake_close(fd);
	}
	fake_halt();
}

static void names_are_stable(void **state)
{
	static const char *const names[GMEM_CAP_COUNT] = {
		"kvm", "user-memory2", "memory-fault-info", "memory-attributes",
		"guest-memfd", "vm-types", "pre-fault", "create-flags", "memslots",
		"address-spaces", "readonly", "create", "bind", "host-access",
		"private-memory", "in-place", "dirty-log", "address-bits",
		"guest-uses-file", "architecture", "page-size", "numa-nodes",
		"numa-policy", "io-uring",
	};
	struct gmem_caps *caps;
	uint32_t i;

	(void)state;
	fake_boot("6.18");
	caps = report(GMEM_NO_VM, 0);
	for (i = 0; i < GMEM_CAP_COUNT; i++)
		assert_string_equal(line_of(caps, i).name, names[i]);
	gmem_caps_free(caps);
	fake_halt();
}

/* ---- without a VM ---- */

static const struct {
	const char *kernel;
	const char *answers;
} host_reports[] = {
	/*                 K2FAGTPCMSR cbhpidag APNpu */
	{ "6.1",          "ynnnnnnnyyy ???n???? yyn?y" },
	{ "6.12",         "yyynny?nyyy ???n???? yyn?y" },
	{ "6.12-sev",     "yyy??y?nyyy ???????? yyn?y" },
	{ "6.18",         "yyyn?y??yyy ???n???? yyn?y" },
	{ "7.3-swp-t1",   "yyy??y??yyy ???????? yyn?y" },
	{ "arm64-7.3-4k", "yy?n??n?yyy ???n???? yyn?y" },
	{ "no-kvm",       "nnnnnnnnnnn nnnn?nnn yyn?y" },
};

static void report_without_a_vm_leaves_open_what_only_a_vm_answers(void **state)
{
	struct gmem_caps *caps;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(host_reports); i++) {
		fake_boot(host_reports[i].kernel);
		caps = report(GMEM_NO_VM, 0);
		check_report(host_reports[i].kernel, caps, host_reports[i].answers);
		gmem_caps_free(caps);
		assert_int_equal(fake_halt(), 0);
	}
}

static void report_without_permission_says_how_to_get_it(void **state)
{
	struct gmem_caps *caps;
	uint32_t i;
	struct gmem_finding f;

	(void)state;
	fake_boot("6.18");
	fake.kvm_errno = -EACCES;
	caps = report(GMEM_NO_VM, 0);
	f = line_of(caps, GMEM_CAP_KVM);
	assert_int_equal(f.answer, GMEM_NO);
	assert_non_null(strstr(f.remedy, "group kvm"));
	for (i = 0; gmem_caps_get(caps, i, &f) == 0; i++)
		check_line("without permission", &f);
	/* what could not be asked is unknown, not absent */
	assert_int_equal(line_of(caps, GMEM_CAP_GUEST_MEMFD).answer, GMEM_UNKNOWN);
	gmem_caps_free(caps);
	fake_halt();
}

static void limit_on_file_descriptors_says_nothing_of_kvm(void **state)
{
	struct gmem_finding f;
	struct gmem_caps *caps;

	(void)state;
	fake_boot("6.18");
	fake.kvm_errno = -EMFILE;
	fake_set_limit(RLIMIT_NOFILE, 9);
	caps = report(GMEM_NO_VM, 0);
	check_report("limit", caps, "??????????? ???????? yyn?y");
	f = line_of(caps, GMEM_CAP_KVM);
	assert_non_null(strstr(f.reason, "EMFILE: RLIMIT_NOFILE is 9"));
	gmem_caps_free(caps);
	fake_halt();
}

static void report_distrusts_another_api_version(void **state)
{
	struct gmem_finding f;
	struct gmem_caps *caps;
	uint32_t i;

	(void)state;
	fake_boot("6.18");
	fake.api_version = 11;
	caps = report(GMEM_NO_VM, 0);
	check_value(caps, GMEM_CAP_KVM, 11);
	assert_int_equal(line_of(caps, GMEM_CAP_KVM).answer, GMEM_NO);
	assert_int_not_equal(line_of(caps, GMEM_CAP_GUEST_MEMFD).answer, GMEM_YES);
	for (i = 0; gmem_caps_get(caps, i, &f) == 0; i++)
		check_line("another API version", &f);
	gmem_caps_free(caps);
	fake_halt();
}

static void report_without_a_vm_uses_the_kvm_fd_it_is_given(void **state)
{
	GMEM_OPTS(gmem_caps_opts, opts, .flags = GMEM_CAPS_KVM_FD);
	struct gmem_caps *caps = NULL;

	(void)state;
	fake_boot("6.18");
	opts.kvm_fd = fake_new_kvm();
	assert_ok(gmem_caps_new(GMEM_NO_VM, &opts, &caps));
	check_value(caps, GMEM_CAP_KVM, 12);
	assert_int_equal(fake_count(FAKE_OPEN), 0);
	gmem_caps_free(caps);
	fake_close(opts.kvm_fd);
	assert_int_equal(fake_halt(), 0);
}

/* ---- how it asks ---- */

static void report_leaves_nothing_behind(void **state)
{
	struct fake_snapshot *before;
	size_t i;
	int fd;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(reports); i++) {
		fake_boot(reports[i].kernel);
		fd = fake_new_vm();
		assert_ok(fake_add_slot(fd, 5, 0, fake.page_size));
		before = fake_snapshot();
		gmem_caps_free(report(fd, PROVEN));
		assert_true(fake_equal(before));
		assert_int_equal(fake_complaints(), 0);
		fake_close(fd);
		assert_int_equal(fake_halt(), 0);
	}
}

static void report_without_self_test_only_asks(void **state)
{
	struct gmem_caps *caps;
	int fd;

	(void)state;
	caps = boot_and_report("6.18", GMEM_CAPS_NO_SELFTEST, &fd);
	check_report("6.18 untried", caps, "yyynyyyyyyy ???n???? yyn?y");
	assert_int_equal(fake_count(FAKE_CREATE_GMEMFD), 0);
	assert_int_equal(fake_count(FAKE_SET_SLOT), 0);
	assert_int_equal(fake_count(FAKE_SET_SLOT2), 0);
	assert_int_equal(fake_count(FAKE_DELETE_SLOT), 0);
	assert_int_equal(fake_count(FAKE_CREATE_VM), 0);
	free_and_halt(caps, fd);
}

static void guest_runs_only_when_asked(void **state)
{
	struct gmem_caps *caps;
	int fd;

	(void)state;
	caps = boot_and_report("6.18", 0, &fd);
	assert_int_equal(line_of(caps, GMEM_CAP_GUEST_USES_FILE).answer, GMEM_UNKNOWN);
	assert_int_equal(fake_count(FAKE_CREATE_VM), 0);
	free_and_halt(caps, fd);
}

/* A VM in use: its topmost slot numbers and addresses are taken */
static void self_test_steps_around_what_is_there(void **state)
{
	struct fake_snapshot *before;
	struct gmem_caps *caps;
	uint64_t top;
	int fd;

	(void)state;
	fake_boot("6.18");
	fd = fake_new_vm();
	top = (uint64_t)1 << fake.address_bits;
	assert_ok(fake_add_slot(fd, 32763, 0, fake.page_size));
	assert_ok(fake_add_slot(fd, 32762, top - fake.page_size, fake.page_size));
	assert_ok(fake_add_slot(fd, 32761, top - 2 * fake.page_size, fake.page_size));
	before = fake_snapshot();
	caps = report(fd, 0);
	assert_true(fake_equal(before));
	check_report("6.18 in use", caps, "yyynyyyyyyy yyyn?yy? yynny");
	check_value(caps, GMEM_CAP_ADDRESS_BITS, fake.address_bits);
	free_and_halt(caps, fd);
}

static void io_uring_may_be_forbidden_or_absent(void **state)
{
	static const struct {
		int err;
		uint32_t answer;
	} cases[] = {
		{ 0, GMEM_YES },
		{ -EPERM, GMEM_NO },
		{ -EACCES, GMEM_NO },
		{ -ENOSYS, GMEM_NO },
		{ -ENOMEM, GMEM_UNKNOWN },
	};
	struct gmem_finding f;
	struct gmem_caps *caps;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		fake_boot("6.18");
		fake.io_uring = cases[i].err;
		caps = report(GMEM_NO_VM, 0);
		f = line_of(caps, GMEM_CAP_IO_URING);
		assert_int_equal(f.answer, cases[i].answer);
		check_line("io_uring", &f);
		gmem_caps_free(caps);
	}
	fake_halt();
}

static void nodes_are_counted_where_sys_lists_them(void **state)
{
	static const struct {
		unsigned nodes;
		uint32_t answer;
	} cases[] = { { 0, GMEM_UNKNOWN }, { 1, GMEM_NO }, { 2, GMEM_YES }, { 8, GMEM_YES } };
	struct gmem_finding f;
	struct gmem_caps *caps;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		fake_boot("6.18");
		fake.nodes = cases[i].nodes;
		caps = report(GMEM_NO_VM, 0);
		f = line_of(caps, GMEM_CAP_NUMA_NODES);
		assert_int_equal(f.answer, cases[i].answer);
		assert_int_equal(f.value, cases[i].nodes);
		check_line("nodes", &f);
		gmem_caps_free(caps);
	}
	fake_halt();
}

/* Old kernels do not count them: there were 32 memslots and one address space. */
static void counts_that_are_absent_are_the_oldest_kernel_s(void **state)
{
	static const int absent[] = { 0, -1, -EINVAL };
	struct gmem_caps *caps;
	size_t i;
	int fd;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(absent); i++) {
		fake_boot("6.1");
		fake.vm.memslots = absent[i];
		fake.vm.address_spaces = absent[i];
		fd = fake_new_vm();
		caps = report(fd, GMEM_CAPS_NO_SELFTEST);
		check_value(caps, GMEM_CAP_MEMSLOTS, 32);
		check_value(caps, GMEM_CAP_ADDRESS_SPACES, 1);
		free_and_halt(caps, fd);
	}
}

static void report_names_bits_it_does_not_know(void **state)
{
	struct gmem_caps *caps;
	int fd;

	(void)state;
	caps = boot_and_report("future-t0", 0, &fd);
	assert_non_null(strstr(line_of(caps, GMEM_CAP_CREATE_FLAGS).reason, "0x4"));
	free_and_halt(caps, fd);
}

static void refusal_names_a_kernel_that_would_do(void **state)
{
	struct gmem_caps *caps;
	int fd;

	(void)state;
	caps = boot_and_report("6.12", 0, &fd);
	assert_non_null(strstr(line_of(caps, GMEM_CAP_GUEST_MEMFD).remedy, "6.18"));
	assert_non_null(strstr(line_of(caps, GMEM_CAP_CREATE_FLAGS).remedy, "6.18"));
	free_and_halt(caps, fd);
}

/* ---- guests that do not run ---- */

static struct gmem_caps *report_of_type(int vm_fd, uint64_t type)
{
	GMEM_OPTS(gmem_caps_opts, opts, .flags = PROVEN, .vm_type = type);
	struct gmem_caps *caps = NULL;

	assert_ok(gmem_caps_new(vm_fd, &opts, &caps));
	return caps;
}

static int plan_of(const struct gmem_caps *caps, uint32_t backing)
{
	GMEM_OPTS(gmem_request, request, .backings = { backing });
	struct gmem_plan *plan;
	int err = gmem_plan_new(caps, &request, &plan);

	if (!err)
		gmem_plan_free(plan);
	return err;
}

/* The kernel takes their memory from the host, which dies if it looks, or refuses to run them. */
static void no_guest_is_run_whose_memory_is_protected(void **state)
{
	static const struct {
		const char *kernel;
		uint64_t type;
		const char *name;
	} types[] = {
		{ "6.18", 2, "SEV" }, { "6.18", 3, "SEV-ES" }, { "7.3-swp-t1", 4, "SNP" },
		{ "7.3-swp-t1", 5, "TDX" }, { "6.18", 6, "such" }, { "6.18", UINT64_MAX, "such" },
		{ "arm64-7.3-4k", (UINT64_C(1) << 31) + 40, NULL }, { "arm64-6.18", 1 << 9, "such" },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(types); i++) {
		struct gmem_caps *caps;
		struct gmem_finding f;
		unsigned vms;
		int fd;

		fake_boot(types[i].kernel);
		fd = fake_new_vm();
		vms = fake_count(FAKE_CREATE_VM);
		caps = report_of_type(fd, types[i].type);
		assert_int_equal(fake_count(FAKE_CREATE_VM), vms);
		f = line_of(caps, GMEM_CAP_GUEST_USES_FILE);
		check_line(types[i].kernel, &f);
		assert_int_not_equal(f.answer, GMEM_YES);
		if (types[i].name)
			assert_non_null(strstr(f.reason, types[i].name));
		free_and_halt(caps, fd);
	}
}

static void pkvm_guests_are_not_backed_by_a_file(void **state)
{
	struct gmem_caps *caps;
	struct gmem_finding f;
	int fd;

	(void)state;
	fake_boot("arm64-7.3-4k");
	fd = fake_new_vm();
	caps = report_of_type(fd, UINT64_C(1) << 31);
	f = line_of(caps, GMEM_CAP_GUEST_MEMFD);
	check_line("pKVM", &f);
	assert_int_equal(f.answer, GMEM_NO);
	assert_non_null(strstr(f.reason, "pKVM"));
	assert_int_equal(plan_of(caps, GMEM_BACKING_SHARED), -EOPNOTSUPP);
	assert_int_equal(plan_of(caps, GMEM_BACKING_MAPPED), -EOPNOTSUPP);
	assert_ok(plan_of(caps, GMEM_BACKING_HOST));
	free_and_halt(caps, fd);

	/* Its type was not told, but such a VM has no read-only memslots. */
	fake_boot("arm64-7.3-4k");
	fake.vm.readonly = 0;
	fd = fake_new_vm();
	fake_fail_kind(FAKE_SET_SLOT, 13, 1, -EPERM);
	caps = report(fd, 0);
	assert_int_equal(plan_of(caps, GMEM_BACKING_SHARED), -EOPNOTSUPP);
	assert_ok(plan_of(caps, GMEM_BACKING_HOST));
	/* what it refuses is no policy's */
	f = line_of(caps, GMEM_CAP_DIRTY_LOG);
	assert_int_equal(f.answer, GMEM_NO);
	assert_null(strstr(f.remedy, "SELinux"));
	free_and_halt(caps, fd);
}

static void file_that_stops_the_guest_backs_none(void **state)
{
	static const int errors[] = { -EIO, -EFAULT, -EINVAL, -ENOEXEC };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(errors); i++) {
		struct gmem_caps *caps;
		struct gmem_finding f;
		int fd;

		fake_boot("6.18");
		fd = fake_new_vm();
		fake_fail_kind(FAKE_RUN, 0, 1, errors[i]);
		caps = report(fd, PROVEN);
		f = line_of(caps, GMEM_CAP_GUEST_USES_FILE);
		check_line("stopped", &f);
		assert_int_equal(f.answer, GMEM_NO);
		assert_non_null(strstr(f.reason, gmem_errno_name(errors[i])));
		assert_int_equal(plan_of(caps, GMEM_BACKING_SHARED), -EOPNOTSUPP);
		assert_ok(plan_of(caps, GMEM_BACKING_MAPPED));
		free_and_halt(caps, fd);
	}
}

static void guest_that_never_runs_says_nothing_of_the_file(void **state)
{
	struct gmem_caps *caps;
	struct gmem_finding f;
	int fd;

	(void)state;
	fake_boot("6.18");
	fd = fake_new_vm();
	fake_fail_kind(FAKE_RUN, 0, 2, -EIO);
	caps = report(fd, PROVEN);
	f = line_of(caps, GMEM_CAP_GUEST_USES_FILE);
	assert_int_equal(f.answer, GMEM_UNKNOWN);
	assert_non_null(strstr(f.reason, "EIO"));
	assert_int_equal(line_of(caps, GMEM_CAP_BIND).answer, GMEM_YES);
	free_and_halt(caps, fd);

	/* a signal is no answer */
	fake_boot("6.18");
	fd = fake_new_vm();
	fake_fail_kind(FAKE_RUN, 0, 3, -EINTR);
	caps = report(fd, PROVEN);
	assert_int_equal(line_of(caps, GMEM_CAP_GUEST_USES_FILE).answer, GMEM_YES);
	free_and_halt(caps, fd);
}

/* ---- remedies ---- */

static void policy_is_named_where_it_refuses(void **state)
{
	static const struct {
		enum fake_call call;
		enum gmem_cap cap;
	} calls[] = {
		{ FAKE_CREATE_GMEMFD, GMEM_CAP_CREATE },
		{ FAKE_MBIND, GMEM_CAP_NUMA_POLICY },
		{ FAKE_IO_URING, GMEM_CAP_IO_URING },
	};

	(void)state;
	for (size_t i = 0; i < 2 * ARRAY_SIZE(calls); i++) {
		struct gmem_caps *caps;
		struct gmem_finding f;
		int fd;

		fake_boot("7.3-swp-t0");
		fd = fake_new_vm();
		fake_fail_kind(calls[i / 2].call, 0, 1, i % 2 ? -EACCES : -EPERM);
		caps = report(fd, 0);
		f = line_of(caps, calls[i / 2].cap);
		check_line("policy", &f);
		assert_int_equal(f.answer, GMEM_NO);
		assert_non_null(strstr(f.remedy, "SELinux"));
		assert_null(strstr(f.remedy, "6.1"));
		free_and_halt(caps, fd);
	}
}

static void a_filter_may_hide_mbind(void **state)
{
	struct gmem_finding finding;
	struct gmem_caps *caps;
	int fd;

	(void)state;
	fake_boot("7.2");
	fd = fake_new_vm();
	fake_fail_kind(FAKE_MBIND, 0, 1, -ENOSYS);
	caps = report(fd, 0);
	assert_ok(gmem_caps_get(caps, GMEM_CAP_NUMA_POLICY, &finding));
	assert_int_equal(finding.answer, GMEM_NO);
	assert_non_null(strstr(finding.remedy, "seccomp"));
	free_and_halt(caps, fd);
}

static void policy_that_forbids_mbind_forbids_numa_to_all_memory(void **state)
{
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_HOST }, .needs = GMEM_NEED_NUMA);
	struct gmem_plan *plan;
	struct gmem_caps *caps;
	int fd;

	(void)state;
	fake_boot("6.18");
	fd = fake_new_vm();
	fake_fail_kind(FAKE_MBIND, 0, 1, -EPERM);
	caps = report(fd, 0);
	assert_int_equal(gmem_plan_new(caps, &request, &plan), -EOPNOTSUPP);
	assert_non_null(strstr(gmem_last_error(), "mbind(2)"));
	free_and_halt(caps, fd);
}

/* It would be in core dumps: no plan is made for what an add refuses. Host memory may do without. */
static void policy_that_forbids_madvise_leaves_host_memory(void **state)
{
	static const uint32_t mapped[] = { GMEM_BACKING_SHARED, GMEM_BACKING_MAPPED };
	static const int errors[] = { -EPERM, -EACCES, -ENOSYS };

	(void)state;
	for (size_t backing = 0; backing < ARRAY_SIZE(mapped); backing++) {
		for (size_t i = 0; i < ARRAY_SIZE(errors); i++) {
			GMEM_OPTS(gmem_request, request, .backings = { mapped[backing] });
			struct gmem_plan *plan;
			struct gmem_caps *caps;
			int fd;

			fake_boot("6.18");
			fd = fake_new_vm();
			fake_fail_kind(FAKE_MADVISE, 0, 1, errors[i]);
			caps = report(fd, 0);
			assert_int_equal(gmem_plan_new(caps, &request, &plan), -EOPNOTSUPP);
			assert_non_null(strstr(gmem_last_error(), "MADV_DONTDUMP is refused"));
			request.backings[1] = GMEM_BACKING_HOST;
			assert_ok(gmem_plan_new(caps, &request, &plan));
			assert_int_equal(gmem_plan_backing(plan), GMEM_BACKING_HOST);
			gmem_plan_free(plan);
			free_and_halt(caps, fd);
		}
	}
}

static void missing_kvm_has_the_remedy_of_its_cause(void **state)
{
	static const struct {
		const char *kernel, *misc, *remedy;
		int err;
	} cases[] = {
		{ "6.18", NULL, "kvm_intel", -ENOENT },
		{ "6.18", NULL, "kvm_intel", -ENODEV },
		{ "6.18", "232 kvm\n", "/sys/class/misc/kvm/dev", -ENODEV },
		{ "6.18", "232 kvm\n", "/sys/class/misc/kvm/dev", -ENXIO },
		{ "6.18", "229 fuse\n232 kvm\n", "container", -ENOENT },
		{ "arm64-6.18", NULL, "EL2", -ENOENT },
		{ "6.18", NULL, "other hypervisor", -EBUSY },
		{ "6.18", NULL, "usermod -aG kvm $USER", -EACCES },
		{ "6.18", NULL, "container", -EPERM },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct gmem_finding f;
		struct gmem_caps *caps;

		fake_boot(cases[i].kernel);
		fake.kvm_errno = cases[i].err;
		if (cases[i].misc)
			fake_set_file("/proc/misc", cases[i].misc);
		caps = report(GMEM_NO_VM, 0);
		f = line_of(caps, GMEM_CAP_KVM);
		assert_int_equal(f.answer, GMEM_NO);
		assert_non_null(strstr(f.remedy, cases[i].remedy));
		gmem_caps_free(caps);
		fake_halt();
	}
}

static void io_uring_that_is_switched_off_names_the_switch(void **state)
{
	static const char *const values[] = { "0\n", "1\n", "2\n" };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(values); i++) {
		struct gmem_finding f;
		struct gmem_caps *caps;

		fake_boot("6.18");
		fake.io_uring = -EPERM;
		fake_set_file("/proc/sys/kernel/io_uring_disabled", values[i]);
		caps = report(GMEM_NO_VM, 0);
		f = line_of(caps, GMEM_CAP_IO_URING);
		assert_non_null(strstr(f.remedy, i ? "io_uring_disabled" : "seccomp"));
		gmem_caps_free(caps);
		fake_halt();
	}
}

static void vm_types_are_named(void **state)
{
	struct gmem_caps *caps;
	int fd;

	(void)state;
	fake_boot("6.18");
	fake.vm.vm_types = 0x7f;
	fd = fake_new_vm();
	caps = report(fd, GMEM_CAPS_NO_SELFTEST);
	assert_string_equal(line_of(caps, GMEM_CAP_VM_TYPES).reason,
			    "default, sw-protected, SEV, SEV-ES, SNP, TDX, 6");
	free_and_halt(caps, fd);
}

/*
 * What a sentence must be to read well. With GMEM_TEST_SENTENCES set they are printed, to be
 * read aloud.
 */
static void check_sentence(const char *where, const char *what, const char *sentence)
{
	static const char *const bad[] = { "  ", "no VM here has no", ": :", "::", "?", "(null)" };
	static const char *const verbs[] = { "allow", "boot", "create", "give", "join", "load", "make",
					     "run", "set", "stop", "use", "wait" };
	size_t length = strlen(sentence), i;
	bool is_verb = false;

	for (i = 0; i < ARRAY_SIZE(bad); i++)
		if (strstr(sentence, bad[i]))
			fail_msg("%s: \"%s\" has \"%s\"", where, sentence, bad[i]);
	if (length < 4 || length >= sizeof(((struct gmem_line *)NULL)->reason) - 1 ||
	    strchr(".:, ", sentence[length - 1]))
		fail_msg("%s: \"%s\" ends like this", where, sentence);
	for (i = 0; i < ARRAY_SIZE(verbs); i++)
		is_verb |= strncmp(sentence, verbs[i], strlen(verbs[i])) == 0;
	if (strcmp(what, "remedy") == 0 && !is_verb)
		fail_msg("%s: \"%s\" says not what to do", where, sentence);
	if (getenv("GMEM_TEST_SENTENCES"))
		printf("# %s: %s: %s\n", where, what, sentence);
}

static void check_sentences(const struct gmem_caps *caps)
{
	static const uint64_t needs[] = { 0, GMEM_NEED_HOST_ACCESS, GMEM_NEED_CONVERSION,
					  GMEM_NEED_DIRTY_LOG, GMEM_NEED_NUMA, GMEM_NEED_READONLY };
	struct gmem_finding f;

	for (uint32_t i = 0; gmem_caps_get(caps, i, &f) == 0; i++) {
		check_sentence(f.name, f.answer == GMEM_YES ? "yes" : f.answer == GMEM_NO ? "no" : "unknown", f.reason);
		if (f.remedy)
			check_sentence(f.name, "remedy", f.remedy);
	}
	for (uint32_t i = 0; caps->has_vm && i < ARRAY_SIZE(needs) * 20; i++) {
		GMEM_OPTS(gmem_request, request, .backings = { 1 + i % 5 }, .needs = needs[i / 20],
			  .required_flags = i / 5 % 4);
		struct gmem_plan *plan;

		if (gmem_plan_new(caps, &request, &plan))
			check_sentence("plan", "refused", gmem_last_error());
		else
			gmem_plan_free(plan);
	}
}

static void sentences_read_well_whatever_the_kernel(void **state)
{
	static const int errors[] = { 0, -EACCES, -EIO, -EMFILE, -ENOENT };

	(void)state;
	for (size_t k = 0; k < fake_kernel_count; k++) {
		for (size_t i = 0; i < ARRAY_SIZE(errors) * 4; i++) {
			static const enum fake_call calls[] = { FAKE_CREATE_GMEMFD, FAKE_SET_SLOT, FAKE_RUN,
								FAKE_FILESYSTEM_TYPE };
			struct gmem_caps *caps = NULL;
			int fd;

			fake_boot(fake_kernels[k].name);
			fake.kvm_errno = i % 4 ? 0 : errors[i / 4];
			caps = report(GMEM_NO_VM, 0);
			check_sentences(caps);
			gmem_caps_free(caps);
			fake.kvm_errno = fake_kernels[k].kvm_errno;
			if (!fake.kvm_errno) {
				GMEM_OPTS(gmem_caps_opts, opts, .flags = PROVEN, .vm_type = fake.vm_type);

				fd = fake_new_vm();
				if (errors[i / 4])
					fake_fail_kind(calls[i % 4], 0, 1, errors[i / 4]);
				if (gmem_caps_new(fd, &opts, &caps) == 0) {
					check_sentences(caps);
					gmem_caps_free(caps);
				}
				fake_close(fd);
			}
			fake_halt();
		}
	}
}

/* ---- bad input ---- */

static void report_rejects_bad_arguments(void **state)
{
	GMEM_OPTS(gmem_caps_opts, opts, .flags = 0);
	struct gmem_caps *caps = UNTOUCHED(struct gmem_caps);
	struct gmem_finding f = { .name = "mine" };
	int fd, kvm_fd, other, bit;

	(void)state;
	fake_boot("6.18");
	fd = fake_new_vm();
	kvm_fd = fake_new_kvm();
	other = dup(STDERR_FILENO);

	assert_refused(-EINVAL, "NULL", gmem_caps_new(fd, NULL, NULL));
	for (bit = 4; bit < 64; bit++) {
		opts.flags = (uint64_t)1 << bit;
		assert_refused(-EINVAL, "flags", gmem_caps_new(fd, &opts, &caps));
	}
	opts.flags = 0;
	opts.reserved = 1;
	assert_refused(-EINVAL, "reserved", gmem_caps_new(fd, &opts, &caps));
	assert_refused(-EINVAL, "/dev/kvm", gmem_caps_new(kvm_fd, NULL, &caps));
	assert_refused(-EBADF, "-2", gmem_caps_new(-2, NULL, &caps));
	assert_refused(-EBADF, "900", gmem_caps_new(900, NULL, &caps));
	assert_refused(-ENOTTY, "", gmem_caps_new(other, NULL, &caps));
	assert_ptr_equal(caps, UNTOUCHED(struct gmem_caps));

	assert_refused(-EINVAL, "NULL", gmem_caps_get(NULL, 0, &f));
	caps = report(fd, 0);
	assert_refused(-EINVAL, "NULL", gmem_caps_get(caps, 0, NULL));
	assert_refused(-ENOENT, "24", gmem_caps_get(caps, GMEM_CAP_COUNT, &f));
	assert_refused(-ENOENT, "4294967295", gmem_caps_get(caps, UINT32_MAX, &f));
	assert_string_equal(f.name, "mine");
	gmem_caps_free(caps);
	gmem_caps_free(NULL);

	close(other);
	fake_close(kvm_fd);
	fake_close(fd);
	assert_int_equal(fake_halt(), 0);
}

static void report_of_a_dead_vm_is_eio(void **state)
{
	struct gmem_caps *caps = UNTOUCHED(struct gmem_caps);
	int fd;

	(void)state;
	fake_boot("6.18");
	fd = fake_new_vm();
	fake_kill_vm(fd);
	assert_refused(-EIO, "", gmem_caps_new(fd, NULL, &caps));
	assert_ptr_equal(caps, UNTOUCHED(struct gmem_caps));
	fake_close(fd);
	assert_int_equal(fake_halt(), 0);
}

/* What came to the address of a memslot that KVM keeps would be the guest's memory. */
static void page_of_a_memslot_that_kvm_keeps_stays(void **state)
{
	struct gmem_caps *caps = NULL;
	struct fake_slot slot;
	int vm_fd;

	(void)state;
	fake_boot("6.18");
	vm_fd = fake_new_vm();
	fake_fail_kind(FAKE_DELETE_SLOT, 0, 3, -ENOMEM);
	if (gmem_caps_new(vm_fd, NULL, &caps) == 0)
		gmem_caps_free(caps);
	assert_true(fake_fail_struck());
	assert_int_equal(fake_slot_count(vm_fd), 1);
	assert_true(fake_get_slot(vm_fd, 32763, &slot));
	assert_int_equal(fake_protection_at((void *)(uintptr_t)slot.hva), PROT_READ | PROT_WRITE);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(page_of_a_memslot_that_kvm_keeps_stays),
	cmocka_unit_test(report_says_what_each_kernel_can_do),
	cmocka_unit_test(every_kernel_has_a_row),
	cmocka_unit_test(report_has_the_numbers),
	cmocka_unit_test(names_are_stable),
	cmocka_unit_test(report_without_a_vm_leaves_open_what_only_a_vm_answers),
	cmocka_unit_test(report_without_permission_says_how_to_get_it),
	cmocka_unit_test(limit_on_file_descriptors_says_nothing_of_kvm),
	cmocka_unit_test(report_distrusts_another_api_version),
	cmocka_unit_test(report_without_a_vm_uses_the_kvm_fd_it_is_given),
	cmocka_unit_test(report_leaves_nothing_behind),
	cmocka_unit_test(report_without_self_test_only_asks),
	cmocka_unit_test(guest_runs_only_when_asked),
	cmocka_unit_test(self_test_steps_around_what_is_there),
	cmocka_unit_test(io_uring_may_be_forbidden_or_absent),
	cmocka_unit_test(nodes_are_counted_where_sys_lists_them),
	cmocka_unit_test(counts_that_are_absent_are_the_oldest_kernel_s),
	cmocka_unit_test(report_names_bits_it_does_not_know),
	cmocka_unit_test(refusal_names_a_kernel_that_would_do),
	cmocka_unit_test(no_guest_is_run_whose_memory_is_protected),
	cmocka_unit_test(pkvm_guests_are_not_backed_by_a_file),
	cmocka_unit_test(file_that_stops_the_guest_backs_none),
	cmocka_unit_test(guest_that_never_runs_says_nothing_of_the_file),
	cmocka_unit_test(policy_is_named_where_it_refuses),
	cmocka_unit_test(a_filter_may_hide_mbind),
	cmocka_unit_test(policy_that_forbids_mbind_forbids_numa_to_all_memory),
	cmocka_unit_test(policy_that_forbids_madvise_leaves_host_memory),
	cmocka_unit_test(missing_kvm_has_the_remedy_of_its_cause),
	cmocka_unit_test(io_uring_that_is_switched_off_names_the_switch),
	cmocka_unit_test(vm_types_are_named),
	cmocka_unit_test(sentences_read_well_whatever_the_kernel),
	cmocka_unit_test(report_rejects_bad_arguments),
	cmocka_unit_test(report_of_a_dead_vm_is_eio),
};

UNIT_MAIN(tests)
