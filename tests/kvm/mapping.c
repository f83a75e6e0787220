/* SPDX-License-Identifier: MIT */
/* Mappings of a guest_memfd: the pages the host reaches, and those it must not reach */
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "expect.h"
#include "harness.h"

#define SHARED_FLAGS (GMEM_CREATE_MMAP | GMEM_CREATE_INIT_SHARED)

/* One VM and one file in it, fresh for every test */
struct fixture {
	struct machine m;
	struct gmem_file *file;
	uint64_t page;
};

static void fixture_new(struct fixture *f, uint64_t pages, uint64_t flags)
{
	f->page = page_size();
	machine_new(&f->m, DEFAULT_VM);
	require_create_flags(&f->m, flags);
	OK(gmem_file_new_raw(f->m.vm_fd, pages * f->page, flags, &f->file));
}

static void fixture_free(struct fixture *f)
{
	gmem_file_free(f->file);
	machine_free(&f->m);
}

static char *at(void *hva, uint64_t offset)
{
	return (char *)hva + offset;
}

/* an address range with nothing in it */
static void *free_range(uint64_t size, uint64_t align)
{
	char *hva = mmap(NULL, size + align, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
			 -1, 0);

	CHECK((void *)hva != MAP_FAILED);
	WORKS(munmap(hva, size + align));
	return hva + (align - (uintptr_t)hva % align) % align;
}

/* ---- whether the host has access ---- */

TEST(init_shared_lets_the_host_read_and_write)
{
	struct fixture f;
	void *hva;

	fixture_new(&f, 3, SHARED_FLAGS);
	hva = map_file(f.file);
	for (uint64_t i = 0; i < 3; i++) {
		CHECK_EQ(host_load(at(hva, i * f.page)), 0);
		host_store(at(hva, i * f.page), 0x1000 + (uint32_t)i);
	}
	for (uint64_t i = 0; i < 3; i++)
		CHECK_EQ(host_load(at(hva, i * f.page)), 0x1000 + i);
	unmap_file(f.file, hva);
	fixture_free(&f);
}

TEST(mmap_alone_maps_but_faults)
{
	struct fixture f;
	void *hva;

	fixture_new(&f, 2, GMEM_CREATE_MMAP);
	hva = map_file(f.file);
	for (uint64_t i = 0; i < 2; i++) {
		EXPECT_SIGBUS(at(hva, i * f.page), host_load(at(hva, i * f.page)));
		EXPECT_SIGBUS(at(hva, i * f.page), host_store(at(hva, i * f.page), 1));
		EXPECT_SIGBUS(at(hva, i * f.page + 64), host_load(at(hva, i * f.page + 64)));
	}
	unmap_file(f.file, hva);
	fixture_free(&f);
}

TEST(mmap_alone_faults_on_allocated_pages_too)
{
	struct fixture f;
	void *hva;

	fixture_new(&f, 2, GMEM_CREATE_MMAP);
	OK(gmem_file_allocate(f.file, 0, 2 * f.page, NULL));
	hva = map_file(f.file);
	EXPECT_SIGBUS(hva, host_load(hva));
	EXPECT_SIGBUS(hva, host_store(hva, 1));
	OK(gmem_file_punch(f.file, 0, 2 * f.page, NULL));
	EXPECT_SIGBUS(hva, host_load(hva));
	unmap_file(f.file, hva);
	fixture_free(&f);
}

static void check_unmappable(uint64_t flags)
{
	struct fixture f;
	void *hva = NULL;
	int fd;

	fixture_new(&f, 2, flags);
	fd = gmem_file_fd(f.file);
	REFUSED(gmem_file_map(f.file, 0, f.page, NULL, &hva), -ENODEV);
	REFUSED(gmem_file_map(f.file, 0, 2 * f.page, NULL, &hva), -ENODEV);
	CHECK(!hva);
	CHECK_RESULT(SYS(mmap(NULL, f.page, PROT_READ, MAP_SHARED, fd, 0)), -ENODEV);
	CHECK_RESULT(SYS(mmap(NULL, f.page, PROT_READ, MAP_PRIVATE, fd, 0)), -ENODEV);
	fixture_free(&f);
}

