/* SPDX-License-Identifier: MIT */
/*
 * fault_handler: the handlers of SIGBUS and SIGSEGV that gmem_recovery_enable() installs.
 *
 * If the signal comes from an instruction in the recovery table (nofault.h), the handler
 * moves the program counter to the fix-up. It passes every other signal on to the handler
 * that was installed before.
 *
 * This header declares nothing: gmem.h has gmem_recovery_enable() and _disable(),
 * and nofault.h has gmem_nofault_is_recoverable().
 */
#ifndef GMEM_FAULT_HANDLER_H
#define GMEM_FAULT_HANDLER_H

#include "gmem.h"

#endif
