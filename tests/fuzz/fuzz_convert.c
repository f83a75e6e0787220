/* SPDX-License-Identifier: MIT */
/*
 * Bytes become regions, conversions, leases, vetoes and refusals of the kernel,
 * on the scripted kernel of the unit tests; readers, the record, the kernel's
 * attributes and what is left of both sides are compared with a model that
 * knows single pages only.
 *
 * The input is a list of commands, each a byte and its arguments; what is
 * missing at the end is 0. Any input is a valid one.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "fake.h"
#include "fuzz.h"
#include "gmem.h"

#define PAGE		((uint64_t)4096)
#define MIB		((uint64_t)1 << 20)
#define PAGES		64
#define BASE		(2 * MIB - PAGES / 2 * PAGE)	/* over a border of the readers' table */
#define MAX_REGIONS	8
#define MAX_LEASES	4
#define MAX_COMMANDS	48
#define VETO		(-EDOM)

/* ---- the input ---- */

static struct fuzz_input input;

static uint8_t take(void)
{
	return fuzz_take(&input);
}

static unsigned take_below(unsigned limit)
{
	return take() % limit;
}

/* ---- the model ---- */

enum what { HOLE, DEVICE, HOST, SHARED, PRIVATE };

struct page {
	enum what what;
	bool was_there;		/* a hole where a region was */
	bool owed;
	bool allocated;		/* on the private side */
	uint8_t byte;		/* of the shared side */
	int region;
	unsigned leases;
};

struct range {
	unsigned page;
	unsigned pages;
};

static struct {
	int vm_fd;
	struct gmem_caps *caps;
	struct gmem_plan *private_plan, *host_plan;
	struct gmem_vm *vm;
	struct gmem_view *view;
	struct gmem_listener *listener;
	struct page pages[PAGES];
	struct gmem_region *regions[MAX_REGIONS];
	struct gmem_lease *leases[MAX_LEASES];
	struct range leased[MAX_LEASES];
	int veto;		/* a page, or -1 */
	unsigned told;		/* pages that the listener let go, and did not get back */
} world;

static struct range take_range(void)
{
	struct range range = { .page = take_below(PAGES) };

	range.pages = 1 + take_below(24);
	if (range.pages > PAGES - range.page)
		range.pages = PAGES - range.page;
	return range;
}

static uint64_t gpa_of(unsigned page)
{
	return BASE + page * PAGE;
}

static unsigned char *shared_byte(unsigned page)
{
	struct gmem_region *region = world.regions[world.pages[page].region];

	return (unsigned char *)gmem_region_hva(region) + (gpa_of(page) - gmem_region_gpa(region));
}

static bool has_private_side(unsigned page)
{
	return world.pages[page].what == SHARED || world.pages[page].what == PRIVATE;
}

/* ---- the listener: what it let go it gets back, or it is private ---- */

static unsigned page_of(uint64_t gpa)
{
	return (unsigned)((gpa - BASE) / PAGE);
}

static int hear_before(void *data, uint64_t gpa, uint64_t size)
{
	unsigned i;

	(void)data;
	for (i = page_of(gpa); i < page_of(gpa + size); i++)
		CHECK(world.pages[i].what == SHARED);
	if (world.veto >= 0 && gpa <= gpa_of((unsigned)world.veto) &&
	    gpa_of((unsigned)world.veto) < gpa + size)
		return VETO;
	world.told += page_of(gpa + size) - page_of(gpa);
	return 0;
}

static void hear_back(void *data, uint64_t gpa, uint64_t size)
{
	(void)data;
	world.told -= page_of(gpa + size) - page_of(gpa);
}

/* ---- what must be so after every command ---- */

static int error_at(const struct page *page)
{
	switch (page->what) {
	case HOLE:
		return page->was_there ? -ESTALE : -ENOENT;
	case DEVICE:
		return -ENXIO;
	case PRIVATE:
		return -EACCES;
	default:
		return 0;
	}
}

static void check_state(unsigned i)
{
	const struct page *page = &world.pages[i];
	struct gmem_state_range range;

	CHECK(gmem_vm_state(world.vm, gpa_of(i), (PAGES - i) * PAGE, &range, 1) == 1);
	CHECK(range.gpa == gpa_of(i));
	CHECK(range.state == (page->what < HOST ? 0 : page->what == PRIVATE ? GMEM_STATE_PRIVATE
									     : GMEM_STATE_SHARED));
	CHECK(range.backing == (page->what < HOST ? 0u : page->what == HOST ? GMEM_BACKING_HOST
									     : GMEM_BACKING_PRIVATE));
}

