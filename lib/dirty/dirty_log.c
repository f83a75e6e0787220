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
#include "dirty/dirty_ring.h"
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

/* Words of a bitmap that are cleared and marked at once */
#define PIECE_WORDS UINT64_C(4096)

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

/* ---- reading KVM's log, with dirty_lock ---- */

static uint64_t pages_of(const struct gmem_region *region)
{
	return region->gpa.size / gmem_sys_page_size();
}

static uint64_t words_of(const struct gmem_region *region)
{
	return (pages_of(region) + WORD_PAGES - 1) / WORD_PAGES;
}

static int fail_to_read(const struct gmem_region *region, int err)
{
	if (err == -ENXIO)
		return gmem_fail(-EOPNOTSUPP,
				 "VM fd %d logs writes in dirty rings (KVM_CAP_DIRTY_LOG_RING), so memslot %"
				 PRIu32 " has no bitmap: read the rings of the vCPUs",
				 gmem_vm_number(region->vm), region->slot);
	if (!gmem_region_is_logged(region) || !gmem_region_wants_log(region))
		return gmem_fail(err, "memslot %" PRIu32 " does not log writes: "
				 "gmem_region_set_dirty_log() has it do so", region->slot);
	return gmem_fail(err, "the dirty log of memslot %" PRIu32 ": %s", region->slot,
			 gmem_errno_name(err));
}

static int get_log(const struct gmem_region *region, uint64_t *bitmap)
{
	return gmem_kvm_get_dirty_log(region->vm->fd, gmem_region_slot_id(region), bitmap);
}

static bool has_manual_protect(const struct gmem_vm *vm)
{
	return gmem_kvm_check(vm->fd, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) > 0;
}

/*
 * KVM does not tell whether manual protection was enabled. A log that is read twice has lost
 * bits the second time if KVM clears them. If it lost none, the guest may have written the
 * same pages again: to clear what is clear is right, too, and takes a little longer.
 */
static void find_out_who_clears(const struct gmem_region *region, uint64_t *bitmap)
{
	struct gmem_vm *vm = region->vm;
	uint64_t words = words_of(region), *again;

	vm->logs_are_cleared = !has_manual_protect(vm);
	vm->knows_who_clears = vm->logs_are_cleared;
	again = vm->logs_are_cleared ? NULL : calloc(words, sizeof(*again));
	if (again && !get_log(region, again)) {
		vm->knows_who_clears = true;
		for (uint64_t i = 0; i < words; i++) {
			vm->logs_are_cleared |= (bitmap[i] & ~again[i]) != 0;
			bitmap[i] |= again[i];
		}
	}
	free(again);
}

/* Words of [*@first, *@end) without a bit at either end are left out. */
static bool trim(const uint64_t *bitmap, uint64_t *first, uint64_t *end)
{
	while (*end - *first >= 8 && gmem_dirty_words_are_clean(bitmap + *first))
		*first += 8;
	while (*first < *end && !bitmap[*first])
		++*first;
	while (*end > *first && !bitmap[*end - 1])
		--*end;
	return *first < *end;
}

/* KVM takes whole words, but for the end of the memslot. */
static int clear_words(const struct gmem_region *region, const uint64_t *bitmap, uint64_t first,
		       uint64_t end)
{
	uint64_t pages = pages_of(region);

	end = end * WORD_PAGES < pages ? end * WORD_PAGES : pages;
	return gmem_kvm_clear_dirty_log(region->vm->fd, gmem_region_slot_id(region), first * WORD_PAGES,
					end - first * WORD_PAGES, bitmap + first);
}

static void mark_words(const struct gmem_region *region, const uint64_t *bitmap, uint64_t first,
		       uint64_t end)
{
	uint64_t page = gmem_sys_page_size(), pages = pages_of(region);
	struct gmem_vm *vm = region->vm;

	end = end * WORD_PAGES < pages ? end * WORD_PAGES : pages;
	gmem_lock_take(&vm->lock);
	if (vm->newest.dirty)
		gmem_dirty_pages_mark_bits(vm->newest.dirty, region->gpa.start + first * WORD_PAGES * page,
					   bitmap + first, end - first * WORD_PAGES);
	gmem_lock_drop(&vm->lock);
}

/* The bits may be gone from KVM, so this is no failure of reading: none of them is lost. */
static void log_not_cleared(const struct gmem_region *region, int err)
{
	gmem_vm_log_error(region->vm,
			  gmem_fail(err, "the dirty log of memslot %" PRIu32 " was read, and VM fd %d "
				    "does not clear it: %s", region->slot, gmem_vm_number(region->vm),
				    gmem_errno_name(err)));
}

