/* SPDX-License-Identifier: MIT */
#include "share/export.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/epoll.h>

#include "base/check.h"
#include "base/error.h"
#include "base/lock.h"
#include "base/opts.h"
#include "base/range_map.h"
#include "base/range_set.h"
#include "os/sys.h"
#include "region/region.h"
#include "region/regions.h"
#include "region/vm_core.h"
#include "state/claim.h"
#include "share/extent.h"
#include "share/peer_io.h"
#include "share/peer_recall.h"

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

/* Note the memory that is private already, before the listener's first call. */
static int note_private(struct gmem_export *exporter)
{
	struct gmem_stretch at = GMEM_REGIONS_WALK(exporter->vm, 0, UINT64_MAX);
	struct gmem_range *spare = NULL;
	int err = 0;

	while (!err && gmem_regions_walk(&at)) {
		if (!at.region || !at.is_private)
			continue;
		err = gmem_set_spare(&spare);
		if (!err)
			gmem_set_add(&exporter->withheld, at.gpa, at.size, &spare);
	}
	free(spare);
	return err;
}

/* Listen before the note is made: a conversion in between is then in one or in both. */
static int listen(struct gmem_export *exporter)
{
	GMEM_OPTS(gmem_listener_opts, opts, .name = "export", .data = exporter,
		  .before_private = gmem_peers_revoke, .undo_private = gmem_peers_grant,
		  .after_shared = gmem_peers_grant, .removed = gmem_peers_grant_shared);
	int err;

	err = gmem_listener_new(exporter->vm, &opts, &exporter->listener);
	if (err)
		return err;

	gmem_lock_take(&exporter->lock);
	gmem_lock_take(&exporter->vm->lock);
	err = note_private(exporter);
	gmem_lock_drop(&exporter->vm->lock);
	gmem_lock_drop(&exporter->lock);
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

	err = gmem_claim_check_not_owner(vm);
	if (err)
		return err;
	err = GMEM_COPY_OPTS(gmem_export_opts, &opts, user_opts, flags);
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

	gmem_lock_init(&exporter->lock, GMEM_RANK_EXPORT);
	exporter->vm = vm;
	exporter->flags = opts.flags;
	exporter->hook.before = gmem_peers_before;
	exporter->hook.after = gmem_peers_after;
	err = listen(exporter);
	if (err)
		goto close_fds;

	err = gmem_vm_add_change_hook(vm, &exporter->hook);
	if (err)
		goto free_listener;
	*ret = exporter;
	return 0;

free_listener:
	gmem_listener_free(exporter->listener);
close_fds:
	gmem_set_clear(&exporter->withheld);
	gmem_lock_destroy(&exporter->lock);
	close_fds(exporter);
	free(exporter);
	return err;
}

GMEM_API void gmem_export_free(struct gmem_export *exporter)
{
	if (!exporter)
		return;

	/* It would wait for the callback that it is called from: rather keep the export. */
	if (gmem_vm_log_error(exporter->vm, gmem_claim_check_not_owner(exporter->vm)))
		return;

	/* Peers go first: who waits for them need not wait any more. */
	while (exporter->peers)
		gmem_peer_remove(exporter->peers);
	gmem_listener_free(exporter->listener);
	gmem_vm_remove_change_hook(exporter->vm, &exporter->hook);
	free(exporter->leaving_nodes);
	close_fds(exporter);
	gmem_set_clear(&exporter->withheld);
	gmem_callers_memory_clear(&exporter->memory);
	gmem_lock_destroy(&exporter->lock);
	free(exporter);
}

/* ---- sending ---- */

GMEM_API int gmem_export_fd(const struct gmem_export *exporter)
{
	return exporter ? exporter->epoll : gmem_fail(-EINVAL, "exporter is NULL");
}

GMEM_API int gmem_export_dispatch(struct gmem_export *exporter)
{
	if (!exporter)
		return gmem_fail(-EINVAL, "exporter is NULL");

	gmem_lock_take(&exporter->lock);
	gmem_sys_event_clear(exporter->event);
	gmem_peers_pump(exporter);
	gmem_lock_drop(&exporter->lock);
	return 0;
}

/* ---- the caller's own memory ---- */

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

GMEM_API int gmem_export_add_memory(struct gmem_export *exporter, void *hva, uint64_t size, int fd,
				    uint64_t offset)
{
	int err;

	if (!exporter || !hva)
		return gmem_fail(-EINVAL, "%s is NULL", exporter ? "hva" : "exporter");
	err = check_memory(exporter, hva, size, fd, offset);
	if (err)
		return err;

	gmem_lock_take(&exporter->lock);
	err = gmem_callers_memory_add(&exporter->memory, hva, size, fd, offset);
	gmem_lock_drop(&exporter->lock);
	return err;
}

GMEM_API int gmem_export_remove_memory(struct gmem_export *exporter, const void *hva)
{
	int err;

	if (!exporter)
		return gmem_fail(-EINVAL, "exporter is NULL");

	gmem_lock_take(&exporter->lock);
	err = gmem_callers_memory_remove(&exporter->memory, hva);
	gmem_lock_drop(&exporter->lock);
	return err;
}

/* ---- tables ---- */

/* A walk over the regions, which turns each into an extent and adds it to a table */
struct walk {
	int (*take)(struct walk *walk, const struct gmem_extent *extent);
	size_t count;
	size_t max;
	struct gmem_extent *extents;	/* NULL: only count */
	struct gmem_vhost_user_region *regions;
	int *fds;
	struct gmem_extent last;	/* vhost-user: the entry that the next extent may extend */
};

static int walk_regions(const struct gmem_export *exporter, struct walk *walk)
{
	const struct gmem_region *region;
	struct gmem_extent extent;
	uint64_t gpa = 0;
	int err;

	while ((region = gmem_regions_next_memory(exporter->vm, gpa))) {
		err = gmem_extent_of_region(&exporter->memory, region, &extent);
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

/* The first walk only counts and checks, so that a failure leaves the outputs untouched. */
static int walk_twice(struct gmem_export *exporter, struct walk *walk)
{
	struct walk dry = *walk;
	int err;

	dry.extents = NULL;
	dry.regions = NULL;
	gmem_lock_take(&exporter->lock);
	gmem_lock_take(&exporter->vm->lock);
	err = walk_regions(exporter, &dry);
	if (!err)
		err = walk_regions(exporter, walk);
	gmem_lock_drop(&exporter->vm->lock);
	gmem_lock_drop(&exporter->lock);
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
