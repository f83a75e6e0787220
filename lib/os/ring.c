/* SPDX-License-Identifier: MIT */
#include "os/ring.h"

#include <errno.h>
#include <stdlib.h>

#ifdef HAVE_LIBURING
#include <liburing.h>
#endif

#ifdef HAVE_LIBURING

struct gmem_ring {
	struct io_uring own;
	struct io_uring *callers;	/* NULL: the ring is @own */
	uint64_t tag;
};

static struct io_uring *ring_of(struct gmem_ring *ring)
{
	return ring->callers ? ring->callers : &ring->own;
}

int gmem_ring_new(uint32_t entries, struct gmem_ring **ret)
{
	struct gmem_ring *ring = calloc(1, sizeof(*ring));
	int err;

	if (!ring)
		return -ENOMEM;

	err = io_uring_queue_init(entries, &ring->own, 0);
	if (err) {
		free(ring);
		return err;
	}
	*ret = ring;
	return 0;
}

int gmem_ring_wrap(struct io_uring *callers, uint64_t tag, struct gmem_ring **ret)
{
	struct gmem_ring *ring = calloc(1, sizeof(*ring));

	if (!ring)
		return -ENOMEM;

	ring->callers = callers;
	ring->tag = tag;
	*ret = ring;
	return 0;
}

void gmem_ring_free(struct gmem_ring *ring)
{
	if (ring && !ring->callers)
		io_uring_queue_exit(&ring->own);
	free(ring);
}

int gmem_ring_fd(const struct gmem_ring *ring)
{
	return ring->callers ? ring->callers->ring_fd : ring->own.ring_fd;
}

int gmem_ring_queue(struct gmem_ring *ring, const struct gmem_ring_request *request)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring_of(ring));

	if (!sqe)
		return -EAGAIN;

	/* GMEM_NO_OFFSET has the value that means "the current position" to io_uring. */
	if (request->writing)
		io_uring_prep_write(sqe, request->fd, request->buf, request->size,
				    request->offset);
	else
		io_uring_prep_read(sqe, request->fd, request->buf, request->size,
				   request->offset);
	io_uring_sqe_set_data64(sqe, ring->tag + request->number);
	return 0;
}

int gmem_ring_queue_cancel(struct gmem_ring *ring, uint32_t number, uint32_t victim)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring_of(ring));

	if (!sqe)
		return -EAGAIN;

	io_uring_prep_cancel64(sqe, ring->tag + victim, 0);
	io_uring_sqe_set_data64(sqe, ring->tag + number);
	return 0;
}

int gmem_ring_submit(struct gmem_ring *ring)
{
	int n;

	do {
		n = io_uring_submit(ring_of(ring));
	} while (n == -EINTR);
	return n < 0 ? n : 0;
}

int gmem_ring_reap(struct gmem_ring *ring, bool wait, uint32_t *ret_number, int *ret_result)
{
	struct io_uring_cqe *cqe = NULL;
	int err;

	if (ring->callers)
		return 0;

	do {
		err = wait ? io_uring_wait_cqe(&ring->own, &cqe)
			   : io_uring_peek_cqe(&ring->own, &cqe);
	} while (err == -EINTR);
	if (err == -EAGAIN)
		return 0;
	if (err)
		return err;

	*ret_number = (uint32_t)cqe->user_data;
	*ret_result = cqe->res;
	io_uring_cqe_seen(&ring->own, cqe);
	return 1;
}

#else

int gmem_ring_new(uint32_t entries, struct gmem_ring **ret)
{
	(void)entries;
	(void)ret;
	return -ENOTSUP;
}

int gmem_ring_wrap(struct io_uring *callers, uint64_t tag, struct gmem_ring **ret)
{
	(void)callers;
	(void)tag;
	(void)ret;
	return -ENOTSUP;
}

/* No ring exists, so nobody can call the functions below; they only have to link. */
void gmem_ring_free(struct gmem_ring *ring)
{
	(void)ring;
}

int gmem_ring_fd(const struct gmem_ring *ring)
{
	(void)ring;
	return -ENOTSUP;
}

int gmem_ring_queue(struct gmem_ring *ring, const struct gmem_ring_request *request)
{
	(void)ring;
	(void)request;
	return -ENOTSUP;
}

int gmem_ring_queue_cancel(struct gmem_ring *ring, uint32_t number, uint32_t victim)
{
	(void)ring;
	(void)number;
	(void)victim;
	return -ENOTSUP;
}

int gmem_ring_submit(struct gmem_ring *ring)
{
	(void)ring;
	return -ENOTSUP;
}

int gmem_ring_reap(struct gmem_ring *ring, bool wait, uint32_t *ret_number, int *ret_result)
{
	(void)ring;
	(void)wait;
	(void)ret_number;
	(void)ret_result;
	return -ENOTSUP;
}

#endif
