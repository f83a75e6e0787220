/* SPDX-License-Identifier: MIT */
/*
 * Only pages that exist are read, since reading a page that does not exist would allocate
 * it. Only pages that are not zero are written, packed. The last record has the number of
 * pages and a checksum over all checksums, so that a truncated image is recognised.
 *
 * A page that the hardware lost has a record of its own, or one with its neighbours, in
 * its place among the data.
 */
#include "transfer/save.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <string.h>

#include "base/crc32c.h"
#include "base/error.h"
#include "base/kind.h"
#include "nofault/nofault.h"
#include "os/sys.h"
#include "region/host_mapping.h"
#include "region/present_pages.h"
#include "region/region_memory.h"
#include "region/vm_core.h"
#include "transfer/file_queue.h"
#include "transfer/image.h"
#include "transfer/leased_memory.h"
#include "transfer/transfer.h"

/* Bytes asked about at once for pages that exist; a run is at least a page and a hole */
#define WINDOW ((uint64_t)16 << 20)
#define MAX_RUNS (WINDOW / IMAGE_BLOCK / 2 + 1)

/* Bytes copied at once: compared with zero while still in the caches */
#define CHUNK ((uint64_t)64 << 10)

/* Windows without pages in one step */
#define EMPTY_WINDOWS 4

struct run {
	uint64_t offset;	/* in the region */
	uint64_t size;
};

enum stage { HEAD, REGIONS, ELSEWHERE, PRIVATES, DATA, END, DRAIN };

struct save {
	uint64_t id, records, pages;
	uint32_t checksums;
	enum stage stage;
	size_t listed;			/* entries of the current table that are written */

	char *unit;			/* being filled, or NULL */
	uint64_t used;			/* bytes of it */
	struct image_record *open;	/* the unit's unfinished data record, or NULL */
	uint64_t filled;		/* pages in open */

	size_t range;			/* index of the leased range being read */
	uint64_t looked;		/* bytes of it whose pages were asked for */
	size_t run, run_count;		/* runs of pages in the last window: next, and all */
	struct run runs[MAX_RUNS];

	uint64_t gpa;			/* of chunk's first byte */
	uint64_t at, size;		/* next byte of chunk, and its bytes; equal: all packed */
	char *chunk;			/* CHUNK bytes, in a buffer of the queue that writing does not use */

	struct image_range lost;	/* pages that the hardware lost, not written yet; or size 0 */
};

/* ---- records ---- */

static struct image_record *begin_record(struct save *save, enum image_kind kind)
{
	struct image_record *record = (void *)(save->unit + save->used);

	*record = (struct image_record){ .id = save->id, .number = save->records++ };
	memcpy(record->kind, gmem_image_kinds[kind], sizeof(record->kind));
	return record;
}

/* Pad the record after its first @bytes bytes, which are filled in, and seal it. */
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

static struct image_region region_entry(const struct gmem_leased_memory *memory, size_t i)
{
	return (struct image_region){
		.gpa = memory->regions[i].gpa,
		.size = memory->regions[i].size,
		.backing = memory->regions[i].backing,
	};
}

static struct image_elsewhere elsewhere_entry(const struct gmem_leased_memory *memory, size_t i)
{
	return (struct image_elsewhere){
		.gpa = memory->elsewhere[i].gpa,
		.size = memory->elsewhere[i].size,
		.identity = memory->elsewhere[i].identity,
		.kind = memory->elsewhere[i].kind,
	};
}

static struct image_range private_entry(const struct gmem_leased_memory *memory, size_t i)
{
	return (struct image_range){
		.gpa = memory->privates[i].start,
		.size = memory->privates[i].last - memory->privates[i].start + 1,
	};
}

static void put_entry(const struct gmem_leased_memory *memory, enum image_kind kind, size_t i, void *at)
{
	if (kind == IMAGE_REGIONS)
		*(struct image_region *)at = region_entry(memory, i);
	else if (kind == IMAGE_ELSEWHERE)
		*(struct image_elsewhere *)at = elsewhere_entry(memory, i);
	else
		*(struct image_range *)at = private_entry(memory, i);
}

/* Write the entries that fit into this unit; true: all entries are written. */
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
	for (size_t i = 0; i < now; i++)
		put_entry(&transfer->memory, kind, save->listed + i,
			  (char *)(record + 1) + i * entry_size);
	end_record(save, record, sizeof(*record) + now * entry_size);
	save->listed += now;
	return save->listed == count;
}

static bool list_all(struct gmem_transfer *transfer, struct save *save)
{
	const struct gmem_leased_memory *memory = &transfer->memory;

	switch (save->stage) {
	case REGIONS:
		return list(transfer, save, IMAGE_REGIONS, memory->region_count,
			    sizeof(struct image_region));
	case ELSEWHERE:
		return list(transfer, save, IMAGE_ELSEWHERE, memory->elsewhere_count,
			    sizeof(struct image_elsewhere));
	default:
		return list(transfer, save, IMAGE_PRIVATE, memory->private_count,
			    sizeof(struct image_range));
	}
}

