/* SPDX-License-Identifier: MIT */
/* claim and lease: who waits for whom, what a callback may call, and leases on memory at two addresses */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/lock.h"
#include "os/kvm_compat.h"
#include "os/sys.h"
#include "region/vm_core.h"
#include "state/claim.h"
#include "unit.h"

/* ---- the queue ---- */

#define LOG_SIZE 64

struct queue {
	struct gmem_vm vm;
	char log[LOG_SIZE];	/* with vm.lock: who got a turn, and who was done */
};

static void queue_begin(struct queue *queue)
{
	memset(queue, 0, sizeof(*queue));
	gmem_vm_begin(&queue->vm);
}

static void queue_end(struct queue *queue)
{
	assert_null(queue->vm.claims[GMEM_CLAIM_SHARED].root);
	assert_null(queue->vm.claims[GMEM_CLAIM_EXCLUSIVE].root);
	gmem_vm_end(&queue->vm);
}

static struct gmem_claim claim(uint64_t gpa, uint64_t size, enum gmem_claim_mode mode)
{
	return (struct gmem_claim){ .gpa = gpa, .size = size, .mode = mode, .allows_leases = true };
}

static int take(struct queue *queue, struct gmem_claim *claims, size_t count)
{
	int err;

	gmem_lock_take(&queue->vm.lock);
	err = gmem_claims_take(&queue->vm, claims, count, 0);
	gmem_lock_drop(&queue->vm.lock);
	return err;
}

static void drop(struct queue *queue, struct gmem_claim *claims, size_t count)
{
	gmem_lock_take(&queue->vm.lock);
	gmem_claims_drop(&queue->vm, claims, count);
	gmem_lock_drop(&queue->vm.lock);
}

/* A thread that takes claims, and drops them when it is told to */
struct player {
	struct queue *queue;
	struct gmem_claim claims[2];
	size_t count;
	char name;
	int err;
	atomic_bool is_over;
	pthread_t thread;
};

static void note(struct player *player, char name)
{
	size_t used = strlen(player->queue->log);

	assert_true(used < LOG_SIZE - 1);
	player->queue->log[used] = name;
}

static void *play(void *data)
{
	struct player *player = data;
	struct gmem_vm *vm = &player->queue->vm;

	gmem_lock_take(&vm->lock);
	player->err = gmem_claims_take(vm, player->claims, player->count, 0);
	note(player, player->name);
	gmem_lock_drop(&vm->lock);
	while (!player->is_over)
		gmem_sys_pause(50);
	if (!player->err)
		drop(player->queue, player->claims, player->count);
	return NULL;
}

static uint64_t queued(struct queue *queue)
{
	uint64_t count;

	gmem_lock_take(&queue->vm.lock);
	count = queue->vm.claim_order;
	gmem_lock_drop(&queue->vm.lock);
	return count;
}

/* Returns when the player is in the queue: whoever starts later comes later. */
static void start(struct player *player, struct queue *queue, char name)
{
	uint64_t before = queued(queue);

	player->queue = queue;
	player->name = name;
	player->is_over = false;
	assert_int_equal(pthread_create(&player->thread, NULL, play, player), 0);
	while (queued(queue) == before)
		gmem_sys_pause(50);
}

static void start_one(struct player *player, struct queue *queue, char name,
		      struct gmem_claim claim)
{
	player->claims[0] = claim;
	player->count = 1;
	start(player, queue, name);
}

static void end(struct player *player)
{
	player->is_over = true;
	pthread_join(player->thread, NULL);
}

static void await_turns(struct queue *queue, size_t count)
{
	bool is_there;

	do {
		gmem_sys_pause(50);
		gmem_lock_take(&queue->vm.lock);
		is_there = strlen(queue->log) >= count;
		gmem_lock_drop(&queue->vm.lock);
	} while (!is_there);
}

/* Waits until these have got a turn, in this order. */
static void await_log(struct queue *queue, const char *expected)
{
	await_turns(queue, strlen(expected));
	assert_string_equal(queue->log, expected);
}

/* Nobody gets a turn who should not, however long one waits. */
static void assert_log_stays(struct queue *queue, const char *expected)
{
	gmem_sys_pause(3000);
	await_log(queue, expected);
}

static void who_comes_later_never_overtakes(void **state)
{
	struct player a, b, c, d, e;
	struct queue queue;

	(void)state;
	queue_begin(&queue);
	start_one(&a, &queue, 'a', claim(0, 100, GMEM_CLAIM_SHARED));
	await_log(&queue, "a");
	start_one(&b, &queue, 'b', claim(50, 100, GMEM_CLAIM_EXCLUSIVE));
	start_one(&c, &queue, 'c', claim(90, 10, GMEM_CLAIM_SHARED));
	start_one(&d, &queue, 'd', claim(99, 60, GMEM_CLAIM_SHARED));
	assert_log_stays(&queue, "a");

	/* Who overlaps none of them does not wait. */
	start_one(&e, &queue, 'e', claim(200, 1, GMEM_CLAIM_EXCLUSIVE));
	await_log(&queue, "ae");
	end(&a);
	await_log(&queue, "aeb");
	assert_log_stays(&queue, "aeb");
	end(&b);
	await_turns(&queue, 5);	/* the last two at the same time */
	end(&d);
	end(&c);
	end(&e);
	queue_end(&queue);
}

static void shared_claims_get_along_and_exclusive_ones_do_not(void **state)
{
	struct player a, b, c, d;
	struct queue queue;

	(void)state;
	queue_begin(&queue);
	start_one(&a, &queue, 'a', claim(0, 10, GMEM_CLAIM_SHARED));
	await_log(&queue, "a");
	start_one(&b, &queue, 'b', claim(0, 10, GMEM_CLAIM_SHARED));
	await_log(&queue, "ab");
	start_one(&c, &queue, 'c', claim(9, 1, GMEM_CLAIM_EXCLUSIVE));
	start_one(&d, &queue, 'd', claim(9, 1, GMEM_CLAIM_EXCLUSIVE));
	end(&b);
	assert_log_stays(&queue, "ab");
	end(&a);
	await_log(&queue, "abc");
	assert_log_stays(&queue, "abc");
	end(&c);
	await_log(&queue, "abcd");
	end(&d);
	queue_end(&queue);
}

/* All of a call are in the queue from the start, so two changes cannot wait for each other. */
static void claims_of_one_call_come_at_once(void **state)
{
	struct player a, b, c;
	struct queue queue;

	(void)state;
	queue_begin(&queue);
	start_one(&a, &queue, 'a', claim(100, 10, GMEM_CLAIM_EXCLUSIVE));
	await_log(&queue, "a");
	b.claims[0] = claim(0, 10, GMEM_CLAIM_EXCLUSIVE);
	b.claims[1] = claim(100, 10, GMEM_CLAIM_EXCLUSIVE);
	b.count = 2;
	start(&b, &queue, 'b');
	c.claims[0] = claim(100, 10, GMEM_CLAIM_EXCLUSIVE);
	c.claims[1] = claim(0, 10, GMEM_CLAIM_EXCLUSIVE);
	c.count = 2;
	start(&c, &queue, 'c');
	assert_log_stays(&queue, "a");
	end(&a);
	await_log(&queue, "ab");
	end(&b);
	await_log(&queue, "abc");
	end(&c);
	queue_end(&queue);
}

static void claims_of_one_call_do_not_wait_for_each_other(void **state)
{
	struct gmem_claim claims[] = {
		claim(0, 10, GMEM_CLAIM_EXCLUSIVE), claim(5, 10, GMEM_CLAIM_EXCLUSIVE),
		claim(0, UINT64_MAX, GMEM_CLAIM_SHARED),
	};
	struct queue queue;

	(void)state;
	queue_begin(&queue);
	assert_ok(take(&queue, claims, ARRAY_SIZE(claims)));
	drop(&queue, claims, ARRAY_SIZE(claims));
	queue_end(&queue);
}

static void a_change_of_many_steps_is_one_call(void **state)
{
	enum { COUNT = 30000 };
	struct gmem_claim *claims = calloc(COUNT, sizeof(*claims));
	struct queue queue;
	struct player a;
	size_t i;

	(void)state;
	assert_non_null(claims);
	queue_begin(&queue);
	for (i = 0; i < COUNT; i++)
		claims[i] = claim(i * 4096, 4096, GMEM_CLAIM_EXCLUSIVE);
	assert_ok(take(&queue, claims, COUNT));
	start_one(&a, &queue, 'a', claim(0, UINT64_MAX, GMEM_CLAIM_EXCLUSIVE));
	assert_log_stays(&queue, "");
	drop(&queue, claims, COUNT);
	await_log(&queue, "a");
	end(&a);
	queue_end(&queue);
	free(claims);
}

/* ---- who does not wait as long as others ---- */

static struct gmem_claim in_front(uint64_t gpa, uint64_t size)
{
	struct gmem_claim ahead = claim(gpa, size, GMEM_CLAIM_EXCLUSIVE);

