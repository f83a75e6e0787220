/* SPDX-License-Identifier: MIT */
/* host_discard and host_look: host memory is freed, and looked at, by what is mapped there */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "os/sys.h"
#include "region/host_look.h"
#include "region/present_pages.h"
#include "region/region_memory.h"
#include "unit.h"

#define COUNT	8		/* pages of the region */

/* What a limit that is reached may be told as */
static const int limits[] = { -EMFILE, -ENFILE, -ENOMEM };

#define LIMITS (sizeof(limits) / sizeof(limits[0]))

enum kind { ANONYMOUS, SHARED_ANONYMOUS, SHARED_FILE, PRIVATE_FILE };

/* A region of the caller's memory, every page of it written */
struct memory {
	struct unit unit;
	struct gmem_region *region;
	enum kind kind;
	uint64_t size;
	char *hva;
	int fd;
};

static void map(struct memory *memory)
{
	static const int flags[] = { MAP_PRIVATE | MAP_ANONYMOUS, MAP_SHARED | MAP_ANONYMOUS, MAP_SHARED,
				     MAP_PRIVATE };

	memory->fd = -1;
	if (memory->kind >= SHARED_FILE) {
		memory->fd = memfd_create("memory", MFD_ALLOW_SEALING | MFD_CLOEXEC);
		assert_int_equal(ftruncate(memory->fd, (off_t)memory->size), 0);
	}
	memory->hva = mmap(NULL, memory->size, PROT_READ | PROT_WRITE, flags[memory->kind], memory->fd, 0);
	assert_ptr_not_equal(memory->hva, MAP_FAILED);
}

static int add(struct memory *memory)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_HVA, .hva = memory->hva);
	struct gmem_plan *plan = unit_plan(&memory->unit, GMEM_BACKING_HOST);
	int err;

	opts.plan = plan;
	err = gmem_region_add(memory->unit.vm, 0, memory->size, &opts, &memory->region);
	gmem_plan_free(plan);
	return err;
}

static void begin_unwritten(struct memory *memory, enum kind kind)
{
	memory->kind = kind;
	unit_begin_vm(&memory->unit, "6.18");
	memory->size = PAGES(&memory->unit, COUNT);
	map(memory);
	assert_ok(add(memory));
}

static void begin(struct memory *memory, enum kind kind)
{
	begin_unwritten(memory, kind);
	memset(memory->hva, 1, memory->size);
}

static void end(struct memory *memory)
{
	unit_end(&memory->unit);
	munmap(memory->hva, memory->size);
	if (memory->fd >= 0)
		close(memory->fd);
}

static int discard(struct memory *memory, uint64_t page, uint64_t pages, uint64_t flags, uint64_t *ret_done)
{
	GMEM_OPTS(gmem_discard_opts, opts, .flags = flags);
	struct gmem_footprint footprint;
	uint64_t size = memory->unit.page;
	int err = gmem_vm_discard(memory->unit.vm, page * size, pages * size, &opts, &footprint);

	*ret_done = footprint.done / size;
	return err;
}

/* "1" for a page that has its bytes, "0" for one of zeros */
static void assert_pages(const struct memory *memory, const char *expected)
{
	char pages[COUNT + 1] = "";

	for (uint64_t i = 0; i < COUNT; i++)
		pages[i] = memory->hva[PAGES(&memory->unit, i)] == 1 ? '1' : '0';
	assert_string_equal(pages, expected);
}

/* ---- discard ---- */

static void shared_and_private_memory_is_freed(void **state)
{
	struct memory memory;
	uint64_t done;

	(void)state;
	for (enum kind kind = ANONYMOUS; kind <= SHARED_FILE; kind++) {
		for (int proc = 0; proc < 2; proc++) {
			begin(&memory, kind);
			fake.no_proc = !proc;
			assert_ok(discard(&memory, 2, 3, 0, &done));
			assert_int_equal(done, 3);
			assert_ok(discard(&memory, 6, 1, 0, &done));
			assert_int_equal(done, 1);
			assert_pages(&memory, "11000101");
			end(&memory);
		}
	}
}

