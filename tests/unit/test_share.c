/* SPDX-License-Identifier: MIT */
/* import, peer, peer_io and wire: memory goes to another process; neither side trusts the other */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "share/wire.h"
#include "unit.h"
#include "unit_alloc.h"
#include "unit_share.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

#define PAGE	((uint64_t)4096)
#define MOST	8
/* Long enough for any machine, where an answer is to come */
#define PATIENT	60000

/* A VM, its export with one peer, and the import at the other end */
struct scene {
	struct unit unit;
	struct gmem_plan *host;
	struct gmem_plan *mapped;
	struct gmem_export *exporter;
	struct gmem_peer *peer;
	struct gmem_import *import;
	struct gmem_view *view;
	int sockets[2];			/* exporter's, importer's */
	struct unit_answerer answerer;
};

static void scene_begin_raw(struct scene *s)
{
	memset(s, 0, sizeof(*s));
	unit_begin_vm(&s->unit, "6.18");
	s->host = unit_plan(&s->unit, GMEM_BACKING_HOST);
	s->mapped = unit_plan(&s->unit, GMEM_BACKING_MAPPED);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, s->sockets), 0);
	assert_ok(gmem_export_new(s->unit.vm, NULL, &s->exporter));
}

static void add_peer(struct scene *s, struct gmem_peer_opts opts)
{
	opts.size = sizeof(opts);
	if (!opts.wait_ms)
		opts.wait_ms = PATIENT;
	assert_ok(gmem_peer_add(s->exporter, s->sockets[0], &opts, &s->peer));
}

static void scene_begin(struct scene *s)
{
	scene_begin_raw(s);
	add_peer(s, (struct gmem_peer_opts){ .flags = 0 });
	assert_ok(gmem_import_new(s->sockets[1], NULL, &s->import));
	assert_ok(gmem_import_view_new(s->import, &s->view));
}

static void scene_end(struct scene *s)
{
	gmem_view_free(s->view);
	gmem_import_free(s->import);
	gmem_export_free(s->exporter);
	gmem_vm_free(s->unit.vm);
	s->unit.vm = NULL;
	gmem_plan_free(s->host);
	gmem_plan_free(s->mapped);
	close(s->sockets[0]);
	close(s->sockets[1]);
	unit_end(&s->unit);
}

static struct gmem_region *add(struct scene *s, uint64_t page, uint64_t pages,
			       struct gmem_region_opts opts)
{
	struct gmem_region *region = NULL;

	opts.size = sizeof(opts);
	if (!opts.plan)
		opts.plan = s->mapped;
	assert_ok(gmem_region_add(s->unit.vm, page * PAGE, pages * PAGE, &opts, &region));
	return region;
}

static void exchange(struct scene *s)
{
	assert_int_equal(unit_exchange(s->exporter, s->peer, s->import), 1);
}

static void start_answering(struct scene *s)
{
	unit_start_answering(&s->answerer, s->import);
}

static void stop_answering(struct scene *s)
{
	unit_stop_answering(&s->answerer);
}

static uint64_t load(const struct scene *s, uint64_t gpa)
{
	uint64_t value = 0;

	assert_ok(gmem_view_load(s->view, gpa, 8, GMEM_RELAXED, &value));
	return value;
}

static int look(const struct scene *s, uint64_t gpa)
{
	uint64_t value;

	return gmem_view_load(s->view, gpa, 8, GMEM_RELAXED, &value);
}

static void put(const struct gmem_region *region, uint64_t offset, uint64_t value)
{
	memcpy((char *)gmem_region_hva(region) + offset, &value, sizeof(value));
}

/* ---- memory arrives ---- */

static void what_one_side_writes_the_other_reads(void **state)
{
	struct gmem_extent extents[MOST];
	struct gmem_region *a, *b;
	struct scene s;
	uint64_t value;

	(void)state;
	scene_begin(&s);
	a = add(&s, 16, 4, (struct gmem_region_opts){ .align = 0 });
	b = add(&s, 64, 2, (struct gmem_region_opts){ .align = 0 });
	assert_int_equal(look(&s, 16 * PAGE), -ENOENT);
	exchange(&s);

	put(a, PAGE + 8, 0x1122334455667788);
	assert_int_equal(load(&s, 17 * PAGE + 8), 0x1122334455667788);
	assert_ok(gmem_view_store(s.view, 65 * PAGE, 8, GMEM_RELEASE, 42));
	memcpy(&value, (char *)gmem_region_hva(b) + PAGE, sizeof(value));
	assert_int_equal(value, 42);
	assert_int_equal(look(&s, 20 * PAGE), -ENOENT);

	assert_int_equal(gmem_import_table(s.import, extents, MOST), 2);
	assert_int_equal(extents[0].gpa, 16 * PAGE);
	assert_int_equal(extents[0].size, 4 * PAGE);
	assert_int_equal(extents[0].file_size, 4 * PAGE);
	assert_int_equal(extents[0].rights, GMEM_RIGHT_READ | GMEM_RIGHT_WRITE);
	assert_int_equal(extents[0].backing, GMEM_BACKING_MAPPED);
	assert_int_equal(extents[0].page_size, PAGE);
	assert_int_equal(extents[0].fd, -1);
	assert_int_equal(extents[1].gpa, 64 * PAGE);
	assert_refused(-ENOSPC, "more than 1", gmem_import_table(s.import, extents, 1));
	scene_end(&s);
}

static void regions_come_and_go_while_it_looks(void **state)
{
	struct gmem_region *a, *b, *upper;
	struct scene s;

	(void)state;
	scene_begin(&s);
	exchange(&s);
	a = add(&s, 16, 4, (struct gmem_region_opts){ .align = 0 });
	put(a, 0, 1);
	exchange(&s);
	assert_int_equal(load(&s, 16 * PAGE), 1);

	start_answering(&s);
	assert_ok(gmem_region_move(a, 32 * PAGE));
	stop_answering(&s);
	assert_int_equal(look(&s, 16 * PAGE), -ESTALE);
	exchange(&s);
	assert_int_equal(load(&s, 32 * PAGE), 1);

	/* a split changes nothing, until one half goes */
	put(a, 2 * PAGE, 2);
	assert_ok(gmem_region_split(a, 2 * PAGE, &upper));
	exchange(&s);
	assert_int_equal(load(&s, 34 * PAGE), 2);
	b = add(&s, 16, 1, (struct gmem_region_opts){ .align = 0 });
	put(b, 0, 3);
	exchange(&s);
	start_answering(&s);
	assert_ok(gmem_region_remove(b));
	stop_answering(&s);
	assert_int_equal(look(&s, 16 * PAGE), -ESTALE);
	assert_int_equal(load(&s, 32 * PAGE), 1);
	scene_end(&s);
}

