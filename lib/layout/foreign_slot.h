/* SPDX-License-Identifier: MIT */
/*
 * foreign_slot: memslots of the VM that its handle did not set.
 *
 * KVM does not list memslots, and refuses a number or an address that is taken with the
 * errno of many other mistakes. A second handle of the VM, or memslots of the VMM's own
 * that nobody reserved, look like that.
 */
#ifndef GMEM_FOREIGN_SLOT_H
#define GMEM_FOREIGN_SLOT_H

#include "os/kvm.h"
#include "region/vm_core.h"

/*
 * Says whether KVM refused to add @slot, with @refusal, because of a memslot that @vm did not set:
 * returns -EEXIST with a sentence if so, and 0 without one if not, or if it cannot be
 * known. Takes the VM's lock.
 */
int gmem_foreign_slot_explain(struct gmem_vm *vm, const struct gmem_kvm_slot *slot,
			      int refusal);

#endif
