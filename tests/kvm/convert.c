/* SPDX-License-Identifier: MIT */
/* Conversion as a guest, the host and the kernel's own counts see it */
#include <sys/mman.h>
#include <unistd.h>

#include "lab.h"

#define BASE ((uint64_t)256 << 20)
#define WAS_PRIVATE (1 << 3)

struct scene {
	struct lab lab;
	struct gmem_region *region;	/* 4 pages */
	struct gmem_region *next;	/* 4 more, right behind it */
	struct gmem_view *view;
	char *hva;
};

static void scene_new(struct scene *s)
{
	lab_new(&s->lab, PRIVATE_VM);
	s->region = lab_add(&s->lab, GMEM_BACKING_PRIVATE, BASE, 4, NULL);
	s->next = lab_add(&s->lab, GMEM_BACKING_PRIVATE, BASE + 4 * s->lab.page, 4, NULL);
	s->hva = gmem_region_hva(s->region);
	OK(gmem_view_new(s->lab.vm, &s->view));
}

static void scene_free(struct scene *s)
{
	gmem_view_free(s->view);
	lab_free(&s->lab);
}

static uint64_t at(const struct scene *s, uint64_t page)
{
	return BASE + page * s->lab.page;
}

static int convert_as(struct scene *s, uint64_t page, uint64_t pages, uint32_t state,
		      uint32_t discard)
{
	GMEM_OPTS(gmem_convert_opts, opts, .discard = discard);

	return gmem_vm_convert(s->lab.vm, at(s, page), pages * s->lab.page, state, &opts, NULL);
}

static int convert(struct scene *s, uint64_t page, uint64_t pages, uint32_t state)
{
	return convert_as(s, page, pages, state, GMEM_DISCARD_NOW);
}

static void host_finds(struct scene *s, uint64_t page, int wanted)
{
	uint32_t value;

	CHECK_RESULT(gmem_view_read(s->view, at(s, page), &value, sizeof(value), NULL), wanted);
}

/* pages of the shared side that are in memory */
static unsigned int resident(const struct gmem_region *region)
{
	unsigned char pages[16] = { 0 };
	unsigned int count = 0;

	WORKS(mincore(gmem_region_hva(region), gmem_region_size(region), pages));
	for (uint64_t i = 0; i < gmem_region_size(region) / page_size(); i++)
		count += pages[i] & 1;
	return count;
}

static uint64_t allocated(const struct gmem_region *region)
{
	return allocated_pages(gmem_file_fd(gmem_region_file(region, NULL)));
}

/* ---- what the guest and the host see ---- */

TEST(a_converted_page_is_new_and_the_host_cannot_look)
{
	struct scene s;

	scene_new(&s);
	GUEST_STORES(&s.lab.guest, at(&s, 1), 0x11);
	host_finds(&s, 1, 0);
	OK(convert(&s, 1, 1, GMEM_STATE_PRIVATE));
	host_finds(&s, 1, -EACCES);
	host_finds(&s, 0, 0);
	host_finds(&s, 2, 0);
	GUEST_LOADS(&s.lab.guest, at(&s, 1), 0);
	GUEST_STORES(&s.lab.guest, at(&s, 1), 0x22);
	CHECK_EQ(host_load(s.hva + s.lab.page), 0);

	OK(convert(&s, 1, 1, GMEM_STATE_SHARED));
	host_finds(&s, 1, 0);
	GUEST_LOADS(&s.lab.guest, at(&s, 1), 0);
	GUEST_STORES(&s.lab.guest, at(&s, 1), 0x33);
	CHECK_EQ(host_load(s.hva + s.lab.page), 0x33);
	OK(convert(&s, 1, 1, GMEM_STATE_PRIVATE));
	GUEST_LOADS(&s.lab.guest, at(&s, 1), 0);
	scene_free(&s);
}

TEST(both_sides_keep_their_bytes_if_told_so)
{
	struct scene s;

	scene_new(&s);
	GUEST_STORES(&s.lab.guest, at(&s, 3), 0x11);
	OK(convert_as(&s, 3, 2, GMEM_STATE_PRIVATE, GMEM_DISCARD_NEVER));
	GUEST_STORES(&s.lab.guest, at(&s, 3), 0x22);
	OK(convert_as(&s, 3, 2, GMEM_STATE_SHARED, GMEM_DISCARD_NEVER));
	GUEST_LOADS(&s.lab.guest, at(&s, 3), 0x11);
	OK(convert_as(&s, 3, 2, GMEM_STATE_PRIVATE, GMEM_DISCARD_NEVER));
	GUEST_LOADS(&s.lab.guest, at(&s, 3), 0x22);
	scene_free(&s);
}

