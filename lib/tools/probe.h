/* SPDX-License-Identifier: MIT */
/* gmem-probe: what the report holds, and the two ways to print it. */
#ifndef PROBE_H
#define PROBE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gmem.h"

enum exit_status {
	EXIT_YES = 0,		/* the report is made, everything required is a yes */
	EXIT_NOT_ALL = 1,	/* something required is not */
	EXIT_USAGE = 2,
	EXIT_NO_REPORT = 3,
};

#define BACKING_COUNT 5

/* A request of one way of backing alone, answered */
struct backing {
	const char *name;
	uint32_t answer;	/* GMEM_YES, GMEM_NO or GMEM_UNKNOWN */
	char *reason;		/* what the plan is, or why there is none */

	/* of the plan, with GMEM_YES only */
	uint64_t create_flags;
	bool needs_region2;
	uint32_t attributes;
};

/* Whom to ask */
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
	char *note;		/* why there is no VM though KVM is there; or NULL */
	char *kvm_reason;	/* of findings[GMEM_CAP_KVM], if it is ours */
};

#define DEFAULT_KVM_PATH "/dev/kvm"

/* 0 or -errno; then gmem_last_error() says why there is no report */
int make_report(const struct question *question, struct report *report);
void free_report(struct report *report);

const char *answer_name(uint32_t answer);
const struct backing *find_backing(const struct report *report, const char *name);
const struct gmem_finding *find_finding(const struct report *report, const char *name);

void print_table(const struct report *report, unsigned int width, bool color);
void print_json(const struct report *report);

#endif
