/* SPDX-License-Identifier: MIT */
/*
 * Touching memory that may not be there: private pages of a guest_memfd, pages
 * past the end of a file, poisoned pages, files shrunk by someone else. Where a
 * plain access raises SIGBUS, these return -EFAULT, or -EHWPOISON for a
 * poisoned page, and how many bytes were done.
 *
 * There are two engines, and every function is told which one to use.
 *
 * The fast one is ordinary loads and stores. Each instruction that touches has
 * an entry in a table, {its address, where to go on instead}, and the handler
 * that gmem_recovery_enable() installs moves the program counter from the one
 * to the other. The good path knows nothing of it: no arming, no thread-local
 * state. It may be used only where gmem_nofault_is_recoverable() says so: the
 * kernel kills a thread that faults while it blocks SIGBUS, whatever handler
 * there is.
 *
 * Valgrind does not show a handler the exact program counter: under it only the
 * slow engine survives.
 *
 * The slow one has the kernel copy (process_vm_readv() on ourselves), which
 * meets the same pages with an error code. It needs no handler, costs a system
 * call, and cannot tell a poisoned page: -EFAULT. A kernel or a seccomp filter
 * that refuses the call makes every function return the refusal's errno.
 *
 * Counts are exact: bytes from the start that were stored (or found equal, or
 * found not to be NUL); what is counted was done, and what lies before the
 * first page that faulted is counted. Beyond the count nothing is promised of
 * the destination. Accesses are never wider than the range asked for. Only
 * SIGBUS is survived: an address that was never mapped, or is mapped without
 * the permission, is a mistake, and dies of SIGSEGV (or is -EFAULT from the
 * slow engine). Source and destination must not overlap.
 */
#ifndef GMEM_NOFAULT_H
#define GMEM_NOFAULT_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__SANITIZE_THREAD__)
#define GMEM_NOFAULT_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define GMEM_NOFAULT_TSAN 1
#endif
#endif

/* Recovery is enabled and SIGBUS reaches it in this thread; three system calls at most. */
bool gmem_nofault_is_recoverable(void);

/* ---- the recovery table ---- */

struct gmem_recovery_entry {
	int32_t insn;		/* each relative to its own address: no relocation */
	int32_t fixup;
};

/*
 * What the handler leaves in a register of its own before it goes to the
 * fix-up: the first byte of the page that faulted, with the errno in the low 12
 * bits. 0 otherwise, as whoever has such an instruction set it before.
 */
#define GMEM_NOFAULT_GRAIN ((uint64_t)1 << 12)	/* divides every page size there is */

static inline int gmem_nofault_errno(uint64_t fault)
{
	return -(int)(fault & (GMEM_NOFAULT_GRAIN - 1));
}

static inline uint64_t gmem_nofault_page(uint64_t fault)
{
	return fault & ~(GMEM_NOFAULT_GRAIN - 1);
}

/*
 * "R": a linker that collects garbage keeps the table, although only the
 * symbols around it are ever named.
 */
#define GMEM_RECOVERY_ENTRY(insn, fixup)                                  \
	".pushsection gmem_recovery, \"aR\"\n"                            \
	".balign 4\n"                                                     \
	".long " insn " - .\n"                                            \
	".long " fixup " - .\n"                                           \
	".popsection\n"

#if defined(__x86_64__)
#define GMEM_FAULT_REGISTER "r11"
#elif defined(__aarch64__)
#define GMEM_FAULT_REGISTER "x9"
#endif

/*
 * One instruction between the register @v and the memory at @p. If it faults,
 * it was not executed, @fault is not 0, and @v means nothing. @mode: "=" for a
 * load, "+" for everything else.
 */
#define GMEM_NOFAULT(fault, insn, mode, v, p)                               \
	do {                                                              \
		register uint64_t fault_ __asm__(GMEM_FAULT_REGISTER) = 0; \
		__asm__ volatile("1:	" insn "\n"                       \
				 "2:\n"                                   \
				 GMEM_RECOVERY_ENTRY("1b", "2b")          \
				 : "+r"(fault_), [value] mode "r"(v)      \
				 : [at] "r"(p)                            \
				 : "memory");                             \
		(fault) = fault_;                                         \
	} while (0)

