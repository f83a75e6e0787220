/* SPDX-License-Identifier: MIT */
/* dump: writes the present state of a VM's memory as JSON: gmem_vm_dump(), gmem_vm_serve_dump(). */
#ifndef GMEM_DUMP_H
#define GMEM_DUMP_H

#include "gmem.h"

#endif
