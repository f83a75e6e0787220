/* SPDX-License-Identifier: MIT */
/*
 * Ground floor: every system call the library makes. All return -errno.
 * Unit tests replace sys.c by a scripted kernel behind these prototypes.
 */
#ifndef GMEM_SYS_H
#define GMEM_SYS_H

#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

/* Linux 4.17 and 5.14; older C libraries do not name them */
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24	/* Linux 5.18 */
#endif

uint64_t gmem_sys_page_size(void);
/* "x86_64" or "arm64" */
const char *gmem_sys_architecture(void);

/* fd, close-on-exec, or -errno */
int gmem_sys_open(const char *path, int flags);
int gmem_sys_dup(int fd);
int gmem_sys_set_cloexec(int fd);
void gmem_sys_close(int fd);

/* the call's own non-negative result, or -errno */
int gmem_sys_ioctl(int fd, unsigned long request, void *arg);

int gmem_sys_mmap(void *hint, uint64_t size, int prot, int flags, int fd,
	     uint64_t offset, void **ret);
int gmem_sys_munmap(void *addr, uint64_t size);
int gmem_sys_madvise(void *addr, uint64_t size, int advice);
int gmem_sys_fallocate(int fd, int mode, uint64_t offset, uint64_t size);

/* a byte for each page: bit 0 says that it is in memory */
int gmem_sys_mincore(void *addr, uint64_t size, unsigned char *ret);
/* pages of a file that are in memory; -ENOSYS before Linux 6.5 */
int gmem_sys_cachestat(int fd, uint64_t offset, uint64_t size, uint64_t *ret_pages);
/* a word for each page of this process: bit 63 it is in memory, bit 62 in swap */
int gmem_sys_pagemap(const void *addr, uint64_t pages, uint64_t *ret);

/* write(2): bytes, or -errno; a reader that has gone is -EPIPE and no signal */
int64_t gmem_sys_write(int fd, const void *buf, size_t size);

/*
 * mbind(2), get_mempolicy(2) and, to ask on which nodes pages are, move_pages(2);
 * node masks have @nodes bits, a multiple of 64; none if that is 0. A page's node
 * can be -errno.
 */
int gmem_sys_mbind(void *addr, uint64_t size, int mode, const uint64_t *mask, uint64_t nodes);
int gmem_sys_get_mempolicy(int *ret_mode, uint64_t *ret_mask, uint64_t nodes, const void *addr,
			   unsigned long flags);
/* processors this thread may run on, a bit each; @size in bytes */
int gmem_sys_get_affinity(uint64_t *ret, size_t size);
int gmem_sys_set_affinity(const uint64_t *cpus, size_t size);
int gmem_sys_query_pages(const void *const *pages, uint64_t count, int *ret_nodes);

int gmem_sys_file_size(int fd, uint64_t *ret);
/* What a process is told of a file it would map, or let others map */
struct gmem_sys_facts {
	uint64_t size;
	uint64_t filesystem_type;
	uint64_t block_size;	/* of the file system: of hugetlbfs, its page */
	uint64_t device;
	uint64_t inode;
	uint32_t seals;		/* F_SEAL_*; none where files cannot be sealed */
	bool is_regular;
};
int gmem_sys_facts(int fd, struct gmem_sys_facts *ret);
int gmem_sys_filesystem_type(int fd, uint64_t *ret);

/* what /proc/self/fd/FD points to; bytes, always terminated */
int gmem_sys_fd_link(int fd, char *buf, size_t size);
/* the beginning of a small file; bytes, always terminated */
int gmem_sys_read_file(const char *path, char *buf, size_t size);

struct gmem_fd_kind {
	bool has_offsets;	/* a file or a block device; otherwise bytes come and go */
	bool has_size;
	bool appends;
	bool never_blocks;
	uint64_t size;
};

int gmem_sys_fd_kind(int fd, struct gmem_fd_kind *ret);
/* a description of its own of what is behind @fd, close-on-exec */
int gmem_sys_reopen(int fd, int flags);

/* For what has no offsets */
#define GMEM_NO_OFFSET UINT64_MAX

/* bytes, or -errno */
int64_t gmem_sys_read_at(int fd, void *buf, uint64_t size, uint64_t offset);
int64_t gmem_sys_write_at(int fd, const void *buf, uint64_t size, uint64_t offset);
/* where the next data are from @offset on; -ENXIO: there are none */
int gmem_sys_find_data(int fd, uint64_t offset, uint64_t *ret_start, uint64_t *ret_end);
int gmem_sys_datasync(int fd);
/* 1 ready, 0 not yet; -1 milliseconds are for ever */
int gmem_sys_poll(int fd, short events, int milliseconds);
/* a number that is unlikely to come twice */
uint64_t gmem_sys_random(void);

/* address family and type of a socket */
int gmem_sys_socket_kind(int fd, int *ret_family, int *ret_type);
/* One message, and @passed with it unless it is -1; never waits, never raises SIGPIPE. */
int gmem_sys_send(int sock, const void *buf, size_t size, int passed);
/*
 * One message; never waits. Bytes, 0 if there will be no more, or -errno. @fds
 * are the caller's to close, whatever the message is.
 */
#define GMEM_SYS_MAX_FDS 4
struct gmem_sys_fds {
	int fds[GMEM_SYS_MAX_FDS];
	unsigned int count;
	bool truncated;		/* bytes or fds did not fit and are lost */
};
int gmem_sys_receive(int sock, void *buf, size_t size, struct gmem_sys_fds *ret_fds);
/* no more messages, in either direction */
void gmem_sys_shutdown(int sock);

/* fds: an event that is set and cleared; and what waits for many */
int gmem_sys_event_new(void);
void gmem_sys_event_set(int fd);
void gmem_sys_event_clear(int fd);
int gmem_sys_epoll_new(void);
/* @events 0: no longer */
int gmem_sys_epoll_watch(int epoll, int fd, uint32_t events, bool is_new);
/* at most so long, 0 for a signal, too */
int gmem_sys_poll_many(struct pollfd *fds, unsigned int count, unsigned int milliseconds);

/* membarrier(2) with a MEMBARRIER_CMD_* */
int gmem_sys_membarrier(int command);
/* let others run, for about so long; 0: just once */
void gmem_sys_pause(unsigned int microseconds);
/* nanoseconds of CLOCK_MONOTONIC */
uint64_t gmem_sys_now(void);

/* 0 if a ring can be set up; the ring is gone again */
int gmem_sys_try_io_uring(void);

/* @action or @ret_old may be NULL */
int gmem_sys_sigaction(int signal, const struct sigaction *action, struct sigaction *ret_old);
/* this thread's mask; @set or @ret_old may be NULL */
int gmem_sys_sigmask(int how, const sigset_t *set, sigset_t *ret_old);
/* the signal is blocked in this thread */
bool gmem_sys_sigmask_has(int signal);
/* the same signal once more, to this thread, as if it came from where it came from */
int gmem_sys_requeue_signal(int signal, siginfo_t *info);
int gmem_sys_raise(int signal);

/*
 * Have the kernel copy within this process: bytes, fewer than @size (and more
 * than 0) where it met a page that is not there, or -errno. Of what it met on
 * the side of @dst it may count less than it stored.
 */
int64_t gmem_sys_process_vm_readv(void *dst, const void *src, size_t size);

#endif
