/* SPDX-License-Identifier: MIT */
#include "share/import.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/epoll.h>

#include "base/check.h"
#include "base/error.h"
#include "base/limit.h"
#include "base/lock.h"
#include "base/macros.h"
#include "base/opts.h"
#include "base/range_map.h"
#include "base/wait_budget.h"
#include "os/sys.h"
#include "region/page_states.h"
#include "region/region.h"
#include "region/regions.h"
#include "region/vm_core.h"
#include "share/extent.h"
#include "share/mapped_extent.h"
#include "share/mark_map.h"
#include "share/wire.h"
#include "view/lookup_table.h"
#include "view/view.h"

#define DEFAULT_MAX_EXTENTS	4096
#define DEFAULT_MAX_TABLE_BYTES	((uint64_t)128 << 20)
/* The kernel's own default, if this process must not read it */
#define DEFAULT_MAX_MAP_COUNT	65530
/* One import may have this part of the process's mappings. */
#define SHARE_OF_MAPPINGS	4

/* Messages in one dispatch: an exporter that keeps sending must not keep it from returning */
#define MAX_MESSAGES	64
/* After this time no other message, and no other piece of one, is begun */
#define ENOUGH_TIME	(5 * GMEM_NANOSECONDS_PER_MS)
/* Bytes of a message done at once, also if this process has used every page of them */
#define PIECE		((uint64_t)32 << 20)
/* Likewise, of an extent that comes */
#define MAP_PIECE	((uint64_t)1 << 30)
/* Neither is larger, nor is a page of a file: a message has 32 bits for its size. */
#define MAX_PIECE	((uint64_t)1 << 31)

/* A message that is being acted on, piece by piece */
struct work {
	struct gmem_message message;	/* type 0: there is none */
	struct gmem_mapped_extent *extent;
	uint64_t start, size;		/* of the extent: the range that the message is about */
	uint64_t done;			/* bytes of it */
	bool is_outside;		/* the extent is in no list: not yet, or not any more */
	bool is_broken;			/* it failed, and something has changed */
};

struct gmem_import {
	struct gmem_vm vm;		/* for views; its hook_lock admits one dispatch at a time */
	struct gmem_range_map ids;
	uint64_t flags;
	uint64_t max_bytes;
	uint64_t bytes;
	uint64_t max_table_bytes;
	uint64_t table_bytes;
	uint64_t max_mappings;
	uint64_t mappings;
	uint32_t max_extents;
	uint32_t extents;
	int sock;
	int event;			/* set while there is work */
	int epoll;			/* watches event and the socket */
	int status;			/* 0, or the -errno that ended the import */
	struct gmem_failure refused;	/* the last answer that was not 0 */
	bool greeted;			/* HELLO came */
	bool complete;			/* READY came, and no MAP or GRANT since */
	struct gmem_mark_map *marks;	/* where views mark what they write; NULL: nobody asks */
	struct work work;
	struct gmem_states before;	/* scratch for one piece: what was granted */
};

static struct gmem_mapped_extent *extent_of_gpa(struct gmem_range *gpa)
{
	return GMEM_CONTAINER_OF(GMEM_CONTAINER_OF(gpa, struct gmem_region, gpa),
				 struct gmem_mapped_extent, region);
}

static struct gmem_mapped_extent *extent_of_id(const struct gmem_import *import, uint64_t id)
{
	struct gmem_range *range = gmem_range_find(&import->ids, id, 1);

	return range ? GMEM_CONTAINER_OF(range, struct gmem_mapped_extent, id) : NULL;
}

/* ---- the layout ---- */

/* Make the readers' next table, in which part of the extent is entered or removed. */
static int build_table(const struct gmem_table *old, struct gmem_mapped_extent *extent,
		       uint64_t offset, uint64_t size, bool removes, struct gmem_table **ret)
{
	struct gmem_region *region = &extent->region;
	uint64_t gpa = region->gpa.start;
	struct gmem_table_reach reach = { 0 };
	struct gmem_table *table = NULL;
	int err;

	gmem_table_reach_to(&reach, gpa, region->gpa.size);
	err = gmem_table_new(old, reach, &table);
	if (!err && removes)
		err = gmem_table_remove(table, old, gpa + offset, size);
	else if (!err)
		err = gmem_table_enter_part(table, old, region, gpa, region->hva.start, offset, size);
	if (err) {
		gmem_table_free(table, old);
		return gmem_fail(-ENOMEM, "no memory for the readers' new table");
	}
	*ret = table;
	return 0;
}

