/* SPDX-License-Identifier: MIT */
/*
 * The plain KVM part of hello-guest, for x86_64 and arm64: instructions that
 * multiply the two numbers of a question, store the product as the answer and
 * exit; and the registers that a vCPU needs to run them.
 */
#ifndef VCPU_H
#define VCPU_H

#include <linux/kvm.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>

/* Guest addresses; there must be no memory at @nowhere. */
struct vcpu_addresses {
	uint64_t code;
	uint64_t question;
	uint64_t answer;
	uint64_t nowhere;
};

#if defined(__x86_64__)

static const uint8_t instructions[] = {		/* in real mode */
	0x66, 0x8b, 0x07,			/* mov  eax, [bx]	*/
	0x66, 0xf7, 0x67, 0x04,			/* mul  dword [bx + 4]	*/
	0x66, 0x89, 0x05,			/* mov  [di], eax	*/
	0xf4,					/* hlt			*/
};
static const char exit_name[] = "a halt";

static int set_up_vcpu(int vm, int vcpu, const struct vcpu_addresses *at)
{
	struct kvm_regs regs = {
		.rip = at->code, .rbx = at->question, .rdi = at->answer, .rflags = 1 << 1,
	};
	struct kvm_sregs sregs;

	(void)vm;
	if (ioctl(vcpu, KVM_GET_SREGS, &sregs) < 0)
		return -1;
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	if (ioctl(vcpu, KVM_SET_SREGS, &sregs) < 0)
		return -1;
	return ioctl(vcpu, KVM_SET_REGS, &regs);
}

static int is_expected_exit(const struct kvm_run *run, const struct vcpu_addresses *at)
{
	(void)at;
	return run->exit_reason == KVM_EXIT_HLT;
}

static uint32_t read_answer(const volatile uint32_t *answer)
{
	return *answer;
}

#elif defined(__aarch64__)

static const uint32_t instructions[] = {	/* with the MMU off */
	0x29401003,				/* ldp  w3, w4, [x0]	*/
	0x1b047c63,				/* mul  w3, w3, w4	*/
	0xb9000023,				/* str  w3, [x1]	*/
	0xb9000043,				/* str  w3, [x2]	*/
};
static const char exit_name[] = "a store to where there is no memory";

static int set_register(int vcpu, size_t offset, uint64_t value)
{
	struct kvm_one_reg reg = {
		.id = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE |
		      offset / sizeof(uint32_t),
		.addr = (uintptr_t)&value,
	};

	return ioctl(vcpu, KVM_SET_ONE_REG, &reg);
}

static int set_up_vcpu(int vm, int vcpu, const struct vcpu_addresses *at)
{
	struct kvm_vcpu_init init;

	if (ioctl(vm, KVM_ARM_PREFERRED_TARGET, &init) < 0 ||
	    ioctl(vcpu, KVM_ARM_VCPU_INIT, &init) < 0 ||
	    set_register(vcpu, offsetof(struct kvm_regs, regs.pc), at->code) < 0 ||
	    set_register(vcpu, offsetof(struct kvm_regs, regs.regs[0]), at->question) < 0 ||
	    set_register(vcpu, offsetof(struct kvm_regs, regs.regs[1]), at->answer) < 0)
		return -1;
	return set_register(vcpu, offsetof(struct kvm_regs, regs.regs[2]), at->nowhere);
}

static int is_expected_exit(const struct kvm_run *run, const struct vcpu_addresses *at)
{
	return run->exit_reason == KVM_EXIT_MMIO && run->mmio.is_write &&
	       run->mmio.phys_addr == at->nowhere;
}

static uint32_t read_answer(const volatile uint32_t *answer)
{
	/* A guest with its MMU off bypasses the caches: drop the stale line. */
	__asm__ volatile("dc civac, %0\n\tdsb sy" : : "r"(answer) : "memory");
	return *answer;
}

#else
#error "hello-guest speaks x86_64 and arm64"
#endif

#endif
