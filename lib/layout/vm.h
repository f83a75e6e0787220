/* SPDX-License-Identifier: MIT */
/* vm: making and freeing a VM handle: gmem_vm_new(), gmem_vm_free() and what belongs to them. */
#ifndef GMEM_VM_H
#define GMEM_VM_H

#include "gmem.h"

#endif
