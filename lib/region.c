/* SPDX-License-Identifier: MIT */
/*
 * A region is acquired in this order and given back in reverse: file, slot
 * number, file range, host memory, the place among the regions, the memslot.
 * The kernel is asked last, when nothing of ours can fail any more.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "internal.h"

/* KVM counts a memslot's pages in 31 bits. */
#define MOST_PAGES (UINT64_C(1) << 31)

#define ALL_FLAGS                                                                     \
	(GMEM_REGION_READONLY | GMEM_REGION_DIRTY_LOG | GMEM_REGION_SLOT | GMEM_REGION_HVA)

/* What an add was asked to do, checked */
struct order {
	struct gmem_region_opts opts;
	const struct gmem_plan *plan;
};

/* ---- checks ---- */

static int take_plan(const struct gmem_vm *vm, struct order *order)
{
	struct gmem_plan none;

	order->plan = order->opts.plan ? order->opts.plan : &vm->default_plan;
	if (order->opts.plan || vm->has_default_plan)
		return 0;

	/* It failed before; once more, for its sentence. */
	return gmem_plan_make(&vm->caps, NULL, &none);
}

static int check_slot_flags(const struct gmem_vm *vm, const struct order *order)
{
	const char *name = gmem_backing_name(order->plan->backing);

	if (order->opts.flags & GMEM_REGION_DIRTY_LOG &&
	    (order->plan->region2 || gmem_caps_says(&vm->caps, GMEM_CAP_DIRTY_LOG, GMEM_NO)))
		return gmem_fail(-EOPNOTSUPP, "there is no dirty log with backing \"%s\" here", name);

	if (order->opts.flags & GMEM_REGION_READONLY &&
	    (order->plan->region2 || gmem_caps_says(&vm->caps, GMEM_CAP_READONLY, GMEM_NO)))
		return gmem_fail(-EOPNOTSUPP,
				 "there are no read-only memslots with backing \"%s\" here", name);
	return 0;
}

static int check_gpa(const struct gmem_vm *vm, uint64_t gpa, uint64_t size)
{
	uint64_t bits = gmem_caps_value(&vm->caps, GMEM_CAP_ADDRESS_BITS);
	uint64_t page = gmem_sys_page_size();
	int err;

	if (bits)
		err = gmem_check_range_within("gpa", gpa, size, UINT64_C(1) << bits,
					      "the VM's last address");
	else
		err = gmem_check_range("gpa", gpa, size);
	if (err)
		return err;

	if (size / page >= MOST_PAGES)
		return gmem_fail(-EINVAL,
				 "size 0x%" PRIx64 " at gpa 0x%" PRIx64 ": a memslot has fewer than 0x%"
				 PRIx64 " pages", size, gpa, MOST_PAGES);
	return 0;
}

static int check_file(const struct gmem_vm *vm, const struct order *order, uint64_t size)
{
	const struct gmem_file *file = order->opts.file;
	int err;

	if (!file)
		return order->opts.file_offset
			       ? gmem_fail(-EINVAL, "file offset 0x%" PRIx64 " without a file",
					   order->opts.file_offset)
			       : 0;

	if (order->plan->backing == GMEM_BACKING_HOST)
		return gmem_fail(-EINVAL, "the plan says \"host\": it has no use for a file");

	if (file->create_flags != order->plan->create_flags)
		return gmem_fail(-EINVAL,
				 "the file has create flags 0x%" PRIx64 ", the plan for \"%s\" 0x%" PRIx64,
				 file->create_flags, gmem_backing_name(order->plan->backing),
				 order->plan->create_flags);

	err = gmem_check_range_within("file offset", order->opts.file_offset, size, file->size,
				      "the end of the file");
	return err ? err : gmem_file_check_vm(file, vm->fd);
}

