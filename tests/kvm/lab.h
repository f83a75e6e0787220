/* SPDX-License-Identifier: MIT */
/* A VM, its handle and a vCPU, for tests with a guest */
#ifndef TESTS_KVM_LAB_H
#define TESTS_KVM_LAB_H

#include "expect.h"
#include "guest.h"
#include "harness.h"

struct lab {
	struct machine m;
	struct gmem_vm *vm;
	struct guest guest;
	uint64_t page;
};

void lab_new(struct lab *lab, int type);
void lab_free(struct lab *lab);

/* Add a region of a few pages; the plan in the options is filled in for @backing. */
struct gmem_region *lab_add(struct lab *lab, uint32_t backing, uint64_t gpa, uint64_t pages,
			    const struct gmem_region_opts *opts);

/* Memory of the test's own, to be added as a region */
struct lab_memory {
	char *hva;
	uint64_t size;
	int fd;			/* -1: of no file */
};

struct gmem_region *lab_add_memory(struct lab *lab, uint64_t gpa, const struct lab_memory *memory);
/* Unmap it, and close its file. */
void lab_unmap_memory(struct lab_memory *memory);

/*
 * Call @run with each type of VM, and each of these ways of backing (1 << enum
 * gmem_backing), that this kernel has. Skips if there is none.
 */
void lab_for_each_way(uint32_t ways, void (*run)(int type, uint32_t backing, void *data),
		      void *data);

/* Convert a range by raw KVM; @attributes are those of KVM_SET_MEMORY_ATTRIBUTES. */
int lab_convert(struct lab *lab, uint64_t gpa, uint64_t size, uint64_t attributes);

/*
 * True if guest accesses to a bound guest_memfd reach the file, found out by
 * binding one beside other memory. Must be what is expected of this kernel.
 */
bool lab_reaches_file(struct lab *lab);

/* The number after @label, such as "MemAvailable:", in a file of /proc; 0: there is none */
uint64_t lab_read_number(const char *path, const char *label);

/* An empty file where this machine keeps temporary ones, or in memory: some have no disk */
int lab_new_file(void);

/* A progress callback: the process is killed when it is called for the @data-th time, an unsigned. */
int lab_die(void *data, uint64_t done, uint64_t total);

/* A stream socket that listens and never blocks, and a connection to it */
int lab_listen(void);
int lab_connect(int listening);

/* ---- poison ---- */

/*
 * Poison memory that is in use. The kernel tells whoever does so by the signal that it will
 * raise there; call it before anything blocks or handles SIGBUS.
 */
int lab_poison(void *hva, uint64_t size);
/* A poisoned page is lost for good: skip unless the machine is about to end anyway. */
void lab_require_poison(void);

#endif