static void private_file_is_not_freed_unless_its_bytes_may_come_back(void **state)
{
	struct memory memory;
	uint64_t done;

	(void)state;
	for (int proc = 0; proc < 2; proc++) {
		begin(&memory, PRIVATE_FILE);
		fake.no_proc = !proc;
		/* A single page, too, and not only the first time */
		for (uint64_t pages = 1; pages <= 3; pages++) {
			assert_refused(-EOPNOTSUPP, "it would show the file again, not zeros (GMEM_DISCARD_NOT_ZERO",
				       discard(&memory, 0, pages, 0, &done));
			assert_int_equal(done, 0);
		}
		assert_pages(&memory, "11111111");
		assert_ok(discard(&memory, 0, 3, GMEM_DISCARD_NOT_ZERO, &done));
		assert_int_equal(done, 3);
		assert_pages(&memory, "00011111");
		end(&memory);
	}
}

static void userfaultfds_memory_is_not_freed_unless_its_handler_may_be_asked(void **state)
{
	struct memory memory;
	uint64_t done;

	(void)state;
	for (enum kind kind = ANONYMOUS; kind <= SHARED_FILE; kind++) {
		begin(&memory, kind);
		fake_mark_mapping(memory.hva, memory.size, 0, "um", 0);
		assert_refused(-EOPNOTSUPP, "userfaultfd would ask its handler", discard(&memory, 0, 4, 0, &done));
		assert_int_equal(done, 0);
		assert_pages(&memory, "01111111");
		assert_ok(discard(&memory, 0, 4, GMEM_DISCARD_NOT_ZERO, &done));
		assert_int_equal(done, 4);
		end(&memory);
	}
}

/* The walk of all page tables is for the case that something is wrong. */
static void each_discard_looks_for_userfaultfd_and_none_walks_page_tables(void **state)
{
	struct memory memory;
	unsigned int before;
	uint64_t done;

	(void)state;
	begin(&memory, ANONYMOUS);
	before = fake_count(FAKE_MAPPING_AT);
	for (int i = 0; i < 17; i++)
		assert_ok(discard(&memory, 1, 1, 0, &done));
	assert_int_equal(fake_count(FAKE_TRY_READ), 17);
	assert_int_equal(fake_count(FAKE_MAPPING_AT) - before, 17);
	/* One file is opened, for what is mapped; a second would be for all page tables. */
	fake_fail_kind(FAKE_OPEN, 1, 1, -EIO);
	assert_ok(discard(&memory, 0, COUNT, 0, &done));
	assert_false(fake_fail_struck());
	end(&memory);
}

/* What conversions discard: a page at a time, of memory that need not be zero afterwards */
static void page_of_anonymous_memory_is_freed_without_proc(void **state)
{
	struct memory memory;
	unsigned int before;
	uint64_t done;

	(void)state;
	for (enum kind kind = ANONYMOUS; kind <= SHARED_FILE; kind++) {
		begin(&memory, kind);
		before = fake_count(FAKE_OPEN);
		assert_ok(discard(&memory, 3, 1, GMEM_DISCARD_NOT_ZERO, &done));
		assert_int_equal(done, 1);
		assert_pages(&memory, "11101111");
		assert_int_equal(fake_count(FAKE_OPEN) == before, kind == ANONYMOUS);
		/* The advice is refused: /proc is asked */
		fake_fail_next(FAKE_MADVISE, -EPERM);
		assert_ok(discard(&memory, 5, 1, GMEM_DISCARD_NOT_ZERO, &done));
		assert_true(fake_fail_struck());
		assert_int_equal(done, 1);
		assert_pages(&memory, "11101011");
		end(&memory);
	}
}

static void locked_shared_memory_needs_its_file(void **state)
{
	struct memory memory;
	uint64_t done;

	(void)state;
	for (int proc = 0; proc < 2; proc++) {
		begin(&memory, SHARED_ANONYMOUS);
		/* Not mlock(3), which does nothing under a sanitizer */
		if (syscall(SYS_mlock, memory.hva, memory.size)) {
			end(&memory);
			skip();
		}
		fake.no_proc = !proc;
		fake.no_map_files = true;
		assert_refused(-EOPNOTSUPP, proc ? "shared memory that is locked with mlock()" :
			       "locked with mlock(), and whether it would read as zero only /proc tells",
			       discard(&memory, 0, 2, 0, &done));
		assert_int_equal(done, 0);
		assert_pages(&memory, "11111111");
		end(&memory);
	}
}

