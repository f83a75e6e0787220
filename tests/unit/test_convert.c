/* SPDX-License-Identifier: MIT */
/* convert, private_state, claim, lease and listener, against a model of pages */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "os/sys.h"
#include "unit.h"
#include "unit_alloc.h"

/* ---- a scene: regions that can be converted and others, and a reader ---- */

enum who { A, B, C, D, E, F, REGIONS };

#define MODEL_PAGES	1100

/* The model's entry for a page */
#define HOLE	0
#define DEVICE	1
#define HOST	2
#define SHARED	3
#define PRIVATE	4

struct scene {
	struct unit unit;
	struct gmem_plan *plan;
	struct gmem_plan *host;
	struct gmem_view *view;
	struct gmem_region *regions[REGIONS];
	int at[MODEL_PAGES];
	bool removed[MODEL_PAGES];
};

static const struct {
	uint64_t page;
	uint64_t pages;
	int what;
} home[REGIONS] = {
	[A] = { 4, 8, SHARED },
	[B] = { 12, 8, SHARED },	/* right behind A */
	[C] = { 24, 4, HOST },		/* behind a hole */
	[D] = { 28, 4, DEVICE },
	[E] = { 32, 4, SHARED },
	[F] = { 500, 600, SHARED },	/* over two boundaries of the readers' table */
};

static void paint(struct scene *s, uint64_t page, uint64_t pages, int what)
{
	uint64_t i;

	for (i = page; i < page + pages; i++)
		s->at[i] = what;
}

static void add_region(struct scene *s, enum who who)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = 0);

	if (home[who].what == DEVICE)
		opts.flags = GMEM_REGION_DEVICE;
	else
		opts.plan = home[who].what == HOST ? s->host : s->plan;
	assert_ok(gmem_region_add(s->unit.vm, PAGES(&s->unit, home[who].page),
				  PAGES(&s->unit, home[who].pages), &opts, &s->regions[who]));
	paint(s, home[who].page, home[who].pages, home[who].what);
}

static void scene_begin_on(struct scene *s, const char *kernel)
{
	int i;

	memset(s, 0, sizeof(*s));
	unit_begin_vm(&s->unit, kernel);
	s->plan = unit_plan(&s->unit, GMEM_BACKING_PRIVATE);
	s->host = unit_plan(&s->unit, GMEM_BACKING_HOST);
	for (i = 0; i < REGIONS; i++)
		add_region(s, (enum who)i);
	assert_ok(gmem_view_new(s->unit.vm, &s->view));
}

static void scene_begin(struct scene *s)
{
	scene_begin_on(s, "7.3-swp-t1");
}

static void scene_end(struct scene *s)
{
	gmem_view_free(s->view);
	gmem_plan_free(s->plan);
	gmem_plan_free(s->host);
	unit_end(&s->unit);
}

static int convert(struct scene *s, uint64_t page, uint64_t pages, uint32_t state)
{
	return gmem_vm_convert(s->unit.vm, PAGES(&s->unit, page), PAGES(&s->unit, pages), state,
			       NULL, NULL);
}

static void convert_ok(struct scene *s, uint64_t page, uint64_t pages, uint32_t state)
{
	assert_ok(convert(s, page, pages, state));
	paint(s, page, pages, state == GMEM_STATE_PRIVATE ? PRIVATE : SHARED);
}

/* ---- readers, the record and the kernel say what the model says ---- */

static int expected_error(const struct scene *s, uint64_t page)
{
	switch (s->at[page]) {
	case HOLE:
		return s->removed[page] ? -ESTALE : -ENOENT;
	case DEVICE:
		return -ENXIO;
	case PRIVATE:
		return -EACCES;
	default:
		return 0;
	}
}

static void check_readers(struct scene *s)
{
	uint64_t page;
	void *hva;
	int err;

	gmem_view_begin(s->view);
	for (page = 0; page < MODEL_PAGES; page++) {
		err = gmem_view_hva(s->view, PAGES(&s->unit, page) + 8, 8, &hva);
		if (err != expected_error(s, page))
			fail_msg("page %d gives %d, not %d", (int)page, err,
				 expected_error(s, page));
	}
	gmem_view_end(s->view);
}

static void check_kernel(const struct scene *s)
{
	uint64_t page;

	for (page = 0; page < MODEL_PAGES; page++)
		if (fake_is_private(s->unit.vm_fd, PAGES(&s->unit, page)) !=
		    (s->at[page] == PRIVATE))
			fail_msg("the kernel has page %d otherwise", (int)page);
}

static void check_range(const struct scene *s, const struct gmem_state_range *range)
{
	static const uint32_t states[] = {
		[HOLE] = 0, [DEVICE] = 0, [HOST] = GMEM_STATE_SHARED,
		[SHARED] = GMEM_STATE_SHARED, [PRIVATE] = GMEM_STATE_PRIVATE,
	};
	static const uint32_t backings[] = {
		[HOLE] = 0, [DEVICE] = 0, [HOST] = GMEM_BACKING_HOST,
		[SHARED] = GMEM_BACKING_PRIVATE, [PRIVATE] = GMEM_BACKING_PRIVATE,
	};
	uint64_t page = range->gpa / s->unit.page, i;

	for (i = page; i < page + range->size / s->unit.page; i++) {
		assert_int_equal(range->state, states[s->at[i]]);
		assert_int_equal(range->backing, backings[s->at[i]]);
	}
}

/* Asks for @max ranges at a time, which must make no difference. */
static void check_record(const struct scene *s, size_t max)
{
	uint64_t at = 0, end = PAGES(&s->unit, MODEL_PAGES);
	struct gmem_state_range ranges[16], before = { 0 };
	int count, i;

	while (at < end) {
		count = gmem_vm_state(s->unit.vm, at, end - at, ranges, max);
		assert_in_range(count, 1, max);
		for (i = 0; i < count; i++) {
			assert_int_equal(ranges[i].gpa, at);
			assert_true(i == 0 || ranges[i].state != before.state ||
				    ranges[i].backing != before.backing);
			check_range(s, &ranges[i]);
			before = ranges[i];
			at += ranges[i].size;
		}
	}
	assert_int_equal(at, end);
}

static void check_all(struct scene *s)
{
	check_readers(s);
	check_kernel(s);
	check_record(s, 16);
	check_record(s, 1);
}

/* ---- conversion ---- */

static void conversion_is_seen_by_readers_record_and_kernel(void **state)
{
	static const struct {
		uint64_t page;
		uint64_t pages;
		uint32_t state;
	} list[] = {
		{ 5, 1, GMEM_STATE_PRIVATE },	/* inside */
		{ 4, 1, GMEM_STATE_PRIVATE },	/* grows to the region's start */
		{ 10, 4, GMEM_STATE_PRIVATE },	/* across two regions */
		{ 4, 16, GMEM_STATE_PRIVATE },	/* over what is so in part */
		{ 11, 2, GMEM_STATE_SHARED },	/* a hole in the middle */
		{ 4, 16, GMEM_STATE_SHARED },
		{ 500, 600, GMEM_STATE_PRIVATE },
		{ 512, 512, GMEM_STATE_SHARED },	/* a whole entry of the readers' table */
		{ 600, 1, GMEM_STATE_PRIVATE },
		{ 1023, 2, GMEM_STATE_SHARED },
		{ 500, 600, GMEM_STATE_SHARED },
	};
	struct scene s;
	size_t i;

	(void)state;
	scene_begin(&s);
	check_all(&s);
	for (i = 0; i < ARRAY_SIZE(list); i++) {
		convert_ok(&s, list[i].page, list[i].pages, list[i].state);
		check_all(&s);
	}
	scene_end(&s);
}

static void adjacent_regions_take_one_call(void **state)
{
	struct gmem_conversion done;
	struct scene s;
	unsigned before;

	(void)state;
	scene_begin(&s);
	before = fake_count(FAKE_SET_ATTRIBUTES);
	convert_ok(&s, 4, 16, GMEM_STATE_PRIVATE);
	assert_int_equal(fake_count(FAKE_SET_ATTRIBUTES), before + 1);

	/* two islands: back again takes two */
	convert_ok(&s, 6, 12, GMEM_STATE_SHARED);
	before = fake_count(FAKE_SET_ATTRIBUTES);
	assert_ok(gmem_vm_convert(s.unit.vm, PAGES(&s.unit, 4), PAGES(&s.unit, 16),
				  GMEM_STATE_SHARED, NULL, &done));
	paint(&s, 4, 16, SHARED);
	assert_int_equal(fake_count(FAKE_SET_ATTRIBUTES), before + 2);
	assert_int_equal(done.ioctls, 2);
	assert_int_equal(done.converted, PAGES(&s.unit, 4));
	assert_int_equal(done.gpa, PAGES(&s.unit, 4));
	assert_int_equal(done.size, PAGES(&s.unit, 16));
	check_all(&s);
	scene_end(&s);
}