TEST(without_mmap_nothing_can_be_mapped)
{
	check_unmappable(0);
}

TEST(init_shared_alone_cannot_be_mapped)
{
	check_unmappable(GMEM_CREATE_INIT_SHARED);
}

TEST(a_refused_mapping_leaves_the_file_usable)
{
	struct fixture f;
	void *hva = NULL;

	fixture_new(&f, 2, 0);
	REFUSED(gmem_file_map(f.file, 0, f.page, NULL, &hva), -ENODEV);
	OK(gmem_file_allocate(f.file, 0, 2 * f.page, NULL));
	OK(gmem_file_punch(f.file, 0, f.page, NULL));
	CHECK_EQ(gmem_file_size(f.file), 2 * f.page);
	fixture_free(&f);
}

TEST(copy_on_write_mappings_do_not_exist)
{
	struct fixture f;
	int fd;

	fixture_new(&f, 1, SHARED_FLAGS);
	fd = gmem_file_fd(f.file);
	CHECK_RESULT(SYS(mmap(NULL, f.page, PROT_READ, MAP_PRIVATE, fd, 0)), -EINVAL);
	CHECK_RESULT(SYS(mmap(NULL, f.page, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0)), -EINVAL);
	CHECK_RESULT(SYS(mmap(NULL, f.page, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0)),
		     -EINVAL);
	fixture_free(&f);
}

TEST(copy_on_write_mappings_of_private_memory_do_not_exist)
{
	struct fixture f;
	int fd;

	fixture_new(&f, 1, GMEM_CREATE_MMAP);
	fd = gmem_file_fd(f.file);
	CHECK_RESULT(SYS(mmap(NULL, f.page, PROT_READ, MAP_PRIVATE, fd, 0)), -EINVAL);
	CHECK_RESULT(SYS(mmap(NULL, f.page, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0)), -EINVAL);
	fixture_free(&f);
}

TEST(code_cannot_be_executed_from_a_mapping)
{
	struct fixture f;
	void *hva;
	int fd;

	fixture_new(&f, 1, SHARED_FLAGS);
	fd = gmem_file_fd(f.file);
	CHECK_RESULT(SYS(mmap(NULL, f.page, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0)), -EPERM);
	hva = map_file(f.file);
	CHECK_RESULT(SYS(mprotect(hva, f.page, PROT_READ | PROT_EXEC)), -EACCES);
	unmap_file(f.file, hva);
	fixture_free(&f);
}

/* ---- system calls on mapped memory ---- */

/* The descriptor of a pipe that takes writes and never blocks: nobody reads much. */
static int sink(int *reader)
{
	int pipes[2];

	WORKS(pipe2(pipes, O_CLOEXEC | O_NONBLOCK));
	*reader = pipes[0];
	return pipes[1];
}

static void check_io_fails(int writer, int reader, char *hva, uint64_t size)
{
	char byte = 1;

	CHECK_RESULT(SYS(write(writer, hva, size)), -EFAULT);
	CHECK_RESULT(SYS(write(writer, hva, 1)), -EFAULT);
	CHECK_RESULT(SYS(write(writer, &byte, 1)), 1);
	CHECK_RESULT(SYS(read(reader, hva, 1)), -EFAULT);
	/* The byte of the read that failed may be lost or not. */
	while (read(reader, &byte, 1) == 1)
		;
}

TEST(system_calls_on_inaccessible_pages_fail_without_a_signal)
{
	int reader, writer = sink(&reader);
	struct fixture f;
	char *hva;

	fixture_new(&f, 3, GMEM_CREATE_MMAP);
	hva = map_file(f.file);
	check_io_fails(writer, reader, hva, f.page);
	/* in the middle */
	check_io_fails(writer, reader, at(hva, f.page + f.page / 2), 16);
	/* up to the end */
	check_io_fails(writer, reader, at(hva, 3 * f.page - 1), 1);
	unmap_file(f.file, hva);
	fixture_free(&f);
	close(reader);
	close(writer);
}

