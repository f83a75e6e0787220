/* SPDX-License-Identifier: MIT */
/* Memory bound to memslots: host and guest see the same, as long as it is there. */
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lab.h"

#define BASE ((uint64_t)256 << 20)
#define FAR (2 * GIB)
#define SHARED_FLAGS (GMEM_CREATE_MMAP | GMEM_CREATE_INIT_SHARED)

static void *at(void *hva, uint64_t offset)
{
	return (char *)hva + offset;
}

static struct gmem_file *new_file(const struct lab *lab, uint64_t pages, uint64_t flags)
{
	struct gmem_file *file;

	require_create_flags(&lab->m, flags);
	OK(gmem_file_new_raw(lab->m.vm_fd, pages * lab->page, flags, &file));
	return file;
}

static struct gmem_region *add_file(struct lab *lab, uint32_t backing, uint64_t gpa, uint64_t pages,
				    struct gmem_file *file, uint64_t first_page)
{
	GMEM_OPTS(gmem_region_opts, opts, .file = file, .file_offset = first_page * lab->page);

	return lab_add(lab, backing, gpa, pages, &opts);
}

/* gmem_region_add() with these options and a plan for @backing must fail so. */
static void check_add_refused(struct lab *lab, uint32_t backing, uint64_t gpa, uint64_t size,
			      const struct gmem_region_opts *opts, int wanted)
{
	struct gmem_region_opts full = { .size = sizeof(full) };
	struct gmem_region *region = NULL;
	struct gmem_plan *plan;

	if (opts)
		full = *opts;
	require_backing(&lab->m, backing, &plan);
	full.plan = plan;
	REFUSED(gmem_region_add(lab->vm, gpa, size, &full, &region), wanted);
	CHECK(!region);
	gmem_plan_free(plan);
}

/* ---- host and guest see the same ---- */

static void check_both_ways(struct lab *lab, struct gmem_region *region)
{
	char *hva = gmem_region_hva(region);
	uint64_t gpa = gmem_region_gpa(region);
	uint64_t last = lab->page - 4;

	for (uint64_t offset = 0; offset < gmem_region_size(region); offset += lab->page) {
		uint32_t value = (uint32_t)(offset / lab->page) + 0x100;

		GUEST_LOADS(&lab->guest, gpa + offset, 0);
		host_store(at(hva, offset), value);
		GUEST_LOADS(&lab->guest, gpa + offset, value);
		GUEST_STORES(&lab->guest, gpa + offset, value + 1);
		CHECK_EQ(host_load(at(hva, offset)), value + 1);

		GUEST_STORES(&lab->guest, gpa + offset + last, value + 2);
		CHECK_EQ(host_load(at(hva, offset + last)), value + 2);
		host_store(at(hva, offset + last), value + 3);
		GUEST_LOADS(&lab->guest, gpa + offset + last, value + 3);
	}
}

static void check_backing(int type, uint32_t backing)
{
	struct gmem_region *region;
	struct lab lab;

	lab_new(&lab, type);
	region = lab_add(&lab, backing, BASE, 4, NULL);
	check_both_ways(&lab, region);
	OK(gmem_region_remove(region));
	lab_free(&lab);
}

TEST(host_and_guest_share_host_memory)
{
	check_backing(DEFAULT_VM, GMEM_BACKING_HOST);
}

TEST(host_and_guest_share_a_mapped_file)
{
	check_backing(DEFAULT_VM, GMEM_BACKING_MAPPED);
}

TEST(host_and_guest_share_a_bound_file)
{
	check_backing(DEFAULT_VM, GMEM_BACKING_SHARED);
}

TEST(host_and_guest_share_host_memory_of_a_private_vm)
{
	check_backing(PRIVATE_VM, GMEM_BACKING_HOST);
}

TEST(host_and_guest_share_the_shared_side_of_private_memory)
{
	check_backing(PRIVATE_VM, GMEM_BACKING_PRIVATE);
}

TEST(the_default_region_is_a_shared_file)
{
	struct gmem_region *region = NULL;
	struct gmem_plan *plan;
	uint64_t offset = 77;
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	require_backing(&lab.m, GMEM_BACKING_SHARED, &plan);
	gmem_plan_free(plan);
	OK(gmem_region_add(lab.vm, BASE, 2 * lab.page, NULL, &region));
	CHECK_EQ(gmem_region_backing(region), GMEM_BACKING_SHARED);
	CHECK(gmem_region_file(region, &offset));
	CHECK_EQ(offset, 0);
	CHECK_EQ(gmem_file_size(gmem_region_file(region, NULL)), 2 * lab.page);
	CHECK_EQ(gmem_file_create_flags(gmem_region_file(region, NULL)), SHARED_FLAGS);
	check_both_ways(&lab, region);
	lab_free(&lab);
}

TEST(without_guest_memfd_the_default_region_is_refused)
{
	struct gmem_region *region = NULL;
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	if (expect_vm(DEFAULT_VM)->backings & (1u << GMEM_BACKING_SHARED))
		skip("this kernel has shared guest_memfd");
	REFUSED(gmem_region_add(lab.vm, BASE, lab.page, NULL, &region), -EOPNOTSUPP);
	CHECK(!region);
	lab_free(&lab);
}

TEST(all_ways_of_backing_live_in_one_vm)
{
	struct gmem_region *regions[3];
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	regions[0] = lab_add(&lab, GMEM_BACKING_HOST, BASE, 2, NULL);
	regions[1] = lab_add(&lab, GMEM_BACKING_MAPPED, BASE + 2 * lab.page, 2, NULL);
	regions[2] = lab_add(&lab, GMEM_BACKING_SHARED, BASE + 4 * lab.page, 2, NULL);
	for (size_t i = 0; i < ARRAY_SIZE(regions); i++)
		check_both_ways(&lab, regions[i]);
	lab_free(&lab);
}

