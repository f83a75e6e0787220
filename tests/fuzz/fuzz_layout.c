/* SPDX-License-Identifier: MIT */
/*
 * Bytes become layouts, changes, lookups and accesses, on the scripted kernel of
 * the unit tests; everything that is answered is compared with a model that
 * knows nothing but a list of ranges.
 *
 * The input is a list of commands, each a byte and its arguments; what is
 * missing at the end is 0. Any input is a valid one.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "fake.h"
#include "fuzz.h"
#include "gmem.h"

#define PAGE		((uint64_t)4096)
#define MIB		((uint64_t)1 << 20)
#define GIB		((uint64_t)1 << 30)
#define TIB		((uint64_t)1 << 40)

#define FILES		2
#define FILE_PAGES	24
#define MAX_THINGS	24
#define MAX_COMMANDS	64
#define MAX_STEPS	5
#define MAX_PAST	(MAX_COMMANDS * MAX_STEPS)
#define MAX_BYTES	(5 * PAGE)
#define MAX_PIECES	32

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))

/* ---- the input ---- */

static struct fuzz_input input;

static uint8_t take(void)
{
	return fuzz_take(&input);
}

static uint64_t take_below(uint64_t limit)
{
	return fuzz_take_below(&input, limit);
}

/* Pages around the borders of granules, GiBs and the table itself */
static uint64_t take_gpa(void)
{
	static const uint64_t bases[] = {
		0, 2 * MIB - 16 * PAGE, 4 * MIB, GIB - 16 * PAGE, 4 * GIB,
		16 * TIB - 16 * PAGE, 32 * TIB, ((uint64_t)1 << 48) - 32 * PAGE,
	};
	uint64_t base = bases[take_below(ARRAY_SIZE(bases))];

	return base + take_below(32) * PAGE;
}

static uint64_t take_size(void)
{
	static const uint64_t large[] = { 511, 512, 513, 1024, 2048 };
	uint64_t n = take_below(21);

	return (n < 16 ? n + 1 : large[n - 16]) * PAGE;
}

/* ---- the model ---- */

enum kind { HOST, MAPPED, SHARED, DEVICE, KINDS };

struct thing {
	struct gmem_region *region;	/* NULL: not there */
	enum kind kind;
	uint64_t gpa;
	uint64_t size;
	uint64_t offset;
	int file;			/* -1: none, or its own */
	uint32_t slot;			/* explicit ones only, else 0 */
};

struct layout {
	struct thing things[MAX_THINGS];
};

static struct {
	int vm_fd;
	struct gmem_caps *caps;
	struct gmem_plan *plans[KINDS];
	struct gmem_vm *vm;
	struct gmem_file *files[FILES];
	uint64_t present[FILES];	/* pages that can be reached */
	struct gmem_view *views[2];	/* by system calls, and by instructions */
	struct layout now;
	struct thing past[MAX_PAST];	/* every place there ever was something */
	size_t past_count;
	bool leaks;			/* the kernel refused to unmap part of a mapping */
} world;

static bool meets(uint64_t a, uint64_t a_size, uint64_t b, uint64_t b_size)
{
	return a < b + b_size && b < a + a_size;
}

static struct thing *thing_at(uint64_t gpa)
{
	size_t i;

	for (i = 0; i < MAX_THINGS; i++) {
		struct thing *thing = &world.now.things[i];

		if (thing->region && gpa - thing->gpa < thing->size)
			return thing;
	}
	return NULL;
}

static void remember(const struct thing *thing)
{
	size_t i;

	for (i = 0; i < world.past_count; i++)
		if (world.past[i].gpa == thing->gpa && world.past[i].size >= thing->size)
			return;
	CHECK(world.past_count < MAX_PAST);
	world.past[world.past_count++] = *thing;
}

static bool was_there(uint64_t gpa)
{
	size_t i;

	for (i = 0; i < world.past_count; i++)
		if (gpa - world.past[i].gpa < world.past[i].size)
			return true;
	return false;
}

