/* SPDX-License-Identifier: MIT */
/* Regions over address space that is kept for them, and what is there afterwards */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "os/sys.h"
#include "unit.h"

#define PAGE	UINT64_C(4096)
#define SPACE	8	/* pages */
#define RW	(PROT_READ | PROT_WRITE)

struct scene {
	struct unit unit;
	struct gmem_plan *shared, *host;
	struct gmem_file *file;
	char *space;
};

/* Made by calls of the scripted kernel, which then knows that it is there. */
static void put(void *at, uint64_t pages, int prot, int flags, int fd, uint64_t offset)
{
	void *hva;

	assert_ok(gmem_sys_mmap(at, pages * PAGE, prot, flags | MAP_FIXED, fd, offset, &hva));
}

static void reserve(void *at, uint64_t pages)
{
	put(at, pages, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

static void scene_begin(struct scene *s)
{
	unit_begin_vm(&s->unit, "6.18");
	s->shared = unit_plan(&s->unit, GMEM_BACKING_SHARED);
	s->host = unit_plan(&s->unit, GMEM_BACKING_HOST);
	s->file = unit_file(&s->unit, SPACE);
	s->space = unit_free_address(&s->unit, SPACE);
	reserve(s->space, SPACE);
}

static void scene_end(struct scene *s)
{
	gmem_vm_free(s->unit.vm);
	s->unit.vm = NULL;
	gmem_file_free(s->file);
	gmem_plan_free(s->shared);
	gmem_plan_free(s->host);
	assert_ok(gmem_sys_munmap(s->space, SPACE * PAGE));
	unit_end(&s->unit);
}

static int try_add_at(struct scene *s, uint64_t gpa, uint64_t first, uint64_t pages,
		      struct gmem_region **ret)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = s->shared, .file = s->file, .file_offset = first * PAGE,
		  .flags = GMEM_REGION_RESERVED, .hva = s->space + first * PAGE);

	return gmem_region_add(s->unit.vm, gpa, pages * PAGE, &opts, ret);
}

static int try_add(struct scene *s, uint64_t first, uint64_t pages, struct gmem_region **ret)
{
	return try_add_at(s, first * PAGE, first, pages, ret);
}

static struct gmem_region *add(struct scene *s, uint64_t first, uint64_t pages)
{
	struct gmem_region *region = NULL;

	assert_ok(try_add(s, first, pages, &region));
	assert_ptr_equal(gmem_region_hva(region), s->space + first * PAGE);
	return region;
}

/* What is at a page: of the file, or else with this protection */
static void check_file_at(struct scene *s, uint64_t page)
{
	uint64_t offset = 0;

	assert_int_equal(fake_file_at(s->space + page * PAGE, &offset),
			 fake_file_of_fd(gmem_file_fd(s->file)));
	assert_int_equal(offset, page * PAGE);
}

static void check_reserved_at(struct scene *s, uint64_t page)
{
	uint64_t offset;

	assert_int_equal(fake_file_at(s->space + page * PAGE, &offset), 0);
	assert_int_equal(fake_protection_at(s->space + page * PAGE), PROT_NONE);
}

/* ---- reservations ---- */

static void a_reservation_comes_back_when_its_region_ends(void **state)
{
	struct gmem_region *first, *second, *upper;
	struct scene s;

	(void)state;
	scene_begin(&s);
	first = add(&s, 0, 2);
	second = add(&s, 2, 4);
	check_file_at(&s, 1);
	check_file_at(&s, 5);
	check_reserved_at(&s, 6);

	assert_ok(gmem_region_split(second, PAGE, &upper));
	assert_ok(gmem_region_remove(second));
	check_reserved_at(&s, 2);
	check_file_at(&s, 3);
	assert_ok(gmem_region_move(first, 64 * PAGE));
	assert_ok(gmem_region_remove(first));
	check_reserved_at(&s, 0);
	/* and can be used again */
	first = add(&s, 0, 2);
	gmem_vm_free(s.unit.vm);
	s.unit.vm = NULL;
	for (uint64_t i = 0; i < SPACE; i++)
		check_reserved_at(&s, i);
	scene_end(&s);
}

static void memory_of_the_callers_is_never_over_a_reservation(void **state)
{
	struct gmem_region *region;
	struct scene s;

	(void)state;
	scene_begin(&s);
	for (int with_file = 0; with_file < 2; with_file++) {
		GMEM_OPTS(gmem_region_opts, opts, .plan = with_file ? NULL : s.host,
			  .flags = GMEM_REGION_RESERVED | GMEM_REGION_HVA, .hva = s.space + PAGE);

		assert_refused(-EINVAL, "exclude each other",
			       gmem_region_add(s.unit.vm, 0, 2 * PAGE, &opts, &region));
		check_reserved_at(&s, 1);
	}
	scene_end(&s);
}

