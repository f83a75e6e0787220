/* SPDX-License-Identifier: MIT */
#include "transfer/migration.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/check.h"
#include "base/error.h"
#include "base/limit.h"
#include "base/opts.h"
#include "dirty/tracker.h"
#include "os/sys.h"
#include "region/vm_core.h"
#include "transfer/file_queue.h"
#include "transfer/transfer.h"

#define ALL_FLAGS (GMEM_MIGRATION_OMIT_PRIVATE | GMEM_MIGRATION_VCPUS_STOPPED | \
		   GMEM_MIGRATION_ALLOW_UNLOGGED | GMEM_MIGRATION_RINGS | GMEM_MIGRATION_NO_THREADS)

#define NANOSECONDS 1e9

/* Wake up that often at least; a change of the limit and a cancellation wake at once. */
#define MAX_WAIT_MS 10000

/* What may be sent late without a wait: that of 10 ms, as poll(2) wakes no more exactly */
#define SECONDS_OF_CREDIT 0.01

/* What was sent more than the limit allows by now */
struct debt {
	uint64_t at;		/* gmem_sys_now() */
	uint64_t limit;		/* bytes per second since then */
	double bytes;		/* negative: credit */
};

struct gmem_migration {
	struct gmem_vm *vm;
	struct gmem_dirty *dirty;	/* has a reference to it */
	struct gmem_migration_opts opts;
	int fd;
	uint64_t position;	/* where the next image begins in the file; 0: it has no offsets */
	bool has_offsets;
	bool is_broken;
	bool is_finished;

	int event;		/* set by whoever changes one of the next two, which are atomic */
	bool is_cancelled;
	uint64_t limit;		/* bytes per second; 0: none */

	struct debt debt;
	double sent, sent_ns;	/* of all rounds, a round counting half of the one after it */
	double changed, changed_ns;	/* memory, likewise; of the first round only until there is another */
	uint64_t cost_ns;	/* of a round, beside what it sends */
	struct gmem_migration_status status;
};

/* A round under way */
struct round {
	struct gmem_migration *migration;
	struct gmem_transfer *transfer;
	bool is_last;
	uint64_t began;		/* gmem_sys_now() */
	uint64_t held_ns;	/* time in which the limit had it wait */
	uint64_t charged;	/* bytes of the file that are in the debt */
};

/* ---- beginning and ending ---- */

/* Readers take an image from a stream in pieces of their own choice. */
static int check_stream(int fd)
{
	int family, type;

	if (gmem_sys_socket_kind(fd, &family, &type) || type == SOCK_STREAM)
		return 0;
	return gmem_fail(-EPROTOTYPE, "fd %d is a socket of messages (type %d): a migration needs a "
			 "stream", fd, type);
}

static int check_fd(const struct gmem_migration_opts *opts, int fd, bool *ret_has_offsets)
{
	static const struct gmem_transfer_opts plain;
	struct gmem_io_params params;
	int err = gmem_transfer_inspect(&plain, fd, true, opts->image_offset, &params);

	if (err)
		return err;
	*ret_has_offsets = params.kind.has_offsets;
	return params.kind.has_offsets ? 0 : check_stream(fd);
}

static int begin_tracking(struct gmem_migration *migration)
{
	static const uint64_t flags[][2] = {
		{ GMEM_MIGRATION_VCPUS_STOPPED, GMEM_DIRTY_VCPUS_STOPPED },
		{ GMEM_MIGRATION_ALLOW_UNLOGGED, GMEM_DIRTY_ALLOW_UNLOGGED },
		{ GMEM_MIGRATION_RINGS, GMEM_DIRTY_RINGS },
	};
	GMEM_OPTS(gmem_dirty_opts, opts, .flags = 0);

	for (size_t i = 0; i < sizeof(flags) / sizeof(flags[0]); i++)
		if (migration->opts.flags & flags[i][0])
			opts.flags |= flags[i][1];
	return gmem_dirty_new(migration->vm, &opts, &migration->dirty);
}

