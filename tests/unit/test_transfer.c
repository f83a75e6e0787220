/* SPDX-License-Identifier: MIT */
/* transfer and file_queue: what a step waits for, what a failure means, what a ring still owes */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/error.h"
#include "os/sys.h"
#include "transfer/image.h"
#include "transfer/transfer.h"
#include "unit.h"

#define MIB ((uint64_t)1 << 20)
#define TAG 1000

/* A guest whose image has more units than it has room for in 6 MiB */
struct guest {
	struct unit unit;
	struct gmem_region *region;
	uint64_t size;
	char *hva;
	int fd;
};

static void fill(struct guest *g, unsigned seed)
{
	for (uint64_t at = 0; at < g->size; at += 8)
		*(uint64_t *)(void *)(g->hva + at) = (at + 1) * 0x9e3779b97f4a7c15 + seed;
}

static void check(struct guest *g, unsigned seed)
{
	for (uint64_t at = 0; at < g->size; at += 8)
		assert_int_equal(*(uint64_t *)(void *)(g->hva + at), (at + 1) * 0x9e3779b97f4a7c15 + seed);
}

static void begin(struct guest *g)
{
	unit_begin_vm(&g->unit, "6.18");
	g->size = 6 * MIB;
	g->region = unit_region_backed(&g->unit, 16, g->size / g->unit.page, GMEM_BACKING_HOST);
	g->hva = gmem_region_hva(g->region);
	g->fd = memfd_create("transfer", MFD_CLOEXEC);
	assert_true(g->fd >= 0);
	fill(g, 1);
}

static void end(struct guest *g)
{
	close(g->fd);
	unit_end(&g->unit);
}

static int run(struct gmem_transfer *transfer, int wait)
{
	int ret;

	while ((ret = gmem_transfer_step(transfer, wait)) > 0)
		;
	return ret;
}

/* Put the image back and compare. */
static void check_image(struct guest *g)
{
	memset(g->hva, 0x77, g->size);
	assert_ok(gmem_vm_restore(g->unit.vm, g->fd, NULL, NULL));
	check(g, 1);
}

static void save_with(struct guest *g, uint64_t flags, struct gmem_transfer **ret)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .flags = flags);

	assert_ok(gmem_vm_save_begin(g->unit.vm, g->fd, &opts, ret));
}

/* On a ring of the caller's, which nobody looks into here */
static void save_on_ring(struct guest *g, uint64_t flags, struct gmem_transfer **ret)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .flags = flags, .ring = UNTOUCHED(struct io_uring),
		  .ring_tag = TAG);

	assert_ok(gmem_vm_save_begin(g->unit.vm, g->fd, &opts, ret));
}

static const uint64_t engines[] = { 0, GMEM_TRANSFER_NO_RING };

static void a_ring_of_the_callers_is_used_or_refused(void **state)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .flags = GMEM_TRANSFER_NO_RING,
		  .ring = UNTOUCHED(struct io_uring), .ring_tag = TAG);
	struct gmem_transfer *transfer = UNTOUCHED(struct gmem_transfer);
	struct guest g;

	(void)state;
	begin(&g);
	assert_refused(-EINVAL, "exclude each other",
		       gmem_vm_save_begin(g.unit.vm, g.fd, &opts, &transfer));
	assert_ptr_equal(transfer, UNTOUCHED(struct gmem_transfer));
	end(&g);
}

/* What the header says of gmem_transfer_fd() */
static void a_file_without_a_ring_is_never_waited_for(void **state)
{
	struct gmem_transfer *transfer;
	struct guest g;
	int16_t events;
	int ret;

	(void)state;
	begin(&g);
	save_with(&g, GMEM_TRANSFER_NO_RING, &transfer);
	assert_int_equal(gmem_transfer_fd(transfer, &events), g.fd);
	while ((ret = gmem_transfer_step(transfer, 0)) == GMEM_TRANSFER_MORE)
		;
	assert_int_equal(ret, GMEM_TRANSFER_DONE);
	assert_ok(gmem_transfer_free(transfer));
	end(&g);
}

/* ---- what the fd is open for ---- */