/* ---- bytes ---- */

/* In registers: on the good path only a zero is returned beside the count. */
struct gmem_nofault_stop {
	size_t done;
	uint64_t fault;
};

/* touch_x86_64.S, touch_arm64.S: on a fault, @done may be less than what could be done. */
struct gmem_nofault_stop gmem_nofault_fast_copy(void *dst, const void *src, size_t size);
struct gmem_nofault_stop gmem_nofault_fast_fill(void *dst, int byte, size_t size);

/*
 * Take the widest vectors this processor has, of at most this many bytes; until
 * then it is the narrowest. Returns their width. Thread-safe.
 */
unsigned int gmem_nofault_choose(unsigned int most);
#define GMEM_NOFAULT_WIDEST 64

#if defined(__x86_64__)
/* From how many bytes on a string instruction is used; gmem_nofault_choose() sets it. */
extern size_t gmem_nofault_string_from;
#endif

/* Do what is left before the page that faulted. */
size_t gmem_nofault_finish_copy(struct gmem_nofault_stop stop, void *dst, const void *src,
				size_t size, int *ret_err);
size_t gmem_nofault_finish_fill(struct gmem_nofault_stop stop, void *dst, int byte, size_t size,
				int *ret_err);

size_t gmem_nofault_slow_copy(void *dst, const void *src, size_t size, int *ret_err);
size_t gmem_nofault_slow_fill(void *dst, int byte, size_t size, int *ret_err);

/* @ret_err is always set: 0 if all was done. */
static inline size_t gmem_nofault_copy(bool fast, void *dst, const void *src, size_t size,
				       int *ret_err)
{
	struct gmem_nofault_stop stop;

	if (!fast)
		return gmem_nofault_slow_copy(dst, src, size, ret_err);

	stop = gmem_nofault_fast_copy(dst, src, size);
	if (__builtin_expect(stop.fault != 0, 0))
		return gmem_nofault_finish_copy(stop, dst, src, size, ret_err);

	*ret_err = 0;
	return size;
}

static inline size_t gmem_nofault_fill(bool fast, void *dst, int byte, size_t size, int *ret_err)
{
	struct gmem_nofault_stop stop;

	if (!fast)
		return gmem_nofault_slow_fill(dst, byte, size, ret_err);

	stop = gmem_nofault_fast_fill(dst, byte, size);
	if (__builtin_expect(stop.fault != 0, 0))
		return gmem_nofault_finish_fill(stop, dst, byte, size, ret_err);

	*ret_err = 0;
	return size;
}

/*
 * Returns the bytes found equal before the first difference, fault or the end.
 * @ret_cmp, always set: the sign of the first difference, as memcmp() has it;
 * 0 if there was none.
 */
size_t gmem_nofault_compare(bool fast, const void *a, const void *b, size_t size, int *ret_cmp,
			    int *ret_err);

/*
 * Copy what is before the NUL, and not the NUL. Returns the bytes copied: @max
 * if no NUL was among the first @max bytes. Nothing is read past the NUL's page.
 */
size_t gmem_nofault_string(bool fast, char *dst, const char *src, size_t max, int *ret_err);

/* ---- words: naturally aligned, which the caller has checked ---- */

/*
 * Orders are the compiler's: __ATOMIC_RELAXED, _ACQUIRE, _RELEASE or _SEQ_CST.
 * One that does not fit the access (a load that releases) is taken as SEQ_CST.
 * Outputs are untouched on failure.
 *
 * Both engines use the same single instruction, so that the access is atomic in
 * both. The slow one asks the kernel first whether the page is there. Between
 * the question and the instruction the page can go away (be converted, punched
 * out of a private file, cut off); then the slow engine dies after all unless
 * recovery happens to work. Callers that cannot rule this out need the fast one.
 */

/* 0, or -errno if the page is not there */
int gmem_nofault_probe(const void *p, size_t size);

/*
 * ThreadSanitizer does not look into assembly; tell it what orders what, or it
 * sees races between threads that are well ordered.
 */
#ifdef GMEM_NOFAULT_TSAN
void __tsan_acquire(void *p);
void __tsan_release(void *p);
#define GMEM_NOFAULT_ACQUIRED(p, order) \
	((order) != __ATOMIC_RELAXED ? __tsan_acquire((void *)(uintptr_t)(p)) : (void)0)
