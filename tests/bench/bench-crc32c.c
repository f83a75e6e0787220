/* SPDX-License-Identifier: MIT */
/*
 * bench-crc32c: checksums against reading the same bytes once, which is the least that they
 * can take: in memory that no cache holds, and in a piece that the second cache does.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "bench.h"

#include "base/crc32c.h"

#define COLD_SIZE ((size_t)256 << 20)
#define HOT_SIZE ((size_t)256 << 10)

struct pieces {
	const char *memory;
	size_t size;		/* of all of it */
	size_t piece;
	unsigned int way;
};

static volatile uint64_t sink;

/* The C library looks for a byte that is not there as fast as it can read. */
static void read_once(void *data)
{
	const struct pieces *pieces = data;

	sink = memchr(pieces->memory, 8, pieces->size) != NULL;
}

static void check(void *data)
{
	const struct pieces *pieces = data;

	for (size_t at = 0; at < pieces->size; at += pieces->piece)
		sink = gmem_crc32c_by(pieces->way, 0, pieces->memory + at, pieces->piece);
}

static void measure(struct bench *bench, const char *where, const char *memory, size_t size, size_t piece)
{
	static const char *const ways[] = { "plain", "one", "three", "fold" };
	struct pieces pieces = { .memory = memory, .size = size, .piece = piece };

	/* The plain way is for processors without the others, and takes seconds. */
	for (pieces.way = GMEM_CRC32C_THREE; pieces.way < sizeof(ways) / sizeof(ways[0]); pieces.way++) {
		bench_row("crc32c/%s-%zuk/%s", where, piece >> 10, ways[pieces.way]);
		if (pieces.way > gmem_crc32c_best()) {
			bench_row_absent("this processor has not the instructions");
			continue;
		}
		bench->count = 2;
		bench->operations = size >> 10;
		bench->sides[0] = (struct bench_side){ .run = read_once, .data = { &pieces } };
		bench->sides[1] = (struct bench_side){ .run = check, .data = { &pieces } };
		bench_run(bench);
		bench_row_figure(bench_time(bench, 1), "ns per KiB");
		printf("%-5s %4zu KiB %-6s ", where, piece >> 10, ways[pieces.way]);
		bench_print_against("reading it", bench_ratio(bench, 1, 0), 1 / 0.9);
		printf("\n");
		fflush(stdout);
	}
}

int main(int argc, char **argv)
{
	static const size_t sizes[] = { (size_t)4 << 10, (size_t)64 << 10, (size_t)1 << 20 };
	static struct bench bench = { .threads = 1, .sample_us = 1000 };
	size_t size = bench_quick() ? COLD_SIZE / 64 : COLD_SIZE;
	char *memory;

	bench.rounds = bench_arguments(argc, argv,
				       "usage: bench-crc32c [ROUNDS]\n"
				       "Checksums of pieces, as a multiple of reading them once.\n", 11);
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	bench_must(memory == MAP_FAILED ? -1 : 0, "mmap");
	madvise(memory, size, MADV_HUGEPAGE);
	memset(memory, 7, size);
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		measure(&bench, "cold", memory, size, sizes[i]);
		if (sizes[i] <= HOT_SIZE)
			measure(&bench, "hot", memory, HOT_SIZE, sizes[i]);
	}
	bench_print_goals();
	return 0;
}
