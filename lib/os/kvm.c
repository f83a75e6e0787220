/* SPDX-License-Identifier: MIT */
#include "os/kvm.h"

#include "os/sys.h"

#define DELETE_TRIES 3

int gmem_kvm_check(int fd, long cap)
{
	return gmem_sys_ioctl(fd, KVM_CHECK_EXTENSION, (void *)(uintptr_t)cap);
}

int gmem_kvm_create_gmemfd(int vm_fd, uint64_t size, uint64_t flags)
{
	struct gmem_kvm_create_guest_memfd args = {
		.size = size,
		.flags = flags,
	};

	return gmem_sys_ioctl(vm_fd, KVM_CREATE_GUEST_MEMFD, &args);
}

static int set_plain_slot(int vm_fd, const struct gmem_kvm_slot *slot)
{
	struct kvm_userspace_memory_region args = {
		.slot = gmem_kvm_slot_id(slot->space, slot->number),
		.flags = slot->flags,
		.guest_phys_addr = slot->gpa,
		.memory_size = slot->size,
		.userspace_addr = (uintptr_t)slot->hva,
	};

	return gmem_sys_ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &args);
}

int gmem_kvm_set_slot(int vm_fd, const struct gmem_kvm_slot *slot)
{
	struct gmem_kvm_userspace_memory_region2 args = {
		.slot = gmem_kvm_slot_id(slot->space, slot->number),
		.flags = slot->flags,
		.guest_phys_addr = slot->gpa,
		.memory_size = slot->size,
		.userspace_addr = (uintptr_t)slot->hva,
		.guest_memfd = (uint32_t)slot->gmemfd,
		.guest_memfd_offset = slot->gmemfd_offset,
	};

	if (!(slot->flags & KVM_MEM_GUEST_MEMFD))
		return set_plain_slot(vm_fd, slot);

	return gmem_sys_ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION2, &args);
}

/* The older ioctl deletes every slot on every kernel. */
int gmem_kvm_delete_slot(int vm_fd, uint32_t id)
{
	const struct gmem_kvm_slot none = { .number = id };

	return set_plain_slot(vm_fd, &none);
}

int gmem_kvm_delete_slot_retry(int vm_fd, uint32_t id)
{
	int err, tries = DELETE_TRIES;

	do {
		err = gmem_kvm_delete_slot(vm_fd, id);
	} while (err && --tries);
	return err;
}

int gmem_kvm_get_dirty_log(int vm_fd, uint32_t id, uint64_t *bitmap)
{
	struct kvm_dirty_log args = {
		.slot = id,
		.dirty_bitmap = bitmap,
	};

	return gmem_sys_ioctl(vm_fd, KVM_GET_DIRTY_LOG, &args);
}

int gmem_kvm_clear_dirty_log(int vm_fd, uint32_t id, uint64_t page, uint64_t count,
			     const uint64_t *bitmap)
{
	struct kvm_clear_dirty_log args = {
		.slot = id,
		.num_pages = (uint32_t)count,
		.first_page = page,
		.dirty_bitmap = (void *)(uintptr_t)bitmap,
	};

	return gmem_sys_ioctl(vm_fd, KVM_CLEAR_DIRTY_LOG, &args);
}

int gmem_kvm_reset_dirty_rings(int vm_fd)
{
	return gmem_sys_ioctl(vm_fd, KVM_RESET_DIRTY_RINGS, NULL);
}

int gmem_kvm_set_attributes(int vm_fd, uint64_t gpa, uint64_t size, uint64_t attributes)
{
	struct gmem_kvm_memory_attributes args = {
		.address = gpa,
		.size = size,
		.attributes = attributes,
	};

	return gmem_sys_ioctl(vm_fd, KVM_SET_MEMORY_ATTRIBUTES, &args);
}

int gmem_kvm_set_file_attributes(int gmemfd, unsigned long request, uint64_t offset,
				 uint64_t size, uint64_t attributes, uint64_t *ret_error_offset)
{
	struct gmem_kvm_file_attributes args = {
		.offset = offset,
		.size = size,
		.attributes = attributes,
	};
	int err = gmem_sys_ioctl(gmemfd, request, &args);

	if (err)
		*ret_error_offset = args.error_offset;
	return err;
}

int gmem_kvm_prefault(int vcpu_fd, uint64_t gpa, uint64_t size, uint64_t *ret_done)
{
	struct gmem_kvm_pre_fault_memory args = {
		.gpa = gpa,
		.size = size,
	};
	int err = gmem_sys_ioctl(vcpu_fd, KVM_PRE_FAULT_MEMORY, &args);

	/* The kernel writes back what is left, on failure, too. */
	*ret_done = args.size <= size ? size - args.size : 0;
	return err;
}