TEST(system_calls_past_the_end_fail_without_a_signal)
{
	int reader, writer = sink(&reader);
	struct fixture f;
	char *hva;

	/* The library maps nothing past the end; the kernel would. */
	fixture_new(&f, 1, SHARED_FLAGS);
	hva = mmap(NULL, 2 * f.page, PROT_READ | PROT_WRITE, MAP_SHARED, gmem_file_fd(f.file), 0);
	CHECK((void *)hva != MAP_FAILED);
	check_io_fails(writer, reader, at(hva, f.page), f.page);
	check_io_fails(writer, reader, at(hva, f.page + f.page / 2), 16);
	CHECK_RESULT(SYS(write(writer, hva, 16)), 16);
	WORKS(munmap(hva, 2 * f.page));
	fixture_free(&f);
	close(reader);
	close(writer);
}

TEST(accesses_past_the_end_fault)
{
	struct fixture f;
	char *hva;

	fixture_new(&f, 1, SHARED_FLAGS);
	hva = mmap(NULL, 2 * f.page, PROT_READ | PROT_WRITE, MAP_SHARED, gmem_file_fd(f.file), 0);
	CHECK((void *)hva != MAP_FAILED);
	host_store(hva, 1);
	EXPECT_SIGBUS(at(hva, f.page), host_load(at(hva, f.page)));
	EXPECT_SIGBUS(at(hva, f.page), host_store(at(hva, f.page), 1));
	WORKS(munmap(hva, 2 * f.page));
	fixture_free(&f);
}

TEST(system_calls_on_shared_memory_work)
{
	int reader, writer = sink(&reader);
	struct fixture f;
	char *hva;

	fixture_new(&f, 2, SHARED_FLAGS);
	hva = map_file(f.file);
	memcpy(at(hva, f.page - 4), "together", 8);
	CHECK_RESULT(SYS(write(writer, at(hva, f.page - 4), 8)), 8);
	CHECK_RESULT(SYS(read(reader, hva, 8)), 8);
	CHECK(!memcmp(hva, "together", 8));
	unmap_file(f.file, hva);
	fixture_free(&f);
	close(reader);
	close(writer);
}

/* ---- holes ---- */

TEST(a_punched_hole_is_gone_from_every_mapping)
{
	struct fixture f;
	void *one, *two;

	fixture_new(&f, 3, SHARED_FLAGS);
	one = map_file(f.file);
	two = map_file(f.file);
	for (uint64_t i = 0; i < 3; i++)
		host_store(at(one, i * f.page), 7);
	OK(gmem_file_punch(f.file, f.page, f.page, NULL));
	CHECK_EQ(host_load(one), 7);
	CHECK_EQ(host_load(at(one, f.page)), 0);
	CHECK_EQ(host_load(at(two, f.page)), 0);
	CHECK_EQ(host_load(at(two, 2 * f.page)), 7);
	host_store(at(one, f.page), 8);
	CHECK_EQ(host_load(at(two, f.page)), 8);
	unmap_file(f.file, one);
	unmap_file(f.file, two);
	fixture_free(&f);
}

TEST(touching_a_hole_allocates_it_again)
{
	struct fixture f;
	void *hva;
	int fd;

	fixture_new(&f, 4, SHARED_FLAGS);
	require_cachestat();
	fd = gmem_file_fd(f.file);
	hva = map_file(f.file);
	CHECK_EQ(allocated_pages(fd), 0);
	host_load(hva);
	host_store(at(hva, 2 * f.page), 1);
	CHECK_EQ(allocated_pages(fd), 2);
	OK(gmem_file_punch(f.file, 0, 4 * f.page, NULL));
	CHECK_EQ(allocated_pages(fd), 0);
	host_load(at(hva, f.page));
	CHECK_EQ(allocated_pages(fd), 1);
	unmap_file(f.file, hva);
	fixture_free(&f);
}