	ahead.in_front = true;
	return ahead;
}

/* It leaves the queue as if it had never come. */
static void a_claim_waits_within_its_budget(void **state)
{
	struct gmem_claim short_one = claim(5, 10, GMEM_CLAIM_EXCLUSIVE);
	struct gmem_wait_budget budget = { .wait_ms = 20 };
	struct player a, b;
	struct queue queue;
	int err;

	(void)state;
	queue_begin(&queue);
	start_one(&a, &queue, 'a', claim(0, 10, GMEM_CLAIM_SHARED));
	await_log(&queue, "a");
	start_one(&b, &queue, 'b', claim(0, 20, GMEM_CLAIM_EXCLUSIVE));
	gmem_lock_take(&queue.vm.lock);
	err = gmem_claim_take(&queue.vm, &short_one, &budget);
	gmem_lock_drop(&queue.vm.lock);
	assert_int_equal(err, -EBUSY);
	assert_non_null(strstr(gmem_last_error(), "gpa 0x5, 0xa bytes: other work on gpa 0x0, 0x14 bytes, "
			       "was to be waited for 20 ms"));
	assert_true(budget.spent >= 20 * GMEM_NANOSECONDS_PER_MS);
	assert_ok(gmem_claim_check_not_owner(&queue.vm));

	/* The budget is spent: in the way is in the way. Elsewhere nothing is. */
	gmem_lock_take(&queue.vm.lock);
	assert_int_equal(gmem_claim_take(&queue.vm, &short_one, &budget), -EBUSY);
	short_one.gpa = 20;
	assert_ok(gmem_claim_take(&queue.vm, &short_one, &budget));
	gmem_claim_drop(&queue.vm, &short_one);
	gmem_lock_drop(&queue.vm.lock);
	end(&a);
	await_log(&queue, "ab");
	end(&b);
	queue_end(&queue);
}

struct short_wait {
	struct queue *queue;
	struct gmem_claim claim;
	uint32_t wait_ms;
	int err;
};

static void *take_shortly(void *data)
{
	struct short_wait *wait = data;
	struct gmem_wait_budget budget = { .wait_ms = wait->wait_ms };

	gmem_lock_take(&wait->queue->vm.lock);
	wait->err = gmem_claim_take(&wait->queue->vm, &wait->claim, &budget);
	gmem_lock_drop(&wait->queue->vm.lock);
	return NULL;
}

/* C waits for the one that gives up, and for nobody else. */
static void what_waits_behind_one_that_gives_up_goes_on(void **state)
{
	struct short_wait wait = { .claim = claim(0, 10, GMEM_CLAIM_EXCLUSIVE), .wait_ms = 50 };
	struct player a, c;
	struct queue queue;
	pthread_t thread;

	(void)state;
	queue_begin(&queue);
	wait.queue = &queue;
	start_one(&a, &queue, 'a', claim(0, 5, GMEM_CLAIM_EXCLUSIVE));
	await_log(&queue, "a");
	assert_int_equal(pthread_create(&thread, NULL, take_shortly, &wait), 0);
	while (queued(&queue) < 2)
		gmem_sys_pause(50);
	start_one(&c, &queue, 'c', claim(8, 5, GMEM_CLAIM_EXCLUSIVE));
	await_log(&queue, "ac");
	pthread_join(thread, NULL);
	assert_int_equal(wait.err, -EBUSY);
	end(&a);
	end(&c);
	queue_end(&queue);
}

static void a_layout_change_goes_in_front_of_those_who_wait(void **state)
{
	struct player a, b, c, front;
	struct queue queue;

	(void)state;
	queue_begin(&queue);
	start_one(&a, &queue, 'a', claim(0, 10, GMEM_CLAIM_EXCLUSIVE));
	await_log(&queue, "a");
	start_one(&b, &queue, 'b', claim(0, 10, GMEM_CLAIM_EXCLUSIVE));
	start_one(&c, &queue, 'c', claim(5, 10, GMEM_CLAIM_SHARED));
	start_one(&front, &queue, 'f', in_front(0, 20));
	assert_log_stays(&queue, "a");
	end(&a);
	await_log(&queue, "af");
	assert_log_stays(&queue, "af");
	end(&front);
	await_log(&queue, "afb");
	end(&b);
	await_log(&queue, "afbc");
	end(&c);
	queue_end(&queue);
}

/* One of its claims is not waited for any more, but one in front may have taken that place. */
static void a_call_with_several_claims_is_overtaken_as_a_whole(void **state)
{
	struct player a, several, front;
	struct queue queue;

	(void)state;
	queue_begin(&queue);
	start_one(&a, &queue, 'a', claim(100, 10, GMEM_CLAIM_EXCLUSIVE));
	await_log(&queue, "a");
	several.claims[0] = claim(0, 10, GMEM_CLAIM_EXCLUSIVE);
	several.claims[1] = claim(100, 10, GMEM_CLAIM_EXCLUSIVE);
	several.count = 2;
	start(&several, &queue, 's');
	start_one(&front, &queue, 'f', in_front(5, 10));
	await_log(&queue, "af");
	end(&a);
	assert_log_stays(&queue, "af");
	end(&front);
	await_log(&queue, "afs");
	end(&several);
	queue_end(&queue);
}

struct work_wait {
	struct queue *queue;
	pthread_t thread;
	atomic_bool is_over;
};

static void *wait_for_work(void *data)
{
	struct work_wait *wait = data;
	struct gmem_vm *vm = &wait->queue->vm;

	gmem_lock_take(&vm->lock);
	gmem_claims_wait_for_work(vm, gmem_claim_latest_work(vm));
	gmem_lock_drop(&vm->lock);
	wait->is_over = true;
	return NULL;
}

static bool is_work_waited_for(struct queue *queue)
{
	bool is_waited_for;

	gmem_lock_take(&queue->vm.lock);
	is_waited_for = queue->vm.work_waits != NULL;
	gmem_lock_drop(&queue->vm.lock);
	return is_waited_for;
}

static void the_end_of_work_comes_before_that_of_the_queue(void **state)
{
	struct work_wait wait = { .is_over = false };
	struct player a, b, c;
	struct queue queue;

	(void)state;
	queue_begin(&queue);
	wait.queue = &queue;
	wait_for_work(&wait);
	wait.is_over = false;
	start_one(&a, &queue, 'a', claim(0, 10, GMEM_CLAIM_EXCLUSIVE));
	await_log(&queue, "a");
	start_one(&b, &queue, 'b', claim(50, 10, GMEM_CLAIM_SHARED));
	await_log(&queue, "ab");
	start_one(&c, &queue, 'c', claim(0, 10, GMEM_CLAIM_EXCLUSIVE));
	assert_int_equal(pthread_create(&wait.thread, NULL, wait_for_work, &wait), 0);
	while (!is_work_waited_for(&queue))
		gmem_sys_pause(50);
	end(&a);
	await_log(&queue, "abc");
	assert_false(wait.is_over);
	end(&b);
	pthread_join(wait.thread, NULL);
	end(&c);
	queue_end(&queue);
}

/* ---- a thread that has a claim and wants another: only a callback does that ---- */

static void waiting_for_oneself_is_refused(void **state)
{
	struct gmem_claim first = claim(0, 10, GMEM_CLAIM_EXCLUSIVE);
	struct gmem_claim again = claim(5, 10, GMEM_CLAIM_SHARED);
	struct gmem_claim elsewhere = claim(10, 10, GMEM_CLAIM_EXCLUSIVE);
	struct queue queue;

	(void)state;
	queue_begin(&queue);
	assert_ok(gmem_claim_check_not_owner(&queue.vm));
	assert_ok(take(&queue, &first, 1));
	assert_int_equal(gmem_claim_check_not_owner(&queue.vm), -EDEADLK);
	assert_int_equal(take(&queue, &again, 1), -EDEADLK);
	assert_non_null(strstr(gmem_last_error(), "wait for its own work on 0x0, 0xa bytes"));
	assert_ok(take(&queue, &elsewhere, 1));
	drop(&queue, &elsewhere, 1);
	drop(&queue, &first, 1);

	first.mode = GMEM_CLAIM_SHARED;
	assert_ok(take(&queue, &first, 1));
	assert_ok(take(&queue, &again, 1));
	drop(&queue, &again, 1);
	drop(&queue, &first, 1);
	assert_ok(gmem_claim_check_not_owner(&queue.vm));
	queue_end(&queue);
}