/* The private side of a page, in the file that the region has it in */
static struct gmem_file *file_of(unsigned page, uint64_t *ret_offset)
{
	struct gmem_region *region = world.regions[world.pages[page].region];
	struct gmem_file *file = gmem_region_file(region, ret_offset);

	*ret_offset += gpa_of(page) - gmem_region_gpa(region);
	return file;
}

static void check_sides(unsigned i)
{
	const struct page *page = &world.pages[i];
	struct gmem_file *file;
	uint64_t offset;

	if (page->what < HOST)
		return;
	CHECK(*shared_byte(i) == page->byte);
	if (page->what == HOST)
		return;
	file = file_of(i, &offset);
	CHECK(fake_is_allocated(gmem_file_fd(file), offset, PAGE) == page->allocated);
}

static void check_all(void)
{
	unsigned i, private_pages = 0;
	void *hva;

	gmem_view_begin(world.view);
	for (i = 0; i < PAGES; i++)
		CHECK(gmem_view_hva(world.view, gpa_of(i) + 16, 8, &hva) ==
		      error_at(&world.pages[i]));
	gmem_view_end(world.view);
	for (i = 0; i < PAGES; i++) {
		CHECK(fake_is_private(world.vm_fd, gpa_of(i)) == (world.pages[i].what == PRIVATE));
		check_state(i);
		check_sides(i);
		private_pages += world.pages[i].what == PRIVATE;
	}
	CHECK(world.told == private_pages);
}

/* ---- commands ---- */

static int free_number(void)
{
	for (int i = 0; i < MAX_REGIONS; i++)
		if (!world.regions[i])
			return i;
	return -1;
}

static void add_region(void)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = 0);
	struct range range = take_range();
	enum what what = (enum what)(DEVICE + take_below(4));
	int number = free_number(), err;
	bool free_range = true;
	unsigned i;

	if (number < 0)
		return;
	what = what == PRIVATE ? SHARED : what;
	if (what == DEVICE)
		opts.flags = GMEM_REGION_DEVICE;
	else
		opts.plan = what == HOST ? world.host_plan : world.private_plan;
	for (i = range.page; i < range.page + range.pages; i++)
		free_range &= world.pages[i].what == HOLE;
	err = gmem_region_add(world.vm, gpa_of(range.page), range.pages * PAGE, &opts,
			      &world.regions[number]);
	CHECK(err == (free_range ? 0 : -EEXIST));
	for (i = range.page; !err && i < range.page + range.pages; i++)
		world.pages[i] = (struct page){ .what = what, .region = number };
}

static void remove_region(void)
{
	unsigned number = take_below(MAX_REGIONS), i;
	bool leased = false, has_private = false;
	bool refused = take_below(4) == 0;
	int err;

	if (!world.regions[number])
		return;
	for (i = 0; i < PAGES; i++) {
		bool ours = world.pages[i].what != HOLE && world.pages[i].region == (int)number;

		leased |= ours && world.pages[i].leases;
		has_private |= ours && world.pages[i].what == PRIVATE;
	}
	if (refused)
		fake_fail_kind(FAKE_SET_ATTRIBUTES, 0, 1, -ENOMEM);
	err = gmem_region_remove(world.regions[number]);
	fake_fail_struck();
	CHECK(err == (leased ? -EBUSY : refused && has_private ? -ENOMEM : 0));
	if (err)
		return;
	world.regions[number] = NULL;
	for (i = 0; i < PAGES; i++) {
		if (world.pages[i].what == HOLE || world.pages[i].region != (int)number)
			continue;
		world.told -= world.pages[i].what == PRIVATE;
		world.pages[i] = (struct page){ .what = HOLE, .was_there = true };
	}
}

/* The pages of a region that the input picks, or 0 pages */
static struct range take_region(int *ret_number)
{
	struct gmem_region *region;

	*ret_number = (int)take_below(MAX_REGIONS);
	region = world.regions[*ret_number];
	if (!region)
		return (struct range){ .pages = 0 };
	return (struct range){ page_of(gmem_region_gpa(region)),
			       (unsigned)(gmem_region_size(region) / PAGE) };
}

static bool is_leased(struct range range)
{
	for (unsigned i = range.page; i < range.page + range.pages; i++)
		if (world.pages[i].leases)
			return true;
	return false;
}

static bool is_private_in_part(struct range range)
{
	for (unsigned i = range.page; i < range.page + range.pages; i++)
		if (world.pages[i].what == PRIVATE)
			return true;
	return false;
}

