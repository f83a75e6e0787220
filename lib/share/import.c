/* SPDX-License-Identifier: MIT */
#include "share/import.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/check.h"
#include "base/error.h"
#include "base/lock.h"
#include "base/macros.h"
#include "base/opts.h"
#include "base/range_map.h"
#include "os/sys.h"
#include "region/file_map.h"
#include "region/page_states.h"
#include "region/region.h"
#include "region/regions.h"
#include "region/vm_core.h"
#include "share/extent.h"
#include "share/wire.h"
#include "view/lookup_table.h"
#include "view/view.h"

#define DEFAULT_MAX_EXTENTS	4096
/* Messages in one dispatch: an exporter that keeps sending must not keep it from returning */
#define MAX_MESSAGES		64

struct block {
	struct gmem_region region;	/* in vm.regions by its gpa */
	struct gmem_range id;		/* in ids */
	uint64_t file_size;
	uint64_t page_size;
	uint32_t rights;
	uint32_t backing;		/* of the VMM's region */
	int fd;				/* the file that is mapped */
};

struct gmem_import {
	struct gmem_vm vm;		/* for views; its hook_lock admits one dispatch at a time */
	struct gmem_range_map ids;
	uint64_t flags;
	uint64_t max_bytes;
	uint64_t bytes;
	uint32_t max_extents;
	uint32_t extents;
	int sock;
	int status;			/* 0, or the -errno that ended the import */
	bool greeted;			/* HELLO came */
	bool complete;			/* READY came, and no MAP or GRANT since */
};

static struct block *block_of_gpa(struct gmem_range *gpa)
{
	return GMEM_CONTAINER_OF(GMEM_CONTAINER_OF(gpa, struct gmem_region, gpa), struct block,
				 region);
}

static struct block *block_of_id(const struct gmem_import *import, uint64_t id)
{
	struct gmem_range *range = gmem_range_find(&import->ids, id, 1);

	return range ? GMEM_CONTAINER_OF(range, struct block, id) : NULL;
}

/* ---- the layout ---- */

static void insert_block(struct gmem_import *import, struct block *block)
{
	gmem_lock_take(&import->vm.lock);
	gmem_range_insert(&import->vm.regions, &block->region.gpa);
	gmem_range_insert(&import->ids, &block->id);
	import->bytes += block->region.gpa.size;
	import->extents++;
	gmem_lock_drop(&import->vm.lock);
}

static void remove_block(struct gmem_import *import, struct block *block)
{
	gmem_lock_take(&import->vm.lock);
	gmem_range_remove(&import->vm.regions, &block->region.gpa);
	gmem_range_remove(&import->ids, &block->id);
	import->bytes -= block->region.gpa.size;
	import->extents--;
	gmem_lock_drop(&import->vm.lock);
}

/* Make the readers' next table, in which the block is entered or removed. */
static int build_table(const struct gmem_vm *vm, struct block *block, bool removes,
		       struct gmem_table **ret)
{
	struct gmem_region *region = &block->region;
	struct gmem_table *table = NULL;
	int err;

	err = gmem_table_new(vm->table, gmem_region_last(region), &table);
	if (!err && removes)
		err = gmem_table_remove(table, vm->table, region->gpa.start, region->gpa.size);
	else if (!err)
		err = gmem_table_enter(table, vm->table, region, region->gpa.start,
				       region->hva.start);
	if (err) {
		gmem_table_free(table, vm->table);
		return gmem_fail(-ENOMEM, "no memory for the readers' new table");
	}
	*ret = table;
	return 0;
}

/*
 * Enter or remove the block, in the record and for readers, at once for who makes the first
 * view meanwhile. On return no reader uses an older table.
 */
static int publish(struct gmem_import *import, struct block *block, bool removes)
{
	struct gmem_vm *vm = &import->vm;
	const struct gmem_table *old;
	struct gmem_table *table = NULL;
	int err = 0;

	gmem_lock_take(&vm->change_lock);
	old = vm->table;
	if (old)
		err = build_table(vm, block, removes, &table);
	if (old && !err)
		gmem_vm_publish(vm, table);
	if (!err && removes)
		remove_block(import, block);
	else if (!err)
		insert_block(import, block);
	gmem_lock_drop(&vm->change_lock);
	if (!old || err)
		return err;

	gmem_vm_wait_for_views(vm, NULL);
	gmem_table_free(old, table);
	return 0;
}

