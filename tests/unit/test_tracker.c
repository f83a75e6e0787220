/* SPDX-License-Identifier: MIT */
/* tracker: which pages changed, and which memslots log because somebody wants to know */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "os/kvm_compat.h"
#include "region/dirty_pages.h"
#include "region/vm_core.h"
#include "unit.h"
#include "unit_alloc.h"

#define LOG KVM_MEM_LOG_DIRTY_PAGES
#define BOUND ((uint32_t)KVM_MEM_GUEST_MEMFD)

static struct gmem_dirty *begin(struct unit *unit, uint64_t flags)
{
	GMEM_OPTS(gmem_dirty_opts, opts, .flags = flags);
	struct gmem_dirty *dirty;

	assert_ok(gmem_dirty_new(unit->vm, &opts, &dirty));
	return dirty;
}

static uint64_t collect(struct gmem_dirty *dirty)
{
	GMEM_OPTS(gmem_dirty_info, info, .bytes = 0);

	assert_ok(gmem_dirty_collect(dirty, &info));
	return info.bytes;
}

static void write_page(struct unit *unit, struct gmem_region *region, uint64_t page)
{
	fake_write_page(unit->vm_fd, gmem_region_slot(region), page);
}

static uint32_t flags_of(struct unit *unit, struct gmem_region *region)
{
	return unit_slot(unit, region).flags;
}

/* The only range that was collected */
static void check_told(struct gmem_dirty *dirty, uint64_t gpa, uint64_t size, uint32_t flags)
{
	struct gmem_dirty_range range;

	assert_ok(gmem_dirty_next(dirty, 0, &range));
	assert_int_equal(range.gpa, gpa);
	assert_int_equal(range.size, size);
	assert_int_equal(range.flags, flags);
	assert_int_equal(gmem_dirty_next(dirty, gpa + size, &range), -ENOENT);
}

/* ---- logs ---- */

static void what_the_guest_writes_is_told_once_to_each(void **state)
{
	struct gmem_dirty *a, *b;
	struct gmem_region *region;
	struct unit unit;
	uint64_t word;

	(void)state;
	for (int by_hand = 0; by_hand < 2; by_hand++) {
		unit_begin_vm(&unit, "6.18");
		if (by_hand)
			fake_clear_log_by_hand(unit.vm_fd);
		region = unit_region_backed(&unit, 8, 64, GMEM_BACKING_HOST);
		assert_int_equal(flags_of(&unit, region), 0);
		a = begin(&unit, 0);
		assert_int_equal(flags_of(&unit, region), LOG);
		write_page(&unit, region, 3);
		b = begin(&unit, GMEM_DIRTY_FROM_NOW);
		assert_int_equal(collect(a), PAGES(&unit, 64));
		assert_int_equal(collect(b), 0);

		for (int i = 0; i < 3; i++) {
			write_page(&unit, region, 63);
			assert_int_equal(collect(a), unit.page);
			check_told(a, PAGES(&unit, 71), unit.page, 0);
			assert_int_equal(collect(a), 0);
			assert_int_equal(collect(b), unit.page);
			check_told(b, PAGES(&unit, 71), unit.page, 0);
			assert_ok(gmem_dirty_get_bitmap(b, PAGES(&unit, 8), PAGES(&unit, 64), &word, 1));
			assert_int_equal(word, UINT64_C(1) << 63);
		}
		gmem_dirty_free(a);
		assert_int_equal(flags_of(&unit, region), LOG);
		gmem_dirty_free(b);
		assert_int_equal(flags_of(&unit, region), 0);
		unit_end(&unit);
	}
}

