/* SPDX-License-Identifier: MIT */
#include "region/dirty_pages.h"

#include <errno.h>
#include <stdlib.h>

#include "base/error.h"
#include "base/lock.h"
#include "os/sys.h"
#include "region/vm_core.h"

#define GIB_SHIFT	30
#define CHUNK		(UINT64_C(1) << GMEM_DIRTY_CHUNK_SHIFT)
#define CACHE_LINE	64
#define AHEAD		12	/* words of a bitmap, whose marks are fetched meanwhile */
#define LAST_GPA	((UINT64_C(1) << 52) - 1)

/* ---- room ---- */

struct gmem_dirty_pages *gmem_dirty_pages_new(void)
{
	struct gmem_dirty_pages *dirty = calloc(1, sizeof(*dirty));

	if (!dirty) {
		gmem_fail(-ENOMEM, "no memory to mark what is written");
		return NULL;
	}
	dirty->period = 1;
	dirty->page_shift = (uint32_t)__builtin_ctzll(gmem_sys_page_size());
	return dirty;
}

void gmem_dirty_pages_free(struct gmem_dirty_pages *dirty)
{
	if (!dirty)
		return;
	for (unsigned int i = 0; i < GMEM_DIRTY_TOPS; i++) {
		for (unsigned int j = 0; dirty->tops[i] && j < GMEM_DIRTY_TOP_GIBS; j++)
			free(dirty->tops[i]->gibs[j]);
		free(dirty->tops[i]);
	}
	free(dirty);
}

static int prepare_gib(struct gmem_dirty_pages *dirty, uint64_t gib)
{
	struct gmem_dirty_top **top = &dirty->tops[gib / GMEM_DIRTY_TOP_GIBS];
	struct gmem_dirty_gib *marks, **at;

	if (!*top) {
		struct gmem_dirty_top *new = calloc(1, sizeof(*new));

		if (!new)
			return -ENOMEM;
		__atomic_store_n(top, new, __ATOMIC_RELEASE);
	}

	at = &(*top)->gibs[gib % GMEM_DIRTY_TOP_GIBS];
	if (*at)
		return 0;
	marks = calloc(1, sizeof(*marks) + (sizeof(marks->pages[0]) << (GIB_SHIFT - dirty->page_shift)));
	if (!marks)
		return -ENOMEM;
	__atomic_store_n(at, marks, __ATOMIC_RELEASE);
	return 0;
}

int gmem_dirty_pages_prepare(struct gmem_dirty_pages *dirty, uint64_t gpa, uint64_t size)
{
	uint64_t last = gpa + (size - 1);
	int err = 0;

	last = last < LAST_GPA ? last : LAST_GPA;
	for (uint64_t gib = gpa >> GIB_SHIFT; gib <= last >> GIB_SHIFT && !err; gib++)
		err = prepare_gib(dirty, gib);
	return err ? gmem_fail(err, "no memory to mark what is written") : 0;
}

/* ---- marks ---- */

static void raise_mark(uint32_t *mark, uint32_t period)
{
	uint32_t old = __atomic_load_n(mark, __ATOMIC_RELAXED);

	while (old < period && !__atomic_compare_exchange_n(mark, &old, period, true, __ATOMIC_RELEASE,
							     __ATOMIC_RELAXED))
		;
}

static void set_mark(uint32_t *mark, uint32_t period)
{
	__atomic_store_n(mark, period, __ATOMIC_RELEASE);
}

static inline uint64_t chunk_of(uint64_t gpa)
{
	return gpa >> GMEM_DIRTY_CHUNK_SHIFT & (GMEM_DIRTY_CHUNKS - 1);
}

static inline uint64_t page_of(const struct gmem_dirty_pages *dirty, uint64_t gpa)
{
	return (gpa & ((UINT64_C(1) << GIB_SHIFT) - 1)) >> dirty->page_shift;
}

/* In one chunk; the chunk's mark is stored first, see the header. */
static inline __attribute__((always_inline)) void
mark_part(const struct gmem_dirty_pages *dirty, uint64_t gpa, uint64_t last, uint32_t period,
	  void (*set)(uint32_t *mark, uint32_t period))
{
	struct gmem_dirty_gib *gib = gmem_dirty_gib_at(dirty, gpa);

	if (!gib)
		return;
	set(&gib->any[chunk_of(gpa)], period);
	if (last - gpa == CHUNK - 1) {
		set(&gib->all[chunk_of(gpa)], period);
		return;
	}
	for (uint64_t page = page_of(dirty, gpa); page <= page_of(dirty, last); page++)
		set(&gib->pages[page], period);
}

