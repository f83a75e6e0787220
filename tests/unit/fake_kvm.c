/* SPDX-License-Identifier: MIT */
/* KVM's ioctls on /dev/kvm and on VMs, with the rules of the kernel played */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fake_internal.h"

#define MAX_SLOT_PAGES	(((uint64_t)1 << 31) - 1)

/* -------------------------------------------------------- VMs and their files -- */

/* The row of the kernel is about another type of VM: change it to the default type's */
static void become_default_vm(struct vm *vm)
{
	vm->caps = fake.kvm;
	vm->caps.memory_attributes = 0;
	vm->caps.guest_memfd = fake.kvm.create_flags > 0;
	vm->private_memory = false;
	vm->binds = fake.kvm.create_flags > 0;
	vm->legal_flags = vm->binds ? 3 : 0;
}

static bool vm_type_exists(uint64_t type)
{
	if (fake.arm64)
		return type == 0 || (type >= 32 && type <= 48);
	return type == 0 || type == fake.vm_type;
}

int create_vm(uint64_t type)
{
	struct vm *vm;

	if (!vm_type_exists(type))
		return -EINVAL;

	vm = must(calloc(1, sizeof(*vm)));
	vm->slots = must(calloc(SPACES * MAX_SLOTS, sizeof(*vm->slots)));
	vm->id = ++kernel.last_id;
	vm->caps = fake.vm;
	vm->private_memory = fake.private_memory;
	vm->binds = fake.binds;
	vm->legal_flags = fake.legal_flags;
	if (type != fake.vm_type && !fake.arm64)
		become_default_vm(vm);
	vm->next = kernel.vms;
	kernel.vms = vm;
	vm->first_fd = eventfd(0, 0);
	open_handle(vm->first_fd, VM, vm, NULL);
	return vm->first_fd;
}

/*
 * Behind a file is a memfd of the same size or, if the host may not reach the
 * contents, of size 0: then a touch is a real SIGBUS.
 */
int create_gmemfd(struct vm *vm, const struct gmem_kvm_create_guest_memfd *args)
{
	struct file *file;
	int fd;

	if (!fake.has_create)
		return fake.unknown_ioctl;
	if (args->flags & ~vm->legal_flags)
		return -EINVAL;
	if (args->size == 0 || !is_aligned(args->size) || args->size >> 63)
		return -EINVAL;

	file = must(calloc(1, sizeof(*file)));
	file->id = ++kernel.last_id;
	file->vm = vm;
	file->flags = args->flags;
	file->size = args->size;
	file->next = kernel.files;
	kernel.files = file;
	vm->files++;

	fd = memfd_create("fake-gmem", 0);
	if (is_host_accessible(file) && ftruncate(fd, (off_t)file->size) < 0)
		abort();
	open_handle(fd, GMEM, NULL, file);
	return fd;
}

/* --------------------------------------------------------------- memslots -- */

static int check_slot_flags(const struct vm *vm, const struct slot_args *a)
{
	uint32_t legal = KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY;

	if (vm->caps.readonly <= 0)
		legal = KVM_MEM_LOG_DIRTY_PAGES;
	if (a->is_v2 && vm->binds) {
		if (a->flags & KVM_MEM_GUEST_MEMFD)
			legal = 0;
		legal |= (uint32_t)KVM_MEM_GUEST_MEMFD;
	}
	return a->flags & ~legal ? -EINVAL : 0;
}

static int check_slot_numbers(const struct vm *vm, const struct slot_args *a)
{
	uint32_t spaces = vm->caps.address_spaces > 1 ? (uint32_t)vm->caps.address_spaces : 1;

	if (!is_aligned(a->gpa) || !is_aligned(a->size) || !is_aligned(a->hva))
		return -EINVAL;
	if (a->hva > ADDRESS_END || a->size > ADDRESS_END - a->hva)
		return -EINVAL;
	if ((a->flags & KVM_MEM_GUEST_MEMFD) &&
	    (!is_aligned(a->offset) || a->offset + a->size < a->offset))
		return -EINVAL;
	if ((a->number & 0xffff) >= (uint32_t)vm->caps.memslots || a->number >> 16 >= spaces)
		return -EINVAL;
	if (a->gpa + a->size < a->gpa || a->size / fake.page_size > MAX_SLOT_PAGES)
		return -EINVAL;
	return 0;
}

