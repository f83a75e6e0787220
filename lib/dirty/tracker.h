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
	uint64_t parent, generation;	/* the image with all that was collected; 0: none */
};

/* For the VM's owner, who ends it: nobody marks any more. Trackers are freed later. */
void gmem_vm_end_tracking(struct gmem_vm *vm);
/*
 * Find the first run of pages in [@gpa, @last], all in @region, that was collected, of what is
 * not private. Any granule of addresses: the run is cut at @gpa and @last. The layout stays.
 */
bool gmem_dirty_find(const struct gmem_dirty *dirty, const struct gmem_region *region, uint64_t gpa,
		     uint64_t last, struct gmem_part *ret);

#endif
