/* SPDX-License-Identifier: MIT */
#include "dirty/tracker.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/bits.h"
#include "base/check.h"
#include "base/error.h"
#include "base/lock.h"
#include "base/opts.h"
#include "base/wait_budget.h"
#include "dirty/collect.h"
#include "dirty/dirty_log.h"
#include "dirty/dirty_ring.h"
#include "dirty/logging.h"
#include "os/sys.h"
#include "region/dirty_pages.h"
#include "region/region.h"
#include "region/regions.h"
#include "region/vm_core.h"
#include "state/claim.h"
#include "view/view.h"

#define ALL_FLAGS (GMEM_DIRTY_FROM_NOW | GMEM_DIRTY_VCPUS_STOPPED | GMEM_DIRTY_ALLOW_UNLOGGED | \
		   GMEM_DIRTY_RINGS)

/* Which period begins when all marks were made those of the first one */
#define FIRST_PERIOD_AGAIN 2

/* Bytes whose bits are set while others wait for the VM's lock */
#define BITMAP_PART (UINT64_C(1) << 30)

/* ---- beginning and ending ---- */

static int prepare_marks(struct gmem_vm *vm, struct gmem_dirty_pages *pages)
{
	struct gmem_stretch at = GMEM_REGIONS_WALK(vm, 0, UINT64_MAX);
	int err = 0;

	/* Views mark what is not tracked, too. */
	while (!err && gmem_regions_walk_whole(&at))
		if (at.region && !at.region->is_device)
			err = gmem_dirty_pages_prepare(pages, at.gpa, at.size);
	return err;
}

/* Views may use the marks until they end: these are used again, or freed with the VM's memory. */
static void set_marks_aside(struct gmem_vm *vm)
{
	if (vm->newest.dirty)
		vm->old_dirty = vm->newest.dirty;
	gmem_vm_track_views(vm, NULL);
}

/* Whoever begins to write from now on marks it, and who began before has ended. */
static int begin_marks(struct gmem_vm *vm, struct gmem_wait_budget *budget)
{
	struct gmem_dirty_pages *pages = vm->old_dirty ? vm->old_dirty : gmem_dirty_pages_new();
	int err;

	if (!pages)
		return -ENOMEM;
	vm->old_dirty = pages;
	err = prepare_marks(vm, pages);
	if (err)
		return err;

	gmem_vm_track_views(vm, pages);
	vm->old_dirty = NULL;
	err = gmem_vm_wait_for_views(vm, budget);
	if (err)
		set_marks_aside(vm);
	return err;
}

/* A refusal stays one, whoever is still there. Returns @err. */
static int undo_marks(struct gmem_vm *vm, struct gmem_wait_budget *budget, int err)
{
	struct gmem_failure failure;

	gmem_failure_keep(&failure, err);
	set_marks_aside(vm);
	if (!gmem_vm_wait_for_views(vm, budget)) {
		gmem_dirty_pages_free(vm->old_dirty);
		vm->old_dirty = NULL;
	}
	return gmem_failure_restore(&failure);
}

static void end_marks(struct gmem_vm *vm)
{
	struct gmem_dirty_pages *pages = vm->newest.dirty;

	gmem_vm_track_views(vm, NULL);
	gmem_vm_wait_for_views(vm, NULL);
	gmem_dirty_pages_free(pages);
}

/* With the lock. After the last period of all, whoever asks is told everything once. */
static void start_over(struct gmem_vm *vm)
{
	for (struct gmem_dirty *dirty = vm->trackers; dirty; dirty = dirty->next) {
		dirty->since = 0;
		dirty->told_since = 0;
		dirty->parent_since = 0;
		dirty->overturns++;
	}
}

/* Returns the period that begins, of which nothing has been collected. */
static uint32_t begin_period(struct gmem_vm *vm)
{
	uint32_t period;

	gmem_lock_take(&vm->dirty_lock);
	gmem_lock_take(&vm->lock);
	period = gmem_dirty_pages_begin_period(vm->newest.dirty);
	if (!period)
		start_over(vm);
	gmem_lock_drop(&vm->lock);
	gmem_lock_drop(&vm->dirty_lock);
	gmem_vm_fence_views(vm);
	return period ? period : FIRST_PERIOD_AGAIN;
}

static int begin_logs(struct gmem_dirty *dirty)
{
	struct gmem_vm *vm = dirty->vm;
	struct gmem_replaced replaced;
	int err;

	err = gmem_vm_begin_logging(vm, dirty->flags, &replaced);
	if (err)
		return err;
	dirty->stopped_ns = replaced.ns;
	if (dirty->flags & GMEM_DIRTY_FROM_NOW)
		err = gmem_vm_collect_dirty(vm);
	if (err)
		err = gmem_vm_undo_logging(vm, &replaced, err);
	free(replaced.regions);
	return err;
}

