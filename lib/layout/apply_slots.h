/* SPDX-License-Identifier: MIT */
/*
 * apply_slots: the kernel's part of a change: memslots and attributes.
 *
 * Memslots of all steps are deleted first, then added, then what is removed is made
 * shared. The first refusal undoes everything in reverse.
 */
#ifndef GMEM_APPLY_SLOTS_H
#define GMEM_APPLY_SLOTS_H

#include <stddef.h>

#include "layout/step.h"
#include "region/vm_core.h"

/*
 * With change_lock and lock held. On failure everything is as it was, or
 * -ENOTRECOVERABLE names the last memslot or range that could not be undone; its step is
 * marked stuck or its region lost.
 */
int gmem_apply_slots(struct gmem_vm *vm, struct gmem_step *steps, size_t count);

#endif
