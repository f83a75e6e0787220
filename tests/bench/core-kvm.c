/* SPDX-License-Identifier: MIT */
/* A KVM that is played: the library's one door to ioctls is wrapped when this is linked. */
#include <errno.h>
#include <stdbool.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "bench.h"
#include "core.h"
#include "os/kvm_compat.h"
#include "os/sys.h"

#define ADDRESS_BITS 46

int __real_gmem_sys_ioctl(int fd, unsigned long request, void *arg);
int __wrap_gmem_sys_ioctl(int fd, unsigned long request, void *arg);

static int played_fd = -1;
static unsigned int attributes_delay, memslot_delay;

void core_set_delays(unsigned int attributes_us, unsigned int memslot_us)
{
	__atomic_store_n(&attributes_delay, attributes_us, __ATOMIC_RELAXED);
	__atomic_store_n(&memslot_delay, memslot_us, __ATOMIC_RELAXED);
}

static int take(const unsigned int *delay)
{
	unsigned int us = __atomic_load_n(delay, __ATOMIC_RELAXED);
	const struct timespec time = { us / 1000000, us % 1000000 * 1000L };

	if (us)
		nanosleep(&time, NULL);
	return 0;
}

static int check_extension(uintptr_t cap)
{
	switch (cap) {
	case KVM_CAP_USER_MEMORY:
	case KVM_CAP_USER_MEMORY2:
	case KVM_CAP_MEMORY_FAULT_INFO:
	case KVM_CAP_GUEST_MEMFD:
	case KVM_CAP_GUEST_MEMFD_FLAGS:
	case KVM_CAP_READONLY_MEM:
	case KVM_CAP_MULTI_ADDRESS_SPACE:
		return 1;
	case KVM_CAP_MEMORY_ATTRIBUTES:
		return KVM_MEMORY_ATTRIBUTE_PRIVATE;
	case KVM_CAP_VM_TYPES:
		return 3;
	case KVM_CAP_NR_MEMSLOTS:
		return 32764;
	default:
		return 0;
	}
}

static int create_gmemfd(const struct gmem_kvm_create_guest_memfd *args)
{
	int fd = memfd_create("played-gmem", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, (off_t)args->size) < 0)
		return -errno;
	return fd;
}

static int set_slot(const struct kvm_userspace_memory_region *args)
{
	if (args->memory_size && args->guest_phys_addr >> ADDRESS_BITS)
		return -EINVAL;
	return take(&memslot_delay);
}

int __wrap_gmem_sys_ioctl(int fd, unsigned long request, void *arg)
{
	if (fd != played_fd)
		return __real_gmem_sys_ioctl(fd, request, arg);

	switch (request) {
	case KVM_CHECK_EXTENSION:
		return check_extension((uintptr_t)arg);
	case KVM_CREATE_GUEST_MEMFD:
		return create_gmemfd(arg);
	case KVM_SET_USER_MEMORY_REGION:
		return set_slot(arg);
	case KVM_SET_USER_MEMORY_REGION2:
		return take(&memslot_delay);
	case KVM_SET_MEMORY_ATTRIBUTES:
		return take(&attributes_delay);
	case KVM_GET_DIRTY_LOG:
		return 0;
	default:
		return -ENOTTY;
	}
}

/* ---- the VM ---- */

void core_vm_new(struct core_vm *vm)
{
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_PRIVATE });

	core_set_delays(0, 0);
	vm->fd = played_fd = bench_must(eventfd(0, EFD_CLOEXEC), "eventfd");
	bench_gmem_must(gmem_vm_new(vm->fd, NULL, &vm->vm), "gmem_vm_new");
	bench_gmem_must(gmem_plan_new(gmem_vm_caps(vm->vm), &request, &vm->plan), "gmem_plan_new");
}

void core_vm_free(struct core_vm *vm)
{
	core_set_delays(0, 0);
	gmem_vm_free(vm->vm);
	gmem_plan_free(vm->plan);
	close(vm->fd);
	played_fd = -1;
}

struct gmem_region *core_add(const struct core_vm *vm, uint64_t gpa, uint64_t size)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = vm->plan);
	struct gmem_region *region;

	bench_gmem_must(gmem_region_add(vm->vm, gpa, size, &opts, &region), "gmem_region_add");
	return region;
}

void core_convert(const struct core_vm *vm, uint64_t gpa, uint64_t size, bool to_private,
		  uint32_t discard)
{
	GMEM_OPTS(gmem_convert_opts, opts, .discard = discard);

	bench_gmem_must(gmem_vm_convert(vm->vm, gpa, size,
					to_private ? GMEM_STATE_PRIVATE : GMEM_STATE_SHARED, &opts, NULL),
			"gmem_vm_convert");
}

double core_seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}