TEST(a_range_across_regions_is_one_call)
{
	struct gmem_conversion done;
	struct scene s;

	scene_new(&s);
	OK(gmem_vm_convert(s.lab.vm, at(&s, 1), 6 * s.lab.page, GMEM_STATE_PRIVATE, NULL, &done));
	CHECK_EQ(done.ioctls, 1);
	CHECK_EQ(done.converted, 6 * s.lab.page);
	for (uint64_t i = 0; i < 8; i++) {
		host_finds(&s, i, i == 0 || i == 7 ? 0 : -EACCES);
		GUEST_STORES(&s.lab.guest, at(&s, i), 0x40 + (uint32_t)i);
	}
	CHECK_EQ(resident(s.region) + resident(s.next), 2);
	OK(gmem_vm_convert(s.lab.vm, at(&s, 0), 8 * s.lab.page, GMEM_STATE_PRIVATE, NULL, &done));
	CHECK_EQ(done.ioctls, 2);
	OK(gmem_vm_convert(s.lab.vm, at(&s, 0), 8 * s.lab.page, GMEM_STATE_PRIVATE, NULL, &done));
	CHECK_EQ(done.ioctls, 0);
	GUEST_LOADS(&s.lab.guest, at(&s, 6), 0x46);
	GUEST_LOADS(&s.lab.guest, at(&s, 0), 0);
	scene_free(&s);
}

TEST(what_cannot_be_converted_as_a_whole_is_not_touched)
{
	struct scene s;

	scene_new(&s);
	lab_add(&s.lab, GMEM_BACKING_HOST, at(&s, 8), 1, NULL);
	REFUSED(convert(&s, 0, 9, GMEM_STATE_PRIVATE), -EOPNOTSUPP);
	REFUSED(gmem_vm_convert(s.lab.vm, BASE - s.lab.page, 2 * s.lab.page, GMEM_STATE_PRIVATE,
				NULL, NULL), -ENOENT);
	REFUSED(convert(&s, 9, 1, GMEM_STATE_PRIVATE), -ENOENT);
	for (uint64_t i = 0; i < 9; i++) {
		host_finds(&s, i, 0);
		GUEST_STORES(&s.lab.guest, at(&s, i), 0x50 + (uint32_t)i);
	}
	CHECK_EQ(host_load(s.hva), 0x50);
	scene_free(&s);
}

#ifdef __x86_64__
TEST(kvm_itself_reads_the_shared_side_of_a_private_page)
{
	struct guest_access access;
	struct scene s;

	scene_new(&s);
	OK(convert(&s, 0, 1, GMEM_STATE_PRIVATE));
	GUEST_STORES(&s.lab.guest, at(&s, 0), 0x22);
	host_store(s.hva, 0x11);
	access = guest_emulated_load(&s.lab.guest, at(&s, 0));
	if (access.outcome != GUEST_DONE)
		FAIL("%s", guest_describe(&access));
	CHECK_EQ(access.value, 0x11);
	GUEST_LOADS(&s.lab.guest, at(&s, 0), 0x22);
	scene_free(&s);
}
#endif

/* ---- memory ---- */

TEST(no_page_is_there_twice)
{
	struct scene s;

	require_cachestat();
	scene_new(&s);
	for (uint64_t i = 0; i < 4; i++)
		GUEST_STORES(&s.lab.guest, at(&s, i), 1);
	CHECK_EQ(resident(s.region), 4);
	CHECK_EQ(allocated(s.region), 0);
	OK(convert(&s, 0, 4, GMEM_STATE_PRIVATE));
	CHECK_EQ(resident(s.region), 0);
	for (uint64_t i = 0; i < 4; i++)
		GUEST_STORES(&s.lab.guest, at(&s, i), 2);
	CHECK_EQ(resident(s.region), 0);
	CHECK_EQ(allocated(s.region), 4);
	OK(convert(&s, 1, 2, GMEM_STATE_SHARED));
	CHECK_EQ(allocated(s.region), 2);
	GUEST_STORES(&s.lab.guest, at(&s, 1), 3);
	CHECK_EQ(resident(s.region) + allocated(s.region), 3);
	scene_free(&s);
}

