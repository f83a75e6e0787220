/* SPDX-License-Identifier: MIT */
/* Checks JSON against gmem-dump(5) and makes a layout of it. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "layout.h"
#include "reader.h"
#include "text.h"

#define FORMAT 1

struct taker {
	char *error;
	size_t size;
	uint64_t page_size;
	bool failed;
};

__attribute__((format(printf, 3, 4)))
static void complain(struct taker *t, const struct json *where, const char *format, ...)
{
	va_list args;
	int used;

	if (t->failed)
		return;

	t->failed = true;
	used = snprintf(t->error, t->size, "line %u: ", where->line);
	va_start(args, format);
	vsnprintf(t->error + used, t->size - (size_t)used, format, args);
	va_end(args);
}

/* ---- members ---- */

static const char *const type_names[] = {
	[JSON_NULL] = "null",
	[JSON_BOOL] = "true or false",
	[JSON_NUMBER] = "a whole number below 2^64",
	[JSON_OTHER_NUMBER] = "a number",
	[JSON_STRING] = "a string",
	[JSON_ARRAY] = "an array",
	[JSON_OBJECT] = "an object",
};

/* Finds a member. Returns NULL for a null that is allowed, and after a complaint. */
static const struct json *member(struct taker *t, const struct json *object, const char *name,
				 enum json_type type, bool may_be_null)
{
	const struct json *value;

	if (t->failed)
		return NULL;
	if (object->type != JSON_OBJECT) {
		complain(t, object, "an object should be here");
		return NULL;
	}

	value = find_member(object, name);
	if (!value)
		complain(t, object, "there is no \"%s\"", name);
	else if (value->type == JSON_NULL && may_be_null)
		return NULL;
	else if (value->type != type)
		complain(t, value, "\"%s\" is not %s", name, type_names[type]);
	return t->failed ? NULL : value;
}

static uint64_t number(struct taker *t, const struct json *object, const char *name)
{
	const struct json *value = member(t, object, name, JSON_NUMBER, false);

	return value ? value->number : 0;
}

static uint64_t number_or_unknown(struct taker *t, const struct json *object, const char *name)
{
	const struct json *value = member(t, object, name, JSON_NUMBER, true);

	if (value && value->number == UNKNOWN)
		complain(t, value, "\"%s\" is %" PRIu64 ", which would stand for null", name, UNKNOWN);
	return value ? value->number : UNKNOWN;
}

static bool truth(struct taker *t, const struct json *object, const char *name)
{
	const struct json *value = member(t, object, name, JSON_BOOL, false);

	return value && value->truth;
}

static const char *string(struct taker *t, const struct json *object, const char *name,
			  bool may_be_null)
{
	const struct json *value = member(t, object, name, JSON_STRING, may_be_null);

	return value ? value->string : NULL;
}

static size_t count_elements(const struct json *array)
{
	const struct json *element;
	size_t count = 0;

	for (element = array->first; element; element = element->next)
		count++;
	return count;
}

/* ---- pieces ---- */

static void take_range(struct taker *t, const struct json *object, uint64_t *gpa, uint64_t *size)
{
	*gpa = number(t, object, "gpa");
	*size = number(t, object, "size");
	if (t->failed)
		return;
	if (*size == 0 || *gpa + *size - 1 < *gpa)
		complain(t, object, "gpa %" PRIu64 " and size %" PRIu64 " are no range", *gpa, *size);
	else if (*gpa % t->page_size || *size % t->page_size)
		complain(t, object, "gpa %" PRIu64 " or size %" PRIu64 " is no multiple of the page",
			 *gpa, *size);
}

static uint64_t part_of(struct taker *t, const struct json *object, const char *name,
			uint64_t size)
{
	uint64_t part = number_or_unknown(t, object, name);

	if (part != UNKNOWN && part > size)
		complain(t, object, "\"%s\" is %" PRIu64 ", more than all, %" PRIu64, name, part, size);
	return part;
}

