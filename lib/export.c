/* SPDX-License-Identifier: MIT */
/* What of a VM's memory other processes could map, and as which part of which file */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/epoll.h>

#include "internal.h"

/* Memory of the caller's, and the file it is a mapping of */
struct memory {
	struct gmem_range hva;
	uint64_t offset;
	int fd;
};

/* ---- the export ---- */

static int open_fds(struct gmem_export *exporter)
{
	int err;

	exporter->event = gmem_sys_event_new();
	if (exporter->event < 0)
		return gmem_fail(exporter->event, "no event fd: %s", gmem_errno_name(exporter->event));

	err = exporter->epoll = gmem_sys_epoll_new();
	if (err < 0)
		goto close_event;
	err = gmem_sys_epoll_watch(exporter->epoll, exporter->event, EPOLLIN, true);
	if (err)
		goto close_epoll;
	return 0;

close_epoll:
	gmem_sys_close(exporter->epoll);
close_event:
	gmem_sys_close(exporter->event);
	return gmem_fail(err, "no epoll fd: %s", gmem_errno_name(err));
}

static void close_fds(struct gmem_export *exporter)
{
	gmem_sys_close(exporter->epoll);
	gmem_sys_close(exporter->event);
}

/* What was private before we were there */
static int note_private(struct gmem_export *exporter)
{
	struct gmem_range *spare = NULL;
	struct gmem_part part;
	uint64_t from = 0;
	int err = 0;

	while (gmem_set_next(&exporter->vm->privates, true, from, UINT64_MAX, &part)) {
		err = gmem_set_spare(&spare);
		if (err)
			break;
		gmem_set_add(&exporter->withheld, part.start, part.last - part.start + 1, &spare);
		from = part.last + 1;
		if (!from)
			break;
	}
	free(spare);
	return err;
}

/* Listening first: what changes meanwhile is heard, whichever comes first. */
static int listen(struct gmem_export *exporter)
{
	GMEM_OPTS(gmem_listener_opts, opts, .name = "export", .data = exporter,
		  .before_private = gmem_peers_revoke, .undo_private = gmem_peers_grant,
		  .after_shared = gmem_peers_grant, .removed = gmem_peers_forget);
	int err;

	err = gmem_listener_new(exporter->vm, &opts, &exporter->listener);
	if (err)
		return err;

	pthread_mutex_lock(&exporter->lock);
	pthread_mutex_lock(&exporter->vm->lock);
	err = note_private(exporter);
	pthread_mutex_unlock(&exporter->vm->lock);
	pthread_mutex_unlock(&exporter->lock);
	if (err) {
		gmem_listener_free(exporter->listener);
		return gmem_fail(err, "no memory for what is private");
	}
	return 0;
}

GMEM_API int gmem_export_new(struct gmem_vm *vm, const struct gmem_export_opts *user_opts,
			     struct gmem_export **ret)
{
	struct gmem_export_opts opts;
	struct gmem_export *exporter;
	int err;

	if (!vm || !ret)
		return gmem_fail(-EINVAL, "%s is NULL", vm ? "ret" : "vm");

	err = GMEM_IMPORT(gmem_export_opts, &opts, user_opts, flags);
	if (!err)
		err = gmem_check_flags("flags", opts.flags, GMEM_EXPORT_SKIP | GMEM_EXPORT_UNSEALED);
	if (err)
		return err;

	exporter = calloc(1, sizeof(*exporter));
	if (!exporter)
		return gmem_fail(-ENOMEM, "no memory for an export");

	err = open_fds(exporter);
	if (err) {
		free(exporter);
		return err;
	}

	pthread_mutex_init(&exporter->lock, NULL);
	exporter->vm = vm;
	exporter->flags = opts.flags;
	exporter->watch.before = gmem_peers_before;
	exporter->watch.after = gmem_peers_after;
	err = listen(exporter);
	if (err)
		goto close_fds;

	gmem_vm_watch(vm, &exporter->watch);
	*ret = exporter;
	return 0;

close_fds:
	gmem_set_clear(&exporter->withheld);
	pthread_mutex_destroy(&exporter->lock);
	close_fds(exporter);
	free(exporter);
	return err;
}

static void free_memory(struct gmem_export *exporter, struct memory *memory)
{
	gmem_range_remove(&exporter->memory, &memory->hva);
	gmem_sys_close(memory->fd);
	free(memory);
}

GMEM_API void gmem_export_free(struct gmem_export *exporter)
{
	struct gmem_range *range;

	if (!exporter)
		return;

	gmem_listener_free(exporter->listener);
	gmem_vm_unwatch(exporter->vm, &exporter->watch);
	while (exporter->peers)
		gmem_peer_remove(exporter->peers);
	close_fds(exporter);
	gmem_set_clear(&exporter->withheld);
	while ((range = exporter->memory.root))
		free_memory(exporter, GMEM_CONTAINER_OF(range, struct memory, hva));
	pthread_mutex_destroy(&exporter->lock);
	free(exporter);
}

