/* SPDX-License-Identifier: MIT */
/*
 * inplace: attributes on the guest_memfd itself.
 *
 * No kernel had this when this version was written (it is queued for Linux 7.4), so
 * its numbers come from the caller and are proven by trying.
 */
#ifndef GMEM_INPLACE_H
#define GMEM_INPLACE_H

#include <stdbool.h>
#include <stdint.h>

#include "gmem.h"
#include "base/part.h"
#include "caps/caps.h"
#include "region/region.h"
#include "region/vm_core.h"

/* Try it in the VM and write the report's line; -EINVAL if the options cannot be right. */
int gmem_inplace_prove(const struct gmem_inplace_opts *opts, int vm_fd,
		       struct gmem_inplace *ret, struct gmem_line *line);
/* Convert part of a region; waits @wait_ms at most for pinned pages, then -EBUSY. */
int gmem_inplace_convert(const struct gmem_region *region, const struct gmem_part *part,
			 bool to_private, uint32_t wait_ms);

#endif
