/* SPDX-License-Identifier: MIT */
/*
 * A new table copies the entries of the first level, and shares the arrays that they lead to
 * with the old table until something in them changes. So the cost of a change depends on the
 * size of what changed, and hardly on the highest address or on how much memory there is. An
 * array belongs to the new table if the old table does not point to it from the same place;
 * this comparison decides what to free.
 *
 * An entry that says all by itself is of one region, or of none: neighbours that are one piece
 * for the host are not joined, so a conversion may rewrite an entry that it finds. Only
 * arrays in which all entries are the same reason for no memory give way to one entry.
 */
#include "view/lookup_table.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/macros.h"
#include "base/range_map.h"
#include "os/sys.h"
#include "region/dirty_pages.h"
#include "region/page_states.h"
#include "region/region.h"
#include "region/region_memory.h"

/* Codes of addresses without memory: multiples of 4, below the address of any window */
#define CODE_HOLE	0
#define CODE_REMOVED	4
#define CODE_DEVICE	8
#define CODE_PRIVATE	12
#define LAST_CODE	CODE_PRIVATE

/* Not in an entry: the code of every address once the VM is over */
#define CODE_OVER	16

/* The flag of an entry that is the address of an array of entries of the next level */
#define ENTRY_ARRAY	2

/* What an entry is for, by the bits of an address within it */
enum level { LEVEL_TOP, LEVEL_GIB, LEVEL_GRANULE, LEVEL_SLICE, LEVEL_PAGE, LEVELS };

static const uint8_t shifts[LEVELS] = { 39, 30, 21, 16, 12 };

/* The first level has an entry for each GiB below this one; each has to be copied. */
#define MAX_GIBS	4096
_Static_assert(MAX_GIBS <= GMEM_DIRTY_TOP_GIBS, "who writes by the first level looks for marks in the first array");

/*
 * Arrays without memory are kept only to tell that there was some, and at most this many in a
 * table. Beyond, what is removed leaves a hole.
 */
static const uint32_t max_idle[LEVELS] = { 256, 256, 1024, 1024, 0 };

struct gmem_full_table {
	uint64_t tops;			/* entries for 512 GiB each, behind those of head.count GiBs */
	uint32_t idle[LEVELS];		/* arrays without memory that entries of this level lead to */
	struct gmem_table head;
	uint64_t entries[];
};

_Static_assert(offsetof(struct gmem_full_table, entries) ==
	       offsetof(struct gmem_full_table, head) + sizeof(struct gmem_table),
	       "inline functions find the entries behind the public part");

const struct gmem_table gmem_table_of_nothing = { .count = 0 };

static struct gmem_full_table *full(const struct gmem_table *table)
{
	return GMEM_CONTAINER_OF((struct gmem_table *)(uintptr_t)table, struct gmem_full_table, head);
}

static uint64_t mask_of(enum level level)
{
	return (UINT64_C(1) << shifts[level]) - 1;
}

/* The number of entries in an array that an entry of @level leads to */
static size_t length_of(enum level level)
{
	return (size_t)1 << (shifts[level] - shifts[level + 1]);
}

static uint64_t *array_of(uint64_t entry)
{
	return entry & ENTRY_ARRAY ? (uint64_t *)(uintptr_t)(entry - ENTRY_ARRAY) : NULL;
}

static const struct gmem_window *window_of(uint64_t entry)
{
	return entry & 3 || entry <= LAST_CODE ? NULL
					       : (const struct gmem_window *)(uintptr_t)entry;
}

/* Where the entry for @gpa is in the array that an entry of @level leads to */
static uint64_t *entry_in(uint64_t *array, enum level level, uint64_t gpa)
{
	return &array[gpa >> shifts[level + 1] & (length_of(level) - 1)];
}

/* The @i-th entry of the array that @entry leads to; a hole if it does not. May be read at any time. */
static uint64_t child_of(uint64_t entry, size_t i)
{
	const uint64_t *array = array_of(entry);

	return array ? __atomic_load_n(&array[i], __ATOMIC_RELAXED) : CODE_HOLE;
}

/* The entry of the first level for @gpa; NULL beyond the end of the table, which is no table if NULL */
static uint64_t *first_entry(const struct gmem_table *table, uint64_t gpa, enum level *ret_level)
{
	struct gmem_full_table *all;

	*ret_level = LEVEL_GIB;
	if (!table)
		return NULL;
	all = full(table);
	if (gpa >> shifts[LEVEL_GIB] < table->count)
		return &all->entries[gpa >> shifts[LEVEL_GIB]];
	*ret_level = LEVEL_TOP;
	return gpa >> shifts[LEVEL_TOP] < all->tops
		       ? &all->entries[table->count + (gpa >> shifts[LEVEL_TOP])] : NULL;
}

