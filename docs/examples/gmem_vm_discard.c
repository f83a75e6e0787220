/* SPDX-License-Identifier: MIT */
#include "examples.h"

EXAMPLE(gmem_vm_discard)
{
	const uint64_t gpa = 2 * MIB, size = MIB;

	check(gmem_view_fill(view, gpa, 'x', size, NULL) == 0);

	/* EXAMPLE: Give memory back that the guest has put into its balloon. */
	GMEM_OPTS(gmem_discard_opts, opts, .flags = GMEM_DISCARD_INWARD);
	struct gmem_footprint memory;

	if (gmem_vm_discard(vm, gpa, size, &opts, &memory) < 0)
		warnx("%s", gmem_last_error());
	printf("%" PRIu64 " bytes were allocated, now %" PRIu64 "\n", memory.before, memory.after);
	/* END */
	check(memory.done == size && memory.counted && memory.before == size && memory.after == 0);
}
