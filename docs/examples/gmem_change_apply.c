/* SPDX-License-Identifier: MIT */
#include "examples.h"

EXAMPLE(gmem_change_apply)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = plan);
	struct gmem_region *bios, *video, *dimm;

	check(gmem_region_add(vm, 16 * MIB, MIB, &opts, &bios) == 0);
	check(gmem_region_add(vm, 17 * MIB, MIB, &opts, &video) == 0);

	/* EXAMPLE: Remove one region, move another to its place, add a third: all, or nothing. */
	struct gmem_change *change;

	if (gmem_change_new(vm, &change) < 0)
		errx(1, "%s", gmem_last_error());
	if (gmem_change_remove(change, bios) < 0 ||
	    gmem_change_move(change, video, 0x1000000) < 0 ||
	    gmem_change_add(change, 0x1800000, 0x200000, &opts, &dimm) < 0 ||
	    gmem_change_apply(change) < 0)
		warnx("the layout is as it was: %s", gmem_last_error());
	gmem_change_free(change);
	/* END */
	check(gmem_region_gpa(video) == 16 * MIB && gmem_region_gpa(dimm) == 24 * MIB);
}
