/* SPDX-License-Identifier: MIT */
/* image, save and restore: memory comes back bit for bit, anything else is refused */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "region/region_memory.h"
#include "transfer/image.h"
#include "transfer/transfer.h"
#include "unit.h"
#include "unit_alloc.h"

#define MIB ((uint64_t)1 << 20)

/* Three regions: two that touch, a hole, and one of host memory */
#define LOW_PAGES 300
#define HIGH_PAGES 400
#define HOST_PAGE 2000
#define HOST_PAGES 64

struct guest {
	struct unit unit;
	struct gmem_plan *host;
	struct gmem_region *regions[3];
};

static void add_regions(struct guest *g)
{
	uint64_t scale = 4096 < g->unit.page ? g->unit.page / 4096 : 1;

	g->host = unit_plan(&g->unit, GMEM_BACKING_HOST);
	g->regions[0] = unit_region(&g->unit, 16, LOW_PAGES / scale, NULL);
	g->regions[1] = unit_region(&g->unit, 16 + LOW_PAGES / scale, HIGH_PAGES / scale, NULL);
	g->regions[2] = unit_region(&g->unit, HOST_PAGE, HOST_PAGES / scale, g->host);
}

static void begin_on(struct guest *g, const char *kernel)
{
	memset(g, 0, sizeof(*g));
	unit_begin_vm(&g->unit, kernel);
	add_regions(g);
}

static void begin(struct guest *g)
{
	begin_on(g, "6.18");
}

static void end(struct guest *g)
{
	gmem_plan_free(g->host);
	unit_end(&g->unit);
}

/* Start over with the same regions, empty. */
static void reboot(struct guest *g)
{
	for (size_t i = 0; i < 3; i++)
		assert_ok(gmem_region_remove(g->regions[i]));
	gmem_plan_free(g->host);
	add_regions(g);
}

static uint64_t total(const struct guest *g)
{
	uint64_t size = 0;

	for (size_t i = 0; i < 3; i++)
		size += gmem_region_size(g->regions[i]);
	return size;
}

/* The contents of a page by @seed: nothing, a little, or much */
static void expected_page(unsigned seed, size_t region, uint64_t page, char *bytes)
{
	unsigned x = (unsigned)(page * 2654435761u) ^ (unsigned)region * 977 ^ seed * 31337;

	memset(bytes, 0, 4096);
	x = (x ^ x >> 15) * 2246822519u;
	if (x % 4 == 1)
		bytes[(x >> 4) % 4096] = (char)(1 + (x >> 20) % 100);
	for (unsigned i = 0; i < 4096 && x % 4 > 1; i++)
		bytes[i] = (char)(x >> (i % 24));
}

static void fill(struct guest *g, unsigned seed)
{
	char bytes[4096];

	for (size_t i = 0; i < 3; i++)
		for (uint64_t at = 0; at < gmem_region_size(g->regions[i]); at += 4096) {
			expected_page(seed, i, at / 4096, bytes);
			if (!gmem_is_zero(bytes, 4096))
				memcpy((char *)gmem_region_hva(g->regions[i]) + at, bytes, 4096);
		}
}

static void check(struct guest *g, unsigned seed)
{
	char bytes[4096];

	for (size_t i = 0; i < 3; i++)
		for (uint64_t at = 0; at < gmem_region_size(g->regions[i]); at += 4096) {
			expected_page(seed, i, at / 4096, bytes);
			assert_memory_equal((char *)gmem_region_hva(g->regions[i]) + at, bytes, 4096);
		}
}

static void soil(struct guest *g, int byte)
{
	for (size_t i = 0; i < 3; i++)
		memset(gmem_region_hva(g->regions[i]), byte, gmem_region_size(g->regions[i]));
}

static uint64_t allocated(struct guest *g)
{
	uint64_t bytes, sum = 0;

	for (size_t i = 0; i < 2; i++) {
		assert_ok(gmem_region_memory_resident(g->regions[i], GMEM_SIDE_SHARED, 0,
						      gmem_region_size(g->regions[i]), &bytes));
		sum += bytes;
	}
	return sum;
}

static int new_file(void)
{
	int fd = memfd_create("image", MFD_CLOEXEC);

	assert_true(fd >= 0);
	return fd;
}

static uint64_t size_of(int fd)
{
	return (uint64_t)lseek(fd, 0, SEEK_END);
}

/* An image of a guest filled with @seed */
static int saved(struct guest *g, unsigned seed)
{
	int fd = new_file();

	fill(g, seed);
	assert_ok(gmem_vm_save(g->unit.vm, fd, NULL, NULL));
	return fd;
}

/* ---- there and back ---- */

static void every_way_gives_the_same_bytes(void **state)
{
	static const struct {
		uint64_t flags, most, offset;
		enum fake_direct direct;
		uint32_t depth;
		int io_uring;
		uint32_t workers;
		bool is_cached;
	} ways[] = {
		{ 0, 0, 0, FAKE_DIRECT_DISK, 0, 0, 0, false },
		{ 0, 0, 0, FAKE_DIRECT_NEVER, 1, 0, 0, false },
		{ 0, 0, 8192, FAKE_DIRECT_LIE, 2, 0, 0, false },
		{ 0, 30000, 777, FAKE_DIRECT_DISK, 0, 0, 0, false },
		{ 0, 4096, 4096, FAKE_DIRECT_DISK, 3, 0, 0, false },
		{ GMEM_TRANSFER_NO_RING, 0, 0, FAKE_DIRECT_DISK, 0, 0, 0, false },
		{ GMEM_TRANSFER_NO_RING, 1000, 512, FAKE_DIRECT_DISK, 0, 0, 0, false },
		{ GMEM_TRANSFER_NO_DIRECT, 0, 0, FAKE_DIRECT_DISK, 32, 0, 0, false },
		{ 0, 0, 0, FAKE_DIRECT_DISK, 0, -EPERM, 0, false },
		{ 0, 0, 0, FAKE_DIRECT_DISK, 0, 0, 4, false },
		{ 0, 0, 0, FAKE_DIRECT_DISK, 0, 0, 2, true },
		{ 0, 30000, 777, FAKE_DIRECT_DISK, 0, 0, 1024, true },
		{ GMEM_TRANSFER_NO_RING, 0, 4096, FAKE_DIRECT_DISK, 0, 0, 3, true },
		{ 0, 0, 0, FAKE_DIRECT_DISK, 0, 0, 2, false },
		{ 0, 30000, 777, FAKE_DIRECT_LIE, 4, 0, 3, false },
		{ GMEM_TRANSFER_NO_RING, 0, 0, FAKE_DIRECT_DISK, 0, 0, 2, false },
	};

	(void)state;
	for (unsigned i = 0; i < ARRAY_SIZE(ways); i++) {
		GMEM_OPTS(gmem_transfer_opts, opts, .flags = ways[i].flags, .depth = ways[i].depth,
			  .image_offset = ways[i].offset, .workers = ways[i].workers);
		struct gmem_transfer_result out = { .size = sizeof(out) }, in = out, seen = out;
		struct guest g;
		int fd = new_file();

		begin(&g);
		fill(&g, i);
		fake.io_uring = ways[i].io_uring;
		fake_set_direct(ways[i].direct);
		fake_shorten_io(ways[i].most);
		if (ways[i].is_cached)
			fake_cache_files();

		assert_ok(gmem_vm_save(g.unit.vm, fd, &opts, &out));
		assert_int_equal(out.data_bytes + out.zero_bytes, total(&g));
		assert_int_equal(out.file_bytes + ways[i].offset, size_of(fd));
		assert_int_equal(out.engine, ways[i].io_uring || ways[i].flags & GMEM_TRANSFER_NO_RING
						     ? GMEM_ENGINE_PLAIN : GMEM_ENGINE_IO_URING);
		check(&g, i);
		assert_ok(gmem_image_verify(fd, &opts, &seen));
		assert_int_equal(seen.data_bytes, out.data_bytes);
		assert_int_equal(seen.zero_bytes, out.zero_bytes);

		reboot(&g);
		assert_ok(gmem_vm_restore(g.unit.vm, fd, &opts, &in));
		assert_int_equal(in.data_bytes, out.data_bytes);
		assert_int_equal(in.zero_bytes, out.zero_bytes);
		check(&g, i);

		soil(&g, 0x55);
		opts.flags |= GMEM_TRANSFER_VERIFY;
		assert_ok(gmem_vm_restore(g.unit.vm, fd, &opts, &in));
		assert_int_equal(in.data_bytes, out.data_bytes);
		check(&g, i);
		close(fd);
		end(&g);
	}
}

static void saving_and_restoring_allocate_no_guest_memory(void **state)
{
	struct guest g;
	uint64_t before;
	int fd;

	(void)state;
	begin(&g);
	fill(&g, 3);
	before = allocated(&g);
	assert_true(before < total(&g));
	fd = new_file();
	assert_ok(gmem_vm_save(g.unit.vm, fd, NULL, NULL));
	assert_int_equal(allocated(&g), before);
	assert_true(size_of(fd) < before + 64 * 4096);

	reboot(&g);
	assert_ok(gmem_vm_restore(g.unit.vm, fd, NULL, NULL));
	assert_int_equal(allocated(&g), before);
	check(&g, 3);
	close(fd);
	end(&g);
}

static void what_the_host_has_no_memory_for_is_refused_first(void **state)
{
	GMEM_OPTS(gmem_transfer_opts, unchecked, .flags = GMEM_TRANSFER_UNCHECKED);
	char text[64];
	struct guest g;
	int fd;

	(void)state;
	begin(&g);
	fill(&g, 3);
	fd = new_file();
	assert_ok(gmem_vm_save(g.unit.vm, fd, NULL, NULL));

	reboot(&g);
	snprintf(text, sizeof(text), "MemAvailable: %d kB\n", (int)(size_of(fd) / 1024) - 4);
	fake_set_file("/proc/meminfo", text);
	assert_refused(-ENOMEM, "bytes more, with page tables, do not fit", gmem_vm_restore(g.unit.vm, fd, NULL, NULL));
	assert_int_equal(allocated(&g), 0);
	assert_ok(gmem_vm_restore(g.unit.vm, fd, &unchecked, NULL));
	check(&g, 3);

	/* All of it is there already. */
	fake_set_file("/proc/meminfo", "MemAvailable: 0 kB\n");
	assert_ok(gmem_vm_restore(g.unit.vm, fd, NULL, NULL));
	check(&g, 3);
	close(fd);
	end(&g);
}

static void an_empty_guest_is_an_image_too(void **state)
{
	struct gmem_transfer_result result = { .size = sizeof(result) };
	struct unit unit;
	struct guest g;
	int fd = new_file(), none = new_file();

	(void)state;
	begin(&g);
	assert_ok(gmem_vm_save(g.unit.vm, fd, NULL, &result));
	assert_int_equal(result.data_bytes, 0);
	assert_int_equal(size_of(fd), 3 * 4096);
	soil(&g, 9);
	assert_ok(gmem_vm_restore(g.unit.vm, fd, NULL, &result));
	for (size_t i = 0; i < 3; i++)
		assert_true(gmem_is_zero(gmem_region_hva(g.regions[i]), gmem_region_size(g.regions[i])));
	end(&g);

	/* a VM without any memory */
	unit_begin_vm(&unit, "6.18");
	assert_ok(gmem_vm_save(unit.vm, none, NULL, &result));
	assert_ok(gmem_vm_restore(unit.vm, none, NULL, &result));
	assert_int_equal(gmem_vm_restore(unit.vm, fd, NULL, NULL), -ENOENT);
	close(fd);
	close(none);
	unit_end(&unit);
}