/* Who came in between waits for the thread's claim, and would be in front of the second one. */
static void waiting_for_oneself_through_others_is_refused(void **state)
{
	struct gmem_claim first = claim(0, 10, GMEM_CLAIM_SHARED);
	struct gmem_claim again = claim(25, 10, GMEM_CLAIM_SHARED);
	struct player a, b;
	struct queue queue;

	(void)state;
	queue_begin(&queue);
	assert_ok(take(&queue, &first, 1));
	start_one(&a, &queue, 'a', claim(5, 10, GMEM_CLAIM_EXCLUSIVE));
	start_one(&b, &queue, 'b', claim(10, 20, GMEM_CLAIM_EXCLUSIVE));
	assert_int_equal(take(&queue, &again, 1), -EDEADLK);
	assert_log_stays(&queue, "");
	drop(&queue, &first, 1);
	await_log(&queue, "a");
	end(&a);
	await_log(&queue, "ab");
	end(&b);
	queue_end(&queue);
}

struct nested {
	struct queue *queue;
	struct gmem_claim outer, inner;
	int err;
};

static void *take_nested(void *data)
{
	struct nested *nested = data;

	assert_ok(take(nested->queue, &nested->outer, 1));
	nested->err = take(nested->queue, &nested->inner, 1);
	if (!nested->err)
		drop(nested->queue, &nested->inner, 1);
	drop(nested->queue, &nested->outer, 1);
	return NULL;
}

static void a_circle_of_two_threads_is_refused_to_the_second(void **state)
{
	struct gmem_claim outer = claim(0, 10, GMEM_CLAIM_EXCLUSIVE);
	struct gmem_claim inner = claim(50, 10, GMEM_CLAIM_EXCLUSIVE);
	struct nested other = { .outer = inner, .inner = outer };
	struct queue queue;
	pthread_t thread;

	(void)state;
	queue_begin(&queue);
	other.queue = &queue;
	assert_ok(take(&queue, &outer, 1));
	assert_int_equal(pthread_create(&thread, NULL, take_nested, &other), 0);
	while (queued(&queue) < 3)
		gmem_sys_pause(50);
	assert_int_equal(take(&queue, &inner, 1), -EDEADLK);
	drop(&queue, &outer, 1);
	pthread_join(thread, NULL);
	assert_ok(other.err);
	queue_end(&queue);
}

/* To wait for a thread that waits for nobody is no circle. */
static void a_callback_may_wait_for_others(void **state)
{
	struct gmem_claim outer = claim(0, 10, GMEM_CLAIM_EXCLUSIVE);
	struct nested other = { .outer = claim(100, 10, GMEM_CLAIM_EXCLUSIVE),
				.inner = claim(50, 10, GMEM_CLAIM_EXCLUSIVE) };
	struct queue queue;
	struct player a;
	pthread_t thread;

	(void)state;
	queue_begin(&queue);
	other.queue = &queue;
	assert_ok(take(&queue, &outer, 1));
	start_one(&a, &queue, 'a', claim(55, 1, GMEM_CLAIM_SHARED));
	await_log(&queue, "a");
	assert_int_equal(pthread_create(&thread, NULL, take_nested, &other), 0);
	while (queued(&queue) < 4)
		gmem_sys_pause(50);
	end(&a);
	pthread_join(thread, NULL);
	assert_ok(other.err);
	drop(&queue, &outer, 1);
	queue_end(&queue);
}

/* Overtaking what a callback waits for could close a circle that nobody looks for. */
static void nobody_goes_in_front_of_a_callback_that_waits(void **state)
{
	struct nested callback = { .outer = claim(0, 10, GMEM_CLAIM_EXCLUSIVE),
				   .inner = claim(50, 10, GMEM_CLAIM_EXCLUSIVE) };
	struct player a, front;
	struct queue queue;
	pthread_t thread;

	(void)state;
	queue_begin(&queue);
	callback.queue = &queue;
	start_one(&a, &queue, 'a', claim(55, 1, GMEM_CLAIM_EXCLUSIVE));
	await_log(&queue, "a");
	assert_int_equal(pthread_create(&thread, NULL, take_nested, &callback), 0);
	while (queued(&queue) < 3)
		gmem_sys_pause(50);
	start_one(&front, &queue, 'f', in_front(0, 60));
	assert_log_stays(&queue, "a");
	end(&a);
	pthread_join(thread, NULL);
	assert_ok(callback.err);
	await_log(&queue, "af");
	end(&front);
	queue_end(&queue);
}

/* A callback that comes later and would wait for itself through one in front is told so. */
static void a_circle_through_one_in_front_is_refused(void **state)
{
	struct gmem_claim outer = claim(0, 10, GMEM_CLAIM_EXCLUSIVE);
	struct gmem_claim inner = claim(25, 1, GMEM_CLAIM_SHARED);
	struct player front, a;
	struct queue queue;

	(void)state;
	queue_begin(&queue);
	assert_ok(take(&queue, &outer, 1));
	start_one(&a, &queue, 'a', claim(5, 1, GMEM_CLAIM_EXCLUSIVE));
	start_one(&front, &queue, 'f', in_front(0, 30));
	assert_int_equal(take(&queue, &inner, 1), -EDEADLK);
	drop(&queue, &outer, 1);
	await_log(&queue, "f");
	end(&front);
	await_log(&queue, "fa");
	end(&a);
	queue_end(&queue);
}

/* ---- many threads ---- */

#define THREADS	64
#define CELLS	32
#define TURNS	200

struct crowd {
	struct queue queue;
	/* with a claim on the cell */
	int readers[CELLS];	/* atomic */
	int writers[CELLS];	/* atomic */
	int refused;		/* atomic */
};

static struct crowd crowd;

static void work_on(const struct gmem_claim *claim, int by)
{
	int *counts = claim->mode == GMEM_CLAIM_SHARED ? crowd.readers : crowd.writers;

	for (uint64_t cell = claim->gpa; cell < claim->gpa + claim->size; cell++) {
		__atomic_add_fetch(&counts[cell], by, __ATOMIC_RELAXED);
		if (by < 0)
			continue;
		if (claim->mode == GMEM_CLAIM_SHARED)
			assert_int_equal(__atomic_load_n(&crowd.writers[cell], __ATOMIC_RELAXED), 0);
		else
			assert_int_equal(__atomic_load_n(&crowd.writers[cell], __ATOMIC_RELAXED) +
					 __atomic_load_n(&crowd.readers[cell], __ATOMIC_RELAXED), 1);
	}
}

static uint32_t next_random(uint32_t *seed, uint32_t below)
{
	*seed = *seed * 1664525 + 1013904223;
	return (*seed >> 8) % below;
}

static struct gmem_claim random_claim(uint32_t *seed)
{
	uint64_t start = next_random(seed, CELLS), size = 1 + next_random(seed, 6);

	if (start + size > CELLS)
		size = CELLS - start;
	return claim(start, size, next_random(seed, 2) ? GMEM_CLAIM_SHARED : GMEM_CLAIM_EXCLUSIVE);
}

/* One that cannot wait is refused, or has its turn and leaves. */
static bool give_up_soon(struct gmem_claim *claim)
{
	struct gmem_wait_budget budget = { .wait_ms = 1 };
	int err;

	gmem_lock_take(&crowd.queue.vm.lock);
	err = gmem_claim_take(&crowd.queue.vm, claim, &budget);
	gmem_lock_drop(&crowd.queue.vm.lock);
	if (!err) {
		work_on(claim, 1);
		work_on(claim, -1);
		drop(&crowd.queue, claim, 1);
	}
	assert_true(!err || err == -EBUSY);
	return err != 0;
}

/* As a change of the layout does, one at a time */
static void go_in_front(uint32_t *seed)
{
	struct gmem_claim front = random_claim(seed);

	front.mode = GMEM_CLAIM_EXCLUSIVE;
	front.in_front = true;
	gmem_lock_take(&crowd.queue.vm.hook_lock);
	assert_ok(take(&crowd.queue, &front, 1));
	work_on(&front, 1);
	gmem_sys_pause(10);
	work_on(&front, -1);
	drop(&crowd.queue, &front, 1);
	gmem_lock_drop(&crowd.queue.vm.hook_lock);
}

/* Sometimes one claim within another; a refusal must be a real circle, which nobody can see. */
static void *jostle(void *data)
{
	uint32_t seed = (uint32_t)(uintptr_t)data;
	struct gmem_claim outer, inner;
	int err;

	for (int i = 0; i < TURNS; i++) {
		outer = random_claim(&seed);
		if (next_random(&seed, 8) == 0 && give_up_soon(&outer))
			continue;
		if (next_random(&seed, 8) == 0)
			go_in_front(&seed);
		assert_ok(take(&crowd.queue, &outer, 1));
		work_on(&outer, 1);
		if (next_random(&seed, 4) == 0) {
			inner = random_claim(&seed);
			inner.mode = GMEM_CLAIM_SHARED;
			err = take(&crowd.queue, &inner, 1);
			if (!err)
				drop(&crowd.queue, &inner, 1);
			else
				__atomic_add_fetch(&crowd.refused, 1, __ATOMIC_RELAXED);
			assert_true(!err || err == -EDEADLK);
		}
		work_on(&outer, -1);
		drop(&crowd.queue, &outer, 1);
	}
	return NULL;
}

