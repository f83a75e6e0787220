/* SPDX-License-Identifier: MIT */
#include "layout/region_ops.h"

#include <errno.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/error.h"
#include "base/lock.h"
#include "layout/apply.h"
#include "region/file.h"
#include "region/regions.h"
#include "region/vm_core.h"

static int apply_one(struct gmem_vm *vm, struct gmem_step *step)
{
	return gmem_vm_log_error(vm, gmem_apply_steps(vm, step, 1));
}

int gmem_step_check_whole(const struct gmem_region *region)
{
	int err;

	if (!region)
		return gmem_fail(-EINVAL, "region is NULL");

	gmem_lock_take(&region->vm->lock);
	err = gmem_regions_check_slot(region);
	gmem_lock_drop(&region->vm->lock);
	return err;
}

int gmem_step_check_move(const struct gmem_region *region, uint64_t gpa)
{
	return gmem_region_check_gpa(region->vm, gpa, gmem_region_size(region));
}

/* The rest is checked when the step is applied, without a lock that other work needs. */
static int check_region(const struct gmem_region *region)
{
	return region ? 0 : gmem_fail(-EINVAL, "region is NULL");
}

int gmem_step_make_add(struct gmem_vm *vm, uint64_t gpa, uint64_t size,
		       const struct gmem_region_opts *opts, struct gmem_step *step)
{
	step->kind = GMEM_STEP_ADD;
	step->region = NULL;
	step->gpa = gpa;
	step->size = size;
	return gmem_region_check(vm, gpa, size, opts, &step->params);
}

GMEM_API int gmem_region_add(struct gmem_vm *vm, uint64_t gpa, uint64_t size,
			     const struct gmem_region_opts *opts, struct gmem_region **ret)
{
	struct gmem_step step;
	int err;

	if (!vm || !ret)
		return gmem_fail(-EINVAL, "%s is NULL", vm ? "ret" : "vm");

	step.upper = NULL;
	err = gmem_step_make_add(vm, gpa, size, opts, &step);
	if (err)
		return gmem_vm_log_error(vm, err);

	err = apply_one(vm, &step);
	if (err)
		gmem_region_free(step.region);
	else
		*ret = step.region;
	return err;
}

GMEM_API int gmem_region_remove(struct gmem_region *region)
{
	struct gmem_step step;

	if (!region)
		return 0;
	/* The rest is for steps of other kinds. */
	step.kind = GMEM_STEP_REMOVE;
	step.region = region;
	step.upper = NULL;
	return apply_one(region->vm, &step);
}

GMEM_API int gmem_region_move(struct gmem_region *region, uint64_t gpa)
{
	struct gmem_step step = { .kind = GMEM_STEP_MOVE, .region = region, .gpa = gpa };
	int err;

	err = check_region(region);
	if (!err)
		err = gmem_step_check_move(region, gpa);
	if (err)
		return region ? gmem_vm_log_error(region->vm, err) : err;
	return apply_one(region->vm, &step);
}

GMEM_API int gmem_region_rebind(struct gmem_region *region, struct gmem_file *file,
				uint64_t file_offset)
{
	struct gmem_step step = {
		.kind = GMEM_STEP_REBIND,
		.region = region,
		.binding = { .file = file, .offset = file_offset },
	};
	int err;

	err = check_region(region);
	return err ? err : apply_one(region->vm, &step);
}

static int make_split(uint64_t offset, struct gmem_step *step)
{
	int err;

	err = gmem_check_aligned("offset", offset);
	if (err)
		return err;
	if (offset == 0)
		return gmem_fail(-EINVAL, "offset 0 is not inside the region");

	step->upper = malloc(sizeof(*step->upper));
	return step->upper ? 0 : gmem_fail(-ENOMEM, "no memory for a region handle");
}

GMEM_API int gmem_region_split(struct gmem_region *region, uint64_t offset,
			       struct gmem_region **ret_upper)
{
	struct gmem_step step = { .kind = GMEM_STEP_SPLIT, .region = region, .offset = offset };
	int err;

	if (!ret_upper)
		return gmem_fail(-EINVAL, "ret_upper is NULL");

	err = check_region(region);
	if (!err)
		err = make_split(offset, &step);
	if (err)
		return region ? gmem_vm_log_error(region->vm, err) : err;

	err = apply_one(region->vm, &step);
	if (err)
		free(step.upper);
	else
		*ret_upper = step.upper;
	return err;
}
