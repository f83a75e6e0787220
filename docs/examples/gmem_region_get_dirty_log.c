/* SPDX-License-Identifier: MIT */
#include "examples.h"

EXAMPLE(gmem_region_get_dirty_log)
{
	if (gmem_region_set_dirty_log(ram, 1) < 0)
		skip(gmem_last_error());

	/* EXAMPLE: Copy the pages that the guest has written since the last time. */
	uint64_t bitmap[16], copied = 0;
	const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);

	if (gmem_region_get_dirty_log(ram, bitmap, 16) < 0)
		errx(1, "%s", gmem_last_error());
	for (uint64_t i = 0; i < gmem_region_size(ram) / page; i++)
		if (bitmap[i / 64] >> (i % 64) & 1)
			copied += page;	/* ... copy it ... */
	/* END */
	check(copied == 0);
}