static int check_hva(const struct order *order, uint64_t size)
{
	int err = gmem_check_alignment(order->opts.align);

	if (err || !(order->opts.flags & GMEM_REGION_HVA))
		return err;

	if (order->opts.align)
		return gmem_fail(-EINVAL, "an alignment, 0x%" PRIx64 ", and an address exclude each other",
				 order->opts.align);
	if (!order->opts.hva)
		return gmem_fail(-EINVAL, "hva is NULL");
	return gmem_check_range("hva", (uintptr_t)order->opts.hva, size);
}

static int check_order(const struct gmem_vm *vm, uint64_t gpa, uint64_t size,
		       const struct gmem_region_opts *user_opts, struct order *order)
{
	int err;

	err = GMEM_IMPORT(gmem_region_opts, &order->opts, user_opts, reserved);
	if (!err)
		err = gmem_check_flags("flags", order->opts.flags, ALL_FLAGS);
	if (err)
		return err;

	if (order->opts.reserved)
		return gmem_fail(-EINVAL, "reserved is %" PRIu32 ", not 0", order->opts.reserved);

	err = check_gpa(vm, gpa, size);
	if (!err)
		err = take_plan(vm, order);
	if (!err)
		err = check_slot_flags(vm, order);
	if (!err)
		err = check_file(vm, order, size);
	if (!err)
		err = check_hva(order, size);
	return err;
}

static int fail_overlap(uint64_t gpa, uint64_t size, const struct gmem_range *other)
{
	return gmem_fail(-EEXIST,
			 "gpa 0x%" PRIx64 " + size 0x%" PRIx64 " overlaps the region at 0x%" PRIx64
			 ", 0x%" PRIx64 " bytes",
			 gpa, size, other->start, other->size);
}

/* ---- the memslot ---- */

static bool is_bound(const struct gmem_region *region)
{
	return region->slot_flags & KVM_MEM_GUEST_MEMFD;
}

static struct gmem_kvm_slot slot_of(const struct gmem_region *region)
{
	return (struct gmem_kvm_slot){
		.number = region->slot,
		.flags = region->slot_flags,
		.gmemfd = region->file ? region->file->fd : -1,
		.gmemfd_offset = region->file_offset,
		.gpa = region->gpa.start,
		.size = region->gpa.size,
		.hva = (void *)(uintptr_t)region->hva.start,
	};
}

static int fail_slot(const struct gmem_vm *vm, const struct gmem_region *region,
		     const struct gmem_kvm_slot *slot, int err)
{
	if (!is_bound(region))
		return gmem_fail(err,
				 "VM fd %d refuses memslot %" PRIu32 " at gpa 0x%" PRIx64 ", 0x%" PRIx64
				 " bytes, hva 0x%" PRIx64 ": %s",
				 vm->fd, slot->number, slot->gpa, slot->size,
				 (uint64_t)(uintptr_t)slot->hva, gmem_errno_name(err));

	return gmem_fail(err,
			 "VM fd %d refuses memslot %" PRIu32 " at gpa 0x%" PRIx64 ", 0x%" PRIx64
			 " bytes, guest_memfd fd %d made on VM fd %d, offset 0x%" PRIx64 ": %s",
			 vm->fd, slot->number, slot->gpa, slot->size, slot->gmemfd,
			 region->file->vm_fd, slot->gmemfd_offset, gmem_errno_name(err));
}

static int add_slot(struct gmem_vm *vm, const struct gmem_region *region)
{
	const struct gmem_kvm_slot slot = slot_of(region);
	int err = gmem_kvm_set_slot(vm->fd, &slot);

	return err ? fail_slot(vm, region, &slot, err) : 0;
}

static int fail_delete(const struct gmem_vm *vm, const struct gmem_region *region, int err)
{
	return gmem_fail(err,
			 "VM fd %d refuses to delete memslot %" PRIu32 " at gpa 0x%" PRIx64 ": %s",
			 vm->fd, region->slot, region->gpa.start, gmem_errno_name(err));
}

