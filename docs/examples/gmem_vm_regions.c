/* SPDX-License-Identifier: MIT */
#include "examples.h"

EXAMPLE(gmem_vm_regions)
{
	/* EXAMPLE: List the memory of a VM. */
	struct gmem_region_info info[32];
	const int count = gmem_vm_regions(vm, info, 32);

	if (count < 0)
		errx(1, "%s", gmem_last_error());
	for (int i = 0; i < count; i++)
		printf("%#" PRIx64 " %" PRIu64 " KiB %s\n", info[i].gpa, info[i].size >> 10,
		       info[i].flags & GMEM_REGION_DEVICE ? "device" :
		       gmem_backing_name(info[i].backing));
	/* END */
	check(count == 1 && info[0].region == ram);
}