struct mover {
	int from, to;
};

/* The process at the other end of a pipe, which does not use the library */
static void *move_all(void *data)
{
	const struct mover *mover = data;
	static __thread char buf[65536];
	ssize_t n;

	while ((n = read(mover->from, buf, sizeof(buf))) > 0)
		if (write(mover->to, buf, (size_t)n) != n)
			break;
	return NULL;
}

static void a_pipe_carries_an_image_and_what_follows(void **state)
{
	static const uint64_t flags[] = { 0, GMEM_TRANSFER_NO_RING };

	(void)state;
	for (size_t i = 0; i < 2; i++) {
		GMEM_OPTS(gmem_transfer_opts, opts, .flags = flags[i]);
		struct mover mover;
		pthread_t thread;
		struct guest g;
		char after[6];
		int ends[2], image = new_file();

		begin(&g);
		fill(&g, 40);
		assert_int_equal(pipe(ends), 0);
		mover = (struct mover){ ends[0], image };
		assert_int_equal(pthread_create(&thread, NULL, move_all, &mover), 0);
		assert_ok(gmem_vm_save(g.unit.vm, ends[1], &opts, NULL));
		close(ends[1]);
		pthread_join(thread, NULL);
		close(ends[0]);

		soil(&g, 1);
		assert_int_equal(write(image, "after", 6), 6);
		assert_int_equal(lseek(image, 0, SEEK_SET), 0);
		assert_int_equal(pipe(ends), 0);
		mover = (struct mover){ image, ends[1] };
		assert_int_equal(pthread_create(&thread, NULL, move_all, &mover), 0);
		/* the pipe stays open: only the image itself says where it ends */
		assert_ok(gmem_vm_restore(g.unit.vm, ends[0], &opts, NULL));
		check(&g, 40);
		assert_int_equal(read(ends[0], after, 6), 6);
		assert_string_equal(after, "after");
		pthread_join(thread, NULL);
		close(ends[0]);
		close(ends[1]);
		close(image);
		end(&g);
	}
}

static void regions_may_be_cut_and_backed_otherwise(void **state)
{
	struct gmem_region *region;
	struct unit unit;
	struct guest g;
	int fd;

	(void)state;
	begin(&g);
	fd = saved(&g, 5);
	end(&g);

	unit_begin_vm(&unit, "6.18");
	{
		struct gmem_plan *host = unit_plan(&unit, GMEM_BACKING_HOST);
		char bytes[4096];

		region = unit_region(&unit, 16, LOW_PAGES + HIGH_PAGES, host);
		unit_region(&unit, HOST_PAGE, HOST_PAGES, NULL);
		assert_ok(gmem_vm_restore(unit.vm, fd, NULL, NULL));
		for (uint64_t page = 0; page < LOW_PAGES + HIGH_PAGES; page++) {
			expected_page(5, page >= LOW_PAGES, page - (page >= LOW_PAGES ? LOW_PAGES : 0), bytes);
			assert_memory_equal((char *)gmem_region_hva(region) + page * 4096, bytes, 4096);
		}
		gmem_plan_free(host);
	}
	close(fd);
	unit_end(&unit);
}

static void another_page_size_reads_it_too(void **state)
{
	struct gmem_region *region;
	struct unit unit;
	char *bytes = calloc(1, 4 * 65536);
	int fd = new_file();

	(void)state;
	/* from 64K pages ... */
	unit_begin_vm_pages(&unit, "6.18", 65536);
	region = unit_region(&unit, 1, 4, NULL);
	for (unsigned i = 70000; i < 150000; i += 3)
		bytes[i] = (char)i;
	memcpy(gmem_region_hva(region), bytes, 4 * 65536);
	assert_ok(gmem_vm_save(unit.vm, fd, NULL, NULL));
	unit_end(&unit);

	/* ... to 4K, and back */
	unit_begin_vm(&unit, "6.18");
	region = unit_region(&unit, 16, 64, NULL);
	assert_ok(gmem_vm_restore(unit.vm, fd, NULL, NULL));
	assert_memory_equal(gmem_region_hva(region), bytes, 4 * 65536);
	assert_int_equal(ftruncate(fd, 0), 0);
	assert_ok(gmem_vm_save(unit.vm, fd, NULL, NULL));
	unit_end(&unit);

	unit_begin_vm_pages(&unit, "6.18", 65536);
	region = unit_region(&unit, 1, 4, NULL);
	assert_ok(gmem_vm_restore(unit.vm, fd, NULL, NULL));
	assert_memory_equal(gmem_region_hva(region), bytes, 4 * 65536);
	close(fd);
	free(bytes);
	unit_end(&unit);
}

/* ---- by several threads ---- */

/* Full, every other page, single pages, nothing; enough that threads are started for it */
#define MANY_PAGES 4500

static void fill_many(struct gmem_region *region, uint64_t from)
{
	for (uint64_t i = from; i < MANY_PAGES; i++) {
		char *page = (char *)gmem_region_hva(region) + i * 4096;
		unsigned int part = (unsigned int)(i / 600) % 5;

		if (part == 0 || (part == 1 && i % 2) || (part == 2 && i % 97 == 5))
			memset(page + i * 7 % 4096, (int)(i % 255 + 1), 4096 - i * 7 % 4096);
		if (part == 3)
			page[i] = 0;
	}
}

static char *contents_of(int fd, uint64_t *ret_size)
{
	char *bytes;

	*ret_size = size_of(fd);
	bytes = mmap(NULL, *ret_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	assert_true(bytes != MAP_FAILED);
	return bytes;
}

/* All but the identity, which is random, and what depends on it */
static void check_same_image(int one, int other)
{
	uint64_t size, other_size, at, next;
	char *a = contents_of(one, &size), *b = contents_of(other, &other_size);

	assert_int_equal(size, other_size);
	for (at = 0; at < size; at = next) {
		struct image_record *x = (void *)(a + at), *y = (void *)(b + at);

		next = at + x->size;
		assert_int_equal(y->checksum, gmem_image_checksum(y));
		x->checksum = y->checksum = 0;
		x->id = y->id;
		if (!memcmp(x->kind, gmem_image_kinds[IMAGE_END], 8))
			x->end.checksums = y->end.checksums;
		assert_memory_equal(x, y, x->size);
	}
	munmap(a, size);
	munmap(b, size);
}

static void any_number_of_workers_writes_the_same_image(void **state)
{
	static const struct { uint32_t workers, depth; uint64_t flags; } ways[] = {
		{ 0, 0, 0 }, { 1, 3, 0 }, { 2, 0, 0 }, { 3, 1, 0 }, { 4, 32, 0 }, { 64, 8, 0 }, { 1024, 2, 0 },
		{ 2, 0, GMEM_TRANSFER_NO_RING }, { 4, 0, GMEM_TRANSFER_ALLOW_LOST },
	};
	struct gmem_region *region, *host;
	struct gmem_transfer_result out = { .size = sizeof(out) }, first = out;
	struct gmem_plan *plan;
	struct unit unit;
	int one = -1, fd;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	plan = unit_plan(&unit, GMEM_BACKING_HOST);
	region = unit_region(&unit, 16, MANY_PAGES, NULL);
	host = unit_region(&unit, 9000, MANY_PAGES, plan);
	fill_many(region, 0);
	fill_many(host, 450);
	for (size_t i = 0; i < ARRAY_SIZE(ways); i++) {
		GMEM_OPTS(gmem_transfer_opts, opts, .workers = ways[i].workers, .depth = ways[i].depth,
			  .flags = ways[i].flags);

		fd = new_file();
		assert_ok(gmem_vm_save(unit.vm, fd, &opts, &out));
		assert_int_equal(out.data_bytes + out.zero_bytes, 2 * MANY_PAGES * 4096);
		if (i == 0) {
			one = fd;
			first = out;
			continue;
		}
		assert_int_equal(out.data_bytes, first.data_bytes);
		assert_int_equal(out.file_bytes, first.file_bytes);
		check_same_image(one, fd);
		close(fd);
	}
	close(one);
	gmem_plan_free(plan);
	unit_end(&unit);
}

/* ---- failures of threads ---- */

/* Lent threads, too, until the transfer is done */
static void *lend(void *data)
{
	assert_ok(gmem_transfer_work(data));
	return NULL;
}

static void saving_goes_on_after_a_failure_of_any_thread(void **state)
{
	static const uint64_t pages[] = { 0, 301, 599, 601, 999, 1801, 3001, 3599 };
	GMEM_OPTS(gmem_transfer_opts, opts, .workers = 3);
	struct gmem_region *region;
	struct gmem_transfer *transfer;
	struct unit unit;
	pthread_t thread;
	struct gmem_transfer_result result = { .size = sizeof(result) }, first = result;
	int fd, one = new_file(), alone = new_file(), ret;
	char *hva;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	region = unit_region(&unit, 16, MANY_PAGES, NULL);
	fill_many(region, 0);
	hva = gmem_region_hva(region);
	assert_ok(gmem_vm_save(unit.vm, one, NULL, NULL));
	for (size_t i = 0; i < ARRAY_SIZE(pages); i++) {
		fd = new_file();
		assert_ok(gmem_vm_save_begin(unit.vm, fd, &opts, &transfer));
		assert_int_equal(pthread_create(&thread, NULL, lend, transfer), 0);
		assert_int_equal(mprotect(hva + pages[i] * 4096, 4096, PROT_NONE), 0);
		while ((ret = gmem_transfer_step(transfer, 1)) > 0)
			;
		assert_int_equal(ret, -EFAULT);
		assert_ok(gmem_transfer_get_result(transfer, &result));
		opts.workers = 1;
		assert_int_equal(gmem_vm_save(unit.vm, alone, &opts, &first), -EFAULT);
		opts.workers = 3;
		assert_int_equal(result.data_bytes, first.data_bytes);
		assert_int_equal(mprotect(hva + pages[i] * 4096, 4096, PROT_READ | PROT_WRITE), 0);
		while ((ret = gmem_transfer_step(transfer, 1)) > 0)
			;
		assert_int_equal(ret, 0);
		assert_ok(gmem_transfer_free(transfer));
		assert_int_equal(pthread_join(thread, NULL), 0);
		check_same_image(one, fd);
		close(fd);
	}
	close(one);
	close(alone);
	unit_end(&unit);
}

/* ---- in steps ---- */

static void steps_never_wait_and_may_be_few(void **state)
{
	struct gmem_transfer *transfer;
	struct guest g;
	int fd = new_file(), ret;

	(void)state;
	begin(&g);
	fill(&g, 8);
	for (unsigned steps = 0; steps < 5; steps++) {
		assert_ok(gmem_vm_save_begin(g.unit.vm, fd, NULL, &transfer));
		for (unsigned i = 0; i < steps; i++)
			assert_true(gmem_transfer_step(transfer, 0) >= 0);
		assert_ok(gmem_transfer_free(transfer));
	}
	assert_ok(gmem_vm_save_begin(g.unit.vm, fd, NULL, &transfer));
	while ((ret = gmem_transfer_step(transfer, 0)) > 0)
		;
	assert_int_equal(ret, 0);
	assert_ok(gmem_transfer_free(transfer));

	reboot(&g);
	assert_ok(gmem_vm_restore_begin(g.unit.vm, fd, NULL, &transfer));
	while ((ret = gmem_transfer_step(transfer, 0)) > 0)
		;
	assert_int_equal(ret, 0);
	assert_ok(gmem_transfer_free(transfer));
	check(&g, 8);
	close(fd);
	end(&g);
}

static void a_full_disk_is_waited_for_and_gone_on_with(void **state)
{
	static const struct { enum fake_call call; uint64_t flags; } cases[] = {
		{ FAKE_RING_RESULT, 0 }, { FAKE_WRITE_AT, GMEM_TRANSFER_NO_RING },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		GMEM_OPTS(gmem_transfer_opts, opts, .flags = cases[i].flags);
		struct gmem_transfer *transfer;
		struct guest g;
		int fd = new_file(), ret;

		begin(&g);
		fill(&g, 9);
		assert_ok(gmem_vm_save_begin(g.unit.vm, fd, &opts, &transfer));
		fake_fail_kind(cases[i].call, 1, 1, -ENOSPC);
		while ((ret = gmem_transfer_step(transfer, 1)) > 0)
			;
		assert_int_equal(ret, -ENOSPC);
		assert_non_null(strstr(gmem_last_error(), "ENOSPC"));
		/* the file is no image any more */
		assert_true(gmem_image_verify(fd, NULL, NULL) < 0);
		while ((ret = gmem_transfer_step(transfer, 1)) > 0)
			;
		assert_int_equal(ret, 0);
		assert_ok(gmem_transfer_free(transfer));

		reboot(&g);
		assert_ok(gmem_vm_restore(g.unit.vm, fd, NULL, NULL));
		check(&g, 9);
		close(fd);
		end(&g);
	}
}

static int never(void *data, uint64_t done, uint64_t all)
{
	(void)data;
	(void)done;
	(void)all;
	return 1;
}

static void callbacks_stop_saving_and_restoring(void **state)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .progress = never);
	struct guest g;
	int fd;

	(void)state;
	begin(&g);
	fd = saved(&g, 1);
	assert_int_equal(gmem_vm_save(g.unit.vm, new_file(), &opts, NULL), -ECANCELED);
	assert_int_equal(gmem_vm_restore(g.unit.vm, fd, &opts, NULL), -ECANCELED);
	assert_int_equal(gmem_image_verify(fd, &opts, NULL), -ECANCELED);
	close(fd);
	end(&g);
}

