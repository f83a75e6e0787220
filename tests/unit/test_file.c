/* SPDX-License-Identifier: MIT */
/* file and file_map: create, adopt, map, allocate, punch and free a guest_memfd */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "unit.h"

#define MAPPABLE	(GMEM_CREATE_MMAP | GMEM_CREATE_INIT_SHARED)
#define NO_FILE		UNTOUCHED(struct gmem_file)
#define NO_HVA		UNTOUCHED(void)

static void *map(const struct unit *unit, struct gmem_file *file, uint64_t page,
		 uint64_t pages)
{
	void *hva = NULL;

	assert_ok(gmem_file_map(file, PAGES(unit, page), PAGES(unit, pages), NULL, &hva));
	return hva;
}

/* ---- create ---- */

static void file_is_made_as_the_plan_says(void **state)
{
	static const struct {
		const char *kernel;
		uint32_t backing;
		uint64_t flags;
	} cases[] = {
		{ "6.18", GMEM_BACKING_SHARED, 3 },
		{ "6.18", GMEM_BACKING_MAPPED, 3 },
		{ "6.12-swp-t1", GMEM_BACKING_PRIVATE, 0 },
		{ "7.3-swp-t1", GMEM_BACKING_PRIVATE, 0 },
		{ "arm64-7.3-64k", GMEM_BACKING_SHARED, 3 },
	};
	struct gmem_file *file;
	struct gmem_plan *plan;
	struct unit unit;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		unit_begin(&unit, cases[i].kernel);
		plan = unit_plan(&unit, cases[i].backing);
		assert_ok(gmem_file_new(unit.vm_fd, PAGES(&unit, 3), plan, &file));
		gmem_plan_free(plan);
		assert_int_equal(gmem_file_size(file), PAGES(&unit, 3));
		assert_int_equal(gmem_file_create_flags(file), cases[i].flags);
		assert_true(fake_file_of_fd(gmem_file_fd(file)) > 0);
		gmem_file_free(file);
		unit_end(&unit);
	}
}

static void fd_is_close_on_exec(void **state)
{
	struct gmem_file *made, *adopted;
	struct unit unit;

	(void)state;
	unit_begin(&unit, "6.18");
	made = unit_file(&unit, 1);
	assert_ok(gmem_file_adopt(unit.vm_fd, gmem_file_fd(made), NULL, &adopted));
	assert_int_equal(fcntl(gmem_file_fd(made), F_GETFD), FD_CLOEXEC);
	assert_int_equal(fcntl(gmem_file_fd(adopted), F_GETFD), FD_CLOEXEC);
	gmem_file_free(made);
	gmem_file_free(adopted);
	unit_end(&unit);
}

static void raw_file_has_the_flags_it_was_asked_for(void **state)
{
	struct gmem_file *file;
	struct unit unit;
	uint64_t flags;

	(void)state;
	unit_begin(&unit, "future-t0");
	for (flags = 0; flags < 8; flags++) {
		assert_ok(gmem_file_new_raw(unit.vm_fd, unit.page, flags, &file));
		assert_int_equal(gmem_file_create_flags(file), flags);
		gmem_file_free(file);
	}
	unit_end(&unit);
}

static void largest_file_is_below_2_to_the_63(void **state)
{
	const uint64_t end = (uint64_t)1 << 63;
	struct gmem_file *file;
	struct unit unit;

	(void)state;
	unit_begin(&unit, "6.18");
	assert_ok(gmem_file_new_raw(unit.vm_fd, end - unit.page, 0, &file));
	assert_int_equal(gmem_file_size(file), end - unit.page);
	gmem_file_free(file);

	file = NO_FILE;
	assert_refused(-EINVAL, "0x8000000000000000",
		       gmem_file_new_raw(unit.vm_fd, end, 0, &file));
	assert_refused(-EINVAL, "", gmem_file_new_raw(unit.vm_fd, 0 - unit.page, 0, &file));
	assert_ptr_equal(file, NO_FILE);
	unit_end(&unit);
}

static void create_rejects_bad_arguments_on_every_page_size(void **state)
{
	static const char *const kernels[] = {
		"6.18", "arm64-7.3-4k", "arm64-7.3-16k", "arm64-7.3-64k"
	};
	struct gmem_file *file = NO_FILE;
	struct gmem_plan *host;
	struct unit unit;
	size_t i;
	int bit;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(kernels); i++) {
		unit_begin(&unit, kernels[i]);
		assert_refused(-EINVAL, "size 0",
			       gmem_file_new_raw(unit.vm_fd, 0, MAPPABLE, &file));
		assert_refused(-EINVAL, "size 0x1",
			       gmem_file_new_raw(unit.vm_fd, 1, MAPPABLE, &file));
		assert_refused(-EINVAL, "multiple",
			       gmem_file_new_raw(unit.vm_fd, unit.page / 2, MAPPABLE, &file));
		assert_refused(-EINVAL, "multiple",
			       gmem_file_new_raw(unit.vm_fd, unit.page + 512, MAPPABLE, &file));
		assert_refused(-EINVAL, "NULL",
			       gmem_file_new_raw(unit.vm_fd, unit.page, MAPPABLE, NULL));
		for (bit = 2; bit < 64; bit++)
			assert_refused(-EINVAL, "flags",
				       gmem_file_new_raw(unit.vm_fd, unit.page,
							 (uint64_t)1 << bit, &file));

		assert_refused(-EINVAL, "NULL",
			       gmem_file_new(unit.vm_fd, unit.page, NULL, &file));
		host = unit_plan(&unit, GMEM_BACKING_HOST);
		assert_refused(-EINVAL, "host",
			       gmem_file_new(unit.vm_fd, unit.page, host, &file));
		assert_refused(-EINVAL, "", gmem_file_new(unit.vm_fd, unit.page, host, NULL));
		gmem_plan_free(host);
		assert_ptr_equal(file, NO_FILE);
		unit_end(&unit);
	}
}

static void create_keeps_the_kernel_s_errno(void **state)
{
	static const int errnos[] = { EMFILE, ENFILE, ENOMEM, EIO, ENOSPC };
	struct gmem_file *file = NO_FILE;
	struct unit unit;
	size_t i;

	(void)state;
	unit_begin(&unit, "6.18");
	for (i = 0; i < ARRAY_SIZE(errnos); i++) {
		fake_fail_next(FAKE_CREATE_GMEMFD, -errnos[i]);
		assert_refused(-errnos[i], "0x1000",
			       gmem_file_new_raw(unit.vm_fd, unit.page, MAPPABLE, &file));
	}
	assert_refused(-EBADF, "900", gmem_file_new_raw(900, unit.page, MAPPABLE, &file));
	assert_refused(-EBADF, "-1", gmem_file_new_raw(-1, unit.page, MAPPABLE, &file));
	fake_kill_vm(unit.vm_fd);
	assert_refused(-EIO, "", gmem_file_new_raw(unit.vm_fd, unit.page, MAPPABLE, &file));
	assert_ptr_equal(file, NO_FILE);
	unit_end(&unit);
}

static void file_holds_the_vm_until_it_is_freed(void **state)
{
	struct gmem_file *file;
	struct unit unit;

	(void)state;
	unit_begin(&unit, "6.18");
	file = unit_file(&unit, 2);
	map(&unit, file, 0, 2);
	fake_close(unit.vm_fd);
	assert_true(fake_vm_exists(unit.vm_fd));
	assert_ok(gmem_file_allocate(file, 0, unit.page, NULL));
	map(&unit, file, 1, 1);
	gmem_file_free(file);
	assert_false(fake_vm_exists(unit.vm_fd));
	unit.vm_fd = -1;
	unit_end(&unit);
}

