/* SPDX-License-Identifier: MIT */
/* The VM's processor and interrupt controllers, which is plain KVM without libgmem. */
#include <cpuid.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "tinyvmm.h"

#define CPUID_MAX 256

/* KVM's structs of similar names, with space for their flexible arrays */
struct cpuid {
	uint32_t count, padding;
	struct kvm_cpuid_entry2 entries[CPUID_MAX];
};

struct msr {
	uint32_t count, padding;
	struct kvm_msr_entry entry;
};

struct msr_list {
	uint32_t count;
	uint32_t indices[512];
};

/*
 * KVM without VMX or SVM is PVM, which runs short programs and kernels made for
 * it, but does not boot other kernels.
 */
static bool has_virtualization(void)
{
	unsigned int eax, ebx, ecx, edx;

	if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) && ecx & 1 << 5)
		return true;
	return __get_cpuid(0x80000001, &eax, &ebx, &ecx, &edx) && ecx & 1 << 2;
}

void vcpu_create_vm(struct vmm *vmm)
{
	struct kvm_pit_config pit = { 0 };
	uint64_t identity_map = 0xfffbc000;

	if (!has_virtualization()) {
		say("cannot run here: this host's KVM works without VMX and SVM (it is PVM), and "
		    "boots no ordinary kernel");
		exit(EXIT_CANNOT_RUN);
	}
	do
		vmm->vm_fd = ioctl(vmm->kvm_fd, KVM_CREATE_VM, 0);
	while (vmm->vm_fd < 0 && errno == EINTR);
	must(vmm->vm_fd, "KVM_CREATE_VM");
	/* KVM provides four pages that Intel's processors need; choose their addresses. */
	must(ioctl(vmm->vm_fd, KVM_SET_IDENTITY_MAP_ADDR, &identity_map), "identity map");
	must(ioctl(vmm->vm_fd, KVM_SET_TSS_ADDR, identity_map + 0x1000), "KVM_SET_TSS_ADDR");
	must(ioctl(vmm->vm_fd, KVM_CREATE_IRQCHIP, 0), "KVM_CREATE_IRQCHIP");
	must(ioctl(vmm->vm_fd, KVM_CREATE_PIT2, &pit), "KVM_CREATE_PIT2");
}

/* Shows the guest the CPUID that KVM supports on this host, as one processor. */
static void set_cpuid(struct vmm *vmm)
{
	struct cpuid cpuid = { .count = CPUID_MAX };

	must(ioctl(vmm->kvm_fd, KVM_GET_SUPPORTED_CPUID, &cpuid), "KVM_GET_SUPPORTED_CPUID");
	for (uint32_t i = 0; i < cpuid.count; i++) {
		struct kvm_cpuid_entry2 *entry = &cpuid.entries[i];

		if (entry->function == 1) {
			entry->ebx = (entry->ebx & 0xffff) | 1 << 16;
			entry->ecx &= ~(1u << 5);		/* no VMX in the guest */
		} else if (entry->function == 0x80000001) {
			entry->ecx &= ~(1u << 2);		/* no SVM in the guest */
		} else if (entry->function == 0xb || entry->function == 0x1f) {
			entry->edx = 0;
		}
	}
	must(ioctl(vmm->vcpu_fd, KVM_SET_CPUID2, &cpuid), "KVM_SET_CPUID2");
}

