/* SPDX-License-Identifier: MIT */
/*
 * bench-access: what reading and writing guest memory costs when it must not
 * be able to kill the process.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <gmem.h>

#include "bench.h"
#include "layout.h"
#include "peer/peer.h"

#define REGIONS		32
#define REGION_SIZE	(UINT64_C(2) << 20)
#define ADDRESSES	1024	/* in a pass, at most */
#define SETS		16	/* of addresses, in turn */
#define HOT_BUFFERS	64
#define BIGGEST		((size_t)1 << 20)

static const char usage[] =
	"usage: bench-access [ROUNDS]\n"
	"\n"
	"Reads and writes guest memory in a VM of 32 regions of 2 MiB: populated shared\n"
	"guest_memfd, where this host has it, else ordinary memory, as the first line\n"
	"says. Up to 4 KiB in 64 pages that are in use, more anywhere. The peer is\n"
	"rust-vmm's vm-memory on the same memory.\n"
	"\n"
	"Columns: ns of CPU time for one access, median (least - most) of ROUNDS rounds,\n"
	"at least 5, by default 21, in which all sides take turns:\n"
	"\n"
	"  memcpy     from or to the host address, found beforehand; not safe\n"
	"  libgmem    gmem_view_read(), gmem_view_write(), with gmem_recovery_enable();\n"
	"             the address is found each time\n"
	"  held       the same between gmem_view_begin() and gmem_view_end() around all\n"
	"  kernel     process_vm_readv() within this process\n"
	"  peer       read_slice(), write_slice(); not safe\n"
	"  obj        the peer's read_obj() or write_obj() of a u64\n"
	"\n"
	"Load and store are single numbers, with acquire and release order: a plain one in\n"
	"place of memcpy, gmem_view_load() and gmem_view_store(), the peer's load() and\n"
	"store().\n"
	"\n"
	"The last table reads 8 bytes past the end of a file: from SIGBUS to an error\n"
	"code, against the kernel's refusal.\n"
	"\n"
	"Goals: libgmem/memcpy 1.1, from 4 KiB on 1.03; libgmem/peer and held/peer 0.25 up\n"
	"to 64 bytes; libgmem/kernel 0.02 at 8 bytes, and 5 where the read fails.\n"
	"\n"
	"Exit status: 0, 1 if something failed, 77 if this host cannot run it.\n";

enum { MEMCPY, LIBGMEM, HELD, KERNEL, PEER, PEER_OBJ, SIDES };

static const struct peer_functions *peer_functions;

struct access {
	struct gmem_view *view;
	const struct peer *peer;
	uint64_t all_gpas[SETS][ADDRESSES];
	void *all_hvas[SETS][ADDRESSES];
	const uint64_t *gpas;		/* the set in use */
	void *const *hvas;
	size_t turn;
	size_t count;
	size_t size;
	void *buf;
	uint64_t sum;		/* of the numbers loaded */
};

/*
 * Begins a pass, with the next set of addresses. A processor can take a store for one that
 * a load waits for if both have the same place in their pages: one set is then slow for
 * as long as it is used, by luck.
 */
static struct access *next_set(void *data)
{
	struct access *access = data;
	size_t set = access->turn++ % SETS;

	access->gpas = access->all_gpas[set];
	access->hvas = access->all_hvas[set];
	return access;
}

/* ------------------------------------------------------------- the sides -- */

static void read_memcpy(void *data)
{
	const struct access *access = next_set(data);

	for (size_t i = 0; i < access->count; i++)
		memcpy(access->buf, access->hvas[i], access->size);
}

static void write_memcpy(void *data)
{
	const struct access *access = next_set(data);

	for (size_t i = 0; i < access->count; i++)
		memcpy(access->hvas[i], access->buf, access->size);
}

static void read_libgmem(void *data)
{
	const struct access *access = next_set(data);
	int err;

	for (size_t i = 0; i < access->count; i++) {
		err = gmem_view_read(access->view, access->gpas[i], access->buf, access->size, NULL);
		if (err)
			bench_gmem_must(err, "gmem_view_read");
	}
}

static void write_libgmem(void *data)
{
	const struct access *access = next_set(data);
	int err;

	for (size_t i = 0; i < access->count; i++) {
		err = gmem_view_write(access->view, access->gpas[i], access->buf, access->size, NULL);
		if (err)
			bench_gmem_must(err, "gmem_view_write");
	}
}

static void read_held(void *data)
{
	const struct access *access = data;

	gmem_view_begin(access->view);
	read_libgmem(data);
	gmem_view_end(access->view);
}