/* ---- several mappings ---- */

TEST(all_mappings_see_the_same_bytes)
{
	GMEM_OPTS(gmem_map_opts, readonly, .flags = GMEM_MAP_READONLY);
	struct fixture f;
	void *whole, *part, *again;

	fixture_new(&f, 4, SHARED_FLAGS);
	whole = map_file(f.file);
	OK(gmem_file_map(f.file, f.page, 2 * f.page, NULL, &part));
	OK(gmem_file_map(f.file, f.page, f.page, &readonly, &again));
	host_store(at(whole, f.page), 1);
	CHECK_EQ(host_load(part), 1);
	CHECK_EQ(host_load(again), 1);
	host_store(at(part, f.page), 2);
	CHECK_EQ(host_load(at(whole, 2 * f.page)), 2);
	OK(gmem_file_unmap(f.file, part, 2 * f.page));
	CHECK_EQ(host_load(at(whole, 2 * f.page)), 2);
	fixture_free(&f);
}

TEST(a_read_only_mapping_faults_on_stores)
{
	GMEM_OPTS(gmem_map_opts, opts, .flags = GMEM_MAP_READONLY);
	struct fixture f;
	void *hva;

	fixture_new(&f, 1, SHARED_FLAGS);
	OK(gmem_file_map(f.file, 0, f.page, &opts, &hva));
	CHECK_EQ(host_load(hva), 0);
	EXPECT_SIGNAL(SIGSEGV, hva, host_store(hva, 1));
	CHECK_EQ(host_load(hva), 0);
	fixture_free(&f);
}

TEST(a_mapping_outlives_the_vm_fd)
{
	struct fixture f;
	void *hva;

	fixture_new(&f, 2, SHARED_FLAGS);
	hva = map_file(f.file);
	host_store(hva, 3);
	machine_free(&f.m);
	CHECK_EQ(host_load(hva), 3);
	host_store(at(hva, f.page), 4);
	CHECK_EQ(host_load(at(hva, f.page)), 4);
	gmem_file_free(f.file);
}

TEST(freeing_the_file_ends_its_mappings)
{
	struct fixture f;
	void *one, *two;

	fixture_new(&f, 2, SHARED_FLAGS);
	one = map_file(f.file);
	two = map_file(f.file);
	host_store(one, 1);
	gmem_file_free(f.file);
	EXPECT_SIGNAL(SIGSEGV, one, host_load(one));
	EXPECT_SIGNAL(SIGSEGV, two, host_load(two));
	machine_free(&f.m);
}

/* ---- where a mapping goes ---- */

TEST(a_fixed_address_is_taken_if_nothing_is_there)
{
	GMEM_OPTS(gmem_map_opts, opts, .flags = GMEM_MAP_FIXED);
	struct fixture f;
	void *hva = NULL, *second = NULL;

	fixture_new(&f, 2, SHARED_FLAGS);
	opts.hva = free_range(2 * f.page, f.page);
	OK(gmem_file_map(f.file, 0, 2 * f.page, &opts, &hva));
	CHECK(hva == opts.hva);
	host_store(hva, 9);
	REFUSED(gmem_file_map(f.file, 0, f.page, &opts, &second), -EEXIST);
	CHECK(!second);
	CHECK_EQ(host_load(hva), 9);

	opts.hva = &f;
	REFUSED(gmem_file_map(f.file, 0, f.page, &opts, &second), -EINVAL);
	opts.hva = (void *)((uintptr_t)&f & ~(f.page - 1));
	REFUSED(gmem_file_map(f.file, 0, f.page, &opts, &second), -EEXIST);
	fixture_free(&f);
}

