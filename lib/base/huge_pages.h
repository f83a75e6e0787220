/* SPDX-License-Identifier: MIT */
/*
 * huge_pages: the kernel's pools of huge pages, of which there is one for each size.
 */
#ifndef GMEM_HUGE_PAGES_H
#define GMEM_HUGE_PAGES_H

#include <stdbool.h>
#include <stdint.h>

struct gmem_huge_pool {
	uint64_t page_size;
	uint64_t is_free;	/* pages that nobody has */
	uint64_t reserved;	/* of them, for mappings that have not got them yet */
	uint64_t extra;		/* that the kernel may still make of ordinary memory */
};

/* False if the kernel has no pages of that size, or does not say. */
bool gmem_huge_pool_get(uint64_t page_size, struct gmem_huge_pool *ret);
/* The pages that a new mapping can have */
uint64_t gmem_huge_pool_room(const struct gmem_huge_pool *pool);
/* -ENOMEM: @pages huge pages are more than the pool has. */
int gmem_huge_pool_fail(const struct gmem_huge_pool *pool, uint64_t pages);

/* The size is two to the power of this, as memfd_create(2) and mmap(2) have it; 0 for no size. */
unsigned int gmem_huge_page_shift(uint64_t page_size);

#define GMEM_HUGE_SIZES_TEXT 256
/* The sizes that the kernel has, such as "64 KiB, 2 MiB", or "" if it does not say; returns @text. */
const char *gmem_huge_page_sizes(char text[GMEM_HUGE_SIZES_TEXT]);

#endif
