/* SPDX-License-Identifier: MIT */
/*
 * peer_recall: taking memory back from peers, before a region goes or memory becomes
 * private, and giving it to them again.
 */
#ifndef GMEM_PEER_RECALL_H
#define GMEM_PEER_RECALL_H

#include <stddef.h>
#include <stdint.h>

#include "region/vm_core.h"

/* For the listener of an export, which @data is */
int gmem_peers_revoke(void *data, uint64_t gpa, uint64_t size);
void gmem_peers_grant(void *data, uint64_t gpa, uint64_t size);
/* A region went, or has other memory: what of its range is shared is granted. */
void gmem_peers_forget(void *data, uint64_t gpa, uint64_t size);

/* For the change hook of an export */
int gmem_peers_before(struct gmem_change_hook *hook, const struct gmem_step *steps, size_t count);
void gmem_peers_after(struct gmem_change_hook *hook);

#endif
