/* SPDX-License-Identifier: MIT */
#include "region/host_mapping.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "os/sys.h"

/* Bytes read of /proc at once. A line that is longer, as a path makes it, loses its end. */
#define BUFFER 8192

/* Before Linux 5.4 no C library has it, and no kernel either. */
#ifndef MADV_COLD
#define MADV_COLD 20
#endif

struct walk {
	uint64_t start, end;		/* what is asked for */
	gmem_host_mapping_fn fn;
	void *data;
	struct gmem_host_mapping now;	/* being read; end 0: none */
};

/* ---- the first question ---- */

/*
 * Advice that does nothing worth mention to one page, and is refused for memory that is locked,
 * a device's or hugetlb's: if it is not refused, it is none of them.
 */
bool gmem_host_mapping_is_ordinary(uint64_t hva)
{
	return gmem_sys_madvise((void *)(uintptr_t)hva, gmem_sys_page_size(), MADV_COLD) == 0;
}

static void look_closer(const struct walk *walk, struct gmem_host_mapping *mapping)
{
	uint64_t at = mapping->start > walk->start ? mapping->start : walk->start;

	mapping->known |= GMEM_MAPPING_SHARED | GMEM_MAPPING_FILE | GMEM_MAPPING_NAMELESS;
	if (!mapping->page_size && gmem_host_mapping_is_ordinary(at)) {
		mapping->page_size = gmem_sys_page_size();
		mapping->known |= GMEM_MAPPING_DEVICE | GMEM_MAPPING_LOCKED;
	}
	if (mapping->page_size)
		mapping->known |= GMEM_MAPPING_HUGETLB;
	if (mapping->page_size > gmem_sys_page_size()) {
		mapping->known |= GMEM_MAPPING_DEVICE;
		mapping->flags |= GMEM_MAPPING_HUGETLB;
	}
}

static int tell_cheaply(void *data, const struct gmem_host_mapping *mapping)
{
	const struct walk *walk = data;
	struct gmem_host_mapping copy = *mapping;

	look_closer(walk, &copy);
	return walk->fn(walk->data, &copy);
}

/* Devices map their memory from files; else only the kernel's own mappings are like theirs. */
static struct gmem_host_mapping as_mapping(const struct gmem_sys_mapping *from)
{
	return (struct gmem_host_mapping){
		.start = from->start,
		.end = from->end,
		.page_size = from->page_size,
		.device = from->device,
		.inode = from->inode,
		.offset = from->offset,
		.prot = from->prot,
		.flags = (from->is_shared ? GMEM_MAPPING_SHARED : 0) |
			 (from->inode ? GMEM_MAPPING_FILE : 0) |
			 (from->is_nameless ? GMEM_MAPPING_NAMELESS : 0),
		.known = from->is_anonymous ? GMEM_MAPPING_DEVICE : 0,
	};
}

/* @fd: /proc/self/maps. -ENOTTY if the kernel does not have the call, before Linux 6.11 */
static int query(struct walk *walk, int fd)
{
	struct gmem_sys_mapping found;
	struct gmem_host_mapping mapping;
	uint64_t at = walk->start;
	int err;

	while (at < walk->end) {
		err = gmem_sys_mapping_at(fd, at, &found);
		if (err)
			return err;
		if (found.start >= walk->end)
			return 0;
		mapping = as_mapping(&found);
		err = tell_cheaply(walk, &mapping);
		if (err)
			return err;
		at = found.end;
	}
	return 0;
}

/* ---- text ---- */

/* A mapping that is complete; only now are its flags known. */
static int finish(struct walk *walk)
{
	struct gmem_host_mapping mapping = walk->now;

	walk->now.end = 0;
	if (mapping.end <= walk->start || mapping.start >= walk->end)
		return 0;
	return walk->fn(walk->data, &mapping);
}

/* A number and the one character after it */
static bool read_number(const char **at, int base, char after, uint64_t *ret)
{
	char *end;

	*ret = strtoull(*at, &end, base);
	if (end == *at || *end != after)
		return false;
	*at = end + 1;
	return true;
}

