/* SPDX-License-Identifier: MIT */
#include "layout/apply.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>

#include "gmem.h"
#include "base/counters.h"
#include "base/error.h"
#include "base/lock.h"
#include "base/range_map.h"
#include "base/sort.h"
#include "base/wait_budget.h"
#include "dirty/dirty_log.h"
#include "dirty/dirty_ring.h"
#include "dirty/logging.h"
#include "layout/apply_slots.h"
#include "layout/keep_state.h"
#include "os/kvm_compat.h"
#include "os/sys.h"
#include "region/dirty_pages.h"
#include "region/kept_log.h"
#include "region/page_states.h"
#include "region/region.h"
#include "region/region_info.h"
#include "region/regions.h"
#include "state/claim.h"
#include "state/listener.h"
#include "view/lookup_table.h"
#include "view/view.h"

/* Bytes of a region, and parts of a table, that are entered while conversions wait */
#define TABLE_PART	(UINT64_C(64) << 30)
#define PARTS_AT_ONCE	32

/* One change while it is made */
struct change {
	struct gmem_vm *vm;
	struct gmem_step *steps;
	size_t count;
	struct gmem_range_map coming;	/* what the layout gets: regions by their new gpa */
	struct gmem_claim first_claims[2];
	struct gmem_claim *claims;
	size_t claim_count;
	struct gmem_wait_budget budget;
};

static bool leaves(const struct gmem_step *step)
{
	return step->kind == GMEM_STEP_REMOVE || step->kind == GMEM_STEP_MOVE;
}

static bool comes(const struct gmem_step *step)
{
	return step->kind == GMEM_STEP_ADD || step->kind == GMEM_STEP_MOVE;
}

/* ---- plan ---- */

static int fail_overlap(uint64_t gpa, uint64_t size, const struct gmem_range *other)
{
	return gmem_fail(-EEXIST,
			 "gpa 0x%" PRIx64 " + size 0x%" PRIx64
			 " overlaps the region at 0x%" PRIx64 ", 0x%" PRIx64 " bytes",
			 gpa, size, other->start, other->size);
}

/* Look at what is there now; a region that leaves is no obstacle. */
static int check_overlap(const struct change *change, struct gmem_step *step, uint64_t size)
{
	uint64_t gpa = step->gpa, last = gpa + (size - 1);
	const struct gmem_region *other;
	const struct gmem_range *range;

	range = gmem_range_find(&change->coming, gpa, size);
	if (range)
		return fail_overlap(gpa, size, range);

	while ((other = gmem_regions_next(change->vm, gpa, last))) {
		if (!other->leaving)
			return fail_overlap(step->gpa, size, &other->gpa);
		if (other != step->region && gmem_step_may_move_slot(other->leaving))
			step->is_blocked = true;
		if (gmem_region_last(other) >= last)
			break;
		gpa = gmem_region_last(other) + 1;
	}
	return 0;
}

/* Whoever reads a dirty log takes what is kept of it from the region, with the lock. */
static struct gmem_region *copy_region(const struct gmem_region *region)
{
	struct gmem_region *copy;

	gmem_lock_take(&region->vm->lock);
	copy = gmem_region_copy(region);
	gmem_lock_drop(&region->vm->lock);
	return copy;
}

static int make_after(struct gmem_step *step)
{
	int err;

	if (step->kind == GMEM_STEP_REMOVE)
		return 0;

	/* For a change of several steps again: another change came in between, perhaps. */
	err = gmem_regions_check_slot(step->region);
	if (!err && step->kind == GMEM_STEP_REBIND)
		err = gmem_region_check_binding(step->region, &step->binding);
	if (err)
		return err;
	if (step->kind == GMEM_STEP_SPLIT && step->offset >= step->region->gpa.size)
		return gmem_fail(-EINVAL, "offset 0x%" PRIx64 " is not inside the region's 0x%" PRIx64
				 " bytes", step->offset, step->region->gpa.size);

	step->after = copy_region(step->region);
	if (!step->after)
		return -ENOMEM;
	if (step->kind == GMEM_STEP_MOVE)
		gmem_range_set_start(&step->after->gpa, step->gpa);
	return 0;
}

