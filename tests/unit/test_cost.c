/* SPDX-License-Identifier: MIT */
/* cost: which system calls a change of the layout makes, and what it takes from the heap */
#include <errno.h>
#include <stdbool.h>
#include <sys/mman.h>

#include "unit.h"
#include "unit_alloc.h"

#define MOST_CALLS	6
#define NONE		FAKE_CALLS

/* A region as its user asks for it, and all calls that it takes, but for close() */
struct ask {
	const char *name;
	const char *kernel;
	uint32_t backing;
	uint64_t flags;
	bool has_file;
	enum fake_call add[MOST_CALLS], remove[3];
	unsigned int allocations;
};

static const struct ask asks[] = {
	{ "shared", "6.18", GMEM_BACKING_SHARED, 0, false,
	  { FAKE_CREATE_GMEMFD, FAKE_SET_CLOEXEC, FAKE_MMAP, FAKE_MADVISE, FAKE_SET_SLOT2, NONE },
	  { FAKE_DELETE_SLOT, FAKE_MUNMAP, NONE }, 2 },
	{ "shared, of a file", "6.18", GMEM_BACKING_SHARED, 0, true,
	  { FAKE_MMAP, FAKE_MADVISE, FAKE_SET_SLOT2, NONE },
	  { FAKE_DELETE_SLOT, FAKE_MUNMAP, NONE }, 1 },
	{ "mapped", "6.18", GMEM_BACKING_MAPPED, 0, false,
	  { FAKE_CREATE_GMEMFD, FAKE_SET_CLOEXEC, FAKE_MMAP, FAKE_MADVISE, FAKE_SET_SLOT, NONE },
	  { FAKE_DELETE_SLOT, FAKE_MUNMAP, NONE }, 2 },
	{ "host", "6.18", GMEM_BACKING_HOST, 0, false,
	  { FAKE_MMAP, FAKE_MADVISE, FAKE_SET_SLOT, NONE },
	  { FAKE_DELETE_SLOT, FAKE_MUNMAP, NONE }, 1 },
	{ "the caller's", "6.18", GMEM_BACKING_HOST, GMEM_REGION_HVA, false,
	  { FAKE_MAPPING_AT, FAKE_SET_SLOT, NONE }, { FAKE_DELETE_SLOT, NONE }, 1 },
	{ "private", "6.12-swp-t1", GMEM_BACKING_PRIVATE, 0, false,
	  { FAKE_CREATE_GMEMFD, FAKE_SET_CLOEXEC, FAKE_MMAP, FAKE_MADVISE, FAKE_SET_SLOT2, NONE },
	  { FAKE_DELETE_SLOT, FAKE_MUNMAP, NONE }, 2 },
	{ "private, of a file", "6.12-swp-t1", GMEM_BACKING_PRIVATE, 0, true,
	  { FAKE_MMAP, FAKE_MADVISE, FAKE_SET_SLOT2, NONE },
	  { FAKE_DELETE_SLOT, FAKE_MUNMAP, NONE }, 1 },
	{ "a device's range", "6.18", GMEM_BACKING_HOST, GMEM_REGION_DEVICE, false,
	  { NONE }, { NONE }, 1 },
};

struct scene {
	struct unit unit;
	struct gmem_plan *plan;
	struct gmem_file *file;
	void *memory;
	struct gmem_region_opts opts;
};

