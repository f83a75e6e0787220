/* SPDX-License-Identifier: MIT */
/*
 * A guest's memory as an image. Only pages that exist are looked at, and only
 * those that are not zero are written, packed: looking at one that does not
 * exist would make the guest grow. The end comes last and says how much there
 * must be before it; checksums say that it is.
 */
#include "transfer/save.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <string.h>

#include "base/crc32c.h"
#include "base/error.h"
#include "nofault/nofault.h"
#include "os/sys.h"
#include "region/present_pages.h"
#include "region/region_memory.h"
#include "region/vm_core.h"
#include "transfer/file_queue.h"
#include "transfer/image.h"
#include "transfer/leased_memory.h"
#include "transfer/transfer.h"

/* Pages that exist are asked for by so much; a run is a page and a hole at least */
#define WINDOW ((uint64_t)16 << 20)
#define MAX_RUNS (WINDOW / IMAGE_BLOCK / 2 + 1)

/* Copied at once, to be looked at for zeros while it is in the caches */
#define CHUNK ((uint64_t)64 << 10)

/* Windows in one step, if nothing is in them */
#define EMPTY_WINDOWS 4

struct run {
	uint64_t offset;	/* from the start of the region */
	uint64_t size;
};

enum stage { HEAD, REGIONS, PRIVATES, DATA, END, DRAIN };

struct save {
	uint64_t id, records, pages;
	uint32_t checksums;
	enum stage stage;
	size_t listed;			/* entries of a table that are written */

	char *unit;			/* under construction, or NULL */
	uint64_t used;
	struct image_record *open;	/* the data record in it, or NULL */
	uint64_t filled;		/* pages in that */

	size_t held;			/* which memory is being looked at */
	uint64_t looked;		/* so far, from its start */
	size_t run, run_count;		/* of the window before that */
	struct run runs[MAX_RUNS];

	uint64_t gpa;			/* of what is in chunk */
	uint64_t at, size;		/* there; at == size: nothing left */
	char chunk[CHUNK];
};

/* ---- records ---- */

static struct image_record *begin_record(struct save *save, enum image_kind kind)
{
	struct image_record *record = (void *)(save->unit + save->used);

	*record = (struct image_record){ .id = save->id, .number = save->records++ };
	memcpy(record->kind, gmem_image_kinds[kind], sizeof(record->kind));
	return record;
}

/* @bytes of it are filled in. */
static void end_record(struct save *save, struct image_record *record, uint64_t bytes)
{
	uint64_t size = (bytes + IMAGE_BLOCK - 1) / IMAGE_BLOCK * IMAGE_BLOCK;

	memset((char *)record + bytes, 0, size - bytes);
	record->size = (uint32_t)size;
	record->checksum = gmem_image_checksum(record);
	save->checksums = gmem_crc32c(save->checksums, &record->checksum, sizeof(record->checksum));
	save->used += size;
}

static void end_data(struct save *save)
{
	struct image_record *record = save->open;
	uint64_t header = sizeof(*record) + record->count * sizeof(struct image_run);

	memset((char *)record + header, 0, IMAGE_BLOCK - header);
	end_record(save, record, (1 + save->filled) * IMAGE_BLOCK);
	save->pages += save->filled;
	save->filled = 0;
	save->open = NULL;
}

static int flush(struct gmem_transfer *transfer, struct save *save)
{
	save->unit = NULL;
	return gmem_io_put(&transfer->io, save->used);
}

/* ---- tables ---- */

static struct image_region region_entry(const struct gmem_leased_memory *hold, size_t i)
{
	return (struct image_region){
		.gpa = hold->regions[i].gpa,
		.size = hold->regions[i].size,
		.backing = hold->regions[i].backing,
	};
}

static struct image_range private_entry(const struct gmem_leased_memory *hold, size_t i)
{
	return (struct image_range){
		.gpa = hold->privates[i].start,
		.size = hold->privates[i].last - hold->privates[i].start + 1,
	};
}

/* As many entries as have room in this unit; true: all are written */
static bool list(struct gmem_transfer *transfer, struct save *save, enum image_kind kind,
		 size_t count, size_t entry_size)
{
	uint64_t room = IMAGE_UNIT - save->used;
	struct image_record *record;
	size_t now = count - save->listed;

	if (now == 0)
		return true;
	if (room < IMAGE_BLOCK)
		return false;

	record = begin_record(save, kind);
	if (now > (room - sizeof(*record)) / entry_size)
		now = (room - sizeof(*record)) / entry_size;
	record->count = (uint32_t)now;
	for (size_t i = 0; i < now; i++) {
		if (kind == IMAGE_REGIONS)
			((struct image_region *)(record + 1))[i] =
				region_entry(&transfer->hold, save->listed + i);
		else
			((struct image_range *)(record + 1))[i] =
				private_entry(&transfer->hold, save->listed + i);
	}
	end_record(save, record, sizeof(*record) + now * entry_size);
	save->listed += now;
	return save->listed == count;
}

