/* SPDX-License-Identifier: MIT */
/*
 * No field of the image is trusted. A record is used only if its checksum is right, and
 * an address only if it is in the image's list of regions, which is compared with the
 * target first. The image is complete only if its last record agrees with all records
 * before it.
 *
 * A file that others write can change between the two passes of GMEM_TRANSFER_VERIFY. The
 * second pass checks all that the first did.
 */
#include "transfer/restore.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/crc32c.h"
#include "base/error.h"
#include "base/kind.h"
#include "base/part.h"
#include "region/vm_core.h"
#include "transfer/batch.h"
#include "transfer/file_queue.h"
#include "transfer/image.h"
#include "transfer/image_layout.h"
#include "transfer/leased_memory.h"
#include "transfer/transfer.h"

/* Bytes made zero in one step */
#define CLEAR_STEP ((uint64_t)64 << 20)

/* No run ends further from its record's base, in pages: first and count have 32 bits each. */
#define MAX_RUN_END ((uint64_t)1 << 33)

/* What gmem_image_info() wants to know */
struct wanted_info {
	struct gmem_image_summary *info;	/* of the caller's version; NULL: not wanted */
	struct gmem_image_region *regions;
	size_t max;
	size_t count;			/* regions that the image has */
};

/* Units that the threads of a transfer restore in one step, and records in them */
#define MAX_UNITS 16
#define MAX_RECORDS 64

/* A data record that any thread may store, and what is so when it and all before it are stored */
struct ready_record {
	const struct image_record *head;	/* its first block, and if it is_read what follows */
	bool is_read;
	uint64_t from;			/* all memory below is done by those before */
	struct gmem_stored stored;
	uint64_t pages, reached;
	uint32_t checksums;
	uint64_t position;		/* in the file */
	const struct gmem_io_part *unit;
};

/* For a step of several threads */
struct many {
	bool wait;
	struct gmem_io_part units[MAX_UNITS];
	struct ready_record ready[MAX_RECORDS];
	char heads[MAX_RECORDS][IMAGE_BLOCK];
};

struct restore {
	struct wanted_info *wanted;	/* read the lists alone, for this; or NULL */
	bool verify_only;		/* write nothing: no target, or first pass of verify_first */
	bool verify_first;		/* two passes: verify, then store */
	uint64_t start;			/* offset of the image in the file */

	uint64_t id, records, pages;
	uint64_t page_size;		/* of the host that wrote the image */
	uint32_t checksums;
	struct gmem_image_layout layout;
	bool has_head;

	uint64_t used;			/* bytes of the current piece that are done */
	const struct image_record *data;	/* the record being stored, or NULL */
	uint32_t run;			/* next run in data */
	uint64_t page;			/* next page in data */
	uint64_t reached;		/* all memory below this gpa is done */
	uint64_t lost_end;		/* no data may come below this gpa: it was lost */
	bool at_end;			/* all records are read; the rest is to be cleared */
	struct many *many;		/* NULL: there is one thread */
};

/* ---- checking a record ---- */

/* Tell an image, of which little may be there, from anything else. */
static int check_beginning(const struct gmem_transfer *transfer, const char *bytes, uint64_t size)
{
	const char *head = gmem_image_kinds[IMAGE_HEAD];
	unsigned char first[sizeof(gmem_image_kinds[0])] = { 0 };

	size = size < sizeof(first) ? size : sizeof(first);
	if (size)
		memcpy(first, bytes, size);
	if (memcmp(first, head, size) == 0)
		return 0;
	if (memcmp(first, head, 4) == 0)
		return gmem_image_bad(0, "an image does not begin like this");
	return gmem_fail(-ENOMSG, "this is no image: at offset 0x%" PRIx64 " it has the bytes %02x %02x %02x "
			 "%02x, an image has \"GMEMHEAD\"", transfer->opts.image_offset, first[0], first[1],
			 first[2], first[3]);
}

static enum image_kind kind_of(const struct image_record *record)
{
	enum image_kind kind = IMAGE_HEAD;