/* To open the file anew, for direct I/O, would work in each case. */
static void an_fd_is_used_only_for_what_it_is_open_for(void **state)
{
	static const struct { int flags; bool reads, writes; const char *words; } cases[] = {
		{ O_RDONLY, true, false, "open for reading only, not for writing" },
		{ O_WRONLY, false, true, "open for writing only, not for reading" },
		{ O_PATH, false, false, "open for neither reading nor writing, not for" },
		{ O_ACCMODE, false, false, "open for neither reading nor writing, not for" },
		{ O_RDWR, true, true, "" },
	};
	static const uint64_t ways[] = { 0, GMEM_TRANSFER_NO_RING, GMEM_TRANSFER_NO_DIRECT };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases) * ARRAY_SIZE(ways); i++) {
		GMEM_OPTS(gmem_transfer_opts, opts, .flags = ways[i / ARRAY_SIZE(cases)]);
		size_t k = i % ARRAY_SIZE(cases);
		struct fake_snapshot *before;
		char path[32];
		struct guest g;
		int fd, err;

		begin(&g);
		assert_ok(gmem_vm_save(g.unit.vm, g.fd, NULL, NULL));
		snprintf(path, sizeof(path), "/proc/self/fd/%d", g.fd);
		fd = open(path, cases[k].flags | O_CLOEXEC);
		assert_true(fd >= 0);
		before = fake_snapshot();

		err = gmem_vm_save(g.unit.vm, fd, &opts, NULL);
		assert_int_equal(err, cases[k].writes ? 0 : -EBADF);
		if (err)
			assert_non_null(strstr(gmem_last_error(), cases[k].words));
		for (unsigned reader = 0; reader < 3; reader++) {
			err = reader == 0 ? gmem_image_verify(fd, &opts, NULL)
			    : reader == 1 ? gmem_vm_restore(g.unit.vm, fd, &opts, NULL)
			    : gmem_vm_load(g.unit.vm, 16 * g.unit.page, fd, MIB, 0, &opts, NULL);
			assert_int_equal(err, cases[k].reads ? 0 : -EBADF);
			if (err)
				assert_non_null(strstr(gmem_last_error(), cases[k].words));
		}
		if (!cases[k].reads)
			check(&g, 1);
		assert_true(fake_equal(before));
		assert_int_equal(fake_count(FAKE_REOPEN) > 1, ways[i / ARRAY_SIZE(cases)] == 0 &&
				 (cases[k].reads || cases[k].writes));
		check_image(&g);
		close(fd);
		end(&g);
	}
}

/* ---- the disk ---- */

static void a_sync_that_failed_is_final(void **state)
{
	static const int errors[] = { -EIO, -ENOSPC, -EDQUOT, -EINVAL };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(engines) * ARRAY_SIZE(errors); i++) {
		uint64_t flags = GMEM_TRANSFER_SYNC | engines[i % 2];
		int err = errors[i / 2];
		struct gmem_transfer *transfer;
		struct guest g;

		begin(&g);
		save_with(&g, flags, &transfer);
		fake_fail_next(FAKE_DATASYNC, err);
		assert_int_equal(run(transfer, i % 3 != 0), err);
		for (unsigned k = 0; k < 5; k++) {
			assert_int_equal(gmem_transfer_step(transfer, k % 2), err);
			assert_non_null(strstr(gmem_last_error(), "written anew"));
			assert_non_null(strstr(gmem_last_error(), gmem_errno_name(err)));
		}
		assert_int_equal(fake_count(FAKE_DATASYNC), 1);
		assert_ok(gmem_transfer_free(transfer));

		/* another save writes everything again, and asks again */
		save_with(&g, flags, &transfer);
		assert_ok(run(transfer, 1));
		assert_int_equal(fake_count(FAKE_DATASYNC), 2);
		assert_ok(gmem_transfer_free(transfer));
		check_image(&g);
		end(&g);
	}
}

static void a_sync_that_a_signal_interrupts_is_repeated(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(engines); i++) {
		struct gmem_transfer *transfer;
		struct guest g;

		begin(&g);
		save_with(&g, GMEM_TRANSFER_SYNC | engines[i], &transfer);
		fake_fail_kind(FAKE_DATASYNC, 0, 2, -EINTR);
		assert_ok(run(transfer, 1));
		assert_int_equal(fake_count(FAKE_DATASYNC), 3);
		assert_ok(gmem_transfer_free(transfer));
		end(&g);
	}
}

