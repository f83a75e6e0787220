/* SPDX-License-Identifier: MIT */
/*
 * private_state: the record of what is private, by guest address, and how the kernel is told.
 *
 * The kernel has no call that tells what is private, so the bits of the regions
 * (region/page_states.h) are the only record. The functions here find and change them
 * across regions. The caller has a claim on the range, which keeps the regions there, and
 * does not hold the VM's lock.
 */
#ifndef GMEM_PRIVATE_STATE_H
#define GMEM_PRIVATE_STATE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/part.h"
#include "region/page_states.h"
#include "region/region.h"
#include "region/regions.h"
#include "region/vm_core.h"

/*
 * Tell the kernel to make a part of a region private or shared, by the region's own
 * way of backing, and try again within bounds. Does not change the record. -errno
 * and its sentence. @wait_ms bounds the wait for pinned pages, in place.
 */
int gmem_region_set_private(const struct gmem_region *region, const struct gmem_part *part,
			    bool to_private, uint32_t wait_ms);

/* Undoing must not give up at the first refusal: how often it tries */
#define GMEM_UNDO_TRIES 3

/*
 * Find the first part of [@gpa, @last] whose pages have @value, which may go on from one
 * region to the next; false if there is none.
 */
bool gmem_state_find(struct gmem_vm *vm, enum gmem_page_bit bit, bool value, uint64_t gpa,
		     uint64_t last, struct gmem_part *ret);
/* The next region of a walk, whole, or false; for walks of claimed ranges without a hole. */
bool gmem_state_next_region(struct gmem_vm *vm, struct gmem_stretch *at);

#endif
