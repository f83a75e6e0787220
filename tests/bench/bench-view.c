/* SPDX-License-Identifier: MIT */
/*
 * bench-view: what it costs to find the host address behind a guest address.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <gmem.h>

#include "bench.h"
#include "layout.h"

#define ADDRESSES	16384	/* in a pass */
#define HOT_BUFFERS	64
#define WIDTH		8	/* bytes that must be there */

static const char usage[] =
	"usage: bench-view [ROUNDS]\n"
	"\n"
	"Translates guest addresses to host addresses, 8 bytes at each checked, in VMs\n"
	"of 1 to 32000 regions. The regions are real memslots with ordinary memory of\n"
	"this program's own behind them (guest_memfd would give the same addresses, but\n"
	"not 32000 mappings under Linux's default limit). The peer, rust-vmm's\n"
	"vm-memory, has the same layout on the same memory; every address it finds is\n"
	"compared.\n"
	"\n"
	"  aligned   regions of whole 2 MiB, 1 GiB together at least, with holes\n"
	"  tiny      regions of 64 to 256 KiB, with holes: the worst case\n"
	"  random    any address of any region\n"
	"  queue     a virtqueue: three rings, and 64 buffers in use\n"
	"  writer    one more thread changes the layout 1000 times a second: a device's\n"
	"            range comes and goes (libgmem), a region does (peer). In brackets:\n"
	"            the changes per second it achieved.\n"
	"\n"
	"Columns: ns of CPU time for one address, median (least - most) of ROUNDS\n"
	"rounds, at least 5, by default 21, in which all sides take turns:\n"
	"\n"
	"  held        gmem_view_begin(), gmem_view_hva(), gmem_view_end()\n"
	"  hva         gmem_view_hva() alone\n"
	"  get_slice   the peer's; its map cannot change\n"
	"  atomic      the peer's GuestMemoryAtomic and get_slice, which can\n"
	"  search      by hand: a binary search without branches; the last two columns\n"
	"  linear      by hand: one region after the other, for 32 to 512\n"
	"\n"
	"Goals: hva/get_slice 0.5, 0.3, 0.3, 0.15, 0.1, 0.1 for 1, 4, 32, 512, 8192 and\n"
	"32000 aligned regions, 0.5 for tiny ones; held/atomic 0.2; held/hva 1.25;\n"
	"hva/search 1; hva/linear 0.3.\n"
	"\n"
	"Exit status: 0, 1 if something failed, 77 if this host cannot run it.\n";

enum { HELD, BARE, PEER, PEER_ATOMIC };

static const struct {
	size_t regions;
	double goal;
} sizes[] = { { 1, 0.5 }, { 4, 0.3 }, { 32, 0.3 }, { 512, 0.15 }, { 8192, 0.1 }, { 32000, 0.1 } };

#define SIZES	   (sizeof(sizes) / sizeof(sizes[0]))
#define TINY_FROM  4
#define TINY_GOAL  0.5
#define HELD_GOAL  1.25
#define ATOMIC_GOAL 0.2
#define LINEAR_GOAL 0.3
#define SEARCH_GOAL 1
/* Regions that a linear search is tried with; among fewer than 32 it is as good as any. */
#define LINEAR_MOST  512
#define LINEAR_LEAST 32

static const struct peer_functions *peer_functions;
static size_t rounds;

/* ------------------------------------------------------------- the sides -- */

struct reader {
	struct gmem_view *view;
	const struct peer *peer;
	const struct layout *layout;
	uint64_t gpas[ADDRESSES];
	uint64_t sum;		/* of the host addresses found */
};

/* The view is in a register, as in a device's function; the address it is at escapes in neither. */
static void __attribute__((noinline)) run_held(void *data)
{
	struct reader *reader = data;
	struct gmem_view *view = reader->view;
	uint64_t sum = 0;
	void *hva = NULL;

	for (size_t i = 0; i < ADDRESSES; i++) {
		gmem_view_begin(view);
		if (gmem_view_hva(view, reader->gpas[i], WIDTH, &hva) == 0)
			sum += (uintptr_t)hva;
		gmem_view_end(view);
	}
	reader->sum = sum;
}

static void __attribute__((noinline)) run_bare(void *data)
{
	struct reader *reader = data;
	struct gmem_view *view = reader->view;
	uint64_t sum = 0;
	void *hva = NULL;

	gmem_view_begin(view);
	for (size_t i = 0; i < ADDRESSES; i++)
		if (gmem_view_hva(view, reader->gpas[i], WIDTH, &hva) == 0)
			sum += (uintptr_t)hva;
	gmem_view_end(view);
	reader->sum = sum;
}

static void run_peer(void *data)
{
	struct reader *reader = data;

	reader->sum = peer_functions->translate(reader->peer, reader->gpas, ADDRESSES, WIDTH);
}

static void run_peer_atomic(void *data)
{
	struct reader *reader = data;

	reader->sum = peer_functions->translate_atomic(reader->peer, reader->gpas, ADDRESSES, WIDTH);
}

