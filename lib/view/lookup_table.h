/* SPDX-License-Identifier: MIT */
/*
 * lookup_table: from a guest address to the memory behind it, for readers that never wait.
 *
 * A table never changes once readers can see it. A change of the layout makes a new table,
 * which shares with the old one everything that did not change, and publishes it. The old
 * table is freed when no reader can use it any more (view.h).
 *
 * Each GiB of guest addresses has an array of 512 entries, one per 2 MiB. A piece is a
 * range of guest addresses with one code. The code of memory is odd, hva - gpa + 1, so
 * all addresses of contiguous memory have the same code; an even code says why there is
 * no memory. If one code describes all 2 MiB, the entry is the code. Otherwise the entry
 * is the address of a granule, which has the pieces of these 2 MiB in order. Granules are
 * aligned, and lie above every even code, so the three cases exclude each other.
 *
 * A granule has an index of 32 slices of 64 KiB, which is as large as the largest page
 * of a host: first[s] is the piece at the beginning of slice s. Piece n begins at
 * starts[n], ends before starts[n + 1], and has the code codes[n].
 *
 * For example, a region has its 6 MiB from gpa 0 at hva 0x7f0000000000, 64 KiB of it are
 * private, and there is a device at 16 TiB:
 *
 *   table
 *   gib_count 1
 *   gibs[0] ---> entries of GiB 0
 *                [0]   0x7f0000000001      granule of gpa 0x200000 to 0x3fffff
 *                [1]   ------------------> first  [0] [1] [2]  [3]  [4] ... [31]
 *                [2]   0x7f0000000001              0   0   0    1    2  ...  2
 *                [3]   0, a hole           n      starts[n]   codes[n]
 *                ...                       0      0x200000    0x7f0000000001
 *                [511] 0, a hole           1      0x230000    6, private
 *                                          2      0x240000    0x7f0000000001
 *                                          3      0x400000    the end
 *   high ------> granule of gpa 2^44 to 2^64 - 1
 *
 *   gpa 0x2345      GiB 0, entry 0 is odd: the hva is 0x2345 + 0x7f0000000001 - 1
 *   gpa 0x23abcd    GiB 0, entry 1 is a granule; slice 3 begins in piece 1, which ends
 *                   after gpa: the memory is private, up to 0x23ffff
 *   gpa 0x90000000  GiB 2 is not below gib_count: there is a hole, up to the end of the GiB
 *
 * The array gibs covers at most 16 TiB (2^44 bytes). Above it, where few VMs have
 * anything, one granule has all pieces, and is searched by bisection instead of by its
 * index: high, or NULL if there is nothing.
 *
 * Only a granule can have a code with GMEM_CODE_READ_ONLY, never an entry: for the inline
 * gmem_table_hva() and gmem_view_hva() every odd entry is memory to read and to write.
 */
#ifndef GMEM_LOOKUP_TABLE_H
#define GMEM_LOOKUP_TABLE_H

#include <stdbool.h>
#include <stdint.h>

#include "gmem.h"
#include "base/range_map.h"

/* The piece that has a guest address, from this address on */
struct gmem_translation {
	uint64_t code;	/* odd: hva - gpa + 1, and GMEM_CODE_*; even: there is no memory */
	uint64_t last;	/* the last gpa with this code */
};

/* A flag in the code of memory that cannot be written; page alignment leaves the bit 0. */
#define GMEM_CODE_READ_ONLY 2

/* Returns the host address of @gpa, in a translation that is memory. */
static inline void *gmem_translation_hva(struct gmem_translation translation, uint64_t gpa)
{
	return (void *)(uintptr_t)(gpa + (translation.code & ~(uint64_t)GMEM_CODE_READ_ONLY) - 1);
}

struct gmem_layout;

struct gmem_translation gmem_table_translate(const struct gmem_table *table, uint64_t gpa);
/* Returns 0 for memory, or the reason why there is none: -ENOENT, -ESTALE, -ENXIO, -EACCES. */
int gmem_translation_error(struct gmem_translation translation);

/*
 * Does the inline part of gmem_view_hva(). Returns false if the range does not lie in one
 * entry that is memory; gmem_table_translate() can tell why.
 */
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

/*
 * Making a table fails only with -ENOMEM. After a failure the caller frees the new table;
 * the old one is as before.
 */

/* Makes a table that shares everything with @old (or NULL), with space for @regions. */
int gmem_table_new(const struct gmem_table *old, const struct gmem_range_map *regions,
		   struct gmem_table **ret);
/*
 * Enters [@start, @start + @size) of @layout in the new @table, which readers cannot see
 * yet. Addresses without a region that had one in @old are marked as removed.
 */
int gmem_table_refresh(struct gmem_table *table, const struct gmem_table *old,
		       const struct gmem_layout *layout, uint64_t start, uint64_t size);
/* Frees all of @table that @kept (or NULL) does not share with it. */
void gmem_table_free(const struct gmem_table *table, const struct gmem_table *kept);

#endif