/* Show or hide part of the extent. On return no reader uses an older table. */
static int publish(struct gmem_vm *vm, struct gmem_mapped_extent *extent, uint64_t offset,
		   uint64_t size, bool removes)
{
	const struct gmem_table *old;
	struct gmem_table *table = NULL;
	int err;

	gmem_lock_take(&vm->change_lock);
	old = gmem_vm_table(vm);
	err = build_table(old, extent, offset, size, removes, &table);
	if (!err)
		gmem_vm_publish(vm, table);
	gmem_lock_drop(&vm->change_lock);
	if (err)
		return err;

	gmem_vm_wait_for_views(vm, NULL);
	gmem_table_free(old, table);
	return 0;
}

static void insert(struct gmem_import *import, struct gmem_mapped_extent *extent)
{
	gmem_lock_take(&import->vm.change_lock);
	gmem_lock_take(&import->vm.lock);
	gmem_range_insert(&import->vm.regions, &extent->region.gpa);
	gmem_range_insert(&import->ids, &extent->id);
	import->extents++;
	gmem_lock_drop(&import->vm.lock);
	gmem_lock_drop(&import->vm.change_lock);
}

static void take_out(struct gmem_import *import, struct gmem_mapped_extent *extent)
{
	gmem_lock_take(&import->vm.change_lock);
	gmem_lock_take(&import->vm.lock);
	gmem_range_remove(&import->vm.regions, &extent->region.gpa);
	gmem_range_remove(&import->ids, &extent->id);
	import->extents--;
	gmem_lock_drop(&import->vm.lock);
	gmem_lock_drop(&import->vm.change_lock);
}

/* Count what the extent uses of the limits, as long as it is mapped. */
static void charge(struct gmem_import *import, const struct gmem_mapped_extent *extent)
{
	import->bytes += extent->region.gpa.size;
	import->table_bytes += gmem_mapped_extent_cost(extent->region.gpa.size);
	import->mappings += extent->runs;
}

static void uncharge(struct gmem_import *import, const struct gmem_mapped_extent *extent)
{
	import->bytes -= extent->region.gpa.size;
	import->table_bytes -= gmem_mapped_extent_cost(extent->region.gpa.size);
	import->mappings -= extent->runs;
}

static void free_extent(struct gmem_import *import, struct gmem_mapped_extent *extent)
{
	uncharge(import, extent);
	gmem_mapped_extent_free(extent);
}

/*
 * After a failure, which the exporter is told: it takes the memory for not mapped. Returns false,
 * and keeps the extent, if it is mapped all the same.
 */
static bool take_back(struct gmem_import *import, struct gmem_mapped_extent *extent, int err)
{
	struct gmem_failure failure;
	int refused;

	gmem_failure_keep(&failure, err);
	refused = gmem_mapped_extent_unmap_some(extent, extent->region.gpa.size);
	gmem_failure_restore(&failure);
	if (!refused)
		free_extent(import, extent);
	return !refused;
}

/* ---- map ---- */

static int fail_mappings(const struct gmem_import *import)
{
	return gmem_fail(-ENOMEM, "there are %" PRIu64 " mappings, and no more are wanted "
			 "(max_mappings)", import->mappings);
}

static int check_room(const struct gmem_import *import, uint64_t size)
{
	uint64_t cost = gmem_mapped_extent_cost(size);

	if (import->extents >= import->max_extents)
		return gmem_fail(-ENOSPC, "%" PRIu32 " extents are mapped, and no more are wanted "
				 "(max_extents)",
				 import->extents);
	if (import->max_bytes &&
	    (size > import->max_bytes || import->bytes > import->max_bytes - size))
		return gmem_fail(-ENOSPC, "0x%" PRIx64 " bytes are mapped, and 0x%" PRIx64
				 " more are more than are wanted (max_bytes)", import->bytes, size);
	if (cost > import->max_table_bytes ||
	    import->table_bytes > import->max_table_bytes - cost)
		return gmem_fail(-ENOSPC, "0x%" PRIx64 " bytes more would take 0x%" PRIx64
				 " bytes of tables beside 0x%" PRIx64 ", and 0x%" PRIx64
				 " are wanted in all (max_table_bytes)", size, cost,
				 import->table_bytes, import->max_table_bytes);
	if (import->mappings >= import->max_mappings)
		return fail_mappings(import);
	return 0;
}

