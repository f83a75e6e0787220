/* SPDX-License-Identifier: MIT */
/* Mappings, and the pages of files */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fake_internal.h"

#ifndef MADV_COLD
#define MADV_COLD 20
#endif

bool is_host_accessible(const struct file *file)
{
	return (file->flags & GUEST_MEMFD_FLAG_MMAP) &&
	       ((file->flags & GUEST_MEMFD_FLAG_INIT_SHARED) || fake.mmap_is_shared);
}

/* --------------------------------------------------------------- mappings -- */

static void map_insert(const struct mapping *map)
{
	size_t i;

	if (kernel.map_count == kernel.map_room) {
		kernel.map_room = kernel.map_room ? 2 * kernel.map_room : 64;
		kernel.maps = must(realloc(kernel.maps,
					   kernel.map_room * sizeof(*kernel.maps)));
	}
	for (i = kernel.map_count; i > 0 && kernel.maps[i - 1].start > map->start; i--)
		kernel.maps[i] = kernel.maps[i - 1];
	kernel.maps[i] = *map;
	kernel.map_count++;
	if (map->file)
		map->file->refs++;
}

void map_delete(size_t i)
{
	struct file *file = kernel.maps[i].file;

	kernel.map_count--;
	memmove(kernel.maps + i, kernel.maps + i + 1,
		(kernel.map_count - i) * sizeof(*kernel.maps));
	if (file)
		file_put(file);
}

/* Keep the part of @old on one side of a hole. */
static void map_keep(const struct mapping *old, uint64_t start, uint64_t end)
{
	struct mapping part = *old;

	if (start >= end)
		return;
	part.start = start;
	part.size = end - start;
	part.offset += start - old->start;
	map_insert(&part);
}

/* Forget [start, end) of every mapping; true if any was there */
static bool map_forget(uint64_t start, uint64_t end)
{
	struct mapping old;
	bool found = false;
	size_t i = 0;

	forget_policies(start, end);
	while (i < kernel.map_count) {
		old = kernel.maps[i];
		if (old.start >= end || old.start + old.size <= start) {
			i++;
			continue;
		}
		found = true;
		/* keep the parts first: they keep the file alive */
		map_keep(&old, old.start, start);
		map_keep(&old, end, old.start + old.size);
		while (kernel.maps[i].start != old.start || kernel.maps[i].size != old.size)
			i++;
		map_delete(i);
		i = 0;
	}
	return found;
}

const struct mapping *map_at(uint64_t addr)
{
	size_t i;

	for (i = 0; i < kernel.map_count; i++)
		if (addr - kernel.maps[i].start < kernel.maps[i].size)
			return &kernel.maps[i];
	return NULL;
}

static int check_gmem_mmap(const struct file *file, int prot, int flags, uint64_t offset)
{
	int type = flags & MAP_TYPE;

	if (!is_aligned(offset))
		return -EINVAL;
	if (prot & PROT_EXEC)
		return -EPERM;
	if (!(file->flags & GUEST_MEMFD_FLAG_MMAP))
		return -ENODEV;
	return type == MAP_SHARED || type == MAP_SHARED_VALIDATE ? 0 : -EINVAL;
}

/* Our page may be larger than the machine's: cut an aligned piece */
static void *aligned_mmap(void *hint, uint64_t size, int prot, int flags, int fd,
			  uint64_t offset)
{
	uint64_t extra = fake.page_size - (uint64_t)sysconf(_SC_PAGESIZE);
	uint64_t start, aligned;
	void *space;

	if (!extra || flags & (MAP_FIXED | MAP_FIXED_NOREPLACE))
		return mmap(hint, size, prot, flags, fd, (off_t)offset);

	space = mmap(hint, size + extra, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		     -1, 0);
	if (space == MAP_FAILED)
		return space;
	start = (uintptr_t)space;
	aligned = (start + extra) / fake.page_size * fake.page_size;
	if (aligned > start)
		munmap(space, aligned - start);
	if (start + extra > aligned)
		munmap((void *)(uintptr_t)(aligned + size), start + extra - aligned);
	return mmap((void *)(uintptr_t)aligned, size, prot, flags | MAP_FIXED, fd,
		    (off_t)offset);
}