/* The result of looking up one byte */
static int error_at(uint64_t gpa)
{
	const struct thing *thing = thing_at(gpa);

	if (!thing)
		return was_there(gpa) ? -ESTALE : -ENOENT;
	return thing->kind == DEVICE ? -ENXIO : 0;
}

static const struct thing *must_be_at(uint64_t gpa)
{
	const struct thing *thing = thing_at(gpa);

	if (!thing)
		abort();
	return thing;
}

static char *hva_at(uint64_t gpa)
{
	const struct thing *thing = must_be_at(gpa);

	return (char *)gmem_region_hva(thing->region) + (gpa - thing->gpa);
}

static bool is_present(uint64_t gpa)
{
	const struct thing *thing = must_be_at(gpa);

	return thing->file < 0 ||
	       (thing->offset + (gpa - thing->gpa)) / PAGE < world.present[thing->file];
}

/* The result of accessing one byte */
static int fault_at(uint64_t gpa)
{
	int err = error_at(gpa);

	return err ? err : is_present(gpa) ? 0 : -EFAULT;
}

static uint64_t to_page_end(uint64_t gpa)
{
	return PAGE - gpa % PAGE;
}

static uint64_t least(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* Bytes that can be touched from @gpa on, and why not more */
static uint64_t reach(uint64_t gpa, uint64_t size, int *ret_err)
{
	uint64_t done = 0;

	for (*ret_err = 0; done < size; done += least(to_page_end(gpa + done), size - done)) {
		*ret_err = fault_at(gpa + done);
		if (*ret_err)
			break;
	}
	return done;
}

/* Guest memory by the model's own way; all of it must be there. */
static void peek(uint64_t gpa, void *buf, uint64_t size)
{
	uint64_t done, now;

	for (done = 0; done < size; done += now) {
		now = least(to_page_end(gpa + done), size - done);
		memcpy((char *)buf + done, hva_at(gpa + done), now);
	}
}

/* ---- the layout is as the model has it ---- */

static void check_lookup(uint64_t gpa)
{
	void *hva = NULL;
	int err;

	gmem_view_begin(world.views[0]);
	err = gmem_view_hva(world.views[0], gpa, 1, &hva);
	gmem_view_end(world.views[0]);
	CHECK(err == error_at(gpa));
	CHECK(err ? !hva : hva == hva_at(gpa));
}

static void check_range(const struct thing *thing)
{
	check_lookup(thing->gpa - 1);
	check_lookup(thing->gpa);
	check_lookup(thing->gpa + thing->size / 2);
	check_lookup(thing->gpa + thing->size - 1);
	check_lookup(thing->gpa + thing->size);
}

static void check_thing(const struct thing *thing)
{
	struct gmem_region *found;
	struct fake_slot slot;
	uint64_t offset = 0;

	CHECK(gmem_region_gpa(thing->region) == thing->gpa);
	CHECK(gmem_region_size(thing->region) == thing->size);
	if (thing->file >= 0) {
		CHECK(gmem_region_file(thing->region, &offset) == world.files[thing->file]);
		CHECK(offset == thing->offset);
	}
	if (thing->kind == DEVICE)
		return;

	CHECK(fake_get_slot(world.vm_fd, gmem_region_slot(thing->region), &slot));
	CHECK(!thing->slot || slot.number == thing->slot);
	CHECK(slot.gpa == thing->gpa && slot.size == thing->size);
	CHECK(slot.hva == (uintptr_t)gmem_region_hva(thing->region));
	CHECK(!gmem_vm_find_hva(world.vm, gmem_region_hva(thing->region), &found, &offset));
	CHECK(found == thing->region && offset == 0);
}

static void check_layout(void)
{
	unsigned slots = 0;
	size_t i;

	for (i = 0; i < MAX_THINGS; i++) {
		if (!world.now.things[i].region)
			continue;
		check_thing(&world.now.things[i]);
		slots += world.now.things[i].kind != DEVICE;
	}
	CHECK(fake_slot_count(world.vm_fd) == slots);
	for (i = 0; i < world.past_count; i++)
		check_range(&world.past[i]);
}

/* ---- changes: what the model thinks of them ---- */

/* Is anything of @thing's in the way of another? */
static bool conflicts(const struct thing *thing, const struct thing *other)
{
	if (meets(thing->gpa, thing->size, other->gpa, other->size))
		return true;
	if (thing->slot && thing->slot == other->slot)
		return true;
	return thing->kind == SHARED && other->kind == SHARED && thing->file >= 0 &&
	       thing->file == other->file &&
	       meets(thing->offset, thing->size, other->offset, other->size);
}

static bool is_free_for(const struct layout *layout, const struct thing *thing)
{
	size_t i;

	for (i = 0; i < MAX_THINGS; i++)
		if (layout->things[i].region && &layout->things[i] != thing &&
		    conflicts(thing, &layout->things[i]))
			return false;
	return true;
}

/* An entry that is free now and in the layout that is planned */
static struct thing *free_place(struct layout *layout)
{
	size_t i;

	for (i = 0; i < MAX_THINGS; i++)
		if (!layout->things[i].region && !world.now.things[i].region)
			return &layout->things[i];
	return NULL;
}

/* A region that is there, or NULL */
static struct thing *take_thing(void)
{
	struct thing *thing = &world.now.things[take_below(MAX_THINGS)];
	size_t i;

	for (i = 0; i < MAX_THINGS; i++, thing++) {
		if (thing == world.now.things + MAX_THINGS)
			thing = world.now.things;
		if (thing->region)
			return thing;
	}
	return NULL;
}

static struct gmem_region_opts take_new(struct thing *thing)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = 0);
	uint8_t bits = take();

	memset(thing, 0, sizeof(*thing));
	thing->kind = (enum kind)(bits % KINDS);
	thing->gpa = take_gpa();
	thing->size = take_size();
	thing->file = -1;
	if (thing->kind == DEVICE) {
		opts.flags = GMEM_REGION_DEVICE;
		return opts;
	}

	opts.plan = world.plans[thing->kind];
	if (bits & 4) {
		opts.flags |= GMEM_REGION_CONGRUENT;
		opts.align = bits & 8 ? 2 * MIB : 64 * 1024;
	}
	if (bits & 16) {
		thing->slot = 1000 + (bits >> 7);
		opts.flags |= GMEM_REGION_SLOT;
		opts.slot = thing->slot;
	}
	if (bits & 32 && thing->kind != HOST) {
		thing->file = bits >> 6 & 1;
		thing->offset = take_below(FILE_PAGES) * PAGE;
		opts.file = world.files[thing->file];
		opts.file_offset = thing->offset;
	}
	return opts;
}

