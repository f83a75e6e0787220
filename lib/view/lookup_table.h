/* SPDX-License-Identifier: MIT */
/*
 * lookup_table: from a guest address to the memory behind it, for readers that never wait.
 *
 * A table is made for each layout. A change of the layout makes a new table, which shares
 * with the old one everything that did not change, and publishes it. The old table is
 * freed when no reader can use it any more (view.h). A conversion makes no table: readers
 * look at the bits of the region (region/page_states.h), and the conversion rewrites, in
 * place, entries that say whether there is need to.
 *
 * There are three levels. Each 512 GiB of guest addresses have an array of 512 pointers,
 * one per GiB, each GiB has an array of 512 entries, one per 2 MiB. An entry is
 *
 *   - a code, if the code describes all 2 MiB. The code of memory is odd, hva - gpa + 1, so
 *     all addresses of contiguous memory have the same code. Small even codes say why
 *     there is no memory.
 *   - the address of a window and the bit ENTRY_WINDOW, if one region has all 2 MiB and they
 *     are not all shared memory to read and to write. The window, which is in the
 *     region, has the code of its memory and says where the bits of its pages are.
 *   - the address of a granule, which has the pieces of these 2 MiB in order, if more than
 *     one region or a region and a hole share them. A piece has a code and perhaps a window.
 *
 * Windows and granules are aligned, and lie above every even code, so the cases exclude
 * each other.
 *
 * A granule has an index of 32 slices of 64 KiB, which is as large as the largest page
 * of a host: first[s] is the piece at the beginning of slice s. Piece n begins at
 * pieces[n].start and ends before pieces[n + 1].start.
 *
 * For example, a region that can be converted has 6 MiB from gpa 0 at hva 0x7f0000000000, and
 * 64 KiB of them are private; another region has 64 KiB behind it:
 *
 *   table
 *   count 1
 *   tops[0] ---> GiBs of the first 512 GiB
 *                [0] ---> entries of GiB 0
 *                         [0]   0x7f0000000001, all shared
 *                         [1]   window of the region ---> gpa 0, code 0x7f0000000001, bits
 *                         [2]   0x7f0000000001
 *                         [3]   granule ---> first  [0] [1] [2] ... [31]
 *                         [4]   0, a hole            0   1   1  ...  1
 *                         ...
 *                         [511] 0, a hole    n  pieces[n].start  code
 *                [1] ---> 512 holes          0  0x600000         0x7e0000000001
 *                ...                         1  0x610000         0, a hole
 *                                            2  0x800000         the end
 *
 *   gpa 0x2345      entry 0 is odd: the hva is 0x2345 + 0x7f0000000001 - 1
 *   gpa 0x23abcd    entry 1 is a window: the bit of page 0x23a says whether it is private
 *   gpa 0x60abcd    entry 3 is a granule; slice 0 begins in piece 0, which has gpa
 *   gpa 2^39        is not below count * 2^39: there is a hole
 *
 * That a region was removed is remembered within a bound: a table has a limited number of
 * arrays and granules that hold no memory. Beyond it there are holes.
 *
 * No processor has more than 52 bits of guest address, so there are 8192 tops at most.
 */
#ifndef GMEM_LOOKUP_TABLE_H
#define GMEM_LOOKUP_TABLE_H

#include <stdbool.h>
#include <stdint.h>

#include "gmem.h"

struct gmem_region;

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

/* The table of a VM that is over: each translation is -ESTALE. */
extern const struct gmem_table gmem_table_of_nothing;

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
	const uint64_t *const *const *tops = (const uint64_t *const *const *)(table + 1);
	const uint64_t within = gpa & 0x1fffff;
	uint64_t entry;

	if (gpa >> 39 >= table->count || size - 1 > 0x1fffff - within)
		return false;

	/* Pairs with the store of a conversion to shared. */
	entry = __atomic_load_n(&tops[gpa >> 39][gpa >> 30 & 511][gpa >> 21 & 511],
				__ATOMIC_ACQUIRE);
	*ret = (void *)(uintptr_t)(gpa + entry - 1);
	return entry & 1;
}

/*
 * ---- for a change of the layout, with change_lock held ----
 *
 * Making a table fails only with -ENOMEM. After a failure the caller frees the new table;
 * the old one is as before.
 */

/* Makes a table that shares everything with @old (or NULL), with space up to @last. */
int gmem_table_new(const struct gmem_table *old, uint64_t last, struct gmem_table **ret);
/*
 * Enters @region, as if it were at @gpa with its memory at @hva, in the new @table, which
 * readers cannot see yet.
 */
int gmem_table_enter(struct gmem_table *table, const struct gmem_table *old,
		     struct gmem_region *region, uint64_t gpa, uint64_t hva);
/* The same for @size bytes from @offset of the region on */
int gmem_table_enter_part(struct gmem_table *table, const struct gmem_table *old,
			  struct gmem_region *region, uint64_t gpa, uint64_t hva, uint64_t offset,
			  uint64_t size);
/* Marks the regions in the range as removed. Holes stay holes. */
int gmem_table_remove(struct gmem_table *table, const struct gmem_table *old, uint64_t gpa,
		      uint64_t size);
/* Frees all of @table that @kept (or NULL) does not share with it; needs no lock. */
void gmem_table_free(const struct gmem_table *table, const struct gmem_table *kept);
/*
 * Tells that the region's window is now the one that gmem_table_enter() made for where the
 * region is now: once the table is published and no reader uses an older one.
 */
void gmem_table_settle(struct gmem_region *region);

/*
 * ---- for a conversion, with change_lock held ----
 *
 * Rewrites the entries of a range of @region after bits of its pages were set or cleared.
 * @is_private: all of the range is private now.
 */
void gmem_table_show_states(const struct gmem_table *table, const struct gmem_region *region,
			    uint64_t gpa, uint64_t size, bool is_private);

#endif
