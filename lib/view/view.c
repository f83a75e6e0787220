/* SPDX-License-Identifier: MIT */
/*
 * Why the wait misses no reader. These are the accesses, in program order:
 *
 *   reader                                   writer
 *   R0  load newest.period  (view_begin)     W1  store newest.table   (gmem_vm_publish)
 *   R1  store view.period   (view_begin)     W2  store newest.period  (begin_period)
 *   R2  load newest.table   (view_begin)     W3  membarrier           (gmem_vm_wait_for_views)
 *       use the table and the memory         W4  load view.period     (find_busy)
 *   R3  store view.period 0 (view_end)       W5  load it again        (wait_for)
 *                                                free the old table, unmap memory
 *
 * Each wait begins a period. A view that is in use has the period that it began in, so the
 * writer need not wait for those of its own period and of later ones. Readers only store what
 * they loaded: to count, they would have to wait for their last store, each time.
 *
 * 1. The table is complete. R2 acquires what W1 releases: a reader that loads the new
 *    table sees its contents.
 *
 * 2. A reader with an old table is waited for: either R2 loads the new table, or W4 sees
 *    an older period, which is not 0. On both sides a store must be visible before a load,
 *    which takes a full barrier each. Readers have none of their own, only a compiler
 *    barrier between R1 and R2. W3 has each thread of the process execute a full barrier
 *    somewhere between W2 and W4; for a thread that does not run, switching it out was one.
 *    If a reader executes it before R2, then R2 comes after W1, and loads the new table. If
 *    it does so after R1, then R1 comes before W4, which sees it.
 *
 * 3. A reader of the writer's period or of a later one has the new table: its R0 acquired
 *    what W2 released, so W1 happened before its R2.
 *
 * 4. The wait ends after the last use. W4 and W5 acquire what R3 releases, or see the R1
 *    after it, which is in the release sequence of R3. So the reader's accesses to the table
 *    and to the memory are over before the writer frees them.
 *
 * 5. A change of the period is enough, even if the reader has begun once more before W5.
 *    W4 saw the period before that R1, so the barrier of W3 came before that R1, too, and
 *    its R2 loads the new table. A reader that executed the barrier between R0 and R1 has an
 *    older period and the new table: it is waited for though it need not be, once.
 *
 * 6. A signal's handler that begins the view inside of another use of it comes after the R1
 *    of that use, or before: then it is a use of its own. After, it has no R1 and no R3, and an
 *    R2 of its own, for which the R1 and R3 of what it interrupts do.
 *
 * A conversion to private is the same with other stores in place of W1: it sets the bits of
 * its pages and the entries that lead to them (gmem_vm_show_states). A reader that loads
 * an entry or a bit does so after its R2; so either it sees the new ones, or W4 sees its
 * older period. Within one begin and end a page may thus turn private, but a host address
 * that was returned before stays good until the end. A conversion to shared stores with
 * release order after the kernel agreed, readers load with acquire order, and nothing is
 * waited for: nothing is freed.
 *
 * If membarrier(2) is forbidden, periods are odd: then R1, R2, W1 and W4 are all
 * sequentially consistent, and their single order replaces the barriers in 2 and 5. A
 * conversion then stores the table once more, unchanged: a reader that W4 does not see comes
 * after that in the single order, and its R2 acquires the bits and entries with the pointer.
 */
#include "view/view.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/membarrier.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/uio.h>

#include "base/error.h"
#include "base/fence.h"
#include "base/lock.h"
#include "os/process.h"
#include "os/sys.h"
#include "region/peer_marks.h"
#include "region/regions.h"
#include "view/lookup_table.h"

#define CACHE_LINE 64

/* Periods are counted in steps of 2: the lowest bit tells readers that they need a fence. */
#define PERIOD 2
#define PERIOD_FENCE 1

/* Loads of a busy view's period that only yield the processor; later ones sleep in between. */
#define LOADS_AWAKE 100
#define SLEEP_MICROSECONDS 50

/* Bytes whose entries are rewritten while other conversions wait */
#define SHOWN_AT_ONCE (UINT64_C(64) << 30)

