/* SPDX-License-Identifier: MIT */
/*
 * apply_slots: the kernel's part of a change: memslots and attributes.
 *
 * Memslots that go or change are deleted first, then those that only move are moved, then
 * the marks of keep_state.h become attributes, then new memslots are added. The first refusal
 * undoes everything in reverse.
 *
 * A plain memslot moves in one call, in which KVM keeps its dirty log. If another region
 * moves out of its way, or KVM cannot move it, it is deleted and added.
 *
 * Before a memslot with a dirty log is deleted, its log is read and kept with the region. A
 * vCPU may store between reading and deleting, so KVM first moves the memslot to where no
 * guest looks for memory, at the end of the address space: then nobody can store, and the
 * log is complete. If that cannot be done, all its pages count as dirty.
 */
#ifndef GMEM_APPLY_SLOTS_H
#define GMEM_APPLY_SLOTS_H

#include <stddef.h>

#include "layout/step.h"
#include "region/vm_core.h"

/*
 * With claims on all ranges of the steps; allocates nothing. On failure everything is as it
 * was, or -ENOTRECOVERABLE: after the sentence of the refusal comes what could not be undone
 * first, and each step that has it is marked as stuck or lost.
 */
int gmem_apply_slots(struct gmem_vm *vm, struct gmem_step *steps, size_t count);

#endif