static int check_opts(const struct gmem_migration_opts *user_opts, struct gmem_migration_opts *ret)
{
	int err;

	err = GMEM_COPY_OPTS(gmem_migration_opts, ret, user_opts, reserved);
	if (!err)
		err = gmem_check_flags("flags", ret->flags, ALL_FLAGS);
	if (!err)
		err = gmem_check_workers(ret->workers);
	if (!err && ret->reserved)
		err = gmem_fail(-EINVAL, "reserved is %" PRIu32 ", not 0", ret->reserved);
	return err;
}

GMEM_API int gmem_migration_new(struct gmem_vm *vm, int fd, const struct gmem_migration_opts *user_opts,
				struct gmem_migration **ret)
{
	struct gmem_migration_opts opts;
	struct gmem_migration *migration;
	bool has_offsets = false;
	int err;

	if (!vm || !ret)
		return gmem_fail(-EINVAL, "%s is NULL", vm ? "ret" : "vm");
	err = check_opts(user_opts, &opts);
	if (!err)
		err = check_fd(&opts, fd, &has_offsets);
	if (err)
		return err;

	migration = calloc(1, sizeof(*migration));
	if (!migration)
		return gmem_fail(-ENOMEM, "no memory for a migration");
	*migration = (struct gmem_migration){
		.vm = vm,
		.opts = opts,
		.fd = fd,
		.position = opts.image_offset,
		.has_offsets = has_offsets,
		.limit = opts.max_bytes_per_second,
		.status = { .size = sizeof(migration->status) },
	};
	err = migration->event = gmem_sys_event_new();
	if (err < 0) {
		err = gmem_fail_by_limit(err, 0, "no event fd for a migration");
		goto free_migration;
	}
	err = begin_tracking(migration);
	if (err)
		goto close_event;
	*ret = migration;
	return 0;

close_event:
	gmem_sys_close(migration->event);
free_migration:
	free(migration);
	return err;
}

GMEM_API void gmem_migration_free(struct gmem_migration *migration)
{
	if (!migration)
		return;
	gmem_dirty_free(migration->dirty);
	gmem_sys_close(migration->event);
	free(migration);
}

/* ---- what other threads say ---- */

GMEM_API void gmem_migration_cancel(struct gmem_migration *migration)
{
	if (!migration)
		return;
	/* Pairs with is_cancelled(), which looks after the event was cleared. */
	__atomic_store_n(&migration->is_cancelled, true, __ATOMIC_RELEASE);
	gmem_sys_event_set(migration->event);
}

GMEM_API void gmem_migration_set_limit(struct gmem_migration *migration, uint64_t bytes_per_second)
{
	if (!migration)
		return;
	/* Pairs with charge(). */
	__atomic_store_n(&migration->limit, bytes_per_second, __ATOMIC_RELEASE);
	gmem_sys_event_set(migration->event);
}

static bool is_cancelled(const struct gmem_migration *migration)
{
	return __atomic_load_n(&migration->is_cancelled, __ATOMIC_ACQUIRE);
}

static int fail_cancelled(void)
{
	return gmem_fail(-ECANCELED, "gmem_migration_cancel() was called");
}

/* Wait for @fd, unless it is negative, for @ms or until another thread says something. */
static int wait_for(const struct gmem_migration *migration, int fd, short events, unsigned int ms)
{
	struct pollfd fds[] = { { .fd = migration->event, .events = POLLIN },
				{ .fd = fd, .events = events } };
	int ret = gmem_sys_poll_many(fds, fd < 0 ? 1 : 2, ms);

	if (ret < 0)
		return gmem_fail(ret, "waiting for fd %d: %s", fd, gmem_errno_name(ret));
	if (ret && fds[0].revents)
		gmem_sys_event_clear(migration->event);
	return 0;
}

/* ---- the limit ---- */

static uint64_t to_integer(double number)
{
	return number < 0x1p64 ? (uint64_t)number : UINT64_MAX;
}