static void a_crowd_never_meets_and_never_stops(void **state)
{
	pthread_t threads[THREADS];

	(void)state;
	memset(&crowd, 0, sizeof(crowd));
	queue_begin(&crowd.queue);
	for (uintptr_t i = 0; i < THREADS; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, jostle, (void *)(i + 1)), 0);
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	print_message("# %d refused\n", crowd.refused);
	queue_end(&crowd.queue);
}

/* ---- what a callback may call ---- */

struct scene {
	struct unit unit;
	struct gmem_plan *plan;
	struct gmem_region *own, *other;	/* pages 16 to 23 are converted; 64 to 71 */
	struct gmem_region *logged;		/* pages 128 to 135, with a dirty log */
	struct gmem_export *exporter;		/* NULL, but for call_export_free() */
	struct gmem_view *view;
	struct gmem_listener *listener, *spare;
	const struct call *call;
	int in_own, in_other;			/* what the call returned there */
	bool was_called;
};

/* Calls and what they return in a callback for the range, and for another one */
struct call {
	const char *name;
	int (*call)(struct scene *s, uint64_t gpa, uint64_t size);
	int own, other;
	int own_if_private;	/* if not 0: the same while the range becomes private */
	int own_if_removed;	/* the range is no memory any more */
};

static int call_convert(struct scene *s, uint64_t gpa, uint64_t size)
{
	int err = gmem_vm_convert(s->unit.vm, gpa, size, GMEM_STATE_PRIVATE, NULL, NULL);

	return err ? err : gmem_vm_convert(s->unit.vm, gpa, size, GMEM_STATE_SHARED, NULL, NULL);
}

static int call_discard(struct scene *s, uint64_t gpa, uint64_t size)
{
	return gmem_vm_discard(s->unit.vm, gpa, size, NULL, NULL);
}

static int call_populate(struct scene *s, uint64_t gpa, uint64_t size)
{
	return gmem_vm_populate(s->unit.vm, gpa, size, NULL, NULL);
}

static int call_populate_with_threads(struct scene *s, uint64_t gpa, uint64_t size)
{
	GMEM_OPTS(gmem_populate_opts, opts, .workers = 2);

	return gmem_vm_populate(s->unit.vm, gpa, size, &opts, NULL);
}

static int call_populate_new(struct scene *s, uint64_t gpa, uint64_t size)
{
	struct gmem_populate *job;
	int err = gmem_populate_new(s->unit.vm, gpa, size, NULL, &job);

	if (err)
		return err;
	err = gmem_populate_run(job);
	gmem_populate_free(job);
	return err;
}

static int call_numa(struct scene *s, uint64_t gpa, uint64_t size)
{
	uint64_t on[4];
	GMEM_OPTS(gmem_numa_pages, pages, .nodes = 4, .on_node = on);

	return gmem_vm_numa(s->unit.vm, gpa, size, &pages);
}

static int call_set_numa(struct scene *s, uint64_t gpa, uint64_t size)
{
	GMEM_OPTS(gmem_numa_opts, opts, .policy = GMEM_NUMA_DEFAULT, .flags = GMEM_NUMA_SHARED_ONLY);

	return gmem_vm_set_numa(s->unit.vm, gpa, size, &opts, NULL);
}

static int call_stats(struct scene *s, uint64_t gpa, uint64_t size)
{
	GMEM_OPTS(gmem_stats, stats, .flags = 0);

	(void)gpa;
	(void)size;
	return gmem_vm_stats(s->unit.vm, &stats);
}

static int call_stats_resident(struct scene *s, uint64_t gpa, uint64_t size)
{
	GMEM_OPTS(gmem_stats, stats, .flags = GMEM_STATS_RESIDENT);

	(void)gpa;
	(void)size;
	return gmem_vm_stats(s->unit.vm, &stats);
}

static int call_region_stats(struct scene *s, uint64_t gpa, uint64_t size)
{
	GMEM_OPTS(gmem_stats, stats, .flags = GMEM_STATS_RESIDENT);

	(void)size;
	return gmem_region_stats(gpa < PAGES(&s->unit, 64) ? s->own : s->other, &stats);
}

static int call_dump(struct scene *s, uint64_t gpa, uint64_t size)
{
	(void)gpa;
	(void)size;
	return gmem_vm_dump(s->unit.vm, 1, NULL);
}

static int call_dump_to_null(struct scene *s, uint64_t gpa, uint64_t size)
{
	GMEM_OPTS(gmem_dump_opts, opts, .cell = UINT64_C(1) << 30);
	int fd = open("/dev/null", O_WRONLY | O_CLOEXEC), err;

	(void)gpa;
	(void)size;
	assert_true(fd >= 0);
	err = gmem_vm_dump(s->unit.vm, fd, &opts);
	close(fd);
	return err;
}

static int call_add(struct scene *s, uint64_t gpa, uint64_t size)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = s->plan);
	struct gmem_region *region;

	return gmem_region_add(s->unit.vm, gpa + PAGES(&s->unit, 1024), size, &opts, &region);
}

static int call_remove(struct scene *s, uint64_t gpa, uint64_t size)
{
	(void)size;
	return gmem_region_remove(gpa < PAGES(&s->unit, 64) ? s->own : s->other);
}

static int call_move(struct scene *s, uint64_t gpa, uint64_t size)
{
	(void)size;
	return gmem_region_move(gpa < PAGES(&s->unit, 64) ? s->own : s->other, gpa * 64);
}

static int call_split(struct scene *s, uint64_t gpa, uint64_t size)
{
	struct gmem_region *upper;

	return gmem_region_split(gpa < PAGES(&s->unit, 64) ? s->own : s->other, size / 2, &upper);
}

static int call_rebind(struct scene *s, uint64_t gpa, uint64_t size)
{
	struct gmem_file *file;
	int err;

	assert_ok(gmem_file_new(s->unit.vm_fd, size, s->plan, &file));
	err = gmem_region_rebind(gpa < PAGES(&s->unit, 64) ? s->own : s->other, file, 0);
	gmem_file_free(file);
	return err;
}

static int call_change(struct scene *s, uint64_t gpa, uint64_t size)
{
	struct gmem_change *change;
	int err;

	(void)size;
	assert_ok(gmem_change_new(s->unit.vm, &change));
	err = gmem_change_remove(change, gpa < PAGES(&s->unit, 64) ? s->own : s->other);
	if (!err)
		err = gmem_change_apply(change);
	gmem_change_free(change);
	return err;
}

static int call_listener_new(struct scene *s, uint64_t gpa, uint64_t size)
{
	GMEM_OPTS(gmem_listener_opts, opts, .name = "late");
	struct gmem_listener *listener;

	(void)gpa;
	(void)size;
	return gmem_listener_new(s->unit.vm, &opts, &listener);
}

static int call_listener_free(struct scene *s, uint64_t gpa, uint64_t size)
{
	(void)gpa;
	(void)size;
	gmem_listener_free(s->spare);
	s->spare = NULL;
	return 0;
}

static int call_export_new(struct scene *s, uint64_t gpa, uint64_t size)
{
	struct gmem_export *exporter;

	(void)gpa;
	(void)size;
	return gmem_export_new(s->unit.vm, NULL, &exporter);
}

static int call_export_free(struct scene *s, uint64_t gpa, uint64_t size)
{
	(void)gpa;
	(void)size;
	gmem_export_free(s->exporter);
	return gmem_export_fd(s->exporter) >= 0 ? 0 : -EINVAL;
}

static int call_discard_list(struct scene *s, uint64_t gpa, uint64_t size)
{
	const struct gmem_gpa_range ranges[] = { { gpa, s->unit.page },
						 { gpa + size - s->unit.page, s->unit.page } };

	return gmem_vm_discard_list(s->unit.vm, ranges, ARRAY_SIZE(ranges), NULL, NULL);
}

static int call_discard_owed(struct scene *s, uint64_t gpa, uint64_t size)
{
	(void)gpa;
	(void)size;
	return gmem_vm_discard_owed(s->unit.vm, NULL);
}

static int call_adopt_private(struct scene *s, uint64_t gpa, uint64_t size)
{
	return gmem_vm_adopt_private(s->unit.vm, gpa, size);
}

static int call_handle_exit(struct scene *s, uint64_t gpa, uint64_t size)
{
	const struct gmem_kvm_memory_fault fault = {
		.flags = KVM_MEMORY_EXIT_FLAG_PRIVATE, .gpa = gpa, .size = s->unit.page,
	};
	struct kvm_run run = { .exit_reason = KVM_EXIT_MEMORY_FAULT };
	struct gmem_vcpu *vcpu;
	int err;

	(void)size;
	memcpy(&run.hw, &fault, sizeof(fault));
	assert_ok(gmem_vcpu_new(s->unit.vm, -1, NULL, &vcpu));
	err = gmem_vcpu_handle_exit(vcpu, &run, -1, EFAULT, NULL);
	gmem_vcpu_free(vcpu);
	return err == 1 ? 0 : err;
}

