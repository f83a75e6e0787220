/* SPDX-License-Identifier: MIT */
/*
 * export: what of a VM's memory other processes can map, and as which part of which
 * file: gmem_export_new(), and tables for vhost-user.
 */
#ifndef GMEM_EXPORT_H
#define GMEM_EXPORT_H

#include "gmem.h"

#endif
