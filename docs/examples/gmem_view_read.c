/* SPDX-License-Identifier: MIT */
#include "examples.h"

EXAMPLE(gmem_view_read)
{
	struct { uint64_t addr; uint32_t len; uint16_t flags, next; } given = { .addr = 4096, .len = 512 };
	const uint64_t table = 0x1000;
	const uint16_t index = 3;

	check(gmem_view_write(view, table + 16 * index, &given, sizeof(given), NULL) == 0);

	/* EXAMPLE: Copy a descriptor of a virtqueue; only the copy is looked at from here on. */
	struct { uint64_t addr; uint32_t len; uint16_t flags, next; } d;

	if (gmem_view_read(view, table + 16 * index, &d, sizeof(d), NULL) < 0)
		errx(1, "the queue is broken: %s", gmem_last_error());
	/* END */
	check(d.addr == 4096 && d.len == 512);
}
