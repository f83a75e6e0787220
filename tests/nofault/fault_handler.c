/* SPDX-License-Identifier: MIT */
/*
 * fault_handler: among other handlers, in other threads, and within other handlers. A
 * SIGNAL_TEST runs for SIGBUS, and for SIGSEGV.
 */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "harness.h"
#include "os/kvm_compat.h"

#define PRIVATE_VM 1	/* KVM_X86_SW_PROTECTED_VM */

static char *there;	/* a page; the one after it is missing */
static char *missing;

#define SIGNAL_TEST(name)                                                 \
	static void name(void);                                           \
	TEST_IN_CASE(name, PAST_THE_END, _with_sigbus)                    \
	TEST_IN_CASE(name, UNMAPPED, _with_sigsegv)                       \
	static void name(void)

static int the_signal(void)
{
	return hole_kind == PAST_THE_END ? SIGBUS : SIGSEGV;
}

static int the_other_signal(void)
{
	return hole_kind == PAST_THE_END ? SIGSEGV : SIGBUS;
}

/* What the kernel says of a page that is missing */
static int the_code(void)
{
	if (hole_kind == PAST_THE_END)
		return BUS_ADRERR;
	return hole_kind == UNMAPPED ? SEGV_MAPERR : SEGV_ACCERR;
}

static void prepare(void)
{
	there = map_with_hole(page_size(), page_size());
	missing = there + page_size();
	fill_pattern(there, page_size());
}

/* ThreadSanitizer blocks every signal while a handler runs. */
static void require_true_masks(void)
{
#ifdef GMEM_NOFAULT_TSAN
	skip("ThreadSanitizer blocks signals in handlers");
#endif
}

static void enable(void)
{
	CHECK_EQ(gmem_recovery_enable(), 0);
}

/* Touch over the edge: exact, or it fails. */
static void touch_missing(bool fast)
{
	char buf[128];
	int err = 0;

	CHECK_EQ(gmem_nofault_copy(fast, buf, missing - 37, 100, &err), 37);
	CHECK_EQ(err, -EFAULT);
	CHECK(memcmp(buf, missing - 37, 37) == 0);
}

/* ---- handlers of others ---- */

static sigjmp_buf escape;
static volatile sig_atomic_t calls[4];	/* of each handler */
static volatile sig_atomic_t saw_signal, saw_code;
static void *volatile saw_address;
static ucontext_t *volatile saw_context;
static sigset_t saw_mask;
static struct sigaction under[4];	/* the handler each found when it was installed */

static void look(int signal, siginfo_t *info, void *context)
{
	saw_signal = signal;
	saw_code = info->si_code;
	saw_address = info->si_addr;
	saw_context = context;
	pthread_sigmask(SIG_BLOCK, NULL, &saw_mask);
}

/* the last resort: leaves */
static void leaving(int signal, siginfo_t *info, void *context)
{
	calls[0]++;
	look(signal, info, context);
	siglongjmp(escape, 1);
}

static void leaving_simple(int signal)
{
	calls[0]++;
	saw_signal = signal;
	siglongjmp(escape, 1);
}

static void returning(int signal, siginfo_t *info, void *context)
{
	calls[0]++;
	look(signal, info, context);
}

static void pass_down(int n, int signal, siginfo_t *info, void *context)
{
	calls[n]++;
	if (calls[n] > 3)
		FAIL("handler %d is called in a circle", n);
	if (under[n].sa_flags & SA_SIGINFO)
		under[n].sa_sigaction(signal, info, context);
	else if (under[n].sa_handler != SIG_DFL && under[n].sa_handler != SIG_IGN)
		under[n].sa_handler(signal);
}

static void passing_1(int signal, siginfo_t *info, void *context)
{
	pass_down(1, signal, info, context);
}

static void passing_2(int signal, siginfo_t *info, void *context)
{
	pass_down(2, signal, info, context);
}

static void passing_3(int signal, siginfo_t *info, void *context)
{
	pass_down(3, signal, info, context);
}

static void (*const passing[])(int, siginfo_t *, void *) = {
	leaving, passing_1, passing_2, passing_3,
};

static void install(int n)
{
	struct sigaction action = { .sa_flags = SA_SIGINFO | SA_NODEFER };

	action.sa_sigaction = passing[n];
	WORKS(sigaction(the_signal(), &action, &under[n]));
}

/* A fault that is not the library's must arrive where it did before, once. */
static void fault_elsewhere(void)
{
	saw_address = NULL;
	saw_signal = 0;
	memset((void *)(uintptr_t)calls, 0, sizeof(calls));
	if (!sigsetjmp(escape, 1)) {
		*(volatile char *)(missing + 5) = 1;
		FAIL("no signal");
	}
	CHECK_EQ(calls[0], 1);
	CHECK_EQ(saw_signal, the_signal());
}

