/* SPDX-License-Identifier: MIT */
/* step: what one change of the layout asks for, and how far it got. */
#ifndef GMEM_STEP_H
#define GMEM_STEP_H

#include <stdbool.h>
#include <stdint.h>

#include "gmem.h"
#include "base/interval_tree.h"
#include "os/kvm.h"
#include "region/region.h"

enum gmem_step_kind {
	GMEM_STEP_ADD,
	GMEM_STEP_REMOVE,
	GMEM_STEP_MOVE,
	GMEM_STEP_SPLIT,
	GMEM_STEP_REBIND,
};

struct gmem_step {
	enum gmem_step_kind kind;
	struct gmem_region *region;		/* ADD: may be NULL, to be made once there is room for it */
	struct gmem_region **ret;		/* ADD */
	struct gmem_region_params params;	/* ADD */
	uint64_t gpa;				/* ADD, MOVE */
	uint64_t size;				/* ADD */
	uint64_t offset;			/* SPLIT */
	struct gmem_region *upper;		/* SPLIT, else NULL */
	struct gmem_binding binding;		/* REBIND */

	/* while it is applied */
	struct gmem_region *after;		/* what the region will be; ADD: itself; REMOVE: NULL */
	uint64_t old_gpa;
	struct gmem_region_info before;		/* what the region was; not with ADD */
	struct gmem_kvm_slot old, new[2];
	uint64_t *log;				/* to read a dirty log into, or NULL: nothing to keep */
	unsigned int new_count, added;
	uint64_t told;				/* REMOVE, ADD: bytes from its start whose marks the kernel was told */
	struct gmem_interval in_files;		/* REMOVE: where its memory is, see keep_state.c, if another */
	struct gmem_interval in_addresses;	/* step may keep its state; likewise, borrowed memory */
	bool has_old;
	bool is_blocked;			/* MOVE: to where KVM may have a memslot until it is moved */
	bool parked;				/* the old memslot is not where it was, to read its log */
	bool deleted;
	bool moved;				/* by KVM, in one call */
	bool stuck[2];				/* the kernel keeps the new memslot */
	bool lost;				/* the old memslot could not be put back */
	bool failed;				/* the step to blame */
};

/* KVM may be asked to move the memslot of this step, which it only does with plain ones. */
static inline bool gmem_step_may_move_slot(const struct gmem_step *step)
{
	return step->kind == GMEM_STEP_MOVE && step->region->has_slot &&
	       !gmem_region_is_bound(step->region);
}

#endif
