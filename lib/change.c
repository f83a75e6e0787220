/* SPDX-License-Identifier: MIT */
/*
 * Every change of a VM's layout, one step or many, goes through apply():
 *
 *   wait     for conversions at work there; whoever holds a lease refuses it
 *   leave    what steps take away leaves the books, in the order of the steps
 *   prepare  what steps bring is checked against the layout to be, and made
 *   table    the table readers will use is built
 *   kernel   memslots are deleted, then added
 *   publish  readers get the new table
 *   finish   when no reader can hold the old one, what was taken is let go
 *
 * Everything that can fail for want of memory comes before the kernel is
 * asked, and undoing never needs any.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "internal.h"
#include "probes.h"

struct gmem_change {
	struct gmem_vm *vm;
	struct gmem_step *steps;
	size_t count;
	size_t room;
};

/* ---- the layout's books ---- */

static int enter(struct gmem_vm *vm, struct gmem_region *region)
{
	const struct gmem_range *other;

	other = gmem_range_find(&vm->regions, region->gpa.start, region->gpa.size);
	if (other)
		return gmem_fail(-EEXIST,
				 "gpa 0x%" PRIx64 " + size 0x%" PRIx64
				 " overlaps the region at 0x%" PRIx64 ", 0x%" PRIx64 " bytes",
				 region->gpa.start, region->gpa.size, other->start, other->size);

	gmem_range_insert(&vm->regions, &region->gpa);
	return 0;
}

static void strike(struct gmem_vm *vm, struct gmem_region *region)
{
	gmem_range_remove(&vm->regions, &region->gpa);
}

/* ---- the kinds of steps ---- */

static int prepare_add(struct gmem_vm *vm, struct gmem_step *step)
{
	int err;

	err = enter(vm, step->region);
	if (err)
		return err;

	err = gmem_region_acquire(step->region, &step->order);
	if (err)
		strike(vm, step->region);
	return err;
}

/*
 * The kernel keeps the memslot, so guests may use the memory: it must not go,
 * nor may anybody have its slot number, before the VM handle goes.
 */
static void keep_stuck(struct gmem_vm *vm, struct gmem_step *step)
{
	step->region->has_slot = true;
	step->region->next_stuck = vm->stuck;
	vm->stuck = step->region;
	step->region = NULL;
}

static void undo_add(struct gmem_vm *vm, struct gmem_step *step)
{
	strike(vm, step->region);
	if (step->stuck) {
		keep_stuck(vm, step);
		return;
	}
	gmem_region_yield(step->region);
	gmem_region_dispose(step->region);
}

static void leave_remove(struct gmem_vm *vm, struct gmem_step *step)
{
	strike(vm, step->region);
	gmem_region_yield(step->region);
}

static void unleave_remove(struct gmem_vm *vm, struct gmem_step *step)
{
	gmem_region_retake(step->region);
	gmem_range_insert(&vm->regions, &step->region->gpa);
}

static void finish_remove(struct gmem_step *step)
{
	gmem_region_dispose(step->region);
	free(step->region);
}

static void leave_move(struct gmem_vm *vm, struct gmem_step *step)
{
	strike(vm, step->region);
	gmem_range_set_start(&step->region->gpa, step->gpa);
}

static int prepare_move(struct gmem_vm *vm, struct gmem_step *step)
{
	return enter(vm, step->region);
}

static void undo_move(struct gmem_vm *vm, struct gmem_step *step)
{
	strike(vm, step->region);
}

static void unleave_move(struct gmem_vm *vm, struct gmem_step *step)
{
	gmem_range_set_start(&step->region->gpa, step->old_gpa);
	gmem_range_insert(&vm->regions, &step->region->gpa);
}

static int prepare_split(struct gmem_vm *vm, struct gmem_step *step)
{
	(void)vm;
	/* Here and not before: another thread may have split it meanwhile. */
	if (step->offset >= step->region->gpa.size)
		return gmem_fail(-EINVAL, "offset 0x%" PRIx64 " is not inside the region's 0x%" PRIx64
				 " bytes", step->offset, step->region->gpa.size);
	return gmem_region_cut(step->region, step->offset, step->upper);
}

