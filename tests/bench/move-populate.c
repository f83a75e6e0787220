/* SPDX-License-Identifier: MIT */
/* Populate: by hand and by the library, and what the machine could do at most */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bench.h"
#include "move.h"

static char *other;	/* anonymous memory, or a memfd */
static int memfd = -1;

static void *map_other(int flags, int fd)
{
	void *p = mmap(NULL, move.size, PROT_READ | PROT_WRITE, flags, fd, 0);

	bench_must(p == MAP_FAILED ? -1 : 0, "mmap");
	return p;
}

/* Small pages, as a guest_memfd has */
static void map_anonymous(void)
{
	other = map_other(MAP_PRIVATE | MAP_ANONYMOUS, -1);
	bench_must(madvise(other, move.size, MADV_NOHUGEPAGE), "MADV_NOHUGEPAGE");
}

static void map_cleared(void)
{
	map_anonymous();
	memset(other, 1, move.size);
}

static void map_memfd(void)
{
	memfd = bench_must(memfd_create("bench", MFD_CLOEXEC), "memfd_create");
	bench_must(ftruncate(memfd, (off_t)move.size), "ftruncate");
	other = map_other(MAP_SHARED, memfd);
}

static void unmap_other(void)
{
	bench_must(munmap(other, move.size), "munmap");
	if (memfd >= 0)
		close(memfd);
	memfd = -1;
}

static void clear_pages(void)
{
	for (uint64_t at = 0; at < move.size; at += move.page)
		memset(other + at, 0, move.page);
}

static void touch(void)
{
	move_fill();
}

static void populate_write(void)
{
	bench_must(madvise(move.hva, move.size, MADV_POPULATE_WRITE), "MADV_POPULATE_WRITE");
}

static void populate_read(void)
{
	bench_must(madvise(move.hva, move.size, MADV_POPULATE_READ), "MADV_POPULATE_READ");
}

static void populate_other(void)
{
	bench_must(madvise(other, move.size, MADV_POPULATE_WRITE), "MADV_POPULATE_WRITE");
}

static void populate(uint32_t workers, uint64_t flags)
{
	GMEM_OPTS(gmem_populate_opts, opts, .workers = workers, .flags = flags);

	bench_gmem_must(gmem_vm_populate(move.vm, 0, move.size, &opts, NULL), "gmem_vm_populate");
}

static void populate_1(void)
{
	populate(1, 0);
}

static void populate_2(void)
{
	populate(2, 0);
}

static void reserve(void)
{
	populate(1, GMEM_POPULATE_RESERVE);
}

void move_populate_tables(void)
{
	static struct move_table by_write = {
		.title = "populate; base: MADV_POPULATE_WRITE",
		.row = "populate/write",
		.base = 0,
		.sides = {
			{ "MADV_POPULATE_WRITE", move_empty, populate_write, move_empty, 0, 0 },
			{ "gmem_vm_populate", move_empty, populate_1, move_empty, 1 / 1.2, 0 },
			{ "gmem_vm_populate, 2 threads", move_empty, populate_2, move_empty, 0, 0 },
			{ "gmem_vm_populate, reserve", move_empty, reserve, move_empty, 0, 0 },
			{ "a loop that touches", move_empty, touch, move_empty, 0, 0 },
			{ "memfd, MADV_POPULATE_WRITE", map_memfd, populate_other, unmap_other, 0, 0 },
			{ "anonymous, MADV_POPULATE_WRITE", map_anonymous, populate_other,
			  unmap_other, 0, 0 },
			{ "memset of pages that exist", map_cleared, clear_pages,
			  unmap_other, 0, 0 },
		},
		.count = 8,
	};
	static struct move_table by_read = {
		.title = "populate; base: one MADV_POPULATE_READ",
		.row = "populate/read",
		.base = 0,
		.sides = {
			{ "MADV_POPULATE_READ", move_empty, populate_read, move_empty, 0, 0 },
			{ "gmem_vm_populate", move_empty, populate_1, move_empty, 1.02, 0 },
		},
		.count = 2,
	};
	static struct move_table by_touch = {
		.title = "populate; base: a loop that touches",
		.row = "populate/touch",
		.base = 0,
		.sides = {
			{ "a loop that touches", move_empty, touch, move_empty, 0, 0 },
			{ "gmem_vm_populate", move_empty, populate_1, move_empty, 1 / 1.4, 0 },
		},
		.count = 2,
	};
	static struct move_table by_memfd = {
		.title = "populate; base: a memfd, MADV_POPULATE_WRITE",
		.row = "populate/memfd",
		.base = 0,
		.sides = {
			{ "memfd, MADV_POPULATE_WRITE", map_memfd, populate_other, unmap_other, 0, 0 },
			{ "gmem_vm_populate", move_empty, populate_1, move_empty, 1 / 1.3, 0 },
		},
		.count = 2,
	};
	static struct move_table by_one = {
		.title = "populate; base: one thread",
		.row = "populate/workers",
		.base = 0,
		.sides = {
			{ "gmem_vm_populate", move_empty, populate_1, move_empty, 0, 0 },
			{ "gmem_vm_populate, 2 threads", move_empty, populate_2, move_empty, 1 / 1.5,
			  1 },
		},
		.count = 2,
	};
	struct move_table *const all[] = { &by_write, &by_read, &by_touch, &by_memfd, &by_one };

	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
		all[i]->bytes = move.size;
		move_run(all[i]);
	}
}
