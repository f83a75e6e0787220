/* SPDX-License-Identifier: MIT */
/* macros: GMEM_ARRAY_SIZE() and GMEM_CONTAINER_OF(), which C does not have. */
#ifndef GMEM_MACROS_H
#define GMEM_MACROS_H

#include <stddef.h>

/* The number of elements of an array; wrong for a pointer. */
#define GMEM_ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

/* The struct @type whose @member @ptr points to */
#define GMEM_CONTAINER_OF(ptr, type, member) \
	((type *)(void *)((char *)(ptr) - offsetof(type, member)))

#endif
