/* SPDX-License-Identifier: MIT */
/* incremental images, chains and sequences of them: what was saved last comes back */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "region/dirty_pages.h"
#include "transfer/image.h"
#include "transfer/leased_memory.h"
#include "unit.h"
#include "unit_alloc.h"

#define KIB ((uint64_t)1024)
#define MIB (KIB * 1024)
#define BLOCK ((uint64_t)4096)
#define MOST 20

/* Two regions, the first of several windows of what is looked at at once, and a hole */
#define LOW_PAGE 16
#define LOW_PAGES 2600
#define HIGH_PAGE 4000
#define HIGH_PAGES 300
#define ALL_PAGES (LOW_PAGES + HIGH_PAGES)

struct guest {
	struct unit unit;
	struct gmem_plan *host;
	struct gmem_region *regions[2];
	struct gmem_dirty *dirty;
	char *model;		/* what the memory should have */
	unsigned seed;
};

static unsigned next_random(struct guest *g, unsigned below)
{
	g->seed = g->seed * 1103515245u + 12345u;
	return (g->seed >> 8) % below;
}

static void begin(struct guest *g)
{
	*g = (struct guest){ .model = calloc(ALL_PAGES, BLOCK) };
	assert_non_null(g->model);
	unit_begin_vm(&g->unit, "6.18");
	g->host = unit_plan(&g->unit, GMEM_BACKING_HOST);
	g->regions[0] = unit_region(&g->unit, LOW_PAGE, LOW_PAGES, g->host);
	g->regions[1] = unit_region(&g->unit, HIGH_PAGE, HIGH_PAGES, g->host);
}

static void end(struct guest *g)
{
	gmem_dirty_free(g->dirty);
	gmem_plan_free(g->host);
	unit_end(&g->unit);
	free(g->model);
}

/* A guest of which all that was written before is in the parent, if there is one */
static void track(struct guest *g)
{
	GMEM_OPTS(gmem_dirty_opts, opts, .flags = GMEM_DIRTY_FROM_NOW);

	assert_ok(gmem_dirty_new(g->unit.vm, &opts, &g->dirty));
}

static char *page_of(struct guest *g, unsigned page)
{
	unsigned region = page >= LOW_PAGES;

	return (char *)gmem_region_hva(g->regions[region]) + (page - (region ? LOW_PAGES : 0)) * BLOCK;
}

static uint64_t gpa_of(unsigned page)
{
	return (page < LOW_PAGES ? LOW_PAGE + page : HIGH_PAGE + page - LOW_PAGES) * BLOCK;
}

/* The guest writes a page; with 0, it makes it zero. */
static void write_page(struct guest *g, unsigned page, int byte)
{
	memset(g->model + page * BLOCK, byte, BLOCK);
	if (byte)
		g->model[page * BLOCK + page % BLOCK] = (char)(byte + 1);
	memcpy(page_of(g, page), g->model + page * BLOCK, BLOCK);
	gmem_vm_mark_dirty(g->unit.vm, gpa_of(page), BLOCK);
}

static void scribble(struct guest *g, unsigned runs)
{
	for (unsigned i = 0; i < runs; i++) {
		unsigned page = next_random(g, ALL_PAGES), pages = 1 + next_random(g, next_random(g, 8) ? 3 : 400);
		int byte = next_random(g, 3) ? (int)next_random(g, 255) : 0;

		for (unsigned p = page; p < page + pages && p < ALL_PAGES; p++)
			write_page(g, p, byte);
	}
}

static void soil(struct guest *g, int byte)
{
	for (unsigned i = 0; i < 2; i++)
		memset(gmem_region_hva(g->regions[i]), byte, gmem_region_size(g->regions[i]));
}

static void check_model(struct guest *g, const char *model)
{
	for (unsigned page = 0; page < ALL_PAGES; page++)
		assert_memory_equal(page_of(g, page), model + page * BLOCK, BLOCK);
}

