/* SPDX-License-Identifier: MIT */
/*
 * memory_users: who has leases on memory, and who is about to discard it.
 *
 * Two guest addresses may have the same memory, so this is recorded by the memory itself:
 * by offset in each guest_memfd, under its lock, and by host address in each VM and by offset
 * in each file behind its host memory, under the VM's.
 */
#ifndef GMEM_MEMORY_USERS_H
#define GMEM_MEMORY_USERS_H

#include <stdint.h>

#include "base/interval_tree.h"

struct gmem_file;
struct gmem_host_file;
struct gmem_lease;

struct gmem_memory_user {
	struct gmem_interval at;	/* offsets in a file, or host addresses */
	struct gmem_file *file;		/* NULL: host addresses, or offsets in */
	struct gmem_host_file *host_file;
	struct gmem_lease *lease;	/* NULL: not a lease */
	const char *name;		/* a lease's holder, or what the memory is being */
	uint64_t gpa;			/* of the lease or the discard; */
	uint64_t size;			/* 0: it has no guest address */
};

struct gmem_memory_users {
	struct gmem_interval_tree leases;
	struct gmem_interval_tree discards;
};

/* A lease on part of [@start, @last], or NULL */
const struct gmem_memory_user *gmem_memory_find_lease(const struct gmem_memory_users *users,
						      uint64_t start, uint64_t last);
/* Returns -EBUSY, with the sentence that @lease is in the way of @what. */
int gmem_memory_fail_leased(const struct gmem_memory_user *lease, const char *what,
			    uint64_t start, uint64_t size);
/* -EBUSY and a sentence if part of the memory of @lease, which is not recorded yet, is going */
int gmem_memory_check_discards(const struct gmem_memory_users *users,
			       const struct gmem_memory_user *lease);

#endif