static inline __attribute__((always_inline)) void
mark(const struct gmem_dirty_pages *dirty, uint64_t gpa, uint64_t size, uint32_t period,
     void (*set)(uint32_t *mark, uint32_t period))
{
	uint64_t last = gpa + (size - 1), end;

	last = last < LAST_GPA && last >= gpa ? last : LAST_GPA;
	for (; size && gpa <= last; gpa = end + 1) {
		end = gpa | (CHUNK - 1);
		end = end < last ? end : last;
		mark_part(dirty, gpa, end, period, set);
	}
}

void gmem_dirty_pages_mark_in_view(struct gmem_dirty_pages *dirty, uint64_t gpa, uint64_t size)
{
	uint32_t period, now = __atomic_load_n(&dirty->period, __ATOMIC_RELAXED);

	do {
		period = now;
		mark(dirty, gpa, size, period, raise_mark);
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		now = __atomic_load_n(&dirty->period, __ATOMIC_RELAXED);
	} while (now != period);
}

void gmem_dirty_pages_mark(struct gmem_dirty_pages *dirty, uint64_t gpa, uint64_t size)
{
	mark(dirty, gpa, size, dirty->period, set_mark);
}

/* Pages of one chunk, a bit each: its mark before theirs, see the header */
static void mark_word_in_chunk(const struct gmem_dirty_pages *dirty, uint64_t gpa, uint64_t word)
{
	struct gmem_dirty_gib *gib = gmem_dirty_gib_at(dirty, gpa);
	uint32_t period = dirty->period, *pages;

	if (!gib)
		return;
	set_mark(&gib->any[chunk_of(gpa)], period);
	__atomic_thread_fence(__ATOMIC_RELEASE);
	pages = &gib->pages[page_of(dirty, gpa)];
	if (word == UINT64_MAX)
		for (unsigned int i = 0; i < 64; i++)
			__atomic_store_n(&pages[i], period, __ATOMIC_RELAXED);
	else
		for (; word; word &= word - 1)
			__atomic_store_n(&pages[__builtin_ctzll(word)], period, __ATOMIC_RELAXED);
}

/* A region may begin anywhere in a chunk, and a chunk of large pages has fewer than 64. */
static void mark_word(const struct gmem_dirty_pages *dirty, uint64_t gpa, uint64_t word)
{
	uint64_t left = (CHUNK - (gpa & (CHUNK - 1))) >> dirty->page_shift, bits;

	while (word && left < 64) {
		bits = word & ((UINT64_C(1) << left) - 1);
		if (bits)
			mark_word_in_chunk(dirty, gpa, bits);
		word >>= left;
		gpa += left << dirty->page_shift;
		left = CHUNK >> dirty->page_shift;
	}
	if (word)
		mark_word_in_chunk(dirty, gpa, word);
}

/* Marks of pages far apart are in no cache: that takes longer than all else here. */
static void expect_word(const struct gmem_dirty_pages *dirty, uint64_t gpa)
{
	const struct gmem_dirty_gib *gib = gmem_dirty_gib_at(dirty, gpa);
	const char *marks;

	if (!gib)
		return;
	marks = (const char *)&gib->pages[page_of(dirty, gpa)];
	for (unsigned int i = 0; i < 64 * sizeof(uint32_t); i += CACHE_LINE)
		__builtin_prefetch(marks + i, 1);
}

/* How many words of a bitmap, all bits set, are the whole chunk that begins at @gpa; 0: they are not */
static uint64_t find_whole_chunk(const struct gmem_dirty_pages *dirty, uint64_t gpa,
				 const uint64_t *words, uint64_t count)
{
	uint64_t needed = CHUNK >> (6 + dirty->page_shift);

	if (gpa & (CHUNK - 1) || !needed || count < needed)
		return 0;
	for (uint64_t i = 0; i < needed; i++)
		if (words[i] != UINT64_MAX)
			return 0;
	return needed;
}

void gmem_dirty_pages_mark_bits(struct gmem_dirty_pages *dirty, uint64_t gpa, const uint64_t *bitmap,
				uint64_t pages)
{
	uint64_t whole = pages / 64, word_size = UINT64_C(64) << dirty->page_shift, i = 0, chunk;

	while (i < whole) {
		while (i + 8 <= whole && gmem_dirty_words_are_clean(bitmap + i))
			i += 8;
		if (i == whole)
			break;
		if (i + AHEAD < whole && bitmap[i + AHEAD])
			expect_word(dirty, gpa + (i + AHEAD) * word_size);
		chunk = bitmap[i] == UINT64_MAX ?
			find_whole_chunk(dirty, gpa + i * word_size, bitmap + i, whole - i) : 0;
		if (chunk)
			mark(dirty, gpa + i * word_size, CHUNK, dirty->period, set_mark);
		else if (bitmap[i])
			mark_word(dirty, gpa + i * word_size, bitmap[i]);
		i += chunk ? chunk : 1;
	}
	if (pages % 64)
		mark_word(dirty, gpa + i * word_size, bitmap[i] & ((UINT64_C(1) << pages % 64) - 1));
}

