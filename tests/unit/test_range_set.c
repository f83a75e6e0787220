/* SPDX-License-Identifier: MIT */
/* range_set: against a bitmap, and at the ends of the address space */
#include <stdlib.h>

#include "base/range_set.h"
#include "unit.h"

static void set_is_what_a_bitmap_says(void **state)
{
	struct gmem_range_map set = { NULL };
	struct gmem_range *spare = NULL;
	bool model[64] = { false };
	struct gmem_part part;
	uint32_t seed = 1;
	uint64_t i, at;
	int round;

	(void)state;
	for (round = 0; round < 4000; round++) {
		uint64_t start, size;
		bool add;

		seed = seed * 1664525 + 1013904223;
		start = seed >> 8 & 63;
		size = (seed >> 14 & 15) + 1;
		size = size > 64 - start ? 64 - start : size;
		add = seed >> 20 & 1;
		assert_ok(gmem_set_spare(&spare));
		if (add)
			gmem_set_add(&set, start, size, &spare);
		else
			gmem_set_remove(&set, start, size, &spare);
		for (i = start; i < start + size; i++)
			model[i] = add;

		for (at = 0; at < 64; at = part.last + 1) {
			bool in = model[at];

			assert_true(gmem_set_next(&set, in, at, 63, &part));
			assert_int_equal(part.start, at);
			for (i = at; i <= part.last; i++)
				assert_int_equal(model[i], in);
			assert_true(part.last == 63 || model[part.last + 1] != in);
		}
	}
	gmem_set_clear(&set);
	assert_null(set.root);
	free(spare);
}

static void set_reaches_both_ends_of_the_address_space(void **state)
{
	struct gmem_range_map set = { NULL };
	struct gmem_range *spare = NULL;
	struct gmem_part part;

	(void)state;
	assert_ok(gmem_set_spare(&spare));
	gmem_set_add(&set, UINT64_MAX - 9, 10, &spare);
	assert_ok(gmem_set_spare(&spare));
	gmem_set_add(&set, 0, 10, &spare);
	assert_true(gmem_set_next(&set, true, 5, UINT64_MAX, &part));
	assert_int_equal(part.start, 5);
	assert_int_equal(part.last, 9);
	assert_true(gmem_set_next(&set, false, 5, UINT64_MAX, &part));
	assert_int_equal(part.start, 10);
	assert_int_equal(part.last, UINT64_MAX - 10);
	assert_false(gmem_set_next(&set, false, UINT64_MAX - 9, UINT64_MAX, &part));
	assert_ok(gmem_set_spare(&spare));
	gmem_set_add(&set, 8, UINT64_MAX - 10, &spare);
	assert_ptr_equal(set.root->left, NULL);
	assert_ptr_equal(set.root->right, NULL);
	assert_ok(gmem_set_spare(&spare));
	gmem_set_remove(&set, 0, UINT64_MAX, &spare);
	assert_false(gmem_set_next(&set, true, 0, UINT64_MAX - 1, &part));
	assert_true(gmem_set_next(&set, true, 0, UINT64_MAX, &part));
	assert_int_equal(part.start, UINT64_MAX);
	gmem_set_clear(&set);
	free(spare);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(set_is_what_a_bitmap_says),
	cmocka_unit_test(set_reaches_both_ends_of_the_address_space),
};

UNIT_MAIN(tests)
