/* SPDX-License-Identifier: MIT */
/*
 * bench-slots: what adding and removing a region costs on top of the system
 * calls it takes, while readers have a view of the layout.
 */
#include <errno.h>
#include <inttypes.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <gmem.h>

#include "bench.h"
#include "caps/plan.h"
#include "os/kvm_compat.h"
#include "region/file.h"
#include "region/region.h"
#include "region/vm_core.h"
#include "layout.h"

#define BATCH	16	/* regions that come and go in a sample */
#define MOST	30000
#define QUICK_MOST 100

static const char usage[] =
	"usage: bench-slots [ROUNDS]\n"
	"\n"
	"Adds and removes a region in a VM that has others, side by side, and a view, so\n"
	"that the readers' table is kept. The same memslots are set by hand in another\n"
	"VM. Half of the tables use ordinary memory given by the caller, where one ioctl\n"
	"is all there is to do; the other half one shared guest_memfd, mapped piece by\n"
	"piece on both sides, if this host has it.\n"
	"\n"
	"Columns: us of CPU time for one region, median (least - most) of ROUNDS rounds,\n"
	"at least 5, by default 51, of 16 regions each, in which the sides take turns:\n"
	"\n"
	"  by hand    KVM_SET_USER_MEMORY_REGION(2), with mmap() or munmap() if shared\n"
	"  libgmem    gmem_region_add(), gmem_region_remove()\n"
	"  table      the same for a device's range: no ioctl, only the readers' table\n"
	"\n"
	"The last two compare medians with those where 1 is present.\n"
	"\n"
	"Goals: libgmem/by hand 1.1; table/by hand 1; libgmem/with 1 1.6 for 30000.\n"
	"\n"
	"Exit status: 0, 1 if something failed, 77 if this host cannot run it.\n";

enum { BY_HAND, LIBGMEM, TABLE, SIDES };

struct sides {
	uint64_t size;			/* of a region */
	bool shared;
	uint32_t present;		/* the next to come is this one */

	int raw_vm;
	int raw_gmemfd;
	void *raw_hvas[MOST + BATCH];

	int vm_fd;
	struct gmem_vm *vm;
	struct gmem_plan *plan;
	struct gmem_file *file;
	struct gmem_region *regions[BATCH];

	char *pool;			/* ordinary memory for both */
};

static uint64_t gpa_of(const struct sides *sides, uint32_t number)
{
	return number * sides->size;
}

/* --------------------------------------------------------------- by hand -- */

static void set_slot(const struct sides *sides, uint32_t number, uint64_t size, void *hva)
{
	struct gmem_kvm_userspace_memory_region2 region = {
		.slot = number,
		.flags = sides->shared && size ? KVM_MEM_GUEST_MEMFD : 0,
		.guest_phys_addr = gpa_of(sides, number),
		.memory_size = size,
		.userspace_addr = (uintptr_t)hva,
		.guest_memfd_offset = gpa_of(sides, number),
		.guest_memfd = (uint32_t)sides->raw_gmemfd,
	};

	/* The older call takes what both structs begin with. */
	bench_must(ioctl(sides->raw_vm, sides->shared ? KVM_SET_USER_MEMORY_REGION2
						      : KVM_SET_USER_MEMORY_REGION, &region),
		   "KVM_SET_USER_MEMORY_REGION");
}

static void add_by_hand(struct sides *sides, uint32_t number)
{
	void *hva = sides->pool + gpa_of(sides, number);

	if (sides->shared)
		hva = mmap(NULL, sides->size, PROT_READ | PROT_WRITE, MAP_SHARED, sides->raw_gmemfd,
			   (off_t)gpa_of(sides, number));
	bench_must(hva == MAP_FAILED ? -1 : 0, "mmap");
	set_slot(sides, number, sides->size, hva);
	sides->raw_hvas[number] = hva;
}

static void unmap_by_hand(const struct sides *sides, uint32_t number)
{
	if (sides->shared)
		bench_must(munmap(sides->raw_hvas[number], sides->size), "munmap");
}

static void remove_by_hand(const struct sides *sides, uint32_t number)
{
	set_slot(sides, number, 0, NULL);
	unmap_by_hand(sides, number);
}

/* --------------------------------------------------------------- libgmem -- */

static struct gmem_region *add_region(const struct sides *sides, uint32_t number)
{
	uint64_t gpa = gpa_of(sides, number);
	GMEM_OPTS(gmem_region_opts, opts, .plan = sides->plan);
	struct gmem_region *region;