static void no_step_syncs_itself_with_a_ring(void **state)
{
	struct gmem_transfer *transfer;
	struct guest g;
	unsigned syncs;
	uint64_t tag;
	int ret, res;

	(void)state;
	begin(&g);
	save_on_ring(&g, GMEM_TRANSFER_SYNC, &transfer);
	do {
		syncs = fake_count(FAKE_DATASYNC);
		ret = gmem_transfer_step(transfer, 0);
		assert_int_equal(fake_count(FAKE_DATASYNC), syncs);
		while (ret == GMEM_TRANSFER_WAIT && fake_take_completion(&tag, &res)) {
			assert_true(tag >= TAG && tag < TAG + GMEM_TRANSFER_TAGS);
			assert_ok(gmem_transfer_complete(transfer, tag, res));
		}
	} while (ret > 0);
	assert_ok(ret);
	assert_int_equal(syncs, 1);
	assert_ok(gmem_transfer_free(transfer));
	check_image(&g);
	end(&g);
}

/* A sync that was cancelled, by the end of a thread, say, has lost nothing. */
static void a_cancelled_sync_is_asked_for_again(void **state)
{
	struct gmem_transfer *transfer;
	bool cancelled = false;
	struct guest g;
	uint64_t tag;
	int ret, res;

	(void)state;
	begin(&g);
	save_on_ring(&g, GMEM_TRANSFER_SYNC, &transfer);
	while ((ret = gmem_transfer_step(transfer, 0)) != 0) {
		unsigned before = fake_count(FAKE_DATASYNC);

		if (ret < 0)
			assert_int_equal(ret, -ECANCELED);
		while (ret == GMEM_TRANSFER_WAIT && fake_take_completion(&tag, &res)) {
			if (fake_count(FAKE_DATASYNC) > before && !cancelled) {
				res = -ECANCELED;
				cancelled = true;
			}
			assert_ok(gmem_transfer_complete(transfer, tag, res));
		}
	}
	assert_true(cancelled);
	assert_int_equal(fake_count(FAKE_DATASYNC), 2);
	assert_ok(gmem_transfer_free(transfer));
	end(&g);
}

static void only_what_has_a_disk_is_synced(void **state)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .flags = GMEM_TRANSFER_SYNC);
	struct guest g;
	int ends[2];

	(void)state;
	begin(&g);
	assert_int_equal(pipe(ends), 0);
	assert_refused(-EINVAL, "no disk", gmem_vm_save(g.unit.vm, ends[1], &opts, NULL));
	close(ends[0]);
	close(ends[1]);
	end(&g);
}

/* ---- failures ---- */

/* Twelve requests were under way when the disk was full, and some say so only later. */
static void one_full_disk_is_one_failure(void **state)
{
	for (unsigned told_first = 1; told_first < 6; told_first++) {
		struct gmem_transfer *transfer;
		unsigned failures = 0, told = 0;
		struct guest g;
		uint64_t tag;
		int ret, res;

		(void)state;
		begin(&g);
		save_on_ring(&g, 0, &transfer);
		while ((ret = gmem_transfer_step(transfer, 0)) == GMEM_TRANSFER_MORE)
			;
		assert_int_equal(ret, GMEM_TRANSFER_WAIT);
		while (told < told_first && fake_take_completion(&tag, &res)) {
			assert_ok(gmem_transfer_complete(transfer, tag, -ENOSPC));
			told++;
		}
		assert_int_equal(gmem_transfer_step(transfer, 0), -ENOSPC);

		/* there is room now, but what was under way does not know */
		while ((ret = fake_take_completion(&tag, &res))) {
			assert_ok(gmem_transfer_complete(transfer, tag, -ENOSPC));
			told++;
		}
		assert_true(told >= 6);
		while ((ret = gmem_transfer_step(transfer, 0)) != 0) {
			failures += ret < 0;
			while (ret == GMEM_TRANSFER_WAIT && fake_take_completion(&tag, &res))
				assert_ok(gmem_transfer_complete(transfer, tag, res));
		}
		assert_int_equal(failures, 0);
		assert_ok(gmem_transfer_free(transfer));
		check_image(&g);
		end(&g);
	}
}

