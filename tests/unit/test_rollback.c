/* SPDX-License-Identifier: MIT */
/*
 * apply and apply_slots: random changes, in which the kernel refuses a call, and then calls
 * of the undo. After each, the kernel, the library's records, readers, statistics, memslot
 * numbers and file ranges say the same.
 *
 * GMEM_ROLLBACK_CHANGES sets the number of changes, GMEM_ROLLBACK_SEED where to begin.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/macros.h"
#include "os/kvm.h"
#include "os/kvm_compat.h"
#include "region/file.h"
#include "region/region.h"
#include "region/vm_core.h"
#include "unit.h"

#define INPLACE_REQUEST	_IOWR(KVMIO, 0xfe, struct gmem_kvm_file_attributes)
#define BOTH_FLAGS	(GMEM_CREATE_MMAP | GMEM_CREATE_INIT_SHARED)

#define MODEL_PAGES	256	/* all that happens is below */
#define MAX_PAGES	12	/* of a region: a word has a bit for each */
#define MAX_PARTS	48
#define MAX_STEPS	5
#define MAX_STORES	64
#define NUMBERS		512	/* that are looked at */
#define FILE_PAGES	40
#define CHANGES_PER_VM	60
#define DEFAULT_CHANGES	6000

/* ---- the model ---- */

struct part {
	struct gmem_region *region;	/* NULL: there is none */
	uint32_t backing;
	uint64_t page;
	uint64_t pages;
	uint64_t offset;		/* in its file, pages */
	struct gmem_file *file;
	void *hva;
	uint32_t number;
	uint64_t private;		/* a bit a page */
	uint64_t dirty;			/* likewise: what the guest wrote, and the log must say */
	bool logs;
	bool lost;			/* from a change that could not be undone; it can only go */
};

struct store {
	uint32_t number;
	uint64_t hva;
};

static struct {
	struct unit unit;
	uint64_t random;
	uint64_t seed;
	struct gmem_plan *plans[GMEM_BACKING_INPLACE + 1];
	struct gmem_file *files[GMEM_BACKING_INPLACE + 1];
	uint32_t backings[8];
	size_t backing_count;
	struct gmem_view *view;
	struct part parts[MAX_PARTS];
	struct store stores[MAX_STORES];	/* during a change */
	size_t store_count;
	bool may_say_more;	/* a log was lost, so all its pages count as dirty */
} world;

#define wrong(...)								\
	do {									\
		print_error("seed %llu, after \"%s\": ",			\
			    (unsigned long long)world.seed, gmem_last_error());	\
		fail_msg(__VA_ARGS__);						\
	} while (0)

static uint64_t random_below(uint64_t limit)
{
	world.random ^= world.random << 13;
	world.random ^= world.random >> 7;
	world.random ^= world.random << 17;
	return (world.random >> 13) % limit;
}

static uint64_t bytes(uint64_t pages)
{
	return pages * world.unit.page;
}

static struct part *random_part(void)
{
	size_t first = random_below(MAX_PARTS);
	size_t i;

	for (i = 0; i < MAX_PARTS; i++)
		if (world.parts[(first + i) % MAX_PARTS].region)
			return &world.parts[(first + i) % MAX_PARTS];
	return NULL;
}

static struct part *free_part(void)
{
	size_t i;

	for (i = 0; i < MAX_PARTS; i++)
		if (!world.parts[i].region)
			return &world.parts[i];
	return NULL;
}

static bool converts(const struct part *part)
{
	return part->backing == GMEM_BACKING_PRIVATE || part->backing == GMEM_BACKING_INPLACE;
}

static bool is_plain(const struct part *part)
{
	return part->backing == GMEM_BACKING_HOST || part->backing == GMEM_BACKING_MAPPED;
}

/* What the library says of a region that is new, or changed */
static void learn(struct part *part)
{
	const struct gmem_region *region = part->region;
	uint64_t offset = 0;

	part->backing = gmem_region_backing(region);
	part->page = gmem_region_gpa(region) / world.unit.page;
	part->pages = gmem_region_size(region) / world.unit.page;
	part->hva = gmem_region_hva(region);
	part->number = gmem_region_slot(region);
	part->file = gmem_region_file(region, &offset);
	part->offset = offset / world.unit.page;
}

