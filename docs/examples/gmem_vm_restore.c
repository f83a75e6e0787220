/* SPDX-License-Identifier: MIT */
#include "examples.h"

EXAMPLE(gmem_vm_restore)
{
	const int fd = temporary_file();

	check(gmem_view_fill(view, MIB, 'x', 8192, NULL) == 0 && gmem_vm_save(vm, fd, NULL, NULL) == 0);
	check(gmem_view_fill(view, MIB, 0, 8192, NULL) == 0);

	/* EXAMPLE: Fill a VM that has the same layout from an image, which is verified first. */
	GMEM_OPTS(gmem_transfer_opts, opts, .flags = GMEM_TRANSFER_VERIFY);

	if (gmem_vm_restore(vm, fd, &opts, NULL) < 0)
		errx(1, "the snapshot: %s", gmem_last_error());
	/* END */
	check(((const char *)gmem_region_hva(ram))[MIB + 8191] == 'x');
}
