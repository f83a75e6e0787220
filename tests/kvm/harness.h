/* SPDX-License-Identifier: MIT */
/*
 * The smallest test runner that survives what these tests do: every test runs
 * in a child of its own, with a fresh VM and fresh files, so that a crash is
 * one failure and not the end. Speaks TAP; needs nothing but a kernel, so that
 * the same static program runs as the only one in an emulated machine.
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

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

#define KIB ((uint64_t)1 << 10)
#define MIB ((uint64_t)1 << 20)
#define GIB ((uint64_t)1 << 30)

/* ---- tests ---- */

struct test {
	const char *name;
	void (*run)(void);
	struct test *next;
};

void test_register(struct test *test);

/* TEST(name_is_a_claim) { ... }: runs in the order of the source */
#define TEST(name_)                                                       \
	static void name_(void);                                          \
	__attribute__((constructor)) static void register_##name_(void)   \
	{                                                                 \
		static struct test test = { #name_, name_, NULL };        \
		test_register(&test);                                     \
	}                                                                 \
	static void name_(void)

/*
 * Run every test, or those whose name contains one of the arguments. Without a
 * usable /dev/kvm the program is skipped as a whole or, with
 * GMEM_TEST_REQUIRE_KVM=1, failed.
 */
int run_tests(int argc, char **argv);

/* ---- ending a test early ---- */

__attribute__((noreturn, format(printf, 3, 4)))
void fail_at(const char *file, int line, const char *format, ...);
#define FAIL(...) fail_at(__FILE__, __LINE__, __VA_ARGS__)

/* Only after a probe that tells "cannot" from "does it wrong". */
__attribute__((noreturn, format(printf, 1, 2)))
void skip(const char *format, ...);

/* what the assertions from here on are about; said when one of them fails */
__attribute__((format(printf, 1, 2)))
void in_case(const char *format, ...);

/* a line for the reader of the log */
__attribute__((format(printf, 1, 2)))
void note(const char *format, ...);

/* ---- assertions ---- */

#define CHECK(condition)                                                  \
	do {                                                              \
		if (!(condition))                                         \
			FAIL("expected: %s", #condition);                 \
	} while (0)

void check_eq(const char *file, int line, const char *text, uint64_t actual, uint64_t wanted);
#define CHECK_EQ(actual, wanted) \
	check_eq(__FILE__, __LINE__, #actual, (uint64_t)(actual), (uint64_t)(wanted))

void check_str(const char *file, int line, const char *text, const char *actual,
	       const char *wanted);
#define CHECK_STR(actual, wanted) check_str(__FILE__, __LINE__, #actual, (actual), (wanted))

/* A system call's result the way the library gives it: -errno on failure. */
long sys_result(long ret);
#define SYS(call) sys_result((long)(call))

void check_result(const char *file, int line, const char *text, long actual, long wanted);
#define CHECK_RESULT(call, wanted) check_result(__FILE__, __LINE__, #call, (long)(call), (wanted))

/* a system call that must work; its result */
long check_works(const char *file, int line, const char *text, long ret);
#define WORKS(call) check_works(__FILE__, __LINE__, #call, SYS(call))

/* a call of the library that must work, or must be refused with a sentence */
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

uint64_t page_size(void);

/*
 * One word at a host address, past the caches where a guest without its MMU
 * would look past them too.
 */
uint32_t host_load(const void *hva);
void host_store(void *hva, uint32_t value);

/* a mapping of the whole file, and its end */
void *map_file(struct gmem_file *file);
void unmap_file(struct gmem_file *file, void *hva);

/* pages KVM allocated for a guest_memfd; skips where the kernel cannot say */
void require_cachestat(void);
uint64_t allocated_pages(int fd);

/* a filesystem of its own: Linux 6.19 and later, where mbind() reaches the pages */
bool is_gmem_filesystem(int fd);

/* mappings in this process whose name contains @name */
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

/* skips if this kernel has no such VM and need not have one */
void machine_new(struct machine *m, int type);
void machine_free(struct machine *m);
bool machine_type_exists(int kvm_fd, int type);
int open_kvm(void);
/* what KVM_CREATE_VM wants to hear, and the call: a VM fd or -errno */
unsigned long vm_argument(int kvm_fd, int type);
int raw_vm(int kvm_fd, unsigned long argument);

/* KVM_CHECK_EXTENSION, raw */
int kvm_cap(int fd, long cap);

/* the plan for one way of backing alone; skips where the kernel cannot have it */
void require_backing(const struct machine *m, uint32_t backing, struct gmem_plan **ret);
/* guest_memfd at all in this VM */
void require_guest_memfd(const struct machine *m);
/* ... and with these create flags */
void require_create_flags(const struct machine *m, uint64_t flags);

/* memslots behind the library's back */
int raw_gmem_slot(int vm_fd, uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t size,
		  const void *hva, int gmemfd, uint64_t offset);
int raw_slot(int vm_fd, uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t size,
	     const void *hva);
int raw_create(int vm_fd, uint64_t size, uint64_t flags);

#endif