static void free_block(struct block *block)
{
	gmem_maps_unpin(&block->region.pin);
	gmem_sys_close(block->fd);
	gmem_states_free(&block->region.states);
	free(block);
}

/* ---- messages ---- */

static int check_room(const struct gmem_import *import, const struct gmem_message *message)
{
	if (import->extents >= import->max_extents)
		return gmem_fail(-ENOSPC, "%" PRIu32 " extents are mapped, and no more are wanted",
				 import->extents);
	if (import->max_bytes &&
	    (message->size > import->max_bytes || import->bytes > import->max_bytes - message->size))
		return gmem_fail(-ENOSPC, "0x%" PRIx64 " bytes are mapped, and 0x%" PRIx64
				 " more are more than are wanted", import->bytes, message->size);
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
	if ((message->offset | message->size) & (file.page_size - 1))
		return gmem_fail(-EINVAL, "0x%" PRIx64 " bytes at offset 0x%" PRIx64
				 " are not whole pages of the file", message->size, message->offset);
	if (message->rights & ~(file.rights | GMEM_WIRE_WITHHELD))
		return gmem_fail(-EACCES, "the file is not to be written");
	if (file.can_shrink && !(import->flags & GMEM_IMPORT_UNSEALED))
		return gmem_fail(-EPERM, "the file can shrink under its users");
	return 0;
}

/* Map the file, or only reserve the addresses if its memory is withheld. */
static int map_extent(const struct gmem_message *message, int fd, void **ret_hva)
{
	int prot = PROT_READ | (message->rights & GMEM_RIGHT_WRITE ? PROT_WRITE : 0);
	int err;

	if (message->rights & GMEM_WIRE_WITHHELD)
		err = gmem_sys_mmap(NULL, message->size, PROT_NONE,
				    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0, ret_hva);
	else
		err = gmem_sys_mmap(NULL, message->size, prot, MAP_SHARED | MAP_NORESERVE, fd,
				    message->offset, ret_hva);
	if (err)
		return gmem_fail(err, "0x%" PRIx64 " bytes of a file cannot be mapped: %s",
				 message->size, gmem_errno_name(err));
	return 0;
}

static struct block *new_block(struct gmem_import *import, const struct gmem_message *message,
			       int fd, int *ret_err)
{
	struct block *block;
	void *hva;

	*ret_err = check_room(import, message);
	if (!*ret_err)
		*ret_err = check_file(import, message, fd);
	if (*ret_err)
		return NULL;

	block = malloc(sizeof(*block));
	if (!block) {
		*ret_err = gmem_fail(-ENOMEM, "no memory for an extent");
		return NULL;
	}
	*ret_err = map_extent(message, fd, &hva);
	if (*ret_err) {
		free(block);
		return NULL;
	}

	*block = (struct block){
		.region = {
			.vm = &import->vm,
			.gpa = { .start = message->gpa, .size = message->size },
			.hva = { .start = (uintptr_t)hva, .size = message->size },
			.file_offset = message->offset,
			.backing = GMEM_BACKING_HOST,	/* for this process it is a mapping */
			.read_only = !(message->rights & GMEM_RIGHT_WRITE),
		},
		.id = { .start = message->id, .size = 1 },
		.file_size = message->file_size,
		.page_size = message->page_size,
		.rights = message->rights & ~GMEM_WIRE_WITHHELD,
		.backing = message->backing,
		.fd = fd,
	};
	gmem_maps_pin_mapped(hva, message->size, &block->region.pin);
	return block;
}

/* Takes @fd, on failure too. */
static int do_map(struct gmem_import *import, const struct gmem_message *message, int fd)
{
	struct block *block;
	int err;

	if (block_of_id(import, message->id) ||
	    gmem_regions_next(&import->vm, message->gpa, message->gpa + message->size - 1)) {
		gmem_sys_close(fd);
		return gmem_fail(-EPROTO, "id %" PRIu64 " at gpa 0x%" PRIx64 ", 0x%" PRIx64
				 " bytes, is there already", message->id, message->gpa, message->size);
	}

	block = new_block(import, message, fd, &err);
	if (!block) {
		gmem_sys_close(fd);
		return err;
	}

	err = gmem_states_new(&block->region.states, message->size);
	if (!err && message->rights & GMEM_WIRE_WITHHELD)
		gmem_states_set(&block->region.states, GMEM_PAGE_PRIVATE, 0, message->size, true);
	if (!err)
		err = publish(import, block, false);
	if (err) {
		free_block(block);
		return err;
	}
	import->complete = false;
	return 0;
}

