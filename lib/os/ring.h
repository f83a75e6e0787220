/* SPDX-License-Identifier: MIT */
/*
 * ring: an io_uring, the library's own or the caller's.
 *
 * Ground floor, like sys.h: the scripted kernel of the unit tests replaces it. Built
 * without liburing, every ring is refused with -ENOTSUP.
 */
#ifndef GMEM_RING_H
#define GMEM_RING_H

#include <stdbool.h>
#include <stdint.h>

struct gmem_ring;
struct io_uring;

/* What to read or write; @number comes back with the result. */
struct gmem_ring_request {
	uint32_t number;
	uint32_t size;
	int fd;
	bool writing;
	void *buf;
	uint64_t offset;
};

int gmem_ring_new(uint32_t entries, struct gmem_ring **ret);
/*
 * Use a ring of the caller's. The user_data of requests are their numbers, counted
 * from @tag; the caller reaps them.
 */
int gmem_ring_wrap(struct io_uring *callers, uint64_t tag, struct gmem_ring **ret);
void gmem_ring_free(struct gmem_ring *ring);
int gmem_ring_fd(const struct gmem_ring *ring);
/* -EAGAIN: the queue is full, submit first */
int gmem_ring_queue(struct gmem_ring *ring, const struct gmem_ring_request *request);
int gmem_ring_queue_cancel(struct gmem_ring *ring, uint32_t number, uint32_t victim);
int gmem_ring_submit(struct gmem_ring *ring);
/* 1, or 0 if there is nothing (yet) */
int gmem_ring_reap(struct gmem_ring *ring, bool wait, uint32_t *ret_number, int *ret_result);

#endif
