/* SPDX-License-Identifier: MIT */
/* A vCPU that knows four instructions: what the library's self-test needs */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fake_internal.h"

static void *map_dirty_ring(int fd)
{
	uint64_t offset = GMEM_KVM_DIRTY_RING_PAGE * fake.page_size;
	void *ring;

	if (ftruncate(fd, (off_t)(offset + fake.page_size)) < 0)
		abort();
	ring = mmap(NULL, fake.page_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)offset);
	if (ring == MAP_FAILED)
		abort();
	return ring;
}

static struct gmem_kvm_dirty_entry *ring_entry(const struct vcpu *vcpu, uint32_t at)
{
	return &vcpu->ring[at % (fake.page_size / sizeof(*vcpu->ring))];
}

/* In order, as far as they were taken out */
int reset_dirty_rings(struct vm *vm)
{
	int count = 0;

	if (!vm->ring)
		return -EINVAL;
	for (int fd = 0; fd < MAX_FDS; fd++) {
		struct vcpu *vcpu = kernel.fds[fd].kind == VCPU && kernel.fds[fd].vm == vm ?
				    kernel.fds[fd].vcpu : NULL;

		while (vcpu && vcpu->ring && ring_entry(vcpu, vcpu->ring_reset)->flags & GMEM_KVM_DIRTY_RESET) {
			ring_entry(vcpu, vcpu->ring_reset++)->flags = 0;
			count++;
		}
	}
	return count;
}

bool fake_push_dirty(int vcpu_fd, uint32_t slot, uint64_t page)
{
	uint32_t count = (uint32_t)(fake.page_size / sizeof(struct gmem_kvm_dirty_entry));
	struct gmem_kvm_dirty_entry *entry;
	struct vcpu *vcpu;
	bool has_room;

	enter();
	vcpu = handle_of(vcpu_fd)->vcpu;
	has_room = vcpu->ring_at - vcpu->ring_reset < count - 1;
	if (has_room) {
		entry = ring_entry(vcpu, vcpu->ring_at++);
		entry->slot = slot;
		entry->offset = page;
		__atomic_store_n(&entry->flags, GMEM_KVM_DIRTY, __ATOMIC_RELEASE);
	}
	leave(0);
	return has_room;
}

unsigned fake_ring_used(int vcpu_fd)
{
	struct vcpu *vcpu;
	unsigned used;

	enter();
	vcpu = handle_of(vcpu_fd)->vcpu;
	used = vcpu->ring_at - vcpu->ring_reset;
	leave(0);
	return used;
}

int create_vcpu(struct vm *vm)
{
	int fd = memfd_create("fake-vcpu", MFD_CLOEXEC);
	uint64_t size = 2 * fake.page_size;
	struct vcpu *vcpu = must(calloc(1, sizeof(*vcpu)));
	struct handle *h;

	if (ftruncate(fd, (off_t)size) < 0)
		abort();
	vcpu->run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (vcpu->run == MAP_FAILED)
		abort();
	if (vm->ring)
		vcpu->ring = map_dirty_ring(fd);
	h = open_handle(fd, VCPU, vm, NULL);
	h->cloexec = true;
	h->vcpu = vcpu;
	return fd;
}

static int fd_of_file(const struct file *file)
{
	int fd;

	for (fd = 0; fd < MAX_FDS; fd++)
		if (kernel.fds[fd].kind == GMEM && kernel.fds[fd].file == file)
			return fd;
	return -1;
}

static bool guest_uses_file(const struct vm *vm, const struct file *file, uint64_t gpa,
			    bool store)
{
	if (fake.guest == FAKE_GUEST_USES_HVA ||
	    (store && fake.guest == FAKE_GUEST_STORES_TO_HVA))
		return false;
	if (file->flags & GUEST_MEMFD_FLAG_MMAP)
		return true;
	return span_has(&vm->privates, gpa);
}

static void access_file(struct file *file, uint64_t offset, uint8_t *byte, bool store)
{
	int fd = fd_of_file(file);
	ssize_t n;

	if (!is_host_accessible(file)) {
		if (store)
			file->hidden[offset % sizeof(file->hidden)] = *byte;
		*byte = file->hidden[offset % sizeof(file->hidden)];
		return;
	}
	n = store ? pwrite(fd, byte, 1, (off_t)offset) : pread(fd, byte, 1, (off_t)offset);
	if (n != 1)
		abort();
}

/* A load or store of the guest; -EFAULT with an exit if the file is gone */
static int guest_access(struct vm *vm, struct vcpu *vcpu, uint64_t gpa, uint8_t *byte,
			bool store)
{
	size_t i = span_at(&vm->by_gpa, gpa);
	struct fake_slot *slot;
	struct file *file = NULL;
	uint8_t *hva;

	if (i == vm->by_gpa.count || vm->by_gpa.v[i].start > gpa)
		return -EFAULT;
	slot = &vm->slots[vm->by_gpa.v[i].number];
	if (slot->file == -1 && fake.guest != FAKE_GUEST_USES_HVA) {
		vcpu->run->exit_reason = KVM_EXIT_MEMORY_FAULT;
		return -EFAULT;
	}

	for (file = kernel.files; file && file->id != slot->file;)
		file = file->next;
	if (file && guest_uses_file(vm, file, gpa, store)) {
		access_file(file, slot->offset + gpa - slot->gpa, byte, store);
		return 0;
	}
	hva = (uint8_t *)(uintptr_t)slot->hva + (gpa - slot->gpa);
	if (store)
		*hva = *byte;
	else
		*byte = *hva;
	return 0;
}

