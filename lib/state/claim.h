/* SPDX-License-Identifier: MIT */
/*
 * claim: who changes a range of guest addresses, or works on it.
 *
 * This is the only exclusion of work on ranges. Claims that overlap follow each other in
 * the order they came, but shared claims get along with each other. Leases are held by
 * those who use memory as shared memory; they get along with shared claims. An exclusive
 * claim waits for the leases on its range, and while it waits no new lease gets in front
 * of it (state/lease.h). Everything here is called with the VM's lock held, which is dropped
 * while a claim waits.
 *
 *	time  ->
 *	shared     A |=======|            B and C come while A works. B waits for A, C for B,
 *	exclusive  B     ....|====|       though A and C would get along: who comes later
 *	shared     C       .......|===|   never overtakes. D overlaps none of them.
 *	exclusive  D       |====|
 *
 * One call at a time, that changes the layout and has the hook lock, goes in front of all
 * that wait: it waits for work that is under way, however many wait for the same range.
 *
 * A thread that waits holds one claim more than it works with in one case only: a callback
 * of the user's runs while its thread has a claim, and calls the library again. What would
 * then wait for its own thread, directly or in a circle, is refused with -EDEADLK. Claims
 * of one call to gmem_claims_take() never wait for each other.
 *
 * A claim is dropped by the thread that took it.
 */
#ifndef GMEM_CLAIM_H
#define GMEM_CLAIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/interval_tree.h"
#include "base/wait_budget.h"
#include "region/vm_core.h"
#include "state/lease.h"

enum gmem_claim_mode {
	GMEM_CLAIM_SHARED,	/* beside other shared claims, and leases */
	GMEM_CLAIM_EXCLUSIVE,	/* alone */
};

struct gmem_claim_wait;

struct gmem_claim {
	/* filled in by the caller */
	uint64_t gpa;
	uint64_t size;
	enum gmem_claim_mode mode;
	bool in_front;			/* of those that wait; the thread has the hook lock */
	bool allows_leases;		/* leases on the range are no obstacle, old or new ones */
	/*
	 * The shared side of the range's memory is to go: leases that have the same memory
	 * at another guest address are obstacles, too.
	 */
	bool discards;
	const char *purpose;		/* of an exclusive claim: the range "is being ..." */

	/* claim.c's own */
	struct gmem_interval at;	/* in vm->claims; its order is that of its coming, see claim.c */
	struct gmem_vm *vm;
	const void *owner;		/* the thread */
	struct gmem_claim *next_own;	/* claims of one thread */
	struct gmem_claim **own_link;
	struct gmem_claim *blocker;	/* an earlier claim that it waits for; NULL: its turn came */
	struct gmem_claim *waiters;	/* those whose blocker it is */
	struct gmem_claim *next_waiter;
	struct gmem_claim **waiter_link;
	struct gmem_claim_wait *wait;	/* what its thread waits for, if that is claims */
	struct gmem_wait_budget *budget;	/* of its call; NULL: none */
	uint64_t began;			/* number of its beginning to work, in vm->works; 0: not yet */
	struct gmem_claim *next_work;
	struct gmem_claim *previous_work;
	struct gmem_lease_bar bar;
	bool has_bar;			/* it allows no leases */
};

/*
 * Append @claims to the queue and wait for all of them; then, unless they allow leases, for
 * the leases there. -EBUSY: something is in the way after what was left of @budget, which
 * may be NULL. -EDEADLK: the thread, in a callback, would wait for itself. -ENOMEM: no
 * memory to note where the memory is that @discards. On failure none of them is held.
 */
int gmem_claims_take(struct gmem_vm *vm, struct gmem_claim *claims, size_t count,
		     struct gmem_wait_budget *budget);
void gmem_claims_drop(struct gmem_vm *vm, struct gmem_claim *claims, size_t count);

static inline int gmem_claim_take(struct gmem_vm *vm, struct gmem_claim *claim,
				  struct gmem_wait_budget *budget)
{
	return gmem_claims_take(vm, claim, 1, budget);
}

static inline void gmem_claim_drop(struct gmem_vm *vm, struct gmem_claim *claim)
{
	gmem_claims_drop(vm, claim, 1);
}

/* The number of the work that began last: that of claims held later is higher. */
static inline uint64_t gmem_claim_latest_work(const struct gmem_vm *vm)
{
	return vm->works_begun;
}

/*
 * Wait until all work up to number @latest has ended, but not for claims that wait: as long as
 * the longest of it, whatever comes meanwhile. The thread has no claim on this VM.
 */
void gmem_claims_wait_for_work(struct gmem_vm *vm, uint64_t latest);

/*
 * -EDEADLK and a sentence if the calling thread has a claim on this VM, which means that it
 * is in a callback. For calls that wait for more than claims. Needs no lock.
 */
int gmem_claim_check_not_owner(const struct gmem_vm *vm);
/* gmem_vm_begin_change(), or that */
int gmem_claim_begin_change(struct gmem_vm *vm, struct gmem_wait_budget *budget);

/*
 * The claim of the call that the calling thread is in a callback of, or the latest of its
 * claims; NULL: it is in none. Needs no lock.
 */
const struct gmem_claim *gmem_claim_own(const struct gmem_vm *vm);

/* -EBUSY and a sentence if somebody holds a lease there */
static inline int gmem_claim_check_leases(const struct gmem_vm *vm, uint64_t gpa, uint64_t size)
{
	return gmem_lease_check(vm, gpa, size);
}

#endif