static int check_file(const struct gmem_import *import, const struct gmem_message *message, int fd)
{
	struct gmem_extent_file file;
	int err;

	err = gmem_extent_inspect(fd, message->offset, message->size, &file);
	if (err)
		return err;

	if (file.size != message->file_size || file.page_size != message->page_size)
		return gmem_fail(-EINVAL, "the file has 0x%" PRIx64 " bytes in pages of 0x%" PRIx64
				 ", not 0x%" PRIx64 " in pages of 0x%" PRIx32, file.size, file.page_size,
				 message->file_size, message->page_size);
	if ((message->gpa | message->offset | message->size) & (file.page_size - 1))
		return gmem_fail(-EINVAL, "0x%" PRIx64 " bytes at gpa 0x%" PRIx64 ", offset 0x%" PRIx64
				 ", are not whole pages of the file", message->size, message->gpa,
				 message->offset);
	if (message->rights & ~(file.rights | GMEM_WIRE_WITHHELD))
		return gmem_fail(-EACCES, "the file is not to be written");
	if (file.can_shrink && !(import->flags & GMEM_IMPORT_UNSEALED))
		return gmem_fail(-EPERM, "the file can shrink under its users");
	return 0;
}

static int begin_map(struct gmem_import *import, const struct gmem_message *message, int fd)
{
	struct gmem_mapped_extent *extent;
	int err;

	if (extent_of_id(import, message->id) ||
	    gmem_regions_next(&import->vm, message->gpa, message->gpa + message->size - 1))
		return gmem_fail(-EPROTO, "id %" PRIu64 " at gpa 0x%" PRIx64 ", 0x%" PRIx64
				 " bytes, is there already", message->id, message->gpa, message->size);
	if (fd < 0)
		return gmem_fail_by_limit(-EMFILE, 0, "a file did not arrive, this process has no number left for it");

	err = check_room(import, message->size);
	if (!err)
		err = check_file(import, message, fd);
	if (!err)
		err = gmem_mapped_extent_new(&import->vm, message, fd, &extent);
	if (err)
		return err;

	charge(import, extent);
	err = gmem_mapped_extent_prepare(extent, message);
	if (err && take_back(import, extent, err))
		return err;
	import->work = (struct work){ .message = *message, .extent = extent, .size = message->size,
				      .is_outside = true, .is_broken = err != 0 };
	return err;
}

/* Bytes done at once, whole pages of the file. While it is being mapped, none of them is in use. */
static uint64_t unit_of(const struct work *work)
{
	uint64_t unit = work->message.type == GMEM_WIRE_MAP ? MAP_PIECE : PIECE;

	return unit > work->extent->page_size ? unit : work->extent->page_size;
}

static uint64_t piece_of(const struct work *work)
{
	uint64_t unit = unit_of(work), left = work->size - work->done;
	uint64_t size = unit - (work->start + work->done) % unit;

	return size < left ? size : left;
}

static int map_some(struct gmem_import *import, struct work *work)
{
	uint64_t size = piece_of(work);
	int err;

	if (work->message.rights & GMEM_WIRE_WITHHELD)
		gmem_states_set(&work->extent->region.states, GMEM_PAGE_PRIVATE, work->done, size, true);
	err = publish(&import->vm, work->extent, work->done, size, false);
	if (err) {
		work->is_broken = work->done != 0 || !take_back(import, work->extent, err);
		return err;
	}

	work->done += size;
	if (work->done < work->size)
		return 1;
	insert(import, work->extent);
	import->complete = false;
	return 0;
}

/* ---- unmap ---- */

