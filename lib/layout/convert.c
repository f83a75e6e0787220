/* SPDX-License-Identifier: MIT */
#include "layout/convert.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/counters.h"
#include "base/error.h"
#include "base/lock.h"
#include "base/opts.h"
#include "base/range_map.h"
#include "base/range_set.h"
#include "os/usdt.h"
#include "region/region.h"
#include "region/region_memory.h"
#include "region/regions.h"
#include "state/claim.h"
#include "state/listener.h"
#include "state/private_state.h"
#include "view/lookup_table.h"
#include "view/view.h"

struct work {
	struct gmem_vm *vm;
	struct gmem_convert_opts opts;
	uint64_t gpa;
	uint64_t size;
	uint64_t last;
	uint32_t state;
	bool to_private;
	bool is_inplace;		/* part of the range is: each file has attributes of its own */
	bool is_done;			/* the kernel was told by the caller: only the record changes */
	struct gmem_range_map runs;	/* the runs that change, for listeners */
	struct gmem_range *spare;	/* for vm->privates */
	struct gmem_range *pending_spares[2];	/* for vm->pending_discard: one to remove, one to add */
	struct gmem_conversion result;
};

/* ---- check ---- */

static int check_region(const struct gmem_region *region, uint64_t gpa)
{
	int err;

	err = gmem_regions_check_memory(region, gpa);
	if (!err)
		err = gmem_regions_check_slot(region);
	if (err)
		return err;

	if (gmem_region_traits(region)->attributes == GMEM_ATTRIBUTES_NONE)
		return gmem_fail(-EOPNOTSUPP,
				 "the memory at gpa 0x%" PRIx64 " has backing \"%s\": it cannot be converted",
				 gpa, gmem_backing_name(region->backing));
	return 0;
}

static bool is_inplace(const struct gmem_region *region)
{
	return gmem_region_traits(region)->attributes == GMEM_ATTRIBUTES_FILE;
}

static int check_coverage(struct work *work)
{
	struct gmem_stretch at = GMEM_REGIONS_WALK(work->vm, work->gpa, work->last);
	int err;

	while (gmem_regions_walk_whole(&at)) {
		err = check_region(at.region, at.gpa);
		if (err)
			return err;
		work->is_inplace |= is_inplace(at.region);
	}
	return 0;
}

/* ---- the kernel ---- */

/* Attributes of the VM cross regions; those of a file end with it. */
static void cut_at_file(const struct work *work, struct gmem_part *run)
{
	uint64_t last;

	if (!work->is_inplace)
		return;
	last = gmem_region_last(gmem_regions_at(work->vm, run->start));
	if (last < run->last)
		run->last = last;
}

/* The first run at or after @at whose recorded state is not the one asked for */
static bool next_change(const struct work *work, uint64_t at, struct gmem_part *ret)
{
	if (!gmem_set_next(&work->vm->privates, !work->to_private, at, work->last, ret))
		return false;
	cut_at_file(work, ret);
	return true;
}

/* With GMEM_CONVERT_ALL every run, whatever its recorded state */
static bool next_run(const struct work *work, uint64_t at, struct gmem_part *ret)
{
	if (!(work->opts.flags & GMEM_CONVERT_ALL))
		return next_change(work, at, ret);

	*ret = (struct gmem_part){ at, work->last };
	cut_at_file(work, ret);
	return true;
}

static int set_run(struct work *work, const struct gmem_part *run, bool to_private)
{
	struct gmem_region *region = gmem_regions_at(work->vm, run->start);

	work->result.ioctls++;
	gmem_region_count(region, GMEM_COUNT_CONVERT_IOCTLS, 1);
	return gmem_region_set_private(region, run, to_private, work->opts.wait_ms);
}

/*
 * Undo the runs before @refused, lowest first. If the kernel refuses that, the rest up
 * to @refused keeps the new state.
 */