static void begin(struct scene *s, const struct ask *ask)
{
	unit_begin_vm(&s->unit, ask->kernel);
	s->plan = unit_plan(&s->unit, ask->backing);
	s->file = NULL;
	s->memory = mmap(NULL, PAGES(&s->unit, 4), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(s->memory, MAP_FAILED);
	s->opts = (struct gmem_region_opts){ .size = sizeof(s->opts), .flags = ask->flags };
	if (ask->has_file)
		assert_ok(gmem_file_new(s->unit.vm_fd, PAGES(&s->unit, 4), s->plan, &s->file));
	if (ask->flags & GMEM_REGION_DEVICE)
		return;
	s->opts.plan = s->plan;
	s->opts.file = s->file;
	s->opts.hva = ask->flags & GMEM_REGION_HVA ? s->memory : NULL;
}

static void end(struct scene *s)
{
	gmem_file_free(s->file);
	gmem_plan_free(s->plan);
	munmap(s->memory, PAGES(&s->unit, 4));
	unit_end(&s->unit);
}

static struct gmem_region *add(struct scene *s)
{
	struct gmem_region *region;

	assert_ok(gmem_region_add(s->unit.vm, 0, PAGES(&s->unit, 4), &s->opts, &region));
	return region;
}

/* Counts since boot, to be compared with those after a call */
struct counts {
	unsigned int calls[FAKE_CALLS], all, allocations;
};

static struct counts count(void)
{
	struct counts counts = { .all = fake_count_all(), .allocations = unit_alloc_count() };

	for (unsigned int i = 0; i < FAKE_CALLS; i++)
		counts.calls[i] = fake_count((enum fake_call)i);
	return counts;
}

/* @made: each of them was called once since, and no other was; ends with NONE */
static void check_calls(const struct ask *ask, const struct counts *before, const enum fake_call *made)
{
	struct counts now = count();
	unsigned int expected = 0;

	for (; made[expected] != NONE; expected++)
		if (now.calls[made[expected]] - before->calls[made[expected]] != 1)
			fail_msg("%s: %u times %s", ask->name,
				 now.calls[made[expected]] - before->calls[made[expected]],
				 fake_call_name(made[expected]));
	for (unsigned int i = 0; i < FAKE_CALLS && now.all - before->all != expected; i++)
		if (now.calls[i] != before->calls[i])
			print_message("%s: %u times %s\n", ask->name, now.calls[i] - before->calls[i],
				      fake_call_name((enum fake_call)i));
	assert_int_equal(now.all - before->all, expected);
}

static void region_comes_and_goes_with_the_calls_it_needs(void **state)
{
	struct counts before;
	struct scene s;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(asks); i++) {
		const struct ask *ask = &asks[i];
		struct gmem_region *region;

		begin(&s, ask);
		/* The first one opens what later ones ask, and no view is waited for once it is freed. */
		assert_ok(gmem_region_remove(add(&s)));
		before = count();
		region = add(&s);
		check_calls(ask, &before, ask->add);
		before = count();
		assert_ok(gmem_region_remove(region));
		check_calls(ask, &before, ask->remove);
		end(&s);
	}
}

static void only_a_view_is_waited_for(void **state)
{
	struct counts before;
	struct gmem_view *view;
	struct scene s;

	(void)state;
	begin(&s, &asks[0]);
	assert_ok(gmem_view_new(s.unit.vm, &view));
	before = count();
	assert_ok(gmem_region_remove(add(&s)));
	assert_int_equal(count().calls[FAKE_MEMBARRIER] - before.calls[FAKE_MEMBARRIER], 2);
	gmem_view_free(view);
	before = count();
	assert_ok(gmem_region_remove(add(&s)));
	assert_int_equal(count().calls[FAKE_MEMBARRIER], before.calls[FAKE_MEMBARRIER]);
	end(&s);
}

static void region_takes_two_allocations_at_most(void **state)
{
	struct counts before;
	struct scene s;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(asks); i++) {
		struct gmem_region *region;

		begin(&s, &asks[i]);
		before = count();
		region = add(&s);
		assert_int_equal(count().allocations - before.allocations, asks[i].allocations);
		before = count();
		assert_ok(gmem_region_remove(region));
		assert_int_equal(count().allocations, before.allocations);
		end(&s);
	}
}

/* A memslot number, one there is not, and part of a file; a device's range has none of them. */
static void check_what_is_in_use(struct scene *s, const struct gmem_region *first)
{
	const uint64_t gpa = PAGES(&s->unit, 8), size = PAGES(&s->unit, 4);
	const struct gmem_region_opts opts = s->opts;
	struct gmem_region *region;

	if (opts.flags & GMEM_REGION_DEVICE)
		return;
	if (opts.file)
		assert_int_equal(gmem_region_add(s->unit.vm, gpa, size, &s->opts, &region), -EEXIST);
	s->opts.flags |= GMEM_REGION_SLOT;
	s->opts.slot = gmem_region_slot(first);
	assert_int_equal(gmem_region_add(s->unit.vm, gpa, size, &s->opts, &region), -EEXIST);
	s->opts.slot = UINT32_MAX;
	assert_int_equal(gmem_region_add(s->unit.vm, gpa, size, &s->opts, &region), -EINVAL);
	s->opts = opts;
}

