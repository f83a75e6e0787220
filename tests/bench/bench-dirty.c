/* SPDX-License-Identifier: MIT */
/*
 * bench-dirty: what it takes to find out which pages changed, against KVM's calls by hand.
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

#include "os/kvm_compat.h"
#include "region/dirty_pages.h"

#define MIB ((uint64_t)1 << 20)
#define GIB ((uint64_t)1 << 30)
#define TIB ((uint64_t)1 << 40)
#define PAGE ((uint64_t)4096)
#define BASE (4 * GIB)		/* of the guest's memory; 32 bits would do, but for its code */
#define MOST_ROUNDS 101
#define MANUAL_PROTECT 1	/* KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE */

static const char usage[] =
	"usage: bench-dirty [ROUNDS]\n"
	"\n"
	"A guest writes pages, and then they are collected: by gmem_dirty_collect() and\n"
	"gmem_dirty_next() (harvest), or gmem_dirty_get_bitmap() (bitmap), and by hand, with KVM_GET_DIRTY_LOG, KVM_CLEAR_DIRTY_LOG where KVM is to\n"
	"protect pages when told so, and a loop over the bitmap. The two take turns.\n"
	"\n"
	"Columns, medians (least - most), CPU time of the thread: the library in us, and its time as a\n"
	"share of that by hand. Then a scan of 1 TiB of which nothing changed, and sizes of\n"
	"incremental images in bytes for what changed.\n"
	"\n"
	"Exit status: 0, 1 if something failed, 77 if this host cannot run it.\n";

static uint64_t size = 256 * MIB;
static size_t rounds;

/* ---- a guest that writes ---- */

#ifdef __x86_64__

/* mov %eax, (%ebx); add %edx, %ebx; dec %ecx; jnz; hlt */
static const unsigned char code[] = { 0x89, 0x03, 0x01, 0xd3, 0x49, 0x75, 0xf9, 0xf4 };

static struct guest {
	int kvm_fd, vm_fd, vcpu_fd;
	struct kvm_run *run;
	struct gmem_vm *vm;
	struct gmem_region *region;
	uint64_t *bitmap;
	bool manual;
} guest;

static void make_flat(struct kvm_segment *segment, uint16_t selector)
{
	segment->base = 0;
	segment->limit = 0xffffffff;
	segment->g = 1;
	segment->db = 1;
	segment->selector = selector;
}

