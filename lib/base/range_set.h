/* SPDX-License-Identifier: MIT */
/*
 * range_set: addresses that have something in common, such as being private.
 *
 * A set is a struct gmem_range_map whose ranges neither overlap nor touch; the
 * set allocates and frees its nodes. One add or one remove needs at most one
 * new node, so a caller that must not fail halfway takes a spare node first.
 */
#ifndef GMEM_RANGE_SET_H
#define GMEM_RANGE_SET_H

#include <stdbool.h>
#include <stdint.h>

#include "base/range_map.h"

/* [@start, @last]: unlike a size, @last can name the end of the address space. */
struct gmem_part {
	uint64_t start;
	uint64_t last;
};

/* Allocate the spare node unless there is one: -ENOMEM */
int gmem_set_spare(struct gmem_range **spare);
void gmem_set_add(struct gmem_range_map *set, uint64_t start, uint64_t size,
		  struct gmem_range **spare);
void gmem_set_remove(struct gmem_range_map *set, uint64_t start, uint64_t size,
		     struct gmem_range **spare);
void gmem_set_clear(struct gmem_range_map *set);
/* Bytes of [@start, @last] that are in the set */
uint64_t gmem_set_bytes(const struct gmem_range_map *set, uint64_t start, uint64_t last);
/* The first part of [@start, @last] that is in the set (@inside) or not in it; false: none */
bool gmem_set_next(const struct gmem_range_map *set, bool inside, uint64_t start, uint64_t last,
		   struct gmem_part *ret);


/*
 * A walk over the parts of [start, last] that are in a set (@inside) or not in it. The
 * set may change behind the walk.
 *
 *	struct gmem_set_walk at = GMEM_SET_WALK(set, true, start, last);
 *
 *	while (gmem_set_walk(&at))
 *		sum += at.part.last - at.part.start + 1;
 */
struct gmem_set_walk {
	struct gmem_part part;

	const struct gmem_range_map *set;
	bool inside;
	uint64_t next, last;	/* [next, last] is yet to come, unless is_over */
	bool is_over;
};

#define GMEM_SET_WALK(set_, inside_, start, last_) \
	{ .set = (set_), .inside = (inside_), .next = (start), .last = (last_) }

bool gmem_set_walk(struct gmem_set_walk *at);

#endif
