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
	bool warm;			/* a pass before each sample brings what it uses into caches */
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
/* The same with the quartiles: for samples so short that an interrupt makes the most */
struct bench_figure bench_quartiles_of(double *values, size_t count);
/* A figure that was measured once */
struct bench_figure bench_single(double value);
struct bench_figure bench_time(const struct bench *bench, size_t side);
struct bench_figure bench_ratio(const struct bench *bench, size_t side, size_t base);

/*
 * Rows. A program prints its tables for people, and each row is recorded, too, in the file
 * that $GMEM_BENCH_ROWS names ("-": standard output, after "@row"), for tests/bench/run,
 * which keeps the results of machines by the rows' names. So a name is stable and says
 * the row: TABLE/WHAT[/HOW...], "translate/aligned/8192/random". In docs/performance.md
 * rows whose names begin alike are one line, with the worst of them: see results.py.
 *
 *	bench_row("populate/%s", name);			first: a row begins
 *	bench_row_figure(bench_time(...), "ns");	the library's own figure, not printed
 *	bench_print_against("memcpy", ratio, 1.1);	as often as it is compared
 */
void bench_row(const char *format, ...) __attribute__((format(printf, 1, 2)));
void bench_row_figure(struct bench_figure figure, const char *unit);

/* Print into a column: "1.23 (1.20-1.31)" */
void bench_print(struct bench_figure figure);
/*
 * Print and record the row's @ratio, the library's time as a share of the time of
 * @base, which says what is done instead; the peer's name begins with "vm-memory". The
 * goal (0: none) is a maximum and stands here and nowhere else; a median above it gets
 * a "!" and is remembered.
 */
void bench_print_against(const char *base, struct bench_figure ratio, double goal);
/* The same for a figure that is no ratio: @unit says of what, "ms", "allocations". */
void bench_print_amount(const char *unit, struct bench_figure figure, double goal);
/* The row, and those whose names continue it, cannot be had here: @why is a sentence. */
void bench_row_absent(const char *why);
/* As bench_print_against(), without a record: for ratios that are no row's own. */
void bench_print_ratio(struct bench_figure figure, double goal);
void bench_print_column(const char *name);
void bench_print_nothing(void);

/*
 * Call it before each round: where nothing was printed for some seconds, it says on
 * standard error what is going on.
 */
void bench_progress(size_t round, size_t rounds);

/*
 * True if $GMEM_BENCH_QUICK is set: nobody looks at the figures, but each row has to
 * appear, within a second or so for a program. Names of rows do not change.
 */
bool bench_quick(void);

/* Print one sentence on all ratios that were printed. */
void bench_print_goals(void);

/* Exit with a sentence if @result is negative: the one of errno, or libgmem's. */
int bench_must(int result, const char *what);
void bench_gmem_must(int result, const char *what);

/* Random numbers, the same in each run */
uint64_t bench_random(uint64_t limit);

/* "[ROUNDS]" and "--help"; exits if there is anything else. Two rounds if bench_quick(). */
size_t bench_arguments(int argc, char **argv, const char *usage, size_t rounds);

#endif
