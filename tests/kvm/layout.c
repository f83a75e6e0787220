/* SPDX-License-Identifier: MIT */
/* Changes of the layout on a real kernel, and what a guest finds after each. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lab.h"

#define BASE (256 * MIB)
#define REGION_PAGES 4
/* memslots behind the library's back */
#define OTHER_SLOT 1000u

/* One way of backing in one VM */
struct site {
	struct lab lab;
	struct gmem_view *view;
	struct gmem_plan *plan;
	uint32_t backing;
	uint64_t size;		/* of a region here */
};

#define WAY(backing) (1u << (backing))
#define EVERY_WAY (~0u)
#define WITH_FILE                                                                      \
	(WAY(GMEM_BACKING_MAPPED) | WAY(GMEM_BACKING_SHARED) | WAY(GMEM_BACKING_PRIVATE))
/* ways in which a file's bytes are those of host and guest */
#define WITH_SHARED_FILE (WAY(GMEM_BACKING_MAPPED) | WAY(GMEM_BACKING_SHARED))
#define WITH_PLAIN_SLOT (WAY(GMEM_BACKING_HOST) | WAY(GMEM_BACKING_MAPPED))

static void site_new(struct site *s, int type, uint32_t backing)
{
	*s = (struct site){ .backing = backing };
	lab_new(&s->lab, type);
	s->size = REGION_PAGES * s->lab.page;
	require_backing(&s->lab.m, backing, &s->plan);
	OK(gmem_view_new(s->lab.vm, &s->view));
}

static void site_free(struct site *s)
{
	gmem_view_free(s->view);
	gmem_plan_free(s->plan);
	lab_free(&s->lab);
}

struct check {
	void (*run)(struct site *site);
};

static void run_in_site(int type, uint32_t backing, void *data)
{
	const struct check *check = data;
	struct site s;

	site_new(&s, type, backing);
	check->run(&s);
	site_free(&s);
}

/* in every kind of VM, with each of these ways of backing that it has */
static void for_each_way(uint32_t ways, void (*run)(struct site *))
{
	lab_for_each_way(ways, run_in_site, &(struct check){ run });
}

/* ---- places for regions, far enough apart ---- */

static uint64_t place(const struct site *s, unsigned int number)
{
	return BASE + number * 4 * s->size;
}

static uint64_t last_page(const struct site *s, uint64_t gpa)
{
	return gpa + s->size - s->lab.page;
}

/* The guest finds the contents of region @number at @gpa. */
static void check_guest_finds(struct site *s, uint64_t gpa, uint32_t number)
{
	GUEST_LOADS(&s->lab.guest, gpa, 0x1000 + number);
	GUEST_LOADS(&s->lab.guest, last_page(s, gpa), 0x2000 + number);
}

/* ... and it can leave something there itself */
static void guest_marks(struct site *s, uint64_t gpa, uint32_t number)
{
	GUEST_STORES(&s->lab.guest, gpa, 0x1000 + number);
	GUEST_STORES(&s->lab.guest, last_page(s, gpa), 0x2000 + number);
	check_guest_finds(s, gpa, number);
}

static void host_marks(struct site *s, void *hva, uint32_t number)
{
	host_store(hva, 0x1000 + number);
	host_store((char *)hva + s->size - s->lab.page, 0x2000 + number);
}

static void check_host_finds(struct site *s, void *hva, uint32_t number)
{
	CHECK_EQ(host_load(hva), 0x1000 + number);
	CHECK_EQ(host_load((char *)hva + s->size - s->lab.page), 0x2000 + number);
}

static int look(struct site *s, uint64_t gpa, void **ret_hva)
{
	int err;

	gmem_view_begin(s->view);
	err = gmem_view_hva(s->view, gpa, s->size, ret_hva);
	gmem_view_end(s->view);
	return err;
}

/* Guest, view and region agree that @region is at @gpa, with the marks of @number. */
static void check_is_at(struct site *s, struct gmem_region *region, uint64_t gpa, uint32_t number)
{
	void *hva = NULL;

	CHECK_EQ(gmem_region_gpa(region), gpa);
	CHECK_RESULT(look(s, gpa, &hva), 0);
	CHECK(hva == gmem_region_hva(region));
	check_host_finds(s, hva, number);
	check_guest_finds(s, gpa, number);
}

static void check_is_empty(struct site *s, uint64_t gpa, int error)
{
	void *hva = NULL;

	CHECK_RESULT(look(s, gpa, &hva), error);
	CHECK(!hva);
	GUEST_GETS(&s->lab.guest, gpa, GUEST_MMIO);
	GUEST_GETS(&s->lab.guest, last_page(s, gpa), GUEST_MMIO);
}

/* add region @number at its place, with its marks */
static struct gmem_region *put(struct site *s, unsigned int number)
{
	struct gmem_region *region = lab_add(&s->lab, s->backing, place(s, number), REGION_PAGES,
					     NULL);

	host_marks(s, gmem_region_hva(region), number);
	check_is_at(s, region, place(s, number), number);
	return region;
}

/* ---- changes ---- */

static struct gmem_change *new_change(struct site *s)
{
	struct gmem_change *change = NULL;

	OK(gmem_change_new(s->lab.vm, &change));
	CHECK(change);
	return change;
}

static void apply(struct gmem_change *change)
{
	OK(gmem_change_apply(change));
	gmem_change_free(change);
}

static void plan_add(struct site *s, struct gmem_change *change, uint64_t gpa,
		     struct gmem_region **ret)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = s->plan);

	OK(gmem_change_add(change, gpa, s->size, &opts, ret));
}

static void several_are_added(struct site *s)
{
	struct gmem_region *regions[3] = { NULL };
	struct gmem_change *change = new_change(s);

	for (unsigned int i = 0; i < 3; i++)
		plan_add(s, change, place(s, i), &regions[i]);
	check_is_empty(s, place(s, 0), -ENOENT);
	CHECK(!regions[0]);
	apply(change);

	for (unsigned int i = 0; i < 3; i++) {
		guest_marks(s, place(s, i), i);
		check_is_at(s, regions[i], place(s, i), i);
	}
}

TEST(a_guest_uses_every_region_that_a_change_added)
{
	for_each_way(EVERY_WAY, several_are_added);
}

static void one_is_removed(struct site *s)
{
	struct gmem_region *first = put(s, 0), *second = put(s, 1), *third = put(s, 2);
	struct gmem_change *change = new_change(s);

	OK(gmem_change_remove(change, second));
	check_is_at(s, second, place(s, 1), 1);
	apply(change);
	check_is_empty(s, place(s, 1), -ESTALE);
	check_is_at(s, first, place(s, 0), 0);
	check_is_at(s, third, place(s, 2), 2);

	OK(gmem_region_remove(first));
	check_is_empty(s, place(s, 0), -ESTALE);
	check_is_at(s, third, place(s, 2), 2);
}

TEST(a_guest_finds_nothing_where_a_region_was_removed)
{
	for_each_way(EVERY_WAY, one_is_removed);
}

static void one_is_added_again(struct site *s)
{
	struct gmem_region *region = put(s, 0);

	OK(gmem_region_remove(region));
	check_is_empty(s, place(s, 0), -ESTALE);
	region = lab_add(&s->lab, s->backing, place(s, 0), REGION_PAGES, NULL);
	GUEST_LOADS(&s->lab.guest, place(s, 0), 0);
	GUEST_LOADS(&s->lab.guest, last_page(s, place(s, 0)), 0);
	guest_marks(s, place(s, 0), 7);
	check_is_at(s, region, place(s, 0), 7);
}