static void gap_ends_a_discard_and_what_was_freed_is_told(void **state)
{
	struct memory memory;
	uint64_t done;

	(void)state;
	begin(&memory, ANONYMOUS);
	assert_int_equal(munmap(memory.hva + PAGES(&memory.unit, 2), memory.unit.page), 0);
	assert_refused(-EFAULT, "nothing is mapped there", discard(&memory, 0, COUNT, 0, &done));
	assert_int_equal(done, 2);
	end(&memory);
}

static void gap_is_not_in_memory(void **state)
{
	GMEM_OPTS(gmem_stats, stats, .flags = GMEM_STATS_RESIDENT);
	struct gmem_footprint footprint;
	struct memory memory;

	(void)state;
	for (int kind = ANONYMOUS; kind <= PRIVATE_FILE; kind++) {
		begin(&memory, (enum kind)kind);
		assert_int_equal(munmap(memory.hva + PAGES(&memory.unit, 2), memory.unit.page), 0);
		assert_ok(gmem_vm_stats(memory.unit.vm, &stats));
		assert_int_equal(stats.resident_shared, memory.size - memory.unit.page);
		assert_refused(-EFAULT, "nothing is mapped there",
			       gmem_vm_discard(memory.unit.vm, PAGES(&memory.unit, 2), memory.unit.page, NULL,
					       &footprint));
		assert_true(footprint.counted);
		assert_int_equal(footprint.before, 0);
		fake.no_proc = true;
		if (kind != PRIVATE_FILE)
			assert_refused(-EFAULT, "gpa 0x0, hva", gmem_vm_stats(memory.unit.vm, &stats));
		end(&memory);
	}
}

/* ---- without /proc ---- */

static void map_over(struct memory *memory, uint64_t page, uint64_t pages, int flags, int fd)
{
	void *at = memory->hva + PAGES(&memory->unit, page);

	assert_ptr_equal(mmap(at, pages * memory->unit.page, PROT_READ | PROT_WRITE, MAP_FIXED | flags, fd,
			      (off_t)PAGES(&memory->unit, page)), at);
}

/* Pages 0 and 1 are anonymous, 2 and 3 shared, 4 a private file's, 5 to 7 shared again. */
static void begin_mixed(struct memory *memory, int *ret_fd)
{
	begin_unwritten(memory, ANONYMOUS);
	*ret_fd = memfd_create("over", MFD_CLOEXEC);
	assert_int_equal(ftruncate(*ret_fd, (off_t)memory->size), 0);
	assert_int_equal(pwrite(*ret_fd, "\2", 1, (off_t)PAGES(&memory->unit, 4)), 1);
	map_over(memory, 2, 2, MAP_SHARED, *ret_fd);
	map_over(memory, 4, 1, MAP_PRIVATE, *ret_fd);
	map_over(memory, 5, 3, MAP_SHARED, *ret_fd);
	memset(memory->hva, 1, memory->size);
	fake.no_proc = true;
}

static uint64_t pages_of_file(int fd, uint64_t page)
{
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	return (uint64_t)st.st_blocks * 512 / page;
}

static void mixed_memory_is_freed_up_to_what_would_not_be_zero(void **state)
{
	struct memory memory;
	uint64_t done;
	int fd;

	(void)state;
	begin_mixed(&memory, &fd);
	assert_refused(-EOPNOTSUPP, "it would show the file again", discard(&memory, 0, COUNT, 0, &done));
	assert_int_equal(done, 4);
	/* To look at a page of a file is to have it. */
	assert_int_equal(pages_of_file(fd, memory.unit.page), 4);
	assert_pages(&memory, "00001111");

	/* What is shared behind it is freed in the file, too. */
	assert_ok(discard(&memory, 0, COUNT, GMEM_DISCARD_NOT_ZERO, &done));
	assert_int_equal(done, COUNT);
	assert_int_equal(memory.hva[PAGES(&memory.unit, 4)], 2);
	assert_pages(&memory, "00000000");
	end(&memory);
	close(fd);
}

