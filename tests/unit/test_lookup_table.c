/* SPDX-License-Identifier: MIT */
/* lookup_table: against a model that remembers every page */
#include <errno.h>
#include <malloc.h>
#include <string.h>

#include "base/range_map.h"
#include "region/page_states.h"
#include "region/region.h"
#include "view/lookup_table.h"
#include "unit.h"
#include "unit_alloc.h"

#define PAGE	page_size
#define MIB	((uint64_t)1 << 20)
#define GIB	((uint64_t)1 << 30)
#define TIB	((uint64_t)1 << 40)

static uint64_t page_size = 4096;

/*
 * The model knows some windows of the address space, page by page: where
 * granules, GiBs and arrays of GiBs begin and end, and both ends of it all.
 */
static const struct {
	uint64_t at;
	uint64_t pages_before;
} windows[] = {
	{ 0, 0 },
	{ 2 * MIB, 8 },
	{ GIB - 2 * MIB, 8 },
	{ 3 * GIB, 8 },
	{ 3 * GIB + 2 * MIB, 0 },
	{ 4 * TIB, 8 },
	{ 16 * TIB, 8 },
	{ 20 * TIB + GIB, 8 },
	{ (uint64_t)1 << 52, 16 },
};

#define WINDOWS		ARRAY_SIZE(windows)
#define WINDOW_PAGES	16
#define MODEL_PAGES	(WINDOWS * WINDOW_PAGES)
#define MAX_REGIONS	24

struct model {
	struct gmem_range_map map;
	struct gmem_region regions[MAX_REGIONS];
	bool used[MAX_REGIONS];
	int owner[MODEL_PAGES];		/* a region's number, HOLE or REMOVED */
	bool is_private[MODEL_PAGES];
	struct gmem_table *table;
	uint32_t seed;
};

#define HOLE	(-ENOENT)
#define REMOVED	(-ESTALE)

/* Always the same numbers: a failure must come back. */
static uint64_t pick(struct model *m, uint64_t below)
{
	m->seed = m->seed * 1664525 + 1013904223;
	return (m->seed >> 8) % below;
}

static uint64_t gpa_of(uint64_t i)
{
	return windows[i / WINDOW_PAGES].at - windows[i / WINDOW_PAGES].pages_before * PAGE +
	       i % WINDOW_PAGES * PAGE;
}

static int new_table(const struct gmem_table *old, uint64_t last, struct gmem_table **ret)
{
	struct gmem_table_reach reach = { 0 };

	gmem_table_reach_to(&reach, last, 1);
	return gmem_table_new(old, reach, ret);
}

static void model_begin(struct model *m, uint32_t seed)
{
	size_t i;

	fake_set_page_size(PAGE);
	memset(m, 0, sizeof(*m));
	m->seed = seed;
	for (i = 0; i < MODEL_PAGES; i++)
		m->owner[i] = HOLE;
	assert_ok(new_table(NULL, 0, &m->table));
}

static void model_end(struct model *m)
{
	gmem_table_free(m->table, NULL);
	for (int r = 0; r < MAX_REGIONS; r++)
		gmem_states_free(&m->regions[r].states);
}

static bool has(const struct gmem_range *range, uint64_t gpa)
{
	return gpa - range->start < range->size;
}

/* Enter @what for the range's pages in the model, which knows only some pages. */
static void model_paint(struct model *m, const struct gmem_range *range, int what)
{
	size_t i;

	for (i = 0; i < MODEL_PAGES; i++)
		if (has(range, gpa_of(i))) {
			m->owner[i] = what;
			m->is_private[i] = false;
		}
}

static int expected_error(const struct model *m, size_t i)
{
	if (m->owner[i] < 0)
		return m->owner[i];
	if (m->is_private[i])
		return -EACCES;
	return m->regions[m->owner[i]].is_device ? -ENXIO : 0;
}

/* What the inline functions say; they answer only if it is all in the entry */
static uint64_t inline_hva(const struct model *m, uint64_t gpa)
{
	void *hva;

	return gmem_table_hva(m->table, gpa, 1, &hva) ? (uintptr_t)hva : 0;
}

