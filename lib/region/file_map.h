/* SPDX-License-Identifier: MIT */
/*
 * file_map: which memory of this process libgmem mapped.
 *
 * There are two kinds of mappings, both known by their host addresses: those that the
 * user made of a file, and may unmap or replace; and pinned ones, the memory of regions
 * and imports, which nothing replaces. Each is unmapped by its owner alone: what replaces
 * part of a user's mapping takes that part out of the record.
 *
 * A region can be put over space that is kept for it: a reservation, or a mapping of the same
 * part of the same file. What was there comes back when the region's mapping ends. A mapping
 * of the user's stays in the record meanwhile, under that of the region, so that he may unmap
 * it as a whole afterwards.
 *
 * The record is the process's, and so is its lock (rank MAPS): it is held across mmap()
 * and munmap(), which the kernel serialises for a process anyway.
 *
 * Not supported: mappings that somebody else changes with calls of his own. What comes
 * where the record says that something is already is not unmapped in its stead; of what
 * was there, the rest stays mapped.
 */
#ifndef GMEM_FILE_MAP_H
#define GMEM_FILE_MAP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/range_map.h"

/* A flag of struct gmem_place beside GMEM_MAP_*: at @hva, over space that is kept for it */
#define GMEM_PLACE_RESERVED (UINT64_C(1) << 63)

/* Place of a mapping: struct gmem_map_opts, checked, and more */
struct gmem_place {
	uint64_t flags;		/* GMEM_MAP_*, GMEM_PLACE_RESERVED */
	void *hva;
	uint64_t align;
	uint64_t remainder;	/* of the address modulo @align */
	int mmap_flags;		/* MAP_*, of anonymous memory */
	bool is_huge;		/* memory of hugetlb: mapped and unmapped in whole huge pages */
};

/* What was where a pinned mapping is, and comes back when that ends */
enum gmem_map_before {
	GMEM_BEFORE_NOTHING = 0,
	GMEM_BEFORE_RESERVATION,	/* private and anonymous, PROT_NONE */
	GMEM_BEFORE_CALLERS,		/* a mapping of the same part of the same file, the caller's own */
	GMEM_BEFORE_MADE,		/* likewise, of the user's in the record */
};

struct gmem_map {
	struct gmem_range hva;		/* in the record */
	uint64_t offset;		/* in the file */
	struct gmem_file_maps *owner;	/* NULL: memory of no guest_memfd */
	struct gmem_map *next;		/* in owner->made; not of a pinned one */
	struct gmem_map *previous;
	bool is_pinned;
	bool is_lost;			/* pinned once: unmapped, by somebody else too */
	enum gmem_map_before before;
	int fd;				/* of a pinned one, borrowed, and */
	int prot;			/* for what was before */
};

/* The mappings of one file; zeroed, there are none */
struct gmem_file_maps {
	struct gmem_map *made;		/* by the user; of malloc() */
	bool had_any;			/* atomic: the user has asked for one */
};

/* @fd: the file's, here and below. -EBUSY: it would replace what is pinned. */
int gmem_maps_add(struct gmem_file_maps *maps, int fd, uint64_t offset, uint64_t size,
		  const struct gmem_place *place, void **ret_hva);
/* @hva, @size: inside one mapping that was added */
int gmem_maps_remove(struct gmem_file_maps *maps, uint64_t hva, uint64_t size);
/* Unmap what is left of everything that was added. */
void gmem_maps_clear(struct gmem_file_maps *maps);
/* -ENOENT: @hva is in no mapping of either kind */
int gmem_maps_find(const struct gmem_file_maps *maps, uint64_t hva, uint64_t *ret_offset);

/*
 * Map part of the file for a region, which keeps @map; only gmem_maps_unpin() unmaps it. @maps is
 * NULL if the file is no guest_memfd, and @fd is -1 for anonymous memory.
 */
int gmem_maps_pin(struct gmem_file_maps *maps, int fd, uint64_t offset, uint64_t size,
		  const struct gmem_place *place, struct gmem_map *map);
/* Likewise, what the caller has just mapped. */
void gmem_maps_pin_mapped(void *hva, uint64_t size, struct gmem_map *map);
/*
 * Returns -errno, without a sentence, if the kernel refused: then its memory was freed, if it is
 * private, and an empty mapping stays.
 */
int gmem_maps_unpin(struct gmem_map *map);
/* The same because of the failure @err, which is returned, and the sentence of which then has both. */
int gmem_maps_unpin_failed(struct gmem_map *map, int err);
/*
 * Unmap @size bytes at its end, if it has more. Returns 1, 0 if it has not, or -errno: they stay
 * mapped, and are nobody's any more.
 */
int gmem_maps_unpin_some(struct gmem_map *map, uint64_t size);
/* Put @to in the place of @from. */
void gmem_maps_move_pin(struct gmem_map *from, struct gmem_map *to);
/* Move what is above @offset of @map over to @upper. */
void gmem_maps_split_pin(struct gmem_map *map, uint64_t offset, struct gmem_map *upper);

#endif