/* ---- memory of the caller's ---- */

static int check_memory(const struct gmem_export *exporter, const void *hva, uint64_t size, int fd,
			uint64_t offset)
{
	struct gmem_extent_file file;
	int err;

	err = gmem_check_range("hva", (uintptr_t)hva, size);
	if (!err)
		err = gmem_check_range("offset", offset, size);
	if (!err)
		err = gmem_extent_inspect(fd, offset, size, &file);
	if (err)
		return err;

	if (file.is_gmemfd)
		return gmem_fail(-EINVAL, "fd %d is a guest_memfd, which regions know by themselves", fd);
	if (file.can_shrink && !(exporter->flags & GMEM_EXPORT_UNSEALED))
		return gmem_fail(-EPERM, "fd %d can shrink under its users: seal it with F_SEAL_SHRINK",
				 fd);
	return 0;
}

static int enter_memory(struct gmem_export *exporter, struct memory *memory)
{
	const struct gmem_range *other;

	other = gmem_range_find(&exporter->memory, memory->hva.start, memory->hva.size);
	if (other)
		return gmem_fail(-EEXIST, "the memory at hva 0x%" PRIx64 ", 0x%" PRIx64
				 " bytes, was named already", other->start, other->size);

	gmem_range_insert(&exporter->memory, &memory->hva);
	return 0;
}

GMEM_API int gmem_export_add_memory(struct gmem_export *exporter, void *hva, uint64_t size, int fd,
				    uint64_t offset)
{
	struct memory *memory;
	int err;

	if (!exporter || !hva)
		return gmem_fail(-EINVAL, "%s is NULL", exporter ? "hva" : "exporter");
	err = check_memory(exporter, hva, size, fd, offset);
	if (err)
		return err;

	memory = malloc(sizeof(*memory));
	if (!memory)
		return gmem_fail(-ENOMEM, "no memory for memory to export");
	*memory = (struct memory){
		.hva = { .start = (uintptr_t)hva, .size = size },
		.offset = offset,
		.fd = gmem_sys_dup(fd),
	};
	if (memory->fd < 0) {
		err = gmem_fail(memory->fd, "fd %d cannot be duplicated: %s", fd,
				gmem_errno_name(memory->fd));
		goto free_memory;
	}

	pthread_mutex_lock(&exporter->lock);
	err = enter_memory(exporter, memory);
	pthread_mutex_unlock(&exporter->lock);
	if (err)
		goto close_fd;
	return 0;

close_fd:
	gmem_sys_close(memory->fd);
free_memory:
	free(memory);
	return err;
}

GMEM_API int gmem_export_remove_memory(struct gmem_export *exporter, const void *hva)
{
	struct gmem_range *range;

	if (!exporter)
		return gmem_fail(-EINVAL, "exporter is NULL");

	pthread_mutex_lock(&exporter->lock);
	range = gmem_range_find(&exporter->memory, (uintptr_t)hva, 1);
	if (range && range->start == (uintptr_t)hva)
		free_memory(exporter, GMEM_CONTAINER_OF(range, struct memory, hva));
	else
		range = NULL;
	pthread_mutex_unlock(&exporter->lock);

	if (!range)
		return gmem_fail(-ENOENT, "no memory was named that starts at hva 0x%" PRIx64,
				 (uint64_t)(uintptr_t)hva);
	return 0;
}

/* ---- from a region to a file ---- */

static int find_memory(const struct gmem_export *exporter, const struct gmem_region *region,
		       struct gmem_extent *extent)
{
	struct gmem_range *range;
	const struct memory *memory;
	uint64_t within;

	range = gmem_range_find(&exporter->memory, region->hva.start, 1);
	within = range ? region->hva.start - range->start : 0;
	if (!range || region->gpa.size > range->size - within)
		return gmem_fail(-EOPNOTSUPP,
				 "the region at gpa 0x%" PRIx64 ", backing %s, is memory no other process "
				 "can map: give it memory of your own from a memfd (GMEM_REGION_HVA) and "
				 "name it with gmem_export_add_memory()", region->gpa.start,
				 gmem_backing_name(region->backing));

	memory = GMEM_CONTAINER_OF(range, struct memory, hva);
	extent->fd = memory->fd;
	extent->offset = memory->offset + within;
	return 0;
}

/* With both locks held */
int gmem_export_extent(const struct gmem_export *exporter, const struct gmem_region *region,
		       struct gmem_extent *ret)
{
	struct gmem_extent extent = {
		.gpa = region->gpa.start,
		.size = region->gpa.size,
		.hva = (void *)(uintptr_t)region->hva.start,
		.backing = region->backing,
	};
	struct gmem_extent_file file;
	int err = 0;

	if (region->backing == GMEM_BACKING_HOST || region->backing == GMEM_BACKING_PRIVATE) {
		err = find_memory(exporter, region, &extent);
	} else {
		extent.fd = region->file->fd;
		extent.offset = region->file_offset;
	}
	if (!err)
		err = gmem_extent_inspect(extent.fd, extent.offset, extent.size, &file);
	if (err)
		return err;

