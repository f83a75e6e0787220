/* SPDX-License-Identifier: MIT */
#include "os/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/futex.h>
#include <linux/io_uring.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* Linux 6.5, the same number on every architecture */
#ifndef __NR_cachestat
#define __NR_cachestat 451
#endif

/* Linux 6.10 */
#ifndef F_DUPFD_QUERY
#define F_DUPFD_QUERY 1027
#endif

/* Linux 4.14 */
#ifndef RWF_NOWAIT
#define RWF_NOWAIT 0x8
#endif

uint64_t gmem_sys_page_size(void)
{
	return (uint64_t)getpagesize();
}

const char *gmem_sys_architecture(void)
{
#if defined(__x86_64__)
	return "x86_64";
#elif defined(__aarch64__)
	return "arm64";
#else
#error "libgmem knows x86_64 and arm64"
#endif
}

int gmem_sys_open(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

int gmem_sys_open_mapped(uint64_t start, uint64_t end)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/map_files/%" PRIx64 "-%" PRIx64, start, end);
	return gmem_sys_open(path, O_PATH);
}

int gmem_sys_dup(int fd)
{
	int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);

	return copy < 0 ? -errno : copy;
}

static int compare_files(int a, int b)
{
	pid_t self = getpid();
	long order = syscall(__NR_kcmp, self, self, KCMP_FILE, a, b);

	return order < 0 ? -errno : order == 0;
}

int gmem_sys_same_file(int a, int b)
{
	int same = fcntl(a, F_DUPFD_QUERY, b);

	if (same >= 0)
		return same;
	return errno == EBADF ? -EBADF : compare_files(a, b);
}

int gmem_sys_set_cloexec(int fd)
{
	return fcntl(fd, F_SETFD, FD_CLOEXEC) < 0 ? -errno : 0;
}

void gmem_sys_close(int fd)
{
	/* Linux frees the fd even if close() fails, so there is nothing to report. */
	close(fd);
}

int gmem_sys_ioctl(int fd, unsigned long request, void *arg)
{
	int ret = ioctl(fd, request, arg);

	return ret < 0 ? -errno : ret;
}

int gmem_sys_mmap(void *hint, uint64_t size, int prot, int flags, int fd,
	     uint64_t offset, void **ret)
{
	void *addr = mmap(hint, size, prot, flags, fd, (off_t)offset);

	if (addr == MAP_FAILED)
		return -errno;

	*ret = addr;
	return 0;
}

int gmem_sys_munmap(void *addr, uint64_t size)
{
	return munmap(addr, size) < 0 ? -errno : 0;
}

int gmem_sys_mprotect(void *addr, uint64_t size, int prot)
{
	return mprotect(addr, size, prot) < 0 ? -errno : 0;
}

int gmem_sys_check_mapped(void *addr, uint64_t size)
{
	/* Since Linux 2.6.19 that is all that it does. */
	return msync(addr, size, MS_ASYNC) < 0 ? -errno : 0;
}

int gmem_sys_madvise(void *addr, uint64_t size, int advice)
{
	return madvise(addr, size, advice) < 0 ? -errno : 0;
}

