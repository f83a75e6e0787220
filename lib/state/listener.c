/* SPDX-License-Identifier: MIT */
/*
 * Work goes through the list without a lock. Each listener hears a conversion from its
 * beginning to its end or not at all: work has a number (state/claim.h), and a listener hears
 * of what begins after it came and before it ended.
 *
 *	came    in the list; work that had begun is waited for, since it does not know the listener
 *	ended   later work does not call it; waits for earlier work, which may
 *	out     off the list; work that is just looking at it goes on from there
 *	freed   once that work has ended, too: by the next who comes or ends
 *
 * So coming and ending wait for what is under way, not for what waits, and hold up nobody.
 *
 * A callback cannot wait for work. A listener that is ended there is not called any more.
 */
#include "state/listener.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/lock.h"
#include "base/opts.h"
#include "base/part.h"
#include "base/wait_budget.h"
#include "region/page_states.h"
#include "region/region_info.h"
#include "region/regions.h"
#include "state/private_state.h"

struct gmem_listener {
	/* written with the VM's lock, read by work without */
	struct gmem_listener *previous;
	struct gmem_listener *next;
	uint64_t last_work;		/* that it hears of; UINT64_MAX: it has not ended */
	int is_over;			/* ended inside a callback: nothing is called any more */

	struct gmem_listener *next_old;	/* off the list */
	struct gmem_vm *vm;
	struct gmem_listener_opts opts;
	uint64_t last_unheard;		/* number of the work before the first that it hears of */
	gmem_listener_fn settled;	/* or NULL */
	char name[64];
};

/* Pairs with set_link(): what is found is complete. */
static struct gmem_listener *follow(struct gmem_listener *const *link)
{
	return __atomic_load_n(link, __ATOMIC_ACQUIRE);
}

static void set_link(struct gmem_listener **link, struct gmem_listener *listener)
{
	__atomic_store_n(link, listener, __ATOMIC_RELEASE);
}

/* ---- who hears of what ---- */

static bool hears(const struct gmem_listener *listener, uint64_t work)
{
	/* Ended since this work began: it was numbered before, so both answers are the same. */
	return listener->last_unheard < work &&
	       work <= __atomic_load_n(&listener->last_work, __ATOMIC_RELAXED);
}

static bool is_over(const struct gmem_listener *listener)
{
	/* Orders nothing: calls under way in other threads are not waited for. */
	return __atomic_load_n(&listener->is_over, __ATOMIC_RELAXED);
}

/* The first that hears of the work, from @listener on */
static const struct gmem_listener *forward(const struct gmem_listener *listener, uint64_t work)
{
	while (listener && !hears(listener, work))
		listener = follow(&listener->next);
	return listener;
}

static const struct gmem_listener *backward(const struct gmem_listener *listener, uint64_t work)
{
	while (listener && !hears(listener, work))
		listener = follow(&listener->previous);
	return listener;
}

static const struct gmem_listener *first(const struct gmem_claim *claim)
{
	return forward(follow(&claim->vm->listeners), claim->began);
}

static const struct gmem_listener *after(const struct gmem_listener *listener,
					 const struct gmem_claim *claim)
{
	return forward(follow(&listener->next), claim->began);
}

static const struct gmem_listener *before(const struct gmem_listener *listener,
					  const struct gmem_claim *claim)
{
	return backward(follow(&listener->previous), claim->began);
}

static const struct gmem_listener *last_of(const struct gmem_claim *claim)
{
	const struct gmem_listener *last = NULL, *listener;

	for (listener = first(claim); listener; listener = after(listener, claim))
		last = listener;
	return last;
}

/* ---- telling ---- */

/* Tell one listener the runs that lie in [@gpa, @last]. */
static void tell(const struct gmem_listener *listener, gmem_listener_fn fn, uint64_t gpa,
		 uint64_t last)
{
	struct gmem_part run = { .last = gpa - 1 };

	while (fn && run.last != last && !is_over(listener) &&
	       gmem_state_find(listener->vm, GMEM_PAGE_CHANGING, true, run.last + 1, last, &run))
		fn(listener->opts.data, run.start, run.last - run.start + 1);
}

/* With the listener's own reason, if it has one: its sentence then is not the one of before. */
static int fail_refused(const struct gmem_listener *listener, const struct gmem_part *run,
			const char *what, int err, const struct gmem_failure *before)
{
	struct gmem_failure reason;
	bool has_reason;

	gmem_failure_keep(&reason, err);
	has_reason = gmem_error_of_sentence() == err && strcmp(reason.sentence, before->sentence) != 0;
	return gmem_fail(err, "\"%s\" refuses that gpa 0x%" PRIx64 ", 0x%" PRIx64
			 " bytes, %s: %s%s%s", listener->name, run->start, run->last - run->start + 1,
			 what, gmem_errno_name(err), has_reason ? ": " : "",
			 has_reason ? reason.sentence : "");
}

