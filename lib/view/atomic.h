/* SPDX-License-Identifier: MIT */
/*
 * atomic: atomic access to naturally aligned words of guest memory.
 *
 * gmem_view_load(), _store() and _compare_exchange() check their arguments, find the host
 * address and use the words of nofault.h. This header declares nothing: gmem.h does.
 *
 * Not supported: words of 16 bytes, and atomic arithmetic.
 */
#ifndef GMEM_ATOMIC_H
#define GMEM_ATOMIC_H

#include "gmem.h"

#endif
