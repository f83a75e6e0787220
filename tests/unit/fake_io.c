/* SPDX-License-Identifier: MIT */
/*
 * Files and pipes, which are real, and a ring, which is not: what is asked of it
 * it does when its results are fetched, the last first where files are concerned.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fake_internal.h"

#define RING_ROOM 256

struct queued {
	struct gmem_ring_request request;
	bool is_foreign;
	bool submitted;
	bool cancelled;
	int cancel_result;
};

struct gmem_ring {
	int fd;
	uint32_t entries;
	uint64_t tag;
	bool is_callers;
	struct queued queue[RING_ROOM];
	unsigned count;
};

static struct gmem_ring *callers_ring;
static bool is_direct[MAX_FDS];

static int tried(enum fake_call call)
{
	int err;

	enter();
	err = attempt(call);
	return leave(err);
}

static uint64_t capped(uint64_t size)
{
	return kernel.io_most && size > kernel.io_most ? kernel.io_most : size;
}

/* ---- files ---- */

struct gmem_fd_access real_access(int fd)
{
	int flags = fcntl(fd, F_GETFL), mode = flags & O_ACCMODE;

	return (struct gmem_fd_access){
		.reads = !(flags & O_PATH) && (mode == O_RDONLY || mode == O_RDWR),
		.writes = !(flags & O_PATH) && (mode == O_WRONLY || mode == O_RDWR),
	};
}

int gmem_sys_fd_kind(int fd, struct gmem_fd_kind *ret)
{
	struct stat st;
	int flags, err = tried(FAKE_FD_KIND);

	if (err)
		return err;
	flags = fcntl(fd, F_GETFL);
	if (flags < 0 || fstat(fd, &st) < 0)
		return -errno;
	*ret = (struct gmem_fd_kind){
		.has_offsets = S_ISREG(st.st_mode) || S_ISBLK(st.st_mode),
		.has_size = S_ISREG(st.st_mode),
		.size = (uint64_t)st.st_size,
		.allocated = (uint64_t)st.st_blocks * 512,
		.appends = flags & O_APPEND,
		.never_blocks = flags & O_NONBLOCK,
		.is_direct = flags & O_DIRECT,
		.access = real_access(fd),
	};
	return 0;
}

int gmem_sys_reopen(int fd, int flags)
{
	char path[32];
	int copy, err;

	enter();
	err = attempt(FAKE_REOPEN);
	if (!err && flags & O_DIRECT && kernel.direct == FAKE_DIRECT_NEVER)
		err = -EINVAL;
	if (err)
		return leave(err);

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	copy = open(path, (flags & ~O_DIRECT) | O_CLOEXEC);
	if (copy < 0)
		return leave(-errno);
	open_handle(copy, OTHER, NULL, NULL)->cloexec = true;
	is_direct[copy] = flags & O_DIRECT;
	return leave(copy);
}

static bool breaks_direct_rules(int fd, const void *buf, uint64_t size, uint64_t offset)
{
	if (!is_direct[fd] || handle_of(fd)->kind != OTHER)
		return false;
	return kernel.direct == FAKE_DIRECT_LIE || (uintptr_t)buf % 512 || size % 512 || offset % 512;
}

static int64_t do_transfer(const struct gmem_ring_request *r)
{
	bool writing = r->operation == GMEM_RING_WRITE;
	uint64_t size = capped(r->size);
	ssize_t n;

	if (writing && r->offset != GMEM_NO_OFFSET && r->offset + r->size > kernel.limits[RLIMIT_FSIZE])
		complain("a write raises SIGXFSZ, at MiB", (int)(r->offset >> 20));

	if (breaks_direct_rules(r->fd, r->buf, r->size, r->offset))
		return -EINVAL;
	if (r->offset == GMEM_NO_OFFSET)
		n = writing ? write(r->fd, r->buf, size) : read(r->fd, r->buf, size);
	else
		n = writing ? pwrite(r->fd, r->buf, size, (off_t)r->offset)
			       : pread(r->fd, r->buf, size, (off_t)r->offset);
	return n < 0 ? -errno : n;
}

int64_t gmem_sys_read_at(int fd, void *buf, uint64_t size, uint64_t offset)
{
	int err = tried(FAKE_READ_AT);

	return err ? err : do_transfer(&(struct gmem_ring_request){
				   .fd = fd, .buf = buf, .size = (uint32_t)size, .offset = offset });
}

int64_t gmem_sys_read_cached(int fd, void *buf, uint64_t size, uint64_t offset)
{
	int err = tried(FAKE_READ_CACHED);

	return err ? err : do_transfer(&(struct gmem_ring_request){
				   .fd = fd, .buf = buf, .size = (uint32_t)size, .offset = offset });
}

