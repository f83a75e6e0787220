/* SPDX-License-Identifier: MIT */
#include "pages/discard.h"

#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/error.h"
#include "base/kind.h"
#include "base/lock.h"
#include "base/opts.h"
#include "base/sort.h"
#include "base/wait_budget.h"
#include "os/sys.h"
#include "os/usdt.h"
#include "pages/section.h"
#include "region/host_look.h"
#include "region/region.h"
#include "region/region_memory.h"
#include "region/vm_core.h"
#include "state/claim.h"
#include "state/lease.h"
#include "state/listener.h"

/* Guests have no address from here on, so no sum of two addresses wraps. */
#define GPA_END (UINT64_C(1) << 63)

#define BOTH_SIDES (GMEM_DISCARD_SHARED_SIDE | GMEM_DISCARD_PRIVATE_SIDE)

#define BALLOON_PAGE_SHIFT 12

struct work {
	struct gmem_vm *vm;
	struct gmem_discard_opts opts;
	struct gmem_gpa_range *ranges;	/* in order, not touching each other */
	size_t count;
	struct gmem_footprint result;
	bool is_counting;
	struct gmem_wait_budget budget;
	struct gmem_host_look look;
};

/* ---- the list ---- */

static int check_list(const struct work *work, const struct gmem_gpa_range *ranges, size_t count)
{
	int err = 0;

	for (size_t i = 0; i < count && !err; i++) {
		const struct gmem_gpa_range *one = &ranges[i];

		if (!(work->opts.flags & GMEM_DISCARD_INWARD))
			err = gmem_check_range_within("gpa", one->gpa, one->size, GPA_END,
						      "the last guest address");
		else if (one->size == 0 || one->size > GPA_END || one->gpa > GPA_END - one->size)
			err = gmem_fail(-EINVAL, "gpa 0x%" PRIx64 " + size 0x%" PRIx64 " is no range",
					one->gpa, one->size);
	}
	return err;
}

static uint64_t end_of(const struct gmem_gpa_range *range)
{
	return range->gpa + range->size;
}

/* Merge neighbours: one call for many pages, and whole pages of many parts */
static void merge(struct work *work)
{
	struct gmem_gpa_range *ranges = work->ranges, *into = ranges;

	gmem_sort(ranges, work->count, sizeof(*ranges), offsetof(struct gmem_gpa_range, gpa));
	for (size_t i = 1; i < work->count; i++) {
		if (ranges[i].gpa > end_of(into))
			*++into = ranges[i];
		else if (end_of(&ranges[i]) > end_of(into))
			into->size = end_of(&ranges[i]) - into->gpa;
	}
	work->count = (size_t)(into - ranges) + 1;
}

/* Shrink ranges to the whole pages inside. */
static void shrink(struct work *work)
{
	uint64_t page = gmem_sys_page_size(), start, end;
	size_t kept = 0;

	for (size_t i = 0; i < work->count; i++) {
		start = (work->ranges[i].gpa + page - 1) / page * page;
		end = end_of(&work->ranges[i]) / page * page;
		if (start < end)
			work->ranges[kept++] = (struct gmem_gpa_range){ start, end - start };
	}
	work->count = kept;
}

/* The side that the caller chose; 0: the one that the guest uses */
static uint32_t side_of(const struct work *work)
{
	if (work->opts.flags & GMEM_DISCARD_SHARED_SIDE)
		return GMEM_SIDE_SHARED;
	return work->opts.flags & GMEM_DISCARD_PRIVATE_SIDE ? GMEM_SIDE_PRIVATE : 0;
}

/* Of a part of a huge page nothing can be freed. */
static int check_section(void *data, const struct gmem_section *found)
{
	const struct gmem_region *region = found->region;
	struct gmem_section section = *found;
	const struct work *work = data;
	struct gmem_region_memory memory;
	char text[GMEM_SIZE_TEXT];
	int err;

	err = gmem_section_take_side(&section, side_of(work));
	if (!err)
		err = gmem_region_memory_get(region, section.side, section.offset, section.size, &memory);
	if (err || work->opts.flags & GMEM_DISCARD_INWARD ||
	    ((uintptr_t)memory.hva | section.size) % memory.page_size == 0)
		return err;

	gmem_size_text(memory.page_size, text);
	return gmem_fail(-EINVAL, "gpa 0x%" PRIx64 ", 0x%" PRIx64 " bytes, begins or ends inside a huge page "
			 "of %s, which is not freed in part (GMEM_DISCARD_INWARD leaves it out)",
			 region->gpa.start + section.offset, section.size, text);
}