#define GMEM_NOFAULT_RELEASES(p, order) \
	((order) != __ATOMIC_RELAXED ? __tsan_release((void *)(uintptr_t)(p)) : (void)0)
#else
#define GMEM_NOFAULT_ACQUIRED(p, order) ((void)0)
#define GMEM_NOFAULT_RELEASES(p, order) ((void)0)
#endif

#if defined(__x86_64__)

/*
 * Every load acquires and every store releases. What is left to do for SEQ_CST
 * is done by the store, as compilers do it: xchg is a full barrier.
 */
#define GMEM_LOAD(fault, p, v, order, suffix)                             \
	do {                                                              \
		(void)(order);                                            \
		GMEM_NOFAULT(fault, "mov" suffix " (%[at]), %[value]", "=", v, p); \
	} while (0)

#define GMEM_STORE(fault, p, v, order, suffix)                            \
	do {                                                              \
		if ((order) == __ATOMIC_RELAXED || (order) == __ATOMIC_RELEASE) \
			GMEM_NOFAULT(fault, "mov" suffix " %[value], (%[at])", "+", v, p); \
		else                                                      \
			GMEM_NOFAULT(fault, "xchg" suffix " %[value], (%[at])", "+", v, p); \
	} while (0)

/* After a fault the flags are those of some earlier instruction. */
#define GMEM_CMPXCHG(fault, p, old, desired, order, swapped, suffix)      \
	do {                                                              \
		register uint64_t fault_ __asm__(GMEM_FAULT_REGISTER) = 0; \
		(void)(order);                                            \
		__asm__ volatile("1:	lock cmpxchg" suffix " %[value], (%[at])\n" \
				 "2:\n"                                   \
				 GMEM_RECOVERY_ENTRY("1b", "2b")          \
				 : "+r"(fault_), "+a"(old), "=@ccz"(swapped) \
				 : [value] "r"(desired), [at] "r"(p)      \
				 : "memory");                             \
		(fault) = fault_;                                         \
	} while (0)

#define GMEM_WORDS(define)                                                \
	define(8, "b")                                                    \
	define(16, "w")                                                   \
	define(32, "l")                                                   \
	define(64, "q")

#elif defined(__aarch64__)

#define GMEM_LOAD(fault, p, v, order, suffix, r)                          \
	do {                                                              \
		if ((order) == __ATOMIC_RELAXED)                          \
			GMEM_NOFAULT(fault, "ldr" suffix " %" r "[value], [%[at]]", "=", v, p); \
		else                                                      \
			GMEM_NOFAULT(fault, "ldar" suffix " %" r "[value], [%[at]]", "=", v, p); \
	} while (0)

#define GMEM_STORE(fault, p, v, order, suffix, r)                         \
	do {                                                              \
		if ((order) == __ATOMIC_RELAXED)                          \
			GMEM_NOFAULT(fault, "str" suffix " %" r "[value], [%[at]]", "+", v, p); \
		else                                                      \
			GMEM_NOFAULT(fault, "stlr" suffix " %" r "[value], [%[at]]", "+", v, p); \
	} while (0)

/*
 * Exclusives, which every ARMv8.0 has. A failed store-exclusive starts over; a
 * signal in between clears the monitor and does the same.
 */
#define GMEM_EXCLUSIVE(fault, p, old, desired, swapped, load, store, r)   \
	do {                                                              \
		register uint64_t fault_ __asm__(GMEM_FAULT_REGISTER) = 0; \
		uint64_t wanted_ = (old);                                 \
		uint32_t failed_ = 1;                                     \
		__asm__ volatile("1:	" load " %" r "[seen], [%[at]]\n" \
				 "	cmp %" r "[seen], %" r "[wanted]\n" \
				 "	b.ne 3f\n"                        \
				 "2:	" store " %w[failed], %" r "[value], [%[at]]\n" \
				 "	cbnz %w[failed], 1b\n"            \
				 "3:\n"                                   \
				 GMEM_RECOVERY_ENTRY("1b", "3b")          \
				 GMEM_RECOVERY_ENTRY("2b", "3b")          \
				 : "+r"(fault_), [seen] "=&r"(old), [failed] "+&r"(failed_) \
				 : [wanted] "r"(wanted_), [value] "r"(desired), [at] "r"(p) \
				 : "memory", "cc");                       \
		(fault) = fault_;                                         \
		(swapped) = !failed_;                                     \
	} while (0)

