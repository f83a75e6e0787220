/* SPDX-License-Identifier: MIT */
/*
 * private-guest: a guest makes memory private, and shares some of it again.
 *
 * The VM has private memory (KVM_X86_SW_PROTECTED_VM). The guest asks for
 * conversions by hypercall; for one page it only touches the page. The VMM
 * passes each exit to gmem_vcpu_handle_exit(). The host reads the same addresses
 * before and after a conversion.
 *
 * The program prints each step and, with it, how much memory is shared, private
 * and allocated. No page is allocated on both sides at once.
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

#include "start.h"


static const char help[] =
"usage: private-guest\n"
"Runs a guest that takes memory away from its host, and gives some of it back.\n";

#ifndef __x86_64__

int main(int argc, char **argv)
{
	no_arguments(argc, argv, help);
	printf("private-guest cannot run here: only x86 has VMs with private memory that need\n"
	       "no special hardware (KVM_X86_SW_PROTECTED_VM)\n");
	return EXIT_CANNOT_RUN;
}

#else

/* Kernel headers before Linux 5.14 lack the first two, those before 6.8 the last two. */
#define MAP_GPA_RANGE		12	/* KVM_HC_MAP_GPA_RANGE */
#define ENCRYPTED		0x10	/* in its third argument: make it private */
#define SW_PROTECTED_VM		1	/* KVM_X86_SW_PROTECTED_VM */
#define ATTRIBUTE_PRIVATE	8	/* KVM_MEMORY_ATTRIBUTE_PRIVATE */

#define PAGE	UINT64_C(4096)
#define CODE	UINT64_C(0x1000)
#define DATA	UINT64_C(0x10000)	/* eight pages to convert */
#define LATE	UINT64_C(0x40000)	/* a page that the guest touches before it exists */
#define PORT	0x10

/* Three routines in real mode; each ends by sending a number to the host through a port. */
static const uint8_t instructions[] = {
	/* 0: ask, eax = 12, ebx = gpa, ecx = pages, edx = attributes: eax = answer */
	0x0f, 0x01, 0xc1,			/* vmcall, or vmmcall	*/
	0x66, 0xe7, PORT,			/* out  PORT, eax	*/
	0xf4,					/* hlt			*/
	0x90,
	/* 8: store eax at ebx, read it back */
	0x67, 0x66, 0x89, 0x03,			/* mov  [ebx], eax	*/
	0x67, 0x66, 0x8b, 0x03,			/* mov  eax, [ebx]	*/
	0x66, 0xe7, PORT,			/* out  PORT, eax	*/
	0xf4,					/* hlt			*/
	/* 20: load eax from ebx */
	0x67, 0x66, 0x8b, 0x03,			/* mov  eax, [ebx]	*/
	0x66, 0xe7, PORT,			/* out  PORT, eax	*/
	0xf4,					/* hlt			*/
};
#define ASK	0
#define STORE	8
#define LOAD	20

static struct {
	int vm_fd, vcpu_fd;
	struct kvm_run *run;
	struct gmem_vm *vm;
	struct gmem_plan *plan;
	struct gmem_vcpu *vcpu;
	struct gmem_view *view;
} host;

static int must(int result, const char *what)
{
	if (result < 0) {
		fprintf(stderr, "private-guest: %s: %s\n", what, strerror(errno));
		exit(EXIT_FAILURE);
	}
	return result;
}

static int gmem_must(int result, const char *what)
{
	if (result < 0) {
		fprintf(stderr, "private-guest: %s: %s\n", what, gmem_last_error());
		exit(EXIT_FAILURE);
	}
	return result;
}

static void expect(int truth, const char *what)
{
	if (!truth) {
		fprintf(stderr, "private-guest: expected %s\n", what);
		exit(EXIT_FAILURE);
	}
}

/* ---- the guest ---- */

/* Runs the guest until it sends a number. Returns 0, or the error of an exit. */
static int run(uint32_t *number)
{
	struct kvm_run *kvm_run = host.run;
	int result, error, handled;

	for (;;) {
		result = ioctl(host.vcpu_fd, KVM_RUN, 0);
		error = errno;
		handled = gmem_vcpu_handle_exit(host.vcpu, kvm_run, result, error, NULL);
		if (handled < 0)
			return handled;
		if (handled == 1 || (result < 0 && error == EINTR))
			continue;
		errno = error;
		must(result, "KVM_RUN");
		expect(kvm_run->exit_reason == KVM_EXIT_IO, "an exit of the guest's own");
		memcpy(number, (char *)kvm_run + kvm_run->io.data_offset, sizeof(*number));
		return 0;
	}
}

