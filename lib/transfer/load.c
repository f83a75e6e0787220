/* SPDX-License-Identifier: MIT */
#include "transfer/load.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>

#include "base/error.h"
#include "base/kind.h"
#include "transfer/batch.h"
#include "transfer/file_queue.h"
#include "transfer/leased_memory.h"
#include "transfer/transfer.h"

/* Bytes of a hole cleared in one step */
#define HOLE_STEP ((uint64_t)64 << 20)

/* Parts of at most GMEM_IO_SMALL bytes that the threads of a transfer load in one step */
#define MAX_PARTS 64

/* A part of the file, and the hole in front of it */
struct piece {
	uint64_t gpa;		/* of the hole, or of the part if there is none */
	uint64_t hole;		/* bytes */
	struct gmem_io_part part;
	struct gmem_stored stored;
};

struct load {
	/* The start of the transfer; transfer->done is added to both. */
	uint64_t gpa;
	uint64_t offset;
	/* Up to transfer->done: after a failure transfer->bytes has what came behind it, too. */
	struct gmem_stored done;
	uint32_t dense;		/* atomic: pieces since the last one that had zeros */
	bool wait;		/* of the step at hand */
	bool is_direct;		/* a disk would write to where the fd is read to */
	struct piece pieces[MAX_PARTS];
};

static uint64_t gpa_now(const struct gmem_transfer *transfer)
{
	const struct load *load = transfer->state;

	return load->gpa + transfer->done;
}

static uint64_t offset_now(const struct gmem_transfer *transfer)
{
	const struct load *load = transfer->state;

	return load->offset + transfer->done;
}

/* Pages that turn out to be zero, and are given back, cost more than a copy of others. */
#define DENSE_FROM 8

/* Is no buffer needed, for it is likely that there are no zeros? Threads may differ meanwhile. */
static bool is_dense(const struct load *load)
{
	return !load->is_direct && __atomic_load_n(&load->dense, __ATOMIC_RELAXED) >= DENSE_FROM;
}

static void note_zeros(struct load *load, bool has_zeros)
{
	if (has_zeros)
		__atomic_store_n(&load->dense, 0, __ATOMIC_RELAXED);
	else if (!is_dense(load))
		__atomic_fetch_add(&load->dense, 1, __ATOMIC_RELAXED);
}

static int load_hole(struct gmem_transfer *transfer, uint64_t size)
{
	struct load *load = transfer->state;
	int err;

	size = size < HOLE_STEP ? size : HOLE_STEP;
	err = gmem_leased_memory_clear(&transfer->memory, transfer->memory.look, gpa_now(transfer), size);
	if (err)
		return err;

	transfer->bytes.zero += size;
	load->done = transfer->bytes;
	transfer->done += size;
	return 0;
}

static int load_end(struct gmem_transfer *transfer)
{
	uint64_t left = transfer->total - transfer->done;

	if (transfer->total == 0 || left == 0) {
		transfer->is_done = true;
		return 0;
	}
	if (transfer->io.only_holes)
		return load_hole(transfer, left);
	return gmem_fail(-ENODATA, "the file ends 0x%" PRIx64 " bytes after offset 0x%" PRIx64
			 ", 0x%" PRIx64 " were asked for", transfer->done,
			 offset_now(transfer) - transfer->done, transfer->total);
}

/* The calling thread alone, with one buffer of the queue */
static int load_next(struct gmem_transfer *transfer, bool wait)
{
	struct load *load = transfer->state;
	struct gmem_io_piece piece;
	int err;

	err = gmem_io_next(&transfer->io, wait, &piece);
	if (err)
		return gmem_transfer_fail_io(transfer, err);
	if (piece.size == 0)
		return load_end(transfer);
	if (piece.offset > offset_now(transfer))
		return load_hole(transfer, piece.offset - offset_now(transfer));

	transfer->bytes = load->done;
	err = gmem_leased_memory_store(&transfer->memory, transfer->memory.look, gpa_now(transfer),
				       piece.data, piece.size, &transfer->bytes);
	if (err)
		return err;

	note_zeros(load, transfer->bytes.zero != load->done.zero);
	load->done = transfer->bytes;
	transfer->done += piece.size;
	gmem_io_take(&transfer->io);
	return 0;
}

/* ---- pieces, by any thread ---- */

struct reading {
	const struct gmem_io *io;
	uint64_t offset;
	bool wait;
};

static bool read_to_guest(void *data, char *hva, uint64_t size)
{
	const struct reading *reading = data;

	return gmem_io_read_part(reading->io, reading->offset, hva, size, reading->wait);
}