static int begin_unmap(struct gmem_import *import, const struct gmem_message *message)
{
	struct gmem_mapped_extent *extent = extent_of_id(import, message->id);

	if (!extent)
		return gmem_fail(-EPROTO, "id %" PRIu64 " is not there", message->id);

	import->work = (struct work){ .message = *message, .extent = extent,
				      .size = extent->region.gpa.size };
	return 0;
}

static int hide_some(struct gmem_import *import, struct work *work)
{
	uint64_t size = piece_of(work);
	int err;

	err = publish(&import->vm, work->extent, work->done, size, true);
	if (err) {
		work->is_broken = work->done != 0;
		return err;
	}

	work->done += size;
	if (work->done == work->size) {
		take_out(import, work->extent);
		work->is_outside = true;
	}
	return 1;
}

/* First hide all of it from readers, then unmap it from its end. */
static int unmap_some(struct gmem_import *import, struct work *work)
{
	int ret;

	if (!work->is_outside)
		return hide_some(import, work);

	ret = gmem_mapped_extent_unmap_some(work->extent, unit_of(work));
	work->is_broken = ret < 0;
	if (ret == 0)
		free_extent(import, work->extent);
	return ret;
}

/* ---- revoke and grant ---- */

static int begin_part(struct gmem_import *import, const struct gmem_message *message)
{
	struct gmem_mapped_extent *extent = extent_of_id(import, message->id);
	const struct gmem_range *gpa = extent ? &extent->region.gpa : NULL;
	bool granted = message->type == GMEM_WIRE_GRANT;
	uint64_t start;

	if (!gpa || message->gpa < gpa->start || message->size > gpa->size ||
	    message->gpa - gpa->start > gpa->size - message->size)
		return gmem_fail(-EPROTO, "id %" PRIu64 " has no 0x%" PRIx64 " bytes at gpa 0x%" PRIx64,
				 message->id, message->size, message->gpa);

	start = message->gpa - gpa->start;
	if ((start | message->size) & (extent->page_size - 1))
		return gmem_fail(-EPROTO, "0x%" PRIx64 " bytes from 0x%" PRIx64 " of extent %" PRIu64
				 " on are not whole pages of its file, 0x%" PRIx64, message->size, start,
				 message->id, extent->page_size);
	if (import->mappings + gmem_mapped_extent_growth(extent, start, message->size, granted) >
	    import->max_mappings)
		return fail_mappings(import);

	import->work = (struct work){ .message = *message, .extent = extent, .start = start,
				      .size = message->size };
	return 0;
}

static void show(struct gmem_import *import, struct gmem_mapped_extent *extent, uint64_t offset,
		 uint64_t size)
{
	gmem_vm_show_states(&import->vm, &extent->region, extent->region.gpa.start + offset, size,
			    false);
}

static void note(struct gmem_import *import, struct gmem_mapped_extent *extent, uint64_t offset,
		 uint64_t size, bool granted)
{
	import->mappings -= extent->runs;
	gmem_mapped_extent_note(extent, offset, size, granted);
	import->mappings += extent->runs;
}

/* Remember what is granted of a piece, from @offset of the extent on, until it is forgotten. */
static void keep_granted(struct gmem_import *import, const struct gmem_mapped_extent *extent,
			 uint64_t offset, uint64_t size)
{
	struct gmem_states_walk at = GMEM_STATES_WALK(&extent->region.states, GMEM_PAGE_PRIVATE, false,
						      offset, size);

	while (gmem_states_walk(&at))
		gmem_states_set(&import->before, GMEM_PAGE_PRIVATE, at.offset - offset, at.size, true);
}

/* Make a piece as keep_granted() found it. */
static int restore_granted(struct gmem_import *import, struct gmem_mapped_extent *extent,
			   uint64_t offset, uint64_t size)
{
	struct gmem_states_walk at = GMEM_STATES_WALK(&import->before, GMEM_PAGE_PRIVATE, true, 0, size);
	int err = 0;

	while (!err && gmem_states_walk(&at)) {
		err = gmem_mapped_extent_protect(extent, offset + at.offset, at.size, true);
		if (!err)
			note(import, extent, offset + at.offset, at.size, true);
	}
	show(import, extent, offset, size);
	return err;
}

