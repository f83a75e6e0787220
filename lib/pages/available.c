/* SPDX-License-Identifier: MIT */
#include "pages/available.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "os/sys.h"

/* File names of one version of the memory controller */
struct controller {
	const char *mounts[2];
	const char *limit;
	const char *usage;
	const char *reclaimable;	/* a line of memory.stat */
};

static const struct controller v2 = {
	.mounts = { "/sys/fs/cgroup", "/sys/fs/cgroup/unified" },
	.limit = "memory.max",
	.usage = "memory.current",
	.reclaimable = "\ninactive_file ",
};

static const struct controller v1 = {
	.mounts = { "/sys/fs/cgroup/memory", NULL },
	.limit = "memory.limit_in_bytes",
	.usage = "memory.usage_in_bytes",
	.reclaimable = "\ntotal_inactive_file ",
};

/* ---- small files with numbers in them ---- */

/* Find the number after @label in @text; false if there is none, as after "max". */
static bool number_after(const char *text, const char *label, uint64_t *ret)
{
	const char *at = strstr(text, label);
	char *end;

	if (!at)
		return false;
	at += strlen(label);
	at += strspn(at, " \t");
	if (*at < '0' || *at > '9')
		return false;

	*ret = strtoull(at, &end, 10);
	return true;
}

static bool read_number(const char *directory, const char *name, const char *label, uint64_t *ret)
{
	/* A newline in front, so that a label can begin with one. */
	char path[4096 + 64], text[8192] = "\n";

	if ((size_t)snprintf(path, sizeof(path), "%s/%s", directory, name) >= sizeof(path))
		return false;
	return gmem_sys_read_file(path, text + 1, sizeof(text) - 1) > 0 &&
	       number_after(text, label, ret);
}

/* ---- the machine ---- */

static int check_machine(uint64_t need)
{
	uint64_t available;

	/* Without /proc there is no number to compare with. */
	if (!read_number("/proc", "meminfo", "\nMemAvailable:", &available))
		return 0;

	available *= 1024;
	if (need > available)
		return gmem_fail(-ENOMEM,
				 "0x%" PRIx64 " bytes more do not fit: the machine has 0x%" PRIx64
				 " available (MemAvailable)", need, available);
	return 0;
}

/* ---- memory cgroups ---- */

static int check_group(const struct controller *controller, const char *directory, uint64_t need)
{
	uint64_t limit, usage, reclaimable = 0, left;
	size_t length = strlen(directory);

	if (!read_number(directory, controller->limit, "\n", &limit) ||
	    !read_number(directory, controller->usage, "\n", &usage))
		return 0;

	/* Page cache counts as used, but the kernel reclaims it before it gives up. */
	left = limit > usage ? limit - usage : 0;
	if (need > left &&
	    read_number(directory, "memory.stat", controller->reclaimable, &reclaimable))
		left += reclaimable;
	if (need <= left)
		return 0;

	return gmem_fail(-ENOMEM,
			 "0x%" PRIx64 " bytes more do not fit: %s of %s%.100s is 0x%" PRIx64
			 ", 0x%" PRIx64 " are in use, 0x%" PRIx64 " of them can be reclaimed",
			 need, controller->limit, length > 100 ? "..." : "",
			 directory + (length > 100 ? length - 100 : 0), limit, usage, reclaimable);
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
