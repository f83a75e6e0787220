/* SPDX-License-Identifier: MIT */
/* region_ops: regions are moved, rebound and split; all of it against a naive model */
#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "unit.h"

#define NO_REGION	UNTOUCHED(struct gmem_region)
#define MAPPABLE	(GMEM_CREATE_MMAP | GMEM_CREATE_INIT_SHARED)

/* ---- move ---- */

static void move_keeps_everything_but_the_address(void **state)
{
	static const struct unit_way cases[] = {
		{ "6.1", GMEM_BACKING_HOST },
		{ "6.18", GMEM_BACKING_MAPPED },
		{ "6.18", GMEM_BACKING_SHARED },
		{ "7.3-swp-t1", GMEM_BACKING_PRIVATE },
		{ "arm64-7.3-64k", GMEM_BACKING_SHARED },
	};
	struct gmem_region *region, *found;
	struct gmem_plan *plan;
	struct unit unit;
	uint32_t slot;
	size_t i;
	void *hva;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		unit_begin_vm(&unit, cases[i].kernel);
		plan = unit_plan(&unit, cases[i].backing);
		unit_region(&unit, 0, 1, plan);
		region = unit_region(&unit, 4, 4, plan);
		hva = gmem_region_hva(region);
		slot = gmem_region_slot(region);
		strcpy(hva, "carried along");

		/* elsewhere, then onto part of where it was */
		assert_ok(gmem_region_move(region, PAGES(&unit, 40)));
		assert_ok(gmem_region_move(region, PAGES(&unit, 42)));
		assert_int_equal(gmem_region_gpa(region), PAGES(&unit, 42));
		assert_int_equal(gmem_region_slot(region), slot);
		assert_ptr_equal(gmem_region_hva(region), hva);
		assert_string_equal(hva, "carried along");
		unit_check_region(&unit, region);
		assert_ok(gmem_vm_find_hva(unit.vm, hva, &found, NULL));
		assert_ptr_equal(found, region);
		/* its old place is free */
		unit_region(&unit, 4, 4, plan);
		gmem_plan_free(plan);
		unit_end(&unit);
	}
}

static void move_rejects_bad_addresses(void **state)
{
	struct gmem_region *region;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	region = unit_region(&unit, 4, 4, NULL);
	unit_region(&unit, 16, 4, NULL);
	const uint64_t end = (uint64_t)1 << fake.address_bits;

	assert_refused(-EINVAL, "0x1 ", gmem_region_move(region, 1));
	assert_refused(-EINVAL, "multiple", gmem_region_move(region, unit.page / 2));
	assert_refused(-EINVAL, "address", gmem_region_move(region, end));
	assert_refused(-EINVAL, "address", gmem_region_move(region, end - unit.page));
	assert_refused(-EINVAL, "", gmem_region_move(region, 0 - unit.page));
	assert_refused(-EEXIST, "0x10000", gmem_region_move(region, PAGES(&unit, 13)));
	assert_refused(-EEXIST, "0x10000", gmem_region_move(region, PAGES(&unit, 19)));
	unit_check_region(&unit, region);
	assert_ok(gmem_region_move(region, end - PAGES(&unit, 4)));
	unit_end(&unit);
}

static void move_is_undone_if_the_kernel_refuses(void **state)
{
	struct gmem_region *region;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	region = unit_region(&unit, 4, 4, NULL);

	fake_fail_next(FAKE_DELETE_SLOT, -ENOMEM);
	assert_refused(-ENOMEM, "memslot 0", gmem_region_move(region, 0));
	fake_fail_kind(FAKE_SET_SLOT2, 0, 1, -ENOMEM);
	assert_refused(-ENOMEM, "memslot 0", gmem_region_move(region, 0));
	assert_int_equal(gmem_region_gpa(region), PAGES(&unit, 4));
	unit_check_region(&unit, region);

	/* something of the caller's own in the way: only the kernel knows */
	assert_ok(fake_add_slot(unit.vm_fd, 99, PAGES(&unit, 40), unit.page));
	assert_refused(-EEXIST, "0x25000", gmem_region_move(region, PAGES(&unit, 37)));
	unit_check_region(&unit, region);
	assert_ok(gmem_region_move(region, 0));
	unit_end(&unit);
}

