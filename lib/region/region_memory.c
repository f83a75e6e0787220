/* SPDX-License-Identifier: MIT */
#include "region/region_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <sys/mman.h>

#include "gmem.h"
#include "base/check.h"
#include "base/counters.h"
#include "base/error.h"
#include "base/part.h"
#include "base/interval_tree.h"
#include "base/limit.h"
#include "base/lock.h"
#include "os/sys.h"
#include "region/dirty_pages.h"
#include "region/file.h"
#include "region/host_discard.h"
#include "region/host_look.h"
#include "region/host_mapping.h"
#include "region/mapped_pages.h"
#include "region/memory_users.h"
#include "region/region.h"
#include "region/vm_core.h"

/* Pages that one mincore() looks at; a byte each, on the stack */
#define LOOK_PAGES 16384

static const char *name_of(uint32_t side)
{
	return side == GMEM_SIDE_PRIVATE ? "private" : "shared";
}

bool gmem_region_is_both_sides(const struct gmem_region *region)
{
	return gmem_region_traits(region)->has_sides &&
	       region->file->create_flags & GMEM_CREATE_MMAP;
}

static bool is_in_file(const struct gmem_region *region, uint32_t side)
{
	if (gmem_region_traits(region)->has_sides)
		return side == GMEM_SIDE_PRIVATE || gmem_region_is_both_sides(region);
	return gmem_region_traits(region)->has_file;
}

int gmem_region_memory_get(const struct gmem_region *region, uint32_t side, uint64_t offset,
			   uint64_t size, struct gmem_region_memory *ret)
{
	bool in_file;
	int err;

	if (region->is_device)
		return gmem_fail(-ENXIO, "the range at gpa 0x%" PRIx64 " is a device's: it has no memory",
				 region->gpa.start);
	if (side == GMEM_SIDE_PRIVATE && !gmem_region_traits(region)->has_sides)
		return gmem_fail(-EOPNOTSUPP, "memory with backing \"%s\" has no private side",
				 gmem_backing_name(region->backing));

	err = gmem_check_range_within("offset", offset, size, region->gpa.size,
				      "the end of the region");
	if (err)
		return err;

	in_file = is_in_file(region, side);
	*ret = (struct gmem_region_memory){
		.is_callers = !in_file && region->borrows_memory,
		.page_size = in_file ? gmem_sys_page_size() : region->page_size,
	};
	ret->pool_page = region->mixes_pages ? gmem_sys_page_size() : ret->page_size;
	if (in_file) {
		ret->file = region->file;
		ret->offset = region->file_offset + offset;
	} else {
		ret->host_file = region->host_file;
		ret->host_offset = region->host_offset + offset;
	}
	if (!in_file || region->map)
		ret->hva = (void *)(uintptr_t)(region->hva.start + offset);
	return 0;
}

/* ---- discard ---- */

/* A discard of host memory: by its address, and by its place in the file behind it, if there is one */
struct host_discard {
	struct gmem_memory_user at_hva, in_file;
	struct gmem_memory_users *by_hva, *by_file;	/* the latter is NULL without a file */
};

static int check_leases(const struct gmem_memory_users *users, const char *what,
			const struct gmem_memory_user *user)
{
	const struct gmem_memory_user *lease = gmem_memory_find_lease(users, user->at.start, user->at.last);

	return lease ? gmem_memory_fail_leased(lease, what, user->at.start,
					       user->at.last - user->at.start + 1) : 0;
}

/* As gmem_file_punch_region() does for files: no lease is granted from here on. */
static int begin_discard(struct gmem_vm *vm, struct host_discard *discard)
{
	int err;

	gmem_lock_take(&vm->lock);
	err = check_leases(discard->by_hva, "hva", &discard->at_hva);
	if (!err && discard->by_file)
		err = check_leases(discard->by_file, "file offset", &discard->in_file);
	if (!err)
		gmem_interval_insert(&discard->by_hva->discards, &discard->at_hva.at);
	if (!err && discard->by_file)
		gmem_interval_insert(&discard->by_file->discards, &discard->in_file.at);
	gmem_lock_drop(&vm->lock);
	return err;
}