static void host_memory_can_be_there_too(void **state)
{
	static const uint64_t flags[] = { 0, GMEM_MEMORY_MEMFD, GMEM_MEMORY_NO_THP };
	struct gmem_region *region, *found;
	uint64_t offset;
	struct scene s;

	(void)state;
	scene_begin(&s);
	for (size_t i = 0; i < ARRAY_SIZE(flags); i++) {
		GMEM_OPTS(gmem_memory_opts, memory, .flags = flags[i]);
		GMEM_OPTS(gmem_region_opts, opts, .plan = s.host, .memory = &memory,
			  .flags = GMEM_REGION_RESERVED, .hva = s.space + PAGE);

		assert_ok(gmem_region_add(s.unit.vm, 0, 2 * PAGE, &opts, &region));
		assert_ptr_equal(gmem_region_hva(region), s.space + PAGE);
		assert_int_equal(fake_protection_at(s.space + PAGE), RW);
		assert_ok(gmem_vm_find_hva(s.unit.vm, s.space + 2 * PAGE, &found, &offset));
		assert_ptr_equal(found, region);
		assert_int_equal(offset, PAGE);
		assert_ok(gmem_region_remove(region));
		check_reserved_at(&s, 1);
	}
	scene_end(&s);
}

static void note_log(void *data, int error, const char *message)
{
	assert_int_equal(error, -ENOMEM);
	snprintf(data, 256, "%s", message);
}

/* As in the middle of other mappings, when there are too many: @lock: of locked memory */
static void end_in_the_middle(bool lock)
{
	char message[256] = "";
	GMEM_OPTS(gmem_vm_opts, vm_opts, .log = note_log, .log_data = message);
	struct gmem_region *region;
	struct gmem_vm *vm;
	struct scene s;

	scene_begin(&s);
	vm_opts.caps = s.unit.caps;
	assert_ok(gmem_vm_new(s.unit.vm_fd, &vm_opts, &vm));
	GMEM_OPTS(gmem_region_opts, opts, .plan = s.host, .flags = GMEM_REGION_RESERVED, .hva = s.space);

	assert_ok(gmem_region_add(vm, 0, 2 * PAGE, &opts, &region));
	*s.space = 1;
	/* Not mlock(3), which does nothing under a sanitizer */
	if (lock && syscall(SYS_mlock, s.space, 2 * PAGE))
		print_message("mlock() is refused\n");

	/* To be mapped again it takes no room, but a mapping. */
	fake_set_file("/proc/self/statm", "2000 1 1\n");
	fake_set_limit(RLIMIT_AS, 2001 * PAGE);
	fake_set_file("/proc/sys/vm/max_map_count", "3\n");
	fake_set_file("/proc/self/maps", "a\nb\n");
	fake_fail_next(FAKE_MMAP, -ENOMEM);
	assert_ok(gmem_region_remove(region));
	assert_non_null(strstr(message, "stays mapped: ENOMEM: vm.max_map_count is 3"));
	assert_int_equal(fake_protection_at(s.space), RW);
	assert_int_equal(*s.space, 0);
	gmem_vm_free(vm);
	scene_end(&s);
}

static void a_place_that_cannot_come_back_stays_taken_and_is_logged(void **state)
{
	(void)state;
	end_in_the_middle(false);
}

static void locked_memory_whose_place_stays_taken_is_freed(void **state)
{
	(void)state;
	end_in_the_middle(true);
}

static void memory_that_a_refused_region_leaves_is_told(void **state)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = 0);
	struct gmem_region *region;
	const char *addition;
	unsigned long hva;
	struct scene s;

	(void)state;
	scene_begin(&s);
	for (int host = 0; host < 2; host++) {
		opts.plan = host ? s.host : s.shared;
		opts.file = host ? NULL : s.file;
		fake_fail_next(FAKE_MADVISE, -ENOMEM);
		fake.cannot_unmap = true;
		assert_int_equal(gmem_region_add(s.unit.vm, 0, PAGE, &opts, &region), -ENOMEM);
		fake.cannot_unmap = false;
		assert_non_null(strstr(gmem_last_error(), "MADV_DONTDUMP is refused"));
		addition = strstr(gmem_last_error(), "; and hva 0x");
		assert_non_null(addition);
		assert_int_equal(sscanf(addition, "; and hva 0x%lx, 0x1000 bytes, stays mapped: ENOMEM", &hva), 1);
		assert_ok(gmem_sys_munmap((void *)hva, PAGE));
	}
	scene_end(&s);
}