#ifdef __x86_64__
TEST(what_kvm_does_for_the_guest_sees_the_same_bytes)
{
	struct gmem_region *region;
	struct guest_access access;
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	region = lab_add(&lab, GMEM_BACKING_SHARED, BASE, 1, NULL);
	host_store(gmem_region_hva(region), 0x1111);
	access = guest_emulated_load(&lab.guest, BASE);
	CHECK_EQ(access.outcome, GUEST_DONE);
	CHECK_EQ(access.value, 0x1111);
	GUEST_STORES(&lab.guest, BASE, 0x2222);
	access = guest_emulated_load(&lab.guest, BASE);
	CHECK_EQ(access.outcome, GUEST_DONE);
	CHECK_EQ(access.value, 0x2222);
	lab_free(&lab);
}
#endif

/* ---- whose bytes the guest sees, by the kernel alone ---- */

TEST(a_guest_uses_a_mappable_file_not_the_host_address)
{
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	require_create_flags(&lab.m, SHARED_FLAGS);
	if (!lab_reaches_file(&lab))
		skip("this kernel serves guests through the host address");
	lab_free(&lab);
}

TEST(a_file_without_mmap_is_never_what_the_guest_uses)
{
	uint32_t *other;
	struct lab lab;
	int fd, ret;

	lab_new(&lab, DEFAULT_VM);
	require_guest_memfd(&lab.m);
	fd = (int)WORKS(raw_create(lab.m.vm_fd, lab.page, 0));
	other = mmap(NULL, lab.page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK((void *)other != MAP_FAILED);
	ret = raw_gmem_slot(lab.m.vm_fd, 0, 0, BASE, lab.page, other, fd, 0);
	CHECK_RESULT(ret, expect_vm(DEFAULT_VM)->binds_unmapped ? 0 : -EINVAL);
	if (!ret) {
		GUEST_STORES(&lab.guest, BASE, 0x77);
		CHECK_EQ(host_load(other), 0x77);
		require_cachestat();
		CHECK_EQ(allocated_pages(fd), 0);
	}
	close(fd);
	munmap(other, lab.page);
	lab_free(&lab);
}

TEST(a_file_without_mmap_is_not_bound_by_the_library)
{
	static const uint32_t ways[] = { GMEM_BACKING_MAPPED, GMEM_BACKING_SHARED };
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	for (uint64_t flags = 0; flags < SHARED_FLAGS; flags++) {
		struct gmem_file *file = new_file(&lab, 1, flags);
		GMEM_OPTS(gmem_region_opts, opts, .file = file);

		for (size_t i = 0; i < ARRAY_SIZE(ways); i++)
			check_add_refused(&lab, ways[i], BASE, lab.page, &opts, -EINVAL);
		gmem_file_free(file);
	}
	CHECK_EQ(count_mappings("kvm-gmem"), 0);
	lab_free(&lab);
}

TEST(a_file_with_mmap_alone_is_the_guests_and_not_the_hosts)
{
	struct gmem_file *file;
	uint32_t *hva;
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	file = new_file(&lab, 1, GMEM_CREATE_MMAP);
	if (!lab_reaches_file(&lab))
		skip("this kernel serves guests through the host address");
	hva = map_file(file);
	CHECK_RESULT(raw_gmem_slot(lab.m.vm_fd, 0, 0, BASE, lab.page, hva, gmem_file_fd(file), 0), 0);
	GUEST_LOADS(&lab.guest, BASE, 0);
	GUEST_STORES(&lab.guest, BASE, 0x99);
	EXPECT_SIGBUS(hva, host_load(hva));
	EXPECT_SIGBUS(hva, host_store(hva, 1));
	GUEST_LOADS(&lab.guest, BASE, 0x99);
	OK(gmem_file_punch(file, 0, lab.page, NULL));
	GUEST_LOADS(&lab.guest, BASE, 0);
	gmem_file_free(file);
	lab_free(&lab);
}

/* ---- files and slots ---- */

static void check_several_slots(uint32_t backing)
{
	struct gmem_region *regions[3];
	struct gmem_file *file;
	uint32_t *hva;
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	file = new_file(&lab, 6, SHARED_FLAGS);
	/* in another order than the file's */
	regions[0] = add_file(&lab, backing, FAR, 2, file, 0);
	regions[1] = add_file(&lab, backing, BASE, 1, file, 5);
	regions[2] = add_file(&lab, backing, BASE + 4 * lab.page, 3, file, 2);
	for (size_t i = 0; i < ARRAY_SIZE(regions); i++) {
		CHECK(gmem_region_file(regions[i], NULL) == file);
		check_both_ways(&lab, regions[i]);
	}

	hva = map_file(file);
	host_store(at(hva, 2 * lab.page), 0xabc);
	GUEST_LOADS(&lab.guest, BASE + 4 * lab.page, 0xabc);
	GUEST_STORES(&lab.guest, BASE, 0xdef);
	CHECK_EQ(host_load(at(hva, 5 * lab.page)), 0xdef);
	gmem_file_free(file);
	lab_free(&lab);
}

TEST(one_bound_file_backs_several_slots)
{
	check_several_slots(GMEM_BACKING_SHARED);
}

TEST(one_mapped_file_backs_several_slots)
{
	check_several_slots(GMEM_BACKING_MAPPED);
}

TEST(several_files_back_neighbouring_slots)
{
	struct gmem_region *regions[8];
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	for (size_t i = 0; i < ARRAY_SIZE(regions); i++)
		regions[i] = lab_add(&lab, GMEM_BACKING_SHARED, BASE + i * 2 * lab.page, 2, NULL);
	for (size_t i = 0; i < ARRAY_SIZE(regions); i++)
		check_both_ways(&lab, regions[i]);
	/* the neighbours of the removed region stay */
	OK(gmem_region_remove(regions[3]));
	GUEST_LOADS(&lab.guest, BASE + 5 * lab.page, 0x102);
	GUEST_LOADS(&lab.guest, BASE + 8 * lab.page, 0x101);
	lab_free(&lab);
}

TEST(hundreds_of_slots_share_one_file)
{
	enum { COUNT = 300 };
	struct gmem_region *regions[COUNT];
	struct gmem_file *file;
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	file = new_file(&lab, COUNT, SHARED_FLAGS);
	for (uint64_t i = 0; i < COUNT; i++) {
		regions[i] = add_file(&lab, GMEM_BACKING_SHARED, BASE + 2 * i * lab.page, 1, file, i);
		host_store(gmem_region_hva(regions[i]), (uint32_t)i);
	}
	for (uint64_t i = 0; i < COUNT; i += 37)
		GUEST_LOADS(&lab.guest, BASE + 2 * i * lab.page, (uint32_t)i);
	for (size_t i = 0; i < COUNT; i++)
		OK(gmem_region_remove(regions[i]));
	GUEST_GETS(&lab.guest, BASE, GUEST_MMIO);
	gmem_file_free(file);
	lab_free(&lab);
}

TEST(a_bound_range_of_a_file_is_not_bound_again)
{
	struct gmem_region *region;
	struct gmem_file *file;
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	file = new_file(&lab, 4, SHARED_FLAGS);
	region = add_file(&lab, GMEM_BACKING_SHARED, BASE, 2, file, 1);
	for (uint64_t first = 0; first < 3; first++) {
		GMEM_OPTS(gmem_region_opts, opts, .file = file, .file_offset = first * lab.page);

		check_add_refused(&lab, GMEM_BACKING_SHARED, FAR, 2 * lab.page, &opts, -EEXIST);
	}
	GUEST_GETS(&lab.guest, FAR, GUEST_MMIO);
	check_both_ways(&lab, region);
	add_file(&lab, GMEM_BACKING_SHARED, FAR, 1, file, 3);
	gmem_file_free(file);
	lab_free(&lab);
}

TEST(the_kernel_refuses_a_bound_range_with_its_errno_of_the_day)
{
	struct lab lab;
	int fd;

	lab_new(&lab, DEFAULT_VM);
	require_create_flags(&lab.m, SHARED_FLAGS);
	fd = (int)WORKS(raw_create(lab.m.vm_fd, lab.page, SHARED_FLAGS));
	CHECK_RESULT(raw_gmem_slot(lab.m.vm_fd, 0, 0, BASE, lab.page, NULL, fd, 0), 0);
	CHECK_RESULT(raw_gmem_slot(lab.m.vm_fd, 1, 0, FAR, lab.page, NULL, fd, 0),
		     expect()->file_overlap);
	close(fd);
	lab_free(&lab);
}

static void check_gpa_overlap(uint32_t backing)
{
	struct gmem_region *region;
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	region = lab_add(&lab, backing, BASE, 3, NULL);
	check_add_refused(&lab, backing, BASE, 3 * lab.page, NULL, -EEXIST);
	check_add_refused(&lab, backing, BASE + lab.page, lab.page, NULL, -EEXIST);
	check_add_refused(&lab, backing, BASE - lab.page, 2 * lab.page, NULL, -EEXIST);
	check_add_refused(&lab, backing, BASE + 2 * lab.page, 2 * lab.page, NULL, -EEXIST);
	check_add_refused(&lab, backing, BASE - lab.page, 5 * lab.page, NULL, -EEXIST);
	check_both_ways(&lab, region);
	lab_add(&lab, backing, BASE - lab.page, 1, NULL);
	lab_add(&lab, backing, BASE + 3 * lab.page, 1, NULL);
	lab_free(&lab);
}

TEST(host_regions_do_not_overlap)
{
	check_gpa_overlap(GMEM_BACKING_HOST);
}

TEST(mapped_regions_do_not_overlap)
{
	check_gpa_overlap(GMEM_BACKING_MAPPED);
}

TEST(shared_regions_do_not_overlap)
{
	check_gpa_overlap(GMEM_BACKING_SHARED);
}

TEST(an_overlap_with_a_memslot_of_ones_own_keeps_the_kernels_errno)
{
	struct lab lab;
	void *hva;

	lab_new(&lab, DEFAULT_VM);
	hva = mmap(NULL, lab.page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK_RESULT(raw_slot(lab.m.vm_fd, GUEST_SLOT + 1, 0, BASE, lab.page, hva), 0);
	check_add_refused(&lab, GMEM_BACKING_HOST, BASE, lab.page, NULL, -EEXIST);
	CHECK_RESULT(raw_slot(lab.m.vm_fd, GUEST_SLOT + 1, 0, 0, 0, NULL), 0);
	munmap(hva, lab.page);
	lab_add(&lab, GMEM_BACKING_HOST, BASE, 1, NULL);
	lab_free(&lab);
}

static void check_foreign_file(uint32_t backing)
{
	GMEM_OPTS(gmem_region_opts, opts);
	struct gmem_file *file;
	struct machine other;
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	require_create_flags(&lab.m, SHARED_FLAGS);
	machine_new(&other, DEFAULT_VM);
	OK(gmem_file_new_raw(other.vm_fd, lab.page, SHARED_FLAGS, &file));
	opts.file = file;
	check_add_refused(&lab, backing, BASE, lab.page, &opts, -EXDEV);
	GUEST_GETS(&lab.guest, BASE, GUEST_MMIO);
	gmem_file_free(file);
	machine_free(&other);
	lab_free(&lab);
}

TEST(a_file_of_another_vm_is_not_bound)
{
	check_foreign_file(GMEM_BACKING_SHARED);
}

/* The kernel would take its mapping as it takes any memory. */
TEST(a_file_of_another_vm_is_not_mapped_for_the_guest)
{
	check_foreign_file(GMEM_BACKING_MAPPED);
}

/* ---- removing, moving, rebinding ---- */

static void check_remove(uint32_t backing)
{
	struct gmem_region *region;
	struct lab lab;
	void *hva;

	lab_new(&lab, DEFAULT_VM);
	region = lab_add(&lab, backing, BASE, 2, NULL);
	hva = gmem_region_hva(region);
	check_both_ways(&lab, region);
	OK(gmem_region_remove(region));
	GUEST_GETS(&lab.guest, BASE, GUEST_MMIO);
	GUEST_GETS(&lab.guest, BASE + lab.page, GUEST_MMIO);
	EXPECT_SIGNAL(SIGSEGV, hva, host_load(hva));
	CHECK_EQ(count_mappings("kvm-gmem"), 0);

	/* a new region there begins empty */
	region = lab_add(&lab, backing, BASE, 2, NULL);
	check_both_ways(&lab, region);
	OK(gmem_region_remove(region));
	OK(gmem_region_remove(NULL));
	lab_free(&lab);
}

TEST(removed_host_memory_is_mmio)
{
	check_remove(GMEM_BACKING_HOST);
}

TEST(a_removed_mapped_file_is_mmio)
{
	check_remove(GMEM_BACKING_MAPPED);
}

TEST(a_removed_bound_file_is_mmio)
{
	check_remove(GMEM_BACKING_SHARED);
}

TEST(a_file_of_ones_own_keeps_its_contents)
{
	struct gmem_region *region;
	struct gmem_file *file;
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	file = new_file(&lab, 2, SHARED_FLAGS);
	region = add_file(&lab, GMEM_BACKING_SHARED, BASE, 2, file, 0);
	GUEST_STORES(&lab.guest, BASE + lab.page, 0x4242);
	OK(gmem_region_remove(region));
	CHECK_EQ(host_load(at(map_file(file), lab.page)), 0x4242);
	/* from one way of backing to another, and elsewhere */
	add_file(&lab, GMEM_BACKING_MAPPED, FAR, 2, file, 0);
	GUEST_LOADS(&lab.guest, FAR + lab.page, 0x4242);
	gmem_file_free(file);
	lab_free(&lab);
}

static void check_move(uint32_t backing)
{
	struct gmem_region *region, *other;
	uint32_t slot;
	struct lab lab;
	void *hva;

	lab_new(&lab, DEFAULT_VM);
	region = lab_add(&lab, backing, BASE, 2, NULL);
	other = lab_add(&lab, backing, BASE + 8 * lab.page, 2, NULL);
	hva = gmem_region_hva(region);
	slot = gmem_region_slot(region);
	host_store(hva, 0x5151);
	GUEST_LOADS(&lab.guest, BASE, 0x5151);

	OK(gmem_region_move(region, FAR));
	CHECK_EQ(gmem_region_gpa(region), FAR);
	CHECK_EQ(gmem_region_slot(region), slot);
	CHECK(gmem_region_hva(region) == hva);
	GUEST_GETS(&lab.guest, BASE, GUEST_MMIO);
	GUEST_LOADS(&lab.guest, FAR, 0x5151);
	GUEST_STORES(&lab.guest, FAR, 0x5252);
	CHECK_EQ(host_load(hva), 0x5252);

	/* onto itself, half over itself; not over others or off the page */
	OK(gmem_region_move(region, FAR));
	OK(gmem_region_move(region, FAR + lab.page));
	REFUSED(gmem_region_move(region, BASE + 9 * lab.page), -EEXIST);
	REFUSED(gmem_region_move(region, BASE + lab.page / 2), -EINVAL);
	REFUSED(gmem_region_move(region, UINT64_MAX - lab.page + 1), -EINVAL);
	CHECK_EQ(gmem_region_gpa(region), FAR + lab.page);
	GUEST_LOADS(&lab.guest, FAR + lab.page, 0x5252);
	check_both_ways(&lab, other);
	lab_free(&lab);
}

TEST(moved_host_memory_keeps_its_contents)
{
	check_move(GMEM_BACKING_HOST);
}

TEST(a_moved_mapped_file_keeps_its_contents)
{
	check_move(GMEM_BACKING_MAPPED);
}

TEST(a_moved_bound_file_keeps_its_contents)
{
	check_move(GMEM_BACKING_SHARED);
}

static void check_rebind(uint32_t backing)
{
	struct gmem_file *one, *two;
	struct gmem_region *region;
	uint64_t offset;
	uint32_t slot;
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	one = new_file(&lab, 4, SHARED_FLAGS);
	two = new_file(&lab, 4, SHARED_FLAGS);
	host_store(at(map_file(two), 2 * lab.page), 0x22);
	region = add_file(&lab, backing, BASE, 2, one, 0);
	slot = gmem_region_slot(region);
	GUEST_STORES(&lab.guest, BASE, 0x11);

	OK(gmem_region_rebind(region, two, 2 * lab.page));
	CHECK(gmem_region_file(region, &offset) == two);
	CHECK_EQ(offset, 2 * lab.page);
	CHECK_EQ(gmem_region_gpa(region), BASE);
	CHECK_EQ(gmem_region_slot(region), slot);
	GUEST_LOADS(&lab.guest, BASE, 0x22);
	CHECK_EQ(host_load(gmem_region_hva(region)), 0x22);
	GUEST_STORES(&lab.guest, BASE, 0x33);
	CHECK_EQ(host_load(gmem_region_hva(region)), 0x33);

	/* within the file, over what it had */
	OK(gmem_region_rebind(region, two, lab.page));
	GUEST_LOADS(&lab.guest, BASE + lab.page, 0x33);
	OK(gmem_region_rebind(region, one, 0));
	GUEST_LOADS(&lab.guest, BASE, 0x11);

	REFUSED(gmem_region_rebind(region, two, 3 * lab.page), -EINVAL);
	REFUSED(gmem_region_rebind(region, two, lab.page / 2), -EINVAL);
	GUEST_LOADS(&lab.guest, BASE, 0x11);
	gmem_file_free(one);
	gmem_file_free(two);
	GUEST_LOADS(&lab.guest, BASE, 0x11);
	lab_free(&lab);
}

TEST(a_guest_sees_the_file_its_region_is_rebound_to)
{
	check_rebind(GMEM_BACKING_SHARED);
}

TEST(a_guest_sees_the_mapped_file_its_region_is_rebound_to)
{
	check_rebind(GMEM_BACKING_MAPPED);
}

TEST(only_fitting_files_are_rebound)
{
	struct gmem_file *file, *private_file, *foreign;
	struct gmem_region *region, *host;
	struct machine other;
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	file = new_file(&lab, 1, SHARED_FLAGS);
	private_file = new_file(&lab, 1, GMEM_CREATE_MMAP);
	machine_new(&other, DEFAULT_VM);
	OK(gmem_file_new_raw(other.vm_fd, lab.page, SHARED_FLAGS, &foreign));
	region = lab_add(&lab, GMEM_BACKING_SHARED, BASE, 1, NULL);
	host = lab_add(&lab, GMEM_BACKING_HOST, FAR, 1, NULL);
	host_store(gmem_region_hva(region), 0x66);
	REFUSED(gmem_region_rebind(host, file, 0), -EOPNOTSUPP);
	REFUSED(gmem_region_rebind(region, private_file, 0), -EINVAL);
	REFUSED(gmem_region_rebind(region, foreign, 0), -EXDEV);
	GUEST_LOADS(&lab.guest, BASE, 0x66);
	CHECK_EQ(host_load(gmem_region_hva(region)), 0x66);
	gmem_file_free(foreign);
	gmem_file_free(private_file);
	gmem_file_free(file);
	machine_free(&other);
	lab_free(&lab);
}

/* ---- holes ---- */

static void check_hole(uint32_t backing)
{
	struct gmem_region *region;
	struct gmem_file *file;
	struct lab lab;
	char *hva;

	lab_new(&lab, DEFAULT_VM);
	region = lab_add(&lab, backing, BASE, 3, NULL);
	file = gmem_region_file(region, NULL);
	hva = gmem_region_hva(region);
	for (uint64_t i = 0; i < 3; i++)
		GUEST_STORES(&lab.guest, BASE + i * lab.page, 0x70 + (uint32_t)i);
	OK(gmem_file_punch(file, lab.page, lab.page, NULL));

	/* first the guest, then the host: neither brings it back for the other */
	GUEST_LOADS(&lab.guest, BASE + lab.page, 0);
	CHECK_EQ(host_load(at(hva, lab.page)), 0);
	GUEST_LOADS(&lab.guest, BASE, 0x70);
	CHECK_EQ(host_load(at(hva, 2 * lab.page)), 0x72);

	OK(gmem_file_punch(file, 2 * lab.page, lab.page, NULL));
	CHECK_EQ(host_load(at(hva, 2 * lab.page)), 0);
	GUEST_LOADS(&lab.guest, BASE + 2 * lab.page, 0);
	GUEST_STORES(&lab.guest, BASE + lab.page, 0x79);
	CHECK_EQ(host_load(at(hva, lab.page)), 0x79);
	lab_free(&lab);
}

TEST(a_hole_in_a_bound_file_is_gone_for_host_and_guest)
{
	check_hole(GMEM_BACKING_SHARED);
}

TEST(a_hole_in_a_mapped_file_is_gone_for_host_and_guest)
{
	check_hole(GMEM_BACKING_MAPPED);
}

TEST(a_guest_allocates_the_pages_it_touches)
{
	struct gmem_region *region;
	struct lab lab;
	int fd;

	lab_new(&lab, DEFAULT_VM);
	region = lab_add(&lab, GMEM_BACKING_SHARED, BASE, 16, NULL);
	require_cachestat();
	fd = gmem_file_fd(gmem_region_file(region, NULL));
	CHECK_EQ(allocated_pages(fd), 0);
	GUEST_STORES(&lab.guest, BASE + 3 * lab.page, 1);
	GUEST_STORES(&lab.guest, BASE + 9 * lab.page, 1);
	CHECK_EQ(allocated_pages(fd), 2);
	lab_free(&lab);
}

/* ---- who lives how long ---- */

static void check_early_free(uint32_t backing)
{
	struct gmem_region *region;
	struct gmem_file *file;
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	file = new_file(&lab, 4, SHARED_FLAGS);
	region = add_file(&lab, backing, BASE, 4, file, 0);
	map_file(file);
	gmem_file_free(file);
	check_both_ways(&lab, region);
	CHECK_EQ(gmem_file_size(gmem_region_file(region, NULL)), 4 * lab.page);
	OK(gmem_region_remove(region));
	CHECK_EQ(count_mappings("kvm-gmem"), 0);
	GUEST_GETS(&lab.guest, BASE, GUEST_MMIO);
	lab_free(&lab);
}

TEST(a_bound_file_lives_as_long_as_its_region)
{
	check_early_free(GMEM_BACKING_SHARED);
}

TEST(a_mapped_file_lives_as_long_as_its_region)
{
	check_early_free(GMEM_BACKING_MAPPED);
}

TEST(mappings_of_a_regions_own_file_go_with_it)
{
	struct gmem_region *region;
	uint32_t *hva;
	struct lab lab;

	/* A mapping that is left would hold the VM, and nobody else could unmap it. */
	lab_new(&lab, DEFAULT_VM);
	region = lab_add(&lab, GMEM_BACKING_SHARED, BASE, 1, NULL);
	hva = map_file(gmem_region_file(region, NULL));
	host_store(hva, 1);
	OK(gmem_region_remove(region));
	EXPECT_SIGNAL(SIGSEGV, hva, host_load(hva));
	CHECK_EQ(count_mappings("kvm-gmem"), 0);
	lab_free(&lab);
}

TEST(a_file_nobody_holds_is_lost_to_the_guest)
{
	struct guest_access access;
	struct lab lab;
	int fd;

	/* By raw KVM: the library does not let its callers come here. */
	lab_new(&lab, DEFAULT_VM);
	require_create_flags(&lab.m, SHARED_FLAGS);
	if (!lab_reaches_file(&lab))
		skip("this kernel serves guests through the host address");
	fd = (int)WORKS(raw_create(lab.m.vm_fd, lab.page, SHARED_FLAGS));
	CHECK_RESULT(raw_gmem_slot(lab.m.vm_fd, 0, 0, BASE, lab.page, NULL, fd, 0), 0);
	GUEST_LOADS(&lab.guest, BASE, 0);
	close(fd);
	access = guest_load(&lab.guest, BASE);
	if (access.outcome != GUEST_FAULT)
		FAIL("%s", guest_describe(&access));
	CHECK_RESULT(access.error, -EFAULT);
	CHECK_EQ(access.fault_gpa, BASE);
	CHECK_EQ(access.fault_size, lab.page);
	CHECK_EQ(access.fault_flags, 0);
	lab_free(&lab);
}

TEST(a_vm_is_gone_when_everything_is_freed)
{
	struct gmem_region *region;
	struct gmem_file *file;
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	file = new_file(&lab, 4, SHARED_FLAGS);
	region = add_file(&lab, GMEM_BACKING_SHARED, BASE, 2, file, 0);
	check_both_ways(&lab, region);
	map_file(file);
	lab_free(&lab);
	/* only our own file holds the VM */
	if (count_vms() >= 0)
		CHECK_EQ(count_vms(), 1);
	gmem_file_free(file);
	CHECK_EQ(count_mappings("kvm-gmem"), 0);
	/* The runner looks at what is left of VMs and fds. */
}

TEST(freeing_the_vm_takes_every_region_with_it)
{
	struct lab lab;
	struct gmem_region *region;

	lab_new(&lab, DEFAULT_VM);
	region = lab_add(&lab, GMEM_BACKING_HOST, BASE, 1, NULL);
	host_store(gmem_region_hva(region), 1);
	gmem_vm_free(lab.vm);
	lab.vm = NULL;
	GUEST_GETS(&lab.guest, BASE, GUEST_MMIO);
	lab_free(&lab);
	gmem_vm_free(NULL);
}

TEST(a_vm_handle_works_after_the_vm_fd_is_closed)
{
	struct gmem_region *region;
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	region = lab_add(&lab, GMEM_BACKING_HOST, BASE, 1, NULL);
	if (expect_vm(DEFAULT_VM)->backings & (1u << GMEM_BACKING_SHARED))
		lab_add(&lab, GMEM_BACKING_SHARED, FAR, 1, NULL);
	guest_free(&lab.guest);
	close(lab.m.vm_fd);
	lab.m.vm_fd = -1;
	OK(gmem_region_move(region, BASE + GIB));
	lab_add(&lab, GMEM_BACKING_HOST, BASE, 1, NULL);
	host_store(gmem_region_hva(region), 1);
	OK(gmem_region_remove(region));
	gmem_vm_free(lab.vm);
	machine_free(&lab.m);
}

/* ---- dirty log, read-only ---- */

static uint64_t dirty_pages(struct lab *lab, const struct gmem_region *region)
{
	uint64_t bitmap[8] = { 0 };
	struct kvm_dirty_log log = {
		.slot = gmem_region_slot(region),
		.dirty_bitmap = bitmap,
	};

	CHECK(gmem_region_size(region) / lab->page <= 64);
	CHECK_RESULT(SYS(ioctl(lab->m.vm_fd, KVM_GET_DIRTY_LOG, &log)), 0);
	return bitmap[0];
}

static void check_dirty_log(uint32_t backing)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_DIRTY_LOG);
	struct gmem_region *region;
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	region = lab_add(&lab, backing, BASE, 8, &opts);
	dirty_pages(&lab, region);
	GUEST_STORES(&lab.guest, BASE + 2 * lab.page, 1);
	GUEST_STORES(&lab.guest, BASE + 5 * lab.page + 8, 1);
	/* no load: it may map the page writable at once, and count */
	CHECK_EQ(dirty_pages(&lab, region), 1 << 2 | 1 << 5);
	CHECK_EQ(dirty_pages(&lab, region), 0);
	GUEST_STORES(&lab.guest, BASE + 2 * lab.page, 2);
	CHECK_EQ(dirty_pages(&lab, region), 1 << 2);
	/* the log moves along */
	OK(gmem_region_move(region, FAR));
	dirty_pages(&lab, region);
	GUEST_STORES(&lab.guest, FAR + 7 * lab.page, 1);
	CHECK_EQ(dirty_pages(&lab, region), 1 << 7);
	lab_free(&lab);
}

