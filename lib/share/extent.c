/* SPDX-License-Identifier: MIT */
#include "share/extent.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <stdlib.h>

#include "base/backing.h"
#include "base/error.h"
#include "base/kind.h"
#include "base/limit.h"
#include "base/macros.h"
#include "os/sys.h"
#include "region/file.h"
#include "region/host_file.h"

/* Linux 5.1; older C libraries do not name it */
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

/*
 * The name of a guest_memfd cannot be read without /proc. Other anonymous inodes have no size,
 * so that mapping a part of them is refused.
 */
static bool is_memory(const struct gmem_sys_facts *facts)
{
	return facts->is_regular &&
	       (gmem_file_is_gmemfd(facts) || facts->filesystem_type == TMPFS_MAGIC ||
		facts->filesystem_type == HUGETLBFS_MAGIC);
}

static struct gmem_extent_file describe(const struct gmem_sys_facts *facts)
{
	const uint32_t no_writing = F_SEAL_WRITE | F_SEAL_FUTURE_WRITE;
	struct gmem_extent_file file = {
		.size = facts->size,
		.page_size = gmem_sys_page_size(),
		.seals = facts->seals,
		.max_rights = GMEM_ALL_RIGHTS,
		.is_gmemfd = gmem_file_is_gmemfd(facts),
		.device = facts->device,
		.inode = facts->inode,
	};

	if (facts->filesystem_type == HUGETLBFS_MAGIC)
		file.page_size = facts->block_size;
	if (facts->seals & no_writing)
		file.max_rights = GMEM_RIGHT_READ;
	file.rights = facts->access.writes ? file.max_rights : GMEM_RIGHT_READ;
	/* The size of a guest_memfd never changes. */
	file.can_shrink = !file.is_gmemfd && !(facts->seals & F_SEAL_SHRINK);
	return file;
}

int gmem_extent_inspect(int fd, uint64_t offset, uint64_t size, struct gmem_extent_file *ret)
{
	struct gmem_sys_facts facts;
	int err;

	err = gmem_sys_facts(fd, &facts);
	if (err)
		return gmem_fail(err, "fd %d cannot be looked at: %s", fd, gmem_errno_name(err));

	if (!facts.access.reads)
		return gmem_fail(-EBADF, "fd %d is not open for reading, so it cannot be mapped", fd);
	if (!is_memory(&facts))
		return gmem_fail(-EINVAL,
				 "fd %d is no memfd, hugetlbfs file or guest_memfd (file system type 0x%"
				 PRIx64 ")", fd, facts.filesystem_type);

	if (offset > facts.size || size > facts.size - offset)
		return gmem_fail(-EINVAL,
				 "fd %d has 0x%" PRIx64 " bytes, not 0x%" PRIx64 " + 0x%" PRIx64, fd,
				 facts.size, offset, size);

	*ret = describe(&facts);
	return 0;
}

/* ---- seals ---- */

static const struct {
	uint32_t seal;
	const char *name;
	const char *harm;	/* what any process that has the file can do without it */
} wanted_seals[] = {
	{ F_SEAL_SHRINK, "F_SEAL_SHRINK", "cut it, and accesses to it raise SIGBUS" },
	{ F_SEAL_GROW, "F_SEAL_GROW", "grow it, and no peer can be given exactly all of it" },
	{ F_SEAL_SEAL, "F_SEAL_SEAL",
	  "seal it against writing, and this process cannot map, give or discard it any more" },
};

/* Where F_SEAL_SEAL is, as on each file that memfd_create() did not make, none can be added. */
int gmem_extent_check_seals(int fd, const struct gmem_extent_file *file)
{
	const char *help = file->seals & F_SEAL_SEAL ? "it takes no more seals: a memfd with "
		"MFD_ALLOW_SEALING does" : "add F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL";

	for (size_t i = 0; i < GMEM_ARRAY_SIZE(wanted_seals); i++)
		if (!(file->seals & wanted_seals[i].seal))
			return gmem_fail(-EPERM, "fd %d lacks %s, so any process that has it can %s: %s, or "
					 "accept that with GMEM_EXPORT_UNSEALED", fd, wanted_seals[i].name,
					 wanted_seals[i].harm, help);
	return 0;
}

/* ---- the caller's memory ---- */

struct memory {
	struct gmem_range hva;
	uint64_t offset;	/* in the file that is mapped there */
	int fd;
	struct gmem_extent_file file;	/* holds for ever if can_change is false */
	bool can_change;
};

static int insert(struct gmem_range_map *map, struct memory *memory)
{
	const struct gmem_range *other;

	other = gmem_range_find(map, memory->hva.start, memory->hva.size);
	if (other)
		return gmem_fail(-EEXIST, "the memory at hva 0x%" PRIx64 ", 0x%" PRIx64
				 " bytes, was named already", other->start, other->size);

	gmem_range_insert(map, &memory->hva);
	return 0;
}