/* A region whose file was cut in two by a split: the rest is part of a file now. */
static void the_rest_of_a_split_region_is_given_again(void **state)
{
	struct gmem_region *a, *upper;
	struct scene s;

	(void)state;
	scene_begin_raw(&s);
	add_peer(&s, (struct gmem_peer_opts){ .flags = GMEM_PEER_WHOLE_FILES });
	assert_ok(gmem_import_new(s.sockets[1], NULL, &s.import));
	assert_ok(gmem_import_view_new(s.import, &s.view));
	a = add(&s, 16, 4, (struct gmem_region_opts){ .align = 0 });
	put(a, 0, 1);
	exchange(&s);
	assert_ok(gmem_region_split(a, 2 * PAGE, &upper));
	start_answering(&s);
	assert_ok(gmem_region_remove(upper));
	stop_answering(&s);
	exchange(&s);
	assert_int_equal(load(&s, 16 * PAGE), 1);
	assert_int_equal(look(&s, 18 * PAGE), -ESTALE);
	scene_end(&s);
}

static void a_rebound_region_shows_the_other_file(void **state)
{
	struct gmem_file *file;
	struct gmem_region *a;
	struct scene s;
	void *hva = NULL;

	(void)state;
	scene_begin(&s);
	file = unit_file(&s.unit, 4);
	assert_ok(gmem_file_map(file, 0, 4 * PAGE, NULL, &hva));
	a = add(&s, 16, 4, (struct gmem_region_opts){ .align = 0 });
	put(a, 0, 1);
	memset(hva, 0x11, 8);
	exchange(&s);
	start_answering(&s);
	assert_ok(gmem_region_rebind(a, file, 0));
	stop_answering(&s);
	exchange(&s);
	assert_int_equal(load(&s, 16 * PAGE), 0x1111111111111111);
	gmem_file_free(file);
	scene_end(&s);
}

static void memory_of_the_callers_arrives(void **state)
{
	int fd = unit_memfd(4 * PAGE, UNIT_SEALED);
	struct scene s;
	char *hva;

	(void)state;
	scene_begin(&s);
	hva = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_ptr_not_equal(hva, MAP_FAILED);
	memset(hva, 0x22, 8);
	assert_ok(gmem_export_add_memory(s.exporter, hva, 4 * PAGE, fd, 0));
	add(&s, 16, 4, (struct gmem_region_opts){ .plan = s.host, .flags = GMEM_REGION_HVA,
						  .hva = hva });
	exchange(&s);
	assert_int_equal(load(&s, 16 * PAGE), 0x2222222222222222);
	scene_end(&s);
	munmap(hva, 4 * PAGE);
	close(fd);
}

static void later_region_that_cannot_be_given_is_left_out(void **state)
{
	struct gmem_region *a;
	struct scene s;

	(void)state;
	scene_begin(&s);
	add(&s, 0, 1, (struct gmem_region_opts){ .plan = s.host });
	a = add(&s, 16, 1, (struct gmem_region_opts){ .align = 0 });
	put(a, 0, 7);
	exchange(&s);
	assert_int_equal(look(&s, 0), -ENOENT);
	assert_int_equal(load(&s, 16 * PAGE), 7);
	scene_end(&s);
}

static void memory_of_a_device_does_not_arrive(void **state)
{
	int fd = unit_memfd(4 * PAGE, UNIT_SEALED);
	struct gmem_region *more;
	struct scene s;
	char *hva;

	(void)state;
	scene_begin(&s);
	hva = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_ptr_not_equal(hva, MAP_FAILED);
	add(&s, 16, 4, (struct gmem_region_opts){ .plan = s.host, .flags = GMEM_REGION_HVA,
						  .hva = hva, .kind = GMEM_KIND_DEVICE });
	more = add(&s, 20, 1, (struct gmem_region_opts){ .align = 0 });
	put(more, 0, 7);
	exchange(&s);
	assert_int_equal(look(&s, 16 * PAGE), -ENOENT);
	assert_int_equal(load(&s, 20 * PAGE), 7);
	scene_end(&s);
	munmap(hva, 4 * PAGE);
	close(fd);
}

/* ---- what a peer may have ---- */

static void a_peer_gets_its_ranges_and_nothing_else(void **state)
{
	const struct gmem_export_range ranges[] = {
		{ .gpa = 17 * PAGE, .size = PAGE, .rights = GMEM_RIGHT_READ | GMEM_RIGHT_WRITE },
		{ .gpa = 19 * PAGE, .size = 46 * PAGE,
		  .rights = GMEM_RIGHT_READ | GMEM_RIGHT_WRITE },
	};
	struct gmem_extent extents[MOST];
	struct scene s;

	(void)state;
	scene_begin_raw(&s);
	add(&s, 16, 4, (struct gmem_region_opts){ .align = 0 });
	add(&s, 64, 2, (struct gmem_region_opts){ .align = 0 });
	add(&s, 80, 2, (struct gmem_region_opts){ .plan = s.host });
	add_peer(&s, (struct gmem_peer_opts){ .flags = GMEM_PEER_WHOLE_FILES, .ranges = ranges,
					      .range_count = 2 });
	assert_ok(gmem_import_new(s.sockets[1], NULL, &s.import));
	exchange(&s);
	assert_int_equal(gmem_import_table(s.import, extents, MOST), 3);
	assert_int_equal(extents[0].gpa, 17 * PAGE);
	assert_int_equal(extents[0].size, PAGE);
	assert_int_equal(extents[0].offset, PAGE);
	assert_int_equal(extents[1].gpa, 19 * PAGE);
	assert_int_equal(extents[1].size, PAGE);
	assert_int_equal(extents[1].offset, 3 * PAGE);
	assert_int_equal(extents[2].gpa, 64 * PAGE);
	assert_int_equal(extents[2].size, PAGE);
	scene_end(&s);
}

/* 3 MiB are one entry of the readers' table and part of another. */
static void memory_for_reading_is_not_written(void **state)
{
	const uint64_t size = (uint64_t)3 << 20;
	int fd = unit_memfd(size, F_SEAL_SHRINK);
	struct gmem_extent extents[MOST];
	uint64_t expected = 0, done = 0;
	const void *found;
	struct iovec iov;
	struct scene s;
	void *got;
	char *hva;

	(void)state;
	assert_ok(gmem_recovery_enable());
	scene_begin(&s);
	hva = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_ptr_not_equal(hva, MAP_FAILED);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | UNIT_SEALED), 0);
	assert_ok(gmem_export_add_memory(s.exporter, hva, size, fd, 0));
	add(&s, 0, size / PAGE, (struct gmem_region_opts){ .plan = s.host, .hva = hva,
							   .flags = GMEM_REGION_HVA });
	add(&s, size / PAGE, 1, (struct gmem_region_opts){ .align = 0 });
	exchange(&s);
	assert_int_equal(gmem_import_table(s.import, extents, MOST), 2);
	assert_int_equal(extents[0].rights, GMEM_RIGHT_READ);

	for (uint64_t gpa = 0; gpa < size; gpa += size - 4096) {
		memset(hva + gpa, 0x33, 8);
		assert_int_equal(load(&s, gpa), 0x3333333333333333);
		assert_refused(-EROFS, "may only be read", gmem_view_store(s.view, gpa, 8, 0, 1));
		assert_refused(-EROFS, "may only be read",
			       gmem_view_compare_exchange(s.view, gpa, 8, 0, &expected, 1));
		assert_refused(-EROFS, "may only be read",
			       gmem_view_write(s.view, gpa, "x", 1, &done));
		assert_refused(-EROFS, "may only be read", gmem_view_fill(s.view, gpa, 1, 8, &done));
		assert_refused(-EROFS, "may only be read",
			       gmem_view_copy(s.view, gpa, size, 8, &done));
		gmem_view_begin(s.view);
		assert_refused(-EROFS, "may only be read", gmem_view_hva(s.view, gpa, 8, &got));
		assert_refused(-EROFS, "may only be read", gmem_view_iovec(s.view, gpa, 8, &iov, 1));
		assert_ok(gmem_view_hva_read(s.view, gpa, 8, &found));
		assert_memory_equal(found, hva + gpa, 8);
		assert_int_equal(gmem_view_iovec_read(s.view, gpa, 8, &iov, 1), 1);
		assert_ptr_equal(iov.iov_base, found);
		gmem_view_end(s.view);
		assert_int_equal(load(&s, gpa), 0x3333333333333333);
	}
	/* up to there, and no further */
	assert_int_equal(gmem_view_copy(s.view, size, 0, 8, &done), 0);
	scene_end(&s);
	gmem_recovery_disable();
	munmap(hva, size);
	close(fd);
}