/*
 * Mark what a bitmap says, and clear it in KVM, piece by piece: KVM lets no vCPU handle a fault
 * while it clears, nor does this let others at the layout while it marks. A page that is written
 * after its bit was read and before it is cleared is reported, and whoever reads its contents
 * then finds what was written.
 */
static void use_bits(const struct gmem_region *region, const uint64_t *bitmap, bool clears)
{
	uint64_t words = words_of(region), first, end;
	int err = 0;

	for (uint64_t at = 0; at < words; at += PIECE_WORDS) {
		first = at;
		end = at + PIECE_WORDS < words ? at + PIECE_WORDS : words;
		if (!trim(bitmap, &first, &end))
			continue;
		if (clears && !err)
			err = clear_words(region, bitmap, first, end);
		mark_words(region, bitmap, first, end);
	}
	if (err)
		log_not_cleared(region, err);
}

static bool is_clean(const struct gmem_region *region, const uint64_t *bitmap)
{
	uint64_t first = 0, end = words_of(region);

	return !trim(bitmap, &first, &end);
}

/* ---- for trackers ---- */

void gmem_dirty_log_mark(struct gmem_region *region, const uint64_t *bitmap)
{
	use_bits(region, bitmap, false);
}

static int make_room(struct gmem_vm *vm, const struct gmem_region *region)
{
	uint64_t words = words_of(region), *bitmap;

	if (words <= vm->dirty_words)
		return 0;
	bitmap = malloc(words * sizeof(*bitmap));
	if (!bitmap)
		return gmem_fail(-ENOMEM, "no memory to read the dirty log of 0x%" PRIx64 " bytes",
				 region->gpa.size);
	free(vm->dirty_bitmap);
	vm->dirty_bitmap = bitmap;
	vm->dirty_words = words;
	return 0;
}

/*
 * What is read for trackers is kept for the user, too. Others change kept_log only with a claim
 * on the region or the hook lock, which keep this away.
 */
static int make_room_to_keep(struct gmem_region *region)
{
	uint64_t *kept;

	if (region->kept_log)
		return 0;
	kept = gmem_kept_log_new(region->gpa.size);
	gmem_lock_take(&region->vm->lock);
	region->kept_log = kept;
	gmem_lock_drop(&region->vm->lock);
	return kept ? 0 : -ENOMEM;
}

static int mark_region(struct gmem_region *region, bool keeps)
{
	struct gmem_vm *vm = region->vm;
	int err;

	err = make_room(vm, region);
	if (!err && keeps)
		err = make_room_to_keep(region);
	if (err)
		return err;

	err = get_log(region, vm->dirty_bitmap);
	if (err)
		return err == -ENXIO ? err : fail_to_read(region, err);
	if (!vm->knows_who_clears && !is_clean(region, vm->dirty_bitmap))
		find_out_who_clears(region, vm->dirty_bitmap);
	use_bits(region, vm->dirty_bitmap, !vm->logs_are_cleared);
	if (keeps)
		gmem_kept_log_merge(region->kept_log, 0, vm->dirty_bitmap, 0, pages_of(region));
	return 0;
}

int gmem_dirty_logs_mark(struct gmem_vm *vm)
{
	struct gmem_stretch at = GMEM_REGIONS_WALK(vm, 0, UINT64_MAX);
	int err = 0;

	while (!err && gmem_regions_walk_whole(&at)) {
		if (!at.region || !gmem_region_is_logged(at.region) || at.region->lost ||
		    gmem_region_is_untracked(at.region))
			continue;
		gmem_lock_take(&vm->dirty_lock);
		err = mark_region(at.region, gmem_region_wants_log(at.region));
		gmem_lock_drop(&vm->dirty_lock);
	}
	/* All of it is in dirty rings. */
	return err == -ENXIO && gmem_vm_has_dirty_rings(vm) ? 0 : err;
}

void gmem_dirty_logs_forget(struct gmem_vm *vm)
{
	gmem_lock_take(&vm->dirty_lock);
	free(vm->dirty_bitmap);
	vm->dirty_bitmap = NULL;
	vm->dirty_words = 0;
	vm->knows_who_clears = false;
	vm->logs_are_cleared = false;
	gmem_lock_drop(&vm->dirty_lock);
}

/* ---- on and off ---- */

