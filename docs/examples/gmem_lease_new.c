/* SPDX-License-Identifier: MIT */
#include "examples.h"

EXAMPLE(gmem_lease_new)
{
	/* EXAMPLE: Keep a buffer where it is while a device uses its host address. */
	GMEM_OPTS(gmem_lease_opts, opts, .holder = "disk 0");
	struct gmem_lease *lease;

	if (gmem_lease_new(vm, 0x200000, 0x4000, &opts, &lease) < 0)
		errx(1, "%s", gmem_last_error());
	/* ... submit, and when it has completed: */
	gmem_lease_free(lease);
	/* END */
	check(gmem_lease_new(vm, 0, 4096, &opts, &lease) == 0);
	check(gmem_region_remove(ram) == -EBUSY && strstr(gmem_last_error(), "disk 0"));
}
