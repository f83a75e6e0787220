/* SPDX-License-Identifier: MIT */
/*
 * bench-tracked: what it costs to write guest memory while a tracker wants to know.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <gmem.h>

#include "bench.h"
#include "layout.h"

#define REGIONS		32
#define REGION_SIZE	((uint64_t)2 << 20)
#define HOT_BUFFERS	32	/* of a thread */
#define ADDRESSES	1024
#define SETS		16
#define BIGGEST		((size_t)1 << 20)
#define GOAL		1.1

static const char usage[] =
	"usage: bench-tracked [ROUNDS]\n"
	"\n"
	"Writes to the memory of two VMs, which is the same: one has a tracker\n"
	"(gmem_dirty_new()), so that views mark what they write, the other has none. Up to\n"
	"4 KiB in 32 pages of each thread that are in use, more anywhere in its 16 regions of\n"
	"2 MiB. Pages are marked already: each is marked once in a period, and then that is\n"
	"only looked up.\n"
	"\n"
	"Columns: ns of CPU time for one access, median (least - most) of ROUNDS rounds, at\n"
	"least 5, by default 21, in which all sides take turns:\n"
	"\n"
	"  plain      without a tracker\n"
	"  tracked    with one\n"
	"  held       the same two between gmem_view_begin() and gmem_view_end() around all\n"
	"\n"
	"Goals: tracked/plain 1.1.\n"
	"\n"
	"Exit status: 0, 1 if something failed, 77 if this host cannot run it.\n";

enum { PLAIN, TRACKED, PLAIN_HELD, TRACKED_HELD, SIDES };

struct writer {
	struct gmem_view *views[2];	/* of the VM without a tracker, and with one */
	struct gmem_view *view;		/* the one in use */
	uint64_t all_gpas[SETS][ADDRESSES];
	const uint64_t *gpas;
	size_t turn;
	size_t count;
	size_t size;
	void (*run)(const struct writer *writer);
	void *buf;
};

/* ----------------------------------------------------------- the accesses -- */

static void write_bytes(const struct writer *writer)
{
	int err;

	for (size_t i = 0; i < writer->count; i++) {
		err = gmem_view_write(writer->view, writer->gpas[i], writer->buf, writer->size, NULL);
		if (err)
			bench_gmem_must(err, "gmem_view_write");
	}
}

static void store_word(const struct writer *writer)
{
	int err;

	for (size_t i = 0; i < writer->count; i++) {
		err = gmem_view_store(writer->view, writer->gpas[i], 8, GMEM_RELEASE, 0);
		if (err)
			bench_gmem_must(err, "gmem_view_store");
	}
}

/* Most find what they expect. */
static void exchange_word(const struct writer *writer)
{
	uint64_t expected;
	int swapped;

	for (size_t i = 0; i < writer->count; i++) {
		expected = 0;
		do
			swapped = gmem_view_compare_exchange(writer->view, writer->gpas[i], 8, GMEM_SEQ_CST,
							     &expected, 0);
		while (swapped == 0);
		if (swapped < 0)
			bench_gmem_must(swapped, "gmem_view_compare_exchange");
	}
}

static void fill_bytes(const struct writer *writer)
{
	int err;

	for (size_t i = 0; i < writer->count; i++) {
		err = gmem_view_fill(writer->view, writer->gpas[i], 0, writer->size, NULL);
		if (err)
			bench_gmem_must(err, "gmem_view_fill");
	}
}

/* ------------------------------------------------------------- the sides -- */

static void next_set(struct writer *writer, size_t vm)
{
	writer->gpas = writer->all_gpas[writer->turn++ % SETS];
	writer->view = writer->views[vm];
}

static void run(struct writer *writer, size_t vm)
{
	next_set(writer, vm);
	writer->run(writer);
}

static void run_held(struct writer *writer, size_t vm)
{
	next_set(writer, vm);
	gmem_view_begin(writer->view);
	writer->run(writer);
	gmem_view_end(writer->view);
}

static void run_plain(void *data) { run(data, 0); }
static void run_tracked(void *data) { run(data, 1); }
static void run_plain_held(void *data) { run_held(data, 0); }
static void run_tracked_held(void *data) { run_held(data, 1); }

/* --------------------------------------------------------------- the VMs -- */

struct machine {
	int fd;
	struct gmem_vm *vm;
};

static void make_vm(struct machine *machine, void *memory)
{
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_HOST });
	struct gmem_region *region;
	struct gmem_plan *plan;

	machine->fd = layout_make_vm();
	bench_gmem_must(gmem_vm_new(machine->fd, NULL, &machine->vm), "gmem_vm_new");
	bench_gmem_must(gmem_plan_new(gmem_vm_caps(machine->vm), &request, &plan), "gmem_plan_new");
	for (size_t i = 0; i < REGIONS; i++) {
		GMEM_OPTS(gmem_region_opts, opts, .plan = plan, .flags = GMEM_REGION_HVA,
			  .hva = (char *)memory + i * REGION_SIZE);

		bench_gmem_must(gmem_region_add(machine->vm, 2 * i * REGION_SIZE, REGION_SIZE, &opts, &region),
				"gmem_region_add");
	}
	gmem_plan_free(plan);
}

static void free_vm(struct machine *machine)
{
	gmem_vm_free(machine->vm);
	bench_must(close(machine->fd), "close");
}

