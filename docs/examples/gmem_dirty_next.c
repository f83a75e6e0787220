/* SPDX-License-Identifier: MIT */
#include "examples.h"

EXAMPLE(gmem_dirty_next)
{
	GMEM_OPTS(gmem_dirty_opts, opts, .flags = GMEM_DIRTY_FROM_NOW);
	struct gmem_dirty *dirty;
	uint64_t told = 0;

	check(gmem_dirty_new(vm, &opts, &dirty) == 0);
	check(gmem_view_fill(view, MIB, 'x', MIB, NULL) == 0 && gmem_dirty_collect(dirty, NULL) == 0);

	/* EXAMPLE: List what was collected. */
	struct gmem_dirty_range range = { .size = 0 };

	while (gmem_dirty_next(dirty, range.gpa + range.size, &range) == 0) {
		printf("0x%" PRIx64 ", 0x%" PRIx64 " bytes%s\n", range.gpa, range.size,
		       range.flags & GMEM_DIRTY_RANGE_PRIVATE ? ": private, not known" :
		       range.flags & GMEM_DIRTY_RANGE_UNLOGGED ? ": without a log" : "");
		told += range.size;
	}
	/* END */
	check(told == MIB);
	gmem_dirty_free(dirty);
}
