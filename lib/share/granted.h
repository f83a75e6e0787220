/* SPDX-License-Identifier: MIT */
/*
 * granted: which pages of a part of a file a peer may use.
 *
 * Nearly all pages are in one state, so what is kept is that state and one bit for each
 * page that differs. Memory that is all granted, however large, touches no bit:
 *
 *	new             usual: no     .  .  .  .  .  .     nothing is granted
 *	all granted     usual: yes    .  .  .  .  .  .     no bit was written
 *	2 is revoked    usual: yes    .  .  x  .  .  .
 *
 * Pages are counted from 0; a range is [first, end). Not for several threads at once.
 */
#ifndef GMEM_GRANTED_H
#define GMEM_GRANTED_H

#include <stdbool.h>
#include <stdint.h>

struct gmem_granted {
	uint64_t *differs;
	uint64_t pages;
	uint64_t differing;	/* pages with a bit */
	bool usual;		/* whether pages without a bit are granted */
};

/* Nothing is granted. Returns 0, or -ENOMEM without a sentence. */
int gmem_granted_new(struct gmem_granted *granted, uint64_t pages);
void gmem_granted_free(struct gmem_granted *granted);
void gmem_granted_set(struct gmem_granted *granted, uint64_t first, uint64_t end, bool value);
/* Returns the first page of the range that is granted, or not granted, or @end. */
uint64_t gmem_granted_find(const struct gmem_granted *granted, bool value, uint64_t first,
			   uint64_t end);

/* All pages are in one state: any range is searched, and all of it set, at no cost. */
static inline bool gmem_granted_is_uniform(const struct gmem_granted *granted)
{
	return !granted->differing;
}

#endif
