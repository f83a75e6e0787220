/* SPDX-License-Identifier: MIT */
#include "region/host_memory.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <linux/memfd.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/mman.h>

#include "base/check.h"
#include "base/error.h"
#include "base/huge_pages.h"
#include "base/limit.h"
#include "base/macros.h"
#include "base/opts.h"
#include "os/sys.h"
#include "region/host_mapping.h"

#define ALL_FLAGS                                                                          \
	(GMEM_MEMORY_MEMFD | GMEM_MEMORY_HUGETLB | GMEM_MEMORY_THP | GMEM_MEMORY_NO_THP |   \
	 GMEM_MEMORY_DUMP | GMEM_MEMORY_DONTFORK | GMEM_MEMORY_MERGEABLE)

/* ---- options ---- */

static int fail_together(const char *one, const char *other, const char *why)
{
	return gmem_fail(-EINVAL, "memory options %s and %s exclude each other%s", one, other, why);
}

static int check_flags(uint64_t flags, bool has_file)
{
	const uint64_t either = GMEM_MEMORY_THP | GMEM_MEMORY_NO_THP;
	const char *base = flags & GMEM_MEMORY_MEMFD ? "MEMFD" : "HUGETLB";

	if ((flags & either) == either)
		return fail_together("THP", "NO_THP", "");
	if (flags & GMEM_MEMORY_HUGETLB && flags & either)
		return fail_together("HUGETLB", flags & GMEM_MEMORY_THP ? "THP" : "NO_THP",
				     ": the pages of hugetlb have one size");
	if (flags & GMEM_MEMORY_MERGEABLE && flags & (GMEM_MEMORY_MEMFD | GMEM_MEMORY_HUGETLB))
		return fail_together("MERGEABLE", base, ": the kernel merges pages of anonymous memory alone");
	if (has_file && flags & (GMEM_MEMORY_MEMFD | GMEM_MEMORY_HUGETLB | GMEM_MEMORY_MERGEABLE))
		return gmem_fail(-EINVAL, "memory option %s is for memory of the library's, and memory_fd is "
				 "the caller's file", flags & GMEM_MEMORY_MERGEABLE ? "MERGEABLE" : base);
	return 0;
}

static int fail_to_find(uint64_t page)
{
	char text[GMEM_SIZE_TEXT] = "the default size", sizes[GMEM_HUGE_SIZES_TEXT];

	if (page)
		gmem_size_text(page, text);
	gmem_huge_page_sizes(sizes);
	return gmem_fail(-EOPNOTSUPP, "this kernel has no huge pages of %s%s%s (/sys/kernel/mm/hugepages)",
			 text, *sizes ? ", but of " : "", sizes);
}

/*
 * The size of the huge pages of a memfd; @page: which are asked for, 0: the kernel's default. That
 * is what the memfd is for: a size that is asked for may do without, and mmap() decides.
 */
static int find_huge_page(uint64_t page, uint64_t *ret)
{
	struct gmem_sys_facts facts;
	int fd, err;

	fd = gmem_host_file_memfd(MFD_HUGETLB | gmem_huge_page_shift(page) << MFD_HUGE_SHIFT);
	if (fd == -ENODEV || fd == -EINVAL)
		return fail_to_find(page);
	if (fd < 0 && page) {
		*ret = page;
		return 0;
	}
	if (fd < 0)
		return gmem_fail_by_limit(fd == -ENOSYS ? -EOPNOTSUPP : fd, 0, "the kernel says no default size of "
					  "huge pages: a memfd of hugetlb is refused");
	err = gmem_sys_facts(fd, &facts);
	gmem_sys_close(fd);
	if (err)
		return gmem_fail(err, "a memfd of hugetlb cannot be looked at: %s", gmem_errno_name(err));
	*ret = facts.block_size;
	return 0;
}

static int check_huge_page(const struct gmem_memory_opts *opts, uint64_t size, uint64_t *ret)
{
	uint64_t page = opts->page_size;
	char text[GMEM_SIZE_TEXT];
	int err;

	if (!(opts->flags & GMEM_MEMORY_HUGETLB))
		return page ? gmem_fail(-EINVAL, "page_size 0x%" PRIx64 " without GMEM_MEMORY_HUGETLB", page) : 0;
	if (page & (page - 1) || (page && page <= gmem_sys_page_size()))
		return gmem_fail(-EINVAL, "page_size 0x%" PRIx64 " is no size of huge pages", page);
	err = find_huge_page(page, &page);
	if (err)
		return err;
	if (size & (page - 1)) {
		gmem_size_text(page, text);
		return gmem_fail(-EINVAL, "size 0x%" PRIx64 " is not a multiple of the huge page of %s", size,
				 text);
	}
	*ret = page;
	return 0;
}

