/* SPDX-License-Identifier: MIT */
/*
 * dirty_pages: marks against a plain model, at the borders of what they are kept in, and with
 * writers and collectors that race. Runs for GMEM_STRESS_SECONDS, 3 without.
 */
#include <errno.h>
#include <inttypes.h>
#include <linux/membarrier.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "base/fence.h"
#include "nofault/nofault.h"
#include "region/dirty_pages.h"
#include "unit.h"

#define KIB	UINT64_C(1024)
#define CHUNK	(UINT64_C(2) << 20)
#define GIB	(UINT64_C(1) << 30)
#define TOP	(UINT64_C(1) << 42)
#define LAST	((UINT64_C(1) << 52) - 1)

static const uint64_t page_sizes[] = { 4 * KIB, 16 * KIB, 64 * KIB };

static struct gmem_dirty_pages *begin(uint64_t page_size)
{
	struct gmem_dirty_pages *dirty;

	fake_boot("6.18");
	fake_set_page_size(page_size);
	dirty = gmem_dirty_pages_new();
	assert_non_null(dirty);
	return dirty;
}

static void end(struct gmem_dirty_pages *dirty)
{
	gmem_dirty_pages_free(dirty);
	assert_int_equal(fake_halt(), 0);
}

static void assert_next(const struct gmem_dirty_pages *dirty, uint32_t since, uint64_t gpa, uint64_t last,
			uint64_t start, uint64_t end)
{
	struct gmem_part part = { 1, 1 };

	assert_true(gmem_dirty_pages_next(dirty, since, gpa, last, &part));
	assert_int_equal(part.start, start);
	assert_int_equal(part.last, end);
}

static void assert_none(const struct gmem_dirty_pages *dirty, uint32_t since, uint64_t gpa, uint64_t last)
{
	struct gmem_part part = { 1, 2 };

	assert_false(gmem_dirty_pages_next(dirty, since, gpa, last, &part));
	assert_int_equal(part.start, 1);
	assert_int_equal(gmem_dirty_pages_count(dirty, since, gpa, last), 0);
}

/* ---- borders ---- */

static void marks_are_found_on_both_sides_of_borders(void **state)
{
	static const uint64_t borders[] = { CHUNK, GIB, 512 * GIB, TOP, 2 * TOP };

	(void)state;
	for (size_t p = 0; p < ARRAY_SIZE(page_sizes); p++)
		for (size_t i = 0; i < ARRAY_SIZE(borders); i++) {
			uint64_t page = page_sizes[p], at = borders[i];
			struct gmem_dirty_pages *dirty = begin(page);

			assert_int_equal(gmem_dirty_pages_prepare(dirty, at - page, 2 * page), 0);
			assert_none(dirty, 1, 0, LAST);
			gmem_dirty_pages_mark(dirty, at - 1, 2);
			assert_next(dirty, 1, 0, LAST, at - page, at + page - 1);
			assert_int_equal(gmem_dirty_pages_count(dirty, 1, 0, LAST), 2 * page);
			assert_next(dirty, 1, at, LAST, at, at + page - 1);
			assert_next(dirty, 1, at - 1, at, at - 1, at);
			assert_none(dirty, 1, at + page, LAST);
			assert_none(dirty, 2, 0, LAST);

			assert_int_equal(gmem_dirty_pages_begin_period(dirty), 2);
			assert_none(dirty, 2, 0, LAST);
			gmem_dirty_pages_mark_in_view(dirty, at, 1);
			assert_next(dirty, 2, 0, LAST, at, at + page - 1);
			assert_next(dirty, 1, 0, LAST, at - page, at + page - 1);
			end(dirty);
		}
}