TEST(what_is_owed_is_there_twice_until_it_is_discarded)
{
	uint64_t bytes = 0;
	struct scene s;

	require_cachestat();
	scene_new(&s);
	for (uint64_t i = 0; i < 8; i++)
		GUEST_STORES(&s.lab.guest, at(&s, i), 1);
	for (uint64_t i = 0; i < 8; i++)
		OK(convert_as(&s, i, 1, GMEM_STATE_PRIVATE, GMEM_DISCARD_LATER));
	for (uint64_t i = 0; i < 8; i++)
		GUEST_STORES(&s.lab.guest, at(&s, i), 2);
	CHECK_EQ(resident(s.region) + resident(s.next), 8);
	CHECK_EQ(allocated(s.region) + allocated(s.next), 8);
	OK(gmem_vm_discard_owed(s.lab.vm, &bytes));
	CHECK_EQ(bytes, 8 * s.lab.page);
	CHECK_EQ(resident(s.region) + resident(s.next), 0);
	GUEST_LOADS(&s.lab.guest, at(&s, 7), 2);
	scene_free(&s);
}

/* What the guest does not use is freed and populated, and the guest does not notice. */
TEST(one_side_is_discarded_and_populated)
{
	GMEM_OPTS(gmem_discard_opts, shared, .flags = GMEM_DISCARD_SHARED_SIDE);
	GMEM_OPTS(gmem_discard_opts, private, .flags = GMEM_DISCARD_PRIVATE_SIDE);
	GMEM_OPTS(gmem_populate_opts, ahead, .flags = GMEM_POPULATE_PRIVATE_SIDE);
	GMEM_OPTS(gmem_populate_opts, back, .flags = GMEM_POPULATE_SHARED_SIDE);
	struct scene s;

	require_cachestat();
	scene_new(&s);
	for (uint64_t i = 0; i < 4; i++)
		GUEST_STORES(&s.lab.guest, at(&s, i), 1);
	OK(gmem_vm_populate(s.lab.vm, BASE, 2 * s.lab.page, &ahead, NULL));
	CHECK_EQ(allocated(s.region), 2);
	GUEST_LOADS(&s.lab.guest, at(&s, 1), 1);
	OK(convert_as(&s, 0, 2, GMEM_STATE_PRIVATE, GMEM_DISCARD_NEVER));
	GUEST_STORES(&s.lab.guest, at(&s, 1), 2);
	CHECK_EQ(resident(s.region), 4);

	OK(gmem_vm_discard(s.lab.vm, BASE, 2 * s.lab.page, &shared, NULL));
	CHECK_EQ(resident(s.region), 2);
	CHECK_EQ(allocated(s.region), 2);
	GUEST_LOADS(&s.lab.guest, at(&s, 1), 2);
	OK(gmem_vm_populate(s.lab.vm, BASE, 4 * s.lab.page, &back, NULL));
	CHECK_EQ(resident(s.region), 4);
	OK(convert_as(&s, 1, 1, GMEM_STATE_SHARED, GMEM_DISCARD_NEVER));
	GUEST_LOADS(&s.lab.guest, at(&s, 1), 0);
	OK(gmem_vm_discard(s.lab.vm, at(&s, 1), s.lab.page, &private, NULL));
	CHECK_EQ(allocated(s.region), 1);
	GUEST_STORES(&s.lab.guest, at(&s, 1), 3);
	CHECK_EQ(host_load(s.hva + s.lab.page), 3);
	scene_free(&s);
}

TEST(a_mappable_file_keeps_its_bytes_across_conversions)
{
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_PRIVATE },
		  .required_flags = GMEM_CREATE_MMAP);
	GMEM_OPTS(gmem_region_opts, opts);
	struct gmem_region *region;
	struct gmem_plan *plan;
	struct scene s;

	scene_new(&s);
	require_create_flags(&s.lab.m, GMEM_CREATE_MMAP);
	if (expect()->reaches == GUEST_REACHES_EITHER)
		skip("with shadow paging some accesses go to the host address");
	OK(gmem_plan_new(s.lab.m.caps, &request, &plan));
	opts.plan = plan;
	OK(gmem_region_add(s.lab.vm, at(&s, 8), 2 * s.lab.page, &opts, &region));
	gmem_plan_free(plan);
	GUEST_STORES(&s.lab.guest, at(&s, 8), 0x11);
	host_finds(&s, 8, -EACCES);
	OK(convert(&s, 8, 2, GMEM_STATE_PRIVATE));
	GUEST_LOADS(&s.lab.guest, at(&s, 8), 0x11);
	GUEST_STORES(&s.lab.guest, at(&s, 8), 0x22);
	OK(convert(&s, 8, 2, GMEM_STATE_SHARED));
	GUEST_LOADS(&s.lab.guest, at(&s, 8), 0x22);
	host_finds(&s, 8, -EACCES);
	scene_free(&s);
}

/* ---- the layout, and who keeps it ---- */

