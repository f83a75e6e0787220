/* SPDX-License-Identifier: MIT */
#include "examples.h"

EXAMPLE(gmem_vm_save)
{
	const int fd = temporary_file();

	check(gmem_view_fill(view, MIB, 'x', 8192, NULL) == 0);

	/* EXAMPLE: Save to a new file. vCPUs and devices are stopped. */
	GMEM_OPTS(gmem_transfer_opts, opts, .flags = GMEM_TRANSFER_NO_DIRECT);
	GMEM_OPTS(gmem_transfer_result, result, .file_bytes = 0);

	if (gmem_vm_save(vm, fd, &opts, &result) < 0)
		errx(1, "the snapshot: %s", gmem_last_error());
	printf("%" PRIu64 " bytes of memory in %" PRIu64 " bytes of the file\n",
	       result.data_bytes + result.zero_bytes, result.file_bytes);
	/* END */
	check(result.data_bytes == 8192 && gmem_image_verify(fd, NULL, NULL) == 0);
}
