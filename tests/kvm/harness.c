/* SPDX-License-Identifier: MIT */
#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "expect.h"
#include "harness.h"

#ifndef __NR_cachestat
#define __NR_cachestat 451	/* Linux 6.5; the same on every architecture */
#endif

#define MPOL_F_NODE (1 << 0)
#define MPOL_F_ADDR (1 << 1)

/*
 * How long a test may take before it counts as hung: where each instruction is emulated, perhaps
 * beside other work, some take a minute. A stress that was asked to last longer gets that much more.
 */
#define TEST_SECONDS ((emulated_machine() ? 240 : 60) + stress_seconds())

const char *emulated_machine(void)
{
	const char *id = getenv("GMEM_TEST_HOST");

	return id && id[0] ? id : NULL;
}

static unsigned int stress_seconds(void)
{
	const char *seconds = getenv("GMEM_STRESS_SECONDS");

	return seconds ? (unsigned int)strtoul(seconds, NULL, 10) : 0;
}

/* ---- assertions ---- */

void check_str(const char *file, int line, const char *text, const char *actual,
	       const char *wanted)
{
	if (!actual || strcmp(actual, wanted) != 0)
		fail_at(file, line, "%s is \"%s\", not \"%s\"", text, actual ? actual : "(null)",
			wanted);
}

void check_result(const char *file, int line, const char *text, long actual, long wanted)
{
	if (actual != wanted)
		fail_at(file, line, "%s: %ld (%s), not %ld (%s)", text, actual,
			result_text(actual), wanted, result_text(wanted));
}

void check_ok(const char *file, int line, const char *text, int ret)
{
	if (ret)
		fail_at(file, line, "%s: %d (%s): %s", text, ret, result_text(ret),
			ret < 0 ? gmem_last_error() : "not 0 and no error either");
}

void check_refused(const char *file, int line, const char *text, int ret, int wanted)
{
	if (ret != wanted)
		fail_at(file, line, "%s: %d (%s), not %d (%s): %s", text, ret, result_text(ret),
			wanted, result_text(wanted), ret < 0 ? gmem_last_error() : "");
	if (!gmem_last_error()[0])
		fail_at(file, line, "%s: refused without a sentence", text);
}

/* ---- signals ---- */

static const int caught_signals[] = { SIGBUS, SIGSEGV, SIGILL, SIGFPE, SIGTRAP };
static volatile sig_atomic_t caught_signal;
static void *volatile caught_address;
sigjmp_buf catch_point;

static void on_signal(int number, siginfo_t *info, void *context)
{
	(void)context;
	caught_signal = number;
	caught_address = info->si_addr;
	siglongjmp(catch_point, 1);
}

static void set_handlers(const struct sigaction *action)
{
	for (size_t i = 0; i < ARRAY_SIZE(caught_signals); i++)
		sigaction(caught_signals[i], action, NULL);
}

void catch_signals(void)
{
	struct sigaction action = { .sa_flags = SA_SIGINFO };

	action.sa_sigaction = on_signal;
	caught_signal = 0;
	caught_address = NULL;
	set_handlers(&action);
}

void check_caught(const char *file, int line, const char *text, int signal, const void *address)
{
	const struct sigaction usual = { .sa_handler = SIG_DFL };

	set_handlers(&usual);
	if (!caught_signal)
		fail_at(file, line, "%s: no signal, not %s", text, strsignal(signal));
	if (caught_signal != signal)
		fail_at(file, line, "%s: %s at %p, not %s", text, strsignal(caught_signal),
			caught_address, strsignal(signal));
	if (address && caught_address != address)
		fail_at(file, line, "%s: %s at %p, not at %p", text, strsignal(signal),
			caught_address, address);
}

/* ---- memory ---- */

static void flush_line(const void *hva)
{
#ifdef __aarch64__
	__asm__ volatile("dc civac, %0\n\tdsb sy" : : "r"(hva) : "memory");
#else
	(void)hva;
#endif
}

uint32_t host_load(const void *hva)
{
	flush_line(hva);
	return *(const volatile uint32_t *)hva;
}

void host_store(void *hva, uint32_t value)
{
	*(volatile uint32_t *)hva = value;
	flush_line(hva);
}

void *map_file(struct gmem_file *file)
{
	void *hva = NULL;

	OK(gmem_file_map(file, 0, gmem_file_size(file), NULL, &hva));
	CHECK(hva);
	return hva;
}

void unmap_file(struct gmem_file *file, void *hva)
{
	OK(gmem_file_unmap(file, hva, gmem_file_size(file)));
}

