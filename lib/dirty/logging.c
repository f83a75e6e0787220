/* SPDX-License-Identifier: MIT */
#include "dirty/logging.h"

#include "gmem.h"
#include "dirty/dirty_log.h"
#include "os/kvm_compat.h"
#include "region/region.h"
#include "region/regions.h"

bool gmem_region_is_untracked(const struct gmem_region *region)
{
	return region->is_device || region->kind == GMEM_KIND_DEVICE;
}

bool gmem_region_is_unlogged(const struct gmem_region *region)
{
	return !gmem_region_is_read_only(region) && !(region->slot_flags & KVM_MEM_LOG_DIRTY_PAGES);
}

static int set_all(struct gmem_vm *vm, bool on, struct gmem_wait_budget *budget)
{
	struct gmem_stretch at = GMEM_REGIONS_WALK(vm, 0, UINT64_MAX);
	int err = 0;

	while (!err && gmem_regions_walk_whole(&at))
		if (at.region && !gmem_region_is_untracked(at.region) &&
		    gmem_region_traits(at.region)->has_dirty_log)
			err = gmem_dirty_log_set(at.region, on, budget);
	return err;
}

int gmem_vm_begin_logging(struct gmem_vm *vm, uint64_t flags, struct gmem_wait_budget *budget,
			  uint64_t *ret_ns)
{
	(void)flags;
	*ret_ns = 0;
	return set_all(vm, true, budget);
}

void gmem_vm_end_logging(struct gmem_vm *vm)
{
	set_all(vm, false, NULL);
}
