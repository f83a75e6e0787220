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
#include "base/interval_tree.h"
#include "base/lock.h"
#include "base/range_map.h"
#include "base/wait_budget.h"
#include "caps/caps.h"
#include "caps/plan.h"
#include "os/process.h"
#include "region/host_mapping.h"
#include "region/memory_users.h"
#include "region/slots.h"
#include "region/vm_identity.h"

struct gmem_claim;
struct gmem_dirty;
struct gmem_dirty_ring;
struct gmem_dirty_source;
struct gmem_host_file;
struct gmem_lease_wait;
struct gmem_peer_marks;
struct gmem_reader;
struct gmem_step;
struct gmem_work_wait;

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
	uint64_t called;	/* number of the round that it was called in last */
	int (*before)(struct gmem_change_hook *hook, const struct gmem_step *steps, size_t count,
		      struct gmem_wait_budget *budget);
	void (*after)(struct gmem_change_hook *hook);
};

struct gmem_vm {
	uint32_t users;			/* atomic: the handle's owner, and each object made of it */
	bool is_over;			/* atomic: the owner freed it, its regions are gone */
	void (*dispose)(struct gmem_vm *vm);	/* called with the last user gone */
	uint32_t memory_keepers;	/* atomic: the owner, calls, and views that its end waited for in vain */
	void (*release_memory)(struct gmem_vm *vm);	/* called with the last of these gone */

	/* set by gmem_vm_new(), never changed until it is over */
	int fd;				/* identity->fd, which is its owner */
	struct gmem_vm_identity *identity;	/* NULL: an import */
	int number;			/* identity->number, also when it is over; -1: an import */
	uint32_t address_space;		/* of KVM's, the one that all of the handle's memslots are in */
	bool has_default_plan;
	struct gmem_caps caps;
	/*
	 * What views begin with, read without a lock. The table is NULL before the first view. It
	 * stands between things that nobody writes, so readers have it in a cache line of their own.
	 */
	struct gmem_newest newest __attribute__((aligned(32)));
	const struct gmem_peer_marks *peer_marks;	/* atomic: an import's, for its exporter; or NULL */
	struct gmem_plan default_plan;
	struct gmem_inplace inplace;
	struct gmem_host_maps host_maps;	/* for regions of memory that the caller has mapped */
	gmem_log_fn log;		/* atomic: NULL once the owner has freed it */
	void *log_data;
	uint32_t wait_ms;		/* of calls that have none of their own; 0: no limit */

	/* rank HOOKS: everything below up to old_dirty, and one change at a time */
	struct gmem_lock hook_lock;
	uintptr_t changer;		/* the thread that holds it for a change, or 0 */
	struct gmem_slots slots;
	struct gmem_host_file *host_files;	/* that callers named */
	bool has_stray_private;		/* the kernel keeps addresses private where no region is */
	struct gmem_dirty *trackers;
	uint64_t dirty_flags;		/* GMEM_DIRTY_*: replaced memslots if one has it, the rest if all have */
	struct gmem_dirty_pages *old_dirty;	/* marks that views may still use, see dirty/tracker.c */

	/* rank DIRTY: all up to dirty_sources_begun, and KVM's dirty logs while they are read and marked */
	struct gmem_lock dirty_lock;
	uint64_t *dirty_bitmap;		/* to read a log into */
	size_t dirty_words;		/* that it has room for */
	bool logs_are_cleared;		/* by KVM as it gives them, and */
	bool knows_who_clears;		/* that was found out */
	struct gmem_dirty_ring *dirty_rings;
	struct gmem_dirty_source *dirty_sources;	/* with dirty_lock */
	bool dirty_sources_begun;	/* somebody wants to know what they note */

	/* rank CHANGE: newest.table, next_table and their entries, and with lock: regions */
	struct gmem_lock change_lock;
	struct gmem_lock lock;		/* rank VM: everything below up to change_ended */
	struct gmem_range_map regions;	/* by gpa; written with hook_lock, too; read with any of the three */
	struct gmem_range_map hvas;	/* the regions by host address */
	struct gmem_region *stuck;	/* see apply_slots.c; all others, too, once the VM is over */

