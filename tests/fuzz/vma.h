/* SPDX-License-Identifier: MIT */
/* What is mapped where in this process: Linux 6.11's PROCMAP_QUERY, or /proc/self/maps */
#ifndef GMEM_FUZZ_VMA_H
#define GMEM_FUZZ_VMA_H

#include <stdbool.h>
#include <stdint.h>

struct vma {
	uint64_t start;
	uint64_t end;
	uint64_t offset;	/* of its start in the file */
	uint64_t inode;		/* 0: no file */
	bool is_readable;
	bool is_writable;
	bool is_shared;
};

/* Finds the mapping that has @address, or else the next one. */
bool vma_find(uint64_t address, struct vma *ret);

#endif