static void region_that_lost_its_slot_can_only_be_removed(void **state)
{
	struct gmem_region *region;
	struct fake_slot slot;
	struct unit unit;
	void *hva;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	region = unit_region(&unit, 4, 4, NULL);
	hva = gmem_region_hva(region);
	strcpy(hva, "not lost");
	fake_fail_kind(FAKE_SET_SLOT2, 0, 2, -ENOMEM);
	assert_int_equal(gmem_region_move(region, 0), -ENOTRECOVERABLE);
	assert_non_null(strstr(gmem_last_error(), "memslot 0"));
	assert_false(fake_get_slot(unit.vm_fd, 0, &slot));
	assert_int_equal(gmem_region_gpa(region), PAGES(&unit, 4));
	assert_ptr_equal(gmem_region_hva(region), hva);
	assert_string_equal(hva, "not lost");

	assert_refused(-ENOTRECOVERABLE, "", gmem_region_move(region, 0));
	assert_refused(-ENOTRECOVERABLE, "",
		       gmem_region_rebind(region, gmem_region_file(region, NULL), 0));
	assert_ok(gmem_region_remove(region));
	assert_int_equal(fake_open_mappings(), 0);
	region = unit_region(&unit, 4, 4, NULL);
	assert_int_equal(gmem_region_slot(region), 0);

	/* freeing the VM handle removes such a region, too */
	fake_fail_kind(FAKE_SET_SLOT2, 0, 2, -ENOMEM);
	assert_int_equal(gmem_region_move(region, 0), -ENOTRECOVERABLE);
	unit_end(&unit);
}

/* ---- rebind ---- */

static void rebind_puts_other_contents_behind_a_region(void **state)
{
	static const struct {
		const char *kernel;
		uint32_t backing;
		uint64_t flags;
	} cases[] = {
		{ "6.18", GMEM_BACKING_SHARED, 3 },
		{ "6.18", GMEM_BACKING_MAPPED, 3 },
		{ "7.2", GMEM_BACKING_SHARED, 3 },
		{ "7.3-swp-t1", GMEM_BACKING_PRIVATE, 0 },
		{ "arm64-7.3-16k", GMEM_BACKING_SHARED, 3 },
	};
	struct gmem_region *region, *found;
	struct gmem_file *file;
	struct unit unit;
	uint64_t offset;
	void *old_hva;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		unit_begin_vm(&unit, cases[i].kernel);
		region = unit_region_backed(&unit, 4, 2, cases[i].backing);
		assert_ok(gmem_file_new_raw(unit.vm_fd, PAGES(&unit, 8), cases[i].flags, &file));

		old_hva = gmem_region_hva(region);
		assert_ok(gmem_region_rebind(region, file, PAGES(&unit, 3)));
		assert_ptr_equal(gmem_region_file(region, &offset), file);
		assert_int_equal(offset, PAGES(&unit, 3));
		assert_int_equal(gmem_region_gpa(region), PAGES(&unit, 4));
		assert_int_equal(gmem_region_slot(region), 0);
		unit_check_region(&unit, region);
		assert_ok(gmem_vm_find_hva(unit.vm, gmem_region_hva(region), &found, NULL));
		assert_ptr_equal(found, region);
		if (gmem_region_hva(region) != old_hva)
			assert_int_equal(gmem_vm_find_hva(unit.vm, old_hva, &found, NULL),
					 -ENOENT);
		/* the file made for the region went with its contents */
		assert_int_equal(fake_open_fds(), 3);
		assert_int_equal(fake_open_mappings(), 1);

		/* the region keeps the new one alive, and may slide within it */
		gmem_file_free(file);
		assert_ok(gmem_region_rebind(region, gmem_region_file(region, NULL),
					     PAGES(&unit, 4)));
		unit_check_region(&unit, region);
		assert_ok(gmem_region_rebind(region, gmem_region_file(region, NULL),
					     PAGES(&unit, 4)));
		unit_check_region(&unit, region);
		unit_end(&unit);
	}
}

