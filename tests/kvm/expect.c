/* SPDX-License-Identifier: MIT */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "expect.h"
#include "harness.h"

#define HOST (1u << GMEM_BACKING_HOST)
#define MAPPED (1u << GMEM_BACKING_MAPPED)
#define SHARED (1u << GMEM_BACKING_SHARED)
#define PRIVATE (1u << GMEM_BACKING_PRIVATE)

#define X86_64_SLOTS 32764
#define ARM64_SLOTS 32767

/* ---- the VMs there are ---- */

#define VM_6_1 {                                                          \
	.exists = true, .memslots = X86_64_SLOTS, .address_spaces = 2,    \
	.backings = HOST,                                                 \
}

/* x86 6.8 to 6.17 built without anything that needs guest_memfd */
#define VM_WITHOUT_GMEM {                                                 \
	.exists = true, .user_memory2 = 1, .memory_fault_info = 1,        \
	.vm_types = 1, .pre_fault = 1, .memslots = X86_64_SLOTS,          \
	.address_spaces = 2, .backings = HOST,                            \
}

/* A kernel built with SEV makes a guest_memfd and does not bind it. */
#define VM_UNBINDABLE(types) {                                            \
	.exists = true, .creates = true, .user_memory2 = 1,               \
	.memory_fault_info = 1, .vm_types = (types), .pre_fault = 1,      \
	.memslots = X86_64_SLOTS, .address_spaces = 2,                    \
	.backings = HOST,                                                 \
}

/* x86 6.18 and later */
#define VM_SHARED(types, prefaults) {                                     \
	.exists = true, .creates = true, .creates_mmap = true,            \
	.binds_unmapped = true, .user_memory2 = 1,                        \
	.memory_fault_info = 1, .guest_memfd = 1, .vm_types = (types),    \
	.pre_fault = (prefaults), .create_flags = 3,                      \
	.memslots = X86_64_SLOTS, .address_spaces = 2,                    \
	.backings = HOST | MAPPED | SHARED,                               \
}

#define VM_PRIVATE(flags, prefaults) {                                    \
	.exists = true, .creates = true, .creates_mmap = (flags) & 1,     \
	.binds_unmapped = true, .user_memory2 = 1,                        \
	.memory_fault_info = 1, .attributes = 8, .guest_memfd = 1,        \
	.vm_types = 3, .pre_fault = (prefaults), .create_flags = (flags), \
	.memslots = X86_64_SLOTS, .address_spaces = 1,                    \
	.backings = HOST | PRIVATE,                                       \
}

#define VM_ARM64_WITHOUT_GMEM {                                           \
	.exists = true, .user_memory2 = 1, .memslots = ARM64_SLOTS,       \
	.backings = HOST,                                                 \
}

#define VM_ARM64 {                                                        \
	.exists = true, .creates = true, .creates_mmap = true,            \
	.user_memory2 = 1, .guest_memfd = 1, .create_flags = 3,           \
	.memslots = ARM64_SLOTS, .backings = HOST | MAPPED | SHARED,      \
}

/* ---- the kernels there are; the last of a kind is the newest ---- */

#define X86_64(overlap)                                                   \
	.mbind_works = true, .file_overlap = (overlap),                   \
	.vm = { VM_SHARED(1, 1) }
#define X86_64_PRIVATE                                                    \
	.mbind_works = true, .file_overlap = -EEXIST,                     \
	.vm = { VM_SHARED(3, 1), VM_PRIVATE(1, 1) }
#define ARM64(mbind, overlap)                                             \
	.mbind_works = (mbind), .file_overlap = (overlap),                \
	.address_bits = 40, .vm = { VM_ARM64 }

static const struct expect kernels[] = {
	{ .id = "x86_64-6.1", .vm = { VM_6_1 } },
	{ .id = "x86_64-6.12", .vm = { VM_WITHOUT_GMEM } },
	{ .id = "x86_64-6.12-amd64", .vm = { VM_UNBINDABLE(1) } },
	{ .id = "x86_64-6.16", .vm = { VM_WITHOUT_GMEM } },
	{ .id = "x86_64-6.17", .vm = { VM_WITHOUT_GMEM } },
	{ .id = "x86_64-6.17-amd64", .vm = { VM_UNBINDABLE(1) } },
	{ .id = "x86_64-6.18", .file_overlap = -EINVAL, .vm = { VM_SHARED(1, 1) } },
	/* Predicted from arm64: these could not be run. */
	{ .id = "x86_64-6.19", X86_64(-EINVAL) },
	{ .id = "x86_64-7.0", X86_64(-EINVAL) },
	{ .id = "x86_64-7.1", X86_64(-EINVAL) },
	{ .id = "x86_64-7.2", X86_64(-EEXIST) },
	{ .id = "x86_64-7.3", X86_64(-EEXIST) },

	{
		.id = "x86_64-private-6.12",
		.file_overlap = -EINVAL,
		.vm = { VM_UNBINDABLE(3), VM_PRIVATE(0, 1) },
	},
	{ .id = "x86_64-private-1cpu", X86_64_PRIVATE },
	{ .id = "x86_64-private-4cpu", X86_64_PRIVATE },
	{ .id = "x86_64-private-debug", X86_64_PRIVATE },
	{
		/* Shadow paging: KVM emulates more, and has no private memory. */
		.id = "x86_64-private-npt0",
		.mbind_works = true,
		.file_overlap = -EEXIST,
		.reaches = GUEST_REACHES_EITHER,
		.vm = { VM_SHARED(1, 0) },
	},
	{ .id = "x86_64-private", X86_64_PRIVATE },

	{ .id = "arm64-6.12", .address_bits = 40, .vm = { VM_ARM64_WITHOUT_GMEM } },
	{ .id = "arm64-6.17", .address_bits = 40, .vm = { VM_ARM64_WITHOUT_GMEM } },
	{ .id = "arm64-6.18", ARM64(false, -EINVAL) },
	{ .id = "arm64-6.19", ARM64(true, -EINVAL) },
	{ .id = "arm64-7.0", ARM64(true, -EINVAL) },
	{ .id = "arm64-7.1", ARM64(true, -EINVAL) },
	{ .id = "arm64-7.2", ARM64(true, -EEXIST) },
	{ .id = "arm64-7.3-16k", ARM64(true, -EEXIST) },
	{ .id = "arm64-7.3-64k", ARM64(true, -EEXIST) },
	{ .id = "arm64-7.3", ARM64(true, -EEXIST) },
};