/* Far more than any processor takes to make a store visible */
#define SETTLE_MICROSECONDS 10000

/* What a VM's end waits for views, if the VM's owner said nothing */
#define END_MS 1000

static struct gmem_reader *reader_of(struct gmem_view *view)
{
	return GMEM_CONTAINER_OF(view, struct gmem_reader, view);
}

static bool needs_fence(const struct gmem_vm *vm)
{
	return __atomic_load_n(&vm->newest.period, __ATOMIC_RELAXED) & PERIOD_FENCE;
}

/* ---- views ---- */

static int enter_all(struct gmem_vm *vm, struct gmem_table *table)
{
	struct gmem_stretch at = GMEM_REGIONS_WALK(vm, 0, UINT64_MAX);
	int err = 0;

	while (!err && gmem_regions_walk_whole(&at))
		if (at.region)
			err = gmem_table_enter(table, NULL, at.region, at.gpa,
					       at.region->hva.start);
	return err;
}

static int start_table(struct gmem_vm *vm)
{
	struct gmem_table *table;
	bool has_membarrier;
	int err;

	if (gmem_vm_table(vm))
		return 0;

	err = gmem_table_new(NULL, gmem_table_reach_over(&vm->regions), &table);
	if (err)
		return err;

	err = enter_all(vm, table);
	if (!err && vm->build_next_table)
		err = vm->build_next_table(vm, table);
	if (err) {
		gmem_table_free(table, NULL);
		return err;
	}

	has_membarrier = gmem_sys_membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) == 0;
	vm->newest.period = PERIOD + (has_membarrier ? 0 : PERIOD_FENCE);
	gmem_process_begin(&vm->process);
	gmem_vm_publish(vm, table);
	return 0;
}

int gmem_vm_start_table(struct gmem_vm *vm)
{
	int err;

	/* A change under way gets the table that it replaces, and the one that follows, now. */
	gmem_lock_take(&vm->change_lock);
	gmem_lock_take(&vm->lock);
	err = start_table(vm);
	gmem_lock_drop(&vm->lock);
	gmem_lock_drop(&vm->change_lock);
	return err ? gmem_fail(err, "no memory for the readers' table") : 0;
}

/* Whether and where it marks what it writes. With views_lock. */
static void tell_view(struct gmem_reader *reader)
{
	struct gmem_dirty_pages *dirty = __atomic_load_n(&reader->vm->newest.dirty, __ATOMIC_RELAXED);
	const struct gmem_dirty_pages *marks = dirty;

	if (dirty && needs_fence(reader->vm))
		gmem_dirty_pages_need_fences(dirty);
	if (!reader->fast || __atomic_load_n(&reader->vm->peer_marks, __ATOMIC_RELAXED))
		marks = GMEM_VIEW_MARKS_ELSEWHERE;
	__atomic_store_n(&reader->marks, marks, __ATOMIC_RELEASE);
}

