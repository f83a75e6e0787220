/* SPDX-License-Identifier: MIT */
/*
 * backing: the ways guest memory can be backed, with their names and traits.
 *
 * Code asks for a trait instead of comparing backings. The traits do not say whether this host
 * supports a backing: caps/plan.h does.
 */
#ifndef GMEM_BACKING_H
#define GMEM_BACKING_H

#include <stdbool.h>
#include <stdint.h>

#include "gmem.h"

#define GMEM_BACKINGS (GMEM_BACKING_INPLACE + 1)

/* The memory that the host address of a memslot maps */
enum gmem_hva_source {
	GMEM_HVA_NONE,		/* no memory: the range belongs to a device */
	GMEM_HVA_MEMORY,	/* ordinary memory, the library's or the caller's */
	GMEM_HVA_FILE,		/* the guest_memfd */
};

struct gmem_backing_traits {
	const char *name;	/* NULL for GMEM_BACKING_NONE */
	enum gmem_hva_source hva_source;
	bool has_file;		/* there is a guest_memfd */
	bool is_bound;		/* the memslot is bound to the guest_memfd */
	bool has_sides;		/* private and shared memory are not the same pages */
	uint32_t attributes;	/* where private and shared are told apart: GMEM_ATTRIBUTES_* */
	bool has_dirty_log;	/* if this KVM has a dirty log at all */
	bool has_read_only;	/* if this KVM has read-only memslots at all */
};

extern const struct gmem_backing_traits gmem_backings[GMEM_BACKINGS];

/* Returns the traits of @backing; those of GMEM_BACKING_NONE, a device's range, if it is none. */
const struct gmem_backing_traits *gmem_backing_traits(uint32_t backing);

#endif