static void end_discard(struct gmem_vm *vm, struct host_discard *discard)
{
	gmem_lock_take(&vm->lock);
	gmem_interval_remove(&discard->by_hva->discards, &discard->at_hva.at);
	if (discard->by_file)
		gmem_interval_remove(&discard->by_file->discards, &discard->in_file.at);
	gmem_lock_drop(&vm->lock);
}

static int discard_unless_leased(struct gmem_vm *vm, const struct gmem_region_memory *what,
				 uint64_t size, const struct gmem_discard_how *how,
				 uint64_t *ret_done)
{
	uint64_t start = (uintptr_t)what->hva, offset = what->host_offset;
	struct host_discard discard = {
		.at_hva = { .at = { .start = start, .last = start + size - 1 }, .name = "discarded" },
		.in_file = { .at = { .start = offset, .last = offset + size - 1 }, .name = "discarded" },
		.by_hva = &vm->memory_users,
		.by_file = what->host_file ? &what->host_file->memory_users : NULL,
	};
	int err;

	err = begin_discard(vm, &discard);
	if (err)
		return err;
	err = gmem_host_discard(how->look, what->hva, size, how->flags, ret_done);
	end_discard(vm, &discard);
	return err;
}

static int discard(struct gmem_region *region, const struct gmem_region_memory *what, uint64_t size,
		   const struct gmem_discard_how *how, uint64_t *ret_done)
{
	if (!what->file)
		return discard_unless_leased(region->vm, what, size, how, ret_done);

	/*
	 * Punching a hole unmaps page by page; MADV_DONTNEED does so in bulk, in less
	 * than half the time. For a page or two it does not pay, but only it takes away what
	 * the page table says of a page that the hardware lost. It frees nothing, so nothing
	 * is lost if it is refused.
	 */
	if (what->hva)
		gmem_sys_madvise(what->hva, size, MADV_DONTNEED);
	return gmem_file_punch_region(what->file, what->offset, size, ret_done);
}

int gmem_region_memory_discard(struct gmem_region *region, uint32_t side, uint64_t offset,
			       uint64_t size, const struct gmem_discard_how *how, uint64_t *ret_done)
{
	struct gmem_region_memory what;
	uint64_t done = 0;
	int err;

	err = gmem_region_memory_get(region, side, offset, size, &what);
	if (!err) {
		err = discard(region, &what, size, how, &done);
		/* The private side alone is nobody's memory, or what is not known to change. */
		if (side == GMEM_SIDE_SHARED || gmem_region_is_both_sides(region))
			gmem_vm_mark_dirty(region->vm, region->gpa.start + offset, size);
		gmem_region_count(region, GMEM_COUNT_DISCARDS, 1);
		gmem_region_count(region, GMEM_COUNT_DISCARDED, done);
	}
	if (ret_done)
		*ret_done = done;
	return err;
}

void gmem_region_mark_punched(struct gmem_region *region)
{
	struct gmem_region_memory memory;
	struct gmem_part part;
	uint64_t last;

	if (!region->file || !gmem_file_punched_since(region->file, &region->punches_seen, &part) ||
	    gmem_region_memory_get(region, GMEM_SIDE_SHARED, 0, region->gpa.size, &memory) || !memory.file)
		return;
	last = memory.offset + (region->gpa.size - 1);
	part.start = part.start > memory.offset ? part.start : memory.offset;
	part.last = part.last < last ? part.last : last;
	if (part.start <= part.last)
		gmem_vm_mark_dirty(region->vm, region->gpa.start + (part.start - memory.offset),
				   part.last - part.start + 1);
}

static bool has_one_lease(const struct gmem_memory_users *users, uint64_t start, uint64_t size)
{
	const struct gmem_interval *first = gmem_interval_find(&users->leases, start, start + size - 1);

	return first && !gmem_interval_find_next(&users->leases, first, start, start + size - 1);
}

