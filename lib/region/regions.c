/* SPDX-License-Identifier: MIT */
#include "region/regions.h"

#include <errno.h>
#include <inttypes.h>
#include <stddef.h>

#include "base/error.h"
#include "base/macros.h"
#include "base/range_set.h"

struct gmem_region *gmem_regions_next(const struct gmem_vm *vm, uint64_t gpa, uint64_t last)
{
	/* The size of all addresses does not fit; no region has the last one alone. */
	uint64_t size = last - gpa + 1 ? last - gpa + 1 : UINT64_MAX;
	struct gmem_range *range = gmem_range_find(&vm->regions, gpa, size);

	return range ? GMEM_CONTAINER_OF(range, struct gmem_region, gpa) : NULL;
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

bool gmem_regions_walk_regions(struct gmem_stretch *at)
{
	struct gmem_region *region;
	uint64_t last = at->end;

	if (at->is_over)
		return false;

	region = gmem_regions_next(at->vm, at->next, at->end);
	at->region = region && region->gpa.start <= at->next ? region : NULL;
	if (at->region && gmem_region_last(region) < last)
		last = gmem_region_last(region);
	else if (region && !at->region)
		last = region->gpa.start - 1;

	at->gpa = at->next;
	at->size = last - at->gpa + 1;
	at->is_over = last == at->end;
	at->next = last + 1;
	return true;
}

bool gmem_regions_walk(struct gmem_stretch *at)
{
	struct gmem_part private;
	uint64_t last;

	if (!gmem_regions_walk_regions(at))
		return false;

	at->is_private = false;
	last = at->gpa + (at->size - 1);
	if (!at->region || !gmem_set_next(&at->vm->privates, true, at->gpa, last, &private))
		return true;

	at->is_private = private.start == at->gpa;
	last = at->is_private ? private.last : private.start - 1;
	at->size = last - at->gpa + 1;
	at->is_over = last == at->end;
	at->next = last + 1;
	return true;
}

int gmem_regions_check_memory(const struct gmem_region *region, uint64_t gpa)
{
	if (!region)
		return gmem_fail(-ENOENT, "there is no region at gpa 0x%" PRIx64, gpa);
	if (region->is_device)
		return gmem_fail(-ENXIO, "there is a device at gpa 0x%" PRIx64, gpa);
	return 0;
}

int gmem_regions_check_slot(const struct gmem_region *region, uint64_t gpa)
{
	int err = gmem_regions_check_memory(region, gpa);

	if (!err && region->lost)
		err = gmem_fail(-ENOTRECOVERABLE,
				"the region at gpa 0x%" PRIx64 " lost its memslot; it can only be removed",
				region->gpa.start);
	return err;
}