/* ---- counting ---- */

SIGNAL_TEST(enabling_is_counted)
{
	struct sigaction before = { .sa_flags = 0 }, after = { .sa_flags = 0 };

	prepare();
	CHECK(!gmem_nofault_is_recoverable());
	WORKS(sigaction(the_signal(), NULL, &before));
	enable();
	enable();
	CHECK(gmem_nofault_is_recoverable());
	gmem_recovery_disable();
	CHECK(gmem_nofault_is_recoverable());
	touch_missing(true);
	gmem_recovery_disable();
	CHECK(!gmem_nofault_is_recoverable());
	WORKS(sigaction(the_signal(), NULL, &after));
	CHECK(before.sa_handler == after.sa_handler);
	gmem_recovery_disable();
	CHECK(!gmem_nofault_is_recoverable());
	enable();
	CHECK(gmem_nofault_is_recoverable());
	touch_missing(true);
}

TEST(enabling_a_thousand_times_needs_no_more_room)
{
	int i;

	prepare();
	for (i = 0; i < 1000; i++) {
		enable();
		if (i % 100 == 0)
			touch_missing(true);
		gmem_recovery_disable();
	}
}

SIGNAL_TEST(a_handler_taken_away_is_put_back)
{
	prepare();
	enable();
	signal(the_signal(), SIG_DFL);
	enable();
	CHECK(gmem_nofault_is_recoverable());
	touch_missing(true);
	signal(the_signal(), SIG_IGN);
	enable();
	touch_missing(true);
}

SIGNAL_TEST(errno_survives_a_fault)
{
	prepare();
	enable();
	errno = 1234;
	touch_missing(true);
	CHECK_EQ(errno, 1234);
}

/* ---- chaining ---- */

SIGNAL_TEST(a_fault_elsewhere_reaches_the_handler_below_as_it_was)
{
	prepare();
	install(0);
	enable();
	touch_missing(true);
	fault_elsewhere();
	CHECK(saw_address == missing + 5);
	CHECK_EQ(saw_code, the_code());
	CHECK(saw_context != NULL);
	fault_elsewhere();
	touch_missing(true);
	gmem_recovery_disable();
	fault_elsewhere();
}

SIGNAL_TEST(a_handler_of_the_simple_style_is_called_too)
{
	prepare();
	signal(the_signal(), leaving_simple);
	enable();
	fault_elsewhere();
	touch_missing(true);
	fault_elsewhere();
}

SIGNAL_TEST(the_mask_of_the_handler_below_holds_while_it_runs)
{
	struct sigaction action = { .sa_flags = SA_SIGINFO, .sa_sigaction = leaving };

	require_true_masks();
	prepare();
	sigaddset(&action.sa_mask, SIGUSR1);
	sigaddset(&action.sa_mask, the_other_signal());
	WORKS(sigaction(the_signal(), &action, NULL));
	enable();
	fault_elsewhere();
	CHECK(sigismember(&saw_mask, SIGUSR1) == 1);
	CHECK(sigismember(&saw_mask, SIGUSR2) == 0);
	CHECK(sigismember(&saw_mask, the_signal()) == 0);
	CHECK(sigismember(&saw_mask, the_other_signal()) == 0);

	action.sa_sigaction = returning;
	gmem_recovery_disable();
	WORKS(sigaction(the_signal(), &action, NULL));
	enable();
	WORKS(kill(getpid(), the_signal()));
	CHECK(sigismember(&saw_mask, SIGUSR1) == 1);
	WORKS(pthread_sigmask(SIG_BLOCK, NULL, &saw_mask));
	CHECK(sigismember(&saw_mask, SIGUSR1) == 0);
}

/* Handlers 1 to 3 pass on, 0 ends it; the library's comes in at every place. */
SIGNAL_TEST(a_fault_reaches_the_last_handler_whatever_the_order)
{
	int before, after, i;

	for (before = 0; before <= 3; before++) {
		prepare();
		in_case("the library's is number %d", before);
		for (i = 0; i <= before; i++)
			install(i);
		enable();
		for (i = before + 1; i <= 3; i++)
			install(i);
		after = 3;

		touch_missing(true);
		fault_elsewhere();
		for (i = 1; i <= after; i++)
			CHECK_EQ(calls[i], 1);

		/* Ours stays where it is if it is not the uppermost. */
		gmem_recovery_disable();
		fault_elsewhere();
		for (i = 1; i <= after; i++)
			CHECK_EQ(calls[i], 1);
		if (before < 3)
			touch_missing(true);

		/* Install ours again, above the others: still no circle. */
		enable();
		touch_missing(true);
		fault_elsewhere();
		for (i = 1; i <= after; i++)
			CHECK_EQ(calls[i], 1);
		gmem_recovery_disable();
		signal(the_signal(), SIG_DFL);
	}
}

