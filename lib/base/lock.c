/* SPDX-License-Identifier: MIT */
#include "base/lock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void gmem_condition_init(pthread_cond_t *condition)
{
	pthread_condattr_t attributes;

	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(condition, &attributes);
	pthread_condattr_destroy(&attributes);
}

#ifdef GMEM_LOCK_CHECKS

static const char *const names[GMEM_RANKS] = {
	[GMEM_RANK_POPULATE] = "populate",
	[GMEM_RANK_HANDLER] = "handler",
	[GMEM_RANK_HOOKS] = "hooks",
	[GMEM_RANK_CHANGE] = "change",
	[GMEM_RANK_DIRTY] = "dirty",
	[GMEM_RANK_EXPORT] = "export",
	[GMEM_RANK_VM] = "vm",
	[GMEM_RANK_PROBE] = "probe",
	[GMEM_RANK_FILE] = "file",
	[GMEM_RANK_IDENTITY] = "identity",
	[GMEM_RANK_MAPS] = "maps",
	[GMEM_RANK_VIEWS] = "views",
	[GMEM_RANK_CREW] = "crew",
};

/* For each rank, the lock that this thread holds, or NULL */
static __thread const struct gmem_lock *held[GMEM_RANKS];

static void __attribute__((noreturn)) fail(const char *what, enum gmem_lock_rank rank,
					   const char *because, enum gmem_lock_rank other)
{
	fprintf(stderr, "libgmem: lock \"%s\" %s %s%s%s\n", names[rank], what, because,
		other ? " " : "", other ? names[other] : "");
	abort();
}

void gmem_locks_set_aside(struct gmem_locks_aside *aside)
{
	memcpy(aside->held, held, sizeof(held));
	memset(held, 0, sizeof(held));
}

void gmem_locks_restore(const struct gmem_locks_aside *aside)
{
	memcpy(held, aside->held, sizeof(held));
}

void gmem_lock_init(struct gmem_lock *lock, enum gmem_lock_rank rank)
{
	pthread_mutex_init(&lock->mutex, NULL);
	lock->rank = rank;
}

void gmem_lock_destroy(struct gmem_lock *lock)
{
	if (held[lock->rank] == lock)
		fail("is destroyed", lock->rank, "while it is held", 0);
	pthread_mutex_destroy(&lock->mutex);
}

void gmem_lock_take(struct gmem_lock *lock)
{
	for (unsigned int rank = lock->rank; rank < GMEM_RANKS; rank++)
		if (held[rank])
			fail("is taken", lock->rank, "after", (enum gmem_lock_rank)rank);

	pthread_mutex_lock(&lock->mutex);
	held[lock->rank] = lock;
}

void gmem_lock_drop(struct gmem_lock *lock)
{
	if (held[lock->rank] != lock)
		fail("is dropped", lock->rank, "by a thread that does not hold it", 0);

	held[lock->rank] = NULL;
	pthread_mutex_unlock(&lock->mutex);
}

void gmem_lock_check_wait(const struct gmem_lock *lock)
{
	if (held[lock->rank] != lock)
		fail("is waited with", lock->rank, "by a thread that does not hold it", 0);
	for (unsigned int rank = lock->rank + 1; rank < GMEM_RANKS; rank++)
		if (held[rank])
			fail("is waited with", lock->rank, "while it is below",
			     (enum gmem_lock_rank)rank);
}

#endif
