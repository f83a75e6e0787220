/* SPDX-License-Identifier: MIT */
#include "dirty/dirty_ring.h"

#include <errno.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "gmem.h"
#include "base/error.h"
#include "base/lock.h"
#include "caps/caps.h"
#include "nofault/nofault.h"
#include "os/kvm.h"
#include "os/kvm_compat.h"
#include "os/sys.h"
#include "region/dirty_pages.h"
#include "region/region.h"
#include "region/regions.h"
#include "region/vm_core.h"

/* Entries that are marked while others wait for the VM's lock */
#define BATCH 1024
/* Memslots that a batch remembers */
#define REMEMBERED 64

struct gmem_dirty_ring {
	struct gmem_dirty_ring *next;
	struct gmem_kvm_dirty_entry *entries;
	uint64_t bytes;
	uint32_t count;			/* of entries, a power of two */
	uint32_t at;			/* the next one that KVM enters, if that is known */
	bool knows_at;
	int vcpu_fd;
};

bool gmem_vm_has_dirty_rings(struct gmem_vm *vm)
{
	return gmem_caps_value(&vm->caps, GMEM_CAP_DIRTY_LOG) || gmem_kvm_reset_dirty_rings(vm->fd) >= 0;
}

int gmem_vm_check_dirty_rings(struct gmem_vm *vm, uint64_t flags)
{
	if (flags & GMEM_DIRTY_RINGS || !gmem_vm_has_dirty_rings(vm))
		return 0;
	return gmem_fail(-EOPNOTSUPP, "VM fd %d logs writes in dirty rings, and all of them have to be read: "
			 "GMEM_DIRTY_RINGS says that they are", gmem_vm_number(vm));
}

/* ---- entries ---- */

/* Marks of a batch, with the VM's lock */
struct batch {
	struct gmem_vm *vm;
	uint64_t page;
	const struct gmem_region *regions[REMEMBERED];	/* by the slot's lowest bits; NULL: none yet */
};

static const struct gmem_region *find_region(struct batch *batch, uint32_t slot)
{
	const struct gmem_region **known = &batch->regions[slot % REMEMBERED];

	if (!*known || gmem_region_slot_id(*known) != slot)
		*known = gmem_regions_with_slot(batch->vm, slot);
	return *known;
}

/* What KVM wrote there is not trusted further than this: it may be of a memslot before. */
static void mark_entry(struct batch *batch, uint32_t slot, uint64_t page)
{
	const struct gmem_region *region = find_region(batch, slot);

	if (region && page < region->gpa.size / batch->page)
		gmem_dirty_pages_mark(batch->vm->newest.dirty, region->gpa.start + page * batch->page,
				      batch->page);
}

static struct gmem_kvm_dirty_entry *entry_at(const struct gmem_dirty_ring *ring, uint32_t at)
{
	return &ring->entries[at & (ring->count - 1)];
}

static bool is_dirty(const struct gmem_kvm_dirty_entry *entry)
{
	/* Pairs with KVM, which stores the rest of the entry before. */
	return (__atomic_load_n(&entry->flags, __ATOMIC_ACQUIRE) & GMEM_KVM_DIRTY_MASK) == GMEM_KVM_DIRTY;
}

/*
 * Whoever read the ring before us took entries out of it. Those that are left follow each
 * other, and never fill the ring: KVM stops the vCPU before.
 */
static bool find_first(struct gmem_dirty_ring *ring)
{
	for (uint32_t i = 0; i < ring->count && !ring->knows_at; i++) {
		ring->knows_at = is_dirty(entry_at(ring, i)) && !is_dirty(entry_at(ring, i - 1));
		ring->at = i;
	}
	return ring->knows_at;
}

/* Take out up to @max entries. Returns how many there were. */
static uint32_t take_entries(struct batch *batch, struct gmem_dirty_ring *ring, uint32_t max)
{
	struct gmem_kvm_dirty_entry *entry;
	uint32_t taken = 0;

	while (taken < max && is_dirty(entry = entry_at(ring, ring->at))) {
		if (batch->vm->newest.dirty)
			mark_entry(batch, __atomic_load_n(&entry->slot, __ATOMIC_RELAXED),
				   __atomic_load_n(&entry->offset, __ATOMIC_RELAXED));
		/* KVM loads it with acquire order: nothing of the entry is read after that. */
		__atomic_store_n(&entry->flags, GMEM_KVM_DIRTY_RESET, __ATOMIC_RELEASE);
		ring->at++;
		taken++;
	}
	return taken;
}