static int call_set_dirty_log(struct scene *s, uint64_t gpa, uint64_t size)
{
	(void)gpa;
	(void)size;
	return gmem_region_set_dirty_log(s->logged, 1);
}

static int call_get_dirty_log(struct scene *s, uint64_t gpa, uint64_t size)
{
	uint64_t bitmap[1];

	(void)gpa;
	(void)size;
	return gmem_region_get_dirty_log(s->logged, bitmap, ARRAY_SIZE(bitmap));
}

static int call_reserve_slots(struct scene *s, uint64_t gpa, uint64_t size)
{
	(void)gpa;
	(void)size;
	return gmem_vm_reserve_slots(s->unit.vm, 100, 1);
}

static int call_change_steps(struct scene *s, uint64_t gpa, uint64_t size)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = s->plan);
	struct gmem_change *change;
	struct gmem_region *region;
	int err;

	err = gmem_change_new(s->unit.vm, &change);
	if (err)
		return err;
	err = gmem_change_add(change, gpa + PAGES(&s->unit, 1024), size, &opts, &region);
	if (!err)
		err = gmem_change_move(change, s->logged, PAGES(&s->unit, 256));
	gmem_change_free(change);
	return err;
}

static int call_punch(struct scene *s, uint64_t gpa, uint64_t size)
{
	(void)gpa;
	(void)size;
	return gmem_file_punch(gmem_region_file(s->other, NULL), 0, s->unit.page, NULL);
}

static int call_load(struct scene *s, uint64_t gpa, uint64_t size)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .flags = GMEM_TRANSFER_NO_RING);
	int fd = memfd_create("load", MFD_CLOEXEC), err;

	assert_true(fd >= 0);
	assert_ok(ftruncate(fd, (off_t)size));
	err = gmem_vm_load(s->unit.vm, gpa, fd, 0, size, &opts, NULL);
	close(fd);
	return err;
}

static int call_state(struct scene *s, uint64_t gpa, uint64_t size)
{
	struct gmem_state_range range;
	int count = gmem_vm_state(s->unit.vm, gpa, size, &range, 1);

	return count < 0 ? count : 0;
}

static int call_lease(struct scene *s, uint64_t gpa, uint64_t size)
{
	struct gmem_lease *lease;
	int err = gmem_lease_new(s->unit.vm, gpa, size, NULL, &lease);

	if (!err)
		gmem_lease_free(lease);
	return err;
}

static int call_view(struct scene *s, uint64_t gpa, uint64_t size)
{
	struct gmem_view *view;
	void *hva;
	int err;

	(void)size;
	err = gmem_view_new(s->unit.vm, &view);
	if (err)
		return err;
	gmem_view_begin(view);
	err = gmem_view_hva(view, gpa, 8, &hva);
	gmem_view_end(view);
	gmem_view_free(view);
	return err == -EACCES ? 0 : err;
}

static const struct call calls[] = {
	{ "convert", call_convert, -EDEADLK, 0, 0, -EDEADLK },
	{ "discard", call_discard, -EDEADLK, 0, 0, -ENOENT },
	{ "populate", call_populate, -EDEADLK, 0, 0, -ENOENT },
	{ "populate new and run", call_populate_new, -EDEADLK, 0, 0, -ENOENT },
	{ "populate with threads", call_populate_with_threads, -EDEADLK, -EDEADLK, 0, -ENOENT },
	{ "numa", call_numa, -EDEADLK, 0, 0, -ENOENT },
	{ "set numa", call_set_numa, -EDEADLK, 0, 0, -ENOENT },
	{ "stats", call_stats, 0, 0, 0, 0 },
	{ "stats, resident", call_stats_resident, -EDEADLK, -EDEADLK, 0, 0 },
	{ "region stats, resident", call_region_stats, -EDEADLK, 0, 0, 0 },
	{ "dump", call_dump, -EDEADLK, -EDEADLK, 0, -EDEADLK },
	{ "region add", call_add, -EDEADLK, -EDEADLK, 0, -EDEADLK },
	{ "region remove", call_remove, -EDEADLK, -EDEADLK, 0, -EDEADLK },
	{ "region move", call_move, -EDEADLK, -EDEADLK, 0, -EDEADLK },
	{ "region split", call_split, -EDEADLK, -EDEADLK, 0, -EDEADLK },
	{ "region rebind", call_rebind, -EDEADLK, -EDEADLK, 0, -EDEADLK },
	{ "change", call_change, -EDEADLK, -EDEADLK, 0, -EDEADLK },
	{ "listener new", call_listener_new, -EDEADLK, -EDEADLK, 0, -EDEADLK },
	{ "listener free", call_listener_free, 0, 0, 0, 0 },
	{ "export new", call_export_new, -EDEADLK, -EDEADLK, 0, -EDEADLK },
	{ "state", call_state, 0, 0, 0, 0 },
	{ "lease", call_lease, 0, 0, -EBUSY, -ENOENT },
	{ "view", call_view, 0, 0, 0, -ESTALE },
	{ "export free", call_export_free, 0, 0, 0, 0 },
	{ "discard list", call_discard_list, -EDEADLK, 0, 0, -ENOENT },
	{ "discard owed", call_discard_owed, 0, 0, 0, 0 },
	{ "adopt private", call_adopt_private, -EDEADLK, 0, 0, -EDEADLK },
	{ "handle exit", call_handle_exit, -EDEADLK, 0, 0, -EDEADLK },
	{ "set dirty log", call_set_dirty_log, -EDEADLK, -EDEADLK, 0, -EDEADLK },
	{ "get dirty log", call_get_dirty_log, 0, 0, 0, 0 },
	{ "reserve slots", call_reserve_slots, -EDEADLK, -EDEADLK, 0, -EDEADLK },
	{ "steps of a change", call_change_steps, 0, 0, 0, 0 },
	{ "punch", call_punch, 0, 0, 0, 0 },
	{ "load", call_load, 0, 0, -EBUSY, -ENOENT },
};

static void try_calls(void *data, uint64_t gpa, uint64_t size)
{
	struct scene *s = data;

	/* The calls for the other range have callbacks, too. */
	if (gpa >= PAGES(&s->unit, 64) || s->was_called)
		return;
	s->was_called = true;
	s->in_own = s->call->call(s, gpa, size);
	s->in_other = s->call->call(s, PAGES(&s->unit, 64), PAGES(&s->unit, 8));
}

static int try_calls_before(void *data, uint64_t gpa, uint64_t size)
{
	try_calls(data, gpa, size);
	return 0;
}

static int refuse_own(void *data, uint64_t gpa, uint64_t size)
{
	const struct scene *s = data;

	(void)size;
	return gpa < PAGES(&s->unit, 64) ? -EPERM : 0;
}

static void listen_with(struct scene *s, const struct gmem_listener_opts *template)
{
	struct gmem_listener_opts opts = *template;

	opts.size = sizeof(opts);
	opts.data = s;
	assert_ok(gmem_listener_new(s->unit.vm, &opts, &s->listener));
	s->was_called = false;
}

static void check_results(const struct scene *s, int own, int other)
{
	if (!s->was_called || s->in_own != own || s->in_other != other)
		fail_msg("%s: called %d, %d, not %d, in its range, %d, not %d, in another: %s",
			 s->call->name, s->was_called, s->in_own, own, s->in_other, other,
			 gmem_last_error());
}

static void check_calls(const struct scene *s, bool becomes_private)
{
	int own = becomes_private && s->call->own_if_private ? s->call->own_if_private : s->call->own;

	check_results(s, own, s->call->other);
}

static int convert_own(struct scene *s, uint32_t state)
{
	return gmem_vm_convert(s->unit.vm, PAGES(&s->unit, 16), PAGES(&s->unit, 8), state, NULL, NULL);
}

static struct gmem_region *add_logged(const struct unit *unit, uint64_t page, uint32_t backing,
				      struct gmem_file *file)
{
	struct gmem_plan *plan = unit_plan(unit, backing);
	GMEM_OPTS(gmem_region_opts, opts, .plan = plan, .flags = GMEM_REGION_DIRTY_LOG, .file = file);
	struct gmem_region *region;

	assert_ok(gmem_region_add(unit->vm, PAGES(unit, page), PAGES(unit, 8), &opts, &region));
	gmem_plan_free(plan);
	return region;
}