static void write_held(void *data)
{
	const struct access *access = data;

	gmem_view_begin(access->view);
	write_libgmem(data);
	gmem_view_end(access->view);
}

static ssize_t ask_kernel(void *to, void *from, size_t size)
{
	struct iovec local = { to, size }, remote = { from, size };

	return process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
}

static void read_kernel(void *data)
{
	const struct access *access = next_set(data);

	for (size_t i = 0; i < access->count; i++)
		bench_must((int)ask_kernel(access->buf, access->hvas[i], access->size),
			   "process_vm_readv");
}

static void write_kernel(void *data)
{
	const struct access *access = next_set(data);

	for (size_t i = 0; i < access->count; i++)
		bench_must((int)ask_kernel(access->hvas[i], access->buf, access->size),
			   "process_vm_readv");
}

static void read_peer(void *data)
{
	const struct access *access = next_set(data);

	peer_functions->read_slice(access->peer, access->gpas, access->count, access->buf,
				   access->size);
}

static void write_peer(void *data)
{
	const struct access *access = next_set(data);

	peer_functions->write_slice(access->peer, access->gpas, access->count, access->buf,
				    access->size);
}

static void read_peer_obj(void *data)
{
	const struct access *access = next_set(data);

	(void)peer_functions->read_obj(access->peer, access->gpas, access->count);
}

static void write_peer_obj(void *data)
{
	const struct access *access = next_set(data);

	peer_functions->write_obj(access->peer, access->gpas, access->count, 1);
}

/* -------------------------------------------------- the sides, of numbers -- */

static void load_plain(void *data)
{
	struct access *access = next_set(data);
	uint64_t sum = 0;

	for (size_t i = 0; i < access->count; i++)
		sum += __atomic_load_n((uint64_t *)access->hvas[i], __ATOMIC_ACQUIRE);
	access->sum = sum;
}

static void store_plain(void *data)
{
	const struct access *access = next_set(data);

	for (size_t i = 0; i < access->count; i++)
		__atomic_store_n((uint64_t *)access->hvas[i], 1, __ATOMIC_RELEASE);
}

static void load_libgmem(void *data)
{
	struct access *access = next_set(data);
	uint64_t value = 0, sum = 0;
	int err;

	for (size_t i = 0; i < access->count; i++) {
		err = gmem_view_load(access->view, access->gpas[i], 8, GMEM_ACQUIRE, &value);
		if (err)
			bench_gmem_must(err, "gmem_view_load");
		sum += value;
	}
	access->sum = sum;
}

static void store_libgmem(void *data)
{
	const struct access *access = next_set(data);
	int err;

	for (size_t i = 0; i < access->count; i++) {
		err = gmem_view_store(access->view, access->gpas[i], 8, GMEM_RELEASE, 1);
		if (err)
			bench_gmem_must(err, "gmem_view_store");
	}
}

static void load_held(void *data)
{
	const struct access *access = data;

	gmem_view_begin(access->view);
	load_libgmem(data);
	gmem_view_end(access->view);
}

static void store_held(void *data)
{
	const struct access *access = data;

	gmem_view_begin(access->view);
	store_libgmem(data);
	gmem_view_end(access->view);
}

static void load_peer(void *data)
{
	struct access *access = next_set(data);

	access->sum = peer_functions->load(access->peer, access->gpas, access->count);
}

static void store_peer(void *data)
{
	const struct access *access = next_set(data);

	peer_functions->store(access->peer, access->gpas, access->count, 1);
}

/* ---------------------------------------------------- the sides, failing -- */

static void fail_libgmem(void *data)
{
	const struct access *access = data;

	if (gmem_view_read(access->view, access->gpas[0], access->buf, access->size, NULL) != -EFAULT)
		abort();
}

static void fail_kernel(void *data)
{
	const struct access *access = data;

	if (ask_kernel(access->buf, access->hvas[0], access->size) >= 0)
		abort();
}

/* ---------------------------------------------------------------- the VM -- */

struct machine {
	int vm_fd;
	struct gmem_vm *vm;
	struct gmem_plan *plan;
	struct peer_range ranges[REGIONS];
	struct gmem_view *view;
	struct peer *peer;
};

static void make_plan(struct machine *machine)
{
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_SHARED, GMEM_BACKING_HOST });

	bench_gmem_must(gmem_plan_new(gmem_vm_caps(machine->vm), &request, &machine->plan),
			"gmem_plan_new");
	printf("memory: %s\n", gmem_backing_name(gmem_plan_backing(machine->plan)));
}

