/* SPDX-License-Identifier: MIT */
#include "transfer/file_queue.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <stddef.h>
#include <sys/mman.h>

#include "base/error.h"
#include "os/ring.h"

#define HUGE_PAGE ((uint64_t)2 << 20)

/* Alignment for O_DIRECT that every block device accepts */
#define BLOCK ((uint64_t)4096)

/* Bytes read at once when a unit's turn comes, unless the user wants whole units */
#define SMALL_PIECE ((uint64_t)256 << 10)

/* Buffers of a file that has one request at a time */
#define SERIAL_DEPTH 4

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
	return gmem_ring_new(2 * GMEM_IO_DEPTH, &io->ring);
}

static void open_direct(struct gmem_io *io, const struct gmem_io_params *params)
{
	int flags = O_DIRECT | (io->writing ? O_WRONLY : O_RDONLY);

	if (params->no_direct || io->serial || !io->ring)
		return;
	/* Whole units cannot be moved to an aligned offset. */
	if ((io->writing || io->whole) && params->position % BLOCK)
		return;

	io->direct_fd = gmem_sys_reopen(io->fd, flags);
}

static int map_staging(struct gmem_io *io)
{
	uint64_t need = (io->depth + 1) * GMEM_IO_UNIT, start;
	int err;

	io->staging_size = need + HUGE_PAGE;
	err = gmem_sys_mmap(NULL, io->staging_size, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0, &io->staging);
	if (err)
		return gmem_fail(err, "no memory for %" PRIu32 " buffers of 1 MiB: %s", io->depth,
				 gmem_errno_name(err));

	start = ((uintptr_t)io->staging + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
	gmem_sys_madvise((void *)(uintptr_t)start, need, MADV_HUGEPAGE);
	for (uint32_t i = 0; i < io->depth; i++)
		io->buffers[i].data = (char *)(uintptr_t)(start + i * GMEM_IO_UNIT);
	io->small = (char *)(uintptr_t)(start + io->depth * GMEM_IO_UNIT);
	return 0;
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
	*io = (struct gmem_io){
		.fd = params->fd,
		.direct_fd = -1,
		.writing = params->writing,
		.sparse = params->sparse && params->kind.has_size,
		.serial = !params->kind.has_offsets,
		.whole = params->whole,
		.own_ring = !params->ring,
		.never_blocks = params->kind.never_blocks,
		.depth = useful_depth(params),
		.position = params->position,
		.end = params->end,
	};

	io->no_ring = open_ring(io, params);
	if (io->no_ring && params->ring)
		return gmem_fail(io->no_ring, "the ring cannot be used: %s",
				 gmem_errno_name(io->no_ring));
	/* A single buffer stays in the processor's caches. */
	if (io->no_ring)
		io->depth = 1;

	open_direct(io, params);
	return map_staging(io);
}

static bool cancel_in_flight(struct gmem_io *io)
{
	for (uint32_t i = 0; i < io->depth && !io->cancelled; i++)
		if (io->buffers[i].state == IN_FLIGHT)
			gmem_ring_queue_cancel(io->ring, GMEM_IO_DEPTH + i, i);
	if (!io->cancelled)
		gmem_ring_submit(io->ring);
	io->cancelled = true;
	return io->in_flight == 0;
}

static int reap(struct gmem_io *io, bool wait);

bool gmem_io_close(struct gmem_io *io)
{
	/* The kernel must not write into the buffers after they are unmapped. */
	while (io->in_flight && !cancel_in_flight(io))
		if (!io->own_ring || reap(io, true) < 0)
			return false;

	gmem_ring_free(io->ring);
	if (io->direct_fd >= 0)
		gmem_sys_close(io->direct_fd);
	if (io->staging)
		gmem_sys_munmap(io->staging, io->staging_size);
	return true;
}

/* ---- requests ---- */

static void complete_buffer(struct gmem_io *io, struct gmem_io_buffer *buffer, int result)
{
	buffer->state = PENDING;
	if (result == -EINTR || result == -EAGAIN)
		return;

	/* The file system refuses O_DIRECT, perhaps only at the end of the file. */
	if (result == -EINVAL && buffer->direct) {
		buffer->direct = false;
		io->refused_direct = true;
		return;
	}

	if (result < 0 || (result == 0 && io->writing)) {
		buffer->state = FAILED;
		buffer->err = result ? result : -EIO;
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

int gmem_io_complete(struct gmem_io *io, uint64_t number, int result)
{
	if (number >= GMEM_IO_DEPTH && number < GMEM_IO_DEPTH + io->depth)
		return 0;	/* the completion of a cancel request */
	if (number >= io->depth || io->buffers[number].state != IN_FLIGHT)
		return -EINVAL;

	io->in_flight--;
	complete_buffer(io, &io->buffers[number], result);
	return 0;
}

/* Returns 1 if a request completed, 0 if none did. */
static int reap(struct gmem_io *io, bool wait)
{
	uint32_t number;
	int ret, result;

	ret = gmem_ring_reap(io->ring, wait && io->in_flight, &number, &result);
	if (ret > 0)
		gmem_io_complete(io, number, result);
	return ret;
}

static int queue(struct gmem_io *io, uint32_t index)
{
	struct gmem_io_buffer *buffer = &io->buffers[index];
	struct gmem_ring_request request = {
		.number = index,
		.fd = buffer->direct ? io->direct_fd : io->fd,
		.writing = io->writing,
		.buf = buffer->data + buffer->done,
		.size = buffer->size - buffer->done,
		.offset = io->serial ? GMEM_NO_OFFSET : buffer->start + buffer->done,
	};
	int err = gmem_ring_queue(io->ring, &request);

	if (!err) {
		buffer->state = IN_FLIGHT;
		io->in_flight++;
		io->unsubmitted = true;
	}
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

		if (io->serial && (io->in_flight || buffer->state == FAILED))
			break;
		if (buffer->state == PENDING && !buffer->later)
			err = queue(io, (io->first + i) % io->depth);
	}
	if (!io->unsubmitted)
		return 0;

	err = gmem_ring_submit(io->ring);
	io->unsubmitted = err != 0;
	return err;
}

/* Return the first failure, and make its request pending again: the next call retries it. */
static int take_failure(struct gmem_io *io)
{
	for (uint32_t i = 0; i < io->count; i++) {
		struct gmem_io_buffer *buffer = nth(io, i);

		if (buffer->state == FAILED) {
			buffer->state = PENDING;
			return buffer->err;
		}
	}
	return 0;
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
		if (!err && nth(io, 0)->state != DONE) {
			if (!wait)
				return -EAGAIN;
			err = reap(io, true);
			err = err < 0 ? err : 0;
		}
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

	if (io->sparse && io->stretch_end - io->position < size)
		size = io->stretch_end - io->position;
	if (io->end - io->position < size)
		size = io->end - io->position;

	*buffer = (struct gmem_io_buffer){
		.data = buffer->data,
		.state = PENDING,
		.start = io->position,
		.wanted = size,
		.size = (uint32_t)size,
		.later = !io->ring || (!io->serial && is_cached(io, io->position, size)),
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
	while (io->count < io->depth && !io->ended && find_stretch(io))
		assign(io);
	return submit_pending(io);
}

/* Read the unit whose turn it is: all of it, or a piece small enough for the caches. */
static int read_later(struct gmem_io *io, struct gmem_io_buffer *buffer, bool wait,
		      struct gmem_io_piece *ret)
{
	uint64_t left = buffer->wanted - buffer->taken;
	uint64_t want = !io->whole && left > SMALL_PIECE ? SMALL_PIECE : left;
	int64_t n;

	while (buffer->done < want && !buffer->ended) {
		n = transfer_now(io, io->small + buffer->done, want - buffer->done,
				 buffer->start + buffer->taken + buffer->done, wait);
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
	err = buffer->later ? read_later(io, buffer, wait, ret)
			    : read_ahead(io, buffer, wait, ret);
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

int gmem_io_rewind(struct gmem_io *io, uint64_t position, bool wait)
{
	int err = 0;

	while (io->in_flight && err >= 0) {
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

/* ---- writing ---- */

static int write_first(struct gmem_io *io, bool wait)
{
	struct gmem_io_buffer *buffer = nth(io, 0);
	int64_t n;

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

int gmem_io_space(struct gmem_io *io, bool wait, char **ret)
{
	int err = 0;

	/* Without a ring, the buffer that was put last is written now: a delay gains nothing. */
	while (!err && io->count && (!io->ring || io->count == io->depth))
		err = finish_first(io, wait);
	if (!err)
		*ret = nth(io, io->count)->data;
	return err;
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

int gmem_io_drain(struct gmem_io *io, bool wait)
{
	int err = 0;

	while (!err && io->count)
		err = finish_first(io, wait);
	return err;
}

/* ---- waiting elsewhere ---- */

int gmem_io_poll_fd(const struct gmem_io *io, int16_t *ret_events)
{
	*ret_events = io->ring || !io->writing ? POLLIN : POLLOUT;
	return io->ring ? gmem_ring_fd(io->ring) : io->fd;
}