static void check(struct guest *g)
{
	check_model(g, g->model);
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

static struct gmem_transfer_result save_to(struct guest *g, int fd, uint64_t flags, uint64_t offset,
					   uint32_t workers)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .flags = flags, .image_offset = offset, .dirty = g->dirty,
		  .workers = workers);
	struct gmem_transfer_result result = { .size = sizeof(result) };

	assert_ok(gmem_vm_save(g->unit.vm, fd, &opts, &result));
	return result;
}

static int saved(struct guest *g)
{
	int fd = new_file();

	save_to(g, fd, 0, 0, 0);
	return fd;
}

static struct gmem_image_summary info_of(int fd)
{
	GMEM_OPTS(gmem_image_summary, summary, .id = 0);

	assert_true(gmem_image_info(fd, NULL, &summary, NULL, 0) >= 0);
	return summary;
}

static int restore_chain(struct guest *g, const int *files, uint32_t count, uint64_t flags, uint32_t workers)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .flags = flags, .workers = workers, .parents = count > 1 ? files : NULL,
		  .parent_count = count - 1);

	return gmem_vm_restore(g->unit.vm, files[count - 1], &opts, NULL);
}

static int verify_chain(const int *files, uint32_t count, uint32_t workers)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .workers = workers, .parents = count > 1 ? files : NULL,
		  .parent_count = count - 1);

	return gmem_image_verify(files[count - 1], &opts, NULL);
}

static void close_all(const int *files, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		close(files[i]);
}

/* ---- chains ---- */

static void chains_of_any_length_give_back_what_was_saved_last(void **state)
{
	static const uint64_t flags[] = { 0, GMEM_TRANSFER_NO_RING, GMEM_TRANSFER_VERIFY };
	int files[MOST];

	(void)state;
	for (unsigned length = 1; length <= MOST; length += length < 4 ? 1 : 5) {
		struct gmem_transfer_result result = { .size = sizeof(result) };
		struct guest g;
		uint64_t id = 0;

		begin(&g);
		g.seed = length;
		scribble(&g, 60);
		track(&g);
		for (unsigned i = 0; i < length; i++) {
			files[i] = new_file();
			result = save_to(&g, files[i], 0, 0, i % 4);
			assert_int_equal(info_of(files[i]).parent, id);
			assert_int_equal(info_of(files[i]).generation, i);
			assert_int_equal(info_of(files[i]).version, i ? 2 : 1);
			assert_int_equal(result.generation, i);
			assert_int_equal(info_of(files[i]).id, result.image_id);
			assert_int_equal(info_of(files[i]).region_count, 2);
			assert_ok(gmem_image_verify(files[i], NULL, NULL));
			id = result.image_id;
			if (i < length - 1)
				scribble(&g, 1 + next_random(&g, 30));
		}
		for (uint32_t way = 0; way < 6; way++) {
			if (way == 4)
				fake_cache_files();
			soil(&g, 0x77);
			assert_ok(verify_chain(files, length, way % 3));
			assert_ok(restore_chain(&g, files, length, flags[way % 3], way % 4));
			check(&g);
		}
		close_all(files, length);
		end(&g);
	}
}

/* ---- how large an image is ---- */

static uint64_t size_of_next(struct guest *g, struct gmem_transfer_result *ret)
{
	int fd = new_file();
	uint64_t size;

	*ret = save_to(g, fd, 0, 0, 0);
	size = size_of(fd);
	assert_int_equal(ret->file_bytes, size);
	assert_ok(gmem_image_verify(fd, NULL, NULL));
	close(fd);
	return size;
}

static void an_image_is_hardly_larger_than_what_changed(void **state)
{
	/* every so many pages; 0: none */
	static const unsigned steps[] = { 0, 1, 2, 3, 10, 97, 1500, 10000 };
	struct gmem_transfer_result result;
	struct guest g;

	(void)state;
	begin(&g);
	track(&g);
	size_of_next(&g, &result);
	for (unsigned zeros = 0; zeros < 3; zeros++)
		for (unsigned i = 0; i < ARRAY_SIZE(steps); i++) {
			uint64_t bytes = 0, size;

			for (unsigned page = 0; steps[i] && page < ALL_PAGES; page += steps[i]) {
				write_page(&g, page, zeros == 2 || (zeros && page / steps[i] % 2) ? 0 : 5);
				bytes += BLOCK;
			}
			size = size_of_next(&g, &result);
			assert_true(size * 100 <= bytes * 105 + BLOCK * 100);
			assert_int_equal(size % BLOCK, 0);
			assert_int_equal(result.data_bytes + result.zero_bytes, bytes);
			if (zeros == 2)
				assert_int_equal(result.data_bytes, 0);
		}
	end(&g);
}

