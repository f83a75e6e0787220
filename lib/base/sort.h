/* SPDX-License-Identifier: MIT */
/*
 * sort: arrays in order, without memory and without system calls.
 *
 * qsort(3) is no part of the library: glibc's allocates a copy of a long array, and asks the
 * kernel how much memory there is, which a sandbox may kill the program for.
 */
#ifndef GMEM_SORT_H
#define GMEM_SORT_H

#include <stddef.h>

/*
 * Sorts @count elements of @size bytes, as qsort(3) does: in place, in n log n steps at most,
 * and in n where they are in order already. Equal elements may change places.
 */
void gmem_sort(void *array, size_t count, size_t size, int (*compare)(const void *, const void *));

#endif
