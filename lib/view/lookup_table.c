/* SPDX-License-Identifier: MIT */
/*
 * A new table copies the array of GiBs, which points to the old arrays of entries, until
 * gmem_table_refresh() replaces those that change. So the cost of a change depends on the
 * size of what changed, and on the highest address, but not on how much memory there is.
 * An array of entries or a granule belongs to the new table if the old table does not
 * point to it from the same place; this comparison decides what to free.
 */
#include "view/lookup_table.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/macros.h"
#include "base/range_set.h"
#include "region/region.h"
#include "region/region_memory.h"
#include "region/regions.h"

#define GIB_SHIFT	30
#define ENTRY_SHIFT	21
#define ENTRIES		512
#define ENTRY_SIZE	(UINT64_C(1) << ENTRY_SHIFT)
#define COMPARED_AT_ONCE 32	/* entries; divides ENTRIES */

/* 16 TiB: an array of 128 KiB at most */
#define MAX_GIBS	(UINT64_C(1) << 14)

/* Codes of addresses without memory: even, and below the address of any granule */
#define CODE_HOLE	0
#define CODE_REMOVED	2
#define CODE_DEVICE	4
#define CODE_PRIVATE	6
#define LAST_CODE	CODE_PRIVATE

/* A slice is as large as the largest page of a host, so most slices have one piece. */
#define SLICE_SHIFT	16
#define SLICES		(1 << (ENTRY_SHIFT - SLICE_SHIFT))

struct granule {
	uint64_t count;
	uint16_t first[SLICES];	/* the piece at the beginning of each slice */
	uint64_t starts[];	/* count starts, the end of the last piece, count codes */
};

struct gmem_full_table {
	struct gmem_table head;
	struct granule *high;
	const uint64_t *gibs[];
};

/* The entries of every GiB that is one hole; never written, never freed */
static const uint64_t empty_gib[ENTRIES];

static const struct gmem_full_table *full(const struct gmem_table *table)
{
	return GMEM_CONTAINER_OF(table, struct gmem_full_table, head);
}

/* Returns the granule that @entry points to, or NULL if it is a code. */
static struct granule *granule_of(uint64_t entry)
{
	return entry & 1 || entry <= LAST_CODE ? NULL : (struct granule *)(uintptr_t)entry;
}

/* ---- looking up ---- */

static struct gmem_translation nth_piece(const struct granule *granule, uint64_t n)
{
	const uint64_t *codes = granule->starts + granule->count + 1;

	return (struct gmem_translation){ .code = codes[n], .last = granule->starts[n + 1] - 1 };
}

/* Goes from the first piece of the slice upwards; in most slices the first is the one. */
static uint64_t find_in_entry(const struct granule *granule, uint64_t gpa)
{
	uint64_t n = granule->first[gpa >> SLICE_SHIFT & (SLICES - 1)];

	while (granule->starts[n + 1] <= gpa)
		n++;
	return n;
}

/* Finds the last piece that starts at or below @gpa by bisection, for the high granule. */
static uint64_t find_in_many(const struct granule *granule, uint64_t gpa)
{
	uint64_t low = 0, count = granule->count;

	while (count > 1) {
		uint64_t half = count / 2;

		low = granule->starts[low + half] <= gpa ? low + half : low;
		count -= half;
	}
	return low;
}

/*
 * Looks up @gpa. Returns its granule, and in @n the number of the piece there; or, if there
 * is no granule, NULL and the piece itself.
 */
static const struct granule *look_up(const struct gmem_table *table, uint64_t gpa, uint64_t *n,
				     struct gmem_translation *piece)
{
	uint64_t gib = gpa >> GIB_SHIFT, entry;
	const struct granule *granule;

	if (gib >= table->gib_count) {
		granule = gib < MAX_GIBS ? NULL : full(table)->high;
		if (granule)
			*n = find_in_many(granule, gpa);
		else
			*piece = (struct gmem_translation){
				CODE_HOLE, gib < MAX_GIBS ? (gib << GIB_SHIFT) +
							     (UINT64_C(1) << GIB_SHIFT) - 1
							   : UINT64_MAX };
		return granule;
	}

	entry = table->gibs[gib][gpa >> ENTRY_SHIFT & (ENTRIES - 1)];
	granule = granule_of(entry);
	if (granule)
		*n = find_in_entry(granule, gpa);
	else
		*piece = (struct gmem_translation){ entry, gpa | (ENTRY_SIZE - 1) };
	return granule;
}

