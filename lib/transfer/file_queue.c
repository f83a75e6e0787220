/* SPDX-License-Identifier: MIT */
#include "transfer/file_queue.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "base/error.h"
#include "base/limit.h"
#include "os/ring.h"

#define HUGE_PAGE ((uint64_t)2 << 20)

/* Alignment for O_DIRECT that every block device accepts */
#define BLOCK ((uint64_t)4096)

/* Buffers of a file that has one request at a time */
#define SERIAL_DEPTH 4

/* Units that are written without a ring that is still to be made */
#define LATE_UNITS 2

/* Times that the kernel may refuse to take or to cancel something before we give up */
#define MAX_REFUSALS 3

enum { IDLE, PENDING, IN_FLIGHT, DONE, FAILED };

static struct gmem_io_buffer *nth(struct gmem_io *io, uint32_t n)
{
	return &io->buffers[(io->first + n) % io->depth];
}

/* ---- opening ---- */

static int open_ring(struct gmem_io *io, const struct gmem_io_params *params)
{
	if (params->ring)
		return gmem_ring_wrap(params->ring, params->ring_tag, &io->ring);
	if (params->no_ring)
		return -ECANCELED;
	/* io_uring returns -EAGAIN for O_NONBLOCK files instead of waiting. */
	if (io->serial && params->kind.never_blocks)
		return -EAGAIN;
	io->late_ring = params->waits && !io->serial;
	return io->late_ring ? -ECANCELED : gmem_ring_new(2 * GMEM_IO_DEPTH, &io->ring);
}

static void make_late_ring(struct gmem_io *io)
{
	io->late_ring = false;
	io->no_ring = gmem_ring_new(2 * GMEM_IO_DEPTH, &io->ring);
}

static void open_direct(struct gmem_io *io, const struct gmem_io_params *params)
{
	int flags = O_DIRECT | (io->writing ? O_WRONLY : O_RDONLY);

	if (params->no_direct || io->serial || !(io->ring || io->late_ring))
		return;
	/* Whole units cannot be moved to an aligned offset. */
	if ((io->writing || io->whole) && params->position % BLOCK)
		return;

	io->direct_fd = gmem_sys_reopen(io->fd, flags);
}