TEST(the_dirty_log_sees_writes_to_host_memory)
{
	check_dirty_log(GMEM_BACKING_HOST);
}

TEST(the_dirty_log_sees_writes_to_a_mapped_file)
{
	check_dirty_log(GMEM_BACKING_MAPPED);
}

/* The library refuses the flag, and so does KVM, with another errno. */
static void check_flag_refused(uint64_t flag, uint32_t slot_flag)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = flag);
	struct lab lab;
	int fd;

	lab_new(&lab, DEFAULT_VM);
	check_add_refused(&lab, GMEM_BACKING_SHARED, BASE, lab.page, &opts, -EOPNOTSUPP);
	fd = (int)WORKS(raw_create(lab.m.vm_fd, lab.page, SHARED_FLAGS));
	CHECK_RESULT(raw_gmem_slot(lab.m.vm_fd, 0, slot_flag, BASE, lab.page, NULL, fd, 0), -EINVAL);
	close(fd);
	lab_free(&lab);
}

TEST(a_bound_file_has_no_dirty_log)
{
	check_flag_refused(GMEM_REGION_DIRTY_LOG, KVM_MEM_LOG_DIRTY_PAGES);
}

static void check_readonly(uint32_t backing)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_READONLY);
	struct gmem_region *region;
	struct guest_access access;
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	region = lab_add(&lab, backing, BASE, 1, &opts);
	host_store(gmem_region_hva(region), 0x88);
	GUEST_LOADS(&lab.guest, BASE, 0x88);
	access = guest_store(&lab.guest, BASE, 0x99);
	if (access.outcome != GUEST_MMIO)
		FAIL("guest's store: %s", guest_describe(&access));
	CHECK_EQ(host_load(gmem_region_hva(region)), 0x88);
	GUEST_LOADS(&lab.guest, BASE, 0x88);
	lab_free(&lab);
}