/*
 * The locks keep new leases away until the pages are gone, which takes microseconds: nobody is
 * to be refused a lease for this. One by host address may be of another guest address.
 */
void gmem_region_memory_give_back(struct gmem_region *region, uint64_t offset, uint64_t size)
{
	uint64_t start = region->hva.start + offset, at = region->file_offset + offset;
	struct gmem_file *file = region->file;
	struct gmem_vm *vm = region->vm;

	/* As for a discard; it frees nothing. */
	gmem_sys_madvise((void *)(uintptr_t)start, size, MADV_DONTNEED);
	gmem_lock_take(&vm->lock);
	gmem_lock_take(&file->lock);
	if (has_one_lease(&vm->memory_users, start, size) && has_one_lease(&file->memory_users, at, size))
		gmem_sys_fallocate(file->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, size);
	gmem_lock_drop(&file->lock);
	gmem_lock_drop(&vm->lock);
}

/* ---- pages larger than the host's ---- */

uint64_t gmem_region_memory_piece(const struct gmem_region *region, uint64_t offset, uint64_t size,
				  uint64_t most)
{
	uint64_t hva = region->hva.start + offset, page = region->page_size, end;

	if (size <= most)
		return size;
	if (region->is_device || page <= gmem_sys_page_size())
		return most;
	end = page < most ? (hva + most) / page * page : (hva / page + 1) * page;
	return end - hva < size ? end - hva : size;
}

void gmem_region_memory_cut_pages(const struct gmem_region *region, uint32_t side, uint64_t offset,
				  uint64_t size, uint64_t *ret_head, uint64_t *ret_tail)
{
	uint64_t page = is_in_file(region, side) ? gmem_sys_page_size() : region->page_size;
	uint64_t start = region->hva.start + offset, end = start + size;
	uint64_t first = (start + page - 1) / page * page, last = end / page * page;

	*ret_head = first < last ? first - start : size;
	*ret_tail = first < last ? end - last : 0;
}

/* ---- how much there is ---- */

/* Memory that is mapped; -EFAULT if not all is. No failure has a sentence. */
static int count_mapped(const struct gmem_region_memory *side, uint64_t size, uint64_t *ret_bytes)
{
	uint64_t page = gmem_sys_page_size(), bytes = 0, done, now, i;
	unsigned char in_memory[LOOK_PAGES];
	int err;

	for (done = 0; done < size; done += now) {
		now = size - done < LOOK_PAGES * page ? size - done : LOOK_PAGES * page;
		err = gmem_sys_mincore((char *)side->hva + done, now, in_memory);
		if (err)
			return err == -ENOMEM ? -EFAULT : err;
		for (i = 0; i < now / page; i++)
			bytes += in_memory[i] & 1 ? page : 0;
	}

	*ret_bytes = bytes;
	return 0;
}

/* Pagemap: a page is in memory; it is the file's, or shared */
#define PAGEMAP_PRESENT	(UINT64_C(1) << 63)
#define PAGEMAP_FILE	(UINT64_C(1) << 61)
#define PAGEMAP_PAGES	2048

/* Pages of its own, which is what a private mapping of a file takes beside the page cache */
static int count_own(const char *hva, uint64_t size, uint64_t *ret_bytes)
{
	uint64_t page = gmem_sys_page_size(), entries[PAGEMAP_PAGES], done, now, bytes = 0;
	int err;

	for (done = 0; done < size; done += now) {
		now = size - done < PAGEMAP_PAGES * page ? size - done : PAGEMAP_PAGES * page;
		err = gmem_sys_pagemap(hva + done, now / page, entries);
		if (err)
			return err;
		for (uint64_t i = 0; i < now / page; i++)
			bytes += (entries[i] & (PAGEMAP_PRESENT | PAGEMAP_FILE)) == PAGEMAP_PRESENT ? page : 0;
	}
	*ret_bytes = bytes;
	return 0;
}

