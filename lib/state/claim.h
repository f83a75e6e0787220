/* SPDX-License-Identifier: MIT */
/*
 * claim: who changes a range of guest addresses, or works on it.
 *
 * This is the only exclusion of work on ranges. Claims that overlap follow each other in
 * the order they came, but shared claims get along with each other. Leases are held by
 * those who use memory as shared memory; they get along with shared claims. An exclusive
 * claim waits for the leases on its range, and while it waits no new lease gets in front
 * of it. Everything here is called with the VM's lock held, which is dropped while a claim
 * waits.
 *
 * A change claims all that it touches at once, and nobody waits for a claim while holding
 * another, so claims alone cannot wait for each other in a circle.
 */
#ifndef GMEM_CLAIM_H
#define GMEM_CLAIM_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "region/vm_core.h"

enum gmem_claim_mode {
	GMEM_CLAIM_SHARED,	/* beside other shared claims, and leases */
	GMEM_CLAIM_EXCLUSIVE,	/* alone */
};

struct gmem_lease {
	struct gmem_vm *vm;
	struct gmem_lease *next;
	struct gmem_lease **link;
	uint64_t gpa;
	uint64_t size;
	char holder[64];
};

struct gmem_claim {
	/* filled in by the caller */
	uint64_t gpa;
	uint64_t size;
	enum gmem_claim_mode mode;
	bool allows_leases;		/* leases on the range are no obstacle, old or new ones */
	const char *purpose;		/* of an exclusive claim: the range "is being ..." */

	/* claim.c's own */
	struct gmem_claim *next;
	size_t ahead;			/* claims that came before, and that it waits for */
	bool is_active;			/* not waiting any more */
	pthread_t owner;
	pthread_cond_t turn;
};

/*
 * Append @claims, which must not overlap each other if exclusive, to the queue and wait for
 * all of them; then, unless they allow leases, for the leases there: -EBUSY after @wait_ms.
 * On failure none of them is held.
 */
int gmem_claims_take(struct gmem_vm *vm, struct gmem_claim *claims, size_t count,
		     uint32_t wait_ms);
void gmem_claims_drop(struct gmem_vm *vm, struct gmem_claim *claims, size_t count);

static inline int gmem_claim_take(struct gmem_vm *vm, struct gmem_claim *claim, uint32_t wait_ms)
{
	return gmem_claims_take(vm, claim, 1, wait_ms);
}

static inline void gmem_claim_drop(struct gmem_vm *vm, struct gmem_claim *claim)
{
	gmem_claims_drop(vm, claim, 1);
}

/*
 * True if a claim there is at work, not only waiting. A change of the layout then waits
 * for vm->released.
 */
bool gmem_claim_is_active(const struct gmem_vm *vm, uint64_t gpa, uint64_t size);
/* -EBUSY and a sentence if somebody holds a lease there */
int gmem_claim_check_leases(const struct gmem_vm *vm, uint64_t gpa, uint64_t size);
/* -EBUSY and a sentence if an exclusive claim that allows no leases overlaps the range */
int gmem_claim_check_exclusive(const struct gmem_vm *vm, uint64_t gpa, uint64_t size);
/* Wake the claims that wait for leases, after one was freed. */
void gmem_claims_recheck_leases(struct gmem_vm *vm, uint64_t gpa, uint64_t size);

#endif