static void a_refused_region_leaves_the_reservation(void **state)
{
	static const struct {
		enum fake_call call;
		unsigned skip;
	} calls[] = {
		{ FAKE_FACTS, 0 }, { FAKE_MMAP, 0 }, { FAKE_MMAP, 1 },
		{ FAKE_MADVISE, 0 }, { FAKE_SET_SLOT2, 0 },
	};
	struct gmem_region *region;
	struct scene s;

	(void)state;
	scene_begin(&s);
	for (size_t i = 0; i < ARRAY_SIZE(calls); i++) {
		unsigned fds = fake_open_fds();

		fake_fail_kind(calls[i].call, calls[i].skip, 1, -ENOMEM);
		assert_true(try_add(&s, 1, 2, &region) < 0);
		assert_true(fake_fail_struck());
		assert_int_equal(fake_open_fds(), fds);
		assert_int_equal(fake_slot_count(s.unit.vm_fd), 0);
		for (uint64_t page = 0; page < SPACE; page++)
			check_reserved_at(&s, page);
	}
	add(&s, 1, 2);
	scene_end(&s);
}

/* ---- mappings of the same file ---- */

static void a_mapping_of_gmem_file_map_goes_on_beneath(void **state)
{
	GMEM_OPTS(gmem_map_opts, opts, .flags = GMEM_MAP_REPLACE);
	struct gmem_region *region, *upper;
	struct scene s;
	void *hva;

	(void)state;
	scene_begin(&s);
	opts.hva = s.space;
	assert_ok(gmem_file_map(s.file, 0, SPACE * PAGE, &opts, &hva));
	region = add(&s, 2, 4);
	assert_ok(gmem_region_split(region, PAGE, &upper));

	assert_refused(-EBUSY, "region's own", gmem_file_unmap(s.file, s.space, SPACE * PAGE));
	assert_refused(-EBUSY, "region or of an import",
		       gmem_file_map(s.file, 0, SPACE * PAGE, &opts, &hva));
	assert_refused(-EEXIST, "bound already", try_add_at(&s, 64 * PAGE, 3, 4, &upper));
	assert_ok(gmem_file_unmap(s.file, s.space, PAGE));
	assert_ok(gmem_region_remove(upper));
	assert_ok(gmem_region_remove(region));
	for (uint64_t i = 1; i < SPACE; i++)
		check_file_at(&s, i);
	assert_int_equal(fake_protection_at(s.space + 2 * PAGE), RW);
	assert_ok(gmem_file_unmap(s.file, s.space + PAGE, (SPACE - 1) * PAGE));
	reserve(s.space, SPACE);
	scene_end(&s);
}

static void a_freed_file_is_not_mapped_again(void **state)
{
	GMEM_OPTS(gmem_map_opts, opts, .flags = GMEM_MAP_REPLACE);
	struct gmem_region *region;
	struct scene s;
	void *hva;

	(void)state;
	scene_begin(&s);
	opts.hva = s.space;
	assert_ok(gmem_file_map(s.file, 0, SPACE * PAGE, &opts, &hva));
	region = add(&s, 2, 4);
	gmem_file_free(s.file);
	s.file = NULL;
	assert_int_equal(fake_protection_at(s.space + PAGE), -1);
	assert_int_equal(fake_protection_at(s.space + 2 * PAGE), RW);
	assert_int_equal(fake_protection_at(s.space + 6 * PAGE), -1);
	assert_ok(gmem_region_remove(region));
	assert_int_equal(fake_protection_at(s.space + 2 * PAGE), -1);
	reserve(s.space, SPACE);
	scene_end(&s);
}

static void a_mapping_of_the_caller_s_comes_back_with_its_protection(void **state)
{
	struct gmem_region *region;
	struct scene s;

	(void)state;
	scene_begin(&s);
	put(s.space, SPACE, PROT_READ, MAP_SHARED, gmem_file_fd(s.file), 0);
	region = add(&s, 2, 4);
	assert_int_equal(fake_protection_at(s.space + 2 * PAGE), RW);
	assert_ok(gmem_region_remove(region));
	for (uint64_t i = 0; i < SPACE; i++)
		check_file_at(&s, i);
	assert_int_equal(fake_protection_at(s.space + 2 * PAGE), PROT_READ);
	scene_end(&s);
}

