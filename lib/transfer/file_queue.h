/* SPDX-License-Identifier: MIT */
/*
 * file_queue: a file or a pipe as a queue of large buffers, many under way at a time.
 *
 * The buffers lie in huge pages: guest memory is made of single pages, and a disk that
 * reads into those needs so many segments that copying from here is faster.
 *
 * Reading: what the page cache has is read when its turn comes, into a small place that
 * stays in the processor's caches; everything else is requested ahead, past the page
 * cache if possible. Without a ring, everything is read when its turn comes. Writing is
 * the same, past the page cache if possible. Bytes of a pipe have an order, so there is
 * one request at a time.
 */
#ifndef GMEM_FILE_QUEUE_H
#define GMEM_FILE_QUEUE_H

#include <stdbool.h>
#include <stdint.h>

#include "os/sys.h"

#define GMEM_IO_UNIT ((uint64_t)1 << 20)
#define GMEM_IO_DEPTH 32

struct gmem_io_buffer {
	char *data;
	uint64_t start;		/* in the file, of what the user asks for */
	uint64_t wanted;	/* bytes of it, without what is read for alignment's sake */
	uint64_t taken;		/* by the user, of a buffer that is read later */
	uint32_t size;
	uint32_t done;
	uint32_t skip;
	int err;
	uint8_t state;
	bool later;		/* read when its turn comes */
	bool direct;
	bool ended;		/* the file did */
};

struct gmem_io {
	int fd;			/* the caller's */
	int direct_fd;		/* the same file past the page cache, or negative */
	struct gmem_ring *ring;
	int no_ring;		/* why there is none */
	bool writing;
	bool serial;		/* no offsets, one at a time */
	bool sparse;
	bool whole;		/* the user wants whole units */
	bool own_ring;
	bool never_blocks;
	bool unsubmitted;
	bool refused_direct;
	bool cancelled;
	bool only_holes;	/* from position on; reading */
	bool ended;
	uint32_t depth, first, count, flying;
	struct gmem_io_buffer buffers[GMEM_IO_DEPTH];
	uint64_t position, end, stretch_end;
	uint64_t file_bytes, direct_bytes;
	uint64_t staging_size;
	void *staging;
	char *small;
};

struct gmem_io_params {
	int fd;
	struct gmem_fd_kind kind;
	bool writing, sparse, whole, no_direct, no_ring;
	uint32_t depth;
	uint64_t position, end;
	struct io_uring *ring;
	uint64_t ring_tag;
};

struct gmem_io_piece {
	char *data;
	uint64_t offset;	/* in the file */
	uint64_t size;		/* 0: the end */
};

/* On failure, too, call gmem_io_close(). */
int gmem_io_open(struct gmem_io *io, const struct gmem_io_params *params);
/* false: the caller still has completions to hand over, and then calls again */
bool gmem_io_close(struct gmem_io *io);
/* -EINVAL: @number is none of ours */
int gmem_io_complete(struct gmem_io *io, uint64_t number, int result);
int gmem_io_poll_fd(const struct gmem_io *io, int16_t *ret_events);

/*
 * The functions below return -EAGAIN where they would have to wait and @wait is false.
 * After any other -errno, calling again tries again.
 */

/* Reading: the next piece, which stays until gmem_io_take() */
int gmem_io_next(struct gmem_io *io, bool wait, struct gmem_io_piece *ret);
void gmem_io_take(struct gmem_io *io);
/* Read from @position again, once nothing is under way any more. */
int gmem_io_rewind(struct gmem_io *io, uint64_t position, bool wait);

/* Writing: get room for a unit, say how much was put there, wait until all is written. */
int gmem_io_space(struct gmem_io *io, bool wait, char **ret);
int gmem_io_put(struct gmem_io *io, uint64_t size);
int gmem_io_drain(struct gmem_io *io, bool wait);

#endif
