/* SPDX-License-Identifier: MIT */
/* numa: policies reach the file, late ones are reported, and pages are counted by node */
#include <errno.h>
#include <linux/mempolicy.h>
#include <string.h>

#include "unit.h"

#define NODE(n)	(UINT64_C(1) << (n))

/* A kernel whose guest_memfd keeps policies, and four nodes */
static void begin(struct unit *unit, const char *kernel)
{
	unit_begin_vm(unit, kernel);
	fake.nodes = 4;
}

static struct gmem_file *private_file(const struct unit *unit, uint64_t pages, uint64_t flags)
{
	struct gmem_file *file = NULL;

	assert_ok(gmem_file_new_raw(unit->vm_fd, PAGES(unit, pages), flags, &file));
	return file;
}

static int set(struct gmem_file *file, uint64_t offset, uint64_t size, uint32_t policy,
	       uint64_t nodes)
{
	GMEM_OPTS(gmem_numa_opts, opts, .policy = policy, .nodes = { nodes });

	return gmem_file_set_numa(file, offset, size, &opts);
}

static int set_all(struct gmem_file *file, uint32_t policy, uint64_t nodes)
{
	return set(file, 0, gmem_file_size(file), policy, nodes);
}

static int set_vm(struct unit *unit, uint64_t page, uint64_t pages, uint32_t policy,
		  uint64_t nodes, uint64_t flags, uint64_t *ret_done)
{
	GMEM_OPTS(gmem_numa_opts, opts, .policy = policy, .nodes = { nodes }, .flags = flags);

	return gmem_vm_set_numa(unit->vm, PAGES(unit, page), PAGES(unit, pages), &opts, ret_done);
}

static void assert_policy(const struct gmem_file *file, uint64_t offset, int mode, uint64_t nodes)
{
	uint64_t has = ~UINT64_C(0);

	assert_int_equal(fake_policy_of_file(gmem_file_fd(file), offset, &has), mode);
	assert_int_equal(has, nodes);
}

static void assert_policy_at(const void *hva, int mode, uint64_t nodes)
{
	uint64_t has = ~UINT64_C(0);

	assert_int_equal(fake_policy_at(hva, &has), mode);
	assert_int_equal(has, nodes);
}

static void allocate(struct gmem_file *file, uint64_t offset, uint64_t size)
{
	assert_ok(gmem_file_allocate(file, offset, size, NULL));
}

/* ---- what the kernel is told ---- */

static void a_policy_is_kept_by_the_file_and_obeyed(void **state)
{
	static const struct {
		uint32_t policy;
		uint64_t nodes;
		int mode;
	} cases[] = {
		{ GMEM_NUMA_BIND, NODE(2), MPOL_BIND },
		{ GMEM_NUMA_BIND, NODE(1) | NODE(3), MPOL_BIND },
		{ GMEM_NUMA_PREFERRED, NODE(3), MPOL_PREFERRED },
		{ GMEM_NUMA_PREFERRED, NODE(2) | NODE(3), MPOL_PREFERRED_MANY },
		{ GMEM_NUMA_INTERLEAVE, NODE(1) | NODE(2) | NODE(3), MPOL_INTERLEAVE },
	};

	(void)state;
	for (size_t i = 0; i < 2 * ARRAY_SIZE(cases); i++) {
		const size_t n = i / 2;
		uint64_t on_node[4];
		GMEM_OPTS(gmem_numa_pages, pages, .on_node = on_node, .nodes = 4);
		struct gmem_file *file;
		struct unit unit;

		begin(&unit, "6.19");
		fake.no_move_pages = i % 2;
		file = unit_file(&unit, 9);
		assert_ok(set(file, PAGES(&unit, 1), PAGES(&unit, 6), cases[n].policy,
			      cases[n].nodes));
		assert_policy(file, 0, MPOL_DEFAULT, 0);
		assert_policy(file, PAGES(&unit, 1), cases[n].mode, cases[n].nodes);
		assert_policy(file, PAGES(&unit, 6), cases[n].mode, cases[n].nodes);
		assert_policy(file, PAGES(&unit, 7), MPOL_DEFAULT, 0);
		assert_int_equal(fake_open_mappings(), 0);

		allocate(file, PAGES(&unit, 1), PAGES(&unit, 6));
		assert_ok(gmem_file_numa(file, 0, PAGES(&unit, 9), &pages));
		for (unsigned int node = 0; node < 4; node++)
			if (!(cases[n].nodes & NODE(node)))
				assert_int_equal(on_node[node], 0);
		assert_int_equal(on_node[1] + on_node[2] + on_node[3], 6);
		assert_int_equal(pages.absent, 3);
		assert_int_equal(pages.unknown, 0);
		if (cases[n].policy == GMEM_NUMA_INTERLEAVE)
			assert_int_equal(on_node[2], 2);
		gmem_file_free(file);
		unit_end(&unit);
	}
}

