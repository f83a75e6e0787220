/* SPDX-License-Identifier: MIT */
/*
 * extent: regions as parts of files that may go from one process to another.
 *
 * Both sides of a connection inspect files here, by the same rules. The export's
 * side also knows which memory of the caller's is a mapping of which file.
 */
#ifndef GMEM_EXTENT_H
#define GMEM_EXTENT_H

#include <stdbool.h>
#include <stdint.h>

#include "gmem.h"
#include "base/range_map.h"
#include "region/region.h"

#define GMEM_ALL_RIGHTS (GMEM_RIGHT_READ | GMEM_RIGHT_WRITE)

/* What of a file matters to whoever gives it away or gets it */
struct gmem_extent_file {
	uint64_t size;
	uint64_t page_size;
	uint32_t rights;	/* GMEM_RIGHT_*: what its seals leave */
	bool can_shrink;
	bool is_gmemfd;
};

/* -EINVAL if the file is of a kind that is not exchanged, or shorter than it should be */
int gmem_extent_inspect(int fd, uint64_t offset, uint64_t size, struct gmem_extent_file *ret);

/* ---- the caller's memory, by host address ---- */

/* Duplicates @fd. -EEXIST: some of the memory was added already */
int gmem_callers_memory_add(struct gmem_range_map *map, const void *hva, uint64_t size, int fd,
			    uint64_t offset);
/* -ENOENT: no memory was added that starts at @hva */
int gmem_callers_memory_remove(struct gmem_range_map *map, const void *hva);
void gmem_callers_memory_clear(struct gmem_range_map *map);

/* How a region can be given away; with the lock of @memory and the VM's lock held */
int gmem_extent_of_region(const struct gmem_range_map *memory, const struct gmem_region *region,
			  struct gmem_extent *ret);

#endif
