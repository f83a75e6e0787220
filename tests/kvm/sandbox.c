/* SPDX-License-Identifier: MIT */
/*
 * Each phase of gmem-sandbox(7) under the filter of gmem-sandbox.h, which is made of its table:
 * whatever else is called ends the test, by name.
 */
#include <fcntl.h>
#include <gmem-sandbox.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#include "lab.h"

#define BASE (256 * MIB)
#define PAGES 8

/* ---- the filter ---- */

/* The test's own calls, before the filter that is installed: to print its result, and to end */
static const struct sock_filter report[] = {
	BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_exit_group, 3, 0),
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_write, 0, 3),
	BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args)),
	BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, STDERR_FILENO, 1, 0),
	BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
};

static void install(uint32_t phases, uint32_t otherwise)
{
	struct sock_filter code[ARRAY_SIZE(report) + GMEM_SANDBOX_LENGTH];
	struct gmem_sandbox_filter filter;
	struct sock_fprog program = { .filter = code };
	long ret;

	gmem_sandbox_compile(&filter, phases, NULL, otherwise);
	memcpy(code, report, sizeof(report));
	memcpy(code + ARRAY_SIZE(report), filter.code, filter.length * sizeof(filter.code[0]));
	program.len = (unsigned short)(ARRAY_SIZE(report) + filter.length);
	WORKS(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	ret = SYS(syscall(__NR_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program));
	if (ret == -EINVAL || ret == -ENOSYS)
		skip("this kernel is built without seccomp filters");
	CHECK_EQ(ret, 0);
}

static unsigned long second_argument(const ucontext_t *context)
{
#if defined(__x86_64__)
	return (unsigned long)context->uc_mcontext.gregs[REG_RSI];
#else
	return (unsigned long)context->uc_mcontext.regs[1];
#endif
}

/* For messages, and for reach.py */
static const char *the_phase = "nothing";

static void on_trap(int signal, siginfo_t *info, void *context)
{
	char line[160];
	int length;

	(void)signal;
	length = snprintf(line, sizeof(line), "# phase %s: system call %d (second argument %#lx) is not in "
			  "its table\n", the_phase, info->si_syscall, second_argument(context));
	if (write(STDOUT_FILENO, line, (size_t)length) != length)
		_exit(3);
	_exit(2);
}

static const char *const phase_names[] = {
	"setup", "layout", "running", "convert", "share", "import", "snapshot",
};

/* Allow only the calls of these phases from now on; end the test with leave(). */
static void enter(uint32_t phases)
{
	struct sigaction action = { .sa_sigaction = on_trap, .sa_flags = SA_SIGINFO };

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	skip("what a sanitizer calls is in no table");
#endif
	for (size_t i = 0; i < ARRAY_SIZE(phase_names); i++)
		if (phases & 1u << i)
			the_phase = phase_names[i];
	fflush(stdout);
	WORKS(sigaction(SIGSYS, &action, NULL));
	WORKS(prctl(PR_SET_NAME, the_phase));
	install(phases, SECCOMP_RET_TRAP);
}

/* Ends the test at once: the harness's checks need calls that are in no table. */
__attribute__((noreturn)) static void leave(void)
{
	fflush(stdout);
	_exit(EXIT_SUCCESS);
}

/* ---- what phases work on ---- */

struct site {
	struct lab lab;
	struct gmem_plan *plan;
	struct gmem_region *region;
	struct gmem_view *view;
	uint32_t backing;
	uint64_t size;
};

static void site_new(struct site *s, int type, uint32_t backing, bool recovers)
{
	GMEM_OPTS(gmem_region_opts, opts);

	lab_new(&s->lab, type);
	require_backing(&s->lab.m, backing, &s->plan);
	s->backing = backing;
	s->size = PAGES * s->lab.page;
	if (backing == GMEM_BACKING_HOST || backing == GMEM_BACKING_MAPPED)
		opts.flags = GMEM_REGION_DIRTY_LOG;
	opts.plan = s->plan;
	OK(gmem_region_add(s->lab.vm, BASE, s->size, &opts, &s->region));
	if (recovers)
		OK(gmem_recovery_enable());
	OK(gmem_view_new(s->lab.vm, &s->view));
}

static void use_view(struct site *s)
{
	uint8_t bytes[64] = { 1, 2, 3 }, back[64];
	struct iovec iov[2];
	uint64_t done, word;
	void *hva;

	OK(gmem_view_write(s->view, BASE + 8, bytes, sizeof(bytes), &done));
	OK(gmem_view_read(s->view, BASE + 8, back, sizeof(back), &done));
	CHECK_EQ(memcmp(bytes, back, sizeof(bytes)), 0);
	OK(gmem_view_fill(s->view, BASE, 7, s->lab.page, NULL));
	OK(gmem_view_store(s->view, BASE, 8, GMEM_RELEASE, 42));
	OK(gmem_view_load(s->view, BASE, 8, GMEM_ACQUIRE, &word));
	CHECK_EQ(word, 42);
	REFUSED(gmem_view_read(s->view, GIB, back, 1, &done), -ENOENT);

	gmem_view_begin(s->view);
	OK(gmem_view_hva(s->view, BASE, s->size, &hva));
	CHECK_EQ(gmem_view_iovec(s->view, BASE, s->size, iov, 2), 1);
	gmem_view_end(s->view);
}

static void run_running(struct site *s)
{
	struct gmem_state_range range;
	uint64_t bitmap[1];

	use_view(s);
	CHECK_EQ(gmem_vm_state(s->lab.vm, BASE, s->size, &range, 1), 1);
	if (s->backing == GMEM_BACKING_HOST || s->backing == GMEM_BACKING_MAPPED)
		OK(gmem_region_get_dirty_log(s->region, bitmap, ARRAY_SIZE(bitmap)));
}

/* alone, and with threads of the library's */
static void populate(struct site *s)
{
	GMEM_OPTS(gmem_populate_opts, opts);
	struct gmem_footprint footprint;

	OK(gmem_vm_populate(s->lab.vm, BASE, s->size, &opts, &footprint));
	OK(gmem_vm_discard(s->lab.vm, BASE, s->size, NULL, &footprint));
	opts.workers = 2;
	OK(gmem_vm_populate(s->lab.vm, BASE, s->size, &opts, &footprint));
}

/* Host memory that is a memfd, over a reservation of the program's */
static void run_host_memory(struct site *s)
{
	GMEM_OPTS(gmem_memory_opts, memory, .flags = GMEM_MEMORY_MEMFD);
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_HOST });
	GMEM_OPTS(gmem_region_opts, opts, .memory = &memory, .flags = GMEM_REGION_RESERVED);
	struct gmem_region *region;
	struct gmem_plan *plan;

	opts.hva = mmap(NULL, s->size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	CHECK(opts.hva != MAP_FAILED);
	OK(gmem_plan_new(gmem_vm_caps(s->lab.vm), &request, &plan));
	opts.plan = plan;
	OK(gmem_region_add(s->lab.vm, 3 * GIB, s->size, &opts, &region));
	OK(gmem_region_remove(region));
	gmem_plan_free(plan);
	munmap(opts.hva, s->size);
}

