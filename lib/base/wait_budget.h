/* SPDX-License-Identifier: MIT */
/*
 * wait_budget: how long one call may still wait for others.
 *
 * A call has one budget for all that it waits for, however often it does: earlier work, leases,
 * views, peers. Only time spent waiting is taken from it, so long work of its own
 * does not use it up. It belongs to the call; the call's claims point to it (state/claim.h),
 * so that callbacks inside the library find it.
 */
#ifndef GMEM_WAIT_BUDGET_H
#define GMEM_WAIT_BUDGET_H

#include <stdbool.h>
#include <stdint.h>

#include "os/sys.h"
#include "os/usdt.h"

/* What is waited for, as gmem(7) numbers it for the probe "wait" */
enum gmem_wait_reason {
	GMEM_WAIT_CHANGE = 1,		/* another change of the layout */
	GMEM_WAIT_WORK = 2,		/* other work on the same range */
	GMEM_WAIT_LEASES = 3,		/* and pages that are pinned, in place */
	GMEM_WAIT_VIEWS = 4,
	GMEM_WAIT_PEERS = 5,
};

struct gmem_wait_budget {
	uint32_t wait_ms;	/* all of it, as the caller gave it; 0: no limit */
	bool has_leases;		/* leases are waited for, too; otherwise they refuse at once */
	uint64_t spent;		/* of it, nanoseconds */
};

static inline bool gmem_wait_is_limited(const struct gmem_wait_budget *budget)
{
	return budget && budget->wait_ms;
}

/* Until when a wait that begins at @now may last; UINT64_MAX: without a limit */
static inline uint64_t gmem_wait_end(const struct gmem_wait_budget *budget, uint64_t now)
{
	uint64_t all;

	if (!gmem_wait_is_limited(budget))
		return UINT64_MAX;
	all = budget->wait_ms * GMEM_NANOSECONDS_PER_MS;
	return budget->spent < all ? now + (all - budget->spent) : now;
}

/* Take a wait from @start until now from the budget. */
static inline void gmem_wait_spend(struct gmem_wait_budget *budget, uint64_t start,
				   enum gmem_wait_reason reason)
{
	uint64_t spent = gmem_sys_now() - start;

	GMEM_PROBE(wait, reason, spent);
	(void)reason;
	if (budget)
		budget->spent += spent;
}

/* Until when a wait of @ms from now on lasts; below 0: without a limit */
static inline uint64_t gmem_wait_end_of_ms(int ms)
{
	return ms < 0 ? UINT64_MAX : gmem_sys_now() + (uint64_t)ms * GMEM_NANOSECONDS_PER_MS;
}

/* What is left until then, as poll(2) takes it; 0: nothing */
static inline unsigned int gmem_wait_left_ms(uint64_t end)
{
	uint64_t now;

	if (end == UINT64_MAX)
		return UINT32_MAX;
	now = gmem_sys_now();
	return now < end ? (unsigned int)((end - now - 1) / GMEM_NANOSECONDS_PER_MS + 1) : 0;
}

#endif
