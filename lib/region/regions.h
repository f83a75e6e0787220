/* SPDX-License-Identifier: MIT */
/*
 * regions: the layout of a VM, looked up and walked.
 *
 * Every module that asks which region is at a guest address, where it ends, what of it
 * is private or whether it is memory asks here. The caller holds the VM's lock or its
 * change_lock.
 */
#ifndef GMEM_REGIONS_H
#define GMEM_REGIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/range_map.h"
#include "region/region.h"
#include "region/vm_core.h"

static inline uint64_t gmem_region_last(const struct gmem_region *region)
{
	return gmem_range_last(&region->gpa);
}

/* The region that covers @gpa, or NULL */
struct gmem_region *gmem_regions_at(const struct gmem_vm *vm, uint64_t gpa);
/* The lowest region that has an address in [@gpa, @last], or NULL */
struct gmem_region *gmem_regions_next(const struct gmem_vm *vm, uint64_t gpa, uint64_t last);
/* The region whose memslot has this number, as KVM's ioctls have it, or NULL. Looks at each. */
struct gmem_region *gmem_regions_with_slot(const struct gmem_vm *vm, uint32_t slot);
/* The lowest region at or above @gpa that has memory, which a device's range has not */
struct gmem_region *gmem_regions_next_memory(const struct gmem_vm *vm, uint64_t gpa);

/*
 * A walk over [gpa, last], lowest address first, in stretches: each lies in one region
 * or in none, and all of it is shared or private.
 *
 *	struct gmem_stretch at = GMEM_REGIONS_WALK(vm, gpa, last);
 *
 *	while (gmem_regions_walk(&at))
 *		if (at.region && at.is_private)
 *			sum += at.size;
 *
 * The locks may be dropped and taken again between two calls: the walk goes on at the
 * next address. The fields are those of the layout at the moment of the call.
 */
struct gmem_stretch {
	struct gmem_region *region;	/* NULL: a hole */
	uint64_t gpa;
	uint64_t size;
	bool is_private;

	const struct gmem_range_map *regions;
	uint64_t next, end;		/* [next, end] is yet to come, unless is_over */
	bool is_over;
};

#define GMEM_REGIONS_WALK(vm, gpa_, last_)				\
	{ .regions = &(vm)->regions, .next = (gpa_), .end = (last_) }

bool gmem_regions_walk(struct gmem_stretch *at);
/* Walk region by region, whatever their states; is_private is not set. */
bool gmem_regions_walk_whole(struct gmem_stretch *at);

/* Returns -ENOENT with the sentence that there is no region at @gpa. */
int gmem_fail_no_region(uint64_t gpa);

/*
 * 0, or why @region (or NULL), which is what gmem_regions_at() found at @gpa, is no
 * memory: -ENOENT there is no region, -ENXIO it is a device.
 */
int gmem_regions_check_memory(const struct gmem_region *region, uint64_t gpa);
/* 0, or -ENOTRECOVERABLE if the region lost its memslot */
int gmem_regions_check_slot(const struct gmem_region *region);

#endif