static void user_and_tracker_lose_nothing_to_each_other(void **state)
{
	struct gmem_region_info info;
	struct gmem_region *region;
	struct gmem_dirty *dirty;
	struct unit unit;
	uint64_t word;

	(void)state;
	for (int by_hand = 0; by_hand < 2; by_hand++) {
		unit_begin_vm(&unit, "6.18");
		if (by_hand)
			fake_clear_log_by_hand(unit.vm_fd);
		region = unit_region_backed(&unit, 0, 64, GMEM_BACKING_MAPPED);
		dirty = begin(&unit, GMEM_DIRTY_FROM_NOW);
		write_page(&unit, region, 0);
		/* its log is the tracker's alone, */
		assert_refused(-ENOENT, "set_dirty_log", gmem_region_get_dirty_log(region, &word, 1));
		assert_ok(gmem_vm_find_gpa(unit.vm, 0, &info));
		assert_int_equal(info.flags, 0);
		/* and what was written before is nothing to the user */
		assert_ok(gmem_region_set_dirty_log(region, 1));
		assert_ok(gmem_vm_find_gpa(unit.vm, 0, &info));
		assert_int_equal(info.flags, GMEM_REGION_DIRTY_LOG);
		write_page(&unit, region, 1);
		assert_ok(gmem_region_get_dirty_log(region, &word, 1));
		assert_int_equal(word, 2);
		write_page(&unit, region, 2);
		assert_int_equal(collect(dirty), PAGES(&unit, 3));
		write_page(&unit, region, 3);
		assert_int_equal(collect(dirty), unit.page);
		assert_ok(gmem_region_get_dirty_log(region, &word, 1));
		assert_int_equal(word, 0xc);
		assert_ok(gmem_region_get_dirty_log(region, &word, 1));
		assert_int_equal(word, 0);

		/* The user's log outlives the tracker, with what the tracker read; */
		write_page(&unit, region, 4);
		assert_int_equal(collect(dirty), unit.page);
		gmem_dirty_free(dirty);
		assert_int_equal(flags_of(&unit, region), LOG);
		assert_ok(gmem_region_get_dirty_log(region, &word, 1));
		assert_int_equal(word, 0x10);

		/* and the tracker's the user's. */
		dirty = begin(&unit, GMEM_DIRTY_FROM_NOW);
		write_page(&unit, region, 5);
		assert_ok(gmem_region_set_dirty_log(region, 0));
		assert_int_equal(flags_of(&unit, region), LOG);
		assert_int_equal(collect(dirty), unit.page);
		gmem_dirty_free(dirty);
		assert_int_equal(flags_of(&unit, region), 0);
		unit_end(&unit);
	}
}

static void what_was_put_back_is_told_again(void **state)
{
	struct gmem_region *region;
	struct gmem_dirty *dirty;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	region = unit_region_backed(&unit, 0, 64, GMEM_BACKING_HOST);
	dirty = begin(&unit, GMEM_DIRTY_FROM_NOW);
	assert_refused(-EALREADY, "nothing was collected", gmem_dirty_put_back(dirty));
	write_page(&unit, region, 7);
	assert_int_equal(collect(dirty), unit.page);
	assert_ok(gmem_dirty_put_back(dirty));
	assert_refused(-EALREADY, "put back already", gmem_dirty_put_back(dirty));
	write_page(&unit, region, 9);
	assert_int_equal(collect(dirty), PAGES(&unit, 2));
	assert_int_equal(collect(dirty), 0);
	gmem_dirty_free(dirty);
	unit_end(&unit);
}

/* What was read before a refusal is marked. */
static uint64_t ns_of(struct gmem_dirty *dirty, int (*ask)(struct gmem_dirty *, struct gmem_dirty_info *))
{
	GMEM_OPTS(gmem_dirty_info, info, .bytes = 0);

	assert_ok(ask(dirty, &info));
	return info.ns;
}

/* A bitmap is filled part by part: it is the same as the ranges, wherever they end. */
static void bitmap_and_ranges_agree(void **state)
{
	const uint64_t gib = UINT64_C(1) << 30;
	struct gmem_dirty_range range = { .gpa = 0 };
	struct gmem_region *region;
	struct gmem_dirty *dirty;
	struct unit unit;
	uint64_t *bitmap, pages, told = 0;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	region = unit_region_backed(&unit, gib / unit.page - 70, 140, GMEM_BACKING_HOST);
	pages = 3 * gib / unit.page;
	bitmap = test_malloc(pages / 8);
	dirty = begin(&unit, GMEM_DIRTY_FROM_NOW);
	for (uint64_t page = 0; page < 140; page += page % 13 == 5 ? 3 : 1)
		write_page(&unit, region, page);
	collect(dirty);
	assert_ok(gmem_dirty_get_bitmap(dirty, 3 * unit.page, 2 * gib, bitmap, pages / 64));

	while (!gmem_dirty_next(dirty, range.gpa + range.size, &range))
		for (uint64_t at = 0; at < range.size; at += unit.page, told++) {
			uint64_t page = (range.gpa + at) / unit.page - 3;

			assert_true(bitmap[page / 64] >> page % 64 & 1);
		}
	assert_true(told > 70 && told < 140);
	for (uint64_t i = 0; i < pages / 64; i++)
		told -= (uint64_t)__builtin_popcountll(bitmap[i]);
	assert_int_equal(told, 0);
	gmem_dirty_free(dirty);
	test_free(bitmap);
	unit_end(&unit);
}

