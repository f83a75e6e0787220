/* SPDX-License-Identifier: MIT */
#include "transfer/transfer.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/error.h"
#include "base/opts.h"
#include "nofault/nofault.h"
#include "os/sys.h"
#include "os/usdt.h"

/* ---- beginning and ending ---- */

int gmem_transfer_check(const struct gmem_transfer_opts *user_opts, uint64_t flags,
			struct gmem_transfer_opts *ret)
{
	const uint64_t all = GMEM_TRANSFER_NO_DIRECT | GMEM_TRANSFER_NO_RING | GMEM_TRANSFER_SYNC |
			     GMEM_TRANSFER_OMIT_PRIVATE | GMEM_TRANSFER_LEAVE_REST |
			     GMEM_TRANSFER_VERIFY | GMEM_TRANSFER_UNCHECKED | GMEM_TRANSFER_ALLOW_LOST |
			     GMEM_TRANSFER_NO_THREADS | GMEM_TRANSFER_FOLLOWED;
	bool saves = flags & GMEM_TRANSFER_FOLLOWED, restores = !saves && flags & GMEM_TRANSFER_ALLOW_LOST;
	int err;

	err = GMEM_COPY_OPTS(gmem_transfer_opts, ret, user_opts, workers);
	if (!err)
		err = gmem_check_flags("flags", ret->flags, all);
	if (err)
		return err;

	flags |= GMEM_TRANSFER_NO_RING | GMEM_TRANSFER_NO_DIRECT | GMEM_TRANSFER_NO_THREADS;
	if (ret->flags & ~flags)
		return gmem_fail(-EINVAL, "flags 0x%" PRIx64 " has bits 0x%" PRIx64
				 " that are for another kind of transfer", ret->flags,
				 ret->flags & ~flags);
	if ((ret->dirty && !saves) || (ret->parents && !restores))
		return gmem_fail(-EINVAL, "%s is for another kind of transfer",
				 ret->dirty && !saves ? "a tracker" : "parents");
	if (ret->reserved || !ret->parents != !ret->parent_count)
		return gmem_fail(-EINVAL, "parent_count is %" PRIu32 ", parents is %sNULL, reserved is %" PRIu32,
				 ret->parent_count, ret->parents ? "not " : "", ret->reserved);
	err = gmem_check_workers(ret->workers);
	if (err)
		return err;
	if (ret->depth > GMEM_IO_DEPTH)
		return gmem_fail(-EINVAL, "depth is %" PRIu32 ", at most %d buffers are used", ret->depth,
				 GMEM_IO_DEPTH);
	if (ret->ring && ret->flags & GMEM_TRANSFER_NO_RING)
		return gmem_fail(-EINVAL, "a ring and GMEM_TRANSFER_NO_RING exclude each other");
	if (ret->ring && ret->ring_tag > UINT64_MAX - GMEM_TRANSFER_TAGS)
		return gmem_fail(-EINVAL, "ring_tag 0x%" PRIx64 " leaves no room for %d numbers",
				 ret->ring_tag, GMEM_TRANSFER_TAGS);
	return 0;
}

/* To open the file anew for direct I/O could give rights that @fd does not have. */
static int check_access(int fd, const struct gmem_fd_access *access, bool writing)
{
	if (writing ? access->writes : access->reads)
		return 0;
	return gmem_fail(-EBADF, "fd %d is open for %s, not for %s", fd,
			 access->reads ? "reading only" : access->writes ? "writing only"
			 : "neither reading nor writing", writing ? "writing" : "reading");
}

int gmem_transfer_inspect(const struct gmem_transfer_opts *opts, int fd, bool writing,
			  uint64_t offset, struct gmem_io_params *ret)
{
	int err;

	*ret = (struct gmem_io_params){
		.fd = fd,
		.writing = writing,
		.no_direct = opts->flags & GMEM_TRANSFER_NO_DIRECT,
		.no_ring = opts->flags & (GMEM_TRANSFER_NO_RING | (opts->ring ? 0 : GMEM_TRANSFER_NO_THREADS)),
		.depth = opts->depth,
		.position = offset,
		.ring = opts->ring,
		.ring_tag = opts->ring_tag,
	};
	err = gmem_sys_fd_kind(fd, &ret->kind);
	if (err)
		return gmem_fail(err, "fd %d: %s", fd, gmem_errno_name(err));

	/* The bytes of a pipe have an order: no two threads can read it. */
	if (!writing && ret->kind.has_offsets)
		ret->workers = opts->workers < GMEM_MAX_HANDS ? opts->workers : GMEM_MAX_HANDS;
	err = check_access(fd, &ret->kind.access, writing);
	if (err)
		return err;
	if (!ret->kind.has_offsets && offset)
		return gmem_fail(-ESPIPE, "fd %d has no offsets: 0x%" PRIx64 " cannot be had", fd, offset);
	if (offset > INT64_MAX - GMEM_IO_UNIT)
		return gmem_fail(-EINVAL, "no file reaches offset 0x%" PRIx64, offset);
	if (writing && ret->kind.has_offsets && ret->kind.appends)
		return gmem_fail(-EINVAL, "fd %d is open with O_APPEND: offsets would be ignored", fd);
	return 0;
}