	while (kind < IMAGE_KINDS &&
	       memcmp(record->kind, gmem_image_kinds[kind], sizeof(record->kind)) != 0)
		kind++;
	return kind;
}

/* What a later library writes where this one knows nothing to write: the record itself is whole. */
static int fail_unknown_kind(const struct restore *restore, const struct image_record *record)
{
	char kind[sizeof(record->kind) + 1] = { 0 };

	for (size_t i = 0; i < sizeof(record->kind); i++)
		kind[i] = record->kind[i] >= 'A' && record->kind[i] <= 'Z' ? record->kind[i] : '_';
	return gmem_fail(-EOPNOTSUPP, "record %" PRIu64 " of the image is of a kind, \"%s\", that libgmem %s "
			 "does not know", restore->records, kind, gmem_version());
}

/* What the fields of a record must be wherever it is, */
static int check_form(const struct restore *restore, const struct image_record *record, uint64_t left)
{
	enum image_kind kind = kind_of(record);

	if (kind == IMAGE_KINDS && memcmp(record->kind, gmem_image_kinds[IMAGE_HEAD], 4) != 0)
		return gmem_image_bad(restore->records, "it is of no kind there is");
	if (kind == IMAGE_HEAD && record->version != IMAGE_VERSION)
		return gmem_fail(-EOPNOTSUPP, "the image is of version %" PRIu32 ", libgmem %s reads %u",
				 record->version, gmem_version(), IMAGE_VERSION);
	if (record->size < IMAGE_BLOCK || record->size % IMAGE_BLOCK || record->size > left)
		return gmem_image_bad(restore->records, "it cannot have 0x%" PRIx32 " bytes, 0x%" PRIx64 " are there",
			   record->size, left);
	return 0;
}

/* and where it is */
static int check_place(const struct restore *restore, const struct image_record *record)
{
	enum image_kind kind = kind_of(record);

	if (restore->has_head && record->id != restore->id)
		return gmem_image_bad(restore->records, "it is another image's");
	if (record->number != restore->records || (restore->has_head && kind == IMAGE_HEAD))
		return gmem_image_bad(restore->records, "it is number %" PRIu64, record->number);
	if (kind != IMAGE_HEAD && record->version)
		return gmem_image_bad(restore->records, "a reserved field is not 0");
	return kind == IMAGE_KINDS ? fail_unknown_kind(restore, record) : 0;
}

static int check_record(const struct restore *restore, const struct image_record *record,
			uint64_t left)
{
	int err = check_form(restore, record, left);

	if (!err && gmem_image_checksum(record) != record->checksum)
		err = gmem_image_bad(restore->records, "its checksum does not agree with its contents");
	return err ? err : check_place(restore, record);
}

/* ---- head ---- */

static int read_head(struct gmem_transfer *transfer, struct restore *restore,
		     const struct image_record *record)
{
	uint64_t pages = gmem_leased_memory_region_bytes(&transfer->memory) / IMAGE_BLOCK;
	uint64_t page = record->head.page_size;

	if (page < IMAGE_BLOCK || page & (page - 1))
		return gmem_image_bad(restore->records, "a page has 0x%" PRIx64 " bytes", page);
	if (record->head.regions > IMAGE_MAX_REGIONS)
		return gmem_image_bad(restore->records, "%" PRIu64 " regions, at most %u may be listed",
			   record->head.regions, IMAGE_MAX_REGIONS);
	if (record->head.privates && transfer->vm &&
	    !(transfer->opts.flags & GMEM_TRANSFER_OMIT_PRIVATE))
		return gmem_fail(-EACCES,
				 "%" PRIu64 " ranges were private and are not in the image: only without them "
				 "(GMEM_TRANSFER_OMIT_PRIVATE) can it be restored", record->head.privates);

	if (transfer->vm && record->head.privates > pages)
		return gmem_fail(-ENOENT, "the image has %" PRIu64 " private ranges, the VM's memory only 0x%"
				 PRIx64 " pages", record->head.privates, pages);

	restore->id = record->id;
	restore->page_size = page;
	restore->layout.region_count = record->head.regions;
	restore->layout.private_count = record->head.privates;
	restore->has_head = true;
	return 0;
}