static void every_call_may_fail_and_nothing_leaks(void **state)
{
	struct guest g;
	int fd, ret;

	(void)state;
	begin(&g);
	fd = saved(&g, 12);
	for (unsigned n = 1;; n++) {
		struct fake_snapshot *before = fake_snapshot();
		bool struck;
		int out = new_file();

		fake_fail_call(n, -ENOMEM);
		ret = gmem_vm_save(g.unit.vm, out, NULL, NULL);
		struck = fake_fail_struck();
		assert_true(fake_equal(before));
		/* it is whole if the call says so, and only then */
		assert_int_equal(gmem_image_verify(out, NULL, NULL) == 0, ret == 0);
		close(out);
		if (!struck)
			break;
	}
	assert_int_equal(ret, 0);

	for (unsigned n = 1;; n++) {
		struct fake_snapshot *before = fake_snapshot();
		bool struck;

		soil(&g, 1);
		fake_fail_call(n, -ENOMEM);
		ret = gmem_vm_restore(g.unit.vm, fd, NULL, NULL);
		struck = fake_fail_struck();
		assert_true(fake_equal(before));
		if (ret == 0)
			check(&g, 12);
		if (!struck)
			break;
	}
	assert_int_equal(ret, 0);
	close(fd);
	end(&g);
}

/* ---- the target ---- */

static void targets_that_differ_are_refused(void **state)
{
	GMEM_OPTS(gmem_transfer_opts, leave, .flags = GMEM_TRANSFER_LEAVE_REST);
	struct gmem_region *more;
	struct guest g;
	int fd;

	(void)state;
	begin(&g);
	fd = saved(&g, 2);
	more = unit_region(&g.unit, 4000, 3, NULL);
	memset(gmem_region_hva(more), 7, 3 * 4096);
	soil(&g, 3);
	assert_refused(-EEXIST, "0xfa0000", gmem_vm_restore(g.unit.vm, fd, NULL, NULL));
	assert_int_equal(*(char *)gmem_region_hva(g.regions[0]), 3);
	assert_ok(gmem_vm_restore(g.unit.vm, fd, &leave, NULL));
	check(&g, 2);
	assert_int_equal(*(char *)gmem_region_hva(more), 7);
	assert_ok(gmem_region_remove(more));

	assert_ok(gmem_region_remove(g.regions[2]));
	assert_refused(-ENOENT, "0x7d0000", gmem_vm_restore(g.unit.vm, fd, &leave, NULL));
	g.regions[2] = unit_region(&g.unit, HOST_PAGE, HOST_PAGES - 1, NULL);
	assert_refused(-ENOENT, "0x80f000", gmem_vm_restore(g.unit.vm, fd, NULL, NULL));
	close(fd);
	end(&g);
}

static int steps_of(struct gmem_transfer *transfer)
{
	int ret;

	do
		ret = gmem_transfer_step(transfer, 1);
	while (ret > 0);
	return ret;
}

static void a_target_that_lacks_memory_is_refused_as_often_as_asked(void **state)
{
	struct gmem_transfer *transfer;
	struct guest g;
	int fd;

	(void)state;
	begin(&g);
	fd = saved(&g, 2);
	assert_ok(gmem_region_remove(g.regions[2]));
	assert_ok(gmem_vm_restore_begin(g.unit.vm, fd, NULL, &transfer));
	for (int i = 0; i < 3; i++)
		assert_refused(-ENOENT, "no memory at 0x", steps_of(transfer));
	assert_ok(gmem_transfer_free(transfer));
	close(fd);
	end(&g);
}

/* The caller took the memory away, but not the region. */
static void memory_that_is_left_alone_may_be_unmapped(void **state)
{
	GMEM_OPTS(gmem_transfer_opts, leave, .flags = GMEM_TRANSFER_LEAVE_REST);
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_HVA);
	struct gmem_region *more;
	struct guest g;
	int fd, out = new_file();

	(void)state;
	begin(&g);
	fd = saved(&g, 2);
	opts.plan = g.host;
	opts.hva = unit_free_address(&g.unit, 3);
	assert_ok(gmem_region_add(g.unit.vm, PAGES(&g.unit, 4000), PAGES(&g.unit, 3), &opts, &more));
	soil(&g, 3);
	assert_ok(gmem_vm_restore(g.unit.vm, fd, &leave, NULL));
	check(&g, 2);
	assert_refused(-EEXIST, "the image does not have", gmem_vm_restore(g.unit.vm, fd, NULL, NULL));
	assert_refused(-EFAULT, "nothing was mapped there when the transfer began",
		       gmem_vm_save(g.unit.vm, out, NULL, NULL));
	assert_int_equal(size_of(out), 0);
	assert_ok(gmem_region_remove(more));
	close(out);
	close(fd);
	end(&g);
}

/* A run of data that begins in one region and ends in the next */
static void what_is_stored_again_after_a_failure_is_counted_once(void **state)
{
	GMEM_OPTS(gmem_transfer_result, result);
	struct gmem_transfer *transfer;
	struct guest g;
	int fd = new_file();

	(void)state;
	begin(&g);
	soil(&g, 5);
	assert_ok(gmem_vm_save(g.unit.vm, fd, NULL, NULL));
	reboot(&g);
	assert_ok(gmem_vm_restore_begin(g.unit.vm, fd, NULL, &transfer));
	memset(gmem_region_hva(g.regions[0]), 1, gmem_region_size(g.regions[0]));
	fake_set_file("/proc/meminfo", "MemAvailable: 0 kB\n");
	for (int i = 0; i < 3; i++)
		assert_refused(-ENOMEM, "do not fit", steps_of(transfer));
	fake_set_file("/proc/meminfo", "MemAvailable: 999999999 kB\n");
	assert_ok(steps_of(transfer));
	assert_ok(gmem_transfer_get_result(transfer, &result));
	assert_int_equal(result.data_bytes, total(&g));
	assert_ok(gmem_transfer_free(transfer));
	close(fd);
	end(&g);
}

static void regions_cannot_be_removed_during_a_transfer(void **state)
{
	struct gmem_transfer *transfer;
	struct guest g;
	int fd = new_file();

	(void)state;
	begin(&g);
	fill(&g, 1);
	assert_ok(gmem_vm_save_begin(g.unit.vm, fd, NULL, &transfer));
	assert_refused(-EBUSY, "gmem_vm_save", gmem_region_remove(g.regions[0]));
	assert_ok(gmem_transfer_free(transfer));
	assert_ok(gmem_vm_restore_begin(g.unit.vm, fd, NULL, &transfer));
	assert_refused(-EBUSY, "gmem_vm_restore", gmem_region_remove(g.regions[1]));
	assert_ok(gmem_transfer_free(transfer));
	close(fd);
	end(&g);
}

static void private_ranges_are_declared_and_left_out(void **state)
{
	GMEM_OPTS(gmem_transfer_opts, omit, .flags = GMEM_TRANSFER_OMIT_PRIVATE);
	struct gmem_transfer_result result = { .size = sizeof(result) };
	struct gmem_region *region;
	struct gmem_plan *plan;
	struct unit unit;
	char *hva;
	int fd = new_file();

	(void)state;
	unit_begin_vm(&unit, "7.3-swp-t1");
	plan = unit_plan(&unit, GMEM_BACKING_PRIVATE);
	region = unit_region(&unit, 0, 64, plan);
	hva = gmem_region_hva(region);
	memset(hva, 1, 64 * 4096);
	assert_ok(gmem_vm_convert(unit.vm, 10 * 4096, 20 * 4096, GMEM_STATE_PRIVATE, NULL, NULL));

	assert_refused(-EACCES, "0xa000", gmem_vm_save(unit.vm, fd, NULL, NULL));
	assert_ok(gmem_vm_save(unit.vm, fd, &omit, &result));
	assert_int_equal(result.private_bytes, 20 * 4096);
	assert_int_equal(result.data_bytes, 44 * 4096);
	assert_ok(gmem_image_verify(fd, NULL, &result));
	assert_int_equal(result.private_bytes, 20 * 4096);

	memset(hva, 2, 64 * 4096);
	assert_refused(-EACCES, "private", gmem_vm_restore(unit.vm, fd, NULL, NULL));
	assert_ok(gmem_vm_restore(unit.vm, fd, &omit, &result));
	for (unsigned page = 0; page < 64; page++)
		assert_int_equal(hva[page * 4096 + 5], page >= 10 && page < 30 ? 2 : 1);

	/* memory that the image has as shared must be shared here, too */
	assert_ok(gmem_vm_convert(unit.vm, 40 * 4096, 4096, GMEM_STATE_PRIVATE, NULL, NULL));
	assert_refused(-EACCES, "0x28000", gmem_vm_restore(unit.vm, fd, &omit, NULL));
	assert_refused(-EACCES, "private", gmem_vm_load(unit.vm, 35 * 4096, fd, 0, 8 * 4096, NULL, NULL));
	close(fd);
	gmem_plan_free(plan);
	unit_end(&unit);
}

/* ---- damage ---- */

static void missing_block_is_found(void **state)
{
	struct guest g;
	uint64_t size;
	int fd;

	(void)state;
	begin(&g);
	fd = saved(&g, 6);
	size = size_of(fd);
	for (uint64_t cut = 0; cut < size; cut += cut % MIB < 16384 ? 2048 : 114688) {
		int err;

		assert_int_equal(ftruncate(fd, (off_t)size), 0);
		assert_int_equal(ftruncate(fd, (off_t)cut), 0);
		err = gmem_image_verify(fd, NULL, NULL);
		assert_true(err == -ENODATA || err == -EBADMSG);
		assert_int_equal(gmem_vm_restore(g.unit.vm, fd, NULL, NULL), err);
		close(fd);
		fill(&g, 6);
		fd = saved(&g, 6);
	}
	close(fd);
	end(&g);
}

