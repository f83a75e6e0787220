/* SPDX-License-Identifier: MIT */
/* keep_state: memory that one change removes and adds again keeps its state */
#include <errno.h>
#include <string.h>

#include "os/kvm.h"
#include "os/kvm_compat.h"
#include "unit.h"

#define INPLACE_REQUEST	_IOWR(KVMIO, 0xfe, struct gmem_kvm_file_attributes)
#define BOTH_FLAGS	(GMEM_CREATE_MMAP | GMEM_CREATE_INIT_SHARED)

struct scene {
	struct unit unit;
	struct gmem_plan *plan;
	struct gmem_file *file;		/* 16 pages */
	struct gmem_region *region;	/* its pages 0 to 7, at page 4 */
	struct gmem_view *view;
	struct gmem_change *change;
};

static void scene_begin(struct scene *s, uint32_t backing)
{
	GMEM_OPTS(gmem_inplace_opts, inplace, .request = INPLACE_REQUEST, .create_flags = BOTH_FLAGS);
	GMEM_OPTS(gmem_request, request, .backings = { backing });
	bool in_place = backing == GMEM_BACKING_INPLACE;

	unit_begin(&s->unit, in_place ? "future-t1" : "7.3-swp-t1");
	fake.inplace_request = in_place ? INPLACE_REQUEST : 0;
	GMEM_OPTS(gmem_vm_opts, opts, .caps = s->unit.caps, .inplace = in_place ? &inplace : NULL);
	assert_ok(gmem_vm_new(s->unit.vm_fd, &opts, &s->unit.vm));
	assert_ok(gmem_plan_new(gmem_vm_caps(s->unit.vm), &request, &s->plan));
	assert_ok(gmem_file_new(s->unit.vm_fd, PAGES(&s->unit, 16), s->plan, &s->file));

	GMEM_OPTS(gmem_region_opts, region_opts, .plan = s->plan, .file = s->file);
	assert_ok(gmem_region_add(s->unit.vm, PAGES(&s->unit, 4), PAGES(&s->unit, 8), &region_opts,
				  &s->region));
	assert_ok(gmem_view_new(s->unit.vm, &s->view));
	assert_ok(gmem_change_new(s->unit.vm, &s->change));
}

static void scene_end(struct scene *s)
{
	gmem_change_free(s->change);
	gmem_view_free(s->view);
	gmem_vm_free(s->unit.vm);
	s->unit.vm = NULL;
	gmem_file_free(s->file);
	gmem_plan_free(s->plan);
	unit_end(&s->unit);
}

/* Private is what was pages 2 to 4 of the file. */
static void make_private(struct scene *s)
{
	GMEM_OPTS(gmem_convert_opts, later, .discard = GMEM_DISCARD_LATER);

	assert_ok(gmem_vm_convert(s->unit.vm, PAGES(&s->unit, 6), PAGES(&s->unit, 3),
				  GMEM_STATE_PRIVATE, &later, NULL));
}

static int plan_anew(struct scene *s, uint64_t page, uint64_t pages, uint64_t offset, uint64_t flags,
		     struct gmem_region **ret)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = s->plan, .file = s->file, .flags = flags,
		  .file_offset = PAGES(&s->unit, offset));

	return gmem_change_add(s->change, PAGES(&s->unit, page), PAGES(&s->unit, pages), &opts, ret);
}

/* Plan that the region's memory is removed, and added at @page from @offset of its file on. */
static void plan_move(struct scene *s, uint64_t page, uint64_t offset, uint64_t flags)
{
	static struct gmem_region *anew;

	make_private(s);
	assert_ok(gmem_change_remove(s->change, s->region));
	assert_ok(plan_anew(s, page, 8, offset, flags, &anew));
}

