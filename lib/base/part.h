/* SPDX-License-Identifier: MIT */
/* part: a range of addresses or offsets, of which nothing but its ends is known. */
#ifndef GMEM_PART_H
#define GMEM_PART_H

#include <stdint.h>

/*
 * The addresses from @start to @last, both included: unlike an end, @last can be the last
 * address there is.
 */
struct gmem_part {
	uint64_t start;
	uint64_t last;
};

#endif