static void addresses_without_room_are_left_out(void **state)
{
	struct gmem_dirty_pages *dirty = begin(4 * KIB);

	(void)state;
	gmem_dirty_pages_mark(dirty, 0, UINT64_MAX);
	assert_none(dirty, 1, 0, UINT64_MAX);
	assert_int_equal(gmem_dirty_pages_prepare(dirty, 5 * GIB, 1), 0);
	assert_int_equal(gmem_dirty_pages_prepare(dirty, LAST, 1), 0);
	gmem_dirty_pages_mark(dirty, 0, 0);
	gmem_dirty_pages_mark(dirty, LAST + 1, 4 * KIB);
	gmem_dirty_pages_mark(dirty, UINT64_MAX, 1);
	assert_none(dirty, 1, 0, UINT64_MAX);

	gmem_dirty_pages_mark_in_view(dirty, 1, UINT64_MAX);
	assert_next(dirty, 1, 0, UINT64_MAX, 5 * GIB, 6 * GIB - 1);
	assert_next(dirty, 1, 6 * GIB, UINT64_MAX, LAST + 1 - GIB, LAST);
	assert_int_equal(gmem_dirty_pages_count(dirty, 1, 0, UINT64_MAX), 2 * GIB);
	assert_next(dirty, 1, LAST, LAST, LAST, LAST);
	assert_none(dirty, 1, LAST + 1, UINT64_MAX);
	/* a period that is older than all of them has all there is */
	assert_next(dirty, 0, 7, UINT64_MAX, 7, LAST);
	end(dirty);
}

static void a_page_is_known_to_be_marked_only_in_its_period(void **state)
{
	struct gmem_dirty_pages *dirty = begin(4 * KIB);

	(void)state;
	assert_false(gmem_dirty_page_is_marked(dirty, GIB + 5));
	assert_int_equal(gmem_dirty_pages_prepare(dirty, GIB, GIB), 0);
	assert_false(gmem_dirty_page_is_marked(dirty, GIB + 5));
	gmem_dirty_pages_mark_in_view(dirty, 2 * GIB - 1, 1);
	assert_true(gmem_dirty_page_is_marked(dirty, 2 * GIB - 1));
	assert_true(gmem_dirty_page_is_marked(dirty, 2 * GIB - 4096));
	assert_false(gmem_dirty_page_is_marked(dirty, 2 * GIB - 4097));

	assert_int_equal(gmem_dirty_pages_begin_period(dirty), 2);
	assert_false(gmem_dirty_page_is_marked(dirty, 2 * GIB - 1));
	gmem_dirty_pages_mark(dirty, 2 * GIB - 1, 1);
	assert_true(gmem_dirty_page_is_marked(dirty, 2 * GIB - 1));

	/* whoever has to fence for himself may not trust what he sees, from now on */
	gmem_dirty_pages_need_fences(dirty);
	assert_false(gmem_dirty_page_is_marked(dirty, 2 * GIB - 1));
	assert_int_equal(gmem_dirty_pages_begin_period(dirty), 3);
	gmem_dirty_pages_mark_in_view(dirty, 2 * GIB - 1, 1);
	assert_false(gmem_dirty_page_is_marked(dirty, 2 * GIB - 1));
	assert_next(dirty, 3, 0, LAST, 2 * GIB - 4096, 2 * GIB - 1);
	end(dirty);
}

static void all_are_told_once_after_the_last_period(void **state)
{
	struct gmem_dirty_pages *dirty = begin(4 * KIB);

	(void)state;
	assert_int_equal(gmem_dirty_pages_prepare(dirty, 0, GIB), 0);
	assert_int_equal(gmem_dirty_pages_prepare(dirty, TOP, GIB), 0);
	dirty->period = dirty->known_period = UINT32_MAX - 2;
	gmem_dirty_pages_mark(dirty, 0, 2 * CHUNK + 1);
	gmem_dirty_pages_mark_in_view(dirty, TOP + GIB - 1, 1);
	assert_int_equal(gmem_dirty_pages_begin_period(dirty), UINT32_MAX - 1);
	gmem_dirty_pages_mark(dirty, 3 * CHUNK, 1);
	assert_true(gmem_dirty_page_is_marked(dirty, 3 * CHUNK));

	assert_int_equal(gmem_dirty_pages_begin_period(dirty), 0);
	assert_none(dirty, 2, 0, LAST);
	assert_next(dirty, 0, 0, GIB - 1, 0, GIB - 1);
	assert_next(dirty, 1, 0, LAST, 0, 2 * CHUNK + 4 * KIB - 1);
	assert_next(dirty, 1, TOP, LAST, TOP + GIB - 4 * KIB, TOP + GIB - 1);
	assert_false(gmem_dirty_page_is_marked(dirty, 3 * CHUNK));
	gmem_dirty_pages_mark_in_view(dirty, 3 * CHUNK, 1);
	assert_true(gmem_dirty_page_is_marked(dirty, 3 * CHUNK));
	assert_next(dirty, 2, 0, LAST, 3 * CHUNK, 3 * CHUNK + 4 * KIB - 1);
	assert_int_equal(gmem_dirty_pages_begin_period(dirty), 3);
	end(dirty);
}

