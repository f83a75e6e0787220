/* SPDX-License-Identifier: MIT */
/*
 * sys: every system call the library makes, except those of io_uring (ring.h).
 *
 * A function that can fail returns -errno, so that no other file reads errno. Each
 * file descriptor made here is close-on-exec. The unit tests replace sys.c with a
 * scripted kernel behind these prototypes.
 *
 * Not here: system calls on behalf of the programs in lib/tools.
 */
#ifndef GMEM_SYS_H
#define GMEM_SYS_H

#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>

/* Linux 4.17, 5.14 and 5.18; older C libraries do not define these. */
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif

/* ---- this machine ---- */

/* Returns the size of a host page, in bytes. */
uint64_t gmem_sys_page_size(void);
/* Returns "x86_64" or "arm64". */
const char *gmem_sys_architecture(void);

/* ---- file descriptors ---- */

/* Opens @path and returns the new fd. */
int gmem_sys_open(const char *path, int flags);
/*
 * Opens the file behind @fd once more: the new fd has its own offset and its own flags, but
 * O_SYNC and O_DSYNC if @fd has. The kernel asks for the rights of the process, not of @fd:
 * do not ask for more than @fd has.
 */
int gmem_sys_reopen(int fd, int flags);
/*
 * Opens the file of the mapping [@start, @end) of this process through /proc/self/map_files,
 * but no access to it (O_PATH). The kernel lets only privileged processes do so.
 */
int gmem_sys_open_mapped(uint64_t start, uint64_t end);
/* Returns a duplicate of @fd. */
int gmem_sys_dup(int fd);
/*
 * Returns 1 if @a and @b are one open file, duplicates of each other, and 0 if they are
 * not; -errno if the kernel, or a sandbox, does not tell. Linux 6.10 added the fcntl()
 * that tells; before, kcmp(2) does, where it is built in.
 */
int gmem_sys_same_file(int a, int b);
/* Makes @fd close-on-exec; needed for fds that an ioctl returned. */
int gmem_sys_set_cloexec(int fd);
void gmem_sys_close(int fd);
/* Returns the non-negative result of the ioctl. */
int gmem_sys_ioctl(int fd, unsigned long request, void *arg);

/* ---- mappings and their pages ---- */

int gmem_sys_mmap(void *hint, uint64_t size, int prot, int flags, int fd,
	     uint64_t offset, void **ret);
int gmem_sys_munmap(void *addr, uint64_t size);
int gmem_sys_mprotect(void *addr, uint64_t size, int prot);
/* -ENOMEM if part of the pages is not mapped; does nothing to them. */
int gmem_sys_check_mapped(void *addr, uint64_t size);
int gmem_sys_madvise(void *addr, uint64_t size, int advice);
/* Returns the fd of a new memfd; @flags: MFD_*, close-on-exec is added. */
int gmem_sys_memfd(const char *name, unsigned int flags);
/* Past RLIMIT_FSIZE: -EFBIG, and no SIGXFSZ. */
int gmem_sys_resize(int fd, uint64_t size);
/* Adds F_SEAL_*. */
int gmem_sys_seal(int fd, uint32_t seals);
int gmem_sys_fallocate(int fd, int mode, uint64_t offset, uint64_t size);
/* Fills in one byte per page, whose bit 0 says whether the page is in memory. */
int gmem_sys_mincore(void *addr, uint64_t size, unsigned char *ret);
/* Counts the pages of a file that are in memory; -ENOSYS before Linux 6.5. */
int gmem_sys_cachestat(int fd, uint64_t offset, uint64_t size, uint64_t *ret_pages);
/* Fills in one word per page of this process: bit 63 if in memory, bit 62 if in swap. */
int gmem_sys_pagemap(const void *addr, uint64_t pages, uint64_t *ret);

/* As struct page_region of Linux 6.7, which older headers lack */
struct gmem_sys_pages {
	uint64_t start;		/* addresses */
	uint64_t end;
	uint64_t kinds;
};

#define GMEM_PAGES_PRESENT	(1u << 3)
#define GMEM_PAGES_SWAPPED	(1u << 4)

/*
 * What the page tables of this process say, PAGEMAP_SCAN on @fd, which is of /proc/self/pagemap;
 * -ENOTTY before Linux 6.7. A page that is not mapped here may exist all the same.
 *
 * Finds the first page in [@start, @end) that is of none of @kinds, GMEM_PAGES_*: @ret, or @end.
 */
int gmem_sys_find_absent(int fd, uint64_t start, uint64_t end, uint32_t kinds, uint64_t *ret);
/*
 * Finds the pages in [@start, @end) that are of one of @kinds, in order. Returns how many ranges
 * of them are in @ret, @max at most; no more are below @ret_until.
 */
int gmem_sys_find_mapped(int fd, uint64_t start, uint64_t end, uint32_t kinds,
			 struct gmem_sys_pages *ret, size_t max, uint64_t *ret_until);

