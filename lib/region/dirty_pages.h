/* SPDX-License-Identifier: MIT */
/*
 * dirty_pages: when each page of guest memory was changed last.
 *
 * Time is counted in periods. A page has the number of the period in which it was marked last.
 * Marks are compared and never cleared, so trackers (dirty/tracker.h) take nothing from each
 * other: each knows the period since which it wants to know. A mark of 0 is older than all.
 *
 * Pages are the host's, found by their guest address. A chunk of 2 MiB has two marks of its
 * own: when one of its pages was marked last, so that what is clean costs nothing to look
 * through, and when all of them were. A page's mark is the later one of its own and that.
 *
 * Why no change is missed. W stores to guest memory, then marks; C, which collects, begins a
 * new period, fences, and then looks at the marks and reads what the marked pages hold.
 *
 *   W1  store to guest memory              C1  period + 1, known_period + 1
 *   W2  load the page's mark               C2  fence: membarrier(2), see below
 *   W3  load known_period                  C3  load marks
 *   W4  if they differ: load the period,   C4  read pages
 *       raise the marks of chunk and page,
 *       in this order, to it; fence; load
 *       it again: once more if it differs
 *
 * A fence of C2 is somewhere in W. Before W2: then W3 sees C1, and the page gets a mark that
 * the next collection finds, or has it already from somebody for whom the same is true. After
 * W3: if the two were alike, W2 saw a mark that C3 sees, too, and C4 sees W1. If they were not,
 * either C3 sees the marks of W4, or W4 sees C1 when it looks again; and C4 sees W1 if W4 does
 * not see C1. Between W2 and W3: a mark that W2 saw before C1 differs from what W3 sees. W2
 * acquires, so that the chunk's mark, which is stored first, is seen by whoever sees the page's.
 *
 * Where membarrier(2) is not to be had, known_period is none, each W comes to W4, and the fences
 * there and in C2 do it alone: W1 is before the one if C1 is after it.
 *
 * W4 raises a mark by compare-exchange, so that who comes late with an old period does not take
 * back a newer one. Who has the VM's lock, with which C1 is done, too, needs neither that nor
 * a fence.
 *
 * Marks are made in a period of a view (view/view.h), or with the VM's lock, and so end before
 * the memory of the marks is freed.
 */
#ifndef GMEM_DIRTY_PAGES_H
#define GMEM_DIRTY_PAGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/part.h"

struct gmem_vm;

#define GMEM_DIRTY_CHUNK_SHIFT	21
#define GMEM_DIRTY_CHUNKS	512	/* of a GiB */

/* All numbers are atomic. */
struct gmem_dirty_gib {
	uint32_t any[GMEM_DIRTY_CHUNKS];	/* a page of the chunk was marked last, and */
	uint32_t all[GMEM_DIRTY_CHUNKS];	/* all of its pages were */
	uint32_t pages[];
};

#define GMEM_DIRTY_TOPS		1024	/* no processor has more than 52 bits of guest address */
#define GMEM_DIRTY_TOP_GIBS	4096
#define GMEM_DIRTY_TOP_SHIFT	42	/* so many GiB */

struct gmem_dirty_top {
	struct gmem_dirty_gib *gibs[GMEM_DIRTY_TOP_GIBS];	/* NULL: there is no memory */
};

/* In the place of a period: no page has this mark. */
#define GMEM_DIRTY_NO_PERIOD	UINT32_MAX

/* Numbers and pointers are atomic, but for page_shift. */
struct gmem_dirty_pages {
	struct gmem_dirty_top first;
	uint32_t known_period;		/* the next, or GMEM_DIRTY_NO_PERIOD where W needs a fence of its own */
	uint32_t period;		/* never 0 */
	uint32_t page_shift;
	struct gmem_dirty_top *tops[GMEM_DIRTY_TOPS];	/* the first is @first */
};

