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
#include "region/vm_core.h"
#include "transfer/batch.h"
#include "transfer/contents.h"
#include "transfer/file_queue.h"
#include "transfer/image.h"
#include "transfer/leased_memory.h"
#include "transfer/transfer.h"

/* Bytes copied at once */
#define CHUNK ((uint64_t)64 << 10)

/* Units packed side by side, for each thread and at most */
#define UNITS_EACH 4
#define MAX_UNITS 16

enum stage { HEAD, REGIONS, ELSEWHERE, PRIVATES, DATA, END, DRAIN };

/* A unit that is being filled. Without bytes, what would be in it is only counted. */
struct unit {
	char *bytes;
	uint64_t used;			/* bytes of complete records */
	uint64_t id, number;		/* of the image, and of the next record */
	struct gmem_contents_place at;	/* what comes next */

	bool is_open;			/* a record of data follows, not complete yet */
	uint64_t base;			/* its data.base */
	uint64_t filled;		/* its pages */
	uint32_t checksum;		/* of them */
	uint32_t run_count;
	uint32_t run_end;		/* first page behind the last run */
	int err;			/* the page at @at could not be read */
};

struct save {
	uint64_t id, pages;
	uint32_t checksums;
	enum stage stage;
	size_t listed;			/* entries of the current table that are written */
	struct gmem_contents contents;

	/*
	 * Units of which the first may have been begun in an earlier step, and the last may go
	 * on in a later one. All others are full.
	 */
	struct unit units[MAX_UNITS];
	uint32_t unit_count, written;
};

/* No record of data has more runs than there is room for. */
_Static_assert(IMAGE_UNIT / IMAGE_BLOCK <= IMAGE_MAX_RUNS, "each page may be a run");

/* ---- records ---- */

static struct image_record *begin_record(struct unit *unit, enum image_kind kind)
{
	struct image_record *record = (void *)(unit->bytes + unit->used);

	*record = (struct image_record){ .id = unit->id, .number = unit->number++ };
	memcpy(record->kind, gmem_image_kinds[kind], sizeof(record->kind));
	return record;
}

/* Pad the record after its first @bytes bytes, which are filled in, and seal it. */
static void end_record(struct unit *unit, struct image_record *record, uint64_t bytes)
{
	uint64_t size = (bytes + IMAGE_BLOCK - 1) / IMAGE_BLOCK * IMAGE_BLOCK;

	memset((char *)record + bytes, 0, size - bytes);
	record->size = (uint32_t)size;
	record->checksum = gmem_image_checksum(record);
	unit->used += size;
}

static void end_data(struct unit *unit)
{
	struct image_record *record = (void *)(unit->bytes + unit->used);
	uint64_t header = sizeof(*record) + unit->run_count * sizeof(struct image_run);
	uint64_t size = (1 + unit->filled) * IMAGE_BLOCK;

	if (unit->bytes) {
		record->count = unit->run_count;
		record->size = (uint32_t)size;
		memset((char *)record + header, 0, IMAGE_BLOCK - header);
		record->checksum = gmem_image_join_checksum(record, unit->checksum);
	}
	unit->used += size;
	unit->is_open = false;
	unit->filled = 0;
	unit->run_count = 0;
	unit->checksum = 0;
}

