/* SPDX-License-Identifier: MIT */
/* kind: what memory is, said by the caller or found out; and what it follows from that */
#include <errno.h>
#include <sys/mman.h>

#include "base/kind.h"
#include "unit.h"

static void kinds_are_known_by_name(void **state)
{
	static const char *const names[] = {
		[GMEM_KIND_RAM] = "ram",
		[GMEM_KIND_ROM] = "rom",
		[GMEM_KIND_DEVICE] = "device",
		[GMEM_KIND_EXTERNAL] = "external",
	};

	(void)state;
	for (uint32_t i = 1; i < ARRAY_SIZE(names); i++)
		assert_string_equal(gmem_kind_name(i), names[i]);
	assert_null(gmem_kind_name(GMEM_KIND_DEFAULT));
	assert_null(gmem_kind_name(ARRAY_SIZE(names)));
	assert_null(gmem_kind_name(UINT32_MAX));
}

/* Traits imply each other, also those of kinds that are yet to come. */
static void traits_fit_each_other(void **state)
{
	static const struct gmem_kind_traits none;

	(void)state;
	assert_memory_equal(gmem_kind_traits(GMEM_KIND_DEFAULT), &none, sizeof(none));
	assert_ptr_equal(gmem_kind_traits(GMEM_KINDS), gmem_kind_traits(GMEM_KIND_DEFAULT));
	for (uint32_t i = 1; i < GMEM_KINDS; i++) {
		const struct gmem_kind_traits *t = gmem_kind_traits(i);

		/* What is populated or discarded is counted: the counts are the proof. */
		assert_true(t->uses & GMEM_USE_COUNT ||
			    !(t->uses & (GMEM_USE_POPULATE | GMEM_USE_DISCARD | GMEM_USE_PLACE)));
		/* Only what an image has can be lost and brought back. */
		assert_true(t->uses & GMEM_USE_SAVE || !(t->uses & GMEM_USE_DISCARD));
		/* A restore writes what a load may write. */
		assert_true(t->uses & GMEM_USE_LOAD || !(t->uses & GMEM_USE_SAVE));
		assert_true(!t->is_compared || t->uses & GMEM_USE_LOAD);
		assert_true(t->is_never_private || !t->is_callers);
	}
}

static void regions_say_their_kind(void **state)
{
	struct gmem_region *ram, *rom, *bar, *upper;
	struct unit unit;
	struct gmem_plan *plan;
	void *memory;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	plan = unit_plan(&unit, GMEM_BACKING_HOST);
	memory = unit_memory(&unit, 4);
	GMEM_OPTS(gmem_region_opts, opts, .plan = plan);
	assert_ok(gmem_region_add(unit.vm, 0, unit.page, &opts, &ram));
	assert_int_equal(gmem_region_kind(ram), GMEM_KIND_RAM);
	assert_int_equal(gmem_region_identity(ram), 0);

	opts.flags = GMEM_REGION_READONLY;
	assert_ok(gmem_region_add(unit.vm, 8 * unit.page, unit.page, &opts, &rom));
	assert_int_equal(gmem_region_kind(rom), GMEM_KIND_ROM);

	opts.flags = GMEM_REGION_HVA;
	opts.hva = memory;
	opts.kind = GMEM_KIND_DEVICE;
	opts.identity = 0xba2;
	assert_ok(gmem_region_add(unit.vm, 16 * unit.page, 4 * unit.page, &opts, &bar));
	assert_ok(gmem_region_split(bar, unit.page, &upper));
	assert_ok(gmem_region_move(upper, 32 * unit.page));
	for (struct gmem_region *part = bar; part; part = part == bar ? upper : NULL) {
		assert_int_equal(gmem_region_kind(part), GMEM_KIND_DEVICE);
		assert_int_equal(gmem_region_identity(part), 0xba2);
	}

	assert_int_equal(gmem_region_kind(NULL), GMEM_KIND_DEFAULT);
	assert_int_equal(gmem_region_identity(NULL), 0);
	gmem_plan_free(plan);
	unit_end(&unit);
	unit_memory_free(memory);
}

static void read_only_memory_is_ram_if_told_so(void **state)
{
	struct gmem_region *region;
	struct gmem_plan *plan;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	plan = unit_plan(&unit, GMEM_BACKING_HOST);
	GMEM_OPTS(gmem_region_opts, opts, .plan = plan, .flags = GMEM_REGION_READONLY,
		  .kind = GMEM_KIND_RAM);
	assert_ok(gmem_region_add(unit.vm, 0, unit.page, &opts, &region));
	assert_int_equal(gmem_region_kind(region), GMEM_KIND_RAM);
	gmem_plan_free(plan);
	unit_end(&unit);
}

