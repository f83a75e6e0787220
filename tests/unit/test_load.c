/* SPDX-License-Identifier: MIT */
/* load, transfer, file_queue and leased_memory: a file or pipe into guest memory, bit for bit */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "region/file.h"
#include "base/error.h"
#include "transfer/transfer.h"
#include "unit.h"

#define MIB ((uint64_t)1 << 20)

/* Two regions that touch, and bytes of the guest's own in them */
struct bench {
	struct unit unit;
	struct gmem_region *low, *high;
	uint64_t gpa, low_size, size;
	char *source;		/* the contents of the file */
	int fd;
};

static void begin(struct bench *b, uint64_t size)
{
	memset(b, 0, sizeof(*b));
	unit_begin_vm(&b->unit, "6.18");
	b->low_size = size / 2 / b->unit.page * b->unit.page;
	b->size = (size + b->unit.page - 1) / b->unit.page * b->unit.page;
	b->gpa = 16 * b->unit.page;
	b->low = unit_region(&b->unit, 16, b->low_size / b->unit.page, NULL);
	b->high = unit_region(&b->unit, 16 + b->low_size / b->unit.page,
			      (b->size - b->low_size) / b->unit.page, NULL);
	b->source = calloc(1, b->size);
	assert_non_null(b->source);
	b->fd = memfd_create("load", MFD_CLOEXEC);
	assert_true(b->fd >= 0);
}

static void end(struct bench *b)
{
	close(b->fd);
	free(b->source);
	unit_end(&b->unit);
}

/* Pages that are zero, that are not, and that are a little: of 4 KiB */
static void invent(struct bench *b, unsigned seed)
{
	for (uint64_t at = 0; at < b->size; at += 4096) {
		seed = seed * 1103515245 + 12345;
		if ((seed >> 16) % 3 == 0)
			continue;
		if ((seed >> 16) % 3 == 1)
			b->source[at + (seed >> 8) % 4096] = 1;
		else
			for (unsigned i = 0; i < 4096; i += 7)
				b->source[at + i] = (char)(seed + i);
	}
}

/* Writes only blocks that are not zero, so that the rest is holes. */
static void write_sparse(struct bench *b, uint64_t size)
{
	assert_int_equal(ftruncate(b->fd, (off_t)size), 0);
	for (uint64_t at = 0; at < size; at += 4096) {
		uint64_t now = size - at < 4096 ? size - at : 4096;

		if (!gmem_is_zero(b->source + at, now))
			assert_int_equal(pwrite(b->fd, b->source + at, now, (off_t)at), now);
	}
}

static void write_dense(struct bench *b)
{
	assert_int_equal(pwrite(b->fd, b->source, b->size, 0), b->size);
}

static char *guest(struct bench *b, uint64_t offset)
{
	return offset < b->low_size ? (char *)gmem_region_hva(b->low) + offset
				    : (char *)gmem_region_hva(b->high) + (offset - b->low_size);
}

static void check_guest(struct bench *b, uint64_t offset, const char *bytes, uint64_t size)
{
	for (uint64_t at = 0; at < size;) {
		uint64_t now = 4096 - (offset + at) % 4096;

		now = size - at < now ? size - at : now;
		assert_memory_equal(guest(b, offset + at), bytes + at, now);
		at += now;
	}
}

static void soil(struct bench *b)
{
	memset(gmem_region_hva(b->low), 0x77, b->low_size);
	memset(gmem_region_hva(b->high), 0x77, b->size - b->low_size);
}

static bool is_allocated(struct bench *b, uint64_t offset)
{
	struct gmem_region *region = offset < b->low_size ? b->low : b->high;
	uint64_t in_file, pages;

	assert_non_null(gmem_region_file(region, &in_file));
	in_file += offset < b->low_size ? offset : offset - b->low_size;
	assert_ok(gmem_sys_cachestat(region->file->fd, in_file, b->unit.page, &pages));
	return pages > 0;
}

static void load_all(struct bench *b, const struct gmem_transfer_opts *opts,
		     struct gmem_transfer_result *result)
{
	result->size = sizeof(*result);
	assert_ok(gmem_vm_load(b->unit.vm, b->gpa, b->fd, 0, b->size, opts, result));
	check_guest(b, 0, b->source, b->size);
	assert_int_equal(result->data_bytes + result->zero_bytes, b->size);
}

static void every_way_of_reading_gives_the_same_bytes(void **state)
{
	static const struct {
		uint64_t flags, most;
		int io_uring;
		enum fake_direct direct;
		bool sparse;
		uint32_t depth, engine;
		int no_ring;
	} ways[] = {
		{ 0, 0, 0, FAKE_DIRECT_DISK, false, 0, GMEM_ENGINE_IO_URING, 0 },
		{ 0, 0, 0, FAKE_DIRECT_DISK, true, 0, GMEM_ENGINE_IO_URING, 0 },
		{ 0, 0, 0, FAKE_DIRECT_NEVER, true, 3, GMEM_ENGINE_IO_URING, 0 },
		{ 0, 0, 0, FAKE_DIRECT_LIE, true, 2, GMEM_ENGINE_IO_URING, 0 },
		{ 0, 5000, 0, FAKE_DIRECT_DISK, true, 0, GMEM_ENGINE_IO_URING, 0 },
		{ 0, 12288, 0, FAKE_DIRECT_DISK, false, 1, GMEM_ENGINE_IO_URING, 0 },
		{ GMEM_TRANSFER_NO_DIRECT, 0, 0, FAKE_DIRECT_DISK, false, 32, GMEM_ENGINE_IO_URING, 0 },
		{ GMEM_TRANSFER_NO_RING, 0, 0, FAKE_DIRECT_DISK, false, 0, GMEM_ENGINE_PLAIN, -ECANCELED },
		{ GMEM_TRANSFER_NO_RING, 777, 0, FAKE_DIRECT_DISK, true, 0, GMEM_ENGINE_PLAIN, -ECANCELED },
		{ 0, 0, -EPERM, FAKE_DIRECT_DISK, true, 0, GMEM_ENGINE_PLAIN, -EPERM },
		{ 0, 0, -ENOSYS, FAKE_DIRECT_DISK, false, 0, GMEM_ENGINE_PLAIN, -ENOSYS },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(ways); i++) {
		GMEM_OPTS(gmem_transfer_opts, opts, .flags = ways[i].flags, .depth = ways[i].depth);
		struct gmem_transfer_result result;
		struct bench b;

		begin(&b, 5 * MIB);
		invent(&b, (unsigned)i);
		if (ways[i].sparse)
			write_sparse(&b, b.size);
		else
			write_dense(&b);
		fake.io_uring = ways[i].io_uring;
		fake_set_direct(ways[i].direct);
		fake_shorten_io(ways[i].most);

		load_all(&b, &opts, &result);
		assert_int_equal(result.engine, ways[i].engine);
		assert_int_equal(result.no_ring, ways[i].no_ring);
		if (ways[i].direct != FAKE_DIRECT_DISK || opts.flags || ways[i].io_uring)
			assert_int_equal(result.direct_bytes, 0);
		else if (!ways[i].most)
			assert_int_equal(result.direct_bytes, result.file_bytes);

		/* load over other contents */
		soil(&b);
		load_all(&b, &opts, &result);
		end(&b);
	}
}