static void rebind_rejects_what_does_not_fit(void **state)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = 0);
	struct gmem_region *region, *hosted, *placed, *neighbour;
	struct gmem_file *file, *bare, *foreign;
	struct gmem_plan *host;
	struct unit unit;
	int other;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	host = unit_plan(&unit, GMEM_BACKING_HOST);
	other = fake_new_vm();
	file = unit_file(&unit, 8);
	assert_ok(gmem_file_new_raw(unit.vm_fd, PAGES(&unit, 8), 0, &bare));
	assert_ok(gmem_file_new_raw(other, PAGES(&unit, 8), MAPPABLE, &foreign));
	region = unit_region(&unit, 0, 2, NULL);
	hosted = unit_region(&unit, 2, 2, host);
	opts.file = file;
	assert_ok(gmem_region_add(unit.vm, PAGES(&unit, 8), PAGES(&unit, 2), &opts,
				  &neighbour));
	opts.file = NULL;
	opts.flags = GMEM_REGION_HVA;
	opts.hva = unit_free_address(&unit, 2);
	assert_ok(gmem_region_add(unit.vm, PAGES(&unit, 4), PAGES(&unit, 2), &opts, &placed));

	assert_refused(-EINVAL, "0x0", gmem_region_rebind(region, bare, 0));
	assert_refused(-EINVAL, "multiple", gmem_region_rebind(region, file, 1));
	assert_refused(-EINVAL, "the end of the file",
		       gmem_region_rebind(region, file, PAGES(&unit, 7)));
	assert_refused(-EINVAL, "", gmem_region_rebind(region, file, 0 - unit.page));
	assert_refused(-EEXIST, "0x", gmem_region_rebind(region, file, unit.page));
	assert_refused(-EXDEV, "another VM", gmem_region_rebind(region, foreign, 0));
	assert_refused(-EOPNOTSUPP, "host", gmem_region_rebind(hosted, file, 0));
	assert_refused(-EOPNOTSUPP, "host address",
		       gmem_region_rebind(placed, file, PAGES(&unit, 4)));
	unit_check_region(&unit, region);
	assert_ok(gmem_region_rebind(region, file, PAGES(&unit, 2)));
	gmem_file_free(file);
	gmem_file_free(bare);
	gmem_file_free(foreign);
	gmem_plan_free(host);
	fake_close(other);
	unit_end(&unit);
}

static void rebind_is_undone_if_the_kernel_refuses(void **state)
{
	struct gmem_region *region, *found;
	struct gmem_file *file, *old;
	struct unit unit;
	void *hva;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	file = unit_file(&unit, 8);
	region = unit_region(&unit, 4, 2, NULL);
	old = gmem_region_file(region, NULL);
	hva = gmem_region_hva(region);
	fake_fail_next(FAKE_DELETE_SLOT, -ENOMEM);
	assert_refused(-ENOMEM, "memslot 0", gmem_region_rebind(region, file, 0));
	fake_fail_kind(FAKE_SET_SLOT2, 0, 1, -ENOMEM);
	assert_refused(-ENOMEM, "memslot 0", gmem_region_rebind(region, file, 0));
	fake_fail_next(FAKE_MMAP, -ENOMEM);
	assert_refused(-ENOMEM, "", gmem_region_rebind(region, file, 0));
	assert_ptr_equal(gmem_region_file(region, NULL), old);
	assert_ptr_equal(gmem_region_hva(region), hva);
	assert_ok(gmem_vm_find_hva(unit.vm, hva, &found, NULL));
	unit_check_region(&unit, region);

	fake_fail_kind(FAKE_SET_SLOT2, 0, 2, -ENOMEM);
	assert_int_equal(gmem_region_rebind(region, file, 0), -ENOTRECOVERABLE);
	assert_ok(gmem_region_remove(region));
	/* the range that was never bound is free */
	GMEM_OPTS(gmem_region_opts, opts, .file = file);
	assert_ok(gmem_region_add(unit.vm, 0, PAGES(&unit, 8), &opts, &region));
	gmem_file_free(file);
	unit_end(&unit);
}

/* ---- split ---- */

static const struct unit_way splittable[] = {
	{ "6.1", GMEM_BACKING_HOST },
	{ "6.18", GMEM_BACKING_MAPPED },
	{ "6.18", GMEM_BACKING_SHARED },
	{ "7.2", GMEM_BACKING_SHARED },
	{ "7.3-swp-t1", GMEM_BACKING_PRIVATE },
	{ "arm64-7.3-64k", GMEM_BACKING_SHARED },
};

struct halves {
	struct unit unit;
	struct gmem_file *file;
	struct gmem_region *lower;
	struct gmem_region *upper;
};

