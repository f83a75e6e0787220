/* SPDX-License-Identifier: MIT */
/* populate: allocates guest memory before the guest asks for it: gmem_vm_populate(). */
#ifndef GMEM_POPULATE_H
#define GMEM_POPULATE_H

#include "gmem.h"

#endif
