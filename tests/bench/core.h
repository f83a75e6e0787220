/* SPDX-License-Identifier: MIT */
/*
 * Parts of bench-core, and a VM for them whose KVM is played: its ioctls cost nothing, or
 * as long as the part wants, so that what is left is the library's. Other fds are the
 * real kernel's.
 */
#ifndef BENCH_CORE_H
#define BENCH_CORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <gmem.h>

#define PAGE	UINT64_C(4096)
#define MIB	(UINT64_C(1) << 20)
#define GIB	(UINT64_C(1) << 30)
#define TIB	(UINT64_C(1) << 40)

/* How long the played KVM sleeps in each call: attributes, memslots */
void core_set_delays(unsigned int attributes_us, unsigned int memslot_us);

struct core_vm {
	struct gmem_vm *vm;
	struct gmem_plan *plan;
	int fd;
};

/* A VM with private memory; one at a time */
void core_vm_new(struct core_vm *vm);
void core_vm_free(struct core_vm *vm);
struct gmem_region *core_add(const struct core_vm *vm, uint64_t gpa, uint64_t size);
void core_convert(const struct core_vm *vm, uint64_t gpa, uint64_t size, bool to_private,
		  uint32_t discard);

double core_seconds(void);

/* ---- parts ---- */

void core_conversions_by_size(size_t rounds);
void core_leases_elsewhere(size_t rounds);
void core_readers(size_t rounds);
void core_many_slots(size_t rounds);
void core_storms(size_t rounds);
void core_one_page(size_t rounds);
void core_waits(size_t rounds);

#endif