static void undo_split(struct gmem_vm *vm, struct gmem_step *step)
{
	(void)vm;
	gmem_region_uncut(step->region, step->upper);
}

static int prepare_rebind(struct gmem_vm *vm, struct gmem_step *step)
{
	(void)vm;
	return gmem_region_swap_file(step->region, &step->binding);
}

static void undo_rebind(struct gmem_vm *vm, struct gmem_step *step)
{
	(void)vm;
	gmem_region_unswap_file(step->region, &step->binding);
}

static void finish_rebind(struct gmem_step *step)
{
	gmem_region_drop_binding(step->region, &step->binding);
}

static const struct {
	const char *name;
	void (*leave)(struct gmem_vm *vm, struct gmem_step *step);
	void (*unleave)(struct gmem_vm *vm, struct gmem_step *step);
	int (*prepare)(struct gmem_vm *vm, struct gmem_step *step);
	void (*undo)(struct gmem_vm *vm, struct gmem_step *step);
	void (*finish)(struct gmem_step *step);	/* without the lock */
} kinds[] = {
	[GMEM_STEP_ADD] = {
		.name = "add",
		.prepare = prepare_add,
		.undo = undo_add,
	},
	[GMEM_STEP_REMOVE] = {
		.name = "remove",
		.leave = leave_remove,
		.unleave = unleave_remove,
		.finish = finish_remove,
	},
	[GMEM_STEP_MOVE] = {
		.name = "move",
		.leave = leave_move,
		.unleave = unleave_move,
		.prepare = prepare_move,
		.undo = undo_move,
	},
	[GMEM_STEP_SPLIT] = {
		.name = "split",
		.prepare = prepare_split,
		.undo = undo_split,
	},
	[GMEM_STEP_REBIND] = {
		.name = "rebind",
		.prepare = prepare_rebind,
		.undo = undo_rebind,
		.finish = finish_rebind,
	},
};

/* ---- who is in the way ---- */

/* A conversion is at work on what a step changes: wait for its end, without the locks. */
static bool wait_for_conversions(struct gmem_vm *vm, const struct gmem_step *steps, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		const struct gmem_region *region = steps[i].region;

		if (steps[i].kind == GMEM_STEP_ADD ||
		    !gmem_claim_is_active(vm, region->gpa.start, region->gpa.size))
			continue;
		pthread_mutex_unlock(&vm->change_lock);
		pthread_cond_wait(&vm->released, &vm->lock);
		pthread_mutex_unlock(&vm->lock);
		return true;
	}
	return false;
}

static void lock_both(struct gmem_vm *vm, const struct gmem_step *steps, size_t count)
{
	do {
		pthread_mutex_lock(&vm->change_lock);
		pthread_mutex_lock(&vm->lock);
	} while (wait_for_conversions(vm, steps, count));
}

static bool is_private_within(const struct gmem_vm *vm, const struct gmem_region *region)
{
	return gmem_range_find(&vm->privates, region->gpa.start, region->gpa.size);
}

static int check_users(const struct gmem_vm *vm, struct gmem_step *step)
{
	const struct gmem_region *region = step->region;
	int err;

	if (step->kind == GMEM_STEP_ADD)
		return 0;

	err = gmem_lease_check(vm, region->gpa.start, region->gpa.size);
	if (err)
		return err;
	if (!is_private_within(vm, region))
		return 0;
	if (step->kind == GMEM_STEP_MOVE)
		return gmem_fail(-EACCES,
				 "the region at gpa 0x%" PRIx64
				 " is private in part: what is private stays where it is",
				 region->gpa.start);
	if (step->kind == GMEM_STEP_REBIND && region->backing == GMEM_BACKING_INPLACE)
		return gmem_fail(-EACCES,
				 "the region at gpa 0x%" PRIx64
				 " is private in part, in place: another file would not be",
				 region->gpa.start);
	return 0;
}