static void count_record(struct restore *restore, const struct image_record *record)
{
	restore->records++;
	restore->checksums = gmem_crc32c(restore->checksums, &record->checksum,
					 sizeof(record->checksum));
}

/* ---- data ---- */

/* Nothing below this gpa may come any more. */
static uint64_t next_address(const struct restore *restore)
{
	return restore->lost_end > restore->reached ? restore->lost_end : restore->reached;
}

static struct image_range run_range(const struct image_record *record, uint32_t i)
{
	const struct image_run *run = (const struct image_run *)(record + 1) + i;

	return (struct image_range){
		.gpa = record->data.base + run->first * IMAGE_BLOCK,
		.size = run->count * IMAGE_BLOCK,
	};
}

/* Check a whole data record before any byte of it is stored. */
static int check_data(const struct restore *restore, const struct image_record *record)
{
	uint64_t after = next_address(restore), pages = 0;
	int err = 0;

	if (record->count > IMAGE_MAX_RUNS || record->data.base % IMAGE_BLOCK ||
	    record->data.base > UINT64_MAX - MAX_RUN_END * IMAGE_BLOCK)
		return gmem_image_bad(restore->records, "%" PRIu32 " runs from gpa 0x%" PRIx64, record->count,
			   record->data.base);

	for (uint32_t i = 0; i < record->count && !err; i++) {
		struct image_range range = run_range(record, i);

		err = gmem_image_check_range(record, range.gpa, range.size, after);
		if (!err && !gmem_image_layout_is_shared(&restore->layout, range.gpa, range.size))
			err = gmem_image_bad(restore->records, "gpa 0x%" PRIx64 ", 0x%" PRIx64
				  " bytes, is not the image's memory", range.gpa, range.size);
		after = range.gpa + range.size;
		pages += range.size / IMAGE_BLOCK;
	}
	if (!err && (pages + 1) * IMAGE_BLOCK != record->size)
		err = gmem_image_bad(restore->records, "0x%" PRIx64 " pages and 0x%" PRIx32 " bytes", pages, record->size);
	return err;
}

/* Clear memory below @end that the image has no data for, up to a step's worth; false: done. */
static bool clear_some(struct gmem_transfer *transfer, struct restore *restore, uint64_t end,
		       int *ret_err)
{
	struct gmem_part part;
	uint64_t size;

	if (restore->reached == end ||
	    !gmem_image_layout_next_shared(&restore->layout, restore->reached, end - 1, &part))
		return false;

	/* An image can claim 2^64 bytes: to verify them is one addition. */
	size = part.last - part.start + 1;
	if (!restore->verify_only) {
		size = size < CLEAR_STEP ? size : CLEAR_STEP;
		*ret_err = gmem_leased_memory_clear(&transfer->memory, transfer->memory.look, part.start, size);
	}
	if (!*ret_err) {
		transfer->bytes.zero += size;
		restore->reached = part.start + size;
	}
	return true;
}

static void use_record(struct gmem_transfer *transfer, struct restore *restore,
		       const struct image_record *record)
{
	restore->used += record->size;
	transfer->done += record->size;
}

static int store_run(struct gmem_transfer *transfer, struct restore *restore)
{
	const struct image_record *record = restore->data;
	struct image_range range = run_range(record, restore->run);
	const char *bytes = (const char *)record + (1 + restore->page) * IMAGE_BLOCK;
	struct gmem_stored stored = { 0 };
	int err = 0;

	if (clear_some(transfer, restore, range.gpa, &err))
		return err;

	if (restore->verify_only)
		stored.data = range.size;
	else
		err = gmem_leased_memory_store(&transfer->memory, transfer->memory.look, range.gpa, bytes, range.size, &stored);
	/* What a failure leaves of a run is stored, and counted, when it is repeated. */
	if (err)
		return err;

	transfer->bytes.data += stored.data;
	transfer->bytes.zero += stored.zero;
	restore->reached = range.gpa + range.size;
	restore->page += range.size / IMAGE_BLOCK;
	restore->run++;
	return 0;
}

