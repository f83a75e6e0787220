/* SPDX-License-Identifier: MIT */
/*
 * file_queue: a file or a pipe as a queue of large buffers, many under way at a time.
 *
 * The buffers lie in huge pages. Guest memory is made of single pages: a disk that reads
 * directly into those needs so many segments that a copy from these buffers is faster.
 *
 * Reading: units that are in the page cache are read when their turn comes, into a small
 * buffer that stays in the processor's caches. All other units are requested ahead, with
 * O_DIRECT if possible. A unit that has left the page cache meanwhile is requested late
 * if the user cannot wait. Without a ring, every unit is read when its turn comes.
 *
 * Writing: each unit is requested when it is put, with O_DIRECT if possible. Without a
 * ring, it is written when the next buffer is asked for. The sync is a request, too, after
 * all others. A unit that would end past RLIMIT_FSIZE fails without the kernel, which
 * would raise SIGXFSZ.
 *
 * If all calls wait anyway, a ring is made when the first unit is not in the page cache, or
 * the third one is written: it takes as long to make as a unit.
 *
 * The bytes of a pipe have an order, so only one request is under way at a time. Of whole
 * units, only the first GMEM_IO_FIRST bytes are read from a pipe, until the user says how much
 * more of it there is. Where
 * io_uring refuses to wait for one of O_NONBLOCK, that is polled for first.
 *
 * A failure is returned once, the first in the order of the file. It makes all failed
 * requests pending again, also those that were under way then and fail later: what they
 * say is as old as what was returned. Only a failed sync is final, because after it the
 * kernel takes for written what never reached the disk (fsync(2)).
 *
 * Every request and every request to cancel one has a completion, and under_way has a bit
 * for each until it has come. A ring is given up, and buffers unmapped, when there is none.
 */
#ifndef GMEM_FILE_QUEUE_H
#define GMEM_FILE_QUEUE_H

#include <stdbool.h>
#include <stdint.h>

#include "os/sys.h"

#define GMEM_IO_UNIT ((uint64_t)1 << 20)
#define GMEM_IO_DEPTH 32

/* Bytes of a whole unit that are read from a pipe at first */
#define GMEM_IO_FIRST ((uint64_t)4096)

/* Bytes read at once when a unit's turn comes, unless the user wants whole units */
#define GMEM_IO_SMALL ((uint64_t)256 << 10)

struct gmem_io_buffer {
	char *data;
	uint64_t start;		/* offset in the file of the first byte of data */
	uint64_t wanted;	/* bytes for the user, without those read only for alignment */
	uint64_t taken;		/* if later: bytes the user has already taken */
	uint32_t size;		/* bytes to transfer */
	uint32_t done;		/* bytes transferred */
	uint32_t skip;		/* bytes before the wanted ones, read only for alignment */
	int err;
	uint32_t era;		/* that of the queue when it was requested */
	uint8_t state;
	bool later;		/* read when its turn comes, not requested ahead */
	bool direct;		/* with O_DIRECT */
	bool ended;		/* the file ended in it */
	bool sync;		/* no data: a sync of what was written before */
	bool not_ready;		/* refused to wait for the file: to be polled for first */
};

struct gmem_io {
	int fd;			/* the caller's */
	int direct_fd;		/* the same file opened with O_DIRECT, or negative */
	struct gmem_ring *ring;
	int no_ring;		/* -errno: why there is no ring */
	bool writing;
	bool serial;		/* the file has no offsets: one request at a time */
	bool limited;		/* RLIMIT_FSIZE applies */
	bool sparse;		/* skip holes */
	bool whole;		/* the user wants whole units */
	bool one;		/* reading: of what is ahead, request nothing; the user's to set */
	bool own_ring;
	bool late_ring;		/* a ring of our own is made once it pays */
	bool never_blocks;
	bool unsubmitted;	/* requests are queued in the ring but not submitted */
	bool refused_direct;	/* O_DIRECT failed once: no longer tried */
	bool refused_cached;	/* the file system cannot read from the page cache alone */
	bool closing;
	bool synced;
	bool only_holes;	/* reading: no data follows position */
	bool ended;
	int sync_err;		/* of a sync that failed: final */
	uint64_t under_way;	/* bits: requests of buffers, then their cancellations */
	uint32_t cancelled;	/* bits: buffers whose request was cancelled */
	uint32_t refusals;	/* of requests to cancel, or to take those */
	uint32_t era;		/* failures returned so far */
	uint32_t depth, first, count;
	struct gmem_io_buffer buffers[GMEM_IO_DEPTH];
	uint64_t limit, limited_end;	/* RLIMIT_FSIZE that refused a write, and its end; or 0 */
	uint64_t position, end, stretch_end;
	uint64_t file_bytes, direct_bytes;
	uint64_t staging_size;
	void *staging;
	char *small;		/* a unit for what is read when its turn comes, then one for each worker */
	uint32_t workers;	/* that have one; 0: there is no need of any */
	uint64_t to_gpa;
};

