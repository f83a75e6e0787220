/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "internal.h"

/* Statfs type of all anonymous inodes, a guest_memfd's too before Linux 6.19 */
#define ANON_INODE_MAGIC 0x09041934

/* Small enough to notice signals, large enough that the call's cost does not show */
#define CHUNK (UINT64_C(64) << 20)

/* Signals in a row, without one page of progress between them, that are enough */
#define MOST_INTERRUPTIONS 1000

static uint64_t address(const void *hva)
{
	return (uintptr_t)hva;
}

/* ---- create, adopt, free ---- */

static struct gmem_file *new_file(int vm_fd, int gmemfd, uint64_t size, uint64_t create_flags)
{
	struct gmem_file *file = malloc(sizeof(*file));

	if (!file) {
		gmem_fail(-ENOMEM, "no memory for a file handle");
		return NULL;
	}

	*file = (struct gmem_file){
		.lock = PTHREAD_MUTEX_INITIALIZER,
		.fd = gmemfd,
		.vm_fd = vm_fd,
		.users = 1,
		.size = size,
		.create_flags = create_flags,
	};
	return file;
}

static void free_file(struct gmem_file *file)
{
	pthread_mutex_destroy(&file->lock);
	free(file);
}

static int create(int vm_fd, uint64_t size, uint64_t flags)
{
	int fd, err;

	fd = gmem_kvm_create_gmemfd(vm_fd, size, flags);
	if (fd < 0)
		return gmem_fail(fd,
				 "VM fd %d refuses a guest_memfd of 0x%" PRIx64
				 " bytes with create flags 0x%" PRIx64 ": %s",
				 vm_fd, size, flags, gmem_errno_name(fd));

	err = gmem_sys_set_cloexec(fd);
	if (err) {
		gmem_sys_close(fd);
		return gmem_fail(err, "close-on-exec cannot be set on fd %d: %s", fd,
				 gmem_errno_name(err));
	}
	return fd;
}

GMEM_API int gmem_file_new_raw(int vm_fd, uint64_t size, uint64_t flags, struct gmem_file **ret)
{
	struct gmem_file *file;
	int err;

	if (!ret)
		return gmem_fail(-EINVAL, "no place for the file: ret is NULL");

	err = gmem_check_range_within("offset", 0, size, INT64_MAX, "the largest file");
	if (err)
		return err;

	file = new_file(vm_fd, -1, size, flags);
	if (!file)
		return -ENOMEM;

	file->fd = create(vm_fd, size, flags);
	if (file->fd < 0) {
		err = file->fd;
		free_file(file);
		return err;
	}

	*ret = file;
	return 0;
}

GMEM_API int gmem_file_new(int vm_fd, uint64_t size, const struct gmem_plan *plan,
			   struct gmem_file **ret)
{
	if (!plan)
		return gmem_fail(-EINVAL, "plan is NULL");

	if (plan->backing == GMEM_BACKING_HOST)
		return gmem_fail(-EINVAL, "the plan says \"%s\": it has no guest_memfd to create",
				 gmem_backing_name(plan->backing));

	return gmem_file_new_raw(vm_fd, size, plan->create_flags, ret);
}

static int check_is_gmemfd(int fd)
{
	uint64_t type;
	char link[64];
	int err;

	err = gmem_sys_filesystem_type(fd, &type);
	if (err)
		return gmem_fail(err, "fd %d cannot be looked at: %s", fd, gmem_errno_name(err));

	if (type == GUEST_MEMFD_MAGIC)
		return 0;

	/* Before Linux 6.19 only the name tells. */
	if (type == ANON_INODE_MAGIC && gmem_sys_fd_link(fd, link, sizeof(link)) > 0 &&
	    strcmp(link, "anon_inode:[kvm-gmem]") == 0)
		return 0;

	return gmem_fail(-EINVAL, "fd %d is not a guest_memfd (file system type 0x%" PRIx64 ")", fd,
			 type);
}