/* What is private in a region that is removed will be shared, and owed no more. */
static int get_spares(const struct gmem_vm *vm, struct gmem_step *step)
{
	int err = 0;

	step->spares[0] = NULL;
	step->spares[1] = NULL;
	if (step->kind != GMEM_STEP_REMOVE)
		return 0;

	if (is_private_within(vm, step->region))
		err = gmem_set_spare(&step->spares[0]);
	if (!err && gmem_range_find(&vm->owed, step->region->gpa.start, step->region->gpa.size))
		err = gmem_set_spare(&step->spares[1]);
	return err;
}

static void drop_spares(struct gmem_step *steps, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		free(steps[i].spares[0]);
		free(steps[i].spares[1]);
		steps[i].spares[0] = NULL;
		steps[i].spares[1] = NULL;
	}
}

static int check_all(const struct gmem_vm *vm, struct gmem_step *steps, size_t count)
{
	int err = 0;

	for (size_t i = 0; i < count; i++) {
		steps[i].failed = false;
		if (!err) {
			err = check_users(vm, &steps[i]);
			steps[i].failed = err != 0;
		}
		steps[i].spares[0] = NULL;
		steps[i].spares[1] = NULL;
	}
	for (size_t i = 0; i < count && !err; i++)
		err = get_spares(vm, &steps[i]);
	if (err)
		drop_spares(steps, count);
	return err;
}

/* ---- leave and prepare ---- */

static void undo_preparations(struct gmem_vm *vm, struct gmem_step *steps, size_t prepared,
			      size_t left)
{
	while (prepared-- > 0)
		if (kinds[steps[prepared].kind].undo)
			kinds[steps[prepared].kind].undo(vm, &steps[prepared]);
	while (left-- > 0)
		if (kinds[steps[left].kind].unleave)
			kinds[steps[left].kind].unleave(vm, &steps[left]);
}

static void note_step(struct gmem_step *step)
{
	const struct gmem_region *region = step->region;

	step->failed = false;
	step->deleted = false;
	step->stuck = false;
	step->added = 0;
	step->shared_again = 0;
	step->old_gpa = region->gpa.start;
	step->has_old = step->kind != GMEM_STEP_ADD && region->has_slot;
	if (step->has_old)
		step->old = gmem_region_memslot(region);
}

static void note_result(struct gmem_step *step)
{
	bool has_memory = !step->region->is_device && step->kind != GMEM_STEP_REMOVE;

	step->new_count = 0;
	if (has_memory)
		step->new[step->new_count++] = gmem_region_memslot(step->region);
	if (has_memory && step->kind == GMEM_STEP_SPLIT)
		step->new[step->new_count++] = gmem_region_memslot(step->upper);
}

static int prepare_all(struct gmem_vm *vm, struct gmem_step *steps, size_t count)
{
	int err;

	for (size_t i = 0; i < count; i++) {
		note_step(&steps[i]);
		if (kinds[steps[i].kind].leave)
			kinds[steps[i].kind].leave(vm, &steps[i]);
	}

	for (size_t i = 0; i < count; i++) {
		err = kinds[steps[i].kind].prepare ? kinds[steps[i].kind].prepare(vm, &steps[i]) : 0;
		if (err) {
			steps[i].failed = true;
			undo_preparations(vm, steps, i, count);
			return err;
		}
		note_result(&steps[i]);
	}
	return 0;
}

/* ---- the kernel ---- */

static int fail_slot(const struct gmem_vm *vm, const struct gmem_region *region,
		     const struct gmem_kvm_slot *slot, int err)
{
	if (!(slot->flags & KVM_MEM_GUEST_MEMFD))
		return gmem_fail(err,
				 "VM fd %d refuses memslot %" PRIu32 " at gpa 0x%" PRIx64 ", 0x%" PRIx64
				 " bytes, hva 0x%" PRIx64 ": %s",
				 vm->fd, slot->number, slot->gpa, slot->size,
				 (uint64_t)(uintptr_t)slot->hva, gmem_errno_name(err));

	return gmem_fail(err,
			 "VM fd %d refuses memslot %" PRIu32 " at gpa 0x%" PRIx64 ", 0x%" PRIx64
			 " bytes, guest_memfd fd %d made on VM fd %d, offset 0x%" PRIx64 ": %s",
			 vm->fd, slot->number, slot->gpa, slot->size, slot->gmemfd,
			 region->file->vm_fd, slot->gmemfd_offset, gmem_errno_name(err));
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
			return fail_slot(vm, step->region, slot, err);
		}
		step->added++;
	}
	return 0;
}

