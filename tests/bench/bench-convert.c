/* SPDX-License-Identifier: MIT */
/*
 * bench-convert: what a conversion costs on top of the system calls it takes,
 * and what the record of states costs. For a kernel with private memory.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/kvm.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <gmem.h>

#include "bench.h"
#include "caps/caps.h"
#include "caps/plan.h"
#include "os/kvm_compat.h"
#include "region/region.h"
#include "region/vm_core.h"

#ifndef KVM_X86_SW_PROTECTED_VM
#define KVM_X86_SW_PROTECTED_VM 1
#endif

#define KIB	((uint64_t)1024)
#define MIB	(1024 * KIB)
#define GIB	(1024 * MIB)
#define PAGE	(4 * KIB)
#define LOOKS	20000

static const char usage[] =
	"usage: bench-convert [ROUNDS]\n"
	"\n"
	"Makes memory private and shared again, by libgmem, with a view to keep, and by\n"
	"hand as a VMM does it without: KVM_SET_MEMORY_ATTRIBUTES for each piece, then\n"
	"madvise(MADV_DONTNEED) or fallocate(FALLOC_FL_PUNCH_HOLE). No page is touched,\n"
	"so that the calls are what is measured. Sides take turns in ROUNDS rounds, at\n"
	"least 5; CPU time is that of the thread. Then the record of states: memory for\n"
	"1 GiB of which every second page is private, and lookups in it.\n"
	"\n"
	"Exit status: 0, 1 if something failed, 77 if this host has no private memory.\n";

struct work {
	int raw_vm;
	int raw_gmemfd;
	char *raw_hva;
	int vm_fd;
	struct gmem_vm *vm;
	struct gmem_view *view;
	uint64_t ioctls;
};

/* ---- the same conversion, twice ---- */

static void convert_by_hand(struct work *w, uint64_t gpa, uint64_t size, int to_private)
{
	struct gmem_kvm_memory_attributes args = {
		.address = gpa,
		.size = size,
		.attributes = to_private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0,
	};

	bench_must(ioctl(w->raw_vm, KVM_SET_MEMORY_ATTRIBUTES, &args), "KVM_SET_MEMORY_ATTRIBUTES");
	if (to_private)
		bench_must(madvise(w->raw_hva + gpa, size, MADV_DONTNEED), "madvise");
	else
		bench_must(fallocate(w->raw_gmemfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				     (off_t)gpa, (off_t)size), "fallocate");
	w->ioctls++;
}

static void convert_by_libgmem(struct work *w, uint64_t gpa, uint64_t size, int to_private)
{
	struct gmem_conversion done;

	bench_gmem_must(gmem_vm_convert(w->vm, gpa, size,
					to_private ? GMEM_STATE_PRIVATE : GMEM_STATE_SHARED, NULL,
					&done), "gmem_vm_convert");
	w->ioctls += done.ioctls;
}

static void convert_later(struct work *w, uint64_t gpa, uint64_t size, int to_private)
{
	GMEM_OPTS(gmem_convert_opts, opts, .discard = GMEM_DISCARD_LATER);
	struct gmem_conversion done;

	bench_gmem_must(gmem_vm_convert(w->vm, gpa, size,
					to_private ? GMEM_STATE_PRIVATE : GMEM_STATE_SHARED, &opts,
					&done), "gmem_vm_convert");
	w->ioctls += done.ioctls;
}

static const struct side {
	const char *name;
	const char *row;
	void (*convert)(struct work *w, uint64_t gpa, uint64_t size, int to_private);
} sides[] = {
	{ "by hand", NULL, convert_by_hand },
	{ "libgmem", "now", convert_by_libgmem },
	{ "libgmem, later", "later", convert_later },
};
#define SIDES (sizeof(sides) / sizeof(sides[0]))

/* ---- the patterns ---- */

