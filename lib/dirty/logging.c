/* SPDX-License-Identifier: MIT */
#include "dirty/logging.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>

#include "gmem.h"
#include "base/backing.h"
#include "base/error.h"
#include "base/lock.h"
#include "base/wait_budget.h"
#include "caps/caps.h"
#include "dirty/dirty_log.h"
#include "dirty/dirty_ring.h"
#include "os/kvm.h"
#include "os/kvm_compat.h"
#include "os/sys.h"
#include "os/usdt.h"
#include "region/dirty_pages.h"
#include "region/regions.h"
#include "region/vm_core.h"
#include "state/claim.h"

/* How the guest's writes to a region become known */
enum way {
	WAY_NONE,	/* it writes nothing, or nobody wants to know */
	WAY_LOG,	/* by a log of the memslot as it is, */
	WAY_REPLACE,	/* or of one in its place */
	WAY_UNLOGGED,
};

/* Bound to a file all of whose pages are shared: the mapping has the same pages. */
static bool can_be_replaced(const struct gmem_region *region)
{
	const struct gmem_backing_traits *traits = gmem_region_traits(region);

	return traits->is_bound && traits->hva_source == GMEM_HVA_FILE &&
	       traits->attributes == GMEM_ATTRIBUTES_NONE;
}

static enum way way_of(const struct gmem_region *region, bool replaces)
{
	if (gmem_region_is_untracked(region) || gmem_region_is_read_only(region))
		return WAY_NONE;
	if (gmem_caps_says(&region->vm->caps, GMEM_CAP_DIRTY_LOG, GMEM_NO))
		return WAY_UNLOGGED;
	if (!gmem_region_is_bound(region))
		return WAY_LOG;
	return replaces && can_be_replaced(region) ? WAY_REPLACE : WAY_UNLOGGED;
}

static int fail_unlogged(const struct gmem_region *region)
{
	return gmem_fail(-EOPNOTSUPP,
			 "what the guest writes to the region at gpa 0x%" PRIx64 ", 0x%" PRIx64
			 " bytes, with backing \"%s\", is in no log; GMEM_DIRTY_ALLOW_UNLOGGED has it count as "
			 "changed each time%s", region->gpa.start, region->gpa.size,
			 gmem_backing_name(region->backing),
			 can_be_replaced(region) ? ", and GMEM_DIRTY_VCPUS_STOPPED replaces its memslot" : "");
}

/* ---- regions that are added ---- */

int gmem_region_settle_log(struct gmem_region *region)
{
	const struct gmem_backing_traits *traits = gmem_region_traits(region);
	uint64_t flags = region->vm->dirty_flags;
	enum way way;

	if (region->is_device)
		return 0;
	/* An attempt before may have found other trackers. */
	region->slot_flags &= KVM_MEM_READONLY;
	region->slot_flags |= region->wants_log ? KVM_MEM_LOG_DIRTY_PAGES : 0;
	region->slot_flags |= traits->is_bound ? (uint32_t)KVM_MEM_GUEST_MEMFD : 0;
	if (!region->vm->trackers)
		return 0;

	way = way_of(region, flags & GMEM_DIRTY_VCPUS_STOPPED);
	if (way == WAY_UNLOGGED)
		return flags & GMEM_DIRTY_ALLOW_UNLOGGED ? 0 : fail_unlogged(region);
	if (way == WAY_REPLACE)
		region->slot_flags = 0;
	if (way != WAY_NONE)
		region->slot_flags |= KVM_MEM_LOG_DIRTY_PAGES;
	return 0;
}

/* ---- memslots that are replaced ---- */

static uint32_t flags_of(bool is_plain)
{
	return is_plain ? KVM_MEM_LOG_DIRTY_PAGES : (uint32_t)KVM_MEM_GUEST_MEMFD;
}

static int set_slot(const struct gmem_region *region, uint32_t flags)
{
	struct gmem_kvm_slot slot = gmem_region_memslot(region);
	int err;

	slot.flags = flags;
	err = gmem_kvm_set_slot(region->vm->fd, &slot);
	GMEM_PROBE(bind, gmem_vm_number(region->vm), slot.number, slot.gpa, slot.size, region->backing, err);
	return err;
}

