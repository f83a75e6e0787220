/* SPDX-License-Identifier: MIT */
/* change: changes of several steps: gmem_change_new() to gmem_change_apply(). */
#ifndef GMEM_CHANGE_H
#define GMEM_CHANGE_H

#include "gmem.h"

#endif
