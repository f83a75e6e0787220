/* SPDX-License-Identifier: MIT */
#include "transfer/leased_memory.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "gmem.h"
#include "base/error.h"
#include "base/kind.h"
#include "base/lock.h"
#include "nofault/nofault.h"
#include "os/sys.h"
#include "region/dirty_pages.h"
#include "region/file.h"
#include "region/host_look.h"
#include "region/available.h"
#include "region/present_pages.h"
#include "region/region_memory.h"
#include "region/regions.h"

/* Bytes compared with zero at a time: the smallest page of any host */
#define GRAIN ((uint64_t)4096)

/* Below this size, page faults cost less than a call that populates first. */
#define POPULATE_FROM ((uint64_t)16 << 10)

bool gmem_is_zero(const void *bytes, size_t size)
{
	const char *p = bytes;
	size_t i;

	/* Most pages that are not zero are not zero at their start. */
	for (i = 0; i < size && i < 16; i++)
		if (p[i])
			return false;
	return size <= 16 || memcmp(p, p + 16, size - 16) == 0;
}

/* ---- which memory ---- */

/* Make room for one more entry of a list. */
static int grow(void **entries, size_t count, size_t size)
{
	void *more;

	/* The room is @count rounded up to a power of two: it is used up when @count is one. */
	if (count & (count - 1))
		return 0;

	more = realloc(*entries, (count ? 2 * count : 1) * size);
	if (!more)
		return gmem_fail(-ENOMEM, "no memory for a list of %zu ranges", count + 1);
	*entries = more;
	return 0;
}

static int add_part(struct gmem_part **parts, size_t *count, uint64_t start, uint64_t last)
{
	int err = grow((void **)parts, *count, sizeof(**parts));

	if (!err)
		(*parts)[(*count)++] = (struct gmem_part){ start, last };
	return err;
}

/* Parts that are listed before others get the VM's lock */
#define PARTS_AT_ONCE 1024

struct listing {
	struct gmem_vm *vm;
	struct gmem_leased_memory *memory;
	uint32_t use;
	struct gmem_part *shared;	/* ranges to be leased */
	size_t shared_count;
};

static int add_region(struct gmem_leased_region **regions, size_t *count, const struct gmem_stretch *at)
{
	int err = grow((void **)regions, *count, sizeof(**regions));

	if (!err)
		(*regions)[(*count)++] = (struct gmem_leased_region){
			.gpa = at->gpa,
			.size = at->size,
			.backing = at->region->backing,
			.kind = at->region->kind,
			.identity = at->region->identity,
		};
	return err;
}

static int list_region(struct listing *listing, const struct gmem_stretch *at)
{
	bool all_private = gmem_region_is_both_sides(at->region);
	struct gmem_leased_memory *memory = listing->memory;
	struct gmem_stretch part = GMEM_REGIONS_WALK(listing->vm, at->gpa, at->gpa + at->size - 1);
	int err;

	if (!gmem_region_has_use(at->region, listing->use))
		return add_region(&memory->elsewhere, &memory->elsewhere_count, at);
	err = add_region(&memory->regions, &memory->region_count, at);
	if (err)
		return err;

	if (all_private)
		return add_part(&memory->privates, &memory->private_count, at->gpa,
				at->gpa + at->size - 1);
	for (size_t i = 1; !err && gmem_regions_walk(&part); i++) {
		err = part.is_private ? add_part(&memory->privates, &memory->private_count, part.gpa,
						 part.gpa + part.size - 1)
				      : add_part(&listing->shared, &listing->shared_count, part.gpa,
						 part.gpa + part.size - 1);
		if (i % PARTS_AT_ONCE == 0) {
			gmem_lock_drop(&listing->vm->lock);
			gmem_lock_take(&listing->vm->lock);
		}
	}
	return err;
}

/*
 * The lock is dropped between regions and, within one, after some parts: there may be very
 * many. What changes meanwhile is refused when it is leased.
 */
