/* SPDX-License-Identifier: MIT */
/*
 * opts: copies of callers' options structs, which may be older or newer than the library.
 *
 * A public options struct begins with its size and only grows at its end. The library
 * works on a copy of its own size, so that no other code deals with versions.
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

#endif
