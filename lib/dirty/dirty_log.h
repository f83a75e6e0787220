/* SPDX-License-Identifier: MIT */
/*
 * dirty_log: KVM's dirty logs, read for a region's user and for trackers.
 *
 * A memslot logs if its user wants it to (region->wants_log) or trackers do (dirty/logging.h).
 * Whoever reads a log takes its bits out of KVM, so they are noted for the other, too, with
 * dirty_lock held throughout: marks of pages for the trackers, and for the user the region's
 * kept_log, which its next gmem_region_get_dirty_log() delivers.
 */
#ifndef GMEM_DIRTY_LOG_H
#define GMEM_DIRTY_LOG_H

#include <stdbool.h>
#include <stdint.h>

struct gmem_region;
struct gmem_vm;

/* The functions below are for the holder of the hook lock. */

/* Have the memslot log, or not; does nothing if it does so already. */
int gmem_dirty_log_switch(struct gmem_region *region, bool on);
/* Mark what a bitmap as KVM_GET_DIRTY_LOG has it says of a region. Takes the VM's lock, which is enough. */
void gmem_dirty_log_mark(struct gmem_region *region, const uint64_t *bitmap);
/* Mark what the logs of all tracked regions have. On failure what was read is marked. */
int gmem_dirty_logs_mark(struct gmem_vm *vm);
/* Whether KVM clears a log as it gives it is to be found out anew, and no memory is held. */
void gmem_dirty_logs_forget(struct gmem_vm *vm);

#endif