static void world_begin(const char *kernel, uint64_t seed)
{
	GMEM_OPTS(gmem_inplace_opts, inplace, .request = INPLACE_REQUEST, .create_flags = BOTH_FLAGS);
	GMEM_OPTS(gmem_vm_opts, opts, .inplace = &inplace);
	uint32_t backing;

	memset(&world, 0, sizeof(world));
	world.seed = seed;
	world.random = seed * 0x9e3779b97f4a7c15 | 1;
	unit_begin(&world.unit, kernel);
	if (strcmp(kernel, "future-t1") == 0)
		fake.inplace_request = INPLACE_REQUEST;
	else
		opts.inplace = NULL;
	opts.caps = world.unit.caps;
	assert_ok(gmem_vm_new(world.unit.vm_fd, &opts, &world.unit.vm));

	for (backing = GMEM_BACKING_HOST; backing <= GMEM_BACKING_INPLACE; backing++) {
		GMEM_OPTS(gmem_request, request, .backings = { backing });

		if (gmem_plan_new(gmem_vm_caps(world.unit.vm), &request, &world.plans[backing]))
			continue;
		world.backings[world.backing_count++] = backing;
		if (backing != GMEM_BACKING_HOST)
			assert_ok(gmem_file_new(world.unit.vm_fd, bytes(FILE_PAGES),
						world.plans[backing], &world.files[backing]));
	}
	assert_ok(gmem_view_new(world.unit.vm, &world.view));
}

/* Freed, the handle has let go of all memslots and memory, and of what was stuck. */
static void world_end(void)
{
	uint32_t backing;

	gmem_view_free(world.view);
	gmem_vm_free(world.unit.vm);
	world.unit.vm = NULL;
	assert_int_equal(fake_slot_count(world.unit.vm_fd), 0);
	for (backing = GMEM_BACKING_HOST; backing <= GMEM_BACKING_INPLACE; backing++) {
		gmem_file_free(world.files[backing]);
		gmem_plan_free(world.plans[backing]);
	}
	if (fake_open_mappings())
		wrong("%u mappings are left", fake_open_mappings());
	if (fake_open_fds() != 1)
		wrong("%u fds are left", fake_open_fds() - 1);
	unit_end(&world.unit);
}

/* ---- the kernel, the records and readers say the same ---- */

/* What the checks count up */
struct sums {
	unsigned slots;				/* memslots that somebody has */
	uint64_t bound[GMEM_BACKING_INPLACE + 1];	/* pages of each file */
	uint8_t owned[NUMBERS];
	uint64_t bytes;
	uint64_t private;
};

/* Everything a region or a stuck memslot owns is what the kernel has of it. */
static void check_owner(struct sums *sums, const struct gmem_region *region)
{
	bool bound = gmem_region_traits(region)->is_bound;
	struct fake_slot slot;

	if (region->owns_number) {
		assert_true(region->slot < NUMBERS);
		if (sums->owned[region->slot]++)
			wrong("two own memslot number %u", region->slot);
	}
	if (region->owns_range) {
		if (gmem_range_find(&region->file->bound, region->bound.start, region->bound.size) !=
		    &region->bound)
			wrong("page %d owns a file range that it has not",
			      (int)(region->gpa.start / world.unit.page));
		if (region->file == world.files[region->backing])
			sums->bound[region->backing] += region->bound.size / world.unit.page;
	}
	if (!region->has_slot)
		return;

	sums->slots++;
	if (!region->owns_number || !fake_get_slot(world.unit.vm_fd, region->slot, &slot))
		wrong("there is no memslot %u", region->slot);
	if (slot.size != region->gpa.size || (slot.gpa != region->gpa.start && !region->lost))
		wrong("memslot %u is at page %d, not %d", region->slot,
		      (int)(slot.gpa / world.unit.page), (int)(region->gpa.start / world.unit.page));
	assert_int_equal(slot.flags, region->slot_flags);
	if (bound) {
		assert_int_equal(slot.file, fake_file_of_fd(region->file->fd));
		assert_true(region->owns_range && slot.offset >= region->bound.start &&
			    slot.offset + slot.size <= region->bound.start + region->bound.size);
	}
	/* The guest may use it: it is still mapped. */
	if (fake_protection_at((void *)(uintptr_t)slot.hva) < 0)
		wrong("the memory of memslot %u is gone", region->slot);
}

