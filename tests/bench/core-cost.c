/* SPDX-License-Identifier: MIT */
/* bench-core: CPU time of conversions, of readers, and of many memslots */
#include <fcntl.h>
#include <inttypes.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bench.h"
#include "core.h"
#include "layout.h"

/* Every second page of this much is converted, there and back. */
#define SCATTERED	(bench_quick() ? MIB : 32 * MIB)
#define SCATTERED_PAGES	(SCATTERED / (2 * PAGE))

static double median(double *values, size_t count)
{
	return bench_figure_of(values, count).median;
}

/* ---- conversions by the size of the VM ---- */

static double convert_scattered(const struct core_vm *vm, uint64_t base, uint32_t discard)
{
	double start = bench_thread_ns();

	for (int to_private = 1; to_private >= 0; to_private--)
		for (uint64_t i = 0; i < SCATTERED_PAGES; i++)
			core_convert(vm, base + i * 2 * PAGE, PAGE, to_private, discard);
	return (bench_thread_ns() - start) / (double)(2 * SCATTERED_PAGES) / 1000;
}

/* The system calls that discard the other side, on memory of the same kind and size */
static double discard_by_hand(char *hva, int fd)
{
	double start = bench_thread_ns();

	for (uint64_t i = 0; i < SCATTERED_PAGES; i++)
		bench_must(madvise(hva + i * 2 * PAGE, PAGE, MADV_DONTNEED), "madvise");
	for (uint64_t i = 0; i < SCATTERED_PAGES; i++)
		bench_must(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				     (off_t)(i * 2 * PAGE), PAGE), "fallocate");
	return (bench_thread_ns() - start) / (double)(2 * SCATTERED_PAGES) / 1000;
}

static double measure_by_hand(size_t rounds)
{
	int fd = bench_must(memfd_create("by-hand", MFD_CLOEXEC), "memfd_create");
	double us[BENCH_ROUNDS];
	char *hva;

	bench_must(ftruncate(fd, (off_t)SCATTERED), "ftruncate");
	hva = mmap(NULL, SCATTERED, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	bench_must(hva == MAP_FAILED ? -1 : 0, "mmap");
	for (size_t r = 0; r < rounds; r++)
		us[r] = discard_by_hand(hva, fd);
	munmap(hva, SCATTERED);
	close(fd);
	return median(us, rounds);
}

struct size {
	const char *name;
	uint64_t gpa;		/* of the first region */
	uint64_t each;
	unsigned int count;	/* regions, one after the other; the last is converted in */
};

/* @us: the median with each policy, with a view */
static void measure_size(const struct size *size, size_t rounds, double us[2])
{
	static const uint32_t policies[2] = { GMEM_DISCARD_NOW, GMEM_DISCARD_NEVER };
	uint64_t base = size->gpa + (size->count - 1) * size->each + size->each / 2;
	double values[2][BENCH_ROUNDS];
	struct gmem_view *view;
	struct core_vm vm;

	core_vm_new(&vm);
	for (unsigned int i = 0; i < size->count; i++)
		core_add(&vm, size->gpa + i * size->each, size->each);
	bench_gmem_must(gmem_view_new(vm.vm, &view), "gmem_view_new");
	for (size_t r = 0; r < rounds; r++)
		for (int i = 0; i < 2; i++)
			values[i][r] = convert_scattered(&vm, base, policies[i]);
	for (int i = 0; i < 2; i++)
		us[i] = median(values[i], rounds);
	gmem_view_free(view);
	core_vm_free(&vm);
}

void core_conversions_by_size(size_t rounds)
{
	static const struct size sizes[] = {
		{ "1GiB", 0, GIB, 1 },
		{ "1TiB", 0, TIB, 1 },
		{ "4TiB", 0, 4 * TIB, 1 },
		{ "7TiB", 0, 7 * TIB, 1 },
		{ "1GiB-at-16TiB", 16 * TIB, GIB, 1 },
		{ "28TiB", 0, 7 * TIB, 4 },
	};
	double first = 0, by_hand = measure_by_hand(rounds), us[2];

	printf("a page converted, every second one of %" PRIu64 " MiB there and back, with a view\n"
	       "  its other side discarded by hand: %.2f us of CPU\n", SCATTERED / MIB, by_hand);
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		bench_row("core/convert/%s", sizes[i].name);
		bench_progress(i, sizeof(sizes) / sizeof(sizes[0]));
		measure_size(&sizes[i], rounds, us);
		first = first > 0 ? first : us[1];
		printf("  %-16s %7.2f us, of by hand", sizes[i].name, us[0]);
		bench_row("core/convert/%s", sizes[i].name);
		bench_row_figure(bench_single(us[0]), "us");
		bench_print_against("discarding by hand", bench_single(us[0] / by_hand), 0);
		printf(" without discarding %7.2f us, of 1 GiB", us[1]);
		bench_row("core/convert-alone/%s", sizes[i].name);
		bench_row_figure(bench_single(us[1]), "us");
		bench_print_against("1 GiB", bench_single(us[1] / first), 0);
		printf("\n");
	}
}

