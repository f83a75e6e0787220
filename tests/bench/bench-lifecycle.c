/* SPDX-License-Identifier: MIT */
/*
 * bench-lifecycle: what libgmem costs on top of the system calls it makes.
 *
 * Every sample of the library has its twin, the same system calls made by
 * hand, right before or right after it, so that whatever else the machine does
 * hits both. The figure is the median of the ratios of the pairs. Time is the
 * CPU time of this process: it does not count waiting, for RCU above all.
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
#include <time.h>
#include <unistd.h>

#include <gmem.h>

#include "bench.h"
#include "caps/plan.h"
#include "os/kvm_compat.h"
#include "region/file.h"
#include "region/region.h"
#include "region/vm_core.h"

#define BATCH_MIN	2001
#define MOST_SLOTS	30000
#define GUEST_MEMFD	(GMEM_CREATE_MMAP | GMEM_CREATE_INIT_SHARED)

static const char usage[] =
	"usage: bench-lifecycle [ROUNDS]\n"
	"\n"
	"Compares libgmem with the same system calls made by hand. The tables:\n"
	"\n"
	"  lifecycle    create a shared guest_memfd (close-on-exec), map it, bind it,\n"
	"               unbind it, unmap it, close it: gmem_region_add() and\n"
	"               gmem_region_remove() against the seven calls. Pages are not\n"
	"               touched. Then with MADV_DONTDUMP by hand, too, which keeps the\n"
	"               memory out of core dumps; and with memory of the caller's, where\n"
	"               two calls are all there is to do\n"
	"  memslots     map and bind one page of a big file and take it away again,\n"
	"               with 1, 1000 and 30000 other memslots in the VM\n"
	"  teardown     delete and unmap these 30000: gmem_vm_free(), once\n"
	"  allocations  what add and remove together take from the heap\n"
	"  attach       gmem_vm_new() with a report at hand, and the report, by the clock on\n"
	"               the wall\n"
	"\n"
	"Columns: microseconds of CPU time by hand and with libgmem, and their ratio (a\n"
	"pair is measured back to back): medians, with the quartiles. ROUNDS pairs make a batch: at least and by default 2001.\n"
	"\n"
	"Exit status: 0, 1 if something failed, 77 if this host cannot run it.\n";

/* ------------------------------------------------------------- the heap -- */

static unsigned long allocations;

/* The linker puts these in the place of the usual ones: see meson.build. */
void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t size);

void *__wrap_malloc(size_t size)
{
	allocations++;
	return __real_malloc(size);
}

void *__wrap_calloc(size_t n, size_t size)
{
	allocations++;
	return __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t size)
{
	allocations++;
	return __real_realloc(p, size);
}

/* --------------------------------------------------------------- helpers -- */

static uint64_t page;

static double cpu_us(void)
{
	struct timespec t;

	bench_must(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t), "clock_gettime");
	return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

/* ---------------------------------------------------------- the two sides -- */

/* One VM for each side, so that their memslots do not meet */
struct twins {
	int raw_vm;
	int raw_gmemfd;		/* for the memslots table */
	int vm_fd;
	struct gmem_vm *vm;
	struct gmem_plan *plan;
	struct gmem_file *file;	/* for the memslots table */
	void **raw_hvas;	/* likewise */
	int kvm;
	struct gmem_plan *host_plan;
	void *memory;		/* of the caller's */
	uint32_t slot;		/* the one that comes and goes */
	uint64_t size;		/* of it */
};

static void raw_set_slot(int vm, uint32_t slot, uint64_t size, int gmemfd, uint64_t offset,
			 const void *hva)
{
	struct gmem_kvm_userspace_memory_region2 region = {
		.slot = slot,
		.flags = size ? KVM_MEM_GUEST_MEMFD : 0,
		.guest_phys_addr = offset,
		.memory_size = size,
		.userspace_addr = (uintptr_t)hva,
		.guest_memfd_offset = offset,
		.guest_memfd = (uint32_t)gmemfd,
	};

	bench_must(ioctl(vm, KVM_SET_USER_MEMORY_REGION2, &region), "KVM_SET_USER_MEMORY_REGION2");
}