static void check_part(struct sums *sums, const struct part *part)
{
	const struct gmem_region *region = part->region;
	struct gmem_region *found;
	uint64_t offset = 0;

	if (gmem_region_gpa(region) != bytes(part->page) || gmem_region_size(region) != bytes(part->pages))
		wrong("the region of page %d is elsewhere", (int)part->page);
	if (region->is_device)
		return;
	assert_ptr_equal(gmem_region_hva(region), part->hva);
	assert_int_equal(gmem_region_slot(region), part->number);
	assert_ptr_equal(gmem_region_file(region, &offset), part->file);
	assert_int_equal(offset, bytes(part->offset));
	assert_int_equal(region->lost, part->lost);
	if (!part->lost && !region->has_slot)
		wrong("the region of page %d has no memslot", (int)part->page);
	if (gmem_vm_find_hva(world.unit.vm, part->hva, &found, NULL) || found != region)
		wrong("the region of page %d is not found by its host address", (int)part->page);

	check_owner(sums, region);
	sums->bytes += bytes(part->pages);
	sums->private += bytes((uint64_t)__builtin_popcountll(part->private));
}

static const struct part *part_at(uint64_t page)
{
	size_t i;

	for (i = 0; i < MAX_PARTS; i++)
		if (world.parts[i].region && page - world.parts[i].page < world.parts[i].pages)
			return &world.parts[i];
	return NULL;
}

static void check_page(uint64_t page, const struct part *part)
{
	bool is_private = part && part->private >> (page - part->page) & 1, kernel;
	struct gmem_state_range state;
	void *hva = NULL;
	int err, expected = 0;

	err = gmem_view_hva(world.view, bytes(page), world.unit.page, &hva);
	if (!part)
		expected = err == -ESTALE ? -ESTALE : -ENOENT;
	else if (part->backing == GMEM_BACKING_NONE)
		expected = -ENXIO;
	else if (is_private)
		expected = -EACCES;
	if (err != expected)
		wrong("page %d gives a reader %d, not %d", (int)page, err, expected);
	if (!err)
		assert_ptr_equal(hva, (char *)part->hva + bytes(page - part->page));

	/* The kernel may keep private what cannot be: such a region is lost. */
	if (!part || part->backing == GMEM_BACKING_NONE || (part->lost && !converts(part)))
		return;
	assert_int_equal(gmem_vm_state(world.unit.vm, bytes(page), world.unit.page, &state, 1), 1);
	if ((state.state == GMEM_STATE_PRIVATE) != is_private)
		wrong("the record of page %d is not as it should be", (int)page);

	kernel = part->backing == GMEM_BACKING_INPLACE
			 ? fake_is_file_private(gmem_file_fd(part->file),
						bytes(part->offset + page - part->page))
			 : fake_is_private(world.unit.vm_fd, bytes(page));
	if (kernel != is_private)
		wrong("the kernel has another state of page %d", (int)page);
}

static void check_numbers(const struct sums *sums)
{
	const uint64_t *used = world.unit.vm->slots.used;
	uint32_t n;

	for (n = 0; n < NUMBERS; n++)
		if ((used[n / 64] >> (n % 64) & 1) != sums->owned[n])
			wrong("memslot number %u is %s", n, sums->owned[n] ? "not taken" : "never given back");
}

static uint64_t bytes_in(const struct gmem_range *range)
{
	return range ? range->size + bytes_in(range->left) + bytes_in(range->right) : 0;
}

static void check_everything(void)
{
	GMEM_OPTS(gmem_stats, stats, .flags = 0);
	const struct gmem_region *stuck;
	struct sums sums;
	uint64_t page;
	uint32_t i;

	memset(&sums, 0, sizeof(sums));
	for (i = 0; i < MAX_PARTS; i++)
		if (world.parts[i].region)
			check_part(&sums, &world.parts[i]);
	for (stuck = world.unit.vm->stuck; stuck; stuck = stuck->next_stuck)
		check_owner(&sums, stuck);
	if (fake_slot_count(world.unit.vm_fd) != sums.slots)
		wrong("the kernel has %u memslots, not %u", fake_slot_count(world.unit.vm_fd), sums.slots);
	check_numbers(&sums);
	for (i = 0; i <= GMEM_BACKING_INPLACE; i++)
		if (world.files[i] &&
		    bytes_in(world.files[i]->bound.root) != bytes(sums.bound[i]))
			wrong("of a file more is bound than regions have");

	gmem_view_begin(world.view);
	for (page = 0; page < MODEL_PAGES; page++)
		check_page(page, part_at(page));
	gmem_view_end(world.view);

	assert_ok(gmem_vm_stats(world.unit.vm, &stats));
	if (stats.bytes_private != sums.private)
		wrong("0x%llx bytes are said to be private, not 0x%llx",
		      (unsigned long long)stats.bytes_private, (unsigned long long)sums.private);
	assert_int_equal(stats.bytes_shared, sums.bytes - sums.private);
	if (stats.made_private - stats.made_shared != sums.private)
		wrong("0x%llx bytes were made private, not 0x%llx",
		      (unsigned long long)(stats.made_private - stats.made_shared),
		      (unsigned long long)sums.private);
}

