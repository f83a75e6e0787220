/* SPDX-License-Identifier: MIT */
/* page_states, and base/bits below it: against a model that remembers every page */
#include <string.h>

#include "base/bits.h"
#include "region/page_states.h"
#include "unit.h"

#define PAGE	((uint64_t)4096)
#define ALL_PAGES	200	/* three words and a part */

struct model {
	struct gmem_states states;
	bool bits[GMEM_PAGE_BITS][ALL_PAGES];
	uint32_t seed;
};

static uint64_t pick(struct model *m, uint64_t below)
{
	m->seed = m->seed * 1664525 + 1013904223;
	return (m->seed >> 8) % below;
}

static void begin(struct model *m, uint32_t seed)
{
	fake_set_page_size(PAGE);
	memset(m, 0, sizeof(*m));
	m->seed = seed;
	assert_ok(gmem_states_new(&m->states, ALL_PAGES * PAGE, GMEM_PAGE_BITS));
}

static uint64_t model_count(const bool *bits, uint64_t first, uint64_t pages)
{
	uint64_t count = 0;

	for (uint64_t i = first; i < first + pages; i++)
		count += bits[i];
	return count * PAGE;
}

/* @states begin with page @base of the model. */
static void check_part(const struct model *m, const struct gmem_states *states, uint64_t base)
{
	uint64_t pages = states->size / PAGE;

	for (enum gmem_page_bit bit = 0; bit < GMEM_PAGE_BITS; bit++) {
		const bool *bits = m->bits[bit] + base;

		assert_int_equal(gmem_states_total(states, bit), model_count(bits, 0, pages));
		for (uint64_t first = 0; first < pages; first += 37)
			assert_int_equal(gmem_states_count(states, bit, first * PAGE, (pages - first) * PAGE),
					 model_count(bits, first, pages - first));
		for (int value = 0; value < 2; value++) {
			struct gmem_states_walk at = GMEM_STATES_WALK(states, bit, value, 0, states->size);
			uint64_t page = 0;

			while (gmem_states_walk(&at)) {
				for (; page < at.offset / PAGE; page++)
					assert_int_not_equal(bits[page], value);
				for (; page < (at.offset + at.size) / PAGE; page++)
					assert_int_equal(bits[page], value);
			}
			for (; page < pages; page++)
				assert_int_not_equal(bits[page], value);
		}
	}
}

static void set_somewhere(struct model *m, struct gmem_states *states, uint64_t base)
{
	enum gmem_page_bit bit = (enum gmem_page_bit)pick(m, GMEM_PAGE_BITS);
	uint64_t pages = states->size / PAGE, first = pick(m, pages), count = pick(m, pages - first + 1);
	bool value = pick(m, 2), *bits = m->bits[bit] + base + first;
	uint64_t expected = 0;

	for (uint64_t i = 0; i < count; i++) {
		expected += bits[i] != value;
		bits[i] = value;
	}
	assert_int_equal(gmem_states_set(states, bit, first * PAGE, count * PAGE, value),
			 expected * PAGE);
}

static void states_agree_with_a_naive_model(void **state)
{
	struct model m;

	(void)state;
	for (uint32_t seed = 1; seed <= 20; seed++) {
		begin(&m, seed);
		for (int i = 0; i < 60; i++) {
			set_somewhere(&m, &m.states, 0);
			check_part(&m, &m.states, 0);
		}
		gmem_states_free(&m.states);
	}
}

/* Parts of a split region use the same bits, and either may be the last. */
static void split_parts_are_each_their_own(void **state)
{
	struct gmem_states upper;
	struct model m;

	(void)state;
	for (uint32_t seed = 1; seed <= 20; seed++) {
		uint64_t at;

		begin(&m, seed);
		for (int i = 0; i < 9; i++)
			set_somewhere(&m, &m.states, 0);
		at = 1 + pick(&m, ALL_PAGES - 1);
		gmem_states_prepare_split(&m.states, at * PAGE, &upper);
		gmem_states_commit_split(&m.states, &upper);
		for (int i = 0; i < 30; i++) {
			check_part(&m, &m.states, 0);
			check_part(&m, &upper, at);
			if (pick(&m, 2))
				set_somewhere(&m, &upper, at);
			else
				set_somewhere(&m, &m.states, 0);
		}
		if (seed % 2) {
			gmem_states_free(&upper);
			check_part(&m, &m.states, 0);
			gmem_states_free(&m.states);
		} else {
			gmem_states_free(&m.states);
			check_part(&m, &upper, at);
			gmem_states_free(&upper);
		}
	}
}

