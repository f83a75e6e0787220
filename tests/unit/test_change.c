/* SPDX-License-Identifier: MIT */
/* change, apply and apply_slots: all steps of a change are made, or none */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "unit.h"
#include "unit_alloc.h"

#define NO_REGION	UNTOUCHED(struct gmem_region)

/* ---- a scene: regions of every kind, and a reader ---- */

enum who { A, B, C, D, E, X, REGIONS };

#define MODEL_PAGES	640
#define MAX_STEPS	12

/* The model's entry for a page: a region's number, ADDED or more for an added one, or these */
#define ADDED		REGIONS
#define HOLE		(-ENOENT)
#define REMOVED		(-ESTALE)

struct scene {
	struct unit unit;
	struct gmem_plan *host;
	struct gmem_plan *mapped;
	struct gmem_file *file;		/* 16 pages; C has the first 4, E the next */
	struct gmem_view *view;
	struct gmem_change *change;
	struct gmem_region *regions[REGIONS + MAX_STEPS];
	int at[MODEL_PAGES];
};

static const struct {
	uint64_t page;
	uint64_t pages;
} home[REGIONS] = {
	[A] = { 4, 4 },		/* shared, a file of its own */
	[B] = { 16, 4 },	/* host memory */
	[C] = { 32, 4 },	/* mapped, part of the file */
	[D] = { 64, 4 },	/* a device */
	[E] = { 80, 4 },	/* shared, part of the file, memslot 9 */
	[X] = { 512, 4 },	/* shared; no change has anything to do with it */
};

/* The options of a region like one of those; what it brings must be free. */
static struct gmem_region_opts like(const struct scene *s, enum who who)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = 0);

	switch (who) {
	case B:
		opts.plan = s->host;
		break;
	case C:
		opts.plan = s->mapped;
		opts.file = s->file;
		break;
	case D:
		opts.flags = GMEM_REGION_DEVICE;
		break;
	case E:
		opts.flags = GMEM_REGION_SLOT;
		opts.slot = 9;
		opts.file = s->file;
		opts.file_offset = PAGES(&s->unit, 4);
		break;
	default:
		break;
	}
	return opts;
}

static void model_put(struct scene *s, uint64_t page, uint64_t pages, int what)
{
	uint64_t i;

	for (i = page; i < page + pages; i++)
		s->at[i] = what;
}

static void model_leave(struct scene *s, int who)
{
	int i;

	for (i = 0; i < MODEL_PAGES; i++)
		if (s->at[i] == who)
			s->at[i] = REMOVED;
}

static void scene_begin(struct scene *s)
{
	struct gmem_region_opts opts;
	int i;

	memset(s, 0, sizeof(*s));
	unit_begin_vm(&s->unit, "6.18");
	s->host = unit_plan(&s->unit, GMEM_BACKING_HOST);
	s->mapped = unit_plan(&s->unit, GMEM_BACKING_MAPPED);
	s->file = unit_file(&s->unit, 16);
	for (i = 0; i < MODEL_PAGES; i++)
		s->at[i] = HOLE;

	for (i = 0; i < REGIONS; i++) {
		opts = like(s, (enum who)i);
		assert_ok(gmem_region_add(s->unit.vm, PAGES(&s->unit, home[i].page),
					  PAGES(&s->unit, home[i].pages), &opts, &s->regions[i]));
		model_put(s, home[i].page, home[i].pages, i);
		if (gmem_region_hva(s->regions[i]))
			*(char *)gmem_region_hva(s->regions[i]) = (char)('A' + i);
	}
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
	gmem_plan_free(s->host);
	gmem_plan_free(s->mapped);
	unit_end(&s->unit);
}

/* ---- the layout is as the model has it, for readers, the books and the kernel ---- */

static bool is_device(const struct gmem_region *region)
{
	return gmem_region_backing(region) == GMEM_BACKING_NONE;
}

static void check_page(struct scene *s, uint64_t page)
{
	const struct gmem_region *region;
	void *hva = NULL;
	uint64_t gpa = PAGES(&s->unit, page);
	int err;

	gmem_view_begin(s->view);
	err = gmem_view_hva(s->view, gpa, s->unit.page, &hva);
	gmem_view_end(s->view);
	if (s->at[page] < 0) {
		if (err != s->at[page])
			fail_msg("page %d gives %d, not %d", (int)page, err, s->at[page]);
		return;
	}

	region = s->regions[s->at[page]];
	if (gmem_region_gpa(region) > gpa ||
	    gpa - gmem_region_gpa(region) >= gmem_region_size(region))
		fail_msg("region %d is not at page %d", s->at[page], (int)page);
	if (is_device(region))
		assert_int_equal(err, -ENXIO);
	else
		assert_ptr_equal(hva, (char *)gmem_region_hva(region) + gpa - gmem_region_gpa(region));
}

static void check_region(struct scene *s, const struct gmem_region *region)
{
	uint64_t file_offset = 0, map_offset = 0;
	struct gmem_file *file = gmem_region_file(region, &file_offset);
	uint32_t backing = gmem_region_backing(region);
	struct gmem_region *found;
	struct fake_slot slot;

	if (is_device(region))
		return;

	assert_true(fake_get_slot(s->unit.vm_fd, gmem_region_slot(region), &slot));
	assert_int_equal(slot.gpa, gmem_region_gpa(region));
	assert_int_equal(slot.size, gmem_region_size(region));
	assert_int_equal(slot.hva, (uintptr_t)gmem_region_hva(region));
	if (backing == GMEM_BACKING_SHARED) {
		assert_int_equal(slot.file, fake_file_of_fd(gmem_file_fd(file)));
		assert_int_equal(slot.offset, file_offset);
	}
	if (backing != GMEM_BACKING_HOST) {
		assert_int_equal(fake_file_at(gmem_region_hva(region), &map_offset),
				 fake_file_of_fd(gmem_file_fd(file)));
		assert_int_equal(map_offset, file_offset);
	}
	assert_ok(gmem_vm_find_hva(s->unit.vm, gmem_region_hva(region), &found, NULL));
	assert_ptr_equal(found, region);
}

