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
#include "base/opts.h"
#include "base/part.h"
#include "region/vm_core.h"
#include "transfer/batch.h"
#include "transfer/chain.h"
#include "transfer/file_queue.h"
#include "transfer/image.h"
#include "transfer/image_layout.h"
#include "transfer/leased_memory.h"
#include "transfer/transfer.h"

/* Bytes made zero in one step */
#define CLEAR_STEP ((uint64_t)64 << 20)

/* No run ends further from its record's base, in pages: first and count have 32 bits each. */
#define MAX_RUN_END ((uint64_t)1 << 33)

/* Ranges of an image's lists compared with those of the one before it in one step */
#define COMPARE_STEP 16384

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

/* A record of data that any thread may store, and what is so when it and all before it are stored */
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

/*
 * LOOK: at the heads of a chain or a sequence. LISTS: those of the last image are compared with
 * the target. READ: all images. What cannot be read twice is only read.
 */
enum stage { LOOK, LISTS, READ };

/* What is so of the image's memory that is in none of its entries */
enum gaps {
	GAPS_ZERO,			/* it is zero */
	GAPS_KEPT,			/* it is as in the image before, which has all of it */
	GAPS_MIXED,			/* or zero, if that image does not have it */
};

struct restore {
	struct wanted_info *wanted;	/* read the lists alone, for this; or NULL */
	bool verify_only;		/* write nothing: no target, or first pass of verify_first */
	bool verify_first;		/* two passes: verify, then store */
	enum stage stage;
	struct gmem_chain chain;
	struct gmem_image_layout last;	/* of the last image, once it was compared with the target */
	struct many *many;		/* NULL: there is one thread */
	bool must_go;			/* the queue is to be moved to the chain's file, to this offset */
	uint64_t go_to;

	/* The image that is read, */
	struct gmem_image_origin origin;
	bool has_head;
	bool is_last;
	uint64_t records, pages;	/* complete ones, and blocks with contents in them */
	uint64_t bytes;			/* of them */
	uint32_t checksums;
	struct gmem_image_layout layout;
	bool at_end;			/* all records are read; the rest is to be cleared */
	uint64_t reached;		/* all memory below this gpa is done */

	/* the one before it, */
	struct gmem_image_layout before;
	bool has_before;
	enum gaps gaps;
	uint64_t compared;		/* that image has all of this one's memory below this gpa */

	/* and the record that is read */
	uint64_t used;			/* bytes of the current piece in front of it */
	const struct image_record *record;	/* checked; or NULL */
	struct gmem_image_cursor cursor;
	bool has_table;			/* that of runs which is being stored */
	struct gmem_image_table table;
	uint32_t run;			/* next run in table */
	uint64_t page;			/* next page in record */
};

/* ---- checking a record ---- */

static uint32_t version_of(const struct restore *restore, const struct image_record *record)
{
	return restore->has_head ? restore->origin.version : record->version;
}

/* No record crosses the end of a unit of the image. */
static uint64_t room_for_record(const struct restore *restore)
{
	return IMAGE_UNIT - restore->bytes % IMAGE_UNIT;
}

/* What the fields of a record must be wherever it is, */
static int check_form(const struct restore *restore, const struct image_record *record, uint64_t left)
{
	enum image_kind kind = gmem_image_kind(record->kind);
	uint64_t room = room_for_record(restore);
	int err;

	if (kind == IMAGE_KINDS && memcmp(record->kind, gmem_image_kinds[IMAGE_HEAD], 4) != 0)
		return gmem_image_bad(restore->records, "it is of no kind there is");
	err = kind == IMAGE_HEAD ? gmem_image_check_version(record) : 0;
	if (err)
		return err;
	if (record->size < IMAGE_BLOCK || record->size % IMAGE_BLOCK || record->size > room)
		return gmem_image_bad(restore->records, "it cannot have 0x%" PRIx32 " bytes, 0x%" PRIx64 " are there",
			   record->size, left < room ? left : room);
	/* A writer that died, or a full disk */
	if (record->size > left)
		return gmem_fail(-ENODATA, "the image ends in record %" PRIu64 ", after 0x%" PRIx64 " of its 0x%"
				 PRIx32 " bytes", restore->records, left, record->size);
	return 0;
}

/* and where it is */
static int check_place(const struct restore *restore, const struct image_record *record)
{
	enum image_kind kind = gmem_image_kind(record->kind);
	bool has_tables = version_of(restore, record) != IMAGE_VERSION;

	if (restore->has_head && record->id != restore->origin.id)
		return gmem_image_bad(restore->records, "it is another image's");
	if (record->number != restore->records || (restore->has_head && kind == IMAGE_HEAD))
		return gmem_image_bad(restore->records, "it is number %" PRIu64, record->number);
	if (kind != IMAGE_HEAD && record->version)
		return gmem_image_bad(restore->records, "a reserved field is not 0");
	if (kind == IMAGE_KINDS || (kind != IMAGE_HEAD && has_tables != (kind == IMAGE_PART)))
		return gmem_image_fail_kind(restore->records, record->kind);
	return 0;
}