/* mbind() would compare with what an old mapping remembers, and do nothing. */
static void policies_replace_each_other_and_the_default_ends_them(void **state)
{
	struct gmem_file *file;
	struct unit unit;

	(void)state;
	begin(&unit, "7.2");
	file = unit_file(&unit, 4);
	assert_ok(set_all(file, GMEM_NUMA_BIND, NODE(1)));
	assert_ok(set_all(file, GMEM_NUMA_BIND, NODE(2)));
	assert_policy(file, 0, MPOL_BIND, NODE(2));
	assert_ok(set_all(file, GMEM_NUMA_BIND, NODE(1)));
	assert_policy(file, 0, MPOL_BIND, NODE(1));
	assert_ok(set(file, PAGES(&unit, 2), PAGES(&unit, 2), GMEM_NUMA_DEFAULT, 0));
	assert_policy(file, PAGES(&unit, 1), MPOL_BIND, NODE(1));
	assert_policy(file, PAGES(&unit, 2), MPOL_DEFAULT, 0);
	gmem_file_free(file);
	unit_end(&unit);
}

static void a_private_file_that_can_be_mapped_has_policies_too(void **state)
{
	struct gmem_file *file;
	struct unit unit;

	(void)state;
	begin(&unit, "7.3-swp-t1");
	file = private_file(&unit, 4, GMEM_CREATE_MMAP);
	assert_ok(set_all(file, GMEM_NUMA_BIND, NODE(3)));
	assert_policy(file, 0, MPOL_BIND, NODE(3));
	gmem_file_free(file);
	unit_end(&unit);
}

/* ---- too late ---- */

static void pages_elsewhere_make_it_too_late(void **state)
{
	struct gmem_file *file;
	struct unit unit;

	(void)state;
	begin(&unit, "6.19");
	file = unit_file(&unit, 64);
	fake_set_node(2);
	allocate(file, PAGES(&unit, 7), PAGES(&unit, 2));
	assert_refused(-EBUSY, "too late: 2 pages", set_all(file, GMEM_NUMA_BIND, NODE(1)));
	assert_refused(-EBUSY, "first at file offset 0x7000, on node 2; nothing was set",
		       set_all(file, GMEM_NUMA_PREFERRED, NODE(1) | NODE(3)));
	assert_policy(file, 0, MPOL_DEFAULT, 0);

	/* right where they are, or out of the range, or not wanted anywhere */
	assert_ok(set_all(file, GMEM_NUMA_BIND, NODE(2)));
	assert_ok(set(file, 0, PAGES(&unit, 7), GMEM_NUMA_BIND, NODE(1)));
	assert_ok(set_all(file, GMEM_NUMA_DEFAULT, 0));

	assert_ok(gmem_file_punch(file, PAGES(&unit, 7), PAGES(&unit, 2), NULL));
	assert_ok(set_all(file, GMEM_NUMA_BIND, NODE(1)));
	gmem_file_free(file);
	unit_end(&unit);
}

static void a_private_page_that_exists_is_too_late_wherever_it_is(void **state)
{
	struct gmem_file *file;
	struct unit unit;

	(void)state;
	begin(&unit, "7.3-swp-t1");
	file = private_file(&unit, 8, GMEM_CREATE_MMAP);
	allocate(file, PAGES(&unit, 3), PAGES(&unit, 1));
	assert_refused(-EBUSY, "0x3000, where nobody can ask",
		       set_all(file, GMEM_NUMA_BIND, NODE(0)));
	assert_policy(file, 0, MPOL_DEFAULT, 0);
	assert_ok(set(file, PAGES(&unit, 4), PAGES(&unit, 4), GMEM_NUMA_BIND, NODE(1)));
	gmem_file_free(file);
	unit_end(&unit);
}

