/* SPDX-License-Identifier: MIT */
/* save: copies guest memory into an image: gmem_vm_save(). */
#ifndef GMEM_SAVE_H
#define GMEM_SAVE_H

#include "gmem.h"

#endif
