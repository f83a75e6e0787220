/* SPDX-License-Identifier: MIT */
/*
 * numa_thread: moves the library's worker threads to the NUMA node of the memory
 * they work on.
 */
#ifndef GMEM_NUMA_THREAD_H
#define GMEM_NUMA_THREAD_H

#include <stdbool.h>
#include <stdint.h>

#define GMEM_NUMA_CPU_WORDS 128	/* of 64 processors each */

struct gmem_numa_thread {
	bool is_known;					/* allowed is filled in */
	int64_t node;					/* node of the last move */
	uint64_t allowed[GMEM_NUMA_CPU_WORDS];		/* processors the thread may use */
};

/* Is there any choice? One system call, where a move takes several. */
bool gmem_numa_has_several_nodes(void);
/*
 * Move this thread to the node that the memory at @hva comes from, if a policy names
 * exactly one. Does nothing if the thread cannot be moved.
 */
void gmem_numa_move_thread(struct gmem_numa_thread *thread, const void *hva);

#endif