/* Ask one listener about all runs. @ret: the run that it refuses. */
static int ask(const struct gmem_listener *listener, uint64_t gpa, uint64_t last,
	       struct gmem_part *ret)
{
	struct gmem_part run = { .last = gpa - 1 };
	struct gmem_failure before;
	int err = 0;

	while (listener->opts.before_private && run.last != last && !is_over(listener) &&
	       gmem_state_find(listener->vm, GMEM_PAGE_CHANGING, true, run.last + 1, last, &run)) {
		gmem_failure_keep(&before, 0);
		err = listener->opts.before_private(listener->opts.data, run.start,
						    run.last - run.start + 1);
		if (err < 0) {
			*ret = run;
			return fail_refused(listener, &run, "becomes private", err, &before);
		}
	}
	return 0;
}

int gmem_listeners_ask(const struct gmem_claim *claim, uint64_t gpa, uint64_t last)
{
	const struct gmem_listener *listener;
	struct gmem_part refused;
	struct gmem_failure failure;
	int err;

	for (listener = first(claim); listener; listener = after(listener, claim)) {
		err = ask(listener, gpa, last, &refused);
		if (!err)
			continue;

		/*
		 * Listeners that agreed are told to undo it, last first. That may fail
		 * and change the sentence.
		 */
		gmem_failure_keep(&failure, err);
		if (refused.start > gpa)
			tell(listener, listener->opts.undo_private, gpa, refused.start - 1);
		while ((listener = before(listener, claim)))
			tell(listener, listener->opts.undo_private, gpa, last);
		return gmem_failure_restore(&failure);
	}
	return 0;
}

void gmem_listeners_undo(const struct gmem_claim *claim, uint64_t gpa, uint64_t last)
{
	const struct gmem_listener *listener;

	for (listener = last_of(claim); listener; listener = before(listener, claim))
		tell(listener, listener->opts.undo_private, gpa, last);
}

void gmem_listeners_shared(const struct gmem_claim *claim, uint64_t gpa, uint64_t last)
{
	const struct gmem_listener *listener;

	for (listener = first(claim); listener; listener = after(listener, claim))
		tell(listener, listener->opts.after_shared, gpa, last);
}

void gmem_listeners_settled(const struct gmem_claim *claim, uint64_t gpa, uint64_t last)
{
	const struct gmem_listener *listener;

	for (listener = first(claim); listener; listener = after(listener, claim))
		if (listener->settled && !is_over(listener))
			listener->settled(listener->opts.data, gpa, last - gpa + 1);
}

/* ---- regions ---- */

/* Tell one listener each shared part of a region: what is private is none of a device's. */
static void tell_added(const struct gmem_listener *listener, const struct gmem_region_info *region)
{
	const struct gmem_states *states = &region->region->states;
	struct gmem_states_walk at = GMEM_STATES_WALK(states, GMEM_PAGE_PRIVATE, false, 0, region->size);
	const gmem_listener_region_fn fn = listener->opts.region_added;

	while (fn && !is_over(listener) && gmem_states_walk(&at))
		fn(listener->opts.data, region, region->gpa + at.offset, at.size);
}

static void tell_moved(const struct gmem_listener *listener, const struct gmem_region_info *before,
		       const struct gmem_region_info *now)
{
	if (listener->opts.region_moved && !is_over(listener))
		listener->opts.region_moved(listener->opts.data, now, before->gpa, before->size);
}

static void tell_removed(const struct gmem_listener *listener, const struct gmem_region_info *region)
{
	if (listener->opts.removed && !is_over(listener))
		listener->opts.removed(listener->opts.data, region->gpa, region->size);
}

static void tell_region_removed(const struct gmem_listener *listener,
				const struct gmem_region_info *region)
{
	if (listener->opts.region_removed && !is_over(listener))
		listener->opts.region_removed(listener->opts.data, region, region->gpa, region->size);
}

/* The layout's hook lock is held: callbacks may take others of its rank and below. */

void gmem_listeners_removed(const struct gmem_claim *claim, const struct gmem_region_info *before,
			    bool has_moved)
{
	const struct gmem_listener *listener;
	struct gmem_locks_aside aside;

	gmem_locks_set_aside(&aside);
	for (listener = first(claim); listener; listener = after(listener, claim)) {
		tell_removed(listener, before);
		if (!has_moved || !listener->opts.region_moved)
			tell_region_removed(listener, before);
	}
	gmem_locks_restore(&aside);
}

