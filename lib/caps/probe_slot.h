/* SPDX-License-Identifier: MIT */
/*
 * probe_slot: a free memslot and guest address of a VM, to try things with.
 *
 * The VM may be running, so only the highest slot number and address that are
 * free are used, and only for as long as one trial takes.
 */
#ifndef GMEM_PROBE_SLOT_H
#define GMEM_PROBE_SLOT_H

#include <stdint.h>

struct gmem_probe_slot {
	int vm_fd;
	uint32_t slot;
	uint32_t address_bits;	/* of guest physical addresses, found on the way */
	uint64_t gpa;
	uint64_t page;
	void *hva;		/* one page of ordinary memory */
};

/* -EBUSY: no free place was found */
int gmem_probe_slot_open(struct gmem_probe_slot *probe, int vm_fd);
void gmem_probe_slot_close(struct gmem_probe_slot *probe);
/* Add a one-page memslot and delete it again: 0, or the errno of adding it. */
int gmem_probe_slot_try_plain(struct gmem_probe_slot *probe, uint32_t flags);
int gmem_probe_slot_try_gmemfd(struct gmem_probe_slot *probe, int gmemfd, uint64_t offset);
/* Add a memslot with a dirty log, read the log, delete it again. */
int gmem_probe_slot_try_dirty_log(struct gmem_probe_slot *probe);

#endif
