/* SPDX-License-Identifier: MIT */
/*
 * lookup_table: from guest addresses to memory, for readers that never wait.
 *
 * A table never changes once readers can see it. It is replaced by another one that
 * shares with it all that did not change; the old one is freed when no reader can
 * hold it any more (view.h).
 */
#ifndef GMEM_LOOKUP_TABLE_H
#define GMEM_LOOKUP_TABLE_H

#include <stdbool.h>
#include <stdint.h>

#include "gmem.h"
#include "base/range_map.h"

/* What is behind a guest address, and up to where */
struct gmem_translation {
	uint64_t code;	/* odd: hva - gpa + 1, and flags; even: there is no memory */
	uint64_t last;	/* the last gpa of which this is true */
};

/* A flag of codes for memory: it cannot be written. Page alignment leaves room for it. */
#define GMEM_CODE_READ_ONLY 2

static inline void *gmem_translation_hva(struct gmem_translation translation, uint64_t gpa)
{
	return (void *)(uintptr_t)(gpa + (translation.code & ~(uint64_t)GMEM_CODE_READ_ONLY) - 1);
}

struct gmem_layout;

struct gmem_translation gmem_table_translate(const struct gmem_table *table, uint64_t gpa);
/* Why there is no memory: -ENOENT, -ESTALE, -ENXIO or -EACCES; 0 if there is */
int gmem_translation_error(struct gmem_translation translation);

/* The fast part of gmem_view_hva(), which gives no reason when it cannot answer */
static inline bool gmem_table_hva(const struct gmem_table *table, uint64_t gpa, uint64_t size,
				  void **ret)
{
	const uint64_t within = gpa & 0x1fffff;
	uint64_t entry;

	if (gpa >> 30 >= table->gib_count || size - 1 > 0x1fffff - within)
		return false;

	entry = table->gibs[gpa >> 30][gpa >> 21 & 511];
	*ret = (void *)(uintptr_t)(gpa + entry - 1);
	return entry & 1;
}

/* A new table that shares everything with @old (or NULL), to be refreshed where it changed */
int gmem_table_new(const struct gmem_table *old, const struct gmem_range_map *regions,
		   struct gmem_table **ret);
int gmem_table_refresh(struct gmem_table *table, const struct gmem_table *old,
		       const struct gmem_layout *layout, uint64_t start, uint64_t size);
/* Free what @kept (or NULL) does not share. */
void gmem_table_free(const struct gmem_table *table, const struct gmem_table *kept);

#endif
