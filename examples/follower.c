/* SPDX-License-Identifier: MIT */
/*
 * follower: how guest memory is mapped for a device, and stays so while it changes.
 *
 * An IOMMU, the kernel's vhost or another hypervisor has mappings of guest memory of its
 * own. They must follow: what is added is mapped, and what is removed, discarded or made
 * private is unmapped. The device here has no IOMMU but a window of this process's
 * addresses: "guest address 0x100000" is what is mapped at window + 0x100000, from the
 * file and offset that the library names. Where this maps a file, VFIO and iommufd map
 * the region's host address:
 *
 *	device_map()	VFIO_IOMMU_MAP_DMA, IOMMU_IOAS_MAP; IOMMU_IOAS_MAP_FILE for a memfd
 *	device_unmap()	VFIO_IOMMU_UNMAP_DMA, IOMMU_IOAS_UNMAP
 *
 * These unmap only what was mapped as one. So memory is mapped by the granule, the
 * smallest part that this VMM discards or converts.
 *
 * The first changes are printed as the device hears of them. Then come random ones, and
 * after each the window must show the memory that gmem_vm_regions() says is there.
 *
 * Exit status: 0, 1 if something failed, 77 if this host cannot run it.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/kvm.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <gmem.h>

#include "start.h"

#define GRANULE		((uint64_t)1 << 20)
#define GRANULES	32
#define REGIONS		8
#define ROUNDS		500
#define PRIVATE_VM	1	/* KVM_X86_SW_PROTECTED_VM */

struct device {
	struct gmem_vm *vm;
	char *window;
	bool is_mapped[GRANULES];
	bool is_unplugged[GRANULES];	/* the VMM knows this of its own: it discarded it */
	bool is_quiet;
	uint64_t maps, unmaps;
};

static void must(int result, const char *what)
{
	if (result < 0)
		errx(1, "%s: %s", what, gmem_last_error());
}

/* ---- the device ---- */

static void device_map(struct device *d, uint64_t gpa, int fd, uint64_t offset)
{
	if (d->is_mapped[gpa / GRANULE])
		errx(1, "0x%" PRIx64 " is mapped already", gpa);
	if (mmap(d->window + gpa, GRANULE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd,
		 (off_t)offset) == MAP_FAILED)
		err(1, "mapping fd %d, offset 0x%" PRIx64, fd, offset);
	d->is_mapped[gpa / GRANULE] = true;
	d->maps++;
}