static void a_page_that_comes_in_between_is_found_afterwards(void **state)
{
	struct gmem_file *file;
	struct unit unit;

	(void)state;
	begin(&unit, "6.19");
	file = unit_file(&unit, 4);
	fake_race_mbind(true);
	assert_int_equal(set_all(file, GMEM_NUMA_BIND, NODE(1)), -EBUSY);
	assert_non_null(strstr(gmem_last_error(), "on node 0; the policy is set"));
	assert_policy(file, 0, MPOL_BIND, NODE(1));
	gmem_file_free(file);
	unit_end(&unit);
}

/* ---- refusals ---- */

static void a_kernel_that_would_not_obey_is_not_asked(void **state)
{
	struct gmem_file *file;
	struct unit unit;
	unsigned before;

	(void)state;
	begin(&unit, "6.18");
	file = unit_file(&unit, 4);
	before = fake_count(FAKE_MBIND);
	assert_refused(-EOPNOTSUPP, "Linux 6.19", set_all(file, GMEM_NUMA_BIND, NODE(1)));
	assert_int_equal(fake_count(FAKE_MBIND), before);
	gmem_file_free(file);
	unit_end(&unit);
}

static void a_kernel_that_forgets_is_found_out(void **state)
{
	struct gmem_file *file;
	struct unit unit;

	(void)state;
	begin(&unit, "6.19");
	fake.forgets_policy = true;
	file = unit_file(&unit, 4);
	assert_refused(-EOPNOTSUPP, "did not keep it", set_all(file, GMEM_NUMA_BIND, NODE(1)));
	gmem_file_free(file);
	unit_end(&unit);
}

static void system_call_the_kernel_lacks_is_named(void **state)
{
	GMEM_OPTS(gmem_numa_pages, pages, .on_node = NULL);
	struct gmem_file *file;
	struct unit unit;

	(void)state;
	begin(&unit, "6.19");
	file = unit_file(&unit, 4);
	fake.no_cachestat = true;
	assert_refused(-EOPNOTSUPP, "cachestat", set_all(file, GMEM_NUMA_BIND, NODE(1)));
	fake.no_cachestat = false;
	fake.no_numa = true;
	assert_refused(-EOPNOTSUPP, "no NUMA", set_all(file, GMEM_NUMA_BIND, NODE(1)));
	allocate(file, 0, PAGES(&unit, 1));
	assert_refused(-EOPNOTSUPP, "nodes of pages",
		       gmem_file_numa(file, 0, PAGES(&unit, 4), &pages));
	gmem_file_free(file);
	unit_end(&unit);
}

static void a_file_that_cannot_be_mapped_cannot_be_told(void **state)
{
	GMEM_OPTS(gmem_numa_pages, pages, .on_node = NULL);
	struct gmem_file *file;
	struct unit unit;

	(void)state;
	begin(&unit, "7.3-swp-t1");
	file = private_file(&unit, 4, 0);
	assert_refused(-EOPNOTSUPP, "set_mempolicy(2)", set_all(file, GMEM_NUMA_BIND, NODE(1)));

	/* but counted */
	allocate(file, PAGES(&unit, 1), PAGES(&unit, 2));
	assert_ok(gmem_file_numa(file, 0, PAGES(&unit, 4), &pages));
	assert_int_equal(pages.unknown, 2);
	assert_int_equal(pages.absent, 2);
	gmem_file_free(file);
	unit_end(&unit);
}