static const struct expect *find(const char *id)
{
	for (size_t i = 0; i < ARRAY_SIZE(kernels); i++) {
		if (!strcmp(kernels[i].id, id))
			return &kernels[i];
	}
	return NULL;
}

static const struct expect *predict(const char *id)
{
	if (!strncmp(id, "arm64", 5))
		return find("arm64-7.3");
	if (!strncmp(id, "x86_64-private", 14))
		return find("x86_64-private");
	return find("x86_64-7.3");
}

/* ---- a native host: what follows from its capabilities ---- */

static uint32_t backings_of(const struct expect_vm *vm)
{
	const int both = GMEM_CREATE_MMAP | GMEM_CREATE_INIT_SHARED;

	if (vm->guest_memfd < 1)
		return HOST;
	if (vm->attributes & (int)KVM_MEMORY_ATTRIBUTE_PRIVATE)
		return HOST | PRIVATE;
	return (vm->create_flags & both) == both ? HOST | MAPPED | SHARED : HOST;
}

static bool can_create(int vm_fd, uint64_t flags)
{
	int fd = raw_create(vm_fd, page_size(), flags);

	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

static bool can_bind_unmapped(int vm_fd)
{
	int fd = raw_create(vm_fd, page_size(), 0);
	bool works;

	if (fd < 0)
		return false;
	works = !raw_gmem_slot(vm_fd, 0, 0, 0, page_size(), NULL, fd, 0);
	close(fd);
	return works;
}

static bool mbind_works(int vm_fd)
{
	int fd = raw_create(vm_fd, page_size(), 0);
	bool works;

	if (fd < 0)
		return false;
	works = is_gmem_filesystem(fd);
	close(fd);
	return works;
}

static int file_overlap_errno(int vm_fd)
{
	uint64_t page = page_size();
	int fd = raw_create(vm_fd, page, GMEM_CREATE_MMAP);
	int ret = 0;

	if (fd < 0)
		return 0;
	if (!raw_gmem_slot(vm_fd, 1, 0, GIB, page, NULL, fd, 0))
		ret = raw_gmem_slot(vm_fd, 2, 0, 2 * GIB, page, NULL, fd, 0);
	close(fd);
	return ret;
}

static void ask_vm(int kvm_fd, int type, struct expect_vm *vm)
{
	int fd = (int)WORKS(raw_vm(kvm_fd, vm_argument(kvm_fd, type)));

	*vm = (struct expect_vm){
		.exists = true,
		.creates = can_create(fd, 0),
		.creates_mmap = can_create(fd, GMEM_CREATE_MMAP),
		.user_memory2 = kvm_cap(fd, KVM_CAP_USER_MEMORY2),
		.memory_fault_info = kvm_cap(fd, KVM_CAP_MEMORY_FAULT_INFO),
		.attributes = kvm_cap(fd, KVM_CAP_MEMORY_ATTRIBUTES),
		.guest_memfd = kvm_cap(fd, KVM_CAP_GUEST_MEMFD),
		.vm_types = kvm_cap(fd, KVM_CAP_VM_TYPES),
		.pre_fault = kvm_cap(fd, KVM_CAP_PRE_FAULT_MEMORY),
		.create_flags = kvm_cap(fd, KVM_CAP_GUEST_MEMFD_FLAGS),
		.memslots = kvm_cap(fd, KVM_CAP_NR_MEMSLOTS),
		.address_spaces = kvm_cap(fd, KVM_CAP_MULTI_ADDRESS_SPACE),
		.binds_unmapped = can_bind_unmapped(fd),
	};
	vm->backings = backings_of(vm);
	close(fd);
}

static void ask_host(struct expect *native)
{
	int kvm_fd = open_kvm();
	int vm_fd;

	for (int type = DEFAULT_VM; type <= PRIVATE_VM; type++) {
		if (machine_type_exists(kvm_fd, type))
			ask_vm(kvm_fd, type, &native->vm[type]);
	}

	vm_fd = (int)WORKS(raw_vm(kvm_fd, vm_argument(kvm_fd, DEFAULT_VM)));
	native->mbind_works = mbind_works(vm_fd);
	native->file_overlap = file_overlap_errno(vm_fd);
	close(vm_fd);
	close(kvm_fd);
}

const struct expect *expect(void)
{
	static struct expect native = {
		.id = "native",
		.reaches = GUEST_REACHES_UNKNOWN,
	};
	static bool asked;
	const char *id = emulated_machine();

	if (id)
		return find(id) ? find(id) : predict(id);
	if (!asked)
		ask_host(&native);
	asked = true;
	return &native;
}

const struct expect_vm *expect_vm(int type)
{
	return &expect()->vm[type];
}
