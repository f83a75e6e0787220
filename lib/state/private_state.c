/* SPDX-License-Identifier: MIT */
#include "state/private_state.h"

#include <errno.h>
#include <inttypes.h>

#include "gmem.h"
#include "base/error.h"
#include "base/lock.h"
#include "os/kvm.h"
#include "os/kvm_compat.h"
#include "os/sys.h"
#include "state/inplace.h"

/* How often a call is tried again that was interrupted or said -EAGAIN */
#define MAX_TRIES 16
#define RETRY_MICROSECONDS 50

/* ---- telling the kernel ---- */

static int refuse(const struct gmem_vm *vm, const struct gmem_part *part, bool to_private, int err)
{
	return gmem_fail(err,
			 "VM fd %d refuses to make gpa 0x%" PRIx64 ", 0x%" PRIx64 " bytes, %s: %s",
			 gmem_vm_number(vm), part->start, part->last - part->start + 1,
			 to_private ? "private" : "shared", gmem_errno_name(err));
}

static int set_vm_private(const struct gmem_vm *vm, const struct gmem_part *part, bool to_private)
{
	uint64_t attributes = to_private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0;
	int err, tries = 0;

	/* KVM converts all of the range or nothing, so it can be asked again. */
	do {
		if (tries)
			gmem_sys_pause(RETRY_MICROSECONDS);
		err = gmem_kvm_set_attributes(vm->fd, part->start, part->last - part->start + 1,
					      attributes);
	} while ((err == -EINTR || err == -EAGAIN) && ++tries < MAX_TRIES);

	return err ? refuse(vm, part, to_private, err) : 0;
}

int gmem_region_set_private(const struct gmem_region *region, const struct gmem_part *part,
			    bool to_private, uint32_t wait_ms)
{
	if (gmem_region_traits(region)->attributes == GMEM_ATTRIBUTES_FILE)
		return gmem_inplace_convert(region, part, to_private, wait_ms);
	return set_vm_private(region->vm, part, to_private);
}

/* ---- the record ---- */

bool gmem_state_next_region(struct gmem_vm *vm, struct gmem_stretch *at)
{
	bool found;

	if (at->is_over)
		return false;

	gmem_lock_take(&vm->lock);
	found = gmem_regions_walk_whole(at);
	gmem_lock_drop(&vm->lock);
	return found;
}

/* The first part of a stretch, as guest addresses */
static bool find_in_region(const struct gmem_stretch *at, enum gmem_page_bit bit, bool value,
			   struct gmem_part *ret)
{
	uint64_t start;

	if (!at->region)
		return false;
	start = at->region->gpa.start;
	if (!gmem_states_find(&at->region->states, bit, value, at->gpa - start,
			      at->gpa + at->size - 1 - start, ret))
		return false;
	ret->start += start;
	ret->last += start;
	return true;
}

bool gmem_state_find(struct gmem_vm *vm, enum gmem_page_bit bit, bool value, uint64_t gpa,
		     uint64_t last, struct gmem_part *ret)
{
	struct gmem_stretch at = GMEM_REGIONS_WALK(vm, gpa, last);
	struct gmem_part part;
	bool found = false;

	while (gmem_state_next_region(vm, &at)) {
		if (!find_in_region(&at, bit, value, &part)) {
			if (found)
				break;
			continue;
		}
		if (found && part.start != ret->last + 1)
			break;
		ret->last = part.last;
		if (!found)
			ret->start = part.start;
		found = true;
		if (part.last != at.gpa + at.size - 1)
			break;
	}
	return found;
}

/* ---- what the layout and the record say together ---- */

static struct gmem_state_range describe(const struct gmem_stretch *at)
{
	struct gmem_state_range range = { .gpa = at->gpa, .size = at->size };

	if (at->region && !at->region->is_device) {
		range.backing = at->region->backing;
		range.state = at->is_private ? GMEM_STATE_PRIVATE : GMEM_STATE_SHARED;
	}
	return range;
}

static bool goes_on(const struct gmem_state_range *range, const struct gmem_state_range *next)
{
	return range->state == next->state && range->backing == next->backing;
}

static int list_states(const struct gmem_vm *vm, uint64_t gpa, uint64_t size,
		       struct gmem_state_range *ret, size_t max)
{
	struct gmem_stretch at = GMEM_REGIONS_WALK(vm, gpa, gpa + size - 1);
	struct gmem_state_range next;
	size_t count = 0;

	while (gmem_regions_walk(&at)) {
		next = describe(&at);
		if (count && goes_on(&ret[count - 1], &next)) {
			ret[count - 1].size += next.size;
		} else {
			if (count == max)
				break;
			ret[count++] = next;
		}
	}
	return (int)count;
}

GMEM_API int gmem_vm_state(struct gmem_vm *vm, uint64_t gpa, uint64_t size,
			   struct gmem_state_range *ret, size_t max)
{
	int count;

	if (!vm || !ret)
		return gmem_fail(-EINVAL, "%s is NULL", vm ? "ret" : "vm");
	if (size == 0 || gpa + size - 1 < gpa)
		return gmem_fail(-EINVAL, "gpa 0x%" PRIx64 " + size 0x%" PRIx64 " is no range", gpa,
				 size);
	if (max == 0)
		return gmem_fail(-EINVAL, "no place for a range: max is 0");

	gmem_lock_take(&vm->lock);
	count = list_states(vm, gpa, size, ret, max < INT32_MAX ? max : INT32_MAX);
	gmem_lock_drop(&vm->lock);
	return count;
}
