/* SPDX-License-Identifier: MIT */
#include "transfer/image_unit.h"

#include <string.h>

/* Pages that can be added at once, if they are zero */
#define MAX_ZEROS ((uint32_t)1 << 30)

/* No run begins further from the base of its table, in pages. */
#define MAX_FIRST (UINT32_MAX - MAX_ZEROS)

/* A run has no more pages when some are added. */
#define MAX_RUN (IMAGE_ZEROS - 1 - MAX_ZEROS)

/* No record of data of version 1 has more runs than there is room for. */
_Static_assert(IMAGE_UNIT / IMAGE_BLOCK <= IMAGE_MAX_RUNS, "each page may be a run");

/* ---- records ---- */

static struct image_record *record_of(const struct gmem_image_unit *unit)
{
	return (void *)(unit->bytes + unit->used);
}

static struct image_record *begin_record(struct gmem_image_unit *unit, enum image_kind kind)
{
	struct image_record *record = record_of(unit);
	uint64_t number = unit->number++;

	if (!unit->bytes)
		return NULL;
	*record = (struct image_record){ .id = unit->id, .number = number };
	memcpy(record->kind, gmem_image_kinds[kind], sizeof(record->kind));
	return record;
}

/* Pad the record after its first @bytes bytes, which are filled in, and seal it. */
static void end_record(struct gmem_image_unit *unit, uint64_t bytes)
{
	uint64_t size = (bytes + IMAGE_BLOCK - 1) / IMAGE_BLOCK * IMAGE_BLOCK;
	struct image_record *record = record_of(unit);

	if (unit->bytes) {
		memset((char *)record + bytes, 0, size - bytes);
		record->size = (uint32_t)size;
		record->checksum = gmem_image_checksum(record);
	}
	unit->used += size;
}

/* The same of a record with contents, which has @bytes bytes in front of them */
static void end_record_of_data(struct gmem_image_unit *unit, uint64_t bytes)
{
	uint64_t size = (1 + unit->filled) * IMAGE_BLOCK;
	struct image_record *record = record_of(unit);

	if (unit->bytes) {
		record->size = (uint32_t)size;
		memset((char *)record + bytes, 0, IMAGE_BLOCK - bytes);
		record->checksum = gmem_image_join_checksum(record, unit->checksum);
	}
	unit->used += size;
}

/* End the open record. */
static void end_open(struct gmem_image_unit *unit)
{
	uint64_t runs = sizeof(struct image_record) + unit->run_count * sizeof(struct image_run);

	if (unit->version == IMAGE_VERSION) {
		if (unit->bytes)
			record_of(unit)->count = unit->run_count;
		end_record_of_data(unit, runs);
	} else {
		if (unit->bytes)
			record_of(unit)->count = unit->table_count;
		if (unit->filled)
			end_record_of_data(unit, unit->tables);
		else
			end_record(unit, unit->tables);
	}
	unit->is_open = false;
	unit->filled = 0;
	unit->checksum = 0;
	unit->table = 0;
	unit->run_count = 0;
}

struct gmem_image_unit gmem_image_unit_after(const struct gmem_image_unit *before, char *bytes)
{
	return (struct gmem_image_unit){
		.bytes = bytes, .id = before->id, .number = before->number, .version = before->version,
	};
}

/* ---- tables of version 2 ---- */

static void open_record(struct gmem_image_unit *unit, uint64_t bytes)
{
	unit->is_open = true;
	unit->tables = bytes;
	unit->table_count = 0;
}

/*
 * Have an open record with room for @bytes more among its first @limit bytes; behind those is
 * room for the end. false: the unit is full.
 */
static bool have_room(struct gmem_image_unit *unit, uint64_t bytes, uint64_t limit)
{
	if (unit->is_open && unit->tables + bytes + sizeof(struct image_table) > limit)
		end_open(unit);
	if (unit->is_open)
		return true;
	if (unit->used == IMAGE_UNIT)
		return false;
	begin_record(unit, IMAGE_PART);
	open_record(unit, sizeof(struct image_record));
	return true;
}