/* What a rate is of: the time in which the pages that are told can have changed */
static void time_is_that_of_what_is_told(void **state)
{
	struct gmem_dirty *dirty;
	struct unit unit;
	uint64_t first, all;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	unit_region_backed(&unit, 0, 64, GMEM_BACKING_HOST);
	dirty = begin(&unit, GMEM_DIRTY_FROM_NOW);
	first = ns_of(dirty, gmem_dirty_peek);
	assert_true(first > 0);
	assert_true(ns_of(dirty, gmem_dirty_peek) > first);

	all = ns_of(dirty, gmem_dirty_collect);
	assert_true(all > first);
	assert_ok(gmem_dirty_put_back(dirty));
	assert_true(ns_of(dirty, gmem_dirty_peek) > all);
	assert_true(ns_of(dirty, gmem_dirty_collect) > all);
	gmem_dirty_free(dirty);
	unit_end(&unit);
}

static void a_refused_collection_loses_nothing(void **state)
{
	struct gmem_region *a, *b;
	struct gmem_dirty *dirty;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	a = unit_region_backed(&unit, 0, 64, GMEM_BACKING_HOST);
	b = unit_region_backed(&unit, 64, 64, GMEM_BACKING_HOST);
	dirty = begin(&unit, GMEM_DIRTY_FROM_NOW);
	assert_int_equal(collect(dirty), 0);
	for (unsigned calls = 0; calls < 2; calls++) {
		write_page(&unit, a, 1);
		write_page(&unit, b, 2);
		/* the first one asks for rings */
		fake_fail_kind(FAKE_OTHER_IOCTL, 1 + calls, 1, -EFAULT);
		assert_int_equal(gmem_dirty_collect(dirty, NULL), -EFAULT);
		assert_true(fake_fail_struck());
		assert_int_equal(collect(dirty), PAGES(&unit, 2));
		assert_int_equal(collect(dirty), 0);
	}
	gmem_dirty_free(dirty);
	unit_end(&unit);
}

/* ---- memory without a log ---- */

static void memory_without_a_log_is_refused_or_counts_each_time(void **state)
{
	static const struct unit_way cases[] = {
		{ "6.18", GMEM_BACKING_SHARED },
		{ "7.3-swp-t1", GMEM_BACKING_PRIVATE },
	};
	GMEM_OPTS(gmem_dirty_info, info, .bytes = 0);
	GMEM_OPTS(gmem_dirty_opts, opts, .flags = 0);
	struct gmem_dirty *dirty = UNTOUCHED(struct gmem_dirty);
	struct gmem_region *region;
	struct unit unit;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		unit_begin_vm(&unit, cases[i].kernel);
		region = unit_region_backed(&unit, 2, 4, cases[i].backing);
		assert_refused(-EOPNOTSUPP, "GMEM_DIRTY_ALLOW_UNLOGGED", gmem_dirty_new(unit.vm, &opts, &dirty));
		assert_ptr_equal(dirty, UNTOUCHED(struct gmem_dirty));
		if (i) {
			opts.flags = GMEM_DIRTY_VCPUS_STOPPED;
			assert_refused(-EOPNOTSUPP, "is in no log", gmem_dirty_new(unit.vm, &opts, &dirty));
			opts.flags = 0;
		}
		dirty = begin(&unit, GMEM_DIRTY_ALLOW_UNLOGGED | GMEM_DIRTY_FROM_NOW);
		assert_int_equal(flags_of(&unit, region), BOUND);
		for (int j = 0; j < 2; j++) {
			assert_ok(gmem_dirty_collect(dirty, &info));
			assert_int_equal(info.bytes, PAGES(&unit, 4));
			assert_int_equal(info.unlogged_bytes, PAGES(&unit, 4));
			check_told(dirty, PAGES(&unit, 2), PAGES(&unit, 4), GMEM_DIRTY_RANGE_UNLOGGED);
		}
		gmem_dirty_free(dirty);
		dirty = UNTOUCHED(struct gmem_dirty);
		unit_end(&unit);
	}
}

