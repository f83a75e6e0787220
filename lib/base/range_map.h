/* SPDX-License-Identifier: MIT */
/*
 * range_map: non-overlapping ranges in order of their start.
 *
 * The map allocates nothing: a struct gmem_range is embedded in whatever the
 * range belongs to, and its owner keeps it alive while it is in a map.
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

/* The lowest range that overlaps [@start, @start + @size), or NULL */
struct gmem_range *gmem_range_find(const struct gmem_range_map *map, uint64_t start,
				   uint64_t size);
/* None of these can fail. @range must overlap nothing in @map. */
void gmem_range_insert(struct gmem_range_map *map, struct gmem_range *range);
void gmem_range_remove(struct gmem_range_map *map, struct gmem_range *range);
/*
 * Set the start of @range, which is in no map. Threads that read the start
 * without a lock see the old or the new value, never a mixture.
 */
void gmem_range_set_start(struct gmem_range *range, uint64_t start);
/* Leave @range what is below @offset, and insert the rest as @upper. */
void gmem_range_split(struct gmem_range_map *map, struct gmem_range *range, uint64_t offset,
		      struct gmem_range *upper);
/* Undo gmem_range_split(). */
void gmem_range_join(struct gmem_range_map *map, struct gmem_range *range,
		     struct gmem_range *upper);

#endif
