/* SPDX-License-Identifier: MIT */
/* bench-move: what it costs to move guest memory in, out, and to find it. */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "bench.h"
#include "move.h"

static const char usage[] =
	"usage: bench-move [--rounds N] [--mib N] [TABLE...]\n"
	"\n"
	"Compares what the library does with what a VMM's author would do by hand,\n"
	"side by side on the same memory:\n"
	"\n"
	"  populate  guest memory in place before it is touched\n"
	"  discard   guest memory given back to the host\n"
	"  scan      which pages exist, and which are zero\n"
	"  bulk      much memory written at once\n"
	"\n"
	"Columns: GiB each second of CPU time (of the process) and on the wall, and\n"
	"the time as a part of the base's, taken within each round: medians, with the\n"
	"least and the most. A goal that is missed is marked \"!\".\n"
	"N rounds: 5 to 101, by default 7. Memory: 64 MiB or more, by default 1024.\n"
	"\n"
	"Exit status: 0, 1 if something failed, 77 if this host cannot run it.\n";

struct move move = { .rounds = 7, .size = 1024 * MIB };

struct sample {
	double cpu, wall;
};

/* --------------------------------------------------------------- samples -- */

static double now(clockid_t clock)
{
	struct timespec t;

	bench_must(clock_gettime(clock, &t), "clock_gettime");
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void warm_up(uint64_t size)
{
	char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	bench_must(p == MAP_FAILED ? -1 : 0, "mmap");
	memset(p, 1, size);
	bench_must(munmap(p, size), "munmap");
}

static struct sample take(const struct move_side *side, uint64_t bytes)
{
	struct sample before, after;

	warm_up(bytes);
	if (side->prepare)
		side->prepare();
	before = (struct sample){ now(CLOCK_PROCESS_CPUTIME_ID), now(CLOCK_MONOTONIC) };
	side->run();
	after = (struct sample){ now(CLOCK_PROCESS_CPUTIME_ID), now(CLOCK_MONOTONIC) };
	if (side->clean)
		side->clean();
	return (struct sample){ after.cpu - before.cpu, after.wall - before.wall };
}

static struct bench_figure rate(const struct sample *samples, uint64_t bytes, int by_wall)
{
	double values[MOVE_ROUNDS];

	for (size_t i = 0; i < move.rounds; i++)
		values[i] = (double)bytes / (double)(1024 * MIB) /
			    (by_wall ? samples[i].wall : samples[i].cpu);
	return bench_figure_of(values, move.rounds);
}

static struct bench_figure ratio(const struct sample *samples, const struct sample *base,
				 int by_wall)
{
	double values[MOVE_ROUNDS];

	for (size_t i = 0; i < move.rounds; i++)
		values[i] = by_wall ? samples[i].wall / base[i].wall : samples[i].cpu / base[i].cpu;
	return bench_figure_of(values, move.rounds);
}

/* "populate/write", and "/2-threads" of "gmem_vm_populate, 2 threads" */
static void name_row(const struct move_table *table, const struct move_side *side)
{
	const char *how = strchr(side->name, ',');
	char part[64] = "";

	if (how)
		snprintf(part, sizeof(part), "/%s", how + 2);
	for (char *c = part; *c; c++)
		if (*c == ' ')
			*c = '-';
	bench_row("%s%s", table->row, part);
}

/* The library's sides are rows, compared with the base by the clock of the goal. */
static void print_ratios(const struct move_table *table, const struct move_side *side,
			 const struct sample *samples, const struct sample *base)
{
	const char *by_hand = table->sides[table->base].name;
	bool ours = !strncmp(side->name, "gmem_", 5) && side != &table->sides[table->base];

	name_row(table, side);
	bench_row_figure(rate(samples, table->bytes, side->by_wall), "GiB/s");
	if (ours && !side->by_wall)
		bench_print_against(by_hand, ratio(samples, base, 0), side->goal);
	else
		bench_print_ratio(ratio(samples, base, 0), 0);
	if (ours && side->by_wall)
		bench_print_against(by_hand, ratio(samples, base, 1), side->goal);
	else
		bench_print_ratio(ratio(samples, base, 1), 0);
}

static void print_ms(const struct move_table *table, const struct sample *samples)
{
	double ms[MOVE_ROUNDS];

	for (size_t i = 0; i < move.rounds; i++)
		ms[i] = samples[i].cpu * 1e3 * 1024 * MIB / (double)table->bytes;
	printf(" ms for a GiB");
	bench_print_amount("ms for a GiB", bench_figure_of(ms, move.rounds), table->most_ms);
}

void move_run(struct move_table *table)
{
	static struct sample samples[MOVE_SIDES][MOVE_ROUNDS];

	bench_row("%s", table->row);
	for (size_t i = 0; i < table->count; i++)
		take(&table->sides[i], table->bytes);
	for (size_t round = 0; round < move.rounds; round++) {
		bench_progress(round, move.rounds);
		for (size_t i = 0; i < table->count; i++) {
			size_t turn = (round + i) % table->count;

			samples[turn][round] = take(&table->sides[turn], table->bytes);
		}
	}

	printf("\n%s, %llu MiB\n%-34s", table->title, (unsigned long long)(table->bytes / MIB), "");
	bench_print_column("GiB/s CPU");
	bench_print_column("GiB/s wall");
	bench_print_column("CPU time/base");
	bench_print_column("wall time/base");
	printf("\n");
	for (size_t i = 0; i < table->count; i++) {
		const struct move_side *side = &table->sides[i];

		printf("%-34s", side->name);
		bench_print(rate(samples[i], table->bytes, 0));
		bench_print(rate(samples[i], table->bytes, 1));
		print_ratios(table, side, samples[i], samples[table->base]);
		if (table->most_ms > 0 && !strncmp(side->name, "gmem_", 5))
			print_ms(table, samples[i]);
		printf("\n");
	}
}

/* ---------------------------------------------------------- the machine -- */

void move_empty(void)
{
	bench_must(madvise(move.hva, move.size, MADV_DONTNEED), "MADV_DONTNEED");
	bench_must(fallocate(move.gmemfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
			     (off_t)move.size), "punching a hole");
}

void move_fill(void)
{
	for (uint64_t at = 0; at < move.size; at += move.page)
		move.hva[at] = 1;
}

static void set_up(void)
{
	uint64_t offset;

	move.page = (uint64_t)sysconf(_SC_PAGESIZE);
	move.kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (move.kvm_fd < 0) {
		printf("bench-move: /dev/kvm: %s\n", strerror(errno));
		exit(EXIT_CANNOT_RUN);
	}
	do
		move.vm_fd = ioctl(move.kvm_fd, KVM_CREATE_VM, 0);
	while (move.vm_fd < 0 && errno == EINTR);
	bench_must(move.vm_fd, "KVM_CREATE_VM");
	bench_gmem_must(gmem_vm_new(move.vm_fd, NULL, &move.vm), "gmem_vm_new");
	if (gmem_region_add(move.vm, 0, move.size, NULL, &move.region) < 0) {
		printf("bench-move: %s\n", gmem_last_error());
		exit(EXIT_CANNOT_RUN);
	}
	move.hva = gmem_region_hva(move.region);
	move.gmemfd = gmem_file_fd(gmem_region_file(move.region, &offset));
}

/* -------------------------------------------------------------- arguments -- */

static const struct {
	const char *name;
	void (*run)(void);
} tables[] = {
	{ "populate", move_populate_tables },
	{ "discard", move_discard_tables },
	{ "scan", move_scan_tables },
	{ "bulk", move_bulk_tables },
};

#define TABLES (sizeof(tables) / sizeof(tables[0]))

static uint64_t number(const char *text, uint64_t least, uint64_t most)
{
	char *end = NULL;
	uint64_t value = text ? strtoull(text, &end, 10) : 0;

	if (!text || *end || value < least || value > most) {
		fputs(usage, stderr);
		exit(EXIT_FAILURE);
	}
	return value;
}

/* The tables that were named, or all */
static unsigned int parse(int argc, char **argv)
{
	unsigned int wanted = 0;
	size_t t;

	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--help")) {
			fputs(usage, stdout);
			exit(EXIT_SUCCESS);
		}
		if (!strcmp(argv[i], "--rounds")) {
			move.rounds = number(argv[++i], 5, MOVE_ROUNDS);
			continue;
		}
		if (!strcmp(argv[i], "--mib")) {
			move.size = number(argv[++i], 64, 1 << 20) * MIB;
			continue;
		}
		for (t = 0; t < TABLES && strcmp(argv[i], tables[t].name) != 0; t++)
			;
		if (t == TABLES) {
			fputs(usage, stderr);
			exit(EXIT_FAILURE);
		}
		wanted |= 1u << t;
	}
	if (bench_quick()) {
		move.rounds = 2;
		move.size = 8 * MIB;
	}
	return wanted ? wanted : ~0u;
}

int main(int argc, char **argv)
{
	unsigned int wanted = parse(argc, argv);

	set_up();
	for (size_t t = 0; t < TABLES; t++)
		if (wanted & 1u << t)
			tables[t].run();
	bench_print_goals();
	gmem_vm_free(move.vm);
	close(move.vm_fd);
	close(move.kvm_fd);
	return EXIT_SUCCESS;
}