static void buffers_that_do_not_fit_are_done_without(void **state)
{
	struct gmem_transfer_result result = { .size = sizeof(result) };
	unsigned int fds;
	struct bench b;

	(void)state;
	begin(&b, 5 * MIB);
	invent(&b, 3);
	write_dense(&b);
	fds = fake_open_fds();
	fake_fail_next(FAKE_MMAP, -ENOMEM);
	load_all(&b, NULL, &result);
	assert_int_equal(result.engine, GMEM_ENGINE_PLAIN);
	assert_int_equal(result.no_ring, -ENOMEM);
	assert_int_equal(result.direct_bytes, 0);
	fake_fail_kind(FAKE_MMAP, 0, 2, -ENOMEM);
	assert_refused(-ENOMEM, "no memory for 2 buffers", gmem_vm_load(b.unit.vm, b.gpa, b.fd, 0, b.size, NULL, NULL));
	assert_int_equal(fake_open_fds(), fds);
	end(&b);
}

static void zeros_take_no_memory_where_there_was_none(void **state)
{
	struct gmem_transfer_result result = { .size = sizeof(result) };
	struct bench b;

	(void)state;
	begin(&b, 4 * MIB);
	invent(&b, 7);
	write_dense(&b);
	assert_ok(gmem_vm_load(b.unit.vm, b.gpa, b.fd, 0, b.size, NULL, &result));
	/* before anything is compared: looking at a hole allocates */
	for (uint64_t at = 0; at < b.size; at += b.unit.page)
		assert_int_equal(is_allocated(&b, at), !gmem_is_zero(b.source + at, b.unit.page));
	end(&b);
}

static void file_and_guest_may_have_any_alignment(void **state)
{
	static const struct { uint64_t gpa, offset, size; } cases[] = {
		{ 0, 0, 1 }, { 1, 0, 1 }, { 0, 1, 1 }, { 4095, 4095, 2 }, { 3, 4093, 2 * 1048576 + 5 },
		{ 4096, 511, 1048577 }, { 1048575, 1048577, 999999 }, { 100, 0, 3 * 1048576 },
	};
	struct gmem_transfer_result result = { .size = sizeof(result) };
	struct bench b;

	(void)state;
	begin(&b, 4 * MIB);
	invent(&b, 3);
	write_sparse(&b, b.size);
	fake_set_direct(FAKE_DIRECT_DISK);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		soil(&b);
		assert_ok(gmem_vm_load(b.unit.vm, b.gpa + cases[i].gpa, b.fd, cases[i].offset,
				       cases[i].size, NULL, &result));
		check_guest(&b, cases[i].gpa, b.source + cases[i].offset, cases[i].size);
		/* not a byte beside it */
		if (cases[i].gpa)
			assert_int_equal(*guest(&b, cases[i].gpa - 1), 0x77);
		assert_int_equal(*guest(&b, cases[i].gpa + cases[i].size), 0x77);
	}
	end(&b);
}

static void size_0_is_up_to_the_end_of_the_file(void **state)
{
	struct gmem_transfer_result result = { .size = sizeof(result) };
	struct bench b;

	(void)state;
	begin(&b, 3 * MIB);
	invent(&b, 1);
	write_sparse(&b, 2 * MIB + 1234);
	soil(&b);
	assert_ok(gmem_vm_load(b.unit.vm, b.gpa, b.fd, 0, 0, NULL, &result));
	check_guest(&b, 0, b.source, 2 * MIB + 1234);
	assert_int_equal(*guest(&b, 2 * MIB + 1234), 0x77);
	assert_int_equal(result.data_bytes + result.zero_bytes, 2 * MIB + 1234);

	/* nothing there: nothing to do */
	assert_ok(gmem_vm_load(b.unit.vm, b.gpa, b.fd, 2 * MIB + 1234, 0, NULL, &result));
	assert_int_equal(result.data_bytes + result.zero_bytes, 0);
	end(&b);
}

static void malformed_load_is_refused_before_anything_changes(void **state)
{
	GMEM_OPTS(gmem_transfer_opts, unknown, .flags = UNIT_UNKNOWN_BIT);
	GMEM_OPTS(gmem_transfer_opts, crowd, .workers = 1025);
	GMEM_OPTS(gmem_transfer_opts, deep, .depth = 33);
	GMEM_OPTS(gmem_transfer_opts, image, .image_offset = 4096);
	struct gmem_transfer *transfer = UNTOUCHED(struct gmem_transfer);
	struct gmem_vm *vm;
	struct bench b;
	int ends[2];

	(void)state;
	begin(&b, 2 * MIB);
	write_dense(&b);
	vm = b.unit.vm;
	assert_int_equal(pipe(ends), 0);

	assert_refused(-EINVAL, "vm", gmem_vm_load(NULL, b.gpa, b.fd, 0, 1, NULL, NULL));
	assert_refused(-EINVAL, "bits", gmem_vm_load(vm, b.gpa, b.fd, 0, 1, &unknown, NULL));
	assert_refused(-EINVAL, "1025 workers", gmem_vm_load(vm, b.gpa, b.fd, 0, 1, &crowd, NULL));
	assert_refused(-EINVAL, "33", gmem_vm_load(vm, b.gpa, b.fd, 0, 1, &deep, NULL));
	assert_refused(-EINVAL, "image", gmem_vm_load(vm, b.gpa, b.fd, 0, 1, &image, NULL));
	assert_refused(-EBADF, "EBADF", gmem_vm_load(vm, b.gpa, -1, 0, 1, NULL, NULL));
	assert_refused(-ESPIPE, "0x7", gmem_vm_load(vm, b.gpa, ends[0], 7, 1, NULL, NULL));
	assert_refused(-EINVAL, "offset", gmem_vm_load(vm, b.gpa, b.fd, UINT64_MAX, 1, NULL, NULL));
	assert_refused(-ENODATA, "0x200000",
		       gmem_vm_load(vm, b.gpa, b.fd, 0, 2 * MIB + 1, NULL, NULL));
	assert_refused(-ENODATA, "0x200001",
		       gmem_vm_load(vm, b.gpa, b.fd, 2 * MIB + 1, 0, NULL, NULL));
	assert_refused(-ENOENT, "no region at gpa 0x0", gmem_vm_load(vm, 0, b.fd, 0, 1, NULL, NULL));
	assert_refused(-ENOENT, "no region at gpa",
		       gmem_vm_load(vm, b.gpa + 1, b.fd, 0, b.size, NULL, NULL));
	assert_refused(-EINVAL, "wraps", gmem_vm_load(vm, UINT64_MAX, b.fd, 0, 2, NULL, NULL));
	assert_refused(-ENOENT, "no region",
		       gmem_vm_load_begin(vm, 0, b.fd, 0, 1, NULL, &transfer));
	assert_ptr_equal(transfer, UNTOUCHED(struct gmem_transfer));
	close(ends[0]);
	close(ends[1]);
	end(&b);
}

static void a_pipe_is_read_to_its_end_or_as_far_as_asked(void **state)
{
	static const uint64_t flags[] = { 0, GMEM_TRANSFER_NO_RING };

	(void)state;
	for (size_t i = 0; i < 2; i++) {
		GMEM_OPTS(gmem_transfer_opts, opts, .flags = flags[i]);
		struct gmem_transfer_result result = { .size = sizeof(result) };
		struct bench b;
		int ends[2];

		begin(&b, 2 * MIB);
		invent(&b, 5);
		assert_int_equal(pipe(ends), 0);
		assert_int_equal(write(ends[1], b.source, 50000), 50000);
		assert_ok(gmem_vm_load(b.unit.vm, b.gpa, ends[0], 0, 20000, &opts, &result));
		check_guest(&b, 0, b.source, 20000);

		close(ends[1]);
		assert_ok(gmem_vm_load(b.unit.vm, b.gpa + 20000, ends[0], 0, 0, &opts, &result));
		check_guest(&b, 0, b.source, 50000);
		assert_int_equal(result.data_bytes + result.zero_bytes, 30000);

		assert_int_equal(gmem_vm_load(b.unit.vm, b.gpa, ends[0], 0, 1, &opts, &result), -ENODATA);
		close(ends[0]);
		end(&b);
	}
}

