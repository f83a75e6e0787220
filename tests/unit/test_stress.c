/* SPDX-License-Identifier: MIT */
/*
 * apply, lookup_table and view: readers verify what they see while writers add,
 * remove, move, split and replace regions. Runs for GMEM_STRESS_SECONDS, 3 without.
 *
 * Guest memory is divided into lanes. The contents of a page tell its lane, and
 * memory is scribbled over, or unmapped, as soon as its region is gone: a reader that
 * looks at memory of another lane, or at memory a moment too long, sees it or dies.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "unit.h"

#define LANES		9
#define LANE_PAGES	64		/* of guest addresses */
#define MEMORY_PAGES	8		/* that a lane has at most */
#define PIECES		4
#define READERS		4
#define WRITERS		2
#define MAGIC		UINT64_C(0x6c616e6500000000)
#define GARBAGE		0xdb

struct lane {
	int number;
	struct gmem_region *regions[PIECES];	/* its writer's */
	char *memory;				/* the caller's, or NULL */
	struct gmem_file *file;
};

struct stress {
	struct unit unit;
	struct gmem_plan *plans[3];		/* shared, mapped, host */
	struct lane lanes[LANES];
	int stop;
};

enum { STOP_NONE, STOP_READERS, STOP_ALL };

struct worker {
	pthread_t thread;
	struct stress *stress;
	unsigned number;
	bool is_writer;
	uint32_t seed;
	uint64_t seen;
	uint64_t missed;
	uint64_t changes;
	char failure[200];
};

#define WRONG(w, ...)                                                           \
	do {                                                                    \
		if (!(w)->failure[0])                                           \
			snprintf((w)->failure, sizeof((w)->failure), __VA_ARGS__); \
	} while (0)

static uint32_t pick(struct worker *w, uint32_t below)
{
	w->seed = w->seed * 1664525 + 1013904223;
	return (w->seed >> 8) % below;
}

static bool is_over(const struct worker *w)
{
	int stop = __atomic_load_n(&w->stress->stop, __ATOMIC_RELAXED);

	/* However threads are scheduled, each does something, and readers have writers. */
	if (w->failure[0])
		return true;
	return w->is_writer ? stop == STOP_ALL && w->changes > 0
			    : stop != STOP_NONE && w->seen > 0;
}

/* ---- what memory holds ---- */

static uint64_t word_of(int lane, uint64_t page)
{
	return MAGIC | (uint64_t)lane << 8 | page;
}

static void fill(const struct unit *unit, char *memory, int lane)
{
	uint64_t word, page, i;

	for (page = 0; page < MEMORY_PAGES; page++) {
		word = word_of(lane, page);
		for (i = 0; i < unit->page; i += sizeof(word))
			memcpy(memory + PAGES(unit, page) + i, &word, sizeof(word));
	}
}

static bool is_lanes(uint64_t word, int lane)
{
	return word >> 8 == word_of(lane, 0) >> 8 && (word & 0xff) < MEMORY_PAGES;
}

/* Lane 0 is always all there: its region is only ever replaced. */
static uint64_t base_of(const struct unit *unit, int lane)
{
	return PAGES(unit, 500) + PAGES(unit, lane * LANE_PAGES);
}

/* ---- readers ---- */

static void check_error(struct worker *w, int lane, int err)
{
	w->missed++;
	if (lane == 0)
		WRONG(w, "lane 0 is gone: %d", err);
	else if (err != -ENOENT && err != -ESTALE)
		WRONG(w, "lane %d gives %d: %s", lane, err, gmem_last_error());
}

static void check_words(struct worker *w, int lane, const uint64_t *words, size_t count)
{
	size_t i;

	w->seen++;
	for (i = 0; i < count; i++)
		if (!is_lanes(words[i], lane))
			WRONG(w, "lane %d has 0x%llx at %zu", lane, (unsigned long long)words[i], i);
}

