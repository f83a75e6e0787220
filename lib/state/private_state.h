/* SPDX-License-Identifier: MIT */
/*
 * private_state: the record of what is private, and how the kernel is told.
 *
 * The kernel has no call that tells what is private, so vm->privates is the only
 * record. Those who change it (layout/convert.c, layout/apply.c, layout/apply_slots.c, and
 * share/import.c for an import) hold change_lock and lock, after the kernel agreed.
 */
#ifndef GMEM_PRIVATE_STATE_H
#define GMEM_PRIVATE_STATE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/range_set.h"
#include "region/region.h"
#include "region/vm_core.h"

/*
 * Tell the kernel to make a part of a region private or shared, by the region's own
 * way of backing, and try again within bounds. Does not change the record. -errno
 * and its sentence. @wait_ms bounds the wait for pinned pages, in place. With change_lock
 * held.
 */
int gmem_region_set_private(const struct gmem_region *region, const struct gmem_part *part,
			    bool to_private, uint32_t wait_ms);

/* Undoing must not give up at the first refusal: how often it tries */
#define GMEM_UNDO_TRIES 3

/*
 * Count the bytes of a range that are about to change their state. Called before
 * the record changes, with the VM's lock held.
 */
void gmem_state_count(struct gmem_vm *vm, uint64_t gpa, uint64_t size, bool to_private);
/* Bytes of a range that are private, with either lock held */
uint64_t gmem_state_private(const struct gmem_vm *vm, uint64_t gpa, uint64_t size);

#endif
