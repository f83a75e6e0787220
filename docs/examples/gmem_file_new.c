/* SPDX-License-Identifier: MIT */
#include "examples.h"

EXAMPLE(gmem_file_new)
{
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_SHARED, GMEM_BACKING_MAPPED });
	struct gmem_plan *file_plan;

	if (gmem_plan_new(gmem_vm_caps(vm), &request, &file_plan) < 0)
		skip(gmem_last_error());

	/* EXAMPLE: One guest_memfd behind two regions; the plan is for a guest_memfd. */
	GMEM_OPTS(gmem_region_opts, opts, .plan = file_plan);
	struct gmem_region *low, *high;

	if (gmem_file_new(vm_fd, 0x200000, file_plan, &opts.file) < 0 ||
	    gmem_region_add(vm, 0x1000000, 0x100000, &opts, &low) < 0)
		errx(1, "%s", gmem_last_error());
	opts.file_offset = 0x100000;
	if (gmem_region_add(vm, 0x2000000, 0x100000, &opts, &high) < 0)
		errx(1, "%s", gmem_last_error());
	/* END */
	check(gmem_region_file(low, NULL) == gmem_region_file(high, NULL));
	gmem_plan_free(file_plan);
}
