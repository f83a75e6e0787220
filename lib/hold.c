/* SPDX-License-Identifier: MIT */
/*
 * The memory of a transfer, held: ranges of regions with their host addresses,
 * and how bytes get there and from there. Pages of zeros are not written where
 * the guest has none: they would only take memory.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "internal.h"
#include "touch.h"

/* What is looked at for zeros: the smallest page there is */
#define GRAIN ((uint64_t)4096)

/* Below this a page fault each costs less than populating first. */
#define POPULATE_FROM ((uint64_t)16 << 10)

bool gmem_is_zero(const void *bytes, size_t size)
{
	const char *p = bytes;
	size_t i;

	/* Most pages with something in them have it at their start. */
	for (i = 0; i < size && i < 16; i++)
		if (p[i])
			return false;
	return size <= 16 || memcmp(p, p + 16, size - 16) == 0;
}

/* ---- which memory ---- */

static int add(struct gmem_hold *hold, struct gmem_region *region, uint64_t start,
	       uint64_t last)
{
	struct gmem_held *more, *held;
	struct gmem_side side;
	uint64_t offset;
	int err;

	if (start < region->gpa.start)
		start = region->gpa.start;
	if (last > region->gpa.start + region->gpa.size - 1)
		last = region->gpa.start + region->gpa.size - 1;
	offset = start - region->gpa.start;

	err = gmem_side_get(region, GMEM_SIDE_SHARED, 0, region->gpa.size, &side);
	if (err)
		return err;
	if (!side.hva)
		return gmem_fail(-EACCES, "gpa 0x%" PRIx64 " cannot be reached from the host", start);

	more = realloc(hold->all, (hold->count + 1) * sizeof(*more));
	if (!more)
		return gmem_fail(-ENOMEM, "no memory for a list of %zu regions", hold->count + 1);

	hold->all = more;
	held = &more[hold->count++];
	*held = (struct gmem_held){
		.region = region,
		.gpa = start,
		.size = last - start + 1,
		.offset = offset,
		.hva = (char *)side.hva + offset,
		.in_file = side.file != NULL,
	};
	return 0;
}

static int collect(struct gmem_vm *vm, uint64_t start, uint64_t last,
		   struct gmem_hold *hold)
{
	struct gmem_region *region;
	struct gmem_range *range;
	uint64_t at = start;
	int err = 0;

	while (!err) {
		range = gmem_range_find(&vm->regions, at, last - at + 1);
		if (!range)
			break;
		region = GMEM_CONTAINER_OF(range, struct gmem_region, gpa);
		if (!region->is_device)
			err = add(hold, region, start, last);
		at = range->start + range->size;
		if (at == 0 || at > last)
			break;
	}
	return err;
}

int gmem_hold_take(struct gmem_vm *vm, uint64_t start, uint64_t last,
		      struct gmem_hold *ret)
{
	int err;

	*ret = (struct gmem_hold){ .fast = gmem_touch_is_recoverable() };
	pthread_mutex_lock(&vm->lock);
	err = collect(vm, start, last, ret);
	pthread_mutex_unlock(&vm->lock);
	if (err)
		gmem_hold_drop(ret);
	return err;
}

void gmem_hold_drop(struct gmem_hold *hold)
{
	free(hold->all);
	*hold = (struct gmem_hold){ 0 };
}

const struct gmem_held *gmem_hold_at(const struct gmem_hold *hold, uint64_t gpa)
{
	size_t low = 0, high = hold->count, middle;

	while (low < high) {
		middle = low + (high - low) / 2;
		if (hold->all[middle].gpa + (hold->all[middle].size - 1) < gpa)
			low = middle + 1;
		else
			high = middle;
	}
	if (low == hold->count || hold->all[low].gpa > gpa)
		return NULL;
	return &hold->all[low];
}

uint64_t gmem_hold_reach(const struct gmem_hold *hold, uint64_t gpa)
{
	const struct gmem_held *held;
	uint64_t size = 0;

	while ((held = gmem_hold_at(hold, gpa + size)) != NULL) {
		size = held->gpa - gpa + held->size;
		if (gpa + size == 0)
			break;
	}
	return size;
}

/* ---- to the guest ---- */

static int fail_touch(const struct gmem_held *held, const char *hva, int err)
{
	return gmem_fail(err, "gpa 0x%" PRIx64 " cannot be reached: %s",
			 held->gpa + (uint64_t)(hva - held->hva), gmem_errno_name(err));
}

