/* SPDX-License-Identifier: MIT */
/*
 * region: what a region is made of.
 *
 * A region acquires a slot number, a file, a range of that file and host memory,
 * and gives them back in reverse. Its memslot in the kernel is the business of
 * layout/apply_slots.c, its place in the layout that of layout/apply.c.
 */
#ifndef GMEM_REGION_H
#define GMEM_REGION_H

#include <stdbool.h>
#include <stdint.h>

#include "gmem.h"
#include "base/backing.h"
#include "base/counters.h"
#include "base/kind.h"
#include "base/range_map.h"
#include "os/kvm.h"
#include "os/kvm_compat.h"
#include "region/file_map.h"
#include "region/host_file.h"
#include "region/host_mapping.h"
#include "region/host_memory.h"
#include "region/page_states.h"
#include "region/vm_core.h"

/*
 * What the readers' lookup table points to where it cannot say all by itself: the code of
 * the region's memory, and where the bits of its pages are.
 */
struct gmem_window {
	uint64_t gpa;
	uint64_t code;			/* see view/lookup_table.h; 0: the window is not used */
	const uint64_t *bits;		/* of pages that are private; NULL: there are none */
	uint64_t first;			/* the bit of the page at @gpa */
	uint32_t page_shift;
};

/*
 * Fields change with change_lock and lock held, slot_flags with hook_lock and lock. gpa.start,
 * gpa.size and hva.start may be read without, see gmem_range_set_start().
 */
struct gmem_region {
	struct gmem_range gpa;		/* in vm->regions */
	struct gmem_range hva;		/* in vm->hvas, unless the memory is the caller's */
	struct gmem_range bound;	/* in file->bound if the memslot has the file */
	struct gmem_map pin;		/* of the host memory, if that is not the caller's */
	struct gmem_map *map;		/* @pin, if the host address is the file's; else NULL */
	struct gmem_vm *vm;
	struct gmem_file *file;
	struct gmem_host_file *host_file;	/* behind the host memory; NULL: not known, or none */
	struct gmem_region *next_stuck;
	const struct gmem_step *leaving;	/* the step of a change that takes it away, while it is planned */
	uint64_t *kept_log;		/* see kept_log.h; NULL: nothing is kept */
	uint64_t file_offset;
	uint64_t punches_seen;		/* of @file, brought into the marks; with hook_lock */
	uint64_t host_offset;		/* in @host_file */
	uint64_t align;
	uint64_t page_size;		/* of the host memory: the host's, or that of hugetlb */
	uint32_t slot;
	uint32_t slot_flags;
	uint32_t backing;
	uint32_t kind;			/* GMEM_KIND_DEFAULT: a device's range, without memory */
	uint64_t identity;
	void *data;			/* the user's; atomic */
	bool congruent;
	bool mixes_pages;		/* page_size is the largest of several */
	bool has_private_file;		/* a private mapping of a file is part of the host memory */
	bool hva_chosen;		/* by the caller, with GMEM_REGION_HVA or _RESERVED */
	bool borrows_memory;		/* the host memory is the caller's mapping */
	bool is_device;
	bool read_only;			/* to the host; only of an import */
	bool wants_log;			/* its user does; atomic, written with lock. Trackers may want it, too */
	bool has_slot;			/* the kernel has a memslot of this number */
	bool lost;			/* its memslot is missing, or not as recorded here */
	bool owns_number;		/* @slot is in use by this region */
	bool owns_range;		/* @bound is in file->bound */
	bool owns_memory;		/* the mapping at @hva goes with this region */
	uint8_t window;			/* the one of windows that readers use */
	struct gmem_window windows[2];
	struct gmem_states states;
	struct gmem_counters counters;
};

static inline const struct gmem_backing_traits *gmem_region_traits(const struct gmem_region *region)
{
	return &gmem_backings[region->backing];
}

/* The guest cannot write it. Needs no lock: of the flags only the dirty log's changes. */
static inline bool gmem_region_is_read_only(const struct gmem_region *region)
{
	return __atomic_load_n(&region->slot_flags, __ATOMIC_RELAXED) & KVM_MEM_READONLY;
}

/*
 * The memslot is bound to the guest_memfd, as the backing has it. It is not where it was replaced
 * by one of the mapping, for a log: see dirty/logging.h.
 */
static inline bool gmem_region_is_bound(const struct gmem_region *region)
{
	return __atomic_load_n(&region->slot_flags, __ATOMIC_RELAXED) & KVM_MEM_GUEST_MEMFD;
}

static inline bool gmem_region_is_logged(const struct gmem_region *region)
{
	return __atomic_load_n(&region->slot_flags, __ATOMIC_RELAXED) & KVM_MEM_LOG_DIRTY_PAGES;
}

static inline bool gmem_region_wants_log(const struct gmem_region *region)
{
	return __atomic_load_n(&region->wants_log, __ATOMIC_RELAXED);
}

/* Trackers leave it out: a device's range, or memory of one. */
static inline bool gmem_region_is_untracked(const struct gmem_region *region)
{
	return region->is_device || region->kind == GMEM_KIND_DEVICE;
}