/* What an import mapped is its own: the mapping of a file does not get in the way of it. */
static void imported_memory_is_not_mapped_over(void **state)
{
	GMEM_OPTS(gmem_map_opts, over, .flags = GMEM_MAP_REPLACE);
	struct gmem_region *a;
	struct gmem_file *file;
	struct scene s;
	void *got, *hva;

	(void)state;
	scene_begin(&s);
	a = add(&s, 16, 4, (struct gmem_region_opts){ .align = 0 });
	exchange(&s);
	put(a, 8, 77);
	gmem_view_begin(s.view);
	assert_ok(gmem_view_hva(s.view, 17 * PAGE, 8, &got));
	gmem_view_end(s.view);

	assert_ok(gmem_file_new_raw(s.unit.vm_fd, PAGE, GMEM_CREATE_MMAP | GMEM_CREATE_INIT_SHARED,
				    &file));
	over.hva = got;
	assert_refused(-EBUSY, "import", gmem_file_map(file, 0, PAGE, &over, &hva));
	gmem_file_free(file);
	assert_int_equal(load(&s, 16 * PAGE + 8), 77);
	scene_end(&s);
}

static int try_peer(struct scene *s, struct gmem_peer_opts opts)
{
	opts.size = sizeof(opts);
	return gmem_peer_add(s->exporter, s->sockets[0], &opts, &s->peer);
}

static void ranges_that_cannot_be_kept_from_a_peer_are_refused(void **state)
{
	const struct gmem_export_range part = { .gpa = 17 * PAGE, .size = PAGE,
						.rights = GMEM_RIGHT_READ | GMEM_RIGHT_WRITE };
	const struct gmem_export_range reading = { .gpa = 16 * PAGE, .size = 4 * PAGE,
						   .rights = GMEM_RIGHT_READ };
	struct scene s;

	(void)state;
	scene_begin_raw(&s);
	add(&s, 16, 4, (struct gmem_region_opts){ .align = 0 });
	assert_refused(-EACCES, "it has all 0x4000",
		       try_peer(&s, (struct gmem_peer_opts){ .ranges = &part, .range_count = 1 }));
	assert_refused(-EOPNOTSUPP, "F_SEAL_FUTURE_WRITE",
		       try_peer(&s, (struct gmem_peer_opts){ .ranges = &reading, .range_count = 1 }));
	add(&s, 0, 1, (struct gmem_region_opts){ .plan = s.host });
	assert_refused(-EOPNOTSUPP, "no other process can map",
		       try_peer(&s, (struct gmem_peer_opts){ .flags = 0 }));
	assert_null(s.peer);
	scene_end(&s);
}

/* The peer gets the rights of the fd, but can open the file anew: only seals take those away. */
static void an_fd_open_for_reading_keeps_no_peer_from_writing(void **state)
{
	const struct gmem_export_range reading = { .gpa = 0, .size = 4 * PAGE, .rights = GMEM_RIGHT_READ };

	(void)state;
	for (int sealed = 0; sealed < 2; sealed++) {
		int fd = unit_memfd(4 * PAGE, F_SEAL_SHRINK), anew;
		struct gmem_extent extents[MOST];
		struct scene s;
		char path[32];
		void *hva;

		scene_begin_raw(&s);
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		anew = open(path, O_RDONLY | O_CLOEXEC);
		hva = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		assert_ptr_not_equal(hva, MAP_FAILED);
		assert_int_equal(fcntl(fd, F_ADD_SEALS, UNIT_SEALED | (sealed ? F_SEAL_FUTURE_WRITE : 0)), 0);
		assert_ok(gmem_export_add_memory(s.exporter, hva, 4 * PAGE, anew, 0));
		add(&s, 0, 4, (struct gmem_region_opts){ .plan = s.host, .hva = hva,
							 .flags = GMEM_REGION_HVA });
		if (sealed)
			assert_ok(try_peer(&s, (struct gmem_peer_opts){ .ranges = &reading,
									.range_count = 1 }));
		else
			assert_refused(-EOPNOTSUPP, "F_SEAL_FUTURE_WRITE",
				       try_peer(&s, (struct gmem_peer_opts){ .ranges = &reading,
									     .range_count = 1 }));
		if (!sealed)
			assert_ok(try_peer(&s, (struct gmem_peer_opts){ .flags = 0 }));
		assert_ok(gmem_import_new(s.sockets[1], NULL, &s.import));
		exchange(&s);
		assert_int_equal(gmem_import_table(s.import, extents, MOST), 1);
		assert_int_equal(extents[0].rights, GMEM_RIGHT_READ);
		scene_end(&s);
		munmap(hva, 4 * PAGE);
		close(anew);
		close(fd);
	}
}

static void rom_is_given_without_the_seal_that_a_range_for_reading_needs(void **state)
{
	const struct gmem_export_range reading = { .gpa = 0, .size = 4 * PAGE, .rights = GMEM_RIGHT_READ };
	GMEM_OPTS(gmem_memory_opts, memory, .flags = GMEM_MEMORY_MEMFD);
	struct gmem_extent extents[MOST];
	struct scene s;

	(void)state;
	scene_begin_raw(&s);
	add(&s, 0, 4, (struct gmem_region_opts){ .plan = s.host, .memory = &memory,
						 .flags = GMEM_REGION_READONLY });
	assert_refused(-EOPNOTSUPP, "F_SEAL_FUTURE_WRITE",
		       try_peer(&s, (struct gmem_peer_opts){ .ranges = &reading, .range_count = 1 }));
	assert_ok(try_peer(&s, (struct gmem_peer_opts){ .flags = 0 }));
	assert_ok(gmem_import_new(s.sockets[1], NULL, &s.import));
	exchange(&s);
	assert_int_equal(gmem_import_table(s.import, extents, MOST), 1);
	assert_int_equal(extents[0].rights, GMEM_RIGHT_READ);
	scene_end(&s);
}