static void gap_ends_a_discard_without_proc_and_nothing_behind_it_is_freed(void **state)
{
	struct memory memory;
	char expected[80];
	uint64_t done;

	(void)state;
	for (uint64_t flags = 0; flags <= GMEM_DISCARD_NOT_ZERO; flags += GMEM_DISCARD_NOT_ZERO) {
		begin(&memory, ANONYMOUS);
		snprintf(expected, sizeof(expected), "only up to 0x%" PRIx64 " bytes: EFAULT, nothing is mapped there",
			 PAGES(&memory.unit, 2));
		fake.no_proc = true;
		assert_int_equal(munmap(memory.hva + PAGES(&memory.unit, 2), memory.unit.page), 0);
		assert_refused(-EFAULT, expected, discard(&memory, 0, COUNT, flags, &done));
		assert_int_equal(done, 2);
		for (uint64_t i = 0; i < COUNT; i++)
			assert_true(i == 2 || memory.hva[PAGES(&memory.unit, i)] == (i > 2));
		end(&memory);
	}
}

static void locked_file_is_not_freed_without_proc(void **state)
{
	struct memory memory;
	uint64_t done;

	(void)state;
	begin(&memory, PRIVATE_FILE);
	/* Not mlock(3), which does nothing under a sanitizer */
	if (syscall(SYS_mlock, memory.hva, memory.size)) {
		end(&memory);
		skip();
	}
	fake.no_proc = true;
	assert_refused(-EOPNOTSUPP, "only /proc tells", discard(&memory, 0, 2, 0, &done));
	assert_int_equal(done, 0);
	assert_pages(&memory, "11111111");
	end(&memory);
}

/* It is over when somebody closes a file, so it is no reason to guess. */
static void limit_of_file_descriptors_is_told_and_nothing_is_guessed(void **state)
{
	struct memory memory;
	uint64_t done;

	(void)state;
	for (size_t i = 0; i < LIMITS; i++) {
		begin(&memory, ANONYMOUS);
		fake_set_limit(RLIMIT_NOFILE, 9);
		fake_fail_next(FAKE_MAPPING_AT, limits[i]);
		assert_refused(limits[i], limits[i] == -EMFILE ? "RLIMIT_NOFILE is 9" : "cannot be asked",
			       discard(&memory, 0, 2, 0, &done));
		assert_int_equal(done, 0);
		assert_pages(&memory, "11111111");
		/* The one page that was tried may be gone. */
		fake_fail_next(FAKE_TRY_READ, limits[i]);
		assert_refused(limits[i], "cannot be asked", discard(&memory, 0, 2, 0, &done));
		assert_int_equal(done, 0);
		assert_pages(&memory, "01111111");
		fake_fail_next(FAKE_MAPPING_AT, limits[i]);
		assert_ok(discard(&memory, 0, 2, GMEM_DISCARD_NOT_ZERO, &done));
		assert_int_equal(done, 2);
		end(&memory);
	}
}

static void limit_met_on_the_way_to_the_file_of_locked_memory_is_told(void **state)
{
	static const struct {
		enum fake_call call;
		unsigned skip;
		uint64_t flags;
	} refusals[] = {
		{ FAKE_REOPEN, 0, 0 }, { FAKE_REOPEN, 1, 0 }, { FAKE_OPEN_MAPPED, 0, 0 },
		{ FAKE_MAPPING_AT, 0, GMEM_DISCARD_NOT_ZERO },
	};
	struct memory memory;
	uint64_t done;

	(void)state;
	for (size_t i = 0; i < LIMITS * sizeof(refusals) / sizeof(refusals[0]); i++) {
		begin(&memory, SHARED_FILE);
		if (syscall(SYS_mlock, memory.hva, memory.size)) {
			end(&memory);
			skip();
		}
		fake.no_map_files = true;
		fake_set_limit(RLIMIT_NOFILE, 9);
		if (refusals[i / LIMITS].call == FAKE_OPEN_MAPPED) {
			close(memory.fd);
			memory.fd = -1;
		}
		fake_fail_kind(refusals[i / LIMITS].call, refusals[i / LIMITS].skip, 1, limits[i % LIMITS]);
		assert_refused(limits[i % LIMITS], limits[i % LIMITS] == -EMFILE ? "RLIMIT_NOFILE is 9" : "cannot be",
			       discard(&memory, 0, 2, refusals[i / LIMITS].flags, &done));
		assert_true(fake_fail_struck());
		assert_int_equal(done, 0);
		assert_pages(&memory, "11111111");
		end(&memory);
	}
}