/* ---- the guest, and its dirty log ---- */

static struct part *part_of_store(const struct store *store)
{
	size_t i;

	for (i = 0; i < MAX_PARTS; i++) {
		struct part *part = &world.parts[i];

		if (part->region && part->logs && !part->lost &&
		    store->hva - (uintptr_t)part->hva < bytes(part->pages))
			return part;
	}
	return NULL;
}

static void note_stores(void)
{
	struct part *part;

	while (world.store_count > 0) {
		const struct store *store = &world.stores[--world.store_count];

		part = part_of_store(store);
		if (part)
			part->dirty |= UINT64_C(1)
				       << ((store->hva - (uintptr_t)part->hva) / world.unit.page);
	}
}

/* Called between any two changes of memslots, too */
static void guest_stores(void)
{
	const struct part *part = random_part();
	uint64_t page = random_below(MODEL_PAGES);
	struct fake_slot slot;

	if (part && random_below(2))
		page = part->page + random_below(part->pages);
	if (world.store_count == MAX_STORES ||
	    !fake_guest_stores(world.unit.vm_fd, bytes(page), &slot))
		return;
	world.stores[world.store_count++] = (struct store){
		.number = slot.number,
		.hva = slot.hva + (bytes(page) - slot.gpa),
	};
}

static void read_log(struct part *part)
{
	uint64_t all = (UINT64_C(1) << part->pages) - 1, log = 0;

	assert_ok(gmem_region_get_dirty_log(part->region, &log, 1));
	if (part->dirty & ~log)
		wrong("page %d: the log says 0x%llx, the guest wrote 0x%llx", (int)part->page,
		      (unsigned long long)log, (unsigned long long)part->dirty);
	if (log & ~all || (!world.may_say_more && log != part->dirty))
		wrong("page %d: the log says 0x%llx, the guest wrote only 0x%llx", (int)part->page,
		      (unsigned long long)log, (unsigned long long)part->dirty);
	part->dirty = 0;
}

/* ---- what is refused ---- */

static void maybe_refuse(void)
{
	if (random_below(4))
		fake_fail_at_random((unsigned)random_below(12), (unsigned)random_below(4) + 1,
				    world.random);
	else
		fake_fail_at_random(1000000, 1, 1);
	fake_before_slot = guest_stores;
}

/* Returns whether a call was refused. What is left of a change that could not be undone: */
static bool end_refusals(int err)
{
	bool struck = fake_fail_struck();
	size_t i;

	fake_before_slot = NULL;
	world.may_say_more |= struck;
	if (err && !*gmem_last_error())
		wrong("there is no sentence for %d", err);
	for (i = 0; err == -ENOTRECOVERABLE && i < MAX_PARTS; i++) {
		struct part *part = &world.parts[i];
		struct gmem_state_range state;
		uint64_t page;

		if (!part->region)
			continue;
		part->lost |= part->region->lost;
		/* What the kernel keeps shared, or private, is so. */
		for (page = 0; page < part->pages && converts(part); page++) {
			gmem_vm_state(world.unit.vm, bytes(part->page + page), world.unit.page, &state, 1);
			part->private &= ~(UINT64_C(1) << page);
			part->private |= (uint64_t)(state.state == GMEM_STATE_PRIVATE) << page;
		}
	}
	return struck;
}

/* ---- changes ---- */

struct plan {
	struct gmem_change *change;
	struct part *removed[MAX_STEPS];
	struct part *moved[MAX_STEPS];
	struct gmem_region *added[MAX_STEPS];
	bool logs[MAX_STEPS];
	bool keeps[MAX_STEPS];
	uint64_t moved_to[MAX_STEPS];
	size_t count;
};

