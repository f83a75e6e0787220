/* SPDX-License-Identifier: MIT */
/* sort: against qsort(3), and without it */
#include <stdlib.h>
#include <string.h>

#include "base/sort.h"
#include "unit.h"

#define MANY 4096

struct element {
	uint64_t twice;
	uint64_t key;
	char rest[96];
};

struct small {
	uint64_t key;
	uint64_t twice;
};

static int by_key(const void *a, const void *b)
{
	const struct element *x = a, *y = b;

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

static uint64_t all_the_same(uint64_t i)
{
	return i * 0 + 77;
}

/* Numbers that differ in their highest bit, their lowest, and those in between */
static uint64_t all_bits(uint64_t i)
{
	return (i ^ i << 21 ^ i << 49) * UINT64_C(0x9e3779b97f4a7c15);
}

static uint64_t pages(uint64_t i)
{
	return i * 40503 % 65536 << 12;
}

/* As if somebody had wanted it slow: pairs that differ in their last bit alone */
static uint64_t far_apart(uint64_t i)
{
	return (i % 64) << 57 | (i & 1);
}

static uint64_t nearly_ascending(uint64_t i)
{
	return i == MANY / 2 ? 0 : i;
}

static uint64_t (*const orders[])(uint64_t) = {
	ascending, descending, scattered, often_the_same, all_the_same, all_bits, pages, far_apart,
	nearly_ascending,
};

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
	gmem_sort(array, count, sizeof(*array), offsetof(struct element, key));
	for (size_t i = 0; i <= count; i++) {
		assert_int_equal(array[i].key, expected[i].key);
		assert_int_equal(array[i].twice, 2 * array[i].key);
		assert_int_equal(array[i].rest[0], array[i].key & 0x7f);
		assert_int_equal(array[i].rest[95], array[i].key & 0x7f);
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

static void a_million_come_out_in_order(void **state)
{
	const size_t count = 1000000;
	struct small *array = calloc(count, sizeof(*array));
	uint64_t sum = 0, sorted = 0;

	(void)state;
	assert_non_null(array);
	for (size_t i = 0; i < count; i++) {
		array[i].key = i * 2654435761u % 4000037 << 12;
		array[i].twice = 2 * array[i].key;
		sum += array[i].key * array[i].key;
	}
	gmem_sort(array, count, sizeof(*array), offsetof(struct small, key));
	for (size_t i = 0; i < count; i++) {
		if (i && array[i].key < array[i - 1].key)
			fail_msg("element %zu is smaller than the one before", i);
		if (array[i].twice != 2 * array[i].key)
			fail_msg("element %zu was torn apart", i);
		sorted += array[i].key * array[i].key;
	}
	assert_int_equal(sorted, sum);
	free(array);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(arrays_of_every_length_come_out_as_of_qsort),
	cmocka_unit_test(a_million_come_out_in_order),
};

UNIT_MAIN(tests)