static void write_head(struct gmem_transfer *transfer, struct save *save)
{
	struct image_record *record = begin_record(save, IMAGE_HEAD);

	record->version = IMAGE_VERSION;
	record->head.page_size = gmem_sys_page_size();
	record->head.regions = transfer->hold.region_count;
	record->head.privates = transfer->hold.private_count;
	end_record(save, record, sizeof(*record));
}

static void write_end(struct gmem_transfer *transfer, struct save *save)
{
	struct image_record *record = begin_record(save, IMAGE_END);
	uint64_t bytes = sizeof(*record);

	record->end.pages = save->pages;
	record->end.checksums = save->checksums;
	/* Who reads a pipe by whole units must not wait for what never comes. */
	if (transfer->io.serial) {
		memset(record + 1, 0, IMAGE_UNIT - save->used - bytes);
		bytes = IMAGE_UNIT - save->used;
	}
	end_record(save, record, bytes);
}

/* ---- data ---- */

/* Room for a page in the open record, or in a new one; false: the unit is full */
static bool make_room(struct save *save, uint64_t gpa)
{
	struct image_record *record = save->open;
	uint64_t page;

	if (record) {
		page = (gpa - record->data.base) / IMAGE_BLOCK;
		if (save->used + (save->filled + 2) * IMAGE_BLOCK <= IMAGE_UNIT &&
		    record->count < IMAGE_MAX_RUNS && page < UINT32_MAX)
			return true;
		end_data(save);
	}

	if (save->used + IMAGE_BLOCK > IMAGE_UNIT)
		return false;

	/* In the very last block there is room for a record, but not for data. */
	save->open = begin_record(save, IMAGE_DATA);
	save->open->data.base = gpa;
	if (save->used + 2 * IMAGE_BLOCK <= IMAGE_UNIT)
		return true;
	end_data(save);
	return false;
}

static void append(struct save *save, uint64_t gpa, const char *bytes)
{
	struct image_record *record = save->open;
	struct image_run *runs = (void *)(record + 1);
	uint32_t page = (uint32_t)((gpa - record->data.base) / IMAGE_BLOCK);
	struct image_run *last = record->count ? &runs[record->count - 1] : NULL;

	memcpy(save->unit + save->used + (1 + save->filled++) * IMAGE_BLOCK, bytes, IMAGE_BLOCK);

	if (last && last->first + last->count == page)
		last->count++;
	else
		runs[record->count++] = (struct image_run){ .first = page, .count = 1 };
}

/* What is in the chunk and not zero; false: the unit is full */
static bool pack_chunk(struct gmem_transfer *transfer, struct save *save)
{
	for (; save->at < save->size; save->at += IMAGE_BLOCK) {
		const char *page = save->chunk + save->at;

		if (gmem_is_zero(page, IMAGE_BLOCK)) {
			transfer->bytes.zero += IMAGE_BLOCK;
			continue;
		}
		if (!make_room(save, save->gpa + save->at))
			return false;
		append(save, save->gpa + save->at, page);
		transfer->bytes.data += IMAGE_BLOCK;
	}
	return true;
}

static int note_run(void *data, uint64_t offset, uint64_t size)
{
	struct save *save = data;

	save->runs[save->run_count++] = (struct run){ offset, size };
	return 0;
}

/* What exists next; false: nothing does any more */
static bool next_window(struct gmem_transfer *transfer, struct save *save, int *ret_err)
{
	const struct gmem_leased_range *held = &transfer->hold.all[save->held];
	uint64_t size = held->size - save->looked;

	if (size == 0) {
		save->looked = 0;
		if (++save->held == transfer->hold.count)
			return false;
		held++;
		size = held->size;
	}

	size = size < WINDOW ? size : WINDOW;
	save->run = 0;
	save->run_count = 0;
	*ret_err = gmem_region_present_pages(held->region, GMEM_SIDE_SHARED, held->offset + save->looked,
					     size, note_run, save);
	if (*ret_err) {
		save->run_count = 0;
		return true;
	}
	save->looked += size;
	transfer->done += size;
	transfer->bytes.zero += size;
	for (size_t i = 0; i < save->run_count; i++)
		transfer->bytes.zero -= save->runs[i].size;
	return true;
}

static int read_chunk(struct gmem_transfer *transfer, struct save *save)
{
	const struct gmem_leased_range *held = &transfer->hold.all[save->held];
	struct run *run = &save->runs[save->run];
	uint64_t size = run->size < CHUNK ? run->size : CHUNK;
	int err = 0;

	gmem_nofault_copy(transfer->hold.fast, save->chunk, held->hva + (run->offset - held->offset),
			  size, &err);
	save->gpa = held->gpa + (run->offset - held->offset);
	if (err)
		return gmem_fail(err, "gpa 0x%" PRIx64 ", 0x%" PRIx64 " bytes, cannot be read: %s",
				 save->gpa, size, gmem_errno_name(err));

	save->at = 0;
	save->size = size;
	run->offset += size;
	run->size -= size;
	if (run->size == 0)
		save->run++;
	return 0;
}