static void accessors_accept_null(void **state)
{
	(void)state;
	fake_boot("6.18");
	assert_refused(-EINVAL, "NULL", gmem_file_fd(NULL));
	assert_int_equal(gmem_file_size(NULL), 0);
	assert_int_equal(gmem_file_create_flags(NULL), 0);
	gmem_file_free(NULL);
	fake_halt();
}

/* ---- adopt ---- */

static void adopted_file_is_a_duplicate(void **state)
{
	static const char *const kernels[] = { "6.12-swp-t1", "6.18", "6.19", "7.2" };
	struct gmem_file *file;
	struct unit unit;
	uint64_t flags;
	size_t i;
	int fd;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(kernels); i++) {
		unit_begin(&unit, kernels[i]);
		flags = fake.private_memory ? 0 : MAPPABLE;
		fd = fake_new_gmemfd(unit.vm_fd, PAGES(&unit, 5), flags);
		assert_ok(gmem_file_adopt(unit.vm_fd, fd, NULL, &file));
		assert_int_not_equal(gmem_file_fd(file), fd);
		assert_int_equal(fake_file_of_fd(gmem_file_fd(file)), fake_file_of_fd(fd));
		assert_int_equal(gmem_file_size(file), PAGES(&unit, 5));
		assert_int_equal(gmem_file_create_flags(file), flags);
		assert_int_equal(fake_slot_count(unit.vm_fd), 0);
		gmem_file_free(file);
		assert_true(fake_file_of_fd(fd) > 0);
		fake_close(fd);
		unit_end(&unit);
	}
}

static void adopt_finds_the_create_flags(void **state)
{
	struct gmem_file *file;
	struct unit unit;
	uint64_t flags;
	int fd;

	(void)state;
	unit_begin(&unit, "6.18");
	/* INIT_SHARED alone cannot be told from nothing: neither can be mapped */
	for (flags = 0; flags <= 3; flags++) {
		fd = fake_new_gmemfd(unit.vm_fd, unit.page, flags);
		assert_ok(gmem_file_adopt(unit.vm_fd, fd, NULL, &file));
		assert_int_equal(gmem_file_create_flags(file), flags == 2 ? 0 : flags);
		assert_int_equal(fake_open_mappings(), 0);
		gmem_file_free(file);
		fake_close(fd);
	}
	unit_end(&unit);
}

static void adopt_believes_the_create_flags_it_is_told(void **state)
{
	GMEM_OPTS(gmem_adopt_opts, opts, .flags = GMEM_ADOPT_CREATE_FLAGS, .create_flags = 7);
	struct gmem_file *file;
	struct unit unit;
	unsigned maps;
	int fd;

	(void)state;
	unit_begin(&unit, "future-t0");
	fd = fake_new_gmemfd(unit.vm_fd, unit.page, 7);
	maps = fake_count(FAKE_MADVISE);
	assert_ok(gmem_file_adopt(unit.vm_fd, fd, &opts, &file));
	assert_int_equal(gmem_file_create_flags(file), 7);
	assert_int_equal(fake_count(FAKE_MADVISE), maps);
	gmem_file_free(file);
	fake_close(fd);
	unit_end(&unit);
}

static void adopt_works_without_a_vm(void **state)
{
	struct gmem_file *file;
	struct unit unit;
	unsigned ioctls;
	int fd;

	(void)state;
	unit_begin(&unit, "6.18");
	fd = fake_new_gmemfd(unit.vm_fd, PAGES(&unit, 2), MAPPABLE);
	ioctls = fake_count(FAKE_SET_SLOT2);
	assert_ok(gmem_file_adopt(GMEM_NO_VM, fd, NULL, &file));
	assert_int_equal(fake_count(FAKE_SET_SLOT2), ioctls);
	map(&unit, file, 0, 2);
	gmem_file_free(file);
	fake_close(fd);
	unit_end(&unit);
}

static void adopt_rejects_what_is_no_guest_memfd(void **state)
{
	GMEM_OPTS(gmem_adopt_opts, opts, .flags = 0);
	struct gmem_file *file = NO_FILE;
	struct unit unit;
	int fd, kvm_fd, memfd, bit;

	(void)state;
	unit_begin(&unit, "6.18");
	kvm_fd = fake_new_kvm();
	memfd = memfd_create("plain", MFD_CLOEXEC);
	assert_true(memfd >= 0);
	assert_refused(-EINVAL, "not a guest_memfd",
		       gmem_file_adopt(unit.vm_fd, memfd, NULL, &file));
	assert_refused(-EINVAL, "not a guest_memfd",
		       gmem_file_adopt(unit.vm_fd, unit.vm_fd, NULL, &file));
	assert_refused(-EINVAL, "not a guest_memfd",
		       gmem_file_adopt(unit.vm_fd, kvm_fd, NULL, &file));
	assert_refused(-EBADF, "900", gmem_file_adopt(unit.vm_fd, 900, NULL, &file));
	assert_refused(-EBADF, "-1", gmem_file_adopt(unit.vm_fd, -1, NULL, &file));

	fd = fake_new_gmemfd(unit.vm_fd, unit.page, MAPPABLE);
	assert_refused(-EBADF, "900", gmem_file_adopt(900, fd, NULL, &file));
	assert_refused(-EINVAL, "NULL", gmem_file_adopt(unit.vm_fd, fd, NULL, NULL));
	opts.flags = GMEM_ADOPT_OF_VM;
	assert_refused(-EINVAL, "without a VM", gmem_file_adopt(GMEM_NO_VM, fd, &opts, &file));
	for (bit = 2; bit < 64; bit++) {
		opts.flags = (uint64_t)1 << bit;
		assert_refused(-EINVAL, "flags", gmem_file_adopt(unit.vm_fd, fd, &opts, &file));
	}
	assert_ptr_equal(file, NO_FILE);
	close(memfd);
	fake_close(fd);
	fake_close(kvm_fd);
	unit_end(&unit);
}

static void adopt_needs_proc_only_before_6_19(void **state)
{
	struct gmem_file *file = NO_FILE;
	struct unit unit;
	int fd;

	(void)state;
	unit_begin(&unit, "6.18");
	fake.no_proc = true;
	fd = fake_new_gmemfd(unit.vm_fd, unit.page, MAPPABLE);
	assert_refused(-ENOENT, "/proc/self/fd", gmem_file_adopt(unit.vm_fd, fd, NULL, &file));
	fake_close(fd);
	unit_end(&unit);

	unit_begin(&unit, "6.19");
	fake.no_proc = true;
	fd = fake_new_gmemfd(unit.vm_fd, unit.page, MAPPABLE);
	assert_ok(gmem_file_adopt(unit.vm_fd, fd, NULL, &file));
	gmem_file_free(file);
	fake_close(fd);
	unit_end(&unit);
}

static void adopt_rejects_the_file_of_another_vm(void **state)
{
	static const char *const kernels[] = { "6.18", "7.2", "arm64-6.18" };
	struct gmem_file *file = NO_FILE;
	struct unit unit;
	size_t i;
	int other, fd;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(kernels); i++) {
		unit_begin(&unit, kernels[i]);
		other = fake_new_vm();
		fd = fake_new_gmemfd(other, PAGES(&unit, 4), MAPPABLE);
		assert_refused(-EXDEV, "another VM",
			       gmem_file_adopt(unit.vm_fd, fd, NULL, &file));
		assert_ptr_equal(file, NO_FILE);
		fake_close(fd);
		fake_close(other);
		unit_end(&unit);
	}
}

