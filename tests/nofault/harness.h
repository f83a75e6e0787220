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

/* @there bytes (whole pages) that are there, then @missing bytes past the end of the file */
void *map_with_hole(size_t there, size_t missing);
/* @size bytes that are there, but for the page at @hole bytes */
void *map_without_page(size_t size, size_t hole);

/* Byte @i of a pattern: differs from its neighbours and from those a page away */
uint8_t pattern(size_t i);
void fill_pattern(void *p, size_t size);

#endif