/* ------------------------------------------------------------------ rows -- */

/* Threads have every other region each. */
static void fill_addresses(struct writer *writer, unsigned int thread)
{
	bool big = writer->size > 4096;
	uint64_t room = big ? REGION_SIZE : 4096, align = big ? 4096 : 8;

	writer->count = big ? REGIONS / BENCH_THREADS : ADDRESSES;
	for (size_t set = 0; set < SETS; set++)
		for (size_t i = 0; i < writer->count; i++) {
			size_t buffer = big ? i : bench_random(HOT_BUFFERS);
			size_t region = buffer % (REGIONS / BENCH_THREADS) * BENCH_THREADS + thread;
			uint64_t offset = bench_random((room - writer->size) / align + 1) * align;

			if (!big)
				offset += buffer * 3 * 4096;
			writer->all_gpas[set][i] = 2 * region * REGION_SIZE + offset;
		}
}

static void print_header(void)
{
	static const char *const names[] = { "plain", "tracked", "held", "held, tracked", "tracked/plain",
					     "both held" };

	printf("\n%-10s %8s %7s", "access", "bytes", "threads");
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		bench_print_column(names[i]);
	printf("\n");
}

static void run_row(struct bench *bench, const char *name, void (*access)(const struct writer *), size_t size)
{
	for (unsigned int i = 0; i < BENCH_THREADS; i++) {
		struct writer *writer = bench->sides[0].data[i];

		writer->run = access;
		writer->size = size;
		fill_addresses(writer, i);
		bench->operations = writer->count;
	}

	bench_row("tracked/%s/%zu/%u", name, size, bench->threads);
	bench_run(bench);
	bench_row_figure(bench_time(bench, TRACKED), "ns");
	printf("%-10s %8zu %7u", name, size, bench->threads);
	for (size_t i = 0; i < SIDES; i++)
		bench_print(bench_time(bench, i));
	bench_print_against("untracked", bench_ratio(bench, TRACKED, PLAIN), GOAL);
	bench_print_against("untracked, held", bench_ratio(bench, TRACKED_HELD, PLAIN_HELD), GOAL);
	printf("\n");
}

static void run_rows(struct bench *bench)
{
	static const size_t sizes[] = { 8, 64, 4096, BIGGEST };

	for (bench->threads = 1; bench->threads <= BENCH_THREADS; bench->threads++) {
		for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
			run_row(bench, "write", write_bytes, sizes[i]);
		run_row(bench, "store", store_word, 8);
		run_row(bench, "exchange", exchange_word, 8);
		run_row(bench, "fill", fill_bytes, 4096);
	}
}

static void set_up_sides(struct bench *bench, struct writer *writers)
{
	static void (*const runs[])(void *) = { run_plain, run_tracked, run_plain_held, run_tracked_held };

	bench->count = SIDES;
	bench->sample_us = 1000;
	bench->warm = true;
	for (size_t i = 0; i < SIDES; i++) {
		bench->sides[i].run = runs[i];
		for (unsigned int t = 0; t < BENCH_THREADS; t++)
			bench->sides[i].data[t] = &writers[t];
	}
}

static void set_up_writers(struct writer *writers, const struct machine *machines)
{
	for (unsigned int t = 0; t < BENCH_THREADS; t++) {
		for (size_t i = 0; i < 2; i++)
			bench_gmem_must(gmem_view_new(machines[i].vm, &writers[t].views[i]), "gmem_view_new");
		writers[t].buf = aligned_alloc(4096, BIGGEST);
		bench_must(writers[t].buf ? 0 : -1, "aligned_alloc");
		memset(writers[t].buf, 0, BIGGEST);
	}
}

int main(int argc, char **argv)
{
	GMEM_OPTS(gmem_dirty_opts, opts, .flags = GMEM_DIRTY_FROM_NOW);
	static struct writer writers[BENCH_THREADS];
	static struct bench bench;
	struct machine machines[2];
	struct gmem_dirty *dirty;
	void *memory;

	bench.rounds = bench_arguments(argc, argv, usage, 21);
	printf("libgmem %s, %zu rounds\n", gmem_version(), bench.rounds);
	memory = mmap(NULL, REGIONS * REGION_SIZE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	bench_must(memory == MAP_FAILED ? -1 : 0, "mmap");
	for (size_t i = 0; i < 2; i++)
		make_vm(&machines[i], memory);
	bench_gmem_must(gmem_recovery_enable(), "gmem_recovery_enable");
	bench_gmem_must(gmem_dirty_new(machines[1].vm, &opts, &dirty), "gmem_dirty_new");
	set_up_writers(writers, machines);

	set_up_sides(&bench, writers);
	print_header();
	run_rows(&bench);
	bench_print_goals();

	for (unsigned int t = 0; t < BENCH_THREADS; t++) {
		for (size_t i = 0; i < 2; i++)
			gmem_view_free(writers[t].views[i]);
		free(writers[t].buf);
	}
	gmem_dirty_free(dirty);
	for (size_t i = 0; i < 2; i++)
		free_vm(&machines[i]);
	gmem_recovery_disable();
	bench_must(munmap(memory, REGIONS * REGION_SIZE), "munmap");
	return EXIT_SUCCESS;
}