TEST(a_guest_does_not_write_read_only_host_memory)
{
	check_readonly(GMEM_BACKING_HOST);
}

TEST(a_guest_does_not_write_a_read_only_mapped_file)
{
	check_readonly(GMEM_BACKING_MAPPED);
}

TEST(a_bound_file_cannot_be_read_only)
{
	check_flag_refused(GMEM_REGION_READONLY, KVM_MEM_READONLY);
}

/* ---- slot numbers ---- */

static struct gmem_region *add_slot(struct lab *lab, uint64_t gpa, uint32_t slot)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_SLOT, .slot = slot);
	struct gmem_region *region = lab_add(lab, GMEM_BACKING_HOST, gpa, 1, &opts);

	CHECK_EQ(gmem_region_slot(region), slot);
	return region;
}

TEST(slot_numbers_are_handed_out_from_0_and_reused)
{
	struct gmem_region *regions[3];
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	for (uint64_t i = 0; i < 3; i++) {
		regions[i] = lab_add(&lab, GMEM_BACKING_HOST, BASE + i * lab.page, 1, NULL);
		CHECK_EQ(gmem_region_slot(regions[i]), i);
	}
	OK(gmem_region_remove(regions[1]));
	regions[1] = lab_add(&lab, GMEM_BACKING_HOST, FAR, 1, NULL);
	CHECK_EQ(gmem_region_slot(regions[1]), 1);
	lab_free(&lab);
}