static int delete_slot(struct gmem_vm *vm, const struct gmem_region *region)
{
	int err = gmem_kvm_delete_slot(vm->fd, region->slot);

	return err ? fail_delete(vm, region, err) : 0;
}

/*
 * A memslot with guest_memfd cannot be changed, only deleted and added again.
 * If the kernel refuses @now, @before is put back.
 */
static int replace_slot(struct gmem_vm *vm, struct gmem_region *region,
			const struct gmem_kvm_slot *before)
{
	struct gmem_kvm_slot now = slot_of(region);
	int err, undo_err;

	err = delete_slot(vm, region);
	if (err)
		return err;

	err = gmem_kvm_set_slot(vm->fd, &now);
	if (!err)
		return 0;

	undo_err = gmem_kvm_set_slot(vm->fd, before);
	if (!undo_err)
		return fail_slot(vm, region, &now, err);

	region->has_slot = false;
	return gmem_fail(-ENOTRECOVERABLE,
			 "VM fd %d refuses memslot %" PRIu32 " at gpa 0x%" PRIx64
			 ": %s, and refuses it back at gpa 0x%" PRIx64 ": %s",
			 vm->fd, now.number, now.gpa, gmem_errno_name(err), before->gpa,
			 gmem_errno_name(undo_err));
}

/* ---- what a region is made of ---- */

static int get_file(struct gmem_vm *vm, struct gmem_region *region, const struct order *order)
{
	if (order->plan->backing == GMEM_BACKING_HOST)
		return 0;

	region->file = order->opts.file;
	region->file_offset = order->opts.file_offset;
	if (!region->file)
		return gmem_file_new(vm->fd, region->gpa.size, order->plan, &region->file);

	gmem_file_hold(region->file);
	return 0;
}

static void put_file(struct gmem_region *region)
{
	if (region->file)
		gmem_file_release(region->file);
}

static int bind_range(struct gmem_region *region)
{
	if (!is_bound(region))
		return 0;

	region->bound.start = region->file_offset;
	region->bound.size = region->gpa.size;
	return gmem_file_bind(region->file, &region->bound);
}

static void unbind_range(struct gmem_region *region)
{
	if (is_bound(region))
		gmem_file_unbind(region->file, &region->bound);
}

/* The host address is a mapping of the file: host and guest use the same pages. */
static bool hva_is_files(const struct gmem_region *region)
{
	return region->backing == GMEM_BACKING_MAPPED || region->backing == GMEM_BACKING_SHARED;
}

static bool hva_is_callers(const struct gmem_region *region)
{
	return region->hva_chosen && !hva_is_files(region);
}

static int get_host_memory(struct gmem_region *region, const struct order *order)
{
	void *hva = order->opts.hva;
	int err;

	GMEM_OPTS(gmem_map_opts, place, .flags = region->hva_chosen ? GMEM_MAP_FIXED : 0,
		  .hva = hva, .align = region->align);

	region->hva.size = region->gpa.size;
	if (hva_is_files(region)) {
		region->map = &region->maps[0];
		err = gmem_file_pin(region->file, region->file_offset, region->gpa.size, &place,
				    region->map);
		if (!err)
			region->hva.start = region->map->hva.start;
		return err;
	}

	if (!region->hva_chosen) {
		err = gmem_place_mapping(-1, 0, region->gpa.size, PROT_READ | PROT_WRITE,
					 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, &place, &hva);
		if (err)
			return gmem_fail(err, "0x%" PRIx64 " bytes of host memory cannot be had: %s",
					 region->gpa.size, gmem_errno_name(err));
	}

	region->hva.start = (uintptr_t)hva;
	return 0;
}

static void put_host_memory(struct gmem_region *region)
{
	if (hva_is_files(region))
		gmem_file_unpin(region->file, region->map);
	else if (!hva_is_callers(region))
		gmem_sys_munmap((void *)(uintptr_t)region->hva.start, region->hva.size);
}

