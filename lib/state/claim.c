/* SPDX-License-Identifier: MIT */
/*
 * A claim that must wait hangs on one earlier claim that is in its way, its blocker, though
 * there may be more. When that one is dropped it looks for the next, and is woken only if
 * there is none. So a thousand claims on one page form a chain, and each drop wakes one.
 *
 * Who must wait for whom is a matter of numbers, at.order: a claim waits for those on its range
 * that are lower. A claim whose turn came has HAS_TURN, those that wait in front come next, and
 * then all others, in the order of their coming.
 */
#include "state/claim.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>

#include "base/error.h"
#include "base/lock.h"
#include "base/macros.h"
#include "os/sys.h"

#define HAS_TURN	UINT64_C(0)
#define BEHIND		(UINT64_C(1) << 63)	/* added to the number of one that is not in front */

/* The claims that this thread has; its address tells threads apart */
static __thread struct gmem_claim *own;

/* A thread that waits for its turn */
struct gmem_claim_wait {
	struct gmem_claim *claims;
	size_t count;
	size_t blocked;			/* of them */
	bool is_nested;			/* the thread has other claims */
	pthread_cond_t turn;
	struct gmem_claim_wait *next;	/* in find_circle() */
	uint64_t seen;			/* order of the claims that looked at it last */
};

/* A thread that waits for the end of work */
struct gmem_work_wait {
	struct gmem_work_wait *next;
	uint64_t latest;
	pthread_cond_t ended;
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

/* ---- work, which begins when all claims of a call are held ---- */

static void begin_work(struct gmem_vm *vm, struct gmem_claim *claims, size_t count)
{
	uint64_t number = ++vm->works_begun;

	for (size_t i = 0; i < count; i++) {
		struct gmem_claim *claim = &claims[i];

		claim->began = number;
		claim->next_work = NULL;
		claim->previous_work = vm->last_work;
		if (vm->last_work)
			vm->last_work->next_work = claim;
		else
			vm->first_work = claim;
		vm->last_work = claim;
	}
}

static void end_work(struct gmem_vm *vm, struct gmem_claim *claim)
{
	if (claim->next_work)
		claim->next_work->previous_work = claim->previous_work;
	else
		vm->last_work = claim->previous_work;
	if (claim->previous_work)
		claim->previous_work->next_work = claim->next_work;
	else
		vm->first_work = claim->next_work;
}

static bool is_work_over(const struct gmem_vm *vm, uint64_t latest)
{
	return !vm->first_work || vm->first_work->began > latest;
}

static void wake_work_waits(const struct gmem_vm *vm)
{
	struct gmem_work_wait *wait;

	for (wait = vm->work_waits; wait; wait = wait->next)
		if (is_work_over(vm, wait->latest))
			pthread_cond_signal(&wait->ended);
}

void gmem_claims_wait_for_work(struct gmem_vm *vm, uint64_t latest)
{
	struct gmem_work_wait wait = { .next = vm->work_waits, .latest = latest }, **link;

	if (is_work_over(vm, latest))
		return;

	gmem_condition_init(&wait.ended);
	vm->work_waits = &wait;
	while (!is_work_over(vm, latest))
		gmem_condition_wait(&wait.ended, &vm->lock);
	for (link = &vm->work_waits; *link != &wait; link = &(*link)->next)
		;
	*link = wait.next;
	pthread_cond_destroy(&wait.ended);
}

/* ---- coming and going ---- */

static void become_owner(struct gmem_claim *claim)
{
	claim->owner = &own;
	claim->next_own = own;
	claim->own_link = &own;
	if (own)
		own->own_link = &claim->next_own;
	own = claim;
}

/*
 * Not in front of a callback's claim that waits, nor of those that it waits for: one of its
 * other claims may be what the new one waits for, and nobody would look for that circle.
 */
static uint64_t next_order(struct gmem_vm *vm, const struct gmem_claim *claims, size_t count)
{
	uint64_t order = ++vm->claim_order;

	return count && claims->in_front && !vm->nested_waits ? order : order | BEHIND;
}

static void append(struct gmem_vm *vm, struct gmem_claim *claim, uint64_t order, bool is_only)
{
	claim->at.start = claim->gpa;
	claim->at.last = claim->gpa + claim->size - 1;
	claim->at.order = order;
	claim->vm = vm;
	claim->waiters = NULL;
	claim->wait = NULL;
	claim->began = 0;
	hang_on_blocker(vm, claim);
	if (is_only && !claim->blocker)
		claim->at.order = HAS_TURN;
	gmem_interval_insert(&vm->claims[claim->mode], &claim->at);
	become_owner(claim);
	claim->has_bar = claim->mode == GMEM_CLAIM_EXCLUSIVE && !claim->allows_leases;
	if (claim->has_bar)
		gmem_lease_bar_begin(vm, &claim->bar, claim->gpa, claim->size, claim->purpose);
}

static void take_out(struct gmem_vm *vm, struct gmem_claim *claim)
{
	if (claim->began)
		end_work(vm, claim);
	if (claim->has_bar)
		gmem_lease_bar_end(vm, &claim->bar);
	gmem_interval_remove(&vm->claims[claim->mode], &claim->at);
	*claim->own_link = claim->next_own;
	if (claim->next_own)
		claim->next_own->own_link = claim->own_link;
	if (claim->blocker)
		unhang(claim);
}

/* From now on all that overlap them wait, those in front, too. */
static void give_turn(struct gmem_vm *vm, struct gmem_claim *claims, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		gmem_interval_remove(&vm->claims[claims[i].mode], &claims[i].at);
		claims[i].at.order = HAS_TURN;
		gmem_interval_insert(&vm->claims[claims[i].mode], &claims[i].at);
	}
}

