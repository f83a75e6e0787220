/* SPDX-License-Identifier: MIT */
/*
 * opts: copies of the callers' options structs, which may be older or newer
 * than this library.
 */
#ifndef GMEM_OPTS_H
#define GMEM_OPTS_H

#include <stddef.h>

/*
 * Fill @dst, this library's idea of struct @type, from the caller's @src: zero
 * what the caller does not know, refuse what this library does not know unless
 * it is zero. A NULL @src is all defaults. @last is the last field of the
 * struct's first version. -EINVAL: @src is too small; -E2BIG: it is too new.
 */
#define GMEM_COPY_OPTS(type, dst, src, last)                                         \
	gmem_copy_opts("struct " #type, (dst), sizeof(struct type),                  \
		       offsetof(struct type, last) + sizeof((dst)->last), (src))

int gmem_copy_opts(const char *what, void *dst, size_t dst_size, size_t first_version,
		   const void *src);

#endif
