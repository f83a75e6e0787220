/* SPDX-License-Identifier: MIT */
/*
 * Finds pages without reading any: reading a hole of a file would allocate it.
 *
 * For a file, cachestat(2) counts the pages of a range, and mincore(2) on a mapping
 * tells them apart. Neither is enough alone: counting down to single pages is slow, and
 * mincore() says "in memory" of every page of a file that another user made, to hide
 * what it knows. mincore() leaves out a page that was allocated and never touched; such
 * a page is zero.
 *
 * Host memory that the region made is private and anonymous: the pagemap knows its
 * pages in memory and in swap, of which mincore() knows only the first.
 */
#include "region/present_pages.h"

#include <errno.h>
#include <inttypes.h>

#include "base/error.h"
#include "os/sys.h"
#include "region/file.h"
#include "region/region.h"
#include "region/region_memory.h"

/* Pages looked at in one go: a byte each, and a word each, on the stack */
#define FILE_PAGES 16384
#define HOST_PAGES 2048

#define PAGEMAP_THERE (UINT64_C(3) << 62)

struct walk {
	struct gmem_region_memory what;
	uint64_t page;
	uint64_t offset;	/* from the start of the region, of what.offset and what.hva */
	gmem_present_pages_fn fn;
	void *data;
	uint64_t start;		/* of the run that is not reported yet */
	uint64_t size;
};

/* ---- runs: neighbours are told as one ---- */

static int tell(struct walk *walk)
{
	uint64_t size = walk->size;

	walk->size = 0;
	return size ? walk->fn(walk->data, walk->offset + walk->start, size) : 0;
}

static int add_run(struct walk *walk, uint64_t start, uint64_t size)
{
	int err = 0;

	if (walk->size && walk->start + walk->size == start) {
		walk->size += size;
		return 0;
	}

	if (walk->size)
		err = tell(walk);
	walk->start = start;
	walk->size = size;
	return err;
}

/* ---- files ---- */

static int count(const struct walk *walk, uint64_t start, uint64_t size, uint64_t *ret)
{
	int err = gmem_sys_cachestat(walk->what.file->fd, walk->what.offset + start, size, ret);

	if (err)
		return gmem_fail(err, "file offset 0x%" PRIx64 ", 0x%" PRIx64
				 " bytes: its pages cannot be counted: %s",
				 walk->what.offset + start, size, gmem_errno_name(err));
	return 0;
}

/* Bisect a range that has @pages pages, where mincore() cannot be used. */
static int bisect(struct walk *walk, uint64_t start, uint64_t size, uint64_t pages)
{
	uint64_t half = size / walk->page / 2 * walk->page, lower;
	int err;

	if (pages == 0)
		return 0;
	if (pages >= size / walk->page)
		return add_run(walk, start, size);

	err = count(walk, start, half, &lower);
	if (!err)
		err = bisect(walk, start, half, lower);
	if (err)
		return err;

	/* Count again: pages may come and go, so the rest of @pages proves nothing. */
	err = count(walk, start + half, size - half, &pages);
	return err ? err : bisect(walk, start + half, size - half, pages);
}

static int add_marked(struct walk *walk, uint64_t start, const unsigned char *marks,
		      uint64_t count)
{
	uint64_t first, i = 0;
	int err = 0;

	while (i < count && !err) {
		for (; i < count && !(marks[i] & 1); i++)
			;
		for (first = i; i < count && marks[i] & 1; i++)
			;
		if (i > first)
			err = add_run(walk, start + first * walk->page, (i - first) * walk->page);
	}
	return err;
}

static uint64_t count_marks(const unsigned char *marks, uint64_t count)
{
	uint64_t sum = 0, i;

	for (i = 0; i < count; i++)
		sum += marks[i] & 1;
	return sum;
}

static int walk_mapped(struct walk *walk, uint64_t start, uint64_t size, uint64_t pages)
{
	unsigned char marks[FILE_PAGES];
	int err;

	err = gmem_sys_mincore((char *)walk->what.hva + start, size, marks);
	if (err == -ENOMEM)
		return gmem_fail(-EFAULT, "hva 0x%" PRIxPTR ", 0x%" PRIx64 " bytes, is not all mapped",
				 (uintptr_t)walk->what.hva + start, size);
	if (err)
		return gmem_fail(err, "file offset 0x%" PRIx64 ", 0x%" PRIx64
				 " bytes: its pages cannot be told apart: %s",
				 walk->what.offset + start, size, gmem_errno_name(err));

	if (count_marks(marks, size / walk->page) > pages)
		return bisect(walk, start, size, pages);
	return add_marked(walk, start, marks, size / walk->page);
}

static int walk_file(struct walk *walk, uint64_t start, uint64_t size)
{
	uint64_t pages;
	int err;

	err = count(walk, start, size, &pages);
	if (err && walk->what.hva)
		return walk_mapped(walk, start, size, UINT64_MAX);
	if (err == -ENOSYS)
		return add_run(walk, start, size);
	if (err)
		return err;

	if (pages == 0)
		return 0;
	if (pages < size / walk->page && walk->what.hva)
		return walk_mapped(walk, start, size, pages);
	return bisect(walk, start, size, pages);
}

/* ---- host memory ---- */

static int walk_host(struct walk *walk, uint64_t start, uint64_t size)
{
	uint64_t entries[HOST_PAGES], i;
	int err;

	if (walk->what.is_callers || walk->what.host_file ||
	    gmem_sys_pagemap((char *)walk->what.hva + start, size / walk->page, entries))
		return add_run(walk, start, size);

	for (i = 0, err = 0; i < size / walk->page && !err; i++)
		if (entries[i] & PAGEMAP_THERE)
			err = add_run(walk, start + i * walk->page, walk->page);
	return err;
}

int gmem_region_present_pages(const struct gmem_region *region, uint32_t side, uint64_t offset,
			      uint64_t size, gmem_present_pages_fn fn, void *data)
{
	struct walk walk = { .page = gmem_sys_page_size(), .offset = offset, .fn = fn, .data = data };
	uint64_t chunk, start, now;
	int err;

	err = gmem_region_memory_get(region, side, offset, size, &walk.what);
	if (err)
		return err;

	chunk = (walk.what.file ? FILE_PAGES : HOST_PAGES) * walk.page;
	for (start = 0; start < size && !err; start += now) {
		now = size - start < chunk ? size - start : chunk;
		err = walk.what.file ? walk_file(&walk, start, now) : walk_host(&walk, start, now);
	}
	return err ? err : tell(&walk);
}