#define DIRTY_BYTES (DIRTY_WORDS * sizeof(uint64_t))

/* The bits of a memslot's dirty pages, or NULL if none are kept */
static uint64_t *dirty_of(struct vm *vm, uint32_t number)
{
	return (number & 0xffff) < DIRTY_SLOTS ? vm->dirty[number >> 16][number & 0xffff] : NULL;
}

static void drop_slot(struct vm *vm, struct fake_slot *slot)
{
	struct file *file;

	for (file = kernel.files; file; file = file->next)
		if (file->id == slot->file)
			span_remove(&file->bound, slot->offset, slot->number);
	span_remove(&vm->by_gpa, span_of_gpa(slot->number, slot->gpa), slot_index(slot->number));
	if (dirty_of(vm, slot->number))
		memset(dirty_of(vm, slot->number), 0, DIRTY_BYTES);
	memset(slot, 0, sizeof(*slot));
}

static int find_file_to_bind(const struct vm *vm, const struct slot_args *a,
			     struct file **ret)
{
	struct handle *h = handle_of(a->fd);

	if (!is_open(a->fd))
		return -EBADF;
	if (!h || h->kind != GMEM || h->file->vm != vm)
		return -EINVAL;
	if (a->offset + a->size > h->file->size)
		return -EINVAL;
	if (span_overlaps(&h->file->bound, a->offset, a->offset + a->size, UINT32_MAX))
		return fake.file_overlap;
	*ret = h->file;
	return 0;
}

/* The architecture looks last, when all else is fine */
static int check_slot_arch(const struct slot_args *a, const struct file *file)
{
	if (fake.address_bits < 64 && (a->gpa + a->size - 1) >> fake.address_bits)
		return fake.beyond_address_bits;
	if (file && fake.bind_needs_mmap && !(file->flags & GUEST_MEMFD_FLAG_MMAP))
		return -EINVAL;
	return 0;
}

/* A guest_memfd slot never changes; a plain one moves, or changes its logging */
static int check_slot_change(const struct fake_slot *old, const struct slot_args *a)
{
	if ((old->flags | a->flags) & KVM_MEM_GUEST_MEMFD)
		return -EINVAL;
	if (old->hva != a->hva || old->size != a->size)
		return -EINVAL;
	return (old->flags ^ a->flags) & KVM_MEM_READONLY ? -EINVAL : 0;
}

int set_slot(struct vm *vm, const struct slot_args *a)
{
	struct fake_slot *slot;
	struct file *file = NULL;
	uint64_t dirty[DIRTY_WORDS] = { 0 };
	int err;

	err = check_slot_flags(vm, a);
	if (!err)
		err = check_slot_numbers(vm, a);
	if (err)
		return err;
	slot = &vm->slots[slot_index(a->number)];
	if (a->size == 0) {
		if (!slot->size)
			return -EINVAL;
		drop_slot(vm, slot);
		return 0;
	}

	if (slot->size)
		err = check_slot_change(slot, a);
	if (!err && span_overlaps(&vm->by_gpa, span_of_gpa(a->number, a->gpa),
				  span_of_gpa(a->number, a->gpa) + a->size, slot_index(a->number)))
		err = -EEXIST;
	if (!err && (a->flags & KVM_MEM_GUEST_MEMFD))
		err = find_file_to_bind(vm, a, &file);
	if (!err)
		err = check_slot_arch(a, file);
	if (err)
		return err;

	/* A memslot that moves takes its log along. */
	if (dirty_of(vm, a->number) && slot->flags & a->flags & KVM_MEM_LOG_DIRTY_PAGES)
		memcpy(dirty, dirty_of(vm, a->number), sizeof(dirty));
	if (slot->size)
		drop_slot(vm, slot);
	if (dirty_of(vm, a->number))
		memcpy(dirty_of(vm, a->number), dirty, sizeof(dirty));
	*slot = (struct fake_slot){
		.number = a->number,
		.flags = a->flags,
		.gpa = a->gpa,
		.size = a->size,
		.hva = a->hva,
		.offset = file ? a->offset : 0,
		.file = file ? file->id : 0,
	};
	span_add(&vm->by_gpa, span_of_gpa(a->number, a->gpa), span_of_gpa(a->number, a->gpa) + a->size,
		 slot_index(a->number));
	if (file)
		span_add(&file->bound, a->offset, a->offset + a->size, a->number);
	return 0;
}

