/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runner.h"

/* A child's word to its parent, in memory that both have. */
struct verdict {
	bool skipped;
	char reason[240];
};

static char current_case[160];
static struct test *first_test;
static struct test **last_test = &first_test;
static struct verdict *verdict;
static volatile pid_t child;

void test_register(struct test *test)
{
	*last_test = test;
	last_test = &test->next;
}

/* ---- ending a test early ---- */

void end_child(int status)
{
	fflush(stdout);
	_exit(status);
}

void fail_at(const char *file, int line, const char *format, ...)
{
	const char *slash = strrchr(file, '/');
	va_list args;

	printf("# %s:%d: ", slash ? slash + 1 : file, line);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("%s%s%s\n", current_case[0] ? " [" : "", current_case, current_case[0] ? "]" : "");
	end_child(EXIT_FAILURE);
}

void skip(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(verdict->reason, sizeof(verdict->reason), format, args);
	va_end(args);
	verdict->skipped = true;
	end_child(EXIT_SUCCESS);
}

void in_case(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(current_case, sizeof(current_case), format, args);
	va_end(args);
}

void note(const char *format, ...)
{
	va_list args;

	printf("# ");
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
}

/* ---- assertions ---- */

void check_eq(const char *file, int line, const char *text, uint64_t actual, uint64_t wanted)
{
	if (actual != wanted)
		fail_at(file, line, "%s is %lld (0x%llx), not %lld (0x%llx)", text,
			(long long)actual, (unsigned long long)actual, (long long)wanted,
			(unsigned long long)wanted);
}

long sys_result(long ret)
{
	return ret == -1 ? -errno : ret;
}

const char *result_text(long ret)
{
	return ret < 0 ? strerror((int)-ret) : "success";
}

long check_works(const char *file, int line, const char *text, long ret)
{
	if (ret < 0)
		fail_at(file, line, "%s: %ld (%s)", text, ret, result_text(ret));
	return ret;
}

uint64_t page_size(void)
{
	return (uint64_t)sysconf(_SC_PAGESIZE);
}

/* ---- running ---- */

static void run_child(const struct test *test, void (*around)(void (*run)(void)))
{
	if (around)
		around(test->run);
	else
		test->run();
	end_child(EXIT_SUCCESS);
}

/* The parent's alarm, not the child's: a test may block or use SIGALRM itself. */
static void on_timeout(int number)
{
	(void)number;
	kill(child, SIGKILL);
}

static bool report(const struct test *test, unsigned int number, int status, unsigned int late)
{
	if (WIFEXITED(status) && !WEXITSTATUS(status)) {
		printf("ok %u - %s%s%s\n", number, test->name,
		       verdict->skipped ? " # SKIP " : "", verdict->reason);
		return true;
	}
	if (late)
		printf("# not done after %u seconds\n", late);
	else if (WIFSIGNALED(status))
		printf("# killed by %s\n", strsignal(WTERMSIG(status)));
	printf("not ok %u - %s\n", number, test->name);
	return false;
}

static bool run_test(const struct test *test, unsigned int number, unsigned int seconds,
		     void (*around)(void (*run)(void)))
{
	unsigned int left;
	int status;

	*verdict = (struct verdict){ .skipped = false };
	fflush(stdout);
	child = fork();
	if (child < 0) {
		printf("# cannot fork: %s\nnot ok %u - %s\n", strerror(errno), number, test->name);
		return false;
	}
	if (!child)
		run_child(test, around);

	alarm(seconds);
	while (waitpid(child, &status, 0) < 0 && errno == EINTR)
		;
	left = alarm(0);
	return report(test, number, status, left ? 0 : seconds);
}

static bool is_wanted(const struct test *test, int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		if (strstr(test->name, argv[i]))
			return true;
	}
	return argc < 2;
}

int runner_main(int argc, char **argv, unsigned int seconds, void (*around)(void (*run)(void)))
{
	const struct sigaction timeout = { .sa_handler = on_timeout };
	unsigned int number = 0, failed = 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	verdict = mmap(NULL, sizeof(*verdict), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		       -1, 0);
	if (verdict == MAP_FAILED)
		return EXIT_FAILURE;
	sigaction(SIGALRM, &timeout, NULL);

	for (const struct test *test = first_test; test; test = test->next) {
		if (is_wanted(test, argc, argv))
			failed += !run_test(test, ++number, seconds, around);
	}
	printf("1..%u\n", number);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