/* Of the first 40 pages exactly these are private, for all. @file_page: of the first of them */
static void check_private(struct scene *s, uint64_t first, uint64_t count, uint64_t file_page)
{
	bool in_place = gmem_file_create_flags(s->file) & GMEM_CREATE_MMAP;
	GMEM_OPTS(gmem_stats, stats, .flags = 0);
	struct gmem_state_range state;
	uint64_t page;
	void *hva;

	gmem_view_begin(s->view);
	for (page = 0; page < 40; page++) {
		bool is_private = page - first < count;

		assert_int_equal(gmem_vm_state(s->unit.vm, PAGES(&s->unit, page), s->unit.page, &state, 1), 1);
		assert_int_equal(state.state == GMEM_STATE_PRIVATE, is_private);
		assert_int_equal(gmem_view_hva(s->view, PAGES(&s->unit, page), 1, &hva) == -EACCES, is_private);
		if (!in_place)
			assert_int_equal(fake_is_private(s->unit.vm_fd, PAGES(&s->unit, page)), is_private);
	}
	gmem_view_end(s->view);
	for (page = 0; page < 16 && in_place; page++)
		assert_int_equal(fake_is_file_private(gmem_file_fd(s->file), PAGES(&s->unit, page)),
				 page - file_page < count);
	assert_ok(gmem_vm_stats(s->unit.vm, &stats));
	assert_int_equal(stats.bytes_private, PAGES(&s->unit, count));
	assert_int_equal(stats.made_private - stats.made_shared, stats.bytes_private);
}

static const uint32_t backings[] = { GMEM_BACKING_PRIVATE, GMEM_BACKING_INPLACE };

static void memory_laid_out_anew_stays_private(void **state)
{
	struct gmem_region *low, *high;
	struct scene s;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(backings); i++) {
		/* cut in two, in the same place, and grown by what begins shared */
		scene_begin(&s, backings[i]);
		make_private(&s);
		assert_ok(gmem_change_remove(s.change, s.region));
		assert_ok(plan_anew(&s, 4, 3, 0, GMEM_REGION_KEEP_STATE, &low));
		assert_ok(plan_anew(&s, 7, 8, 3, GMEM_REGION_KEEP_STATE, &high));
		assert_ok(gmem_change_apply(s.change));
		check_private(&s, 6, 3, 2);

		/* one of them elsewhere, with one page before */
		assert_ok(gmem_change_remove(s.change, low));
		assert_ok(gmem_change_remove(s.change, high));
		assert_ok(plan_anew(&s, 20, 12, 1, GMEM_REGION_KEEP_STATE, &low));
		assert_ok(gmem_change_apply(s.change));
		check_private(&s, 21, 3, 2);

		/* and converted as ever */
		assert_ok(gmem_vm_convert(s.unit.vm, PAGES(&s.unit, 20), PAGES(&s.unit, 12),
					  GMEM_STATE_SHARED, NULL, NULL));
		check_private(&s, 0, 0, 0);
		scene_end(&s);
	}
}

#define MANY 12U

static int add_one(struct scene *s, struct gmem_file *file, uint32_t n, struct gmem_region **ret)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = s->plan, .file = file, .flags = GMEM_REGION_KEEP_STATE,
		  .file_offset = PAGES(&s->unit, n / 2));

	return gmem_change_add(s->change, PAGES(&s->unit, 20 + n), s->unit.page, &opts, ret);
}

/* Two files have the same offsets, by turns; every third page is private. */
static void each_of_many_keeps_its_own(void **state)
{
	struct gmem_region *regions[MANY];
	struct gmem_state_range range;
	struct gmem_file *files[2];
	struct scene s;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(backings); i++) {
		scene_begin(&s, backings[i]);
		assert_ok(gmem_region_remove(s.region));
		files[0] = s.file;
		assert_ok(gmem_file_new(s.unit.vm_fd, PAGES(&s.unit, 16), s.plan, &files[1]));
		for (uint32_t n = 0; n < MANY; n++)
			assert_ok(add_one(&s, files[n % 2], n, &regions[n]));
		assert_ok(gmem_change_apply(s.change));
		for (uint32_t n = 0; n < MANY; n += 3)
			assert_ok(gmem_vm_convert(s.unit.vm, PAGES(&s.unit, 20 + n), s.unit.page,
						  GMEM_STATE_PRIVATE, NULL, NULL));

		for (uint32_t n = 0; n < MANY; n++)
			assert_ok(gmem_change_remove(s.change, regions[n]));
		for (uint32_t n = MANY; n-- > 0;)
			assert_ok(add_one(&s, files[n % 2], n, &regions[n]));
		assert_ok(gmem_change_apply(s.change));
		for (uint32_t n = 0; n < MANY; n++) {
			assert_int_equal(gmem_vm_state(s.unit.vm, PAGES(&s.unit, 20 + n), s.unit.page, &range,
						       1), 1);
			assert_int_equal(range.state == GMEM_STATE_PRIVATE, n % 3 == 0);
		}
		gmem_file_free(files[1]);
		scene_end(&s);
	}
}