static void bits_of_a_log_are_pages_from_an_address_on(void **state)
{
	static const uint64_t starts[] = { 0, 3, 511, 262143 };
	uint64_t bitmap[3] = { 1 | UINT64_C(1) << 63, 0, UINT64_MAX };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(starts); i++) {
		struct gmem_dirty_pages *dirty = begin(4 * KIB);
		uint64_t gpa = starts[i] * 4 * KIB;

		assert_int_equal(gmem_dirty_pages_prepare(dirty, 0, 2 * GIB), 0);
		gmem_dirty_pages_mark_bits(dirty, gpa, bitmap, 128 + 7);
		assert_next(dirty, 1, 0, LAST, gpa, gpa + 4 * KIB - 1);
		assert_next(dirty, 1, gpa + 4 * KIB, LAST, gpa + 63 * 4 * KIB, gpa + 64 * 4 * KIB - 1);
		assert_next(dirty, 1, gpa + 64 * 4 * KIB, LAST, gpa + 128 * 4 * KIB, gpa + 135 * 4 * KIB - 1);
		assert_int_equal(gmem_dirty_pages_count(dirty, 1, 0, LAST), 9 * 4 * KIB);
		end(dirty);
	}
}

static void no_room_is_an_error(void **state)
{
	struct gmem_dirty_pages *dirty = begin(4 * KIB);

	(void)state;
	fake_fail_kind(FAKE_MMAP, 1, 1, -ENOMEM);
	assert_int_equal(gmem_dirty_pages_prepare(dirty, GIB - 1, 2), -ENOMEM);
	assert_true(fake_fail_struck());
	assert_non_null(strstr(gmem_last_error(), "mark"));
	gmem_dirty_pages_mark(dirty, 0, 2 * GIB);
	assert_int_equal(gmem_dirty_pages_count(dirty, 1, 0, LAST), GIB);
	assert_int_equal(gmem_dirty_pages_prepare(dirty, GIB - 1, 2), 0);
	end(dirty);
}

/* ---- a model ---- */

#define MODEL_PAGES 2048	/* around a border */

static uint64_t random_below(uint32_t *seed, uint64_t limit)
{
	*seed = *seed * 1664525 + 1013904223;
	return ((uint64_t)(*seed >> 8) * limit) >> 24;
}

static void check_model(const struct gmem_dirty_pages *dirty, const uint32_t *model, uint64_t base,
			uint64_t page, uint32_t since)
{
	uint64_t bytes = 0, from = base, last = base + MODEL_PAGES * page - 1;
	struct gmem_part part;
	bool found[MODEL_PAGES] = { false };

	while (from <= last && gmem_dirty_pages_next(dirty, since, from, last, &part)) {
		assert_true(part.start >= from && part.last >= part.start && part.last <= last);
		for (uint64_t i = (part.start - base) / page; i <= (part.last - base) / page; i++)
			found[i] = true;
		from = part.last + 1;
	}
	for (uint64_t i = 0; i < MODEL_PAGES; i++) {
		if (found[i] != (model[i] >= since))
			fail_msg("page %" PRIu64 " is %smarked since %" PRIu32, i, found[i] ? "" : "not ", since);
		bytes += found[i] ? page : 0;
	}
	assert_int_equal(gmem_dirty_pages_count(dirty, since, base, last), bytes);
}

