/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <pthread.h>
#include <math.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <gmem.h>

#include "bench.h"

#define NO_SIDE		SIZE_MAX
#define TICK_NS		1000000
#define SECOND_NS	1000000000
#define QUICK_ROUNDS	2
#define QUICK_SAMPLE_US	20
#define SILENCE		3	/* seconds, after which bench_progress() speaks */

/* --------------------------------------------------------------- helpers -- */

int bench_must(int result, const char *what)
{
	if (result < 0) {
		fprintf(stderr, "%s: %s\n", what, strerror(errno));
		exit(EXIT_FAILURE);
	}
	return result;
}

void bench_gmem_must(int result, const char *what)
{
	if (result < 0) {
		fprintf(stderr, "%s: %s\n", what, gmem_last_error());
		exit(EXIT_FAILURE);
	}
}

double bench_thread_ns(void)
{
	struct timespec t;

	bench_must(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t), "clock_gettime");
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static double seconds(void)
{
	struct timespec t;

	bench_must(clock_gettime(CLOCK_MONOTONIC, &t), "clock_gettime");
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

uint64_t bench_random(uint64_t limit)
{
	static uint64_t state = 0x9e3779b97f4a7c15;

	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (state >> 11) % limit;
}

size_t bench_arguments(int argc, char **argv, const char *usage, size_t rounds)
{
	char *end = NULL;

	if (argc == 2 && !strcmp(argv[1], "--help")) {
		fputs(usage, stdout);
		exit(EXIT_SUCCESS);
	}
	if (argc == 2)
		rounds = strtoul(argv[1], &end, 10);
	if (argc == 1 && bench_quick())
		return QUICK_ROUNDS;
	if (argc > 2 || (end && *end) || rounds < 5 || rounds > BENCH_ROUNDS) {
		fputs(usage, stderr);
		exit(EXIT_FAILURE);
	}
	return rounds;
}

/* ---------------------------------------------------------------- the run -- */

struct run {
	struct bench *bench;
	pthread_barrier_t barrier;
	atomic_size_t current;	/* side whose turn it is */
	atomic_bool done;
	double turn_start;
	unsigned long changes;		/* the writer made */
	double changing_seconds;	/* of turns in which it had something to do */
	double ns[BENCH_THREADS][BENCH_SIDES][BENCH_ROUNDS];
};

struct worker {
	struct run *run;
	pthread_t thread;
	unsigned int number;
};

static double sample(const struct bench_side *side, unsigned int thread)
{
	double start = bench_thread_ns();

	for (size_t i = 0; i < side->passes; i++)
		side->run(side->data[thread]);
	return bench_thread_ns() - start;
}

static void calibrate(struct bench *bench)
{
	if (bench_quick())
		bench->sample_us = QUICK_SAMPLE_US;
	for (size_t i = 0; i < bench->count; i++) {
		bench->sides[i].passes = 1;
		while (sample(&bench->sides[i], 0) < bench->sample_us * 1000)
			bench->sides[i].passes *= 2;
	}
}

/* From now on the writer changes @turn. */
static void set_turn(struct run *run, size_t turn)
{
	size_t before = atomic_load(&run->current);
	double now = seconds();

	if (before != NO_SIDE && run->bench->sides[before].change)
		run->changing_seconds += now - run->turn_start;
	run->turn_start = now;
	atomic_store(&run->current, turn);
}

static void *work(void *data)
{
	struct worker *worker = data;
	struct run *run = worker->run;
	struct bench *bench = run->bench;

	for (size_t round = 0; round < bench->rounds; round++) {
		if (worker->number == 0)
			bench_progress(round, bench->rounds);
		for (size_t i = 0; i < bench->count; i++) {
			size_t turn = (round + i) % bench->count;

			pthread_barrier_wait(&run->barrier);
			if (worker->number == 0)
				set_turn(run, turn);
			if (bench->warm)
				bench->sides[turn].run(bench->sides[turn].data[worker->number]);
			run->ns[worker->number][turn][round] =
				sample(&bench->sides[turn], worker->number);
		}
	}

	pthread_barrier_wait(&run->barrier);
	if (worker->number == 0)
		set_turn(run, NO_SIDE);
	return NULL;
}

static void move_on(struct timespec *next)
{
	next->tv_nsec += TICK_NS;
	if (next->tv_nsec >= SECOND_NS) {
		next->tv_nsec -= SECOND_NS;
		next->tv_sec++;
	}
}

/* Later than this, what was missed is not made up for. */
static bool is_hopeless(const struct timespec *next)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec > next->tv_sec + 1;
}