int64_t gmem_sys_write_at(int fd, const void *buf, uint64_t size, uint64_t offset)
{
	int err = tried(FAKE_WRITE_AT);

	return err ? err : do_transfer(&(struct gmem_ring_request){
				   .fd = fd, .buf = (void *)(uintptr_t)buf, .size = (uint32_t)size,
				   .offset = offset, .operation = GMEM_RING_WRITE });
}

int gmem_sys_find_data(int fd, uint64_t offset, uint64_t *ret_start, uint64_t *ret_end)
{
	off_t before, start, end = 0;
	int err = tried(FAKE_FIND_DATA);

	if (err)
		return err;
	before = lseek(fd, 0, SEEK_CUR);
	start = lseek(fd, (off_t)offset, SEEK_DATA);
	if (start >= 0)
		end = lseek(fd, start, SEEK_HOLE);
	err = start < 0 || end < 0 ? -errno : 0;
	lseek(fd, before, SEEK_SET);
	if (err)
		return err;
	*ret_start = (uint64_t)start;
	*ret_end = (uint64_t)end;
	return 0;
}

int gmem_sys_seek_data(int fd, uint64_t offset, uint64_t *ret_start, uint64_t *ret_end)
{
	return gmem_sys_find_data(fd, offset, ret_start, ret_end);
}

int gmem_sys_datasync(int fd)
{
	int err = tried(FAKE_DATASYNC);

	return err ? err : fdatasync(fd) < 0 ? -errno : 0;
}

uint64_t gmem_sys_limit(int resource)
{
	return kernel.limits[resource];
}

int gmem_sys_poll(int fd, short events, int milliseconds)
{
	struct pollfd pollfd = { .fd = fd, .events = events };
	int n, err = tried(FAKE_POLL);

	if (err)
		return err;
	n = poll(&pollfd, 1, milliseconds);
	return n < 0 ? -errno : n;
}

uint64_t gmem_sys_random(void)
{
	return ++kernel.last_random * 0x9e3779b97f4a7c15;
}

/* ---- the ring ---- */

int gmem_ring_new(uint32_t entries, struct gmem_ring **ret)
{
	struct gmem_ring *ring;
	int err;

	enter();
	err = attempt(FAKE_RING_NEW);
	if (!err)
		err = fake.io_uring;
	if (err)
		return leave(err);

	ring = must(calloc(1, sizeof(*ring)));
	ring->entries = entries;
	ring->fd = eventfd(0, EFD_CLOEXEC);
	open_handle(ring->fd, OTHER, NULL, NULL)->cloexec = true;
	*ret = ring;
	return leave(0);
}

int gmem_ring_wrap(struct io_uring *callers, uint64_t tag, struct gmem_ring **ret)
{
	int err = tried(FAKE_RING_NEW);

	(void)callers;
	if (err)
		return err;
	enter();
	callers_ring = must(calloc(1, sizeof(*callers_ring)));
	callers_ring->entries = kernel.ring_entries ? kernel.ring_entries : RING_ROOM;
	callers_ring->fd = -1;
	callers_ring->tag = tag;
	callers_ring->is_callers = true;
	*ret = callers_ring;
	return leave(0);
}

/* Closing a ring does not end its requests at once. */
static void orphan(const struct queued *queued)
{
	if (queued->submitted && queued->request.buf && kernel.orphan_count < 64)
		kernel.orphans[kernel.orphan_count++] = (uintptr_t)queued->request.buf;
}

void check_no_request(uint64_t start, uint64_t end)
{
	for (unsigned i = 0; i < kernel.orphan_count; i++)
		if (kernel.orphans[i] >= start && kernel.orphans[i] < end)
			complain("a buffer is unmapped under a request, number", (int)i);
}

void gmem_ring_free(struct gmem_ring *ring)
{
	if (!ring)
		return;
	for (unsigned i = 0; i < ring->count; i++) {
		if (!ring->is_callers)
			orphan(&ring->queue[i]);
		else if (!ring->queue[i].is_foreign)
			complain("the caller's ring has a completion to come, number",
				 (int)ring->queue[i].request.number);
	}
	if (ring->is_callers)
		callers_ring = NULL;
	else
		gmem_sys_close(ring->fd);
	free(ring);
}

int gmem_ring_fd(const struct gmem_ring *ring)
{
	return ring->fd;
}

uint32_t gmem_ring_room(const struct gmem_ring *ring)
{
	return 2 * ring->entries;
}

uint32_t gmem_ring_unsubmitted(const struct gmem_ring *ring)
{
	uint32_t n = 0;

	for (unsigned i = 0; i < ring->count; i++)
		n += !ring->queue[i].submitted;
	return n;
}