static void record(struct gmem_region *region, uint32_t flags, bool lost)
{
	gmem_lock_take(&region->vm->lock);
	__atomic_store_n(&region->slot_flags, flags, __ATOMIC_RELAXED);
	region->lost |= lost;
	region->has_slot &= !lost;
	gmem_lock_drop(&region->vm->lock);
}

/* -ENOTRECOVERABLE: the region has no memslot any more. */
static int replace(struct gmem_region *region, bool to_plain)
{
	struct gmem_vm *vm = region->vm;
	uint32_t old = region->slot_flags;
	int err, undone;

	err = gmem_kvm_delete_slot(vm->fd, gmem_region_slot_id(region));
	GMEM_PROBE(unbind, gmem_vm_number(vm), region->slot, region->gpa.start, region->gpa.size, err);
	if (err)
		return gmem_fail(err, "VM fd %d refuses to delete memslot %" PRIu32 " at gpa 0x%" PRIx64 ": %s",
				 gmem_vm_number(vm), region->slot, region->gpa.start, gmem_errno_name(err));

	err = set_slot(region, flags_of(to_plain));
	if (!err) {
		record(region, flags_of(to_plain), false);
		return 0;
	}
	undone = set_slot(region, old);
	if (undone)
		record(region, old, true);
	return gmem_fail(undone ? -ENOTRECOVERABLE : err,
			 "VM fd %d refuses memslot %" PRIu32 " at gpa 0x%" PRIx64 ", 0x%" PRIx64
			 " bytes, %s: %s%s%s", gmem_vm_number(vm), region->slot, region->gpa.start,
			 region->gpa.size, to_plain ? "of a guest_memfd's mapping, with a dirty log" :
			 "bound to its guest_memfd", gmem_errno_name(err),
			 undone ? "; not undone, the memslot is refused as it was: " : "",
			 undone ? gmem_errno_name(undone) : "");
}

/* The last @done of them. Returns @err, or -ENOTRECOVERABLE. */
static int undo_replacing(struct gmem_replaced *replaced, size_t done, bool to_plain, int err)
{
	struct gmem_failure failure, first;
	bool is_incomplete = false;

	gmem_failure_keep(&failure, err);
	while (done > 0) {
		err = replace(replaced->regions[--done], !to_plain);
		if (err && !is_incomplete)
			gmem_failure_keep(&first, err);
		is_incomplete |= err != 0;
	}
	if (!is_incomplete)
		return gmem_failure_restore(&failure);
	return gmem_fail(-ENOTRECOVERABLE, "%s; not undone: %s", failure.sentence, first.sentence);
}

static bool is_to_be_replaced(const struct gmem_region *region, bool to_plain)
{
	return to_plain ? way_of(region, true) == WAY_REPLACE :
			  can_be_replaced(region) && !gmem_region_is_bound(region) && !region->lost;
}

static int find_regions(struct gmem_vm *vm, bool to_plain, struct gmem_replaced *ret)
{
	struct gmem_stretch at = GMEM_REGIONS_WALK(vm, 0, UINT64_MAX), again = at;

	while (gmem_regions_walk_whole(&at))
		ret->count += at.region && is_to_be_replaced(at.region, to_plain);
	if (!ret->count)
		return 0;
	ret->regions = malloc(ret->count * sizeof(struct gmem_region *));
	if (!ret->regions)
		return gmem_fail(-ENOMEM, "no memory to note %zu regions", ret->count);
	ret->count = 0;
	while (gmem_regions_walk_whole(&again))
		if (again.region && is_to_be_replaced(again.region, to_plain))
			ret->regions[ret->count++] = again.region;
	return 0;
}

/* On failure there is nothing to free. */
static int replace_all(struct gmem_vm *vm, bool to_plain, struct gmem_replaced *ret)
{
	uint64_t start = gmem_sys_now();
	size_t done = 0;
	int err;

	*ret = (struct gmem_replaced){ .count = 0 };
	err = find_regions(vm, to_plain, ret);
	if (err || !ret->count)
		return err;

	for (; done < ret->count && !err; done += !err)
		err = replace(ret->regions[done], to_plain);
	if (err) {
		err = undo_replacing(ret, done, to_plain, err);
		free(ret->regions);
		return err;
	}
	ret->ns = gmem_sys_now() - start;
	return 0;
}