static void pages_converted_already_cost_no_system_call(void **state)
{
	struct gmem_conversion done = { 0 };
	struct scene s;
	unsigned before;

	(void)state;
	scene_begin(&s);
	convert_ok(&s, 4, 16, GMEM_STATE_PRIVATE);
	before = fake_count_all();
	convert_ok(&s, 4, 16, GMEM_STATE_PRIVATE);
	assert_ok(gmem_vm_convert(s.unit.vm, PAGES(&s.unit, 8), PAGES(&s.unit, 8),
				  GMEM_STATE_PRIVATE, NULL, &done));
	convert_ok(&s, 32, 4, GMEM_STATE_SHARED);
	assert_int_equal(fake_count_all(), before);
	assert_int_equal(done.size, 0);
	assert_int_equal(done.converted, 0);
	assert_int_equal(done.ioctls, 0);
	check_all(&s);
	scene_end(&s);
}

static void convert_all_overrides_what_another_program_set(void **state)
{
	GMEM_OPTS(gmem_convert_opts, opts, .flags = GMEM_CONVERT_ALL);
	struct scene s;

	(void)state;
	scene_begin(&s);
	/* as another program left it */
	fake_set_private(s.unit.vm_fd, PAGES(&s.unit, 6), PAGES(&s.unit, 2), true);
	assert_ok(gmem_vm_convert(s.unit.vm, PAGES(&s.unit, 4), PAGES(&s.unit, 8),
				  GMEM_STATE_SHARED, &opts, NULL));
	check_all(&s);
	scene_end(&s);
}

static void adopted_memory_is_private_without_a_call(void **state)
{
	struct scene s;
	unsigned before;

	(void)state;
	scene_begin(&s);
	fake_set_private(s.unit.vm_fd, PAGES(&s.unit, 6), PAGES(&s.unit, 8), true);
	before = fake_count(FAKE_SET_ATTRIBUTES);
	assert_ok(gmem_vm_adopt_private(s.unit.vm, PAGES(&s.unit, 6), PAGES(&s.unit, 8)));
	assert_int_equal(fake_count(FAKE_SET_ATTRIBUTES), before);
	paint(&s, 6, 8, PRIVATE);
	check_all(&s);
	convert_ok(&s, 4, 16, GMEM_STATE_SHARED);
	check_all(&s);

	assert_refused(-ENOENT, "no region at gpa 0x0",
		       gmem_vm_adopt_private(s.unit.vm, 0, PAGES(&s.unit, 6)));
	assert_refused(-EINVAL, "NULL", gmem_vm_adopt_private(NULL, 0, s.unit.page));
	scene_end(&s);
}

/* ---- refusals before anything changes ---- */

static void range_with_anything_else_in_it_is_refused(void **state)
{
	struct scene s;

	(void)state;
	scene_begin(&s);
	assert_refused(-ENOENT, "no region at gpa 0x0", convert(&s, 0, 8, GMEM_STATE_PRIVATE));
	assert_refused(-ENOENT, "no region at gpa 0x14000", convert(&s, 4, 17, GMEM_STATE_PRIVATE));
	assert_refused(-ENOENT, "no region at gpa 0x3000", convert(&s, 3, 1, GMEM_STATE_SHARED));
	assert_refused(-EOPNOTSUPP, "\"host\"", convert(&s, 24, 1, GMEM_STATE_PRIVATE));
	assert_refused(-ENXIO, "a device at gpa 0x1c000", convert(&s, 28, 8, GMEM_STATE_PRIVATE));
	assert_refused(-ENOENT, "no region", convert(&s, 499, 10, GMEM_STATE_PRIVATE));
	assert_refused(-ENOENT, "no region", convert(&s, 1090, 11, GMEM_STATE_PRIVATE));
	check_all(&s);
	scene_end(&s);
}

static void malformed_conversion_is_refused(void **state)
{
	GMEM_OPTS(gmem_convert_opts, opts, .flags = 0);
	struct gmem_conversion done;
	struct scene s;
	struct gmem_vm *vm;
	uint64_t page;

	(void)state;
	scene_begin(&s);
	vm = s.unit.vm;
	page = s.unit.page;
	assert_refused(-EINVAL, "NULL", gmem_vm_convert(NULL, 4 * page, page, 2, NULL, NULL));
	assert_refused(-EINVAL, "0 is no state", gmem_vm_convert(vm, 4 * page, page, 0, NULL, NULL));
	assert_refused(-EINVAL, "3 is no state", gmem_vm_convert(vm, 4 * page, page, 3, NULL, NULL));
	assert_refused(-EINVAL, "gpa", gmem_vm_convert(vm, 4 * page + 1, page, 2, NULL, NULL));
	assert_refused(-EINVAL, "gpa", gmem_vm_convert(vm, 4 * page, page - 1, 2, NULL, NULL));
	assert_refused(-EINVAL, "gpa", gmem_vm_convert(vm, 4 * page, 0, 2, NULL, NULL));
	assert_refused(-EINVAL, "gpa", gmem_vm_convert(vm, 0 - page, 2 * page, 2, NULL, NULL));
	opts.flags = UNIT_UNKNOWN_BIT;
	assert_refused(-EINVAL, "flags", gmem_vm_convert(vm, 4 * page, page, 2, &opts, NULL));
	opts.flags = 0;
	opts.discard = 3;
	assert_refused(-EINVAL, "3 is no policy", gmem_vm_convert(vm, 4 * page, page, 2, &opts, &done));
	assert_int_equal(done.size, 0);
	opts.discard = 0;
	opts.size = 8;
	assert_refused(-EINVAL, "gmem_convert_opts", gmem_vm_convert(vm, 4 * page, page, 2, &opts, NULL));
	check_all(&s);
	scene_end(&s);
}

static void state_query_checks_its_arguments(void **state)
{
	struct gmem_state_range range = { .gpa = 7 };
	struct scene s;

	(void)state;
	scene_begin(&s);
	assert_refused(-EINVAL, "NULL", gmem_vm_state(NULL, 0, 1, &range, 1));
	assert_refused(-EINVAL, "NULL", gmem_vm_state(s.unit.vm, 0, 1, NULL, 1));
	assert_refused(-EINVAL, "no range", gmem_vm_state(s.unit.vm, 0, 0, &range, 1));
	assert_refused(-EINVAL, "no range", gmem_vm_state(s.unit.vm, 2, UINT64_MAX, &range, 1));
	assert_refused(-EINVAL, "max is 0", gmem_vm_state(s.unit.vm, 0, 1, &range, 0));
	assert_int_equal(range.gpa, 7);
	/* to the last address there is, and of single bytes */
	assert_int_equal(gmem_vm_state(s.unit.vm, PAGES(&s.unit, 1100),
				       0 - PAGES(&s.unit, 1100), &range, 1), 1);
	assert_int_equal(range.state, 0);
	assert_int_equal(range.size, 0 - PAGES(&s.unit, 1100));
	assert_int_equal(gmem_vm_state(s.unit.vm, PAGES(&s.unit, 4) + 3, 1, &range, 1), 1);
	assert_int_equal(range.state, GMEM_STATE_SHARED);
	assert_int_equal(range.size, 1);
	scene_end(&s);
}

static void vm_without_private_memory_refuses(void **state)
{
	static const char *const kernels[] = { "6.18", "arm64-7.3-16k", "6.18-swp-t0" };
	struct gmem_region *region;
	struct unit unit;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(kernels); i++) {
		unit_begin_vm(&unit, kernels[i]);
		region = unit_region(&unit, 16, 4, NULL);
		assert_non_null(region);
		assert_refused(-EOPNOTSUPP, "\"shared\": it cannot be converted",
			       gmem_vm_convert(unit.vm, PAGES(&unit, 16), unit.page,
					       GMEM_STATE_PRIVATE, NULL, NULL));
		unit_end(&unit);
	}
}

/* ---- the kernel refuses, at every step ---- */

/* Islands 5, 8-9, 13, 18 are private: to private takes five calls, to shared four. */
static void make_islands(struct scene *s)
{
	convert_ok(s, 5, 1, GMEM_STATE_PRIVATE);
	convert_ok(s, 8, 2, GMEM_STATE_PRIVATE);
	convert_ok(s, 13, 1, GMEM_STATE_PRIVATE);
	convert_ok(s, 18, 1, GMEM_STATE_PRIVATE);
}

static void refusal_is_undone_at_every_step(void **state)
{
	static const uint32_t to[] = { GMEM_STATE_PRIVATE, GMEM_STATE_SHARED };
	struct gmem_conversion done;
	struct scene s;
	unsigned n, i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(to); i++) {
		for (n = 0; n < (i ? 4u : 5u); n++) {
			scene_begin(&s);
			make_islands(&s);
			fake_fail_kind(FAKE_SET_ATTRIBUTES, n, 1, -ENOMEM);
			assert_refused(-ENOMEM, "ENOMEM",
				       gmem_vm_convert(s.unit.vm, PAGES(&s.unit, 4),
						       PAGES(&s.unit, 16), to[i], NULL, &done));
			assert_true(fake_fail_struck());
			assert_int_equal(done.size, 0);
			assert_int_equal(done.converted, 0);
			check_all(&s);
			convert_ok(&s, 4, 16, to[i]);
			check_all(&s);
			scene_end(&s);
		}
		/* there was no further call to refuse */
		scene_begin(&s);
		make_islands(&s);
		fake_fail_kind(FAKE_SET_ATTRIBUTES, n, 1, -ENOMEM);
		convert_ok(&s, 4, 16, to[i]);
		assert_false(fake_fail_struck());
		scene_end(&s);
	}
}

