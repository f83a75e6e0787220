/* SPDX-License-Identifier: MIT */
/*
 * The plain KVM part of snapshot and migrate, for x86_64 and arm64: instructions that count
 * in a register and in memory and exit after each number; and the registers of
 * the vCPU, which are all of the guest's state besides its memory.
 */
#ifndef COUNTER_H
#define COUNTER_H

#include <linux/kvm.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>

#if defined(__x86_64__)

static const uint8_t instructions[] = {		/* in real mode */
	0x66, 0x40,				/* inc  eax		*/
	0x67, 0x66, 0x89, 0x03,			/* mov  [ebx], eax	*/
	0xf4,					/* hlt			*/
	0xeb, 0xf7,				/* jmp  to the inc	*/
};

struct registers {
	struct kvm_regs regs;
	struct kvm_sregs sregs;
};

static int get_registers(int vcpu, struct registers *registers)
{
	if (ioctl(vcpu, KVM_GET_SREGS, &registers->sregs) < 0)
		return -1;
	return ioctl(vcpu, KVM_GET_REGS, &registers->regs);
}

static int set_registers(int vm, int vcpu, const struct registers *registers)
{
	(void)vm;
	if (ioctl(vcpu, KVM_SET_SREGS, &registers->sregs) < 0)
		return -1;
	return ioctl(vcpu, KVM_SET_REGS, &registers->regs);
}

/* There must be no memory at @nowhere. */
static inline int start_counting(int vm, int vcpu, uint64_t code, uint64_t count, uint64_t nowhere)
{
	struct registers registers;

	(void)nowhere;
	if (get_registers(vcpu, &registers) < 0)
		return -1;
	registers.sregs.cs.base = 0;
	registers.sregs.cs.selector = 0;
	registers.regs = (struct kvm_regs){ .rip = code, .rbx = count, .rflags = 1 << 1 };
	return set_registers(vm, vcpu, &registers);
}

static int is_counted(const struct kvm_run *run, uint64_t nowhere)
{
	(void)nowhere;
	return run->exit_reason == KVM_EXIT_HLT;
}

static inline uint32_t read_number(const volatile uint32_t *number)
{
	return *number;
}

#elif defined(__aarch64__)

static const uint32_t instructions[] = {	/* with the MMU off */
	0x11000400,				/* add  w0, w0, #1	*/
	0xb9000020,				/* str  w0, [x1]	*/
	0xb9000040,				/* str  w0, [x2]	*/
	0x17fffffd,				/* b    to the add	*/
};

/* The registers that differ from those of a vCPU after reset */
struct registers {
	uint64_t x[5];
	uint64_t pc;
};

static int one_register(int vcpu, unsigned long request, size_t offset, uint64_t *value)
{
	struct kvm_one_reg reg = {
		.id = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE |
		      offset / sizeof(uint32_t),
		.addr = (uintptr_t)value,
	};

	return ioctl(vcpu, request, &reg);
}

static int all_registers(int vcpu, unsigned long request, struct registers *registers)
{
	for (size_t i = 0; i < 5; i++)
		if (one_register(vcpu, request, offsetof(struct kvm_regs, regs.regs) + 8 * i,
				 &registers->x[i]) < 0)
			return -1;
	return one_register(vcpu, request, offsetof(struct kvm_regs, regs.pc), &registers->pc);
}

static int get_registers(int vcpu, struct registers *registers)
{
	return all_registers(vcpu, KVM_GET_ONE_REG, registers);
}

static int set_registers(int vm, int vcpu, const struct registers *registers)
{
	struct registers copy = *registers;
	struct kvm_vcpu_init init;

	if (ioctl(vm, KVM_ARM_PREFERRED_TARGET, &init) < 0 ||
	    ioctl(vcpu, KVM_ARM_VCPU_INIT, &init) < 0)
		return -1;
	return all_registers(vcpu, KVM_SET_ONE_REG, &copy);
}

/* There must be no memory at @nowhere. */
static inline int start_counting(int vm, int vcpu, uint64_t code, uint64_t count, uint64_t nowhere)
{
	const struct registers registers = { .x = { 0, count, nowhere }, .pc = code };

	return set_registers(vm, vcpu, &registers);
}

static int is_counted(const struct kvm_run *run, uint64_t nowhere)
{
	return run->exit_reason == KVM_EXIT_MMIO && run->mmio.is_write &&
	       run->mmio.phys_addr == nowhere;
}

static inline uint32_t read_number(const volatile uint32_t *number)
{
	/* A guest with its MMU off bypasses the caches: drop the stale line. */
	__asm__ volatile("dc civac, %0\n\tdsb sy" : : "r"(number) : "memory");
	return *number;
}

#else
#error "snapshot speaks x86_64 and arm64"
#endif

#endif