static void forget_granted(struct gmem_import *import, uint64_t size)
{
	gmem_states_set(&import->before, GMEM_PAGE_PRIVATE, 0, size, false);
}

static int revoke_some(struct gmem_import *import, struct work *work)
{
	uint64_t offset = work->start + work->done, size = piece_of(work);
	struct gmem_failure failure;
	int err;

	keep_granted(import, work->extent, offset, size);
	note(import, work->extent, offset, size, false);
	show(import, work->extent, offset, size);
	gmem_vm_wait_for_views(&import->vm, NULL);
	err = gmem_mapped_extent_protect(work->extent, offset, size, false);
	if (err) {
		gmem_failure_keep(&failure, err);
		work->is_broken = restore_granted(import, work->extent, offset, size) || work->done;
	}
	forget_granted(import, size);
	if (err)
		return gmem_failure_restore(&failure);
	work->done += size;
	return work->done < work->size;
}

/* Take the rights that a failed grant may have given. */
static int withhold_again(const struct gmem_mapped_extent *extent, uint64_t offset, uint64_t size)
{
	struct gmem_states_walk at = GMEM_STATES_WALK(&extent->region.states, GMEM_PAGE_PRIVATE, true,
						      offset, size);
	int err = 0;

	while (!err && gmem_states_walk(&at))
		err = gmem_mapped_extent_protect(extent, at.offset, at.size, false);
	return err;
}

static int grant_some(struct gmem_import *import, struct work *work)
{
	uint64_t offset = work->start + work->done, size = piece_of(work);
	struct gmem_failure failure;
	int err;

	err = gmem_mapped_extent_protect(work->extent, offset, size, true);
	if (err) {
		gmem_failure_keep(&failure, err);
		work->is_broken = withhold_again(work->extent, offset, size) || work->done;
		return gmem_failure_restore(&failure);
	}
	note(import, work->extent, offset, size, true);
	show(import, work->extent, offset, size);
	import->complete = false;
	work->done += size;
	return work->done < work->size;
}

/* ---- marks ---- */

/* On return views mark what they write in @marks, and those that did not have ended. */
static void use_marks(struct gmem_import *import, struct gmem_mark_map *marks)
{
	struct gmem_mark_map *old = import->marks;

	gmem_vm_mark_for_peer(&import->vm, marks ? &marks->marks : NULL);
	gmem_vm_wait_for_views(&import->vm, NULL);
	import->mappings += (marks != NULL);
	import->mappings -= (old != NULL);
	import->marks = marks;
	gmem_mark_map_free(old);
}

static int begin_marks(struct gmem_import *import, const struct gmem_message *message, int fd)
{
	struct gmem_mark_map *marks;
	int err;

	if (import->mappings >= import->max_mappings)
		return fail_mappings(import);
	err = gmem_mark_map_open(message, fd, &marks);
	if (!err)
		use_marks(import, marks);
	return err;
}

/* ---- messages ---- */

static int do_hello(struct gmem_import *import, const struct gmem_message *message)
{
	if (import->greeted)
		return gmem_fail(-EPROTO, "a second greeting");
	if (message->page_size != gmem_sys_page_size())
		return gmem_fail(-EPROTO, "pages of 0x%" PRIx32 " bytes, not 0x%" PRIx64,
				 message->page_size, gmem_sys_page_size());
	import->greeted = true;
	return 0;
}

/* Check a message. Returns 0 also if there is work to do; -EPROTO ends the import. */
static int begin(struct gmem_import *import, const struct gmem_message *message, int fd)
{
	if (!import->greeted && message->type != GMEM_WIRE_HELLO)
		return gmem_fail(-EPROTO, "a message \"%s\" without a greeting",
				 gmem_wire_name(message->type));

	switch (message->type) {
	case GMEM_WIRE_HELLO:
		return do_hello(import, message);
	case GMEM_WIRE_MAP:
		return begin_map(import, message, fd);
	case GMEM_WIRE_UNMAP:
		return begin_unmap(import, message);
	case GMEM_WIRE_REVOKE:
	case GMEM_WIRE_GRANT:
		return begin_part(import, message);
	case GMEM_WIRE_READY:
		import->complete = true;
		return 0;
	case GMEM_WIRE_MARK:
		return begin_marks(import, message, fd);
	case GMEM_WIRE_END_MARK:
		use_marks(import, NULL);
		return 0;
	default:
		return gmem_fail(-EPROTO, "a message \"%s\" is not for an import",
				 gmem_wire_name(message->type));
	}
}