/* ---- looking up ---- */

/* The entry that says what is at @gpa, and the last gpa that it says so of */
static uint64_t find_entry(const struct gmem_table *table, uint64_t gpa, uint64_t *ret_last)
{
	enum level level;
	const uint64_t *first = first_entry(table, gpa, &level);
	uint64_t entry = first ? *first : CODE_HOLE, *array;

	/* Pairs with the store in show_entry(). */
	for (; (array = array_of(entry)); level++)
		entry = __atomic_load_n(entry_in(array, level, gpa), __ATOMIC_ACQUIRE);
	*ret_last = first ? gpa | mask_of(level) : UINT64_MAX;
	return entry;
}

static uint64_t bit_of(const struct gmem_window *window, uint64_t gpa)
{
	return window->first + ((gpa - window->gpa) >> window->page_shift);
}

/* The pages from @gpa on that are alike, up to @last */
static struct gmem_translation translate_bits(const struct gmem_window *window, uint64_t gpa,
					      uint64_t last)
{
	uint64_t first = bit_of(window, gpa), end = bit_of(window, last) + 1, other;
	bool is_private = gmem_bits_get(window->bits, first);

	other = gmem_bits_find(window->bits, !is_private, first, end);
	if (other < end)
		last = window->gpa + ((other - window->first) << window->page_shift) - 1;
	return (struct gmem_translation){ is_private ? CODE_PRIVATE : window->code, last };
}

struct gmem_translation gmem_table_translate(const struct gmem_table *table, uint64_t gpa)
{
	const struct gmem_window *window;
	uint64_t entry, last;

	if (!table->count)
		return (struct gmem_translation){ CODE_OVER, UINT64_MAX };

	entry = find_entry(table, gpa, &last);
	window = window_of(entry);
	if (window && window->bits)
		return translate_bits(window, gpa, last);
	return (struct gmem_translation){ window ? window->code : entry, last };
}

int gmem_translation_error(struct gmem_translation translation)
{
	switch (translation.code) {
	case CODE_HOLE:
		return -ENOENT;
	case CODE_REMOVED:
	case CODE_OVER:
		return -ESTALE;
	case CODE_DEVICE:
		return -ENXIO;
	case CODE_PRIVATE:
		return -EACCES;
	default:
		return 0;
	}
}

/* ---- what a region looks like ---- */

/*
 * Returns the code of the shared parts of @region. If both sides are one guest_memfd, the
 * guest's shared memory is in that file, which the region's hva does not map.
 */
static uint64_t code_at(const struct gmem_region *region, uint64_t gpa, uint64_t hva)
{
	if (region->is_device)
		return CODE_DEVICE;
	if (gmem_region_is_both_sides(region))
		return CODE_PRIVATE;
	return (hva - gpa + 1) | (region->read_only ? GMEM_CODE_READ_ONLY : 0);
}

/* Tell whether a window is of the region at @gpa; a refused change may have left another one. */
static bool is_window_of(const struct gmem_region *region, const struct gmem_window *window,
			 uint64_t gpa, uint64_t code)
{
	const uint64_t *bits = region->states.pages ? region->states.pages->bits : NULL;

	return window->gpa == gpa && window->code == code && window->bits == bits &&
	       window->first == region->states.first;
}

/*
 * The window of @region at @gpa, or NULL if it needs none. It has two: readers may use one
 * while the other is made for a place to which the region goes.
 */
static const struct gmem_window *make_window(struct gmem_region *region, uint64_t gpa,
					     uint64_t code)
{
	struct gmem_window *window = &region->windows[region->window];

	if (!(code & 1) || (!region->states.pages && !region->read_only))
		return NULL;
	if (is_window_of(region, window, gpa, code))
		return window;
	if (window->code)
		window = &region->windows[!region->window];
	*window = (struct gmem_window){
		.gpa = gpa,
		.code = code,
		.bits = region->states.pages ? region->states.pages->bits : NULL,
		.first = region->states.first,
		.page_shift = (uint32_t)__builtin_ctzll(gmem_sys_page_size()),
	};
	return window;
}

void gmem_table_settle(struct gmem_region *region)
{
	uint64_t gpa = region->gpa.start, code = code_at(region, gpa, region->hva.start);

	if (!is_window_of(region, &region->windows[region->window], gpa, code) &&
	    is_window_of(region, &region->windows[!region->window], gpa, code))
		region->window = !region->window;
}