static void peer_options_are_checked(void **state)
{
	const uint32_t all = GMEM_RIGHT_READ | GMEM_RIGHT_WRITE;
	const struct gmem_export_range ranges[][2] = {
		{ { .gpa = 1, .size = PAGE, .rights = all } },
		{ { .gpa = 0, .size = 0, .rights = all } },
		{ { .gpa = PAGE, .size = -PAGE, .rights = 0 } },
		{ { .gpa = 0, .size = PAGE, .rights = GMEM_RIGHT_WRITE } },
		{ { .gpa = 0, .size = PAGE, .rights = all | 4 } },
		{ { .gpa = 0, .size = PAGE, .rights = all, .reserved = 1 } },
		{ { .gpa = PAGE, .size = PAGE, .rights = all },
		  { .gpa = PAGE, .size = PAGE, .rights = all } },
		{ { .gpa = PAGE, .size = -PAGE, .rights = all },
		  { .gpa = PAGE, .size = PAGE, .rights = all } },
	};
	struct scene s;
	int pair[2];

	(void)state;
	scene_begin_raw(&s);
	for (size_t i = 0; i < ARRAY_SIZE(ranges); i++)
		assert_refused(-EINVAL, "",
			       try_peer(&s, (struct gmem_peer_opts){ .ranges = ranges[i],
								     .range_count = 2 }));
	assert_refused(-EINVAL, "range_count is 1, but ranges is NULL",
		       try_peer(&s, (struct gmem_peer_opts){ .range_count = 1 }));
	assert_refused(-EINVAL, "range_count is 0",
		       try_peer(&s, (struct gmem_peer_opts){ .ranges = ranges[0] }));
	assert_refused(-EINVAL, "does not know",
		       try_peer(&s, (struct gmem_peer_opts){ .flags = UNIT_UNKNOWN_BIT }));
	assert_refused(-EINVAL, "reserved", try_peer(&s, (struct gmem_peer_opts){ .reserved = 1 }));
	assert_refused(-EINVAL, "exporter is NULL", gmem_peer_add(NULL, s.sockets[0], NULL, &s.peer));
	assert_refused(-EINVAL, "ret is NULL", gmem_peer_add(s.exporter, s.sockets[0], NULL, NULL));
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
	assert_refused(-EINVAL, "type 1, not", gmem_peer_add(s.exporter, pair[0], NULL, &s.peer));
	assert_refused(-ENOTSOCK, "no socket",
		       gmem_peer_add(s.exporter, gmem_export_fd(s.exporter), NULL, &s.peer));
	close(pair[0]);
	close(pair[1]);
	gmem_peer_remove(NULL);
	assert_int_equal(gmem_peer_status(NULL), -EINVAL);
	assert_int_equal(gmem_export_fd(NULL), -EINVAL);
	assert_int_equal(gmem_export_dispatch(NULL), -EINVAL);
	scene_end(&s);
}

/* ---- no answer ---- */

static void without_an_answer_memory_stays(void **state)
{
	struct gmem_region *a;
	struct scene s;

	(void)state;
	scene_begin_raw(&s);
	add_peer(&s, (struct gmem_peer_opts){ .wait_ms = 1 });
	assert_ok(gmem_import_new(s.sockets[1], NULL, &s.import));
	assert_ok(gmem_import_view_new(s.import, &s.view));
	a = add(&s, 16, 4, (struct gmem_region_opts){ .align = 0 });
	put(a, 0, 1);
	exchange(&s);
	assert_refused(-ETIMEDOUT, "a peer has 0x4000 bytes at gpa 0x10000 and gave no answer in 1 ms",
		       gmem_region_remove(a));
	assert_int_equal(load(&s, 16 * PAGE), 1);

	/* The peer answers late, and is given the memory again. */
	exchange(&s);
	assert_int_equal(load(&s, 16 * PAGE), 1);
	put(a, 0, 2);
	assert_int_equal(load(&s, 16 * PAGE), 2);
	scene_end(&s);
}

static void without_an_answer_a_peer_is_cut_off(void **state)
{
	struct gmem_region *a;
	struct scene s;

	(void)state;
	scene_begin_raw(&s);
	add_peer(&s, (struct gmem_peer_opts){ .wait_ms = 1, .flags = GMEM_PEER_CUT_OFF });
	assert_ok(gmem_import_new(s.sockets[1], NULL, &s.import));
	assert_ok(gmem_import_view_new(s.import, &s.view));
	a = add(&s, 16, 4, (struct gmem_region_opts){ .align = 0 });
	exchange(&s);
	assert_ok(gmem_region_remove(a));
	assert_int_equal(gmem_peer_status(s.peer), -ETIMEDOUT);

	/* The import handles the messages that are still in the socket, then finds its end. */
	while (gmem_import_dispatch(s.import) >= 0)
		;
	assert_int_equal(gmem_import_dispatch(s.import), -EPIPE);
	scene_end(&s);
}

static void a_peer_that_is_gone_is_not_waited_for(void **state)
{
	struct gmem_region *a;
	struct scene s;

	(void)state;
	scene_begin(&s);
	a = add(&s, 16, 4, (struct gmem_region_opts){ .align = 0 });
	exchange(&s);
	gmem_view_free(s.view);
	gmem_import_free(s.import);
	s.view = NULL;
	s.import = NULL;
	assert_ok(gmem_region_remove(a));
	assert_int_equal(gmem_peer_status(s.peer), -EPIPE);
	gmem_peer_remove(s.peer);
	scene_end(&s);
}

static void memory_outlives_the_exporting_side(void **state)
{
	struct gmem_region *a;
	struct scene s;

	(void)state;
	scene_begin(&s);
	a = add(&s, 16, 4, (struct gmem_region_opts){ .align = 0 });
	put(a, 0, 5);
	exchange(&s);
	gmem_peer_remove(s.peer);
	assert_int_equal(gmem_import_dispatch(s.import), -EPIPE);
	assert_int_equal(gmem_import_dispatch(s.import), -EPIPE);
	assert_int_equal(load(&s, 16 * PAGE), 5);
	scene_end(&s);
}

/* ---- hostile peers ---- */

static void send_raw(int sock, const void *bytes, size_t size, unsigned fds, int fd)
{
	assert_int_equal(fake_send_packet(sock, bytes, size, fds, fd), size);
}

static void send_message(int sock, struct gmem_message message, unsigned fds, int fd)
{
	uint8_t bytes[GMEM_WIRE_BYTES];

	gmem_wire_encode(&message, bytes);
	send_raw(sock, bytes, sizeof(bytes), fds, fd);
}

