/* SPDX-License-Identifier: MIT */
#include "layout/keep_state.h"

#include <stdbool.h>
#include <stdint.h>

#include "gmem.h"
#include "base/interval_tree.h"
#include "base/macros.h"
#include "os/sys.h"
#include "region/host_file.h"
#include "region/kept_log.h"
#include "region/page_states.h"
#include "region/region.h"

/* Memory that a removed and an added region have in common, by its offset in each */
struct common {
	struct gmem_region *from;
	struct gmem_region *to;
	uint64_t from_offset;
	uint64_t to_offset;
	uint64_t size;
};

static bool keeps(const struct gmem_step *step)
{
	return step->kind == GMEM_STEP_ADD && step->params.opts.flags & GMEM_REGION_KEEP_STATE;
}

/* Where each is in what both may have: a file behind host memory, or the caller's addresses */
static bool find_host_memory(const struct gmem_region *from, const struct gmem_region *to,
			     uint64_t *ret_from, uint64_t *ret_to)
{
	if (gmem_host_file_same(from->host_file, to->host_file)) {
		*ret_from = from->host_offset;
		*ret_to = to->host_offset;
		return true;
	}
	*ret_from = from->hva.start;
	*ret_to = to->hva.start;
	return from->borrows_memory && to->borrows_memory;
}

static bool find_common(const struct gmem_step *removed, const struct gmem_step *added,
			struct common *ret)
{
	struct gmem_region *from = removed->region, *to = added->region;
	uint64_t a, b, start, end;

	if (removed->kind != GMEM_STEP_REMOVE || !keeps(added) || from->file != to->file)
		return false;
	if (to->file) {
		a = from->file_offset;
		b = to->file_offset;
	} else if (!find_host_memory(from, to, &a, &b)) {
		return false;
	}
	start = a > b ? a : b;
	end = a + from->gpa.size < b + to->gpa.size ? a + from->gpa.size : b + to->gpa.size;
	if (start >= end)
		return false;

	*ret = (struct common){ from, to, start - a, start - b, end - start };
	return true;
}

/* ---- pairs of steps ---- */

/*
 * What is removed, by where its memory is. Each file has a place of its own among numbers: what
 * is far apart there has nothing in common, and what is not may have.
 */
struct removed {
	struct gmem_interval_tree files;
	struct gmem_interval_tree addresses;
};

/* Returns false if no file is known. Offsets in files are below 2^63. */
static bool find_in_files(const struct gmem_region *region, struct gmem_interval *ret)
{
	uint64_t file, offset;

	if (!region->file && !region->host_file)
		return false;
	file = region->file ? (uintptr_t)region->file :
			      region->host_file->facts.device ^ region->host_file->facts.inode << 16;
	offset = region->file ? region->file_offset : region->host_offset;
	ret->start = (file * UINT64_C(0x9e3779b97f4a7c15) >> 1) + offset;
	ret->last = ret->start + (region->gpa.size - 1);
	return true;
}

static bool find_in_addresses(const struct gmem_region *region, struct gmem_interval *ret)
{
	ret->start = region->hva.start;
	ret->last = ret->start + (region->gpa.size - 1);
	return region->borrows_memory;
}

static void note_removed(struct removed *removed, struct gmem_step *step)
{
	step->in_files.order = 0;
	step->in_addresses.order = 0;
	if (find_in_files(step->region, &step->in_files))
		gmem_interval_insert(&removed->files, &step->in_files);
	if (find_in_addresses(step->region, &step->in_addresses))
		gmem_interval_insert(&removed->addresses, &step->in_addresses);
}

/* A pair may come twice, which changes nothing. */
static void keep_of(const struct removed *removed, const struct gmem_step *to,
		    void (*keep)(const struct common *common))
{
	struct gmem_interval at, *i = NULL;
	struct common common;

	if (find_in_files(to->region, &at))
		i = gmem_interval_find(&removed->files, at.start, at.last);
	for (; i; i = gmem_interval_find_next(&removed->files, i, at.start, at.last))
		if (find_common(GMEM_CONTAINER_OF(i, struct gmem_step, in_files), to, &common))
			keep(&common);

	if (find_in_addresses(to->region, &at))
		i = gmem_interval_find(&removed->addresses, at.start, at.last);
	for (; i; i = gmem_interval_find_next(&removed->addresses, i, at.start, at.last))
		if (find_common(GMEM_CONTAINER_OF(i, struct gmem_step, in_addresses), to, &common))
			keep(&common);
}