/* A refusal takes no memory. Of several steps, one may give back what another takes. */
static int plan_add(struct change *change, struct gmem_step *step)
{
	int err = check_overlap(change, step, step->size);

	if (!err && change->count == 1)
		err = gmem_region_check_unused(change->vm, step->size, &step->params);
	if (!err && !step->region)
		err = gmem_region_new(change->vm, step->gpa, step->size, &step->params, &step->region);
	if (!err)
		err = gmem_region_settle_log(step->region);
	step->after = step->region;
	return err;
}

static int plan_step(struct change *change, struct gmem_step *step)
{
	int err;

	err = step->kind == GMEM_STEP_ADD ? plan_add(change, step) : make_after(step);
	if (!err && step->kind == GMEM_STEP_MOVE)
		err = check_overlap(change, step, step->region->gpa.size);
	if (!err && step->after && step->kind != GMEM_STEP_SPLIT)
		gmem_range_insert(&change->coming, &step->after->gpa);
	return err;
}

static void begin_step(struct gmem_step *step)
{
	struct gmem_region *region = step->region;

	step->after = step->kind == GMEM_STEP_ADD ? region : NULL;	/* while it is not planned */
	step->log = NULL;
	step->new_count = 0;
	step->added = 0;
	step->told = 0;
	step->is_blocked = false;
	step->parked = false;
	step->deleted = false;
	step->moved = false;
	step->stuck[0] = false;
	step->stuck[1] = false;
	step->lost = false;
	step->failed = false;
	step->old_gpa = step->kind == GMEM_STEP_ADD ? step->gpa : region->gpa.start;
	step->has_old = step->kind != GMEM_STEP_ADD && region->has_slot;
	if (leaves(step))
		region->leaving = step;
}

static int plan(struct change *change)
{
	int err = 0;

	for (size_t i = 0; i < change->count; i++)
		begin_step(&change->steps[i]);
	for (size_t i = 0; i < change->count && !err; i++) {
		err = plan_step(change, &change->steps[i]);
		change->steps[i].failed = err != 0;
	}
	for (size_t i = 0; i < change->count; i++)
		if (leaves(&change->steps[i]))
			change->steps[i].region->leaving = NULL;
	return err;
}

/* ---- claims ---- */

/*
 * Nobody has a lease where nothing is yet, nor gets one before readers have the table: who
 * has a lease may look there.
 */
static void note_claim(struct change *change, const struct gmem_range *gpa)
{
	change->claims[change->claim_count++] = (struct gmem_claim){
		.gpa = gpa->start,
		.size = gpa->size,
		.mode = GMEM_CLAIM_EXCLUSIVE,
		.in_front = true,
		.purpose = "laid out anew",
	};
}

/* Exclusive claims of one change must not overlap each other. */
static void merge_claims(struct change *change)
{
	struct gmem_claim *claims = change->claims;
	size_t kept = 0;

	if (change->claim_count < 2)
		return;
	gmem_sort(claims, change->claim_count, sizeof(*claims), offsetof(struct gmem_claim, gpa));
	for (size_t i = 1; i < change->claim_count; i++) {
		uint64_t last = claims[i].gpa + (claims[i].size - 1);
		uint64_t kept_last = claims[kept].gpa + (claims[kept].size - 1);

		if (claims[i].gpa > kept_last)
			claims[++kept] = claims[i];
		else if (last > kept_last)
			claims[kept].size = last - claims[kept].gpa + 1;
	}
	change->claim_count = kept + 1;
}

static int collect_claims(struct change *change)
{
	if (change->count > 1) {
		change->claims = malloc(2 * change->count * sizeof(*change->claims));
		if (!change->claims)
			return gmem_fail(-ENOMEM, "no memory for %zu steps of a change", change->count);
	}

	for (size_t i = 0; i < change->count; i++) {
		const struct gmem_step *step = &change->steps[i];

		if (step->kind != GMEM_STEP_ADD)
			note_claim(change, &step->region->gpa);
		if (comes(step))
			note_claim(change, &step->after->gpa);
	}
	merge_claims(change);
	return 0;
}