/* A mapping of this process, as PROCMAP_QUERY tells it */
struct gmem_sys_mapping {
	uint64_t start;
	uint64_t end;
	uint64_t page_size;	/* of hugetlb, or the host's */
	uint64_t device;	/* and inode of the file, which are 0 if there is none */
	uint64_t inode;
	uint64_t offset;
	int prot;
	bool is_shared;
	bool is_nameless;	/* of the file that the kernel made for anonymous memory */
	bool is_anonymous;	/* of no file, nor one of the kernel's own */
};

/* Shared anonymous memory, and that of hugetlb, is mapped from files of these names. */
static inline bool gmem_sys_is_nameless(const char *name)
{
	return strcmp(name, "/dev/zero (deleted)") == 0 || strcmp(name, "/anon_hugepage (deleted)") == 0;
}

/* Memory without a file: of malloc(), or named by prctl(2). Else the kernel's own have names. */
static inline bool gmem_sys_is_anonymous(uint64_t inode, const char *name)
{
	return !inode && (!*name || strcmp(name, "[heap]") == 0 || strncmp(name, "[anon:", 6) == 0);
}

/*
 * Finds the mapping at @addr, or the next one above; if there is none, one that starts at
 * UINT64_MAX. @fd is /proc/self/maps, open. -ENOTTY before Linux 6.11.
 */
int gmem_sys_mapping_at(int fd, uint64_t addr, struct gmem_sys_mapping *ret);
/*
 * Reads one byte of this process through /proc/self/mem: -EIO if it cannot be read now, as
 * where userfaultfd is asked for the page, which this call does not wait for. Never use it
 * for the memory of a device.
 */
int gmem_sys_try_read(const void *addr);
/*
 * Has the kernel copy within this process. Returns the bytes copied (if the kernel met
 * a page that cannot be reached, fewer than @size but more than 0) or -errno. If that
 * page is one of @dst, the kernel may have stored more bytes than it counts.
 */
int64_t gmem_sys_process_vm_readv(void *dst, const void *src, size_t size);
/*
 * Has the kernel write to the aligned 32-bit word at @p without a change, even if others
 * write there meanwhile: it ORs 0 into it, in one access. 0, or -EFAULT.
 */
int gmem_sys_write_nothing(void *p);

/* ---- NUMA and processors ---- */

/*
 * Masks of nodes have @nodes bits, a multiple of 64; 0 means that there is no mask.
 * gmem_sys_get_mempolicy() and gmem_sys_mbind() take the MPOL_* of the kernel.
 */
int gmem_sys_mbind(void *addr, uint64_t size, int mode, const uint64_t *mask, uint64_t nodes);
int gmem_sys_get_mempolicy(int *ret_mode, uint64_t *ret_mask, uint64_t nodes, const void *addr,
			   unsigned long flags);
/* Asks move_pages(2) for the node of each page, or the -errno that stands for it. */
int gmem_sys_query_pages(const void *const *pages, uint64_t count, int *ret_nodes);
/* Reads the processors this thread may run on, one bit each; @size is in bytes. */
int gmem_sys_get_affinity(uint64_t *ret, size_t size);
/* Restricts this thread to the processors in @cpus. */
int gmem_sys_set_affinity(const uint64_t *cpus, size_t size);

/* ---- facts about a file ---- */

/* What the way in which an fd was opened allows, whatever the file would; of O_PATH nothing */
struct gmem_fd_access {
	bool reads;
	bool writes;
};

/* Facts that a process checks before it maps a file, or lets another process map it */
struct gmem_sys_facts {
	uint64_t size;
	uint64_t filesystem_type;
	uint64_t block_size;	/* of the file system; on hugetlbfs, the size of its pages */
	uint64_t device;
	uint64_t inode;
	uint32_t seals;		/* F_SEAL_*; 0 if the file cannot be sealed */
	bool is_regular;
	struct gmem_fd_access access;
};

/* Facts that decide how a file, a pipe or a socket is read and written */
struct gmem_fd_kind {
	bool has_offsets;	/* a file or a block device, not a stream */
	bool has_size;
	bool appends;
	bool never_blocks;
	bool is_direct;
	struct gmem_fd_access access;
	uint64_t size;
	uint64_t allocated;	/* bytes on the disk, less than the size if there are holes */
};

int gmem_sys_file_size(int fd, uint64_t *ret);
int gmem_sys_facts(int fd, struct gmem_sys_facts *ret);
/* Reads the f_type of statfs(2). */
int gmem_sys_filesystem_type(int fd, uint64_t *ret);
int gmem_sys_fd_kind(int fd, struct gmem_fd_kind *ret);
/* Reads the link /proc/self/fd/@fd: returns its length and terminates @buf. */
int gmem_sys_fd_link(int fd, char *buf, size_t size);

/* ---- limits ---- */

/*
 * Returns the soft limit RLIMIT_* of this process, or UINT64_MAX for none or if it cannot be
 * asked. To write at or after RLIMIT_FSIZE may raise SIGXFSZ.
 */
uint64_t gmem_sys_limit(int resource);
/* Counts the lines of a file of any length. */
int64_t gmem_sys_count_lines(const char *path);

/* ---- reading and writing ---- */

/* An offset for streams: read or write at the current position. */
#define GMEM_NO_OFFSET UINT64_MAX

