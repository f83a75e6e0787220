/* SPDX-License-Identifier: MIT */
/*
 * The list changes only with an exclusive claim on everything: while nobody converts and
 * nothing is removed. So conversions and removals, which have claims, go through it without
 * a lock and at the same time, and each listener hears a conversion from its beginning to
 * its end or not at all.
 *
 * A callback cannot wait for such a claim. A listener that is freed there stays in the list,
 * is not called any more, and goes with the next change of the list.
 */
#include "state/listener.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/error.h"
#include "base/lock.h"
#include "base/opts.h"
#include "base/range_set.h"
#include "region/page_states.h"
#include "state/claim.h"
#include "state/private_state.h"

struct gmem_listener {
	struct gmem_listener *previous;
	struct gmem_listener *next;
	struct gmem_vm *vm;
	struct gmem_listener_opts opts;
	gmem_listener_fn settled;	/* or NULL */
	int is_over;		/* freed inside a callback; atomic */
	char name[64];
};

static bool is_over(const struct gmem_listener *listener)
{
	/* Orders nothing: calls under way in other threads are not waited for. */
	return __atomic_load_n(&listener->is_over, __ATOMIC_RELAXED);
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

/* Ask one listener about all runs. @ret: the run that it refuses. */
static int ask(const struct gmem_listener *listener, uint64_t gpa, uint64_t last,
	       struct gmem_part *ret)
{
	struct gmem_part run = { .last = gpa - 1 };
	int err = 0;

	while (listener->opts.before_private && run.last != last && !is_over(listener) &&
	       gmem_state_find(listener->vm, GMEM_PAGE_CHANGING, true, run.last + 1, last, &run)) {
		err = listener->opts.before_private(listener->opts.data, run.start,
						    run.last - run.start + 1);
		if (err < 0) {
			*ret = run;
			return gmem_fail(err,
					 "\"%s\" refuses that gpa 0x%" PRIx64 ", 0x%" PRIx64
					 " bytes, becomes private: %s", listener->name, run.start,
					 run.last - run.start + 1, gmem_errno_name(err));
		}
	}
	return 0;
}

int gmem_listeners_ask(const struct gmem_vm *vm, uint64_t gpa, uint64_t last)
{
	const struct gmem_listener *listener;
	struct gmem_part refused;
	struct gmem_failure failure;
	int err;

	for (listener = vm->listeners; listener; listener = listener->next) {
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
		for (listener = listener->previous; listener; listener = listener->previous)
			tell(listener, listener->opts.undo_private, gpa, last);
		return gmem_failure_restore(&failure);
	}
	return 0;
}

void gmem_listeners_undo(const struct gmem_vm *vm, uint64_t gpa, uint64_t last)
{
	const struct gmem_listener *listener = vm->listeners;

	while (listener && listener->next)
		listener = listener->next;
	for (; listener; listener = listener->previous)
		tell(listener, listener->opts.undo_private, gpa, last);
}

void gmem_listeners_shared(const struct gmem_vm *vm, uint64_t gpa, uint64_t last)
{
	const struct gmem_listener *listener;

	for (listener = vm->listeners; listener; listener = listener->next)
		tell(listener, listener->opts.after_shared, gpa, last);
}

void gmem_listeners_settled(const struct gmem_vm *vm, uint64_t gpa, uint64_t last)
{
	const struct gmem_listener *listener;

	for (listener = vm->listeners; listener; listener = listener->next)
		if (listener->settled && !is_over(listener))
			listener->settled(listener->opts.data, gpa, last - gpa + 1);
}

void gmem_listeners_removed(const struct gmem_vm *vm, uint64_t gpa, uint64_t size)
{
	const struct gmem_listener *listener;
	struct gmem_locks_aside aside;

	gmem_locks_set_aside(&aside);
	for (listener = vm->listeners; listener; listener = listener->next)
		if (listener->opts.removed && !is_over(listener))
			listener->opts.removed(listener->opts.data, gpa, size);
	gmem_locks_restore(&aside);
}

/* ---- the list ---- */

/*
 * Claim all addresses: claims that came before are over, those that come later wait.
 * -EDEADLK in a callback
 */
static int stop_all(struct gmem_vm *vm, struct gmem_claim *all)
{
	int err;

	*all = (struct gmem_claim){
		.size = UINT64_MAX,
		.mode = GMEM_CLAIM_EXCLUSIVE,
		.allows_leases = true,
	};
	gmem_lock_take(&vm->lock);
	err = gmem_claim_take(vm, all, 0);
	gmem_lock_drop(&vm->lock);
	return err;
}

static void go_on(struct gmem_vm *vm, struct gmem_claim *all)
{
	gmem_lock_take(&vm->lock);
	gmem_claim_drop(vm, all);
	gmem_lock_drop(&vm->lock);
}

static void unlink_listener(struct gmem_listener *listener)
{
	if (listener->previous)
		listener->previous->next = listener->next;
	else
		listener->vm->listeners = listener->next;
	if (listener->next)
		listener->next->previous = listener->previous;
	free(listener);
}

void gmem_listeners_sweep(struct gmem_vm *vm)
{
	struct gmem_listener *listener, *next;

	for (listener = vm->listeners; listener; listener = next) {
		next = listener->next;
		if (is_over(listener))
			unlink_listener(listener);
	}
}

static void append(struct gmem_listener *listener)
{
	struct gmem_listener **link = &listener->vm->listeners;

	while (*link) {
		listener->previous = *link;
		link = &(*link)->next;
	}
	*link = listener;
}

int gmem_listener_add(struct gmem_vm *vm, const struct gmem_listener_opts *opts,
		      gmem_listener_fn settled, struct gmem_listener **ret)
{
	struct gmem_listener *listener;
	struct gmem_claim all;
	int err;

	if (!vm || !ret)
		return gmem_fail(-EINVAL, "%s is NULL", vm ? "ret" : "vm");

	listener = calloc(1, sizeof(*listener));
	if (!listener)
		return gmem_fail(-ENOMEM, "no memory for a listener");

	err = GMEM_COPY_OPTS(gmem_listener_opts, &listener->opts, opts, removed);
	if (err) {
		free(listener);
		return err;
	}
	listener->vm = vm;
	listener->settled = settled;
	snprintf(listener->name, sizeof(listener->name), "%s",
		 listener->opts.name ? listener->opts.name : "unnamed");

	err = stop_all(vm, &all);
	if (err) {
		free(listener);
		return err;
	}
	gmem_listeners_sweep(vm);
	append(listener);
	go_on(vm, &all);
	*ret = listener;
	return 0;
}

GMEM_API int gmem_listener_new(struct gmem_vm *vm, const struct gmem_listener_opts *opts,
			       struct gmem_listener **ret)
{
	return gmem_listener_add(vm, opts, NULL, ret);
}

GMEM_API void gmem_listener_free(struct gmem_listener *listener)
{
	struct gmem_claim all;
	struct gmem_vm *vm;

	if (!listener)
		return;

	vm = listener->vm;
	if (stop_all(vm, &all)) {
		__atomic_store_n(&listener->is_over, 1, __ATOMIC_RELAXED);
		return;
	}
	unlink_listener(listener);
	gmem_listeners_sweep(vm);
	go_on(vm, &all);
}
