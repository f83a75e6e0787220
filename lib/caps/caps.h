/* SPDX-License-Identifier: MIT */
/*
 * caps: the report on what a VM, or a host, supports.
 *
 * A report has one line for each GMEM_CAP_*: yes, no or unknown, with a reason, and with
 * a remedy if the answer is no. gmem_caps_new() makes a report in four steps, each of
 * which fills in lines: it looks at the host, asks KVM, tries things in the VM, and, if
 * asked to, runs a guest. A report never changes once it is made.
 *
 * A new capability is a GMEM_CAP_* in gmem.h, a name in line_names, and a function in
 * caps.c that fills in its line.
 */
#ifndef GMEM_CAPS_H
#define GMEM_CAPS_H

#include <stdbool.h>
#include <stdint.h>

#include "gmem.h"

/* One line of the report; struct gmem_finding in gmem.h documents the fields. */
struct gmem_line {
	const char *remedy;
	int64_t value;
	uint32_t answer;
	uint32_t has_value;
	char reason[200];
};

struct gmem_caps {
	bool has_vm;
	bool has_vm_type;	/* the caller told it */
	uint64_t vm_type;
	/* -errno if these calls cannot be used, whatever the memory */
	int mbind_refusal;
	int madvise_refusal;
	struct gmem_line lines[GMEM_CAP_COUNT];
};

/* Checks that @vm_fd is a VM's that this process can use; -errno with a sentence. */
int gmem_caps_check_vm(int vm_fd);
/* Returns whether the line has this answer: GMEM_YES, GMEM_NO or GMEM_UNKNOWN. */
bool gmem_caps_says(const struct gmem_caps *caps, enum gmem_cap cap, uint32_t answer);
/* Returns the value of the line, or 0 if it has none. */
uint64_t gmem_caps_value(const struct gmem_caps *caps, enum gmem_cap cap);
/*
 * Returns the VM's type, KVM_CREATE_VM's argument: as told, or else one that takes the
 * same answers to a guest's requests.
 */
uint64_t gmem_caps_vm_type(const struct gmem_caps *caps);
void gmem_caps_set_vm_type(struct gmem_caps *caps, uint64_t vm_type);

#endif
