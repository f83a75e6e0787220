/* SPDX-License-Identifier: MIT */
/*
 * probe_slot: a free memslot and guest address of a VM, to try things with.
 *
 * The VM may be in use, and may run. Therefore a probe takes the highest slot number and
 * the highest address that are free, and has a memslot there only during one trial.
 *
 * Not supported: a VM whose memslots change while the probe is open.
 */
#ifndef GMEM_PROBE_SLOT_H
#define GMEM_PROBE_SLOT_H

#include <stdint.h>

struct gmem_probe_slot {
	int vm_fd;
	uint32_t slot;
	uint32_t address_bits;	/* bits of guest physical addresses that KVM accepts */
	uint64_t gpa;
	uint64_t page;		/* bytes */
	void *hva;		/* one page of ordinary memory */
};

/* Finds a free slot number and address; -EBUSY if none of those tried is free. */
int gmem_probe_slot_open(struct gmem_probe_slot *probe, int vm_fd);
void gmem_probe_slot_close(struct gmem_probe_slot *probe);
/* Adds a memslot of one page and deletes it again: 0, or the -errno of either. */
int gmem_probe_slot_try_plain(struct gmem_probe_slot *probe, uint32_t flags);
/* As gmem_probe_slot_try_plain(), with a guest_memfd bound to the memslot. */
int gmem_probe_slot_try_gmemfd(struct gmem_probe_slot *probe, int gmemfd, uint64_t offset);
/* Adds a memslot with a dirty log, reads the log, and deletes the memslot again. */
int gmem_probe_slot_try_dirty_log(struct gmem_probe_slot *probe);

#endif
