/* SPDX-License-Identifier: MIT */
/*
 * The smallest test runner that survives what these tests do: every test runs in a
 * child of its own, so that a crash is one failure and not the end. Speaks TAP; needs
 * nothing but a kernel, so that the same static program runs as the only one in an
 * emulated machine.
 */
#ifndef TESTS_COMMON_RUNNER_H
#define TESTS_COMMON_RUNNER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

#define KIB ((uint64_t)1 << 10)
#define MIB ((uint64_t)1 << 20)
#define GIB ((uint64_t)1 << 30)

/* ---- tests ---- */

struct test {
	const char *name;
	void (*run)(void);
	struct test *next;
};

void test_register(struct test *test);

/* TEST(name_is_a_claim) { ... }: runs in the order of the source */
#define TEST(name_)                                                       \
	static void name_(void);                                          \
	__attribute__((constructor)) static void register_##name_(void)   \
	{                                                                 \
		static struct test test = { #name_, name_, NULL };        \
		test_register(&test);                                     \
	}                                                                 \
	static void name_(void)

/*
 * Run every test, or those whose name contains one of the arguments, and kill a test
 * after so many seconds. Each child calls @around with its test, which @around must
 * run, unless it is NULL. The program's exit status.
 */
int runner_main(int argc, char **argv, unsigned int seconds, void (*around)(void (*run)(void)));

/* ---- ending a test early ---- */

/* End the child, with what it printed. */
__attribute__((noreturn))
void end_child(int status);

__attribute__((noreturn, format(printf, 3, 4)))
void fail_at(const char *file, int line, const char *format, ...);
#define FAIL(...) fail_at(__FILE__, __LINE__, __VA_ARGS__)

/* Only after a probe that tells "cannot" from "does it wrong". */
__attribute__((noreturn, format(printf, 1, 2)))
void skip(const char *format, ...);

/* Name the case that the assertions from here on are about: a failure says it. */
__attribute__((format(printf, 1, 2)))
void in_case(const char *format, ...);

/* Print a line for the reader of the log. */
__attribute__((format(printf, 1, 2)))
void note(const char *format, ...);

/* ---- assertions ---- */

#define CHECK(condition)                                                  \
	do {                                                              \
		if (!(condition))                                         \
			FAIL("expected: %s", #condition);                 \
	} while (0)

void check_eq(const char *file, int line, const char *text, uint64_t actual, uint64_t wanted);
#define CHECK_EQ(actual, wanted) \
	check_eq(__FILE__, __LINE__, #actual, (uint64_t)(actual), (uint64_t)(wanted))

/* A system call's result the way the library gives it: -errno on failure */
long sys_result(long ret);
#define SYS(call) sys_result((long)(call))

/* "success", or the error's name */
const char *result_text(long ret);

/* The result of a system call, which must work */
long check_works(const char *file, int line, const char *text, long ret);
#define WORKS(call) check_works(__FILE__, __LINE__, #call, SYS(call))

uint64_t page_size(void);

#endif