static void read_in_place(struct worker *w, struct gmem_view *view, int lane, uint64_t gpa)
{
	const uint64_t page = w->stress->unit.page;
	const volatile uint64_t *words;
	uint64_t copy[16];
	void *hva;
	size_t i;
	int err;

	gmem_view_begin(view);
	err = gmem_view_hva(view, gpa, page, &hva);
	if (!err) {
		words = hva;
		for (i = 0; i < ARRAY_SIZE(copy); i++)
			copy[i] = words[i * page / sizeof(*words) / ARRAY_SIZE(copy)];
	}
	gmem_view_end(view);
	if (err)
		check_error(w, lane, err);
	else
		check_words(w, lane, copy, ARRAY_SIZE(copy));
}

/* All pieces were there at one moment. */
static void read_pieces(struct worker *w, struct gmem_view *view, int lane, uint64_t gpa)
{
	struct iovec iov[PIECES];
	uint64_t words[PIECES];
	int i, count;

	gmem_view_begin(view);
	count = gmem_view_iovec(view, gpa, 2 * w->stress->unit.page, iov, PIECES);
	for (i = 0; i < count; i++)
		words[i] = *(volatile uint64_t *)iov[i].iov_base;
	gmem_view_end(view);
	if (count < 0)
		check_error(w, lane, count);
	else
		check_words(w, lane, words, (size_t)count);
}

static void read_copy(struct worker *w, struct gmem_view *view, int lane, uint64_t gpa)
{
	uint64_t words[1024 + 2], done = 0;
	int err;

	err = gmem_view_read(view, gpa, words, sizeof(words), &done);
	check_words(w, lane, words, done / sizeof(words[0]));
	if (err)
		check_error(w, lane, err);
	else if (done != sizeof(words))
		WRONG(w, "lane %d: %llu bytes were read", lane, (unsigned long long)done);
}

static void read_number(struct worker *w, struct gmem_view *view, int lane, uint64_t gpa)
{
	uint64_t word = 0;
	int err = gmem_view_load(view, gpa + 8, 8, GMEM_ACQUIRE, &word);

	if (err)
		check_error(w, lane, err);
	else
		check_words(w, lane, &word, 1);
}

static void read_once(struct worker *w, struct gmem_view *view)
{
	const struct unit *unit = &w->stress->unit;
	int lane = (int)pick(w, LANES);
	/* a read is two pages long, and does not leave its lane */
	uint64_t page = pick(w, lane ? LANE_PAGES - 2 : MEMORY_PAGES - 2);
	uint64_t gpa = base_of(unit, lane) + PAGES(unit, page);

	switch (pick(w, 8)) {
	case 0:
		read_copy(w, view, lane, gpa);
		break;
	case 1:
		read_pieces(w, view, lane, gpa);
		break;
	case 2:
		read_number(w, view, lane, gpa);
		break;
	default:
		read_in_place(w, view, lane, gpa);
	}
}

static void *read_all_the_time(void *data)
{
	struct worker *w = data;
	struct gmem_view *view = NULL;
	unsigned i;

	while (!is_over(w)) {
		if (gmem_view_new(w->stress->unit.vm, &view)) {
			WRONG(w, "no view: %s", gmem_last_error());
			break;
		}
		/* views come and go, too; but the first reader keeps its own */
		for (i = 0; !is_over(w) && (w->number == 0 || i < 3000); i++)
			read_once(w, view);
		gmem_view_free(view);
	}
	return NULL;
}

/* ---- writers: each has lanes of its own ---- */

static struct gmem_region_opts opts_of(const struct stress *s, const struct lane *lane)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = s->plans[lane->number % 3]);

	opts.file = lane->file;
	if (lane->memory) {
		opts.flags = GMEM_REGION_HVA;
		opts.hva = lane->memory;
	}
	return opts;
}

static int find_piece(const struct lane *lane, bool there)
{
	int i;

	for (i = 0; i < PIECES; i++)
		if (!lane->regions[i] == !there)
			return i;
	return -1;
}

static bool is_empty(const struct lane *lane)
{
	return find_piece(lane, true) < 0;
}