GMEM_API int gmem_view_new(struct gmem_vm *vm, struct gmem_view **ret)
{
	struct gmem_reader *reader;
	int err;

	if (!vm || !ret)
		return gmem_fail(-EINVAL, "%s is NULL", vm ? "ret" : "vm");

	/* Each reader has cache lines of its own, so that their stores do not compete. */
	reader = aligned_alloc(CACHE_LINE, (sizeof(*reader) + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE);
	if (!reader)
		return gmem_fail(-ENOMEM, "no memory for a view");

	err = gmem_vm_start_table(vm);
	if (err) {
		free(reader);
		return err;
	}

	gmem_lock_take(&vm->views_lock);
	*reader = (struct gmem_reader){
		.view = { .newest = &vm->newest },
		.vm = gmem_vm_ref(vm),
		.next = vm->views,
		.link = &vm->views,
		.number = ++vm->views_made,
		.process = gmem_process_number(&vm->process),
		.fast = gmem_nofault_is_recoverable(),
	};
	tell_view(reader);
	if (reader->next)
		reader->next->link = &reader->next;
	vm->views = reader;
	gmem_lock_drop(&vm->views_lock);

	*ret = &reader->view;
	return 0;
}

GMEM_API void gmem_view_free(struct gmem_view *view)
{
	struct gmem_reader *reader;
	bool keeps_memory;

	if (!view)
		return;

	reader = reader_of(view);
	gmem_lock_take(&reader->vm->views_lock);
	*reader->link = reader->next;
	if (reader->next)
		reader->next->link = reader->link;
	keeps_memory = reader->keeps_memory;
	gmem_lock_drop(&reader->vm->views_lock);
	if (keeps_memory)
		gmem_vm_drop_memory(reader->vm);
	gmem_vm_unref(reader->vm);
	free(reader);
}

/* ---- a thread's own views ---- */

/*
 * One key of the process has each thread's views freed when the thread ends; only a key does
 * that with every C library. It is made with the first of these views and deleted when the
 * library is unloaded, so that a thread that ends later does not call what is gone.
 */
static uint32_t shared_key;	/* atomic: its pthread_key_t plus 1, or 0 */

/* Those of this thread, the one that was asked for last first */
static __thread struct gmem_reader *own_views;

static void free_views(void *views)
{
	struct gmem_reader **first = views, *reader;

	while ((reader = *first)) {
		*first = reader->next_own;
		gmem_view_free(&reader->view);
	}
}

__attribute__((destructor)) static void delete_key(void)
{
	uint32_t key = __atomic_exchange_n(&shared_key, 0, __ATOMIC_RELAXED);

	if (key)
		pthread_key_delete((pthread_key_t)(key - 1));
}

static int find_key(pthread_key_t *ret)
{
	uint32_t known = __atomic_load_n(&shared_key, __ATOMIC_RELAXED);
	int err;

	if (known) {
		*ret = (pthread_key_t)(known - 1);
		return 0;
	}

	err = pthread_key_create(ret, free_views);
	if (err)
		return gmem_fail(-err, "the process has no key left for the views of threads: all %d of "
				 "pthread_key_create(3) are in use", PTHREAD_KEYS_MAX);
	if (!__atomic_compare_exchange_n(&shared_key, &known, *ret + 1, false, __ATOMIC_RELAXED,
					 __ATOMIC_RELAXED)) {
		pthread_key_delete(*ret);
		*ret = (pthread_key_t)(known - 1);
	}
	return 0;
}

/* Has the views of this thread freed when it ends. */
static int use_key(void)
{
	pthread_key_t key;
	int err = find_key(&key);

	if (err)
		return err;
	err = pthread_setspecific(key, &own_views);
	return err ? gmem_fail(-err, "no memory for a thread's view") : 0;
}

/* Finds this thread's view of @vm and moves it to the front. NULL: it has none. */
static struct gmem_reader *find_own_view(const struct gmem_vm *vm)
{
	struct gmem_reader *reader = own_views, *before = NULL;

	while (reader && reader->vm != vm) {
		before = reader;
		reader = reader->next_own;
	}
	if (reader && before) {
		before->next_own = reader->next_own;
		reader->next_own = own_views;
		own_views = reader;
	}
	return reader;
}

/* A thread may live longer than VM after VM. Spares a view that is in use. */
static void free_ended_views(void)
{
	struct gmem_reader **link = &own_views, *reader;

	while ((reader = *link)) {
		if (__atomic_load_n(&reader->vm->is_over, __ATOMIC_ACQUIRE) && !reader->view.period) {
			*link = reader->next_own;
			gmem_view_free(&reader->view);
		} else {
			link = &reader->next_own;
		}
	}
}

static int make_own_view(struct gmem_vm *vm, struct gmem_reader **ret)
{
	struct gmem_view *view;
	int err;

	free_ended_views();
	err = use_key();
	if (!err)
		err = gmem_view_new(vm, &view);
	if (err)
		return err;

	*ret = reader_of(view);
	(*ret)->next_own = own_views;
	own_views = *ret;
	return 0;
}

/* Kept out of the way of the common case, which then saves no registers. */
static __attribute__((noinline)) int find_or_make_own_view(struct gmem_vm *vm, struct gmem_view **ret)
{
	struct gmem_reader *reader;
	int err;

	if (!vm || !ret)
		return gmem_fail(-EINVAL, "%s is NULL", vm ? "ret" : "vm");

	reader = find_own_view(vm);
	err = reader ? 0 : make_own_view(vm, &reader);
	if (err)
		return err;
	*ret = &reader->view;
	return 0;
}

GMEM_API int gmem_vm_thread_view(struct gmem_vm *vm, struct gmem_view **ret)
{
	struct gmem_reader *first = own_views;

	if (first && first->vm == vm && ret) {
		*ret = &first->view;
		return 0;
	}
	return find_or_make_own_view(vm, ret);
}

/* Those of other threads go when these need another one, or end. */
static void free_own_view(struct gmem_vm *vm)
{
	struct gmem_reader *reader = find_own_view(vm);

	if (reader) {
		own_views = reader->next_own;
		gmem_view_free(&reader->view);
	}
}

/* ---- the writer's side ---- */

void gmem_vm_publish(struct gmem_vm *vm, const struct gmem_table *table)
{
	/* W1, releases the contents of the table to R2. */
	if (table)
		__atomic_store_n(&vm->newest.table, table, __ATOMIC_SEQ_CST);
}

void gmem_vm_drop_table(struct gmem_vm *vm)
{
	gmem_table_free(gmem_vm_table(vm), NULL);
	gmem_table_free(vm->next_table, NULL);
	gmem_process_end(&vm->process);
}

/*
 * Returns the period that begins. W2, releases what was stored before, such as W1, to the R0
 * of readers that begin in it. With views_lock.
 */
static uint64_t begin_period(struct gmem_vm *vm)
{
	uint64_t period = vm->newest.period + PERIOD;

	__atomic_store_n(&vm->newest.period, period, __ATOMIC_RELEASE);
	return period;
}

/*
 * membarrier(2) worked for the first view and fails now, because a seccomp filter was
 * installed since. From now on readers use sequentially consistent accesses. A reader may
 * have decided against them, and be about to execute R1 and R2 with only a compiler barrier
 * in between. Nothing can order these two, but after a pause either its R1 is visible to
 * W4, or its R2 comes after W1. It is the same for those that found their page marked already.
 * Marks are freed with the lock taken in between.
 */
static void do_without_membarrier(struct gmem_vm *vm)
{
	struct gmem_dirty_pages *dirty = __atomic_load_n(&vm->newest.dirty, __ATOMIC_ACQUIRE);

	__atomic_store_n(&vm->newest.period, vm->newest.period | PERIOD_FENCE, __ATOMIC_RELEASE);
	if (dirty)
		gmem_dirty_pages_need_fences(dirty);
	gmem_sys_pause(SETTLE_MICROSECONDS);
}

/*
 * The first reader from @number downwards that uses what it began with before @period.
 * W4, ordered after W1 against R1 and R2; acquires R3 if the reader is not busy. In a child of
 * fork(), readers of the parent are as they were then, for ever, and use nothing.
 */
static struct gmem_reader *find_busy(struct gmem_vm *vm, uint64_t number, uint64_t period,
				     uint64_t *ret_period)
{
	uint32_t process = gmem_process_number(&vm->process);
	struct gmem_reader *reader;

	for (reader = vm->views; reader; reader = reader->next) {
		if (reader->number > number || reader->process != process)
			continue;
		*ret_period = __atomic_load_n(&reader->view.period, __ATOMIC_SEQ_CST);
		if (*ret_period && *ret_period < period)
			break;
	}
	return reader;
}

/*
 * Wait, without the lock meanwhile, until reader @number is gone or its period is not @period
 * any more. W5, acquires R3, or the R1 after it, which is in the release sequence of R3.
 * Returns false at the time @end.
 */
static bool wait_for(struct gmem_vm *vm, uint64_t number, uint64_t period, uint64_t end)
{
	unsigned int loads = 0;
	uint64_t now;

	for (;;) {
		const struct gmem_reader *reader = vm->views;

		while (reader && reader->number > number)
			reader = reader->next;
		if (!reader || reader->number < number)
			return true;
		now = __atomic_load_n(&reader->view.period, __ATOMIC_ACQUIRE);
		if (now != period)
			return true;
		if (end != UINT64_MAX && gmem_sys_now() >= end)
			return false;

		gmem_lock_drop(&vm->views_lock);
		gmem_sys_pause(loads++ < LOADS_AWAKE ? 0 : SLEEP_MICROSECONDS);
		gmem_lock_take(&vm->views_lock);
	}
}

/* Wait for those that are busy since before @period. With views_lock; most find none. */
static bool wait_for_busy(struct gmem_vm *vm, uint64_t period, struct gmem_wait_budget *budget)
{
	const struct gmem_reader *reader;
	uint64_t number = UINT64_MAX, since, start, end;
	bool is_over = true;

	reader = find_busy(vm, number, period, &since);
	if (!reader)
		return true;

	start = gmem_sys_now();
	end = gmem_wait_end(budget, start);
	for (; reader && is_over; reader = find_busy(vm, number, period, &since)) {
		number = reader->number;
		is_over = wait_for(vm, number, since, end);
		number--;
	}
	gmem_wait_spend(budget, start, GMEM_WAIT_VIEWS);
	return is_over;
}

int gmem_vm_wait_for_views(struct gmem_vm *vm, struct gmem_wait_budget *budget)
{
	bool is_over = true;
	uint64_t period;

	/* The lock orders a view made meanwhile: it is in the list, or its R2 comes after W1. */
	gmem_lock_take(&vm->views_lock);
	if (vm->views) {
		period = begin_period(vm);
		/* W3 */
		if (!needs_fence(vm) &&
		    gmem_sys_membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED) != 0)
			do_without_membarrier(vm);
		is_over = wait_for_busy(vm, period, budget);
	}
	gmem_lock_drop(&vm->views_lock);
	return is_over ? 0 : gmem_fail(-EBUSY, "a view was to be waited for %" PRIu32 " ms, and is still "
				       "between begin and end", budget->wait_ms);
}

