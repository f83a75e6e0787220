/* SPDX-License-Identifier: MIT */
/*
 * region_memory: the two sides of a region's memory.
 *
 * A region with backing "private" has a shared side and a private one; every other
 * region has only the first. This module says what each side is made of, gives it
 * back to the host, and counts how much of it there is.
 *
 * The caller sees to it that the region keeps its size and its memory meanwhile:
 * it holds the VM's lock, change_lock or a claim.
 */
#ifndef GMEM_REGION_MEMORY_H
#define GMEM_REGION_MEMORY_H

#include <stdbool.h>
#include <stdint.h>

struct gmem_file;
struct gmem_host_look;
struct gmem_host_file;
struct gmem_region;

#define GMEM_SIDE_SHARED	1u
#define GMEM_SIDE_PRIVATE	2u

/* One side of a range of a region */
struct gmem_region_memory {
	struct gmem_file *file;		/* NULL: host memory */
	uint64_t offset;		/* in the file */
	void *hva;			/* where the region maps it; NULL: nowhere */
	uint64_t page_size;		/* the least that can be given back */
	uint64_t pool_page;		/* huge pages that all of it is made of, or the host's page */
	struct gmem_host_file *host_file;	/* behind host memory; NULL: not known, or none */
	uint64_t host_offset;		/* in @host_file */
	bool is_callers;		/* host memory that the region borrowed */
};

/*
 * @offset is from the start of the region. -ENXIO: a device's range, -EOPNOTSUPP:
 * only backing "private" has a private side.
 */
int gmem_region_memory_get(const struct gmem_region *region, uint32_t side, uint64_t offset,
			   uint64_t size, struct gmem_region_memory *ret);
/*
 * Tell whether both sides are the same bytes: a private guest_memfd with
 * GMEM_CREATE_MMAP. After a conversion nothing of such a region is stale.
 */
bool gmem_region_is_both_sides(const struct gmem_region *region);
/* How to discard: GMEM_DISCARD_NOT_ZERO or 0, and what this call has learned of host memory */
struct gmem_discard_how {
	uint64_t flags;
	struct gmem_host_look *look;
};

/*
 * Give the memory back to the host, in whole pages of it: see gmem_host_discard(). @ret_done (or
 * NULL) gets the bytes given back, also on failure. -EBUSY somebody holds a lease on that
 * memory, at whatever guest address. Takes the VM's lock, or the file's.
 */
int gmem_region_memory_discard(struct gmem_region *region, uint32_t side, uint64_t offset,
			       uint64_t size, const struct gmem_discard_how *how, uint64_t *ret_done);
/*
 * Mark what gmem_file_punch() took away of the region's memory since this was called last: from
 * the first hole to the last one. With the hook lock.
 */
void gmem_region_mark_punched(struct gmem_region *region);
/*
 * Give back whole pages of a guest_memfd's shared side, few of them, which the caller made and
 * has a lease on. They stay if there is another lease by now.
 */
void gmem_region_memory_give_back(struct gmem_region *region, uint64_t offset, uint64_t size);

/*
 * How much of @size bytes at @offset to work on at once: about @most, in whole pages of the
 * region's host memory, which may be larger.
 */
uint64_t gmem_region_memory_piece(const struct gmem_region *region, uint64_t offset, uint64_t size,
				  uint64_t most);
/*
 * The bytes at the start and at the end of a range that a discard leaves, because pages of the
 * side are freed only as a whole. If it leaves all, they are at the start.
 */
void gmem_region_memory_cut_pages(const struct gmem_region *region, uint32_t side, uint64_t offset,
				  uint64_t size, uint64_t *ret_head, uint64_t *ret_tail);
/*
 * Bytes that are in memory: of a file what is allocated, by whomever; of host
 * memory what is mapped here, pages of zeros included, or in the page cache; of a private
 * mapping of a file only its own pages. -EOPNOTSUPP: the file
 * cannot be mapped, and this kernel has no cachestat(2).
 */
int gmem_region_memory_resident(const struct gmem_region *region, uint32_t side,
				uint64_t offset, uint64_t size, uint64_t *ret_bytes);

/*
 * A file of hugetlbfs has pages that are not mapped here, and says only how many it has in all.
 * So many bytes of a range are there at least, which is what gmem_region_memory_resident() tells,
 * and at most. The two are one if the range is all of the file, and for all other memory.
 */
struct gmem_resident {
	uint64_t least;
	uint64_t most;
};

int gmem_region_memory_bounds(const struct gmem_region *region, uint32_t side, uint64_t offset,
			      uint64_t size, struct gmem_resident *ret);

#endif
