/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "internal.h"

/* More than any options struct will have; a size beyond is garbage, not to be followed. */
#define MOST_OPTS_BYTES 1024

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

static bool is_zero(const unsigned char *bytes, size_t size)
{
	for (size_t i = 0; i < size; i++)
		if (bytes[i])
			return false;
	return true;
}

int gmem_import_opts(const char *what, void *dst, size_t dst_size, size_t first_version,
		     const void *src)
{
	size_t src_size = dst_size;

	memset(dst, 0, dst_size);
	if (!src)
		return 0;

	memcpy(&src_size, src, sizeof(src_size));
	if (src_size < first_version)
		return gmem_fail(-EINVAL, "%s says its size is %zu bytes, at least %zu expected",
				 what, src_size, first_version);
	if (src_size > MOST_OPTS_BYTES)
		return gmem_fail(-E2BIG, "%s says its size is %zu bytes: no version will be that large",
				 what, src_size);

	if (src_size > dst_size &&
	    !is_zero((const unsigned char *)src + dst_size, src_size - dst_size))
		return gmem_fail(-E2BIG, "%s of %zu bytes uses fields libgmem %s does not know",
				 what, src_size, gmem_version());

	memcpy(dst, src, src_size < dst_size ? src_size : dst_size);
	return 0;
}
