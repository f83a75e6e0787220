/* SPDX-License-Identifier: MIT */
/* Files, sockets and events of other processes */
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/memfd.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <time.h>

#include "fake_internal.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

void fake_pretend_huge(int fd, uint64_t page_size)
{
	struct stat st;

	enter();
	kernel.huge_page_size = fstat(fd, &st) < 0 ? 0 : page_size;
	kernel.huge_inode = st.st_ino;
	leave(0);
}

static int do_facts(int fd, struct gmem_sys_facts *ret)
{
	const struct handle *h = handle_of(fd);
	struct statfs fs;
	struct stat st;
	int seals;

	if (fstat(fd, &st) < 0 || fstatfs(fd, &fs) < 0)
		return -errno;

	seals = fcntl(fd, F_GET_SEALS);
	*ret = (struct gmem_sys_facts){
		.size = (uint64_t)st.st_size,
		.filesystem_type = (uint64_t)fs.f_type,
		.block_size = (uint64_t)fs.f_bsize,
		.device = st.st_dev,
		.inode = st.st_ino,
		.seals = seals < 0 ? 0 : (uint32_t)seals,
		.is_regular = S_ISREG(st.st_mode),
		.access = real_access(fd),
	};
	if (kernel.huge_page_size && st.st_ino == kernel.huge_inode) {
		ret->filesystem_type = HUGETLBFS_MAGIC;
		ret->block_size = kernel.huge_page_size;
	}
	if (h && h->kind == GMEM) {
		ret->size = h->file->size;
		ret->filesystem_type = fake.filesystem_type;
		ret->seals = 0;
		ret->access = (struct gmem_fd_access){ true, true };
	}
	return 0;
}

int gmem_sys_facts(int fd, struct gmem_sys_facts *ret)
{
	int err;

	enter();
	err = attempt(FAKE_FACTS);
	if (!err)
		err = do_facts(fd, ret);
	return leave(err);
}

/* ---- memfds: real ones, but for the pool of huge pages ---- */

static int do_memfd(const char *name, unsigned int flags)
{
	const unsigned int shift = flags >> MFD_HUGE_SHIFT;
	struct stat st;
	int fd;

	if (fake.memfd_noexec && !(flags & MFD_NOEXEC_SEAL))
		return -EACCES;
	fd = memfd_create(name, (flags & MFD_ALLOW_SEALING) | MFD_CLOEXEC);
	if (fd < 0)
		return -errno;
	open_handle(fd, OTHER, NULL, NULL)->cloexec = true;
	if (flags & MFD_HUGETLB && fstat(fd, &st) == 0) {
		kernel.huge_page_size = shift ? UINT64_C(1) << shift : 512 * fake.page_size;
		kernel.huge_inode = st.st_ino;
	}
	return fd;
}

int gmem_sys_memfd(const char *name, unsigned int flags)
{
	int ret;

	enter();
	ret = attempt(FAKE_MEMFD);
	if (!ret)
		ret = do_memfd(name, flags);
	return leave(ret);
}

int gmem_sys_resize(int fd, uint64_t size)
{
	int err;

	enter();
	err = attempt(FAKE_RESIZE);
	if (!err && size > kernel.limits[RLIMIT_FSIZE])
		err = -EFBIG;
	if (!err && ftruncate(fd, (off_t)size) < 0)
		err = -errno;
	return leave(err);
}

int gmem_sys_seal(int fd, uint32_t seals)
{
	int err;

	enter();
	err = attempt(FAKE_SEAL);
	if (!err && fcntl(fd, F_ADD_SEALS, (int)seals) < 0)
		err = -errno;
	return leave(err);
}

/* ---- sockets: real ones, which carry real fds ---- */

int gmem_sys_socket_kind(int fd, int *ret_family, int *ret_type)
{
	socklen_t size = sizeof(int);

	if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, ret_family, &size) < 0)
		return -errno;
	size = sizeof(int);
	return getsockopt(fd, SOL_SOCKET, SO_TYPE, ret_type, &size) < 0 ? -errno : 0;
}

union control {
	struct cmsghdr header;
	char bytes[CMSG_SPACE(16 * sizeof(int))];
};

static int do_send(int sock, const void *buf, size_t size, int passed)
{
	struct iovec iov = { .iov_base = (void *)(uintptr_t)buf, .iov_len = size };
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1 };
	union control control = { .bytes = { 0 } };

	if (passed >= 0) {
		message.msg_control = &control;
		message.msg_controllen = CMSG_SPACE(sizeof(int));
		control.header.cmsg_level = SOL_SOCKET;
		control.header.cmsg_type = SCM_RIGHTS;
		control.header.cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(&control.header), &passed, sizeof(int));
	}
	return sendmsg(sock, &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -errno : 0;
}

int gmem_sys_send(int sock, const void *buf, size_t size, int passed)
{
	int err;

	enter();
	err = attempt(FAKE_SEND);
	if (!err)
		err = do_send(sock, buf, size, passed);
	return leave(err);
}

/* The guest_memfd that an fd from the socket is another name of, if it is one */
static struct file *file_behind(int fd)
{
	struct stat st, other;

	if (fstat(fd, &st) < 0)
		return NULL;
	for (int i = 0; i < MAX_FDS; i++)
		if (kernel.fds[i].kind == GMEM && i != fd && fstat(i, &other) == 0 &&
		    st.st_dev == other.st_dev && st.st_ino == other.st_ino)
			return kernel.fds[i].file;
	return NULL;
}