static void a_failure_that_lasts_is_told_again(void **state)
{
	static const enum fake_call calls[] = { FAKE_RING_RESULT, FAKE_WRITE_AT };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(engines); i++) {
		struct gmem_transfer *transfer;
		struct guest g;

		begin(&g);
		save_with(&g, engines[i], &transfer);
		fake_fail_kind(calls[i], 2, 1000, -EDQUOT);
		for (unsigned k = 0; k < 4; k++)
			assert_int_equal(run(transfer, 1), -EDQUOT);
		fake_fail_struck();
		assert_ok(run(transfer, 1));
		assert_ok(gmem_transfer_free(transfer));
		check_image(&g);
		end(&g);
	}
}

static void no_write_ends_past_the_limit_of_files(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(engines); i++) {
		static const uint64_t limits[] = { 0, 1, 3 * MIB, 4 * MIB - 1, 6 * MIB };
		struct gmem_transfer *transfer;
		struct guest g;

		begin(&g);
		save_with(&g, engines[i], &transfer);
		for (size_t k = 0; k < ARRAY_SIZE(limits); k++) {
			char number[32];

			fake_set_limit(RLIMIT_FSIZE, limits[k]);
			/* whether it waits or not, as often as it is asked */
			for (int wait = 3; wait >= 0; wait--)
				assert_int_equal(run(transfer, wait % 2), -EFBIG);
			assert_int_equal(run(transfer, 1), -EFBIG);
			snprintf(number, sizeof(number), "files at 0x%llx", (unsigned long long)limits[k]);
			assert_non_null(strstr(gmem_last_error(), "RLIMIT_FSIZE"));
			assert_non_null(strstr(gmem_last_error(), number));
			/* the first write that does not fit is the one it names */
			snprintf(number, sizeof(number), "end at 0x%llx",
				 (unsigned long long)((limits[k] / MIB + 1) * MIB));
			if (limits[k] < 6 * MIB)
				assert_non_null(strstr(gmem_last_error(), number));
			assert_true((uint64_t)lseek(g.fd, 0, SEEK_END) <= limits[k]);
		}
		fake_set_limit(RLIMIT_FSIZE, UINT64_MAX);
		assert_ok(run(transfer, 1));
		assert_ok(gmem_transfer_free(transfer));
		check_image(&g);

		/* The kernel's own limit of a file is not called that. */
		save_with(&g, engines[i], &transfer);
		fake_fail_next(i ? FAKE_WRITE_AT : FAKE_RING_RESULT, -EFBIG);
		assert_int_equal(run(transfer, 1), -EFBIG);
		assert_null(strstr(gmem_last_error(), "RLIMIT_FSIZE"));
		assert_ok(gmem_transfer_free(transfer));
		/* Readers are not concerned. */
		save_with(&g, engines[i], &transfer);
		assert_ok(run(transfer, 1));
		assert_ok(gmem_transfer_free(transfer));
		fake_set_limit(RLIMIT_FSIZE, 1);
		check_image(&g);
		end(&g);
	}
}

static void pages_that_leave_the_cache_are_requested(void **state)
{
	/* How many reads find their page, and how the rest is refused */
	static const struct { unsigned found; int err; } cases[] = {
		{ 0, -EAGAIN }, { 1, -EAGAIN }, { 5, -EAGAIN }, { 0, -EOPNOTSUPP }, { 3, -EOPNOTSUPP },
		{ 2, -EIO },
	};

	(void)state;
	for (size_t i = 0; i < 2 * ARRAY_SIZE(cases); i++) {
		unsigned count, times = i % 2 ? 1 : 1000;
		struct gmem_transfer *transfer;
		struct guest g;

		begin(&g);
		fake_cache_files();
		assert_ok(gmem_vm_save(g.unit.vm, g.fd, NULL, NULL));
		memset(g.hva, 0x77, g.size);
		assert_ok(gmem_vm_restore_begin(g.unit.vm, g.fd, NULL, &transfer));
		fake_fail_kind(FAKE_READ_CACHED, cases[i / 2].found, times, cases[i / 2].err);
		count = fake_count(FAKE_READ_AT);
		assert_ok(run(transfer, 0));
		/* none is read in a way that could wait */
		assert_int_equal(fake_count(FAKE_READ_AT), count);
		if (cases[i / 2].err == -EOPNOTSUPP)
			assert_int_equal(fake_count(FAKE_READ_CACHED), cases[i / 2].found + 1);
		assert_true(fake_fail_struck());
		assert_ok(gmem_transfer_free(transfer));
		check(&g, 1);

		/* in pieces */
		memset(g.hva, 0x77, g.size);
		assert_int_equal(pwrite(g.fd, g.hva, g.size, 0), g.size);
		fill(&g, 1);
		assert_ok(gmem_vm_load_begin(g.unit.vm, 16 * g.unit.page, g.fd, 0, g.size, NULL, &transfer));
		fake_fail_kind(FAKE_READ_CACHED, cases[i / 2].found, times, cases[i / 2].err);
		assert_ok(run(transfer, 0));
		assert_int_equal(fake_count(FAKE_READ_AT), count);
		assert_ok(gmem_transfer_free(transfer));
		for (uint64_t at = 0; at < g.size; at++)
			assert_int_equal(g.hva[at], 0x77);
		end(&g);
	}
}

