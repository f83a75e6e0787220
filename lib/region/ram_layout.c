/* SPDX-License-Identifier: MIT */
#include "region/ram_layout.h"

#include <errno.h>
#include <inttypes.h>

#include "base/check.h"
#include "base/error.h"
#include "base/opts.h"

#define GIB (UINT64_C(1) << 30)

#define X86_HOLE_START	(3 * GIB)
#define X86_HOLE_END	(4 * GIB)
#define ARM64_BASE	GIB

static int check(uint64_t ram, const struct gmem_ram_layout_opts *opts)
{
	int err;

	if (opts->reserved)
		return gmem_fail(-EINVAL, "reserved is %" PRIu32 ", not 0", opts->reserved);
	if (opts->machine != GMEM_MACHINE_X86_64 && opts->machine != GMEM_MACHINE_ARM64)
		return gmem_fail(-EINVAL, "%" PRIu32 " is no machine", opts->machine);
	if (opts->hole_start > X86_HOLE_END)
		return gmem_fail(-EINVAL, "the hole starts at 0x%" PRIx64 ", above 4 GiB, where it ends",
				 opts->hole_start);

	err = gmem_check_aligned("hole_start", opts->hole_start);
	if (!err)
		err = gmem_check_range("base", opts->base, ram);
	if (!err && ram > UINT64_MAX - X86_HOLE_END)
		err = gmem_fail(-EINVAL, "0x%" PRIx64 " bytes of RAM leave no room for the hole", ram);
	return err;
}

GMEM_API int gmem_ram_layout(uint64_t ram, const struct gmem_ram_layout_opts *user_opts,
			     struct gmem_ram_range *ret, size_t max)
{
	struct gmem_ram_layout_opts opts;
	uint64_t low = ram;
	int err, count = 1;

	if (!ret)
		return gmem_fail(-EINVAL, "ret is NULL");

	err = GMEM_COPY_OPTS(gmem_ram_layout_opts, &opts, user_opts, base);
	if (err)
		return err;

	opts.machine = opts.machine ? opts.machine : GMEM_MACHINE_NATIVE;
	opts.hole_start = opts.hole_start ? opts.hole_start : X86_HOLE_START;
	opts.base = opts.base ? opts.base : ARM64_BASE;
	err = check(ram, &opts);
	if (err)
		return err;

	if (opts.machine == GMEM_MACHINE_X86_64 && ram > opts.hole_start) {
		low = opts.hole_start;
		count = 2;
	}
	if (max < (size_t)count)
		return gmem_fail(-ENOSPC, "the layout has %d ranges, there is room for %zu", count, max);

	ret[0] = (struct gmem_ram_range){
		.gpa = opts.machine == GMEM_MACHINE_X86_64 ? 0 : opts.base,
		.size = low,
	};
	if (count == 2)
		ret[1] = (struct gmem_ram_range){
			.gpa = X86_HOLE_END,
			.size = ram - low,
			.offset = low,
		};
	return count;
}