	struct gmem_interval_tree leases;	/* by gpa, see lease.h */
	struct gmem_interval_tree lease_bars;
	struct gmem_memory_users memory_users;	/* by host address */
	struct gmem_lease_wait *lease_waits;
	struct gmem_interval_tree claims[2];	/* by gpa: shared ones, exclusive ones */
	uint64_t claim_order;		/* of the latest */
	uint64_t nested_waits;		/* threads that have claims and wait for more */
	struct gmem_claim *first_work;	/* claims that work is done with, in the order it began */
	struct gmem_claim *last_work;
	uint64_t works_begun;
	struct gmem_work_wait *work_waits;
	struct gmem_listener *listeners;	/* see listener.c, as for the next */
	struct gmem_listener *old_listeners;
	struct gmem_change_hook *change_hooks;	/* written with hook_lock, too, unless one goes */
	struct gmem_change_hook *busy_hook;	/* one of its functions is called; NULL: none is */
	uint64_t hook_rounds;
	pthread_cond_t hook_is_idle;
	bool is_changing;		/* atomic: a thread has the hook lock for a change, or takes it next */
	uint32_t change_waits;		/* atomic: threads that wait for its end */
	pthread_cond_t change_ended;

	const struct gmem_table *next_table;	/* with change_lock: of a change under way, or NULL */
	/* With change_lock: has @change make the table that follows @old; NULL: none is under way */
	int (*build_next_table)(struct gmem_vm *vm, const struct gmem_table *old);
	const void *change;
	struct gmem_lock views_lock;	/* rank VIEWS: newest.period, and everything below up to process */
	struct gmem_reader *views;
	uint64_t views_made;		/* numbers them */
	struct gmem_process process;	/* from the table on */
	struct gmem_counters counters;
};

/*
 * Initialise the locks of @vm, which is zeroed, with one user; an import does so, too. The
 * owner sets @dispose and @release_memory.
 */
void gmem_vm_begin(struct gmem_vm *vm);
/* The readers' table is gone already, see gmem_vm_drop_table(). */
void gmem_vm_end(struct gmem_vm *vm);

/*
 * Each object that a VM's user frees, such as a view, keeps the handle's memory: freed after
 * the VM, it finds locks and lists as they were, and every other call -ESTALE.
 */
struct gmem_vm *gmem_vm_ref(struct gmem_vm *vm);
void gmem_vm_unref(struct gmem_vm *vm);
/*
 * Whoever still uses the mapped memory of a VM that is over, and what says where it is, keeps
 * it. The last one releases it, whichever thread that is; it has no locks.
 */
void gmem_vm_keep_memory(struct gmem_vm *vm);
void gmem_vm_drop_memory(struct gmem_vm *vm);
/* For the owner, before it drops the memory: whether another does so, perhaps later */
static inline bool gmem_vm_memory_is_kept(const struct gmem_vm *vm)
{
	return __atomic_load_n(&vm->memory_keepers, __ATOMIC_RELAXED) > 1;
}
/* Returns 0, or -ESTALE and a sentence if the VM's owner has freed it. */
int gmem_vm_check_alive(const struct gmem_vm *vm);
/*
 * For a call that works on the memory of a VM which another thread may end meanwhile: it keeps
 * the memory if the VM is there, or returns -ESTALE. Leaving returns @result, or -ESTALE where
 * that is an error and the VM has ended.
 */
int gmem_vm_enter(struct gmem_vm *vm);
int gmem_vm_leave(struct gmem_vm *vm, int result);

/* The number of the caller's VM fd, for sentences and tracers; -1: none */
static inline int gmem_vm_number(const struct gmem_vm *vm)
{
	return vm->number;
}

/* The budget of a call whose own options say @wait_ms; 0: they say nothing */
static inline struct gmem_wait_budget gmem_vm_budget(const struct gmem_vm *vm, uint32_t wait_ms)
{
	return (struct gmem_wait_budget){
		.wait_ms = wait_ms ? wait_ms : vm->wait_ms,
		.has_leases = wait_ms != 0,
	};
}

/*
 * Take the hook lock for a change of the layout, or of what belongs to it. -EBUSY after what
 * was left of @budget; -EDEADLK for a callback of a change, whose thread has the lock.
 */
int gmem_vm_begin_change(struct gmem_vm *vm, struct gmem_wait_budget *budget);
void gmem_vm_end_change(struct gmem_vm *vm);

/* -EBUSY and -EDEADLK as gmem_vm_begin_change() */
int gmem_vm_add_change_hook(struct gmem_vm *vm, struct gmem_change_hook *hook);
/*
 * Waits for the hook's own function, if one is called at the moment, but not for the change.
 * A change under way may have called @before, and does not call @after any more.
 */
void gmem_vm_remove_change_hook(struct gmem_vm *vm, struct gmem_change_hook *hook);

/* For the change that has the hook lock: call @before of all hooks until one refuses, */
int gmem_vm_ask_change_hooks(struct gmem_vm *vm, const struct gmem_step *steps, size_t count,
			     struct gmem_wait_budget *budget);
/* and @after of all. */
void gmem_vm_tell_change_hooks(struct gmem_vm *vm);

/* Pass the sentence of a failure to the VM's log. Returns @err. */
int gmem_vm_log_error(struct gmem_vm *vm, int err);

#endif
