/* SPDX-License-Identifier: MIT */
/*
 * Finding a free slot number by trying does not disturb the VM. If the number is in use,
 * KVM takes the call as a change of that memslot, and refuses it unless host address and
 * size are the same. Ours is the address of a page that no memslot of the VM maps.
 */
#include "caps/probe_slot.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/mman.h>

#include "base/lock.h"
#include "os/kvm.h"
#include "os/kvm_compat.h"
#include "os/sys.h"

/* No VM has more bits of guest address, and KVM refuses arm64 VMs with fewer. */
#define MAX_ADDRESS_BITS 52
#define MIN_ADDRESS_BITS 32

#define SLOTS_TO_TRY 4
#define PAGES_TO_TRY 16

/*
 * Rank PROBE: held while a probe is open. Two probes of one VM find the same number and
 * the same address free, and KVM takes one's memslot for a change of the other's. Nothing
 * here knows a handle of the VM that could have the lock, and other processes cannot use
 * the VM, so it is one lock for the process.
 */
static struct gmem_lock lock = GMEM_LOCK_INIT(GMEM_RANK_PROBE);

/* If KVM keeps the memslot, its page must stay: whatever came there would be the guest's. */
static int delete_slot(struct gmem_probe_slot *probe)
{
	int err = gmem_kvm_delete_slot_retry(probe->vm_fd, gmem_kvm_slot_id(probe->space, probe->slot));

	probe->is_kept |= err != 0;
	return err;
}

static int try_slot(struct gmem_probe_slot *probe, const struct gmem_kvm_slot *slot)
{
	int err;

	err = gmem_kvm_set_slot(probe->vm_fd, slot);
	if (err)
		return err;

	return delete_slot(probe);
}

int gmem_probe_slot_try_plain(struct gmem_probe_slot *probe, uint32_t flags)
{
	const struct gmem_kvm_slot slot = {
		.number = probe->slot,
		.space = probe->space,
		.flags = flags,
		.gpa = probe->gpa,
		.size = probe->page,
		.hva = probe->hva,
	};

	return try_slot(probe, &slot);
}

int gmem_probe_slot_try_gmemfd(struct gmem_probe_slot *probe, int gmemfd, uint64_t offset)
{
	const struct gmem_kvm_slot slot = {
		.number = probe->slot,
		.space = probe->space,
		.flags = KVM_MEM_GUEST_MEMFD,
		.gmemfd = gmemfd,
		.gmemfd_offset = offset,
		.gpa = probe->gpa,
		.size = probe->page,
		.hva = probe->hva,
	};

	return try_slot(probe, &slot);
}

int gmem_probe_slot_try_dirty_log(struct gmem_probe_slot *probe)
{
	const struct gmem_kvm_slot slot = {
		.number = probe->slot,
		.space = probe->space,
		.flags = KVM_MEM_LOG_DIRTY_PAGES,
		.gpa = probe->gpa,
		.size = probe->page,
		.hva = probe->hva,
	};
	uint64_t bitmap = 0;
	int err, log_err;

	err = gmem_kvm_set_slot(probe->vm_fd, &slot);
	if (err)
		return err;

	log_err = gmem_kvm_get_dirty_log(probe->vm_fd, gmem_kvm_slot_id(slot.space, slot.number), &bitmap);
	err = delete_slot(probe);
	return err ? err : log_err;
}

/*
 * Tries the topmost page below 2^@bits, and if it is taken those under it. -EEXIST means
 * that all are taken, which also shows that KVM accepts addresses of @bits.
 */
static int try_top_of(struct gmem_probe_slot *probe, uint32_t bits)
{
	int err = -EEXIST;

	probe->gpa = UINT64_C(1) << bits;
	for (int i = 0; i < PAGES_TO_TRY && err == -EEXIST; i++) {
		probe->gpa -= probe->page;
		err = gmem_probe_slot_try_plain(probe, 0);
	}
	return err;
}

/* Past the VM's address bits x86 answers -EINVAL, and arm64 -EFAULT. */
static bool is_refused_place(int err)
{
	return err == -EINVAL || err == -EFAULT || err == -EEXIST;
}

static int find_place(struct gmem_probe_slot *probe)
{
	int slots, err = -EBUSY;

	slots = gmem_kvm_check(probe->vm_fd, KVM_CAP_NR_MEMSLOTS);
	if (slots < SLOTS_TO_TRY)
		return slots < 0 ? slots : -EBUSY;

	for (int i = 1; i <= SLOTS_TO_TRY; i++) {
		probe->slot = (uint32_t)(slots - i);
		for (uint32_t bits = MAX_ADDRESS_BITS; bits >= MIN_ADDRESS_BITS; bits--) {
			err = try_top_of(probe, bits);
			probe->address_bits = bits;
			if (!is_refused_place(err))
				return err;
			if (err == -EEXIST)
				break;
		}
	}
	return -EBUSY;
}

int gmem_probe_slot_open(struct gmem_probe_slot *probe, int vm_fd, uint32_t space)
{
	int err;

	probe->vm_fd = vm_fd;
	probe->space = space;
	probe->is_kept = false;
	probe->page = gmem_sys_page_size();
	err = gmem_sys_mmap(NULL, probe->page, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0, &probe->hva);
	if (err)
		return err;

	gmem_lock_take(&lock);
	err = find_place(probe);
	if (err)
		gmem_probe_slot_close(probe);
	return err;
}

void gmem_probe_slot_close(struct gmem_probe_slot *probe)
{
	gmem_lock_drop(&lock);
	if (!probe->is_kept)
		gmem_sys_munmap(probe->hva, probe->page);
}

/*
 * KVM refuses our page as a change of a memslot that exists before it looks at the
 * addresses (-EINVAL), and as a new memslot because of the addresses (-EEXIST).
 */
static int find_out(struct gmem_probe_slot *probe, uint32_t number)
{
	struct gmem_kvm_slot slot = {
		.number = probe->slot,
		.space = probe->space,
		.gpa = probe->gpa,
		.size = probe->page,
		.hva = probe->hva,
	};
	int err;

	err = gmem_kvm_set_slot(probe->vm_fd, &slot);
	if (err)
		return err;

	slot.number = number;
	err = gmem_kvm_set_slot(probe->vm_fd, &slot);
	delete_slot(probe);
	if (err == -EINVAL)
		return 1;
	return err == -EEXIST ? 0 : err;
}

int gmem_probe_slot_exists(int vm_fd, uint32_t space, uint32_t number)
{
	struct gmem_probe_slot probe;
	int ret;

	ret = gmem_probe_slot_open(&probe, vm_fd, space);
	if (ret)
		return ret;

	/* The probe found this very number free. */
	if (probe.slot != number)
		ret = find_out(&probe, number);
	gmem_probe_slot_close(&probe);
	return ret;
}