static void without_a_tracker_and_of_a_first_image_bytes_are_those_of_version_1(void **state)
{
	int plain = new_file(), tracked;
	struct image_record *a, *b;
	struct guest g;
	uint64_t size;

	(void)state;
	begin(&g);
	scribble(&g, 20);
	assert_ok(gmem_vm_save(g.unit.vm, plain, NULL, NULL));
	track(&g);
	tracked = saved(&g);
	size = size_of(plain);
	assert_int_equal(size_of(tracked), size);
	a = mmap(NULL, size, PROT_READ, MAP_SHARED, plain, 0);
	b = mmap(NULL, size, PROT_READ, MAP_SHARED, tracked, 0);
	assert_int_equal(a->version, 1);
	for (uint64_t at = 0; at < size; at += ((struct image_record *)(void *)((char *)a + at))->size) {
		const struct image_record *one = (void *)((char *)a + at), *two = (void *)((char *)b + at);

		assert_memory_equal(one->kind, two->kind, 8);
		assert_int_equal(one->size, two->size);
		assert_int_equal(one->count, two->count);
		if (memcmp(one->kind, "GMEM_END", 8) != 0)
			assert_memory_equal(one->words, two->words, sizeof(one->words));
		assert_memory_equal(one + 1, two + 1, one->size - sizeof(*one));
	}
	munmap(a, size);
	munmap(b, size);
	close(plain);
	close(tracked);
	end(&g);
}

static void any_number_of_workers_writes_the_same_incremental_image(void **state)
{
	static const uint32_t workers[] = { 1, 2, 3, 8 };
	char *images[ARRAY_SIZE(workers)];
	uint64_t size = 0;

	(void)state;
	for (unsigned i = 0; i < ARRAY_SIZE(workers); i++) {
		struct guest g;
		int fd;

		begin(&g);
		g.seed = 7;
		track(&g);
		fd = saved(&g);
		close(fd);
		assert_ok(gmem_dirty_set_parent(g.dirty, 5, 6));
		scribble(&g, 300);
		fd = new_file();
		save_to(&g, fd, 0, 0, workers[i]);
		assert_true(i == 0 || size_of(fd) == size);
		size = size_of(fd);
		images[i] = malloc(size);
		assert_int_equal(pread(fd, images[i], size, 0), size);
		/* Without identities, and checksums over them */
		for (uint64_t at = 0; at < size;) {
			struct image_record *record = (void *)(images[i] + at);

			at += record->size;
			record->id = 0;
			record->checksum = 0;
			if (at == size)
				memset(record, 0, BLOCK);
		}
		assert_memory_equal(images[0], images[i], size);
		close(fd);
		end(&g);
	}
	for (unsigned i = 0; i < ARRAY_SIZE(workers); i++)
		free(images[i]);
}

/* ---- what is refused ---- */