static struct image_table *add_table(struct gmem_image_unit *unit, enum image_kind kind, uint32_t count,
				     size_t bytes)
{
	struct image_table *table = (void *)(unit->bytes + unit->used + unit->tables);

	unit->tables += sizeof(*table) + bytes;
	unit->table_count++;
	unit->table = 0;
	if (!unit->bytes)
		return NULL;
	*table = (struct image_table){ .count = count };
	memcpy(table->kind, gmem_image_kinds[kind], sizeof(table->kind));
	return table;
}

/* ---- lists ---- */

void gmem_image_unit_put_head(struct gmem_image_unit *unit, const struct gmem_image_origin *origin)
{
	struct image_record *record = begin_record(unit, IMAGE_HEAD);
	struct image_head *head = (void *)record;

	record->version = unit->version;
	record->head.page_size = origin->page_size;
	record->head.regions = origin->regions;
	record->head.privates = origin->privates;
	if (unit->version == IMAGE_VERSION) {
		end_record(unit, sizeof(*record));
		return;
	}
	*head = (struct image_head){
		.record = *record,
		.parent = origin->parent,
		.generation = origin->generation,
		.flags = origin->flags,
	};
	open_record(unit, sizeof(*head));
}

size_t gmem_image_unit_begin_list(struct gmem_image_unit *unit, enum image_kind kind, size_t count,
				  size_t entry_size, void **ret)
{
	struct image_record *record;
	uint64_t room;

	if (unit->version == IMAGE_VERSION) {
		room = IMAGE_UNIT - unit->used;
		if (room < IMAGE_BLOCK)
			return 0;
		record = begin_record(unit, kind);
		room = (room - sizeof(*record)) / entry_size;
		record->count = (uint32_t)(count < room ? count : room);
		*ret = record + 1;
		return record->count;
	}

	if (!have_room(unit, sizeof(struct image_table) + entry_size, IMAGE_UNIT - unit->used))
		return 0;
	room = (IMAGE_UNIT - unit->used - unit->tables - sizeof(struct image_table)) / entry_size;
	room = count < room ? count : room;
	*ret = add_table(unit, kind, (uint32_t)room, room * entry_size) + 1;
	return room;
}

void gmem_image_unit_end_list(struct gmem_image_unit *unit, size_t bytes)
{
	if (unit->version == IMAGE_VERSION)
		end_record(unit, sizeof(struct image_record) + bytes);
}

/* ---- data ---- */

static void open_data(struct gmem_image_unit *unit, uint64_t gpa)
{
	struct image_record *record;

	record = begin_record(unit, IMAGE_DATA);
	if (record)
		record->data.base = gpa;
	unit->is_open = true;
	unit->base = gpa;
}

static uint64_t pages_left(const struct gmem_image_unit *unit)
{
	return (IMAGE_UNIT - unit->used) / IMAGE_BLOCK - 1 - unit->filled;
}

static uint64_t room_in_version_1(struct gmem_image_unit *unit, uint64_t gpa)
{
	if (unit->is_open && (gpa - unit->base) / IMAGE_BLOCK > MAX_FIRST)
		end_open(unit);
	if (unit->used == IMAGE_UNIT)
		return 0;
	if (pages_left(unit))
		return pages_left(unit);

	/* The unit's last block has room for a record's first block, but not for a page. */
	if (!unit->is_open)
		open_data(unit, gpa);
	end_open(unit);
	return 0;
}

static uint64_t room_in_version_2(struct gmem_image_unit *unit, uint64_t gpa, bool is_zero)
{
	if (unit->table && (gpa - unit->base) / IMAGE_BLOCK > MAX_FIRST)
		unit->table = 0;
	if (!have_room(unit, (unit->table ? 0 : sizeof(struct image_table)) + sizeof(struct image_run),
		       IMAGE_BLOCK))
		return 0;
	if (is_zero)
		return MAX_ZEROS;
	if (pages_left(unit))
		return pages_left(unit);
	end_open(unit);
	return 0;
}

uint64_t gmem_image_unit_room(struct gmem_image_unit *unit, uint64_t gpa, bool is_zero)
{
	return unit->version == IMAGE_VERSION ? room_in_version_1(unit, gpa)
					      : room_in_version_2(unit, gpa, is_zero);
}

char *gmem_image_unit_next_page(const struct gmem_image_unit *unit)
{
	return unit->bytes + unit->used + (1 + unit->filled) * IMAGE_BLOCK;
}

