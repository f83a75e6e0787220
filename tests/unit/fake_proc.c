/* SPDX-License-Identifier: MIT */
/*
 * What /proc says of mappings. The mappings are real, and so is what is told of them, but for
 * the ranges that a test marked.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "fake_internal.h"

#define MAX_MARKS 16

static struct mark {
	uint64_t start, end, page_size, swap;
	const char *flags;
} marks[MAX_MARKS];

static size_t mark_count;

void forget_marks(void)
{
	mark_count = 0;
}

void fake_mark_mapping(const void *hva, uint64_t size, uint64_t page_size, const char *flags,
		       uint64_t swap)
{
	uint64_t start = (uintptr_t)hva;

	enter();
	if (mark_count == MAX_MARKS)
		abort();
	marks[mark_count++] = (struct mark){ start, start + size, page_size, swap, flags };
	leave(0);
}

static const struct mark *mark_at(uint64_t addr)
{
	for (size_t i = mark_count; i-- > 0;)
		if (addr >= marks[i].start && addr < marks[i].end)
			return &marks[i];
	return NULL;
}

static bool has_flag(const struct mark *mark, const char *flag)
{
	return mark && strstr(mark->flags, flag);
}

static bool is_in_page_tables(uint64_t addr)
{
	off_t at = (off_t)(addr / (uint64_t)sysconf(_SC_PAGESIZE) * sizeof(uint64_t));
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t entry = 0;

	if (fd < 0 || pread(fd, &entry, sizeof(entry), at) != sizeof(entry))
		abort();
	close(fd);
	return entry >> 63;
}

bool refuses_cold(uint64_t addr)
{
	const struct mark *mark = mark_at(addr);

	return has_flag(mark, "lo") || has_flag(mark, "pf") || has_flag(mark, "ht");
}

/* mincore() sees pages of hugetlb only where they are mapped. */
bool is_seen_mapped(uint64_t addr)
{
	return !has_flag(mark_at(addr), "ht") || is_in_page_tables(addr);
}

/* Where what is told of @addr may change */
static uint64_t end_of_part(uint64_t addr, uint64_t end)
{
	for (size_t i = 0; i < mark_count; i++) {
		if (marks[i].start > addr && marks[i].start < end)
			end = marks[i].start;
		if (marks[i].end > addr && marks[i].end < end)
			end = marks[i].end;
	}
	return end;
}

struct line {
	unsigned long start, end, offset, inode;
	unsigned int major, minor;
	char rights[5];
	char name[4096];
};

/* The next part of a mapping that ends above @at */
static bool next_part(FILE *maps, struct line *line, uint64_t at, uint64_t *ret_start, uint64_t *ret_end)
{
	char text[8192];

	while (line->end <= at) {
		if (!fgets(text, sizeof(text), maps))
			return false;
		line->name[0] = '\0';
		if (sscanf(text, "%lx-%lx %4s %lx %x:%x %lu %4095[^\n]", &line->start, &line->end, line->rights,
			   &line->offset, &line->major, &line->minor, &line->inode, line->name) < 7)
			abort();
	}
	*ret_start = line->start > at ? line->start : at;
	*ret_end = end_of_part(*ret_start, line->end);
	return true;
}

static uint64_t page_size_at(uint64_t addr)
{
	const struct mark *mark = mark_at(addr);

	return mark && mark->page_size ? mark->page_size : fake.page_size;
}

static void write_part(FILE *to, const struct line *line, uint64_t start, uint64_t end, bool in_full)
{
	const struct mark *mark = mark_at(start);

	fprintf(to, "%lx-%lx %s %08lx %02x:%02x %lu      %s\n", (unsigned long)start, (unsigned long)end,
		line->rights, line->offset + (unsigned long)(start - line->start), line->major,
		line->minor, line->inode, line->name);
	if (!in_full)
		return;
	fprintf(to, "Size: %lu kB\nKernelPageSize: %lu kB\nMMUPageSize: 4 kB\nRss: 4 kB\nSwap: %lu kB\n"
		"SwapPss: 0 kB\nVmFlags: rd wr mr mw me ac %s sd \n", (unsigned long)(end - start) / 1024,
		(unsigned long)page_size_at(start) / 1024, (unsigned long)(mark ? mark->swap : 0) / 1024,
		mark ? mark->flags : "");
}

