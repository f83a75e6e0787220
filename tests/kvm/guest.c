/* SPDX-License-Identifier: MIT */
#include <fcntl.h>
#include <linux/kvm_para.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "guest.h"
#include "harness.h"

/* Multiples of every host page size */
#define CODE_GPA ((uint64_t)0x10000)
#define REPORT_GPA ((uint64_t)0x20000)	/* no memory there: a store comes to us */

static void set_registers(struct guest *guest, uint64_t code, uint64_t gpa, uint32_t value);

/* ---- x86_64: flat 32 bit mode, reports through a port ---- */

#ifdef __x86_64__

#define REPORT_PORT 0x10

static const uint8_t code_bytes[] = {
	0x8b, 0x03,		/* load:  mov (%ebx), %eax */
	0xe7, REPORT_PORT,	/*        out %eax, $REPORT_PORT */
	0xf4,			/*        hlt */
	0x90, 0x90, 0x90,
	0x89, 0x03,		/* store: mov %eax, (%ebx) */
	0xe7, REPORT_PORT,	/*        out %eax, $REPORT_PORT */
	0xf4,			/*        hlt */
	0x90, 0x90, 0x90,
	0x89, 0xde,		/* outs:  mov %ebx, %esi */
	0xba, REPORT_PORT, 0, 0, 0,	/* mov $REPORT_PORT, %edx */
	0x6f,			/*        outsl */
	0xf4,			/*        hlt */
	0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90,
	0x0f, 0x01, 0xc1,	/* ask:   vmcall, or vmmcall */
	0xe7, REPORT_PORT,	/*        out %eax, $REPORT_PORT */
	0xf4,			/*        hlt */
	0x90, 0x90,
	0x89, 0x03,		/* burst: mov %eax, (%ebx) */
	0x40,			/*        inc %eax */
	0x01, 0xd3,		/*        add %edx, %ebx */
	0x49,			/*        dec %ecx */
	0x75, 0xf8,		/*        jnz burst */
	0xe7, REPORT_PORT,	/*        out %eax, $REPORT_PORT */
	0xf4,			/*        hlt */
};
#define LOAD_CODE 0
#define STORE_CODE 8
#define OUTS_CODE 16
#define ASK_CODE 32
#define BURST_CODE 40

static void make_flat(struct kvm_segment *segment)
{
	segment->base = 0;
	segment->limit = 0xffffffff;
	segment->g = 1;
	segment->db = 1;
}

static void init_vcpu(struct guest *guest)
{
	struct kvm_sregs sregs;

	WORKS(ioctl(guest->vcpu_fd, KVM_GET_SREGS, &sregs));
	make_flat(&sregs.cs);
	make_flat(&sregs.ds);
	make_flat(&sregs.es);
	make_flat(&sregs.ss);
	sregs.cs.selector = 0x8;
	sregs.ds.selector = sregs.es.selector = sregs.ss.selector = 0x10;
	sregs.cr0 |= 1;		/* PE */
	WORKS(ioctl(guest->vcpu_fd, KVM_SET_SREGS, &sregs));
}

static void set_registers(struct guest *guest, uint64_t code, uint64_t gpa, uint32_t value)
{
	const struct kvm_regs regs = {
		.rip = CODE_GPA + code,
		.rbx = gpa,
		.rax = value,
		.rflags = 2,
	};

	WORKS(ioctl(guest->vcpu_fd, KVM_SET_REGS, &regs));
}

static void set_burst(struct guest *guest, uint64_t gpa, uint32_t value, uint32_t count,
		      uint32_t stride)
{
	const struct kvm_regs regs = {
		.rip = CODE_GPA + BURST_CODE,
		.rbx = gpa,
		.rax = value,
		.rcx = count,
		.rdx = stride,
		.rflags = 2,
	};

	WORKS(ioctl(guest->vcpu_fd, KVM_SET_REGS, &regs));
}

