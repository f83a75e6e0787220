/* SPDX-License-Identifier: MIT */
#include "layout/apply_slots.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>

#include "gmem.h"
#include "base/counters.h"
#include "base/error.h"
#include "base/lock.h"
#include "base/part.h"
#include "base/range_map.h"
#include "caps/caps.h"
#include "layout/foreign_slot.h"
#include "os/kvm.h"
#include "os/kvm_compat.h"
#include "os/sys.h"
#include "os/usdt.h"
#include "region/file.h"
#include "region/kept_log.h"
#include "region/page_states.h"
#include "region/region.h"
#include "region/regions.h"
#include "state/private_state.h"
#include "view/view.h"

static int fail_slot(const struct gmem_vm *vm, const struct gmem_kvm_slot *slot, int err)
{
	if (!(slot->flags & KVM_MEM_GUEST_MEMFD))
		return gmem_fail(err,
				 "VM fd %d refuses memslot %" PRIu32 " at gpa 0x%" PRIx64 ", 0x%" PRIx64
				 " bytes, hva 0x%" PRIx64 ": %s",
				 gmem_vm_number(vm), slot->number, slot->gpa, slot->size,
				 (uint64_t)(uintptr_t)slot->hva, gmem_errno_name(err));

	return gmem_fail(err,
			 "VM fd %d refuses memslot %" PRIu32 " at gpa 0x%" PRIx64 ", 0x%" PRIx64
			 " bytes, guest_memfd fd %d, offset 0x%" PRIx64 ": %s",
			 gmem_vm_number(vm), slot->number, slot->gpa, slot->size, slot->gmemfd,
			 slot->gmemfd_offset, gmem_errno_name(err));
}

/* The number can be taken by somebody else only if the region did not have it. */
static int fail_new_slot(struct gmem_vm *vm, const struct gmem_step *step,
			 const struct gmem_kvm_slot *slot, int err)
{
	bool is_new = !step->has_old || slot->number != step->old.number;
	int explained = 0;

	if (is_new || err == -EEXIST)
		explained = gmem_foreign_slot_explain(vm, slot, err);
	return explained ? explained : fail_slot(vm, slot, err);
}

/* ---- dirty logs ---- */

/* Address bits if the report does not know them: what every host has */
#define DEFAULT_ADDRESS_BITS	36

/* How many places to try, each half as far up as the one before */
#define PARKING_TRIES		4

/* Find @size bytes below @end that no region has. The VMM may have a memslot there. */
static bool find_parking(const struct gmem_vm *vm, uint64_t size, uint64_t end, uint64_t *ret)
{
	const struct gmem_range *range;

	while (end >= size) {
		range = gmem_range_find(&vm->regions, end - size, size);
		if (!range) {
			*ret = end - size;
			return true;
		}
		end = range->start;
	}
	return false;
}

static int park(const struct gmem_vm *vm, struct gmem_kvm_slot *slot)
{
	uint64_t bits = gmem_caps_value(&vm->caps, GMEM_CAP_ADDRESS_BITS);
	struct gmem_kvm_slot parked = *slot;
	int err = -ENOSPC;

	if (!bits || bits > 63)
		bits = DEFAULT_ADDRESS_BITS;
	for (unsigned int tries = 0; tries < PARKING_TRIES && err; tries++)
		if (find_parking(vm, slot->size, UINT64_C(1) << (bits - tries), &parked.gpa))
			err = gmem_kvm_set_slot(vm->fd, &parked);
	if (!err)
		*slot = parked;
	return err;
}

/*
 * Keep the log of @slot, which is about to be deleted; its first page is the region's
 * @offset. The slot may not be where it was afterwards.
 */
static void save_log(const struct gmem_vm *vm, const struct gmem_step *step,
		     struct gmem_kvm_slot *slot, uint64_t offset)
{
	uint64_t page = gmem_sys_page_size();
	int err;

	if (!step->log || !(slot->flags & KVM_MEM_LOG_DIRTY_PAGES))
		return;

	err = park(vm, slot);
	if (!err)
		err = gmem_kvm_get_dirty_log(vm->fd, gmem_kvm_slot_id(slot->space, slot->number), step->log);
	if (!err)
		gmem_kept_log_merge(step->region->kept_log, offset / page, step->log, 0,
				    slot->size / page);
	else if (err != -ENXIO)	/* a dirty ring, which outlives the memslot */
		gmem_kept_log_fill(step->region->kept_log, offset / page, slot->size / page);
}