/* The entry of @level for addresses from @start on, all of which the window's region has */
static uint64_t entry_for(const struct gmem_window *window, uint64_t start, enum level level)
{
	uint64_t first = bit_of(window, start), end = bit_of(window, start + mask_of(level)) + 1;
	bool has_private = window->bits &&
			   gmem_bits_find(window->bits, true, first, end) != end;

	/* For the inline functions every odd entry is memory to read and to write. */
	return has_private || window->code & GMEM_CODE_READ_ONLY ? (uintptr_t)window : window->code;
}

/* ---- conversions ---- */

/* What becomes visible of a region's bits */
struct states {
	const struct gmem_window *window;
	bool is_private;	/* all of the range */
};

static void show_entry(uint64_t *entry, const struct states *states, enum level level, uint64_t gpa)
{
	uint64_t now;

	/* What has no memory for readers stays as it is. */
	if (!(*entry & 1) && !window_of(*entry))
		return;
	now = states->is_private ? (uintptr_t)states->window
				 : entry_for(states->window, gpa & ~mask_of(level), level);
	if (now != *entry)
		__atomic_store_n(entry, now, __ATOMIC_SEQ_CST);
}

/* Shows [@gpa, @last], for which there is an entry of @level that leads to an array. */
static void show_array(uint64_t *array, const struct states *states, enum level level, uint64_t gpa,
		       uint64_t last)
{
	uint64_t end, *entry;

	for (;; gpa = end + 1) {
		end = gpa | mask_of(level + 1);
		end = end < last ? end : last;
		entry = entry_in(array, level, gpa);
		if (array_of(*entry))
			show_array(array_of(*entry), states, level + 1, gpa, end);
		else
			show_entry(entry, states, level + 1, gpa);
		if (end == last)
			return;
	}
}

void gmem_table_show_states(const struct gmem_table *table, const struct gmem_region *region,
			    uint64_t gpa, uint64_t size, bool is_private)
{
	const struct states states = { &region->windows[region->window], is_private };
	uint64_t last = gpa + size - 1, end;
	const uint64_t *first;
	enum level level;

	for (;; gpa = end + 1) {
		first = first_entry(table, gpa, &level);
		end = gpa | mask_of(level);
		end = end < last ? end : last;
		/* No entry of this level is a convertible region's, see is_leaf(). */
		if (first && array_of(*first))
			show_array(array_of(*first), &states, level, gpa, end);
		if (end == last)
			return;
	}
}

/* ---- arrays of a table that is being built ---- */

/*
 * Makes @entry lead to an array that the new table alone has, and returns it, or NULL without
 * memory. The entry was @old in the old table.
 */
static uint64_t *own_array(uint64_t *entry, uint64_t old, enum level level, uint64_t start)
{
	size_t length = length_of(level);
	uint64_t *array = array_of(*entry), *copy;
	const struct gmem_window *window = window_of(*entry);

	if (array && *entry != old)
		return array;
	copy = malloc(length * sizeof(copy[0]));
	if (!copy)
		return NULL;
	if (array)
		memcpy(copy, array, length * sizeof(copy[0]));
	for (size_t i = 0; !array && i < length; i++)
		copy[i] = window ? entry_for(window, start + (i << shifts[level + 1]), level + 1) : *entry;
	*entry = (uintptr_t)copy | ENTRY_ARRAY;
	return copy;
}

static bool is_idle(uint64_t entry, enum level level)
{
	const uint64_t *array = array_of(entry);

	for (size_t i = 0; array && i < length_of(level); i++)
		if (array[i] != CODE_HOLE && array[i] != CODE_REMOVED && !is_idle(array[i], level + 1))
			return false;
	return array;
}

/* Most entries lead to no array, so they are looked at in groups, as many as the shortest array has. */
#define GROUP 16

static bool has_arrays(const uint64_t *group)
{
	uint64_t all = 0;

	for (size_t i = 0; i < GROUP; i++)
		all |= group[i];
	return all & ENTRY_ARRAY;
}

/* Frees the arrays that @entry leads to and @kept, at the same place, does not. */
static void free_arrays(uint64_t entry, uint64_t kept, enum level level)
{
	uint64_t *array = array_of(entry);

	if (!array || entry == kept)
		return;
	for (size_t i = 0; i < length_of(level); i += GROUP)
		if (has_arrays(&array[i]))
			for (size_t j = i; j < i + GROUP; j++)
				free_arrays(array[j], child_of(kept, j), level + 1);
	free(array);
}