/* 8 pages at page 16 of a region that has them from offset 2 of a file, cut at 3 */
static void halves_begin(struct halves *h, size_t row)
{
	struct unit *unit = &h->unit;
	struct gmem_plan *plan;
	char *hva;
	int i;

	memset(h, 0, sizeof(*h));
	unit_begin_vm(unit, splittable[row].kernel);
	plan = unit_plan(unit, splittable[row].backing);
	GMEM_OPTS(gmem_region_opts, opts, .plan = plan);
	if (splittable[row].backing != GMEM_BACKING_HOST) {
		assert_ok(gmem_file_new(unit->vm_fd, PAGES(unit, 16), plan, &h->file));
		opts.file = h->file;
		opts.file_offset = PAGES(unit, 2);
	}
	assert_ok(gmem_region_add(unit->vm, PAGES(unit, 16), PAGES(unit, 8), &opts, &h->lower));
	gmem_plan_free(plan);
	hva = gmem_region_hva(h->lower);
	for (i = 0; i < 8; i++)
		hva[PAGES(unit, i)] = (char)('0' + i);
	assert_ok(gmem_region_split(h->lower, PAGES(unit, 3), &h->upper));
}

static void halves_end(struct halves *h)
{
	gmem_vm_free(h->unit.vm);
	h->unit.vm = NULL;
	gmem_file_free(h->file);
	unit_end(&h->unit);
}

/* The region has pages [first, first + count) of what was one. */
static void check_half(struct halves *h, struct gmem_region *region, uint64_t gpa_page,
		       int first, int count)
{
	const struct unit *unit = &h->unit;
	char *hva = gmem_region_hva(region);
	bool is_map = gmem_region_backing(region) == GMEM_BACKING_MAPPED ||
		      gmem_region_backing(region) == GMEM_BACKING_SHARED;
	struct gmem_file *file = h->file;
	struct gmem_region *found;
	struct fake_slot slot;
	uint64_t offset = 77;
	int i;

	assert_int_equal(gmem_region_gpa(region), PAGES(unit, gpa_page));
	assert_int_equal(gmem_region_size(region), PAGES(unit, count));
	assert_ptr_equal(gmem_region_file(region, &offset), file);
	if (file)
		assert_int_equal(offset, PAGES(unit, 2 + first));
	for (i = 0; i < count; i++) {
		assert_int_equal(hva[PAGES(unit, i)], '0' + first + i);
		assert_ok(gmem_vm_find_hva(unit->vm, hva + PAGES(unit, i) + 5, &found, &offset));
		assert_ptr_equal(found, region);
		assert_int_equal(offset, PAGES(unit, i) + 5);
		if (!is_map)
			continue;
		assert_ok(gmem_file_find_hva(file, hva + PAGES(unit, i) + 5, &offset));
		assert_int_equal(offset, PAGES(unit, 2 + first + i) + 5);
	}

	assert_true(fake_get_slot(unit->vm_fd, gmem_region_slot(region), &slot));
	assert_int_equal(slot.gpa, PAGES(unit, gpa_page));
	assert_int_equal(slot.size, PAGES(unit, count));
	assert_int_equal(slot.hva, (uintptr_t)hva);
	if (slot.file)
		assert_int_equal(slot.offset, PAGES(unit, 2 + first));
}

static void split_leaves_contents_addresses_and_file(void **state)
{
	struct gmem_region *last;
	struct halves h;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(splittable); i++) {
		halves_begin(&h, i);
		check_half(&h, h.lower, 16, 0, 3);
		check_half(&h, h.upper, 19, 3, 5);
		assert_ptr_equal(gmem_region_hva(h.upper),
				 (char *)gmem_region_hva(h.lower) + PAGES(&h.unit, 3));
		assert_int_equal(gmem_region_backing(h.upper), splittable[i].backing);
		assert_int_equal(gmem_region_slot(h.lower), 0);
		assert_int_equal(gmem_region_slot(h.upper), 1);

		/* an upper half is split again */
		assert_ok(gmem_region_split(h.upper, PAGES(&h.unit, 4), &last));
		check_half(&h, h.lower, 16, 0, 3);
		check_half(&h, h.upper, 19, 3, 4);
		check_half(&h, last, 23, 7, 1);
		assert_ok(gmem_region_remove(h.upper));
		check_half(&h, h.lower, 16, 0, 3);
		check_half(&h, last, 23, 7, 1);
		halves_end(&h);
	}
}