/* The header's promise: only up to 7.1, and only if it is wholly bound */
static void adopt_of_a_bound_file_works(void **state)
{
	static const struct {
		const char *kernel;
		uint64_t bound_pages;
		bool is_told;		/* whether two fds are one file */
		int err;
	} cases[] = {
		{ "6.18", 1, false, 0 },
		{ "6.18", 2, false, -EXDEV },
		{ "6.18", 2, true, 0 },
		{ "7.2", 1, false, 0 },
		{ "7.2", 2, false, 0 },
	};
	GMEM_OPTS(gmem_region_opts, opts, .flags = 0);
	struct gmem_file *first, *second;
	struct gmem_region *region;
	struct unit unit;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		unit_begin_vm(&unit, cases[i].kernel);
		fake.no_same_file = !cases[i].is_told;
		first = unit_file(&unit, 2);
		opts.file = first;
		assert_ok(gmem_region_add(unit.vm, 0, PAGES(&unit, cases[i].bound_pages),
					  &opts, &region));
		second = NULL;
		assert_int_equal(gmem_file_adopt(unit.vm_fd, gmem_file_fd(first), NULL,
						 &second), cases[i].err);
		gmem_file_free(second);
		gmem_file_free(first);
		unit_end(&unit);
	}
}

static void adopt_without_a_spare_slot_is_busy(void **state)
{
	struct gmem_file *file = NO_FILE;
	struct unit unit;
	uint32_t i;
	int fd;

	(void)state;
	unit_begin(&unit, "6.18");
	for (i = 0; i < 32764; i++)
		assert_ok(fake_add_slot(unit.vm_fd, i, PAGES(&unit, i), unit.page));
	fd = fake_new_gmemfd(unit.vm_fd, unit.page, MAPPABLE);
	assert_refused(-EBUSY, "spare", gmem_file_adopt(unit.vm_fd, fd, NULL, &file));
	fake_close(fd);
	unit_end(&unit);
}

/* Nor does it look at the file for its create flags. */
static void adopt_of_a_known_file_takes_no_memslot(void **state)
{
	GMEM_OPTS(gmem_adopt_opts, believed, .flags = GMEM_ADOPT_OF_VM);
	struct gmem_file *first, *second, *third;
	unsigned slots, maps;
	struct unit unit;
	int fd;

	(void)state;
	unit_begin(&unit, "6.18");
	fd = fake_new_gmemfd(unit.vm_fd, PAGES(&unit, 2), MAPPABLE);
	slots = fake_count(FAKE_SET_SLOT2);
	assert_ok(gmem_file_adopt(unit.vm_fd, fd, NULL, &first));
	assert_true(fake_count(FAKE_SET_SLOT2) > slots);
	slots = fake_count(FAKE_SET_SLOT2);
	maps = fake_count(FAKE_MADVISE);
	assert_ok(gmem_file_adopt(unit.vm_fd, fd, NULL, &second));
	assert_int_equal(gmem_file_create_flags(second), MAPPABLE);
	gmem_file_free(first);
	assert_ok(gmem_file_adopt(unit.vm_fd, fd, NULL, &third));
	assert_int_equal(gmem_file_create_flags(third), MAPPABLE);
	assert_int_equal(fake_count(FAKE_SET_SLOT2), slots);
	assert_int_equal(fake_count(FAKE_MADVISE), maps);
	gmem_file_free(second);
	gmem_file_free(third);

	/* With the last of them the library has forgotten the file. */
	assert_ok(gmem_file_adopt(unit.vm_fd, fd, &believed, &first));
	assert_int_equal(fake_count(FAKE_SET_SLOT2), slots);
	gmem_file_free(first);
	assert_ok(gmem_file_adopt(unit.vm_fd, fd, NULL, &first));
	assert_true(fake_count(FAKE_SET_SLOT2) > slots);
	gmem_file_free(first);
	fake_close(fd);
	unit_end(&unit);
}

/* Of its VM and of its create flags, while the first handle that heard it is there, too */
static void what_a_caller_says_of_a_file_is_not_known(void **state)
{
	GMEM_OPTS(gmem_adopt_opts, said, .flags = GMEM_ADOPT_OF_VM | GMEM_ADOPT_CREATE_FLAGS);
	struct gmem_file *first, *second, *third;
	struct unit unit;
	int fd, other;

	(void)state;
	unit_begin(&unit, "6.18");
	other = fake_new_vm();
	fd = fake_new_gmemfd(other, PAGES(&unit, 2), MAPPABLE);
	assert_ok(gmem_file_adopt(unit.vm_fd, fd, &said, &first));
	assert_int_equal(gmem_file_create_flags(first), 0);
	assert_refused(-EXDEV, "belongs to another VM", gmem_file_adopt(unit.vm_fd, fd, NULL, &second));

	assert_ok(gmem_file_adopt(other, fd, NULL, &second));
	assert_int_equal(gmem_file_create_flags(second), MAPPABLE);
	said.create_flags = MAPPABLE | 4;
	assert_ok(gmem_file_adopt(other, fd, &said, &third));
	assert_int_equal(gmem_file_create_flags(third), MAPPABLE | 4);
	gmem_file_free(second);
	assert_ok(gmem_file_adopt(other, fd, NULL, &second));
	assert_int_equal(gmem_file_create_flags(second), MAPPABLE);
	gmem_file_free(first);
	gmem_file_free(second);
	gmem_file_free(third);
	fake_close(fd);
	fake_close(other);
	unit_end(&unit);
}

static void what_is_known_of_a_file_wins_over_what_is_said(void **state)
{
	GMEM_OPTS(gmem_adopt_opts, of_vm, .flags = GMEM_ADOPT_OF_VM);
	GMEM_OPTS(gmem_adopt_opts, flags, .flags = GMEM_ADOPT_CREATE_FLAGS);
	struct gmem_file *made, *file = NO_FILE;
	struct unit unit;
	unsigned slots;
	int other, fd;

	(void)state;
	unit_begin(&unit, "6.18");
	other = fake_new_vm();
	assert_ok(gmem_file_new_raw(unit.vm_fd, PAGES(&unit, 2), MAPPABLE, &made));
	fd = gmem_file_fd(made);
	slots = fake_count(FAKE_SET_SLOT2);
	assert_refused(-EXDEV, "known to be VM fd", gmem_file_adopt(other, fd, &of_vm, &file));
	assert_refused(-EXDEV, "known to be VM fd", gmem_file_adopt(other, fd, NULL, &file));
	assert_int_equal(fake_count(FAKE_SET_SLOT2), slots);
	assert_refused(-EINVAL, "created with 0x3", gmem_file_adopt(unit.vm_fd, fd, &flags, &file));
	assert_refused(-EINVAL, "created with 0x3", gmem_file_adopt(GMEM_NO_VM, fd, &flags, &file));
	flags.create_flags = MAPPABLE | 4;
	assert_refused(-EINVAL, "created with 0x3", gmem_file_adopt(unit.vm_fd, fd, &flags, &file));
	assert_ptr_equal(file, NO_FILE);
	gmem_file_free(made);

	/* Found, whether it can be mapped is certain; the rest may have changed since. */
	fd = fake_new_gmemfd(unit.vm_fd, PAGES(&unit, 2), MAPPABLE);
	assert_ok(gmem_file_adopt(unit.vm_fd, fd, NULL, &made));
	flags.create_flags = GMEM_CREATE_INIT_SHARED;
	assert_refused(-EINVAL, "created with 0x3", gmem_file_adopt(unit.vm_fd, fd, &flags, &file));
	flags.create_flags = GMEM_CREATE_MMAP;
	assert_ok(gmem_file_adopt(unit.vm_fd, fd, &flags, &file));
	assert_int_equal(gmem_file_create_flags(file), GMEM_CREATE_MMAP);
	gmem_file_free(file);
	gmem_file_free(made);
	fake_close(fd);
	fake_close(other);
	unit_end(&unit);
}

