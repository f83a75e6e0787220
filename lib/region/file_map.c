/* SPDX-License-Identifier: MIT */
#include "region/file_map.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "gmem.h"
#include "base/error.h"
#include "base/macros.h"
#include "os/sys.h"

static uint64_t address(const void *hva)
{
	return (uintptr_t)hva;
}

void gmem_maps_init(struct gmem_file_maps *maps)
{
	gmem_lock_init(&maps->lock, GMEM_RANK_MAPS);
	maps->made.root = NULL;
	maps->pinned.root = NULL;
}

void gmem_maps_destroy(struct gmem_file_maps *maps)
{
	gmem_lock_destroy(&maps->lock);
}

/* ---- any mapping, at the place it should have ---- */

/* mmap() with MAP_FIXED_NOREPLACE: older kernels take the address as a hint. */
static int map_where_free(int fd, uint64_t offset, uint64_t size, int prot, int flags, void *hva,
			  void **ret)
{
	void *got;
	int err;

	err = gmem_sys_mmap(hva, size, prot, flags | MAP_FIXED_NOREPLACE, fd, offset, &got);
	if (err)
		return err;

	if (got != hva) {
		gmem_sys_munmap(got, size);
		return -EEXIST;
	}

	*ret = got;
	return 0;
}

/* Reserve more than is needed, map inside it, give back what is left over. */
static int map_aligned(int fd, uint64_t offset, uint64_t size, int prot, int flags,
		       const struct gmem_place *place, void **ret)
{
	uint64_t reserved = size + place->align - gmem_sys_page_size(), start, hva;
	void *area;
	int err;

	if (reserved < size)
		return -ENOMEM;

	err = gmem_sys_mmap(NULL, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
			    -1, 0, &area);
	if (err)
		return err;

	start = address(area);
	hva = start + ((place->remainder - start) & (place->align - 1));
	err = gmem_sys_mmap((void *)(uintptr_t)hva, size, prot, flags | MAP_FIXED, fd, offset, ret);
	if (err) {
		gmem_sys_munmap(area, reserved);
		return err;
	}

	if (hva > start)
		gmem_sys_munmap(area, hva - start);
	if (start + reserved > hva + size)
		gmem_sys_munmap((void *)(uintptr_t)(hva + size), start + reserved - (hva + size));
	return 0;
}

int gmem_map_at(int fd, uint64_t offset, uint64_t size, int prot, int flags,
		const struct gmem_place *place, void **ret)
{
	if (place->flags & GMEM_MAP_REPLACE)
		return gmem_sys_mmap(place->hva, size, prot, flags | MAP_FIXED, fd, offset, ret);

	if (place->flags & GMEM_MAP_FIXED)
		return map_where_free(fd, offset, size, prot, flags, place->hva, ret);

	if (place->align > gmem_sys_page_size())
		return map_aligned(fd, offset, size, prot, flags, place, ret);

	return gmem_sys_mmap(NULL, size, prot, flags, fd, offset, ret);
}

/* ---- mappings of the user ---- */

static struct gmem_map *map_of(struct gmem_range *hva)
{
	return GMEM_CONTAINER_OF(hva, struct gmem_map, hva);
}

static int fail_to_map(uint64_t offset, uint64_t size, const struct gmem_place *place, int err)
{
	if (err == -EEXIST)
		return gmem_fail(err, "something is mapped between hva 0x%" PRIx64 " and 0x%" PRIx64,
				 address(place->hva), address(place->hva) + size);
	return gmem_fail(err, "offset 0x%" PRIx64 ", 0x%" PRIx64 " bytes, cannot be mapped: %s",
			 offset, size, gmem_errno_name(err));
}

/* Map at a place that was checked and fill in @map; the caller holds the lock. */
static int map_locked(struct gmem_file_maps *maps, int fd, uint64_t offset, uint64_t size,
		      const struct gmem_place *place, struct gmem_map *map)
{
	int prot = place->flags & GMEM_MAP_READONLY ? PROT_READ : PROT_READ | PROT_WRITE;
	const struct gmem_range *other = NULL;
	void *hva;
	int err;

	if (place->flags & GMEM_MAP_REPLACE) {
		other = gmem_range_find(&maps->made, address(place->hva), size);
		if (!other)
			other = gmem_range_find(&maps->pinned, address(place->hva), size);
	}
	if (other)
		return gmem_fail(-EEXIST,
				 "the file is mapped at hva 0x%" PRIx64 ", 0x%" PRIx64 " bytes, already",
				 other->start, other->size);

	err = gmem_map_at(fd, offset, size, prot, MAP_SHARED, place, &hva);
	if (err)
		return fail_to_map(offset, size, place, err);

	map->hva.start = address(hva);
	map->hva.size = size;
	map->offset = offset;
	return 0;
}

static int map_range(struct gmem_file_maps *maps, struct gmem_range_map *kind, int fd,
		     uint64_t offset, uint64_t size, const struct gmem_place *place, struct gmem_map *map)
{
	int err;

	gmem_lock_take(&maps->lock);
	err = map_locked(maps, fd, offset, size, place, map);
	if (!err)
		gmem_range_insert(kind, &map->hva);
	gmem_lock_drop(&maps->lock);
	return err;
}

