/* SPDX-License-Identifier: MIT */
/*
 * export: gives other processes a VM's memory, as parts of files that they can map:
 * gmem_export_new(), and tables for vhost-user.
 */
#ifndef GMEM_EXPORT_H
#define GMEM_EXPORT_H

#include "gmem.h"

#endif