	extent.file_size = file.size;
	extent.page_size = file.page_size;
	extent.rights = file.rights;
	*ret = extent;
	return 0;
}

/* ---- tables ---- */

/* What tables are made of: extents, one at a time */
struct walk {
	int (*take)(struct walk *walk, const struct gmem_extent *extent);
	size_t count;
	size_t max;
	struct gmem_extent *extents;	/* NULL: only count */
	struct gmem_vhost_user_region *regions;
	int *fds;
	struct gmem_extent last;
};

const struct gmem_region *gmem_export_next_region(const struct gmem_vm *vm, uint64_t gpa)
{
	const struct gmem_region *region;
	struct gmem_range *range;

	while ((range = gmem_range_find(&vm->regions, gpa, UINT64_MAX - gpa))) {
		region = GMEM_CONTAINER_OF(range, struct gmem_region, gpa);
		if (!region->is_device)
			return region;
		gpa = range->start + range->size;
		if (gpa == 0)
			break;
	}
	return NULL;
}

static int walk_regions(const struct gmem_export *exporter, struct walk *walk)
{
	const struct gmem_region *region;
	struct gmem_extent extent;
	uint64_t gpa = 0;
	int err;

	while ((region = gmem_export_next_region(exporter->vm, gpa))) {
		err = gmem_export_extent(exporter, region, &extent);
		if (!err)
			err = walk->take(walk, &extent);
		else if (exporter->flags & GMEM_EXPORT_SKIP)
			err = 0;
		if (err)
			return err;

		gpa = region->gpa.start + region->gpa.size;
		if (gpa == 0)
			break;
	}
	return 0;
}

static int fail_too_many(const struct walk *walk)
{
	return gmem_fail(-ENOSPC, "the memory takes more than %zu entries", walk->max);
}

/* Twice: on failure outputs must be as they were. */
static int walk_twice(struct gmem_export *exporter, struct walk *walk)
{
	struct walk dry = *walk;
	int err;

	dry.extents = NULL;
	dry.regions = NULL;
	pthread_mutex_lock(&exporter->lock);
	pthread_mutex_lock(&exporter->vm->lock);
	err = walk_regions(exporter, &dry);
	if (!err)
		err = walk_regions(exporter, walk);
	pthread_mutex_unlock(&exporter->vm->lock);
	pthread_mutex_unlock(&exporter->lock);
	return err ? err : (int)walk->count;
}

static int take_extent(struct walk *walk, const struct gmem_extent *extent)
{
	if (walk->count == walk->max)
		return fail_too_many(walk);
	if (walk->extents)
		walk->extents[walk->count] = *extent;
	walk->count++;
	return 0;
}

GMEM_API int gmem_export_table(struct gmem_export *exporter, struct gmem_extent *extents, size_t max)
{
	struct walk walk = { .take = take_extent, .max = max < INT32_MAX ? max : INT32_MAX,
			     .extents = extents };

	if (!exporter || !extents)
		return gmem_fail(-EINVAL, "%s is NULL", exporter ? "extents" : "exporter");
	return walk_twice(exporter, &walk);
}

/* ---- vhost-user ---- */

static bool continues(const struct gmem_extent *last, const struct gmem_extent *extent)
{
	return extent->fd == last->fd && extent->gpa == last->gpa + last->size &&
	       extent->offset == last->offset + last->size &&
	       extent->hva == (char *)last->hva + last->size;
}

static int take_vhost_user(struct walk *walk, const struct gmem_extent *extent)
{
	if (!(extent->rights & GMEM_RIGHT_WRITE))
		return gmem_fail(-EOPNOTSUPP, "the region at gpa 0x%" PRIx64
				 " may only be read, which vhost-user cannot say", extent->gpa);

	if (walk->count && continues(&walk->last, extent)) {
		walk->last.size += extent->size;
	} else {
		if (walk->count == walk->max)
			return fail_too_many(walk);
		walk->last = *extent;
		walk->count++;
	}

	if (walk->regions) {
		walk->regions[walk->count - 1] = (struct gmem_vhost_user_region){
			.guest_phys_addr = walk->last.gpa,
			.memory_size = walk->last.size,
			.userspace_addr = (uintptr_t)walk->last.hva,
			.mmap_offset = walk->last.offset,
		};
		walk->fds[walk->count - 1] = walk->last.fd;
	}
	return 0;
}

GMEM_API int gmem_export_vhost_user(struct gmem_export *exporter,
				    struct gmem_vhost_user_region *regions, int *fds, size_t max)
{
	struct walk walk = { .take = take_vhost_user, .max = max < INT32_MAX ? max : INT32_MAX,
			     .regions = regions, .fds = fds };

	if (!exporter || !regions || !fds)
		return gmem_fail(-EINVAL, "%s is NULL", !exporter ? "exporter" : !regions ? "regions" : "fds");
	return walk_twice(exporter, &walk);
}