static void receive_fd(int fd, struct gmem_sys_fds *fds)
{
	struct file *file = file_behind(fd);

	/* As if this process had no number left for it */
	if (!fds->count && attempt(FAKE_RECEIVE_FD)) {
		fds->lost = true;
		close(fd);
		return;
	}
	if (fds->count++) {
		close(fd);
		return;
	}
	open_handle(fd, file ? GMEM : OTHER, file ? file->vm : NULL, file)->cloexec = true;
	fds->first = fd;
}

static int do_receive(int sock, void *buf, size_t size, struct gmem_sys_fds *fds)
{
	struct iovec iov = { .iov_base = buf, .iov_len = size };
	union control control;
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
				  .msg_controllen = sizeof(control) };
	ssize_t n = recvmsg(sock, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	struct cmsghdr *header;

	if (n < 0)
		return -errno;
	header = CMSG_FIRSTHDR(&message);
	for (size_t i = 0; header && i < (header->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++) {
		int fd;

		memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
		receive_fd(fd, fds);
	}
	fds->lost |= (message.msg_flags & MSG_CTRUNC) != 0;
	return (int)n;
}

int gmem_sys_receive(int sock, void *buf, size_t size, struct gmem_sys_fds *ret_fds)
{
	int ret;

	*ret_fds = (struct gmem_sys_fds){ .first = -1 };
	enter();
	ret = attempt(FAKE_RECEIVE);
	if (!ret)
		ret = do_receive(sock, buf, size, ret_fds);
	return leave(ret);
}

int gmem_sys_accept(int sock)
{
	int fd;

	enter();
	fd = attempt(FAKE_ACCEPT);
	if (!fd) {
		fd = accept4(sock, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		if (fd < 0)
			fd = -errno;
		else
			open_handle(fd, OTHER, NULL, NULL)->cloexec = true;
	}
	return leave(fd);
}

void gmem_sys_shutdown(int sock)
{
	shutdown(sock, SHUT_RDWR);
}

/* ---- waiting ---- */

static int new_fd(enum fake_call call, int (*make)(void))
{
	int fd;

	enter();
	fd = attempt(call);
	if (!fd) {
		fd = make();
		if (fd < 0)
			fd = -errno;
		else
			open_handle(fd, OTHER, NULL, NULL)->cloexec = true;
	}
	return leave(fd);
}

static int make_event(void)
{
	return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

static int make_epoll(void)
{
	return epoll_create1(EPOLL_CLOEXEC);
}

int gmem_sys_event_new(void)
{
	return new_fd(FAKE_EVENT, make_event);
}

void gmem_sys_event_set(int fd)
{
	if (eventfd_write(fd, 1) < 0)
		complain("setting what is no event, fd", fd);
}

void gmem_sys_event_clear(int fd)
{
	eventfd_t value;

	if (eventfd_read(fd, &value) < 0 && errno != EAGAIN)
		complain("clearing what is no event, fd", fd);
}

static int make_timer(void)
{
	return timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
}

int gmem_sys_timer_new(void)
{
	return new_fd(FAKE_TIMER, make_timer);
}

void gmem_sys_timer_set(int fd, uint64_t at)
{
	const struct itimerspec time = {
		.it_value = { .tv_sec = (time_t)(at / 1000000000), .tv_nsec = (long)(at % 1000000000) },
	};

	if (timerfd_settime(fd, TFD_TIMER_ABSTIME, &time, NULL) < 0)
		complain("setting what is no timer, fd", fd);
}

int gmem_sys_epoll_new(void)
{
	return new_fd(FAKE_EPOLL, make_epoll);
}

int gmem_sys_epoll_watch(int epoll, int fd, uint32_t events, bool is_new)
{
	struct epoll_event event = { .events = events, .data = { .fd = fd } };
	int op = is_new ? EPOLL_CTL_ADD : events ? EPOLL_CTL_MOD : EPOLL_CTL_DEL;
	int err;

	enter();
	/* Ending or changing it cannot fail. */
	err = is_new ? attempt(FAKE_EPOLL) : 0;
	if (!err && epoll_ctl(epoll, op, fd, &event) < 0)
		err = -errno;
	return leave(err);
}

int gmem_sys_poll_many(struct pollfd *fds, unsigned int count, unsigned int milliseconds)
{
	int ret;

	enter();
	ret = attempt(FAKE_POLL_MANY);
	leave(0);
	if (!ret)
		ret = poll(fds, count, (int)milliseconds);
	return ret < 0 && errno == EINTR ? 0 : ret;
}

ssize_t fake_send_packet(int sock, const void *bytes, size_t size, unsigned fds, int fd)
{
	char control[CMSG_SPACE(8 * sizeof(int))] = { 0 };
	struct iovec iov = { .iov_base = (void *)(uintptr_t)bytes, .iov_len = size };
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1 };
	struct cmsghdr *header;

	if (fds) {
		message.msg_control = control;
		message.msg_controllen = CMSG_SPACE(fds * sizeof(int));
		header = CMSG_FIRSTHDR(&message);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(fds * sizeof(int));
		for (unsigned i = 0; i < fds; i++)
			memcpy(CMSG_DATA(header) + i * sizeof(int), &fd, sizeof(fd));
	}
	return sendmsg(sock, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}