TEST(the_last_slot_is_the_last)
{
	uint32_t limit = (uint32_t)expect_vm(DEFAULT_VM)->memslots;
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_SLOT, .slot = limit);
	struct gmem_region *region;
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	region = add_slot(&lab, BASE, limit - 1);
	check_both_ways(&lab, region);
	check_add_refused(&lab, GMEM_BACKING_HOST, FAR, lab.page, &opts, -EINVAL);
	opts.slot = UINT32_MAX;
	check_add_refused(&lab, GMEM_BACKING_HOST, FAR, lab.page, &opts, -EINVAL);
	opts.slot = limit - 1;
	check_add_refused(&lab, GMEM_BACKING_HOST, FAR, lab.page, &opts, -EEXIST);
	REFUSED(gmem_vm_reserve_slots(lab.vm, limit, 1), -EINVAL);
	REFUSED(gmem_vm_reserve_slots(lab.vm, limit - 1, 2), -EINVAL);
	REFUSED(gmem_vm_reserve_slots(lab.vm, 0, 0), -EINVAL);
	REFUSED(gmem_vm_reserve_slots(lab.vm, limit - 1, 1), -EEXIST);
	lab_free(&lab);
}

TEST(reserved_slots_are_used_only_by_number)
{
	uint32_t limit = (uint32_t)expect_vm(DEFAULT_VM)->memslots;
	struct gmem_region *region;
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	OK(gmem_vm_reserve_slots(lab.vm, 1, limit - 1));
	OK(gmem_vm_reserve_slots(lab.vm, 5, 1));
	region = lab_add(&lab, GMEM_BACKING_HOST, BASE, 1, NULL);
	CHECK_EQ(gmem_region_slot(region), 0);
	check_add_refused(&lab, GMEM_BACKING_HOST, FAR, lab.page, NULL, -ENOSPC);
	add_slot(&lab, FAR, 7);
	OK(gmem_region_remove(region));
	region = lab_add(&lab, GMEM_BACKING_HOST, BASE, 1, NULL);
	CHECK_EQ(gmem_region_slot(region), 0);
	lab_free(&lab);
}