/*
 * One change each millisecond, of the side whose turn it is. Those that are
 * late, because other threads had all processors, follow at once.
 */
static void *write_changes(void *data)
{
	struct run *run = data;
	struct timespec next;

	clock_gettime(CLOCK_MONOTONIC, &next);
	while (!atomic_load(&run->done)) {
		size_t turn = atomic_load(&run->current);
		struct bench_side *side = turn == NO_SIDE ? NULL : &run->bench->sides[turn];

		if (side && side->change) {
			side->change(side->change_data);
			run->changes++;
		}
		do {
			move_on(&next);
		} while (is_hopeless(&next));
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
	}

	return NULL;
}

static void collect(struct run *run)
{
	struct bench *bench = run->bench;

	for (size_t side = 0; side < bench->count; side++) {
		size_t operations = bench->sides[side].passes * bench->operations * bench->threads;

		for (size_t round = 0; round < bench->rounds; round++) {
			double ns = 0;

			for (unsigned int i = 0; i < bench->threads; i++)
				ns += run->ns[i][side][round];
			bench->sides[side].ns[round] = ns / (double)operations;
		}
	}
}

void bench_run(struct bench *bench)
{
	struct worker workers[BENCH_THREADS];
	struct run *run = calloc(1, sizeof(*run));
	pthread_t writer;

	bench_must(run ? 0 : -1, "calloc");
	run->bench = bench;
	run->current = NO_SIDE;
	pthread_barrier_init(&run->barrier, NULL, bench->threads);
	calibrate(bench);

	if (bench->writer)
		pthread_create(&writer, NULL, write_changes, run);
	for (unsigned int i = 0; i < bench->threads; i++) {
		workers[i] = (struct worker){ .run = run, .number = i };
		pthread_create(&workers[i].thread, NULL, work, &workers[i]);
	}
	for (unsigned int i = 0; i < bench->threads; i++)
		pthread_join(workers[i].thread, NULL);
	atomic_store(&run->done, true);
	if (bench->writer)
		pthread_join(writer, NULL);

	collect(run);
	bench->changes_per_second = bench->writer ? (double)run->changes / run->changing_seconds : 0;
	pthread_barrier_destroy(&run->barrier);
	free(run);
}

/* --------------------------------------------------------------- figures -- */

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

struct bench_figure bench_figure_of(double *values, size_t count)
{
	qsort(values, count, sizeof(double), by_value);
	return (struct bench_figure){ values[0], values[count / 2], values[count - 1] };
}

struct bench_figure bench_quartiles_of(double *values, size_t count)
{
	qsort(values, count, sizeof(double), by_value);
	return (struct bench_figure){ values[count / 4], values[count / 2], values[count * 3 / 4] };
}

struct bench_figure bench_single(double value)
{
	return (struct bench_figure){ value, value, value };
}

struct bench_figure bench_time(const struct bench *bench, size_t side)
{
	double values[BENCH_ROUNDS];

	memcpy(values, bench->sides[side].ns, bench->rounds * sizeof(double));
	return bench_figure_of(values, bench->rounds);
}

struct bench_figure bench_ratio(const struct bench *bench, size_t side, size_t base)
{
	double values[BENCH_ROUNDS];

	for (size_t i = 0; i < bench->rounds; i++)
		values[i] = bench->sides[side].ns[i] / bench->sides[base].ns[i];
	return bench_figure_of(values, bench->rounds);
}

/* -------------------------------------------------------------- printing -- */

static unsigned int goals, goals_missed;