/* Pages of x86_64 have one size, and there a shift by a variable number takes long. */
static inline uint32_t gmem_dirty_page_shift(const struct gmem_dirty_pages *dirty)
{
#if defined(__x86_64__)
	(void)dirty;
	return 12;
#else
	return dirty->page_shift;
#endif
}

/*
 * W2 and W3, below 4 TiB, in a view's period: whether the page is known to be marked. If not,
 * it is for gmem_dirty_pages_mark_in_view().
 */
static inline bool gmem_dirty_page_is_marked(const struct gmem_dirty_pages *dirty, uint64_t gpa)
{
	const struct gmem_dirty_gib *gib;
	uint32_t mark, shift;

	gib = __atomic_load_n(&dirty->first.gibs[gpa >> 30], __ATOMIC_ACQUIRE);
	shift = gmem_dirty_page_shift(dirty);
	if (__builtin_expect(!gib, 0))
		return false;
	/* By bytes, which takes an instruction less */
	mark = __atomic_load_n((const uint32_t *)(const void *)((const char *)gib + sizeof(*gib) +
								(gpa >> (shift - 2) & (UINT32_MAX >> shift & ~3u))),
			       __ATOMIC_ACQUIRE);
	return __builtin_expect(mark == __atomic_load_n(&dirty->known_period, __ATOMIC_RELAXED), 1);
}

/* Nothing is marked, and there is no memory yet. NULL with a sentence: -ENOMEM. */
struct gmem_dirty_pages *gmem_dirty_pages_new(void);
void gmem_dirty_pages_free(struct gmem_dirty_pages *dirty);
/* Have room for the marks of a range: -ENOMEM. With the hook lock. */
int gmem_dirty_pages_prepare(struct gmem_dirty_pages *dirty, uint64_t gpa, uint64_t size);

/* There is no membarrier(2), or no longer. For whoever has the views' lock. */
void gmem_dirty_pages_need_fences(struct gmem_dirty_pages *dirty);

/*
 * Mark all pages of a range, any alignment; what there is no room for is left out: by a view in
 * its period, as W4,
 */
void gmem_dirty_pages_mark_in_view(struct gmem_dirty_pages *dirty, uint64_t gpa, uint64_t size);
/* or with the VM's lock. */
void gmem_dirty_pages_mark(struct gmem_dirty_pages *dirty, uint64_t gpa, uint64_t size);
/* The same for the pages of a bitmap as KVM_GET_DIRTY_LOG has it, the first of them at @gpa */
void gmem_dirty_pages_mark_bits(struct gmem_dirty_pages *dirty, uint64_t gpa, const uint64_t *bitmap,
				uint64_t pages);
/* Of 8 words of such a bitmap */
static inline bool gmem_dirty_words_are_clean(const uint64_t *words)
{
	return !(words[0] | words[1] | words[2] | words[3] | words[4] | words[5] | words[6] | words[7]);
}
/*
 * Mark what was changed in the VM's memory, if there is a tracker. Takes the VM's lock. Who has
 * changed many ranges may ask first.
 */
bool gmem_vm_is_tracked(const struct gmem_vm *vm);
void gmem_vm_mark_dirty(struct gmem_vm *vm, uint64_t gpa, uint64_t size);

/*
 * C1, with the VM's lock: returns the period that begins, or 0 after 2^32 - 2 of them: then no
 * mark is later than period 1, and 2 begins.
 */
uint32_t gmem_dirty_pages_begin_period(struct gmem_dirty_pages *dirty);

/* Find the first run of pages in [@gpa, @last] that were marked in the period @since or later. */
bool gmem_dirty_pages_next(const struct gmem_dirty_pages *dirty, uint32_t since, uint64_t gpa,
			   uint64_t last, struct gmem_part *ret);
/* Count their bytes. @gpa and @last + 1 are multiples of the page. */
uint64_t gmem_dirty_pages_count(const struct gmem_dirty_pages *dirty, uint32_t since, uint64_t gpa,
				uint64_t last);

#endif
