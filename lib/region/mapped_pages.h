/* SPDX-License-Identifier: MIT */
/*
 * mapped_pages: which pages the page tables of this process have.
 *
 * A page that is mapped exists, whoever made its file, and whether it does is known in a tenth
 * of the time that its file takes to answer. Of a page that is not mapped nothing is known.
 * Before Linux 6.7, and without /proc, nothing is known of any page.
 */
#ifndef GMEM_MAPPED_PAGES_H
#define GMEM_MAPPED_PAGES_H

#include <stdbool.h>
#include <stdint.h>

/*
 * Opens the page tables for a walk of @size bytes: an fd, to be closed by gmem_sys_close(), or
 * -errno, also where the walk is so short that it is not worth the time.
 */
int gmem_mapped_pages_open(uint64_t size);
/* Tell whether all pages of a range are mapped, in memory or, with GMEM_PAGES_SWAPPED, in swap. */
bool gmem_mapped_pages_are_all(int fd, uint64_t hva, uint64_t size, uint32_t kinds);
/* Mark the pages of a range that are mapped, a byte each: 1 or 0. Returns how many are, or -errno. */
int64_t gmem_mapped_pages_mark(int fd, uint64_t hva, uint64_t size, uint32_t kinds, unsigned char *marks);

#endif