static int check_record(const struct restore *restore, const struct image_record *record,
			uint64_t left)
{
	int err = check_form(restore, record, left);

	if (!err && gmem_image_checksum(record) != record->checksum)
		err = gmem_image_bad(restore->records, "its checksum does not agree with its contents");
	if (!err)
		err = check_place(restore, record);
	if (!err && version_of(restore, record) != IMAGE_VERSION)
		err = gmem_image_check_tables(record, record->size);
	return err;
}

/* ---- head ---- */

static bool wants_lists_alone(const struct restore *restore)
{
	return restore->wanted || restore->stage == LISTS;
}

static int check_privates(const struct gmem_transfer *transfer, const struct gmem_image_origin *origin)
{
	uint64_t pages = gmem_leased_memory_region_bytes(&transfer->memory) / IMAGE_BLOCK;

	if (origin->privates && !(transfer->opts.flags & GMEM_TRANSFER_OMIT_PRIVATE))
		return gmem_fail(-EACCES,
				 "%" PRIu64 " ranges were private and are not in the image: only without them "
				 "(GMEM_TRANSFER_OMIT_PRIVATE) can it be restored", origin->privates);
	if (origin->privates > pages)
		return gmem_fail(-ENOENT, "the image has %" PRIu64 " private ranges, the VM's memory only 0x%"
				 PRIx64 " pages", origin->privates, pages);
	return 0;
}

/* Look at all heads of a sequence before more of it is read, if it can be read twice. */
static bool must_look(const struct restore *restore, const struct gmem_image_origin *origin)
{
	return !restore->wanted && !restore->chain.has_looked && origin->flags & IMAGE_FOLLOWED &&
	       gmem_chain_file(&restore->chain)->kind.has_offsets;
}

static int read_head(struct gmem_transfer *transfer, struct restore *restore,
		     const struct image_record *record)
{
	struct gmem_image_origin origin;
	bool is_last;
	int err = gmem_image_read_origin(record, &origin);

	if (err)
		return err;
	if (must_look(restore, &origin)) {
		restore->stage = LOOK;
		return 0;
	}
	transfer->io.one = wants_lists_alone(restore);
	is_last = gmem_chain_is_last(&restore->chain, &origin);
	if (restore->stage == LISTS && (!is_last || origin.id != restore->chain.id))
		return gmem_image_bad(0, "it is another image's than before");
	if (transfer->vm && is_last)
		err = check_privates(transfer, &origin);
	if (!err && restore->stage != LISTS)
		err = gmem_chain_enter(&restore->chain, &origin);
	if (err)
		return err;

	transfer->image_id = origin.id;
	transfer->generation = origin.generation;
	restore->origin = origin;
	restore->is_last = is_last;
	restore->gaps = !origin.parent ? GAPS_ZERO : restore->has_before ? GAPS_MIXED : GAPS_KEPT;
	restore->layout.region_count = origin.regions;
	restore->layout.private_count = origin.privates;
	restore->layout.has_target = transfer->vm && is_last;
	restore->has_head = true;
	return 0;
}

/* ---- from image to image ---- */

static void go(struct restore *restore, uint64_t offset)
{
	restore->must_go = true;
	restore->go_to = offset;
}

static int go_now(struct gmem_transfer *transfer, struct restore *restore, bool wait)
{
	struct gmem_io_params params = *gmem_chain_file(&restore->chain);
	uint64_t end = gmem_chain_end(&restore->chain, restore->chain.entered - (restore->stage == LISTS));
	int err;

	params.position = restore->go_to;
	params.end = end < params.end ? end : params.end;
	transfer->io.one = wants_lists_alone(restore);
	err = gmem_io_switch(&transfer->io, &params, wait);
	if (err)
		return err == -EAGAIN ? err : gmem_transfer_fail_io(transfer, err);
	restore->used = 0;
	restore->must_go = false;
	return 0;
}

/* What was read last is the image before; the next one begins at the same place of the queue. */
static void start_image(struct gmem_transfer *transfer, struct restore *restore)
{
	gmem_image_layout_free(&restore->before);
	*restore = (struct restore){
		.wanted = restore->wanted,
		.verify_only = restore->verify_only,
		.verify_first = restore->verify_first,
		.stage = restore->stage,
		.chain = restore->chain,
		.last = restore->last,
		.many = restore->many,
		.before = restore->layout,
		.has_before = restore->has_head,
		.used = restore->used,
	};
	transfer->private_bytes = 0;
	transfer->left_out_bytes = 0;
}

/* Begin with the first image, of which nothing is known. */
static void start_over(struct gmem_transfer *transfer, struct restore *restore)
{
	gmem_image_layout_free(&restore->layout);
	restore->has_head = false;
	start_image(transfer, restore);
	gmem_chain_rewind(&restore->chain);
	go(restore, gmem_chain_file(&restore->chain)->position);
}

