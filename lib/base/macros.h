/* SPDX-License-Identifier: MIT */
/* Macros that C lacks. */
#ifndef GMEM_MACROS_H
#define GMEM_MACROS_H

#include <stddef.h>

#define GMEM_ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define GMEM_CONTAINER_OF(ptr, type, member) \
	((type *)(void *)((char *)(ptr) - offsetof(type, member)))

#endif
