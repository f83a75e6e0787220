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

static bool is_obstacle(const struct gmem_claim *first, const struct gmem_claim *second)
{
	return (first->mode == GMEM_CLAIM_EXCLUSIVE || second->mode == GMEM_CLAIM_EXCLUSIVE) &&
	       overlap(first->gpa, first->size, second->gpa, second->size);
}

static void append(struct gmem_vm *vm, struct gmem_claim *claim)
{
	struct gmem_claim **link;

	claim->ahead = 0;
	claim->is_active = false;
	claim->owner = pthread_self();
	claim->next = NULL;
	gmem_condition_init(&claim->turn);
	for (link = &vm->claims; *link; link = &(*link)->next)
		claim->ahead += is_obstacle(*link, claim);
	*link = claim;
}

static void drop(struct gmem_vm *vm, struct gmem_claim *claim)
{
	struct gmem_claim **link, *later;

	for (link = &vm->claims; *link != claim; link = &(*link)->next)
		;
	*link = claim->next;
	for (later = claim->next; later; later = later->next)
		if (is_obstacle(claim, later) && --later->ahead == 0)
			pthread_cond_signal(&later->turn);
	pthread_cond_destroy(&claim->turn);
}

static int wait_for_leases(struct gmem_vm *vm, struct gmem_claim *claim, uint64_t deadline)
{
	const struct timespec until = {
		.tv_sec = (time_t)(deadline / 1000000000),
		.tv_nsec = (long)(deadline % 1000000000),
	};

	if (claim->mode == GMEM_CLAIM_SHARED || claim->allows_leases)
		return 0;
	while (find_lease(vm, claim->gpa, claim->size)) {
		if (gmem_sys_now() >= deadline)
			return gmem_claim_check_leases(vm, claim->gpa, claim->size);
		gmem_condition_wait_until(&claim->turn, &vm->lock, &until);
	}
	return 0;
}

int gmem_claims_take(struct gmem_vm *vm, struct gmem_claim *claims, size_t count,
		     uint32_t wait_ms)
{
	uint64_t deadline = 0;
	int err = 0;

	for (size_t i = 0; i < count; i++)
		append(vm, &claims[i]);
	for (size_t i = 0; i < count; i++) {
		while (claims[i].ahead)
			gmem_condition_wait(&claims[i].turn, &vm->lock);
		claims[i].is_active = true;
	}

	if (wait_ms)
		deadline = gmem_sys_now() + wait_ms * GMEM_NANOSECONDS_PER_MS;
	for (size_t i = 0; i < count && !err; i++)
		err = wait_for_leases(vm, &claims[i], deadline);
	if (err)
		gmem_claims_drop(vm, claims, count);
	return err;
}

void gmem_claims_drop(struct gmem_vm *vm, struct gmem_claim *claims, size_t count)
{
	for (size_t i = 0; i < count; i++)
		drop(vm, &claims[i]);
	pthread_cond_broadcast(&vm->released);
}

void gmem_claims_recheck_leases(struct gmem_vm *vm, uint64_t gpa, uint64_t size)
{
	struct gmem_claim *claim;

	for (claim = vm->claims; claim; claim = claim->next)
		if (claim->is_active && overlap(claim->gpa, claim->size, gpa, size))
			pthread_cond_signal(&claim->turn);
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
		if (claim->mode == GMEM_CLAIM_EXCLUSIVE && !claim->allows_leases &&
		    overlap(claim->gpa, claim->size, gpa, size))
			return gmem_fail(-EBUSY,
					 "gpa 0x%" PRIx64 ", 0x%" PRIx64
					 " bytes, is being %s", claim->gpa, claim->size,
					 claim->purpose);
	return 0;
}
