/* SPDX-License-Identifier: MIT */
/*
 * Helpers of bench-move's tables. Each side does the same work once, on memory
 * that is fresh, or filled, again each time; making it so is not measured. A
 * sample that touches memory comes after one of the same size was touched and
 * freed, for a host that got pages back (free page reporting) has to find them
 * again. Sides take turns, each round in another order.
 */
#ifndef BENCH_MOVE_H
#define BENCH_MOVE_H

#include <stddef.h>
#include <stdint.h>

#include <gmem.h>

#define MIB ((uint64_t)1 << 20)
#define MOVE_SIDES 10
#define MOVE_ROUNDS 101

struct move_side {
	const char *name;
	void (*prepare)(void);		/* or NULL */
	void (*run)(void);
	void (*clean)(void);		/* or NULL */
	double goal;			/* maximum of its time as a share of the base's; 0: none */
	int by_wall;			/* threads: the clock on the wall counts for the goal */
};

struct move_table {
	const char *title;
	const char *row;		/* the name of its rows begins like this */
	uint64_t bytes;			/* that a run goes through */
	double most_ms;			/* goal of the library's CPU time for a GiB; 0: none */
	size_t base;			/* side that the others are compared with */
	struct move_side sides[MOVE_SIDES];
	size_t count;
};

struct move {
	size_t rounds;
	uint64_t size;			/* of the guest's memory */
	uint64_t page;
	int kvm_fd, vm_fd;
	struct gmem_vm *vm;
	struct gmem_region *region;	/* a shared guest_memfd of that size at guest address 0 */
	int gmemfd;
	char *hva;
};

extern struct move move;

void move_run(struct move_table *table);
/* Free all of the guest's memory, or fill it. */
void move_empty(void);
void move_fill(void);

void move_populate_tables(void);
void move_discard_tables(void);
void move_scan_tables(void);
void move_bulk_tables(void);

#endif