static void scene_begin(struct scene *s, const struct call *call)
{
	GMEM_OPTS(gmem_listener_opts, opts, .name = "spare");

	memset(s, 0, sizeof(*s));
	unit_begin_vm(&s->unit, "7.3-swp-t1");
	s->call = call;
	s->plan = unit_plan(&s->unit, GMEM_BACKING_PRIVATE);
	s->own = unit_region(&s->unit, 16, 8, s->plan);
	s->other = unit_region(&s->unit, 64, 8, s->plan);
	s->logged = add_logged(&s->unit, 128, GMEM_BACKING_HOST, NULL);
	if (call->call == call_export_free)
		assert_ok(gmem_export_new(s->unit.vm, NULL, &s->exporter));
	assert_ok(gmem_view_new(s->unit.vm, &s->view));
	assert_ok(gmem_listener_new(s->unit.vm, &opts, &s->spare));
}

static void scene_end(struct scene *s)
{
	gmem_export_free(s->exporter);
	gmem_listener_free(s->listener);
	gmem_listener_free(s->spare);
	gmem_view_free(s->view);
	gmem_plan_free(s->plan);
	unit_end(&s->unit);
}

static void callbacks_before_private_get_what_the_header_says(void **state)
{
	static const struct gmem_listener_opts opts = { .before_private = try_calls_before };
	struct scene s;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(calls); i++) {
		scene_begin(&s, &calls[i]);
		listen_with(&s, &opts);
		assert_ok(convert_own(&s, GMEM_STATE_PRIVATE));
		check_calls(&s, true);
		scene_end(&s);
	}
}

static void callbacks_that_undo_get_what_the_header_says(void **state)
{
	static const struct gmem_listener_opts opts = { .undo_private = try_calls };
	GMEM_OPTS(gmem_listener_opts, against, .before_private = refuse_own);
	struct gmem_listener *other;
	struct scene s;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(calls); i++) {
		scene_begin(&s, &calls[i]);
		listen_with(&s, &opts);
		against.data = &s;
		assert_ok(gmem_listener_new(s.unit.vm, &against, &other));
		assert_int_equal(convert_own(&s, GMEM_STATE_PRIVATE), -EPERM);
		check_calls(&s, true);
		gmem_listener_free(other);
		scene_end(&s);
	}
}

static void callbacks_after_shared_get_what_the_header_says(void **state)
{
	static const struct gmem_listener_opts opts = { .after_shared = try_calls };
	struct scene s;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(calls); i++) {
		scene_begin(&s, &calls[i]);
		assert_ok(convert_own(&s, GMEM_STATE_PRIVATE));
		listen_with(&s, &opts);
		assert_ok(convert_own(&s, GMEM_STATE_SHARED));
		check_calls(&s, false);
		scene_end(&s);
	}
}

static void callbacks_of_removals_get_what_the_header_says(void **state)
{
	static const struct gmem_listener_opts opts = { .removed = try_calls };
	struct scene s;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(calls); i++) {
		scene_begin(&s, &calls[i]);
		listen_with(&s, &opts);
		assert_ok(gmem_region_remove(s.own));
		/* All memory is then that of the other range. */
		check_results(&s, calls[i].own_if_removed,
			      calls[i].call == call_stats_resident ? 0 : calls[i].other);
		scene_end(&s);
	}
}

/* What the range of the conversion owes is not given back by its callback. */
static void callbacks_get_back_nothing_that_their_range_owes(void **state)
{
	static const struct call call = { "discard owed", call_discard_owed, 0, 0, 0, 0 };
	static const struct gmem_listener_opts opts = { .before_private = try_calls_before };
	GMEM_OPTS(gmem_convert_opts, later, .discard = GMEM_DISCARD_LATER);
	struct scene s;

	(void)state;
	scene_begin(&s, &call);
	assert_ok(gmem_vm_convert(s.unit.vm, PAGES(&s.unit, 16), s.unit.page, GMEM_STATE_PRIVATE,
				  &later, NULL));
	listen_with(&s, &opts);
	assert_ok(convert_own(&s, GMEM_STATE_PRIVATE));
	check_results(&s, -EDEADLK, -EDEADLK);
	scene_end(&s);
}

struct removals {
	struct gmem_region *region;	/* its dirty log is read there, unless NULL */
	unsigned int count;
	int err;
};

static void note_removal(void *data, uint64_t gpa, uint64_t size)
{
	struct removals *removals = data;
	uint64_t bitmap[1];

	(void)gpa;
	(void)size;
	removals->count++;
	if (removals->region)
		removals->err = gmem_region_get_dirty_log(removals->region, bitmap, ARRAY_SIZE(bitmap));
}

static void check_removals(struct removals *removals, unsigned int count)
{
	assert_int_equal(removals->count, count);
	assert_int_equal(removals->err, count && removals->region ? -EDEADLK : 0);
	removals->count = 0;
	removals->err = 0;
}

/* A region that moves to its own address counts, too; a split and a device do not. */
static void removals_are_told_as_the_header_says(void **state)
{
	struct removals removals = { .count = 0 };
	GMEM_OPTS(gmem_listener_opts, opts, .data = &removals, .removed = note_removal);
	GMEM_OPTS(gmem_region_opts, device_opts, .flags = GMEM_REGION_DEVICE);
	struct gmem_region *region, *upper, *device;
	struct gmem_listener *listener;
	struct gmem_plan *plan;
	struct gmem_file *file;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	plan = unit_plan(&unit, GMEM_BACKING_MAPPED);
	assert_ok(gmem_file_new(unit.vm_fd, PAGES(&unit, 8), plan, &file));
	gmem_plan_free(plan);
	assert_ok(gmem_listener_new(unit.vm, &opts, &listener));
	region = add_logged(&unit, 16, GMEM_BACKING_MAPPED, file);
	assert_ok(gmem_region_add(unit.vm, PAGES(&unit, 64), unit.page, &device_opts, &device));
	check_removals(&removals, 0);

	removals.region = region;
	assert_ok(gmem_region_move(region, PAGES(&unit, 32)));
	check_removals(&removals, 1);
	assert_ok(gmem_region_move(region, PAGES(&unit, 32)));
	check_removals(&removals, 1);
	assert_ok(gmem_region_rebind(region, file, 0));
	check_removals(&removals, 1);
	removals.region = NULL;
	assert_ok(gmem_region_split(region, PAGES(&unit, 4), &upper));
	check_removals(&removals, 0);
	assert_ok(gmem_region_move(device, PAGES(&unit, 80)));
	assert_ok(gmem_region_remove(device));
	check_removals(&removals, 0);
	assert_ok(gmem_region_remove(upper));
	check_removals(&removals, 1);
	gmem_listener_free(listener);
	gmem_file_free(file);
	unit_end(&unit);
}

/* The handle goes with the next change of the list, or with the VM. */
static void listener_freed_in_a_callback_hears_no_more(void **state)
{
	static const struct call free_spare = { "free", call_listener_free, 0, 0, 0, 0 };
	GMEM_OPTS(gmem_listener_opts, opts, .undo_private = try_calls, .before_private = try_calls_before);
	struct scene s, heard;

	(void)state;
	scene_begin(&s, &free_spare);
	gmem_listener_free(s.spare);
	memset(&heard, 0, sizeof(heard));
	heard.unit = s.unit;
	heard.call = &calls[7];
	listen_with(&s, &opts);
	opts.data = &heard;
	assert_ok(gmem_listener_new(s.unit.vm, &opts, &s.spare));
	assert_ok(convert_own(&s, GMEM_STATE_PRIVATE));
	assert_true(s.was_called);
	assert_false(heard.was_called);
	assert_ok(convert_own(&s, GMEM_STATE_SHARED));
	assert_ok(convert_own(&s, GMEM_STATE_PRIVATE));
	assert_false(heard.was_called);
	scene_end(&s);
}

struct meeting {
	struct scene *scene;
	pthread_barrier_t all_there;
};

static int meet(void *data, uint64_t gpa, uint64_t size)
{
	struct meeting *meeting = data;

	(void)gpa;
	(void)size;
	pthread_barrier_wait(&meeting->all_there);
	return 0;
}

static void *convert_other(void *data)
{
	const struct scene *s = data;

	assert_ok(gmem_vm_convert(s->unit.vm, PAGES(&s->unit, 64), PAGES(&s->unit, 8),
				  GMEM_STATE_PRIVATE, NULL, NULL));
	return NULL;
}

/* Each callback waits for the other one. */
static void callbacks_of_different_ranges_run_at_once(void **state)
{
	GMEM_OPTS(gmem_listener_opts, opts, .before_private = meet);
	struct meeting meeting;
	struct scene s;
	pthread_t thread;

	(void)state;
	scene_begin(&s, &calls[0]);
	pthread_barrier_init(&meeting.all_there, NULL, 2);
	opts.data = &meeting;
	assert_ok(gmem_listener_new(s.unit.vm, &opts, &s.listener));
	assert_int_equal(pthread_create(&thread, NULL, convert_other, &s), 0);
	assert_ok(convert_own(&s, GMEM_STATE_PRIVATE));
	pthread_join(thread, NULL);
	pthread_barrier_destroy(&meeting.all_there);
	scene_end(&s);
}

/* ---- long work ---- */