static void changes_bring_only_what_trackers_allow(void **state)
{
	struct gmem_dirty *strict, *lax;
	struct gmem_region *region = UNTOUCHED(struct gmem_region);
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	GMEM_OPTS(gmem_region_opts, opts, .plan = unit_plan(&unit, GMEM_BACKING_SHARED));
	lax = begin(&unit, GMEM_DIRTY_ALLOW_UNLOGGED);
	strict = begin(&unit, 0);
	assert_refused(-EOPNOTSUPP, "ALLOW_UNLOGGED", gmem_region_add(unit.vm, 0, unit.page, &opts, &region));
	assert_ptr_equal(region, UNTOUCHED(struct gmem_region));
	gmem_dirty_free(strict);
	assert_ok(gmem_region_add(unit.vm, 0, unit.page, &opts, &region));
	assert_int_equal(flags_of(&unit, region), BOUND);
	gmem_dirty_free(lax);
	gmem_plan_free((struct gmem_plan *)opts.plan);
	unit_end(&unit);
}

/* ---- memslots that are replaced ---- */

static void shared_memory_is_logged_by_its_mapping(void **state)
{
	struct gmem_region *region, *added, *upper;
	struct gmem_dirty *dirty, *second;
	struct gmem_plan *plan;
	uint64_t ns = 77, word;
	struct unit unit;
	void *hva;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	plan = unit_plan(&unit, GMEM_BACKING_SHARED);
	region = unit_region(&unit, 0, 64, plan);
	hva = gmem_region_hva(region);
	second = begin(&unit, GMEM_DIRTY_ALLOW_UNLOGGED | GMEM_DIRTY_FROM_NOW);
	dirty = begin(&unit, GMEM_DIRTY_VCPUS_STOPPED | GMEM_DIRTY_FROM_NOW);
	assert_int_equal(flags_of(&unit, region), LOG);
	assert_ptr_equal(gmem_region_hva(region), hva);
	assert_int_equal(gmem_region_backing(region), GMEM_BACKING_SHARED);
	assert_refused(-EOPNOTSUPP, "shared", gmem_region_get_dirty_log(region, &word, 1));
	assert_refused(-EBUSY, "tracker", gmem_vm_bind_shared(unit.vm, &ns));

	/* what was written before it had a log counts once */
	assert_int_equal(collect(second), PAGES(&unit, 64));
	assert_int_equal(collect(second), 0);
	assert_int_equal(collect(dirty), 0);
	write_page(&unit, region, 5);
	assert_int_equal(collect(dirty), unit.page);
	assert_int_equal(collect(second), unit.page);

	/* others come the same way, and it moves and is split as it is */
	added = unit_region(&unit, 128, 64, plan);
	assert_int_equal(flags_of(&unit, added), LOG);
	assert_int_equal(collect(dirty), PAGES(&unit, 64));
	write_page(&unit, region, 40);
	assert_ok(gmem_region_split(region, PAGES(&unit, 32), &upper));
	assert_int_equal(flags_of(&unit, upper), LOG);
	assert_int_equal(collect(dirty), unit.page);
	check_told(dirty, PAGES(&unit, 40), unit.page, 0);
	assert_ok(gmem_region_move(upper, PAGES(&unit, 300)));
	assert_int_equal(flags_of(&unit, upper), LOG);
	assert_int_equal(collect(dirty), PAGES(&unit, 32));
	write_page(&unit, upper, 31);
	assert_int_equal(collect(dirty), unit.page);
	check_told(dirty, PAGES(&unit, 331), unit.page, 0);
	assert_ok(gmem_region_remove(added));

	gmem_dirty_free(second);
	gmem_dirty_free(dirty);
	assert_int_equal(flags_of(&unit, region), 0);
	assert_ok(gmem_vm_bind_shared(unit.vm, &ns));
	assert_int_equal(flags_of(&unit, region), BOUND);
	assert_int_equal(flags_of(&unit, upper), BOUND);
	unit_check_region(&unit, region);
	unit_check_region(&unit, upper);
	assert_ok(gmem_vm_bind_shared(unit.vm, &ns));
	assert_int_equal(ns, 0);
	assert_refused(-EINVAL, "NULL", gmem_vm_bind_shared(NULL, &ns));
	gmem_plan_free(plan);
	unit_end(&unit);
}

