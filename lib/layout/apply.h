/* SPDX-License-Identifier: MIT */
/*
 * apply: changes of a VM's layout, one step or many, all of it or nothing.
 *
 *   hook     who watches the layout must agree
 *   wait     for conversions at work there; whoever holds a lease refuses the change
 *   detach   what steps take away leaves the records, in the order of the steps
 *   prepare  what steps bring is checked against the layout to be, and made
 *   table    the table that readers will use is built
 *   kernel   memslots are deleted, then added (apply_slots.h)
 *   publish  readers get the new table
 *   tell     when no reader can hold the old one, listeners hear what was removed
 *   finish   what was taken is let go
 *
 * Memslots are set or deleted in two other places: gmem_vm_free() deletes them all, and
 * region/dirty_log.c changes a flag.
 *
 * Everything that can fail for want of memory comes before the kernel is asked, and
 * undoing never needs any.
 */
#ifndef GMEM_APPLY_H
#define GMEM_APPLY_H

#include <stddef.h>

#include "layout/step.h"
#include "region/vm_core.h"

/* "add", "remove", "move", "split" or "rebind" */
const char *gmem_step_name(enum gmem_step_kind kind);
/*
 * Takes the hook lock, change_lock and lock; the caller holds none of them. On failure
 * the layout is as before, `failed` marks the step to blame, and a step whose memslot got
 * stuck has lost its region (NULL). On success the regions of REMOVE are freed.
 */
int gmem_apply_steps(struct gmem_vm *vm, struct gmem_step *steps, size_t count);

#endif