/* Binding its first or last page tells whose file it is. */
static int check_is_of_vm(int vm_fd, int gmemfd, uint64_t size)
{
	struct gmem_scratch scratch;
	int err;

	err = gmem_scratch_open(&scratch, vm_fd);
	if (err)
		return gmem_fail(err, "VM fd %d has no spare memslot to check fd %d with: %s",
				 vm_fd, gmemfd, gmem_errno_name(err));

	err = gmem_scratch_try_gmemfd(&scratch, gmemfd, 0);
	if (err == -EINVAL)
		err = gmem_scratch_try_gmemfd(&scratch, gmemfd, size - scratch.page);
	gmem_scratch_close(&scratch);

	/* From Linux 7.2 on this says: that page is bound already, so it is ours. */
	if (!err || err == -EEXIST)
		return 0;

	if (err == -EINVAL)
		return gmem_fail(-EXDEV,
				 "the guest_memfd fd %d belongs to another VM than fd %d, "
				 "or is bound wholly already", gmemfd, vm_fd);
	return gmem_fail(err, "VM fd %d refuses a memslot to check fd %d with: %s", vm_fd, gmemfd,
			 gmem_errno_name(err));
}

static int find_create_flags(int fd, uint64_t *ret)
{
	uint64_t page = gmem_sys_page_size();
	void *hva;
	int err;

	*ret = 0;
	err = gmem_sys_mmap(NULL, page, PROT_READ, MAP_SHARED, fd, 0, &hva);
	if (err == -ENODEV)
		return 0;
	if (err)
		return gmem_fail(err, "fd %d cannot be mapped to find its create flags: %s", fd,
				 gmem_errno_name(err));

	*ret = GMEM_CREATE_MMAP;
	err = gmem_sys_madvise(hva, page, MADV_POPULATE_READ);
	if (!err)
		*ret |= GMEM_CREATE_INIT_SHARED;
	gmem_sys_munmap(hva, page);
	if (err && err != -EFAULT)
		return gmem_fail(err, "fd %d cannot be read to find its create flags: %s", fd,
				 gmem_errno_name(err));
	return 0;
}

static int inspect(int vm_fd, int gmemfd, const struct gmem_adopt_opts *opts,
		   uint64_t *ret_size, uint64_t *ret_flags)
{
	int err;

	err = check_is_gmemfd(gmemfd);
	if (err)
		return err;

	err = gmem_sys_file_size(gmemfd, ret_size);
	if (err)
		return gmem_fail(err, "the size of fd %d cannot be had: %s", gmemfd,
				 gmem_errno_name(err));

	if (vm_fd != GMEM_NO_VM) {
		err = check_is_of_vm(vm_fd, gmemfd, *ret_size);
		if (err)
			return err;
	}

	*ret_flags = opts->create_flags;
	if (opts->flags & GMEM_ADOPT_CREATE_FLAGS)
		return 0;
	return find_create_flags(gmemfd, ret_flags);
}

GMEM_API int gmem_file_adopt(int vm_fd, int gmemfd, const struct gmem_adopt_opts *user_opts,
			     struct gmem_file **ret)
{
	struct gmem_adopt_opts opts;
	struct gmem_file *file;
	uint64_t size = 0, flags = 0;
	int err, fd;

	if (!ret)
		return gmem_fail(-EINVAL, "no place for the file: ret is NULL");

	err = GMEM_IMPORT(gmem_adopt_opts, &opts, user_opts, create_flags);
	if (!err)
		err = gmem_check_flags("flags", opts.flags, GMEM_ADOPT_CREATE_FLAGS);
	if (!err)
		err = inspect(vm_fd, gmemfd, &opts, &size, &flags);
	if (err)
		return err;

	file = new_file(vm_fd, -1, size, flags);
	if (!file)
		return -ENOMEM;

	fd = gmem_sys_dup(gmemfd);
	if (fd < 0) {
		free_file(file);
		return gmem_fail(fd, "fd %d cannot be duplicated: %s", gmemfd, gmem_errno_name(fd));
	}

	file->fd = fd;
	*ret = file;
	return 0;
}

static struct gmem_map *map_of(struct gmem_range *hva)
{
	return GMEM_CONTAINER_OF(hva, struct gmem_map, hva);
}

static void unmap_all(struct gmem_file *file)
{
	struct gmem_range *hva;

	pthread_mutex_lock(&file->lock);
	while ((hva = file->maps.root)) {
		gmem_range_remove(&file->maps, hva);
		gmem_sys_munmap((void *)(uintptr_t)hva->start, hva->size);
		free(map_of(hva));
	}
	pthread_mutex_unlock(&file->lock);
}

void gmem_file_hold(struct gmem_file *file)
{
	__atomic_add_fetch(&file->users, 1, __ATOMIC_RELAXED);
}

