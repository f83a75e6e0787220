/* SPDX-License-Identifier: MIT */
/* probe_guest: a few guest instructions that run in a VM made for them. */
#ifndef GMEM_PROBE_GUEST_H
#define GMEM_PROBE_GUEST_H

#include <stdbool.h>
#include <stdint.h>

struct gmem_probe_result {
	bool load_from_file;
	bool load_from_hva;
	bool store_to_file;
	bool store_to_hva;
	bool fault_exit;	/* a memory-fault exit came once the file was gone */
};

/*
 * Bind a file of @create_flags over a host address with other contents, let a
 * guest load and store, and report which of the two memories it reached.
 */
int gmem_probe_guest(int kvm_fd, uint64_t vm_type, uint64_t create_flags, bool private_memory,
		     struct gmem_probe_result *ret);

#endif