/* ---- the caller's ring ---- */

/* Free it as a program does: after each completion, in the order they come */
static unsigned free_on_ring(struct gmem_transfer *transfer)
{
	unsigned completions = 0;
	uint64_t tag;
	int res;

	while (gmem_transfer_free(transfer) == -EBUSY) {
		assert_non_null(strstr(gmem_last_error(), "completions"));
		assert_true(fake_take_completion(&tag, &res));
		assert_ok(gmem_transfer_complete(transfer, tag, res));
		completions++;
	}
	/* the scripted ring complains if a completion is left */
	return completions;
}

static void every_completion_comes_before_the_end(void **state)
{
	static const uint32_t entries[] = { 1, 2, 3, 8, 0 };

	(void)state;
	for (unsigned i = 0; i < 12 * ARRAY_SIZE(entries); i++) {
		struct gmem_transfer *transfer;
		struct guest g;
		uint64_t tag;
		int res;

		begin(&g);
		fake_set_ring_entries(entries[i / 12]);
		save_on_ring(&g, GMEM_TRANSFER_SYNC, &transfer);
		for (unsigned k = 0; k < i % 12; k++)
			assert_true(gmem_transfer_step(transfer, 0) >= 0);
		if (i % 3 == 0 && fake_take_completion(&tag, &res))
			assert_ok(gmem_transfer_complete(transfer, tag, res));
		free_on_ring(transfer);
		end(&g);
	}
}

static void a_read_that_nothing_answers_is_cancelled(void **state)
{
	static const int refusals[] = { 0, -ENOENT, -EALREADY, -EINVAL };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(refusals); i++) {
		GMEM_OPTS(gmem_transfer_opts, opts, .ring = UNTOUCHED(struct io_uring), .ring_tag = TAG);
		struct gmem_transfer *transfer;
		struct guest g;
		int ends[2];

		begin(&g);
		assert_int_equal(pipe(ends), 0);
		assert_ok(gmem_vm_load_begin(g.unit.vm, 16 * g.unit.page, ends[0], 0, MIB, &opts, &transfer));
		assert_int_equal(gmem_transfer_step(transfer, 0), GMEM_TRANSFER_WAIT);
		if (refusals[i])
			fake_fail_next(FAKE_RING_CANCEL, refusals[i]);
		/* that the request is being worked on means that it will end */
		if (refusals[i] == -EALREADY)
			assert_int_equal(write(ends[1], "x", 1), 1);
		assert_true(free_on_ring(transfer) >= 2);
		close(ends[0]);
		close(ends[1]);
		end(&g);
	}
}