	if (sides->shared) {
		opts.file = sides->file;
		opts.file_offset = gpa;
	} else {
		opts.flags = GMEM_REGION_HVA;
		opts.hva = sides->pool + gpa;
	}
	bench_gmem_must(gmem_region_add(sides->vm, gpa, sides->size, &opts, &region),
			"gmem_region_add");
	return region;
}

static struct gmem_region *add_device(const struct sides *sides, uint32_t number)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_DEVICE);
	struct gmem_region *region;

	bench_gmem_must(gmem_region_add(sides->vm, gpa_of(sides, number), sides->size, &opts,
					&region), "gmem_region_add");
	return region;
}

/* ----------------------------------------------------------- measurement -- */

static double add_all(struct sides *sides, int side)
{
	double start = bench_thread_ns();

	for (uint32_t i = 0; i < BATCH; i++) {
		if (side == BY_HAND)
			add_by_hand(sides, sides->present + i);
		else if (side == LIBGMEM)
			sides->regions[i] = add_region(sides, sides->present + i);
		else
			sides->regions[i] = add_device(sides, sides->present + i);
	}
	return bench_thread_ns() - start;
}

static double remove_all(struct sides *sides, int side)
{
	double start = bench_thread_ns();

	for (uint32_t i = 0; i < BATCH; i++) {
		if (side == BY_HAND)
			remove_by_hand(sides, sides->present + i);
		else
			bench_gmem_must(gmem_region_remove(sides->regions[i]), "gmem_region_remove");
	}
	return bench_thread_ns() - start;
}

static void run(struct sides *sides, struct bench *add, struct bench *remove)
{
	for (size_t round = 0; round < add->rounds; round++) {
		bench_progress(round, add->rounds);
		for (size_t i = 0; i < SIDES; i++) {
			int side = (int)((round + i) % SIDES);

			add->sides[side].ns[round] = add_all(sides, side) / BATCH / 1000;
			remove->sides[side].ns[round] = remove_all(sides, side) / BATCH / 1000;
		}
	}
}

/* ---------------------------------------------------------------- tables -- */

static struct bench_figure growth(const struct bench *bench, int side, double *with_one)
{
	struct bench_figure figure = bench_time(bench, (size_t)side);

	if (with_one[side] == 0)
		with_one[side] = figure.median;
	figure.min /= with_one[side];
	figure.median /= with_one[side];
	figure.max /= with_one[side];
	return figure;
}

static void name_row(const struct sides *sides, const char *what, uint32_t present)
{
	bench_row("slots/%s/%s-%" PRIu64 "K/%u", what, sides->shared ? "shared" : "host",
		  sides->size >> 10, present);
}

static void print_row(const struct sides *sides, const char *what, uint32_t present,
		      const struct bench *bench, double *with_one)
{
	printf("%-7s %4" PRIu64 " KiB %7u %-6s", sides->shared ? "shared" : "host",
	       sides->size >> 10, present, what);
	for (size_t i = 0; i < SIDES; i++)
		bench_print(bench_time(bench, i));
	name_row(sides, what, present);
	bench_row_figure(bench_time(bench, LIBGMEM), "us");
	bench_print_against("the system calls", bench_ratio(bench, LIBGMEM, BY_HAND), 1.1);
	bench_row_figure(bench_time(bench, TABLE), "us");
	bench_print_against("the system calls, table alone", bench_ratio(bench, TABLE, BY_HAND), 1);
	bench_row_figure(bench_time(bench, LIBGMEM), "us");
	if (present > 1)
		bench_print_against("1 present", growth(bench, LIBGMEM, with_one),
				    present == MOST ? 1.6 : 0);
	else
		bench_print(growth(bench, LIBGMEM, with_one));
	bench_print(growth(bench, BY_HAND, with_one));
	printf("\n");
}

static void print_header(void)
{
	static const char *const names[] = { "by hand", "libgmem", "table", "libgmem/by hand",
					     "table/by hand", "libgmem/with 1", "by hand/with 1" };

	printf("%-7s %8s %7s %-6s", "memory", "each", "present", "");
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		bench_print_column(names[i]);
	printf("\n");
}

static void fill_up(struct sides *sides, uint32_t present)
{
	for (; sides->present < present; sides->present++) {
		add_by_hand(sides, sides->present);
		(void)add_region(sides, sides->present);
	}
}