/* Looks up a byte somewhere in a page, in the table and in the model. */
static void check_page(const struct model *m, size_t i, uint64_t within)
{
	uint64_t gpa = gpa_of(i) + within;
	struct gmem_translation piece = gmem_table_translate(m->table, gpa);
	const struct gmem_region *region;
	uint64_t inline_says = inline_hva(m, gpa);

	assert_int_equal(gmem_translation_error(piece), expected_error(m, i));
	assert_true(piece.last >= (gpa | (PAGE - 1)));
	if (expected_error(m, i)) {
		assert_int_equal(inline_says, 0);
		return;
	}

	region = &m->regions[m->owner[i]];
	assert_ptr_equal(gmem_translation_hva(piece, gpa),
			 (void *)(uintptr_t)(region->hva.start + (gpa - region->gpa.start)));
	assert_int_equal(!!(piece.code & GMEM_CODE_READ_ONLY), region->read_only);
	if (inline_says) {
		assert_false(region->read_only);
		assert_int_equal(inline_says, region->hva.start + (gpa - region->gpa.start));
	}
}

/* A piece promises the same for all up to its last byte. */
static void check_reach(const struct model *m, size_t i)
{
	struct gmem_translation piece = gmem_table_translate(m->table, gpa_of(i));
	size_t j;

	for (j = 0; j < MODEL_PAGES; j++)
		if (gpa_of(j) >= gpa_of(i) && gpa_of(j) <= piece.last)
			assert_int_equal(gmem_table_translate(m->table, gpa_of(j)).code, piece.code);
}

static void check_all(const struct model *m)
{
	size_t i;

	for (i = 0; i < MODEL_PAGES; i++) {
		check_page(m, i, 0);
		check_page(m, i, PAGE - 1);
		check_reach(m, i);
	}
}

/* The next table, with @region or without any in the range; the old one stays until it is freed. */
static int next_table(struct model *m, struct gmem_region *region, uint64_t start, uint64_t size)
{
	struct gmem_table_reach reach = { 0 };
	struct gmem_table *next;
	int err;

	gmem_table_reach_to(&reach, start, size);
	err = gmem_table_new(m->table, reach, &next);
	if (err)
		return err;

	if (region)
		err = gmem_table_enter(next, m->table, region, start, region->hva.start);
	else
		err = gmem_table_remove(next, m->table, start, size);
	if (err) {
		gmem_table_free(next, m->table);
		return err;
	}
	gmem_table_free(m->table, next);
	m->table = next;
	if (region)
		gmem_table_settle(region);
	return 0;
}

static int enter_next(struct model *m, int r)
{
	struct gmem_region *region = &m->regions[r];

	return next_table(m, region, region->gpa.start, region->gpa.size);
}

static int remove_next(struct model *m, int r)
{
	return next_table(m, NULL, m->regions[r].gpa.start, m->regions[r].gpa.size);
}

static void enter(struct model *m, int r)
{
	gmem_range_insert(&m->map, &m->regions[r].gpa);
	m->used[r] = true;
	model_paint(m, &m->regions[r].gpa, r);
}

static void strike(struct model *m, int r)
{
	gmem_range_remove(&m->map, &m->regions[r].gpa);
	m->used[r] = false;
	model_paint(m, &m->regions[r].gpa, REMOVED);
}

/* Some pages of one window; or all between two windows */
static void pick_range(struct model *m, uint64_t *start, uint64_t *size)
{
	uint64_t first = pick(m, MODEL_PAGES), last = first;

	if (pick(m, 4) == 0)
		last += pick(m, MODEL_PAGES - first);
	else
		last += pick(m, WINDOW_PAGES - first % WINDOW_PAGES);

	/* not so long that painting it takes for ever: up to 2 GiB, as a memslot may be */
	if (gpa_of(last) - gpa_of(first) > 2 * GIB)
		last = first;
	*start = gpa_of(first);
	*size = gpa_of(last) - gpa_of(first) + PAGE;
}

static void try_to_add(struct model *m, int r)
{
	struct gmem_region *region = &m->regions[r];
	uint64_t start, size;

	pick_range(m, &start, &size);
	if (gmem_range_find(&m->map, start, size))
		return;

	memset(region, 0, sizeof(*region));
	region->gpa.start = start;
	region->gpa.size = size;
	region->is_device = pick(m, 4) == 0;
	/* often one piece with its neighbours, for the host, too */
	region->hva.start = pick(m, 2) ? start + (UINT64_C(5) << 40)
				       : (1 + pick(m, 1 << 20)) * (UINT64_C(16) << 20);
	if (!region->is_device && pick(m, 2))
		assert_ok(gmem_states_new(&region->states, region->gpa.size, GMEM_PAGE_BITS));
	region->read_only = !region->is_device && pick(m, 8) == 0;
	enter(m, r);
	assert_ok(enter_next(m, r));
}