static void file_that_a_limit_hides_is_looked_for_again(void **state)
{
	struct gmem_host_look look = GMEM_HOST_LOOK;
	struct memory memory;
	uint64_t next;

	(void)state;
	begin(&memory, SHARED_FILE);
	fake.no_map_files = true;
	assert_ok(gmem_host_look_at(&look, (uintptr_t)memory.hva, &next));
	fake_fail_next(FAKE_REOPEN, -EMFILE);
	assert_int_equal(gmem_host_look_file(&look), -EMFILE);
	assert_ok(gmem_host_look_file(&look));
	gmem_host_look_end(&look);

	/* If one way fails another may do. */
	assert_ok(gmem_host_look_at(&look, (uintptr_t)memory.hva, &next));
	fake_fail_next(FAKE_OPEN_MAPPED, -EMFILE);
	assert_ok(gmem_host_look_file(&look));
	assert_true(fake_fail_struck());
	gmem_host_look_end(&look);
	end(&memory);
}

static void limit_met_while_userfaultfd_is_looked_for_is_told(void **state)
{
	struct memory memory;
	uint64_t done;

	(void)state;
	for (size_t i = 0; i < 2 * LIMITS; i++) {
		begin(&memory, i % 2 ? SHARED_FILE : ANONYMOUS);
		fake_mark_mapping(memory.hva, memory.size, 0, i % 2 ? "lo um" : "um", 0);
		fake_set_limit(RLIMIT_NOFILE, 9);
		fake_fail_next(FAKE_OPEN, limits[i / 2]);
		assert_refused(limits[i / 2], limits[i / 2] == -EMFILE ? "RLIMIT_NOFILE is 9" : "cannot be asked",
			       discard(&memory, 0, 4, 0, &done));
		assert_int_equal(done, 0);
		assert_refused(-EOPNOTSUPP, "userfaultfd would ask its handler", discard(&memory, 0, 4, 0, &done));
		assert_int_equal(done, 0);
		end(&memory);
	}
}

/* The halves are tried once, not again for each page. */
static void pages_refused_alike_are_asked_about_one_after_the_other(void **state)
{
	struct memory memory;
	unsigned int before;
	uint64_t done;

	(void)state;
	begin(&memory, PRIVATE_FILE);
	fake.no_proc = true;
	before = fake_count(FAKE_MADVISE);
	assert_ok(discard(&memory, 0, COUNT, GMEM_DISCARD_NOT_ZERO, &done));
	assert_int_equal(done, COUNT);
	assert_int_equal(fake_count(FAKE_MADVISE) - before, 1 + 2 * 3 + 2 * COUNT);
	end(&memory);
}

/* ---- pages of hugetlb ---- */