void gmem_listeners_moved(const struct gmem_claim *claim, const struct gmem_region_info *before,
			  const struct gmem_region_info *now)
{
	const struct gmem_listener *listener;
	struct gmem_locks_aside aside;

	gmem_locks_set_aside(&aside);
	for (listener = first(claim); listener; listener = after(listener, claim))
		tell_moved(listener, before, now);
	gmem_locks_restore(&aside);
}

void gmem_listeners_added(const struct gmem_claim *claim, const struct gmem_region_info *now,
			  bool has_moved)
{
	const struct gmem_listener *listener;
	struct gmem_locks_aside aside;

	gmem_locks_set_aside(&aside);
	for (listener = first(claim); listener; listener = after(listener, claim))
		if (!has_moved || !listener->opts.region_moved)
			tell_added(listener, now);
	gmem_locks_restore(&aside);
}

/* ---- memory that goes and comes ---- */

static int ask_discard(const struct gmem_listener *listener, const struct gmem_listener_part *part)
{
	const struct gmem_part run = { part->gpa, part->gpa + part->size - 1 };
	struct gmem_failure before;
	int err;

	if (!listener->opts.before_discard || is_over(listener))
		return 0;
	gmem_failure_keep(&before, 0);
	err = listener->opts.before_discard(listener->opts.data, part->region, part->gpa, part->size);
	return err < 0 ? fail_refused(listener, &run, "is discarded", err, &before) : 0;
}

static void tell_part(const struct gmem_listener *listener, gmem_listener_region_fn fn,
		      const struct gmem_listener_part *part)
{
	if (fn && !is_over(listener))
		fn(listener->opts.data, part->region, part->gpa, part->size);
}

int gmem_listeners_ask_discard(const struct gmem_claim *claim, const struct gmem_listener_part *part)
{
	const struct gmem_listener *listener;
	struct gmem_failure failure;
	int err;

	for (listener = first(claim); listener; listener = after(listener, claim)) {
		err = ask_discard(listener, part);
		if (!err)
			continue;

		gmem_failure_keep(&failure, err);
		while ((listener = before(listener, claim)))
			tell_part(listener, listener->opts.undo_discard, part);
		return gmem_failure_restore(&failure);
	}
	return 0;
}

void gmem_listeners_undo_discard(const struct gmem_claim *claim, const struct gmem_listener_part *part)
{
	const struct gmem_listener *listener;

	for (listener = last_of(claim); listener; listener = before(listener, claim))
		tell_part(listener, listener->opts.undo_discard, part);
}

void gmem_listeners_populated(const struct gmem_claim *claim, const struct gmem_listener_part *part)
{
	const struct gmem_listener *listener;

	for (listener = first(claim); listener; listener = after(listener, claim))
		tell_part(listener, listener->opts.populated, part);
}

/* ---- the list ---- */

/* With the VM's lock, as all below that take no VM */

static void append(struct gmem_listener *listener)
{
	struct gmem_vm *vm = listener->vm;
	struct gmem_listener **link = &vm->listeners;

	while (*link) {
		listener->previous = *link;
		link = &(*link)->next;
	}
	listener->last_unheard = gmem_claim_latest_work(vm);
	listener->last_work = UINT64_MAX;
	set_link(link, listener);
}

static void end(struct gmem_listener *listener, bool at_once)
{
	__atomic_store_n(&listener->last_work, gmem_claim_latest_work(listener->vm), __ATOMIC_RELAXED);
	if (at_once)
		__atomic_store_n(&listener->is_over, 1, __ATOMIC_RELAXED);
}

/* Its own links stay, for work that is just looking at it. */
static void take_out(struct gmem_listener *listener)
{
	struct gmem_vm *vm = listener->vm;

	set_link(listener->previous ? &listener->previous->next : &vm->listeners, listener->next);
	if (listener->next)
		set_link(&listener->next->previous, listener->previous);
	listener->next_old = vm->old_listeners;
	vm->old_listeners = listener;
}

/* Take those out that no work after number @work hears of. */
static void take_out_ended(struct gmem_vm *vm, uint64_t work)
{
	struct gmem_listener *listener, *next;

	for (listener = vm->listeners; listener; listener = next) {
		next = listener->next;
		if (listener->last_work <= work)
			take_out(listener);
	}
}

