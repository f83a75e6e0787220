/* SPDX-License-Identifier: MIT */
#include "region/file_map.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "gmem.h"
#include "base/error.h"
#include "base/limit.h"
#include "base/lock.h"
#include "base/macros.h"
#include "os/sys.h"

/*
 * Which memory is where is a fact about the process, not about a file or a VM: any of
 * them can be asked to map over what another one mapped. So there is one record.
 */
static struct {
	struct gmem_lock lock;		/* rank MAPS */
	struct gmem_range_map maps;	/* every struct gmem_map, by hva */
} record = { .lock = GMEM_LOCK_INIT(GMEM_RANK_MAPS) };

static uint64_t address(const void *hva)
{
	return (uintptr_t)hva;
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

/* How often a place is looked for that other threads take meanwhile */
#define MAX_TRIES 64

/* Find a place by a reservation larger than needed, which is given back. */
static int find_aligned(uint64_t size, const struct gmem_place *place, uint64_t *ret)
{
	uint64_t reserved = size + place->align - gmem_sys_page_size(), start;
	void *area;
	int err;

	if (reserved < size)
		return -ENOMEM;

	err = gmem_sys_mmap(NULL, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
			    -1, 0, &area);
	if (err)
		return err;
	gmem_sys_munmap(area, reserved);

	start = address(area);
	*ret = start + ((place->remainder - start) & (place->align - 1));
	return 0;
}

/*
 * Never over the reservation: where mmap() fails, it can have unmapped what was there, and
 * others map something of theirs into the hole.
 */
static int map_aligned(int fd, uint64_t offset, uint64_t size, int prot, int flags,
		       const struct gmem_place *place, void **ret)
{
	int err = -EEXIST;
	uint64_t hva;

	for (unsigned int i = 0; i < MAX_TRIES && err == -EEXIST; i++) {
		err = find_aligned(size, place, &hva);
		if (!err)
			err = map_where_free(fd, offset, size, prot, flags, (void *)(uintptr_t)hva,
					     ret);
	}
	return err == -EEXIST ? -ENOMEM : err;
}

static int map_at(int fd, uint64_t offset, uint64_t size, int prot, int flags,
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

/* ---- the record, with the lock held ---- */

static struct gmem_map *map_of(struct gmem_range *hva)
{
	return GMEM_CONTAINER_OF(hva, struct gmem_map, hva);
}

/* Returns the lowest mapping that overlaps the range, or NULL. */
static struct gmem_map *find(uint64_t start, uint64_t size)
{
	struct gmem_range *hva = gmem_range_find(&record.maps, start, size);

	return hva ? map_of(hva) : NULL;
}

/* Likewise, but only what belongs to a region or to an import. */
static struct gmem_map *find_pinned(uint64_t start, uint64_t size)
{
	uint64_t last = start + size - 1;
	struct gmem_map *map;

	while ((map = find(start, last - start + 1))) {
		if (map->is_pinned)
			return map;
		if (gmem_range_last(&map->hva) >= last)
			return NULL;
		start = gmem_range_last(&map->hva) + 1;
	}
	return NULL;
}

static void enter(struct gmem_map *map)
{
	gmem_range_insert(&record.maps, &map->hva);
	if (map->is_pinned)
		return;

	map->previous = NULL;
	map->next = map->owner->made;
	if (map->next)
		map->next->previous = map;
	map->owner->made = map;
}

/* Not of a pinned one, which leaves with gmem_range_remove() alone. */
static void strike(struct gmem_map *map)
{
	gmem_range_remove(&record.maps, &map->hva);
	if (map->previous)
		map->previous->next = map->next;
	else
		map->owner->made = map->next;
	if (map->next)
		map->next->previous = map->previous;
}

/*
 * Take out [@start, @start + @size), a part of @map. @spare becomes what is above it;
 * without one, that is forgotten, and stays mapped.
 */
static void take_out(struct gmem_map *map, uint64_t start, uint64_t size, struct gmem_map **spare)
{
	uint64_t before = start - map->hva.start;
	uint64_t after = map->hva.size - before - size;
	struct gmem_map *rest = *spare;

	strike(map);
	if (after && rest) {
		rest->owner = map->owner;
		rest->is_pinned = false;
		rest->offset = map->offset + before + size;
		rest->hva.start = start + size;
		rest->hva.size = after;
		enter(rest);
		*spare = NULL;
	}
	if (before) {
		map->hva.size = before;
		enter(map);
	} else {
		free(map);
	}
}

/* Take the range out of all mappings of users. Only the last can need the spare. */
static void take_out_all(uint64_t start, uint64_t size, struct gmem_map **spare)
{
	uint64_t last = start + size - 1, from, to;
	struct gmem_map *map;

	while ((map = find(start, size))) {
		from = map->hva.start > start ? map->hva.start : start;
		to = gmem_range_last(&map->hva) < last ? gmem_range_last(&map->hva) : last;
		take_out(map, from, to - from + 1, spare);
	}
}

/* ---- mapping ---- */

static int fail_to_map(uint64_t offset, uint64_t size, const struct gmem_place *place, int err)
{
	if (err == -EEXIST)
		return gmem_fail(err, "something is mapped between hva 0x%" PRIx64 " and 0x%" PRIx64,
				 address(place->hva), address(place->hva) + size);
	return gmem_fail_by_limit(err, size, "offset 0x%" PRIx64 ", 0x%" PRIx64
				  " bytes, cannot be mapped", offset, size);
}

static int prot_of(const struct gmem_place *place)
{
	return place->flags & GMEM_MAP_READONLY ? PROT_READ : PROT_READ | PROT_WRITE;
}

/*
 * Kernels unmap what is there before they ask the file, so a file that cannot be mapped
 * must not come that far.
 */
static int check_replace(int fd, uint64_t offset, uint64_t size, const struct gmem_place *place)
{
	uint64_t page = gmem_sys_page_size();
	const struct gmem_map *other = find_pinned(address(place->hva), size);
	void *hva;
	int err;

	if (other)
		return gmem_fail(-EBUSY,
				 "hva 0x%" PRIx64 ", 0x%" PRIx64
				 " bytes, is the memory of a region or of an import",
				 other->hva.start, other->hva.size);

	err = gmem_sys_mmap(NULL, page, prot_of(place), MAP_SHARED, fd, offset, &hva);
	if (err)
		return fail_to_map(offset, size, place, err);

	gmem_sys_munmap(hva, page);
	return 0;
}

/* Whether a failed replacement took away what was there: the kernel takes all or nothing. */
static bool is_gone(const struct gmem_map *map, const struct gmem_place *place)
{
	uint64_t start = map->hva.start > address(place->hva) ? map->hva.start : address(place->hva);
	unsigned char present;

	return gmem_sys_mincore((void *)(uintptr_t)start, gmem_sys_page_size(), &present) == -ENOMEM;
}

static int replace(int fd, uint64_t offset, uint64_t size, const struct gmem_place *place,
		   struct gmem_map **spare, void **ret)
{
	uint64_t start = address(place->hva);
	const struct gmem_map *old;
	int err;

	err = check_replace(fd, offset, size, place);
	if (err)
		return err;

	err = map_at(fd, offset, size, prot_of(place), MAP_SHARED, place, ret);
	old = find(start, size);
	if (old && (!err || is_gone(old, place)))
		take_out_all(start, size, spare);
	return err ? fail_to_map(offset, size, place, err) : 0;
}

/*
 * Nothing was mapped there, so what the record has there is stale: somebody unmapped it
 * without asking. Its owner must not unmap what comes there now.
 */
static void forget_stale(void *hva, uint64_t size, struct gmem_map **spare)
{
	struct gmem_map *map;

	while ((map = find_pinned(address(hva), size))) {
		gmem_range_remove(&record.maps, &map->hva);
		map->is_lost = true;
	}
	take_out_all(address(hva), size, spare);
}

/* Map the file (@fd -1: anonymous memory) at a place that was checked, and fill in @map. */
static int map_locked(int fd, uint64_t offset, uint64_t size, const struct gmem_place *place,
		      struct gmem_map **spare, struct gmem_map *map, void **ret)
{
	int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS | place->mmap_flags : MAP_SHARED;
	void *hva;
	int err;

	if (place->flags & GMEM_MAP_REPLACE) {
		err = replace(fd, offset, size, place, spare, &hva);
	} else {
		err = map_at(fd, offset, size, prot_of(place), flags, place, &hva);
		if (err)
			fail_to_map(offset, size, place, err);
		else
			forget_stale(hva, size, spare);
	}
	if (err)
		return err;

	*ret = hva;
	map->hva.start = address(hva);
	map->hva.size = size;
	map->offset = offset;
	enter(map);
	return 0;
}

static int map_range(int fd, uint64_t offset, uint64_t size, const struct gmem_place *place,
		     struct gmem_map *map, void **ret)
{
	struct gmem_map *spare = NULL;
	int err;

	/* A hole in the middle of a mapping leaves two; have the second one ready. */
	if (place->flags & GMEM_MAP_REPLACE) {
		spare = malloc(sizeof(*spare));
		if (!spare)
			return gmem_fail(-ENOMEM, "no memory to split a mapping");
	}

	gmem_lock_take(&record.lock);
	err = map_locked(fd, offset, size, place, &spare, map, ret);
	gmem_lock_drop(&record.lock);
	free(spare);
	return err;
}

/* ---- mappings of the user ---- */

int gmem_maps_add(struct gmem_file_maps *maps, int fd, uint64_t offset, uint64_t size,
		  const struct gmem_place *place, void **ret_hva)
{
	struct gmem_map *map;
	int err;

	map = malloc(sizeof(*map));
	if (!map)
		return gmem_fail(-ENOMEM, "no memory to remember a mapping");

	map->owner = maps;
	map->is_pinned = false;
	err = map_range(fd, offset, size, place, map, ret_hva);
	if (err)
		free(map);
	return err;
}

static int unmap_locked(const struct gmem_file_maps *maps, uint64_t start, uint64_t size,
			struct gmem_map **spare)
{
	struct gmem_map *map = find_pinned(start, size);
	int err;

	if (map && map->owner == maps)
		return gmem_fail(-EBUSY, "hva 0x%" PRIx64 " is a region's own mapping", start);

	map = find(start, size);
	if (!map || map->owner != maps || start < map->hva.start ||
	    start + size - 1 > gmem_range_last(&map->hva))
		return gmem_fail(-ENOENT,
				 "hva 0x%" PRIx64 ", 0x%" PRIx64
				 " bytes, is not inside one mapping of the file",
				 start, size);

	err = gmem_sys_munmap((void *)(uintptr_t)start, size);
	if (err)
		return gmem_fail(err, "hva 0x%" PRIx64 ", 0x%" PRIx64 " bytes, cannot be unmapped: %s",
				 start, size, gmem_errno_name(err));

	take_out(map, start, size, spare);
	return 0;
}

int gmem_maps_remove(struct gmem_file_maps *maps, uint64_t hva, uint64_t size)
{
	struct gmem_map *spare;
	int err;

	spare = malloc(sizeof(*spare));
	if (!spare)
		return gmem_fail(-ENOMEM, "no memory to split a mapping");

	gmem_lock_take(&record.lock);
	err = unmap_locked(maps, hva, size, &spare);
	gmem_lock_drop(&record.lock);
	free(spare);
	return err;
}

void gmem_maps_clear(struct gmem_file_maps *maps)
{
	struct gmem_map *map;

	gmem_lock_take(&record.lock);
	while ((map = maps->made)) {
		strike(map);
		gmem_sys_munmap((void *)(uintptr_t)map->hva.start, map->hva.size);
		free(map);
	}
	gmem_lock_drop(&record.lock);
}

int gmem_maps_find(const struct gmem_file_maps *maps, uint64_t hva, uint64_t *ret_offset)
{
	const struct gmem_map *map;

	gmem_lock_take(&record.lock);
	map = find(hva, 1);
	if (map && map->owner != maps)
		map = NULL;
	if (map)
		*ret_offset = map->offset + (hva - map->hva.start);
	gmem_lock_drop(&record.lock);

	if (!map)
		return gmem_fail(-ENOENT, "hva 0x%" PRIx64 " is in no mapping of the file", hva);
	return 0;
}

/* ---- mappings of regions and imports ---- */

int gmem_maps_pin(struct gmem_file_maps *maps, int fd, uint64_t offset, uint64_t size,
		  const struct gmem_place *place, struct gmem_map *map)
{
	void *hva;

	map->owner = maps;
	map->is_pinned = true;
	map->is_lost = false;
	return map_range(fd, offset, size, place, map, &hva);
}

void gmem_maps_pin_mapped(void *hva, uint64_t size, struct gmem_map *map)
{
	struct gmem_map *no_spare = NULL;

	*map = (struct gmem_map){
		.hva = { .start = address(hva), .size = size },
		.is_pinned = true,
	};
	gmem_lock_take(&record.lock);
	forget_stale(hva, size, &no_spare);
	enter(map);
	gmem_lock_drop(&record.lock);
}

void gmem_maps_move_pin(struct gmem_map *from, struct gmem_map *to)
{
	gmem_lock_take(&record.lock);
	if (!from->is_lost)
		gmem_range_remove(&record.maps, &from->hva);
	*to = *from;
	if (!to->is_lost)
		gmem_range_insert(&record.maps, &to->hva);
	gmem_lock_drop(&record.lock);
}

void gmem_maps_split_pin(struct gmem_map *map, uint64_t offset, struct gmem_map *upper)
{
	upper->owner = map->owner;
	upper->is_pinned = true;
	upper->offset = map->offset + offset;
	gmem_lock_take(&record.lock);
	upper->is_lost = map->is_lost;
	if (!map->is_lost)
		gmem_range_split(&record.maps, &map->hva, offset, &upper->hva);
	gmem_lock_drop(&record.lock);
}

void gmem_maps_unpin(struct gmem_map *map)
{
	gmem_lock_take(&record.lock);
	if (!map->is_lost) {
		gmem_range_remove(&record.maps, &map->hva);
		gmem_sys_munmap((void *)(uintptr_t)map->hva.start, map->hva.size);
	}
	gmem_lock_drop(&record.lock);
}

int gmem_maps_unpin_some(struct gmem_map *map, uint64_t size)
{
	int ret = 0;

	gmem_lock_take(&record.lock);
	if (!map->is_lost && map->hva.size > size) {
		map->hva.size -= size;
		ret = gmem_sys_munmap((void *)(uintptr_t)(map->hva.start + map->hva.size), size);
		ret = ret ? ret : 1;
	}
	gmem_lock_drop(&record.lock);
	return ret;
}