static void give_memory(const struct stress *s, struct lane *lane)
{
	if (lane->number % 3 == 2) {
		lane->memory = unit_memory(&s->unit, MEMORY_PAGES);
		fill(&s->unit, lane->memory, lane->number);
	}
}

/* The last region that used it is gone, so nobody looks at it. */
static void spoil_memory(const struct stress *s, struct lane *lane)
{
	if (lane->memory) {
		memset(lane->memory, GARBAGE, PAGES(&s->unit, MEMORY_PAGES));
		unit_memory_free(lane->memory);
		lane->memory = NULL;
	}
}

static void write_add(struct worker *w, struct lane *lane)
{
	const struct unit *unit = &w->stress->unit;
	struct gmem_region_opts opts;
	uint64_t page = pick(w, LANE_PAGES - MEMORY_PAGES);

	give_memory(w->stress, lane);
	opts = opts_of(w->stress, lane);
	if (gmem_region_add(unit->vm, base_of(unit, lane->number) + PAGES(unit, page),
			    PAGES(unit, MEMORY_PAGES), &opts, &lane->regions[0]))
		WRONG(w, "add: %s", gmem_last_error());
}

static void write_remove(struct worker *w, struct lane *lane)
{
	int i = find_piece(lane, true);

	if (gmem_region_remove(lane->regions[i]))
		WRONG(w, "remove: %s", gmem_last_error());
	lane->regions[i] = NULL;
	if (is_empty(lane))
		spoil_memory(w->stress, lane);
}

/* Moves to anywhere in its lane, where there often is a region already. */
static void write_move(struct worker *w, struct lane *lane)
{
	const struct unit *unit = &w->stress->unit;
	int i = (int)pick(w, PIECES), err;
	uint64_t page = pick(w, LANE_PAGES - MEMORY_PAGES);

	if (!lane->regions[i])
		return;
	err = gmem_region_move(lane->regions[i], base_of(unit, lane->number) + PAGES(unit, page));
	if (err && err != -EEXIST)
		WRONG(w, "move: %s", gmem_last_error());
}

static void write_split(struct worker *w, struct lane *lane)
{
	const struct unit *unit = &w->stress->unit;
	int lower = (int)pick(w, PIECES), upper = find_piece(lane, false);
	uint64_t size = gmem_region_size(lane->regions[lower]);

	if (upper < 0 || size < PAGES(unit, 2))
		return;
	if (gmem_region_split(lane->regions[lower], size / 2 / unit->page * unit->page,
			      &lane->regions[upper]))
		WRONG(w, "split: %s", gmem_last_error());
}

/* One change replaces a region by another of the same place and pages. */
static void write_replace(struct worker *w, struct lane *lane)
{
	const struct unit *unit = &w->stress->unit;
	struct gmem_region_opts opts = opts_of(w->stress, lane);
	struct gmem_change *change = NULL;
	int err;

	err = gmem_change_new(unit->vm, &change);
	if (!err)
		err = gmem_change_remove(change, lane->regions[0]);
	if (!err)
		err = gmem_change_add(change, base_of(unit, 0), PAGES(unit, MEMORY_PAGES), &opts,
				      &lane->regions[0]);
	if (!err)
		err = gmem_change_apply(change);
	gmem_change_free(change);
	if (err)
		WRONG(w, "replace: %s", gmem_last_error());
}

static void write_once(struct worker *w, struct lane *lane)
{
	w->changes++;
	if (lane->number == 0)
		write_replace(w, lane);
	else if (is_empty(lane))
		write_add(w, lane);
	else if (pick(w, 4) == 0)
		write_remove(w, lane);
	else if (pick(w, 2))
		write_move(w, lane);
	else
		write_split(w, lane);
}

