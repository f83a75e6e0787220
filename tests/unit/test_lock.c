/* SPDX-License-Identifier: MIT */
/* lock: the wrong order ends the program, in builds that check it */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/lock.h"
#include "unit.h"

#ifdef GMEM_LOCK_CHECKS

static struct gmem_lock vm_lock = GMEM_LOCK_INIT(GMEM_RANK_VM);
static struct gmem_lock other_vm_lock = GMEM_LOCK_INIT(GMEM_RANK_VM);
static struct gmem_lock file_lock = GMEM_LOCK_INIT(GMEM_RANK_FILE);
static pthread_cond_t never = PTHREAD_COND_INITIALIZER;

/* Runs @mistake in a child, which must be aborted and say @message. */
static void assert_aborts(void (*mistake)(void), const char *message)
{
	char said[256] = "";
	ssize_t length;
	int ends[2], status;
	pid_t child;

	assert_ok(pipe(ends));
	child = fork();
	if (child == 0) {
		signal(SIGABRT, SIG_DFL);
		dup2(ends[1], STDERR_FILENO);
		mistake();
		_exit(0);
	}
	close(ends[1]);
	assert_int_equal(waitpid(child, &status, 0), child);
	length = read(ends[0], said, sizeof(said) - 1);
	close(ends[0]);
	assert_true(length >= 0);
	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), SIGABRT);
	assert_non_null(strstr(said, message));
}

/* ---- right ---- */

static void locks_are_taken_by_rank_and_dropped_in_any_order(void **state)
{
	struct gmem_lock locks[GMEM_RANKS];

	(void)state;
	for (int rank = 1; rank < GMEM_RANKS; rank++) {
		gmem_lock_init(&locks[rank], (enum gmem_lock_rank)rank);
		gmem_lock_take(&locks[rank]);
	}
	for (int rank = 1; rank < GMEM_RANKS; rank += 2)
		gmem_lock_drop(&locks[rank]);
	for (int rank = 2; rank < GMEM_RANKS; rank += 2)
		gmem_lock_drop(&locks[rank]);
	for (int rank = GMEM_RANKS - 1; rank > 0; rank--) {
		gmem_lock_take(&locks[rank]);
		gmem_lock_drop(&locks[rank]);
		gmem_lock_destroy(&locks[rank]);
	}
}

static void *take_vm_lock(void *data)
{
	gmem_lock_take(&vm_lock);
	gmem_lock_drop(&vm_lock);
	return data;
}

static void threads_are_judged_by_the_locks_of_their_own(void **state)
{
	pthread_t thread;

	(void)state;
	gmem_lock_take(&file_lock);
	assert_int_equal(pthread_create(&thread, NULL, take_vm_lock, NULL), 0);
	pthread_join(thread, NULL);
	gmem_lock_drop(&file_lock);
}

/* ---- wrong ---- */

static void take_lower_rank(void)
{
	gmem_lock_take(&file_lock);
	gmem_lock_take(&vm_lock);
}

static void take_same_rank(void)
{
	gmem_lock_take(&vm_lock);
	gmem_lock_take(&other_vm_lock);
}

static void take_twice(void)
{
	gmem_lock_take(&vm_lock);
	gmem_lock_take(&vm_lock);
}

static void taking_out_of_order_ends_the_program(void **state)
{
	(void)state;
	assert_aborts(take_lower_rank, "lock \"vm\" is taken after file");
	assert_aborts(take_same_rank, "lock \"vm\" is taken after vm");
	assert_aborts(take_twice, "lock \"vm\" is taken after vm");
}

static void drop_unheld(void)
{
	gmem_lock_drop(&file_lock);
}

static void drop_another(void)
{
	gmem_lock_take(&vm_lock);
	gmem_lock_drop(&other_vm_lock);
}

static void dropping_what_is_not_held_ends_the_program(void **state)
{
	(void)state;
	assert_aborts(drop_unheld, "lock \"file\" is dropped by a thread that does not hold it");
	assert_aborts(drop_another, "lock \"vm\" is dropped by a thread that does not hold it");
}

static void wait_unheld(void)
{
	gmem_condition_wait(&never, &vm_lock);
}

static void wait_below_another(void)
{
	gmem_lock_take(&vm_lock);
	gmem_lock_take(&file_lock);
	gmem_condition_wait(&never, &vm_lock);
}

static void waiting_with_the_wrong_lock_ends_the_program(void **state)
{
	(void)state;
	assert_aborts(wait_unheld, "lock \"vm\" is waited with by a thread that does not hold it");
	assert_aborts(wait_below_another, "lock \"vm\" is waited with while it is below file");
}

static void destroy_held(void)
{
	gmem_lock_take(&file_lock);
	gmem_lock_destroy(&file_lock);
}

static void destroying_a_held_lock_ends_the_program(void **state)
{
	(void)state;
	assert_aborts(destroy_held, "lock \"file\" is destroyed while it is held");
}

/* ---- conditions ---- */

struct meeting {
	pthread_cond_t condition;
	bool is_over;
};

static void *end_meeting(void *data)
{
	struct meeting *meeting = data;

	gmem_lock_take(&vm_lock);
	meeting->is_over = true;
	pthread_cond_broadcast(&meeting->condition);
	gmem_lock_drop(&vm_lock);
	return NULL;
}

static void waiting_lets_others_have_the_lock(void **state)
{
	struct meeting meeting = { .is_over = false };
	pthread_t thread;

	(void)state;
	gmem_condition_init(&meeting.condition);
	gmem_lock_take(&vm_lock);
	assert_int_equal(pthread_create(&thread, NULL, end_meeting, &meeting), 0);
	while (!meeting.is_over)
		gmem_condition_wait(&meeting.condition, &vm_lock);
	/* and it is held again */
	gmem_lock_drop(&vm_lock);
	pthread_join(thread, NULL);
	pthread_cond_destroy(&meeting.condition);
}

static uint64_t monotonic_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* If the condition used CLOCK_REALTIME, the deadline would be long past and no wait would last. */
static void waiting_ends_at_a_moment_of_the_monotonic_clock(void **state)
{
	uint64_t deadline = monotonic_now() + 20000000;
	pthread_cond_t condition;
	unsigned waits = 0;

	(void)state;
	gmem_condition_init(&condition);
	gmem_lock_take(&vm_lock);
	for (; monotonic_now() < deadline; waits++)
		gmem_condition_wait_until(&condition, &vm_lock, deadline);
	gmem_lock_drop(&vm_lock);
	assert_in_range(waits, 1, 100);
	pthread_cond_destroy(&condition);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(locks_are_taken_by_rank_and_dropped_in_any_order),
	cmocka_unit_test(threads_are_judged_by_the_locks_of_their_own),
	cmocka_unit_test(taking_out_of_order_ends_the_program),
	cmocka_unit_test(dropping_what_is_not_held_ends_the_program),
	cmocka_unit_test(waiting_with_the_wrong_lock_ends_the_program),
	cmocka_unit_test(destroying_a_held_lock_ends_the_program),
	cmocka_unit_test(waiting_lets_others_have_the_lock),
	cmocka_unit_test(waiting_ends_at_a_moment_of_the_monotonic_clock),
};

UNIT_MAIN(tests)

#else

int main(void)
{
	puts("1..0 # SKIP locks are not checked in this build, see -Dlock_checks");
	return 0;
}

#endif
