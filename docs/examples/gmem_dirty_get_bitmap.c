/* SPDX-License-Identifier: MIT */
#include "examples.h"

EXAMPLE(gmem_dirty_get_bitmap)
{
	GMEM_OPTS(gmem_dirty_opts, opts, .flags = GMEM_DIRTY_FROM_NOW);
	struct gmem_dirty *dirty;

	check(gmem_dirty_new(vm, &opts, &dirty) == 0);
	check(gmem_view_write(view, MIB, "x", 1, NULL) == 0 && gmem_dirty_collect(dirty, NULL) == 0);

	/* EXAMPLE: Have the pages of a region as KVM_GET_DIRTY_LOG would tell them. */
	uint64_t bitmap[16], pages = 0;

	if (gmem_dirty_get_bitmap(dirty, 0, gmem_region_size(ram), bitmap, 16) < 0)
		errx(1, "%s", gmem_last_error());
	for (int i = 0; i < 16; i++)
		pages += (uint64_t)__builtin_popcountll(bitmap[i]);
	/* END */
	check(pages == 1);
	gmem_dirty_free(dirty);
}