static void model_step(struct gmem_dirty_pages *dirty, uint32_t *model, uint64_t base, uint64_t page,
		       uint32_t *seed)
{
	uint64_t all = MODEL_PAGES * page, start = random_below(seed, all), size, end;

	size = random_below(seed, random_below(seed, 4) ? 5 * page : all);
	if (!random_below(seed, 5)) {
		start = start / CHUNK * CHUNK;
		size = CHUNK;
	}
	size = size < all - start ? size : all - start;
	if (random_below(seed, 2))
		gmem_dirty_pages_mark(dirty, base + start, size);
	else
		gmem_dirty_pages_mark_in_view(dirty, base + start, size);
	end = start + size;
	for (uint64_t i = start / page; size && i <= (end - 1) / page; i++)
		model[i] = dirty->period;
}

static void marks_are_what_a_list_of_periods_has(void **state)
{
	static const uint64_t middles[] = { 4 * GIB, TOP };

	(void)state;
	for (uint32_t seed = 0; seed < 6; seed++) {
		uint64_t page = page_sizes[seed % 3], base = middles[seed / 3] - MODEL_PAGES / 2 * page;
		struct gmem_dirty_pages *dirty = begin(page);
		uint32_t model[MODEL_PAGES] = { 0 }, random = seed;

		assert_int_equal(gmem_dirty_pages_prepare(dirty, base, MODEL_PAGES * page), 0);
		for (int i = 0; i < 100; i++) {
			model_step(dirty, model, base, page, &random);
			if (!random_below(&random, 3))
				assert_int_not_equal(gmem_dirty_pages_begin_period(dirty), 0);
			check_model(dirty, model, base, page, (uint32_t)(1 + random_below(&random, dirty->period)));
		}
		end(dirty);
	}
}

/* ---- races ---- */

#define WRITERS		3
#define TRACKERS	2
#define RACE_PAGES	40	/* on both sides of a border */
#define RACE_BASE	(GIB - RACE_PAGES / 2 * 4 * KIB)

struct race {
	struct gmem_dirty_pages *dirty;
	pthread_mutex_t lock;			/* the VM's */
	bool has_membarrier;
	uint64_t pages;
	unsigned writers, trackers;
	bool stop;
	/* what guest memory has, and what was completely written: the mark, too */
	uint64_t memory[RACE_PAGES][WRITERS];
	uint64_t done[RACE_PAGES][WRITERS];
	uint32_t since[TRACKERS];
	unsigned overturns;			/* how often all periods began anew */
	uint64_t copies[TRACKERS][RACE_PAGES][WRITERS];
};

struct racer {
	pthread_t thread;
	struct race *race;
	unsigned number;
	uint64_t count;
	char failure[160];
};

static bool stopped(struct race *race)
{
	return __atomic_load_n(&race->stop, __ATOMIC_RELAXED);
}

static void mark_as_a_view(struct race *race, uint64_t gpa)
{
	if (!gmem_dirty_page_is_marked(race->dirty, gpa))
		gmem_dirty_pages_mark_in_view(race->dirty, gpa, 1);
}

static void *write_pages(void *data)
{
	struct racer *racer = data;
	struct race *race = racer->race;
	uint32_t seed = racer->number + 1;
	uint64_t page, gpa;

	while (!stopped(race)) {
		page = random_below(&seed, race->pages);
		gpa = RACE_BASE + page * 4 * KIB + racer->number * 8;
		__atomic_store_n(&racer->count, racer->count + 1, __ATOMIC_RELAXED);
		__atomic_store_n(&race->memory[page][racer->number], racer->count, __ATOMIC_RELEASE);
		if (racer->count % 16) {
			mark_as_a_view(race, gpa);
		} else {
			pthread_mutex_lock(&race->lock);
			gmem_dirty_pages_mark(race->dirty, gpa, 1);
			pthread_mutex_unlock(&race->lock);
		}
		__atomic_store_n(&race->done[page][racer->number], racer->count, __ATOMIC_RELEASE);
	}
	return NULL;
}