TEST(memory_added_again_is_new_memory)
{
	for_each_way(EVERY_WAY, one_is_added_again);
}

static void one_is_moved(struct site *s)
{
	struct gmem_region *region = put(s, 0);
	void *hva = gmem_region_hva(region);
	uint32_t slot = gmem_region_slot(region);

	OK(gmem_region_move(region, place(s, 1)));
	CHECK(gmem_region_hva(region) == hva);
	CHECK_EQ(gmem_region_slot(region), slot);
	check_is_at(s, region, place(s, 1), 0);
	check_is_empty(s, place(s, 0), -ESTALE);

	/* onto a part of where it is */
	OK(gmem_region_move(region, place(s, 1) + s->lab.page));
	check_is_at(s, region, place(s, 1) + s->lab.page, 0);
	GUEST_GETS(&s->lab.guest, place(s, 1), GUEST_MMIO);
}

TEST(contents_move_with_their_region)
{
	for_each_way(EVERY_WAY, one_is_moved);
}

static void places_are_traded(struct site *s)
{
	struct gmem_region *regions[3] = { put(s, 0), put(s, 1), put(s, 2) };
	struct gmem_change *change = new_change(s);

	OK(gmem_change_move(change, regions[0], place(s, 1)));
	OK(gmem_change_move(change, regions[1], place(s, 0)));
	apply(change);
	check_is_at(s, regions[0], place(s, 1), 0);
	check_is_at(s, regions[1], place(s, 0), 1);
	check_is_at(s, regions[2], place(s, 2), 2);

	change = new_change(s);
	OK(gmem_change_move(change, regions[0], place(s, 0)));
	OK(gmem_change_move(change, regions[1], place(s, 2)));
	OK(gmem_change_move(change, regions[2], place(s, 1)));
	apply(change);
	check_is_at(s, regions[0], place(s, 0), 0);
	check_is_at(s, regions[1], place(s, 2), 1);
	check_is_at(s, regions[2], place(s, 1), 2);
}

TEST(regions_trade_places)
{
	for_each_way(EVERY_WAY, places_are_traded);
}

/* The new region wants what the old one has: address, memslot number, file range. */
static void one_is_replaced(struct site *s)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = s->plan, .flags = GMEM_REGION_SLOT, .slot = 7);
	struct gmem_region *old = NULL, *new = NULL;
	struct gmem_change *change = new_change(s);
	bool has_file = WAY(s->backing) & WITH_FILE;
	struct gmem_file *file = NULL;

	if (has_file)
		OK(gmem_file_new(s->lab.m.vm_fd, s->size, s->plan, &file));
	opts.file = file;
	OK(gmem_region_add(s->lab.vm, place(s, 0), s->size, &opts, &old));
	guest_marks(s, place(s, 0), 3);

	OK(gmem_change_remove(change, old));
	OK(gmem_change_add(change, place(s, 0), s->size, &opts, &new));
	apply(change);
	CHECK_EQ(gmem_region_slot(new), 7);
	if (WAY(s->backing) & WITH_SHARED_FILE)
		check_is_at(s, new, place(s, 0), 3);
	else
		GUEST_LOADS(&s->lab.guest, place(s, 0), 0);
	guest_marks(s, place(s, 0), 4);
	check_is_at(s, new, place(s, 0), 4);
	gmem_file_free(file);
}

TEST(a_region_is_replaced_by_one_with_the_same_address_memslot_and_file)
{
	for_each_way(EVERY_WAY, one_is_replaced);
}

static void everything_at_once(struct site *s)
{
	struct gmem_region *moved = put(s, 0), *removed = put(s, 1), *untouched = put(s, 2);
	struct gmem_region *added = NULL, *again = NULL;
	struct gmem_change *change = new_change(s);

	OK(gmem_change_move(change, moved, place(s, 1)));
	OK(gmem_change_remove(change, removed));
	plan_add(s, change, place(s, 0), &added);
	plan_add(s, change, place(s, 3), &again);
	apply(change);
	check_is_at(s, moved, place(s, 1), 0);
	check_is_at(s, untouched, place(s, 2), 2);
	guest_marks(s, place(s, 0), 4);
	guest_marks(s, place(s, 3), 5);
	check_is_at(s, added, place(s, 0), 4);
	check_is_at(s, again, place(s, 3), 5);
}

TEST(one_change_adds_removes_and_moves)
{
	for_each_way(EVERY_WAY, everything_at_once);
}

static void a_change_is_used_again(struct site *s)
{
	struct gmem_change *change = new_change(s);
	struct gmem_region *region = NULL;

	OK(gmem_change_apply(change));
	plan_add(s, change, place(s, 0), &region);
	OK(gmem_change_apply(change));
	OK(gmem_change_move(change, region, place(s, 1)));
	OK(gmem_change_apply(change));
	guest_marks(s, place(s, 1), 1);
	OK(gmem_change_remove(change, region));
	apply(change);
	check_is_empty(s, place(s, 1), -ESTALE);
}

TEST(a_change_that_was_applied_is_empty_again)
{
	for_each_way(EVERY_WAY, a_change_is_used_again);
}

/* ---- split ---- */

static void check_halves(struct site *s, uint64_t lower, uint64_t upper)
{
	GUEST_LOADS(&s->lab.guest, lower, 0x1000);
	GUEST_LOADS(&s->lab.guest, upper + s->size - 2 * s->lab.page, 0x2000);
}

static void one_is_split(struct site *s)
{
	struct gmem_region *lower = put(s, 0), *upper = NULL;
	char *hva = gmem_region_hva(lower);
	uint64_t page = s->lab.page, gpa = place(s, 0);

	GUEST_STORES(&s->lab.guest, gpa + page, 0xcafe);
	OK(gmem_region_split(lower, page, &upper));
	CHECK_EQ(gmem_region_size(lower), page);
	CHECK_EQ(gmem_region_size(upper), s->size - page);
	CHECK_EQ(gmem_region_gpa(upper), gpa + page);
	CHECK((char *)gmem_region_hva(lower) == hva);
	CHECK((char *)gmem_region_hva(upper) == hva + page);
	CHECK(gmem_region_slot(lower) != gmem_region_slot(upper));
	check_halves(s, gpa, gpa + page);
	GUEST_LOADS(&s->lab.guest, gpa + page, 0xcafe);

	/* Each is a region of its own. */
	OK(gmem_region_move(upper, place(s, 5)));
	check_halves(s, gpa, place(s, 5));
	GUEST_GETS(&s->lab.guest, gpa + page, GUEST_MMIO);
	OK(gmem_region_remove(lower));
	GUEST_GETS(&s->lab.guest, gpa, GUEST_MMIO);
	GUEST_LOADS(&s->lab.guest, place(s, 5), 0xcafe);
	CHECK_EQ(host_load(gmem_region_hva(upper)), 0xcafe);
}

TEST(both_parts_of_a_split_region_keep_their_contents)
{
	for_each_way(EVERY_WAY, one_is_split);
}

