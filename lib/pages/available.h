/* SPDX-License-Identifier: MIT */
/*
 * available: checks how much memory the host, or a memory cgroup, can still give.
 *
 * Running out of memory is not an errno that a call could return. A memory cgroup at its
 * limit kills the process, and a full machine kills other processes first, because the
 * pages of a guest_memfd count for no process. So the check comes before the allocation.
 */
#ifndef GMEM_AVAILABLE_H
#define GMEM_AVAILABLE_H

#include <stdint.h>

/*
 * Returns -ENOMEM, with the numbers, if @need bytes more do not fit into MemAvailable or
 * into the memory cgroup of this process or one above it. A file that cannot be read sets
 * no limit.
 */
int gmem_check_available_memory(uint64_t need);

#endif