struct counting {
	uint64_t start, end;	/* host addresses */
	uint64_t bytes;
};

static int count_mapping(void *data, const struct gmem_host_mapping *mapping)
{
	struct counting *counting = data;
	uint64_t start = mapping->start > counting->start ? mapping->start : counting->start;
	uint64_t end = mapping->end < counting->end ? mapping->end : counting->end, bytes;
	struct gmem_region_memory part = { .hva = (void *)(uintptr_t)start };
	int err;

	err = gmem_host_mapping_is_private_file(mapping) ? count_own(part.hva, end - start, &bytes)
							  : count_mapped(&part, end - start, &bytes);
	if (err)
		return err;
	counting->bytes += bytes;
	return 0;
}

/*
 * By what each part is: where nothing is mapped, nothing is in memory. What cannot be told
 * apart is counted as it is mapped, unless a limit is in the way only for now.
 */
static int count_by_mapping(const struct gmem_region_memory *side, uint64_t size, uint64_t *ret_bytes)
{
	struct counting counting = { .start = (uintptr_t)side->hva, .end = (uintptr_t)side->hva + size };
	int err = gmem_host_mappings(side->hva, size, false, count_mapping, &counting);

	if (err && !gmem_is_about_limit(err))
		return count_mapped(side, size, ret_bytes);
	if (!err)
		*ret_bytes = counting.bytes;
	return err;
}

static int fail_to_count(const struct gmem_region *region, const struct gmem_region_memory *side,
			 uint64_t size, int err)
{
	const uint64_t hva = (uintptr_t)side->hva, gpa = region->gpa.start + (hva - region->hva.start);

	if (gmem_is_about_limit(err))
		return gmem_fail_by_limit(err, 0, "gpa 0x%" PRIx64 ", hva 0x%" PRIx64 ", 0x%" PRIx64
					  " bytes: what is in memory cannot be asked", gpa, hva, size);
	return gmem_fail(err, "gpa 0x%" PRIx64 ", hva 0x%" PRIx64 ", 0x%" PRIx64 " bytes: %s: %s", gpa, hva, size,
			 err == -EFAULT ? "not all is mapped, and /proc does not say what is" :
			 "mincore(2) does not tell what is in memory", gmem_errno_name(err));
}

static int count_bytes(const struct gmem_region *region, const struct gmem_region_memory *side,
		       uint64_t size, uint64_t *ret_bytes)
{
	int err = -EFAULT;

	if (side->file || !region->has_private_file)
		err = count_mapped(side, size, ret_bytes);
	if (err == -EFAULT)
		err = count_by_mapping(side, size, ret_bytes);
	return err ? fail_to_count(region, side, size, err) : 0;
}

/* ---- pages of hugetlb, which may be in a file and not be mapped here ---- */

/* Limit @ret, for @size bytes at @offset, to what a file with @allocated bytes in all can have. */
static void limit_to_file(const struct gmem_fd_kind *file, uint64_t offset, uint64_t size,
			  struct gmem_resident *ret)
{
	uint64_t inside = offset < file->size ? file->size - offset : 0, outside;

	inside = inside < size ? inside : size;
	outside = file->size - inside;
	if (file->allocated > outside && file->allocated - outside > ret->least)
		ret->least = file->allocated - outside;
	if (file->allocated < ret->most)
		ret->most = file->allocated;
	/* Pages come and go meanwhile. */
	if (ret->least > size)
		ret->least = size;
	if (ret->most < ret->least)
		ret->most = ret->least;
}

/* Add a part of look->mapping. */
static int add_huge_part(struct gmem_host_look *look, uint64_t hva, uint64_t size,
			 struct gmem_resident *sum)
{
	const struct gmem_host_mapping *mapping = &look->mapping;
	const struct gmem_region_memory part = { .hva = (void *)(uintptr_t)hva };
	struct gmem_resident bytes;
	struct gmem_fd_kind file;
	int err;