int gmem_sys_memfd(const char *name, unsigned int flags)
{
	int fd = memfd_create(name, flags | MFD_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

int gmem_sys_resize(int fd, uint64_t size)
{
	if (size > gmem_sys_limit(RLIMIT_FSIZE))
		return -EFBIG;
	return ftruncate(fd, (off_t)size) < 0 ? -errno : 0;
}

int gmem_sys_seal(int fd, uint32_t seals)
{
	return fcntl(fd, F_ADD_SEALS, (int)seals) < 0 ? -errno : 0;
}

int gmem_sys_fallocate(int fd, int mode, uint64_t offset, uint64_t size)
{
	return fallocate(fd, mode, (off_t)offset, (off_t)size) < 0 ? -errno : 0;
}

int gmem_sys_mincore(void *addr, uint64_t size, unsigned char *ret)
{
	return mincore(addr, size, ret) < 0 ? -errno : 0;
}

int gmem_sys_cachestat(int fd, uint64_t offset, uint64_t size, uint64_t *ret_pages)
{
	/* struct cachestat_range and struct cachestat, whose first member is nr_cache */
	uint64_t range[2] = { offset, size }, stat[5];

	if (syscall(__NR_cachestat, fd, range, stat, 0) < 0)
		return -errno;

	*ret_pages = stat[0];
	return 0;
}

int gmem_sys_pagemap(const void *addr, uint64_t pages, uint64_t *ret)
{
	uint64_t page = gmem_sys_page_size(), size = pages * sizeof(*ret), done = 0;
	uint64_t start = (uintptr_t)addr / page * sizeof(*ret);
	int fd, err = 0;
	ssize_t n;

	fd = gmem_sys_open("/proc/self/pagemap", O_RDONLY);
	if (fd < 0)
		return fd;

	while (done < size && !err) {
		n = pread(fd, (char *)ret + done, size - done, (off_t)(start + done));
		if (n > 0)
			done += (uint64_t)n;
		else if (n == 0)
			err = -EIO;
		else if (errno != EINTR)
			err = -errno;
	}
	gmem_sys_close(fd);
	return err;
}

/* Linux 6.7: struct pm_scan_arg under a name that no header has */
struct page_scan {
	uint64_t size, flags;
	uint64_t start, end, walk_end;
	uint64_t vec, vec_len, max_pages;
	uint64_t inverted, all_of, any_of, returned;
};

#define SCAN_PAGES _IOWR('f', 16, struct page_scan)

int gmem_sys_find_absent(int fd, uint64_t start, uint64_t end, uint32_t kinds, uint64_t *ret)
{
	struct gmem_sys_pages found = { .start = end };
	struct page_scan scan = { .size = sizeof(scan), .start = start, .end = end,
				  .vec = (uintptr_t)&found, .vec_len = 1, .max_pages = 1,
				  .inverted = kinds, .all_of = kinds, .returned = kinds };
	int n = gmem_sys_ioctl(fd, SCAN_PAGES, &scan);

	*ret = n > 0 ? found.start : end;
	return n < 0 ? n : 0;
}

int gmem_sys_find_mapped(int fd, uint64_t start, uint64_t end, uint32_t kinds,
			 struct gmem_sys_pages *ret, size_t max, uint64_t *ret_until)
{
	struct page_scan scan = { .size = sizeof(scan), .start = start, .end = end,
				  .vec = (uintptr_t)ret, .vec_len = max, .any_of = kinds,
				  .returned = kinds };
	int n = gmem_sys_ioctl(fd, SCAN_PAGES, &scan);

	*ret_until = n > 0 && (size_t)n == max ? ret[n - 1].end : end;
	return n;
}

/* Linux 6.11: struct procmap_query under a name that no header has */
struct mapping_query {
	uint64_t size, query_flags, query_addr;
	uint64_t start, end, flags, page_size, offset, inode;
	uint32_t dev_major, dev_minor, name_size, build_id_size;
	uint64_t name, build_id;
};

#define QUERY_MAPPING _IOWR('f', 17, struct mapping_query)
#define QUERY_COVERING_OR_NEXT 0x10

static int query_mapping(int fd, uint64_t addr, struct mapping_query *query, char *name, uint32_t size)
{
	int err;

	*query = (struct mapping_query){ .size = sizeof(*query), .query_addr = addr,
					 .query_flags = QUERY_COVERING_OR_NEXT,
					 .name = (uintptr_t)name, .name_size = size };
	err = gmem_sys_ioctl(fd, QUERY_MAPPING, query);
	if (err == -ENAMETOOLONG) {
		query->name = query->name_size = 0;
		err = gmem_sys_ioctl(fd, QUERY_MAPPING, query);
	}
	/* Not to be taken for the answer that there is no /proc */
	if (err == -ENOENT) {
		query->start = query->end = UINT64_MAX;
		err = 0;
	}
	return err;
}

int gmem_sys_mapping_at(int fd, uint64_t addr, struct gmem_sys_mapping *ret)
{
	struct mapping_query query;
	char name[64] = "";
	int err;

	err = query_mapping(fd, addr, &query, name, sizeof(name));
	if (err)
		return err;

	*ret = (struct gmem_sys_mapping){
		.start = query.start,
		.end = query.end,
		.page_size = query.page_size,
		.device = makedev(query.dev_major, query.dev_minor),
		.inode = query.inode,
		.offset = query.offset,
		.prot = (query.flags & 1 ? PROT_READ : 0) | (query.flags & 2 ? PROT_WRITE : 0) |
			(query.flags & 4 ? PROT_EXEC : 0),
		.is_shared = query.flags & 8,
		.is_nameless = gmem_sys_is_nameless(name),
		.is_anonymous = gmem_sys_is_anonymous(query.inode, name),
	};
	return 0;
}

int gmem_sys_try_read(const void *addr)
{
	char byte;
	int fd, err = 0;

	fd = gmem_sys_open("/proc/self/mem", O_RDONLY);
	if (fd < 0)
		return fd;
	if (pread(fd, &byte, 1, (off_t)(uintptr_t)addr) < 0)
		err = -errno;
	gmem_sys_close(fd);
	return err;
}

/*
 * The signals of a write that fails belong to the program: block them, and consume the one
 * that this write() raised.
 */
static int64_t write_quietly(int fd, const void *buf, size_t size, uint64_t offset)
{
	static const struct timespec now;
	sigset_t raised, before, pending;
	int64_t n;
	int signal;

	sigemptyset(&raised);
	sigaddset(&raised, SIGPIPE);
	sigaddset(&raised, SIGXFSZ);
	sigemptyset(&pending);
	sigpending(&pending);
	pthread_sigmask(SIG_BLOCK, &raised, &before);

	n = offset == GMEM_NO_OFFSET ? write(fd, buf, size) : pwrite(fd, buf, size, (off_t)offset);
	n = n < 0 ? -errno : n;
	signal = n == -EPIPE ? SIGPIPE : n == -EFBIG ? SIGXFSZ : 0;
	if (signal && !sigismember(&pending, signal)) {
		sigemptyset(&raised);
		sigaddset(&raised, signal);
		while (sigtimedwait(&raised, NULL, &now) < 0 && errno == EINTR)
			;
	}

	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return n;
}

int64_t gmem_sys_write(int fd, const void *buf, size_t size)
{
	return write_quietly(fd, buf, size, GMEM_NO_OFFSET);
}

/* The kernel reads one bit less than the number of nodes it is given. */
int gmem_sys_mbind(void *addr, uint64_t size, int mode, const uint64_t *mask, uint64_t nodes)
{
	return syscall(__NR_mbind, addr, size, mode, mask, nodes + 1, 0) < 0 ? -errno : 0;
}

int gmem_sys_get_mempolicy(int *ret_mode, uint64_t *ret_mask, uint64_t nodes, const void *addr,
			   unsigned long flags)
{
	const uint64_t count = nodes ? nodes + 1 : 0;

	return syscall(__NR_get_mempolicy, ret_mode, ret_mask, count, addr, flags) < 0 ? -errno : 0;
}

int gmem_sys_get_affinity(uint64_t *ret, size_t size)
{
	return syscall(__NR_sched_getaffinity, 0, size, ret) < 0 ? -errno : 0;
}

int gmem_sys_set_affinity(const uint64_t *cpus, size_t size)
{
	return syscall(__NR_sched_setaffinity, 0, size, cpus) < 0 ? -errno : 0;
}

int gmem_sys_query_pages(const void *const *pages, uint64_t count, int *ret_nodes)
{
	return syscall(__NR_move_pages, 0, count, pages, NULL, ret_nodes, 0) < 0 ? -errno : 0;
}

int gmem_sys_file_size(int fd, uint64_t *ret)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return -errno;

	*ret = (uint64_t)st.st_size;
	return 0;
}

static struct gmem_fd_access access_of(int flags)
{
	int mode = flags & O_ACCMODE;

	if (flags & O_PATH)
		return (struct gmem_fd_access){ 0 };
	return (struct gmem_fd_access){
		.reads = mode == O_RDONLY || mode == O_RDWR,
		.writes = mode == O_WRONLY || mode == O_RDWR,
	};
}

int gmem_sys_facts(int fd, struct gmem_sys_facts *ret)
{
	struct statfs fs;
	struct stat st;
	int seals, flags;

	flags = fcntl(fd, F_GETFL);
	if (flags < 0 || fstat(fd, &st) < 0 || fstatfs(fd, &fs) < 0)
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
		.access = access_of(flags),
	};
	return 0;
}

