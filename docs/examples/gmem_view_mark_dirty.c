/* SPDX-License-Identifier: MIT */
#include "examples.h"

EXAMPLE(gmem_view_mark_dirty)
{
	GMEM_OPTS(gmem_dirty_opts, opts, .flags = GMEM_DIRTY_FROM_NOW);
	GMEM_OPTS(gmem_dirty_info, info, .bytes = 0);
	const int fd = temporary_file();
	const uint64_t gpa = MIB, size = 65536;
	struct gmem_dirty *dirty;

	check(ftruncate(fd, 65536) == 0 && gmem_dirty_new(vm, &opts, &dirty) == 0);

	/* EXAMPLE: Have the kernel write to guest memory, and say so when it has. */
	const ssize_t got = read(fd, (char *)gmem_region_hva(ram) + gpa, size);

	if (got > 0)
		gmem_view_mark_dirty(view, gpa, (uint64_t)got);
	/* END */
	check(got == (ssize_t)size && gmem_dirty_collect(dirty, &info) == 0 && info.bytes == size);
	gmem_dirty_free(dirty);
}