static void run_layout(struct site *s)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = s->plan);
	struct gmem_region *other, *upper;
	struct gmem_change *change;
	struct gmem_view *view;

	populate(s);
	OK(gmem_view_new(s->lab.vm, &view));
	run_host_memory(s);
	OK(gmem_region_add(s->lab.vm, GIB, s->size, &opts, &other));
	OK(gmem_region_move(other, 2 * GIB));
	OK(gmem_region_split(other, s->lab.page, &upper));
	OK(gmem_change_new(s->lab.vm, &change));
	OK(gmem_change_remove(change, other));
	OK(gmem_change_add(change, GIB, s->size, &opts, &other));
	OK(gmem_change_apply(change));
	gmem_change_free(change);
	REFUSED(gmem_region_add(s->lab.vm, GIB, s->size, &opts, &upper), -EEXIST);
	if (gmem_region_file(s->region, NULL)) {
		OK(gmem_file_allocate(gmem_region_file(s->region, NULL), 0, s->size, NULL));
		OK(gmem_file_punch(gmem_region_file(s->region, NULL), 0, s->lab.page, NULL));
	}
	gmem_view_free(view);
	gmem_view_free(s->view);
	gmem_vm_free(s->lab.vm);
}

static void run_convert(struct site *s)
{
	struct gmem_conversion done;
	struct gmem_lease *lease;
	char byte;

	OK(gmem_lease_new(s->lab.vm, BASE, s->lab.page, NULL, &lease));
	REFUSED(gmem_vm_convert(s->lab.vm, BASE, s->size, GMEM_STATE_PRIVATE, NULL, &done), -EBUSY);
	gmem_lease_free(lease);
	OK(gmem_vm_convert(s->lab.vm, BASE, s->size, GMEM_STATE_PRIVATE, NULL, &done));
	CHECK_EQ(done.converted, s->size);
	CHECK_RESULT(gmem_view_read(s->view, BASE, &byte, 1, NULL), -EACCES);
	OK(gmem_vm_convert(s->lab.vm, BASE, s->size, GMEM_STATE_SHARED, NULL, &done));
	OK(gmem_vm_discard_owed(s->lab.vm, NULL));
	use_view(s);
}