static void a_chain_is_refused_before_memory_changes(void **state)
{
	static const uint64_t flags[] = { 0, GMEM_TRANSFER_NO_RING, GMEM_TRANSFER_VERIFY, GMEM_TRANSFER_LEAVE_REST };
	struct gmem_dirty *other;
	int f[4], twin, pipe_fds[2], chain[5];
	struct guest g;

	(void)state;
	begin(&g);
	scribble(&g, 20);
	track(&g);
	for (unsigned i = 0; i < 4; i++) {
		f[i] = saved(&g);
		scribble(&g, 3);
	}
	/* Another child of the same parent */
	other = g.dirty;
	g.dirty = NULL;
	track(&g);
	assert_ok(gmem_dirty_set_parent(g.dirty, info_of(f[2]).id, 2));
	write_page(&g, 3, 1);
	twin = saved(&g);
	gmem_dirty_free(other);

	soil(&g, 0x11);
	memset(g.model, 0x11, ALL_PAGES * BLOCK);
	for (unsigned i = 0; i < ARRAY_SIZE(flags); i++) {
		struct { int files[5]; uint32_t count; } cases[] = {
			{ { f[1] }, 1 },				/* no parent at all */
			{ { f[0], f[2] }, 2 },				/* one is missing */
			{ { f[1], f[2], f[3] }, 3 },			/* the first is */
			{ { f[0], f[2], f[1], f[3] }, 4 },		/* another order */
			{ { f[0], f[1], f[1], f[2] }, 4 },		/* twice */
			{ { f[0], f[0], f[1] }, 3 },
			{ { f[0], f[1], f[2], f[3], twin }, 5 },	/* a sibling */
			{ { f[0], f[1], f[2], f[3], f[0] }, 5 },	/* no child */
			{ { f[3], f[2], f[1], f[0] }, 4 },
		};

		for (unsigned c = 0; c < ARRAY_SIZE(cases); c++) {
			GMEM_OPTS(gmem_transfer_opts, opts, .flags = flags[i],
				  .parents = cases[c].count > 1 ? cases[c].files : NULL,
				  .parent_count = cases[c].count - 1);

			assert_refused(-ENOLINK, "0x", gmem_vm_restore(g.unit.vm, cases[c].files[cases[c].count - 1],
								       &opts, NULL));
			opts.flags = 0;
			/* Without a VM, a chain may begin with any image. */
			assert_int_equal(gmem_image_verify(cases[c].files[cases[c].count - 1], &opts, NULL),
					 c == 0 || c == 2 ? 0 : -ENOLINK);
		}
		check(&g);
	}

	assert_int_equal(pipe(pipe_fds), 0);
	chain[0] = pipe_fds[0];
	chain[1] = f[1];
	assert_refused(-ESPIPE, "part of a chain", restore_chain(&g, chain, 2, 0, 0));
	chain[0] = f[0];
	chain[1] = pipe_fds[0];
	assert_refused(-ESPIPE, "part of a chain", restore_chain(&g, chain, 2, 0, 0));
	chain[0] = -1;
	chain[1] = f[1];
	assert_int_equal(restore_chain(&g, chain, 2, 0, 0), -EBADF);
	check(&g);
	close(pipe_fds[0]);
	close(pipe_fds[1]);
	close_all(f, 4);
	close(twin);
	end(&g);
}

static void options_of_other_transfers_are_refused(void **state)
{
	GMEM_OPTS(gmem_transfer_opts, with_dirty, .flags = 0);
	GMEM_OPTS(gmem_transfer_opts, with_parents, .parent_count = 1);
	GMEM_OPTS(gmem_transfer_opts, followed, .flags = GMEM_TRANSFER_FOLLOWED);
	GMEM_OPTS(gmem_transfer_opts, no_count, .parent_count = 0);
	GMEM_OPTS(gmem_transfer_opts, reserved, .reserved = 1);
	struct guest g;
	int fd = new_file();

	(void)state;
	begin(&g);
	track(&g);
	with_dirty.dirty = g.dirty;
	with_parents.parents = &fd;
	no_count.parents = &fd;
	assert_refused(-EINVAL, "tracker", gmem_vm_restore(g.unit.vm, fd, &with_dirty, NULL));
	assert_refused(-EINVAL, "tracker", gmem_vm_load(g.unit.vm, LOW_PAGE * BLOCK, fd, 0, 0, &with_dirty, NULL));
	assert_refused(-EINVAL, "tracker", gmem_image_verify(fd, &with_dirty, NULL));
	assert_refused(-EINVAL, "parents", gmem_vm_save(g.unit.vm, fd, &with_parents, NULL));
	assert_refused(-EINVAL, "parents", gmem_vm_load(g.unit.vm, LOW_PAGE * BLOCK, fd, 0, 0, &with_parents, NULL));
	assert_refused(-EINVAL, "parents", gmem_image_info(fd, &with_parents, NULL, NULL, 0));
	assert_refused(-EINVAL, "another kind", gmem_vm_restore(g.unit.vm, fd, &followed, NULL));
	assert_refused(-EINVAL, "parent_count", gmem_vm_restore(g.unit.vm, fd, &no_count, NULL));
	assert_refused(-EINVAL, "reserved is 1", gmem_vm_restore(g.unit.vm, fd, &reserved, NULL));
	with_parents.parents = NULL;
	assert_refused(-EINVAL, "parent_count", gmem_vm_restore(g.unit.vm, fd, &with_parents, NULL));

	assert_ok(gmem_dirty_set_parent(g.dirty, 1, UINT64_MAX));
	assert_refused(-EOVERFLOW, "18446744073709551615", gmem_vm_save(g.unit.vm, fd, &with_dirty, NULL));
	close(fd);
	end(&g);
}

