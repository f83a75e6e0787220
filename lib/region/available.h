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

struct gmem_region;

/*
 * Returns -ENOMEM, with the numbers, if @need bytes more do not fit into MemAvailable or
 * into the memory cgroup of this process or one above it: below memory.max, where the kernel
 * kills, and memory.high, where it puts processes to sleep. A file that cannot be read sets
 * no limit.
 */
int gmem_check_available_memory(uint64_t need);
/* The same for @size bytes of guest memory, with the page tables and the like that they take */
int gmem_check_memory_fits(uint64_t size);
/*
 * The same for @pages huge pages of hugetlb, of @page_size, that are missing in a mapping with
 * @hva: -ENOMEM if fewer are free, but for those set aside for other mappings and with those that
 * the kernel may still make, or if a limit of the hugetlb cgroup is in the way. To know for which
 * mappings they are set aside takes a walk of the page tables; with NULL they count as free.
 */
int gmem_check_huge_pages_fit(uint64_t page_size, uint64_t pages, const void *hva);
/* The huge pages that are missing of a range of host memory, of which @bytes are there */
uint64_t gmem_count_missing_huge_pages(const void *hva, uint64_t size, uint64_t page_size,
				       uint64_t bytes);
/*
 * The same for what is missing of a range of a region; GMEM_SIDE_*, @offset from its start. What
 * cannot be counted sets no limit.
 */
int gmem_region_check_fits(const struct gmem_region *region, uint32_t side, uint64_t offset,
			   uint64_t size);

#endif
