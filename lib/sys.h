/* SPDX-License-Identifier: MIT */
/*
 * Ground floor: every system call the library makes. All return -errno.
 * Unit tests replace sys.c by a scripted kernel behind these prototypes.
 */
#ifndef GMEM_SYS_H
#define GMEM_SYS_H

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

int gmem_sys_file_size(int fd, uint64_t *ret);
int gmem_sys_filesystem_type(int fd, uint64_t *ret);

/* what /proc/self/fd/FD points to; bytes, always terminated */
int gmem_sys_fd_link(int fd, char *buf, size_t size);
/* the beginning of a small file; bytes, always terminated */
int gmem_sys_read_file(const char *path, char *buf, size_t size);

/* 0 if a ring can be set up; the ring is gone again */
int gmem_sys_try_io_uring(void);

#endif
