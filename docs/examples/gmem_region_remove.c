/* SPDX-License-Identifier: MIT */
#include "examples.h"

EXAMPLE(gmem_region_remove)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = plan);
	struct gmem_region *dimm;

	check(gmem_region_add(vm, 16 * MIB, MIB, &opts, &dimm) == 0);

	/* EXAMPLE: Unplug memory that the guest has put offline. */
	if (gmem_region_remove(dimm) < 0)
		warnx("the memory stays: %s", gmem_last_error());
	/* END */
	struct gmem_region_info info;

	check(gmem_vm_find_gpa(vm, 16 * MIB, &info) == -ENOENT);
}