/* ---- lists ---- */

/* Find out whether the image before has all memory of this one, in steps as gmem_image_layout_end(). */
static bool compare_with_before(struct restore *restore)
{
	struct gmem_part part;

	for (unsigned int i = 0; i < COMPARE_STEP && restore->gaps == GAPS_MIXED; i++) {
		if (!gmem_image_layout_next_shared(&restore->layout, restore->compared, UINT64_MAX, &part))
			restore->gaps = GAPS_KEPT;
		else if (!gmem_image_layout_is_shared(&restore->before, part.start, part.last - part.start + 1))
			return true;
		else
			restore->compared = part.last + 1;
	}
	return restore->gaps != GAPS_MIXED;
}

/* The lists end: *@ret_all is false if this takes another step. */
static int end_lists(struct gmem_transfer *transfer, struct restore *restore, bool *ret_all)
{
	int err = gmem_image_layout_end(transfer, &restore->layout, restore->records);

	*ret_all = !err && restore->layout.is_complete &&
		   (wants_lists_alone(restore) || compare_with_before(restore));
	return err;
}

/* Does the record, of which only the beginning is known to be right, begin with what follows the lists? */
static bool begins_behind_lists(const struct restore *restore, const struct image_record *record)
{
	const struct image_table *table = (const void *)(record + 1);
	enum image_kind kind = gmem_image_kind(record->kind);

	if (restore->origin.version != IMAGE_VERSION)
		kind = kind == IMAGE_PART && record->count ? gmem_image_kind(table->kind) : IMAGE_KINDS;
	return kind == IMAGE_DATA || kind == IMAGE_LOST || kind == IMAGE_END;
}

static int tell_info(struct gmem_transfer *transfer, const struct restore *restore)
{
	struct wanted_info *wanted = restore->wanted;
	const struct gmem_image_layout *layout = &restore->layout;
	struct gmem_image_summary info = {
		.id = restore->origin.id,
		.page_size = restore->origin.page_size,
		.private_bytes = transfer->private_bytes,
		.left_out_bytes = transfer->left_out_bytes,
		.version = restore->origin.version,
		.region_count = (uint32_t)(layout->regions_read + layout->elsewhere_read),
		.parent = restore->origin.parent,
		.generation = restore->origin.generation,
		.flags = restore->origin.flags,
	};

	if (wanted->regions && info.region_count > wanted->max)
		return gmem_fail(-ENOSPC, "the image has %" PRIu32 " regions, there is room for %zu",
				 info.region_count, wanted->max);
	for (size_t i = 0; i < layout->regions_read; i++)
		info.memory_bytes += layout->regions[i].size;
	if (wanted->regions)
		gmem_image_layout_list(layout, wanted->regions);
	if (wanted->info)
		gmem_fill_result(wanted->info, &info, sizeof(info));
	wanted->count = info.region_count;
	transfer->is_done = true;
	return 0;
}

/* The lists are complete, and nobody wants more of this image now. */
static int use_lists(struct gmem_transfer *transfer, struct restore *restore)
{
	if (restore->wanted)
		return tell_info(transfer, restore);

	restore->last = restore->layout;
	restore->layout = (struct gmem_image_layout){ 0 };
	restore->stage = READ;
	start_over(transfer, restore);
	return 0;
}

/* ---- what the target has of an image ---- */

/*
 * Find the next part of [@start, @last] that is to be stored. Of the last image, that is all.
 * What an older one has elsewhere than the last, or if that is not known yet the target, is not
 * wanted.
 */
static bool next_wanted(const struct gmem_transfer *transfer, uint64_t start, uint64_t last,
			struct gmem_part *ret)
{
	const struct restore *restore = transfer->state;
	const struct gmem_leased_range *range;

	if (restore->last.is_complete && !restore->is_last)
		return gmem_image_layout_next_shared(&restore->last, start, last, ret);
	*ret = (struct gmem_part){ start, last };
	if (restore->is_last)
		return true;
	range = gmem_leased_memory_from(&transfer->memory, start);
	if (!range || range->gpa > last)
		return false;
	ret->start = range->gpa > start ? range->gpa : start;
	ret->last = range->gpa + (range->size - 1);
	ret->last = ret->last < last ? ret->last : last;
	return true;
}

static int store(struct gmem_transfer *transfer, struct gmem_host_look *look, uint64_t gpa,
		 const char *bytes, uint64_t size, struct gmem_stored *stored)
{
	struct gmem_part part = { .last = gpa - 1 };
	const struct restore *restore = transfer->state;
	uint64_t last = gpa + (size - 1);
	int err = 0;

	if (restore->verify_only) {
		stored->data += size;
		return 0;
	}
	while (!err && part.last != last && next_wanted(transfer, part.last + 1, last, &part))
		err = gmem_leased_memory_store(&transfer->memory, look, part.start, bytes + (part.start - gpa),
					       part.last - part.start + 1, stored);
	return err;
}

