/* SPDX-License-Identifier: MIT */
#include "base/opts.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "gmem.h"
#include "base/error.h"

/* No options struct will be larger. A larger size is garbage, and reading so far unsafe. */
#define MAX_OPTS_BYTES 1024

static bool is_zero(const unsigned char *bytes, size_t size)
{
	for (size_t i = 0; i < size; i++)
		if (bytes[i])
			return false;
	return true;
}

/* Every such struct begins with it. */
static size_t size_of(const void *user_struct)
{
	size_t size;

	memcpy(&size, user_struct, sizeof(size));
	return size;
}

int gmem_check_result(const char *what, size_t first_version, const void *ret)
{
	size_t size = size_of(ret);

	if (size < first_version)
		return gmem_fail(-EINVAL, "%s says its size is %zu bytes, at least %zu expected",
				 what, size, first_version);
	return 0;
}

void gmem_fill_result(void *ret, const void *result, size_t size)
{
	size_t room = size_of(ret);

	memcpy(ret, result, room < size ? room : size);
	memcpy(ret, &room, sizeof(room));
}

int gmem_copy_opts(const char *what, void *dst, size_t dst_size, size_t first_version,
		   const void *src)
{
	size_t src_size;
	int err;

	memset(dst, 0, dst_size);
	if (!src)
		return 0;

	err = gmem_check_result(what, first_version, src);
	if (err)
		return err;
	src_size = size_of(src);
	if (src_size > MAX_OPTS_BYTES)
		return gmem_fail(-E2BIG, "%s says its size is %zu bytes: no version will be that large",
				 what, src_size);

	if (src_size > dst_size &&
	    !is_zero((const unsigned char *)src + dst_size, src_size - dst_size))
		return gmem_fail(-E2BIG, "%s of %zu bytes uses fields libgmem %s does not know",
				 what, src_size, gmem_version());

	memcpy(dst, src, src_size < dst_size ? src_size : dst_size);
	return 0;
}
