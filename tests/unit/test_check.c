/* SPDX-License-Identifier: MIT */
/* check: argument checks that several modules share */
#include <errno.h>
#include <string.h>

#include "base/check.h"
#include "unit.h"

static int boot(void **state)
{
	(void)state;
	fake_boot("6.18");
	return 0;
}

static void range_accepts_only_whole_pages(void **state)
{
	static const uint64_t pages[] = { 4096, 16384, 65536 };
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(pages); i++) {
		const uint64_t page = pages[i];

		fake_set_page_size(page);
		assert_ok(gmem_check_range("gpa", 0, page));
		assert_ok(gmem_check_range("gpa", 7 * page, 3 * page));
		assert_refused(-EINVAL, "size 0", gmem_check_range("gpa", page, 0));
		assert_refused(-EINVAL, "gpa", gmem_check_range("gpa", 1, page));
		assert_refused(-EINVAL, "gpa", gmem_check_range("gpa", page - 1, page));
		assert_refused(-EINVAL, "gpa", gmem_check_range("gpa", page / 2, page));
		assert_refused(-EINVAL, "size", gmem_check_range("gpa", 0, 1));
		assert_refused(-EINVAL, "size", gmem_check_range("gpa", 0, page / 2));
		assert_refused(-EINVAL, "size", gmem_check_range("gpa", 0, page + 1));
	}
}

static void range_rejects_wraparound(void **state)
{
	const uint64_t top = UINT64_MAX - 4095;

	(void)state;
	assert_ok(gmem_check_range("gpa", top, 4096));
	assert_refused(-EINVAL, "wraps", gmem_check_range("gpa", top, 8192));
	assert_refused(-EINVAL, "wraps", gmem_check_range("gpa", 8192, top));
	assert_refused(-EINVAL, "wraps", gmem_check_range("gpa", (uint64_t)1 << 63,
							  ((uint64_t)1 << 63) + 4096));
}

static void range_ends_inside_its_limit(void **state)
{
	(void)state;
	assert_ok(gmem_check_range_within("offset", 0, 8192, 8192, "the file"));
	assert_ok(gmem_check_range_within("offset", 4096, 4096, 8192, "the file"));
	assert_refused(-EINVAL, "0x2000",
		       gmem_check_range_within("offset", 4096, 8192, 8192, "the file"));
	assert_refused(-EINVAL, "the file",
		       gmem_check_range_within("offset", 8192, 4096, 8192, "the file"));
	assert_refused(-EINVAL, "wraps",
		       gmem_check_range_within("offset", UINT64_MAX - 4095, 8192, 8192,
					       "the file"));
	assert_refused(-EINVAL, "size 0",
		       gmem_check_range_within("offset", 0, 0, 8192, "the file"));
}

static void range_sentence_has_the_numbers(void **state)
{
	(void)state;
	assert_refused(-EINVAL, "0x1234", gmem_check_range("gpa", 0x1234, 4096));
	assert_refused(-EINVAL, "4096", gmem_check_range("gpa", 0x1234, 4096));
	assert_refused(-EINVAL, "0x777", gmem_check_range("gpa", 0x1000, 0x777));
}

static void alignment_is_a_power_of_two_from_the_page(void **state)
{
	static const uint64_t good[] = { 0, 4096, 8192, 1 << 21, (uint64_t)1 << 63 };
	static const uint64_t bad[] = { 1, 2, 2048, 4097, 12288, UINT64_MAX };
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(good); i++)
		assert_ok(gmem_check_alignment(good[i]));
	for (i = 0; i < ARRAY_SIZE(bad); i++)
		assert_refused(-EINVAL, "alignment", gmem_check_alignment(bad[i]));

	fake_set_page_size(65536);
	assert_refused(-EINVAL, "65536", gmem_check_alignment(4096));
	assert_ok(gmem_check_alignment(65536));
}

static void flags_reject_every_unknown_bit(void **state)
{
	unsigned bit;

	(void)state;
	assert_ok(gmem_check_flags("flags", 0, 0));
	assert_ok(gmem_check_flags("flags", 5, 7));
	for (bit = 3; bit < 64; bit++)
		assert_refused(-EINVAL, "flags",
			       gmem_check_flags("flags", (uint64_t)1 << bit | 1, 7));
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test_setup(range_accepts_only_whole_pages, boot),
	cmocka_unit_test_setup(range_rejects_wraparound, boot),
	cmocka_unit_test_setup(range_ends_inside_its_limit, boot),
	cmocka_unit_test_setup(range_sentence_has_the_numbers, boot),
	cmocka_unit_test_setup(alignment_is_a_power_of_two_from_the_page, boot),
	cmocka_unit_test_setup(flags_reject_every_unknown_bit, boot),
};

UNIT_MAIN(tests)