/* The address in @range, or 0 if not all of it is there */
static uint64_t hva_in(const struct peer_range *range, uint64_t gpa)
{
	uint64_t offset = gpa - range->gpa;

	return offset < range->size && range->size - offset >= WIDTH
		       ? (uintptr_t)range->hva + offset : 0;
}

static void __attribute__((noinline)) run_linear(void *data)
{
	struct reader *reader = data;
	const struct layout *layout = reader->layout;
	uint64_t sum = 0;

	for (size_t i = 0; i < ADDRESSES; i++) {
		const struct peer_range *range = layout->ranges;

		while (reader->gpas[i] - range->gpa >= range->size)
			range++;
		sum += hva_in(range, reader->gpas[i]);
	}
	reader->sum = sum;
}

/* A binary search whose halves are chosen by arithmetic, not by branches */
static void __attribute__((noinline)) run_search(void *data)
{
	struct reader *reader = data;
	const struct layout *layout = reader->layout;
	uint64_t sum = 0;

	for (size_t i = 0; i < ADDRESSES; i++) {
		const struct peer_range *range = layout->ranges;

		for (size_t rest = layout->count; rest > 1; rest -= rest / 2)
			range = range[rest / 2].gpa <= reader->gpas[i] ? range + rest / 2 : range;
		sum += hva_in(range, reader->gpas[i]);
	}
	reader->sum = sum;
}

/* ------------------------------------------------------------ the writers -- */

struct writer {
	const struct layout *layout;
	struct gmem_region *region;	/* NULL while it is not there */
	const struct peer *peer;
	bool peer_has_region;
};

static void change_layout(void *data)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_DEVICE);
	struct writer *writer = data;
	const struct peer_range *spare = &writer->layout->spare;

	if (writer->region) {
		bench_gmem_must(gmem_region_remove(writer->region), "gmem_region_remove");
		writer->region = NULL;
	} else {
		bench_gmem_must(gmem_region_add(writer->layout->vm, spare->gpa, spare->size, &opts,
						&writer->region), "gmem_region_add");
	}
}

static void change_peer(void *data)
{
	struct writer *writer = data;

	writer->peer_has_region = !writer->peer_has_region;
	peer_functions->change(writer->peer, &writer->layout->spare, writer->peer_has_region);
}

/* ------------------------------------------------------------- addresses -- */

static uint64_t any_address(const struct layout *layout, uint64_t align)
{
	const struct peer_range *range = &layout->ranges[bench_random(layout->count)];

	return range->gpa + bench_random(range->size / align) * align;
}

static void fill_random(const struct layout *layout, uint64_t *gpas)
{
	for (size_t i = 0; i < ADDRESSES; i++)
		gpas[i] = any_address(layout, WIDTH);
}

/* Descriptor, available ring, buffer, used ring, and again */
static void fill_queue(const struct layout *layout, uint64_t *gpas)
{
	uint64_t buffers[HOT_BUFFERS], rings[4];

	for (size_t i = 0; i < HOT_BUFFERS; i++)
		buffers[i] = any_address(layout, 4096);
	for (size_t i = 0; i < 4; i++)
		rings[i] = any_address(layout, 4096);
	for (size_t i = 0; i < ADDRESSES; i++)
		gpas[i] = i % 4 == 2 ? buffers[bench_random(HOT_BUFFERS)]
				     : rings[i % 4] + i / 4 % 256 * WIDTH;
}

/* ------------------------------------------------------------------ rows -- */

static void check_sums(struct bench *bench, unsigned int thread)
{
	struct reader *reader = bench->sides[BARE].data[thread];
	uint64_t first = 0;

	for (size_t i = 0; i < bench->count; i++) {
		bench->sides[i].run(reader);
		if (i == 0)
			first = reader->sum;
		if (reader->sum != first) {
			fprintf(stderr, "side %zu finds other addresses than side 0\n", i);
			exit(EXIT_FAILURE);
		}
	}
}

static void print_row(const struct bench *bench, double goal)
{
	for (size_t i = 0; i <= PEER_ATOMIC; i++) {
		if (i < bench->count)
			bench_print(bench_time(bench, i));
		else
			bench_print_nothing();
	}
	/* A peer whose layout cannot change has no writer to compare with. */
	bench_row_figure(bench_time(bench, BARE), "ns");
	if (bench->writer)
		bench_print_nothing();
	else if (bench->count > PEER)
		bench_print_against("vm-memory", bench_ratio(bench, BARE, PEER), goal);
	else
		bench_print_nothing();
	bench_row_figure(bench_time(bench, HELD), "ns");
	if (bench->count > PEER_ATOMIC)
		bench_print_against("vm-memory, atomic", bench_ratio(bench, HELD, PEER_ATOMIC),
				    ATOMIC_GOAL);
	else
		bench_print_nothing();
	bench_print_against("unprotected", bench_ratio(bench, HELD, BARE), HELD_GOAL);
}

