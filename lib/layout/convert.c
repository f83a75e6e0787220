/* SPDX-License-Identifier: MIT */
#include "layout/convert.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>

#include "base/check.h"
#include "base/counters.h"
#include "base/error.h"
#include "base/lock.h"
#include "base/opts.h"
#include "base/part.h"
#include "os/sys.h"
#include "os/usdt.h"
#include "region/dirty_pages.h"
#include "region/host_look.h"
#include "region/page_states.h"
#include "region/region.h"
#include "region/region_memory.h"
#include "region/regions.h"
#include "state/claim.h"
#include "state/listener.h"
#include "state/private_state.h"
#include "view/view.h"

/*
 * A run is told to the kernel in pieces: while KVM converts, page by page, it takes no signal
 * and no other memslot changes.
 */
#define MAX_RUN (UINT64_C(1) << 30)

/* Bytes claimed at once to give back what is pending: conversions of them wait meanwhile */
#define PENDING_PIECE (UINT64_C(64) << 20)

struct work {
	struct gmem_vm *vm;
	struct gmem_convert_opts opts;
	uint64_t gpa;
	uint64_t size;
	uint64_t last;
	struct gmem_wait_budget *budget;	/* of the call */
	struct gmem_claim claim;
	/*
	 * The pages that change are marked GMEM_PAGE_CHANGING; or, if they are one run in one
	 * region and nobody listens, they are these.
	 */
	bool is_marked;
	struct gmem_part run;
	uint64_t changing;		/* bytes */
	uint32_t state;
	bool to_private;
	struct gmem_region *only;	/* the region that has all of the range; NULL: several */
	bool is_inplace;		/* part of the range is: each file has attributes of its own */
	bool is_done;			/* the kernel was told by the caller: only the record changes */
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

/* With the lock held */
static int check_coverage(struct work *work)
{
	struct gmem_stretch at = GMEM_REGIONS_WALK(work->vm, work->gpa, work->last);
	int err;

	while (gmem_regions_walk_whole(&at)) {
		err = check_region(at.region, at.gpa);
		if (err)
			return err;
		work->is_inplace |= is_inplace(at.region);
		work->only = at.size == work->size ? at.region : NULL;
	}
	return 0;
}

/* ---- the regions of the range, which the claim keeps there ---- */

static struct gmem_stretch from(const struct work *work, uint64_t gpa, uint64_t last)
{
	return (struct gmem_stretch)GMEM_REGIONS_WALK(work->vm, gpa, last);
}

/* Without the lock, in most cases: conversions of a page are many. */
static bool next_region(const struct work *work, struct gmem_stretch *at)
{
	if (!work->only)
		return gmem_state_next_region(work->vm, at);
	if (at->is_over)
		return false;

	at->region = work->only;
	at->gpa = at->next;
	at->size = at->end - at->next + 1;
	at->is_over = true;
	return true;
}

static uint64_t offset_in(const struct gmem_stretch *at)
{
	return at->gpa - at->region->gpa.start;
}

static struct gmem_region *region_at(const struct work *work, uint64_t gpa)
{
	struct gmem_stretch at = from(work, gpa, gpa);

	next_region(work, &at);
	return at.region;
}

/* Find the next run that changes in a region, after @run; both are offsets there. */
static bool next_changing(const struct work *work, const struct gmem_stretch *at,
			  struct gmem_part *run)
{
	uint64_t start = run->last + 1, last = offset_in(at) + at->size - 1;

	if (run->last == last)
		return false;
	if (work->is_marked)
		return gmem_states_find(&at->region->states, GMEM_PAGE_CHANGING, true, start, last, run);
	if (!work->changing || start > work->run.last || last < work->run.start)
		return false;
	run->start = start > work->run.start ? start : work->run.start;
	run->last = last < work->run.last ? last : work->run.last;
	return true;
}

/* The same by guest address, and across regions */
static bool find_changing(const struct work *work, uint64_t gpa, uint64_t last,
			  struct gmem_part *ret)
{
	struct gmem_stretch at = from(work, gpa, last);
	uint64_t start;

