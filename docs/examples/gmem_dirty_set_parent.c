/* SPDX-License-Identifier: MIT */
#include "examples.h"

EXAMPLE(gmem_dirty_set_parent)
{
	const int base = temporary_file(), next = temporary_file();

	check(gmem_view_fill(view, MIB, 'x', 65536, NULL) == 0 && gmem_vm_save(vm, base, NULL, NULL) == 0);

	/* EXAMPLE: Restore a VM, run it, and save what differs from the image. */
	GMEM_OPTS(gmem_transfer_result, result, .file_bytes = 0);
	GMEM_OPTS(gmem_dirty_opts, from_now, .flags = GMEM_DIRTY_FROM_NOW);
	struct gmem_dirty *dirty;

	if (gmem_vm_restore(vm, base, NULL, &result) < 0 ||
	    gmem_dirty_new(vm, &from_now, &dirty) < 0 ||
	    gmem_dirty_set_parent(dirty, result.image_id, result.generation) < 0)
		errx(1, "%s", gmem_last_error());
	/* ... vCPUs run, and are stopped ... */
	GMEM_OPTS(gmem_transfer_opts, opts, .dirty = dirty);

	if (gmem_vm_save(vm, next, &opts, &result) < 0)
		errx(1, "the snapshot: %s", gmem_last_error());
	/* END */
	check(result.generation == 1 && result.data_bytes == 0);
	gmem_dirty_free(dirty);
}