static void check_layout(struct scene *s)
{
	bool seen[REGIONS + MAX_STEPS] = { false };
	unsigned slots = 0;
	uint64_t page;

	for (page = 0; page < MODEL_PAGES; page++) {
		check_page(s, page);
		if (s->at[page] < 0 || seen[s->at[page]])
			continue;
		seen[s->at[page]] = true;
		check_region(s, s->regions[s->at[page]]);
		slots += !is_device(s->regions[s->at[page]]);
	}
	assert_int_equal(fake_slot_count(s->unit.vm_fd), slots);
}

/* Contents follow the region, not the address. */
static void check_contents(struct scene *s, int who)
{
	const char *hva = gmem_region_hva(s->regions[who]);

	if (hva)
		assert_int_equal(*hva, 'A' + who);
}

static unsigned slot_calls(void)
{
	return fake_count(FAKE_DELETE_SLOT) + fake_count(FAKE_SET_SLOT) +
	       fake_count(FAKE_SET_SLOT2);
}

/* ---- the changes ---- */

enum what { END, ADD, REMOVE, MOVE };

struct step {
	enum what what;
	enum who who;		/* the region, or what to add is like */
	uint64_t page;
	uint64_t pages;
};

static const struct change {
	const char *name;
	struct step steps[MAX_STEPS + 1];
} changes[] = {
	{ "nothing", { { END, A, 0, 0 } } },
	{ "add", { { ADD, A, 100, 4 } } },
	{ "add many", {
		{ ADD, A, 100, 4 }, { ADD, A, 104, 4 }, { ADD, B, 108, 4 }, { ADD, D, 112, 4 },
		{ ADD, A, 120, 1 }, { ADD, A, 122, 1 }, { ADD, B, 121, 1 }, { ADD, D, 123, 1 },
		{ ADD, A, 300, 200 }, { ADD, A, 200, 1 }, { ADD, B, 0, 4 }, { ADD, B, 508, 4 },
	} },
	{ "remove", { { REMOVE, A, 0, 0 }, { REMOVE, C, 0, 0 } } },
	{ "remove all", { { REMOVE, D, 0, 0 }, { REMOVE, A, 0, 0 }, { REMOVE, B, 0, 0 }, { REMOVE, E, 0, 0 }, { REMOVE, C, 0, 0 } } },
	{ "move", { { MOVE, A, 100, 0 }, { MOVE, D, 104, 0 }, { MOVE, C, 108, 0 } } },
	{ "trade places", { { MOVE, A, 16, 0 }, { MOVE, B, 4, 0 } } },
	{ "trade places with a device", { { MOVE, D, 32, 0 }, { MOVE, C, 64, 0 } } },
	{ "go round", { { MOVE, A, 16, 0 }, { MOVE, B, 32, 0 }, { MOVE, C, 80, 0 }, { MOVE, E, 4, 0 } } },
	{ "slide", { { MOVE, A, 5, 0 }, { MOVE, E, 78, 0 } } },
	{ "stay", { { MOVE, A, 4, 0 }, { MOVE, D, 64, 0 } } },
	{ "replace", { { REMOVE, E, 0, 0 }, { ADD, E, 80, 4 } } },
	{ "replace in the other order", { { ADD, E, 80, 4 }, { REMOVE, E, 0, 0 } } },
	{ "replace by less", { { REMOVE, E, 0, 0 }, { ADD, E, 81, 2 }, { ADD, A, 83, 1 } } },
	{ "memory for a device", { { REMOVE, D, 0, 0 }, { ADD, B, 64, 4 } } },
	{ "a device for memory", { { REMOVE, B, 0, 0 }, { ADD, D, 16, 4 } } },
	{ "move into what goes", { { MOVE, A, 18, 0 }, { REMOVE, B, 0, 0 }, { ADD, B, 2, 4 } } },
	{ "add where another was", { { ADD, A, 4, 4 }, { MOVE, A, 8, 0 } } },
	{ "everything", {
		{ ADD, B, 14, 3 }, { REMOVE, B, 0, 0 }, { MOVE, A, 60, 0 }, { MOVE, D, 4, 0 }, { REMOVE, E, 0, 0 },
		{ ADD, E, 17, 1 }, { ADD, E + 1, 18, 2 }, { MOVE, C, 33, 0 }, { ADD, D, 37, 20 },
		{ ADD, A, 64, 16 },
	} },
};

static size_t count_steps(const struct change *change)
{
	size_t n = 0;

	while (n < MAX_STEPS && change->steps[n].what != END)
		n++;
	return n;
}

static int plan_step(struct scene *s, const struct step *step, struct gmem_region **ret)
{
	uint64_t gpa = PAGES(&s->unit, step->page);
	struct gmem_region_opts opts;

	switch (step->what) {
	case ADD:
		opts = like(s, step->who);
		return gmem_change_add(s->change, gpa, PAGES(&s->unit, step->pages), &opts, ret);
	case REMOVE:
		return gmem_change_remove(s->change, s->regions[step->who]);
	default:
		return gmem_change_move(s->change, s->regions[step->who], gpa);
	}
}