/* Bytes of a part that are not yet @what in the model */
static uint64_t changed(const struct scene *s, const struct gmem_conversion *part, int what)
{
	uint64_t first = part->gpa / s->unit.page, count = 0;

	for (uint64_t i = first; i < first + part->size / s->unit.page; i++)
		count += s->at[i] != what;
	return PAGES(&s->unit, count);
}

/* The first @skip calls are made, then the kernel refuses for good. */
static void part_that_cannot_be_undone_is_described(void **state)
{
	static const uint32_t to[] = { GMEM_STATE_PRIVATE, GMEM_STATE_SHARED };
	struct gmem_conversion done;
	struct scene s;
	unsigned skip, i;
	int err;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(to); i++) {
		for (skip = 1; skip < 4; skip++) {
			scene_begin(&s);
			make_islands(&s);
			fake_fail_kind(FAKE_SET_ATTRIBUTES, skip, 100, -EIO);
			err = gmem_vm_convert(s.unit.vm, PAGES(&s.unit, 4), PAGES(&s.unit, 16),
					      to[i], NULL, &done);
			assert_int_equal(err, -ENOTRECOVERABLE);
			assert_non_null(strstr(gmem_last_error(), "EIO"));
			assert_true(fake_fail_struck());
			assert_true(done.size > 0 && done.size < PAGES(&s.unit, 16));
			assert_int_equal(done.converted, changed(&s, &done, i ? SHARED : PRIVATE));
			paint(&s, done.gpa / s.unit.page, done.size / s.unit.page,
			      i ? SHARED : PRIVATE);
			check_all(&s);
			/* later it works again */
			convert_ok(&s, 4, 16, to[i]);
			check_all(&s);
			scene_end(&s);
		}
	}
}

static void busy_kernel_is_retried_within_bounds(void **state)
{
	struct scene s;

	(void)state;
	scene_begin(&s);
	fake_fail_kind(FAKE_SET_ATTRIBUTES, 0, 5, -EAGAIN);
	convert_ok(&s, 4, 4, GMEM_STATE_PRIVATE);
	fake_fail_kind(FAKE_SET_ATTRIBUTES, 0, 5, -EINTR);
	convert_ok(&s, 4, 4, GMEM_STATE_SHARED);
	fake_fail_kind(FAKE_SET_ATTRIBUTES, 0, 1000, -EINTR);
	assert_refused(-EINTR, "EINTR", convert(&s, 4, 4, GMEM_STATE_PRIVATE));
	assert_true(fake_fail_struck());
	check_all(&s);
	scene_end(&s);
}

/* ---- the other side ---- */

static unsigned char *hva_of(const struct scene *s, enum who who)
{
	return gmem_region_hva(s->regions[who]);
}

static bool is_allocated(const struct scene *s, enum who who, uint64_t page, uint64_t pages)
{
	return fake_is_allocated(gmem_file_fd(gmem_region_file(s->regions[who], NULL)),
				 PAGES(&s->unit, page), PAGES(&s->unit, pages));
}

static void allocate(const struct scene *s, enum who who)
{
	assert_ok(gmem_file_allocate(gmem_region_file(s->regions[who], NULL), 0,
				     gmem_region_size(s->regions[who]), NULL));
}

static void other_side_is_discarded_at_once(void **state)
{
	struct gmem_conversion done;
	struct scene s;

	(void)state;
	scene_begin(&s);
	allocate(&s, A);
	allocate(&s, B);
	memset(hva_of(&s, A), 0xaa, PAGES(&s.unit, 8));
	memset(hva_of(&s, B), 0xbb, PAGES(&s.unit, 8));
	assert_ok(gmem_vm_convert(s.unit.vm, PAGES(&s.unit, 6), PAGES(&s.unit, 8),
				  GMEM_STATE_PRIVATE, NULL, &done));
	assert_int_equal(done.discarded, PAGES(&s.unit, 8));
	assert_int_equal(done.owed, 0);
	assert_int_equal(hva_of(&s, A)[PAGES(&s.unit, 2) - 1], 0xaa);
	assert_int_equal(hva_of(&s, A)[PAGES(&s.unit, 2)], 0);
	assert_int_equal(hva_of(&s, A)[PAGES(&s.unit, 8) - 1], 0);
	assert_int_equal(hva_of(&s, B)[0], 0);
	assert_int_equal(hva_of(&s, B)[PAGES(&s.unit, 2) - 1], 0);
	assert_int_equal(hva_of(&s, B)[PAGES(&s.unit, 2)], 0xbb);
	/* the side in use stays */
	assert_true(is_allocated(&s, A, 0, 8));
	assert_true(is_allocated(&s, B, 0, 8));

	assert_ok(gmem_vm_convert(s.unit.vm, PAGES(&s.unit, 7), PAGES(&s.unit, 6),
				  GMEM_STATE_SHARED, NULL, &done));
	assert_int_equal(done.discarded, PAGES(&s.unit, 6));
	assert_true(is_allocated(&s, A, 0, 3));
	assert_false(is_allocated(&s, A, 3, 1));
	assert_false(is_allocated(&s, A, 7, 1));
	assert_false(is_allocated(&s, B, 0, 1));
	assert_true(is_allocated(&s, B, 1, 7));
	scene_end(&s);
}

static void other_side_is_kept_on_request(void **state)
{
	GMEM_OPTS(gmem_convert_opts, keep, .discard = GMEM_DISCARD_NEVER);
	struct gmem_conversion done;
	struct scene s;

	(void)state;
	scene_begin(&s);
	memset(hva_of(&s, A), 0xaa, PAGES(&s.unit, 8));
	assert_ok(gmem_vm_convert(s.unit.vm, PAGES(&s.unit, 4), PAGES(&s.unit, 8),
				  GMEM_STATE_PRIVATE, &keep, &done));
	assert_int_equal(done.discarded, 0);
	assert_int_equal(done.owed, 0);
	assert_int_equal(hva_of(&s, A)[0], 0xaa);
	allocate(&s, A);
	assert_ok(gmem_vm_convert(s.unit.vm, PAGES(&s.unit, 4), PAGES(&s.unit, 8),
				  GMEM_STATE_SHARED, &keep, &done));
	assert_true(is_allocated(&s, A, 0, 8));
	assert_int_equal(hva_of(&s, A)[PAGES(&s.unit, 8) - 1], 0xaa);
	scene_end(&s);
}

static void deferred_discards_are_done_together(void **state)
{
	GMEM_OPTS(gmem_convert_opts, later, .discard = GMEM_DISCARD_LATER);
	struct gmem_conversion done;
	uint64_t bytes = 7, i;
	struct scene s;
	unsigned before;

	(void)state;
	scene_begin(&s);
	memset(hva_of(&s, A), 0xaa, PAGES(&s.unit, 8));
	for (i = 4; i < 12; i++) {
		assert_ok(gmem_vm_convert(s.unit.vm, PAGES(&s.unit, i), s.unit.page,
					  GMEM_STATE_PRIVATE, &later, &done));
		assert_int_equal(done.owed, s.unit.page);
		assert_int_equal(done.discarded, 0);
	}
	assert_int_equal(hva_of(&s, A)[0], 0xaa);

	/* a side in use again is no longer to be discarded, and has its bytes */
	assert_ok(gmem_vm_convert(s.unit.vm, PAGES(&s.unit, 4), s.unit.page, GMEM_STATE_SHARED,
				  NULL, &done));
	before = fake_count(FAKE_MADVISE);
	assert_ok(gmem_vm_discard_owed(s.unit.vm, &bytes));
	assert_int_equal(bytes, PAGES(&s.unit, 7));
	assert_int_equal(fake_count(FAKE_MADVISE), before + 1);
	assert_int_equal(hva_of(&s, A)[0], 0xaa);
	assert_int_equal(hva_of(&s, A)[s.unit.page], 0);
	assert_int_equal(hva_of(&s, A)[PAGES(&s.unit, 8) - 1], 0);

	/* once is enough */
	assert_ok(gmem_vm_discard_owed(s.unit.vm, &bytes));
	assert_int_equal(bytes, 0);
	assert_ok(gmem_vm_discard_owed(s.unit.vm, NULL));
	assert_refused(-EINVAL, "NULL", gmem_vm_discard_owed(NULL, &bytes));
	scene_end(&s);
}