/* ---- there ---- */

static int delete_old(struct gmem_vm *vm, struct gmem_step *step)
{
	struct gmem_kvm_slot slot = step->old;
	int err;

	save_log(vm, step, &slot, 0);
	step->parked = slot.gpa != step->old.gpa;
	err = gmem_kvm_delete_slot(vm->fd, gmem_kvm_slot_id(slot.space, slot.number));
	GMEM_PROBE(unbind, gmem_vm_number(vm), step->old.number, step->old.gpa, step->old.size, err);
	if (err) {
		step->failed = true;
		return gmem_fail(err,
				 "VM fd %d refuses to delete memslot %" PRIu32 " at gpa 0x%" PRIx64 ": %s",
				 gmem_vm_number(vm), step->old.number, step->old.gpa, gmem_errno_name(err));
	}
	step->deleted = true;
	return 0;
}

static bool can_move(const struct gmem_step *step)
{
	return gmem_step_may_move_slot(step) && !step->is_blocked;
}

static int delete_all_old(struct gmem_vm *vm, struct gmem_step *steps, size_t count)
{
	int err = 0;

	for (size_t i = 0; i < count && !err; i++)
		if (steps[i].has_old && !can_move(&steps[i]))
			err = delete_old(vm, &steps[i]);
	return err;
}

static int move_slot(struct gmem_vm *vm, struct gmem_step *step)
{
	const struct gmem_kvm_slot *slot = &step->new[0];
	int err = gmem_kvm_set_slot(vm->fd, slot);

	GMEM_PROBE(bind, gmem_vm_number(vm), slot->number, slot->gpa, slot->size, step->region->backing, err);
	if (!err) {
		step->moved = true;
		return 0;
	}
	/* Some KVMs move no memslot: x86 while a graphics device tracks writes to pages. */
	if (err == -EINVAL || err == -EEXIST)
		return delete_old(vm, step);
	step->failed = true;
	return fail_slot(vm, slot, err);
}

static int move_slots(struct gmem_vm *vm, struct gmem_step *steps, size_t count)
{
	int err = 0;

	for (size_t i = 0; i < count && !err; i++)
		if (can_move(&steps[i]))
			err = move_slot(vm, &steps[i]);
	return err;
}

static int add_new(struct gmem_vm *vm, struct gmem_step *step)
{
	const struct gmem_kvm_slot *slot;
	int err;

	while (!step->moved && step->added < step->new_count) {
		slot = &step->new[step->added];
		err = gmem_kvm_set_slot(vm->fd, slot);
		GMEM_PROBE(bind, gmem_vm_number(vm), slot->number, slot->gpa, slot->size, step->region->backing,
			   err);
		if (err) {
			step->failed = true;
			return fail_new_slot(vm, step, slot, err);
		}
		if (slot->gmemfd >= 0 && step->after)
			gmem_file_prove_vm(step->after->file);
		step->added++;
	}
	return 0;
}

/* ---- and back ---- */

/* A change that is undone, and what could not be */
struct undo {
	struct gmem_vm *vm;
	bool is_incomplete;
	char sentence[160];
};

/* The first one is the one to tell. */
static void note_loss(struct undo *undo, const struct gmem_kvm_slot *slot, const char *what, int err)
{
	if (undo->is_incomplete)
		return;
	undo->is_incomplete = true;
	snprintf(undo->sentence, sizeof(undo->sentence),
		 "VM fd %d %s memslot %" PRIu32 " at gpa 0x%" PRIx64 ", 0x%" PRIx64 " bytes: %s",
		 gmem_vm_number(undo->vm), what, slot->number, slot->gpa, slot->size, gmem_errno_name(err));
}

static void take_back(struct undo *undo, struct gmem_step *step, unsigned int n)
{
	struct gmem_kvm_slot *slot = &step->new[n];
	int err;

	save_log(undo->vm, step, slot, n ? step->offset : 0);
	err = gmem_kvm_delete_slot_retry(undo->vm->fd, gmem_kvm_slot_id(slot->space, slot->number));
	if (err) {
		step->stuck[n] = true;
		note_loss(undo, slot, "keeps", err);
	}
}

