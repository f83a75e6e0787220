/* SPDX-License-Identifier: MIT */
#include "share/export.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "base/check.h"
#include "base/error.h"
#include "base/limit.h"
#include "base/lock.h"
#include "base/opts.h"
#include "os/sys.h"
#include "region/region.h"
#include "region/regions.h"
#include "region/vm_core.h"
#include "state/claim.h"
#include "state/listener.h"
#include "share/extent.h"
#include "share/peer_io.h"
#include "share/peer_state.h"
#include "share/peer_recall.h"
#include "share/peer_source.h"

/* ---- the export ---- */

static int open_fds(struct gmem_export *exporter)
{
	int err;

	exporter->event = gmem_sys_event_new();
	if (exporter->event < 0)
		return gmem_fail_by_limit(exporter->event, 0, "no event fd");

	err = exporter->timer = gmem_sys_timer_new();
	if (err < 0)
		goto close_event;
	err = exporter->epoll = gmem_sys_epoll_new();
	if (err < 0)
		goto close_timer;
	err = gmem_sys_epoll_watch(exporter->epoll, exporter->event, EPOLLIN, true);
	if (!err)
		err = gmem_sys_epoll_watch(exporter->epoll, exporter->timer, EPOLLIN, true);
	if (err)
		goto close_epoll;
	return 0;

close_epoll:
	gmem_sys_close(exporter->epoll);
close_timer:
	gmem_sys_close(exporter->timer);
close_event:
	gmem_sys_close(exporter->event);
	return gmem_fail_by_limit(err, 0, "no timer or epoll fd");
}

static void close_fds(struct gmem_export *exporter)
{
	gmem_sys_close(exporter->epoll);
	gmem_sys_close(exporter->timer);
	gmem_sys_close(exporter->event);
}

static int listen(struct gmem_export *exporter)
{
	GMEM_OPTS(gmem_listener_opts, opts, .name = "export", .data = exporter,
		  .before_private = gmem_peers_revoke);

	return gmem_listener_add(exporter->vm, &opts, gmem_peers_look_again, &exporter->listener);
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
	exporter->vm = gmem_vm_ref(vm);
	exporter->flags = opts.flags;
	exporter->hook.before = gmem_peers_before;
	exporter->hook.after = gmem_peers_after;
	err = listen(exporter);
	if (err)
		goto close_fds;

	err = gmem_vm_add_change_hook(vm, &exporter->hook);
	if (err)
		goto free_listener;
	gmem_peers_add_source(exporter);
	*ret = exporter;
	return 0;

free_listener:
	gmem_listener_free(exporter->listener);
close_fds:
	gmem_lock_destroy(&exporter->lock);
	close_fds(exporter);
	gmem_vm_unref(vm);
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
	gmem_peers_remove_source(exporter);
	gmem_listener_free(exporter->listener);
	gmem_vm_remove_change_hook(exporter->vm, &exporter->hook);
	free(exporter->leaving_nodes);
	close_fds(exporter);
	gmem_callers_memory_clear(&exporter->memory);
	gmem_lock_destroy(&exporter->lock);
	gmem_vm_unref(exporter->vm);
	free(exporter);
}

/* ---- sending ---- */

GMEM_API int gmem_export_fd(const struct gmem_export *exporter)
{
	return exporter ? exporter->epoll : gmem_fail(-EINVAL, "exporter is NULL");
}

GMEM_API int gmem_export_dispatch(struct gmem_export *exporter)
{
	int err;

	if (!exporter)
		return gmem_fail(-EINVAL, "exporter is NULL");
	err = gmem_vm_check_alive(exporter->vm);
	if (err)
		return err;

	gmem_peers_dispatch(exporter);
	return 0;
}

/* ---- the caller's own memory ---- */

static int check_memory(const struct gmem_export *exporter, const void *hva, uint64_t size, int fd,
			uint64_t offset, struct gmem_extent_file *ret)
{
	int err;

	err = gmem_check_range("hva", (uintptr_t)hva, size);
	if (!err)
		err = gmem_check_range("offset", offset, size);
	if (!err)
		err = gmem_extent_inspect(fd, offset, size, ret);
	if (err)
		return err;

	if (ret->is_gmemfd)
		return gmem_fail(-EINVAL, "fd %d is a guest_memfd, which regions know by themselves", fd);
	return exporter->flags & GMEM_EXPORT_UNSEALED ? 0 : gmem_extent_check_seals(fd, ret);
}

GMEM_API int gmem_export_add_memory(struct gmem_export *exporter, void *hva, uint64_t size, int fd,
				    uint64_t offset)
{
	struct gmem_extent_file file;
	int err;

	if (!exporter || !hva)
		return gmem_fail(-EINVAL, "%s is NULL", exporter ? "hva" : "exporter");
	err = gmem_vm_check_alive(exporter->vm);
	if (!err)
		err = check_memory(exporter, hva, size, fd, offset, &file);
	if (err)
		return err;

	gmem_lock_take(&exporter->lock);
	err = gmem_callers_memory_add(&exporter->memory, hva, size, fd, offset, &file);
	gmem_lock_drop(&exporter->lock);
	return err;
}

GMEM_API int gmem_export_remove_memory(struct gmem_export *exporter, const void *hva)
{
	int err;

	if (!exporter)
		return gmem_fail(-EINVAL, "exporter is NULL");
	err = gmem_vm_check_alive(exporter->vm);
	if (err)
		return err;

	gmem_lock_take(&exporter->lock);
	err = gmem_callers_memory_remove(&exporter->memory, hva);
	gmem_lock_drop(&exporter->lock);
	return err;
}

