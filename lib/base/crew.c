/* SPDX-License-Identifier: MIT */
#include "base/crew.h"

#include <stdlib.h>

#include "os/thread.h"

static bool has_members_here(struct gmem_crew *crew)
{
	return crew->made_by == gmem_process_number(&crew->process);
}

/* ---- members ---- */

/* Called with the lock held */
static void do_run(struct gmem_crew *crew)
{
	void (*work)(void *data) = crew->work;
	void *data = crew->data;

	gmem_lock_drop(&crew->lock);
	work(data);
	gmem_lock_take(&crew->lock);
	if (--crew->busy == 0)
		pthread_cond_signal(&crew->left);
}

static void be_member(struct gmem_crew *crew)
{
	/* A run that goes on has this one, too: threads take their time to start. */
	uint64_t seen = crew->is_running ? crew->calls - 1 : crew->calls;

	/* The leader works alone, and waits for nobody who comes now. */
	if (crew->is_ending)
		return;
	crew->busy += crew->is_running;
	crew->members++;
	while (!crew->is_ending) {
		if (crew->calls != seen) {
			seen = crew->calls;
			do_run(crew);
		} else {
			gmem_condition_wait(&crew->called, &crew->lock);
		}
	}
	if (--crew->members == 0)
		pthread_cond_signal(&crew->left);
}

void gmem_crew_join(struct gmem_crew *crew)
{
	if (!has_members_here(crew))
		return;
	gmem_lock_take(&crew->lock);
	be_member(crew);
	gmem_lock_drop(&crew->lock);
}

static void *join(void *data)
{
	gmem_crew_join(data);
	return NULL;
}

/* ---- the leader ---- */

unsigned int gmem_crew_begin(struct gmem_crew *crew, unsigned int threads, size_t stack)
{
	*crew = (struct gmem_crew){ .threads = calloc(threads, sizeof(*crew->threads)) };
	gmem_lock_init(&crew->lock, GMEM_RANK_CREW);
	gmem_condition_init(&crew->called);
	gmem_condition_init(&crew->left);
	gmem_process_begin(&crew->process);
	crew->made_by = gmem_process_number(&crew->process);

	while (crew->threads && crew->count < threads &&
	       gmem_thread_start(join, crew, stack, &crew->threads[crew->count]) == 0)
		crew->count++;
	return crew->count;
}

void gmem_crew_run(struct gmem_crew *crew, void (*work)(void *data), void *data)
{
	if (!has_members_here(crew)) {
		work(data);
		return;
	}

	gmem_lock_take(&crew->lock);
	crew->work = work;
	crew->data = data;
	crew->calls++;
	crew->is_running = true;
	crew->busy = crew->members;
	pthread_cond_broadcast(&crew->called);
	gmem_lock_drop(&crew->lock);

	work(data);

	gmem_lock_take(&crew->lock);
	while (crew->busy)
		gmem_condition_wait(&crew->left, &crew->lock);
	crew->is_running = false;
	gmem_lock_drop(&crew->lock);
}

unsigned int gmem_crew_number(const struct gmem_crew *crew)
{
	unsigned int number = crew->count;

	while (number && !pthread_equal(pthread_self(), crew->threads[number - 1]))
		number--;
	return number;
}

void gmem_crew_dismiss(struct gmem_crew *crew)
{
	/* In a child the lock may be taken for ever, and the members wait for ever. */
	if (!crew->made_by || !has_members_here(crew))
		return;

	gmem_lock_take(&crew->lock);
	crew->is_ending = true;
	pthread_cond_broadcast(&crew->called);
	while (crew->members)
		gmem_condition_wait(&crew->left, &crew->lock);
	gmem_lock_drop(&crew->lock);
	while (crew->count)
		pthread_join(crew->threads[--crew->count], NULL);
}

static void destroy(struct gmem_crew *crew)
{
	pthread_cond_destroy(&crew->called);
	pthread_cond_destroy(&crew->left);
	gmem_lock_destroy(&crew->lock);
}

void gmem_crew_end(struct gmem_crew *crew)
{
	if (!crew->made_by)
		return;

	gmem_crew_dismiss(crew);
	if (has_members_here(crew))
		destroy(crew);
	free(crew->threads);
	gmem_process_end(&crew->process);
	*crew = (struct gmem_crew){ 0 };
}