/* Pages 0 to 3 and 4 to 7 pass for two huge pages */
static void map_huge(struct memory *memory)
{
	char *hva;

	memory->kind = ANONYMOUS;
	memory->fd = -1;
	unit_begin_vm(&memory->unit, "6.18");
	memory->size = PAGES(&memory->unit, COUNT);
	memory->hva = mmap(NULL, 2 * memory->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(memory->hva, MAP_FAILED);
	hva = (void *)(((uintptr_t)memory->hva + memory->size - 1) / memory->size * memory->size);
	munmap(hva + memory->size, (size_t)(memory->hva + memory->size - hva));
	munmap(memory->hva, (size_t)(hva - memory->hva));
	memory->hva = hva;
	fake_mark_mapping(memory->hva, memory->size, memory->size / 2, "ht", 0);
}

static void begin_huge(struct memory *memory)
{
	map_huge(memory);
	assert_ok(add(memory));
	memset(memory->hva, 1, memory->size);
}

static const char *inside_huge_page(const struct memory *memory)
{
	static char text[80];

	snprintf(text, sizeof(text), "inside a huge page of %" PRIu64 " KiB", memory->size / 2 / 1024);
	return text;
}

static void part_of_a_huge_page_is_refused_or_left_out(void **state)
{
	struct memory memory;
	uint64_t done;

	(void)state;
	for (int query = 0; query < 2; query++) {
		begin_huge(&memory);
		fake.no_mapping_query = !query;
		assert_refused(-EINVAL, inside_huge_page(&memory), discard(&memory, 0, 3, 0, &done));
		assert_refused(-EINVAL, inside_huge_page(&memory), discard(&memory, 1, 7, 0, &done));
		assert_pages(&memory, "11111111");
		assert_ok(discard(&memory, 1, 3, GMEM_DISCARD_INWARD, &done));
		assert_int_equal(done, 0);
		assert_pages(&memory, "11111111");
		assert_ok(discard(&memory, 1, 7, GMEM_DISCARD_INWARD, &done));
		assert_int_equal(done, 4);
		assert_pages(&memory, "11110000");
		assert_ok(discard(&memory, 0, 4, 0, &done));
		assert_int_equal(done, 4);
		end(&memory);
	}
}

static void single_pages_that_fill_a_huge_page_free_it(void **state)
{
	struct gmem_footprint footprint;
	struct gmem_gpa_range ranges[4];
	struct memory memory;

	(void)state;
	begin_huge(&memory);
	for (size_t i = 0; i < 4; i++)
		ranges[i] = (struct gmem_gpa_range){ PAGES(&memory.unit, 7 - i), memory.unit.page };
	assert_refused(-EINVAL, "huge page", gmem_vm_discard_list(memory.unit.vm, ranges, 3, NULL, NULL));
	assert_ok(gmem_vm_discard_list(memory.unit.vm, ranges, 4, NULL, &footprint));
	assert_int_equal(footprint.done, PAGES(&memory.unit, 4));
	assert_pages(&memory, "11110000");
	end(&memory);
}

static void region_is_split_between_huge_pages_only(void **state)
{
	struct gmem_region_info info;
	struct gmem_region *upper;
	struct memory memory;

	(void)state;
	begin_huge(&memory);
	assert_ok(gmem_vm_find_gpa(memory.unit.vm, 0, &info));
	assert_int_equal(info.page_size, memory.size / 2);
	assert_refused(-EINVAL, inside_huge_page(&memory),
		       gmem_region_split(memory.region, memory.unit.page, &upper));
	assert_ok(gmem_region_split(memory.region, memory.size / 2, &upper));
	end(&memory);
}

/* Of what is counted by its mapping, and of huge pages, which are the file's */
static void limit_met_while_memory_is_counted_is_told(void **state)
{
	GMEM_OPTS(gmem_stats, stats, .flags = GMEM_STATS_RESIDENT);
	enum { GAP, OWN_MAPPING, OWN_PAGES, HUGE_MAPPING, HUGE_FILE, COUNTS };
	static const enum fake_call calls[] = { FAKE_MAPPING_AT, FAKE_MAPPING_AT, FAKE_PAGEMAP,
						FAKE_MAPPING_AT, FAKE_REOPEN };
	struct memory memory;
	int fd;

	(void)state;
	for (size_t i = 0; i < COUNTS * LIMITS; i++) {
		const size_t what = i / LIMITS;
		const int err = limits[i % LIMITS];

		if (what >= HUGE_MAPPING)
			begin_huge(&memory);
		else
			begin(&memory, what == GAP ? ANONYMOUS : PRIVATE_FILE);
		fake.no_map_files = true;
		fake_set_limit(RLIMIT_NOFILE, 9);
		fd = memfd_create("over", MFD_CLOEXEC);
		assert_int_equal(ftruncate(fd, (off_t)memory.size), 0);
		if (what == GAP)
			assert_int_equal(munmap(memory.hva, memory.unit.page), 0);
		if (what >= HUGE_MAPPING)
			map_over(&memory, 0, COUNT, MAP_SHARED, fd);

		fake_fail_next(calls[what], err);
		assert_refused(err, err == -EMFILE ? "RLIMIT_NOFILE is 9" : "what is in memory cannot be asked",
			       gmem_vm_stats(memory.unit.vm, &stats));
		assert_true(fake_fail_struck());
		assert_ok(gmem_vm_stats(memory.unit.vm, &stats));
		close(fd);
		end(&memory);
	}
}

/* What a region was found to be when it was added is never asked again. */
static void limit_met_while_a_region_is_added_refuses_it(void **state)
{
	struct fake_snapshot *before;
	struct gmem_region_info info;
	struct memory memory;

	(void)state;
	/* Of the kernel that can be asked for a mapping, and of one that only lists them */
	for (unsigned int lists = 0; lists < 2; lists++) {
		for (size_t i = 0; i < LIMITS; i++) {
			map_huge(&memory);
			fake_set_limit(RLIMIT_NOFILE, 9);
			fake.no_mapping_query = lists;
			before = fake_snapshot();
			fake_fail_next(lists ? FAKE_OPEN : FAKE_MAPPING_AT, limits[i]);
			assert_refused(limits[i], limits[i] == -EMFILE ? "RLIMIT_NOFILE is 9" : "what is mapped at hva 0x",
				       add(&memory));
			assert_true(fake_fail_struck());
			assert_true(fake_equal(before));
			assert_ok(add(&memory));
			assert_ok(gmem_vm_find_gpa(memory.unit.vm, 0, &info));
			assert_int_equal(info.page_size, memory.size / 2);
			end(&memory);
		}
	}
}

/* ---- which pages may hold something ---- */

struct picture {
	uint64_t page;
	char pages[COUNT + 1];
};

static int draw(void *data, uint64_t offset, uint64_t size)
{
	struct picture *picture = data;

	memset(picture->pages + offset / picture->page, '#', size / picture->page);
	return 0;
}

static void assert_present(const struct memory *memory, const char *expected)
{
	struct picture picture = { .page = memory->unit.page, .pages = "........" };
	struct gmem_host_look look = GMEM_HOST_LOOK;

	assert_ok(gmem_region_present_pages(memory->region, GMEM_SIDE_SHARED, 0, memory->size, &look, draw,
					    &picture));
	gmem_host_look_end(&look);
	assert_string_equal(picture.pages, expected);
}

/* Page 2 is written through the mapping, page 5 only to the file, if there is one. */
static void begin_sparse(struct memory *memory, enum kind kind)
{
	begin_unwritten(memory, kind);
	memory->hva[PAGES(&memory->unit, 2)] = 1;
	if (memory->fd >= 0)
		assert_int_equal(pwrite(memory->fd, "x", 1, (off_t)PAGES(&memory->unit, 5)), 1);
}

static void pages_that_are_absent_are_known_for_each_kind(void **state)
{
	static const char *const expected[] = {
		[ANONYMOUS] = "..#.....", [SHARED_ANONYMOUS] = "..#.....", [SHARED_FILE] = "..#..#..",
		[PRIVATE_FILE] = "..#..#..",
	};
	struct memory memory;

	(void)state;
	for (enum kind kind = ANONYMOUS; kind <= PRIVATE_FILE; kind++) {
		begin_sparse(&memory, kind);
		fake_set_file("/proc/swaps", "Filename Type Size Used Priority\n");
		assert_present(&memory, expected[kind]);
		/* Without the privilege there is an fd in this process, or the page cache. */
		fake.no_map_files = true;
		assert_present(&memory, expected[kind]);
		fake.no_mapping_query = true;
		assert_present(&memory, expected[kind]);
		fake.no_proc = true;
		assert_present(&memory, "########");
		end(&memory);
	}
}

static void what_may_be_in_swap_or_in_an_unknown_file_is_present(void **state)
{
	struct memory memory;

	(void)state;
	begin_sparse(&memory, SHARED_ANONYMOUS);
	fake.no_map_files = true;
	assert_present(&memory, "########");
	fake_set_file("/proc/swaps", "Filename Type Size Used Priority\n/swap file 9 0 -2\n");
	assert_present(&memory, "########");
	end(&memory);

	for (enum kind kind = SHARED_FILE; kind <= PRIVATE_FILE; kind++) {
		begin_sparse(&memory, kind);
		fake.no_map_files = true;
		close(memory.fd);
		memory.fd = -1;
		assert_present(&memory, "########");
		end(&memory);
	}
}

static void what_userfaultfd_owes_is_present_and_asked_for_once(void **state)
{
	struct memory memory;

	(void)state;
	for (enum kind kind = ANONYMOUS; kind <= SHARED_FILE; kind++) {
		begin_sparse(&memory, kind);
		fake_set_file("/proc/swaps", "Filename Type Size Used Priority\n");
		fake_mark_mapping(memory.hva + PAGES(&memory.unit, 6), memory.unit.page, 0, "um", 0);
		assert_present(&memory, kind == SHARED_FILE ? "..#..##." : "..#...#.");
		fake_fail_next(FAKE_OPEN, -EMFILE);
		assert_present(&memory, "########");
		assert_true(fake_fail_struck());
		end(&memory);
	}
}

static void file_that_ends_early_has_no_zeros_behind_its_end(void **state)
{
	struct memory memory;

	(void)state;
	begin_sparse(&memory, SHARED_FILE);
	assert_int_equal(ftruncate(memory.fd, (off_t)PAGES(&memory.unit, 6)), 0);
	assert_present(&memory, "..#..###");
	end(&memory);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(shared_and_private_memory_is_freed),
	cmocka_unit_test(private_file_is_not_freed_unless_its_bytes_may_come_back),
	cmocka_unit_test(userfaultfds_memory_is_not_freed_unless_its_handler_may_be_asked),
	cmocka_unit_test(each_discard_looks_for_userfaultfd_and_none_walks_page_tables),
	cmocka_unit_test(page_of_anonymous_memory_is_freed_without_proc),
	cmocka_unit_test(locked_shared_memory_needs_its_file),
	cmocka_unit_test(gap_ends_a_discard_and_what_was_freed_is_told),
	cmocka_unit_test(gap_is_not_in_memory),
	cmocka_unit_test(mixed_memory_is_freed_up_to_what_would_not_be_zero),
	cmocka_unit_test(gap_ends_a_discard_without_proc_and_nothing_behind_it_is_freed),
	cmocka_unit_test(locked_file_is_not_freed_without_proc),
	cmocka_unit_test(limit_of_file_descriptors_is_told_and_nothing_is_guessed),
	cmocka_unit_test(limit_met_on_the_way_to_the_file_of_locked_memory_is_told),
	cmocka_unit_test(file_that_a_limit_hides_is_looked_for_again),
	cmocka_unit_test(limit_met_while_userfaultfd_is_looked_for_is_told),
	cmocka_unit_test(pages_refused_alike_are_asked_about_one_after_the_other),
	cmocka_unit_test(part_of_a_huge_page_is_refused_or_left_out),
	cmocka_unit_test(single_pages_that_fill_a_huge_page_free_it),
	cmocka_unit_test(region_is_split_between_huge_pages_only),
	cmocka_unit_test(limit_met_while_a_region_is_added_refuses_it),
	cmocka_unit_test(limit_met_while_memory_is_counted_is_told),
	cmocka_unit_test(pages_that_are_absent_are_known_for_each_kind),
	cmocka_unit_test(what_may_be_in_swap_or_in_an_unknown_file_is_present),
	cmocka_unit_test(what_userfaultfd_owes_is_present_and_asked_for_once),
	cmocka_unit_test(file_that_ends_early_has_no_zeros_behind_its_end),
};

UNIT_MAIN(tests)
