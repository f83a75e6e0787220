/* SPDX-License-Identifier: MIT */
/* Host memory that the library makes: options, and the refusals of the kernel */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "unit.h"

#define PAGE	UINT64_C(4096)
#define HUGE	(512 * PAGE)
#define POOL	"/sys/kernel/mm/hugepages/hugepages-2048kB/"

struct scene {
	struct unit unit;
	struct gmem_plan *host, *shared;
	struct gmem_export *exporter;
};

static void scene_begin(struct scene *s)
{
	unit_begin_vm(&s->unit, "6.18");
	s->host = unit_plan(&s->unit, GMEM_BACKING_HOST);
	s->shared = unit_plan(&s->unit, GMEM_BACKING_SHARED);
	assert_ok(gmem_export_new(s->unit.vm, NULL, &s->exporter));
}

static void scene_end(struct scene *s)
{
	gmem_export_free(s->exporter);
	gmem_vm_free(s->unit.vm);
	s->unit.vm = NULL;
	gmem_plan_free(s->host);
	gmem_plan_free(s->shared);
	unit_end(&s->unit);
}

static int try_add(struct scene *s, uint64_t gpa, uint64_t size, uint64_t flags, uint64_t page_size,
		   struct gmem_region **ret)
{
	GMEM_OPTS(gmem_memory_opts, memory, .flags = flags, .page_size = page_size);
	GMEM_OPTS(gmem_region_opts, opts, .plan = s->host, .memory = &memory);

	return gmem_region_add(s->unit.vm, gpa, size, &opts, ret);
}

static struct gmem_region *add(struct scene *s, uint64_t gpa, uint64_t size, uint64_t flags)
{
	struct gmem_region *region = NULL;

	assert_ok(try_add(s, gpa, size, flags, 0, &region));
	return region;
}

/* The file that other processes get of the region at @gpa */
static struct gmem_extent extent_at(struct scene *s, uint64_t gpa)
{
	struct gmem_extent extents[8];
	int count = gmem_export_table(s->exporter, extents, ARRAY_SIZE(extents));

	for (int i = 0; i < count; i++)
		if (extents[i].gpa == gpa)
			return extents[i];
	fail_msg("no extent at gpa 0x%lx: %s", (unsigned long)gpa, gmem_last_error());
	return extents[0];
}

/* ---- options ---- */

static void options_that_exclude_each_other_are_refused(void **state)
{
	static const struct {
		uint64_t flags, page_size, size;
		const char *sentence;
	} cases[] = {
		{ GMEM_MEMORY_THP | GMEM_MEMORY_NO_THP, 0, HUGE, "THP and NO_THP exclude" },
		{ GMEM_MEMORY_HUGETLB | GMEM_MEMORY_THP, 0, HUGE, "HUGETLB and THP exclude" },
		{ GMEM_MEMORY_HUGETLB | GMEM_MEMORY_NO_THP, 0, HUGE, "HUGETLB and NO_THP exclude" },
		{ GMEM_MEMORY_MERGEABLE | GMEM_MEMORY_MEMFD, 0, HUGE, "MERGEABLE and MEMFD exclude" },
		{ GMEM_MEMORY_MERGEABLE | GMEM_MEMORY_HUGETLB, 0, HUGE, "MERGEABLE and HUGETLB exclude" },
		{ 0, HUGE, HUGE, "page_size 0x200000 without GMEM_MEMORY_HUGETLB" },
		{ GMEM_MEMORY_HUGETLB, HUGE + 1, HUGE, "is no size of huge pages" },
		{ GMEM_MEMORY_HUGETLB, PAGE, HUGE, "is no size of huge pages" },
		{ GMEM_MEMORY_HUGETLB, HUGE, HUGE + PAGE, "multiple of the huge page of 2 MiB" },
		{ GMEM_MEMORY_HUGETLB, 0, PAGE, "multiple of the huge page of 2 MiB" },
		{ GMEM_MEMORY_HUGETLB, 8 * HUGE, HUGE, "multiple of the huge page of 16 MiB" },
	};
	struct gmem_region *region;
	struct scene s;

	(void)state;
	scene_begin(&s);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
		assert_refused(-EINVAL, cases[i].sentence,
			       try_add(&s, 0, cases[i].size, cases[i].flags, cases[i].page_size, &region));
	for (int bit = 7; bit < 64; bit++)
		assert_refused(-EINVAL, "flags of memory", try_add(&s, 0, HUGE, UINT64_C(1) << bit, 0, &region));
	scene_end(&s);
}

