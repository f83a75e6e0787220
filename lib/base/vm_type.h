/* SPDX-License-Identifier: MIT */
/*
 * vm_type: the types of VM, KVM_CREATE_VM's argument: their names, and what sets them apart.
 *
 * On x86 they are numbers. On arm64 the low bits are the VM's bits of guest address, and
 * there is a bit for VMs that the kernel protects from the host, of pKVM.
 */
#ifndef GMEM_VM_TYPE_NAMES_H
#define GMEM_VM_TYPE_NAMES_H

#include <stdbool.h>
#include <stdint.h>

#define GMEM_VM_TYPE_PKVM (UINT64_C(1) << 31)

/* Returns the name, or NULL of a type without one. */
const char *gmem_vm_type_name(uint64_t type, bool is_arm64);
/* Finds the type of a name, in capitals or not. */
bool gmem_vm_type_find(const char *name, bool is_arm64, uint64_t *ret);
/* Whether its guests run without more ado, in memory that stays the host's, too */
bool gmem_vm_type_is_plain(uint64_t type, bool is_arm64);

#endif