static void every_page_is_split_off(struct site *s)
{
	struct gmem_region *parts[REGION_PAGES] = { put(s, 0) };
	uint64_t page = s->lab.page, gpa = place(s, 0);
	void *hva = NULL;

	for (unsigned int i = REGION_PAGES - 1; i > 0; i--)
		OK(gmem_region_split(parts[0], i * page, &parts[i]));
	for (unsigned int i = 0; i < REGION_PAGES; i++) {
		CHECK_EQ(gmem_region_gpa(parts[i]), gpa + i * page);
		CHECK_EQ(gmem_region_size(parts[i]), page);
		GUEST_STORES(&s->lab.guest, gpa + i * page + 8, 0x30 + i);
		CHECK_EQ(host_load((char *)gmem_region_hva(parts[i]) + 8), 0x30 + i);
	}
	/* still in one piece for the host */
	CHECK_RESULT(look(s, gpa, &hva), 0);

	OK(gmem_region_remove(parts[1]));
	CHECK_RESULT(look(s, gpa, &hva), -ERANGE);
	GUEST_GETS(&s->lab.guest, gpa + page, GUEST_MMIO);
	check_guest_finds(s, gpa, 0);
}

TEST(a_region_can_be_split_into_pages)
{
	for_each_way(EVERY_WAY, every_page_is_split_off);
}

static void splits_are_undone(struct site *s)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = s->plan);
	struct gmem_region *lower = NULL, *upper = NULL, *whole = NULL;
	struct gmem_change *change = new_change(s);

	OK(gmem_file_new(s->lab.m.vm_fd, s->size, s->plan, &opts.file));
	OK(gmem_region_add(s->lab.vm, place(s, 0), s->size, &opts, &lower));
	guest_marks(s, place(s, 0), 1);
	OK(gmem_region_split(lower, 2 * s->lab.page, &upper));
	OK(gmem_change_remove(change, lower));
	OK(gmem_change_remove(change, upper));
	OK(gmem_change_add(change, place(s, 0), s->size, &opts, &whole));
	apply(change);
	check_is_at(s, whole, place(s, 0), 1);
	gmem_file_free(opts.file);
}

TEST(the_parts_of_a_split_region_become_one_again)
{
	for_each_way(WITH_SHARED_FILE, splits_are_undone);
}

/* ---- one file for all of RAM, or one for each region ---- */

#define RAM_BASE (512 * MIB)

static uint64_t ram_gpa(uint64_t offset)
{
	return RAM_BASE + offset;
}

/* all of RAM in one file: ranges from last to first, so that no order is assumed */
static void ram_is_packed(struct site *s)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = s->plan);
	struct gmem_region *regions[3] = { NULL };
	struct gmem_change *change = new_change(s);
	char *whole = NULL;

	OK(gmem_file_new(s->lab.m.vm_fd, 3 * s->size, s->plan, &opts.file));
	for (unsigned int i = 3; i-- > 0;) {
		opts.file_offset = i * s->size;
		OK(gmem_change_add(change, ram_gpa(2 * i * s->size), s->size, &opts, &regions[i]));
	}
	apply(change);

	for (unsigned int i = 0; i < 3; i++)
		guest_marks(s, ram_gpa(2 * i * s->size), i);
	if (WAY(s->backing) & WITH_SHARED_FILE) {
		whole = map_file(opts.file);
		for (unsigned int i = 0; i < 3; i++)
			check_host_finds(s, whole + i * s->size, i);
		unmap_file(opts.file, whole);
	}
	for (unsigned int i = 0; i < 3; i++)
		check_is_at(s, regions[i], ram_gpa(2 * i * s->size), i);
	gmem_file_free(opts.file);
	check_guest_finds(s, ram_gpa(0), 0);
}

TEST(one_file_holds_regions_side_by_side)
{
	for_each_way(WITH_FILE, ram_is_packed);
}

static void files_are_separate(struct site *s)
{
	struct gmem_region *regions[2] = { put(s, 0), put(s, 1) };
	struct gmem_file *files[2];

	for (unsigned int i = 0; i < 2; i++) {
		files[i] = gmem_region_file(regions[i], NULL);
		CHECK_EQ(gmem_file_size(files[i]), s->size);
	}
	CHECK(files[0] != files[1]);
	OK(gmem_region_remove(regions[0]));
	check_is_at(s, regions[1], place(s, 1), 1);
}

TEST(a_region_without_a_file_gets_its_own)
{
	for_each_way(WITH_FILE, files_are_separate);
}

#ifdef __x86_64__

#define ABOVE_HOLE (4 * GIB)
/* in RAM: four levels, the last two of 2 MiB pages for the GiBs at 0 and at 4 GiB */
#define TABLES (2 * MIB)
/* where guest.c has the guest's code */
#define CODE_GPA ((uint64_t)0x10000)

#define PRESENT_WRITABLE 3
#define LARGE_PAGE 0x80

static void write_page_tables(struct site *s)
{
	const uint64_t top = (TABLES + 4096) | PRESENT_WRITABLE;
	const uint64_t gibs[5] = {
		[0] = (TABLES + 8192) | PRESENT_WRITABLE,
		[4] = (TABLES + 12288) | PRESENT_WRITABLE,
	};
	uint64_t pages[2][512];

	for (uint64_t i = 0; i < 512; i++) {
		pages[0][i] = i << 21 | LARGE_PAGE | PRESENT_WRITABLE;
		pages[1][i] = ABOVE_HOLE | pages[0][i];
	}
	OK(gmem_view_write(s->view, TABLES, &top, sizeof(top), NULL));
	OK(gmem_view_write(s->view, TABLES + 4096, gibs, sizeof(gibs), NULL));
	OK(gmem_view_write(s->view, TABLES + 8192, pages, sizeof(pages), NULL));
}

/* Without CPUID a guest has no long mode. */
static void set_cpuid(struct site *s)
{
	struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + 256 * sizeof(cpuid->entries[0]));

	CHECK(cpuid);
	cpuid->nent = 256;
	WORKS(ioctl(s->lab.m.kvm_fd, KVM_GET_SUPPORTED_CPUID, cpuid));
	WORKS(ioctl(s->lab.guest.vcpu_fd, KVM_SET_CPUID2, cpuid));
	free(cpuid);
}

/* 64 bit mode: the few instructions of the guest mean the same there. */
static void enter_long_mode(struct site *s)
{
	struct kvm_sregs sregs;

	set_cpuid(s);
	write_page_tables(s);
	WORKS(ioctl(s->lab.guest.vcpu_fd, KVM_GET_SREGS, &sregs));
	sregs.cr3 = TABLES;
	sregs.cr4 |= 1u << 5;	/* PAE */
	sregs.cr0 |= 1u << 31;	/* PG */
	sregs.efer |= 0x500;	/* LME, LMA */
	sregs.cs.l = 1;
	sregs.cs.db = 0;
	WORKS(ioctl(s->lab.guest.vcpu_fd, KVM_SET_SREGS, &sregs));
}

/* RAM begins at 0: the guest's code has to move into it. */
static void move_code_into_ram(struct site *s)
{
	OK(gmem_view_write(s->view, CODE_GPA, s->lab.guest.code, s->lab.page, NULL));
}