/* Both parts keep what their pages are, and owe. */
static void split_region(void)
{
	int number, upper = free_number();
	struct range range = take_region(&number);
	unsigned at = range.pages > 1 ? 1 + take_below(range.pages - 1) : 0;
	int err;

	if (!at || upper < 0)
		return;
	err = gmem_region_split(world.regions[number], at * PAGE, &world.regions[upper]);
	CHECK(err == (is_leased(range) ? -EBUSY : 0));
	for (unsigned i = range.page + at; !err && i < range.page + range.pages; i++)
		world.pages[i].region = upper;
}

/* What a region owes goes with it. */
static void move_region(void)
{
	int number;
	struct range from = take_region(&number), to = { .page = take_below(PAGES), .pages = from.pages };
	int err;

	if (!from.pages || to.pages > PAGES - to.page)
		return;
	for (unsigned i = to.page; i < to.page + to.pages; i++)
		if (world.pages[i].what != HOLE)
			return;
	err = gmem_region_move(world.regions[number], gpa_of(to.page));
	CHECK(err == (is_leased(from) ? -EBUSY : is_private_in_part(from) ? -EACCES : 0));
	for (unsigned i = 0; !err && i < from.pages; i++) {
		world.pages[to.page + i] = world.pages[from.page + i];
		world.pages[from.page + i] = (struct page){ .what = HOLE, .was_there = true };
	}
}

/* What the old file owed ends with it. */
static void rebind_region(void)
{
	int number;
	struct range range = take_region(&number);
	struct gmem_file *file;
	int err;

	if (!range.pages || !has_private_side(range.page))
		return;
	CHECK(gmem_file_new(world.vm_fd, range.pages * PAGE, world.private_plan, &file) == 0);
	err = gmem_region_rebind(world.regions[number], file, 0);
	CHECK(err == (is_leased(range) ? -EBUSY : 0));
	gmem_file_free(file);
	for (unsigned i = range.page; !err && i < range.page + range.pages; i++) {
		world.pages[i].allocated = false;
		world.pages[i].owed &= world.pages[i].what == PRIVATE;
	}
}

/* The result that the arguments alone decide, and the number of runs to convert */
static int foresee(struct range range, bool to_private, unsigned *runs)
{
	enum what wanted = to_private ? PRIVATE : SHARED, before = wanted;
	unsigned i;
	bool veto = false;

	*runs = 0;
	for (i = range.page; to_private && i < range.page + range.pages; i++)
		if (world.pages[i].leases)
			return -EBUSY;
	for (i = range.page; i < range.page + range.pages; i++) {
		if (!has_private_side(i))
			return world.pages[i].what == HOLE ? -ENOENT
			       : world.pages[i].what == DEVICE ? -ENXIO : -EOPNOTSUPP;
		*runs += world.pages[i].what != wanted && before == wanted;
		before = world.pages[i].what;
		veto |= to_private && before == SHARED && world.veto == (int)i;
	}
	return veto ? VETO : 0;
}

static void turn(unsigned first, unsigned count, bool to_private, unsigned discard, bool discarded)
{
	unsigned i;

	for (i = first; i < first + count; i++) {
		struct page *page = &world.pages[i];

		/* What was owed of a page that did not change still is. */
		if (discard != GMEM_DISCARD_NEVER || page->what != (to_private ? PRIVATE : SHARED))
			page->owed = discard == GMEM_DISCARD_LATER;
		page->what = to_private ? PRIVATE : SHARED;
		if (!discarded)
			continue;
		if (to_private)
			page->byte = 0;
		else
			page->allocated = false;
	}
}

static void convert(void)
{
	GMEM_OPTS(gmem_convert_opts, opts, .flags = 0);
	struct range range = take_range();
	bool to_private = take_below(2);
	unsigned mode = take_below(8), skip = take_below(6), runs;
	struct gmem_conversion done;
	int err, expected;

	opts.discard = take_below(3);
	expected = foresee(range, to_private, &runs);
	if (mode < 2)
		fake_fail_kind(FAKE_SET_ATTRIBUTES, skip, mode ? 100 : 1, -ENOMEM);
	if (!expected && mode < 2 && skip < runs)
		expected = mode && skip ? -ENOTRECOVERABLE : -ENOMEM;
	err = gmem_vm_convert(world.vm, gpa_of(range.page), range.pages * PAGE,
			      to_private ? GMEM_STATE_PRIVATE : GMEM_STATE_SHARED, &opts, &done);
	fake_fail_struck();
	CHECK(err == expected);
	CHECK(!err || err == -ENOTRECOVERABLE || !done.size);
	if (err == -ENOTRECOVERABLE) {
		CHECK(done.size && done.gpa >= gpa_of(range.page) &&
		      done.gpa + done.size <= gpa_of(range.page + range.pages));
		turn(page_of(done.gpa), (unsigned)(done.size / PAGE), to_private,
		     GMEM_DISCARD_NEVER, false);
	}
	if (!err && runs)
		turn(range.page, range.pages, to_private, opts.discard,
		     opts.discard == GMEM_DISCARD_NOW);
	CHECK(err || done.ioctls == runs);
}

