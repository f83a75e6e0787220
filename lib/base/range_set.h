/* SPDX-License-Identifier: MIT */
/*
 * range_set: sets of addresses, such as the private addresses of a VM.
 *
 * A set is a struct gmem_range_map whose ranges neither overlap nor adjoin, and whose
 * nodes the set allocates and frees. Adding or removing a range needs at most one new
 * node. A caller that must not fail halfway allocates this spare node first, with
 * gmem_set_spare(); then adding and removing cannot fail.
 */
#ifndef GMEM_RANGE_SET_H
#define GMEM_RANGE_SET_H

#include <stdbool.h>
#include <stdint.h>

#include "base/range_map.h"

/*
 * The addresses from @start to @last, both included: unlike an end, @last can be the last
 * address there is.
 */
struct gmem_part {
	uint64_t start;
	uint64_t last;
};

/* Allocates the spare node, unless there is one. Returns 0 or -ENOMEM. */
int gmem_set_spare(struct gmem_range **spare);
/* Takes the node in @spare if needed, and then sets @spare to NULL. */
void gmem_set_add(struct gmem_range_map *set, uint64_t start, uint64_t size,
		  struct gmem_range **spare);
/* Takes the node in @spare if needed, and then sets @spare to NULL. */
void gmem_set_remove(struct gmem_range_map *set, uint64_t start, uint64_t size,
		     struct gmem_range **spare);
void gmem_set_clear(struct gmem_range_map *set);
/*
 * Finds the first part of [@start, @last] that is in the set (if @inside) or not in the
 * set. Returns false if there is none.
 */
bool gmem_set_next(const struct gmem_range_map *set, bool inside, uint64_t start, uint64_t last,
		   struct gmem_part *ret);

#endif
