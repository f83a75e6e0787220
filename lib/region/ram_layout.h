/* SPDX-License-Identifier: MIT */
/* ram_layout: where the RAM of common machines goes, and how it is cut into memslots. */
#ifndef GMEM_RAM_LAYOUT_H
#define GMEM_RAM_LAYOUT_H

#include <stdint.h>

#include "gmem.h"

/* KVM counts a memslot's pages in 31 bits: it has fewer than these. */
#define GMEM_MEMSLOT_PAGES (UINT64_C(1) << 31)

/*
 * Returns how many of @size bytes at @gpa go into the first of as few memslots as they take: all,
 * or up to an address at which pages of every size that the CPU has begin.
 */
uint64_t gmem_ram_cut(uint64_t gpa, uint64_t size);

#endif