struct gmem_io_params {
	int fd;
	struct gmem_fd_kind kind;
	bool writing, sparse, whole, no_direct, no_ring;
	bool waits;		/* every call will wait: nobody polls for the ring */
	uint32_t workers;	/* threads that may read at the same time, see gmem_io_list() */
	uint64_t to_gpa;	/* what added to an offset in the file gives its guest address */
	uint32_t depth;
	uint64_t position, end;
	struct io_uring *ring;
	uint64_t ring_tag;
};

struct gmem_io_piece {
	char *data;
	uint64_t offset;	/* in the file */
	uint64_t size;		/* 0: the file has ended */
};

/* A unit at the front of the queue, or a part of one */
struct gmem_io_part {
	char *data;		/* room in the unit's buffer */
	uint64_t offset;	/* in the file */
	uint64_t size;
	bool is_read;		/* data has it */
	bool ends;		/* the queue can be taken up to the end of this part */
};

/* On failure, too, call gmem_io_close(). */
int gmem_io_open(struct gmem_io *io, const struct gmem_io_params *params);
/*
 * Returns false if completions are still to come on the caller's ring: pass them on, then
 * call again. If the kernel refuses to cancel what may never end by itself, in a ring of
 * our own, the buffers stay mapped for ever.
 */
bool gmem_io_close(struct gmem_io *io);
/* Returns -EINVAL if no completion with this @number and @result is to come. */
int gmem_io_complete(struct gmem_io *io, uint64_t number, int result);
/* Counts the completions that are to come. */
unsigned int gmem_io_under_way(const struct gmem_io *io);
int gmem_io_poll_fd(const struct gmem_io *io, int16_t *ret_events);

/*
 * The functions below return -EAGAIN if they would have to wait and @wait is false.
 * After any other -errno, the next call retries the request that failed.
 */

/* Reading: get the next piece; it stays valid until gmem_io_take(). */
int gmem_io_next(struct gmem_io *io, bool wait, struct gmem_io_piece *ret);
void gmem_io_take(struct gmem_io *io);
/*
 * Reading by several threads: list up to @max parts at the front of the queue that can be had
 * now, in order; waits for the first if @wait. 0 if there are none, for whatever reason:
 * gmem_io_next() tells. What was listed can be read and taken until that is called. No page of
 * the guest is in two parts of a unit that has been read: the same is found in it as one thread finds.
 */
uint32_t gmem_io_list(struct gmem_io *io, bool wait, struct gmem_io_part *parts, uint32_t max);
/* Read @size bytes at @offset, all of them or false. Any thread may do so. */
bool gmem_io_read_part(const struct gmem_io *io, uint64_t offset, char *to, uint64_t size, bool wait);
/* Memory of the worker @number < io->workers, GMEM_IO_UNIT bytes, which nobody else uses */
char *gmem_io_scratch(const struct gmem_io *io, uint32_t number);
/* Take all that is in front of @offset. */
void gmem_io_take_up_to(struct gmem_io *io, uint64_t offset);
/*
 * The next piece of a pipe is to have @size bytes, up to GMEM_IO_UNIT: call gmem_io_next() again.
 * false: it cannot have more than it has.
 */
bool gmem_io_extend(struct gmem_io *io, uint64_t size);
/* Wait until no request is under way, then read from @position again, */
int gmem_io_rewind(struct gmem_io *io, uint64_t position, bool wait);
/* or read another file from there on. Neither of the two may be a pipe. */
int gmem_io_switch(struct gmem_io *io, const struct gmem_io_params *params, bool wait);

/*
 * Writing: wait until @units buffers are free, submit the @size bytes put into the first of
 * them, wait for all and, if @sync, for the disk. After io->sync_err is set, the last returns
 * it for ever.
 */
int gmem_io_space(struct gmem_io *io, bool wait, uint32_t units);
/* The @n-th of the free buffers, of GMEM_IO_UNIT bytes; it stays so when those before it are put. */
char *gmem_io_buffer(const struct gmem_io *io, uint32_t n);
int gmem_io_put(struct gmem_io *io, uint64_t size);
int gmem_io_drain(struct gmem_io *io, bool sync, bool wait);

#endif
