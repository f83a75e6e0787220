/* SPDX-License-Identifier: MIT */
/*
 * mapped_extent: the importing side's mapping of one extent.
 *
 * All of the extent is mapped when it is announced, which proves that its file can be mapped.
 * Until it ends nothing else is mapped in its place: what is not granted loses its
 * access rights (mprotect(2)), which, unlike a mapping put over it, cannot fail after the
 * old one is gone. So the range of addresses is the import's own all the time. The
 * file descriptor is not needed any more.
 *
 * Which pages are withheld is recorded in the region's page states, as private. The kernel
 * has a mapping of its own for each run of pages with equal rights, and limits their
 * number for the whole process; they are counted here.
 *
 * Offsets are from the start of the extent, in whole pages of the file.
 */
#ifndef GMEM_MAPPED_EXTENT_H
#define GMEM_MAPPED_EXTENT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/range_map.h"
#include "region/region.h"
#include "share/wire.h"

struct gmem_mapped_extent {
	struct gmem_region region;	/* in the import's vm.regions by its gpa */
	struct gmem_range id;		/* in the import's ids */
	uint64_t file_size;
	uint64_t page_size;		/* of the file */
	uint32_t rights;
	uint32_t backing;		/* of the VMM's region */
	uint64_t runs;			/* of pages with equal rights */
};

/* Returns the bytes that an extent of @size costs this process in tables and bits. */
uint64_t gmem_mapped_extent_cost(uint64_t size);

/* Map what a message "map" says of @fd; all is granted in its states. */
int gmem_mapped_extent_new(struct gmem_vm *vm, const struct gmem_message *message, int fd,
			   struct gmem_mapped_extent **ret);
/* Give the advice for guest memory, and take the access rights if the message has it withheld. */
int gmem_mapped_extent_prepare(struct gmem_mapped_extent *extent, const struct gmem_message *message);
/* Unmaps what is still mapped, if the kernel lets it: only the function below says so. */
void gmem_mapped_extent_free(struct gmem_mapped_extent *extent);
/*
 * Unmap @size bytes at the end. Returns 1, 0 if no more were left, or -errno: then they stay
 * mapped for good, and nobody's.
 */
int gmem_mapped_extent_unmap_some(struct gmem_mapped_extent *extent, uint64_t size);

/* Returns by how many the runs grow at most if the range is granted or withheld: 0 to 2. */
unsigned int gmem_mapped_extent_growth(const struct gmem_mapped_extent *extent, uint64_t offset,
				       uint64_t size, bool granted);
/* Record that a range is granted or withheld, and count the runs. */
void gmem_mapped_extent_note(struct gmem_mapped_extent *extent, uint64_t offset, uint64_t size,
			     bool granted);
/* Give a range access rights or take them; returns -errno, and the range may have either. */
int gmem_mapped_extent_protect(const struct gmem_mapped_extent *extent, uint64_t offset,
			       uint64_t size, bool granted);

#endif
