/* SPDX-License-Identifier: MIT */
/*
 * batch: the pieces of a step, shared out among the threads of a transfer.
 *
 * The pieces are numbered in the order in which one thread would do them. If one cannot be
 * done, all in front of it still are, and some behind it may be. Why it cannot be done nobody
 * asks: the calling thread does it again, alone, and finds out. So failures and counts are
 * those of one thread.
 */
#ifndef GMEM_BATCH_H
#define GMEM_BATCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/crew.h"
#include "base/numa_thread.h"
#include "region/host_look.h"

/* More threads find nothing to do in a step. */
#define GMEM_MAX_HANDS 64u

/* What each thread has to itself */
struct gmem_hand {
	struct gmem_host_look *look;
	struct gmem_host_look own_look;
	unsigned int number;		/* below the count */
	bool may_move;			/* always a thread of the library's, and there are several nodes */
	bool is_elsewhere;		/* it may move, and has come to another lane */
	struct gmem_numa_thread numa;
};

struct gmem_hands {
	struct gmem_crew crew;
	struct gmem_hand one;
	struct gmem_hand *all;		/* the first is the calling thread's; or &one */
	unsigned int count;
};

/* Returns whether the piece is done; what it has done otherwise may be done again. */
typedef bool (*gmem_batch_fn)(void *data, struct gmem_hand *hand, size_t piece);

/*
 * Have up to @workers threads, with the calling one, whose host look is @look; those that are
 * not lent are started, if there are @bytes worth it. Cannot fail: there may be fewer.
 */
void gmem_hands_begin(struct gmem_hands *hands, unsigned int workers, uint64_t bytes,
		      struct gmem_host_look *look);
/* The functions below do nothing for a struct of zeros. Lend the calling thread until the dismissal. */
void gmem_hands_join(struct gmem_hands *hands);
/* Wait until all threads have left: the calling one goes on alone. */
void gmem_hands_dismiss(struct gmem_hands *hands);
void gmem_hands_end(struct gmem_hands *hands);
/* A piece has its memory at @hva: have the thread near it, if hand->is_elsewhere. */
void gmem_hand_come(struct gmem_hand *hand, const void *hva);
/* Do @count pieces. Returns how many are done: all in front of the first that is not. */
size_t gmem_hands_run(struct gmem_hands *hands, gmem_batch_fn fn, void *data, size_t count);

#endif
