/* SPDX-License-Identifier: MIT */
/*
 * crew: threads that help the calling one, for as long as some job lasts.
 *
 * Members are threads that the crew started, and threads of the user's that joined it. They
 * sleep until the one thread that leads the crew has work. What the work is made of they
 * share out among themselves: work() takes pieces, for example by an atomic counter, until
 * none is left.
 *
 * A child of fork() has the crew and none of its members: its leader works alone.
 */
#ifndef GMEM_CREW_H
#define GMEM_CREW_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/lock.h"
#include "os/process.h"

struct gmem_crew {
	struct gmem_lock lock;		/* rank CREW; guards the part below */
	pthread_cond_t called, left;

	void (*work)(void *data);
	void *data;
	uint64_t calls;			/* runs that have begun */
	bool is_running;
	unsigned int members;
	unsigned int busy;		/* members that have not done this run yet */
	bool is_ending;

	unsigned int count;		/* of threads, which the crew started */
	pthread_t *threads;
	struct gmem_process process;
	uint32_t made_by;		/* the process that has the members */
};

/*
 * Starts up to @threads threads, whose functions may use @stack bytes (os/thread.h). Returns
 * how many could be started: a crew without members works, too.
 */
unsigned int gmem_crew_begin(struct gmem_crew *crew, unsigned int threads, size_t stack);
/* Makes the calling thread a member, until another one dismisses the members. */
void gmem_crew_join(struct gmem_crew *crew);
/*
 * Runs work(@data) once in each member, also those that join meanwhile, and in the calling
 * thread, all at the same time. Returns when all of them have returned. One thread at a time.
 */
void gmem_crew_run(struct gmem_crew *crew, void (*work)(void *data), void *data);
/* Which of the threads that the crew started is this? From 1 on; 0: another one */
unsigned int gmem_crew_number(const struct gmem_crew *crew);
/* Waits until all members have left. Who joins later leaves at once, and the leader works alone. */
void gmem_crew_dismiss(struct gmem_crew *crew);
/* Dismisses the members and frees the rest. Both do nothing for a struct of zeros. */
void gmem_crew_end(struct gmem_crew *crew);

#endif
