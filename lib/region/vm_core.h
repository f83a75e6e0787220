/* SPDX-License-Identifier: MIT */
/*
 * vm_core: the VM handle itself, which every module above has in common.
 *
 * Here are its locks and records, the hooks of those who must agree to a change of
 * the layout, and the log. Making and freeing a handle is layout/vm.c.
 */
#ifndef GMEM_VM_CORE_H
#define GMEM_VM_CORE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gmem.h"
#include "base/counters.h"
#include "base/lock.h"
#include "base/range_map.h"
#include "caps/caps.h"
#include "caps/plan.h"
#include "region/slots.h"

struct gmem_claim;
struct gmem_reader;
struct gmem_step;
struct gmem_vm_identity;

/* The numbers that convert a guest_memfd in place, once they were proven; request 0: none */
struct gmem_inplace {
	unsigned long request;
	uint64_t create_flags;
};

/*
 * Must agree before regions go. @before may refuse with -errno and a sentence; @after is
 * called whether the change was made or not, also on hooks whose @before was not reached.
 */
struct gmem_change_hook {
	struct gmem_change_hook *next;
	int (*before)(struct gmem_change_hook *hook, const struct gmem_step *steps, size_t count);
	void (*after)(struct gmem_change_hook *hook);
};

struct gmem_vm {
	/* set by gmem_vm_new(), never changed */
	int fd;				/* identity->fd, which is its owner */
	struct gmem_vm_identity *identity;	/* NULL: an import */
	bool has_default_plan;
	struct gmem_caps caps;
	struct gmem_plan default_plan;
	struct gmem_inplace inplace;
	gmem_log_fn log;
	void *log_data;

	struct gmem_lock hook_lock;	/* rank HOOKS: change_hooks, and one change at a time */
	struct gmem_change_hook *change_hooks;

	/* rank CHANGE: table, and with lock: regions, privates */
	struct gmem_lock change_lock;
	struct gmem_lock lock;		/* rank VM: everything below up to released */
	struct gmem_slots slots;
	struct gmem_range_map regions;	/* by gpa; written with both locks, read with either */
	struct gmem_range_map hvas;	/* the regions by host address */
	struct gmem_region *stuck;	/* their memslots could not be deleted, see apply_slots.c */

	/* private in the kernel, by gpa; written with both locks, read with either */
	struct gmem_range_map privates;
	struct gmem_range_map pending_discard;	/* where the side not in use is to be discarded */
	struct gmem_lease *leases;
	struct gmem_claim *claims;	/* in the order they came */
	pthread_cond_t released;	/* with lock: a lease or a claim ended */
	struct gmem_listener *listeners;	/* with change_lock and a claim on everything, see listener.c */

	const struct gmem_table *table;	/* read without a lock; NULL before the first view */
	struct gmem_lock views_lock;	/* rank VIEWS: views, fence */
	struct gmem_reader *views;
	bool fence;			/* readers need one: membarrier() cannot be used */
	struct gmem_counters counters;
};

/* Initialise the locks of @vm, which is zeroed; an import does so, too. */
void gmem_vm_begin(struct gmem_vm *vm);
/* The readers' table is gone already, see gmem_vm_drop_table(). */
void gmem_vm_end(struct gmem_vm *vm);

void gmem_vm_add_change_hook(struct gmem_vm *vm, struct gmem_change_hook *hook);
void gmem_vm_remove_change_hook(struct gmem_vm *vm, struct gmem_change_hook *hook);

/* Pass the sentence of a failure to the VM's log. Returns @err. */
int gmem_vm_log_error(struct gmem_vm *vm, int err);

#endif