static void write_head(struct gmem_transfer *transfer, struct save *save)
{
	struct image_record *record = begin_record(save, IMAGE_HEAD);

	record->version = IMAGE_VERSION;
	record->head.page_size = gmem_sys_page_size();
	record->head.regions = transfer->memory.region_count;
	record->head.privates = transfer->memory.private_count;
	end_record(save, record, sizeof(*record));
}

static void write_end(struct gmem_transfer *transfer, struct save *save)
{
	struct image_record *record = begin_record(save, IMAGE_END);
	uint64_t bytes = sizeof(*record);

	record->end.pages = save->pages;
	record->end.checksums = save->checksums;
	/* A reader of whole units from a pipe would wait for the rest of this one. */
	if (transfer->io.serial) {
		memset(record + 1, 0, IMAGE_UNIT - save->used - bytes);
		bytes = IMAGE_UNIT - save->used;
	}
	end_record(save, record, bytes);
}

/* ---- data ---- */

/* Make room for a page in the open record, or in a new one; false: the unit is full. */
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

	/* The unit's last block has room for a record's first block, but not for a page. */
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

/* Pack the chunk's pages that are not zero; false: the unit is full. */
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

/* Find the pages that exist in the next window; false: no memory is left. */
static bool find_pages(struct gmem_transfer *transfer, struct save *save, int *ret_err)
{
	const struct gmem_leased_range *range = &transfer->memory.all[save->range];
	uint64_t size = range->size - save->looked;

	if (size == 0) {
		save->looked = 0;
		if (++save->range == transfer->memory.count)
			return false;
		range++;
		size = range->size;
	}

	size = size < WINDOW ? size : WINDOW;
	save->run = 0;
	save->run_count = 0;
	*ret_err = gmem_region_present_pages(range->region, GMEM_SIDE_SHARED, range->offset + save->looked,
					     size, transfer->memory.look, note_run, save);
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

/* The address of the next page to be read; without one, no address */
static uint64_t next_gpa(const struct gmem_transfer *transfer, const struct save *save)
{
	const struct gmem_leased_range *range = &transfer->memory.all[save->range];

	if (save->at < save->size || save->run == save->run_count)
		return UINT64_MAX;
	return range->gpa + (save->runs[save->run].offset - range->offset);
}

/* Write what was lost, unless the next page may be lost, too; false: the unit is full. */
static bool put_lost(struct gmem_transfer *transfer, struct save *save)
{
	struct image_record *record;

	if (!save->lost.size || next_gpa(transfer, save) == save->lost.gpa + save->lost.size)
		return true;
	if (save->open)
		end_data(save);
	if (save->used + IMAGE_BLOCK > IMAGE_UNIT)
		return false;

	record = begin_record(save, IMAGE_LOST);
	record->count = 1;
	*(struct image_range *)(record + 1) = save->lost;
	end_record(save, record, sizeof(*record) + sizeof(save->lost));
	gmem_transfer_tell_lost(transfer, save->lost.gpa, save->lost.size);
	save->lost.size = 0;
	return true;
}

static void use_run(struct save *save, uint64_t size)
{
	struct run *run = &save->runs[save->run];

	run->offset += size;
	run->size -= size;
	if (run->size == 0)
		save->run++;
}

static int fail_page(uint64_t gpa, const char *hva, int err)
{
	const char *why = gmem_nofault_why(hva, false, err);
	uint64_t page = gmem_sys_page_size();
	struct gmem_host_nature nature;

	if (err != -EHWPOISON)
		return gmem_fail(err, "gpa 0x%" PRIx64 ", hva 0x%" PRIxPTR ", cannot be read: %s, %s", gpa,
				 (uintptr_t)hva, gmem_errno_name(err), why ? why : "but the page came meanwhile");
	if (!gmem_host_mapping_learn(hva, page, GMEM_MAPPING_HUGETLB, &nature))
		page = nature.page_size;
	return gmem_fail(err, "gpa 0x%" PRIx64 ", hva 0x%" PRIxPTR ": the hardware lost the page, 0x%" PRIx64
			 " bytes; only with GMEM_TRANSFER_ALLOW_LOST can the rest be saved", gpa,
			 (uintptr_t)hva, page);
}

/* The page at @hva, the next of its run, could not be read. */
static int lose_page(struct gmem_transfer *transfer, struct save *save, const char *hva, int err)
{
	uint64_t gpa = next_gpa(transfer, save), page = gmem_sys_page_size();

	if (gmem_nofault_is_lost(hva, err))
		err = -EHWPOISON;
	if (err != -EHWPOISON || !(transfer->opts.flags & GMEM_TRANSFER_ALLOW_LOST))
		return fail_page(gpa, hva, err);

	if (!save->lost.size)
		save->lost.gpa = gpa;
	save->lost.size += page;
	use_run(save, page);
	return 0;
}

static int read_chunk(struct gmem_transfer *transfer, struct save *save)
{
	const struct gmem_leased_range *range = &transfer->memory.all[save->range];
	const struct run *run = &save->runs[save->run];
	const char *hva = range->hva + (run->offset - range->offset);
	uint64_t size = run->size < CHUNK ? run->size : CHUNK;
	int err = 0;

	/* Pages before one that cannot be read are packed first; then the error comes again. */
	size = gmem_nofault_copy(transfer->memory.fast, save->chunk, hva, size, &err);
	size -= size % gmem_sys_page_size();
	if (size == 0)
		return lose_page(transfer, save, hva, err);

	save->gpa = next_gpa(transfer, save);
	save->at = 0;
	save->size = size;
	use_run(save, size);
	return 0;
}

/* Pack pages until the unit is full, the memory has ended, or enough is done for one step. */
static int pack(struct gmem_transfer *transfer, struct save *save, bool *ret_full)
{
	int err = 0, empty = 0;

	*ret_full = false;
	while (!err) {
		if (!put_lost(transfer, save) || !pack_chunk(transfer, save)) {
			*ret_full = true;
			return 0;
		}
		if (save->run < save->run_count) {
			err = read_chunk(transfer, save);
		} else if (empty++ == EMPTY_WINDOWS) {
			return 0;
		} else if (!find_pages(transfer, save, &err)) {
			save->stage = END;
			return 0;
		}
	}
	return err;
}

/* ---- steps ---- */

static int build(struct gmem_transfer *transfer, struct save *save, bool *ret_full)
{
	const struct gmem_leased_memory *memory = &transfer->memory;

	*ret_full = false;
	switch (save->stage) {
	case HEAD:
		write_head(transfer, save);
		save->stage = REGIONS;
		return 0;
	case REGIONS:
	case ELSEWHERE:
	case PRIVATES:
		*ret_full = !list_all(transfer, save);
		if (!*ret_full) {
			save->listed = 0;
			save->stage = save->stage != PRIVATES ? save->stage + 1 : memory->count ? DATA : END;
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
	bool sync = transfer->opts.flags & GMEM_TRANSFER_SYNC;
	int err = gmem_io_drain(&transfer->io, sync, wait);

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

static int check_privates(const struct gmem_leased_memory *memory, uint64_t flags)
{
	if (memory->private_count && !(flags & GMEM_TRANSFER_OMIT_PRIVATE))
		return gmem_fail(-EACCES,
				 "gpa 0x%" PRIx64 " is private, which the host cannot read: only without it "
				 "(GMEM_TRANSFER_OMIT_PRIVATE) can the rest be saved",
				 memory->privates[0].start);
	return 0;
}

GMEM_API int gmem_vm_save_begin(struct gmem_vm *vm, int fd,
				const struct gmem_transfer_opts *user_opts,
				struct gmem_transfer **ret)
{
	const uint64_t flags = GMEM_TRANSFER_NO_DIRECT | GMEM_TRANSFER_NO_RING | GMEM_TRANSFER_SYNC |
			       GMEM_TRANSFER_OMIT_PRIVATE | GMEM_TRANSFER_ALLOW_LOST;
	struct gmem_transfer *transfer;
	struct gmem_transfer_opts opts;
	struct gmem_io_params params;
	struct save *save;
	int err;

	if (!vm || !ret)
		return gmem_fail(-EINVAL, "%s is NULL", vm ? "ret" : "vm");

	err = gmem_transfer_check(user_opts, flags, &opts);
	if (!err)
		err = gmem_transfer_inspect(&opts, fd, true, opts.image_offset, &params);
	if (!err && opts.flags & GMEM_TRANSFER_SYNC && !params.kind.has_offsets)
		err = gmem_fail(-EINVAL, "fd %d is neither file nor block device: there is no disk to sync",
				fd);
	if (!err)
		err = gmem_transfer_new(vm, &opts, sizeof(*save), &transfer);
	if (err)
		return err;

	err = gmem_leased_memory_take(vm, 0, UINT64_MAX, GMEM_USE_SAVE, "gmem_vm_save",
				      &transfer->memory);
	if (!err)
		err = check_privates(&transfer->memory, opts.flags);
	if (!err)
		err = gmem_leased_memory_check_mapped(&transfer->memory);
	if (!err)
		err = gmem_io_open(&transfer->io, &params);
	if (err) {
		gmem_transfer_free(transfer);
		return err;
	}

	save = transfer->state;
	save->id = gmem_sys_random();
	save->chunk = transfer->io.small;
	transfer->step = save_step;
	transfer->total = gmem_leased_memory_bytes(&transfer->memory);
	transfer->left_out_bytes = gmem_leased_memory_elsewhere_bytes(&transfer->memory);
	transfer->private_bytes = gmem_leased_memory_private_bytes(&transfer->memory);
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
