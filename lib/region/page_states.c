/* SPDX-License-Identifier: MIT */
#include "region/page_states.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/bits.h"
#include "base/error.h"
#include "os/sys.h"

static uint64_t *bits_of(const struct gmem_states *states, enum gmem_page_bit bit)
{
	return states->pages->bits + bit * states->pages->words;
}

static uint64_t page_of(const struct gmem_states *states, uint64_t offset)
{
	return states->first + (offset >> states->page_shift);
}

size_t gmem_states_bytes(uint64_t size, unsigned int kinds)
{
	return sizeof(struct gmem_page_states) +
	       kinds * gmem_bits_words(size / gmem_sys_page_size()) * sizeof(uint64_t);
}

void gmem_states_init(struct gmem_states *states, uint64_t size, struct gmem_page_states *pages,
		      void *block)
{
	pages->block = block;
	pages->users = 1;
	pages->words = gmem_bits_words(size / gmem_sys_page_size());
	*states = (struct gmem_states){
		.pages = pages,
		.size = size,
		.page_shift = (uint32_t)__builtin_ctzll(gmem_sys_page_size()),
	};
}

int gmem_states_new(struct gmem_states *states, uint64_t size, unsigned int kinds)
{
	/* What no conversion touches of a large array is never allocated. */
	struct gmem_page_states *pages = calloc(1, gmem_states_bytes(size, kinds));

	if (!pages)
		return gmem_fail(-ENOMEM, "no memory for the states of 0x%" PRIx64 " bytes", size);

	gmem_states_init(states, size, pages, pages);
	return 0;
}

void gmem_states_free(struct gmem_states *states)
{
	struct gmem_page_states *pages = states->pages;

	/* @states may be in the block, too. */
	states->pages = NULL;
	/* Pairs with itself: the last user sees what the others did. */
	if (pages && !__atomic_sub_fetch(&pages->users, 1, __ATOMIC_ACQ_REL))
		free(pages->block);
}

void gmem_states_prepare_split(const struct gmem_states *states, uint64_t offset,
			       struct gmem_states *upper)
{
	*upper = *states;
	if (!states->pages)
		return;

	__atomic_add_fetch(&states->pages->users, 1, __ATOMIC_RELAXED);
	upper->first = page_of(states, offset);
	upper->size -= offset;
	for (enum gmem_page_bit i = 0; i < GMEM_PAGE_BITS; i++)
		upper->counts[i] = gmem_states_count(states, i, offset, upper->size) >>
				   states->page_shift;
}

void gmem_states_commit_split(struct gmem_states *states, const struct gmem_states *upper)
{
	if (!states->pages)
		return;
	states->size -= upper->size;
	for (enum gmem_page_bit i = 0; i < GMEM_PAGE_BITS; i++)
		states->counts[i] -= upper->counts[i];
}

uint64_t gmem_states_set(struct gmem_states *states, enum gmem_page_bit bit, uint64_t offset,
			 uint64_t size, bool value)
{
	uint64_t changed;

	if (!states->pages || (!value && !gmem_states_total(states, bit)))
		return 0;

	changed = gmem_bits_set(bits_of(states, bit), page_of(states, offset),
				page_of(states, offset + size), value);
	if (value)
		__atomic_add_fetch(&states->counts[bit], changed, __ATOMIC_RELAXED);
	else
		__atomic_sub_fetch(&states->counts[bit], changed, __ATOMIC_RELAXED);
	return changed << states->page_shift;
}

bool gmem_states_find(const struct gmem_states *states, enum gmem_page_bit bit, bool value,
		      uint64_t offset, uint64_t last, struct gmem_part *ret)
{
	uint64_t total = gmem_states_total(states, bit), start, end, found;

	/* Most regions are of one state: no need to look at each page. */
	if (total == 0 || total == states->size) {
		*ret = (struct gmem_part){ offset, last };
		return value == (total != 0);
	}

	start = page_of(states, offset);
	end = page_of(states, last) + 1;
	found = gmem_bits_find(bits_of(states, bit), value, start, end);
	if (found == end)
		return false;
	end = gmem_bits_find(bits_of(states, bit), !value, found, end);
	/* @offset and @last may be inside a page. */
	ret->start = found == start ? offset : (found - states->first) << states->page_shift;
	ret->last = ((end - states->first) << states->page_shift) - 1;
	ret->last = ret->last < last ? ret->last : last;
	return true;
}

bool gmem_states_walk(struct gmem_states_walk *at)
{
	struct gmem_part part;

	if (at->next >= at->end ||
	    !gmem_states_find(at->states, at->bit, at->value, at->next, at->end - 1, &part))
		return false;

	at->offset = part.start;
	at->size = part.last - part.start + 1;
	at->next = part.last + 1;
	return true;
}

void gmem_states_drop_unused(struct gmem_states *states)
{
	struct gmem_states_walk at = GMEM_STATES_WALK(states, GMEM_PAGE_PRIVATE, false, 0,
						      states->size);

	while (gmem_states_walk(&at))
		gmem_states_set(states, GMEM_PAGE_PENDING, at.offset, at.size, false);
}

uint64_t gmem_states_total(const struct gmem_states *states, enum gmem_page_bit bit)
{
	return __atomic_load_n(&states->counts[bit], __ATOMIC_RELAXED) << states->page_shift;
}

uint64_t gmem_states_count(const struct gmem_states *states, enum gmem_page_bit bit,
			   uint64_t offset, uint64_t size)
{
	uint64_t total = gmem_states_total(states, bit);

	if (total == 0 || total == states->size)
		return total ? size : 0;
	return gmem_bits_count(bits_of(states, bit), page_of(states, offset),
			       page_of(states, offset + size)) << states->page_shift;
}
