/* SPDX-License-Identifier: MIT */
/* A VM with a little memory, for tests that confine themselves: under filters of gmem-sandbox.h */
#ifndef TESTS_KVM_CONFINE_H
#define TESTS_KVM_CONFINE_H

#include <gmem-sandbox.h>

#include "lab.h"

#define BASE (256 * MIB)
#define PAGES 8

/* Install the filter of these phases; the test can still print and end. For all threads. */
void install(uint32_t phases, uint32_t otherwise);
/* Allow only the calls of these phases from now on; end the test with leave(). */
void enter(uint32_t phases);
/* Ends the test at once: the harness's checks need calls that are in no table. */
__attribute__((noreturn)) void leave(void);

/*
 * As enter(), with threads: they are there before the filter, then each of them calls @work, all
 * at once, and none of them ends before leave().
 */
void enter_with_threads(uint32_t phases, unsigned int count, void (*work)(void *data, unsigned int number),
			void *data);

struct site {
	struct lab lab;
	struct gmem_plan *plan;
	struct gmem_region *region;
	struct gmem_view *view;
	struct gmem_view *views[4];	/* of threads */
	uint32_t backing;
	uint64_t size;
	uint64_t count;		/* of the lists that the phase works with */
};

/* A region of @pages at BASE; @recovers: after gmem_recovery_enable() */
void site_new(struct site *s, int type, uint32_t backing, uint64_t pages, bool recovers);
/* Call @run, which ends with leave(), for each way of backing of an ordinary VM. */
void each_backing(void (*run)(uint32_t backing));
/* Raise the limit of file descriptors as far as it goes; false: @wanted are more */
bool get_fds(uint64_t wanted);

#endif