TEST(a_removed_region_leaves_nothing_private)
{
	struct scene s;

	scene_new(&s);
	OK(convert(&s, 0, 8, GMEM_STATE_PRIVATE));
	OK(gmem_region_remove(s.region));
	host_finds(&s, 0, -ESTALE);
	/* private and without memory would be a memory fault for ever */
	GUEST_GETS(&s.lab.guest, at(&s, 0), GUEST_MMIO);
	s.region = lab_add(&s.lab, GMEM_BACKING_HOST, BASE, 4, NULL);
	GUEST_STORES(&s.lab.guest, at(&s, 0), 0x11);
	CHECK_EQ(host_load(gmem_region_hva(s.region)), 0x11);
	GUEST_STORES(&s.lab.guest, at(&s, 4), 0x22);
	host_finds(&s, 4, -EACCES);
	scene_free(&s);
}

TEST(states_stay_where_a_region_is_split)
{
	struct gmem_region *upper;
	struct scene s;

	scene_new(&s);
	OK(convert(&s, 1, 2, GMEM_STATE_PRIVATE));
	GUEST_STORES(&s.lab.guest, at(&s, 1), 0x11);
	GUEST_STORES(&s.lab.guest, at(&s, 2), 0x22);
	REFUSED(gmem_region_move(s.region, 2 * BASE), -EACCES);
	OK(gmem_region_split(s.region, 2 * s.lab.page, &upper));
	GUEST_LOADS(&s.lab.guest, at(&s, 1), 0x11);
	GUEST_LOADS(&s.lab.guest, at(&s, 2), 0x22);
	host_finds(&s, 2, -EACCES);
	scene_free(&s);
}

TEST(a_lease_keeps_memory_shared)
{
	GMEM_OPTS(gmem_lease_opts, opts, .holder = "disk");
	struct gmem_lease *lease = NULL;
	struct scene s;

	scene_new(&s);
	OK(gmem_lease_new(s.lab.vm, at(&s, 1), 1, &opts, &lease));
	REFUSED(convert(&s, 0, 4, GMEM_STATE_PRIVATE), -EBUSY);
	REFUSED(gmem_region_remove(s.region), -EBUSY);
	host_finds(&s, 1, 0);
	GUEST_STORES(&s.lab.guest, at(&s, 1), 0x11);
	CHECK_EQ(host_load(s.hva + s.lab.page), 0x11);
	gmem_lease_free(lease);
	OK(convert(&s, 0, 4, GMEM_STATE_PRIVATE));
	REFUSED(gmem_lease_new(s.lab.vm, at(&s, 1), 1, &opts, &lease), -EACCES);
	scene_free(&s);
}

TEST(a_vm_that_has_private_memory_already_is_taken_over)
{
	GMEM_OPTS(gmem_convert_opts, all, .flags = GMEM_CONVERT_ALL);
	struct scene s;

	scene_new(&s);
	CHECK_RESULT(lab_convert(&s.lab, at(&s, 1), s.lab.page, KVM_MEMORY_ATTRIBUTE_PRIVATE), 0);
	CHECK_RESULT(lab_convert(&s.lab, at(&s, 5), s.lab.page, KVM_MEMORY_ATTRIBUTE_PRIVATE), 0);
	GUEST_STORES(&s.lab.guest, at(&s, 1), 0x11);
	OK(gmem_vm_adopt_private(s.lab.vm, at(&s, 1), s.lab.page));
	host_finds(&s, 1, -EACCES);
	GUEST_LOADS(&s.lab.guest, at(&s, 1), 0x11);

	/* the library was not told of the other private range: all of it is made shared */
	OK(gmem_vm_convert(s.lab.vm, at(&s, 0), 8 * s.lab.page, GMEM_STATE_SHARED, &all, NULL));
	for (uint64_t i = 0; i < 8; i++)
		GUEST_STORES(&s.lab.guest, at(&s, i), 0x60 + (uint32_t)i);
	CHECK_EQ(host_load(s.hva + s.lab.page), 0x61);
	CHECK_EQ(host_load((char *)gmem_region_hva(s.next) + s.lab.page), 0x65);
	scene_free(&s);
}

TEST(a_vm_without_private_memory_refuses)
{
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	lab_add(&lab, GMEM_BACKING_HOST, BASE, 1, NULL);
	REFUSED(gmem_vm_convert(lab.vm, BASE, lab.page, GMEM_STATE_PRIVATE, NULL, NULL),
		-EOPNOTSUPP);
	REFUSED(gmem_vm_convert(lab.vm, BASE, lab.page, GMEM_STATE_SHARED, NULL, NULL),
		-EOPNOTSUPP);
	REFUSED(gmem_vm_adopt_private(lab.vm, BASE, lab.page), -EOPNOTSUPP);
	GUEST_STORES(&lab.guest, BASE, 0x11);
	lab_free(&lab);
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
