/* SPDX-License-Identifier: MIT */
/* opts: options structs across versions of the header */
#include <errno.h>
#include <string.h>

#include "base/opts.h"
#include "unit.h"

static int boot(void **state)
{
	(void)state;
	fake_boot("6.18");
	return 0;
}

/* ---- one options struct for all: the import is the same code ---- */

/* struct gmem_map_opts as a later header could have it */
struct newer_map_opts {
	struct gmem_map_opts known;
	uint64_t added[4];
};

static int import(const void *src, struct gmem_map_opts *dst)
{
	return GMEM_COPY_OPTS(gmem_map_opts, dst, (const struct gmem_map_opts *)src, align);
}

static void options_default_to_zero(void **state)
{
	static const struct gmem_map_opts none;
	struct gmem_map_opts opts;

	(void)state;
	memset(&opts, 0xff, sizeof(opts));
	assert_ok(import(NULL, &opts));
	opts.size = 0;
	assert_memory_equal(&opts, &none, sizeof(none));
}

static void options_of_a_newer_header_pass_while_its_fields_are_zero(void **state)
{
	struct newer_map_opts newer = { .known = { .flags = 1, .align = 4096 } };
	struct gmem_map_opts opts;
	size_t i;

	(void)state;
	newer.known.size = sizeof(newer);
	assert_ok(import(&newer, &opts));
	assert_int_equal(opts.flags, 1);
	assert_int_equal(opts.align, 4096);

	for (i = 0; i < sizeof(newer.added); i++) {
		memset(newer.added, 0, sizeof(newer.added));
		((unsigned char *)newer.added)[i] = 1;
		assert_refused(-E2BIG, "gmem_map_opts", import(&newer, &opts));
	}
}

static void options_smaller_than_their_first_version_are_malformed(void **state)
{
	struct gmem_map_opts src = { .flags = 1 }, opts;

	(void)state;
	for (src.size = 0; src.size < sizeof(src); src.size++)
		assert_refused(-EINVAL, "gmem_map_opts", import(&src, &opts));
	assert_ok(import(&src, &opts));
}

/* What fits is copied, and nothing behind it; the caller's size stays. */
static void results_of_any_version_are_filled(void **state)
{
	const struct gmem_stats found = { .size = 1, .bytes_shared = 2, .bytes_external = 3 };
	struct { struct gmem_stats known; uint64_t added; } newer = { .known.size = sizeof(newer), .added = 4 };
	struct gmem_stats older = { .size = offsetof(struct gmem_stats, bytes_external), .bytes_external = 5 };

	(void)state;
	gmem_fill_result(&newer, &found, sizeof(found));
	assert_int_equal(newer.known.size, sizeof(newer));
	assert_int_equal(newer.known.bytes_external, 3);
	assert_int_equal(newer.added, 4);
	gmem_fill_result(&older, &found, sizeof(found));
	assert_int_equal(older.size, offsetof(struct gmem_stats, bytes_external));
	assert_int_equal(older.bytes_shared, 2);
	assert_int_equal(older.bytes_external, 5);
}

static void results_smaller_than_their_first_version_are_malformed(void **state)
{
	struct gmem_stats stats = { 0 };

	(void)state;
	for (; stats.size < sizeof(stats); stats.size++)
		assert_refused(-EINVAL, "gmem_stats", GMEM_CHECK_RESULT(gmem_stats, &stats, bytes_external));
	assert_ok(GMEM_CHECK_RESULT(gmem_stats, &stats, bytes_external));
}

/* Each function that takes an options struct, asked with sizes it cannot take */
static void every_function_checks_the_size_of_its_options(void **state)
{
	struct { struct gmem_caps_opts o; uint64_t tail; } caps = { .tail = 1 };
	struct { struct gmem_request o; uint64_t tail; } request = { .tail = 1 };
	struct { struct gmem_adopt_opts o; uint64_t tail; } adopt = { .tail = 1 };
	struct { struct gmem_map_opts o; uint64_t tail; } map = { .tail = 1 };
	struct { struct gmem_vm_opts o; uint64_t tail; } vm = { .tail = 1 };
	struct { struct gmem_region_opts o; uint64_t tail; } region = { .tail = 1 };
	struct gmem_file *file, *no_file = UNTOUCHED(struct gmem_file);
	struct gmem_caps *no_caps = UNTOUCHED(struct gmem_caps);
	struct gmem_plan *no_plan = UNTOUCHED(struct gmem_plan);
	struct gmem_vm *no_vm = UNTOUCHED(struct gmem_vm);
	struct gmem_region *no_region = UNTOUCHED(struct gmem_region);
	void *no_hva = UNTOUCHED(void);
	struct unit unit;
	size_t i;
	static const struct {
		int err;
		bool newer;
	} cases[] = { { -EINVAL, false }, { -E2BIG, true } };

	(void)state;
	unit_begin_vm(&unit, "6.18");
	file = unit_file(&unit, 1);
	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		const bool newer = cases[i].newer;
		const int err = cases[i].err;

		caps.o.size = newer ? sizeof(caps) : 8;
		request.o.size = newer ? sizeof(request) : 8;
		adopt.o.size = newer ? sizeof(adopt) : 8;
		map.o.size = newer ? sizeof(map) : 8;
		vm.o.size = newer ? sizeof(vm) : 8;
		region.o.size = newer ? sizeof(region) : 8;

		assert_refused(err, "gmem_caps_opts",
			       gmem_caps_new(unit.vm_fd, &caps.o, &no_caps));
		assert_refused(err, "gmem_request",
			       gmem_plan_new(unit.caps, &request.o, &no_plan));
		assert_refused(err, "gmem_adopt_opts",
			       gmem_file_adopt(unit.vm_fd, gmem_file_fd(file), &adopt.o,
					       &no_file));
		assert_refused(err, "gmem_map_opts",
			       gmem_file_map(file, 0, unit.page, &map.o, &no_hva));
		assert_refused(err, "gmem_vm_opts", gmem_vm_new(unit.vm_fd, &vm.o, &no_vm));
		assert_refused(err, "gmem_region_opts",
			       gmem_region_add(unit.vm, 0, unit.page, &region.o, &no_region));
	}
	assert_ptr_equal(no_caps, UNTOUCHED(struct gmem_caps));
	assert_ptr_equal(no_plan, UNTOUCHED(struct gmem_plan));
	assert_ptr_equal(no_file, UNTOUCHED(struct gmem_file));
	assert_ptr_equal(no_hva, UNTOUCHED(void));
	assert_ptr_equal(no_vm, UNTOUCHED(struct gmem_vm));
	assert_ptr_equal(no_region, UNTOUCHED(struct gmem_region));
	gmem_file_free(file);
	unit_end(&unit);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test_setup(options_default_to_zero, boot),
	cmocka_unit_test_setup(options_of_a_newer_header_pass_while_its_fields_are_zero, boot),
	cmocka_unit_test_setup(options_smaller_than_their_first_version_are_malformed, boot),
	cmocka_unit_test_setup(results_of_any_version_are_filled, boot),
	cmocka_unit_test_setup(results_smaller_than_their_first_version_are_malformed, boot),
	cmocka_unit_test_setup(every_function_checks_the_size_of_its_options, boot),
};

UNIT_MAIN(tests)
