/* SPDX-License-Identifier: MIT */
/*
 * In guest memory, page 0 has the code, and page 1 is the file under test. The guest
 * stores STORED to byte 0 of page 1, loads byte 1 and reports it by an exit. Then the
 * host drops the file, and the guest loads byte 0, which should be a memory-fault exit.
 */
#include "caps/probe_guest.h"

#include <errno.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/mman.h>

#include "gmem.h"
#include "os/kvm.h"
#include "os/kvm_compat.h"
#include "os/sys.h"

#define STORED		0x5a
#define BYTE_OF_FILE	0x17
#define BYTE_OF_HVA	0x71

struct guest {
	uint64_t page;
	int vm_fd;
	int gmemfd;
	int vcpu_fd;
	uint64_t run_size;
	unsigned char *code;
	unsigned char *hva;
	unsigned char *file;		/* NULL if the file cannot be mapped */
	struct kvm_run *run;
};

#if defined(__x86_64__)

static void write_code(struct guest *guest)
{
	const unsigned char low = guest->page & 0xff, high = (guest->page >> 8) & 0xff;
	const unsigned char code[] = {
		0xc6, 0x06, low, high, STORED,		/* movb $STORED, page */
		0xa0, low + 1, high,			/* movb page + 1, %al */
		0xe6, 0x10,				/* outb %al, $0x10 */
		0xa0, low, high,			/* movb page, %al */
		0xe6, 0x10,				/* outb %al, $0x10 */
		0xf4,					/* hlt */
	};

	memcpy(guest->code, code, sizeof(code));
}

static int set_registers(struct guest *guest)
{
	struct kvm_sregs sregs;
	struct kvm_regs regs;
	int err;

	/* The vCPU stays in real mode, as after reset, but its code segment moves to 0. */
	err = gmem_sys_ioctl(guest->vcpu_fd, KVM_GET_SREGS, &sregs);
	if (err)
		return err;

	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	err = gmem_sys_ioctl(guest->vcpu_fd, KVM_SET_SREGS, &sregs);
	if (err)
		return err;

	memset(&regs, 0, sizeof(regs));
	regs.rflags = 2;
	return gmem_sys_ioctl(guest->vcpu_fd, KVM_SET_REGS, &regs);
}

static int reported_byte(const struct guest *guest)
{
	const struct kvm_run *run = guest->run;

	if (run->exit_reason != KVM_EXIT_IO || run->io.size != 1 ||
	    run->io.data_offset >= guest->run_size)
		return -EPROTO;
	return ((const unsigned char *)run)[run->io.data_offset];
}

#elif defined(__aarch64__)

/* A page number without a memslot: a store there exits to the host. */
#define REPORT_PAGE 16
/* The address of a synchronous exception of EL1, because VBAR_EL1 is 0 */
#define VECTOR 0x200

static void write_code(struct guest *guest)
{
	static const uint32_t code[] = {
		0x39000001,	/* strb w1, [x0] */
		0x39400402,	/* ldrb w2, [x0, #1] */
		0x39000062,	/* strb w2, [x3] */
		0x39400002,	/* ldrb w2, [x0] */
		0x39000062,	/* strb w2, [x3] */
		0x14000000,	/* b . */
	};
	static const uint32_t vector[] = {
		0x39000064,	/* strb w4, [x3]: w4 is 0, which no load returns */
		0x14000000,	/* b . */
	};

	memcpy(guest->code, code, sizeof(code));
	memcpy(guest->code + VECTOR, vector, sizeof(vector));
	__builtin___clear_cache((char *)guest->code, (char *)guest->code + guest->page);
}

static int set_register(struct guest *guest, unsigned int number, uint64_t value)
{
	const struct kvm_one_reg reg = {
		.id = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE |
		      (offsetof(struct kvm_regs, regs.regs) / sizeof(uint32_t) + 2 * number),
		.addr = (uintptr_t)&value,
	};

	return gmem_sys_ioctl(guest->vcpu_fd, KVM_SET_ONE_REG, (void *)&reg);
}

static int set_registers(struct guest *guest)
{
	struct kvm_vcpu_init init;
	int err;

	err = gmem_sys_ioctl(guest->vm_fd, KVM_ARM_PREFERRED_TARGET, &init);
	if (!err)
		err = gmem_sys_ioctl(guest->vcpu_fd, KVM_ARM_VCPU_INIT, &init);
	if (!err)
		err = set_register(guest, 0, guest->page);
	if (!err)
		err = set_register(guest, 1, STORED);
	if (!err)
		err = set_register(guest, 3, REPORT_PAGE * guest->page);
	return err;
}

static int reported_byte(const struct guest *guest)
{
	const struct kvm_run *run = guest->run;

	if (run->exit_reason != KVM_EXIT_MMIO || run->mmio.len != 1 || !run->mmio.is_write)
		return -EPROTO;
	return run->mmio.data[0];
}

#endif

/* KVM_CREATE_VM and KVM_RUN return -EINTR at times, even if no signal was sent. */
static int ioctl_retry(int fd, unsigned long request, void *arg)
{
	int ret;

	do {
		ret = gmem_sys_ioctl(fd, request, arg);
	} while (ret == -EINTR);
	return ret;
}

static int map_page(struct guest *guest, int fd, unsigned char **ret)
{
	void *addr;
	int err;

	err = gmem_sys_mmap(NULL, guest->page, PROT_READ | PROT_WRITE,
			    fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, fd, 0, &addr);
	if (!err)
		*ret = addr;
	return err;
}

