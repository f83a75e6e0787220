/* SPDX-License-Identifier: MIT */
#include "examples.h"

EXAMPLE(gmem_dirty_peek)
{
	GMEM_OPTS(gmem_dirty_opts, dirty_opts, .flags = GMEM_DIRTY_FROM_NOW);
	struct gmem_dirty *dirty;
	const int fd = temporary_file();

	check(gmem_dirty_new(vm, &dirty_opts, &dirty) == 0);

	/* EXAMPLE: Take a snapshot only once it is worth it. */
	GMEM_OPTS(gmem_dirty_info, info, .bytes = 0);
	GMEM_OPTS(gmem_transfer_opts, opts, .dirty = dirty);

	if (gmem_dirty_peek(dirty, &info) < 0)
		errx(1, "%s", gmem_last_error());
	if (info.bytes > 64 * MIB && gmem_vm_save(vm, fd, &opts, NULL) < 0)
		errx(1, "the snapshot: %s", gmem_last_error());
	/* END */
	check(info.bytes == 0 && info.rounds == 0);
	gmem_dirty_free(dirty);
}
