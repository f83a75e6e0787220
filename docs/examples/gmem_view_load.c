/* SPDX-License-Identifier: MIT */
#include "examples.h"

EXAMPLE(gmem_view_load)
{
	const uint64_t avail = 0x5000;
	uint16_t seen = 7;

	check(gmem_view_store(view, avail + 2, 2, GMEM_RELEASE, 9) == 0);

	/* EXAMPLE: Ask how many buffers a driver has added to the available ring. */
	uint64_t idx;

	if (gmem_view_load(view, avail + 2, 2, GMEM_ACQUIRE, &idx) < 0)
		errx(1, "the queue is broken: %s", gmem_last_error());
	const uint16_t added = (uint16_t)(idx - seen);
	/* END */
	check(added == 2);
}