static bool has_reported(const struct guest *guest, uint32_t *value)
{
	const struct kvm_run *run = guest->run;

	if (run->exit_reason != KVM_EXIT_IO || run->io.port != REPORT_PORT)
		return false;
	memcpy(value, (const char *)run + run->io.data_offset, sizeof(*value));
	return true;
}

#endif

/* ---- arm64: MMU off, reports by a store to where no memory is ---- */

#ifdef __aarch64__

static const uint32_t code_bytes[] = {
	0xb9400020,		/* load:  ldr w0, [x1] */
	0xb9000040,		/*        str w0, [x2] */
	0xb9000020,		/* store: str w0, [x1] */
	0xb9000040,		/*        str w0, [x2] */
	0xb9000020,		/* burst: str w0, [x1] */
	0x11000400,		/*        add w0, w0, #1 */
	0x8b030021,		/*        add x1, x1, x3 */
	0xf1000484,		/*        subs x4, x4, #1 */
	0x54ffff81,		/*        b.ne burst */
	0xb9000040,		/*        str w0, [x2] */
};
#define LOAD_CODE 0
#define STORE_CODE 8
#define BURST_CODE 16

void arm64_init_vcpu(int vm_fd, int vcpu_fd)
{
	struct kvm_vcpu_init init;

	WORKS(ioctl(vm_fd, KVM_ARM_PREFERRED_TARGET, &init));
	WORKS(ioctl(vcpu_fd, KVM_ARM_VCPU_INIT, &init));
}

void arm64_set_register(int vcpu_fd, uint64_t offset, uint64_t value)
{
	const struct kvm_one_reg reg = {
		.id = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE |
		      offset / sizeof(uint32_t),
		.addr = (uintptr_t)&value,
	};

	WORKS(ioctl(vcpu_fd, KVM_SET_ONE_REG, &reg));
}

static void init_vcpu(struct guest *guest)
{
	arm64_init_vcpu(guest->vm_fd, guest->vcpu_fd);
}

static void set_registers(struct guest *guest, uint64_t code, uint64_t gpa, uint32_t value)
{
	arm64_set_register(guest->vcpu_fd, offsetof(struct kvm_regs, regs.regs[0]), value);
	arm64_set_register(guest->vcpu_fd, offsetof(struct kvm_regs, regs.regs[1]), gpa);
	arm64_set_register(guest->vcpu_fd, offsetof(struct kvm_regs, regs.regs[2]), REPORT_GPA);
	arm64_set_register(guest->vcpu_fd, offsetof(struct kvm_regs, regs.pc), CODE_GPA + code);
}

static void set_burst(struct guest *guest, uint64_t gpa, uint32_t value, uint32_t count,
		      uint32_t stride)
{
	set_registers(guest, BURST_CODE, gpa, value);
	arm64_set_register(guest->vcpu_fd, offsetof(struct kvm_regs, regs.regs[3]), stride);
	arm64_set_register(guest->vcpu_fd, offsetof(struct kvm_regs, regs.regs[4]), count);
}

static bool has_reported(const struct guest *guest, uint32_t *value)
{
	const struct kvm_run *run = guest->run;

	if (run->exit_reason != KVM_EXIT_MMIO || run->mmio.phys_addr != REPORT_GPA)
		return false;
	memcpy(value, run->mmio.data, sizeof(*value));
	return true;
}

#endif

/* ---- both ---- */

static void make_vcpu(struct guest *guest, int kvm_fd, uint32_t number)
{
	guest->vcpu_fd = (int)WORKS(ioctl(guest->vm_fd, KVM_CREATE_VCPU, number));
	WORKS(fcntl(guest->vcpu_fd, F_SETFD, FD_CLOEXEC));
	guest->run_size = (uint64_t)WORKS(ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0));
	guest->run = mmap(NULL, guest->run_size, PROT_READ | PROT_WRITE, MAP_SHARED,
			  guest->vcpu_fd, 0);
	CHECK(guest->run != MAP_FAILED);
	init_vcpu(guest);
}

