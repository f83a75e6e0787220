/* SPDX-License-Identifier: MIT */
#include "region/regions.h"

#include <errno.h>
#include <inttypes.h>
#include <stddef.h>

#include "base/error.h"
#include "base/macros.h"
#include "base/part.h"
#include "region/page_states.h"

static struct gmem_region *find(const struct gmem_range_map *regions, uint64_t gpa, uint64_t last)
{
	/* The size of all addresses does not fit; no region has the last one alone. */
	uint64_t size = last - gpa + 1 ? last - gpa + 1 : UINT64_MAX;
	struct gmem_range *range = gmem_range_find(regions, gpa, size);

	return range ? GMEM_CONTAINER_OF(range, struct gmem_region, gpa) : NULL;
}

struct gmem_region *gmem_regions_next(const struct gmem_vm *vm, uint64_t gpa, uint64_t last)
{
	return find(&vm->regions, gpa, last);
}

struct gmem_region *gmem_regions_at(const struct gmem_vm *vm, uint64_t gpa)
{
	return gmem_regions_next(vm, gpa, gpa);
}

struct gmem_region *gmem_regions_next_memory(const struct gmem_vm *vm, uint64_t gpa)
{
	struct gmem_region *region;

	while ((region = gmem_regions_next(vm, gpa, UINT64_MAX)) && region->is_device) {
		if (gmem_region_last(region) == UINT64_MAX)
			return NULL;
		gpa = gmem_region_last(region) + 1;
	}
	return region;
}

/* The stretch is [next, @last]. */
static void end_stretch(struct gmem_stretch *at, uint64_t last)
{
	at->size = last - at->gpa + 1;
	at->is_over = last == at->end;
	at->next = last + 1;
}

bool gmem_regions_walk_whole(struct gmem_stretch *at)
{
	struct gmem_region *region;
	uint64_t last = at->end;

	if (at->is_over)
		return false;

	region = find(at->regions, at->next, at->end);
	at->gpa = at->next;
	at->region = region && region->gpa.start <= at->gpa ? region : NULL;
	if (at->region && gmem_region_last(region) < last)
		last = gmem_region_last(region);
	else if (region && !at->region)
		last = region->gpa.start - 1;
	end_stretch(at, last);
	return true;
}

bool gmem_regions_walk(struct gmem_stretch *at)
{
	struct gmem_part part;
	uint64_t start;

	if (!gmem_regions_walk_whole(at))
		return false;

	at->is_private = false;
	if (!at->region)
		return true;
	start = at->region->gpa.start;
	if (gmem_states_find(&at->region->states, GMEM_PAGE_PRIVATE, true, at->gpa - start,
			     at->gpa + at->size - 1 - start, &part)) {
		at->is_private = start + part.start == at->gpa;
		end_stretch(at, start + (at->is_private ? part.last : part.start - 1));
	}
	return true;
}

int gmem_fail_no_region(uint64_t gpa)
{
	return gmem_fail_at(-ENOENT, "there is no region at gpa ", gpa, "");
}

int gmem_regions_check_memory(const struct gmem_region *region, uint64_t gpa)
{
	if (!region)
		return gmem_fail_no_region(gpa);
	if (region->is_device)
		return gmem_fail(-ENXIO, "there is a device at gpa 0x%" PRIx64, gpa);
	return 0;
}

int gmem_regions_check_slot(const struct gmem_region *region)
{
	if (region->lost)
		return gmem_fail(-ENOTRECOVERABLE,
				 "the region at gpa 0x%" PRIx64 " lost its memslot; it can only be removed",
				 region->gpa.start);
	return 0;
}

struct gmem_region *gmem_regions_with_slot(const struct gmem_vm *vm, uint32_t slot)
{
	struct gmem_stretch at = GMEM_REGIONS_WALK(vm, 0, UINT64_MAX);

	while (gmem_regions_walk_whole(&at))
		if (at.region && at.region->has_slot && gmem_region_slot_id(at.region) == slot)
			return at.region;
	return NULL;
}