static void take_nodes(struct taker *t, const struct json *object, struct piece *piece)
{
	const struct json *array = member(t, object, "nodes", JSON_ARRAY, false), *element;

	if (!array)
		return;

	piece->nodes = check_memory(calloc(count_elements(array) + 1, sizeof(*piece->nodes)));
	for (element = array->first; element && !t->failed; element = element->next) {
		struct share *share = &piece->nodes[piece->node_count++];

		share->node = number(t, element, "node");
		share->pages = number(t, element, "pages");
		if (share->pages > piece->size / t->page_size || share->node == UNKNOWN)
			complain(t, element, "there are not as many pages or nodes");
	}
}

static void take_piece(struct taker *t, const struct json *object, struct piece *piece)
{
	take_range(t, object, &piece->gpa, &piece->size);
	piece->private = part_of(t, object, "private", piece->size);
	piece->resident[SHARED] = part_of(t, object, "shared_resident", piece->size);
	piece->resident[PRIVATE] = part_of(t, object, "private_resident", piece->size);
	take_nodes(t, object, piece);
}

static void take_pieces(struct taker *t, const struct json *object, struct region *region)
{
	const struct json *array = member(t, object, "ranges", JSON_ARRAY, false), *element;
	uint64_t at = region->gpa;

	if (!array)
		return;

	region->pieces = check_memory(calloc(count_elements(array) + 1, sizeof(*region->pieces)));
	for (element = array->first; element && !t->failed; element = element->next) {
		struct piece *piece = &region->pieces[region->piece_count++];

		take_piece(t, element, piece);
		if (t->failed)
			break;
		if (piece->gpa != at || piece->size > region->size - (at - region->gpa))
			complain(t, element, "the range at %" PRIu64 ", %" PRIu64 " bytes, does not follow "
				 "the one before it inside its region", piece->gpa, piece->size);
		at += piece->size;
	}
}

/* ---- regions ---- */

static void take_file(struct taker *t, const struct json *object, struct region *region)
{
	const struct json *file = member(t, object, "file", JSON_OBJECT, true);

	if (!file)
		return;

	region->has_file = true;
	region->fd = number(t, file, "fd");
	region->file_size = number(t, file, "size");
	region->file_offset = number(t, file, "offset");
	region->create_flags = number(t, file, "create_flags");
}

/* Dumps of older libraries do not have it. */
static void take_kind(struct taker *t, const struct json *object, struct region *region)
{
	if (t->failed || !find_member(object, "kind"))
		return;

	region->has_kind = true;
	region->kind = string(t, object, "kind", true);
	region->identity = number(t, object, "identity");
}

static bool has_pages(const struct region *region)
{
	return strcmp(region->backing, "device") &&
	       (!region->kind || (strcmp(region->kind, "device") && strcmp(region->kind, "external")));
}

static void take_region(struct taker *t, const struct json *object, struct region *region)
{
	take_range(t, object, &region->gpa, &region->size);
	region->backing = string(t, object, "backing", false);
	region->slot = number_or_unknown(t, object, "slot");
	take_kind(t, object, region);
	region->lost = truth(t, object, "lost");
	region->readonly = truth(t, object, "readonly");
	region->dirty_log = truth(t, object, "dirty_log");
	region->hva = number_or_unknown(t, object, "hva");
	take_file(t, object, region);
	take_pieces(t, object, region);
	if (t->failed)
		return;

	region->is_device = !has_pages(region);
	region->has_private_side = !strcmp(region->backing, "private");
	region->has_slot = region->slot != UNKNOWN;
	region->has_hva = region->hva != UNKNOWN;
}