/* All that was there when this began: a vCPU that goes on writing could have it never end. */
static uint32_t empty_ring(struct gmem_vm *vm, struct gmem_dirty_ring *ring)
{
	uint32_t taken = 0, now = BATCH, max;

	if (!find_first(ring))
		return 0;
	while (now == BATCH && taken < ring->count) {
		struct batch batch = { .vm = vm, .page = gmem_sys_page_size() };

		max = ring->count - taken < BATCH ? ring->count - taken : BATCH;
		gmem_lock_take(&vm->lock);
		now = take_entries(&batch, ring, max);
		gmem_lock_drop(&vm->lock);
		taken += now;
	}
	return taken;
}

static int fail_to_reset(const struct gmem_vm *vm, int err)
{
	return gmem_fail(err, "VM fd %d refuses KVM_RESET_DIRTY_RINGS: %s", gmem_vm_number(vm),
			 gmem_errno_name(err));
}

/*
 * With dirty_lock. A child of fork() shares the rings with its parent, but not the VM: the first
 * call finds that out, before entries are taken away from the parent.
 */
static int empty_rings(struct gmem_vm *vm)
{
	uint32_t taken = 0;
	int err;

	if (!vm->dirty_rings)
		return 0;
	err = gmem_kvm_reset_dirty_rings(vm->fd);
	if (err < 0)
		return fail_to_reset(vm, err);
	for (struct gmem_dirty_ring *ring = vm->dirty_rings; ring; ring = ring->next)
		taken += empty_ring(vm, ring);
	err = taken ? gmem_kvm_reset_dirty_rings(vm->fd) : 0;
	return err < 0 ? fail_to_reset(vm, err) : 0;
}

int gmem_dirty_rings_mark(struct gmem_vm *vm)
{
	int err;

	gmem_lock_take(&vm->dirty_lock);
	err = empty_rings(vm);
	gmem_lock_drop(&vm->dirty_lock);
	return err;
}

/* ---- rings ---- */

static struct gmem_dirty_ring **find_ring(struct gmem_vm *vm, int vcpu_fd)
{
	struct gmem_dirty_ring **link = &vm->dirty_rings;

	while (*link && (*link)->vcpu_fd != vcpu_fd)
		link = &(*link)->next;
	return link;
}

int gmem_dirty_rings_make_room(struct gmem_vm *vm, int vcpu_fd)
{
	bool is_ours;
	int err = 0;

	gmem_lock_take(&vm->dirty_lock);
	is_ours = vm->dirty_rings && (vcpu_fd < 0 || *find_ring(vm, vcpu_fd));
	if (is_ours)
		err = empty_rings(vm);
	gmem_lock_drop(&vm->dirty_lock);
	return err ? gmem_vm_log_error(vm, err) : is_ours;
}

static void free_ring(struct gmem_dirty_ring *ring)
{
	gmem_sys_munmap(ring->entries, ring->bytes);
	free(ring);
}

void gmem_dirty_rings_end(struct gmem_vm *vm)
{
	struct gmem_dirty_ring *ring;

	gmem_lock_take(&vm->dirty_lock);
	while ((ring = vm->dirty_rings)) {
		vm->dirty_rings = ring->next;
		free_ring(ring);
	}
	gmem_lock_drop(&vm->dirty_lock);
}

/* The page at an offset of the ring is there, or not; -errno: a sandbox does not tell. */
static int has_page(const struct gmem_dirty_ring *ring, uint64_t offset)
{
	char byte;
	int err;

	if (gmem_nofault_slow_copy(&byte, (const char *)ring->entries + offset, 1, &err))
		return 1;
	return err == -EFAULT ? 0 : err;
}

/*
 * A ring of another size would be read where there is nothing, or entries would be missed. So
 * one page more than there should be is mapped, and must not be there.
 */
static int check_size(const struct gmem_dirty_ring *ring)
{
	uint64_t page = gmem_sys_page_size();

	if (has_page(ring, ring->bytes - page) && has_page(ring, ring->bytes) <= 0)
		return 0;
	return gmem_fail(-EINVAL, "the dirty ring of vCPU fd %d has not 0x%" PRIx64 " bytes", ring->vcpu_fd,
			 ring->bytes);
}

static int map_ring(struct gmem_dirty_ring *ring)
{
	uint64_t page = gmem_sys_page_size(), size = ring->bytes + page;
	void *entries;
	int err;

	err = gmem_sys_mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, ring->vcpu_fd,
			    GMEM_KVM_DIRTY_RING_PAGE * page, &entries);
	if (err)
		return gmem_fail(err, "mapping the dirty ring of vCPU fd %d, 0x%" PRIx64 " bytes: %s",
				 ring->vcpu_fd, ring->bytes, gmem_errno_name(err));
	ring->entries = entries;
	err = check_size(ring);
	if (err)
		gmem_sys_munmap(entries, size);
	ring->bytes = size;
	return err;
}