SIGNAL_TEST(handlers_taken_away_in_the_wrong_order_make_no_circle)
{
	prepare();
	install(0);
	enable();
	install(1);
	gmem_recovery_disable();
	enable();			/* above 1 */
	install(2);
	WORKS(sigaction(the_signal(), &under[1], NULL));	/* back to our first */
	touch_missing(true);
	fault_elsewhere();
	WORKS(sigaction(the_signal(), &under[2], NULL));	/* to our second */
	touch_missing(true);
	fault_elsewhere();
	CHECK_EQ(calls[1], 1);
	enable();
	touch_missing(true);
	fault_elsewhere();
}

SIGNAL_TEST(too_many_handlers_above_are_refused)
{
	struct sigaction action = { .sa_flags = SA_SIGINFO }, now = { .sa_flags = 0 };
	int i, err = 0;

	prepare();
	action.sa_sigaction = returning;
	for (i = 1; i < 20 && !err; i++) {
		sigemptyset(&action.sa_mask);
		sigaddset(&action.sa_mask, 32 + i);
		sigaddset(&action.sa_mask, i > 8 ? SIGUSR1 : SIGUSR2);
		WORKS(sigaction(the_signal(), &action, NULL));
		err = gmem_recovery_enable();
		if (!err)
			gmem_recovery_disable();
	}
	CHECK_EQ(err, -EBUSY);
	CHECK(strstr(gmem_last_error(), "handlers"));
	CHECK(strstr(gmem_last_error(), the_signal() == SIGBUS ? "SIGBUS" : "SIGSEGV"));
	CHECK(!gmem_nofault_is_recoverable());
	WORKS(sigaction(the_other_signal(), NULL, &now));
	CHECK(now.sa_handler == SIG_DFL);
	WORKS(sigaction(the_signal(), NULL, &now));
	CHECK(now.sa_sigaction == returning);
}

/* ---- without a handler below ---- */

struct death {
	int signal;
	int stops;		/* how often the signal was to be delivered */
	void *address;		/* the last time */
	uint64_t first_pc, last_pc;
	int code;
};

static uint64_t pc_of(pid_t pid)
{
#if defined(__x86_64__)
	uint64_t regs[27];
	struct iovec iov = { regs, sizeof(regs) };

	WORKS(ptrace(PTRACE_GETREGSET, pid, (void *)NT_PRSTATUS, &iov));
	return regs[16];
#else
	uint64_t regs[34];
	struct iovec iov = { regs, sizeof(regs) };

	WORKS(ptrace(PTRACE_GETREGSET, pid, (void *)NT_PRSTATUS, &iov));
	return regs[32];
#endif
}

/* Run @doomed in a child and watch how it goes; a signal of 0: it came back. */
static struct death watch(void (*doomed)(void))
{
	struct death death = { .signal = 0 };
	siginfo_t info;
	int status = 0, signal;
	pid_t pid;

	fflush(stdout);
	pid = (pid_t)WORKS(fork());
	if (pid == 0) {
		WORKS(ptrace(PTRACE_TRACEME, 0, NULL, NULL));
		doomed();
		_exit(0);
	}

	while (waitpid(pid, &status, 0) == pid && WIFSTOPPED(status)) {
		signal = WSTOPSIG(status);
		if (signal == the_signal()) {
			WORKS(ptrace(PTRACE_GETSIGINFO, pid, NULL, &info));
			death.last_pc = pc_of(pid);
			if (!death.stops++)
				death.first_pc = death.last_pc;
			death.address = info.si_addr;
			death.code = info.si_code;
		}
		WORKS(ptrace(PTRACE_CONT, pid, NULL, (void *)(uintptr_t)signal));
	}
	death.signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
	return death;
}

static void dies_elsewhere(void)
{
	enable();
	touch_missing(true);
	*(volatile char *)(missing + 77) = 1;
}

static void check_died_of_the_fault(struct death death)
{
	CHECK_EQ(death.signal, the_signal());
	/* once for the handler, once to kill */
	CHECK(death.stops >= 2);
	CHECK(death.address == missing + 77);
	CHECK_EQ(death.code, the_code());
}

SIGNAL_TEST(without_a_handler_below_a_fault_kills_and_shows_where)
{
	prepare();
	check_died_of_the_fault(watch(dies_elsewhere));
}

