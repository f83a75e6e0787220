/* SPDX-License-Identifier: MIT */
#include "transfer/image.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "gmem.h"
#include "base/crc32c.h"
#include "base/error.h"

const char gmem_image_kinds[IMAGE_KINDS][8] = {
	[IMAGE_HEAD] = "GMEMHEAD",
	[IMAGE_REGIONS] = "GMEMREGN",
	[IMAGE_ELSEWHERE] = "GMEMELSE",
	[IMAGE_PRIVATE] = "GMEMPRIV",
	[IMAGE_DATA] = "GMEMDATA",
	[IMAGE_LOST] = "GMEMLOST",
	[IMAGE_END] = "GMEM_END",
	[IMAGE_PART] = "GMEMPART",
};

int gmem_image_bad(uint64_t number, const char *format, ...)
{
	char what[160];
	va_list args;

	va_start(args, format);
	vsnprintf(what, sizeof(what), format, args);
	va_end(args);
	return gmem_fail(-EBADMSG, "record %" PRIu64 " of the image: %s", number, what);
}

/* The CRC-32C of the first @size bytes, with 0 in place of the checksum */
static uint32_t checksum_of(const struct image_record *record, uint64_t size)
{
	struct image_record start = *record;

	start.checksum = 0;
	return gmem_crc32c(gmem_crc32c(0, &start, sizeof(start)), record + 1, size - sizeof(start));
}

uint32_t gmem_image_checksum(const struct image_record *record)
{
	return checksum_of(record, record->size);
}

uint32_t gmem_image_join_checksum(const struct image_record *record, uint32_t rest)
{
	return gmem_crc32c_join(checksum_of(record, IMAGE_BLOCK), rest, record->size - IMAGE_BLOCK);
}

/* ---- heads ---- */

int gmem_image_check_beginning(uint64_t offset, const char *bytes, uint64_t size)
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
			 "%02x, an image has \"GMEMHEAD\"", offset, first[0], first[1], first[2], first[3]);
}

int gmem_image_check_version(const struct image_record *record)
{
	if (record->version == IMAGE_VERSION || record->version == IMAGE_VERSION_2)
		return 0;
	return gmem_fail(-EOPNOTSUPP, "the image is of version %" PRIu32 ", libgmem %s reads %u and %u",
			 record->version, gmem_version(), IMAGE_VERSION, IMAGE_VERSION_2);
}

static int check_origin(const struct gmem_image_origin *origin)
{
	uint64_t page = origin->page_size;

	if (page < IMAGE_BLOCK || page & (page - 1))
		return gmem_image_bad(0, "a page has 0x%" PRIx64 " bytes", page);
	if (origin->regions > IMAGE_MAX_REGIONS)
		return gmem_image_bad(0, "%" PRIu64 " regions, at most %u may be listed", origin->regions,
				      IMAGE_MAX_REGIONS);
	if (origin->flags & ~IMAGE_FOLLOWED)
		return gmem_fail(-EOPNOTSUPP, "the image has flags 0x%" PRIx64 ", libgmem %s knows 0x%" PRIx64,
				 origin->flags, gmem_version(), IMAGE_FOLLOWED);
	if (origin->parent && (!origin->generation || origin->generation == UINT64_MAX ||
			       origin->parent == origin->id))
		return gmem_image_bad(0, "image 0x%" PRIx64 " of generation %" PRIu64 " is based on 0x%" PRIx64,
				      origin->id, origin->generation, origin->parent);
	return 0;
}

int gmem_image_read_origin(const struct image_record *record, struct gmem_image_origin *ret)
{
	const struct image_head *head = (const void *)record;
	int err = gmem_image_check_version(record);

	if (err)
		return err;
	*ret = (struct gmem_image_origin){
		.id = record->id,
		.version = record->version,
		.page_size = record->head.page_size,
		.regions = record->head.regions,
		.privates = record->head.privates,
	};
	if (record->version != IMAGE_VERSION) {
		ret->parent = head->parent;
		ret->generation = head->generation;
		ret->flags = head->flags;
	}
	return check_origin(ret);
}

/* ---- tables ---- */

/* Bytes of an entry of each kind of table; 0: it has none */
static const uint8_t entry_sizes[IMAGE_KINDS] = {
	[IMAGE_REGIONS] = sizeof(struct image_region),
	[IMAGE_ELSEWHERE] = sizeof(struct image_elsewhere),
	[IMAGE_PRIVATE] = sizeof(struct image_range),
	[IMAGE_DATA] = sizeof(struct image_run),
	[IMAGE_LOST] = sizeof(struct image_range),
};

enum image_kind gmem_image_kind(const char kind[8])
{
	enum image_kind i = IMAGE_HEAD;

	while (i < IMAGE_KINDS && memcmp(kind, gmem_image_kinds[i], sizeof(gmem_image_kinds[i])) != 0)
		i++;
	return i;
}