static int add_file(struct guest *guest, uint64_t create_flags)
{
	const uint64_t host_access = GMEM_CREATE_MMAP | GMEM_CREATE_INIT_SHARED;
	int err;

	guest->gmemfd = gmem_kvm_create_gmemfd(guest->vm_fd, guest->page, create_flags);
	if (guest->gmemfd < 0)
		return guest->gmemfd;
	gmem_sys_set_cloexec(guest->gmemfd);
	if ((create_flags & host_access) != host_access)
		return 0;

	err = map_page(guest, guest->gmemfd, &guest->file);
	/* Where a store would raise SIGBUS, this fails. */
	if (!err)
		err = gmem_sys_madvise(guest->file, guest->page, MADV_POPULATE_WRITE);
	if (!err)
		guest->file[1] = BYTE_OF_FILE;
	return err;
}

static int add_memory(struct guest *guest, uint64_t create_flags, enum gmem_probe_memory memory)
{
	struct gmem_kvm_slot code = { .number = 0, .size = guest->page };
	struct gmem_kvm_slot data = {
		.number = 1,
		.flags = memory == GMEM_PROBE_HOST ? 0 : KVM_MEM_GUEST_MEMFD,
		.gpa = guest->page,
		.size = guest->page,
	};
	int err;

	err = map_page(guest, -1, &guest->code);
	if (!err)
		err = map_page(guest, -1, &guest->hva);
	if (!err && memory != GMEM_PROBE_HOST)
		err = add_file(guest, create_flags);
	if (err)
		return err;

	guest->hva[1] = BYTE_OF_HVA;
	write_code(guest);
	code.hva = guest->code;
	data.hva = guest->hva;
	data.gmemfd = guest->gmemfd;
	err = gmem_kvm_set_slot(guest->vm_fd, &code);
	if (!err)
		err = gmem_kvm_set_slot(guest->vm_fd, &data);
	if (!err && memory == GMEM_PROBE_PRIVATE)
		err = gmem_kvm_set_attributes(guest->vm_fd, guest->page, guest->page,
					      KVM_MEMORY_ATTRIBUTE_PRIVATE);
	return err;
}

static int add_vcpu(struct guest *guest, int kvm_fd)
{
	void *run;
	int size, err;

	guest->vcpu_fd = gmem_sys_ioctl(guest->vm_fd, KVM_CREATE_VCPU, NULL);
	if (guest->vcpu_fd < 0)
		return guest->vcpu_fd;

	size = gmem_sys_ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, NULL);
	if (size < 0)
		return size;

	guest->run_size = (uint64_t)size;
	err = gmem_sys_mmap(NULL, guest->run_size, PROT_READ | PROT_WRITE, MAP_SHARED,
			    guest->vcpu_fd, 0, &run);
	if (err)
		return err;

	guest->run = run;
	return set_registers(guest);
}

static void drop_file(struct guest *guest)
{
	if (guest->file)
		gmem_sys_munmap(guest->file, guest->page);
	guest->file = NULL;
	if (guest->gmemfd >= 0)
		gmem_sys_close(guest->gmemfd);
	guest->gmemfd = -1;
}

static void run_guest(struct guest *guest, struct gmem_probe_result *result)
{
	int byte;

	result->run_err = ioctl_retry(guest->vcpu_fd, KVM_RUN, NULL);
	if (result->run_err)
		return;

	byte = reported_byte(guest);
	if (byte < 0) {
		result->run_err = byte;
		result->strange_exit = guest->run->exit_reason;
		return;
	}

	result->load_from_hva = byte == BYTE_OF_HVA;
	result->store_to_hva = guest->hva[0] == STORED;
	if (guest->file) {
		result->load_from_file = byte == BYTE_OF_FILE;
		result->store_to_file = guest->file[0] == STORED;
	} else {
		/*
		 * The host cannot read the file. A new file holds 0, and a store that did
		 * not reach the host address reached the file.
		 */
		result->load_from_file = byte == 0;
		result->store_to_file = !result->store_to_hva;
	}

	if (guest->gmemfd < 0)
		return;
	drop_file(guest);
	result->fault_exit = ioctl_retry(guest->vcpu_fd, KVM_RUN, NULL) == -EFAULT &&
			     guest->run->exit_reason == KVM_EXIT_MEMORY_FAULT;
}

int gmem_probe_guest(int kvm_fd, uint64_t vm_type, uint64_t create_flags,
		     enum gmem_probe_memory memory, struct gmem_probe_result *ret)
{
	struct guest guest = { .gmemfd = -1, .vcpu_fd = -1 };
	struct gmem_probe_result result = { .fault_exit = false };
	int err;

	guest.page = gmem_sys_page_size();
	guest.vm_fd = ioctl_retry(kvm_fd, KVM_CREATE_VM, (void *)(uintptr_t)vm_type);
	if (guest.vm_fd < 0)
		return guest.vm_fd;

	err = add_memory(&guest, create_flags, memory);
	if (!err)
		err = add_vcpu(&guest, kvm_fd);
	if (!err)
		run_guest(&guest, &result);
	if (!err)
		*ret = result;

	if (guest.run)
		gmem_sys_munmap(guest.run, guest.run_size);
	if (guest.vcpu_fd >= 0)
		gmem_sys_close(guest.vcpu_fd);
	drop_file(&guest);
	if (guest.code)
		gmem_sys_munmap(guest.code, guest.page);
	if (guest.hva)
		gmem_sys_munmap(guest.hva, guest.page);
	gmem_sys_close(guest.vm_fd);
	return err;
}
