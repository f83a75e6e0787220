/* SPDX-License-Identifier: MIT */
/* available: memory left in the machine and in the memory cgroups above this process */
#include <errno.h>
#include <string.h>

#include "region/available.h"
#include "unit.h"

#define MIB	((uint64_t)1 << 20)

static void begin(void)
{
	fake_boot("6.18");
}

static void end(void)
{
	assert_int_equal(fake_halt(), 0);
}

/* A v2 cgroup two below the root, of 100 MiB of which 40 are in use, 10 of them page cache */
static void begin_v2(void)
{
	begin();
	fake_set_file("/proc/meminfo", "MemTotal: 9999999 kB\nMemFree: 1 kB\n"
				       "MemAvailable:     1048576 kB\nBuffers: 4 kB\n");
	fake_set_file("/proc/self/cgroup", "0::/outer/inner\n");
	fake_set_file("/sys/fs/cgroup/outer/inner/memory.max", "104857600\n");
	fake_set_file("/sys/fs/cgroup/outer/inner/memory.current", "41943040\n");
	fake_set_file("/sys/fs/cgroup/outer/inner/memory.stat",
		      "anon 1\nfile 20971520\nactive_file 1\ninactive_file 10485760\nslab 1\n");
	fake_set_file("/sys/fs/cgroup/outer/memory.max", "max\n");
	fake_set_file("/sys/fs/cgroup/outer/memory.current", "999999999999\n");
}

static void unknown_numbers_set_no_limit(void **state)
{
	(void)state;
	begin();
	assert_ok(gmem_check_available_memory(UINT64_MAX));
	fake_set_file("/proc/meminfo", "MemTotal: 5 kB\n");
	fake_set_file("/proc/self/cgroup", "\n:\n0:\n0::\n7:cpu,cpuset:/a\nrubbish\n0::/gone\n");
	assert_ok(gmem_check_available_memory(UINT64_MAX));
	end();
}

static void machine_has_what_is_available(void **state)
{
	(void)state;
	begin();
	fake_set_file("/proc/meminfo", "MemTotal: 9 kB\nMemAvailable:   1024 kB\n");
	assert_ok(gmem_check_available_memory(MIB));
	assert_refused(-ENOMEM, "0x100001 bytes more, with page tables, do not fit: the machine has 0x100000",
		       gmem_check_available_memory(MIB + 1));
	end();
}

static void cgroup_has_its_limit_less_what_is_in_use(void **state)
{
	(void)state;
	begin_v2();
	assert_ok(gmem_check_available_memory(60 * MIB));
	assert_ok(gmem_check_available_memory(70 * MIB));
	assert_refused(-ENOMEM, "memory.max of /sys/fs/cgroup/outer/inner is 0x6400000, 0x2800000",
		       gmem_check_available_memory(70 * MIB + 1));
	end();
}

static void every_cgroup_above_counts(void **state)
{
	(void)state;
	begin_v2();
	fake_set_file("/sys/fs/cgroup/outer/memory.max", "20971520\n");
	fake_set_file("/sys/fs/cgroup/outer/memory.current", "10485760\n");
	assert_ok(gmem_check_available_memory(10 * MIB));
	assert_refused(-ENOMEM, "memory.max of /sys/fs/cgroup/outer is",
		       gmem_check_available_memory(10 * MIB + 1));

	/* The root of a cgroup namespace, too, has a limit. */
	fake_set_file("/sys/fs/cgroup/memory.max", "1048576\n");
	fake_set_file("/sys/fs/cgroup/memory.current", "0\n");
	assert_refused(-ENOMEM, "memory.max of /sys/fs/cgroup is",
		       gmem_check_available_memory(MIB + 1));
	fake_set_file("/proc/self/cgroup", "0::/\n");
	assert_refused(-ENOMEM, "memory.max of /sys/fs/cgroup is",
		       gmem_check_available_memory(MIB + 1));
	end();
}

static void cgroup_over_its_limit_has_nothing(void **state)
{
	(void)state;
	begin_v2();
	fake_set_file("/sys/fs/cgroup/outer/inner/memory.current", "204857600\n");
	fake_set_file("/sys/fs/cgroup/outer/inner/memory.stat", NULL);
	assert_ok(gmem_check_available_memory(0));
	assert_refused(-ENOMEM, "0x0 of them can be reclaimed", gmem_check_available_memory(1));
	end();
}

