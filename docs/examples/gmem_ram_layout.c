/* SPDX-License-Identifier: MIT */
#include "examples.h"

EXAMPLE(gmem_ram_layout)
{
	/* EXAMPLE: Where 8 GiB of RAM go on an x86_64 machine. */
	GMEM_OPTS(gmem_ram_layout_opts, machine, .machine = GMEM_MACHINE_X86_64);
	struct gmem_ram_range range[4];
	const int count = gmem_ram_layout((uint64_t)8 << 30, &machine, range, 4);

	if (count < 0)
		errx(1, "%s", gmem_last_error());
	for (int i = 0; i < count; i++)
		printf("%#" PRIx64 ", %" PRIu64 " MiB\n", range[i].gpa, range[i].size >> 20);
	/* END */
	check(count == 2 && range[0].size == 3072 * MIB && range[1].gpa == 4096 * MIB);
}