/* A region that KVM takes proves what was said; one that it refuses does not. */
static void a_region_tells_whose_a_file_is(void **state)
{
	GMEM_OPTS(gmem_adopt_opts, said, .flags = GMEM_ADOPT_OF_VM);
	GMEM_OPTS(gmem_region_opts, opts, .flags = 0);
	struct gmem_file *file, *again, *wrong;
	struct gmem_region *region;
	struct gmem_plan *plan;
	struct unit unit;
	int fd, other;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	plan = unit_plan(&unit, GMEM_BACKING_SHARED);
	opts.plan = plan;
	fd = fake_new_gmemfd(unit.vm_fd, PAGES(&unit, 2), MAPPABLE);
	assert_ok(gmem_file_adopt(unit.vm_fd, fd, &said, &file));
	opts.file = file;
	assert_ok(gmem_region_add(unit.vm, 0, PAGES(&unit, 2), &opts, &region));
	assert_ok(gmem_file_adopt(unit.vm_fd, fd, NULL, &again));
	gmem_file_free(again);
	assert_ok(gmem_region_remove(region));
	gmem_file_free(file);
	fake_close(fd);

	other = fake_new_vm();
	fd = fake_new_gmemfd(other, PAGES(&unit, 2), MAPPABLE);
	assert_ok(gmem_file_adopt(unit.vm_fd, fd, &said, &wrong));
	opts.file = wrong;
	assert_int_equal(gmem_region_add(unit.vm, 0, PAGES(&unit, 2), &opts, &region), -EINVAL);
	assert_refused(-EXDEV, "another VM", gmem_file_adopt(unit.vm_fd, fd, NULL, &again));
	gmem_file_free(wrong);

	/* and what was said wrongly is in the way of no VM that the file is of */
	fake_close(fd);
	fd = fake_new_gmemfd(unit.vm_fd, PAGES(&unit, 2), MAPPABLE);
	assert_ok(gmem_file_adopt(other, fd, &said, &file));
	opts.file = file;
	assert_ok(gmem_region_add(unit.vm, 0, PAGES(&unit, 2), &opts, &region));
	gmem_file_free(file);
	fake_close(fd);
	fake_close(other);
	gmem_plan_free(plan);
	unit_end(&unit);
}

static void adopt_refuses_an_fd_that_is_no_vms(void **state)
{
	GMEM_OPTS(gmem_adopt_opts, said, .flags = GMEM_ADOPT_OF_VM);
	const struct gmem_adopt_opts *const ways[] = { NULL, &said };
	struct gmem_file *file = NO_FILE;
	struct unit unit;
	int fd, kvm_fd, null_fd;

	(void)state;
	unit_begin(&unit, "6.18");
	fd = fake_new_gmemfd(unit.vm_fd, PAGES(&unit, 2), MAPPABLE);
	kvm_fd = fake_new_kvm();
	null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	for (size_t i = 0; i < 2; i++) {
		assert_refused(-EINVAL, "/dev/kvm itself", gmem_file_adopt(kvm_fd, fd, ways[i], &file));
		assert_refused(-ENOTTY, "is not a VM's", gmem_file_adopt(null_fd, fd, ways[i], &file));
		assert_refused(-ENOTTY, "is not a VM's", gmem_file_adopt(fd, fd, ways[i], &file));
	}
	assert_ptr_equal(file, NO_FILE);
	close(null_fd);
	fake_close(kvm_fd);
	fake_close(fd);
	unit_end(&unit);
}

static void fd_is_a_guest_memfd_or_not_or_unknown(void **state)
{
	static const char *const kernels[] = { "6.12-swp-t1", "6.18", "6.19", "7.2" };
	int fd, memfd = memfd_create("[kvm-gmem]", MFD_CLOEXEC);
	struct unit unit;
	bool needs_proc;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(kernels); i++) {
		unit_begin(&unit, kernels[i]);
		needs_proc = i < 2;
		fd = fake_new_gmemfd(unit.vm_fd, unit.page, fake.private_memory ? 0 : MAPPABLE);
		assert_int_equal(gmem_fd_is_guest_memfd(fd), 1);
		assert_int_equal(gmem_fd_is_guest_memfd(memfd), 0);
		assert_int_equal(gmem_fd_is_guest_memfd(unit.vm_fd), 0);
		assert_refused(-EBADF, "-1", gmem_fd_is_guest_memfd(-1));
		assert_refused(-EBADF, "900", gmem_fd_is_guest_memfd(900));

		fake.no_proc = true;
		assert_int_equal(gmem_fd_is_guest_memfd(memfd), 0);
		if (needs_proc) {
			assert_refused(-ENOENT, "/proc/self/fd", gmem_fd_is_guest_memfd(fd));
			assert_refused(-ENOENT, "/proc/self/fd", gmem_fd_is_guest_memfd(unit.vm_fd));
		} else {
			assert_int_equal(gmem_fd_is_guest_memfd(fd), 1);
		}
		fake_close(fd);
		unit_end(&unit);
	}
	close(memfd);
}

/* ---- map ---- */

static void mapping_shows_the_file_at_its_offset(void **state)
{
	struct gmem_file *file;
	struct unit unit;
	uint64_t offset;
	char *whole, *part;

	(void)state;
	unit_begin(&unit, "6.18");
	file = unit_file(&unit, 4);
	whole = map(&unit, file, 0, 4);
	part = map(&unit, file, 2, 2);
	strcpy(part, "seen through both");
	assert_string_equal(whole + 2 * unit.page, "seen through both");
	assert_int_equal(fake_file_at(part, &offset), fake_file_of_fd(gmem_file_fd(file)));
	assert_int_equal(offset, PAGES(&unit, 2));
	assert_int_equal(fake_protection_at(part), PROT_READ | PROT_WRITE);
	gmem_file_free(file);
	unit_end(&unit);
}

static void mapping_may_be_read_only(void **state)
{
	GMEM_OPTS(gmem_map_opts, opts, .flags = GMEM_MAP_READONLY);
	struct gmem_file *file;
	struct unit unit;
	void *hva;

	(void)state;
	unit_begin(&unit, "6.18");
	file = unit_file(&unit, 1);
	assert_ok(gmem_file_map(file, 0, unit.page, &opts, &hva));
	assert_int_equal(fake_protection_at(hva), PROT_READ);
	gmem_file_free(file);
	unit_end(&unit);
}

static void mapping_goes_where_it_is_told_if_that_is_free(void **state)
{
	GMEM_OPTS(gmem_map_opts, opts, .flags = GMEM_MAP_FIXED);
	struct gmem_file *file;
	struct unit unit;
	void *hva, *again = NO_HVA;

	(void)state;
	unit_begin(&unit, "6.18");
	file = unit_file(&unit, 4);
	opts.hva = unit_free_address(&unit, 4);
	assert_ok(gmem_file_map(file, 0, PAGES(&unit, 2), &opts, &hva));
	assert_ptr_equal(hva, opts.hva);
	assert_refused(-EEXIST, "0x", gmem_file_map(file, 0, unit.page, &opts, &again));
	opts.hva = unit_at(hva, unit.page);
	assert_refused(-EEXIST, "0x", gmem_file_map(file, 0, PAGES(&unit, 2), &opts, &again));
	assert_ptr_equal(again, NO_HVA);
	gmem_file_free(file);
	unit_end(&unit);
}