/* Make some pages of a region private, or shared again. */
static void convert(struct model *m, int r)
{
	struct gmem_region *region = &m->regions[r];
	uint64_t pages = region->gpa.size / PAGE, first = pick(m, pages);
	uint64_t count = 1 + pick(m, pick(m, 2) ? pages - first : 1);
	struct gmem_range range = { .start = region->gpa.start + first * PAGE, .size = count * PAGE };
	bool to_private = pick(m, 2);

	gmem_states_set(&region->states, GMEM_PAGE_PRIVATE, first * PAGE, count * PAGE, to_private);
	gmem_table_show_states(m->table, region, range.start, range.size, to_private);
	for (size_t i = 0; i < MODEL_PAGES; i++)
		if (has(&range, gpa_of(i)))
			m->is_private[i] = to_private;
}

static void random_step(struct model *m)
{
	int r = (int)pick(m, MAX_REGIONS);

	if (!m->used[r]) {
		try_to_add(m, r);
	} else if (m->regions[r].states.pages && pick(m, 4)) {
		convert(m, r);
	} else {
		strike(m, r);
		assert_ok(remove_next(m, r));
		gmem_states_free(&m->regions[r].states);
	}
}

static void table_agrees_with_a_naive_model(void **state)
{
	struct model m;
	uint32_t seed;
	int i;

	(void)state;
	for (seed = 1; seed <= 6; seed++) {
		page_size = seed % 2 ? 4096 : 65536;
		model_begin(&m, seed);
		for (i = 0; i < 250; i++) {
			random_step(&m);
			check_all(&m);
		}
		model_end(&m);
	}
	page_size = 4096;
}

/* ---- by hand, what chance may miss ---- */

static void set_region(struct model *m, int r, uint64_t start, uint64_t size, uint64_t hva)
{
	memset(&m->regions[r], 0, sizeof(m->regions[r]));
	m->regions[r].gpa.start = start;
	m->regions[r].gpa.size = size;
	m->regions[r].hva.start = hva;
	m->regions[r].is_device = !hva;
	gmem_range_insert(&m->map, &m->regions[r].gpa);
	m->used[r] = true;
	assert_ok(enter_next(m, r));
}

static void remove_region(struct model *m, int r)
{
	gmem_range_remove(&m->map, &m->regions[r].gpa);
	m->used[r] = false;
	assert_ok(remove_next(m, r));
}

static int error_at(const struct model *m, uint64_t gpa)
{
	return gmem_translation_error(gmem_table_translate(m->table, gpa));
}

static void empty_table_has_holes_everywhere(void **state)
{
	struct model m;
	size_t i;

	(void)state;
	model_begin(&m, 1);
	for (i = 0; i < WINDOWS; i++)
		assert_int_equal(error_at(&m, gpa_of(i * WINDOW_PAGES)), -ENOENT);
	assert_int_equal(error_at(&m, UINT64_MAX), -ENOENT);
	model_end(&m);
}

static void regions_may_end_where_addresses_do(void **state)
{
	const uint64_t end = (uint64_t)1 << 52;
	struct model m;

	(void)state;
	model_begin(&m, 1);
	set_region(&m, 0, end - PAGE, PAGE, 0);
	assert_int_equal(error_at(&m, end - 1), -ENXIO);
	assert_int_equal(error_at(&m, end - PAGE - 1), -ENOENT);
	assert_int_equal(error_at(&m, end), -ENOENT);
	assert_int_equal(error_at(&m, UINT64_MAX), -ENOENT);
	remove_region(&m, 0);
	assert_int_equal(error_at(&m, end - 1), -ESTALE);
	assert_int_equal(error_at(&m, end - PAGE - 1), -ENOENT);

	/* one region from one array of GiBs into the next */
	set_region(&m, 1, 16 * TIB - 4 * MIB, 8 * MIB, 7 * MIB);
	assert_int_equal(error_at(&m, 16 * TIB - 1), 0);
	assert_int_equal(error_at(&m, 16 * TIB), 0);
	assert_int_equal(gmem_table_translate(m.table, 16 * TIB).code,
			 gmem_table_translate(m.table, 16 * TIB - 1).code);
	assert_int_equal(error_at(&m, 16 * TIB + 4 * MIB), -ENOENT);
	assert_int_equal(error_at(&m, end - 1), -ESTALE);
	model_end(&m);
}