/* ---- leases elsewhere ---- */

#define LEASES 10000

void core_leases_elsewhere(size_t rounds)
{
	static struct gmem_lease *leases[LEASES];
	double without[BENCH_ROUNDS], with[BENCH_ROUNDS], ratio[BENCH_ROUNDS];
	struct core_vm vm;

	core_vm_new(&vm);
	core_add(&vm, 0, GIB);
	for (size_t r = 0; r < rounds; r++) {
		bench_progress(r, rounds);
		without[r] = convert_scattered(&vm, 0, GMEM_DISCARD_NEVER);
		for (uint64_t i = 0; i < LEASES; i++)
			bench_gmem_must(gmem_lease_new(vm.vm, 512 * MIB + i * PAGE, PAGE, NULL, &leases[i]),
					"gmem_lease_new");
		with[r] = convert_scattered(&vm, 0, GMEM_DISCARD_NEVER);
		for (uint64_t i = 0; i < LEASES; i++)
			gmem_lease_free(leases[i]);
		ratio[r] = with[r] / without[r];
	}
	printf("a page converted, with no lease: %.2f us of CPU; with %d leases elsewhere: %.2f us, of none",
	       median(without, rounds), LEASES, median(with, rounds));
	bench_row("core/convert-alone/10000-leases");
	bench_row_figure(bench_figure_of(with, rounds), "us");
	bench_print_against("no lease", bench_figure_of(ratio, rounds), 0);
	printf("\n");
	core_vm_free(&vm);
}

/* ---- readers ---- */

#define LOOKS (bench_quick() ? 10000 : 1000000)

struct converter {
	const struct core_vm *vm;
	bool is_over;
	uint64_t count;
};

static void *convert_without_pause(void *data)
{
	struct converter *converter = data;

	for (uint64_t i = 0; !__atomic_load_n(&converter->is_over, __ATOMIC_RELAXED); i++) {
		core_convert(converter->vm, 512 * MIB + i / 2 % 1024 * PAGE, PAGE, i % 2 == 0,
			     GMEM_DISCARD_NEVER);
		converter->count++;
	}
	return NULL;
}

static double look(struct gmem_view *view)
{
	double start = bench_thread_ns();
	uint64_t gpa = 0, sum = 0;
	void *hva;

	for (int i = 0; i < LOOKS; i++) {
		gmem_view_begin(view);
		if (gmem_view_hva(view, gpa, 8, &hva) == 0)
			sum += (uintptr_t)hva;
		gmem_view_end(view);
		gpa = (gpa + 0x9e3779b1 * PAGE) & (256 * MIB - 1);
	}
	start = (bench_thread_ns() - start) / LOOKS;
	return sum ? start : 0;
}

void core_readers(size_t rounds)
{
	double quiet[BENCH_ROUNDS], beside[BENCH_ROUNDS], ratio[BENCH_ROUNDS];
	struct gmem_view *view;
	struct core_vm vm;

	core_vm_new(&vm);
	core_add(&vm, 0, GIB);
	bench_gmem_must(gmem_view_new(vm.vm, &view), "gmem_view_new");
	look(view);
	for (size_t r = 0; r < rounds; r++) {
		struct converter converter = { .vm = &vm };
		pthread_t thread;

		quiet[r] = look(view);
		bench_must(-pthread_create(&thread, NULL, convert_without_pause, &converter),
			   "pthread_create");
		beside[r] = look(view);
		__atomic_store_n(&converter.is_over, true, __ATOMIC_RELAXED);
		pthread_join(thread, NULL);
	}
	for (size_t r = 0; r < rounds; r++)
		ratio[r] = beside[r] / quiet[r];
	printf("gmem_view_begin(), _hva() and _end(): quiet %.1f ns of CPU, beside a converting thread"
	       " %.1f ns, of quiet", median(quiet, rounds), median(beside, rounds));
	bench_row("core/reader/beside-conversions");
	bench_row_figure(bench_figure_of(beside, rounds), "ns");
	bench_print_against("quiet", bench_figure_of(ratio, rounds), 0);
	printf("\n");
	gmem_view_free(view);
	core_vm_free(&vm);
}

/* ---- many memslots of the real KVM ---- */

