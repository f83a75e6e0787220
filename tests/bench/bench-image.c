/* SPDX-License-Identifier: MIT */
/*
 * Files into guest memory and guest memory into files: what libgmem takes
 * against what one does by hand and against the peer. Sides take turns, each
 * time with memory nobody has touched; times are of the whole operation, the
 * process's CPU time and the wall's, in ms, median over the rounds (least-most). Then the
 * library's as a share of the others'; sides of the library begin with "gmem_".
 *
 * Free page reporting gives free memory back to the host underneath, so each
 * sample first touches and frees as much as it will need.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <gmem.h>

#include "bench.h"
#include "peer/peer.h"

#include "caps/caps.h"
#include "region/region.h"
#include "region/vm_core.h"

#define MIB ((uint64_t)1 << 20)
#define BLOCK 4096
#define MAX_AT_ONCE (1024 * MIB)
#define MAX_ROUNDS 99
#define MAX_SIDES 10

/* Sides that goals are about */
#define READ		"read() of 1 MiB"
#define DIRECT_READ	"pread(), O_DIRECT"
#define DIRECT_WRITE	"pwrite(), O_DIRECT"
#define DEVICE_READ	"the device, 8 reads at once"
#define DEVICE_WRITE	"the device, 8 writes at once"
#define LOAD		"gmem_vm_load()"
#define RESTORE		"gmem_vm_restore()"
#define SAVE		"gmem_vm_save()"
#define READ_GUEST	"reading the memory once"
#define AT_ONCE		8
#define PEER		"vm-memory"

static uint64_t size;
static size_t rounds;
static int kvm;
static char directory[] = "/var/tmp";

/* ---- a guest for each sample ---- */

static struct guest {
	int vm_fd;
	struct gmem_vm *vm;
	struct gmem_region *region;
	char *hva;
} guest;

static struct gmem_caps *caps;

static void touch_and_free(void)
{
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	bench_must(memory == MAP_FAILED ? -1 : 0, "mmap");
	for (uint64_t at = 0; at < size; at += BLOCK)
		memory[at] = 1;
	munmap(memory, size);
}

static void begin_guest(void)
{
	GMEM_OPTS(gmem_vm_opts, opts);

	guest.vm_fd = bench_must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	if (!caps)
		bench_gmem_must(gmem_caps_new(guest.vm_fd, NULL, &caps), "report");
	opts.caps = caps;
	bench_gmem_must(gmem_vm_new(guest.vm_fd, &opts, &guest.vm), "VM");
	bench_gmem_must(gmem_region_add(guest.vm, 0, size, NULL, &guest.region), "region");
	guest.hva = gmem_region_hva(guest.region);
}

static void end_guest(void)
{
	gmem_vm_free(guest.vm);
	close(guest.vm_fd);
}

/* ---- files ---- */

/* Fills blocks of 64 KiB, as many of the 16 in each MiB. */
static void make_contents(char *to, uint64_t full_of_16)
{
	uint64_t x = 88172645463325252u;

	for (uint64_t at = 0; at < size; at += 8) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		if ((at >> 16) % 16 < full_of_16)
			memcpy(to + at, &x, 8);
	}
}

static int make_file(uint64_t full_of_16, bool sparse)
{
	int fd = bench_must(open(directory, O_RDWR | O_TMPFILE | O_CLOEXEC, 0600), directory);
	char *bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	bench_must(bytes == MAP_FAILED ? -1 : 0, "mmap");
	make_contents(bytes, full_of_16);
	bench_must(ftruncate(fd, (off_t)size), "ftruncate");
	for (uint64_t at = 0; at < size; at += 65536)
		if (!sparse || (at >> 16) % 16 < full_of_16)
			bench_must((int)pwrite(fd, bytes + at, 65536, (off_t)at), "pwrite");
	bench_must(fsync(fd), "fsync");
	munmap(bytes, size);
	return fd;
}

static void forget_cached(int fd)
{
	bench_must(fsync(fd), "fsync");
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
}

static void cache(int fd)
{
	static char buf[MIB];

	for (uint64_t at = 0; at < size; at += MIB)
		bench_must((int)pread(fd, buf, MIB, (off_t)at), "pread");
}

static int open_again(int fd, int flags)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return bench_must(open(path, flags | O_CLOEXEC), path);
}

/* ---- ways of loading ---- */

