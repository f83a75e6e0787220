/* SPDX-License-Identifier: MIT */
#include "layout/foreign_slot.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>

#include "base/error.h"
#include "base/lock.h"
#include "caps/probe_slot.h"

static int explain_number(const struct gmem_vm *vm, const struct gmem_kvm_slot *slot)
{
	if (gmem_probe_slot_exists(vm->fd, slot->space, slot->number) != 1)
		return 0;

	return gmem_fail(-EEXIST,
			 "memslot %" PRIu32 ", for gpa 0x%" PRIx64 ", 0x%" PRIx64
			 " bytes, exists already on VM fd %d, though this handle did not set it: "
			 "another handle of the VM, or the program's own code, did; reserve its numbers with "
			 "gmem_vm_reserve_slots()",
			 slot->number, slot->gpa, slot->size, gmem_vm_number(vm));
}

static int explain_address(const struct gmem_vm *vm, const struct gmem_kvm_slot *slot)
{
	return gmem_fail(-EEXIST,
			 "memslot %" PRIu32 " at gpa 0x%" PRIx64 ", 0x%" PRIx64
			 " bytes, overlaps one of VM fd %d that this handle did not set: another "
			 "handle of the VM, or the program's own code, did",
			 slot->number, slot->gpa, slot->size, gmem_vm_number(vm));
}

int gmem_foreign_slot_explain(struct gmem_vm *vm, const struct gmem_kvm_slot *slot,
			      int refusal)
{
	bool is_certain;

	/* KVM can keep memslots of this handle, too, that the record has no more. */
	gmem_lock_take(&vm->lock);
	is_certain = !vm->stuck;
	gmem_lock_drop(&vm->lock);
	if (!is_certain)
		return 0;

	if (refusal == -EINVAL)
		return explain_number(vm, slot);
	return refusal == -EEXIST ? explain_address(vm, slot) : 0;
}