static void dies_at_once(void)
{
	enable();
	*(volatile char *)(missing + 77) = 1;
}

SIGNAL_TEST(death_comes_at_the_instruction_that_faulted)
{
	struct death death;

	prepare();
	death = watch(dies_at_once);
	check_died_of_the_fault(death);
	CHECK_EQ(death.first_pc, death.last_pc);
}

SIGNAL_TEST(ignoring_does_not_ignore_a_fault)
{
	prepare();
	signal(the_signal(), SIG_IGN);
	check_died_of_the_fault(watch(dies_at_once));
}

static void dies_by_kill(void)
{
	enable();
	kill(getpid(), the_signal());
	touch_missing(true);
}

SIGNAL_TEST(a_sent_signal_kills_or_is_ignored_as_before)
{
	struct death death;

	prepare();
	death = watch(dies_by_kill);
	CHECK_EQ(death.signal, the_signal());
	CHECK_EQ(death.code, SI_USER);
	signal(the_signal(), SIG_IGN);
	CHECK_EQ(watch(dies_by_kill).signal, 0);
}

/* The page that a fault was about is there when the handlers are done. */
static void mend(void)
{
	CHECK(mmap(missing, page_size(), PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == missing);
}

static void passing_and_mending(int signal, siginfo_t *info, void *context)
{
	under[0].sa_sigaction(signal, info, context);
	mend();
}

static void faults_once(void)
{
	struct sigaction action = { .sa_flags = SA_SIGINFO | SA_NODEFER };

	enable();
	action.sa_sigaction = passing_and_mending;
	WORKS(sigaction(the_signal(), &action, &under[0]));
	*(volatile char *)(missing + 77) = 1;
}

SIGNAL_TEST(a_fault_kills_even_if_the_instruction_would_succeed_now)
{
	prepare();
	check_died_of_the_fault(watch(faults_once));
}

static long refused;

/* As a sandbox does that knows nothing of the library */
static void refuse(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)refused, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { .len = sizeof(code) / sizeof(code[0]), .filter = code };

	WORKS(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	WORKS(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0));
}

static void faults_where_calls_are_refused(void)
{
	enable();
	refuse();
	*(volatile char *)(missing + 77) = 1;
}

static void is_killed_where_calls_are_refused(void)
{
	enable();
	refuse();
	kill(getpid(), the_signal());
}

SIGNAL_TEST(what_is_nobodys_kills_where_calls_are_refused)
{
	prepare();
	if (prctl(PR_GET_SECCOMP, 0, 0, 0, 0) < 0)
		skip("this kernel is built without seccomp filters");
	refused = SYS_rt_tgsigqueueinfo;
	check_died_of_the_fault(watch(faults_where_calls_are_refused));
	CHECK_EQ(watch(is_killed_where_calls_are_refused).signal, the_signal());
	refused = SYS_rt_sigaction;
	check_died_of_the_fault(watch(faults_where_calls_are_refused));
	CHECK_EQ(watch(is_killed_where_calls_are_refused).signal, SIGKILL);
}

static void faults_twice(void)
{
	struct sigaction action = { .sa_flags = SA_SIGINFO | (int)SA_RESETHAND };

	action.sa_sigaction = leaving;
	sigaction(the_signal(), &action, NULL);
	enable();
	touch_missing(true);
	fault_elsewhere();
	touch_missing(true);
	*(volatile char *)(missing + 77) = 1;
}

SIGNAL_TEST(a_handler_for_one_signal_is_called_once)
{
	prepare();
	check_died_of_the_fault(watch(faults_twice));
}

/* News that a page somewhere went bad, or a tag earlier, are no fault of the instruction. */
SIGNAL_TEST(news_of_something_else_are_passed_on)
{
	int code = hole_kind == PAST_THE_END ? BUS_MCEERR_AO : 8;	/* SEGV_MTEAERR */
	struct sigaction action = { .sa_flags = SA_SIGINFO, .sa_sigaction = returning };
	siginfo_t info;

	prepare();
	WORKS(sigaction(the_signal(), &action, NULL));
	enable();
	memset(&info, 0, sizeof(info));
	info.si_signo = the_signal();
	info.si_code = code;
	info.si_addr = missing;
	if (syscall(SYS_rt_tgsigqueueinfo, getpid(), syscall(SYS_gettid), the_signal(), &info))
		skip("cannot queue such a signal: %s", strerror(errno));
	CHECK_EQ(calls[0], 1);
	CHECK_EQ(saw_code, code);
	CHECK(saw_address == missing);
}

/* ---- blocked ---- */