/* ---- saves that fail ---- */

static int stop(void *data, uint64_t done, uint64_t all)
{
	unsigned *left = data;

	(void)done;
	(void)all;
	return (*left)-- == 0;
}

static void what_a_failed_save_collected_is_saved_by_the_next(void **state)
{
	(void)state;
	for (unsigned way = 0; way < 4; way++) {
		struct gmem_transfer *transfer;
		unsigned left = way;
		int files[2], fd = new_file(), ret;
		struct guest g;

		begin(&g);
		scribble(&g, 20);
		track(&g);
		files[0] = saved(&g);
		scribble(&g, 20);
		{
			GMEM_OPTS(gmem_transfer_opts, opts, .dirty = g.dirty, .progress = stop, .progress_data = &left);

			switch (way) {
			case 0:		/* stopped */
			case 1:
				assert_int_equal(gmem_vm_save(g.unit.vm, fd, &opts, NULL), -ECANCELED);
				break;
			case 2:		/* freed halfway */
				opts.progress = NULL;
				assert_ok(gmem_vm_save_begin(g.unit.vm, fd, &opts, &transfer));
				assert_true(gmem_transfer_step(transfer, 1) > 0);
				assert_ok(gmem_transfer_free(transfer));
				break;
			default:	/* a disk that stays full */
				opts.progress = NULL;
				opts.flags = GMEM_TRANSFER_NO_RING;
				fake_fail_kind(FAKE_WRITE_AT, 1, 1, -ENOSPC);
				assert_int_equal(gmem_vm_save(g.unit.vm, fd, &opts, NULL), -ENOSPC);
			}
		}
		write_page(&g, 1, 99);
		files[1] = saved(&g);
		assert_int_equal(info_of(files[1]).parent, info_of(files[0]).id);
		assert_int_equal(info_of(files[1]).generation, 1);
		soil(&g, 3);
		assert_ok(restore_chain(&g, files, 2, 0, 0));
		check(&g);
		ret = gmem_image_verify(fd, NULL, NULL);
		assert_true(ret == -ENODATA || ret == -EBADMSG || ret == -ENOMSG);
		close_all(files, 2);
		close(fd);
		end(&g);
	}
}

/* Whoever collects beside takes nothing from the next image, nor does a save from it. */
static void rounds_and_images_take_nothing_from_each_other(void **state)
{
	GMEM_OPTS(gmem_dirty_info, info, .bytes = 0);
	struct guest g;
	int files[2];

	(void)state;
	begin(&g);
	scribble(&g, 20);
	track(&g);
	files[0] = saved(&g);
	write_page(&g, 5, 1);
	assert_ok(gmem_dirty_collect(g.dirty, &info));
	assert_int_equal(info.bytes, BLOCK);
	write_page(&g, 6, 2);
	files[1] = saved(&g);
	assert_ok(gmem_dirty_collect(g.dirty, &info));
	assert_int_equal(info.bytes, BLOCK);
	assert_ok(gmem_dirty_put_back(g.dirty));
	soil(&g, 3);
	assert_ok(restore_chain(&g, files, 2, 0, 0));
	check(&g);
	close_all(files, 2);
	end(&g);
}