static void *raw_map(int gmemfd, uint64_t offset, uint64_t size)
{
	void *hva = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, gmemfd, (off_t)offset);

	bench_must(hva == MAP_FAILED ? -1 : 0, "mmap");
	return hva;
}

static int raw_create(int vm, uint64_t size)
{
	struct gmem_kvm_create_guest_memfd create = { .size = size, .flags = GUEST_MEMFD };

	return bench_must(ioctl(vm, KVM_CREATE_GUEST_MEMFD, &create), "KVM_CREATE_GUEST_MEMFD");
}

static void raw_lifecycle(struct twins *b)
{
	int gmemfd = raw_create(b->raw_vm, b->size);
	void *hva;

	bench_must(fcntl(gmemfd, F_SETFD, FD_CLOEXEC), "F_SETFD");
	hva = raw_map(gmemfd, 0, b->size);
	raw_set_slot(b->raw_vm, 0, b->size, gmemfd, 0, hva);
	raw_set_slot(b->raw_vm, 0, 0, -1, 0, NULL);
	bench_must(munmap(hva, b->size), "munmap");
	bench_must(close(gmemfd), "close");
}

static void raw_lifecycle_advised(struct twins *b)
{
	int gmemfd = raw_create(b->raw_vm, b->size);
	void *hva;

	bench_must(fcntl(gmemfd, F_SETFD, FD_CLOEXEC), "F_SETFD");
	hva = raw_map(gmemfd, 0, b->size);
	bench_must(madvise(hva, b->size, MADV_DONTDUMP), "madvise");
	raw_set_slot(b->raw_vm, 0, b->size, gmemfd, 0, hva);
	raw_set_slot(b->raw_vm, 0, 0, -1, 0, NULL);
	bench_must(munmap(hva, b->size), "munmap");
	bench_must(close(gmemfd), "close");
}

static void raw_set_plain_slot(int vm, uint32_t slot, uint64_t size, const void *hva)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot, .memory_size = size, .userspace_addr = (uintptr_t)hva,
	};

	bench_must(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
}

static void raw_callers(struct twins *b)
{
	raw_set_plain_slot(b->raw_vm, 0, b->size, b->memory);
	raw_set_plain_slot(b->raw_vm, 0, 0, NULL);
}

static void gmem_callers(struct twins *b)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = b->host_plan, .flags = GMEM_REGION_HVA, .hva = b->memory);
	struct gmem_region *region;

	bench_gmem_must(gmem_region_add(b->vm, 0, b->size, &opts, &region), "gmem_region_add");
	bench_gmem_must(gmem_region_remove(region), "gmem_region_remove");
}

static int make_vm(const struct twins *b)
{
	return bench_must(ioctl(b->kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
}

static void gmem_lifecycle(struct twins *b)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = b->plan);
	struct gmem_region *region;

	bench_gmem_must(gmem_region_add(b->vm, 0, b->size, &opts, &region), "gmem_region_add");
	bench_gmem_must(gmem_region_remove(region), "gmem_region_remove");
}

static void raw_bind(struct twins *b)
{
	uint64_t offset = b->slot * page;
	void *hva = raw_map(b->raw_gmemfd, offset, page);

	raw_set_slot(b->raw_vm, b->slot, page, b->raw_gmemfd, offset, hva);
	raw_set_slot(b->raw_vm, b->slot, 0, -1, 0, NULL);
	bench_must(munmap(hva, page), "munmap");
}

static struct gmem_region *gmem_add_page(struct twins *b, uint32_t n)
{
	GMEM_OPTS(gmem_region_opts, opts,
		  .plan = b->plan, .file = b->file, .file_offset = n * page);
	struct gmem_region *region;

	bench_gmem_must(gmem_region_add(b->vm, n * page, page, &opts, &region), "gmem_region_add");
	return region;
}

static void gmem_bind(struct twins *b)
{
	bench_gmem_must(gmem_region_remove(gmem_add_page(b, b->slot)), "gmem_region_remove");
}