/* Calls @keep for all memory that a removed and an added region have in common. */
static void keep_all(struct gmem_step *steps, size_t count, void (*keep)(const struct common *common))
{
	struct removed removed = { .files = { .root = NULL } };

	for (size_t i = 0; i < count; i++)
		if (steps[i].kind == GMEM_STEP_REMOVE)
			note_removed(&removed, &steps[i]);
	for (size_t i = 0; i < count; i++)
		if (keeps(&steps[i]))
			keep_of(&removed, &steps[i], keep);
}

static bool any_keeps(const struct gmem_step *steps, size_t count)
{
	/* One step removes nothing that another adds. */
	for (size_t i = 0; i < count && count > 1; i++)
		if (keeps(&steps[i]))
			return true;
	return false;
}

/* ---- states ---- */

/* Where private and shared are told apart by guest address, a new address is news. */
static bool has_same_attributes(const struct common *common)
{
	return gmem_region_traits(common->to)->attributes == GMEM_ATTRIBUTES_FILE ||
	       common->from->gpa.start + common->from_offset ==
		       common->to->gpa.start + common->to_offset;
}

static void keep_private(const struct common *common)
{
	struct gmem_states_walk at = GMEM_STATES_WALK(&common->from->states, GMEM_PAGE_PRIVATE, true,
						      common->from_offset, common->size);

	while (gmem_states_walk(&at)) {
		uint64_t offset = at.offset - common->from_offset + common->to_offset;

		gmem_states_set(&common->to->states, GMEM_PAGE_PRIVATE, offset, at.size, true);
		if (has_same_attributes(common))
			gmem_states_set(&common->from->states, GMEM_PAGE_CHANGING, at.offset, at.size, false);
		else
			gmem_states_set(&common->to->states, GMEM_PAGE_CHANGING, offset, at.size, true);
	}
}

/* The shared side is the same only if it is the caller's. */
static bool has_same_shared_side(const struct common *common)
{
	uint64_t from, to;

	return find_host_memory(common->from, common->to, &from, &to) &&
	       from + common->from_offset == to + common->to_offset;
}

/* What is pending of private pages is on the shared side. */
static void keep_pending(const struct common *common)
{
	struct gmem_states_walk at = GMEM_STATES_WALK(&common->from->states, GMEM_PAGE_PENDING, true,
						      common->from_offset, common->size);
	struct gmem_states_walk ended = GMEM_STATES_WALK(&common->to->states, GMEM_PAGE_PRIVATE, true,
							 common->to_offset, common->size);

	while (gmem_states_walk(&at))
		gmem_states_set(&common->to->states, GMEM_PAGE_PENDING,
				at.offset - common->from_offset + common->to_offset, at.size, true);
	while (!has_same_shared_side(common) && gmem_states_walk(&ended))
		gmem_states_set(&common->to->states, GMEM_PAGE_PENDING, ended.offset, ended.size, false);
}

static void mark_private(struct gmem_region *region)
{
	struct gmem_states_walk at = GMEM_STATES_WALK(&region->states, GMEM_PAGE_PRIVATE, true, 0,
						      region->gpa.size);

	while (gmem_states_walk(&at))
		gmem_states_set(&region->states, GMEM_PAGE_CHANGING, at.offset, at.size, true);
}

static void keep_state(const struct common *common)
{
	if (!common->from->states.pages || !common->to->states.pages)
		return;
	keep_private(common);
	keep_pending(common);
}

void gmem_keep_states(struct gmem_step *steps, size_t count)
{
	for (size_t i = 0; i < count; i++)
		if (steps[i].kind == GMEM_STEP_REMOVE && steps[i].region->states.pages)
			mark_private(steps[i].region);
	if (any_keeps(steps, count))
		keep_all(steps, count, keep_state);
}

void gmem_keep_states_end(struct gmem_step *steps, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		struct gmem_region *region = steps[i].region;

		if (gmem_states_total(&region->states, GMEM_PAGE_CHANGING))
			gmem_states_set(&region->states, GMEM_PAGE_CHANGING, 0, region->gpa.size, false);
	}
}

/* ---- dirty logs ---- */

static void keep_log(const struct common *common)
{
	uint64_t page = gmem_sys_page_size();

	if (common->from->kept_log && gmem_region_wants_log(common->from) && common->to->kept_log)
		gmem_kept_log_merge(common->to->kept_log, common->to_offset / page,
				    common->from->kept_log, common->from_offset / page,
				    common->size / page);
}

void gmem_keep_logs(struct gmem_step *steps, size_t count)
{
	if (any_keeps(steps, count))
		keep_all(steps, count, keep_log);
}
