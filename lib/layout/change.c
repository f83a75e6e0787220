/* SPDX-License-Identifier: MIT */
#include "layout/change.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

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
};

GMEM_API int gmem_change_new(struct gmem_vm *vm, struct gmem_change **ret)
{
	struct gmem_change *change;

	if (!vm || !ret)
		return gmem_fail(-EINVAL, "%s is NULL", vm ? "ret" : "vm");

	change = calloc(1, sizeof(*change));
	if (!change)
		return gmem_fail(-ENOMEM, "no memory for a change");

	change->vm = vm;
	*ret = change;
	return 0;
}

GMEM_API void gmem_change_free(struct gmem_change *change)
{
	if (!change)
		return;

	for (size_t i = 0; i < change->count; i++)
		if (change->steps[i].kind == GMEM_STEP_ADD)
			free(change->steps[i].region);
	free(change->steps);
	free(change);
}

static int add_step(struct gmem_change *change, const struct gmem_step *step)
{
	if (change->count == change->room) {
		size_t room = change->room ? 2 * change->room : 8;
		struct gmem_step *steps = realloc(change->steps, room * sizeof(*steps));

		if (!steps)
			return gmem_fail(-ENOMEM, "no memory for step %zu of a change",
					 change->count + 1);
		change->steps = steps;
		change->room = room;
	}

	change->steps[change->count++] = *step;
	return 0;
}

static int check_unused(const struct gmem_change *change, const struct gmem_region *region)
{
	if (!change || !region)
		return gmem_fail(-EINVAL, "%s is NULL", change ? "region" : "change");
	if (region->vm != change->vm)
		return gmem_fail(-EINVAL, "the region at gpa 0x%" PRIx64 " is of another VM",
				 region->gpa.start);

	for (size_t i = 0; i < change->count; i++)
		if (change->steps[i].region == region)
			return gmem_fail(-EEXIST,
					 "step %zu of the change has the region at gpa 0x%" PRIx64
					 " already", i + 1, region->gpa.start);
	return 0;
}

GMEM_API int gmem_change_add(struct gmem_change *change, uint64_t gpa, uint64_t size,
			     const struct gmem_region_opts *opts, struct gmem_region **ret)
{
	struct gmem_step step = { .ret = ret };
	int err;

	if (!change || !ret)
		return gmem_fail(-EINVAL, "%s is NULL", change ? "ret" : "change");

	err = gmem_step_make_add(change->vm, gpa, size, opts, &step);
	if (err)
		return err;

	err = add_step(change, &step);
	if (err)
		free(step.region);
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
	char sentence[256];

	for (size_t i = 0; i < change->count; i++) {
		const struct gmem_step *step = &change->steps[i];

		if (!step->failed)
			continue;
		snprintf(sentence, sizeof(sentence), "%s", gmem_last_error());
		return gmem_fail(err, "step %zu of %zu, %s: %s", i + 1, change->count,
				 gmem_step_name(step->kind), sentence);
	}
	return err;
}

GMEM_API int gmem_change_apply(struct gmem_change *change)
{
	int err;

	if (!change)
		return gmem_fail(-EINVAL, "change is NULL");

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
	return 0;
}
