/* SPDX-License-Identifier: MIT */
/*
 * import: memory that another process exports, without KVM.
 *
 * An import is what views know of a VM's handle, with regions that are mappings of
 * files which came over a socket: no VM, and no memslots.
 *
 * Nothing the other side says is believed: every message is checked for itself
 * (wire.c), then against what is mapped, and its file is inspected (extent.c). What is
 * malformed ends the import; what is only too much is answered with an errno.
 */
#ifndef GMEM_IMPORT_H
#define GMEM_IMPORT_H

#include "gmem.h"

#endif