/* All of them, or none, whichever call is refused */
static void replacing_is_undone_when_refused(void **state)
{
	GMEM_OPTS(gmem_dirty_opts, opts, .flags = GMEM_DIRTY_VCPUS_STOPPED | GMEM_DIRTY_FROM_NOW);
	static const enum fake_call calls[] = { FAKE_DELETE_SLOT, FAKE_SET_SLOT, FAKE_OTHER_IOCTL };
	struct gmem_dirty *dirty = NULL;
	struct gmem_region *regions[3];
	struct gmem_plan *plan;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	plan = unit_plan(&unit, GMEM_BACKING_SHARED);
	for (uint64_t i = 0; i < 3; i++)
		regions[i] = unit_region(&unit, 64 * i, 64, plan);
	for (size_t i = 0; i < ARRAY_SIZE(calls); i++)
		for (unsigned skip = 0; skip < 3; skip++) {
			/* the first ioctl of another kind asks for dirty rings */
			fake_fail_kind(calls[i], skip + (calls[i] == FAKE_OTHER_IOCTL), 1, -EFAULT);
			assert_refused(-EFAULT, "memslot", gmem_dirty_new(unit.vm, &opts, &dirty));
			assert_true(fake_fail_struck());
		}
	dirty = begin(&unit, opts.flags);
	gmem_dirty_free(dirty);
	for (unsigned skip = 0; skip < 3; skip++) {
		fake_fail_kind(FAKE_SET_SLOT2, skip, 1, -EFAULT);
		assert_refused(-EFAULT, "memslot", gmem_vm_bind_shared(unit.vm, NULL));
		assert_true(fake_fail_struck());
		assert_int_equal(flags_of(&unit, regions[skip]), 0);
	}
	assert_ok(gmem_vm_bind_shared(unit.vm, NULL));
	for (size_t i = 0; i < 3; i++)
		unit_check_region(&unit, regions[i]);
	gmem_plan_free(plan);
	unit_end(&unit);
}

static void a_memslot_that_cannot_be_put_back_is_lost(void **state)
{
	GMEM_OPTS(gmem_dirty_opts, opts, .flags = GMEM_DIRTY_VCPUS_STOPPED);
	struct gmem_dirty *dirty = NULL;
	struct gmem_region *region;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	region = unit_region_backed(&unit, 0, 1, GMEM_BACKING_SHARED);
	/* after it made room for marks, asked for rings, and the memslot was deleted */
	fake_fail_at_random(3, 1, 1);
	assert_int_equal(gmem_dirty_new(unit.vm, &opts, &dirty), -ENOTRECOVERABLE);
	assert_non_null(strstr(gmem_last_error(), "not undone"));
	assert_true(fake_fail_struck());
	assert_null(dirty);
	assert_int_equal(fake_slot_count(unit.vm_fd), 0);
	assert_refused(-ENOTRECOVERABLE, "removed", gmem_dirty_new(unit.vm, &opts, &dirty));
	assert_ok(gmem_region_remove(region));
	dirty = begin(&unit, opts.flags);
	gmem_dirty_free(dirty);
	unit_end(&unit);
}

/* ---- layout ---- */

static void what_comes_and_moves_has_changed(void **state)
{
	struct gmem_region *region, *upper;
	struct gmem_dirty *dirty;
	struct gmem_plan *plan;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	plan = unit_plan(&unit, GMEM_BACKING_MAPPED);
	dirty = begin(&unit, GMEM_DIRTY_FROM_NOW);
	region = unit_region(&unit, 0, 128, plan);
	assert_int_equal(flags_of(&unit, region), LOG);
	assert_int_equal(collect(dirty), PAGES(&unit, 128));
	assert_int_equal(collect(dirty), 0);

	/* far away, where there was no room for marks */
	write_page(&unit, region, 1);
	assert_ok(gmem_region_move(region, UINT64_C(1) << 35));
	assert_int_equal(collect(dirty), PAGES(&unit, 128));
	assert_int_equal(collect(dirty), 0);

	/* a split changes nothing, and loses nothing */
	write_page(&unit, region, 0);
	write_page(&unit, region, 100);
	assert_ok(gmem_region_split(region, PAGES(&unit, 64), &upper));
	write_page(&unit, upper, 63);
	assert_int_equal(collect(dirty), PAGES(&unit, 3));

	struct gmem_file *file = unit_file(&unit, 64);

	assert_ok(gmem_region_rebind(upper, file, 0));
	assert_int_equal(collect(dirty), PAGES(&unit, 64));
	gmem_file_free(file);
	assert_ok(gmem_region_remove(upper));
	assert_int_equal(collect(dirty), 0);
	gmem_dirty_free(dirty);
	gmem_plan_free(plan);
	unit_end(&unit);
}

