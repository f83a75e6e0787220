/* SPDX-License-Identifier: MIT */
/*
 * No field of the image is trusted. A record is used only if its checksum is right, and
 * an address only if it is in the image's list of regions, which is compared with the
 * target first. The image is complete only if its last record agrees with all records
 * before it.
 *
 * Lists are allocated as entries arrive, not by the counts in the head, and an entry is only
 * kept if the target can have it: a region lies in the target's, and a private range in a
 * region. So the list of private ranges has an entry for two pages of the target at most.
 * Without a target there is IMAGE_MAX_PRIVATES.
 *
 * A file that others write can change between the two passes of GMEM_TRANSFER_VERIFY. The
 * second pass checks all that the first did.
 */
#include "transfer/restore.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/crc32c.h"
#include "base/error.h"
#include "base/kind.h"
#include "base/part.h"
#include "region/vm_core.h"
#include "transfer/file_queue.h"
#include "transfer/image.h"
#include "transfer/leased_memory.h"
#include "transfer/transfer.h"

/* Bytes made zero in one step */
#define CLEAR_STEP ((uint64_t)64 << 20)

/* Ranges compared with the target in one step */
#define CHECK_STEP 16384

/* No run ends further from its record's base, in pages: first and count have 32 bits each. */
#define MAX_RUN_END ((uint64_t)1 << 33)

struct restore {
	bool verify_only;		/* write nothing: no target, or first pass of verify_first */
	bool verify_first;		/* two passes: verify, then store */
	uint64_t start;			/* offset of the image in the file */

	uint64_t id, records, pages;
	uint32_t checksums;
	uint64_t region_count, private_count;	/* according to the head */
	struct image_region *regions;
	struct image_range *privates;
	size_t regions_read;
	struct image_elsewhere *elsewhere;
	size_t elsewhere_read, elsewhere_room;
	uint64_t privates_read;
	size_t private_ranges;		/* entries in privates: ranges that touch are one */
	size_t region_room, private_room;
	bool has_head, has_tables;
	uint64_t checked;		/* the target has the image's memory below this gpa */

	uint64_t used;			/* bytes of the current piece that are done */
	const struct image_record *data;	/* the record being stored, or NULL */
	uint32_t run;			/* next run in data */
	uint64_t page;			/* next page in data */
	uint64_t reached;		/* all memory below this gpa is done */
	uint64_t lost_end;		/* no data may come below this gpa: it was lost */
	bool at_end;			/* all records are read; the rest is to be cleared */
};

/* ---- ranges ---- */