static void block_it(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, the_signal());
	CHECK_EQ(pthread_sigmask(SIG_BLOCK, &set, NULL), 0);
}

static void touch_blocked(void)
{
	block_it();
	touch_missing(true);
}

SIGNAL_TEST(a_thread_that_blocks_the_signal_has_the_slow_engine)
{
	uint32_t word = 7;

	prepare();
	enable();
	CHECK(gmem_nofault_is_recoverable());
	block_it();
	CHECK(!gmem_nofault_is_recoverable());
	touch_missing(false);
	CHECK_EQ(gmem_nofault_load32(false, missing, __ATOMIC_ACQUIRE, &word), -EFAULT);
	CHECK_EQ(gmem_nofault_store32(false, missing, 1, __ATOMIC_RELEASE), -EFAULT);

	/* Why: nothing else would have helped. */
	CHECK_EQ(watch(touch_blocked).signal, the_signal());
}

/* ---- nested ---- */

static volatile sig_atomic_t alarms;

static void touching_on_alarm(int signal)
{
	(void)signal;
	alarms++;
	touch_missing(true);
}

SIGNAL_TEST(faults_nest_in_a_storm_of_signals)
{
	struct itimerval often = { { 0, 200 }, { 0, 200 } }, never = { { 0, 0 }, { 0, 0 } };
	int i;

	require_true_masks();
	prepare();
	enable();
	signal(SIGPROF, touching_on_alarm);
	WORKS(setitimer(ITIMER_PROF, &often, NULL));
	for (i = 0; alarms < (is_slow() ? 20 : 300) && i < 5000000; i++)
		touch_missing(true);
	WORKS(setitimer(ITIMER_PROF, &never, NULL));
	CHECK(alarms > 0);
}

static void touching_below(int signal, siginfo_t *info, void *context)
{
	touch_missing(true);
	leaving(signal, info, context);
}

SIGNAL_TEST(the_handler_below_can_touch_what_is_missing)
{
	struct sigaction action = { .sa_flags = SA_SIGINFO, .sa_sigaction = touching_below };

	require_true_masks();
	prepare();
	WORKS(sigaction(the_signal(), &action, NULL));
	enable();
	fault_elsewhere();
	fault_elsewhere();
}

static char *volatile handler_stack;

static void note_stack(int signal, siginfo_t *info, void *context)
{
	char here;

	handler_stack = (char *)(uintptr_t)&here;
	leaving(signal, info, context);
}

SIGNAL_TEST(the_alternate_signal_stack_is_used)
{
	static char room[65536];
	stack_t stack = { .ss_sp = room, .ss_size = sizeof(room) };
	struct sigaction action = { .sa_flags = SA_SIGINFO | SA_ONSTACK };

	prepare();
	WORKS(sigaltstack(&stack, NULL));
	action.sa_sigaction = note_stack;
	WORKS(sigaction(the_signal(), &action, NULL));
	enable();
	touch_missing(true);
	fault_elsewhere();
#if !defined(__SANITIZE_ADDRESS__)
	CHECK(handler_stack > room && handler_stack < room + sizeof(room));
#endif
	touch_missing(true);
}

/* ---- stacks that end ---- */

static char alternate_stack[65536];

static void use_alternate_stack(void)
{
	stack_t stack = { .ss_sp = alternate_stack, .ss_size = sizeof(alternate_stack) };

	WORKS(sigaltstack(&stack, NULL));
}

static bool is_on_alternate_stack(void)
{
	char here;
	char *at = (char *)(uintptr_t)&here;

#if defined(__SANITIZE_ADDRESS__)
	return true;	/* its stacks are elsewhere */
#endif
	return at > alternate_stack && at < alternate_stack + sizeof(alternate_stack);
}

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Winfinite-recursion"
__attribute__((noinline)) static int recurse(volatile char *above)
{
	volatile char here[4096];

	here[0] = above[0];
	return recurse(here) + here[0];
}
#pragma GCC diagnostic pop

static void overflowing(int signal, siginfo_t *info, void *context)
{
	CHECK(is_on_alternate_stack());
	touch_missing(true);
	leaving(signal, info, context);
}

TEST(a_stack_that_overflows_is_passed_on)
{
	struct sigaction action = { .sa_flags = SA_SIGINFO | SA_ONSTACK };
	char first = 0;

#if defined(__SANITIZE_ADDRESS__) || defined(GMEM_NOFAULT_TSAN)
	skip("a sanitizer looks after the stack");
#endif
	prepare();
	use_alternate_stack();
	action.sa_sigaction = overflowing;
	WORKS(sigaction(SIGSEGV, &action, NULL));
	enable();
	if (!sigsetjmp(escape, 1))
		recurse(&first);
	CHECK_EQ(calls[0], 1);
	CHECK_EQ(saw_signal, SIGSEGV);
	touch_missing(true);
}

