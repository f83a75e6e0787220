/* SPDX-License-Identifier: MIT */
/* region_info: regions are listed, found, and have a pointer of the user's */
#include <errno.h>
#include <string.h>

#include "unit.h"

static void regions_are_listed_in_order_of_their_addresses(void **state)
{
	GMEM_OPTS(gmem_region_opts, device, .flags = GMEM_REGION_DEVICE);
	GMEM_OPTS(gmem_region_opts, opts, .file_offset = 0);
	struct gmem_region *high, *low, *hole;
	struct gmem_region_info info[4];
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	assert_int_equal(gmem_vm_regions(unit.vm, NULL, 0), 0);
	opts.file = unit_file(&unit, 16);
	opts.file_offset = PAGES(&unit, 4);
	opts.data = &unit;
	assert_ok(gmem_region_add(unit.vm, PAGES(&unit, 32), PAGES(&unit, 8), &opts, &high));
	low = unit_region_backed(&unit, 2, 3, GMEM_BACKING_HOST);
	assert_ok(gmem_region_add(unit.vm, PAGES(&unit, 16), PAGES(&unit, 1), &device, &hole));

	assert_int_equal(gmem_vm_regions(unit.vm, NULL, 0), 3);
	memset(info, 0x5a, sizeof(info));
	assert_int_equal(gmem_vm_regions(unit.vm, info, 4), 3);

	assert_ptr_equal(info[0].region, low);
	assert_int_equal(info[0].gpa, PAGES(&unit, 2));
	assert_int_equal(info[0].size, PAGES(&unit, 3));
	assert_ptr_equal(info[0].hva, gmem_region_hva(low));
	assert_ptr_equal(info[0].file, NULL);
	assert_int_equal(info[0].gmemfd, -1);
	assert_int_equal(info[0].host_fd, -1);
	assert_int_equal(info[0].slot, gmem_region_slot(low));
	assert_int_equal(info[0].backing, GMEM_BACKING_HOST);
	assert_int_equal(info[0].kind, GMEM_KIND_RAM);
	assert_int_equal(info[0].page_size, unit.page);
	assert_ptr_equal(info[0].data, NULL);

	assert_ptr_equal(info[1].region, hole);
	assert_int_equal(info[1].flags, GMEM_REGION_DEVICE);
	assert_int_equal(info[1].slot, UINT32_MAX);
	assert_ptr_equal(info[1].hva, NULL);
	assert_int_equal(info[1].kind, GMEM_KIND_DEFAULT);

	assert_ptr_equal(info[2].region, high);
	assert_ptr_equal(info[2].file, opts.file);
	assert_int_equal(info[2].gmemfd, gmem_file_fd(opts.file));
	assert_int_equal(info[2].gmemfd_offset, PAGES(&unit, 4));
	assert_int_equal(info[2].backing, GMEM_BACKING_SHARED);
	assert_ptr_equal(info[2].data, &unit);
	assert_int_equal(info[2].reserved[0], 0);
	/* not beyond what it says */
	assert_int_equal(info[3].gpa, 0x5a5a5a5a5a5a5a5a);
	gmem_file_free(opts.file);
	unit_end(&unit);
}

static void list_fits_or_says_how_many_there_are(void **state)
{
	struct gmem_region_info *untouched = UNTOUCHED(struct gmem_region_info);
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	unit_region(&unit, 0, 1, NULL);
	unit_region(&unit, 1, 1, NULL);
	assert_refused(-ENOSPC, "2 regions", gmem_vm_regions(unit.vm, untouched, 1));
	assert_refused(-ENOSPC, "room for 0", gmem_vm_regions(unit.vm, untouched, 0));
	assert_refused(-EINVAL, "vm is NULL", gmem_vm_regions(NULL, untouched, 1));
	assert_refused(-EINVAL, "ret is NULL", gmem_vm_regions(unit.vm, NULL, 1));
	unit_end(&unit);
}

static void region_is_what_its_flags_say(void **state)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_READONLY | GMEM_REGION_HVA);
	struct gmem_region_info info;
	struct gmem_region *region;
	struct unit unit;
	void *memory;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	memory = unit_memory(&unit, 2);
	opts.plan = unit_plan(&unit, GMEM_BACKING_HOST);
	opts.hva = memory;
	assert_ok(gmem_region_add(unit.vm, 0, PAGES(&unit, 2), &opts, &region));
	assert_ok(gmem_vm_find_gpa(unit.vm, 0, &info));
	assert_int_equal(info.flags, GMEM_REGION_READONLY | GMEM_REGION_HVA);
	assert_int_equal(info.kind, GMEM_KIND_ROM);
	assert_int_equal(info.page_size, unit.page);
	assert_ptr_equal(info.hva, memory);

	assert_ok(gmem_region_set_dirty_log(region, 1));
	assert_ok(gmem_vm_find_gpa(unit.vm, 0, &info));
	assert_int_equal(info.flags, GMEM_REGION_READONLY | GMEM_REGION_HVA | GMEM_REGION_DIRTY_LOG);
	assert_ok(gmem_region_remove(region));
	gmem_plan_free((struct gmem_plan *)opts.plan);
	unit_memory_free(memory);
	unit_end(&unit);
}

