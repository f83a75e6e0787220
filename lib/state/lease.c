/* SPDX-License-Identifier: MIT */
#include "state/lease.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/error.h"
#include "base/lock.h"
#include "base/opts.h"
#include "region/region_memory.h"
#include "region/regions.h"
#include "region/vm_core.h"
#include "state/claim.h"

static int check_is_shared(const struct gmem_vm *vm, const struct gmem_lease *lease)
{
	uint64_t last = lease->gpa + lease->size - 1;
	struct gmem_stretch at = GMEM_REGIONS_WALK(vm, lease->gpa, last);
	int err;

	while (gmem_regions_walk(&at)) {
		if (at.is_private)
			return gmem_fail(-EACCES, "gpa 0x%" PRIx64 " is private: no lease is given on it",
					 at.gpa);
		err = gmem_regions_check_memory(at.region, at.gpa);
		if (err)
			return err;
		if (gmem_region_is_both_sides(at.region))
			return gmem_fail(-EACCES, "gpa 0x%" PRIx64
					 " is in a file that the host cannot read, shared or private", at.gpa);
	}
	return 0;
}

static int grant(struct gmem_lease *lease)
{
	struct gmem_vm *vm = lease->vm;
	int err;

	err = check_is_shared(vm, lease);
	if (!err)
		err = gmem_claim_check_exclusive(vm, lease->gpa, lease->size);
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

	err = GMEM_COPY_OPTS(gmem_lease_opts, &opts, user_opts, holder);
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

	gmem_lock_take(&vm->lock);
	err = grant(lease);
	gmem_lock_drop(&vm->lock);
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

	gmem_lock_take(&lease->vm->lock);
	*lease->link = lease->next;
	if (lease->next)
		lease->next->link = lease->link;
	gmem_claims_recheck_leases(lease->vm, lease->gpa, lease->size);
	pthread_cond_broadcast(&lease->vm->released);
	gmem_lock_drop(&lease->vm->lock);
	free(lease);
}