/* Count what was written since the last time; returns the nanoseconds to wait for it. */
static uint64_t charge(struct round *round)
{
	struct gmem_migration *migration = round->migration;
	struct debt *debt = &migration->debt;
	uint64_t written = round->transfer->io.file_bytes, now = gmem_sys_now();
	double least = -SECONDS_OF_CREDIT * (double)debt->limit;

	debt->bytes -= (double)(now - debt->at) / NANOSECONDS * (double)debt->limit;
	debt->bytes = debt->bytes < least ? least : debt->bytes;
	debt->bytes += (double)(written - round->charged);
	debt->at = now;
	debt->limit = __atomic_load_n(&migration->limit, __ATOMIC_ACQUIRE);
	round->charged = written;
	if (round->is_last || !debt->limit)
		debt->bytes = 0;
	return debt->bytes > 0 ? to_integer(debt->bytes / (double)debt->limit * NANOSECONDS) : 0;
}

static int hold(struct round *round, uint64_t ns)
{
	uint64_t began = gmem_sys_now(), ms = ns / GMEM_NANOSECONDS_PER_MS + 1;
	int err = wait_for(round->migration, -1, 0, ms < MAX_WAIT_MS ? (unsigned int)ms : MAX_WAIT_MS);

	round->held_ns += gmem_sys_now() - began;
	return err ? err : GMEM_TRANSFER_MORE;
}

/* ---- rounds ---- */

static int begin_round(struct round *round)
{
	struct gmem_migration *migration = round->migration;
	const struct gmem_migration_opts *opts = &migration->opts;
	GMEM_OPTS(gmem_transfer_opts, save,
		  .image_offset = migration->position,
		  .progress = opts->progress,
		  .progress_data = opts->progress_data,
		  .workers = opts->workers,
		  .dirty = migration->dirty);

	if (opts->flags & GMEM_MIGRATION_OMIT_PRIVATE)
		save.flags |= GMEM_TRANSFER_OMIT_PRIVATE;
	if (opts->flags & GMEM_MIGRATION_NO_THREADS)
		save.flags |= GMEM_TRANSFER_NO_THREADS;
	if (!round->is_last)
		save.flags |= GMEM_TRANSFER_FOLLOWED;
	return gmem_vm_save_begin(migration->vm, migration->fd, &save, &round->transfer);
}

/* Step, and wait for the file if the step would have had to; GMEM_TRANSFER_DONE: it is written. */
static int step(struct round *round)
{
	int16_t events;
	int ret = gmem_transfer_step(round->transfer, 0), fd;

	if (ret != GMEM_TRANSFER_WAIT)
		return ret;
	fd = gmem_transfer_fd(round->transfer, &events);
	ret = wait_for(round->migration, fd, events, MAX_WAIT_MS);
	return ret ? ret : GMEM_TRANSFER_MORE;
}

static int send_round(struct round *round)
{
	uint64_t wait_ns;
	int ret;

	do {
		if (is_cancelled(round->migration))
			return fail_cancelled();
		wait_ns = charge(round);
		ret = wait_ns ? hold(round, wait_ns) : step(round);
	} while (ret > GMEM_TRANSFER_DONE);
	return ret;
}

static void count_round(struct round *round, uint64_t first_step, uint64_t last_step)
{
	struct gmem_migration *migration = round->migration;
	struct gmem_migration_status *status = &migration->status;
	double ns = (double)(last_step - first_step - round->held_ns);
	double kept = status->round > 1 ? 0.5 : 0;

	status->ns = gmem_sys_now() - round->began;
	status->total_bytes += status->sent_bytes;
	migration->cost_ns = status->ns - (last_step - first_step);
	migration->sent = migration->sent / 2 + (double)status->sent_bytes;
	migration->sent_ns = migration->sent_ns / 2 + ns;
	migration->changed = migration->changed * kept + (double)status->memory_bytes;
	migration->changed_ns = migration->changed_ns * kept + ns;
	status->send_rate = to_integer(migration->sent / (migration->sent_ns + 1) * NANOSECONDS);
}