/* What changes of the layout may bring. */
static void note_flags(struct gmem_vm *vm)
{
	uint64_t any = 0, all = UINT64_MAX;

	for (const struct gmem_dirty *dirty = vm->trackers; dirty; dirty = dirty->next) {
		any |= dirty->flags;
		all &= dirty->flags;
	}
	vm->dirty_flags = (any & GMEM_DIRTY_VCPUS_STOPPED) | (all & ~GMEM_DIRTY_VCPUS_STOPPED);
}

/* With the hook lock. */
static void end(struct gmem_dirty *dirty)
{
	struct gmem_vm *vm = dirty->vm;
	struct gmem_dirty **link = &vm->trackers;

	while (*link != dirty)
		link = &(*link)->next;
	*link = dirty->next;
	note_flags(vm);
	/* A VM that is over has ended all of it. */
	if (vm->trackers || !vm->newest.dirty)
		return;

	gmem_vm_end_dirty_sources(vm);
	gmem_vm_end_logging(vm);
	end_marks(vm);
}

/* A callback cannot wait for its own thread: whoever changes the trackers next ends it. */
static void abandon(struct gmem_dirty *dirty)
{
	__atomic_store_n(&dirty->is_abandoned, true, __ATOMIC_RELEASE);
}

static void end_abandoned(struct gmem_vm *vm)
{
	struct gmem_dirty *dirty, *next;

	for (dirty = vm->trackers; dirty; dirty = next) {
		next = dirty->next;
		if (!__atomic_load_n(&dirty->is_abandoned, __ATOMIC_ACQUIRE))
			continue;
		end(dirty);
		free(dirty);
	}
}

/* With the hook lock. */
static int begin(struct gmem_dirty *dirty, struct gmem_wait_budget *budget)
{
	struct gmem_vm *vm = dirty->vm;
	int err;

	end_abandoned(vm);
	/* A refusal waits for nobody. */
	err = gmem_vm_check_logging(vm, dirty->flags);
	if (!err && !vm->newest.dirty)
		err = begin_marks(vm, budget);
	if (err)
		return err;

	err = begin_logs(dirty);
	if (err)
		return vm->trackers ? err : undo_marks(vm, budget, err);

	if (!vm->trackers)
		gmem_vm_begin_dirty_sources(vm);
	dirty->since = dirty->flags & GMEM_DIRTY_FROM_NOW ? begin_period(vm) : 0;
	dirty->collected_at = gmem_sys_now();
	dirty->next = vm->trackers;
	vm->trackers = dirty;
	note_flags(vm);
	return 0;
}

static int begin_with_lock(struct gmem_dirty *dirty)
{
	struct gmem_vm *vm = dirty->vm;
	struct gmem_wait_budget budget = gmem_vm_budget(vm, 0);
	int err;

	err = gmem_claim_begin_change(vm, &budget);
	if (err)
		return err;
	err = begin(dirty, &budget);
	gmem_vm_end_change(vm);
	return err;
}

GMEM_API int gmem_dirty_new(struct gmem_vm *vm, const struct gmem_dirty_opts *user_opts,
			    struct gmem_dirty **ret)
{
	struct gmem_dirty_opts opts;
	struct gmem_dirty *dirty;
	int err;

	if (!vm || !ret)
		return gmem_fail(-EINVAL, "%s is NULL", vm ? "ret" : "vm");
	err = GMEM_COPY_OPTS(gmem_dirty_opts, &opts, user_opts, flags);
	if (!err)
		err = gmem_check_flags("flags", opts.flags, ALL_FLAGS);
	if (err)
		return err;

	dirty = calloc(1, sizeof(*dirty));
	if (!dirty)
		return gmem_fail(-ENOMEM, "no memory for a tracker");
	dirty->vm = gmem_vm_ref(vm);
	dirty->flags = opts.flags;

	err = begin_with_lock(dirty);
	if (err) {
		gmem_vm_log_error(vm, err);
		gmem_vm_unref(vm);
		free(dirty);
		return err;
	}
	*ret = dirty;
	return 0;
}

GMEM_API void gmem_dirty_free(struct gmem_dirty *dirty)
{
	struct gmem_wait_budget forever = { .wait_ms = 0 };
	struct gmem_vm *vm;

	if (!dirty)
		return;
	vm = dirty->vm;
	if (gmem_claim_check_not_owner(vm) || gmem_vm_begin_change(vm, &forever)) {
		abandon(dirty);
	} else {
		end(dirty);
		end_abandoned(vm);
		gmem_vm_end_change(vm);
		free(dirty);
	}
	gmem_vm_unref(vm);
}

