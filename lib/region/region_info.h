/* SPDX-License-Identifier: MIT */
/* region_info: regions as their users see them: found, listed, and what each is. */
#ifndef GMEM_REGION_INFO_H
#define GMEM_REGION_INFO_H

#include "gmem.h"

/* With the VM's lock, or a claim on the region */
void gmem_region_fill_info(const struct gmem_region *region, struct gmem_region_info *ret);

#endif
