/* SPDX-License-Identifier: MIT */
/*
 * private-guest: a guest takes a page away from the host, and gives it back.
 *
 * The guest stores into shared memory, asks with a hypercall for it to be
 * private, stores there, asks for it to be shared again, and stores once more.
 * After each step the host looks, and counts what both sides have in memory.
 * Everything but the vCPU's registers is libgmem's business.
 *
 * Exit status: 0, 1 if something failed, 77 if this host cannot run it.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <gmem.h>

#define EXIT_CANNOT_RUN 77
#define PAGE 0x1000
#define SECRET PAGE		/* where the guest's page is; its code is at 0 */

/* Linux 5.14 and 6.8; headers may be older */
#define CAP_EXIT_HYPERCALL 201
#define HC_MAP_GPA_RANGE 12
#define VM_WITH_PRIVATE_MEMORY 1

#define STORE(value) 0x66, 0xc7, 0x06, 0x00, 0x10, (value), (value), (value), (value)
#define ASK(edx)							\
	0x66, 0xb8, HC_MAP_GPA_RANGE, 0, 0, 0,	/* mov eax, number	*/ \
	0x66, 0xbb, 0, 0x10, 0, 0,		/* mov ebx, SECRET	*/ \
	0x66, 0xb9, 1, 0, 0, 0,			/* mov ecx, 1 page	*/ \
	0x66, 0xba, (edx), 0, 0, 0,		/* mov edx, attributes	*/ \
	0x0f, 0x01, 0xc1			/* vmcall		*/
#define HALT 0xf4

static uint8_t instructions[] = {		/* in real mode */
	STORE(0x11), HALT,
	ASK(0x10), STORE(0x22), HALT,		/* private */
	ASK(0), STORE(0x33), HALT,		/* shared */
};

static int must(int result, const char *what)
{
	if (result < 0) {
		fprintf(stderr, "private-guest: %s: %s\n", what, strerror(errno));
		exit(EXIT_FAILURE);
	}
	return result;
}

static void gmem_must(int result, const char *what)
{
	if (result < 0) {
		fprintf(stderr, "private-guest: %s: %s\n", what, gmem_last_error());
		exit(EXIT_FAILURE);
	}
}

static void expect(int truth, const char *what)
{
	if (!truth) {
		fprintf(stderr, "private-guest: expected %s\n", what);
		exit(EXIT_FAILURE);
	}
}

/* The guest's way to say vmcall differs with who made the processor. */
static void speak_to_amd(void)
{
	size_t i;

	for (i = 0; i + 2 < sizeof(instructions); i++)
		if (instructions[i] == 0x0f && instructions[i + 1] == 0x01)
			instructions[i + 2] = 0xd9;
}

static int make_vm(int kvm)
{
	struct kvm_enable_cap cap = { .cap = CAP_EXIT_HYPERCALL, .args = { 1 << HC_MAP_GPA_RANGE } };
	int vm = ioctl(kvm, KVM_CREATE_VM, VM_WITH_PRIVATE_MEMORY);

	if (vm < 0) {
		printf("cannot run here: no VM with private memory: %s\n", strerror(errno));
		exit(EXIT_CANNOT_RUN);
	}
	must(ioctl(vm, KVM_ENABLE_CAP, &cap), "asking for hypercalls");
	return vm;
}

static void set_registers(int vcpu)
{
	struct kvm_regs regs = { .rflags = 1 << 1 };
	struct kvm_sregs sregs;

	must(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	must(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	must(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
}

/* The run loop of a VMM: whatever is about memory, one call deals with. */
static void run_until_halt(int fd, struct kvm_run *run, struct gmem_vcpu *vcpu)
{
	int result, dealt_with;

	do {
		result = ioctl(fd, KVM_RUN, 0);
		dealt_with = gmem_vcpu_handle_exit(vcpu, run, result, errno, NULL);
		gmem_must(dealt_with, "an exit");
		if (!dealt_with && result < 0 && errno != EINTR)
			must(result, "KVM_RUN");
	} while (dealt_with || result < 0);
	expect(run->exit_reason == KVM_EXIT_HLT, "a halt");
}

/* What the host sees, and what memory there is */
static void look(struct gmem_vm *vm, struct gmem_view *view, const char *what, int wanted)
{
	GMEM_OPTS(gmem_stats, stats, .flags = GMEM_STATS_RESIDENT);
	uint32_t value = 0;
	int error;

	error = gmem_view_read(view, SECRET, &value, sizeof(value), NULL);
	expect(error == wanted, wanted ? "-EACCES" : "that the host can read");
	printf("%s:\n   the host ", what);
	if (error)
		printf("is told \"%s\";\n", gmem_last_error());
	else
		printf("reads 0x%" PRIx32 ";\n", value);

	gmem_must(gmem_vm_stats(vm, &stats), "statistics");
	printf("   in memory: %" PRIu64 " bytes of the shared side, %" PRIu64
	       " of the private one, %" PRIu64 " doubled.\n",
	       stats.resident_shared, stats.resident_private, stats.doubled);
	expect(stats.doubled == 0, "no page on both sides");
}

int main(void)
{
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_PRIVATE });
	GMEM_OPTS(gmem_region_opts, opts, .flags = 0);
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), vm_fd, vcpu_fd, size;
	struct gmem_region *ram;
	struct gmem_vcpu *vcpu;
	struct gmem_view *view;
	struct gmem_plan *plan;
	struct gmem_vm *vm;
	struct kvm_run *run;

	if (kvm < 0) {
		printf("cannot run here: /dev/kvm: %s\n", strerror(errno));
		return EXIT_CANNOT_RUN;
	}
	vm_fd = make_vm(kvm);
	gmem_must(gmem_vm_new(vm_fd, NULL, &vm), "a VM handle");
	gmem_must(gmem_plan_new(gmem_vm_caps(vm), &request, &plan), "a plan");
	opts.plan = plan;
	gmem_must(gmem_region_add(vm, 0, 2 * PAGE, &opts, &ram), "adding RAM");
	gmem_must(gmem_view_new(vm, &view), "a view");

	if (__builtin_cpu_is("amd"))
		speak_to_amd();
	gmem_must(gmem_view_write(view, 0, instructions, sizeof(instructions), NULL), "the code");
	vcpu_fd = must(ioctl(vm_fd, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	size = must(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
	run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_fd, 0);
	must(run == MAP_FAILED ? -1 : 0, "mapping the vCPU");
	set_registers(vcpu_fd);
	gmem_must(gmem_vcpu_new(vm, vcpu_fd, NULL, &vcpu), "a vCPU's record");

	run_until_halt(vcpu_fd, run, vcpu);
	look(vm, view, "1. The guest stored 0x11111111 in shared memory", 0);
	run_until_halt(vcpu_fd, run, vcpu);
	look(vm, view, "2. It had that made private, and stored 0x22222222", -EACCES);
	run_until_halt(vcpu_fd, run, vcpu);
	look(vm, view, "3. It gave the page back, and stored 0x33333333", 0);

	gmem_vcpu_free(vcpu);
	must(munmap(run, (size_t)size), "unmapping the vCPU");
	must(close(vcpu_fd), "closing the vCPU");
	gmem_view_free(view);
	gmem_vm_free(vm);
	gmem_plan_free(plan);
	must(close(vm_fd), "closing the VM");
	must(close(kvm), "closing /dev/kvm");
	return EXIT_SUCCESS;
}