static int clear(struct gmem_transfer *transfer, struct gmem_host_look *look, uint64_t gpa, uint64_t size)
{
	struct gmem_part part = { .last = gpa - 1 };
	const struct restore *restore = transfer->state;
	uint64_t last = gpa + (size - 1);
	int err = 0;

	while (!restore->verify_only && !err && part.last != last &&
	       next_wanted(transfer, part.last + 1, last, &part))
		err = gmem_leased_memory_clear(&transfer->memory, look, part.start, part.last - part.start + 1);
	return err;
}

/* ---- data ---- */

/*
 * Check all runs of a table before any byte of it is stored; *@after: nothing below this gpa may
 * come any more.
 */
static int check_runs(const struct restore *restore, const struct gmem_image_table *table, uint64_t *after,
		      uint64_t *pages)
{
	size_t entry = table->kind == IMAGE_LOST ? sizeof(struct image_range) : sizeof(struct image_run);
	int err = 0;

	if (table->kind == IMAGE_LOST ? !gmem_image_has_entries(table, entry) : table->count > table->room / entry)
		return gmem_image_bad(restore->records, "%" PRIu32 " %s", table->count,
				      table->kind == IMAGE_LOST ? "lost ranges" : "runs");
	if (table->kind == IMAGE_DATA &&
	    (table->base % IMAGE_BLOCK || table->base > UINT64_MAX - MAX_RUN_END * IMAGE_BLOCK))
		return gmem_image_bad(restore->records, "%" PRIu32 " runs from gpa 0x%" PRIx64, table->count,
				      table->base);

	for (uint32_t i = 0; i < table->count && !err; i++) {
		struct gmem_image_run run = gmem_image_run_at(table, i);

		err = gmem_image_check_range(restore->records, run.gpa, run.size, *after);
		if (!err && !gmem_image_layout_is_shared(&restore->layout, run.gpa, run.size))
			err = gmem_image_bad(restore->records, "gpa 0x%" PRIx64 ", 0x%" PRIx64
				  " bytes, is not the image's memory", run.gpa, run.size);
		*after = run.gpa + run.size;
		*pages += run.kind == IMAGE_RUN_DATA ? run.size / IMAGE_BLOCK : 0;
	}
	return err;
}

/* That the contents of version 2 have the right size was checked for all tables together. */
static int check_data(const struct restore *restore, const struct image_record *record,
		      const struct gmem_image_table *table, uint64_t *after, uint64_t *pages)
{
	uint64_t before = *pages;
	int err = check_runs(restore, table, after, pages);

	if (!err && table->version == IMAGE_VERSION && (*pages - before + 1) * IMAGE_BLOCK != record->size)
		err = gmem_image_bad(restore->records, "0x%" PRIx64 " pages and 0x%" PRIx32 " bytes", *pages - before,
				     record->size);
	return err;
}

/* Find the next part of the image's memory in [@start, @last], none of it in an entry. */
static bool next_in_gap(const struct restore *restore, uint64_t start, uint64_t last,
			struct gmem_part *ret, bool *ret_is_zero)
{
	struct gmem_part old;

	*ret_is_zero = true;
	if (!gmem_image_layout_next_shared(&restore->layout, start, last, ret))
		return false;
	if (restore->gaps == GAPS_ZERO ||
	    !gmem_image_layout_next_shared(&restore->before, ret->start, ret->last, &old))
		return true;
	if (old.start > ret->start) {
		ret->last = old.start - 1;
	} else {
		ret->last = old.last;
		*ret_is_zero = false;
	}
	return true;
}

/* Clear memory below @end that the image has nothing for, up to a step's worth; false: done. */
static bool clear_some(struct gmem_transfer *transfer, struct restore *restore, uint64_t end,
		       int *ret_err)
{
	bool is_zero = false;
	struct gmem_part part;
	uint64_t size;

	for (unsigned int i = 0; i < COMPARE_STEP && !is_zero; i++) {
		if (restore->gaps == GAPS_KEPT || restore->reached == end ||
		    !next_in_gap(restore, restore->reached, end - 1, &part, &is_zero))
			return false;
		if (!is_zero)
			restore->reached = part.last + 1;
	}
	if (!is_zero)
		return true;

	/* An image can claim 2^64 bytes: to verify them is one addition. */
	size = part.last - part.start + 1;
	if (!restore->verify_only)
		size = size < CLEAR_STEP ? size : CLEAR_STEP;
	*ret_err = clear(transfer, transfer->memory.look, part.start, size);
	if (!*ret_err) {
		transfer->bytes.zero += size;
		restore->reached = part.start + size;
	}
	return true;
}