static const struct peer_functions *peer;

static void load_gmem(int fd)
{
	bench_gmem_must(gmem_vm_load(guest.vm, 0, fd, 0, size, NULL, NULL), "load");
}

static void load_with_two(int fd)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .workers = 2);

	bench_gmem_must(gmem_vm_load(guest.vm, 0, fd, 0, size, &opts, NULL), "load");
}

static void load_plain(int fd)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .flags = GMEM_TRANSFER_NO_RING);

	bench_gmem_must(gmem_vm_load(guest.vm, 0, fd, 0, size, &opts, NULL), "load");
}

static void load_read(int fd)
{
	bench_must((int)lseek(fd, 0, SEEK_SET), "lseek");
	for (uint64_t at = 0; at < size;) {
		ssize_t n = read(fd, guest.hva + at, size - at < MIB ? size - at : MIB);

		bench_must(n > 0 ? 0 : -1, "read");
		at += (uint64_t)n;
	}
}

static void load_mmap(int fd)
{
	char *bytes = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);

	bench_must(bytes == MAP_FAILED ? -1 : 0, "mmap");
	memcpy(guest.hva, bytes, size);
	munmap(bytes, size);
}

static void load_direct(int fd)
{
	int direct = open_again(fd, O_RDONLY | O_DIRECT);

	for (uint64_t at = 0; at < size; at += MIB)
		bench_must((int)pread(direct, guest.hva + at, MIB, (off_t)at), "pread with O_DIRECT");
	close(direct);
}

/* What the device does at most: O_DIRECT, several pieces at once */
static struct {
	int fd;
	_Atomic uint64_t next;
	char *buffers;		/* for reads: MIB for each thread; NULL: write the guest's memory */
} device;

static void *keep_busy(void *data)
{
	char *buffer = device.buffers ? device.buffers + (uintptr_t)data * MIB : NULL;
	uint64_t at;

	while ((at = atomic_fetch_add(&device.next, MIB)) < size) {
		if (buffer)
			bench_must((int)pread(device.fd, buffer, MIB, (off_t)at), "pread with O_DIRECT");
		else
			bench_must((int)pwrite(device.fd, guest.hva + at, MIB, (off_t)at),
				   "pwrite with O_DIRECT");
	}
	return NULL;
}

static void use_device(int fd, char *buffers)
{
	pthread_t threads[AT_ONCE];

	device.fd = fd;
	device.next = 0;
	device.buffers = buffers;
	for (uintptr_t i = 0; i < AT_ONCE; i++)
		bench_must(-pthread_create(&threads[i], NULL, keep_busy, (void *)i), "pthread_create");
	for (size_t i = 0; i < AT_ONCE; i++)
		pthread_join(threads[i], NULL);
}

/* Into the same buffers again and again, of huge pages: not a way of loading */
static void read_device(int fd)
{
	static char *buffers;
	int direct = open_again(fd, O_RDONLY | O_DIRECT);

	if (!buffers) {
		buffers = aligned_alloc(2 * MIB, AT_ONCE * MIB);
		bench_must(buffers ? 0 : -1, "aligned_alloc");
		madvise(buffers, AT_ONCE * MIB, MADV_HUGEPAGE);
		memset(buffers, 1, AT_ONCE * MIB);
	}
	use_device(direct, buffers);
	close(direct);
}

static void load_peer(int fd)
{
	struct peer_range range = { .size = size, .hva = guest.hva };
	struct peer *memory = peer->new(&range, 1);

	/* The peer takes a shortened read(2), as at 2 GiB, for the end: load in pieces. */
	bench_must((int)lseek(fd, 0, SEEK_SET), "lseek");
	for (uint64_t at = 0, now; at < size; at += now) {
		now = size - at < MAX_AT_ONCE ? size - at : MAX_AT_ONCE;
		peer->read_from(memory, at, fd, now);
	}
	peer->free(memory);
}

/* ---- ways of saving ---- */

static void save_gmem(int fd)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .flags = GMEM_TRANSFER_SYNC);

	bench_gmem_must(gmem_vm_save(guest.vm, fd, &opts, NULL), "save");
}

static void save_with_two(int fd)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .flags = GMEM_TRANSFER_SYNC, .workers = 2);

	bench_gmem_must(gmem_vm_save(guest.vm, fd, &opts, NULL), "save");
}