int gmem_callers_memory_add(struct gmem_range_map *map, const void *hva, uint64_t size, int fd,
			    uint64_t offset, const struct gmem_extent_file *file)
{
	const uint32_t fixing = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
	struct memory *memory;
	int err;

	memory = malloc(sizeof(*memory));
	if (!memory)
		return gmem_fail(-ENOMEM, "no memory for memory to export");

	*memory = (struct memory){
		.hva = { .start = (uintptr_t)hva, .size = size },
		.offset = offset,
		.fd = gmem_sys_dup(fd),
		.file = *file,
		.can_change = (file->seals & fixing) != fixing,
	};
	if (memory->fd < 0) {
		err = gmem_fail_by_limit(memory->fd, 0, "fd %d cannot be duplicated", fd);
		goto free_memory;
	}

	err = insert(map, memory);
	if (err)
		goto close_fd;
	return 0;

close_fd:
	gmem_sys_close(memory->fd);
free_memory:
	free(memory);
	return err;
}

static void remove_memory(struct gmem_range_map *map, struct gmem_range *hva)
{
	struct memory *memory = GMEM_CONTAINER_OF(hva, struct memory, hva);

	gmem_range_remove(map, hva);
	gmem_sys_close(memory->fd);
	free(memory);
}

int gmem_callers_memory_remove(struct gmem_range_map *map, const void *hva)
{
	struct gmem_range *range = gmem_range_find(map, (uintptr_t)hva, 1);

	if (!range || range->start != (uintptr_t)hva)
		return gmem_fail(-ENOENT, "no memory was named that starts at hva 0x%" PRIx64,
				 (uint64_t)(uintptr_t)hva);

	remove_memory(map, range);
	return 0;
}

void gmem_callers_memory_clear(struct gmem_range_map *map)
{
	while (map->root)
		remove_memory(map, map->root);
}

/* ---- from a region to a file ---- */

static int inspect_host_file(bool unsealed, const struct gmem_region *region,
			     struct gmem_extent *extent, struct gmem_extent_file *file)
{
	const struct gmem_host_file *host = region->host_file;
	int err = 0;

	/* The caller's file is as it should be: only for other processes it is not fit. */
	if (!is_memory(&host->facts))
		return gmem_fail(-EOPNOTSUPP,
				 "the region at gpa 0x%" PRIx64 " is part of a file that is no memfd, hugetlbfs "
				 "file or guest_memfd (file system type 0x%" PRIx64 "), and other processes "
				 "are given no other: GMEM_EXPORT_SKIP leaves it out", region->gpa.start,
				 host->facts.filesystem_type);

	extent->fd = host->fd;
	extent->offset = region->host_offset;
	if (gmem_host_file_is_fixed(host))
		*file = describe(&host->facts);
	else
		err = gmem_extent_inspect(extent->fd, extent->offset, extent->size, file);
	return err || unsealed ? err : gmem_extent_check_seals(extent->fd, file);
}

static int find_memory(const struct gmem_range_map *map, bool unsealed, const struct gmem_region *region,
		       struct gmem_extent *extent, struct gmem_extent_file *file)
{
	struct gmem_range *range;
	const struct memory *memory;
	uint64_t within;

	range = gmem_range_find(map, region->hva.start, 1);
	within = range ? region->hva.start - range->start : 0;
	if (!range || region->gpa.size > range->size - within) {
		if (region->host_file)
			return inspect_host_file(unsealed, region, extent, file);
		return gmem_fail(-EOPNOTSUPP,
				 "the region at gpa 0x%" PRIx64 ", backing %s, is memory no other process "
				 "can map: have it made as a memfd (GMEM_MEMORY_MEMFD), or say of which file "
				 "your own memory is a mapping (GMEM_REGION_MEMORY_FD)", region->gpa.start,
				 gmem_backing_name(region->backing));
	}

	memory = GMEM_CONTAINER_OF(range, struct memory, hva);
	extent->fd = memory->fd;
	extent->offset = memory->offset + within;
	if (memory->can_change)
		return gmem_extent_inspect(extent->fd, extent->offset, extent->size, file);
	*file = memory->file;
	return 0;
}

bool gmem_extent_is_offered(const struct gmem_range_map *memory, const struct gmem_region *region)
{
	return gmem_region_has_use(region, GMEM_USE_EXPORT) ||
	       gmem_range_find(memory, region->hva.start, 1);
}

int gmem_extent_of_region(const struct gmem_range_map *memory, bool unsealed,
			  const struct gmem_region *region, struct gmem_extent *ret,
			  struct gmem_extent_file *ret_file)
{
	struct gmem_extent extent = {
		.gpa = region->gpa.start,
		.size = region->gpa.size,
		.hva = (void *)(uintptr_t)region->hva.start,
		.backing = region->backing,
	};
	struct gmem_extent_file file = {
		.page_size = gmem_sys_page_size(),
		.rights = GMEM_ALL_RIGHTS,
		.max_rights = GMEM_ALL_RIGHTS,
	};
	int err;

	if (gmem_backing_traits(region->backing)->hva_source == GMEM_HVA_FILE) {
		extent.fd = region->file->fd;
		extent.offset = region->file_offset;
		file.size = region->file->size;
	} else {
		err = find_memory(memory, unsealed, region, &extent, &file);
		if (err)
			return err;
	}

	extent.file_size = file.size;
	extent.page_size = file.page_size;
	/* A peer, and whoever it serves, has no more rights than the guest. */
	extent.rights = gmem_region_is_read_only(region) ? GMEM_RIGHT_READ : file.rights;
	*ret = extent;
	*ret_file = file;
	return 0;
}
