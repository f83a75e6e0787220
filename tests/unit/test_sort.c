/* SPDX-License-Identifier: MIT */
/* sort: against qsort(3), and without it */
#include <stdlib.h>
#include <string.h>

#include "base/sort.h"
#include "unit.h"

#define MANY 4096

/* More than the sort swaps at a time, and no multiple of it */
struct element {
	uint64_t key;
	uint64_t twice;
	char rest[90];
};

static unsigned int comparisons;

static int by_key(const void *a, const void *b)
{
	const struct element *x = a, *y = b;

	comparisons++;
	return x->key < y->key ? -1 : x->key > y->key;
}

static uint64_t ascending(uint64_t i)
{
	return i;
}

static uint64_t descending(uint64_t i)
{
	return MANY - i;
}

static uint64_t scattered(uint64_t i)
{
	return i * 2654435761u % 1000003;
}

static uint64_t often_the_same(uint64_t i)
{
	return i * 7 % 5;
}

static uint64_t (*const orders[])(uint64_t) = { ascending, descending, scattered, often_the_same };

static struct element *make(uint64_t (*order)(uint64_t), size_t count)
{
	struct element *array = calloc(count + 1, sizeof(*array));

	assert_non_null(array);
	for (size_t i = 0; i <= count; i++) {
		array[i].key = i < count ? order(i) : 0;
		array[i].twice = 2 * array[i].key;
		memset(array[i].rest, (int)(array[i].key & 0x7f), sizeof(array[i].rest));
	}
	return array;
}

static void check(uint64_t (*order)(uint64_t), size_t count)
{
	struct element *array = make(order, count), *expected = make(order, count);

	qsort(expected, count, sizeof(*expected), by_key);
	gmem_sort(array, count, sizeof(*array), by_key);
	for (size_t i = 0; i <= count; i++) {
		assert_int_equal(array[i].key, expected[i].key);
		assert_int_equal(array[i].twice, 2 * array[i].key);
		assert_int_equal(array[i].rest[0], array[i].key & 0x7f);
		assert_int_equal(array[i].rest[89], array[i].key & 0x7f);
	}
	free(expected);
	free(array);
}

static void arrays_of_every_length_come_out_as_of_qsort(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(orders); i++) {
		for (size_t count = 0; count <= 70; count++)
			check(orders[i], count);
		check(orders[i], MANY);
	}
}

static void no_order_takes_long(void **state)
{
	struct element *array;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(orders); i++) {
		array = make(orders[i], MANY);
		comparisons = 0;
		gmem_sort(array, MANY, sizeof(*array), by_key);
		/* 3 n log2 n; sorted already: n - 1 */
		assert_true(comparisons < (orders[i] == ascending ? MANY : 3 * MANY * 12));
		free(array);
	}
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(arrays_of_every_length_come_out_as_of_qsort),
	cmocka_unit_test(no_order_takes_long),
};

UNIT_MAIN(tests)