static int list(struct listing *listing, uint64_t start, uint64_t last)
{
	struct gmem_stretch at = GMEM_REGIONS_WALK(listing->vm, start, last);
	bool is_over = false;
	int err = 0;

	while (!err && !is_over) {
		gmem_lock_take(&listing->vm->lock);
		is_over = !gmem_regions_walk_whole(&at);
		if (!is_over && at.region && !at.region->is_device)
			err = list_region(listing, &at);
		gmem_lock_drop(&listing->vm->lock);
	}
	return err;
}

/* The first page that is not mapped, of some of which one is not: by halves */
static char *find_unmapped(char *hva, uint64_t pages)
{
	uint64_t page = gmem_sys_page_size(), half;

	while (pages > 1) {
		half = pages / 2;
		if (gmem_sys_check_mapped(hva, half * page) == -ENOMEM) {
			pages = half;
		} else {
			hva += half * page;
			pages -= half;
		}
	}
	return hva;
}

/*
 * Where nothing is mapped, the next mapping may come: that is a buffer of this transfer, which
 * would then be taken for guest memory. So this is asked before there is any. Only a list of
 * very many ranges, for which malloc() makes a mapping, can come before.
 */
static void note_unmapped(struct gmem_leased_range *range)
{
	uint64_t page = gmem_sys_page_size(), before = (uintptr_t)range->hva % page;
	uint64_t size = before + range->size;

	if (gmem_sys_check_mapped(range->hva - before, size) != -ENOMEM)
		return;
	range->unmapped = find_unmapped(range->hva - before, (size + page - 1) / page);
	if (range->unmapped < range->hva)
		range->unmapped = range->hva;
}

static int check_mapped(const struct gmem_leased_range *range, uint64_t offset, uint64_t size)
{
	if (!range->unmapped || range->hva + offset + size <= range->unmapped)
		return 0;
	return gmem_fail(-EFAULT, "gpa 0x%" PRIx64 ", hva 0x%" PRIxPTR ", cannot be reached: EFAULT, nothing "
			 "was mapped there when the transfer began",
			 range->gpa + (uint64_t)(range->unmapped - range->hva), (uintptr_t)range->unmapped);
}

int gmem_leased_memory_check_mapped(const struct gmem_leased_memory *memory)
{
	int err = 0;

	for (size_t i = 0; i < memory->count && !err; i++)
		err = check_mapped(&memory->all[i], 0, memory->all[i].size);
	return err;
}

/* Note the host addresses of leased memory, which cannot go away any more. */
static int locate(struct listing *listing, const struct gmem_part *part)
{
	struct gmem_stretch at = GMEM_REGIONS_WALK(listing->vm, part->start, part->last);
	struct gmem_leased_memory *memory = listing->memory;
	struct gmem_region_memory side;
	uint64_t offset;
	int err;

	while (gmem_regions_walk_whole(&at)) {
		offset = at.gpa - at.region->gpa.start;
		/* All of the region: the part may have any alignment. */
		err = gmem_region_memory_get(at.region, GMEM_SIDE_SHARED, 0, at.region->gpa.size,
					     &side);
		if (!err)
			err = grow((void **)&memory->all, memory->count, sizeof(*memory->all));
		if (err)
			return err;
		memory->all[memory->count] = (struct gmem_leased_range){
			.region = at.region,
			.gpa = at.gpa,
			.size = at.size,
			.offset = offset,
			.hva = (char *)side.hva + offset,
			.page_size = side.pool_page,
			.in_file = side.file != NULL,
		};
		note_unmapped(&memory->all[memory->count++]);
	}
	return 0;
}

static int lease(struct listing *listing, const char *holder)
{
	GMEM_OPTS(gmem_lease_opts, opts, .holder = holder);
	struct gmem_leased_memory *memory = listing->memory;
	int err = 0;

	for (size_t i = 0; i < listing->shared_count && !err; i++) {
		const struct gmem_part *part = &listing->shared[i];

		err = grow((void **)&memory->leases, memory->lease_count, sizeof(*memory->leases));
		if (!err)
			err = gmem_lease_new(listing->vm, part->start, part->last - part->start + 1,
					     &opts, &memory->leases[memory->lease_count]);
		if (!err)
			memory->lease_count++;
	}
	return err;
}

