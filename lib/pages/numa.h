/* SPDX-License-Identifier: MIT */
/* numa: which nodes memory shall come from, and which it came from. */
#ifndef GMEM_NUMA_H
#define GMEM_NUMA_H

#include <stdint.h>

#include "gmem.h"

struct gmem_region;

/*
 * Add to the counts in @pages the pages of one side of a region. Maps for itself
 * what it looks at; allocates no guest memory.
 */
int gmem_region_count_nodes(const struct gmem_region *region, uint32_t side, uint64_t offset,
			    uint64_t size, struct gmem_numa_pages *pages);

#endif
