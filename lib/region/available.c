/* SPDX-License-Identifier: MIT */
#include "region/available.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/kernel_number.h"
#include "os/sys.h"
#include "region/region_memory.h"

/* File names of one version of the memory controller */
struct controller {
	const char *mounts[2];
	const char *limits[2];
	const char *usage;
	const char *reclaimable;	/* a line of memory.stat */
};

static const struct controller v2 = {
	.mounts = { "/sys/fs/cgroup", "/sys/fs/cgroup/unified" },
	.limits = { "memory.max", "memory.high" },
	.usage = "memory.current",
	.reclaimable = "\ninactive_file ",
};

static const struct controller v1 = {
	.mounts = { "/sys/fs/cgroup/memory", NULL },
	.limits = { "memory.limit_in_bytes", NULL },
	.usage = "memory.usage_in_bytes",
	.reclaimable = "\ntotal_inactive_file ",
};

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
				 "0x%" PRIx64 " bytes more do not fit: the machine has 0x%" PRIx64
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
	if (need > left &&
	    gmem_kernel_number(directory, "memory.stat", controller->reclaimable, &reclaimable))
		left += reclaimable;
	if (need <= left)
		return 0;

	return gmem_fail(-ENOMEM,
			 "0x%" PRIx64 " bytes more do not fit: %s of %s%.100s is 0x%" PRIx64
			 ", 0x%" PRIx64 " are in use, 0x%" PRIx64 " of them can be reclaimed",
			 need, name, length > 100 ? "..." : "",
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
static int check_line(char *line, uint64_t need)
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
		err = check_groups(&v2, v2.mounts[0], path, need);
		return err ? err : check_groups(&v2, v2.mounts[1], path, need);
	}
	for (word = strtok_r(controllers, ",", &rest); word; word = strtok_r(NULL, ",", &rest))
		if (strcmp(word, "memory") == 0)
			return check_groups(&v1, v1.mounts[0], path, need);
	return 0;
}

static int check_cgroups(uint64_t need)
{
	char text[8192], *line, *rest;
	int err = 0;

	if (gmem_sys_read_file("/proc/self/cgroup", text, sizeof(text)) <= 0)
		return 0;

	for (line = strtok_r(text, "\n", &rest); line && !err; line = strtok_r(NULL, "\n", &rest))
		err = check_line(line, need);
	return err;
}

int gmem_check_available_memory(uint64_t need)
{
	int err = check_machine(need);

	return err ? err : check_cgroups(need);
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
	uint64_t bytes;

	if (gmem_region_memory_resident(region, side, offset, size, &bytes))
		return 0;
	/* The count can exceed the size if pages came and went while it was taken. */
	return gmem_check_memory_fits(bytes < size ? size - bytes : 0);
}