uint64_t gmem_transfer_file_bytes(const struct gmem_io_params *params)
{
	uint64_t size = params->end > params->position ? params->end - params->position : 0;

	return size < params->kind.allocated ? size : params->kind.allocated;
}

int gmem_transfer_new(struct gmem_vm *vm, const struct gmem_transfer_opts *opts,
		      size_t state_size, struct gmem_transfer **ret)
{
	struct gmem_transfer *transfer = calloc(1, sizeof(*transfer));
	void *state = calloc(1, state_size);

	if (!transfer || !state) {
		free(transfer);
		free(state);
		return gmem_fail(-ENOMEM, "no memory for a transfer");
	}

	transfer->vm = vm ? gmem_vm_ref(vm) : NULL;
	transfer->opts = *opts;
	transfer->io.direct_fd = -1;
	transfer->memory.is_unchecked = opts->flags & GMEM_TRANSFER_UNCHECKED;
	transfer->state = state;
	*ret = transfer;
	return 0;
}

uint64_t gmem_transfer_bytes_to_read(const struct gmem_io_params *params)
{
	return params->kind.has_size ? gmem_transfer_file_bytes(params) : UINT64_MAX;
}

void gmem_transfer_begin_hands(struct gmem_transfer *transfer, uint32_t workers, uint64_t bytes)
{
	bool starts_threads = !(transfer->opts.flags & GMEM_TRANSFER_NO_THREADS);

	gmem_hands_begin(&transfer->hands, workers, starts_threads ? bytes : 0, transfer->memory.look);
}

void gmem_transfer_come(const struct gmem_transfer *transfer, struct gmem_hand *hand, uint64_t gpa)
{
	const struct gmem_leased_range *range;

	if (!hand->is_elsewhere)
		return;
	range = gmem_leased_memory_at(&transfer->memory, gpa);
	if (range)
		gmem_hand_come(hand, range->hva + (gpa - range->gpa));
}

void gmem_transfer_tell_lost(struct gmem_transfer *transfer, uint64_t gpa, uint64_t size)
{
	transfer->lost_bytes += size;
	if (transfer->opts.lost)
		transfer->opts.lost(transfer->opts.lost_data, gpa, size);
}

GMEM_API int gmem_transfer_free(struct gmem_transfer *transfer)
{
	if (!transfer)
		return 0;

	gmem_hands_dismiss(&transfer->hands);
	if (!gmem_io_close(&transfer->io))
		return gmem_fail(-EBUSY, "%u completions are still to come on the ring",
				 gmem_io_under_way(&transfer->io));

	gmem_hands_end(&transfer->hands);
	GMEM_PROBE(transfer, transfer->vm ? gmem_vm_number(transfer->vm) : -1, transfer->io.writing,
		   transfer->done, transfer->total, transfer->is_done);
	if (transfer->end)
		transfer->end(transfer);
	free(transfer->state);
	gmem_leased_memory_drop(&transfer->memory);
	if (transfer->vm)
		gmem_vm_unref(transfer->vm);
	free(transfer);
	return 0;
}

/* ---- steps ---- */

int gmem_transfer_fail_io(const struct gmem_transfer *transfer, int err)
{
	const struct gmem_io *io = &transfer->io;

	if (err == -EAGAIN)
		return err;
	if (err == -EFBIG && io->limited_end)
		return gmem_fail(err, "fd %d: a write would end at 0x%" PRIx64
				 ", RLIMIT_FSIZE ends files at 0x%" PRIx64, io->fd, io->limited_end,
				 io->limit);
	if (io->sync_err)
		return gmem_fail(err, "syncing fd %d: %s; what was written may be lost, so the image has "
				 "to be written anew, in another transfer", io->fd, gmem_errno_name(err));
	return gmem_fail(err, "%s fd %d, after 0x%" PRIx64 " bytes: %s",
			 io->writing ? "writing" : "reading", io->fd, io->file_bytes,
			 gmem_errno_name(err));
}

/*
 * Called after each step that neither failed nor would have had to wait. One step moves
 * transfer->done at most by:
 *   load     1 MiB of data, or 256 KiB if read from the page cache; 64 MiB of a hole; with
 *            workers 16 MiB of data, and of holes as much
 *   save     64 MiB, in windows of 4 MiB: a window is done once its pages are found
 *   restore  1 MiB of the file, a record; with workers 16 MiB; nothing in steps that clear
 *            memory
 */
static int tell_progress(struct gmem_transfer *transfer)
{
	const struct gmem_transfer_opts *opts = &transfer->opts;

	if (!opts->progress || opts->progress(opts->progress_data, transfer->done,
					      transfer->total) == 0)
		return 0;
	return gmem_fail(-ECANCELED, "the callback stopped it at 0x%" PRIx64 " of 0x%" PRIx64 " bytes",
			 transfer->done, transfer->total);
}

