/* SPDX-License-Identifier: MIT */
/* plan: negotiation, from a report and a request to exact kernel flags. */
#ifndef GMEM_PLAN_H
#define GMEM_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "gmem.h"

struct gmem_plan {
	uint32_t backing;
	uint32_t attributes;
	uint64_t create_flags;
	bool region2;		/* the memslot takes KVM_SET_USER_MEMORY_REGION2 */
	char passed_over[GMEM_BACKING_INPLACE + 1][160];
};

/* gmem_plan_new() into the caller's struct */
int gmem_plan_make(const struct gmem_caps *caps, const struct gmem_request *request,
		   struct gmem_plan *ret);

#endif
