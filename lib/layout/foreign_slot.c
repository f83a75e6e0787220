/* SPDX-License-Identifier: MIT */
#include "layout/foreign_slot.h"

#include <errno.h>
#include <inttypes.h>

#include "base/error.h"
#include "caps/probe_slot.h"
#include "region/vm_identity.h"

static int explain_number(const struct gmem_vm *vm, const struct gmem_kvm_slot *slot)
{
	if (gmem_probe_slot_exists(vm->fd, slot->number) != 1)
		return 0;

	return gmem_fail(-EINVAL,
			 "memslot %" PRIu32 ", for gpa 0x%" PRIx64 ", 0x%" PRIx64
			 " bytes, exists already on VM fd %d, though this handle did not set it: "
			 "another handle of the VM, or the program's own code, did",
			 slot->number, slot->gpa, slot->size, vm->identity->number);
}

static int explain_address(const struct gmem_vm *vm, const struct gmem_kvm_slot *slot)
{
	return gmem_fail(-EEXIST,
			 "memslot %" PRIu32 " at gpa 0x%" PRIx64 ", 0x%" PRIx64
			 " bytes, overlaps one of VM fd %d that this handle did not set: another "
			 "handle of the VM, or the program's own code, did",
			 slot->number, slot->gpa, slot->size, vm->identity->number);
}

int gmem_foreign_slot_explain(const struct gmem_vm *vm, const struct gmem_kvm_slot *slot,
			      int refusal)
{
	/* KVM keeps memslots of this handle, too, that the record has no more. */
	if (vm->stuck)
		return 0;

	if (refusal == -EINVAL)
		return explain_number(vm, slot);
	return refusal == -EEXIST ? explain_address(vm, slot) : 0;
}
