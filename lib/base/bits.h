/* SPDX-License-Identifier: MIT */
/*
 * bits: arrays of bits that threads read while other threads change them.
 *
 * A bit is read with acquire and cleared with release order. Setting is sequentially
 * consistent, for a writer that must be seen before it looks at something else
 * (view/view.c). A range is [first, end), in bits; writers of ranges that do not overlap
 * may share a word.
 */
#ifndef GMEM_BITS_H
#define GMEM_BITS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Returns the number of words that @count bits take. */
static inline size_t gmem_bits_words(uint64_t count)
{
	return (size_t)(count / 64 + (count % 64 != 0));
}

static inline bool gmem_bits_get(const uint64_t *bits, uint64_t n)
{
	return __atomic_load_n(&bits[n / 64], __ATOMIC_ACQUIRE) >> n % 64 & 1;
}

/* Sets or clears a range. Returns how many bits of it changed. */
uint64_t gmem_bits_set(uint64_t *bits, uint64_t first, uint64_t end, bool value);
/* Returns the number of the first bit of the range that is @value, or @end. */
uint64_t gmem_bits_find(const uint64_t *bits, bool value, uint64_t first, uint64_t end);
/* Returns how many bits of the range are set. */
uint64_t gmem_bits_count(const uint64_t *bits, uint64_t first, uint64_t end);

#endif
