/* SPDX-License-Identifier: MIT */
/*
 * dirty_log: KVM's dirty log of one region: gmem_region_set_dirty_log() and
 * gmem_region_get_dirty_log(), which exclude changes of the layout.
 */
#ifndef GMEM_DIRTY_LOG_H
#define GMEM_DIRTY_LOG_H

#include "gmem.h"

#endif
