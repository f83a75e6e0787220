/* SPDX-License-Identifier: MIT */
#include "examples.h"

EXAMPLE(gmem_dirty_new)
{
	/* EXAMPLE: Say how many MiB changed in a second, for a VM with memory of any backing. */
	GMEM_OPTS(gmem_dirty_opts, opts,
		  .flags = GMEM_DIRTY_FROM_NOW | GMEM_DIRTY_ALLOW_UNLOGGED);
	GMEM_OPTS(gmem_dirty_info, info, .bytes = 0);
	struct gmem_dirty *dirty;

	if (gmem_dirty_new(vm, &opts, &dirty) < 0)
		errx(1, "%s", gmem_last_error());
	sleep(1);
	if (gmem_dirty_collect(dirty, &info) < 0)
		errx(1, "%s", gmem_last_error());
	gmem_dirty_free(dirty);
	printf("%" PRIu64 " MiB, of which %" PRIu64 " are not known to have changed\n",
	       info.bytes / MIB, info.unlogged_bytes / MIB);
	/* END */
	check(info.bytes == 0 && info.memory_bytes == 4 * MIB && info.rounds == 1);
}
