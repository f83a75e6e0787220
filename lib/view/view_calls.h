/* SPDX-License-Identifier: MIT */
/*
 * view_calls: the functions that gmem.h defines inline, compiled once into the library,
 * so that programs in other languages can call them.
 *
 * Only view_calls.c includes this header: GMEM_INLINE must be defined before gmem.h.
 */
#ifndef GMEM_VIEW_CALLS_H
#define GMEM_VIEW_CALLS_H

#ifdef GMEM_H
#error "gmem.h was included first: its inline functions are static already"
#endif

/* An inline function needs no prototype before its definition, so gmem.h has none. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmissing-prototypes"
#define GMEM_INLINE GMEM_API
#include "gmem.h"
#pragma GCC diagnostic pop

#endif
