/* SPDX-License-Identifier: MIT */
#include "base/sort.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* Elements that are sorted by looking at all of them for each */
#define FEW 16

struct array {
	uint64_t *start;
	size_t words;	/* of an element */
	size_t key;	/* the word that is the number */
};

static uint64_t *at(const struct array *array, size_t i)
{
	return array->start + i * array->words;
}

static uint64_t key_of(const struct array *array, size_t i)
{
	return at(array, i)[array->key];
}

static void swap(const struct array *array, size_t i, size_t j)
{
	uint64_t *a = at(array, i), *b = at(array, j), word, words = array->words;

	do {
		word = *a;
		*a++ = *b;
		*b++ = word;
	} while (--words);
}

/* The bits in which numbers differ; 0 also if they are in order */
static uint64_t find_difference(const struct array *array, size_t count)
{
	uint64_t first = count ? key_of(array, 0) : 0, bits = 0;
	bool is_sorted = true;

	for (size_t i = 1; i < count; i++) {
		bits |= key_of(array, i) ^ first;
		is_sorted &= key_of(array, i) >= key_of(array, i - 1);
	}
	return is_sorted ? 0 : bits;
}

static void sort_few(const struct array *array, size_t first, size_t end)
{
	for (size_t i = first + 1; i < end; i++)
		for (size_t k = i; k > first && key_of(array, k) < key_of(array, k - 1); k--)
			swap(array, k, k - 1);
}

/*
 * Sort [@first, @end) by the byte at bit @shift and those below: count how many elements have each
 * value, which says where they go, and swap each to the next free place there.
 */
static void distribute(const struct array *array, size_t first, size_t end, unsigned int shift)
{
	size_t next[256], last[256] = { 0 }, place = first, now;
	unsigned int value;

	for (size_t i = first; i < end; i++)
		last[key_of(array, i) >> shift & 0xff]++;
	for (unsigned int i = 0; i < 256; i++) {
		next[i] = place;
		place += last[i];
		last[i] = place;
	}
	for (unsigned int i = 0; i < 256; i++)
		while (next[i] < last[i]) {
			now = next[i];
			value = key_of(array, now) >> shift & 0xff;
			swap(array, now, next[value]++);
		}

	for (unsigned int i = 0; i < 256 && shift; first = last[i++]) {
		if (last[i] - first <= FEW)
			sort_few(array, first, last[i]);
		else
			distribute(array, first, last[i], shift < 8 ? 0 : shift - 8);
	}
}

void gmem_sort(void *array, size_t count, size_t size, size_t key)
{
	const struct array whole = { array, size / sizeof(uint64_t), key / sizeof(uint64_t) };
	uint64_t bits = find_difference(&whole, count);

	if (!bits)
		return;
	if (count <= FEW)
		sort_few(&whole, 0, count);
	else
		distribute(&whole, 0, count, bits >> 8 ? 56 - (unsigned int)__builtin_clzll(bits) : 0);
}