void guest_new(struct guest *guest, int vm_fd, int kvm_fd)
{
	uint64_t page = page_size();

	guest->vm_fd = vm_fd;
	guest->code = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(guest->code != MAP_FAILED);
	memcpy(guest->code, code_bytes, sizeof(code_bytes));
	__builtin___clear_cache(guest->code, (char *)guest->code + sizeof(code_bytes));
	WORKS(raw_slot(vm_fd, GUEST_SLOT, 0, CODE_GPA, page, guest->code));

	make_vcpu(guest, kvm_fd, 0);
}

void guest_join(struct guest *guest, const struct guest *first, int kvm_fd, uint32_t number)
{
	guest->vm_fd = first->vm_fd;
	guest->code = NULL;
	make_vcpu(guest, kvm_fd, number);
}

void guest_free(struct guest *guest)
{
	munmap(guest->run, guest->run_size);
	close(guest->vcpu_fd);
	if (guest->code) {
		/* Fails where the VM fd is closed already; then nothing runs in it either. */
		raw_slot(guest->vm_fd, GUEST_SLOT, 0, 0, 0, NULL);
		munmap(guest->code, page_size());
	}
	*guest = (struct guest){ .vm_fd = -1, .vcpu_fd = -1 };
}

static void take_fault(const struct guest *guest, struct guest_access *access)
{
	/* memory_fault of older headers has no name in the union: flags, gpa, size */
	uint64_t fault[3];

	memcpy(fault, &guest->run->hw, sizeof(fault));
	access->outcome = GUEST_FAULT;
	access->fault_flags = fault[0];
	access->fault_gpa = fault[1] & ~(page_size() - 1);
	access->fault_size = fault[2];
}

/* KVM completes an exit at the next KVM_RUN: let it, without running on. */
static void complete_exit(struct guest *guest)
{
	guest->run->immediate_exit = 1;
	CHECK_RESULT(SYS(ioctl(guest->vcpu_fd, KVM_RUN, 0)), -EINTR);
	guest->run->immediate_exit = 0;
}

/* Work the kernel has for the task ends KVM_RUN as a signal would, now and then. */
static int run_on(struct guest *guest)
{
	int ret;

	do {
		guest->run->exit_reason = KVM_EXIT_UNKNOWN;
		ret = (int)SYS(ioctl(guest->vcpu_fd, KVM_RUN, 0));
	} while (ret == -EINTR);
	return ret;
}

static struct guest_access run_guest(struct guest *guest, uint64_t gpa)
{
	struct kvm_run *run = guest->run;
	struct guest_access access = { .outcome = GUEST_ERROR };

	access.error = run_on(guest);
	access.exit_reason = run->exit_reason;
	if (access.error) {
		if (run->exit_reason == KVM_EXIT_MEMORY_FAULT)
			take_fault(guest, &access);
		return access;
	}

	if (has_reported(guest, &access.value))
		access.outcome = GUEST_DONE;
	else if (run->exit_reason == KVM_EXIT_MMIO && run->mmio.phys_addr == gpa)
		access.outcome = GUEST_MMIO;
	else if (run->exit_reason == KVM_EXIT_MEMORY_FAULT)
		take_fault(guest, &access);
	complete_exit(guest);
	return access;
}

struct guest_access guest_load(struct guest *guest, uint64_t gpa)
{
	set_registers(guest, LOAD_CODE, gpa, 0);
	return run_guest(guest, gpa);
}

struct guest_access guest_store(struct guest *guest, uint64_t gpa, uint32_t value)
{
	set_registers(guest, STORE_CODE, gpa, value);
	return run_guest(guest, gpa);
}

struct guest_access guest_burst(struct guest *guest, uint64_t gpa, uint32_t value, uint32_t count,
				uint32_t stride)
{
	set_burst(guest, gpa, value, count, stride);
	return run_guest(guest, gpa);
}

struct guest_access guest_run_on(struct guest *guest)
{
	return run_guest(guest, 0);
}