/* ---- the host address ---- */

static void check_hva(uint32_t backing)
{
	struct gmem_region *region, *found = NULL;
	uint64_t offset = 77;
	struct gmem_file *file;
	struct lab lab;
	char *hva;

	lab_new(&lab, DEFAULT_VM);
	file = new_file(&lab, 4, SHARED_FLAGS);
	region = add_file(&lab, backing, BASE, 2, file, 1);
	hva = gmem_region_hva(region);
	OK(gmem_file_find_hva(file, at(hva, 5), &offset));
	CHECK_EQ(offset, lab.page + 5);
	OK(gmem_vm_find_hva(lab.vm, at(hva, lab.page + 9), &found, &offset));
	CHECK(found == region);
	CHECK_EQ(offset, lab.page + 9);
	REFUSED(gmem_vm_find_hva(lab.vm, &lab, &found, &offset), -ENOENT);
	REFUSED(gmem_vm_find_hva(lab.vm, at(hva, 2 * lab.page), &found, &offset), -ENOENT);

	/* it must stay as long as the memslot */
	REFUSED(gmem_file_unmap(file, hva, 2 * lab.page), -EBUSY);
	REFUSED(gmem_file_unmap(file, hva, lab.page), -EBUSY);
	check_both_ways(&lab, region);
	gmem_file_free(file);
	OK(gmem_vm_find_hva(lab.vm, hva, &found, NULL));
	CHECK(found == region);
	lab_free(&lab);
}

