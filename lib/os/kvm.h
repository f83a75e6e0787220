/* SPDX-License-Identifier: MIT */
/*
 * Ground floor: KVM's ioctls with their arguments filled in. All return
 * -errno, and zero every reserved field: KVM ignores them today, so that they
 * cannot be probed later.
 */
#ifndef GMEM_KVM_H
#define GMEM_KVM_H

#include <stdint.h>

#include "os/kvm_compat.h"


/* One memslot as the kernel is told it; size 0 deletes */
struct gmem_kvm_slot {
	uint32_t number;
	uint32_t flags;		/* KVM_MEM_*; with KVM_MEM_GUEST_MEMFD also: */
	int gmemfd;
	uint64_t gmemfd_offset;
	uint64_t gpa;
	uint64_t size;
	void *hva;
};

/* value of a capability; below 1 is absent: -errno, or a kernel's own negative */
int gmem_kvm_check(int fd, long cap);
int gmem_kvm_create_gmemfd(int vm_fd, uint64_t size, uint64_t flags);

/* with KVM_SET_USER_MEMORY_REGION2 if the slot has a guest_memfd, else without */
int gmem_kvm_set_slot(int vm_fd, const struct gmem_kvm_slot *slot);
int gmem_kvm_delete_slot(int vm_fd, uint32_t number);
/* Deleting allocates, so it can fail for the moment: this tries more than once. */
int gmem_kvm_delete_slot_retry(int vm_fd, uint32_t number);

/* @bitmap has a bit for every page of the slot */
int gmem_kvm_get_dirty_log(int vm_fd, uint32_t number, uint64_t *bitmap);

/* mark gpas private; shared again is attributes 0 */
int gmem_kvm_set_attributes(int vm_fd, uint64_t gpa, uint64_t size, uint64_t attributes);

/* Of a guest_memfd itself, as proposed. The number of the call is no kernel's yet. */
struct gmem_kvm_file_attributes {
	__u64 offset;
	__u64 size;
	__u64 attributes;
	__u64 flags;
	__u64 error_offset;
	__u64 reserved[11];
};

/* @ret_error_offset is written if the kernel says where it was stopped */
int gmem_kvm_set_file_attributes(int gmemfd, unsigned long request, uint64_t offset,
				 uint64_t size, uint64_t attributes, uint64_t *ret_error_offset);

/* On a vCPU fd: can do less than @size, also on success */
int gmem_kvm_prefault(int vcpu_fd, uint64_t gpa, uint64_t size, uint64_t *ret_done);

#endif
