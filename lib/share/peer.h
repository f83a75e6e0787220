/* SPDX-License-Identifier: MIT */
/* peer: adds and removes the processes an export gives memory to: gmem_peer_add(), _remove(). */
#ifndef GMEM_PEER_H
#define GMEM_PEER_H

#include "gmem.h"

#endif