/* To nowhere: what the processors do for it */
static void save_nowhere(uint32_t workers)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .workers = workers);
	int fd = bench_must(open("/dev/null", O_WRONLY | O_CLOEXEC), "/dev/null");

	bench_gmem_must(gmem_vm_save(guest.vm, fd, &opts, NULL), "save");
	close(fd);
}

static void save_nowhere_alone(int fd)
{
	(void)fd;
	save_nowhere(1);
}

static void save_nowhere_with_two(int fd)
{
	(void)fd;
	save_nowhere(2);
}

/* What finding the zeros takes at least */
static void read_guest(int fd)
{
	const uint64_t *words = (const void *)guest.hva;
	uint64_t sum = 0;

	(void)fd;
	for (uint64_t at = 0; at < size / 8; at++)
		sum |= words[at];
	(void)*(volatile uint64_t *)&sum;
}

static void save_plain(int fd)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .flags = GMEM_TRANSFER_SYNC | GMEM_TRANSFER_NO_RING);

	bench_gmem_must(gmem_vm_save(guest.vm, fd, &opts, NULL), "save");
}

static void save_write(int fd)
{
	for (uint64_t at = 0; at < size;) {
		ssize_t n = write(fd, guest.hva + at, size - at < MIB ? size - at : MIB);

		bench_must(n > 0 ? 0 : -1, "write");
		at += (uint64_t)n;
	}
	bench_must(fdatasync(fd), "fdatasync");
}

static void save_direct(int fd)
{
	int direct = open_again(fd, O_WRONLY | O_DIRECT);

	for (uint64_t at = 0; at < size; at += MIB)
		bench_must((int)pwrite(direct, guest.hva + at, MIB, (off_t)at), "pwrite with O_DIRECT");
	bench_must(fdatasync(direct), "fdatasync");
	close(direct);
}

static void save_device(int fd)
{
	int direct = open_again(fd, O_WRONLY | O_DIRECT);

	use_device(direct, NULL);
	bench_must(fdatasync(direct), "fdatasync");
	close(direct);
}

/* ---- measuring ---- */

struct side {
	const char *name;
	void (*run)(int fd);
	double cpu[MAX_ROUNDS], wall[MAX_ROUNDS];
};

