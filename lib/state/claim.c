/* SPDX-License-Identifier: MIT */
/*
 * A claim that must wait hangs on one earlier claim that is in its way, its blocker, though
 * there may be more. When that one is dropped it looks for the next, and is woken only if
 * there is none. So a thousand claims on one page form a chain, and each drop wakes one.
 */
#include "state/claim.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>

#include "base/error.h"
#include "base/lock.h"
#include "base/macros.h"
#include "os/sys.h"

/* The claims that this thread has; its address tells threads apart */
static __thread struct gmem_claim *own;

/* A thread that waits for its turn */
struct gmem_claim_wait {
	struct gmem_claim *claims;
	size_t count;
	size_t blocked;			/* of them */
	pthread_cond_t turn;
	struct gmem_claim_wait *next;	/* in find_circle() */
	uint64_t seen;			/* order of the claims that looked at it last */
};

static struct gmem_claim *claim_of(struct gmem_interval *at)
{
	return at ? GMEM_CONTAINER_OF(at, struct gmem_claim, at) : NULL;
}

/* ---- the queue ---- */

/* An earlier claim that is in the way, preferably the latest of them, or NULL */
static struct gmem_claim *find_blocker(const struct gmem_vm *vm, const struct gmem_claim *claim)
{
	const struct gmem_interval *at = &claim->at;
	struct gmem_interval *found;

	found = gmem_interval_find_earlier(&vm->claims[GMEM_CLAIM_EXCLUSIVE], at->start, at->last,
					   at->order);
	if (!found && claim->mode == GMEM_CLAIM_EXCLUSIVE)
		found = gmem_interval_find_earlier(&vm->claims[GMEM_CLAIM_SHARED], at->start, at->last,
						   at->order);
	return claim_of(found);
}

static void hang_on_blocker(const struct gmem_vm *vm, struct gmem_claim *claim)
{
	struct gmem_claim *blocker = find_blocker(vm, claim);

	claim->blocker = blocker;
	if (!blocker)
		return;
	claim->next_waiter = blocker->waiters;
	claim->waiter_link = &blocker->waiters;
	if (claim->next_waiter)
		claim->next_waiter->waiter_link = &claim->next_waiter;
	blocker->waiters = claim;
}

static void unhang(struct gmem_claim *claim)
{
	*claim->waiter_link = claim->next_waiter;
	if (claim->next_waiter)
		claim->next_waiter->waiter_link = claim->waiter_link;
	claim->blocker = NULL;
}

static void become_owner(struct gmem_claim *claim)
{
	claim->owner = &own;
	claim->next_own = own;
	claim->own_link = &own;
	if (own)
		own->own_link = &claim->next_own;
	own = claim;
}

static void append(struct gmem_vm *vm, struct gmem_claim *claim, uint64_t order)
{
	claim->at.start = claim->gpa;
	claim->at.last = claim->gpa + claim->size - 1;
	claim->at.order = order;
	claim->vm = vm;
	claim->waiters = NULL;
	claim->wait = NULL;
	hang_on_blocker(vm, claim);
	gmem_interval_insert(&vm->claims[claim->mode], &claim->at);
	become_owner(claim);
	claim->has_bar = claim->mode == GMEM_CLAIM_EXCLUSIVE && !claim->allows_leases;
	if (claim->has_bar)
		gmem_lease_bar_begin(vm, &claim->bar, claim->gpa, claim->size, claim->purpose);
}

static void take_out(struct gmem_vm *vm, struct gmem_claim *claim)
{
	if (claim->has_bar)
		gmem_lease_bar_end(vm, &claim->bar);
	gmem_interval_remove(&vm->claims[claim->mode], &claim->at);
	*claim->own_link = claim->next_own;
	if (claim->next_own)
		claim->next_own->own_link = claim->own_link;
	if (claim->blocker)
		unhang(claim);
}

/* Its blocker is gone: find another one, or it is its turn. */
static void go_on(struct gmem_vm *vm, struct gmem_claim *claim)
{
	unhang(claim);
	hang_on_blocker(vm, claim);
	if (!claim->blocker && --claim->wait->blocked == 0)
		pthread_cond_signal(&claim->wait->turn);
}

void gmem_claims_drop(struct gmem_vm *vm, struct gmem_claim *claims, size_t count)
{
	/* All first, so that nobody hangs on one that is dropped next. */
	for (size_t i = 0; i < count; i++)
		take_out(vm, &claims[i]);
	for (size_t i = 0; i < count; i++)
		while (claims[i].waiters)
			go_on(vm, claims[i].waiters);
}

/* ---- circles ---- */

/* The next claim, of either mode, that @claim waits for after @previous or from the start */
static struct gmem_claim *next_obstacle(const struct gmem_vm *vm, const struct gmem_claim *claim,
					struct gmem_claim *previous)
{
	const struct gmem_interval *from = previous ? &previous->at : NULL;
	unsigned int mode = previous ? previous->mode : GMEM_CLAIM_EXCLUSIVE;
	struct gmem_interval *found;