static void region_with_a_memfd_has_its_fd(void **state)
{
	GMEM_OPTS(gmem_memory_opts, memory, .flags = GMEM_MEMORY_MEMFD);
	GMEM_OPTS(gmem_region_opts, opts, .memory = &memory);
	struct gmem_region *region, *upper;
	struct gmem_region_info info[2];
	struct gmem_plan *plan;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	plan = unit_plan(&unit, GMEM_BACKING_HOST);
	opts.plan = plan;
	assert_ok(gmem_region_add(unit.vm, 0, PAGES(&unit, 4), &opts, &region));
	assert_ok(gmem_region_split(region, PAGES(&unit, 1), &upper));
	assert_int_equal(gmem_vm_regions(unit.vm, info, 2), 2);
	assert_true(info[0].host_fd >= 0);
	assert_int_equal(info[0].host_fd, info[1].host_fd);
	assert_int_equal(info[0].host_offset, 0);
	assert_int_equal(info[1].host_offset, PAGES(&unit, 1));
	assert_int_equal(info[1].page_size, unit.page);
	gmem_plan_free(plan);
	unit_end(&unit);
}

static void region_is_found_by_address_and_memslot(void **state)
{
	struct gmem_region_info info, before;
	struct gmem_region *region;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	region = unit_region(&unit, 4, 2, NULL);
	assert_ok(gmem_vm_find_gpa(unit.vm, PAGES(&unit, 4), &info));
	assert_ptr_equal(info.region, region);
	assert_ok(gmem_vm_find_gpa(unit.vm, PAGES(&unit, 6) - 1, &info));
	assert_ptr_equal(info.region, region);
	assert_ok(gmem_vm_find_slot(unit.vm, gmem_region_slot(region), &info));
	assert_ptr_equal(info.region, region);

	memset(&info, 0x5a, sizeof(info));
	before = info;
	assert_refused(-ENOENT, "0x6000", gmem_vm_find_gpa(unit.vm, PAGES(&unit, 6), &info));
	assert_refused(-ENOENT, "0x3fff", gmem_vm_find_gpa(unit.vm, PAGES(&unit, 4) - 1, &info));
	assert_refused(-ENOENT, "memslot 77", gmem_vm_find_slot(unit.vm, 77, &info));
	assert_refused(-ENOENT, "memslot", gmem_vm_find_slot(unit.vm, UINT32_MAX, &info));
	assert_refused(-EINVAL, "NULL", gmem_vm_find_gpa(NULL, 0, &info));
	assert_refused(-EINVAL, "NULL", gmem_vm_find_gpa(unit.vm, 0, NULL));
	assert_refused(-EINVAL, "NULL", gmem_vm_find_slot(NULL, 0, &info));
	assert_refused(-EINVAL, "NULL", gmem_vm_find_slot(unit.vm, 0, NULL));
	assert_memory_equal(&info, &before, sizeof(info));

	assert_ok(gmem_region_move(region, PAGES(&unit, 10)));
	assert_ok(gmem_vm_find_gpa(unit.vm, PAGES(&unit, 10), &info));
	assert_int_equal(info.gpa, PAGES(&unit, 10));
	unit_end(&unit);
}

static void users_pointer_stays_with_a_region(void **state)
{
	GMEM_OPTS(gmem_region_opts, opts, .file_offset = 0);
	struct gmem_region *region, *upper;
	struct unit unit;
	int mine, other;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	opts.file = unit_file(&unit, 16);
	opts.data = &mine;
	assert_ok(gmem_region_add(unit.vm, 0, PAGES(&unit, 4), &opts, &region));
	assert_ptr_equal(gmem_region_data(region), &mine);
	gmem_region_set_data(region, &other);
	assert_ok(gmem_region_move(region, PAGES(&unit, 8)));
	assert_ok(gmem_region_rebind(region, opts.file, PAGES(&unit, 8)));
	assert_ptr_equal(gmem_region_data(region), &other);

	assert_ok(gmem_region_split(region, PAGES(&unit, 1), &upper));
	assert_ptr_equal(gmem_region_data(region), &other);
	assert_ptr_equal(gmem_region_data(upper), &other);
	gmem_region_set_data(upper, &mine);
	assert_ptr_equal(gmem_region_data(region), &other);
	assert_ptr_equal(gmem_region_data(upper), &mine);

	assert_ptr_equal(gmem_region_data(NULL), NULL);
	gmem_region_set_data(NULL, &mine);
	gmem_file_free(opts.file);
	unit_end(&unit);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(regions_are_listed_in_order_of_their_addresses),
	cmocka_unit_test(list_fits_or_says_how_many_there_are),
	cmocka_unit_test(region_is_what_its_flags_say),
	cmocka_unit_test(region_with_a_memfd_has_its_fd),
	cmocka_unit_test(region_is_found_by_address_and_memslot),
	cmocka_unit_test(users_pointer_stays_with_a_region),
};

UNIT_MAIN(tests)
