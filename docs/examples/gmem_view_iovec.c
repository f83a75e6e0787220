/* SPDX-License-Identifier: MIT */
#include "examples.h"

EXAMPLE(gmem_view_iovec)
{
	const uint64_t buffer = 0x4000;
	const int fd = temporary_file();

	check(pwrite(fd, "from the file", 14, 0) == 14 && ftruncate(fd, 8192) == 0);

	/* EXAMPLE: Have the kernel read into guest memory, from a file that does not block. */
	struct iovec iov[8];
	int count;

	gmem_view_begin(view);
	count = gmem_view_iovec(view, buffer, 8192, iov, 8);
	if (count < 0)
		warnx("%s", gmem_last_error());
	else if (readv(fd, iov, count) < 0)
		warn("readv");
	gmem_view_end(view);
	/* END */
	check(gmem_view_write(view, buffer + 8191, "", 1, NULL) == 0);
	check(strcmp((const char *)gmem_region_hva(ram) + buffer, "from the file") == 0);
}
