/* SPDX-License-Identifier: MIT */
#include "examples.h"

EXAMPLE(gmem_view_write)
{
	const uint64_t buffer = 0x2000;
	const char packet[] = "from the network";

	/* EXAMPLE: Give a packet to the guest. If its buffer ends in a hole, say how far it went. */
	uint64_t done;

	if (gmem_view_write(view, buffer, packet, sizeof(packet), &done) < 0)
		warnx("%" PRIu64 " bytes written: %s", done, gmem_last_error());
	/* END */
	check(done == sizeof(packet));
	check(strcmp((const char *)gmem_region_hva(ram) + buffer, packet) == 0);
	check(gmem_view_write(view, 4 * MIB - 4, packet, sizeof(packet), &done) == -ENOENT && done == 4);
}