void gmem_file_release(struct gmem_file *file)
{
	/* Pairs with itself: whoever is last sees what the others did. */
	if (__atomic_sub_fetch(&file->users, 1, __ATOMIC_ACQ_REL))
		return;

	/* Of a region's own file, mapped by someone who had it from the region */
	unmap_all(file);
	gmem_sys_close(file->fd);
	free_file(file);
}

GMEM_API void gmem_file_free(struct gmem_file *file)
{
	if (!file)
		return;

	unmap_all(file);
	gmem_file_release(file);
}

GMEM_API int gmem_file_fd(const struct gmem_file *file)
{
	return file ? file->fd : gmem_fail(-EINVAL, "file is NULL");
}

GMEM_API uint64_t gmem_file_size(const struct gmem_file *file)
{
	return file ? file->size : 0;
}

GMEM_API uint64_t gmem_file_create_flags(const struct gmem_file *file)
{
	return file ? file->create_flags : 0;
}

/* ---- mappings ---- */

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

static int check_place(const struct gmem_map_opts *opts, uint64_t size)
{
	const uint64_t at_hva = GMEM_MAP_FIXED | GMEM_MAP_REPLACE;
	int err;

	err = gmem_check_flags("flags", opts->flags, GMEM_MAP_READONLY | at_hva);
	if (!err)
		err = gmem_check_alignment(opts->align);
	if (err || !(opts->flags & at_hva))
		return err;

	if ((opts->flags & at_hva) == at_hva)
		return gmem_fail(-EINVAL, "a mapping cannot both replace and spare what is there");
	if (opts->align)
		return gmem_fail(-EINVAL, "an alignment, 0x%" PRIx64 ", and an address exclude each other",
				 opts->align);
	if (!opts->hva)
		return gmem_fail(-EINVAL, "nothing can be mapped at address NULL");
	return gmem_check_range("hva", address(opts->hva), size);
}

static int check_file_range(const struct gmem_file *file, uint64_t offset, uint64_t size)
{
	if (!file)
		return gmem_fail(-EINVAL, "file is NULL");
	return gmem_check_range_within("offset", offset, size, file->size, "the end of the file");
}

static int fail_to_map(const struct gmem_file *file, uint64_t offset, uint64_t size,
		       const struct gmem_place *place, int err)
{
	if (err == -ENODEV)
		return gmem_fail(err,
				 "the file was created without MMAP (create flags 0x%" PRIx64
				 "): the host cannot map it", file->create_flags);
	if (err == -EEXIST)
		return gmem_fail(err, "something is mapped between hva 0x%" PRIx64 " and 0x%" PRIx64,
				 address(place->hva), address(place->hva) + size);
	return gmem_fail(err, "offset 0x%" PRIx64 ", 0x%" PRIx64 " bytes, cannot be mapped: %s",
			 offset, size, gmem_errno_name(err));
}

/* Map at a place that was checked and enter it into @map; the caller holds the lock. */
static int map_locked(struct gmem_file *file, uint64_t offset, uint64_t size,
		      const struct gmem_place *place, struct gmem_map *map)
{
	int prot = place->flags & GMEM_MAP_READONLY ? PROT_READ : PROT_READ | PROT_WRITE;
	const struct gmem_range *other = NULL;
	void *hva;
	int err;

	if (place->flags & GMEM_MAP_REPLACE) {
		other = gmem_range_find(&file->maps, address(place->hva), size);
		if (!other)
			other = gmem_range_find(&file->pinned, address(place->hva), size);
	}
	if (other)
		return gmem_fail(-EEXIST,
				 "the file is mapped at hva 0x%" PRIx64 ", 0x%" PRIx64 " bytes, already",
				 other->start, other->size);

	err = gmem_map_at(file->fd, offset, size, prot, MAP_SHARED, place, &hva);
	if (err)
		return fail_to_map(file, offset, size, place, err);

	map->hva.start = address(hva);
	map->hva.size = size;
	map->offset = offset;
	return 0;
}

static int map_range(struct gmem_file *file, struct gmem_range_map *maps, uint64_t offset,
		     uint64_t size, const struct gmem_place *place, struct gmem_map *map)
{
	int err;

	pthread_mutex_lock(&file->lock);
	err = map_locked(file, offset, size, place, map);
	if (!err)
		gmem_range_insert(maps, &map->hva);
	pthread_mutex_unlock(&file->lock);
	return err;
}