static int take_back(struct gmem_vm *vm, struct gmem_step *step, const struct gmem_kvm_slot *slot,
		     int cause, int err)
{
	int undo_err = gmem_kvm_insist_on_deleting_slot(vm->fd, slot->number);

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
	uint64_t start = step->region->gpa.start, last = start + step->region->gpa.size - 1;
	struct gmem_part part = { start, start };
	uint64_t at = start;
	int err;

	while (gmem_set_next(&vm->privates, true, at, last, &part)) {
		err = gmem_region_set_private(step->region, &part, false, 0);
		if (err) {
			step->failed = true;
			return err;
		}
		step->shared_again = part.last - start + 1;
		if (part.last == last)
			break;
		at = part.last + 1;
	}
	return 0;
}

/* And private again, as far as it was done */
static int make_private_again(struct gmem_vm *vm, struct gmem_step *step, int cause, int err)
{
	uint64_t start = step->region->gpa.start, at = start;
	struct gmem_part part;
	int undo_err = 0;

	while (at - start < step->shared_again &&
	       gmem_set_next(&vm->privates, true, at, start + step->shared_again - 1, &part)) {
		for (int tries = 0; tries < 3; tries++) {
			undo_err = gmem_region_set_private(step->region, &part, true, 0);
			if (!undo_err)
				break;
		}
		if (undo_err) {
			gmem_state_count(vm, part.start, start + step->shared_again - part.start,
					 false);
			gmem_set_remove(&vm->privates, part.start,
					start + step->shared_again - part.start, &step->spares[0]);
			return gmem_fail(-ENOTRECOVERABLE,
					 "after a refusal, %s, VM fd %d leaves gpa 0x%" PRIx64
					 ", 0x%" PRIx64 " bytes, shared: %s",
					 gmem_errno_name(cause), vm->fd, part.start,
					 start + step->shared_again - part.start,
					 gmem_errno_name(undo_err));
		}
		at = part.last + 1;
	}
	return err;
}

/* Put the memslots back as they were. -ENOTRECOVERABLE names one that is lost. */
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

static int change_slots(struct gmem_vm *vm, struct gmem_step *steps, size_t count)
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

/* ---- all together ---- */

static int build_table(const struct gmem_vm *vm, const struct gmem_step *steps, size_t count,
		       struct gmem_table **ret)
{
	/* What is removed is private no more, and a region begins shared. */
	static const struct gmem_range_map none = { NULL };
	const struct gmem_layout shared = { &vm->regions, &none };
	const struct gmem_layout as_it_is = { &vm->regions, &vm->privates };
	struct gmem_table *table = NULL;
	int err;

	*ret = NULL;
	if (!vm->table)
		return 0;

	err = gmem_table_new(vm->table, &vm->regions, &table);
	for (size_t i = 0; i < count && !err; i++) {
		const struct gmem_region *region = steps[i].region;
		uint64_t size = region->gpa.size;

		if (steps[i].kind == GMEM_STEP_SPLIT)
			continue;	/* the same memory at the same place */
		if (steps[i].kind == GMEM_STEP_REMOVE || steps[i].kind == GMEM_STEP_MOVE)
			err = gmem_table_refresh(table, vm->table, &shared, steps[i].old_gpa, size);
		if (!err && steps[i].kind != GMEM_STEP_REMOVE)
			err = gmem_table_refresh(table, vm->table,
						 steps[i].kind == GMEM_STEP_REBIND ? &as_it_is : &shared,
						 region->gpa.start, size);
	}

	if (err) {
		gmem_table_free(table, vm->table);
		return gmem_fail(-ENOMEM, "no memory for the readers' new table");
	}
	*ret = table;
	return 0;
}