static int undo_runs(struct work *work, uint64_t refused, int cause)
{
	uint64_t at = work->gpa;
	struct gmem_part run;
	int err = 0, tries;

	while (at < refused && next_change(work, at, &run) && run.start < refused) {
		for (tries = 0; tries < GMEM_UNDO_TRIES; tries++) {
			err = set_run(work, &run, !work->to_private);
			if (!err)
				break;
		}
		if (err)
			break;
		at = run.last + 1;
	}
	work->result.converted = 0;
	if (!err)
		return cause;

	work->result.gpa = run.start;
	work->result.size = refused - run.start;
	work->result.converted = work->result.size;
	return gmem_fail(-ENOTRECOVERABLE,
			 "after a refusal, %s, VM fd %d refuses to make gpa 0x%" PRIx64
			 " what it was: 0x%" PRIx64 " bytes from there are %s now",
			 gmem_errno_name(cause), work->vm->fd, run.start, refused - run.start,
			 work->to_private ? "private" : "shared");
}

static int change_kernel(struct work *work)
{
	uint64_t at = work->gpa;
	struct gmem_part run;
	int err;

	while (!work->is_done && next_run(work, at, &run)) {
		err = set_run(work, &run, work->to_private);
		if (err)
			return undo_runs(work, run.start, err);
		work->result.converted += run.last - run.start + 1;
		if (run.last == work->last)
			break;
		at = run.last + 1;
	}
	work->result.gpa = work->gpa;
	work->result.size = work->size;
	return 0;
}

/* ---- the readers ---- */

/* @base with [@gpa, @gpa + @size) in the new state; NULL if there are no readers */
static int make_table(const struct work *work, const struct gmem_table *base, uint64_t gpa,
		      uint64_t size, struct gmem_table **ret)
{
	struct gmem_range range = { .start = gpa, .size = size };
	const struct gmem_range_map privates = { .root = work->to_private ? &range : NULL };
	const struct gmem_layout layout = { &work->vm->regions, &privates };
	int err;

	*ret = NULL;
	if (!base)
		return 0;

	err = gmem_table_new(base, &work->vm->regions, ret);
	if (err)
		return gmem_fail(err, "no memory for the readers' new table");
	err = gmem_table_refresh(*ret, base, &layout, gpa, size);
	if (err) {
		gmem_table_free(*ret, base);
		*ret = NULL;
		return gmem_fail(err, "no memory for the readers' new table");
	}
	return 0;
}

static void tell_readers(struct gmem_vm *vm, const struct gmem_table *table)
{
	if (table) {
		gmem_vm_publish(vm, table);
		gmem_vm_wait_for_views(vm);
	}
}

/*
 * The kernel refused. If it refused the undo, too, readers get a table of just the part
 * that changed; without memory for one, the table that grants less.
 */
static void fall_back(struct work *work, const struct gmem_table *old, struct gmem_table *new)
{
	struct gmem_table *third = NULL;
	int err = 0;

	if (!old)
		return;
	if (work->result.size)
		err = make_table(work, old, work->result.gpa, work->result.size, &third);

	if (err && work->to_private) {
		gmem_table_free(old, new);
		return;
	}
	if (!err && (work->to_private || third))
		tell_readers(work->vm, third ? third : old);
	gmem_table_free(new, old);
	if (third)
		gmem_table_free(old, third);
}

/* ---- the record ---- */

static int get_spares(struct work *work)
{
	int err;

	err = gmem_set_spare(&work->spare);
	if (!err)
		err = gmem_set_spare(&work->pending_spares[0]);
	if (!err)
		err = gmem_set_spare(&work->pending_spares[1]);
	return err;
}

/*
 * Record the part that is in the new state: the whole range, or what could not be
 * undone.
 */
static void record(struct work *work)
{
	struct gmem_vm *vm = work->vm;
	uint64_t gpa = work->result.gpa, size = work->result.size;

	if (!size)
		return;

	gmem_lock_take(&vm->lock);
	gmem_state_count(vm, gpa, size, work->to_private);
	if (work->to_private)
		gmem_set_add(&vm->privates, gpa, size, &work->spare);
	else
		gmem_set_remove(&vm->privates, gpa, size, &work->spare);
	/* The side that was pending is in use again. */
	gmem_set_remove(&vm->pending_discard, gpa, size, &work->pending_spares[0]);
	gmem_lock_drop(&vm->lock);
}

