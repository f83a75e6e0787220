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
#include "region/host_discard.h"
#include "region/host_mapping.h"

/*
 * Which memory is where is a fact about the process, not about a file or a VM: any of
 * them can be asked to map over what another one mapped. So there is one record.
 */
static struct {
	struct gmem_lock lock;		/* rank MAPS */
	struct gmem_range_map maps;	/* every struct gmem_map, by hva, but */
	struct gmem_range_map over;	/* those that are over one of the user's */
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
	if (place->flags & (GMEM_MAP_REPLACE | GMEM_PLACE_RESERVED))
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

static struct gmem_range_map *record_of(const struct gmem_map *map)
{
	return map->before == GMEM_BEFORE_MADE ? &record.over : &record.maps;
}

/* Likewise, but only what belongs to a region or to an import. */
static struct gmem_map *find_pinned(uint64_t start, uint64_t size)
{
	struct gmem_range *over = gmem_range_find(&record.over, start, size);
	uint64_t last = start + size - 1;
	struct gmem_map *map;

	if (over)
		return map_of(over);
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
	gmem_range_insert(record_of(map), &map->hva);
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
		rest->before = GMEM_BEFORE_NOTHING;
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

static int fail_to_map(int fd, uint64_t offset, uint64_t size, const struct gmem_place *place, int err)
{
	if (err == -EEXIST)
		return gmem_fail(err, "something is mapped between hva 0x%" PRIx64 " and 0x%" PRIx64,
				 address(place->hva), address(place->hva) + size);
	return gmem_fail_to_map(err, size, fd >= 0, "offset 0x%" PRIx64 ", 0x%" PRIx64
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
		return fail_to_map(fd, offset, size, place, err);

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
	return err ? fail_to_map(fd, offset, size, place, err) : 0;
}

/*
 * Nothing was mapped there, so what the record has there is stale: somebody unmapped it
 * without asking. Its owner must not unmap what comes there now.
 */
static void forget_stale(void *hva, uint64_t size, struct gmem_map **spare)
{
	struct gmem_map *map;

	while ((map = find_pinned(address(hva), size))) {
		gmem_range_remove(record_of(map), &map->hva);
		map->is_lost = true;
	}
	take_out_all(address(hva), size, spare);
}

/* ---- space that is kept for a mapping ---- */

/* What is at a place: all of it is of one kind */
struct survey {
	int fd;
	uint64_t offset, start, end;
	uint64_t seen;			/* up to where */
	int err;
	struct gmem_sys_facts facts;	/* of @fd, unless that is -1 */
	enum gmem_map_before before;
	int prot;
};

static bool is_reservation(const struct gmem_host_mapping *mapping)
{
	return mapping->prot == PROT_NONE && !(mapping->flags & (GMEM_MAPPING_FILE | GMEM_MAPPING_SHARED));
}

static bool is_same_part(const struct survey *survey, const struct gmem_host_mapping *mapping)
{
	return survey->fd >= 0 && mapping->flags & GMEM_MAPPING_FILE &&
	       mapping->flags & GMEM_MAPPING_SHARED && mapping->device == survey->facts.device &&
	       mapping->inode == survey->facts.inode &&
	       mapping->offset - mapping->start == survey->offset - survey->start;
}

/* PROT_*, in words */
static const char *protection(const struct gmem_host_mapping *mapping)
{
	switch (mapping->prot & (PROT_READ | PROT_WRITE)) {
	case PROT_READ | PROT_WRITE:
		return "readable and writable";
	case PROT_READ:
		return "only readable";
	case PROT_WRITE:
		return "only writable";
	default:
		return mapping->prot == PROT_NONE ? "without access (PROT_NONE)" : "only executable";
	}
}

static int fail_to_see(const struct survey *survey, const struct gmem_host_mapping *mapping)
{
	if (!mapping || mapping->start > survey->seen)
		return gmem_fail(-EINVAL, "nothing is mapped at hva 0x%" PRIx64 ", so nothing is reserved",
				 survey->seen);
	return gmem_fail(-EEXIST, "hva 0x%" PRIx64 ", 0x%" PRIx64 " bytes, is %s, %s: a region goes "
			 "over a reservation (private, anonymous, PROT_NONE), or over a mapping of the same "
			 "part of its file, and all of it over one", mapping->start,
			 mapping->end - mapping->start, mapping->flags & GMEM_MAPPING_FILE ?
			 "a mapping of a file" : "memory", protection(mapping));
}

/* Ends the walk with 1 if this is neither, or not like what was seen so far. */
static int see(void *data, const struct gmem_host_mapping *mapping)
{
	struct survey *survey = data;
	enum gmem_map_before before;

	before = is_reservation(mapping) ? GMEM_BEFORE_RESERVATION :
		 is_same_part(survey, mapping) ? GMEM_BEFORE_CALLERS : GMEM_BEFORE_NOTHING;
	if (!before || mapping->start > survey->seen ||
	    (survey->before && (before != survey->before || mapping->prot != survey->prot))) {
		survey->err = fail_to_see(survey, mapping);
		return 1;
	}
	survey->before = before;
	survey->prot = mapping->prot;
	survey->seen = mapping->end;
	return 0;
}

/* Find out what is at the place; without /proc nobody can tell, and nothing is assumed. */
static int look(struct survey *survey, const struct gmem_place *place)
{
	int err = survey->fd < 0 ? 0 : gmem_sys_facts(survey->fd, &survey->facts);

	if (err)
		return gmem_fail(err, "fd %d cannot be looked at: %s", survey->fd, gmem_errno_name(err));

	survey->seen = survey->start;
	err = gmem_host_mappings(place->hva, survey->end - survey->start, false, see, survey);
	if (err > 0)
		return survey->err;
	if (gmem_is_about_limit(err))
		return gmem_fail_by_limit(err, 0, "what is mapped at hva 0x%" PRIx64 " cannot be asked",
					  survey->start);
	if (err)
		return gmem_fail(-EOPNOTSUPP, "what is mapped at hva 0x%" PRIx64 " only /proc/self/maps tells: %s",
				 survey->start, gmem_errno_name(err));
	return survey->seen < survey->end ? fail_to_see(survey, NULL) : 0;
}

/* Also for what is under the mapping in the record: that must go on beneath it. */
static int check_reserved(const struct gmem_file_maps *maps, int fd, uint64_t offset, uint64_t size,
			  const struct gmem_place *place, struct gmem_map *map)
{
	struct survey survey = {
		.fd = fd, .offset = offset, .start = address(place->hva), .end = address(place->hva) + size,
	};
	const struct gmem_map *other = find_pinned(survey.start, size);
	int err;

	if (other)
		return gmem_fail(-EEXIST, "hva 0x%" PRIx64 ", 0x%" PRIx64
				 " bytes, is the memory of a region or of an import", other->hva.start,
				 other->hva.size);
	err = look(&survey, place);
	if (err)
		return err;

	other = find(survey.start, size);
	map->before = survey.before;
	map->prot = survey.prot;
	map->fd = fd;
	if (!other || survey.before != GMEM_BEFORE_CALLERS || other->owner != maps)
		return 0;

	map->before = GMEM_BEFORE_MADE;
	if (other->hva.start > survey.start || gmem_range_last(&other->hva) < survey.end - 1)
		return gmem_fail(-EEXIST, "hva 0x%" PRIx64 ", 0x%" PRIx64 " bytes, is more than one mapping of "
				 "gmem_file_map()", survey.start, size);
	return 0;
}

/* The mapping of the user's that is under @map; NULL: he has freed the file. */
static bool has_made(const struct gmem_map *map)
{
	const struct gmem_map *made = find(map->hva.start, map->hva.size);

	return made && made->owner == map->owner && made->hva.start <= map->hva.start &&
	       gmem_range_last(&made->hva) >= gmem_range_last(&map->hva);
}

/* Map what was there; @flags: MAP_FIXED where @map is, or MAP_FIXED_NOREPLACE where nothing is. */
static int map_before(const struct gmem_map *map, int flags)
{
	const int reserves = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	bool is_file = map->before != GMEM_BEFORE_RESERVATION;
	void *hva;
	int err;

	err = gmem_sys_mmap((void *)(uintptr_t)map->hva.start, map->hva.size, map->prot,
			    flags | (is_file ? MAP_SHARED : reserves), is_file ? map->fd : -1,
			    is_file ? map->offset : 0, &hva);
	if (!err && address(hva) != map->hva.start)
		gmem_sys_munmap(hva, map->hva.size);
	return err;
}

/*
 * If the kernel refuses, as for a mapping in the middle of another one when there are too many,
 * the memory goes all the same, and its place stays taken: it may be the user's.
 */
static int unmap(const struct gmem_map *map)
{
	bool comes_back = map->before && (map->before != GMEM_BEFORE_MADE || has_made(map));
	void *hva = (void *)(uintptr_t)map->hva.start;
	int err;

	err = comes_back ? map_before(map, MAP_FIXED) : gmem_sys_munmap(hva, map->hva.size);
	if (err)
		gmem_host_drop(map->hva.start, map->hva.size);
	return err;
}

/*
 * The kernel can unmap what is there before it finds a reason to fail: so let it look for one
 * elsewhere before, for huge pages in the size that is needed, and put back what goes all the same.
 */
static int map_over(int fd, uint64_t offset, uint64_t size, int prot, int flags,
		    const struct gmem_place *place, struct gmem_map *map)
{
	const uint64_t tried = place->is_huge ? size : gmem_sys_page_size();
	unsigned char present;
	void *hva;
	int err;

	map->hva.start = address(place->hva);
	map->hva.size = size;
	map->offset = offset;
	err = gmem_sys_mmap(NULL, tried, prot, flags, fd, offset, &hva);
	if (err)
		return err;
	gmem_sys_munmap(hva, tried);

	err = map_at(fd, offset, size, prot, flags, place, &hva);
	if (err && gmem_sys_mincore(place->hva, gmem_sys_page_size(), &present) == -ENOMEM)
		map_before(map, MAP_FIXED_NOREPLACE);
	return err;
}

/* Put a pinned mapping over space that is kept for it. */
static int reserve(int fd, uint64_t offset, uint64_t size, int flags, const struct gmem_place *place,
		   struct gmem_map **spare, struct gmem_map *map, void **ret)
{
	int err = check_reserved(map->owner, fd, offset, size, place, map);

	if (err)
		return err;
	err = map_over(fd, offset, size, prot_of(place), flags, place, map);
	if (err)
		return fail_to_map(fd, offset, size, place, err);

	/* What else the record has there is stale. */
	if (map->before != GMEM_BEFORE_MADE)
		take_out_all(address(place->hva), size, spare);
	*ret = place->hva;
	return 0;
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
	} else if (place->flags & GMEM_PLACE_RESERVED) {
		err = reserve(fd, offset, size, flags, place, spare, map, &hva);
	} else {
		err = map_at(fd, offset, size, prot_of(place), flags, place, &hva);
		if (err)
			fail_to_map(fd, offset, size, place, err);
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

	__atomic_store_n(&maps->had_any, true, __ATOMIC_RELAXED);
	map->owner = maps;
	map->is_pinned = false;
	map->before = GMEM_BEFORE_NOTHING;
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

/* Not what a region has put over it */
static void unmap_beside(uint64_t start, uint64_t last)
{
	const struct gmem_range *over;

	while ((over = gmem_range_find(&record.over, start, last - start + 1))) {
		if (over->start > start)
			gmem_sys_munmap((void *)(uintptr_t)start, over->start - start);
		if (gmem_range_last(over) >= last)
			return;
		start = gmem_range_last(over) + 1;
	}
	gmem_sys_munmap((void *)(uintptr_t)start, last - start + 1);
}

void gmem_maps_clear(struct gmem_file_maps *maps)
{
	struct gmem_map *map;

	/* Others than the file's users do not ask for one. */
	if (!__atomic_load_n(&maps->had_any, __ATOMIC_RELAXED))
		return;
	gmem_lock_take(&record.lock);
	while ((map = maps->made)) {
		strike(map);
		unmap_beside(map->hva.start, gmem_range_last(&map->hva));
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
	map->before = GMEM_BEFORE_NOTHING;
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
		gmem_range_remove(record_of(from), &from->hva);
	*to = *from;
	if (!to->is_lost)
		gmem_range_insert(record_of(to), &to->hva);
	gmem_lock_drop(&record.lock);
}

void gmem_maps_split_pin(struct gmem_map *map, uint64_t offset, struct gmem_map *upper)
{
	upper->owner = map->owner;
	upper->is_pinned = true;
	upper->offset = map->offset + offset;
	gmem_lock_take(&record.lock);
	upper->is_lost = map->is_lost;
	upper->before = map->before;
	upper->fd = map->fd;
	upper->prot = map->prot;
	if (!map->is_lost)
		gmem_range_split(record_of(map), &map->hva, offset, &upper->hva);
	gmem_lock_drop(&record.lock);
}

int gmem_maps_unpin(struct gmem_map *map)
{
	int err = 0;

	gmem_lock_take(&record.lock);
	if (!map->is_lost) {
		gmem_range_remove(record_of(map), &map->hva);
		map->is_lost = true;
		err = unmap(map);
	}
	gmem_lock_drop(&record.lock);
	return err;
}

int gmem_maps_unpin_failed(struct gmem_map *map, int err)
{
	struct gmem_failure failure;
	int refused;

	gmem_failure_keep(&failure, err);
	refused = gmem_maps_unpin(map);
	if (refused)
		gmem_fail(err, "%.300s; and hva 0x%" PRIx64 ", 0x%" PRIx64 " bytes, stays mapped: %s",
			  failure.sentence, map->hva.start, map->hva.size, gmem_errno_name(refused));
	return err;
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
