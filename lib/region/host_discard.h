/* SPDX-License-Identifier: MIT */
/* host_discard: host memory given back, whatever is mapped there. */
#ifndef GMEM_HOST_DISCARD_H
#define GMEM_HOST_DISCARD_H

#include <stdbool.h>
#include <stdint.h>

struct gmem_host_look;

/* Drop what a process has of its pages where they are mapped, also if they are locked; or -errno. */
int gmem_host_drop(uint64_t hva, uint64_t size);

/*
 * Give back the whole pages in a range of host addresses; of hugetlb, whole huge pages. They
 * read as zero afterwards: where they would not (a private mapping of a file shows the file
 * again, userfaultfd asks its handler again), nothing is freed, and the call is -EOPNOTSUPP,
 * unless @flags has GMEM_DISCARD_NOT_ZERO. @ret_done gets the bytes that were freed, also on
 * failure: none of a huge page of which only a part is in the range, which is no failure. Only a
 * page that userfaultfd cares for may be gone and not be counted, as it comes back. Without /proc
 * what is mapped is found out by what the kernel refuses. @look: of this call.
 */
int gmem_host_discard(struct gmem_host_look *look, void *hva, uint64_t size, uint64_t flags,
		      uint64_t *ret_done);

#endif