struct gmem_translation gmem_table_translate(const struct gmem_table *table, uint64_t gpa)
{
	struct gmem_translation piece;
	uint64_t n;
	const struct granule *granule = look_up(table, gpa, &n, &piece);

	return granule ? nth_piece(granule, n) : piece;
}

int gmem_translation_error(struct gmem_translation piece)
{
	switch (piece.code) {
	case CODE_HOLE:
		return -ENOENT;
	case CODE_REMOVED:
		return -ESTALE;
	case CODE_DEVICE:
		return -ENXIO;
	case CODE_PRIVATE:
		return -EACCES;
	default:
		return 0;
	}
}

/* ---- building ---- */

/*
 * Returns the code of the shared parts of @region. If both sides are one guest_memfd, the
 * guest's shared memory is in that file, which the region's hva does not map.
 */
static uint64_t code_of(const struct gmem_region *region)
{
	if (region->is_device)
		return CODE_DEVICE;
	if (gmem_region_is_both_sides(region))
		return CODE_PRIVATE;
	return (region->hva.start - region->gpa.start + 1) | (region->read_only ? GMEM_CODE_READ_ONLY : 0);
}

/* Returns whether @code may be an entry: read-only memory must not, see the header. */
static bool is_entry(uint64_t code)
{
	return !(code & 1) || !(code & GMEM_CODE_READ_ONLY);
}

/* The pieces of a granule while they are collected */
struct builder {
	uint64_t *starts;
	uint64_t *codes;
	size_t count;
	size_t room;
};

static int make_room(struct builder *builder, size_t count)
{
	size_t room = builder->room ? builder->room : 32;
	uint64_t *starts;

	if (builder->count + count <= builder->room)
		return 0;

	while (room < builder->count + count)
		room *= 2;
	starts = malloc(2 * room * sizeof(*starts));
	if (!starts)
		return -ENOMEM;

	if (builder->count) {
		memcpy(starts, builder->starts, builder->count * sizeof(*starts));
		memcpy(starts + room, builder->codes, builder->count * sizeof(*starts));
	}
	free(builder->starts);
	builder->starts = starts;
	builder->codes = starts + room;
	builder->room = room;
	return 0;
}

static int add_piece(struct builder *builder, uint64_t start, uint64_t code)
{
	if (builder->count && builder->codes[builder->count - 1] == code)
		return 0;
	if (make_room(builder, 1))
		return -ENOMEM;

	builder->starts[builder->count] = start;
	builder->codes[builder->count] = code;
	builder->count++;
	return 0;
}

/* Adds @count pieces of a granule from the @n-th on. Neighbours have different codes. */
static int add_pieces(struct builder *builder, const struct granule *granule, uint64_t n,
		      size_t count)
{
	const uint64_t *codes = granule->starts + granule->count + 1;

	if (make_room(builder, count))
		return -ENOMEM;

	memcpy(builder->starts + builder->count, granule->starts + n, count * sizeof(*codes));
	memcpy(builder->codes + builder->count, codes + n, count * sizeof(*codes));
	builder->count += count;
	return 0;
}

/* Counts the pieces after the @n-th that begin at or below @last. */
static size_t count_after(const struct granule *granule, uint64_t n, uint64_t last)
{
	uint64_t m = n;

	while (m + 1 < granule->count && granule->starts[m + 1] <= last)
		m++;
	return m - n;
}

/*
 * Adds [@start, @last] as @table has it, or as a hole if that is NULL. If @removed, its
 * regions are gone: all that is no hole becomes CODE_REMOVED.
 */
static int copy_pieces(struct builder *builder, const struct gmem_table *table, uint64_t start,
		       uint64_t last, bool removed)
{
	const struct granule *granule = NULL;
	struct gmem_translation piece = { CODE_HOLE, last };
	uint64_t n = 0;
	size_t more;
	int err;

	for (;;) {
		if (table)
			granule = look_up(table, start, &n, &piece);
		if (granule)
			piece = nth_piece(granule, n);
		if (removed && piece.code != CODE_HOLE)
			piece.code = CODE_REMOVED;
		err = add_piece(builder, start, piece.code);

		/* Copy the rest of a granule at once: it may have hundreds of pieces. */
		more = granule && !removed && !err ? count_after(granule, n, last) : 0;
		if (more) {
			err = add_pieces(builder, granule, n + 1, more);
			piece = nth_piece(granule, n + more);
		}
		if (err || piece.last >= last)
			return err;
		start = piece.last + 1;
	}
}

