/* SPDX-License-Identifier: MIT */
/*
 * extent: regions as parts of files that one process may give to another.
 *
 * Both sides of a connection inspect files here, by the same rules: only files of memory
 * are exchanged. Another file could hang a process that touches a mapping of it, or act
 * on being mapped. The export's side also records which of the caller's memory is a
 * mapping of which file.
 */
#ifndef GMEM_EXTENT_H
#define GMEM_EXTENT_H

#include <stdbool.h>
#include <stdint.h>

#include "gmem.h"
#include "base/range_map.h"
#include "region/region.h"

#define GMEM_ALL_RIGHTS (GMEM_RIGHT_READ | GMEM_RIGHT_WRITE)

/* The properties of a file that giver and receiver check */
struct gmem_extent_file {
	uint64_t size;
	uint64_t page_size;
	uint32_t seals;		/* F_SEAL_* */
	uint32_t rights;	/* GMEM_RIGHT_* that the fd and the seals allow */
	uint32_t max_rights;	/* that the seals leave to whoever opens the file anew */
	bool can_shrink;
	bool is_gmemfd;
	uint64_t device;
	uint64_t inode;
};

/*
 * Returns -EINVAL if @fd is not a file of memory, or ends before @offset + @size; -EBADF if
 * it is not open for reading, without which nothing is mapped.
 */
int gmem_extent_inspect(int fd, uint64_t offset, uint64_t size, struct gmem_extent_file *ret);

/*
 * Returns -EPERM unless the seals of @file, which is @fd, keep all processes that are given
 * it from changing what others can do with it.
 */
int gmem_extent_check_seals(int fd, const struct gmem_extent_file *file);

/* ---- the caller's memory, by host address ---- */

/*
 * Duplicates @fd, which is @file. Returns -EEXIST if some of the memory was added already.
 */
int gmem_callers_memory_add(struct gmem_range_map *map, const void *hva, uint64_t size, int fd,
			    uint64_t offset, const struct gmem_extent_file *file);
/* Returns -ENOENT if no memory was added that starts at @hva. */
int gmem_callers_memory_remove(struct gmem_range_map *map, const void *hva);
void gmem_callers_memory_clear(struct gmem_range_map *map);

/*
 * Whether processes get the region at all: a device's memory only if the caller named its file.
 * With the same locks as the next function.
 */
bool gmem_extent_is_offered(const struct gmem_range_map *memory, const struct gmem_region *region);
/*
 * Describe a region as part of a file. With the export's lock, which guards @memory, and
 * the VM's lock held; @ret->fd is borrowed and valid as long as they are. Makes system
 * calls only for a file that can change. Files of host memory must be sealed, unless
 * @unsealed.
 */
int gmem_extent_of_region(const struct gmem_range_map *memory, bool unsealed,
			  const struct gmem_region *region, struct gmem_extent *ret,
			  struct gmem_extent_file *ret_file);

#endif