TEST(the_host_address_of_a_bound_file_is_its_mapping)
{
	check_hva(GMEM_BACKING_SHARED);
}

TEST(the_host_address_of_a_mapped_file_is_its_mapping)
{
	check_hva(GMEM_BACKING_MAPPED);
}

TEST(host_memory_of_ones_own_is_borrowed)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_HVA);
	struct gmem_region *region;
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	opts.hva = mmap(NULL, 2 * lab.page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
			0);
	region = lab_add(&lab, GMEM_BACKING_HOST, BASE, 2, &opts);
	CHECK(gmem_region_hva(region) == opts.hva);
	CHECK(!gmem_region_file(region, NULL));
	check_both_ways(&lab, region);
	OK(gmem_region_remove(region));
	CHECK_EQ(host_load(opts.hva), 0x101);
	WORKS(munmap(opts.hva, 2 * lab.page));
	lab_free(&lab);
}

TEST(a_region_is_mapped_where_it_was_asked_to)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_HVA);
	struct gmem_region *region;
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	opts.hva = mmap(NULL, 2 * lab.page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check_add_refused(&lab, GMEM_BACKING_SHARED, BASE, 2 * lab.page, &opts, -EEXIST);
	WORKS(munmap(opts.hva, 2 * lab.page));
	region = lab_add(&lab, GMEM_BACKING_SHARED, BASE, 2, &opts);
	CHECK(gmem_region_hva(region) == opts.hva);
	check_both_ways(&lab, region);
	lab_free(&lab);
}