static void whole_entries_need_no_granule(void **state)
{
	struct model m;
	uint64_t i;

	(void)state;
	model_begin(&m, 1);
	set_region(&m, 0, 2 * MIB, 6 * MIB, 32 * MIB);
	for (i = 1; i < 4; i++)
		assert_int_equal(inline_hva(&m, 2 * i * MIB + 5), 30 * MIB + 2 * i * MIB + 5);
	/* two regions in one entry that are one piece for the host are one code */
	set_region(&m, 1, 8 * MIB, MIB, 38 * MIB);
	set_region(&m, 2, 9 * MIB, MIB, 39 * MIB);
	assert_int_equal(inline_hva(&m, 9 * MIB), 39 * MIB);
	set_region(&m, 3, 10 * MIB, MIB, 0);
	set_region(&m, 4, 11 * MIB, MIB, 0);
	assert_int_equal(gmem_table_translate(m.table, 10 * MIB).last, 12 * MIB - 1);
	assert_int_equal(error_at(&m, 11 * MIB), -ENXIO);
	model_end(&m);
}

/* Does the inline part answer for @size bytes? */
static bool is_inline(const struct model *m, uint64_t gpa, uint64_t size)
{
	void *hva;

	return gmem_table_hva(m->table, gpa, size, &hva);
}

static void inline_answers_end_with_their_entry(void **state)
{
	struct model m;

	(void)state;
	model_begin(&m, 1);
	/* two GiB, and then 64 KiB of them gone */
	set_region(&m, 0, GIB, 2 * GIB, 8 * GIB);
	assert_true(is_inline(&m, GIB, GIB));
	assert_false(is_inline(&m, GIB, GIB + 1));
	assert_false(is_inline(&m, GIB + 5, GIB - 4));
	assert_ok(next_table(&m, NULL, GIB + 2 * MIB, 64 * 1024));
	assert_int_equal(error_at(&m, GIB + 2 * MIB + 64 * 1024 - 1), -ESTALE);
	assert_true(is_inline(&m, GIB + 2 * MIB + 64 * 1024, 64 * 1024));
	assert_false(is_inline(&m, GIB + 2 * MIB + 64 * 1024, 64 * 1024 + 1));
	assert_true(is_inline(&m, GIB, 2 * MIB));
	assert_false(is_inline(&m, GIB, 2 * MIB + 1));
	assert_true(is_inline(&m, 2 * GIB, GIB));
	assert_false(is_inline(&m, 2 * GIB, 0));

	/* pages in a slice are found by a call, all others in their 2 MiB inline */
	set_region(&m, 1, 4 * GIB, MIB + PAGE, 32 * GIB);
	assert_int_equal(inline_hva(&m, 4 * GIB + MIB - 1), 32 * GIB + MIB - 1);
	assert_int_equal(inline_hva(&m, 4 * GIB + MIB), 0);
	assert_int_equal(error_at(&m, 4 * GIB + MIB), 0);
	assert_int_equal(error_at(&m, 4 * GIB + MIB + PAGE), -ENOENT);
	model_end(&m);
}

/* Memory far up makes a table no longer than what is low does. */
static void tables_reach_as_far_as_regions(void **state)
{
	struct gmem_range low = { .start = 3 * GIB, .size = 2 * GIB };
	struct gmem_range across = { .start = 4 * TIB - GIB, .size = 2 * GIB };
	struct gmem_range high = { .start = 56 * TIB, .size = GIB };
	struct gmem_range_map map = { 0 };

	(void)state;
	assert_int_equal(gmem_table_reach_over(&map).gibs, 0);
	gmem_range_insert(&map, &high);
	assert_int_equal(gmem_table_reach_over(&map).gibs, 0);
	assert_int_equal(gmem_table_reach_over(&map).tops, 113);
	gmem_range_insert(&map, &low);
	assert_int_equal(gmem_table_reach_over(&map).gibs, 5);
	assert_int_equal(gmem_table_reach_over(&map).tops, 113);
	gmem_range_remove(&map, &high);
	assert_int_equal(gmem_table_reach_over(&map).tops, 0);
	gmem_range_insert(&map, &across);
	assert_int_equal(gmem_table_reach_over(&map).gibs, 4096);
	assert_int_equal(gmem_table_reach_over(&map).tops, 9);
}