int gmem_ring_await_room(struct gmem_ring *ring)
{
	(void)ring;
	return 0;
}

static int add(struct gmem_ring *ring, const struct queued *queued)
{
	if (gmem_ring_unsubmitted(ring) == ring->entries || ring->count == RING_ROOM)
		return -EAGAIN;
	ring->queue[ring->count++] = *queued;
	return 0;
}

int gmem_ring_queue(struct gmem_ring *ring, const struct gmem_ring_request *request)
{
	return add(ring, &(struct queued){ .request = *request });
}

bool fake_queue_foreign(void)
{
	return add(callers_ring, &(struct queued){ .is_foreign = true }) == 0;
}

void fake_set_ring_entries(uint32_t entries)
{
	enter();
	kernel.ring_entries = entries;
	leave(0);
}

static int cancel(struct gmem_ring *ring, uint32_t victim)
{
	int err = tried(FAKE_RING_CANCEL);

	if (err)
		return err;
	for (unsigned i = 0; i < ring->count; i++) {
		struct queued *queued = &ring->queue[i];

		if (queued->request.operation == GMEM_RING_CANCEL || queued->is_foreign ||
		    !queued->submitted || queued->request.number != victim)
			continue;
		queued->cancelled = true;
		return 0;
	}
	return -ENOENT;
}

int gmem_ring_submit(struct gmem_ring *ring)
{
	int err = tried(FAKE_RING_SUBMIT);

	for (unsigned i = 0; i < ring->count && !err; i++) {
		struct queued *queued = &ring->queue[i];

		if (!queued->submitted && queued->request.operation == GMEM_RING_CANCEL)
			queued->cancel_result = cancel(ring, queued->request.victim);
		queued->submitted = true;
	}
	return err;
}

static bool is_ready(const struct queued *queued, bool wait)
{
	const struct gmem_ring_request *request = &queued->request;
	struct pollfd pollfd = { .fd = request->fd, .events = POLLIN };

	if (!queued->submitted)
		return false;
	if (request->operation == GMEM_RING_POLL)
		pollfd.events = request->events;
	else if (request->operation != GMEM_RING_READ)
		pollfd.events = POLLOUT;
	return request->operation == GMEM_RING_CANCEL || queued->is_foreign || queued->cancelled ||
	       wait || poll(&pollfd, 1, 0) > 0;
}

static int finish(const struct queued *queued)
{
	int err;

	if (queued->is_foreign)
		return 0;
	if (queued->request.operation == GMEM_RING_CANCEL)
		return queued->cancel_result;
	if (queued->cancelled)
		return -ECANCELED;
	if (queued->request.operation == GMEM_RING_DATASYNC)
		return gmem_sys_datasync(queued->request.fd);
	if (queued->request.operation == GMEM_RING_POLL)
		return queued->request.events;
	err = tried(FAKE_RING_RESULT);
	return err ? err : (int)do_transfer(&queued->request);
}

static int take(struct gmem_ring *ring, bool wait, uint32_t *ret_number, int *ret_result)
{
	struct queued queued;
	unsigned i = ring->count;

	while (i > 0 && !is_ready(&ring->queue[i - 1], wait))
		i--;
	if (i == 0)
		return 0;

	queued = ring->queue[i - 1];
	memmove(&ring->queue[i - 1], &ring->queue[i], (ring->count - i) * sizeof(queued));
	ring->count--;
	*ret_number = queued.is_foreign ? UINT32_MAX : queued.request.number;
	*ret_result = finish(&queued);
	return 1;
}

int gmem_ring_reap(struct gmem_ring *ring, bool wait, uint32_t *ret_number, int *ret_result)
{
	int n = ring->is_callers ? 0 : take(ring, wait, ret_number, ret_result);

	if (n == 0 && wait && !ring->is_callers)
		complain("waits for a completion that never comes, requests", (int)ring->count);
	return n;
}

bool fake_take_completion(uint64_t *ret_tag, int *ret_result)
{
	uint32_t number;

	if (!callers_ring || !take(callers_ring, false, &number, ret_result))
		return false;
	*ret_tag = callers_ring->tag + number;
	return true;
}

void fake_shorten_io(uint64_t most)
{
	enter();
	kernel.io_most = most;
	leave(0);
}

void fake_set_direct(enum fake_direct direct)
{
	enter();
	kernel.direct = direct;
	leave(0);
}

void fake_set_limit(int resource, uint64_t limit)
{
	enter();
	kernel.limits[resource] = limit;
	leave(0);
}

void fake_cache_files(void)
{
	enter();
	kernel.files_are_cached = true;
	leave(0);
}