static int step_and_tell(struct gmem_transfer *transfer, bool wait)
{
	int err = transfer->step(transfer, wait);

	/* With nothing under way, nothing makes the fd of a ring ready. */
	if (err == -EAGAIN)
		return transfer->io.ring && !transfer->io.under_way ? GMEM_TRANSFER_MORE
								    : GMEM_TRANSFER_WAIT;
	if (!err)
		err = tell_progress(transfer);
	if (err)
		return err;
	return transfer->is_done ? GMEM_TRANSFER_DONE : GMEM_TRANSFER_MORE;
}

static int check_and_step(struct gmem_transfer *transfer, bool wait)
{
	int err;

	if (wait && transfer->opts.ring)
		return gmem_fail(-EINVAL, "waiting on the caller's ring would take completions of other users");
	if (transfer->io.closing)
		return gmem_fail(-EINVAL, "the transfer is being freed");
	if (transfer->is_done)
		return GMEM_TRANSFER_DONE;
	if (!transfer->vm)
		return step_and_tell(transfer, wait);

	err = gmem_vm_enter(transfer->vm);
	return err ? err : gmem_vm_leave(transfer->vm, step_and_tell(transfer, wait));
}

GMEM_API int gmem_transfer_step(struct gmem_transfer *transfer, int wait)
{
	int ret;

	if (!transfer)
		return gmem_fail(-EINVAL, "transfer is NULL");

	ret = check_and_step(transfer, wait);
	/* Whatever ended it: who lent it a thread waits for that. */
	if (ret <= GMEM_TRANSFER_DONE)
		gmem_hands_dismiss(&transfer->hands);
	return ret;
}

GMEM_API int gmem_transfer_work(struct gmem_transfer *transfer)
{
	int err;

	if (!transfer)
		return gmem_fail(-EINVAL, "transfer is NULL");
	err = transfer->vm ? gmem_vm_enter(transfer->vm) : 0;
	if (err)
		return err;
	if (transfer->vm)
		gmem_vm_leave(transfer->vm, 0);
	/* What the fault handler is to recover from would kill this thread. */
	if (transfer->memory.fast && !gmem_nofault_is_recoverable())
		return gmem_fail(-EINVAL, "the thread blocks SIGBUS or SIGSEGV, and the transfer relies on "
				 "gmem_recovery_enable()");
	gmem_hands_join(&transfer->hands);
	return 0;
}

GMEM_API int gmem_transfer_fd(const struct gmem_transfer *transfer, int16_t *ret_events)
{
	if (!transfer || !ret_events)
		return gmem_fail(-EINVAL, "%s is NULL", transfer ? "ret_events" : "transfer");
	return gmem_io_poll_fd(&transfer->io, ret_events);
}

GMEM_API int gmem_transfer_complete(struct gmem_transfer *transfer, uint64_t tag, int32_t res)
{
	if (!transfer || !transfer->opts.ring)
		return gmem_fail(-EINVAL, "%s", transfer ? "the transfer has no ring of the caller's"
							 : "transfer is NULL");
	if (gmem_io_complete(&transfer->io, tag - transfer->opts.ring_tag, res))
		return gmem_fail(-EINVAL, "0x%" PRIx64 " is not under way in this transfer", tag);
	return 0;
}

static struct gmem_transfer_result make_result(const struct gmem_transfer *transfer)
{
	const struct gmem_io *io = &transfer->io;

	return (struct gmem_transfer_result){
		.file_bytes = io->file_bytes,
		.direct_bytes = io->direct_bytes,
		.data_bytes = transfer->bytes.data,
		.zero_bytes = transfer->bytes.zero,
		.private_bytes = transfer->private_bytes,
		.left_out_bytes = transfer->left_out_bytes,
		.engine = io->ring ? GMEM_ENGINE_IO_URING : GMEM_ENGINE_PLAIN,
		.no_ring = io->no_ring,
		.lost_bytes = transfer->lost_bytes,
		.image_id = transfer->image_id,
		.generation = transfer->generation,
	};
}

GMEM_API int gmem_transfer_get_result(const struct gmem_transfer *transfer,
				  struct gmem_transfer_result *ret)
{
	struct gmem_transfer_result result;
	int err;

	if (!transfer || !ret)
		return gmem_fail(-EINVAL, "%s is NULL", transfer ? "ret" : "transfer");
	err = GMEM_CHECK_RESULT(gmem_transfer_result, ret, no_ring);
	if (err)
		return err;

	result = make_result(transfer);
	gmem_fill_result(ret, &result, sizeof(result));
	return 0;
}

int gmem_transfer_run(int err, struct gmem_transfer *transfer, struct gmem_transfer_result *ret)
{
	struct gmem_failure failure;

	if (err)
		return err;
	if (transfer->opts.ring)
		err = gmem_fail(-EINVAL, "a ring of the caller's is for gmem_transfer_step()");
	if (!err && ret)
		err = gmem_transfer_get_result(transfer, ret);

	while (!err && !transfer->is_done) {
		err = gmem_transfer_step(transfer, 1);
		err = err < 0 ? err : 0;
	}
	gmem_failure_keep(&failure, err);
	if (ret && ret->size)
		gmem_transfer_get_result(transfer, ret);

	err = gmem_transfer_free(transfer);
	return failure.err ? gmem_failure_restore(&failure) : err;
}