static void removed_is_remembered_until_something_comes(void **state)
{
	struct model m;

	(void)state;
	model_begin(&m, 1);
	set_region(&m, 0, 5 * GIB, GIB + PAGE, 64 * GIB);
	remove_region(&m, 0);
	assert_int_equal(error_at(&m, 5 * GIB), -ESTALE);
	assert_int_equal(error_at(&m, 6 * GIB + PAGE - 1), -ESTALE);
	assert_int_equal(error_at(&m, 6 * GIB + PAGE), -ENOENT);
	assert_int_equal(error_at(&m, 5 * GIB - 1), -ENOENT);

	set_region(&m, 1, 5 * GIB + PAGE, PAGE, 64 * GIB);
	assert_int_equal(error_at(&m, 5 * GIB), -ESTALE);
	assert_int_equal(error_at(&m, 5 * GIB + PAGE), 0);
	assert_int_equal(error_at(&m, 5 * GIB + 2 * PAGE), -ESTALE);
	model_end(&m);
}

/* Bytes of the heap that are in use; a sanitizer's allocator does not count them. */
static uint64_t in_use(void)
{
	return mallinfo2().uordblks;
}

static void add_and_remove(struct model *m, uint64_t gpa)
{
	m->regions[0].gpa = (struct gmem_range){ .start = gpa, .size = PAGE };
	m->regions[0].hva.start = GIB;
	assert_ok(enter_next(m, 0));
	assert_int_equal(error_at(m, gpa), 0);
	assert_ok(remove_next(m, 0));
}

/* One page each in many GiB, in many entries, and as many as there are in one entry */
static void what_is_remembered_is_bounded(void **state)
{
	const struct { uint64_t from, step, count, bytes; } cases[] = {
		{ 0, GIB, 4096, 4 * MIB },
		{ 0, (uint64_t)1 << 39, 4096, 4 * MIB },
		{ 3 * GIB, 2 * MIB + 2 * PAGE, 20000, 12 * MIB },
		{ 7 * GIB, 2 * PAGE, 40000, 2 * MIB },
	};
	struct model m;
	uint64_t before, last;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		model_begin(&m, 1);
		m.used[0] = true;
		before = in_use();
		for (uint64_t n = 0; n < cases[i].count; n++)
			add_and_remove(&m, cases[i].from + n * cases[i].step);
		assert_true(in_use() - before < cases[i].bytes);
		last = cases[i].from + (cases[i].count - 1) * cases[i].step;
		assert_true(error_at(&m, last) == -ESTALE || error_at(&m, last) == -ENOENT);
		/* what was removed first is still known */
		assert_int_equal(error_at(&m, cases[i].from), -ESTALE);

		/* and memory that comes there is found again */
		m.regions[0].gpa.start = last;
		assert_ok(enter_next(&m, 0));
		assert_int_equal(error_at(&m, last), 0);
		model_end(&m);
	}
}

static void granule_takes_as_many_pieces_as_pages(void **state)
{
	static struct gmem_region regions[512];
	struct gmem_table *table, *next;
	uint64_t i;

	(void)state;
	assert_ok(new_table(NULL, 0, &table));
	for (i = 0; i < 512; i++) {
		regions[i].gpa.start = 4 * MIB + i * PAGE;
		regions[i].gpa.size = PAGE;
		regions[i].hva.start = GIB + (512 - i) * 2 * PAGE;
		assert_ok(new_table(table, 4 * MIB + i * PAGE, &next));
		assert_ok(gmem_table_enter(next, table, &regions[i], regions[i].gpa.start,
					   regions[i].hva.start));
		gmem_table_free(table, next);
		table = next;
	}
	for (i = 0; i < 512; i++) {
		struct gmem_translation piece = gmem_table_translate(table, 4 * MIB + i * PAGE + 9);

		assert_int_equal(4 * MIB + i * PAGE + 9 + piece.code - 1, regions[i].hva.start + 9);
		assert_int_equal(piece.last, 4 * MIB + (i + 1) * PAGE - 1);
	}
	gmem_table_free(table, NULL);
}

/* ---- memory ---- */

