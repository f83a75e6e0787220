// SPDX-License-Identifier: MIT
#include <cstdio>
#include <gmem.h>

int main()
{
	gmem_caps_opts opts{};
	gmem_caps *caps;

	opts.size = sizeof(opts);
	opts.flags = GMEM_CAPS_NO_SELFTEST;
	if (gmem_caps_new(GMEM_NO_VM, &opts, &caps) < 0)
		return std::puts(gmem_last_error()), 1;
	gmem_caps_free(caps);
	std::puts(gmem_version());
}
