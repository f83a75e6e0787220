/* SPDX-License-Identifier: MIT */
/*
 * interval_tree: ranges that may overlap, and what overlaps them.
 *
 * A tree allocates nothing: the struct gmem_interval is embedded in the object that the
 * range belongs to, and stays alive while it is in a tree. Inserting, removing and finding
 * one interval take O(log n) steps, however many others overlap it.
 *
 * Not supported: an interval in two trees at once, and changes without a lock.
 */
#ifndef GMEM_INTERVAL_TREE_H
#define GMEM_INTERVAL_TREE_H

#include <stdint.h>

struct gmem_interval {
	/* the caller's, unchanged while it is in a tree */
	uint64_t start;
	uint64_t last;
	uint64_t order;		/* any number, for gmem_interval_find_earlier() */

	/* the tree's own; of the interval and all that are below it in the tree */
	uint64_t highest_last;
	uint64_t lowest_order;
	uint64_t highest_order;
	struct gmem_interval *left;
	struct gmem_interval *right;
};

struct gmem_interval_tree {
	struct gmem_interval *root;
};

void gmem_interval_insert(struct gmem_interval_tree *tree, struct gmem_interval *interval);
void gmem_interval_remove(struct gmem_interval_tree *tree, struct gmem_interval *interval);

/* Returns an interval that overlaps [@start, @last], the one with the lowest start, or NULL. */
struct gmem_interval *gmem_interval_find(const struct gmem_interval_tree *tree, uint64_t start,
					 uint64_t last);
/*
 * Returns the next one that overlaps after @previous, which is in the tree, or NULL. All are
 * seen once, in the order of their start.
 */
struct gmem_interval *gmem_interval_find_next(const struct gmem_interval_tree *tree,
					      const struct gmem_interval *previous,
					      uint64_t start, uint64_t last);
/*
 * Returns an interval that overlaps [@start, @last] and whose order is below @order, or NULL.
 * If all that overlap it cover all of it, it is the one with the highest order below @order.
 */
struct gmem_interval *gmem_interval_find_earlier(const struct gmem_interval_tree *tree,
						 uint64_t start, uint64_t last, uint64_t order);

#endif