static double ms(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

static void sample(struct side *side, size_t round, int fd)
{
	double cpu = ms(CLOCK_PROCESS_CPUTIME_ID), wall = ms(CLOCK_MONOTONIC);

	side->run(fd);
	side->cpu[round] = ms(CLOCK_PROCESS_CPUTIME_ID) - cpu;
	side->wall[round] = ms(CLOCK_MONOTONIC) - wall;
}

static struct bench_figure figure(const double *values, const double *base)
{
	double sorted[MAX_ROUNDS];

	for (size_t i = 0; i < rounds; i++)
		sorted[i] = base ? values[i] / base[i] : values[i];
	return bench_figure_of(sorted, rounds);
}

/*
 * Goals: the library's time as a share of another's, at most. A row is what the table says,
 * with what follows the comma in the name of the library's side.
 */
static const struct goal {
	const char *row, *base;
	double cpu, wall;		/* 0: none */
} goals[] = {
	{ "load/warm-dense", PEER, 0.75, 0 },
	{ "load/warm-dense", READ, 0.9, 0 },
	{ "load/warm-dense/2-workers", LOAD, 0, 0.6 },
	{ "load/warm-dense/2-workers", PEER, 0, 0.55 },
	{ "load/warm-half-zero", PEER, 0.6, 0 },
	{ "load/warm-half-zero/2-workers", LOAD, 0, 0.6 },
	{ "load/warm-holes", PEER, 0.3, 0 },
	{ "load/warm-holes/2-workers", LOAD, 0, 0.6 },
	{ "load/cold-dense", DIRECT_READ, 0, 0.55 },
	{ "load/cold-dense", DEVICE_READ, 0, 1 / 0.7 },
	{ "load/cold-dense/2-workers", LOAD, 0, 0.6 },
	{ "load/cold-holes", DIRECT_READ, 0, 0.55 },
	{ "load/cold-holes/2-workers", LOAD, 0, 0.6 },
	{ "load/restore-dense/2-workers", RESTORE, 0, 0.6 },
	{ "save/1-4-used", DEVICE_WRITE, 0, 0.4 },
	{ "save/half-zero", DEVICE_WRITE, 0, 0.65 },
	{ "save/dense", DEVICE_WRITE, 0, 0.95 },
	{ "save/alternating", DEVICE_WRITE, 0, 1.1 },
	{ "save/nowhere-dense/2-workers", SAVE, 0, 0.8 },
	{ "save/nowhere-zero", READ_GUEST, 0, 1 / 0.8 },
	{ "save/nowhere-zero/2-workers", SAVE, 0, 0.8 },
};

static const struct goal *goal_of(const char *row, const char *base)
{
	static const struct goal none;

	for (size_t i = 0; i < sizeof(goals) / sizeof(goals[0]); i++)
		if (!strcmp(goals[i].row, row) && !strcmp(goals[i].base, base))
			return &goals[i];
	return &none;
}

static bool is_ours(const struct side *side)
{
	return !strncmp(side->name, "gmem_", 5);
}

/* "load/warm-dense", and "/no-ring" of "gmem_vm_load(), no ring" */
static void name_row(char *row, size_t room, const char *table, const struct side *side)
{
	const char *how = is_ours(side) ? strchr(side->name, ',') : NULL;

	snprintf(row, room, "%s%s%s", table, how ? "/" : "", how ? how + 2 : "");
	for (char *c = row; *c; c++)
		if (*c == ' ')
			*c = '-';
}

/* More workers are no reason to be faster than 0.9 of the device. */
static double wall_goal(const struct goal *goal, const struct side *base, const struct side *sides, size_t count)
{
	double wall = goal->wall, least;

	for (size_t i = 0; i < count; i++) {
		if (wall == 0 || !is_ours(base) || strcmp(sides[i].name, DEVICE_READ))
			continue;
		least = figure(sides[i].wall, base->wall).median / 0.9;
		wall = least > wall ? least : wall;
	}
	return wall;
}

static void record_wall(const char *row, const struct side *ours, const struct side *base, double goal)
{
	bench_row("%s", row);
	bench_row_figure(figure(ours->wall, NULL), "ms");
	bench_print_against(base->name, figure(ours->wall, base->wall), goal);
}

static void record_cpu(const char *row, const struct side *ours, const struct side *base)
{
	bench_row("%s/cpu", row);
	bench_row_figure(figure(ours->cpu, NULL), "ms");
	bench_print_against(base->name, figure(ours->cpu, base->cpu),
			    goal_of(row, base->name)->cpu);
}

/* The first side of the library with those of others; more of them with the first, and by goals */
static void print_ratios(const char *table, const struct side *sides, size_t count,
			 const struct side *ours)
{
	char row[96];

	name_row(row, sizeof(row), table, ours);
	printf("%s, as a share of\n", ours->name);
	for (size_t i = 0; i < count; i++) {
		const struct goal *goal = goal_of(row, sides[i].name);

		if (&sides[i] == ours || (i && is_ours(&sides[i])))
			continue;
		if (i && ours != sides && goal->cpu == 0 && goal->wall == 0)
			continue;
		printf("  %-32s", sides[i].name);
		printf("CPU");
		record_cpu(row, ours, &sides[i]);
		printf("wall");
		record_wall(row, ours, &sides[i], wall_goal(goal, &sides[i], sides, count));
		printf("\n");
	}
}

static void print(const char *title, const char *table, const struct side *sides, size_t count)
{
	printf("\n%s, %" PRIu64 " MiB, %zu rounds\n%-34s", title, size / MIB, rounds, "");
	bench_print_column("CPU ms");
	bench_print_column("wall ms");
	printf("\n");
	for (size_t i = 0; i < count; i++) {
		printf("%-34s", sides[i].name);
		bench_print(figure(sides[i].cpu, NULL));
		bench_print(figure(sides[i].wall, NULL));
		printf("\n");
	}
	for (size_t i = 0; i < count; i++)
		if (is_ours(&sides[i]))
			print_ratios(table, sides, count, &sides[i]);
}

static void check_loaded(int fd)
{
	static char bytes[MIB];

	for (uint64_t at = 0; at < size; at += MIB) {
		bench_must((int)pread(fd, bytes, MIB, (off_t)at), "pread");
		bench_must(memcmp(bytes, guest.hva + at, MIB) ? -1 : 0, "comparing what was loaded");
	}
}

static void restore_gmem(int fd)
{
	bench_must((int)lseek(fd, 0, SEEK_SET), "lseek");
	bench_gmem_must(gmem_vm_restore(guest.vm, fd, NULL, NULL), "restore");
}

static void restore_with_two(int fd)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .workers = 2);

	bench_must((int)lseek(fd, 0, SEEK_SET), "lseek");
	bench_gmem_must(gmem_vm_restore(guest.vm, fd, &opts, NULL), "restore");
}

