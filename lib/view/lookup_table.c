/* SPDX-License-Identifier: MIT */
/*
 * A new table copies the array of tops, whose arrays it shares with the old table until
 * something in them changes. So the cost of a change depends on the size of what changed,
 * and hardly on the highest address or on how much memory there is. An array or a
 * granule belongs to the new table if the old table does not point to it from the same
 * place; this comparison decides what to free.
 */
#include "view/lookup_table.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/macros.h"
#include "os/sys.h"
#include "region/page_states.h"
#include "region/region.h"
#include "region/region_memory.h"

#define TOP_SHIFT	39
#define GIB_SHIFT	30
#define ENTRY_SHIFT	21
#define ENTRIES		512
#define ENTRY_SIZE	(UINT64_C(1) << ENTRY_SHIFT)
#define ENTRY_MASK	(ENTRY_SIZE - 1)

/* Codes of addresses without memory: even, and below the address of any granule */
#define CODE_HOLE	0
#define CODE_REMOVED	2
#define CODE_DEVICE	4
#define CODE_PRIVATE	6
#define LAST_CODE	CODE_PRIVATE

/* Not in an entry: the code of every address once the VM is over */
#define CODE_OVER	8

#define ENTRY_WINDOW	2

/* A slice is as large as the largest page of a host, so most slices have one piece. */
#define SLICE_SHIFT	16
#define SLICES		(1 << (ENTRY_SHIFT - SLICE_SHIFT))

/* A page of a host has at least 4 KiB. */
#define MAX_PIECES	(ENTRY_SIZE >> 12)

struct piece {
	uint64_t start;
	uint64_t code;
	const struct gmem_window *window;	/* whose bits count; NULL: all is as @code says */
};

struct granule {
	uint64_t count;
	uint16_t first[SLICES];	/* the piece at the beginning of each slice */
	struct piece pieces[];	/* count of them, and one that has only the end */
};

/*
 * Arrays and granules without memory are kept only to tell that there was some, and at most
 * this many in a table. Beyond, what is removed leaves a hole; likewise in a granule that
 * would have more pieces than this.
 */
#define MAX_IDLE_GIBS		256
#define MAX_IDLE_GRANULES	1024
#define MAX_REMEMBERED_PIECES	64

struct gmem_full_table {
	const uint64_t *const *empty_top;	/* holes alone; made with the first table of a VM */
	uint32_t idle_gibs;
	uint32_t idle_granules;
	struct gmem_table head;
	const uint64_t *const *tops[];
};

_Static_assert(offsetof(struct gmem_full_table, tops) ==
	       offsetof(struct gmem_full_table, head) + sizeof(struct gmem_table),
	       "inline functions find the tops behind the public part");

/* The entries of a GiB without regions; never written, never freed */
static const uint64_t empty_gib[ENTRIES];

const struct gmem_table gmem_table_of_nothing = { .count = 0 };

static const struct gmem_full_table *full(const struct gmem_table *table)
{
	return GMEM_CONTAINER_OF(table, struct gmem_full_table, head);
}

/* Returns NULL beyond the end of the table, which is no table if NULL. */
static const uint64_t *const *top_of(const struct gmem_table *table, uint64_t top)
{
	return table && top < table->count ? full(table)->tops[top] : NULL;
}

static const uint64_t *gib_in(const uint64_t *const *top, uint64_t gib)
{
	return top ? top[gib] : empty_gib;
}

static const uint64_t *gib_of(const struct gmem_table *table, uint64_t gpa)
{
	return gib_in(top_of(table, gpa >> TOP_SHIFT), gpa >> GIB_SHIFT & (ENTRIES - 1));
}

/* Pairs with the store in gmem_table_show_states(). */
static uint64_t entry_of(const struct gmem_table *table, uint64_t gpa)
{
	return __atomic_load_n(&gib_of(table, gpa)[gpa >> ENTRY_SHIFT & (ENTRIES - 1)],
			       __ATOMIC_ACQUIRE);
}

