/* SPDX-License-Identifier: MIT */
/*
 * atomic: naturally aligned words of guest memory: gmem_view_load(), _store() and
 * _compare_exchange().
 */
#ifndef GMEM_ATOMIC_H
#define GMEM_ATOMIC_H

#include "gmem.h"

#endif