static void plan_change(struct scene *s, const struct change *change)
{
	size_t i;

	for (i = 0; i < count_steps(change); i++) {
		s->regions[ADDED + i] = NO_REGION;
		assert_ok(plan_step(s, &change->steps[i], &s->regions[ADDED + i]));
	}
}

/* The model's way: all that leaves, then all that comes. */
static void model_apply(struct scene *s, const struct change *change)
{
	const struct step *step;
	size_t i;

	for (i = 0; i < count_steps(change); i++)
		if (change->steps[i].what != ADD)
			model_leave(s, (int)change->steps[i].who);
	for (i = 0; i < count_steps(change); i++) {
		step = &change->steps[i];
		if (step->what == ADD)
			model_put(s, step->page, step->pages, (int)(ADDED + i));
		else if (step->what == MOVE)
			model_put(s, step->page, home[step->who].pages, (int)step->who);
	}
}

static bool is_plain(enum who who)
{
	return who == B || who == C;
}

/* KVM moves a plain memslot in one call, unless another one has yet to move out of its way. */
static bool moves_in_one_call(const struct change *change, size_t n)
{
	const struct step *step = &change->steps[n], *other;
	size_t i;

	if (step->what != MOVE || !is_plain(step->who))
		return false;
	for (i = 0; i < count_steps(change); i++) {
		other = &change->steps[i];
		if (i != n && other->what == MOVE && is_plain(other->who) &&
		    step->page < home[other->who].page + home[other->who].pages &&
		    home[other->who].page < step->page + home[step->who].pages)
			return false;
	}
	return true;
}

/* Memslot calls that a change takes: one for what goes, one for what comes */
static unsigned calls_needed(const struct change *change)
{
	unsigned calls = 0;
	size_t i;

	for (i = 0; i < count_steps(change); i++)
		if (change->steps[i].who != D)
			calls += change->steps[i].what == MOVE && !moves_in_one_call(change, i) ? 2 : 1;
	return calls;
}

static bool has_move_in_one_call(const struct change *change)
{
	size_t i;

	for (i = 0; i < count_steps(change); i++)
		if (moves_in_one_call(change, i))
			return true;
	return false;
}

static void check_done(struct scene *s, const struct change *change)
{
	size_t i;

	model_apply(s, change);
	check_layout(s);
	check_contents(s, X);
	for (i = 0; i < count_steps(change); i++)
		if (change->steps[i].what == MOVE)
			check_contents(s, (int)change->steps[i].who);
}

static void change_does_all_its_steps(void **state)
{
	struct scene s;
	unsigned calls;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(changes); i++) {
		scene_begin(&s);
		check_layout(&s);
		plan_change(&s, &changes[i]);
		check_layout(&s);

		/* the memslots of others are not touched: there is no call for them */
		calls = slot_calls();
		if (gmem_change_apply(s.change))
			fail_msg("%s: %s", changes[i].name, gmem_last_error());
		assert_int_equal(slot_calls() - calls, calls_needed(&changes[i]));
		check_done(&s, &changes[i]);

		/* it is empty again */
		calls = slot_calls();
		assert_ok(gmem_change_apply(s.change));
		assert_int_equal(slot_calls(), calls);
		check_layout(&s);
		scene_end(&s);
	}
}

static void replacement_has_the_same_slot_and_file_range(void **state)
{
	static const struct change replace = { "", { { REMOVE, E, 0, 0 }, { ADD, E, 80, 4 } } };
	struct scene s;
	uint64_t offset;

	(void)state;
	scene_begin(&s);
	strcpy(gmem_region_hva(s.regions[E]), "kept");
	plan_change(&s, &replace);
	assert_ok(gmem_change_apply(s.change));
	assert_int_equal(gmem_region_slot(s.regions[ADDED + 1]), 9);
	assert_ptr_equal(gmem_region_file(s.regions[ADDED + 1], &offset), s.file);
	assert_int_equal(offset, PAGES(&s.unit, 4));
	assert_string_equal(gmem_region_hva(s.regions[ADDED + 1]), "kept");
	check_done(&s, &replace);
	scene_end(&s);
}

static void change_that_is_freed_never_happened(void **state)
{
	struct fake_snapshot *before;
	struct scene s;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(changes); i++) {
		scene_begin(&s);
		before = fake_snapshot();
		plan_change(&s, &changes[i]);
		gmem_change_free(s.change);
		s.change = NULL;
		assert_true(fake_equal(before));
		check_layout(&s);
		scene_end(&s);
	}
	gmem_change_free(NULL);
}

/* ---- refusals of the library: before any memslot is touched ---- */