static long cachestat_pages(int fd)
{
	const uint64_t whole[2] = { 0, 0 };	/* offset and length; 0: to the end */
	uint64_t counts[5] = { 0 };		/* cached, dirty, writeback, evicted, recently */
	long ret = SYS(syscall(__NR_cachestat, fd, whole, counts, 0));

	return ret ? ret : (long)counts[0];
}

void require_cachestat(void)
{
	if (cachestat_pages(-1) == -ENOSYS)
		skip("this kernel has no cachestat system call to count pages with");
}

uint64_t allocated_pages(int fd)
{
	return (uint64_t)WORKS(cachestat_pages(fd));
}

bool is_gmem_filesystem(int fd)
{
	struct statfs fs;

	WORKS(fstatfs(fd, &fs));
	return (uint64_t)fs.f_type == GUEST_MEMFD_MAGIC;
}

unsigned int stay_on_node(void)
{
	unsigned int cpu, node;
	cpu_set_t one;

	WORKS(syscall(SYS_getcpu, &cpu, &node, NULL));
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	WORKS(sched_setaffinity(0, sizeof(one), &one));
	WORKS(syscall(SYS_getcpu, &cpu, &node, NULL));
	return node;
}

unsigned int node_of_page(void *hva)
{
	int node = -1;

	WORKS(syscall(SYS_get_mempolicy, &node, NULL, 0UL, hva,
		      (unsigned long)(MPOL_F_NODE | MPOL_F_ADDR)));
	return (unsigned int)node;
}

unsigned int count_mappings(const char *name)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	unsigned int count = 0;
	char line[512];

	if (!maps)
		FAIL("cannot read /proc/self/maps: %s", strerror(errno));
	while (fgets(line, sizeof(line), maps))
		count += strstr(line, name) != NULL;
	fclose(maps);
	return count;
}

/* entries of a directory that begin with @prefix; -1 if it cannot be read */
static int count_entries(const char *path, const char *prefix)
{
	DIR *dir = opendir(path);
	struct dirent *entry;
	int count = 0;

	if (!dir)
		return -1;
	while ((entry = readdir(dir)))
		count += entry->d_name[0] != '.' &&
			 !strncmp(entry->d_name, prefix, strlen(prefix));
	closedir(dir);
	return count;
}

unsigned int count_open_fds(void)
{
	int count = count_entries("/proc/self/fd", "");

	if (count < 1)
		FAIL("cannot read /proc/self/fd: %s", strerror(errno));
	return (unsigned int)count - 1;	/* opendir()'s fd is one of them */
}

/* KVM names a VM's directory after the process and the VM fd that made it. */
int count_vms(void)
{
	char prefix[24];

	snprintf(prefix, sizeof(prefix), "%d-", (int)getpid());
	return count_entries("/sys/kernel/debug/kvm", prefix);
}

/* ---- VMs ---- */

int kvm_cap(int fd, long cap)
{
	return ioctl(fd, KVM_CHECK_EXTENSION, cap);
}

int open_kvm(void)
{
	return (int)WORKS(open("/dev/kvm", O_RDWR | O_CLOEXEC));
}

/* On arm64 the type is the size of the address space: 40 bits, or all there are. */
unsigned long vm_argument(int kvm_fd, int type)
{
#ifdef __aarch64__
	int bits = kvm_cap(kvm_fd, KVM_CAP_ARM_VM_IPA_SIZE);

	(void)type;
	return bits > 0 && bits < 40 ? (unsigned long)bits : 0;
#else
	(void)kvm_fd;
	return (unsigned long)type;
#endif
}

int raw_vm(int kvm_fd, unsigned long argument)
{
	int ret;

	/* Work the kernel has for the task interrupts this as a signal would. */
	do {
		ret = (int)SYS(ioctl(kvm_fd, KVM_CREATE_VM, argument));
	} while (ret == -EINTR);
	if (ret >= 0)
		fcntl(ret, F_SETFD, FD_CLOEXEC);	/* KVM makes its fds without */
	return ret;
}

bool machine_type_exists(int kvm_fd, int type)
{
#ifdef __x86_64__
	if (type == PRIVATE_VM)
		return kvm_cap(kvm_fd, KVM_CAP_VM_TYPES) & (1 << PRIVATE_VM);
#endif
	(void)kvm_fd;
	return type == DEFAULT_VM;
}

void machine_new(struct machine *m, int type)
{
	GMEM_OPTS(gmem_caps_opts, opts, .flags = GMEM_CAPS_VM_TYPE);
	bool exists;

	*m = (struct machine){ .kvm_fd = open_kvm(), .vm_fd = -1, .type = type };
	exists = machine_type_exists(m->kvm_fd, type);
	CHECK_EQ(exists, expect_vm(type)->exists);
	if (!exists)
		skip("this kernel makes no VM of type %d, with private memory", type);

	opts.vm_type = vm_argument(m->kvm_fd, type);
	m->vm_fd = (int)WORKS(raw_vm(m->kvm_fd, opts.vm_type));
	OK(gmem_caps_new(m->vm_fd, &opts, &m->caps));
}