/* "7f0000000000-7f0000200000 rw-s 00001000 00:01 2057   /memfd:guest (deleted)" */
static bool read_head(const char *line, struct gmem_host_mapping *ret)
{
	uint64_t device[2];
	const char *rights;

	memset(ret, 0, sizeof(*ret));
	if (!read_number(&line, 16, '-', &ret->start) || !read_number(&line, 16, ' ', &ret->end) ||
	    strlen(line) < 5)
		return false;
	rights = line;
	line += 5;
	if (!read_number(&line, 16, ' ', &ret->offset) || !read_number(&line, 16, ':', &device[0]) ||
	    !read_number(&line, 16, ' ', &device[1]) || !read_number(&line, 10, ' ', &ret->inode))
		return false;

	ret->device = makedev((unsigned int)device[0], (unsigned int)device[1]);
	ret->prot = (rights[0] == 'r' ? PROT_READ : 0) | (rights[1] == 'w' ? PROT_WRITE : 0) |
		    (rights[2] == 'x' ? PROT_EXEC : 0);
	ret->flags = (rights[3] == 's' ? GMEM_MAPPING_SHARED : 0) |
		     (ret->inode ? GMEM_MAPPING_FILE : 0) |
		     (gmem_sys_is_nameless(line + strspn(line, " ")) ? GMEM_MAPPING_NAMELESS : 0);
	ret->known = GMEM_MAPPING_SHARED | GMEM_MAPPING_FILE | GMEM_MAPPING_NAMELESS;
	return true;
}

/* Two letters for each flag that is set */
static void read_flags(const char *words, struct gmem_host_mapping *mapping)
{
	static const struct {
		const char *name;
		uint32_t flag;
	} flags[] = {
		{ "ht", GMEM_MAPPING_HUGETLB }, { "io", GMEM_MAPPING_DEVICE }, { "pf", GMEM_MAPPING_DEVICE },
		{ "lo", GMEM_MAPPING_LOCKED }, { "um", GMEM_MAPPING_UFFD_MISSING },
		{ "ui", GMEM_MAPPING_UFFD_MINOR }, { "nr", GMEM_MAPPING_NORESERVE },
	};

	mapping->known |= GMEM_MAPPING_HUGETLB | GMEM_MAPPING_IN_FULL;
	for (; *words; words += strcspn(words, " ")) {
		words += strspn(words, " ");
		for (size_t i = 0; i < sizeof(flags) / sizeof(flags[0]); i++)
			if (strncmp(words, flags[i].name, 2) == 0)
				mapping->flags |= flags[i].flag;
	}
}

static uint64_t kib_after(const char *line, const char *label)
{
	size_t length = strlen(label);

	return strncmp(line, label, length) == 0 ? strtoull(line + length, NULL, 10) * 1024 : 0;
}

/* A field's name begins with a capital letter, a mapping's address does not. */
static int read_line(struct walk *walk, const char *line)
{
	struct gmem_host_mapping mapping;
	int err = 0;

	if (*line >= 'A' && *line <= 'Z') {
		walk->now.page_size += kib_after(line, "KernelPageSize:");
		walk->now.swap += kib_after(line, "Swap:");
		if (strncmp(line, "VmFlags:", 8) == 0)
			read_flags(line + 8, &walk->now);
	} else if (read_head(line, &mapping)) {
		err = finish(walk);
		walk->now = mapping;
	}
	return err;
}

/* Read the lines in @text and keep what follows the last; @size: what there is, and what is kept. */
static int read_lines(struct walk *walk, char *text, size_t *size, bool *in_long)
{
	char *line = text, *end;
	int err = 0;

	while (!err && (end = memchr(line, '\n', *size - (size_t)(line - text)))) {
		*end = '\0';
		if (!*in_long)
			err = read_line(walk, line);
		*in_long = false;
		line = end + 1;
	}
	*size -= (size_t)(line - text);
	memmove(text, line, *size);
	if (!err && *size == BUFFER - 1) {
		text[*size] = '\0';
		if (!*in_long)
			err = read_line(walk, text);
		*in_long = true;
		*size = 0;
	}
	return err;
}

static int read_text(struct walk *walk, int fd)
{
	bool in_long = false;
	char text[BUFFER];
	size_t kept = 0;
	int64_t n = 0;
	int err = 0;

	while (!err && walk->now.start < walk->end) {
		n = gmem_sys_read_at(fd, text + kept, sizeof(text) - 1 - kept, GMEM_NO_OFFSET);
		if (n == -EINTR)
			continue;
		if (n <= 0)
			break;
		kept += (size_t)n;
		err = read_lines(walk, text, &kept, &in_long);
	}
	if (!err)
		err = n < 0 ? (int)n : finish(walk);
	return err;
}