/* Half of a pipe's content comes after the first wait. */
static void a_pipe_can_be_polled_for(void **state)
{
	static const struct { uint64_t flags; int pipe_flags; } ways[] = {
		{ 0, 0 }, { 0, O_NONBLOCK }, { GMEM_TRANSFER_NO_RING, 0 },
		{ GMEM_TRANSFER_NO_RING, O_NONBLOCK },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(ways); i++) {
		GMEM_OPTS(gmem_transfer_opts, opts, .flags = ways[i].flags);
		struct gmem_transfer *transfer;
		struct bench b;
		int ends[2], ret;
		int16_t events = 0;

		begin(&b, 2 * MIB);
		memset(b.source, 'x', 4096);
		assert_int_equal(pipe2(ends, ways[i].pipe_flags), 0);
		assert_ok(gmem_vm_load_begin(b.unit.vm, b.gpa, ends[0], 0, 4096, &opts, &transfer));
		assert_int_equal(gmem_transfer_step(transfer, 0), GMEM_TRANSFER_WAIT);
		assert_true(gmem_transfer_fd(transfer, &events) >= 0);
		assert_int_equal(events, POLLIN);
		assert_int_equal(write(ends[1], b.source, 1000), 1000);
		assert_int_equal(gmem_transfer_step(transfer, 0), GMEM_TRANSFER_WAIT);
		assert_int_equal(write(ends[1], b.source, 3096), 3096);
		while ((ret = gmem_transfer_step(transfer, 0)) == GMEM_TRANSFER_MORE)
			;
		assert_int_equal(ret, GMEM_TRANSFER_DONE);
		assert_int_equal(gmem_transfer_step(transfer, 0), GMEM_TRANSFER_DONE);
		check_guest(&b, 0, b.source, 4096);
		assert_ok(gmem_transfer_free(transfer));
		close(ends[0]);
		close(ends[1]);
		end(&b);
	}
}

static void a_transfer_ends_whenever_it_is_freed(void **state)
{
	struct gmem_transfer *transfer;
	struct bench b;
	int ends[2];

	(void)state;
	begin(&b, 4 * MIB);
	invent(&b, 2);
	write_dense(&b);
	assert_int_equal(pipe(ends), 0);
	for (unsigned steps = 0; steps < 6; steps++) {
		assert_ok(gmem_vm_load_begin(b.unit.vm, b.gpa, b.fd, 0, 0, NULL, &transfer));
		for (unsigned i = 0; i < steps; i++)
			assert_true(gmem_transfer_step(transfer, 0) >= 0);
		assert_ok(gmem_transfer_free(transfer));
	}
	/* a read that nothing will answer */
	assert_ok(gmem_vm_load_begin(b.unit.vm, b.gpa, ends[0], 0, 0, NULL, &transfer));
	assert_int_equal(gmem_transfer_step(transfer, 0), GMEM_TRANSFER_WAIT);
	assert_ok(gmem_transfer_free(transfer));
	assert_ok(gmem_transfer_free(NULL));
	close(ends[0]);
	close(ends[1]);
	end(&b);
}

static int stop_in_the_middle(void *data, uint64_t done, uint64_t total)
{
	unsigned *calls = data;

	assert_int_equal(total, 4 * MIB);
	assert_true(done <= total);
	return ++*calls == 2;
}

static void a_callback_stops_it_and_it_goes_on(void **state)
{
	unsigned calls = 0;
	GMEM_OPTS(gmem_transfer_opts, opts, .progress = stop_in_the_middle, .progress_data = &calls);
	struct gmem_transfer_result result = { .size = sizeof(result) };
	struct gmem_transfer *transfer;
	struct bench b;
	int ret;

	(void)state;
	begin(&b, 4 * MIB);
	invent(&b, 9);
	write_dense(&b);
	assert_int_equal(gmem_vm_load(b.unit.vm, b.gpa, b.fd, 0, b.size, &opts, &result), -ECANCELED);
	assert_true(result.data_bytes + result.zero_bytes < b.size);

	calls = 0;
	assert_ok(gmem_vm_load_begin(b.unit.vm, b.gpa, b.fd, 0, b.size, &opts, &transfer));
	while ((ret = gmem_transfer_step(transfer, 1)) > 0)
		;
	assert_int_equal(ret, -ECANCELED);
	while ((ret = gmem_transfer_step(transfer, 1)) > 0)
		;
	assert_int_equal(ret, 0);
	check_guest(&b, 0, b.source, b.size);
	assert_ok(gmem_transfer_free(transfer));
	end(&b);
}

static void failed_transfer_goes_on_where_it_failed(void **state)
{
	static const struct { enum fake_call call; uint64_t flags; int err; } cases[] = {
		{ FAKE_READ_AT, GMEM_TRANSFER_NO_RING, -EIO },
		{ FAKE_RING_RESULT, 0, -EIO },
		{ FAKE_RING_RESULT, 0, -ENOSPC },
		{ FAKE_RING_SUBMIT, 0, -EBUSY },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		GMEM_OPTS(gmem_transfer_opts, opts, .flags = cases[i].flags);
		struct gmem_transfer *transfer;
		struct bench b;
		int ret;

		begin(&b, 4 * MIB);
		invent(&b, 11);
		write_dense(&b);
		assert_ok(gmem_vm_load_begin(b.unit.vm, b.gpa, b.fd, 0, b.size, &opts, &transfer));
		fake_fail_next(cases[i].call, cases[i].err);
		while ((ret = gmem_transfer_step(transfer, 1)) > 0)
			;
		assert_int_equal(ret, cases[i].err);
		assert_non_null(strstr(gmem_last_error(), gmem_errno_name(ret)));
		while ((ret = gmem_transfer_step(transfer, 1)) > 0)
			;
		assert_int_equal(ret, 0);
		check_guest(&b, 0, b.source, b.size);
		assert_ok(gmem_transfer_free(transfer));
		end(&b);
	}
}

static void signals_do_not_interrupt_a_transfer(void **state)
{
	static const struct { enum fake_call call; uint64_t flags; } cases[] = {
		{ FAKE_READ_AT, GMEM_TRANSFER_NO_RING }, { FAKE_RING_RESULT, 0 },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		GMEM_OPTS(gmem_transfer_opts, opts, .flags = cases[i].flags);
		struct gmem_transfer_result result;
		struct bench b;

		begin(&b, 3 * MIB);
		invent(&b, 13);
		write_dense(&b);
		fake_fail_kind(cases[i].call, 1, 3, -EINTR);
		load_all(&b, &opts, &result);
		end(&b);
	}
}

static void every_call_may_fail_and_nothing_leaks(void **state)
{
	struct bench b;
	int ret;

	(void)state;
	begin(&b, 3 * MIB);
	invent(&b, 17);
	write_sparse(&b, b.size);
	fake_set_direct(FAKE_DIRECT_DISK);
	for (unsigned n = 1;; n++) {
		struct fake_snapshot *before = fake_snapshot();

		fake_fail_call(n, -ENOMEM);
		ret = gmem_vm_load(b.unit.vm, b.gpa, b.fd, 0, b.size, NULL, NULL);
		assert_true(ret == 0 || ret == -ENOMEM);
		assert_true(fake_equal(before));
		if (!fake_fail_struck())
			break;
		if (ret == 0)
			check_guest(&b, 0, b.source, b.size);
	}
	assert_int_equal(ret, 0);
	check_guest(&b, 0, b.source, b.size);
	end(&b);
}