static bool load_part(struct gmem_transfer *transfer, const struct gmem_hand *hand, struct piece *piece)
{
	const struct gmem_io_part *part = &piece->part;
	struct load *load = transfer->state;
	struct reading reading = { .io = &transfer->io, .offset = part->offset, .wait = load->wait };
	uint64_t gpa = piece->gpa + piece->hole;
	char *data = part->data;

	if (!part->is_read) {
		if (is_dense(load) && gmem_leased_memory_fill(&transfer->memory, gpa, part->size, read_to_guest,
							      &reading, &piece->stored))
			return true;
		/* One thread has gmem_io_next()'s buffer, and does not try this each time. */
		if (transfer->hands.count < 2) {
			note_zeros(load, true);
			return false;
		}
		data = gmem_io_scratch(&transfer->io, hand->number);
		if (!gmem_io_read_part(&transfer->io, part->offset, data, part->size, load->wait))
			return false;
	}
	return gmem_leased_memory_store(&transfer->memory, hand->look, gpa, data, part->size,
					&piece->stored) == 0;
}

static bool load_piece(void *data, struct gmem_hand *hand, size_t index)
{
	struct gmem_transfer *transfer = data;
	struct load *load = transfer->state;
	struct piece *piece = &load->pieces[index];

	gmem_transfer_come(transfer, hand, piece->gpa);
	if (piece->hole && gmem_leased_memory_clear(&transfer->memory, hand->look, piece->gpa, piece->hole))
		return false;
	if (!load_part(transfer, hand, piece))
		return false;
	note_zeros(load, piece->stored.zero != 0);
	return true;
}

/* List what the threads of the transfer can load now; returns the number of pieces. */
static size_t list_pieces(struct gmem_transfer *transfer)
{
	struct gmem_io_part parts[MAX_PARTS];
	struct load *load = transfer->state;
	uint64_t at = offset_now(transfer), holes = 0;
	size_t count, i;

	count = gmem_io_list(&transfer->io, load->wait && transfer->hands.count > 1, parts,
			     transfer->hands.count > 1 ? MAX_PARTS : 1);
	for (i = 0; i < count; i++) {
		load->pieces[i] = (struct piece){
			.gpa = load->gpa + (at - load->offset),
			.hole = parts[i].offset - at,
			.part = parts[i],
		};
		holes += load->pieces[i].hole;
		if (holes > HOLE_STEP)
			break;
		at = parts[i].offset + parts[i].size;
	}
	return i;
}

/* Count what is done of the first @count pieces; false: nothing is. */
static bool take_pieces(struct gmem_transfer *transfer, size_t count)
{
	struct load *load = transfer->state;
	uint64_t before = transfer->done;

	transfer->bytes = load->done;
	for (size_t i = 0; i < count; i++) {
		const struct piece *piece = &load->pieces[i];

		transfer->bytes.data += piece->stored.data;
		transfer->bytes.zero += piece->stored.zero + piece->hole;
		if (!piece->part.ends)
			continue;
		load->done = transfer->bytes;
		transfer->done = piece->part.offset + piece->part.size - load->offset;
	}
	transfer->bytes = load->done;
	if (transfer->done == before)
		return false;
	gmem_io_take_up_to(&transfer->io, offset_now(transfer));
	return true;
}

/*
 * Load what is at hand with all threads. One thread alone takes this way only where it needs
 * no buffer. Nothing is loaded if that cannot be done, or fails.
 */
static bool load_many(struct gmem_transfer *transfer, bool wait)
{
	struct load *load = transfer->state;
	size_t count;

	if (transfer->hands.count < 2 && !is_dense(load))
		return false;
	load->wait = wait;
	count = list_pieces(transfer);
	return count && take_pieces(transfer, gmem_hands_run(&transfer->hands, load_piece, transfer, count));
}

static int load_step(struct gmem_transfer *transfer, bool wait)
{
	return load_many(transfer, wait) ? 0 : load_next(transfer, wait);
}

/* Find the bytes to load; 0 if only the end of the file will tell. */
static int find_size(const struct gmem_io_params *params, uint64_t asked, uint64_t *ret)
{
	uint64_t there = params->kind.size > params->position ? params->kind.size - params->position : 0;

	*ret = asked;
	if (!params->kind.has_size)
		return 0;
	if (asked > there || params->position > params->kind.size)
		return gmem_fail(-ENODATA, "the file has 0x%" PRIx64 " bytes, not 0x%" PRIx64
				 " at offset 0x%" PRIx64, params->kind.size, asked, params->position);
	if (!asked)
		*ret = there;
	return 0;
}