/* Pages of the shared side pass for two huge pages of four each. */
static void huge_page_is_discarded_when_all_of_it_is_private(void **state)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_HVA);
	struct gmem_conversion done;
	struct gmem_region *region;
	struct gmem_plan *plan;
	uint64_t page, bytes;
	struct unit unit;
	char *hva;

	(void)state;
	unit_begin_vm(&unit, "7.3-swp-t1");
	page = unit.page;
	plan = unit_plan(&unit, GMEM_BACKING_PRIVATE);
	opts.plan = plan;
	hva = mmap(NULL, 12 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(hva, MAP_FAILED);
	opts.hva = hva + (4 * page - (uintptr_t)hva % (4 * page)) % (4 * page);
	fake_mark_mapping(opts.hva, 8 * page, 4 * page, "ht", 0);
	assert_ok(gmem_region_add(unit.vm, 0, 8 * page, &opts, &region));

	for (uint64_t i = 1; i < 8; i++) {
		assert_ok(gmem_vm_convert(unit.vm, i * page, page, GMEM_STATE_PRIVATE, NULL, &done));
		assert_int_equal(done.discarded, 0);
		assert_int_equal(done.owed, page);
	}
	assert_ok(gmem_vm_discard_owed(unit.vm, &bytes));
	assert_int_equal(bytes, 4 * page);
	assert_ok(gmem_vm_discard_owed(unit.vm, &bytes));
	assert_int_equal(bytes, 0);
	assert_ok(gmem_vm_convert(unit.vm, 0, page, GMEM_STATE_PRIVATE, NULL, &done));
	assert_ok(gmem_vm_discard_owed(unit.vm, &bytes));
	assert_int_equal(bytes, 4 * page);

	gmem_plan_free(plan);
	unit_end(&unit);
	munmap(hva, 12 * page);
}

static void both_sides_may_await_their_discard(void **state)
{
	GMEM_OPTS(gmem_convert_opts, later, .discard = GMEM_DISCARD_LATER);
	struct scene s;
	uint64_t bytes;

	(void)state;
	scene_begin(&s);
	allocate(&s, A);
	allocate(&s, B);
	memset(hva_of(&s, A), 0xaa, PAGES(&s.unit, 8));
	/* shared sides of 4 to 15, then private sides of 6 to 13 */
	assert_ok(gmem_vm_convert(s.unit.vm, PAGES(&s.unit, 4), PAGES(&s.unit, 12),
				  GMEM_STATE_PRIVATE, &later, NULL));
	assert_ok(gmem_vm_convert(s.unit.vm, PAGES(&s.unit, 6), PAGES(&s.unit, 8),
				  GMEM_STATE_SHARED, &later, NULL));
	assert_ok(gmem_vm_discard_owed(s.unit.vm, &bytes));
	assert_int_equal(bytes, PAGES(&s.unit, 12));
	assert_int_equal(hva_of(&s, A)[0], 0);
	assert_int_equal(hva_of(&s, A)[PAGES(&s.unit, 2)], 0xaa);
	assert_true(is_allocated(&s, A, 0, 2));
	assert_false(is_allocated(&s, A, 2, 1));
	assert_false(is_allocated(&s, B, 1, 1));
	assert_true(is_allocated(&s, B, 2, 6));
	scene_end(&s);
}

static void refused_discard_stays_pending(void **state)
{
	struct gmem_conversion done;
	struct scene s;
	uint64_t bytes;

	(void)state;
	scene_begin(&s);
	memset(hva_of(&s, A), 0xaa, PAGES(&s.unit, 8));
	fake_fail_kind(FAKE_MADVISE, 0, 1, -ENOMEM);
	assert_ok(gmem_vm_convert(s.unit.vm, PAGES(&s.unit, 4), PAGES(&s.unit, 16),
				  GMEM_STATE_PRIVATE, NULL, &done));
	paint(&s, 4, 16, PRIVATE);
	assert_true(fake_fail_struck());
	assert_int_equal(done.discarded, 0);
	assert_int_equal(done.owed, PAGES(&s.unit, 16));
	check_all(&s);

	/* the second of two is refused: the first is done */
	fake_fail_kind(FAKE_MADVISE, 1, 1, -ENOMEM);
	assert_int_equal(gmem_vm_discard_owed(s.unit.vm, &bytes), -ENOMEM);
	assert_true(fake_fail_struck());
	assert_int_equal(bytes, PAGES(&s.unit, 8));
	assert_int_equal(hva_of(&s, A)[0], 0);
	assert_ok(gmem_vm_discard_owed(s.unit.vm, &bytes));
	assert_int_equal(bytes, PAGES(&s.unit, 8));
	scene_end(&s);
}

static void mappable_private_file_has_nothing_stale(void **state)
{
	struct gmem_state_range range;
	struct gmem_conversion done;
	struct gmem_region *region;
	struct gmem_lease *lease;
	struct gmem_plan *plan;
	struct scene s;
	void *hva;

	(void)state;
	scene_begin(&s);
	plan = unit_plan_mappable_private(&s.unit);
	region = unit_region(&s.unit, 64, 4, plan);
	assert_ok(gmem_file_allocate(gmem_region_file(region, NULL), 0, PAGES(&s.unit, 4), NULL));

	/* the host cannot read it, shared or private */
	gmem_view_begin(s.view);
	assert_int_equal(gmem_view_hva(s.view, PAGES(&s.unit, 64), 8, &hva), -EACCES);
	gmem_view_end(s.view);
	assert_refused(-EACCES, "cannot read", gmem_lease_new(s.unit.vm, PAGES(&s.unit, 64), 8,
							      NULL, &lease));

	assert_ok(gmem_vm_convert(s.unit.vm, PAGES(&s.unit, 64), PAGES(&s.unit, 4),
				  GMEM_STATE_PRIVATE, NULL, &done));
	assert_int_equal(done.discarded, 0);
	assert_int_equal(gmem_vm_state(s.unit.vm, PAGES(&s.unit, 64), 1, &range, 1), 1);
	assert_int_equal(range.state, GMEM_STATE_PRIVATE);
	assert_ok(gmem_vm_convert(s.unit.vm, PAGES(&s.unit, 64), PAGES(&s.unit, 4),
				  GMEM_STATE_SHARED, NULL, &done));
	assert_int_equal(done.discarded, 0);
	assert_true(fake_is_allocated(gmem_file_fd(gmem_region_file(region, NULL)), 0,
				      PAGES(&s.unit, 4)));
	gmem_view_begin(s.view);
	assert_int_equal(gmem_view_hva(s.view, PAGES(&s.unit, 64), 8, &hva), -EACCES);
	gmem_view_end(s.view);
	gmem_plan_free(plan);
	scene_end(&s);
}

/* ---- the layout ---- */

static void removal_makes_addresses_shared_again(void **state)
{
	struct scene s;
	uint64_t i;

	(void)state;
	scene_begin(&s);
	convert_ok(&s, 6, 10, GMEM_STATE_PRIVATE);
	assert_ok(gmem_region_remove(s.regions[A]));
	paint(&s, 4, 8, HOLE);
	for (i = 4; i < 12; i++)
		s.removed[i] = true;
	check_all(&s);

	/* a region added there begins shared */
	add_region(&s, A);
	check_all(&s);
	convert_ok(&s, 4, 16, GMEM_STATE_PRIVATE);
	assert_ok(gmem_region_remove(s.regions[B]));
	paint(&s, 12, 8, HOLE);
	for (i = 12; i < 20; i++)
		s.removed[i] = true;
	check_all(&s);
	scene_end(&s);
}

static void refused_removal_leaves_states(void **state)
{
	struct scene s;
	unsigned n;

	(void)state;
	for (n = 0; n < 3; n++) {
		scene_begin(&s);
		convert_ok(&s, 4, 1, GMEM_STATE_PRIVATE);
		convert_ok(&s, 6, 1, GMEM_STATE_PRIVATE);
		convert_ok(&s, 10, 4, GMEM_STATE_PRIVATE);
		fake_fail_kind(FAKE_SET_ATTRIBUTES, n, 1, -ENOMEM);
		assert_refused(-ENOMEM, "ENOMEM", gmem_region_remove(s.regions[A]));
		assert_true(fake_fail_struck());
		check_all(&s);
		scene_end(&s);
	}
}

/* A region in another's place, in one change: it does not inherit what was private. */
static void replacement_begins_shared(void **state)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = 0);
	struct gmem_change *change;
	struct scene s;
	uint64_t i;

	(void)state;
	scene_begin(&s);
	convert_ok(&s, 4, 16, GMEM_STATE_PRIVATE);
	assert_ok(gmem_change_new(s.unit.vm, &change));
	opts.plan = s.plan;
	assert_ok(gmem_change_add(change, PAGES(&s.unit, 6), PAGES(&s.unit, 4), &opts,
				  &s.regions[A]));
	assert_ok(gmem_change_remove(change, s.regions[A]));
	fake_fail_kind(FAKE_SET_ATTRIBUTES, 0, 1, -ENOMEM);
	assert_refused(-ENOMEM, "step 2 of 2, remove", gmem_change_apply(change));
	check_all(&s);
	assert_ok(gmem_change_apply(change));
	paint(&s, 4, 8, HOLE);
	for (i = 4; i < 12; i++)
		s.removed[i] = true;
	paint(&s, 6, 4, SHARED);
	check_all(&s);
	gmem_change_free(change);
	scene_end(&s);
}