static int set_slot_v1(struct vm *vm, const struct kvm_userspace_memory_region *args)
{
	const struct slot_args a = {
		.number = args->slot,
		.flags = args->flags,
		.gpa = args->guest_phys_addr,
		.size = args->memory_size,
		.hva = args->userspace_addr,
	};

	return set_slot(vm, &a);
}

static int set_slot_v2(struct vm *vm, const struct gmem_kvm_userspace_memory_region2 *args)
{
	const struct slot_args a = {
		.is_v2 = true,
		.number = args->slot,
		.flags = args->flags,
		.gpa = args->guest_phys_addr,
		.size = args->memory_size,
		.hva = args->userspace_addr,
		.offset = args->guest_memfd_offset,
		.fd = (int)args->guest_memfd,
	};

	if (vm->caps.user_memory2 <= 0)
		return fake.unknown_ioctl;
	return set_slot(vm, &a);
}

static size_t words_of(const struct fake_slot *slot)
{
	return (slot->size / fake.page_size + 63) / 64;
}

static int get_dirty_log(struct vm *vm, const struct kvm_dirty_log *args)
{
	const struct fake_slot *slot = &vm->slots[slot_index(args->slot)];
	uint64_t *to = args->dirty_bitmap, *from;

	if (vm->ring == FAKE_RING_ALONE)
		return -ENXIO;
	if (!(slot->flags & KVM_MEM_LOG_DIRTY_PAGES))
		return -ENOENT;
	memset(to, 0, words_of(slot) * 8);
	from = dirty_of(vm, args->slot);
	if (!from)
		return 0;

	for (size_t i = 0; i < words_of(slot) && i < DIRTY_WORDS; i++) {
		to[i] = from[i];
		if (!vm->clears_by_hand)
			from[i] = 0;
	}
	return 0;
}

/* It works without manual protection, too. */
static int clear_dirty_log(struct vm *vm, const struct kvm_clear_dirty_log *args)
{
	const struct fake_slot *slot = &vm->slots[slot_index(args->slot)];
	uint64_t pages = slot->size / fake.page_size, first = args->first_page / 64;
	const uint64_t *bits = args->dirty_bitmap;

	if (vm->ring == FAKE_RING_ALONE)
		return -ENXIO;
	if (args->first_page % 64)
		return -EINVAL;
	if (!(slot->flags & KVM_MEM_LOG_DIRTY_PAGES))
		return -ENOENT;
	if (args->first_page > pages || args->num_pages > pages - args->first_page ||
	    (args->num_pages < pages - args->first_page && args->num_pages % 64))
		return -EINVAL;

	for (size_t i = 0; i < (args->num_pages + 63) / 64; i++)
		if (dirty_of(vm, args->slot) && first + i < DIRTY_WORDS)
			dirty_of(vm, args->slot)[first + i] &= ~bits[i];
	return 0;
}

void fake_write_page(int vm_fd, uint32_t number, uint64_t page)
{
	struct vm *vm;

	enter();
	vm = vm_of(vm_fd);
	if (vm->slots[slot_index(number)].flags & KVM_MEM_LOG_DIRTY_PAGES && vm->ring != FAKE_RING_ALONE)
		dirty_of(vm, number)[page / 64] |= UINT64_C(1) << (page % 64);
	leave(0);
}

void fake_clear_log_by_hand(int vm_fd)
{
	enter();
	vm_of(vm_fd)->clears_by_hand = true;
	leave(0);
}

void fake_set_dirty_ring(int vm_fd, enum fake_ring ring)
{
	enter();
	vm_of(vm_fd)->ring = ring;
	leave(0);
}