static void the_callers_ring_is_used_as_the_caller_says(void **state)
{
	/* never looked into: the scripted kernel's rings are not liburing's */
	GMEM_OPTS(gmem_transfer_opts, opts, .ring = UNTOUCHED(struct io_uring), .ring_tag = 1000);
	struct gmem_transfer *transfer;
	struct bench b;
	uint64_t tag;
	int ret, res;

	(void)state;
	begin(&b, 4 * MIB);
	invent(&b, 19);
	write_dense(&b);
	assert_refused(-EINVAL, "step", gmem_vm_load(b.unit.vm, b.gpa, b.fd, 0, 0, &opts, NULL));

	assert_ok(gmem_vm_load_begin(b.unit.vm, b.gpa, b.fd, 0, b.size, &opts, &transfer));
	assert_int_equal(gmem_transfer_step(transfer, 1), -EINVAL);
	while ((ret = gmem_transfer_step(transfer, 0)) > 0) {
		assert_int_equal(gmem_transfer_complete(transfer, 999, 1), -EINVAL);
		assert_int_equal(gmem_transfer_complete(transfer, 1031, 1), -EINVAL);
		while (ret == GMEM_TRANSFER_WAIT && fake_take_completion(&tag, &res))
			assert_ok(gmem_transfer_complete(transfer, tag, res));
	}
	assert_int_equal(ret, 0);
	check_guest(&b, 0, b.source, b.size);
	assert_ok(gmem_transfer_free(transfer));

	/* a transfer that ends early must hand over its requests under way */
	assert_ok(gmem_vm_load_begin(b.unit.vm, b.gpa, b.fd, 0, b.size, &opts, &transfer));
	assert_int_equal(gmem_transfer_step(transfer, 0), GMEM_TRANSFER_WAIT);
	while ((ret = gmem_transfer_free(transfer)) == -EBUSY) {
		assert_true(fake_take_completion(&tag, &res));
		assert_ok(gmem_transfer_complete(transfer, tag, res));
	}
	assert_int_equal(ret, 0);
	end(&b);
}

static void result_of_a_wrong_size_is_refused(void **state)
{
	struct gmem_transfer_result result = { .size = 8 };
	struct gmem_transfer *transfer;
	struct bench b;

	(void)state;
	begin(&b, MIB);
	write_dense(&b);
	assert_int_equal(gmem_vm_load(b.unit.vm, b.gpa, b.fd, 0, 0, NULL, &result), -EINVAL);
	assert_ok(gmem_vm_load_begin(b.unit.vm, b.gpa, b.fd, 0, 0, NULL, &transfer));
	assert_int_equal(gmem_transfer_get_result(transfer, &result), -EINVAL);
	assert_int_equal(gmem_transfer_get_result(NULL, &result), -EINVAL);
	assert_ok(gmem_transfer_free(transfer));
	end(&b);
}

/* Host memory is left for @size bytes, and their page tables. */
static void leave(uint64_t size)
{
	static char text[64];

	snprintf(text, sizeof(text), "MemAvailable: %" PRIu64 " kB\n", (size + size / 256) / 1024);
	fake_set_file("/proc/meminfo", text);
}

static void what_does_not_fit_is_refused_before_the_first_byte(void **state)
{
	GMEM_OPTS(gmem_transfer_opts, unchecked, .flags = GMEM_TRANSFER_UNCHECKED);
	struct bench b;

	(void)state;
	begin(&b, 4 * MIB);
	memset(b.source, 1, b.size);
	write_dense(&b);
	leave(b.size - b.unit.page);
	assert_refused(-ENOMEM, "bytes more, with page tables, do not fit",
		       gmem_vm_load(b.unit.vm, b.gpa, b.fd, 0, b.size, NULL, NULL));
	assert_false(is_allocated(&b, 0));

	/* What the guest has already is not needed again. */
	leave(b.size - MIB);
	assert_ok(gmem_vm_populate(b.unit.vm, b.gpa, MIB, NULL, NULL));
	assert_ok(gmem_vm_load(b.unit.vm, b.gpa, b.fd, 0, b.size, NULL, NULL));
	check_guest(&b, 0, b.source, b.size);
	leave(0);
	assert_ok(gmem_vm_load(b.unit.vm, b.gpa, b.fd, 0, b.size, NULL, NULL));
	end(&b);

	begin(&b, 4 * MIB);
	memset(b.source, 1, b.size);
	write_dense(&b);
	leave(0);
	assert_ok(gmem_vm_load(b.unit.vm, b.gpa, b.fd, 0, b.size, &unchecked, NULL));
	end(&b);
}

static void set_pool(uint64_t page_size, const char *is_free, const char *reserved)
{
	static char paths[2][96];
	const char *values[] = { is_free, reserved };

	for (int i = 0; i < 2; i++) {
		snprintf(paths[i], sizeof(paths[i]), "/sys/kernel/mm/hugepages/hugepages-%" PRIu64 "kB/%s",
			 page_size / 1024, i ? "resv_hugepages" : "free_hugepages");
		fake_set_file(paths[i], values[i]);
	}
}

/* Memory of two huge pages of four pages each, one of them there, with @is_free left in the pool */
static void load_into_huge_pages(const char *is_free, const char *reserved, uint64_t pages, int expected)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_HVA);
	struct gmem_region *region;
	char text[GMEM_SIZE_TEXT], missing[64];
	uint64_t page, size;
	struct gmem_plan *plan;
	char *memory;
	struct bench b;

	begin(&b, MIB);
	page = b.unit.page;
	size = 8 * page;
	gmem_size_text(4 * page, text);
	snprintf(missing, sizeof(missing), "1 huge pages of %s are missing", text);
	memory = mmap(NULL, 2 * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(memory, MAP_FAILED);
	opts.hva = (void *)(((uintptr_t)memory + size - 1) / size * size);
	opts.plan = plan = unit_plan(&b.unit, GMEM_BACKING_HOST);
	fake_mark_mapping(opts.hva, size, 4 * page, "ht nr", 0);
	set_pool(4 * page, is_free, reserved);
	assert_ok(gmem_region_add(b.unit.vm, 1024 * page, size, &opts, &region));
	memset(opts.hva, 1, 4 * page);
	memset(b.source, 2, size);
	assert_int_equal(pwrite(b.fd, b.source, pages * page, 0), pages * page);
	if (expected)
		assert_refused(expected, missing,
			       gmem_vm_load(b.unit.vm, 1024 * page, b.fd, 0, pages * page, NULL, NULL));
	else
		assert_ok(gmem_vm_load(b.unit.vm, 1024 * page, b.fd, 0, pages * page, NULL, NULL));
	assert_int_equal(*(char *)opts.hva, expected ? 1 : 2);
	assert_ok(gmem_region_remove(region));
	gmem_plan_free(plan);
	munmap(memory, 2 * size);
	end(&b);
}

static void huge_pages_that_are_missing_are_told_before_the_first_byte(void **state)
{
	(void)state;
	load_into_huge_pages("0\n", "0\n", 8, -ENOMEM);
	load_into_huge_pages("3\n", "3\n", 8, -ENOMEM);
	load_into_huge_pages("0\n", "0\n", 4, 0);
	load_into_huge_pages("1\n", "0\n", 8, 0);
}

