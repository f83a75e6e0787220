/* SPDX-License-Identifier: MIT */
/*
 * view: a thread's view of guest memory, and the wait for threads that use theirs.
 *
 * Between gmem_view_begin() and gmem_view_end() a reader uses the lookup table that was
 * the newest at the beginning. A writer, which changes the layout, publishes a new table
 * and waits until no reader uses an older one. Only then it frees the old table, and unmaps
 * or discards memory that only the old table has. Readers take no lock and never wait.
 *
 * The VM has a period, which grows with each wait. A reader stores it at the beginning, and 0
 * at the end. The writer waits for each reader that has an older period than its own. view.c
 * argues why this is enough.
 *
 * Not supported: a change of the layout by a thread between begin and end, which would
 * wait for itself.
 */
#ifndef GMEM_VIEW_H
#define GMEM_VIEW_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "gmem.h"
#include "base/macros.h"
#include "base/wait_budget.h"
#include "nofault/nofault.h"
#include "region/dirty_pages.h"
#include "region/region.h"
#include "region/vm_core.h"

struct gmem_reader {
	struct gmem_view view;
	bool fast;	/* accesses use the fast engine of nofault.h */
	/*
	 * atomic: where writes with the fast engine are marked; NULL: nowhere. Others, or what is
	 * written for a peer: GMEM_VIEW_MARKS_ELSEWHERE
	 */
	const struct gmem_dirty_pages *marks;
	bool keeps_memory;	/* of a VM that is over: it was waited for in vain */
	uint32_t process;	/* that made it, of vm->process: no other has its thread */
	struct gmem_vm *vm;
	struct gmem_reader *next;	/* in vm->views, the newest first */
	struct gmem_reader **link;	/* what points to it there */
	uint64_t number;		/* higher than those of older ones; never used again */
	struct gmem_reader *next_own;	/* in the list of its thread, see gmem_vm_thread_view() */
};

/* Returns the argument @fast for the functions of nofault.h. */
static inline bool gmem_view_is_fast(const struct gmem_view *view)
{
	return GMEM_CONTAINER_OF(view, struct gmem_reader, view)->fast;
}

/* In the place of a view's marks, at which nothing is: gmem_view_mark() finds out what is to be done. */
#define GMEM_VIEW_MARKS_ELSEWHERE ((const struct gmem_dirty_pages *)1)

/* It is neither that nor NULL. */
static inline bool gmem_view_marks_are_here(const struct gmem_dirty_pages *marks)
{
	return (uintptr_t)marks > 1;
}

/*
 * To be asked in a period of the view; NULL: there is nothing to mark. If it changes meanwhile, what
 * was there stays until the period ends; it may have become NULL when asked again. What is
 * there is complete for whoever gets there by this pointer.
 */
static inline const struct gmem_dirty_pages *gmem_view_marks(const struct gmem_view *view)
{
#ifdef GMEM_NOFAULT_TSAN
	const int order = __ATOMIC_ACQUIRE;
#else
	const int order = __ATOMIC_RELAXED;
#endif

	return __atomic_load_n(&GMEM_CONTAINER_OF(view, struct gmem_reader, view)->marks, order);
}

/* ---- for writers ---- */

/* The newest table, for a change under way: nobody else makes another. Needs no lock. */
static inline const struct gmem_table *gmem_vm_table(const struct gmem_vm *vm)
{
	return __atomic_load_n(&vm->newest.table, __ATOMIC_RELAXED);
}

/* Makes the table, if this is the first time. Later changes keep it up to date. */
int gmem_vm_start_table(struct gmem_vm *vm);
/* Makes @table the newest. Does nothing for NULL: without a first view there is no table. */
void gmem_vm_publish(struct gmem_vm *vm, const struct gmem_table *table);
/*
 * Waits until no reader uses a table older than the newest, or states of pages older than
 * those shown last. -EBUSY and a sentence after what is left of @budget; NULL: no limit, and
 * it does not fail.
 */
int gmem_vm_wait_for_views(struct gmem_vm *vm, struct gmem_wait_budget *budget);
/*
 * Has readers see the bits of a part of @region as they are now; @is_private: all are set.
 * Takes change_lock.
 */
void gmem_vm_show_states(struct gmem_vm *vm, const struct gmem_region *region, uint64_t gpa,
			 uint64_t size, bool is_private);
/*
 * Have views mark what they write there, or with NULL not. Whoever calls this then waits for
 * views: after that all of them do so, or none uses the old marks. With the hook lock.
 */
