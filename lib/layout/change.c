/* SPDX-License-Identifier: MIT */
#include "layout/change.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "layout/apply.h"
#include "layout/region_ops.h"
#include "layout/step.h"
#include "region/region.h"
#include "region/vm_core.h"

struct gmem_change {
	struct gmem_vm *vm;
	struct gmem_step *steps;
	size_t count;
	size_t room;
	uint32_t *places;	/* 2 * room of them: where a region's step is, see place_of() */
};

GMEM_API int gmem_change_new(struct gmem_vm *vm, struct gmem_change **ret)
{
	struct gmem_change *change;

	if (!vm || !ret)
		return gmem_fail(-EINVAL, "%s is NULL", vm ? "ret" : "vm");

	change = calloc(1, sizeof(*change));
	if (!change)
		return gmem_fail(-ENOMEM, "no memory for a change");

	change->vm = gmem_vm_ref(vm);
	*ret = change;
	return 0;
}

GMEM_API void gmem_change_free(struct gmem_change *change)
{
	if (!change)
		return;

	for (size_t i = 0; i < change->count; i++)
		if (change->steps[i].kind == GMEM_STEP_ADD)
			gmem_region_free(change->steps[i].region);
	free(change->steps);
	free(change->places);
	gmem_vm_unref(change->vm);
	free(change);
}

/*
 * A region's place in a hash table with open addressing, which has the number of its step, or
 * 0: the change has no step with the region. At least half of the places are 0.
 */
static uint32_t *place_of(uint32_t *places, size_t room, const struct gmem_step *steps,
			  const struct gmem_region *region)
{
	uint64_t hash = (uintptr_t)region / sizeof(uint64_t) * UINT64_C(0x9e3779b97f4a7c15);
	size_t place = (hash >> 32) & (2 * room - 1);

	while (places[place] && steps[places[place] - 1].region != region)
		place = (place + 1) & (2 * room - 1);
	return &places[place];
}

static int make_room(struct gmem_change *change)
{
	size_t room = change->room ? 2 * change->room : 8;
	struct gmem_step *steps;
	uint32_t *places;

	steps = realloc(change->steps, room * sizeof(*steps));
	if (steps)
		change->steps = steps;
	places = steps ? calloc(2 * room, sizeof(*places)) : NULL;
	if (!places)
		return gmem_fail(-ENOMEM, "no memory for step %zu of a change", change->count + 1);

	for (size_t i = 0; i < change->count; i++)
		*place_of(places, room, steps, steps[i].region) = (uint32_t)i + 1;
	free(change->places);
	change->places = places;
	change->room = room;
	return 0;
}

static int add_step(struct gmem_change *change, const struct gmem_step *step)
{
	int err = change->count == change->room ? make_room(change) : 0;

	if (err)
		return err;
	change->steps[change->count++] = *step;
	*place_of(change->places, change->room, change->steps, step->region) =
		(uint32_t)change->count;
	return 0;
}

static int check_unused(const struct gmem_change *change, const struct gmem_region *region)
{
	uint32_t number;
	int err;

	if (!change || !region)
		return gmem_fail(-EINVAL, "%s is NULL", change ? "region" : "change");
	err = gmem_vm_check_alive(change->vm);
	if (err)
		return err;
	if (region->vm != change->vm)
		return gmem_fail(-EINVAL, "the region at gpa 0x%" PRIx64 " is of another VM",
				 region->gpa.start);

	number = change->count ? *place_of(change->places, change->room, change->steps, region) : 0;
	if (number)
		return gmem_fail(-EEXIST,
				 "step %" PRIu32 " of the change has the region at gpa 0x%" PRIx64
				 " already", number, region->gpa.start);
	return 0;
}

GMEM_API int gmem_change_add(struct gmem_change *change, uint64_t gpa, uint64_t size,
			     const struct gmem_region_opts *opts, struct gmem_region **ret)
{
	struct gmem_step step = { .ret = ret };
	int err;

	if (!change || !ret)
		return gmem_fail(-EINVAL, "%s is NULL", change ? "ret" : "change");

	err = gmem_vm_check_alive(change->vm);
	if (!err)
		err = gmem_step_make_add(change->vm, gpa, size, opts, &step);
	if (!err)
		err = gmem_region_new(change->vm, gpa, size, &step.params, &step.region);
	if (err)
		return err;

	step.params.nature_is_old = true;
	err = add_step(change, &step);
	if (err)
		gmem_region_free(step.region);
	return err;
}

GMEM_API int gmem_change_remove(struct gmem_change *change, struct gmem_region *region)
{
	const struct gmem_step step = { .kind = GMEM_STEP_REMOVE, .region = region };
	int err = check_unused(change, region);

	return err ? err : add_step(change, &step);
}

GMEM_API int gmem_change_move(struct gmem_change *change, struct gmem_region *region,
			      uint64_t gpa)
{
	const struct gmem_step step = { .kind = GMEM_STEP_MOVE, .region = region, .gpa = gpa };
	int err;

	err = check_unused(change, region);
	if (!err)
		err = gmem_step_check_whole(region);
	if (!err)
		err = gmem_step_check_move(region, gpa);
	return err ? err : add_step(change, &step);
}

/* Name the step that failed, in front of the reason. */
static int fail_at_step(const struct gmem_change *change, int err)
{
	struct gmem_failure failure;

	for (size_t i = 0; i < change->count; i++) {
		const struct gmem_step *step = &change->steps[i];

		if (!step->failed)
			continue;
		gmem_failure_keep(&failure, err);
		return gmem_fail(err, "step %zu of %zu, %s: %s", i + 1, change->count,
				 gmem_step_name(step->kind), failure.sentence);
	}
	return err;
}

GMEM_API int gmem_change_apply(struct gmem_change *change)
{
	int err;

	if (!change)
		return gmem_fail(-EINVAL, "change is NULL");
	err = gmem_vm_check_alive(change->vm);
	if (err)
		return err;

	for (size_t i = 0; i < change->count; i++)
		if (!change->steps[i].region)
			return gmem_fail(-ENOTRECOVERABLE,
					 "step %zu got stuck when the change was applied before", i + 1);

	err = gmem_apply_steps(change->vm, change->steps, change->count);
	if (err)
		return gmem_vm_log_error(change->vm, fail_at_step(change, err));

	for (size_t i = 0; i < change->count; i++)
		if (change->steps[i].ret)
			*change->steps[i].ret = change->steps[i].region;
	change->count = 0;
	if (change->places)
		memset(change->places, 0, 2 * change->room * sizeof(*change->places));
	return 0;
}
