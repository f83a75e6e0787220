/* SPDX-License-Identifier: MIT */
/* discard: giving memory that the guest does not need back to the host: gmem_vm_discard(). */
#ifndef GMEM_DISCARD_H
#define GMEM_DISCARD_H

#include "gmem.h"

#endif