static void mapping_replaces_reserved_space(void **state)
{
	GMEM_OPTS(gmem_map_opts, opts, .flags = GMEM_MAP_REPLACE);
	struct gmem_file *file;
	struct unit unit;
	void *hva, *space;

	(void)state;
	unit_begin(&unit, "6.18");
	file = unit_file(&unit, 4);
	space = unit_memory(&unit, 4);
	opts.hva = unit_at(space, unit.page);
	assert_ok(gmem_file_map(file, 0, PAGES(&unit, 2), &opts, &hva));
	assert_ptr_equal(hva, opts.hva);

	/* give the allocator its memory back */
	assert_ok(gmem_file_unmap(file, hva, PAGES(&unit, 2)));
	assert_ptr_equal(mmap(hva, PAGES(&unit, 2), PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), hva);
	unit_memory_free(space);
	gmem_file_free(file);
	unit_end(&unit);
}

/* Map page @page of @file over @hva. */
static int map_over(const struct unit *unit, struct gmem_file *file, uint64_t page, uint64_t pages,
		    void *hva)
{
	GMEM_OPTS(gmem_map_opts, opts, .flags = GMEM_MAP_REPLACE, .hva = hva);
	void *got = NO_HVA;
	int err = gmem_file_map(file, PAGES(unit, page), PAGES(unit, pages), &opts, &got);

	assert_ptr_equal(got, err ? NO_HVA : hva);
	return err;
}

static void check_belongs(const struct unit *unit, struct gmem_file *file, void *hva, uint64_t page)
{
	uint64_t offset = 0;

	assert_ok(gmem_file_find_hva(file, hva, &offset));
	assert_int_equal(offset, PAGES(unit, page));
}

/* gmem_file_free() unmapped what had been mapped over a mapping of the file. */
static void freed_file_spares_what_replaced_its_mapping(void **state)
{
	struct gmem_file *below, *above;
	struct unit unit;
	uint64_t offset;
	char *hva;

	(void)state;
	unit_begin(&unit, "6.18");
	below = unit_file(&unit, 8);
	above = unit_file(&unit, 8);
	hva = map(&unit, below, 0, 8);
	assert_ok(map_over(&unit, above, 1, 2, hva + PAGES(&unit, 3)));
	check_belongs(&unit, below, hva + PAGES(&unit, 2), 2);
	check_belongs(&unit, above, hva + PAGES(&unit, 3), 1);
	check_belongs(&unit, below, hva + PAGES(&unit, 5), 5);
	assert_int_equal(gmem_file_find_hva(below, hva + PAGES(&unit, 4), &offset), -ENOENT);

	/* it is in one mapping no more, and the part in the middle is not its own */
	assert_refused(-ENOENT, "", gmem_file_unmap(below, hva, PAGES(&unit, 8)));
	assert_refused(-ENOENT, "", gmem_file_unmap(below, hva + PAGES(&unit, 3), unit.page));

	gmem_file_free(below);
	assert_int_equal(fake_open_mappings(), 1);
	hva[PAGES(&unit, 3)] = 1;
	hva[PAGES(&unit, 5) - 1] = 1;
	gmem_file_free(above);
	assert_int_equal(fake_open_mappings(), 0);
	unit_end(&unit);
}

static void mapping_may_replace_several_and_parts_of_them(void **state)
{
	struct gmem_file *files[3];
	struct unit unit;
	char *hva;

	(void)state;
	unit_begin(&unit, "6.18");
	for (size_t i = 0; i < ARRAY_SIZE(files); i++)
		files[i] = unit_file(&unit, 16);
	hva = map(&unit, files[0], 0, 12);
	assert_ok(map_over(&unit, files[1], 0, 2, hva + PAGES(&unit, 4)));
	assert_ok(map_over(&unit, files[1], 8, 2, hva + PAGES(&unit, 7)));
	/* from inside one of them to inside another, with two whole ones between */
	assert_ok(map_over(&unit, files[2], 0, 7, hva + PAGES(&unit, 1)));
	check_belongs(&unit, files[0], hva, 0);
	check_belongs(&unit, files[2], hva + PAGES(&unit, 1), 0);
	check_belongs(&unit, files[2], hva + PAGES(&unit, 7), 6);
	check_belongs(&unit, files[1], hva + PAGES(&unit, 8), 9);
	check_belongs(&unit, files[0], hva + PAGES(&unit, 9), 9);

	/* a file over itself, at another offset */
	assert_ok(map_over(&unit, files[2], 8, 7, hva + PAGES(&unit, 1)));
	check_belongs(&unit, files[2], hva + PAGES(&unit, 1), 8);

	for (size_t i = 0; i < ARRAY_SIZE(files); i++)
		gmem_file_free(files[i]);
	assert_int_equal(fake_open_mappings(), 0);
	unit_end(&unit);
}

/* The kernel takes away what is there before it asks the file. */
static void refused_replacement_leaves_what_is_there(void **state)
{
	struct gmem_file *file, *other, *unmappable;
	struct unit unit;
	char *hva;

	(void)state;
	unit_begin(&unit, "6.18");
	file = unit_file(&unit, 4);
	other = unit_file(&unit, 4);
	hva = map(&unit, file, 0, 4);
	hva[0] = 5;
	assert_ok(gmem_file_new_raw(unit.vm_fd, PAGES(&unit, 4), 0, &unmappable));
	assert_refused(-ENODEV, "MMAP", map_over(&unit, unmappable, 0, 4, hva));
	fake_fail_kind(FAKE_MMAP, 1, 1, -ENOMEM);
	assert_refused(-ENOMEM, "mapped", map_over(&unit, other, 0, 4, hva));
	assert_int_equal(hva[0], 5);
	check_belongs(&unit, file, hva, 0);
	gmem_file_free(unmappable);
	gmem_file_free(other);
	gmem_file_free(file);
	unit_end(&unit);
}

static void mapping_is_aligned_as_asked(void **state)
{
	static const char *const kernels[] = { "6.18", "arm64-7.3-16k", "arm64-7.3-64k" };
	GMEM_OPTS(gmem_map_opts, opts, .flags = 0);
	struct gmem_file *file;
	struct unit unit;
	size_t i;
	void *hva;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(kernels); i++) {
		unit_begin(&unit, kernels[i]);
		file = unit_file(&unit, 3);
		for (opts.align = unit.page; opts.align <= 1 << 30; opts.align *= 8) {
			assert_ok(gmem_file_map(file, unit.page, PAGES(&unit, 2), &opts, &hva));
			assert_int_equal((uintptr_t)hva % opts.align, 0);
			/* addresses reserved around the mapping are given back */
			assert_int_equal(fake_open_mappings(), 1);
			assert_ok(gmem_file_unmap(file, hva, PAGES(&unit, 2)));
		}
		gmem_file_free(file);
		unit_end(&unit);
	}
}