static int fetch(struct vm *vm, struct vcpu *vcpu, uint8_t *ret)
{
	return guest_access(vm, vcpu, vcpu->pc++, ret, false);
}

static int fetch_address(struct vm *vm, struct vcpu *vcpu, uint64_t *ret)
{
	uint8_t low = 0, high = 0;
	int err;

	err = fetch(vm, vcpu, &low);
	if (!err)
		err = fetch(vm, vcpu, &high);
	*ret = (uint64_t)high << 8 | low;
	return err;
}

static int exit_io(struct vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;

	run->exit_reason = KVM_EXIT_IO;
	run->io.direction = KVM_EXIT_IO_OUT;
	run->io.size = 1;
	run->io.count = 1;
	run->io.data_offset = fake.page_size;
	((uint8_t *)run)[fake.page_size] = vcpu->al;
	return 0;
}

/* The four instructions a guest of the self-test needs, in real mode */
static int step(struct vm *vm, struct vcpu *vcpu, bool *ret_exit)
{
	uint64_t address = 0;
	uint8_t op = 0, byte = 0;
	int err;

	err = fetch(vm, vcpu, &op);
	if (err)
		return err;

	switch (op) {
	case 0xc6:		/* movb $imm, address */
		err = fetch(vm, vcpu, &byte);
		if (!err)
			err = fetch_address(vm, vcpu, &address);
		if (!err)
			err = fetch(vm, vcpu, &byte);
		return err ? err : guest_access(vm, vcpu, address, &byte, true);
	case 0xa0:		/* movb address, %al */
		err = fetch_address(vm, vcpu, &address);
		return err ? err : guest_access(vm, vcpu, address, &vcpu->al, false);
	case 0xe6:		/* outb %al, port */
		*ret_exit = true;
		err = fetch(vm, vcpu, &byte);
		return err ? err : exit_io(vcpu);
	default:
		*ret_exit = true;
		vcpu->run->exit_reason = op == 0xf4 ? KVM_EXIT_HLT : KVM_EXIT_INTERNAL_ERROR;
		return 0;
	}
}

static int run_guest(struct vm *vm, struct vcpu *vcpu)
{
	bool exits = false;
	uint64_t pc;
	int err = 0;

	if (!vcpu->has_registers)
		return -ENOEXEC;	/* at the reset vector there is nothing */
	while (!err && !exits) {
		pc = vcpu->pc;
		err = step(vm, vcpu, &exits);
		if (err)
			vcpu->pc = pc;
	}
	return err;
}

/* -ENOENT only if nothing was done; what is left is written back. */
static int prefault(struct vm *vm, struct gmem_kvm_pre_fault_memory *args)
{
	uint64_t most = kernel.prefault_most * fake.page_size, now;
	size_t i = span_at(&vm->by_gpa, args->gpa);
	struct fake_slot *slot;
	struct file *file;

	if (vm->caps.pre_fault <= 0)
		return -EOPNOTSUPP;
	if (args->flags || !args->size || !is_aligned(args->gpa) || !is_aligned(args->size) ||
	    args->gpa + args->size < args->gpa)
		return -EINVAL;
	if (kernel.prefault_interruptions) {
		kernel.prefault_interruptions--;
		return -EINTR;
	}
	if (i == vm->by_gpa.count || vm->by_gpa.v[i].start > args->gpa)
		return -ENOENT;

	slot = &vm->slots[vm->by_gpa.v[i].number];
	now = slot->gpa + slot->size - args->gpa;
	now = now < args->size ? now : args->size;
	now = most && most < now ? most : now;
	for (file = kernel.files; file && file->id != slot->file;)
		file = file->next;
	if (!file && span_has(&vm->privates, args->gpa))
		return -EFAULT;
	if (file && guest_uses_file(vm, file, args->gpa, false))
		mark_allocated(file, (slot->offset + args->gpa - slot->gpa) / fake.page_size,
			       now / fake.page_size, true);
	args->gpa += now;
	args->size -= now;
	return 0;
}

int vcpu_ioctl(struct handle *h, unsigned long request, void *arg)
{
	if (h->vm->dead)
		return -EIO;
	if (request == KVM_RUN)
		return run_guest(h->vm, h->vcpu);
	if (fake.arm64)
		return fake.unknown_ioctl;	/* its guests do not run here */

	switch (request) {
	case KVM_PRE_FAULT_MEMORY:
		return prefault(h->vm, arg);
#if defined(__x86_64__)
	case KVM_GET_SREGS:
		memset(arg, 0, sizeof(struct kvm_sregs));
		return 0;
	case KVM_SET_SREGS:
		return 0;
	case KVM_SET_REGS:
		h->vcpu->pc = ((const struct kvm_regs *)arg)->rip;
		h->vcpu->has_registers = true;
		return 0;
#endif
	default:
		(void)arg;
		return fake.unknown_ioctl;
	}
}
