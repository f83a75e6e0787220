/* SPDX-License-Identifier: MIT */
/*
 * logging: which memslots of a VM have a dirty log because there is a tracker.
 *
 * A region has a log of its own if its user asked for one (GMEM_REGION_DIRTY_LOG), and one
 * while there is a tracker. A memslot that is bound to a guest_memfd can have none; it can be
 * replaced by one of the mapping of the same file.
 */
#ifndef GMEM_LOGGING_H
#define GMEM_LOGGING_H

#include <stdbool.h>
#include <stdint.h>

struct gmem_region;
struct gmem_vm;
struct gmem_wait_budget;

/*
 * For the hook lock's holder: have all memslots log that can. @flags: GMEM_DIRTY_* of the new
 * tracker. *@ret_ns: how long memslots were away, or 0. On failure nothing changed.
 */
int gmem_vm_begin_logging(struct gmem_vm *vm, uint64_t flags, struct gmem_wait_budget *budget,
			  uint64_t *ret_ns);
/* No tracker is left: only those that their users want log. */
void gmem_vm_end_logging(struct gmem_vm *vm);
/* What the guest writes in this region is not known. Needs a lock with which the layout stays. */
bool gmem_region_is_unlogged(const struct gmem_region *region);
/* It is not tracked at all: a device's range, or memory of one */
bool gmem_region_is_untracked(const struct gmem_region *region);

#endif
