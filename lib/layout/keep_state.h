/* SPDX-License-Identifier: MIT */
/*
 * keep_state: what a change has the kernel make shared and private.
 *
 * What is removed leaves nothing private, and what is added begins shared, but for a region
 * that is added with GMEM_REGION_KEEP_STATE: it takes over what the removed regions of the
 * same change recorded for the same memory. Memory is the same if it is the same part of a
 * file or, of host memory, at the same address of the caller's.
 *
 * Called with claims on the ranges.
 */
#ifndef GMEM_KEEP_STATE_H
#define GMEM_KEEP_STATE_H

#include <stddef.h>

#include "layout/step.h"

/*
 * Fill in the states of added regions, and mark with GMEM_PAGE_CHANGING what the kernel is
 * to be told: of removed regions what becomes shared, of added ones what becomes private.
 */
void gmem_keep_states(struct gmem_step *steps, size_t count);
/* Clear the marks. */
void gmem_keep_states_end(struct gmem_step *steps, size_t count);
/* Once the change is certain: what the dirty logs of removed regions said is kept, too. */
void gmem_keep_logs(struct gmem_step *steps, size_t count);

#endif
