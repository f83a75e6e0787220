/* SPDX-License-Identifier: MIT */
#include "examples.h"

EXAMPLE(gmem_recovery_enable)
{
	/* EXAMPLE: Once, at the start of the program, after its own signal handlers. */
	if (gmem_recovery_enable() < 0)
		errx(1, "%s", gmem_last_error());
	/* END */
	char byte;

	check(munmap(gmem_region_hva(ram), 4 * MIB) == 0);
	check(gmem_view_read(view, 0, &byte, 1, NULL) == -EFAULT);
}
