/* SPDX-License-Identifier: MIT */
#include "examples.h"

EXAMPLE(gmem_view_new)
{
	/* EXAMPLE: At the start of a thread that uses guest memory. */
	struct gmem_view *mine;

	if (gmem_recovery_enable() < 0 || gmem_view_new(vm, &mine) < 0)
		errx(1, "%s", gmem_last_error());
	/* ... gmem_view_read(mine, ...) ... */
	gmem_view_free(mine);
	/* END */
	gmem_recovery_disable();
}
