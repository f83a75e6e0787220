/* SPDX-License-Identifier: MIT */
/*
 * counters: numbers of events and of bytes, for gmem_vm_stats().
 *
 * The code where something happens counts it. Each counter is a relaxed atomic: a value
 * that is read was right at some moment, but two values may be of different moments.
 */
#ifndef GMEM_COUNTERS_H
#define GMEM_COUNTERS_H

#include <stdint.h>

enum gmem_counter {
	GMEM_COUNT_MADE_PRIVATE,	/* bytes */
	GMEM_COUNT_MADE_SHARED,		/* bytes */
	GMEM_COUNT_CONVERSIONS,
	GMEM_COUNT_CONVERT_IOCTLS,
	GMEM_COUNT_DISCARDS,
	GMEM_COUNT_DISCARDED,		/* bytes */
	GMEM_COUNT_FAULTS_PRIVATE,
	GMEM_COUNT_FAULTS_SHARED,
	GMEM_COUNT_FAULTS_LATE,
	GMEM_COUNT_FAULTS_STUCK,
	GMEM_COUNT_FAULTS_HOLE,
	GMEM_COUNT_FAULTS_REFUSED,
	GMEM_COUNT_FAULTS_POISON,
	GMEM_COUNT_FAULTS_UNKNOWN_REASON,
	GMEM_COUNT_FAULTS_NO_ADDRESS,
	GMEM_COUNT_REQUESTS,
	GMEM_COUNT_REQUESTS_REFUSED,
	GMEM_COUNTERS
};

struct gmem_counters {
	uint64_t n[GMEM_COUNTERS];
};

static inline void gmem_count(struct gmem_counters *counters, enum gmem_counter which,
			      uint64_t by)
{
	__atomic_fetch_add(&counters->n[which], by, __ATOMIC_RELAXED);
}

#endif
