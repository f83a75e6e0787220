/* SPDX-License-Identifier: MIT */
/*
 * access: reading and writing ranges of guest memory through a view.
 *
 * gmem_view_read(), _write(), _fill(), _compare(), _string() and _copy() find the
 * contiguous parts of a guest range and access them with the functions of nofault.h, which
 * survive pages that cannot be reached. Each returns how far it came.
 *
 * Not supported: atomicity. Other threads, and the guest, may see a range half written.
 */
#ifndef GMEM_ACCESS_H
#define GMEM_ACCESS_H

#include <stdbool.h>
#include <stdint.h>

/* An access of @size bytes at @gpa that failed with @err after @done bytes, at @hva */
struct gmem_access_failure {
	uint64_t gpa;
	uint64_t done;
	uint64_t size;
	const void *hva;	/* of the byte that failed */
	bool writes;
	int err;
};

/* Returns the errno of the failure, with the sentence why. */
int gmem_access_fail(const struct gmem_access_failure *failure);

#endif