int gmem_image_fail_kind(uint64_t number, const char kind[8])
{
	char text[9] = { 0 };

	for (size_t i = 0; i < 8; i++)
		text[i] = kind[i] >= 'A' && kind[i] <= 'Z' ? kind[i] : '_';
	return gmem_fail(-EOPNOTSUPP, "record %" PRIu64 " of the image is of a kind, \"%s\", that libgmem %s "
			 "does not know", number, text, gmem_version());
}

static uint64_t first_table(const struct image_record *record)
{
	return gmem_image_kind(record->kind) == IMAGE_HEAD ? sizeof(struct image_head) : sizeof(*record);
}

static int check_table(const struct image_record *record, const struct image_table *table, bool is_last)
{
	enum image_kind kind = gmem_image_kind(table->kind);

	if (kind == IMAGE_KINDS && memcmp(table->kind, gmem_image_kinds[IMAGE_HEAD], 4) == 0)
		return gmem_image_fail_kind(record->number, table->kind);
	if (kind == IMAGE_HEAD || kind >= IMAGE_PART)
		return gmem_image_bad(record->number, "a table is of no kind there is");
	if (kind == IMAGE_END ? table->count || !is_last : !table->count)
		return gmem_image_bad(record->number, "a table has %" PRIu32 " entries", table->count);
	return 0;
}

static uint64_t count_pages(const struct image_table *table)
{
	const struct image_run *runs = (const void *)(table + 1);
	uint64_t pages = 0;

	for (uint32_t i = 0; i < table->count; i++)
		pages += runs[i].count & IMAGE_ZEROS ? 0 : runs[i].count;
	return pages;
}

int gmem_image_check_tables(const struct image_record *record, uint64_t there)
{
	uint64_t at = first_table(record), room = record->size < there ? record->size : there, pages = 0, size;
	int err;

	for (uint32_t i = 0; i < record->count; i++) {
		const struct image_table *table = (const void *)((const char *)record + at);

		if (at + sizeof(*table) > room)
			return gmem_image_bad(record->number, "%" PRIu32 " tables", record->count);
		err = check_table(record, table, i == record->count - 1);
		if (err)
			return err;
		if (gmem_image_kind(table->kind) == IMAGE_DATA && room > IMAGE_BLOCK)
			room = IMAGE_BLOCK;
		size = (uint64_t)table->count * entry_sizes[gmem_image_kind(table->kind)];
		at += sizeof(*table);
		if (at > room || size > room - at)
			return gmem_image_bad(record->number, "a table of %" PRIu32 " entries", table->count);
		at += size;
		pages += gmem_image_kind(table->kind) == IMAGE_DATA ? count_pages(table) : 0;
	}
	if (((at + IMAGE_BLOCK - 1) / IMAGE_BLOCK + pages) * IMAGE_BLOCK != record->size)
		return gmem_image_bad(record->number, "0x%" PRIx64 " pages and 0x%" PRIx32 " bytes", pages,
				      record->size);
	return 0;
}

bool gmem_image_next_table(const struct image_record *record, uint32_t version,
			   struct gmem_image_cursor *cursor, struct gmem_image_table *ret)
{
	const struct image_table *table;

	*ret = (struct gmem_image_table){ .version = version, .number = record->number };
	if (version == IMAGE_VERSION) {
		ret->kind = gmem_image_kind(record->kind);
		ret->count = record->count;
		ret->room = (ret->kind == IMAGE_DATA ? IMAGE_BLOCK : record->size) - sizeof(*record);
		ret->base = record->data.base;
		ret->pages = record->end.pages;
		ret->checksums = record->end.checksums;
		ret->entries = record + 1;
		return ret->kind != IMAGE_HEAD && cursor->tables++ == 0;
	}

	if (cursor->tables == record->count)
		return false;
	cursor->at = cursor->tables ? cursor->at : first_table(record);
	table = (const void *)((const char *)record + cursor->at);
	ret->kind = gmem_image_kind(table->kind);
	ret->count = table->count;
	ret->room = (uint64_t)table->count * entry_sizes[ret->kind];
	ret->base = table->data.base;
	ret->pages = table->end.pages;
	ret->checksums = table->end.checksums;
	ret->entries = table + 1;
	cursor->at += sizeof(*table) + ret->room;
	cursor->tables++;
	return true;
}

bool gmem_image_has_entries(const struct gmem_image_table *table, size_t size)
{
	return table->count && table->count <= table->room / size;
}

struct gmem_image_run gmem_image_run_at(const struct gmem_image_table *table, uint32_t i)
{
	const struct image_range *lost = (const struct image_range *)table->entries + i;
	const struct image_run *run = (const struct image_run *)table->entries + i;
	bool is_zero = table->version != IMAGE_VERSION && run->count & IMAGE_ZEROS;

	if (table->kind == IMAGE_LOST)
		return (struct gmem_image_run){ lost->gpa, lost->size, IMAGE_RUN_LOST };
	return (struct gmem_image_run){
		.gpa = table->base + run->first * IMAGE_BLOCK,
		.size = (is_zero ? run->count & ~IMAGE_ZEROS : run->count) * IMAGE_BLOCK,
		.kind = is_zero ? IMAGE_RUN_ZEROS : IMAGE_RUN_DATA,
	};
}
