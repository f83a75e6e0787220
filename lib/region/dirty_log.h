/* SPDX-License-Identifier: MIT */
/* dirty_log: KVM's dirty log of one region: gmem_region_set_dirty_log(), _get_dirty_log(). */
#ifndef GMEM_DIRTY_LOG_H
#define GMEM_DIRTY_LOG_H

#include "gmem.h"

#endif