int gmem_host_memory_check(const struct gmem_memory_opts *user_opts, uint64_t size, bool has_file,
			   struct gmem_host_params *ret)
{
	struct gmem_memory_opts opts;
	uint64_t huge_page = 0;
	int err;

	err = GMEM_COPY_OPTS(gmem_memory_opts, &opts, user_opts, page_size);
	if (!err)
		err = gmem_check_flags("flags of memory", opts.flags, ALL_FLAGS);
	if (!err)
		err = check_flags(opts.flags, has_file);
	if (!err)
		err = check_huge_page(&opts, size, &huge_page);
	if (err)
		return err;

	*ret = (struct gmem_host_params){ .flags = opts.flags, .huge_page = huge_page };
	return 0;
}

/* A page of page tables has an entry of 8 bytes for each page that a transparent huge page has. */
uint64_t gmem_host_memory_align(const struct gmem_host_params *params)
{
	uint64_t page = gmem_sys_page_size();

	return params->flags & GMEM_MEMORY_THP ? page * (page / sizeof(uint64_t)) : 0;
}

/* ---- advice ---- */

static const struct {
	uint64_t if_any;	/* flags with which it is given, or */
	uint64_t unless;	/* without which */
	int advice;
	const char *name;
	const char *needs;	/* what kernels without it lack */
} advices[] = {
	{ GMEM_MEMORY_THP, 0, MADV_HUGEPAGE, "MADV_HUGEPAGE", "transparent huge pages" },
	{ GMEM_MEMORY_NO_THP, 0, MADV_NOHUGEPAGE, "MADV_NOHUGEPAGE", "transparent huge pages" },
	{ GMEM_MEMORY_MERGEABLE, 0, MADV_MERGEABLE, "MADV_MERGEABLE", "KSM" },
	{ GMEM_MEMORY_DONTFORK, 0, MADV_DONTFORK, "MADV_DONTFORK", NULL },
	{ 0, GMEM_MEMORY_DUMP, MADV_DONTDUMP, "MADV_DONTDUMP", NULL },
};

int gmem_host_memory_advise(const struct gmem_host_params *params, const struct gmem_map *map)
{
	for (size_t i = 0; i < GMEM_ARRAY_SIZE(advices); i++) {
		int err;

		if (!(params->flags & advices[i].if_any) &&
		    (!advices[i].unless || params->flags & advices[i].unless))
			continue;
		err = gmem_sys_madvise((void *)(uintptr_t)map->hva.start, map->hva.size, advices[i].advice);
		if (err == -EINVAL && advices[i].needs)
			return gmem_fail(-EOPNOTSUPP, "%s is refused for hva 0x%" PRIx64 ", 0x%" PRIx64
					 " bytes: this kernel has no %s", advices[i].name, map->hva.start,
					 map->hva.size, advices[i].needs);
		if (err)
			return gmem_fail(err, "%s is refused for hva 0x%" PRIx64 ", 0x%" PRIx64 " bytes: %s%s",
					 advices[i].name, map->hva.start, map->hva.size, gmem_errno_name(err),
					 advices[i].unless ? "; with GMEM_MEMORY_DUMP host memory does without" : "");
	}
	return 0;
}

/* ---- a mapping of the caller's ---- */

struct comparison {
	const struct gmem_host_file *file;
	uint64_t offset, start, seen;
	int err;
};

static int fail_to_match(const struct comparison *compare, const struct gmem_host_mapping *mapping)
{
	const struct gmem_sys_facts *facts = &compare->file->facts;
	const char *what = !mapping || mapping->start > compare->seen ? "not mapped" :
			   !(mapping->flags & GMEM_MAPPING_FILE) ? "anonymous memory" :
			   !(mapping->flags & GMEM_MAPPING_SHARED) ? "a private mapping" :
			   mapping->device != facts->device || mapping->inode != facts->inode ?
			   "a mapping of another file" : "a mapping of another part of it";

	return gmem_fail(-EINVAL, "hva 0x%" PRIx64 " is %s, and no shared mapping of memory_fd, offset 0x%"
			 PRIx64, compare->seen, what, compare->offset + (compare->seen - compare->start));
}

/* Ends the walk with 1 if this is something else. */
static int compare_mapping(void *data, const struct gmem_host_mapping *mapping)
{
	const uint32_t flags = GMEM_MAPPING_FILE | GMEM_MAPPING_SHARED;
	struct comparison *compare = data;
	const struct gmem_sys_facts *facts = &compare->file->facts;

	if (mapping->start > compare->seen || (mapping->flags & flags) != flags ||
	    mapping->device != facts->device || mapping->inode != facts->inode ||
	    mapping->offset - mapping->start != compare->offset - compare->start) {
		compare->err = fail_to_match(compare, mapping);
		return 1;
	}
	compare->seen = mapping->end;
	return 0;
}

