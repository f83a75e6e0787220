/* SPDX-License-Identifier: MIT */
/*
 * transfer: what transfers between files and guest memory have in common.
 *
 * A transfer is a step function that is called until the transfer is done. load.c, save.c
 * and restore.c each have one; this module calls it, reports the progress and frees the
 * transfer.
 */
#ifndef GMEM_TRANSFER_H
#define GMEM_TRANSFER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gmem.h"
#include "region/vm_core.h"
#include "transfer/batch.h"
#include "transfer/file_queue.h"
#include "transfer/leased_memory.h"

struct gmem_transfer {
	struct gmem_vm *vm;		/* NULL: an image is only verified */
	struct gmem_transfer_opts opts;
	struct gmem_leased_memory memory;
	struct gmem_io io;
	struct gmem_hands hands;	/* threads that help, if the caller wants any */
	/* Returns 0, -EAGAIN if it would have to wait, or another -errno; may be called again. */
	int (*step)(struct gmem_transfer *transfer, bool wait);
	void (*end)(struct gmem_transfer *transfer);
	void *state;			/* the step function's; zeroed at first, freed at the end */
	uint64_t done, total;
	struct gmem_stored bytes;
	uint64_t private_bytes, lost_bytes, left_out_bytes;
	uint64_t image_id, generation;	/* of the image, as far as they are known */
	bool is_done;
};

/* Copy @user_opts to @ret and check them; @flags are the flags this kind of transfer has beside those of all. */
int gmem_transfer_check(const struct gmem_transfer_opts *user_opts, uint64_t flags,
			struct gmem_transfer_opts *ret);
/* Find out what kind of file @fd is, check @opts against it, and fill in @ret. */
int gmem_transfer_inspect(const struct gmem_transfer_opts *opts, int fd, bool writing,
			  uint64_t offset, struct gmem_io_params *ret);
/* Bytes of data in [params->position, params->end) of a file with a size, at most */
uint64_t gmem_transfer_file_bytes(const struct gmem_io_params *params);
/* Allocate a transfer that has neither memory nor a file yet. */
int gmem_transfer_new(struct gmem_vm *vm, const struct gmem_transfer_opts *opts,
		      size_t state_size, struct gmem_transfer **ret);
/* Have up to @workers threads, of the library's if @bytes are worth them and it may start some. */
void gmem_transfer_begin_hands(struct gmem_transfer *transfer, uint32_t workers, uint64_t bytes);
/* Bytes that a transfer from the file reads, at most; UINT64_MAX: not known */
uint64_t gmem_transfer_bytes_to_read(const struct gmem_io_params *params);
/* A piece has its memory at @gpa: see gmem_hand_come(). */
void gmem_transfer_come(const struct gmem_transfer *transfer, struct gmem_hand *hand, uint64_t gpa);
/* Count a range that the hardware lost, and tell the caller. */
void gmem_transfer_tell_lost(struct gmem_transfer *transfer, uint64_t gpa, uint64_t size);
/* Put a failure of @transfer->io into a sentence; returns @err. */
int gmem_transfer_fail_io(const struct gmem_transfer *transfer, int err);
/*
 * Run a transfer to its end and free it, for callers that can wait. @err is the result
 * of the begin function: if that failed, return it and do nothing.
 */
int gmem_transfer_run(int err, struct gmem_transfer *transfer, struct gmem_transfer_result *ret);

#endif