/* ---- each phase ---- */

/* in a VM that has it; the caller's @run ends with leave() */
static void each_backing(void (*run)(uint32_t backing))
{
	unsigned int count = 0;

	for (uint32_t backing = GMEM_BACKING_HOST; backing <= GMEM_BACKING_SHARED; backing++) {
		pid_t child;
		int status;

		if (!(expect_vm(DEFAULT_VM)->backings & 1u << backing))
			continue;
		in_case("%s memory", gmem_backing_name(backing));
		fflush(stdout);
		child = (pid_t)WORKS(fork());
		if (child == 0)
			run(backing);
		WORKS(waitpid(child, &status, 0));
		CHECK_EQ(status, 0);
		count++;
	}
	CHECK(count > 0);
}

TEST(every_phase_kills_whoever_calls_anything_else)
{
	for (uint32_t phases = GMEM_SANDBOX_SETUP; phases <= GMEM_SANDBOX_SNAPSHOT; phases <<= 1) {
		pid_t child = (pid_t)WORKS(fork());
		int status;

		if (child == 0) {
			install(phases, SECCOMP_RET_KILL_PROCESS);
			syscall(__NR_getppid);
			_exit(0);
		}
		WORKS(waitpid(child, &status, 0));
		if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SUCCESS)
			skip("this kernel is built without seccomp filters");
		CHECK(WIFSIGNALED(status));
		CHECK_EQ(WTERMSIG(status), SIGSYS);
	}
}

TEST(setup_calls_what_the_table_says)
{
	GMEM_OPTS(gmem_caps_opts, opts, .flags = GMEM_CAPS_RUN_GUEST);
	struct gmem_plan *plans[GMEM_BACKING_SHARED + 1] = { 0 };
	struct gmem_caps *caps;
	struct gmem_view *view;
	struct gmem_vm *vm;
	struct machine m;

	machine_new(&m, DEFAULT_VM);
	enter(GMEM_SANDBOX_SETUP);
	OK(gmem_caps_new(GMEM_NO_VM, NULL, &caps));
	gmem_caps_free(caps);
	OK(gmem_caps_new(m.vm_fd, &opts, &caps));
	OK(gmem_vm_new(m.vm_fd, NULL, &vm));
	for (uint32_t backing = GMEM_BACKING_HOST; backing <= GMEM_BACKING_SHARED; backing++) {
		GMEM_OPTS(gmem_request, request, .backings = { backing });
		GMEM_OPTS(gmem_region_opts, add);
		struct gmem_region *region;

		if (gmem_plan_new(caps, &request, &plans[backing]) < 0)
			continue;
		add.plan = plans[backing];
		OK(gmem_region_add(vm, backing * GIB, PAGES * page_size(), &add, &region));
	}
	OK(gmem_view_new(vm, &view));
	OK(gmem_recovery_enable());
	OK(gmem_view_fill(view, GIB, 1, page_size(), NULL));
	leave();
}

static void protect(struct site *s)
{
	WORKS(mprotect((char *)gmem_region_hva(s->region) + s->lab.page, s->lab.page, PROT_READ));
}

/* The sentences ask the kernel, too. */
static void use_protected(struct site *s)
{
	uint64_t at = BASE + s->lab.page, expected = 0;

	REFUSED(gmem_view_fill(s->view, at, 7, 100, NULL), -EFAULT);
	REFUSED(gmem_view_store(s->view, at, 8, GMEM_RELEASE, 42), -EFAULT);
	REFUSED(gmem_view_compare_exchange(s->view, at, 4, GMEM_SEQ_CST, &expected, 1), -EFAULT);
}

static void running(uint32_t backing)
{
	struct site s;

	site_new(&s, DEFAULT_VM, backing, false);
	protect(&s);
	enter(GMEM_SANDBOX_RUNNING);
	run_running(&s);
	use_protected(&s);
	leave();
}

static volatile sig_atomic_t passed_on;

static void count_signal(int number)
{
	(void)number;
	passed_on++;
}

static void running_recovered(uint32_t backing)
{
	struct site s;

	CHECK(signal(SIGBUS, count_signal) != SIG_ERR);
	CHECK(signal(SIGSEGV, count_signal) != SIG_ERR);
	site_new(&s, DEFAULT_VM, backing, true);
	protect(&s);
	enter(GMEM_SANDBOX_RUNNING);
	run_running(&s);
	use_protected(&s);
	raise(SIGBUS);
	raise(SIGSEGV);
	leave();
	CHECK_EQ(passed_on % 2, 0);
	CHECK(passed_on > 0);
}

TEST(running_calls_what_the_table_says)
{
	each_backing(running);
}

TEST(running_with_recovery_calls_what_the_table_says)
{
	each_backing(running_recovered);
}