static int do_mmap(void *hint, uint64_t size, int prot, int flags, int fd,
		   uint64_t offset, void **ret)
{
	bool anonymous = flags & MAP_ANONYMOUS;
	struct handle *h = anonymous ? NULL : handle_of(fd);
	struct mapping map = { .prot = prot, .offset = anonymous ? 0 : offset };
	void *addr;
	int err;

	if (size == 0)
		return -EINVAL;
	if (size > ADDRESS_END)
		return -ENOMEM;
	if (!anonymous && !is_open(fd))
		return -EBADF;
	if (flags & (MAP_FIXED | MAP_FIXED_NOREPLACE) && !is_aligned((uintptr_t)hint))
		return -EINVAL;
	if (h && h->kind == GMEM) {
		err = check_gmem_mmap(h->file, prot, flags, offset);
		if (err)
			return err;
		map.file = h->file;
	}

	/* There need be no pool of huge pages here. */
	if (anonymous && flags & MAP_HUGETLB)
		flags &= ~(MAP_HUGETLB | (int)(0x3fu << MAP_HUGE_SHIFT));

	map.size = (size + fake.page_size - 1) / fake.page_size * fake.page_size;
	addr = aligned_mmap(hint, map.size, prot, flags, fd, offset);
	if (addr == MAP_FAILED)
		return -errno;
	map.start = (uintptr_t)addr;
	map_forget(map.start, map.start + map.size);
	map_insert(&map);
	*ret = addr;
	return 0;
}

int gmem_sys_mmap(void *hint, uint64_t size, int prot, int flags, int fd,
		  uint64_t offset, void **ret)
{
	int err;

	enter();
	err = attempt(FAKE_MMAP);
	if (!err)
		err = do_mmap(hint, size, prot, flags, fd, offset, ret);
	return leave(err);
}

/* Unmapping part of a mapping takes memory, and may fail; the whole cannot. */
static bool is_part_of_mapping(uint64_t start, uint64_t size)
{
	const struct mapping *first = map_at(start), *last = map_at(start + size - 1);

	return (first && first->start < start) ||
	       (last && last->start + last->size > start + size);
}

static int do_munmap(void *addr, uint64_t size)
{
	uint64_t start = (uintptr_t)addr;

	if (size == 0 || !is_aligned(start) || size > ADDRESS_END)
		return -EINVAL;
	size = (size + fake.page_size - 1) / fake.page_size * fake.page_size;
	if (!map_forget(start, start + size))
		complain("munmap where nothing is, call", (int)kernel.counts[FAKE_MUNMAP]);
	return munmap(addr, size) < 0 ? -errno : 0;
}

int gmem_sys_munmap(void *addr, uint64_t size)
{
	int err;

	enter();
	kernel.counts[FAKE_MUNMAP]++;
	err = is_part_of_mapping((uintptr_t)addr, size) ? fate(FAKE_MUNMAP) : 0;
	check_no_request((uintptr_t)addr, (uintptr_t)addr + size);
	if (fake.cannot_unmap)
		err = -ENOMEM;
	if (!err)
		err = do_munmap(addr, size);
	return leave(err);
}

static int do_madvise(void *addr, uint64_t size, int advice)
{
	uint64_t start = (uintptr_t)addr;
	const struct mapping *map = map_at(start);
	bool populate = advice == MADV_POPULATE_READ || advice == MADV_POPULATE_WRITE;

	if (!is_aligned(start))
		return -EINVAL;
	/* Without a mapping of the fake's, there may be one of the test's own. */
	if (map && size > map->start + map->size - start)
		return -ENOMEM;
	if ((advice == MADV_COLD || advice == MADV_FREE) && refuses_cold(start))
		return -EINVAL;
	if (populate && map && map->file) {
		uint64_t offset = map->offset + (start - map->start);

		if (span_overlaps(&map->file->privates, offset, offset + size, UINT32_MAX))
			return -EFAULT;
		if (!is_host_accessible(map->file))
			return -EFAULT;
		if (map->offset + (start - map->start) + size > map->file->size)
			return -EFAULT;
		kernel.populated_start = start;
		kernel.populated_end = start + size;
	}
	return madvise(addr, size, advice) < 0 ? -errno : 0;
}

static int last_advice;

int fake_last_advice(void)
{
	enter();
	return leave(last_advice);
}

int gmem_sys_madvise(void *addr, uint64_t size, int advice)
{
	int err;

	enter();
	last_advice = advice;
	err = attempt(FAKE_MADVISE);
	if (!err)
		err = do_madvise(addr, size, advice);
	return leave(err);
}