static void free_old(struct gmem_listener *listener)
{
	struct gmem_listener *next;

	for (; listener; listener = next) {
		next = listener->next_old;
		free(listener);
	}
}

/* Wait for the work that is under way, and tidy up behind it. */
static void wait_for_work(struct gmem_vm *vm)
{
	struct gmem_listener *old = vm->old_listeners;
	uint64_t latest = gmem_claim_latest_work(vm);

	vm->old_listeners = NULL;
	gmem_claims_wait_for_work(vm, latest);
	free_old(old);
	take_out_ended(vm, latest);
}

void gmem_listeners_sweep(struct gmem_vm *vm)
{
	take_out_ended(vm, UINT64_MAX - 1);
	free_old(vm->old_listeners);
}

/*
 * Tell a listener that comes the layout, with a claim on all of it: no work is under way, and
 * what begins later knows the listener. So there is nothing between what it is told here and
 * the first change that it hears of, and nothing twice.
 */
static void tell_layout(struct gmem_listener *listener)
{
	struct gmem_stretch at = GMEM_REGIONS_WALK(listener->vm, 0, UINT64_MAX);
	struct gmem_region_info region;

	while (gmem_state_next_region(listener->vm, &at)) {
		if (!at.region || at.region->is_device)
			continue;
		gmem_region_fill_info(at.region, &region);
		tell_added(listener, &region);
	}
}

static int join_with_layout(struct gmem_listener *listener)
{
	struct gmem_vm *vm = listener->vm;
	struct gmem_wait_budget budget = gmem_vm_budget(vm, 0);
	struct gmem_claim claim = {
		.size = UINT64_MAX,
		.mode = GMEM_CLAIM_EXCLUSIVE,
		.allows_leases = true,
	};
	int err;

	gmem_lock_take(&vm->lock);
	err = gmem_claim_take(vm, &claim, &budget);
	if (!err)
		append(listener);
	gmem_lock_drop(&vm->lock);
	if (err)
		return err;

	tell_layout(listener);

	gmem_lock_take(&vm->lock);
	gmem_claim_drop(vm, &claim);
	gmem_lock_drop(&vm->lock);
	return 0;
}

static int join(struct gmem_listener *listener)
{
	struct gmem_vm *vm = listener->vm;

	gmem_lock_take(&vm->lock);
	append(listener);
	wait_for_work(vm);
	gmem_lock_drop(&vm->lock);
	return 0;
}

static int set_up(struct gmem_listener *listener, struct gmem_vm *vm,
		  const struct gmem_listener_opts *opts, gmem_listener_fn settled)
{
	int err;

	err = GMEM_COPY_OPTS(gmem_listener_opts, &listener->opts, opts, removed);
	if (err)
		return err;

	listener->vm = vm;
	listener->settled = settled;
	snprintf(listener->name, sizeof(listener->name), "%s",
		 listener->opts.name ? listener->opts.name : "unnamed");
	return 0;
}

int gmem_listener_add(struct gmem_vm *vm, const struct gmem_listener_opts *opts,
		      gmem_listener_fn settled, struct gmem_listener **ret)
{
	struct gmem_listener *listener, *untouched;
	int err;

	if (!vm || !ret)
		return gmem_fail(-EINVAL, "%s is NULL", vm ? "ret" : "vm");
	err = gmem_claim_check_not_owner(vm);
	if (err)
		return err;

	listener = calloc(1, sizeof(*listener));
	if (!listener)
		return gmem_fail(-ENOMEM, "no memory for a listener");
	gmem_vm_ref(vm);

	/* Callbacks may need it. */
	untouched = *ret;
	*ret = listener;
	err = set_up(listener, vm, opts, settled);
	if (!err)
		err = listener->opts.region_added ? join_with_layout(listener) : join(listener);
	if (err) {
		*ret = untouched;
		free(listener);
		gmem_vm_unref(vm);
	}
	return err;
}

GMEM_API int gmem_listener_new(struct gmem_vm *vm, const struct gmem_listener_opts *opts,
			       struct gmem_listener **ret)
{
	return gmem_listener_add(vm, opts, NULL, ret);
}

GMEM_API void gmem_listener_free(struct gmem_listener *listener)
{
	bool is_in_callback;
	struct gmem_vm *vm;

	if (!listener)
		return;

	vm = listener->vm;
	is_in_callback = gmem_claim_check_not_owner(vm) != 0;
	gmem_lock_take(&vm->lock);
	end(listener, is_in_callback);
	if (!is_in_callback)
		wait_for_work(vm);
	gmem_lock_drop(&vm->lock);
	gmem_vm_unref(vm);
}