TEST(a_reservation_is_replaced_piece_by_piece)
{
	GMEM_OPTS(gmem_map_opts, opts, .flags = GMEM_MAP_REPLACE);
	struct fixture f;
	void *reserved, *hva = NULL;

	fixture_new(&f, 2, SHARED_FLAGS);
	reserved = mmap(NULL, 4 * f.page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(reserved != MAP_FAILED);
	opts.hva = at(reserved, f.page);
	OK(gmem_file_map(f.file, 0, f.page, &opts, &hva));
	CHECK(hva == opts.hva);
	opts.hva = at(reserved, 2 * f.page);
	OK(gmem_file_map(f.file, f.page, f.page, &opts, &hva));
	host_store(at(reserved, f.page), 1);
	host_store(at(reserved, 2 * f.page), 2);
	EXPECT_SIGNAL(SIGSEGV, reserved, host_load(reserved));
	EXPECT_SIGNAL(SIGSEGV, NULL, host_load(at(reserved, 3 * f.page)));

	/* over itself, too */
	OK(gmem_file_map(f.file, 0, f.page, &opts, &hva));
	CHECK_EQ(host_load(at(reserved, 2 * f.page)), 1);
	OK(gmem_file_unmap(f.file, at(reserved, f.page), f.page));
	OK(gmem_file_unmap(f.file, at(reserved, 2 * f.page), f.page));
	munmap(reserved, 4 * f.page);
	fixture_free(&f);
}

static void check_alignment(uint64_t align)
{
	GMEM_OPTS(gmem_map_opts, opts, .align = align);
	struct fixture f;
	void *one, *two;

	fixture_new(&f, 2, SHARED_FLAGS);
	OK(gmem_file_map(f.file, 0, f.page, &opts, &one));
	OK(gmem_file_map(f.file, f.page, f.page, &opts, &two));
	CHECK_EQ((uintptr_t)one % align, 0);
	CHECK_EQ((uintptr_t)two % align, 0);
	host_store(one, 1);
	host_store(two, 2);
	/* nothing of what was reserved to find the place is left */
	CHECK_EQ(count_mappings("kvm-gmem"), 2);
	OK(gmem_file_unmap(f.file, one, f.page));
	OK(gmem_file_unmap(f.file, two, f.page));
	fixture_free(&f);
}

TEST(a_mapping_is_aligned_to_one_page)
{
	check_alignment(page_size());
}

TEST(a_mapping_is_aligned_to_2_mib)
{
	check_alignment(2 * MIB);
}

TEST(a_mapping_is_aligned_to_1_gib)
{
	check_alignment(GIB);
}

TEST(bad_map_options_are_refused)
{
	uint64_t page = page_size();
	struct gmem_map_opts bad[] = {
		{ .size = sizeof(bad[0]), .flags = (uint64_t)1 << 3 },
		{ .size = sizeof(bad[0]), .flags = (uint64_t)1 << 63 },
		{ .size = sizeof(bad[0]), .flags = GMEM_MAP_FIXED | GMEM_MAP_REPLACE,
		  .hva = (void *)(16 * GIB) },
		{ .size = sizeof(bad[0]), .align = page + 1 },
		{ .size = sizeof(bad[0]), .align = page / 2 },
		{ .size = sizeof(bad[0]), .align = 3 * page },
		{ .size = sizeof(bad[0]), .align = 2 * page, .flags = GMEM_MAP_FIXED,
		  .hva = (void *)(16 * GIB) },
		{ .size = sizeof(bad[0].size) },
		{ .size = 0 },
	};
	struct fixture f;
	void *hva = NULL;

	fixture_new(&f, 1, SHARED_FLAGS);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		in_case("options %zu", i);
		REFUSED(gmem_file_map(f.file, 0, f.page, &bad[i], &hva), -EINVAL);
		CHECK(!hva);
	}
	fixture_free(&f);
}

TEST(options_of_a_newer_header_are_refused_if_they_say_anything)
{
	struct {
		struct gmem_map_opts opts;
		uint64_t unknown;
	} newer = { .opts = { .size = sizeof(newer) } };
	struct fixture f;
	void *hva = NULL;

	fixture_new(&f, 1, SHARED_FLAGS);
	OK(gmem_file_map(f.file, 0, f.page, &newer.opts, &hva));
	newer.unknown = 1;
	REFUSED(gmem_file_map(f.file, 0, f.page, &newer.opts, &hva), -E2BIG);
	fixture_free(&f);
}