static void turned_bit_is_found(void **state)
{
	GMEM_OPTS(gmem_transfer_opts, verify, .flags = GMEM_TRANSFER_VERIFY);
	struct guest g;
	uint64_t size, at;
	char old, new;
	int fd;

	(void)state;
	begin(&g);
	fd = saved(&g, 7);
	size = size_of(fd);
	soil(&g, 0x33);
	for (at = 0; at < size; at += at % MIB < 200 ? 1 : 33331) {
		assert_int_equal(pread(fd, &old, 1, (off_t)at), 1);
		new = (char)(old ^ (1 << at % 8));
		assert_int_equal(pwrite(fd, &new, 1, (off_t)at), 1);
		verify.workers = (uint32_t)(at % 3);
		assert_true(gmem_vm_restore(g.unit.vm, fd, &verify, NULL) < 0);
		assert_int_equal(pwrite(fd, &old, 1, (off_t)at), 1);
	}
	/* none of it has touched the guest */
	for (size_t i = 0; i < 3; i++)
		for (at = 0; at < gmem_region_size(g.regions[i]); at++)
			assert_int_equal(((char *)gmem_region_hva(g.regions[i]))[at], 0x33);
	assert_ok(gmem_vm_restore(g.unit.vm, fd, &verify, NULL));
	check(&g, 7);
	close(fd);
	end(&g);
}

static void workers_refuse_what_one_refuses(void **state)
{
	static const uint64_t at[] = { 0, 20, 24, 4096, 4100, 8192 + 16, MIB, MIB + 24, MIB + 5000, 2 * MIB + 40, 2 * MIB + 99999 };
	GMEM_OPTS(gmem_transfer_opts, opts, .workers = 4);
	GMEM_OPTS(gmem_transfer_result, one);
	GMEM_OPTS(gmem_transfer_result, many);
	char sentence[512], old, new;
	struct guest g;
	int fd, err;

	(void)state;
	begin(&g);
	soil(&g, 7);
	fd = new_file();
	assert_ok(gmem_vm_save(g.unit.vm, fd, NULL, NULL));
	for (size_t i = 0; i < 2 * ARRAY_SIZE(at); i++) {
		uint64_t where = at[i / 2];

		if (i == 1)
			fake_cache_files();
		if (where >= size_of(fd))
			break;
		assert_int_equal(pread(fd, &old, 1, (off_t)where), 1);
		new = old ^ 4;
		assert_int_equal(pwrite(fd, &new, 1, (off_t)where), 1);
		err = gmem_vm_restore(g.unit.vm, fd, NULL, &one);
		snprintf(sentence, sizeof(sentence), "%s", gmem_last_error());
		assert_true(err < 0);
		assert_int_equal(gmem_vm_restore(g.unit.vm, fd, &opts, &many), err);
		assert_string_equal(gmem_last_error(), sentence);
		assert_int_equal(many.data_bytes, one.data_bytes);
		assert_int_equal(many.zero_bytes, one.zero_bytes);
		assert_int_equal(pwrite(fd, &old, 1, (off_t)where), 1);
	}
	assert_ok(gmem_vm_restore(g.unit.vm, fd, &opts, &many));
	assert_int_equal(many.data_bytes, total(&g));
	close(fd);
	end(&g);
}

static void an_older_image_underneath_does_not_show_through(void **state)
{
	struct guest g;
	static char unit[IMAGE_UNIT];
	int old, new;

	(void)state;
	begin(&g);
	old = saved(&g, 1);
	fill(&g, 1);
	new = new_file();
	assert_ok(gmem_vm_save(g.unit.vm, new, NULL, NULL));
	/* the second unit of the new one never reached the disk */
	assert_int_equal(pread(old, unit, sizeof(unit), IMAGE_UNIT), sizeof(unit));
	assert_int_equal(pwrite(new, unit, sizeof(unit), IMAGE_UNIT), sizeof(unit));
	assert_int_equal(gmem_image_verify(new, NULL, NULL), -EBADMSG);
	assert_non_null(strstr(gmem_last_error(), "another image"));
	close(old);
	close(new);
	end(&g);
}

/* The checksum is right: only the contents are wrong. */
static void change(int fd, uint64_t at, void (*edit)(struct image_record *))
{
	static char unit[IMAGE_UNIT] __attribute__((aligned(4096)));
	struct image_record *record = (void *)unit;

	assert_true(pread(fd, unit, sizeof(unit), (off_t)at) >= (ssize_t)sizeof(*record));
	edit(record);
	record->checksum = gmem_image_checksum(record);
	assert_int_equal(pwrite(fd, unit, record->size, (off_t)at), record->size);
}

static struct image_region *regions(struct image_record *r)
{
	return (void *)(r + 1);
}

static struct image_run *runs(struct image_record *r)
{
	return (void *)(r + 1);
}

static void later_version(struct image_record *r) { r->version = 3; }
static void many_regions(struct image_record *r) { r->head.regions = UINT64_MAX; }
static void more_regions(struct image_record *r) { r->head.regions = 4; }
static void fewer_regions(struct image_record *r) { r->head.regions = 2; }
static void many_privates(struct image_record *r) { r->head.privates = UINT64_MAX; }
static void odd_page(struct image_record *r) { r->head.page_size = 4097; }
static void other_number(struct image_record *r) { r->number++; }
static void other_id(struct image_record *r) { r->id++; }
static void other_kind(struct image_record *r) { r->kind[4] = 'X'; }
static void no_kind(struct image_record *r) { r->kind[0] = 'X'; }
static void reserved_field(struct image_record *r) { r->version = 1; }
static void many_entries(struct image_record *r) { r->count = UINT32_MAX; }
static void overlap(struct image_record *r) { regions(r)[1].gpa = regions(r)[0].gpa; }
static void unaligned(struct image_record *r) { regions(r)[0].gpa++; }
static void empty(struct image_record *r) { regions(r)[0].size = 0; }
static void wraps(struct image_record *r) { regions(r)[2].size = 0 - regions(r)[2].gpa; }
static void no_backing(struct image_record *r) { regions(r)[0].backing = 77; }
static void larger_region(struct image_record *r) { regions(r)[2].size += 4096; }
static void far_base(struct image_record *r) { r->data.base = UINT64_MAX - 4095; }
static void other_base(struct image_record *r) { r->data.base += 4096 * 1500; }
static void low_base(struct image_record *r) { r->data.base = 0; }
static void odd_base(struct image_record *r) { r->data.base++; }
static void far_run(struct image_record *r) { runs(r)[r->count - 1].first = UINT32_MAX; }
static void long_run(struct image_record *r) { runs(r)[0].count = UINT32_MAX; }
static void empty_run(struct image_record *r) { runs(r)[0].count = 0; }
static void backward_run(struct image_record *r) { runs(r)[1].first = runs(r)[0].first; }
static void fewer_runs(struct image_record *r) { r->count--; }

static void contradictory_records_are_refused(void **state)
{
	static const struct { uint64_t at; void (*edit)(struct image_record *); int err; } lies[] = {
		{ 0, later_version, -EOPNOTSUPP }, { 0, many_regions, -EBADMSG },
		{ 0, more_regions, -EBADMSG }, { 0, fewer_regions, -EBADMSG },
		{ 0, many_privates, -EACCES }, { 0, odd_page, -EBADMSG }, { 0, other_number, -EBADMSG },
		{ 0, other_id, -EBADMSG }, { 0, other_kind, -EBADMSG },
		{ 4096, other_number, -EBADMSG }, { 4096, other_id, -EBADMSG },
		{ 4096, other_kind, -EOPNOTSUPP }, { 4096, no_kind, -EBADMSG }, { 4096, reserved_field, -EBADMSG },
		{ 4096, many_entries, -EBADMSG }, { 4096, overlap, -EBADMSG },
		{ 4096, unaligned, -EBADMSG }, { 4096, empty, -EBADMSG }, { 4096, wraps, -EBADMSG },
		{ 4096, no_backing, -EBADMSG }, { 4096, larger_region, -ENOENT },
		{ 8192, far_base, -EBADMSG }, { 8192, other_base, -EBADMSG }, { 8192, low_base, -EBADMSG },
		{ 8192, odd_base, -EBADMSG }, { 8192, far_run, -EBADMSG }, { 8192, long_run, -EBADMSG },
		{ 8192, empty_run, -EBADMSG }, { 8192, backward_run, -EBADMSG },
		{ 8192, fewer_runs, -EBADMSG }, { 8192, many_entries, -EBADMSG },
		{ 8192, other_number, -EBADMSG }, { 8192, reserved_field, -EBADMSG },
	};
	struct guest g;

	(void)state;
	begin(&g);
	for (size_t i = 0; i < ARRAY_SIZE(lies); i++) {
		int fd = saved(&g, 4);

		change(fd, lies[i].at, lies[i].edit);
		assert_int_equal(gmem_vm_restore(g.unit.vm, fd, NULL, NULL), lies[i].err);
		close(fd);
	}
	end(&g);
}

static void other_files_are_no_images(void **state)
{
	GMEM_OPTS(gmem_transfer_opts, far, .image_offset = 1 << 30);
	GMEM_OPTS(gmem_transfer_opts, sync, .flags = GMEM_TRANSFER_SYNC);
	GMEM_OPTS(gmem_transfer_opts, verify, .flags = GMEM_TRANSFER_VERIFY);
	static char bytes[3 * 4096];
	struct guest g;
	int fd = new_file(), ends[2];

	(void)state;
	begin(&g);
	assert_refused(-ENODATA, "0 records", gmem_vm_restore(g.unit.vm, fd, NULL, NULL));
	assert_refused(-ENODATA, "0 records", gmem_vm_restore(g.unit.vm, fd, &far, NULL));
	assert_int_equal(write(fd, bytes, sizeof(bytes)), sizeof(bytes));
	assert_refused(-ENOMSG, "no image", gmem_vm_restore(g.unit.vm, fd, NULL, NULL));
	memset(bytes, 'x', sizeof(bytes));
	assert_int_equal(pwrite(fd, bytes, sizeof(bytes), 0), sizeof(bytes));
	assert_refused(-ENOMSG, "bytes 78 78 78 78", gmem_vm_restore(g.unit.vm, fd, NULL, NULL));
	assert_refused(-ENOMSG, "no image", gmem_image_verify(fd, NULL, NULL));
	assert_refused(-ENOMSG, "no image", gmem_image_info(fd, NULL, NULL, NULL, 0));
	assert_refused(-EINVAL, "bits", gmem_vm_restore(g.unit.vm, fd, &sync, NULL));
	assert_refused(-EINVAL, "bits", gmem_vm_save(g.unit.vm, fd, &verify, NULL));
	assert_refused(-EINVAL, "bits", gmem_image_verify(fd, &verify, NULL));
	assert_int_equal(pipe(ends), 0);
	assert_refused(-ESPIPE, "once", gmem_vm_restore(g.unit.vm, ends[0], &verify, NULL));
	close(ends[0]);
	close(ends[1]);
	assert_int_equal(fcntl(fd, F_SETFL, O_APPEND), 0);
	assert_refused(-EINVAL, "O_APPEND", gmem_vm_save(g.unit.vm, fd, NULL, NULL));
	assert_refused(-EBADF, "EBADF", gmem_vm_save(g.unit.vm, -1, NULL, NULL));
	close(fd);
	end(&g);
}