int gmem_host_memory_check_mapping(const struct gmem_host_file *file, uint64_t offset, void *hva,
				   uint64_t size)
{
	const uint64_t start = (uintptr_t)hva;
	struct comparison compare = { .file = file, .offset = offset, .start = start, .seen = start };
	int err = gmem_host_mappings(hva, size, false, compare_mapping, &compare);

	if (err > 0)
		return compare.err;
	if (gmem_is_about_limit(err))
		return gmem_fail_by_limit(err, 0, "whether hva 0x%" PRIx64 " is a mapping of memory_fd cannot be "
					  "asked", start);
	if (err)
		return gmem_fail(-EOPNOTSUPP, "whether hva 0x%" PRIx64 " is a mapping of memory_fd only "
				 "/proc/self/maps tells (%s): without GMEM_REGION_HVA the library maps it", start,
				 gmem_errno_name(err));
	return compare.seen < start + size ? fail_to_match(&compare, NULL) : 0;
}

/* ---- mapping ---- */

uint64_t gmem_host_memory_page(const struct gmem_host_params *params, const struct gmem_host_file *file)
{
	if (!file)
		return params->huge_page;
	return file->facts.filesystem_type == HUGETLBFS_MAGIC ? file->facts.block_size : 0;
}

static int check_place(uint64_t huge_page, uint64_t offset, uint64_t size, const struct gmem_place *place)
{
	const uint64_t rest = huge_page - 1, hva = (uintptr_t)place->hva;
	char text[GMEM_SIZE_TEXT];

	gmem_size_text(huge_page, text);
	if ((offset | size) & rest)
		return gmem_fail(-EINVAL, "offset 0x%" PRIx64 ", size 0x%" PRIx64 ": not multiples of the huge page "
				 "of %s", offset, size, text);
	if (hva & rest)
		return gmem_fail(-EINVAL, "hva 0x%" PRIx64 " is not a multiple of the huge page of %s", hva, text);
	if (place->remainder & rest)
		return gmem_fail(-EINVAL, "the host address of huge pages of %s cannot be 0x%" PRIx64 " modulo 0x%"
				 PRIx64, text, place->remainder, place->align);
	return 0;
}

static int fail_to_pin(const struct gmem_host_file *file, uint64_t huge_page, uint64_t size, int err)
{
	struct gmem_huge_pool pool;
	char text[GMEM_SIZE_TEXT];
	bool is_known;

	if (!huge_page)
		return gmem_fail_to_map(err, size, file, "0x%" PRIx64 " bytes of host memory cannot be had", size);

	is_known = gmem_huge_pool_get(huge_page, &pool);
	if (err == -ENOMEM && is_known && size / huge_page > gmem_huge_pool_room(&pool))
		return gmem_huge_pool_fail(&pool, size / huge_page);
	gmem_size_text(huge_page, text);
	return gmem_fail_to_map(err, size, file, "0x%" PRIx64 " bytes of host memory cannot be had in huge pages of "
				"%s%s", size, text, is_known ? "" :
				", of which there may be too few (/sys/kernel/mm/hugepages)");
}

static int huge_flags(uint64_t huge_page)
{
	const unsigned int shift = gmem_huge_page_shift(huge_page);

	/* Of 16 GiB the number needs all bits of the flags. */
	return huge_page ? MAP_HUGETLB | (int)(shift << MAP_HUGE_SHIFT) : MAP_NORESERVE;
}

int gmem_host_memory_pin(const struct gmem_host_params *params, struct gmem_host_file *file,
			 uint64_t offset, uint64_t size, const struct gmem_place *user_place,
			 struct gmem_map *map)
{
	const uint64_t huge_page = gmem_host_memory_page(params, file);
	struct gmem_place place = *user_place;
	int err;

	if (huge_page) {
		err = check_place(huge_page, offset, size, &place);
		if (err)
			return err;
		place.is_huge = true;
		if (place.align && place.align < huge_page)
			place.align = huge_page;
	}
	if (!file)
		place.mmap_flags = huge_flags(params->huge_page);
	err = gmem_maps_pin(NULL, file ? file->fd : -1, offset, size, &place, map);
	if (err == -ENOMEM || err == -EAGAIN)
		return fail_to_pin(file, huge_page, size, err);
	/* Where space is kept, the place may be what is invalid. */
	if (err == -EINVAL && !file && huge_page && !(place.flags & GMEM_PLACE_RESERVED))
		return fail_to_find(huge_page);
	if (err)
		return err;

	err = gmem_host_memory_advise(params, map);
	return err ? gmem_maps_unpin_failed(map, err) : 0;
}