static int lease_target(struct gmem_transfer *transfer, uint64_t gpa, uint64_t size)
{
	struct gmem_leased_memory *memory = &transfer->memory;
	const struct gmem_leased_region *other;
	uint64_t reach;
	int err;

	if (size && gpa + size - 1 < gpa)
		return gmem_fail(-EINVAL, "gpa 0x%" PRIx64 " + size 0x%" PRIx64 " wraps around", gpa,
				 size);

	err = gmem_leased_memory_take(transfer->vm, gpa, size ? gpa + size - 1 : UINT64_MAX,
				      GMEM_USE_LOAD, "gmem_vm_load", memory);
	if (err)
		return err;

	reach = gmem_leased_memory_reach(memory, gpa, size ? size : UINT64_MAX);
	if (reach >= size && reach > 0)
		return size ? gmem_leased_memory_check_mapped(memory) : 0;
	if (gmem_leased_memory_is_private(memory, gpa + reach))
		return gmem_fail(-EACCES, "gpa 0x%" PRIx64 " is private, 0x%" PRIx64
				 " bytes were to go to gpa 0x%" PRIx64, gpa + reach, size, gpa);
	other = gmem_leased_memory_elsewhere(memory, gpa + reach);
	if (other)
		return gmem_fail(-EOPNOTSUPP, "gpa 0x%" PRIx64 " is memory of kind \"%s\", into which nothing is "
				 "loaded; 0x%" PRIx64 " bytes were to go to gpa 0x%" PRIx64, gpa + reach,
				 gmem_kind_name(other->kind), size, gpa);
	return gmem_fail(-ENOENT, "there is no region at gpa 0x%" PRIx64 ", 0x%" PRIx64
			 " bytes were to go to gpa 0x%" PRIx64, gpa + reach, size, gpa);
}

static int begin(struct gmem_vm *vm, uint64_t gpa, int fd, uint64_t offset, uint64_t size,
		 const struct gmem_transfer_opts *user_opts, bool waits, struct gmem_transfer **ret)
{
	struct gmem_transfer *transfer;
	struct gmem_transfer_opts opts;
	struct gmem_io_params params;
	uint64_t total;
	int err;

	if (!vm || !ret)
		return gmem_fail(-EINVAL, "%s is NULL", vm ? "ret" : "vm");

	err = gmem_transfer_check(user_opts, GMEM_TRANSFER_NO_DIRECT | GMEM_TRANSFER_NO_RING | GMEM_TRANSFER_UNCHECKED,
				  &opts);
	if (!err && opts.image_offset)
		err = gmem_fail(-EINVAL, "image_offset 0x%" PRIx64 ": there is no image", opts.image_offset);
	if (!err)
		err = gmem_transfer_inspect(&opts, fd, false, offset, &params);
	if (!err)
		err = find_size(&params, size, &total);
	if (!err)
		err = gmem_transfer_new(vm, &opts, sizeof(struct load), &transfer);
	if (err)
		return err;

	params.sparse = true;
	params.to_gpa = gpa - offset;
	params.waits = waits;
	params.end = total ? offset + total : params.kind.has_size ? offset : UINT64_MAX;
	err = lease_target(transfer, gpa, total);
	if (!err && params.kind.has_size)
		err = gmem_leased_memory_check_fits(&transfer->memory, gmem_transfer_file_bytes(&params));
	if (!err)
		err = gmem_io_open(&transfer->io, &params);
	if (err) {
		gmem_transfer_free(transfer);
		return err;
	}

	*(struct load *)transfer->state = (struct load){
		.gpa = gpa,
		.offset = offset,
		.is_direct = params.kind.is_direct,
	};
	gmem_transfer_begin_hands(transfer, &params);
	transfer->step = load_step;
	transfer->total = total;
	*ret = transfer;
	return 0;
}

GMEM_API int gmem_vm_load_begin(struct gmem_vm *vm, uint64_t gpa, int fd, uint64_t offset,
				uint64_t size, const struct gmem_transfer_opts *opts,
				struct gmem_transfer **ret)
{
	return begin(vm, gpa, fd, offset, size, opts, false, ret);
}

GMEM_API int gmem_vm_load(struct gmem_vm *vm, uint64_t gpa, int fd, uint64_t offset,
			  uint64_t size, const struct gmem_transfer_opts *opts,
			  struct gmem_transfer_result *ret)
{
	struct gmem_transfer *transfer = NULL;
	int err = begin(vm, gpa, fd, offset, size, opts, true, &transfer);

	return gmem_transfer_run(err, transfer, ret);
}