static void a_machine_boots(struct site *s)
{
	const struct gmem_gpa_range hole = { 4 * MIB, MIB };
	GMEM_OPTS(gmem_ram_layout_opts, where, .machine = GMEM_MACHINE_X86_64, .hole_start = 6 * MIB,
		  .holes = &hole, .hole_count = 1);
	GMEM_OPTS(gmem_region_opts, opts, .plan = s->plan);
	struct gmem_region *regions[3] = { NULL };
	struct gmem_change *change = new_change(s);
	struct gmem_ram_range ranges[3];

	CHECK_RESULT(gmem_ram_layout(7 * MIB, &where, NULL, 0), 3);
	CHECK_RESULT(gmem_ram_layout(7 * MIB, &where, ranges, 3), 3);
	CHECK_EQ(ranges[1].gpa, 5 * MIB);
	CHECK_EQ(ranges[2].gpa, ABOVE_HOLE);
	WORKS(raw_slot(s->lab.m.vm_fd, GUEST_SLOT, 0, 0, 0, NULL));
	OK(gmem_file_new(s->lab.m.vm_fd, 7 * MIB, s->plan, &opts.file));
	for (unsigned int i = 0; i < 3; i++) {
		opts.file_offset = ranges[i].offset;
		OK(gmem_change_add(change, ranges[i].gpa, ranges[i].size, &opts, &regions[i]));
	}
	apply(change);

	move_code_into_ram(s);
	enter_long_mode(s);
	GUEST_STORES(&s->lab.guest, MIB, 0x11);
	GUEST_STORES(&s->lab.guest, ABOVE_HOLE, 0x22);
	GUEST_STORES(&s->lab.guest, ABOVE_HOLE + 2 * MIB - 4, 0x33);
	CHECK_EQ(host_load((char *)gmem_region_hva(regions[0]) + MIB), 0x11);
	CHECK_EQ(host_load(gmem_region_hva(regions[2])), 0x22);
	CHECK_EQ(host_load((char *)gmem_region_hva(regions[2]) + 2 * MIB - 4), 0x33);
	GUEST_GETS(&s->lab.guest, 4 * MIB, GUEST_MMIO);
	GUEST_GETS(&s->lab.guest, 6 * MIB, GUEST_MMIO);
	GUEST_GETS(&s->lab.guest, ABOVE_HOLE + 2 * MIB, GUEST_MMIO);
	gmem_file_free(opts.file);
}

#else

static void a_machine_boots(struct site *s)
{
	GMEM_OPTS(gmem_ram_layout_opts, where, .machine = GMEM_MACHINE_ARM64);
	GMEM_OPTS(gmem_region_opts, opts, .plan = s->plan);
	struct gmem_region *region = NULL;
	struct gmem_ram_range range;
	uint64_t last;

	CHECK_RESULT(gmem_ram_layout(6 * MIB, &where, &range, 1), 1);
	CHECK_EQ(range.gpa, GIB);
	OK(gmem_file_new(s->lab.m.vm_fd, 6 * MIB, s->plan, &opts.file));
	opts.file_offset = range.offset;
	OK(gmem_region_add(s->lab.vm, range.gpa, range.size, &opts, &region));

	last = range.gpa + range.size - 4;
	GUEST_STORES(&s->lab.guest, range.gpa, 0x11);
	GUEST_STORES(&s->lab.guest, last, 0x22);
	CHECK_EQ(host_load(gmem_region_hva(region)), 0x11);
	CHECK_EQ(host_load((char *)gmem_region_hva(region) + range.size - 4), 0x22);
	GUEST_GETS(&s->lab.guest, last + 4, GUEST_MMIO);
	gmem_file_free(opts.file);
}

#endif

TEST(a_guest_uses_all_the_ram_of_a_common_machine)
{
	for_each_way(WITH_FILE, a_machine_boots);
}

/* ---- RAM of many memslots ---- */

/* With shadow paging KVM takes 8 bytes and more for each page of a memslot at once. */
static void skip_unless_kvm_can_have(const struct site *s, const struct gmem_ram_range *range)
{
	struct gmem_finding bits;

	OK(gmem_caps_get(gmem_vm_caps(s->lab.vm), GMEM_CAP_ADDRESS_BITS, &bits));
	if (bits.value < 64 && (range->gpa + range->size - 1) >> bits.value)
		skip("guest addresses have %d bits here", (int)bits.value);
	if (range->size / s->lab.page * 16 > lab_read_number("/proc/meminfo", "MemAvailable:") * KIB)
		skip("a memslot of %u TiB may take more memory than this host has",
		     (unsigned int)(range->size >> 40));
}

static void range_of_ram_is_there(struct site *s, const struct gmem_ram_range *range)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = s->plan);
	struct gmem_region *region = NULL;
	uint64_t got = 0;

	skip_unless_kvm_can_have(s, range);
	OK(gmem_region_add(s->lab.vm, range->gpa, range->size, &opts, &region));
	OK(gmem_view_write(s->view, range->gpa + range->size - 8, &range->gpa, 8, NULL));
	OK(gmem_view_read(s->view, range->gpa + range->size - 8, &got, 8, NULL));
	CHECK_EQ(got, range->gpa);
	OK(gmem_region_remove(region));
}

/* One range after the other: KVM's own memory for all of them may be more than there is. */
static void ram_of_24_tebibytes_is_there(struct site *s)
{
	GMEM_OPTS(gmem_ram_layout_opts, where, .machine = GMEM_MACHINE_X86_64);
	struct gmem_ram_range ranges[8];
	int count = gmem_ram_layout((uint64_t)24 << 40, &where, ranges, 8);

	if (s->lab.page == 4096)
		CHECK_EQ(count, 5);
	/* those from 4 GiB on: the lab has its code below */
	for (int i = 1; i < count; i++)
		range_of_ram_is_there(s, &ranges[i]);
}

TEST(ram_of_24_tebibytes_is_there_in_several_memslots)
{
	for_each_way(WAY(GMEM_BACKING_HOST) | WAY(GMEM_BACKING_SHARED), ram_of_24_tebibytes_is_there);
}

/* ---- what the kernel refuses ---- */

struct refused {
	struct site *s;
	struct gmem_change *change;
	struct gmem_region *old[3];
	uint32_t old_slots[3];
	struct gmem_region *new[2];
};

static void plan_five_steps(struct refused *r, struct site *s)
{
	*r = (struct refused){ .s = s, .change = new_change(s) };
	for (unsigned int i = 0; i < 3; i++) {
		r->old[i] = put(s, i);
		r->old_slots[i] = gmem_region_slot(r->old[i]);
	}
	OK(gmem_change_move(r->change, r->old[0], place(s, 4)));
	plan_add(s, r->change, place(s, 5), &r->new[0]);
	OK(gmem_change_remove(r->change, r->old[2]));
	OK(gmem_change_move(r->change, r->old[1], place(s, 6)));
	plan_add(s, r->change, place(s, 7), &r->new[1]);
}

static void check_never_happened(struct refused *r, uint64_t obstacle)
{
	struct site *s = r->s;

	for (unsigned int i = 0; i < 3; i++) {
		check_is_at(s, r->old[i], place(s, i), i);
		CHECK_EQ(gmem_region_slot(r->old[i]), r->old_slots[i]);
	}
	CHECK(!r->new[0] && !r->new[1]);
	for (unsigned int i = 4; i < 8; i++) {
		if (place(s, i) != obstacle)
			check_is_empty(s, place(s, i), -ENOENT);
	}
}

static void check_happened(struct refused *r)
{
	struct site *s = r->s;

	check_is_at(s, r->old[0], place(s, 4), 0);
	check_is_at(s, r->old[1], place(s, 6), 1);
	guest_marks(s, place(s, 5), 5);
	guest_marks(s, place(s, 7), 7);
	check_is_at(s, r->new[0], place(s, 5), 5);
	check_is_at(s, r->new[1], place(s, 7), 7);
	for (unsigned int i = 0; i < 3; i++)
		check_is_empty(s, place(s, i), -ESTALE);
}

