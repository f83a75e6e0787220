/* SPDX-License-Identifier: MIT */
#include "os/ring.h"

#include <errno.h>
#include <stdlib.h>

#ifdef HAVE_LIBURING
#include <liburing.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "os/process.h"
#include "os/thread.h"
#endif

#ifdef HAVE_LIBURING

struct gmem_ring {
	struct io_uring own;
	struct io_uring *callers;	/* NULL: the ring is @own */
	uint64_t tag;

	/* The thread of our own ring. Between asked and answered it has the ring to itself. */
	pthread_t thread;
	struct gmem_process process;
	uint32_t made_by;		/* the process that has such a thread */
	uint32_t entries;
	sem_t asked, answered;
	bool is_ending;
	int answer;
};

static struct io_uring *ring_of(struct gmem_ring *ring)
{
	return ring->callers ? ring->callers : &ring->own;
}

/* ---- the thread of a ring ---- */

/*
 * The kernel ties a ring to the threads that made it and submitted to it. For completions,
 * and once more some time after the ring was closed, it interrupts their system calls as a
 * signal does (task_work_add() with TWA_SIGNAL): KVM_CREATE_VM and fallocate() fail with
 * EINTR. Writes raise SIGPIPE in them, and workers of the kernel's stay with them. So a ring
 * of our own has a thread that does nothing else, and that takes all this with it.
 */

static void await(sem_t *semaphore)
{
	while (sem_wait(semaphore))
		;
}

/*
 * The kernel stops after a request that it refuses, and has then taken fewer than all. With
 * a thread of the kernel's that polls the queue, what is there is as good as taken.
 */
static int submit(struct io_uring *uring)
{
	int n;

	do {
		n = io_uring_submit(uring);
		if (uring->flags & IORING_SETUP_SQPOLL || !io_uring_sq_ready(uring))
			return n < 0 && n != -EINTR ? n : 0;
	} while (n == -EINTR || n > 0);
	return n < 0 ? n : -EAGAIN;
}

/* A sandbox may allow that a ring is made, and refuse that it is entered: then there is none. */
static int make(struct gmem_ring *ring)
{
	int err = io_uring_queue_init(ring->entries, &ring->own, 0);

	if (err)
		return err;
	if (syscall(__NR_io_uring_enter, ring->own.ring_fd, 0, 0, 0, NULL, 0) < 0) {
		err = -errno;
		io_uring_queue_exit(&ring->own);
	}
	return err;
}

static void *serve(void *data)
{
	struct gmem_ring *ring = data;

	ring->answer = make(ring);
	for (;;) {
		sem_post(&ring->answered);
		await(&ring->asked);
		if (ring->is_ending)
			return NULL;
		ring->answer = submit(&ring->own);
	}
}

static void end_thread(struct gmem_ring *ring)
{
	ring->is_ending = true;
	sem_post(&ring->asked);
	pthread_join(ring->thread, NULL);
}

static bool is_of_this_process(struct gmem_ring *ring)
{
	return ring->made_by == gmem_process_number(&ring->process);
}

int gmem_ring_new(uint32_t entries, struct gmem_ring **ret)
{
	struct gmem_ring *ring = calloc(1, sizeof(*ring));
	int err;

	if (!ring)
		return -ENOMEM;

	gmem_process_begin(&ring->process);
	ring->made_by = gmem_process_number(&ring->process);
	ring->entries = entries;
	sem_init(&ring->asked, 0, 0);
	sem_init(&ring->answered, 0, 0);
	err = gmem_thread_start(serve, ring, GMEM_THREAD_PLAIN, &ring->thread);
	if (err)
		goto free_ring;

	await(&ring->answered);
	err = ring->answer;
	if (err)
		goto end_thread;
	*ret = ring;
	return 0;

end_thread:
	end_thread(ring);
free_ring:
	gmem_process_end(&ring->process);
	free(ring);
	return err;
}

