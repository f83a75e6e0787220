/* SPDX-License-Identifier: MIT */
#include "region/dirty_pages.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/error.h"
#include "base/fence.h"
#include "base/lock.h"
#include "os/sys.h"
#include "region/vm_core.h"

#define GIB_SHIFT	30
#define GIB		(UINT64_C(1) << GIB_SHIFT)
#define TOP		(GIB * GMEM_DIRTY_TOP_GIBS)
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
	dirty->page_shift = (uint32_t)__builtin_ctzll(gmem_sys_page_size());
	dirty->tops[0] = &dirty->first;
	dirty->period = 1;
	/* A test may say that pages are larger: then nobody may ask for one by its address. */
	dirty->known_period = dirty->page_shift == gmem_dirty_page_shift(dirty) ? 1 : GMEM_DIRTY_NO_PERIOD;
	return dirty;
}

static uint64_t pages_of_gib(const struct gmem_dirty_pages *dirty)
{
	return GIB >> dirty->page_shift;
}

static uint64_t bytes_of_gib(const struct gmem_dirty_pages *dirty)
{
	uint64_t pages = pages_of_gib(dirty), page = UINT64_C(1) << dirty->page_shift;

	return (sizeof(struct gmem_dirty_gib) + pages * sizeof(uint32_t) + page - 1) / page * page;
}

static void free_top(const struct gmem_dirty_pages *dirty, struct gmem_dirty_top *top)
{
	for (unsigned int i = 0; top && i < GMEM_DIRTY_TOP_GIBS; i++)
		if (top->gibs[i])
			gmem_sys_munmap(top->gibs[i], bytes_of_gib(dirty));
	if (top != &dirty->first)
		free(top);
}

void gmem_dirty_pages_free(struct gmem_dirty_pages *dirty)
{
	for (unsigned int i = 0; dirty && i < GMEM_DIRTY_TOPS; i++)
		free_top(dirty, dirty->tops[i]);
	free(dirty);
}

static struct gmem_dirty_top *prepare_top(struct gmem_dirty_pages *dirty, uint64_t number)
{
	struct gmem_dirty_top *top = dirty->tops[number];

	if (!top) {
		top = calloc(1, sizeof(*top));
		__atomic_store_n(&dirty->tops[number], top, __ATOMIC_RELEASE);
	}
	return top;
}

/* Mapped, so that what is never marked takes no memory, whatever was freed before */
static int prepare_gib(struct gmem_dirty_pages *dirty, uint64_t gib)
{
	struct gmem_dirty_top *top = prepare_top(dirty, gib / GMEM_DIRTY_TOP_GIBS);
	void *marks;
	int err;

	if (!top)
		return -ENOMEM;
	if (top->gibs[gib % GMEM_DIRTY_TOP_GIBS])
		return 0;
	err = gmem_sys_mmap(NULL, bytes_of_gib(dirty), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			    -1, 0, &marks);
	if (err)
		return err;
	__atomic_store_n(&top->gibs[gib % GMEM_DIRTY_TOP_GIBS], marks, __ATOMIC_RELEASE);
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
	return (gpa & (GIB - 1)) >> dirty->page_shift;
}

/* In one chunk; the chunk's mark is stored first, see the header. */
static inline __attribute__((always_inline)) void
mark_part(const struct gmem_dirty_pages *dirty, struct gmem_dirty_gib *gib, uint64_t gpa, uint64_t last,
	  uint32_t period, void (*set)(uint32_t *mark, uint32_t period))
{
	set(&gib->any[chunk_of(gpa)], period);
	if (last - gpa == CHUNK - 1) {
		set(&gib->all[chunk_of(gpa)], period);
		return;
	}
	for (uint64_t page = page_of(dirty, gpa); page <= page_of(dirty, last); page++)
		set(&gib->pages[page], period);
}

static struct gmem_dirty_top *top_at(const struct gmem_dirty_pages *dirty, uint64_t gpa)
{
	return __atomic_load_n(&dirty->tops[gpa / TOP], __ATOMIC_ACQUIRE);
}

static struct gmem_dirty_gib *gib_in(const struct gmem_dirty_top *top, uint64_t gpa)
{
	return __atomic_load_n(&top->gibs[gpa / GIB % GMEM_DIRTY_TOP_GIBS], __ATOMIC_ACQUIRE);
}

/*
 * Finds the first GiB from *@gpa on that has room for marks, in which *@gpa then is. Returns
 * NULL, with *@gpa behind @last, if there is none.
 */
static struct gmem_dirty_gib *find_gib(const struct gmem_dirty_pages *dirty, uint64_t *gpa, uint64_t last)
{
	const struct gmem_dirty_top *top;
	struct gmem_dirty_gib *gib;