/* ---- tables ---- */

/* All extents, whether or not they fit into the caller's table */
struct entry {
	struct gmem_extent extent;
	struct gmem_extent_file file;
};

struct list {
	struct entry *entries;
	size_t count;
	size_t room;
};

static int append(struct list *list, const struct entry *entry)
{
	size_t room = list->room ? 2 * list->room : 16;
	struct entry *entries;

	if (list->count == list->room) {
		entries = realloc(list->entries, room * sizeof(*entries));
		if (!entries)
			return gmem_fail(-ENOMEM, "no memory for a table of %zu extents", list->count);
		list->entries = entries;
		list->room = room;
	}
	list->entries[list->count++] = *entry;
	return 0;
}

static int list_region(const struct gmem_export *exporter, const struct gmem_region *region,
		       struct list *list)
{
	struct entry entry;
	int err;

	if (!gmem_extent_is_offered(&exporter->memory, region))
		return 0;
	err = gmem_extent_of_region(&exporter->memory, exporter->flags & GMEM_EXPORT_UNSEALED, region,
				    &entry.extent, &entry.file);
	if (!err)
		return append(list, &entry);
	return exporter->flags & GMEM_EXPORT_SKIP ? 0 : err;
}

/* With both locks held: it is the layout of one moment. */
static int walk_regions(const struct gmem_export *exporter, struct list *list)
{
	const struct gmem_region *region;
	uint64_t gpa = 0;
	int err;

	while ((region = gmem_regions_next_memory(exporter->vm, gpa))) {
		err = list_region(exporter, region, list);
		if (err)
			return err;

		gpa = region->gpa.start + region->gpa.size;
		if (gpa == 0)
			break;
	}
	return 0;
}

static int list_all(struct gmem_export *exporter, struct list *list)
{
	int err = gmem_vm_check_alive(exporter->vm);

	*list = (struct list){ .count = 0 };
	if (err)
		return err;
	gmem_lock_take(&exporter->lock);
	gmem_lock_take(&exporter->vm->lock);
	err = walk_regions(exporter, list);
	gmem_lock_drop(&exporter->vm->lock);
	gmem_lock_drop(&exporter->lock);
	return err;
}

/* Without room it is only asked how many there are. */
static int check_room(size_t count, size_t max)
{
	if ((count <= max || !max) && count <= INT32_MAX)
		return 0;
	return gmem_fail(-ENOSPC, "the memory takes %zu entries, and there is room for %zu", count, max);
}

GMEM_API int gmem_export_table(struct gmem_export *exporter, struct gmem_extent *extents, size_t max)
{
	struct list list;
	int ret;

	if (!exporter || (!extents && max))
		return gmem_fail(-EINVAL, "%s is NULL", exporter ? "extents" : "exporter");

	ret = list_all(exporter, &list);
	if (!ret)
		ret = check_room(list.count, max);
	for (size_t i = 0; !ret && max && i < list.count; i++)
		extents[i] = list.entries[i].extent;
	if (!ret)
		ret = (int)list.count;
	free(list.entries);
	return ret;
}

/* ---- vhost-user ---- */

/* Memory that was named in parts has an fd for each, all of one file. */
static bool is_same_file(const struct entry *a, const struct entry *b)
{
	return a->extent.fd == b->extent.fd ||
	       (a->file.inode && a->file.inode == b->file.inode && a->file.device == b->file.device);
}

static bool continues(const struct entry *last, const struct entry *next)
{
	return is_same_file(last, next) &&
	       next->extent.gpa == last->extent.gpa + last->extent.size &&
	       next->extent.offset == last->extent.offset + last->extent.size &&
	       next->extent.hva == (char *)last->extent.hva + last->extent.size;
}

/* Join extents that one entry can describe; @skips: without those that no entry can. */
static int join(struct list *list, bool skips)
{
	size_t count = 0;

	for (size_t i = 0; i < list->count; i++) {
		const struct entry *entry = &list->entries[i];

		if (!(entry->extent.rights & GMEM_RIGHT_WRITE) && skips)
			continue;
		if (!(entry->extent.rights & GMEM_RIGHT_WRITE))
			return gmem_fail(-EOPNOTSUPP, "the region at gpa 0x%" PRIx64
					 " may only be read, which vhost-user cannot say",
					 entry->extent.gpa);
		if (count && continues(&list->entries[count - 1], entry))
			list->entries[count - 1].extent.size += entry->extent.size;
		else
			list->entries[count++] = *entry;
	}
	list->count = count;
	return 0;
}

GMEM_API int gmem_export_vhost_user(struct gmem_export *exporter,
				    struct gmem_vhost_user_region *regions, int *fds, size_t max)
{
	struct list list;
	int ret;

	if (!exporter || (max && (!regions || !fds)))
		return gmem_fail(-EINVAL, "%s is NULL", !exporter ? "exporter" : !regions ? "regions" : "fds");

	ret = list_all(exporter, &list);
	if (!ret)
		ret = join(&list, exporter->flags & GMEM_EXPORT_SKIP);
	if (!ret)
		ret = check_room(list.count, max);
	for (size_t i = 0; !ret && max && i < list.count; i++) {
		const struct gmem_extent *extent = &list.entries[i].extent;

		regions[i] = (struct gmem_vhost_user_region){
			.guest_phys_addr = extent->gpa,
			.memory_size = extent->size,
			.userspace_addr = (uintptr_t)extent->hva,
			.mmap_offset = extent->offset,
		};
		fds[i] = extent->fd;
	}
	if (!ret)
		ret = (int)list.count;
	free(list.entries);
	return ret;
}