/* A reader of the old table sees the old layout, whatever has become of the new one. */
static void old_table_stays_whole_beside_the_new_one(void **state)
{
	struct gmem_table *old, *next;
	struct model m;

	(void)state;
	model_begin(&m, 1);
	set_region(&m, 0, 0, 3 * PAGE, 64 * MIB);
	set_region(&m, 1, 4 * MIB, 4 * MIB, 80 * MIB);
	set_region(&m, 2, 17 * TIB, PAGE, 96 * MIB);
	old = m.table;

	/* all three go and one comes, in one table, one range twice */
	gmem_range_remove(&m.map, &m.regions[0].gpa);
	gmem_range_remove(&m.map, &m.regions[1].gpa);
	gmem_range_remove(&m.map, &m.regions[2].gpa);
	m.regions[3].gpa.start = PAGE;
	m.regions[3].gpa.size = 5 * MIB;
	m.regions[3].hva.start = 128 * MIB + PAGE;
	gmem_range_insert(&m.map, &m.regions[3].gpa);
	assert_ok(new_table(old, 6 * MIB, &next));
	assert_ok(gmem_table_remove(next, old, 0, 3 * PAGE));
	assert_ok(gmem_table_remove(next, old, 4 * MIB, 4 * MIB));
	assert_ok(gmem_table_remove(next, old, 17 * TIB, PAGE));
	assert_ok(gmem_table_remove(next, old, 17 * TIB, PAGE));
	assert_ok(gmem_table_enter(next, old, &m.regions[3], PAGE, 128 * MIB + PAGE));
	assert_ok(gmem_table_enter(next, old, &m.regions[3], PAGE, 128 * MIB + PAGE));

	assert_int_equal(gmem_table_translate(old, PAGE).code, 64 * MIB + 1);
	assert_int_equal(gmem_table_translate(old, 6 * MIB).code, 76 * MIB + 1);
	assert_int_equal(gmem_translation_error(gmem_table_translate(old, 3 * PAGE)), -ENOENT);
	assert_int_equal(gmem_translation_error(gmem_table_translate(old, 17 * TIB)), 0);
	assert_int_equal(gmem_translation_error(gmem_table_translate(next, 0)), -ESTALE);
	assert_int_equal(gmem_table_translate(next, PAGE).code, 128 * MIB + 1);
	assert_int_equal(gmem_table_translate(next, 5 * MIB).code, 128 * MIB + 1);
	assert_int_equal(gmem_translation_error(gmem_table_translate(next, 6 * MIB)), -ESTALE);
	assert_int_equal(gmem_translation_error(gmem_table_translate(next, 17 * TIB)), -ESTALE);
	gmem_table_free(old, next);
	assert_int_equal(gmem_table_translate(next, PAGE).code, 128 * MIB + 1);
	m.table = next;
	model_end(&m);
}

#define RECENT 16

/* Moves a region to @places[RECENT] in one table; the old one says of places what it said before. */
static void move_beside(struct model *m, int r, const uint64_t *places)
{
	struct gmem_region *region = &m->regions[r];
	uint64_t codes[RECENT + 1];
	struct gmem_table *next;

	for (size_t i = 0; i <= RECENT; i++)
		codes[i] = gmem_table_translate(m->table, places[i]).code;
	assert_ok(new_table(m->table, places[RECENT], &next));
	assert_ok(gmem_table_remove(next, m->table, region->gpa.start, PAGE));
	assert_ok(gmem_table_enter(next, m->table, region, places[RECENT], region->hva.start));
	for (size_t i = 0; i <= RECENT; i++)
		assert_int_equal(gmem_table_translate(m->table, places[i]).code, codes[i]);
	gmem_table_free(m->table, next);
	m->table = next;
	region->gpa.start = places[RECENT];
	assert_int_equal(error_at(m, places[RECENT]), 0);
}

/* An idle array beyond the bound leads to arrays that the old table has, too. */
static void old_table_keeps_arrays_beyond_the_bound(void **state)
{
	/* Two pages in one entry, each of which needs an array of its own below it */
	const struct { uint64_t step, apart; } cases[] = {
		{ TIB / 2, GIB }, { GIB, 64 * MIB }, { 2 * MIB, 64 * 1024 }, { 64 * 1024, 2 * PAGE },
	};
	static uint64_t places[2 * 1200];
	struct model m;

	(void)state;
	for (size_t c = 0; c < ARRAY_SIZE(cases); c++) {
		for (uint64_t i = 0; i < ARRAY_SIZE(places); i++)
			places[i] = i / 2 * cases[c].step + i % 2 * cases[c].apart;
		model_begin(&m, 1);
		set_region(&m, 0, places[0], PAGE, GIB);
		set_region(&m, 1, places[1], PAGE, 2 * GIB);
		for (size_t i = RECENT; i < ARRAY_SIZE(places); i++)
			move_beside(&m, i % 2, &places[i - RECENT]);
		model_end(&m);
	}
}

