/* SPDX-License-Identifier: MIT */
/* present_pages: which pages of a region's memory exist. */
#ifndef GMEM_PRESENT_PAGES_H
#define GMEM_PRESENT_PAGES_H

#include <stdint.h>

struct gmem_host_look;
struct gmem_region;

/* @offset is from the start of the region; anything but 0 ends the walk. */
typedef int (*gmem_present_pages_fn)(void *data, uint64_t offset, uint64_t size);

/*
 * Call @fn, in order, for each run of pages that may hold something else than zero. The walk
 * allocates no page. What cannot be told apart counts as present: a file that can neither be
 * mapped nor counted; host memory of which the kernel does not say what is behind a page that is
 * absent. What userfaultfd is asked for, or a file has, is present. @look: of this transfer.
 * Returns 0, what @fn returned, or the kernel's errno. A lock or a claim keeps the region as it is.
 */
int gmem_region_present_pages(const struct gmem_region *region, uint32_t side, uint64_t offset,
			      uint64_t size, struct gmem_host_look *look, gmem_present_pages_fn fn,
			      void *data);

#endif