/* Clear what a run says, up to a step's worth. What was lost is counted apart. */
static int clear_run(struct gmem_transfer *transfer, struct restore *restore,
		     const struct gmem_image_run *run)
{
	uint64_t from = restore->reached > run->gpa ? restore->reached : run->gpa;
	uint64_t end = run->gpa + run->size, size = end - from;
	int err;

	if (!restore->verify_only)
		size = size < CLEAR_STEP ? size : CLEAR_STEP;
	err = clear(transfer, transfer->memory.look, from, size);
	if (err)
		return err;
	restore->reached = from + size;
	if (run->kind == IMAGE_RUN_ZEROS)
		transfer->bytes.zero += size;
	if (restore->reached < end)
		return 0;
	if (run->kind == IMAGE_RUN_LOST && !restore->verify_first)
		gmem_transfer_tell_lost(transfer, run->gpa, run->size);
	restore->run++;
	return 0;
}

static int store_run(struct gmem_transfer *transfer, struct restore *restore)
{
	struct gmem_image_run run = gmem_image_run_at(&restore->table, restore->run);
	const char *bytes = (const char *)restore->record + (1 + restore->page) * IMAGE_BLOCK;
	struct gmem_stored stored = { 0 };
	int err = 0;

	if (clear_some(transfer, restore, run.gpa, &err))
		return err;
	if (run.kind != IMAGE_RUN_DATA)
		return clear_run(transfer, restore, &run);
	err = store(transfer, transfer->memory.look, run.gpa, bytes, run.size, &stored);
	/* What a failure leaves of a run is stored, and counted, when it is repeated. */
	if (err)
		return err;

	transfer->bytes.data += stored.data;
	transfer->bytes.zero += stored.zero;
	restore->reached = run.gpa + run.size;
	restore->page += run.size / IMAGE_BLOCK;
	restore->run++;
	return 0;
}

/* ---- the tables of a record ---- */

static void count_record(struct restore *restore, const struct image_record *record)
{
	restore->records++;
	restore->bytes += record->size;
	restore->checksums = gmem_crc32c(restore->checksums, &record->checksum,
					 sizeof(record->checksum));
}

/* If that was the last table, the record is done. */
static void end_table(struct gmem_transfer *transfer, struct restore *restore)
{
	const struct image_record *record = restore->record;
	struct gmem_image_cursor next = restore->cursor;
	struct gmem_image_table table;

	restore->has_table = false;
	if (gmem_image_next_table(record, restore->origin.version, &next, &table))
		return;
	restore->pages += restore->page;
	count_record(restore, record);
	restore->used += record->size;
	if (restore->stage == READ)
		transfer->done += record->size;
	restore->record = NULL;
}

static int store_runs(struct gmem_transfer *transfer, struct restore *restore)
{
	int err = 0;

	/* Gaps may be long: end the step after one of CLEAR_STEP bytes. */
	while (restore->run < restore->table.count && !err) {
		uint64_t before = transfer->bytes.zero, lost = transfer->lost_bytes;

		err = store_run(transfer, restore);
		if (!err && transfer->bytes.zero - before + transfer->lost_bytes - lost >= CLEAR_STEP)
			return 0;
	}
	if (!err)
		end_table(transfer, restore);
	return err;
}

static int check_lost(const struct gmem_transfer *transfer, const struct restore *restore,
		      const struct gmem_image_table *table)
{
	struct gmem_image_run first;
	uint64_t after = restore->reached, pages = 0;
	int err = check_runs(restore, table, &after, &pages);

	if (err || transfer->opts.flags & GMEM_TRANSFER_ALLOW_LOST)
		return err;
	first = gmem_image_run_at(table, 0);
	return gmem_fail(-EHWPOISON, "the image has no contents for gpa 0x%" PRIx64 ", 0x%" PRIx64
			 " bytes, which the hardware had lost: only without them "
			 "(GMEM_TRANSFER_ALLOW_LOST) can it be restored", first.gpa, first.size);
}

static int read_end(struct restore *restore, const struct gmem_image_table *table)
{
	const struct image_record *record = restore->record;

	if (table->pages != restore->pages + restore->page || table->checksums != restore->checksums ||
	    (table->version == IMAGE_VERSION && (record->count || record->end.reserved)))
		return gmem_image_bad(restore->records, "the end does not agree with what was before it");

	restore->at_end = true;
	return 0;
}

static int read_runs(struct gmem_transfer *transfer, struct restore *restore,
		     const struct gmem_image_table *table)
{
	uint64_t after = restore->reached, pages = 0;
	int err = table->kind == IMAGE_LOST ? check_lost(transfer, restore, table)
					    : check_data(restore, restore->record, table, &after, &pages);

	if (err)
		return err;
	restore->has_table = true;
	restore->table = *table;
	restore->run = 0;
	return 0;
}

