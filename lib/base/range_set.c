/* SPDX-License-Identifier: MIT */
#include "base/range_set.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"

int gmem_set_spare(struct gmem_range **ret)
{
	if (!*ret)
		*ret = malloc(sizeof(**ret));
	return *ret ? 0 : gmem_fail(-ENOMEM, "no memory for the record of states");
}

static struct gmem_range *take_node(struct gmem_range **spare)
{
	struct gmem_range *node = *spare;

	*spare = NULL;
	return node;
}

void gmem_set_add(struct gmem_range_map *set, uint64_t start, uint64_t size,
		  struct gmem_range **spare)
{
	uint64_t first = start, last = start + size - 1;
	struct gmem_range *node = NULL, *range;

	/* Merge every range that overlaps or adjoins the new one into it. */
	for (;;) {
		uint64_t from = first ? first - 1 : 0, to = last == UINT64_MAX ? last : last + 1;

		range = gmem_range_find(set, from, to - from + 1);
		if (!range)
			break;
		gmem_range_remove(set, range);
		first = range->start < first ? range->start : first;
		last = gmem_range_last(range) > last ? gmem_range_last(range) : last;
		free(node);
		node = range;
	}

	if (!node)
		node = take_node(spare);
	node->start = first;
	node->size = last - first + 1;
	gmem_range_insert(set, node);
}

void gmem_set_remove(struct gmem_range_map *set, uint64_t start, uint64_t size,
		     struct gmem_range **spare)
{
	uint64_t last = start + size - 1;
	struct gmem_range *range, *upper;

	while ((range = gmem_range_find(set, start, size))) {
		uint64_t range_last = gmem_range_last(range);

		if (range->start < start && range_last > last) {
			upper = take_node(spare);
			gmem_range_split(set, range, last + 1 - range->start, upper);
			range_last = last;
		}
		gmem_range_remove(set, range);
		if (range->start < start) {
			range->size = start - range->start;
			gmem_range_insert(set, range);
		} else if (range_last > last) {
			range->start = last + 1;
			range->size = range_last - last;
			gmem_range_insert(set, range);
		} else {
			free(range);
		}
	}
}

void gmem_set_clear(struct gmem_range_map *set)
{
	struct gmem_range *range;

	while ((range = set->root)) {
		gmem_range_remove(set, range);
		free(range);
	}
}

bool gmem_set_next(const struct gmem_range_map *set, bool inside, uint64_t start, uint64_t last,
		   struct gmem_part *ret)
{
	struct gmem_range *range = gmem_range_find(set, start, last - start + 1);

	if (inside) {
		if (!range)
			return false;
		ret->start = range->start > start ? range->start : start;
		ret->last = gmem_range_last(range) < last ? gmem_range_last(range) : last;
		return true;
	}

	/* Skip the range that has @start, if any: the part begins behind it. */
	if (range && range->start <= start) {
		if (gmem_range_last(range) >= last)
			return false;
		start = gmem_range_last(range) + 1;
		range = gmem_range_find(set, start, last - start + 1);
	}
	ret->start = start;
	ret->last = range ? range->start - 1 : last;
	return true;
}