static bool is_code(uint64_t entry)
{
	return entry & 1 || entry <= LAST_CODE;
}

static const struct gmem_window *window_of(uint64_t entry)
{
	return !is_code(entry) && entry & ENTRY_WINDOW
		       ? (const struct gmem_window *)(uintptr_t)(entry - ENTRY_WINDOW) : NULL;
}

static struct granule *granule_of(uint64_t entry)
{
	return is_code(entry) || entry & ENTRY_WINDOW ? NULL : (struct granule *)(uintptr_t)entry;
}

/* ---- looking up ---- */

/* The piece of an entry that has @gpa, and where the piece ends */
static struct piece find_piece(uint64_t entry, uint64_t gpa, uint64_t *ret_last)
{
	const struct gmem_window *window = window_of(entry);
	const struct granule *granule = granule_of(entry);
	uint64_t n;

	*ret_last = gpa | ENTRY_MASK;
	if (!granule)
		return (struct piece){ .start = gpa & ~ENTRY_MASK, .window = window,
				       .code = window ? window->code : entry };

	/* In most slices the first piece is the one. */
	n = granule->first[gpa >> SLICE_SHIFT & (SLICES - 1)];
	while (granule->pieces[n + 1].start <= gpa)
		n++;
	*ret_last = granule->pieces[n + 1].start - 1;
	return granule->pieces[n];
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
	struct piece piece;
	uint64_t last;

	if (gpa >> TOP_SHIFT >= table->count)
		return (struct gmem_translation){ table->count ? CODE_HOLE : CODE_OVER, UINT64_MAX };

	piece = find_piece(entry_of(table, gpa), gpa, &last);
	if (piece.window && piece.window->bits)
		return translate_bits(piece.window, gpa, last);
	return (struct gmem_translation){ piece.code, last };
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

/* The entry of 2 MiB from @start that the window's region has whole */
static uint64_t entry_in(const struct gmem_window *window, uint64_t start)
{
	uint64_t first = bit_of(window, start), end = bit_of(window, start + ENTRY_MASK) + 1;
	bool has_private = window->bits &&
			   gmem_bits_find(window->bits, true, first, end) != end;

	/* For the inline functions every odd entry is memory to read and to write. */
	if (has_private || window->code & GMEM_CODE_READ_ONLY)
		return (uintptr_t)window | ENTRY_WINDOW;
	return window->code;
}

void gmem_table_show_states(const struct gmem_table *table, const struct gmem_region *region,
			    uint64_t gpa, uint64_t size, bool is_private)
{
	const struct gmem_window *window = &region->windows[region->window];
	uint64_t last = gpa + size - 1, index, entry, *entries;

	for (uint64_t start = gpa & ~ENTRY_MASK; start <= last; start += ENTRY_SIZE) {
		entries = (uint64_t *)(uintptr_t)gib_of(table, start);
		index = start >> ENTRY_SHIFT & (ENTRIES - 1);
		/* Who looks into a granule, or at codes without memory, needs no entry changed. */
		if (!(entries[index] & 1) && !window_of(entries[index]))
			continue;
		entry = is_private ? (uintptr_t)window | ENTRY_WINDOW : entry_in(window, start);
		if (entry != entries[index])
			__atomic_store_n(&entries[index], entry, __ATOMIC_SEQ_CST);
	}
}

/* ---- building ---- */

/* The pieces of 2 MiB while they are collected */
struct builder {
	size_t count;
	struct piece pieces[MAX_PIECES];
};

static void add_piece(struct builder *builder, uint64_t start, uint64_t code,
		      const struct gmem_window *window)
{
	struct piece *last = builder->count ? &builder->pieces[builder->count - 1] : NULL;

	if (!last || last->code != code || last->window != window)
		builder->pieces[builder->count++] = (struct piece){ start, code, window };
}

/* Makes holes of the parts that were removed. */
static void forget_removed(struct builder *builder)
{
	struct builder all = *builder;

	builder->count = 0;
	for (size_t i = 0; i < all.count; i++)
		add_piece(builder, all.pieces[i].start,
			  all.pieces[i].code == CODE_REMOVED ? CODE_HOLE : all.pieces[i].code,
			  all.pieces[i].window);
}

/* Adds [@start, @last] as @entry has it. If @removed, all that is no hole is gone. */
static void copy_pieces(struct builder *builder, uint64_t entry, uint64_t start, uint64_t last,
			bool removed)
{
	struct piece piece;
	uint64_t end;

	for (;;) {
		piece = find_piece(entry, start, &end);
		if (removed && piece.code != CODE_HOLE)
			piece = (struct piece){ .code = CODE_REMOVED };
		add_piece(builder, start, piece.code, piece.window);
		if (end >= last)
			return;
		start = end + 1;
	}
}

static struct granule *make_granule(const struct builder *builder)
{
	uint64_t base = builder->pieces[0].start & ~ENTRY_MASK, n = 0;
	struct granule *granule;

