/* SPDX-License-Identifier: MIT */
/*
 * Readers and the wait for them. A reader makes its epoch odd, then looks at
 * the VM's table; whoever changes the layout publishes a new table, then waits
 * until each epoch that was odd has changed. Both sides must be ordered, store
 * before load; readers leave their half of that to the writer, whose
 * membarrier(2) has every other thread of the process execute a barrier. Where
 * membarrier is forbidden, readers use sequentially consistent accesses.
 */
#include "view/view.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/membarrier.h>
#include <stdlib.h>
#include <sys/uio.h>

#include "base/error.h"
#include "base/lock.h"
#include "base/range_map.h"
#include "nofault/nofault.h"
#include "os/sys.h"
#include "region/regions.h"
#include "view/lookup_table.h"

#define CACHE_LINE 64

/* Looks at a reader that is inside before we begin to sleep between them */
#define LOOKS_AWAKE 100
#define SLEEP_MICROSECONDS 50

/* For a store to become visible: far more than any processor takes */
#define SETTLE_MICROSECONDS 10000

static struct gmem_reader *reader_of(struct gmem_view *view)
{
	return GMEM_CONTAINER_OF(view, struct gmem_reader, view);
}

/* ---- views ---- */

/* The first view: from now on there is a table to keep. */
static int start_table(struct gmem_vm *vm)
{
	const struct gmem_layout layout = { &vm->regions, &vm->privates };
	struct gmem_stretch at = GMEM_REGIONS_WALK(vm, 0, UINT64_MAX);
	struct gmem_table *table;
	int err;

	if (vm->table)
		return 0;

	err = gmem_table_new(NULL, &vm->regions, &table);
	if (err)
		return err;

	while (!err && gmem_regions_walk_whole(&at))
		if (at.region)
			err = gmem_table_refresh(table, NULL, &layout, at.gpa, at.size);
	if (err) {
		gmem_table_free(table, NULL);
		return err;
	}

	vm->fence = gmem_sys_membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) != 0;
	gmem_vm_publish(vm, table);
	return 0;
}

GMEM_API int gmem_view_new(struct gmem_vm *vm, struct gmem_view **ret)
{
	struct gmem_reader *reader;
	int err;

	if (!vm || !ret)
		return gmem_fail(-EINVAL, "%s is NULL", vm ? "ret" : "vm");

	/* A line of its own: readers must not slow each other down. */
	reader = aligned_alloc(CACHE_LINE, (sizeof(*reader) + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE);
	if (!reader)
		return gmem_fail(-ENOMEM, "no memory for a view");

	/* Not in the middle of a conversion, which tells readers, if there are any. */
	gmem_lock_take(&vm->change_lock);
	gmem_lock_take(&vm->lock);
	err = start_table(vm);
	gmem_lock_drop(&vm->lock);
	gmem_lock_drop(&vm->change_lock);
	if (err) {
		free(reader);
		return gmem_fail(err, "no memory for the readers' table");
	}

	gmem_lock_take(&vm->views_lock);
	*reader = (struct gmem_reader){
		.view = { .current = &vm->table, .fence = vm->fence },
		.vm = vm,
		.next = vm->views,
		.fast = gmem_nofault_is_recoverable(),
	};
	vm->views = reader;
	gmem_lock_drop(&vm->views_lock);

	*ret = &reader->view;
	return 0;
}

GMEM_API void gmem_view_free(struct gmem_view *view)
{
	struct gmem_reader *reader, **link;

	if (!view)
		return;

	reader = reader_of(view);
	gmem_lock_take(&reader->vm->views_lock);
	for (link = &reader->vm->views; *link != reader; link = &(*link)->next)
		;
	*link = reader->next;
	gmem_lock_drop(&reader->vm->views_lock);
	free(reader);
}

/* ---- the writer's side ---- */

void gmem_vm_publish(struct gmem_vm *vm, const struct gmem_table *table)
{
	/* Pairs with the load in gmem_view_begin(). */
	if (table)
		__atomic_store_n(&vm->table, table, __ATOMIC_SEQ_CST);
}

void gmem_vm_drop_table(struct gmem_vm *vm)
{
	gmem_table_free(vm->table, NULL);
}

static void wait_for(const struct gmem_reader *reader)
{
	/* Pairs with the stores in gmem_view_begin() and gmem_view_end(). */
	uint64_t epoch = __atomic_load_n(&reader->view.epoch, __ATOMIC_SEQ_CST);
	unsigned int looks = 0;

	if (epoch % 2 == 0)
		return;

	while (__atomic_load_n(&reader->view.epoch, __ATOMIC_ACQUIRE) == epoch)
		gmem_sys_pause(looks++ < LOOKS_AWAKE ? 0 : SLEEP_MICROSECONDS);
}

/*
 * It was there for the first view and is not now: someone installed a seccomp
 * filter since. From now on readers order their accesses themselves; for those
 * that are between the two at this moment there is nothing better than time,
 * which a store needs little of to reach the other side.
 */
static void do_without_membarrier(struct gmem_vm *vm)
{
	struct gmem_reader *reader;

	vm->fence = true;
	for (reader = vm->views; reader; reader = reader->next)
		__atomic_store_n(&reader->view.fence, 1, __ATOMIC_RELAXED);
	gmem_sys_pause(SETTLE_MICROSECONDS);
}

void gmem_vm_wait_for_views(struct gmem_vm *vm)
{
	const struct gmem_reader *reader;

	gmem_lock_take(&vm->views_lock);
	if (vm->views && !vm->fence && gmem_sys_membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED) != 0)
		do_without_membarrier(vm);
	for (reader = vm->views; reader; reader = reader->next)
		wait_for(reader);
	gmem_lock_drop(&vm->views_lock);
}