/*
 * Adds [@start, @last] as @layout has it. Gaps between regions are holes, or removed
 * regions if @old has anything there.
 */
static int add_regions(struct builder *builder, const struct gmem_table *old,
		       const struct gmem_layout *layout, uint64_t start, uint64_t last)
{
	struct gmem_stretch at = { .layout = *layout, .next = start, .end = last };
	int err = 0;

	while (!err && gmem_regions_walk(&at)) {
		if (!at.region)
			err = copy_pieces(builder, old, at.gpa, at.gpa + at.size - 1, true);
		else if (at.is_private && !at.region->is_device)
			err = add_piece(builder, at.gpa, CODE_PRIVATE);
		else
			err = add_piece(builder, at.gpa, code_of(at.region));
	}
	return err;
}

/* Makes a granule of the pieces. @end is the end of the last one; 0 stands for 2^64. */
static struct granule *make_granule(const struct builder *builder, uint64_t end)
{
	struct granule *granule;
	uint64_t *codes, n = 0;

	granule = malloc(sizeof(*granule) + (2 * builder->count + 1) * sizeof(uint64_t));
	if (!granule)
		return NULL;

	granule->count = builder->count;
	codes = granule->starts + builder->count + 1;
	memcpy(granule->starts, builder->starts, builder->count * sizeof(uint64_t));
	memcpy(codes, builder->codes, builder->count * sizeof(uint64_t));
	granule->starts[builder->count] = end;

	for (uint64_t slice = 0; slice < SLICES; slice++) {
		uint64_t start = (granule->starts[0] & ~(ENTRY_SIZE - 1)) + (slice << SLICE_SHIFT);

		while (n + 1 < builder->count && granule->starts[n + 1] <= start)
			n++;
		granule->first[slice] = (uint16_t)n;
	}
	return granule;
}

/*
 * Collects the pieces of @all: [@start, @last] as @layout has it, the rest as @table has
 * it, which is the new table.
 */
static int collect(struct builder *builder, const struct gmem_table *table,
		   const struct gmem_table *old, const struct gmem_layout *layout,
		   const struct gmem_part *all, uint64_t start, uint64_t last)
{
	int err = 0;

	if (all->start < start)
		err = copy_pieces(builder, table, all->start, start - 1, false);
	if (!err)
		err = add_regions(builder, old, layout, start, last);
	if (!err && last < all->last)
		err = copy_pieces(builder, table, last + 1, all->last, false);
	return err;
}

static int make_entry(const struct gmem_table *table, const struct gmem_table *old,
		      const struct gmem_layout *layout, uint64_t start, uint64_t last,
		      uint64_t *ret)
{
	const struct gmem_part all = { start & ~(ENTRY_SIZE - 1), start | (ENTRY_SIZE - 1) };
	struct gmem_stretch whole = { .layout = *layout, .next = start, .end = last };
	struct builder builder = { NULL, NULL, 0, 0 };
	struct granule *granule = NULL;
	int err;

	/* In most entries all 2 MiB are shared memory of one region. */
	if (start == all.start && last == all.last && gmem_regions_walk(&whole) && whole.region &&
	    !whole.is_private && whole.is_over && is_entry(code_of(whole.region))) {
		*ret = code_of(whole.region);
		return 0;
	}

	err = collect(&builder, table, old, layout, &all, start, last);
	if (!err && (builder.count > 1 || !is_entry(builder.codes[0]))) {
		granule = make_granule(&builder, all.last + 1);
		err = granule ? 0 : -ENOMEM;
	}
	if (!err)
		*ret = granule ? (uintptr_t)granule : builder.codes[0];
	free(builder.starts);
	return err;
}

static uint64_t gibs_needed(const struct gmem_table *old, const struct gmem_range_map *regions)
{
	uint64_t old_count = old ? old->gib_count : 0, count = 0;
	const struct gmem_range *range = regions->root;

	while (range && range->right)
		range = range->right;
	if (range)
		count = (gmem_range_last(range) >> GIB_SHIFT) + 1;
	if (count > MAX_GIBS)
		count = MAX_GIBS;

	/* Never fewer than before: entries remember that a region was removed. */
	return count > old_count ? count : old_count;
}