#define COME_AND_GO	30000
#define ALL		32764
#define QUICK_SLOTS	100

struct slots {
	int raw_fd;
	int vm_fd;
	struct gmem_vm *vm;
	struct gmem_plan *plan;
	char *pool;
	struct gmem_region *regions[ALL];
};

static void set_raw(const struct slots *s, uint32_t number, uint64_t size)
{
	struct kvm_userspace_memory_region region = {
		.slot = number,
		.guest_phys_addr = number * PAGE,
		.memory_size = size,
		.userspace_addr = (uintptr_t)(s->pool + number * PAGE),
	};

	bench_must(ioctl(s->raw_fd, KVM_SET_USER_MEMORY_REGION, &region),
		   "KVM_SET_USER_MEMORY_REGION");
}

static double set_all_raw(const struct slots *s, uint32_t count, uint64_t size)
{
	double start = bench_thread_ns();

	for (uint32_t i = 0; i < count; i++)
		set_raw(s, i, size);
	return (bench_thread_ns() - start) / count / 1000;
}

static double add_regions(struct slots *s, uint32_t count)
{
	double start = bench_thread_ns();

	for (uint32_t i = 0; i < count; i++) {
		GMEM_OPTS(gmem_region_opts, opts, .plan = s->plan, .flags = GMEM_REGION_HVA,
			  .hva = s->pool + i * PAGE);

		bench_gmem_must(gmem_region_add(s->vm, i * PAGE, PAGE, &opts, &s->regions[i]),
				"gmem_region_add");
	}
	return (bench_thread_ns() - start) / count / 1000;
}

static double remove_regions(const struct slots *s, uint32_t count)
{
	double start = bench_thread_ns();

	for (uint32_t i = 0; i < count; i++)
		bench_gmem_must(gmem_region_remove(s->regions[i]), "gmem_region_remove");
	return (bench_thread_ns() - start) / count / 1000;
}

static void print_slots(const char *what, const char *row, uint32_t count, double *raw,
			double *ours, size_t rounds)
{
	double ratio[BENCH_ROUNDS];

	for (size_t r = 0; r < rounds; r++)
		ratio[r] = ours[r] / raw[r];
	printf("  %-14s of %u: by hand %6.2f us of CPU each, libgmem %6.2f us, of by hand", what,
	       count, median(raw, rounds), median(ours, rounds));
	bench_row("slots/many/%s", row);
	bench_row_figure(bench_figure_of(ours, rounds), "us");
	bench_print_against("the system calls", bench_figure_of(ratio, rounds), 1.1);
	printf("\n");
}

static void open_slots(struct slots *s)
{
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_HOST });

	s->vm_fd = layout_make_vm();
	bench_gmem_must(gmem_vm_new(s->vm_fd, NULL, &s->vm), "gmem_vm_new");
	bench_gmem_must(gmem_plan_new(gmem_vm_caps(s->vm), &request, &s->plan), "gmem_plan_new");
}

static double close_slots(struct slots *s, uint32_t count)
{
	double start = bench_thread_ns();

	gmem_vm_free(s->vm);
	start = (bench_thread_ns() - start) / count / 1000;
	gmem_plan_free(s->plan);
	close(s->vm_fd);
	return start;
}

void core_many_slots(size_t rounds)
{
	static double raw[3][BENCH_ROUNDS], ours[3][BENCH_ROUNDS];
	uint32_t some = bench_quick() ? QUICK_SLOTS : COME_AND_GO, all = bench_quick() ? QUICK_SLOTS : ALL;
	static struct slots s;

	s.raw_fd = layout_make_vm();
	s.pool = mmap(NULL, ALL * PAGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	bench_must(s.pool == MAP_FAILED ? -1 : 0, "mmap");
	bench_row("slots/many");
	for (size_t r = 0; r < rounds; r++) {
		bench_progress(r, rounds);
		open_slots(&s);
		raw[0][r] = set_all_raw(&s, some, PAGE);
		ours[0][r] = add_regions(&s, some);
		raw[1][r] = set_all_raw(&s, some, 0);
		ours[1][r] = remove_regions(&s, some);
		set_all_raw(&s, all, PAGE);
		add_regions(&s, all);
		raw[2][r] = set_all_raw(&s, all, 0);
		ours[2][r] = close_slots(&s, all);
	}
	printf("memslots of the real KVM, lowest first, a page each\n");
	print_slots("added", "add", some, raw[0], ours[0], rounds);
	print_slots("removed", "remove", some, raw[1], ours[1], rounds);
	print_slots("gmem_vm_free()", "free", all, raw[2], ours[2], rounds);
	munmap(s.pool, ALL * PAGE);
	close(s.raw_fd);
}
