/* SPDX-License-Identifier: MIT */
/*
 * Finds pages without reading any: reading a hole of a file would allocate it.
 *
 * The page tables of the process are asked first: that takes 2 to 10 ns a page that is mapped
 * here, and next to nothing where none is, while a file takes 30 ns or more for each page. Memory
 * that is all mapped, and host memory that is nobody else's, needs no other question.
 *
 * For a file, cachestat(2) counts the pages of a range, and mincore(2) on a mapping
 * tells them apart. Neither is enough alone: counting down to single pages is slow, and
 * mincore() says "in memory" of every page of a file that another user made, to hide
 * what it knows; it is believed once it said of a page that it is not. mincore() leaves out a
 * page that was allocated and never touched; such a page is zero.
 *
 * Host memory is looked at mapping by mapping: see walk_host(). Of anonymous memory the
 * page tables know the pages in memory and in swap, of which mincore() knows only the first. A
 * page of shared memory that is in swap is in neither; its file knows it (SEEK_DATA).
 */
#include "region/present_pages.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <string.h>

#include "base/error.h"
#include "os/sys.h"
#include "region/file.h"
#include "region/host_look.h"
#include "region/host_mapping.h"
#include "region/mapped_pages.h"
#include "region/region.h"
#include "region/region_memory.h"

/* Pages looked at in one go, a byte each on the stack; and those read of the pagemap, a word each */
#define PAGES_AT_ONCE 16384
#define PAGEMAP_PAGES 512

#define PAGEMAP_THERE (UINT64_C(3) << 62)

struct walk {
	struct gmem_region_memory what;
	uint64_t page;
	uint64_t offset;	/* from the start of the region, of what.offset and what.hva */
	gmem_present_pages_fn fn;
	void *data;
	struct gmem_host_look *look;
	int page_tables;	/* fd, or -errno */
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

/* That all pages are there may be what mincore() tells everybody: count them. */
static int doubt(struct walk *walk, uint64_t start, uint64_t size)
{
	uint64_t pages;

	if (gmem_sys_cachestat(walk->what.file->fd, walk->what.offset + start, size, &pages))
		return add_run(walk, start, size);
	return bisect(walk, start, size, pages);
}

static int walk_mapped(struct walk *walk, uint64_t start, uint64_t size, unsigned char *marks)
{
	int err;

	err = gmem_sys_mincore((char *)walk->what.hva + start, size, marks);
	if (err == -ENOMEM)
		return gmem_fail(-EFAULT, "hva 0x%" PRIxPTR ", 0x%" PRIx64 " bytes, is not all mapped",
				 (uintptr_t)walk->what.hva + start, size);
	if (err)
		return gmem_fail(err, "file offset 0x%" PRIx64 ", 0x%" PRIx64
				 " bytes: its pages cannot be told apart: %s",
				 walk->what.offset + start, size, gmem_errno_name(err));

	if (count_marks(marks, size / walk->page) == size / walk->page)
		return doubt(walk, start, size);
	return add_marked(walk, start, marks, size / walk->page);
}

/* Marks the pages that are mapped here, and returns how many; -errno. */
static int64_t mark(const struct walk *walk, uint64_t start, uint64_t size, unsigned char *marks)
{
	return gmem_mapped_pages_mark(walk->page_tables, (uintptr_t)walk->what.hva + start, size,
				      GMEM_PAGES_PRESENT, marks);
}

/* Count the pages first, and tell them apart only if need be: @marks has the @mapped pages. */
static int walk_counted(struct walk *walk, uint64_t start, uint64_t size, int64_t mapped,
			unsigned char *marks)
{
	uint64_t pages;
	int err;

	err = count(walk, start, size, &pages);
	if (err && walk->what.hva)
		return walk_mapped(walk, start, size, marks);
	if (err == -ENOSYS)
		return add_run(walk, start, size);
	if (err)
		return err;

	if (pages == 0)
		return 0;
	/* A page that came before the count makes it larger, one that went is not marked again. */
	if (mapped > 0 && pages <= (uint64_t)mapped && mark(walk, start, size, marks) == mapped)
		return add_marked(walk, start, marks, size / walk->page);
	if (pages < size / walk->page && walk->what.hva)
		return walk_mapped(walk, start, size, marks);
	return bisect(walk, start, size, pages);
}

static int walk_file(struct walk *walk, uint64_t start, uint64_t size)
{
	int64_t mapped, pages = (int64_t)(size / walk->page);
	unsigned char marks[PAGES_AT_ONCE];

	mapped = mark(walk, start, size, marks);
	if (mapped == pages)
		return add_run(walk, start, size);
	/* mincore() is quicker than a count where pages are mapped, and slower where they are not. */
	if (mapped >= pages - pages / 4)
		return walk_mapped(walk, start, size, marks);
	return walk_counted(walk, start, size, mapped, marks);
}

/* ---- host memory ---- */

/* Bytes of a file of hugetlbfs read at once, to see whether they are zero */
#define READ_SIZE 16384

/*
 * Files of hugetlbfs do not tell their holes, but whether they have any page, and reading a hole
 * does not fill it.
 */
static struct gmem_host_data read_huge_page(const struct gmem_host_look *look, uint64_t offset)
{
	uint64_t size = look->mapping.page_size, first = offset / size * size, done = 0;
	struct gmem_host_data is_zero = { first, first + size, first + size };
	struct gmem_host_data is_data = { first, first, first + size };
	struct gmem_fd_kind file;
	char bytes[READ_SIZE];
	int64_t n;

