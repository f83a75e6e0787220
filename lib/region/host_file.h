/* SPDX-License-Identifier: MIT */
/*
 * host_file: the file behind host memory: a memfd that the library made, or the file that
 * the caller says his memory is a mapping of.
 *
 * Regions share a handle, also if the caller named the file for each: parts of it that are
 * side by side can be told as one then. It is freed when the last of them lets go.
 */
#ifndef GMEM_HOST_FILE_H
#define GMEM_HOST_FILE_H

#include <stdbool.h>
#include <stdint.h>

#include "os/sys.h"
#include "region/memory_users.h"

struct gmem_host_file {
	int fd;
	unsigned int users;
	struct gmem_host_file **list;	/* that it is in; NULL: in none */
	struct gmem_host_file *next;
	struct gmem_memory_users memory_users;	/* by offset, with the VM's lock */
	struct gmem_sys_facts facts;	/* as they were first; for ever, if its seals are complete */
};

/* A memfd whose memory is not executable, or -errno; @hugetlb: 0, or MFD_HUGETLB with a size or none */
int gmem_host_file_memfd(unsigned int hugetlb);
/* Makes a memfd of @size bytes, sealed but for writing; @huge_page: 0, or bytes, for hugetlb */
int gmem_host_file_make(uint64_t size, uint64_t huge_page, struct gmem_host_file **ret);
/*
 * Duplicates @fd, a regular file that is open for reading and no guest_memfd, and has
 * [@offset, @offset + @size); unless @list, where the files of a VM are, has it.
 */
int gmem_host_file_adopt(struct gmem_host_file **list, int fd, uint64_t offset, uint64_t size,
			 struct gmem_host_file **ret);

/* NULL is let through. With the VM's hook lock, as the above. */
struct gmem_host_file *gmem_host_file_ref(struct gmem_host_file *file);
void gmem_host_file_unref(struct gmem_host_file *file);

/* One file, whatever fds and handles lead to it; NULL is none */
bool gmem_host_file_same(const struct gmem_host_file *a, const struct gmem_host_file *b);

/* It can be mapped for writing, as its fd was opened and its file is sealed. */
bool gmem_host_file_is_writable(const struct gmem_host_file *file);

/* Nothing that a process can do to the file changes its size or its seals any more. */
bool gmem_host_file_is_fixed(const struct gmem_host_file *file);

#endif