static void size_of_huge_pages_that_the_kernel_lacks_is_named(void **state)
{
	static const int errs[] = { -ENODEV, -EINVAL };
	struct gmem_region *region;
	struct scene s;

	(void)state;
	scene_begin(&s);
	for (size_t i = 0; i < ARRAY_SIZE(errs); i++) {
		/* -EINVAL is first taken for a flag that the kernel does not know. */
		fake_fail_kind(FAKE_MEMFD, 0, 2, errs[i]);
		assert_refused(-EOPNOTSUPP, "no huge pages of 2 MiB (/sys",
			       try_add(&s, 0, HUGE, GMEM_MEMORY_HUGETLB, HUGE, &region));
		fake_fail_kind(FAKE_MEMFD, 0, 2, errs[i]);
		assert_refused(-EOPNOTSUPP, "no huge pages of the default size (/sys",
			       try_add(&s, 0, HUGE, GMEM_MEMORY_HUGETLB, 0, &region));
	}
	fake_set_file("/sys/kernel/mm/hugepages/hugepages-64kB/free_hugepages", "0\n");
	fake_fail_kind(FAKE_MEMFD, 0, 2, -ENODEV);
	assert_refused(-EOPNOTSUPP, "no huge pages of 2 MiB, but of 64 KiB (/sys",
		       try_add(&s, 0, HUGE, GMEM_MEMORY_HUGETLB, HUGE, &region));
	scene_end(&s);
}

/* A filter of system calls refuses memfds alone. */
static void huge_pages_of_a_size_that_is_asked_for_need_no_memfd(void **state)
{
	static const int errs[] = { -EPERM, -ENOSYS, -EACCES, -EMFILE };
	struct gmem_region *region;
	struct scene s;

	(void)state;
	scene_begin(&s);
	for (size_t i = 0; i < ARRAY_SIZE(errs); i++) {
		fake_fail_kind(FAKE_MEMFD, 0, UINT32_MAX, errs[i]);
		assert_ok(try_add(&s, 0, HUGE, GMEM_MEMORY_HUGETLB, HUGE, &region));
		assert_ok(gmem_region_remove(region));
		assert_refused(errs[i] == -ENOSYS ? -EOPNOTSUPP : errs[i], "no default size of huge pages",
			       try_add(&s, 0, HUGE, GMEM_MEMORY_HUGETLB, 0, &region));
	}

	/* Then it is the mapping that says so. */
	fake_fail_kind(FAKE_MMAP, 0, UINT32_MAX, -EINVAL);
	assert_refused(-EOPNOTSUPP, "no huge pages of 2 MiB",
		       try_add(&s, 0, HUGE, GMEM_MEMORY_HUGETLB, HUGE, &region));
	scene_end(&s);
}

/* Before Linux 6.6, vm.memfd_noexec=2 refuses each memfd that could be executable. */
static void no_memfd_is_executable(void **state)
{
	struct scene s;

	(void)state;
	scene_begin(&s);
	fake.memfd_noexec = true;
	add(&s, 0, HUGE, GMEM_MEMORY_HUGETLB);
	add(&s, HUGE, HUGE, GMEM_MEMORY_HUGETLB | GMEM_MEMORY_MEMFD);
	add(&s, 2 * HUGE, PAGE, GMEM_MEMORY_MEMFD);
	scene_end(&s);
}

