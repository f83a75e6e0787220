/* SPDX-License-Identifier: MIT */
/*
 * sort: arrays in order of a number in them, without memory and without system calls.
 *
 * qsort(3) is no part of the library: glibc's allocates a copy of a long array, and asks the
 * kernel how much memory there is, which a sandbox may kill the program for. It compares, too,
 * which takes five times as long: this sort distributes by a byte of the number at a time.
 */
#ifndef GMEM_SORT_H
#define GMEM_SORT_H

#include <stddef.h>

/*
 * Sorts @count elements of @size bytes, a multiple of 8, by the uint64_t at @key bytes in each: in
 * place, in n steps for each byte in which the numbers differ, and in n where they are in order
 * already. Equal elements may change places.
 */
void gmem_sort(void *array, size_t count, size_t size, size_t key);

#endif