/* The log is read before the memslot is deleted, and the memslot is put back. */
static void refused_changes_lose_no_bits(void **state)
{
	struct gmem_region *region, *upper = NULL;
	struct gmem_dirty *dirty;
	struct unit unit;
	uint64_t word;

	(void)state;
	for (int user = 0; user < 2; user++) {
		unit_begin_vm(&unit, "6.18");
		region = unit_region_backed(&unit, 0, 64, GMEM_BACKING_HOST);
		if (user)
			assert_ok(gmem_region_set_dirty_log(region, 1));
		dirty = begin(&unit, GMEM_DIRTY_FROM_NOW);
		write_page(&unit, region, 42);
		/* parking, then the lower part, then the upper one */
		fake_fail_kind(FAKE_SET_SLOT, 2, 1, -ENOMEM);
		assert_int_equal(gmem_region_split(region, PAGES(&unit, 32), &upper), -ENOMEM);
		assert_int_equal(collect(dirty), unit.page);
		check_told(dirty, PAGES(&unit, 42), unit.page, 0);
		if (user) {
			assert_ok(gmem_region_get_dirty_log(region, &word, 1));
			assert_int_equal(word, UINT64_C(1) << 42);
		}
		gmem_dirty_free(dirty);
		unit_end(&unit);
	}
}

/* ---- ends ---- */

static void tracker_may_outlive_its_vm(void **state)
{
	GMEM_OPTS(gmem_dirty_info, info, .bytes = 0);
	struct gmem_dirty_range range;
	struct gmem_dirty *dirty;
	struct unit unit;
	uint64_t word;

	(void)state;
	for (int with_vm = 0; with_vm < 2; with_vm++) {
		unit_begin_vm(&unit, "6.18");
		unit_region_backed(&unit, 0, 1, GMEM_BACKING_HOST);
		dirty = begin(&unit, 0);
		collect(dirty);
		unit_free_vm(&unit, with_vm);
		assert_refused(-ESTALE, "freed", gmem_dirty_collect(dirty, NULL));
		assert_refused(-ESTALE, "freed", gmem_dirty_peek(dirty, &info));
		assert_refused(-ESTALE, "freed", gmem_dirty_next(dirty, 0, &range));
		assert_refused(-ESTALE, "freed", gmem_dirty_get_bitmap(dirty, 0, unit.page, &word, 1));
		gmem_dirty_free(dirty);
		unit_end(&unit);
	}
}

/* After the last period of all, everything is told once. */
static void periods_may_run_out(void **state)
{
	struct gmem_region *region;
	struct gmem_dirty *a, *b;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	region = unit_region_backed(&unit, 0, 64, GMEM_BACKING_HOST);
	a = begin(&unit, GMEM_DIRTY_FROM_NOW);
	b = begin(&unit, GMEM_DIRTY_FROM_NOW);
	unit.vm->newest.dirty->period = GMEM_DIRTY_NO_PERIOD - 2;
	assert_int_equal(collect(a), 0);
	write_page(&unit, region, 1);
	assert_int_equal(collect(a), PAGES(&unit, 64));
	assert_int_equal(collect(b), PAGES(&unit, 64));
	write_page(&unit, region, 2);
	assert_int_equal(collect(b), PAGES(&unit, 1));
	assert_int_equal(collect(a), PAGES(&unit, 1));
	write_page(&unit, region, 3);
	assert_int_equal(collect(a), PAGES(&unit, 1));
	assert_int_equal(collect(b), PAGES(&unit, 1));
	gmem_dirty_free(a);
	gmem_dirty_free(b);
	unit_end(&unit);
}

struct callback {
	struct gmem_vm *vm;
	struct gmem_dirty *dirty;
	unsigned calls;
};