static int do_unmap(struct gmem_import *import, const struct gmem_message *message)
{
	struct block *block = block_of_id(import, message->id);
	int err;

	if (!block)
		return gmem_fail(-EPROTO, "id %" PRIu64 " is not there", message->id);

	err = publish(import, block, true);
	if (err)
		return err;
	free_block(block);
	return 0;
}

/* ---- revoke and grant ---- */

static struct block *find_part(const struct gmem_import *import,
			       const struct gmem_message *message)
{
	struct block *block = block_of_id(import, message->id);
	const struct gmem_range *gpa = block ? &block->region.gpa : NULL;

	if (gpa && message->gpa >= gpa->start && message->size <= gpa->size &&
	    message->gpa - gpa->start <= gpa->size - message->size)
		return block;
	gmem_fail(-EPROTO, "id %" PRIu64 " has no 0x%" PRIx64 " bytes at gpa 0x%" PRIx64,
		  message->id, message->size, message->gpa);
	return NULL;
}

/* Replace the mapping of a part: the file if @granted, or inaccessible memory. */
static int remap(const struct block *block, const struct gmem_message *message, bool granted)
{
	uint64_t within = message->gpa - block->region.gpa.start;
	void *hva = (void *)(uintptr_t)(block->region.hva.start + within), *got;
	int prot = PROT_READ | (block->rights & GMEM_RIGHT_WRITE ? PROT_WRITE : 0), err;

	if (granted)
		err = gmem_sys_mmap(hva, message->size, prot, MAP_SHARED | MAP_NORESERVE | MAP_FIXED,
				    block->fd, block->region.file_offset + within, &got);
	else
		err = gmem_sys_mmap(hva, message->size, PROT_NONE,
				    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0,
				    &got);
	if (err)
		return gmem_fail(err, "0x%" PRIx64 " bytes at gpa 0x%" PRIx64 " cannot be %smapped: %s",
				 message->size, message->gpa, granted ? "" : "un",
				 gmem_errno_name(err));
	return 0;
}

static void show_as(struct gmem_import *import, struct block *block,
		    const struct gmem_message *message, bool granted)
{
	gmem_states_set(&block->region.states, GMEM_PAGE_PRIVATE, message->gpa - block->region.gpa.start,
			message->size, !granted);
	gmem_vm_show_states(&import->vm, &block->region, message->gpa, message->size, false);
}

/* If unmapping fails, readers have lost the range all the same; the answer has the errno. */
static int do_revoke(struct gmem_import *import, const struct gmem_message *message)
{
	struct block *block = find_part(import, message);

	if (!block)
		return -EPROTO;
	show_as(import, block, message, false);
	gmem_vm_wait_for_views(&import->vm, NULL);
	return remap(block, message, false);
}

static int do_grant(struct gmem_import *import, const struct gmem_message *message)
{
	struct block *block = find_part(import, message);
	int err;

	if (!block)
		return -EPROTO;
	err = remap(block, message, true);
	if (err)
		return err;
	show_as(import, block, message, true);
	import->complete = false;
	return 0;
}

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

/* Act on a message; takes @fd. -EPROTO ends the import, any other -errno is the answer. */
static int perform(struct gmem_import *import, const struct gmem_message *message, int fd)
{
	if (!import->greeted && message->type != GMEM_WIRE_HELLO) {
		if (fd >= 0)
			gmem_sys_close(fd);
		return gmem_fail(-EPROTO, "a message \"%s\" without a greeting",
				 gmem_wire_name(message->type));
	}

	switch (message->type) {
	case GMEM_WIRE_HELLO:
		return do_hello(import, message);
	case GMEM_WIRE_MAP:
		return do_map(import, message, fd);
	case GMEM_WIRE_UNMAP:
		return do_unmap(import, message);
	case GMEM_WIRE_REVOKE:
		return do_revoke(import, message);
	case GMEM_WIRE_GRANT:
		return do_grant(import, message);
	case GMEM_WIRE_READY:
		import->complete = true;
		return 0;
	default:
		return gmem_fail(-EPROTO, "a message \"%s\" is not for an import",
				 gmem_wire_name(message->type));
	}
}