/* Nobody else changes the memslot meanwhile; KVM can take long, so no lock is held. */
int gmem_dirty_log_switch(struct gmem_region *region, bool on)
{
	struct gmem_kvm_slot slot = gmem_region_memslot(region);
	int err;

	slot.flags &= ~(uint32_t)KVM_MEM_LOG_DIRTY_PAGES;
	slot.flags |= on ? KVM_MEM_LOG_DIRTY_PAGES : 0;
	if (slot.flags == region->slot_flags)
		return 0;
	err = gmem_kvm_set_slot(region->vm->fd, &slot);
	if (err)
		return gmem_fail(err, "VM fd %d refuses flags 0x%" PRIx32 " for memslot %" PRIu32 ": %s",
				 gmem_vm_number(region->vm), slot.flags, region->slot, gmem_errno_name(err));

	gmem_lock_take(&region->vm->lock);
	/* Pairs with the load in gmem_region_is_read_only(). */
	__atomic_store_n(&region->slot_flags, slot.flags, __ATOMIC_RELAXED);
	gmem_lock_drop(&region->vm->lock);
	return 0;
}

static bool is_logged_for_trackers(const struct gmem_region *region)
{
	return region->vm->trackers && !gmem_region_is_untracked(region) &&
	       !gmem_region_is_read_only(region);
}

static void set_wish(struct gmem_region *region, bool on)
{
	gmem_lock_take(&region->vm->lock);
	__atomic_store_n(&region->wants_log, on, __ATOMIC_RELAXED);
	if (!on)
		gmem_kept_log_drop(&region->kept_log);
	gmem_lock_drop(&region->vm->lock);
}

/* What was written before the user wants a log is for trackers alone. */
static int begin_log(struct gmem_region *region)
{
	int err = 0;

	if (gmem_region_is_logged(region) && !gmem_region_wants_log(region)) {
		gmem_lock_take(&region->vm->dirty_lock);
		err = mark_region(region, false);
		gmem_lock_drop(&region->vm->dirty_lock);
	}
	if (!err || err == -ENXIO)
		err = gmem_dirty_log_switch(region, true);
	if (!err)
		set_wish(region, true);
	return err;
}

static int end_log(struct gmem_region *region)
{
	int err = is_logged_for_trackers(region) ? 0 : gmem_dirty_log_switch(region, false);

	if (!err)
		set_wish(region, false);
	return err;
}

static int set_dirty_log(struct gmem_region *region, bool on, struct gmem_wait_budget *budget)
{
	struct gmem_claim claim = {
		.mode = GMEM_CLAIM_EXCLUSIVE,
		.in_front = true,
		.allows_leases = true,
		.purpose = "told to log writes, or not to",
	};
	int err;

	err = claim_region(region, &claim, budget);
	if (err)
		return err;
	err = on ? begin_log(region) : end_log(region);
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
	err = gmem_claim_begin_change(vm, &budget);
	if (err)
		return gmem_vm_log_error(vm, err);

	err = set_dirty_log(region, on, &budget);
	gmem_vm_end_change(vm);
	return gmem_vm_log_error(vm, err);
}

/* ---- for the user ---- */

/* Only now that the caller gets them, bits that were kept are dropped. */
static void deliver_kept_log(struct gmem_region *region, uint64_t *bitmap)
{
	uint64_t *kept;

	gmem_lock_take(&region->vm->lock);
	kept = region->kept_log;
	region->kept_log = NULL;
	gmem_lock_drop(&region->vm->lock);
	gmem_kept_log_deliver(&kept, region->gpa.size, bitmap);
}

static int get_dirty_log(struct gmem_region *region, uint64_t *bitmap, size_t words)
{
	int err;

	if (!bitmap)
		return gmem_fail(-EINVAL, "bitmap is NULL");
	if (words < words_of(region))
		return gmem_fail(-EINVAL, "a bitmap of %zu words is too small: the region needs %" PRIu64,
				 words, words_of(region));
	if (gmem_region_is_logged(region) && !gmem_region_wants_log(region))
		return fail_to_read(region, -ENOENT);

	gmem_lock_take(&region->vm->dirty_lock);
	err = get_log(region, bitmap);
	if (!err) {
		use_bits(region, bitmap, !is_clean(region, bitmap) && has_manual_protect(region->vm));
		deliver_kept_log(region, bitmap);
	}
	gmem_lock_drop(&region->vm->dirty_lock);
	return err ? fail_to_read(region, err) : 0;
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
	drop_claim(vm, &claim);
	return gmem_vm_log_error(vm, err);
}
