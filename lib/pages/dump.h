/* SPDX-License-Identifier: MIT */
/* dump: what a VM's memory is at this moment, written as JSON: gmem_vm_dump(). */
#ifndef GMEM_DUMP_H
#define GMEM_DUMP_H

#include "gmem.h"

#endif