static int make_look(struct gmem_leased_memory *memory)
{
	memory->look = malloc(sizeof(*memory->look));
	if (!memory->look)
		return gmem_fail(-ENOMEM, "no memory for what is known of host memory");
	*memory->look = (struct gmem_host_look)GMEM_HOST_LOOK;
	return 0;
}

int gmem_leased_memory_take(struct gmem_vm *vm, uint64_t start, uint64_t last, uint32_t use,
			    const char *holder, struct gmem_leased_memory *ret)
{
	struct listing listing = { .vm = vm, .memory = ret, .use = use };
	int err;

	ret->fast = gmem_nofault_is_recoverable();
	err = ret->fast ? 0 : gmem_nofault_check_slow();
	if (!err)
		err = make_look(ret);
	if (!err)
		err = list(&listing, start, last);

	/* Fails if a range was removed or became private since it was listed. */
	if (!err)
		err = lease(&listing, holder);

	for (size_t i = 0; i < listing.shared_count && !err; i++) {
		gmem_lock_take(&vm->lock);
		err = locate(&listing, &listing.shared[i]);
		gmem_lock_drop(&vm->lock);
	}

	free(listing.shared);
	if (err)
		gmem_leased_memory_drop(ret);
	return err;
}

void gmem_leased_memory_drop(struct gmem_leased_memory *memory)
{
	for (size_t i = 0; i < memory->lease_count; i++)
		gmem_lease_free(memory->leases[i]);
	if (memory->look)
		gmem_host_look_end(memory->look);
	free(memory->look);
	free(memory->leases);
	free(memory->regions);
	free(memory->elsewhere);
	free(memory->privates);
	free(memory->all);
	*memory = (struct gmem_leased_memory){ 0 };
}

bool gmem_leased_memory_is_private(const struct gmem_leased_memory *memory, uint64_t gpa)
{
	for (size_t i = 0; i < memory->private_count; i++)
		if (gpa >= memory->privates[i].start && gpa <= memory->privates[i].last)
			return true;
	return false;
}

uint64_t gmem_leased_memory_bytes(const struct gmem_leased_memory *memory)
{
	uint64_t bytes = 0;

	for (size_t i = 0; i < memory->count; i++)
		bytes += memory->all[i].size;
	return bytes;
}

static uint64_t sum(const struct gmem_leased_region *regions, size_t count)
{
	uint64_t bytes = 0;

	for (size_t i = 0; i < count; i++)
		bytes += regions[i].size;
	return bytes;
}

uint64_t gmem_leased_memory_region_bytes(const struct gmem_leased_memory *memory)
{
	return sum(memory->regions, memory->region_count);
}

uint64_t gmem_leased_memory_elsewhere_bytes(const struct gmem_leased_memory *memory)
{
	return sum(memory->elsewhere, memory->elsewhere_count);
}

uint64_t gmem_leased_memory_private_bytes(const struct gmem_leased_memory *memory)
{
	uint64_t bytes = 0;

	for (size_t i = 0; i < memory->private_count; i++)
		bytes += memory->privates[i].last - memory->privates[i].start + 1;
	return bytes;
}

const struct gmem_leased_range *gmem_leased_memory_from(const struct gmem_leased_memory *memory,
							uint64_t gpa)
{
	size_t low = 0, high = memory->count, middle;

	while (low < high) {
		middle = low + (high - low) / 2;
		if (memory->all[middle].gpa + (memory->all[middle].size - 1) < gpa)
			low = middle + 1;
		else
			high = middle;
	}
	return low < memory->count ? &memory->all[low] : NULL;
}

const struct gmem_leased_range *gmem_leased_memory_at(const struct gmem_leased_memory *memory,
						      uint64_t gpa)
{
	const struct gmem_leased_range *range = gmem_leased_memory_from(memory, gpa);

	return range && range->gpa <= gpa ? range : NULL;
}

uint64_t gmem_leased_memory_reach(const struct gmem_leased_memory *memory, uint64_t gpa,
				  uint64_t enough)
{
	const struct gmem_leased_range *range;
	uint64_t size = 0;

	while (size < enough && (range = gmem_leased_memory_at(memory, gpa + size)) != NULL) {
		size = range->gpa - gpa + range->size;
		if (gpa + size == 0)
			break;
	}
	return size;
}