static void without_the_flag_it_begins_shared(void **state)
{
	struct scene s;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(backings); i++) {
		scene_begin(&s, backings[i]);
		plan_move(&s, 4, 0, 0);
		assert_ok(gmem_change_apply(s.change));
		check_private(&s, 0, 0, 0);
		scene_end(&s);
	}
}

static void other_memory_begins_shared(void **state)
{
	struct scene s;

	(void)state;
	scene_begin(&s, GMEM_BACKING_PRIVATE);
	plan_move(&s, 4, 8, GMEM_REGION_KEEP_STATE);
	assert_ok(gmem_change_apply(s.change));
	check_private(&s, 0, 0, 0);
	scene_end(&s);
}

/* In place, an address is not what is private: the kernel need not be told. */
static void in_place_the_kernel_is_not_asked(void **state)
{
	struct gmem_region *anew;
	struct scene s;
	unsigned calls;

	(void)state;
	scene_begin(&s, GMEM_BACKING_INPLACE);
	make_private(&s);
	calls = fake_count(FAKE_SET_ATTRIBUTES);
	assert_ok(gmem_change_remove(s.change, s.region));
	assert_ok(plan_anew(&s, 20, 8, 0, GMEM_REGION_KEEP_STATE, &anew));
	assert_ok(gmem_change_apply(s.change));
	assert_int_equal(fake_count(FAKE_SET_ATTRIBUTES), calls);
	check_private(&s, 22, 3, 2);
	scene_end(&s);
}

/* The private side is what was there; the shared side, which was the library's, is new. */
static void what_is_pending_stays_if_its_memory_does(void **state)
{
	struct gmem_region *anew;
	struct scene s;
	uint64_t done;

	(void)state;
	scene_begin(&s, GMEM_BACKING_PRIVATE);
	GMEM_OPTS(gmem_convert_opts, later, .discard = GMEM_DISCARD_LATER);
	make_private(&s);
	assert_ok(gmem_vm_convert(s.unit.vm, PAGES(&s.unit, 6), PAGES(&s.unit, 1), GMEM_STATE_SHARED,
				  &later, NULL));
	assert_ok(gmem_change_remove(s.change, s.region));
	assert_ok(plan_anew(&s, 20, 8, 0, GMEM_REGION_KEEP_STATE, &anew));
	assert_ok(gmem_change_apply(s.change));
	check_private(&s, 23, 2, 3);
	assert_ok(gmem_vm_discard_owed(s.unit.vm, &done));
	assert_int_equal(done, s.unit.page);
	scene_end(&s);
}

static void a_refused_change_leaves_the_state(void **state)
{
	struct fake_snapshot *before;
	bool struck = true;
	struct scene s;
	unsigned n;

	(void)state;
	for (n = 1; struck; n++) {
		scene_begin(&s, GMEM_BACKING_PRIVATE);
		plan_move(&s, 20, 0, GMEM_REGION_KEEP_STATE);
		before = fake_snapshot();
		fake_fail_call(n, -ENOMEM);
		if (gmem_change_apply(s.change)) {
			assert_true(fake_equal(before));
			check_private(&s, 6, 3, 2);
			assert_ok(gmem_change_apply(s.change));
		} else {
			fake_forget(before);
		}
		struck = fake_fail_struck();
		check_private(&s, 22, 3, 2);
		scene_end(&s);
	}
	assert_true(n > 5);
}