static int guest_does(uint64_t what, uint64_t gpa, uint64_t rax, uint64_t rcx, uint64_t rdx,
		      uint32_t *number)
{
	const struct kvm_regs regs = {
		.rip = CODE + what, .rax = rax, .rbx = gpa, .rcx = rcx, .rdx = rdx, .rflags = 2,
	};

	must(ioctl(host.vcpu_fd, KVM_SET_REGS, &regs), "KVM_SET_REGS");
	return run(number);
}

static int32_t guest_asks(uint64_t gpa, uint64_t pages, uint64_t attributes)
{
	uint32_t answer = 0;

	gmem_must(guest_does(ASK, gpa, MAP_GPA_RANGE, pages, attributes, &answer), "asking");
	return (int32_t)answer;
}

static void guest_fills(uint64_t gpa, uint64_t pages, uint32_t value)
{
	uint32_t read_back;

	for (uint64_t i = 0; i < pages; i++) {
		gmem_must(guest_does(STORE, gpa + i * PAGE, value, 0, 0, &read_back), "storing");
		expect(read_back == value, "the guest to read what it wrote");
	}
}

static uint32_t guest_loads(uint64_t gpa)
{
	uint32_t value = 0;

	gmem_must(guest_does(LOAD, gpa, 0, 0, 0, &value), "loading");
	return value;
}

/* ---- the host ---- */

static int host_reads(uint64_t gpa, uint32_t *value)
{
	return gmem_view_read(host.view, gpa, value, sizeof(*value), NULL);
}

static struct gmem_stats show_memory(const char *when)
{
	GMEM_OPTS(gmem_stats, stats, .flags = GMEM_STATS_RESIDENT);

	gmem_must(gmem_vm_stats(host.vm, &stats), "statistics");
	printf("   %s %" PRIu64 " KiB shared and %" PRIu64 " KiB private; in memory %" PRIu64 " and %" PRIu64
	       " KiB, twice %" PRIu64 " bytes.\n",
	       when, stats.bytes_shared / 1024, stats.bytes_private / 1024,
	       stats.resident_shared / 1024, stats.resident_private / 1024, stats.doubled);
	return stats;
}

static struct gmem_region *add(uint64_t gpa, uint64_t pages)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = host.plan);
	struct gmem_region *region;

	gmem_must(gmem_region_add(host.vm, gpa, pages * PAGE, &opts, &region), "adding memory");
	return region;
}

