/* SPDX-License-Identifier: MIT */
#include "base/sort.h"

#include <stdbool.h>
#include <string.h>

struct array {
	char *start;
	size_t size;	/* of an element */
	int (*compare)(const void *, const void *);
};

static char *at(const struct array *array, size_t i)
{
	return array->start + i * array->size;
}

static void swap(const struct array *array, size_t i, size_t j)
{
	char *a = at(array, i), *b = at(array, j), chunk[64];
	size_t left = array->size, n;

	for (; left; left -= n, a += n, b += n) {
		n = left < sizeof(chunk) ? left : sizeof(chunk);
		memcpy(chunk, a, n);
		memcpy(a, b, n);
		memcpy(b, chunk, n);
	}
}

static bool is_less(const struct array *array, size_t i, size_t j)
{
	return array->compare(at(array, i), at(array, j)) < 0;
}

static bool is_sorted(const struct array *array, size_t count)
{
	for (size_t i = 1; i < count; i++)
		if (is_less(array, i, i - 1))
			return false;
	return true;
}

/* Of a heap of @count elements, all but element @i are at least their children: moves @i down. */
static void sift(const struct array *array, size_t i, size_t count)
{
	size_t child;

	while ((child = 2 * i + 1) < count) {
		if (child + 1 < count && is_less(array, child, child + 1))
			child++;
		if (!is_less(array, i, child))
			return;
		swap(array, i, child);
		i = child;
	}
}

void gmem_sort(void *array, size_t count, size_t size, int (*compare)(const void *, const void *))
{
	const struct array whole = { .start = array, .size = size, .compare = compare };

	if (is_sorted(&whole, count))
		return;
	for (size_t i = count / 2; i-- > 0;)
		sift(&whole, i, count);
	while (count > 1) {
		swap(&whole, 0, --count);
		sift(&whole, 0, count);
	}
}