/* Reads the beginning of a small file: returns its length and terminates @buf. */
int gmem_sys_read_file(const char *path, char *buf, size_t size);
/*
 * Returns the bytes written. If the reader of a pipe is gone: -EPIPE, and no SIGPIPE. Past
 * RLIMIT_FSIZE: -EFBIG, and no SIGXFSZ.
 */
int64_t gmem_sys_write(int fd, const void *buf, size_t size);
/* Returns the bytes read. */
int64_t gmem_sys_read_at(int fd, void *buf, uint64_t size, uint64_t offset);
/* Reads only what is in the page cache: -EAGAIN, or -EOPNOTSUPP if the file system cannot. */
int64_t gmem_sys_read_cached(int fd, void *buf, uint64_t size, uint64_t offset);
/* Returns the bytes written. Past RLIMIT_FSIZE: -EFBIG, and no SIGXFSZ. */
int64_t gmem_sys_write_at(int fd, const void *buf, uint64_t size, uint64_t offset);
/* Finds the next data at or after @offset; -ENXIO if only a hole follows. */
int gmem_sys_find_data(int fd, uint64_t offset, uint64_t *ret_start, uint64_t *ret_end);
/* The same in half the time: the position of the open file is not restored. */
int gmem_sys_seek_data(int fd, uint64_t offset, uint64_t *ret_start, uint64_t *ret_end);
int gmem_sys_datasync(int fd);
/* Waits for @events; -1 milliseconds means for ever. Returns 1 if ready, 0 if not. */
int gmem_sys_poll(int fd, short events, int milliseconds);

/* ---- sockets ---- */

/* File descriptors that came with a message */
struct gmem_sys_fds {
	int first;		/* now the caller's, or -1 */
	unsigned int count;	/* of all that came as files; all but the first are closed */
	bool lost;		/* more came, but this process has no number left for them */
	bool unknown;		/* something else came that no AF_UNIX socket is known to carry */
};

/* Reads the address family and the type of a socket. */
int gmem_sys_socket_kind(int fd, int *ret_family, int *ret_type);
/* Sends one message, with the fd @passed unless it is -1. Never waits or raises SIGPIPE. */
int gmem_sys_send(int sock, const void *buf, size_t size, int passed);
/*
 * Receives one message; never waits. Returns its bytes, or 0 if no more will come. The
 * caller closes @ret_fds->first whatever the message says.
 */
int gmem_sys_receive(int sock, void *buf, size_t size, struct gmem_sys_fds *ret_fds);
/* Accepts a connection: a new fd, which is non-blocking. Waits if @sock may block. */
int gmem_sys_accept(int sock);
/* Ends both directions of a connection. */
void gmem_sys_shutdown(int sock);

/* ---- waiting for events ---- */

/* Returns the fd of an event that is not set; the fd is readable while the event is set. */
int gmem_sys_event_new(void);
void gmem_sys_event_set(int fd);
void gmem_sys_event_clear(int fd);
/* Returns the fd of a timer that is not set; the fd is readable once its time has come. */
int gmem_sys_timer_new(void);
/* Sets the timer to a gmem_sys_now() to come, or 0: to no time. It is not readable until then. */
void gmem_sys_timer_set(int fd, uint64_t at);
int gmem_sys_epoll_new(void);
/* Watches @fd for @events, EPOLL*; 0 stops watching. @is_new: @fd is not watched yet. */
int gmem_sys_epoll_watch(int epoll, int fd, uint32_t events, bool is_new);
/* Waits for any of @fds. Returns how many are ready; 0 also after a signal. */
int gmem_sys_poll_many(struct pollfd *fds, unsigned int count, unsigned int milliseconds);

/* ---- threads, time and chance ---- */

/* Calls membarrier(2) with a MEMBARRIER_CMD_*. */
int gmem_sys_membarrier(int command);
/* Sleeps for @microseconds; 0 only yields the processor once. */
void gmem_sys_pause(unsigned int microseconds);
#define GMEM_NANOSECONDS_PER_MS UINT64_C(1000000)
/* Returns CLOCK_MONOTONIC in nanoseconds. */
uint64_t gmem_sys_now(void);
/* Returns the process id, in the PID namespace of the process. */
pid_t gmem_sys_pid(void);
/* Returns a number that is unlikely to come twice. It is not a secret. */
uint64_t gmem_sys_random(void);
/*
 * Asks whether this process may use io_uring, without making a ring, whose end would
 * interrupt later system calls of this thread. 0, or the -errno of the refusal.
 */
int gmem_sys_ask_io_uring(void);

/* ---- signals ---- */

/* @action or @ret_old may be NULL. */
int gmem_sys_sigaction(int signal, const struct sigaction *action, struct sigaction *ret_old);
/* Changes the mask of this thread; @set or @ret_old may be NULL. */
int gmem_sys_sigmask(int how, const sigset_t *set, sigset_t *ret_old);
/* Sends @signal to this thread once more, with the @info of the first time. */
int gmem_sys_requeue_signal(int signal, siginfo_t *info);
int gmem_sys_raise(int signal);

#endif