void guest_aim_load(struct guest *guest, uint64_t gpa)
{
	set_registers(guest, LOAD_CODE, gpa, 0);
}

void guest_aim_store(struct guest *guest, uint64_t gpa, uint32_t value)
{
	set_registers(guest, STORE_CODE, gpa, value);
}

bool guest_finish(struct guest *guest, uint32_t *ret_value)
{
	if (!has_reported(guest, ret_value))
		return false;
	complete_exit(guest);
	return true;
}

#ifdef __x86_64__
void guest_allow_requests(struct guest *guest)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_EXIT_HYPERCALL };

	cap.args[0] = 1 << KVM_HC_MAP_GPA_RANGE;
	WORKS(ioctl(guest->vm_fd, KVM_ENABLE_CAP, &cap));
	if (__builtin_cpu_is("amd"))
		((uint8_t *)guest->code)[ASK_CODE + 2] = 0xd9;	/* vmmcall */
}

void guest_aim_request(struct guest *guest, uint32_t gpa, uint32_t pages, uint32_t attributes)
{
	const struct kvm_regs regs = {
		.rip = CODE_GPA + ASK_CODE,
		.rax = KVM_HC_MAP_GPA_RANGE,
		.rbx = gpa,
		.rcx = pages,
		.rdx = attributes,
		.rflags = 2,
	};

	WORKS(ioctl(guest->vcpu_fd, KVM_SET_REGS, &regs));
}

struct guest_access guest_emulated_load(struct guest *guest, uint64_t gpa)
{
	set_registers(guest, OUTS_CODE, gpa, 0);
	return run_guest(guest, gpa);
}
#endif

const char *guest_describe(const struct guest_access *access)
{
	static char text[160];

	switch (access->outcome) {
	case GUEST_DONE:
		snprintf(text, sizeof(text), "done, value 0x%x", access->value);
		break;
	case GUEST_MMIO:
		return "MMIO";
	case GUEST_FAULT:
		snprintf(text, sizeof(text), "memory fault %d, flags 0x%llx, gpa 0x%llx, size 0x%llx",
			 access->error, (unsigned long long)access->fault_flags,
			 (unsigned long long)access->fault_gpa,
			 (unsigned long long)access->fault_size);
		break;
	case GUEST_ERROR:
		snprintf(text, sizeof(text), "KVM_RUN gave %d, exit reason %u", access->error,
			 access->exit_reason);
		break;
	}
	return text;
}

static void check_done(const char *file, int line, const char *what, uint64_t gpa,
		       const struct guest_access *access)
{
	if (access->outcome != GUEST_DONE)
		fail_at(file, line, "guest's %s at 0x%llx: %s", what, (unsigned long long)gpa,
			guest_describe(access));
}

void check_guest_load(const char *file, int line, struct guest *guest, uint64_t gpa,
		      uint32_t wanted)
{
	struct guest_access access = guest_load(guest, gpa);

	check_done(file, line, "load", gpa, &access);
	if (access.value != wanted)
		fail_at(file, line, "guest's load at 0x%llx gave 0x%x, not 0x%x",
			(unsigned long long)gpa, access.value, wanted);
}

void check_guest_store(const char *file, int line, struct guest *guest, uint64_t gpa,
		       uint32_t value)
{
	struct guest_access access = guest_store(guest, gpa, value);

	check_done(file, line, "store", gpa, &access);
}

void check_guest_access(const char *file, int line, struct guest *guest, uint64_t gpa,
			enum guest_outcome wanted)
{
	struct guest_access load = guest_load(guest, gpa);
	struct guest_access store;

	if (load.outcome != wanted)
		fail_at(file, line, "guest's load at 0x%llx: %s", (unsigned long long)gpa,
			guest_describe(&load));
	store = guest_store(guest, gpa, 0x57);
	if (store.outcome != wanted)
		fail_at(file, line, "guest's store at 0x%llx: %s", (unsigned long long)gpa,
			guest_describe(&store));
}
