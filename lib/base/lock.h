/* SPDX-License-Identifier: MIT */
/*
 * lock: mutexes with ranks.
 *
 * A thread takes locks in the order of their ranks, lowest first, and never two of
 * one rank. Built with -Dlock_checks=enabled (debug and sanitizer builds are), a lock
 * taken out of order, taken twice or given back by a thread that does not hold it
 * ends the program with a message. Otherwise a lock is a mutex and nothing else.
 */
#ifndef GMEM_LOCK_H
#define GMEM_LOCK_H

#include <pthread.h>
#include <stdbool.h>
#include <time.h>

/* Lowest first. What each lock guards stands where it is declared. */
enum gmem_lock_rank {
	GMEM_RANK_POPULATE = 1,	/* struct gmem_populate */
	GMEM_RANK_HANDLER,	/* nofault/fault_handler.c */
	GMEM_RANK_HOOKS,	/* struct gmem_vm */
	GMEM_RANK_CHANGE,	/* struct gmem_vm */
	GMEM_RANK_EXPORT,	/* struct gmem_export */
	GMEM_RANK_VM,		/* struct gmem_vm */
	GMEM_RANK_FILE,		/* struct gmem_file */
	GMEM_RANK_MAPS,		/* struct gmem_file_maps */
	GMEM_RANK_VIEWS,	/* struct gmem_vm */
	GMEM_RANKS
};

struct gmem_lock {
	pthread_mutex_t mutex;
#ifdef GMEM_LOCK_CHECKS
	enum gmem_lock_rank rank;
#endif
};

#ifdef GMEM_LOCK_CHECKS

#define GMEM_LOCK_INIT(rank) { PTHREAD_MUTEX_INITIALIZER, rank }
void gmem_lock_init(struct gmem_lock *lock, enum gmem_lock_rank rank);
void gmem_lock_destroy(struct gmem_lock *lock);
void gmem_lock_take(struct gmem_lock *lock);
void gmem_lock_drop(struct gmem_lock *lock);

#else

#define GMEM_LOCK_INIT(rank) { PTHREAD_MUTEX_INITIALIZER }

static inline void gmem_lock_init(struct gmem_lock *lock, enum gmem_lock_rank rank)
{
	(void)rank;
	pthread_mutex_init(&lock->mutex, NULL);
}

static inline void gmem_lock_destroy(struct gmem_lock *lock)
{
	pthread_mutex_destroy(&lock->mutex);
}

static inline void gmem_lock_take(struct gmem_lock *lock)
{
	pthread_mutex_lock(&lock->mutex);
}

static inline void gmem_lock_drop(struct gmem_lock *lock)
{
	pthread_mutex_unlock(&lock->mutex);
}

#endif

/*
 * Conditions that are waited for with a lock, which must be the only one above
 * it that the thread holds. Deadlines are of CLOCK_MONOTONIC.
 */
void gmem_condition_init(pthread_cond_t *condition);
static inline void gmem_condition_wait(pthread_cond_t *condition, struct gmem_lock *lock)
{
	pthread_cond_wait(condition, &lock->mutex);
}

static inline void gmem_condition_wait_until(pthread_cond_t *condition, struct gmem_lock *lock,
					     const struct timespec *deadline)
{
	pthread_cond_timedwait(condition, &lock->mutex, deadline);
}

#endif