void gmem_vm_end_tracking(struct gmem_vm *vm)
{
	struct gmem_wait_budget forever = { .wait_ms = 0 };

	gmem_dirty_rings_end(vm);
	if (!vm->newest.dirty || gmem_vm_begin_change(vm, &forever))
		return;
	end_abandoned(vm);
	if (vm->newest.dirty)
		gmem_vm_end_dirty_sources(vm);
	gmem_dirty_logs_forget(vm);
	set_marks_aside(vm);
	gmem_vm_end_change(vm);
}

/* ---- collecting ---- */

static void move_on(struct gmem_dirty *dirty)
{
	uint64_t now = gmem_sys_now();
	uint32_t period = begin_period(dirty->vm);

	gmem_lock_take(&dirty->vm->lock);
	dirty->told_since = dirty->since;
	dirty->since = period;
	gmem_lock_drop(&dirty->vm->lock);
	dirty->has_told = true;
	dirty->can_put_back = true;
	dirty->rounds++;
	dirty->ns = now - dirty->collected_at;
	dirty->collected_at = now;
}

static uint64_t count_region(const struct gmem_dirty *dirty, const struct gmem_stretch *at, uint32_t since)
{
	if (gmem_region_is_unlogged(at->region))
		return at->size;
	return gmem_dirty_pages_count(dirty->vm->newest.dirty, since, at->gpa, at->gpa + (at->size - 1));
}

static void count(const struct gmem_dirty *dirty, uint32_t since, struct gmem_dirty_info *ret)
{
	struct gmem_stretch at = GMEM_REGIONS_WALK(dirty->vm, 0, UINT64_MAX);
	uint64_t bytes;

	while (gmem_regions_walk(&at)) {
		if (!at.region || gmem_region_is_untracked(at.region))
			continue;
		ret->memory_bytes += at.size;
		if (at.is_private) {
			ret->private_bytes += at.size;
			continue;
		}
		bytes = count_region(dirty, &at, since);
		ret->bytes += bytes;
		if (gmem_region_is_unlogged(at.region))
			ret->unlogged_bytes += bytes;
	}
}

/* The hook lock is enough to read the layout. */
static void fill_info(const struct gmem_dirty *dirty, uint32_t since, uint64_t ns, struct gmem_dirty_info *ret)
{
	struct gmem_dirty_info info = {
		.rounds = dirty->rounds,
		.ns = ns,
		.stopped_ns = dirty->stopped_ns,
	};

	count(dirty, since, &info);
	gmem_fill_result(ret, &info, sizeof(info));
}

/* What is done once all that was noted is marked, with the hook lock */
typedef void (*collected_fn)(struct gmem_dirty *dirty, void *ret);

static int collect(struct gmem_dirty *dirty, collected_fn use, void *ret)
{
	struct gmem_vm *vm = dirty->vm;
	struct gmem_wait_budget budget = gmem_vm_budget(vm, 0);
	int err;

	err = gmem_claim_begin_change(vm, &budget);
	if (err)
		return err;

	/* The VM may have ended while this waited. */
	err = gmem_vm_check_alive(vm);
	/* Nor had it rings, perhaps, when the tracker was made. */
	if (!err)
		err = gmem_vm_check_dirty_rings(vm, dirty->flags);
	if (!err)
		err = gmem_vm_collect_dirty(vm);
	if (!err)
		use(dirty, ret);
	gmem_vm_end_change(vm);
	return err;
}

static int enter_and_collect(struct gmem_dirty *dirty, collected_fn use, void *ret)
{
	int err;

	err = gmem_vm_enter(dirty->vm);
	if (err)
		return err;
	err = collect(dirty, use, ret);
	return gmem_vm_log_error(dirty->vm, gmem_vm_leave(dirty->vm, err));
}

static int check_and_collect(struct gmem_dirty *dirty, collected_fn use, struct gmem_dirty_info *ret)
{
	int err;

	if (!dirty)
		return gmem_fail(-EINVAL, "dirty is NULL");
	err = ret ? GMEM_CHECK_RESULT(gmem_dirty_info, ret, stopped_ns) : 0;
	return err ? err : enter_and_collect(dirty, use, ret);
}

static void tell_collected(struct gmem_dirty *dirty, void *ret)
{
	move_on(dirty);
	if (ret)
		fill_info(dirty, dirty->told_since, dirty->ns, ret);
}

static void tell_what_is_left(struct gmem_dirty *dirty, void *ret)
{
	fill_info(dirty, dirty->since, gmem_sys_now() - dirty->collected_at, ret);
}