static void cgroups_of_the_first_version_count_too(void **state)
{
	(void)state;
	begin();
	fake_set_file("/proc/self/cgroup", "5:cpu:/other\n4:hugetlb,memory:/box/vm\n0::/\n");
	fake_set_file("/sys/fs/cgroup/memory/box/memory.limit_in_bytes", "10485760\n");
	fake_set_file("/sys/fs/cgroup/memory/box/memory.usage_in_bytes", "5242880\n");
	fake_set_file("/sys/fs/cgroup/memory/box/memory.stat",
		      "inactive_file 9999999\ntotal_inactive_file 1048576\n");
	fake_set_file("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
	fake_set_file("/sys/fs/cgroup/memory/memory.usage_in_bytes", "1\n");
	assert_ok(gmem_check_available_memory(6 * MIB));
	assert_refused(-ENOMEM, "memory.limit_in_bytes of /sys/fs/cgroup/memory/box is",
		       gmem_check_available_memory(6 * MIB + 1));
	end();
}

static void unified_hierarchy_may_stand_beside_the_first_version(void **state)
{
	(void)state;
	begin();
	fake_set_file("/proc/self/cgroup", "1:name=systemd:/x\n0::/vm\n");
	fake_set_file("/sys/fs/cgroup/unified/vm/memory.max", "4096\n");
	fake_set_file("/sys/fs/cgroup/unified/vm/memory.current", "0\n");
	assert_ok(gmem_check_available_memory(4096));
	assert_refused(-ENOMEM, "/sys/fs/cgroup/unified/vm", gmem_check_available_memory(4097));
	end();
}

static void endless_paths_are_no_limit(void **state)
{
	static char line[6000];

	(void)state;
	begin();
	memset(line, 'a', sizeof(line) - 1);
	memcpy(line, "0::/", 4);
	fake_set_file("/proc/self/cgroup", line);
	assert_ok(gmem_check_available_memory(MIB));
	end();
}

static void group_that_would_be_put_to_sleep_has_no_more(void **state)
{
	(void)state;
	begin_v2();
	fake_set_file("/sys/fs/cgroup/outer/inner/memory.high", "62914560\n");
	assert_ok(gmem_check_available_memory(30 * MIB));
	assert_refused(-ENOMEM, "memory.high of /sys/fs/cgroup/outer/inner is 0x3c00000, 0x2800000",
		       gmem_check_available_memory(30 * MIB + 1));
	fake_set_file("/sys/fs/cgroup/outer/inner/memory.high", "max\n");
	assert_ok(gmem_check_available_memory(70 * MIB));
	end();
}

/* ---- huge pages ---- */

#define HUGE	((uint64_t)2 << 20)
#define POOL	"/sys/kernel/mm/hugepages/hugepages-2048kB/"

static void begin_pool(const char *is_free, const char *reserved)
{
	begin();
	fake_set_file(POOL "free_hugepages", is_free);
	fake_set_file(POOL "resv_hugepages", reserved);
}

static void free_huge_pages_are_those_that_nobody_reserved(void **state)
{
	char page[4096];

	(void)state;
	begin_pool("8\n", "3\n");
	fake_mark_mapping(page, sizeof(page), 0, "nr", 0);
	assert_ok(gmem_check_huge_pages_fit(HUGE, 5, page));
	assert_refused(-ENOMEM, "6 huge pages of 2 MiB are missing: 8 are free, 3 of them reserved",
		       gmem_check_huge_pages_fit(HUGE, 6, page));
	assert_refused(-ENOMEM, "raise " POOL "nr_hugepages", gmem_check_huge_pages_fit(HUGE, 6, page));
	fake_set_file(POOL "nr_overcommit_hugepages", "4\n");
	fake_set_file(POOL "surplus_hugepages", "1\n");
	assert_ok(gmem_check_huge_pages_fit(HUGE, 8, page));
	assert_refused(-ENOMEM, "and 3 may be made", gmem_check_huge_pages_fit(HUGE, 9, page));
	end();
}

static void huge_pages_may_be_reserved_for_the_very_mapping(void **state)
{
	char page[4096];

	(void)state;
	begin_pool("8\n", "8\n");
	assert_ok(gmem_check_huge_pages_fit(HUGE, 8, page));
	assert_ok(gmem_check_huge_pages_fit(HUGE, 8, NULL));
	assert_refused(-ENOMEM, "9 huge pages of 2 MiB are missing: 8 are free, 0",
		       gmem_check_huge_pages_fit(HUGE, 9, page));
	end();
}

static void reservation_that_cannot_be_asked_for_is_no_refusal(void **state)
{
	char page[4096];
	unsigned int files;

	(void)state;
	begin_pool("8\n", "3\n");
	fake_mark_mapping(page, sizeof(page), 0, "nr", 0);
	files = fake_count(FAKE_OPEN);
	assert_refused(-ENOMEM, "8 are free, 3", gmem_check_huge_pages_fit(HUGE, 6, page));
	files = fake_count(FAKE_OPEN) - files;
	/* the last one is smaps, where the kernel says that nothing is reserved */
	fake_fail_kind(FAKE_OPEN, files - 1, 1, -EMFILE);
	assert_ok(gmem_check_huge_pages_fit(HUGE, 6, page));
	end();
}

static void unknown_pool_sets_no_limit(void **state)
{
	(void)state;
	begin();
	assert_ok(gmem_check_huge_pages_fit(HUGE, UINT64_C(1) << 40, NULL));
	end();
}

static void cgroup_limits_huge_pages_too(void **state)
{
	(void)state;
	begin_pool("100\n", "0\n");
	fake_set_file("/proc/self/cgroup", "3:cpu,hugetlb:/old\n0::/new\n");
	fake_set_file("/sys/fs/cgroup/new/hugetlb.2MB.max", "8388608\n");
	fake_set_file("/sys/fs/cgroup/new/hugetlb.2MB.current", "2097152\n");
	assert_ok(gmem_check_huge_pages_fit(HUGE, 3, NULL));
	assert_refused(-ENOMEM, "0x800000 bytes more do not fit: hugetlb.2MB.max of /sys/fs/cgroup/new is 0x800000",
		       gmem_check_huge_pages_fit(HUGE, 4, NULL));
	fake_set_file("/sys/fs/cgroup/hugetlb/old/hugetlb.2MB.limit_in_bytes", "2097152\n");
	fake_set_file("/sys/fs/cgroup/hugetlb/old/hugetlb.2MB.usage_in_bytes", "0\n");
	assert_refused(-ENOMEM, "hugetlb.2MB.limit_in_bytes of", gmem_check_huge_pages_fit(HUGE, 2, NULL));
	end();
}

static void missing_huge_pages_are_counted_whole(void **state)
{
	const char *hva = (const char *)(uintptr_t)(16 * HUGE);

	(void)state;
	assert_int_equal(gmem_count_missing_huge_pages(hva, 4 * HUGE, HUGE, 0), 4);
	assert_int_equal(gmem_count_missing_huge_pages(hva + 4096, 2 * HUGE, HUGE, 0), 3);
	assert_int_equal(gmem_count_missing_huge_pages(hva, 4096, HUGE, 0), 1);
	assert_int_equal(gmem_count_missing_huge_pages(hva, 4096, HUGE, 4096), 0);
	assert_int_equal(gmem_count_missing_huge_pages(hva, 4 * HUGE, HUGE, HUGE), 3);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(unknown_numbers_set_no_limit),
	cmocka_unit_test(machine_has_what_is_available),
	cmocka_unit_test(cgroup_has_its_limit_less_what_is_in_use),
	cmocka_unit_test(every_cgroup_above_counts),
	cmocka_unit_test(cgroup_over_its_limit_has_nothing),
	cmocka_unit_test(cgroups_of_the_first_version_count_too),
	cmocka_unit_test(unified_hierarchy_may_stand_beside_the_first_version),
	cmocka_unit_test(group_that_would_be_put_to_sleep_has_no_more),
	cmocka_unit_test(endless_paths_are_no_limit),
	cmocka_unit_test(free_huge_pages_are_those_that_nobody_reserved),
	cmocka_unit_test(huge_pages_may_be_reserved_for_the_very_mapping),
	cmocka_unit_test(reservation_that_cannot_be_asked_for_is_no_refusal),
	cmocka_unit_test(unknown_pool_sets_no_limit),
	cmocka_unit_test(cgroup_limits_huge_pages_too),
	cmocka_unit_test(missing_huge_pages_are_counted_whole),
};

UNIT_MAIN(tests)
