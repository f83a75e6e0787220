/* SPDX-License-Identifier: MIT */
/*
 * section: a range of guest addresses, one section after the other, each in one
 * region and of one state.
 *
 * A claim keeps the regions and the states as they are while the sections are worked
 * on, without any lock.
 */
#ifndef GMEM_SECTION_H
#define GMEM_SECTION_H

#include <stdbool.h>
#include <stdint.h>

#include "gmem.h"
#include "region/region.h"
#include "region/vm_core.h"
#include "state/claim.h"
#include "state/listener.h"

struct gmem_section {
	struct gmem_region *region;
	const struct gmem_claim *claim;	/* on all of the range */
	uint32_t side;		/* the one the guest uses; in place there is only one */
	bool is_private;	/* the host cannot reach it by the region's address */
	bool is_unused;		/* the guest uses the other side */
	uint64_t offset;	/* in the region */
	uint64_t size;
};

/*
 * Has @section be of @side, whichever the guest uses; 0: of the side that the guest uses.
 * -EOPNOTSUPP if its region has not both.
 */
int gmem_section_take_side(struct gmem_section *section, uint32_t side);

/*
 * What listeners are told of a section, if they are: of its memory from @done on. Returns false
 * if nobody listens, or the host cannot reach it. @part borrows @region.
 */
bool gmem_section_part(const struct gmem_section *section, uint64_t done,
		       struct gmem_region_info *region, struct gmem_listener_part *part);

typedef int (*gmem_section_fn)(void *data, const struct gmem_section *section);

/*
 * Call @fn for each section, lowest first, with a claim on the whole range and no
 * lock held. Memory of a kind that lacks one of @uses (enum gmem_kind_use) is left out.
 * Returns -ENOENT or -ENXIO where there is no memory, with the sections
 * before it done, -EBUSY if a lease or other work is in the way after what was left of
 * @budget, which may be NULL, or what @fn returned first.
 */
int gmem_vm_each_section(struct gmem_vm *vm, uint64_t gpa, uint64_t size, uint32_t uses,
			 enum gmem_claim_mode mode, struct gmem_wait_budget *budget,
			 gmem_section_fn fn, void *data);
/*
 * Bytes claimed at once by work that takes its time: conversions of them wait meanwhile, and
 * the kernel handles so much in a few milliseconds, even where each page must be looked at.
 */
#define GMEM_SECTION_PIECE (UINT64_C(64) << 20)

/*
 * Claim at most @max bytes of the first region that has an address in [@gpa, @last], shared,
 * so that it stays as it is; the claim says where. @ret is NULL, and nothing claimed, if there
 * is none. Called with the VM's lock held, which is dropped while the claim waits. -EDEADLK,
 * or -EBUSY after @budget, which the claim leads to from then on.
 */
int gmem_section_claim(struct gmem_vm *vm, uint64_t gpa, uint64_t last, uint64_t max,
		       struct gmem_wait_budget *budget, struct gmem_claim *claim,
		       struct gmem_region **ret);
/* The same without a claim: true at this moment only. */
int gmem_vm_look_at_sections(struct gmem_vm *vm, uint64_t gpa, uint64_t size, uint32_t uses,
			     gmem_section_fn fn, void *data);
/*
 * How much of [@gpa, @gpa + @size) to work on next: about GMEM_SECTION_PIECE, in whole pages of
 * the memory, which may be larger.
 */
uint64_t gmem_section_piece(struct gmem_vm *vm, uint64_t gpa, uint64_t size);
/*
 * -ENOENT or -ENXIO if part of the range is no memory, at this moment; -EOPNOTSUPP, and a
 * sentence that ends with @otherwise, unless that is NULL, if all of it is of kinds that lack one
 * of @uses. @ret_bytes is how much is not.
 */
int gmem_vm_check_memory(struct gmem_vm *vm, uint64_t gpa, uint64_t size, uint32_t uses,
			 const char *otherwise, uint64_t *ret_bytes);

struct gmem_vm_resident {
	uint64_t bytes;
	uint64_t in_huge_pages;		/* of them, those of hugetlb */
};

/*
 * What is in memory, of a side as gmem_section_take_side(): see gmem_region_memory_resident().
 * Kinds whose pages are not counted have nothing.
 */
int gmem_vm_resident(struct gmem_vm *vm, uint64_t gpa, uint64_t size, uint32_t side,
		     struct gmem_vm_resident *ret);

#endif