static int store_data(struct gmem_transfer *transfer, struct restore *restore)
{
	int err = 0;

	/* Gaps may be long: end the step after one of CLEAR_STEP bytes. */
	while (restore->run < restore->data->count && !err) {
		uint64_t zero = transfer->bytes.zero;

		err = store_run(transfer, restore);
		if (!err && transfer->bytes.zero - zero >= CLEAR_STEP)
			return 0;
	}
	if (err)
		return err;

	restore->pages += restore->page;
	use_record(transfer, restore, restore->data);
	restore->data = NULL;
	return 0;
}

/* ---- lost pages ---- */

static int check_lost(const struct restore *restore, const struct image_record *record)
{
	const struct image_range *entries = (const void *)(record + 1);
	uint64_t after = next_address(restore);
	int err = 0;

	if (!gmem_image_has_entries(record, sizeof(*entries)))
		return gmem_image_bad(restore->records, "%" PRIu32 " lost ranges", record->count);
	for (uint32_t i = 0; i < record->count && !err; i++) {
		err = gmem_image_check_range(record, entries[i].gpa, entries[i].size, after);
		if (!err && !gmem_image_layout_is_shared(&restore->layout, entries[i].gpa, entries[i].size))
			err = gmem_image_bad(restore->records, "gpa 0x%" PRIx64 ", 0x%" PRIx64
				  " bytes, was lost and is not the image's memory", entries[i].gpa,
				  entries[i].size);
		after = entries[i].gpa + entries[i].size;
	}
	return err;
}

/* They are cleared as all that has no data, but counted apart. */
static int read_lost(struct gmem_transfer *transfer, struct restore *restore,
		     const struct image_record *record)
{
	const struct image_range *entries = (const void *)(record + 1);
	int err = check_lost(restore, record);

	if (err)
		return err;
	if (!(transfer->opts.flags & GMEM_TRANSFER_ALLOW_LOST))
		return gmem_fail(-EHWPOISON, "the image has no contents for gpa 0x%" PRIx64 ", 0x%" PRIx64
				 " bytes, which the hardware had lost: only without them "
				 "(GMEM_TRANSFER_ALLOW_LOST) can it be restored", entries[0].gpa,
				 entries[0].size);

	for (uint32_t i = 0; i < record->count; i++) {
		if (!restore->verify_first)
			gmem_transfer_tell_lost(transfer, entries[i].gpa, entries[i].size);
		restore->lost_end = entries[i].gpa + entries[i].size;
	}
	return 0;
}

/* ---- the last record ---- */

static int read_end(struct restore *restore, const struct image_record *record)
{
	if (record->end.pages != restore->pages || record->end.checksums != restore->checksums ||
	    record->count || record->end.reserved)
		return gmem_image_bad(restore->records, "the end does not agree with what was before it");

	restore->at_end = true;
	return 0;
}

static void start_over(struct gmem_transfer *transfer, struct restore *restore)
{
	gmem_image_layout_free(&restore->layout);
	*restore = (struct restore){ .start = restore->start, .many = restore->many };
	transfer->bytes = (struct gmem_stored){ 0 };
	transfer->private_bytes = 0;
	transfer->left_out_bytes = 0;
	transfer->done = transfer->total / 2;	/* not all of the file need be an image */
}

static int finish(struct gmem_transfer *transfer, struct restore *restore, bool wait)
{
	int err = 0;

	if (clear_some(transfer, restore, UINT64_MAX, &err))
		return err;

	if (!restore->verify_first) {
		transfer->bytes.zero -= transfer->lost_bytes;
		transfer->done = transfer->total ? transfer->total : transfer->done;
		transfer->is_done = true;
		return 0;
	}
	err = gmem_io_rewind(&transfer->io, restore->start, wait);
	if (!err)
		start_over(transfer, restore);
	return err == -EAGAIN ? err : err ? gmem_transfer_fail_io(transfer, err) : 0;
}

/* ---- what an image has ---- */