static void options_are_for_memory_of_the_library_s(void **state)
{
	GMEM_OPTS(gmem_memory_opts, memory, .flags = 0);
	GMEM_OPTS(gmem_region_opts, opts, .memory = &memory);
	struct gmem_region *region;
	struct scene s;
	void *mine;

	(void)state;
	scene_begin(&s);
	mine = unit_memory(&s.unit, 1);
	assert_refused(-EINVAL, "\"shared\" has no host memory, so no memory options",
		       gmem_region_add(s.unit.vm, 0, PAGE, &opts, &region));
	opts.plan = s.host;
	opts.flags = GMEM_REGION_HVA;
	opts.hva = mine;
	assert_refused(-EINVAL, "is the caller's", gmem_region_add(s.unit.vm, 0, PAGE, &opts, &region));
	memory.size = 8;
	opts.flags = 0;
	assert_refused(-EINVAL, "gmem_memory_opts", gmem_region_add(s.unit.vm, 0, PAGE, &opts, &region));
	opts = (struct gmem_region_opts){ .size = sizeof(opts), .flags = GMEM_REGION_DEVICE, .memory = &memory };
	assert_refused(-EINVAL, "no other option", gmem_region_add(s.unit.vm, 0, PAGE, &opts, &region));
	unit_memory_free(mine);
	scene_end(&s);
}

/* ---- memfds ---- */

static void a_memfd_is_sealed_and_lives_as_long_as_its_regions(void **state)
{
	const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
	struct gmem_region *region, *upper;
	struct gmem_extent extent;
	unsigned fds;
	struct scene s;

	(void)state;
	scene_begin(&s);
	fds = fake_open_fds();
	region = add(&s, 0, 4 * PAGE, GMEM_MEMORY_MEMFD);
	extent = extent_at(&s, 0);
	assert_int_equal(extent.file_size, 4 * PAGE);
	assert_int_equal(extent.rights, GMEM_RIGHT_READ | GMEM_RIGHT_WRITE);
	assert_int_equal(fcntl(extent.fd, F_GET_SEALS) & seals, seals);
	assert_int_equal(fcntl(extent.fd, F_GETFD), FD_CLOEXEC);

	strcpy(gmem_region_hva(region), "guest");
	assert_ok(gmem_region_split(region, PAGE, &upper));
	assert_ok(gmem_region_move(region, 64 * PAGE));
	assert_int_equal(extent_at(&s, PAGE).offset, PAGE);
	assert_int_equal(extent_at(&s, 64 * PAGE).offset, 0);
	assert_int_equal(extent_at(&s, 64 * PAGE).fd, extent_at(&s, PAGE).fd);
	assert_ok(gmem_region_remove(upper));
	assert_string_equal(gmem_region_hva(region), "guest");
	assert_int_equal(fake_open_fds(), fds + 1);
	assert_ok(gmem_region_remove(region));
	assert_int_equal(fake_open_fds(), fds);
	scene_end(&s);
}

static void a_discard_of_a_memfd_frees_its_pages(void **state)
{
	struct gmem_region *region;
	struct gmem_extent extent;
	struct scene s;
	char byte = 0;

	(void)state;
	scene_begin(&s);
	region = add(&s, 0, 4 * PAGE, GMEM_MEMORY_MEMFD);
	memset(gmem_region_hva(region), 1, 4 * PAGE);
	extent = extent_at(&s, 0);
	assert_int_equal(lseek(extent.fd, 0, SEEK_HOLE), 4 * PAGE);
	assert_ok(gmem_vm_discard(s.unit.vm, PAGE, 2 * PAGE, NULL, NULL));
	assert_int_equal(lseek(extent.fd, 0, SEEK_HOLE), PAGE);
	assert_int_equal(pread(extent.fd, &byte, 1, 3 * (off_t)PAGE), 1);
	assert_int_equal(byte, 1);
	scene_end(&s);
}

