/* SPDX-License-Identifier: MIT */
/*
 * kind: the kinds of guest memory, with their names and traits.
 *
 * Code that works on memory asks whether memory of that kind takes part in it, instead of
 * comparing kinds. What the guest and the host reach has nothing to do with it.
 */
#ifndef GMEM_KIND_H
#define GMEM_KIND_H

#include <stdbool.h>
#include <stdint.h>

#include "gmem.h"

#define GMEM_KINDS (GMEM_KIND_EXTERNAL + 1)

/* What is done with memory, for whole ranges of the layout: bits */
enum gmem_kind_use {
	GMEM_USE_SAVE		= 1u << 0,	/* its contents are in images */
	GMEM_USE_LOAD		= 1u << 1,	/* files are copied into it */
	GMEM_USE_POPULATE	= 1u << 2,
	GMEM_USE_DISCARD	= 1u << 3,
	GMEM_USE_COUNT		= 1u << 4,	/* its pages are memory of the host's */
	GMEM_USE_EXPORT		= 1u << 5,	/* other processes get it without being asked for */
	GMEM_USE_PLACE		= 1u << 6,	/* its pages come from NUMA nodes */
};

struct gmem_kind_traits {
	const char *name;	/* NULL for GMEM_KIND_DEFAULT */
	uint32_t uses;		/* enum gmem_kind_use */
	bool is_compared;	/* written only where it differs */
	bool is_callers;	/* never memory that the library makes */
	bool is_never_private;	/* no such memory can be converted */
};

/* Returns the traits of @kind; those of GMEM_KIND_DEFAULT, no memory, if it is none. */
const struct gmem_kind_traits *gmem_kind_traits(uint32_t kind);

static inline bool gmem_kind_has(uint32_t kind, uint32_t uses)
{
	return (gmem_kind_traits(kind)->uses & uses) == uses;
}

#endif
