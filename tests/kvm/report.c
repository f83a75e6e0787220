/* SPDX-License-Identifier: MIT */
/* The capability report tells the truth about this kernel, and leaves no trace. */
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lab.h"

#define SHARED_FLAGS (GMEM_CREATE_MMAP | GMEM_CREATE_INIT_SHARED)

static struct gmem_finding line(const struct gmem_caps *caps, enum gmem_cap cap)
{
	struct gmem_finding finding;

	OK(gmem_caps_get(caps, cap, &finding));
	return finding;
}

static const char *answer_name(uint32_t answer)
{
	static const char *const names[] = { "unknown", "no", "yes" };

	return answer < ARRAY_SIZE(names) ? names[answer] : "nonsense";
}

static void check_answer(const struct gmem_caps *caps, enum gmem_cap cap, uint32_t wanted)
{
	struct gmem_finding finding = line(caps, cap);

	if (finding.answer != wanted)
		FAIL("%s is \"%s\" (%s), not \"%s\"", finding.name, answer_name(finding.answer),
		     finding.reason, answer_name(wanted));
}

static void check_yes_or_no(const struct gmem_caps *caps, enum gmem_cap cap, bool yes)
{
	check_answer(caps, cap, yes ? GMEM_YES : GMEM_NO);
}

static void check_value(const struct gmem_caps *caps, enum gmem_cap cap, int64_t wanted)
{
	struct gmem_finding finding = line(caps, cap);

	if (!finding.has_value || finding.value != wanted)
		FAIL("%s has %s %lld, not %lld", finding.name,
		     finding.has_value ? "value" : "no value, and", (long long)finding.value,
		     (long long)wanted);
}

/* a line that says yes exactly if its number is not 0 */
static void check_number(const struct gmem_caps *caps, enum gmem_cap cap, int wanted)
{
	check_value(caps, cap, wanted > 0 ? wanted : 0);
	check_yes_or_no(caps, cap, wanted > 0);
}

/* ---- every line ---- */

static void check_form(const struct gmem_finding *finding)
{
	CHECK(finding->name && finding->name[0]);
	CHECK_EQ(strspn(finding->name, "abcdefghijklmnopqrstuvwxyz0123456789-"),
		 strlen(finding->name));
	CHECK(finding->title && finding->title[0]);
	CHECK(finding->reason && finding->reason[0]);
	CHECK(finding->answer <= GMEM_YES);
	/* every "no" says what would change it */
	if ((finding->answer == GMEM_NO) != (finding->remedy != NULL))
		FAIL("%s is \"%s\" with remedy \"%s\"", finding->name, answer_name(finding->answer),
		     finding->remedy ? finding->remedy : "(none)");
}

static void check_forms(const struct gmem_caps *caps)
{
	struct gmem_finding finding;

	for (uint32_t cap = 0; cap < GMEM_CAP_COUNT; cap++) {
		finding = line(caps, cap);
		check_form(&finding);
		for (uint32_t other = 0; other < cap; other++)
			CHECK(strcmp(finding.name, line(caps, other).name) != 0);
	}
	REFUSED(gmem_caps_get(caps, GMEM_CAP_COUNT, &finding), -ENOENT);
	REFUSED(gmem_caps_get(caps, UINT32_MAX, &finding), -ENOENT);
}

/* ---- what KVM says ---- */

static void check_kvm_says(const struct gmem_caps *caps, const struct expect_vm *vm)
{
	check_answer(caps, GMEM_CAP_KVM, GMEM_YES);
	check_number(caps, GMEM_CAP_USER_MEMORY2, vm->user_memory2);
	check_number(caps, GMEM_CAP_MEMORY_ATTRIBUTES, vm->attributes);
	check_number(caps, GMEM_CAP_GUEST_MEMFD, vm->guest_memfd);
	check_number(caps, GMEM_CAP_PRE_FAULT, vm->pre_fault);
	check_number(caps, GMEM_CAP_CREATE_FLAGS, vm->create_flags);
	check_number(caps, GMEM_CAP_MEMSLOTS, vm->memslots);
	check_number(caps, GMEM_CAP_ADDRESS_SPACES, vm->address_spaces > 1 ? vm->address_spaces : 1);
	check_answer(caps, GMEM_CAP_READONLY, GMEM_YES);
#ifdef __aarch64__
	/* VM types are no mask; the exits come although KVM says they do not. */
	check_answer(caps, GMEM_CAP_VM_TYPES, GMEM_UNKNOWN);
	check_value(caps, GMEM_CAP_MEMORY_FAULT_INFO, 0);
#else
	check_number(caps, GMEM_CAP_VM_TYPES, vm->vm_types);
	check_number(caps, GMEM_CAP_MEMORY_FAULT_INFO, vm->memory_fault_info);
#endif
}