/* Returns 1 if there is more work to do, 0 if the message is done, or the -errno that refuses it. */
static int work_some(struct gmem_import *import)
{
	struct work *work = &import->work;

	switch (work->message.type) {
	case GMEM_WIRE_MAP:
		return map_some(import, work);
	case GMEM_WIRE_UNMAP:
		return unmap_some(import, work);
	case GMEM_WIRE_REVOKE:
		return revoke_some(import, work);
	default:
		return grant_some(import, work);
	}
}

static int send_answer(struct gmem_import *import, const struct gmem_message *to, int result)
{
	const struct gmem_message message = {
		.type = GMEM_WIRE_ANSWER,
		.sequence = to->sequence,
		.status = (uint32_t)-result,
		.rights = to->type == GMEM_WIRE_HELLO ? GMEM_WIRE_TAKES_MARK : 0,
	};
	int err = gmem_wire_send(import->sock, &message, -1);

	if (result)
		gmem_failure_keep(&import->refused, result);

	/*
	 * The exporter waits for each answer, so the socket has room for this one unless the
	 * exporter does not read.
	 */
	if (err == -EAGAIN)
		return gmem_fail(-EPROTO, "the exporting process reads no answers");
	if (err)
		return gmem_fail(-EPIPE, "the exporting side has closed the connection");
	return 0;
}

/* ---- dispatch ---- */

/* Take the next message. Returns 1 if more may wait, 0 if none does. */
static int take_message(struct gmem_import *import)
{
	struct gmem_message message;
	int fd, n, err;

	n = gmem_wire_receive(import->sock, &message, &fd);
	if (n <= 0)
		return n;

	err = begin(import, &message, fd);
	if (fd >= 0)
		gmem_sys_close(fd);
	if (err == -EPROTO || import->work.is_broken)
		return err;
	if (!err && import->work.message.type)
		return 1;
	err = send_answer(import, &message, err);
	return err ? err : 1;
}

/* Do a piece of the message at hand, and answer it if that was the last. */
static int go_on(struct gmem_import *import)
{
	struct work *work = &import->work;
	const struct gmem_message message = work->message;
	int ret = work_some(import);

	if (ret > 0 || work->is_broken)
		return ret;
	*work = (struct work){ .done = 0 };
	ret = send_answer(import, &message, ret);
	return ret ? ret : 1;
}

/* A message about one piece is done at once, so that it costs the exporter one call to wait for. */
static bool is_small(const struct work *work)
{
	return work->message.type && work->size <= unit_of(work);
}

static int dispatch(struct gmem_import *import)
{
	uint64_t start = gmem_sys_now();
	unsigned int messages = 0;
	int n = 1;

	gmem_sys_event_clear(import->event);
	while (n > 0 && !import->status) {
		messages += !import->work.message.type;
		n = import->work.message.type ? go_on(import) : take_message(import);
		if (!is_small(&import->work) &&
		    (messages == MAX_MESSAGES || gmem_sys_now() - start >= ENOUGH_TIME))
			break;
	}
	if (n < 0) {
		import->status = n;
		gmem_sys_epoll_watch(import->epoll, import->sock, 0, false);
		gmem_sys_shutdown(import->sock);
		if (n == -EPIPE && import->refused.err)
			gmem_fail(n, "the exporting side has closed the connection, after it was told %s: %s",
				  gmem_errno_name(import->refused.err), import->refused.sentence);
		return n;
	}
	if (import->status)
		return gmem_fail(import->status, "the import ended before: %s",
				 gmem_errno_name(import->status));
	if (import->work.message.type)
		gmem_sys_event_set(import->event);
	return import->complete;
}