static void device_unmap(struct device *d, uint64_t gpa)
{
	if (!d->is_mapped[gpa / GRANULE])
		return;
	if (mmap(d->window + gpa, GRANULE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
	    MAP_FAILED)
		err(1, "unmapping 0x%" PRIx64, gpa);
	d->is_mapped[gpa / GRANULE] = false;
	d->unmaps++;
}

/* ---- what it hears ---- */

static void say(const struct device *d, const char *what, uint64_t gpa, uint64_t size)
{
	if (!d->is_quiet)
		printf("  %-16s 0x%07" PRIx64 ", %2" PRIu64 " MiB\n", what, gpa, size / GRANULE);
}

/* Map what is not mapped: shared memory of one region. */
static void map(struct device *d, const struct gmem_region_info *region, uint64_t gpa, uint64_t size)
{
	bool is_file = region->backing == GMEM_BACKING_SHARED;
	int fd = is_file ? region->gmemfd : region->host_fd;
	uint64_t start = is_file ? region->gmemfd_offset : region->host_offset;

	for (uint64_t end = gpa + size; gpa < end; gpa += GRANULE)
		if (!d->is_mapped[gpa / GRANULE] && !d->is_unplugged[gpa / GRANULE])
			device_map(d, gpa, fd, start + (gpa - region->gpa));
}

static void unmap(struct device *d, uint64_t gpa, uint64_t size)
{
	for (uint64_t end = gpa + size; gpa < end; gpa += GRANULE)
		device_unmap(d, gpa);
}

static void added(void *data, const struct gmem_region_info *region, uint64_t gpa, uint64_t size)
{
	say(data, "added", gpa, size);
	map(data, region, gpa, size);
}

static void removed(void *data, const struct gmem_region_info *region, uint64_t gpa, uint64_t size)
{
	struct device *d = data;

	(void)region;
	say(d, "removed", gpa, size);
	unmap(d, gpa, size);
	for (uint64_t end = gpa + size; gpa < end; gpa += GRANULE)
		d->is_unplugged[gpa / GRANULE] = false;
}

static int before_discard(void *data, const struct gmem_region_info *region, uint64_t gpa, uint64_t size)
{
	struct device *d = data;

	(void)region;
	say(d, "before discard", gpa, size);
	unmap(d, gpa, size);
	for (uint64_t end = gpa + size; gpa < end; gpa += GRANULE)
		d->is_unplugged[gpa / GRANULE] = true;
	return 0;
}

static void plugged(void *data, const struct gmem_region_info *region, uint64_t gpa, uint64_t size)
{
	struct device *d = data;

	say(d, "populated", gpa, size);
	for (uint64_t at = gpa; at < gpa + size; at += GRANULE)
		d->is_unplugged[at / GRANULE] = false;
	map(d, region, gpa, size);
}

static int before_private(void *data, uint64_t gpa, uint64_t size)
{
	say(data, "before private", gpa, size);
	unmap(data, gpa, size);
	return 0;
}

/* A conversion may be of several regions. */
static void shared_again(void *data, uint64_t gpa, uint64_t size)
{
	struct gmem_region_info region;
	struct device *d = data;
	uint64_t now;

	say(d, "shared", gpa, size);
	for (; size; gpa += now, size -= now) {
		must(gmem_vm_find_gpa(d->vm, gpa, &region), "finding shared memory");
		now = region.gpa + region.size - gpa < size ? region.gpa + region.size - gpa : size;
		map(d, &region, gpa, now);
	}
}

/* ---- the VMM ---- */

struct vmm {
	struct gmem_vm *vm;
	struct gmem_plan *plan;
	const struct gmem_memory_opts *memory;
	struct gmem_region *regions[REGIONS];
	unsigned int seed;
};

static uint64_t pick(struct vmm *vmm, unsigned int below)
{
	return (unsigned int)rand_r(&vmm->seed) % below;
}

/* All of the device's memory is what the guest has there, and it has no other. */
static void check(const struct device *d)
{
	struct gmem_region_info regions[REGIONS];
	struct gmem_state_range state;
	unsigned int mapped = 0, right = 0;
	volatile char *host, *seen;
	int count = gmem_vm_regions(d->vm, regions, REGIONS);

	must(count, "listing regions");
	for (int i = 0; i < count; i++)
		for (uint64_t at = 0; at < regions[i].size; at += GRANULE) {
			uint64_t gpa = regions[i].gpa + at;

			must(gmem_vm_state(d->vm, gpa, GRANULE, &state, 1), "asking for a state");
			if (state.state != GMEM_STATE_SHARED || d->is_unplugged[gpa / GRANULE])
				continue;
			right++;
			host = (char *)regions[i].hva + at;
			seen = d->window + gpa;
			if (!d->is_mapped[gpa / GRANULE])
				errx(1, "the device lacks 0x%" PRIx64, gpa);
			*host = (char)(*host + 1);
			if (*seen != *host)
				errx(1, "the device has other memory at 0x%" PRIx64, gpa);
		}
	for (unsigned int i = 0; i < GRANULES; i++)
		mapped += d->is_mapped[i];
	if (mapped != right)
		errx(1, "the device has %u granules mapped, %u are there", mapped, right);
}

static int add(struct vmm *vmm, unsigned int i, uint64_t gpa, uint64_t size)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = vmm->plan, .memory = vmm->memory);

	return gmem_region_add(vmm->vm, gpa, size, &opts, &vmm->regions[i]);
}