static void a_memfd_that_cannot_be_had_leaves_nothing(void **state)
{
	static const struct {
		enum fake_call call;
		int err;
		const char *sentence;
	} cases[] = {
		{ FAKE_MEMFD, -EMFILE, "no memfd: EMFILE" },
		{ FAKE_RESIZE, -ENOMEM, "cannot be made 0x4000 bytes large" },
		{ FAKE_SEAL, -EPERM, "cannot be made 0x4000 bytes large, and sealed" },
		{ FAKE_FACTS, -ENOMEM, "cannot be made" },
		{ FAKE_MMAP, -ENOMEM, "0x4000 bytes of host memory cannot be had" },
	};
	struct gmem_region *region;
	struct scene s;

	(void)state;
	scene_begin(&s);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		fake_fail_next(cases[i].call, cases[i].err);
		assert_refused(cases[i].err, cases[i].sentence,
			       try_add(&s, 0, 4 * PAGE, GMEM_MEMORY_MEMFD, 0, &region));
	}
	fake_set_limit(RLIMIT_FSIZE, 3 * PAGE);
	assert_refused(-EFBIG, "0x4000 bytes large", try_add(&s, 0, 4 * PAGE, GMEM_MEMORY_MEMFD, 0, &region));
	fake_set_limit(RLIMIT_FSIZE, UINT64_MAX);

	/* Before Linux 6.3 a flag is unknown. */
	fake_fail_next(FAKE_MEMFD, -EINVAL);
	add(&s, 0, 4 * PAGE, GMEM_MEMORY_MEMFD);
	scene_end(&s);
}

/* ---- huge pages ---- */

static void memory_of_huge_pages_is_split_between_them(void **state)
{
	struct gmem_region *region, *upper;
	struct scene s;

	(void)state;
	scene_begin(&s);
	for (uint64_t memfd = 0; memfd <= GMEM_MEMORY_MEMFD; memfd++) {
		region = add(&s, 0, 2 * HUGE, GMEM_MEMORY_HUGETLB | memfd);
		assert_refused(-EINVAL, "inside a huge page of 2 MiB",
			       gmem_region_split(region, HUGE + PAGE, &upper));
		assert_ok(gmem_region_remove(region));
	}
	scene_end(&s);
}

static void pool_of_huge_pages_is_blamed_only_if_it_is_short(void **state)
{
	struct gmem_region *region;
	struct scene s;

	(void)state;
	scene_begin(&s);
	fake_set_file(POOL "free_hugepages", "5\n");
	fake_set_file(POOL "resv_hugepages", "3\n");
	fake_fail_next(FAKE_MMAP, -ENOMEM);
	assert_refused(-ENOMEM, "3 huge pages of 2 MiB are missing: 5 are free",
		       try_add(&s, 0, 3 * HUGE, GMEM_MEMORY_HUGETLB, HUGE, &region));

	fake_set_file("/proc/self/statm", "100 1 1\n");
	fake_set_limit(RLIMIT_AS, HUGE);
	fake_fail_next(FAKE_MMAP, -ENOMEM);
	assert_refused(-ENOMEM, "cannot be had in huge pages of 2 MiB: ENOMEM: RLIMIT_AS is 0x200000",
		       try_add(&s, 0, 2 * HUGE, GMEM_MEMORY_HUGETLB, HUGE, &region));

	/* Where the pool cannot be looked at, it is only a guess. */
	fake_set_file(POOL "free_hugepages", NULL);
	fake_fail_next(FAKE_MMAP, -ENOMEM);
	assert_refused(-ENOMEM, "there may be too few (/sys/kernel/mm/hugepages): ENOMEM: RLIMIT_AS",
		       try_add(&s, 0, 2 * HUGE, GMEM_MEMORY_HUGETLB, HUGE, &region));
	scene_end(&s);
}