int gmem_sys_filesystem_type(int fd, uint64_t *ret)
{
	struct statfs fs;

	if (fstatfs(fd, &fs) < 0)
		return -errno;

	*ret = (uint64_t)fs.f_type;
	return 0;
}

int gmem_sys_fd_link(int fd, char *buf, size_t size)
{
	char path[32];
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	n = readlink(path, buf, size - 1);
	if (n < 0)
		return -errno;

	buf[n] = '\0';
	return (int)n;
}

int gmem_sys_read_file(const char *path, char *buf, size_t size)
{
	ssize_t n;
	int fd, err;

	fd = gmem_sys_open(path, O_RDONLY);
	if (fd < 0)
		return fd;

	do {
		n = read(fd, buf, size - 1);
		err = n < 0 ? -errno : 0;
	} while (err == -EINTR);
	gmem_sys_close(fd);
	if (err)
		return err;

	buf[n] = '\0';
	return (int)n;
}

uint64_t gmem_sys_limit(int resource)
{
	/* C libraries differ in the type of a resource. */
	struct { uint64_t soft, hard; } limit;

	return syscall(__NR_prlimit64, 0, resource, NULL, &limit) < 0 ? UINT64_MAX : limit.soft;
}

int64_t gmem_sys_count_lines(const char *path)
{
	char text[4096];
	int64_t lines = 0;
	ssize_t n, i;
	int fd = gmem_sys_open(path, O_RDONLY);

	if (fd < 0)
		return fd;
	while ((n = read(fd, text, sizeof(text))) > 0)
		for (i = 0; i < n; i++)
			lines += text[i] == '\n';
	if (n < 0)
		lines = -errno;
	gmem_sys_close(fd);
	return lines;
}