/* Half of a region that the caller put together has huge pages, of which none are free. */
static void ordinary_pages_beside_huge_ones_are_no_huge_pages(void **state)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_HVA);
	struct gmem_region *region;
	struct gmem_plan *plan;
	struct bench b;
	uint64_t half;
	char *memory;

	(void)state;
	begin(&b, MIB);
	half = 16 * b.unit.page;
	memory = mmap(NULL, 3 * half, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(memory, MAP_FAILED);
	opts.hva = (void *)(((uintptr_t)memory + half - 1) / half * half);
	opts.plan = plan = unit_plan(&b.unit, GMEM_BACKING_HOST);
	fake_mark_mapping(opts.hva, half, half, "ht nr", 0);
	set_pool(half, "0\n", "0\n");
	assert_ok(gmem_region_add(b.unit.vm, 64 * half, 2 * half, &opts, &region));
	memset(b.source, 2, half);
	assert_int_equal(pwrite(b.fd, b.source, half, 0), half);
	assert_ok(gmem_vm_populate(b.unit.vm, 65 * half, half, NULL, NULL));
	assert_int_equal(madvise((char *)opts.hva + half, half, MADV_DONTNEED), 0);
	assert_ok(gmem_vm_load(b.unit.vm, 65 * half, b.fd, 0, half, NULL, NULL));
	assert_memory_equal((char *)opts.hva + half, b.source, half);
	leave(0);
	assert_ok(gmem_vm_populate(b.unit.vm, 65 * half, half, NULL, NULL));

	/* As ordinary memory it is asked for all the same. */
	assert_int_equal(madvise((char *)opts.hva + half, half, MADV_DONTNEED), 0);
	leave(half - b.unit.page);
	assert_refused(-ENOMEM, "bytes more, with page tables, do not fit",
		       gmem_vm_populate(b.unit.vm, 65 * half, half, NULL, NULL));
	assert_refused(-ENOMEM, "bytes more, with page tables, do not fit",
		       gmem_vm_load(b.unit.vm, 65 * half, b.fd, 0, half, NULL, NULL));
	gmem_plan_free(plan);
	end(&b);
	munmap(memory, 3 * half);
}

/* A load into regions of one huge page of four pages each, none of them there */
static void load_into_many_regions(unsigned regions, const char *reserved, int expected)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_HVA);
	struct gmem_region *region;
	struct gmem_plan *plan;
	uint64_t huge, size;
	struct bench b;
	unsigned asked;
	char *memory;
	int ret;

	begin(&b, MIB);
	huge = 4 * b.unit.page;
	size = regions * huge;
	memory = mmap(NULL, size + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(memory, MAP_FAILED);
	opts.hva = (void *)(((uintptr_t)memory + huge - 1) / huge * huge);
	opts.plan = plan = unit_plan(&b.unit, GMEM_BACKING_HOST);
	set_pool(huge, reserved, reserved);
	fake_mark_mapping(opts.hva, size, huge, "ht nr", 0);
	for (unsigned i = 0; i < regions; i++) {
		assert_ok(gmem_region_add(b.unit.vm, (256 + i) * huge, huge, &opts, &region));
		opts.hva = (char *)opts.hva + huge;
	}
	assert_int_equal(posix_fallocate(b.fd, 0, (off_t)size), 0);
	asked = fake_count(FAKE_READ_FILE);
	ret = gmem_vm_load(b.unit.vm, 256 * huge, b.fd, 0, size, NULL, NULL);
	assert_true(fake_count(FAKE_READ_FILE) - asked < 200);
	assert_int_equal(ret, expected);
	gmem_plan_free(plan);
	end(&b);
	munmap(memory, size + huge);
}

/* Which mapping they are set aside for takes a walk of the page tables. */
static void few_of_many_regions_are_asked_about_huge_pages(void **state)
{
	(void)state;
	load_into_many_regions(10, "9\n", -ENOMEM);
	load_into_many_regions(10, "10\n", -ENOMEM);
	load_into_many_regions(300, "299\n", -ENOMEM);
	load_into_many_regions(300, "300\n", 0);
}

static void holes_of_a_file_need_no_memory(void **state)
{
	struct bench b;

	(void)state;
	begin(&b, 4 * MIB);
	b.source[0] = 1;
	write_sparse(&b, b.size);
	leave(16 * b.unit.page);
	assert_ok(gmem_vm_load(b.unit.vm, b.gpa, b.fd, 0, b.size, NULL, NULL));
	end(&b);
}

static void stream_ends_where_memory_does(void **state)
{
	GMEM_OPTS(gmem_transfer_result, result);
	struct gmem_transfer *transfer;
	struct bench b;
	int ends[2];

	(void)state;
	begin(&b, 4 * MIB);
	assert_int_equal(pipe(ends), 0);
	leave(0);
	memcpy(b.source + 4096, "guest", 5);
	assert_int_equal(write(ends[1], b.source, 4096 + 5), 4096 + 5);
	close(ends[1]);
	assert_ok(gmem_vm_load_begin(b.unit.vm, b.gpa, ends[0], 0, 4096 + 5, NULL, &transfer));
	for (int i = 0; i < 2; i++) {
		assert_refused(-ENOMEM, "bytes more, with page tables, do not fit",
			       gmem_transfer_step(transfer, 1));
		assert_ok(gmem_transfer_get_result(transfer, &result));
		assert_int_equal(result.data_bytes + result.zero_bytes, 4096);
	}

	/* It goes on when others have given some back. */
	leave(MIB);
	while (gmem_transfer_step(transfer, 1) > 0)
		;
	check_guest(&b, 0, b.source, 4096 + 5);
	assert_ok(gmem_transfer_get_result(transfer, &result));
	assert_int_equal(result.data_bytes, 5);
	assert_int_equal(result.zero_bytes, 4096);
	assert_ok(gmem_transfer_free(transfer));
	close(ends[0]);
	end(&b);
}

/* A pipe may have as much as there is memory from its start on. */
static void memory_that_a_stream_does_not_reach_may_be_unmapped(void **state)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_HVA);
	GMEM_OPTS(gmem_transfer_result, result);
	struct gmem_region *region;
	struct gmem_plan *plan;
	struct bench b;
	int ends[2];

	(void)state;
	begin(&b, MIB);
	opts.plan = plan = unit_plan(&b.unit, GMEM_BACKING_HOST);
	opts.hva = unit_free_address(&b.unit, 2);
	assert_ok(gmem_region_add(b.unit.vm, b.gpa + b.size, 2 * b.unit.page, &opts, &region));
	assert_int_equal(pipe(ends), 0);
	assert_int_equal(write(ends[1], "guest" "guest", 10), 10);
	assert_ok(gmem_vm_load(b.unit.vm, b.gpa, ends[0], 0, 5, NULL, NULL));
	assert_refused(-EFAULT, "nothing was mapped there when the transfer began",
		       gmem_vm_load(b.unit.vm, b.gpa + b.size - 2, ends[0], 0, 5, NULL, NULL));
	close(ends[1]);
	assert_ok(gmem_vm_load(b.unit.vm, b.gpa + 5, ends[0], 0, 0, NULL, &result));
	assert_int_equal(result.data_bytes, 5);
	check_guest(&b, 0, "guest" "guest", 10);
	close(ends[0]);

	/* One that gets as far keeps what it has. */
	assert_int_equal(pipe(ends), 0);
	assert_int_equal(write(ends[1], "guest", 5), 5);
	close(ends[1]);
	assert_refused(-EFAULT, "nothing was mapped there when the transfer began",
		       gmem_vm_load(b.unit.vm, b.gpa + b.size - 2, ends[0], 0, 0, NULL, &result));
	assert_int_equal(result.data_bytes, 2);
	check_guest(&b, b.size - 2, "gu", 2);
	close(ends[0]);
	assert_ok(gmem_region_remove(region));
	gmem_plan_free(plan);
	end(&b);
}

