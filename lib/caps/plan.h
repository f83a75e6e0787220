/* SPDX-License-Identifier: MIT */
/*
 * plan: from a report and a request to one way of backing, with exact kernel flags.
 *
 * Planning asks the kernel nothing and changes nothing. Every way of backing is judged
 * against the whole request, so each one that was not chosen has a reason, and a refusal
 * can name the way that misses least.
 */
#ifndef GMEM_PLAN_H
#define GMEM_PLAN_H

#include <stdint.h>

#include "gmem.h"
#include "base/backing.h"

struct gmem_plan {
	uint32_t backing;
	uint64_t create_flags;
	/* for each backing that was not chosen, the reason */
	char passed_over[GMEM_BACKINGS][160];
};

/* Does what gmem_plan_new() does, but in the caller's struct; untouched on failure. */
int gmem_plan_make(const struct gmem_caps *caps, const struct gmem_request *request,
		   struct gmem_plan *ret);

#endif
