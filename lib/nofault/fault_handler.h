/* SPDX-License-Identifier: MIT */
/*
 * fault_handler: the signal handler behind gmem_recovery_enable().
 *
 * It moves the program counter of an instruction in the recovery table to its fix-up
 * (nofault.h), and passes every other signal on to the handler that was there before.
 */
#ifndef GMEM_FAULT_HANDLER_H
#define GMEM_FAULT_HANDLER_H

#include "gmem.h"

#endif