static void fence_writers(const struct race *race)
{
	if (race->has_membarrier)
		syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0);
	gmem_fence();
}

static void copy_page(struct race *race, unsigned tracker, uint64_t page)
{
	for (unsigned i = 0; i < WRITERS; i++)
		race->copies[tracker][page][i] = __atomic_load_n(&race->memory[page][i], __ATOMIC_ACQUIRE);
}

static void copy_all(struct race *race, unsigned tracker)
{
	for (uint64_t i = 0; i < race->pages; i++)
		copy_page(race, tracker, i);
}

static bool has_overturned(struct race *race, unsigned overturns)
{
	bool has;

	pthread_mutex_lock(&race->lock);
	has = race->overturns != overturns;
	pthread_mutex_unlock(&race->lock);
	return has;
}

/* Collect as trackers do, and compare with what was done before. */
static void collect(struct racer *racer)
{
	struct race *race = racer->race;
	uint64_t done[RACE_PAGES][WRITERS], from = 0;
	unsigned number = racer->number, overturns;
	uint32_t since, period;
	struct gmem_part part;

	for (uint64_t i = 0; i < race->pages * WRITERS; i++)
		done[i / WRITERS][i % WRITERS] = __atomic_load_n(&race->done[i / WRITERS][i % WRITERS],
								 __ATOMIC_ACQUIRE);
	pthread_mutex_lock(&race->lock);
	since = race->since[number];
	period = gmem_dirty_pages_begin_period(race->dirty);
	if (!period) {
		memset(race->since, 0, sizeof(race->since));
		race->overturns++;
	}
	since = period ? since : 0;
	overturns = race->overturns;
	race->since[number] = period ? period : 2;
	pthread_mutex_unlock(&race->lock);
	fence_writers(race);
	if (!since) {
		copy_all(race, number);
		from = UINT64_MAX;
	}
	for (; gmem_dirty_pages_next(race->dirty, since, from, LAST, &part); from = part.last + 1)
		for (uint64_t gpa = part.start; gpa < part.last; gpa += 4 * KIB)
			copy_page(race, number, (gpa - RACE_BASE) / (4 * KIB));
	/* Marks of a period that is over may have been those of the first one already. */
	if (has_overturned(race, overturns))
		copy_all(race, number);

	for (uint64_t i = 0; i < race->pages; i++)
		for (unsigned w = 0; w < WRITERS; w++)
			if (race->copies[number][i][w] < done[i][w] && !racer->failure[0])
				snprintf(racer->failure, sizeof(racer->failure),
					 "page %" PRIu64 " of writer %u: %" PRIu64 " was done, %" PRIu64
					 " is copied, in round %" PRIu64, i, w, done[i][w],
					 race->copies[number][i][w], racer->count);
	__atomic_store_n(&racer->count, racer->count + 1, __ATOMIC_RELAXED);
}

static void *collect_pages(void *data)
{
	struct racer *racer = data;

	while (!stopped(racer->race))
		collect(racer);
	return NULL;
}

static void end_race(struct race *race, struct racer *racers)
{
	__atomic_store_n(&race->stop, true, __ATOMIC_RELAXED);
	for (unsigned i = 0; i < race->writers + race->trackers; i++)
		pthread_join(racers[i].thread, NULL);
	for (unsigned i = race->writers; i < race->writers + race->trackers; i++) {
		/* With all of them still, the last writes are found, too. */
		collect(&racers[i]);
		if (racers[i].failure[0])
			fail_msg("tracker %u: %s", racers[i].number, racers[i].failure);
	}
	print_message("# %" PRIu64 " writes, %" PRIu64 " rounds\n", racers[0].count, racers[race->writers].count);
}