int gmem_ring_wrap(struct io_uring *callers, uint64_t tag, struct gmem_ring **ret)
{
	struct gmem_ring *ring;

	if (callers->flags & IORING_SETUP_IOPOLL)
		return -EINVAL;
	ring = calloc(1, sizeof(*ring));
	if (!ring)
		return -ENOMEM;

	gmem_process_begin(&ring->process);
	ring->made_by = gmem_process_number(&ring->process);
	ring->callers = callers;
	ring->tag = tag;
	*ret = ring;
	return 0;
}

void gmem_ring_free(struct gmem_ring *ring)
{
	if (ring && !ring->callers) {
		if (is_of_this_process(ring))
			end_thread(ring);
		io_uring_queue_exit(&ring->own);
	}
	if (ring)
		gmem_process_end(&ring->process);
	free(ring);
}

int gmem_ring_fd(const struct gmem_ring *ring)
{
	return ring->callers ? ring->callers->ring_fd : ring->own.ring_fd;
}

uint32_t gmem_ring_room(const struct gmem_ring *ring)
{
	return ring->callers ? ring->callers->cq.ring_entries : ring->own.cq.ring_entries;
}

/* A child has the queue mapped as its parent has: what it wrote there, the parent would submit. */
int gmem_ring_queue(struct gmem_ring *ring, const struct gmem_ring_request *request)
{
	struct io_uring_sqe *sqe;

	if (!is_of_this_process(ring))
		return -EIO;
	sqe = io_uring_get_sqe(ring_of(ring));
	if (!sqe)
		return -EAGAIN;

	/* GMEM_NO_OFFSET has the value that means "the current position" to io_uring. */
	switch (request->operation) {
	case GMEM_RING_READ:
		io_uring_prep_read(sqe, request->fd, request->buf, request->size,
				   request->offset);
		break;
	case GMEM_RING_WRITE:
		io_uring_prep_write(sqe, request->fd, request->buf, request->size,
				    request->offset);
		break;
	case GMEM_RING_DATASYNC:
		io_uring_prep_fsync(sqe, request->fd, IORING_FSYNC_DATASYNC);
		break;
	case GMEM_RING_POLL:
		io_uring_prep_poll_add(sqe, request->fd, (unsigned int)request->events);
		break;
	case GMEM_RING_CANCEL:
		io_uring_prep_cancel64(sqe, ring->tag + request->victim, 0);
		break;
	}
	io_uring_sqe_set_data64(sqe, ring->tag + request->number);
	return 0;
}

int gmem_ring_submit(struct gmem_ring *ring)
{
	if (!is_of_this_process(ring))
		return -EIO;
	if (ring->callers)
		return submit(ring->callers);

	sem_post(&ring->asked);
	await(&ring->answered);
	return ring->answer;
}

int gmem_ring_await_room(struct gmem_ring *ring)
{
	int err = 0;

	/* Completions that come meanwhile interrupt the wait. */
	while (err >= 0 && !io_uring_sq_space_left(ring_of(ring)))
		err = io_uring_sqring_wait(ring_of(ring));
	return err < 0 ? err : 0;
}

uint32_t gmem_ring_unsubmitted(const struct gmem_ring *ring)
{
	return io_uring_sq_ready(ring->callers ? ring->callers : &ring->own);
}

int gmem_ring_reap(struct gmem_ring *ring, bool wait, uint32_t *ret_number, int *ret_result)
{
	struct io_uring_cqe *cqe = NULL;
	int err;

	if (ring->callers)
		return 0;
	if (!is_of_this_process(ring))
		return -EIO;

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

uint32_t gmem_ring_room(const struct gmem_ring *ring)
{
	(void)ring;
	return 0;
}

int gmem_ring_queue(struct gmem_ring *ring, const struct gmem_ring_request *request)
{
	(void)ring;
	(void)request;
	return -ENOTSUP;
}

int gmem_ring_submit(struct gmem_ring *ring)
{
	(void)ring;
	return -ENOTSUP;
}

int gmem_ring_await_room(struct gmem_ring *ring)
{
	(void)ring;
	return -ENOTSUP;
}

uint32_t gmem_ring_unsubmitted(const struct gmem_ring *ring)
{
	(void)ring;
	return 0;
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
