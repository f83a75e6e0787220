/* SPDX-License-Identifier: MIT */
/*
 * Who uses a range of guest addresses, and must not be surprised: holders of
 * leases, who use it as shared memory, and claims of conversions, which change
 * what it is. Leases get along with each other. Claims that overlap follow each
 * other in the order they came, and one to private follows the leases; while
 * it waits, no new lease gets in front of it.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "internal.h"

#define NANOSECONDS_PER_MS 1000000

static bool overlap(uint64_t a, uint64_t a_size, uint64_t b, uint64_t b_size)
{
	return a <= b + (b_size - 1) && b <= a + (a_size - 1);
}

/* ---- the waiting side ---- */

static const struct gmem_lease *find_lease(const struct gmem_vm *vm, uint64_t gpa, uint64_t size)
{
	const struct gmem_lease *lease;

	for (lease = vm->leases; lease; lease = lease->next)
		if (overlap(lease->gpa, lease->size, gpa, size))
			return lease;
	return NULL;
}

int gmem_lease_check(const struct gmem_vm *vm, uint64_t gpa, uint64_t size)
{
	const struct gmem_lease *lease = find_lease(vm, gpa, size);

	if (!lease)
		return 0;
	return gmem_fail(-EBUSY,
			 "\"%s\" holds a lease on gpa 0x%" PRIx64 ", 0x%" PRIx64
			 " bytes, which 0x%" PRIx64 ", 0x%" PRIx64 " bytes, overlaps",
			 lease->holder, lease->gpa, lease->size, gpa, size);
}

/* The claim before @claim in the order of arrival that is in its way */
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
	uint64_t deadline = gmem_sys_now() + (uint64_t)wait_ms * NANOSECONDS_PER_MS;
	const struct timespec until = {
		.tv_sec = (time_t)(deadline / 1000000000),
		.tv_nsec = (long)(deadline % 1000000000),
	};

	while (find_lease(vm, claim->gpa, claim->size)) {
		if (!wait_ms || gmem_sys_now() >= deadline)
			return gmem_lease_check(vm, claim->gpa, claim->size);
		pthread_cond_timedwait(&vm->released, &vm->lock, &until);
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
		pthread_cond_wait(&vm->released, &vm->lock);
	if (claim->to_private)
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

/* ---- leases ---- */

static int check_conversions(const struct gmem_vm *vm, const struct gmem_lease *lease)
{
	const struct gmem_claim *claim;

	for (claim = vm->claims; claim; claim = claim->next)
		if (claim->to_private && overlap(claim->gpa, claim->size, lease->gpa, lease->size))
			return gmem_fail(-EBUSY,
					 "gpa 0x%" PRIx64 ", 0x%" PRIx64
					 " bytes, is being %s", claim->gpa, claim->size,
					 claim->discards ? "discarded" : "converted to private");
	return 0;
}

static int check_is_shared(const struct gmem_vm *vm, const struct gmem_lease *lease)
{
	uint64_t at = lease->gpa, last = lease->gpa + lease->size - 1;
	const struct gmem_region *region;
	const struct gmem_range *range;
	struct gmem_part part;

	if (gmem_set_next(&vm->privates, true, at, last, &part))
		return gmem_fail(-EACCES, "gpa 0x%" PRIx64 " is private: no lease is given on it",
				 part.start);

	for (;; at = range->start + range->size) {
		range = gmem_range_find(&vm->regions, at, 1);
		if (!range)
			return gmem_fail(-ENOENT, "there is no region at gpa 0x%" PRIx64, at);
		region = GMEM_CONTAINER_OF(range, struct gmem_region, gpa);
		if (region->is_device)
			return gmem_fail(-ENXIO, "there is a device at gpa 0x%" PRIx64, at);
		if (gmem_side_is_both(region))
			return gmem_fail(-EACCES, "gpa 0x%" PRIx64
					 " is in a file that the host cannot read, shared or private", at);
		if (range->start + range->size - 1 >= last)
			return 0;
	}
}

static int grant(struct gmem_lease *lease)
{
	struct gmem_vm *vm = lease->vm;
	int err;

	err = check_is_shared(vm, lease);
	if (!err)
		err = check_conversions(vm, lease);
	if (err)
		return err;

	lease->next = vm->leases;
	lease->link = &vm->leases;
	if (lease->next)
		lease->next->link = &lease->next;
	vm->leases = lease;
	return 0;
}

GMEM_API int gmem_lease_new(struct gmem_vm *vm, uint64_t gpa, uint64_t size,
			    const struct gmem_lease_opts *user_opts, struct gmem_lease **ret)
{
	struct gmem_lease_opts opts;
	struct gmem_lease *lease;
	int err;

	if (!vm || !ret)
		return gmem_fail(-EINVAL, "%s is NULL", vm ? "ret" : "vm");

	err = GMEM_IMPORT(gmem_lease_opts, &opts, user_opts, holder);
	if (err)
		return err;
	if (size == 0 || gpa + size - 1 < gpa)
		return gmem_fail(-EINVAL, "gpa 0x%" PRIx64 " + size 0x%" PRIx64 " is no range", gpa,
				 size);

	lease = malloc(sizeof(*lease));
	if (!lease)
		return gmem_fail(-ENOMEM, "no memory for a lease");
	lease->vm = vm;
	lease->gpa = gpa;
	lease->size = size;
	snprintf(lease->holder, sizeof(lease->holder), "%s", opts.holder ? opts.holder : "unnamed");

	pthread_mutex_lock(&vm->lock);
	err = grant(lease);
	pthread_mutex_unlock(&vm->lock);
	if (err)
		free(lease);
	else
		*ret = lease;
	return err;
}

GMEM_API void gmem_lease_free(struct gmem_lease *lease)
{
	if (!lease)
		return;

	pthread_mutex_lock(&lease->vm->lock);
	*lease->link = lease->next;
	if (lease->next)
		lease->next->link = lease->link;
	pthread_cond_broadcast(&lease->vm->released);
	pthread_mutex_unlock(&lease->vm->lock);
	free(lease);
}
