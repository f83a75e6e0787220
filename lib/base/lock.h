/* SPDX-License-Identifier: MIT */
/*
 * lock: mutexes with ranks.
 *
 * A thread takes locks in the order of their ranks, lowest first, and never two of one
 * rank. In debug and sanitizer builds (-Dlock_checks=enabled) the program aborts with a
 * message if a thread takes a lock out of order or twice, or drops a lock that it does
 * not hold. In other builds a lock is a plain mutex.
 *
 * While a thread runs a callback of the user's it may use other VMs and files, whose locks
 * have the same ranks: what it holds is set aside meanwhile.
 *
 * Not supported: recursive locks, try-locks and reader-writer locks.
 */
#ifndef GMEM_LOCK_H
#define GMEM_LOCK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

/* Lowest first. The declaration of a lock, named here, says what the lock guards. */
enum gmem_lock_rank {
	GMEM_RANK_POPULATE = 1,	/* struct gmem_populate */
	GMEM_RANK_HANDLER,	/* nofault/fault_handler.c */
	GMEM_RANK_HOOKS,	/* struct gmem_vm */
	GMEM_RANK_CHANGE,	/* struct gmem_vm */
	GMEM_RANK_DIRTY,	/* struct gmem_vm */
	GMEM_RANK_EXPORT,	/* struct gmem_export */
	GMEM_RANK_VM,		/* struct gmem_vm */
	GMEM_RANK_PROBE,	/* caps/probe_slot.c */
	GMEM_RANK_FILE,		/* struct gmem_file */
	GMEM_RANK_IDENTITY,	/* region/vm_identity.c */
	GMEM_RANK_MAPS,		/* region/file_map.c */
	GMEM_RANK_VIEWS,	/* struct gmem_vm */
	GMEM_RANK_CREW,		/* struct gmem_crew */
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

struct gmem_locks_aside {
	const struct gmem_lock *held[GMEM_RANKS];
};

void gmem_locks_set_aside(struct gmem_locks_aside *aside);
void gmem_locks_restore(const struct gmem_locks_aside *aside);

void gmem_lock_init(struct gmem_lock *lock, enum gmem_lock_rank rank);
void gmem_lock_destroy(struct gmem_lock *lock);
void gmem_lock_take(struct gmem_lock *lock);
void gmem_lock_drop(struct gmem_lock *lock);
void gmem_lock_check_wait(const struct gmem_lock *lock);

#else

struct gmem_locks_aside {
	char none;
};

static inline void gmem_locks_set_aside(struct gmem_locks_aside *aside)
{
	(void)aside;
}

static inline void gmem_locks_restore(const struct gmem_locks_aside *aside)
{
	(void)aside;
}

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

static inline void gmem_lock_check_wait(const struct gmem_lock *lock)
{
	(void)lock;
}

#endif

/*
 * Condition variables. A thread that waits with @lock may hold locks of lower ranks,
 * but none above: the wait takes @lock again when it ends. Deadlines are times of
 * CLOCK_MONOTONIC.
 */
void gmem_condition_init(pthread_cond_t *condition);

static inline void gmem_condition_wait(pthread_cond_t *condition, struct gmem_lock *lock)
{
	gmem_lock_check_wait(lock);
	pthread_cond_wait(condition, &lock->mutex);
}

/* @deadline: nanoseconds; UINT64_MAX: none */
static inline void gmem_condition_wait_until(pthread_cond_t *condition, struct gmem_lock *lock,
					     uint64_t deadline)
{
	const struct timespec at = {
		.tv_sec = (time_t)(deadline / 1000000000),
		.tv_nsec = (long)(deadline % 1000000000),
	};

	gmem_lock_check_wait(lock);
	if (deadline == UINT64_MAX)
		pthread_cond_wait(condition, &lock->mutex);
	else
		pthread_cond_timedwait(condition, &lock->mutex, &at);
}

#endif