/* The kernel gives no address here; QEMU's emulated processors make a page fault of it. */
TEST(an_address_that_no_page_has_is_passed_on)
{
#if defined(__x86_64__)
	struct sigaction action = { .sa_flags = SA_SIGINFO, .sa_sigaction = leaving };

	prepare();
	WORKS(sigaction(SIGSEGV, &action, NULL));
	enable();
	if (!sigsetjmp(escape, 1)) {
		*(volatile char *)(UINT64_C(0x8000) << 32) = 1;
		FAIL("no SIGSEGV");
	}
	CHECK(saw_code == SEGV_MAPERR || (saw_code == SI_KERNEL && saw_address == NULL));
#else
	skip("every address has one");
#endif
}

/* ---- runtimes of other languages ---- */

static void set_pc(ucontext_t *context, void (*pc)(void))
{
#if defined(__x86_64__)
	/* as after a call: the stack is aligned, less one word */
	context->uc_mcontext.gregs[REG_RSP] &= ~INT64_C(15);
	context->uc_mcontext.gregs[REG_RSP] -= 8;
	context->uc_mcontext.gregs[REG_RIP] = (greg_t)(uintptr_t)pc;
#else
	context->uc_mcontext.pc = (uintptr_t)pc;
#endif
}

static void panic(void)
{
	siglongjmp(escape, 1);
}

/* As Go's: on the alternate stack, all signals blocked; what its own code did becomes a panic. */
static void like_go(int signal, siginfo_t *info, void *context)
{
	calls[0]++;
	look(signal, info, context);
	CHECK(is_on_alternate_stack());
	CHECK(sigismember(&saw_mask, SIGUSR1) == 1);
	if ((char *)info->si_addr != missing + 5 && (under[0].sa_flags & SA_SIGINFO))
		under[0].sa_sigaction(signal, info, context);	/* not in Go code */
	else
		set_pc(context, panic);
}

static void install_like_go(void)
{
	struct sigaction action = { .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART };

	use_alternate_stack();
	sigfillset(&action.sa_mask);
	action.sa_sigaction = like_go;
	WORKS(sigaction(the_signal(), &action, &under[0]));
}

SIGNAL_TEST(a_runtime_like_gos_below_gets_its_own_faults_alone)
{
	struct sigaction now = { .sa_flags = 0 };

	require_true_masks();
	prepare();
	install_like_go();
	enable();
	WORKS(sigaction(the_signal(), NULL, &now));
	CHECK(now.sa_flags & SA_ONSTACK && now.sa_flags & SA_RESTART);
	touch_missing(true);
	CHECK_EQ(calls[0], 0);
	fault_elsewhere();
	CHECK(saw_address == missing + 5);
	touch_missing(true);
}

SIGNAL_TEST(a_runtime_like_gos_above_passes_on_what_is_not_its_own)
{
	require_true_masks();
	prepare();
	enable();
	install_like_go();
	touch_missing(true);
	CHECK(calls[0] >= 1);
	fault_elsewhere();
	touch_missing(true);
}

/* As Rust's: not the guard page of a thread, so the default, and the instruction once more */
static void like_rust(int signal, siginfo_t *info, void *context)
{
	struct sigaction standard = { .sa_handler = SIG_DFL };

	calls[0]++;
	look(signal, info, context);
	sigaction(signal, &standard, NULL);
}

/* and the instruction succeeds */
static void like_rust_mending(int signal, siginfo_t *info, void *context)
{
	like_rust(signal, info, context);
	mend();
}

static void install_like_rust(void)
{
	struct sigaction action = { .sa_flags = SA_SIGINFO | SA_ONSTACK };

	use_alternate_stack();
	action.sa_sigaction = like_rust;
	WORKS(sigaction(the_signal(), &action, NULL));
}

static void dies_under_a_runtime(void)
{
	install_like_rust();
	enable();
	touch_missing(true);
	*(volatile char *)(missing + 77) = 1;
}

static void is_sent_one_signal(void)
{
	install_like_rust();
	enable();
	kill(getpid(), the_signal());
	CHECK_EQ(calls[0], 1);
	CHECK(gmem_nofault_is_recoverable());
	touch_missing(true);
}

static void is_sent_two_signals(void)
{
	is_sent_one_signal();
	kill(getpid(), the_signal());
}