#define GMEM_CMPXCHG(fault, p, old, desired, order, swapped, b, r)        \
	do {                                                              \
		if ((order) == __ATOMIC_RELAXED)                          \
			GMEM_EXCLUSIVE(fault, p, old, desired, swapped, "ldxr" b, "stxr" b, r); \
		else if ((order) == __ATOMIC_ACQUIRE)                     \
			GMEM_EXCLUSIVE(fault, p, old, desired, swapped, "ldaxr" b, "stxr" b, r); \
		else if ((order) == __ATOMIC_RELEASE)                     \
			GMEM_EXCLUSIVE(fault, p, old, desired, swapped, "ldxr" b, "stlxr" b, r); \
		else                                                      \
			GMEM_EXCLUSIVE(fault, p, old, desired, swapped, "ldaxr" b, "stlxr" b, r); \
	} while (0)

#define GMEM_WORDS(define)                                                \
	define(8, "b", "w")                                               \
	define(16, "h", "w")                                              \
	define(32, "", "w")                                               \
	define(64, "", "x")

#endif

#define GMEM_DEFINE_WORD(bits, ...)                                       \
static inline int gmem_nofault_load##bits(bool fast, const void *p, int order, \
					  uint##bits##_t *ret)              \
{                                                                         \
	uint##bits##_t value;                                             \
	uint64_t fault;                                                   \
	int err;                                                          \
                                                                          \
	if (!fast) {                                                      \
		err = gmem_nofault_probe(p, sizeof(value));                 \
		if (err)                                                  \
			return err;                                       \
	}                                                                 \
                                                                          \
	GMEM_LOAD(fault, p, value, order, __VA_ARGS__);             \
	if (__builtin_expect(fault != 0, 0))                              \
		return gmem_nofault_errno(fault);                           \
                                                                          \
	GMEM_NOFAULT_ACQUIRED(p, order);                                    \
	*ret = value;                                                     \
	return 0;                                                         \
}                                                                         \
                                                                          \
static inline int gmem_nofault_store##bits(bool fast, void *p, uint##bits##_t value, \
					   int order)                       \
{                                                                         \
	uint64_t fault;                                                   \
	int err;                                                          \
                                                                          \
	if (!fast) {                                                      \
		err = gmem_nofault_probe(p, sizeof(value));                 \
		if (err)                                                  \
			return err;                                       \
	}                                                                 \
                                                                          \
	GMEM_NOFAULT_RELEASES(p, order);                                    \
	GMEM_STORE(fault, p, value, order, __VA_ARGS__);            \
	return gmem_nofault_errno(fault);                                   \
}                                                                         \
                                                                          \
/* @expected gets the value found; a failed comparison is a success. */   \
static inline int gmem_nofault_cmpxchg##bits(bool fast, void *p, uint##bits##_t *expected, \
					     uint##bits##_t desired, int order, \
					     int *ret_swapped)              \
{                                                                         \
	uint##bits##_t old = *expected;                                   \
	uint64_t fault;                                                   \
	int swapped, err;                                                 \
                                                                          \
	if (!fast) {                                                      \
		err = gmem_nofault_probe(p, sizeof(old));                   \
		if (err)                                                  \
			return err;                                       \
	}                                                                 \
                                                                          \
	GMEM_NOFAULT_RELEASES(p, order);                                    \
	GMEM_CMPXCHG(fault, p, old, desired, order, swapped, __VA_ARGS__); \
	if (__builtin_expect(fault != 0, 0))                              \
		return gmem_nofault_errno(fault);                           \
                                                                          \
	GMEM_NOFAULT_ACQUIRED(p, order);                                    \
	*expected = old;                                                  \
	*ret_swapped = swapped;                                           \
	return 0;                                                         \
}

GMEM_WORDS(GMEM_DEFINE_WORD)

#undef GMEM_DEFINE_WORD
#undef GMEM_WORDS

#endif