static void larger_pages_and_host_memory_work_too(void **state)
{
	struct gmem_transfer_result result = { .size = sizeof(result) };
	struct gmem_region *region;
	struct gmem_plan *plan;
	struct unit unit;
	char *bytes;
	int fd;

	(void)state;
	unit_begin_vm_pages(&unit, "6.18", 65536);
	plan = unit_plan(&unit, GMEM_BACKING_HOST);
	region = unit_region(&unit, 0, 8, plan);
	bytes = calloc(1, 8 * unit.page);
	fd = memfd_create("load", MFD_CLOEXEC);
	memset(bytes + 5000, 3, 10000);
	memset(bytes + 3 * unit.page, 4, 7);
	assert_int_equal(pwrite(fd, bytes, 8 * unit.page, 0), 8 * unit.page);
	for (int soiled = 0; soiled < 2; soiled++) {
		assert_ok(gmem_vm_load(unit.vm, 0, fd, 0, 0, NULL, &result));
		assert_memory_equal(gmem_region_hva(region), bytes, 8 * unit.page);
		memset(gmem_region_hva(region), 0x77, 8 * unit.page);
	}
	close(fd);
	free(bytes);
	gmem_plan_free(plan);
	unit_end(&unit);
}

/* ---- several threads ---- */

#define ZEROS_AT (5 * MIB)

/* No zeros but in two pages at ZEROS_AT */
static void invent_dense(struct bench *b)
{
	for (uint64_t at = 0; at < b->size; at += 8)
		*(uint64_t *)(void *)(b->source + at) = at + 1;
	memset(b->source + ZEROS_AT, 0, 2 * b->unit.page);
}

static void workers_load_what_one_loads(void **state)
{
	static const struct {
		uint64_t flags, most;
		bool sparse, is_dense, is_cached, recovers;
	} ways[] = {
		{ 0, 0, false, true, true, true }, { 0, 0, true, false, true, true },
		{ 0, 0, false, true, false, false }, { 0, 0, true, false, false, false },
		{ GMEM_TRANSFER_NO_RING, 0, false, true, false, true },
		{ GMEM_TRANSFER_NO_RING, 5000, true, false, true, false },
		{ 0, 70000, false, true, true, true }, { GMEM_TRANSFER_NO_DIRECT, 3000, true, true, false, true },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(ways); i++) {
		struct gmem_transfer_result one = { .size = sizeof(one) }, many = one;
		struct bench b;

		begin(&b, 12 * MIB);
		ways[i].is_dense ? invent_dense(&b) : invent(&b, 5);
		ways[i].sparse ? write_sparse(&b, b.size) : write_dense(&b);
		if (ways[i].is_cached)
			fake_cache_files();
		if (ways[i].recovers)
			assert_ok(gmem_recovery_enable());
		fake_set_direct(FAKE_DIRECT_DISK);
		fake_shorten_io(ways[i].most);
		for (uint32_t workers = 1; workers <= 81; workers *= 3) {
			GMEM_OPTS(gmem_transfer_opts, opts, .flags = ways[i].flags, .workers = workers);

			soil(&b);
			load_all(&b, &opts, &many);
			if (workers == 1)
				one = many;
			assert_int_equal(many.zero_bytes, one.zero_bytes);
			assert_int_equal(many.data_bytes, one.data_bytes);
			assert_int_equal(many.file_bytes, one.file_bytes);
			assert_int_equal(many.engine, one.engine);
		}
		if (ways[i].recovers)
			gmem_recovery_disable();
		end(&b);
	}
}

static void dense_data_needs_no_buffer_and_its_zeros_no_memory(void **state)
{
	(void)state;
	for (uint32_t workers = 1; workers <= 4; workers += 3) {
		GMEM_OPTS(gmem_transfer_opts, opts, .workers = workers);
		struct gmem_transfer_result result = { .size = sizeof(result) };
		struct gmem_lease *lease;
		struct bench b;

		begin(&b, 12 * MIB);
		invent_dense(&b);
		write_dense(&b);
		fake_cache_files();
		assert_ok(gmem_recovery_enable());

		/* somebody else relies on the second of the pages that turn out to be zero */
		assert_ok(gmem_lease_new(b.unit.vm, b.gpa + ZEROS_AT + b.unit.page, b.unit.page, NULL, &lease));
		assert_ok(gmem_vm_load(b.unit.vm, b.gpa, b.fd, 0, b.size, &opts, &result));
		assert_int_equal(result.zero_bytes, 2 * b.unit.page);
		assert_true(is_allocated(&b, ZEROS_AT - b.unit.page));
		assert_true(is_allocated(&b, ZEROS_AT + 2 * b.unit.page));
		assert_true(is_allocated(&b, ZEROS_AT + b.unit.page));
		gmem_lease_free(lease);
		check_guest(&b, 0, b.source, b.size);

		unit_end(&b.unit);
		unit_begin_vm(&b.unit, "6.18");
		b.low = unit_region(&b.unit, 16, b.low_size / b.unit.page, NULL);
		b.high = unit_region(&b.unit, 16 + b.low_size / b.unit.page,
				     (b.size - b.low_size) / b.unit.page, NULL);
		fake_cache_files();
		assert_ok(gmem_vm_load(b.unit.vm, b.gpa, b.fd, 0, b.size, &opts, &result));
		assert_int_equal(result.zero_bytes, 2 * b.unit.page);
		for (uint64_t at = 0; at < b.size; at += b.unit.page)
			assert_int_equal(is_allocated(&b, at), at < ZEROS_AT || at >= ZEROS_AT + 2 * b.unit.page);

		/* pages that were there before stay there */
		soil(&b);
		load_all(&b, &opts, &result);
		assert_int_equal(result.zero_bytes, 2 * b.unit.page);
		assert_true(is_allocated(&b, ZEROS_AT));
		gmem_recovery_disable();
		end(&b);
	}
}

/* Where pages of the file are no pages of the guest: what is zero is what is so of the guest's. */
static void workers_count_what_one_counts(void **state)
{
	static const struct { uint64_t flags, offset, shift; } ways[] = {
		{ 0, 777, 0 }, { 0, 4095, 123 }, { 0, 70001, 0 }, { 0, 4096, 1 },
		{ GMEM_TRANSFER_NO_DIRECT, 777, 0 }, { GMEM_TRANSFER_NO_RING, 777, 0 },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(ways); i++) {
		struct gmem_transfer_result one = { .size = sizeof(one) }, many = one;
		struct bench b;

		begin(&b, 12 * MIB);
		invent(&b, 7);
		write_dense(&b);
		fake_set_direct(FAKE_DIRECT_DISK);
		for (uint32_t workers = 1; workers <= 27; workers *= 3) {
			GMEM_OPTS(gmem_transfer_opts, opts, .flags = ways[i].flags, .workers = workers);
			uint64_t size = b.size - 80000;

			soil(&b);
			assert_ok(gmem_vm_load(b.unit.vm, b.gpa + ways[i].shift, b.fd, ways[i].offset, size,
					       &opts, &many));
			check_guest(&b, ways[i].shift, b.source + ways[i].offset, size);
			if (workers == 1)
				one = many;
			assert_int_equal(many.zero_bytes, one.zero_bytes);
			assert_int_equal(many.data_bytes, one.data_bytes);
		}
		end(&b);
	}
}