static int tell_info(struct gmem_transfer *transfer, const struct restore *restore)
{
	struct wanted_info *wanted = restore->wanted;
	const struct gmem_image_layout *layout = &restore->layout;
	struct gmem_image_summary info = {
		.id = restore->id,
		.page_size = restore->page_size,
		.private_bytes = transfer->private_bytes,
		.left_out_bytes = transfer->left_out_bytes,
		.version = IMAGE_VERSION,
		.region_count = (uint32_t)(layout->regions_read + layout->elsewhere_read),
	};

	if (wanted->regions && info.region_count > wanted->max)
		return gmem_fail(-ENOSPC, "the image has %" PRIu32 " regions, there is room for %zu",
				 info.region_count, wanted->max);
	for (size_t i = 0; i < layout->regions_read; i++)
		info.memory_bytes += layout->regions[i].size;
	if (wanted->regions)
		gmem_image_layout_list(layout, wanted->regions);
	if (wanted->info) {
		info.size = wanted->info->size;
		memcpy(wanted->info, &info, info.size < sizeof(info) ? info.size : sizeof(info));
	}
	wanted->count = info.region_count;
	transfer->is_done = true;
	return 0;
}

/* ---- steps ---- */

static int read_record(struct gmem_transfer *transfer, struct restore *restore,
		       const struct image_record *record, uint64_t left)
{
	enum image_kind kind = kind_of(record);
	bool ends_lists = kind == IMAGE_DATA || kind == IMAGE_LOST || kind == IMAGE_END;
	/* Who wants the lists alone has them by this record's beginning, be the rest damaged. */
	int err = restore->wanted && restore->has_head && ends_lists ? 0 : check_record(restore, record, left);

	if (!err && ends_lists) {
		err = gmem_image_layout_end(transfer, &restore->layout, record);
		if (!err && !restore->layout.is_complete)
			return 0;
		if (!err && restore->wanted)
			return tell_info(transfer, restore);
	}
	if (err)
		return err;

	switch (kind) {
	case IMAGE_HEAD:
		err = read_head(transfer, restore, record);
		break;
	case IMAGE_REGIONS:
	case IMAGE_ELSEWHERE:
	case IMAGE_PRIVATE:
		err = gmem_image_layout_read(transfer, &restore->layout, record, kind);
		break;
	case IMAGE_DATA:
		err = check_data(restore, record);
		break;
	case IMAGE_LOST:
		err = read_lost(transfer, restore, record);
		break;
	default:
		err = read_end(restore, record);
	}
	if (err)
		return err;

	count_record(restore, record);
	if (kind == IMAGE_DATA) {
		restore->data = record;
		restore->run = 0;
		restore->page = 0;
	} else {
		use_record(transfer, restore, record);
	}
	return 0;
}

static int no_end(const struct gmem_transfer *transfer, const struct restore *restore)
{
	return gmem_fail(-ENODATA, "the image ends after %" PRIu64 " records and 0x%" PRIx64
			 " bytes, and not where it should", restore->records,
			 transfer->io.file_bytes);
}

static int restore_next(struct gmem_transfer *transfer, struct restore *restore, bool wait)
{
	struct gmem_io_piece piece;
	int err;

	err = gmem_io_next(&transfer->io, wait, &piece);
	if (err)
		return gmem_transfer_fail_io(transfer, err);
	if (piece.size == restore->used && piece.size) {
		gmem_io_take(&transfer->io);
		restore->used = 0;
		return 0;
	}
	err = restore->has_head ? 0 : check_beginning(transfer, piece.data, piece.size);
	if (err)
		return err;
	/* The file may have become shorter since what is used was read. */
	if (piece.size < restore->used + IMAGE_BLOCK)
		return no_end(transfer, restore);
	return read_record(transfer, restore, (const void *)(piece.data + restore->used),
			   piece.size - restore->used);
}

/* ---- data records, by several threads ---- */