/* Add and remove at a place with granules, and refuse each allocation in turn. */
static bool refuse_allocation(unsigned n)
{
	struct model m;
	bool struck;
	int i, err;

	model_begin(&m, 7);
	for (i = 0; i < 60; i++)
		random_step(&m);
	for (i = 0; i < MAX_REGIONS; i++) {
		if (m.used[i])
			strike(&m, i);
		gmem_states_free(&m.regions[i].states);
		memset(&m.regions[i], 0, sizeof(m.regions[i]));
	}
	m.regions[0].gpa.start = GIB - PAGE;
	m.regions[0].gpa.size = 4 * MIB;
	m.regions[0].hva.start = GIB - PAGE;
	m.regions[1].gpa.start = 16 * TIB - PAGE;
	m.regions[1].gpa.size = 2 * PAGE;
	m.regions[1].hva.start = GIB;

	unit_fail_alloc(n);
	err = enter_next(&m, 0);
	if (!err)
		err = enter_next(&m, 1);
	struck = unit_alloc_struck();
	assert_int_equal(err, struck ? -ENOMEM : 0);

	/* a failure leaves the old table as it was */
	if (err)
		assert_int_equal(error_at(&m, 21 * TIB + 5), -ENOENT);
	assert_ok(enter_next(&m, 0));
	assert_ok(enter_next(&m, 1));
	assert_int_equal(error_at(&m, GIB - PAGE), 0);
	assert_int_equal(error_at(&m, 16 * TIB), 0);
	model_end(&m);
	return struck;
}

/* ---- states ---- */

static void entries_tell_whether_bits_must_be_looked_at(void **state)
{
	struct gmem_region *region;
	struct model m;

	(void)state;
	model_begin(&m, 1);
	region = &m.regions[0];
	region->gpa = (struct gmem_range){ .start = 2 * MIB + PAGE, .size = 8 * MIB };
	assert_ok(gmem_states_new(&region->states, region->gpa.size, GMEM_PAGE_BITS));
	region->hva.start = GIB + PAGE;
	m.used[0] = true;
	assert_ok(enter_next(&m, 0));
	assert_int_equal(inline_hva(&m, 4 * MIB), GIB + 2 * MIB);
	assert_int_equal(inline_hva(&m, 2 * MIB + PAGE), 0);	/* a hole shares the entry */

	gmem_states_set(&region->states, GMEM_PAGE_PRIVATE, 2 * MIB + PAGE, PAGE, true);
	gmem_table_show_states(m.table, region, 4 * MIB + 2 * PAGE, PAGE, false);
	assert_int_equal(inline_hva(&m, 4 * MIB), 0);
	assert_int_equal(error_at(&m, 4 * MIB + 2 * PAGE), -EACCES);
	assert_int_equal(gmem_table_translate(m.table, 4 * MIB).last, 4 * MIB + 2 * PAGE - 1);
	assert_int_equal(gmem_table_translate(m.table, 4 * MIB + 3 * PAGE).last, 6 * MIB - 1);
	assert_int_equal(inline_hva(&m, 6 * MIB), GIB + 4 * MIB);

	gmem_states_set(&region->states, GMEM_PAGE_PRIVATE, 2 * MIB + PAGE, PAGE, false);
	gmem_table_show_states(m.table, region, 4 * MIB + 2 * PAGE, PAGE, false);
	assert_int_equal(inline_hva(&m, 4 * MIB), GIB + 2 * MIB);
	model_end(&m);
}

/* In 2 MiB that regions share, too, memory is inline as long as no page there is private. */
static void slices_tell_whether_bits_must_be_looked_at(void **state)
{
	const uint64_t slice = 64 * 1024;
	struct gmem_region *region;
	struct model m;

	(void)state;
	model_begin(&m, 1);
	set_region(&m, 1, 2 * MIB + 4 * slice, slice, 8 * GIB);
	region = &m.regions[0];
	region->gpa = (struct gmem_range){ .start = 2 * MIB + slice, .size = 3 * slice };
	region->hva.start = GIB;
	assert_ok(gmem_states_new(&region->states, region->gpa.size, GMEM_PAGE_BITS));
	m.used[0] = true;
	assert_ok(enter_next(&m, 0));
	for (uint64_t n = 0; n < 3; n++)
		assert_int_equal(inline_hva(&m, 2 * MIB + (1 + n) * slice), GIB + n * slice);

	gmem_states_set(&region->states, GMEM_PAGE_PRIVATE, slice + PAGE, slice, true);
	gmem_table_show_states(m.table, region, 2 * MIB + 2 * slice + PAGE, slice, true);
	assert_int_equal(inline_hva(&m, 2 * MIB + slice), GIB);
	assert_int_equal(inline_hva(&m, 2 * MIB + 2 * slice), 0);
	assert_int_equal(inline_hva(&m, 2 * MIB + 3 * slice), 0);
	assert_int_equal(inline_hva(&m, 2 * MIB + 4 * slice), 8 * GIB);
	assert_int_equal(error_at(&m, 2 * MIB + 2 * slice), 0);
	assert_int_equal(error_at(&m, 2 * MIB + 2 * slice + PAGE), -EACCES);
	assert_int_equal(error_at(&m, 2 * MIB + 3 * slice), -EACCES);
	assert_int_equal(error_at(&m, 2 * MIB + 3 * slice + PAGE), 0);

	gmem_states_set(&region->states, GMEM_PAGE_PRIVATE, slice + PAGE, slice, false);
	gmem_table_show_states(m.table, region, 2 * MIB + 2 * slice + PAGE, slice, false);
	for (uint64_t n = 0; n < 3; n++)
		assert_int_equal(inline_hva(&m, 2 * MIB + (1 + n) * slice), GIB + n * slice);
	model_end(&m);
}

