/* SPDX-License-Identifier: MIT */
/*
 * apply: changes of a VM's layout, one step or many, all of it or nothing.
 *
 *   plan     the new layout is checked against the old one
 *   hook     who watches the layout must agree
 *   claim    the ranges are claimed; whoever holds a lease refuses the change
 *   prepare  what steps take away is given back, what they bring is made
 *   table    the table that readers will use is built
 *   kernel   memslots are deleted, moved and added (apply_slots.h)
 *   commit   the records change, and readers get the new table
 *   tell     when no reader can hold the old one, listeners hear what was removed
 *   finish   what was taken is let go
 *
 * The hook lock is held throughout, so there is one change at a time. The locks that other
 * work needs are held for moments: not across a system call, a wait or a callback. Until
 * the commit, all that other threads can see is the old layout; what a step will make of a
 * region is prepared in a second handle.
 *
 * Memslots are set or deleted in two other places: gmem_vm_free() deletes them all, and dirty/
 * changes the flag of logs, and replaces memslots that can have none.
 *
 * Everything that can fail for want of memory comes before the kernel is asked, and
 * undoing never needs any. What the kernel keeps although it should be gone, a memslot with
 * its number, file range and mapping, is handed over to vm->stuck until the VM handle goes.
 * The region it belonged to is lost, and its removal gives back only what is still its own.
 */
#ifndef GMEM_APPLY_H
#define GMEM_APPLY_H

#include <stddef.h>

#include "layout/step.h"
#include "region/vm_core.h"

/* "add", "remove", "move", "split" or "rebind" */
const char *gmem_step_name(enum gmem_step_kind kind);
/*
 * The caller holds no lock. On failure the layout is as before, `failed` marks the step to
 * blame, and of a step that the kernel did not let go of `region` (ADD) or `upper` (SPLIT) is
 * NULL. On success the regions of REMOVE are freed.
 */
int gmem_apply_steps(struct gmem_vm *vm, struct gmem_step *steps, size_t count);

#endif