/* Have a table of runs, in which @gpa can be told. */
static void have_table(struct gmem_image_unit *unit, uint64_t gpa)
{
	struct image_table *table;

	if (unit->version == IMAGE_VERSION) {
		if (!unit->is_open)
			open_data(unit, gpa);
		return;
	}
	if (unit->table)
		return;
	table = add_table(unit, IMAGE_DATA, 0, 0);
	if (table)
		table->data.base = gpa;
	unit->table = unit->tables - sizeof(*table);
	unit->base = gpa;
	unit->run_count = 0;
}

static void begin_run(struct gmem_image_unit *unit, bool is_zero)
{
	unit->run_count++;
	unit->run_pages = 0;
	unit->run_is_zero = is_zero;
	if (unit->version == IMAGE_VERSION)
		return;
	unit->tables += sizeof(struct image_run);
	if (unit->bytes)
		((struct image_table *)(void *)(unit->bytes + unit->used + unit->table))->count++;
}

/* Where the runs are that can be added to */
static struct image_run *runs_of(const struct gmem_image_unit *unit)
{
	uint64_t at = unit->version == IMAGE_VERSION ? sizeof(struct image_record)
						     : unit->table + sizeof(struct image_table);

	return (void *)(unit->bytes + unit->used + at);
}

void gmem_image_unit_add(struct gmem_image_unit *unit, uint64_t gpa, uint64_t pages, bool is_zero)
{
	uint32_t first;

	have_table(unit, gpa);
	first = (uint32_t)((gpa - unit->base) / IMAGE_BLOCK);
	if (!unit->run_count || unit->run_end != first || unit->run_is_zero != is_zero ||
	    unit->run_pages > MAX_RUN)
		begin_run(unit, is_zero);

	unit->run_pages += (uint32_t)pages;
	unit->run_end = first + (uint32_t)pages;
	unit->filled += is_zero ? 0 : pages;
	if (unit->bytes)
		runs_of(unit)[unit->run_count - 1] = (struct image_run){
			.first = unit->run_end - unit->run_pages,
			.count = unit->run_pages | (is_zero ? IMAGE_ZEROS : 0),
		};
}

bool gmem_image_unit_add_lost(struct gmem_image_unit *unit, uint64_t gpa, uint64_t size)
{
	const struct image_range range = { .gpa = gpa, .size = size };
	struct image_record *record;
	struct image_table *table;

	if (unit->version != IMAGE_VERSION) {
		if (!have_room(unit, sizeof(*table) + sizeof(range), IMAGE_BLOCK))
			return false;
		table = add_table(unit, IMAGE_LOST, 1, sizeof(range));
		if (table)
			*(struct image_range *)(void *)(table + 1) = range;
		return true;
	}

	if (unit->is_open)
		end_open(unit);
	if (unit->used == IMAGE_UNIT)
		return false;
	record = begin_record(unit, IMAGE_LOST);
	if (record) {
		record->count = 1;
		*(struct image_range *)(void *)(record + 1) = range;
	}
	end_record(unit, sizeof(*record) + sizeof(range));
	return true;
}

/* ---- the end ---- */

bool gmem_image_unit_close(struct gmem_image_unit *unit)
{
	if (unit->version != IMAGE_VERSION)
		return have_room(unit, 0, IMAGE_UNIT - unit->used);
	if (unit->is_open)
		end_open(unit);
	return unit->used < IMAGE_UNIT;
}

void gmem_image_unit_put_end(struct gmem_image_unit *unit, uint64_t pages, uint32_t checksums,
			     bool fills_unit)
{
	struct image_record *record;
	struct image_table *table;
	uint64_t bytes;

	if (unit->version != IMAGE_VERSION) {
		table = add_table(unit, IMAGE_END, 0, 0);
		table->end.pages = pages + unit->filled;
		table->end.checksums = checksums;
		end_open(unit);
		return;
	}

	record = begin_record(unit, IMAGE_END);
	record->end.pages = pages;
	record->end.checksums = checksums;
	bytes = fills_unit ? IMAGE_UNIT - unit->used : sizeof(*record);
	memset(record + 1, 0, bytes - sizeof(*record));
	end_record(unit, bytes);
}