/* What an image could begin with is an image that is not complete, or that is damaged. */
static void little_of_a_file_tells_what_it_is(void **state)
{
	static const struct { const char *bytes; int err; } files[] = {
		{ "G", -ENODATA }, { "GMEMHEAD", -ENODATA }, { "GMEMHEAD and more", -ENODATA },
		{ "GMEMREGN", -EBADMSG }, { "GMEMX", -EBADMSG },
		{ "g", -ENOMSG }, { "GMEN", -ENOMSG }, { "hello\n", -ENOMSG }, { "QEVM\0\0\0\3", -ENOMSG },
	};

	(void)state;
	fake_boot("6.18");
	for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
		int fd = new_file(), size = (int)strlen(files[i].bytes);

		assert_int_equal(write(fd, files[i].bytes, (size_t)size), size);
		assert_int_equal(gmem_image_verify(fd, NULL, NULL), files[i].err);
		assert_int_equal(gmem_image_info(fd, NULL, NULL, NULL, 0), files[i].err);
		close(fd);
	}
	assert_int_equal(fake_halt(), 0);
}

/* ---- pages that the hardware lost ---- */

struct lost {
	unsigned count;
	struct image_range ranges[8];
};

static void hear_lost(void *data, uint64_t gpa, uint64_t size)
{
	struct lost *lost = data;

	assert_true(lost->count < 8);
	lost->ranges[lost->count++] = (struct image_range){ gpa, size };
}

static void check_lost(struct lost *lost, const struct guest *g)
{
	assert_int_equal(lost->count, 2);
	assert_int_equal(lost->ranges[0].gpa, PAGES(&g->unit, HOST_PAGE + 2));
	assert_int_equal(lost->ranges[0].size, 2 * g->unit.page);
	assert_int_equal(lost->ranges[1].gpa, PAGES(&g->unit, HOST_PAGE + HOST_PAGES - 1));
	assert_int_equal(lost->ranges[1].size, g->unit.page);
	lost->count = 0;
}

/*
 * The real kernel cannot copy what is protected, and the scripted one says why: the pages 2,
 * 3 and the last of the host memory.
 */
static void poison(struct guest *g)
{
	char *hva = gmem_region_hva(g->regions[2]);

	memset(hva, 3, HOST_PAGES * g->unit.page);
	assert_int_equal(mprotect(hva + 2 * g->unit.page, 2 * g->unit.page, PROT_NONE), 0);
	assert_int_equal(mprotect(hva + (HOST_PAGES - 1) * g->unit.page, g->unit.page, PROT_NONE), 0);
	fake_fail_kind(FAKE_MADVISE, 0, UINT_MAX, -EHWPOISON);
}

static void lost_pages_are_left_out_by_wish_and_named(void **state)
{
	struct lost lost = { 0 };
	GMEM_OPTS(gmem_transfer_opts, allow, .flags = GMEM_TRANSFER_ALLOW_LOST, .lost = hear_lost,
		  .lost_data = &lost);
	GMEM_OPTS(gmem_transfer_opts, verify, .flags = GMEM_TRANSFER_VERIFY);
	struct gmem_transfer_result out = { .size = sizeof(out) }, in = out;
	char text[64], *hva;
	struct guest g;
	int fd = new_file();

	(void)state;
	begin(&g);
	fill(&g, 5);
	poison(&g);
	hva = gmem_region_hva(g.regions[2]);
	snprintf(text, sizeof(text), "gpa 0x%llx, hva 0x%llx",
		 (unsigned long long)PAGES(&g.unit, HOST_PAGE + 2),
		 (unsigned long long)(uintptr_t)hva + 2 * g.unit.page);
	assert_refused(-EHWPOISON, text, gmem_vm_save(g.unit.vm, fd, NULL, NULL));
	assert_non_null(strstr(gmem_last_error(), "the page, 0x1000 bytes"));

	assert_ok(gmem_vm_save(g.unit.vm, fd, &allow, &out));
	check_lost(&lost, &g);
	assert_int_equal(out.lost_bytes, 3 * g.unit.page);
	assert_int_equal(out.data_bytes + out.zero_bytes + out.lost_bytes, total(&g));
	fake_fail_struck();

	assert_refused(-EHWPOISON, "has no contents for gpa 0x7d2000, 0x2000 bytes",
		       gmem_image_verify(fd, NULL, NULL));
	assert_ok(gmem_image_verify(fd, &allow, &in));
	check_lost(&lost, &g);
	assert_int_equal(in.lost_bytes, out.lost_bytes);
	assert_int_equal(in.zero_bytes, out.zero_bytes);
	assert_int_equal(in.data_bytes, out.data_bytes);

	reboot(&g);
	soil(&g, 9);
	hva = gmem_region_hva(g.regions[2]);
	assert_refused(-EHWPOISON, "GMEM_TRANSFER_ALLOW_LOST", gmem_vm_restore(g.unit.vm, fd, &verify, NULL));
	assert_int_equal(*(char *)gmem_region_hva(g.regions[0]), 9);
	assert_int_equal(gmem_vm_restore(g.unit.vm, fd, NULL, NULL), -EHWPOISON);
	allow.flags |= GMEM_TRANSFER_VERIFY;
	assert_ok(gmem_vm_restore(g.unit.vm, fd, &allow, &in));
	check_lost(&lost, &g);
	assert_int_equal(in.lost_bytes, out.lost_bytes);
	assert_int_equal(in.zero_bytes, out.zero_bytes);
	for (size_t i = 0; i < HOST_PAGES; i++)
		assert_int_equal(hva[i * g.unit.page + 7], i == 2 || i == 3 || i == HOST_PAGES - 1 ? 0 : 3);
	close(fd);
	end(&g);
}

/* In units that are full, in steps, and over holes */
static void lost_pages_have_records_wherever_they_come(void **state)
{
	(void)state;
	for (uint64_t first = 240; first < 262; first++) {
		struct lost lost = { 0 };
		GMEM_OPTS(gmem_transfer_opts, allow, .flags = GMEM_TRANSFER_ALLOW_LOST,
			  .lost = hear_lost, .lost_data = &lost, .workers = (uint32_t)first % 3);
		struct gmem_transfer_result in = { .size = sizeof(in) };
		int fd = new_file();
		struct guest g;
		char *hva;

		begin(&g);
		hva = gmem_region_hva(g.regions[1]);
		memset(hva, 6, HIGH_PAGES * g.unit.page);
		assert_int_equal(mprotect(hva + first * g.unit.page, g.unit.page, PROT_NONE), 0);
		fake_fail_kind(FAKE_MADVISE, 0, UINT_MAX, -EHWPOISON);
		assert_ok(gmem_vm_save(g.unit.vm, fd, &allow, NULL));
		fake_fail_struck();
		lost.count = 0;
		assert_ok(gmem_image_verify(fd, &allow, &in));
		assert_int_equal(lost.count, 1);
		assert_int_equal(lost.ranges[0].gpa, gmem_region_gpa(g.regions[1]) + first * g.unit.page);
		assert_int_equal(in.data_bytes, (HIGH_PAGES - 1) * g.unit.page);
		assert_int_equal(in.lost_bytes, g.unit.page);
		close(fd);
		end(&g);
	}
}

/* The file becomes shorter once @from bytes are done. */
struct cut {
	int fd;
	uint64_t from, size;
};

static int cut_short(void *data, uint64_t done, uint64_t total)
{
	struct cut *cut = data;

	(void)total;
	if (done >= cut->from)
		assert_int_equal(ftruncate(cut->fd, (off_t)cut->size), 0);
	return 0;
}

/* Guest pages look like records of 4 GiB, for who takes one for what was there before. */
static void fill_with_records(struct guest *g)
{
	for (size_t i = 0; i < 3; i++)
		for (uint64_t at = 0; at < gmem_region_size(g->regions[i]); at += 4096) {
			struct image_record *record = (void *)((char *)gmem_region_hva(g->regions[i]) + at);

			memcpy(record->kind, gmem_image_kinds[IMAGE_DATA], sizeof(record->kind));
			record->size = 0xfffff000;
		}
}

/* What has been read before is there. */
static void a_file_that_becomes_shorter_has_no_end(void **state)
{
	static const uint64_t engines[] = { 0, GMEM_TRANSFER_NO_RING };
	int whole = new_file();
	struct guest g;
	uint64_t size;

	(void)state;
	begin(&g);
	fill_with_records(&g);
	assert_ok(gmem_vm_save(g.unit.vm, whole, NULL, NULL));
	size = size_of(whole);
	for (unsigned i = 0; i < 8; i++) {
		for (uint64_t left = 0; left < size; left += left < size / MIB * MIB ? MIB : 7 * 4096) {
			struct cut cut = { .fd = new_file(), .from = i / 4 ? size - 4096 : 1, .size = left };
			GMEM_OPTS(gmem_transfer_opts, opts, .flags = engines[i % 2], .workers = 1 + i / 2 % 2,
				  .progress = cut_short, .progress_data = &cut);
			off_t from = 0;
			int err;

			assert_int_equal(sendfile(cut.fd, whole, &from, size), size);
			err = gmem_image_verify(cut.fd, &opts, NULL);
			assert_true(err == -ENODATA || err == 0);
			close(cut.fd);
		}
	}
	close(whole);
	end(&g);
}

/* Records of a unit in which one thread goes on where several could not */
static void a_unit_is_read_by_one_thread_and_by_several(void **state)
{
	static const uint64_t engines[] = { 0, GMEM_TRANSFER_NO_RING };

	(void)state;
	for (unsigned i = 0; i < 4; i++) {
		GMEM_OPTS(gmem_transfer_opts, opts, .flags = engines[i % 2] | GMEM_TRANSFER_ALLOW_LOST,
			  .workers = 1 + i / 2);
		int fd = new_file();
		struct guest g;
		char *hva;

		begin(&g);
		if (i % 2 == 0)
			fake_cache_files();
		/* data, a lost page, and data again */
		poison(&g);
		assert_ok(gmem_vm_save(g.unit.vm, fd, &opts, NULL));
		fake_fail_struck();
		assert_int_equal(pwrite(fd, "", 1, (off_t)size_of(fd) - 3 * 4096), 1);
		assert_refused(-EBADMSG, "record 4 of the image: its checksum", gmem_image_verify(fd, &opts, NULL));
		assert_int_equal(pwrite(fd, "\3", 1, (off_t)size_of(fd) - 3 * 4096), 1);
		assert_ok(gmem_image_verify(fd, &opts, NULL));

		hva = gmem_region_hva(g.regions[2]);
		for (unsigned page = 0; page < 2; page++) {
			char *bad = hva + (page ? 60 : 1) * g.unit.page;

			assert_int_equal(mprotect(hva, HOST_PAGES * g.unit.page, PROT_READ | PROT_WRITE), 0);
			assert_int_equal(mprotect(bad, g.unit.page, PROT_NONE), 0);
			assert_int_equal(gmem_vm_restore(g.unit.vm, fd, &opts, NULL), -EFAULT);
		}
		assert_int_equal(mprotect(hva, HOST_PAGES * g.unit.page, PROT_READ | PROT_WRITE), 0);
		assert_ok(gmem_vm_restore(g.unit.vm, fd, &opts, NULL));
		close(fd);
		end(&g);
	}
}

