/* SPDX-License-Identifier: MIT */
#include "state/claim.h"

#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <time.h>

#include "base/error.h"
#include "base/lock.h"
#include "os/sys.h"

static bool overlap(uint64_t a, uint64_t a_size, uint64_t b, uint64_t b_size)
{
	return a <= b + (b_size - 1) && b <= a + (a_size - 1);
}

static const struct gmem_lease *find_lease(const struct gmem_vm *vm, uint64_t gpa, uint64_t size)
{
	const struct gmem_lease *lease;

	for (lease = vm->leases; lease; lease = lease->next)
		if (overlap(lease->gpa, lease->size, gpa, size))
			return lease;
	return NULL;
}

int gmem_claim_check_leases(const struct gmem_vm *vm, uint64_t gpa, uint64_t size)
{
	const struct gmem_lease *lease = find_lease(vm, gpa, size);

	if (!lease)
		return 0;
	return gmem_fail(-EBUSY,
			 "\"%s\" holds a lease on gpa 0x%" PRIx64 ", 0x%" PRIx64
			 " bytes, which 0x%" PRIx64 ", 0x%" PRIx64 " bytes, overlaps",
			 lease->holder, lease->gpa, lease->size, gpa, size);
}

/* The claim that arrived before @claim and overlaps it */
static const struct gmem_claim *claim_ahead(const struct gmem_vm *vm, const struct gmem_claim *claim)
{
	const struct gmem_claim *other;

	for (other = vm->claims; other != claim; other = other->next)
		if (overlap(other->gpa, other->size, claim->gpa, claim->size))
			return other;
	return NULL;
}

static int wait_for_leases(struct gmem_vm *vm, const struct gmem_claim *claim, uint32_t wait_ms)
{
	uint64_t deadline = gmem_sys_now() + wait_ms * GMEM_NANOSECONDS_PER_MS;
	const struct timespec until = {
		.tv_sec = (time_t)(deadline / 1000000000),
		.tv_nsec = (long)(deadline % 1000000000),
	};

	while (find_lease(vm, claim->gpa, claim->size)) {
		if (!wait_ms || gmem_sys_now() >= deadline)
			return gmem_claim_check_leases(vm, claim->gpa, claim->size);
		gmem_condition_wait_until(&vm->released, &vm->lock, &until);
	}
	return 0;
}

int gmem_claim_take(struct gmem_vm *vm, struct gmem_claim *claim, uint32_t wait_ms)
{
	struct gmem_claim **link;
	int err = 0;

	for (link = &vm->claims; *link; link = &(*link)->next)
		;
	claim->is_active = false;
	claim->next = NULL;
	*link = claim;

	while (claim_ahead(vm, claim))
		gmem_condition_wait(&vm->released, &vm->lock);
	if (claim->mode == GMEM_CLAIM_EXCLUSIVE)
		err = wait_for_leases(vm, claim, wait_ms);
	claim->is_active = true;
	if (err)
		gmem_claim_drop(vm, claim);
	return err;
}

void gmem_claim_drop(struct gmem_vm *vm, struct gmem_claim *claim)
{
	struct gmem_claim **link;

	for (link = &vm->claims; *link != claim; link = &(*link)->next)
		;
	*link = claim->next;
	pthread_cond_broadcast(&vm->released);
}

bool gmem_claim_is_active(const struct gmem_vm *vm, uint64_t gpa, uint64_t size)
{
	const struct gmem_claim *claim;

	for (claim = vm->claims; claim; claim = claim->next)
		if (claim->is_active && overlap(claim->gpa, claim->size, gpa, size))
			return true;
	return false;
}

int gmem_claim_check_exclusive(const struct gmem_vm *vm, uint64_t gpa, uint64_t size)
{
	const struct gmem_claim *claim;

	for (claim = vm->claims; claim; claim = claim->next)
		if (claim->mode == GMEM_CLAIM_EXCLUSIVE && overlap(claim->gpa, claim->size, gpa, size))
			return gmem_fail(-EBUSY,
					 "gpa 0x%" PRIx64 ", 0x%" PRIx64
					 " bytes, is being %s", claim->gpa, claim->size,
					 claim->discards ? "discarded" : "converted to private");
	return 0;
}