/* Find the first entry that ends at or after @gpa. */
static size_t range_at(const struct image_range *ranges, size_t count, uint64_t gpa)
{
	size_t low = 0, high = count, middle;

	while (low < high) {
		middle = low + (high - low) / 2;
		if (ranges[middle].gpa + (ranges[middle].size - 1) < gpa)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static size_t region_at(const struct restore *restore, uint64_t gpa)
{
	size_t low = 0, high = restore->regions_read, middle;

	while (low < high) {
		middle = low + (high - low) / 2;
		if (restore->regions[middle].gpa + (restore->regions[middle].size - 1) < gpa)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/*
 * Find the next shared range of the image's memory in [@start, @last]; false if there
 * is none.
 */
static bool next_shared(const struct restore *restore, uint64_t start, uint64_t last,
			struct gmem_part *ret)
{
	for (;;) {
		size_t r = region_at(restore, start), p;
		const struct image_region *region;
		const struct image_range *range;
		uint64_t end;

		if (r == restore->regions_read || restore->regions[r].gpa > last)
			return false;
		region = &restore->regions[r];
		start = region->gpa > start ? region->gpa : start;
		end = region->gpa + (region->size - 1);
		end = end < last ? end : last;

		p = range_at(restore->privates, restore->private_ranges, start);
		if (p == restore->private_ranges || restore->privates[p].gpa > end) {
			*ret = (struct gmem_part){ start, end };
			return true;
		}
		range = &restore->privates[p];
		if (range->gpa > start) {
			*ret = (struct gmem_part){ start, range->gpa - 1 };
			return true;
		}
		/* The private range ends in a region, so its end does not wrap around. */
		start = range->gpa + range->size;
		if (start > last)
			return false;
	}
}

/* Check that the whole range is in the image's regions and not private. */
static bool is_shared(const struct restore *restore, uint64_t gpa, uint64_t size)
{
	uint64_t last = gpa + (size - 1);
	struct gmem_part part;

	while (next_shared(restore, gpa, last, &part) && part.start == gpa) {
		if (part.last == last)
			return true;
		gpa = part.last + 1;
	}
	return false;
}

/* ---- checking a record ---- */

__attribute__((format(printf, 2, 3)))
static int bad(const struct restore *restore, const char *format, ...)
{
	char what[160];
	va_list args;

	va_start(args, format);
	vsnprintf(what, sizeof(what), format, args);
	va_end(args);
	return gmem_fail(-EBADMSG, "record %" PRIu64 " of the image: %s", restore->records, what);
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

static int check_record(const struct restore *restore, const struct image_record *record,
			uint64_t left)
{
	enum image_kind kind = kind_of(record);

	if (!restore->has_head && kind != IMAGE_HEAD)
		return bad(restore, "an image does not begin like this");
	if (kind == IMAGE_KINDS && memcmp(record->kind, gmem_image_kinds[IMAGE_HEAD], 4) != 0)
		return bad(restore, "it is of no kind there is");
	if (kind == IMAGE_HEAD && record->version != IMAGE_VERSION)
		return gmem_fail(-EOPNOTSUPP, "the image is of version %" PRIu32 ", libgmem %s reads %u",
				 record->version, gmem_version(), IMAGE_VERSION);
	if (record->size < IMAGE_BLOCK || record->size % IMAGE_BLOCK || record->size > left)
		return bad(restore, "it cannot have 0x%" PRIx32 " bytes, 0x%" PRIx64 " are there",
			   record->size, left);
	if (gmem_image_checksum(record) != record->checksum)
		return bad(restore, "its checksum does not agree with its contents");
	if (restore->has_head && record->id != restore->id)
		return bad(restore, "it is another image's");
	if (record->number != restore->records || (restore->has_head && kind == IMAGE_HEAD))
		return bad(restore, "it is number %" PRIu64, record->number);
	if (kind != IMAGE_HEAD && record->version)
		return bad(restore, "a reserved field is not 0");
	return kind == IMAGE_KINDS ? fail_unknown_kind(restore, record) : 0;
}

/* ---- head and tables ---- */

static int read_head(struct gmem_transfer *transfer, struct restore *restore,
		     const struct image_record *record)
{
	uint64_t pages = gmem_leased_memory_region_bytes(&transfer->memory) / IMAGE_BLOCK;
	uint64_t page = record->head.page_size;

	if (page < IMAGE_BLOCK || page & (page - 1))
		return bad(restore, "a page has 0x%" PRIx64 " bytes", page);
	if (record->head.regions > IMAGE_MAX_REGIONS)
		return bad(restore, "%" PRIu64 " regions, at most %u may be listed",
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
	restore->region_count = record->head.regions;
	restore->private_count = record->head.privates;
	restore->has_head = true;
	return 0;
}

/*
 * Make room for @more entries, which are in the record at hand: a count in the head alone
 * makes no room.
 */
static int make_room(void **entries, size_t *room, size_t count, size_t more, size_t size)
{
	size_t want = count + more > 2 * *room ? count + more : 2 * *room;
	void *new;

	if (count + more <= *room)
		return 0;

	new = realloc(*entries, want * size);
	if (!new)
		return gmem_fail(-ENOMEM, "no memory for %zu entries of the image", want);
	*entries = new;
	*room = want;
	return 0;
}

static int check_range(const struct restore *restore, uint64_t gpa, uint64_t size, uint64_t after)
{
	if (gpa + size <= gpa || gpa % IMAGE_BLOCK || size % IMAGE_BLOCK)
		return bad(restore, "gpa 0x%" PRIx64 ", 0x%" PRIx64 " bytes, is no range", gpa, size);
	if (gpa < after)
		return bad(restore, "gpa 0x%" PRIx64 " comes after 0x%" PRIx64, gpa, after);
	return 0;
}

static bool fits(const struct image_record *record, size_t entry_size)
{
	return record->count &&
	       record->count <= (record->size - sizeof(*record)) / entry_size;
}

static int check_target_has(const struct gmem_transfer *transfer, const struct image_region *region)
{
	const struct gmem_leased_region *other;
	uint64_t reach;

	if (!transfer->vm)
		return 0;
	reach = gmem_leased_memory_region_reach(&transfer->memory, region->gpa, region->size);
	if (reach >= region->size)
		return 0;
	other = gmem_leased_memory_elsewhere(&transfer->memory, region->gpa + reach);
	if (other)
		return gmem_fail(-ENOENT, "the image has contents for gpa 0x%" PRIx64 " up to 0x%" PRIx64
				 ", the VM has memory of kind \"%s\" at 0x%" PRIx64 ", which is not restored",
				 region->gpa, region->gpa + (region->size - 1), gmem_kind_name(other->kind),
				 region->gpa + reach);
	return gmem_fail(-ENOENT, "the image has memory at gpa 0x%" PRIx64 " up to 0x%" PRIx64
			 ", the VM's memory ends at 0x%" PRIx64, region->gpa,
			 region->gpa + (region->size - 1), region->gpa + reach);
}

static int read_regions(const struct gmem_transfer *transfer, struct restore *restore,
			const struct image_record *record)
{
	const struct image_region *entries = (const void *)(record + 1);
	uint64_t after = 0;
	int err;

	if (!fits(record, sizeof(*entries)) ||
	    record->count > restore->region_count - restore->regions_read)
		return bad(restore, "%" PRIu32 " regions", record->count);
	err = make_room((void **)&restore->regions, &restore->region_room, restore->regions_read,
			record->count, sizeof(*entries));

	for (uint32_t i = 0; i < record->count && !err; i++) {
		if (restore->regions_read) {
			const struct image_region *last = &restore->regions[restore->regions_read - 1];

			after = last->gpa + last->size;
		}
		err = check_range(restore, entries[i].gpa, entries[i].size, after);
		if (!err && !gmem_backing_name(entries[i].backing))
			err = bad(restore, "%" PRIu32 " is no way of backing", entries[i].backing);
		if (!err)
			err = check_target_has(transfer, &entries[i]);
		if (!err)
			restore->regions[restore->regions_read++] = entries[i];
	}
	return err;
}

/* ---- regions whose contents are elsewhere ---- */

/* Where the VM's memory of this kind and identity ends, from the region's start on */
static uint64_t elsewhere_reach(const struct gmem_leased_memory *memory,
				const struct image_elsewhere *region)
{
	const struct gmem_leased_region *part;
	uint64_t size = 0;

	while (size < region->size &&
	       (part = gmem_leased_memory_elsewhere(memory, region->gpa + size)) != NULL &&
	       part->kind == region->kind &&
	       (!region->identity || part->identity == region->identity))
		size = part->gpa - region->gpa + part->size;
	return size;
}

static int fail_elsewhere(const struct gmem_leased_memory *memory,
			  const struct image_elsewhere *region, uint64_t reach)
{
	const struct gmem_leased_region *part = gmem_leased_memory_elsewhere(memory, region->gpa + reach);
	const char *name = gmem_kind_name(region->kind);
	char what[96];

	if (!part)
		snprintf(what, sizeof(what), "no memory of that kind");
	else if (part->kind != region->kind)
		snprintf(what, sizeof(what), "memory of kind \"%s\"", gmem_kind_name(part->kind));
	else
		snprintf(what, sizeof(what), "one of identity 0x%" PRIx64, part->identity);
	return gmem_fail(-ENOENT, "the saved VM had memory of kind \"%s\", identity 0x%" PRIx64
			 ", at gpa 0x%" PRIx64 " up to 0x%" PRIx64 ", which is not in the image; at gpa 0x%"
			 PRIx64 " this VM has %s", name, region->identity, region->gpa,
			 region->gpa + (region->size - 1), region->gpa + reach, what);
}

static int check_target_has_elsewhere(const struct gmem_transfer *transfer,
				      const struct image_elsewhere *region)
{
	uint64_t reach;

	if (!transfer->vm || transfer->opts.flags & GMEM_TRANSFER_LEAVE_REST)
		return 0;
	reach = elsewhere_reach(&transfer->memory, region);
	return reach < region->size ? fail_elsewhere(&transfer->memory, region, reach) : 0;
}

static bool overlaps_a_region(const struct restore *restore, const struct image_elsewhere *region)
{
	size_t r = region_at(restore, region->gpa);

	return r < restore->regions_read &&
	       restore->regions[r].gpa <= region->gpa + (region->size - 1);
}

static int check_elsewhere(const struct gmem_transfer *transfer, const struct restore *restore,
			   const struct image_elsewhere *region)
{
	const struct image_elsewhere *last = restore->elsewhere_read
						     ? &restore->elsewhere[restore->elsewhere_read - 1]
						     : NULL;
	int err = check_range(restore, region->gpa, region->size, last ? last->gpa + last->size : 0);

	if (err)
		return err;
	if (!gmem_kind_name(region->kind) || gmem_kind_has(region->kind, GMEM_USE_SAVE))
		return bad(restore, "%" PRIu32 " is no kind of memory whose contents are elsewhere",
			   region->kind);
	if (region->reserved)
		return bad(restore, "a reserved field is not 0");
	if (overlaps_a_region(restore, region))
		return bad(restore, "gpa 0x%" PRIx64 ", whose contents are elsewhere, is in a region",
			   region->gpa);
	return check_target_has_elsewhere(transfer, region);
}

static int read_elsewhere(struct gmem_transfer *transfer, struct restore *restore,
			  const struct image_record *record)
{
	const struct image_elsewhere *entries = (const void *)(record + 1);
	int err;

	if (!fits(record, sizeof(*entries)) ||
	    record->count > IMAGE_MAX_REGIONS - restore->elsewhere_read)
		return bad(restore, "%" PRIu32 " regions whose contents are elsewhere", record->count);
	if (restore->regions_read != restore->region_count)
		return bad(restore, "the list of regions is not complete");
	err = make_room((void **)&restore->elsewhere, &restore->elsewhere_room, restore->elsewhere_read,
			record->count, sizeof(*entries));

	for (uint32_t i = 0; i < record->count && !err; i++) {
		err = check_elsewhere(transfer, restore, &entries[i]);
		if (!err)
			restore->elsewhere[restore->elsewhere_read++] = entries[i];
		if (!err)
			transfer->left_out_bytes += entries[i].size;
	}
	return err;
}

static bool is_elsewhere(const struct restore *restore, uint64_t gpa, uint64_t *ret_last)
{
	size_t low = 0, high = restore->elsewhere_read, middle;

	while (low < high) {
		middle = low + (high - low) / 2;
		*ret_last = restore->elsewhere[middle].gpa + (restore->elsewhere[middle].size - 1);
		if (*ret_last < gpa)
			low = middle + 1;
		else if (restore->elsewhere[middle].gpa > gpa)
			high = middle;
		else
			return true;
	}
	return false;
}

/* That kind and identity agree was seen when the image's entries were read. */
static int check_image_has_elsewhere(const struct gmem_leased_memory *memory,
				     const struct restore *restore)
{
	for (size_t i = 0; i < memory->elsewhere_count; i++) {
		const struct gmem_leased_region *region = &memory->elsewhere[i];
		uint64_t at = region->gpa, last = region->gpa + (region->size - 1), end;

		for (; at <= last; at = end + 1)
			if (!is_elsewhere(restore, at, &end))
				return gmem_fail(-EEXIST, "the VM has memory of kind \"%s\" at gpa 0x%" PRIx64
						 " that the image does not have",
						 gmem_kind_name(region->kind), at);
	}
	return 0;
}

/* ---- private ranges ---- */

static bool is_in_a_region(const struct restore *restore, const struct image_range *range)
{
	size_t r = region_at(restore, range->gpa);

	return r < restore->regions_read && restore->regions[r].gpa <= range->gpa &&
	       range->gpa + (range->size - 1) <=
		       restore->regions[r].gpa + (restore->regions[r].size - 1);
}

/* Keep a range that comes after all others. */
static int add_private(const struct gmem_transfer *transfer, struct restore *restore,
		       const struct image_range *range)
{
	struct image_range *last = restore->private_ranges
					   ? &restore->privates[restore->private_ranges - 1] : NULL;
	int err;

	if (last && last->gpa + last->size == range->gpa) {
		last->size += range->size;
		return 0;
	}
	if (!transfer->vm && restore->private_ranges == IMAGE_MAX_PRIVATES)
		return gmem_fail(-ENOMEM, "the image has more than %zu private ranges: only together with "
				 "the VM can it be verified", IMAGE_MAX_PRIVATES);
	err = make_room((void **)&restore->privates, &restore->private_room, restore->private_ranges,
			1, sizeof(*range));
	if (!err)
		restore->privates[restore->private_ranges++] = *range;
	return err;
}

static int read_privates(struct gmem_transfer *transfer, struct restore *restore,
			 const struct image_record *record)
{
	const struct image_range *entries = (const void *)(record + 1);
	uint64_t after = 0;
	int err = 0;

	if (!fits(record, sizeof(*entries)) ||
	    record->count > restore->private_count - restore->privates_read)
		return bad(restore, "%" PRIu32 " private ranges", record->count);

	for (uint32_t i = 0; i < record->count && !err; i++) {
		if (restore->private_ranges) {
			const struct image_range *last = &restore->privates[restore->private_ranges - 1];

			after = last->gpa + last->size;
		}
		err = check_range(restore, entries[i].gpa, entries[i].size, after);
		if (!err && !is_in_a_region(restore, &entries[i]))
			err = bad(restore, "gpa 0x%" PRIx64 " is private and in no region",
				  entries[i].gpa);
		if (!err)
			err = add_private(transfer, restore, &entries[i]);
		if (err)
			break;
		restore->privates_read++;
		transfer->private_bytes += entries[i].size;
	}
	return err;
}

/* ---- image and target ---- */

/* Compares CHECK_STEP ranges at most; *@ret_all: these were the last. */
static int check_target_has_all(const struct gmem_leased_memory *memory, struct restore *restore,
				bool *ret_all)
{
	struct gmem_part part;
	uint64_t reach;

	*ret_all = false;
	for (unsigned int i = 0; i < CHECK_STEP; i++) {
		if (!next_shared(restore, restore->checked, UINT64_MAX, &part)) {
			*ret_all = true;
			return 0;
		}
		reach = gmem_leased_memory_reach(memory, part.start, part.last - part.start + 1);
		if (reach < part.last - part.start + 1)
			return gmem_fail(gmem_leased_memory_is_private(memory, part.start + reach) ? -EACCES : -ENOENT,
					 "the image has memory at gpa 0x%" PRIx64 " up to 0x%" PRIx64
					 ", the VM's shared memory ends at 0x%" PRIx64, part.start,
					 part.last, part.start + reach);
		restore->checked = part.last + 1;
	}
	return 0;
}

static int check_target_has_no_more(const struct gmem_leased_memory *memory,
				    const struct restore *restore)
{
	for (size_t i = 0; i < memory->region_count; i++) {
		const struct gmem_leased_region *region = &memory->regions[i];
		uint64_t at = region->gpa, last = region->gpa + (region->size - 1);

		while (at <= last) {
			size_t r = region_at(restore, at);

			if (r == restore->regions_read || restore->regions[r].gpa > at)
				return gmem_fail(-EEXIST,
						 "the VM has memory at gpa 0x%" PRIx64
						 " that the image does not have", at);
			at = restore->regions[r].gpa + restore->regions[r].size;
		}
	}
	return 0;
}

/* Unless it fails, call it again while it does not set has_tables. */
static int end_tables(struct gmem_transfer *transfer, struct restore *restore)
{
	bool all = true;
	int err = 0;

	if (restore->has_tables)
		return 0;
	if (restore->regions_read != restore->region_count ||
	    restore->privates_read != restore->private_count)
		return bad(restore, "the list of regions is not complete");

	if (transfer->vm)
		err = check_target_has_all(&transfer->memory, restore, &all);
	if (!err && all && transfer->vm && !(transfer->opts.flags & GMEM_TRANSFER_LEAVE_REST))
		err = check_target_has_no_more(&transfer->memory, restore);
	if (!err && all && transfer->vm && !(transfer->opts.flags & GMEM_TRANSFER_LEAVE_REST))
		err = check_image_has_elsewhere(&transfer->memory, restore);
	restore->has_tables = !err && all;
	return err;
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
		return bad(restore, "%" PRIu32 " runs from gpa 0x%" PRIx64, record->count,
			   record->data.base);

	for (uint32_t i = 0; i < record->count && !err; i++) {
		struct image_range range = run_range(record, i);

		err = check_range(restore, range.gpa, range.size, after);
		if (!err && !is_shared(restore, range.gpa, range.size))
			err = bad(restore, "gpa 0x%" PRIx64 ", 0x%" PRIx64
				  " bytes, is not the image's memory", range.gpa, range.size);
		after = range.gpa + range.size;
		pages += range.size / IMAGE_BLOCK;
	}
	if (!err && (pages + 1) * IMAGE_BLOCK != record->size)
		err = bad(restore, "0x%" PRIx64 " pages and 0x%" PRIx32 " bytes", pages, record->size);
	return err;
}

/* Clear memory below @end that the image has no data for, up to a step's worth; false: done. */
static bool clear_some(struct gmem_transfer *transfer, struct restore *restore, uint64_t end,
		       int *ret_err)
{
	struct gmem_part part;
	uint64_t size;

	if (restore->reached == end || !next_shared(restore, restore->reached, end - 1, &part))
		return false;

	/* An image can claim 2^64 bytes: to verify them is one addition. */
	size = part.last - part.start + 1;
	if (!restore->verify_only) {
		size = size < CLEAR_STEP ? size : CLEAR_STEP;
		*ret_err = gmem_leased_memory_clear(&transfer->memory, part.start, size);
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
	int err = 0;

	if (clear_some(transfer, restore, range.gpa, &err))
		return err;

	if (restore->verify_only)
		transfer->bytes.data += range.size;
	else
		err = gmem_leased_memory_store(&transfer->memory, range.gpa, bytes, range.size,
					       &transfer->bytes);
	if (err)
		return err;

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

	if (!fits(record, sizeof(*entries)))
		return bad(restore, "%" PRIu32 " lost ranges", record->count);
	for (uint32_t i = 0; i < record->count && !err; i++) {
		err = check_range(restore, entries[i].gpa, entries[i].size, after);
		if (!err && !is_shared(restore, entries[i].gpa, entries[i].size))
			err = bad(restore, "gpa 0x%" PRIx64 ", 0x%" PRIx64
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
		return bad(restore, "the end does not agree with what was before it");

	restore->at_end = true;
	return 0;
}

static void restore_free(struct restore *restore)
{
	free(restore->regions);
	free(restore->elsewhere);
	free(restore->privates);
}

static void start_over(struct gmem_transfer *transfer, struct restore *restore)
{
	restore_free(restore);
	*restore = (struct restore){ .start = restore->start };
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

/* ---- steps ---- */

static int read_record(struct gmem_transfer *transfer, struct restore *restore,
		       const struct image_record *record, uint64_t left)
{
	enum image_kind kind = kind_of(record);
	int err = check_record(restore, record, left);

	if (!err && (kind == IMAGE_DATA || kind == IMAGE_LOST || kind == IMAGE_END)) {
		err = end_tables(transfer, restore);
		if (!err && !restore->has_tables)
			return 0;
	}
	if (!err && restore->has_tables && kind < IMAGE_DATA)
		err = bad(restore, "a list among the data");
	if (!err && (kind == IMAGE_REGIONS || kind == IMAGE_ELSEWHERE) && restore->privates_read)
		err = bad(restore, "regions after private ranges");
	if (err)
		return err;

	switch (kind) {
	case IMAGE_HEAD:
		err = read_head(transfer, restore, record);
		break;
	case IMAGE_REGIONS:
		err = read_regions(transfer, restore, record);
		break;
	case IMAGE_ELSEWHERE:
		err = read_elsewhere(transfer, restore, record);
		break;
	case IMAGE_PRIVATE:
		err = read_privates(transfer, restore, record);
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

	restore->records++;
	restore->checksums = gmem_crc32c(restore->checksums, &record->checksum,
					 sizeof(record->checksum));
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

static int restore_step(struct gmem_transfer *transfer, bool wait)
{
	struct restore *restore = transfer->state;
	struct gmem_io_piece piece;
	int err;

	if (restore->data)
		return store_data(transfer, restore);
	if (restore->at_end)
		return finish(transfer, restore, wait);

	err = gmem_io_next(&transfer->io, wait, &piece);
	if (err)
		return gmem_transfer_fail_io(transfer, err);
	if (piece.size == restore->used && piece.size) {
		gmem_io_take(&transfer->io);
		restore->used = 0;
		return 0;
	}
	if (piece.size - restore->used < IMAGE_BLOCK)
		return no_end(transfer, restore);
	return read_record(transfer, restore, (const void *)(piece.data + restore->used),
			   piece.size - restore->used);
}

static void restore_end(struct gmem_transfer *transfer)
{
	restore_free(transfer->state);
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
		 uint64_t flags, struct gmem_transfer **ret)
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
	restore->start = opts.image_offset;
	restore->verify_first = opts.flags & GMEM_TRANSFER_VERIFY;
	restore->verify_only = !vm || restore->verify_first;
	transfer->step = restore_step;
	transfer->end = restore_end;
	if (params.kind.has_size)
		transfer->total = (params.end - params.position) << restore->verify_first;
	*ret = transfer;
	return 0;
}

GMEM_API int gmem_vm_restore_begin(struct gmem_vm *vm, int fd,
				   const struct gmem_transfer_opts *opts,
				   struct gmem_transfer **ret)
{
	const uint64_t flags = GMEM_TRANSFER_NO_DIRECT | GMEM_TRANSFER_NO_RING |
			       GMEM_TRANSFER_OMIT_PRIVATE | GMEM_TRANSFER_LEAVE_REST |
			       GMEM_TRANSFER_VERIFY | GMEM_TRANSFER_UNCHECKED |
			       GMEM_TRANSFER_ALLOW_LOST;

	if (!vm || !ret)
		return gmem_fail(-EINVAL, "%s is NULL", vm ? "ret" : "vm");
	return begin(vm, fd, opts, flags, ret);
}

GMEM_API int gmem_vm_restore(struct gmem_vm *vm, int fd, const struct gmem_transfer_opts *opts,
			     struct gmem_transfer_result *ret)
{
	struct gmem_transfer *transfer = NULL;
	int err = gmem_vm_restore_begin(vm, fd, opts, &transfer);

	return gmem_transfer_run(err, transfer, ret);
}

GMEM_API int gmem_image_verify(int fd, const struct gmem_transfer_opts *opts,
			       struct gmem_transfer_result *ret)
{
	struct gmem_transfer *transfer = NULL;
	int err = begin(NULL, fd, opts, GMEM_TRANSFER_NO_DIRECT | GMEM_TRANSFER_NO_RING |
			GMEM_TRANSFER_ALLOW_LOST, &transfer);

	return gmem_transfer_run(err, transfer, ret);
}
