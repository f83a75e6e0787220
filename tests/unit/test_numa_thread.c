/* SPDX-License-Identifier: MIT */
/* numa_thread: threads go to the node of the memory they work on */
#include <errno.h>
#include <string.h>

#include "pages/numa_thread.h"
#include "unit.h"

/* Four nodes of two processors; node 3 has none */
static struct gmem_region *begin(struct unit *unit, uint32_t policy, uint64_t nodes)
{
	GMEM_OPTS(gmem_numa_opts, opts, .policy = policy, .nodes = { nodes });
	struct gmem_region *region;

	unit_begin_vm(unit, "6.19");
	fake.nodes = 4;
	fake_set_file("/sys/devices/system/node/node0/cpulist", "0,4\n");
	fake_set_file("/sys/devices/system/node/node1/cpulist", "1-2,6\n");
	fake_set_file("/sys/devices/system/node/node2/cpulist", "99999999999999999999,3-5\n");
	fake_set_file("/sys/devices/system/node/node3/cpulist", "\n");
	fake_set_cpus(0xff);
	region = unit_region(unit, 0, 2048, NULL);
	if (policy != GMEM_NUMA_DEFAULT)
		assert_ok(gmem_vm_set_numa(unit->vm, 0, PAGES(unit, 2048), &opts, NULL));
	return region;
}

static unsigned int moves_to(uint64_t cpus)
{
	bool is_ours;

	if (fake_count(FAKE_SET_AFFINITY))
		assert_int_equal(fake_last_affinity(&is_ours), cpus);
	return fake_count(FAKE_SET_AFFINITY);
}

static void thread_goes_to_the_one_node_of_a_policy(void **state)
{
	struct gmem_numa_thread near = { .is_known = false };
	struct gmem_region *region;
	struct unit unit;

	(void)state;
	region = begin(&unit, GMEM_NUMA_BIND, 2);
	gmem_numa_move_thread(&near, gmem_region_hva(region));
	assert_int_equal(moves_to(0x46), 1);

	/* No further move while the memory is on the same node */
	gmem_numa_move_thread(&near, gmem_region_hva(region));
	gmem_numa_move_thread(&near, NULL);
	assert_int_equal(moves_to(0x46), 1);
	unit_end(&unit);

	region = begin(&unit, GMEM_NUMA_PREFERRED, 4);
	near.is_known = false;
	gmem_numa_move_thread(&near, gmem_region_hva(region));
	assert_int_equal(moves_to(0x38), 1);
	unit_end(&unit);
}

static void thread_keeps_to_processors_it_may_have(void **state)
{
	struct gmem_numa_thread near = { .is_known = false };
	struct gmem_region *region;
	struct unit unit;

	(void)state;
	region = begin(&unit, GMEM_NUMA_BIND, 2);
	fake_set_cpus(0x44);
	gmem_numa_move_thread(&near, gmem_region_hva(region));
	assert_int_equal(moves_to(0x44), 1);
	unit_end(&unit);

	/* The thread may use no processor of that node: it does not move. */
	region = begin(&unit, GMEM_NUMA_BIND, 1);
	near.is_known = false;
	fake_set_cpus(0x40);
	gmem_numa_move_thread(&near, gmem_region_hva(region));
	assert_int_equal(moves_to(0), 0);
	unit_end(&unit);
}

static void thread_stays_without_a_policy_of_one_node(void **state)
{
	static const struct {
		uint32_t policy;
		uint64_t nodes;
	} cases[] = {
		{ GMEM_NUMA_DEFAULT, 0 },
		{ GMEM_NUMA_BIND, 3 },
		{ GMEM_NUMA_INTERLEAVE, 2 },
		{ GMEM_NUMA_BIND, 8 },
	};
	struct gmem_region *region;
	struct unit unit;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		struct gmem_numa_thread near = { .is_known = false };

		region = begin(&unit, cases[i].policy, cases[i].nodes);
		gmem_numa_move_thread(&near, gmem_region_hva(region));
		assert_int_equal(moves_to(0), 0);
		unit_end(&unit);
	}
}

static void failed_system_calls_leave_the_thread_where_it_is(void **state)
{
	static const enum fake_call calls[] = {
		FAKE_GET_MEMPOLICY, FAKE_GET_AFFINITY, FAKE_READ_FILE, FAKE_SET_AFFINITY,
	};
	struct gmem_region *region;
	struct unit unit;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(calls); i++) {
		struct gmem_numa_thread near = { .is_known = false };
		bool is_ours;

		region = begin(&unit, GMEM_NUMA_BIND, 2);
		fake_last_affinity(&is_ours);
		fake_fail_next(calls[i], -EPERM);
		gmem_numa_move_thread(&near, gmem_region_hva(region));
		assert_true(fake_fail_struck());
		assert_true(fake_count(FAKE_SET_AFFINITY) == (calls[i] == FAKE_SET_AFFINITY));
		unit_end(&unit);
	}
}

/* The library may move its own threads, and no other. */
static void populate_moves_only_threads_of_its_own(void **state)
{
	GMEM_OPTS(gmem_populate_opts, opts, .workers = 4);
	struct unit unit;
	bool is_ours;
	uint64_t cpus;

	(void)state;
	begin(&unit, GMEM_NUMA_BIND, 2);
	assert_ok(gmem_vm_populate(unit.vm, 0, PAGES(&unit, 2048), NULL, NULL));
	assert_int_equal(fake_count(FAKE_SET_AFFINITY), 0);
	assert_ok(gmem_vm_discard(unit.vm, 0, PAGES(&unit, 2048), NULL, NULL));
	assert_ok(gmem_vm_populate(unit.vm, 0, PAGES(&unit, 2048), &opts, NULL));
	if (fake_count(FAKE_SET_AFFINITY)) {
		cpus = fake_last_affinity(&is_ours);
		assert_int_equal(cpus, 0x46);
		assert_false(is_ours);
	}
	unit_end(&unit);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(thread_goes_to_the_one_node_of_a_policy),
	cmocka_unit_test(thread_keeps_to_processors_it_may_have),
	cmocka_unit_test(thread_stays_without_a_policy_of_one_node),
	cmocka_unit_test(failed_system_calls_leave_the_thread_where_it_is),
	cmocka_unit_test(populate_moves_only_threads_of_its_own),
};

UNIT_MAIN(tests)