/* What is too much for several threads may be enough for one, and that for one without a ring. */
static void less_memory_has_fewer_threads(void **state)
{
	(void)state;
	for (unsigned refused = 0; refused < 4; refused++) {
		GMEM_OPTS(gmem_transfer_opts, opts, .workers = 4);
		struct gmem_transfer_result result = { .size = sizeof(result) };
		struct gmem_transfer *transfer = NULL;
		struct bench b;

		begin(&b, 12 * MIB);
		invent(&b, 3);
		write_dense(&b);
		fake_fail_kind(FAKE_MMAP, 0, refused, -ENOMEM);
		if (refused == 3) {
			assert_refused(-ENOMEM, "no memory for 2 buffers of 1 MiB",
				       gmem_vm_load_begin(b.unit.vm, b.gpa, b.fd, 0, b.size, &opts, &transfer));
		} else {
			assert_ok(gmem_vm_load_begin(b.unit.vm, b.gpa, b.fd, 0, b.size, &opts, &transfer));
			assert_int_equal(transfer->hands.count, refused ? 1 : 4);
			assert_ok(gmem_transfer_run(0, transfer, &result));
			assert_int_equal(result.engine, refused < 2 ? GMEM_ENGINE_IO_URING : GMEM_ENGINE_PLAIN);
			assert_int_equal(result.no_ring, refused < 2 ? 0 : -ENOMEM);
			check_guest(&b, 0, b.source, b.size);
		}
		fake_fail_struck();
		end(&b);
	}
}

/* It would have the disk write to guest memory. */
static void an_fd_with_o_direct_is_read_to_a_buffer(void **state)
{
	(void)state;
	for (uint32_t workers = 1; workers <= 4; workers += 3) {
		GMEM_OPTS(gmem_transfer_opts, opts, .workers = workers);
		struct gmem_transfer_result result;
		struct bench b;
		unsigned holes;

		begin(&b, 12 * MIB);
		invent_dense(&b);
		write_dense(&b);
		fake_cache_files();
		/* memory files of older kernels know no such flag */
		if (fcntl(b.fd, F_SETFL, O_DIRECT) == 0) {
			assert_ok(gmem_recovery_enable());
			holes = fake_count(FAKE_FALLOCATE);
			load_all(&b, &opts, &result);
			/* pages of zeros were never there, so they are not given back */
			assert_int_equal(fake_count(FAKE_FALLOCATE), holes);
			assert_int_equal(result.zero_bytes, 2 * b.unit.page);
			gmem_recovery_disable();
		}
		end(&b);
	}
}

struct failure {
	int err;
	char sentence[512];
	uint64_t bytes;
};

/* Step until a failure, which is put into @ret, or until it is done. */
static void step_to_failure(struct gmem_transfer *transfer, struct failure *ret)
{
	struct gmem_transfer_result result = { .size = sizeof(result) };

	do {
		ret->err = gmem_transfer_step(transfer, 1);
	} while (ret->err > 0);
	snprintf(ret->sentence, sizeof(ret->sentence), "%s", ret->err ? gmem_last_error() : "");
	assert_ok(gmem_transfer_get_result(transfer, &result));
	ret->bytes = result.data_bytes + result.zero_bytes;
}

static void workers_fail_where_one_fails(void **state)
{
	static const uint64_t flags[] = { 0, 0, GMEM_TRANSFER_NO_RING };
	enum { SHORTENED, UNREACHABLE };

	(void)state;
	for (size_t i = 0; i < 2 * ARRAY_SIZE(flags); i++) {
		struct failure one = { .err = 0 }, many;

		for (uint32_t workers = 1; workers <= 4; workers += 3) {
			GMEM_OPTS(gmem_transfer_opts, opts, .flags = flags[i / 2], .workers = workers);
			struct gmem_transfer *transfer;
			struct bench b;

			begin(&b, 12 * MIB);
			invent_dense(&b);
			write_dense(&b);
			assert_ok(gmem_recovery_enable());
			if (i / 2 == 1)
				fake_cache_files();
			assert_ok(gmem_vm_load_begin(b.unit.vm, b.gpa, b.fd, 0, b.size, &opts, &transfer));
			if (i % 2 == SHORTENED)
				assert_int_equal(ftruncate(b.fd, 9 * MIB + 5000), 0);
			else
				assert_int_equal(mprotect(guest(&b, 7 * MIB + b.unit.page), b.unit.page, PROT_NONE), 0);
			step_to_failure(transfer, &many);
			if (workers == 1)
				one = many;
			assert_int_equal(many.err, one.err);
			assert_int_equal(many.bytes, one.bytes);
			if (i % 2 == UNREACHABLE) {
				assert_int_equal(many.err, -EFAULT);
				assert_int_equal(many.bytes, 7 * MIB);
				assert_int_equal(mprotect(guest(&b, 7 * MIB + b.unit.page), b.unit.page,
							  PROT_READ | PROT_WRITE), 0);
				step_to_failure(transfer, &many);
				assert_int_equal(many.bytes, b.size);
				check_guest(&b, 0, b.source, b.size);
			} else {
				assert_string_equal(many.sentence, one.sentence);
				check_guest(&b, 0, b.source, 9 * MIB + 5000);
			}
			assert_ok(gmem_transfer_free(transfer));
			gmem_recovery_disable();
			end(&b);
		}
	}
}

/* ---- core dumps ---- */

#define SECRET 0x5ec2e75ec2e75ec2u
#define STACK_SIZE MIB

/* A page has 512. Without optimisation compilers keep on the stack what goes through registers. */
#ifdef __OPTIMIZE__
#define MOST_WORDS 0
#else
#define MOST_WORDS 32
#endif

static void *load_and_save(void *data)
{
	struct bench *b = data;
	int fd = memfd_create("image", MFD_CLOEXEC);

	assert_ok(gmem_vm_load(b->unit.vm, b->gpa, b->fd, 0, b->size, NULL, NULL));
	assert_ok(gmem_vm_save(b->unit.vm, fd, NULL, NULL));
	close(fd);
	return NULL;
}