/*
 * Tell views whether there is something to mark. One made meanwhile is in the list, or finds
 * out with the lock. For the wait it is as the bits of pages in the argument above: a reader
 * looks at it after R2.
 */
static void tell_views(struct gmem_vm *vm)
{
	gmem_lock_take(&vm->change_lock);
	gmem_lock_take(&vm->views_lock);
	for (struct gmem_reader *reader = vm->views; reader; reader = reader->next)
		tell_view(reader);
	gmem_lock_drop(&vm->views_lock);
	if (needs_fence(vm))
		gmem_vm_publish(vm, gmem_vm_table(vm));
	gmem_lock_drop(&vm->change_lock);
}

void gmem_vm_track_views(struct gmem_vm *vm, struct gmem_dirty_pages *dirty)
{
	gmem_lock_take(&vm->lock);
	if (dirty && needs_fence(vm))
		gmem_dirty_pages_need_fences(dirty);
	__atomic_store_n(&vm->newest.dirty, dirty, __ATOMIC_RELEASE);
	gmem_lock_drop(&vm->lock);
	tell_views(vm);
}

void gmem_vm_mark_for_peer(struct gmem_vm *vm, const struct gmem_peer_marks *marks)
{
	__atomic_store_n(&vm->peer_marks, marks, __ATOMIC_RELEASE);
	tell_views(vm);
}