/* ---- all regions ---- */

static int check_all(const struct gmem_vm *vm, bool replaces, bool allow)
{
	struct gmem_stretch at = GMEM_REGIONS_WALK(vm, 0, UINT64_MAX);
	int err = 0;

	while (!err && gmem_regions_walk_whole(&at)) {
		if (!at.region || gmem_region_is_untracked(at.region))
			continue;
		err = gmem_regions_check_slot(at.region);
		if (!err && !allow && way_of(at.region, replaces) == WAY_UNLOGGED)
			err = fail_unlogged(at.region);
	}
	return err;
}

static int switch_on(struct gmem_vm *vm)
{
	struct gmem_stretch at = GMEM_REGIONS_WALK(vm, 0, UINT64_MAX);
	int err = 0;

	while (!err && gmem_regions_walk_whole(&at))
		if (at.region && way_of(at.region, false) == WAY_LOG)
			err = gmem_dirty_log_switch(at.region, true);
	return err;
}

/* What other trackers had no log of until now has changed, as always. */
static void mark_replaced(struct gmem_vm *vm, const struct gmem_replaced *replaced)
{
	for (size_t i = 0; i < replaced->count; i++)
		gmem_vm_mark_dirty(vm, replaced->regions[i]->gpa.start, replaced->regions[i]->gpa.size);
}

static int undo(struct gmem_vm *vm, int err)
{
	struct gmem_failure failure;

	if (vm->trackers)
		return err;
	gmem_failure_keep(&failure, err);
	gmem_vm_end_logging(vm);
	return gmem_failure_restore(&failure);
}

int gmem_vm_check_logging(struct gmem_vm *vm, uint64_t flags)
{
	int err = gmem_vm_check_dirty_rings(vm, flags);

	return err ? err : check_all(vm, flags & GMEM_DIRTY_VCPUS_STOPPED, flags & GMEM_DIRTY_ALLOW_UNLOGGED);
}

int gmem_vm_begin_logging(struct gmem_vm *vm, uint64_t flags, struct gmem_replaced *ret)
{
	bool replaces = flags & GMEM_DIRTY_VCPUS_STOPPED;
	int err;

	*ret = (struct gmem_replaced){ .count = 0 };
	err = switch_on(vm);
	if (!err && replaces)
		err = replace_all(vm, true, ret);
	if (err)
		return undo(vm, err);
	mark_replaced(vm, ret);
	return 0;
}

int gmem_vm_undo_logging(struct gmem_vm *vm, struct gmem_replaced *replaced, int err)
{
	return undo(vm, undo_replacing(replaced, replaced->count, true, err));
}

/* A refusal leaves a log that nobody reads. */
void gmem_vm_end_logging(struct gmem_vm *vm)
{
	struct gmem_stretch at = GMEM_REGIONS_WALK(vm, 0, UINT64_MAX);

	while (gmem_regions_walk_whole(&at))
		if (at.region && !at.region->lost && gmem_region_is_logged(at.region) &&
		    !gmem_region_wants_log(at.region))
			gmem_vm_log_error(vm, gmem_dirty_log_switch(at.region, false));
	gmem_dirty_logs_forget(vm);
}

GMEM_API int gmem_vm_bind_shared(struct gmem_vm *vm, uint64_t *ret_ns)
{
	struct gmem_wait_budget budget;
	struct gmem_replaced replaced;
	int err;

	if (!vm)
		return gmem_fail(-EINVAL, "vm is NULL");
	budget = gmem_vm_budget(vm, 0);
	err = gmem_claim_begin_change(vm, &budget);
	if (err)
		return gmem_vm_log_error(vm, err);

	err = vm->trackers ? gmem_fail(-EBUSY, "there is a tracker, which needs the logs of memslots") :
			     replace_all(vm, false, &replaced);
	if (err)
		err = undo(vm, err);
	gmem_vm_end_change(vm);
	if (err)
		return gmem_vm_log_error(vm, err);
	if (ret_ns)
		*ret_ns = replaced.ns;
	free(replaced.regions);
	return 0;
}
