/* SPDX-License-Identifier: MIT */
/* ram_layout: where the RAM of common machines goes: gmem_ram_layout(). */
#ifndef GMEM_RAM_LAYOUT_H
#define GMEM_RAM_LAYOUT_H

#include "gmem.h"

#endif