static void a_peer_that_sends_anything_else_is_lost(void **state)
{
	static const struct gmem_message cases[] = {
		{ .type = GMEM_WIRE_ANSWER, .sequence = 2 },
		{ .type = GMEM_WIRE_ANSWER, .sequence = 1, .status = 4096 },
		{ .type = GMEM_WIRE_ANSWER, .sequence = 1, .id = 1 },
		{ .type = GMEM_WIRE_HELLO, .sequence = 1, .page_size = 4096 },
		{ .type = GMEM_WIRE_READY, .sequence = 1 },
		{ .type = 0, .sequence = 1 },
		{ .type = 99, .sequence = 1 },
		{ .type = GMEM_WIRE_MAP, .sequence = 1, .id = 1, .gpa = 0, .size = PAGE,
		  .file_size = PAGE, .page_size = PAGE, .rights = 3, .backing = 2 },
	};
	struct scene s;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases) + 4; i++) {
		int fd = unit_memfd(PAGE, 0);

		scene_begin_raw(&s);
		add_peer(&s, (struct gmem_peer_opts){ .flags = 0 });
		assert_ok(gmem_export_dispatch(s.exporter));
		assert_int_equal(gmem_peer_status(s.peer), 0);
		if (i < ARRAY_SIZE(cases))
			send_message(s.sockets[1], cases[i], cases[i].type == GMEM_WIRE_MAP, fd);
		else if (i == ARRAY_SIZE(cases))
			send_raw(s.sockets[1], "GMEM", 4, 0, -1);
		else if (i == ARRAY_SIZE(cases) + 1)
			send_raw(s.sockets[1], (char[200]){ 'G', 'M', 'E', 'M' }, 200, 8, fd);
		else	/* a good answer, with fds that nobody asked for */
			send_message(s.sockets[1],
				     (struct gmem_message){ .type = GMEM_WIRE_ANSWER, .sequence = 1 },
				     i == ARRAY_SIZE(cases) + 2 ? 1 : 8, fd);
		assert_ok(gmem_export_dispatch(s.exporter));
		if (gmem_peer_status(s.peer) != -EPROTO)
			fail_msg("case %zu: %d", i, gmem_peer_status(s.peer));
		scene_end(&s);
		close(fd);
	}
}

static void files_in_an_empty_packet_are_closed(void **state)
{
	int fd = unit_memfd(PAGE, 0);
	struct scene s;
	unsigned before;

	(void)state;
	scene_begin_raw(&s);
	add_peer(&s, (struct gmem_peer_opts){ .flags = 0 });
	assert_ok(gmem_export_dispatch(s.exporter));
	before = fake_open_fds();
	send_raw(s.sockets[1], "", 0, 2, fd);
	assert_ok(gmem_export_dispatch(s.exporter));
	assert_int_equal(gmem_peer_status(s.peer), -EPIPE);
	assert_true(fake_open_fds() <= before);
	scene_end(&s);
	close(fd);
}

static void a_peer_that_answers_twice_is_lost(void **state)
{
	struct scene s;

	(void)state;
	scene_begin_raw(&s);
	add_peer(&s, (struct gmem_peer_opts){ .flags = 0 });
	assert_ok(gmem_export_dispatch(s.exporter));
	for (uint32_t i = 1; i <= 2; i++) {
		send_message(s.sockets[1], (struct gmem_message){ .type = GMEM_WIRE_ANSWER,
								  .sequence = i }, 0, -1);
		assert_ok(gmem_export_dispatch(s.exporter));
	}
	assert_int_equal(gmem_peer_status(s.peer), 1);
	send_message(s.sockets[1], (struct gmem_message){ .type = GMEM_WIRE_ANSWER, .sequence = 2 },
		     0, -1);
	assert_ok(gmem_export_dispatch(s.exporter));
	assert_int_equal(gmem_peer_status(s.peer), -EPROTO);
	scene_end(&s);
}

static void a_peer_that_refuses_memory_is_lost(void **state)
{
	struct scene s;

	(void)state;
	scene_begin_raw(&s);
	add(&s, 16, 4, (struct gmem_region_opts){ .align = 0 });
	add_peer(&s, (struct gmem_peer_opts){ .flags = 0 });
	assert_ok(gmem_import_new(s.sockets[1],
				  &(struct gmem_import_opts){ .size = sizeof(struct gmem_import_opts),
							      .max_bytes = 3 * PAGE }, &s.import));
	for (int i = 0; i < 4; i++) {
		assert_ok(gmem_export_dispatch(s.exporter));
		gmem_import_dispatch(s.import);
	}
	assert_ok(gmem_export_dispatch(s.exporter));
	assert_int_equal(gmem_peer_status(s.peer), -ENOSPC);
	scene_end(&s);
}

/* ---- hostile exporters ---- */

#define HELLO	{ .type = GMEM_WIRE_HELLO, .page_size = 4096 }
#define MAP_AT(page, pages) .type = GMEM_WIRE_MAP, .id = 1, .gpa = (page) * PAGE,           \
		.size = (pages) * PAGE, .file_size = 4 * PAGE, .page_size = 4096,           \
		.rights = GMEM_RIGHT_READ | GMEM_RIGHT_WRITE, .backing = GMEM_BACKING_SHARED
#define BYE	{ .type = 0 }

enum file { MEMFD, UNSEALED, NO_WRITING, SOCKET, DEVICE };

static int make_file(enum file kind)
{
	switch (kind) {
	case UNSEALED:
		return unit_memfd(4 * PAGE, 0);
	case NO_WRITING:
		return unit_memfd(4 * PAGE, F_SEAL_SHRINK | F_SEAL_WRITE);
	case SOCKET:
		return socket(AF_UNIX, SOCK_STREAM, 0);
	case DEVICE:
		return open("/dev/zero", O_RDWR);
	default:
		return unit_memfd(4 * PAGE, F_SEAL_SHRINK);
	}
}

/* Send all of it, with one fd for each "map"; the status of the last answer, or -errno */
static int feed(const struct gmem_message messages[3], enum file kind, unsigned fds)
{
	GMEM_OPTS(gmem_import_opts, opts, .max_extents = 2, .max_bytes = 8 * PAGE);
	struct gmem_import *import = NULL;
	struct gmem_message message;
	int sockets[2], fd = make_file(kind), none, ret = 0, status = 0;

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets), 0);
	assert_ok(gmem_import_new(sockets[1], &opts, &import));
	for (int i = 0; i < 3 && messages[i].type && ret >= 0; i++) {
		send_message(sockets[0], messages[i],
			     messages[i].type == GMEM_WIRE_MAP ? fds : 0, fd);
		ret = gmem_import_dispatch(import);
		if (ret >= 0) {
			assert_int_equal(gmem_wire_receive(sockets[0], &message, &none), 1);
			assert_int_equal(message.type, GMEM_WIRE_ANSWER);
			status = -(int)message.status;
		}
	}
	gmem_import_free(import);
	close(sockets[0]);
	close(sockets[1]);
	close(fd);
	return ret < 0 ? ret : status;
}

