/* SPDX-License-Identifier: MIT */
/*
 * Every test runs in a child of its own: what these tests try may kill, and the
 * handlers of one test are not those of the next. Speaks TAP; needs nothing but
 * a kernel, so that the same static program runs alone in an emulated machine.
 */
#ifndef TESTS_TOUCH_HARNESS_H
#define TESTS_TOUCH_HARNESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gmem.h"
#include "nofault/nofault.h"

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

#define KIB ((size_t)1 << 10)
#define MIB ((size_t)1 << 20)

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

/* Run every test, or those whose name contains one of the arguments. */
int run_tests(int argc, char **argv);

__attribute__((noreturn, format(printf, 3, 4)))
void fail_at(const char *file, int line, const char *format, ...);
#define FAIL(...) fail_at(__FILE__, __LINE__, __VA_ARGS__)

/* Only after a probe that tells "cannot" from "does it wrong". */
__attribute__((noreturn, format(printf, 1, 2)))
void skip(const char *format, ...);

/* Named in a failure: which of many cases it was */
__attribute__((format(printf, 1, 2)))
void in_case(const char *format, ...);

#define CHECK(condition)                                                  \
	do {                                                              \
		if (!(condition))                                         \
			FAIL("expected: %s", #condition);                 \
	} while (0)

void check_eq(const char *file, int line, const char *text, int64_t actual, int64_t wanted);
#define CHECK_EQ(actual, wanted) \
	check_eq(__FILE__, __LINE__, #actual, (int64_t)(actual), (int64_t)(wanted))

/* a system call that must work; its result */
long check_works(const char *file, int line, const char *text, long ret);
#define WORKS(call) check_works(__FILE__, __LINE__, #call, (long)(call))

/* An emulated machine or a sanitizer makes everything slow: do less of the same. */
bool is_slow(void);

/* ---- memory that is there up to a point ---- */

size_t page_size(void);

/* @there bytes (whole pages) that are there, then @missing bytes past the end of the file */
void *map_with_hole(size_t there, size_t missing);
/* the same, without the page at @hole bytes; all others are there */
void *map_without_page(size_t size, size_t hole);

/* A byte that differs from its neighbours and from the same one of the next pages */
uint8_t pattern(size_t i);
void fill_pattern(void *p, size_t size);

#endif