static void check_region_align(uint32_t backing)
{
	GMEM_OPTS(gmem_region_opts, opts, .align = 2 * MIB);
	struct gmem_region *region;
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	region = lab_add(&lab, backing, BASE, 3, &opts);
	CHECK_EQ((uintptr_t)gmem_region_hva(region) % (2 * MIB), 0);
	check_both_ways(&lab, region);
	lab_free(&lab);
}

TEST(host_regions_are_aligned)
{
	check_region_align(GMEM_BACKING_HOST);
}

TEST(shared_regions_are_aligned)
{
	check_region_align(GMEM_BACKING_SHARED);
}

/* ---- bad ranges ---- */

static void check_bad_ranges(uint32_t backing)
{
	uint64_t page = page_size();
	const struct {
		uint64_t gpa, size;
	} bad[] = {
		{ BASE, 0 }, { BASE, page / 2 }, { BASE, page + 1 }, { BASE + page / 2, page },
		{ BASE + 1, page }, { UINT64_MAX - page + 1, page },
		{ UINT64_MAX - page + 1, 2 * page }, { BASE, UINT64_MAX - page + 1 },
		{ (uint64_t)1 << 63, page }, { BASE, page << 31 },
	};
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		in_case("gpa 0x%llx, size 0x%llx", (unsigned long long)bad[i].gpa,
			(unsigned long long)bad[i].size);
		check_add_refused(&lab, backing, bad[i].gpa, bad[i].size, NULL, -EINVAL);
	}
	CHECK_EQ(count_mappings("kvm-gmem"), 0);
	lab_free(&lab);
}

TEST(bad_ranges_of_host_memory_are_refused)
{
	check_bad_ranges(GMEM_BACKING_HOST);
}

TEST(bad_ranges_of_a_bound_file_are_refused)
{
	check_bad_ranges(GMEM_BACKING_SHARED);
}

TEST(bad_file_ranges_are_refused)
{
	struct gmem_file *file;
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	file = new_file(&lab, 4, SHARED_FLAGS);
	{
		const uint64_t offsets[] = { lab.page / 2, 1, 3 * lab.page, 4 * lab.page,
					     UINT64_MAX - lab.page + 1 };

		for (size_t i = 0; i < ARRAY_SIZE(offsets); i++) {
			GMEM_OPTS(gmem_region_opts, opts, .file = file, .file_offset = offsets[i]);

			check_add_refused(&lab, GMEM_BACKING_SHARED, BASE, 2 * lab.page, &opts, -EINVAL);
			check_add_refused(&lab, GMEM_BACKING_MAPPED, BASE, 2 * lab.page, &opts, -EINVAL);
		}
	}
	add_file(&lab, GMEM_BACKING_SHARED, BASE, 2, file, 2);
	gmem_file_free(file);
	lab_free(&lab);
}

TEST(an_offset_needs_a_file)
{
	GMEM_OPTS(gmem_region_opts, opts, .file_offset = page_size());
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	check_add_refused(&lab, GMEM_BACKING_HOST, BASE, lab.page, &opts, -EINVAL);
	check_add_refused(&lab, GMEM_BACKING_SHARED, BASE, lab.page, &opts, -EINVAL);
	lab_free(&lab);
}

TEST(unknown_region_flags_are_refused)
{
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	for (int bit = 4; bit < 64; bit++) {
		GMEM_OPTS(gmem_region_opts, opts, .flags = (uint64_t)1 << bit);

		check_add_refused(&lab, GMEM_BACKING_HOST, BASE, lab.page, &opts, -EINVAL);
	}
	lab_free(&lab);
}

TEST(memory_ends_where_the_address_bits_end)
{
	struct gmem_finding bits;
	struct lab lab;
	uint64_t end;

	lab_new(&lab, DEFAULT_VM);
	OK(gmem_caps_get(gmem_vm_caps(lab.vm), GMEM_CAP_ADDRESS_BITS, &bits));
	CHECK_EQ(bits.answer, GMEM_YES);
	CHECK(bits.has_value && bits.value >= 32 && bits.value < 64);
	end = (uint64_t)1 << bits.value;
	note("%lld address bits", (long long)bits.value);
	check_add_refused(&lab, GMEM_BACKING_HOST, end, lab.page, NULL, -EINVAL);
	check_add_refused(&lab, GMEM_BACKING_HOST, end - lab.page, 2 * lab.page, NULL, -EINVAL);
	lab_add(&lab, GMEM_BACKING_HOST, end - lab.page, 1, NULL);
	lab_free(&lab);
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
