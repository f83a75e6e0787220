/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "harness.h"

#define TEST_SECONDS 100

/* These tests bring their own handlers; the sanitizers' would come first. */
const char *__asan_default_options(void);
const char *__tsan_default_options(void);

const char *__asan_default_options(void)
{
	return "handle_sigbus=0";
}

const char *__tsan_default_options(void)
{
	return "handle_sigbus=0";
}

/* What a child tells its parent before it goes. */
struct verdict {
	bool skipped;
	char reason[240];
};

static char current_case[160];
static struct test *first_test;
static struct test **last_test = &first_test;
static struct verdict *verdict;

void test_register(struct test *test)
{
	*last_test = test;
	last_test = &test->next;
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
	fflush(stdout);
	_exit(EXIT_FAILURE);
}

void skip(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(verdict->reason, sizeof(verdict->reason), format, args);
	va_end(args);
	verdict->skipped = true;
	fflush(stdout);
	_exit(EXIT_SUCCESS);
}

void in_case(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(current_case, sizeof(current_case), format, args);
	va_end(args);
}

void check_eq(const char *file, int line, const char *text, int64_t actual, int64_t wanted)
{
	if (actual != wanted)
		fail_at(file, line, "%s is %lld (0x%llx), not %lld (0x%llx)", text,
			(long long)actual, (unsigned long long)actual, (long long)wanted,
			(unsigned long long)wanted);
}

long check_works(const char *file, int line, const char *text, long ret)
{
	if (ret < 0)
		fail_at(file, line, "%s: %s", text, strerror(errno));
	return ret;
}

/* An emulated machine shows itself by this. */
static __attribute__((unused)) uint64_t system_call_ns(void)
{
	static uint64_t ns;
	struct timespec start, end;
	int i;

	if (ns)
		return ns;

	clock_gettime(CLOCK_MONOTONIC, &start);
	for (i = 0; i < 256; i++)
		syscall(SYS_getppid);
	clock_gettime(CLOCK_MONOTONIC, &end);
	ns = (uint64_t)(end.tv_sec - start.tv_sec) * 1000000000 + (uint64_t)end.tv_nsec -
	     (uint64_t)start.tv_nsec;
	ns /= 256;
	return ns;
}

bool is_slow(void)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	return true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
	return true;
#endif
#endif
	return system_call_ns() > 2000;
}

/* ---- memory ---- */

size_t page_size(void)
{
	return (size_t)sysconf(_SC_PAGESIZE);
}

static char *map_some(char *at, size_t file_size, size_t size)
{
	int fd = (int)WORKS(memfd_create("touch", MFD_CLOEXEC));
	char *p;

	WORKS(ftruncate(fd, (off_t)file_size));
	p = mmap(at, size, PROT_READ | PROT_WRITE, MAP_SHARED | (at ? MAP_FIXED : 0), fd, 0);
	WORKS(p == MAP_FAILED ? -1 : 0);
	close(fd);
	return p;
}

void *map_with_hole(size_t there, size_t missing)
{
	return map_some(NULL, there, there + missing);
}

void *map_without_page(size_t size, size_t hole)
{
	char *p = map_some(NULL, size, size);

	map_some(p + hole, 0, page_size());
	return p;
}

uint8_t pattern(size_t i)
{
	return (uint8_t)(i * 7 + i / 251 + 1);
}

void fill_pattern(void *p, size_t size)
{
	uint8_t *bytes = p;
	size_t i;

	for (i = 0; i < size; i++)
		bytes[i] = pattern(i);
}

/* ---- running ---- */

static const char *run_one(const struct test *test, int *status)
{
	pid_t pid;

	memset(verdict, 0, sizeof(*verdict));
	current_case[0] = '\0';
	fflush(stdout);

	pid = fork();
	if (pid == 0) {
		alarm(TEST_SECONDS);
		test->run();
		fflush(stdout);
		_exit(EXIT_SUCCESS);
	}
	if (pid < 0 || waitpid(pid, status, 0) != pid)
		return "no child";
	if (WIFSIGNALED(*status))
		return WTERMSIG(*status) == SIGALRM ? "took too long" : strsignal(WTERMSIG(*status));
	return WEXITSTATUS(*status) ? "failed" : NULL;
}

static bool is_wanted(const struct test *test, int argc, char **argv)
{
	int i;

	for (i = 1; i < argc; i++) {
		if (strstr(test->name, argv[i]))
			return true;
	}
	return argc < 2;
}

int run_tests(int argc, char **argv)
{
	unsigned int number = 0, failed = 0;
	const struct test *test;
	const char *trouble;
	int status = 0;

	verdict = mmap(NULL, sizeof(*verdict), PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (verdict == MAP_FAILED)
		return EXIT_FAILURE;

	for (test = first_test; test; test = test->next)
		number += is_wanted(test, argc, argv);
	printf("1..%u\n", number);

	number = 0;
	for (test = first_test; test; test = test->next) {
		if (!is_wanted(test, argc, argv))
			continue;

		trouble = run_one(test, &status);
		if (trouble)
			printf("# %s: %s\n", test->name, trouble);
		printf("%sok %u - %s%s%s\n", trouble ? "not " : "", ++number, test->name,
		       verdict->skipped ? " # SKIP " : "", verdict->reason);
		failed += trouble != NULL;
	}
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