/* Nothing here can wait for what the thread itself is in. */
static int use_in_callback(void *data, uint64_t gpa, uint64_t size)
{
	struct gmem_dirty *other = UNTOUCHED(struct gmem_dirty);
	struct gmem_migration *migration = NULL;
	struct callback *c = data;
	GMEM_OPTS(gmem_dirty_info, info, .bytes = 0);
	GMEM_OPTS(gmem_transfer_opts, save, .dirty = c->dirty);

	(void)gpa;
	(void)size;
	c->calls++;
	assert_int_equal(gmem_dirty_new(c->vm, NULL, &other), -EDEADLK);
	assert_ptr_equal(other, UNTOUCHED(struct gmem_dirty));
	assert_int_equal(gmem_dirty_collect(c->dirty, NULL), -EDEADLK);
	assert_int_equal(gmem_dirty_peek(c->dirty, &info), -EDEADLK);
	assert_int_equal(gmem_migration_new(c->vm, STDOUT_FILENO, NULL, &migration), -EDEADLK);
	assert_int_equal(gmem_vm_save(c->vm, STDOUT_FILENO, &save, NULL), -EDEADLK);
	assert_int_equal(gmem_vm_bind_shared(c->vm, NULL), -EDEADLK);
	/* which is not allowed, and does no harm */
	gmem_dirty_free(c->dirty);
	return 0;
}

static void callbacks_are_refused(void **state)
{
	GMEM_OPTS(gmem_listener_opts, opts, .before_private = use_in_callback);
	struct gmem_listener *listener;
	struct gmem_region *region;
	struct gmem_dirty *dirty;
	struct callback c = { .calls = 0 };
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "7.3-swp-t1");
	region = unit_region_backed(&unit, 0, 4, GMEM_BACKING_PRIVATE);
	c.vm = unit.vm;
	c.dirty = begin(&unit, GMEM_DIRTY_ALLOW_UNLOGGED);
	opts.data = &c;
	assert_ok(gmem_listener_new(unit.vm, &opts, &listener));
	assert_ok(gmem_vm_convert(unit.vm, 0, unit.page, GMEM_STATE_PRIVATE, NULL, NULL));
	assert_int_equal(c.calls, 1);
	gmem_listener_free(listener);
	/* the next one ends it, or the VM does */
	dirty = begin(&unit, GMEM_DIRTY_ALLOW_UNLOGGED);
	gmem_dirty_free(dirty);
	assert_ok(gmem_vm_bind_shared(unit.vm, NULL));
	assert_ok(gmem_region_remove(region));
	unit_end(&unit);
}

/* A view that does not end in time: nothing has begun, and its marks are used the next time. */
static void a_view_that_does_not_end_is_waited_for_in_time(void **state)
{
	GMEM_OPTS(gmem_vm_opts, vm_opts, .wait_ms = 20);
	struct gmem_dirty *dirty = NULL;
	struct gmem_region *region;
	struct gmem_view *view;
	struct unit unit;

	(void)state;
	unit_begin(&unit, "6.18");
	assert_ok(gmem_vm_new(unit.vm_fd, &vm_opts, &unit.vm));
	region = unit_region_backed(&unit, 0, 64, GMEM_BACKING_HOST);
	assert_ok(gmem_view_new(unit.vm, &view));
	gmem_view_begin(view);
	/* The room for marks stays, once. */
	assert_int_equal(gmem_dirty_new(unit.vm, NULL, &dirty), -EBUSY);
	assert_refused(-EBUSY, "20 ms", gmem_dirty_new(unit.vm, NULL, &dirty));
	assert_int_equal(unit_slot(&unit, region).flags, 0);
	gmem_view_end(view);
	dirty = begin(&unit, 0);
	assert_int_equal(collect(dirty), PAGES(&unit, 64));
	gmem_dirty_free(dirty);
	gmem_view_free(view);
	unit_end(&unit);
}

/* The view may be of a thread that never goes on. */
static void a_refusal_waits_for_no_view(void **state)
{
	struct gmem_dirty *dirty = NULL;
	struct gmem_view *view;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	unit_region_backed(&unit, 0, 64, GMEM_BACKING_SHARED);
	assert_ok(gmem_view_new(unit.vm, &view));
	gmem_view_begin(view);
	assert_refused(-EOPNOTSUPP, "is in no log", gmem_dirty_new(unit.vm, NULL, &dirty));
	gmem_view_end(view);
	gmem_view_free(view);
	unit_end(&unit);
}

/* Whatever allocation fails, nothing is left of a tracker. */
static void a_tracker_without_memory_is_refused(void **state)
{
	GMEM_OPTS(gmem_dirty_opts, opts, .flags = GMEM_DIRTY_VCPUS_STOPPED | GMEM_DIRTY_FROM_NOW);
	struct gmem_dirty *dirty = NULL;
	struct unit unit;
	bool struck;
	int err;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	unit_region_backed(&unit, 0, 64, GMEM_BACKING_SHARED);
	unit_region_backed(&unit, 64, 64, GMEM_BACKING_HOST);
	for (unsigned n = 1;; n++) {
		unit_fail_alloc(n);
		err = gmem_dirty_new(unit.vm, &opts, &dirty);
		struck = unit_alloc_struck();
		if (!err)
			break;
		assert_int_equal(err, -ENOMEM);
		assert_null(dirty);
	}
	assert_false(struck);
	gmem_dirty_free(dirty);
	unit_end(&unit);
}

