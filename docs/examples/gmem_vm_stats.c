/* SPDX-License-Identifier: MIT */
#include "examples.h"

EXAMPLE(gmem_vm_stats)
{
	check(gmem_view_fill(view, 0, 'x', MIB, NULL) == 0);

	/* EXAMPLE: Ask how much memory a VM has, and how much of it exists. */
	GMEM_OPTS(gmem_stats, stats, .flags = GMEM_STATS_RESIDENT);

	if (gmem_vm_stats(vm, &stats) < 0)
		errx(1, "%s", gmem_last_error());
	printf("%" PRIu64 " MiB, %" PRIu64 " allocated\n",
	       (stats.bytes_shared + stats.bytes_private) >> 20,
	       (stats.resident_shared + stats.resident_private) >> 20);
	/* END */
	check(stats.bytes_shared == 4 * MIB && stats.resident_shared == MIB);
}
