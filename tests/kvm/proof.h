/* SPDX-License-Identifier: MIT */
/*
 * proof: copies of a VM's memory that are kept only by what trackers tell, compared with it.
 *
 * While everybody scribbles (scribble.h) the pages that a tracker collects are copied. In each
 * round all are stopped, what is left is collected, and copy and memory must be alike.
 */
#ifndef TESTS_KVM_PROOF_H
#define TESTS_KVM_PROOF_H

#include "scribble.h"

struct proof_way {
	int type;			/* of VM */
	uint32_t backing;		/* of the region in the middle, and of the big one */
	uint64_t tracker_flags;		/* GMEM_DIRTY_* */
	uint64_t manual_protect;	/* argument of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2; 0: off */
	uint32_t ring_bytes;		/* of dirty rings; 0: logs */
};

#define PROOF_ALL_KINDS ((1ull << SCRIBBLE_KINDS) - 1)

/* Set by the program's arguments: "--rounds N", "--seed N", "--kinds MASK" */
extern uint64_t proof_rounds, proof_seed, proof_kinds;
/* Take them from the arguments, so that the rest are names of tests. */
int proof_arguments(int argc, char **argv);

/*
 * Scribble for so many rounds in ways of @kinds (1 << enum scribble_kind). Returns false when
 * memory differs, with what differs in @ret: 200 bytes. Skips if there is no such VM here.
 */
bool proof_run(const struct proof_way *way, uint64_t kinds, uint64_t rounds, char *ret);

#endif