int gmem_sys_fd_kind(int fd, struct gmem_fd_kind *ret)
{
	struct stat st;
	int flags;

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
		.access = access_of(flags),
	};
	return 0;
}

int gmem_sys_reopen(int fd, int flags)
{
	int old = fcntl(fd, F_GETFL);
	char path[32];

	if (old < 0)
		return -errno;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return gmem_sys_open(path, flags | (old & O_SYNC));
}

int64_t gmem_sys_read_at(int fd, void *buf, uint64_t size, uint64_t offset)
{
	ssize_t n;

	n = offset == GMEM_NO_OFFSET ? read(fd, buf, size) : pread(fd, buf, size, (off_t)offset);
	return n < 0 ? -errno : n;
}

int64_t gmem_sys_read_cached(int fd, void *buf, uint64_t size, uint64_t offset)
{
	struct iovec iov = { .iov_base = buf, .iov_len = size };
	ssize_t n = syscall(__NR_preadv2, fd, &iov, 1UL, offset, 0UL, RWF_NOWAIT);

	return n < 0 ? -errno : n;
}

int64_t gmem_sys_write_at(int fd, const void *buf, uint64_t size, uint64_t offset)
{
	return write_quietly(fd, buf, size, offset);
}

int gmem_sys_seek_data(int fd, uint64_t offset, uint64_t *ret_start, uint64_t *ret_end)
{
	off_t start = lseek(fd, (off_t)offset, SEEK_DATA), end;

	end = start >= 0 ? lseek(fd, start, SEEK_HOLE) : -1;
	if (end < 0)
		return -errno;

	*ret_start = (uint64_t)start;
	*ret_end = (uint64_t)end;
	return 0;
}

int gmem_sys_find_data(int fd, uint64_t offset, uint64_t *ret_start, uint64_t *ret_end)
{
	off_t before = lseek(fd, 0, SEEK_CUR);
	int err;

	if (before < 0)
		return -errno;
	err = gmem_sys_seek_data(fd, offset, ret_start, ret_end);
	lseek(fd, before, SEEK_SET);
	return err;
}

int gmem_sys_datasync(int fd)
{
	return fdatasync(fd) < 0 ? -errno : 0;
}

int gmem_sys_poll(int fd, short events, int milliseconds)
{
	struct pollfd pollfd = { .fd = fd, .events = events };
	int n = poll(&pollfd, 1, milliseconds);

	return n < 0 ? -errno : n;
}