static void map_rejects_bad_ranges_on_every_page_size(void **state)
{
	static const char *const kernels[] = { "6.18", "arm64-7.3-16k", "arm64-7.3-64k" };
	struct gmem_file *file;
	struct unit unit;
	void *hva = NO_HVA;
	size_t i, j;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(kernels); i++) {
		unit_begin(&unit, kernels[i]);
		file = unit_file(&unit, 4);
		const struct {
			uint64_t offset;
			uint64_t size;
			const char *sentence;
		} cases[] = {
			{ 0, 0, "size 0" },
			{ 1, unit.page, "offset 0x1 " },
			{ unit.page / 2, unit.page, "multiple" },
			{ 0, unit.page / 2, "multiple" },
			{ 0, unit.page + 1, "multiple" },
			{ 0, PAGES(&unit, 5), "the end of the file" },
			{ PAGES(&unit, 3), PAGES(&unit, 2), "the end of the file" },
			{ PAGES(&unit, 4), unit.page, "the end of the file" },
			{ 0 - unit.page, unit.page, "the end of the file" },
			{ unit.page, 0 - unit.page, "" },
			{ 0 - unit.page, PAGES(&unit, 2), "wraps" },
		};

		for (j = 0; j < ARRAY_SIZE(cases); j++)
			assert_refused(-EINVAL, cases[j].sentence,
				       gmem_file_map(file, cases[j].offset, cases[j].size,
						     NULL, &hva));
		assert_ptr_equal(hva, NO_HVA);
		gmem_file_free(file);
		unit_end(&unit);
	}
}

static void map_rejects_bad_options(void **state)
{
	GMEM_OPTS(gmem_map_opts, opts, .flags = 0);
	struct gmem_file *file;
	struct unit unit;
	void *hva = NO_HVA, *free_hva;
	int bit;

	(void)state;
	unit_begin(&unit, "6.18");
	file = unit_file(&unit, 4);
	free_hva = unit_free_address(&unit, 4);
	for (bit = 3; bit < 64; bit++) {
		opts.flags = (uint64_t)1 << bit;
		assert_refused(-EINVAL, "flags", gmem_file_map(file, 0, unit.page, &opts, &hva));
	}

	opts.flags = GMEM_MAP_FIXED | GMEM_MAP_REPLACE;
	opts.hva = free_hva;
	assert_refused(-EINVAL, "", gmem_file_map(file, 0, unit.page, &opts, &hva));
	opts.flags = GMEM_MAP_FIXED;
	opts.hva = unit_at(free_hva, 1);
	assert_refused(-EINVAL, "multiple", gmem_file_map(file, 0, unit.page, &opts, &hva));
	opts.hva = NULL;
	assert_refused(-EINVAL, "NULL", gmem_file_map(file, 0, unit.page, &opts, &hva));
	opts.hva = (void *)(uintptr_t)(0 - unit.page);
	assert_refused(-EINVAL, "wraps",
		       gmem_file_map(file, 0, PAGES(&unit, 2), &opts, &hva));
	opts.hva = free_hva;
	opts.align = unit.page;
	assert_refused(-EINVAL, "align", gmem_file_map(file, 0, unit.page, &opts, &hva));

	opts.flags = 0;
	opts.hva = NULL;
	opts.align = unit.page / 2;
	assert_refused(-EINVAL, "align", gmem_file_map(file, 0, unit.page, &opts, &hva));
	opts.align = 3 * unit.page;
	assert_refused(-EINVAL, "align", gmem_file_map(file, 0, unit.page, &opts, &hva));
	opts.align = (uint64_t)1 << 62;
	assert_refused(-ENOMEM, "", gmem_file_map(file, 0, unit.page, &opts, &hva));

	assert_refused(-EINVAL, "NULL", gmem_file_map(NULL, 0, unit.page, NULL, &hva));
	assert_refused(-EINVAL, "NULL", gmem_file_map(file, 0, unit.page, NULL, NULL));
	assert_ptr_equal(hva, NO_HVA);
	gmem_file_free(file);
	unit_end(&unit);
}

static void file_without_mmap_cannot_be_mapped(void **state)
{
	struct gmem_file *file;
	struct unit unit;
	void *hva = NO_HVA;

	(void)state;
	unit_begin(&unit, "6.18");
	assert_ok(gmem_file_new_raw(unit.vm_fd, unit.page, 0, &file));
	assert_refused(-ENODEV, "0x0", gmem_file_map(file, 0, unit.page, NULL, &hva));
	gmem_file_free(file);
	unit_end(&unit);
}

/* mmap succeeds and a touch is SIGBUS: a mapping is how a NUMA policy is set */
static void private_file_with_mmap_can_be_mapped(void **state)
{
	struct gmem_file *file;
	struct unit unit;

	(void)state;
	unit_begin(&unit, "6.18");
	assert_ok(gmem_file_new_raw(unit.vm_fd, unit.page, GMEM_CREATE_MMAP, &file));
	map(&unit, file, 0, 1);
	gmem_file_free(file);
	unit_end(&unit);
}

/* ---- unmap and lookup ---- */

static void check_lookup(const struct unit *unit, struct gmem_file *file, void *hva,
			 const char *pages)
{
	uint64_t offset, i;
	int err;

	for (i = 0; pages[i]; i++) {
		offset = 77;
		err = gmem_file_find_hva(file, unit_at(hva, PAGES(unit, i) + 5), &offset);
		assert_int_equal(err, pages[i] == '.' ? -ENOENT : 0);
		assert_int_equal(offset, pages[i] == '.' ? 77 : PAGES(unit, 1 + i) + 5);
	}
}

static void lookup_follows_partial_unmaps(void **state)
{
	static const struct {
		uint64_t first;
		uint64_t count;
		const char *left;	/* x mapped, . not */
	} steps[] = {
		{ 3, 2, "xxx..xxxxx" },
		{ 0, 1, ".xx..xxxxx" },
		{ 9, 1, ".xx..xxxx." },
		{ 6, 1, ".xx..x.xx." },
		{ 1, 2, ".....x.xx." },
		{ 7, 2, ".....x...." },
		{ 5, 1, ".........." },
	};
	struct gmem_file *file;
	struct unit unit;
	size_t i;
	void *hva;

	(void)state;
	unit_begin(&unit, "6.18");
	file = unit_file(&unit, 11);
	hva = map(&unit, file, 1, 10);
	check_lookup(&unit, file, hva, "xxxxxxxxxx");
	for (i = 0; i < ARRAY_SIZE(steps); i++) {
		assert_ok(gmem_file_unmap(file, unit_at(hva, PAGES(&unit, steps[i].first)),
					  PAGES(&unit, steps[i].count)));
		check_lookup(&unit, file, hva, steps[i].left);
	}
	assert_int_equal(fake_open_mappings(), 0);
	gmem_file_free(file);
	unit_end(&unit);
}

static void lookup_knows_both_ends_of_a_mapping(void **state)
{
	struct gmem_file *file;
	struct unit unit;
	uint64_t offset = 1;
	char *hva;

	(void)state;
	unit_begin(&unit, "6.18");
	file = unit_file(&unit, 4);
	hva = map(&unit, file, 2, 2);
	assert_ok(gmem_file_find_hva(file, hva, &offset));
	assert_int_equal(offset, PAGES(&unit, 2));
	assert_ok(gmem_file_find_hva(file, hva + PAGES(&unit, 2) - 1, &offset));
	assert_int_equal(offset, PAGES(&unit, 4) - 1);
	assert_refused(-ENOENT, "0x",
		       gmem_file_find_hva(file, hva + PAGES(&unit, 2), &offset));
	assert_refused(-ENOENT, "0x", gmem_file_find_hva(file, hva - 1, &offset));
	assert_refused(-ENOENT, "0x0", gmem_file_find_hva(file, NULL, &offset));
	assert_refused(-EINVAL, "NULL", gmem_file_find_hva(NULL, hva, &offset));
	assert_refused(-EINVAL, "NULL", gmem_file_find_hva(file, hva, NULL));
	assert_int_equal(offset, PAGES(&unit, 4) - 1);
	gmem_file_free(file);
	unit_end(&unit);
}