/* Which memory goes */
static uint32_t uses_of(const struct work *work)
{
	return work->opts.flags & GMEM_DISCARD_ALL_KINDS ? 0 : GMEM_USE_DISCARD;
}

static int check_one(struct work *work, const struct gmem_gpa_range *range, uint64_t *ret_bytes)
{
	int err = gmem_vm_check_memory(work->vm, range->gpa, range->size, uses_of(work), NULL, ret_bytes);

	if (!err)
		err = gmem_vm_look_at_sections(work->vm, range->gpa, range->size, uses_of(work),
					       check_section, work);
	if (err || work->opts.wait_ms)
		return err;

	/*
	 * Each range is checked again when its turn comes; checking all first means
	 * that most failures change nothing.
	 */
	gmem_lock_take(&work->vm->lock);
	err = gmem_lease_check_memory(work->vm, range->gpa, range->size);
	gmem_lock_drop(&work->vm->lock);
	return err;
}

/* A discard that can free nothing is refused, not one that has to leave out part of its ranges. */
static int check_all(struct work *work)
{
	uint64_t bytes, sum = 0;
	int err = 0;

	for (size_t i = 0; i < work->count && !err; i++) {
		err = check_one(work, &work->ranges[i], &bytes);
		sum += err ? 0 : bytes;
	}
	if (err || sum || !work->count)
		return err;
	return gmem_vm_check_memory(work->vm, work->ranges[0].gpa, work->ranges[0].size, uses_of(work),
				    "which only GMEM_DISCARD_ALL_KINDS gives back", &bytes);
}

/* ---- the memory ---- */

static void count(struct work *work, const struct gmem_section *piece, uint64_t *sum)
{
	uint64_t bytes;

	if (work->is_counting &&
	    gmem_region_memory_resident(piece->region, piece->side, piece->offset, piece->size, &bytes) == 0)
		*sum += bytes;
	else
		work->is_counting = false;
}

/* Listeners have let go of it; what was not discarded after all is theirs again. */
static int discard_counted(struct work *work, const struct gmem_section *piece, uint64_t *done)
{
	const struct gmem_discard_how how = { work->opts.flags & GMEM_DISCARD_NOT_ZERO, &work->look };
	int err;

	count(work, piece, &work->result.before);
	err = gmem_region_memory_discard(piece->region, piece->side, piece->offset, piece->size, &how,
					 done);
	work->result.done += *done;
	count(work, piece, &work->result.after);
	return err;
}

static void tell_undone(const struct gmem_section *piece, uint64_t done, int err)
{
	struct gmem_region_info region;
	struct gmem_listener_part part;
	struct gmem_failure failure;

	if (!err || done == piece->size || !gmem_section_part(piece, done, &region, &part))
		return;
	gmem_failure_keep(&failure, err);
	gmem_listeners_undo_discard(piece->claim, &part);
	gmem_failure_restore(&failure);
}

static int discard_piece(void *data, const struct gmem_section *found)
{
	struct gmem_section piece = *found;
	struct gmem_region_info region;
	struct gmem_listener_part part;
	uint64_t done;
	int err;

	err = gmem_section_take_side(&piece, side_of(data));
	if (!err && gmem_section_part(&piece, 0, &region, &part))
		err = gmem_listeners_ask_discard(piece.claim, &part);
	if (err)
		return err;

	err = discard_counted(data, &piece, &done);
	tell_undone(&piece, done, err);
	return err;
}

/* The claim is given up between pieces, for others who want part of the range. */
static int discard_one(struct work *work, const struct gmem_gpa_range *range)
{
	uint64_t done, now;
	int err = 0;

	for (done = 0; done < range->size && !err; done += now) {
		now = gmem_section_piece(work->vm, range->gpa + done, range->size - done);
		err = gmem_vm_each_section(work->vm, range->gpa + done, now, uses_of(work),
					   GMEM_CLAIM_EXCLUSIVE, &work->budget, discard_piece, work);
	}
	GMEM_PROBE(discard, gmem_vm_number(work->vm), range->gpa, range->size, err);
	return err;
}

static int discard(struct work *work)
{
	int err;

	work->budget = gmem_vm_budget(work->vm, work->opts.wait_ms);
	err = check_all(work);
	for (size_t i = 0; i < work->count && !err; i++)
		err = discard_one(work, &work->ranges[i]);
	return err;
}