static void device_memory_is_the_caller_s(void **state)
{
	struct gmem_plan *host, *shared;
	struct gmem_region *region;
	struct unit unit;
	void *memory;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	host = unit_plan(&unit, GMEM_BACKING_HOST);
	shared = unit_plan(&unit, GMEM_BACKING_SHARED);
	memory = unit_memory(&unit, 1);
	GMEM_OPTS(gmem_region_opts, opts, .plan = host, .kind = GMEM_KIND_DEVICE);
	assert_refused(-EINVAL, "\"device\"",
		       gmem_region_add(unit.vm, 0, unit.page, &opts, &region));
	opts.plan = shared;
	opts.flags = GMEM_REGION_HVA;
	opts.hva = memory;
	assert_refused(-EINVAL, "\"shared\"",
		       gmem_region_add(unit.vm, 0, unit.page, &opts, &region));
	opts.flags = 0;
	opts.kind = GMEM_KIND_EXTERNAL;
	assert_ok(gmem_region_add(unit.vm, 0, unit.page, &opts, &region));
	gmem_plan_free(host);
	gmem_plan_free(shared);
	unit_end(&unit);
	unit_memory_free(memory);
}

static uint32_t found(const struct unit *unit, const struct gmem_plan *plan, void *hva, uint32_t kind,
		      uint64_t flags)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = plan, .flags = GMEM_REGION_HVA | flags, .hva = hva,
		  .kind = kind);
	struct gmem_region *region;
	uint32_t ret;

	assert_ok(gmem_region_add(unit->vm, 0, PAGES(unit, 4), &opts, &region));
	ret = gmem_region_kind(region);
	assert_ok(gmem_region_remove(region));
	return ret;
}

static void kind_is_what_the_kernel_says_of_the_mappings(void **state)
{
	struct gmem_plan *plan;
	struct unit unit;
	void *memory;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	plan = unit_plan(&unit, GMEM_BACKING_HOST);
	memory = mmap(NULL, PAGES(&unit, 4), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(memory, MAP_FAILED);
	assert_int_equal(found(&unit, plan, memory, 0, 0), GMEM_KIND_RAM);
	assert_int_equal(found(&unit, plan, memory, 0, GMEM_REGION_READONLY), GMEM_KIND_ROM);

	fake_mark_mapping(memory, PAGES(&unit, 4), unit.page, "lo", 0);
	assert_int_equal(found(&unit, plan, memory, 0, 0), GMEM_KIND_RAM);

	/* one page of it is enough, whatever may be done with it */
	fake_mark_mapping(unit_at(memory, unit.page), unit.page, unit.page, "io pf", 0);
	assert_int_equal(found(&unit, plan, memory, 0, 0), GMEM_KIND_DEVICE);
	assert_int_equal(found(&unit, plan, memory, 0, GMEM_REGION_READONLY), GMEM_KIND_DEVICE);
	assert_int_equal(found(&unit, plan, memory, GMEM_KIND_RAM, 0), GMEM_KIND_RAM);
	assert_int_equal(found(&unit, plan, memory, GMEM_KIND_EXTERNAL, 0), GMEM_KIND_EXTERNAL);

	/* What is left out of an image by mistake is lost: rather take it for RAM. */
	fake.no_proc = true;
	assert_int_equal(found(&unit, plan, memory, 0, 0), GMEM_KIND_RAM);
	assert_int_equal(found(&unit, plan, memory, GMEM_KIND_DEVICE, 0), GMEM_KIND_DEVICE);
	gmem_plan_free(plan);
	unit_end(&unit);
	munmap(memory, 4 * 4096);
}

static void range_of_a_device_has_no_kind(void **state)
{
	struct gmem_region *region;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_DEVICE, .kind = GMEM_KIND_DEVICE);
	assert_refused(-EINVAL, "no other option",
		       gmem_region_add(unit.vm, 0, unit.page, &opts, &region));
	opts.kind = GMEM_KIND_DEFAULT;
	opts.identity = 1;
	assert_refused(-EINVAL, "no other option",
		       gmem_region_add(unit.vm, 0, unit.page, &opts, &region));
	opts.identity = 0;
	assert_ok(gmem_region_add(unit.vm, 0, unit.page, &opts, &region));
	assert_int_equal(gmem_region_kind(region), GMEM_KIND_DEFAULT);
	unit_end(&unit);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(kinds_are_known_by_name),
	cmocka_unit_test(traits_fit_each_other),
	cmocka_unit_test(regions_say_their_kind),
	cmocka_unit_test(read_only_memory_is_ram_if_told_so),
	cmocka_unit_test(device_memory_is_the_caller_s),
	cmocka_unit_test(kind_is_what_the_kernel_says_of_the_mappings),
	cmocka_unit_test(range_of_a_device_has_no_kind),
};

UNIT_MAIN(tests)