static void halves_live_and_die_on_their_own(void **state)
{
	struct gmem_region *stays, *goes;
	struct halves h;
	unsigned maps;
	int lower_goes;
	size_t i;

	(void)state;
	for (i = 0; i < 2 * ARRAY_SIZE(splittable); i++) {
		lower_goes = i % 2;
		halves_begin(&h, i / 2);
		stays = lower_goes ? h.upper : h.lower;
		goes = lower_goes ? h.lower : h.upper;
		maps = fake_open_mappings();
		assert_ok(gmem_region_remove(goes));
		assert_int_equal(fake_open_mappings(), maps);
		check_half(&h, stays, lower_goes ? 19 : 16, lower_goes ? 3 : 0, lower_goes ? 5 : 3);
		assert_int_equal(fake_slot_count(h.unit.vm_fd), 1);

		/* the region keeps the file alive */
		gmem_file_free(h.file);
		h.file = NULL;
		((char *)gmem_region_hva(stays))[0] = 1;
		assert_ok(gmem_region_remove(stays));
		assert_int_equal(fake_open_mappings(), maps - 1);
		assert_int_equal(fake_open_fds(), 2);
		halves_end(&h);
	}
}

static void halves_move_and_rebind_on_their_own(void **state)
{
	struct unit *unit;
	struct halves h;
	uint64_t offset;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(splittable); i++) {
		halves_begin(&h, i);
		unit = &h.unit;
		assert_ok(gmem_region_move(h.upper, PAGES(unit, 40)));
		check_half(&h, h.lower, 16, 0, 3);
		check_half(&h, h.upper, 40, 3, 5);
		assert_ok(gmem_region_move(h.lower, PAGES(unit, 18)));
		check_half(&h, h.lower, 18, 0, 3);
		check_half(&h, h.upper, 40, 3, 5);
		if (!h.file) {
			halves_end(&h);
			continue;
		}

		/* one slides out of the other's way in the file, and back */
		if (splittable[i].backing != GMEM_BACKING_MAPPED)
			assert_refused(-EEXIST, "bound already",
				       gmem_region_rebind(h.upper, h.file, PAGES(unit, 4)));
		assert_ok(gmem_region_rebind(h.upper, h.file, PAGES(unit, 11)));
		assert_ptr_equal(gmem_region_file(h.upper, &offset), h.file);
		assert_int_equal(offset, PAGES(unit, 11));
		check_half(&h, h.lower, 18, 0, 3);
		assert_ok(gmem_region_rebind(h.lower, h.file, PAGES(unit, 5)));
		assert_ok(gmem_region_rebind(h.upper, h.file, 0));
		assert_int_equal(gmem_region_slot(h.upper), 1);
		((char *)gmem_region_hva(h.upper))[PAGES(unit, 5) - 1] = 1;
		((char *)gmem_region_hva(h.lower))[PAGES(unit, 3) - 1] = 1;
		assert_ok(gmem_region_remove(h.lower));
		assert_ok(gmem_region_remove(h.upper));
		assert_int_equal(fake_open_mappings(), 0);
		halves_end(&h);
	}
}

static void split_rejects_what_leaves_no_two_halves(void **state)
{
	struct gmem_region *region, *upper = NO_REGION;
	struct unit unit;
	unsigned calls;

	(void)state;
	unit_begin_vm(&unit, "arm64-7.3-16k");
	region = unit_region(&unit, 4, 2, NULL);
	calls = fake_count_all();
	assert_refused(-EINVAL, "inside", gmem_region_split(region, 0, &upper));
	assert_refused(-EINVAL, "inside", gmem_region_split(region, PAGES(&unit, 2), &upper));
	assert_refused(-EINVAL, "inside", gmem_region_split(region, 0 - unit.page, &upper));
	assert_refused(-EINVAL, "multiple", gmem_region_split(region, 1, &upper));
	assert_refused(-EINVAL, "multiple", gmem_region_split(region, unit.page / 2, &upper));
	assert_refused(-EINVAL, "NULL", gmem_region_split(region, unit.page, NULL));
	assert_refused(-EINVAL, "NULL", gmem_region_split(NULL, unit.page, &upper));
	assert_int_equal(fake_count_all(), calls);
	assert_ptr_equal(upper, NO_REGION);
	unit_end(&unit);
}

/* What is private is recorded in one place for both, which the last of them frees. */
static void upper_half_keeps_its_states_without_the_lower(void **state)
{
	const size_t row = 4;
	struct gmem_state_range range;
	struct halves h;

	(void)state;
	assert_int_equal(splittable[row].backing, GMEM_BACKING_PRIVATE);
	halves_begin(&h, row);
	assert_ok(gmem_vm_convert(h.unit.vm, PAGES(&h.unit, 20), PAGES(&h.unit, 1), GMEM_STATE_PRIVATE, NULL,
				  NULL));
	assert_ok(gmem_region_remove(h.lower));
	assert_int_equal(gmem_vm_state(h.unit.vm, PAGES(&h.unit, 20), PAGES(&h.unit, 1), &range, 1), 1);
	assert_int_equal(range.state, GMEM_STATE_PRIVATE);
	assert_ok(gmem_vm_convert(h.unit.vm, PAGES(&h.unit, 19), PAGES(&h.unit, 5), GMEM_STATE_SHARED, NULL,
				  NULL));
	assert_ok(gmem_region_remove(h.upper));
	halves_end(&h);
}