/* ----------------------------------------------------------- measurement -- */

typedef void (*bench_side)(struct twins *b);

static double sample(bench_side side, struct twins *b)
{
	double start = cpu_us();

	side(b);
	return cpu_us() - start;
}

/* One row: ROUNDS pairs, the side that goes first taking turns */
static void compare(const char *name, bench_side raw, bench_side lib, struct twins *b,
		    size_t rounds, double goal)
{
	double *by_hand = malloc(rounds * sizeof(double));
	double *with_gmem = malloc(rounds * sizeof(double));
	double *ratio = malloc(rounds * sizeof(double));

	bench_must(by_hand && with_gmem && ratio ? 0 : -1, "malloc");
	bench_row("%s", name);
	for (size_t i = 0; i < (bench_quick() ? 1 : 100); i++) {
		raw(b);
		lib(b);
	}
	for (size_t i = 0; i < rounds; i++) {
		bench_progress(i, rounds);
		if (i % 2) {
			by_hand[i] = sample(raw, b);
			with_gmem[i] = sample(lib, b);
		} else {
			with_gmem[i] = sample(lib, b);
			by_hand[i] = sample(raw, b);
		}
		ratio[i] = with_gmem[i] / by_hand[i];
	}
	printf("  %-28s", name);
	bench_print(bench_quartiles_of(by_hand, rounds));
	bench_row_figure(bench_quartiles_of(with_gmem, rounds), "us");
	bench_print(bench_quartiles_of(with_gmem, rounds));
	bench_print_against("the system calls", bench_quartiles_of(ratio, rounds), goal);
	printf("\n");
	free(by_hand);
	free(with_gmem);
	free(ratio);
}

static void print_columns(const char *table)
{
	printf("%-30s", table);
	bench_print_column("by hand us");
	bench_print_column("libgmem us");
	bench_print_column("libgmem/by hand");
	printf("\n");
}

static void bench_lifecycle(struct twins *b, size_t rounds)
{
	print_columns("lifecycle");
	b->size = page;
	compare("layout/add-remove/1-page", raw_lifecycle, gmem_lifecycle, b, rounds, 1.05);
	b->size = 2 << 20;
	compare("layout/add-remove/2M", raw_lifecycle, gmem_lifecycle, b, rounds, 1.05);
	b->size = 64 << 20;
	compare("layout/add-remove/64M", raw_lifecycle, gmem_lifecycle, b, rounds, 1.05);
	b->size = page;
	compare("layout/add-remove-advised", raw_lifecycle_advised, gmem_lifecycle, b, rounds, 1.05);
	compare("layout/add-remove-callers/1-page", raw_callers, gmem_callers, b, rounds, 1.05);
	b->size = 2 << 20;
	compare("layout/add-remove-callers/2M", raw_callers, gmem_callers, b, rounds, 1.05);
}

static void raw_teardown(struct twins *b)
{
	for (uint32_t i = 0; i < b->slot; i++)
		raw_set_plain_slot(b->raw_vm, i, 0, NULL);
	for (uint32_t i = 0; i < b->slot; i++)
		bench_must(munmap(b->raw_hvas[i], page), "munmap");
	bench_must(close(b->raw_gmemfd), "close");
}

static void gmem_teardown(struct twins *b)
{
	gmem_vm_free(b->vm);
	gmem_file_free(b->file);
}

static void bench_teardown(struct twins *b, uint32_t present)
{
	double by_hand, with_gmem;

	b->slot = present;
	by_hand = sample(raw_teardown, b);
	with_gmem = sample(gmem_teardown, b);
	bench_row("layout/teardown/30000-slots");
	printf("  %-28s", "layout/teardown/30000-slots");
	bench_print(bench_single(by_hand));
	bench_row_figure(bench_single(with_gmem), "us");
	bench_print(bench_single(with_gmem));
	bench_print_against("the system calls", bench_single(with_gmem / by_hand), 1.1);
	printf("\n");
}

