/* SPDX-License-Identifier: MIT */
/* interval_tree: against a naive list of all intervals */
#include <stdlib.h>
#include <string.h>

#include "base/interval_tree.h"
#include "unit.h"

#define CELLS		300
#define INTERVALS	96
#define ROUNDS		50000

struct model {
	struct gmem_interval_tree tree;
	struct gmem_interval all[INTERVALS];
	bool used[INTERVALS];
	uint32_t seed;
	uint64_t order;
};

/* Always the same numbers: a failure must come back. */
static uint32_t next_random(struct model *m, uint32_t below)
{
	m->seed = m->seed * 1664525 + 1013904223;
	return (m->seed >> 8) % below;
}

static bool overlaps(const struct gmem_interval *one, uint64_t start, uint64_t last)
{
	return one->start <= last && start <= one->last;
}

static void toggle(struct model *m)
{
	uint32_t index = next_random(m, INTERVALS);
	struct gmem_interval *one = &m->all[index];

	m->used[index] = !m->used[index];
	if (!m->used[index]) {
		gmem_interval_remove(&m->tree, one);
		return;
	}
	one->start = next_random(m, CELLS);
	one->last = one->start + next_random(m, next_random(m, 8) ? 12 : CELLS);
	one->order = ++m->order;
	gmem_interval_insert(&m->tree, one);
}

/* All that overlap are found, each once, lowest start first. */
static void compare_walk(struct model *m, uint64_t start, uint64_t last)
{
	struct gmem_interval *found = gmem_interval_find(&m->tree, start, last), *next;
	size_t seen = 0, expected = 0;

	for (size_t i = 0; i < INTERVALS; i++)
		expected += m->used[i] && overlaps(&m->all[i], start, last);
	for (; found; found = next, seen++) {
		assert_true(m->used[found - m->all]);
		assert_true(overlaps(found, start, last));
		next = gmem_interval_find_next(&m->tree, found, start, last);
		assert_true(!next || next->start > found->start ||
			    (next->start == found->start && next > found));
	}
	assert_int_equal(seen, expected);
}

static void compare_earlier(struct model *m, uint64_t start, uint64_t last, uint64_t order)
{
	struct gmem_interval *found = gmem_interval_find_earlier(&m->tree, start, last, order);
	bool exists = false;

	for (size_t i = 0; i < INTERVALS; i++)
		exists |= m->used[i] && overlaps(&m->all[i], start, last) && m->all[i].order < order;
	assert_int_equal(found != NULL, exists);
	if (!found)
		return;
	assert_true(m->used[found - m->all]);
	assert_true(overlaps(found, start, last));
	assert_true(found->order < order);
}

static void tree_agrees_with_a_naive_list(void **state)
{
	static struct model m;
	uint64_t start, last;

	(void)state;
	memset(&m, 0, sizeof(m));
	m.seed = 20260101;
	for (int i = 0; i < ROUNDS; i++) {
		toggle(&m);
		start = next_random(&m, CELLS);
		last = start + next_random(&m, 40);
		compare_walk(&m, start, last);
		compare_earlier(&m, start, last, m.order + 1);
		compare_earlier(&m, start, last, m.order - next_random(&m, 40) % (m.order + 1));
	}
	for (size_t i = 0; i < INTERVALS; i++)
		if (m.used[i])
			gmem_interval_remove(&m.tree, &m.all[i]);
	assert_null(m.tree.root);
}

static void tree_reaches_both_ends_of_the_address_space(void **state)
{
	struct gmem_interval low = { .start = 0, .last = 0 };
	struct gmem_interval high = { .start = UINT64_MAX, .last = UINT64_MAX };
	struct gmem_interval all = { .start = 0, .last = UINT64_MAX };
	struct gmem_interval_tree tree = { NULL };

	(void)state;
	gmem_interval_insert(&tree, &high);
	gmem_interval_insert(&tree, &low);
	assert_null(gmem_interval_find(&tree, 1, UINT64_MAX - 1));
	assert_ptr_equal(gmem_interval_find(&tree, 0, UINT64_MAX), &low);
	assert_ptr_equal(gmem_interval_find_next(&tree, &low, 0, UINT64_MAX), &high);
	gmem_interval_insert(&tree, &all);
	assert_ptr_equal(gmem_interval_find(&tree, 5, 5), &all);
	gmem_interval_remove(&tree, &all);
	assert_null(gmem_interval_find(&tree, 5, 5));
}

/* Many vCPUs on one page: a newcomer hangs on the one before it, so they form a chain. */
static void the_latest_of_those_that_cover_all_is_found(void **state)
{
	static struct gmem_interval all[1000];
	struct gmem_interval_tree tree = { NULL };

	(void)state;
	for (size_t i = 0; i < 1000; i++) {
		all[i] = (struct gmem_interval){ .start = 7, .last = 9, .order = i };
		assert_ptr_equal(gmem_interval_find_earlier(&tree, 7, 9, i), i ? &all[i - 1] : NULL);
		gmem_interval_insert(&tree, &all[i]);
	}
	for (size_t i = 0; i < 1000; i++) {
		gmem_interval_remove(&tree, &all[i]);
		assert_null(gmem_interval_find_earlier(&tree, 7, 9, i + 1));
	}
	assert_null(tree.root);
}

static unsigned int depth(const struct gmem_interval *node)
{
	unsigned int left, right;

	if (!node)
		return 0;
	left = depth(node->left);
	right = depth(node->right);
	return 1 + (left > right ? left : right);
}

static void fill(struct gmem_interval *all, size_t count, uint64_t step)
{
	struct gmem_interval_tree tree = { NULL };

	for (size_t i = 0; i < count; i++) {
		all[i] = (struct gmem_interval){ .start = i * step, .last = i * step + 4095 };
		gmem_interval_insert(&tree, &all[i]);
	}
	assert_true(depth(tree.root) < 80);
}

static void tree_filled_in_order_or_with_equals_stays_shallow(void **state)
{
	enum { COUNT = 30000 };
	struct gmem_interval *all = calloc(COUNT, sizeof(*all));

	(void)state;
	assert_non_null(all);
	fill(all, COUNT, 4096);
	fill(all, COUNT, 0);
	free(all);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(tree_agrees_with_a_naive_list),
	cmocka_unit_test(tree_reaches_both_ends_of_the_address_space),
	cmocka_unit_test(the_latest_of_those_that_cover_all_is_found),
	cmocka_unit_test(tree_filled_in_order_or_with_equals_stays_shallow),
};

UNIT_MAIN(tests)