static void split_takes_a_slot_number(void **state)
{
	struct gmem_region *region, *upper = NO_REGION;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	region = unit_region(&unit, 4, 2, NULL);
	assert_ok(gmem_vm_reserve_slots(unit.vm, 1, (uint32_t)fake.vm.memslots - 1));
	assert_refused(-ENOSPC, "memslots", gmem_region_split(region, unit.page, &upper));
	assert_ptr_equal(upper, NO_REGION);
	unit_end(&unit);
}

/* The second half is refused, or both; what was one is one again, or has no memslot. */
static void split_is_undone_if_the_kernel_refuses(void **state)
{
	struct gmem_region *region, *upper = NO_REGION, *found;
	struct unit unit;
	unsigned skip;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	region = unit_region(&unit, 4, 4, NULL);
	strcpy(gmem_region_hva(region), "whole");
	fake_fail_next(FAKE_DELETE_SLOT, -ENOMEM);
	assert_refused(-ENOMEM, "memslot 0", gmem_region_split(region, unit.page, &upper));
	for (skip = 0; skip < 2; skip++) {
		fake_fail_kind(FAKE_SET_SLOT2, skip, 1, -ENOMEM);
		assert_refused(-ENOMEM, skip ? "memslot 1" : "memslot 0",
			       gmem_region_split(region, unit.page, &upper));
		assert_ok(gmem_vm_find_hva(unit.vm, (char *)gmem_region_hva(region) +
					   PAGES(&unit, 3), &found, NULL));
		assert_ptr_equal(found, region);
	}

	fake_fail_kind(FAKE_SET_SLOT2, 1, 2, -ENOMEM);
	assert_int_equal(gmem_region_split(region, unit.page, &upper), -ENOTRECOVERABLE);
	assert_int_equal(gmem_region_size(region), PAGES(&unit, 4));
	assert_string_equal(gmem_region_hva(region), "whole");
	assert_refused(-ENOTRECOVERABLE, "", gmem_region_split(region, unit.page, &upper));
	assert_ptr_equal(upper, NO_REGION);
	assert_ok(gmem_region_remove(region));
	assert_int_equal(fake_open_mappings(), 0);
	unit_end(&unit);
}

/* The caller's memory is not cut by us, and never unmapped. */
static void split_of_callers_memory_leaves_it_alone(void **state)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_HVA);
	struct gmem_region *region, *upper, *found = NO_REGION;
	struct gmem_plan *host;
	struct unit unit;
	unsigned calls;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	host = unit_plan(&unit, GMEM_BACKING_HOST);
	opts.plan = host;
	opts.hva = unit_memory(&unit, 4);
	assert_ok(gmem_region_add(unit.vm, 0, PAGES(&unit, 4), &opts, &region));
	calls = fake_count(FAKE_MUNMAP);
	assert_ok(gmem_region_split(region, unit.page, &upper));
	assert_ptr_equal(gmem_region_hva(upper), (char *)opts.hva + unit.page);
	assert_int_equal(gmem_vm_find_hva(unit.vm, opts.hva, &found, NULL), -ENOENT);
	assert_ok(gmem_region_remove(region));
	assert_ok(gmem_region_remove(upper));
	assert_int_equal(fake_count(FAKE_MUNMAP), calls);
	memset(opts.hva, 1, PAGES(&unit, 4));
	unit_memory_free(opts.hva);
	gmem_plan_free(host);
	unit_end(&unit);
}

/* ---- threads ---- */

#define THREADS		4
#define THREAD_ROUNDS	300

struct worker {
	const struct unit *unit;
	struct gmem_file *file;
	struct gmem_region *region;
	uint64_t lane;		/* each thread has gpas and file pages of its own */
	int failures;
};