/* Until the unit is full, or the memory is at its end, or it is enough for a step */
static int pack(struct gmem_transfer *transfer, struct save *save, bool *ret_full)
{
	int err = 0, empty = 0;

	*ret_full = false;
	while (!err) {
		if (!pack_chunk(transfer, save)) {
			*ret_full = true;
			return 0;
		}
		if (save->run < save->run_count) {
			err = read_chunk(transfer, save);
		} else if (empty++ == EMPTY_WINDOWS) {
			return 0;
		} else if (!next_window(transfer, save, &err)) {
			save->stage = END;
			return 0;
		}
	}
	return err;
}

/* ---- steps ---- */

static int build(struct gmem_transfer *transfer, struct save *save, bool *ret_full)
{
	const struct gmem_leased_memory *hold = &transfer->hold;
	bool all;

	*ret_full = false;
	switch (save->stage) {
	case HEAD:
		write_head(transfer, save);
		save->stage = REGIONS;
		return 0;
	case REGIONS:
	case PRIVATES:
		all = save->stage == REGIONS
			      ? list(transfer, save, IMAGE_REGIONS, hold->region_count,
				     sizeof(struct image_region))
			      : list(transfer, save, IMAGE_PRIVATE, hold->private_count,
				     sizeof(struct image_range));
		*ret_full = !all;
		if (all) {
			save->listed = 0;
			save->stage = save->stage == REGIONS ? PRIVATES : hold->count ? DATA : END;
		}
		return 0;
	case DATA:
		return pack(transfer, save, ret_full);
	default:
		if (save->open)
			end_data(save);
		*ret_full = true;
		if (save->used + IMAGE_BLOCK <= IMAGE_UNIT) {
			write_end(transfer, save);
			save->stage = DRAIN;
		}
		return 0;
	}
}

static int finish(struct gmem_transfer *transfer, bool wait)
{
	int err = gmem_io_drain(&transfer->io, wait);

	if (!err && transfer->opts.flags & GMEM_TRANSFER_SYNC)
		err = gmem_sys_datasync(transfer->io.fd);
	if (err)
		return gmem_transfer_fail_io(transfer, err);

	transfer->is_done = true;
	return 0;
}

static int save_step(struct gmem_transfer *transfer, bool wait)
{
	struct save *save = transfer->state;
	bool full;
	int err = 0;

	if (save->stage == DRAIN && !save->unit)
		return finish(transfer, wait);

	if (!save->unit) {
		err = gmem_io_space(&transfer->io, wait, &save->unit);
		if (err)
			return gmem_transfer_fail_io(transfer, err);
		save->used = 0;
	}

	err = build(transfer, save, &full);
	if (!err && full) {
		err = flush(transfer, save);
		if (err)
			return gmem_transfer_fail_io(transfer, err);
	}
	return err;
}

static int check_privates(const struct gmem_leased_memory *hold, uint64_t flags)
{
	if (hold->private_count && !(flags & GMEM_TRANSFER_OMIT_PRIVATE))
		return gmem_fail(-EACCES,
				 "gpa 0x%" PRIx64 " is private, which the host cannot read: only without it "
				 "(GMEM_TRANSFER_OMIT_PRIVATE) can the rest be saved",
				 hold->privates[0].start);
	return 0;
}

GMEM_API int gmem_vm_save_begin(struct gmem_vm *vm, int fd,
				const struct gmem_transfer_opts *user_opts,
				struct gmem_transfer **ret)
{
	const uint64_t flags = GMEM_TRANSFER_NO_DIRECT | GMEM_TRANSFER_NO_RING | GMEM_TRANSFER_SYNC |
			       GMEM_TRANSFER_OMIT_PRIVATE;
	struct gmem_transfer *transfer;
	struct gmem_transfer_opts opts;
	struct gmem_io_params params;
	struct save *save;
	int err;

	if (!vm || !ret)
		return gmem_fail(-EINVAL, "%s is NULL", vm ? "ret" : "vm");

	err = gmem_transfer_check(user_opts, flags, &opts);
	if (!err)
		err = gmem_transfer_look_at(&opts, fd, true, opts.image_offset, &params);
	if (!err)
		err = gmem_transfer_new(vm, &opts, sizeof(*save), &transfer);
	if (err)
		return err;

	err = gmem_leased_memory_take(vm, 0, UINT64_MAX, "gmem_vm_save", &transfer->hold);
	if (!err)
		err = check_privates(&transfer->hold, opts.flags);
	if (!err)
		err = gmem_io_open(&transfer->io, &params);
	if (err) {
		gmem_transfer_free(transfer);
		return err;
	}

	save = transfer->state;
	save->id = gmem_sys_random();
	transfer->step = save_step;
	transfer->total = gmem_leased_memory_bytes(&transfer->hold);
	transfer->private_bytes = gmem_leased_memory_private_bytes(&transfer->hold);
	*ret = transfer;
	return 0;
}

GMEM_API int gmem_vm_save(struct gmem_vm *vm, int fd, const struct gmem_transfer_opts *opts,
			  struct gmem_transfer_result *ret)
{
	struct gmem_transfer *transfer = NULL;
	int err = gmem_vm_save_begin(vm, fd, opts, &transfer);

	return gmem_transfer_run(err, transfer, ret);
}