static void *write_all_the_time(void *data)
{
	struct worker *w = data;
	const struct timespec a_moment = { .tv_nsec = 50000 };

	while (!is_over(w)) {
		uint32_t lane = pick(w, (LANES - w->number + WRITERS - 1) / WRITERS);

		write_once(w, &w->stress->lanes[lane * WRITERS + w->number]);
		if (pick(w, 4) == 0)
			nanosleep(&a_moment, NULL);
	}
	return NULL;
}

/* ---- the play ---- */

static void stress_begin(struct stress *s)
{
	static const uint32_t backings[] = { GMEM_BACKING_SHARED, GMEM_BACKING_MAPPED,
					     GMEM_BACKING_HOST };
	struct gmem_region_opts opts;
	void *hva;
	int i;

	memset(s, 0, sizeof(*s));
	unit_begin_vm(&s->unit, "6.18");
	for (i = 0; i < 3; i++)
		s->plans[i] = unit_plan(&s->unit, backings[i]);
	for (i = 0; i < LANES; i++) {
		s->lanes[i].number = i;
		if (i % 3 == 2)
			continue;
		s->lanes[i].file = unit_file(&s->unit, MEMORY_PAGES);
		assert_ok(gmem_file_map(s->lanes[i].file, 0, PAGES(&s->unit, MEMORY_PAGES), NULL,
					&hva));
		fill(&s->unit, hva, i);
		assert_ok(gmem_file_unmap(s->lanes[i].file, hva, PAGES(&s->unit, MEMORY_PAGES)));
	}
	opts = opts_of(s, &s->lanes[0]);
	assert_ok(gmem_region_add(s->unit.vm, base_of(&s->unit, 0), PAGES(&s->unit, MEMORY_PAGES),
				  &opts, &s->lanes[0].regions[0]));
}

static void stress_end(struct stress *s)
{
	int i;

	gmem_vm_free(s->unit.vm);
	s->unit.vm = NULL;
	for (i = 0; i < LANES; i++) {
		gmem_file_free(s->lanes[i].file);
		spoil_memory(s, &s->lanes[i]);
	}
	for (i = 0; i < 3; i++)
		gmem_plan_free(s->plans[i]);
	unit_end(&s->unit);
}

static void start(struct worker *w, struct stress *s, unsigned number, bool is_writer)
{
	memset(w, 0, sizeof(*w));
	w->stress = s;
	w->number = number;
	w->is_writer = is_writer;
	w->seed = number * 7919 + 1;
	assert_int_equal(pthread_create(&w->thread, NULL,
					is_writer ? write_all_the_time : read_all_the_time, w), 0);
}

static void finish(struct worker *w, const char *what)
{
	pthread_join(w->thread, NULL);
	if (w->failure[0])
		fail_msg("%s %u: %s", what, w->number, w->failure);
	print_message("# %s %u: %llu seen, %llu missed, %llu changes\n", what, w->number,
		      (unsigned long long)w->seen, (unsigned long long)w->missed,
		      (unsigned long long)w->changes);
}

static void play(unsigned milliseconds, int membarrier)
{
	const struct timespec time = { .tv_sec = milliseconds / 1000,
				       .tv_nsec = (long)milliseconds % 1000 * 1000000 };
	struct worker readers[READERS], writers[WRITERS];
	struct stress s;
	unsigned i;

	stress_begin(&s);
	fake_refuse_membarrier(membarrier);
	for (i = 0; i < READERS; i++)
		start(&readers[i], &s, i, false);
	for (i = 0; i < WRITERS; i++)
		start(&writers[i], &s, i, true);
	nanosleep(&time, NULL);
	__atomic_store_n(&s.stop, STOP_READERS, __ATOMIC_RELAXED);
	for (i = 0; i < READERS; i++) {
		finish(&readers[i], "reader");
		assert_true(readers[i].seen > 0);
	}
	__atomic_store_n(&s.stop, STOP_ALL, __ATOMIC_RELAXED);
	for (i = 0; i < WRITERS; i++) {
		finish(&writers[i], "writer");
		assert_true(writers[i].changes > 0);
	}
	stress_end(&s);
}