/* ---- both ---- */

/* The kernel does not have the call, or a filter lets nobody have it. */
static bool has_no_query(int err)
{
	return err == -ENOTTY || err == -EINVAL || err == -EPERM || err == -ENOSYS;
}

/* The same from the text of @fd, which is read from where it is */
static int read_list(struct walk *walk, int fd)
{
	struct walk cheap = { .start = walk->start, .end = walk->end, .fn = tell_cheaply, .data = walk };

	return read_text(&cheap, fd);
}

int gmem_host_mappings(const void *hva, uint64_t size, bool in_full, gmem_host_mapping_fn fn,
		       void *data)
{
	struct walk walk = { .start = (uintptr_t)hva, .end = (uintptr_t)hva + size, .fn = fn,
			     .data = data };
	int fd, err;

	fd = gmem_sys_open(in_full ? "/proc/self/smaps" : "/proc/self/maps", O_RDONLY);
	if (fd < 0)
		return fd;
	err = in_full ? read_text(&walk, fd) : query(&walk, fd);
	if (!in_full && has_no_query(err))
		err = read_list(&walk, fd);
	gmem_sys_close(fd);
	return err;
}

/* ---- the file that stays open ---- */

/* Of what several threads open at the same time, one stays open. */
static void keep_maps(struct gmem_host_maps *maps, int fd)
{
	int none = 0;

	if (!__atomic_compare_exchange_n(&maps->opened, &none, fd + 1, false, __ATOMIC_RELAXED,
					 __ATOMIC_RELAXED))
		gmem_sys_close(fd);
}

void gmem_host_maps_close(struct gmem_host_maps *maps)
{
	if (maps->opened)
		gmem_sys_close(maps->opened - 1);
	maps->opened = 0;
}

/*
 * The first question. Only a file that is asked stays open, not one that is read. If it does not
 * answer, a new one is asked: a filter may have come since, or the program has closed the file.
 */
static int ask_maps(struct gmem_host_maps *maps, struct walk *walk)
{
	int opened = __atomic_load_n(&maps->opened, __ATOMIC_RELAXED), fd, err;

	if (opened && !query(walk, opened - 1))
		return 0;

	fd = gmem_sys_open("/proc/self/maps", O_RDONLY);
	if (fd < 0)
		return fd;
	err = query(walk, fd);
	if (!err) {
		keep_maps(maps, fd);
		return 0;
	}
	if (has_no_query(err))
		err = read_list(walk, fd);
	gmem_sys_close(fd);
	return err;
}

struct search {
	uint64_t start;		/* of the range */
	uint32_t wanted;	/* flags that must be known */
	bool is_open;		/* the question, after the first answer */
	uint64_t least_page;	/* 0: not known */
	struct gmem_host_nature found;
};

static int note(void *data, const struct gmem_host_mapping *mapping)
{
	struct search *search = data;
	struct gmem_host_nature *found = &search->found;
	uint64_t at = mapping->start > search->start ? mapping->start : search->start;

	if (search->wanted & ~mapping->known && !gmem_host_mapping_is_ordinary(at))
		search->is_open = true;
	found->has_device |= (mapping->flags & GMEM_MAPPING_DEVICE) != 0;
	found->has_private_file |= gmem_host_mapping_is_private_file(mapping);
	if (mapping->page_size > found->page_size)
		found->page_size = mapping->page_size;
	if (mapping->page_size && (!search->least_page || mapping->page_size < search->least_page))
		search->least_page = mapping->page_size;
	found->mixes_pages = search->least_page < found->page_size;
	return 0;
}

int gmem_host_mapping_learn(struct gmem_host_maps *maps, const void *hva, uint64_t size,
			    uint32_t wanted, struct gmem_host_nature *ret)
{
	struct search first = { .start = (uintptr_t)hva, .wanted = wanted }, second = first;
	struct walk walk = { .start = first.start, .end = first.start + size, .fn = note, .data = &first };
	int err;

	err = maps ? ask_maps(maps, &walk) : gmem_host_mappings(hva, size, false, note, &first);
	*ret = err ? (struct gmem_host_nature){ .page_size = 0 } : first.found;
	if (err || !first.is_open)
		return err;

	err = gmem_host_mappings(hva, size, true, note, &second);
	if (err)
		return err;
	*ret = second.found;
	return second.is_open ? -ENODATA : 0;
}