/* Both are based on what was whole when they began; the one that ends last is the next parent. */
static void two_saves_at_a_time_are_both_whole(void **state)
{
	struct gmem_transfer *saves[2];
	struct guest g;
	int files[4];

	(void)state;
	begin(&g);
	scribble(&g, 20);
	track(&g);
	files[0] = saved(&g);
	{
		GMEM_OPTS(gmem_transfer_opts, opts, .dirty = g.dirty);

		for (unsigned i = 0; i < 2; i++) {
			write_page(&g, 7 + i, 5);
			files[1 + i] = new_file();
			assert_ok(gmem_vm_save_begin(g.unit.vm, files[1 + i], &opts, &saves[i]));
		}
	}
	for (unsigned i = 0; i < 2; i++) {
		while (gmem_transfer_step(saves[i], 1) > GMEM_TRANSFER_DONE)
			;
		assert_ok(gmem_transfer_free(saves[i]));
		assert_int_equal(info_of(files[1 + i]).parent, info_of(files[0]).id);
	}
	close(files[1]);
	files[1] = files[2];
	write_page(&g, 9, 6);
	files[2] = saved(&g);
	soil(&g, 3);
	assert_ok(restore_chain(&g, files, 3, 0, 0));
	check(&g);
	close_all(files, 3);
	end(&g);
}

static void a_full_disk_is_waited_for(void **state)
{
	static const struct { enum fake_call call; uint64_t flags; } cases[] = {
		{ FAKE_RING_RESULT, 0 }, { FAKE_WRITE_AT, GMEM_TRANSFER_NO_RING },
	};

	(void)state;
	for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
		struct gmem_transfer *transfer;
		int files[2] = { -1, new_file() }, ret;
		struct guest g;

		begin(&g);
		scribble(&g, 20);
		track(&g);
		files[0] = saved(&g);
		scribble(&g, 40);
		{
			GMEM_OPTS(gmem_transfer_opts, opts, .dirty = g.dirty, .flags = cases[i].flags);

			assert_ok(gmem_vm_save_begin(g.unit.vm, files[1], &opts, &transfer));
			fake_fail_kind(cases[i].call, 1, 1, -ENOSPC);
			while ((ret = gmem_transfer_step(transfer, 1)) > 0)
				;
			assert_int_equal(ret, -ENOSPC);
			while ((ret = gmem_transfer_step(transfer, 1)) > 0)
				;
			assert_int_equal(ret, 0);
			assert_ok(gmem_transfer_free(transfer));
		}
		soil(&g, 3);
		assert_ok(restore_chain(&g, files, 2, 0, 0));
		check(&g);
		close_all(files, 2);
		end(&g);
	}
}

/* ---- sequences ---- */

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

/* Rounds of a migration in a file; returns where the last one ends. */
static uint64_t save_sequence(struct guest *g, int fd, uint64_t offset, unsigned rounds, uint32_t workers)
{
	for (unsigned i = 0; i < rounds; i++) {
		uint64_t flags = i < rounds - 1 ? GMEM_TRANSFER_FOLLOWED : 0;
		struct gmem_transfer_result result = save_to(g, fd, flags, offset, workers);

		assert_int_equal(result.file_bytes % BLOCK, 0);
		offset += result.file_bytes;
		if (i < rounds - 1)
			scribble(g, i % 3 ? 1 + next_random(g, 40) : 1);
	}
	return offset;
}

static void a_sequence_in_a_file_is_one_image(void **state)
{
	static const uint64_t flags[] = { 0, GMEM_TRANSFER_NO_RING, GMEM_TRANSFER_VERIFY, GMEM_TRANSFER_LEAVE_REST };

	(void)state;
	for (unsigned rounds = 1; rounds < 12; rounds += 2) {
		struct gmem_transfer_result result = { .size = sizeof(result) };
		uint64_t offset = rounds == 3 ? 777 : rounds == 5 ? 8192 : 0, at;
		struct guest g;
		int fd = new_file();

		begin(&g);
		g.seed = rounds;
		scribble(&g, 30);
		track(&g);
		at = save_sequence(&g, fd, offset, rounds, rounds % 3);
		assert_int_equal(pwrite(fd, "after", 5, (off_t)at), 5);
		for (unsigned i = 0; i < 8; i++) {
			GMEM_OPTS(gmem_transfer_opts, opts, .flags = flags[i % 4], .image_offset = offset, .workers = i % 3);

			if (i == 6)
				fake_cache_files();
			soil(&g, 0x66);
			assert_ok(gmem_vm_restore(g.unit.vm, fd, &opts, &result));
			assert_int_equal(result.generation, rounds - 1);
			check(&g);
			/* Beside the sequence, a unit at its head and one at the lists of its last image */
			assert_true(result.file_bytes <= (i % 4 == 2 ? 2 : 1) * (at + 5 - offset) + 2 * MIB);
			opts.flags = 0;
			assert_ok(gmem_image_verify(fd, &opts, &result));
		}
		assert_int_equal(ftruncate(fd, (off_t)(at - BLOCK)), 0);
		{
			GMEM_OPTS(gmem_transfer_opts, opts, .image_offset = offset);

			assert_int_equal(gmem_image_verify(fd, &opts, NULL), -ENODATA);
		}
		close(fd);
		end(&g);
	}
}

