/* SPDX-License-Identifier: MIT */
/* backing: the names of the ways of backing, and traits that fit each other */
#include "base/backing.h"
#include "unit.h"

static void backings_are_known_by_name_and_number(void **state)
{
	static const char *const names[] = {
		[GMEM_BACKING_HOST] = "host",
		[GMEM_BACKING_MAPPED] = "mapped",
		[GMEM_BACKING_SHARED] = "shared",
		[GMEM_BACKING_PRIVATE] = "private",
		[GMEM_BACKING_INPLACE] = "in-place",
	};
	uint32_t i;

	(void)state;
	for (i = 1; i < ARRAY_SIZE(names); i++) {
		assert_string_equal(gmem_backing_name(i), names[i]);
		assert_int_equal(gmem_backing_from_name(names[i]), i);
	}
	assert_null(gmem_backing_name(GMEM_BACKING_NONE));
	assert_null(gmem_backing_name(6));
	assert_null(gmem_backing_name(UINT32_MAX));
	assert_int_equal(gmem_backing_from_name(""), GMEM_BACKING_NONE);
	assert_int_equal(gmem_backing_from_name("Host"), GMEM_BACKING_NONE);
	assert_int_equal(gmem_backing_from_name("hos"), GMEM_BACKING_NONE);
	assert_int_equal(gmem_backing_from_name("inplace"), GMEM_BACKING_NONE);
	assert_int_equal(gmem_backing_from_name("none"), GMEM_BACKING_NONE);
	assert_int_equal(gmem_backing_from_name(NULL), GMEM_BACKING_NONE);
}

static void traits_have_the_public_names(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < GMEM_BACKINGS + 2; i++)
		assert_ptr_equal(gmem_backing_traits(i)->name, gmem_backing_name(i));
	assert_ptr_equal(gmem_backing_traits(GMEM_BACKINGS), gmem_backing_traits(GMEM_BACKING_NONE));
	assert_ptr_equal(gmem_backing_traits(UINT32_MAX), gmem_backing_traits(GMEM_BACKING_NONE));
}

/* Traits imply each other, also those of ways of backing that are yet to come. */
static void traits_fit_each_other(void **state)
{
	(void)state;
	for (uint32_t i = 1; i < GMEM_BACKINGS; i++) {
		const struct gmem_backing_traits *t = gmem_backing_traits(i);

		assert_int_not_equal(t->hva_source, GMEM_HVA_NONE);
		assert_true(t->has_file || !(t->is_bound || t->hva_source == GMEM_HVA_FILE));
		/* Memory that can be private is bound; shared memory beside it is ordinary memory. */
		assert_true(t->is_bound || t->attributes == GMEM_ATTRIBUTES_NONE);
		assert_true(t->attributes != GMEM_ATTRIBUTES_NONE || !t->has_sides);
		assert_true(!t->has_sides || t->hva_source == GMEM_HVA_MEMORY);
		/* KVM refuses both in a memslot that has a guest_memfd. */
		assert_true(t->has_dirty_log == !t->is_bound);
		assert_true(t->has_read_only == !t->is_bound);
	}
}

static void device_has_no_traits(void **state)
{
	static const struct gmem_backing_traits none;
	const struct gmem_backing_traits *device = gmem_backing_traits(GMEM_BACKING_NONE);

	(void)state;
	assert_memory_equal(device, &none, sizeof(none));
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(backings_are_known_by_name_and_number),
	cmocka_unit_test(traits_have_the_public_names),
	cmocka_unit_test(traits_fit_each_other),
	cmocka_unit_test(device_has_no_traits),
};

UNIT_MAIN(tests)
