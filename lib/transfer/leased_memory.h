/* SPDX-License-Identifier: MIT */
/*
 * leased_memory: the guest memory of a transfer, kept shared and in place by leases.
 *
 * Lists ranges of regions with their host addresses, and stores bytes there. A page of
 * zeros is not written if the guest has no page there: it would only take memory.
 */
#ifndef GMEM_LEASED_MEMORY_H
#define GMEM_LEASED_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/part.h"
#include "region/region.h"
#include "region/vm_core.h"

struct gmem_host_look;

struct gmem_leased_range {
	struct gmem_region *region;
	uint64_t gpa;
	uint64_t size;
	uint64_t offset;	/* from the start of the region */
	char *hva;		/* host address of gpa */
	char *unmapped;		/* the first of its bytes where nothing was mapped, or NULL */
	uint64_t page_size;	/* in which the host must have memory for it */
	bool in_file;		/* memory of a guest_memfd */
};

/* A region, or the part of it that is in the requested range */
struct gmem_leased_region {
	uint64_t gpa;
	uint64_t size;
	uint32_t backing;
	uint32_t kind;
	uint64_t identity;
};

/* All lists are in GPA order. */
struct gmem_leased_memory {
	struct gmem_leased_range *all;		/* shared memory, under leases */
	size_t count;
	struct gmem_leased_region *regions;
	size_t region_count;
	struct gmem_leased_region *elsewhere;	/* left out for their kind: without leases */
	size_t elsewhere_count;
	struct gmem_part *privates;		/* private memory of these regions: without leases */
	size_t private_count;
	struct gmem_lease **leases;
	size_t lease_count;
	struct gmem_host_look *look;		/* what is known of the host memory in it */
	bool fast;				/* the fault handler recovers: copy directly */
	bool is_unchecked;			/* store without asking how much memory the host has */
	uint64_t granted;			/* atomic: bytes that may be stored before it is asked again */
};

struct gmem_stored {
	uint64_t data;
	uint64_t zero;		/* bytes of zeros, not written where no page exists */
};

bool gmem_is_zero(const void *bytes, size_t size);

/*
 * Take leases on the shared memory in [@start, @last]; until the drop it cannot be converted.
 * Regions of kinds that lack @use (enum gmem_kind_use) are only listed. @ret is zeroed, but for
 * is_unchecked.
 */
int gmem_leased_memory_take(struct gmem_vm *vm, uint64_t start, uint64_t last, uint32_t use,
			    const char *holder, struct gmem_leased_memory *ret);
void gmem_leased_memory_drop(struct gmem_leased_memory *memory);
bool gmem_leased_memory_is_private(const struct gmem_leased_memory *memory, uint64_t gpa);
uint64_t gmem_leased_memory_bytes(const struct gmem_leased_memory *memory);
uint64_t gmem_leased_memory_private_bytes(const struct gmem_leased_memory *memory);
/* Count the bytes that are left out for their kind. */
uint64_t gmem_leased_memory_elsewhere_bytes(const struct gmem_leased_memory *memory);
/* Find the first range that ends at @gpa or behind it, or NULL, */
const struct gmem_leased_range *gmem_leased_memory_from(const struct gmem_leased_memory *memory,
							uint64_t gpa);
/* and the one with @gpa. */
const struct gmem_leased_range *gmem_leased_memory_at(const struct gmem_leased_memory *memory,
						      uint64_t gpa);
/* Count the bytes from @gpa up to the first hole; it stops when there are @enough. */
uint64_t gmem_leased_memory_reach(const struct gmem_leased_memory *memory, uint64_t gpa,
				  uint64_t enough);
/* The same of memory of any kind: shared or private. */
uint64_t gmem_leased_memory_region_reach(const struct gmem_leased_memory *memory, uint64_t gpa,
					 uint64_t enough);
/* Find the region with @gpa that is left out for its kind, or NULL. */
const struct gmem_leased_region *gmem_leased_memory_elsewhere(const struct gmem_leased_memory *memory,
							      uint64_t gpa);
/* Count the bytes of all regions, shared or private. */
uint64_t gmem_leased_memory_region_bytes(const struct gmem_leased_memory *memory);
/*
 * -EFAULT if nothing was mapped at part of it when it was taken. To store and to clear there is
 * refused, too: ask only where all of it is used.
 */
int gmem_leased_memory_check_mapped(const struct gmem_leased_memory *memory);
/* Make a range zero; any alignment. @look: the calling thread's, as below */
int gmem_leased_memory_clear(const struct gmem_leased_memory *memory, struct gmem_host_look *look,
			     uint64_t gpa, uint64_t size);
/* -ENOMEM if the host has not the memory for @bytes to come, less all that is there already */
int gmem_leased_memory_check_fits(const struct gmem_leased_memory *memory, uint64_t bytes);
/*
 * Store @bytes at @gpa, and count them in @stored; any alignment. Memory of kinds that are
 * compared is written only where it differs. -ENOMEM before the host's memory runs out, which
 * would be no errno. Several threads may store at the same time.
 */
int gmem_leased_memory_store(struct gmem_leased_memory *memory, struct gmem_host_look *look,
			     uint64_t gpa, const char *bytes, uint64_t size,
			     struct gmem_stored *stored);

/* Reads exactly @size bytes to guest memory, or fails, perhaps after a part of them. */
typedef bool (*gmem_fill_fn)(void *data, char *hva, uint64_t size);

/*
 * The same without a buffer: @fill reads them to where they belong. Pages that did not exist
 * and turn out to be zero are given back. False if this cannot be done here, or failed: then
 * what is in the range is to be stored in the other way.
 */
bool gmem_leased_memory_fill(struct gmem_leased_memory *memory, uint64_t gpa, uint64_t size,
			     gmem_fill_fn fill, void *data, struct gmem_stored *stored);

#endif