/* False if a region is impossible whatever else there is */
static bool is_sound(const struct thing *thing)
{
	if (thing->gpa + thing->size > (uint64_t)1 << fake.address_bits)
		return false;
	return thing->file < 0 || thing->offset + thing->size <= FILE_PAGES * PAGE;
}

/* Make a call fail, sometimes; true if the kernel was told to. */
static bool take_failure(void)
{
	uint8_t n = take();

	fake_fail_call(n & 1 ? (unsigned)n / 2 % 24 + 1 : 0, -ENOMEM);
	return n & 1;
}

/* Did a call fail that matters? What comes after the memslots does not. */
static bool has_failed(int err)
{
	if (!fake_fail_struck() || fake_fail_victim() == FAKE_MEMBARRIER)
		return false;
	if (err || fake_fail_victim() != FAKE_MUNMAP)
		return true;

	/* half of a mapping that was split: the region is gone, its address space is not */
	world.leaks = true;
	return false;
}

/* A call that was refused has changed nothing. */
static void check_result(int err, int expected, bool failed, struct fake_snapshot *before)
{
	/* whichever comes first */
	if (failed)
		CHECK(err == -ENOMEM || (expected && err == expected));
	else
		CHECK(err == expected);
	if (err)
		CHECK(fake_equal(before));
	else
		fake_forget(before);
}