/* ------------------------------------------------------------------ ioctl -- */

static int check_extension(const struct fake_caps *caps, uintptr_t cap)
{
	switch (cap) {
	case KVM_CAP_USER_MEMORY:
	case KVM_CAP_SYNC_MMU:
	case KVM_CAP_CHECK_EXTENSION_VM:
		return 1;
	case KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2:
		return 3;
	case KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP:
		return fake.arm64;
	case KVM_CAP_NR_MEMSLOTS:
		return caps->memslots;
	case KVM_CAP_READONLY_MEM:
		return caps->readonly;
	case KVM_CAP_MULTI_ADDRESS_SPACE:
		return caps->address_spaces;
	case KVM_CAP_ARM_VM_IPA_SIZE:
		return fake.arm64 ? 48 : 0;
	case KVM_CAP_USER_MEMORY2:
		return caps->user_memory2;
	case KVM_CAP_MEMORY_FAULT_INFO:
		return caps->memory_fault_info;
	case KVM_CAP_MEMORY_ATTRIBUTES:
		return caps->memory_attributes;
	case KVM_CAP_GUEST_MEMFD:
		return caps->guest_memfd;
	case KVM_CAP_VM_TYPES:
		return caps->vm_types;
	case KVM_CAP_PRE_FAULT_MEMORY:
		return caps->pre_fault;
	case KVM_CAP_GUEST_MEMFD_FLAGS:
		return caps->create_flags;
	default:
		return 0;
	}
}

static int kvm_ioctl(unsigned long request, void *arg)
{
	int fd;

	switch (request) {
	case KVM_GET_API_VERSION:
		return fake.api_version ? fake.api_version : KVM_API_VERSION;
	case KVM_CHECK_EXTENSION:
		return check_extension(&fake.kvm, (uintptr_t)arg);
	case KVM_CREATE_VM:
		fd = create_vm((uintptr_t)arg);
		if (fd >= 0)
			kernel.fds[fd].vm->is_librarys = true;
		return fd;
	case KVM_GET_VCPU_MMAP_SIZE:
		return (int)(2 * fake.page_size);
	default:
		return -EINVAL;
	}
}

static int set_attributes(struct vm *vm, const struct gmem_kvm_memory_attributes *args)
{
	if (fake.kvm.memory_attributes <= 0)
		return fake.unknown_ioctl;
	if (args->flags || (args->attributes & ~KVM_MEMORY_ATTRIBUTE_PRIVATE))
		return -EINVAL;
	if (args->attributes && !vm->private_memory)
		return -EINVAL;
	if (!args->size || !is_aligned(args->address) || !is_aligned(args->size) ||
	    args->address + args->size < args->address)
		return -EINVAL;

	span_set(&vm->privates, args->address, args->address + args->size, args->attributes);
	return 0;
}

/* Checked over the whole range, then done, as proposed */
static int set_file_attributes(struct file *file, struct gmem_kvm_file_attributes *args)
{
	static const __u64 none[11];

	if (args->flags || (args->attributes & ~KVM_MEMORY_ATTRIBUTE_PRIVATE) ||
	    memcmp(args->reserved, none, sizeof(none)) != 0 || !file->vm->private_memory)
		return -EINVAL;
	if (!args->size || !is_aligned(args->offset) || !is_aligned(args->size) ||
	    args->offset + args->size < args->offset || args->offset + args->size > file->size)
		return -EINVAL;
	if (file->pinned_times && file->pinned - args->offset < args->size) {
		file->pinned_times--;
		args->error_offset = file->pinned;
		return -EAGAIN;
	}

	if (fake.inplace_is_hollow)
		return 0;
	span_set(&file->privates, args->offset, args->offset + args->size, args->attributes);
	return 0;
}

static int gmem_ioctl(struct file *file, unsigned long request, void *arg)
{
	if (fake.inplace_request && request == fake.inplace_request)
		return set_file_attributes(file, arg);
	return -ENOTTY;
}