GMEM_API int gmem_import_dispatch(struct gmem_import *import)
{
	int ret;

	if (!import)
		return gmem_fail(-EINVAL, "import is NULL");

	gmem_lock_take(&import->vm.hook_lock);
	ret = dispatch(import);
	gmem_lock_drop(&import->vm.hook_lock);
	return ret;
}

GMEM_API int gmem_import_wait(struct gmem_import *import, int fd, int ms)
{
	/* The socket itself stays POLLHUP for every thread once the import has ended. */
	struct pollfd fds[] = { { .events = POLLIN }, { .fd = fd, .events = POLLIN }, { .events = 0 } };
	uint64_t end = gmem_wait_end_of_ms(ms);
	int ret;

	if (!import)
		return gmem_fail(-EINVAL, "import is NULL");

	fds[0].fd = import->epoll;
	fds[2].fd = import->sock;
	for (;;) {
		ret = gmem_sys_poll_many(fds, GMEM_ARRAY_SIZE(fds), gmem_wait_left_ms(end));
		if (ret < 0)
			return gmem_fail(ret, "fd %d cannot be waited for: %s", fd, gmem_errno_name(ret));
		/* The exporting process first, which waits for the answer. */
		ret = fds[0].revents || fds[2].revents ? gmem_import_dispatch(import) : 0;
		if (ret < 0)
			return ret;
		if (fds[1].revents & POLLNVAL)
			return gmem_fail(-EBADF, "fd %d is not open", fd);
		if (fds[1].revents)
			return 1;
		if (!gmem_wait_left_ms(end))
			return 0;
	}
}

/* ---- the import ---- */

static int check_opts(const struct gmem_import_opts *opts)
{
	if (opts->reserved || opts->reserved2)
		return gmem_fail(-EINVAL, "reserved is %" PRIu32 ", not 0",
				 opts->reserved ? opts->reserved : opts->reserved2);
	return gmem_check_flags("flags", opts->flags, GMEM_IMPORT_UNSEALED);
}

/* What one import may have of the mappings that the kernel grants the process */
static uint64_t default_max_mappings(void)
{
	unsigned long count = 0;
	char text[32];

	if (gmem_sys_read_file("/proc/sys/vm/max_map_count", text, sizeof(text)) > 0)
		count = strtoul(text, NULL, 10);
	return (count ? count : DEFAULT_MAX_MAP_COUNT) / SHARE_OF_MAPPINGS;
}

static void set_limits(struct gmem_import *import, const struct gmem_import_opts *opts)
{
	import->flags = opts->flags;
	import->max_bytes = opts->max_bytes;
	import->max_extents = opts->max_extents ? opts->max_extents : DEFAULT_MAX_EXTENTS;
	import->max_table_bytes = opts->max_table_bytes ? opts->max_table_bytes
							: DEFAULT_MAX_TABLE_BYTES;
	import->max_mappings = opts->max_mappings ? opts->max_mappings : default_max_mappings();
}

static int open_fds(struct gmem_import *import, int sock)
{
	int err;

	import->sock = gmem_sys_dup(sock);
	if (import->sock < 0)
		return gmem_fail_by_limit(import->sock, 0, "fd %d cannot be duplicated", sock);

	err = import->event = gmem_sys_event_new();
	if (err < 0)
		goto close_sock;
	err = import->epoll = gmem_sys_epoll_new();
	if (err < 0)
		goto close_event;
	err = gmem_sys_epoll_watch(import->epoll, import->event, EPOLLIN, true);
	if (!err)
		err = gmem_sys_epoll_watch(import->epoll, import->sock, EPOLLIN, true);
	if (!err)
		return 0;

	gmem_sys_close(import->epoll);
close_event:
	gmem_sys_close(import->event);
close_sock:
	gmem_sys_close(import->sock);
	return gmem_fail_by_limit(err, 0, "no event fd or epoll fd");
}

static void close_fds(struct gmem_import *import)
{
	gmem_sys_shutdown(import->sock);
	gmem_sys_close(import->epoll);
	gmem_sys_close(import->event);
	gmem_sys_close(import->sock);
}

