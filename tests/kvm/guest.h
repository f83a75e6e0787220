/* SPDX-License-Identifier: MIT */
/*
 * One vCPU on raw KVM that does single loads and stores at guest physical
 * addresses, without paging. Its few bytes of code are in a memslot of their
 * own, far above the numbers the library hands out.
 */
#ifndef TESTS_KVM_GUEST_H
#define TESTS_KVM_GUEST_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

#define GUEST_SLOT 20000u
/* Below this the guest keeps its own things. */
#define GUEST_FREE_GPA ((uint64_t)1 << 20)

struct guest {
	int vm_fd;
	int vcpu_fd;
	struct kvm_run *run;
	uint64_t run_size;
	void *code;
};

enum guest_outcome {
	GUEST_DONE,		/* the instruction was executed */
	GUEST_MMIO,		/* no memory there: it came to us as MMIO */
	GUEST_FAULT,		/* KVM_RUN failed with a memory-fault exit */
	GUEST_ERROR,		/* anything else */
};

struct guest_access {
	enum guest_outcome outcome;
	uint32_t value;		/* GUEST_DONE: loaded */
	int error;		/* from KVM_RUN: 0 or -errno */
	uint32_t exit_reason;
	uint64_t fault_flags;
	uint64_t fault_gpa;	/* rounded down to the host page */
	uint64_t fault_size;
};

void guest_new(struct guest *guest, int vm_fd, int kvm_fd);
/* Add a vCPU of the same VM that executes the code of @first; free it before @first. */
void guest_join(struct guest *guest, const struct guest *first, int kvm_fd, uint32_t number);
void guest_free(struct guest *guest);

/*
 * For tests that run the vCPU themselves: aim it at its next access; after an
 * exit, guest_finish() is true once the access is done, with the word accessed.
 */
void guest_aim_load(struct guest *guest, uint64_t gpa);
void guest_aim_store(struct guest *guest, uint64_t gpa, uint32_t value);
bool guest_finish(struct guest *guest, uint32_t *ret_value);

#ifdef __x86_64__
/* KVM_HC_MAP_GPA_RANGE exits once it is allowed; the guest reports its answer. */
void guest_allow_requests(struct guest *guest);
void guest_aim_request(struct guest *guest, uint32_t gpa, uint32_t pages, uint32_t attributes);
#endif

#ifdef __aarch64__
/* Reset a vCPU, and set one of its registers by its offset in struct kvm_regs. */
void arm64_init_vcpu(int vm_fd, int vcpu_fd);
void arm64_set_register(int vcpu_fd, uint64_t offset, uint64_t value);
#endif

struct guest_access guest_load(struct guest *guest, uint64_t gpa);
struct guest_access guest_store(struct guest *guest, uint64_t gpa, uint32_t value);
/* Store value, value + 1, ... at so many addresses, the first at @gpa, without an exit in between. */
struct guest_access guest_burst(struct guest *guest, uint64_t gpa, uint32_t value, uint32_t count,
				uint32_t stride);
/* After an exit that has nothing to do with memory: go on. */
struct guest_access guest_run_on(struct guest *guest);

#ifdef __x86_64__
/* A load that KVM does itself, whatever the hardware could: outsd */
struct guest_access guest_emulated_load(struct guest *guest, uint64_t gpa);
#endif

/* The access in words, in a static buffer */
const char *guest_describe(const struct guest_access *access);

void check_guest_load(const char *file, int line, struct guest *guest, uint64_t gpa,
		      uint32_t wanted);
void check_guest_store(const char *file, int line, struct guest *guest, uint64_t gpa,
		       uint32_t value);
/* The guest's load gives this value, or its store works. */
#define GUEST_LOADS(guest, gpa, wanted) \
	check_guest_load(__FILE__, __LINE__, (guest), (gpa), (wanted))
#define GUEST_STORES(guest, gpa, value) \
	check_guest_store(__FILE__, __LINE__, (guest), (gpa), (value))

/* A load and a store at this address both have this outcome. */
void check_guest_access(const char *file, int line, struct guest *guest, uint64_t gpa,
			enum guest_outcome wanted);
#define GUEST_GETS(guest, gpa, outcome) \
	check_guest_access(__FILE__, __LINE__, (guest), (gpa), (outcome))

#endif
