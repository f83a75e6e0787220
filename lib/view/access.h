/* SPDX-License-Identifier: MIT */
/*
 * access: reading and writing guest memory through a view: gmem_view_read(), _write(),
 * _fill(), _compare() and _string().
 *
 * Each finds the contiguous parts of a guest range and accesses them in a way that
 * survives pages which cannot be reached (nofault.h).
 */
#ifndef GMEM_ACCESS_H
#define GMEM_ACCESS_H

#include <stdint.h>

/* @err, with the sentence that @done of @size bytes at @gpa could be reached */
int gmem_access_fail(uint64_t gpa, uint64_t done, uint64_t size, int err);

#endif
