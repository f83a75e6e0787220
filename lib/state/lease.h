/* SPDX-License-Identifier: MIT */
/*
 * lease: who uses a range as shared memory, and must not be surprised:
 * gmem_lease_new(), gmem_lease_free().
 *
 * A lease is recorded at its guest addresses, which must stay where they are, and at its
 * memory, which must not be discarded: through another guest address, or its file. A bar
 * is the other side: one who waits until no lease is in the way, and meanwhile lets no new
 * one in front. All but the two public functions is called with the VM's lock held.
 */
#ifndef GMEM_LEASE_H
#define GMEM_LEASE_H

#include <stddef.h>
#include <stdint.h>

#include "gmem.h"
#include "base/interval_tree.h"
#include "region/memory_users.h"
#include "region/vm_core.h"

/*
 * Where the memory of a range of guest addresses is: for each region its part of a file, its
 * host addresses, or both, since another region may have the mapping of a file as its memory.
 */
struct gmem_memory_places {
	struct gmem_memory_user *all;	/* or &one, which most leases and claims need */
	size_t count;
	struct gmem_memory_user one;
};

struct gmem_lease {
	struct gmem_interval at;		/* in vm->leases, by gpa */
	struct gmem_vm *vm;
	struct gmem_memory_places memory;
	char holder[64];
};

struct gmem_lease_bar {
	struct gmem_interval at;		/* in vm->lease_bars, by gpa */
	const char *purpose;
	struct gmem_memory_places memory;	/* if that is to be discarded */
};

/* Grant no more leases on a range that is to be @purpose ("converted to private"). */
void gmem_lease_bar_begin(struct gmem_vm *vm, struct gmem_lease_bar *bar, uint64_t gpa,
			  uint64_t size, const char *purpose);
/*
 * Grant none on the memory of the range either, at whatever guest address; the layout of
 * the range stays as it is until the end. Memory that is private already is left out, if
 * nothing of the range is shared. -ENOMEM.
 */
int gmem_lease_bar_memory(struct gmem_vm *vm, struct gmem_lease_bar *bar);
/* Wait until no lease is in the way; drops the lock. -EBUSY and a sentence after @deadline */
int gmem_lease_bar_wait(struct gmem_vm *vm, struct gmem_lease_bar *bar, uint64_t deadline);
void gmem_lease_bar_end(struct gmem_vm *vm, struct gmem_lease_bar *bar);

/* -EBUSY and a sentence if somebody holds a lease on these guest addresses */
int gmem_lease_check(const struct gmem_vm *vm, uint64_t gpa, uint64_t size);
/* The same for leases on them or their memory, unless all of it is private */
int gmem_lease_check_memory(struct gmem_vm *vm, uint64_t gpa, uint64_t size);

/*
 * The VM ends, and its memory goes whoever has leases on it: from now on they are of none, and
 * can only be freed.
 */
void gmem_leases_end(struct gmem_vm *vm);

/* The lease after @previous, in the order of their gpa; NULL stands for none. */
const struct gmem_lease *gmem_lease_next(const struct gmem_vm *vm,
					 const struct gmem_lease *previous);

#endif
