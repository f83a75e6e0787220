/* SPDX-License-Identifier: MIT */
/*
 * import: maps memory that another process exports, without KVM.
 *
 * An import has the part of a VM handle that views read. Its regions are mappings of
 * files that came over a socket; it has no VM fd and no memslots.
 *
 * No message is trusted: each is checked by itself (wire.c), then against what is mapped
 * already, and its file is inspected (extent.c). A malformed message ends the import; a
 * message that asks for more than the limits allow is answered with an errno.
 */
#ifndef GMEM_IMPORT_H
#define GMEM_IMPORT_H

#include "gmem.h"

#endif
