/* SPDX-License-Identifier: MIT */
/*
 * convert: conversion of a range between shared and private.
 *
 *   claim    conversions that overlap follow each other, and a conversion to private
 *            waits for leases; the layout of the range does not change until it is done
 *   check    every byte can be converted, or nothing is touched
 *   mark     the pages that change (GMEM_PAGE_CHANGING): all below is about these
 *   ask      to private: listeners, one of whom may refuse
 *   record   to private: readers see it at once, and those who may not have are waited for
 *   kernel   one call for each run; a refusal undoes what came before it
 *   record   to shared; or back, what could not become private
 *   discard  the other side is given back, now or later
 *   tell     listeners what is shared now, and what did not become private
 *
 * Nothing is allocated, and no lock is held but for moments. The record is the region's
 * bits (region/page_states.h).
 */
#ifndef GMEM_CONVERT_H
#define GMEM_CONVERT_H

#include <stdint.h>

#include "gmem.h"
#include "base/wait_budget.h"
#include "region/vm_core.h"

/*
 * gmem_vm_convert() as part of a call that waits for @budget in all, of which opts->wait_ms only
 * says whether leases are waited for.
 */
int gmem_convert_within(struct gmem_vm *vm, uint64_t gpa, uint64_t size, uint32_t state,
			const struct gmem_convert_opts *opts, struct gmem_wait_budget *budget,
			struct gmem_conversion *ret);
/* Check, at this moment, that gmem_vm_convert() would find memory that converts everywhere. */
int gmem_convert_check(struct gmem_vm *vm, uint64_t gpa, uint64_t size);

#endif