static void check_sentence(const char *wanted)
{
	const char *sentence = gmem_last_error();

	if (strncmp(sentence, wanted, strlen(wanted)))
		FAIL("the sentence is \"%s\", which does not begin with \"%s\"", sentence, wanted);
}

/* A memslot of our own takes one page in the middle of a step's destination. */
static void step_is_refused(struct site *s, unsigned int number, const char *sentence)
{
	void *page = mmap(NULL, s->lab.page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t gpa = place(s, number);
	unsigned int fds, mappings;
	struct refused r;

	CHECK(page != MAP_FAILED);
	OK(gmem_vm_reserve_slots(s->lab.vm, OTHER_SLOT, 1));
	WORKS(raw_slot(s->lab.m.vm_fd, OTHER_SLOT, 0, gpa + s->lab.page, s->lab.page, page));
	GUEST_STORES(&s->lab.guest, gpa + s->lab.page, 0xabc);

	plan_five_steps(&r, s);
	fds = count_open_fds();
	mappings = count_mappings("kvm-gmem");
	for (unsigned int i = 0; i < 2; i++) {
		REFUSED(gmem_change_apply(r.change), -EEXIST);
		check_sentence(sentence);
		CHECK_EQ(count_open_fds(), fds);
		CHECK_EQ(count_mappings("kvm-gmem"), mappings);
		check_never_happened(&r, gpa);
	}
	GUEST_LOADS(&s->lab.guest, gpa + s->lab.page, 0xabc);

	/* The change is as it was: without the obstacle it works. */
	WORKS(raw_slot(s->lab.m.vm_fd, OTHER_SLOT, 0, 0, 0, NULL));
	munmap(page, s->lab.page);
	apply(r.change);
	check_happened(&r);
}

static void first_step_is_refused(struct site *s)
{
	step_is_refused(s, 4, "step 1 of 5, move: ");
}

static void second_step_is_refused(struct site *s)
{
	step_is_refused(s, 5, "step 2 of 5, add: ");
}

static void fourth_step_is_refused(struct site *s)
{
	step_is_refused(s, 6, "step 4 of 5, move: ");
}

static void last_step_is_refused(struct site *s)
{
	step_is_refused(s, 7, "step 5 of 5, add: ");
}

TEST(a_change_refused_at_its_first_step_never_happened)
{
	for_each_way(EVERY_WAY, first_step_is_refused);
}

TEST(a_change_refused_at_its_second_step_never_happened)
{
	for_each_way(EVERY_WAY, second_step_is_refused);
}

TEST(a_change_refused_at_its_fourth_step_never_happened)
{
	for_each_way(EVERY_WAY, fourth_step_is_refused);
}

TEST(a_change_refused_at_its_last_step_never_happened)
{
	for_each_way(EVERY_WAY, last_step_is_refused);
}

#ifdef __aarch64__
#define REFUSES_NOWHERE (-EFAULT)
#else
#define REFUSES_NOWHERE (-EINVAL)
#endif

/* No VM of any processor has memory there, and the library knows. */
static void no_processor_has_the_address(struct site *s)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = s->plan);
	struct gmem_region *new;

	REFUSED(gmem_region_add(s->lab.vm, (uint64_t)1 << 52, s->size, &opts, &new), -EINVAL);
	REFUSED(gmem_region_add(s->lab.vm, ((uint64_t)1 << 52) - 0x10000, 0x20000, &opts, &new), -EINVAL);
}

/* a handle of the same VM without a self-test */
static void forget_proofs(struct site *s)
{
	GMEM_OPTS(gmem_vm_opts, opts, .flags = GMEM_VM_NO_SELFTEST);

	gmem_view_free(s->view);
	gmem_vm_free(s->lab.vm);
	OK(gmem_vm_new(s->lab.m.vm_fd, &opts, &s->lab.vm));
	OK(gmem_view_new(s->lab.vm, &s->view));
}

static void an_address_is_too_high(struct site *s)
{
	struct gmem_region *region, *new = NULL;
	struct gmem_change *change;
	struct gmem_finding bits;
	uint64_t nowhere;

	no_processor_has_the_address(s);
	OK(gmem_caps_get(s->lab.m.caps, GMEM_CAP_ADDRESS_BITS, &bits));
	nowhere = (uint64_t)1 << bits.value;
	if (bits.value == 52)
		return;	/* this VM has every address that there is */

	/* No memory can be there, which a handle without proofs knows only after it tried. */
	forget_proofs(s);
	OK(gmem_caps_get(gmem_vm_caps(s->lab.vm), GMEM_CAP_ADDRESS_BITS, &bits));
	CHECK_EQ(bits.answer, GMEM_UNKNOWN);
	region = put(s, 0);

	change = new_change(s);
	OK(gmem_change_move(change, region, place(s, 1)));
	plan_add(s, change, nowhere, &new);
	REFUSED(gmem_change_apply(change), REFUSES_NOWHERE);
	check_sentence("step 2 of 2, add: ");
	gmem_change_free(change);
	check_is_at(s, region, place(s, 0), 0);
	check_is_empty(s, place(s, 1), -ENOENT);

	REFUSED(gmem_region_move(region, nowhere), REFUSES_NOWHERE);
	check_is_at(s, region, place(s, 0), 0);
}

TEST(an_address_the_vm_cannot_have_leaves_everything_in_place)
{
	for_each_way(EVERY_WAY, an_address_is_too_high);
}

/* Mistakes that the library finds before it asks the kernel */
static void a_plan_is_wrong(struct site *s)
{
	struct gmem_region *first = put(s, 0), *second = put(s, 1), *new = NULL;
	struct gmem_change *change = new_change(s);

	OK(gmem_change_move(change, first, place(s, 2)));
	plan_add(s, change, place(s, 1) + s->lab.page, &new);
	REFUSED(gmem_change_apply(change), -EEXIST);
	check_sentence("step 2 of 2, add: ");
	REFUSED(gmem_change_move(change, first, place(s, 3)), -EEXIST);
	gmem_change_free(change);

	CHECK(!new);
	check_is_at(s, first, place(s, 0), 0);
	check_is_at(s, second, place(s, 1), 1);
	check_is_empty(s, place(s, 2), -ENOENT);
}

TEST(a_change_that_contradicts_the_layout_never_happened)
{
	for_each_way(EVERY_WAY, a_plan_is_wrong);
}

/* ---- devices ---- */

static void a_device_is_there(struct site *s)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_DEVICE);
	struct gmem_region *below = put(s, 0), *device = NULL, *other = NULL;
	uint64_t gpa = place(s, 0) + s->size, done = 1;
	uint32_t slot;
	char byte;

	OK(gmem_region_add(s->lab.vm, gpa, s->size, &opts, &device));
	CHECK_EQ(gmem_region_gpa(device), gpa);
	CHECK_EQ(gmem_region_backing(device), GMEM_BACKING_NONE);
	CHECK(!gmem_region_hva(device));
	check_is_empty(s, gpa, -ENXIO);
	CHECK_RESULT(gmem_view_read(s->view, gpa, &byte, 1, &done), -ENXIO);
	CHECK_EQ(done, 0);
	check_is_at(s, below, place(s, 0), 0);

	opts.flags = 0;
	opts.plan = s->plan;
	REFUSED(gmem_region_add(s->lab.vm, gpa, s->lab.page, &opts, &other), -EEXIST);
	/* A device takes no memslot. */
	slot = gmem_region_slot(below);
	other = put(s, 1);
	CHECK_EQ(gmem_region_slot(other), slot + 1);
}