/* A stack is in them. */
static void guest_memory_does_not_stay_on_the_stack(void **state)
{
	(void)state;
	for (uint64_t zeros = 0; zeros <= 64; zeros += 64) {
		int fd = memfd_create("stack", MFD_CLOEXEC);
		pthread_attr_t attributes;
		pthread_t thread;
		struct bench b;
		size_t words;
		void *stack;
		uint64_t *left;

		assert_int_equal(ftruncate(fd, STACK_SIZE), 0);
		stack = mmap(NULL, STACK_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		begin(&b, 12 * MIB);
		for (uint64_t at = 0; at < b.size; at += 8)
			*(uint64_t *)(void *)(b.source + at) = at % 4096 < zeros ? 0 : SECRET;
		write_dense(&b);
		fake_cache_files();
		assert_ok(gmem_recovery_enable());
		pthread_attr_init(&attributes);
		assert_int_equal(pthread_attr_setstack(&attributes, stack, STACK_SIZE), 0);
		assert_int_equal(pthread_create(&thread, &attributes, load_and_save, &b), 0);
		assert_int_equal(pthread_join(thread, NULL), 0);
		pthread_attr_destroy(&attributes);
		/* Anew, since valgrind thinks that nothing is left where the stack was */
		left = mmap(NULL, STACK_SIZE, PROT_READ, MAP_SHARED, fd, 0);
		for (size_t i = words = 0; i < STACK_SIZE / sizeof(*left); i++)
			words += left[i] == SECRET;
		assert_in_range(words, 0, MOST_WORDS);
		munmap(left, STACK_SIZE);
		munmap(stack, STACK_SIZE);
		close(fd);
		gmem_recovery_disable();
		end(&b);
	}
}

static void *lend(void *data)
{
	return (void *)(intptr_t)gmem_transfer_work(data);
}

static void *lend_blocked(void *data)
{
	sigset_t signals;

	sigfillset(&signals);
	pthread_sigmask(SIG_BLOCK, &signals, NULL);
	return lend(data);
}

static int stop_once(void *data, uint64_t done, uint64_t total)
{
	bool *has_stopped = data, stops = !*has_stopped && done >= 2 * MIB;

	(void)total;
	*has_stopped |= stops;
	return stops;
}

static void lent_threads_work_until_it_is_done_or_fails(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 20; i++) {
		bool has_stopped = false;
		GMEM_OPTS(gmem_transfer_opts, opts, .workers = i % 5,
			  .progress = i % 2 ? stop_once : NULL, .progress_data = &has_stopped);
		struct gmem_transfer *transfer;
		struct failure outcome;
		pthread_t threads[3];
		struct bench b;
		void *ret;

		/* too little for threads of the library's */
		begin(&b, 6 * MIB);
		invent(&b, i);
		write_dense(&b);
		if (i % 3)
			fake_cache_files();
		assert_ok(gmem_vm_load_begin(b.unit.vm, b.gpa, b.fd, 0, b.size, &opts, &transfer));
		for (size_t t = 0; t < 3; t++)
			assert_int_equal(pthread_create(&threads[t], NULL, lend, transfer), 0);
		step_to_failure(transfer, &outcome);
		for (size_t t = 0; t < 3; t++) {
			assert_int_equal(pthread_join(threads[t], &ret), 0);
			assert_null(ret);
		}
		assert_int_equal(outcome.err, i % 2 ? -ECANCELED : 0);
		assert_ok(gmem_transfer_work(transfer));
		step_to_failure(transfer, &outcome);
		assert_int_equal(outcome.err, 0);
		check_guest(&b, 0, b.source, b.size);
		assert_ok(gmem_transfer_work(transfer));
		assert_ok(gmem_transfer_free(transfer));
		end(&b);
	}
}

static void none_but_lent_threads_work_if_none_shall_start(void **state)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .workers = 4, .flags = GMEM_TRANSFER_NO_THREADS);
	GMEM_OPTS(gmem_transfer_result, result);
	struct gmem_transfer *transfer;
	struct bench b;

	(void)state;
	begin(&b, 16 * MIB);
	write_dense(&b);
	assert_ok(gmem_vm_load_begin(b.unit.vm, b.gpa, b.fd, 0, 0, &opts, &transfer));
	assert_int_equal(transfer->hands.count, 4);
	assert_int_equal(transfer->hands.crew.count, 0);
	assert_ok(gmem_transfer_get_result(transfer, &result));
	assert_int_equal(result.engine, GMEM_ENGINE_PLAIN);
	assert_int_equal(result.no_ring, -ECANCELED);
	assert_ok(gmem_transfer_free(transfer));
	end(&b);
}

static void lent_thread_returns_when_the_vm_is_over(void **state)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .workers = 2);
	struct gmem_transfer *transfer;
	pthread_t thread;
	struct unit unit;
	int fd;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	unit_region(&unit, 0, 4, NULL);
	fd = memfd_create("load", MFD_CLOEXEC);
	assert_int_equal(ftruncate(fd, (off_t)(4 * unit.page)), 0);
	assert_ok(gmem_vm_load_begin(unit.vm, 0, fd, 0, 4 * unit.page, &opts, &transfer));
	assert_int_equal(pthread_create(&thread, NULL, lend, transfer), 0);
	usleep(20000);
	gmem_vm_free(unit.vm);
	assert_refused(-ESTALE, "was freed", gmem_transfer_step(transfer, 1));
	assert_int_equal(pthread_join(thread, NULL), 0);
	assert_ok(gmem_transfer_free(transfer));
	close(fd);
	gmem_caps_free(unit.caps);
	fake_close(unit.vm_fd);
	assert_int_equal(fake_halt(), 0);
}

static void lent_thread_has_to_be_able_to_recover(void **state)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .workers = 2);
	struct gmem_transfer *transfer;
	pthread_t thread;
	struct bench b;
	void *ret;

	(void)state;
	begin(&b, 2 * MIB);
	write_dense(&b);
	assert_ok(gmem_recovery_enable());
	assert_refused(-EINVAL, "transfer is NULL", gmem_transfer_work(NULL));
	assert_ok(gmem_vm_load_begin(b.unit.vm, b.gpa, b.fd, 0, b.size, &opts, &transfer));
	assert_int_equal(pthread_create(&thread, NULL, lend_blocked, transfer), 0);
	assert_int_equal(pthread_join(thread, &ret), 0);
	assert_int_equal((intptr_t)ret, -EINVAL);

	/* one that sleeps leaves when the transfer is freed */
	assert_int_equal(pthread_create(&thread, NULL, lend, transfer), 0);
	usleep(20000);
	assert_ok(gmem_transfer_free(transfer));
	assert_int_equal(pthread_join(thread, &ret), 0);
	assert_null(ret);
	gmem_recovery_disable();
	end(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_way_of_reading_gives_the_same_bytes),
		cmocka_unit_test(buffers_that_do_not_fit_are_done_without),
	cmocka_unit_test(zeros_take_no_memory_where_there_was_none),
		cmocka_unit_test(file_and_guest_may_have_any_alignment),
		cmocka_unit_test(size_0_is_up_to_the_end_of_the_file),
		cmocka_unit_test(malformed_load_is_refused_before_anything_changes),
		cmocka_unit_test(a_pipe_is_read_to_its_end_or_as_far_as_asked),
		cmocka_unit_test(a_pipe_can_be_polled_for),
		cmocka_unit_test(a_transfer_ends_whenever_it_is_freed),
		cmocka_unit_test(a_callback_stops_it_and_it_goes_on),
		cmocka_unit_test(failed_transfer_goes_on_where_it_failed),
		cmocka_unit_test(signals_do_not_interrupt_a_transfer),
		cmocka_unit_test(every_call_may_fail_and_nothing_leaks),
		cmocka_unit_test(the_callers_ring_is_used_as_the_caller_says),
		cmocka_unit_test(result_of_a_wrong_size_is_refused),
		cmocka_unit_test(what_does_not_fit_is_refused_before_the_first_byte),
		cmocka_unit_test(huge_pages_that_are_missing_are_told_before_the_first_byte),
	cmocka_unit_test(holes_of_a_file_need_no_memory),
	cmocka_unit_test(stream_ends_where_memory_does),
	cmocka_unit_test(memory_that_a_stream_does_not_reach_may_be_unmapped),
	cmocka_unit_test(few_of_many_regions_are_asked_about_huge_pages),
	cmocka_unit_test(ordinary_pages_beside_huge_ones_are_no_huge_pages),
	cmocka_unit_test(larger_pages_and_host_memory_work_too),
	cmocka_unit_test(guest_memory_does_not_stay_on_the_stack),
	cmocka_unit_test(workers_load_what_one_loads),
	cmocka_unit_test(workers_count_what_one_counts),
	cmocka_unit_test(less_memory_has_fewer_threads),
	cmocka_unit_test(an_fd_with_o_direct_is_read_to_a_buffer),
	cmocka_unit_test(dense_data_needs_no_buffer_and_its_zeros_no_memory),
	cmocka_unit_test(workers_fail_where_one_fails),
	cmocka_unit_test(lent_threads_work_until_it_is_done_or_fails),
	cmocka_unit_test(none_but_lent_threads_work_if_none_shall_start),
	cmocka_unit_test(lent_thread_returns_when_the_vm_is_over),
	cmocka_unit_test(lent_thread_has_to_be_able_to_recover),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
