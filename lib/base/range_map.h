/* SPDX-License-Identifier: MIT */
/*
 * range_map: ranges that do not overlap, in the order of their start.
 *
 * A map allocates nothing: the struct gmem_range is embedded in the object that the range
 * belongs to, and stays alive while it is in a map. Therefore only gmem_range_find() can
 * fail, by finding nothing. Ranges are not empty, and may end at the end of the address
 * space, so code computes with the last address and not with the end.
 *
 * Not supported: a range in two maps at once, and changes without a lock.
 */
#ifndef GMEM_RANGE_MAP_H
#define GMEM_RANGE_MAP_H

#include <stdint.h>

struct gmem_range {
	uint64_t start;
	uint64_t size;
	struct gmem_range *left;
	struct gmem_range *right;
};

struct gmem_range_map {
	struct gmem_range *root;
};

static inline uint64_t gmem_range_last(const struct gmem_range *range)
{
	return range->start + range->size - 1;
}

/* Returns the lowest range that overlaps [@start, @start + @size), or NULL. */
struct gmem_range *gmem_range_find(const struct gmem_range_map *map, uint64_t start,
				   uint64_t size);
/* Inserts @range, which must overlap no range in @map. */
void gmem_range_insert(struct gmem_range_map *map, struct gmem_range *range);
void gmem_range_remove(struct gmem_range_map *map, struct gmem_range *range);
/*
 * Sets the start of @range, which is in no map. A thread that reads the start without
 * the lock sees the old or the new value, never a mixture.
 */
void gmem_range_set_start(struct gmem_range *range, uint64_t start);
/* Shortens @range to its first @offset bytes, and inserts the rest as @upper. */
void gmem_range_split(struct gmem_range_map *map, struct gmem_range *range, uint64_t offset,
		      struct gmem_range *upper);

#endif
