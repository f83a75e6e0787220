/* SPDX-License-Identifier: MIT */
/*
 * Lists are allocated as entries arrive, not by the counts in the head, and an entry is only
 * kept if the target can have it: a region lies in the target's, and a private range in a
 * region. So the list of private ranges has an entry for two pages of the target at most.
 * Without a target there is IMAGE_MAX_PRIVATES.
 */
#include "transfer/image_layout.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "gmem.h"
#include "base/error.h"
#include "base/kind.h"
#include "transfer/leased_memory.h"
#include "transfer/transfer.h"

/* Ranges compared with the target in one step */
#define CHECK_STEP 16384

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

static size_t region_at(const struct gmem_image_layout *layout, uint64_t gpa)
{
	size_t low = 0, high = layout->regions_read, middle;

	while (low < high) {
		middle = low + (high - low) / 2;
		if (layout->regions[middle].gpa + (layout->regions[middle].size - 1) < gpa)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

bool gmem_image_layout_next_shared(const struct gmem_image_layout *layout, uint64_t start, uint64_t last,
			struct gmem_part *ret)
{
	for (;;) {
		size_t r = region_at(layout, start), p;
		const struct image_region *region;
		const struct image_range *range;
		uint64_t end;

		if (r == layout->regions_read || layout->regions[r].gpa > last)
			return false;
		region = &layout->regions[r];
		start = region->gpa > start ? region->gpa : start;
		end = region->gpa + (region->size - 1);
		end = end < last ? end : last;

		p = range_at(layout->privates, layout->private_ranges, start);
		if (p == layout->private_ranges || layout->privates[p].gpa > end) {
			*ret = (struct gmem_part){ start, end };
			return true;
		}
		range = &layout->privates[p];
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

bool gmem_image_layout_is_shared(const struct gmem_image_layout *layout, uint64_t gpa, uint64_t size)
{
	uint64_t last = gpa + (size - 1);
	struct gmem_part part;

	while (gmem_image_layout_next_shared(layout, gpa, last, &part) && part.start == gpa) {
		if (part.last == last)
			return true;
		gpa = part.last + 1;
	}
	return false;
}

/* ---- entries of a list ---- */

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

int gmem_image_check_range(uint64_t number, uint64_t gpa, uint64_t size, uint64_t after)
{
	if (gpa + size <= gpa || gpa % IMAGE_BLOCK || size % IMAGE_BLOCK)
		return gmem_image_bad(number, "gpa 0x%" PRIx64 ", 0x%" PRIx64 " bytes, is no range", gpa, size);
	if (gpa < after)
		return gmem_image_bad(number, "gpa 0x%" PRIx64 " comes after 0x%" PRIx64, gpa, after);
	return 0;
}

static int check_target_has(const struct gmem_transfer *transfer, const struct gmem_image_layout *layout,
			    const struct image_region *region)
{
	const struct gmem_leased_region *other;
	uint64_t reach;

	if (!layout->has_target)
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
			 ", the VM has no memory at 0x%" PRIx64, region->gpa,
			 region->gpa + (region->size - 1), region->gpa + reach);
}

static int read_regions(const struct gmem_transfer *transfer, struct gmem_image_layout *layout,
			const struct gmem_image_table *table)
{
	const struct image_region *entries = table->entries;
	uint64_t after = 0;
	int err;

	if (!gmem_image_has_entries(table, sizeof(*entries)) ||
	    table->count > layout->region_count - layout->regions_read)
		return gmem_image_bad(table->number, "%" PRIu32 " regions", table->count);
	err = make_room((void **)&layout->regions, &layout->region_room, layout->regions_read,
			table->count, sizeof(*entries));

	for (uint32_t i = 0; i < table->count && !err; i++) {
		if (layout->regions_read) {
			const struct image_region *last = &layout->regions[layout->regions_read - 1];

			after = last->gpa + last->size;
		}
		err = gmem_image_check_range(table->number, entries[i].gpa, entries[i].size, after);
		if (!err && !gmem_backing_name(entries[i].backing))
			err = gmem_image_bad(table->number, "%" PRIu32 " is no way of backing", entries[i].backing);
		if (!err)
			err = check_target_has(transfer, layout, &entries[i]);
		if (!err)
			layout->regions[layout->regions_read++] = entries[i];
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
				      const struct gmem_image_layout *layout,
				      const struct image_elsewhere *region)
{
	uint64_t reach;

	if (!layout->has_target || transfer->opts.flags & GMEM_TRANSFER_LEAVE_REST)
		return 0;
	reach = elsewhere_reach(&transfer->memory, region);
	return reach < region->size ? fail_elsewhere(&transfer->memory, region, reach) : 0;
}

static bool overlaps_a_region(const struct gmem_image_layout *layout, const struct image_elsewhere *region)
{
	size_t r = region_at(layout, region->gpa);

	return r < layout->regions_read &&
	       layout->regions[r].gpa <= region->gpa + (region->size - 1);
}

static int check_elsewhere(const struct gmem_transfer *transfer, const struct gmem_image_layout *layout,
			   const struct gmem_image_table *table, const struct image_elsewhere *region)
{
	const struct image_elsewhere *last = layout->elsewhere_read
						     ? &layout->elsewhere[layout->elsewhere_read - 1]
						     : NULL;
	int err = gmem_image_check_range(table->number, region->gpa, region->size, last ? last->gpa + last->size : 0);

	if (err)
		return err;
	if (!gmem_kind_name(region->kind) || gmem_kind_has(region->kind, GMEM_USE_SAVE))
		return gmem_image_bad(table->number, "%" PRIu32 " is no kind of memory whose contents are elsewhere",
			   region->kind);
	if (region->reserved)
		return gmem_image_bad(table->number, "a reserved field is not 0");
	if (overlaps_a_region(layout, region))
		return gmem_image_bad(table->number, "gpa 0x%" PRIx64 ", whose contents are elsewhere, is in a region",
			   region->gpa);
	return check_target_has_elsewhere(transfer, layout, region);
}

static int read_elsewhere(struct gmem_transfer *transfer, struct gmem_image_layout *layout,
			  const struct gmem_image_table *table)
{
	const struct image_elsewhere *entries = table->entries;
	int err;

	if (!gmem_image_has_entries(table, sizeof(*entries)) ||
	    table->count > IMAGE_MAX_REGIONS - layout->elsewhere_read)
		return gmem_image_bad(table->number, "%" PRIu32 " regions whose contents are elsewhere", table->count);
	if (layout->regions_read != layout->region_count)
		return gmem_image_bad(table->number, "the list of regions is not complete");
	err = make_room((void **)&layout->elsewhere, &layout->elsewhere_room, layout->elsewhere_read,
			table->count, sizeof(*entries));

	for (uint32_t i = 0; i < table->count && !err; i++) {
		err = check_elsewhere(transfer, layout, table, &entries[i]);
		if (!err)
			layout->elsewhere[layout->elsewhere_read++] = entries[i];
		if (!err)
			transfer->left_out_bytes += entries[i].size;
	}
	return err;
}

static bool is_elsewhere(const struct gmem_image_layout *layout, uint64_t gpa, uint64_t *ret_last)
{
	size_t low = 0, high = layout->elsewhere_read, middle;

	while (low < high) {
		middle = low + (high - low) / 2;
		*ret_last = layout->elsewhere[middle].gpa + (layout->elsewhere[middle].size - 1);
		if (*ret_last < gpa)
			low = middle + 1;
		else if (layout->elsewhere[middle].gpa > gpa)
			high = middle;
		else
			return true;
	}
	return false;
}

/* That kind and identity agree was seen when the image's entries were read. */
static int check_image_has_elsewhere(const struct gmem_leased_memory *memory,
				     const struct gmem_image_layout *layout)
{
	for (size_t i = 0; i < memory->elsewhere_count; i++) {
		const struct gmem_leased_region *region = &memory->elsewhere[i];
		uint64_t at = region->gpa, last = region->gpa + (region->size - 1), end;

		for (; at <= last; at = end + 1)
			if (!is_elsewhere(layout, at, &end))
				return gmem_fail(-EEXIST, "the VM has memory of kind \"%s\" at gpa 0x%" PRIx64
						 " that the image does not have",
						 gmem_kind_name(region->kind), at);
	}
	return 0;
}

/* ---- private ranges ---- */

static bool is_in_a_region(const struct gmem_image_layout *layout, const struct image_range *range)
{
	size_t r = region_at(layout, range->gpa);

	return r < layout->regions_read && layout->regions[r].gpa <= range->gpa &&
	       range->gpa + (range->size - 1) <=
		       layout->regions[r].gpa + (layout->regions[r].size - 1);
}

/* Keep a range that comes after all others. */
static int add_private(struct gmem_image_layout *layout, const struct image_range *range)
{
	struct image_range *last = layout->private_ranges
					   ? &layout->privates[layout->private_ranges - 1] : NULL;
	int err;

	if (last && last->gpa + last->size == range->gpa) {
		last->size += range->size;
		return 0;
	}
	if (!layout->has_target && layout->private_ranges == IMAGE_MAX_PRIVATES)
		return gmem_fail(-ENOMEM, "the image has more than %zu private ranges: only together with "
				 "the VM can it be verified", IMAGE_MAX_PRIVATES);
	err = make_room((void **)&layout->privates, &layout->private_room, layout->private_ranges,
			1, sizeof(*range));
	if (!err)
		layout->privates[layout->private_ranges++] = *range;
	return err;
}

static int read_privates(struct gmem_transfer *transfer, struct gmem_image_layout *layout,
			 const struct gmem_image_table *table)
{
	const struct image_range *entries = table->entries;
	uint64_t after = 0;
	int err = 0;

	if (!gmem_image_has_entries(table, sizeof(*entries)) ||
	    table->count > layout->private_count - layout->privates_read)
		return gmem_image_bad(table->number, "%" PRIu32 " private ranges", table->count);

	for (uint32_t i = 0; i < table->count && !err; i++) {
		if (layout->private_ranges) {
			const struct image_range *last = &layout->privates[layout->private_ranges - 1];

			after = last->gpa + last->size;
		}
		err = gmem_image_check_range(table->number, entries[i].gpa, entries[i].size, after);
		if (!err && !is_in_a_region(layout, &entries[i]))
			err = gmem_image_bad(table->number, "gpa 0x%" PRIx64 " is private and in no region",
				  entries[i].gpa);
		if (!err)
			err = add_private(layout, &entries[i]);
		if (err)
			break;
		layout->privates_read++;
		transfer->private_bytes += entries[i].size;
	}
	return err;
}

/* ---- the list of regions ---- */

/* Bytes of a region that are private; *@at goes on from the ranges of the region before it. */
static uint64_t private_bytes_in(const struct gmem_image_layout *layout,
				 const struct image_region *region, size_t *at)
{
	uint64_t last = region->gpa + (region->size - 1), sum = 0;

	for (; *at < layout->private_ranges && layout->privates[*at].gpa <= last; (*at)++) {
		const struct image_range *range = &layout->privates[*at];
		uint64_t start = range->gpa > region->gpa ? range->gpa : region->gpa;
		uint64_t end = range->gpa + (range->size - 1);

		sum += (end < last ? end : last) - start + 1;
		/* It goes on in the next region. */
		if (end > last)
			break;
	}
	return sum;
}

/* Whether the next of the two lists by address is @regions'; each may be empty, or at its end. */
static bool is_before(const struct gmem_image_layout *layout, size_t region, size_t other)
{
	if (region == layout->regions_read || other == layout->elsewhere_read)
		return other == layout->elsewhere_read;
	return layout->regions[region].gpa < layout->elsewhere[other].gpa;
}

void gmem_image_layout_list(const struct gmem_image_layout *layout, struct gmem_image_region *ret)
{
	size_t region = 0, other = 0;
	size_t at = 0;

	while (region < layout->regions_read || other < layout->elsewhere_read) {
		if (is_before(layout, region, other)) {
			const struct image_region *entry = &layout->regions[region++];

			*ret++ = (struct gmem_image_region){
				.gpa = entry->gpa,
				.size = entry->size,
				.private_bytes = private_bytes_in(layout, entry, &at),
				.backing = entry->backing,
			};
		} else {
			const struct image_elsewhere *entry = &layout->elsewhere[other++];

			*ret++ = (struct gmem_image_region){
				.gpa = entry->gpa,
				.size = entry->size,
				.identity = entry->identity,
				.kind = entry->kind,
			};
		}
	}
}

/* ---- image and target ---- */

/* Compares CHECK_STEP ranges at most; *@ret_all: these were the last. */
static int check_target_has_all(const struct gmem_leased_memory *memory, struct gmem_image_layout *layout,
				bool *ret_all)
{
	struct gmem_part part;
	uint64_t reach;

	*ret_all = false;
	for (unsigned int i = 0; i < CHECK_STEP; i++) {
		if (!gmem_image_layout_next_shared(layout, layout->checked, UINT64_MAX, &part)) {
			*ret_all = true;
			return 0;
		}
		reach = gmem_leased_memory_reach(memory, part.start, part.last - part.start + 1);
		if (reach < part.last - part.start + 1)
			return gmem_fail(gmem_leased_memory_is_private(memory, part.start + reach) ? -EACCES : -ENOENT,
					 "the image has memory at gpa 0x%" PRIx64 " up to 0x%" PRIx64
					 ", the VM has no shared memory at 0x%" PRIx64, part.start,
					 part.last, part.start + reach);
		layout->checked = part.last + 1;
	}
	return 0;
}

static int check_target_has_no_more(const struct gmem_leased_memory *memory,
				    const struct gmem_image_layout *layout)
{
	for (size_t i = 0; i < memory->region_count; i++) {
		const struct gmem_leased_region *region = &memory->regions[i];
		uint64_t at = region->gpa, last = region->gpa + (region->size - 1);

		while (at <= last) {
			size_t r = region_at(layout, at);

			if (r == layout->regions_read || layout->regions[r].gpa > at)
				return gmem_fail(-EEXIST,
						 "the VM has memory at gpa 0x%" PRIx64
						 " that the image does not have", at);
			at = layout->regions[r].gpa + layout->regions[r].size;
		}
	}
	return 0;
}

/* Regions come first, then what is private in them, then what they hold. */
static int read_list(struct gmem_transfer *transfer, struct gmem_image_layout *layout,
		     const struct gmem_image_table *table)
{
	if (layout->is_complete)
		return gmem_image_bad(table->number, "a list among the data");
	if (table->kind == IMAGE_PRIVATE)
		return read_privates(transfer, layout, table);
	if (layout->privates_read)
		return gmem_image_bad(table->number, "regions after private ranges");
	return table->kind == IMAGE_REGIONS ? read_regions(transfer, layout, table)
				     : read_elsewhere(transfer, layout, table);
}

/* Forget all entries of a record of which one failed: with it the step may be repeated. */
int gmem_image_layout_read(struct gmem_transfer *transfer, struct gmem_image_layout *layout,
			   const struct gmem_image_table *table)
{
	const struct gmem_image_layout before = *layout;
	const uint64_t private_bytes = transfer->private_bytes, left_out = transfer->left_out_bytes;
	const size_t ranges = before.private_ranges;
	const uint64_t last_size = ranges ? before.privates[ranges - 1].size : 0;
	int err = read_list(transfer, layout, table);

	if (!err)
		return 0;

	layout->regions_read = before.regions_read;
	layout->elsewhere_read = before.elsewhere_read;
	layout->privates_read = before.privates_read;
	layout->private_ranges = ranges;
	/* The list may have moved, and its last range grown. */
	if (ranges)
		layout->privates[ranges - 1].size = last_size;
	transfer->private_bytes = private_bytes;
	transfer->left_out_bytes = left_out;
	return err;
}

int gmem_image_layout_end(struct gmem_transfer *transfer, struct gmem_image_layout *layout,
			  uint64_t number)
{
	bool all = true, rest = !(transfer->opts.flags & GMEM_TRANSFER_LEAVE_REST);
	int err = 0;

	if (layout->is_complete)
		return 0;
	if (layout->regions_read != layout->region_count ||
	    layout->privates_read != layout->private_count)
		return gmem_image_bad(number, "the list of regions is not complete");

	if (layout->has_target)
		err = check_target_has_all(&transfer->memory, layout, &all);
	if (!err && all && layout->has_target && rest)
		err = check_target_has_no_more(&transfer->memory, layout);
	if (!err && all && layout->has_target && rest)
		err = check_image_has_elsewhere(&transfer->memory, layout);
	layout->is_complete = !err && all;
	return err;
}

void gmem_image_layout_free(struct gmem_image_layout *layout)
{
	free(layout->regions);
	free(layout->elsewhere);
	free(layout->privates);
	*layout = (struct gmem_image_layout){ 0 };
}