/*
 * What the library can know. A kernel that refuses a file, a mapping or a memslot was asked
 * with a region at hand, which is freed.
 */
static void refusal_takes_no_memory(void **state)
{
	struct gmem_region *region, *first;
	struct counts before;
	struct scene s;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(asks); i++) {
		begin(&s, &asks[i]);
		first = add(&s);
		before = count();
		assert_int_equal(gmem_region_add(s.unit.vm, PAGES(&s.unit, 3), PAGES(&s.unit, 4), &s.opts, &region),
				 -EEXIST);
		assert_int_equal(gmem_region_add(s.unit.vm, 1, PAGES(&s.unit, 4), &s.opts, &region), -EINVAL);
		s.opts.flags |= UNIT_UNKNOWN_BIT;
		assert_int_equal(gmem_region_add(s.unit.vm, PAGES(&s.unit, 8), PAGES(&s.unit, 4), &s.opts,
						 &region), -EINVAL);
		s.opts.flags = asks[i].flags;
		check_what_is_in_use(&s, first);
		assert_int_equal(gmem_region_move(first, 1), -EINVAL);
		assert_int_equal(gmem_region_split(first, 0, &region), -EINVAL);
		assert_non_null(gmem_last_error());
		assert_int_equal(count().allocations, before.allocations);
		end(&s);
	}
}

static void write_in_all_ways(struct gmem_view *view, uint64_t page)
{
	static const char bytes[64];
	uint64_t expected = 0;

	assert_ok(gmem_view_write(view, 0, bytes, 8, NULL));
	assert_ok(gmem_view_write(view, page - 4, bytes, sizeof(bytes), NULL));
	assert_ok(gmem_view_fill(view, 5, 1, 3 * page, NULL));
	assert_ok(gmem_view_copy(view, 0, 2 * page, page, NULL));
	assert_ok(gmem_view_store(view, 8, 8, GMEM_RELEASE, 0));
	assert_int_equal(gmem_view_compare_exchange(view, 8, 8, GMEM_SEQ_CST, &expected, 1), 1);
	assert_ok(gmem_view_mark_dirty(view, 0, 4 * page));
}

/* Without a tracker, and while there is one: only what begins and ends it takes something. */
static void writes_take_no_memory_and_no_calls(void **state)
{
	struct gmem_dirty *dirty = NULL;
	struct gmem_region *region;
	struct counts before, now;
	struct gmem_view *view;
	struct scene s;

	(void)state;
	assert_ok(gmem_recovery_enable());
	begin(&s, &asks[3]);
	region = add(&s);
	assert_ok(gmem_view_new(s.unit.vm, &view));
	for (int tracked = 0; tracked < 3; tracked++) {
		if (tracked == 1)
			assert_ok(gmem_dirty_new(s.unit.vm, NULL, &dirty));
		if (tracked == 2)
			gmem_dirty_free(dirty);
		before = count();
		write_in_all_ways(view, s.unit.page);
		write_in_all_ways(view, s.unit.page);
		now = count();
		assert_int_equal(now.all, before.all);
		assert_int_equal(now.allocations, before.allocations);
	}
	gmem_view_free(view);
	assert_ok(gmem_region_remove(region));
	end(&s);
	gmem_recovery_disable();
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(region_comes_and_goes_with_the_calls_it_needs),
	cmocka_unit_test(only_a_view_is_waited_for),
	cmocka_unit_test(region_takes_two_allocations_at_most),
	cmocka_unit_test(refusal_takes_no_memory),
		cmocka_unit_test(writes_take_no_memory_and_no_calls),
};

int main(void)
{
	return cmocka_run_group_tests(tests, NULL, NULL);
}