static void write_mappings(FILE *to, bool in_full)
{
	FILE *maps = must(fopen("/proc/self/maps", "r"));
	struct line line = { .end = 0 };
	uint64_t start, end = 0;

	while (next_part(maps, &line, end, &start, &end))
		write_part(to, &line, start, end, in_full);
	fclose(maps);
}

int open_mappings(const char *path)
{
	FILE *to;
	int fd;

	if (strcmp(path, "/proc/self/pagemap") == 0 && !fake.no_proc) {
		fd = memfd_create("pagemap", MFD_CLOEXEC);
		open_handle(fd, OTHER, NULL, NULL)->cloexec = true;
		return fd;
	}
	if (fake.no_proc || (strcmp(path, "/proc/self/maps") != 0 && strcmp(path, "/proc/self/smaps") != 0))
		return -ENOENT;
	fd = memfd_create("maps", MFD_CLOEXEC);
	to = must(fdopen(dup(fd), "w"));
	write_mappings(to, strcmp(path, "/proc/self/smaps") == 0);
	fclose(to);
	lseek(fd, 0, SEEK_SET);
	open_handle(fd, OTHER, NULL, NULL)->cloexec = true;
	return fd;
}

static bool is_marked_as_device(uint64_t addr)
{
	const struct mark *mark = mark_at(addr);

	return mark && (strstr(mark->flags, "io") || strstr(mark->flags, "pf"));
}

static int do_mapping_at(uint64_t addr, struct gmem_sys_mapping *ret)
{
	FILE *maps = must(fopen("/proc/self/maps", "r"));
	struct line line = { .end = 0 };
	uint64_t start, end;
	bool found;

	found = next_part(maps, &line, addr, &start, &end);
	fclose(maps);
	*ret = (struct gmem_sys_mapping){ .start = UINT64_MAX, .end = UINT64_MAX };
	if (!found)
		return 0;
	*ret = (struct gmem_sys_mapping){
		.start = start,
		.end = end,
		.page_size = page_size_at(start),
		.device = makedev(line.major, line.minor),
		.inode = line.inode,
		.offset = line.offset + (start - line.start),
		.prot = (line.rights[0] == 'r' ? PROT_READ : 0) | (line.rights[1] == 'w' ? PROT_WRITE : 0) |
			(line.rights[2] == 'x' ? PROT_EXEC : 0),
		.is_shared = line.rights[3] == 's',
		.is_nameless = gmem_sys_is_nameless(line.name),
		.is_anonymous = gmem_sys_is_anonymous(line.inode, line.name) && !is_marked_as_device(start),
	};
	return 0;
}

int gmem_sys_mapping_at(int fd, uint64_t addr, struct gmem_sys_mapping *ret)
{
	int err;

	(void)fd;
	enter();
	err = attempt(FAKE_MAPPING_AT);
	if (!err && (fake.no_proc || fake.no_mapping_query))
		err = fake.no_proc ? -ENOENT : -ENOTTY;
	if (!err)
		err = do_mapping_at(addr, ret);
	return leave(err);
}

/* A mark may have divided what is one mapping in truth. */
static int do_open_mapped(uint64_t addr)
{
	FILE *maps = must(fopen("/proc/self/maps", "r"));
	struct line line = { .end = 0 };
	uint64_t start, end;
	char path[64];
	bool found;
	int fd;

	found = next_part(maps, &line, addr, &start, &end);
	fclose(maps);
	if (!found)
		return -ENOENT;
	snprintf(path, sizeof(path), "/proc/self/map_files/%lx-%lx", line.start, line.end);
	fd = open(path, O_PATH | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	open_handle(fd, OTHER, NULL, NULL)->cloexec = true;
	return fd;
}

int gmem_sys_open_mapped(uint64_t start, uint64_t end)
{
	int fd;

	(void)end;
	enter();
	fd = attempt(FAKE_OPEN_MAPPED);
	if (!fd)
		fd = fake.no_proc || fake.no_map_files ? -EPERM : do_open_mapped(start);
	return leave(fd);
}

int gmem_sys_try_read(const void *addr)
{
	unsigned char in_memory = 1;
	int err;

	enter();
	err = attempt(FAKE_TRY_READ);
	if (!err && fake.no_proc)
		err = -ENOENT;
	if (!err && has_flag(mark_at((uintptr_t)addr), "um") &&
	    (mincore((void *)((uintptr_t)addr & ~(uintptr_t)4095), 1, &in_memory) < 0 || !(in_memory & 1)))
		err = -EIO;
	return leave(err);
}
