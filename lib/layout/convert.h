/* SPDX-License-Identifier: MIT */
/*
 * convert: conversion of a range between shared and private.
 *
 *   claim    conversions that overlap follow each other, and a conversion to private
 *            waits for leases; the layout of the range does not change until it is done
 *   check    every byte can be converted, or nothing is touched
 *   ask      to private: listeners, one of whom may refuse
 *   table    to private: readers are told, and waited for, before
 *   kernel   one call for each run that is not yet as it shall be
 *   record   what the kernel was told is what gmem_vm_state() says
 *   table    to shared: readers are told, after
 *   discard  the other side is given back, now or later
 *   tell     listeners what is shared now, and what did not become private
 *
 * Everything that needs memory comes before the kernel is asked, except one more table
 * for readers if the kernel refuses the undo, too; without memory for it they get the
 * table that grants less. The record changes only with change_lock and lock held, so
 * either is enough to read it.
 */
#ifndef GMEM_CONVERT_H
#define GMEM_CONVERT_H

#include <stdint.h>

#include "gmem.h"
#include "region/vm_core.h"

/* Check, at this moment, that gmem_vm_convert() would find memory that converts everywhere. */
int gmem_convert_check(struct gmem_vm *vm, uint64_t gpa, uint64_t size);

#endif
