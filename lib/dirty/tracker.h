/* SPDX-License-Identifier: MIT */
/*
 * tracker: since when somebody wants to know what changed.
 *
 * The marks of pages are the VM's (region/dirty_pages.h), and a tracker is a period to compare
 * them with. To collect is to have everything marked and then to move on to a new period.
 */
#ifndef GMEM_TRACKER_H
#define GMEM_TRACKER_H

#include <stdbool.h>
#include <stdint.h>

#include "gmem.h"
#include "base/part.h"

struct gmem_region;

struct gmem_dirty {
	struct gmem_vm *vm;
	struct gmem_dirty *next;	/* in vm->trackers */
	uint64_t flags;
	uint32_t since;			/* what is marked in this period or later is to be collected */
	uint32_t told_since;		/* and in this one or later was collected last */
	bool has_told;
	bool can_put_back;
	bool is_abandoned;		/* atomic: it was freed in a callback */
	uint64_t rounds;
	uint64_t collected_at;		/* gmem_sys_now() */
	uint64_t ns;			/* of the last round */
	uint64_t stopped_ns;
	/* with the VM's lock */
	uint64_t parent, generation;	/* the image that the next one is based on; 0: none */
	uint32_t parent_since;		/* what is marked in this period or later is not in it */
	uint32_t overturns;		/* how often all periods began anew */
};

/* What an image is to have; the caller of gmem_dirty_collect() is told the same all the same. */
struct gmem_dirty_image {
	struct gmem_dirty *dirty;	/* NULL: all memory */
	uint64_t parent, generation;	/* of the parent; 0: none */
	uint32_t since;			/* what was marked in this period or later, */
	uint32_t next;			/* and before this one */
	uint32_t overturns;
};

/* For the VM's owner, who ends it: nobody marks any more. Trackers are freed later. */
void gmem_vm_end_tracking(struct gmem_vm *vm);
/*
 * Collect for an image that is about to be saved. When it is whole it is the tracker's parent;
 * until then nothing has changed.
 */
int gmem_dirty_begin_image(struct gmem_dirty *dirty, struct gmem_dirty_image *ret);
void gmem_dirty_end_image(const struct gmem_dirty_image *image, uint64_t id, uint64_t generation);
/*
 * Find the first run of pages in [@gpa, @last], all in @region, that the image is to have, of what
 * is not private. Any granule of addresses: the run is cut at @gpa and @last. With the VM's lock.
 */
bool gmem_dirty_find(const struct gmem_dirty_image *image, const struct gmem_region *region,
		     uint64_t gpa, uint64_t last, struct gmem_part *ret);
/* gmem_dirty_peek() for what is not in the parent */
int gmem_dirty_peek_image(struct gmem_dirty *dirty, struct gmem_dirty_info *ret);

#endif
