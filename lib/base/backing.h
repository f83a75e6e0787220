/* SPDX-License-Identifier: MIT */
/* backing: the ways guest memory can be backed, and what each of them is. */
#ifndef GMEM_BACKING_H
#define GMEM_BACKING_H

#include <stdbool.h>
#include <stdint.h>

#include "gmem.h"

#define GMEM_BACKINGS (GMEM_BACKING_INPLACE + 1)

/* Whose mapping the host address in the memslot is */
enum gmem_hva_source {
	GMEM_HVA_NONE,		/* a device's range has no memory */
	GMEM_HVA_MEMORY,	/* ordinary memory, the library's or the caller's */
	GMEM_HVA_FILE,		/* a mapping of the guest_memfd */
};

struct gmem_backing_traits {
	const char *name;	/* NULL: no way of backing */
	enum gmem_hva_source hva_source;
	bool has_file;		/* there is a guest_memfd */
	bool is_bound;		/* it is bound to the memslot */
	bool has_sides;		/* private memory is other memory than shared memory */
	uint32_t attributes;	/* where private and shared are told apart: GMEM_ATTRIBUTES_* */
	bool has_dirty_log;	/* where KVM has one at all */
	bool has_read_only;	/* likewise: memslots that the guest cannot write */
};

/* @backing: an enum gmem_backing; GMEM_BACKING_NONE is a device's range */
const struct gmem_backing_traits *gmem_backing_traits(uint32_t backing);

#endif