static int vm_ioctl(struct vm *vm, unsigned long request, void *arg)
{
	if (vm->dead)
		return -EIO;

	switch (request) {
	case KVM_CHECK_EXTENSION:
		return check_extension(&vm->caps, (uintptr_t)arg);
	case KVM_CREATE_VCPU:
		return create_vcpu(vm);
	case KVM_SET_USER_MEMORY_REGION:
		return set_slot_v1(vm, arg);
	case KVM_SET_USER_MEMORY_REGION2:
		return set_slot_v2(vm, arg);
	case KVM_CREATE_GUEST_MEMFD:
		return create_gmemfd(vm, arg);
	case KVM_SET_MEMORY_ATTRIBUTES:
		return set_attributes(vm, arg);
	case KVM_GET_DIRTY_LOG:
		return get_dirty_log(vm, arg);
	case KVM_CLEAR_DIRTY_LOG:
		return clear_dirty_log(vm, arg);
	case KVM_RESET_DIRTY_RINGS:
		return reset_dirty_rings(vm);
	default:
		return fake.unknown_ioctl;
	}
}

static int dispatch_ioctl(int fd, unsigned long request, void *arg)
{
	struct handle *h = handle_of(fd);

	if (!is_open(fd))
		return -EBADF;
	if (!h)
		return -ENOTTY;

	switch (h->kind) {
	case KVM:
		return kvm_ioctl(request, arg);
	case VM:
		return vm_ioctl(h->vm, request, arg);
	case VCPU:
		return vcpu_ioctl(h, request, arg);
	case GMEM:
		return gmem_ioctl(h->file, request, arg);
	default:
		return -ENOTTY;
	}
}

static enum fake_call classify(unsigned long request, const void *arg)
{
	if (fake.inplace_request && request == fake.inplace_request)
		return FAKE_SET_ATTRIBUTES;
	switch (request) {
	case KVM_CHECK_EXTENSION:
		return FAKE_CHECK_EXTENSION;
	case KVM_CREATE_VM:
		return FAKE_CREATE_VM;
	case KVM_CREATE_GUEST_MEMFD:
		return FAKE_CREATE_GMEMFD;
	case KVM_RUN:
		return FAKE_RUN;
	case KVM_PRE_FAULT_MEMORY:
		return FAKE_PRE_FAULT;
	case KVM_SET_USER_MEMORY_REGION:
		return ((const struct kvm_userspace_memory_region *)arg)->memory_size ?
		       FAKE_SET_SLOT : FAKE_DELETE_SLOT;
	case KVM_SET_USER_MEMORY_REGION2:
		return ((const struct gmem_kvm_userspace_memory_region2 *)arg)->memory_size ?
		       FAKE_SET_SLOT2 : FAKE_DELETE_SLOT;
	case KVM_SET_MEMORY_ATTRIBUTES:
		return FAKE_SET_ATTRIBUTES;
	default:
		return FAKE_OTHER_IOCTL;
	}
}

bool fake_guest_stores(int vm_fd, uint64_t gpa, struct fake_slot *ret)
{
	struct vm *vm;
	uint64_t page;
	size_t at;
	bool hit;

	enter();
	vm = must(vm_of(vm_fd));
	at = span_at(&vm->by_gpa, gpa);
	hit = span_has(&vm->by_gpa, gpa);
	if (hit) {
		*ret = vm->slots[vm->by_gpa.v[at].number];
		page = (gpa - ret->gpa) / fake.page_size;
		if (ret->flags & KVM_MEM_LOG_DIRTY_PAGES && dirty_of(vm, ret->number) &&
		    page / 64 < DIRTY_WORDS)
			dirty_of(vm, ret->number)[page / 64] |= UINT64_C(1) << page % 64;
	}
	leave(0);
	return hit;
}

void (*fake_before_slot)(void);

int gmem_sys_ioctl(int fd, unsigned long request, void *arg)
{
	enum fake_call call = classify(request, arg);
	int ret;

	if (fake_before_slot &&
	    (call == FAKE_SET_SLOT || call == FAKE_SET_SLOT2 || call == FAKE_DELETE_SLOT))
		fake_before_slot();

	enter();
	ret = attempt(call);
	if (!ret)
		ret = dispatch_ioctl(fd, request, arg);
	return leave(ret);
}
