/* SPDX-License-Identifier: MIT */
/*
 * Trying things on a VM that may be in use: a memslot number and an address
 * nobody has, found without disturbing anything.
 *
 * Setting a plain memslot that exists is a change of it only if its host
 * address and size are the same; ours is a page nobody else has mapped, so on
 * another's memslot the kernel refuses and nothing happens.
 */
#include "caps/probe_slot.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/mman.h>

#include "os/kvm.h"
#include "os/kvm_compat.h"
#include "os/sys.h"

/* KVM's own bounds: no VM has more bits, arm64 VMs have no fewer */
#define MAX_ADDRESS_BITS 52
#define LEAST_ADDRESS_BITS 32

#define SLOTS_TO_TRY 4
#define PAGES_TO_TRY 16

static int try_slot(struct gmem_probe_slot *scratch, const struct gmem_kvm_slot *slot)
{
	int err;

	err = gmem_kvm_set_slot(scratch->vm_fd, slot);
	if (err)
		return err;

	return gmem_kvm_delete_slot_retry(scratch->vm_fd, slot->number);
}

int gmem_probe_slot_try_plain(struct gmem_probe_slot *scratch, uint32_t flags)
{
	const struct gmem_kvm_slot slot = {
		.number = scratch->slot,
		.flags = flags,
		.gpa = scratch->gpa,
		.size = scratch->page,
		.hva = scratch->hva,
	};

	return try_slot(scratch, &slot);
}

int gmem_probe_slot_try_gmemfd(struct gmem_probe_slot *scratch, int gmemfd, uint64_t offset)
{
	const struct gmem_kvm_slot slot = {
		.number = scratch->slot,
		.flags = KVM_MEM_GUEST_MEMFD,
		.gmemfd = gmemfd,
		.gmemfd_offset = offset,
		.gpa = scratch->gpa,
		.size = scratch->page,
		.hva = scratch->hva,
	};

	return try_slot(scratch, &slot);
}

int gmem_probe_slot_try_dirty_log(struct gmem_probe_slot *scratch)
{
	const struct gmem_kvm_slot slot = {
		.number = scratch->slot,
		.flags = KVM_MEM_LOG_DIRTY_PAGES,
		.gpa = scratch->gpa,
		.size = scratch->page,
		.hva = scratch->hva,
	};
	uint64_t bitmap = 0;
	int err, log_err;

	err = gmem_kvm_set_slot(scratch->vm_fd, &slot);
	if (err)
		return err;

	log_err = gmem_kvm_get_dirty_log(scratch->vm_fd, slot.number, &bitmap);
	err = gmem_kvm_delete_slot_retry(scratch->vm_fd, slot.number);
	return err ? err : log_err;
}

/*
 * The topmost page below 2^bits, or one of those under it if it is taken.
 * -EEXIST also when all are taken: the address is inside the VM's space then.
 */
static int try_top_of(struct gmem_probe_slot *scratch, uint32_t bits)
{
	int err = -EEXIST;

	scratch->gpa = UINT64_C(1) << bits;
	for (int i = 0; i < PAGES_TO_TRY && err == -EEXIST; i++) {
		scratch->gpa -= scratch->page;
		err = gmem_probe_slot_try_plain(scratch, 0);
	}
	return err;
}

/* x86 answers -EINVAL past the VM's address bits, arm64 -EFAULT. */
static bool is_refused_place(int err)
{
	return err == -EINVAL || err == -EFAULT || err == -EEXIST;
}

static int find_place(struct gmem_probe_slot *scratch)
{
	int slots, err = -EBUSY;

	slots = gmem_kvm_check(scratch->vm_fd, KVM_CAP_NR_MEMSLOTS);
	if (slots < SLOTS_TO_TRY)
		return slots < 0 ? slots : -EBUSY;

	for (int i = 1; i <= SLOTS_TO_TRY; i++) {
		scratch->slot = (uint32_t)(slots - i);
		for (uint32_t bits = MAX_ADDRESS_BITS; bits >= LEAST_ADDRESS_BITS; bits--) {
			err = try_top_of(scratch, bits);
			scratch->address_bits = bits;
			if (!is_refused_place(err))
				return err;
			if (err == -EEXIST)
				break;
		}
	}
	return -EBUSY;
}

int gmem_probe_slot_open(struct gmem_probe_slot *scratch, int vm_fd)
{
	int err;

	scratch->vm_fd = vm_fd;
	scratch->page = gmem_sys_page_size();
	err = gmem_sys_mmap(NULL, scratch->page, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0, &scratch->hva);
	if (err)
		return err;

	err = find_place(scratch);
	if (err)
		gmem_probe_slot_close(scratch);
	return err;
}

void gmem_probe_slot_close(struct gmem_probe_slot *scratch)
{
	gmem_sys_munmap(scratch->hva, scratch->page);
}
