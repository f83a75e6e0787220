/* SPDX-License-Identifier: MIT */
/*
 * ring: an io_uring, the library's own or the caller's.
 *
 * Every function that can fail returns -errno. The unit tests replace ring.c together
 * with sys.c. Built without liburing, making a ring fails with -ENOTSUP.
 *
 * Not supported: linked requests, registered buffers and registered files.
 */
#ifndef GMEM_RING_H
#define GMEM_RING_H

#include <stdbool.h>
#include <stdint.h>

struct gmem_ring;
struct io_uring;

enum gmem_ring_operation {
	GMEM_RING_READ,
	GMEM_RING_WRITE,
	GMEM_RING_DATASYNC,	/* only .fd */
	GMEM_RING_POLL,		/* only .fd and .events; the result is a mask like that */
	GMEM_RING_CANCEL,	/* only .victim: the number of another request */
};

struct gmem_ring_request {
	uint32_t number;	/* comes back with the result */
	enum gmem_ring_operation operation;
	uint32_t victim;
	uint32_t size;
	int fd;
	int16_t events;		/* POLLIN or POLLOUT */
	void *buf;
	uint64_t offset;	/* or GMEM_NO_OFFSET */
};

/*
 * Sets up a ring of our own, and a thread that submits what is queued. The calling threads
 * have no tie to the ring: nothing of it shows in their system calls, then or later. A child
 * of fork() cannot use the ring (-EIO), but free it.
 */
int gmem_ring_new(uint32_t entries, struct gmem_ring **ret);
/*
 * Wraps a ring of the caller, who reaps its completions. The user_data of a request is
 * @tag plus its number. Returns -EINVAL for a ring of IORING_SETUP_IOPOLL, which neither
 * buffered I/O nor a sync or a cancellation completes on.
 */
int gmem_ring_wrap(struct io_uring *callers, uint64_t tag, struct gmem_ring **ret);
/* Frees @ring, but leaves a ring of the caller as it is. */
void gmem_ring_free(struct gmem_ring *ring);
/* Returns the fd of the ring, which the ring keeps. */
int gmem_ring_fd(const struct gmem_ring *ring);
/* Returns how many completions the ring has room for. */
uint32_t gmem_ring_room(const struct gmem_ring *ring);
/*
 * Queues a request for the next submit; -EAGAIN if the queue is full, -EIO in a child of the
 * process that made or wrapped the ring, also from submit.
 */
int gmem_ring_queue(struct gmem_ring *ring, const struct gmem_ring_request *request);
/*
 * Gives all queued requests to the kernel, those of other users of the caller's ring
 * included. On failure, the kernel may have taken some of them.
 */
int gmem_ring_submit(struct gmem_ring *ring);
/*
 * Waits for room in the queue, which a thread of the kernel's makes that polls it; that
 * takes no longer than the system calls it makes in our place.
 */
int gmem_ring_await_room(struct gmem_ring *ring);
/*
 * Counts the queued requests that the kernel has not taken. Of a ring of our own, it does
 * not take them before the next submit.
 */
uint32_t gmem_ring_unsubmitted(const struct gmem_ring *ring);
/*
 * Takes one completion, waiting for it if @wait. Returns 1, or 0 if there is none: then
 * none has come yet, or the ring is the caller's, who reaps it.
 */
int gmem_ring_reap(struct gmem_ring *ring, bool wait, uint32_t *ret_number, int *ret_result);

#endif
