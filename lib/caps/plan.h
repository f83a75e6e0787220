/* SPDX-License-Identifier: MIT */
/* plan: negotiation, from a report and a request to exact kernel flags. */
#ifndef GMEM_PLAN_H
#define GMEM_PLAN_H

#include <stdint.h>

#include "gmem.h"
#include "base/backing.h"

struct gmem_plan {
	uint32_t backing;
	uint64_t create_flags;
	char passed_over[GMEM_BACKINGS][160];
};

/* gmem_plan_new() into the caller's struct */
int gmem_plan_make(const struct gmem_caps *caps, const struct gmem_request *request,
		   struct gmem_plan *ret);

#endif