pid_t gmem_sys_pid(void)
{
	return getpid();
}

uint64_t gmem_sys_random(void)
{
	struct timespec now;
	uint64_t number;

	if (getrandom(&number, sizeof(number), GRND_NONBLOCK) == (ssize_t)sizeof(number))
		return number;

	/* A seccomp filter, or early boot. Numbers must only differ from each other. */
	clock_gettime(CLOCK_REALTIME, &now);
	return (uint64_t)now.tv_sec * 1000000007 ^ (uint64_t)now.tv_nsec << 32 ^ (uint64_t)getpid();
}

int gmem_sys_socket_kind(int fd, int *ret_family, int *ret_type)
{
	socklen_t size = sizeof(int);

	if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, ret_family, &size) < 0)
		return -errno;
	size = sizeof(int);
	return getsockopt(fd, SOL_SOCKET, SO_TYPE, ret_type, &size) < 0 ? -errno : 0;
}

/* Space for the fd of one message; the union aligns it for struct cmsghdr. */
union control {
	struct cmsghdr header;
	char bytes[CMSG_SPACE(sizeof(int))];
};

int gmem_sys_send(int sock, const void *buf, size_t size, int passed)
{
	struct iovec iov = { .iov_base = (void *)(uintptr_t)buf, .iov_len = size };
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1 };
	union control control = { .bytes = { 0 } };
	ssize_t n;

	if (passed >= 0) {
		message.msg_control = &control;
		message.msg_controllen = CMSG_SPACE(sizeof(int));
		control.header.cmsg_level = SOL_SOCKET;
		control.header.cmsg_type = SCM_RIGHTS;
		control.header.cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(&control.header), &passed, sizeof(int));
	}

	do {
		n = sendmsg(sock, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
	} while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : 0;
}

/* SO_PASSPIDFD of Linux 6.5: a socket that another process made can have it set. */
#ifndef SCM_PIDFD
#define SCM_PIDFD 4
#endif
#ifndef SCM_SECURITY
#define SCM_SECURITY 3
#endif

/* The kernel passes 253 fds at most (SCM_MAX_FD); credentials, a pidfd and a label come beside them. */
union received_control {
	struct cmsghdr header;
	char bytes[2048];
};

/* Keeps the first fd of a message, and closes all others. */
static void take_fds(const struct cmsghdr *header, struct gmem_sys_fds *fds)
{
	size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
	int fd;

	for (size_t i = 0; i < count; i++) {
		memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
		if (header->cmsg_type == SCM_RIGHTS && !fds->count++)
			fds->first = fd;
		else if (fd >= 0)
			close(fd);
	}
}

static void take_control(struct msghdr *message, struct gmem_sys_fds *fds)
{
	struct cmsghdr *header;

	for (header = CMSG_FIRSTHDR(message); header; header = CMSG_NXTHDR(message, header)) {
		if (header->cmsg_level == SOL_SOCKET &&
		    (header->cmsg_type == SCM_RIGHTS || header->cmsg_type == SCM_PIDFD))
			take_fds(header, fds);
		else if (header->cmsg_level != SOL_SOCKET || (header->cmsg_type != SCM_CREDENTIALS &&
							      header->cmsg_type != SCM_SECURITY))
			fds->unknown = true;
	}
}

