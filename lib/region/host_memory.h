/* SPDX-License-Identifier: MIT */
/*
 * host_memory: the memory that a region has beside a guest_memfd, or instead of one: what
 * struct gmem_memory_opts asks for, and how the library maps it.
 *
 * Memory of the library's is a mapping of the process's own, of a memfd that is made for it, or
 * of a file of the caller's.
 */
#ifndef GMEM_HOST_MEMORY_H
#define GMEM_HOST_MEMORY_H

#include <stdint.h>

#include "gmem.h"
#include "region/file_map.h"
#include "region/host_file.h"

/* Checked options; zeroed, they are the defaults */
struct gmem_host_params {
	uint64_t flags;		/* GMEM_MEMORY_* */
	uint64_t huge_page;	/* bytes, of hugetlb; 0: the kernel's own choice */
};

/*
 * Fill in @ret from @user_opts, which may be NULL, for a region of @size bytes. The memory may be
 * a mapping of a file of the caller's: @has_file.
 */
int gmem_host_memory_check(const struct gmem_memory_opts *user_opts, uint64_t size, bool has_file,
			   struct gmem_host_params *ret);

/* The alignment, also with the guest address, that a region has whose caller says nothing; 0: none */
uint64_t gmem_host_memory_align(const struct gmem_host_params *params);

/*
 * The huge page of hugetlb that memory of @params, or of @file, is mapped and unmapped in, bytes;
 * 0: it is not of hugetlb.
 */
uint64_t gmem_host_memory_page(const struct gmem_host_params *params, const struct gmem_host_file *file);

/*
 * Returns -EINVAL unless [@hva, @hva + @size) is a shared mapping of @file from @offset on;
 * -EOPNOTSUPP if that cannot be known.
 */
int gmem_host_memory_check_mapping(const struct gmem_host_file *file, uint64_t offset, void *hva,
				   uint64_t size);

/* Map [@offset, @offset + @size) of @file, or anonymous memory if that is NULL, and give advice. */
int gmem_host_memory_pin(const struct gmem_host_params *params, struct gmem_host_file *file,
			 uint64_t offset, uint64_t size, const struct gmem_place *place,
			 struct gmem_map *map);
/* Give the advice of @params on a mapping of guest memory. */
int gmem_host_memory_advise(const struct gmem_host_params *params, const struct gmem_map *map);

#endif