static const struct {
	struct step steps[4];
	int err;
	const char *sentence;
} conflicts[] = {
	{ { { ADD, A, 4, 1 } }, -EEXIST, "step 1 of 1, add: gpa 0x4000" },
	{ { { ADD, A, 100, 4 }, { ADD, B, 103, 1 } }, -EEXIST, "step 2 of 2, add: gpa 0x67000" },
	{ { { ADD, A, 100, 4 }, { MOVE, B, 97, 0 } }, -EEXIST, "step 2 of 2, move: gpa 0x61000" },
	{ { { MOVE, A, 16, 0 } }, -EEXIST, "step 1 of 1, move: gpa 0x10000" },
	{ { { MOVE, A, 16, 0 }, { MOVE, B, 19, 0 } }, -EEXIST, "step 2 of 2, move: gpa 0x13000" },
	{ { { MOVE, A, 17, 0 }, { MOVE, B, 4, 0 }, { ADD, D, 20, 1 } }, -EEXIST, "step 3 of 3, add: " },
	{ { { REMOVE, A, 0, 0 }, { ADD, D, 3, 1 }, { ADD, B, 7, 10 } }, -EEXIST, "step 3 of 3, add: " },
	{ { { REMOVE, A, 0, 0 }, { MOVE, B, 64, 0 } }, -EEXIST, "step 2 of 2, move: " },
	{ { { REMOVE, A, 0, 0 }, { ADD, E, 100, 4 } }, -EEXIST, "step 2 of 2, add: memslot 9 is in use" },
	{ { { REMOVE, E, 0, 0 }, { ADD, E, 100, 4 }, { ADD, E, 120, 4 } }, -EEXIST,
	  "step 3 of 3, add: memslot 9 is in use" },
};

static void conflicts_are_found_before_a_memslot_is_touched(void **state)
{
	struct change change = { "", { { END, A, 0, 0 } } };
	struct scene s;
	unsigned calls;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(conflicts); i++) {
		scene_begin(&s);
		memcpy(change.steps, conflicts[i].steps, sizeof(conflicts[i].steps));
		plan_change(&s, &change);
		calls = slot_calls();
		assert_refused(conflicts[i].err, conflicts[i].sentence, gmem_change_apply(s.change));
		assert_int_equal(slot_calls(), calls);
		assert_true(strncmp(gmem_last_error(), "step ", 5) == 0);
		check_layout(&s);
		scene_end(&s);
	}
}

static void bound_file_ranges_are_found_before_a_memslot_is_touched(void **state)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = 0);
	struct gmem_region *region = NO_REGION, *other = NO_REGION;
	struct scene s;
	unsigned calls;

	(void)state;
	scene_begin(&s);
	opts.file = s.file;
	opts.file_offset = PAGES(&s.unit, 8);
	assert_ok(gmem_change_remove(s.change, s.regions[A]));
	assert_ok(gmem_change_add(s.change, 0, PAGES(&s.unit, 4), &opts, &region));
	opts.file_offset = PAGES(&s.unit, 7);
	assert_ok(gmem_change_add(s.change, PAGES(&s.unit, 4), s.unit.page, &opts, &other));
	calls = slot_calls();
	assert_refused(-EEXIST, "step 3 of 3, add: offset 0x7000", gmem_change_apply(s.change));

	/* once what has it goes, it is free */
	assert_ok(gmem_change_remove(s.change, s.regions[E]));
	assert_int_equal(slot_calls(), calls);
	assert_ok(gmem_change_apply(s.change));
	assert_ptr_equal(gmem_region_file(region, NULL), s.file);
	assert_ptr_equal(gmem_region_file(other, NULL), s.file);
	scene_end(&s);
}

static void steps_are_checked_as_they_are_planned(void **state)
{
	GMEM_OPTS(gmem_region_opts, bad, .flags = UNIT_UNKNOWN_BIT);
	struct gmem_region *region = NO_REGION, *foreign;
	struct gmem_change *none = UNTOUCHED(struct gmem_change);
	struct gmem_vm *other_vm;
	struct scene s;
	int other;

	(void)state;
	scene_begin(&s);
	GMEM_OPTS(gmem_vm_opts, opts, .caps = s.unit.caps);
	const uint64_t p = s.unit.page, end = (uint64_t)1 << fake.address_bits;

	other = fake_new_vm();
	assert_ok(gmem_vm_new(other, &opts, &other_vm));
	assert_ok(gmem_region_add(other_vm, 0, p, NULL, &foreign));

	assert_refused(-EINVAL, "vm is NULL", gmem_change_new(NULL, &none));
	assert_refused(-EINVAL, "ret is NULL", gmem_change_new(s.unit.vm, NULL));
	assert_refused(-EINVAL, "change is NULL", gmem_change_add(NULL, 0, p, NULL, &region));
	assert_refused(-EINVAL, "ret is NULL", gmem_change_add(s.change, 0, p, NULL, NULL));
	assert_refused(-EINVAL, "change is NULL", gmem_change_remove(NULL, s.regions[A]));
	assert_refused(-EINVAL, "region is NULL", gmem_change_remove(s.change, NULL));
	assert_refused(-EINVAL, "change is NULL", gmem_change_move(NULL, s.regions[A], 0));
	assert_refused(-EINVAL, "region is NULL", gmem_change_move(s.change, NULL, 0));
	assert_refused(-EINVAL, "change is NULL", gmem_change_apply(NULL));
	assert_ptr_equal(none, UNTOUCHED(struct gmem_change));

	assert_refused(-EINVAL, "size 0", gmem_change_add(s.change, 0, 0, NULL, &region));
	assert_refused(-EINVAL, "multiple", gmem_change_add(s.change, 1, p, NULL, &region));
	assert_refused(-EINVAL, "address", gmem_change_add(s.change, end, p, NULL, &region));
	assert_refused(-EINVAL, "flags", gmem_change_add(s.change, 0, p, &bad, &region));
	assert_refused(-EINVAL, "multiple", gmem_change_move(s.change, s.regions[A], p / 2));
	assert_refused(-EINVAL, "address", gmem_change_move(s.change, s.regions[A], end - p));
	assert_refused(-EINVAL, "another VM", gmem_change_remove(s.change, foreign));
	assert_refused(-EINVAL, "another VM", gmem_change_move(s.change, foreign, 0));

	assert_ok(gmem_change_remove(s.change, s.regions[A]));
	assert_ok(gmem_change_move(s.change, s.regions[B], PAGES(&s.unit, 4)));
	assert_refused(-EEXIST, "step 1", gmem_change_remove(s.change, s.regions[A]));
	assert_refused(-EEXIST, "step 1", gmem_change_move(s.change, s.regions[A], 0));
	assert_refused(-EEXIST, "step 2", gmem_change_remove(s.change, s.regions[B]));
	assert_refused(-EEXIST, "step 2", gmem_change_move(s.change, s.regions[B], 0));

	/* the refused steps are not part of the change */
	assert_ok(gmem_change_apply(s.change));
	model_leave(&s, A);
	model_leave(&s, B);
	model_put(&s, 4, 4, B);
	check_layout(&s);
	assert_ptr_equal(region, NO_REGION);
	gmem_vm_free(other_vm);
	fake_close(other);
	scene_end(&s);
}