/* Every page is a mapping by itself, on both sides; Linux's default allows 65530. */
static void bench_memslots(struct twins *b, size_t rounds)
{
	static const struct {
		uint32_t slots;
		const char *name;
	} rows[] = {
		{ 1, "layout/bind/1-slot" },
		{ 1000, "layout/bind/1000-slots" },
		{ MOST_SLOTS, "layout/bind/30000-slots" },
	};
	uint64_t size = (MOST_SLOTS + 1) * page;
	uint32_t present = 0;

	b->raw_gmemfd = raw_create(b->raw_vm, size);
	bench_gmem_must(gmem_file_new(b->vm_fd, size, b->plan, &b->file), "gmem_file_new");

	print_columns("memslots");
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		for (; present < (bench_quick() ? 1 + i : rows[i].slots); present++) {
			uint64_t offset = present * page;

			b->raw_hvas[present] = raw_map(b->raw_gmemfd, offset, page);
			raw_set_slot(b->raw_vm, present, page, b->raw_gmemfd, offset,
				     b->raw_hvas[present]);
			(void)gmem_add_page(b, present);
		}
		b->slot = present;
		compare(rows[i].name, raw_bind, gmem_bind, b, rounds, 1.1);
	}
	bench_teardown(b, present);
}

static unsigned long count_allocations(bench_side side, struct twins *b)
{
	unsigned long before;

	side(b);
	before = allocations;
	side(b);
	return allocations - before;
}

static void gmem_default_lifecycle(struct twins *b)
{
	struct gmem_region *region;

	bench_gmem_must(gmem_region_add(b->vm, 0, b->size, NULL, &region), "gmem_region_add");
	bench_gmem_must(gmem_region_remove(region), "gmem_region_remove");
}

static void print_allocations(const char *name, unsigned long count)
{
	bench_row("%s", name);
	printf("  %-28s", name);
	bench_print_amount("allocations", bench_single((double)count), 2);
	printf("\n");
}

static void bench_allocations(struct twins *b)
{
	b->size = page;
	printf("allocations from the heap, for one add and remove\n");
	print_allocations("layout/allocations/plan", count_allocations(gmem_lifecycle, b));
	print_allocations("layout/allocations/defaults", count_allocations(gmem_default_lifecycle, b));
}

/* ---------------------------------------------------------------- attach -- */

#define ATTACH_ROUNDS	21