static void region_that_is_private_in_part_does_not_move(void **state)
{
	struct scene s;

	(void)state;
	scene_begin(&s);
	convert_ok(&s, 5, 1, GMEM_STATE_PRIVATE);
	assert_refused(-EACCES, "private in part",
		       gmem_region_move(s.regions[A], PAGES(&s.unit, 100)));
	check_all(&s);
	convert_ok(&s, 5, 1, GMEM_STATE_SHARED);
	assert_ok(gmem_region_move(s.regions[A], PAGES(&s.unit, 100)));
	scene_end(&s);
}

static void split_and_rebind_keep_states(void **state)
{
	struct gmem_region *upper;
	struct gmem_file *file;
	struct scene s;

	(void)state;
	scene_begin(&s);
	convert_ok(&s, 6, 4, GMEM_STATE_PRIVATE);
	assert_ok(gmem_region_split(s.regions[A], PAGES(&s.unit, 4), &upper));
	check_all(&s);
	assert_ok(gmem_file_new_raw(s.unit.vm_fd, PAGES(&s.unit, 8), 0, &file));
	assert_ok(gmem_region_rebind(s.regions[A], file, 0));
	check_all(&s);
	convert_ok(&s, 4, 8, GMEM_STATE_SHARED);
	check_all(&s);
	gmem_file_free(file);
	scene_end(&s);
}

static void removed_region_has_no_pending_discard(void **state)
{
	GMEM_OPTS(gmem_convert_opts, later, .discard = GMEM_DISCARD_LATER);
	struct scene s;
	uint64_t bytes;

	(void)state;
	scene_begin(&s);
	assert_ok(gmem_vm_convert(s.unit.vm, PAGES(&s.unit, 4), PAGES(&s.unit, 16),
				  GMEM_STATE_PRIVATE, &later, NULL));
	assert_ok(gmem_region_remove(s.regions[A]));
	assert_ok(gmem_vm_discard_owed(s.unit.vm, &bytes));
	assert_int_equal(bytes, PAGES(&s.unit, 8));
	scene_end(&s);
}

/* There and back, discarding later: the private side of all of A is owed. */
static void owe_private_side(struct scene *s)
{
	GMEM_OPTS(gmem_convert_opts, later, .discard = GMEM_DISCARD_LATER);
	uint64_t gpa = gmem_region_gpa(s->regions[A]), size = gmem_region_size(s->regions[A]);

	allocate(s, A);
	assert_ok(gmem_vm_convert(s->unit.vm, gpa, size, GMEM_STATE_PRIVATE, &later, NULL));
	assert_ok(gmem_vm_convert(s->unit.vm, gpa, size, GMEM_STATE_SHARED, &later, NULL));
}

static void what_a_region_owes_moves_and_splits_with_it(void **state)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = 0);
	struct gmem_region *other = NULL, *upper = NULL;
	struct gmem_file *file;
	struct scene s;
	uint64_t size, bytes;

	(void)state;
	scene_begin(&s);
	size = gmem_region_size(s.regions[A]);
	file = gmem_region_file(s.regions[A], NULL);
	owe_private_side(&s);
	assert_ok(gmem_region_move(s.regions[A], PAGES(&s.unit, 100)));
	/* Another region comes to where it was, and has all of its memory. */
	opts.plan = s.plan;
	assert_ok(gmem_region_add(s.unit.vm, PAGES(&s.unit, 4), size, &opts, &other));
	assert_ok(gmem_file_allocate(gmem_region_file(other, NULL), 0, size, NULL));
	assert_ok(gmem_region_split(s.regions[A], PAGES(&s.unit, 2), &upper));
	assert_ok(gmem_region_remove(s.regions[A]));
	assert_ok(gmem_vm_discard_owed(s.unit.vm, &bytes));
	assert_int_equal(bytes, size - PAGES(&s.unit, 2));
	assert_true(fake_is_allocated(gmem_file_fd(gmem_region_file(other, NULL)), 0, size));
	assert_ptr_equal(gmem_region_file(upper, NULL), file);
	assert_false(fake_is_allocated(gmem_file_fd(file), PAGES(&s.unit, 2), bytes));
	scene_end(&s);
}

static void what_a_file_owes_ends_with_its_rebind(void **state)
{
	struct gmem_file *file;
	struct scene s;
	uint64_t size, bytes;

	(void)state;
	scene_begin(&s);
	size = gmem_region_size(s.regions[A]);
	owe_private_side(&s);
	assert_ok(gmem_file_new(s.unit.vm_fd, size, s.plan, &file));
	assert_ok(gmem_file_allocate(file, 0, size, NULL));
	assert_ok(gmem_region_rebind(s.regions[A], file, 0));
	assert_ok(gmem_vm_discard_owed(s.unit.vm, &bytes));
	assert_int_equal(bytes, 0);
	assert_true(fake_is_allocated(gmem_file_fd(file), 0, size));
	gmem_file_free(file);
	scene_end(&s);
}

static void removal_that_cannot_allocate_changes_nothing(void **state)
{
	GMEM_OPTS(gmem_convert_opts, later, .discard = GMEM_DISCARD_LATER);
	struct scene s;
	unsigned n;
	int err;

	(void)state;
	scene_begin(&s);
	assert_ok(gmem_vm_convert(s.unit.vm, PAGES(&s.unit, 6), PAGES(&s.unit, 8),
				  GMEM_STATE_PRIVATE, &later, NULL));
	paint(&s, 6, 8, PRIVATE);
	for (n = 1;; n++) {
		unit_fail_alloc(n);
		err = gmem_region_remove(s.regions[A]);
		if (!unit_alloc_struck())
			break;
		assert_int_equal(err, -ENOMEM);
		check_all(&s);
	}
	assert_ok(err);
	assert_true(n > 3);
	scene_end(&s);
}

/* ---- leases ---- */

static struct gmem_lease *lease(struct scene *s, uint64_t gpa, uint64_t size, const char *holder)
{
	GMEM_OPTS(gmem_lease_opts, opts, .holder = holder);
	struct gmem_lease *ret = NULL;

	assert_ok(gmem_lease_new(s->unit.vm, gpa, size, &opts, &ret));
	return ret;
}

static void lease_keeps_memory_shared_and_in_place(void **state)
{
	struct gmem_region *upper = UNTOUCHED(struct gmem_region);
	struct gmem_lease *held, *other;
	struct gmem_file *file;
	struct scene s;

	(void)state;
	scene_begin(&s);
	/* one byte in each of two regions */
	held = lease(&s, PAGES(&s.unit, 12) - 1, 2, "disk 7");
	other = lease(&s, PAGES(&s.unit, 4), PAGES(&s.unit, 16), NULL);
	assert_refused(-EBUSY, "\"unnamed\"", convert(&s, 4, 1, GMEM_STATE_PRIVATE));
	gmem_lease_free(other);

	assert_refused(-EBUSY, "\"disk 7\"", convert(&s, 11, 1, GMEM_STATE_PRIVATE));
	assert_refused(-EBUSY, "\"disk 7\"", convert(&s, 12, 1, GMEM_STATE_PRIVATE));
	assert_refused(-EBUSY, "\"disk 7\"", gmem_vm_adopt_private(s.unit.vm, PAGES(&s.unit, 12),
								   s.unit.page));
	convert_ok(&s, 4, 7, GMEM_STATE_PRIVATE);
	convert_ok(&s, 13, 7, GMEM_STATE_PRIVATE);
	/* it is shared: that changes nothing */
	convert_ok(&s, 4, 16, GMEM_STATE_SHARED);
	assert_refused(-EBUSY, "\"disk 7\"", gmem_region_remove(s.regions[A]));
	assert_refused(-EBUSY, "\"disk 7\"", gmem_region_move(s.regions[B], PAGES(&s.unit, 200)));
	assert_refused(-EBUSY, "\"disk 7\"", gmem_region_split(s.regions[B], s.unit.page, &upper));
	assert_ptr_equal(upper, UNTOUCHED(struct gmem_region));
	assert_ok(gmem_file_new_raw(s.unit.vm_fd, PAGES(&s.unit, 8), 0, &file));
	assert_refused(-EBUSY, "\"disk 7\"", gmem_region_rebind(s.regions[A], file, 0));
	gmem_file_free(file);
	check_all(&s);

	gmem_lease_free(held);
	gmem_lease_free(NULL);
	convert_ok(&s, 4, 16, GMEM_STATE_PRIVATE);
	assert_ok(gmem_region_remove(s.regions[A]));
	scene_end(&s);
}

