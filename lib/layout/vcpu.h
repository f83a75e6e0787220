/* SPDX-License-Identifier: MIT */
/*
 * vcpu: a vCPU's exits dealt with, and memory faulted in for it.
 *
 * One exit is one bounded piece of work, whatever a guest asks. How often the same
 * exit came back is kept for each vCPU, so that an exit that makes no progress is
 * reported and not tried for ever.
 */
#ifndef GMEM_VCPU_H
#define GMEM_VCPU_H

#include "gmem.h"

#endif
