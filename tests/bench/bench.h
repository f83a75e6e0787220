/* SPDX-License-Identifier: MIT */
/*
 * Ways of doing the same work, compared: sides take turns in one process, so
 * that whatever else the machine does hits all of them; time is the CPU time
 * of the thread. Figures are medians over all rounds, with the least and the
 * most; a ratio is taken within each round first.
 */
#ifndef BENCH_H
#define BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EXIT_CANNOT_RUN 77
#define BENCH_SIDES	6
#define BENCH_THREADS	2
#define BENCH_ROUNDS	1000	/* at most */

struct bench_side {
	void (*run)(void *data);		/* one pass: bench.operations of it */
	void *data[BENCH_THREADS];
	void (*change)(void *data);		/* run by the writer; NULL: nothing */
	void *change_data;
	size_t passes;				/* in a sample; found by bench_run() */
	double ns[BENCH_ROUNDS];		/* for one operation */
};

struct bench {
	struct bench_side sides[BENCH_SIDES];
	size_t count;			/* number of sides */
	size_t operations;		/* in a pass */
	size_t rounds;
	unsigned int threads;		/* that run a side at the same time */
	double sample_us;		/* least CPU time of a sample */
	bool writer;			/* one more thread makes changes, one each millisecond */
	double changes_per_second;	/* made by the writer */
};

void bench_run(struct bench *bench);

double bench_thread_ns(void);

/* The least, the median and the most */
struct bench_figure {
	double min, median, max;
};

/* The figure of @values, which it sorts */
struct bench_figure bench_figure_of(double *values, size_t count);
struct bench_figure bench_time(const struct bench *bench, size_t side);
struct bench_figure bench_ratio(const struct bench *bench, size_t side, size_t base);

/* Print into a column: "1.23 (1.20-1.31)" */
void bench_print(struct bench_figure figure);
/* Print a ratio; a median above @goal (0: none) gets a "!" and is remembered. */
void bench_print_ratio(struct bench_figure figure, double goal);
void bench_print_column(const char *name);
void bench_print_nothing(void);
/* Print one sentence on all ratios that were printed. */
void bench_print_goals(void);

/* Exit with a sentence if @result is negative: the one of errno, or libgmem's. */
int bench_must(int result, const char *what);
void bench_gmem_must(int result, const char *what);

/* Random numbers, the same in each run */
uint64_t bench_random(uint64_t limit);

/* "[ROUNDS]" and "--help"; exits if there is anything else. */
size_t bench_arguments(int argc, char **argv, const char *usage, size_t rounds);

#endif
