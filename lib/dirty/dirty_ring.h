/* SPDX-License-Identifier: MIT */
/*
 * dirty_ring: KVM's dirty rings, in which each vCPU notes the pages that it writes.
 *
 * Where a VMM enabled KVM_CAP_DIRTY_LOG_RING there are no bitmaps, or they have only what is
 * not written by vCPUs. A ring is memory of the vCPU's fd: KVM enters an entry behind the last
 * one, we take it out and say so, and KVM_RESET_DIRTY_RINGS has all vCPUs fault anew where
 * they write these pages. An entry names a memslot and a page in it. A memslot that a change of
 * the layout has replaced is another one, so a change marks all that its memslots had
 * (layout/apply.c); entries of memslots that are gone are left out.
 *
 * The rings are guarded by dirty_lock, so vCPUs whose ring is full wait for no change.
 */
#ifndef GMEM_DIRTY_RING_H
#define GMEM_DIRTY_RING_H

#include <stdbool.h>
#include <stdint.h>

struct gmem_vm;

/* Whether the VMM enabled rings, which it may have done after it made the handle */
bool gmem_vm_has_dirty_rings(struct gmem_vm *vm);
/* Whether a tracker with these flags, GMEM_DIRTY_*, misses nothing: 0, or -EOPNOTSUPP. */
int gmem_vm_check_dirty_rings(struct gmem_vm *vm, uint64_t flags);
/* Mark what is in all rings that the library reads. Takes dirty_lock. */
int gmem_dirty_rings_mark(struct gmem_vm *vm);
/*
 * A vCPU's ring is full: empty all. Returns 1, 0 if the ring is not one that the library
 * reads, or -errno. @vcpu_fd below 0: not known.
 */
int gmem_dirty_rings_make_room(struct gmem_vm *vm, int vcpu_fd);
/* For the VM's owner, who ends it */
void gmem_dirty_rings_end(struct gmem_vm *vm);

#endif