/* An image of a guest all of whose memory is in use, in the page cache */
static int make_image(void)
{
	int fd = bench_must(open(directory, O_RDWR | O_TMPFILE | O_CLOEXEC, 0600), directory);

	begin_guest();
	make_contents(guest.hva, 16);
	bench_gmem_must(gmem_vm_save(guest.vm, fd, NULL, NULL), "save");
	end_guest();
	return fd;
}

static void measure_restore(void)
{
	struct side sides[] = {
		{ .name = RESTORE, .run = restore_gmem },
		{ .name = "gmem_vm_restore(), 2 workers", .run = restore_with_two },
		{ .name = READ, .run = load_read },
	};
	int fd = make_image();

	bench_row("load/restore-dense");
	for (size_t round = 0; round < rounds; round++) {
		bench_progress(round, rounds);
		for (size_t i = 0; i < 3; i++) {
			touch_and_free();
			begin_guest();
			cache(fd);
			sample(&sides[i], round, fd);
			end_guest();
		}
	}
	close(fd);
	print("restore, in the page cache, dense; read() of as much", "load/restore-dense", sides, 3);
}

static void measure_load(const char *title, const char *table, uint64_t full_of_16, bool sparse, bool cold)
{
	struct side sides[MAX_SIDES] = {
		{ .name = LOAD, .run = load_gmem },
		{ .name = "gmem_vm_load(), 2 workers", .run = load_with_two },
		{ .name = "gmem_vm_load(), no ring", .run = load_plain },
		{ .name = READ, .run = load_read },
		{ .name = "mmap() and memcpy()", .run = load_mmap },
		{ .name = DIRECT_READ, .run = load_direct },
	};
	size_t count = 6;
	int fd = make_file(full_of_16, sparse);

	bench_row("%s", table);
	if (cold)
		sides[count++] = (struct side){ .name = DEVICE_READ, .run = read_device };
	if (peer)
		sides[count++] = (struct side){ .name = PEER, .run = load_peer };
	for (size_t round = 0; round < rounds; round++) {
		bench_progress(round, rounds);
		for (size_t i = 0; i < count; i++) {
			touch_and_free();
			begin_guest();
			if (cold)
				forget_cached(fd);
			else
				cache(fd);
			sample(&sides[i], round, fd);
			if (round == 0 && sides[i].run != read_device)
				check_loaded(fd);
			end_guest();
		}
	}
	close(fd);
	print(title, table, sides, count);
}

/* @full_of_16 blocks of 64 KiB of each MiB exist; every second @zero_unit of bytes is zero. */
static void fill_guest(uint64_t full_of_16, uint64_t zero_unit)
{
	for (uint64_t at = 0; at < size; at += MIB)
		memset(guest.hva + at, (int)(at >> 20 | 1), full_of_16 * 65536);
	for (uint64_t at = 0; zero_unit && at < size; at += 2 * zero_unit)
		memset(guest.hva + at, 0, zero_unit);
}

static void measure_sides(const char *title, const char *table, uint64_t full_of_16, uint64_t zero_unit,
			  struct side *sides, size_t count)
{
	bench_row("%s", table);
	for (size_t round = 0; round < rounds; round++) {
		bench_progress(round, rounds);
		for (size_t i = 0; i < count; i++) {
			int fd = bench_must(open(directory, O_RDWR | O_TMPFILE | O_CLOEXEC, 0600), directory);

			touch_and_free();
			begin_guest();
			fill_guest(full_of_16, zero_unit);
			sample(&sides[i], round, fd);
			close(fd);
			end_guest();
		}
	}
	print(title, table, sides, count);
}

static void measure_save_nowhere(const char *title, const char *table, uint64_t full_of_16, uint64_t zero_unit)
{
	struct side sides[MAX_SIDES] = {
		{ .name = "gmem_vm_save()", .run = save_nowhere_alone },
		{ .name = "gmem_vm_save(), 2 workers", .run = save_nowhere_with_two },
		{ .name = READ_GUEST, .run = read_guest },
	};

	measure_sides(title, table, full_of_16, zero_unit, sides, 3);
}