	err = gmem_host_mapping_is_private_file(mapping) ? count_own(part.hva, size, &bytes.least)
							  : count_mapped(&part, size, &bytes.least);
	if (err)
		return err;
	bytes.most = bytes.least;
	if (bytes.least < size && mapping->flags & GMEM_MAPPING_SHARED) {
		bytes.most = size;
		err = gmem_host_look_file(look);
		if (gmem_is_about_limit(err))
			return err;
		if (!err && !gmem_sys_fd_kind(look->file, &file))
			limit_to_file(&file, mapping->offset + (hva - mapping->start), size, &bytes);
	}
	sum->least += bytes.least;
	sum->most += bytes.most;
	return 0;
}

static int count_huge(const struct gmem_region_memory *side, uint64_t size, struct gmem_resident *ret)
{
	struct gmem_host_look look = GMEM_HOST_LOOK;
	uint64_t at = (uintptr_t)side->hva, end = at + size, next = at, now;
	int err = 0;

	look.hint = side->host_file ? side->host_file->fd : -1;
	*ret = (struct gmem_resident){ 0 };
	for (; at < end && !err; at += now) {
		err = gmem_host_look_at(&look, at, &next);
		if (!err)
			next = look.mapping.end;
		now = next < end ? next - at : end - at;
		if (!err)
			err = add_huge_part(&look, at, now, ret);
		else if (err == -ENOENT)
			err = 0;	/* Nothing is mapped there. */
	}
	gmem_host_look_end(&look);
	return err;
}

/* ---- all memory ---- */

static int count_host(const struct gmem_region *region, const struct gmem_region_memory *side,
		      uint64_t size, struct gmem_resident *ret)
{
	int err = count_bytes(region, side, size, &ret->least);
	struct gmem_resident huge;

	ret->most = ret->least;
	if (err || ret->least >= size || side->file || side->page_size <= gmem_sys_page_size())
		return err;
	err = count_huge(side, size, &huge);
	if (gmem_is_about_limit(err))
		return fail_to_count(region, side, size, err);
	if (!err)
		*ret = huge;
	else
		ret->most = size;	/* What cannot be known may all be there. */
	return 0;
}

/* The page tables say so in a tenth of the time that it takes to count the pages of a file. */
static bool is_all_mapped(const struct gmem_region_memory *what, uint64_t size)
{
	int fd = what->hva ? gmem_mapped_pages_open(size) : -ENODATA;
	bool is_all;

	if (fd < 0)
		return false;
	is_all = gmem_mapped_pages_are_all(fd, (uintptr_t)what->hva, size, GMEM_PAGES_PRESENT);
	gmem_sys_close(fd);
	return is_all;
}

int gmem_region_memory_bounds(const struct gmem_region *region, uint32_t side, uint64_t offset,
			      uint64_t size, struct gmem_resident *ret)
{
	struct gmem_region_memory what;
	uint64_t pages;
	int err;

	err = gmem_region_memory_get(region, side, offset, size, &what);
	if (err)
		return err;
	if (!what.file)
		return count_host(region, &what, size, ret);

	if (is_all_mapped(&what, size)) {
		ret->least = ret->most = size;
		return 0;
	}
	err = gmem_sys_cachestat(what.file->fd, what.offset, size, &pages);
	if (!err) {
		ret->least = ret->most = pages * gmem_sys_page_size();
		return 0;
	}
	if (what.hva)
		return count_host(region, &what, size, ret);
	return gmem_fail(err == -ENOSYS ? -EOPNOTSUPP : err,
			 "how much of the %s side of gpa 0x%" PRIx64
			 " is in memory only cachestat(2) can say: %s",
			 name_of(side), region->gpa.start + offset, gmem_errno_name(err));
}

int gmem_region_memory_resident(const struct gmem_region *region, uint32_t side, uint64_t offset,
				uint64_t size, uint64_t *ret_bytes)
{
	struct gmem_resident bytes;
	int err = gmem_region_memory_bounds(region, side, offset, size, &bytes);

	if (!err)
		*ret_bytes = bytes.least;
	return err;
}
