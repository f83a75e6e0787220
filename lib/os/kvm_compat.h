/* SPDX-License-Identifier: MIT */
/*
 * kvm_compat: definitions that <linux/kvm.h> of older distributions lacks.
 *
 * Only numbers from the header of a released kernel belong here.
 */
#ifndef GMEM_KVM_COMPAT_H
#define GMEM_KVM_COMPAT_H

#include <linux/kvm.h>
#include <linux/types.h>

/* Linux 5.1, 5.11 and 6.2 */
#ifndef KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2
#define KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2	168
#endif
#ifndef KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP
#define KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP	225
#endif
#ifndef KVM_RESET_DIRTY_RINGS
#define KVM_RESET_DIRTY_RINGS		_IO(KVMIO, 0xc7)
#endif

/*
 * Dirty rings, Linux 5.11 and, of arm64, 6.2, where the headers of both have different names for
 * the same: where a vCPU's fd has its ring, in pages, how large it may be, and its entries.
 */
#define GMEM_KVM_DIRTY_RING_PAGE	64
#define GMEM_KVM_DIRTY_RING_MAX		65536
#define GMEM_KVM_DIRTY			0x1
#define GMEM_KVM_DIRTY_RESET		0x2
#define GMEM_KVM_DIRTY_MASK		0x3
#ifndef KVM_EXIT_DIRTY_RING_FULL
#define KVM_EXIT_DIRTY_RING_FULL	31
#endif

struct gmem_kvm_dirty_entry {
	__u32 flags;
	__u32 slot;
	__u64 offset;
};

/* Linux 6.8 */
#ifndef KVM_CAP_USER_MEMORY2
#define KVM_CAP_USER_MEMORY2		231
#endif
#ifndef KVM_CAP_MEMORY_FAULT_INFO
#define KVM_CAP_MEMORY_FAULT_INFO	232
#endif
#ifndef KVM_CAP_MEMORY_ATTRIBUTES
#define KVM_CAP_MEMORY_ATTRIBUTES	233
#endif
#ifndef KVM_CAP_GUEST_MEMFD
#define KVM_CAP_GUEST_MEMFD		234
#endif
#ifndef KVM_CAP_VM_TYPES
#define KVM_CAP_VM_TYPES		235
#endif
#ifndef KVM_MEM_GUEST_MEMFD
#define KVM_MEM_GUEST_MEMFD		(1UL << 2)
#endif
#ifndef KVM_MEMORY_ATTRIBUTE_PRIVATE
#define KVM_MEMORY_ATTRIBUTE_PRIVATE	(1ULL << 3)
#endif
#ifndef KVM_EXIT_MEMORY_FAULT
#define KVM_EXIT_MEMORY_FAULT		39
#endif

#ifndef KVM_MEMORY_EXIT_FLAG_PRIVATE
#define KVM_MEMORY_EXIT_FLAG_PRIVATE	(1ULL << 3)
#endif

/* Linux 6.11 */
#ifndef KVM_CAP_PRE_FAULT_MEMORY
#define KVM_CAP_PRE_FAULT_MEMORY	236
#endif

/* Types of VM on x86, for KVM_CREATE_VM: Linux 6.8, 6.11, 6.16 */
#ifndef KVM_X86_SW_PROTECTED_VM
#define KVM_X86_SW_PROTECTED_VM		1
#endif
#ifndef KVM_X86_SNP_VM
#define KVM_X86_SNP_VM			4
#endif
#ifndef KVM_X86_TDX_VM
#define KVM_X86_TDX_VM			5
#endif

/* Linux 6.18 */
#ifndef KVM_CAP_GUEST_MEMFD_FLAGS
#define KVM_CAP_GUEST_MEMFD_FLAGS	244
#endif
#ifndef GUEST_MEMFD_FLAG_MMAP
#define GUEST_MEMFD_FLAG_MMAP		(1ULL << 0)
#endif
#ifndef GUEST_MEMFD_FLAG_INIT_SHARED
#define GUEST_MEMFD_FLAG_INIT_SHARED	(1ULL << 1)
#endif

/* Linux 6.19: the f_type that statfs(2) returns for a guest_memfd */
#ifndef GUEST_MEMFD_MAGIC
#define GUEST_MEMFD_MAGIC		0x474d454d
#endif
/* The same for all anonymous inodes, and for a guest_memfd before Linux 6.19 */
#ifndef ANON_INODE_FS_MAGIC
#define ANON_INODE_FS_MAGIC		0x09041934
#endif

/*
 * The structs below have names of our own, because the preprocessor cannot test whether
 * <linux/kvm.h> defines the kernel's.
 */
struct gmem_kvm_create_guest_memfd {
	__u64 size;
	__u64 flags;
	__u64 reserved[6];
};

struct gmem_kvm_userspace_memory_region2 {
	__u32 slot;
	__u32 flags;
	__u64 guest_phys_addr;
	__u64 memory_size;
	__u64 userspace_addr;
	__u64 guest_memfd_offset;
	__u32 guest_memfd;
	__u32 pad1;
	__u64 pad2[14];
};

struct gmem_kvm_memory_attributes {
	__u64 address;
	__u64 size;
	__u64 attributes;
	__u64 flags;
};

/* kvm_run.memory_fault */
struct gmem_kvm_memory_fault {
	__u64 flags;
	__u64 gpa;
	__u64 size;
};

#ifndef KVM_SET_USER_MEMORY_REGION2
#define KVM_SET_USER_MEMORY_REGION2 \
	_IOW(KVMIO, 0x49, struct gmem_kvm_userspace_memory_region2)
#endif
#ifndef KVM_SET_MEMORY_ATTRIBUTES
#define KVM_SET_MEMORY_ATTRIBUTES \
	_IOW(KVMIO, 0xd2, struct gmem_kvm_memory_attributes)
#endif
#ifndef KVM_CREATE_GUEST_MEMFD
#define KVM_CREATE_GUEST_MEMFD \
	_IOWR(KVMIO, 0xd4, struct gmem_kvm_create_guest_memfd)
#endif

/* Linux 6.11 */
struct gmem_kvm_pre_fault_memory {
	__u64 gpa;
	__u64 size;
	__u64 flags;
	__u64 padding[5];
};

#ifndef KVM_PRE_FAULT_MEMORY
#define KVM_PRE_FAULT_MEMORY \
	_IOWR(KVMIO, 0xd5, struct gmem_kvm_pre_fault_memory)
#endif

#define GMEM_ASSERT_IOCTL_SIZE(type, request) \
	_Static_assert(sizeof(struct type) == _IOC_SIZE(request), #request)

GMEM_ASSERT_IOCTL_SIZE(gmem_kvm_userspace_memory_region2, KVM_SET_USER_MEMORY_REGION2);
GMEM_ASSERT_IOCTL_SIZE(gmem_kvm_memory_attributes, KVM_SET_MEMORY_ATTRIBUTES);
GMEM_ASSERT_IOCTL_SIZE(gmem_kvm_create_guest_memfd, KVM_CREATE_GUEST_MEMFD);
GMEM_ASSERT_IOCTL_SIZE(gmem_kvm_pre_fault_memory, KVM_PRE_FAULT_MEMORY);

#endif