static unsigned milliseconds(void)
{
	const char *seconds = getenv("GMEM_STRESS_SECONDS");

	return (seconds && atoi(seconds) > 0 ? (unsigned)atoi(seconds) : 3) * 1000;
}

static void readers_see_what_is_there_or_nothing(void **state)
{
	(void)state;
	play(milliseconds() / 3, 0);
}

static void readers_with_fences_see_what_is_there_or_nothing(void **state)
{
	(void)state;
	play(milliseconds() / 3, -EPERM);
}

static void readers_with_recovery_see_what_is_there_or_nothing(void **state)
{
	(void)state;
	assert_ok(gmem_recovery_enable());
	play(milliseconds() / 3, 0);
	gmem_recovery_disable();
}

/* ---- one region, many threads ---- */

struct crowd {
	struct unit unit;
	struct gmem_region *region;
	int failures;
};

#define CROWD_ROUNDS 200

static void *move_about(void *data)
{
	struct crowd *c = data;
	uint64_t i;

	for (i = 0; i < CROWD_ROUNDS; i++)
		if (gmem_region_move(c->region, PAGES(&c->unit, 256 * (i % 3))))
			__atomic_fetch_add(&c->failures, 1, __ATOMIC_RELAXED);
	return NULL;
}

static void *log_writes(void *data)
{
	struct crowd *c = data;
	uint64_t bitmap[4];
	int i, err;

	for (i = 0; i < CROWD_ROUNDS; i++) {
		err = gmem_region_set_dirty_log(c->region, i % 2);
		if (!err)
			err = gmem_region_get_dirty_log(c->region, bitmap, ARRAY_SIZE(bitmap));
		if (err && err != -ENOENT)
			__atomic_fetch_add(&c->failures, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

/* Cut off the last page again and again; the region's size only falls. */
static void *cut_down(void *data)
{
	struct crowd *c = data;
	struct gmem_region *rest = NULL;
	uint64_t size = gmem_region_size(c->region);

	for (size -= c->unit.page; size >= PAGES(&c->unit, 64); size -= c->unit.page)
		if (gmem_region_split(c->region, size, &rest) || gmem_region_remove(rest))
			__atomic_fetch_add(&c->failures, 1, __ATOMIC_RELAXED);
	return NULL;
}

static void *ask(void *data)
{
	struct crowd *c = data;
	uint64_t size, last = UINT64_MAX;
	int i;

	for (i = 0; i < 20 * CROWD_ROUNDS; i++) {
		size = gmem_region_size(c->region);
		if (size > last || size % c->unit.page || gmem_region_gpa(c->region) % c->unit.page)
			__atomic_fetch_add(&c->failures, 1, __ATOMIC_RELAXED);
		last = size;
	}
	return NULL;
}

static void many_threads_change_one_region(void **state)
{
	static void *(*const jobs[])(void *) = { move_about, move_about, log_writes, log_writes,
						 cut_down, ask };
	pthread_t threads[ARRAY_SIZE(jobs)];
	struct crowd c;
	size_t i;

	(void)state;
	memset(&c, 0, sizeof(c));
	unit_begin_vm(&c.unit, "6.18");
	c.region = unit_region_backed(&c.unit, 0, 200, GMEM_BACKING_HOST);
	for (i = 0; i < ARRAY_SIZE(jobs); i++)
		assert_int_equal(pthread_create(&threads[i], NULL, jobs[i], &c), 0);
	for (i = 0; i < ARRAY_SIZE(jobs); i++)
		pthread_join(threads[i], NULL);
	assert_int_equal(c.failures, 0);
	assert_int_equal(gmem_region_size(c.region), PAGES(&c.unit, 64));
	unit_end(&c.unit);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(readers_see_what_is_there_or_nothing),
	cmocka_unit_test(readers_with_fences_see_what_is_there_or_nothing),
	cmocka_unit_test(readers_with_recovery_see_what_is_there_or_nothing),
	cmocka_unit_test(many_threads_change_one_region),
};

UNIT_MAIN(tests)