void vcpu_create(struct vmm *vmm)
{
	int size;

	vmm->vcpu_fd = must(ioctl(vmm->vm_fd, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	size = must(ioctl(vmm->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
	vmm->run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, vmm->vcpu_fd, 0);
	must(vmm->run == MAP_FAILED ? -1 : 0, "mapping the vCPU");
	set_cpuid(vmm);
}

/* Starts in 64-bit mode with paging, flat segments and interrupts off. */
void vcpu_start_at(struct vmm *vmm, const struct boot *boot)
{
	const struct kvm_segment code = {
		.limit = 0xffffffff, .selector = 0x10, .type = 0xb, .present = 1, .s = 1,
		.l = 1, .g = 1,
	};
	struct kvm_segment data = code;
	struct kvm_regs regs = { .rip = boot->entry, .rsi = boot->parameters, .rflags = 1 << 1 };
	struct kvm_sregs sregs;

	data.selector = 0x18;
	data.type = 3;
	data.l = 0;
	data.db = 1;
	must(ioctl(vmm->vcpu_fd, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.cr0 = 1u << 31 | 1 << 5 | 1 << 4 | 1 << 1 | 1 << 0;	/* PG NE ET MP PE */
	sregs.cr3 = boot->page_tables;
	sregs.cr4 = 1 << 5;						/* PAE */
	sregs.efer = 1 << 10 | 1 << 8;					/* LMA LME */
	must(ioctl(vmm->vcpu_fd, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	must(ioctl(vmm->vcpu_fd, KVM_SET_REGS, &regs), "KVM_SET_REGS");
}

/* ---- the whole state, for snapshots ---- */

/* Saves the MSRs of the list that can be read; some hosts cannot read all of them. */
static void save_msrs(struct vmm *vmm, struct vcpu_state *state)
{
	struct msr_list list = { .count = 512 };

	must(ioctl(vmm->kvm_fd, KVM_GET_MSR_INDEX_LIST, &list), "KVM_GET_MSR_INDEX_LIST");
	state->msr_count = 0;
	for (uint32_t i = 0; i < list.count; i++) {
		struct msr one = { .count = 1, .entry.index = list.indices[i] };

		if (ioctl(vmm->vcpu_fd, KVM_GET_MSRS, &one) == 1)
			state->msrs[state->msr_count++] = one.entry;
	}
}

/* Ignores MSRs that KVM does not set (returns 0): no guest can have changed them. */
static void restore_msrs(struct vmm *vmm, const struct vcpu_state *state)
{
	for (uint32_t i = 0; i < state->msr_count; i++) {
		struct msr one = { .count = 1, .entry = state->msrs[i] };

		must(ioctl(vmm->vcpu_fd, KVM_SET_MSRS, &one), "KVM_SET_MSRS");
	}
}

static bool has_xcrs(struct vmm *vmm)
{
	return ioctl(vmm->vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_XCRS) > 0;
}

/* Called after KVM_RUN returned with EINTR, so that no instruction is half done. */
void vcpu_save(struct vmm *vmm, struct vcpu_state *ret)
{
	const int vcpu = vmm->vcpu_fd, vm = vmm->vm_fd;

	must(ioctl(vcpu, KVM_GET_MP_STATE, &ret->mp_state), "KVM_GET_MP_STATE");
	must(ioctl(vcpu, KVM_GET_REGS, &ret->regs), "KVM_GET_REGS");
	must(ioctl(vcpu, KVM_GET_SREGS, &ret->sregs), "KVM_GET_SREGS");
	must(ioctl(vcpu, KVM_GET_XSAVE, ret->xsave), "KVM_GET_XSAVE");
	if (has_xcrs(vmm))
		must(ioctl(vcpu, KVM_GET_XCRS, &ret->xcrs), "KVM_GET_XCRS");
	must(ioctl(vcpu, KVM_GET_DEBUGREGS, &ret->debugregs), "KVM_GET_DEBUGREGS");
	must(ioctl(vcpu, KVM_GET_LAPIC, &ret->lapic), "KVM_GET_LAPIC");
	save_msrs(vmm, ret);
	must(ioctl(vcpu, KVM_GET_VCPU_EVENTS, &ret->events), "KVM_GET_VCPU_EVENTS");

	for (uint32_t i = 0; i < 3; i++) {
		ret->irqchips[i].chip_id = i;
		must(ioctl(vm, KVM_GET_IRQCHIP, &ret->irqchips[i]), "KVM_GET_IRQCHIP");
	}
	must(ioctl(vm, KVM_GET_PIT2, &ret->pit), "KVM_GET_PIT2");
	must(ioctl(vm, KVM_GET_CLOCK, &ret->clock), "KVM_GET_CLOCK");
}

/* The order matters: the clock precedes the MSRs that use it, the APIC follows its base. */
void vcpu_restore(struct vmm *vmm, struct vcpu_state *state)
{
	const int vcpu = vmm->vcpu_fd, vm = vmm->vm_fd;

	state->clock.flags = 0;
	must(ioctl(vm, KVM_SET_CLOCK, &state->clock), "KVM_SET_CLOCK");
	for (uint32_t i = 0; i < 3; i++)
		must(ioctl(vm, KVM_SET_IRQCHIP, &state->irqchips[i]), "KVM_SET_IRQCHIP");
	must(ioctl(vm, KVM_SET_PIT2, &state->pit), "KVM_SET_PIT2");

	must(ioctl(vcpu, KVM_SET_SREGS, &state->sregs), "KVM_SET_SREGS");
	must(ioctl(vcpu, KVM_SET_REGS, &state->regs), "KVM_SET_REGS");
	must(ioctl(vcpu, KVM_SET_XSAVE, state->xsave), "KVM_SET_XSAVE");
	if (has_xcrs(vmm))
		must(ioctl(vcpu, KVM_SET_XCRS, &state->xcrs), "KVM_SET_XCRS");
	must(ioctl(vcpu, KVM_SET_DEBUGREGS, &state->debugregs), "KVM_SET_DEBUGREGS");
	must(ioctl(vcpu, KVM_SET_LAPIC, &state->lapic), "KVM_SET_LAPIC");
	restore_msrs(vmm, state);
	must(ioctl(vcpu, KVM_SET_VCPU_EVENTS, &state->events), "KVM_SET_VCPU_EVENTS");
	must(ioctl(vcpu, KVM_SET_MP_STATE, &state->mp_state), "KVM_SET_MP_STATE");
}