/* Count one for the VM, and one for each region that has a part in it. */
static void count_conversion(const struct work *work)
{
	struct gmem_stretch at = GMEM_REGIONS_WALK(work->vm, work->gpa, work->last);

	gmem_count(&work->vm->counters, GMEM_COUNT_CONVERSIONS, 1);
	while (gmem_regions_walk_whole(&at))
		gmem_count(&at.region->counters, GMEM_COUNT_CONVERSIONS, 1);
}

static int change_state(struct work *work)
{
	const struct gmem_table *old = work->vm->table;
	struct gmem_table *new;
	int err;

	err = make_table(work, old, work->gpa, work->size, &new);
	if (err)
		return err;

	if (work->to_private)
		tell_readers(work->vm, new);
	err = change_kernel(work);
	record(work);
	if (err) {
		fall_back(work, old, new);
		return err;
	}

	if (!work->to_private)
		tell_readers(work->vm, new);
	if (new)
		gmem_table_free(old, new);
	return 0;
}

/* ---- the other side ---- */

static int discard_part(struct gmem_region *region, uint64_t gpa, uint64_t last, bool is_private,
			uint64_t *done)
{
	*done = 0;
	if (!gmem_region_traits(region)->has_sides || gmem_region_is_both_sides(region))
		return 0;
	return gmem_region_memory_discard(region, is_private ? GMEM_SIDE_SHARED : GMEM_SIDE_PRIVATE,
					  gpa - region->gpa.start, last - gpa + 1, done);
}

static void defer_discard(struct work *work, uint64_t gpa)
{
	gmem_lock_take(&work->vm->lock);
	gmem_set_add(&work->vm->pending_discard, gpa, work->last - gpa + 1, &work->pending_spares[1]);
	gmem_lock_drop(&work->vm->lock);
	work->result.owed = work->last - gpa + 1;
}

static bool next_region(const struct work *work, struct gmem_stretch *at)
{
	bool found;

	if (at->is_over)
		return false;

	/* The claim keeps the region as it is without the lock. */
	gmem_lock_take(&work->vm->lock);
	found = gmem_regions_walk_whole(at);
	gmem_lock_drop(&work->vm->lock);
	return found;
}

/* A refusal leaves the rest pending: the conversion itself is done. */
static void discard(struct work *work)
{
	struct gmem_stretch at = GMEM_REGIONS_WALK(work->vm, work->gpa, work->last);
	uint64_t done;
	int err;

	while (next_region(work, &at)) {
		err = discard_part(at.region, at.gpa, at.gpa + at.size - 1, work->to_private, &done);
		work->result.discarded += done;
		if (err) {
			gmem_vm_log_error(work->vm, err);
			defer_discard(work, at.gpa + done);
			return;
		}
	}
}

static void let_go_of_other_side(struct work *work)
{
	if (work->is_inplace)
		return;
	if (work->opts.discard == GMEM_DISCARD_NOW)
		discard(work);
	else if (work->opts.discard == GMEM_DISCARD_LATER)
		defer_discard(work, work->gpa);
}

/* ---- listeners ---- */

/* Collect the runs now: by the time listeners are told, the record has changed. */
static int collect_runs(struct work *work)
{
	uint64_t at = work->gpa;
	struct gmem_range *node;
	struct gmem_part run;

	if (!work->vm->listeners)
		return 0;

	while (next_run(work, at, &run)) {
		node = NULL;
		if (gmem_set_spare(&node))
			return gmem_fail(-ENOMEM, "no memory for what listeners are told");
		node->start = run.start;
		node->size = run.last - run.start + 1;
		gmem_range_insert(&work->runs, node);
		if (run.last == work->last)
			break;
		at = run.last + 1;
	}
	return 0;
}

/*
 * Tell listeners which runs did not become private, or are shared now, if only because
 * the kernel refused the undo.
 */
