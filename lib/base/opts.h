/* SPDX-License-Identifier: MIT */
/*
 * opts: copies of callers' structs, options and results, which may be older or newer than the
 * library.
 *
 * A public struct of either sort begins with its size, which the caller sets, and only grows at
 * its end. The library works on a copy of its own size, so that no other code deals with versions.
 */
#ifndef GMEM_OPTS_H
#define GMEM_OPTS_H

#include <stddef.h>

/*
 * Copies the caller's @src to @dst, a struct @type of this version. A NULL @src, and each
 * field that the caller's version does not have, is copied as zeros. Fields that this
 * version does not have must be zero. @last names the last field of the first version.
 *
 * Returns 0, -EINVAL if @src is smaller than the first version, or -E2BIG if @src sets
 * a field that this version does not have.
 */
#define GMEM_COPY_OPTS(type, dst, src, last)                                         \
	gmem_copy_opts("struct " #type, (dst), sizeof(struct type),                  \
		       offsetof(struct type, last) + sizeof((dst)->last), (src))

/* The function behind GMEM_COPY_OPTS(); sizes are in bytes. */
int gmem_copy_opts(const char *what, void *dst, size_t dst_size, size_t first_version,
		   const void *src);

/*
 * Returns -EINVAL if @ret, the caller's struct @type for a result, is smaller than the first
 * version, whose last field @last names.
 */
#define GMEM_CHECK_RESULT(type, ret, last)                                           \
	gmem_check_result("struct " #type, offsetof(struct type, last) + sizeof((ret)->last), (ret))

/* The function behind GMEM_CHECK_RESULT() */
int gmem_check_result(const char *what, size_t first_version, const void *ret);
/* Copies to @ret, which was checked, as much of @result as it has room for, but for the size. */
void gmem_fill_result(void *ret, const void *result, size_t size);

#endif
