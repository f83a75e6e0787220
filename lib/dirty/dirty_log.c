/* SPDX-License-Identifier: MIT */
#include "dirty/dirty_log.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>

#include "gmem.h"
#include "base/error.h"
#include "base/lock.h"
#include "base/wait_budget.h"
#include "caps/caps.h"
#include "os/kvm.h"
#include "os/kvm_compat.h"
#include "os/sys.h"
#include "region/dirty_pages.h"
#include "region/kept_log.h"
#include "region/region.h"
#include "region/regions.h"
#include "region/vm_core.h"
#include "state/claim.h"

#define WORD_PAGES UINT64_C(64)

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

/* The region can move, or be split, while the claim waits. */
static int claim_region(struct gmem_region *region, struct gmem_claim *claim,
			struct gmem_wait_budget *budget)
{
	struct gmem_vm *vm = region->vm;
	int err;

	gmem_lock_take(&vm->lock);
	for (;;) {
		claim->gpa = region->gpa.start;
		claim->size = region->gpa.size;
		err = gmem_claim_take(vm, claim, budget);
		if (err || (claim->gpa == region->gpa.start && claim->size == region->gpa.size))
			break;
		gmem_claim_drop(vm, claim);
	}
	if (!err) {
		err = gmem_regions_check_slot(region);
		if (err)
			gmem_claim_drop(vm, claim);
	}
	gmem_lock_drop(&vm->lock);
	return err;
}

static void drop_claim(struct gmem_vm *vm, struct gmem_claim *claim)
{
	gmem_lock_take(&vm->lock);
	gmem_claim_drop(vm, claim);
	gmem_lock_drop(&vm->lock);
}

/* ---- on and off ---- */

/* Nobody else changes the memslot meanwhile; KVM can take long, so no lock is held. */
static int set_slot_flags(struct gmem_region *region, uint32_t flags)
{
	struct gmem_kvm_slot slot = gmem_region_memslot(region);
	int err;

	slot.flags = flags;
	err = gmem_kvm_set_slot(region->vm->fd, &slot);
	if (err)
		return gmem_fail(err, "VM fd %d refuses flags 0x%" PRIx32 " for memslot %" PRIu32 ": %s",
				 gmem_vm_number(region->vm), flags, region->slot, gmem_errno_name(err));

	gmem_lock_take(&region->vm->lock);
	/* Pairs with the load in gmem_region_is_read_only(). */
	__atomic_store_n(&region->slot_flags, flags, __ATOMIC_RELAXED);
	gmem_lock_drop(&region->vm->lock);
	return 0;
}

int gmem_dirty_log_set(struct gmem_region *region, bool on, struct gmem_wait_budget *budget)
{
	struct gmem_claim claim = {
		.mode = GMEM_CLAIM_EXCLUSIVE,
		.in_front = true,
		.allows_leases = true,
		.purpose = "told to log writes, or not to",
	};
	uint32_t flags;
	int err;

	err = claim_region(region, &claim, budget);
	if (err)
		return err;

	flags = region->slot_flags & ~(uint32_t)KVM_MEM_LOG_DIRTY_PAGES;
	err = set_slot_flags(region, flags | (on ? KVM_MEM_LOG_DIRTY_PAGES : 0));
	if (!err && !on)
		gmem_kept_log_drop(&region->kept_log);
	drop_claim(region->vm, &claim);
	return err;
}

/* A change of the layout is planned from the memslots as they are, before it claims them. */
GMEM_API int gmem_region_set_dirty_log(struct gmem_region *region, int on)
{
	struct gmem_wait_budget budget;
	struct gmem_vm *vm;
	int err;

	if (on != 0 && on != 1)
		return gmem_fail(-EINVAL, "on is %d, neither 0 nor 1", on);
	err = check_dirty_log(region);
	if (err)
		return err;

	vm = region->vm;
	budget = gmem_vm_budget(vm, 0);
	err = gmem_claim_check_not_owner(vm);
	if (!err)
		err = gmem_vm_begin_change(vm, &budget);
	if (err)
		return gmem_vm_log_error(vm, err);

	err = gmem_dirty_log_set(region, on, &budget);
	gmem_vm_end_change(vm);
	return gmem_vm_log_error(vm, err);
}

/* ---- reading ---- */

static int fail_to_read(const struct gmem_region *region, int err)
{
	if (err == -ENXIO)
		return gmem_fail(-EOPNOTSUPP,
				 "VM fd %d logs writes in dirty rings (KVM_CAP_DIRTY_LOG_RING), so memslot %"
				 PRIu32 " has no bitmap: read the rings of the vCPUs",
				 gmem_vm_number(region->vm), region->slot);
	if (!(region->slot_flags & KVM_MEM_LOG_DIRTY_PAGES))
		return gmem_fail(err, "memslot %" PRIu32 " does not log writes: "
				 "gmem_region_set_dirty_log() has it do so", region->slot);
	return gmem_fail(err, "the dirty log of memslot %" PRIu32 ": %s", region->slot,
			 gmem_errno_name(err));
}