static struct gmem_region_opts random_opts(bool *ret_logs)
{
	uint32_t backing = world.backings[random_below(world.backing_count)];

	GMEM_OPTS(gmem_region_opts, opts, .flags = 0);
	*ret_logs = false;
	if (random_below(8) == 0) {
		opts.flags = GMEM_REGION_DEVICE;
		return opts;
	}
	opts.plan = world.plans[backing];
	if (random_below(3) == 0) {
		opts.flags |= GMEM_REGION_SLOT;
		opts.slot = (uint32_t)random_below(10);
	}
	if (random_below(2) && world.files[backing]) {
		opts.file = world.files[backing];
		opts.file_offset = bytes(random_below(FILE_PAGES - MAX_PAGES));
	}
	if ((backing == GMEM_BACKING_HOST || backing == GMEM_BACKING_MAPPED) && random_below(2)) {
		opts.flags |= GMEM_REGION_DIRTY_LOG;
		*ret_logs = true;
	}
	return opts;
}

static void plan_step(struct plan *plan)
{
	struct part *part = random_part();
	struct gmem_region_opts opts;
	size_t n = plan->count;
	uint64_t what = random_below(5);

	if (what < 2 || !part) {
		opts = random_opts(&plan->logs[n]);
		if (opts.file && random_below(2)) {
			opts.flags |= GMEM_REGION_KEEP_STATE;
			plan->keeps[n] = true;
		}
		if (part && part->file && random_below(2) &&
		    part->file == world.files[part->backing]) {
			/* the same memory again, or some of it */
			opts.plan = world.plans[part->backing];
			opts.file = part->file;
			opts.file_offset = bytes(part->offset);
			opts.flags &= ~(uint64_t)(GMEM_REGION_DEVICE | GMEM_REGION_DIRTY_LOG);
			plan->logs[n] = false;
		}
		if (gmem_change_add(plan->change, bytes(random_below(MODEL_PAGES - MAX_PAGES)),
				    bytes(random_below(MAX_PAGES) + 1), &opts, &plan->added[n]))
			return;
	} else if (what < 4) {
		if (gmem_change_remove(plan->change, part->region))
			return;
		plan->removed[n] = part;
	} else {
		plan->moved_to[n] = random_below(MODEL_PAGES - MAX_PAGES);
		if (gmem_change_move(plan->change, part->region, bytes(plan->moved_to[n])))
			return;
		plan->moved[n] = part;
	}
	plan->count++;
}

/* What @part has of the memory of @removed is as it was. */
static void model_keep(struct part *part, const struct part *removed)
{
	uint64_t page, old;

	if (!part->file || part->file != removed->file)
		return;
	for (page = 0; page < part->pages; page++) {
		old = part->offset + page - removed->offset;
		if (old >= removed->pages)
			continue;
		part->private |= (removed->private >> old & 1) << page;
		if (part->logs)
			part->dirty |= (removed->dirty >> old & 1) << page;
	}
}

static void model_change(const struct plan *plan)
{
	struct part *part, removed[MAX_STEPS];
	size_t removed_count = 0, i, j;

	for (i = 0; i < plan->count; i++) {
		if (!plan->removed[i])
			continue;
		removed[removed_count++] = *plan->removed[i];
		*plan->removed[i] = (struct part){ .region = NULL };
	}
	for (i = 0; i < plan->count; i++) {
		if (plan->moved[i])
			plan->moved[i]->page = plan->moved_to[i];
		if (!plan->added[i])
			continue;
		part = free_part();
		if (!part) {
			wrong("there are too many regions");
			return;
		}
		*part = (struct part){ .region = plan->added[i], .logs = plan->logs[i] };
		learn(part);
		for (j = 0; j < removed_count && plan->keeps[i]; j++)
			model_keep(part, &removed[j]);
	}
}

static size_t count_parts(void)
{
	size_t count = 0, i;

	for (i = 0; i < MAX_PARTS; i++)
		count += world.parts[i].region != NULL;
	return count;
}

/* A memslot that was not where its region is comes back to where it should be. */
static bool removes_what_is_astray(const struct plan *plan)
{
	size_t i;

	for (i = 0; i < plan->count; i++)
		if (plan->removed[i] && plan->removed[i]->lost)
			return true;
	return false;
}