/* ---- pages of the host ---- */

TEST(map_ranges_are_host_pages_inside_the_file)
{
	uint64_t page = page_size();
	const struct {
		uint64_t offset, size;
	} bad[] = {
		{ 0, 0 }, { 0, page / 2 }, { 0, page + page / 2 }, { page / 2, page },
		{ page / 2, page / 2 }, { 1, page }, { 4 * page, page }, { 3 * page, 2 * page },
		{ 0, 5 * page }, { 0, UINT64_MAX - page + 1 }, { UINT64_MAX - page + 1, 2 * page },
		{ UINT64_MAX - page + 1, page },
	};
	struct fixture f;
	void *hva = NULL;

	fixture_new(&f, 4, SHARED_FLAGS);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		in_case("offset 0x%llx, size 0x%llx", (unsigned long long)bad[i].offset,
			(unsigned long long)bad[i].size);
		REFUSED(gmem_file_map(f.file, bad[i].offset, bad[i].size, NULL, &hva), -EINVAL);
		CHECK(!hva);
	}
	CHECK_EQ(count_mappings("kvm-gmem"), 0);
	fixture_free(&f);
}

TEST(any_whole_page_can_be_mapped)
{
	struct fixture f;
	void *hva;

	fixture_new(&f, 4, SHARED_FLAGS);
	for (uint64_t i = 0; i < 4; i++) {
		OK(gmem_file_map(f.file, i * f.page, f.page, NULL, &hva));
		host_store(at(hva, f.page - 4), (uint32_t)i);
		OK(gmem_file_unmap(f.file, hva, f.page));
	}
	hva = map_file(f.file);
	for (uint64_t i = 0; i < 4; i++)
		CHECK_EQ(host_load(at(hva, i * f.page + f.page - 4)), i);
	fixture_free(&f);
}

/* ---- unmapping ---- */

TEST(parts_of_a_mapping_are_unmapped)
{
	struct fixture f;
	void *hva;

	fixture_new(&f, 5, SHARED_FLAGS);
	hva = map_file(f.file);
	for (uint64_t i = 0; i < 5; i++)
		host_store(at(hva, i * f.page), (uint32_t)i);
	/* front, back, middle */
	OK(gmem_file_unmap(f.file, hva, f.page));
	OK(gmem_file_unmap(f.file, at(hva, 4 * f.page), f.page));
	OK(gmem_file_unmap(f.file, at(hva, 2 * f.page), f.page));
	EXPECT_SIGNAL(SIGSEGV, hva, host_load(hva));
	CHECK_EQ(host_load(at(hva, f.page)), 1);
	EXPECT_SIGNAL(SIGSEGV, NULL, host_load(at(hva, 2 * f.page)));
	CHECK_EQ(host_load(at(hva, 3 * f.page)), 3);
	EXPECT_SIGNAL(SIGSEGV, NULL, host_load(at(hva, 4 * f.page)));

	/* not twice, and not across what is gone */
	REFUSED(gmem_file_unmap(f.file, hva, f.page), -ENOENT);
	REFUSED(gmem_file_unmap(f.file, at(hva, f.page), 3 * f.page), -ENOENT);
	CHECK_EQ(host_load(at(hva, f.page)), 1);
	OK(gmem_file_unmap(f.file, at(hva, f.page), f.page));
	fixture_free(&f);
}

