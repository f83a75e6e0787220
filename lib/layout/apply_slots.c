/* SPDX-License-Identifier: MIT */
#include "layout/apply_slots.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>

#include "base/error.h"
#include "base/range_map.h"
#include "base/range_set.h"
#include "layout/foreign_slot.h"
#include "os/kvm.h"
#include "os/kvm_compat.h"
#include "os/usdt.h"
#include "region/region.h"
#include "state/private_state.h"

static int fail_slot(const struct gmem_vm *vm, const struct gmem_kvm_slot *slot, int err)
{
	if (gmem_foreign_slot_explain(vm, slot, err))
		return err;

	if (!(slot->flags & KVM_MEM_GUEST_MEMFD))
		return gmem_fail(err,
				 "VM fd %d refuses memslot %" PRIu32 " at gpa 0x%" PRIx64 ", 0x%" PRIx64
				 " bytes, hva 0x%" PRIx64 ": %s",
				 vm->fd, slot->number, slot->gpa, slot->size,
				 (uint64_t)(uintptr_t)slot->hva, gmem_errno_name(err));

	return gmem_fail(err,
			 "VM fd %d refuses memslot %" PRIu32 " at gpa 0x%" PRIx64 ", 0x%" PRIx64
			 " bytes, guest_memfd fd %d, offset 0x%" PRIx64 ": %s",
			 vm->fd, slot->number, slot->gpa, slot->size, slot->gmemfd,
			 slot->gmemfd_offset, gmem_errno_name(err));
}

static int delete_old(struct gmem_vm *vm, struct gmem_step *step)
{
	int err = gmem_kvm_delete_slot(vm->fd, step->old.number);

	GMEM_PROBE(unbind, vm->fd, step->old.number, step->old.gpa, step->old.size, err);
	if (err) {
		step->failed = true;
		return gmem_fail(err,
				 "VM fd %d refuses to delete memslot %" PRIu32 " at gpa 0x%" PRIx64 ": %s",
				 vm->fd, step->old.number, step->old.gpa, gmem_errno_name(err));
	}
	step->deleted = true;
	return 0;
}

static int add_new(struct gmem_vm *vm, struct gmem_step *step)
{
	const struct gmem_kvm_slot *slot;
	int err;

	while (step->added < step->new_count) {
		slot = &step->new[step->added];
		err = gmem_kvm_set_slot(vm->fd, slot);
		GMEM_PROBE(bind, vm->fd, slot->number, slot->gpa, slot->size, step->region->backing,
			   err);
		if (err) {
			step->failed = true;
			return fail_slot(vm, slot, err);
		}
		step->added++;
	}
	return 0;
}

static int take_back(struct gmem_vm *vm, struct gmem_step *step, const struct gmem_kvm_slot *slot,
		     int cause, int err)
{
	int undo_err = gmem_kvm_delete_slot_retry(vm->fd, slot->number);

	if (!undo_err)
		return err;

	step->stuck = true;
	step->region->lost = true;
	return gmem_fail(-ENOTRECOVERABLE,
			 "after a refusal, %s, VM fd %d keeps memslot %" PRIu32 " at gpa 0x%" PRIx64
			 ", 0x%" PRIx64 " bytes: %s",
			 gmem_errno_name(cause), vm->fd, slot->number, slot->gpa, slot->size,
			 gmem_errno_name(undo_err));
}

static int put_back(struct gmem_vm *vm, struct gmem_step *step, int cause, int err)
{
	int undo_err = gmem_kvm_set_slot(vm->fd, &step->old);

	if (!undo_err)
		return err;

	step->region->lost = true;
	step->region->has_slot = false;
	return gmem_fail(-ENOTRECOVERABLE,
			 "after a refusal, %s, VM fd %d refuses memslot %" PRIu32
			 " back at gpa 0x%" PRIx64 ", 0x%" PRIx64 " bytes: %s",
			 gmem_errno_name(cause), vm->fd, step->old.number, step->old.gpa,
			 step->old.size, gmem_errno_name(undo_err));
}

/*
 * Attributes belong to addresses, not to memslots. A hole or a device that is
 * private is a trap for the guest, so what is removed leaves nothing private.
 */
static int share_again(const struct gmem_vm *vm, struct gmem_step *step)
{
	const struct gmem_range *gpa = &step->region->gpa;
	struct gmem_set_walk at = GMEM_SET_WALK(&vm->privates, true, gpa->start,
						gmem_range_last(gpa));
	int err;

	while (gmem_set_walk(&at)) {
		err = gmem_region_set_private(step->region, &at.part, false, 0);
		if (err) {
			step->failed = true;
			return err;
		}
		step->shared_again = at.part.last - gpa->start + 1;
	}
	return 0;
}

static int set_private_again(const struct gmem_region *region, const struct gmem_part *part)
{
	int err = 0;

	for (int tries = 0; tries < GMEM_UNDO_TRIES; tries++) {
		err = gmem_region_set_private(region, part, true, 0);
		if (!err)
			break;
	}
	return err;
}

/* The kernel keeps [@start, @end) shared, so that is what the record says. */
static int give_up_private(struct gmem_vm *vm, struct gmem_step *step, uint64_t start,
			   uint64_t end, int cause, int err)
{
	gmem_state_count(vm, start, end - start, false);
	gmem_set_remove(&vm->privates, start, end - start, &step->spares[0]);
	return gmem_fail(-ENOTRECOVERABLE,
			 "after a refusal, %s, VM fd %d leaves gpa 0x%" PRIx64 ", 0x%" PRIx64
			 " bytes, shared: %s",
			 gmem_errno_name(cause), vm->fd, start, end - start, gmem_errno_name(err));
}

/* Undo share_again(), as far as it got. */
static int make_private_again(struct gmem_vm *vm, struct gmem_step *step, int cause, int err)
{
	uint64_t start = step->region->gpa.start, end = start + step->shared_again;
	struct gmem_set_walk at = GMEM_SET_WALK(&vm->privates, true, start, end - 1);
	int undo_err;

	while (step->shared_again && gmem_set_walk(&at)) {
		undo_err = set_private_again(step->region, &at.part);
		if (undo_err)
			return give_up_private(vm, step, at.part.start, end, cause, undo_err);
	}
	return err;
}

/*
 * Put the memslots back as they were. -ENOTRECOVERABLE names the last one that is lost.
 */
static int undo_slots(struct gmem_vm *vm, struct gmem_step *steps, size_t count, int cause)
{
	int err = cause;

	for (size_t i = count; i-- > 0;)
		err = make_private_again(vm, &steps[i], cause, err);

	for (size_t i = count; i-- > 0;)
		while (steps[i].added > 0)
			err = take_back(vm, &steps[i], &steps[i].new[--steps[i].added], cause, err);

	for (size_t i = count; i-- > 0;)
		if (steps[i].deleted && !steps[i].stuck)
			err = put_back(vm, &steps[i], cause, err);
	return err;
}

int gmem_apply_slots(struct gmem_vm *vm, struct gmem_step *steps, size_t count)
{
	int err = 0;

	for (size_t i = 0; i < count && !err; i++)
		if (steps[i].has_old)
			err = delete_old(vm, &steps[i]);
	for (size_t i = 0; i < count && !err; i++)
		err = add_new(vm, &steps[i]);
	for (size_t i = 0; i < count && !err; i++)
		if (steps[i].kind == GMEM_STEP_REMOVE)
			err = share_again(vm, &steps[i]);

	return err ? undo_slots(vm, steps, count, err) : 0;
}