/* A busy machine may take long. */
static bool have_begun(const struct racer *racers, unsigned count)
{
	bool all = true;

	for (unsigned i = 0; i < count; i++)
		all &= __atomic_load_n(&racers[i].count, __ATOMIC_RELAXED) > 10;
	return all;
}

static void run_race(struct race *race, double seconds)
{
	struct racer racers[WRITERS + TRACKERS] = { 0 };
	struct timespec pause = { .tv_sec = (time_t)seconds,
				  .tv_nsec = (long)((seconds - (double)(time_t)seconds) * 1e9) };

	for (unsigned i = 0; i < race->writers + race->trackers; i++) {
		bool writes = i < race->writers;

		racers[i].race = race;
		racers[i].number = writes ? i : i - race->writers;
		assert_int_equal(pthread_create(&racers[i].thread, NULL, writes ? write_pages : collect_pages,
						&racers[i]), 0);
	}
	nanosleep(&pause, NULL);
	while (!have_begun(racers, race->writers + race->trackers))
		usleep(1000);
	end_race(race, racers);
}

static double race_seconds(void)
{
	const char *seconds = getenv("GMEM_STRESS_SECONDS");

	return (seconds ? strtod(seconds, NULL) : 3) / 6;
}

static struct race *begin_race(bool has_membarrier, uint32_t first_period)
{
	struct race *race = calloc(1, sizeof(*race));

	assert_non_null(race);
	race->dirty = begin(4 * KIB);
	pthread_mutex_init(&race->lock, NULL);
	race->has_membarrier = has_membarrier &&
		!syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0);
	race->dirty->period = race->dirty->known_period = first_period;
	if (!race->has_membarrier)
		gmem_dirty_pages_need_fences(race->dirty);
	assert_int_equal(gmem_dirty_pages_prepare(race->dirty, RACE_BASE, RACE_PAGES * 4 * KIB), 0);
	for (unsigned i = 0; i < TRACKERS; i++)
		race->since[i] = first_period;
	return race;
}

static void free_race(struct race *race)
{
	pthread_mutex_destroy(&race->lock);
	end(race->dirty);
	free(race);
}

/* Many, and two that do nothing else */
static void race(bool has_membarrier, uint32_t first_period)
{
	struct race *race = begin_race(has_membarrier, first_period);

	race->pages = RACE_PAGES;
	race->writers = WRITERS;
	race->trackers = TRACKERS;
	run_race(race, race_seconds());
	free_race(race);

	race = begin_race(has_membarrier, first_period);
	race->pages = race->writers = race->trackers = 1;
	run_race(race, race_seconds());
	free_race(race);
}

static void no_write_is_missed_with_membarrier(void **state)
{
	(void)state;
	race(true, 1);
}

static void no_write_is_missed_with_fences(void **state)
{
	(void)state;
	race(false, 1);
}

/* Whoever starts over collects everything, as trackers do. */
static void no_write_is_missed_in_the_last_period(void **state)
{
	(void)state;
	race(true, UINT32_MAX - 100);
}

/* ---- between two instructions ---- */

/* ThreadSanitizer has handlers wait for its own instructions, each of which traps, too. */
#if defined(__x86_64__) && !defined(GMEM_NOFAULT_TSAN)
#define CAN_STEP 1
#endif

#ifdef CAN_STEP

#define TRAP_FLAG	0x100

/* Two interruptions of a write, before which instruction and what is done there */
static struct {
	struct race *race;
	struct racer collector;
	unsigned step, at[2];
	int action[2];
} script;

enum { COLLECTS, WRITES_AND_COLLECTS, COLLECTS_AND_WRITES, ACTIONS };

/* As a view of another thread, from beginning to end */
static void write_as_another(void)
{
	struct race *race = script.race;
	uint64_t number = race->done[0][1] + 1;

	__atomic_store_n(&race->memory[0][1], number, __ATOMIC_RELEASE);
	mark_as_a_view(race, RACE_BASE);
	__atomic_store_n(&race->done[0][1], number, __ATOMIC_RELEASE);
}

