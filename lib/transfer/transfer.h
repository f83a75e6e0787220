/* SPDX-License-Identifier: MIT */
/*
 * transfer: what transfers between files and guest memory have in common.
 *
 * A transfer is a step function called again and again: load.c, save.c and restore.c
 * each bring one. This module runs it, reports progress and frees it.
 */
#ifndef GMEM_TRANSFER_H
#define GMEM_TRANSFER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gmem.h"
#include "region/vm_core.h"
#include "transfer/file_queue.h"
#include "transfer/leased_memory.h"

struct gmem_transfer {
	struct gmem_vm *vm;		/* NULL: an image that is only verified */
	struct gmem_transfer_opts opts;
	struct gmem_leased_memory hold;
	struct gmem_io io;
	/* 0, -EAGAIN, or an errno that may not come again when called again */
	int (*step)(struct gmem_transfer *transfer, bool wait);
	void (*end)(struct gmem_transfer *transfer);
	void *state;			/* of the step's; zero at first, freed at the end */
	uint64_t done, total;
	struct gmem_stored bytes;
	uint64_t private_bytes;
	bool is_done;
};

int gmem_transfer_check(const struct gmem_transfer_opts *user_opts, uint64_t flags,
			struct gmem_transfer_opts *ret);
/* Find out what kind of file @fd is, and how it is read or written. */
int gmem_transfer_look_at(const struct gmem_transfer_opts *opts, int fd, bool writing,
			  uint64_t offset, struct gmem_io_params *ret);
/* A transfer that has neither memory nor a file yet */
int gmem_transfer_new(struct gmem_vm *vm, const struct gmem_transfer_opts *opts,
		      size_t state_size, struct gmem_transfer **ret);
int gmem_transfer_fail_io(const struct gmem_transfer *transfer, int err);
/*
 * From begin to end, for callers that can wait. @err is the result of the begin
 * function: nothing is done if that failed.
 */
int gmem_transfer_run(int err, struct gmem_transfer *transfer, struct gmem_transfer_result *ret);

#endif
