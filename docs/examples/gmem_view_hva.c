/* SPDX-License-Identifier: MIT */
#include "examples.h"

EXAMPLE(gmem_view_hva)
{
	const uint64_t ring = 0x3000;

	/* EXAMPLE: Use guest memory in place. The address holds until gmem_view_end(). */
	void *hva;

	gmem_view_begin(view);
	if (gmem_view_hva(view, ring, 64, &hva) < 0)
		warnx("no ring: %s", gmem_last_error());
	else
		memset(hva, 0, 64);
	gmem_view_end(view);
	/* END */
	check(hva == (char *)gmem_region_hva(ram) + ring);
}
