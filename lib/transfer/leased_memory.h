/* SPDX-License-Identifier: MIT */
/*
 * leased_memory: the memory of a transfer, held with leases.
 *
 * Ranges of regions with their host addresses, and how bytes get there and from there.
 * Pages of zeros are not written where the guest has none: they would only take memory.
 */
#ifndef GMEM_LEASED_MEMORY_H
#define GMEM_LEASED_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/range_set.h"
#include "region/region.h"
#include "region/vm_core.h"

struct gmem_leased_range {
	struct gmem_region *region;
	uint64_t gpa;
	uint64_t size;
	uint64_t offset;	/* from the start of the region */
	char *hva;		/* of gpa */
	bool in_file;
};

/* A region, or as much of it as was asked for */
struct gmem_leased_region {
	uint64_t gpa;
	uint64_t size;
	uint32_t backing;
};

/* All lists are in GPA order. */
struct gmem_leased_memory {
	struct gmem_leased_range *all;		/* shared memory, with leases */
	size_t count;
	struct gmem_leased_region *regions;
	size_t region_count;
	struct gmem_part *privates;		/* in these regions: no lease is given on them */
	size_t private_count;
	struct gmem_lease **leases;
	size_t lease_count;
	bool fast;				/* the fault handler recovers from faults */
};

struct gmem_stored {
	uint64_t data;
	uint64_t zero;		/* bytes of zeros that were not written */
};

bool gmem_is_zero(const void *bytes, size_t size);

/* Take leases on the memory in [@start, @last]; it stays as it is until it is dropped. */
int gmem_leased_memory_take(struct gmem_vm *vm, uint64_t start, uint64_t last, const char *holder,
			    struct gmem_leased_memory *ret);
void gmem_leased_memory_drop(struct gmem_leased_memory *memory);
bool gmem_leased_memory_is_private(const struct gmem_leased_memory *memory, uint64_t gpa);
uint64_t gmem_leased_memory_bytes(const struct gmem_leased_memory *memory);
uint64_t gmem_leased_memory_private_bytes(const struct gmem_leased_memory *memory);
/* NULL: @gpa is not in the memory */
const struct gmem_leased_range *gmem_leased_memory_at(const struct gmem_leased_memory *memory,
						      uint64_t gpa);
/* Bytes from @gpa on without a hole */
uint64_t gmem_leased_memory_reach(const struct gmem_leased_memory *memory, uint64_t gpa);
/* Make a range zero, of any alignment. */
int gmem_leased_memory_clear(const struct gmem_leased_memory *memory, uint64_t gpa, uint64_t size);
/* Store @bytes there, of any alignment. */
int gmem_leased_memory_store(const struct gmem_leased_memory *memory, uint64_t gpa,
			     const char *bytes, uint64_t size, struct gmem_stored *stored);

#endif