/* ---- refusals of the kernel, at every step ---- */

struct identity {
	uint64_t gpa;
	uint64_t size;
	void *hva;
	struct gmem_file *file;
	uint64_t offset;
	uint64_t slot;		/* no padding: they are compared as bytes */
};

static struct identity identity_of(const struct gmem_region *region)
{
	struct identity id;

	memset(&id, 0, sizeof(id));
	id.gpa = gmem_region_gpa(region);
	id.size = gmem_region_size(region);
	id.hva = gmem_region_hva(region);
	id.file = gmem_region_file(region, &id.offset);
	id.slot = gmem_region_slot(region);
	return id;
}

static void identify(const struct scene *s, struct identity *ids)
{
	int i;

	for (i = 0; i < REGIONS; i++)
		ids[i] = identity_of(s->regions[i]);
}

static bool is_slot_call(enum fake_call call)
{
	return call == FAKE_SET_SLOT || call == FAKE_SET_SLOT2 || call == FAKE_DELETE_SLOT;
}

/* The state is as before, and the same change then succeeds. */
static void check_undone(struct scene *s, const struct change *change, struct identity *before,
			 const char *victim)
{
	struct identity after[REGIONS];
	size_t i;

	identify(s, after);
	if (memcmp(before, after, sizeof(after)))
		fail_msg("%s: after failing %s a region has changed", change->name, victim);
	for (i = 0; i < count_steps(change); i++)
		assert_ptr_equal(s->regions[ADDED + i], NO_REGION);
	check_layout(s);
	if (gmem_change_apply(s->change))
		fail_msg("%s: after failing %s: %s", change->name, victim, gmem_last_error());
	check_done(s, change);
}

/* A change that is planned and will fail, and the state before */
struct attempt {
	struct scene scene;
	struct identity ids[REGIONS];
	struct fake_snapshot *before;
};

static void attempt_begin(struct attempt *attempt, const struct change *change)
{
	scene_begin(&attempt->scene);
	identify(&attempt->scene, attempt->ids);
	plan_change(&attempt->scene, change);
	attempt->before = fake_snapshot();
}

static bool refuse_call(const struct change *change, unsigned n, int err)
{
	bool struck, must_fail, may_go_on;
	struct attempt a;
	const char *victim;
	int ret;

	attempt_begin(&a, change);
	fake_fail_call(n, err);
	ret = gmem_change_apply(a.scene.change);
	struck = fake_fail_struck();
	victim = struck ? fake_call_name(fake_fail_victim()) : "nothing";

	/*
	 * A call after the memslots are set cannot fail the change, and a memslot that KVM
	 * cannot move is deleted and added.
	 */
	must_fail = struck && fake_fail_victim() != FAKE_MEMBARRIER;
	may_go_on = err == -EINVAL && struck && fake_fail_victim() == FAKE_SET_SLOT &&
		    has_move_in_one_call(change);
	if (ret != (must_fail ? err : 0) && !(may_go_on && !ret))
		fail_msg("%s: failing call %u, %s, gives %d: %s", change->name, n, victim, ret,
			 gmem_last_error());
	if (!ret) {
		fake_forget(a.before);
		check_done(&a.scene, change);
	} else {
		if (!fake_equal(a.before))
			fail_msg("%s: failing call %u, %s, changed something", change->name, n, victim);
		if (strncmp(gmem_last_error(), "step ", 5) != 0 ||
		    (is_slot_call(fake_fail_victim()) && !strstr(gmem_last_error(), "memslot")))
			fail_msg("%s: failing %s says \"%s\"", change->name, victim,
				 gmem_last_error());
		check_undone(&a.scene, change, a.ids, victim);
	}
	scene_end(&a.scene);
	return struck;
}

static void every_refusal_at_every_step_is_undone(void **state)
{
	static const int errnos[] = { -ENOMEM, -EINVAL, -EIO };
	unsigned n, sum = 0;
	size_t i, j;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(changes); i++)
		for (j = 0; j < ARRAY_SIZE(errnos); j++)
			for (n = 1; refuse_call(&changes[i], n, errnos[j]); n++)
				sum++;
	assert_true(sum > 100);
}

static bool refuse_allocation(const struct change *change, unsigned n)
{
	struct attempt a;
	bool struck;
	int ret;

	attempt_begin(&a, change);
	unit_fail_alloc(n);
	ret = gmem_change_apply(a.scene.change);
	struck = unit_alloc_struck();

	if (ret != (struck ? -ENOMEM : 0))
		fail_msg("%s: allocation %u gives %d", change->name, n, ret);
	if (ret) {
		if (!fake_equal(a.before))
			fail_msg("%s: failing allocation %u changed something", change->name, n);
		check_undone(&a.scene, change, a.ids, "an allocation");
	} else {
		fake_forget(a.before);
	}
	scene_end(&a.scene);
	return struck;
}