static struct region *take_regions(struct taker *t, const struct json *root, const char *name,
				   bool in_order, size_t *ret_count)
{
	const struct json *array = member(t, root, name, JSON_ARRAY, false), *element;
	struct region *regions, *before = NULL;
	size_t count = 0;

	*ret_count = 0;
	if (!array)
		return NULL;

	regions = check_memory(calloc(count_elements(array) + 1, sizeof(*regions)));
	for (element = array->first; element && !t->failed; element = element->next) {
		struct region *region = &regions[count++];

		take_region(t, element, region);
		if (in_order && before && !t->failed &&
		    (region->gpa < before->gpa || region->gpa - before->gpa < before->size))
			complain(t, element, "the region at %" PRIu64 " overlaps, or comes before, the one "
				 "before it", region->gpa);
		before = region;
	}
	*ret_count = count;
	return regions;
}

static void take_leases(struct taker *t, const struct json *root, struct layout *layout)
{
	const struct json *array = member(t, root, "leases", JSON_ARRAY, false), *element;

	if (!array)
		return;

	layout->leases = check_memory(calloc(count_elements(array) + 1, sizeof(*layout->leases)));
	for (element = array->first; element && !t->failed; element = element->next) {
		struct lease *lease = &layout->leases[layout->lease_count++];

		lease->gpa = number(t, element, "gpa");
		lease->size = number(t, element, "size");
		lease->holder = string(t, element, "holder", false);
	}
}

static void take_head(struct taker *t, const struct json *root, struct layout *layout)
{
	uint64_t format = number(t, root, "gmem_dump");

	if (!t->failed && format != FORMAT)
		complain(t, root, "format %" PRIu64 " is not known to this gmem-show, which knows %d",
			 format, FORMAT);

	layout->library = string(t, root, "library", false);
	layout->name = string(t, root, "name", true);
	layout->architecture = string(t, root, "architecture", false);
	layout->address_bits = number_or_unknown(t, root, "address_bits");
	layout->memslots = number(t, root, "memslots");
	layout->address_space = UNKNOWN;
	if (!t->failed && find_member(root, "address_space"))
		layout->address_space = number_or_unknown(t, root, "address_space");
	layout->page_size = t->page_size = number(t, root, "page_size");
	if (!t->failed && (t->page_size < 1024 || t->page_size & (t->page_size - 1)))
		complain(t, root, "a page of %" PRIu64 " bytes", t->page_size);
}

bool take_layout(const struct json *root, struct layout *ret, char *error, size_t size)
{
	struct taker t = { .error = error, .size = size };

	*ret = (struct layout){ 0 };
	take_head(&t, root, ret);
	ret->regions = take_regions(&t, root, "regions", true, &ret->region_count);
	ret->stuck = take_regions(&t, root, "stuck", false, &ret->stuck_count);
	take_leases(&t, root, ret);
	return !t.failed;
}

static void free_regions(struct region *regions, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		for (size_t j = 0; j < regions[i].piece_count; j++)
			free(regions[i].pieces[j].nodes);
		free(regions[i].pieces);
	}
	free(regions);
}

void free_layout(struct layout *layout)
{
	free_regions(layout->regions, layout->region_count);
	free_regions(layout->stuck, layout->stuck_count);
	free(layout->leases);
}

/* ---- sums ---- */

static void add_piece(const struct region *region, const struct piece *piece,
		      struct totals *totals)
{
	bool unknown = false;

	if (piece->private != UNKNOWN)
		totals->private += piece->private;
	for (int side = 0; side < (region->has_private_side ? SIDES : PRIVATE); side++) {
		if (piece->resident[side] == UNKNOWN)
			unknown = true;
		else
			totals->resident[side] += piece->resident[side];
	}
	if (unknown)
		totals->unknown += piece->size;

	for (size_t i = 0; i < piece->node_count; i++) {
		uint64_t node = piece->nodes[i].node;

		if (totals->lowest_node == UNKNOWN || node < totals->lowest_node)
			totals->lowest_node = node;
		if (totals->highest_node == UNKNOWN || node > totals->highest_node)
			totals->highest_node = node;
	}
}

