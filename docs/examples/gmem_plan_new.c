/* SPDX-License-Identifier: MIT */
#include "examples.h"

EXAMPLE(gmem_plan_new)
{
	/* EXAMPLE: A guest_memfd if the host has it, otherwise host memory, and the reason. */
	GMEM_OPTS(gmem_request, request,
		  .backings = { GMEM_BACKING_SHARED, GMEM_BACKING_HOST });
	struct gmem_plan *ram_plan;

	if (gmem_plan_new(gmem_vm_caps(vm), &request, &ram_plan) < 0)
		errx(1, "%s", gmem_last_error());
	if (gmem_plan_backing(ram_plan) != GMEM_BACKING_SHARED)
		printf("no guest_memfd: %s\n", gmem_plan_passed_over(ram_plan, GMEM_BACKING_SHARED));
	/* END */
	check(gmem_plan_backing(ram_plan) == GMEM_BACKING_SHARED ||
	      gmem_plan_passed_over(ram_plan, GMEM_BACKING_SHARED));
	gmem_plan_free(ram_plan);
}