static void change_several(void)
{
	uint64_t steps = random_below(MAX_STEPS) + 1;
	struct fake_snapshot *before;
	struct plan plan;
	int err;

	memset(&plan, 0, sizeof(plan));
	assert_ok(gmem_change_new(world.unit.vm, &plan.change));
	while (steps-- > 0 && count_parts() + MAX_STEPS < MAX_PARTS)
		plan_step(&plan);

	before = fake_snapshot();
	maybe_refuse();
	err = gmem_change_apply(plan.change);
	end_refusals(err);
	if (err && err != -ENOTRECOVERABLE && !removes_what_is_astray(&plan)) {
		if (!fake_equal(before))
			wrong("a change that gave %d, \"%s\", changed something", err, gmem_last_error());
	} else {
		fake_forget(before);
	}
	if (!err)
		model_change(&plan);
	note_stores();
	gmem_change_free(plan.change);
}

static void split(struct part *part)
{
	struct part *upper = free_part();
	uint64_t offset = random_below(part->pages);
	int err;

	if (!upper)
		return;
	maybe_refuse();
	err = gmem_region_split(part->region, bytes(offset), &upper->region);
	end_refusals(err);
	if (!err) {
		upper->logs = part->logs;
		upper->private = part->private >> offset;
		upper->dirty = part->dirty >> offset;
		part->pages = offset;
		part->private &= (UINT64_C(1) << offset) - 1;
		part->dirty &= (UINT64_C(1) << offset) - 1;
		learn(upper);
	}
	note_stores();
}

/* What was written to the old memory stays in the log, page by page. */
static void rebind(struct part *part)
{
	void *old_hva = part->hva;
	size_t i;
	int err;

	if (!part->file)
		return;
	maybe_refuse();
	err = gmem_region_rebind(part->region, world.files[part->backing],
				 bytes(random_below(FILE_PAGES - MAX_PAGES)));
	end_refusals(err);
	if (!err) {
		learn(part);
		for (i = 0; i < world.store_count; i++)
			if (world.stores[i].hva - (uintptr_t)old_hva < bytes(part->pages))
				world.stores[i].hva += (uintptr_t)part->hva - (uintptr_t)old_hva;
	}
	note_stores();
}

static void convert(struct part *part)
{
	GMEM_OPTS(gmem_convert_opts, opts, .discard = random_below(2) ? GMEM_DISCARD_LATER
								     : GMEM_DISCARD_NOW);
	uint64_t first = random_below(part->pages), count = random_below(part->pages - first) + 1;
	uint64_t mask = ((UINT64_C(1) << count) - 1) << first;
	bool to_private = random_below(3);

	if (!converts(part) || part->lost)
		return;
	assert_ok(gmem_vm_convert(world.unit.vm, bytes(part->page + first), bytes(count),
				  to_private ? GMEM_STATE_PRIVATE : GMEM_STATE_SHARED, &opts, NULL));
	part->private = to_private ? part->private | mask : part->private & ~mask;
}

static void do_something(void)
{
	struct part *part = random_part();
	uint64_t what = random_below(12);

	if (!part || what < 5) {
		change_several();
	} else if (what < 6) {
		split(part);
	} else if (what < 7) {
		rebind(part);
	} else if (what < 9) {
		convert(part);
	} else if (what < 10) {
		guest_stores();
		note_stores();
	} else if (what < 11 && is_plain(part) && part->logs && !part->lost) {
		read_log(part);
	} else if (what < 12 && random_below(8) == 0) {
		assert_ok(gmem_vm_discard_owed(world.unit.vm, NULL));
	}
}

static uint64_t setting(const char *name, uint64_t standard)
{
	const char *value = getenv(name);

	return value ? strtoull(value, NULL, 10) : standard;
}

static void refused_changes_leave_everybody_with_the_truth(void **state)
{
	static const char *const kernels[] = { "6.18", "7.3-swp-t1", "future-t1", "7.2" };
	uint64_t changes = setting("GMEM_ROLLBACK_CHANGES", DEFAULT_CHANGES);
	uint64_t seed = setting("GMEM_ROLLBACK_SEED", 1), i;

	(void)state;
	for (; changes >= CHANGES_PER_VM; changes -= CHANGES_PER_VM, seed++) {
		world_begin(kernels[seed % ARRAY_SIZE(kernels)], seed);
		for (i = 0; i < CHANGES_PER_VM; i++) {
			do_something();
			check_everything();
		}
		world_end();
	}
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(refused_changes_leave_everybody_with_the_truth),
};

UNIT_MAIN(tests)