static void lease_is_given_on_shared_memory_only(void **state)
{
	struct gmem_lease *got = UNTOUCHED(struct gmem_lease);
	GMEM_OPTS(gmem_lease_opts, opts, .holder = NULL);
	struct gmem_vm *vm;
	struct scene s;

	(void)state;
	scene_begin(&s);
	vm = s.unit.vm;
	convert_ok(&s, 6, 1, GMEM_STATE_PRIVATE);
	assert_refused(-EACCES, "gpa 0x6000 is private",
		       gmem_lease_new(vm, PAGES(&s.unit, 4), PAGES(&s.unit, 4), NULL, &got));
	assert_refused(-ENOENT, "0x14000", gmem_lease_new(vm, PAGES(&s.unit, 19), PAGES(&s.unit, 4),
							   NULL, &got));
	assert_refused(-ENXIO, "device", gmem_lease_new(vm, PAGES(&s.unit, 24), PAGES(&s.unit, 6),
							NULL, &got));
	assert_refused(-EINVAL, "no range", gmem_lease_new(vm, 0, 0, NULL, &got));
	assert_refused(-EINVAL, "no range", gmem_lease_new(vm, 2, UINT64_MAX, NULL, &got));
	assert_refused(-EINVAL, "NULL", gmem_lease_new(NULL, 0, 1, NULL, &got));
	assert_refused(-EINVAL, "NULL", gmem_lease_new(vm, 0, 1, NULL, NULL));
	opts.size = 8;
	assert_refused(-EINVAL, "gmem_lease_opts",
		       gmem_lease_new(vm, PAGES(&s.unit, 4), 1, &opts, &got));
	assert_ptr_equal(got, UNTOUCHED(struct gmem_lease));
	unit_fail_alloc(1);
	assert_int_equal(gmem_lease_new(vm, PAGES(&s.unit, 4), 1, NULL, &got), -ENOMEM);
	assert_true(unit_alloc_struck());
	/* host memory is shared for good */
	got = lease(&s, PAGES(&s.unit, 24), PAGES(&s.unit, 4), "x");
	gmem_lease_free(got);
	scene_end(&s);
}

static void *convert_and_wait(void *data)
{
	GMEM_OPTS(gmem_convert_opts, opts, .wait_ms = 600000);
	struct scene *s = data;

	return (void *)(intptr_t)gmem_vm_convert(s->unit.vm, PAGES(&s->unit, 4),
						 PAGES(&s->unit, 8), GMEM_STATE_PRIVATE, &opts,
						 NULL);
}

/* Returns once a conversion waits: no new lease is given in front of it. */
static void await_waiting_conversion(struct scene *s)
{
	struct gmem_lease *more;

	while (!gmem_lease_new(s->unit.vm, PAGES(&s->unit, 5), 1, NULL, &more)) {
		gmem_lease_free(more);
		gmem_sys_pause(100);
	}
	assert_non_null(strstr(gmem_last_error(), "is being converted to private"));
}

static void conversion_waits_for_leases(void **state)
{
	struct gmem_lease *first, *second;
	pthread_t thread;
	struct scene s;
	void *result;

	(void)state;
	scene_begin(&s);
	first = lease(&s, PAGES(&s.unit, 4), 1, "first");
	second = lease(&s, PAGES(&s.unit, 11), 1, "second");
	assert_int_equal(pthread_create(&thread, NULL, convert_and_wait, &s), 0);
	await_waiting_conversion(&s);
	check_all(&s);

	/* elsewhere all goes on */
	convert_ok(&s, 12, 4, GMEM_STATE_PRIVATE);
	assert_ok(gmem_region_remove(s.regions[E]));
	paint(&s, 32, 4, HOLE);
	gmem_lease_free(first);
	await_waiting_conversion(&s);
	gmem_lease_free(second);
	assert_int_equal(pthread_join(thread, &result), 0);
	assert_null(result);
	paint(&s, 4, 8, PRIVATE);
	check_record(&s, 16);
	check_kernel(&s);
	scene_end(&s);
}

static void wait_for_leases_has_a_limit(void **state)
{
	GMEM_OPTS(gmem_convert_opts, opts, .wait_ms = 20);
	struct gmem_lease *held;
	struct scene s;

	(void)state;
	scene_begin(&s);
	held = lease(&s, PAGES(&s.unit, 4), 1, "a snapshot");
	assert_refused(-EBUSY, "\"a snapshot\"",
		       gmem_vm_convert(s.unit.vm, PAGES(&s.unit, 4), s.unit.page,
				       GMEM_STATE_PRIVATE, &opts, NULL));
	gmem_lease_free(held);
	convert_ok(&s, 4, 1, GMEM_STATE_PRIVATE);
	scene_end(&s);
}

/* ---- listeners ---- */

struct ear {
	struct scene *s;
	char name;
	char *log;		/* all of them write there */
	uint64_t refuses;	/* page, 0: none */
	struct gmem_listener *listener;
};

#define LOG_SIZE 1024

/* What, to whom, and the pages: "+A5-6 " */
static void note(const struct ear *ear, char what, uint64_t gpa, uint64_t size)
{
	size_t used = strlen(ear->log);
	uint64_t page = gpa / ear->s->unit.page;

	snprintf(ear->log + used, LOG_SIZE - used, "%c%c%d-%d ", what, ear->name, (int)page,
		 (int)(page + size / ear->s->unit.page - 1));
}

/* Within the callback, readers and leases work. */
static int hear_before(void *data, uint64_t gpa, uint64_t size)
{
	const struct ear *ear = data;
	uint64_t page = gpa / ear->s->unit.page;

	note(ear, '?', gpa, size);
	assert_false(fake_is_private(ear->s->unit.vm_fd, gpa));
	check_record(ear->s, 16);
	if (ear->refuses && page <= ear->refuses && ear->refuses < page + size / ear->s->unit.page)
		return -EADDRINUSE;
	return 0;
}

static void hear_undo(void *data, uint64_t gpa, uint64_t size)
{
	const struct ear *ear = data;

	note(ear, '!', gpa, size);
	assert_false(fake_is_private(ear->s->unit.vm_fd, gpa));
	/* a listener's own failure must not get into our sentence */
	assert_int_equal(gmem_vm_state(NULL, 0, 0, NULL, 0), -EINVAL);
}

static void hear_shared(void *data, uint64_t gpa, uint64_t size)
{
	const struct ear *ear = data;
	struct gmem_lease *held;

	note(ear, '=', gpa, size);
	assert_false(fake_is_private(ear->s->unit.vm_fd, gpa));
	assert_ok(gmem_lease_new(ear->s->unit.vm, gpa, size, NULL, &held));
	gmem_lease_free(held);
}

static void hear_removed(void *data, uint64_t gpa, uint64_t size)
{
	note(data, '-', gpa, size);
}

static void listen_with(struct ear *ear, struct scene *s, char name, char *log)
{
	char text[] = { name, '\0' };
	GMEM_OPTS(gmem_listener_opts, opts, .name = text, .data = ear,
		  .before_private = hear_before, .undo_private = hear_undo,
		  .after_shared = hear_shared, .removed = hear_removed);

	*ear = (struct ear){ .s = s, .name = name, .log = log };
	assert_ok(gmem_listener_new(s->unit.vm, &opts, &ear->listener));
}

#define assert_heard(log, text)								\
	do {										\
		assert_string_equal((log), (text));					\
		(log)[0] = '\0';							\
	} while (0)

static void listeners_hear_what_changes_in_order(void **state)
{
	GMEM_OPTS(gmem_listener_opts, opts, .name = "deaf");
	struct gmem_listener *deaf;
	char log[LOG_SIZE] = "";
	struct ear x, y;
	struct scene s;

	(void)state;
	scene_begin(&s);
	listen_with(&x, &s, 'x', log);
	assert_ok(gmem_listener_new(s.unit.vm, &opts, &deaf));
	listen_with(&y, &s, 'y', log);
	convert_ok(&s, 6, 2, GMEM_STATE_PRIVATE);
	assert_heard(log, "?x6-7 ?y6-7 ");
	convert_ok(&s, 10, 3, GMEM_STATE_PRIVATE);
	assert_heard(log, "?x10-12 ?y10-12 ");
	convert_ok(&s, 4, 16, GMEM_STATE_PRIVATE);
	assert_heard(log, "?x4-5 ?x8-9 ?x13-19 ?y4-5 ?y8-9 ?y13-19 ");
	convert_ok(&s, 4, 16, GMEM_STATE_PRIVATE);
	assert_heard(log, "");
	convert_ok(&s, 8, 2, GMEM_STATE_SHARED);
	assert_heard(log, "=x8-9 =y8-9 ");
	convert_ok(&s, 4, 16, GMEM_STATE_SHARED);
	assert_heard(log, "=x4-7 =x10-19 =y4-7 =y10-19 ");
	check_all(&s);

	gmem_listener_free(x.listener);
	gmem_listener_free(deaf);
	convert_ok(&s, 4, 1, GMEM_STATE_PRIVATE);
	assert_heard(log, "?y4-4 ");
	gmem_listener_free(y.listener);
	gmem_listener_free(NULL);
	convert_ok(&s, 5, 1, GMEM_STATE_PRIVATE);
	assert_heard(log, "");
	scene_end(&s);
}