static void an_import_believes_nothing(void **state)
{
	static const struct {
		struct gmem_message messages[3];
		enum file file;
		int ret;
	} cases[] = {
		{ { HELLO, { MAP_AT(16, 4) }, BYE }, MEMFD, 0 },
		{ { HELLO, { MAP_AT(16, 4) }, { .type = GMEM_WIRE_UNMAP, .id = 1 } }, MEMFD, 0 },
		/* messages of later versions, which this version refuses */
		{ { HELLO, HELLO }, MEMFD, -EPROTO },
		{ { { .type = GMEM_WIRE_HELLO, .page_size = 65536 }, BYE }, MEMFD, -EPROTO },
		{ { { .type = GMEM_WIRE_HELLO, .page_size = 4096, .offset = 1 } }, MEMFD, -EPROTO },
		{ { { MAP_AT(16, 4) }, BYE }, MEMFD, -EPROTO },
		{ { HELLO, { .type = GMEM_WIRE_ANSWER }, BYE }, MEMFD, -EPROTO },
		{ { HELLO, { .type = GMEM_WIRE_UNMAP, .id = 7 }, BYE }, MEMFD, -EPROTO },
		{ { HELLO, { .type = GMEM_WIRE_UNMAP, .id = 0 }, BYE }, MEMFD, -EPROTO },
		{ { HELLO, { .type = GMEM_WIRE_READY, .gpa = 1 }, BYE }, MEMFD, -EPROTO },
		/* ranges */
		{ { HELLO, { MAP_AT(16, 0) } }, MEMFD, -EPROTO },
		{ { HELLO, { MAP_AT(16, 5) } }, MEMFD, -EPROTO },
		{ { HELLO, { MAP_AT(16, UINT64_MAX / PAGE) } }, MEMFD, -EPROTO },
		{ { HELLO, { MAP_AT(UINT64_MAX / PAGE - 1, 4) } }, MEMFD, -EPROTO },
		{ { HELLO, { MAP_AT(16, 4), .offset = PAGE } }, MEMFD, -EPROTO },
		{ { HELLO, { MAP_AT(16, 1), .offset = -PAGE } }, MEMFD, -EPROTO },
		{ { HELLO, { MAP_AT(16, 1), .offset = 1 } }, MEMFD, -EPROTO },
		{ { HELLO, { .type = GMEM_WIRE_MAP, .id = 1, .gpa = 1, .size = PAGE,
			     .file_size = 4 * PAGE, .page_size = 4096, .rights = 3, .backing = 1 } },
		  MEMFD, -EPROTO },
		/* overlaps, in guest addresses and in ids */
		{ { HELLO, { MAP_AT(16, 4) }, { MAP_AT(64, 4) } }, MEMFD, -EPROTO },
		{ { HELLO, { MAP_AT(16, 4) },
		    { .type = GMEM_WIRE_MAP, .id = 2, .gpa = 19 * PAGE, .size = PAGE,
		      .file_size = 4 * PAGE, .page_size = 4096, .rights = 3, .backing = 1 } },
		  MEMFD, -EPROTO },
		/* the file is not as the message says */
		{ { HELLO, { .type = GMEM_WIRE_MAP, .id = 2, .gpa = 0, .size = 8 * PAGE,
			     .file_size = 8 * PAGE, .page_size = 4096, .rights = 3, .backing = 1 } },
		  MEMFD, -EINVAL },
		{ { HELLO, { .type = GMEM_WIRE_MAP, .id = 2, .gpa = 0, .size = PAGE,
			     .file_size = 2 * PAGE, .page_size = 4096, .rights = 3, .backing = 1 } },
		  MEMFD, -EINVAL },
		{ { HELLO, { .type = GMEM_WIRE_MAP, .id = 2, .gpa = 0, .size = PAGE,
			     .file_size = 4 * PAGE, .page_size = 8192, .rights = 3, .backing = 1 } },
		  MEMFD, -EINVAL },
		{ { HELLO, { MAP_AT(16, 4) } }, UNSEALED, -EPERM },
		{ { HELLO, { MAP_AT(16, 4) } }, NO_WRITING, -EACCES },
		{ { HELLO, { MAP_AT(16, 4) } }, SOCKET, -EINVAL },
		{ { HELLO, { MAP_AT(16, 4) } }, DEVICE, -EINVAL },
		/* too much */
		{ { HELLO, { .type = GMEM_WIRE_MAP, .id = 2, .gpa = 0, .size = 9 * PAGE,
			     .file_size = 9 * PAGE, .page_size = 4096, .rights = 3, .backing = 1 } },
		  MEMFD, -ENOSPC },
		/* numbers that name nothing */
		{ { HELLO, { .type = GMEM_WIRE_MAP, .id = 2, .gpa = 0, .size = PAGE,
			     .file_size = 4 * PAGE, .page_size = 0, .rights = 3, .backing = 1 } },
		  MEMFD, -EPROTO },
		{ { HELLO, { .type = GMEM_WIRE_MAP, .id = 2, .gpa = 0, .size = PAGE,
			     .file_size = 4 * PAGE, .page_size = 4096, .rights = 2, .backing = 1 } },
		  MEMFD, -EPROTO },
		{ { HELLO, { .type = GMEM_WIRE_MAP, .id = 2, .gpa = 0, .size = PAGE,
			     .file_size = 4 * PAGE, .page_size = 4096, .rights = 7, .backing = 1 } },
		  MEMFD, -EPROTO },
		{ { HELLO, { .type = GMEM_WIRE_MAP, .id = 2, .gpa = 0, .size = PAGE,
			     .file_size = 4 * PAGE, .page_size = 4096, .rights = 3, .backing = 9 } },
		  MEMFD, -EPROTO },
	};
	size_t i;
	int ret;

	(void)state;
	fake_boot("6.18");
	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		ret = feed(cases[i].messages, cases[i].file, 1);
		if (ret != cases[i].ret)
			fail_msg("case %zu: %d, not %d: %s", i, ret, cases[i].ret, gmem_last_error());
	}
	for (unsigned fds = 0; fds <= 8; fds++)
		assert_int_equal(feed(cases[0].messages, MEMFD, fds), fds == 1 ? 0 : -EPROTO);
	assert_int_equal(fake_complaints(), 0);
	assert_int_equal(fake_halt(), 0);
}

static void an_import_is_bounded_in_extents(void **state)
{
	struct scene s;

	(void)state;
	scene_begin_raw(&s);
	for (uint64_t i = 0; i < 3; i++)
		add(&s, 16 * i, 1, (struct gmem_region_opts){ .align = 0 });
	add_peer(&s, (struct gmem_peer_opts){ .flags = 0 });
	assert_ok(gmem_import_new(s.sockets[1],
				  &(struct gmem_import_opts){ .size = sizeof(struct gmem_import_opts),
							      .max_extents = 2 }, &s.import));
	while (gmem_peer_status(s.peer) == 0) {
		assert_ok(gmem_export_dispatch(s.exporter));
		gmem_import_dispatch(s.import);
	}
	assert_int_equal(gmem_peer_status(s.peer), -ENOSPC);
	scene_end(&s);
}