static int start(struct gmem_import *import, int sock)
{
	int err;

	err = gmem_states_new(&import->before, MAX_PIECE, 1);
	if (err)
		return err;
	err = gmem_vm_start_table(&import->vm);
	if (!err)
		err = open_fds(import, sock);
	if (err) {
		gmem_vm_drop_table(&import->vm);
		gmem_states_free(&import->before);
	}
	return err;
}

static void release_memory(struct gmem_vm *vm)
{
	struct gmem_import *import = GMEM_CONTAINER_OF(vm, struct gmem_import, vm);
	struct gmem_mapped_extent *extent;

	if (import->work.is_outside)
		free_extent(import, import->work.extent);
	while (vm->regions.root) {
		extent = extent_of_gpa(vm->regions.root);
		take_out(import, extent);
		free_extent(import, extent);
	}
	gmem_mark_map_free(import->marks);
}

/* Views may outlive the rest of the import. */
static void dispose(struct gmem_vm *vm)
{
	gmem_vm_drop_table(vm);
	gmem_vm_end(vm);
	free(GMEM_CONTAINER_OF(vm, struct gmem_import, vm));
}

GMEM_API int gmem_import_new(int sock, const struct gmem_import_opts *user_opts,
			     struct gmem_import **ret)
{
	struct gmem_import_opts opts;
	struct gmem_import *import;
	int err;

	if (!ret)
		return gmem_fail(-EINVAL, "ret is NULL");

	err = GMEM_COPY_OPTS(gmem_import_opts, &opts, user_opts, reserved);
	if (!err)
		err = check_opts(&opts);
	if (!err)
		err = gmem_wire_check_socket(sock);
	if (err)
		return err;

	import = calloc(1, sizeof(*import));
	if (!import)
		return gmem_fail(-ENOMEM, "no memory for an import");

	gmem_vm_begin(&import->vm);
	import->vm.dispose = dispose;
	import->vm.release_memory = release_memory;
	import->vm.fd = -1;
	import->vm.number = -1;
	set_limits(import, &opts);
	err = start(import, sock);
	if (err) {
		gmem_vm_end(&import->vm);
		free(import);
		return err;
	}
	*ret = import;
	return 0;
}

GMEM_API void gmem_import_free(struct gmem_import *import)
{
	if (!import)
		return;

	gmem_vm_end_views(&import->vm);
	close_fds(import);
	gmem_states_free(&import->before);
	gmem_vm_drop_memory(&import->vm);
	gmem_vm_unref(&import->vm);
}

GMEM_API int gmem_import_fd(const struct gmem_import *import)
{
	return import ? import->epoll : gmem_fail(-EINVAL, "import is NULL");
}

GMEM_API int gmem_import_view_new(struct gmem_import *import, struct gmem_view **ret)
{
	if (!import)
		return gmem_fail(-EINVAL, "import is NULL");
	return gmem_view_new(&import->vm, ret);
}

static struct gmem_extent describe(const struct gmem_mapped_extent *extent)
{
	return (struct gmem_extent){
		.gpa = extent->region.gpa.start,
		.size = extent->region.gpa.size,
		.hva = (void *)(uintptr_t)extent->region.hva.start,
		.offset = extent->region.file_offset,
		.file_size = extent->file_size,
		.page_size = extent->page_size,
		.fd = -1,
		.rights = extent->rights,
		.backing = extent->backing,
	};
}

GMEM_API int gmem_import_table(struct gmem_import *import, struct gmem_extent *extents, size_t max)
{
	const struct gmem_region *region;
	uint64_t gpa = 0;
	int count = 0;

	if (!import || !extents)
		return gmem_fail(-EINVAL, "%s is NULL", import ? "extents" : "import");

	gmem_lock_take(&import->vm.lock);
	if (import->extents > max) {
		count = gmem_fail(-ENOSPC, "%" PRIu32 " extents are mapped, more than %zu",
				  import->extents, max);
		goto unlock;
	}
	while ((region = gmem_regions_next_memory(&import->vm, gpa))) {
		extents[count++] = describe(GMEM_CONTAINER_OF(region, struct gmem_mapped_extent, region));
		gpa = region->gpa.start + region->gpa.size;
		if (!gpa)
			break;
	}
unlock:
	gmem_lock_drop(&import->vm.lock);
	return count;
}
