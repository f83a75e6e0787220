/* SPDX-License-Identifier: MIT */
#include "base/check.h"

#include <errno.h>
#include <inttypes.h>

#include "gmem.h"
#include "base/error.h"
#include "os/sys.h"

#define MAX_WORKERS 1024

int gmem_check_aligned(const char *what, uint64_t value)
{
	uint64_t page = gmem_sys_page_size();

	if (value % page)
		return gmem_fail(-EINVAL,
				 "%s 0x%" PRIx64 " is not a multiple of the host page, %" PRIu64 " bytes",
				 what, value, page);
	return 0;
}

int gmem_check_range(const char *what, uint64_t start, uint64_t size)
{
	uint64_t page = gmem_sys_page_size();
	int err;

	err = gmem_check_aligned(what, start);
	if (err)
		return err;

	if (size == 0)
		return gmem_fail(-EINVAL, "the range at %s 0x%" PRIx64 " has size 0", what, start);

	if (size % page)
		return gmem_fail(-EINVAL,
				 "size 0x%" PRIx64 " at %s 0x%" PRIx64
				 " is not a multiple of the host page, %" PRIu64 " bytes",
				 size, what, start, page);

	if (start + size - 1 < start)
		return gmem_fail(-EINVAL, "%s 0x%" PRIx64 " + size 0x%" PRIx64 " wraps around",
				 what, start, size);
	return 0;
}

int gmem_check_range_within(const char *what, uint64_t start, uint64_t size,
			    uint64_t limit, const char *limit_name)
{
	int err;

	err = gmem_check_range(what, start, size);
	if (err)
		return err;

	if (start + size - 1 >= limit)
		return gmem_fail(-EINVAL,
				 "%s 0x%" PRIx64 " + size 0x%" PRIx64 " goes past %s, 0x%" PRIx64,
				 what, start, size, limit_name, limit);
	return 0;
}

int gmem_check_alignment(uint64_t align)
{
	uint64_t page = gmem_sys_page_size();

	if (align && (align < page || (align & (align - 1))))
		return gmem_fail(-EINVAL,
				 "alignment 0x%" PRIx64
				 " is no power of two from the host page, %" PRIu64 " bytes, upwards",
				 align, page);
	return 0;
}

int gmem_check_flags(const char *what, uint64_t flags, uint64_t known)
{
	if (flags & ~known)
		return gmem_fail(-EINVAL, "%s 0x%" PRIx64 " has bits 0x%" PRIx64
				 " that libgmem %s does not know",
				 what, flags, flags & ~known, gmem_version());
	return 0;
}


int gmem_check_workers(uint32_t workers)
{
	if (workers > MAX_WORKERS)
		return gmem_fail(-EINVAL, "%" PRIu32 " workers are more than %d", workers, MAX_WORKERS);
	return 0;
}