static void measure_save(const char *title, const char *table, uint64_t full_of_16, uint64_t zero_unit)
{
	struct side sides[MAX_SIDES] = {
		{ .name = "gmem_vm_save()", .run = save_gmem },
		{ .name = "gmem_vm_save(), 2 workers", .run = save_with_two },
		{ .name = "gmem_vm_save(), no ring", .run = save_plain },
		{ .name = "write() of 1 MiB", .run = save_write },
		{ .name = DIRECT_WRITE, .run = save_direct },
		{ .name = DEVICE_WRITE, .run = save_device },
	};

	measure_sides(title, table, full_of_16, zero_unit, sides, 6);
}

/* Reset the peak of resident memory. */
static void forget_peak(void)
{
	int fd = bench_must(open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC), "clear_refs");

	bench_must((int)write(fd, "5", 1), "clear_refs");
	close(fd);
}

/* Memory a transfer needs beside the guest: the peak of the process less the guest */
static void measure_memory(void)
{
	struct rusage before, after;
	int fd = make_file(16, false);

	begin_guest();
	forget_peak();
	getrusage(RUSAGE_SELF, &before);
	load_gmem(fd);
	getrusage(RUSAGE_SELF, &after);
	printf("\nloading %" PRIu64 " MiB, the process grew by %ld KiB, %ld KiB of it beside the guest\n",
	       size / MIB, after.ru_maxrss - before.ru_maxrss,
	       after.ru_maxrss - before.ru_maxrss - (long)(size >> 10));
	end_guest();
	close(fd);
}

int main(int argc, char **argv)
{
	static const char usage[] =
		"usage: bench-image [load|restore|cold|save|memory [MIB [ROUNDS]]]\n"
		"Files of MIB (default 1024) in /var/tmp; ROUNDS are 5.\n";
	const char *what = argc > 1 ? argv[1] : "all";

	size = (argc > 2 ? strtoull(argv[2], NULL, 0) : 1024) * MIB;
	rounds = argc > 3 ? strtoul(argv[3], NULL, 0) : 5;
	if (argc <= 2 && bench_quick()) {
		size = 4 * MIB;
		rounds = 2;
	}
	if (argc > 4 || !size || !rounds || rounds > MAX_ROUNDS || *what == '-') {
		printf("%s", usage);
		return argc == 2 && !strcmp(what, "--help") ? 0 : 1;
	}
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0) {
		printf("bench-image cannot run here: /dev/kvm: %s\n", strerror(errno));
		return EXIT_CANNOT_RUN;
	}
	bench_gmem_must(gmem_recovery_enable(), "recovery");
	peer = peer_load();

	if (!strcmp(what, "memory") || !strcmp(what, "all"))
		measure_memory();
	if (!strcmp(what, "load") || !strcmp(what, "all")) {
		measure_load("load, in the page cache, dense", "load/warm-dense", 16, false, false);
		measure_load("load, in the page cache, half zero", "load/warm-half-zero", 8, false, false);
		measure_load("load, in the page cache, 3/4 holes", "load/warm-holes", 4, true, false);
	}
	if (!strcmp(what, "restore") || !strcmp(what, "all"))
		measure_restore();
	if (!strcmp(what, "cold") || !strcmp(what, "all")) {
		measure_load("load, from the disk, dense", "load/cold-dense", 16, false, true);
		measure_load("load, from the disk, 3/4 holes", "load/cold-holes", 4, true, true);
	}
	if (!strcmp(what, "save") || !strcmp(what, "all")) {
		measure_save("save, 1/8 in use", "save/1-8-used", 2, 0);
		measure_save("save, 1/4 in use", "save/1-4-used", 4, 0);
		measure_save("save, all in use", "save/dense", 16, 0);
		measure_save("save, every second 64 KiB zero", "save/half-zero", 16, 65536);
		measure_save("save, every second page zero", "save/alternating", 16, BLOCK);
		measure_save_nowhere("save to nowhere, all in use", "save/nowhere-dense", 16, 0);
		measure_save_nowhere("save to nowhere, all zero", "save/nowhere-zero", 16, size);
	}
	bench_print_goals();
	gmem_recovery_disable();
	gmem_caps_free(caps);
	close(kvm);
	return 0;
}