void gmem_vm_fence_views(struct gmem_vm *vm)
{
	gmem_lock_take(&vm->views_lock);
	if (vm->views && !needs_fence(vm) && gmem_sys_membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED) != 0)
		do_without_membarrier(vm);
	gmem_lock_drop(&vm->views_lock);
	gmem_fence();
}

/* Returns how many views do so. One that begins from now on finds nothing. */
static unsigned int have_busy_keep_memory(struct gmem_vm *vm)
{
	struct gmem_reader *reader;
	unsigned int count = 0;
	uint64_t since;

	gmem_lock_take(&vm->views_lock);
	reader = find_busy(vm, UINT64_MAX, vm->newest.period, &since);
	for (; reader; reader = find_busy(vm, reader->number - 1, vm->newest.period, &since)) {
		reader->keeps_memory = true;
		gmem_vm_keep_memory(vm);
		count++;
	}
	gmem_lock_drop(&vm->views_lock);
	return count;
}

void gmem_vm_end_views(struct gmem_vm *vm)
{
	struct gmem_wait_budget budget = gmem_vm_budget(vm, vm->wait_ms ? 0 : END_MS);
	const struct gmem_table *old;
	unsigned int busy;

	__atomic_store_n(&vm->is_over, true, __ATOMIC_RELEASE);
	free_own_view(vm);
	gmem_lock_take(&vm->change_lock);
	old = gmem_vm_table(vm);
	if (old)
		gmem_vm_publish(vm, &gmem_table_of_nothing);
	gmem_lock_drop(&vm->change_lock);

	if (!old)
		return;
	if (gmem_vm_wait_for_views(vm, &budget) == 0) {
		gmem_table_free(old, NULL);
		return;
	}
	vm->next_table = old;	/* freed with the last view */
	busy = have_busy_keep_memory(vm);
	if (busy)
		gmem_vm_log_error(vm, gmem_fail(-EBUSY, "views that are between begin and end still after %"
						PRIu32 " ms keep the memory of the freed handle until "
						"they are freed, too: %u of them", budget.wait_ms, busy));
}