static void end_round(struct gmem_migration *migration, bool is_last)
{
	struct gmem_migration_status *status = &migration->status;

	status->round++;
	status->left_bytes = 0;
	status->unlogged_bytes = 0;
	status->dirty_rate = 0;
	status->pause_ns = 0;
	migration->is_finished = is_last;
	if (migration->has_offsets)
		migration->position += status->sent_bytes;
}

static int run_round(struct gmem_migration *migration, bool is_last)
{
	struct round round = { .migration = migration, .is_last = is_last, .began = gmem_sys_now() };
	uint64_t first_step, last_step;
	struct gmem_failure failure;
	int err = begin_round(&round);

	if (err)
		return err;
	first_step = gmem_sys_now();
	gmem_failure_keep(&failure, send_round(&round));
	last_step = gmem_sys_now();
	migration->status.sent_bytes = round.transfer->io.file_bytes;
	/* What a failure had read was perhaps not written. */
	migration->status.memory_bytes = 0;
	if (!failure.err)
		migration->status.memory_bytes = round.transfer->bytes.data + round.transfer->bytes.zero;
	/* It is on no ring of the caller's, so it ends at once. */
	gmem_transfer_free(round.transfer);
	count_round(&round, first_step, last_step);

	migration->is_broken = failure.err != 0;
	if (failure.err)
		return gmem_failure_restore(&failure);
	end_round(migration, is_last);
	return 0;
}

/*
 * How long it takes to send what is left: at most as long as if none of it were zero, and as what
 * changed took in the rounds before. The first one, of all memory, says less: most of it may be zero,
 * but what a guest writes seldom is. All took as long as that.
 */
static double expect_ns(const struct gmem_migration *migration, double left)
{
	double most = left * migration->sent_ns / (migration->sent + 1), ns = migration->sent_ns;

	if (migration->status.round > 1)
		ns = left * migration->changed_ns / (migration->changed + 1);
	return ns < most ? ns : most;
}

/* What changed since the round began, and what it would take to send that */
static int look_ahead(struct gmem_migration *migration, uint64_t began)
{
	struct gmem_migration_status *status = &migration->status;
	GMEM_OPTS(gmem_dirty_info, info, .bytes = 0);
	int err = gmem_dirty_peek_image(migration->dirty, &info);
	double ns = (double)(gmem_sys_now() - began);

	if (err)
		return err;
	status->left_bytes = info.bytes;
	status->unlogged_bytes = info.unlogged_bytes;
	status->dirty_rate = to_integer((double)info.bytes / (ns + 1) * NANOSECONDS);
	status->pause_ns = to_integer((double)migration->cost_ns + expect_ns(migration, (double)info.bytes));
	return 0;
}

static int check_round(struct gmem_migration *migration, const struct gmem_migration_status *ret)
{
	int err;

	if (!migration)
		return gmem_fail(-EINVAL, "migration is NULL");
	err = ret ? GMEM_CHECK_RESULT(gmem_migration_status, ret, unlogged_bytes) : 0;
	if (err)
		return err;
	if (migration->is_finished)
		return gmem_fail(-EALREADY, "the last round was sent");
	if (is_cancelled(migration))
		return fail_cancelled();
	if (migration->is_broken)
		return gmem_fail(-ENOTCONN, "round %" PRIu64 " failed, and a stream cannot be resumed: begin "
				 "a new migration, with a receiver that begins, too",
				 migration->status.round + 1);
	return 0;
}

static int round_and_tell(struct gmem_migration *migration, bool is_last, struct gmem_migration_status *ret)
{
	uint64_t began = gmem_sys_now();
	int err = check_round(migration, ret);

	if (err)
		return err;
	err = run_round(migration, is_last);
	if (!err && ret && !is_last)
		err = look_ahead(migration, began);
	if (ret)
		gmem_fill_result(ret, &migration->status, sizeof(migration->status));
	return err;
}

GMEM_API int gmem_migration_round(struct gmem_migration *migration, struct gmem_migration_status *ret)
{
	return round_and_tell(migration, false, ret);
}

GMEM_API int gmem_migration_finish(struct gmem_migration *migration, struct gmem_migration_status *ret)
{
	return round_and_tell(migration, true, ret);
}
