/* SPDX-License-Identifier: MIT */
#include "examples.h"

EXAMPLE(gmem_last_error)
{
	struct gmem_region *region;

	/* EXAMPLE: Print what was refused, and why. */
	const int error = gmem_region_add(vm, 0x1000, 0x1000, NULL, &region);

	if (error < 0)
		fprintf(stderr, "no memory: %s (%s)\n", gmem_last_error(), strerror(-error));
	/* END */
	check(error < 0 && *gmem_last_error());
}