	if (work->is_marked)
		return gmem_state_find(work->vm, GMEM_PAGE_CHANGING, true, gpa, last, ret);

	next_region(work, &at);
	start = at.region->gpa.start;
	ret->last = gpa - start - 1;
	if (!next_changing(work, &at, ret))
		return false;
	ret->start += start;
	ret->last += start;
	return true;
}

/* ---- what changes ---- */

static struct gmem_part before(const struct gmem_stretch *at)
{
	return (struct gmem_part){ .last = offset_in(at) - 1 };
}

/* Mark the pages of a region that are not yet in the state asked for. */
static uint64_t mark_in_region(const struct work *work, const struct gmem_stretch *region)
{
	struct gmem_states *states = &region->region->states;
	struct gmem_states_walk at = GMEM_STATES_WALK(states, GMEM_PAGE_PRIVATE, !work->to_private,
						      offset_in(region), region->size);
	uint64_t bytes = 0;

	while (gmem_states_walk(&at))
		bytes += gmem_states_set(states, GMEM_PAGE_CHANGING, at.offset, at.size, true);
	return bytes;
}

/* Most conversions change one run, which needs no marks. Returns false if there are more. */
static bool find_only_run(struct work *work, const struct gmem_stretch *region)
{
	struct gmem_states_walk at = GMEM_STATES_WALK(&region->region->states, GMEM_PAGE_PRIVATE,
						      !work->to_private, offset_in(region), region->size);

	if (!gmem_states_walk(&at))
		return true;
	work->run = (struct gmem_part){ at.offset, at.offset + at.size - 1 };
	if (gmem_states_walk(&at))
		return false;
	work->changing = work->run.last - work->run.start + 1;
	return true;
}

static void mark_changing(struct work *work)
{
	struct gmem_stretch at = from(work, work->gpa, work->last);

	if (work->only && !gmem_listeners_are_there(work->vm)) {
		next_region(work, &at);
		if (find_only_run(work, &at))
			return;
		at = from(work, work->gpa, work->last);
	}
	work->is_marked = true;
	while (next_region(work, &at))
		work->changing += mark_in_region(work, &at);
}

static void unmark_changing(const struct work *work)
{
	struct gmem_stretch at = from(work, work->gpa, work->last);

	while (work->is_marked && work->changing && next_region(work, &at))
		gmem_states_set(&at.region->states, GMEM_PAGE_CHANGING, offset_in(&at), at.size, false);
}

/* ---- the record, which readers see at once ---- */

/* Record the new or the old state of what changes in [@gpa, @last], and tell readers. */
static void record(const struct work *work, uint64_t gpa, uint64_t last, bool to_private)
{
	struct gmem_stretch at = from(work, gpa, last);
	struct gmem_part run;

	while (next_region(work, &at)) {
		for (run = before(&at); next_changing(work, &at, &run);)
			gmem_states_set(&at.region->states, GMEM_PAGE_PRIVATE, run.start,
					run.last - run.start + 1, to_private);
		gmem_vm_show_states(work->vm, at.region, at.gpa, at.size, to_private);
	}
}

/* Record that only the part in work->result, which may be empty, changed. */
static void record_result(const struct work *work, bool to_private)
{
	const struct gmem_conversion *done = &work->result;

	if (!done->size) {
		record(work, work->gpa, work->last, !to_private);
		return;
	}
	if (done->gpa > work->gpa)
		record(work, work->gpa, done->gpa - 1, !to_private);
	if (done->gpa + done->size - 1 < work->last)
		record(work, done->gpa + done->size, work->last, !to_private);
}

/* Count what changed, and forget what was pending there: the other side is in use again. */
static void settle(struct work *work)
{
	const enum gmem_counter which = work->to_private ? GMEM_COUNT_MADE_PRIVATE
							 : GMEM_COUNT_MADE_SHARED;
	struct gmem_stretch at = from(work, work->result.gpa,
				      work->result.gpa + work->result.size - 1);
	struct gmem_part run;
	uint64_t bytes, size;

	while (work->result.size && next_region(work, &at)) {
		run = before(&at);
		for (bytes = 0; next_changing(work, &at, &run); bytes += size) {
			size = run.last - run.start + 1;
			gmem_states_set(&at.region->states, GMEM_PAGE_PENDING, run.start, size, false);
		}
		gmem_region_count(at.region, which, bytes);
		if (!work->is_done)
			work->result.converted += bytes;
	}
}

/* ---- the kernel ---- */

/* Find the next run in [@at, @last], or its first MAX_RUN bytes; looks at no pages behind these. */
static bool next_changing_run(const struct work *work, uint64_t at, uint64_t last,
			      struct gmem_part *ret)
{
	uint64_t end;
	bool found;

