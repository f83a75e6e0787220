/* SPDX-License-Identifier: MIT */
/*
 * The kernels the fake can play, as measured on real ones. "t0" is a default
 * VM, "t1" KVM_X86_SW_PROTECTED_VM; "swp" a kernel built with the latter, "sev"
 * one with SEV. Numbers differ where kernels differ; nothing here is a wish.
 */
#include <errno.h>

#include "fake.h"

#define X86_BITS(n, bits)                                                               \
	.name = (n), .page_size = 4096, .address_bits = (bits), .nodes = 1,             \
	.unknown_ioctl = -ENOTTY, .beyond_address_bits = -EINVAL
#define X86(n)		X86_BITS(n, 48)

#define ARM64(n, page)                                                                  \
	.name = (n), .page_size = (page), .address_bits = 40, .nodes = 1,               \
	.unknown_ioctl = -EINVAL, .beyond_address_bits = -EFAULT,                       \
	.arm64 = true, .bind_needs_mmap = true

/*
 * How a guest_memfd shows itself, an anonymous inode or a filesystem of its own
 * since 6.19, and what binding bound pages again gives, which changed in 7.2
 */
#define ANON_INODE                                                                      \
	.filesystem_type = FAKE_ANON_INODE_MAGIC, .link = "anon_inode:[kvm-gmem]",      \
	.file_overlap = -EINVAL
#define FS_6_19                                                                         \
	.filesystem_type = FAKE_GMEM_MAGIC, .link = "/[kvm-gmem] (deleted)",            \
	.file_overlap = -EINVAL
#define FS_7_2                                                                          \
	.filesystem_type = FAKE_GMEM_MAGIC, .link = "/[kvm-gmem] (deleted)",            \
	.file_overlap = -EEXIST

/* capabilities of 6.8 to 6.17 without guest_memfd */
#define CAPS_6_8                                                                        \
	.user_memory2 = 1, .memory_fault_info = 1, .vm_types = 1, .pre_fault = 1,       \
	.memslots = 32764, .address_spaces = 2, .readonly = 1
#define CAPS_ARM64                                                                      \
	.user_memory2 = 1, .memslots = 32767, .readonly = 1

/* the same on /dev/kvm and on a VM fd */
#define BOTH(...)	.kvm = { __VA_ARGS__ }, .vm = { __VA_ARGS__ }
#define CAPS_SHARED	CAPS_6_8, .guest_memfd = 1, .create_flags = 3
#define CAPS_SWP	CAPS_6_8, .guest_memfd = 1, .memory_attributes = 8
#define CAPS_T1(flags)                                                                  \
	.user_memory2 = 1, .memory_fault_info = 1, .vm_types = 3, .pre_fault = 1,       \
	.memslots = 32764, .address_spaces = 1, .readonly = 1, .guest_memfd = 1,        \
	.memory_attributes = 8, .create_flags = (flags)

#define SHARED		.has_create = true, .binds = true, .legal_flags = 3
#define PRIVATE(flags)                                                                  \
	.has_create = true, .binds = true, .private_memory = true,                      \
	.vm_type = 1, .legal_flags = (flags)
#define BIND_REFUSED	.has_create = true

/* vm_types is a mask: 3 where type 1 is built in */
#define SWP_KVM(flags)	.kvm = { CAPS_T1(flags) }