/* ---- changes: several steps ---- */

enum step_kind { ADD, REMOVE, MOVE };

struct step {
	enum step_kind kind;
	struct thing *thing;		/* where it is, or will be */
	struct thing added;
	struct gmem_region *ret;
	uint64_t gpa;
};

static bool is_taken(const struct step *steps, size_t count, const struct thing *thing)
{
	size_t i;

	for (i = 0; i < count; i++)
		if (steps[i].thing == thing)
			return true;
	return false;
}

/* Plan one step; false if there is none to plan, or it is refused as it should be. */
static bool plan_step(struct gmem_change *change, struct step *steps, size_t count)
{
	struct step *step = &steps[count];
	struct gmem_region_opts opts;
	struct thing moved;

	step->kind = (enum step_kind)take_below(3);
	step->ret = NULL;
	if (step->kind == ADD) {
		opts = take_new(&step->added);
		step->thing = NULL;
		if (!is_sound(&step->added)) {
			CHECK(gmem_change_add(change, step->added.gpa, step->added.size, &opts,
					      &step->ret) == -EINVAL);
			return false;
		}
		CHECK(!gmem_change_add(change, step->added.gpa, step->added.size, &opts, &step->ret));
		return true;
	}

	step->thing = take_thing();
	step->gpa = take_gpa();
	if (!step->thing)
		return false;
	moved = *step->thing;
	moved.gpa = step->gpa;
	if (is_taken(steps, count, step->thing)) {
		CHECK(gmem_change_remove(change, step->thing->region) == -EEXIST);
		return false;
	}
	if (step->kind == REMOVE) {
		CHECK(!gmem_change_remove(change, step->thing->region));
		return true;
	}
	CHECK(gmem_change_move(change, step->thing->region, step->gpa) ==
	      (is_sound(&moved) ? 0 : -EINVAL));
	return is_sound(&moved);
}

/* @next is the layout with all that leaves gone, then each that comes in turn. */
static int model_apply(struct layout *next, struct step *steps, size_t count)
{
	struct thing *thing;
	size_t i;

	for (i = 0; i < count; i++)
		if (steps[i].kind != ADD)
			next->things[steps[i].thing - world.now.things].region = NULL;

	for (i = 0; i < count; i++) {
		if (steps[i].kind == REMOVE)
			continue;
		if (steps[i].kind == MOVE) {
			thing = &next->things[steps[i].thing - world.now.things];
			thing->region = steps[i].thing->region;
			thing->gpa = steps[i].gpa;
		} else {
			thing = free_place(next);
			if (!thing)
				abort();
			*thing = steps[i].added;
			thing->region = (struct gmem_region *)&steps[i];
		}
		if (!is_free_for(next, thing))
			return -EEXIST;
	}
	return 0;
}

static bool has_room(size_t adds)
{
	size_t i, room = 0;

	for (i = 0; i < MAX_THINGS; i++)
		room += !world.now.things[i].region;
	return room >= adds;
}

static void settle(const struct layout *next, const struct step *steps, size_t count)
{
	size_t i;

	world.now = *next;
	for (i = 0; i < MAX_THINGS; i++) {
		const struct step *step = (const struct step *)(void *)world.now.things[i].region;

		if (step >= steps && step < steps + count)
			world.now.things[i].region = step->ret;
	}
	for (i = 0; i < MAX_THINGS; i++)
		if (world.now.things[i].region)
			remember(&world.now.things[i]);
}

static void change_layout(void)
{
	size_t wanted = 1 + take_below(MAX_STEPS), count = 0, i;
	struct layout next = world.now;
	struct step steps[MAX_STEPS];
	struct gmem_change *change;
	struct fake_snapshot *before;
	int err, expected;

	if (!has_room(MAX_STEPS))
		return;
	CHECK(!gmem_change_new(world.vm, &change));
	for (i = 0; i < wanted; i++)
		count += plan_step(change, steps, count);

	expected = model_apply(&next, steps, count);
	before = fake_snapshot();
	take_failure();
	err = gmem_change_apply(change);
	check_result(err, expected, has_failed(err), before);
	if (!err)
		settle(&next, steps, count);
	gmem_change_free(change);
}

