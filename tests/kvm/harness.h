/* SPDX-License-Identifier: MIT */
/*
 * Helpers of the tests on a real KVM. Every test runs in a child of its own, see
 * tests/common/runner.h, which must leave no fd, no mapping and no VM behind.
 */
#ifndef TESTS_KVM_HARNESS_H
#define TESTS_KVM_HARNESS_H

#include <errno.h>
#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>

#include "gmem.h"

#include "../../lib/os/kvm_compat.h"
#include "../common/runner.h"

/*
 * Run every test, or those whose name contains one of the arguments. Without a
 * usable /dev/kvm the program is skipped as a whole or, with
 * GMEM_TEST_REQUIRE_KVM=1, failed.
 */
int run_tests(int argc, char **argv);

/* The name of the emulated machine that this is, or NULL. Needs no KVM. */
const char *emulated_machine(void);

/* ---- assertions ---- */

void check_str(const char *file, int line, const char *text, const char *actual,
	       const char *wanted);
#define CHECK_STR(actual, wanted) check_str(__FILE__, __LINE__, #actual, (actual), (wanted))

void check_result(const char *file, int line, const char *text, long actual, long wanted);
#define CHECK_RESULT(call, wanted) check_result(__FILE__, __LINE__, #call, (long)(call), (wanted))

/* A call of the library must work, or be refused with a sentence. */
void check_ok(const char *file, int line, const char *text, int ret);
#define OK(call) check_ok(__FILE__, __LINE__, #call, (call))
void check_refused(const char *file, int line, const char *text, int ret, int wanted);
#define REFUSED(call, wanted) check_refused(__FILE__, __LINE__, #call, (call), (wanted))

/*
 * The statement must raise this signal at this address (NULL: any). No signal
 * and every other signal are reported as what they were.
 */
#define EXPECT_SIGNAL(signal_, address, statement)                                   \
	do {                                                                         \
		catch_signals();                                                     \
		if (!sigsetjmp(catch_point, 1)) {                                    \
			statement;                                                   \
		}                                                                    \
		check_caught(__FILE__, __LINE__, #statement, (signal_), (address));  \
	} while (0)
#define EXPECT_SIGBUS(address, statement) EXPECT_SIGNAL(SIGBUS, address, statement)

extern sigjmp_buf catch_point;
void catch_signals(void);
void check_caught(const char *file, int line, const char *text, int signal, const void *address);

/* ---- memory ---- */

/*
 * Load or store a word at a host address, past the caches where a guest without its MMU
 * looks past them, too.
 */
uint32_t host_load(const void *hva);
void host_store(void *hva, uint32_t value);

/* Map and unmap the whole file. */
void *map_file(struct gmem_file *file);
void unmap_file(struct gmem_file *file, void *hva);

/* The pages KVM allocated for a guest_memfd; skip where the kernel cannot tell. */
void require_cachestat(void);
uint64_t allocated_pages(int fd);

/* True on Linux 6.19 and later: guest_memfd has a filesystem, and mbind() reaches its pages. */
bool is_gmem_filesystem(int fd);

/* <numaif.h> belongs to a library of its own. */
#define MPOL_BIND 2

/* The node of this CPU, to which the task is tied from now on: its pages come from here. */
unsigned int stay_on_node(void);
unsigned int node_of_page(void *hva);

/* The mappings in this process whose name contains @name */
unsigned int count_mappings(const char *name);
unsigned int count_open_fds(void);
/* VMs of this process that KVM still keeps; -1: debugfs does not show them */
int count_vms(void);

/* ---- VMs ---- */

#define DEFAULT_VM 0
#define PRIVATE_VM 1	/* KVM_X86_SW_PROTECTED_VM */

struct machine {
	int kvm_fd;
	int vm_fd;
	int type;
	struct gmem_caps *caps;
};

/* Make a VM; skips if this kernel has no such type and need not have it. */
void machine_new(struct machine *m, int type);
void machine_free(struct machine *m);
bool machine_type_exists(int kvm_fd, int type);
int open_kvm(void);
/* The argument of KVM_CREATE_VM for a type, and the call: a VM fd or -errno */
unsigned long vm_argument(int kvm_fd, int type);
int raw_vm(int kvm_fd, unsigned long argument);

/* KVM_CHECK_EXTENSION, raw */
int kvm_cap(int fd, long cap);

/* The plan for one way of backing; skips where the kernel cannot have it. */
void require_backing(const struct machine *m, uint32_t backing, struct gmem_plan **ret);
/* Skip unless this VM has guest_memfd. */
void require_guest_memfd(const struct machine *m);
/* Skip unless it has guest_memfd with these create flags. */
void require_create_flags(const struct machine *m, uint64_t flags);

/* Memslots and files by raw KVM, behind the library's back */
int raw_gmem_slot(int vm_fd, uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t size,
		  const void *hva, int gmemfd, uint64_t offset);
int raw_slot(int vm_fd, uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t size,
	     const void *hva);
int raw_create(int vm_fd, uint64_t size, uint64_t flags);

#endif