static void bad_arguments_are_refused(void **state)
{
	GMEM_OPTS(gmem_numa_opts, good, .policy = GMEM_NUMA_BIND, .nodes = { NODE(1) });
	GMEM_OPTS(gmem_numa_pages, pages, .nodes = 1);
	struct gmem_numa_opts opts;
	struct gmem_file *file;
	struct unit unit;
	uint64_t size;

	(void)state;
	begin(&unit, "6.19");
	file = unit_file(&unit, 4);
	size = gmem_file_size(file);

	assert_refused(-EINVAL, "file is NULL", gmem_file_set_numa(NULL, 0, size, &good));
	assert_refused(-EINVAL, "opts is NULL", gmem_file_set_numa(file, 0, size, NULL));
	assert_refused(-EINVAL, "end of the file",
		       gmem_file_set_numa(file, 0, size + unit.page, &good));
	assert_refused(-EINVAL, "size 0", gmem_file_set_numa(file, 0, 0, &good));
	assert_refused(-EINVAL, "not a multiple", gmem_file_set_numa(file, 1, size, &good));

	assert_refused(-EINVAL, "node 4 has no memory", set_all(file, GMEM_NUMA_BIND, NODE(4)));
	assert_refused(-EINVAL, "node 63", set_all(file, GMEM_NUMA_BIND, NODE(0) | NODE(63)));
	assert_refused(-EINVAL, "without a node", set_all(file, GMEM_NUMA_BIND, 0));
	assert_refused(-EINVAL, "no nodes of its own", set_all(file, GMEM_NUMA_DEFAULT, 1));
	assert_refused(-EINVAL, "4 is no policy", set_all(file, 4, NODE(1)));
	opts = good;
	opts.nodes[15] = NODE(63);
	assert_refused(-EINVAL, "node 1023", gmem_file_set_numa(file, 0, size, &opts));
	opts = good;
	opts.reserved = 1;
	assert_refused(-EINVAL, "reserved", gmem_file_set_numa(file, 0, size, &opts));
	opts = good;
	opts.flags = UNIT_UNKNOWN_BIT;
	assert_refused(-EINVAL, "flags", gmem_file_set_numa(file, 0, size, &opts));
	opts = good;
	opts.size = 8;
	assert_refused(-EINVAL, "size is 8", gmem_file_set_numa(file, 0, size, &opts));

	assert_refused(-EINVAL, "pages is NULL", gmem_file_numa(file, 0, size, NULL));
	assert_refused(-EINVAL, "on_node is NULL", gmem_file_numa(file, 0, size, &pages));
	assert_refused(-EINVAL, "vm is NULL", gmem_vm_set_numa(NULL, 0, size, &good, NULL));
	assert_refused(-EINVAL, "vm is NULL", gmem_vm_numa(NULL, 0, size, &pages));
	gmem_file_free(file);
	unit_end(&unit);
}

/* ---- guest memory ---- */

static void policies_of_guest_memory_reach_every_region(void **state)
{
	struct gmem_region *host, *shared;
	struct gmem_plan *plan;
	struct unit unit;
	uint64_t done = 7;

	(void)state;
	begin(&unit, "6.19");
	plan = unit_plan(&unit, GMEM_BACKING_HOST);
	host = unit_region(&unit, 16, 4, plan);
	shared = unit_region(&unit, 20, 4, NULL);

	assert_ok(set_vm(&unit, 18, 4, GMEM_NUMA_BIND, NODE(1), 0, &done));
	assert_int_equal(done, PAGES(&unit, 4));
	assert_policy_at(gmem_region_hva(host), MPOL_DEFAULT, 0);
	assert_policy_at((char *)gmem_region_hva(host) + PAGES(&unit, 2), MPOL_BIND, NODE(1));
	assert_policy(gmem_region_file(shared, NULL), PAGES(&unit, 1), MPOL_BIND, NODE(1));
	assert_policy(gmem_region_file(shared, NULL), PAGES(&unit, 2), MPOL_DEFAULT, 0);
	gmem_plan_free(plan);
	unit_end(&unit);
}

static void memory_of_devices_has_no_policy(void **state)
{
	struct gmem_region *ram, *bar;
	struct gmem_plan *host;
	struct unit unit;
	uint64_t done;
	void *memory;

	(void)state;
	begin(&unit, "6.19");
	host = unit_plan(&unit, GMEM_BACKING_HOST);
	memory = unit_memory(&unit, 4);
	GMEM_OPTS(gmem_region_opts, opts, .plan = host, .flags = GMEM_REGION_HVA, .hva = memory,
		  .kind = GMEM_KIND_DEVICE);
	ram = unit_region(&unit, 16, 4, host);
	assert_ok(gmem_region_add(unit.vm, PAGES(&unit, 20), PAGES(&unit, 4), &opts, &bar));
	assert_ok(set_vm(&unit, 16, 8, GMEM_NUMA_BIND, NODE(1), 0, &done));
	assert_int_equal(done, PAGES(&unit, 8));
	assert_policy_at(gmem_region_hva(ram), MPOL_BIND, NODE(1));
	assert_policy_at(memory, MPOL_DEFAULT, 0);
	assert_refused(-EOPNOTSUPP, "no NUMA policy",
		       set_vm(&unit, 20, 4, GMEM_NUMA_BIND, NODE(1), 0, &done));
	gmem_plan_free(host);
	unit_end(&unit);
	unit_memory_free(memory);
}