/* Counts the idle arrays that @entry leads to as gone. */
static void uncount_idle(struct gmem_full_table *table, uint64_t entry, enum level level)
{
	const uint64_t *array = array_of(entry);

	if (!array)
		return;
	table->idle[level] -= is_idle(entry, level);
	for (size_t i = 0; i < length_of(level); i++)
		if (array_of(array[i]))
			uncount_idle(table, array[i], level + 1);
}

/* Stores @now in @entry, which was @old in the old table. */
static void replace(struct gmem_full_table *table, uint64_t *entry, uint64_t old, enum level level,
		    uint64_t now)
{
	uncount_idle(table, *entry, level);
	free_arrays(*entry, old, level);
	*entry = now;
}

/* Tell whether all of an array's entries are the same reason why there is no memory. */
static bool is_uniform(const uint64_t *array, enum level level)
{
	for (size_t i = 1; i < length_of(level); i++)
		if (array[i] != array[0])
			return false;
	return array[0] <= LAST_CODE;
}

/*
 * Called when @array, to which @entry leads and which the new table alone has, was changed. The
 * entry was @old in the old table, which may have the arrays below, too.
 */
static void settle(struct gmem_full_table *table, uint64_t *entry, uint64_t old, uint64_t *array,
		   enum level level, bool was_idle)
{
	bool idle;

	table->idle[level] -= was_idle;
	if (is_uniform(array, level)) {
		*entry = array[0];
		free(array);
		return;
	}
	idle = is_idle(*entry, level);
	table->idle[level] += idle;
	if (idle && table->idle[level] > max_idle[level])
		replace(table, entry, old, level, CODE_HOLE);
}

/* ---- entering and removing ---- */

/* What is entered: a region's memory, or that the regions there were removed */
struct change {
	struct gmem_full_table *table;
	const struct gmem_table *old;
	bool is_shared;		/* all of it: no need to look at each page */
	uint64_t code;
	const struct gmem_window *window;
	bool removes;
};

/* Tell whether one entry of @level, which is @before now, can have the change all by itself. */
static bool is_leaf(const struct change *change, uint64_t before, enum level level)
{
	if (change->removes)
		return !array_of(before);
	return !change->window || level >= LEVEL_GRANULE;
}

static uint64_t leaf(const struct change *change, uint64_t before, enum level level, uint64_t start)
{
	if (change->removes)
		return before == CODE_HOLE ? CODE_HOLE : CODE_REMOVED;
	if (!change->window || change->is_shared)
		return change->code;
	return entry_for(change->window, start, level);
}

/* Changes [@gpa, @last], which is in @entry; @old is what the old table has there. */
static int change_entry(const struct change *change, uint64_t *entry, uint64_t old, enum level level,
			uint64_t gpa, uint64_t last)
{
	uint64_t start = gpa & ~mask_of(level), end, *array, *child;
	bool is_whole = gpa == start && last == (start | mask_of(level)), was_idle;
	int err;

	if (change->removes && (*entry == CODE_HOLE || *entry == CODE_REMOVED))
		return 0;
	if (is_whole && is_leaf(change, *entry, level)) {
		replace(change->table, entry, old, level, leaf(change, *entry, level, start));
		return 0;
	}

	was_idle = is_idle(*entry, level);
	array = own_array(entry, old, level, start);
	if (!array)
		return -ENOMEM;
	for (;; gpa = end + 1) {
		end = gpa | mask_of(level + 1);
		end = end < last ? end : last;
		child = entry_in(array, level, gpa);
		err = change_entry(change, child, child_of(old, (size_t)(child - array)), level + 1, gpa,
				   end);
		if (err)
			return err;
		if (end == last)
			break;
	}
	settle(change->table, entry, old, array, level, was_idle);
	return 0;
}

static int change_range(const struct change *change, uint64_t gpa, uint64_t size)
{
	uint64_t last = gpa + size - 1, end, *entry, *old;
	enum level level, old_level;
	int err;

	for (;; gpa = end + 1) {
		entry = first_entry(&change->table->head, gpa, &level);
		old = first_entry(change->old, gpa, &old_level);
		end = gpa | mask_of(level);
		end = end < last ? end : last;
		err = change_entry(change, entry, old && old_level == level ? *old : CODE_HOLE, level, gpa,
				   end);
		if (err || end == last)
			return err;
	}
}