/* ---- what trying it proves ---- */

static bool has_private_memory(const struct expect_vm *vm)
{
	return vm->attributes & (int)KVM_MEMORY_ATTRIBUTE_PRIVATE;
}

static bool has_shared_file(const struct expect_vm *vm)
{
	return vm->backings & (1u << GMEM_BACKING_SHARED);
}

static void check_proven(const struct gmem_caps *caps, const struct expect_vm *vm)
{
	check_yes_or_no(caps, GMEM_CAP_CREATE, vm->creates);
	if (vm->creates)
		check_value(caps, GMEM_CAP_CREATE, has_shared_file(vm) ? SHARED_FLAGS : 0);
	check_yes_or_no(caps, GMEM_CAP_BIND, vm->guest_memfd > 0);
	check_yes_or_no(caps, GMEM_CAP_HOST_ACCESS, has_shared_file(vm));
	check_yes_or_no(caps, GMEM_CAP_PRIVATE_MEMORY, has_private_memory(vm));
	check_answer(caps, GMEM_CAP_DIRTY_LOG, GMEM_YES);
	check_answer(caps, GMEM_CAP_ADDRESS_BITS, GMEM_YES);
	check_yes_or_no(caps, GMEM_CAP_NUMA_POLICY, expect()->mbind_works && vm->creates);
	/* no kernel has it */
	CHECK(line(caps, GMEM_CAP_IN_PLACE).answer != GMEM_YES);
}

static int64_t nodes_online(void)
{
	int64_t count = 0;
	char path[64];

	for (int node = 0; node < 1024; node++) {
		snprintf(path, sizeof(path), "/sys/devices/system/node/node%d", node);
		count += access(path, F_OK) == 0;
	}
	return count;
}