int gmem_sys_check_mapped(void *addr, uint64_t size)
{
	int err;

	enter();
	/* Not msync(): valgrind takes a question about unmapped memory for a fault. */
	err = madvise(addr, size, MADV_NORMAL) < 0 ? -errno : 0;
	return leave(err);
}

int gmem_sys_mprotect(void *addr, uint64_t size, int prot)
{
	int err;

	enter();
	err = attempt(FAKE_MPROTECT);
	if (!err && mprotect(addr, size, prot) < 0)
		err = -errno;
	return leave(err);
}

/* -------------------------------------------------------------- fallocate -- */

void mark_allocated(struct file *file, uint64_t first, uint64_t count, bool yes)
{
	uint64_t i;

	for (i = first; i < first + count && i < TRACKED_PAGES; i++) {
		if (yes && !file->allocated[i])
			file->node[i] = node_to_allocate(file, i);
		file->allocated[i] = yes;
	}
}

static int fallocate_pages(int fd, struct file *file, int mode, uint64_t offset,
			   uint64_t size)
{
	bool punch = mode & FALLOC_FL_PUNCH_HOLE;
	uint64_t pages = size / fake.page_size;
	bool interrupted = kernel.interrupt_times && pages > kernel.interrupt_pages;

	if (interrupted) {
		kernel.interrupt_times--;
		pages = kernel.interrupt_pages;
	}
	mark_allocated(file, offset / fake.page_size, pages, !punch);
	if (punch && pages && fallocate(fd, mode, (off_t)offset,
					(off_t)(pages * fake.page_size)) < 0)
		return -errno;
	return interrupted ? -EINTR : 0;
}

static int do_fallocate(int fd, int mode, uint64_t offset, uint64_t size)
{
	struct handle *h = handle_of(fd);

	if (!is_open(fd))
		return -EBADF;
	if (!h || h->kind != GMEM)
		return -ENODEV;
	if (size == 0 || offset >> 63 || size >> 63)
		return -EINVAL;
	if ((offset + size) >> 63)
		return -EFBIG;
	if (mode != FALLOC_FL_KEEP_SIZE && mode != (FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE))
		return -EOPNOTSUPP;
	if (!is_aligned(offset) || !is_aligned(size))
		return -EINVAL;
	if (mode == FALLOC_FL_KEEP_SIZE && offset + size > h->file->size)
		return -EINVAL;
	return fallocate_pages(fd, h->file, mode, offset, size);
}

int gmem_sys_fallocate(int fd, int mode, uint64_t offset, uint64_t size)
{
	int err;

	enter();
	err = attempt(FAKE_FALLOCATE);
	if (!err)
		err = do_fallocate(fd, mode, offset, size);
	return leave(err);
}

/* -------------------------------------------------- what is in memory -- */

/* Pages of ours are many of the machine's if ours are larger. */
static int look_into_memory(uint64_t start, uint64_t size, unsigned char *ret)
{
	uint64_t small = (uint64_t)sysconf(_SC_PAGESIZE), part = fake.page_size / small;
	uint64_t count = size / fake.page_size, i, k;
	unsigned char vec[64];

	if (!is_aligned(start))
		return -EINVAL;
	if (part > sizeof(vec))
		abort();
	for (i = 0; i < count; i++) {
		if (mincore((void *)(uintptr_t)(start + i * fake.page_size), fake.page_size, vec) < 0)
			return -errno;
		ret[i] = 0;
		for (k = 0; k < part; k++)
			ret[i] |= vec[k] & 1;
		ret[i] &= is_seen_mapped(start + i * fake.page_size);
	}
	return 0;
}

static int do_mincore(void *addr, uint64_t size, unsigned char *ret)
{
	const struct mapping *map = map_at((uintptr_t)addr);
	int err = look_into_memory((uintptr_t)addr, size, ret);

	if (!err && map && map->file && fake.mincore_hides)
		memset(ret, 1, size / fake.page_size);
	return err;
}

int gmem_sys_mincore(void *addr, uint64_t size, unsigned char *ret)
{
	int err;

	enter();
	err = attempt(FAKE_MINCORE);
	if (!err)
		err = do_mincore(addr, size, ret);
	return leave(err);
}

static bool has_data(int fd, uint64_t start, uint64_t end)
{
	off_t at = lseek(fd, (off_t)start, SEEK_DATA);

	return at >= 0 && (uint64_t)at < end;
}