TEST(a_guest_meets_a_device_as_mmio_and_a_view_as_enxio)
{
	for_each_way(EVERY_WAY, a_device_is_there);
}

static void memory_becomes_a_device(struct site *s)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_DEVICE);
	struct gmem_region *memory = put(s, 0), *device = NULL;
	struct gmem_change *change = new_change(s);

	OK(gmem_change_remove(change, memory));
	OK(gmem_change_add(change, place(s, 0), s->size, &opts, &device));
	OK(gmem_change_apply(change));
	check_is_empty(s, place(s, 0), -ENXIO);

	OK(gmem_change_remove(change, device));
	plan_add(s, change, place(s, 0), &memory);
	apply(change);
	guest_marks(s, place(s, 0), 9);
	check_is_at(s, memory, place(s, 0), 9);
}

TEST(memory_and_a_device_replace_each_other)
{
	for_each_way(EVERY_WAY, memory_becomes_a_device);
}

static void a_device_moves(struct site *s)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_DEVICE);
	struct gmem_region *memory = put(s, 0), *device = NULL, *upper = NULL;
	struct gmem_change *change = new_change(s);
	void *hva = NULL;

	OK(gmem_region_add(s->lab.vm, place(s, 1), s->size, &opts, &device));
	OK(gmem_change_move(change, device, place(s, 0)));
	OK(gmem_change_move(change, memory, place(s, 1)));
	apply(change);
	check_is_empty(s, place(s, 0), -ENXIO);
	check_is_at(s, memory, place(s, 1), 0);

	OK(gmem_region_split(device, s->lab.page, &upper));
	OK(gmem_region_remove(upper));
	GUEST_GETS(&s->lab.guest, place(s, 0), GUEST_MMIO);
	CHECK_RESULT(look(s, place(s, 0), &hva), -ENXIO);
	CHECK_RESULT(look(s, place(s, 0) + s->lab.page, &hva), -ESTALE);
}

TEST(a_device_moves_and_splits_like_memory)
{
	for_each_way(EVERY_WAY, a_device_moves);
}

/* ---- the dirty log ---- */

#define LOGGED_PAGES 130
#define LOG_WORDS 3

static void check_log(struct gmem_region *region, uint64_t first, uint64_t second, uint64_t third)
{
	uint64_t bitmap[LOG_WORDS] = { ~(uint64_t)0, ~(uint64_t)0, ~(uint64_t)0 };

	OK(gmem_region_get_dirty_log(region, bitmap, LOG_WORDS));
	CHECK_EQ(bitmap[0], first);
	CHECK_EQ(bitmap[1], second);
	CHECK_EQ(bitmap[2], third);
}

static void store_in_page(struct site *s, uint64_t page)
{
	GUEST_STORES(&s->lab.guest, BASE + page * s->lab.page, (uint32_t)page + 1);
}

static void writes_are_logged(struct site *s)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_DIRTY_LOG);
	struct gmem_region *region = lab_add(&s->lab, s->backing, BASE, LOGGED_PAGES, &opts);
	uint64_t bitmap[LOG_WORDS];

	check_log(region, 0, 0, 0);
	/* The first touch of a page may count as a store, even if it is a load. */
	GUEST_LOADS(&s->lab.guest, BASE + s->lab.page, 0);
	OK(gmem_region_get_dirty_log(region, bitmap, LOG_WORDS));
	CHECK_EQ(bitmap[0] & ~(uint64_t)2, 0);

	store_in_page(s, 0);
	store_in_page(s, 63);
	store_in_page(s, 64);
	store_in_page(s, 129);
	GUEST_LOADS(&s->lab.guest, BASE + s->lab.page, 0);
	check_log(region, (uint64_t)1 << 63 | 1, 1, 2);
	check_log(region, 0, 0, 0);
	store_in_page(s, 63);
	check_log(region, (uint64_t)1 << 63, 0, 0);
	REFUSED(gmem_region_get_dirty_log(region, bitmap, LOG_WORDS - 1), -EINVAL);
}

TEST(what_the_guest_stores_is_logged_and_what_it_loads_is_not)
{
	for_each_way(WITH_PLAIN_SLOT, writes_are_logged);
}

static void the_log_begins_and_ends(struct site *s)
{
	struct gmem_region *region = lab_add(&s->lab, s->backing, BASE, LOGGED_PAGES, NULL);
	uint64_t bitmap[LOG_WORDS];

	store_in_page(s, 5);
	REFUSED(gmem_region_get_dirty_log(region, bitmap, LOG_WORDS), -ENOENT);
	OK(gmem_region_set_dirty_log(region, 1));
	check_log(region, 0, 0, 0);
	store_in_page(s, 5);
	store_in_page(s, 6);
	check_log(region, 0x60, 0, 0);
	store_in_page(s, 7);
	OK(gmem_region_set_dirty_log(region, 0));
	REFUSED(gmem_region_get_dirty_log(region, bitmap, LOG_WORDS), -ENOENT);
	store_in_page(s, 8);
	OK(gmem_region_set_dirty_log(region, 1));
	store_in_page(s, 9);
	check_log(region, 0x200, 0, 0);
	GUEST_LOADS(&s->lab.guest, BASE + 7 * s->lab.page, 8);
	REFUSED(gmem_region_set_dirty_log(region, 2), -EINVAL);
}

TEST(the_dirty_log_begins_and_ends_while_the_guest_stores)
{
	for_each_way(WITH_PLAIN_SLOT, the_log_begins_and_ends);
}

/* The memslots are new ones; what they log is not. */
static void the_log_stays_on(struct site *s)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_DIRTY_LOG);
	struct gmem_region *region = lab_add(&s->lab, s->backing, BASE, LOGGED_PAGES, &opts);
	struct gmem_region *upper = NULL;

	OK(gmem_region_move(region, BASE + 16 * MIB));
	OK(gmem_region_move(region, BASE));
	check_log(region, 0, 0, 0);
	store_in_page(s, 64);
	check_log(region, 0, 1, 0);

	OK(gmem_region_split(region, 64 * s->lab.page, &upper));
	store_in_page(s, 1);
	store_in_page(s, 65);
	store_in_page(s, 128);
	check_log(upper, 2, 1, ~(uint64_t)0);
	OK(gmem_region_set_dirty_log(upper, 0));
	store_in_page(s, 2);
	check_log(region, 6, ~(uint64_t)0, ~(uint64_t)0);
}

TEST(the_dirty_log_stays_on_across_moves_and_splits)
{
	for_each_way(WITH_PLAIN_SLOT, the_log_stays_on);
}

