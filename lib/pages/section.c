/* SPDX-License-Identifier: MIT */
#include "pages/section.h"

#include <errno.h>
#include <inttypes.h>
#include <stddef.h>

#include "base/error.h"
#include "base/kind.h"
#include "base/lock.h"
#include "base/wait_budget.h"
#include "os/sys.h"
#include "region/region_info.h"
#include "region/region_memory.h"
#include "region/regions.h"

static int find_section(const struct gmem_vm *vm, uint64_t gpa, uint64_t last,
			struct gmem_section *section)
{
	struct gmem_stretch at = GMEM_REGIONS_WALK(vm, gpa, last);
	int err;

	gmem_regions_walk(&at);
	err = gmem_regions_check_memory(at.region, gpa);
	if (err)
		return err;

	*section = (struct gmem_section){
		.region = at.region,
		.side = at.is_private && gmem_region_traits(at.region)->has_sides
				? GMEM_SIDE_PRIVATE : GMEM_SIDE_SHARED,
		.is_private = at.is_private,
		.offset = gpa - at.region->gpa.start,
		.size = at.size,
	};
	return 0;
}

static int find_section_locked(struct gmem_vm *vm, uint64_t gpa, uint64_t last,
			       struct gmem_section *section)
{
	int err;

	gmem_lock_take(&vm->lock);
	err = find_section(vm, gpa, last, section);
	gmem_lock_drop(&vm->lock);
	return err;
}

int gmem_section_take_side(struct gmem_section *section, uint32_t side)
{
	const struct gmem_region *region = section->region;

	if (!side)
		return 0;
	if (!gmem_region_traits(region)->has_sides || gmem_region_is_both_sides(region))
		return gmem_fail(-EOPNOTSUPP, "the region at gpa 0x%" PRIx64 ", backed by \"%s\", has one "
				 "memory and not two sides", region->gpa.start,
				 gmem_backing_name(region->backing));
	section->is_unused = side != section->side;
	section->side = side;
	section->is_private = side == GMEM_SIDE_PRIVATE;
	return 0;
}

bool gmem_section_part(const struct gmem_section *section, uint64_t done,
		       struct gmem_region_info *region, struct gmem_listener_part *part)
{
	if (section->is_private || section->is_unused || !gmem_listeners_are_there(section->region->vm))
		return false;

	gmem_region_fill_info(section->region, region);
	*part = (struct gmem_listener_part){
		.region = region,
		.gpa = region->gpa + section->offset + done,
		.size = section->size - done,
	};
	return true;
}

/* @claim is on the whole range. */
static int walk(struct gmem_vm *vm, uint64_t gpa, uint64_t size, const struct gmem_claim *claim,
		uint32_t uses, gmem_section_fn fn, void *data)
{
	uint64_t last = gpa + size - 1;
	struct gmem_section section;
	int err;

	do {
		err = find_section_locked(vm, gpa, last, &section);
		if (err)
			return err;
		section.claim = claim;
		if (gmem_region_has_use(section.region, uses))
			err = fn(data, &section);
		if (err)
			return err;
		gpa += section.size;
	} while (gpa - 1 != last);
	return 0;
}

/* Nothing keeps a region there but the lock, so @fn, which must be quick, is called with it. */
static int look(struct gmem_vm *vm, uint64_t gpa, uint64_t size, uint32_t uses, gmem_section_fn fn,
		void *data)
{
	uint64_t last = gpa + size - 1;
	struct gmem_section section;
	int err;

	do {
		gmem_lock_take(&vm->lock);
		err = find_section(vm, gpa, last, &section);
		if (!err && gmem_region_has_use(section.region, uses))
			err = fn(data, &section);
		gmem_lock_drop(&vm->lock);
		if (err)
			return err;
		gpa += section.size;
	} while (gpa - 1 != last);
	return 0;
}

struct check {
	uint32_t uses;
	uint32_t left_out;	/* a kind that lacks one */
	uint64_t bytes;		/* of kinds that do not */
};

static int check_section(void *data, const struct gmem_section *section)
{
	struct check *check = data;

	if (gmem_region_has_use(section->region, check->uses))
		check->bytes += section->size;
	else
		check->left_out = section->region->kind;
	return 0;
}

int gmem_vm_look_at_sections(struct gmem_vm *vm, uint64_t gpa, uint64_t size, uint32_t uses,
			     gmem_section_fn fn, void *data)
{
	return look(vm, gpa, size, uses, fn, data);
}

