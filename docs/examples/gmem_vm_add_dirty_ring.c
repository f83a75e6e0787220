/* SPDX-License-Identifier: MIT */
#include "examples.h"

EXAMPLE(gmem_vm_add_dirty_ring)
{
	/* EXAMPLE: Give the rings of all vCPUs to the library, if the VM has rings. */
	GMEM_OPTS(gmem_dirty_opts, opts, .flags = GMEM_DIRTY_RINGS);
	const uint64_t bytes = 65536;	/* as KVM_CAP_DIRTY_LOG_RING was enabled with */
	struct gmem_dirty *dirty = NULL;

	if (gmem_vm_add_dirty_ring(vm, vcpu_fd, bytes) < 0 ||
	    gmem_dirty_new(vm, &opts, &dirty) < 0)
		warnx("%s", gmem_last_error());
	/* END */
	check(!dirty);	/* This VM has none. */
}
