/* SPDX-License-Identifier: MIT */
/*
 * exit: what KVM_RUN's return says about guest memory: gmem_exit_decode() and the
 * replies. Makes no system call.
 */
#ifndef GMEM_EXIT_H
#define GMEM_EXIT_H

#include "gmem.h"

#endif