/* Nothing is in the way of any claim, but another may have come in front of one since. */
static void end_wait(struct gmem_vm *vm, struct gmem_claim_wait *wait)
{
	for (size_t i = 0; i < wait->count && wait->count > 1; i++) {
		hang_on_blocker(vm, &wait->claims[i]);
		wait->blocked += wait->claims[i].blocker != NULL;
	}
	if (wait->blocked)
		return;
	give_turn(vm, wait->claims, wait->count);
	pthread_cond_signal(&wait->turn);
}

/* Its blocker is gone: find another one, or it is its turn. */
static void go_on(struct gmem_vm *vm, struct gmem_claim *claim)
{
	unhang(claim);
	hang_on_blocker(vm, claim);
	if (!claim->blocker && --claim->wait->blocked == 0)
		end_wait(vm, claim->wait);
}

void gmem_claims_drop(struct gmem_vm *vm, struct gmem_claim *claims, size_t count)
{
	/* All first, so that nobody hangs on one that is dropped next. */
	for (size_t i = 0; i < count; i++)
		take_out(vm, &claims[i]);
	for (size_t i = 0; i < count; i++)
		while (claims[i].waiters)
			go_on(vm, claims[i].waiters);
	wake_work_waits(vm);
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
	const struct gmem_claim *claim = find_own(vm, UINT64_MAX);

	if (!claim)
		return 0;
	return gmem_fail(-EDEADLK,
			 "this thread works on gpa 0x%" PRIx64 ", 0x%" PRIx64
			 " bytes: a callback must not make a call that waits for it",
			 claim->gpa, claim->size);
}

int gmem_claim_begin_change(struct gmem_vm *vm, struct gmem_wait_budget *budget)
{
	int err = gmem_claim_check_not_owner(vm);

	return err ? err : gmem_vm_begin_change(vm, budget);
}

const struct gmem_claim *gmem_claim_own(const struct gmem_vm *vm)
{
	return find_own(vm, UINT64_MAX);
}

static int check_circle(const struct gmem_vm *vm, struct gmem_claim_wait *wait)
{
	const struct gmem_claim *claim;

	if (!wait->is_nested)
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

static int fail_in_use(const struct gmem_claim *claims, const struct gmem_wait_budget *budget)
{
	while (!claims->blocker)
		claims++;
	return gmem_fail(-EBUSY,
			 "gpa 0x%" PRIx64 ", 0x%" PRIx64 " bytes: other work on gpa 0x%" PRIx64 ", 0x%" PRIx64
			 " bytes, was to be waited for %" PRIu32 " ms, and has not ended", claims->gpa,
			 claims->size, claims->blocker->gpa, claims->blocker->size, budget->wait_ms);
}

static int wait_until_turn(struct gmem_vm *vm, struct gmem_claim_wait *wait,
			   struct gmem_wait_budget *budget)
{
	uint64_t start = gmem_sys_now(), end = gmem_wait_end(budget, start);

	gmem_condition_init(&wait->turn);
	set_wait(vm, wait);
	vm->nested_waits += wait->is_nested;
	while (wait->blocked && gmem_sys_now() < end)
		gmem_condition_wait_until(&wait->turn, &vm->lock, end);
	vm->nested_waits -= wait->is_nested;
	set_wait(vm, NULL);
	pthread_cond_destroy(&wait->turn);
	gmem_wait_spend(budget, start, GMEM_WAIT_WORK);
	return wait->blocked ? fail_in_use(wait->claims, budget) : 0;
}

static int wait_for_turn(struct gmem_vm *vm, struct gmem_claim *claims, size_t count,
			 struct gmem_wait_budget *budget)
{
	struct gmem_claim_wait wait = { .claims = claims, .count = count };
	int err;

	for (size_t i = 0; i < count; i++)
		wait.blocked += claims[i].blocker != NULL;
	if (!wait.blocked) {
		if (count > 1)
			give_turn(vm, claims, count);
		return 0;
	}

	wait.is_nested = find_own(vm, claims->at.order) != NULL;
	err = check_circle(vm, &wait);
	return err ? err : wait_until_turn(vm, &wait, budget);
}

static int wait_for_leases_on(struct gmem_vm *vm, struct gmem_claim *claim)
{
	uint64_t start;
	int err;

	err = gmem_lease_bar_wait(vm, &claim->bar, 0);
	if (err != -EBUSY || !claim->budget || !claim->budget->has_leases)
		return err;

	start = gmem_sys_now();
	err = gmem_lease_bar_wait(vm, &claim->bar, gmem_wait_end(claim->budget, start));
	gmem_wait_spend(claim->budget, start, GMEM_WAIT_LEASES);
	return err;
}

static int wait_for_leases(struct gmem_vm *vm, struct gmem_claim *claims, size_t count)
{
	int err = 0;

	for (size_t i = 0; i < count && !err; i++)
		if (claims[i].has_bar && claims[i].discards)
			err = gmem_lease_bar_memory(vm, &claims[i].bar);
	for (size_t i = 0; i < count && !err; i++)
		if (claims[i].has_bar)
			err = wait_for_leases_on(vm, &claims[i]);
	return err;
}

int gmem_claims_take(struct gmem_vm *vm, struct gmem_claim *claims, size_t count,
		     struct gmem_wait_budget *budget)
{
	uint64_t order = next_order(vm, claims, count);
	int err;

	for (size_t i = 0; i < count; i++) {
		claims[i].budget = budget;
		append(vm, &claims[i], order, count == 1);
	}

	err = wait_for_turn(vm, claims, count, budget);
	if (!err)
		err = wait_for_leases(vm, claims, count);
	if (err)
		gmem_claims_drop(vm, claims, count);
	else
		begin_work(vm, claims, count);
	return err;
}
