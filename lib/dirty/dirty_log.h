/* SPDX-License-Identifier: MIT */
/* dirty_log: KVM's dirty log of one region. */
#ifndef GMEM_DIRTY_LOG_H
#define GMEM_DIRTY_LOG_H

#include <stdbool.h>

struct gmem_region;
struct gmem_vm;
struct gmem_wait_budget;

/* Have the memslot log, or not, with the hook lock. */
int gmem_dirty_log_set(struct gmem_region *region, bool on, struct gmem_wait_budget *budget);
/* Mark what the logs of all regions have, with the hook lock. */
int gmem_dirty_logs_mark(struct gmem_vm *vm);

#endif