static bool clear_gap(struct gmem_transfer *transfer, const struct gmem_hand *hand, uint64_t start,
		      uint64_t end, struct gmem_stored *stored)
{
	const struct restore *restore = transfer->state;
	struct gmem_part part;

	while (start < end && gmem_image_layout_next_shared(&restore->layout, start, end - 1, &part)) {
		if (!restore->verify_only &&
		    gmem_leased_memory_clear(&transfer->memory, hand->look, part.start,
					     part.last - part.start + 1))
			return false;
		stored->zero += part.last - part.start + 1;
		start = part.last + 1;
	}
	return true;
}

/* Read what is not read yet; NULL if that fails, or something else is there now. */
static const struct image_record *get_record(const struct gmem_transfer *transfer,
					     const struct gmem_hand *hand, const struct ready_record *ready)
{
	const struct restore *restore = transfer->state;
	char *to = gmem_io_scratch(&transfer->io, hand->number);

	if (ready->is_read)
		return ready->head;
	if (!gmem_io_read_part(&transfer->io, ready->position, to, ready->head->size, restore->many->wait) ||
	    memcmp(to, ready->head, IMAGE_BLOCK) != 0)
		return NULL;
	return (const void *)to;
}

/* The records around it may turn out to be damaged. Each has what was checked, and nothing else. */
static bool store_ready(void *data, struct gmem_hand *hand, size_t index)
{
	struct gmem_transfer *transfer = data;
	struct restore *restore = transfer->state;
	struct ready_record *ready = &restore->many->ready[index];
	const struct image_record *record;
	uint64_t reached = ready->from;
	const char *bytes;

	gmem_transfer_come(transfer, hand, ready->head->data.base);
	record = get_record(transfer, hand, ready);
	bytes = (const char *)record + IMAGE_BLOCK;
	if (!record || gmem_image_checksum(record) != record->checksum)
		return false;
	for (uint32_t i = 0; i < record->count; i++) {
		struct image_range range = run_range(record, i);

		if (!clear_gap(transfer, hand, reached, range.gpa, &ready->stored))
			return false;
		if (restore->verify_only)
			ready->stored.data += range.size;
		else if (gmem_leased_memory_store(&transfer->memory, hand->look, range.gpa, bytes, range.size,
						  &ready->stored))
			return false;
		reached = range.gpa + range.size;
		bytes += range.size;
	}
	return true;
}

/* Check a record after all that @walk has seen; false: it is for restore_next(). */
static bool get_ready(struct restore *walk, const struct image_record *record, uint64_t left,
		      struct ready_record *ready)
{
	uint64_t reached = walk->reached;

	if (check_form(walk, record, left) || kind_of(record) != IMAGE_DATA || check_place(walk, record) ||
	    check_data(walk, record))
		return false;

	for (uint32_t i = 0; i < record->count; i++) {
		struct image_range range = run_range(record, i);

		reached = range.gpa + range.size;
		walk->pages += range.size / IMAGE_BLOCK;
	}
	/* Much to clear takes steps of its own. */
	if (!walk->verify_only && reached - walk->reached > CLEAR_STEP)
		return false;
	count_record(walk, record);
	*ready = (struct ready_record){ .head = record, .from = walk->reached, .pages = walk->pages,
					.reached = reached, .checksums = walk->checksums };
	walk->reached = reached;
	return true;
}

/* The first block of the record at @at of a unit; NULL if it cannot be had now */
static const struct image_record *get_head(struct gmem_transfer *transfer, const struct gmem_io_part *unit,
					   uint64_t at, size_t number)
{
	struct restore *restore = transfer->state;
	char *head = restore->many->heads[number];

	if (unit->size - at < IMAGE_BLOCK)
		return NULL;
	if (unit->is_read)
		return (const void *)(unit->data + at);
	if (!gmem_io_read_part(&transfer->io, unit->offset + at, head, IMAGE_BLOCK, restore->many->wait))
		return NULL;
	return (const void *)head;
}

/*
 * List the data records at hand, as far as they can be told to be right before their checksums
 * are known. What is in the page cache is read later, by the threads that store it.
 */
