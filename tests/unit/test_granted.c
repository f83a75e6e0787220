/* SPDX-License-Identifier: MIT */
/* granted: against an array, and in amounts that could not be touched */
#include <errno.h>
#include <stdlib.h>

#include "share/granted.h"
#include "unit.h"

#define ALL_PAGES 200

static void compare(const struct gmem_granted *granted, const bool *model, uint64_t first,
		    uint64_t end)
{
	for (int value = 0; value <= 1; value++) {
		uint64_t wanted = first;

		while (wanted < end && model[wanted] != value)
			wanted++;
		assert_int_equal(gmem_granted_find(granted, value, first, end), wanted);
	}
}

static void granted_is_what_an_array_says(void **state)
{
	bool model[ALL_PAGES] = { false };
	struct gmem_granted granted;
	uint32_t seed = 1;

	(void)state;
	assert_ok(gmem_granted_new(&granted, ALL_PAGES));
	for (int round = 0; round < 20000; round++) {
		uint64_t first, end;
		bool value;

		seed = seed * 1664525 + 1013904223;
		value = seed >> 30 & 1;
		first = (seed >> 8 & 0xff) % ALL_PAGES;
		end = first + 1 + (seed >> 16 & 0xff) % (ALL_PAGES - first);
		if (seed % 8 == 0)
			first = 0, end = ALL_PAGES;
		gmem_granted_set(&granted, first, end, value);
		for (uint64_t i = first; i < end; i++)
			model[i] = value;
		compare(&granted, model, 0, ALL_PAGES);
		compare(&granted, model, first, end);
		compare(&granted, model, end / 2, end);
	}
	gmem_granted_free(&granted);
}

/* 4 TiB of pages: 128 MiB of bits, of which granting and taking back writes none. */
static void memory_in_one_state_takes_no_bits(void **state)
{
	const uint64_t pages = UINT64_C(1) << 30;
	struct gmem_granted granted;

	(void)state;
	if (gmem_granted_new(&granted, pages))
		return;		/* no such address space, as under a sanitizer */
	for (int i = 0; i < 4; i++) {
		bool value = i % 2 == 0;

		gmem_granted_set(&granted, 0, pages, value);
		assert_true(gmem_granted_is_uniform(&granted));
		assert_int_equal(gmem_granted_find(&granted, value, 5, pages), 5);
		assert_int_equal(gmem_granted_find(&granted, !value, 5, pages), pages);
	}
	gmem_granted_set(&granted, pages - 1, pages, true);
	assert_false(gmem_granted_is_uniform(&granted));
	assert_int_equal(gmem_granted_find(&granted, true, pages - 100, pages), pages - 1);
	gmem_granted_set(&granted, pages - 1, pages, false);
	assert_true(gmem_granted_is_uniform(&granted));
	gmem_granted_free(&granted);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(granted_is_what_an_array_says),
	cmocka_unit_test(memory_in_one_state_takes_no_bits),
};

UNIT_MAIN(tests)