static void a_range_with_a_gap_gets_no_policy_at_all(void **state)
{
	GMEM_OPTS(gmem_region_opts, device, .flags = GMEM_REGION_DEVICE);
	struct gmem_region *first, *region;
	struct unit unit;
	uint64_t done = 7;

	(void)state;
	begin(&unit, "6.19");
	first = unit_region(&unit, 16, 4, NULL);
	unit_region(&unit, 22, 4, NULL);
	assert_refused(-ENOENT, "gpa 0x14000",
		       set_vm(&unit, 16, 10, GMEM_NUMA_BIND, NODE(1), 0, &done));
	assert_int_equal(done, 0);
	assert_policy(gmem_region_file(first, NULL), 0, MPOL_DEFAULT, 0);
	assert_refused(-ENOENT, "gpa 0xf000",
		       set_vm(&unit, 15, 2, GMEM_NUMA_BIND, NODE(1), 0, NULL));

	assert_ok(gmem_region_add(unit.vm, PAGES(&unit, 20), PAGES(&unit, 2), &device, &region));
	assert_refused(-ENXIO, "device", set_vm(&unit, 16, 10, GMEM_NUMA_BIND, NODE(1), 0, NULL));
	assert_policy(gmem_region_file(first, NULL), 0, MPOL_DEFAULT, 0);
	unit_end(&unit);
}

static void policy_too_late_for_host_memory_is_reported(void **state)
{
	struct gmem_region *region;
	struct gmem_plan *plan;
	struct unit unit;
	uint64_t on_node[2];
	GMEM_OPTS(gmem_numa_pages, pages, .on_node = on_node, .nodes = 2);

	(void)state;
	begin(&unit, "6.19");
	plan = unit_plan(&unit, GMEM_BACKING_HOST);
	region = unit_region(&unit, 16, 4, plan);
	((char *)gmem_region_hva(region))[PAGES(&unit, 2)] = 1;
	assert_refused(-EBUSY, "too late: 1 pages",
		       set_vm(&unit, 16, 4, GMEM_NUMA_BIND, NODE(1), 0, NULL));
	assert_ok(set_vm(&unit, 16, 2, GMEM_NUMA_BIND, NODE(1), 0, NULL));
	assert_ok(set_vm(&unit, 16, 4, GMEM_NUMA_BIND, NODE(0), 0, NULL));

	assert_ok(gmem_vm_numa(unit.vm, PAGES(&unit, 16), PAGES(&unit, 4), &pages));
	assert_int_equal(on_node[0], 1);
	assert_int_equal(on_node[1], 0);
	assert_int_equal(pages.absent, 3);

	fake.no_move_pages = true;
	assert_ok(gmem_vm_numa(unit.vm, PAGES(&unit, 16), PAGES(&unit, 4), &pages));
	assert_int_equal(on_node[0], 1);
	assert_int_equal(pages.absent, 3);

	/* a node past the end of the caller's array */
	fake_set_node(3);
	assert_ok(gmem_vm_numa(unit.vm, PAGES(&unit, 16), PAGES(&unit, 4), &pages));
	assert_int_equal(on_node[0], 0);
	assert_int_equal(pages.elsewhere, 1);
	gmem_plan_free(plan);
	unit_end(&unit);
}