static int check_bytes(uint64_t bytes)
{
	uint64_t page = gmem_sys_page_size();

	if (bytes >= page && !(bytes & (bytes - 1)) &&
	    bytes / sizeof(struct gmem_kvm_dirty_entry) <= GMEM_KVM_DIRTY_RING_MAX)
		return 0;
	return gmem_fail(-EINVAL, "0x%" PRIx64 " bytes are no size of a dirty ring: a power of two from 0x%"
			 PRIx64 " on, with up to %d entries", bytes, page, GMEM_KVM_DIRTY_RING_MAX);
}

static int add_ring(struct gmem_vm *vm, struct gmem_dirty_ring *ring)
{
	int err;

	if (*find_ring(vm, ring->vcpu_fd))
		return gmem_fail(-EEXIST, "the dirty ring of vCPU fd %d was added before", ring->vcpu_fd);
	err = map_ring(ring);
	if (err)
		return err;
	ring->next = vm->dirty_rings;
	vm->dirty_rings = ring;
	return 0;
}

GMEM_API int gmem_vm_add_dirty_ring(struct gmem_vm *vm, int vcpu_fd, uint64_t bytes)
{
	struct gmem_dirty_ring *ring;
	int err;

	if (!vm)
		return gmem_fail(-EINVAL, "vm is NULL");
	err = check_bytes(bytes);
	if (!err && !gmem_vm_has_dirty_rings(vm))
		err = gmem_fail(-EOPNOTSUPP, "VM fd %d has no dirty rings: enable KVM_CAP_DIRTY_LOG_RING, or "
				"KVM_CAP_DIRTY_LOG_RING_ACQ_REL, before vCPUs are made", gmem_vm_number(vm));
	if (err)
		return gmem_vm_log_error(vm, err);

	ring = calloc(1, sizeof(*ring));
	if (!ring)
		return gmem_fail(-ENOMEM, "no memory for a dirty ring's record");
	ring->vcpu_fd = vcpu_fd;
	ring->bytes = bytes;
	ring->count = (uint32_t)(bytes / sizeof(*ring->entries));

	gmem_lock_take(&vm->dirty_lock);
	err = add_ring(vm, ring);
	gmem_lock_drop(&vm->dirty_lock);
	if (err)
		free(ring);
	return gmem_vm_log_error(vm, err);
}

/*
 * What is in the ring is marked whatever KVM says to a reset, which the next one makes up for.
 * -EIO: KVM does not serve this process, because it is a child of fork(), or the VM is dead; the
 * entries may be the parent's.
 */
static void empty_for_good(struct gmem_vm *vm, struct gmem_dirty_ring *ring)
{
	int err = empty_rings(vm);

	if (err && err != -EIO)
		empty_ring(vm, ring);
	gmem_vm_log_error(vm, err);
}

/* A refusal does not keep it: its vCPU's fd may be closed next. */
GMEM_API int gmem_vm_remove_dirty_ring(struct gmem_vm *vm, int vcpu_fd)
{
	struct gmem_dirty_ring **link, *ring;
	int err;

	if (!vm)
		return gmem_fail(-EINVAL, "vm is NULL");
	gmem_lock_take(&vm->dirty_lock);
	link = find_ring(vm, vcpu_fd);
	ring = *link;
	if (ring) {
		empty_for_good(vm, ring);
		*link = ring->next;
		free_ring(ring);
	}
	gmem_lock_drop(&vm->dirty_lock);
	err = ring ? 0 : gmem_fail(-ENOENT, "the dirty ring of vCPU fd %d was not added", vcpu_fd);
	return gmem_vm_log_error(vm, err);
}

GMEM_API int gmem_vm_mark_slot_dirty(struct gmem_vm *vm, uint32_t slot, uint64_t page)
{
	struct batch batch = { .vm = vm, .page = gmem_sys_page_size() };

	if (!vm)
		return gmem_fail(-EINVAL, "vm is NULL");
	if (!__atomic_load_n(&vm->newest.dirty, __ATOMIC_ACQUIRE))
		return 0;
	gmem_lock_take(&vm->lock);
	if (vm->newest.dirty)
		mark_entry(&batch, slot, page);
	gmem_lock_drop(&vm->lock);
	return 0;
}