static int do_cachestat(int fd, uint64_t offset, uint64_t size, uint64_t *ret_pages)
{
	const struct handle *h = handle_of(fd);
	uint64_t i, count = 0, page = fake.page_size;

	if (fake.no_cachestat)
		return -ENOSYS;
	if (kernel.files_are_cached && (!h || h->kind != GMEM)) {
		*ret_pages = (offset + size - 1) / page - offset / page + 1;
		return 0;
	}
	if (!is_open(fd))
		return -EBADF;
	if (!h || h->kind != GMEM)
		return -EOPNOTSUPP;
	for (i = offset / page; i < (offset + size + page - 1) / page; i++)
		count += (i < TRACKED_PAGES && h->file->allocated[i]) ||
			 has_data(fd, i * page, (i + 1) * page);
	*ret_pages = count;
	return 0;
}

int gmem_sys_cachestat(int fd, uint64_t offset, uint64_t size, uint64_t *ret_pages)
{
	int err;

	enter();
	err = attempt(FAKE_CACHESTAT);
	if (!err)
		err = do_cachestat(fd, offset, size, ret_pages);
	return leave(err);
}

/* Nothing of the fake is swapped out. */
static int do_pagemap(const void *addr, uint64_t pages, uint64_t *ret)
{
	unsigned char in_memory;
	uint64_t i;
	int err;

	if (fake.no_proc)
		return -ENOENT;
	for (i = 0; i < pages; i++) {
		err = look_into_memory((uintptr_t)addr + i * fake.page_size, fake.page_size, &in_memory);
		if (err)
			return err;
		ret[i] = (uint64_t)in_memory << 63;
	}
	return 0;
}

int gmem_sys_pagemap(const void *addr, uint64_t pages, uint64_t *ret)
{
	int err;

	enter();
	err = attempt(FAKE_PAGEMAP);
	if (!err)
		err = do_pagemap(addr, pages, ret);
	return leave(err);
}

/* ------------------------------------------------------- the page tables -- */

void (*fake_after_look)(void);

void fake_unmap_pages(const void *hva, uint64_t size)
{
	enter();
	kernel.unmapped_start = (uintptr_t)hva;
	kernel.unmapped_end = (uintptr_t)hva + size;
	leave(0);
}

/* Nothing of the fake is swapped out, and what is in memory is mapped. */
static bool is_mapped(uint64_t addr)
{
	unsigned char in_memory = 0;

	if (addr >= kernel.unmapped_start && addr < kernel.unmapped_end)
		return false;
	return look_into_memory(addr, fake.page_size, &in_memory) == 0 && in_memory;
}

static int begin_look(enum fake_call call, int fd, uint64_t start, uint64_t end)
{
	int err = attempt(call);

	if (!err && !is_open(fd))
		err = -EBADF;
	if (!err && fake.no_page_scan)
		err = -ENOTTY;
	if (!err && (!is_aligned(start) || !is_aligned(end)))
		err = -EINVAL;
	return err;
}

static int end_look(int result)
{
	leave(0);
	if (fake_after_look)
		fake_after_look();
	return result;
}

int gmem_sys_find_absent(int fd, uint64_t start, uint64_t end, uint32_t kinds, uint64_t *ret)
{
	int err;

	enter();
	err = begin_look(FAKE_FIND_ABSENT, fd, start, end);
	if (!err && !(kinds & GMEM_PAGES_PRESENT))
		err = -EINVAL;
	for (*ret = start; !err && *ret < end && is_mapped(*ret);)
		*ret += fake.page_size;
	return end_look(err);
}

int gmem_sys_find_mapped(int fd, uint64_t start, uint64_t end, uint32_t kinds,
			 struct gmem_sys_pages *ret, size_t max, uint64_t *ret_until)
{
	size_t count = 0;
	int err;

	enter();
	err = begin_look(FAKE_FIND_MAPPED, fd, start, end);
	*ret_until = end;
	for (; !err && start < end; start += fake.page_size) {
		if (!is_mapped(start))
			continue;
		if (count && ret[count - 1].end == start) {
			ret[count - 1].end += fake.page_size;
		} else if (count < max) {
			ret[count++] = (struct gmem_sys_pages){ start, start + fake.page_size, kinds };
		} else {
			*ret_until = start;
			break;
		}
	}
	return end_look(err ? err : (int)count);
}
