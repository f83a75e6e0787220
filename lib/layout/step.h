/* SPDX-License-Identifier: MIT */
/* step: what one change of the layout asks for, and how far it got. */
#ifndef GMEM_STEP_H
#define GMEM_STEP_H

#include <stdbool.h>
#include <stdint.h>

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
	struct gmem_region *region;
	struct gmem_region **ret;		/* ADD */
	struct gmem_region_params params;	/* ADD */
	uint64_t gpa;				/* MOVE */
	uint64_t offset;			/* SPLIT */
	struct gmem_region *upper;		/* SPLIT, else NULL */
	struct gmem_binding binding;		/* REBIND */

	/* while it is applied */
	uint64_t old_gpa;
	struct gmem_kvm_slot old, new[2];
	unsigned int new_count, added;
	uint64_t shared_again;			/* REMOVE: bytes from its start that were made shared */
	bool has_old, deleted, failed, stuck;
};

#endif