GMEM_API int gmem_dirty_collect(struct gmem_dirty *dirty, struct gmem_dirty_info *ret)
{
	return check_and_collect(dirty, tell_collected, ret);
}

GMEM_API int gmem_dirty_peek(struct gmem_dirty *dirty, struct gmem_dirty_info *ret)
{
	if (dirty && !ret)
		return gmem_fail(-EINVAL, "ret is NULL");
	return check_and_collect(dirty, tell_what_is_left, ret);
}

GMEM_API int gmem_dirty_put_back(struct gmem_dirty *dirty)
{
	if (!dirty)
		return gmem_fail(-EINVAL, "dirty is NULL");
	if (!dirty->can_put_back)
		return gmem_fail(-EALREADY, "%s", dirty->has_told ? "what was collected was put back already"
								  : "nothing was collected yet");
	gmem_lock_take(&dirty->vm->lock);
	dirty->since = dirty->told_since;
	gmem_lock_drop(&dirty->vm->lock);
	dirty->collected_at -= dirty->ns;
	dirty->can_put_back = false;
	dirty->rounds--;
	return 0;
}

GMEM_API int gmem_dirty_set_parent(struct gmem_dirty *dirty, uint64_t id, uint64_t generation)
{
	if (!dirty)
		return gmem_fail(-EINVAL, "dirty is NULL");
	if (!id && generation)
		return gmem_fail(-EINVAL, "generation %" PRIu64 " of no image", generation);
	gmem_lock_take(&dirty->vm->lock);
	dirty->parent = id;
	dirty->generation = generation;
	dirty->parent_since = dirty->since;
	gmem_lock_drop(&dirty->vm->lock);
	return 0;
}

/* ---- images ---- */

static void fill_image(struct gmem_dirty *dirty, void *data)
{
	struct gmem_dirty_image *ret = data;
	uint32_t period = begin_period(dirty->vm);

	gmem_lock_take(&dirty->vm->lock);
	*ret = (struct gmem_dirty_image){
		.dirty = dirty,
		.parent = dirty->parent,
		.generation = dirty->generation,
		.since = dirty->parent_since,
		.next = period,
		.overturns = dirty->overturns,
	};
	gmem_lock_drop(&dirty->vm->lock);
}

int gmem_dirty_begin_image(struct gmem_dirty *dirty, struct gmem_dirty_image *ret)
{
	return enter_and_collect(dirty, fill_image, ret);
}

/* Its periods are those of now. If not, all memory changed since. */
static bool is_of_now(const struct gmem_dirty_image *image)
{
	return image->overturns == image->dirty->overturns;
}

void gmem_dirty_end_image(const struct gmem_dirty_image *image, uint64_t id, uint64_t generation)
{
	struct gmem_dirty *dirty = image->dirty;

	gmem_lock_take(&dirty->vm->lock);
	dirty->parent = id;
	dirty->generation = generation;
	dirty->parent_since = is_of_now(image) ? image->next : 0;
	gmem_lock_drop(&dirty->vm->lock);
}

static void tell_what_is_in_no_image(struct gmem_dirty *dirty, void *ret)
{
	fill_info(dirty, dirty->parent_since, gmem_sys_now() - dirty->collected_at, ret);
}

int gmem_dirty_peek_image(struct gmem_dirty *dirty, struct gmem_dirty_info *ret)
{
	return enter_and_collect(dirty, tell_what_is_in_no_image, ret);
}

/* ---- telling ---- */

static bool find(const struct gmem_dirty *dirty, uint32_t since, const struct gmem_region *region,
		 uint64_t gpa, uint64_t last, struct gmem_part *ret)
{
	if (gmem_region_is_unlogged(region) || !dirty->vm->newest.dirty) {
		*ret = (struct gmem_part){ gpa, last };
		return true;
	}
	return gmem_dirty_pages_next(dirty->vm->newest.dirty, since, gpa, last, ret);
}

bool gmem_dirty_find(const struct gmem_dirty_image *image, const struct gmem_region *region,
		     uint64_t gpa, uint64_t last, struct gmem_part *ret)
{
	return find(image->dirty, is_of_now(image) ? image->since : 0, region, gpa, last, ret);
}