static void bench_rows(struct sides *sides, size_t rounds)
{
	static const uint32_t present[] = { 1, 32, 1000, MOST };
	static struct bench add, remove;
	double add_one[SIDES] = { 0 }, remove_one[SIDES] = { 0 };

	for (size_t i = 0; i < sizeof(present) / sizeof(present[0]); i++) {
		struct gmem_view *view;

		fill_up(sides, bench_quick() && present[i] > QUICK_MOST ? QUICK_MOST + (uint32_t)i
									: present[i]);
		bench_gmem_must(gmem_view_new(sides->vm, &view), "gmem_view_new");
		name_row(sides, "add", present[i]);
		add.rounds = remove.rounds = 5;
		run(sides, &add, &remove);
		add.rounds = remove.rounds = rounds;
		run(sides, &add, &remove);
		gmem_view_free(view);
		print_row(sides, "add", present[i], &add, add_one);
		print_row(sides, "remove", present[i], &remove, remove_one);
	}
}

/* ----------------------------------------------------------------- setup -- */

static void leave_out(const struct sides *sides, const char *why)
{
	bench_row("slots/add/shared-%" PRIu64 "K", sides->size >> 10);
	bench_row_absent(why);
	bench_row("slots/remove/shared-%" PRIu64 "K", sides->size >> 10);
	bench_row_absent(why);
}

/* False if this host cannot back memory like this */
static bool make_plan(struct sides *sides)
{
	GMEM_OPTS(gmem_request, request,
		  .backings = { sides->shared ? GMEM_BACKING_SHARED : GMEM_BACKING_HOST });
	int err = gmem_plan_new(gmem_vm_caps(sides->vm), &request, &sides->plan);

	if (err == -EOPNOTSUPP) {
		leave_out(sides, gmem_last_error());
		return false;
	}
	bench_gmem_must(err, "gmem_plan_new");
	return true;
}

static void make_memory(struct sides *sides, uint64_t size)
{
	struct gmem_kvm_create_guest_memfd create = {
		.size = size, .flags = gmem_plan_create_flags(sides->plan),
	};

	if (sides->shared) {
		sides->raw_gmemfd = bench_must(ioctl(sides->raw_vm, KVM_CREATE_GUEST_MEMFD, &create),
					       "KVM_CREATE_GUEST_MEMFD");
		bench_gmem_must(gmem_file_new(sides->vm_fd, size, sides->plan, &sides->file),
				"gmem_file_new");
		return;
	}
	sides->raw_gmemfd = -1;
	sides->pool = mmap(NULL, size, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	bench_must(sides->pool == MAP_FAILED ? -1 : 0, "mmap");
}

static void free_memory(struct sides *sides, uint64_t size)
{
	for (uint32_t i = 0; i < sides->present; i++)
		unmap_by_hand(sides, i);
	if (sides->shared)
		bench_must(close(sides->raw_gmemfd), "close");
	else
		bench_must(munmap(sides->pool, size), "munmap");
	gmem_file_free(sides->file);
}

static void bench_sides(bool shared, uint64_t each, size_t rounds)
{
	static struct sides sides;
	uint64_t size = (MOST + BATCH) * each;
	bool possible;

	sides = (struct sides){ .shared = shared, .size = each };
	sides.raw_vm = layout_make_vm();
	sides.vm_fd = layout_make_vm();
	bench_gmem_must(gmem_vm_new(sides.vm_fd, NULL, &sides.vm), "gmem_vm_new");
	possible = make_plan(&sides);
	if (possible) {
		make_memory(&sides, size);
		bench_rows(&sides, rounds);
	}
	gmem_vm_free(sides.vm);
	bench_must(close(sides.vm_fd), "close");
	bench_must(close(sides.raw_vm), "close");
	if (possible)
		free_memory(&sides, size);
	gmem_plan_free(sides.plan);
}

int main(int argc, char **argv)
{
	size_t rounds = bench_arguments(argc, argv, usage, 51);
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);

	printf("libgmem %s, %zu rounds\n\n", gmem_version(), rounds);
	print_header();
	bench_sides(false, 2 << 20, rounds);
	bench_sides(false, 64 << 10, rounds);
	bench_sides(false, page, rounds);
	bench_sides(true, 64 << 10, rounds);
	bench_sides(true, page, rounds);
	bench_print_goals();
	return EXIT_SUCCESS;
}