static void check_found(const struct model *m, bool is_private, uint64_t offset, uint64_t last, uint64_t start,
			uint64_t end)
{
	struct gmem_part part;

	assert_true(gmem_states_find(&m->states, GMEM_PAGE_PRIVATE, is_private, offset, last, &part));
	assert_int_equal(part.start, start);
	assert_int_equal(part.last, end);
}

/* As the target of gmem_vm_load() may */
static void parts_of_a_range_that_begins_inside_a_page_are_whole_pages(void **state)
{
	struct gmem_states upper;
	struct model m;

	(void)state;
	begin(&m, 1);
	gmem_states_set(&m.states, GMEM_PAGE_PRIVATE, 2 * PAGE, 2 * PAGE, true);
	check_found(&m, true, 100, 3 * PAGE + 99, 2 * PAGE, 3 * PAGE + 99);
	check_found(&m, true, 2 * PAGE + 7, 8 * PAGE - 1, 2 * PAGE + 7, 4 * PAGE - 1);
	check_found(&m, false, PAGE + 5, 5 * PAGE - 1, PAGE + 5, 2 * PAGE - 1);
	check_found(&m, false, 2 * PAGE + 5, 5 * PAGE + 4, 4 * PAGE, 5 * PAGE + 4);

	gmem_states_prepare_split(&m.states, PAGE, &upper);
	gmem_states_commit_split(&m.states, &upper);
	gmem_states_free(&m.states);
	m.states = upper;
	check_found(&m, true, 100, 2 * PAGE + 99, PAGE, 2 * PAGE + 99);
	check_found(&m, false, 100, 8 * PAGE - 1, 100, PAGE - 1);
	gmem_states_free(&m.states);
}

static void states_of_no_bits_are_shared_and_owe_nothing(void **state)
{
	struct gmem_states none = { .pages = NULL }, upper;
	struct gmem_part part;

	(void)state;
	fake_set_page_size(PAGE);
	assert_false(gmem_states_find(&none, GMEM_PAGE_PRIVATE, true, 0, 8 * PAGE - 1, &part));
	assert_true(gmem_states_find(&none, GMEM_PAGE_PRIVATE, false, PAGE, 8 * PAGE - 1, &part));
	assert_int_equal(part.start, PAGE);
	assert_int_equal(part.last, 8 * PAGE - 1);
	assert_int_equal(gmem_states_set(&none, GMEM_PAGE_PENDING, 0, PAGE, true), 0);
	assert_int_equal(gmem_states_count(&none, GMEM_PAGE_PENDING, 0, PAGE), 0);
	gmem_states_prepare_split(&none, PAGE, &upper);
	gmem_states_commit_split(&none, &upper);
	gmem_states_free(&upper);
	gmem_states_free(&none);
}

static void what_a_file_owed_ends_with_the_file(void **state)
{
	struct model m;

	(void)state;
	begin(&m, 1);
	gmem_states_set(&m.states, GMEM_PAGE_PENDING, 0, 100 * PAGE, true);
	gmem_states_set(&m.states, GMEM_PAGE_PRIVATE, 40 * PAGE, 100 * PAGE, true);
	gmem_states_drop_unused(&m.states);
	assert_int_equal(gmem_states_total(&m.states, GMEM_PAGE_PENDING), 60 * PAGE);
	assert_int_equal(gmem_states_count(&m.states, GMEM_PAGE_PENDING, 40 * PAGE, 60 * PAGE), 60 * PAGE);
	gmem_states_free(&m.states);
}

static void words_are_as_many_as_bits_need(void **state)
{
	(void)state;
	assert_int_equal(gmem_bits_words(1), 1);
	assert_int_equal(gmem_bits_words(64), 1);
	assert_int_equal(gmem_bits_words(65), 2);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(states_agree_with_a_naive_model),
	cmocka_unit_test(split_parts_are_each_their_own),
	cmocka_unit_test(parts_of_a_range_that_begins_inside_a_page_are_whole_pages),
	cmocka_unit_test(states_of_no_bits_are_shared_and_owe_nothing),
	cmocka_unit_test(what_a_file_owed_ends_with_the_file),
	cmocka_unit_test(words_are_as_many_as_bits_need),
};

UNIT_MAIN(tests)