/* ---- changes: one step ---- */

static void add(void)
{
	struct thing thing, *place = free_place(&world.now);
	struct gmem_region_opts opts = take_new(&thing);
	struct gmem_region *region = NULL;
	struct fake_snapshot *before;
	int err, expected;

	if (!place)
		return;

	expected = !is_sound(&thing) ? -EINVAL : is_free_for(&world.now, &thing) ? 0 : -EEXIST;
	before = fake_snapshot();
	take_failure();
	err = gmem_region_add(world.vm, thing.gpa, thing.size, &opts, &region);
	check_result(err, expected, has_failed(err), before);
	CHECK(!err == !!region);
	if (err)
		return;
	*place = thing;
	place->region = region;
	remember(place);
}

static void drop(void)
{
	struct thing *thing = take_thing();
	struct fake_snapshot *before;
	int err;

	if (!thing)
		return;

	before = fake_snapshot();
	take_failure();
	err = gmem_region_remove(thing->region);
	check_result(err, 0, has_failed(err), before);
	if (!err)
		thing->region = NULL;
}

static void move(void)
{
	struct thing *thing = take_thing(), moved;
	uint64_t gpa = take_gpa();
	struct fake_snapshot *before;
	int err, expected;

	if (!thing)
		return;

	moved = *thing;
	moved.gpa = gpa;
	thing->gpa = gpa;
	expected = !is_sound(&moved) ? -EINVAL : is_free_for(&world.now, thing) ? 0 : -EEXIST;
	thing->gpa = gmem_region_gpa(thing->region);
	before = fake_snapshot();
	take_failure();
	err = gmem_region_move(thing->region, gpa);
	check_result(err, expected, has_failed(err), before);
	if (err)
		return;
	thing->gpa = gpa;
	remember(thing);
}

static void split(void)
{
	struct thing *thing = take_thing(), *place = free_place(&world.now);
	uint64_t offset = take_below(1025) * PAGE;
	struct gmem_region *upper = NULL;
	struct fake_snapshot *before;
	int err, expected;

	if (!thing || !place)
		return;

	expected = offset == 0 || offset >= thing->size ? -EINVAL : 0;
	before = fake_snapshot();
	take_failure();
	err = gmem_region_split(thing->region, offset, &upper);
	check_result(err, expected, has_failed(err), before);
	CHECK(!err == !!upper);
	if (err)
		return;

	*place = *thing;
	place->region = upper;
	place->gpa += offset;
	place->offset += offset;
	place->size -= offset;
	place->slot = 0;
	thing->size = offset;
}

static int expected_of_rebind(struct thing *thing, int file, uint64_t offset)
{
	struct thing old = *thing;
	int err;

	if (thing->kind == HOST || thing->kind == DEVICE)
		return -EOPNOTSUPP;

	thing->file = file;
	thing->offset = offset;
	err = !is_sound(thing) ? -EINVAL : is_free_for(&world.now, thing) ? 0 : -EEXIST;
	*thing = old;
	return err;
}

static void rebind(void)
{
	struct thing *thing = take_thing();
	int file = (int)take_below(FILES), err, expected;
	uint64_t offset = take_below(FILE_PAGES) * PAGE;
	struct fake_snapshot *before;

	if (!thing)
		return;

	expected = expected_of_rebind(thing, file, offset);
	before = fake_snapshot();
	take_failure();
	err = gmem_region_rebind(thing->region, world.files[file], offset);
	check_result(err, expected, has_failed(err), before);
	if (err)
		return;
	thing->file = file;
	thing->offset = offset;
}

/* ---- lookups ---- */