static void import_options_are_checked(void **state)
{
	GMEM_OPTS(gmem_import_opts, unknown, .flags = UNIT_UNKNOWN_BIT);
	GMEM_OPTS(gmem_import_opts, reserved, .reserved = 1);
	struct gmem_import *import = NULL;
	struct gmem_view *view = NULL;
	struct scene s;

	(void)state;
	scene_begin(&s);
	assert_refused(-EINVAL, "does not know", gmem_import_new(s.sockets[1], &unknown, &import));
	assert_refused(-EINVAL, "reserved", gmem_import_new(s.sockets[1], &reserved, &import));
	assert_refused(-EINVAL, "ret is NULL", gmem_import_new(s.sockets[1], NULL, NULL));
	assert_refused(-EBADF, "no socket", gmem_import_new(9999, NULL, &import));
	assert_refused(-EINVAL, "import is NULL", gmem_import_dispatch(NULL));
	assert_refused(-EINVAL, "import is NULL", gmem_import_fd(NULL));
	assert_refused(-EINVAL, "import is NULL", gmem_import_view_new(NULL, &view));
	assert_refused(-EINVAL, "import is NULL", gmem_import_table(NULL, NULL, 0));
	assert_refused(-EINVAL, "extents is NULL", gmem_import_table(s.import, NULL, 0));
	gmem_import_free(NULL);
	scene_end(&s);
}

/* ---- failures ---- */

/*
 * Each call and each allocation fails in turn. Whatever is lost by it, the two
 * sides end without leaving anything behind, and neither sees memory it should
 * not.
 */
static void one_failure(bool allocation, unsigned n, bool *ret_struck)
{
	struct gmem_export *exporter = NULL;
	struct gmem_import *import = NULL;
	struct gmem_peer *peer = NULL;
	struct gmem_view *view = NULL;
	struct scene s;

	scene_begin_raw(&s);
	add(&s, 16, 4, (struct gmem_region_opts){ .align = 0 });
	if (allocation)
		unit_fail_alloc(n);
	else
		fake_fail_call(n, -EIO);
	if (gmem_export_new(s.unit.vm, NULL, &exporter) == 0 &&
	    gmem_peer_add(exporter, s.sockets[0], NULL, &peer) == 0 &&
	    gmem_import_new(s.sockets[1], NULL, &import) == 0 &&
	    gmem_import_view_new(import, &view) == 0) {
		for (int i = 0; i < 5; i++) {
			gmem_export_dispatch(exporter);
			gmem_import_dispatch(import);
		}
		gmem_export_dispatch(exporter);
	}
	*ret_struck = allocation ? unit_alloc_struck() : fake_fail_struck();
	if (!*ret_struck)
		assert_int_equal(gmem_peer_status(peer), 1);
	gmem_view_free(view);
	gmem_import_free(import);
	gmem_export_free(exporter);
	scene_end(&s);
}

static void every_failure_is_survived(void **state)
{
	bool struck = true;

	(void)state;
	for (unsigned n = 1; struck; n++)
		one_failure(false, n, &struck);
	struck = true;
	for (unsigned n = 1; struck; n++)
		one_failure(true, n, &struck);
}

static void taking_back_survives_failures(void **state)
{
	struct gmem_region *a;
	struct scene s;

	(void)state;
	scene_begin(&s);
	a = add(&s, 16, 4, (struct gmem_region_opts){ .align = 0 });
	exchange(&s);
	unit_fail_alloc(1);
	assert_refused(-ENOMEM, "take memory back", gmem_region_remove(a));
	assert_true(unit_alloc_struck());
	/* the other side cannot unmap, and says so */
	start_answering(&s);
	fake_fail_kind(FAKE_POLL_MANY, 0, 1, -EPERM);
	assert_ok(gmem_region_remove(a));
	stop_answering(&s);
	scene_end(&s);
}

struct device {
	struct gmem_import *import;
	int doorbell;
	int ret;
};

static void *wait_for_doorbell(void *data)
{
	struct device *device = data;

	device->ret = gmem_import_wait(device->import, device->doorbell, -1);
	return NULL;
}

static void both_sides_wait_without_a_loop_of_their_own(void **state)
{
	struct device device;
	struct gmem_region *a;
	pthread_t thread;
	struct scene s;
	int bell[2];

	(void)state;
	scene_begin(&s);
	assert_int_equal(pipe(bell), 0);
	device = (struct device){ .import = s.import, .doorbell = bell[0] };
	a = add(&s, 16, 4, (struct gmem_region_opts){ .flags = 0 });
	memset(gmem_region_hva(a), 0x11, PAGE);
	assert_int_equal(pthread_create(&thread, NULL, wait_for_doorbell, &device), 0);
	assert_int_equal(gmem_peer_wait(s.peer, PATIENT), 1);
	assert_int_equal(gmem_peer_wait(s.peer, -1), 1);
	assert_int_equal(gmem_peer_wait(s.peer, 0), 1);
	assert_int_equal(write(bell[1], "", 1), 1);
	pthread_join(thread, NULL);
	assert_int_equal(device.ret, 1);
	assert_int_equal(load(&s, 16 * PAGE), 0x1111111111111111);
	/* It still rings, and without it the time is over. */
	assert_int_equal(gmem_import_wait(s.import, bell[0], -1), 1);
	assert_int_equal(gmem_import_wait(s.import, -1, 0), 0);
	assert_int_equal(gmem_import_wait(s.import, bell[1], 5), 0);
	close(bell[0]);
	close(bell[1]);
	scene_end(&s);
}

static void waits_end_with_the_time_or_the_other_side(void **state)
{
	struct scene s;

	(void)state;
	scene_begin(&s);
	assert_refused(-EINVAL, "peer is NULL", gmem_peer_wait(NULL, 0));
	assert_refused(-EINVAL, "import is NULL", gmem_import_wait(NULL, -1, 0));
	assert_refused(-EBADF, "fd 900", gmem_import_wait(s.import, 900, -1));
	/* nobody answers */
	add(&s, 16, 4, (struct gmem_region_opts){ .flags = 0 });
	assert_int_equal(gmem_peer_wait(s.peer, 0), 0);
	assert_int_equal(gmem_peer_wait(s.peer, 5), 0);
	fake_fail_kind(FAKE_POLL_MANY, 0, 1, -EPERM);
	assert_int_equal(gmem_peer_wait(s.peer, 5), -EPERM);
	fake_fail_kind(FAKE_POLL_MANY, 0, 1, -EPERM);
	assert_int_equal(gmem_import_wait(s.import, -1, 5), -EPERM);

	gmem_peer_remove(s.peer);
	assert_int_equal(gmem_import_wait(s.import, -1, -1), -EPIPE);
	scene_end(&s);

	scene_begin(&s);
	gmem_view_free(s.view);
	gmem_import_free(s.import);
	s.view = NULL;
	s.import = NULL;
	close(s.sockets[1]);
	s.sockets[1] = -1;
	assert_int_equal(gmem_peer_wait(s.peer, -1), -EPIPE);
	scene_end(&s);
}

/* ---- waiting while other threads do the work ---- */

struct waiter {
	struct scene *s;
	pthread_t thread;
	int ret;
};