	granule = malloc(sizeof(*granule) + (builder->count + 1) * sizeof(granule->pieces[0]));
	if (!granule)
		return NULL;

	granule->count = builder->count;
	memcpy(granule->pieces, builder->pieces, builder->count * sizeof(granule->pieces[0]));
	granule->pieces[builder->count] = (struct piece){ .start = base + ENTRY_SIZE };
	for (uint64_t slice = 0; slice < SLICES; slice++) {
		while (n + 1 < builder->count &&
		       granule->pieces[n + 1].start <= base + (slice << SLICE_SHIFT))
			n++;
		granule->first[slice] = (uint16_t)n;
	}
	return granule;
}

/* What is entered: a region's memory, or that the regions there were removed */
struct change {
	bool is_shared;		/* all of it: no need to look at each page */
	uint64_t code;
	const struct gmem_window *window;
	bool removes;
};

static int make_entry(uint64_t before, const struct change *change, uint64_t start, uint64_t last,
		      uint64_t *ret)
{
	uint64_t first = start & ~ENTRY_MASK;
	struct granule *granule;
	struct builder builder;

	builder.count = 0;
	if (start > first)
		copy_pieces(&builder, before, first, start - 1, false);
	if (change->removes)
		copy_pieces(&builder, before, start, last, true);
	else
		add_piece(&builder, start, change->code, change->window);
	if (last < (first | ENTRY_MASK))
		copy_pieces(&builder, before, last + 1, first | ENTRY_MASK, false);
	if (builder.count > MAX_REMEMBERED_PIECES)
		forget_removed(&builder);

	if (builder.count == 1 && (!builder.pieces[0].window || last - first == ENTRY_MASK)) {
		if (!builder.pieces[0].window || change->is_shared)
			*ret = builder.pieces[0].code;
		else
			*ret = entry_in(builder.pieces[0].window, first);
		return 0;
	}
	granule = make_granule(&builder);
	*ret = (uintptr_t)granule;
	return granule ? 0 : -ENOMEM;
}

/* Returns an array of 512 words to write to: a copy if @array is the old one or the empty one. */
static void *own_array(const void *array, const void *old, const void *empty)
{
	void *copy;

	if (array != old && array != empty)
		return (void *)(uintptr_t)array;
	copy = malloc(ENTRIES * sizeof(uint64_t));
	return copy ? memcpy(copy, array, ENTRIES * sizeof(uint64_t)) : NULL;
}

/* Returns the entries of the GiB that has @gpa, to write to, or NULL without memory. */
static uint64_t *own_gib(struct gmem_full_table *table, const struct gmem_table *old, uint64_t gpa)
{
	uint64_t top = gpa >> TOP_SHIFT, gib = gpa >> GIB_SHIFT & (ENTRIES - 1), *entries;
	const uint64_t **gibs = own_array(table->tops[top], top_of(old, top), table->empty_top);

	if (!gibs)
		return NULL;
	table->tops[top] = gibs;
	entries = own_array(gibs[gib], gib_of(old, gpa), empty_gib);
	if (entries)
		gibs[gib] = entries;
	return entries;
}

/* ---- what is remembered of removed regions ---- */

/* Conversions may rewrite entries of @kept meanwhile, but not to or from granules. */
static void free_gib(const uint64_t *entries, const uint64_t *kept)
{
	uint64_t entry;

	for (size_t i = 0; i < ENTRIES; i++) {
		entry = entries[i];
		if (granule_of(entry) && entry != __atomic_load_n(&kept[i], __ATOMIC_RELAXED))
			free(granule_of(entry));
	}
	free((void *)(uintptr_t)entries);
}

static bool is_idle_granule(uint64_t entry)
{
	const struct granule *granule = granule_of(entry);

	for (uint64_t i = 0; granule && i < granule->count; i++)
		if (granule->pieces[i].code != CODE_HOLE && granule->pieces[i].code != CODE_REMOVED)
			return false;
	return granule != NULL;
}

static bool is_idle(const uint64_t *entries)
{
	for (size_t i = 0; i < ENTRIES; i++)
		if (entries[i] != CODE_HOLE && entries[i] != CODE_REMOVED &&
		    !is_idle_granule(entries[i]))
			return false;
	return true;
}

/* Stores @entry in place of @before, which only the new table has if @is_own. */
static void replace_entry(struct gmem_full_table *table, uint64_t *entry, uint64_t now, bool is_own)
{
	uint64_t before = *entry;

	table->idle_granules -= is_idle_granule(before);
	if (is_own)
		free(granule_of(before));
	if (is_idle_granule(now) && table->idle_granules == MAX_IDLE_GRANULES) {
		free(granule_of(now));
		now = CODE_HOLE;
	}
	table->idle_granules += is_idle_granule(now);
	*entry = now;
}

/* Makes a hole of the GiB that has @gpa, whose entries only the new table has. */
static void forget_gib(struct gmem_full_table *table, const struct gmem_table *old, uint64_t gpa)
{
	uint64_t top = gpa >> TOP_SHIFT, gib = gpa >> GIB_SHIFT & (ENTRIES - 1);
	const uint64_t **gibs = (const uint64_t **)(uintptr_t)table->tops[top];

	for (size_t i = 0; i < ENTRIES; i++)
		table->idle_granules -= is_idle_granule(gibs[gib][i]);
	free_gib(gibs[gib], gib_of(old, gpa));
	gibs[gib] = empty_gib;

	for (size_t i = 0; i < ENTRIES; i++)
		if (gibs[i] != empty_gib)
			return;
	free(gibs);
	table->tops[top] = table->empty_top;
}

/* Called with the change of the entries of a GiB done */
static void settle_gib(struct gmem_full_table *table, const struct gmem_table *old, uint64_t gpa,
		       const uint64_t *entries, bool was_idle)
{
	table->idle_gibs -= was_idle;
	if (!is_idle(entries))
		return;
	if (table->idle_gibs < MAX_IDLE_GIBS)
		table->idle_gibs++;
	else
		forget_gib(table, old, gpa);
}

/* ---- entering and removing ---- */

/* Changes [@start, @last], which is in one GiB. */
static int change_gib(struct gmem_full_table *table, const struct gmem_table *old,
		      const struct change *change, uint64_t start, uint64_t last)
{
	bool was_idle = gib_of(&table->head, start) != empty_gib && is_idle(gib_of(&table->head, start));
	uint64_t *entries = own_gib(table, old, start);
	uint64_t at = start, end, now, *entry;
	bool is_own;
	int err;

	if (!entries)
		return -ENOMEM;
	do {
		end = (at | ENTRY_MASK) < last ? at | ENTRY_MASK : last;
		entry = &entries[at >> ENTRY_SHIFT & (ENTRIES - 1)];
		err = make_entry(*entry, change, at, end, &now);
		if (err)
			return err;
		is_own = *entry != entry_of(old, at);
		replace_entry(table, entry, now, is_own);
		at = end + 1;
	} while (end < last);
	settle_gib(table, old, start, entries, was_idle);
	return 0;
}

static int change_range(struct gmem_table *head, const struct gmem_table *old,
			const struct change *change, uint64_t start, uint64_t size)
{
	struct gmem_full_table *table = GMEM_CONTAINER_OF(head, struct gmem_full_table, head);
	uint64_t last = start + size - 1, end;
	int err;

	for (;; start = end + 1) {
		end = start | ((UINT64_C(1) << GIB_SHIFT) - 1);
		end = end < last ? end : last;
		err = change_gib(table, old, change, start, end);
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
		.code = code,
		.window = make_window(region, gpa, code),
		.is_shared = !region->read_only && !gmem_states_total(&region->states, GMEM_PAGE_PRIVATE),
	};

	return change_range(table, old, &change, gpa + offset, size);
}

int gmem_table_enter(struct gmem_table *table, const struct gmem_table *old,
		     struct gmem_region *region, uint64_t gpa, uint64_t hva)
{
	return gmem_table_enter_part(table, old, region, gpa, hva, 0, region->gpa.size);
}

int gmem_table_remove(struct gmem_table *table, const struct gmem_table *old, uint64_t gpa,
		      uint64_t size)
{
	const struct change change = { .removes = true };

	return change_range(table, old, &change, gpa, size);
}

static const uint64_t *const *new_empty_top(void)
{
	const uint64_t **gibs = malloc(ENTRIES * sizeof(gibs[0]));

	for (size_t i = 0; gibs && i < ENTRIES; i++)
		gibs[i] = empty_gib;
	return gibs;
}

int gmem_table_new(const struct gmem_table *old, uint64_t last, struct gmem_table **ret)
{
	uint64_t count = (last >> TOP_SHIFT) + 1;
	struct gmem_full_table *table;

	/* Never fewer than before: entries remember that a region was removed. */
	if (old && old->count > count)
		count = old->count;
	table = malloc(sizeof(*table) + count * sizeof(table->tops[0]));
	if (!table)
		return -ENOMEM;
	table->empty_top = old ? full(old)->empty_top : new_empty_top();
	if (!table->empty_top) {
		free(table);
		return -ENOMEM;
	}

	table->head.count = count;
	table->idle_gibs = old ? full(old)->idle_gibs : 0;
	table->idle_granules = old ? full(old)->idle_granules : 0;
	for (uint64_t i = 0; i < count; i++)
		table->tops[i] = old && i < old->count ? full(old)->tops[i] : table->empty_top;
	*ret = &table->head;
	return 0;
}

/* ---- freeing ---- */

static void free_top(const uint64_t *const *gibs, const uint64_t *const *kept)
{
	for (size_t i = 0; i < ENTRIES; i++)
		if (gibs[i] != empty_gib && gibs[i] != gib_in(kept, i))
			free_gib(gibs[i], gib_in(kept, i));
	free((void *)(uintptr_t)gibs);
}

void gmem_table_free(const struct gmem_table *head, const struct gmem_table *kept)
{
	const struct gmem_full_table *table;

	if (!head || head == &gmem_table_of_nothing)
		return;

	table = full(head);
	for (uint64_t i = 0; i < head->count; i++)
		if (table->tops[i] != table->empty_top && table->tops[i] != top_of(kept, i))
			free_top(table->tops[i], top_of(kept, i));
	if (!kept)
		free((void *)(uintptr_t)table->empty_top);
	free((void *)(uintptr_t)table);
}
