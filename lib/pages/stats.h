/* SPDX-License-Identifier: MIT */
/* stats: how much memory is what, and what happened to it: gmem_vm_stats(). */
#ifndef GMEM_STATS_H
#define GMEM_STATS_H

#include "gmem.h"

#endif