static uint64_t take_address(void)
{
	uint64_t gpa = take_gpa();

	return gpa + take_below(PAGE);
}

/* Pieces by the page, as many as follow each other on the host */
static int model_pieces(uint64_t gpa, uint64_t size, struct iovec *iov, size_t max)
{
	size_t count = 0;
	uint64_t now;
	char *hva;
	int err;

	for (; size; gpa += now, size -= now) {
		now = least(to_page_end(gpa), size);
		err = error_at(gpa);
		if (err)
			return err;
		hva = hva_at(gpa);
		if (count && (char *)iov[count - 1].iov_base + iov[count - 1].iov_len == hva) {
			iov[count - 1].iov_len += now;
			continue;
		}
		if (count == max)
			return -ENOSPC;
		iov[count++] = (struct iovec){ hva, now };
	}
	return (int)count;
}

static void look_up_one(void)
{
	uint64_t gpa = take_address(), size = take_below(3 * PAGE);
	struct iovec iov[1] = { { NULL, 0 } };
	void *hva = NULL;
	int err, expected;

	expected = !size ? -EINVAL : error_at(gpa);
	if (!expected && model_pieces(gpa, size, iov, 1) != 1)
		expected = -ERANGE;
	gmem_view_begin(world.views[0]);
	err = gmem_view_hva(world.views[0], gpa, size, &hva);
	gmem_view_end(world.views[0]);
	CHECK(err == expected);
	CHECK(hva == (err ? NULL : iov[0].iov_base));
}

static void look_up_pieces(void)
{
	uint64_t gpa = take_address(), size = take_below(48 * PAGE);
	struct iovec iov[MAX_PIECES], expected[MAX_PIECES];
	size_t max = take_below(MAX_PIECES + 1);
	int count, expected_count;

	memset(iov, 0x5a, sizeof(iov));
	memset(expected, 0x5a, sizeof(expected));
	expected_count = size ? model_pieces(gpa, size, expected, max) : -EINVAL;
	gmem_view_begin(world.views[0]);
	count = gmem_view_iovec(world.views[0], gpa, size, iov, max);
	gmem_view_end(world.views[0]);
	CHECK(count == expected_count);
	if (count >= 0)
		CHECK(!memcmp(iov, expected, sizeof(iov)));
}

/* ---- accesses ---- */

static uint8_t ours[MAX_BYTES + 8], theirs[MAX_BYTES + 8];

static struct gmem_view *take_view(void)
{
	return world.views[take() & 1];
}

static void read_bytes(void)
{
	struct gmem_view *view = take_view();
	uint64_t gpa = take_address(), size = take_below(MAX_BYTES), done = 77, expected;
	int err;

	expected = reach(gpa, size, &err);
	CHECK(gmem_view_read(view, gpa, theirs, size, &done) == err);
	CHECK(done == expected);
	peek(gpa, ours, done);
	CHECK(!memcmp(ours, theirs, done));
}

static void write_bytes(void)
{
	struct gmem_view *view = take_view();
	uint64_t gpa = take_address(), size = take_below(MAX_BYTES), done = 77, expected, i;
	uint8_t first = take();
	int err;

	for (i = 0; i < size; i++)
		theirs[i] = (uint8_t)(first + 3 * i);
	expected = reach(gpa, size, &err);
	CHECK(gmem_view_write(view, gpa, theirs, size, &done) == err);
	CHECK(done == expected);

	/* one place in the file may be at several in the guest: then the last byte is the one */
	peek(gpa + done - least(done, 1), ours, least(done, 1));
	CHECK(!done || ours[0] == theirs[done - 1]);
}

static void fill_bytes(void)
{
	struct gmem_view *view = take_view();
	uint64_t gpa = take_address(), size = take_below(MAX_BYTES), done = 77, expected, i;
	uint8_t byte = take();
	int err;

	expected = reach(gpa, size, &err);
	CHECK(gmem_view_fill(view, gpa, byte, size, &done) == err);
	CHECK(done == expected);
	peek(gpa, ours, done);
	for (i = 0; i < done; i++)
		CHECK(ours[i] == byte);
}

