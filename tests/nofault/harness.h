/* SPDX-License-Identifier: MIT */
/*
 * Helpers of the tests of accesses that may fault. Every test runs in a child of its
 * own, see tests/common/runner.h: the handlers of one are not those of the next.
 */
#ifndef TESTS_NOFAULT_HARNESS_H
#define TESTS_NOFAULT_HARNESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gmem.h"
#include "nofault/nofault.h"

#include "../common/runner.h"

/* Run every test, or those whose name contains one of the arguments. */
int run_tests(int argc, char **argv);

/* An emulated machine or a sanitizer makes everything slow: do less of the same. */
bool is_slow(void);

/* ---- memory that is there up to a point ---- */

/* Why pages cannot be accessed: the first raises SIGBUS, the others SIGSEGV. */
enum hole { PAST_THE_END, WITHOUT_PERMISSION, UNMAPPED, READ_ONLY };

extern enum hole hole_kind;

/* A test for each kind of hole. One for holes that are only written to has READ_ONLY, too. */
#define TEST_IN_CASE(name, kind, suffix)                                  \
	TEST(name##suffix)                                                \
	{                                                                 \
		hole_kind = kind;                                         \
		name();                                                   \
	}
#define TEST_IN_EACH_CASE(name)                                           \
	TEST_IN_CASE(name, PAST_THE_END, _past_the_end_of_the_file)       \
	TEST_IN_CASE(name, WITHOUT_PERMISSION, _without_permission)       \
	TEST_IN_CASE(name, UNMAPPED, _where_nothing_is_mapped)
#define HOLE_TEST(name)                                                   \
	static void name(void);                                           \
	TEST_IN_EACH_CASE(name)                                           \
	static void name(void)
#define WRITTEN_HOLE_TEST(name)                                           \
	static void name(void);                                           \
	TEST_IN_EACH_CASE(name)                                           \
	TEST_IN_CASE(name, READ_ONLY, _where_it_may_only_be_read)         \
	static void name(void)

/* @there bytes (whole pages) that are there, then @missing bytes that are not */
void *map_with_hole(size_t there, size_t missing);
/* @size bytes that are there, but for the page at @hole bytes */
void *map_without_page(size_t size, size_t hole);

/* Byte @i of a pattern: differs from its neighbours and from those a page away */
uint8_t pattern(size_t i);
void fill_pattern(void *p, size_t size);

#endif