SIGNAL_TEST(recovery_stays_if_an_instruction_succeeds_after_all)
{
	struct sigaction action = { .sa_flags = SA_SIGINFO, .sa_sigaction = like_rust_mending };

	prepare();
	WORKS(sigaction(the_signal(), &action, NULL));
	enable();
	*(volatile char *)(missing + 77) = 1;
	CHECK_EQ(calls[0], 1);
	CHECK(gmem_nofault_is_recoverable());
	prepare();
	touch_missing(true);
}

SIGNAL_TEST(a_runtime_like_rusts_dies_of_the_real_fault)
{
	prepare();
	check_died_of_the_fault(watch(dies_under_a_runtime));
}

/* Without the library the first one is survived, and the second is not. */
SIGNAL_TEST(a_runtime_like_rusts_gives_up_and_recovery_stays)
{
	struct death death;

	prepare();
	CHECK_EQ(watch(is_sent_one_signal).signal, 0);
	death = watch(is_sent_two_signals);
	CHECK_EQ(death.signal, the_signal());
	CHECK_EQ(death.code, SI_USER);
}

/* The sanitizer's own handler is below; harness.c turns it off for all other tests. */
TEST(crashes_where_a_sanitizer_can_see_it)
{
	if (!getenv("GMEM_TEST_CRASH"))
		skip("run by the next test");
	prepare();
	enable();
	touch_missing(true);
	*(volatile char *)(uintptr_t)4096 = 1;
}

TEST(the_handlers_of_a_sanitizer_get_what_is_theirs)
{
#if defined(__SANITIZE_ADDRESS__)
	const char *options = "handle_segv=1:handle_sigbus=1:detect_leaks=0";
	char said[16384] = "";
	int pipe_fds[2], status = 0;
	size_t size = 0;
	ssize_t n;
	pid_t pid;

	WORKS(pipe(pipe_fds));
	pid = (pid_t)WORKS(fork());
	if (pid == 0) {
		setenv("ASAN_OPTIONS", options, 1);
		setenv("GMEM_TEST_CRASH", "1", 1);
		dup2(pipe_fds[1], 1);
		dup2(pipe_fds[1], 2);
		execl("/proc/self/exe", "crash", "crashes_where", (char *)NULL);
		_exit(99);
	}
	close(pipe_fds[1]);
	while ((n = read(pipe_fds[0], said + size, sizeof(said) - 1 - size)) > 0)
		size += (size_t)n;
	WORKS(waitpid(pid, &status, 0));
	if (!strstr(said, "AddressSanitizer: SEGV on unknown address 0x000000001000"))
		FAIL("it said: %s", said);
#else
	skip("not built with the address sanitizer");
#endif
}

/* ---- threads ---- */

static void run_threads(void *(*run)(void *), unsigned int n)
{
	pthread_t threads[8];
	unsigned int i;

	for (i = 0; i < n; i++)
		CHECK_EQ(pthread_create(&threads[i], NULL, run, (void *)(uintptr_t)i), 0);
	for (i = 0; i < n; i++)
		CHECK_EQ(pthread_join(threads[i], NULL), 0);
}

static void *touch_often(void *unused)
{
	int i, rounds = is_slow() ? 200 : 5000;

	(void)unused;
	for (i = 0; i < rounds; i++)
		touch_missing(true);
	return NULL;
}

SIGNAL_TEST(eight_threads_fault_at_once)
{
	prepare();
	enable();
	run_threads(touch_often, 8);
}

static void *toggle_often(void *unused)
{
	int i, rounds = is_slow() ? 200 : 5000;

	(void)unused;
	for (i = 0; i < rounds; i++) {
		enable();
		CHECK(gmem_nofault_is_recoverable());
		touch_missing(true);
		gmem_recovery_disable();
	}
	return NULL;
}

SIGNAL_TEST(threads_enable_and_disable_while_others_touch)
{
	struct sigaction now = { .sa_flags = 0 };

	prepare();
	run_threads(toggle_often, 8);
	CHECK(!gmem_nofault_is_recoverable());
	WORKS(sigaction(the_signal(), NULL, &now));
	CHECK(now.sa_handler == SIG_DFL);
}

/* The file shrinks and grows under a copy: every count is true. */
static int shrinking_fd;
static char *shrinking;
static bool over;

static void *shrink_and_grow(void *unused)
{
	int i, rounds = is_slow() ? 300 : 5000;

	(void)unused;
	for (i = 0; i < rounds; i++) {
		WORKS(ftruncate(shrinking_fd, (off_t)page_size()));
		WORKS(ftruncate(shrinking_fd, (off_t)(4 * page_size())));
	}
	__atomic_store_n(&over, true, __ATOMIC_RELEASE);
	return NULL;
}