/* Use the next table of the record, or a step's worth of it. */
static int use_table(struct gmem_transfer *transfer, struct restore *restore)
{
	struct gmem_image_cursor next = restore->cursor;
	struct gmem_image_table table;
	bool is_list, all = true;
	int err = 0;

	if (!gmem_image_next_table(restore->record, restore->origin.version, &next, &table)) {
		end_table(transfer, restore);
		return 0;
	}
	is_list = table.kind == IMAGE_REGIONS || table.kind == IMAGE_ELSEWHERE || table.kind == IMAGE_PRIVATE;
	if (!is_list)
		err = end_lists(transfer, restore, &all);
	if (err || !all)
		return err;
	if (!is_list && wants_lists_alone(restore))
		return use_lists(transfer, restore);

	if (is_list)
		err = gmem_image_layout_read(transfer, &restore->layout, &table);
	else if (table.kind == IMAGE_END)
		err = read_end(restore, &table);
	else
		err = read_runs(transfer, restore, &table);
	if (err)
		return err;
	restore->cursor = next;
	if (!restore->has_table)
		end_table(transfer, restore);
	return 0;
}

/* ---- the end of an image ---- */

/* The first pass has verified all images. */
static void start_second_pass(struct gmem_transfer *transfer, struct restore *restore)
{
	restore->verify_first = false;
	restore->verify_only = false;
	transfer->bytes = (struct gmem_stored){ 0 };
	transfer->done = transfer->total / 2;	/* not all of the file need be an image */
	start_over(transfer, restore);
}

static int finish(struct gmem_transfer *transfer, struct restore *restore)
{
	int err = 0;

	if (clear_some(transfer, restore, UINT64_MAX, &err))
		return err;

	if (restore->origin.flags & IMAGE_FOLLOWED) {
		start_image(transfer, restore);
		/* The queue has ended: nothing was read ahead that is not of the image. */
		if (restore->chain.has_looked)
			go(restore, gmem_chain_end(&restore->chain, restore->chain.entered - 1));
	} else if (!restore->is_last) {
		start_image(transfer, restore);
		restore->chain.file++;
		go(restore, gmem_chain_file(&restore->chain)->position);
	} else if (restore->verify_first) {
		start_second_pass(transfer, restore);
	} else {
		transfer->done = transfer->total ? transfer->total : transfer->done;
		transfer->is_done = true;
	}
	return 0;
}

/* Look at some heads. After the last one, its lists are wanted, if there is a target. */
static int look(struct gmem_transfer *transfer, struct restore *restore)
{
	bool all;
	int err = gmem_chain_look(&restore->chain, transfer->io.small, &all);

	if (err || !all)
		return err;
	restore->stage = transfer->vm ? LISTS : READ;
	if (restore->stage == LISTS)
		go(restore, restore->chain.image);
	else
		start_over(transfer, restore);
	return 0;
}

/* ---- steps ---- */

static int no_end(const struct gmem_transfer *transfer, const struct restore *restore)
{
	return gmem_fail(-ENODATA, "the image ends after %" PRIu64 " records and 0x%" PRIx64
			 " bytes, and not where it should", restore->records,
			 transfer->io.file_bytes);
}

static int read_record(struct gmem_transfer *transfer, struct restore *restore,
		       const struct image_record *record, uint64_t left)
{
	bool all;
	int err;

	/* Who wants the lists alone has them by this record's beginning, be the rest damaged. */
	if (wants_lists_alone(restore) && restore->has_head && begins_behind_lists(restore, record)) {
		err = end_lists(transfer, restore, &all);
		return !err && all ? use_lists(transfer, restore) : err;
	}

	/* A small image is one record: if it is not all there, it is not that which is damaged. */
	if (version_of(restore, record) == IMAGE_VERSION_2 && record->size > left &&
	    record->size <= room_for_record(restore))
		return no_end(transfer, restore);
	err = check_record(restore, record, left);
	if (!err && gmem_image_kind(record->kind) == IMAGE_HEAD)
		err = read_head(transfer, restore, record);
	if (err || restore->stage == LOOK)
		return err;

	restore->record = record;
	restore->cursor = (struct gmem_image_cursor){ 0 };
	restore->page = 0;
	return use_table(transfer, restore);
}

/*
 * The next record may go on behind the piece: more is to be read of a pipe, or a file from the
 * record on, since its units are those of another image. false: what can be had is there.
 */
static bool get_rest(struct gmem_transfer *transfer, struct restore *restore,
		     const struct gmem_io_piece *piece)
{
	const struct image_record *record = (const void *)(piece->data + restore->used);
	uint64_t room = room_for_record(restore);
	uint64_t size = version_of(restore, record) == IMAGE_VERSION ? IMAGE_UNIT : record->size;

	if (transfer->io.serial)
		return size <= room && gmem_io_extend(&transfer->io, restore->used + size);
	if (record->size > room || restore->used + record->size <= piece->size || !restore->used)
		return false;
	go(restore, piece->offset + restore->used);
	return true;
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
	/* The file may have become shorter since what is used was read. */
	if (!restore->has_head && piece.size >= restore->used)
		err = gmem_image_check_beginning(piece.offset + restore->used, piece.data + restore->used,
						 piece.size - restore->used);
	if (err)
		return err;
	if (piece.size < restore->used + IMAGE_BLOCK)
		return no_end(transfer, restore);
	if (get_rest(transfer, restore, &piece))
		return 0;
	return read_record(transfer, restore, (const void *)(piece.data + restore->used),
			   piece.size - restore->used);
}