static void settle(struct gmem_vm *vm, struct gmem_step *step)
{
	const struct gmem_range *gpa = &step->region->gpa;

	if (step->kind == GMEM_STEP_REMOVE) {
		gmem_count(&vm->counters, GMEM_COUNT_MADE_SHARED,
			   gmem_state_private(vm, gpa->start, gpa->size));
		gmem_set_remove(&vm->privates, gpa->start, gpa->size, &step->spares[0]);
		gmem_set_remove(&vm->owed, gpa->start, gpa->size, &step->spares[1]);
	}
	if (step->kind != GMEM_STEP_REMOVE)
		step->region->has_slot = step->new_count > 0;
	if (step->upper)
		step->upper->has_slot = step->new_count > 1;
}

static int apply_locked(struct gmem_vm *vm, struct gmem_step *steps, size_t count,
			const struct gmem_table **ret_old, struct gmem_table **ret_new)
{
	struct gmem_table *table;
	int err;

	err = check_all(vm, steps, count);
	if (err)
		return err;

	err = prepare_all(vm, steps, count);
	if (err)
		goto drop_spares;

	err = build_table(vm, steps, count, &table);
	if (err)
		goto undo_preparations;

	err = change_slots(vm, steps, count);
	if (err)
		goto free_table;

	for (size_t i = 0; i < count; i++)
		settle(vm, &steps[i]);
	*ret_old = vm->table;
	*ret_new = table;
	gmem_vm_publish(vm, table);
	drop_spares(steps, count);
	return 0;

free_table:
	gmem_table_free(table, vm->table);
undo_preparations:
	undo_preparations(vm, steps, count, count);
drop_spares:
	drop_spares(steps, count);
	return err;
}

/* What was there until now; it still stands for the host. */
static void tell_listeners(const struct gmem_vm *vm, const struct gmem_step *step)
{
	if (step->kind != GMEM_STEP_ADD && step->kind != GMEM_STEP_SPLIT && !step->region->is_device)
		gmem_listeners_removed(vm, step->old_gpa, step->region->gpa.size);
}

static int tell_before(const struct gmem_vm *vm, const struct gmem_step *steps, size_t count)
{
	struct gmem_watch *watch;
	int err = 0;

	for (watch = vm->watches; watch && !err; watch = watch->next)
		err = watch->before(watch, steps, count);
	return err;
}

static void tell_after(const struct gmem_vm *vm)
{
	struct gmem_watch *watch;

	for (watch = vm->watches; watch; watch = watch->next)
		watch->after(watch);
}

int gmem_apply_steps(struct gmem_vm *vm, struct gmem_step *steps, size_t count)
{
	const struct gmem_table *old = NULL;
	struct gmem_table *new = NULL;
	int err;

	pthread_mutex_lock(&vm->watch_lock);
	err = tell_before(vm, steps, count);
	if (err)
		goto over;

	/* The books are open again while we wait for readers, who may consult them. */
	lock_both(vm, steps, count);
	err = apply_locked(vm, steps, count, &old, &new);
	pthread_mutex_unlock(&vm->lock);

	if (new) {
		gmem_vm_wait_for_views(vm);
		gmem_table_free(old, new);
	}
	for (size_t i = 0; i < count && !err; i++)
		tell_listeners(vm, &steps[i]);
	for (size_t i = 0; i < count && !err; i++)
		if (kinds[steps[i].kind].finish)
			kinds[steps[i].kind].finish(&steps[i]);
	pthread_mutex_unlock(&vm->change_lock);

over:
	tell_after(vm);
	pthread_mutex_unlock(&vm->watch_lock);
	return err;
}

/* ---- one step ---- */

static int apply_one(struct gmem_vm *vm, struct gmem_step *step)
{
	return gmem_vm_report(vm, gmem_apply_steps(vm, step, 1));
}

static int check_whole(const struct gmem_region *region)
{
	bool whole;

	if (!region)
		return gmem_fail(-EINVAL, "region is NULL");

	pthread_mutex_lock(&region->vm->lock);
	whole = !region->lost;
	pthread_mutex_unlock(&region->vm->lock);
	if (!whole)
		return gmem_fail(-ENOTRECOVERABLE,
				 "the region at gpa 0x%" PRIx64 " lost its memslot; it can only be removed",
				 gmem_region_gpa(region));
	return 0;
}

