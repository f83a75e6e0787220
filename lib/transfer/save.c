/* SPDX-License-Identifier: MIT */
/*
 * Only pages that exist are read, since reading a page that does not exist would allocate
 * it. Only pages that are not zero are written, packed. The last record has the number of
 * pages and a checksum over all checksums, so that a truncated image is recognised.
 *
 * A page that the hardware lost has a record of its own, or one with its neighbours, in
 * its place among the data.
 *
 * With a tracker, a save begins with what that collects, and ends with its image as the
 * tracker's parent, or with all put back. An image with a parent has what was collected.
 */
#include "transfer/save.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <string.h>

#include "base/crc32c.h"
#include "base/error.h"
#include "base/kind.h"
#include "dirty/tracker.h"
#include "nofault/nofault.h"
#include "os/sys.h"
#include "region/vm_core.h"
#include "transfer/batch.h"
#include "transfer/contents.h"
#include "transfer/file_queue.h"
#include "transfer/image.h"
#include "transfer/image_unit.h"
#include "transfer/leased_memory.h"
#include "transfer/transfer.h"

/* Bytes copied at once */
#define CHUNK ((uint64_t)64 << 10)

/* Units packed side by side, for each thread and at most */
#define UNITS_EACH 4
#define MAX_UNITS 16

enum stage { HEAD, REGIONS, ELSEWHERE, PRIVATES, DATA, END, DRAIN };

/* A unit, and what comes next in it */
struct unit {
	struct gmem_image_unit image;
	struct gmem_contents_place at;
	int err;			/* the page at @at could not be read */
};