static size_t list_ready(struct gmem_transfer *transfer, struct restore *restore)
{
	struct many *many = restore->many;
	size_t units = gmem_io_list(&transfer->io, many->wait, many->units, MAX_UNITS), count = 0;
	struct restore walk = *restore;

	for (size_t i = 0; i < units; i++) {
		const struct gmem_io_part *unit = &many->units[i];

		for (uint64_t at = i ? 0 : restore->used; at < unit->size; count++) {
			struct ready_record *ready = &many->ready[count];
			const struct image_record *head;

			head = count < MAX_RECORDS ? get_head(transfer, unit, at, count) : NULL;
			if (!head || !get_ready(&walk, head, unit->size - at, ready))
				return count;
			ready->is_read = unit->is_read;
			ready->position = unit->offset + at;
			ready->unit = unit;
			at += head->size;
		}
	}
	return count;
}

static void take_ready(struct gmem_transfer *transfer, struct restore *restore, size_t count)
{
	const struct ready_record *ready = restore->many->ready, *last = &ready[count - 1];
	uint64_t end = last->position + last->head->size;
	bool ends = end == last->unit->offset + last->unit->size;

	for (size_t i = 0; i < count; i++) {
		transfer->bytes.data += ready[i].stored.data;
		transfer->bytes.zero += ready[i].stored.zero;
		transfer->done += ready[i].head->size;
	}
	restore->records += count;
	restore->checksums = last->checksums;
	restore->pages = last->pages;
	restore->reached = last->reached;
	restore->used = ends ? 0 : end - last->unit->offset;
	gmem_io_take_up_to(&transfer->io, ends ? end : last->unit->offset);
}

/* Restore what is at hand with all threads; false if nothing was. */
static bool restore_many(struct gmem_transfer *transfer, struct restore *restore, bool wait)
{
	size_t count;

	if (!restore->many || !restore->has_head || !restore->layout.is_complete)
		return false;
	restore->many->wait = wait;
	count = list_ready(transfer, restore);
	if (count)
		count = gmem_hands_run(&transfer->hands, store_ready, transfer, count);
	if (count)
		take_ready(transfer, restore, count);
	return count > 0;
}

static int restore_step(struct gmem_transfer *transfer, bool wait)
{
	struct restore *restore = transfer->state;

	if (restore->data)
		return store_data(transfer, restore);
	if (restore->at_end)
		return finish(transfer, restore, wait);
	return restore_many(transfer, restore, wait) ? 0 : restore_next(transfer, restore, wait);
}

static void restore_end(struct gmem_transfer *transfer)
{
	struct restore *restore = transfer->state;

	gmem_image_layout_free(&restore->layout);
	free(restore->many);
}

/* ---- beginning ---- */

static int take_target(struct gmem_transfer *transfer, const struct gmem_io_params *params)
{
	struct gmem_leased_memory *memory = &transfer->memory;
	uint64_t bytes, all;
	int err;

	err = gmem_leased_memory_take(transfer->vm, 0, UINT64_MAX, GMEM_USE_SAVE,
				      "gmem_vm_restore", memory);
	if (err || !params->kind.has_size)
		return err;

	/* An image has little but the data, and the file may have more than the image. */
	bytes = gmem_transfer_file_bytes(params);
	all = gmem_leased_memory_bytes(memory);
	return gmem_leased_memory_check_fits(memory, bytes < all ? bytes : all);
}