int gmem_maps_add(struct gmem_file_maps *maps, int fd, uint64_t offset, uint64_t size,
		  const struct gmem_place *place, void **ret_hva)
{
	struct gmem_map *map;
	int err;

	map = malloc(sizeof(*map));
	if (!map)
		return gmem_fail(-ENOMEM, "no memory to remember a mapping");

	err = map_range(maps, &maps->made, fd, offset, size, place, map);
	if (err) {
		free(map);
		return err;
	}

	*ret_hva = (void *)(uintptr_t)map->hva.start;
	return 0;
}

/* Unmap [start, start + size) of @map, which holds all of it; @spare may become the rest. */
static int unmap_part(struct gmem_file_maps *maps, struct gmem_map *map, uint64_t start, uint64_t size,
		      struct gmem_map **spare)
{
	uint64_t before = start - map->hva.start;
	uint64_t after = map->hva.size - before - size;
	struct gmem_map *rest = *spare;
	int err;

	err = gmem_sys_munmap((void *)(uintptr_t)start, size);
	if (err)
		return gmem_fail(err, "hva 0x%" PRIx64 ", 0x%" PRIx64 " bytes, cannot be unmapped: %s",
				 start, size, gmem_errno_name(err));

	gmem_range_remove(&maps->made, &map->hva);
	if (after) {
		rest->hva.start = start + size;
		rest->hva.size = after;
		rest->offset = map->offset + before + size;
		gmem_range_insert(&maps->made, &rest->hva);
		*spare = NULL;
	}
	if (before) {
		map->hva.size = before;
		gmem_range_insert(&maps->made, &map->hva);
	} else {
		free(map);
	}
	return 0;
}

static int unmap_locked(struct gmem_file_maps *maps, uint64_t start, uint64_t size,
			struct gmem_map **spare)
{
	struct gmem_range *hva;

	if (gmem_range_find(&maps->pinned, start, size))
		return gmem_fail(-EBUSY, "hva 0x%" PRIx64 " is a region's own mapping", start);

	hva = gmem_range_find(&maps->made, start, size);
	if (!hva || start < hva->start || start + size - 1 > hva->start + hva->size - 1)
		return gmem_fail(-ENOENT,
				 "hva 0x%" PRIx64 ", 0x%" PRIx64
				 " bytes, is not inside one mapping of the file",
				 start, size);

	return unmap_part(maps, map_of(hva), start, size, spare);
}

int gmem_maps_remove(struct gmem_file_maps *maps, uint64_t hva, uint64_t size)
{
	struct gmem_map *spare;
	int err;

	/* A hole in the middle leaves two mappings; have the second one ready. */
	spare = malloc(sizeof(*spare));
	if (!spare)
		return gmem_fail(-ENOMEM, "no memory to split a mapping");

	gmem_lock_take(&maps->lock);
	err = unmap_locked(maps, hva, size, &spare);
	gmem_lock_drop(&maps->lock);
	free(spare);
	return err;
}

void gmem_maps_clear(struct gmem_file_maps *maps)
{
	struct gmem_range *hva;

	gmem_lock_take(&maps->lock);
	while ((hva = maps->made.root)) {
		gmem_range_remove(&maps->made, hva);
		gmem_sys_munmap((void *)(uintptr_t)hva->start, hva->size);
		free(map_of(hva));
	}
	gmem_lock_drop(&maps->lock);
}

int gmem_maps_find(struct gmem_file_maps *maps, uint64_t hva, uint64_t *ret_offset)
{
	struct gmem_range *range;

	gmem_lock_take(&maps->lock);
	range = gmem_range_find(&maps->made, hva, 1);
	if (!range)
		range = gmem_range_find(&maps->pinned, hva, 1);
	if (range)
		*ret_offset = map_of(range)->offset + (hva - range->start);
	gmem_lock_drop(&maps->lock);

	if (!range)
		return gmem_fail(-ENOENT, "hva 0x%" PRIx64 " is in no mapping of the file", hva);
	return 0;
}

/* ---- regions' own mappings ---- */

int gmem_maps_pin(struct gmem_file_maps *maps, int fd, uint64_t offset, uint64_t size,
		  const struct gmem_place *place, struct gmem_map *map)
{
	return map_range(maps, &maps->pinned, fd, offset, size, place, map);
}

void gmem_maps_move_pin(struct gmem_file_maps *maps, struct gmem_map *from, struct gmem_map *to)
{
	gmem_lock_take(&maps->lock);
	gmem_range_remove(&maps->pinned, &from->hva);
	*to = *from;
	gmem_range_insert(&maps->pinned, &to->hva);
	gmem_lock_drop(&maps->lock);
}

void gmem_maps_split_pin(struct gmem_file_maps *maps, struct gmem_map *map, uint64_t offset,
			 struct gmem_map *upper)
{
	upper->offset = map->offset + offset;
	gmem_lock_take(&maps->lock);
	gmem_range_split(&maps->pinned, &map->hva, offset, &upper->hva);
	gmem_lock_drop(&maps->lock);
}

void gmem_maps_unpin(struct gmem_file_maps *maps, struct gmem_map *map)
{
	gmem_lock_take(&maps->lock);
	gmem_range_remove(&maps->pinned, &map->hva);
	gmem_lock_drop(&maps->lock);
	gmem_sys_munmap((void *)(uintptr_t)map->hva.start, map->hva.size);
}
