/* SPDX-License-Identifier: MIT */
#include "base/interval_tree.h"

#include <stdbool.h>
#include <stddef.h>

/*
 * A tree is a treap as in range_map.c, ordered by start, and by address where starts are
 * equal. Each node knows the highest end below it, so that a search leaves out what ends
 * too early:
 *
 *	               [8,9] 30                  who overlaps [20,25]?
 *	              /        \                 left of [8,9] something reaches 30: go there;
 *	       [4,30] 30      [22,23] 23         [4,30] does, and nothing left of it,
 *	       /       \                         then [22,23]: [8,9] itself ends before
 *	  [1,5] 5     [6,7] 7
 */

static uint64_t weight(const struct gmem_interval *node)
{
	uint64_t x = (uintptr_t)node;

	/* The finaliser of murmur3 gives neighbouring addresses unrelated weights. */
	x = (x ^ (x >> 33)) * 0xff51afd7ed558ccd;
	x = (x ^ (x >> 33)) * 0xc4ceb9fe1a85ec53;
	return x ^ (x >> 33);
}

static bool is_before(const struct gmem_interval *a, const struct gmem_interval *b)
{
	return a->start != b->start ? a->start < b->start : (uintptr_t)a < (uintptr_t)b;
}

/* ---- what a node knows of those below it ---- */

static void add_child(struct gmem_interval *node, const struct gmem_interval *child)
{
	if (!child)
		return;
	if (child->highest_last > node->highest_last)
		node->highest_last = child->highest_last;
	if (child->lowest_order < node->lowest_order)
		node->lowest_order = child->lowest_order;
	if (child->highest_order > node->highest_order)
		node->highest_order = child->highest_order;
}

static void update(struct gmem_interval *node)
{
	node->highest_last = node->last;
	node->lowest_order = node->order;
	node->highest_order = node->order;
	add_child(node, node->left);
	add_child(node, node->right);
}

/* ---- changes; the recursion is as deep as the tree, which is balanced ---- */

static void split(struct gmem_interval *tree, const struct gmem_interval *at,
		  struct gmem_interval **below, struct gmem_interval **above)
{
	if (!tree) {
		*below = NULL;
		*above = NULL;
		return;
	}

	if (is_before(tree, at)) {
		*below = tree;
		split(tree->right, at, &tree->right, above);
	} else {
		*above = tree;
		split(tree->left, at, below, &tree->left);
	}
	update(tree);
}

static struct gmem_interval *join(struct gmem_interval *below, struct gmem_interval *above)
{
	if (!below || !above)
		return below ? below : above;

	if (weight(below) > weight(above)) {
		below->right = join(below->right, above);
		update(below);
		return below;
	}
	above->left = join(below, above->left);
	update(above);
	return above;
}

static struct gmem_interval *insert(struct gmem_interval *tree, struct gmem_interval *node)
{
	if (!tree || weight(tree) < weight(node)) {
		split(tree, node, &node->left, &node->right);
		update(node);
		return node;
	}

	if (is_before(node, tree))
		tree->left = insert(tree->left, node);
	else
		tree->right = insert(tree->right, node);
	update(tree);
	return tree;
}

static struct gmem_interval *take_out(struct gmem_interval *tree, const struct gmem_interval *node)
{
	if (tree == node)
		return join(tree->left, tree->right);

	if (is_before(node, tree))
		tree->left = take_out(tree->left, node);
	else
		tree->right = take_out(tree->right, node);
	update(tree);
	return tree;
}

void gmem_interval_insert(struct gmem_interval_tree *tree, struct gmem_interval *interval)
{
	tree->root = insert(tree->root, interval);
}

void gmem_interval_remove(struct gmem_interval_tree *tree, struct gmem_interval *interval)
{
	tree->root = take_out(tree->root, interval);
}

/* ---- searches ---- */

/* The first one below @tree that ends at or after @start: there is one. */
static struct gmem_interval *find_first(struct gmem_interval *tree, uint64_t start)
{
	for (;;) {
		if (tree->left && tree->left->highest_last >= start)
			tree = tree->left;
		else if (tree->last >= start)
			return tree;
		else
			tree = tree->right;
	}
}

/* The first one after @previous, if that is not NULL, that ends at or after @start */
static struct gmem_interval *find_after(struct gmem_interval *tree, uint64_t start,
					const struct gmem_interval *previous)
{
	struct gmem_interval *found;

	if (!tree || tree->highest_last < start)
		return NULL;
	if (!previous)
		return find_first(tree, start);

	if (!is_before(previous, tree))
		return find_after(tree->right, start, previous);
	found = find_after(tree->left, start, previous);
	if (found)
		return found;
	return tree->last >= start ? tree : find_after(tree->right, start, NULL);
}

struct gmem_interval *gmem_interval_find(const struct gmem_interval_tree *tree, uint64_t start,
					 uint64_t last)
{
	return gmem_interval_find_next(tree, NULL, start, last);
}

struct gmem_interval *gmem_interval_find_next(const struct gmem_interval_tree *tree,
					      const struct gmem_interval *previous,
					      uint64_t start, uint64_t last)
{
	struct gmem_interval *found = find_after(tree->root, start, previous);

	return found && found->start <= last ? found : NULL;
}

static uint64_t highest_order(const struct gmem_interval *tree)
{
	return tree ? tree->highest_order : 0;
}

/* Looks where the latest ones are first. */
static struct gmem_interval *find_earlier(struct gmem_interval *tree, uint64_t start,
					  uint64_t last, uint64_t order)
{
	struct gmem_interval *near, *far, *found;
	bool fits;

	if (!tree || tree->highest_last < start || tree->lowest_order >= order)
		return NULL;
	if (tree->start > last)
		return find_earlier(tree->left, start, last, order);

	fits = tree->last >= start && tree->order < order;
	near = highest_order(tree->left) > highest_order(tree->right) ? tree->left : tree->right;
	far = near == tree->left ? tree->right : tree->left;
	if (fits && highest_order(near) <= tree->order)
		return tree;
	found = find_earlier(near, start, last, order);
	if (found || fits)
		return found ? found : tree;
	return find_earlier(far, start, last, order);
}

struct gmem_interval *gmem_interval_find_earlier(const struct gmem_interval_tree *tree,
						 uint64_t start, uint64_t last, uint64_t order)
{
	return find_earlier(tree->root, start, last, order);
}