static void show_part(struct gmem_vm *vm, const struct gmem_region *region, uint64_t gpa,
		      uint64_t size, bool is_private)
{
	const struct gmem_table *table;

	gmem_lock_take(&vm->change_lock);
	table = gmem_vm_table(vm);
	if (table)
		gmem_table_show_states(table, region, gpa, size, is_private);
	if (vm->next_table)
		gmem_table_show_states(vm->next_table, region, gpa, size, is_private);
	/* Readers with a fence are ordered by the table that they load, see above. */
	if (needs_fence(vm))
		gmem_vm_publish(vm, table);
	gmem_lock_drop(&vm->change_lock);
}

void gmem_vm_show_states(struct gmem_vm *vm, const struct gmem_region *region, uint64_t gpa,
			 uint64_t size, bool is_private)
{
	uint64_t part;

	for (; size; gpa += part, size -= part) {
		part = size < SHOWN_AT_ONCE ? size : SHOWN_AT_ONCE;
		show_part(vm, region, gpa, part, is_private);
	}
}

/* ---- marks, of readers that have found out that they are to make them ---- */

void gmem_view_mark(const struct gmem_view *view, uint64_t gpa, uint64_t size)
{
	const struct gmem_vm *vm = GMEM_CONTAINER_OF(view->newest, struct gmem_vm, newest);
	struct gmem_dirty_pages *dirty = __atomic_load_n(&vm->newest.dirty, __ATOMIC_ACQUIRE);
	const struct gmem_peer_marks *peer_marks = __atomic_load_n(&vm->peer_marks, __ATOMIC_ACQUIRE);

	if (dirty)
		gmem_dirty_pages_mark_in_view(dirty, gpa, size);
	if (peer_marks)
		gmem_peer_marks_set(peer_marks, gpa, size);
}

/* ---- translation, if the inline part cannot answer ---- */

static int fail_no_memory(struct gmem_translation piece, uint64_t gpa)
{
	static const char *const what[] = {
		"there is no region at gpa ", "there is only a region that was removed or moved at gpa ",
		"there is a device at gpa ", "there is private memory at gpa ",
		"the VM's handle was freed, or the import: nothing can be had at gpa ",
	};

	return gmem_fail_at(gmem_translation_error(piece), what[piece.code / 4], gpa, "");
}

int gmem_view_contiguous(const struct gmem_view *view, uint64_t gpa, uint64_t size,
			 struct iovec *ret)
{
	struct gmem_translation piece = gmem_table_translate(view->table, gpa);
	uint64_t code = piece.code, at = gpa;

