/* SPDX-License-Identifier: MIT */
/*
 * kvm: KVM's ioctls with their arguments filled in.
 *
 * Every function returns -errno on failure, and passes 0 in every reserved field: today
 * KVM ignores them, and a later KVM may not.
 */
#ifndef GMEM_KVM_H
#define GMEM_KVM_H

#include <stdint.h>

#include "os/kvm_compat.h"

/* The arguments that set a memslot; size 0 deletes it */
struct gmem_kvm_slot {
	uint32_t number;	/* in its address space */
	uint32_t space;		/* the VM's address space */
	uint32_t flags;		/* KVM_MEM_* */
	int gmemfd;		/* read only with KVM_MEM_GUEST_MEMFD */
	uint64_t gmemfd_offset;	/* likewise */
	uint64_t gpa;
	uint64_t size;
	void *hva;
};

/*
 * Returns the value of a capability. A value below 1 means that the capability is
 * absent, and can be -errno or a negative value of the kernel's own.
 */
int gmem_kvm_check(int fd, long cap);
/* Returns the fd, which is not close-on-exec. */
int gmem_kvm_create_gmemfd(int vm_fd, uint64_t size, uint64_t flags);

/* The number that KVM's ioctls and dirty rings have for memslot @number of an address space */
static inline uint32_t gmem_kvm_slot_id(uint32_t space, uint32_t number)
{
	return space << 16 | number;
}

/* The functions below take the memslots of all address spaces by that number. */

/* Uses KVM_SET_USER_MEMORY_REGION2 only if the slot has a guest_memfd. */
int gmem_kvm_set_slot(int vm_fd, const struct gmem_kvm_slot *slot);
int gmem_kvm_delete_slot(int vm_fd, uint32_t id);
/* Deletes a memslot, with retries: the kernel allocates to delete, so it can fail once. */
int gmem_kvm_delete_slot_retry(int vm_fd, uint32_t id);

/* Reads the dirty log of a slot; @bitmap has one bit per page. */
int gmem_kvm_get_dirty_log(int vm_fd, uint32_t id, uint64_t *bitmap);
/*
 * Clears the bits that are set in @bitmap, whose first is @page's. @page and @count are
 * multiples of 64, but for a @count up to the end of the slot.
 */
int gmem_kvm_clear_dirty_log(int vm_fd, uint32_t id, uint64_t page, uint64_t count,
			     const uint64_t *bitmap);
/* Gives back to the dirty rings what was taken out of them; -EINVAL if the VM has none. */
int gmem_kvm_reset_dirty_rings(int vm_fd);

/* Sets the memory attributes of a range; 0 makes it shared. */
int gmem_kvm_set_attributes(int vm_fd, uint64_t gpa, uint64_t size, uint64_t attributes);

/*
 * Arguments of the proposed ioctl that sets attributes on a guest_memfd. No kernel had
 * it when this version was written, so the caller passes its number.
 */
struct gmem_kvm_file_attributes {
	__u64 offset;
	__u64 size;
	__u64 attributes;
	__u64 flags;
	__u64 error_offset;
	__u64 reserved[11];
};

/* On failure, @ret_error_offset is the offset at which the kernel stopped. */
int gmem_kvm_set_file_attributes(int gmemfd, unsigned long request, uint64_t offset,
				 uint64_t size, uint64_t attributes, uint64_t *ret_error_offset);

/*
 * Maps a range in the guest's page tables, by way of a vCPU fd. @ret_done, set on
 * failure, too, can be less than @size even on success.
 */
int gmem_kvm_prefault(int vcpu_fd, uint64_t gpa, uint64_t size, uint64_t *ret_done);

#endif
