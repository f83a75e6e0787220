/* SPDX-License-Identifier: MIT */
/* numa: sets the nodes that memory shall come from, and counts those it came from. */
#ifndef GMEM_NUMA_H
#define GMEM_NUMA_H

#include <stdint.h>

#include "gmem.h"

struct gmem_region;

/*
 * Add the pages of one side of a region to the counts in @pages. Maps the file itself;
 * allocates no guest memory.
 */
int gmem_region_count_nodes(const struct gmem_region *region, uint32_t side, uint64_t offset,
			    uint64_t size, struct gmem_numa_pages *pages);

#endif