static double wall_ms(void)
{
	struct timespec t;

	bench_must(clock_gettime(CLOCK_MONOTONIC, &t), "clock_gettime");
	return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static int create_vm(int kvm)
{
	int vm;

	do
		vm = ioctl(kvm, KVM_CREATE_VM, 0);
	while (vm < 0 && errno == EINTR);
	return bench_must(vm, "KVM_CREATE_VM");
}

/* A VM made, attached to with a report at hand if @caps is one, and closed */
static double attach(int kvm, const struct gmem_caps *caps)
{
	GMEM_OPTS(gmem_vm_opts, opts, .caps = caps);
	double start = wall_ms();
	int fd = create_vm(kvm);
	struct gmem_vm *vm;

	if (caps) {
		bench_gmem_must(gmem_vm_new(fd, &opts, &vm), "gmem_vm_new");
		gmem_vm_free(vm);
	}
	bench_must(close(fd), "close");
	return wall_ms() - start;
}

static double report(int fd, uint64_t flags, struct gmem_caps **ret)
{
	GMEM_OPTS(gmem_caps_opts, opts, .flags = flags);
	double start = wall_ms();

	bench_gmem_must(gmem_caps_new(fd, &opts, ret), "gmem_caps_new");
	return wall_ms() - start;
}

static void bench_attach(const struct twins *b)
{
	double alone[ATTACH_ROUNDS], with_gmem[ATTACH_ROUNDS], ratio[ATTACH_ROUNDS];
	double ms[ATTACH_ROUNDS], full[ATTACH_ROUNDS];
	int kvm = bench_must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	size_t rounds = bench_quick() ? 2 : ATTACH_ROUNDS;
	struct gmem_caps *caps;

	bench_row("layout/attach");
	for (size_t i = 0; i < rounds; i++) {
		bench_progress(i, rounds);
		full[i] = report(b->raw_vm, GMEM_CAPS_RUN_GUEST, &caps);
		gmem_caps_free(caps);
		ms[i] = report(b->raw_vm, 0, &caps);
		alone[i] = attach(kvm, i % 2 ? caps : NULL);
		with_gmem[i] = attach(kvm, i % 2 ? NULL : caps);
		if (i % 2) {
			double first = alone[i];

			alone[i] = with_gmem[i];
			with_gmem[i] = first;
		}
		ratio[i] = with_gmem[i] / alone[i];
		gmem_caps_free(caps);
	}
	printf("a VM made and closed, on the wall\n  by hand ms  ");
	bench_print(bench_figure_of(alone, rounds));
	printf(" libgmem, a report at hand, of by hand");
	bench_row_figure(bench_figure_of(with_gmem, rounds), "ms");
	bench_print_against("KVM_CREATE_VM alone", bench_figure_of(ratio, rounds), 1.2);
	bench_row("layout/report");
	printf("\n  a report, ms");
	bench_print_amount("ms", bench_figure_of(ms, rounds), 10);
	bench_row("layout/report/guest");
	printf(" with GMEM_CAPS_RUN_GUEST");
	bench_print_amount("ms", bench_figure_of(full, rounds), 10);
	printf("\n");
	close(kvm);
}

/* ------------------------------------------------------------------ main -- */

static void make_memory(struct twins *b)
{
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_HOST });

	b->memory = mmap(NULL, 2 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	bench_must(b->memory == MAP_FAILED ? -1 : 0, "mmap");
	b->raw_hvas = calloc(MOST_SLOTS, sizeof(*b->raw_hvas));
	bench_must(b->raw_hvas ? 0 : -1, "calloc");
	bench_gmem_must(gmem_plan_new(gmem_vm_caps(b->vm), &request, &b->host_plan), "gmem_plan_new");
}

static int set_up(struct twins *b)
{
	int error;

	b->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (b->kvm < 0) {
		printf("bench-lifecycle cannot run here: /dev/kvm: %s\n", strerror(errno));
		return EXIT_CANNOT_RUN;
	}
	b->raw_vm = make_vm(b);
	b->vm_fd = make_vm(b);

	bench_gmem_must(gmem_vm_new(b->vm_fd, NULL, &b->vm), "gmem_vm_new");
	error = gmem_plan_new(gmem_vm_caps(b->vm), NULL, &b->plan);
	if (error == -EOPNOTSUPP) {
		printf("bench-lifecycle cannot run here: %s\n", gmem_last_error());
		return EXIT_CANNOT_RUN;
	}
	bench_gmem_must(error, "gmem_plan_new");
	make_memory(b);
	return EXIT_SUCCESS;
}

int main(int argc, char **argv)
{
	size_t rounds = argc == 2 ? strtoul(argv[1], NULL, 10) : bench_quick() ? 3 : BATCH_MIN;
	struct twins b = { 0 };
	int status;

	if (argc > 2 || (argc == 2 && rounds < BATCH_MIN)) {
		fputs(usage, stdout);
		return argc == 2 && !strcmp(argv[1], "--help") ? EXIT_SUCCESS : EXIT_FAILURE;
	}
	page = (uint64_t)sysconf(_SC_PAGESIZE);
	status = set_up(&b);
	if (status != EXIT_SUCCESS)
		return status;

	printf("libgmem %s, %zu pairs a row\n\n", gmem_version(), rounds);
	bench_lifecycle(&b, rounds);
	printf("\n");
	bench_allocations(&b);
	printf("\n");
	bench_attach(&b);
	printf("\n");
	bench_memslots(&b, rounds);
	bench_print_goals();

	gmem_plan_free(b.plan);
	gmem_plan_free(b.host_plan);
	free(b.raw_hvas);
	bench_must(munmap(b.memory, 2 << 20), "munmap");
	bench_must(close(b.vm_fd), "close");
	bench_must(close(b.raw_vm), "close");
	bench_must(close(b.kvm), "close");
	return EXIT_SUCCESS;
}