static int discard_list(struct work *work, const struct gmem_gpa_range *ranges, size_t count)
{
	int err;

	err = check_list(work, ranges, count);
	if (err || count == 0)
		return err;

	work->ranges = malloc(count * sizeof(*ranges));
	if (!work->ranges)
		return gmem_fail(-ENOMEM, "no memory for a list of %zu ranges", count);
	for (size_t i = 0; i < count; i++)
		work->ranges[i] = ranges[i];
	work->count = count;

	merge(work);
	if (work->opts.flags & GMEM_DISCARD_INWARD)
		shrink(work);
	err = discard(work);
	gmem_host_look_end(&work->look);
	free(work->ranges);
	return err;
}

GMEM_API int gmem_vm_discard_list(struct gmem_vm *vm, const struct gmem_gpa_range *ranges,
				  size_t count, const struct gmem_discard_opts *opts,
				  struct gmem_footprint *ret)
{
	struct work work = { .vm = vm, .is_counting = ret, .look = GMEM_HOST_LOOK };
	int err;

	if (!vm || (!ranges && count))
		return gmem_fail(-EINVAL, "%s is NULL", vm ? "ranges" : "vm");
	if (count > SIZE_MAX / sizeof(*ranges))
		return gmem_fail(-EINVAL, "%zu ranges are more than fit into memory", count);

	err = GMEM_COPY_OPTS(gmem_discard_opts, &work.opts, opts, reserved);
	if (!err)
		err = gmem_check_flags("flags", work.opts.flags, GMEM_DISCARD_INWARD |
				       GMEM_DISCARD_ALL_KINDS | GMEM_DISCARD_NOT_ZERO | BOTH_SIDES);
	if (!err && (work.opts.flags & BOTH_SIDES) == BOTH_SIDES)
		err = gmem_fail(-EINVAL, "the flags ask for the shared side and for the private one");
	if (!err && work.opts.reserved)
		err = gmem_fail(-EINVAL, "reserved is %" PRIu32 ", not 0", work.opts.reserved);
	if (!err)
		err = discard_list(&work, ranges, count);

	if (ret) {
		work.result.counted = work.is_counting;
		*ret = work.result;
	}
	return gmem_vm_log_error(vm, err);
}

GMEM_API int gmem_vm_discard(struct gmem_vm *vm, uint64_t gpa, uint64_t size,
			     const struct gmem_discard_opts *opts, struct gmem_footprint *ret)
{
	const struct gmem_gpa_range range = { gpa, size };

	return gmem_vm_discard_list(vm, &range, 1, opts, ret);
}

/* Neighbours that come in order are one range from the beginning. */
static size_t ranges_of(const uint32_t *pfns, size_t count, struct gmem_gpa_range *ranges)
{
	uint64_t page = UINT64_C(1) << BALLOON_PAGE_SHIFT, gpa;
	size_t used = 0;

	for (size_t i = 0; i < count; i++) {
		gpa = (uint64_t)le32toh(pfns[i]) << BALLOON_PAGE_SHIFT;
		if (used && end_of(&ranges[used - 1]) == gpa)
			ranges[used - 1].size += page;
		else
			ranges[used++] = (struct gmem_gpa_range){ gpa, page };
	}
	return used;
}

GMEM_API int gmem_vm_discard_pfns(struct gmem_vm *vm, const uint32_t *pfns, size_t count,
				  const struct gmem_discard_opts *user_opts,
				  struct gmem_footprint *ret)
{
	struct gmem_gpa_range *ranges;
	struct gmem_discard_opts opts;
	int err;

	if (ret)
		*ret = (struct gmem_footprint){ .done = 0 };
	if (!vm || (!pfns && count))
		return gmem_fail(-EINVAL, "%s is NULL", vm ? "pfns" : "vm");
	err = GMEM_COPY_OPTS(gmem_discard_opts, &opts, user_opts, reserved);
	if (err)
		return gmem_vm_log_error(vm, err);

	ranges = count > SIZE_MAX / sizeof(*ranges) ? NULL : malloc(count * sizeof(*ranges) + 1);
	if (!ranges)
		return gmem_vm_log_error(vm, gmem_fail(-ENOMEM, "no memory for a list of %zu pages", count));

	opts.size = sizeof(opts);
	opts.flags |= GMEM_DISCARD_INWARD;
	err = gmem_vm_discard_list(vm, ranges, ranges_of(pfns, count, ranges), &opts, ret);
	free(ranges);
	return err;
}