/* ---- translation, where the inline part cannot answer ---- */

static int fail_piece(struct gmem_translation piece, uint64_t gpa)
{
	static const char *const what[] = { "no region", "only a region that was removed",
					    "a device", "private memory" };

	return gmem_fail(gmem_translation_error(piece), "there is %s at gpa 0x%" PRIx64,
			 what[piece.code / 2], gpa);
}

int gmem_view_contiguous(const struct gmem_view *view, uint64_t gpa, uint64_t size,
			 struct iovec *ret)
{
	struct gmem_translation piece = gmem_table_translate(view->table, gpa);
	uint64_t code = piece.code, at = gpa;

	if (gmem_translation_error(piece))
		return fail_piece(piece, gpa);

	/* Entries and granules end; what is behind them may go on. */
	while (piece.last - gpa < size - 1 && piece.code == code) {
		at = piece.last + 1;
		piece = gmem_table_translate(view->table, at);
	}
	ret->iov_base = gmem_translation_hva((struct gmem_translation){ .code = code }, gpa);
	ret->iov_len = piece.code == code ? size : at - gpa;
	return 0;
}

int gmem_view_contiguous_to_write(const struct gmem_view *view, uint64_t gpa, uint64_t size,
				  struct iovec *ret)
{
	struct gmem_translation piece = gmem_table_translate(view->table, gpa);

	if (piece.code & 1 && piece.code & GMEM_CODE_READ_ONLY)
		return gmem_fail(-EROFS, "the memory at gpa 0x%" PRIx64 " may only be read", gpa);
	return gmem_view_contiguous(view, gpa, size, ret);
}

GMEM_API int gmem_view_hva_slow(const struct gmem_view *view, uint64_t gpa, uint64_t size,
				void **ret_hva)
{
	struct gmem_translation first;
	struct iovec piece;
	int err;

	if (!view || !ret_hva)
		return gmem_fail(-EINVAL, "%s is NULL", view ? "ret_hva" : "view");

	/* Regions smaller than an entry come here each time; mostly this is all. */
	first = gmem_table_translate(view->table, gpa);
	if (first.code & 1 && size - 1 <= first.last - gpa) {
		*ret_hva = gmem_translation_hva(first, gpa);
		return 0;
	}

	if (size == 0 || gpa + size - 1 < gpa)
		return gmem_fail(-EINVAL, "gpa 0x%" PRIx64 " + size 0x%" PRIx64 " is no range", gpa,
				 size);

	err = gmem_view_contiguous(view, gpa, size, &piece);
	if (err)
		return err;
	if (piece.iov_len < size)
		return gmem_fail(-ERANGE,
				 "gpa 0x%" PRIx64 " has 0x%zx bytes in one piece, not 0x%" PRIx64, gpa,
				 piece.iov_len, size);

	*ret_hva = piece.iov_base;
	return 0;
}

static int count_pieces(const struct gmem_view *view, uint64_t gpa, uint64_t size, size_t max)
{
	struct iovec piece;
	size_t count = 0;
	int err;

	for (; size; gpa += piece.iov_len, size -= piece.iov_len) {
		err = gmem_view_contiguous(view, gpa, size, &piece);
		if (err)
			return err;
		if (count++ == max)
			return gmem_fail(-ENOSPC, "the range takes more than %zu pieces, 0x%" PRIx64
					 " bytes of it", max, size);
	}
	return 0;
}

GMEM_API int gmem_view_iovec(const struct gmem_view *view, uint64_t gpa, uint64_t size,
			     struct iovec *iov, size_t max)
{
	int count = 0, err;

	if (!view || !iov)
		return gmem_fail(-EINVAL, "%s is NULL", view ? "iov" : "view");
	if (size == 0 || gpa + size - 1 < gpa)
		return gmem_fail(-EINVAL, "gpa 0x%" PRIx64 " + size 0x%" PRIx64 " is no range", gpa,
				 size);
	if (max > INT32_MAX)
		max = INT32_MAX;

	/* Once without writing: on failure @iov must be as it was. */
	err = count_pieces(view, gpa, size, max);
	if (err)
		return err;

	while (size) {
		gmem_view_contiguous(view, gpa, size, &iov[count]);
		gpa += iov[count].iov_len;
		size -= iov[count].iov_len;
		count++;
	}
	return count;
}