static int send_answer(const struct gmem_import *import, uint32_t sequence, int result)
{
	const struct gmem_message message = {
		.type = GMEM_WIRE_ANSWER,
		.sequence = sequence,
		.status = (uint32_t)-result,
	};
	int err = gmem_wire_send(import->sock, &message, -1);

	/*
	 * The exporter waits for each answer, so the socket has room for this one unless the
	 * exporter does not read.
	 */
	if (err == -EAGAIN)
		return gmem_fail(-EPROTO, "the exporting process reads no answers");
	if (err)
		return gmem_fail(-EPIPE, "the exporting process is gone");
	return 0;
}

/* Returns 1 if more messages may wait, 0 if none does. */
static int dispatch_one(struct gmem_import *import)
{
	struct gmem_message message;
	int fd, n, err;

	n = gmem_wire_receive(import->sock, &message, &fd);
	if (n <= 0)
		return n;

	err = perform(import, &message, fd);
	if (err == -EPROTO)
		return err;
	err = send_answer(import, message.sequence, err);
	return err ? err : 1;
}

static int dispatch(struct gmem_import *import)
{
	int n = 1;

	for (unsigned int i = 0; i < MAX_MESSAGES && n > 0 && !import->status; i++)
		n = dispatch_one(import);
	if (n < 0) {
		import->status = n;
		gmem_sys_shutdown(import->sock);
		return n;
	}
	if (import->status)
		return gmem_fail(import->status, "the import ended before: %s",
				 gmem_errno_name(import->status));
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

/* ---- the import ---- */

static int check_opts(const struct gmem_import_opts *opts)
{
	if (opts->reserved)
		return gmem_fail(-EINVAL, "reserved is %" PRIu32 ", not 0", opts->reserved);
	return gmem_check_flags("flags", opts->flags, GMEM_IMPORT_UNSEALED);
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
	import->sock = gmem_sys_dup(sock);
	if (import->sock < 0) {
		err = gmem_fail(import->sock, "fd %d cannot be duplicated: %s", sock,
				gmem_errno_name(import->sock));
		free(import);
		return err;
	}

	gmem_vm_begin(&import->vm);
	import->vm.fd = -1;
	import->flags = opts.flags;
	import->max_bytes = opts.max_bytes;
	import->max_extents = opts.max_extents ? opts.max_extents : DEFAULT_MAX_EXTENTS;
	*ret = import;
	return 0;
}

GMEM_API void gmem_import_free(struct gmem_import *import)
{
	struct gmem_range *gpa;

	if (!import)
		return;

	while ((gpa = import->vm.regions.root)) {
		struct block *block = block_of_gpa(gpa);

		remove_block(import, block);
		free_block(block);
	}
	gmem_sys_shutdown(import->sock);
	gmem_sys_close(import->sock);
	gmem_vm_drop_table(&import->vm);
	gmem_vm_end(&import->vm);
	free(import);
}

GMEM_API int gmem_import_fd(const struct gmem_import *import)
{
	return import ? import->sock : gmem_fail(-EINVAL, "import is NULL");
}

GMEM_API int gmem_import_view_new(struct gmem_import *import, struct gmem_view **ret)
{
	if (!import)
		return gmem_fail(-EINVAL, "import is NULL");
	return gmem_view_new(&import->vm, ret);
}

static struct gmem_extent describe(const struct block *block)
{
	return (struct gmem_extent){
		.gpa = block->region.gpa.start,
		.size = block->region.gpa.size,
		.hva = (void *)(uintptr_t)block->region.hva.start,
		.offset = block->region.file_offset,
		.file_size = block->file_size,
		.page_size = block->page_size,
		.fd = -1,
		.rights = block->rights,
		.backing = block->backing,
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
		extents[count++] = describe(GMEM_CONTAINER_OF(region, struct block, region));
		gpa = region->gpa.start + region->gpa.size;
		if (!gpa)
			break;
	}
unlock:
	gmem_lock_drop(&import->vm.lock);
	return count;
}