/* Page by page is what faults are; ahead of the copy it is one call. */
static void populate(const struct gmem_held *held, char *hva, uint64_t size)
{
	uint64_t page = gmem_sys_page_size(), before = (uintptr_t)hva % page;
	int advice = held->in_file ? MADV_POPULATE_READ : MADV_POPULATE_WRITE;

	if (size >= POPULATE_FROM)
		gmem_sys_madvise(hva - before, (before + size + page - 1) / page * page, advice);
}

static int copy_in(const struct gmem_hold *hold, const struct gmem_held *held, char *hva,
		   const char *bytes, uint64_t size)
{
	size_t done;
	int err = 0;

	populate(held, hva, size);
	done = gmem_touch_copy(hold->fast, hva, bytes, size, &err);
	return err ? fail_touch(held, hva + done, err) : 0;
}

struct clearing {
	const struct gmem_hold *hold;
	const struct gmem_held *held;
	uint64_t start, end;	/* from the start of the region */
};

/* What is there may be zero already; looking takes no memory. */
static int clear_run(void *data, uint64_t offset, uint64_t size)
{
	const struct clearing *clearing = data;
	const struct gmem_held *held = clearing->held;
	uint64_t start = offset > clearing->start ? offset : clearing->start;
	uint64_t end = offset + size < clearing->end ? offset + size : clearing->end;
	bool fast = clearing->hold->fast;
	char bytes[GRAIN], *hva;
	uint64_t now;
	int err = 0;

	for (; start < end && !err; start += now) {
		hva = held->hva + (start - held->offset);
		now = GRAIN - start % GRAIN;
		now = end - start < now ? end - start : now;
		gmem_touch_copy(fast, bytes, hva, now, &err);
		if (!err && !gmem_is_zero(bytes, now))
			gmem_touch_fill(fast, hva, 0, now, &err);
		if (err)
			err = fail_touch(held, hva, err);
	}
	return err;
}

static int clear(const struct gmem_hold *hold, const struct gmem_held *held,
		 uint64_t offset, uint64_t size)
{
	struct clearing clearing = {
		.hold = hold,
		.held = held,
		.start = held->offset + offset,
		.end = held->offset + offset + size,
	};
	uint64_t page = gmem_sys_page_size();
	uint64_t first = clearing.start / page * page;
	uint64_t end = (clearing.end + page - 1) / page * page;

	return gmem_side_presence(held->region, GMEM_SIDE_SHARED, first, end - first, clear_run,
				  &clearing);
}

static int no_memory(uint64_t gpa)
{
	return gmem_fail(-ENOENT, "there is no memory at gpa 0x%" PRIx64, gpa);
}

int gmem_hold_clear(const struct gmem_hold *hold, uint64_t gpa, uint64_t size)
{
	const struct gmem_held *held;
	uint64_t now, offset;
	int err = 0;

	for (; size && !err; gpa += now, size -= now) {
		held = gmem_hold_at(hold, gpa);
		if (!held)
			return no_memory(gpa);
		offset = gpa - held->gpa;
		now = held->size - offset < size ? held->size - offset : size;
		err = clear(hold, held, offset, now);
	}
	return err;
}

/* Bytes at the start of @bytes that are all zeros, or all in pages that are not */
static uint64_t same_kind(const char *bytes, uint64_t gpa, uint64_t size, bool *ret_zero)
{
	uint64_t done = 0, grain;
	bool zero;

	while (done < size) {
		grain = GRAIN - (gpa + done) % GRAIN;
		grain = size - done < grain ? size - done : grain;
		zero = gmem_is_zero(bytes + done, grain);
		if (done && zero != *ret_zero)
			break;
		*ret_zero = zero;
		done += grain;
	}
	return done;
}

int gmem_hold_store(const struct gmem_hold *hold, uint64_t gpa, const char *bytes,
		       uint64_t size, struct gmem_stored *stored)
{
	const struct gmem_held *held;
	uint64_t now, offset;
	bool zero = false;
	int err;

	for (; size; gpa += now, bytes += now, size -= now) {
		held = gmem_hold_at(hold, gpa);
		if (!held)
			return no_memory(gpa);

		offset = gpa - held->gpa;
		now = held->size - offset < size ? held->size - offset : size;
		now = same_kind(bytes, gpa, now, &zero);
		err = zero ? clear(hold, held, offset, now)
			   : copy_in(hold, held, held->hva + offset, bytes, now);
		if (err)
			return err;
		*(zero ? &stored->zero : &stored->data) += now;
	}
	return 0;
}
