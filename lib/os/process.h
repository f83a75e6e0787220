/* SPDX-License-Identifier: MIT */
/*
 * process: tells a process from the children of fork() that have a copy of its memory.
 *
 * A child has what its parent made, but none of the threads that worked with it. Whoever
 * would wait for such a thread remembers the number of the process that made it, and
 * compares. Pids do not tell: parent and child may both be process 1, each of a PID
 * namespace of its own. A child that shares its parent's memory, as of vfork(), counts as
 * the parent.
 */
#ifndef GMEM_PROCESS_H
#define GMEM_PROCESS_H

#include <stdint.h>
#include <sys/types.h>

struct gmem_process {
	uint32_t *number;	/* on a page that fork() wipes; NULL: there is none, the pid tells */
	uint32_t last;		/* of the numbers, in the parents and here */
	pid_t pid;
};

/* Cannot fail: without memory, or where a sandbox refuses the page, the pid has to do. */
void gmem_process_begin(struct gmem_process *process);
/* Frees the page. Does nothing if that was done, or for a struct of zeros. */
void gmem_process_end(struct gmem_process *process);
/*
 * Returns the number of the calling process, which is another one in each child of a process
 * that asked. One thread at a time.
 */
uint32_t gmem_process_number(struct gmem_process *process);

#endif