static const struct gmem_leased_region *region_at(const struct gmem_leased_region *regions,
						  size_t count, uint64_t gpa)
{
	size_t low = 0, high = count, middle;

	while (low < high) {
		middle = low + (high - low) / 2;
		if (regions[middle].gpa + (regions[middle].size - 1) < gpa)
			low = middle + 1;
		else
			high = middle;
	}
	return low == count || regions[low].gpa > gpa ? NULL : &regions[low];
}

const struct gmem_leased_region *gmem_leased_memory_elsewhere(const struct gmem_leased_memory *memory,
							      uint64_t gpa)
{
	return region_at(memory->elsewhere, memory->elsewhere_count, gpa);
}

uint64_t gmem_leased_memory_region_reach(const struct gmem_leased_memory *memory, uint64_t gpa,
					 uint64_t enough)
{
	const struct gmem_leased_region *region;
	uint64_t size = 0;

	while (size < enough &&
	       (region = region_at(memory->regions, memory->region_count, gpa + size)) != NULL) {
		size = region->gpa - gpa + region->size;
		if (gpa + size == 0)
			break;
	}
	return size;
}

/* ---- to the guest ---- */

static int fail_access(const struct gmem_leased_range *range, const char *hva, bool writes, int err)
{
	uint64_t gpa = range->gpa + (uint64_t)(hva - range->hva);
	const char *why;

	if (gmem_nofault_is_lost(hva, err))
		err = -EHWPOISON;
	why = gmem_nofault_why(hva, writes, err);
	/* It was compared before: it would have been written only because it differs. */
	if (writes && err == -EFAULT && gmem_kind_traits(range->region->kind)->is_compared)
		return gmem_fail(-EROFS, "gpa 0x%" PRIx64 " has other contents than it should get, in memory "
				 "of kind \"%s\" that cannot be written", gpa,
				 gmem_kind_name(range->region->kind));
	return gmem_fail(err, "gpa 0x%" PRIx64 ", hva 0x%" PRIxPTR ", cannot be %s: %s, %s",
			 gpa, (uintptr_t)hva,
			 writes ? "written" : "read", gmem_errno_name(err),
			 why ? why : "but the page came meanwhile");
}

/* The pages of a part of the range, by offset in the region */
static struct gmem_part pages_of(const struct gmem_leased_range *range, const char *hva, uint64_t size)
{
	uint64_t offset = range->offset + (uint64_t)(hva - range->hva), page = gmem_sys_page_size();

	return (struct gmem_part){ offset / page * page, (offset + size - 1) / page * page + page - 1 };
}

/* One call before the copy replaces a fault for each page. A failure shows in the copy. */
static void populate(const struct gmem_leased_range *range, char *hva, uint64_t size)
{
	uint64_t page = gmem_sys_page_size(), before = (uintptr_t)hva % page;
	int advice = range->in_file ? MADV_POPULATE_READ : MADV_POPULATE_WRITE;

	if (size >= POPULATE_FROM)
		gmem_sys_madvise(hva - before, (before + size + page - 1) / page * page, advice);
}

static int check_pages_fit(uint64_t page_size, uint64_t bytes, const char *hva)
{
	if (page_size <= gmem_sys_page_size())
		return gmem_check_memory_fits(bytes);
	return gmem_check_huge_pages_fit(page_size, (bytes + page_size - 1) / page_size, hva);
}

/* Regions that are asked whether huge pages are set aside for them: each takes a walk of the page tables. */
#define MAX_ASKED 16

/* Huge pages may be set aside for any of the mappings; those of very many may have some. */
static int check_any_fits(const struct gmem_leased_memory *memory, uint64_t page_size, uint64_t bytes)
{
	const struct gmem_region *asked = NULL;
	int err = check_pages_fit(page_size, bytes, NULL);
	unsigned int count = 0;

	if (err || page_size <= gmem_sys_page_size())
		return err;
	for (size_t i = 0; i < memory->count; i++) {
		const struct gmem_leased_range *range = &memory->all[i];

		if (range->page_size != page_size || range->region == asked)
			continue;
		if (count++ == MAX_ASKED)
			return 0;
		asked = range->region;
		err = check_pages_fit(page_size, bytes, range->hva);
		if (!err)
			return 0;
	}
	return err;
}