static bool has_io_uring(void)
{
	char params[256] = { 0 };
	int fd = (int)syscall(__NR_io_uring_setup, 1, params);

	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

static void check_host(const struct gmem_caps *caps)
{
#ifdef __aarch64__
	CHECK_STR(line(caps, GMEM_CAP_ARCHITECTURE).reason, "arm64");
#else
	CHECK_STR(line(caps, GMEM_CAP_ARCHITECTURE).reason, "x86_64");
#endif
	check_value(caps, GMEM_CAP_PAGE_SIZE, (int64_t)page_size());
	if (nodes_online())
		check_value(caps, GMEM_CAP_NUMA_NODES, nodes_online());
	else
		check_answer(caps, GMEM_CAP_NUMA_NODES, GMEM_UNKNOWN);
	check_yes_or_no(caps, GMEM_CAP_IO_URING, has_io_uring());
}

static void check_report(int type)
{
	struct machine m;

	machine_new(&m, type);
	check_forms(m.caps);
	check_kvm_says(m.caps, expect_vm(type));
	check_proven(m.caps, expect_vm(type));
	check_host(m.caps);
	if (expect()->address_bits)
		check_value(m.caps, GMEM_CAP_ADDRESS_BITS, expect()->address_bits);
	machine_free(&m);
}

TEST(the_report_is_what_this_kernel_grants)
{
	check_report(DEFAULT_VM);
}

TEST(the_report_is_what_this_kernel_grants_with_private_memory)
{
	check_report(PRIVATE_VM);
}

TEST(private_memory_is_there_where_it_is_expected)
{
	int kvm_fd = open_kvm();

	CHECK_EQ(machine_type_exists(kvm_fd, PRIVATE_VM), expect_vm(PRIVATE_VM)->exists);
	close(kvm_fd);
}

static void check_against_kernel(int type)
{
	static const struct {
		enum gmem_cap line;
		long cap;
	} numbers[] = {
		{ GMEM_CAP_USER_MEMORY2, KVM_CAP_USER_MEMORY2 },
		{ GMEM_CAP_MEMORY_FAULT_INFO, KVM_CAP_MEMORY_FAULT_INFO },
		{ GMEM_CAP_MEMORY_ATTRIBUTES, KVM_CAP_MEMORY_ATTRIBUTES },
		{ GMEM_CAP_GUEST_MEMFD, KVM_CAP_GUEST_MEMFD },
		{ GMEM_CAP_VM_TYPES, KVM_CAP_VM_TYPES },
		{ GMEM_CAP_PRE_FAULT, KVM_CAP_PRE_FAULT_MEMORY },
		{ GMEM_CAP_CREATE_FLAGS, KVM_CAP_GUEST_MEMFD_FLAGS },
		{ GMEM_CAP_MEMSLOTS, KVM_CAP_NR_MEMSLOTS },
	};
	struct machine m;

	machine_new(&m, type);
	for (size_t i = 0; i < ARRAY_SIZE(numbers); i++) {
		int vm = kvm_cap(m.vm_fd, numbers[i].cap);
		int system = kvm_cap(m.kvm_fd, numbers[i].cap);

		if (vm != system)
			note("capability %ld: %d in this VM, %d on /dev/kvm", numbers[i].cap, vm,
			     system);
		check_value(m.caps, numbers[i].line, vm > 0 ? vm : 0);
	}
	machine_free(&m);
}

TEST(only_the_vm_counts_not_what_was_compiled_in)
{
	check_against_kernel(DEFAULT_VM);
}

TEST(only_the_vm_counts_not_what_was_compiled_in_with_private_memory)
{
	check_against_kernel(PRIVATE_VM);
}

TEST(create_flags_are_a_capability_of_the_vm)
{
	struct machine m;

	machine_new(&m, DEFAULT_VM);
	CHECK_EQ(kvm_cap(m.vm_fd, KVM_CAP_GUEST_MEMFD_FLAGS), expect_vm(DEFAULT_VM)->create_flags);
	check_number(m.caps, GMEM_CAP_CREATE_FLAGS, expect_vm(DEFAULT_VM)->create_flags);
	machine_free(&m);
}

TEST(a_host_without_guest_memfd_is_reported)
{
	static const enum gmem_cap lines[] = {
		GMEM_CAP_GUEST_MEMFD, GMEM_CAP_CREATE_FLAGS, GMEM_CAP_BIND, GMEM_CAP_HOST_ACCESS,
		GMEM_CAP_NUMA_POLICY, GMEM_CAP_GUEST_USES_FILE,
	};
	GMEM_OPTS(gmem_caps_opts, opts, .flags = GMEM_CAPS_RUN_GUEST);
	struct gmem_caps *caps;
	struct machine m;

	machine_new(&m, DEFAULT_VM);
	if (expect_vm(DEFAULT_VM)->guest_memfd)
		skip("this host has guest_memfd");
	OK(gmem_caps_new(m.vm_fd, &opts, &caps));
	for (size_t i = 0; i < ARRAY_SIZE(lines); i++) {
		check_answer(caps, lines[i], GMEM_NO);
		note("%s: %s", line(caps, lines[i]).name, line(caps, lines[i]).reason);
	}
	gmem_caps_free(caps);
	machine_free(&m);
}

/* ---- address bits ---- */

static int try_page(const struct machine *m, uint64_t gpa)
{
	int ret = raw_slot(m->vm_fd, GUEST_SLOT, 0, gpa, page_size(), NULL);

	if (!ret)
		CHECK_RESULT(raw_slot(m->vm_fd, GUEST_SLOT, 0, 0, 0, NULL), 0);
	return ret;
}

static void check_address_bits(const struct machine *m)
{
	int64_t bits = line(m->caps, GMEM_CAP_ADDRESS_BITS).value;
	uint64_t end = (uint64_t)1 << bits;

	note("%lld address bits", (long long)bits);
	CHECK_RESULT(try_page(m, end - page_size()), 0);
	CHECK(try_page(m, end) < 0);
	CHECK(try_page(m, 2 * end - page_size()) < 0);
}

TEST(the_address_bits_are_where_memslots_end)
{
	struct machine m;

	machine_new(&m, DEFAULT_VM);
	check_address_bits(&m);
	machine_free(&m);
}

TEST(the_address_bits_are_where_memslots_end_with_private_memory)
{
	struct machine m;

	machine_new(&m, PRIVATE_VM);
	check_address_bits(&m);
	machine_free(&m);
}

#ifdef __aarch64__
TEST(a_vm_made_smaller_has_fewer_address_bits)
{
	GMEM_OPTS(gmem_caps_opts, opts, .flags = GMEM_CAPS_VM_TYPE, .vm_type = 36);
	struct machine m = { .type = DEFAULT_VM };

	m.kvm_fd = open_kvm();
	m.vm_fd = (int)WORKS(raw_vm(m.kvm_fd, opts.vm_type));
	OK(gmem_caps_new(m.vm_fd, &opts, &m.caps));
	check_value(m.caps, GMEM_CAP_ADDRESS_BITS, 36);
	check_address_bits(&m);
	machine_free(&m);
}
#endif

/* ---- without a VM, and without KVM ---- */

TEST(without_a_vm_its_lines_are_not_guessed)
{
	static const enum gmem_cap only_a_vm_knows[] = {
		GMEM_CAP_CREATE, GMEM_CAP_BIND, GMEM_CAP_HOST_ACCESS, GMEM_CAP_PRIVATE_MEMORY,
		GMEM_CAP_DIRTY_LOG, GMEM_CAP_ADDRESS_BITS, GMEM_CAP_GUEST_USES_FILE,
		GMEM_CAP_GUEST_MEMFD, GMEM_CAP_CREATE_FLAGS,
	};
	struct gmem_caps *caps;

	OK(gmem_caps_new(GMEM_NO_VM, NULL, &caps));
	check_forms(caps);
	check_answer(caps, GMEM_CAP_KVM, GMEM_YES);
	check_value(caps, GMEM_CAP_KVM, 12);
	for (size_t i = 0; i < ARRAY_SIZE(only_a_vm_knows); i++)
		CHECK(line(caps, only_a_vm_knows[i]).answer != GMEM_YES);
	check_host(caps);
	gmem_caps_free(caps);
}

/* Needs no more than to be root, here or in a user namespace of one's own. */
static void hide_kvm(void)
{
	if (unshare(CLONE_NEWNS) && unshare(CLONE_NEWUSER | CLONE_NEWNS))
		skip("cannot hide /dev/kvm from this process: %s", strerror(errno));
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("none", "/dev", "tmpfs", 0, NULL))
		skip("cannot hide /dev: %s", strerror(errno));
	CHECK_RESULT(SYS(open("/dev/kvm", O_RDWR)), -ENOENT);
}