static void a_pipe_that_refuses_to_wait_is_polled(void **state)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .ring = UNTOUCHED(struct io_uring), .ring_tag = TAG);
	struct gmem_transfer *transfer;
	struct guest g;
	uint64_t tag;
	int ends[2], res;
	char byte;

	(void)state;
	begin(&g);
	assert_int_equal(pipe2(ends, O_NONBLOCK | O_CLOEXEC), 0);
	assert_ok(gmem_vm_load_begin(g.unit.vm, 16 * g.unit.page, ends[0], 0, 5, &opts, &transfer));
	assert_int_equal(gmem_transfer_step(transfer, 0), GMEM_TRANSFER_WAIT);
	/* as kernels do whose pipes io_uring cannot wait for */
	assert_int_equal(write(ends[1], "x", 1), 1);
	fake_fail_next(FAKE_RING_RESULT, -EAGAIN);
	assert_true(fake_take_completion(&tag, &res));
	assert_int_equal(res, -EAGAIN);
	assert_int_equal(read(ends[0], &byte, 1), 1);
	assert_ok(gmem_transfer_complete(transfer, tag, res));
	assert_int_equal(gmem_transfer_step(transfer, 0), GMEM_TRANSFER_WAIT);
	for (unsigned i = 0; i < 3; i++) {
		assert_false(fake_take_completion(&tag, &res));
		assert_int_equal(gmem_transfer_step(transfer, 0), GMEM_TRANSFER_WAIT);
	}
	assert_int_equal(write(ends[1], "hello", 5), 5);
	assert_true(fake_take_completion(&tag, &res));
	assert_int_equal(res, POLLIN);
	assert_ok(gmem_transfer_complete(transfer, tag, res));
	assert_int_equal(gmem_transfer_step(transfer, 0), GMEM_TRANSFER_WAIT);
	assert_true(fake_take_completion(&tag, &res));
	assert_int_equal(res, 5);
	assert_ok(gmem_transfer_complete(transfer, tag, res));
	assert_ok(run(transfer, 0));
	assert_memory_equal(g.hva, "hello", 5);
	assert_ok(gmem_transfer_free(transfer));
	close(ends[0]);
	close(ends[1]);
	end(&g);
}

static void a_ring_that_completes_nothing_is_refused(void **state)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .ring = UNTOUCHED(struct io_uring), .ring_tag = TAG);
	struct gmem_transfer *transfer = NULL;
	struct guest g;

	(void)state;
	begin(&g);
	fake_fail_next(FAKE_RING_NEW, -EINVAL);
	assert_refused(-EINVAL, "IORING_SETUP_IOPOLL",
		       gmem_vm_save_begin(g.unit.vm, g.fd, &opts, &transfer));
	assert_null(transfer);
	end(&g);
}

static void a_transfer_that_is_being_freed_does_no_more_steps(void **state)
{
	struct gmem_transfer *transfer;
	struct guest g;

	(void)state;
	begin(&g);
	save_on_ring(&g, 0, &transfer);
	while (gmem_transfer_step(transfer, 0) == GMEM_TRANSFER_MORE)
		;
	assert_int_equal(gmem_transfer_free(transfer), -EBUSY);
	assert_refused(-EINVAL, "being freed", gmem_transfer_step(transfer, 0));
	free_on_ring(transfer);
	end(&g);
}

static void a_kernel_that_takes_nothing_is_asked_again(void **state)
{
	struct gmem_transfer *transfer;
	struct guest g;

	(void)state;
	begin(&g);
	save_on_ring(&g, 0, &transfer);
	/* Of a ring with completions that wait for room, the fd is ready. */
	fake_fail_kind(FAKE_RING_SUBMIT, 0, 1000, -EBUSY);
	while (gmem_transfer_step(transfer, 0) == GMEM_TRANSFER_MORE)
		;
	assert_int_equal(gmem_transfer_step(transfer, 0), GMEM_TRANSFER_WAIT);
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(gmem_transfer_free(transfer), -EBUSY);
	fake_fail_struck();
	free_on_ring(transfer);

	/* Nothing makes it ready if the kernel has no memory. */
	save_on_ring(&g, 0, &transfer);
	fake_fail_kind(FAKE_RING_SUBMIT, 0, 1, -EAGAIN);
	assert_int_equal(run(transfer, 0), -ENOMEM);
	free_on_ring(transfer);
	end(&g);
}

static void other_users_may_fill_the_ring(void **state)
{
	(void)state;
	for (uint32_t entries = 1; entries <= 8; entries++) {
		struct gmem_transfer *transfer;
		struct guest g;
		uint64_t tag;
		int ret, res;

		begin(&g);
		fake_set_ring_entries(entries);
		save_on_ring(&g, GMEM_TRANSFER_SYNC, &transfer);
		do {
			while (fake_queue_foreign())
				;
			ret = gmem_transfer_step(transfer, 0);
			while (ret == GMEM_TRANSFER_WAIT && fake_take_completion(&tag, &res)) {
				int known = gmem_transfer_complete(transfer, tag, res);

				assert_int_equal(known, tag < TAG + GMEM_TRANSFER_TAGS ? 0 : -EINVAL);
			}
		} while (ret > 0);
		assert_ok(ret);
		assert_ok(gmem_transfer_free(transfer));
		check_image(&g);
		end(&g);
	}
}

