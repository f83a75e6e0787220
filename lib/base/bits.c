/* SPDX-License-Identifier: MIT */
#include "base/bits.h"

/* The bits of word @n that are in [@first, @end), which has some */
static uint64_t mask_of(uint64_t n, uint64_t first, uint64_t end)
{
	uint64_t mask = UINT64_MAX;

	if (n == first / 64)
		mask <<= first % 64;
	if (n == (end - 1) / 64)
		mask &= UINT64_MAX >> (63 - (end - 1) % 64);
	return mask;
}

static uint64_t change_word(uint64_t *word, uint64_t mask, bool value)
{
	if (value)
		return mask & ~__atomic_fetch_or(word, mask, __ATOMIC_SEQ_CST);
	return mask & __atomic_fetch_and(word, ~mask, __ATOMIC_RELEASE);
}

uint64_t gmem_bits_set(uint64_t *bits, uint64_t first, uint64_t end, bool value)
{
	uint64_t changed = 0;

	if (first >= end)
		return 0;
	for (uint64_t n = first / 64; n <= (end - 1) / 64; n++)
		changed += (uint64_t)__builtin_popcountll(
			change_word(&bits[n], mask_of(n, first, end), value));
	return changed;
}

uint64_t gmem_bits_find(const uint64_t *bits, bool value, uint64_t first, uint64_t end)
{
	uint64_t word;

	if (first >= end)
		return end;
	for (uint64_t n = first / 64; n <= (end - 1) / 64; n++) {
		word = __atomic_load_n(&bits[n], __ATOMIC_ACQUIRE);
		word = (value ? word : ~word) & mask_of(n, first, end);
		if (word)
			return n * 64 + (uint64_t)__builtin_ctzll(word);
	}
	return end;
}

uint64_t gmem_bits_count(const uint64_t *bits, uint64_t first, uint64_t end)
{
	uint64_t count = 0;

	if (first >= end)
		return 0;
	for (uint64_t n = first / 64; n <= (end - 1) / 64; n++)
		count += (uint64_t)__builtin_popcountll(__atomic_load_n(&bits[n], __ATOMIC_ACQUIRE) &
							mask_of(n, first, end));
	return count;
}