GMEM_API int gmem_file_map(struct gmem_file *file, uint64_t offset, uint64_t size,
			   const struct gmem_map_opts *user_opts, void **ret_hva)
{
	struct gmem_map_opts opts;
	struct gmem_place place;
	struct gmem_map *map;
	int err;

	if (!ret_hva)
		return gmem_fail(-EINVAL, "no place for the address: ret_hva is NULL");

	err = check_file_range(file, offset, size);
	if (!err)
		err = GMEM_IMPORT(gmem_map_opts, &opts, user_opts, align);
	if (!err)
		err = check_place(&opts, size);
	if (err)
		return err;

	map = malloc(sizeof(*map));
	if (!map)
		return gmem_fail(-ENOMEM, "no memory to remember a mapping");

	place = (struct gmem_place){ .flags = opts.flags, .hva = opts.hva, .align = opts.align };
	err = map_range(file, &file->maps, offset, size, &place, map);
	if (err) {
		free(map);
		return err;
	}

	*ret_hva = (void *)(uintptr_t)map->hva.start;
	return 0;
}

/* Unmap [start, start + size) of @map, which holds all of it; @spare may become the rest. */
static int unmap_part(struct gmem_file *file, struct gmem_map *map, uint64_t start, uint64_t size,
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

	gmem_range_remove(&file->maps, &map->hva);
	if (after) {
		rest->hva.start = start + size;
		rest->hva.size = after;
		rest->offset = map->offset + before + size;
		gmem_range_insert(&file->maps, &rest->hva);
		*spare = NULL;
	}
	if (before) {
		map->hva.size = before;
		gmem_range_insert(&file->maps, &map->hva);
	} else {
		free(map);
	}
	return 0;
}

static int unmap_locked(struct gmem_file *file, uint64_t start, uint64_t size,
			struct gmem_map **spare)
{
	struct gmem_range *hva;

	if (gmem_range_find(&file->pinned, start, size))
		return gmem_fail(-EBUSY, "hva 0x%" PRIx64 " is a region's own mapping", start);

	hva = gmem_range_find(&file->maps, start, size);
	if (!hva || start < hva->start || start + size - 1 > hva->start + hva->size - 1)
		return gmem_fail(-ENOENT,
				 "hva 0x%" PRIx64 ", 0x%" PRIx64
				 " bytes, is not inside one mapping of the file",
				 start, size);

	return unmap_part(file, map_of(hva), start, size, spare);
}

GMEM_API int gmem_file_unmap(struct gmem_file *file, void *hva, uint64_t size)
{
	struct gmem_map *spare;
	int err;

	if (!file)
		return gmem_fail(-EINVAL, "file is NULL");

	err = gmem_check_range("hva", address(hva), size);
	if (err)
		return err;

	/* A hole in the middle leaves two mappings; have the second one ready. */
	spare = malloc(sizeof(*spare));
	if (!spare)
		return gmem_fail(-ENOMEM, "no memory to split a mapping");

	pthread_mutex_lock(&file->lock);
	err = unmap_locked(file, address(hva), size, &spare);
	pthread_mutex_unlock(&file->lock);
	free(spare);
	return err;
}

GMEM_API int gmem_file_find_hva(struct gmem_file *file, const void *hva, uint64_t *ret_offset)
{
	struct gmem_range *range;

	if (!file || !ret_offset)
		return gmem_fail(-EINVAL, "%s is NULL", file ? "ret_offset" : "file");

	pthread_mutex_lock(&file->lock);
	range = gmem_range_find(&file->maps, address(hva), 1);
	if (!range)
		range = gmem_range_find(&file->pinned, address(hva), 1);
	if (range)
		*ret_offset = map_of(range)->offset + (address(hva) - range->start);
	pthread_mutex_unlock(&file->lock);

	if (!range)
		return gmem_fail(-ENOENT, "hva 0x%" PRIx64 " is in no mapping of the file",
				 address(hva));
	return 0;
}

/* ---- allocate and punch ---- */

static int fallocate_in_chunks(int fd, int mode, uint64_t offset, uint64_t size, uint64_t *done)
{
	uint64_t page = gmem_sys_page_size(), chunk = CHUNK;
	int interruptions = 0, err;

	while (*done < size) {
		uint64_t now = size - *done < chunk ? size - *done : chunk;

		err = gmem_sys_fallocate(fd, mode, offset + *done, now);
		if (!err) {
			*done += now;
			interruptions = 0;
			continue;
		}

		/* Pages had so far stay; smaller steps get through between the signals. */
		if (err != -EINTR || ++interruptions > MOST_INTERRUPTIONS)
			return err;
		if (chunk > page)
			chunk = chunk / 2 > page ? chunk / 2 : page;
	}
	return 0;
}