/* Do those of @bytes fit that must come into memory with the pages of @first, wherever the others go? */
static int check_page_size(const struct gmem_leased_memory *memory, const struct gmem_leased_range *first,
			   uint64_t bytes)
{
	uint64_t page_size = first->page_size, elsewhere = 0, there = 0;
	struct gmem_resident now;

	for (size_t i = 0; i < memory->count; i++)
		elsewhere += memory->all[i].page_size != page_size ? memory->all[i].size : 0;
	bytes = bytes > elsewhere ? bytes - elsewhere : 0;
	if (!check_pages_fit(page_size, bytes, first->hva))
		return 0;

	/* So little is left that it matters what is there already. */
	for (size_t i = 0; i < memory->count && there < bytes; i++) {
		const struct gmem_leased_range *range = &memory->all[i];
		struct gmem_part pages = pages_of(range, range->hva, range->size);

		if (range->page_size != page_size)
			continue;
		if (gmem_region_memory_bounds(range->region, GMEM_SIDE_SHARED, pages.start,
					      pages.last - pages.start + 1, &now))
			return 0;
		there += now.most;
	}
	return there < bytes ? check_any_fits(memory, page_size, bytes - there) : 0;
}

int gmem_leased_memory_check_fits(const struct gmem_leased_memory *memory, uint64_t bytes)
{
	uint64_t checked = 0, page_size;
	int err = 0;

	if (memory->is_unchecked)
		return 0;
	/* Page sizes are powers of two: once for each */
	for (size_t i = 0; i < memory->count && !err; i++) {
		page_size = memory->all[i].page_size;
		if (!(checked & page_size))
			err = check_page_size(memory, &memory->all[i], bytes);
		checked |= page_size;
	}
	return err;
}

/* How much is asked for at once: asking reads a few files of the kernel's. */
#define GRANT ((uint64_t)64 << 20)

/* Threads that ask at the same time get one grant together. */
static bool take_grant(struct gmem_leased_memory *memory, uint64_t size)
{
	uint64_t granted = __atomic_load_n(&memory->granted, __ATOMIC_RELAXED);

	do {
		if (granted < size && gmem_check_memory_fits(GRANT))
			return false;
	} while (!__atomic_compare_exchange_n(&memory->granted, &granted,
					      (granted < size ? GRANT : granted) - size, true,
					      __ATOMIC_RELAXED, __ATOMIC_RELAXED));
	return true;
}

static int check_fits(struct gmem_leased_memory *memory, const struct gmem_leased_range *range,
		      const char *hva, uint64_t size)
{
	struct gmem_part pages;
	bool is_huge;

	if (memory->is_unchecked)
		return 0;
	is_huge = range->page_size > gmem_sys_page_size();
	if (!is_huge && take_grant(memory, size))
		return 0;
	/* So little is left that it matters what is there already. */
	pages = pages_of(range, hva, size);
	return gmem_region_check_fits(range->region, GMEM_SIDE_SHARED, pages.start,
				      pages.last - pages.start + 1);
}

static int copy_in(struct gmem_leased_memory *memory, const struct gmem_leased_range *range,
		   char *hva, const char *bytes, uint64_t size)
{
	size_t done;
	int err = check_fits(memory, range, hva, size);

	if (err)
		return err;
	populate(range, hva, size);
	done = gmem_nofault_copy(memory->fast, hva, bytes, size, &err);
	return err ? fail_access(range, hva + done, true, err) : 0;
}

struct clearing {
	const struct gmem_leased_memory *memory;
	const struct gmem_leased_range *range;
	uint64_t start, end;	/* offsets in the region */
};

