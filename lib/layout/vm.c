/* SPDX-License-Identifier: MIT */
#include "layout/vm.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/error.h"
#include "base/lock.h"
#include "base/macros.h"
#include "base/opts.h"
#include "base/range_map.h"
#include "base/wait_budget.h"
#include "caps/caps.h"
#include "caps/plan.h"
#include "dirty/tracker.h"
#include "os/kvm.h"
#include "region/dirty_pages.h"
#include "region/host_mapping.h"
#include "region/region.h"
#include "region/slots.h"
#include "region/vm_core.h"
#include "region/vm_identity.h"
#include "state/inplace.h"
#include "state/lease.h"
#include "state/listener.h"
#include "state/claim.h"
#include "view/view.h"

static int take_report(struct gmem_vm *vm, int vm_fd, const struct gmem_vm_opts *opts)
{
	struct gmem_caps *caps;
	int err;

	if (opts->caps) {
		if (!opts->caps->has_vm)
			return gmem_fail(-EINVAL, "the report was made without a VM");
		vm->caps = *opts->caps;
		return 0;
	}

	GMEM_OPTS(gmem_caps_opts, caps_opts, .flags = opts->flags & GMEM_VM_NO_SELFTEST
							      ? GMEM_CAPS_NO_SELFTEST
							      : 0);
	err = gmem_caps_new(vm_fd, &caps_opts, &caps);
	if (err)
		return err;

	vm->caps = *caps;
	gmem_caps_free(caps);
	return 0;
}

/* What this VM can have: the report, and what the caller knows besides */
static int find_out(struct gmem_vm *vm, int vm_fd, const struct gmem_vm_opts *opts)
{
	int err;

	err = take_report(vm, vm_fd, opts);
	if (err)
		return err;

	if (opts->flags & GMEM_VM_TYPE)
		gmem_caps_set_vm_type(&vm->caps, opts->vm_type);
	if (!opts->inplace)
		return 0;
	return gmem_inplace_prove(opts->inplace, vm_fd, &vm->inplace,
				  &vm->caps.lines[GMEM_CAP_IN_PLACE]);
}

static int take_address_space(struct gmem_vm *vm, const struct gmem_vm_opts *opts)
{
	uint64_t spaces = gmem_caps_value(&vm->caps, GMEM_CAP_ADDRESS_SPACES);

	if (!(opts->flags & GMEM_VM_ADDRESS_SPACE))
		return 0;
	if (opts->address_space >= spaces)
		return gmem_fail(-EINVAL, "there is no address space %" PRIu32 ": VM fd %d has %" PRIu64
				 ", counted from 0", opts->address_space, gmem_vm_number(vm), spaces);
	vm->address_space = opts->address_space;
	return 0;
}

/* The rest of the regions that end_regions() took from the guest; views may use it longer. */
static void release_memory(struct gmem_vm *vm)
{
	struct gmem_region *region;

	gmem_lock_take(&vm->lock);
	while ((region = vm->stuck)) {
		vm->stuck = region->next_stuck;
		gmem_region_release(region);
		gmem_region_free(region);
	}
	gmem_lock_drop(&vm->lock);
	gmem_dirty_pages_free(vm->old_dirty);
	vm->old_dirty = NULL;
}

static void dispose(struct gmem_vm *vm)
{
	gmem_listeners_sweep(vm);
	gmem_slots_destroy(&vm->slots);
	gmem_vm_drop_table(vm);
	gmem_vm_end(vm);
	free(vm);
}

GMEM_API int gmem_vm_new(int vm_fd, const struct gmem_vm_opts *user_opts, struct gmem_vm **ret)
{
	struct gmem_vm_opts opts;
	struct gmem_vm *vm;
	int err;

	if (!ret)
		return gmem_fail(-EINVAL, "no place for the handle: ret is NULL");

	if (vm_fd < 0)
		return gmem_fail(-EBADF, "%d is no VM fd", vm_fd);

	err = GMEM_COPY_OPTS(gmem_vm_opts, &opts, user_opts, log_data);
	if (!err)
		err = gmem_check_flags("flags", opts.flags,
				       GMEM_VM_NO_SELFTEST | GMEM_VM_TYPE | GMEM_VM_ADDRESS_SPACE);
	if (err)
		return err;

	vm = calloc(1, sizeof(*vm));
	if (!vm)
		return gmem_fail(-ENOMEM, "no memory for a VM handle");

	err = gmem_vm_identity_get(vm_fd, &vm->identity);
	if (err)
		goto free_vm;
	vm->number = vm->identity->number;

	err = find_out(vm, vm_fd, &opts);
	if (!err)
		err = take_address_space(vm, &opts);
	if (!err)
		err = gmem_slots_init(&vm->slots,
				      (uint32_t)gmem_caps_value(&vm->caps, GMEM_CAP_MEMSLOTS));
	if (err)
		goto free_identity;

	gmem_vm_begin(vm);
	vm->dispose = dispose;
	vm->release_memory = release_memory;
	vm->fd = vm->identity->asked;
	vm->log = opts.log;
	vm->log_data = opts.log_data;
	vm->wait_ms = opts.wait_ms;
	vm->has_default_plan = gmem_plan_make(&vm->caps, NULL, &vm->default_plan) == 0;
	*ret = vm;
	return 0;

free_identity:
	gmem_vm_identity_unref(vm->identity);
free_vm:
	free(vm);
	return err;
}

