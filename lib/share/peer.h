/* SPDX-License-Identifier: MIT */
/* peer: the processes an export gives memory to come and go: gmem_peer_add(), _remove(). */
#ifndef GMEM_PEER_H
#define GMEM_PEER_H

#include "gmem.h"

#endif