/* What these find holds until the step is applied: a region never grows. */
static int check_move(const struct gmem_region *region, uint64_t gpa)
{
	int err;

	pthread_mutex_lock(&region->vm->lock);
	err = gmem_region_check_gpa(region->vm, gpa, region->gpa.size);
	pthread_mutex_unlock(&region->vm->lock);
	return err;
}

static int check_rebind(const struct gmem_region *region, const struct gmem_binding *to)
{
	int err;

	pthread_mutex_lock(&region->vm->lock);
	err = gmem_region_check_binding(region, to);
	pthread_mutex_unlock(&region->vm->lock);
	return err;
}

static int make_add(struct gmem_vm *vm, uint64_t gpa, uint64_t size,
		    const struct gmem_region_opts *opts, struct gmem_step *step)
{
	int err;

	step->kind = GMEM_STEP_ADD;
	err = gmem_region_check(vm, gpa, size, opts, &step->order);
	if (err)
		return err;
	return gmem_region_new(vm, gpa, size, &step->order, &step->region);
}

GMEM_API int gmem_region_add(struct gmem_vm *vm, uint64_t gpa, uint64_t size,
			     const struct gmem_region_opts *opts, struct gmem_region **ret)
{
	struct gmem_step step;
	int err;

	if (!vm || !ret)
		return gmem_fail(-EINVAL, "%s is NULL", vm ? "ret" : "vm");

	step.upper = NULL;
	err = make_add(vm, gpa, size, opts, &step);
	if (err)
		return gmem_vm_report(vm, err);

	err = apply_one(vm, &step);
	if (err)
		free(step.region);
	else
		*ret = step.region;
	return err;
}

GMEM_API int gmem_region_remove(struct gmem_region *region)
{
	struct gmem_step step = { .kind = GMEM_STEP_REMOVE, .region = region };

	return region ? apply_one(region->vm, &step) : 0;
}

GMEM_API int gmem_region_move(struct gmem_region *region, uint64_t gpa)
{
	struct gmem_step step = { .kind = GMEM_STEP_MOVE, .region = region, .gpa = gpa };
	int err;

	err = check_whole(region);
	if (!err)
		err = check_move(region, gpa);
	if (err)
		return region ? gmem_vm_report(region->vm, err) : err;
	return apply_one(region->vm, &step);
}

GMEM_API int gmem_region_rebind(struct gmem_region *region, struct gmem_file *file,
				uint64_t file_offset)
{
	struct gmem_step step = {
		.kind = GMEM_STEP_REBIND,
		.region = region,
		.binding = { .file = file, .offset = file_offset },
	};
	int err;

	err = check_whole(region);
	if (!err)
		err = check_rebind(region, &step.binding);
	if (err)
		return region ? gmem_vm_report(region->vm, err) : err;
	return apply_one(region->vm, &step);
}

static int make_split(uint64_t offset, struct gmem_step *step)
{
	int err;

	err = gmem_check_aligned("offset", offset);
	if (err)
		return err;
	if (offset == 0)
		return gmem_fail(-EINVAL, "offset 0 is not inside the region");

	step->upper = malloc(sizeof(*step->upper));
	return step->upper ? 0 : gmem_fail(-ENOMEM, "no memory for a region handle");
}

GMEM_API int gmem_region_split(struct gmem_region *region, uint64_t offset,
			       struct gmem_region **ret_upper)
{
	struct gmem_step step = { .kind = GMEM_STEP_SPLIT, .region = region, .offset = offset };
	int err;

	if (!ret_upper)
		return gmem_fail(-EINVAL, "ret_upper is NULL");

	err = check_whole(region);
	if (!err)
		err = make_split(offset, &step);
	if (err)
		return region ? gmem_vm_report(region->vm, err) : err;

	err = apply_one(region->vm, &step);
	if (err)
		free(step.upper);
	else
		*ret_upper = step.upper;
	return err;
}

/* ---- several steps ---- */

GMEM_API int gmem_change_new(struct gmem_vm *vm, struct gmem_change **ret)
{
	struct gmem_change *change;

	if (!vm || !ret)
		return gmem_fail(-EINVAL, "%s is NULL", vm ? "ret" : "vm");

	change = calloc(1, sizeof(*change));
	if (!change)
		return gmem_fail(-ENOMEM, "no memory for a change");

	change->vm = vm;
	*ret = change;
	return 0;
}

