/* SPDX-License-Identifier: MIT */
/*
 * probe_slot: a free memslot and guest address of a VM, to try things with.
 *
 * The VM may be in use, and may run. Therefore a probe takes the highest slot number and
 * the highest address that are free, and has a memslot there only during one trial.
 *
 * One thread of the process has a probe open at a time; others wait.
 *
 * Memslots that other code sets meanwhile may collide with a trial: KVM refuses one of the
 * two, with -EINVAL for the number or -EEXIST for the address, and changes neither. So
 * the probe may be wrong, and the other code may fail, if it uses the highest numbers or
 * addresses.
 */
#ifndef GMEM_PROBE_SLOT_H
#define GMEM_PROBE_SLOT_H

#include <stdbool.h>
#include <stdint.h>

struct gmem_probe_slot {
	int vm_fd;
	uint32_t space;		/* the VM's address space */
	uint32_t slot;
	uint32_t address_bits;	/* bits of guest physical addresses that KVM accepts */
	uint64_t gpa;
	uint64_t page;		/* bytes */
	void *hva;		/* one page of ordinary memory */
	bool is_kept;		/* KVM did not delete the memslot, so the page stays for good */
};

/*
 * Finds a free slot number and address in an address space; -EBUSY if none of those tried is free. On success
 * the caller must close the probe before it does anything that may wait.
 */
int gmem_probe_slot_open(struct gmem_probe_slot *probe, int vm_fd, uint32_t space);
void gmem_probe_slot_close(struct gmem_probe_slot *probe);
/*
 * Says whether the VM has a memslot of this number, without a change to it: returns 1, 0,
 * or -errno if that cannot be found out. No probe may be open in this thread.
 */
int gmem_probe_slot_exists(int vm_fd, uint32_t space, uint32_t number);
/* Adds a memslot of one page and deletes it again: 0, or the -errno of either. */
int gmem_probe_slot_try_plain(struct gmem_probe_slot *probe, uint32_t flags);
/* As gmem_probe_slot_try_plain(), with a guest_memfd bound to the memslot. */
int gmem_probe_slot_try_gmemfd(struct gmem_probe_slot *probe, int gmemfd, uint64_t offset);
/* Adds a memslot with a dirty log, reads the log, and deletes the memslot again. */
int gmem_probe_slot_try_dirty_log(struct gmem_probe_slot *probe);

#endif