	while (*gpa <= last) {
		top = top_at(dirty, *gpa);
		gib = top ? gib_in(top, *gpa) : NULL;
		if (gib)
			return gib;
		*gpa = (*gpa | ((top ? GIB : TOP) - 1)) + 1;
	}
	return NULL;
}

/* NULL: there is no room */
static struct gmem_dirty_gib *gib_at(const struct gmem_dirty_pages *dirty, uint64_t gpa)
{
	const struct gmem_dirty_top *top = gpa <= LAST_GPA ? top_at(dirty, gpa) : NULL;

	return top ? gib_in(top, gpa) : NULL;
}

static inline uint64_t end_of_chunk(uint64_t gpa, uint64_t last)
{
	uint64_t end = gpa | (CHUNK - 1);

	return end < last ? end : last;
}

static inline __attribute__((always_inline)) void
mark(const struct gmem_dirty_pages *dirty, uint64_t gpa, uint64_t size, uint32_t period,
     void (*set)(uint32_t *mark, uint32_t period))
{
	uint64_t last = gpa + (size - 1), end;
	struct gmem_dirty_gib *gib;

	last = last < LAST_GPA && last >= gpa ? last : LAST_GPA;
	while (size && (gib = find_gib(dirty, &gpa, last))) {
		end = end_of_chunk(gpa, last);
		mark_part(dirty, gib, gpa, end, period, set);
		gpa = end + 1;
	}
}

