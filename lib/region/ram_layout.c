/* SPDX-License-Identifier: MIT */
#include "region/ram_layout.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>

#include "base/check.h"
#include "base/error.h"
#include "base/macros.h"
#include "base/opts.h"
#include "os/sys.h"

#define GIB (UINT64_C(1) << 30)

#define X86_HOLE_START	(3 * GIB)
#define X86_HOLE_END	(4 * GIB)
#define ARM64_BASE	GIB

/* AMD's IOMMU translates no address of the HyperTransport range. */
#define HYPERTRANSPORT_START	UINT64_C(0xfd00000000)
#define HYPERTRANSPORT_SIZE	(12 * GIB)

/* RAM that is being laid out, from @gpa on */
struct walk {
	const struct gmem_ram_layout_opts *opts;
	struct gmem_gpa_range machine[2];	/* its own holes; those of size 0 only cut */
	uint64_t ram;
	uint64_t gpa;
	uint64_t done;
};

/* ---- checks ---- */

static int check_holes(const struct gmem_ram_layout_opts *opts)
{
	int err = 0;

	if (opts->hole_count && !opts->holes)
		return gmem_fail(-EINVAL, "hole_count is %" PRIu64 ", holes is NULL", opts->hole_count);
	for (uint64_t i = 0; i < opts->hole_count && !err; i++)
		err = gmem_check_range("hole", opts->holes[i].gpa, opts->holes[i].size);
	return err;
}

/* What is for the other machine is not read. */
static int check_place(uint64_t ram, const struct gmem_ram_layout_opts *opts)
{
	int err;

	if (opts->machine == GMEM_MACHINE_ARM64)
		return gmem_check_range("base", opts->base, ram);

	if (opts->hole_start > X86_HOLE_END)
		return gmem_fail(-EINVAL, "the hole starts at 0x%" PRIx64 ", above 4 GiB, where it ends",
				 opts->hole_start);
	err = gmem_check_aligned("hole_start", opts->hole_start);
	return err ? err : gmem_check_range("gpa", 0, ram);
}

static int check(uint64_t ram, const struct gmem_ram_layout_opts *opts)
{
	int err;

	err = gmem_check_flags("flags", opts->flags, GMEM_RAM_LAYOUT_HYPERTRANSPORT);
	if (err)
		return err;
	if (opts->machine != GMEM_MACHINE_X86_64 && opts->machine != GMEM_MACHINE_ARM64)
		return gmem_fail(-EINVAL, "%" PRIu32 " is no machine", opts->machine);
	err = check_place(ram, opts);
	return err ? err : check_holes(opts);
}

/* ---- holes ---- */

static struct walk begin(uint64_t ram, const struct gmem_ram_layout_opts *opts)
{
	struct walk walk = { .opts = opts, .ram = ram, .gpa = opts->base };

	if (opts->machine != GMEM_MACHINE_X86_64)
		return walk;

	walk.gpa = 0;
	walk.machine[0] = (struct gmem_gpa_range){ opts->hole_start, X86_HOLE_END - opts->hole_start };
	if (!(opts->flags & GMEM_RAM_LAYOUT_HYPERTRANSPORT))
		walk.machine[1] = (struct gmem_gpa_range){ HYPERTRANSPORT_START, HYPERTRANSPORT_SIZE };
	return walk;
}

static const struct gmem_gpa_range *hole(const struct walk *walk, uint64_t i)
{
	const uint64_t own = GMEM_ARRAY_SIZE(walk->machine);

	if (i < own)
		return &walk->machine[i];
	return i - own < walk->opts->hole_count ? &walk->opts->holes[i - own] : NULL;
}

static const struct gmem_gpa_range *hole_at(const struct walk *walk)
{
	const struct gmem_gpa_range *found;

	for (uint64_t i = 0; (found = hole(walk, i)); i++)
		if (found->gpa <= walk->gpa && walk->gpa - found->gpa < found->size)
			return found;
	return NULL;
}

/* Bytes from here to the next hole, less 1 */
static uint64_t to_next_hole(const struct walk *walk)
{
	const struct gmem_gpa_range *found;
	uint64_t last = UINT64_MAX;

	for (uint64_t i = 0; (found = hole(walk, i)); i++)
		if (found->gpa > walk->gpa && found->gpa - 1 < last)
			last = found->gpa - 1;
	return last - walk->gpa;
}

/* ---- ranges ---- */

/* The size of what one entry of a page table's third level stands for; larger pages are not in use */
static uint64_t largest_page(void)
{
	uint64_t page = gmem_sys_page_size(), entries = page / sizeof(uint64_t);

	return page * entries * entries;
}

uint64_t gmem_ram_cut(uint64_t gpa, uint64_t size)
{
	uint64_t most = (GMEM_MEMSLOT_PAGES - 1) * gmem_sys_page_size();

	if (size <= most)
		return size;
	return most - (gpa + most) % largest_page();
}

static int fail_no_room(const struct walk *walk)
{
	return gmem_fail(-EINVAL, "the holes leave room for 0x%" PRIx64 " bytes of RAM, not for 0x%" PRIx64,
			 walk->done, walk->ram);
}

/* Fill in the next range, which is the walk's end if there is no RAM left. */
static int next_range(struct walk *walk, struct gmem_ram_range *ret)
{
	const struct gmem_gpa_range *found;
	uint64_t left = walk->ram - walk->done, room;

	while ((found = hole_at(walk))) {
		walk->gpa = found->gpa + found->size;
		if (!walk->gpa)
			return fail_no_room(walk);
	}

	room = to_next_hole(walk);
	left = left - 1 > room ? room + 1 : left;
	left = gmem_ram_cut(walk->gpa, left);
	*ret = (struct gmem_ram_range){ walk->gpa, left, walk->done };
	walk->gpa += left;
	walk->done += left;
	return walk->gpa || walk->done == walk->ram ? 0 : fail_no_room(walk);
}

static int count_ranges(struct walk walk)
{
	struct gmem_ram_range range;
	int count = 0, err;

	for (; walk.done < walk.ram; count++) {
		err = next_range(&walk, &range);
		if (err)
			return err;
	}
	return count;
}

GMEM_API int gmem_ram_layout(uint64_t ram, const struct gmem_ram_layout_opts *user_opts,
			     struct gmem_ram_range *ret, size_t max)
{
	struct gmem_ram_layout_opts opts;
	struct walk walk;
	int err, count;

	if (!ret && max)
		return gmem_fail(-EINVAL, "ret is NULL, with room for %zu", max);

	err = GMEM_COPY_OPTS(gmem_ram_layout_opts, &opts, user_opts, base);
	if (err)
		return err;

	opts.machine = opts.machine ? opts.machine : GMEM_MACHINE_NATIVE;
	opts.hole_start = opts.hole_start ? opts.hole_start : X86_HOLE_START;
	opts.base = opts.base ? opts.base : ARM64_BASE;
	err = check(ram, &opts);
	if (err)
		return err;

	walk = begin(ram, &opts);
	count = count_ranges(walk);
	if (count < 0 || !ret)
		return count;
	if (max < (size_t)count)
		return gmem_fail(-ENOSPC, "the layout has %d ranges, there is room for %zu", count, max);
	for (int i = 0; i < count; i++)
		next_range(&walk, &ret[i]);
	return count;
}