static void unmap_stays_inside_one_mapping(void **state)
{
	GMEM_OPTS(gmem_map_opts, opts, .flags = GMEM_MAP_FIXED);
	struct gmem_file *file, *other;
	struct unit unit;
	void *hva, *next, *foreign;

	(void)state;
	unit_begin(&unit, "6.18");
	file = unit_file(&unit, 8);
	other = unit_file(&unit, 8);
	opts.hva = unit_free_address(&unit, 8);
	assert_ok(gmem_file_map(file, 0, PAGES(&unit, 2), &opts, &hva));
	opts.hva = unit_at(hva, PAGES(&unit, 2));
	assert_ok(gmem_file_map(file, PAGES(&unit, 2), PAGES(&unit, 2), &opts, &next));
	foreign = map(&unit, other, 0, 1);

	assert_refused(-EINVAL, "size 0", gmem_file_unmap(file, hva, 0));
	assert_refused(-EINVAL, "multiple", gmem_file_unmap(file, unit_at(hva, 1), unit.page));
	assert_refused(-EINVAL, "multiple", gmem_file_unmap(file, hva, 1));
	assert_refused(-EINVAL, "wraps", gmem_file_unmap(file, hva, 0 - unit.page));
	assert_refused(-EINVAL, "NULL", gmem_file_unmap(NULL, hva, unit.page));
	assert_refused(-ENOENT, "0x", gmem_file_unmap(file, NULL, unit.page));
	assert_refused(-ENOENT, "0x", gmem_file_unmap(file, foreign, unit.page));
	/* two neighbours are two mappings */
	assert_refused(-ENOENT, "0x", gmem_file_unmap(file, hva, PAGES(&unit, 4)));
	assert_refused(-ENOENT, "0x",
		       gmem_file_unmap(file, unit_at(hva, unit.page), PAGES(&unit, 2)));
	assert_refused(-ENOENT, "0x", gmem_file_unmap(file, next, PAGES(&unit, 3)));

	assert_ok(gmem_file_unmap(file, hva, PAGES(&unit, 2)));
	assert_refused(-ENOENT, "0x", gmem_file_unmap(file, hva, PAGES(&unit, 2)));
	assert_refused(-ENOENT, "0x", gmem_file_unmap(file, hva, unit.page));
	gmem_file_free(file);
	gmem_file_free(other);
	unit_end(&unit);
}

static void unmap_spares_a_region_s_own_mapping(void **state)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = 0);
	struct gmem_region *region;
	struct gmem_file *file;
	struct unit unit;
	uint64_t offset;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	file = unit_file(&unit, 4);
	opts.file = file;
	opts.file_offset = PAGES(&unit, 1);
	assert_ok(gmem_region_add(unit.vm, 0, PAGES(&unit, 2), &opts, &region));
	assert_refused(-EBUSY, "region",
		       gmem_file_unmap(file, gmem_region_hva(region), unit.page));
	assert_ok(gmem_file_find_hva(file, unit_at(gmem_region_hva(region), 3), &offset));
	assert_int_equal(offset, PAGES(&unit, 1) + 3);
	gmem_file_free(file);
	unit_end(&unit);
}

/* Not even that of a region of another file, or of no file at all */
static void map_does_not_replace_a_region_s_memory(void **state)
{
	static const uint32_t backings[] = { GMEM_BACKING_SHARED, GMEM_BACKING_MAPPED,
					     GMEM_BACKING_HOST };
	struct gmem_region *region;
	struct gmem_file *file;
	struct unit unit;
	char *hva;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	file = unit_file(&unit, 4);
	for (size_t i = 0; i < ARRAY_SIZE(backings); i++) {
		region = unit_region_backed(&unit, 0, 2, backings[i]);
		hva = gmem_region_hva(region);
		hva[unit.page] = 7;
		assert_refused(-EBUSY, "region",
			       map_over(&unit, file, 0, 1, hva + unit.page));
		assert_int_equal(hva[unit.page], 7);
		assert_ok(gmem_region_remove(region));
	}
	gmem_file_free(file);
	unit_end(&unit);
}

static void free_unmaps_everything(void **state)
{
	struct gmem_file *file;
	struct unit unit;
	void *hva;
	int i;

	(void)state;
	unit_begin(&unit, "6.18");
	file = unit_file(&unit, 16);
	for (i = 0; i < 50; i++) {
		hva = map(&unit, file, 0, 16);
		assert_ok(gmem_file_unmap(file, unit_at(hva, PAGES(&unit, i % 14 + 1)), unit.page));
	}
	assert_int_equal(fake_open_mappings(), 100);
	gmem_file_free(file);
	assert_int_equal(fake_open_mappings(), 0);
	unit_end(&unit);
}

/* ---- allocate and punch ---- */

static void allocate_and_punch_do_the_whole_range(void **state)
{
	static const char *const kernels[] = { "6.18", "arm64-7.3-64k" };
	struct gmem_file *file;
	struct unit unit;
	uint64_t done;
	size_t i;
	int fd;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(kernels); i++) {
		unit_begin(&unit, kernels[i]);
		file = unit_file(&unit, 64);
		fd = gmem_file_fd(file);
		assert_ok(gmem_file_allocate(file, unit.page, PAGES(&unit, 62), &done));
		assert_int_equal(done, PAGES(&unit, 62));
		assert_true(fake_is_allocated(fd, unit.page, PAGES(&unit, 62)));
		assert_false(fake_is_allocated(fd, 0, unit.page));
		assert_false(fake_is_allocated(fd, PAGES(&unit, 63), unit.page));
		assert_ok(gmem_file_punch(file, PAGES(&unit, 4), PAGES(&unit, 2), NULL));
		assert_true(fake_is_allocated(fd, unit.page, PAGES(&unit, 3)));
		assert_false(fake_is_allocated(fd, PAGES(&unit, 4), unit.page));
		assert_false(fake_is_allocated(fd, PAGES(&unit, 5), unit.page));
		assert_true(fake_is_allocated(fd, PAGES(&unit, 6), PAGES(&unit, 57)));
		gmem_file_free(file);
		unit_end(&unit);
	}
}

static void allocate_needs_no_mapping(void **state)
{
	struct gmem_file *file;
	struct unit unit;

	(void)state;
	unit_begin(&unit, "6.12-swp-t1");
	assert_ok(gmem_file_new_raw(unit.vm_fd, unit.page, 0, &file));
	assert_ok(gmem_file_allocate(file, 0, unit.page, NULL));
	assert_ok(gmem_file_punch(file, 0, unit.page, NULL));
	gmem_file_free(file);
	unit_end(&unit);
}

static void punched_page_reads_zero(void **state)
{
	struct gmem_file *file;
	struct unit unit;
	char *hva;

	(void)state;
	unit_begin(&unit, "6.18");
	file = unit_file(&unit, 2);
	hva = map(&unit, file, 0, 2);
	hva[0] = 1;
	hva[unit.page] = 2;
	assert_ok(gmem_file_punch(file, 0, unit.page, NULL));
	assert_int_equal(hva[0], 0);
	assert_int_equal(hva[unit.page], 2);
	gmem_file_free(file);
	unit_end(&unit);
}

/* Signals that let only some pages through at a time do not stop the work. */
static void signals_do_not_stop_allocation(void **state)
{
	static const struct {
		unsigned times;
		uint64_t pages;
	} cases[] = { { 1, 0 }, { 1, 1 }, { 3, 500 }, { 20, 1 }, { 40, 100 }, { 40, 1 }, { 30, 0 } };
	struct gmem_file *file;
	struct unit unit;
	uint64_t done;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		unit_begin(&unit, "6.18");
		file = unit_file(&unit, 4000);
		fake_interrupt(cases[i].times, cases[i].pages);
		done = 0;
		assert_ok(gmem_file_allocate(file, 0, PAGES(&unit, 4000), &done));
		assert_int_equal(done, PAGES(&unit, 4000));
		assert_true(fake_is_allocated(gmem_file_fd(file), 0, PAGES(&unit, 4000)));

		fake_interrupt(cases[i].times, cases[i].pages);
		assert_ok(gmem_file_punch(file, 0, PAGES(&unit, 4000), &done));
		assert_int_equal(done, PAGES(&unit, 4000));
		assert_false(fake_is_allocated(gmem_file_fd(file), PAGES(&unit, 3999),
					       unit.page));
		gmem_file_free(file);
		unit_end(&unit);
	}
}