static void a_ring_that_stays_full_is_not_waited_for_in_vain(void **state)
{
	struct gmem_transfer *transfer;
	struct guest g;

	(void)state;
	begin(&g);
	fake_set_ring_entries(1);
	save_on_ring(&g, 0, &transfer);
	assert_true(fake_queue_foreign());
	fake_fail_kind(FAKE_RING_SUBMIT, 0, 1000, -EBUSY);
	/* no request of its own is under way: nobody would call it again */
	for (unsigned i = 0; i < 20; i++)
		assert_int_equal(gmem_transfer_step(transfer, 0), GMEM_TRANSFER_MORE);
	assert_ok(gmem_transfer_free(transfer));
	fake_fail_struck();
	end(&g);
}

static void completions_are_known_by_their_tags(void **state)
{
	struct gmem_transfer *transfer;
	struct guest g;
	uint64_t tag;
	int res;

	(void)state;
	begin(&g);
	save_on_ring(&g, 0, &transfer);
	for (tag = 0; tag < 2000; tag += tag == 990 ? 1 : 10)
		assert_refused(-EINVAL, "not under way", gmem_transfer_complete(transfer, tag, 4096));
	while (gmem_transfer_step(transfer, 0) == GMEM_TRANSFER_MORE)
		;
	assert_int_equal(gmem_transfer_complete(transfer, TAG - 1, 0), -EINVAL);
	assert_int_equal(gmem_transfer_complete(transfer, TAG + GMEM_TRANSFER_TAGS, 0), -EINVAL);
	assert_int_equal(gmem_transfer_complete(transfer, TAG + GMEM_IO_DEPTH, 0), -EINVAL);
	assert_int_equal(gmem_transfer_complete(transfer, UINT64_MAX, 0), -EINVAL);

	assert_true(fake_take_completion(&tag, &res));
	assert_int_equal(gmem_transfer_complete(transfer, tag, res + 1), -EINVAL);
	assert_ok(gmem_transfer_complete(transfer, tag, res));
	assert_int_equal(gmem_transfer_complete(transfer, tag, res), -EINVAL);
	free_on_ring(transfer);
	end(&g);
}

/* ---- a ring of its own ---- */

/* Nor does one that a signal, or other users of the ring, put off. */
static void a_refused_submission_loses_nothing(void **state)
{
	static const struct { uint32_t workers; int err; } cases[] = {
		{ 1, -EAGAIN }, { 4, -EAGAIN }, { 1, -EBUSY }, { 4, -EBUSY },
	};

	(void)state;
	for (unsigned i = 0; i < 12 * ARRAY_SIZE(cases); i++) {
		unsigned failures = 0, skip = i % 12;
		int err = cases[i / 12].err, ret, res;
		struct io_uring *ring = err == -EBUSY ? UNTOUCHED(struct io_uring) : NULL;
		GMEM_OPTS(gmem_transfer_opts, opts, .workers = cases[i / 12].workers, .ring = ring,
			  .ring_tag = TAG);
		struct gmem_transfer *transfer;
		struct guest g;
		uint64_t tag;

		begin(&g);
		assert_ok(gmem_vm_save_begin(g.unit.vm, g.fd, &opts, &transfer));
		fake_fail_kind(FAKE_RING_SUBMIT, skip, 1, err);
		while ((ret = gmem_transfer_step(transfer, !ring)) != GMEM_TRANSFER_DONE) {
			failures += ret < 0;
			while (ring && fake_take_completion(&tag, &res))
				assert_ok(gmem_transfer_complete(transfer, tag, res));
		}
		assert_int_equal(failures, fake_fail_struck() && !ring);
		assert_ok(gmem_transfer_free(transfer));
		check_image(&g);
		end(&g);
	}
}