static uint64_t claims_of(const struct scene *s, const struct call *call, struct gmem_region *region)
{
	uint64_t before = s->unit.vm->claim_order;
	struct scene copy = *s;

	assert_ok(call->call(&copy, gmem_region_gpa(region), gmem_region_size(region)));
	return s->unit.vm->claim_order - before;
}

/* Others get their turn after each 64 MiB. */
static void long_work_goes_in_pieces(void **state)
{
	static const struct { struct call call; uint64_t claims; } works[] = {
		{ { "discard", call_discard, 0, 0, 0, 0 }, 3 },
		{ { "numa", call_numa, 0, 0, 0, 0 }, 3 },
		{ { "set numa", call_set_numa, 0, 0, 0, 0 }, 3 + 1 + 3 },
		{ { "stats", call_stats_resident, 0, 0, 0, 0 }, 3 + 3 },
		{ { "dump", call_dump_to_null, 0, 0, 0, 0 }, 3 + 3 },
	};
	struct gmem_region *big;
	struct scene s;

	(void)state;
	scene_begin(&s, &calls[0]);
	big = unit_region(&s.unit, 4096, (160u << 20) / s.unit.page, s.plan);
	for (size_t i = 0; i < ARRAY_SIZE(works); i++)
		if (claims_of(&s, &works[i].call, big) != works[i].claims)
			fail_msg("%s: not %d claims", works[i].call.name, (int)works[i].claims);
	scene_end(&s);
}

/* ---- leases on memory that has two guest addresses ---- */

struct alias {
	struct unit unit;
	struct gmem_region *low, *high;		/* pages 16 to 23, and 64 to 71 */
	struct gmem_file *file;			/* of both, or NULL */
	void *memory;				/* of both, or NULL */
	void *low_hva;
};

static struct gmem_region *add_alias(struct alias *a, uint64_t page, struct gmem_plan *plan)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = plan, .file = a->file);
	struct gmem_region *region;

	if (a->memory) {
		opts.flags = GMEM_REGION_HVA;
		opts.hva = a->memory;
	}
	assert_ok(gmem_region_add(a->unit.vm, PAGES(&a->unit, page), PAGES(&a->unit, 8), &opts,
				  &region));
	return region;
}

static void alias_begin_file(struct alias *a)
{
	struct gmem_plan *plan;

	memset(a, 0, sizeof(*a));
	unit_begin_vm(&a->unit, "6.18");
	plan = unit_plan(&a->unit, GMEM_BACKING_MAPPED);
	assert_ok(gmem_file_new(a->unit.vm_fd, PAGES(&a->unit, 8), plan, &a->file));
	a->low = add_alias(a, 16, plan);
	a->high = add_alias(a, 64, plan);
	gmem_plan_free(plan);
	a->low_hva = gmem_region_hva(a->low);
	memset(a->low_hva, 0x5a, PAGES(&a->unit, 8));
}

static void alias_begin_memory(struct alias *a, uint32_t backing)
{
	struct gmem_plan *plan;

	memset(a, 0, sizeof(*a));
	unit_begin_vm(&a->unit, "7.3-swp-t1");
	plan = unit_plan(&a->unit, backing);
	a->memory = unit_memory(&a->unit, 8);
	a->low = add_alias(a, 16, plan);
	a->high = add_alias(a, 64, plan);
	gmem_plan_free(plan);
	a->low_hva = a->memory;
	memset(a->low_hva, 0x5a, PAGES(&a->unit, 8));
}

static void alias_end(struct alias *a)
{
	gmem_file_free(a->file);
	unit_end(&a->unit);
	if (a->memory)
		unit_memory_free(a->memory);
}

static struct gmem_lease *lease(struct alias *a, uint64_t page, uint64_t pages)
{
	GMEM_OPTS(gmem_lease_opts, opts, .holder = "disk 7");
	struct gmem_lease *ret;

	assert_ok(gmem_lease_new(a->unit.vm, PAGES(&a->unit, page), PAGES(&a->unit, pages), &opts,
				 &ret));
	return ret;
}

static int discard(struct alias *a, uint64_t page, uint64_t pages, uint32_t wait_ms)
{
	GMEM_OPTS(gmem_discard_opts, opts, .wait_ms = wait_ms);

	return gmem_vm_discard(a->unit.vm, PAGES(&a->unit, page), PAGES(&a->unit, pages), &opts, NULL);
}

static int convert(struct alias *a, uint64_t page, uint64_t pages, uint32_t wait_ms)
{
	GMEM_OPTS(gmem_convert_opts, opts, .wait_ms = wait_ms);

	return gmem_vm_convert(a->unit.vm, PAGES(&a->unit, page), PAGES(&a->unit, pages),
			       GMEM_STATE_PRIVATE, &opts, NULL);
}

static void lease_protects_a_file_at_every_address(void **state)
{
	struct gmem_lease *held;
	uint64_t done = 5;
	struct alias a;

	(void)state;
	alias_begin_file(&a);
	held = lease(&a, 18, 2);
	assert_refused(-EBUSY, "\"disk 7\" holds a lease on gpa 0x12000", discard(&a, 18, 1, 0));
	assert_refused(-EBUSY, "\"disk 7\" holds a lease on gpa 0x12000, 0x2000 bytes, which has "
		       "memory of gpa 0x40000, 0x8000 bytes", discard(&a, 64, 8, 0));
	assert_refused(-EBUSY, "\"disk 7\" holds a lease on gpa 0x12000, 0x2000 bytes, which has "
		       "memory of file offset 0x3000",
		       gmem_file_punch(a.file, PAGES(&a.unit, 3), PAGES(&a.unit, 5), &done));
	assert_int_equal(done, 0);

	/* beside it */
	assert_ok(discard(&a, 68, 4, 0));
	assert_ok(gmem_file_punch(a.file, 0, PAGES(&a.unit, 2), NULL));
	assert_int_equal(((char *)a.low_hva)[PAGES(&a.unit, 2)], 0x5a);
	assert_int_equal(((char *)a.low_hva)[PAGES(&a.unit, 4)], 0);
	gmem_lease_free(held);
	assert_ok(discard(&a, 66, 1, 0));
	assert_ok(gmem_file_punch(a.file, 0, PAGES(&a.unit, 8), NULL));
	alias_end(&a);
}

static void lease_protects_host_memory_at_every_address(void **state)
{
	struct gmem_lease *held;
	struct alias a;

	(void)state;
	alias_begin_memory(&a, GMEM_BACKING_HOST);
	held = lease(&a, 66, 2);
	assert_refused(-EBUSY, "\"disk 7\" holds a lease on gpa 0x42000", discard(&a, 19, 1, 0));
	assert_refused(-EBUSY, "\"disk 7\"", discard(&a, 19, 1, 5));
	gmem_lease_free(held);
	assert_ok(discard(&a, 19, 1, 0));
	alias_end(&a);
}

/* A region's own memory, given to another region as the caller's */
static void lease_protects_memory_of_another_region(void **state)
{
	struct gmem_lease *held;
	struct alias a;
	struct gmem_plan *plan;

	(void)state;
	alias_begin_file(&a);
	plan = unit_plan(&a.unit, GMEM_BACKING_HOST);
	assert_ok(gmem_region_remove(a.high));
	a.memory = a.low_hva;
	gmem_file_free(a.file);
	a.file = NULL;
	a.high = add_alias(&a, 64, plan);
	gmem_plan_free(plan);
	held = lease(&a, 18, 2);
	assert_refused(-EBUSY, "\"disk 7\"", discard(&a, 66, 1, 0));
	gmem_lease_free(held);
	held = lease(&a, 66, 2);
	assert_refused(-EBUSY, "\"disk 7\"", discard(&a, 18, 1, 0));
	gmem_lease_free(held);
	a.memory = NULL;
	alias_end(&a);
}

static void lease_keeps_an_alias_from_becoming_private(void **state)
{
	struct gmem_lease *held;
	struct alias a;

	(void)state;
	alias_begin_memory(&a, GMEM_BACKING_PRIVATE);
	assert_ok(convert(&a, 70, 1, 0));
	memset(a.low_hva, 0x5a, PAGES(&a.unit, 8));
	held = lease(&a, 16, 8);
	assert_refused(-EBUSY, "\"disk 7\"", convert(&a, 64, 1, 0));
	assert_refused(-EBUSY, "\"disk 7\"", convert(&a, 64, 1, 5));
	/* what is private already stays so, whoever says it again */
	assert_ok(convert(&a, 70, 1, 0));
	assert_int_equal(((char *)a.low_hva)[PAGES(&a.unit, 6)], 0x5a);
	gmem_lease_free(held);
	assert_ok(convert(&a, 64, 1, 0));
	alias_end(&a);
}