static void put_back(struct undo *undo, struct gmem_step *step)
{
	int err = gmem_kvm_set_slot(undo->vm->fd, &step->old);

	if (err) {
		step->lost = true;
		note_loss(undo, &step->old, "refuses to put back", err);
	}
}

/* Move a memslot back; if KVM refuses, delete and add it. */
static void move_back(struct undo *undo, struct gmem_step *step)
{
	if (!gmem_kvm_set_slot(undo->vm->fd, &step->old))
		return;
	take_back(undo, step, 0);
	step->deleted = true;
}

/* The old memslot was not deleted, and is not where it was. */
static void leave_parking(struct undo *undo, struct gmem_step *step)
{
	int err = gmem_kvm_set_slot(undo->vm->fd, &step->old);

	if (err) {
		step->lost = true;
		note_loss(undo, &step->old, "does not move back", err);
	}
}

/* @part is of offsets in the region. */
static int set_part_private(const struct gmem_region *region, const struct gmem_part *part,
			    bool to_private)
{
	const struct gmem_part gpas = { region->gpa.start + part->start,
					region->gpa.start + part->last };

	return gmem_region_set_private(region, &gpas, to_private, 0);
}

/* Tell the kernel what is marked: what is removed becomes shared, what is added private. */
static int tell_states(struct gmem_step *step, bool to_private)
{
	const struct gmem_states *states = &step->region->states;
	struct gmem_states_walk at = GMEM_STATES_WALK(states, GMEM_PAGE_CHANGING, true, 0,
						      step->region->gpa.size);
	int err;

	while (gmem_states_walk(&at)) {
		const struct gmem_part part = { at.offset, at.offset + at.size - 1 };

		err = set_part_private(step->region, &part, to_private);
		if (err) {
			step->failed = true;
			return err;
		}
		step->told = at.offset + at.size;
	}
	return 0;
}

/* Holes that the kernel keeps private are made shared before memory comes there. */
static int clear_strays(struct gmem_vm *vm, struct gmem_step *step)
{
	const struct gmem_range *gpa = &step->after->gpa;
	struct gmem_stretch at = GMEM_REGIONS_WALK(vm, gpa->start, gmem_range_last(gpa));
	int err = 0;

	while (!err && gmem_regions_walk_whole(&at)) {
		if (at.region)
			continue;
		err = gmem_kvm_set_attributes(vm->fd, at.gpa, at.size, 0);
		if (err)
			gmem_fail(err, "VM fd %d refuses to make gpa 0x%" PRIx64 ", 0x%" PRIx64
				  " bytes, shared, which stayed private when a change was undone: %s",
				  gmem_vm_number(vm), at.gpa, at.size, gmem_errno_name(err));
	}
	step->failed = err != 0;
	return err;
}

/*
 * Attributes belong to addresses, not to memslots. A hole or a device that is private is a
 * trap for the guest, so what is removed leaves nothing private; then what is added may take
 * its place. The kernel is told while the addresses have no memslot.
 */
static int tell_all_states(struct gmem_vm *vm, struct gmem_step *steps, size_t count)
{
	int err = 0;

	for (size_t i = 0; i < count && !err; i++)
		if (steps[i].kind == GMEM_STEP_REMOVE)
			err = tell_states(&steps[i], false);
	for (size_t i = 0; i < count && !err && vm->has_stray_private; i++)
		if (steps[i].kind == GMEM_STEP_ADD || steps[i].kind == GMEM_STEP_MOVE)
			err = clear_strays(vm, &steps[i]);
	for (size_t i = 0; i < count && !err; i++)
		if (steps[i].kind == GMEM_STEP_ADD)
			err = tell_states(&steps[i], true);
	return err;
}

static int set_insisting(const struct gmem_region *region, const struct gmem_part *part,
			 bool to_private)
{
	int err = 0;

	for (int tries = 0; tries < GMEM_UNDO_TRIES; tries++) {
		err = set_part_private(region, part, to_private);
		if (!err)
			break;
	}
	return err;
}

/* Record that the kernel has a part of a region in another state than it should. */
static void record_state(struct undo *undo, struct gmem_region *region, uint64_t offset,
			 uint64_t size, bool is_private)
{
	gmem_region_count(region, is_private ? GMEM_COUNT_MADE_PRIVATE : GMEM_COUNT_MADE_SHARED,
			  gmem_states_set(&region->states, GMEM_PAGE_PRIVATE, offset, size, is_private));
	gmem_vm_show_states(undo->vm, region, region->gpa.start + offset, size, false);
}