static void begin_vcpu(void)
{
	struct kvm_sregs sregs;
	int run_size = bench_must(ioctl(guest.kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");

	guest.vcpu_fd = bench_must(ioctl(guest.vm_fd, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	guest.run = mmap(NULL, (size_t)run_size, PROT_READ | PROT_WRITE, MAP_SHARED, guest.vcpu_fd, 0);
	bench_must(guest.run == MAP_FAILED ? -1 : 0, "mmap of a vCPU");
	bench_must(ioctl(guest.vcpu_fd, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	make_flat(&sregs.cs, 8);
	make_flat(&sregs.ds, 16);
	make_flat(&sregs.es, 16);
	make_flat(&sregs.ss, 16);
	sregs.cr0 |= 1;
	bench_must(ioctl(guest.vcpu_fd, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
}

/* The first page has the code, and is never written. */
static void begin_guest(bool manual)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, .args = { MANUAL_PROTECT } };
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_HOST });
	GMEM_OPTS(gmem_memory_opts, memory, .flags = GMEM_MEMORY_NO_THP);
	GMEM_OPTS(gmem_region_opts, opts, .memory = &memory);
	struct gmem_plan *plan;

	guest.manual = manual;
	guest.vm_fd = bench_must(ioctl(guest.kvm_fd, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	if (manual)
		bench_must(ioctl(guest.vm_fd, KVM_ENABLE_CAP, &cap), "manual protection");
	bench_gmem_must(gmem_vm_new(guest.vm_fd, NULL, &guest.vm), "VM");
	bench_gmem_must(gmem_plan_new(gmem_vm_caps(guest.vm), &request, &plan), "plan");
	opts.plan = plan;
	bench_gmem_must(gmem_region_add(guest.vm, 0, size, &opts, &guest.region), "region");
	gmem_plan_free(plan);
	memset(gmem_region_hva(guest.region), 1, size);
	memcpy(gmem_region_hva(guest.region), code, sizeof(code));
	guest.bitmap = calloc(size / PAGE / 64, 8);
	begin_vcpu();
}

static void end_guest(void)
{
	free(guest.bitmap);
	close(guest.vcpu_fd);
	gmem_vm_free(guest.vm);
	close(guest.vm_fd);
}

/* Write each page that is so many pages from the last one. */
static void dirty_pages(uint64_t stride)
{
	const struct kvm_regs regs = {
		.rbx = PAGE * stride,
		.rcx = stride ? (size / PAGE - 1) / stride : 0,
		.rdx = PAGE * stride,
		.rflags = 2,
	};

	if (!stride)
		return;
	bench_must(ioctl(guest.vcpu_fd, KVM_SET_REGS, &regs), "KVM_SET_REGS");
	while (ioctl(guest.vcpu_fd, KVM_RUN, 0) < 0)
		bench_must(errno == EINTR ? 0 : -1, "KVM_RUN");
	if (guest.run->exit_reason != KVM_EXIT_HLT) {
		printf("the guest ended with exit %u\n", guest.run->exit_reason);
		exit(1);
	}
}

/* ---- harvest ---- */

static uint64_t found;		/* pages, so that nothing is left out */

static void clear_by_hand(void)
{
	struct kvm_clear_dirty_log clear = {
		.slot = gmem_region_slot(guest.region),
		.num_pages = (uint32_t)(size / PAGE),
		.dirty_bitmap = guest.bitmap,
	};

	bench_must(ioctl(guest.vm_fd, KVM_CLEAR_DIRTY_LOG, &clear), "KVM_CLEAR_DIRTY_LOG");
}

/* Runs of pages, as whoever copies them wants to have them */
static void look_through_bitmap(void)
{
	uint64_t pages = size / PAGE, run = 0;

	for (uint64_t i = 0; i < pages; i++) {
		if (!(i % 64) && !guest.bitmap[i / 64]) {
			found += run;
			run = 0;
			i += 63;
			continue;
		}
		if (guest.bitmap[i / 64] >> i % 64 & 1) {
			run++;
			continue;
		}
		found += run;
		run = 0;
	}
	found += run;
}

static void harvest_by_hand(void)
{
	struct kvm_dirty_log log = { .slot = gmem_region_slot(guest.region), .dirty_bitmap = guest.bitmap };

	bench_must(ioctl(guest.vm_fd, KVM_GET_DIRTY_LOG, &log), "KVM_GET_DIRTY_LOG");
	if (guest.manual)
		clear_by_hand();
	look_through_bitmap();
}

static void harvest_bitmap(struct gmem_dirty *dirty)
{
	bench_gmem_must(gmem_dirty_collect(dirty, NULL), "collect");
	bench_gmem_must(gmem_dirty_get_bitmap(dirty, 0, size, guest.bitmap, size / PAGE / 64), "bitmap");
	look_through_bitmap();
}

static void harvest(struct gmem_dirty *dirty)
{
	struct gmem_dirty_range range = { 0 };

	bench_gmem_must(gmem_dirty_collect(dirty, NULL), "collect");
	while (!gmem_dirty_next(dirty, range.gpa + range.size, &range))
		found += range.size / PAGE;
}

static double time_us(void (*run)(struct gmem_dirty *dirty), struct gmem_dirty *dirty)
{
	double before = bench_thread_ns();

	if (run)
		run(dirty);
	else
		harvest_by_hand();
	return (bench_thread_ns() - before) / 1e3;
}

static void check_found(uint64_t stride, const char *who)
{
	uint64_t wanted = stride ? (size / PAGE - 1) / stride : 0;

	if (found != wanted) {
		printf("%s found %" PRIu64 " pages, not %" PRIu64 "\n", who, found, wanted);
		exit(1);
	}
	found = 0;
}

static void measure_harvest(const char *name, uint64_t stride, struct gmem_dirty *dirty,
			    void (*run)(struct gmem_dirty *dirty))
{
	const char *how = run == harvest ? "harvest" : "bitmap";
	double own[MOST_ROUNDS], by_hand[MOST_ROUNDS], ratio[MOST_ROUNDS];

	harvest(dirty);
	found = 0;
	for (size_t i = 0; i < rounds; i++) {
		bench_progress(i, rounds);
		for (size_t side = 0; side < 2; side++) {
			bool is_own = side == i % 2;

			dirty_pages(stride);
			*(is_own ? &own[i] : &by_hand[i]) = time_us(is_own ? run : NULL, dirty);
			check_found(stride, is_own ? "the library" : "the loop");
		}
		ratio[i] = own[i] / by_hand[i];
	}
	bench_row("dirty/%s/%s%s", how, name, guest.manual ? "/manual" : "");
	bench_row_figure(bench_figure_of(own, rounds), "us");
	printf("  %-9s%-15s", how, name);
	bench_print(bench_figure_of(own, rounds));
	bench_print_against("KVM_GET_DIRTY_LOG", bench_figure_of(ratio, rounds), 1.05);
	printf("\n");
}

static void measure_harvests(bool manual)
{
	GMEM_OPTS(gmem_dirty_opts, opts, .flags = GMEM_DIRTY_FROM_NOW);
	void (*const ways[])(struct gmem_dirty *) = { harvest, harvest_bitmap };
	struct gmem_dirty *dirty;

	begin_guest(manual);
	bench_gmem_must(gmem_dirty_new(guest.vm, &opts, &dirty), "tracker");
	printf("harvest of %" PRIu64 " MiB%s\n", size / MIB, manual ? ", manual protection" : "");
	for (size_t i = 0; i < 2; i++) {
		measure_harvest("clean", 0, dirty, ways[i]);
		measure_harvest("1-percent", 100, dirty, ways[i]);
		measure_harvest("dense", 1, dirty, ways[i]);
	}
	gmem_dirty_free(dirty);
	end_guest();
}

/* ---- several trackers ---- */

#define MOST_TRACKERS 8

/* Each of them collects and is told all, the first of them brings in KVM's log. */
static void measure_trackers(size_t count)
{
	double own[MOST_ROUNDS], by_hand[MOST_ROUNDS], ratio[MOST_ROUNDS];
	struct gmem_dirty *trackers[MOST_TRACKERS];

	for (size_t j = 0; j < count; j++) {
		bench_gmem_must(gmem_dirty_new(guest.vm, NULL, &trackers[j]), "tracker");
		harvest(trackers[j]);
	}
	for (size_t i = 0; i < rounds; i++) {
		bench_progress(i, rounds);
		dirty_pages(100);
		by_hand[i] = time_us(NULL, NULL);
		dirty_pages(100);
		own[i] = 0;
		for (size_t j = 0; j < count; j++) {
			found = 0;
			own[i] += time_us(harvest, trackers[j]) / (double)count;
			check_found(100, "a tracker");
		}
		found = 0;
		ratio[i] = own[i] / by_hand[i];
	}
	bench_row("dirty/trackers/%zu", count);
	bench_row_figure(bench_figure_of(own, rounds), "us");
	printf("  %zu tracker%-15s", count, count > 1 ? "s, each" : "");
	bench_print(bench_figure_of(own, rounds));
	bench_print_against("KVM_GET_DIRTY_LOG", bench_figure_of(ratio, rounds), 1.05);
	printf("\n");
	for (size_t j = 0; j < count; j++)
		gmem_dirty_free(trackers[j]);
}

static void measure_kvm(void)
{
	guest.kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (guest.kvm_fd < 0) {
		printf("bench-dirty cannot run here: /dev/kvm: %s\n", strerror(errno));
		exit(EXIT_CANNOT_RUN);
	}
	measure_harvests(false);
	measure_harvests(true);
	begin_guest(false);
	printf("several trackers, 1 %% of %" PRIu64 " MiB\n", size / MIB);
	measure_trackers(1);
	measure_trackers(2);
	measure_trackers(MOST_TRACKERS);
	end_guest();
	close(guest.kvm_fd);
}

#else

static void measure_kvm(void)
{
	static const char *const rows[] = { "harvest", "bitmap", "trackers" };

	for (size_t i = 0; i < 3; i++) {
		bench_row("dirty/%s", rows[i]);
		bench_row_absent("the guest of this bench has code for x86_64 only");
	}
}

#endif

/* ---- marks alone ---- */

/* Nothing is touched but marks of chunks: the kernel's log of a TiB would be another matter. */
static void measure_clean_tib(void)
{
	struct gmem_dirty_pages *dirty = gmem_dirty_pages_new();
	double ms[MOST_ROUNDS];
	struct gmem_part part;
	uint32_t since;

	bench_must(dirty && !gmem_dirty_pages_prepare(dirty, 0, TIB) ? 0 : -1, "marks of a TiB");
	for (uint64_t gpa = 0; gpa < TIB; gpa += GIB)
		gmem_dirty_pages_mark(dirty, gpa + 5 * MIB, PAGE);
	since = gmem_dirty_pages_begin_period(dirty);
	for (size_t i = 0; i < rounds; i++) {
		double before = bench_thread_ns();

		bench_must(gmem_dirty_pages_next(dirty, since, 0, TIB - 1, &part) ? -1 : 0, "a clean TiB");
		ms[i] = (bench_thread_ns() - before) / 1e6;
	}
	gmem_dirty_pages_free(dirty);
	bench_row("dirty/scan/clean-TiB");
	bench_row_figure(bench_figure_of(ms, rounds), "ms");
	printf("scan of a clean TiB     ");
	bench_print_amount("ms", bench_figure_of(ms, rounds), 1);
	printf("\n");
}

/* ---- sizes of images ---- */

#define IMAGE_SIZE (64 * MIB)

static void write_page(struct gmem_view *view, uint64_t gpa)
{
	uint64_t words[PAGE / 8];

	for (size_t i = 0; i < PAGE / 8; i++)
		words[i] = bench_random(UINT64_MAX - 1) + 1;
	bench_gmem_must(gmem_view_write(view, gpa, words, PAGE, NULL), "write");
}

static void measure_image(const char *name, struct gmem_vm *vm, struct gmem_view *view,
			  struct gmem_dirty *dirty, bool (*is_written)(uint64_t page))
{
	GMEM_OPTS(gmem_transfer_opts, opts, .dirty = dirty);
	GMEM_OPTS(gmem_transfer_result, result);
	int fd = bench_must(memfd_create("image", MFD_CLOEXEC), "memfd_create");
	uint64_t bytes = 0;

	for (uint64_t page = 0; page < IMAGE_SIZE / PAGE; page++) {
		if (!is_written(page))
			continue;
		write_page(view, page * PAGE);
		bytes += PAGE;
	}
	bench_gmem_must(gmem_vm_save(vm, fd, &opts, &result), "save");
	close(fd);
	if (!bytes)
		return;
	bench_row("dirty/image/%s", name);
	bench_row_figure(bench_single((double)result.file_bytes / 1024), "KiB");
	printf("  %-24s", name);
	bench_print(bench_single((double)result.file_bytes / 1024));
	bench_print_against("1.05 of what changed + 4 KiB",
			    bench_single((double)result.file_bytes / (1.05 * (double)bytes + 4096)), 1);
	printf("\n");
}

static bool is_nothing(uint64_t page)
{
	(void)page;
	return false;
}

static bool is_one(uint64_t page)
{
	return page == 1000;
}

static bool is_1_percent(uint64_t page)
{
	(void)page;
	return bench_random(100) == 0;
}

static bool is_second(uint64_t page)
{
	return page % 2;
}

static bool is_half(uint64_t page)
{
	(void)page;
	return bench_random(2);
}

/* Contents that nothing makes smaller, and the first image is of all memory. */
static void measure_images(void)
{
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_HOST });
	GMEM_OPTS(gmem_region_opts, opts);
	int kvm_fd = bench_must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	int vm_fd = bench_must(ioctl(kvm_fd, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	struct gmem_region *region;
	struct gmem_dirty *dirty;
	struct gmem_plan *plan;
	struct gmem_view *view;
	struct gmem_vm *vm;

	bench_gmem_must(gmem_vm_new(vm_fd, NULL, &vm), "VM");
	bench_gmem_must(gmem_plan_new(gmem_vm_caps(vm), &request, &plan), "plan");
	opts.plan = plan;
	bench_gmem_must(gmem_region_add(vm, 0, IMAGE_SIZE, &opts, &region), "region");
	gmem_plan_free(plan);
	bench_gmem_must(gmem_view_new(vm, &view), "view");
	bench_gmem_must(gmem_dirty_new(vm, NULL, &dirty), "tracker");
	printf("incremental images of %" PRIu64 " MiB, KiB\n", IMAGE_SIZE / MIB);
	measure_image("all", vm, view, dirty, is_nothing);
	measure_image("one-page", vm, view, dirty, is_one);
	measure_image("1-percent", vm, view, dirty, is_1_percent);
	measure_image("every-second-page", vm, view, dirty, is_second);
	measure_image("50-percent", vm, view, dirty, is_half);
	gmem_dirty_free(dirty);
	gmem_view_free(view);
	gmem_vm_free(vm);
	close(vm_fd);
	close(kvm_fd);
}

int main(int argc, char **argv)
{
	rounds = bench_arguments(argc, argv, usage, 15);
	if (rounds > MOST_ROUNDS)
		rounds = MOST_ROUNDS;
	if (bench_quick())
		size = 16 * MIB;
	measure_kvm();
	measure_clean_tib();
	measure_images();
	bench_print_goals();
	return 0;
}
