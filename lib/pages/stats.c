/* SPDX-License-Identifier: MIT */
/*
 * Events are counted all the time. What is in memory has to be looked for; that goes
 * part by part, so that conversions do not wait for long.
 */
#include "pages/stats.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>

#include "base/check.h"
#include "base/counters.h"
#include "base/error.h"
#include "base/kind.h"
#include "base/lock.h"
#include "base/opts.h"
#include "base/wait_budget.h"
#include "os/sys.h"
#include "pages/section.h"
#include "region/file.h"
#include "region/page_states.h"
#include "region/region.h"
#include "region/region_memory.h"
#include "region/regions.h"
#include "region/vm_core.h"
#include "state/claim.h"

/* Pages that one mincore() looks at; a byte each, on the stack */
#define LOOK_PAGES 4096

/* ---- counters ---- */

static uint64_t get(const struct gmem_counters *counters, enum gmem_counter which)
{
	return __atomic_load_n(&counters->n[which], __ATOMIC_RELAXED);
}

static void get_counters(const struct gmem_counters *from, struct gmem_stats *to)
{
	to->made_private = get(from, GMEM_COUNT_MADE_PRIVATE);
	to->made_shared = get(from, GMEM_COUNT_MADE_SHARED);
	to->conversions = get(from, GMEM_COUNT_CONVERSIONS);
	to->convert_ioctls = get(from, GMEM_COUNT_CONVERT_IOCTLS);
	to->discards = get(from, GMEM_COUNT_DISCARDS);
	to->discarded = get(from, GMEM_COUNT_DISCARDED);
	to->faults_private = get(from, GMEM_COUNT_FAULTS_PRIVATE);
	to->faults_shared = get(from, GMEM_COUNT_FAULTS_SHARED);
	to->faults_late = get(from, GMEM_COUNT_FAULTS_LATE);
	to->faults_stuck = get(from, GMEM_COUNT_FAULTS_STUCK);
	to->faults_hole = get(from, GMEM_COUNT_FAULTS_HOLE);
	to->faults_refused = get(from, GMEM_COUNT_FAULTS_REFUSED);
	to->faults_poison = get(from, GMEM_COUNT_FAULTS_POISON);
	to->faults_unknown_reason = get(from, GMEM_COUNT_FAULTS_UNKNOWN_REASON);
	to->faults_no_address = get(from, GMEM_COUNT_FAULTS_NO_ADDRESS);
	to->requests = get(from, GMEM_COUNT_REQUESTS);
	to->requests_refused = get(from, GMEM_COUNT_REQUESTS_REFUSED);
}

/* ---- states ---- */

static void add_states(const struct gmem_region *region, struct gmem_stats *stats)
{
	uint64_t *const of_kind[GMEM_KINDS] = {
		[GMEM_KIND_ROM] = &stats->bytes_rom,
		[GMEM_KIND_DEVICE] = &stats->bytes_device,
		[GMEM_KIND_EXTERNAL] = &stats->bytes_external,
	};
	uint64_t is_private;

	if (region->is_device)
		return;
	if (of_kind[region->kind])
		*of_kind[region->kind] += region->gpa.size;
	if (!gmem_region_has_use(region, GMEM_USE_COUNT))
		return;
	is_private = gmem_states_total(&region->states, GMEM_PAGE_PRIVATE);
	stats->bytes_private += is_private;
	stats->bytes_shared += region->gpa.size - is_private;
}

static void add_all_states(const struct gmem_vm *vm, struct gmem_stats *stats)
{
	struct gmem_stretch at = GMEM_REGIONS_WALK(vm, 0, UINT64_MAX);

	while (gmem_regions_walk_whole(&at))
		if (at.region)
			add_states(at.region, stats);
}

/* ---- what is in memory ---- */

/* Count pages of the private side in a range of which the shared side has every page. */
static int count_run(const struct gmem_region_memory *other, uint64_t offset, uint64_t size,
		     uint64_t *bytes)
{
	uint64_t pages;
	int err;

	err = gmem_sys_cachestat(other->file->fd, other->offset + offset, size, &pages);
	if (!err)
		*bytes += pages * gmem_sys_page_size();
	return err;
}

/* mincore(2); where nothing is mapped, nothing is in memory. */
static int look(char *hva, uint64_t count, unsigned char *in_memory)
{
	uint64_t page = gmem_sys_page_size(), half = count / 2;
	int err;

	err = gmem_sys_mincore(hva, count * page, in_memory);
	if (err != -ENOMEM)
		return err;
	if (count == 1) {
		*in_memory = 0;
		return 0;
	}
	err = look(hva, half, in_memory);
	return err ? err : look(hva + half * page, count - half, in_memory + half);
}

static int count_both(const struct gmem_region_memory *shared, const struct gmem_region_memory *other,
		      uint64_t offset, uint64_t size, uint64_t *bytes)
{
	uint64_t page = gmem_sys_page_size(), count = size / page, first, i = 0;
	unsigned char in_memory[LOOK_PAGES];
	int err;

	err = look((char *)shared->hva + offset, count, in_memory);
	while (i < count && !err) {
		for (; i < count && !(in_memory[i] & 1); i++)
			;
		for (first = i; i < count && in_memory[i] & 1; i++)
			;
		if (i > first)
			err = count_run(other, offset + first * page, (i - first) * page, bytes);
	}
	return err;
}

