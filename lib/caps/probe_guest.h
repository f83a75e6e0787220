/* SPDX-License-Identifier: MIT */
/*
 * probe_guest: runs a few guest instructions in a VM of its own.
 *
 * This answers whether a guest uses the guest_memfd that is bound to its memslot. No
 * capability says so: some kernels bind the file, and let the guest use the memory at the
 * host address all the same.
 */
#ifndef GMEM_PROBE_GUEST_H
#define GMEM_PROBE_GUEST_H

#include <stdbool.h>
#include <stdint.h>

struct gmem_probe_result {
	/* why the guest did not get through: KVM_RUN's -errno, or an exit of this reason; or 0 */
	int run_err;
	unsigned int strange_exit;
	/* each is true if the guest's access reached that memory */
	bool load_from_file;
	bool load_from_hva;
	bool store_to_file;
	bool store_to_hva;
	bool fault_exit;	/* a memory-fault exit came once the file was gone */
};

/* What the guest's page of data is in */
enum gmem_probe_memory {
	GMEM_PROBE_HOST,	/* host memory alone */
	GMEM_PROBE_SHARED,	/* a guest_memfd, bound beside host memory with other contents */
	GMEM_PROBE_PRIVATE,	/* the same, and the page is made private first */
};

/*
 * Makes a VM of type @vm_type, whose guest loads and stores there; @ret says which memory
 * it reached, or why it did not run. The guest_memfd is made with @create_flags. Returns
 * -errno if there was nothing to run. Only for types that gmem_vm_type_is_plain(): others
 * take the memory out of the host's reach, or do not run without measurement.
 */
int gmem_probe_guest(int kvm_fd, uint64_t vm_type, uint64_t create_flags,
		     enum gmem_probe_memory memory, struct gmem_probe_result *ret);

#endif