static void publish(struct gmem_vm *vm, struct gmem_region *region)
{
	gmem_range_insert(&vm->regions, &region->gpa);
	if (!hva_is_callers(region))
		gmem_range_insert(&vm->hvas, &region->hva);
}

static void withdraw(struct gmem_vm *vm, struct gmem_region *region)
{
	gmem_range_remove(&vm->regions, &region->gpa);
	if (!hva_is_callers(region))
		gmem_range_remove(&vm->hvas, &region->hva);
}

static int take_slot(struct gmem_vm *vm, struct gmem_region *region, const struct order *order)
{
	if (!(order->opts.flags & GMEM_REGION_SLOT))
		return gmem_slots_take_any(&vm->slots, &region->slot);

	region->slot = order->opts.slot;
	return gmem_slots_take(&vm->slots, region->slot);
}

static uint32_t slot_flags(const struct order *order)
{
	uint32_t flags = 0;

	if (order->plan->region2)
		flags |= (uint32_t)KVM_MEM_GUEST_MEMFD;
	if (order->opts.flags & GMEM_REGION_READONLY)
		flags |= KVM_MEM_READONLY;
	if (order->opts.flags & GMEM_REGION_DIRTY_LOG)
		flags |= KVM_MEM_LOG_DIRTY_PAGES;
	return flags;
}

/* ---- add and remove ---- */

static int add_locked(struct gmem_vm *vm, struct gmem_region *region, const struct order *order)
{
	const struct gmem_range *other;
	int err;

	other = gmem_range_find(&vm->regions, region->gpa.start, region->gpa.size);
	if (other)
		return fail_overlap(region->gpa.start, region->gpa.size, other);

	err = take_slot(vm, region, order);
	if (err)
		return err;

	err = get_file(vm, region, order);
	if (err)
		goto give_slot;

	err = bind_range(region);
	if (err)
		goto put_file;

	err = get_host_memory(region, order);
	if (err)
		goto unbind_range;

	err = add_slot(vm, region);
	if (err)
		goto put_host_memory;

	region->has_slot = true;
	publish(vm, region);
	return 0;

put_host_memory:
	put_host_memory(region);
unbind_range:
	unbind_range(region);
put_file:
	put_file(region);
give_slot:
	gmem_slots_give(&vm->slots, region->slot);
	return err;
}

static int add(struct gmem_vm *vm, uint64_t gpa, uint64_t size,
	       const struct gmem_region_opts *user_opts, struct gmem_region **ret)
{
	struct gmem_region *region;
	struct order order;
	int err;

	err = check_order(vm, gpa, size, user_opts, &order);
	if (err)
		return err;

	/* malloc, not calloc: glibc's per-thread cache serves only the former. */
	region = malloc(sizeof(*region));
	if (!region)
		return gmem_fail(-ENOMEM, "no memory for a region handle");

	*region = (struct gmem_region){
		.vm = vm,
		.gpa = { .start = gpa, .size = size },
		.backing = order.plan->backing,
		.slot_flags = slot_flags(&order),
		.align = order.opts.align,
		.hva_chosen = order.opts.flags & GMEM_REGION_HVA,
	};

	pthread_mutex_lock(&vm->lock);
	err = add_locked(vm, region, &order);
	pthread_mutex_unlock(&vm->lock);
	if (err) {
		free(region);
		return err;
	}

	*ret = region;
	return 0;
}

GMEM_API int gmem_region_add(struct gmem_vm *vm, uint64_t gpa, uint64_t size,
			     const struct gmem_region_opts *opts, struct gmem_region **ret)
{
	if (!vm || !ret)
		return gmem_fail(-EINVAL, "%s is NULL", vm ? "ret" : "vm");

	return gmem_vm_report(vm, add(vm, gpa, size, opts, ret));
}

/* Everything but the memslot; the caller holds the VM's lock. */
static void dismantle(struct gmem_vm *vm, struct gmem_region *region)
{
	withdraw(vm, region);
	put_host_memory(region);
	unbind_range(region);
	put_file(region);
	gmem_slots_give(&vm->slots, region->slot);
	free(region);
}