static void *wait_for_peer(void *data)
{
	struct waiter *waiter = data;

	waiter->ret = gmem_peer_wait(waiter->s->peer, -1);
	return NULL;
}

static void *wait_for_import(void *data)
{
	struct waiter *waiter = data;

	waiter->ret = gmem_import_wait(waiter->s->import, -1, -1);
	return NULL;
}

static void begin_waiting(struct waiter *waiter, struct scene *s, void *(*wait)(void *))
{
	*waiter = (struct waiter){ .s = s };
	assert_int_equal(pthread_create(&waiter->thread, NULL, wait, waiter), 0);
}

/* They are most likely asleep then. */
static void let_sleep(void)
{
	usleep(20000);
}

static int end_waiting(const struct waiter *waiter)
{
	assert_int_equal(pthread_join(waiter->thread, NULL), 0);
	return waiter->ret;
}

/* Whichever thread reads the answer, nobody sleeps on. */
static void all_that_wait_for_a_peer_notice_that_it_has_its_memory(void **state)
{
	struct waiter waiters[3];
	struct scene s;

	(void)state;
	scene_begin(&s);
	start_answering(&s);
	for (unsigned round = 0; round < 20; round++) {
		add(&s, 16 + 4 * round, 4, (struct gmem_region_opts){ .flags = 0 });
		for (size_t i = 0; i < 3; i++)
			begin_waiting(&waiters[i], &s, wait_for_peer);
		while (gmem_peer_status(s.peer) == 0)
			assert_ok(gmem_export_dispatch(s.exporter));
		for (size_t i = 0; i < 3; i++)
			assert_int_equal(end_waiting(&waiters[i]), 1);
	}
	stop_answering(&s);
	scene_end(&s);
}

static void who_waits_for_a_peer_notices_that_it_was_cut_off(void **state)
{
	struct waiter waiter;
	struct gmem_region *a;
	struct scene s;

	(void)state;
	scene_begin_raw(&s);
	add_peer(&s, (struct gmem_peer_opts){ .wait_ms = 50, .flags = GMEM_PEER_CUT_OFF });
	assert_ok(gmem_import_new(s.sockets[1], NULL, &s.import));
	a = add(&s, 16, 4, (struct gmem_region_opts){ .flags = 0 });
	exchange(&s);
	add(&s, 32, 4, (struct gmem_region_opts){ .flags = 0 });
	begin_waiting(&waiter, &s, wait_for_peer);
	let_sleep();
	assert_ok(gmem_region_remove(a));
	assert_int_equal(end_waiting(&waiter), -ETIMEDOUT);
	scene_end(&s);
}

static void who_waits_for_a_peer_notices_the_end_of_the_vm(void **state)
{
	struct waiter waiter;
	struct scene s;

	(void)state;
	scene_begin(&s);
	add(&s, 16, 4, (struct gmem_region_opts){ .flags = 0 });
	begin_waiting(&waiter, &s, wait_for_peer);
	let_sleep();
	gmem_vm_free(s.unit.vm);
	s.unit.vm = NULL;
	assert_int_equal(end_waiting(&waiter), -ESTALE);
	scene_end(&s);
}

static void all_that_wait_for_an_import_notice_its_end(void **state)
{
	struct waiter waiters[4];
	struct scene s;

	(void)state;
	for (unsigned round = 0; round < 10; round++) {
		scene_begin(&s);
		for (size_t i = 0; i < 4; i++)
			begin_waiting(&waiters[i], &s, wait_for_import);
		let_sleep();
		gmem_peer_remove(s.peer);
		for (size_t i = 0; i < 4; i++)
			assert_int_equal(end_waiting(&waiters[i]), -EPIPE);
		assert_refused(-EPIPE, "ended before", gmem_import_wait(s.import, -1, -1));
		assert_refused(-EPIPE, "ended before", gmem_import_wait(s.import, s.sockets[0], 0));
		scene_end(&s);
	}
}

static void view_that_outlives_its_import_is_stale(void **state)
{
	struct gmem_region *a;
	struct scene s;
	uint64_t value;

	(void)state;
	scene_begin(&s);
	a = add(&s, 16, 4, (struct gmem_region_opts){ .flags = 0 });
	memset(gmem_region_hva(a), 0x11, PAGE);
	exchange(&s);
	assert_int_equal(load(&s, 16 * PAGE), 0x1111111111111111);
	gmem_import_free(s.import);
	s.import = NULL;
	assert_refused(-ESTALE, "or the import", gmem_view_load(s.view, 16 * PAGE, 8, 0, &value));
	scene_end(&s);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(what_one_side_writes_the_other_reads),
	cmocka_unit_test(regions_come_and_go_while_it_looks),
	cmocka_unit_test(the_rest_of_a_split_region_is_given_again),
	cmocka_unit_test(a_rebound_region_shows_the_other_file),
	cmocka_unit_test(memory_of_the_callers_arrives),
	cmocka_unit_test(later_region_that_cannot_be_given_is_left_out),
	cmocka_unit_test(memory_of_a_device_does_not_arrive),
	cmocka_unit_test(a_peer_gets_its_ranges_and_nothing_else),
	cmocka_unit_test(memory_for_reading_is_not_written),
	cmocka_unit_test(imported_memory_is_not_mapped_over),
	cmocka_unit_test(ranges_that_cannot_be_kept_from_a_peer_are_refused),
	cmocka_unit_test(an_fd_open_for_reading_keeps_no_peer_from_writing),
	cmocka_unit_test(rom_is_given_without_the_seal_that_a_range_for_reading_needs),
	cmocka_unit_test(peer_options_are_checked),
	cmocka_unit_test(without_an_answer_memory_stays),
	cmocka_unit_test(without_an_answer_a_peer_is_cut_off),
	cmocka_unit_test(a_peer_that_is_gone_is_not_waited_for),
	cmocka_unit_test(memory_outlives_the_exporting_side),
	cmocka_unit_test(a_peer_that_sends_anything_else_is_lost),
	cmocka_unit_test(files_in_an_empty_packet_are_closed),
	cmocka_unit_test(a_peer_that_answers_twice_is_lost),
	cmocka_unit_test(a_peer_that_refuses_memory_is_lost),
	cmocka_unit_test(an_import_believes_nothing),
	cmocka_unit_test(an_import_is_bounded_in_extents),
	cmocka_unit_test(import_options_are_checked),
	cmocka_unit_test(every_failure_is_survived),
	cmocka_unit_test(taking_back_survives_failures),
	cmocka_unit_test(both_sides_wait_without_a_loop_of_their_own),
	cmocka_unit_test(waits_end_with_the_time_or_the_other_side),
	cmocka_unit_test(all_that_wait_for_a_peer_notice_that_it_has_its_memory),
	cmocka_unit_test(who_waits_for_a_peer_notices_that_it_was_cut_off),
	cmocka_unit_test(who_waits_for_a_peer_notices_the_end_of_the_vm),
	cmocka_unit_test(all_that_wait_for_an_import_notice_its_end),
	cmocka_unit_test(view_that_outlives_its_import_is_stale),
};

UNIT_MAIN(tests)