int gmem_table_enter_part(struct gmem_table *table, const struct gmem_table *old,
			  struct gmem_region *region, uint64_t gpa, uint64_t hva, uint64_t offset,
			  uint64_t size)
{
	uint64_t code = code_at(region, gpa, hva);
	const struct change change = {
		.table = full(table),
		.old = old,
		.code = code,
		.window = make_window(region, gpa, code),
		.is_shared = !region->read_only && !gmem_states_total(&region->states, GMEM_PAGE_PRIVATE),
	};

	return change_range(&change, gpa + offset, size);
}

int gmem_table_enter(struct gmem_table *table, const struct gmem_table *old,
		     struct gmem_region *region, uint64_t gpa, uint64_t hva)
{
	return gmem_table_enter_part(table, old, region, gpa, hva, 0, region->gpa.size);
}

int gmem_table_remove(struct gmem_table *table, const struct gmem_table *old, uint64_t gpa,
		      uint64_t size)
{
	const struct change change = { .table = full(table), .old = old, .removes = true };

	return change_range(&change, gpa, size);
}

/* ---- making and freeing ---- */

void gmem_table_reach_to(struct gmem_table_reach *reach, uint64_t gpa, uint64_t size)
{
	uint64_t last = gpa + size - 1, gibs = (last >> shifts[LEVEL_GIB]) + 1;
	uint64_t tops = (last >> shifts[LEVEL_TOP]) + 1;

	if (gibs > MAX_GIBS) {
		gibs = gpa >> shifts[LEVEL_GIB] < MAX_GIBS ? MAX_GIBS : 0;
		reach->tops = tops > reach->tops ? tops : reach->tops;
	}
	reach->gibs = gibs > reach->gibs ? gibs : reach->gibs;
}

/* The highest range that starts below @end */
static void reach_below(struct gmem_table_reach *reach, const struct gmem_range *range, uint64_t end)
{
	const struct gmem_range *highest = NULL;

	while (range) {
		if (range->start < end)
			highest = range;
		range = range->start < end ? range->right : range->left;
	}
	if (highest)
		gmem_table_reach_to(reach, highest->start, highest->size);
}

struct gmem_table_reach gmem_table_reach_over(const struct gmem_range_map *regions)
{
	struct gmem_table_reach reach = { 0 };

	reach_below(&reach, regions->root, (uint64_t)MAX_GIBS << shifts[LEVEL_GIB]);
	reach_below(&reach, regions->root, UINT64_MAX);
	return reach;
}

int gmem_table_new(const struct gmem_table *old, struct gmem_table_reach reach,
		   struct gmem_table **ret)
{
	struct gmem_full_table *table, *before = old ? full(old) : NULL;

	/* Never fewer than before: entries remember that a region was removed. */
	if (old && old->count > reach.gibs)
		reach.gibs = old->count;
	if (old && before->tops > reach.tops)
		reach.tops = before->tops;
	if (!reach.gibs)
		reach.gibs = 1;
	table = calloc(1, sizeof(*table) + (reach.gibs + reach.tops) * sizeof(table->entries[0]));
	if (!table)
		return -ENOMEM;

	table->head.count = reach.gibs;
	table->tops = reach.tops;
	if (old) {
		memcpy(table->idle, before->idle, sizeof(table->idle));
		memcpy(table->entries, before->entries, old->count * sizeof(table->entries[0]));
		memcpy(table->entries + reach.gibs, before->entries + old->count,
		       before->tops * sizeof(table->entries[0]));
	}
	*ret = &table->head;
	return 0;
}

/* Frees what @count entries of the first level lead to and the first @kept_count of @kept do not. */
static void free_level(const uint64_t *entries, uint64_t count, const uint64_t *kept,
		       uint64_t kept_count, enum level level)
{
	for (uint64_t i = 0; i < count; i++)
		free_arrays(entries[i], i < kept_count ? kept[i] : CODE_HOLE, level);
}

void gmem_table_free(const struct gmem_table *head, const struct gmem_table *kept_head)
{
	static const struct gmem_full_table nothing;
	const struct gmem_full_table *table, *kept = kept_head ? full(kept_head) : &nothing;

	if (!head || head == &gmem_table_of_nothing)
		return;

	table = full(head);
	free_level(table->entries, head->count, kept->entries, kept->head.count, LEVEL_GIB);
	free_level(table->entries + head->count, table->tops, kept->entries + kept->head.count,
		   kept->tops, LEVEL_TOP);
	free((void *)(uintptr_t)table);
}