static const struct pattern {
	const char *name;
	const char *row;
	uint64_t size;		/* bytes of a piece */
	uint64_t stride;
	size_t count;
} patterns[] = {
	{ "1 GiB in one call", "1G", GIB, GIB, 1 },
	{ "1 GiB in pieces of 2 MiB", "2M-of-1G", 2 * MIB, 2 * MIB, 512 },
	{ "every second 4 KiB of 64 MiB", "4K-of-64M", PAGE, 2 * PAGE, 8192 },
};

/* Visits all of them, far apart; @count is a power of two. */
static uint64_t nth(const struct pattern *p, size_t i)
{
	return (i * 0x9e3779b1 & (p->count - 1)) * p->stride;
}

static double pass(struct work *w, const struct side *side, const struct pattern *p,
		   uint64_t *ret_ioctls)
{
	double start = bench_thread_ns();

	w->ioctls = 0;
	for (int to_private = 1; to_private >= 0; to_private--)
		for (size_t i = 0; i < p->count; i++)
			side->convert(w, nth(p, i), p->size, to_private);
	bench_gmem_must(gmem_vm_discard_owed(w->vm, NULL), "gmem_vm_discard_owed");
	*ret_ioctls = w->ioctls;
	return (bench_thread_ns() - start) / (2.0 * (double)p->count);
}

static void measure(struct work *w, const struct pattern *p, size_t rounds)
{
	double ns[SIDES][BENCH_ROUNDS], ratio[SIDES][BENCH_ROUNDS];
	uint64_t ioctls[SIDES];

	bench_row("convert/%s", p->row);
	for (size_t r = 0; r < rounds; r++) {
		bench_progress(r, rounds);
		for (size_t i = 0; i < SIDES; i++) {
			size_t side = (r + i) % SIDES;

			ns[side][r] = pass(w, &sides[side], p, &ioctls[side]);
		}
	}

	printf("%s, there and back:\n", p->name);
	for (size_t i = 0; i < SIDES; i++) {
		for (size_t r = 0; r < rounds; r++)
			ratio[i][r] = ns[i][r] / ns[0][r];
		printf("  %-16s %6" PRIu64 " ioctls  %12.1f us a call", sides[i].name, ioctls[i],
		       bench_figure_of(ns[i], rounds).median / 1000);
		if (i > 0) {
			bench_row("convert/%s/%s", sides[i].row, p->row);
			bench_row_figure(bench_figure_of(ns[i], rounds), "ns");
			bench_print_against("the system calls", bench_figure_of(ratio[i], rounds), 0);
		}
		printf("\n");
	}
}

/* ---- the record ---- */

static uint64_t allocated(void)
{
	struct mallinfo2 info = mallinfo2();

	return info.uordblks + info.hblkhd;
}

/* Every second page private, without asking the kernel */
static void make_ranges(struct work *w, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++)
		bench_gmem_must(gmem_vm_adopt_private(w->vm, i * 2 * PAGE, PAGE),
				"gmem_vm_adopt_private");
}

static double look_up_states(struct work *w, uint64_t ranges)
{
	struct gmem_state_range range;
	double start = bench_thread_ns();

	for (int i = 0; i < LOOKS; i++)
		gmem_vm_state(w->vm, bench_random(2 * ranges) * PAGE, 1, &range, 1);
	return (bench_thread_ns() - start) / LOOKS;
}

static double look_through_view(struct work *w, uint64_t ranges)
{
	double start;
	void *hva;

	gmem_view_begin(w->view);
	start = bench_thread_ns();
	for (int i = 0; i < LOOKS; i++)
		gmem_view_hva(w->view, (bench_random(ranges) * 2 + 1) * PAGE, 8, &hva);
	start = bench_thread_ns() - start;
	gmem_view_end(w->view);
	return start / LOOKS;
}

static void open_libgmem(struct work *w, const struct gmem_caps *caps, const struct gmem_plan *plan)
{
	GMEM_OPTS(gmem_vm_opts, vm_opts, .caps = caps);
	GMEM_OPTS(gmem_region_opts, opts, .plan = plan);
	struct gmem_region *region;

	bench_gmem_must(gmem_vm_new(w->vm_fd, &vm_opts, &w->vm), "gmem_vm_new");
	bench_gmem_must(gmem_region_add(w->vm, 0, GIB, &opts, &region), "gmem_region_add");
}

