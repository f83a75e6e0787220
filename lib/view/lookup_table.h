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
 * A table has an entry for each GiB of guest addresses. An entry says all by itself what is
 * there, or leads to an array of entries for smaller parts:
 *
 *   level     an entry is for  it leads to an array of
 *   GiB       1 GiB            512 entries for 2 MiB
 *   granule   2 MiB            32 entries for 64 KiB
 *   slice     64 KiB           16 entries for 4 KiB
 *   page      4 KiB
 *
 * The largest page of a host has 64 KiB and the smallest 4 KiB, so most entries of slices lead
 * nowhere, and entries of pages never. An entry is
 *
 *   - a code. The code of memory is odd, hva - gpa + 1, so all addresses of contiguous memory
 *     have the same code. Multiples of 4, which are small, say why there is no memory.
 *   - the address of a window, if one region has all of it and it is not all shared memory
 *     to read and to write. The window, which is in the region, has the code of its memory
 *     and says where the bits of its pages are. A GiB's entry is never of a region that has a
 *     window: a conversion rewrites entries of the levels below, which are in arrays.
 *   - the address of an array, and the bit 2.
 *
 * Windows and arrays are aligned, and lie above every code of no memory, so the cases
 * exclude each other.
 *
 * For example, a region that can be converted has 6 MiB from gpa 0 at hva 0x7f0000000000, and
 * 64 KiB of them are private; another region has 64 KiB behind it, and a third one, which
 * cannot be converted, has 2 GiB from 1 GiB on:
 *
 *   table
 *   count 3
 *   [0] array ---> [0]   0x7f0000000001, all shared
 *                  [1]   window of the region ---> gpa 0, code 0x7f0000000001, bits
 *                  [2]   0x7f0000000001
 *                  [3]   array ---> [0]   0x7e0000000001
 *                                   [1]   0, a hole
 *                                   ...
 *                                   [31]  0, a hole
 *                  [4]   0, a hole
 *                  ...
 *                  [511] 0, a hole
 *   [1] 0x7d0000000001
 *   [2] 0x7d0000000001
 *
 *   gpa 0x2345      the entry of the granule is odd: the hva is 0x2345 + 0x7f0000000001 - 1
 *   gpa 0x23abcd    the entry is a window: the bit of page 0x23a says whether it is private
 *   gpa 0x60abcd    the entry leads to an array, where that of slice 0 is odd
 *   gpa 0x40abcdef  the entry of the GiB is odd
 *   gpa 0xc0000000  is not below count GiB: there is a hole
 *
 * Beyond 4 TiB a table has an entry for each 512 GiB, which leads to 512 entries for 1 GiB. The
 * inline functions leave these addresses to gmem_table_translate(). No processor has more than
 * 52 bits of guest address, so there are 8192 of these entries at most.
 *
 * That a region was removed is remembered within a bound: a table has a limited number of
 * arrays that hold no memory. Beyond it there are holes.
 *
 * The memory of a table: 8 bytes for each GiB that large regions have, 4 KiB more if they can be
 * converted or are smaller, 256 bytes for each 2 MiB with regions of less, 128 bytes for each
 * 64 KiB with regions of less.
 */
#ifndef GMEM_LOOKUP_TABLE_H
#define GMEM_LOOKUP_TABLE_H

#include <stdbool.h>
#include <stdint.h>

#include "gmem.h"

struct gmem_range_map;
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

/* Whether the address has an entry for its GiB, so that it is below 4 TiB */
static inline bool gmem_table_has_entry(const struct gmem_table *table, uint64_t gpa)
{
	return gpa >> 30 < table->count;
}

/* gmem_table_hva() for an address that has one */
static inline bool gmem_table_entry_hva(const struct gmem_table *table, uint64_t gpa, uint64_t size,
					void **ret)
{
	const uint64_t *entries = (const uint64_t *)(table + 1);
	uint64_t entry;

	/* Each level compares with its own size, and jumps only where the next one is needed. */
	entry = entries[gpa >> 30];
	if (entry & 1) {
		if (__builtin_expect(size - 1 > (~gpa & 0x3fffffff), 0))
			return false;
		goto found;
	}
	if (__builtin_expect(!(entry & 2), 0))
		return false;

	/* This load and the next one pair with the stores of a conversion to shared. */
	entries = (const uint64_t *)(uintptr_t)(entry - 2);
	entry = __atomic_load_n(&entries[gpa >> 21 & 511], __ATOMIC_ACQUIRE);
	if (__builtin_expect(entry & 1, 1)) {
		if (__builtin_expect(size - 1 > (~gpa & 0x1fffff), 0))
			return false;
		goto found;
	}
	if (!(entry & 2))
		return false;

	entries = (const uint64_t *)(uintptr_t)(entry - 2);
	entry = __atomic_load_n(&entries[gpa >> 16 & 31], __ATOMIC_ACQUIRE);
	if (!(entry & 1) || __builtin_expect(size - 1 > (~gpa & 0xffff), 0))
		return false;
found:
	*ret = (void *)(uintptr_t)(gpa + entry - 1);
	return true;
}

/*
 * Does the inline part of gmem_view_hva(). Returns false if the range does not lie in one
 * entry that is memory; gmem_table_translate() can tell why.
 */
static inline bool gmem_table_hva(const struct gmem_table *table, uint64_t gpa, uint64_t size,
				  void **ret)
{
	return __builtin_expect(gmem_table_has_entry(table, gpa), 1) &&
	       gmem_table_entry_hva(table, gpa, size, ret);
}

/*
 * ---- for a change of the layout, with change_lock held ----
 *
 * Making a table fails only with -ENOMEM. After a failure the caller frees the new table;
 * the old one is as before.
 */

/* How far a table reaches: its entries for a GiB, and its entries for 512 GiB */
struct gmem_table_reach {
	uint64_t gibs;
	uint64_t tops;
};

/* Has @reach go at least as far as the end of the range. */
void gmem_table_reach_to(struct gmem_table_reach *reach, uint64_t gpa, uint64_t size);
/* Returns how far a table of @regions, by gpa, has to reach. */
struct gmem_table_reach gmem_table_reach_over(const struct gmem_range_map *regions);
/* Makes a table that shares everything with @old (or NULL), and reaches at least so far. */
int gmem_table_new(const struct gmem_table *old, struct gmem_table_reach reach,
		   struct gmem_table **ret);
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
