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
#include "base/range_map.h"
#include "os/kvm.h"
#include "os/kvm_compat.h"
#include "region/file_map.h"
#include "region/vm_core.h"

/*
 * Fields change with change_lock and lock held, slot_flags with lock alone. gpa.start,
 * gpa.size and hva.start may be read without, see gmem_range_set_start().
 */
struct gmem_region {
	struct gmem_range gpa;		/* in vm->regions */
	struct gmem_range hva;		/* in vm->hvas, unless the memory is the caller's */
	struct gmem_range bound;	/* in file->bound if the memslot has the file */
	struct gmem_map maps[2];	/* one pins host memory, the other is for a rebind under way */
	struct gmem_map *map;		/* pinned, if the host address is the file's; else NULL */
	struct gmem_vm *vm;
	struct gmem_file *file;
	struct gmem_region *next_stuck;
	uint64_t file_offset;
	uint64_t align;
	uint32_t slot;
	uint32_t slot_flags;
	uint32_t backing;
	bool congruent;
	bool hva_chosen;		/* by the caller, with GMEM_REGION_HVA */
	bool is_device;
	bool read_only;			/* to the host; only of an import */
	bool has_slot;			/* the kernel has a memslot of this number */
	bool lost;			/* its memslot is missing, or not as recorded here */
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
	const struct gmem_plan *plan;
};

/* Fill in @params, which borrows the plan of @opts. Needs no lock. */
int gmem_region_check(const struct gmem_vm *vm, uint64_t gpa, uint64_t size,
		      const struct gmem_region_opts *opts, struct gmem_region_params *params);
int gmem_region_check_gpa(const struct gmem_vm *vm, uint64_t gpa, uint64_t size);

/*
 * A handle that owns nothing yet; free() frees it. The functions below need both locks; on
 * failure the region owns what it owned before.
 */
int gmem_region_new(struct gmem_vm *vm, uint64_t gpa, uint64_t size,
		    const struct gmem_region_params *params, struct gmem_region **ret);
int gmem_region_acquire(struct gmem_region *region, const struct gmem_region_params *params);
/*
 * Give back what others may use as soon as the memslot is gone: slot number, file
 * range, host addresses. Reattaching cannot fail while nobody else took them.
 */
void gmem_region_detach(struct gmem_region *region);
void gmem_region_reattach(struct gmem_region *region);
/* Give back the rest, once no reader can look at the memory any more. */
void gmem_region_release(struct gmem_region *region);

struct gmem_kvm_slot gmem_region_memslot(const struct gmem_region *region);

/* Make @upper own what is above @offset; and back. */
int gmem_region_split_memory(struct gmem_region *region, uint64_t offset,
			     struct gmem_region *upper);
void gmem_region_unsplit_memory(struct gmem_region *region, struct gmem_region *upper);

/* Part of a file, for a region to have instead of what it has */
struct gmem_binding {
	struct gmem_file *file;
	uint64_t offset;
	struct gmem_map *map;
};

int gmem_region_check_binding(const struct gmem_region *region, const struct gmem_binding *to);
/* Afterwards @binding is what the region had, until it is swapped back or dropped. */
int gmem_region_swap_file(struct gmem_region *region, struct gmem_binding *binding);
void gmem_region_unswap_file(struct gmem_region *region, struct gmem_binding *binding);
void gmem_region_drop_binding(struct gmem_region *region, struct gmem_binding *binding);

#endif
