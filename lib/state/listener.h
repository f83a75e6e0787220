/* SPDX-License-Identifier: MIT */
/*
 * listener: who is told of conversions and removals.
 *
 * Called with a claim on the range, or with change_lock: the list of listeners does
 * not change meanwhile. @runs are the ranges that change; those within [@gpa,
 * @last] are told.
 */
#ifndef GMEM_LISTENER_H
#define GMEM_LISTENER_H

#include <stdint.h>

#include "base/range_map.h"
#include "region/vm_core.h"

/* Before they become private; if one refuses, those that were asked are told to undo it. */
int gmem_listeners_ask(const struct gmem_vm *vm, const struct gmem_range_map *runs, uint64_t gpa,
		       uint64_t last);
void gmem_listeners_undo(const struct gmem_vm *vm, const struct gmem_range_map *runs,
			 uint64_t gpa, uint64_t last);
void gmem_listeners_shared(const struct gmem_vm *vm, const struct gmem_range_map *runs,
			   uint64_t gpa, uint64_t last);
void gmem_listeners_removed(const struct gmem_vm *vm, uint64_t gpa, uint64_t size);

#endif