static void add_regions(struct machine *machine)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = machine->plan);
	struct gmem_region *region;

	for (size_t i = 0; i < REGIONS; i++) {
		struct peer_range *range = &machine->ranges[i];

		range->gpa = 2 * i * REGION_SIZE;
		range->size = REGION_SIZE;
		bench_gmem_must(gmem_region_add(machine->vm, range->gpa, range->size, &opts, &region),
				"gmem_region_add");
		range->hva = gmem_region_hva(region);
		memset(range->hva, (int)i, range->size);
	}
}

static void set_up(struct machine *machine)
{
	machine->vm_fd = layout_make_vm();
	bench_gmem_must(gmem_vm_new(machine->vm_fd, NULL, &machine->vm), "gmem_vm_new");
	make_plan(machine);
	add_regions(machine);
	bench_gmem_must(gmem_recovery_enable(), "gmem_recovery_enable");
	bench_gmem_must(gmem_view_new(machine->vm, &machine->view), "gmem_view_new");
	if (peer_functions)
		machine->peer = peer_functions->new(machine->ranges, REGIONS);
}

static void tear_down(struct machine *machine)
{
	if (machine->peer)
		peer_functions->free(machine->peer);
	gmem_view_free(machine->view);
	gmem_recovery_disable();
	gmem_vm_free(machine->vm);
	gmem_plan_free(machine->plan);
	bench_must(close(machine->vm_fd), "close");
}

/* ------------------------------------------------------------- addresses -- */

static void put_address(struct access *access, size_t set, size_t i,
			const struct peer_range *range, uint64_t offset)
{
	access->all_gpas[set][i] = range->gpa + offset;
	access->all_hvas[set][i] = (char *)range->hva + offset;
}

static void fill_set(struct access *access, size_t set, const struct machine *machine)
{
	bool big = access->size > 4096;
	uint64_t room = big ? REGION_SIZE : 4096, align = big ? 4096 : 8;

	for (size_t i = 0; i < access->count; i++) {
		size_t buffer = bench_random(HOT_BUFFERS);
		uint64_t offset = bench_random((room - access->size) / align + 1) * align;

		if (big)
			put_address(access, set, i, &machine->ranges[i], offset);
		else
			put_address(access, set, i, &machine->ranges[buffer % REGIONS],
				    offset + buffer * 3 * 4096);
	}
}

static void fill_addresses(struct access *access, const struct machine *machine)
{
	access->count = access->size > 4096 ? REGIONS : ADDRESSES;
	for (size_t set = 0; set < SETS; set++)
		fill_set(access, set, machine);
}

/* ---------------------------------------------------------------- tables -- */

struct table {
	const char *name;
	void (*run[SIDES])(void *data);		/* of PEER_OBJ only 8 bytes */
	size_t sizes[12];
};

static const struct table tables[] = {
	{ "read",
	  { read_memcpy, read_libgmem, read_held, read_kernel, read_peer, read_peer_obj },
	  { 1, 2, 4, 8, 16, 32, 64, 256, 4096, 64 << 10, BIGGEST } },
	{ "write",
	  { write_memcpy, write_libgmem, write_held, write_kernel, write_peer, write_peer_obj },
	  { 1, 2, 4, 8, 16, 32, 64, 256, 4096, 64 << 10, BIGGEST } },
	{ "load", { load_plain, load_libgmem, load_held, read_kernel, load_peer }, { 8 } },
	{ "store", { store_plain, store_libgmem, store_held, write_kernel, store_peer }, { 8 } },
};

static void print_header(const char *what)
{
	static const char *const names[] = { "memcpy", "libgmem", "held", "kernel", "peer", "obj",
					     "libgmem/memcpy", "libgmem/kernel", "libgmem/peer",
					     "held/peer" };

	printf("\n%-10s", what);
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		bench_print_column(names[i]);
	printf("\n");
}

static void print_times(const struct bench *bench)
{
	for (size_t i = 0; i < SIDES; i++) {
		if (i < bench->count)
			bench_print(bench_time(bench, i));
		else
			bench_print_nothing();
	}
}

static void print_peer_ratios(const struct bench *bench, size_t size)
{
	double goal = size <= 64 ? 0.25 : 0;

	if (bench->count > PEER) {
		bench_print_against("vm-memory", bench_ratio(bench, LIBGMEM, PEER), goal);
		bench_print_against("vm-memory, held", bench_ratio(bench, HELD, PEER), goal);
	} else {
		bench_print_nothing();
		bench_print_nothing();
	}
}