static void tell_listeners(const struct work *work, int err)
{
	const struct gmem_conversion *done = &work->result;
	uint64_t end = done->gpa + done->size;
	char sentence[256];

	snprintf(sentence, sizeof(sentence), "%s", gmem_last_error());
	if (!work->to_private) {
		if (done->size)
			gmem_listeners_shared(work->vm, &work->runs, done->gpa, end - 1);
	} else if (!done->size) {
		gmem_listeners_undo(work->vm, &work->runs, work->gpa, work->last);
	} else {
		if (done->gpa > work->gpa)
			gmem_listeners_undo(work->vm, &work->runs, work->gpa, done->gpa - 1);
		if (end - 1 < work->last)
			gmem_listeners_undo(work->vm, &work->runs, end, work->last);
	}
	if (err)
		gmem_fail(err, "%s", sentence);
}

/* ---- the whole conversion ---- */

static int convert_claimed(struct work *work)
{
	struct gmem_vm *vm = work->vm;
	struct gmem_part run;
	bool is_so;
	int err;

	/* The claim keeps the layout and the states as they are. */
	gmem_lock_take(&vm->lock);
	err = check_coverage(work);
	is_so = !err && !next_run(work, work->gpa, &run);
	if (!err && !is_so)
		err = collect_runs(work);
	gmem_lock_drop(&vm->lock);
	if (err || is_so)
		return err;

	err = get_spares(work);
	if (!err && work->to_private)
		err = gmem_listeners_ask(vm, &work->runs, work->gpa, work->last);
	if (err)
		return err;

	gmem_lock_take(&vm->change_lock);
	err = change_state(work);
	if (!err && !work->is_done)
		count_conversion(work);
	gmem_lock_drop(&vm->change_lock);
	if (!err && !work->is_done)
		let_go_of_other_side(work);
	tell_listeners(work, err);
	return err;
}

static int convert(struct work *work)
{
	struct gmem_vm *vm = work->vm;
	struct gmem_claim claim = {
		.gpa = work->gpa,
		.size = work->size,
		.mode = GMEM_CLAIM_EXCLUSIVE,
		.allows_leases = !work->to_private,
		.purpose = "converted to private",
	};
	int err;

	gmem_lock_take(&vm->lock);
	err = gmem_claim_take(vm, &claim, work->opts.wait_ms);
	gmem_lock_drop(&vm->lock);
	if (err)
		return err;

	err = convert_claimed(work);

	gmem_lock_take(&vm->lock);
	gmem_claim_drop(vm, &claim);
	gmem_lock_drop(&vm->lock);
	gmem_set_clear(&work->runs);
	free(work->spare);
	free(work->pending_spares[0]);
	free(work->pending_spares[1]);
	return err;
}

static int check_arguments(struct work *work, const struct gmem_convert_opts *opts)
{
	int err;

	if (work->state != GMEM_STATE_SHARED && work->state != GMEM_STATE_PRIVATE)
		return gmem_fail(-EINVAL, "%" PRIu32 " is no state to convert to", work->state);

	err = GMEM_COPY_OPTS(gmem_convert_opts, &work->opts, opts, wait_ms);
	if (!err)
		err = gmem_check_flags("flags", work->opts.flags, GMEM_CONVERT_ALL);
	if (!err)
		err = gmem_check_range("gpa", work->gpa, work->size);
	if (err)
		return err;

	if (work->opts.discard > GMEM_DISCARD_NEVER)
		return gmem_fail(-EINVAL, "discard %" PRIu32 " is no policy", work->opts.discard);
	return 0;
}

GMEM_API int gmem_vm_convert(struct gmem_vm *vm, uint64_t gpa, uint64_t size, uint32_t state,
			     const struct gmem_convert_opts *opts, struct gmem_conversion *ret)
{
	struct work work = {
		.vm = vm,
		.gpa = gpa,
		.size = size,
		.last = gpa + size - 1,
		.state = state,
		.to_private = state == GMEM_STATE_PRIVATE,
	};
	int err;

	if (!vm)
		return gmem_fail(-EINVAL, "vm is NULL");

	err = check_arguments(&work, opts);
	if (!err)
		err = convert(&work);
	if (ret)
		*ret = work.result;
	GMEM_PROBE(convert, vm->fd, gpa, size, state, work.result.converted, err);
	return gmem_vm_log_error(vm, err);
}

