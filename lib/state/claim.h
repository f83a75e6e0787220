/* SPDX-License-Identifier: MIT */
/*
 * claim: who changes a range of guest addresses, or works on it.
 *
 * Claims that overlap follow each other in the order they came. Leases are held by
 * those who use memory as shared memory; they get along with each other and with
 * shared claims. An exclusive claim waits for the leases on its range, and while it
 * waits no new lease gets in front of it. Everything here is called with the VM's
 * lock held.
 */
#ifndef GMEM_CLAIM_H
#define GMEM_CLAIM_H

#include <stdbool.h>
#include <stdint.h>

#include "region/vm_core.h"

/* How a claim treats leases on its range */
enum gmem_claim_mode {
	GMEM_CLAIM_SHARED,	/* gets along with them */
	GMEM_CLAIM_EXCLUSIVE,	/* -EBUSY while somebody holds one; none is given */
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
	uint64_t gpa;
	uint64_t size;
	struct gmem_claim *next;
	enum gmem_claim_mode mode;
	bool discards;			/* what the range is claimed for is not a conversion */
	bool is_active;			/* not waiting any more */
};

/*
 * Wait for the claims ahead, and if exclusive for leases: -EBUSY after waiting @wait_ms
 * for leases
 */
int gmem_claim_take(struct gmem_vm *vm, struct gmem_claim *claim, uint32_t wait_ms);
void gmem_claim_drop(struct gmem_vm *vm, struct gmem_claim *claim);
/*
 * True if a claim there is at work, not only waiting. A change of the layout then waits
 * for vm->released.
 */
bool gmem_claim_is_active(const struct gmem_vm *vm, uint64_t gpa, uint64_t size);
/* -EBUSY and a sentence if somebody holds a lease there */
int gmem_claim_check_leases(const struct gmem_vm *vm, uint64_t gpa, uint64_t size);
/* -EBUSY and a sentence if an exclusive claim overlaps the range */
int gmem_claim_check_exclusive(const struct gmem_vm *vm, uint64_t gpa, uint64_t size);

#endif
