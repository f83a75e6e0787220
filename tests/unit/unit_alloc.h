/* SPDX-License-Identifier: MIT */
/* An allocator that fails at the n-th request; link with the --wrap options of meson.build. */
#ifndef GMEM_UNIT_ALLOC_H
#define GMEM_UNIT_ALLOC_H

#include <stdbool.h>

/* The @n-th allocation of the library from now, 1 being the next, fails */
void unit_fail_alloc(unsigned n);
/* Did it? No other will. */
bool unit_alloc_struck(void);
/* The library's allocations so far */
unsigned unit_alloc_count(void);

#endif
