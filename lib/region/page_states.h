/* SPDX-License-Identifier: MIT */
/*
 * page_states: what is private in a region, and what of it is to be discarded.
 *
 * A region that can be converted has three bits for each page, from before it is in the
 * layout until its memory goes. The bits are the only record: the readers' lookup table
 * points to them, and what is private or pending moves with the region by itself. Pages
 * are counted from the start of the memory, not by guest address.
 *
 * The parts of a split region go on using the same bits, each its own range of them.
 *
 * Whoever changes the state of a page has a claim on it (state/claim.h); bits can be
 * read at any time. Offsets and sizes are in bytes from the start of the region, whole
 * pages, and within the region. A region without bits is all shared and owes nothing.
 */
#ifndef GMEM_PAGE_STATES_H
#define GMEM_PAGE_STATES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/part.h"

enum gmem_page_bit {
	GMEM_PAGE_PRIVATE,
	GMEM_PAGE_PENDING,	/* the side that is not in use is to be discarded */
	GMEM_PAGE_CHANGING,	/* scratch of the conversion that has the claim */
	GMEM_PAGE_BITS
};

struct gmem_page_states {
	void *block;		/* the allocation that it is in */
	unsigned int users;	/* atomic: the regions that have part of it */
	uint64_t words;		/* of each kind of bits */
	uint64_t bits[];
};

/* What a region has of it */
struct gmem_states {
	struct gmem_page_states *pages;	/* NULL: the region cannot be converted */
	uint64_t first;			/* the page at offset 0 */
	uint64_t size;
	uint32_t page_shift;
	uint64_t counts[GMEM_PAGE_BITS];	/* pages with the bit; atomic */
};

/* Makes bits for @size bytes, all 0: of the first @kinds kinds, the only ones to be used then. */
int gmem_states_new(struct gmem_states *states, uint64_t size, unsigned int kinds);
/*
 * Likewise, in an allocation of something else: @pages has as many bytes as the first function
 * says, all 0, and the last user frees @block.
 */
size_t gmem_states_bytes(uint64_t size, unsigned int kinds);
void gmem_states_init(struct gmem_states *states, uint64_t size, struct gmem_page_states *pages,
		      void *block);
void gmem_states_free(struct gmem_states *states);
/*
 * Makes @upper have what is above @offset, which looks at each of its pages; then has @states
 * have the rest, at once.
 */
void gmem_states_prepare_split(const struct gmem_states *states, uint64_t offset,
			       struct gmem_states *upper);
void gmem_states_commit_split(struct gmem_states *states, const struct gmem_states *upper);

/* Sets or clears a bit of pages. Returns the bytes of which it changed. */
uint64_t gmem_states_set(struct gmem_states *states, enum gmem_page_bit bit, uint64_t offset,
			 uint64_t size, bool value);
/*
 * Clears what is pending of shared pages: the other side, which is in a file, is not the
 * region's any more.
 */
void gmem_states_drop_unused(struct gmem_states *states);
/* Finds the first part of [@offset, @last] whose pages have @value; false if none has. */
bool gmem_states_find(const struct gmem_states *states, enum gmem_page_bit bit, bool value,
		      uint64_t offset, uint64_t last, struct gmem_part *ret);
/*
 * A walk over the parts of [offset, offset + size) whose pages have @value. Bits of the
 * current part may be changed meanwhile.
 *
 *	struct gmem_states_walk at = GMEM_STATES_WALK(states, GMEM_PAGE_PRIVATE, true, 0, size);
 *
 *	while (gmem_states_walk(&at))
 *		sum += at.size;
 */
struct gmem_states_walk {
	uint64_t offset;
	uint64_t size;

	const struct gmem_states *states;
	enum gmem_page_bit bit;
	bool value;
	uint64_t next, end;	/* [next, end) is yet to come */
};

#define GMEM_STATES_WALK(states_, bit_, value_, offset_, size_)			\
	{ .states = (states_), .bit = (bit_), .value = (value_), .next = (offset_),	\
	  .end = (offset_) + (size_) }

bool gmem_states_walk(struct gmem_states_walk *at);
/* Returns the bytes of the whole region that have the bit; costs nothing. */
uint64_t gmem_states_total(const struct gmem_states *states, enum gmem_page_bit bit);
/* Returns the bytes of a part that have the bit. */
uint64_t gmem_states_count(const struct gmem_states *states, enum gmem_page_bit bit,
			   uint64_t offset, uint64_t size);

#endif