/* What the guest writes in it is not known, so it counts as changed each time. */
static inline bool gmem_region_is_unlogged(const struct gmem_region *region)
{
	return !gmem_region_is_read_only(region) && !gmem_region_is_logged(region);
}

/* Memory of the region's kind takes part in all of @uses. */
static inline bool gmem_region_has_use(const struct gmem_region *region, uint32_t uses)
{
	return gmem_kind_has(region->kind, uses);
}

/* Count for the region and for its VM. */
static inline void gmem_region_count(struct gmem_region *region, enum gmem_counter which,
				     uint64_t by)
{
	gmem_count(&region->counters, which, by);
	gmem_count(&region->vm->counters, which, by);
}

/* The checked request of gmem_region_add() */
struct gmem_region_params {
	struct gmem_region_opts opts;
	struct gmem_host_params memory;
	struct gmem_host_nature nature;	/* of the caller's memory, */
	bool nature_is_old;		/* when the step was made: to be asked again */
	const struct gmem_plan *plan;
};

/* Fill in @params, which borrows the plan of @opts. Needs no lock. */
int gmem_region_check(struct gmem_vm *vm, uint64_t gpa, uint64_t size,
		      const struct gmem_region_opts *opts, struct gmem_region_params *params);
int gmem_region_check_gpa(const struct gmem_vm *vm, uint64_t gpa, uint64_t size);

/*
 * The functions below are for changes of the layout. They need the hook lock, which admits
 * one change at a time, and no other. What other threads can see changes in those called
 * gmem_region_commit_*(), which also need change_lock and lock.
 *
 * While a change is under way a region that stays has a second handle: what the region will
 * be. It becomes the owner of what the kernel does not let go of, if a change is refused
 * and cannot be undone.
 */

/*
 * Whether @params name a memslot number, or part of a file, that is in use: only for a change
 * that gives nothing back before. Allocates nothing.
 */
int gmem_region_check_unused(const struct gmem_vm *vm, uint64_t size,
			     const struct gmem_region_params *params);
/* A handle that owns nothing yet but the states of its pages, all shared */
int gmem_region_new(struct gmem_vm *vm, uint64_t gpa, uint64_t size,
		    const struct gmem_region_params *params, struct gmem_region **ret);
/* Its memory was released, or never acquired. @region may be NULL. */
void gmem_region_free(struct gmem_region *region);
/* On failure the region owns nothing. */
int gmem_region_acquire(struct gmem_region *region, const struct gmem_region_params *params);
/*
 * Give back what others may use as soon as the memslot is gone: slot number and file
 * range. What somebody else took meanwhile cannot be had back, and is not owned any more.
 */
void gmem_region_detach(struct gmem_region *region);
void gmem_region_reattach(struct gmem_region *region);
/* Give back the rest, but for states, once no reader can look at the memory any more. */
void gmem_region_release(struct gmem_region *region);

/* Enter and remove its host address in the VM's record, if that is not the caller's. */
void gmem_region_commit_hva(struct gmem_region *region);
void gmem_region_commit_no_hva(struct gmem_region *region);

/*
 * Returns a handle like @region that owns nothing, or NULL with a sentence. The memslot's
 * flags, which need a claim to be read, are to be filled in.
 */
struct gmem_region *gmem_region_copy(const struct gmem_region *region);
/*
 * The kernel keeps a memslot that uses the memory of @region: file range and mapping become
 * @stuck's, a copy of it.
 */
void gmem_region_hand_over(struct gmem_region *region, struct gmem_region *stuck);
/* Likewise, but only the mapping. */
void gmem_region_hand_over_memory(struct gmem_region *region, struct gmem_region *stuck);

struct gmem_kvm_slot gmem_region_memslot(const struct gmem_region *region);
/* The number that KVM's ioctls have for it */
uint32_t gmem_region_slot_id(const struct gmem_region *region);

/*
 * Fill in @lower, a copy of @region, and @upper, with a number of its own: what the parts
 * will be. Committing gives @region's upper part to @upper.
 */
int gmem_region_prepare_split(const struct gmem_region *region, uint64_t offset,
			      struct gmem_region *lower, struct gmem_region *upper);
void gmem_region_undo_split(struct gmem_region *upper);
void gmem_region_commit_split(struct gmem_region *region, struct gmem_region *upper);

/* Part of a file, for a region to have instead of what it has */
struct gmem_binding {
	struct gmem_file *file;
	uint64_t offset;
};

int gmem_region_check_binding(const struct gmem_region *region, const struct gmem_binding *to);
/*
 * Give @after, a copy of @region, the part of the file. Committing exchanges what the two
 * have, so that releasing @after lets go of the old part.
 */
int gmem_region_prepare_rebind(struct gmem_region *region, const struct gmem_binding *to,
			       struct gmem_region *after);
void gmem_region_undo_rebind(struct gmem_region *region, struct gmem_region *after);
void gmem_region_commit_rebind(struct gmem_region *region, struct gmem_region *after);

#endif
