/* SPDX-License-Identifier: MIT */
#include "region/region_info.h"

#include <errno.h>
#include <inttypes.h>
#include <stddef.h>

#include "base/error.h"
#include "base/lock.h"
#include "base/macros.h"
#include "base/range_map.h"
#include "region/file.h"
#include "region/region.h"
#include "region/regions.h"
#include "region/vm_core.h"

static uint64_t flags_of(const struct gmem_region *region)
{
	return (gmem_region_is_read_only(region) ? GMEM_REGION_READONLY : 0) |
	       (gmem_region_wants_log(region) ? GMEM_REGION_DIRTY_LOG : 0) |
	       (region->is_device ? GMEM_REGION_DEVICE : 0) |
	       (region->borrows_memory ? GMEM_REGION_HVA : 0);
}

void gmem_region_fill_info(const struct gmem_region *region, struct gmem_region_info *ret)
{
	*ret = (struct gmem_region_info){
		.region = (struct gmem_region *)region,
		.data = gmem_region_data(region),
		.gpa = region->gpa.start,
		.size = region->gpa.size,
		.hva = (void *)(uintptr_t)region->hva.start,
		.file = region->file,
		.gmemfd = region->file ? region->file->fd : -1,
		.gmemfd_offset = region->file ? region->file_offset : 0,
		.host_fd = region->host_file ? region->host_file->fd : -1,
		.host_offset = region->host_file ? region->host_offset : 0,
		.page_size = region->is_device ? 0 : region->page_size,
		.flags = flags_of(region),
		.slot = region->has_slot ? gmem_region_slot_id(region) : UINT32_MAX,
		.backing = region->backing,
		.kind = region->kind,
	};
}

/* ---- all of them ---- */

static size_t count_regions(const struct gmem_vm *vm)
{
	struct gmem_stretch at = GMEM_REGIONS_WALK(vm, 0, UINT64_MAX);
	size_t count = 0;

	while (gmem_regions_walk_whole(&at))
		count += at.region != NULL;
	return count;
}

static void fill_all(const struct gmem_vm *vm, struct gmem_region_info *ret)
{
	struct gmem_stretch at = GMEM_REGIONS_WALK(vm, 0, UINT64_MAX);

	while (gmem_regions_walk_whole(&at))
		if (at.region)
			gmem_region_fill_info(at.region, ret++);
}

GMEM_API int gmem_vm_regions(struct gmem_vm *vm, struct gmem_region_info *ret, size_t max)
{
	size_t count;

	if (!vm || (!ret && max))
		return gmem_fail(-EINVAL, "%s is NULL", vm ? "ret" : "vm");

	gmem_lock_take(&vm->lock);
	count = count_regions(vm);
	if (count <= max)
		fill_all(vm, ret);
	gmem_lock_drop(&vm->lock);

	if (ret && count > max)
		return gmem_fail(-ENOSPC, "the VM has %zu regions, there is room for %zu", count, max);
	return (int)count;
}

/* ---- one of them ---- */

GMEM_API int gmem_vm_find_gpa(struct gmem_vm *vm, uint64_t gpa, struct gmem_region_info *ret)
{
	const struct gmem_region *region;

	if (!vm || !ret)
		return gmem_fail(-EINVAL, "%s is NULL", vm ? "ret" : "vm");

	gmem_lock_take(&vm->lock);
	region = gmem_regions_at(vm, gpa);
	if (region)
		gmem_region_fill_info(region, ret);
	gmem_lock_drop(&vm->lock);
	return region ? 0 : gmem_fail_no_region(gpa);
}

GMEM_API int gmem_vm_find_slot(struct gmem_vm *vm, uint32_t slot, struct gmem_region_info *ret)
{
	const struct gmem_region *region;

	if (!vm || !ret)
		return gmem_fail(-EINVAL, "%s is NULL", vm ? "ret" : "vm");

	gmem_lock_take(&vm->lock);
	region = gmem_regions_with_slot(vm, slot);
	if (region)
		gmem_region_fill_info(region, ret);
	gmem_lock_drop(&vm->lock);
	return region ? 0 : gmem_fail(-ENOENT, "no region has memslot %" PRIu32, slot);
}

GMEM_API int gmem_vm_find_hva(struct gmem_vm *vm, const void *hva,
			      struct gmem_region **ret_region, uint64_t *ret_offset)
{
	uint64_t address = (uintptr_t)hva;
	struct gmem_range *range;

	if (!vm || !ret_region)
		return gmem_fail(-EINVAL, "%s is NULL", vm ? "ret_region" : "vm");

	gmem_lock_take(&vm->lock);
	range = gmem_range_find(&vm->hvas, address, 1);
	if (range) {
		*ret_region = GMEM_CONTAINER_OF(range, struct gmem_region, hva);
		if (ret_offset)
			*ret_offset = address - range->start;
	}
	gmem_lock_drop(&vm->lock);

	if (!range)
		return gmem_fail_at(-ENOENT, "hva ", address, " belongs to no region");
	return 0;
}

/* ---- the user's own ---- */

GMEM_API void *gmem_region_data(const struct gmem_region *region)
{
	/* Pairs with gmem_region_set_data(): what it points to is seen as it was then. */
	return region ? __atomic_load_n(&region->data, __ATOMIC_ACQUIRE) : NULL;
}

GMEM_API void gmem_region_set_data(struct gmem_region *region, void *data)
{
	if (region)
		__atomic_store_n(&region->data, data, __ATOMIC_RELEASE);
}
