/* SPDX-License-Identifier: MIT */
/*
 * kept_log: what a dirty log said before its memslot was deleted.
 *
 * A change of the layout may delete a memslot that has a dirty log, and add another one for
 * the same memory. What the log said is kept with the region, a bit a page as KVM has it,
 * and reported by the next gmem_region_get_dirty_log(). Called with a claim on the region.
 * @kept is the bitmap, or NULL if nothing is kept.
 */
#ifndef GMEM_KEPT_LOG_H
#define GMEM_KEPT_LOG_H

#include <stdint.h>

/* Returns a bitmap for @size bytes, all 0, which free() frees; NULL with a sentence: -ENOMEM. */
uint64_t *gmem_kept_log_new(uint64_t size);
/* Sets @pages bits of @to from @to_first on where @from, from @from_first on, has them. */
void gmem_kept_log_merge(uint64_t *to, uint64_t to_first, const uint64_t *from,
			 uint64_t from_first, uint64_t pages);
void gmem_kept_log_fill(uint64_t *bits, uint64_t first, uint64_t pages);

/* Adds what is kept of a region of @size bytes to @bitmap, and keeps it no longer. */
void gmem_kept_log_deliver(uint64_t **kept, uint64_t size, uint64_t *bitmap);
void gmem_kept_log_drop(uint64_t **kept);
/* Drops it if it has no bit. */
void gmem_kept_log_trim(uint64_t **kept, uint64_t size);

#endif