/* With one difference, or none */
static void compare_bytes(void)
{
	struct gmem_view *view = take_view();
	uint64_t gpa = take_address(), size = take_below(MAX_BYTES), done = 77, expected;
	uint64_t different = take_below(MAX_BYTES);
	uint8_t by = take();
	int err, order = 77, expected_order = 0;

	expected = reach(gpa, size, &err);
	memset(ours, 0, sizeof(ours));
	peek(gpa, ours, expected);
	memcpy(theirs, ours, sizeof(ours));
	theirs[different] ^= by;
	if (by && different < expected) {
		expected = different;
		expected_order = ours[different] < theirs[different] ? -1 : 1;
		err = 0;
	}
	CHECK(gmem_view_compare(view, gpa, theirs, size, &order, &done) == err);
	CHECK(done == expected);
	CHECK(err ? order == 77 : (order > 0) - (order < 0) == expected_order);
}

static void copy_string(void)
{
	struct gmem_view *view = take_view();
	uint64_t gpa = take_address(), max = take_below(MAX_BYTES), length = 77, expected;
	uint8_t *end;
	int err;

	expected = reach(gpa, max, &err);
	peek(gpa, ours, expected);
	end = memchr(ours, 0, expected);
	if (end)
		err = 0;
	else if (!err)
		err = max ? -ENAMETOOLONG : -EINVAL;
	CHECK(gmem_view_string(view, gpa, (char *)theirs, max, &length) == err);
	CHECK(err ? length == 77 : length == (uint64_t)(end - ours));
	if (!err)
		CHECK(!memcmp(ours, theirs, length + 1));
}

/* The first byte that cannot be read, else the first that cannot be written */
static uint64_t reach_both(uint64_t to, uint64_t from, uint64_t size, int *ret_err)
{
	int read_err, write_err;
	uint64_t readable = reach(from, size, &read_err);
	uint64_t writable = reach(to, size, &write_err);

	/* of two holes at once the source's is named; but a page comes after a hole */
	if (readable == writable && read_err == -EFAULT && write_err)
		read_err = write_err;
	*ret_err = readable <= writable ? read_err : write_err;
	return least(readable, writable);
}

static void copy_bytes(void)
{
	struct gmem_view *view = take_view();
	uint64_t to = take_address(), from = take_address(), size = take_below(MAX_BYTES);
	uint64_t done = 77, expected = 0;
	bool once;
	int err;

	expected = reach_both(to, from, size, &err);
	if (size && to <= from + size - 1 && from <= to + size - 1) {
		expected = 0;
		err = -EINVAL;
	}
	/* where both are in files they may be the same place */
	once = expected && (must_be_at(from)->file < 0 || must_be_at(to)->file < 0);
	if (once)
		peek(from, ours, 1);
	CHECK(gmem_view_copy(view, to, from, size, &done) == err);
	CHECK(done == expected);
	if (once) {
		peek(to, theirs, 1);
		CHECK(ours[0] == theirs[0]);
	}
}

/* ---- single numbers ---- */

static uint64_t cut(uint64_t value, uint32_t width)
{
	return width == 8 ? value : value & ((UINT64_C(1) << 8 * width) - 1);
}

/* Little-endian, as all hosts of the library are */
static uint64_t peek_number(uint64_t gpa, uint32_t width)
{
	uint64_t value = 0;

	peek(gpa, &value, width);
	return value;
}

