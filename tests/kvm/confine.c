/* SPDX-License-Identifier: MIT */
#include "confine.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

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

void install(uint32_t phases, uint32_t otherwise)
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

void enter(uint32_t phases)
{
	struct sigaction action = { .sa_sigaction = on_trap, .sa_flags = SA_SIGINFO };

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	skip("what a sanitizer calls is in no table");
#endif
	for (size_t i = 0; i < ARRAY_SIZE(phase_names); i++)
		if (phases & 1u << i)
			the_phase = phases == 1u << i ? phase_names[i] : "several";
	fflush(stdout);
	WORKS(sigaction(SIGSYS, &action, NULL));
	WORKS(prctl(PR_SET_NAME, the_phase));
	install(phases, SECCOMP_RET_TRAP);
}

void leave(void)
{
	fflush(stdout);
	_exit(EXIT_SUCCESS);
}

/* ---- threads ---- */

struct crew {
	pthread_barrier_t begin;
	pthread_barrier_t end;
	void (*work)(void *data, unsigned int number);
	void *data;
	unsigned int hired;
};

static void *crew_member(void *data)
{
	struct crew *crew = data;
	unsigned int number = __atomic_fetch_add(&crew->hired, 1, __ATOMIC_RELAXED);

	pthread_barrier_wait(&crew->begin);
	pthread_barrier_wait(&crew->begin);
	crew->work(crew->data, number);
	pthread_barrier_wait(&crew->end);
	/* To end is another call, which is in few tables. */
	for (;;)
		pthread_barrier_wait(&crew->begin);
	return NULL;
}

void enter_with_threads(uint32_t phases, unsigned int count, void (*work)(void *data, unsigned int number),
			void *data)
{
	static struct crew crew;
	pthread_t thread;

	crew.work = work;
	crew.data = data;
	CHECK_EQ(pthread_barrier_init(&crew.begin, NULL, count + 1), 0);
	CHECK_EQ(pthread_barrier_init(&crew.end, NULL, count + 1), 0);
	for (unsigned int i = 0; i < count; i++)
		CHECK_EQ(pthread_create(&thread, NULL, crew_member, &crew), 0);
	/* What a thread calls when it begins is over then. */
	pthread_barrier_wait(&crew.begin);
	enter(phases);
	pthread_barrier_wait(&crew.begin);
	pthread_barrier_wait(&crew.end);
}

/* ---- what phases work on ---- */

void site_new(struct site *s, int type, uint32_t backing, uint64_t pages, bool recovers)
{
	GMEM_OPTS(gmem_region_opts, opts);

	lab_new(&s->lab, type);
	require_backing(&s->lab.m, backing, &s->plan);
	s->backing = backing;
	s->size = pages * s->lab.page;
	if (backing == GMEM_BACKING_HOST || backing == GMEM_BACKING_MAPPED)
		opts.flags = GMEM_REGION_DIRTY_LOG;
	opts.plan = s->plan;
	OK(gmem_region_add(s->lab.vm, BASE, s->size, &opts, &s->region));
	if (recovers)
		OK(gmem_recovery_enable());
	OK(gmem_view_new(s->lab.vm, &s->view));
}

void each_backing(void (*run)(uint32_t backing))
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

bool get_fds(uint64_t wanted)
{
	struct rlimit limit;

	WORKS(getrlimit(RLIMIT_NOFILE, &limit));
	limit.rlim_cur = limit.rlim_max;
	WORKS(setrlimit(RLIMIT_NOFILE, &limit));
	return limit.rlim_cur >= wanted;
}
