/* SPDX-License-Identifier: MIT */
/*
 * A range of guest addresses, one piece after the other: each in one region
 * and of one state. A claim keeps the regions and the states as they are while
 * the pieces are worked on, without the locks.
 */
#include "pages/section.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"
#include "base/lock.h"
#include "base/macros.h"
#include "base/range_map.h"
#include "base/range_set.h"
#include "region/region_memory.h"

/* Claimed at once for counting: short, so that conversions do not wait long */
#define COUNT_STEP (UINT64_C(1) << 30)

static int find_piece(const struct gmem_vm *vm, uint64_t gpa, uint64_t last,
		      struct gmem_section *piece)
{
	struct gmem_range *range = gmem_range_find(&vm->regions, gpa, 1);
	struct gmem_part part;

	if (!range)
		return gmem_fail(-ENOENT, "there is no region at gpa 0x%" PRIx64, gpa);

	piece->region = GMEM_CONTAINER_OF(range, struct gmem_region, gpa);
	if (piece->region->is_device)
		return gmem_fail(-ENXIO, "there is a device at gpa 0x%" PRIx64, gpa);

	if (range->start + range->size - 1 < last)
		last = range->start + range->size - 1;
	piece->side = GMEM_SIDE_SHARED;
	if (gmem_set_next(&vm->privates, true, gpa, last, &part)) {
		if (part.start > gpa) {
			last = part.start - 1;
		} else {
			piece->side = GMEM_SIDE_PRIVATE;
			last = part.last;
		}
	}
	piece->offset = gpa - range->start;
	piece->size = last - gpa + 1;
	return 0;
}

static int find_piece_locked(struct gmem_vm *vm, uint64_t gpa, uint64_t last,
			     struct gmem_section *piece)
{
	int err;

	gmem_lock_take(&vm->lock);
	err = find_piece(vm, gpa, last, piece);
	gmem_lock_drop(&vm->lock);
	return err;
}

static int walk(struct gmem_vm *vm, uint64_t gpa, uint64_t size, gmem_section_fn fn, void *data)
{
	uint64_t last = gpa + size - 1;
	struct gmem_section piece;
	int err;

	do {
		err = find_piece_locked(vm, gpa, last, &piece);
		if (!err && fn)
			err = fn(data, &piece);
		if (err)
			return err;
		gpa += piece.size;
	} while (gpa - 1 != last);
	return 0;
}

int gmem_vm_check_memory(struct gmem_vm *vm, uint64_t gpa, uint64_t size)
{
	return walk(vm, gpa, size, NULL, NULL);
}

int gmem_vm_each_section(struct gmem_vm *vm, uint64_t gpa, uint64_t size,
			 enum gmem_claim_mode mode, uint32_t wait_ms, gmem_section_fn fn, void *data)
{
	struct gmem_claim claim = {
		.gpa = gpa,
		.size = size,
		.mode = mode,
		.discards = mode == GMEM_CLAIM_EXCLUSIVE,
	};
	int err;

	gmem_lock_take(&vm->lock);
	err = gmem_claim_take(vm, &claim, wait_ms);
	gmem_lock_drop(&vm->lock);
	if (err)
		return err;

	err = walk(vm, gpa, size, fn, data);

	gmem_lock_take(&vm->lock);
	gmem_claim_drop(vm, &claim);
	gmem_lock_drop(&vm->lock);
	return err;
}

static int add_resident(void *data, const struct gmem_section *piece)
{
	uint64_t *sum = data, bytes;
	int err;

	err = gmem_region_memory_resident(piece->region, piece->side, piece->offset, piece->size, &bytes);
	if (!err)
		*sum += bytes;
	return err;
}

int gmem_vm_resident(struct gmem_vm *vm, uint64_t gpa, uint64_t size, uint64_t *ret_bytes)
{
	uint64_t sum = 0, done, now;
	int err;

	for (done = 0; done < size; done += now) {
		now = size - done < COUNT_STEP ? size - done : COUNT_STEP;
		err = gmem_vm_each_section(vm, gpa + done, now, GMEM_CLAIM_SHARED, 0, add_resident, &sum);
		if (err)
			return err;
	}

	*ret_bytes = sum;
	return 0;
}
