/* SPDX-License-Identifier: MIT */
/* range_map: against a naive array that remembers every page */
#include <stdlib.h>
#include <string.h>

#include "base/range_map.h"
#include "unit.h"

#define CELLS	512
#define RANGES	128
#define ROUNDS	100000

struct model {
	struct gmem_range_map map;
	struct gmem_range ranges[RANGES];
	bool used[RANGES];
	int owner[CELLS];	/* index of the range there, or -1 */
	uint32_t seed;
};

/* Always the same numbers: a failure must come back. */
static uint32_t next_random(struct model *m, uint32_t below)
{
	m->seed = m->seed * 1664525 + 1013904223;
	return (m->seed >> 8) % below;
}

static struct gmem_range *naive_find(struct model *m, uint64_t start, uint64_t size)
{
	uint64_t i;

	for (i = start; i < start + size && i < CELLS; i++)
		if (m->owner[i] >= 0)
			return &m->ranges[m->owner[i]];
	return NULL;
}

static void paint(struct model *m, const struct gmem_range *range, int owner)
{
	uint64_t i;

	for (i = 0; i < range->size; i++)
		m->owner[range->start + i] = owner;
}

static void add(struct model *m, int index)
{
	uint64_t start = next_random(m, CELLS), size = 1 + next_random(m, 12);
	struct gmem_range *range = &m->ranges[index];

	if (start + size > CELLS || naive_find(m, start, size))
		return;
	*range = (struct gmem_range){ .start = start, .size = size };
	gmem_range_insert(&m->map, range);
	paint(m, range, index);
	m->used[index] = true;
}

static void delete(struct model *m, int index)
{
	paint(m, &m->ranges[index], -1);
	gmem_range_remove(&m->map, &m->ranges[index]);
	m->used[index] = false;
}

static void compare(struct model *m)
{
	uint64_t start = next_random(m, CELLS), size = 1 + next_random(m, 40);

	assert_ptr_equal(gmem_range_find(&m->map, start, size), naive_find(m, start, size));
}

static void map_agrees_with_a_naive_array(void **state)
{
	static struct model m;
	int i, index;

	(void)state;
	memset(&m, 0, sizeof(m));
	memset(m.owner, 0xff, sizeof(m.owner));
	m.seed = 20260101;
	for (i = 0; i < ROUNDS; i++) {
		index = (int)next_random(&m, RANGES);
		if (m.used[index])
			delete(&m, index);
		else
			add(&m, index);
		compare(&m);
	}
	for (index = 0; index < RANGES; index++)
		if (m.used[index])
			delete(&m, index);
	assert_null(m.map.root);
}

static void map_reaches_the_end_of_the_address_space(void **state)
{
	struct gmem_range low = { .start = 0, .size = 4096 };
	struct gmem_range high = { .start = UINT64_MAX - 4095, .size = 4096 };
	struct gmem_range_map map = { NULL };

	(void)state;
	gmem_range_insert(&map, &high);
	gmem_range_insert(&map, &low);
	assert_ptr_equal(gmem_range_find(&map, UINT64_MAX, 1), &high);
	assert_ptr_equal(gmem_range_find(&map, 0, 1), &low);
	assert_ptr_equal(gmem_range_find(&map, 4095, 2), &low);
	assert_null(gmem_range_find(&map, 4096, 4096));
	assert_null(gmem_range_find(&map, UINT64_MAX - 8191, 4096));
	assert_ptr_equal(gmem_range_find(&map, UINT64_MAX - 8191, 8192), &high);
}

static unsigned tree_depth(const struct gmem_range *range)
{
	unsigned left, right;

	if (!range)
		return 0;
	left = tree_depth(range->left);
	right = tree_depth(range->right);
	return 1 + (left > right ? left : right);
}

/* Guest memory is usually added in order, which must not make the tree a list. */
static void map_filled_in_order_stays_shallow(void **state)
{
	enum { COUNT = 32764 };
	struct gmem_range *ranges = calloc(COUNT, sizeof(*ranges));
	struct gmem_range_map map = { NULL };
	unsigned i;

	(void)state;
	assert_non_null(ranges);
	for (i = 0; i < COUNT; i++) {
		ranges[i].start = (uint64_t)i * 4096;
		ranges[i].size = 4096;
		gmem_range_insert(&map, &ranges[i]);
	}
	assert_true(tree_depth(map.root) < 80);
	for (i = 0; i < COUNT; i++)
		assert_ptr_equal(gmem_range_find(&map, (uint64_t)i * 4096 + 5, 1), &ranges[i]);
	free(ranges);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(map_agrees_with_a_naive_array),
	cmocka_unit_test(map_reaches_the_end_of_the_address_space),
	cmocka_unit_test(map_filled_in_order_stays_shallow),
};

UNIT_MAIN(tests)