/* The same among tiny regions, by hand */
static void print_by_hand(struct reader *reader)
{
	static struct bench bench;
	static void (*const run[])(void *) = { run_bare, run_search, run_linear };
	static const char *const names[] = { NULL, "a branchless search", "a linear search" };
	static const double goals[] = { 0, SEARCH_GOAL, LINEAR_GOAL };

	bench.rounds = rounds;
	bench.operations = ADDRESSES;
	bench.threads = 1;
	bench.sample_us = 500;
	bench.warm = true;
	bench.count = reader->layout->name < LINEAR_LEAST || reader->layout->name > LINEAR_MOST ? 2 : 3;
	for (size_t i = 0; i < bench.count; i++) {
		bench.sides[i].run = run[i];
		bench.sides[i].data[0] = reader;
	}
	bench_run(&bench);
	for (size_t i = 1; i < bench.count; i++)
		bench_print_against(names[i], bench_ratio(&bench, 0, i), goals[i]);
}

static void print_header(void)
{
	static const char *const names[] = { "held", "hva", "get_slice", "atomic",
					     "hva/get_slice", "held/atomic", "held/hva",
					     "hva/search", "hva/linear" };

	printf("%-7s %-8s %-7s %s %-12s", "regions", "layout", "access", "threads", "writer");
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		bench_print_column(names[i]);
	printf("\n");
}

static void run_row(struct bench *bench, const char *access, const struct layout *layout,
		    bool tiny, double goal)
{
	char writer[16] = "no";

	bench->sample_us = bench->writer ? 4000 : 500;
	bench_row("translate/%s/%zu/%s/%u%s", tiny ? "tiny" : "aligned", layout->name, access,
		  bench->threads, bench->writer ? "/writer" : "");
	bench_run(bench);
	if (bench->writer)
		snprintf(writer, sizeof(writer), "yes (%.0f)", bench->changes_per_second);
	printf("%7zu %-8s %-7s %7u %-12s", layout->count, tiny ? "tiny" : "aligned", access,
	       bench->threads, writer);
	print_row(bench, goal);
	if (tiny && !bench->writer && bench->threads == 1)
		print_by_hand(bench->sides[BARE].data[0]);
	printf("\n");
}

static void run_rows(struct bench *bench, struct layout *layout, bool tiny, double goal)
{
	static void (*const fill[])(const struct layout *, uint64_t *) = { fill_random, fill_queue };
	static const char *const names[] = { "random", "queue" };

	for (size_t access = 0; access < 2; access++) {
		for (unsigned int i = 0; i < BENCH_THREADS; i++) {
			struct reader *reader = bench->sides[BARE].data[i];

			fill[access](layout, reader->gpas);
			check_sums(bench, i);
		}
		for (unsigned int i = 0; i < 2 * BENCH_THREADS; i++) {
			bench->threads = 1 + i % BENCH_THREADS;
			bench->writer = i >= BENCH_THREADS;
			run_row(bench, names[access], layout, tiny, goal);
		}
	}
}

static void set_up_sides(struct bench *bench, struct reader *readers, struct writer *writer)
{
	static void (*const run[])(void *) = { run_held, run_bare, run_peer, run_peer_atomic };

	bench->count = writer->peer ? PEER_ATOMIC + 1 : PEER;
	bench->warm = true;
	bench->operations = ADDRESSES;
	for (size_t i = 0; i < bench->count; i++) {
		bench->sides[i].run = run[i];
		bench->sides[i].change = i == PEER ? NULL : i == PEER_ATOMIC ? change_peer
									     : change_layout;
		bench->sides[i].change_data = writer;
		for (unsigned int t = 0; t < BENCH_THREADS; t++)
			bench->sides[i].data[t] = &readers[t];
	}
}

static void bench_layout(struct bench *bench, size_t count, bool tiny, double goal)
{
	static struct reader readers[BENCH_THREADS];
	struct writer writer = { .layout = NULL };
	struct peer *peer = NULL;
	struct layout layout;

	layout_new(&layout, count, tiny);
	if (peer_functions)
		peer = peer_functions->new(layout.ranges, layout.count);
	writer.layout = &layout;
	writer.peer = peer;
	for (unsigned int i = 0; i < BENCH_THREADS; i++) {
		bench_gmem_must(gmem_view_new(layout.vm, &readers[i].view), "gmem_view_new");
		readers[i].peer = peer;
		readers[i].layout = &layout;
	}

	set_up_sides(bench, readers, &writer);
	run_rows(bench, &layout, tiny, goal);

	for (unsigned int i = 0; i < BENCH_THREADS; i++)
		gmem_view_free(readers[i].view);
	if (peer)
		peer_functions->free(peer);
	layout_free(&layout);
}

int main(int argc, char **argv)
{
	static struct bench bench;

	bench.rounds = rounds = bench_arguments(argc, argv, usage, 21);
	printf("libgmem %s, %zu rounds\n", gmem_version(), rounds);
	peer_functions = peer_load();

	printf("\n");
	print_header();
	for (size_t i = 0; i < SIZES; i++)
		bench_layout(&bench, sizes[i].regions, false, sizes[i].goal);
	for (size_t i = 0; i < SIZES; i++)
		if (sizes[i].regions >= TINY_FROM)
			bench_layout(&bench, sizes[i].regions, true, TINY_GOAL);
	bench_print_goals();
	return EXIT_SUCCESS;
}