static void a_kernel_that_takes_nothing_does_not_hold_up_the_end(void **state)
{
	(void)state;
	for (unsigned skip = 0; skip < 5; skip++) {
		for (unsigned times = 1; times < 8; times++) {
			const unsigned ever = UINT_MAX;
			struct fake_snapshot *before;
			struct guest g;

			begin(&g);
			assert_ok(gmem_vm_save(g.unit.vm, g.fd, NULL, NULL));
			/* so that it is not read from the cache */
			fake_fail_kind(FAKE_CACHESTAT, 0, 1000, -ENOSYS);
			before = fake_snapshot();
			fake_fail_kind(FAKE_RING_SUBMIT, skip, times < 7 ? times : ever, -EBUSY);
			assert_true(gmem_vm_restore(g.unit.vm, g.fd, NULL, NULL) <= 0);
			fake_fail_struck();
			assert_true(fake_equal(before));
			end(&g);
		}
	}
}

/* The kernel could still write to the buffers: they stay. */
static void buffers_stay_mapped_if_a_request_cannot_be_ended(void **state)
{
	static const struct { enum fake_call call; int err; } cases[] = {
		{ FAKE_RING_SUBMIT, -EPERM }, { FAKE_RING_CANCEL, -EINVAL }, { FAKE_RING_CANCEL, -EACCES },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct gmem_transfer *transfer;
		unsigned mappings, fds;
		struct guest g;
		int ends[2];

		begin(&g);
		assert_int_equal(pipe(ends), 0);
		mappings = fake_open_mappings();
		fds = fake_open_fds();
		assert_ok(gmem_vm_load_begin(g.unit.vm, 16 * g.unit.page, ends[0], 0, MIB, NULL, &transfer));
		assert_int_equal(gmem_transfer_step(transfer, 0), GMEM_TRANSFER_WAIT);
		fake_fail_kind(cases[i].call, 0, 1000, cases[i].err);
		assert_ok(gmem_transfer_free(transfer));
		fake_fail_struck();
		assert_int_equal(fake_open_mappings(), mappings + 1);
		assert_int_equal(fake_open_fds(), fds);
		assert_int_equal(fake_complaints(), 0);
		close(ends[0]);
		close(ends[1]);
		/* the memory itself is free again */
		assert_ok(gmem_region_remove(g.region));
		gmem_vm_free(g.unit.vm);
		gmem_caps_free(g.unit.caps);
		fake_close(g.unit.vm_fd);
		close(g.fd);
		assert_int_equal(fake_halt(), 1);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_ring_of_the_callers_is_used_or_refused),
		cmocka_unit_test(a_file_without_a_ring_is_never_waited_for),
		cmocka_unit_test(an_fd_is_used_only_for_what_it_is_open_for),
		cmocka_unit_test(a_sync_that_failed_is_final),
		cmocka_unit_test(a_sync_that_a_signal_interrupts_is_repeated),
		cmocka_unit_test(no_step_syncs_itself_with_a_ring),
		cmocka_unit_test(a_cancelled_sync_is_asked_for_again),
		cmocka_unit_test(only_what_has_a_disk_is_synced),
		cmocka_unit_test(one_full_disk_is_one_failure),
		cmocka_unit_test(a_failure_that_lasts_is_told_again),
		cmocka_unit_test(no_write_ends_past_the_limit_of_files),
		cmocka_unit_test(pages_that_leave_the_cache_are_requested),
		cmocka_unit_test(every_completion_comes_before_the_end),
		cmocka_unit_test(a_read_that_nothing_answers_is_cancelled),
		cmocka_unit_test(a_pipe_that_refuses_to_wait_is_polled),
		cmocka_unit_test(a_ring_that_completes_nothing_is_refused),
		cmocka_unit_test(a_transfer_that_is_being_freed_does_no_more_steps),
		cmocka_unit_test(a_kernel_that_takes_nothing_is_asked_again),
		cmocka_unit_test(other_users_may_fill_the_ring),
		cmocka_unit_test(a_ring_that_stays_full_is_not_waited_for_in_vain),
		cmocka_unit_test(completions_are_known_by_their_tags),
		cmocka_unit_test(a_refused_submission_loses_nothing),
		cmocka_unit_test(a_kernel_that_takes_nothing_does_not_hold_up_the_end),
		cmocka_unit_test(buffers_stay_mapped_if_a_request_cannot_be_ended),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