static void measure_record(struct work *w, const struct gmem_caps *caps,
			   const struct gmem_plan *plan)
{
	static const uint64_t counts[] = { 1, 1000, 100000, 131072 };
	double states[5], views[5];

	for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
		uint64_t before, record, table;

		open_libgmem(w, caps, plan);
		before = allocated();
		make_ranges(w, counts[i]);
		record = allocated() - before;
		bench_gmem_must(gmem_view_new(w->vm, &w->view), "gmem_view_new");
		table = allocated() - before - record;
		for (int r = 0; r < 5; r++) {
			states[r] = look_up_states(w, counts[i]);
			views[r] = look_through_view(w, counts[i]);
		}
		printf("%6" PRIu64 " ranges: record %" PRIu64 " KiB, readers' table %" PRIu64
		       " KiB, gmem_vm_state() ns", counts[i], record / 1024, table / 1024);
		bench_row("convert/ranges/%" PRIu64, counts[i]);
		bench_print_amount("ns of gmem_vm_state()", bench_figure_of(states, 5), 0);
		printf(" gmem_view_hva() ns");
		bench_print_amount("ns of gmem_view_hva()", bench_figure_of(views, 5), 0);
		printf("\n");
		gmem_view_free(w->view);
		gmem_vm_free(w->vm);
	}
}

/* ---- the two VMs ---- */

static void open_raw(struct work *w)
{
	struct gmem_kvm_create_guest_memfd create = { .size = GIB };
	struct gmem_kvm_userspace_memory_region2 region = {
		.flags = KVM_MEM_GUEST_MEMFD,
		.memory_size = GIB,
	};

	w->raw_gmemfd = bench_must(ioctl(w->raw_vm, KVM_CREATE_GUEST_MEMFD, &create),
				   "KVM_CREATE_GUEST_MEMFD");
	w->raw_hva = mmap(NULL, GIB, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	bench_must(w->raw_hva == MAP_FAILED ? -1 : 0, "mmap");
	region.userspace_addr = (uintptr_t)w->raw_hva;
	region.guest_memfd = (uint32_t)w->raw_gmemfd;
	bench_must(ioctl(w->raw_vm, KVM_SET_USER_MEMORY_REGION2, &region),
		   "KVM_SET_USER_MEMORY_REGION2");
}

static int make_vm(int kvm)
{
	int fd = ioctl(kvm, KVM_CREATE_VM, KVM_X86_SW_PROTECTED_VM);

	if (fd < 0) {
		printf("no VM with private memory here: %s\n", strerror(errno));
		exit(EXIT_CANNOT_RUN);
	}
	return fd;
}

int main(int argc, char **argv)
{
	size_t rounds = bench_arguments(argc, argv, usage, 5);
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_PRIVATE });
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	struct gmem_caps *caps;
	struct gmem_plan *plan;
	struct work w = { .vm_fd = -1 };

	if (kvm < 0) {
		printf("no /dev/kvm: %s\n", strerror(errno));
		return EXIT_CANNOT_RUN;
	}
	w.raw_vm = make_vm(kvm);
	w.vm_fd = make_vm(kvm);
	bench_gmem_must(gmem_caps_new(w.vm_fd, NULL, &caps), "gmem_caps_new");
	bench_gmem_must(gmem_plan_new(caps, &request, &plan), "gmem_plan_new");

	open_raw(&w);
	open_libgmem(&w, caps, plan);
	bench_gmem_must(gmem_view_new(w.vm, &w.view), "gmem_view_new");
	for (size_t i = 0; i < sizeof(patterns) / sizeof(patterns[0]); i++)
		measure(&w, &patterns[i], rounds);
	gmem_view_free(w.view);
	gmem_vm_free(w.vm);

	measure_record(&w, caps, plan);
	gmem_plan_free(plan);
	gmem_caps_free(caps);
	return EXIT_SUCCESS;
}