/* Found while it was there, and lost before it was copied */
static void pages_lost_after_they_were_found_have_records(void **state)
{
	(void)state;
	for (uint32_t workers = 1; workers < 4; workers++) {
		struct lost lost = { 0 };
		GMEM_OPTS(gmem_transfer_opts, allow, .flags = GMEM_TRANSFER_ALLOW_LOST,
			  .lost = hear_lost, .lost_data = &lost, .workers = workers, .depth = 2);
		struct gmem_transfer_result in = { .size = sizeof(in) };
		struct gmem_transfer *transfer;
		int fd = new_file(), ret;
		struct guest g;
		char *hva;

		begin(&g);
		hva = gmem_region_hva(g.regions[1]);
		memset(hva, 6, HIGH_PAGES * g.unit.page);
		assert_ok(gmem_vm_save_begin(g.unit.vm, fd, &allow, &transfer));
		while (gmem_transfer_get_result(transfer, &in) == 0 && in.data_bytes == 0)
			assert_int_equal(gmem_transfer_step(transfer, 1), GMEM_TRANSFER_MORE);
		assert_int_equal(mprotect(hva + 300 * g.unit.page, 3 * g.unit.page, PROT_NONE), 0);
		fake_fail_kind(FAKE_MADVISE, 0, UINT_MAX, -EHWPOISON);
		while ((ret = gmem_transfer_step(transfer, 1)) > 0)
			;
		assert_int_equal(ret, 0);
		fake_fail_struck();
		assert_ok(gmem_transfer_free(transfer));
		assert_int_equal(lost.count, 3);
		lost.count = 0;
		assert_ok(gmem_image_verify(fd, &allow, &in));
		assert_int_equal(in.data_bytes, (HIGH_PAGES - 3) * g.unit.page);
		assert_int_equal(in.lost_bytes, 3 * g.unit.page);
		close(fd);
		end(&g);
	}
}

/* ---- what it costs ---- */

/* An image that a test writes record by record, with checksums that are right */
struct made {
	int fd;
	uint64_t number;
	uint32_t checksums;
	union {
		struct image_record record;
		char bytes[IMAGE_UNIT];
	} *unit;
};

static void make(struct made *made)
{
	*made = (struct made){ .fd = new_file(), .unit = calloc(1, sizeof(*made->unit)) };
	assert_non_null(made->unit);
}

static struct image_record *next_record(struct made *made, enum image_kind kind)
{
	memset(made->unit, 0, sizeof(*made->unit));
	memcpy(made->unit->record.kind, gmem_image_kinds[kind], 8);
	return &made->unit->record;
}

static void put_record(struct made *made, uint32_t size)
{
	struct image_record *record = &made->unit->record;

	record->id = 7;
	record->number = made->number++;
	record->size = size;
	record->checksum = gmem_image_checksum(record);
	made->checksums = gmem_crc32c(made->checksums, &record->checksum, 4);
	assert_int_equal(write(made->fd, record, size), size);
}

static void put_head(struct made *made, uint64_t region_count, uint64_t privates)
{
	struct image_record *record = next_record(made, IMAGE_HEAD);

	record->version = IMAGE_VERSION;
	record->head.page_size = 4096;
	record->head.regions = region_count;
	record->head.privates = privates;
	put_record(made, 4096);
}

static void put_region(struct made *made, uint64_t gpa, uint64_t size)
{
	struct image_record *record = next_record(made, IMAGE_REGIONS);

	record->count = 1;
	*regions(record) = (struct image_region){ .gpa = gpa, .size = size,
						  .backing = GMEM_BACKING_HOST };
	put_record(made, 4096);
}

static struct image_elsewhere *elsewhere(struct image_record *r)
{
	return (void *)(r + 1);
}

/* Regions of one page each without contents, one in two pages from @gpa on */
static void put_elsewhere(struct made *made, uint64_t gpa, uint32_t count,
			  void (*edit)(struct image_record *))
{
	struct image_record *record = next_record(made, IMAGE_ELSEWHERE);

	record->count = count;
	for (uint32_t i = 0; i < count; i++)
		elsewhere(record)[i] = (struct image_elsewhere){
			.gpa = gpa + i * 8192, .size = 4096, .kind = GMEM_KIND_DEVICE,
		};
	if (edit)
		edit(record);
	put_record(made, (uint32_t)((64 + count * 32 + 4095) / 4096 * 4096));
}

/* @count private pages from gpa 0 on, one in @every, in records that end with their unit */
static void put_privates(struct made *made, uint64_t count, unsigned every)
{
	for (uint64_t done = 0; done < count;) {
		uint64_t room = IMAGE_UNIT - (uint64_t)lseek(made->fd, 0, SEEK_CUR) % IMAGE_UNIT;
		uint64_t now = count - done < (room - 64) / 16 ? count - done : (room - 64) / 16;
		struct image_record *record = next_record(made, IMAGE_PRIVATE);
		struct image_range *ranges = (void *)(record + 1);

		record->count = (uint32_t)now;
		for (uint64_t i = 0; i < now; i++)
			ranges[i] = (struct image_range){ (done + i) * every * 4096, 4096 };
		done += now;
		put_record(made, (uint32_t)((64 + now * 16 + 4095) / 4096 * 4096));
	}
}

static void put_end(struct made *made)
{
	struct image_record *record = next_record(made, IMAGE_END);

	record->end.checksums = made->checksums;
	put_record(made, 4096);
	free(made->unit);
}

/* Private pages from @page on, one in two; the first touches what is private below it. */
static void put_more_privates(struct made *made, uint64_t page, uint32_t count)
{
	struct image_record *record = next_record(made, IMAGE_PRIVATE);
	struct image_range *ranges = (void *)(record + 1);

	record->count = count;
	for (uint32_t i = 0; i < count; i++)
		ranges[i] = (struct image_range){ (page + 2 * i) * 4096, 4096 };
	put_record(made, 4096);
}

static void a_list_that_found_no_memory_is_read_again(void **state)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .flags = GMEM_TRANSFER_OMIT_PRIVATE |
		  GMEM_TRANSFER_LEAVE_REST);
	GMEM_OPTS(gmem_transfer_result, result);
	struct gmem_transfer *transfer;
	struct made made;
	struct unit unit;
	bool struck;
	int ret;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	unit_region(&unit, 0, 64, NULL);
	make(&made);
	put_head(&made, 1, 11);
	put_region(&made, 0, 64 * 4096);
	put_elsewhere(&made, 1 << 24, 5, NULL);
	put_privates(&made, 1, 1);
	put_more_privates(&made, 1, 5);
	put_more_privates(&made, 10, 5);
	put_end(&made);
	for (unsigned n = 1;; n++) {
		assert_int_equal(lseek(made.fd, 0, SEEK_SET), 0);
		assert_ok(gmem_vm_restore_begin(unit.vm, made.fd, &opts, &transfer));
		unit_fail_alloc(n);
		ret = steps_of(transfer);
		struck = unit_alloc_struck();
		assert_int_equal(ret, struck ? -ENOMEM : 0);
		assert_ok(steps_of(transfer));
		assert_ok(gmem_transfer_get_result(transfer, &result));
		assert_int_equal(result.private_bytes, 11 * 4096);
		assert_int_equal(result.left_out_bytes, 5 * 4096);
		assert_int_equal(result.zero_bytes, (64 - 11) * 4096);
		assert_ok(gmem_transfer_free(transfer));
		if (!struck)
			break;
	}
	close(made.fd);
	unit_end(&unit);
}

/* ---- regions whose contents are elsewhere ---- */

static void kind_of_contents(struct image_record *r) { elsewhere(r)[1].kind = GMEM_KIND_ROM; }
static void no_kind_of_memory(struct image_record *r) { elsewhere(r)[1].kind = 9; }
static void reserved_of_an_entry(struct image_record *r) { elsewhere(r)[1].reserved = 1; }
static void same_place(struct image_record *r) { elsewhere(r)[1].gpa = elsewhere(r)[0].gpa; }
static void in_the_region(struct image_record *r) { elsewhere(r)[0].gpa = 4096; }
static void around_the_region(struct image_record *r)
{
	elsewhere(r)[0].gpa = 0;
	elsewhere(r)[0].size = 65536 * 2;
}
static void no_size(struct image_record *r) { elsewhere(r)[1].size = 0; }
static void to_the_end(struct image_record *r) { elsewhere(r)[1].size = 0 - elsewhere(r)[1].gpa; }
static void no_entries(struct image_record *r) { r->count = 0; }
static void more_entries(struct image_record *r) { r->count = 127; }

static void list_of_what_is_elsewhere_is_checked(void **state)
{
	static void (*const lies[])(struct image_record *) = {
		kind_of_contents, no_kind_of_memory, reserved_of_an_entry, same_place, in_the_region,
		around_the_region, no_size, to_the_end, no_entries, more_entries,
	};
	GMEM_OPTS(gmem_transfer_result, result);
	struct made made;

	(void)state;
	fake_boot("6.18");
	for (size_t i = 0; i <= ARRAY_SIZE(lies); i++) {
		make(&made);
		put_head(&made, 1, 0);
		put_region(&made, 4096, 4096);
		put_elsewhere(&made, 65536, 2, i < ARRAY_SIZE(lies) ? lies[i] : NULL);
		put_end(&made);
		assert_int_equal(gmem_image_verify(made.fd, NULL, &result),
				 i < ARRAY_SIZE(lies) ? -EBADMSG : 0);
		close(made.fd);
	}
	assert_int_equal(result.left_out_bytes, 8192);
	assert_int_equal(fake_halt(), 0);
}

static void lists_of_an_image_have_their_order(void **state)
{
	struct made made;

	(void)state;
	fake_boot("6.18");
	/* before the regions are complete */
	make(&made);
	put_head(&made, 1, 0);
	put_elsewhere(&made, 65536, 1, NULL);
	put_region(&made, 4096, 4096);
	put_end(&made);
	assert_refused(-EBADMSG, "not complete", gmem_image_verify(made.fd, NULL, NULL));
	close(made.fd);
	/* after private ranges */
	make(&made);
	put_head(&made, 1, 1);
	put_region(&made, 0, 4096);
	put_privates(&made, 1, 1);
	put_elsewhere(&made, 65536, 1, NULL);
	put_end(&made);
	assert_refused(-EBADMSG, "private", gmem_image_verify(made.fd, NULL, NULL));
	close(made.fd);
	/* an image may have nothing else */
	make(&made);
	put_head(&made, 0, 0);
	put_elsewhere(&made, 65536, 100, NULL);
	put_elsewhere(&made, 65536 * 1024, 100, NULL);
	put_end(&made);
	assert_ok(gmem_image_verify(made.fd, NULL, NULL));
	close(made.fd);
	assert_int_equal(fake_halt(), 0);
}

static void regions_without_contents_are_counted_to_a_limit(void **state)
{
	struct made made;

	(void)state;
	fake_boot("6.18");
	make(&made);
	put_head(&made, 0, 0);
	for (uint32_t i = 0; i < IMAGE_MAX_REGIONS / 126; i++)
		put_elsewhere(&made, (uint64_t)i << 32, 126, NULL);
	put_elsewhere(&made, (uint64_t)1 << 48, IMAGE_MAX_REGIONS % 126 + 1, NULL);
	put_end(&made);
	assert_refused(-EBADMSG, "17 regions", gmem_image_verify(made.fd, NULL, NULL));
	close(made.fd);
	assert_int_equal(fake_halt(), 0);
}

/* ---- what an image has ---- */