static int change_pages(struct gmem_file *file, int mode, const char *verb, uint64_t offset,
			uint64_t size, uint64_t *ret_done)
{
	uint64_t done = 0;
	int err;

	if (ret_done)
		*ret_done = 0;

	err = check_file_range(file, offset, size);
	if (err)
		return err;

	err = fallocate_in_chunks(file->fd, mode, offset, size, &done);
	if (ret_done)
		*ret_done = done;
	if (err)
		return gmem_fail(err,
				 "%s offset 0x%" PRIx64 ", 0x%" PRIx64 " bytes, stopped after 0x%" PRIx64
				 ": %s", verb, offset, size, done, gmem_errno_name(err));
	return 0;
}

GMEM_API int gmem_file_allocate(struct gmem_file *file, uint64_t offset, uint64_t size,
				uint64_t *ret_done)
{
	return change_pages(file, FALLOC_FL_KEEP_SIZE, "allocating", offset, size, ret_done);
}

GMEM_API int gmem_file_punch(struct gmem_file *file, uint64_t offset, uint64_t size,
			     uint64_t *ret_done)
{
	return change_pages(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, "punching", offset,
			    size, ret_done);
}

/* ---- for regions ---- */

int gmem_file_check_vm(const struct gmem_file *file, int vm_fd)
{
	/* The fd it was made with, so no need to try; another may be a duplicate. */
	return file->vm_fd == vm_fd ? 0 : check_is_of_vm(vm_fd, file->fd, file->size);
}

int gmem_file_pin(struct gmem_file *file, uint64_t offset, uint64_t size,
		  const struct gmem_place *place, struct gmem_map *map)
{
	return map_range(file, &file->pinned, offset, size, place, map);
}

void gmem_file_split_pin(struct gmem_file *file, struct gmem_map *map, uint64_t offset,
			 struct gmem_map *upper)
{
	upper->offset = map->offset + offset;
	pthread_mutex_lock(&file->lock);
	gmem_range_split(&file->pinned, &map->hva, offset, &upper->hva);
	pthread_mutex_unlock(&file->lock);
}

void gmem_file_join_pin(struct gmem_file *file, struct gmem_map *map, struct gmem_map *upper)
{
	pthread_mutex_lock(&file->lock);
	gmem_range_join(&file->pinned, &map->hva, &upper->hva);
	pthread_mutex_unlock(&file->lock);
}

void gmem_file_unpin(struct gmem_file *file, struct gmem_map *map)
{
	pthread_mutex_lock(&file->lock);
	gmem_range_remove(&file->pinned, &map->hva);
	pthread_mutex_unlock(&file->lock);
	gmem_sys_munmap((void *)(uintptr_t)map->hva.start, map->hva.size);
}

int gmem_file_bind(struct gmem_file *file, struct gmem_range *range)
{
	const struct gmem_range *other;
	int err = 0;

	pthread_mutex_lock(&file->lock);
	other = gmem_range_find(&file->bound, range->start, range->size);
	if (other)
		err = gmem_fail(-EEXIST,
				"offset 0x%" PRIx64 ", 0x%" PRIx64
				" bytes: 0x%" PRIx64 ", 0x%" PRIx64
				" bytes of the file, is bound already",
				range->start, range->size, other->start, other->size);
	else
		gmem_range_insert(&file->bound, range);
	pthread_mutex_unlock(&file->lock);
	return err;
}

void gmem_file_unbind(struct gmem_file *file, struct gmem_range *range)
{
	pthread_mutex_lock(&file->lock);
	gmem_range_remove(&file->bound, range);
	pthread_mutex_unlock(&file->lock);
}

void gmem_file_split_bound(struct gmem_file *file, struct gmem_range *range, uint64_t offset,
			   struct gmem_range *upper)
{
	pthread_mutex_lock(&file->lock);
	gmem_range_split(&file->bound, range, offset, upper);
	pthread_mutex_unlock(&file->lock);
}

void gmem_file_join_bound(struct gmem_file *file, struct gmem_range *range,
			  struct gmem_range *upper)
{
	pthread_mutex_lock(&file->lock);
	gmem_range_join(&file->bound, range, upper);
	pthread_mutex_unlock(&file->lock);
}
