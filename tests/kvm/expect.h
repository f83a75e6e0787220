/* SPDX-License-Identifier: MIT */
/*
 * The features each known kernel must grant. The tests assert them exactly: a feature
 * that is there where this table says it is not is a failure, too.
 *
 * GMEM_TEST_HOST names the kernel. Unset: whatever /dev/kvm is here; then the
 * expectations follow from the kernel's own capabilities, and the tests check
 * that everything agrees with them. An unknown name stands for a kernel newer
 * than the table, which is expected to be like the newest known one.
 */
#ifndef TESTS_KVM_EXPECT_H
#define TESTS_KVM_EXPECT_H

#include <stdbool.h>
#include <stdint.h>

/* The memory that guest accesses to a bound guest_memfd reach */
enum guest_reaches {
	GUEST_REACHES_FILE,
	GUEST_REACHES_EITHER,	/* emulated accesses use the host address, others do not */
	GUEST_REACHES_UNKNOWN,	/* a native host: found out by running a guest */
};

/* One type of VM */
struct expect_vm {
	bool exists;
	bool creates;		/* KVM_CREATE_GUEST_MEMFD works, whatever that is worth */
	bool creates_mmap;	/* ... and with GMEM_CREATE_MMAP alone */
	bool binds_unmapped;	/* a guest_memfd without GMEM_CREATE_MMAP can be bound */

	/* KVM_CHECK_EXTENSION on the VM fd */
	int user_memory2;
	int memory_fault_info;
	int attributes;
	int guest_memfd;
	int vm_types;
	int pre_fault;
	int create_flags;
	int memslots;
	int address_spaces;

	uint32_t backings;	/* 1 << enum gmem_backing */
};

struct expect {
	const char *id;
	bool mbind_works;	/* decides where guest_memfd pages go */
	int file_overlap;	/* errno for binding a bound range of a file again */
	int address_bits;	/* of the default VM; 0: ask the kernel */
	enum guest_reaches reaches;
	struct expect_vm vm[2];	/* by type: DEFAULT_VM, PRIVATE_VM */
};

const struct expect *expect(void);
const struct expect_vm *expect_vm(int type);

#endif