TEST(unmap_touches_only_what_the_file_mapped)
{
	struct fixture f, other;
	void *hva, *stranger;

	fixture_new(&f, 2, SHARED_FLAGS);
	fixture_new(&other, 2, SHARED_FLAGS);
	hva = map_file(f.file);
	stranger = map_file(other.file);
	REFUSED(gmem_file_unmap(f.file, stranger, f.page), -ENOENT);
	REFUSED(gmem_file_unmap(f.file, at(hva, f.page), 2 * f.page), -ENOENT);
	REFUSED(gmem_file_unmap(f.file, at(hva, f.page / 2), f.page), -EINVAL);
	REFUSED(gmem_file_unmap(f.file, hva, f.page / 2), -EINVAL);
	REFUSED(gmem_file_unmap(f.file, hva, 0), -EINVAL);
	REFUSED(gmem_file_unmap(f.file, (void *)((uintptr_t)&f & ~(f.page - 1)), f.page), -ENOENT);
	host_store(hva, 1);
	host_store(at(hva, f.page), 1);
	host_store(stranger, 1);
	fixture_free(&other);
	fixture_free(&f);
}

/* ---- NUMA ---- */

TEST(mbind_decides_where_pages_go_or_does_not)
{
	unsigned int here = stay_on_node(), there = !here;
	unsigned long mask = 1UL << there;
	struct fixture f;
	void *hva;

	fixture_new(&f, 2, SHARED_FLAGS);
	if (access(there ? "/sys/devices/system/node/node1" : "/sys/devices/system/node/node0",
		   F_OK))
		skip("this machine has one NUMA node");
	hva = map_file(f.file);
	WORKS(syscall(SYS_mbind, hva, f.page, (unsigned long)MPOL_BIND, &mask, 8 * sizeof(mask),
		      0UL));
	host_store(hva, 1);
	host_store(at(hva, f.page), 1);
	CHECK_EQ(node_of_page(hva), expect()->mbind_works ? there : here);
	CHECK_EQ(node_of_page(at(hva, f.page)), here);
	fixture_free(&f);
}

/* ---- reverse lookup ---- */

TEST(an_address_leads_back_to_its_offset)
{
	uint64_t offset = 77;
	struct fixture f;
	void *whole, *part;

	fixture_new(&f, 4, SHARED_FLAGS);
	whole = map_file(f.file);
	OK(gmem_file_map(f.file, 2 * f.page, f.page, NULL, &part));
	OK(gmem_file_find_hva(f.file, whole, &offset));
	CHECK_EQ(offset, 0);
	OK(gmem_file_find_hva(f.file, at(whole, 4 * f.page - 1), &offset));
	CHECK_EQ(offset, 4 * f.page - 1);
	OK(gmem_file_find_hva(f.file, at(part, 5), &offset));
	CHECK_EQ(offset, 2 * f.page + 5);

	offset = 77;
	OK(gmem_file_unmap(f.file, at(whole, f.page), f.page));
	REFUSED(gmem_file_find_hva(f.file, at(whole, f.page), &offset), -ENOENT);
	REFUSED(gmem_file_find_hva(f.file, &f, &offset), -ENOENT);
	CHECK_EQ(offset, 77);
	OK(gmem_file_find_hva(f.file, at(whole, 2 * f.page), &offset));
	CHECK_EQ(offset, 2 * f.page);
	fixture_free(&f);
}

/* ---- with private memory ---- */

TEST(private_memory_can_be_mapped_but_not_reached)
{
	struct gmem_file *file;
	struct machine m;
	void *hva;

	machine_new(&m, PRIVATE_VM);
	require_create_flags(&m, GMEM_CREATE_MMAP);
	OK(gmem_file_new_raw(m.vm_fd, page_size(), GMEM_CREATE_MMAP, &file));
	hva = map_file(file);
	EXPECT_SIGBUS(hva, host_load(hva));
	EXPECT_SIGBUS(hva, host_store(hva, 1));
	gmem_file_free(file);
	machine_free(&m);
}

TEST(private_memory_without_mmap_cannot_be_mapped)
{
	struct gmem_file *file;
	struct machine m;
	void *hva = NULL;

	machine_new(&m, PRIVATE_VM);
	require_guest_memfd(&m);
	OK(gmem_file_new_raw(m.vm_fd, page_size(), 0, &file));
	REFUSED(gmem_file_map(file, 0, page_size(), NULL, &hva), -ENODEV);
	CHECK(!hva);
	gmem_file_free(file);
	machine_free(&m);
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
