/* SPDX-License-Identifier: MIT */
/*
 * dirty_log: KVM's dirty log of one region: gmem_region_set_dirty_log() and
 * gmem_region_get_dirty_log(), under a claim on the region's range.
 *
 * A VMM can have changed how its VM logs. With manual protection, KVM_GET_DIRTY_LOG clears
 * nothing, and KVM_CLEAR_DIRTY_LOG does; with a dirty ring, the bits are in the ring.
 */
#ifndef GMEM_DIRTY_LOG_H
#define GMEM_DIRTY_LOG_H

#include "gmem.h"

#endif