static void refusal_of_a_listener_changes_nothing(void **state)
{
	static const struct {
		char who;
		uint64_t page;
		const char *heard;
	} cases[] = {
		{ 'x', 4, "?x4-5 " },
		{ 'x', 14, "?x4-5 ?x8-9 ?x13-19 !x4-5 !x8-9 " },
		{ 'y', 8, "?x4-5 ?x8-9 ?x13-19 ?y4-5 ?y8-9 !y4-5 !x4-5 !x8-9 !x13-19 " },
		{ 'z', 5, "?x4-5 ?x8-9 ?x13-19 ?y4-5 ?y8-9 ?y13-19 ?z4-5 "
			  "!y4-5 !y8-9 !y13-19 !x4-5 !x8-9 !x13-19 " },
	};
	struct gmem_conversion done;
	char log[LOG_SIZE] = "";
	struct ear ears[3];
	struct scene s;
	size_t i, j;

	(void)state;
	scene_begin(&s);
	convert_ok(&s, 6, 2, GMEM_STATE_PRIVATE);
	convert_ok(&s, 10, 3, GMEM_STATE_PRIVATE);
	for (j = 0; j < 3; j++)
		listen_with(&ears[j], &s, "xyz"[j], log);
	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		ears[cases[i].who - 'x'].refuses = cases[i].page;
		assert_refused(-EADDRINUSE, "\" refuses that gpa",
			       gmem_vm_convert(s.unit.vm, PAGES(&s.unit, 4), PAGES(&s.unit, 16),
					       GMEM_STATE_PRIVATE, NULL, &done));
		assert_int_equal(done.size, 0);
		assert_heard(log, cases[i].heard);
		check_all(&s);
		ears[cases[i].who - 'x'].refuses = 0;
	}
	for (j = 0; j < 3; j++)
		gmem_listener_free(ears[j].listener);
	scene_end(&s);
}

static void refusal_of_the_kernel_is_undone_with_listeners(void **state)
{
	struct gmem_conversion done;
	char log[LOG_SIZE] = "";
	struct ear x, y;
	struct scene s;

	(void)state;
	scene_begin(&s);
	convert_ok(&s, 6, 2, GMEM_STATE_PRIVATE);
	listen_with(&x, &s, 'x', log);
	listen_with(&y, &s, 'y', log);
	fake_fail_kind(FAKE_SET_ATTRIBUTES, 1, 1, -ENOMEM);
	assert_refused(-ENOMEM, "VM fd", convert(&s, 4, 8, GMEM_STATE_PRIVATE));
	assert_heard(log, "?x4-5 ?x8-11 ?y4-5 ?y8-11 !y4-5 !y8-11 !x4-5 !x8-11 ");
	check_all(&s);

	/* listeners do not hear an undo that failed */
	fake_fail_kind(FAKE_SET_ATTRIBUTES, 1, 100, -ENOMEM);
	assert_int_equal(gmem_vm_convert(s.unit.vm, PAGES(&s.unit, 4), PAGES(&s.unit, 8),
					 GMEM_STATE_PRIVATE, NULL, &done), -ENOTRECOVERABLE);
	assert_non_null(strstr(gmem_last_error(), "are private now"));
	assert_true(fake_fail_struck());
	assert_heard(log, "?x4-5 ?x8-11 ?y4-5 ?y8-11 !y8-11 !x8-11 ");
	paint(&s, 4, 4, PRIVATE);
	check_all(&s);

	/* nor is what is shared kept from them */
	convert_ok(&s, 7, 1, GMEM_STATE_SHARED);
	convert_ok(&s, 9, 1, GMEM_STATE_PRIVATE);
	log[0] = '\0';
	fake_fail_kind(FAKE_SET_ATTRIBUTES, 1, 100, -ENOMEM);
	assert_int_equal(gmem_vm_convert(s.unit.vm, PAGES(&s.unit, 4), PAGES(&s.unit, 8),
					 GMEM_STATE_SHARED, NULL, &done), -ENOTRECOVERABLE);
	assert_true(fake_fail_struck());
	assert_heard(log, "=x4-6 =y4-6 ");
	paint(&s, 4, 3, SHARED);
	check_all(&s);
	gmem_listener_free(x.listener);
	gmem_listener_free(y.listener);
	scene_end(&s);
}

static void listeners_hear_of_memory_that_goes(void **state)
{
	struct gmem_region *upper;
	struct gmem_file *file;
	char log[LOG_SIZE] = "";
	struct scene s;
	struct ear x;

	(void)state;
	scene_begin(&s);
	listen_with(&x, &s, 'x', log);
	assert_ok(gmem_region_split(s.regions[F], PAGES(&s.unit, 100), &upper));
	assert_ok(gmem_region_remove(s.regions[D]));
	assert_heard(log, "");
	assert_ok(gmem_region_remove(s.regions[A]));
	assert_heard(log, "-x4-11 ");
	assert_ok(gmem_region_move(s.regions[B], PAGES(&s.unit, 100)));
	assert_heard(log, "-x12-19 ");
	assert_ok(gmem_file_new_raw(s.unit.vm_fd, PAGES(&s.unit, 4), 0, &file));
	assert_ok(gmem_region_rebind(s.regions[E], file, 0));
	assert_heard(log, "-x32-35 ");
	gmem_file_free(file);
	fake_fail_next(FAKE_DELETE_SLOT, -ENOMEM);
	assert_refused(-ENOMEM, "delete", gmem_region_remove(upper));
	assert_heard(log, "");
	gmem_listener_free(x.listener);
	scene_end(&s);
}

static void conversion_allocates_nothing(void **state)
{
	GMEM_OPTS(gmem_listener_opts, opts, .before_private = hear_before);
	char log[LOG_SIZE] = "";
	struct scene s;
	struct ear x = { .s = &s, .name = 'x', .log = log };

	(void)state;
	scene_begin(&s);
	opts.data = &x;
	assert_ok(gmem_listener_new(s.unit.vm, &opts, &x.listener));
	make_islands(&s);
	unit_fail_alloc(1);
	assert_ok(convert(&s, 4, 8, GMEM_STATE_PRIVATE));
	paint(&s, 4, 8, PRIVATE);
	check_all(&s);
	assert_ok(convert(&s, 4, 8, GMEM_STATE_SHARED));
	assert_false(unit_alloc_struck());
	paint(&s, 4, 8, SHARED);
	check_all(&s);
	gmem_listener_free(x.listener);
	scene_end(&s);
}

static void malformed_listener_is_refused(void **state)
{
	GMEM_OPTS(gmem_listener_opts, opts, .name = NULL);
	struct gmem_listener *got = UNTOUCHED(struct gmem_listener);
	struct scene s;

	(void)state;
	scene_begin(&s);
	assert_refused(-EINVAL, "NULL", gmem_listener_new(NULL, &opts, &got));
	assert_refused(-EINVAL, "NULL", gmem_listener_new(s.unit.vm, &opts, NULL));
	opts.size = 16;
	assert_refused(-EINVAL, "gmem_listener_opts", gmem_listener_new(s.unit.vm, &opts, &got));
	unit_fail_alloc(1);
	assert_int_equal(gmem_listener_new(s.unit.vm, NULL, &got), -ENOMEM);
	assert_true(unit_alloc_struck());
	assert_ptr_equal(got, UNTOUCHED(struct gmem_listener));
	scene_end(&s);
}

/* ---- all at once ---- */

#define ROUNDS 400

struct crowd {
	struct scene *s;
	unsigned bad;		/* what no thread may see */
	unsigned stop;
	unsigned conversions;
};

static void bad_if(struct crowd *c, bool bad)
{
	if (bad)
		__atomic_fetch_add(&c->bad, 1, __ATOMIC_RELAXED);
}

static uint32_t next_random(uint32_t *seed)
{
	*seed = *seed * 1664525 + 1013904223;
	return *seed >> 8;
}

static bool is_refusal_of_hotplug(int err)
{
	return err == -ENOENT || err == -EBUSY;
}

static void *many_conversions(void *data)
{
	GMEM_OPTS(gmem_convert_opts, opts, .flags = 0);
	struct crowd *c = data;
	uint32_t seed = 77 + __atomic_fetch_add(&c->conversions, 1, __ATOMIC_RELAXED);
	unsigned i;
	int err;

	for (i = 0; i < ROUNDS; i++) {
		uint64_t page = 4 + next_random(&seed) % 32, pages = 1 + next_random(&seed) % 8;
		uint32_t state = 1 + next_random(&seed) % 2;

		opts.discard = next_random(&seed) % 3;
		opts.wait_ms = next_random(&seed) % 2 ? 60000 : 0;
		err = gmem_vm_convert(c->s->unit.vm, PAGES(&c->s->unit, page),
				      PAGES(&c->s->unit, pages), state, &opts, NULL);
		bad_if(c, err && !is_refusal_of_hotplug(err) && err != -EOPNOTSUPP && err != -ENXIO);
		if (i % 16 == 0)
			bad_if(c, gmem_vm_discard_owed(c->s->unit.vm, NULL) != 0);
	}
	return NULL;
}