TEST(a_host_without_kvm_is_a_report_full_of_no)
{
	struct gmem_caps *caps;

	hide_kvm();
	OK(gmem_caps_new(GMEM_NO_VM, NULL, &caps));
	check_forms(caps);
	for (uint32_t cap = GMEM_CAP_KVM; cap <= GMEM_CAP_HOST_ACCESS; cap++)
		check_answer(caps, cap, GMEM_NO);
	check_host(caps);
	gmem_caps_free(caps);
}

TEST(a_vm_is_reported_on_without_dev_kvm)
{
	GMEM_OPTS(gmem_caps_opts, opts, .flags = GMEM_CAPS_RUN_GUEST);
	struct gmem_caps *caps;
	struct machine m;

	machine_new(&m, DEFAULT_VM);
	hide_kvm();
	OK(gmem_caps_new(m.vm_fd, &opts, &caps));
	check_forms(caps);
	check_proven(caps, expect_vm(DEFAULT_VM));
	CHECK(line(caps, GMEM_CAP_GUEST_USES_FILE).answer != GMEM_YES);
	gmem_caps_free(caps);
	machine_free(&m);
}

/* ---- options and bad fds ---- */

TEST(only_a_vm_is_reported_on)
{
	struct gmem_caps *caps = NULL;
	int pipes[2], kvm_fd = open_kvm();

	WORKS(pipe(pipes));
	REFUSED(gmem_caps_new(kvm_fd, NULL, &caps), -EINVAL);
	REFUSED(gmem_caps_new(pipes[0], NULL, &caps), -ENOTTY);
	close(pipes[0]);
	REFUSED(gmem_caps_new(pipes[0], NULL, &caps), -EBADF);
	REFUSED(gmem_caps_new(-2, NULL, &caps), -EBADF);
	CHECK(!caps);
	close(pipes[1]);
	close(kvm_fd);
}