/*
 * A memslot that cannot be deleted dies with the VM; without its file it holds no
 * memory.
 */
static void delete_slot(struct gmem_vm *vm, const struct gmem_region *region)
{
	int err = gmem_kvm_delete_slot_retry(vm->fd, gmem_region_slot_id(region));

	if (err)
		gmem_vm_log_error(vm, gmem_fail(err, "memslot %" PRIu32 " at gpa 0x%" PRIx64
						" is left behind on VM fd %d: %s", region->slot,
						region->gpa.start, gmem_vm_number(vm),
						gmem_errno_name(err)));
}

static void end_region(struct gmem_vm *vm, struct gmem_region *region, bool delete)
{
	if (delete && region->has_slot)
		delete_slot(vm, region);
	gmem_region_detach(region);
}

/*
 * Takes the regions from the guest, and puts them behind those that are stuck. In order:
 * neighbours are mostly neighbours for the host, too, and KVM finds them faster.
 */
static void end_regions(struct gmem_vm *vm, bool delete)
{
	struct gmem_region **end = &vm->stuck;
	struct gmem_range *gpa;

	gmem_lock_take(&vm->lock);
	for (; *end; end = &(*end)->next_stuck)
		end_region(vm, *end, delete);
	while ((gpa = gmem_range_find(&vm->regions, 0, UINT64_MAX))) {
		gmem_range_remove(&vm->regions, gpa);
		*end = GMEM_CONTAINER_OF(gpa, struct gmem_region, gpa);
		end_region(vm, *end, delete);
		end = &(*end)->next_stuck;
	}
	gmem_lock_drop(&vm->lock);
}

static void drop_identity(struct gmem_vm *vm)
{
	gmem_vm_identity_unref(vm->identity);
	vm->identity = NULL;
	vm->fd = -1;
	gmem_host_maps_close(&vm->host_maps);
}

/* What outlives the handle may log, too, but the log's data need not be there any more. */
static void end_log(struct gmem_vm *vm)
{
	__atomic_store_n(&vm->log, NULL, __ATOMIC_RELAXED);
}

static void end_vm(struct gmem_vm *vm, bool delete)
{
	gmem_vm_end_views(vm);
	gmem_vm_end_tracking(vm);
	gmem_leases_end(vm);
	end_regions(vm, delete);
	drop_identity(vm);
	if (gmem_vm_memory_is_kept(vm))
		end_log(vm);
	gmem_vm_drop_memory(vm);
	end_log(vm);
	gmem_vm_unref(vm);
}

GMEM_API void gmem_vm_free(struct gmem_vm *vm)
{
	if (vm)
		end_vm(vm, true);
}

/*
 * The handle's fd goes before the memory: if it is the VM's last, KVM takes all memslots down
 * at once, and unmapping no longer has to look for them.
 */
GMEM_API void gmem_vm_free_with_vm(struct gmem_vm *vm)
{
	if (vm)
		end_vm(vm, false);
}

GMEM_API const struct gmem_caps *gmem_vm_caps(const struct gmem_vm *vm)
{
	return vm ? &vm->caps : NULL;
}

GMEM_API int gmem_vm_reserve_slots(struct gmem_vm *vm, uint32_t first, uint32_t count)
{
	struct gmem_wait_budget budget;
	int err;

	if (!vm)
		return gmem_fail(-EINVAL, "vm is NULL");

	budget = gmem_vm_budget(vm, 0);
	err = gmem_claim_begin_change(vm, &budget);
	if (err)
		return gmem_vm_log_error(vm, err);
	err = gmem_slots_reserve(&vm->slots, first, count);
	gmem_vm_end_change(vm);
	return gmem_vm_log_error(vm, err);
}