/* What KVM had as private, and whether it had a memslot, when it was asked about memslots */
static struct {
	int vm_fd;
	uint64_t page;
	unsigned calls;
	bool had_slot[2], old_is_private[2], new_is_private[2];
} seen;

static void look_at_attributes(void)
{
	unsigned n = seen.calls++;

	assert_true(n < ARRAY_SIZE(seen.had_slot));
	seen.had_slot[n] = fake_slot_count(seen.vm_fd) > 0;
	seen.old_is_private[n] = fake_is_private(seen.vm_fd, 6 * seen.page);
	seen.new_is_private[n] = fake_is_private(seen.vm_fd, 22 * seen.page);
}

/* The guest has no memory there meanwhile: attributes are never those of another region. */
static void attributes_change_while_there_is_no_memslot(void **state)
{
	struct scene s;

	(void)state;
	scene_begin(&s, GMEM_BACKING_PRIVATE);
	plan_move(&s, 20, 0, GMEM_REGION_KEEP_STATE);
	fake_fail_kind(FAKE_SET_SLOT2, 0, 1, -EIO);
	assert_refused(-EIO, "memslot", gmem_change_apply(s.change));
	check_private(&s, 6, 3, 2);

	memset(&seen, 0, sizeof(seen));
	seen.vm_fd = s.unit.vm_fd;
	seen.page = s.unit.page;
	fake_before_slot = look_at_attributes;
	assert_ok(gmem_change_apply(s.change));
	fake_before_slot = NULL;
	assert_int_equal(seen.calls, 2);
	assert_true(seen.had_slot[0] && seen.old_is_private[0] && !seen.new_is_private[0]);
	assert_true(!seen.had_slot[1] && seen.new_is_private[1]);
	check_private(&s, 22, 3, 2);
	scene_end(&s);
}

static void what_the_guest_wrote_stays_in_the_log(void **state)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_HVA | GMEM_REGION_DIRTY_LOG |
						   GMEM_REGION_KEEP_STATE);
	struct gmem_region *region, *anew;
	struct gmem_change *change;
	struct gmem_plan *host;
	struct unit unit;
	uint64_t log = 0;
	void *memory;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	host = unit_plan(&unit, GMEM_BACKING_HOST);
	memory = unit_memory(&unit, 8);
	opts.plan = host;
	opts.hva = memory;
	assert_ok(gmem_region_add(unit.vm, 0, PAGES(&unit, 8), &opts, &region));
	fake_write_page(unit.vm_fd, gmem_region_slot(region), 2);
	fake_write_page(unit.vm_fd, gmem_region_slot(region), 5);

	assert_ok(gmem_change_new(unit.vm, &change));
	assert_ok(gmem_change_remove(change, region));
	opts.hva = (char *)memory + PAGES(&unit, 3);
	assert_ok(gmem_change_add(change, PAGES(&unit, 30), PAGES(&unit, 5), &opts, &anew));
	assert_ok(gmem_change_apply(change));
	assert_ok(gmem_region_get_dirty_log(anew, &log, 1));
	assert_int_equal(log, 1 << 2);
	assert_ok(gmem_region_get_dirty_log(anew, &log, 1));
	assert_int_equal(log, 0);

	gmem_change_free(change);
	gmem_vm_free(unit.vm);
	unit.vm = NULL;
	unit_memory_free(memory);
	gmem_plan_free(host);
	unit_end(&unit);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(memory_laid_out_anew_stays_private),
	cmocka_unit_test(each_of_many_keeps_its_own),
	cmocka_unit_test(without_the_flag_it_begins_shared),
	cmocka_unit_test(other_memory_begins_shared),
	cmocka_unit_test(in_place_the_kernel_is_not_asked),
	cmocka_unit_test(what_is_pending_stays_if_its_memory_does),
	cmocka_unit_test(a_refused_change_leaves_the_state),
	cmocka_unit_test(attributes_change_while_there_is_no_memslot),
	cmocka_unit_test(what_the_guest_wrote_stays_in_the_log),
};

UNIT_MAIN(tests)