/* What was to be discarded later is not discarded while it is leased elsewhere. */
static void lease_keeps_what_is_pending(void **state)
{
	GMEM_OPTS(gmem_convert_opts, later, .discard = GMEM_DISCARD_LATER);
	struct gmem_lease *held;
	uint64_t done;
	struct alias a;

	(void)state;
	alias_begin_memory(&a, GMEM_BACKING_PRIVATE);
	assert_ok(gmem_vm_convert(a.unit.vm, PAGES(&a.unit, 16), PAGES(&a.unit, 8),
				  GMEM_STATE_PRIVATE, &later, NULL));
	held = lease(&a, 64, 8);
	assert_int_equal(gmem_vm_discard_owed(a.unit.vm, &done), -EBUSY);
	assert_int_equal(done, 0);
	assert_int_equal(((char *)a.low_hva)[0], 0x5a);
	gmem_lease_free(held);
	assert_ok(gmem_vm_discard_owed(a.unit.vm, &done));
	assert_int_equal(done, PAGES(&a.unit, 8));
	alias_end(&a);
}

static void an_alias_of_leased_memory_may_go(void **state)
{
	struct gmem_lease *held;
	struct alias a;

	(void)state;
	alias_begin_file(&a);
	held = lease(&a, 18, 2);
	assert_ok(gmem_region_move(a.high, PAGES(&a.unit, 128)));
	assert_ok(gmem_region_remove(a.high));
	assert_refused(-EBUSY, "\"disk 7\"", gmem_region_remove(a.low));
	gmem_lease_free(held);
	assert_ok(gmem_region_remove(a.low));
	alias_end(&a);
}

struct waiting {
	struct alias *alias;
	int (*call)(struct alias *a, uint64_t page, uint64_t pages, uint32_t wait_ms);
	int err;
};

static void *wait_through_alias(void *data)
{
	struct waiting *waiting = data;

	waiting->err = waiting->call(waiting->alias, 64, 8, 10000);
	return NULL;
}

/* While one waits, no new lease gets in front of it, at either address. */
static void check_waiting(struct alias *a, int (*call)(struct alias *a, uint64_t page,
						       uint64_t pages, uint32_t wait_ms))
{
	struct waiting waiting = { .alias = a, .call = call };
	struct gmem_lease *held = lease(a, 18, 1), *more;
	pthread_t thread;

	assert_int_equal(pthread_create(&thread, NULL, wait_through_alias, &waiting), 0);
	while (!gmem_lease_new(a->unit.vm, PAGES(&a->unit, 20), 1, NULL, &more)) {
		gmem_lease_free(more);
		gmem_sys_pause(100);
	}
	assert_non_null(strstr(gmem_last_error(), "gpa 0x40000, 0x8000 bytes, which has memory of "
			       "0x14000, 0x1 bytes, is being "));
	assert_int_equal(((char *)a->low_hva)[0], 0x5a);
	gmem_lease_free(held);
	pthread_join(thread, NULL);
	assert_ok(waiting.err);
	assert_ok(gmem_lease_new(a->unit.vm, PAGES(&a->unit, 20), 1, NULL, &more));
	gmem_lease_free(more);
}

static void who_discards_waits_for_leases_at_other_addresses(void **state)
{
	struct alias a;

	(void)state;
	alias_begin_file(&a);
	check_waiting(&a, discard);
	alias_end(&a);
	alias_begin_memory(&a, GMEM_BACKING_HOST);
	check_waiting(&a, discard);
	alias_end(&a);
	alias_begin_memory(&a, GMEM_BACKING_PRIVATE);
	check_waiting(&a, convert);
	alias_end(&a);
}

static void lease_over_many_regions_is_all_or_nothing(void **state)
{
	struct gmem_lease *held, *more;
	struct alias a;
	struct gmem_region *upper;

	(void)state;
	alias_begin_memory(&a, GMEM_BACKING_HOST);
	assert_ok(gmem_region_split(a.low, PAGES(&a.unit, 4), &upper));
	held = lease(&a, 18, 4);
	assert_refused(-EBUSY, "\"disk 7\"", discard(&a, 67, 1, 0));
	assert_refused(-EBUSY, "\"disk 7\"", discard(&a, 69, 1, 0));
	assert_ok(discard(&a, 70, 1, 0));
	gmem_lease_free(held);

	assert_refused(-ENOENT, "no region",
		       gmem_lease_new(a.unit.vm, PAGES(&a.unit, 18), PAGES(&a.unit, 8), NULL, &more));
	assert_ok(discard(&a, 64, 8, 0));
	alias_end(&a);
}

/* ---- a crowd with leases, discards and punches of one file ---- */

static struct alias shared_alias;
static int granted, discarded;	/* atomic */

static void *use_memory(void *data)
{
	uint32_t seed = (uint32_t)(uintptr_t)data;
	struct alias *a = &shared_alias;
	struct gmem_lease *held;
	uint64_t page, at;
	volatile char *mine;
	bool is_low;

	for (int i = 0; i < TURNS; i++) {
		page = next_random(&seed, 8);
		is_low = next_random(&seed, 2);
		at = PAGES(&a->unit, (is_low ? 16 : 64) + page);
		if (next_random(&seed, 3) == 0) {
			if (next_random(&seed, 2) == 0)
				(void)!gmem_file_punch(a->file, PAGES(&a->unit, page), a->unit.page, NULL);
			else if (!gmem_vm_discard(a->unit.vm, at, a->unit.page, NULL, NULL))
				__atomic_add_fetch(&discarded, 1, __ATOMIC_RELAXED);
			continue;
		}
		/* Bytes of its own, of a page that others lease, too */
		if (gmem_lease_new(a->unit.vm, at, a->unit.page, NULL, &held))
			continue;
		mine = (char *)a->low_hva + PAGES(&a->unit, page) + (uintptr_t)data;
		*mine = (char)i | 1;
		gmem_sys_pause(20);
		assert_int_equal(*mine, (char)i | 1);
		gmem_lease_free(held);
		__atomic_add_fetch(&granted, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

static void leased_bytes_stay_whatever_others_do(void **state)
{
	pthread_t threads[THREADS];

	(void)state;
	alias_begin_file(&shared_alias);
	for (uintptr_t i = 0; i < THREADS; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, use_memory, (void *)(i + 1)), 0);
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	print_message("# %d leases, %d discards\n", granted, discarded);
	assert_true(granted > 0);
	alias_end(&shared_alias);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(who_comes_later_never_overtakes),
	cmocka_unit_test(shared_claims_get_along_and_exclusive_ones_do_not),
	cmocka_unit_test(claims_of_one_call_come_at_once),
	cmocka_unit_test(claims_of_one_call_do_not_wait_for_each_other),
	cmocka_unit_test(a_change_of_many_steps_is_one_call),
	cmocka_unit_test(a_claim_waits_within_its_budget),
	cmocka_unit_test(what_waits_behind_one_that_gives_up_goes_on),
	cmocka_unit_test(a_layout_change_goes_in_front_of_those_who_wait),
	cmocka_unit_test(a_call_with_several_claims_is_overtaken_as_a_whole),
	cmocka_unit_test(the_end_of_work_comes_before_that_of_the_queue),
	cmocka_unit_test(waiting_for_oneself_is_refused),
	cmocka_unit_test(waiting_for_oneself_through_others_is_refused),
	cmocka_unit_test(a_circle_of_two_threads_is_refused_to_the_second),
	cmocka_unit_test(a_callback_may_wait_for_others),
	cmocka_unit_test(nobody_goes_in_front_of_a_callback_that_waits),
	cmocka_unit_test(a_circle_through_one_in_front_is_refused),
	cmocka_unit_test(a_crowd_never_meets_and_never_stops),
	cmocka_unit_test(callbacks_before_private_get_what_the_header_says),
	cmocka_unit_test(callbacks_that_undo_get_what_the_header_says),
	cmocka_unit_test(callbacks_after_shared_get_what_the_header_says),
	cmocka_unit_test(callbacks_of_removals_get_what_the_header_says),
	cmocka_unit_test(callbacks_get_back_nothing_that_their_range_owes),
	cmocka_unit_test(removals_are_told_as_the_header_says),
	cmocka_unit_test(listener_freed_in_a_callback_hears_no_more),
	cmocka_unit_test(callbacks_of_different_ranges_run_at_once),
	cmocka_unit_test(long_work_goes_in_pieces),
	cmocka_unit_test(lease_protects_a_file_at_every_address),
	cmocka_unit_test(lease_protects_host_memory_at_every_address),
	cmocka_unit_test(lease_protects_memory_of_another_region),
	cmocka_unit_test(lease_keeps_an_alias_from_becoming_private),
	cmocka_unit_test(lease_keeps_what_is_pending),
	cmocka_unit_test(an_alias_of_leased_memory_may_go),
	cmocka_unit_test(who_discards_waits_for_leases_at_other_addresses),
	cmocka_unit_test(lease_over_many_regions_is_all_or_nothing),
	cmocka_unit_test(leased_bytes_stay_whatever_others_do),
};

UNIT_MAIN(tests)