static void on_trap(int signal, siginfo_t *info, void *context)
{
	ucontext_t *interrupted = context;

	(void)signal;
	(void)info;
	script.step++;
	/* Traps take long. */
	if (script.step > script.at[1])
		interrupted->uc_mcontext.gregs[REG_EFL] &= ~TRAP_FLAG;
	for (int i = 0; i < 2; i++) {
		if (script.step != script.at[i])
			continue;
		if (script.action[i] == WRITES_AND_COLLECTS)
			write_as_another();
		collect(&script.collector);
		if (script.action[i] == COLLECTS_AND_WRITES)
			write_as_another();
	}
}

static void write_stepping(bool asks_first)
{
	struct race *race = script.race;
	uint64_t number = race->memory[0][0] + 1;

	script.step = 0;
	__asm__ volatile("pushfq\n orq %0, (%%rsp)\n popfq" : : "i"(TRAP_FLAG) : "memory", "cc");
	__atomic_store_n(&race->memory[0][0], number, __ATOMIC_RELEASE);
	if (!asks_first || !gmem_dirty_page_is_marked(race->dirty, RACE_BASE))
		gmem_dirty_pages_mark_in_view(race->dirty, RACE_BASE, 1);
	__asm__ volatile("pushfq\n andq %0, (%%rsp)\n popfq" : : "i"(~TRAP_FLAG) : "memory", "cc");
	__atomic_store_n(&race->done[0][0], number, __ATOMIC_RELEASE);
}

/* Returns whether there are so many instructions. */
static bool interrupt_write(unsigned first, unsigned second, int one, int other)
{
	script.at[0] = first;
	script.at[1] = second;
	script.action[0] = one;
	script.action[1] = other;
	write_stepping(one == WRITES_AND_COLLECTS);
	collect(&script.collector);
	if (script.collector.failure[0])
		fail_msg("interrupted before instructions %u and %u to do %d and %d: %s", first, second,
			 one, other, script.collector.failure);
	return script.step >= first;
}

static void no_write_is_missed_between_two_instructions(void **state)
{
	static const struct { unsigned distance; int one, other; } cases[] = {
		{ 0, COLLECTS, COLLECTS },
		{ 0, WRITES_AND_COLLECTS, COLLECTS },
		{ 5, COLLECTS_AND_WRITES, COLLECTS },
		{ 10, COLLECTS_AND_WRITES, COLLECTS },
		{ 20, COLLECTS_AND_WRITES, WRITES_AND_COLLECTS },
	};
	struct sigaction action = { .sa_sigaction = on_trap, .sa_flags = SA_SIGINFO }, old;
	unsigned steps = 0, at;

	(void)state;
	memset(&script, 0, sizeof(script));
	script.race = begin_race(true, 1);
	script.race->has_membarrier = false;	/* one thread needs none */
	script.race->pages = 1;
	script.collector.race = script.race;
	sigaction(SIGTRAP, &action, &old);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		at = 1;
		while (interrupt_write(at, at + cases[i].distance, cases[i].one, cases[i].other))
			at++;
		steps += at - 1;
	}
	print_message("# before %u instructions%s\n", steps, steps ? "" : ": they cannot be counted here");
	sigaction(SIGTRAP, &old, NULL);
	free_race(script.race);
}

#endif

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(marks_are_found_on_both_sides_of_borders),
		cmocka_unit_test(addresses_without_room_are_left_out),
		cmocka_unit_test(a_page_is_known_to_be_marked_only_in_its_period),
		cmocka_unit_test(all_are_told_once_after_the_last_period),
		cmocka_unit_test(bits_of_a_log_are_pages_from_an_address_on),
		cmocka_unit_test(no_room_is_an_error),
		cmocka_unit_test(marks_are_what_a_list_of_periods_has),
		cmocka_unit_test(no_write_is_missed_with_membarrier),
		cmocka_unit_test(no_write_is_missed_with_fences),
		cmocka_unit_test(no_write_is_missed_in_the_last_period),
#ifdef CAN_STEP
		cmocka_unit_test(no_write_is_missed_between_two_instructions),
#endif
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