/* Pages that a view or a lease holds must not become private meanwhile. */
static void *many_looks(void *data)
{
	struct crowd *c = data;
	struct gmem_state_range ranges[8];
	struct gmem_view *view;
	struct gmem_lease *held;
	uint32_t seed = 5;
	void *hva;

	if (gmem_view_new(c->s->unit.vm, &view))
		abort();
	while (!__atomic_load_n(&c->stop, __ATOMIC_RELAXED)) {
		uint64_t gpa = PAGES(&c->s->unit, 4 + next_random(&seed) % 32);

		gmem_view_begin(view);
		if (!gmem_view_hva(view, gpa, 8, &hva)) {
			bad_if(c, fake_is_private(c->s->unit.vm_fd, gpa));
			sched_yield();
			bad_if(c, fake_is_private(c->s->unit.vm_fd, gpa));
		}
		gmem_view_end(view);
		if (!gmem_lease_new(c->s->unit.vm, gpa, 8, NULL, &held)) {
			bad_if(c, fake_is_private(c->s->unit.vm_fd, gpa));
			sched_yield();
			bad_if(c, fake_is_private(c->s->unit.vm_fd, gpa));
			gmem_lease_free(held);
		}
		bad_if(c, gmem_vm_state(c->s->unit.vm, 0, PAGES(&c->s->unit, 100), ranges, 8) < 1);
	}
	gmem_view_free(view);
	return NULL;
}

static void *much_hotplug(void *data)
{
	struct crowd *c = data;
	struct gmem_listener *listener;
	GMEM_OPTS(gmem_region_opts, opts, .plan = c->s->plan);
	unsigned i;
	int err;

	for (i = 0; i < ROUNDS / 4; i++) {
		if (gmem_listener_new(c->s->unit.vm, NULL, &listener))
			abort();
		err = gmem_region_remove(c->s->regions[E]);
		gmem_listener_free(listener);
		if (err == -EBUSY) {
			sched_yield();
			continue;
		}
		bad_if(c, err != 0);
		if (err)
			break;
		bad_if(c, fake_is_private(c->s->unit.vm_fd, PAGES(&c->s->unit, home[E].page)));
		if (gmem_region_add(c->s->unit.vm, PAGES(&c->s->unit, home[E].page),
				    PAGES(&c->s->unit, home[E].pages), &opts, &c->s->regions[E]))
			abort();
	}
	return NULL;
}

static void threads_convert_look_and_hotplug_at_once(void **state)
{
	pthread_t converters[2], reader, plugger;
	struct gmem_state_range range;
	struct crowd c = { 0 };
	struct scene s;
	uint64_t page;
	size_t i;

	(void)state;
	scene_begin(&s);
	c.s = &s;
	for (i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&converters[i], NULL, many_conversions, &c), 0);
	assert_int_equal(pthread_create(&reader, NULL, many_looks, &c), 0);
	assert_int_equal(pthread_create(&plugger, NULL, much_hotplug, &c), 0);
	for (i = 0; i < 2; i++)
		pthread_join(converters[i], NULL);
	pthread_join(plugger, NULL);
	__atomic_store_n(&c.stop, 1, __ATOMIC_RELAXED);
	pthread_join(reader, NULL);
	assert_int_equal(c.bad, 0);

	/* the record is what the kernel has, and so are the readers' tables */
	for (page = 4; page < 36; page++) {
		assert_int_equal(gmem_vm_state(s.unit.vm, PAGES(&s.unit, page), 1, &range, 1), 1);
		if (range.backing != GMEM_BACKING_PRIVATE)
			continue;
		s.at[page] = range.state == GMEM_STATE_PRIVATE ? PRIVATE : SHARED;
	}
	check_all(&s);
	scene_end(&s);
}

/* With a listener the pages are marked, and the ends of a run are searched for. */
static void a_long_run_takes_one_call_for_each_gib_of_it(void **state)
{
	const uint64_t gib = (uint64_t)1 << 30;
	static const struct {
		unsigned int start, end, calls;		/* GiB / 4 */
	} cases[] = {
		{ 0, 16, 4 }, { 2, 6, 1 }, { 3, 5, 1 }, { 1, 6, 2 }, { 15, 16, 1 }, { 3, 16, 4 }, { 4, 8, 1 },
	};
	GMEM_OPTS(gmem_region_opts, opts, .flags = 0);
	struct gmem_listener_opts nothing = { .size = sizeof(nothing) };
	struct gmem_conversion done;
	struct gmem_listener *listener;
	struct gmem_region *region;
	struct unit unit;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct gmem_plan *plan;

		unit_begin_vm(&unit, "7.3-swp-t1");
		plan = unit_plan(&unit, GMEM_BACKING_PRIVATE);
		opts.plan = plan;
		assert_ok(gmem_region_add(unit.vm, 0, 4 * gib, &opts, &region));
		assert_ok(gmem_listener_new(unit.vm, &nothing, &listener));
		assert_ok(gmem_vm_convert(unit.vm, cases[i].start * gib / 4,
					  (cases[i].end - cases[i].start) * gib / 4, GMEM_STATE_PRIVATE,
					  NULL, &done));
		assert_int_equal(done.ioctls, cases[i].calls);
		assert_ok(gmem_vm_convert(unit.vm, 0, 4 * gib, GMEM_STATE_SHARED, NULL, &done));
		assert_int_equal(done.ioctls, cases[i].calls);
		assert_int_equal(done.converted, (cases[i].end - cases[i].start) * gib / 4);
		gmem_listener_free(listener);
		gmem_vm_free(unit.vm);
		unit.vm = NULL;
		gmem_plan_free(plan);
		unit_end(&unit);
	}
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(conversion_is_seen_by_readers_record_and_kernel),
	cmocka_unit_test(huge_page_is_discarded_when_all_of_it_is_private),
	cmocka_unit_test(adjacent_regions_take_one_call),
	cmocka_unit_test(pages_converted_already_cost_no_system_call),
	cmocka_unit_test(convert_all_overrides_what_another_program_set),
	cmocka_unit_test(adopted_memory_is_private_without_a_call),
	cmocka_unit_test(range_with_anything_else_in_it_is_refused),
	cmocka_unit_test(malformed_conversion_is_refused),
	cmocka_unit_test(state_query_checks_its_arguments),
	cmocka_unit_test(vm_without_private_memory_refuses),
	cmocka_unit_test(refusal_is_undone_at_every_step),
	cmocka_unit_test(part_that_cannot_be_undone_is_described),
	cmocka_unit_test(busy_kernel_is_retried_within_bounds),
	cmocka_unit_test(other_side_is_discarded_at_once),
	cmocka_unit_test(other_side_is_kept_on_request),
	cmocka_unit_test(deferred_discards_are_done_together),
	cmocka_unit_test(both_sides_may_await_their_discard),
	cmocka_unit_test(refused_discard_stays_pending),
	cmocka_unit_test(mappable_private_file_has_nothing_stale),
	cmocka_unit_test(removal_makes_addresses_shared_again),
	cmocka_unit_test(refused_removal_leaves_states),
	cmocka_unit_test(replacement_begins_shared),
	cmocka_unit_test(region_that_is_private_in_part_does_not_move),
	cmocka_unit_test(split_and_rebind_keep_states),
	cmocka_unit_test(removed_region_has_no_pending_discard),
	cmocka_unit_test(what_a_region_owes_moves_and_splits_with_it),
	cmocka_unit_test(what_a_file_owes_ends_with_its_rebind),
	cmocka_unit_test(removal_that_cannot_allocate_changes_nothing),
	cmocka_unit_test(lease_keeps_memory_shared_and_in_place),
	cmocka_unit_test(lease_is_given_on_shared_memory_only),
	cmocka_unit_test(conversion_waits_for_leases),
	cmocka_unit_test(wait_for_leases_has_a_limit),
	cmocka_unit_test(listeners_hear_what_changes_in_order),
	cmocka_unit_test(refusal_of_a_listener_changes_nothing),
	cmocka_unit_test(refusal_of_the_kernel_is_undone_with_listeners),
	cmocka_unit_test(listeners_hear_of_memory_that_goes),
	cmocka_unit_test(conversion_allocates_nothing),
	cmocka_unit_test(malformed_listener_is_refused),
	cmocka_unit_test(threads_convert_look_and_hotplug_at_once),
	cmocka_unit_test(a_long_run_takes_one_call_for_each_gib_of_it),
};

UNIT_MAIN(tests)