static void policy_is_for_both_sides_or_the_shared_one_alone(void **state)
{
	GMEM_OPTS(gmem_numa_pages, pages, .on_node = NULL);
	struct gmem_region *region;
	struct gmem_plan *plan;
	struct unit unit;

	(void)state;
	begin(&unit, "7.3-swp-t1");
	plan = unit_plan(&unit, GMEM_BACKING_PRIVATE);
	region = unit_region(&unit, 16, 4, plan);
	assert_refused(-EOPNOTSUPP, "set_mempolicy(2)",
		       set_vm(&unit, 16, 4, GMEM_NUMA_BIND, NODE(1), 0, NULL));
	assert_policy_at(gmem_region_hva(region), MPOL_DEFAULT, 0);
	assert_ok(set_vm(&unit, 16, 4, GMEM_NUMA_BIND, NODE(1), GMEM_NUMA_SHARED_ONLY, NULL));
	assert_policy_at(gmem_region_hva(region), MPOL_BIND, NODE(1));

	((char *)gmem_region_hva(region))[0] = 1;
	allocate(gmem_region_file(region, NULL), 0, PAGES(&unit, 3));
	assert_ok(gmem_vm_numa(unit.vm, PAGES(&unit, 16), PAGES(&unit, 4), &pages));
	assert_int_equal(pages.elsewhere, 1);
	assert_int_equal(pages.unknown, 3);
	assert_int_equal(pages.absent, 4);
	gmem_plan_free(plan);
	unit_end(&unit);
}

static void private_memory_whose_sides_are_one_has_one_policy(void **state)
{
	struct gmem_region *region;
	struct gmem_plan *plan;
	struct unit unit;

	(void)state;
	begin(&unit, "7.3-swp-t1");
	plan = unit_plan_mappable_private(&unit);
	region = unit_region(&unit, 16, 4, plan);
	assert_ok(set_vm(&unit, 16, 4, GMEM_NUMA_INTERLEAVE, NODE(1) | NODE(2), 0, NULL));
	assert_policy(gmem_region_file(region, NULL), 0, MPOL_INTERLEAVE, NODE(1) | NODE(2));
	assert_policy_at(gmem_region_hva(region), MPOL_DEFAULT, 0);
	gmem_plan_free(plan);
	unit_end(&unit);
}

/* ---- failures ---- */

static void every_failure_is_reported_and_nothing_leaks(void **state)
{
	struct fake_snapshot *before;
	struct gmem_file *file;
	struct unit unit;
	unsigned int n, struck = 0;
	int ret;

	(void)state;
	begin(&unit, "6.19");
	file = unit_file(&unit, 8);
	fake_set_node(1);
	allocate(file, PAGES(&unit, 2), PAGES(&unit, 1));
	for (n = 1;; n++) {
		before = fake_snapshot();
		fake_fail_call(n, -EIO);
		ret = set_all(file, GMEM_NUMA_BIND, NODE(1));
		assert_true(fake_equal(before));
		if (!fake_fail_struck())
			break;
		assert_int_equal(ret, -EIO);
		struck++;
	}
	assert_ok(ret);
	assert_true(struck > 8);
	gmem_file_free(file);
	unit_end(&unit);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_policy_is_kept_by_the_file_and_obeyed),
		cmocka_unit_test(policies_replace_each_other_and_the_default_ends_them),
		cmocka_unit_test(a_private_file_that_can_be_mapped_has_policies_too),
		cmocka_unit_test(pages_elsewhere_make_it_too_late),
		cmocka_unit_test(a_private_page_that_exists_is_too_late_wherever_it_is),
		cmocka_unit_test(a_page_that_comes_in_between_is_found_afterwards),
		cmocka_unit_test(a_kernel_that_would_not_obey_is_not_asked),
		cmocka_unit_test(a_kernel_that_forgets_is_found_out),
		cmocka_unit_test(system_call_the_kernel_lacks_is_named),
		cmocka_unit_test(a_file_that_cannot_be_mapped_cannot_be_told),
		cmocka_unit_test(bad_arguments_are_refused),
		cmocka_unit_test(policies_of_guest_memory_reach_every_region),
		cmocka_unit_test(memory_of_devices_has_no_policy),
		cmocka_unit_test(a_range_with_a_gap_gets_no_policy_at_all),
		cmocka_unit_test(policy_too_late_for_host_memory_is_reported),
		cmocka_unit_test(policy_is_for_both_sides_or_the_shared_one_alone),
		cmocka_unit_test(private_memory_whose_sides_are_one_has_one_policy),
		cmocka_unit_test(every_failure_is_reported_and_nothing_leaks),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