TEST(a_file_may_shrink_under_a_copy)
{
	size_t page = page_size(), size = 4 * page - 100, done;
	char *buf = malloc(4 * page), *pattern_at = malloc(4 * page);
	pthread_t thread;
	int err = 0;

	prepare();
	enable();
	fill_pattern(pattern_at, size);
	shrinking_fd = (int)WORKS(memfd_create("shrinking", MFD_CLOEXEC));
	WORKS(ftruncate(shrinking_fd, (off_t)(4 * page)));
	shrinking = mmap(NULL, 4 * page, PROT_READ | PROT_WRITE, MAP_SHARED, shrinking_fd, 0);
	CHECK(shrinking != MAP_FAILED);
	CHECK_EQ(pthread_create(&thread, NULL, shrink_and_grow, NULL), 0);

	while (!__atomic_load_n(&over, __ATOMIC_ACQUIRE)) {
		done = gmem_nofault_copy(true, shrinking + 50, pattern_at, size, &err);
		CHECK(done <= size && (done == size) == (err == 0));
		CHECK(done >= page - 50);
		done = gmem_nofault_copy(false, buf, shrinking + 50, size, &err);
		CHECK(done <= size && (done == size) == (err == 0));
		CHECK(done >= page - 50);
		CHECK(memcmp(buf, pattern_at, page - 50) == 0);
	}
	CHECK_EQ(pthread_join(thread, NULL), 0);
}

/* ---- memory of other kinds ---- */

TEST(a_poisoned_page_has_its_own_error)
{
	struct sigaction action = { .sa_flags = SA_SIGINFO, .sa_sigaction = returning };
	size_t page = page_size();
	char *p, buf[128];
	uint32_t word = 7;
	int err = 0;

	prepare();
	/* Poisoning a page that is in use raises the signal at once, to be ignored here. */
	WORKS(sigaction(SIGBUS, &action, NULL));
	enable();
	p = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(p != MAP_FAILED);
	memset(p, 3, 2 * page);
	if (madvise(p + page, page, MADV_HWPOISON))
		skip("no page can be poisoned here: %s", strerror(errno));

	CHECK_EQ(gmem_nofault_copy(true, buf, p + page - 37, 100, &err), 37);
	CHECK_EQ(err, -EHWPOISON);
	CHECK_EQ(gmem_nofault_copy(true, p + page - 37, buf, 100, &err), 37);
	CHECK_EQ(err, -EHWPOISON);
	CHECK_EQ(gmem_nofault_load32(true, p + page, __ATOMIC_RELAXED, &word), -EHWPOISON);
	CHECK_EQ(gmem_nofault_store32(true, p + page, 1, __ATOMIC_RELAXED), -EHWPOISON);
	CHECK_EQ(gmem_nofault_copy(false, buf, p + page - 37, 100, &err), 37);
	CHECK_EQ(err, -EFAULT);
}

TEST(private_pages_of_a_guest_memfd_are_missing_pages)
{
	struct gmem_kvm_create_guest_memfd create = {
		.size = 16 * page_size(),
		.flags = GUEST_MEMFD_FLAG_MMAP,
	};
	size_t page = page_size();
	char buf[256];
	uint64_t word = 7;
	int kvm, vm, fd, fast, err = 0;
	char *p;

	prepare();
	enable();
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		skip("/dev/kvm: %s", strerror(errno));
	vm = ioctl(kvm, KVM_CREATE_VM, PRIVATE_VM);
	if (vm < 0)
		vm = ioctl(kvm, KVM_CREATE_VM, 0);
	fd = vm < 0 ? -1 : ioctl(vm, KVM_CREATE_GUEST_MEMFD, &create);
	if (fd < 0)
		skip("no mappable guest_memfd: %s", strerror(errno));
	p = mmap(NULL, 16 * page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(p != MAP_FAILED);

	for (fast = 0; fast < 2; fast++) {
		CHECK_EQ(gmem_nofault_copy(fast, buf, p + 5, 200, &err), 0);
		CHECK_EQ(err, -EFAULT);
		CHECK_EQ(gmem_nofault_copy(fast, p + 5, buf, 200, &err), 0);
		CHECK_EQ(err, -EFAULT);
		CHECK_EQ(gmem_nofault_fill(fast, p + 5, 1, 5 * page, &err), 0);
		CHECK_EQ(err, -EFAULT);
		CHECK_EQ(gmem_nofault_load64(fast, p + 8, __ATOMIC_ACQUIRE, &word), -EFAULT);
		CHECK_EQ(gmem_nofault_store64(fast, p + 8, 1, __ATOMIC_SEQ_CST), -EFAULT);
	}
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
