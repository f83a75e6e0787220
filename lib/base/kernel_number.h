/* SPDX-License-Identifier: MIT */
/* kernel_number: numbers in the small text files of /proc and /sys. */
#ifndef GMEM_KERNEL_NUMBER_H
#define GMEM_KERNEL_NUMBER_H

#include <stdbool.h>
#include <stdint.h>

/*
 * Reads the number after @label in the first 8 KiB of the file. A label that begins with a
 * newline is looked for at the beginnings of lines. False if there is no such file, label or
 * number; so "max" is no number.
 */
bool gmem_kernel_number(const char *directory, const char *name, const char *label, uint64_t *ret);

#endif
