/* SPDX-License-Identifier: MIT */
#include "layout/keep_state.h"

#include <stdbool.h>
#include <stdint.h>

#include "gmem.h"
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

void gmem_keep_states(struct gmem_step *steps, size_t count)
{
	struct common common;

	for (size_t i = 0; i < count; i++)
		if (steps[i].kind == GMEM_STEP_REMOVE && steps[i].region->states.pages)
			mark_private(steps[i].region);

	for (size_t to = 0; to < count; to++)
		for (size_t from = 0; keeps(&steps[to]) && from < count; from++) {
			if (!find_common(&steps[from], &steps[to], &common) ||
			    !common.from->states.pages || !common.to->states.pages)
				continue;
			keep_private(&common);
			keep_pending(&common);
		}
}

void gmem_keep_states_end(struct gmem_step *steps, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		struct gmem_region *region = steps[i].region;

		if (gmem_states_total(&region->states, GMEM_PAGE_CHANGING))
			gmem_states_set(&region->states, GMEM_PAGE_CHANGING, 0, region->gpa.size, false);
	}
}

void gmem_keep_logs(struct gmem_step *steps, size_t count)
{
	uint64_t page = gmem_sys_page_size();
	struct common common;

	for (size_t to = 0; to < count; to++)
		for (size_t from = 0; steps[to].region->kept_log && keeps(&steps[to]) && from < count; from++)
			if (find_common(&steps[from], &steps[to], &common) && common.from->kept_log)
				gmem_kept_log_merge(common.to->kept_log, common.to_offset / page,
						    common.from->kept_log, common.from_offset / page,
						    common.size / page);
}