/* A table that is being made for a move does not disturb readers of the present one. */
static void moved_region_has_a_window_for_each_table(void **state)
{
	struct gmem_region *region;
	struct gmem_table *next;
	struct model m;

	(void)state;
	model_begin(&m, 1);
	region = &m.regions[0];
	region->gpa = (struct gmem_range){ .start = 2 * MIB, .size = 2 * MIB };
	assert_ok(gmem_states_new(&region->states, region->gpa.size, GMEM_PAGE_BITS));
	region->hva.start = GIB;
	m.used[0] = true;
	assert_ok(enter_next(&m, 0));
	gmem_states_set(&region->states, GMEM_PAGE_PRIVATE, PAGE, PAGE, true);
	gmem_table_show_states(m.table, region, 2 * MIB + PAGE, PAGE, false);

	for (uint64_t gpa = 4 * MIB; gpa <= 8 * MIB; gpa += 2 * MIB) {
		uint64_t before = region->gpa.start;

		assert_ok(new_table(m.table, gpa, &next));
		assert_ok(gmem_table_remove(next, m.table, before, 2 * MIB));
		assert_ok(gmem_table_enter(next, m.table, region, gpa, GIB));
		assert_int_equal(error_at(&m, before + PAGE), -EACCES);
		assert_ptr_equal(gmem_translation_hva(gmem_table_translate(m.table, before), before),
				 (void *)(uintptr_t)GIB);
		assert_ptr_equal(gmem_translation_hva(gmem_table_translate(next, gpa), gpa),
				 (void *)(uintptr_t)GIB);
		gmem_table_free(m.table, next);
		m.table = next;
		region->gpa.start = gpa;
		gmem_table_settle(region);
		assert_int_equal(error_at(&m, before + PAGE), -ESTALE);
		assert_int_equal(error_at(&m, gpa + PAGE), -EACCES);
	}
	model_end(&m);
}

static void every_allocation_may_fail_and_nothing_leaks(void **state)
{
	unsigned n;

	(void)state;
	for (n = 1; refuse_allocation(n); n++)
		;
	assert_true(n > 5);
}

static void freeing_no_table_is_harmless(void **state)
{
	(void)state;
	gmem_table_free(NULL, NULL);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(table_agrees_with_a_naive_model),
	cmocka_unit_test(empty_table_has_holes_everywhere),
	cmocka_unit_test(regions_may_end_where_addresses_do),
	cmocka_unit_test(whole_entries_need_no_granule),
	cmocka_unit_test(inline_answers_end_with_their_entry),
	cmocka_unit_test(tables_reach_as_far_as_regions),
	cmocka_unit_test(removed_is_remembered_until_something_comes),
	cmocka_unit_test(what_is_remembered_is_bounded),
	cmocka_unit_test(granule_takes_as_many_pieces_as_pages),
	cmocka_unit_test(old_table_stays_whole_beside_the_new_one),
	cmocka_unit_test(old_table_keeps_arrays_beyond_the_bound),
	cmocka_unit_test(every_allocation_may_fail_and_nothing_leaks),
	cmocka_unit_test(entries_tell_whether_bits_must_be_looked_at),
	cmocka_unit_test(slices_tell_whether_bits_must_be_looked_at),
	cmocka_unit_test(moved_region_has_a_window_for_each_table),
	cmocka_unit_test(freeing_no_table_is_harmless),
};

UNIT_MAIN(tests)