static int add_doubled(const struct gmem_region *region, uint64_t offset, uint64_t size,
		       struct gmem_stats *stats)
{
	uint64_t chunk = LOOK_PAGES * gmem_sys_page_size(), done, now;
	struct gmem_region_memory shared, other;
	int err;

	err = gmem_region_memory_get(region, GMEM_SIDE_SHARED, offset, size, &shared);
	if (!err)
		err = gmem_region_memory_get(region, GMEM_SIDE_PRIVATE, offset, size, &other);
	if (err)
		return err;

	for (done = 0; done < size && !err; done += now) {
		now = size - done < chunk ? size - done : chunk;
		err = count_both(&shared, &other, done, now, &stats->doubled);
	}
	if (err)
		return gmem_fail(err, "what of gpa 0x%" PRIx64 " is in memory twice cannot be had: %s",
				 region->gpa.start + offset, gmem_errno_name(err));
	return 0;
}

static int add_resident(const struct gmem_region *region, uint64_t offset, uint64_t size,
			struct gmem_stats *stats)
{
	uint64_t shared = 0, is_private = 0;
	int err = 0;

	/* Memory that is both sides is counted once. */
	if (!gmem_region_is_both_sides(region))
		err = gmem_region_memory_resident(region, GMEM_SIDE_SHARED, offset, size, &shared);
	if (!err && gmem_region_traits(region)->has_sides)
		err = gmem_region_memory_resident(region, GMEM_SIDE_PRIVATE, offset, size, &is_private);
	if (err)
		return err;

	stats->resident_shared += shared;
	stats->resident_private += is_private;
	return shared && is_private ? add_doubled(region, offset, size, stats) : 0;
}

/* Called and returning with the lock held */
static int add_all_resident(struct gmem_vm *vm, uint64_t at, uint64_t last, struct gmem_stats *stats)
{
	struct gmem_wait_budget budget = gmem_vm_budget(vm, 0);
	struct gmem_region *region;
	struct gmem_claim claim;
	uint64_t end;
	int err;

	for (;;) {
		err = gmem_section_claim(vm, at, last, GMEM_SECTION_PIECE, &budget, &claim, &region);
		if (err || !region)
			return err;
		if (gmem_region_has_use(region, GMEM_USE_COUNT)) {
			gmem_lock_drop(&vm->lock);
			err = add_resident(region, claim.gpa - region->gpa.start, claim.size, stats);
			gmem_lock_take(&vm->lock);
		}
		end = claim.gpa + claim.size - 1;
		gmem_claim_drop(vm, &claim);
		if (err || end >= last)
			return err;
		at = end + 1;
	}
}

/* ---- both ---- */

static int import(struct gmem_stats *user_stats, struct gmem_stats *stats)
{
	size_t size;
	int err;

	if (!user_stats)
		return gmem_fail(-EINVAL, "stats is NULL");

	err = GMEM_COPY_OPTS(gmem_stats, stats, user_stats, bytes_external);
	if (!err)
		err = gmem_check_flags("flags", stats->flags, GMEM_STATS_RESIDENT);
	if (err)
		return err;

	size = stats->size;
	*stats = (struct gmem_stats){ .size = size, .flags = stats->flags };
	return 0;
}

GMEM_API int gmem_vm_stats(struct gmem_vm *vm, struct gmem_stats *user_stats)
{
	struct gmem_stats stats;
	int err;

	if (!vm)
		return gmem_fail(-EINVAL, "vm is NULL");

	err = import(user_stats, &stats);
	if (err)
		return err;

	gmem_lock_take(&vm->lock);
	add_all_states(vm, &stats);
	if (stats.flags & GMEM_STATS_RESIDENT)
		err = add_all_resident(vm, 0, UINT64_MAX - 1, &stats);
	gmem_lock_drop(&vm->lock);
	if (err)
		return gmem_vm_log_error(vm, err);

	get_counters(&vm->counters, &stats);
	gmem_fill_result(user_stats, &stats, sizeof(stats));
	return 0;
}

GMEM_API int gmem_region_stats(struct gmem_region *region, struct gmem_stats *user_stats)
{
	struct gmem_stats stats;
	struct gmem_vm *vm;
	int err;

	if (!region)
		return gmem_fail(-EINVAL, "region is NULL");

	err = import(user_stats, &stats);
	if (err)
		return err;

	vm = region->vm;
	gmem_lock_take(&vm->lock);
	add_states(region, &stats);
	if (stats.flags & GMEM_STATS_RESIDENT)
		err = add_all_resident(vm, region->gpa.start,
				       region->gpa.start + region->gpa.size - 1, &stats);
	gmem_lock_drop(&vm->lock);
	if (err)
		return gmem_vm_log_error(vm, err);

	get_counters(&region->counters, &stats);
	gmem_fill_result(user_stats, &stats, sizeof(stats));
	return 0;
}