	if (gmem_translation_error(piece))
		return fail_no_memory(piece, gpa);

	/* A piece ends with its entry, but the next entry may go on with the same memory. */
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

static int contiguous(const struct gmem_view *view, uint64_t gpa, uint64_t size, bool writes,
		      struct iovec *ret)
{
	return writes ? gmem_view_contiguous_to_write(view, gpa, size, ret)
		      : gmem_view_contiguous(view, gpa, size, ret);
}

static int find_hva(const struct gmem_view *view, uint64_t gpa, uint64_t size, bool writes,
		    void **ret_hva)
{
	struct gmem_translation first;
	struct iovec part;
	int err;

	if (!view || !ret_hva)
		return gmem_fail(-EINVAL, "%s is NULL", view ? "ret_hva" : "view");

	/* Regions smaller than an entry always come here, so try the simple case first. */
	first = gmem_table_translate(view->table, gpa);
	if (first.code & 1 && !(writes && first.code & GMEM_CODE_READ_ONLY) &&
	    size - 1 <= first.last - gpa) {
		*ret_hva = gmem_translation_hva(first, gpa);
		return 0;
	}

	if (size == 0 || gpa + size - 1 < gpa)
		return gmem_fail(-EINVAL, "gpa 0x%" PRIx64 " + size 0x%" PRIx64 " is no range", gpa,
				 size);

	err = contiguous(view, gpa, size, writes, &part);
	if (err)
		return err;
	if (part.iov_len < size)
		return gmem_fail(-ERANGE,
				 "gpa 0x%" PRIx64 " has 0x%zx bytes in one piece, not 0x%" PRIx64, gpa,
				 part.iov_len, size);

	*ret_hva = part.iov_base;
	return 0;
}

GMEM_API int gmem_view_hva_slow(const struct gmem_view *view, uint64_t gpa, uint64_t size,
				void **ret_hva)
{
	return find_hva(view, gpa, size, true, ret_hva);
}

GMEM_API int gmem_view_hva_read(const struct gmem_view *view, uint64_t gpa, uint64_t size,
				const void **ret_hva)
{
	void *hva = NULL;
	int err;

	if (!view || !ret_hva)
		return gmem_fail(-EINVAL, "%s is NULL", view ? "ret_hva" : "view");

	err = gmem_table_hva(view->table, gpa, size, &hva) ? 0 : find_hva(view, gpa, size, false, &hva);
	if (!err)
		*ret_hva = hva;
	return err;
}

/* In one pass: states may change between two. */
static int fill_iovec(const struct gmem_view *view, uint64_t gpa, uint64_t size, bool writes,
		      struct iovec *iov, size_t max)
{
	struct iovec part;
	int count = 0, err;

	if (!view || !iov)
		return gmem_fail(-EINVAL, "%s is NULL", view ? "iov" : "view");
	if (size == 0 || gpa + size - 1 < gpa)
		return gmem_fail(-EINVAL, "gpa 0x%" PRIx64 " + size 0x%" PRIx64 " is no range", gpa,
				 size);
	if (max > INT32_MAX)
		max = INT32_MAX;

	for (; size; gpa += part.iov_len, size -= part.iov_len) {
		err = contiguous(view, gpa, size, writes, &part);
		if (err)
			return err;
		if ((size_t)count == max)
			return gmem_fail(-ENOSPC, "the range takes more than %zu pieces, 0x%" PRIx64
					 " bytes are left", max, size);
		iov[count++] = part;
	}
	return count;
}

GMEM_API int gmem_view_iovec(const struct gmem_view *view, uint64_t gpa, uint64_t size,
			     struct iovec *iov, size_t max)
{
	return fill_iovec(view, gpa, size, true, iov, max);
}

GMEM_API int gmem_view_iovec_read(const struct gmem_view *view, uint64_t gpa, uint64_t size,
				  struct iovec *iov, size_t max)
{
	return fill_iovec(view, gpa, size, false, iov, max);
}