int gmem_sys_receive(int sock, void *buf, size_t size, struct gmem_sys_fds *ret_fds)
{
	union received_control control;
	struct iovec iov = { .iov_base = buf, .iov_len = size };
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
				  .msg_controllen = sizeof(control) };
	ssize_t n;

	*ret_fds = (struct gmem_sys_fds){ .first = -1 };
	do {
		n = recvmsg(sock, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;

	take_control(&message, ret_fds);
	ret_fds->lost = message.msg_flags & MSG_CTRUNC;
	return (int)n;
}

int gmem_sys_accept(int sock)
{
	int fd;

	do {
		fd = accept4(sock, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	} while (fd < 0 && errno == EINTR);
	return fd < 0 ? -errno : fd;
}

void gmem_sys_shutdown(int sock)
{
	shutdown(sock, SHUT_RDWR);
}

int gmem_sys_event_new(void)
{
	int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

	return fd < 0 ? -errno : fd;
}

void gmem_sys_event_set(int fd)
{
	/* A write fails only at the maximum count, at which the event is set anyway. */
	if (eventfd_write(fd, 1) < 0)
		return;
}

void gmem_sys_event_clear(int fd)
{
	eventfd_t value;

	if (eventfd_read(fd, &value) < 0)
		return;
}

int gmem_sys_timer_new(void)
{
	int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);

	return fd < 0 ? -errno : fd;
}

void gmem_sys_timer_set(int fd, uint64_t at)
{
	const struct itimerspec time = {
		.it_value = { .tv_sec = (time_t)(at / 1000000000), .tv_nsec = (long)(at % 1000000000) },
	};

	/* It fails only for times or an fd that are none. */
	if (timerfd_settime(fd, TFD_TIMER_ABSTIME, &time, NULL) < 0)
		return;
}

int gmem_sys_epoll_new(void)
{
	int fd = epoll_create1(EPOLL_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

int gmem_sys_epoll_watch(int epoll, int fd, uint32_t events, bool is_new)
{
	struct epoll_event event = { .events = events, .data = { .fd = fd } };
	int op = is_new ? EPOLL_CTL_ADD : events ? EPOLL_CTL_MOD : EPOLL_CTL_DEL;

	return epoll_ctl(epoll, op, fd, &event) < 0 ? -errno : 0;
}

int gmem_sys_poll_many(struct pollfd *fds, unsigned int count, unsigned int milliseconds)
{
	int ret = poll(fds, count, (int)milliseconds);

	return ret < 0 ? (errno == EINTR ? 0 : -errno) : ret;
}

int gmem_sys_membarrier(int command)
{
	long ret = syscall(__NR_membarrier, command, 0, 0);

	return ret < 0 ? -errno : (int)ret;
}

void gmem_sys_pause(unsigned int microseconds)
{
	const struct timespec time = { .tv_nsec = (long)microseconds * 1000 };

	if (microseconds)
		nanosleep(&time, NULL);
	else
		sched_yield();
}

uint64_t gmem_sys_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* A ring of no entries is refused with EINVAL, after everything that may forbid one. */
int gmem_sys_ask_io_uring(void)
{
	struct io_uring_params params;
	long fd;

	memset(&params, 0, sizeof(params));
	fd = syscall(__NR_io_uring_setup, 0, &params);
	if (fd >= 0)
		gmem_sys_close((int)fd);
	return fd >= 0 || errno == EINVAL ? 0 : -errno;
}

int gmem_sys_sigaction(int signal, const struct sigaction *action, struct sigaction *ret_old)
{
	return sigaction(signal, action, ret_old) < 0 ? -errno : 0;
}

int gmem_sys_sigmask(int how, const sigset_t *set, sigset_t *ret_old)
{
	return -pthread_sigmask(how, set, ret_old);
}

int gmem_sys_requeue_signal(int signal, siginfo_t *info)
{
	long tid = syscall(__NR_gettid);

	return syscall(__NR_rt_tgsigqueueinfo, getpid(), tid, signal, info) < 0 ? -errno : 0;
}

int gmem_sys_raise(int signal)
{
	return raise(signal) == 0 ? 0 : -errno;
}

int64_t gmem_sys_process_vm_readv(void *dst, const void *src, size_t size)
{
	struct iovec local = { .iov_base = dst, .iov_len = size };
	struct iovec remote = { .iov_base = (void *)(uintptr_t)src, .iov_len = size };
	ssize_t n = process_vm_readv(getpid(), &local, 1, &remote, 1, 0);

	return n < 0 ? -errno : n;
}

/*
 * FUTEX_WAKE_OP modifies one word and wakes who waits for another, which is ours alone. It
 * would wake who waits for the first, too, if that held -2048.
 */
int gmem_sys_write_nothing(void *p)
{
	const int operation = FUTEX_OP(FUTEX_OP_OR, 0, FUTEX_OP_CMP_EQ, 0x800);
	uint32_t nobody = 0;

	return syscall(__NR_futex, &nobody, FUTEX_WAKE_OP | FUTEX_PRIVATE_FLAG, 0, NULL, p,
		       operation) < 0 ? -errno : 0;
}
