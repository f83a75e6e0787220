/* SPDX-License-Identifier: MIT */
#include "examples.h"

EXAMPLE(gmem_view_store)
{
	const uint64_t used = 0x6000, place = used + 4 + 8 * 5;
	const uint32_t element[2] = { 3, 512 };
	const uint16_t index = 5;

	/* EXAMPLE: Publish a used element: first its contents, then the index that shows it. */
	if (gmem_view_write(view, place, element, sizeof(element), NULL) < 0 ||
	    gmem_view_store(view, used + 2, 2, GMEM_RELEASE, (uint16_t)(index + 1)) < 0)
		errx(1, "the queue is broken: %s", gmem_last_error());
	/* END */
	uint64_t idx;

	check(gmem_view_load(view, used + 2, 2, GMEM_ACQUIRE, &idx) == 0 && idx == 6);
}