	do {
		end = last - at < MAX_RUN ? last : at + MAX_RUN - 1;
		found = find_changing(work, at, end, ret);
		at = end + 1;
	} while (!found && end != last);
	if (!found || ret->last != end || end == last)
		return found;

	end = last - ret->start < MAX_RUN ? last : ret->start + MAX_RUN - 1;
	return find_changing(work, ret->start, end, ret);
}

/*
 * Find the next run for one ioctl. Attributes of the VM cross regions; those of a file end
 * with it.
 */
static bool next_run(const struct work *work, uint64_t at, uint64_t last, bool all,
		     struct gmem_part *ret)
{
	uint64_t end;

	if (all)
		*ret = (struct gmem_part){ at, last };
	else if (!next_changing_run(work, at, last, ret))
		return false;

	if (ret->last - ret->start >= MAX_RUN)
		ret->last = ret->start + MAX_RUN - 1;
	if (work->is_inplace) {
		end = gmem_region_last(region_at(work, ret->start));
		ret->last = end < ret->last ? end : ret->last;
	}
	return true;
}

static int set_run(struct work *work, const struct gmem_part *run, bool to_private)
{
	struct gmem_region *region = region_at(work, run->start);
	uint64_t start = 0, left_ms = 0;
	int err;

	/* In place, it waits for pinned pages as for leases. */
	if (work->opts.wait_ms && work->is_inplace) {
		start = gmem_sys_now();
		left_ms = (gmem_wait_end(work->budget, start) - start) / GMEM_NANOSECONDS_PER_MS;
	}
	work->result.ioctls++;
	gmem_region_count(region, GMEM_COUNT_CONVERT_IOCTLS, 1);
	err = gmem_region_set_private(region, run, to_private, (uint32_t)left_ms);
	if (start)
		gmem_wait_spend(work->budget, start, GMEM_WAIT_LEASES);
	return err;
}

static int set_run_insisting(struct work *work, const struct gmem_part *run, bool to_private)
{
	int err, tries = GMEM_UNDO_TRIES;

	do {
		err = set_run(work, run, to_private);
	} while (err && --tries);
	return err;
}

/*
 * Undo what was changed below @refused, lowest first. If the kernel refuses that, the rest
 * up to @refused keeps the new state. The sentence of the first refusal stays.
 */
static int undo_runs(struct work *work, uint64_t refused, int cause)
{
	struct gmem_part run = { .last = work->gpa - 1 };
	struct gmem_failure first;
	int err = 0;

	gmem_failure_keep(&first, cause);
	while (!err && run.last + 1 < refused &&
	       next_run(work, run.last + 1, refused - 1, false, &run))
		err = set_run_insisting(work, &run, !work->to_private);
	if (!err)
		return gmem_failure_restore(&first);

	work->result.gpa = run.start;
	work->result.size = refused - run.start;
	return gmem_fail(-ENOTRECOVERABLE,
			 "%s; nor is it undone: 0x%" PRIx64 " bytes at gpa 0x%" PRIx64 " are %s now: %s",
			 first.sentence, refused - run.start, run.start,
			 work->to_private ? "private" : "shared", gmem_errno_name(err));
}

static int change_kernel(struct work *work)
{
	bool all = work->opts.flags & GMEM_CONVERT_ALL;
	struct gmem_part run = { .last = work->gpa - 1 };
	int err;

	while (!work->is_done && run.last != work->last &&
	       next_run(work, run.last + 1, work->last, all, &run)) {
		err = set_run(work, &run, work->to_private);
		if (err)
			return undo_runs(work, run.start, err);
	}
	work->result.gpa = work->gpa;
	work->result.size = work->size;
	return 0;
}

/* To private, readers are told and waited for before the kernel; to shared, told after. */
static int change_state(struct work *work)
{
	int err = 0;

	if (work->to_private) {
		record(work, work->gpa, work->last, true);
		err = gmem_vm_wait_for_views(work->vm, work->budget);
	}
	if (!err)
		err = change_kernel(work);
	if (!work->to_private && work->result.size)
		record(work, work->result.gpa, work->result.gpa + work->result.size - 1, false);
	else if (work->to_private && err)
		record_result(work, true);
	settle(work);
	return err;
}

/* Count one for the VM, and one for each region that has a part in it. */
static void count_conversion(const struct work *work)
{
	struct gmem_stretch at = from(work, work->gpa, work->last);

	gmem_count(&work->vm->counters, GMEM_COUNT_CONVERSIONS, 1);
	while (next_region(work, &at))
		gmem_count(&at.region->counters, GMEM_COUNT_CONVERSIONS, 1);
}

/* ---- the other side ---- */

/* Memory that is both sides has no other side to discard. */
static bool has_other_side(const struct gmem_region *region)
{
	return gmem_region_traits(region)->has_sides && !gmem_region_is_both_sides(region);
}

static int discard_part(struct gmem_region *region, uint64_t offset, uint64_t size, bool is_private,
			uint64_t *done)
{
	/* Nobody may expect zeros of memory that was converted. */
	struct gmem_host_look look = GMEM_HOST_LOOK;
	const struct gmem_discard_how how = { GMEM_DISCARD_NOT_ZERO, &look };
	int err;

	*done = 0;
	if (!has_other_side(region))
		return 0;
	err = gmem_region_memory_discard(region, is_private ? GMEM_SIDE_SHARED : GMEM_SIDE_PRIVATE,
					 offset, size, &how, done);
	gmem_host_look_end(&look);
	return err;
}

static void defer_discard(struct work *work, uint64_t gpa)
{
	struct gmem_stretch at = from(work, gpa, work->last);

	while (next_region(work, &at)) {
		if (!has_other_side(at.region))
			continue;
		gmem_states_set(&at.region->states, GMEM_PAGE_PENDING, offset_in(&at), at.size, true);
		work->result.owed += at.size;
	}
}

/*
 * Of the first @size bytes nothing is pending any more, but for parts of huge pages, which wait
 * for the rest of them. Returns the bytes of those.
 */
static uint64_t note_discarded(struct gmem_region *region, uint64_t offset, uint64_t size,
			       bool is_private)
{
	uint32_t side = is_private ? GMEM_SIDE_SHARED : GMEM_SIDE_PRIVATE;
	uint64_t head, tail;

	if (!size || !has_other_side(region))
		return 0;
	gmem_region_memory_cut_pages(region, side, offset, size, &head, &tail);
	if (head)
		gmem_states_set(&region->states, GMEM_PAGE_PENDING, offset, head, true);
	if (tail)
		gmem_states_set(&region->states, GMEM_PAGE_PENDING, offset + size - tail, tail, true);
	if (head + tail < size)
		gmem_states_set(&region->states, GMEM_PAGE_PENDING, offset + head, size - head - tail,
				false);
	return head + tail;
}

/* A refusal leaves the rest pending: the conversion itself is done. */
static void discard(struct work *work)
{
	struct gmem_stretch at = from(work, work->gpa, work->last);
	uint64_t done;
	int err;

	while (next_region(work, &at)) {
		err = discard_part(at.region, offset_in(&at), at.size, work->to_private, &done);
		work->result.discarded += done;
		work->result.owed += note_discarded(at.region, offset_in(&at), err ? done : at.size,
						    work->to_private);
		if (err) {
			gmem_vm_log_error(work->vm, err);
			defer_discard(work, at.gpa + done);
			return;
		}
	}
}

static void let_go_of_other_side(struct work *work)
{
	if (work->opts.discard == GMEM_DISCARD_NOW)
		discard(work);
	else if (work->opts.discard == GMEM_DISCARD_LATER)
		defer_discard(work, work->gpa);
}

/* ---- listeners ---- */

/*
 * Tell listeners which runs did not become private, or are shared now, if only because
 * the kernel refused the undo.
 */
static void tell_listeners(const struct work *work, int err)
{
	const struct gmem_conversion *done = &work->result;
	uint64_t end = done->gpa + done->size;
	struct gmem_failure failure;

	if (!gmem_listeners_are_there(work->vm))
		return;

	gmem_failure_keep(&failure, err);
	if (!work->to_private) {
		if (done->size)
			gmem_listeners_shared(&work->claim, done->gpa, end - 1);
	} else if (!done->size) {
		gmem_listeners_undo(&work->claim, work->gpa, work->last);
	} else {
		if (done->gpa > work->gpa)
			gmem_listeners_undo(&work->claim, work->gpa, done->gpa - 1);
		if (end - 1 < work->last)
			gmem_listeners_undo(&work->claim, end, work->last);
	}
	gmem_failure_restore(&failure);
}

/* ---- the whole conversion ---- */

/* What is read there is not what it was, perhaps also after a refusal that was undone. */
static void mark_dirty(const struct work *work)
{
	struct gmem_part run = { .last = work->gpa - 1 };

	while (gmem_vm_is_tracked(work->vm) && run.last != work->last &&
	       find_changing(work, run.last + 1, work->last, &run))
		gmem_vm_mark_dirty(work->vm, run.start, run.last - run.start + 1);
}

static int convert_claimed(struct work *work)
{
	int err = 0;

	mark_changing(work);
	if (!work->changing && !(work->opts.flags & GMEM_CONVERT_ALL))
		return 0;

	if (work->to_private)
		err = gmem_listeners_ask(&work->claim, work->gpa, work->last);
	if (!err) {
		err = change_state(work);
		if (!err && !work->is_done) {
			count_conversion(work);
			let_go_of_other_side(work);
		}
		mark_dirty(work);
		tell_listeners(work, err);
	}
	unmark_changing(work);
	if (!work->to_private || err)
		gmem_listeners_settled(&work->claim, work->gpa, work->last);
	return err;
}

static int convert(struct work *work)
{
	struct gmem_vm *vm = work->vm;
	int err;

	work->claim = (struct gmem_claim){
		.gpa = work->gpa,
		.size = work->size,
		.mode = GMEM_CLAIM_EXCLUSIVE,
		.allows_leases = !work->to_private,
		.discards = work->to_private,
		.purpose = "converted to private",
	};
	gmem_lock_take(&vm->lock);
	err = gmem_claim_take(vm, &work->claim, work->budget);
	if (err)
		goto unlock;

	err = check_coverage(work);
	if (!err) {
		gmem_lock_drop(&vm->lock);
		err = convert_claimed(work);
		gmem_lock_take(&vm->lock);
	}
	gmem_claim_drop(vm, &work->claim);
unlock:
	gmem_lock_drop(&vm->lock);
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

int gmem_convert_within(struct gmem_vm *vm, uint64_t gpa, uint64_t size, uint32_t state,
			const struct gmem_convert_opts *opts, struct gmem_wait_budget *budget,
			struct gmem_conversion *ret)
{
	struct gmem_wait_budget own;
	struct work work = {
		.vm = vm,
		.budget = budget ? budget : &own,
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
	own = gmem_vm_budget(vm, work.opts.wait_ms);
	if (!err)
		err = convert(&work);
	if (ret)
		*ret = work.result;
	GMEM_PROBE(convert, gmem_vm_number(vm), gpa, size, state, work.result.converted, err);
	return gmem_vm_log_error(vm, err);
}

GMEM_API int gmem_vm_convert(struct gmem_vm *vm, uint64_t gpa, uint64_t size, uint32_t state,
			     const struct gmem_convert_opts *opts, struct gmem_conversion *ret)
{
	return gmem_convert_within(vm, gpa, size, state, opts, NULL, ret);
}

GMEM_API int gmem_vm_adopt_private(struct gmem_vm *vm, uint64_t gpa, uint64_t size)
{
	struct gmem_wait_budget budget;
	struct work work = {
		.vm = vm,
		.budget = &budget,
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

	budget = gmem_vm_budget(vm, 0);
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

/*
 * Find something pending at or above *@gpa, of one region and one piece at most: looks at no
 * more than MAX_RUN bytes, which end below the new *@gpa. Returns false if no region is left.
 * With the lock held.
 */
static bool look_for_pending(const struct gmem_vm *vm, uint64_t *gpa, struct gmem_part *ret)
{
	const struct gmem_region *region = gmem_regions_next(vm, *gpa, UINT64_MAX - 1);
	uint64_t start, offset, last;

	ret->start = ret->last = *gpa;
	if (!region)
		return false;

	start = region->gpa.start;
	offset = start > *gpa ? 0 : *gpa - start;
	last = region->gpa.size - 1;
	if (!gmem_states_total(&region->states, GMEM_PAGE_PENDING)) {
		*gpa = start + last + 1;
		return true;
	}
	last = offset - 1 + gmem_region_memory_piece(region, offset, last - offset + 1, MAX_RUN);
	*gpa = start + last + 1;
	if (!gmem_states_find(&region->states, GMEM_PAGE_PENDING, true, offset, last, ret)) {
		ret->start = ret->last = *gpa;
		return true;
	}
	ret->last = ret->start - 1 + gmem_region_memory_piece(region, ret->start,
							      ret->last - ret->start + 1, PENDING_PIECE);
	ret->start += start;
	ret->last += start;
	*gpa = ret->last + 1;
	return true;
}

/* Discard what is pending of a claimed part: pages of one state at a time. */
static int discard_pending(struct gmem_vm *vm, const struct gmem_part *claimed, uint64_t *total)
{
	struct gmem_part part = { .last = claimed->start - 1 };
	struct gmem_stretch at;
	uint64_t done;
	int err = 0;

	while (!err && part.last != claimed->last &&
	       gmem_state_find(vm, GMEM_PAGE_PENDING, true, part.last + 1, claimed->last, &part)) {
		at = (struct gmem_stretch)GMEM_REGIONS_WALK(vm, part.start, part.last);
		gmem_lock_take(&vm->lock);
		gmem_regions_walk(&at);
		gmem_lock_drop(&vm->lock);
		part.last = at.gpa + at.size - 1;

		err = discard_part(at.region, offset_in(&at), at.size, at.is_private, &done);
		*total += done;
		note_discarded(at.region, offset_in(&at), err ? done : at.size, at.is_private);
	}
	return err;
}

static int discard_piece(struct gmem_vm *vm, const struct gmem_part *part,
			 struct gmem_wait_budget *budget, uint64_t *total)
{
	struct gmem_claim claim = {
		.gpa = part->start,
		.size = part->last - part->start + 1,
		.mode = GMEM_CLAIM_EXCLUSIVE,
		.allows_leases = true,
	};
	int err;

	gmem_lock_take(&vm->lock);
	err = gmem_claim_take(vm, &claim, budget);
	gmem_lock_drop(&vm->lock);
	if (err)
		return err;

	err = discard_pending(vm, part, total);

	gmem_lock_take(&vm->lock);
	gmem_claim_drop(vm, &claim);
	gmem_lock_drop(&vm->lock);
	return err;
}

static int discard_all_pending(struct gmem_vm *vm, uint64_t *total)
{
	struct gmem_wait_budget budget = gmem_vm_budget(vm, 0);
	struct gmem_part part;
	uint64_t gpa = 0;
	bool more = true;
	int err = 0;

	while (more && !err) {
		gmem_lock_take(&vm->lock);
		more = look_for_pending(vm, &gpa, &part);
		gmem_lock_drop(&vm->lock);
		if (part.start < part.last)
			err = discard_piece(vm, &part, &budget, total);
	}
	return err;
}

GMEM_API int gmem_vm_discard_owed(struct gmem_vm *vm, uint64_t *ret_done)
{
	uint64_t total = 0;
	int err;

	if (!vm)
		return gmem_fail(-EINVAL, "vm is NULL");

	err = discard_all_pending(vm, &total);
	if (ret_done)
		*ret_done = total;
	return gmem_vm_log_error(vm, err);
}
