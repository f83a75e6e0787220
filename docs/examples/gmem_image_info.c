/* SPDX-License-Identifier: MIT */
#include "examples.h"

EXAMPLE(gmem_image_info)
{
	const int fd = temporary_file();
	int count;

	check(gmem_vm_save(vm, fd, NULL, NULL) == 0);

	/* EXAMPLE: Ask an image which memory it is of, and what it is based on. */
	GMEM_OPTS(gmem_image_summary, info, .id = 0);
	struct gmem_image_region regions[16];

	count = gmem_image_info(fd, NULL, &info, regions, 16);
	if (count < 0)
		errx(1, "%s", gmem_last_error());
	for (int i = 0; i < count; i++)
		printf("0x%" PRIx64 ", 0x%" PRIx64 " bytes\n", regions[i].gpa, regions[i].size);
	if (info.parent)
		printf("what changed since image 0x%" PRIx64 "\n", info.parent);
	/* END */
	check(count == 1 && regions[0].size == 4 * MIB && !info.parent);
}
