/* SPDX-License-Identifier: MIT */
#include "base/range_map.h"

#include <stddef.h>

/*
 * A map is a treap: a search tree by start, in which each node also has a weight that is
 * at least that of its children. The weight is a hash of the node's address, so the tree
 * is balanced for any order of insertion. tsearch(3) would not do: it allocates, and
 * inserting must not fail, because undoing a refused operation puts ranges back.
 */

static uint64_t weight(const struct gmem_range *range)
{
	uint64_t x = (uintptr_t)range;

	/* The finaliser of murmur3 gives neighbouring addresses unrelated weights. */
	x = (x ^ (x >> 33)) * 0xff51afd7ed558ccd;
	x = (x ^ (x >> 33)) * 0xc4ceb9fe1a85ec53;
	return x ^ (x >> 33);
}

struct gmem_range *gmem_range_find(const struct gmem_range_map *map, uint64_t start,
				   uint64_t size)
{
	struct gmem_range *node = map->root, *found = NULL;

	while (node) {
		if (gmem_range_last(node) < start) {
			node = node->right;
		} else {
			if (node->start <= start + size - 1)
				found = node;
			node = node->left;
		}
	}
	return found;
}

/* Splits @tree into the ranges that start below @start and the rest. */
static void split(struct gmem_range *tree, uint64_t start, struct gmem_range **below,
		  struct gmem_range **rest)
{
	while (tree) {
		if (tree->start < start) {
			*below = tree;
			below = &tree->right;
			tree = tree->right;
		} else {
			*rest = tree;
			rest = &tree->left;
			tree = tree->left;
		}
	}
	*below = NULL;
	*rest = NULL;
}

void gmem_range_insert(struct gmem_range_map *map, struct gmem_range *range)
{
	struct gmem_range **link = &map->root;

	while (*link && weight(*link) >= weight(range))
		link = range->start < (*link)->start ? &(*link)->left : &(*link)->right;

	split(*link, range->start, &range->left, &range->right);
	*link = range;
}

void gmem_range_set_start(struct gmem_range *range, uint64_t start)
{
	__atomic_store_n(&range->start, start, __ATOMIC_RELAXED);
}

static void set_size(struct gmem_range *range, uint64_t size)
{
	__atomic_store_n(&range->size, size, __ATOMIC_RELAXED);
}

void gmem_range_split(struct gmem_range_map *map, struct gmem_range *range, uint64_t offset,
		      struct gmem_range *upper)
{
	upper->start = range->start + offset;
	upper->size = range->size - offset;
	set_size(range, offset);
	gmem_range_insert(map, upper);
}

void gmem_range_remove(struct gmem_range_map *map, struct gmem_range *range)
{
	struct gmem_range *left = range->left, *right = range->right;
	struct gmem_range **link = &map->root;

	while (*link != range)
		link = range->start < (*link)->start ? &(*link)->left : &(*link)->right;

	/* Merge the two subtrees into the place of the range. */
	while (left && right) {
		if (weight(left) > weight(right)) {
			*link = left;
			link = &left->right;
			left = left->right;
		} else {
			*link = right;
			link = &right->left;
			right = right->left;
		}
	}
	*link = left ? left : right;
	range->left = NULL;
	range->right = NULL;
}
