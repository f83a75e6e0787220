/* SPDX-License-Identifier: MIT */
/*
 * region_ops: changes of one step: gmem_region_add(), _remove(), _move(), _split() and
 * _rebind(). Changes of several steps prepare theirs with the same functions.
 */
#ifndef GMEM_REGION_OPS_H
#define GMEM_REGION_OPS_H

#include <stdint.h>

#include "gmem.h"
#include "layout/step.h"
#include "region/region.h"

/* Fill in a step that adds a region, which has no handle yet. */
int gmem_step_make_add(struct gmem_vm *vm, uint64_t gpa, uint64_t size,
		       const struct gmem_region_opts *opts, struct gmem_step *step);
/* A check stays true until the step is applied: a region never grows. */
int gmem_step_check_whole(const struct gmem_region *region);
int gmem_step_check_move(const struct gmem_region *region, uint64_t gpa);

#endif