static int check_states(const struct gmem_step *step)
{
	const struct gmem_region *region = step->region;

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

static void note_memslot(struct gmem_step *step)
{
	if (step->has_old)
		step->old = gmem_region_memslot(step->region);
	/* Listeners that come from now on do not hear of this change. */
	if (step->kind != GMEM_STEP_ADD && gmem_listeners_are_there(step->region->vm))
		gmem_region_fill_info(step->region, &step->before);
	if (step->after)
		step->after->slot_flags = step->region->slot_flags;
}

/* The claims are held: no state changes any more, nor does a memslot's flag. */
static int check_all_states(struct change *change)
{
	int err = 0;

	for (size_t i = 0; i < change->count && !err; i++) {
		note_memslot(&change->steps[i]);
		err = check_states(&change->steps[i]);
		change->steps[i].failed = err != 0;
	}
	return err;
}

/* The step that a lease is in the way of, or none: it may be gone already. */
static int blame_leases(struct change *change, int err)
{
	struct gmem_failure failure;

	gmem_failure_keep(&failure, err);
	for (size_t i = 0; i < change->count && err == -EBUSY; i++) {
		struct gmem_step *step = &change->steps[i];

		step->failed = step->kind != GMEM_STEP_ADD &&
			       gmem_claim_check_leases(change->vm, step->old_gpa, step->region->gpa.size);
		if (step->failed)
			break;
	}
	return gmem_failure_restore(&failure);
}

static int claim(struct change *change)
{
	struct gmem_vm *vm = change->vm;
	int err;

	err = collect_claims(change);
	if (err)
		return err;

	gmem_lock_take(&vm->lock);
	err = gmem_claims_take(vm, change->claims, change->claim_count, &change->budget);
	if (err) {
		err = blame_leases(change, err);
	} else {
		err = check_all_states(change);
		if (err)
			gmem_claims_drop(vm, change->claims, change->claim_count);
	}
	gmem_lock_drop(&vm->lock);
	return err;
}

static void unclaim(struct change *change)
{
	gmem_lock_take(&change->vm->lock);
	gmem_claims_drop(change->vm, change->claims, change->claim_count);
	gmem_lock_drop(&change->vm->lock);
}

/* ---- the kinds of steps ---- */

static int prepare_add(struct gmem_step *step)
{
	return gmem_region_acquire(step->region, &step->params);
}

static void undo_add(struct gmem_step *step)
{
	if (!step->stuck[0]) {
		gmem_region_detach(step->region);
		gmem_region_release(step->region);
	}
}

static void commit_add(struct gmem_step *step)
{
	gmem_region_count(step->region, GMEM_COUNT_MADE_PRIVATE,
			  gmem_states_total(&step->region->states, GMEM_PAGE_PRIVATE));
	gmem_range_insert(&step->region->vm->regions, &step->region->gpa);
	gmem_region_commit_hva(step->region);
}

static void detach_remove(struct gmem_step *step)
{
	gmem_region_detach(step->region);
}

static void reattach_remove(struct gmem_step *step)
{
	gmem_region_reattach(step->region);
}

static void commit_gone_remove(struct gmem_step *step)
{
	struct gmem_region *region = step->region;

	gmem_count(&region->vm->counters, GMEM_COUNT_MADE_SHARED,
		   gmem_states_total(&region->states, GMEM_PAGE_PRIVATE));
	gmem_range_remove(&region->vm->regions, &region->gpa);
	gmem_region_commit_no_hva(region);
}

static void finish_remove(struct gmem_step *step)
{
	gmem_region_release(step->region);
	gmem_region_free(step->region);
}

static void commit_gone_move(struct gmem_step *step)
{
	gmem_range_remove(&step->region->vm->regions, &step->region->gpa);
}

static void commit_move(struct gmem_step *step)
{
	gmem_range_set_start(&step->region->gpa, step->gpa);
	gmem_range_insert(&step->region->vm->regions, &step->region->gpa);
}

static int prepare_split(struct gmem_step *step)
{
	return gmem_region_prepare_split(step->region, step->offset, step->after, step->upper);
}

static void undo_split(struct gmem_step *step)
{
	if (!step->stuck[1])
		gmem_region_undo_split(step->upper);
}

static void commit_split(struct gmem_step *step)
{
	gmem_region_commit_split(step->region, step->upper);
}

static int prepare_rebind(struct gmem_step *step)
{
	return gmem_region_prepare_rebind(step->region, &step->binding, step->after);
}

/* What the kernel keeps is bound to the new range, so it stays with that. */
static void undo_rebind(struct gmem_step *step)
{
	if (step->stuck[0]) {
		gmem_region_reattach(step->region);
	} else {
		gmem_region_undo_rebind(step->region, step->after);
		gmem_region_release(step->after);
	}
}

/* What is pending for the old file's memory ends with it; on the host's side it stays. */
static void commit_rebind(struct gmem_step *step)
{
	gmem_states_drop_unused(&step->region->states);
	gmem_region_commit_rebind(step->region, step->after);
}

static void finish_rebind(struct gmem_step *step)
{
	gmem_region_release(step->after);
}

/* NULL: nothing to do. Only those called commit are called with change_lock and lock held. */
static const struct {
	const char *name;
	void (*detach)(struct gmem_step *step);
	void (*reattach)(struct gmem_step *step);
	int (*prepare)(struct gmem_step *step);
	void (*undo)(struct gmem_step *step);
	void (*commit_gone)(struct gmem_step *step);
	void (*commit)(struct gmem_step *step);
	void (*finish)(struct gmem_step *step);
} kinds[] = {
	[GMEM_STEP_ADD] = {
		.name = "add",
		.prepare = prepare_add,
		.undo = undo_add,
		.commit = commit_add,
	},
	[GMEM_STEP_REMOVE] = {
		.name = "remove",
		.detach = detach_remove,
		.reattach = reattach_remove,
		.commit_gone = commit_gone_remove,
		.finish = finish_remove,
	},
	[GMEM_STEP_MOVE] = {
		.name = "move",
		.commit_gone = commit_gone_move,
		.commit = commit_move,
	},
	[GMEM_STEP_SPLIT] = {
		.name = "split",
		.prepare = prepare_split,
		.undo = undo_split,
		.commit = commit_split,
	},
	[GMEM_STEP_REBIND] = {
		.name = "rebind",
		.prepare = prepare_rebind,
		.undo = undo_rebind,
		.commit = commit_rebind,
		.finish = finish_rebind,
	},
};

const char *gmem_step_name(enum gmem_step_kind kind)
{
	return kinds[kind].name;
}

/* ---- prepare ---- */

/*
 * A dirty log is read before its memslot is deleted, unless the region goes for certain: with
 * one step, nothing but the deletion can fail.
 */
static int prepare_log(struct gmem_step *step, bool is_only_step)
{
	struct gmem_region *region = step->region;

	/* What is removed may leave it to what is added. */
	if (step->kind == GMEM_STEP_ADD &&
	    step->params.opts.flags & GMEM_REGION_KEEP_STATE && gmem_region_wants_log(region)) {
		region->kept_log = gmem_kept_log_new(region->gpa.size);
		return region->kept_log ? 0 : -ENOMEM;
	}
	if (!step->has_old || !(step->old.flags & KVM_MEM_LOG_DIRTY_PAGES) ||
	    (step->kind == GMEM_STEP_REMOVE && is_only_step))
		return 0;

	step->log = gmem_kept_log_new(region->gpa.size);
	if (step->log && !region->kept_log)
		region->kept_log = gmem_kept_log_new(region->gpa.size);
	if (step->log && region->kept_log && step->upper)
		step->upper->kept_log = gmem_kept_log_new(step->upper->gpa.size);
	return step->log && region->kept_log && (!step->upper || step->upper->kept_log) ? 0 : -ENOMEM;
}

/* Room for marks stays if the change is undone: others will come there. */
static int prepare_marks(const struct gmem_step *step)
{
	struct gmem_dirty_pages *dirty = step->region->vm->newest.dirty;

	if (!dirty || !comes(step) || step->region->is_device)
		return 0;
	return gmem_dirty_pages_prepare(dirty, step->gpa, step->region->gpa.size);
}

static void note_result(struct gmem_step *step)
{
	step->new_count = 0;
	if (!step->after || step->after->is_device)
		return;

	step->new[step->new_count++] = gmem_region_memslot(step->after);
	if (step->kind == GMEM_STEP_SPLIT)
		step->new[step->new_count++] = gmem_region_memslot(step->upper);
}

static void undo_preparations(struct change *change, size_t prepared)
{
	while (prepared-- > 0)
		if (kinds[change->steps[prepared].kind].undo)
			kinds[change->steps[prepared].kind].undo(&change->steps[prepared]);
	for (size_t i = change->count; i-- > 0;)
		if (kinds[change->steps[i].kind].reattach)
			kinds[change->steps[i].kind].reattach(&change->steps[i]);
}

static int prepare(struct change *change)
{
	int err;

	for (size_t i = 0; i < change->count; i++)
		if (kinds[change->steps[i].kind].detach)
			kinds[change->steps[i].kind].detach(&change->steps[i]);

	for (size_t i = 0; i < change->count; i++) {
		struct gmem_step *step = &change->steps[i];

		err = kinds[step->kind].prepare ? kinds[step->kind].prepare(step) : 0;
		if (!err) {
			err = prepare_log(step, change->count == 1);
			if (!err)
				err = prepare_marks(step);
			i += err != 0;
		}
		if (err) {
			step->failed = true;
			undo_preparations(change, i);
			return err;
		}
		note_result(step);
	}
	gmem_keep_states(change->steps, change->count);
	return 0;
}

/* ---- the readers' table ---- */

/* One part of a table after the other; between them conversions get their turn. */
struct filling {
	const struct change *change;
	struct gmem_table *table;
	const struct gmem_table *old;
	bool lets_others;	/* the table is vm->next_table already */
	unsigned int parts;
};

static void end_part(struct filling *filling)
{
	if (!filling->lets_others || ++filling->parts % PARTS_AT_ONCE)
		return;
	gmem_lock_drop(&filling->change->vm->change_lock);
	gmem_sys_pause(0);
	gmem_lock_take(&filling->change->vm->change_lock);
}

/* How much of a range is one part: no entry of the table should be entered in two. */
static uint64_t table_part(uint64_t gpa, uint64_t size)
{
	uint64_t part = TABLE_PART - gpa % TABLE_PART;

	return part < size ? part : size;
}

static int remove_old(struct filling *filling, const struct gmem_step *step)
{
	uint64_t size = step->region->gpa.size, part;
	int err = 0;

	for (uint64_t done = 0; done < size && !err; done += part) {
		part = table_part(step->old_gpa + done, size - done);
		err = gmem_table_remove(filling->table, filling->old, step->old_gpa + done, part);
		end_part(filling);
	}
	return err;
}

static int enter_new(struct filling *filling, const struct gmem_step *step)
{
	struct gmem_region *region = step->upper ? step->upper : step->region;
	const struct gmem_region *after = step->upper ? step->upper : step->after;
	uint64_t size = after->gpa.size, part;
	int err = 0;

	for (uint64_t done = 0; done < size && !err; done += part) {
		part = table_part(after->gpa.start + done, size - done);
		err = gmem_table_enter_part(filling->table, filling->old, region, after->gpa.start,
					    after->hva.start, done, part);
		end_part(filling);
	}
	return err;
}

/* What steps take away is marked as removed first: others may bring memory there. */
static int fill_table(struct filling *filling)
{
	const struct change *change = filling->change;
	int err = 0;

	for (size_t i = 0; i < change->count && !err; i++)
		if (leaves(&change->steps[i]))
			err = remove_old(filling, &change->steps[i]);
	for (size_t i = 0; i < change->count && !err; i++)
		if (change->steps[i].upper || change->steps[i].after)
			err = enter_new(filling, &change->steps[i]);
	return err ? gmem_fail(-ENOMEM, "no memory for the readers' new table") : 0;
}

static int new_table(const struct change *change, const struct gmem_table *old,
		     struct gmem_table **ret)
{
	if (gmem_table_new(old, gmem_table_reach_over(&change->coming), ret))
		return gmem_fail(-ENOMEM, "no memory for the readers' new table");
	return 0;
}

/* Make the table that follows the first one, whose view is being made. With change_lock. */
static int build_table(struct gmem_vm *vm, const struct gmem_table *first)
{
	struct filling filling = { .change = vm->change, .old = first };
	int err;

	err = new_table(vm->change, first, &filling.table);
	if (err)
		return err;

	err = fill_table(&filling);
	if (err)
		gmem_table_free(filling.table, first);
	else
		vm->next_table = filling.table;
	return err;
}

/* If there has been no view, and one is made meanwhile, it has the table built, too. */
static int begin_table(struct change *change)
{
	struct gmem_vm *vm = change->vm;
	struct filling filling = { .change = change, .lets_others = true };
	int err = 0;

	gmem_lock_take(&vm->change_lock);
	vm->change = change;
	filling.old = gmem_vm_table(vm);
	if (!filling.old) {
		vm->build_next_table = build_table;
	} else {
		err = new_table(change, filling.old, &filling.table);
		if (!err) {
			vm->next_table = filling.table;
			err = fill_table(&filling);
		}
	}
	gmem_lock_drop(&vm->change_lock);
	return err;
}

static void drop_table(struct change *change)
{
	struct gmem_vm *vm = change->vm;
	const struct gmem_table *table;

	gmem_lock_take(&vm->change_lock);
	table = vm->next_table;
	vm->next_table = NULL;
	vm->build_next_table = NULL;
	gmem_lock_drop(&vm->change_lock);
	gmem_table_free(table, gmem_vm_table(vm));
}

/* The old table is freed when no reader can use it any more. */
static void replace_table(struct change *change, const struct gmem_table *old)
{
	if (!old)
		return;
	gmem_vm_wait_for_views(change->vm, NULL);
	gmem_table_free(old, gmem_vm_table(change->vm));
	for (size_t i = 0; i < change->count; i++) {
		struct gmem_step *step = &change->steps[i];

		if (step->kind != GMEM_STEP_REMOVE)
			gmem_table_settle(step->upper ? step->upper : step->region);
	}
}

/* ---- commit ---- */

static void commit_step(struct gmem_step *step)
{
	if (kinds[step->kind].commit)
		kinds[step->kind].commit(step);
	if (step->kind == GMEM_STEP_REMOVE)
		return;
	step->region->has_slot = step->new_count > 0;
	if (step->upper)
		step->upper->has_slot = step->new_count > 1;
}

/* What was read of a log that is for trackers alone is not kept. */
static void settle_kept_log(struct gmem_region *region)
{
	gmem_kept_log_trim(&region->kept_log, region->gpa.size);
	if (region->kept_log)
		gmem_dirty_log_mark(region, region->kept_log);
	if (!gmem_region_wants_log(region))
		gmem_kept_log_drop(&region->kept_log);
}

static void settle_log(struct gmem_step *step, bool is_done)
{
	struct gmem_region *region = step->region;
	uint64_t page = gmem_sys_page_size();

	if (step->kind == GMEM_STEP_ADD && is_done)
		gmem_kept_log_trim(&region->kept_log, region->gpa.size);
	if (!step->log)
		return;
	if (step->upper && is_done) {
		gmem_kept_log_merge(step->upper->kept_log, 0, region->kept_log, step->offset / page,
				    step->upper->gpa.size / page);
		settle_kept_log(step->upper);
	} else if (step->upper) {
		gmem_kept_log_drop(&step->upper->kept_log);
	}
	settle_kept_log(region);
	free(step->log);
	step->log = NULL;
}

/* What the memory's new pages, or new addresses, have in them has changed. With the lock. */
static void mark_step(const struct gmem_step *step)
{
	const struct gmem_range *gpa = &step->region->gpa;
	struct gmem_dirty_pages *dirty = step->region->vm->newest.dirty;

	if (dirty && (comes(step) || step->kind == GMEM_STEP_REBIND))
		gmem_dirty_pages_mark(dirty, gpa->start, gpa->size);
}

/*
 * Entries of dirty rings, and of vCPUs that empty theirs meanwhile, name memslots that are gone,
 * or that the layout does not have: all pages of what had them may be written.
 */
static void mark_unknown(const struct change *change, bool is_done)
{
	struct gmem_vm *vm = change->vm;

	if (!vm->trackers || !gmem_vm_has_dirty_rings(vm))
		return;
	for (size_t i = 0; i < change->count; i++) {
		const struct gmem_step *step = &change->steps[i];

		if (is_done && step->upper)
			gmem_vm_mark_dirty(vm, step->upper->gpa.start, step->upper->gpa.size);
		if (is_done ? step->upper != NULL : step->kind != GMEM_STEP_ADD)
			gmem_vm_mark_dirty(vm, step->region->gpa.start, step->region->gpa.size);
	}
}

/* Returns the table that readers used until now, or NULL. */
static const struct gmem_table *commit(struct change *change)
{
	struct gmem_vm *vm = change->vm;
	const struct gmem_table *old;

	gmem_lock_take(&vm->change_lock);
	gmem_lock_take(&vm->lock);
	for (size_t i = 0; i < change->count; i++)
		if (kinds[change->steps[i].kind].commit_gone)
			kinds[change->steps[i].kind].commit_gone(&change->steps[i]);
	for (size_t i = 0; i < change->count; i++)
		commit_step(&change->steps[i]);
	for (size_t i = 0; i < change->count; i++)
		mark_step(&change->steps[i]);
	gmem_lock_drop(&vm->lock);

	old = vm->next_table ? gmem_vm_table(vm) : NULL;
	gmem_vm_publish(vm, vm->next_table);
	vm->next_table = NULL;
	vm->build_next_table = NULL;
	gmem_lock_drop(&vm->change_lock);
	return old;
}

/* ---- what the kernel did not undo ---- */

/* With the lock held. */
static void keep_stuck(struct gmem_vm *vm, struct gmem_region *stuck, const struct gmem_kvm_slot *slot)
{
	stuck->gpa.start = slot->gpa;
	stuck->gpa.size = slot->size;
	stuck->has_slot = true;
	stuck->owns_number = true;
	stuck->lost = true;
	stuck->next_stuck = vm->stuck;
	vm->stuck = stuck;
}

/*
 * A rebound region keeps its old part of the file, and the memslot has the new one already;
 * host memory that is not the file's is the memslot's, too.
 */
static void hand_over_rebound(struct gmem_region *region, struct gmem_region *stuck)
{
	if (region->map)
		return;
	gmem_region_hand_over_memory(region, stuck);
}

static void hand_over(struct gmem_vm *vm, struct gmem_step *step)
{
	if (step->stuck[0]) {
		if (step->kind == GMEM_STEP_MOVE || step->kind == GMEM_STEP_SPLIT)
			gmem_region_hand_over(step->region, step->after);
		if (step->kind == GMEM_STEP_REBIND)
			hand_over_rebound(step->region, step->after);
		if (step->kind != GMEM_STEP_ADD)
			step->region->owns_number = false;
		keep_stuck(vm, step->after, &step->new[0]);
		step->after = NULL;
	}
	if (step->stuck[1]) {
		gmem_region_hand_over(step->region, step->upper);
		keep_stuck(vm, step->upper, &step->new[1]);
		step->upper = NULL;
	}
	if (step->lost) {
		step->region->lost = true;
		step->region->has_slot = !step->deleted;
	}
}

static void hand_over_all(struct change *change)
{
	gmem_lock_take(&change->vm->lock);
	for (size_t i = 0; i < change->count; i++)
		hand_over(change->vm, &change->steps[i]);
	gmem_lock_drop(&change->vm->lock);
}

/* ---- the whole change ---- */

static void undo(struct change *change, int err)
{
	struct gmem_failure failure;

	gmem_failure_keep(&failure, err);
	gmem_keep_states_end(change->steps, change->count);
	undo_preparations(change, change->count);
	if (err == -ENOTRECOVERABLE)
		hand_over_all(change);
	gmem_failure_restore(&failure);
}

static int make_change(struct change *change)
{
	int err;

	err = prepare(change);
	if (err)
		return err;

	err = begin_table(change);
	if (err)
		goto drop_table;
	err = gmem_apply_slots(change->vm, change->steps, change->count);
	if (err)
		goto drop_table;

	gmem_keep_states_end(change->steps, change->count);
	gmem_keep_logs(change->steps, change->count);
	replace_table(change, commit(change));
	return 0;

drop_table:
	drop_table(change);
	undo(change, err);
	return err;
}

/* ---- listeners ---- */

static void tell_removed(const struct change *change, const struct gmem_step *step)
{
	if (leaves(step) || step->kind == GMEM_STEP_REBIND)
		gmem_listeners_removed(change->claims, &step->before, step->kind == GMEM_STEP_MOVE);
}

static void tell_moved(const struct change *change, const struct gmem_step *step)
{
	struct gmem_region_info now;

	if (step->kind != GMEM_STEP_MOVE)
		return;
	gmem_region_fill_info(step->region, &now);
	gmem_listeners_moved(change->claims, &step->before, &now);
}

static void tell_added(const struct change *change, const struct gmem_step *step)
{
	struct gmem_region_info now;

	if (!comes(step) && step->kind != GMEM_STEP_REBIND)
		return;
	gmem_region_fill_info(step->region, &now);
	gmem_listeners_added(change->claims, &now, step->kind == GMEM_STEP_MOVE);
}

/* A device's range has no memory to tell of. */
static void tell_each(const struct change *change,
		      void (*tell)(const struct change *change, const struct gmem_step *step))
{
	for (size_t i = 0; i < change->count; i++)
		if (!change->steps[i].region->is_device)
			tell(change, &change->steps[i]);
}

/* They hear of old memory while it is still there for the host. */
static void tell_listeners(const struct change *change)
{
	if (!gmem_listeners_are_there(change->vm))
		return;
	tell_each(change, tell_removed);
	tell_each(change, tell_moved);
	tell_each(change, tell_added);
}

static int apply_claimed(struct change *change)
{
	int err;

	err = make_change(change);
	mark_unknown(change, !err);
	for (size_t i = 0; i < change->count; i++)
		settle_log(&change->steps[i], !err);
	if (err)
		return err;

	tell_listeners(change);
	return 0;
}

static int apply_planned(struct change *change)
{
	struct gmem_vm *vm = change->vm;
	int err;

	err = gmem_vm_ask_change_hooks(vm, change->steps, change->count, &change->budget);
	if (!err)
		err = claim(change);
	if (!err) {
		err = apply_claimed(change);
		unclaim(change);
	}
	gmem_vm_tell_change_hooks(vm);
	return err;
}

/* On success the memory that was taken is let go of: no reader can have it any more. */
static void end_step(struct gmem_step *step, bool is_done)
{
	if (is_done && kinds[step->kind].finish)
		kinds[step->kind].finish(step);

	if (step->kind != GMEM_STEP_ADD)
		free(step->after);
	else
		step->region = step->after;	/* NULL if it is stuck */
	step->after = NULL;
}

int gmem_apply_steps(struct gmem_vm *vm, struct gmem_step *steps, size_t count)
{
	struct change change;
	int err;

	/* Not its claims, which are filled in where they are needed. */
	change.vm = vm;
	change.steps = steps;
	change.count = count;
	change.coming.root = NULL;
	change.claims = change.first_claims;
	change.claim_count = 0;
	change.budget = gmem_vm_budget(vm, 0);

	/* Who holds the hook lock may wait for the callback that this is called from. */
	err = gmem_claim_begin_change(vm, &change.budget);
	if (err)
		return err;

	err = plan(&change);
	if (!err)
		err = apply_planned(&change);
	gmem_vm_end_change(vm);

	for (size_t i = 0; i < count; i++)
		end_step(&steps[i], !err);
	if (change.claims != change.first_claims)
		free(change.claims);
	return err;
}