/* ---- data records, by several threads ---- */

static bool clear_gap(struct gmem_transfer *transfer, const struct gmem_hand *hand, uint64_t start,
		      uint64_t end, struct gmem_stored *stored)
{
	const struct restore *restore = transfer->state;
	struct gmem_part part;

	while (restore->gaps == GAPS_ZERO && start < end &&
	       gmem_image_layout_next_shared(&restore->layout, start, end - 1, &part)) {
		if (clear(transfer, hand->look, part.start, part.last - part.start + 1))
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

/* Store a table of runs; *@bytes moves behind their contents. */
static bool store_table(struct gmem_transfer *transfer, const struct gmem_hand *hand,
			struct ready_record *ready, const struct gmem_image_table *table, const char **bytes)
{
	for (uint32_t i = 0; i < table->count; i++) {
		struct gmem_image_run run = gmem_image_run_at(table, i);

		if (!clear_gap(transfer, hand, ready->from, run.gpa, &ready->stored))
			return false;
		if (run.kind == IMAGE_RUN_ZEROS) {
			if (clear(transfer, hand->look, run.gpa, run.size))
				return false;
			ready->stored.zero += run.size;
		} else {
			if (store(transfer, hand->look, run.gpa, *bytes, run.size, &ready->stored))
				return false;
			*bytes += run.size;
		}
		ready->from = run.gpa + run.size;
	}
	return true;
}

/* The records around it may turn out to be damaged. Each has what was checked, and nothing else. */
static bool store_ready(void *data, struct gmem_hand *hand, size_t index)
{
	struct gmem_transfer *transfer = data;
	struct restore *restore = transfer->state;
	struct ready_record *ready = &restore->many->ready[index];
	struct gmem_image_cursor cursor = { 0 };
	const struct image_record *record;
	struct gmem_image_table table;
	const char *bytes;

	gmem_transfer_come(transfer, hand, ready->from);
	record = get_record(transfer, hand, ready);
	bytes = (const char *)record + IMAGE_BLOCK;
	if (!record || gmem_image_checksum(record) != record->checksum)
		return false;
	while (gmem_image_next_table(record, restore->origin.version, &cursor, &table))
		if (!store_table(transfer, hand, ready, &table, &bytes))
			return false;
	return true;
}

/* Are the tables all of data, and right after all that @walk has seen? Count what is zero in them. */
static bool walk_tables(struct restore *walk, const struct image_record *record, uint64_t *zero)
{
	uint64_t from = walk->reached, pages = walk->pages;
	struct gmem_image_cursor cursor = { 0 };
	struct gmem_image_table table;

	while (gmem_image_next_table(record, walk->origin.version, &cursor, &table)) {
		if (table.kind != IMAGE_DATA || check_data(walk, record, &table, &walk->reached, &walk->pages))
			return false;
		for (uint32_t i = 0; i < table.count; i++) {
			struct gmem_image_run run = gmem_image_run_at(&table, i);

			*zero += run.kind == IMAGE_RUN_ZEROS ? run.size : 0;
		}
	}
	if (walk->gaps == GAPS_ZERO)
		*zero = walk->reached - from - (walk->pages - pages) * IMAGE_BLOCK;
	return true;
}

/*
 * Check a record, of which the first @there bytes are there, after all that @walk has seen; false:
 * it is for restore_next().
 */
static bool get_ready(struct restore *walk, const struct image_record *record, uint64_t left,
		      uint64_t there, struct ready_record *ready)
{
	const struct restore before = *walk;
	uint64_t zero = 0;

	if (check_form(walk, record, left) || check_place(walk, record))
		return false;
	if (walk->origin.version != IMAGE_VERSION && gmem_image_check_tables(record, there))
		return false;
	if (!walk_tables(walk, record, &zero))
		return false;
	/* Much to clear takes steps of its own. */
	if (!walk->verify_only && zero > CLEAR_STEP)
		return false;
	count_record(walk, record);
	*ready = (struct ready_record){ .head = record, .from = before.reached, .pages = walk->pages,
					.reached = walk->reached, .checksums = walk->checksums };
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
			if (!head || !get_ready(&walk, head, unit->size - at,
						unit->is_read ? unit->size - at : IMAGE_BLOCK, ready))
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
		restore->bytes += ready[i].head->size;
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

	if (!restore->many || !restore->layout.is_complete || restore->gaps == GAPS_MIXED)
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

	if (restore->must_go)
		return go_now(transfer, restore, wait);
	if (restore->stage == LOOK)
		return look(transfer, restore);
	if (restore->record)
		return restore->has_table ? store_runs(transfer, restore) : use_table(transfer, restore);
	if (restore->at_end)
		return finish(transfer, restore);
	return restore_many(transfer, restore, wait) ? 0 : restore_next(transfer, restore, wait);
}

static void restore_end(struct gmem_transfer *transfer)
{
	struct restore *restore = transfer->state;

	gmem_image_layout_free(&restore->layout);
	gmem_image_layout_free(&restore->before);
	gmem_image_layout_free(&restore->last);
	gmem_chain_free(&restore->chain);
	free(restore->many);
}

/* ---- beginning ---- */

/* What all files of a chain have together, as far as it is known */
static uint64_t sum_of(const struct gmem_chain *chain, uint64_t (*bytes)(const struct gmem_io_params *))
{
	uint64_t sum = 0, more;

	for (uint32_t i = 0; i < chain->count; i++) {
		more = bytes(&chain->files[i]);
		sum = sum + more < sum ? UINT64_MAX : sum + more;
	}
	return sum;
}

static uint64_t size_of(const struct gmem_io_params *file)
{
	return file->kind.has_size ? file->end - file->position : 0;
}

static int take_target(struct gmem_transfer *transfer, const struct gmem_chain *chain)
{
	struct gmem_leased_memory *memory = &transfer->memory;
	uint64_t bytes, all;
	int err;

	err = gmem_leased_memory_take(transfer->vm, 0, UINT64_MAX, GMEM_USE_SAVE,
				      "gmem_vm_restore", memory);
	bytes = sum_of(chain, gmem_transfer_bytes_to_read);
	if (err || bytes == UINT64_MAX)
		return err;

	/* An image has little but the data, and the file may have more than the image. */
	all = gmem_leased_memory_bytes(memory);
	return gmem_leased_memory_check_fits(memory, bytes < all ? bytes : all);
}

/* The buffers are those for the largest file of a chain. */
static int open_queue(struct gmem_transfer *transfer, struct gmem_chain *chain, bool waits, bool many)
{
	struct gmem_io_params *largest = &chain->files[0];

	for (uint32_t i = 0; i < chain->count; i++) {
		chain->files[i].waits = waits;
		chain->files[i].workers = many ? chain->files[i].workers : 0;
		if (size_of(&chain->files[i]) > size_of(largest))
			largest = &chain->files[i];
	}
	return gmem_io_open(&transfer->io, largest);
}

static int begin(struct gmem_vm *vm, int fd, const struct gmem_transfer_opts *user_opts,
		 uint64_t flags, struct wanted_info *wanted, bool waits, struct gmem_transfer **ret)
{
	struct gmem_transfer *transfer;
	struct gmem_transfer_opts opts;
	struct restore *restore;
	int err;

	err = gmem_transfer_check(user_opts, flags, &opts);
	if (!err && wanted && opts.parents)
		err = gmem_fail(-EINVAL, "parents are for another call: one image is read");
	if (!err)
		err = gmem_transfer_new(vm, &opts, sizeof(*restore), &transfer);
	if (err)
		return err;

	restore = transfer->state;
	transfer->end = restore_end;
	err = gmem_chain_new(&restore->chain, &opts, fd);
	if (!err && vm)
		err = take_target(transfer, &restore->chain);
	if (!err)
		err = open_queue(transfer, &restore->chain, waits, !wanted);
	if (err) {
		gmem_transfer_free(transfer);
		return err;
	}

	restore->wanted = wanted;
	restore->verify_first = opts.flags & GMEM_TRANSFER_VERIFY;
	restore->verify_only = !vm || restore->verify_first;
	restore->stage = opts.parents ? LOOK : READ;
	restore->chain.may_begin_inside = !vm;
	/* What the head says comes first: that may be to go elsewhere. */
	transfer->io.one = true;
	transfer->step = restore_step;
	/* Without that memory, one thread does it all. */
	if (transfer->io.workers)
		restore->many = malloc(sizeof(*restore->many));
	if (restore->many)
		gmem_transfer_begin_hands(transfer, transfer->io.workers,
					  sum_of(&restore->chain, gmem_transfer_bytes_to_read));
	transfer->total = sum_of(&restore->chain, size_of) << restore->verify_first;
	*ret = transfer;
	return 0;
}

static int begin_restore(struct gmem_vm *vm, int fd, const struct gmem_transfer_opts *opts, bool waits,
			 struct gmem_transfer **ret)
{
	const uint64_t flags = GMEM_TRANSFER_OMIT_PRIVATE | GMEM_TRANSFER_LEAVE_REST |
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
static const uint64_t of_an_image = GMEM_TRANSFER_ALLOW_LOST;

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
	struct wanted_info wanted = { .info = ret, .regions = regions, .max = max };
	struct gmem_transfer *transfer = NULL;
	int err;

	if (!regions && max)
		return gmem_fail(-EINVAL, "regions is NULL and max is %zu", max);
	err = ret ? GMEM_CHECK_RESULT(gmem_image_summary, ret, region_count) : 0;
	if (err)
		return err;
	err = begin(NULL, fd, opts, of_an_image, &wanted, true, &transfer);
	err = gmem_transfer_run(err, transfer, NULL);
	return err ? err : (int)wanted.count;
}
