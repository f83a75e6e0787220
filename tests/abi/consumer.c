/* SPDX-License-Identifier: MIT */
#include <gmem.h>
#include <stdio.h>

int main(void)
{
	GMEM_OPTS(gmem_caps_opts, opts, .flags = GMEM_CAPS_NO_SELFTEST);
	struct gmem_caps *caps;

	if (gmem_caps_new(GMEM_NO_VM, &opts, &caps) < 0)
		return puts(gmem_last_error()), 1;
	gmem_caps_free(caps);
	puts(gmem_version());
	return 0;
}