static void discard_owed(void)
{
	uint64_t bytes, expected = 0;
	unsigned i;

	for (i = 0; i < PAGES; i++) {
		struct page *page = &world.pages[i];

		if (!page->owed)
			continue;
		expected += PAGE;
		page->owed = false;
		if (page->what == PRIVATE)
			page->byte = 0;
		else
			page->allocated = false;
	}
	CHECK(gmem_vm_discard_owed(world.vm, &bytes) == 0);
	CHECK(bytes == expected);
}

static int foresee_lease(struct range range)
{
	unsigned i;

	for (i = range.page; i < range.page + range.pages; i++) {
		if (world.pages[i].what == PRIVATE)
			return -EACCES;
		if (world.pages[i].what < HOST)
			return world.pages[i].what == HOLE ? -ENOENT : -ENXIO;
	}
	return 0;
}

static void lease(void)
{
	unsigned number = take_below(MAX_LEASES), i;
	struct range range = take_range();
	int err;

	if (world.leases[number]) {
		gmem_lease_free(world.leases[number]);
		world.leases[number] = NULL;
		range = world.leased[number];
		for (i = range.page; i < range.page + range.pages; i++)
			world.pages[i].leases--;
		return;
	}
	err = gmem_lease_new(world.vm, gpa_of(range.page) + 1, range.pages * PAGE - 1, NULL,
			     &world.leases[number]);
	CHECK(err == foresee_lease(range));
	if (err)
		return;
	world.leased[number] = range;
	for (i = range.page; i < range.page + range.pages; i++)
		world.pages[i].leases++;
}

/* Something on both sides of a page */
static void touch(void)
{
	unsigned page = take_below(PAGES);
	struct gmem_file *file;
	uint64_t offset;

	if (world.pages[page].what < HOST)
		return;
	world.pages[page].byte = take();
	*shared_byte(page) = world.pages[page].byte;
	if (!has_private_side(page))
		return;
	file = file_of(page, &offset);
	CHECK(gmem_file_allocate(file, offset, PAGE, NULL) == 0);
	world.pages[page].allocated = true;
}

static void set_veto(void)
{
	unsigned page = take_below(2 * PAGES);

	world.veto = page < PAGES ? (int)page : -1;
}

/* ---- the world ---- */

static void begin(void)
{
	GMEM_OPTS(gmem_caps_opts, caps_opts, .flags = GMEM_CAPS_VM_TYPE, .vm_type = 1);
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_PRIVATE });
	GMEM_OPTS(gmem_listener_opts, listener, .before_private = hear_before,
		  .undo_private = hear_back, .after_shared = hear_back);
	GMEM_OPTS(gmem_vm_opts, vm_opts, .flags = 0);

	memset(&world, 0, sizeof(world));
	world.veto = -1;
	fake_boot("7.3-swp-t1");
	world.vm_fd = fake_new_vm();
	CHECK(gmem_caps_new(world.vm_fd, &caps_opts, &world.caps) == 0);
	vm_opts.caps = world.caps;
	CHECK(gmem_vm_new(world.vm_fd, &vm_opts, &world.vm) == 0);
	CHECK(gmem_plan_new(world.caps, &request, &world.private_plan) == 0);
	request.backings[0] = GMEM_BACKING_HOST;
	CHECK(gmem_plan_new(world.caps, &request, &world.host_plan) == 0);
	CHECK(gmem_view_new(world.vm, &world.view) == 0);
	CHECK(gmem_listener_new(world.vm, &listener, &world.listener) == 0);
}

static void end(void)
{
	unsigned i;

	for (i = 0; i < MAX_LEASES; i++)
		gmem_lease_free(world.leases[i]);
	gmem_listener_free(world.listener);
	gmem_view_free(world.view);
	gmem_vm_free(world.vm);
	gmem_plan_free(world.private_plan);
	gmem_plan_free(world.host_plan);
	gmem_caps_free(world.caps);
	fake_close(world.vm_fd);
	CHECK(fake_complaints() == 0);
	CHECK(fake_halt() == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static void (*const commands[])(void) = {
		convert, convert, convert, add_region, add_region, remove_region,
		discard_owed, lease, touch, touch, set_veto, split_region, move_region,
		rebind_region,
	};
	unsigned i;

	input = (struct fuzz_input){ data, size };
	begin();
	for (i = 0; i < MAX_COMMANDS && input.left; i++) {
		commands[take_below(sizeof(commands) / sizeof(commands[0]))]();
		check_all();
	}
	end();
	return 0;
}
