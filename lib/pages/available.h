/* SPDX-License-Identifier: MIT */
/* available: how much memory the host, or a memory cgroup, can still give. */
#ifndef GMEM_AVAILABLE_H
#define GMEM_AVAILABLE_H

#include <stdint.h>

/*
 * -ENOMEM, with the numbers, if @need bytes more do not fit into MemAvailable or into
 * the memory cgroup of this process or one above it. What cannot be read sets no
 * limit.
 */
int gmem_check_available_memory(uint64_t need);

#endif