int gmem_table_new(const struct gmem_table *old, const struct gmem_range_map *regions,
		   struct gmem_table **ret)
{
	uint64_t count = gibs_needed(old, regions), old_count = old ? old->gib_count : 0;
	struct gmem_full_table *table;

	table = malloc(sizeof(*table) + count * sizeof(table->gibs[0]));
	if (!table)
		return -ENOMEM;

	table->head.gib_count = count;
	table->head.gibs = table->gibs;
	table->high = old ? full(old)->high : NULL;
	if (old_count)
		memcpy(table->gibs, old->gibs, old_count * sizeof(table->gibs[0]));
	for (uint64_t i = old_count; i < count; i++)
		table->gibs[i] = empty_gib;
	*ret = &table->head;
	return 0;
}

static const uint64_t *old_gib(const struct gmem_table *old, uint64_t gib)
{
	return old && gib < old->gib_count ? old->gibs[gib] : empty_gib;
}

/* Returns the entries of a GiB to write to: a copy if @table still shares those of @old. */
static int own_gib(struct gmem_full_table *table, const struct gmem_table *old, uint64_t gib,
		   uint64_t **ret)
{
	uint64_t *entries;

	if (table->gibs[gib] == old_gib(old, gib)) {
		entries = malloc(ENTRIES * sizeof(*entries));
		if (!entries)
			return -ENOMEM;
		memcpy(entries, table->gibs[gib], ENTRIES * sizeof(*entries));
		table->gibs[gib] = entries;
	}

	*ret = (uint64_t *)(uintptr_t)table->gibs[gib];
	return 0;
}

static int refresh_high(struct gmem_full_table *table, const struct gmem_table *old,
			const struct gmem_layout *layout, uint64_t start, uint64_t last)
{
	const struct gmem_part all = { MAX_GIBS << GIB_SHIFT, UINT64_MAX };
	struct granule *high = NULL, *before = table->high;
	struct builder builder = { NULL, NULL, 0, 0 };
	int err;

	err = collect(&builder, &table->head, old, layout, &all, start, last);
	if (!err)
		high = make_granule(&builder, 0);
	free(builder.starts);
	if (!high)
		return -ENOMEM;

	table->high = high;
	if (!old || before != full(old)->high)
		free(before);
	return 0;
}

int gmem_table_refresh(struct gmem_table *head, const struct gmem_table *old,
		       const struct gmem_layout *layout, uint64_t start, uint64_t size)
{
	struct gmem_full_table *table = GMEM_CONTAINER_OF(head, struct gmem_full_table, head);
	uint64_t last = start + size - 1, at = start;
	int err;

	for (;;) {
		uint64_t gib = at >> GIB_SHIFT, index = at >> ENTRY_SHIFT & (ENTRIES - 1);
		uint64_t end = at | (ENTRY_SIZE - 1);
		uint64_t *entries, entry, before;

		if (gib >= MAX_GIBS)
			return refresh_high(table, old, layout, at, last);

		end = end < last ? end : last;
		err = own_gib(table, old, gib, &entries);
		if (!err)
			err = make_entry(head, old, layout, at, end, &entry);
		if (err)
			return err;

		before = entries[index];
		entries[index] = entry;
		if (before != old_gib(old, gib)[index])
			free(granule_of(before));
		if (end == last)
			return 0;
		at = end + 1;
	}
}

static void free_gib(const uint64_t *entries, const uint64_t *kept)
{
	/* In most cases one entry differs, so skip equal entries many at once. */
	for (size_t i = 0; i < ENTRIES; i += COMPARED_AT_ONCE) {
		if (memcmp(&entries[i], &kept[i], COMPARED_AT_ONCE * sizeof(*entries)) == 0)
			continue;
		for (size_t j = i; j < i + COMPARED_AT_ONCE; j++)
			if (entries[j] != kept[j])
				free(granule_of(entries[j]));
	}
	free((void *)(uintptr_t)entries);
}

void gmem_table_free(const struct gmem_table *head, const struct gmem_table *kept)
{
	const struct gmem_full_table *table;

	if (!head)
		return;

	table = full(head);
	for (uint64_t i = 0; i < head->gib_count; i++)
		if (table->gibs[i] != empty_gib && table->gibs[i] != old_gib(kept, i))
			free_gib(table->gibs[i], old_gib(kept, i));
	if (!kept || table->high != full(kept)->high)
		free(table->high);
	free((void *)(uintptr_t)table);
}
