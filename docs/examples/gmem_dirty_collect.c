/* SPDX-License-Identifier: MIT */
#include "examples.h"

static uint64_t copied;

static void copy(uint64_t gpa, uint64_t size)
{
	check(gpa + size <= 4 * MIB);
	copied += size;
}

EXAMPLE(gmem_dirty_collect)
{
	GMEM_OPTS(gmem_dirty_info, info, .bytes = 0);
	struct gmem_dirty *dirty;

	check(gmem_dirty_new(vm, NULL, &dirty) == 0);
	check(gmem_dirty_collect(dirty, &info) == 0 && info.bytes == 4 * MIB);
	check(gmem_view_write(view, MIB + 5, "x", 1, NULL) == 0);

	/* EXAMPLE: Copy what changed since the last time; the first time, it is all memory. */
	struct gmem_dirty_range range = { .size = 0 };

	if (gmem_dirty_collect(dirty, NULL) < 0)
		errx(1, "%s", gmem_last_error());
	while (gmem_dirty_next(dirty, range.gpa + range.size, &range) == 0)
		copy(range.gpa, range.size);
	/* END */
	check(copied == (uint64_t)sysconf(_SC_PAGESIZE));
	gmem_dirty_free(dirty);
}