/* Writes only where it is not zero already: reading allocates no memory. */
static int clear_run(void *data, uint64_t offset, uint64_t size)
{
	const struct clearing *clearing = data;
	const struct gmem_leased_range *range = clearing->range;
	uint64_t start = offset > clearing->start ? offset : clearing->start;
	uint64_t end = offset + size < clearing->end ? offset + size : clearing->end;
	bool fast = clearing->memory->fast, writes;
	char bytes[GRAIN], *hva;
	uint64_t now;
	size_t done;
	int err = 0;

	for (; start < end && !err; start += now) {
		hva = range->hva + (start - range->offset);
		now = GRAIN - start % GRAIN;
		now = end - start < now ? end - start : now;
		done = gmem_nofault_copy(fast, bytes, hva, now, &err);
		writes = !err && !gmem_is_zero(bytes, now);
		if (writes)
			done = gmem_nofault_fill(fast, hva, 0, now, &err);
		if (err)
			err = fail_access(range, hva + done, writes, err);
	}
	/* For core dumps, which have the stack. */
	explicit_bzero(bytes, sizeof(bytes));
	return err;
}

static int clear(const struct gmem_leased_memory *memory, struct gmem_host_look *look,
		 const struct gmem_leased_range *range, uint64_t offset, uint64_t size)
{
	struct clearing clearing = {
		.memory = memory,
		.range = range,
		.start = range->offset + offset,
		.end = range->offset + offset + size,
	};
	struct gmem_part pages = pages_of(range, range->hva + offset, size);

	return gmem_region_present_pages(range->region, GMEM_SIDE_SHARED, pages.start,
					 pages.last - pages.start + 1, look, clear_run, &clearing);
}

int gmem_leased_memory_clear(const struct gmem_leased_memory *memory, struct gmem_host_look *look,
			     uint64_t gpa, uint64_t size)
{
	const struct gmem_leased_range *range;
	uint64_t now, offset;
	int err = 0;

	for (; size && !err; gpa += now, size -= now) {
		range = gmem_leased_memory_at(memory, gpa);
		if (!range)
			return gmem_fail_no_region(gpa);
		offset = gpa - range->gpa;
		now = range->size - offset < size ? range->size - offset : size;
		err = check_mapped(range, offset, now);
		if (!err)
			err = clear(memory, look, range, offset, now);
		gmem_vm_mark_dirty(range->region->vm, gpa, now);
	}
	return err;
}

/* Count the bytes at the start of @bytes that are all zeros, or all in pages with other bytes. */
static uint64_t same_kind(const char *bytes, uint64_t gpa, uint64_t size, bool *ret_zero)
{
	uint64_t done = 0, grain;
	bool zero;

	while (done < size) {
		grain = GRAIN - (gpa + done) % GRAIN;
		grain = size - done < grain ? size - done : grain;
		zero = gmem_is_zero(bytes + done, grain);
		if (done && zero != *ret_zero)
			break;
		*ret_zero = zero;
		done += grain;
	}
	return done;
}

/* So that memory that cannot be written can be restored, if it is what it was. */
static int copy_differences(struct gmem_leased_memory *memory,
			    const struct gmem_leased_range *range, char *hva, const char *bytes,
			    uint64_t size)
{
	char present[GRAIN];
	uint64_t done, now;
	int err = 0;

	for (done = 0; done < size && !err; done += now) {
		now = size - done < GRAIN ? size - done : GRAIN;
		gmem_nofault_copy(memory->fast, present, hva + done, now, &err);
		if (err)
			err = fail_access(range, hva + done, false, err);
		else if (memcmp(present, bytes + done, now) != 0)
			err = copy_in(memory, range, hva + done, bytes + done, now);
	}
	explicit_bzero(present, sizeof(present));
	return err;
}

int gmem_leased_memory_store(struct gmem_leased_memory *memory, struct gmem_host_look *look,
			     uint64_t gpa, const char *bytes, uint64_t size,
			     struct gmem_stored *stored)
{
	const struct gmem_leased_range *range;
	uint64_t now, offset;
	bool zero = false;
	int err;

	for (; size; gpa += now, bytes += now, size -= now) {
		range = gmem_leased_memory_at(memory, gpa);
		if (!range)
			return gmem_fail_no_region(gpa);

		offset = gpa - range->gpa;
		now = range->size - offset < size ? range->size - offset : size;
		now = same_kind(bytes, gpa, now, &zero);
		err = check_mapped(range, offset, now);
		if (err)
			return err;
		if (zero)
			err = clear(memory, look, range, offset, now);
		else if (gmem_kind_traits(range->region->kind)->is_compared)
			err = copy_differences(memory, range, range->hva + offset, bytes, now);
		else
			err = copy_in(memory, range, range->hva + offset, bytes, now);
		gmem_vm_mark_dirty(range->region->vm, gpa, now);
		if (err)
			return err;
		*(zero ? &stored->zero : &stored->data) += now;
	}
	return 0;
}