void gmem_region_release(struct gmem_region *region)
{
	struct gmem_vm *vm = region->vm;

	int err = 0;

	/* A memslot that stays dies with the VM; without its file it holds nothing. */
	if (region->has_slot)
		err = gmem_kvm_insist_on_deleting_slot(vm->fd, region->slot);
	if (err)
		gmem_vm_report(vm, fail_delete(vm, region, err));
	dismantle(vm, region);
}

GMEM_API int gmem_region_remove(struct gmem_region *region)
{
	struct gmem_vm *vm;
	int err = 0;

	if (!region)
		return 0;

	vm = region->vm;
	pthread_mutex_lock(&vm->lock);
	if (region->has_slot)
		err = delete_slot(vm, region);
	if (!err)
		dismantle(vm, region);
	pthread_mutex_unlock(&vm->lock);
	return gmem_vm_report(vm, err);
}

/* ---- move and rebind ---- */

/* Atomic for gmem_region_gpa() and _hva(), which take no lock. */
static void set_start(struct gmem_range *range, uint64_t start)
{
	__atomic_store_n(&range->start, start, __ATOMIC_RELAXED);
}

static int move_locked(struct gmem_vm *vm, struct gmem_region *region, uint64_t gpa)
{
	const struct gmem_kvm_slot before = slot_of(region);
	const struct gmem_range *other;
	int err;

	if (!region->has_slot)
		return gmem_fail(-ENOTRECOVERABLE, "the region lost its memslot; it can only be removed");

	gmem_range_remove(&vm->regions, &region->gpa);
	other = gmem_range_find(&vm->regions, gpa, region->gpa.size);
	if (other) {
		err = fail_overlap(gpa, region->gpa.size, other);
		goto put_back;
	}

	set_start(&region->gpa, gpa);
	err = replace_slot(vm, region, &before);
	if (err)
		set_start(&region->gpa, before.gpa);

put_back:
	gmem_range_insert(&vm->regions, &region->gpa);
	return err;
}

GMEM_API int gmem_region_move(struct gmem_region *region, uint64_t gpa)
{
	struct gmem_vm *vm;
	int err;

	if (!region)
		return gmem_fail(-EINVAL, "region is NULL");

	vm = region->vm;
	pthread_mutex_lock(&vm->lock);
	err = check_gpa(vm, gpa, region->gpa.size);
	if (!err)
		err = move_locked(vm, region, gpa);
	pthread_mutex_unlock(&vm->lock);
	return gmem_vm_report(vm, err);
}

static int check_rebind(const struct gmem_region *region, const struct gmem_file *file,
			uint64_t file_offset)
{
	int err;

	if (!region->file)
		return gmem_fail(-EOPNOTSUPP, "a region with backing \"%s\" has no file",
				 gmem_backing_name(region->backing));

	if (region->hva_chosen)
		return gmem_fail(-EOPNOTSUPP, "the region's host address 0x%" PRIx64
				 " was chosen by the caller and cannot change", region->hva.start);

	if (!region->has_slot)
		return gmem_fail(-ENOTRECOVERABLE, "the region lost its memslot; it can only be removed");

	if (file->create_flags != region->file->create_flags)
		return gmem_fail(-EINVAL,
				 "the file has create flags 0x%" PRIx64 ", the region's 0x%" PRIx64,
				 file->create_flags, region->file->create_flags);

	err = gmem_check_range_within("file offset", file_offset, region->gpa.size, file->size,
				      "the end of the file");
	return err ? err : gmem_file_check_vm(file, region->vm->fd);
}

