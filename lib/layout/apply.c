/* SPDX-License-Identifier: MIT */
#include "layout/apply.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>

#include "gmem.h"
#include "base/counters.h"
#include "base/error.h"
#include "base/lock.h"
#include "base/range_map.h"
#include "layout/apply_slots.h"
#include "region/page_states.h"
#include "region/region.h"
#include "region/regions.h"
#include "state/claim.h"
#include "state/listener.h"
#include "view/lookup_table.h"
#include "view/view.h"

/* ---- the record of regions ---- */

static int insert_region(struct gmem_vm *vm, struct gmem_region *region)
{
	const struct gmem_region *other;

	other = gmem_regions_next(vm, region->gpa.start, gmem_region_last(region));
	if (other)
		return gmem_fail(-EEXIST,
				 "gpa 0x%" PRIx64 " + size 0x%" PRIx64
				 " overlaps the region at 0x%" PRIx64 ", 0x%" PRIx64 " bytes",
				 region->gpa.start, region->gpa.size, other->gpa.start, other->gpa.size);

	gmem_range_insert(&vm->regions, &region->gpa);
	return 0;
}

static void remove_region(struct gmem_vm *vm, struct gmem_region *region)
{
	gmem_range_remove(&vm->regions, &region->gpa);
}

/* ---- the kinds of steps ---- */

static int prepare_add(struct gmem_vm *vm, struct gmem_step *step)
{
	int err;

	err = insert_region(vm, step->region);
	if (err)
		return err;

	err = gmem_region_acquire(step->region, &step->params);
	if (err)
		remove_region(vm, step->region);
	return err;
}

/*
 * The kernel keeps the memslot, so guests may still use the memory: until the VM handle
 * goes, the memory stays and nobody gets the slot number.
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
	remove_region(vm, step->region);
	if (step->stuck) {
		keep_stuck(vm, step);
		return;
	}
	gmem_region_detach(step->region);
	gmem_region_release(step->region);
}

static void detach_remove(struct gmem_vm *vm, struct gmem_step *step)
{
	remove_region(vm, step->region);
	gmem_region_detach(step->region);
}

static void reattach_remove(struct gmem_vm *vm, struct gmem_step *step)
{
	gmem_region_reattach(step->region);
	gmem_range_insert(&vm->regions, &step->region->gpa);
}

static void finish_remove(struct gmem_step *step)
{
	gmem_region_release(step->region);
	free(step->region);
}

static void detach_move(struct gmem_vm *vm, struct gmem_step *step)
{
	remove_region(vm, step->region);
	gmem_range_set_start(&step->region->gpa, step->gpa);
}

static int prepare_move(struct gmem_vm *vm, struct gmem_step *step)
{
	return insert_region(vm, step->region);
}

static void undo_move(struct gmem_vm *vm, struct gmem_step *step)
{
	remove_region(vm, step->region);
}

static void reattach_move(struct gmem_vm *vm, struct gmem_step *step)
{
	gmem_range_set_start(&step->region->gpa, step->old_gpa);
	gmem_range_insert(&vm->regions, &step->region->gpa);
}

static int prepare_split(struct gmem_vm *vm, struct gmem_step *step)
{
	(void)vm;
	/* Checked under the lock: another thread may have split the region meanwhile. */
	if (step->offset >= step->region->gpa.size)
		return gmem_fail(-EINVAL, "offset 0x%" PRIx64 " is not inside the region's 0x%" PRIx64
				 " bytes", step->offset, step->region->gpa.size);
	return gmem_region_split_memory(step->region, step->offset, step->upper);
}

