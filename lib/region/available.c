/* SPDX-License-Identifier: MIT */
#include "region/available.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/huge_pages.h"
#include "base/kernel_number.h"
#include "base/limit.h"
#include "os/sys.h"
#include "region/host_mapping.h"
#include "region/region_memory.h"

/* File names of one version of the memory controller */
struct controller {
	const char *mounts[2];
	const char *limits[2];
	const char *usage;
	const char *reclaimable;	/* a line of memory.stat; NULL: nothing is */
	bool has_tables;		/* page tables count there, too */
};

/* A controller in both versions, with its name in /proc/self/cgroup */
struct resource {
	const char *name;
	const struct controller *v2, *v1;
};

static const struct controller v2 = {
	.mounts = { "/sys/fs/cgroup", "/sys/fs/cgroup/unified" },
	.limits = { "memory.max", "memory.high" },
	.usage = "memory.current",
	.reclaimable = "\ninactive_file ",
	.has_tables = true,
};

static const struct controller v1 = {
	.mounts = { "/sys/fs/cgroup/memory", NULL },
	.limits = { "memory.limit_in_bytes", NULL },
	.usage = "memory.usage_in_bytes",
	.reclaimable = "\ntotal_inactive_file ",
	.has_tables = true,
};

static const struct resource memory = { "memory", &v2, &v1 };

/* ---- the machine ---- */

static int check_machine(uint64_t need)
{
	uint64_t available;

	/* Without /proc there is no number to compare with. */
	if (!gmem_kernel_number("/proc", "meminfo", "\nMemAvailable:", &available))
		return 0;

	available *= 1024;
	if (need > available)
		return gmem_fail(-ENOMEM,
				 "0x%" PRIx64 " bytes more, with page tables, do not fit: the machine has 0x%" PRIx64
				 " available (MemAvailable)", need, available);
	return 0;
}

/* ---- memory cgroups ---- */

static int check_limit(const struct controller *controller, const char *directory,
		       const char *name, uint64_t need)
{
	uint64_t limit, usage, reclaimable = 0, left;
	size_t length = strlen(directory);

	if (!name || !gmem_kernel_number(directory, name, "\n", &limit) ||
	    !gmem_kernel_number(directory, controller->usage, "\n", &usage))
		return 0;

	/* Page cache counts as used, but the kernel reclaims it before it gives up. */
	left = limit > usage ? limit - usage : 0;
	if (need > left && controller->reclaimable &&
	    gmem_kernel_number(directory, "memory.stat", controller->reclaimable, &reclaimable))
		left += reclaimable;
	if (need <= left)
		return 0;

	return gmem_fail(-ENOMEM,
			 "0x%" PRIx64 " bytes more%s do not fit: %s of %s%.100s is 0x%" PRIx64
			 ", 0x%" PRIx64 " are in use, 0x%" PRIx64 " of them can be reclaimed",
			 need, controller->has_tables ? ", with page tables," : "", name, length > 100 ? "..." : "",
			 directory + (length > 100 ? length - 100 : 0), limit, usage, reclaimable);
}

static int check_group(const struct controller *controller, const char *directory, uint64_t need)
{
	int err = check_limit(controller, directory, controller->limits[0], need);

	return err ? err : check_limit(controller, directory, controller->limits[1], need);
}

/* Check this process's cgroup and all above. One that cannot be read sets no limit. */
static int check_groups(const struct controller *controller, const char *mount, const char *path,
			uint64_t need)
{
	char directory[4096];
	size_t root = strlen(mount);
	char *slash;
	int err;

	if ((size_t)snprintf(directory, sizeof(directory), "%s%s", mount, path) >=
	    sizeof(directory))
		return 0;

	for (;;) {
		err = check_group(controller, directory, need);
		slash = strrchr(directory + root, '/');
		if (err || !slash)
			return err;
		*slash = '\0';
	}
}

/* @line: of /proc/self/cgroup, "NUMBER:CONTROLLERS:PATH"; CONTROLLERS is empty for v2 */
static int check_line(const struct resource *resource, char *line, uint64_t need)
{
	char *controllers = strchr(line, ':'), *end, *word, *rest;
	const char *path;
	int err;

	end = controllers ? strchr(controllers + 1, ':') : NULL;
	if (!end)
		return 0;
	*end = '\0';
	path = end + 1;

	if (strcmp(path, "/") == 0)
		path = "";
	if (*++controllers == '\0') {
		err = check_groups(resource->v2, resource->v2->mounts[0], path, need);
		return err ? err : check_groups(resource->v2, resource->v2->mounts[1], path, need);
	}
	for (word = strtok_r(controllers, ",", &rest); word; word = strtok_r(NULL, ",", &rest))
		if (strcmp(word, resource->name) == 0)
			return check_groups(resource->v1, resource->v1->mounts[0], path, need);
	return 0;
}