/* ---- anything else ---- */

static void only_what_is_kept_is_replaced(void **state)
{
	GMEM_OPTS(gmem_map_opts, over, .flags = GMEM_MAP_REPLACE);
	struct gmem_region *region;
	struct gmem_file *other;
	struct scene s;
	void *hva;

	(void)state;
	scene_begin(&s);
	put(s.space + PAGE, 1, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_refused(-EEXIST, "is memory, readable and writable", try_add(&s, 1, 2, &region));
	assert_refused(-EEXIST, "is memory, readable and writable", try_add(&s, 0, 2, &region));
	put(s.space + PAGE, 1, PROT_NONE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_refused(-EEXIST, "a mapping of a file", try_add(&s, 1, 2, &region));
	put(s.space + PAGE, 1, RW, MAP_SHARED, gmem_file_fd(s.file), 2 * PAGE);
	assert_refused(-EEXIST, "a mapping of a file", try_add(&s, 1, 1, &region));
	/* part of the right file, and part a reservation */
	put(s.space + PAGE, 1, RW, MAP_SHARED, gmem_file_fd(s.file), PAGE);
	assert_refused(-EEXIST, "all of it over one", try_add(&s, 1, 2, &region));
	put(s.space + 2 * PAGE, 1, PROT_READ, MAP_SHARED, gmem_file_fd(s.file), 2 * PAGE);
	assert_refused(-EEXIST, "all of it over one", try_add(&s, 1, 2, &region));

	other = unit_file(&s.unit, SPACE);
	over.hva = s.space;
	assert_ok(gmem_file_map(other, 0, SPACE * PAGE, &over, &hva));
	assert_refused(-EEXIST, "a mapping of a file", try_add(&s, 1, 2, &region));
	gmem_file_free(other);
	assert_refused(-EINVAL, "nothing is mapped", try_add(&s, 1, 2, &region));
	reserve(s.space, 2);
	assert_refused(-EINVAL, "nothing is mapped", try_add(&s, 1, 2, &region));

	reserve(s.space, SPACE);
	fake.no_proc = true;
	assert_refused(-EOPNOTSUPP, "only /proc/self/maps tells", try_add(&s, 1, 2, &region));
	fake.no_proc = false;
	fake_set_limit(RLIMIT_NOFILE, 9);
	fake_fail_next(FAKE_MAPPING_AT, -EMFILE);
	assert_refused(-EMFILE, "RLIMIT_NOFILE is 9", try_add(&s, 1, 2, &region));
	scene_end(&s);
}

static void a_mapping_in_two_parts_is_refused(void **state)
{
	GMEM_OPTS(gmem_map_opts, opts, .flags = GMEM_MAP_REPLACE);
	struct gmem_region *region;
	struct scene s;
	void *hva;

	(void)state;
	scene_begin(&s);
	opts.hva = s.space;
	assert_ok(gmem_file_map(s.file, 0, 2 * PAGE, &opts, &hva));
	opts.hva = s.space + 2 * PAGE;
	assert_ok(gmem_file_map(s.file, 2 * PAGE, 2 * PAGE, &opts, &hva));
	assert_refused(-EEXIST, "more than one mapping", try_add(&s, 1, 2, &region));
	region = add(&s, 1, 1);
	assert_ok(gmem_region_remove(region));
	assert_ok(gmem_file_unmap(s.file, s.space, 2 * PAGE));
	assert_ok(gmem_file_unmap(s.file, s.space + 2 * PAGE, 2 * PAGE));
	reserve(s.space, SPACE);
	scene_end(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_reservation_comes_back_when_its_region_ends),
		cmocka_unit_test(memory_of_the_callers_is_never_over_a_reservation),
		cmocka_unit_test(host_memory_can_be_there_too),
		cmocka_unit_test(a_place_that_cannot_come_back_stays_taken_and_is_logged),
		cmocka_unit_test(locked_memory_whose_place_stays_taken_is_freed),
		cmocka_unit_test(memory_that_a_refused_region_leaves_is_told),
		cmocka_unit_test(a_refused_region_leaves_the_reservation),
		cmocka_unit_test(a_mapping_of_gmem_file_map_goes_on_beneath),
		cmocka_unit_test(a_freed_file_is_not_mapped_again),
		cmocka_unit_test(a_mapping_of_the_caller_s_comes_back_with_its_protection),
		cmocka_unit_test(only_what_is_kept_is_replaced),
		cmocka_unit_test(a_mapping_in_two_parts_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