GMEM_API int gmem_vm_adopt_private(struct gmem_vm *vm, uint64_t gpa, uint64_t size)
{
	struct work work = {
		.vm = vm,
		.gpa = gpa,
		.size = size,
		.last = gpa + size - 1,
		.state = GMEM_STATE_PRIVATE,
		.to_private = true,
		.is_done = true,
	};
	int err;

	if (!vm)
		return gmem_fail(-EINVAL, "vm is NULL");

	err = check_arguments(&work, NULL);
	if (!err)
		err = convert(&work);
	return gmem_vm_log_error(vm, err);
}

int gmem_convert_check(struct gmem_vm *vm, uint64_t gpa, uint64_t size)
{
	struct work work = { .vm = vm, .gpa = gpa, .size = size, .last = gpa + size - 1 };
	int err;

	gmem_lock_take(&vm->lock);
	err = check_coverage(&work);
	gmem_lock_drop(&vm->lock);
	return err;
}

/* ---- pending discards ---- */

/* The first part at or after @at that is pending and lies in one region and one state */
static bool next_pending(const struct gmem_vm *vm, uint64_t at, uint64_t last,
			 struct gmem_stretch *ret)
{
	struct gmem_part part;

	if (!gmem_set_next(&vm->pending_discard, true, at, last, &part))
		return false;

	*ret = (struct gmem_stretch)GMEM_REGIONS_WALK(vm, part.start, part.last);
	return gmem_regions_walk(ret);
}

/* Discard what is pending within a claim; called and returning with the lock held. */
static int discard_pending(struct gmem_vm *vm, const struct gmem_claim *claim,
			   struct gmem_range **spare, uint64_t *total)
{
	uint64_t last = claim->gpa + claim->size - 1, at = claim->gpa, done;
	struct gmem_stretch part;
	int err;

	while (next_pending(vm, at, last, &part)) {
		err = gmem_set_spare(spare);
		if (err)
			return err;
		gmem_lock_drop(&vm->lock);
		err = discard_part(part.region, part.gpa, part.gpa + part.size - 1, part.is_private,
				   &done);
		gmem_lock_take(&vm->lock);
		*total += done;
		if (!err)
			done = part.size;
		if (done)
			gmem_set_remove(&vm->pending_discard, part.gpa, done, spare);
		if (err || part.gpa + part.size - 1 == last)
			return err;
		at = part.gpa + part.size;
	}
	return 0;
}

static int discard_all_pending(struct gmem_vm *vm, uint64_t *total)
{
	struct gmem_claim claim = { .mode = GMEM_CLAIM_EXCLUSIVE, .allows_leases = true };
	struct gmem_range *spare = NULL;
	struct gmem_part part;
	uint64_t at = 0;
	int err = 0;

	while (!err && gmem_set_next(&vm->pending_discard, true, at, UINT64_MAX - 1, &part)) {
		claim.gpa = part.start;
		claim.size = part.last - part.start + 1;
		gmem_claim_take(vm, &claim, 0);
		err = discard_pending(vm, &claim, &spare, total);
		gmem_claim_drop(vm, &claim);
		at = part.last + 1;
	}
	free(spare);
	return err;
}

GMEM_API int gmem_vm_discard_owed(struct gmem_vm *vm, uint64_t *ret_done)
{
	uint64_t total = 0;
	int err;

	if (!vm)
		return gmem_fail(-EINVAL, "vm is NULL");

	gmem_lock_take(&vm->lock);
	err = discard_all_pending(vm, &total);
	gmem_lock_drop(&vm->lock);
	if (ret_done)
		*ret_done = total;
	return gmem_vm_log_error(vm, err);
}
