/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bench.h"
#include "layout.h"

#define TINY		(UINT64_C(64) << 10)
#define ALIGNED		(UINT64_C(2) << 20)
#define QUICK_MOST	64
#define LEAST_TOGETHER	(UINT64_C(1) << 30)

int layout_make_vm(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), vm;

	if (kvm < 0) {
		printf("This cannot run here: /dev/kvm: %s\n", strerror(errno));
		exit(EXIT_CANNOT_RUN);
	}
	vm = bench_must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	bench_must(close(kvm), "close");
	return vm;
}

static void place_in_guest(struct layout *layout, bool tiny)
{
	uint64_t unit = tiny ? TINY : ALIGNED, size = unit, gpa = 0;

	if (!tiny && layout->count * size < LEAST_TOGETHER)
		size = LEAST_TOGETHER / layout->count;

	for (size_t i = 0; i < layout->count; i++) {
		struct peer_range *range = &layout->ranges[i];

		range->gpa = gpa;
		range->size = tiny ? (1 + bench_random(4)) * unit : size;
		gpa += range->size;
		if (i == 0)
			layout->spare = (struct peer_range){ .gpa = gpa, .size = unit };
		if (i == 0 || bench_random(2))
			gpa += unit;
		layout->pool_size += range->size;
	}
}

/* Map the pieces one after the other, in an order unlike the guest's. */
static void place_in_pool(struct layout *layout)
{
	size_t *order = malloc(layout->count * sizeof(*order));
	char *at = layout->pool;

	bench_must(order ? 0 : -1, "malloc");
	for (size_t i = 0; i < layout->count; i++) {
		size_t other = bench_random(i + 1);

		order[i] = order[other];
		order[other] = i;
	}
	for (size_t i = 0; i < layout->count; i++) {
		layout->ranges[order[i]].hva = at;
		at += layout->ranges[order[i]].size;
	}
	layout->spare.hva = at;
	free(order);
}

static void make_pool(struct layout *layout)
{
	uint64_t size = layout->pool_size + layout->spare.size;

	layout->pool = mmap(NULL, size, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	bench_must(layout->pool == MAP_FAILED ? -1 : 0, "mmap");
}

static void add_regions(struct layout *layout)
{
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_HOST });
	struct gmem_region *region;

	bench_gmem_must(gmem_plan_new(gmem_vm_caps(layout->vm), &request, &layout->plan),
			"gmem_plan_new");
	for (size_t i = 0; i < layout->count; i++) {
		const struct peer_range *range = &layout->ranges[i];
		GMEM_OPTS(gmem_region_opts, opts, .plan = layout->plan,
			  .flags = GMEM_REGION_HVA, .hva = range->hva);

		bench_gmem_must(gmem_region_add(layout->vm, range->gpa, range->size, &opts, &region),
				"gmem_region_add");
	}
}

void layout_new(struct layout *layout, size_t count, bool tiny)
{
	*layout = (struct layout){ .name = count, .count = count };
	if (bench_quick() && count > QUICK_MOST)
		layout->count = QUICK_MOST;
	layout->ranges = calloc(layout->count, sizeof(*layout->ranges));
	bench_must(layout->ranges ? 0 : -1, "calloc");
	place_in_guest(layout, tiny);
	make_pool(layout);
	place_in_pool(layout);

	layout->vm_fd = layout_make_vm();
	bench_gmem_must(gmem_vm_new(layout->vm_fd, NULL, &layout->vm), "gmem_vm_new");
	add_regions(layout);
}

void layout_free(struct layout *layout)
{
	gmem_vm_free(layout->vm);
	gmem_plan_free(layout->plan);
	bench_must(close(layout->vm_fd), "close");
	bench_must(munmap(layout->pool, layout->pool_size + layout->spare.size), "munmap");
	free(layout->ranges);
}