static void work_once(struct worker *w, uint64_t gpa)
{
	GMEM_OPTS(gmem_region_opts, opts, .file = w->file,
		  .file_offset = PAGES(w->unit, 4 * w->lane));
	struct gmem_region *region, *found = NULL;
	uint64_t offset;
	void *hva;

	if (gmem_region_add(w->unit->vm, gpa, w->unit->page, &opts, &region)) {
		w->failures++;
		return;
	}
	hva = gmem_region_hva(region);
	w->failures += gmem_vm_find_hva(w->unit->vm, hva, &found, NULL) || found != region;
	w->failures += gmem_region_move(region, gpa + w->unit->page) != 0;
	w->failures += gmem_region_rebind(region, w->file,
					  PAGES(w->unit, 4 * w->lane + 1)) != 0;
	w->failures += gmem_region_remove(region) != 0;

	w->failures += gmem_file_map(w->file, 0, PAGES(w->unit, 4), NULL, &hva) != 0;
	w->failures += gmem_file_find_hva(w->file, hva, &offset) || offset != 0;
	w->failures += gmem_file_unmap(w->file, unit_at(hva, w->unit->page), w->unit->page) != 0;
	w->failures += gmem_region_add(w->unit->vm, 1, 1, NULL, &region) != -EINVAL;
	w->failures += strstr(gmem_last_error(), "0x1") == NULL;
}

static void *work(void *data)
{
	struct worker *w = data;
	int i;

	for (i = 0; i < THREAD_ROUNDS; i++)
		work_once(w, PAGES(w->unit, 8 * w->lane + (uint64_t)(i % 2)));
	return NULL;
}

static void threads_share_a_vm_and_a_file(void **state)
{
	struct worker workers[THREADS];
	pthread_t threads[THREADS];
	struct gmem_file *file;
	struct unit unit;
	uint64_t i;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	file = unit_file(&unit, 4 * THREADS);
	for (i = 0; i < THREADS; i++) {
		workers[i] = (struct worker){ .unit = &unit, .file = file, .lane = i };
		assert_int_equal(pthread_create(&threads[i], NULL, work, &workers[i]), 0);
	}
	for (i = 0; i < THREADS; i++) {
		pthread_join(threads[i], NULL);
		assert_int_equal(workers[i].failures, 0);
	}
	assert_int_equal(fake_slot_count(unit.vm_fd), 0);
	gmem_file_free(file);
	unit_end(&unit);
}

static void *watch(void *data)
{
	struct worker *w = data;
	struct gmem_region *region = NULL;
	uint64_t gpa;
	int i;

	w->failures += gmem_vm_find_hva(w->unit->vm, gmem_region_hva(w->region), &region,
					NULL) || region != w->region;
	for (i = 0; i < 20 * THREAD_ROUNDS; i++) {
		gpa = gmem_region_gpa(w->region);
		w->failures += gpa != 0 && gpa != PAGES(w->unit, 8);
	}
	return NULL;
}

/* A reader sees the old or the new address. */
static void region_may_be_looked_at_while_it_moves(void **state)
{
	struct worker worker = { .failures = 0 };
	pthread_t thread;
	struct unit unit;
	int i;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	worker.unit = &unit;
	worker.region = unit_region(&unit, 0, 1, NULL);
	assert_int_equal(pthread_create(&thread, NULL, watch, &worker), 0);
	for (i = 0; i < THREAD_ROUNDS; i++)
		assert_ok(gmem_region_move(worker.region, i % 2 ? 0 : PAGES(&unit, 8)));
	pthread_join(thread, NULL);
	assert_int_equal(worker.failures, 0);
	unit_end(&unit);
}

/* ---- all of it, against a naive model ---- */

#define MODEL_PAGES	128
#define MODEL_REGIONS	24
#define MODEL_ROUNDS	6000

struct model {
	struct unit unit;
	struct gmem_file *file;
	struct gmem_region *regions[MODEL_REGIONS];
	uint64_t gpa[MODEL_REGIONS];
	uint64_t offset[MODEL_REGIONS];
	uint64_t pages[MODEL_REGIONS];
	uint32_t seed;
};

/* Always the same numbers: a failure must come back. */
static uint64_t pick(struct model *m, uint32_t below)
{
	m->seed = m->seed * 1664525 + 1013904223;
	return (m->seed >> 8) % below;
}

static bool ranges_meet(uint64_t a, uint64_t a_size, uint64_t b, uint64_t b_size)
{
	return a < b + b_size && b < a + a_size;
}

/* Would the range overlap any region but @except, by gpa or in the file? */
static bool is_taken(const struct model *m, const uint64_t *starts, uint64_t start,
		     uint64_t pages, size_t except)
{
	size_t i;

	for (i = 0; i < MODEL_REGIONS; i++)
		if (i != except && m->regions[i] &&
		    ranges_meet(starts[i], m->pages[i], start, pages))
			return true;
	return false;
}