static void a_sequence_goes_through_a_pipe_and_takes_nothing_that_follows(void **state)
{
	static const uint64_t flags[] = { 0, GMEM_TRANSFER_NO_RING };

	(void)state;
	for (unsigned i = 0; i < 4; i++) {
		GMEM_OPTS(gmem_transfer_opts, opts, .flags = flags[i % 2]);
		struct gmem_transfer_result result = { .size = sizeof(result) };
		struct mover mover;
		pthread_t thread;
		char after[6];
		int ends[2], image = new_file();
		uint64_t written = 0;
		struct guest g;

		begin(&g);
		scribble(&g, 30);
		track(&g);
		assert_int_equal(i < 2 ? pipe(ends) : socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
		mover = (struct mover){ ends[0], image };
		assert_int_equal(pthread_create(&thread, NULL, move_all, &mover), 0);
		for (unsigned round = 0; round < 6; round++) {
			result = save_to(&g, ends[1], flags[i % 2] | (round < 5 ? GMEM_TRANSFER_FOLLOWED : 0), 0, 2);
			written += result.file_bytes;
			if (round < 5)
				scribble(&g, round == 4 ? 0 : 10);
			if (round == 4)
				write_page(&g, 8, 8);
		}
		/* The last round of one page */
		assert_int_equal(result.file_bytes, 2 * BLOCK);
		close(ends[1]);
		pthread_join(thread, NULL);
		close(ends[0]);
		assert_int_equal(size_of(image), written);

		soil(&g, 1);
		assert_int_equal(write(image, "after", 6), 6);
		assert_int_equal(lseek(image, 0, SEEK_SET), 0);
		assert_int_equal(i < 2 ? pipe(ends) : socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
		mover = (struct mover){ image, ends[1] };
		assert_int_equal(pthread_create(&thread, NULL, move_all, &mover), 0);
		assert_ok(gmem_vm_restore(g.unit.vm, ends[0], &opts, &result));
		check(&g);
		assert_int_equal(result.file_bytes, written);
		assert_int_equal(read(ends[0], after, 6), 6);
		assert_string_equal(after, "after");
		pthread_join(thread, NULL);
		close(ends[0]);
		close(ends[1]);
		close(image);
		end(&g);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(chains_of_any_length_give_back_what_was_saved_last),
		cmocka_unit_test(an_image_is_hardly_larger_than_what_changed),
		cmocka_unit_test(without_a_tracker_and_of_a_first_image_bytes_are_those_of_version_1),
		cmocka_unit_test(any_number_of_workers_writes_the_same_incremental_image),
		cmocka_unit_test(a_chain_is_refused_before_memory_changes),
		cmocka_unit_test(options_of_other_transfers_are_refused),
		cmocka_unit_test(what_a_failed_save_collected_is_saved_by_the_next),
		cmocka_unit_test(rounds_and_images_take_nothing_from_each_other),
		cmocka_unit_test(two_saves_at_a_time_are_both_whole),
		cmocka_unit_test(a_full_disk_is_waited_for),
		cmocka_unit_test(a_sequence_in_a_file_is_one_image),
		cmocka_unit_test(a_sequence_goes_through_a_pipe_and_takes_nothing_that_follows),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
