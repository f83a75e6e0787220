/* SPDX-License-Identifier: MIT */
/*
 * listener: who is told of conversions, of changes of the layout, and of discards.
 *
 * Called with a claim on the range, @claim, whose number of work says which listeners hear of
 * it. A callback that calls the library again in a way that would wait for this claim gets
 * -EDEADLK. What changes is marked in the regions (GMEM_PAGE_CHANGING); the runs within
 * [@gpa, @last] are told.
 */
#ifndef GMEM_LISTENER_H
#define GMEM_LISTENER_H

#include <stdbool.h>
#include <stdint.h>

#include "gmem.h"
#include "region/vm_core.h"
#include "state/claim.h"

/*
 * gmem_listener_new() with one more callback, for the library's own: @settled is called
 * when pages are shared, after a conversion that was made or refused, and not marked any
 * more, so that the record alone says what they are.
 */
int gmem_listener_add(struct gmem_vm *vm, const struct gmem_listener_opts *opts,
		      gmem_listener_fn settled, struct gmem_listener **ret);

/*
 * Ask each listener whether the runs may become private. If one refuses, undo_private is
 * called for everything agreed to, the refuser's own earlier runs included.
 */
int gmem_listeners_ask(const struct gmem_claim *claim, uint64_t gpa, uint64_t last);
/* Tell that the runs did not become private, last listener first. */
void gmem_listeners_undo(const struct gmem_claim *claim, uint64_t gpa, uint64_t last);
/* Tell that the runs became shared. */
void gmem_listeners_shared(const struct gmem_claim *claim, uint64_t gpa, uint64_t last);
/* Call settled of the listeners that have it, for [@gpa, @last]. */
void gmem_listeners_settled(const struct gmem_claim *claim, uint64_t gpa, uint64_t last);

/*
 * Changes of the layout, when they are made and while the old memory is still there for the
 * host: first all that is removed, then all that is moved, then all that is added. What moves
 * is told as removed and added to listeners that hear of no moves.
 */
void gmem_listeners_removed(const struct gmem_claim *claim, const struct gmem_region_info *before,
			    bool has_moved);
void gmem_listeners_moved(const struct gmem_claim *claim, const struct gmem_region_info *before,
			  const struct gmem_region_info *now);
void gmem_listeners_added(const struct gmem_claim *claim, const struct gmem_region_info *now,
			  bool has_moved);

/* Shared memory of a region */
struct gmem_listener_part {
	const struct gmem_region_info *region;
	uint64_t gpa;
	uint64_t size;
};

/* Ask whether it may be discarded; undo_discard of those that agreed is called if not. */
int gmem_listeners_ask_discard(const struct gmem_claim *claim, const struct gmem_listener_part *part);
/* Tell that it was not discarded after all, last listener first. */
void gmem_listeners_undo_discard(const struct gmem_claim *claim, const struct gmem_listener_part *part);
void gmem_listeners_populated(const struct gmem_claim *claim, const struct gmem_listener_part *part);

/* Tell whether there may be listeners that hear of the work. */
static inline bool gmem_listeners_are_there(const struct gmem_vm *vm)
{
	/* Others come and go meanwhile, who do not hear of this work. */
	return __atomic_load_n(&vm->listeners, __ATOMIC_RELAXED);
}

/* Free the handles that nobody could free yet; no work is under way any more. */
void gmem_listeners_sweep(struct gmem_vm *vm);

#endif