TEST(a_vm_of_another_process_is_refused)
{
	struct gmem_caps *caps;
	struct machine m;
	int status;
	pid_t pid;

	machine_new(&m, DEFAULT_VM);
	pid = fork();
	if (!pid)
		_exit(gmem_caps_new(m.vm_fd, NULL, &caps) == -EIO ? 0 : 1);
	WORKS(waitpid(pid, &status, 0));
	CHECK_EQ(status, 0);
	machine_free(&m);
}

TEST(bad_report_options_are_refused)
{
	GMEM_OPTS(gmem_caps_opts, opts);
	struct gmem_caps *caps = NULL;

	for (int bit = 4; bit < 64; bit++) {
		opts.flags = (uint64_t)1 << bit;
		REFUSED(gmem_caps_new(GMEM_NO_VM, &opts, &caps), -EINVAL);
	}
	opts.flags = 0;
	opts.reserved = 1;
	REFUSED(gmem_caps_new(GMEM_NO_VM, &opts, &caps), -EINVAL);
	opts.reserved = 0;
	opts.size = 8;
	REFUSED(gmem_caps_new(GMEM_NO_VM, &opts, &caps), -EINVAL);
	CHECK(!caps);
}

TEST(a_borrowed_dev_kvm_stays_open)
{
	GMEM_OPTS(gmem_caps_opts, opts, .flags = GMEM_CAPS_KVM_FD, .kvm_fd = open_kvm());
	struct gmem_caps *caps;

	OK(gmem_caps_new(GMEM_NO_VM, &opts, &caps));
	check_answer(caps, GMEM_CAP_KVM, GMEM_YES);
	gmem_caps_free(caps);
	CHECK_EQ(WORKS(ioctl(opts.kvm_fd, KVM_GET_API_VERSION, 0)), 12);
	close(opts.kvm_fd);
}

TEST(without_self_test_nothing_is_tried)
{
	static const enum gmem_cap tried[] = { GMEM_CAP_BIND, GMEM_CAP_CREATE, GMEM_CAP_HOST_ACCESS,
					       GMEM_CAP_DIRTY_LOG };
	GMEM_OPTS(gmem_caps_opts, opts, .flags = GMEM_CAPS_NO_SELFTEST);
	struct gmem_caps *caps;
	struct machine m;

	machine_new(&m, DEFAULT_VM);
	OK(gmem_caps_new(m.vm_fd, &opts, &caps));
	check_forms(caps);
	check_kvm_says(caps, expect_vm(DEFAULT_VM));
	for (size_t i = 0; i < ARRAY_SIZE(tried); i++)
		CHECK(line(caps, tried[i]).answer != GMEM_YES);
	gmem_caps_free(caps);
	machine_free(&m);
}

/* ---- no traces ---- */

/* Deleting a memslot that is not there is refused: so none is there. */
static void check_no_slots(const struct machine *m)
{
	for (int slot = 0; slot < expect_vm(m->type)->memslots; slot++)
		CHECK_RESULT(raw_slot(m->vm_fd, (uint32_t)slot, 0, 0, 0, NULL), -EINVAL);
}

static void check_no_traces(int type)
{
	GMEM_OPTS(gmem_caps_opts, opts, .flags = GMEM_CAPS_RUN_GUEST | GMEM_CAPS_VM_TYPE);
	unsigned int fds, mappings;
	struct gmem_caps *caps;
	struct machine m;

	machine_new(&m, type);
	opts.vm_type = vm_argument(m.kvm_fd, type);
	fds = count_open_fds();
	mappings = count_mappings("\n");
	for (int i = 0; i < 3; i++) {
		OK(gmem_caps_new(m.vm_fd, &opts, &caps));
		gmem_caps_free(caps);
	}
	CHECK_EQ(count_open_fds(), fds);
	CHECK_EQ(count_mappings("\n"), mappings);
	CHECK_EQ(count_mappings("anon_inode:kvm"), 0);
	check_no_slots(&m);
	if (count_vms() >= 0)
		CHECK_EQ(count_vms(), 1);
	machine_free(&m);
}

