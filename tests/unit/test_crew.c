/* SPDX-License-Identifier: MIT */
/* crew: pieces of work that several threads take */
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/crew.h"
#include "os/thread.h"
#include "unit.h"

#define PIECES 1000
#define RUNS 200

struct job {
	atomic_uint next;
	atomic_uint workers;
	unsigned char done[PIECES];	/* how often */
};

static void take_pieces(void *data)
{
	struct job *job = data;
	unsigned int i;

	atomic_fetch_add(&job->workers, 1);
	while ((i = atomic_fetch_add(&job->next, 1)) < PIECES)
		job->done[i]++;
}

static void check_run(struct gmem_crew *crew, unsigned int at_most)
{
	struct job job = { 0 };

	gmem_crew_run(crew, take_pieces, &job);
	assert_in_range(job.workers, 1, at_most);
	for (unsigned int i = 0; i < PIECES; i++)
		assert_int_equal(job.done[i], 1);
}

static void each_piece_is_done_once_in_each_run(void **state)
{
	static const unsigned int threads[] = { 0, 1, 3, 16 };
	struct gmem_crew crew;

	(void)state;
	fake_boot("6.18");
	for (size_t i = 0; i < ARRAY_SIZE(threads); i++) {
		assert_int_equal(gmem_crew_begin(&crew, threads[i], GMEM_THREAD_PLAIN), threads[i]);
		for (int run = 0; run < RUNS; run++)
			check_run(&crew, threads[i] + 1);
		gmem_crew_end(&crew);
		gmem_crew_end(&crew);
	}
	assert_int_equal(fake_halt(), 0);
}

static void crew_ends_without_a_run(void **state)
{
	struct gmem_crew crew = { 0 };

	(void)state;
	fake_boot("6.18");
	gmem_crew_end(&crew);
	for (int i = 0; i < RUNS; i++) {
		gmem_crew_begin(&crew, 3, GMEM_THREAD_PLAIN);
		gmem_crew_end(&crew);
	}
	assert_int_equal(fake_halt(), 0);
}

static void wait_for_others(void *data)
{
	struct job *job = data;

	atomic_fetch_add(&job->workers, 1);
	while (atomic_load(&job->workers) < 3)
		sched_yield();
}

static void *join(void *data)
{
	gmem_crew_join(data);
	return NULL;
}

static void await_members(struct gmem_crew *crew, unsigned int count)
{
	unsigned int now;

	do {
		gmem_lock_take(&crew->lock);
		now = crew->members;
		gmem_lock_drop(&crew->lock);
	} while (now < count);
}

static void threads_of_the_user_join_until_the_end(void **state)
{
	struct gmem_crew crew;
	struct job job = { 0 };
	pthread_t threads[2];

	(void)state;
	fake_boot("6.18");
	gmem_crew_begin(&crew, 0, GMEM_THREAD_PLAIN);
	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, join, &crew), 0);
	await_members(&crew, 2);
	/* Ends only if all three are at work at the same time */
	gmem_crew_run(&crew, wait_for_others, &job);
	assert_int_equal(job.workers, 3);
	gmem_crew_end(&crew);
	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_join(threads[i], NULL), 0);
	assert_int_equal(fake_halt(), 0);
}

static void lend_for_this_run(void *data)
{
	pthread_t thread;

	assert_int_equal(pthread_create(&thread, NULL, join, data), 0);
	assert_int_equal(pthread_join(thread, NULL), 0);
}

static void who_joins_after_the_dismissal_leaves_at_once(void **state)
{
	struct gmem_crew crew;
	struct job job = { 0 };

	(void)state;
	fake_boot("6.18");
	gmem_crew_begin(&crew, 2, GMEM_THREAD_PLAIN);
	gmem_crew_run(&crew, take_pieces, &job);
	gmem_crew_dismiss(&crew);
	gmem_crew_join(&crew);
	/* also while the leader is at work, which then waits for nobody */
	gmem_crew_run(&crew, lend_for_this_run, &crew);
	check_run(&crew, 1);
	gmem_crew_end(&crew);
	assert_int_equal(fake_halt(), 0);
}

static void child_of_fork_works_alone(void **state)
{
	struct gmem_crew crew;
	int status;
	pid_t child;

	(void)state;
	fake_boot("6.18");
	gmem_crew_begin(&crew, 3, GMEM_THREAD_PLAIN);
	child = fork();
	if (child == 0) {
		alarm(20);
		check_run(&crew, 1);
		gmem_crew_join(&crew);
		gmem_crew_end(&crew);
		_exit(0);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
	check_run(&crew, 4);
	gmem_crew_end(&crew);
	assert_int_equal(fake_halt(), 0);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(each_piece_is_done_once_in_each_run),
	cmocka_unit_test(crew_ends_without_a_run),
	cmocka_unit_test(threads_of_the_user_join_until_the_end),
	cmocka_unit_test(who_joins_after_the_dismissal_leaves_at_once),
	cmocka_unit_test(child_of_fork_works_alone),
};

UNIT_MAIN(tests)