/* Many of these are refused: something is there already, or nothing is, or it is private. */
static void change(struct vmm *vmm)
{
	uint64_t gpa = pick(vmm, GRANULES - 4) * GRANULE, size = (1 + pick(vmm, 4)) * GRANULE;
	unsigned int i = (unsigned int)pick(vmm, REGIONS);

	switch (pick(vmm, 6)) {
	case 0:
		if (!vmm->regions[i])
			add(vmm, i, gpa, size);
		else if (gmem_region_remove(vmm->regions[i]) == 0)
			vmm->regions[i] = NULL;
		break;
	case 1:
		if (vmm->regions[i])
			gmem_region_move(vmm->regions[i], gpa);
		break;
	case 2:
		gmem_vm_discard(vmm->vm, gpa, size, NULL, NULL);
		break;
	case 3:
		gmem_vm_populate(vmm->vm, gpa, size, NULL, NULL);
		break;
	case 4:
		gmem_vm_convert(vmm->vm, gpa, size, GMEM_STATE_PRIVATE, NULL, NULL);
		break;
	default:
		gmem_vm_convert(vmm->vm, gpa, size, GMEM_STATE_SHARED, NULL, NULL);
	}
}

/* Some memory is there before the device is, and some comes later. */
static void run(struct vmm *vmm, struct device *d)
{
	GMEM_OPTS(gmem_listener_opts, opts, .name = "device", .data = d, .before_private = before_private,
		  .undo_private = shared_again, .after_shared = shared_again, .region_added = added,
		  .region_removed = removed, .before_discard = before_discard, .undo_discard = plugged,
		  .populated = plugged);
	struct gmem_listener *listener;

	must(add(vmm, 0, 0, 4 * GRANULE), "adding memory");
	puts("The device comes:");
	must(gmem_listener_new(vmm->vm, &opts, &listener), "listening");
	check(d);
	puts("Memory is added:");
	must(add(vmm, 1, 8 * GRANULE, 4 * GRANULE), "adding memory");
	puts("It moves:");
	must(gmem_region_move(vmm->regions[1], 16 * GRANULE), "moving memory");
	check(d);
	puts("A part is unplugged:");
	must(gmem_vm_discard(vmm->vm, 17 * GRANULE, 2 * GRANULE, NULL, NULL), "unplugging");
	check(d);
	puts("and plugged in:");
	must(gmem_vm_populate(vmm->vm, 17 * GRANULE, 2 * GRANULE, NULL, NULL), "plugging");
	check(d);

	d->is_quiet = true;
	for (int i = 0; i < ROUNDS; i++) {
		change(vmm);
		check(d);
	}
	printf("After %d random changes the device has what the guest has: mapped %" PRIu64
	       " times, unmapped %" PRIu64 " times.\n", ROUNDS, d->maps, d->unmaps);
	gmem_listener_free(listener);
}

static const char help[] =
"usage: follower\n"
"Maps guest memory for a device, and keeps that so while the memory changes.\n";

int main(int argc, char **argv)
{
	GMEM_OPTS(gmem_request, request,
		  .backings = { GMEM_BACKING_PRIVATE, GMEM_BACKING_SHARED, GMEM_BACKING_HOST });
	GMEM_OPTS(gmem_memory_opts, memfd, .flags = GMEM_MEMORY_MEMFD);
	struct vmm vmm = { .seed = 1 };
	struct device device = { .is_quiet = false };
	int kvm, vm_fd;

	no_arguments(argc, argv, help);
	kvm = open_kvm("follower");
	vm_fd = create_vm(kvm, PRIVATE_VM);
	if (vm_fd < 0)
		vm_fd = create_vm(kvm, 0);
	if (vm_fd < 0)
		err(1, "KVM_CREATE_VM");

	must(gmem_vm_new(vm_fd, NULL, &vmm.vm), "looking at the VM");
	must(gmem_plan_new(gmem_vm_caps(vmm.vm), &request, &vmm.plan), "planning");
	printf("follower: guest memory with backing \"%s\"\n", gmem_backing_name(gmem_plan_backing(vmm.plan)));
	if (gmem_plan_backing(vmm.plan) != GMEM_BACKING_SHARED)
		vmm.memory = &memfd;
	device.vm = vmm.vm;
	device.window = mmap(NULL, GRANULES * GRANULE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (device.window == MAP_FAILED)
		err(1, "a window for the device");

	run(&vmm, &device);
	gmem_plan_free(vmm.plan);
	gmem_vm_free(vmm.vm);
	return exit_status();
}