static void undo_split(struct gmem_vm *vm, struct gmem_step *step)
{
	(void)vm;
	gmem_region_unsplit_memory(step->region, step->upper);
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

/* What is pending for the old file's memory ends with it; on the host's side it stays. */
static void finish_rebind(struct gmem_step *step)
{
	gmem_states_drop_unused(&step->region->states);
	gmem_region_drop_binding(step->region, &step->binding);
}

static const struct {
	const char *name;
	void (*detach)(struct gmem_vm *vm, struct gmem_step *step);
	void (*reattach)(struct gmem_vm *vm, struct gmem_step *step);
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
		.detach = detach_remove,
		.reattach = reattach_remove,
		.finish = finish_remove,
	},
	[GMEM_STEP_MOVE] = {
		.name = "move",
		.detach = detach_move,
		.reattach = reattach_move,
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

/* ---- conversions and leases on what a step changes ---- */

/* Wait, without the locks, for the end of a conversion on what a step changes. */
static bool wait_for_conversions(struct gmem_vm *vm, const struct gmem_step *steps, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		const struct gmem_region *region = steps[i].region;

		if (steps[i].kind == GMEM_STEP_ADD ||
		    !gmem_claim_is_active(vm, region->gpa.start, region->gpa.size))
			continue;
		gmem_lock_drop(&vm->change_lock);
		gmem_condition_wait(&vm->released, &vm->lock);
		gmem_lock_drop(&vm->lock);
		return true;
	}
	return false;
}

static void lock_both(struct gmem_vm *vm, const struct gmem_step *steps, size_t count)
{
	do {
		gmem_lock_take(&vm->change_lock);
		gmem_lock_take(&vm->lock);
	} while (wait_for_conversions(vm, steps, count));
}

static int check_users(const struct gmem_vm *vm, struct gmem_step *step)
{
	const struct gmem_region *region = step->region;
	int err;

	if (step->kind == GMEM_STEP_ADD)
		return 0;

	err = gmem_claim_check_leases(vm, region->gpa.start, region->gpa.size);
	if (err)
		return err;
	if (!gmem_states_total(&region->states, GMEM_PAGE_PRIVATE))
		return 0;
	if (step->kind == GMEM_STEP_MOVE)
		return gmem_fail(-EACCES,
				 "the region at gpa 0x%" PRIx64
				 " is private in part: what is private stays where it is",
				 region->gpa.start);
	if (step->kind == GMEM_STEP_REBIND &&
	    gmem_region_traits(region)->attributes == GMEM_ATTRIBUTES_FILE)
		return gmem_fail(-EACCES,
				 "the region at gpa 0x%" PRIx64
				 " is private in part, in place: another file would not be",
				 region->gpa.start);
	return 0;
}

static int check_all(const struct gmem_vm *vm, struct gmem_step *steps, size_t count)
{
	int err = 0;

	for (size_t i = 0; i < count; i++)
		steps[i].failed = false;
	for (size_t i = 0; i < count && !err; i++) {
		err = check_users(vm, &steps[i]);
		steps[i].failed = err != 0;
	}
	return err;
}

/* ---- detach and prepare ---- */

static void undo_preparations(struct gmem_vm *vm, struct gmem_step *steps, size_t prepared,
			      size_t left)
{
	while (prepared-- > 0)
		if (kinds[steps[prepared].kind].undo)
			kinds[steps[prepared].kind].undo(vm, &steps[prepared]);
	while (left-- > 0)
		if (kinds[steps[left].kind].reattach)
			kinds[steps[left].kind].reattach(vm, &steps[left]);
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
		if (kinds[steps[i].kind].detach)
			kinds[steps[i].kind].detach(vm, &steps[i]);
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

/* ---- the whole change ---- */

static uint64_t highest_gpa(const struct gmem_step *steps, size_t count)
{
	uint64_t last, highest = 0;

	for (size_t i = 0; i < count; i++) {
		last = gmem_region_last(steps[i].region);
		highest = last > highest ? last : highest;
	}
	return highest;
}

/* What steps take away is marked as removed first: others may bring memory there. */
static int fill_table(const struct gmem_vm *vm, struct gmem_table *table,
		      const struct gmem_step *steps, size_t count)
{
	int err = 0;

	for (size_t i = 0; i < count && !err; i++)
		if (steps[i].kind == GMEM_STEP_REMOVE || steps[i].kind == GMEM_STEP_MOVE)
			err = gmem_table_remove(table, vm->table, steps[i].old_gpa,
						steps[i].region->gpa.size);
	for (size_t i = 0; i < count && !err; i++) {
		struct gmem_region *region = steps[i].upper ? steps[i].upper : steps[i].region;

		if (steps[i].kind != GMEM_STEP_REMOVE)
			err = gmem_table_enter(table, vm->table, region, region->gpa.start,
					       region->hva.start);
	}
	return err;
}

static int build_table(const struct gmem_vm *vm, const struct gmem_step *steps, size_t count,
		       struct gmem_table **ret)
{
	struct gmem_table *table = NULL;
	int err;

	*ret = NULL;
	if (!vm->table)
		return 0;

	err = gmem_table_new(vm->table, highest_gpa(steps, count), &table);
	if (!err)
		err = fill_table(vm, table, steps, count);
	if (err) {
		gmem_table_free(table, vm->table);
		return gmem_fail(-ENOMEM, "no memory for the readers' new table");
	}
	*ret = table;
	return 0;
}

static void settle(struct gmem_vm *vm, struct gmem_step *step)
{
	if (step->kind == GMEM_STEP_REMOVE)
		gmem_count(&vm->counters, GMEM_COUNT_MADE_SHARED,
			   gmem_states_total(&step->region->states, GMEM_PAGE_PRIVATE));
	else
		step->region->has_slot = step->new_count > 0;
	if (step->upper)
		step->upper->has_slot = step->new_count > 1;
}

static void settle_windows(const struct gmem_step *step)
{
	if (step->kind != GMEM_STEP_REMOVE)
		gmem_table_settle(step->upper ? step->upper : step->region);
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
		return err;

	err = build_table(vm, steps, count, &table);
	if (err)
		goto undo_preparations;

	err = gmem_apply_slots(vm, steps, count);
	if (err)
		goto free_table;

	for (size_t i = 0; i < count; i++)
		settle(vm, &steps[i]);
	*ret_old = vm->table;
	*ret_new = table;
	gmem_vm_publish(vm, table);
	return 0;

free_table:
	gmem_table_free(table, vm->table);
undo_preparations:
	undo_preparations(vm, steps, count, count);
	return err;
}

/* Listeners hear of the old range while its memory is still there for the host. */
static void tell_listeners(const struct gmem_vm *vm, const struct gmem_step *step)
{
	if (step->kind != GMEM_STEP_ADD && step->kind != GMEM_STEP_SPLIT && !step->region->is_device)
		gmem_listeners_removed(vm, step->old_gpa, step->region->gpa.size);
}

static int ask_hooks(const struct gmem_vm *vm, const struct gmem_step *steps, size_t count)
{
	struct gmem_change_hook *hook;
	int err = 0;

	for (hook = vm->change_hooks; hook && !err; hook = hook->next)
		err = hook->before(hook, steps, count);
	return err;
}

static void tell_hooks(const struct gmem_vm *vm)
{
	struct gmem_change_hook *hook;

	for (hook = vm->change_hooks; hook; hook = hook->next)
		hook->after(hook);
}

const char *gmem_step_name(enum gmem_step_kind kind)
{
	return kinds[kind].name;
}

int gmem_apply_steps(struct gmem_vm *vm, struct gmem_step *steps, size_t count)
{
	const struct gmem_table *old = NULL;
	struct gmem_table *new = NULL;
	int err;

	/* Who holds the hook lock may wait for the callback that this is called from. */
	err = gmem_claim_check_not_owner(vm);
	if (err)
		return err;

	gmem_lock_take(&vm->hook_lock);
	err = ask_hooks(vm, steps, count);
	if (err)
		goto over;

	/* The VM lock is free while this waits for readers, who may need it. */
	lock_both(vm, steps, count);
	err = apply_locked(vm, steps, count, &old, &new);
	gmem_lock_drop(&vm->lock);

	if (new) {
		gmem_vm_wait_for_views(vm);
		gmem_table_free(old, new);
	}
	for (size_t i = 0; i < count && new; i++)
		settle_windows(&steps[i]);
	for (size_t i = 0; i < count && !err; i++)
		tell_listeners(vm, &steps[i]);
	for (size_t i = 0; i < count && !err; i++)
		if (kinds[steps[i].kind].finish)
			kinds[steps[i].kind].finish(&steps[i]);
	gmem_lock_drop(&vm->change_lock);

over:
	tell_hooks(vm);
	gmem_lock_drop(&vm->hook_lock);
	return err;
}