void gmem_vm_track_views(struct gmem_vm *vm, struct gmem_dirty_pages *dirty);
/* The same for the views of an import, with a map that its exporter reads. */
void gmem_vm_mark_for_peer(struct gmem_vm *vm, const struct gmem_peer_marks *marks);
/* C2 of region/dirty_pages.h: have each view's thread execute a full barrier. */
void gmem_vm_fence_views(struct gmem_vm *vm);
/*
 * From now on the VM is over, and what views find is -ESTALE. Waits for those that are between
 * begin and end, as the owner's wait_ms says, or for a second: a thread may have died there.
 * Those that are still there then keep the memory, and the old table, until they are freed.
 */
void gmem_vm_end_views(struct gmem_vm *vm);
/* Frees what is left of a VM that has no views any more. */
void gmem_vm_drop_table(struct gmem_vm *vm);

/* ---- for readers, between gmem_view_begin() and gmem_view_end() ---- */

/*
 * For one access, without a call in between that could begin the view again: of a view that is
 * not begun, as gmem_view_begin() and gmem_view_end(), with the same argument why the wait
 * misses no reader, but leaves alone what these need to nest.
 */
static inline const struct gmem_table *gmem_view_enter(struct gmem_view *view)
{
	const struct gmem_newest *newest = view->newest;
	uint64_t period = __atomic_load_n(&newest->period, __ATOMIC_ACQUIRE);

	if (__builtin_expect(period & 1, 0)) {
#if defined(__x86_64__)
		/* From 0. GCC has an xchg in its place cost the likely way a register. */
		__atomic_fetch_add(&view->period, period, __ATOMIC_SEQ_CST);
#else
		__atomic_store_n(&view->period, period, __ATOMIC_SEQ_CST);
#endif
		return __atomic_load_n(&newest->table, __ATOMIC_SEQ_CST);
	}
	__atomic_store_n(&view->period, period, __ATOMIC_RELAXED);
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	return __atomic_load_n(&newest->table, __ATOMIC_ACQUIRE);
}

static inline void gmem_view_leave(struct gmem_view *view)
{
	__atomic_store_n(&view->period, 0, __ATOMIC_RELEASE);
}

/*
 * To be asked by the view's own thread. A view that is begun has its table, but for the handler of
 * a signal that interrupts an access, or gmem_view_begin() itself: gmem_view_begin() there borrows
 * the period of what was interrupted, and has a table of its own until gmem_view_end().
 */
static inline bool gmem_view_is_begun(const struct gmem_view *view)
{
	return __atomic_load_n(&view->period, __ATOMIC_RELAXED) != 0;
}

/* Mark what was written in this period of the view, where that is to be marked. */
void gmem_view_mark(const struct gmem_view *view, uint64_t gpa, uint64_t size);

/* Whether all pages of a range below 4 TiB are known to be marked */
static inline bool gmem_view_has_marked(const struct gmem_dirty_pages *marks, uint64_t gpa, uint64_t size)
{
	uint64_t last = gpa + (size - 1);

	for (; gpa < last; gpa += GMEM_NOFAULT_GRAIN)
		if (!gmem_dirty_page_is_marked(marks, gpa))
			return false;
	return gmem_dirty_page_is_marked(marks, last);
}

/* gmem_view_mark() for whoever has not asked yet whether there is something to do; @size is not 0. */
static inline void gmem_view_wrote(const struct gmem_view *view, uint64_t gpa, uint64_t size)
{
	const struct gmem_dirty_pages *marks = gmem_view_marks(view);

	if (marks && (!gmem_view_marks_are_here(marks) || (gpa | (gpa + (size - 1))) >> GMEM_DIRTY_TOP_SHIFT ||
		      !gmem_view_has_marked(marks, gpa, size)))
		gmem_view_mark(view, gpa, size);
}

/* The same for what is in one page */
static inline void gmem_view_wrote_word(const struct gmem_view *view, uint64_t gpa, uint32_t width)
{
	const struct gmem_dirty_pages *marks = gmem_view_marks(view);

	if (__builtin_expect(marks && (!gmem_view_marks_are_here(marks) || gpa >> GMEM_DIRTY_TOP_SHIFT ||
				       !gmem_dirty_page_is_marked(marks, gpa)), 0))
		gmem_view_mark(view, gpa, width);
}

/* Finds the memory at @gpa: as much of @size as is contiguous for the host. */
int gmem_view_contiguous(const struct gmem_view *view, uint64_t gpa, uint64_t size,
			 struct iovec *ret);
/* As gmem_view_contiguous(), to write there: -EROFS if the memory is read-only. */
int gmem_view_contiguous_to_write(const struct gmem_view *view, uint64_t gpa, uint64_t size,
				  struct iovec *ret);

#endif