/* Count the records of a unit that will be written, in the order of the image. */
static void count_records(struct gmem_transfer *transfer, struct save *save, const struct unit *unit)
{
	const struct image_record *record;

	for (uint64_t at = 0; at < unit->used; at += record->size) {
		record = (const void *)(unit->bytes + at);
		save->checksums = gmem_crc32c(save->checksums, &record->checksum, sizeof(record->checksum));
		if (!memcmp(record->kind, gmem_image_kinds[IMAGE_DATA], sizeof(record->kind)))
			save->pages += record->size / IMAGE_BLOCK - 1;
		if (!memcmp(record->kind, gmem_image_kinds[IMAGE_LOST], sizeof(record->kind))) {
			const struct image_range *lost = (const void *)(record + 1);

			gmem_transfer_tell_lost(transfer, lost->gpa, lost->size);
		}
	}
	transfer->bytes.data = save->pages * IMAGE_BLOCK;
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
	struct unit *unit = &save->units[0];
	uint64_t room = IMAGE_UNIT - unit->used;
	struct image_record *record;
	size_t now = count - save->listed;

	if (now == 0)
		return true;
	if (room < IMAGE_BLOCK)
		return false;

	record = begin_record(unit, kind);
	if (now > (room - sizeof(*record)) / entry_size)
		now = (room - sizeof(*record)) / entry_size;
	record->count = (uint32_t)now;
	for (size_t i = 0; i < now; i++)
		put_entry(&transfer->memory, kind, save->listed + i,
			  (char *)(record + 1) + i * entry_size);
	end_record(unit, record, sizeof(*record) + now * entry_size);
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

static void write_head(struct gmem_transfer *transfer, struct unit *unit)
{
	struct image_record *record = begin_record(unit, IMAGE_HEAD);

	record->version = IMAGE_VERSION;
	record->head.page_size = gmem_sys_page_size();
	record->head.regions = transfer->memory.region_count;
	record->head.privates = transfer->memory.private_count;
	end_record(unit, record, sizeof(*record));
}

/* The records before it have been counted. */
static void write_end(struct gmem_transfer *transfer, struct save *save, struct unit *unit)
{
	struct image_record *record = begin_record(unit, IMAGE_END);
	uint64_t bytes = sizeof(*record);

	record->end.pages = save->pages;
	record->end.checksums = save->checksums;
	/* A reader of whole units from a pipe would wait for the rest of this one. */
	if (transfer->io.serial) {
		memset(record + 1, 0, IMAGE_UNIT - unit->used - bytes);
		bytes = IMAGE_UNIT - unit->used;
	}
	end_record(unit, record, bytes);
}

/* ---- data ---- */

static void open_data(struct unit *unit, uint64_t gpa)
{
	unit->is_open = true;
	unit->base = gpa;
	if (unit->bytes)
		begin_record(unit, IMAGE_DATA)->data.base = gpa;
	else
		unit->number++;
}

/* Returns how many pages from @gpa on there is room for; 0: the unit is full. */
static uint64_t room_for(struct unit *unit, uint64_t gpa)
{
	const uint64_t most = UINT32_MAX - IMAGE_UNIT / IMAGE_BLOCK;
	uint64_t room;

	if (unit->is_open && (gpa - unit->base) / IMAGE_BLOCK > most)
		end_data(unit);
	if (unit->used == IMAGE_UNIT)
		return 0;

	room = (IMAGE_UNIT - unit->used) / IMAGE_BLOCK - 1 - unit->filled;
	/* The unit's last block has room for a record's first block, but not for a page. */
	if (room == 0 && !unit->is_open)
		open_data(unit, gpa);
	if (room == 0)
		end_data(unit);
	return room;
}

/* Count pages in, whose contents are in their place already. */
static void append(struct unit *unit, uint64_t gpa, uint64_t pages)
{
	struct image_run *runs = (void *)(unit->bytes + unit->used + sizeof(struct image_record));
	uint32_t first;

	if (!unit->is_open)
		open_data(unit, gpa);

	first = (uint32_t)((gpa - unit->base) / IMAGE_BLOCK);
	if (!unit->run_count || unit->run_end != first) {
		unit->run_count++;
		if (unit->bytes)
			runs[unit->run_count - 1] = (struct image_run){ .first = first };
	}
	if (unit->bytes)
		runs[unit->run_count - 1].count += (uint32_t)pages;
	unit->run_end = first + (uint32_t)pages;
	unit->filled += pages;
}

/*
 * Copy pages to their place in the unit, as many as the caches keep until they are read again
 * for the checksum; returns how many could be read.
 */
static uint64_t copy_pages(const struct gmem_transfer *transfer, struct unit *unit, const char *hva,
			   uint64_t pages)
{
	char *to = unit->bytes + unit->used + (1 + unit->filled) * IMAGE_BLOCK;
	uint64_t size = pages * IMAGE_BLOCK < CHUNK ? pages * IMAGE_BLOCK : CHUNK, done, rest;

	done = gmem_nofault_copy(transfer->memory.fast, to, hva, size, &unit->err);
	rest = done < size ? ((uintptr_t)hva + done) % gmem_sys_page_size() : 0;
	done = done > rest ? done - rest : 0;
	unit->checksum = gmem_crc32c(unit->checksum, to, done);
	return done / IMAGE_BLOCK;
}

/* Write that pages are lost; false: the unit is full. */
static bool put_lost(struct unit *unit, const struct gmem_contents_run *run)
{
	const struct image_range range = { .gpa = run->gpa, .size = run->blocks * IMAGE_BLOCK };
	struct image_record *record;

	if (unit->is_open)
		end_data(unit);
	if (unit->used == IMAGE_UNIT)
		return false;

	if (unit->bytes) {
		record = begin_record(unit, IMAGE_LOST);
		record->count = 1;
		*(struct image_range *)(record + 1) = range;
		end_record(unit, record, sizeof(*record) + sizeof(range));
	} else {
		unit->number++;
		unit->used += IMAGE_BLOCK;
	}
	return true;
}

/*
 * Fill the unit, until it is full or all that was found is packed. False if a page could not be
 * read: unit->at is there, and packing can go on from it.
 */
static bool pack(const struct gmem_transfer *transfer, struct unit *unit)
{
	const struct save *save = transfer->state;
	struct gmem_contents_run run;
	uint64_t now;

	while (gmem_contents_next(&save->contents, &unit->at, &run)) {
		if (run.is_lost) {
			if (!put_lost(unit, &run))
				return true;
			unit->at.block += run.blocks;
			continue;
		}
		now = room_for(unit, run.gpa);
		if (now == 0)
			return true;
		now = now < run.blocks ? now : run.blocks;
		if (unit->bytes)
			now = copy_pages(transfer, unit, run.hva, now);
		if (now == 0)
			return false;
		append(unit, run.gpa, now);
		unit->at.block += now;
	}
	return true;
}

static bool pack_piece(void *data, struct gmem_hand *hand, size_t piece)
{
	const struct gmem_transfer *transfer = data;
	struct save *save = transfer->state;
	struct unit unit = save->units[piece];	/* in no cache line of another thread's */
	struct gmem_contents_place at = unit.at;
	struct gmem_contents_run first;
	bool is_done;

	if (hand->is_elsewhere && gmem_contents_next(&save->contents, &at, &first))
		gmem_hand_come(hand, first.hva);
	is_done = pack(transfer, &unit);
	save->units[piece] = unit;
	return is_done;
}

static uint32_t most_units(const struct gmem_transfer *transfer)
{
	uint32_t most = transfer->hands.count * UNITS_EACH, depth = transfer->io.depth / 2;

	if (transfer->hands.count == 1 || depth == 0)
		return 1;
	most = most < MAX_UNITS ? most : MAX_UNITS;
	return most < depth ? most : depth;
}

/* Find where each unit begins, which is where the one before it is full. */
static void plan_units(const struct gmem_transfer *transfer, struct save *save, uint32_t most)
{
	struct unit plan = save->units[0];

	for (save->unit_count = 1; save->unit_count < most; save->unit_count++) {
		plan.bytes = NULL;
		pack(transfer, &plan);
		if (plan.used < IMAGE_UNIT)
			return;
		plan = (struct unit){
			.bytes = gmem_io_buffer(&transfer->io, save->unit_count),
			.id = save->id,
			.number = plan.number,
			.at = plan.at,
		};
		save->units[save->unit_count] = plan;
	}
}

/* Fill units with what was found. */
static int pack_units(struct gmem_transfer *transfer, struct save *save)
{
	struct unit *unit;
	size_t done;

	plan_units(transfer, save, most_units(transfer));
	done = gmem_hands_run(&transfer->hands, pack_piece, transfer, save->unit_count);
	if (done == save->unit_count)
		return 0;

	/* A lost page takes a record: what comes behind has another place then. */
	save->unit_count = (uint32_t)done + 1;
	/* What is full is written first, as one thread does. */
	if (done)
		return 0;
	unit = &save->units[0];
	return pack(transfer, unit) ? 0 : gmem_contents_lose(&save->contents, unit->at, unit->err);
}

static int save_data(struct gmem_transfer *transfer, struct save *save)
{
	struct gmem_contents_run run;
	bool any = true;
	int err = 0;

	if (!gmem_contents_next(&save->contents, &save->units[0].at, &run)) {
		save->units[0].at = (struct gmem_contents_place){ 0 };
		err = gmem_contents_look(&save->contents, &any);
	}
	if (!any)
		save->stage = END;
	return err ? err : pack_units(transfer, save);
}

/* ---- steps ---- */

/* Write the units that are full. The next one goes on with the rest of what was found. */
static int write_units(struct gmem_transfer *transfer, struct save *save)
{
	struct unit *unit = &save->units[save->written];
	int err = 0;

	while (save->written < save->unit_count && unit->used == IMAGE_UNIT && !err) {
		count_records(transfer, save, unit);
		err = gmem_io_put(&transfer->io, IMAGE_UNIT);
		save->written++;
		if (save->written == save->unit_count)
			*unit = (struct unit){ .id = save->id, .number = unit->number, .at = unit->at };
		else
			unit++;
	}
	/* What was put is in the queue even if its request was refused: the next step goes on behind it. */
	if (err && save->written < save->unit_count)
		return gmem_transfer_fail_io(transfer, err);

	save->units[0] = *unit;
	save->unit_count = 1;
	save->written = 0;
	return err ? gmem_transfer_fail_io(transfer, err) : 0;
}

/* Write the last record, or first what there is no room behind. */
static int end_image(struct gmem_transfer *transfer, struct save *save)
{
	struct unit *unit = &save->units[0];
	int err;

	if (unit->is_open)
		end_data(unit);
	if (unit->used == IMAGE_UNIT)
		return 0;

	count_records(transfer, save, unit);
	write_end(transfer, save, unit);
	save->stage = DRAIN;
	err = gmem_io_put(&transfer->io, unit->used);
	return err ? gmem_transfer_fail_io(transfer, err) : 0;
}

static int build(struct gmem_transfer *transfer, struct save *save)
{
	switch (save->stage) {
	case HEAD:
		write_head(transfer, &save->units[0]);
		save->stage = REGIONS;
		return 0;
	case REGIONS:
	case ELSEWHERE:
	case PRIVATES:
		if (list_all(transfer, save)) {
			save->listed = 0;
			save->stage++;
		}
		return 0;
	case DATA:
		return save_data(transfer, save);
	default:
		return end_image(transfer, save);
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
	int err;

	if (save->stage == DRAIN)
		return finish(transfer, wait);

	err = write_units(transfer, save);
	if (err)
		return err;
	err = gmem_io_space(&transfer->io, wait, most_units(transfer));
	if (err)
		return gmem_transfer_fail_io(transfer, err);

	save->units[0].bytes = gmem_io_buffer(&transfer->io, 0);
	err = build(transfer, save);
	return err || save->stage == DRAIN ? err : write_units(transfer, save);
}

/*
 * Buffers that stay in the processor's caches are filled in half the time. Eight keep a disk
 * busy, and each more thread fills a few at the same time.
 */
static uint32_t default_depth(const struct gmem_transfer_opts *opts)
{
	uint32_t depth = 4 + UNITS_EACH * (opts->workers > 1 ? opts->workers : 1);

	return depth < GMEM_IO_DEPTH ? depth : GMEM_IO_DEPTH;
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

static int begin(struct gmem_vm *vm, int fd, const struct gmem_transfer_opts *user_opts, bool waits,
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
	if (!err && !params.depth)
		params.depth = default_depth(&opts);
	if (!err && opts.flags & GMEM_TRANSFER_SYNC && !params.kind.has_offsets)
		err = gmem_fail(-EINVAL, "fd %d is neither file nor block device: there is no disk to sync",
				fd);
	if (!err)
		err = gmem_transfer_new(vm, &opts, sizeof(*save), &transfer);
	if (err)
		return err;

	params.waits = waits;
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

	gmem_hands_begin(&transfer->hands, opts.workers, gmem_leased_memory_bytes(&transfer->memory),
			 transfer->memory.look);
	save = transfer->state;
	save->id = gmem_sys_random();
	save->contents.transfer = transfer;
	save->units[0].id = save->id;
	save->unit_count = 1;
	transfer->step = save_step;
	transfer->total = gmem_leased_memory_bytes(&transfer->memory);
	transfer->left_out_bytes = gmem_leased_memory_elsewhere_bytes(&transfer->memory);
	transfer->private_bytes = gmem_leased_memory_private_bytes(&transfer->memory);
	*ret = transfer;
	return 0;
}

GMEM_API int gmem_vm_save_begin(struct gmem_vm *vm, int fd, const struct gmem_transfer_opts *opts,
				struct gmem_transfer **ret)
{
	return begin(vm, fd, opts, false, ret);
}

GMEM_API int gmem_vm_save(struct gmem_vm *vm, int fd, const struct gmem_transfer_opts *opts,
			  struct gmem_transfer_result *ret)
{
	struct gmem_transfer *transfer = NULL;
	int err = begin(vm, fd, opts, true, &transfer);

	return gmem_transfer_run(err, transfer, ret);
}