struct save {
	uint64_t id, pages;
	uint32_t checksums;
	struct gmem_image_origin origin;
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

/* Count the records of a unit in [@start, @end) that will be written, in the order of the image. */
static void count_records(struct gmem_transfer *transfer, struct save *save,
			  const struct gmem_image_unit *unit, uint64_t start, uint64_t end)
{
	const struct image_record *record;
	struct gmem_image_table table;

	for (uint64_t at = start; at < end; at += record->size) {
		struct gmem_image_cursor cursor = { 0 };

		record = (const void *)(unit->bytes + at);
		save->checksums = gmem_crc32c(save->checksums, &record->checksum, sizeof(record->checksum));
		while (gmem_image_next_table(record, unit->version, &cursor, &table)) {
			if (table.kind != IMAGE_DATA && table.kind != IMAGE_LOST)
				continue;
			for (uint32_t i = 0; i < table.count; i++) {
				struct gmem_image_run run = gmem_image_run_at(&table, i);

				if (run.kind == IMAGE_RUN_DATA)
					save->pages += run.size / IMAGE_BLOCK;
				if (run.kind == IMAGE_RUN_LOST)
					gmem_transfer_tell_lost(transfer, run.gpa, run.size);
			}
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
	struct gmem_image_unit *unit = &save->units[0].image;
	void *entries;
	size_t now;

	if (count == save->listed)
		return true;
	now = gmem_image_unit_begin_list(unit, kind, count - save->listed, entry_size, &entries);
	if (now == 0)
		return false;
	for (size_t i = 0; i < now; i++)
		put_entry(&transfer->memory, kind, save->listed + i, (char *)entries + i * entry_size);
	gmem_image_unit_end_list(unit, now * entry_size);
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

/* ---- data ---- */

/*
 * Copy pages to their place in the unit, as many as the caches keep until they are read again
 * for the checksum; returns how many could be read.
 */
static uint64_t copy_pages(const struct gmem_transfer *transfer, struct unit *unit, const char *hva,
			   uint64_t pages)
{
	char *to = gmem_image_unit_next_page(&unit->image);
	uint64_t size = pages * IMAGE_BLOCK < CHUNK ? pages * IMAGE_BLOCK : CHUNK, done, rest;

	done = gmem_nofault_copy(transfer->memory.fast, to, hva, size, &unit->err);
	rest = done < size ? ((uintptr_t)hva + done) % gmem_sys_page_size() : 0;
	done = done > rest ? done - rest : 0;
	unit->image.checksum = gmem_crc32c(unit->image.checksum, to, done);
	return done / IMAGE_BLOCK;
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
		bool is_zero = run.kind == CONTENTS_ZERO;

		if (run.kind == CONTENTS_LOST) {
			if (!gmem_image_unit_add_lost(&unit->image, run.gpa, run.blocks * IMAGE_BLOCK))
				return true;
			unit->at.block += run.blocks;
			continue;
		}
		now = gmem_image_unit_room(&unit->image, run.gpa, is_zero);
		if (now == 0)
			return true;
		now = now < run.blocks ? now : run.blocks;
		if (unit->image.bytes && !is_zero)
			now = copy_pages(transfer, unit, run.hva, now);
		if (now == 0)
			return false;
		gmem_image_unit_add(&unit->image, run.gpa, now, is_zero);
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
		plan.image.bytes = NULL;
		pack(transfer, &plan);
		if (plan.image.used < IMAGE_UNIT)
			return;
		plan.image = gmem_image_unit_after(&plan.image, gmem_io_buffer(&transfer->io, save->unit_count));
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

	while (save->written < save->unit_count && unit->image.used == IMAGE_UNIT && !err) {
		count_records(transfer, save, &unit->image, 0, IMAGE_UNIT);
		err = gmem_io_put(&transfer->io, IMAGE_UNIT);
		save->written++;
		if (save->written == save->unit_count)
			unit->image = gmem_image_unit_after(&unit->image, NULL);
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
	struct gmem_image_unit *unit = &save->units[0].image;
	uint64_t complete;
	int err;

	if (!gmem_image_unit_close(unit))
		return 0;

	complete = unit->used;
	count_records(transfer, save, unit, 0, complete);
	/* A reader of whole units from a pipe would wait for the rest of this one. */
	gmem_image_unit_put_end(unit, save->pages, save->checksums, transfer->io.serial);
	count_records(transfer, save, unit, complete, unit->used);
	save->stage = DRAIN;
	err = gmem_io_put(&transfer->io, unit->used);
	return err ? gmem_transfer_fail_io(transfer, err) : 0;
}

static int build(struct gmem_transfer *transfer, struct save *save)
{
	switch (save->stage) {
	case HEAD:
		gmem_image_unit_put_head(&save->units[0].image, &save->origin);
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
static int finish(struct gmem_transfer *transfer, const struct save *save, bool wait)
{
	bool sync = transfer->opts.flags & GMEM_TRANSFER_SYNC;
	int err = gmem_io_drain(&transfer->io, sync, wait);

	if (err)
		return gmem_transfer_fail_io(transfer, err);

	if (save->contents.image.dirty)
		gmem_dirty_end_image(&save->contents.image, save->id, save->origin.generation);
	transfer->is_done = true;
	return 0;
}

static int save_step(struct gmem_transfer *transfer, bool wait)
{
	struct save *save = transfer->state;
	int err;

	if (save->stage == DRAIN)
		return finish(transfer, save, wait);

	err = write_units(transfer, save);
	if (err)
		return err;
	err = gmem_io_space(&transfer->io, wait, most_units(transfer));
	if (err)
		return gmem_transfer_fail_io(transfer, err);

	save->units[0].image.bytes = gmem_io_buffer(&transfer->io, 0);
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

static int collect(struct gmem_transfer *transfer)
{
	struct save *save = transfer->state;
	struct gmem_dirty_image *image = &save->contents.image;
	struct gmem_dirty *dirty = transfer->opts.dirty;
	int err;

	if (!dirty)
		return 0;
	if (dirty->vm != transfer->vm)
		return gmem_fail(-EINVAL, "the tracker is another handle's");
	err = gmem_dirty_begin_image(dirty, image);
	if (!err && image->generation == UINT64_MAX)
		err = gmem_fail(-EOVERFLOW, "generation %" PRIu64 " has none behind it", image->generation);
	return err;
}

static int check(const struct gmem_transfer_opts *user_opts, int fd, struct gmem_transfer_opts *ret,
		 struct gmem_io_params *params)
{
	const uint64_t flags = GMEM_TRANSFER_SYNC | GMEM_TRANSFER_OMIT_PRIVATE | GMEM_TRANSFER_ALLOW_LOST |
			       GMEM_TRANSFER_FOLLOWED;
	int err;

	err = gmem_transfer_check(user_opts, flags, ret);
	if (!err)
		err = gmem_transfer_inspect(ret, fd, true, ret->image_offset, params);
	if (err)
		return err;
	if (!params->depth)
		params->depth = default_depth(ret);
	if (ret->flags & GMEM_TRANSFER_SYNC && !params->kind.has_offsets)
		return gmem_fail(-EINVAL, "fd %d is neither file nor block device: there is no disk to sync",
				 fd);
	return 0;
}

static void prepare(struct gmem_transfer *transfer)
{
	struct save *save = transfer->state;
	const struct gmem_dirty_image *image = &save->contents.image;
	bool is_incremental = image->parent, is_followed = transfer->opts.flags & GMEM_TRANSFER_FOLLOWED;

	do {
		save->id = gmem_sys_random();
	} while (!save->id);
	save->origin = (struct gmem_image_origin){
		.page_size = gmem_sys_page_size(),
		.regions = transfer->memory.region_count,
		.privates = transfer->memory.private_count,
		.parent = image->parent,
		.generation = is_incremental ? image->generation + 1 : 0,
		.flags = is_followed ? IMAGE_FOLLOWED : 0,
	};
	save->contents.transfer = transfer;
	save->units[0].image.id = save->id;
	save->units[0].image.version = is_incremental || is_followed ? IMAGE_VERSION_2 : IMAGE_VERSION;
	save->unit_count = 1;

	transfer->image_id = save->id;
	transfer->generation = save->origin.generation;
	transfer->total = gmem_leased_memory_bytes(&transfer->memory);
	transfer->left_out_bytes = gmem_leased_memory_elsewhere_bytes(&transfer->memory);
	transfer->private_bytes = gmem_leased_memory_private_bytes(&transfer->memory);
}

static int begin(struct gmem_vm *vm, int fd, const struct gmem_transfer_opts *user_opts, bool waits,
		 struct gmem_transfer **ret)
{
	struct gmem_transfer *transfer;
	struct gmem_transfer_opts opts;
	struct gmem_io_params params;
	int err;

	if (!vm || !ret)
		return gmem_fail(-EINVAL, "%s is NULL", vm ? "ret" : "vm");

	err = check(user_opts, fd, &opts, &params);
	if (!err)
		err = gmem_transfer_new(vm, &opts, sizeof(struct save), &transfer);
	if (err)
		return err;

	params.waits = waits;
	/* Before the leases, for which a change of the layout could wait that this waits for. */
	err = collect(transfer);
	if (!err)
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

	gmem_transfer_begin_hands(transfer, opts.workers, gmem_leased_memory_bytes(&transfer->memory));
	prepare(transfer);
	transfer->step = save_step;
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
