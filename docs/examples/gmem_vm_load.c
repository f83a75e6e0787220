/* SPDX-License-Identifier: MIT */
#include "examples.h"

EXAMPLE(gmem_vm_load)
{
	const int kernel_fd = temporary_file();
	const uint64_t size = 3 * 4096, setup = 4096;

	check(pwrite(kernel_fd, "kernel", 7, (off_t)setup) == 7 && ftruncate(kernel_fd, (off_t)(setup + size)) == 0);

	/* EXAMPLE: Load a kernel, which begins after its setup code, to 1 MiB. */
	if (gmem_vm_load(vm, 0x100000, kernel_fd, setup, size, NULL, NULL) < 0)
		errx(1, "the kernel: %s", gmem_last_error());
	/* END */
	check(strcmp((const char *)gmem_region_hva(ram) + MIB, "kernel") == 0);
}