GMEM_API void gmem_change_free(struct gmem_change *change)
{
	if (!change)
		return;

	for (size_t i = 0; i < change->count; i++)
		if (change->steps[i].kind == GMEM_STEP_ADD)
			free(change->steps[i].region);
	free(change->steps);
	free(change);
}

static int add_step(struct gmem_change *change, const struct gmem_step *step)
{
	if (change->count == change->room) {
		size_t room = change->room ? 2 * change->room : 8;
		struct gmem_step *steps = realloc(change->steps, room * sizeof(*steps));

		if (!steps)
			return gmem_fail(-ENOMEM, "no memory for step %zu of a change",
					 change->count + 1);
		change->steps = steps;
		change->room = room;
	}

	change->steps[change->count++] = *step;
	return 0;
}

static int check_unused(const struct gmem_change *change, const struct gmem_region *region)
{
	if (!change || !region)
		return gmem_fail(-EINVAL, "%s is NULL", change ? "region" : "change");
	if (region->vm != change->vm)
		return gmem_fail(-EINVAL, "the region at gpa 0x%" PRIx64 " is of another VM",
				 region->gpa.start);

	for (size_t i = 0; i < change->count; i++)
		if (change->steps[i].region == region)
			return gmem_fail(-EEXIST,
					 "step %zu of the change has the region at gpa 0x%" PRIx64
					 " already", i + 1, region->gpa.start);
	return 0;
}

GMEM_API int gmem_change_add(struct gmem_change *change, uint64_t gpa, uint64_t size,
			     const struct gmem_region_opts *opts, struct gmem_region **ret)
{
	struct gmem_step step = { .ret = ret };
	int err;

	if (!change || !ret)
		return gmem_fail(-EINVAL, "%s is NULL", change ? "ret" : "change");

	err = make_add(change->vm, gpa, size, opts, &step);
	if (err)
		return err;

	err = add_step(change, &step);
	if (err)
		free(step.region);
	return err;
}

GMEM_API int gmem_change_remove(struct gmem_change *change, struct gmem_region *region)
{
	const struct gmem_step step = { .kind = GMEM_STEP_REMOVE, .region = region };
	int err = check_unused(change, region);

	return err ? err : add_step(change, &step);
}

GMEM_API int gmem_change_move(struct gmem_change *change, struct gmem_region *region,
			      uint64_t gpa)
{
	const struct gmem_step step = { .kind = GMEM_STEP_MOVE, .region = region, .gpa = gpa };
	int err;

	err = check_unused(change, region);
	if (!err)
		err = check_whole(region);
	if (!err)
		err = check_move(region, gpa);
	return err ? err : add_step(change, &step);
}

/* Say which step it was, in front of what was wrong with it. */
static int fail_at_step(const struct gmem_change *change, int err)
{
	char sentence[256];

	for (size_t i = 0; i < change->count; i++) {
		const struct gmem_step *step = &change->steps[i];

		if (!step->failed)
			continue;
		snprintf(sentence, sizeof(sentence), "%s", gmem_last_error());
		return gmem_fail(err, "step %zu of %zu, %s: %s", i + 1, change->count,
				 kinds[step->kind].name, sentence);
	}
	return err;
}

GMEM_API int gmem_change_apply(struct gmem_change *change)
{
	int err;

	if (!change)
		return gmem_fail(-EINVAL, "change is NULL");

	for (size_t i = 0; i < change->count; i++)
		if (!change->steps[i].region)
			return gmem_fail(-ENOTRECOVERABLE,
					 "step %zu got stuck when the change was applied before", i + 1);

	err = gmem_apply_steps(change->vm, change->steps, change->count);
	if (err)
		return gmem_vm_report(change->vm, fail_at_step(change, err));

	for (size_t i = 0; i < change->count; i++)
		if (change->steps[i].ret)
			*change->steps[i].ret = change->steps[i].region;
	change->count = 0;
	return 0;
}