static void set_up_vcpu(int kvm)
{
	struct kvm_enable_cap requests = { .cap = KVM_CAP_EXIT_HYPERCALL };
	struct kvm_sregs sregs;
	int size;

	/* Make the guest's hypercalls exit to us. */
	requests.args[0] = 1 << MAP_GPA_RANGE;
	must(ioctl(host.vm_fd, KVM_ENABLE_CAP, &requests), "KVM_CAP_EXIT_HYPERCALL");

	host.vcpu_fd = must(ioctl(host.vm_fd, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	size = must(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
	host.run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, host.vcpu_fd, 0);
	must(host.run == MAP_FAILED ? -1 : 0, "mapping the vCPU");

	must(ioctl(host.vcpu_fd, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	/* "Unreal" mode: real mode with addresses of 32 bits */
	sregs.ds.limit = 0xffffffff;
	sregs.ds.g = 1;
	must(ioctl(host.vcpu_fd, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	gmem_must(gmem_vcpu_new(host.vm, host.vcpu_fd, NULL, &host.vcpu), "vCPU record");
}

static void tell_by_hypercall(void)
{
	uint32_t value = 0;
	int32_t answer;
	int error;

	guest_fills(DATA, 8, 0x11111111);
	gmem_must(host_reads(DATA, &value), "reading");
	printf("1. The guest wrote eight pages at 0x%" PRIx64 ". The host reads 0x%" PRIx32 " there.\n",
	       DATA, value);
	expect(value == 0x11111111, "the host to read what the guest wrote");
	show_memory("Before:");

	answer = guest_asks(DATA, 4, ENCRYPTED);
	expect(answer == 0, "the request to be granted");
	guest_fills(DATA, 4, 0x22222222);
	error = host_reads(DATA, &value);
	expect(error == -EACCES, "-EACCES from reading private memory");
	printf("2. The guest asked for four of them to be private, and wrote again. The host is\n"
	       "   refused: \"%s\".\n", gmem_last_error());
	show_memory("After:");

	answer = guest_asks(DATA, 2, 0);
	expect(answer == 0, "the request to be granted");
	gmem_must(host_reads(DATA, &value), "reading");
	printf("3. The guest gave two of them back. The host reads 0x%" PRIx32 ": what was private is\n"
	       "   gone, not shown. The guest reads 0x%" PRIx32 " there, and 0x%" PRIx32 " in what it kept.\n",
	       value, guest_loads(DATA), guest_loads(DATA + 2 * PAGE));
	expect(value == 0 && guest_loads(DATA) == 0, "zero where memory became shared");
	expect(guest_loads(DATA + 2 * PAGE) == 0x22222222, "private memory to stay");
	show_memory("Now:");

	answer = guest_asks(DATA, 0xffffff, ENCRYPTED);
	printf("4. It asked for 64 GiB, most of which is no memory, and was told %" PRId32 ", EINVAL.\n",
	       answer);
	expect(answer == -EINVAL, "EINVAL for a range that is no memory");
}

/* The page is private before there is memory for it; memory is added when it is touched. */
static void tell_by_touching(void)
{
	struct set_attributes {
		uint64_t gpa, size, attributes, flags;
	} attributes = { LATE, PAGE, ATTRIBUTE_PRIVATE, 0 };
	uint32_t value = 0;
	int error;

	must(ioctl(host.vm_fd, _IOW(KVMIO, 0xd2, struct set_attributes), &attributes),
	     "KVM_SET_MEMORY_ATTRIBUTES");
	error = guest_does(STORE, LATE, 0x33333333, 0, 0, &value);
	expect(error == -ENOENT, "-ENOENT for private memory that is not there");
	printf("5. The guest touched 0x%" PRIx64 ", as private memory. The exit says:\n"
	       "   \"%s\".\n", LATE, gmem_last_error());

	/* Add the memory and handle the same exit again: now it succeeds. */
	add(LATE, 1);
	gmem_must(gmem_vcpu_handle_exit(host.vcpu, host.run, -1, EFAULT, NULL), "the exit");
	gmem_must(run(&value), "running on");
	expect(value == 0x33333333, "the guest to read what it wrote");
	error = host_reads(LATE, &value);
	expect(error == -EACCES, "-EACCES from reading private memory");
	printf("   The host put a page there, the touch made it private, and the guest went on.\n");
}

/* Few hosts can, and an emulated one always does. */
static void cannot_run(const char *why)
{
	printf("private-guest cannot run here: %s\n"
	       "In the source tree, this runs it in an emulated machine, on the kernel x86_64-private:\n"
	       "    examples/run private-guest\n", why);
	exit(EXIT_CANNOT_RUN);
}

int main(int argc, char **argv)
{
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_PRIVATE });
	struct gmem_region *code;
	struct gmem_stats stats;
	int kvm, error;

	no_arguments(argc, argv, help);
	kvm = open_kvm("private-guest");
	host.vm_fd = create_vm(kvm, SW_PROTECTED_VM);
	if (host.vm_fd < 0)
		cannot_run("KVM has no KVM_X86_SW_PROTECTED_VM here. It needs Linux 6.8 and nested paging,\n"
			   "and a kernel built with CONFIG_KVM_SW_PROTECTED_VM, as few are.");

	gmem_must(gmem_vm_new(host.vm_fd, NULL, &host.vm), "attaching to the VM");
	error = gmem_plan_new(gmem_vm_caps(host.vm), &request, &host.plan);
	if (error == -EOPNOTSUPP)
		cannot_run(gmem_last_error());
	gmem_must(error, "planning");
	gmem_must(gmem_view_new(host.vm, &host.view), "a view");

	printf("private-guest: a guest takes memory away from its host.\n");
	code = add(CODE, 1);
	add(DATA, 8);
	memcpy(gmem_region_hva(code), instructions, sizeof(instructions));
	if (__builtin_cpu_is("amd"))
		((uint8_t *)gmem_region_hva(code))[2] = 0xd9;	/* vmmcall */
	set_up_vcpu(kvm);

	tell_by_hypercall();
	tell_by_touching();
	stats = show_memory("At the end:");
	printf("   %" PRIu64 " requests were granted and %" PRIu64 " refused, %" PRIu64
	       " touch converted; %" PRIu64 " conversions\n   took %" PRIu64
	       " system calls, and gave %" PRIu64 " KiB back to the host.\n",
	       stats.requests, stats.requests_refused, stats.faults_private, stats.conversions,
	       stats.convert_ioctls, stats.discarded / 1024);
	expect(stats.doubled == 0, "nothing to be in memory twice");

	gmem_vcpu_free(host.vcpu);
	gmem_view_free(host.view);
	gmem_vm_free(host.vm);
	gmem_plan_free(host.plan);
	close(host.vcpu_fd);
	close(host.vm_fd);
	close(kvm);
	return exit_status();
}

#endif