static void advice_for_huge_pages_makes_addresses_congruent(void **state)
{
	struct gmem_region *region;
	struct scene s;

	(void)state;
	scene_begin(&s);
	region = add(&s, 3 * PAGE, 2 * HUGE, GMEM_MEMORY_THP);
	assert_int_equal((uintptr_t)gmem_region_hva(region) % HUGE, 3 * PAGE);
	region = add(&s, 8 * HUGE, 2 * HUGE, GMEM_MEMORY_THP | GMEM_MEMORY_MEMFD);
	assert_int_equal((uintptr_t)gmem_region_hva(region) % HUGE, 0);
	scene_end(&s);
}

/* ---- advice ---- */

static void advice_that_the_kernel_lacks_is_named(void **state)
{
	static const struct {
		uint64_t flags;
		int err, gives;
		const char *sentence;
	} cases[] = {
		{ GMEM_MEMORY_THP, -EINVAL, -EOPNOTSUPP, "MADV_HUGEPAGE is refused" },
		{ GMEM_MEMORY_THP, -EINVAL, -EOPNOTSUPP, "no transparent huge pages" },
		{ GMEM_MEMORY_NO_THP, -EINVAL, -EOPNOTSUPP, "no transparent huge pages" },
		{ GMEM_MEMORY_MERGEABLE, -EINVAL, -EOPNOTSUPP, "no KSM" },
		{ GMEM_MEMORY_DONTFORK, -ENOMEM, -ENOMEM, "MADV_DONTFORK is refused" },
		{ 0, -ENOMEM, -ENOMEM, "MADV_DONTDUMP is refused" },
		{ GMEM_MEMORY_MEMFD, -EPERM, -EPERM, "MADV_DONTDUMP is refused" },
	};
	struct gmem_region *region;
	struct scene s;

	(void)state;
	scene_begin(&s);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		fake_fail_next(FAKE_MADVISE, cases[i].err);
		assert_refused(cases[i].gives, cases[i].sentence,
			       try_add(&s, 0, 4 * PAGE, cases[i].flags, 0, &region));
	}
	scene_end(&s);
}

static void guest_memory_is_not_dumped_unless_asked(void **state)
{
	struct scene s;
	unsigned calls;

	(void)state;
	scene_begin(&s);
	add(&s, 0, PAGE, 0);
	assert_int_equal(fake_last_advice(), MADV_DONTDUMP);
	calls = fake_count(FAKE_MADVISE);
	add(&s, PAGE, PAGE, GMEM_MEMORY_DUMP);
	assert_int_equal(fake_count(FAKE_MADVISE), calls);
	unit_region_backed(&s.unit, 8, 1, GMEM_BACKING_SHARED);
	assert_int_equal(fake_last_advice(), MADV_DONTDUMP);
	scene_end(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(options_that_exclude_each_other_are_refused),
		cmocka_unit_test(size_of_huge_pages_that_the_kernel_lacks_is_named),
		cmocka_unit_test(huge_pages_of_a_size_that_is_asked_for_need_no_memfd),
		cmocka_unit_test(no_memfd_is_executable),
		cmocka_unit_test(options_are_for_memory_of_the_library_s),
		cmocka_unit_test(a_memfd_is_sealed_and_lives_as_long_as_its_regions),
		cmocka_unit_test(a_discard_of_a_memfd_frees_its_pages),
		cmocka_unit_test(a_memfd_that_cannot_be_had_leaves_nothing),
		cmocka_unit_test(memory_of_huge_pages_is_split_between_them),
		cmocka_unit_test(pool_of_huge_pages_is_blamed_only_if_it_is_short),
		cmocka_unit_test(advice_for_huge_pages_makes_addresses_congruent),
		cmocka_unit_test(advice_that_the_kernel_lacks_is_named),
		cmocka_unit_test(guest_memory_is_not_dumped_unless_asked),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
