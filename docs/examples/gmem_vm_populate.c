/* SPDX-License-Identifier: MIT */
#include "examples.h"

EXAMPLE(gmem_vm_populate)
{
	/* EXAMPLE: Allocate RAM with four threads before the guest starts. */
	GMEM_OPTS(gmem_populate_opts, opts, .workers = 4);
	struct gmem_footprint memory;

	if (gmem_vm_populate(vm, 0, 0x400000, &opts, &memory) < 0)
		errx(1, "%s", gmem_last_error());
	/* END */
	check(memory.done == 4 * MIB && memory.counted && memory.after == 4 * MIB);
}