static void every_allocation_that_fails_is_undone(void **state)
{
	unsigned n, sum = 0;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(changes); i++)
		for (n = 1; refuse_allocation(&changes[i], n); n++)
			sum++;
	assert_true(sum > 20);
}

static void planning_reports_want_of_memory(void **state)
{
	static const struct step add = { ADD, A, 100, 1 };
	struct gmem_change *change = UNTOUCHED(struct gmem_change);
	struct gmem_region *ret[9];
	struct scene s;
	int i;

	(void)state;
	scene_begin(&s);
	unit_fail_alloc(1);
	assert_refused(-ENOMEM, "no memory for a change", gmem_change_new(s.unit.vm, &change));
	assert_true(unit_alloc_struck());
	assert_ptr_equal(change, UNTOUCHED(struct gmem_change));

	/* the list grows at the first step and at the ninth */
	for (i = 0; i < 9; i++) {
		const struct step step = { ADD, A, 100 + (uint64_t)i, 1 };

		if (i % 8 == 0) {
			unit_fail_alloc(2);
			assert_refused(-ENOMEM, i ? "step 9" : "step 1", plan_step(&s, &step, &ret[i]));
			assert_true(unit_alloc_struck());
		}
		assert_ok(plan_step(&s, &step, &ret[i]));
	}
	assert_ok(gmem_change_apply(s.change));
	for (i = 0; i < 9; i++)
		assert_ok(gmem_region_remove(ret[i]));

	unit_fail_alloc(1);
	assert_refused(-ENOMEM, "region", plan_step(&s, &add, &ret[0]));
	assert_true(unit_alloc_struck());
	scene_end(&s);
}

/* Fails every step of a change, when it deletes and when it adds memslots. */
static void sentence_names_the_step(void **state)
{
	static const struct change change = { "", {
		{ MOVE, A, 100, 0 }, { ADD, B, 108, 4 }, { REMOVE, E, 0, 0 }, { MOVE, B, 4, 0 },
	} };
	static const struct {
		enum fake_call call;
		unsigned skip;
		const char *step;
		const char *sentence;
	} cases[] = {
		{ FAKE_DELETE_SLOT, 0, "step 1 of 4, move: VM fd", "refuses to delete memslot 0" },
		{ FAKE_DELETE_SLOT, 1, "step 3 of 4, remove: VM fd", "refuses to delete memslot 9" },
		{ FAKE_SET_SLOT2, 0, "step 1 of 4, move: VM fd", "refuses memslot 0 at gpa 0x64000" },
		{ FAKE_SET_SLOT, 0, "step 4 of 4, move: VM fd", "refuses memslot 1 at gpa 0x4000" },
		{ FAKE_SET_SLOT, 1, "step 2 of 4, add: VM fd", "refuses memslot 4 at gpa 0x6c000" },
		{ FAKE_MMAP, 0, "step 2 of 4, add: ", "0x4000 bytes of host memory" },
	};
	struct scene s;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		scene_begin(&s);
		plan_change(&s, &change);
		fake_fail_kind(cases[i].call, cases[i].skip, 1, -ENOMEM);
		assert_refused(-ENOMEM, cases[i].step, gmem_change_apply(s.change));
		assert_non_null(strstr(gmem_last_error(), cases[i].sentence));
		assert_ok(gmem_change_apply(s.change));
		check_done(&s, &change);
		scene_end(&s);
	}
}

/* ---- the kernel refuses to undo, too ---- */

static void region_whose_slot_is_lost_is_named(void **state)
{
	static const struct change trade = { "", { { MOVE, A, 80, 0 }, { MOVE, E, 4, 0 } } };
	struct scene s;

	(void)state;
	scene_begin(&s);
	plan_change(&s, &trade);
	/* E's new slot is refused, then its old one; A's comes back */
	fake_fail_kind(FAKE_SET_SLOT2, 1, 2, -ENOMEM);
	assert_int_equal(gmem_change_apply(s.change), -ENOTRECOVERABLE);
	/* first the refusal, then what it led to */
	assert_non_null(strstr(gmem_last_error(), "step 2 of 2, move: VM fd"));
	assert_non_null(strstr(gmem_last_error(), "refuses memslot 9 at gpa 0x4000"));
	assert_non_null(strstr(gmem_last_error(), "refuses to put back memslot 9 at gpa 0x50000"));
	gmem_change_free(s.change);
	s.change = NULL;

	/* the layout is as it was, but for one memslot */
	check_region(&s, s.regions[A]);
	check_contents(&s, A);
	assert_int_equal(gmem_region_gpa(s.regions[E]), PAGES(&s.unit, 80));
	assert_int_equal(fake_slot_count(s.unit.vm_fd), REGIONS - 2);

	/* that region can only be removed */
	assert_ok(gmem_change_new(s.unit.vm, &s.change));
	assert_refused(-ENOTRECOVERABLE, "removed", gmem_region_move(s.regions[E], 0));
	assert_refused(-ENOTRECOVERABLE, "removed", gmem_change_move(s.change, s.regions[E], 0));
	assert_ok(gmem_change_remove(s.change, s.regions[E]));
	assert_ok(gmem_change_apply(s.change));
	model_leave(&s, E);
	check_layout(&s);
	scene_end(&s);
}

