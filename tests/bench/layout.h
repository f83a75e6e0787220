/* SPDX-License-Identifier: MIT */
/* A VM with many regions, and the same layout for the peer */
#ifndef LAYOUT_H
#define LAYOUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <gmem.h>

#include "peer/peer.h"

struct layout {
	struct peer_range *ranges;	/* in order of gpa */
	size_t name;			/* regions wanted, as rows say; fewer if bench_quick() */
	size_t count;
	struct peer_range spare;	/* nothing is here, among the others */
	int vm_fd;
	struct gmem_vm *vm;
	struct gmem_plan *plan;		/* ordinary memory of our own */
	void *pool;			/* behind all regions */
	uint64_t pool_size;
};

/* A fresh VM; exits with EXIT_CANNOT_RUN if there is no KVM here. */
int layout_make_vm(void);

/*
 * Aligned regions have whole 2 MiB each, 1 GiB together at least, and every
 * other one is followed by a hole. Tiny ones have 64 to 256 KiB, with holes of
 * 64 KiB here and there. Neighbours are never neighbours for the host.
 */
void layout_new(struct layout *layout, size_t count, bool tiny);
void layout_free(struct layout *layout);

#endif