/* What is told of a stretch; false: nothing */
static bool tell(const struct gmem_dirty *dirty, const struct gmem_stretch *at, struct gmem_dirty_range *ret)
{
	struct gmem_part part = { at->gpa, at->gpa + (at->size - 1) };
	uint32_t flags = 0;

	if (gmem_region_is_untracked(at->region))
		return false;
	if (at->is_private)
		flags = GMEM_DIRTY_RANGE_PRIVATE;
	else if (!find(dirty, dirty->told_since, at->region, part.start, part.last, &part))
		return false;
	else if (gmem_region_is_unlogged(at->region))
		flags = GMEM_DIRTY_RANGE_UNLOGGED;

	*ret = (struct gmem_dirty_range){ part.start, part.last - part.start + 1, flags, 0 };
	return true;
}

/* Look at what was collected: with the VM's lock, and the VM is not over. */
static int begin_to_look(const struct gmem_dirty *dirty)
{
	int err;

	if (!dirty->has_told)
		return gmem_fail(-ENOENT, "nothing was collected yet");
	err = gmem_vm_enter(dirty->vm);
	if (!err)
		gmem_lock_take(&dirty->vm->lock);
	return err;
}

static int end_looking(const struct gmem_dirty *dirty, int err)
{
	gmem_lock_drop(&dirty->vm->lock);
	return gmem_vm_leave(dirty->vm, err);
}

static int next_range(const struct gmem_dirty *dirty, uint64_t gpa, struct gmem_dirty_range *ret)
{
	struct gmem_stretch at = GMEM_REGIONS_WALK(dirty->vm, gpa, UINT64_MAX);

	while (gmem_regions_walk(&at))
		if (at.region && tell(dirty, &at, ret))
			return 0;
	return gmem_fail(-ENOENT, "nothing that was collected is at gpa 0x%" PRIx64 " or behind it", gpa);
}

GMEM_API int gmem_dirty_next(struct gmem_dirty *dirty, uint64_t gpa, struct gmem_dirty_range *ret)
{
	int err;

	if (!dirty || !ret)
		return gmem_fail(-EINVAL, "%s is NULL", dirty ? "ret" : "dirty");
	if (gpa % gmem_sys_page_size())
		return gmem_fail(-EINVAL, "gpa 0x%" PRIx64 " is not that of a page", gpa);
	err = begin_to_look(dirty);
	return err ? err : end_looking(dirty, next_range(dirty, gpa, ret));
}

/* [@gpa, @last], of a bitmap that begins at @start */
static void fill_part(const struct gmem_dirty *dirty, uint64_t start, uint64_t gpa, uint64_t last,
		      uint64_t *bitmap)
{
	struct gmem_stretch at = GMEM_REGIONS_WALK(dirty->vm, gpa, last);
	uint64_t page = gmem_sys_page_size();
	struct gmem_part part;

	while (gmem_regions_walk(&at)) {
		uint64_t from = at.gpa, end = at.gpa + (at.size - 1);

		if (!at.region || at.is_private || gmem_region_is_untracked(at.region))
			continue;
		while (from <= end && find(dirty, dirty->told_since, at.region, from, end, &part)) {
			gmem_bits_set(bitmap, (part.start - start) / page, (part.last - start) / page + 1, true);
			if (part.last == end)
				break;
			from = part.last + 1;
		}
	}
}

/* With the VM's lock, for which others wait: they get it between the parts. */
static void fill_bitmap(const struct gmem_dirty *dirty, uint64_t gpa, uint64_t size, uint64_t *bitmap)
{
	uint64_t part;

	for (uint64_t at = 0; at < size; at += part) {
		part = size - at < BITMAP_PART ? size - at : BITMAP_PART;
		fill_part(dirty, gpa, gpa + at, gpa + at + (part - 1), bitmap);
		gmem_lock_drop(&dirty->vm->lock);
		gmem_lock_take(&dirty->vm->lock);
	}
}

GMEM_API int gmem_dirty_get_bitmap(struct gmem_dirty *dirty, uint64_t gpa, uint64_t size,
				   uint64_t *bitmap, size_t words)
{
	uint64_t page = gmem_sys_page_size(), needed;
	int err;

	if (!dirty || !bitmap)
		return gmem_fail(-EINVAL, "%s is NULL", dirty ? "bitmap" : "dirty");
	if (!size || gpa % page || size % page || gpa + (size - 1) < gpa)
		return gmem_fail(-EINVAL, "gpa 0x%" PRIx64 ", size 0x%" PRIx64 " is no range of pages", gpa, size);
	needed = size / page / 64 + (size / page % 64 != 0);
	if (words < needed)
		return gmem_fail(-EINVAL, "a bitmap of %zu words is too small: the range needs %" PRIu64, words,
				 needed);
	err = begin_to_look(dirty);
	if (err)
		return err;
	memset(bitmap, 0, words * sizeof(*bitmap));
	fill_bitmap(dirty, gpa, size, bitmap);
	return end_looking(dirty, 0);
}