static int check_cgroups(const struct resource *resource, uint64_t need)
{
	char text[8192], *line, *rest;
	int err = 0;

	if (gmem_sys_read_file("/proc/self/cgroup", text, sizeof(text)) <= 0)
		return 0;

	for (line = strtok_r(text, "\n", &rest); line && !err; line = strtok_r(NULL, "\n", &rest))
		err = check_line(resource, line, need);
	return err;
}

int gmem_check_available_memory(uint64_t need)
{
	int err = check_machine(need);

	return err ? err : check_cgroups(&memory, need);
}

/* ---- huge pages ---- */

/* "2MB", as the names of files in a hugetlb cgroup have it */
static void cgroup_size(uint64_t bytes, char text[GMEM_SIZE_TEXT])
{
	uint64_t unit = bytes >> 30 ? 30 : bytes >> 20 ? 20 : 10;

	snprintf(text, GMEM_SIZE_TEXT, "%" PRIu64 "%cB", bytes >> unit, unit == 30 ? 'G' : unit == 20 ? 'M' : 'K');
}

static int check_huge_cgroups(uint64_t page_size, uint64_t need)
{
	char max[64], current[64], limit[64], usage[64], size[GMEM_SIZE_TEXT];
	const struct controller new = { .mounts = { "/sys/fs/cgroup", "/sys/fs/cgroup/unified" },
					.limits = { max, NULL }, .usage = current };
	const struct controller old = { .mounts = { "/sys/fs/cgroup/hugetlb", NULL },
					.limits = { limit, NULL }, .usage = usage };
	const struct resource hugetlb = { "hugetlb", &new, &old };

	cgroup_size(page_size, size);
	snprintf(max, sizeof(max), "hugetlb.%s.max", size);
	snprintf(current, sizeof(current), "hugetlb.%s.current", size);
	snprintf(limit, sizeof(limit), "hugetlb.%s.limit_in_bytes", size);
	snprintf(usage, sizeof(usage), "hugetlb.%s.usage_in_bytes", size);
	return check_cgroups(&hugetlb, need);
}

static int note_reserved(void *data, const struct gmem_host_mapping *mapping)
{
	*(bool *)data = mapping->known & GMEM_MAPPING_NORESERVE && !(mapping->flags & GMEM_MAPPING_NORESERVE);
	return 1;
}

/*
 * May mmap() have set huge pages aside for what is mapped here? If the answer cannot be read
 * for want of a file descriptor, this is no reason to refuse.
 */
static bool may_be_reserved(const void *hva)
{
	bool reserved = false;
	int err = gmem_host_mappings(hva, 1, true, note_reserved, &reserved);

	return reserved || gmem_is_about_limit(err);
}

int gmem_check_huge_pages_fit(uint64_t page_size, uint64_t pages, const void *hva)
{
	struct gmem_huge_pool pool;

	if (!pages || !gmem_huge_pool_get(page_size, &pool))
		return 0;

	if (pages > gmem_huge_pool_room(&pool) && (!hva || may_be_reserved(hva)))
		pool.reserved = 0;
	if (pages <= gmem_huge_pool_room(&pool))
		return check_huge_cgroups(page_size, pages * page_size);
	return gmem_huge_pool_fail(&pool, pages);
}

uint64_t gmem_count_missing_huge_pages(const void *hva, uint64_t size, uint64_t page_size,
				       uint64_t bytes)
{
	uint64_t start = (uintptr_t)hva, missing = bytes < size ? size - bytes : 0;

	if (bytes)
		return (missing + page_size - 1) / page_size;
	return (start + size - 1) / page_size - start / page_size + 1;
}

/* ---- guest memory ---- */

/* Page tables and the like take less than 1/256 of the memory they are for. */
#define OVERHEAD_PART 256

int gmem_check_memory_fits(uint64_t size)
{
	return size ? gmem_check_available_memory(size + size / OVERHEAD_PART) : 0;
}

int gmem_region_check_fits(const struct gmem_region *region, uint32_t side, uint64_t offset,
			   uint64_t size)
{
	struct gmem_region_memory what;
	struct gmem_resident bytes;
	uint64_t page;

	if (gmem_region_memory_get(region, side, offset, size, &what) ||
	    gmem_region_memory_bounds(region, side, offset, size, &bytes))
		return 0;
	page = what.pool_page;
	if (page > gmem_sys_page_size())
		return gmem_check_huge_pages_fit(page, gmem_count_missing_huge_pages(what.hva, size,
										      page, bytes.most),
						 NULL);
	/* The count can exceed the size if pages came and went while it was taken. */
	return gmem_check_memory_fits(bytes.most < size ? size - bytes.most : 0);
}