/* Nobody reads the log before a memslot goes, or before KVM refuses a change. */
static void the_log_outlives_memslots(struct site *s)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_DIRTY_LOG);
	struct gmem_region *region = lab_add(&s->lab, s->backing, BASE, LOGGED_PAGES, &opts);
	struct gmem_region *upper = NULL, *other = NULL, *never = NULL;
	GMEM_OPTS(gmem_region_opts, like_it, .plan = s->plan);
	uint64_t taken = BASE + 32 * MIB;
	struct gmem_change *change;
	void *page;

	check_log(region, 0, 0, 0);
	store_in_page(s, 2);
	OK(gmem_region_move(region, BASE + 16 * MIB));
	OK(gmem_region_move(region, BASE));
	check_log(region, 4, 0, 0);

	/* The VMM has a memslot where the second step would go. */
	page = mmap(NULL, s->lab.page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(page != MAP_FAILED);
	OK(gmem_vm_reserve_slots(s->lab.vm, OTHER_SLOT, 1));
	WORKS(raw_slot(s->lab.m.vm_fd, OTHER_SLOT, 0, taken, s->lab.page, page));
	store_in_page(s, 3);
	OK(gmem_change_new(s->lab.vm, &change));
	OK(gmem_change_remove(change, region));
	OK(gmem_change_add(change, taken, s->lab.page, &like_it, &never));
	REFUSED(gmem_change_apply(change), -EEXIST);
	gmem_change_free(change);
	WORKS(raw_slot(s->lab.m.vm_fd, OTHER_SLOT, 0, 0, 0, NULL));
	check_log(region, 8, 0, 0);

	store_in_page(s, 4);
	store_in_page(s, 70);
	OK(gmem_region_split(region, 64 * s->lab.page, &upper));
	check_log(region, 16, ~(uint64_t)0, ~(uint64_t)0);
	check_log(upper, 64, 0, ~(uint64_t)0);

	/* They trade places with each other's memslot in the way. */
	store_in_page(s, 5);
	other = lab_add(&s->lab, s->backing, BASE + 16 * MIB, 64, &opts);
	OK(gmem_change_new(s->lab.vm, &change));
	OK(gmem_change_move(change, region, BASE + 16 * MIB));
	OK(gmem_change_move(change, other, BASE));
	OK(gmem_change_apply(change));
	gmem_change_free(change);
	check_log(region, 32, ~(uint64_t)0, ~(uint64_t)0);
	munmap(page, s->lab.page);
}

TEST(what_nobody_read_of_the_log_outlives_memslots)
{
	for_each_way(WITH_PLAIN_SLOT, the_log_outlives_memslots);
}

/* ---- VMs whose VMM changed how they log ---- */

/* The kernel headers of older distributions lack these. */
#ifndef KVM_CAP_DIRTY_LOG_RING_ACQ_REL
#define KVM_CAP_DIRTY_LOG_RING_ACQ_REL 223
#endif
#ifndef KVM_DIRTY_LOG_INITIALLY_SET
#define KVM_DIRTY_LOG_INITIALLY_SET (1 << 1)
#endif

static void clear_by_hand(const struct site *s, uint64_t flags)
{
	struct kvm_enable_cap cap = {
		.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, .args = { KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | flags },
	};
	uint64_t offered = (uint64_t)kvm_cap(s->lab.m.vm_fd, (int)cap.cap);

	if ((offered & cap.args[0]) != cap.args[0])
		skip("this KVM has no manual protection with flags 0x%x", (unsigned)cap.args[0]);
	WORKS(ioctl(s->lab.m.vm_fd, KVM_ENABLE_CAP, &cap));
}

static void writes_are_logged_by_hand(struct site *s)
{
	clear_by_hand(s, 0);
	writes_are_logged(s);
}

static void the_log_begins_and_ends_by_hand(struct site *s)
{
	clear_by_hand(s, 0);
	the_log_begins_and_ends(s);
}

TEST(with_manual_protection_each_store_is_logged_once)
{
	for_each_way(WITH_PLAIN_SLOT, writes_are_logged_by_hand);
	for_each_way(WITH_PLAIN_SLOT, the_log_begins_and_ends_by_hand);
}

static void all_pages_are_dirty_at_first(struct site *s)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_DIRTY_LOG);
	struct gmem_region *region;

	clear_by_hand(s, KVM_DIRTY_LOG_INITIALLY_SET);
	region = lab_add(&s->lab, s->backing, BASE, LOGGED_PAGES, &opts);
	check_log(region, ~(uint64_t)0, ~(uint64_t)0, 3);
	check_log(region, 0, 0, 0);
	store_in_page(s, 100);
	check_log(region, 0, (uint64_t)1 << 36, 0);
	OK(gmem_region_set_dirty_log(region, 0));
	OK(gmem_region_set_dirty_log(region, 1));
	check_log(region, ~(uint64_t)0, ~(uint64_t)0, 3);
}

TEST(initially_set_makes_every_page_dirty_once)
{
	for_each_way(WITH_PLAIN_SLOT, all_pages_are_dirty_at_first);
}

/* A guest that stores in each page, beside somebody who copies what the log has */
#define BURSTS 60

struct storing {
	struct site *s;
	uint32_t first;
	bool is_over;
};

static void *store_in_each_page(void *data)
{
	struct storing *storing = data;

	for (uint32_t i = 0; i < LOGGED_PAGES; i++)
		GUEST_STORES(&storing->s->lab.guest,
			     BASE + i * 7 % LOGGED_PAGES * storing->s->lab.page, storing->first + i);
	__atomic_store_n(&storing->is_over, true, __ATOMIC_RELEASE);
	return NULL;
}

static void copy_dirty_pages(struct site *s, struct gmem_region *region, uint32_t *copies)
{
	const char *hva = gmem_region_hva(region);
	uint64_t bitmap[LOG_WORDS];

	OK(gmem_region_get_dirty_log(region, bitmap, LOG_WORDS));
	for (uint64_t i = 0; i < LOGGED_PAGES; i++)
		if (bitmap[i / 64] >> (i % 64) & 1)
			copies[i] = __atomic_load_n((const uint32_t *)(const void *)(hva + i * s->lab.page),
						    __ATOMIC_RELAXED);
}

static void check_burst(struct site *s, struct gmem_region *region, uint32_t burst, uint32_t *copies)
{
	struct storing storing = { .s = s, .first = burst * LOGGED_PAGES + 1 };
	const char *hva = gmem_region_hva(region);
	pthread_t thread;

	CHECK_EQ(pthread_create(&thread, NULL, store_in_each_page, &storing), 0);
	while (!__atomic_load_n(&storing.is_over, __ATOMIC_ACQUIRE))
		copy_dirty_pages(s, region, copies);
	pthread_join(thread, NULL);
	copy_dirty_pages(s, region, copies);
	for (uint64_t i = 0; i < LOGGED_PAGES; i++)
		CHECK_EQ(copies[i], *(const uint32_t *)(const void *)(hva + i * s->lab.page));
}

static void copies_are_complete(struct site *s)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_DIRTY_LOG);
	struct gmem_region *region = lab_add(&s->lab, s->backing, BASE, LOGGED_PAGES, &opts);
	uint32_t copies[LOGGED_PAGES] = { 0 };

	for (uint32_t i = 0; i < BURSTS; i++)
		check_burst(s, region, i, copies);
}

static void copies_are_complete_by_hand(struct site *s)
{
	clear_by_hand(s, 0);
	copies_are_complete(s);
}

TEST(no_store_is_missed_while_the_log_is_read)
{
	for_each_way(WITH_PLAIN_SLOT, copies_are_complete);
	for_each_way(WITH_PLAIN_SLOT, copies_are_complete_by_hand);
}

/* A VM that is made anew, because a ring comes before vCPUs; x86 has the one, arm64 the other. */
static void make_vm_with_ring(struct machine *m)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_DIRTY_LOG_RING_ACQ_REL, .args = { 65536 } };

	machine_new(m, DEFAULT_VM);
	if (kvm_cap(m->vm_fd, (int)cap.cap) < 65536)
		skip("this KVM has no dirty ring");
	WORKS(ioctl(m->vm_fd, KVM_ENABLE_CAP, &cap));
	gmem_caps_free(m->caps);
	OK(gmem_caps_new(m->vm_fd, NULL, &m->caps));
}