/* Three digits that mean something */
static int format_number(char *buf, size_t size, double value)
{
	return snprintf(buf, size, "%.*f", value < 10 ? 2 : value < 100 ? 1 : 0, value);
}

static void print_figure(struct bench_figure figure, const char *mark)
{
	char min[32], median[32], max[32], cell[128];

	format_number(min, sizeof(min), figure.min);
	format_number(median, sizeof(median), figure.median);
	format_number(max, sizeof(max), figure.max);
	snprintf(cell, sizeof(cell), "%s%s (%s-%s)", median, mark, min, max);
	printf(" %-19s", cell);
}

static double last_words;	/* when something was printed */

void bench_print(struct bench_figure figure)
{
	print_figure(figure, "");
}

void bench_print_ratio(struct bench_figure figure, double goal)
{
	bool missed = goal > 0 && figure.median > goal;

	goals += goal > 0;
	goals_missed += missed;
	print_figure(figure, missed ? "!" : "");
	last_words = seconds();
}

void bench_print_column(const char *name)
{
	printf(" %-19s", name);
}

void bench_print_nothing(void)
{
	bench_print_column("-");
}

void bench_print_goals(void)
{
	printf("\n%u of %u goals are missed%s\n", goals_missed, goals,
	       goals_missed ? ", marked \"!\" above." : ".");
}

/* Tables come line by line, whoever reads them. */
static void __attribute__((constructor)) begin_output(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	last_words = seconds();
}

bool bench_quick(void)
{
	return getenv("GMEM_BENCH_QUICK") != NULL;
}

/* ------------------------------------------------------------------ rows -- */

static char row[128];
static struct bench_figure row_figure;
static const char *row_unit;

void bench_row(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(row, sizeof(row), format, args);
	va_end(args);
	row_unit = NULL;
}

void bench_row_figure(struct bench_figure figure, const char *unit)
{
	row_figure = figure;
	row_unit = unit;
}

/*
 * One line, fields separated by tabs: name, what it is compared with, median, minimum,
 * maximum, goal, the library's own figure, its unit. It is written at once, so that what
 * was measured before a program fails is kept.
 */
static void record(const char *base, const char *rest)
{
	const char *path = getenv("GMEM_BENCH_ROWS");
	bool to_stdout = path && !strcmp(path, "-");
	FILE *file;

	if (!path || !row[0])
		return;
	file = to_stdout ? stdout : fopen(path, "a");
	bench_must(file ? 0 : -1, path);
	fprintf(file, "%s%s\t%s\t%s\n", to_stdout ? "\n@row\t" : "", row, base, rest);
	bench_must(to_stdout ? 0 : fclose(file), path);
}

static void record_figure(const char *base, struct bench_figure figure, double goal)
{
	char rest[256], goal_text[32] = "-", own[32] = "-";

	if (goal > 0)
		snprintf(goal_text, sizeof(goal_text), "%.3g", goal);
	if (row_unit)
		snprintf(own, sizeof(own), "%.4g", row_figure.median);
	snprintf(rest, sizeof(rest), "%.4g\t%.4g\t%.4g\t%s\t%s\t%s", figure.median, figure.min,
		 figure.max, goal_text, own, row_unit ? row_unit : "-");
	record(base, rest);
}

void bench_print_against(const char *base, struct bench_figure ratio, double goal)
{
	bench_print_ratio(ratio, goal);
	/* A clock that did not move has measured nothing. */
	if (ratio.min > 0 && isfinite(ratio.max))
		record_figure(base, ratio, goal);
	else
		printf("  (too short for this machine's clock, not kept)\n");
}

void bench_print_amount(const char *unit, struct bench_figure figure, double goal)
{
	bench_print_ratio(figure, goal);
	row_unit = NULL;
	record_figure(unit, figure, goal);
}

void bench_row_absent(const char *why)
{
	printf("%s: left out: %s\n", row, why);
	record("absent", why);
}

void bench_progress(size_t round, size_t rounds)
{
	double now = seconds();

	if (now < last_words + SILENCE)
		return;
	fprintf(stderr, "  %s: round %zu of %zu\n", row[0] ? row : "measuring", round + 1, rounds);
	last_words = now;
}