static void run_row(struct bench *bench, const struct access *access, const char *what)
{
	bench->operations = access->count;
	bench_row("access/%s/%zu", what, access->size);
	bench_run(bench);

	bench_row_figure(bench_time(bench, LIBGMEM), "ns");
	printf("%-10zu", access->size);
	print_times(bench);
	bench_print_against("memcpy", bench_ratio(bench, LIBGMEM, MEMCPY),
			    access->size < 4096 ? 1.1 : 1.03);
	bench_print_against("process_vm_readv", bench_ratio(bench, LIBGMEM, KERNEL),
			    access->size == 8 ? 0.02 : 0);
	print_peer_ratios(bench, access->size);
	printf("\n");
}

static void bench_table(struct bench *bench, const struct machine *machine, struct access *access,
			const struct table *table)
{
	print_header(table->name);
	for (const size_t *size = table->sizes; *size; size++) {
		access->size = *size;
		fill_addresses(access, machine);
		bench->count = machine->peer ? PEER + 1 : PEER;
		if (machine->peer && *size == 8 && table->run[PEER_OBJ])
			bench->count = SIDES;
		for (size_t side = 0; side < bench->count; side++) {
			bench->sides[side].run = table->run[side];
			bench->sides[side].data[0] = access;
		}
		run_row(bench, access, table->name);
	}
}

/* Two pages of a file that has one */
static void add_short_file(const struct machine *machine, struct access *access)
{
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_HOST });
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), gpa = 2 * REGIONS * REGION_SIZE;
	int file = bench_must(memfd_create("short", MFD_CLOEXEC), "memfd_create");
	struct gmem_region *region;
	struct gmem_plan *plan;
	char *hva;

	bench_must(ftruncate(file, (off_t)page), "ftruncate");
	hva = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	bench_must(hva == MAP_FAILED ? -1 : close(file), "mmap");

	bench_gmem_must(gmem_plan_new(gmem_vm_caps(machine->vm), &request, &plan), "gmem_plan_new");
	GMEM_OPTS(gmem_region_opts, opts, .plan = plan, .flags = GMEM_REGION_HVA, .hva = hva);
	bench_gmem_must(gmem_region_add(machine->vm, gpa, 2 * page, &opts, &region),
			"gmem_region_add");
	gmem_plan_free(plan);
	access->all_gpas[0][0] = gpa + page;
	access->all_hvas[0][0] = hva + page;
	access->turn = 0;
	next_set(access);
}

static void bench_failure(struct bench *bench, const struct machine *machine,
			  struct access *access)
{
	enum { FAIL_LIBGMEM, FAIL_KERNEL };

	add_short_file(machine, access);
	access->size = 8;
	bench->count = 2;
	bench->operations = 1;
	bench->sides[FAIL_LIBGMEM].run = fail_libgmem;
	bench->sides[FAIL_KERNEL].run = fail_kernel;
	bench_row("access/failure/%zu", access->size);
	bench_run(bench);
	bench_row_figure(bench_time(bench, FAIL_LIBGMEM), "ns");

	printf("\n%-10s", "failure");
	bench_print_column("libgmem");
	bench_print_column("kernel");
	bench_print_column("libgmem/kernel");
	printf("\n%-10zu", access->size);
	bench_print(bench_time(bench, FAIL_LIBGMEM));
	bench_print(bench_time(bench, FAIL_KERNEL));
	bench_print_against("process_vm_readv", bench_ratio(bench, FAIL_LIBGMEM, FAIL_KERNEL), 5);
	printf("\n");
}

int main(int argc, char **argv)
{
	static struct bench bench;
	static struct access access;
	struct machine machine = { 0 };

	bench.rounds = bench_arguments(argc, argv, usage, 21);
	bench.threads = 1;
	bench.sample_us = 1000;
	printf("libgmem %s, %zu rounds\n", gmem_version(), bench.rounds);
	peer_functions = peer_load();
	set_up(&machine);

	access.view = machine.view;
	access.peer = machine.peer;
	access.buf = aligned_alloc(4096, BIGGEST);
	bench_must(access.buf ? 0 : -1, "aligned_alloc");
	memset(access.buf, 1, BIGGEST);

	for (size_t i = 0; i < sizeof(tables) / sizeof(tables[0]); i++)
		bench_table(&bench, &machine, &access, &tables[i]);
	bench_failure(&bench, &machine, &access);
	bench_print_goals();

	free(access.buf);
	tear_down(&machine);
	return EXIT_SUCCESS;
}