/*
 * What an added region would have had private stays so for those who had the addresses
 * before. A region that cannot be private is of no use to the guest any more.
 */
static void record_private(struct undo *undo, uint64_t gpa, uint64_t last)
{
	struct gmem_stretch at = GMEM_REGIONS_WALK(undo->vm, gpa, last);

	undo->vm->has_stray_private = true;
	while (gmem_regions_walk_whole(&at)) {
		if (!at.region)
			continue;
		if (gmem_region_traits(at.region)->attributes == GMEM_ATTRIBUTES_VM) {
			record_state(undo, at.region, at.gpa - at.region->gpa.start, at.size, true);
			continue;
		}
		gmem_lock_take(&undo->vm->lock);
		at.region->lost = true;
		gmem_lock_drop(&undo->vm->lock);
	}
}

static void note_state(struct undo *undo, uint64_t gpa, uint64_t size, bool is_private, int err)
{
	if (undo->is_incomplete)
		return;
	undo->is_incomplete = true;
	snprintf(undo->sentence, sizeof(undo->sentence),
		 "VM fd %d leaves gpa 0x%" PRIx64 ", 0x%" PRIx64 " bytes, %s: %s",
		 gmem_vm_number(undo->vm), gpa, size, is_private ? "private" : "shared",
		 gmem_errno_name(err));
}

/* Undo tell_states(), as far as it got, part by part: each is what the kernel says it is. */
static void untell_states(struct undo *undo, struct gmem_step *step, bool to_private)
{
	struct gmem_region *region = step->region;
	struct gmem_states_walk at = GMEM_STATES_WALK(&region->states, GMEM_PAGE_CHANGING, true, 0,
						      step->told);
	int err;

	while (gmem_states_walk(&at)) {
		const struct gmem_part part = { at.offset, at.offset + at.size - 1 };

		err = set_insisting(region, &part, to_private);
		if (!err)
			continue;
		note_state(undo, region->gpa.start + at.offset, at.size, !to_private, err);
		if (to_private)
			record_state(undo, region, at.offset, at.size, false);
		else
			record_private(undo, region->gpa.start + part.start, region->gpa.start + part.last);
	}
}

static void untell_all_states(struct undo *undo, struct gmem_step *steps, size_t count)
{
	for (size_t i = count; i-- > 0;)
		if (steps[i].kind == GMEM_STEP_ADD)
			untell_states(undo, &steps[i], false);
	for (size_t i = count; i-- > 0;)
		if (steps[i].kind == GMEM_STEP_REMOVE)
			untell_states(undo, &steps[i], true);
}

static int undo_slots(struct gmem_vm *vm, struct gmem_step *steps, size_t count, int cause)
{
	struct undo undo = { .vm = vm };
	struct gmem_failure refusal;

	gmem_failure_keep(&refusal, cause);
	for (size_t i = count; i-- > 0;)
		while (steps[i].added > 0)
			take_back(&undo, &steps[i], --steps[i].added);
	untell_all_states(&undo, steps, count);
	for (size_t i = count; i-- > 0;)
		if (steps[i].moved)
			move_back(&undo, &steps[i]);

	for (size_t i = count; i-- > 0;) {
		struct gmem_step *step = &steps[i];

		if (step->deleted && (step->stuck[0] || step->stuck[1]))
			step->lost = true;
		else if (step->deleted)
			put_back(&undo, step);
		else if (step->parked)
			leave_parking(&undo, step);
	}

	if (!undo.is_incomplete)
		return gmem_failure_restore(&refusal);
	return gmem_fail(-ENOTRECOVERABLE, "%s; not undone: %s", refusal.sentence, undo.sentence);
}

int gmem_apply_slots(struct gmem_vm *vm, struct gmem_step *steps, size_t count)
{
	int err;

	err = delete_all_old(vm, steps, count);
	if (!err)
		err = move_slots(vm, steps, count);
	if (!err)
		err = tell_all_states(vm, steps, count);
	for (size_t i = 0; i < count && !err; i++)
		err = add_new(vm, &steps[i]);

	return err ? undo_slots(vm, steps, count, err) : 0;
}