static int begin(struct gmem_vm *vm, int fd, const struct gmem_transfer_opts *user_opts,
		 uint64_t flags, struct wanted_info *wanted, bool waits, struct gmem_transfer **ret)
{
	struct gmem_transfer *transfer;
	struct gmem_transfer_opts opts;
	struct gmem_io_params params;
	struct restore *restore;
	int err;

	err = gmem_transfer_check(user_opts, flags, &opts);
	if (!err)
		err = gmem_transfer_inspect(&opts, fd, false, opts.image_offset, &params);
	if (!err && opts.flags & GMEM_TRANSFER_VERIFY && !params.kind.has_offsets)
		err = gmem_fail(-ESPIPE, "fd %d can be read only once: it cannot be verified first", fd);
	if (!err)
		err = gmem_transfer_new(vm, &opts, sizeof(*restore), &transfer);
	if (err)
		return err;

	params.whole = true;
	params.waits = waits;
	if (wanted)
		params.workers = 0;
	params.end = params.kind.has_size ? params.kind.size : UINT64_MAX;
	if (params.end < params.position)
		params.end = params.position;
	if (vm)
		err = take_target(transfer, &params);
	if (!err)
		err = gmem_io_open(&transfer->io, &params);
	if (err) {
		gmem_transfer_free(transfer);
		return err;
	}

	restore = transfer->state;
	restore->wanted = wanted;
	restore->start = opts.image_offset;
	restore->verify_first = opts.flags & GMEM_TRANSFER_VERIFY;
	restore->verify_only = !vm || restore->verify_first;
	transfer->step = restore_step;
	transfer->end = restore_end;
	/* Without that memory, one thread does it all. */
	if (transfer->io.workers)
		restore->many = malloc(sizeof(*restore->many));
	if (restore->many)
		gmem_transfer_begin_hands(transfer, &params);
	if (params.kind.has_size)
		transfer->total = (params.end - params.position) << restore->verify_first;
	*ret = transfer;
	return 0;
}

static int begin_restore(struct gmem_vm *vm, int fd, const struct gmem_transfer_opts *opts, bool waits,
			 struct gmem_transfer **ret)
{
	const uint64_t flags = GMEM_TRANSFER_NO_DIRECT | GMEM_TRANSFER_NO_RING |
			       GMEM_TRANSFER_OMIT_PRIVATE | GMEM_TRANSFER_LEAVE_REST |
			       GMEM_TRANSFER_VERIFY | GMEM_TRANSFER_UNCHECKED |
			       GMEM_TRANSFER_ALLOW_LOST;

	if (!vm || !ret)
		return gmem_fail(-EINVAL, "%s is NULL", vm ? "ret" : "vm");
	return begin(vm, fd, opts, flags, NULL, waits, ret);
}

GMEM_API int gmem_vm_restore_begin(struct gmem_vm *vm, int fd,
				   const struct gmem_transfer_opts *opts,
				   struct gmem_transfer **ret)
{
	return begin_restore(vm, fd, opts, false, ret);
}

GMEM_API int gmem_vm_restore(struct gmem_vm *vm, int fd, const struct gmem_transfer_opts *opts,
			     struct gmem_transfer_result *ret)
{
	struct gmem_transfer *transfer = NULL;
	int err = begin_restore(vm, fd, opts, true, &transfer);

	return gmem_transfer_run(err, transfer, ret);
}

/* Flags of transfers without a VM */
static const uint64_t of_an_image = GMEM_TRANSFER_NO_DIRECT | GMEM_TRANSFER_NO_RING | GMEM_TRANSFER_ALLOW_LOST;

GMEM_API int gmem_image_verify(int fd, const struct gmem_transfer_opts *opts,
			       struct gmem_transfer_result *ret)
{
	struct gmem_transfer *transfer = NULL;
	int err = begin(NULL, fd, opts, of_an_image, NULL, true, &transfer);

	return gmem_transfer_run(err, transfer, ret);
}

GMEM_API int gmem_image_info(int fd, const struct gmem_transfer_opts *opts,
			     struct gmem_image_summary *ret, struct gmem_image_region *regions,
			     size_t max)
{
	const size_t first_version = offsetof(struct gmem_image_summary, region_count) +
				     sizeof(ret->region_count);
	struct wanted_info wanted = { .info = ret, .regions = regions, .max = max };
	struct gmem_transfer *transfer = NULL;
	int err;

	if (!regions && max)
		return gmem_fail(-EINVAL, "regions is NULL and max is %zu", max);
	if (ret && ret->size < first_version)
		return gmem_fail(-EINVAL, "struct gmem_image_summary says its size is %zu bytes, at least %zu "
				 "expected", ret->size, first_version);
	err = begin(NULL, fd, opts, of_an_image, &wanted, true, &transfer);
	err = gmem_transfer_run(err, transfer, NULL);
	return err ? err : (int)wanted.count;
}
