/* SPDX-License-Identifier: MIT */
/*
 * bench-fork: what a child of the VMM costs: fork() itself, and then the guest's memory
 * written once more while the child lives.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <gmem.h>

#include "bench.h"

#define MIB ((uint64_t)1 << 20)
#define MOST_ROUNDS 101

static const char usage[] =
	"usage: bench-fork [MIB [ROUNDS]]\n"
	"\n"
	"Fills MIB (default 1024) of guest memory of each kind, forks, and writes a byte of each\n"
	"page once more while the child lives; ROUNDS times, by default 5. It takes twice as much\n"
	"memory as the guest has.\n"
	"\n"
	"Columns, medians (least - most), on the wall:\n"
	"\n"
	"  fork     ms of fork(), in the parent\n"
	"  write    ms to write each page, with the child\n"
	"  alone    the same, without one\n"
	"  more     MiB that the host has less after it, with the child\n"
	"  ratio    write/alone\n"
	"\n"
	"Exit status: 0, 1 if something failed, 77 if this host cannot run it.\n";

static const struct kind {
	const char *name;
	uint32_t backing;
	uint64_t flags;		/* GMEM_MEMORY_* */
} kinds[] = {
	{ "host", GMEM_BACKING_HOST, GMEM_MEMORY_NO_THP },
	{ "host, DONTFORK", GMEM_BACKING_HOST, GMEM_MEMORY_NO_THP | GMEM_MEMORY_DONTFORK },
	{ "host, THP", GMEM_BACKING_HOST, GMEM_MEMORY_THP },
	{ "host, THP, DONTFORK", GMEM_BACKING_HOST, GMEM_MEMORY_THP | GMEM_MEMORY_DONTFORK },
	{ "host, MEMFD", GMEM_BACKING_HOST, GMEM_MEMORY_MEMFD },
	{ "host, MEMFD, DONTFORK", GMEM_BACKING_HOST, GMEM_MEMORY_MEMFD | GMEM_MEMORY_DONTFORK },
	{ "host, HUGETLB", GMEM_BACKING_HOST, GMEM_MEMORY_HUGETLB | GMEM_MEMORY_MEMFD },
	{ "shared guest_memfd", GMEM_BACKING_SHARED, 0 },
};

enum column { FORK, WRITE, ALONE, MORE, COLUMNS };

static double now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

static double available_mib(void)
{
	FILE *file = fopen("/proc/meminfo", "r");
	char line[128];
	double kib = 0;

	while (file && fgets(line, sizeof(line), file))
		if (!strncmp(line, "MemAvailable:", 13))
			kib = strtod(line + 13, NULL);
	if (file)
		fclose(file);
	return kib / 1024;
}

static double write_all(char *hva, uint64_t size, char value)
{
	double start = now_ms();

	for (uint64_t at = 0; at < size; at += 4096)
		((volatile char *)hva)[at] = value;
	return now_ms() - start;
}

static void measure(char *hva, uint64_t size, double *values[COLUMNS], size_t round)
{
	double before;
	int status;
	pid_t pid;

	write_all(hva, size, 1);
	values[ALONE][round] = write_all(hva, size, 2);
	before = now_ms();
	pid = bench_must(fork(), "fork");
	if (!pid) {
		pause();
		_exit(0);
	}
	values[FORK][round] = now_ms() - before;
	before = available_mib();
	values[WRITE][round] = write_all(hva, size, 3);
	values[MORE][round] = before - available_mib();
	kill(pid, SIGKILL);
	bench_must(waitpid(pid, &status, 0), "waitpid");
}

/* A host need not have the backing, or the pool. */
static struct gmem_region *add(struct gmem_vm *vm, const struct kind *kind, uint64_t size)
{
	GMEM_OPTS(gmem_memory_opts, memory, .flags = kind->flags);
	GMEM_OPTS(gmem_request, request, .backings = { kind->backing });
	GMEM_OPTS(gmem_region_opts, opts, .memory = kind->flags ? &memory : NULL);
	struct gmem_region *region = NULL;
	struct gmem_plan *plan;
	int err;

	err = gmem_plan_new(gmem_vm_caps(vm), &request, &plan);
	if (!err) {
		opts.plan = plan;
		err = gmem_region_add(vm, 0, size, &opts, &region);
		gmem_plan_free(plan);
	}
	if (err)
		bench_row_absent(gmem_last_error());
	return err ? NULL : region;
}

/* "fork/host+THP+DONTFORK" */
static void name_row(const struct kind *kind)
{
	char row[64];
	size_t n = 0;

	for (const char *c = kind->name; *c && n < sizeof(row) - 1; c++)
		if (*c != ' ' || (c > kind->name && c[-1] != ','))
			row[n++] = *c == ' ' ? '-' : *c == ',' ? '+' : *c;
	row[n] = '\0';
	bench_row("fork/%s", row);
}

static void run_kind(struct gmem_vm *vm, const struct kind *kind, uint64_t size, size_t rounds)
{
	double values[COLUMNS][MOST_ROUNDS], *columns[COLUMNS], ratio[MOST_ROUNDS];
	struct bench_figure figures[COLUMNS];
	struct gmem_region *region;

	name_row(kind);
	region = add(vm, kind, size);
	if (!region)
		return;
	for (int i = 0; i < COLUMNS; i++)
		columns[i] = values[i];
	for (size_t round = 0; round < rounds; round++) {
		bench_progress(round, rounds);
		measure(gmem_region_hva(region), size, columns, round);
	}
	for (size_t round = 0; round < rounds; round++)
		ratio[round] = values[WRITE][round] / values[ALONE][round];
	printf("%-24s", kind->name);
	for (int i = 0; i < COLUMNS; i++) {
		figures[i] = bench_figure_of(values[i], rounds);
		if (i != FORK)
			bench_print(figures[i]);
		else
			bench_print_amount("ms of fork()", figures[i], 0);
	}
	bench_row_figure(figures[WRITE], "ms");
	bench_print_against("no child", bench_figure_of(ratio, rounds), 0);
	printf("\n");
	bench_gmem_must(gmem_region_remove(region), "remove");
}

int main(int argc, char **argv)
{
	uint64_t mib = argc > 1 ? strtoull(argv[1], NULL, 10) : bench_quick() ? 16 : 1024;
	size_t rounds = argc > 2 ? strtoul(argv[2], NULL, 10) : bench_quick() ? 2 : 5;
	static const char *const names[] = { "fork ms", "write ms", "alone ms", "more MiB", "ratio" };
	int kvm_fd, vm_fd;
	struct gmem_vm *vm;

	if (!mib || !rounds || rounds > MOST_ROUNDS) {
		fputs(usage, argc > 1 && !strcmp(argv[1], "--help") ? stdout : stderr);
		return argc > 1 && !strcmp(argv[1], "--help") ? 0 : 1;
	}
	kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm_fd < 0) {
		printf("bench-fork cannot run here: /dev/kvm: %s\n", strerror(errno));
		return EXIT_CANNOT_RUN;
	}
	vm_fd = bench_must(ioctl(kvm_fd, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	bench_gmem_must(gmem_vm_new(vm_fd, NULL, &vm), "gmem_vm_new");
	printf("%" PRIu64 " MiB, %zu rounds\n%-24s", mib, rounds, "");
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		bench_print_column(names[i]);
	printf("\n");
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
		run_kind(vm, &kinds[i], mib * MIB, rounds);
	gmem_vm_free(vm);
	close(vm_fd);
	close(kvm_fd);
	return 0;
}