static void signals_without_end_stop_allocation(void **state)
{
	struct gmem_file *file;
	struct unit unit;
	uint64_t done = 1;

	(void)state;
	unit_begin(&unit, "6.18");
	file = unit_file(&unit, 16);
	fake_interrupt(1000000, 0);
	assert_refused(-EINTR, "0x10000", gmem_file_allocate(file, 0, PAGES(&unit, 16), &done));
	assert_int_equal(done, 0);
	done = 1;
	assert_refused(-EINTR, "0x10000", gmem_file_punch(file, 0, PAGES(&unit, 16), &done));
	assert_int_equal(done, 0);
	fake_interrupt(0, 0);
	gmem_file_free(file);
	unit_end(&unit);
}

/* At least the pages that are reported as done are allocated. */
static void failed_allocation_tells_how_far_it_came(void **state)
{
	static const int errnos[] = { ENOMEM, EHWPOISON, ENOSPC, EIO };
	const uint64_t pages = 3 * 64 * 256;	/* more than any one call should take */
	struct gmem_file *file;
	struct unit unit;
	uint64_t done;
	size_t i;

	(void)state;
	unit_begin(&unit, "6.18");
	file = unit_file(&unit, pages);
	for (i = 0; i < ARRAY_SIZE(errnos); i++) {
		fake_fail_kind(FAKE_FALLOCATE, 1, 1, -errnos[i]);
		done = 1;
		assert_refused(-errnos[i], "0x",
			       gmem_file_allocate(file, 0, PAGES(&unit, pages), &done));
		assert_true(done > 0 && done < PAGES(&unit, pages) && done % unit.page == 0);
		fake_fail_kind(FAKE_FALLOCATE, 1, 1, -errnos[i]);
		assert_refused(-errnos[i], "0x",
			       gmem_file_punch(file, 0, PAGES(&unit, pages), &done));
		assert_true(done > 0 && done < PAGES(&unit, pages));
	}
	assert_true(fake_fail_struck());
	gmem_file_free(file);
	unit_end(&unit);
}

static void allocate_and_punch_reject_bad_ranges(void **state)
{
	static const char *const kernels[] = { "6.18", "arm64-7.3-16k", "arm64-7.3-64k" };
	struct gmem_file *file;
	struct unit unit;
	uint64_t done;
	size_t i, j;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(kernels); i++) {
		unit_begin(&unit, kernels[i]);
		file = unit_file(&unit, 4);
		const uint64_t p = unit.page;
		const struct {
			uint64_t offset;
			uint64_t size;
		} cases[] = {
			{ 0, 0 }, { 1, p }, { p / 2, p }, { 0, 1 }, { 0, p + 1 }, { 0, 5 * p },
			{ 4 * p, p }, { 3 * p, 2 * p }, { 0 - p, p }, { 0 - p, 2 * p },
			{ p, 0 - p },
		};

		for (j = 0; j < ARRAY_SIZE(cases); j++) {
			assert_refused(-EINVAL, "", gmem_file_allocate(file, cases[j].offset,
								       cases[j].size, &done));
			assert_refused(-EINVAL, "", gmem_file_punch(file, cases[j].offset,
								    cases[j].size, NULL));
		}
		assert_int_equal(fake_count(FAKE_FALLOCATE), 0);
		assert_refused(-EINVAL, "NULL", gmem_file_allocate(NULL, 0, p, &done));
		assert_refused(-EINVAL, "NULL", gmem_file_punch(NULL, 0, p, &done));
		gmem_file_free(file);
		unit_end(&unit);
	}
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(file_is_made_as_the_plan_says),
	cmocka_unit_test(fd_is_close_on_exec),
	cmocka_unit_test(raw_file_has_the_flags_it_was_asked_for),
	cmocka_unit_test(largest_file_is_below_2_to_the_63),
	cmocka_unit_test(create_rejects_bad_arguments_on_every_page_size),
	cmocka_unit_test(create_keeps_the_kernel_s_errno),
	cmocka_unit_test(file_holds_the_vm_until_it_is_freed),
	cmocka_unit_test(accessors_accept_null),
	cmocka_unit_test(adopted_file_is_a_duplicate),
	cmocka_unit_test(adopt_finds_the_create_flags),
	cmocka_unit_test(adopt_believes_the_create_flags_it_is_told),
	cmocka_unit_test(adopt_works_without_a_vm),
	cmocka_unit_test(adopt_rejects_what_is_no_guest_memfd),
	cmocka_unit_test(adopt_needs_proc_only_before_6_19),
	cmocka_unit_test(adopt_rejects_the_file_of_another_vm),
	cmocka_unit_test(adopt_of_a_bound_file_works),
	cmocka_unit_test(adopt_without_a_spare_slot_is_busy),
	cmocka_unit_test(adopt_of_a_known_file_takes_no_memslot),
	cmocka_unit_test(what_a_caller_says_of_a_file_is_not_known),
	cmocka_unit_test(what_is_known_of_a_file_wins_over_what_is_said),
	cmocka_unit_test(a_region_tells_whose_a_file_is),
	cmocka_unit_test(adopt_refuses_an_fd_that_is_no_vms),
	cmocka_unit_test(fd_is_a_guest_memfd_or_not_or_unknown),
	cmocka_unit_test(mapping_shows_the_file_at_its_offset),
	cmocka_unit_test(mapping_may_be_read_only),
	cmocka_unit_test(mapping_goes_where_it_is_told_if_that_is_free),
	cmocka_unit_test(mapping_replaces_reserved_space),
	cmocka_unit_test(freed_file_spares_what_replaced_its_mapping),
	cmocka_unit_test(mapping_may_replace_several_and_parts_of_them),
	cmocka_unit_test(refused_replacement_leaves_what_is_there),
	cmocka_unit_test(mapping_is_aligned_as_asked),
	cmocka_unit_test(map_rejects_bad_ranges_on_every_page_size),
	cmocka_unit_test(map_rejects_bad_options),
	cmocka_unit_test(file_without_mmap_cannot_be_mapped),
	cmocka_unit_test(private_file_with_mmap_can_be_mapped),
	cmocka_unit_test(lookup_follows_partial_unmaps),
	cmocka_unit_test(lookup_knows_both_ends_of_a_mapping),
	cmocka_unit_test(unmap_stays_inside_one_mapping),
	cmocka_unit_test(unmap_spares_a_region_s_own_mapping),
	cmocka_unit_test(map_does_not_replace_a_region_s_memory),
	cmocka_unit_test(free_unmaps_everything),
	cmocka_unit_test(allocate_and_punch_do_the_whole_range),
	cmocka_unit_test(allocate_needs_no_mapping),
	cmocka_unit_test(punched_page_reads_zero),
	cmocka_unit_test(signals_do_not_stop_allocation),
	cmocka_unit_test(signals_without_end_stop_allocation),
	cmocka_unit_test(failed_allocation_tells_how_far_it_came),
	cmocka_unit_test(allocate_and_punch_reject_bad_ranges),
};

UNIT_MAIN(tests)
