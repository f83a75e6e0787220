/* SPDX-License-Identifier: MIT */
/*
 * Each phase of gmem-sandbox(7) under a seccomp filter made of its very tables:
 * whatever else is called ends the test, by name.
 */
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#include "lab.h"

#ifndef __NR_cachestat
#define __NR_cachestat 451	/* Linux 6.5 */
#endif

#ifndef PROCMAP_QUERY
#define PROCMAP_QUERY 0xc0686611	/* Linux 6.11 */
#endif

struct entry {
	uint32_t number;
	uint32_t phases;
};

#include "sandbox_table.h"

#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#else
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#endif

#define BASE (256 * MIB)
#define PAGES 8

/* ---- the filter ---- */

struct program {
	struct sock_filter code[512];
	unsigned short length;
};

static void emit(struct program *p, unsigned int code, uint32_t k, uint8_t yes, uint8_t no)
{
	CHECK(p->length < ARRAY_SIZE(p->code));
	p->code[p->length++] = (struct sock_filter){ (uint16_t)code, yes, no, k };
}

static void load_word(struct program *p, size_t offset)
{
	emit(p, BPF_LD | BPF_W | BPF_ABS, (uint32_t)offset, 0, 0);
}

/* the word that is loaded: allow @number */
static void allow(struct program *p, uint32_t number)
{
	emit(p, BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1);
	emit(p, BPF_RET | BPF_K, SECCOMP_RET_ALLOW, 0, 0);
}

/* system call @number, if it is the one, with its low word of @argument as allowed by @list */
static void allow_requests(struct program *p, uint32_t phases)
{
	unsigned short jump = p->length;

	emit(p, BPF_JMP | BPF_JEQ | BPF_K, __NR_ioctl, 0, 0);
	load_word(p, offsetof(struct seccomp_data, args[1]));
	for (size_t i = 0; i < ARRAY_SIZE(requests); i++)
		if (requests[i].phases & phases)
			allow(p, requests[i].number);
	emit(p, BPF_RET | BPF_K, SECCOMP_RET_TRAP, 0, 0);
	p->code[jump].jf = (uint8_t)(p->length - jump - 1);
}

/* the test's own calls: to print its result, and to end */
static void allow_report(struct program *p)
{
	allow(p, __NR_exit_group);
	emit(p, BPF_JMP | BPF_JEQ | BPF_K, __NR_write, 0, 3);
	load_word(p, offsetof(struct seccomp_data, args[0]));
	emit(p, BPF_JMP | BPF_JGT | BPF_K, STDERR_FILENO, 1, 0);
	emit(p, BPF_RET | BPF_K, SECCOMP_RET_ALLOW, 0, 0);
	load_word(p, offsetof(struct seccomp_data, nr));
}

static void compile(struct program *p, uint32_t phases, uint32_t otherwise)
{
	p->length = 0;
	load_word(p, offsetof(struct seccomp_data, arch));
	emit(p, BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 1, 0);
	emit(p, BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS, 0, 0);
	load_word(p, offsetof(struct seccomp_data, nr));
	allow_report(p);
	for (size_t i = 0; i < ARRAY_SIZE(calls); i++)
		if (calls[i].phases & phases && calls[i].number != __NR_ioctl)
			allow(p, calls[i].number);
	allow_requests(p, phases);
	emit(p, BPF_RET | BPF_K, otherwise, 0, 0);
}

static void install(uint32_t phases, uint32_t otherwise)
{
	struct program p;
	struct sock_fprog fprog;

	compile(&p, phases, otherwise);
	fprog = (struct sock_fprog){ p.length, p.code };
	WORKS(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	if (SYS(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &fprog, 0, 0)) == -EINVAL)
		skip("this kernel is built without seccomp filters");
}

static unsigned long second_argument(const ucontext_t *context)
{
#if defined(__x86_64__)
	return (unsigned long)context->uc_mcontext.gregs[REG_RSI];
#else
	return (unsigned long)context->uc_mcontext.regs[1];
#endif
}

static void on_trap(int signal, siginfo_t *info, void *context)
{
	char line[128];
	int length;

	(void)signal;
	length = snprintf(line, sizeof(line), "# system call %d (second argument %#lx) is not in the "
			  "table of this phase\n", info->si_syscall, second_argument(context));
	if (write(STDOUT_FILENO, line, (size_t)length) != length)
		_exit(3);
	_exit(2);
}

/* Allow only the calls of these phases from now on; end the test with leave(). */
static void enter(uint32_t phases)
{
	struct sigaction action = { .sa_sigaction = on_trap, .sa_flags = SA_SIGINFO };

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	skip("what a sanitizer calls is in no table");
#endif
	fflush(stdout);
	WORKS(sigaction(SIGSYS, &action, NULL));
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

static void run_layout(struct site *s)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = s->plan);
	struct gmem_region *other, *upper;
	struct gmem_change *change;
	struct gmem_view *view;

	populate(s);
	OK(gmem_view_new(s->lab.vm, &view));
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
	for (uint32_t phases = PHASE_SETUP; phases <= PHASE_SNAPSHOT; phases <<= 1) {
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
	enter(PHASE_SETUP);
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
	enter(PHASE_RUNNING);
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
	enter(PHASE_RUNNING);
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
	enter(PHASE_LAYOUT);
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
	enter(PHASE_CONVERT);
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
	enter(PHASE_SNAPSHOT);
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
	enter(PHASE_SHARE);
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