static void model_add(struct model *m, size_t i)
{
	uint64_t gpa = pick(m, MODEL_PAGES), offset = pick(m, MODEL_PAGES - 8);
	uint64_t pages = 1 + pick(m, 8);
	bool taken = is_taken(m, m->gpa, gpa, pages, i) || is_taken(m, m->offset, offset, pages, i);
	GMEM_OPTS(gmem_region_opts, opts, .file = m->file,
		  .file_offset = PAGES(&m->unit, offset));
	int err;

	err = gmem_region_add(m->unit.vm, PAGES(&m->unit, gpa), PAGES(&m->unit, pages), &opts,
			      &m->regions[i]);
	assert_int_equal(err, taken ? -EEXIST : 0);
	m->gpa[i] = gpa;
	m->offset[i] = offset;
	m->pages[i] = pages;
}

static void model_move(struct model *m, size_t i)
{
	uint64_t gpa = pick(m, MODEL_PAGES);
	bool taken = is_taken(m, m->gpa, gpa, m->pages[i], i);

	assert_int_equal(gmem_region_move(m->regions[i], PAGES(&m->unit, gpa)),
			 taken ? -EEXIST : 0);
	if (!taken)
		m->gpa[i] = gpa;
}

static void model_rebind(struct model *m, size_t i)
{
	uint64_t offset = pick(m, MODEL_PAGES - 8);
	bool taken = is_taken(m, m->offset, offset, m->pages[i], i);

	assert_int_equal(gmem_region_rebind(m->regions[i], m->file, PAGES(&m->unit, offset)),
			 taken ? -EEXIST : 0);
	if (!taken)
		m->offset[i] = offset;
}

static void model_step(struct model *m)
{
	size_t i = pick(m, MODEL_REGIONS);
	uint64_t what = pick(m, 4);

	if (!m->regions[i])
		model_add(m, i);
	else if (what == 0)
		model_rebind(m, i);
	else if (what == 1)
		model_move(m, i);
	else if (what == 2) {
		assert_ok(gmem_region_remove(m->regions[i]));
		m->regions[i] = NULL;
	}
}

static void model_check(struct model *m)
{
	unsigned count = 0;
	size_t i;

	for (i = 0; i < MODEL_REGIONS; i++) {
		if (!m->regions[i])
			continue;
		count++;
		assert_int_equal(gmem_region_gpa(m->regions[i]), PAGES(&m->unit, m->gpa[i]));
		unit_check_region(&m->unit, m->regions[i]);
	}
	assert_int_equal(fake_slot_count(m->unit.vm_fd), count);
	assert_int_equal(fake_open_mappings(), count);
}

static void regions_agree_with_a_naive_model(void **state)
{
	struct model m = { .seed = 20260101 };
	int i;

	(void)state;
	unit_begin_vm(&m.unit, "6.18");
	m.file = unit_file(&m.unit, MODEL_PAGES);
	for (i = 0; i < MODEL_ROUNDS; i++) {
		model_step(&m);
		model_check(&m);
	}
	gmem_file_free(m.file);
	unit_end(&m.unit);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(move_keeps_everything_but_the_address),
	cmocka_unit_test(move_rejects_bad_addresses),
	cmocka_unit_test(move_is_undone_if_the_kernel_refuses),
	cmocka_unit_test(region_that_lost_its_slot_can_only_be_removed),
	cmocka_unit_test(rebind_puts_other_contents_behind_a_region),
	cmocka_unit_test(rebind_rejects_what_does_not_fit),
	cmocka_unit_test(rebind_is_undone_if_the_kernel_refuses),
	cmocka_unit_test(split_leaves_contents_addresses_and_file),
	cmocka_unit_test(halves_live_and_die_on_their_own),
	cmocka_unit_test(halves_move_and_rebind_on_their_own),
	cmocka_unit_test(split_rejects_what_leaves_no_two_halves),
	cmocka_unit_test(upper_half_keeps_its_states_without_the_lower),
	cmocka_unit_test(split_takes_a_slot_number),
	cmocka_unit_test(split_is_undone_if_the_kernel_refuses),
	cmocka_unit_test(split_of_callers_memory_leaves_it_alone),
	cmocka_unit_test(threads_share_a_vm_and_a_file),
	cmocka_unit_test(region_may_be_looked_at_while_it_moves),
	cmocka_unit_test(regions_agree_with_a_naive_model),
};

UNIT_MAIN(tests)
