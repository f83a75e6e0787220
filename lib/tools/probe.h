/* SPDX-License-Identifier: MIT */
/* probe: the report of gmem-probe, and the two ways to print it. */
#ifndef PROBE_H
#define PROBE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gmem.h"

/* Besides EXIT_USAGE, see text.h */
enum exit_status {
	EXIT_YES = 0,		/* there is a report, and every --require is a yes */
	EXIT_NOT_ALL = 1,	/* there is a report, but some --require is not a yes */
	EXIT_NO_REPORT = 3,
};

#define BACKING_COUNT 5

/* The answer to a request for one way of backing alone */
struct backing {
	const char *name;
	uint32_t answer;	/* GMEM_YES, GMEM_NO or GMEM_UNKNOWN */
	char *reason;		/* describes the plan, or says why there is none */

	/* these describe the plan, and are set only with GMEM_YES */
	uint64_t create_flags;
	bool needs_region2;
	uint32_t attributes;
};

/* The options that decide what is asked */
struct question {
	const char *kvm_path;
	uint64_t vm_type;
	bool no_vm;
	bool run_guest;
};

struct report {
	struct gmem_caps *caps;
	struct gmem_finding *findings;
	size_t finding_count;
	struct backing backings[BACKING_COUNT];	/* most wanted first */

	bool has_vm;
	uint64_t vm_type;
	bool ran_guest;		/* or tried to */
	bool needs_group;	/* DEFAULT_KVM_PATH is not open to this user */
	char group[33];		/* which to join */
	bool makes_group;	/* it has to be made first, */
	bool gives_group;	/* or given DEFAULT_KVM_PATH */
	char *note;		/* says why there is KVM but no VM, or NULL */
	char *kvm_reason;	/* the reason of findings[GMEM_CAP_KVM], if we wrote it */
};

#define DEFAULT_KVM_PATH "/dev/kvm"

/* Returns 0, or -errno with a sentence in gmem_last_error(); free the report either way. */
int make_report(const struct question *question, struct report *report);
void free_report(struct report *report);

/* Returns the name of a type of VM, or its number; to be freed. */
char *vm_type_text(uint64_t type);
/* Returns false if there is no type of this name or number. */
bool parse_vm_type(const char *text, uint64_t *ret);
/* Returns "yes", "no" or "unknown". */
const char *answer_name(uint32_t answer);
/* For an unknown name, these return NULL. */
const struct backing *find_backing(const struct report *report, const char *name);
const struct gmem_finding *find_finding(const struct report *report, const char *name);

void print_table(const struct report *report, unsigned int width, bool color);
void print_json(const struct report *report);

#endif