/*
 * Clear the bits that were read. Without manual protection, KVM did so as it gave them;
 * KVM does not tell, but doing it twice is right, too: a page that is written between the
 * two calls is reported already, and whoever reads its contents now finds what was written.
 */
static int clear_read_bits(const struct gmem_region *region, const uint64_t *bitmap, uint64_t pages)
{
	uint64_t first = 0, end = (pages + WORD_PAGES - 1) / WORD_PAGES;

	while (end > 0 && !bitmap[end - 1])
		end--;
	while (first < end && !bitmap[first])
		first++;
	if (first == end || gmem_kvm_check(region->vm->fd, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) < 1)
		return 0;

	/* KVM takes whole words, but for the end of the memslot. */
	pages = end * WORD_PAGES < pages ? end * WORD_PAGES : pages;
	return gmem_kvm_clear_dirty_log(region->vm->fd, gmem_region_slot_id(region), first * WORD_PAGES,
					pages - first * WORD_PAGES, bitmap + first);
}

static int get_dirty_log(const struct gmem_region *region, uint64_t *bitmap, size_t words)
{
	uint64_t pages = region->gpa.size / gmem_sys_page_size();
	uint64_t needed = (pages + WORD_PAGES - 1) / WORD_PAGES;
	int err;

	if (!bitmap)
		return gmem_fail(-EINVAL, "bitmap is NULL");
	if (words < needed)
		return gmem_fail(-EINVAL, "a bitmap of %zu words is too small: the region needs %" PRIu64,
				 words, needed);

	err = gmem_kvm_get_dirty_log(region->vm->fd, gmem_region_slot_id(region), bitmap);
	if (err)
		return fail_to_read(region, err);

	/* The bits may be gone from KVM, so this is no failure: none of them is lost. */
	err = clear_read_bits(region, bitmap, pages);
	if (err)
		gmem_vm_log_error(region->vm,
				  gmem_fail(err, "the dirty log of memslot %" PRIu32 " was read, and VM fd %d "
					    "does not clear it: %s", region->slot, gmem_vm_number(region->vm),
					    gmem_errno_name(err)));
	return 0;
}

/* Only now that the caller gets them, bits that a change of the layout kept are dropped. */
static void deliver_kept_log(struct gmem_region *region, uint64_t *bitmap)
{
	uint64_t *kept;

	gmem_lock_take(&region->vm->lock);
	kept = region->kept_log;
	region->kept_log = NULL;
	gmem_lock_drop(&region->vm->lock);
	gmem_kept_log_deliver(&kept, region->gpa.size, bitmap);
}

GMEM_API int gmem_region_get_dirty_log(struct gmem_region *region, uint64_t *bitmap, size_t words)
{
	struct gmem_claim claim = { .mode = GMEM_CLAIM_SHARED };
	struct gmem_wait_budget budget;
	struct gmem_vm *vm;
	int err;

	err = check_dirty_log(region);
	if (err)
		return err;

	vm = region->vm;
	budget = gmem_vm_budget(vm, 0);
	err = claim_region(region, &claim, &budget);
	if (err)
		return gmem_vm_log_error(vm, err);

	err = get_dirty_log(region, bitmap, words);
	if (!err)
		deliver_kept_log(region, bitmap);
	drop_claim(vm, &claim);
	return gmem_vm_log_error(vm, err);
}

/* ---- marks ---- */

static int mark_region(struct gmem_region *region, uint64_t *bitmap, size_t words)
{
	struct gmem_vm *vm = region->vm;
	int err;

	gmem_lock_take(&vm->dirty_lock);
	err = get_dirty_log(region, bitmap, words);
	if (!err) {
		deliver_kept_log(region, bitmap);
		gmem_lock_take(&vm->lock);
		gmem_dirty_pages_mark_bits(vm->newest.dirty, region->gpa.start, bitmap,
					   region->gpa.size / gmem_sys_page_size());
		gmem_lock_drop(&vm->lock);
	}
	gmem_lock_drop(&vm->dirty_lock);
	return err;
}

int gmem_dirty_logs_mark(struct gmem_vm *vm)
{
	struct gmem_stretch at = GMEM_REGIONS_WALK(vm, 0, UINT64_MAX);
	int err = 0;

	while (!err && gmem_regions_walk_whole(&at)) {
		size_t words = (size_t)(at.size / gmem_sys_page_size() / WORD_PAGES + 1);
		uint64_t *bitmap;

		if (!at.region || !(at.region->slot_flags & KVM_MEM_LOG_DIRTY_PAGES))
			continue;
		bitmap = calloc(words, sizeof(*bitmap));
		err = bitmap ? mark_region(at.region, bitmap, words) : gmem_fail(-ENOMEM, "no memory to read a log");
		free(bitmap);
	}
	return err;
}
