/* SPDX-License-Identifier: MIT */
/*
 * check: argument checks that several modules share.
 *
 * Each function returns 0, or -EINVAL with a sentence that names the argument
 * by @what and gives the numbers.
 */
#ifndef GMEM_CHECK_H
#define GMEM_CHECK_H

#include <stdint.h>

/* No processor of either architecture has more than 52 bits of guest address. */
#define GMEM_GPA_END (UINT64_C(1) << 52)

/* The range has a non-zero size, is page-aligned and does not wrap. */
int gmem_check_range(const char *what, uint64_t start, uint64_t size);
/* As gmem_check_range(), and the range lies below @limit, which @limit_name names. */
int gmem_check_range_within(const char *what, uint64_t start, uint64_t size,
			    uint64_t limit, const char *limit_name);
/* @value is a multiple of the host page. */
int gmem_check_aligned(const char *what, uint64_t value);
/* @align is 0, or a power of two not below the host page. */
int gmem_check_alignment(uint64_t align);
/* @flags has no bits outside @known. */
int gmem_check_flags(const char *what, uint64_t flags, uint64_t known);
/* @workers, of an options struct, are at most 1024. */
int gmem_check_workers(uint32_t workers);

#endif
