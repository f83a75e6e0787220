/* SPDX-License-Identifier: MIT */
#include "transfer/batch.h"

#include <pthread.h>
#include <stdlib.h>

/* A thread takes longer to start than this many bytes to transfer. */
#define THREADS_FROM ((uint64_t)8 << 20)

/* Bytes of stack: half of them for the marks of the pages that are looked at */
#define STACK ((size_t)128 << 10)

/*
 * A thread works through a lane of its own, then helps in the others. Two threads on neighbouring
 * pages wait for each other in the kernel, for the lock of the page table that has both.
 */
struct lane {
	size_t next;		/* atomic */
	size_t end;
};

struct batch {
	struct gmem_hands *hands;
	gmem_batch_fn fn;
	void *data;
	size_t failed;		/* atomic: the first piece that is not done, or the count */
	unsigned int joined;	/* atomic: lent threads that take part */
	pthread_t leader;
	unsigned int lane_count;
	struct lane lanes[GMEM_MAX_HANDS];
};

static void begin_hand(struct gmem_hand *hand, unsigned int number)
{
	hand->number = number;
	hand->own_look = (struct gmem_host_look)GMEM_HOST_LOOK;
	hand->look = &hand->own_look;
}

static void begin_crew(struct gmem_hands *hands, unsigned int threads)
{
	unsigned int started = gmem_crew_begin(&hands->crew, threads, STACK);
	bool may_move = started && gmem_numa_has_several_nodes();

	for (unsigned int i = 1; i <= started; i++)
		hands->all[i].may_move = may_move;
}

void gmem_hands_begin(struct gmem_hands *hands, unsigned int workers, uint64_t bytes,
		      struct gmem_host_look *look)
{
	unsigned int count = workers < GMEM_MAX_HANDS ? workers : GMEM_MAX_HANDS;

	hands->all = count > 1 ? calloc(count, sizeof(*hands->all)) : NULL;
	hands->count = hands->all ? count : 1;
	if (!hands->all)
		hands->all = &hands->one;
	for (unsigned int i = 1; i < hands->count; i++)
		begin_hand(&hands->all[i], i);
	hands->all->look = look;
	if (hands->count > 1)
		begin_crew(hands, bytes >= THREADS_FROM ? hands->count - 1 : 0);
}

void gmem_hands_join(struct gmem_hands *hands)
{
	if (hands->count > 1)
		gmem_crew_join(&hands->crew);
}

void gmem_hands_dismiss(struct gmem_hands *hands)
{
	if (hands->count > 1)
		gmem_crew_dismiss(&hands->crew);
}

void gmem_hands_end(struct gmem_hands *hands)
{
	if (hands->count > 1) {
		gmem_crew_end(&hands->crew);
		for (unsigned int i = 1; i < hands->count; i++)
			gmem_host_look_end(hands->all[i].look);
		free(hands->all);
	}
	hands->count = 0;
}

static void note_failure(struct batch *batch, size_t piece)
{
	size_t first = __atomic_load_n(&batch->failed, __ATOMIC_RELAXED);

	while (piece < first &&
	       !__atomic_compare_exchange_n(&batch->failed, &first, piece, true, __ATOMIC_RELAXED,
					    __ATOMIC_RELAXED))
		;
}

static bool take_piece(struct batch *batch, struct lane *lane, size_t *ret)
{
	*ret = __atomic_fetch_add(&lane->next, 1, __ATOMIC_RELAXED);
	return *ret < lane->end && *ret < __atomic_load_n(&batch->failed, __ATOMIC_RELAXED);
}

/* Each lane goes up, so nothing in front of a piece that failed is left out. */
static void do_pieces(struct batch *batch, struct gmem_hand *hand)
{
	size_t piece;

	for (unsigned int i = 0; i < batch->lane_count; i++) {
		hand->is_elsewhere = hand->may_move;
		while (take_piece(batch, &batch->lanes[(hand->number + i) % batch->lane_count], &piece))
			if (!batch->fn(batch->data, hand, piece))
				note_failure(batch, piece);
	}
}

void gmem_hand_come(struct gmem_hand *hand, const void *hva)
{
	if (hand->is_elsewhere)
		gmem_numa_move_thread(&hand->numa, hva);
	hand->is_elsewhere = false;
}

static void work(void *data)
{
	struct batch *batch = data;
	const struct gmem_crew *crew = &batch->hands->crew;
	unsigned int number = gmem_crew_number(crew);

	if (!number && !pthread_equal(pthread_self(), batch->leader))
		number = crew->count + __atomic_add_fetch(&batch->joined, 1, __ATOMIC_RELAXED);
	/* More threads may have been lent than the user wants to work. */
	if (number < batch->hands->count)
		do_pieces(batch, &batch->hands->all[number]);
}

size_t gmem_hands_run(struct gmem_hands *hands, gmem_batch_fn fn, void *data, size_t count)
{
	struct batch batch = { .hands = hands, .fn = fn, .data = data, .failed = count,
			       .leader = pthread_self() };

	batch.lane_count = hands->count < count ? hands->count : (unsigned int)count;
	for (size_t i = 0; i < batch.lane_count; i++)
		batch.lanes[i] = (struct lane){ i * count / batch.lane_count,
						(i + 1) * count / batch.lane_count };
	if (batch.lane_count > 1)
		gmem_crew_run(&hands->crew, work, &batch);
	else
		work(&batch);
	return batch.failed;
}