static void undo_retries_until_an_added_slot_is_deleted(void **state)
{
	static const struct change change = { "", {
		{ REMOVE, E, 0, 0 }, { ADD, A, 100, 4 }, { ADD, B, 104, 4 }, { ADD, A, 108, 4 },
	} };
	struct fake_snapshot *before;
	struct scene s;

	(void)state;
	scene_begin(&s);
	/* something of the caller's own is in the way of the last step */
	assert_ok(fake_add_slot(s.unit.vm_fd, 99, PAGES(&s.unit, 108), s.unit.page));
	plan_change(&s, &change);
	before = fake_snapshot();
	fake_fail_kind(FAKE_DELETE_SLOT, 1, 1, -ENOMEM);
	assert_int_equal(gmem_change_apply(s.change), -EEXIST);
	assert_true(fake_fail_struck());
	assert_true(fake_equal(before));
	scene_end(&s);
}

static void added_slot_that_cannot_be_deleted_is_reported(void **state)
{
	static const struct change change = { "", { { ADD, B, 104, 4 }, { ADD, A, 108, 4 } } };
	struct fake_slot slot;
	struct scene s;

	(void)state;
	scene_begin(&s);
	assert_ok(fake_add_slot(s.unit.vm_fd, 99, PAGES(&s.unit, 108), s.unit.page));
	plan_change(&s, &change);
	fake_fail_kind(FAKE_DELETE_SLOT, 0, 100, -ENOMEM);
	assert_int_equal(gmem_change_apply(s.change), -ENOTRECOVERABLE);
	assert_non_null(strstr(gmem_last_error(), "memslot 4 at gpa 0x68000"));
	assert_true(fake_fail_struck());

	/* Guests may still use its memory: neither that nor the number goes to anyone. */
	assert_true(fake_get_slot(s.unit.vm_fd, 4, &slot));
	assert_int_equal(slot.gpa, PAGES(&s.unit, 104));
	assert_int_equal(gmem_change_apply(s.change), -ENOTRECOVERABLE);
	scene_end(&s);
}

/* ---- other work while KVM is busy with a change ---- */

static struct {
	struct unit unit;
	struct gmem_region *other;	/* private memory at page 100 */
	struct gmem_view *view;		/* the first one, made meanwhile */
	unsigned rounds;
} aside;

/* Called where another thread could come: the change holds no lock that this needs. */
static void work_aside(void)
{
	GMEM_OPTS(gmem_stats, stats, .flags = 0);
	struct gmem_state_range state;
	void *hva;

	fake_before_slot = NULL;
	if (!aside.view)
		assert_ok(gmem_view_new(aside.unit.vm, &aside.view));
	assert_ok(gmem_vm_convert(aside.unit.vm, PAGES(&aside.unit, 100), aside.unit.page,
				  aside.rounds % 2 ? GMEM_STATE_SHARED : GMEM_STATE_PRIVATE, NULL, NULL));
	aside.rounds++;
	assert_ok(gmem_vm_stats(aside.unit.vm, &stats));
	/* the old layout */
	assert_int_equal(gmem_vm_state(aside.unit.vm, PAGES(&aside.unit, 200), aside.unit.page, &state, 1), 1);
	assert_int_equal(state.backing, GMEM_BACKING_NONE);
	gmem_view_begin(aside.view);
	assert_int_equal(gmem_view_hva(aside.view, PAGES(&aside.unit, 200), 1, &hva), -ENOENT);
	gmem_view_end(aside.view);
	fake_before_slot = work_aside;
}

static void check_aside(uint64_t page, int expected)
{
	void *hva;

	gmem_view_begin(aside.view);
	assert_int_equal(gmem_view_hva(aside.view, PAGES(&aside.unit, page), 1, &hva), expected);
	gmem_view_end(aside.view);
}

static struct gmem_plan *begin_aside(void)
{
	struct gmem_plan *plan;

	memset(&aside, 0, sizeof(aside));
	unit_begin_vm(&aside.unit, "7.3-swp-t1");
	plan = unit_plan(&aside.unit, GMEM_BACKING_PRIVATE);
	aside.other = unit_region(&aside.unit, 100, 4, plan);
	return plan;
}

static void end_aside(struct gmem_plan *plan)
{
	gmem_view_free(aside.view);
	gmem_plan_free(plan);
	unit_end(&aside.unit);
}

static void other_work_goes_on_while_kvm_is_asked(void **state)
{
	struct gmem_region *region, *added = NO_REGION, *refused = NO_REGION;
	struct gmem_change *change;
	struct gmem_plan *plan;

	(void)state;
	plan = begin_aside();
	region = unit_region(&aside.unit, 0, 4, plan);
	GMEM_OPTS(gmem_region_opts, opts, .plan = plan);

	/* The kernel refuses the last step: the view, made in between, has the old layout. */
	assert_ok(fake_add_slot(aside.unit.vm_fd, 99, PAGES(&aside.unit, 300), aside.unit.page));
	assert_ok(gmem_change_new(aside.unit.vm, &change));
	assert_ok(gmem_change_remove(change, region));
	assert_ok(gmem_change_add(change, PAGES(&aside.unit, 200), PAGES(&aside.unit, 4), &opts, &added));
	assert_ok(gmem_change_add(change, PAGES(&aside.unit, 300), aside.unit.page, &opts, &refused));
	fake_before_slot = work_aside;
	assert_int_equal(gmem_change_apply(change), -EEXIST);
	fake_before_slot = NULL;
	assert_true(aside.rounds >= 3);
	check_aside(0, 0);
	check_aside(200, -ENOENT);
	gmem_change_free(change);
	gmem_view_free(aside.view);

	/* It is done, with a view that was there, and what was converted meanwhile is seen. */
	assert_ok(gmem_view_new(aside.unit.vm, &aside.view));
	aside.rounds = 0;
	assert_ok(gmem_vm_convert(aside.unit.vm, PAGES(&aside.unit, 100), aside.unit.page,
				  GMEM_STATE_SHARED, NULL, NULL));
	fake_before_slot = work_aside;
	assert_ok(gmem_region_add(aside.unit.vm, PAGES(&aside.unit, 200), aside.unit.page, &opts, &added));
	fake_before_slot = NULL;
	assert_int_equal(aside.rounds, 1);
	check_aside(200, 0);
	check_aside(100, -EACCES);
	end_aside(plan);
}