TEST(the_self_test_leaves_no_slot_and_no_fd_behind)
{
	check_no_traces(DEFAULT_VM);
}

TEST(the_self_test_leaves_no_slot_and_no_fd_behind_with_private_memory)
{
	check_no_traces(PRIVATE_VM);
}

TEST(the_self_test_disturbs_no_memory_that_is_there)
{
	struct gmem_region *low, *high;
	struct gmem_finding bits;
	struct gmem_caps *caps;
	struct lab lab;
	uint64_t end;

	lab_new(&lab, DEFAULT_VM);
	OK(gmem_caps_get(lab.m.caps, GMEM_CAP_ADDRESS_BITS, &bits));
	end = (uint64_t)1 << bits.value;
	low = lab_add(&lab, GMEM_BACKING_HOST, GIB, 1, NULL);
	/* where the self-test tries first */
	high = lab_add(&lab, GMEM_BACKING_HOST, end - lab.page, 1, NULL);
	host_store(gmem_region_hva(low), 0x31);
	OK(gmem_caps_new(lab.m.vm_fd, NULL, &caps));
	check_proven(caps, expect_vm(DEFAULT_VM));
	check_value(caps, GMEM_CAP_ADDRESS_BITS, bits.value);
	gmem_caps_free(caps);
	GUEST_LOADS(&lab.guest, GIB, 0x31);
	OK(gmem_region_remove(high));
	OK(gmem_region_remove(low));
	lab_free(&lab);
}

/* ---- running a guest ---- */

static struct gmem_caps *report_with_guest(const struct machine *m)
{
	GMEM_OPTS(gmem_caps_opts, opts, .flags = GMEM_CAPS_RUN_GUEST | GMEM_CAPS_VM_TYPE,
		  .vm_type = vm_argument(m->kvm_fd, m->type));
	struct gmem_caps *caps;

	OK(gmem_caps_new(m->vm_fd, &opts, &caps));
	check_forms(caps);
	note("%s: %s", answer_name(line(caps, GMEM_CAP_GUEST_USES_FILE).answer),
	     line(caps, GMEM_CAP_GUEST_USES_FILE).reason);
	return caps;
}

TEST(a_guest_shows_whose_bytes_it_sees)
{
	struct gmem_caps *caps;
	struct lab lab;
	bool reaches;

	lab_new(&lab, DEFAULT_VM);
	require_create_flags(&lab.m, SHARED_FLAGS);
	reaches = lab_reaches_file(&lab);
	caps = report_with_guest(&lab.m);
	if (expect()->reaches == GUEST_REACHES_EITHER)
		CHECK(line(caps, GMEM_CAP_GUEST_USES_FILE).answer != GMEM_UNKNOWN);
	else
		check_yes_or_no(caps, GMEM_CAP_GUEST_USES_FILE, reaches);
	if (expect()->reaches == GUEST_REACHES_FILE)
		check_answer(caps, GMEM_CAP_MEMORY_FAULT_INFO, GMEM_YES);
	gmem_caps_free(caps);
	lab_free(&lab);
}

TEST(a_guest_shows_whose_bytes_it_sees_in_private_memory)
{
	struct gmem_caps *caps;
	struct machine m;

	machine_new(&m, PRIVATE_VM);
	caps = report_with_guest(&m);
	if (expect()->reaches == GUEST_REACHES_FILE)
		check_answer(caps, GMEM_CAP_GUEST_USES_FILE, GMEM_YES);
	else
		CHECK(line(caps, GMEM_CAP_GUEST_USES_FILE).answer != GMEM_UNKNOWN);
	gmem_caps_free(caps);
	machine_free(&m);
}

TEST(without_a_guest_it_is_not_said_whose_bytes_one_sees)
{
	struct machine m;

	machine_new(&m, DEFAULT_VM);
	CHECK(line(m.caps, GMEM_CAP_GUEST_USES_FILE).answer != GMEM_YES);
	machine_free(&m);
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