/* ---- to the guest, without a buffer ---- */

/* Bytes at the start of a page that mostly tell that it is not zero */
#define GLANCE 64

/* Where a file of ours alone decides what a page is, and it can be reached as the kernel reads */
static bool can_fill(const struct gmem_leased_memory *memory, const struct gmem_leased_range *range,
		     uint64_t offset, uint64_t size)
{
	uint64_t page = gmem_sys_page_size();

	return memory->fast && range && range->in_file && !range->unmapped && range->size - offset >= size &&
	       (uintptr_t)(range->hva + offset) % page == 0 && size % page == 0 &&
	       !gmem_kind_traits(range->region->kind)->is_compared;
}

/* Are the bytes zero? false also if they cannot be read, with *@ret_err. */
static bool is_zero_there(char *hva, uint64_t size, int *ret_err)
{
	char bytes[GRAIN];
	uint64_t read = GLANCE;
	bool zero;

	gmem_nofault_copy(true, bytes, hva, read, ret_err);
	zero = !*ret_err && gmem_is_zero(bytes, read);
	if (zero) {
		read = size;
		gmem_nofault_copy(true, bytes, hva, read, ret_err);
		zero = !*ret_err && gmem_is_zero(bytes, read);
	}
	/* For core dumps, which have the stack. */
	explicit_bzero(bytes, read);
	return zero;
}

/* Count what was read, and give back pages of zeros if @all_new. -errno: a page cannot be read. */
static int settle(const struct gmem_leased_range *range, uint64_t offset, uint64_t size, bool all_new,
		  struct gmem_stored *stored)
{
	uint64_t page = gmem_sys_page_size(), start = 0, zero_from = 0, zeros;
	int err = 0;

	for (; start < size; start += page) {
		zeros = 0;
		for (uint64_t at = start; at < start + page && !err; at += GRAIN)
			zeros += is_zero_there(range->hva + offset + at, GRAIN, &err) ? GRAIN : 0;
		if (err)
			return err;
		stored->zero += zeros;
		stored->data += page - zeros;
		if (zeros == page)
			continue;
		if (all_new && zero_from < start)
			gmem_region_memory_give_back(range->region, range->offset + offset + zero_from,
						     start - zero_from);
		zero_from = start + page;
	}
	if (all_new && zero_from < size)
		gmem_region_memory_give_back(range->region, range->offset + offset + zero_from, size - zero_from);
	return 0;
}

bool gmem_leased_memory_fill(struct gmem_leased_memory *memory, uint64_t gpa, uint64_t size,
			     gmem_fill_fn fill, void *data, struct gmem_stored *stored)
{
	const struct gmem_leased_range *range = gmem_leased_memory_at(memory, gpa);
	uint64_t offset = range ? gpa - range->gpa : 0, before;
	const struct gmem_region *region;
	struct gmem_stored found = { 0 };
	bool is_filled;

	if (!can_fill(memory, range, offset, size))
		return false;
	region = range->region;
	/* Where some pages are there and some not, nobody could tell later which are to stay. */
	if (gmem_sys_cachestat(region->file->fd, region->file_offset + range->offset + offset, size, &before) ||
	    (before && before != size / gmem_sys_page_size()))
		return false;
	if (check_fits(memory, range, range->hva + offset, size) ||
	    gmem_sys_madvise(range->hva + offset, size, MADV_POPULATE_READ))
		return false;

	is_filled = fill(data, range->hva + offset, size) && !settle(range, offset, size, !before, &found);
	if (!is_filled && !before)
		gmem_region_memory_give_back(range->region, range->offset + offset, size);
	gmem_vm_mark_dirty(region->vm, gpa, size);
	stored->data += is_filled ? found.data : 0;
	stored->zero += is_filled ? found.zero : 0;
	return is_filled;
}
