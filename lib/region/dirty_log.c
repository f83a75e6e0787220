/* SPDX-License-Identifier: MIT */
#include "region/dirty_log.h"

#include <errno.h>
#include <inttypes.h>

#include "base/error.h"
#include "base/lock.h"
#include "caps/caps.h"
#include "os/kvm.h"
#include "os/kvm_compat.h"
#include "os/sys.h"
#include "region/kept_log.h"
#include "region/region.h"
#include "region/regions.h"
#include "region/vm_core.h"

static int check_dirty_log(const struct gmem_region *region)
{
	if (!region)
		return gmem_fail(-EINVAL, "region is NULL");
	if (region->is_device)
		return gmem_fail(-EOPNOTSUPP, "a device's range has no dirty log");
	if (!gmem_region_traits(region)->has_dirty_log ||
	    gmem_caps_says(&region->vm->caps, GMEM_CAP_DIRTY_LOG, GMEM_NO))
		return gmem_fail(-EOPNOTSUPP, "there is no dirty log with backing \"%s\" here",
				 gmem_backing_name(region->backing));
	return 0;
}

static int set_slot_flags(struct gmem_region *region, uint32_t flags)
{
	struct gmem_kvm_slot slot = gmem_region_memslot(region);
	int err;

	slot.flags = flags;
	err = gmem_kvm_set_slot(region->vm->fd, &slot);
	if (err)
		return gmem_fail(err, "VM fd %d refuses flags 0x%" PRIx32 " for memslot %" PRIu32 ": %s",
				 region->vm->fd, flags, region->slot, gmem_errno_name(err));
	/* Pairs with the load in gmem_region_is_read_only(). */
	gmem_lock_take(&region->vm->lock);
	__atomic_store_n(&region->slot_flags, flags, __ATOMIC_RELAXED);
	gmem_lock_drop(&region->vm->lock);
	return 0;
}

GMEM_API int gmem_region_set_dirty_log(struct gmem_region *region, int on)
{
	struct gmem_vm *vm;
	uint32_t flags;
	int err;

	if (on != 0 && on != 1)
		return gmem_fail(-EINVAL, "on is %d, neither 0 nor 1", on);
	err = check_dirty_log(region);
	if (err)
		return err;

	vm = region->vm;
	err = gmem_vm_begin_change(vm);
	if (err)
		return gmem_vm_log_error(vm, err);
	flags = region->slot_flags & ~(uint32_t)KVM_MEM_LOG_DIRTY_PAGES;
	err = gmem_regions_check_slot(region);
	if (!err)
		err = set_slot_flags(region, flags | (on ? KVM_MEM_LOG_DIRTY_PAGES : 0));
	if (!err && !on)
		gmem_kept_log_drop(&region->kept_log);
	gmem_vm_end_change(vm);
	return gmem_vm_log_error(vm, err);
}

static int get_dirty_log(const struct gmem_region *region, uint64_t *bitmap, size_t words)
{
	uint64_t needed = (region->gpa.size / gmem_sys_page_size() + 63) / 64;
	int err;

	if (!bitmap || words < needed)
		return gmem_fail(-EINVAL, "a bitmap of %zu words is too small: the region needs %" PRIu64,
				 bitmap ? words : 0, needed);

	err = gmem_kvm_get_dirty_log(region->vm->fd, region->slot, bitmap);
	if (err)
		return gmem_fail(err, "the dirty log of memslot %" PRIu32 ": %s", region->slot,
				 gmem_errno_name(err));
	return 0;
}

GMEM_API int gmem_region_get_dirty_log(struct gmem_region *region, uint64_t *bitmap, size_t words)
{
	struct gmem_vm *vm;
	int err;

	err = check_dirty_log(region);
	if (err)
		return err;

	/* A change must not replace the memslot meanwhile. */
	vm = region->vm;
	err = gmem_vm_begin_change(vm);
	if (err)
		return gmem_vm_log_error(vm, err);
	err = gmem_regions_check_slot(region);
	if (!err)
		err = get_dirty_log(region, bitmap, words);
	if (!err)
		gmem_kept_log_deliver(&region->kept_log, region->gpa.size, bitmap);
	gmem_vm_end_change(vm);
	return gmem_vm_log_error(vm, err);
}
