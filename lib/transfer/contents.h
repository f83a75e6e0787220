/* SPDX-License-Identifier: MIT */
/*
 * contents: which blocks of the memory that is saved have contents, found a few windows at a
 * time.
 *
 * A block has contents if its page exists and it is not zero, or if the hardware lost it. Of
 * most blocks with contents only the first bytes are read here. The threads of the transfer
 * look at windows side by side. What they find is read by any thread until the next look.
 *
 * If only what changed is saved, nothing else is looked at: there are windows where something
 * did, and in these the pages that did. Blocks that changed and are zero are found, too.
 */
#ifndef GMEM_CONTENTS_H
#define GMEM_CONTENTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dirty/tracker.h"

struct gmem_leased_range;
struct gmem_transfer;

/* Bytes of a window, and windows looked at in one step: see tell_progress() */
#define CONTENTS_WINDOW ((uint64_t)4 << 20)
#define CONTENTS_WINDOWS 16

/* Words of a window with a bit for each IMAGE_BLOCK */
#define CONTENTS_WORDS (CONTENTS_WINDOW / 4096 / 64)

struct gmem_contents_window {
	const struct gmem_leased_range *range;
	uint64_t offset;		/* in the range */
	uint64_t size;
	uint64_t done;			/* the transfer's bytes when it was taken */
	uint64_t data[CONTENTS_WORDS];
	uint64_t lost[CONTENTS_WORDS];
	uint64_t zero[CONTENTS_WORDS];	/* changed, and without contents */
};

/* The next block */
struct gmem_contents_place {
	size_t window;
	uint64_t block;
};

/* With zeros but for the first two, it is at the start of the memory. */
struct gmem_contents {
	struct gmem_transfer *transfer;
	struct gmem_dirty_image image;	/* without tracker or parent: all is saved */
	size_t range;			/* index of the range that is looked at next */
	uint64_t looked;		/* bytes of it that have been looked at */
	size_t count;
	struct gmem_contents_window windows[CONTENTS_WINDOWS];
};

enum gmem_contents_kind { CONTENTS_DATA, CONTENTS_LOST, CONTENTS_ZERO };

/* Neighbouring blocks of a kind */
struct gmem_contents_run {
	uint64_t gpa;
	const char *hva;
	uint64_t blocks;
	enum gmem_contents_kind kind;
};

/*
 * Look at the next windows: the first place of what is found is { 0 }. *@ret_any is false when
 * no memory is left. After a failure, what was found before it counts, and the next call tries
 * again.
 */
int gmem_contents_look(struct gmem_contents *contents, bool *ret_any);
/* Move @place to the next run and tell that; false: there is none in these windows. */
bool gmem_contents_next(const struct gmem_contents *contents, struct gmem_contents_place *place,
			struct gmem_contents_run *ret);
/*
 * The block at @place has contents and could not be read, with @err: note that it is lost, with
 * the rest of its page, or return an errno with a sentence.
 */
int gmem_contents_lose(struct gmem_contents *contents, struct gmem_contents_place place, int err);

#endif