/* W4 */
void gmem_dirty_pages_mark_in_view(struct gmem_dirty_pages *dirty, uint64_t gpa, uint64_t size)
{
	uint32_t period, now = __atomic_load_n(&dirty->period, __ATOMIC_RELAXED);

	do {
		period = now;
		mark(dirty, gpa, size, period, raise_mark);
		gmem_fence();
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
	struct gmem_dirty_gib *gib = gib_at(dirty, gpa);
	uint32_t period = dirty->period, *pages;

	if (!gib)
		return;
	set_mark(&gib->any[chunk_of(gpa)], period);
	gmem_release_fence();
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
	const struct gmem_dirty_gib *gib = gib_at(dirty, gpa);
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

/* Relaxed: it is looked at again with the lock. Who is told that there is none began before it. */
bool gmem_vm_is_tracked(const struct gmem_vm *vm)
{
	return __atomic_load_n(&vm->newest.dirty, __ATOMIC_RELAXED) != NULL;
}

void gmem_vm_mark_dirty(struct gmem_vm *vm, uint64_t gpa, uint64_t size)
{
	if (!gmem_vm_is_tracked(vm))
		return;

	gmem_lock_take(&vm->lock);
	if (vm->newest.dirty)
		gmem_dirty_pages_mark(vm->newest.dirty, gpa, size);
	gmem_lock_drop(&vm->lock);
}

/* ---- periods ---- */

/* The three arrays follow each other. Most marks are 0, and have no memory. */
static void start_over(struct gmem_dirty_gib *gib, uint64_t pages)
{
	for (uint64_t i = 0; i < 2 * GMEM_DIRTY_CHUNKS + pages; i++)
		if (__atomic_load_n(&gib->any[0] + i, __ATOMIC_RELAXED))
			set_mark(&gib->any[0] + i, 1);
}

/* A view that marks meanwhile, with the last period, has its page told for ever: not missed. */
static void start_all_over(const struct gmem_dirty_pages *dirty)
{
	struct gmem_dirty_gib *gib;
	uint64_t gpa = 0;

	for (; (gib = find_gib(dirty, &gpa, LAST_GPA)); gpa += GIB)
		start_over(gib, pages_of_gib(dirty));
}

uint32_t gmem_dirty_pages_begin_period(struct gmem_dirty_pages *dirty)
{
	uint32_t known = dirty->period;
	bool is_last = known + 1 == GMEM_DIRTY_NO_PERIOD;
	uint32_t next = is_last ? 2 : known + 1;

	if (is_last)
		start_all_over(dirty);
	__atomic_store_n(&dirty->period, next, __ATOMIC_SEQ_CST);
	/* It may become none at any time, and stays so. */
	__atomic_compare_exchange_n(&dirty->known_period, &known, next, false, __ATOMIC_SEQ_CST,
				    __ATOMIC_RELAXED);
	return is_last ? 0 : next;
}

void gmem_dirty_pages_need_fences(struct gmem_dirty_pages *dirty)
{
	__atomic_store_n(&dirty->known_period, GMEM_DIRTY_NO_PERIOD, __ATOMIC_RELEASE);
}

/* ---- looking ---- */

static inline uint32_t mark_of(const uint32_t *mark)
{
	return __atomic_load_n(mark, __ATOMIC_ACQUIRE);
}

/* As many marks as are looked at with one instruction; each of them is loaded at once. */
typedef uint32_t marks_at_once __attribute__((vector_size(16), aligned(4), may_alias));
#define AT_ONCE 16

/*
 * Whether @AT_ONCE marks are all of @since or later, or none is. To see a mark so acquires nothing:
 * one that is of a period before C1 was made before the fence of C2, and one of a later period is
 * told again.
 */
static inline bool __attribute__((no_sanitize("thread")))
are_alike(const uint32_t *marks, uint32_t since, bool are_marked)
{
	const marks_at_once *at = (const marks_at_once *)(const void *)marks;
	const marks_at_once when = { since, since, since, since };
	uint64_t words[2];
	marks_at_once found;

	if (are_marked)
		found = (marks_at_once)((at[0] < when) | (at[1] < when) | (at[2] < when) | (at[3] < when));
	else
		found = (marks_at_once)((at[0] >= when) | (at[1] >= when) | (at[2] >= when) | (at[3] >= when));
	memcpy(words, &found, sizeof(words));
	return !(words[0] | words[1]);
}

/* The first of the marks in [@first, @end) that is of @since or later, or is not; or @end */
static uint64_t find(const uint32_t *marks, uint32_t since, bool is_marked, uint64_t first, uint64_t end)
{
	while (end - first >= AT_ONCE && are_alike(&marks[first], since, !is_marked))
		first += AT_ONCE;
	while (first < end && (mark_of(&marks[first]) >= since) != is_marked)
		first++;
	return first;
}

/* Of the pages of one chunk: where the first of them begins that is marked, or is not, or @last + 1 */
static uint64_t find_page(const struct gmem_dirty_pages *dirty, const struct gmem_dirty_gib *gib,
			  uint32_t since, bool is_marked, uint64_t gpa, uint64_t last)
{
	uint64_t page = find(gib->pages, since, is_marked, page_of(dirty, gpa), page_of(dirty, last) + 1);

	if (page > page_of(dirty, last))
		return last + 1;
	page = (gpa & ~(GIB - 1)) + (page << dirty->page_shift);
	return page > gpa ? page : gpa;
}

/* The first address in [@gpa, @last] that is marked; or @last + 1 */
static uint64_t find_marked(const struct gmem_dirty_pages *dirty, uint32_t since, uint64_t gpa, uint64_t last)
{
	const struct gmem_dirty_gib *gib;
	uint64_t end, chunk, at;

	while ((gib = find_gib(dirty, &gpa, last))) {
		end = (gpa | (GIB - 1)) < last ? gpa | (GIB - 1) : last;
		chunk = find(gib->any, since, true, chunk_of(gpa), chunk_of(end) + 1);
		if (chunk > chunk_of(gpa))
			gpa = (gpa & ~(GIB - 1)) + chunk * CHUNK;
		if (gpa > end)
			continue;

		end = end_of_chunk(gpa, last);
		at = mark_of(&gib->all[chunk]) >= since ? gpa : find_page(dirty, gib, since, true, gpa, end);
		if (at <= end)
			return at;
		gpa = end + 1;
	}
	return last + 1;
}

/* The first that is not, after one that is */
static uint64_t find_unmarked(const struct gmem_dirty_pages *dirty, uint32_t since, uint64_t gpa,
			      uint64_t last)
{
	const struct gmem_dirty_gib *gib;
	uint64_t end, at;

	for (; gpa <= last; gpa = end + 1) {
		end = gpa;
		gib = find_gib(dirty, &end, last);
		if (!gib || end != gpa || mark_of(&gib->any[chunk_of(gpa)]) < since)
			return gpa;
		end = end_of_chunk(gpa, last);
		if (mark_of(&gib->all[chunk_of(gpa)]) >= since)
			continue;
		at = find_page(dirty, gib, since, false, gpa, end);
		if (at <= end)
			return at;
	}
	return last + 1;
}

bool gmem_dirty_pages_next(const struct gmem_dirty_pages *dirty, uint32_t since, uint64_t gpa,
			   uint64_t last, struct gmem_part *ret)
{
	last = last < LAST_GPA ? last : LAST_GPA;
	if (gpa > last)
		return false;
	/* A mark of 0 is as old as can be, and still not older than the period 0. */
	if (!since) {
		*ret = (struct gmem_part){ gpa, last };
		return true;
	}

	gpa = find_marked(dirty, since, gpa, last);
	if (gpa > last)
		return false;
	*ret = (struct gmem_part){ gpa, find_unmarked(dirty, since, gpa, last) - 1 };
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
