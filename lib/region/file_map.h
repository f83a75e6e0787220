/* SPDX-License-Identifier: MIT */
/*
 * file_map: where a guest_memfd is mapped in this process.
 *
 * A file keeps two kinds of mappings: those that its user made and may unmap, and
 * pinned ones, which belong to regions. Both are known by their host addresses.
 */
#ifndef GMEM_FILE_MAP_H
#define GMEM_FILE_MAP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/lock.h"
#include "base/range_map.h"

/* Place of a mapping: struct gmem_map_opts, checked, and more */
struct gmem_place {
	uint64_t flags;		/* GMEM_MAP_* */
	void *hva;
	uint64_t align;
	uint64_t remainder;	/* of the address modulo @align */
};

struct gmem_map {
	struct gmem_range hva;
	uint64_t offset;	/* in the file */
};

struct gmem_file_maps {
	struct gmem_lock lock;		/* rank MAPS: both maps, and the order of mmap() and record */
	struct gmem_range_map made;	/* by the user; nodes are of malloc() */
	struct gmem_range_map pinned;	/* by regions, which own the nodes */
};

/* Map anything (@fd -1: anonymous memory) at @place; -errno without a sentence. */
int gmem_map_at(int fd, uint64_t offset, uint64_t size, int prot, int flags,
		const struct gmem_place *place, void **ret);

void gmem_maps_init(struct gmem_file_maps *maps);
void gmem_maps_destroy(struct gmem_file_maps *maps);

/* @fd: the file's, here and below */
int gmem_maps_add(struct gmem_file_maps *maps, int fd, uint64_t offset, uint64_t size,
		  const struct gmem_place *place, void **ret_hva);
/* @hva, @size: inside one mapping that was added */
int gmem_maps_remove(struct gmem_file_maps *maps, uint64_t hva, uint64_t size);
/* Unmap everything that was added. */
void gmem_maps_clear(struct gmem_file_maps *maps);
/* -ENOENT: @hva is in no mapping of either kind */
int gmem_maps_find(struct gmem_file_maps *maps, uint64_t hva, uint64_t *ret_offset);

/* Map part of the file for a region, which keeps @map; only gmem_maps_unpin() unmaps it. */
int gmem_maps_pin(struct gmem_file_maps *maps, int fd, uint64_t offset, uint64_t size,
		  const struct gmem_place *place, struct gmem_map *map);
void gmem_maps_unpin(struct gmem_file_maps *maps, struct gmem_map *map);
/* Put @to in the place of @from. */
void gmem_maps_move_pin(struct gmem_file_maps *maps, struct gmem_map *from, struct gmem_map *to);
/* Move what is above @offset of @map over to @upper. */
void gmem_maps_split_pin(struct gmem_file_maps *maps, struct gmem_map *map, uint64_t offset,
			 struct gmem_map *upper);

#endif