static int map_staging(struct gmem_io *io)
{
	uint64_t need = (io->depth + 1 + io->workers) * GMEM_IO_UNIT, start;
	int err;

	io->staging_size = need + HUGE_PAGE;
	err = gmem_sys_mmap(NULL, io->staging_size, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0, &io->staging);
	if (err)
		return err;

	start = ((uintptr_t)io->staging + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
	gmem_sys_madvise((void *)(uintptr_t)start, need, MADV_HUGEPAGE);
	/* They hold what the guest has, which is not in core dumps either. */
	gmem_sys_madvise(io->staging, io->staging_size, MADV_DONTDUMP);
	for (uint32_t i = 0; i < io->depth; i++)
		io->buffers[i].data = (char *)(uintptr_t)(start + i * GMEM_IO_UNIT);
	io->small = (char *)(uintptr_t)(start + io->depth * GMEM_IO_UNIT);
	return 0;
}

/* A single buffer stays in the processor's caches, unless several threads read. */
static void limit_depth(struct gmem_io *io)
{
	if (io->no_ring && !io->late_ring && (!io->workers || io->serial))
		io->depth = 1;
	/* What a ring has no room for the kernel keeps in memory of its own, if it has any. */
	else if (io->ring && io->depth > gmem_ring_room(io->ring))
		io->depth = gmem_ring_room(io->ring);
}

/* What is too much for many buffers may be enough for one. */
static void go_without_ring(struct gmem_io *io, int why)
{
	gmem_ring_free(io->ring);
	io->ring = NULL;
	io->late_ring = false;
	io->no_ring = why;
	io->depth = 1;
	if (io->direct_fd >= 0)
		gmem_sys_close(io->direct_fd);
	io->direct_fd = -1;
}

static uint32_t useful_depth(const struct gmem_io_params *params)
{
	uint64_t depth = params->depth ? params->depth : GMEM_IO_DEPTH, need;

	/* A pipe may go on after the image: reading ahead would take those bytes. */
	if (!params->kind.has_offsets && params->whole)
		depth = 1;
	else if (!params->kind.has_offsets && depth > SERIAL_DEPTH)
		depth = SERIAL_DEPTH;
	if (params->end > params->position) {
		need = (params->end - params->position - 1) / GMEM_IO_UNIT + 2;
		depth = need < depth ? need : depth;
	}
	return (uint32_t)depth;
}

int gmem_io_open(struct gmem_io *io, const struct gmem_io_params *params)
{
	int err;

	*io = (struct gmem_io){
		.fd = params->fd,
		.direct_fd = -1,
		.writing = params->writing,
		.sparse = params->sparse && params->kind.has_size,
		.serial = !params->kind.has_offsets,
		.limited = params->writing && params->kind.has_size,
		.whole = params->whole,
		.own_ring = !params->ring,
		.never_blocks = params->kind.never_blocks,
		.depth = useful_depth(params),
		.workers = params->workers > 1 ? params->workers : 0,
		.to_gpa = params->to_gpa,
		.position = params->position,
		.end = params->end,
	};

	io->no_ring = open_ring(io, params);
	if (io->no_ring == -EINVAL && params->ring)
		return gmem_fail(io->no_ring, "the ring has IORING_SETUP_IOPOLL: requests of pages in the "
				 "page cache, of pipes and of syncs never complete on it");
	if (io->no_ring && params->ring)
		return gmem_fail(io->no_ring, "the ring cannot be used: %s",
				 gmem_errno_name(io->no_ring));
	limit_depth(io);
	open_direct(io, params);
	err = map_staging(io);
	if (err && io->workers) {
		io->workers = 0;
		limit_depth(io);
		err = map_staging(io);
	}
	if (err && io->own_ring && (io->ring || io->late_ring || io->depth > 1)) {
		go_without_ring(io, err);
		err = map_staging(io);
	}
	return err ? gmem_fail_by_limit(err, io->staging_size, "no memory for %" PRIu32 " buffers of 1 MiB",
					io->depth + 1) : 0;
}

/* ---- completions ---- */

#define BIT(number) (UINT64_C(1) << (number))

_Static_assert(2 * GMEM_IO_DEPTH == 64, "a bit of under_way for each request");

unsigned int gmem_io_under_way(const struct gmem_io *io)
{
	return (unsigned int)__builtin_popcountll(io->under_way);
}

static void fail_buffer(struct gmem_io *io, struct gmem_io_buffer *buffer, int err)
{
	/* It began before the failure that was returned last, which says the same. */
	if (buffer->era != io->era)
		return;
	buffer->state = FAILED;
	buffer->err = err;
}

/* What was cancelled never began, so it lost nothing. */
static void complete_sync(struct gmem_io *io, struct gmem_io_buffer *buffer, int result)
{
	if (result == -ECANCELED) {
		fail_buffer(io, buffer, result);
		return;
	}
	buffer->state = DONE;
	io->sync_err = result < 0 ? result : 0;
	io->synced = result >= 0;
}

static void complete_buffer(struct gmem_io *io, struct gmem_io_buffer *buffer, int result)
{
	bool was_poll = buffer->not_ready;

	buffer->state = PENDING;
	/* Where io_uring cannot wait for an O_NONBLOCK pipe, asking again at once would spin. */
	buffer->not_ready = result == -EAGAIN && io->serial;
	if (result == -EINTR || result == -EAGAIN || (was_poll && result >= 0))
		return;
	if (buffer->sync) {
		complete_sync(io, buffer, result);
		return;
	}

	/* The file system refuses O_DIRECT, perhaps only at the end of the file. */
	if (result == -EINVAL && buffer->direct) {
		buffer->direct = false;
		io->refused_direct = true;
		return;
	}

	if (result < 0 || (result == 0 && io->writing)) {
		fail_buffer(io, buffer, result ? result : -EIO);
		return;
	}

	buffer->done += (uint32_t)result;
	io->file_bytes += (uint32_t)result;
	if (buffer->direct)
		io->direct_bytes += (uint32_t)result;
	buffer->ended = result == 0;
	if (buffer->ended || buffer->done == buffer->size)
		buffer->state = DONE;
	else if (buffer->done % BLOCK)
		buffer->direct = false;
}

/* Refused, or not found: if the request is still under way, it can be cancelled again. */
static void complete_cancel(struct gmem_io *io, uint64_t victim, int result)
{
	if (result >= 0 || result == -EALREADY)
		return;
	if (++io->refusals < MAX_REFUSALS)
		io->cancelled &= ~(uint32_t)BIT(victim);
}

int gmem_io_complete(struct gmem_io *io, uint64_t number, int result)
{
	struct gmem_io_buffer *buffer;

	if (number >= 2 * GMEM_IO_DEPTH || !(io->under_way & BIT(number)))
		return -EINVAL;

	if (number >= GMEM_IO_DEPTH) {
		complete_cancel(io, number - GMEM_IO_DEPTH, result);
	} else {
		buffer = &io->buffers[number];
		if (result > 0 && !buffer->not_ready &&
		    (uint32_t)result > buffer->size - buffer->done)
			return -EINVAL;
		complete_buffer(io, buffer, result);
	}
	io->under_way &= ~BIT(number);
	return 0;
}

/* Take one completion of our own ring; 0: none, or the caller will pass it on. */
static int reap(struct gmem_io *io, bool wait)
{
	uint32_t number;
	int ret, result;

	ret = gmem_ring_reap(io->ring, wait, &number, &result);
	if (ret > 0)
		gmem_io_complete(io, number, result);
	return ret;
}

/* ---- requests ---- */

/* -EAGAIN: the ring's fd is ready, or will be. */
static int submit(struct gmem_io *io)
{
	int err = gmem_ring_submit(io->ring);

	io->unsubmitted = err != 0;
	/* Completions wait for room that only the caller can make. */
	if (err == -EBUSY && !io->own_ring)
		return -EAGAIN;
	/* No completion may ever come: not to be waited for. */
	return err == -EAGAIN ? -ENOMEM : err;
}

static int queue_request(struct gmem_io *io, const struct gmem_ring_request *request)
{
	int err = gmem_ring_queue(io->ring, request);

	/* Full, of others' requests, too: it has room when the kernel has taken them. */
	if (err == -EAGAIN) {
		err = submit(io);
		/* Nobody would call again once there is room to cancel. */
		if (!err && io->closing)
			err = gmem_ring_await_room(io->ring);
		if (!err)
			err = gmem_ring_queue(io->ring, request);
	}
	if (!err) {
		io->under_way |= BIT(request->number);
		io->unsubmitted = true;
	}
	return err;
}

/* Check RLIMIT_FSIZE, which others may change at any time. */
static bool is_over_limit(struct gmem_io *io, uint64_t end)
{
	uint64_t limit = io->limited ? gmem_sys_limit(RLIMIT_FSIZE) : UINT64_MAX;

	io->limit = limit;
	io->limited_end = end > limit ? end : 0;
	return end > limit;
}

static enum gmem_ring_operation operation_of(const struct gmem_io *io,
					     const struct gmem_io_buffer *buffer)
{
	if (buffer->sync)
		return GMEM_RING_DATASYNC;
	if (buffer->not_ready)
		return GMEM_RING_POLL;
	return io->writing ? GMEM_RING_WRITE : GMEM_RING_READ;
}

static int queue(struct gmem_io *io, uint32_t index)
{
	struct gmem_io_buffer *buffer = &io->buffers[index];
	struct gmem_ring_request request = {
		.number = index,
		.operation = operation_of(io, buffer),
		.events = io->writing ? POLLOUT : POLLIN,
		.fd = buffer->direct ? io->direct_fd : io->fd,
		.buf = buffer->data + buffer->done,
		.size = buffer->size - buffer->done,
		.offset = io->serial ? GMEM_NO_OFFSET : buffer->start + buffer->done,
	};
	int err;

	buffer->era = io->era;
	if (is_over_limit(io, buffer->start + buffer->size)) {
		fail_buffer(io, buffer, -EFBIG);
		return 0;
	}

	err = queue_request(io, &request);
	if (!err)
		buffer->state = IN_FLIGHT;
	return err;
}

/* Submit every pending request that may be under way now. */
static int submit_pending(struct gmem_io *io)
{
	int err = 0;

	if (!io->ring)
		return 0;

	for (uint32_t i = 0; i < io->count && !err; i++) {
		const struct gmem_io_buffer *buffer = nth(io, i);

		if (io->serial && (io->under_way || buffer->state == FAILED))
			break;
		if (buffer->state == PENDING && !buffer->later)
			err = queue(io, (io->first + i) % io->depth);
	}
	if (err && err != -EAGAIN)
		return err;
	return io->unsubmitted ? submit(io) : 0;
}

/* Return the first failure. It makes all failed requests pending again: the next call retries. */
static int take_failure(struct gmem_io *io)
{
	int err = 0;

	for (uint32_t i = 0; i < io->count; i++) {
		struct gmem_io_buffer *buffer = nth(io, i);

		if (buffer->state != FAILED)
			continue;
		buffer->state = PENDING;
		if (err)
			continue;
		err = buffer->err;
		if (io->limited_end)
			io->limited_end = buffer->start + buffer->size;
	}
	io->era += err != 0;
	return err;
}

/* Wait until the first buffer is done; -EAGAIN if it is not and @wait is false. */
static int await_first(struct gmem_io *io, bool wait)
{
	int err;

	do {
		err = reap(io, false);
	} while (err > 0);

	while (!err && nth(io, 0)->state != DONE) {
		err = take_failure(io);
		if (!err)
			err = submit_pending(io);
		/* Of what fails before it is submitted, no completion comes. */
		if (!err)
			err = take_failure(io);
		if (!err && !wait)
			return -EAGAIN;
		if (!err)
			err = reap(io, true);
		err = err < 0 ? err : 0;
	}
	return err;
}

static void pop(struct gmem_io *io)
{
	nth(io, 0)->state = IDLE;
	io->first = (io->first + 1) % io->depth;
	io->count--;
}

/* Before a read or write without a ring; -EAGAIN if it would block and @wait is false. */
static int await_ready(const struct gmem_io *io, bool wait)
{
	short events = io->writing ? POLLOUT : POLLIN;
	int n;

	if (!io->serial)
		return 0;

	do {
		n = gmem_sys_poll(io->fd, events, wait ? -1 : 0);
	} while (n == -EINTR);
	return n < 0 ? n : n ? 0 : -EAGAIN;
}

/* Read or write part of a buffer without the ring; returns the bytes done, or -errno. */
static int64_t transfer_now(struct gmem_io *io, char *data, uint64_t size, uint64_t offset,
			    bool wait)
{
	int64_t n;

	if (is_over_limit(io, offset + size))
		return -EFBIG;

	/* For a pipe, POLLOUT promises room for PIPE_BUF bytes and no more. */
	if (io->serial && io->writing && !wait && !io->never_blocks && size > PIPE_BUF)
		size = PIPE_BUF;

	do {
		n = await_ready(io, wait);
		if (n < 0)
			return n;

		if (io->serial)
			offset = GMEM_NO_OFFSET;
		n = io->writing ? gmem_sys_write_at(io->fd, data, size, offset)
				: gmem_sys_read_at(io->fd, data, size, offset);
	} while (n == -EINTR || (n == -EAGAIN && wait));

	if (n > 0)
		io->file_bytes += (uint64_t)n;
	return n;
}

/* ---- reading ---- */

/* Move io->position to the next data; false if no data is left. */
static bool find_stretch(struct gmem_io *io)
{
	uint64_t start, end;
	int err;

	if (io->position >= io->end)
		return false;
	if (!io->sparse || io->position < io->stretch_end)
		return true;

	err = gmem_sys_find_data(io->fd, io->position, &start, &end);
	io->only_holes = err == -ENXIO || (!err && start >= io->end);
	if (io->only_holes)
		return false;
	if (err) {
		io->sparse = false;
		return true;
	}
	io->position = start;
	io->stretch_end = end;
	return true;
}

static bool is_cached(const struct gmem_io *io, uint64_t start, uint64_t size)
{
	uint64_t page = gmem_sys_page_size();
	uint64_t first = start / page, last = (start + size - 1) / page, cached;

	return gmem_sys_cachestat(io->fd, start, size, &cached) == 0 && cached == last - first + 1;
}

/*
 * Assign the next unit to a buffer. With O_DIRECT it starts at the block boundary before
 * io->position, so all later units are aligned.
 */
static void assign(struct gmem_io *io)
{
	struct gmem_io_buffer *buffer = nth(io, io->count);
	uint64_t skip = io->direct_fd >= 0 ? io->position % BLOCK : 0;
	uint64_t size = GMEM_IO_UNIT - skip;
	bool cached;

	if (io->sparse && io->stretch_end - io->position < size)
		size = io->stretch_end - io->position;
	if (io->end - io->position < size)
		size = io->end - io->position;
	if (io->serial && io->whole)
		size = GMEM_IO_FIRST;

	cached = (io->ring || io->late_ring) && !io->serial && !io->refused_cached &&
		 is_cached(io, io->position, size);
	if (io->late_ring && !cached)
		make_late_ring(io);
	*buffer = (struct gmem_io_buffer){
		.data = buffer->data,
		.state = PENDING,
		.start = io->position,
		.wanted = size,
		.size = (uint32_t)size,
		.later = !io->ring || cached,
	};
	if (!buffer->later && io->direct_fd >= 0 && !io->refused_direct) {
		buffer->direct = true;
		buffer->skip = (uint32_t)skip;
		buffer->start -= skip;
		buffer->size = (uint32_t)((skip + size + BLOCK - 1) / BLOCK * BLOCK);
	}
	io->position += size;
	io->count++;
}

static int fill(struct gmem_io *io)
{
	while (io->count < (io->one ? 1 : io->depth) && !io->ended && find_stretch(io))
		assign(io);
	return submit_pending(io);
}

/* ---- reading by several threads ---- */

/* A unit that can be had now, which begins with @buffer->skip bytes that nobody wants */
static bool is_at_hand(const struct gmem_io_buffer *buffer)
{
	return buffer->later || (buffer->state == DONE && buffer->done >= buffer->skip + buffer->wanted);
}

/*
 * One thread takes what has been read at once, so no page of the guest is cut here; the rest it
 * takes in parts like these.
 */
static uint64_t size_of_part(const struct gmem_io *io, const struct gmem_io_buffer *buffer,
			     uint64_t at, uint64_t offset)
{
	uint64_t left = buffer->wanted - at, most = GMEM_IO_SMALL;

	if (!buffer->later)
		most -= (offset + io->to_gpa) % BLOCK;
	return io->whole || left < most ? left : most;
}

static uint32_t list_unit(const struct gmem_io *io, const struct gmem_io_buffer *buffer,
			  struct gmem_io_part *parts, uint32_t max)
{
	uint64_t at = buffer->taken, now;
	uint32_t n = 0;

	for (; n < max && at < buffer->wanted; at += now) {
		uint64_t offset = buffer->start + buffer->skip + at;

		now = size_of_part(io, buffer, at, offset);
		parts[n++] = (struct gmem_io_part){
			.data = buffer->data + buffer->skip + at,
			.offset = offset,
			.size = now,
			.is_read = !buffer->later,
			.ends = buffer->later || at + now == buffer->wanted,
		};
	}
	/* What has been read can only be taken as a whole. */
	return buffer->later || at == buffer->wanted ? n : 0;
}

uint32_t gmem_io_list(struct gmem_io *io, bool wait, struct gmem_io_part *parts, uint32_t max)
{
	uint32_t n = 0, more = 1;

	if (io->serial || fill(io) || io->ended || !io->count)
		return 0;
	while (io->ring && reap(io, false) > 0)
		;
	if (wait && !nth(io, 0)->later && await_first(io, true))
		return 0;
	for (uint32_t i = 0; i < io->count && more && is_at_hand(nth(io, i)); i++) {
		more = list_unit(io, nth(io, i), parts + n, max - n);
		n += more;
	}
	return n;
}

bool gmem_io_read_part(const struct gmem_io *io, uint64_t offset, char *to, uint64_t size, bool wait)
{
	uint64_t done = 0;
	int64_t n;

	while (done < size) {
		n = io->ring && !wait ? gmem_sys_read_cached(io->fd, to + done, size - done, offset + done)
				      : gmem_sys_read_at(io->fd, to + done, size - done, offset + done);
		if (n <= 0 && n != -EINTR)
			return false;
		done += n > 0 ? (uint64_t)n : 0;
	}
	return true;
}

char *gmem_io_scratch(const struct gmem_io *io, uint32_t number)
{
	return io->small + (1 + number) * GMEM_IO_UNIT;
}

void gmem_io_take_up_to(struct gmem_io *io, uint64_t offset)
{
	while (io->count) {
		struct gmem_io_buffer *buffer = nth(io, 0);
		uint64_t start = buffer->start + buffer->skip, end = start + buffer->wanted;

		if (buffer->later && offset > start + buffer->taken) {
			uint64_t taken = (offset < end ? offset : end) - start;

			io->file_bytes += taken - buffer->taken - buffer->done;
			buffer->taken = taken;
			buffer->done = 0;
		}
		if (offset < end)
			return;
		pop(io);
	}
}

/* ---- reading by the calling thread ---- */

static int64_t read_cached(struct gmem_io *io, char *data, uint64_t size, uint64_t offset)
{
	int64_t n = gmem_sys_read_cached(io->fd, data, size, offset);

	if (n > 0)
		io->file_bytes += (uint64_t)n;
	io->refused_cached |= n == -EOPNOTSUPP;
	return n;
}

/* What is left of a unit becomes a request. */
static void request_rest(struct gmem_io *io, struct gmem_io_buffer *buffer)
{
	io->file_bytes -= buffer->done;
	*buffer = (struct gmem_io_buffer){
		.data = buffer->data,
		.state = PENDING,
		.start = buffer->start + buffer->taken,
		.wanted = buffer->wanted - buffer->taken,
		.size = (uint32_t)(buffer->wanted - buffer->taken),
	};
}

/* The first unit cannot be had from the page cache now, or no unit can be. */
static void request_later(struct gmem_io *io)
{
	for (uint32_t i = 0; i < (io->refused_cached ? io->count : 1); i++)
		if (nth(io, i)->later)
			request_rest(io, nth(io, i));
}

/*
 * Read the unit whose turn it is: all of it, or a piece small enough for the caches. With a
 * ring, -EAGAIN says that the unit is a request now.
 */
static int read_later(struct gmem_io *io, struct gmem_io_buffer *buffer, bool wait,
		      struct gmem_io_piece *ret)
{
	uint64_t left = buffer->wanted - buffer->taken;
	uint64_t want = !io->whole && left > GMEM_IO_SMALL ? GMEM_IO_SMALL : left;
	int64_t n;

	while (buffer->done < want && !buffer->ended) {
		char *data = io->small + buffer->done;
		uint64_t offset = buffer->start + buffer->taken + buffer->done;

		n = io->ring && !wait ? read_cached(io, data, want - buffer->done, offset)
				      : transfer_now(io, data, want - buffer->done, offset, wait);
		if (n < 0 && io->ring && !wait) {
			request_later(io);
			return -EAGAIN;
		}
		if (n < 0)
			return (int)n;
		buffer->done += (uint32_t)n;
		buffer->ended = n == 0;
	}
	*ret = (struct gmem_io_piece){ .data = io->small, .size = buffer->done,
				       .offset = buffer->start + buffer->taken };
	return 0;
}

static int read_ahead(struct gmem_io *io, struct gmem_io_buffer *buffer, bool wait,
		      struct gmem_io_piece *ret)
{
	uint64_t got;
	int err = await_first(io, wait);

	if (err)
		return err;

	got = buffer->done > buffer->skip ? buffer->done - buffer->skip : 0;
	*ret = (struct gmem_io_piece){
		.data = buffer->data + buffer->skip,
		.offset = buffer->start + buffer->skip,
		.size = got < buffer->wanted ? got : buffer->wanted,
	};
	return 0;
}

int gmem_io_next(struct gmem_io *io, bool wait, struct gmem_io_piece *ret)
{
	struct gmem_io_buffer *buffer;
	int err = fill(io);

	*ret = (struct gmem_io_piece){ .offset = io->position };
	if (err || !io->count || io->ended)
		return err;

	buffer = nth(io, 0);
	err = buffer->later ? read_later(io, buffer, wait, ret) : -EAGAIN;
	if (!buffer->later)
		err = read_ahead(io, buffer, wait, ret);
	if (!err && ret->size == 0)
		io->ended = true;
	return err;
}

void gmem_io_take(struct gmem_io *io)
{
	struct gmem_io_buffer *buffer = nth(io, 0);

	if (buffer->later) {
		buffer->taken += buffer->done;
		buffer->done = 0;
		io->ended |= buffer->ended;
		if (!buffer->ended && buffer->taken < buffer->wanted)
			return;
	} else {
		io->ended |= buffer->done < buffer->skip + buffer->wanted;
	}
	pop(io);
}

bool gmem_io_extend(struct gmem_io *io, uint64_t size)
{
	struct gmem_io_buffer *buffer = nth(io, 0);

	if (!io->serial || buffer->done < buffer->wanted || size <= buffer->wanted)
		return false;
	io->position += size - buffer->wanted;
	buffer->wanted = size;
	buffer->size = (uint32_t)size;
	buffer->state = PENDING;
	return true;
}

int gmem_io_rewind(struct gmem_io *io, uint64_t position, bool wait)
{
	int err = 0;

	if (io->unsubmitted)
		err = submit(io);
	while (io->under_way && err >= 0) {
		err = reap(io, wait);
		if (err == 0)
			return -EAGAIN;
	}
	if (err < 0)
		return err;

	while (io->count)
		pop(io);
	io->ended = false;
	io->position = position;
	return 0;
}

int gmem_io_switch(struct gmem_io *io, const struct gmem_io_params *params, bool wait)
{
	int err = gmem_io_rewind(io, params->position, wait);

	if (err)
		return err;
	io->end = params->end;
	if (params->fd == io->fd)
		return 0;
	if (io->direct_fd >= 0)
		gmem_sys_close(io->direct_fd);
	io->direct_fd = -1;
	io->refused_direct = false;
	io->refused_cached = false;
	io->fd = params->fd;
	open_direct(io, params);
	return 0;
}

/* ---- writing ---- */

static int sync_now(struct gmem_io *io)
{
	int err;

	do {
		err = gmem_sys_datasync(io->fd);
	} while (err == -EINTR);
	io->sync_err = err;
	io->synced = !err;
	return err;
}

static int write_first(struct gmem_io *io, bool wait)
{
	struct gmem_io_buffer *buffer = nth(io, 0);
	int64_t n;

	if (buffer->sync)
		return sync_now(io);
	while (buffer->done < buffer->size) {
		n = transfer_now(io, buffer->data + buffer->done, buffer->size - buffer->done,
				 buffer->start + buffer->done, wait);
		if (n <= 0)
			return n ? (int)n : -EIO;
		buffer->done += (uint32_t)n;
	}
	buffer->state = DONE;
	return 0;
}

static int finish_first(struct gmem_io *io, bool wait)
{
	int err = io->ring ? await_first(io, wait) : write_first(io, wait);

	if (!err)
		pop(io);
	return err;
}

int gmem_io_space(struct gmem_io *io, bool wait, uint32_t units)
{
	int err = 0;

	if (io->late_ring && (io->count >= LATE_UNITS || io->count + units > io->depth))
		make_late_ring(io);
	/* Without a ring, what was put last is written now: a delay gains nothing. */
	while (!err && io->count && !io->late_ring && (!io->ring || io->count + units > io->depth))
		err = finish_first(io, wait);
	return err;
}

char *gmem_io_buffer(const struct gmem_io *io, uint32_t n)
{
	return io->buffers[(io->first + io->count + n) % io->depth].data;
}

int gmem_io_put(struct gmem_io *io, uint64_t size)
{
	struct gmem_io_buffer *buffer = nth(io, io->count);

	*buffer = (struct gmem_io_buffer){
		.data = buffer->data,
		.state = PENDING,
		.start = io->position,
		.size = (uint32_t)size,
		.direct = io->direct_fd >= 0 && !io->refused_direct && size % BLOCK == 0,
	};
	io->position += size;
	io->count++;
	return submit_pending(io);
}

static void put_sync(struct gmem_io *io)
{
	struct gmem_io_buffer *buffer = nth(io, 0);

	*buffer = (struct gmem_io_buffer){ .data = buffer->data, .state = PENDING, .sync = true };
	io->count = 1;
}

int gmem_io_drain(struct gmem_io *io, bool sync, bool wait)
{
	int err = io->sync_err;

	while (!err && (io->count || (sync && !io->synced))) {
		if (!io->count)
			put_sync(io);
		err = finish_first(io, wait);
		err = io->sync_err ? io->sync_err : err;
	}
	return err;
}

/* ---- closing ---- */

/* Cancel every request that is under way, once. */
static int cancel_requests(struct gmem_io *io)
{
	int err = 0;

	for (uint32_t i = 0; i < GMEM_IO_DEPTH && !err; i++) {
		if (!(io->under_way & BIT(i)) || io->cancelled & BIT(i))
			continue;
		err = queue_request(io, &(struct gmem_ring_request){
			.operation = GMEM_RING_CANCEL, .number = GMEM_IO_DEPTH + i, .victim = i });
		if (!err)
			io->cancelled |= (uint32_t)BIT(i);
	}
	if (!err && io->unsubmitted)
		err = submit(io);
	return err;
}

/*
 * End all requests on a ring of our own: the kernel must not write into the buffers after
 * they are unmapped. Returns -errno if it may still do so.
 */
static int end_requests(struct gmem_io *io)
{
	int err;

	/* What the kernel has not taken by now ends with the ring. */
	while (gmem_io_under_way(io) > gmem_ring_unsubmitted(io->ring)) {
		err = cancel_requests(io);
		if (err && ++io->refusals < MAX_REFUSALS)
			continue;
		/* Requests of files end by themselves. */
		if (io->serial && io->refusals >= MAX_REFUSALS)
			return -EBUSY;
		err = reap(io, true);
		if (err < 0)
			return err;
	}
	return 0;
}

bool gmem_io_close(struct gmem_io *io)
{
	bool may_unmap = true;

	io->closing = true;
	if (io->ring && io->own_ring) {
		may_unmap = end_requests(io) == 0;
	} else if (io->ring && io->under_way) {
		cancel_requests(io);
		if (io->under_way)
			return false;
	}

	gmem_ring_free(io->ring);
	if (io->direct_fd >= 0)
		gmem_sys_close(io->direct_fd);
	if (io->staging && may_unmap)
		gmem_sys_munmap(io->staging, io->staging_size);
	return true;
}

/* ---- waiting elsewhere ---- */

int gmem_io_poll_fd(const struct gmem_io *io, int16_t *ret_events)
{
	*ret_events = io->ring || !io->writing ? POLLIN : POLLOUT;
	return io->ring ? gmem_ring_fd(io->ring) : io->fd;
}
