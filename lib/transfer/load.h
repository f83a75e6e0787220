/* SPDX-License-Identifier: MIT */
/* load: copies a file or a pipe into guest memory: gmem_vm_load(). */
#ifndef GMEM_LOAD_H
#define GMEM_LOAD_H

#include "gmem.h"

#endif
