/* SPDX-License-Identifier: MIT */
/*
 * restore: copies an image into guest memory, or only checks it: gmem_vm_restore(),
 * gmem_image_verify().
 */
#ifndef GMEM_RESTORE_H
#define GMEM_RESTORE_H

#include "gmem.h"

#endif