static void arguments_are_checked(void **state)
{
	struct gmem_dirty_info info = { .size = 8 };
	struct gmem_dirty_range range;
	struct gmem_dirty *dirty;
	uint64_t words[2];
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	unit_region_backed(&unit, 0, 65, GMEM_BACKING_HOST);
	GMEM_OPTS(gmem_dirty_opts, opts, .flags = UNIT_UNKNOWN_BIT);
	assert_refused(-EINVAL, "flags", gmem_dirty_new(unit.vm, &opts, &dirty));
	assert_refused(-EINVAL, "NULL", gmem_dirty_new(NULL, NULL, &dirty));
	assert_refused(-EINVAL, "NULL", gmem_dirty_new(unit.vm, NULL, NULL));
	dirty = begin(&unit, 0);
	assert_refused(-EINVAL, "NULL", gmem_dirty_collect(NULL, NULL));
	assert_refused(-EINVAL, "at least", gmem_dirty_collect(dirty, &info));
	assert_refused(-EINVAL, "NULL", gmem_dirty_peek(dirty, NULL));
	assert_refused(-ENOENT, "nothing was collected", gmem_dirty_next(dirty, 0, &range));
	assert_refused(-ENOENT, "nothing was collected",
		       gmem_dirty_get_bitmap(dirty, 0, unit.page, words, 2));
	collect(dirty);
	assert_refused(-EINVAL, "not that of a page", gmem_dirty_next(dirty, 1, &range));
	assert_refused(-EINVAL, "not that of a page", gmem_dirty_next(dirty, unit.page / 2, &range));
	assert_refused(-EINVAL, "no range", gmem_dirty_get_bitmap(dirty, 1, unit.page, words, 2));
	assert_refused(-EINVAL, "no range", gmem_dirty_get_bitmap(dirty, 0, 0, words, 2));
	assert_refused(-EINVAL, "no range",
		       gmem_dirty_get_bitmap(dirty, -unit.page, 2 * unit.page, words, 2));
	assert_refused(-EINVAL, "needs 2", gmem_dirty_get_bitmap(dirty, 0, PAGES(&unit, 65), words, 1));
	assert_ok(gmem_dirty_get_bitmap(dirty, 0, PAGES(&unit, 65), words, 2));
	assert_true(words[0] == UINT64_MAX && words[1] == 1);
	assert_refused(-EINVAL, "generation", gmem_dirty_set_parent(dirty, 0, 1));
	gmem_dirty_free(dirty);
	gmem_dirty_free(NULL);
	unit_end(&unit);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_the_guest_writes_is_told_once_to_each),
		cmocka_unit_test(user_and_tracker_lose_nothing_to_each_other),
		cmocka_unit_test(what_was_put_back_is_told_again),
		cmocka_unit_test(bitmap_and_ranges_agree),
		cmocka_unit_test(time_is_that_of_what_is_told),
		cmocka_unit_test(a_refused_collection_loses_nothing),
		cmocka_unit_test(memory_without_a_log_is_refused_or_counts_each_time),
		cmocka_unit_test(changes_bring_only_what_trackers_allow),
		cmocka_unit_test(shared_memory_is_logged_by_its_mapping),
		cmocka_unit_test(replacing_is_undone_when_refused),
		cmocka_unit_test(a_memslot_that_cannot_be_put_back_is_lost),
		cmocka_unit_test(what_comes_and_moves_has_changed),
		cmocka_unit_test(refused_changes_lose_no_bits),
		cmocka_unit_test(tracker_may_outlive_its_vm),
		cmocka_unit_test(periods_may_run_out),
		cmocka_unit_test(callbacks_are_refused),
		cmocka_unit_test(a_view_that_does_not_end_is_waited_for_in_time),
		cmocka_unit_test(a_refusal_waits_for_no_view),
		cmocka_unit_test(a_tracker_without_memory_is_refused),
		cmocka_unit_test(arguments_are_checked),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
