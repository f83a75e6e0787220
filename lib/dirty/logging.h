/* SPDX-License-Identifier: MIT */
/*
 * logging: which memslots of a VM have a dirty log because there are trackers.
 *
 * A memslot that is bound to a guest_memfd can have no log. Where private and shared pages
 * are not told apart, it can be replaced by a plain memslot of the mapping of the same file,
 * while no vCPU runs. The file, its part that is the region's (file->bound), the mapping and the
 * backing stay; the missing flag of the memslot says that it was done (gmem_region_is_bound()).
 *
 * Called by the holder of the hook lock. Other work on the memory goes on: claims and leases
 * are for pages, which stay what they are.
 */
#ifndef GMEM_LOGGING_H
#define GMEM_LOGGING_H

#include <stddef.h>
#include <stdint.h>

#include "region/region.h"

/* Memslots that one call replaced */
struct gmem_replaced {
	struct gmem_region **regions;	/* free() it */
	size_t count;
	uint64_t ns;			/* how long it took */
};

/* Whether @flags, GMEM_DIRTY_* of a new tracker, allow for what has no log: 0, or -EOPNOTSUPP. */
int gmem_vm_check_logging(struct gmem_vm *vm, uint64_t flags);
/*
 * Have all memslots log that can, for a new tracker whose flags were checked. On failure nothing
 * changed, or -ENOTRECOVERABLE.
 */
int gmem_vm_begin_logging(struct gmem_vm *vm, uint64_t flags, struct gmem_replaced *ret);
/* The tracker, which is not among the VM's yet, failed for @err: returns it, or -ENOTRECOVERABLE. */
int gmem_vm_undo_logging(struct gmem_vm *vm, struct gmem_replaced *replaced, int err);
/* No tracker is left: only those that their users want log. */
void gmem_vm_end_logging(struct gmem_vm *vm);
/*
 * Settle the flags of the memslot that an added region will have, which is not there yet:
 * -EOPNOTSUPP if one of the trackers does not allow memory like this.
 */
int gmem_region_settle_log(struct gmem_region *region);

#endif