void gmem_vm_mark_dirty(struct gmem_vm *vm, uint64_t gpa, uint64_t size)
{
	if (!__atomic_load_n(&vm->newest.dirty, __ATOMIC_ACQUIRE))
		return;

	gmem_lock_take(&vm->lock);
	if (vm->newest.dirty)
		gmem_dirty_pages_mark(vm->newest.dirty, gpa, size);
	gmem_lock_drop(&vm->lock);
}

/* ---- periods ---- */

static void start_over(struct gmem_dirty_gib *gib, uint32_t page_shift)
{
	uint64_t count = 2 * GMEM_DIRTY_CHUNKS + (UINT64_C(1) << (GIB_SHIFT - page_shift));

	for (uint64_t i = 0; i < count; i++)
		set_mark(&gib->any[0] + i, 1);
}

/* A view that marks meanwhile, with the last period, has its page told for ever: not missed. */
static void start_all_over(struct gmem_dirty_pages *dirty)
{
	for (unsigned int i = 0; i < GMEM_DIRTY_TOPS; i++)
		for (unsigned int j = 0; dirty->tops[i] && j < GMEM_DIRTY_TOP_GIBS; j++)
			if (dirty->tops[i]->gibs[j])
				start_over(dirty->tops[i]->gibs[j], dirty->page_shift);
}

uint32_t gmem_dirty_pages_begin_period(struct gmem_dirty_pages *dirty)
{
	uint32_t next = dirty->period + 1;

	if (!next)
		start_all_over(dirty);
	__atomic_store_n(&dirty->period, next ? next : 2, __ATOMIC_SEQ_CST);
	return next;
}

/* ---- looking ---- */

/* The first of the marks in [@first, @end) that is in @since or later, or is not; or @end */
static uint64_t find(const uint32_t *marks, uint32_t since, bool is_marked, uint64_t first, uint64_t end)
{
	while (first < end &&
	       (__atomic_load_n(&marks[first], __ATOMIC_ACQUIRE) >= since) != is_marked)
		first++;
	return first;
}

/*
 * Find the end of what is marked from @gpa on, or is not, as far as one GiB tells, in the
 * bounds of [@gpa, @last].
 */
static uint64_t find_in_chunk(const struct gmem_dirty_pages *dirty, const struct gmem_dirty_gib *gib,
			      uint32_t since, bool is_marked, uint64_t gpa, uint64_t last)
{
	uint64_t chunk = chunk_of(gpa), end = (gpa | (CHUNK - 1)) < last ? gpa | (CHUNK - 1) : last, page;
	bool any = gib && __atomic_load_n(&gib->any[chunk], __ATOMIC_ACQUIRE) >= since;
	bool all = any && __atomic_load_n(&gib->all[chunk], __ATOMIC_ACQUIRE) >= since;

	/* A mark of 0 is as old as can be, and still not older than the period 0. */
	if (!since || all || !any)
		return (!since || all) == is_marked ? gpa : end + 1;

	page = find(gib->pages, since, is_marked, page_of(dirty, gpa), page_of(dirty, end) + 1);
	if (page > page_of(dirty, end))
		return end + 1;
	page = (gpa & ~((UINT64_C(1) << GIB_SHIFT) - 1)) + (page << dirty->page_shift);
	return page > gpa ? page : gpa;
}

/* The first address in [@gpa, @last] that is marked, or is not; or @last + 1 */
static uint64_t find_address(const struct gmem_dirty_pages *dirty, uint32_t since, bool is_marked,
			     uint64_t gpa, uint64_t last)
{
	uint64_t at;

	while (gpa <= last) {
		const struct gmem_dirty_gib *gib = gmem_dirty_gib_at(dirty, gpa);

		at = find_in_chunk(dirty, gib, since, is_marked, gpa, last);
		if (at <= (gpa | (CHUNK - 1)) && at <= last)
			return at;
		gpa = at;
	}
	return last + 1;
}

bool gmem_dirty_pages_next(const struct gmem_dirty_pages *dirty, uint32_t since, uint64_t gpa,
			   uint64_t last, struct gmem_part *ret)
{
	last = last < LAST_GPA ? last : LAST_GPA;
	if (gpa > last)
		return false;
	gpa = find_address(dirty, since, true, gpa, last);
	if (gpa > last)
		return false;
	*ret = (struct gmem_part){ gpa, find_address(dirty, since, false, gpa, last) - 1 };
	return true;
}

uint64_t gmem_dirty_pages_count(const struct gmem_dirty_pages *dirty, uint32_t since, uint64_t gpa,
				uint64_t last)
{
	struct gmem_part part;
	uint64_t bytes = 0;

	while (gmem_dirty_pages_next(dirty, since, gpa, last, &part)) {
		bytes += part.last - part.start + 1;
		if (part.last == last)
			break;
		gpa = part.last + 1;
	}
	return bytes;
}
