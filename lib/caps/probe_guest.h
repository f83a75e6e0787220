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

/* Each is true if the guest's access reached that memory. */
struct gmem_probe_result {
	bool load_from_file;
	bool load_from_hva;
	bool store_to_file;
	bool store_to_hva;
	bool fault_exit;	/* a memory-fault exit came once the file was gone */
};

/*
 * Makes a VM of type @vm_type and a guest_memfd with @create_flags, which is bound to a
 * memslot whose host address has other contents. A guest loads and stores there; @ret says
 * which memory it reached. @private_memory: the page is made private first.
 */
int gmem_probe_guest(int kvm_fd, uint64_t vm_type, uint64_t create_flags, bool private_memory,
		     struct gmem_probe_result *ret);

#endif
