/* SPDX-License-Identifier: MIT */
/*
 * peer_marks: a map in which an importing process says what it writes.
 *
 * It is shared with the exporting process, which brings it into the marks of its pages
 * (region/dirty_pages.h). There is a byte for each page and one for each chunk of 2 MiB, by
 * guest address. Who wrote stores 1, whatever was there, so it needs no fence and no
 * read-modify-write. It stores the page's byte before the chunk's, and who collects takes back
 * the chunk's before it looks at the pages': a byte that comes late is found the next time.
 *
 * Nothing is cleared here, and nothing is read: what the other process writes into the map has
 * no effect.
 */
#ifndef GMEM_PEER_MARKS_H
#define GMEM_PEER_MARKS_H

#include <stdint.h>

#define GMEM_PEER_CHUNK_SHIFT 21

struct gmem_peer_marks {
	uint64_t pages_end;	/* the map has no bytes for pages from this one on: number of the page */
	uint32_t page_shift;	/* at most that of a chunk */
	uint8_t *chunks;
	uint8_t *pages;
};

/* Marks a range, any alignment, after it was written; leaves out what the map does not have. */
static inline void gmem_peer_marks_set(const struct gmem_peer_marks *marks, uint64_t gpa, uint64_t size)
{
	const uint32_t pages_of_chunk = GMEM_PEER_CHUNK_SHIFT - marks->page_shift;
	uint64_t first = gpa >> marks->page_shift, last = (gpa + (size - 1)) >> marks->page_shift;

	if (!size || first >= marks->pages_end)
		return;
	if (last >= marks->pages_end)
		last = marks->pages_end - 1;

	for (uint64_t page = first; page <= last; page++)
		__atomic_store_n(&marks->pages[page], 1, __ATOMIC_RELEASE);
	for (uint64_t chunk = first >> pages_of_chunk; chunk <= last >> pages_of_chunk; chunk++)
		__atomic_store_n(&marks->chunks[chunk], 1, __ATOMIC_RELEASE);
}

#endif