TEST(a_vm_with_a_dirty_ring_logs_and_says_where)
{
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_MAPPED, GMEM_BACKING_HOST },
		  .needs = GMEM_NEED_DIRTY_LOG);
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_DIRTY_LOG);
	struct gmem_region *region;
	struct gmem_finding finding;
	uint64_t bitmap[1] = { 5 };
	struct gmem_plan *plan;
	struct gmem_vm *vm;
	struct machine m;

	make_vm_with_ring(&m);
	GMEM_OPTS(gmem_vm_opts, vm_opts, .caps = m.caps);
	OK(gmem_caps_get(m.caps, GMEM_CAP_DIRTY_LOG, &finding));
	CHECK_EQ(finding.answer, GMEM_YES);
	CHECK_EQ(finding.value, GMEM_DIRTY_RING);
	OK(gmem_plan_new(m.caps, &request, &plan));
	OK(gmem_vm_new(m.vm_fd, &vm_opts, &vm));
	opts.plan = plan;
	OK(gmem_region_add(vm, BASE, 64 * page_size(), &opts, &region));
	REFUSED(gmem_region_get_dirty_log(region, bitmap, 1), -EOPNOTSUPP);
	CHECK(strstr(gmem_last_error(), "dirty rings"));
	CHECK_EQ(bitmap[0], 5);
	OK(gmem_region_set_dirty_log(region, 0));
	OK(gmem_region_set_dirty_log(region, 1));
	gmem_vm_free(vm);
	gmem_plan_free(plan);
	machine_free(&m);
}

/* ---- no log ---- */

static void there_is_no_log(struct site *s)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = s->plan, .flags = GMEM_REGION_DIRTY_LOG);
	struct gmem_region *region = put(s, 0), *other = NULL;
	uint64_t bitmap[1] = { 5 };

	REFUSED(gmem_region_set_dirty_log(region, 1), -EOPNOTSUPP);
	REFUSED(gmem_region_get_dirty_log(region, bitmap, 1), -EOPNOTSUPP);
	CHECK_EQ(bitmap[0], 5);
	REFUSED(gmem_region_add(s->lab.vm, place(s, 1), s->size, &opts, &other), -EOPNOTSUPP);
	check_is_at(s, region, place(s, 0), 0);
}

TEST(bound_files_have_no_dirty_log)
{
	for_each_way(WAY(GMEM_BACKING_SHARED) | WAY(GMEM_BACKING_PRIVATE), there_is_no_log);
}

/* ---- read-only ---- */

static void the_guest_only_reads(struct site *s)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_READONLY);
	struct gmem_region *region = lab_add(&s->lab, s->backing, BASE, REGION_PAGES, &opts);
	struct gmem_region *upper = NULL;
	struct guest_access access;

	host_marks(s, gmem_region_hva(region), 1);
	check_guest_finds(s, BASE, 1);
	access = guest_store(&s->lab.guest, BASE, 0xbad);
	if (access.outcome != GUEST_MMIO)
		FAIL("the guest's store: %s", guest_describe(&access));
	host_marks(s, gmem_region_hva(region), 2);
	check_guest_finds(s, BASE, 2);

	/* still so in new memslots */
	OK(gmem_region_move(region, place(s, 3)));
	OK(gmem_region_split(region, s->lab.page, &upper));
	check_guest_finds(s, place(s, 3), 2);
	access = guest_store(&s->lab.guest, gmem_region_gpa(upper), 0xbad);
	CHECK_EQ(access.outcome, GUEST_MMIO);
	CHECK_EQ(host_load(gmem_region_hva(upper)), 0);
}

TEST(a_guest_can_load_but_not_store_in_a_read_only_region)
{
	for_each_way(WITH_PLAIN_SLOT, the_guest_only_reads);
}

static void nothing_is_read_only(struct site *s)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = s->plan, .flags = GMEM_REGION_READONLY);
	struct gmem_region *region = NULL;

	REFUSED(gmem_region_add(s->lab.vm, BASE, s->size, &opts, &region), -EOPNOTSUPP);
	CHECK(!region);
	GUEST_GETS(&s->lab.guest, BASE, GUEST_MMIO);
}

TEST(bound_files_are_never_read_only)
{
	for_each_way(WAY(GMEM_BACKING_SHARED) | WAY(GMEM_BACKING_PRIVATE), nothing_is_read_only);
}

/* ---- congruent host addresses ---- */

static void addresses_are_alike(struct site *s)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_CONGRUENT, .align = 2 * MIB);

	for (uint64_t i = 0; i < 4; i++) {
		uint64_t gpa = BASE + i * 64 * MIB + i * s->lab.page;
		struct gmem_region *region = lab_add(&s->lab, s->backing, gpa, REGION_PAGES, &opts);

		CHECK_EQ(((uintptr_t)gmem_region_hva(region) - gpa) % (2 * MIB), 0);
		guest_marks(s, gpa, (uint32_t)i);
		check_is_at(s, region, gpa, (uint32_t)i);
	}
}

TEST(congruent_host_addresses_are_those_of_the_guest_modulo_2_mib)
{
	for_each_way(EVERY_WAY, addresses_are_alike);
}

/* ---- memslots ---- */

/* all numbers of the VM but the first three */
static void leave_three_slots(struct site *s)
{
	int slots = kvm_cap(s->lab.m.vm_fd, KVM_CAP_NR_MEMSLOTS);

	CHECK(slots > 3);
	OK(gmem_vm_reserve_slots(s->lab.vm, 3, (uint32_t)slots - 3));
}

static void slots_run_out(struct site *s)
{
	struct gmem_region *regions[3], *fourth = NULL, *upper = NULL;
	GMEM_OPTS(gmem_region_opts, opts, .plan = s->plan);
	struct gmem_change *change = new_change(s);

	leave_three_slots(s);
	for (unsigned int i = 0; i < 3; i++)
		regions[i] = put(s, i);
	REFUSED(gmem_region_add(s->lab.vm, place(s, 3), s->size, &opts, &fourth), -ENOSPC);
	REFUSED(gmem_region_split(regions[0], s->lab.page, &upper), -ENOSPC);
	OK(gmem_change_move(change, regions[0], place(s, 4)));
	plan_add(s, change, place(s, 3), &fourth);
	REFUSED(gmem_change_apply(change), -ENOSPC);
	check_sentence("step 2 of 2, add: ");
	CHECK(!fourth && !upper);
	for (unsigned int i = 0; i < 3; i++)
		check_is_at(s, regions[i], place(s, i), i);

	/* A step of the same change frees a memslot. */
	OK(gmem_change_remove(change, regions[2]));
	OK(gmem_change_apply(change));
	check_is_at(s, regions[0], place(s, 4), 0);
	guest_marks(s, place(s, 3), 3);
	check_is_at(s, fourth, place(s, 3), 3);

	/* A removal that is no part of a change frees a memslot, too. */
	OK(gmem_region_remove(regions[1]));
	OK(gmem_region_split(regions[0], s->lab.page, &upper));
	check_guest_finds(s, place(s, 4), 0);
	gmem_change_free(change);
}

TEST(memslots_that_ran_out_can_be_had_again)
{
	for_each_way(EVERY_WAY, slots_run_out);
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