static void an_image_tells_the_regions_it_was_saved_of(void **state)
{
	struct gmem_region_info of_vm[8];
	struct gmem_image_region of_image[8];
	GMEM_OPTS(gmem_image_summary, summary, .id = 0);
	struct guest g;
	int fd, count, ends[2];

	(void)state;
	begin(&g);
	fd = saved(&g, 3);
	count = gmem_vm_regions(g.unit.vm, of_vm, ARRAY_SIZE(of_vm));
	assert_in_range(count, 2, 8);
	assert_int_equal(gmem_image_info(fd, NULL, &summary, of_image, (size_t)count), count);
	assert_int_equal(gmem_image_info(fd, NULL, NULL, NULL, 0), count);
	assert_int_equal(summary.region_count, count);
	assert_int_equal(summary.page_size, g.unit.page);
	assert_int_equal(summary.version, 1);
	assert_int_not_equal(summary.id, 0);
	for (int i = 0; i < count; i++) {
		assert_int_equal(of_image[i].gpa, of_vm[i].gpa);
		assert_int_equal(of_image[i].size, of_vm[i].size);
		assert_int_equal(of_image[i].backing, of_vm[i].backing);
		summary.memory_bytes -= of_vm[i].size;
	}
	assert_int_equal(summary.memory_bytes, 0);

	/* from a pipe, too */
	assert_int_equal(pipe(ends), 0);
	assert_true(fcntl(ends[1], F_SETPIPE_SZ, MIB) > 0);
	assert_int_equal(sendfile(ends[1], fd, &(off_t){ 0 }, MIB), MIB);
	close(ends[1]);
	assert_int_equal(gmem_image_info(ends[0], NULL, NULL, of_image, ARRAY_SIZE(of_image)), count);
	close(ends[0]);
	close(fd);
	end(&g);
}

static void what_an_image_has_not_is_told(void **state)
{
	static const struct { size_t at; uint64_t bytes; } privates[] = { { 0, 4096 }, { 1, 65536 }, { 4, 0 } };
	GMEM_OPTS(gmem_image_summary, summary, .id = 0);
	struct gmem_image_region regions[6];
	struct made made;

	(void)state;
	fake_boot("6.18");
	make(&made);
	put_head(&made, 3, 17);
	put_region(&made, 0, 65536);
	put_region(&made, 65536, 65536);
	put_region(&made, 1 << 24, 4096);
	put_elsewhere(&made, 1 << 20, 2, NULL);
	put_elsewhere(&made, 1 << 28, 1, NULL);
	/* the last page of the first region, and all of the second */
	{
		struct image_record *record = next_record(&made, IMAGE_PRIVATE);
		struct image_range *ranges = (void *)(record + 1);

		record->count = 17;
		ranges[0] = (struct image_range){ 65536 - 4096, 4096 };
		for (uint32_t i = 0; i < 16; i++)
			ranges[1 + i] = (struct image_range){ 65536 + i * 4096, 4096 };
		put_record(&made, 4096);
	}
	put_end(&made);

	assert_int_equal(gmem_image_info(made.fd, NULL, &summary, regions, 6), 6);
	for (size_t i = 0; i < 3; i++) {
		const struct gmem_image_region *region = &regions[privates[i].at];

		assert_int_equal(region->private_bytes, privates[i].bytes);
		assert_int_equal(region->kind, GMEM_KIND_DEFAULT);
		assert_int_equal(region->backing, GMEM_BACKING_HOST);
	}
	assert_int_equal(regions[2].gpa, 1 << 20);
	assert_int_equal(regions[2].kind, GMEM_KIND_DEVICE);
	assert_int_equal(regions[2].backing, 0);
	assert_int_equal(regions[5].gpa, 1 << 28);
	assert_int_equal(summary.memory_bytes, 2 * 65536 + 4096);
	assert_int_equal(summary.private_bytes, 65536 + 4096);
	assert_int_equal(summary.left_out_bytes, 3 * 4096);
	close(made.fd);
	assert_int_equal(fake_halt(), 0);
}

static void lists_are_checked_before_they_are_told(void **state)
{
	struct gmem_image_region region, before;
	GMEM_OPTS(gmem_image_summary, summary, .id = 99);
	struct made made;
	struct guest g;
	int fd;

	(void)state;
	memset(&before, 0x55, sizeof(before));
	region = before;
	begin(&g);
	fd = saved(&g, 3);
	for (uint64_t flag = 1; flag; flag <<= 1) {
		GMEM_OPTS(gmem_transfer_opts, opts, .flags = flag);

		assert_int_equal(gmem_image_info(fd, &opts, NULL, NULL, 0) == -EINVAL,
				 gmem_image_verify(fd, &opts, NULL) == -EINVAL);
	}
	assert_refused(-ENOSPC, "room for 1", gmem_image_info(fd, NULL, &summary, &region, 1));
	assert_refused(-EINVAL, "regions is NULL", gmem_image_info(fd, NULL, NULL, NULL, 1));
	summary.size = 8;
	assert_refused(-EINVAL, "8 bytes", gmem_image_info(fd, NULL, &summary, NULL, 0));
	summary.size = sizeof(summary);
	change(fd, 4096, unaligned);
	assert_refused(-EBADMSG, "no range", gmem_image_info(fd, NULL, &summary, &region, 1));
	change(fd, 0, later_version);
	assert_refused(-EOPNOTSUPP, "version", gmem_image_info(fd, NULL, &summary, &region, 1));
	close(fd);
	end(&g);

	fake_boot("6.18");
	make(&made);
	put_head(&made, 2, 0);
	put_region(&made, 0, 4096);
	put_end(&made);
	assert_refused(-EBADMSG, "not complete", gmem_image_info(made.fd, NULL, &summary, &region, 1));
	close(made.fd);
	assert_int_equal(fake_halt(), 0);
	assert_memory_equal(&region, &before, sizeof(region));
	assert_int_equal(summary.id, 99);
}

/* Records of a later library, which are whole, are named; what is damaged is not. */
static void records_of_later_libraries_are_refused_by_name(void **state)
{
	struct image_record *record;
	struct made made;

	(void)state;
	fake_boot("6.18");
	make(&made);
	put_head(&made, 0, 0);
	record = next_record(&made, IMAGE_ELSEWHERE);
	memcpy(record->kind, "GMEM_\033Z\n", 8);
	put_record(&made, 4096);
	put_end(&made);
	assert_refused(-EOPNOTSUPP, "\"GMEM__Z_\", that libgmem", gmem_image_verify(made.fd, NULL, NULL));
	close(made.fd);
	assert_int_equal(fake_halt(), 0);
}

static void memory_of_a_device_is_never_touched(void **state)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_HVA, .kind = GMEM_KIND_DEVICE,
		  .identity = 3);
	GMEM_OPTS(gmem_transfer_result, result);
	struct gmem_region *bar;
	struct gmem_plan *host;
	struct guest g;
	void *memory;
	int fd;

	(void)state;
	begin(&g);
	host = unit_plan(&g.unit, GMEM_BACKING_HOST);
	memory = mmap(NULL, 4 * g.unit.page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(memory, MAP_FAILED);
	opts.plan = host;
	opts.hva = memory;
	assert_ok(gmem_region_add(g.unit.vm, PAGES(&g.unit, 5000), PAGES(&g.unit, 4), &opts, &bar));
	fill(&g, 8);
	fd = new_file();
	assert_ok(gmem_vm_save(g.unit.vm, fd, NULL, &result));
	assert_int_equal(result.left_out_bytes, PAGES(&g.unit, 4));
	assert_ok(gmem_image_verify(fd, NULL, &result));
	assert_int_equal(result.left_out_bytes, PAGES(&g.unit, 4));
	soil(&g, 1);
	assert_ok(gmem_vm_restore(g.unit.vm, fd, NULL, &result));
	assert_int_equal(result.left_out_bytes, PAGES(&g.unit, 4));
	check(&g, 8);
	assert_ok(gmem_region_remove(bar));
	assert_refused(-ENOENT, "\"device\", identity 0x3",
		       gmem_vm_restore(g.unit.vm, fd, NULL, NULL));
	close(fd);
	gmem_plan_free(host);
	munmap(memory, 4 * g.unit.page);
	end(&g);
}

struct told {
	unsigned calls;
	uint64_t done, total;
	unsigned stop_at;
};

static int tell(void *data, uint64_t done, uint64_t all)
{
	struct told *told = data;

	assert_true(done >= told->done);
	assert_true(!all || done <= all);
	told->done = done;
	told->total = all;
	return ++told->calls == told->stop_at;
}

/* Two ranges in a record; the second without bytes is left out. */
static void put_lost(struct made *made, struct image_range first, struct image_range second)
{
	struct image_record *record = next_record(made, IMAGE_LOST);
	struct image_range *ranges = (void *)(record + 1);

	record->count = second.size ? 2 : first.size ? 1 : 0;
	ranges[0] = first;
	ranges[1] = second;
	put_record(made, 4096);
}

static void put_page(struct made *made, uint64_t gpa)
{
	struct image_record *record = next_record(made, IMAGE_DATA);

	record->count = 1;
	record->data.base = gpa;
	*runs(record) = (struct image_run){ 0, 1 };
	put_record(made, 8192);
}

static void contradictory_lost_ranges_are_refused(void **state)
{
	static const struct { uint64_t data, data_after; struct image_range lost, more; int err; } lies[] = {
		{ 0, 0x9000, { 0x3000, 0x2000 }, { 0x6000, 0x1000 }, 0 },
		{ 0, 0x9000, { 0x3000, 0x2000 }, { 0x5000, 0x1000 }, 0 },
		{ 0, 0x9000, { 0, 0 }, { 0, 0 }, -EBADMSG },		/* none */
		{ 0, 0x9000, { 0x3001, 0x1000 }, { 0, 0 }, -EBADMSG },
		{ 0, 0x9000, { 0x3000, 0x1001 }, { 0, 0 }, -EBADMSG },
		{ 0, 0x9000, { 0x3000, 0x2000 }, { 0x4000, 0x1000 }, -EBADMSG },
		{ 0x3000, 0x9000, { 0x3000, 0x1000 }, { 0, 0 }, -EBADMSG },	/* data there */
		{ 0, 0x3000, { 0x3000, 0x1000 }, { 0, 0 }, -EBADMSG },
		{ 0, 0x2000, { 0x3000, 0x1000 }, { 0, 0 }, -EBADMSG },
		{ 0, 0x9000, { 0x20000, 0x1000 }, { 0, 0 }, -EBADMSG },	/* no memory */
		{ 0, 0x9000, { 0x3000, UINT64_MAX - 0xfff }, { 0, 0 }, -EBADMSG },
	};
	GMEM_OPTS(gmem_transfer_opts, allow, .flags = GMEM_TRANSFER_ALLOW_LOST);

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(lies); i++) {
		struct gmem_transfer_result result = { .size = sizeof(result) };
		struct made made;

		make(&made);
		put_head(&made, 1, 0);
		put_region(&made, 0, 0x10000);
		put_page(&made, lies[i].data);
		put_lost(&made, lies[i].lost, lies[i].more);
		put_page(&made, lies[i].data_after);
		next_record(&made, IMAGE_END)->end.pages = 2;
		made.unit->record.end.checksums = made.checksums;
		put_record(&made, 4096);
		free(made.unit);
		assert_int_equal(gmem_image_verify(made.fd, &allow, &result), lies[i].err);
		if (!lies[i].err)
			assert_int_equal(result.zero_bytes + result.data_bytes + result.lost_bytes, 0x10000);
		close(made.fd);
	}
}