/* With recovery, memory that is there is accessed without system calls. */
static void running_without_calls(uint32_t backing)
{
	struct site s;

	site_new(&s, DEFAULT_VM, backing, true);
	OK(gmem_view_fill(s.view, BASE, 0, s.size, NULL));
	enter(0);
	use_view(&s);
	leave();
}

TEST(access_with_recovery_calls_nothing)
{
	each_backing(running_without_calls);
}

/*
 * Whoever enabled recovery before it went into its sandbox: views and transfers ask whether
 * the signal handler is there.
 */
static bool recovers;

static void with_and_without_recovery(void (*phase)(uint32_t backing))
{
	recovers = false;
	each_backing(phase);
	recovers = true;
	each_backing(phase);
}

static void layout(uint32_t backing)
{
	struct site s;

	site_new(&s, DEFAULT_VM, backing, recovers);
	enter(GMEM_SANDBOX_LAYOUT);
	run_layout(&s);
	leave();
}

TEST(layout_calls_what_the_table_says)
{
	with_and_without_recovery(layout);
}

TEST(convert_calls_what_the_table_says)
{
	struct site s;

	site_new(&s, PRIVATE_VM, GMEM_BACKING_PRIVATE, false);
	enter(GMEM_SANDBOX_CONVERT);
	run_convert(&s);
	leave();
}

/* ---- snapshot ---- */

static int image_fd(uint64_t size)
{
	int fd = (int)WORKS(memfd_create("image", MFD_CLOEXEC));

	WORKS(ftruncate(fd, (off_t)(2 * size)));
	for (uint64_t at = 0; at < size; at += 4)
		CHECK_EQ(pwrite(fd, "abcd", 4, (off_t)at), 4);
	return fd;
}

static void load(struct gmem_vm *vm, int fd, uint64_t size, uint64_t flags)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .flags = flags);
	GMEM_OPTS(gmem_transfer_result, result);

	OK(gmem_vm_load(vm, BASE, fd, 0, size, &opts, &result));
	CHECK_EQ(result.data_bytes + result.zero_bytes, size);
}

static void snapshot(uint32_t backing)
{
	int fd, pipes[2];
	struct site s;

	site_new(&s, DEFAULT_VM, backing, recovers);
	fd = image_fd(s.size / 2);
	WORKS(pipe(pipes));
	CHECK_EQ(write(pipes[1], "0123456789", 10), 10);
	enter(GMEM_SANDBOX_SNAPSHOT);
	load(s.lab.vm, fd, s.size, 0);
	load(s.lab.vm, fd, s.size, GMEM_TRANSFER_NO_RING);
	OK(gmem_vm_load(s.lab.vm, BASE, pipes[0], 0, 10, NULL, NULL));
	OK(gmem_vm_dump(s.lab.vm, pipes[1], NULL));
	OK(gmem_vm_save(s.lab.vm, fd, NULL, NULL));
	OK(gmem_vm_restore(s.lab.vm, fd, NULL, NULL));
	leave();
}

TEST(snapshot_calls_what_the_table_says)
{
	with_and_without_recovery(snapshot);
}

/* ---- share ---- */

/* Plays both ends in one process: the VMM, and a process without KVM. */
static void give(struct gmem_export *exporter, struct gmem_peer *peer, struct gmem_import *import)
{
	while (gmem_peer_status(peer) == 0) {
		OK(gmem_export_dispatch(exporter));
		CHECK(gmem_import_dispatch(import) >= 0);
	}
	CHECK_RESULT(gmem_peer_status(peer), 1);
}

static void share(uint32_t backing)
{
	struct gmem_export *exporter;
	struct gmem_import *import;
	struct gmem_peer *peer;
	struct site s;
	int sockets[2];

	site_new(&s, DEFAULT_VM, backing, recovers);
	WORKS(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets));
	enter(GMEM_SANDBOX_SHARE);
	OK(gmem_export_new(s.lab.vm, NULL, &exporter));
	OK(gmem_peer_add(exporter, sockets[0], NULL, &peer));
	OK(gmem_import_new(sockets[1], NULL, &import));
	give(exporter, peer, import);

	gmem_view_free(s.view);
	OK(gmem_import_view_new(import, &s.view));
	use_view(&s);
	gmem_view_free(s.view);
	gmem_import_free(import);
	gmem_peer_remove(peer);
	gmem_export_free(exporter);
	leave();
}

static void share_file(uint32_t backing)
{
	/* Anonymous memory cannot be given: nothing names it. */
	if (backing == GMEM_BACKING_HOST)
		leave();
	share(backing);
}

TEST(share_calls_what_the_table_says)
{
	with_and_without_recovery(share_file);
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