static void touch_number(void)
{
	struct gmem_view *view = take_view();
	uint32_t width = UINT32_C(1) << take_below(4), order = (uint32_t)take_below(5);
	uint64_t gpa = take_address(), value = take() * UINT64_C(0x0101010101010101), was = 0;
	uint64_t old, what = take_below(3);
	int err = gpa % width || order > GMEM_SEQ_CST ? -EINVAL : fault_at(gpa);

	if ((what == 0 && order == GMEM_RELEASE) || (what == 1 && order == GMEM_ACQUIRE))
		err = -EINVAL;
	old = err ? 0 : peek_number(gpa, width);
	if (what == 0) {
		CHECK(gmem_view_load(view, gpa, width, order, &was) == err);
		CHECK(was == old);
	} else if (what == 1) {
		CHECK(gmem_view_store(view, gpa, width, order, cut(value, width)) == err);
		CHECK(err || peek_number(gpa, width) == cut(value, width));
	} else {
		bool right = take() & 1;
		uint64_t guess = right ? old : cut(~old, width), expected = guess;

		CHECK(gmem_view_compare_exchange(view, gpa, width, order, &expected, cut(value, width)) ==
		      (err ? err : right));
		CHECK(expected == (err ? guess : old));
		CHECK(err || peek_number(gpa, width) == (right ? cut(value, width) : old));
	}
}

/* Pages of a file go or come: those that are gone cannot be reached. */
static void resize_file(void)
{
	size_t file = take_below(FILES);

	world.present[file] = take_below(FILE_PAGES + 1);
	CHECK(!ftruncate(gmem_file_fd(world.files[file]), (off_t)(world.present[file] * PAGE)));
}

/* ---- the world ---- */

static void (*const commands[])(void) = {
	add, drop, move, split, rebind, change_layout, look_up_one, look_up_pieces,
	read_bytes, write_bytes, fill_bytes, compare_bytes, copy_string, copy_bytes,
	touch_number, resize_file,
};

static void create_once(void)
{
	static const uint32_t backings[] = { GMEM_BACKING_HOST, GMEM_BACKING_MAPPED,
					     GMEM_BACKING_SHARED };
	size_t i;

	if (world.caps)
		return;

	fake_boot("6.18");
	world.vm_fd = fake_new_vm();
	CHECK(!gmem_caps_new(world.vm_fd, NULL, &world.caps));
	for (i = 0; i < ARRAY_SIZE(backings); i++) {
		GMEM_OPTS(gmem_request, request, .backings = { backings[i] });

		CHECK(!gmem_plan_new(world.caps, &request, &world.plans[i]));
	}
}

static void begin(void)
{
	GMEM_OPTS(gmem_vm_opts, opts, .caps = world.caps);
	size_t i;

	memset(&world.now, 0, sizeof(world.now));
	world.past_count = 0;
	world.leaks = false;
	fake_refuse_membarrier(take() & 1 ? -EPERM : 0);
	CHECK(!gmem_vm_new(world.vm_fd, &opts, &world.vm));
	for (i = 0; i < FILES; i++) {
		CHECK(!gmem_file_new(world.vm_fd, FILE_PAGES * PAGE, world.plans[SHARED],
				     &world.files[i]));
		world.present[i] = FILE_PAGES;
	}
	CHECK(!gmem_view_new(world.vm, &world.views[0]));
	CHECK(!gmem_recovery_enable());
	CHECK(!gmem_view_new(world.vm, &world.views[1]));
}

static void end(void)
{
	size_t i;

	gmem_view_free(world.views[0]);
	gmem_view_free(world.views[1]);
	gmem_recovery_disable();
	gmem_vm_free(world.vm);
	for (i = 0; i < FILES; i++)
		gmem_file_free(world.files[i]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	unsigned maps, fds;
	size_t i;

	create_once();
	maps = fake_open_mappings();
	fds = fake_open_fds();
	input = (struct fuzz_input){ data, size };

	begin();
	for (i = 0; i < MAX_COMMANDS && input.left; i++) {
		uint8_t command = take() % ARRAY_SIZE(commands);

		commands[command]();
		fake_fail_call(0, 0);
		check_layout();
	}
	end();

	CHECK(fake_slot_count(world.vm_fd) == 0);
	CHECK(fake_open_mappings() == maps || world.leaks);
	CHECK(fake_open_fds() == fds);
	CHECK(fake_complaints() == 0);
	return 0;
}