	if (gmem_sys_fd_kind(look->file, &file) == 0 && !file.allocated)
		return (struct gmem_host_data){ first, UINT64_MAX, UINT64_MAX };

	while (done < size) {
		n = gmem_sys_read_at(look->file, bytes, sizeof(bytes), first + done);
		if (n == -EINTR)
			continue;
		if (n <= 0 || bytes[0] || memcmp(bytes, bytes + 1, (size_t)n - 1) != 0) {
			/* For core dumps, which have the stack. */
			explicit_bzero(bytes, sizeof(bytes));
			return is_data;
		}
		done += (uint64_t)n;
	}
	return is_zero;
}

static bool has_data(struct gmem_host_look *look, uint64_t offset)
{
	struct gmem_host_data *data = &look->data;
	int err;

	if (offset >= look->file_size)
		return true;	/* Past its end there is no memory, not even zeros. */
	if (offset < data->from || offset >= data->end) {
		if (look->mapping.flags & GMEM_MAPPING_HUGETLB) {
			*data = read_huge_page(look, offset);
		} else {
			*data = (struct gmem_host_data){ .from = offset };
			err = gmem_sys_seek_data(look->file, offset, &data->start, &data->end);
			/* Blocks of the file may be smaller than pages. */
			data->start -= data->start % gmem_sys_page_size();
			if (err == -ENXIO)
				data->start = data->end = UINT64_MAX;
			else if (err)
				*data = (struct gmem_host_data){ offset, offset, offset + 1 };
		}
	}
	return offset >= data->start;
}

/* Nothing is in swap while there is none. */
static bool has_swap(void)
{
	char text[512], *line;

	if (gmem_sys_read_file("/proc/swaps", text, sizeof(text)) <= 0)
		return true;
	line = strchr(text, '\n');
	return !line || line[1] != '\0';
}

/* Where the page tables cannot be asked for ranges, before Linux 6.7 */
static int read_pagemap(const struct walk *walk, const char *hva, uint64_t pages, unsigned char *marks)
{
	uint64_t entries[PAGEMAP_PAGES], done, now;
	int err = 0;

	for (done = 0; done < pages && !err; done += now) {
		now = pages - done < PAGEMAP_PAGES ? pages - done : PAGEMAP_PAGES;
		err = gmem_sys_pagemap(hva + done * walk->page, now, entries);
		for (uint64_t i = 0; i < now && !err; i++)
			marks[done + i] = (entries[i] & PAGEMAP_THERE) != 0;
	}
	return err;
}

/*
 * Mark the pages that are known to be there: by the page tables and the swap entries in them, which
 * is all there is of anonymous memory; of shared memory without an fd, by the page cache. Of huge
 * pages that were lost by the hardware, or that are being moved, only mincore() knows.
 */
static int look_at_pages(const struct walk *walk, const char *hva, uint64_t pages, unsigned char *marks)
{
	uint32_t flags = walk->look->mapping.flags;
	bool may_swap;
	int err;

	if (flags & GMEM_MAPPING_HUGETLB)
		return gmem_sys_mincore((char *)(uintptr_t)hva, pages * walk->page, marks);
	if (!(flags & GMEM_MAPPING_SHARED)) {
		if (gmem_mapped_pages_mark(walk->page_tables, (uintptr_t)hva, pages * walk->page,
					   GMEM_PAGES_PRESENT | GMEM_PAGES_SWAPPED, marks) >= 0)
			return 0;
		return read_pagemap(walk, hva, pages, marks);
	}

	if (gmem_host_look_file(walk->look) == 0) {
		if (gmem_mapped_pages_mark(walk->page_tables, (uintptr_t)hva, pages * walk->page,
					   GMEM_PAGES_PRESENT, marks) < 0)
			memset(marks, 0, pages);
		return 0;
	}
	if (!(flags & GMEM_MAPPING_NAMELESS))
		return -ENODATA;

	may_swap = has_swap();
	err = gmem_sys_mincore((char *)(uintptr_t)hva, pages * walk->page, marks);
	return err ? err : may_swap || has_swap() ? -ENODATA : 0;
}

/* Is what is absent in the page tables in a file? -errno: that cannot be known. */
static int look_for_file(struct gmem_host_look *look, bool *ret)
{
	uint32_t flags = look->mapping.flags;

	*ret = false;
	if (!(flags & GMEM_MAPPING_FILE))
		return 0;
	/* Nobody else has mapped the nameless file of private memory. */
	if (flags & GMEM_MAPPING_NAMELESS && !(flags & GMEM_MAPPING_SHARED))
		return 0;
	if (gmem_host_look_file(look) == 0) {
		*ret = true;
		return 0;
	}
	return flags & GMEM_MAPPING_NAMELESS && !(flags & GMEM_MAPPING_HUGETLB) ? 0 : -ENODATA;
}

/* Are the pages of a range all there, by the page tables alone? */
static bool are_all_mapped(const struct walk *walk, uint64_t hva, uint64_t size)
{
	bool may_swap = !(walk->look->mapping.flags & GMEM_MAPPING_SHARED);

	return gmem_mapped_pages_are_all(walk->page_tables, hva, size,
					 GMEM_PAGES_PRESENT | (may_swap ? GMEM_PAGES_SWAPPED : 0));
}

/* @size bytes of one mapping, at most PAGES_AT_ONCE */
static int walk_mapping(struct walk *walk, uint64_t start, uint64_t size)
{
	uint64_t hva = (uintptr_t)walk->what.hva + start, now, offset;
	struct gmem_host_look *look = walk->look;
	unsigned char marks[PAGES_AT_ONCE];
	bool in_file, is_present;
	int err;

	if (are_all_mapped(walk, hva, size) || look_for_file(look, &in_file) ||
	    look_at_pages(walk, (char *)walk->what.hva + start, size / walk->page, marks))
		return add_run(walk, start, size);

	/* What had data may be kept for the whole transfer; a hole may be filled. */
	look->data.from = look->data.start;
	for (now = 0, err = 0; now < size && !err; now += walk->page) {
		offset = look->mapping.offset + (hva + now - look->mapping.start);
		is_present = marks[now / walk->page] & 1 || (in_file && has_data(look, offset)) ||
			     gmem_host_look_is_owed(look, hva + now);
		if (is_present)
			err = add_run(walk, start + now, walk->page);
	}
	return err;
}

/*
 * A page that is absent is zero only where the kernel would make a new page for it: not if
 * userfaultfd is asked, nor if a file has it. Where nothing is mapped, a look at it will fail.
 */
static int walk_host(struct walk *walk, uint64_t start, uint64_t size)
{
	uint64_t now, at, next, end = start + size;
	int err = 0;

	for (; start < end && !err; start += now) {
		at = (uintptr_t)walk->what.hva + start;
		err = gmem_host_look_at(walk->look, at, &next);
		if (!err)
			next = walk->look->mapping.end;
		else if (err != -ENOENT)
			next = UINT64_MAX;
		now = next - at < end - start ? next - at : end - start;
		err = err ? add_run(walk, start, now) : walk_mapping(walk, start, now);
	}
	return err;
}

int gmem_region_present_pages(const struct gmem_region *region, uint32_t side, uint64_t offset,
			      uint64_t size, struct gmem_host_look *look, gmem_present_pages_fn fn,
			      void *data)
{
	struct walk walk = { .page = gmem_sys_page_size(), .offset = offset, .look = look, .fn = fn,
			     .data = data };
	uint64_t chunk = PAGES_AT_ONCE * walk.page, start, now;
	int err;

	err = gmem_region_memory_get(region, side, offset, size, &walk.what);
	if (err)
		return err;

	look->hint = walk.what.host_file ? walk.what.host_file->fd : -1;
	walk.page_tables = walk.what.hva ? gmem_mapped_pages_open(size) : -ENODATA;
	for (start = 0; start < size && !err; start += now) {
		now = size - start < chunk ? size - start : chunk;
		err = walk.what.file ? walk_file(&walk, start, now) : walk_host(&walk, start, now);
	}
	if (walk.page_tables >= 0)
		gmem_sys_close(walk.page_tables);
	return err ? err : tell(&walk);
}