	do {
		found = gmem_interval_find_next(&vm->claims[mode], from, claim->at.start,
						claim->at.last);
		from = found;
		if (!found && mode == GMEM_CLAIM_EXCLUSIVE && claim->mode == GMEM_CLAIM_EXCLUSIVE) {
			mode = GMEM_CLAIM_SHARED;
			found = gmem_interval_find(&vm->claims[mode], claim->at.start, claim->at.last);
			from = found;
		}
	} while (found && found->order >= claim->at.order);
	return claim_of(found);
}

/*
 * Follow who waits for whom from @wait. A circle can only be closed by a thread that has
 * claims already, so the others need not look.
 */
static const struct gmem_claim *find_circle(const struct gmem_vm *vm, struct gmem_claim_wait *wait)
{
	uint64_t order = wait->claims->at.order;
	struct gmem_claim_wait *end = wait;
	struct gmem_claim *obstacle;

	wait->seen = order;
	wait->next = NULL;
	for (; wait; wait = wait->next) {
		for (size_t i = 0; i < wait->count; i++) {
			obstacle = NULL;
			while ((obstacle = next_obstacle(vm, &wait->claims[i], obstacle))) {
				if (obstacle->owner == &own)
					return obstacle;
				if (!obstacle->wait || obstacle->wait->seen == order)
					continue;
				obstacle->wait->seen = order;
				obstacle->wait->next = NULL;
				end->next = obstacle->wait;
				end = end->next;
			}
		}
	}
	return NULL;
}

/* A claim on @vm that this thread has, and not just came for in @order */
static const struct gmem_claim *find_own(const struct gmem_vm *vm, uint64_t order)
{
	const struct gmem_claim *claim;

	for (claim = own; claim; claim = claim->next_own)
		if (claim->vm == vm && claim->at.order != order)
			return claim;
	return NULL;
}

int gmem_claim_check_not_owner(const struct gmem_vm *vm)
{
	const struct gmem_claim *claim = find_own(vm, 0);

	if (!claim)
		return 0;
	return gmem_fail(-EDEADLK,
			 "this thread works on gpa 0x%" PRIx64 ", 0x%" PRIx64
			 " bytes: a callback must not make a call that waits for it",
			 claim->gpa, claim->size);
}

static int check_circle(const struct gmem_vm *vm, struct gmem_claim_wait *wait)
{
	const struct gmem_claim *claim;

	if (!find_own(vm, wait->claims->at.order))
		return 0;
	claim = find_circle(vm, wait);
	if (!claim)
		return 0;
	return gmem_fail(-EDEADLK,
			 "gpa 0x%" PRIx64 ", 0x%" PRIx64
			 " bytes: this thread, in a callback, would wait for its own work on 0x%" PRIx64
			 ", 0x%" PRIx64 " bytes", wait->claims->gpa, wait->claims->size, claim->gpa,
			 claim->size);
}

/* ---- waiting ---- */

/* All claims of the thread wait with it, those of the calls around this one, too. */
static void set_wait(const struct gmem_vm *vm, struct gmem_claim_wait *wait)
{
	for (struct gmem_claim *claim = own; claim; claim = claim->next_own)
		if (claim->vm == vm)
			claim->wait = wait;
}

static int wait_for_turn(struct gmem_vm *vm, struct gmem_claim *claims, size_t count)
{
	struct gmem_claim_wait wait = { .claims = claims, .count = count };
	int err;

	for (size_t i = 0; i < count; i++)
		wait.blocked += claims[i].blocker != NULL;
	if (!wait.blocked)
		return 0;

	err = check_circle(vm, &wait);
	if (err)
		return err;

	gmem_condition_init(&wait.turn);
	set_wait(vm, &wait);
	while (wait.blocked)
		gmem_condition_wait(&wait.turn, &vm->lock);
	set_wait(vm, NULL);
	pthread_cond_destroy(&wait.turn);
	return 0;
}

static int wait_for_leases(struct gmem_vm *vm, struct gmem_claim *claims, size_t count,
			   uint32_t wait_ms)
{
	uint64_t deadline = 0;
	int err = 0;

	if (wait_ms)
		deadline = gmem_sys_now() + wait_ms * GMEM_NANOSECONDS_PER_MS;
	for (size_t i = 0; i < count && !err; i++)
		if (claims[i].has_bar && claims[i].discards)
			err = gmem_lease_bar_memory(vm, &claims[i].bar);
	for (size_t i = 0; i < count && !err; i++)
		if (claims[i].has_bar)
			err = gmem_lease_bar_wait(vm, &claims[i].bar, deadline);
	return err;
}

int gmem_claims_take(struct gmem_vm *vm, struct gmem_claim *claims, size_t count,
		     uint32_t wait_ms)
{
	uint64_t order = ++vm->claim_order;
	int err;

	for (size_t i = 0; i < count; i++)
		append(vm, &claims[i], order);

	err = wait_for_turn(vm, claims, count);
	if (!err)
		err = wait_for_leases(vm, claims, count, wait_ms);
	if (err)
		gmem_claims_drop(vm, claims, count);
	return err;
}