/* Record another file range; the region's own old one does not stand in its way. */
static int switch_range(struct gmem_region *region, struct gmem_file *file, uint64_t offset)
{
	struct gmem_file *old_file = region->file;
	uint64_t old_offset = region->file_offset;
	int err;

	unbind_range(region);
	region->file = file;
	region->file_offset = offset;
	err = bind_range(region);
	if (err) {
		region->file = old_file;
		region->file_offset = old_offset;
		bind_range(region);
	}
	return err;
}

static void switch_map(struct gmem_vm *vm, struct gmem_region *region, struct gmem_map *map)
{
	if (!hva_is_files(region))
		return;

	gmem_range_remove(&vm->hvas, &region->hva);
	region->map = map;
	set_start(&region->hva, map->hva.start);
	gmem_range_insert(&vm->hvas, &region->hva);
}

static int pin_range(const struct gmem_region *region, struct gmem_file *file, uint64_t offset,
		     struct gmem_map *map)
{
	GMEM_OPTS(gmem_map_opts, place, .align = region->align);

	if (!hva_is_files(region))
		return 0;
	return gmem_file_pin(file, offset, region->gpa.size, &place, map);
}

static void unpin_range(const struct gmem_region *region, struct gmem_file *file,
			struct gmem_map *map)
{
	if (hva_is_files(region))
		gmem_file_unpin(file, map);
}

static int rebind_locked(struct gmem_vm *vm, struct gmem_region *region, struct gmem_file *file,
			 uint64_t offset)
{
	const struct gmem_kvm_slot before = slot_of(region);
	struct gmem_file *old_file = region->file;
	struct gmem_map *old_map = region->map;
	struct gmem_map *map = old_map == &region->maps[0] ? &region->maps[1] : &region->maps[0];
	int err;

	gmem_file_hold(file);
	err = pin_range(region, file, offset, map);
	if (err)
		goto release_file;

	err = switch_range(region, file, offset);
	if (err)
		goto unpin_range;

	switch_map(vm, region, map);
	err = replace_slot(vm, region, &before);
	if (err)
		goto switch_back;

	unpin_range(region, old_file, old_map);
	gmem_file_release(old_file);
	return 0;

switch_back:
	switch_map(vm, region, old_map);
	switch_range(region, old_file, before.gmemfd_offset);
unpin_range:
	unpin_range(region, file, map);
release_file:
	gmem_file_release(file);
	return err;
}

GMEM_API int gmem_region_rebind(struct gmem_region *region, struct gmem_file *file,
				uint64_t file_offset)
{
	struct gmem_vm *vm;
	int err;

	if (!region || !file)
		return gmem_fail(-EINVAL, "%s is NULL", region ? "file" : "region");

	vm = region->vm;
	pthread_mutex_lock(&vm->lock);
	err = check_rebind(region, file, file_offset);
	if (!err)
		err = rebind_locked(vm, region, file, file_offset);
	pthread_mutex_unlock(&vm->lock);
	return gmem_vm_report(vm, err);
}

/* ---- what a region is ---- */

GMEM_API uint64_t gmem_region_gpa(const struct gmem_region *region)
{
	return region ? __atomic_load_n(&region->gpa.start, __ATOMIC_RELAXED) : 0;
}

GMEM_API uint64_t gmem_region_size(const struct gmem_region *region)
{
	return region ? region->gpa.size : 0;
}

GMEM_API void *gmem_region_hva(const struct gmem_region *region)
{
	return region ? (void *)(uintptr_t)__atomic_load_n(&region->hva.start, __ATOMIC_RELAXED)
		      : NULL;
}

GMEM_API uint32_t gmem_region_slot(const struct gmem_region *region)
{
	return region ? region->slot : UINT32_MAX;
}

GMEM_API uint32_t gmem_region_backing(const struct gmem_region *region)
{
	return region ? region->backing : GMEM_BACKING_NONE;
}

GMEM_API struct gmem_file *gmem_region_file(const struct gmem_region *region,
					    uint64_t *ret_offset)
{
	if (!region || !region->file)
		return NULL;

	if (ret_offset)
		*ret_offset = region->file_offset;
	return region->file;
}
