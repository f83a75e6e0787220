/* SPDX-License-Identifier: MIT */
#include "examples.h"

EXAMPLE(gmem_vm_bind_shared)
{
	const int fd = temporary_file();

	/* EXAMPLE: Track memory that is bound to its file. No vCPU runs at either end. */
	GMEM_OPTS(gmem_dirty_opts, opts, .flags = GMEM_DIRTY_VCPUS_STOPPED);
	GMEM_OPTS(gmem_transfer_opts, save, .dirty = NULL);
	struct gmem_dirty *dirty;
	uint64_t ns;

	if (gmem_dirty_new(vm, &opts, &dirty) < 0)
		errx(1, "%s", gmem_last_error());
	save.dirty = dirty;
	/* ... vCPUs run; after each of these saves they go on ... */
	if (gmem_vm_save(vm, fd, &save, NULL) < 0)
		warnx("the snapshot: %s", gmem_last_error());
	gmem_dirty_free(dirty);
	if (gmem_vm_bind_shared(vm, &ns) < 0)
		warnx("the guest goes on with memslots of the mapping: %s", gmem_last_error());
	/* END */
	check(ns == 0);	/* The memory of this example is no such. */
}
