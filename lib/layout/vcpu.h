/* SPDX-License-Identifier: MIT */
/*
 * vcpu: a vCPU's exits dealt with, and memory faulted in for it.
 *
 * A guest's request is cut into pieces of at most 1 GiB, and between two of them the
 * VMM can have its thread back. How often the same
 * exit came back is kept for each vCPU, so that an exit that makes no progress is
 * reported and not tried for ever.
 */
#ifndef GMEM_VCPU_H
#define GMEM_VCPU_H

#include "gmem.h"

#endif
