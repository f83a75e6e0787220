/* SPDX-License-Identifier: MIT */
/*
 * lease: who uses a range as shared memory, and must not be surprised:
 * gmem_lease_new(), gmem_lease_free(). Whom a lease keeps waiting is in claim.h.
 */
#ifndef GMEM_LEASE_H
#define GMEM_LEASE_H

#include "gmem.h"

#endif
