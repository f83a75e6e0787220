/* SPDX-License-Identifier: MIT */
/* host_mapping: what /proc says, on kernels that tell more and less */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "region/host_mapping.h"
#include "unit.h"

#define PAGE	((uint64_t)4096)
#define HUGE	((uint64_t)2 << 20)

static char *base;

/* Six pages with a gap: two, none, two that the host may only read, one */
static void begin(void)
{
	fake_boot("6.18");
	base = mmap(NULL, 6 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(base, MAP_FAILED);
	assert_int_equal(munmap(base + 2 * PAGE, PAGE), 0);
	assert_int_equal(mprotect(base + 3 * PAGE, 2 * PAGE, PROT_READ), 0);
}

static void end(void)
{
	assert_int_equal(munmap(base, 6 * PAGE), 0);
	assert_int_equal(fake_complaints(), 0);
	assert_int_equal(fake_halt(), 0);
}

struct seen {
	struct gmem_host_mapping all[16];
	size_t count;
	int answer;
};

static int see(void *data, const struct gmem_host_mapping *mapping)
{
	struct seen *seen = data;

	assert_true(seen->count < 16);
	seen->all[seen->count++] = *mapping;
	return seen->answer;
}

static struct seen look(uint64_t first, uint64_t pages, bool in_full)
{
	struct seen seen = { .count = 0 };

	assert_ok(gmem_host_mappings(base + first * PAGE, pages * PAGE, in_full, see, &seen));
	return seen;
}

static uint64_t at(uint64_t page)
{
	return (uintptr_t)base + page * PAGE;
}

static void check_three(const struct seen *seen)
{
	assert_int_equal(seen->count, 3);
	assert_int_equal(seen->all[0].end, at(2));
	assert_int_equal(seen->all[0].prot, PROT_READ | PROT_WRITE);
	assert_int_equal(seen->all[1].start, at(3));
	assert_int_equal(seen->all[1].end, at(5));
	assert_int_equal(seen->all[1].prot, PROT_READ);
	assert_int_equal(seen->all[2].start, at(5));
	for (size_t i = 0; i < 3; i++) {
		assert_int_equal(seen->all[i].flags, 0);
		assert_int_equal(seen->all[i].page_size, PAGE);
		assert_int_equal(seen->all[i].inode, 0);
	}
}

static void every_source_tells_of_each_mapping_and_no_gap(void **state)
{
	struct seen seen;

	(void)state;
	begin();
	fake_mark_mapping(base, 2 * PAGE, PAGE, "ac", 0);
	seen = look(0, 6, false);
	check_three(&seen);
	assert_int_equal(fake_count(FAKE_OPEN), 1);
	seen = look(0, 6, true);
	check_three(&seen);
	assert_int_equal(fake_count(FAKE_OPEN), 2);
	fake.no_mapping_query = true;
	seen = look(0, 6, false);
	check_three(&seen);

	assert_int_equal(look(1, 1, false).count, 1);
	assert_int_equal(look(2, 1, false).count, 0);
	assert_int_equal(look(2, 1, true).count, 0);
	end();
}

static void files_are_told_with_their_offset(void **state)
{
	uint64_t inode = 0;
	char *shared;
	int in_full;

	(void)state;
	begin();
	shared = mmap(base + 2 * PAGE, PAGE, PROT_READ, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	assert_ptr_equal(shared, base + 2 * PAGE);
	for (in_full = 0; in_full < 2; in_full++) {
		struct seen seen = look(2, 1, in_full);

		assert_int_equal(seen.count, 1);
		assert_int_equal(seen.all[0].flags,
				 GMEM_MAPPING_SHARED | GMEM_MAPPING_FILE | GMEM_MAPPING_NAMELESS);
		assert_int_equal(seen.all[0].offset, 0);
		assert_int_not_equal(seen.all[0].inode, 0);
		assert_true(inode == 0 || inode == seen.all[0].inode);
		inode = seen.all[0].inode;
	}
	end();
}

static void only_smaps_knows_what_userfaultfd_owes(void **state)
{
	struct seen seen;

	(void)state;
	begin();
	fake_mark_mapping(base + 3 * PAGE, PAGE, 0, "um ui", 8 * PAGE);
	seen = look(3, 1, false);
	assert_int_equal(seen.all[0].flags, 0);
	assert_false(seen.all[0].known & GMEM_MAPPING_UFFD_MISSING);
	seen = look(3, 2, true);
	assert_int_equal(seen.count, 2);
	assert_int_equal(seen.all[0].flags, GMEM_MAPPING_UFFD_MISSING | GMEM_MAPPING_UFFD_MINOR);
	assert_int_equal(seen.all[0].swap, 8 * PAGE);
	assert_int_equal(seen.all[1].flags, 0);
	assert_true(seen.all[1].known & GMEM_MAPPING_UFFD_MISSING);
	end();
}

static struct gmem_host_nature learn(uint64_t pages, uint32_t wanted)
{
	struct gmem_host_nature nature;

	assert_ok(gmem_host_mapping_learn(NULL, base, pages * PAGE, wanted, &nature));
	return nature;
}

static void map_file_at_first_page(void)
{
	void *p = mmap(base, PAGE, PROT_READ, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);

	assert_ptr_equal(p, base);
}

static void locked_memory_is_asked_about_twice_and_is_no_device(void **state)
{
	(void)state;
	begin();
	/* No device maps memory without a file. */
	fake_mark_mapping(base, PAGE, 0, "lo", 0);
	assert_false(learn(2, GMEM_MAPPING_DEVICE).has_device);
	assert_int_equal(fake_count(FAKE_OPEN), 1);

	map_file_at_first_page();
	assert_false(learn(2, GMEM_MAPPING_DEVICE).has_device);
	assert_int_equal(fake_count(FAKE_OPEN), 3);

	/* The size of its pages is known from the first answer. */
	assert_int_equal(learn(2, GMEM_MAPPING_HUGETLB).page_size, PAGE);
	assert_int_equal(fake_count(FAKE_OPEN), 4);
	end();
}

static void device_is_found_behind_other_memory(void **state)
{
	(void)state;
	begin();
	fake_mark_mapping(base + 5 * PAGE, PAGE, 0, "io pf dd", 0);
	assert_true(learn(6, GMEM_MAPPING_DEVICE).has_device);
	fake.no_mapping_query = true;
	assert_false(learn(5, GMEM_MAPPING_DEVICE).has_device);
	assert_true(learn(6, GMEM_MAPPING_DEVICE).has_device);
	end();
}

static void size_of_huge_pages_is_known_to_each_source(void **state)
{
	(void)state;
	begin();
	fake_mark_mapping(base + 5 * PAGE, PAGE, HUGE, "ht", 0);
	assert_int_equal(learn(5, GMEM_MAPPING_HUGETLB).page_size, PAGE);
	assert_false(learn(5, GMEM_MAPPING_HUGETLB).mixes_pages);
	assert_int_equal(learn(6, GMEM_MAPPING_HUGETLB).page_size, HUGE);
	assert_true(learn(6, GMEM_MAPPING_HUGETLB).mixes_pages);
	assert_int_equal(look(5, 1, false).all[0].flags, GMEM_MAPPING_HUGETLB);
	fake.no_mapping_query = true;
	assert_int_equal(learn(6, GMEM_MAPPING_HUGETLB).page_size, HUGE);
	assert_int_equal(look(5, 1, true).all[0].flags, GMEM_MAPPING_HUGETLB);
	end();
}

/* Whatever the file that stays open says, and whoever refuses the call: the size of pages is known. */
static void file_that_stays_open_may_cease_to_answer(void **state)
{
	const int errors[] = { -ENOTTY, -EINVAL, -EPERM, -ENOSYS, -EBADF, -ESRCH, -EACCES };
	struct gmem_host_maps maps = { 0 };
	struct gmem_host_nature nature;
	unsigned int times;

	(void)state;
	begin();
	fake_mark_mapping(base + 5 * PAGE, PAGE, HUGE, "ht", 0);
	for (size_t i = 0; i < ARRAY_SIZE(errors); i++) {
		/* the file that stays open, and then the new one, too, where the kernel has no such call */
		for (times = 1; times <= (i < 4 ? 2 : 1); times++) {
			assert_ok(gmem_host_mapping_learn(&maps, base, 2 * PAGE, GMEM_MAPPING_HUGETLB, &nature));
			assert_int_equal(nature.page_size, PAGE);
			assert_true(maps.opened);
			fake_fail_kind(FAKE_MAPPING_AT, 0, times, errors[i]);
			assert_ok(gmem_host_mapping_learn(&maps, base, 6 * PAGE, GMEM_MAPPING_HUGETLB, &nature));
			assert_int_equal(nature.page_size, HUGE);
			assert_true(nature.mixes_pages);
		}
		if (i < 4) {
			fake_fail_kind(FAKE_MAPPING_AT, 0, 1, errors[i]);
			assert_int_equal(learn(6, GMEM_MAPPING_HUGETLB).page_size, HUGE);
		}
	}
	gmem_host_maps_close(&maps);
	end();
}

/* One look tells all of it, and what it leaves open does not hide the rest. */
static void everything_is_learned_in_one_look(void **state)
{
	struct gmem_host_nature nature;

	(void)state;
	begin();
	fake_mark_mapping(base + 5 * PAGE, PAGE, HUGE, "ht", 0);
	nature = learn(6, GMEM_MAPPING_DEVICE | GMEM_MAPPING_HUGETLB);
	assert_true(nature.mixes_pages);
	assert_false(nature.has_device || nature.has_private_file);
	assert_int_equal(fake_count(FAKE_OPEN), 1);

	map_file_at_first_page();
	fake_mark_mapping(base, PAGE, 0, "lo", 0);
	fake_fail_kind(FAKE_OPEN, 1, 1, -EMFILE);
	assert_int_equal(gmem_host_mapping_learn(NULL, base, 6 * PAGE, GMEM_MAPPING_DEVICE, &nature), -EMFILE);
	assert_int_equal(nature.page_size, HUGE);
	end();
}

static void without_proc_nothing_is_known(void **state)
{
	struct seen seen = { .count = 0 };
	struct gmem_host_nature nature;

	(void)state;
	begin();
	fake.no_proc = true;
	assert_int_equal(gmem_host_mappings(base, PAGE, false, see, &seen), -ENOENT);
	assert_int_equal(gmem_host_mappings(base, PAGE, true, see, &seen), -ENOENT);
	assert_int_equal(gmem_host_mapping_learn(NULL, base, PAGE, GMEM_MAPPING_DEVICE, &nature), -ENOENT);
	assert_int_equal(nature.page_size, 0);
	assert_int_equal(seen.count, 0);
	end();
}

static void walk_ends_when_it_is_told_to(void **state)
{
	struct seen seen = { .answer = 7 };

	(void)state;
	begin();
	for (int in_full = 0; in_full < 2; in_full++) {
		assert_int_equal(gmem_host_mappings(base, 6 * PAGE, in_full, see, &seen), 7);
		assert_int_equal(seen.count, 1 + in_full);
	}
	end();
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(every_source_tells_of_each_mapping_and_no_gap),
	cmocka_unit_test(files_are_told_with_their_offset),
	cmocka_unit_test(only_smaps_knows_what_userfaultfd_owes),
	cmocka_unit_test(locked_memory_is_asked_about_twice_and_is_no_device),
	cmocka_unit_test(device_is_found_behind_other_memory),
	cmocka_unit_test(size_of_huge_pages_is_known_to_each_source),
	cmocka_unit_test(file_that_stays_open_may_cease_to_answer),
	cmocka_unit_test(everything_is_learned_in_one_look),
	cmocka_unit_test(without_proc_nothing_is_known),
	cmocka_unit_test(walk_ends_when_it_is_told_to),
};

UNIT_MAIN(tests)