uint64_t gmem_section_piece(struct gmem_vm *vm, uint64_t gpa, uint64_t size)
{
	struct gmem_stretch at = GMEM_REGIONS_WALK(vm, gpa, gpa + size - 1);
	uint64_t piece = size < GMEM_SECTION_PIECE ? size : GMEM_SECTION_PIECE;

	if (size == piece)
		return size;

	gmem_lock_take(&vm->lock);
	gmem_regions_walk(&at);
	if (at.region)
		piece = gmem_region_memory_piece(at.region, gpa - at.region->gpa.start, size, piece);
	gmem_lock_drop(&vm->lock);
	return piece;
}

int gmem_vm_check_memory(struct gmem_vm *vm, uint64_t gpa, uint64_t size, uint32_t uses,
			 const char *otherwise, uint64_t *ret_bytes)
{
	struct check check = { .uses = uses };
	int err = look(vm, gpa, size, 0, check_section, &check);

	if (err)
		return err;
	if (!check.bytes && otherwise)
		return gmem_fail(-EOPNOTSUPP, "all of gpa 0x%" PRIx64 ", 0x%" PRIx64
				 " bytes, is memory of kind \"%s\", %s", gpa, size,
				 gmem_kind_name(check.left_out), otherwise);
	*ret_bytes = check.bytes;
	return 0;
}

int gmem_vm_each_section(struct gmem_vm *vm, uint64_t gpa, uint64_t size, uint32_t uses,
			 enum gmem_claim_mode mode, struct gmem_wait_budget *budget,
			 gmem_section_fn fn, void *data)
{
	struct gmem_claim claim = {
		.gpa = gpa,
		.size = size,
		.mode = mode,
		.discards = mode == GMEM_CLAIM_EXCLUSIVE,
		.purpose = "discarded",
	};
	int err;

	gmem_lock_take(&vm->lock);
	err = gmem_claim_take(vm, &claim, budget);
	gmem_lock_drop(&vm->lock);
	if (err)
		return err;

	err = walk(vm, gpa, size, &claim, uses, fn, data);

	gmem_lock_take(&vm->lock);
	gmem_claim_drop(vm, &claim);
	gmem_lock_drop(&vm->lock);
	return err;
}

int gmem_section_claim(struct gmem_vm *vm, uint64_t gpa, uint64_t last, uint64_t max,
		       struct gmem_wait_budget *budget, struct gmem_claim *claim,
		       struct gmem_region **ret)
{
	struct gmem_region *region;
	uint64_t start, end;
	int err;

	while ((*ret = region = gmem_regions_next(vm, gpa, last))) {
		start = region->gpa.start > gpa ? region->gpa.start : gpa;
		end = gmem_region_last(region) < last ? gmem_region_last(region) : last;
		*claim = (struct gmem_claim){
			.gpa = start,
			.size = end - start < max ? end - start + 1 : max,
			.mode = GMEM_CLAIM_SHARED,
		};
		err = gmem_claim_take(vm, claim, budget);
		if (err)
			return err;

		/* Others may have changed the layout if it had to wait. */
		if (gmem_regions_next(vm, gpa, last) == region && region->gpa.start <= start &&
		    gmem_region_last(region) - start >= claim->size - 1)
			return 0;
		gmem_claim_drop(vm, claim);
	}
	return 0;
}

struct count {
	uint32_t side;
	struct gmem_vm_resident sum;
};

static int add_resident(void *data, const struct gmem_section *found)
{
	struct gmem_section section = *found;
	struct gmem_region_memory memory;
	struct count *count = data;
	uint64_t bytes;
	int err;

	err = gmem_section_take_side(&section, count->side);
	if (!err)
		err = gmem_region_memory_resident(section.region, section.side, section.offset,
						  section.size, &bytes);
	if (!err)
		err = gmem_region_memory_get(section.region, section.side, section.offset, section.size,
					     &memory);
	if (err)
		return err;
	count->sum.bytes += bytes;
	count->sum.in_huge_pages += memory.pool_page > gmem_sys_page_size() ? bytes : 0;
	return 0;
}

int gmem_vm_resident(struct gmem_vm *vm, uint64_t gpa, uint64_t size, uint32_t side,
		     struct gmem_vm_resident *ret)
{
	struct gmem_wait_budget budget = gmem_vm_budget(vm, 0);
	struct count count = { .side = side };
	uint64_t done, now;
	int err;

	for (done = 0; done < size; done += now) {
		now = size - done < GMEM_SECTION_PIECE ? size - done : GMEM_SECTION_PIECE;
		err = gmem_vm_each_section(vm, gpa + done, now, GMEM_USE_COUNT, GMEM_CLAIM_SHARED,
					   &budget, add_resident, &count);
		if (err)
			return err;
	}

	*ret = count.sum;
	return 0;
}