static void add_device(const struct region *region, struct totals *totals)
{
	totals->devices += region->size;
	if (strcmp(region->backing, "device") == 0) {
		totals->range_count++;
	} else {
		totals->elsewhere += region->size;
		totals->elsewhere_count++;
	}
}

void add_up(const struct region *regions, size_t count, struct totals *ret)
{
	*ret = (struct totals){ .lowest_node = UNKNOWN, .highest_node = UNKNOWN };
	for (size_t i = 0; i < count; i++) {
		const struct region *region = &regions[i];
		uint64_t described = 0;

		if (region->is_device) {
			add_device(region, ret);
			continue;
		}
		ret->memory += region->size;
		for (size_t j = 0; j < region->piece_count; j++) {
			add_piece(region, &region->pieces[j], ret);
			described += region->pieces[j].size;
		}
		ret->unknown += region->size - described;
	}
}

/* Returns the index of the first piece that ends after @gpa. */
static size_t find_piece(const struct region *region, uint64_t gpa)
{
	size_t low = 0, high = region->piece_count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;
		const struct piece *piece = &region->pieces[middle];

		if (piece->gpa + (piece->size - 1) < gpa)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static void add_to_cell(const struct piece *piece, double part, struct cell *cell, double *most)
{
	cell->size += part * (double)piece->size;
	if (piece->private == UNKNOWN)
		cell->state_known = false;
	else
		cell->private += part * (double)piece->private;

	for (int side = 0; side < SIDES; side++) {
		if (piece->resident[side] == UNKNOWN)
			cell->known[side] = false;
		else
			cell->resident[side] += part * (double)piece->resident[side];
	}

	for (size_t i = 0; i < piece->node_count; i++) {
		double pages = part * (double)piece->nodes[i].pages;

		if (pages > *most) {
			*most = pages;
			cell->node = piece->nodes[i].node;
		}
	}
}

void look_at_cell(const struct region *region, size_t index, size_t count, struct cell *ret)
{
	double start = (double)region->size / (double)count * (double)index;
	double end = (double)region->size / (double)count * (double)(index + 1), most = 0;

	*ret = (struct cell){
		.known = { true, true },
		.state_known = true,
		.node = UNKNOWN,
	};
	for (size_t i = find_piece(region, region->gpa + (uint64_t)start); i < region->piece_count; i++) {
		const struct piece *piece = &region->pieces[i];
		double from = (double)(piece->gpa - region->gpa), to = from + (double)piece->size;

		if (from >= end)
			break;
		from = from > start ? from : start;
		to = to < end ? to : end;
		if (to > from)
			add_to_cell(piece, (to - from) / (double)piece->size, ret, &most);
	}
	if (ret->size == 0)
		ret->state_known = ret->known[SHARED] = ret->known[PRIVATE] = false;
}

/* ---- lengths of bars ---- */

void make_scale(const struct layout *layout, bool with_devices, double least, struct scale *ret)
{
	*ret = (struct scale){ .least = least };
	for (size_t i = 0; i < layout->region_count; i++) {
		const struct region *region = &layout->regions[i];

		if (region->is_device && !with_devices)
			continue;
		if (!ret->shortest || region->size < ret->shortest)
			ret->shortest = region->size;
		if (region->size > ret->longest)
			ret->longest = region->size;
	}
	ret->is_log = (double)ret->shortest < least * (double)ret->longest;
}

/* Exact for powers of two, and a straight line between them */
static double logarithm(uint64_t size)
{
	int whole = 63 - __builtin_clzll(size);

	return whole + (double)size / (double)(UINT64_C(1) << whole) - 1;
}

double scaled(const struct scale *scale, uint64_t size)
{
	double low, all;

	if (!scale->is_log)
		return scale->longest ? (double)size / (double)scale->longest : 1;
	low = logarithm(scale->shortest);
	all = logarithm(scale->longest) - low;
	return scale->least + (1 - scale->least) * (logarithm(size) - low) / all;
}
