/* SPDX-License-Identifier: MIT */
/*
 * peer_recall: takes memory back from peers before a region is removed or memory becomes
 * private, and grants it to them again.
 */
#ifndef GMEM_PEER_RECALL_H
#define GMEM_PEER_RECALL_H

#include <stddef.h>
#include <stdint.h>

#include "base/wait_budget.h"
#include "region/vm_core.h"

/* Callbacks of the export's listener; @data is the export. */
int gmem_peers_revoke(void *data, uint64_t gpa, uint64_t size);
/* Have peers look for pages of the range that are shared and not granted. */
void gmem_peers_look_again(void *data, uint64_t gpa, uint64_t size);

/* Functions of the export's change hook */
int gmem_peers_before(struct gmem_change_hook *hook, const struct gmem_step *steps, size_t count,
		      struct gmem_wait_budget *budget);
void gmem_peers_after(struct gmem_change_hook *hook);

#endif