static void a_first_view_made_during_a_change_has_both_layouts(void **state)
{
	struct gmem_region *added = NO_REGION;
	struct gmem_plan *plan;

	(void)state;
	plan = begin_aside();
	GMEM_OPTS(gmem_region_opts, opts, .plan = plan);

	fake_before_slot = work_aside;
	assert_ok(gmem_region_add(aside.unit.vm, PAGES(&aside.unit, 200), PAGES(&aside.unit, 4), &opts, &added));
	fake_before_slot = NULL;
	check_aside(200, 0);
	check_aside(100, -EACCES);
	check_aside(101, 0);
	end_aside(plan);
}

/* However many steps a change has, it knows in which one a region is, and forgets with them. */
static void change_of_many_steps_knows_each_region(void **state)
{
	GMEM_OPTS(gmem_region_opts, device, .flags = GMEM_REGION_DEVICE);
	struct gmem_region *regions[300];
	struct gmem_change *change;
	char sentence[64];
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	assert_ok(gmem_change_new(unit.vm, &change));
	for (int round = 0; round < 2; round++) {
		for (uint64_t i = 0; i < ARRAY_SIZE(regions); i++)
			assert_ok(gmem_change_add(change, PAGES(&unit, 2 * i), unit.page, &device,
						  &regions[i]));
		assert_ok(gmem_change_apply(change));
		for (size_t i = 0; i < ARRAY_SIZE(regions); i++)
			assert_ok(gmem_change_remove(change, regions[i]));
		for (size_t i = 0; i < ARRAY_SIZE(regions); i++) {
			snprintf(sentence, sizeof(sentence), "step %zu of the change has", i + 1);
			assert_refused(-EEXIST, sentence, gmem_change_move(change, regions[i], 0));
		}
		assert_ok(gmem_change_apply(change));
	}
	gmem_change_free(change);
	unit_end(&unit);
}

static void *add_while_a_view_is_held(void *data)
{
	struct scene *s = data;
	GMEM_OPTS(gmem_region_opts, opts, .plan = s->host);
	struct gmem_region *region;

	assert_ok(gmem_region_add(s->unit.vm, PAGES(&s->unit, 120), s->unit.page, &opts, &region));
	return NULL;
}

/* The record has the region as soon as it is there, and readers a moment later. */
static void lease_is_given_once_readers_have_the_memory(void **state)
{
	struct gmem_state_range range = { .state = 0 };
	struct gmem_lease *lease;
	pthread_t thread;
	struct scene s;
	uint64_t gpa;

	(void)state;
	scene_begin(&s);
	gpa = PAGES(&s.unit, 120);
	gmem_view_begin(s.view);
	assert_int_equal(pthread_create(&thread, NULL, add_while_a_view_is_held, &s), 0);
	while (!range.state)
		assert_int_equal(gmem_vm_state(s.unit.vm, gpa, s.unit.page, &range, 1), 1);
	assert_refused(-EBUSY, "laid out anew",
		       gmem_lease_new(s.unit.vm, gpa, s.unit.page, NULL, &lease));
	gmem_view_end(s.view);
	assert_int_equal(pthread_join(thread, NULL), 0);
	assert_ok(gmem_lease_new(s.unit.vm, gpa, s.unit.page, NULL, &lease));
	gmem_lease_free(lease);
	scene_end(&s);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(other_work_goes_on_while_kvm_is_asked),
	cmocka_unit_test(a_first_view_made_during_a_change_has_both_layouts),
	cmocka_unit_test(change_does_all_its_steps),
	cmocka_unit_test(change_of_many_steps_knows_each_region),
	cmocka_unit_test(lease_is_given_once_readers_have_the_memory),
	cmocka_unit_test(replacement_has_the_same_slot_and_file_range),
	cmocka_unit_test(change_that_is_freed_never_happened),
	cmocka_unit_test(conflicts_are_found_before_a_memslot_is_touched),
	cmocka_unit_test(bound_file_ranges_are_found_before_a_memslot_is_touched),
	cmocka_unit_test(steps_are_checked_as_they_are_planned),
	cmocka_unit_test(every_refusal_at_every_step_is_undone),
	cmocka_unit_test(every_allocation_that_fails_is_undone),
	cmocka_unit_test(planning_reports_want_of_memory),
	cmocka_unit_test(sentence_names_the_step),
	cmocka_unit_test(region_whose_slot_is_lost_is_named),
	cmocka_unit_test(undo_retries_until_an_added_slot_is_deleted),
	cmocka_unit_test(added_slot_that_cannot_be_deleted_is_reported),
};

UNIT_MAIN(tests)