void machine_free(struct machine *m)
{
	gmem_caps_free(m->caps);
	if (m->vm_fd >= 0)
		close(m->vm_fd);
	close(m->kvm_fd);
	*m = (struct machine){ .kvm_fd = -1, .vm_fd = -1 };
}

void require_guest_memfd(const struct machine *m)
{
	int has = kvm_cap(m->vm_fd, KVM_CAP_GUEST_MEMFD);

	CHECK_EQ(has > 0, expect_vm(m->type)->guest_memfd > 0);
	if (has < 1)
		skip("this VM has no guest_memfd (KVM_CAP_GUEST_MEMFD is %d)", has);
}

void require_create_flags(const struct machine *m, uint64_t flags)
{
	int has;

	require_guest_memfd(m);
	has = kvm_cap(m->vm_fd, KVM_CAP_GUEST_MEMFD_FLAGS);
	CHECK_EQ(has, expect_vm(m->type)->create_flags);
	if (((uint64_t)has & flags) != flags)
		skip("this VM has no create flags 0x%llx (KVM_CAP_GUEST_MEMFD_FLAGS is %d)",
		     (unsigned long long)flags, has);
}

void require_backing(const struct machine *m, uint32_t backing, struct gmem_plan **ret)
{
	GMEM_OPTS(gmem_request, request, .backings = { backing });

	if (!(expect_vm(m->type)->backings & (1u << backing)))
		skip("this VM cannot have %s memory", gmem_backing_name(backing));
	OK(gmem_plan_new(m->caps, &request, ret));
	CHECK_EQ(gmem_plan_backing(*ret), backing);
}

int raw_gmem_slot(int vm_fd, uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t size,
		  const void *hva, int gmemfd, uint64_t offset)
{
	struct gmem_kvm_userspace_memory_region2 args = {
		.slot = slot,
		.flags = flags | (uint32_t)KVM_MEM_GUEST_MEMFD,
		.guest_phys_addr = gpa,
		.memory_size = size,
		.userspace_addr = (uintptr_t)hva,
		.guest_memfd = (uint32_t)gmemfd,
		.guest_memfd_offset = offset,
	};

	return (int)SYS(ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION2, &args));
}

int raw_slot(int vm_fd, uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t size,
	     const void *hva)
{
	struct kvm_userspace_memory_region args = {
		.slot = slot,
		.flags = flags,
		.guest_phys_addr = gpa,
		.memory_size = size,
		.userspace_addr = (uintptr_t)hva,
	};

	return (int)SYS(ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &args));
}

int raw_create(int vm_fd, uint64_t size, uint64_t flags)
{
	struct gmem_kvm_create_guest_memfd args = { .size = size, .flags = flags };

	return (int)SYS(ioctl(vm_fd, KVM_CREATE_GUEST_MEMFD, &args));
}

/* ---- the runner ---- */

/* KVM destroys a VM with its last reference, which another CPU may still hold. */
static void check_no_vm_left(void)
{
	for (int i = 0; i < 200 && count_vms() > 0; i++)
		usleep(10000);
	if (count_vms() > 0)
		FAIL("%d VMs outlive their fds", count_vms());
}

static void run_and_look_for_remains(void (*run)(void))
{
	unsigned int before = count_open_fds();

	run();
	CHECK_EQ(count_open_fds(), before);
	CHECK_EQ(count_mappings("kvm-gmem"), 0);
	check_no_vm_left();
}

/* The answer of the program as a whole where there is no KVM to test with. */
static int no_kvm(const char *reason)
{
	const char *required = getenv("GMEM_TEST_REQUIRE_KVM");

	if (required && !strcmp(required, "1")) {
		printf("1..1\nnot ok 1 - /dev/kvm\n# /dev/kvm is required: %s\n", reason);
		return EXIT_FAILURE;
	}
	printf("1..0 # SKIP no usable /dev/kvm: %s\n", reason);
	return 0;	/* TAP says it; another status would be a failure to meson */
}

static const char *why_no_kvm(void)
{
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	const char *reason = NULL;
	int vm_fd;

	if (fd < 0)
		return strerror(errno);
	vm_fd = raw_vm(fd, vm_argument(fd, DEFAULT_VM));
	if (vm_fd < 0)
		reason = "no VM can be made";
	else
		close(vm_fd);
	close(fd);
	return reason;
}

int run_tests(int argc, char **argv)
{
	const char *missing = why_no_kvm();

	return missing ? no_kvm(missing)
		       : runner_main(argc, argv, TEST_SECONDS, run_and_look_for_remains);
}