const struct fake_kernel fake_kernels[] = {
	{
		X86("6.1"), ANON_INODE,
		BOTH(.memslots = 32764, .address_spaces = 2, .readonly = 1),
	},
	{ X86("6.12"), ANON_INODE, BOTH(CAPS_6_8) },
	{ X86("6.17"), ANON_INODE, BOTH(CAPS_6_8) },

	/* Creating succeeds, every bind is refused */
	{
		X86("6.12-sev"), ANON_INODE, BIND_REFUSED,
		.kvm = { CAPS_SWP }, .vm = { CAPS_6_8 },
	},
	{
		X86("6.17-sev"), ANON_INODE, BIND_REFUSED,
		.kvm = { CAPS_SWP }, .vm = { CAPS_6_8 },
	},
	{
		X86("6.12-swp-t0"), ANON_INODE, BIND_REFUSED,
		SWP_KVM(0),
		.vm = { .user_memory2 = 1, .memory_fault_info = 1, .vm_types = 3,
			.pre_fault = 1, .memslots = 32764, .address_spaces = 2, .readonly = 1 },
	},
	{ X86("6.12-swp-t1"), ANON_INODE, PRIVATE(0), SWP_KVM(0), .vm = { CAPS_T1(0) } },

	/* One release candidate: a boolean, and MMAP alone is shared memory */
	{
		X86("6.18-rc1"), ANON_INODE,
		.has_create = true, .binds = true, .legal_flags = 1, .mmap_is_shared = true,
		BOTH(CAPS_6_8, .guest_memfd = 1, .create_flags = 1),
	},
	{ X86("6.18"), ANON_INODE, SHARED, BOTH(CAPS_SHARED) },
	{
		X86("6.18-swp-t0"), ANON_INODE, SHARED, SWP_KVM(3),
		.vm = { .user_memory2 = 1, .memory_fault_info = 1, .vm_types = 3,
			.pre_fault = 1, .memslots = 32764, .address_spaces = 2, .readonly = 1,
			.guest_memfd = 1, .create_flags = 3 },
	},
	{ X86("6.18-swp-t1"), ANON_INODE, PRIVATE(1), SWP_KVM(3), .vm = { CAPS_T1(1) } },

	/* mbind() decides where pages go */
	{ X86("6.19"), FS_6_19, SHARED, BOTH(CAPS_SHARED) },
	/* Binding bound pages again has an errno of its own */
	{ X86("7.2"), FS_7_2, SHARED, BOTH(CAPS_SHARED) },
	{
		X86("7.3-swp-t0"), FS_7_2, SHARED, SWP_KVM(3),
		.vm = { .user_memory2 = 1, .memory_fault_info = 1, .vm_types = 3,
			.pre_fault = 1, .memslots = 32764, .address_spaces = 2, .readonly = 1,
			.guest_memfd = 1, .create_flags = 3 },
	},
	{
		X86("7.3-swp-t1"), FS_7_2, PRIVATE(1), SWP_KVM(3), .vm = { CAPS_T1(1) },
	},
	/* Shadow paging: KVM emulates some accesses, and those meet the hva */
	{
		X86_BITS("7.3-npt0", 52), FS_7_2, SHARED, .guest = FAKE_GUEST_STORES_TO_HVA,
		BOTH(.user_memory2 = 1, .memory_fault_info = 1, .vm_types = 1,
		     .memslots = 32764, .address_spaces = 2, .readonly = 1,
		     .guest_memfd = 1, .create_flags = 3),
	},
	/* A software backend: whatever is bound, the guest runs from the hva */
	{
		X86("6.18-pvm"), ANON_INODE, SHARED, .guest = FAKE_GUEST_USES_HVA,
		BOTH(.user_memory2 = 1, .memory_fault_info = 1, .vm_types = 1,
		     .memslots = 32764, .readonly = 1, .guest_memfd = 1, .create_flags = 3),
	},

	{ ARM64("arm64-6.17", 4096), ANON_INODE, BOTH(CAPS_ARM64) },
	{
		ARM64("arm64-6.18", 4096), ANON_INODE, SHARED,
		BOTH(CAPS_ARM64, .guest_memfd = 1, .create_flags = 3),
	},
	{
		ARM64("arm64-7.3-4k", 4096), FS_7_2, SHARED,
		BOTH(CAPS_ARM64, .guest_memfd = 1, .create_flags = 3),
	},
	{
		ARM64("arm64-7.3-16k", 16384), FS_7_2, SHARED,
		BOTH(CAPS_ARM64, .guest_memfd = 1, .create_flags = 3),
	},
	{
		ARM64("arm64-7.3-64k", 65536), FS_7_2, SHARED,
		BOTH(CAPS_ARM64, .guest_memfd = 1, .create_flags = 3),
	},

	/* Kernels to come: a bit nobody knows; both bits on a private-memory VM */
	{
		X86("future-t0"), FS_7_2,
		.has_create = true, .binds = true, .legal_flags = 7,
		BOTH(CAPS_6_8, .guest_memfd = 1, .create_flags = 7),
	},
	{
		X86("future-t1"), FS_7_2, PRIVATE(3), SWP_KVM(3), .vm = { CAPS_T1(3) },
	},

	/* Some capabilities are negative where others are 0 */
	{
		X86("negative"), ANON_INODE,
		BOTH(.user_memory2 = -1, .memory_fault_info = -EINVAL,
		     .memory_attributes = -1, .guest_memfd = -1, .vm_types = -EINVAL,
		     .pre_fault = -1, .create_flags = -1, .memslots = 32764,
		     .address_spaces = -1, .readonly = -1),
	},
	{
		X86("no-kvm"), ANON_INODE, .kvm_errno = -ENOENT,
		BOTH(.memslots = 32764, .address_spaces = 2, .readonly = 1),
	},
};

const size_t fake_kernel_count = sizeof(fake_kernels) / sizeof(fake_kernels[0]);
