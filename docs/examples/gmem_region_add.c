/* SPDX-License-Identifier: MIT */
#include "examples.h"

EXAMPLE(gmem_region_add)
{
	struct gmem_region *region;

	/* EXAMPLE: 1 MiB of RAM at 16 MiB, backed as the plan says. */
	GMEM_OPTS(gmem_region_opts, opts, .plan = plan);

	if (gmem_region_add(vm, 0x1000000, 0x100000, &opts, &region) < 0)
		errx(1, "%s", gmem_last_error());
	printf("RAM is at %p, memslot %d\n", gmem_region_hva(region), gmem_region_slot(region));
	/* END */
	check(gmem_region_gpa(region) == 16 * MIB && gmem_region_size(region) == MIB);
}