static void sizes_that_are_only_claimed_cost_nothing(void **state)
{
	static const uint64_t sizes[] = { 4096, (uint64_t)1 << 40, (uint64_t)1 << 62, UINT64_MAX - 4095 };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		struct gmem_transfer_result result = { .size = sizeof(result) };
		struct told told = { 0 };
		GMEM_OPTS(gmem_transfer_opts, opts, .progress = tell, .progress_data = &told);
		struct made made;

		make(&made);
		put_head(&made, 1, 0);
		put_region(&made, 0, sizes[i]);
		put_end(&made);
		assert_ok(gmem_image_verify(made.fd, &opts, &result));
		assert_int_equal(result.zero_bytes, sizes[i]);
		/* once a record at least, by the bytes of the file */
		assert_true(told.calls >= 3 && told.calls < 10);
		assert_int_equal(told.done, 3 * 4096);
		assert_int_equal(told.total, 3 * 4096);

		/* and can be stopped there */
		for (unsigned stop = 1; stop <= 3; stop++) {
			told = (struct told){ .stop_at = stop };
			assert_int_equal(gmem_image_verify(made.fd, &opts, NULL), -ECANCELED);
			assert_int_equal(told.done, stop * 4096);
		}
		close(made.fd);
	}
}

static void private_ranges_are_kept_up_to_a_limit(void **state)
{
	static const struct { uint64_t more; unsigned every; int err; } cases[] = {
		{ 0, 2, 0 }, { 1, 2, -ENOMEM }, { 1000, 1, 0 },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		uint64_t count = IMAGE_MAX_PRIVATES + cases[i].more;
		struct gmem_transfer_result result = { .size = sizeof(result) };
		struct made made;

		make(&made);
		put_head(&made, 1, count);
		put_region(&made, 0, (uint64_t)1 << 62);
		put_privates(&made, count, cases[i].every);
		put_end(&made);
		assert_int_equal(gmem_image_verify(made.fd, NULL, &result), cases[i].err);
		if (cases[i].err)
			assert_non_null(strstr(gmem_last_error(), "4194304"));
		else
			assert_int_equal(result.private_bytes, count * 4096);
		close(made.fd);
	}
}

static void no_list_is_kept_of_what_the_vm_cannot_have(void **state)
{
	GMEM_OPTS(gmem_transfer_opts, omit, .flags = GMEM_TRANSFER_OMIT_PRIVATE);
	GMEM_OPTS(gmem_transfer_opts, rest,
		  .flags = GMEM_TRANSFER_OMIT_PRIVATE | GMEM_TRANSFER_LEAVE_REST);
	const uint64_t pages = LOW_PAGES + HIGH_PAGES + HOST_PAGES;
	struct gmem_transfer_result result = { .size = sizeof(result) };
	struct made made;
	struct guest g;

	(void)state;
	begin(&g);
	soil(&g, 5);
	/* more ranges than pages: the head says enough */
	make(&made);
	put_head(&made, 1, pages + 1);
	put_region(&made, 16 * 4096, LOW_PAGES * 4096);
	put_end(&made);
	assert_refused(-ENOENT, "765 private ranges",
		       gmem_vm_restore(g.unit.vm, made.fd, &rest, &result));
	assert_int_equal(result.file_bytes, 3 * 4096);
	close(made.fd);

	/* a region too large by a page, of which only the part that is there is shared */
	make(&made);
	put_head(&made, 1, 1);
	put_region(&made, 0, (16 + LOW_PAGES + HIGH_PAGES) * 4096);
	put_privates(&made, 1, 1);
	put_end(&made);
	assert_refused(-ENOENT, "gpa 0x0", gmem_vm_restore(g.unit.vm, made.fd, &rest, NULL));
	close(made.fd);
	make(&made);
	put_head(&made, 1, 0);
	put_region(&made, 16 * 4096, (LOW_PAGES + HIGH_PAGES + 1) * 4096);
	put_end(&made);
	assert_refused(-ENOENT, "no memory at 0x2cc000", gmem_vm_restore(g.unit.vm, made.fd, &omit, NULL));
	close(made.fd);

	/* part of it, over two regions */
	make(&made);
	put_head(&made, 1, 0);
	put_region(&made, 16 * 4096, (LOW_PAGES + HIGH_PAGES) * 4096);
	put_end(&made);
	assert_refused(-EEXIST, "does not have", gmem_vm_restore(g.unit.vm, made.fd, &omit, NULL));
	assert_ok(gmem_vm_restore(g.unit.vm, made.fd, &rest, &result));
	assert_int_equal(result.zero_bytes, (LOW_PAGES + HIGH_PAGES) * 4096);
	assert_int_equal(*(char *)gmem_region_hva(g.regions[2]), 5);
	close(made.fd);
	end(&g);
}

static void many_ranges_are_compared_in_steps(void **state)
{
	const uint64_t pages = 40000;
	struct gmem_transfer_result result = { .size = sizeof(result) };
	struct told told = { 0 };
	GMEM_OPTS(gmem_transfer_opts, opts, .flags = GMEM_TRANSFER_OMIT_PRIVATE, .progress = tell,
		  .progress_data = &told);
	struct unit unit;
	struct made made;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	unit_region_backed(&unit, 0, pages, GMEM_BACKING_HOST);
	make(&made);
	put_head(&made, 1, pages / 2);
	put_region(&made, 0, pages * 4096);
	put_privates(&made, pages / 2, 2);
	put_end(&made);
	assert_ok(gmem_vm_restore(unit.vm, made.fd, &opts, &result));
	assert_int_equal(result.private_bytes, pages / 2 * 4096);
	assert_int_equal(result.zero_bytes, pages / 2 * 4096);

	/* it can be stopped between the list and the comparison, and in it */
	for (unsigned stop = 3; stop < 6; stop++) {
		told = (struct told){ .stop_at = stop };
		assert_int_equal(gmem_vm_restore(unit.vm, made.fd, &opts, &result), -ECANCELED);
		assert_int_equal(result.zero_bytes, 0);
	}
	close(made.fd);
	unit_end(&unit);
}

static void a_hole_of_a_file_is_no_record(void **state)
{
	const off_t sixteen_tib = (off_t)1 << 44;
	struct guest g;
	struct made made;
	char page[4096];
	int fd;

	(void)state;
	/* all of it is a hole */
	fd = new_file();
	assert_int_equal(ftruncate(fd, sixteen_tib), 0);
	assert_refused(-ENOMSG, "no image", gmem_image_verify(fd, NULL, NULL));
	/* its end is far away */
	make(&made);
	put_head(&made, 1, 0);
	put_region(&made, 0, 4096);
	assert_int_equal(ftruncate(made.fd, sixteen_tib), 0);
	assert_refused(-EBADMSG, "no kind", gmem_image_verify(made.fd, NULL, NULL));
	assert_int_equal(lseek(made.fd, sixteen_tib - 4096, SEEK_SET), sixteen_tib - 4096);
	put_end(&made);
	assert_refused(-EBADMSG, "no kind", gmem_image_verify(made.fd, NULL, NULL));
	close(made.fd);
	close(fd);

	/* what follows an image is not read */
	begin(&g);
	fd = saved(&g, 3);
	assert_int_equal(ftruncate(fd, sixteen_tib), 0);
	assert_ok(gmem_image_verify(fd, NULL, NULL));
	/* and a block of it that was lost is noticed where it is */
	memset(page, 0, sizeof(page));
	assert_int_equal(pwrite(fd, page, sizeof(page), 8192), sizeof(page));
	assert_refused(-EBADMSG, "record 2", gmem_image_verify(fd, NULL, NULL));
	close(fd);
	end(&g);
}

/* Who changes the file between the passes is found out by the second. */
static int damage(void *data, uint64_t done, uint64_t all)
{
	const int *fd = data;
	uint64_t page;

	if (done >= all / 2 && pread(*fd, &page, sizeof(page), 16384 + 64) == sizeof(page)) {
		page++;
		assert_int_equal(pwrite(*fd, &page, sizeof(page), 16384 + 64), sizeof(page));
	}
	return 0;
}

static void the_second_pass_checks_what_the_first_did(void **state)
{
	struct guest g;
	int fd;

	(void)state;
	begin(&g);
	fd = saved(&g, 11);
	{
		GMEM_OPTS(gmem_transfer_opts, opts, .flags = GMEM_TRANSFER_VERIFY,
			  .progress = damage, .progress_data = &fd);

		assert_ok(gmem_image_verify(fd, NULL, NULL));
		assert_int_equal(gmem_vm_restore(g.unit.vm, fd, &opts, NULL), -EBADMSG);
		assert_non_null(strstr(gmem_last_error(), "checksum"));
	}
	close(fd);
	end(&g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_way_gives_the_same_bytes),
		cmocka_unit_test(saving_and_restoring_allocate_no_guest_memory),
		cmocka_unit_test(what_the_host_has_no_memory_for_is_refused_first),
	cmocka_unit_test(an_empty_guest_is_an_image_too),
		cmocka_unit_test(a_pipe_carries_an_image_and_what_follows),
		cmocka_unit_test(regions_may_be_cut_and_backed_otherwise),
		cmocka_unit_test(another_page_size_reads_it_too),
		cmocka_unit_test(any_number_of_workers_writes_the_same_image),
		cmocka_unit_test(saving_goes_on_after_a_failure_of_any_thread),
		cmocka_unit_test(steps_never_wait_and_may_be_few),
		cmocka_unit_test(a_full_disk_is_waited_for_and_gone_on_with),
		cmocka_unit_test(callbacks_stop_saving_and_restoring),
		cmocka_unit_test(every_call_may_fail_and_nothing_leaks),
		cmocka_unit_test(targets_that_differ_are_refused),
	cmocka_unit_test(a_target_that_lacks_memory_is_refused_as_often_as_asked),
	cmocka_unit_test(memory_that_is_left_alone_may_be_unmapped),
	cmocka_unit_test(what_is_stored_again_after_a_failure_is_counted_once),
	cmocka_unit_test(a_list_that_found_no_memory_is_read_again),
		cmocka_unit_test(regions_cannot_be_removed_during_a_transfer),
		cmocka_unit_test(private_ranges_are_declared_and_left_out),
		cmocka_unit_test(missing_block_is_found),
		cmocka_unit_test(turned_bit_is_found),
	cmocka_unit_test(workers_refuse_what_one_refuses),
	cmocka_unit_test(a_file_that_becomes_shorter_has_no_end),
	cmocka_unit_test(a_unit_is_read_by_one_thread_and_by_several),
		cmocka_unit_test(an_older_image_underneath_does_not_show_through),
		cmocka_unit_test(contradictory_records_are_refused),
		cmocka_unit_test(other_files_are_no_images),
		cmocka_unit_test(little_of_a_file_tells_what_it_is),
		cmocka_unit_test(lost_pages_are_left_out_by_wish_and_named),
		cmocka_unit_test(lost_pages_have_records_wherever_they_come),
		cmocka_unit_test(pages_lost_after_they_were_found_have_records),
		cmocka_unit_test(contradictory_lost_ranges_are_refused),
		cmocka_unit_test(sizes_that_are_only_claimed_cost_nothing),
		cmocka_unit_test(private_ranges_are_kept_up_to_a_limit),
		cmocka_unit_test(no_list_is_kept_of_what_the_vm_cannot_have),
		cmocka_unit_test(many_ranges_are_compared_in_steps),
		cmocka_unit_test(a_hole_of_a_file_is_no_record),
		cmocka_unit_test(list_of_what_is_elsewhere_is_checked),
	cmocka_unit_test(lists_of_an_image_have_their_order),
	cmocka_unit_test(regions_without_contents_are_counted_to_a_limit),
		cmocka_unit_test(an_image_tells_the_regions_it_was_saved_of),
		cmocka_unit_test(what_an_image_has_not_is_told),
		cmocka_unit_test(lists_are_checked_before_they_are_told),
		cmocka_unit_test(records_of_later_libraries_are_refused_by_name),
	cmocka_unit_test(memory_of_a_device_is_never_touched),
	cmocka_unit_test(the_second_pass_checks_what_the_first_did),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
