/* SPDX-License-Identifier: MIT */
/* numa_thread: threads go to the node of the memory they work on */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/numa_thread.h"
#include "transfer/batch.h"
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

/* ---- transfers ---- */

#define MIB ((uint64_t)1 << 20)

struct steps {
	const char *lanes[2];	/* the memory of each lane */
	atomic_uint begun;
};

/* Two pieces, each of which waits for the other: two threads do one each. */
static bool do_piece(void *data, struct gmem_hand *hand, size_t piece)
{
	struct steps *steps = data;

	gmem_hand_come(hand, steps->lanes[piece]);
	assert_false(hand->is_elsewhere);
	gmem_hand_come(hand, steps->lanes[!piece]);
	atomic_fetch_add(&steps->begun, 1);
	while (atomic_load(&steps->begun) < 2)
		sched_yield();
	return true;
}

static void step(struct gmem_hands *hands, const struct gmem_region *region, uint64_t offset)
{
	const char *hva = (const char *)gmem_region_hva(region) + offset;
	struct steps steps = { .lanes = { hva, hva } };

	assert_int_equal(gmem_hands_run(hands, do_piece, &steps, 2), 2);
}

static void *lend(void *data)
{
	gmem_hands_join(data);
	return NULL;
}

static void threads_of_a_transfer_follow_its_memory(void **state)
{
	GMEM_OPTS(gmem_numa_opts, far, .policy = GMEM_NUMA_BIND, .nodes = { 4 });
	struct gmem_host_look look = GMEM_HOST_LOOK;
	struct gmem_region *region;
	struct gmem_hands hands;
	struct unit unit;
	bool is_callers;
	uint64_t half;

	(void)state;
	region = begin(&unit, GMEM_NUMA_BIND, 2);
	half = PAGES(&unit, 1024);
	assert_ok(gmem_vm_set_numa(unit.vm, half, half, &far, NULL));
	gmem_hands_begin(&hands, 2, 16 * MIB, &look);
	step(&hands, region, 0);
	assert_int_equal(moves_to(0x46), 1);
	step(&hands, region, 0);
	assert_int_equal(moves_to(0x46), 1);
	step(&hands, region, half);
	assert_int_equal(moves_to(0x38), 2);
	step(&hands, region, 0);
	assert_int_equal(moves_to(0x46), 3);
	fake_last_affinity(&is_callers);
	assert_false(is_callers);
	gmem_hands_end(&hands);
	unit_end(&unit);
}

static void await_member(struct gmem_crew *crew)
{
	unsigned int members;

	do {
		gmem_lock_take(&crew->lock);
		members = crew->members;
		gmem_lock_drop(&crew->lock);
	} while (members == 0);
}

/* Neither the thread that steps nor one that is lent */
static void threads_of_the_caller_stay(void **state)
{
	struct gmem_host_look look = GMEM_HOST_LOOK;
	struct gmem_region *region;
	struct gmem_hands hands;
	struct unit unit;
	pthread_t thread;

	(void)state;
	region = begin(&unit, GMEM_NUMA_BIND, 2);
	gmem_hands_begin(&hands, 2, MIB, &look);
	assert_int_equal(pthread_create(&thread, NULL, lend, &hands), 0);
	await_member(&hands.crew);
	step(&hands, region, 0);
	gmem_hands_end(&hands);
	assert_int_equal(pthread_join(thread, NULL), 0);
	assert_int_equal(fake_count(FAKE_SET_AFFINITY), 0);
	unit_end(&unit);
}

static void one_node_is_asked_for_once(void **state)
{
	struct gmem_host_look look = GMEM_HOST_LOOK;
	struct gmem_region *region;
	struct gmem_hands hands;
	unsigned int before;
	struct unit unit;

	(void)state;
	region = begin(&unit, GMEM_NUMA_DEFAULT, 0);
	for (unsigned int i = 0; i < 2; i++) {
		fake.nodes = 1 + 3 * i;
		before = fake_count(FAKE_GET_MEMPOLICY);
		if (i)
			fake_fail_next(FAKE_GET_MEMPOLICY, -EPERM);
		gmem_hands_begin(&hands, 2, 16 * MIB, &look);
		step(&hands, region, 0);
		step(&hands, region, 0);
		gmem_hands_end(&hands);
		assert_int_equal(fake_count(FAKE_GET_MEMPOLICY), before + 1);
		assert_int_equal(fake_count(FAKE_GET_AFFINITY), 0);
	}
	unit_end(&unit);
}

/* Whoever gets the pieces: what moves is a thread of the library's, and to this node. */
static void transfers_move_only_threads_of_their_own(void **state)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .workers = 4);
	struct unit unit;
	bool is_callers;
	uint64_t cpus;
	char *hva;
	int fd;

	(void)state;
	hva = gmem_region_hva(begin(&unit, GMEM_NUMA_BIND, 2));
	fd = memfd_create("image", MFD_CLOEXEC);
	for (uint64_t i = 0; i < 2048; i++)
		memset(hva + PAGES(&unit, i), (int)(1 + i % 255), unit.page);
	assert_ok(gmem_vm_save(unit.vm, fd, &opts, NULL));
	assert_ok(gmem_vm_restore(unit.vm, fd, &opts, NULL));
	assert_ok(gmem_vm_load(unit.vm, 0, fd, 0, PAGES(&unit, 2048), &opts, NULL));
	if (fake_count(FAKE_SET_AFFINITY)) {
		cpus = fake_last_affinity(&is_callers);
		assert_int_equal(cpus, 0x46);
		assert_false(is_callers);
	}
	close(fd);
	unit_end(&unit);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(thread_goes_to_the_one_node_of_a_policy),
	cmocka_unit_test(thread_keeps_to_processors_it_may_have),
	cmocka_unit_test(thread_stays_without_a_policy_of_one_node),
	cmocka_unit_test(failed_system_calls_leave_the_thread_where_it_is),
	cmocka_unit_test(populate_moves_only_threads_of_its_own),
	cmocka_unit_test(threads_of_a_transfer_follow_its_memory),
	cmocka_unit_test(threads_of_the_caller_stay),
	cmocka_unit_test(one_node_is_asked_for_once),
	cmocka_unit_test(transfers_move_only_threads_of_their_own),
};

UNIT_MAIN(tests)
