/* SPDX-License-Identifier: MIT */
/*
 * nofault: access to memory that may not be there.
 *
 * A page of a mapping can be private to the guest, poisoned, or past the end of its file,
 * which another process may have shrunk: then a plain access raises SIGBUS. The memory can
 * be mapped without the permission, or not at all: then it raises SIGSEGV. The functions
 * here return -EFAULT instead, or -EHWPOISON for a poisoned page, and count the bytes done
 * before. That holds for both sides of a copy, also for a buffer of the caller's.
 *
 * There are two engines, and the argument @fast of every function chooses one.
 *
 * - The fast engine uses ordinary loads and stores. Each instruction that may fault has
 *   an entry in the recovery table: the address of the instruction, and the address of its
 *   fix-up. The handler that gmem_recovery_enable() installs moves the program counter
 *   from one to the other. An access that does not fault costs nothing extra: no state is
 *   set up before it. The engine works only if gmem_nofault_is_recoverable(), because the
 *   kernel kills a thread that faults while it blocks the signal, whatever handler there is.
 *
 * - The slow engine has the kernel copy, with process_vm_readv() on this process: the
 *   kernel meets the same pages and returns an error code. This needs no handler, costs a
 *   system call, and reports a poisoned page as -EFAULT. If the kernel or a seccomp filter
 *   refuses the call, every function returns the errno of the refusal.
 *
 * Counts are exact. They count the bytes from the start that were stored (or found equal,
 * or found not to be NUL), and include every byte before the first page that faulted. The
 * contents of the destination past the count are undefined. No access goes outside the
 * range asked for.
 *
 * Not supported:
 * - A source and a destination that overlap.
 * - Device memory (VM_IO, VM_PFNMAP) in the slow engine: the kernel does not copy it, and
 *   the functions return -EFAULT.
 * - The fast engine under valgrind, which does not give a handler the exact program
 *   counter.
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

/*
 * Returns whether recovery is enabled and this thread does not block SIGBUS and SIGSEGV. It
 * does not ask who handles the signals: whoever comes over our handlers passes them on, and
 * sandboxes forbid sigaction(2) once the handlers are there.
 */
bool gmem_nofault_is_recoverable(void);
/*
 * The same without a system call: a thread that once did not block them does not do so later, as
 * long as recovery stays enabled.
 */
bool gmem_nofault_was_recoverable(void);

/* ---- the recovery table ---- */

/* Each address is relative to the field that has it, so the table needs no relocation. */
struct gmem_recovery_entry {
	int32_t insn;
	int32_t fixup;
};

/*
 * Before it goes to the fix-up, the handler sets GMEM_FAULT_REGISTER to a "fault": the
 * address of the page that faulted, with the errno in the low 12 bits. The code around
 * the instruction sets the register to 0 first, so that 0 means "no fault".
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
 * "R" has a linker that collects garbage keep the table, although code refers only to the
 * symbols around it.
 */
#define GMEM_RECOVERY_ENTRY(insn, fixup)                                         \
	".pushsection gmem_recovery, \"aR\"\n"                                   \
	".balign 4\n"                                                            \
	".long " insn " - .\n"                                                   \
	".long " fixup " - .\n"                                                  \
	".popsection\n"

#if defined(__x86_64__)
#define GMEM_FAULT_REGISTER "r11"
#elif defined(__aarch64__)
#define GMEM_FAULT_REGISTER "x9"
#endif

/*
 * Executes one instruction between the register @v and the memory at @p. If it faults, it
 * has no effect, @fault is not 0, and @v is undefined. @mode is "=" for a load, and "+"
 * for every other instruction.
 */
#define GMEM_NOFAULT(fault, insn, mode, v, p)                                    \
	do {                                                                     \
		register uint64_t fault_ __asm__(GMEM_FAULT_REGISTER) = 0;       \
		__asm__ volatile("1:	" insn "\n"                              \
				 "2:\n"                                          \
				 GMEM_RECOVERY_ENTRY("1b", "2b")                 \
				 : "+r"(fault_), [value] mode "r"(v)             \
				 : [at] "r"(p)                                   \
				 : "memory");                                    \
		(fault) = fault_;                                                \
	} while (0)

/* ---- bytes ---- */

/* The functions in assembly return this in two registers. */
struct gmem_nofault_stop {
	size_t done;
	uint64_t fault;		/* 0: all was done */
};

/*
 * nofault_x86_64.S, nofault_arm64.S. On a fault, @done can be less than the bytes before
 * the page that faulted; gmem_nofault_finish_copy() and _fill() do the rest.
 */
struct gmem_nofault_stop gmem_nofault_fast_copy(void *dst, const void *src, size_t size);
struct gmem_nofault_stop gmem_nofault_fast_fill(void *dst, int byte, size_t size);

/*
 * Selects the widest vectors of this processor that have at most @max bytes; before the
 * first call the narrowest are selected. Returns their width in bytes. Thread-safe.
 */
unsigned int gmem_nofault_choose(unsigned int max);
#define GMEM_NOFAULT_WIDEST 64

#if defined(__x86_64__)
/* The least size for which a string instruction is used; gmem_nofault_choose() sets it. */
extern size_t gmem_nofault_string_from;
#endif

/* Finish what @stop left over, up to the page that faulted; return the bytes done in all. */
size_t gmem_nofault_finish_copy(struct gmem_nofault_stop stop, void *dst, const void *src,
				size_t size, int *ret_err);
size_t gmem_nofault_finish_fill(struct gmem_nofault_stop stop, void *dst, int byte, size_t size,
				int *ret_err);

size_t gmem_nofault_slow_copy(void *dst, const void *src, size_t size, int *ret_err);
size_t gmem_nofault_slow_fill(void *dst, int byte, size_t size, int *ret_err);

/* Returns the bytes copied. @ret_err is always set: 0 if all were. */
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

/* Returns the bytes filled. @ret_err is always set: 0 if all were. */
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
 * Returns how many bytes are equal before the first difference, the first fault or the
 * end. @ret_cmp is always set: to the sign of the first difference, as memcmp() defines
 * it, or to 0 if there was none.
 */
size_t gmem_nofault_compare(bool fast, const void *a, const void *b, size_t size, int *ret_cmp,
			    int *ret_err);

/*
 * Copies a string without its NUL. Returns the bytes copied, which is @max if there is no
 * NUL among the first @max bytes. Nothing is read past the page that has the NUL.
 */
size_t gmem_nofault_string(bool fast, char *dst, const char *src, size_t max, int *ret_err);

/* ---- why not ---- */

/* 0 if the slow engine can copy here at all; otherwise it has the sentence. */
int gmem_nofault_check_slow(void);

/*
 * Returns why the byte at @p can be neither read nor, if @writes, written, for the sentence
 * of an access that failed with @err. Asks the kernel, which knows the same after either
 * engine, and returns NULL if it reaches the byte: then the other side of the copy is to
 * blame, or the page came back.
 */
const char *gmem_nofault_why(const void *p, bool writes, int err);

/*
 * Tells whether the hardware lost the page at @p, of an access that failed with @err: the
 * slow engine does not. Uses madvise(2), which only transfers may in a sandbox. Before Linux
 * 5.14 the answer is then no.
 */
bool gmem_nofault_is_lost(const void *p, int err);

/* ---- words ---- */

/*
 * The caller has checked that the word is naturally aligned. An order is __ATOMIC_RELAXED,
 * _ACQUIRE, _RELEASE or _SEQ_CST; an order that does not fit the access, such as a load
 * that releases, counts as _SEQ_CST. Outputs are untouched on failure.
 *
 * Both engines use the same single instruction, so that the access is atomic in both. The
 * slow engine asks the kernel first whether the page can be read, or written. Between the
 * question and the instruction the page can go away: by a conversion, a hole punched in its
 * file, or a new protection. Then the program dies of the signal, unless recovery works
 * after all. A caller that cannot rule this out needs the fast engine.
 */

/* Asks the kernel whether @p can be read: 0, or -errno if the page is not there. */
int gmem_nofault_probe(const void *p, size_t size);
/* Asks whether @p can be read and written; within a word that is naturally aligned. */
int gmem_nofault_probe_write(void *p, size_t size);

/*
 * ThreadSanitizer does not look into assembly, and reports races between threads that are
 * well ordered, unless these tell it about the order.
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
 * On x86_64 every load acquires and every store releases. For SEQ_CST the store is an
 * xchg, which is a full barrier; compilers do the same.
 */
#define GMEM_LOAD(fault, p, v, order, suffix)                                    \
	do {                                                                     \
		(void)(order);                                                   \
		GMEM_NOFAULT(fault, "mov" suffix " (%[at]), %[value]", "=", v, p); \
	} while (0)

#define GMEM_STORE(fault, p, v, order, suffix)                                   \
	do {                                                                     \
		if ((order) == __ATOMIC_RELAXED || (order) == __ATOMIC_RELEASE)  \
			GMEM_NOFAULT(fault, "mov" suffix " %[value], (%[at])", "+", v, p); \
		else                                                             \
			GMEM_NOFAULT(fault, "xchg" suffix " %[value], (%[at])", "+", v, p); \
	} while (0)

/* After a fault the flags, and so @swapped, are those of an earlier instruction. */
#define GMEM_CMPXCHG(fault, p, old, desired, order, swapped, suffix)             \
	do {                                                                     \
		register uint64_t fault_ __asm__(GMEM_FAULT_REGISTER) = 0;       \
		(void)(order);                                                   \
		__asm__ volatile("1:	lock cmpxchg" suffix " %[value], (%[at])\n" \
				 "2:\n"                                          \
				 GMEM_RECOVERY_ENTRY("1b", "2b")                 \
				 : "+r"(fault_), "+a"(old), "=@ccz"(swapped)     \
				 : [value] "r"(desired), [at] "r"(p)             \
				 : "memory");                                    \
		(fault) = fault_;                                                \
	} while (0)

#define GMEM_WORDS(define)                                                       \
	define(8, "b")                                                           \
	define(16, "w")                                                          \
	define(32, "l")                                                          \
	define(64, "q")

#elif defined(__aarch64__)

#define GMEM_LOAD(fault, p, v, order, suffix, r)                                 \
	do {                                                                     \
		if ((order) == __ATOMIC_RELAXED)                                 \
			GMEM_NOFAULT(fault, "ldr" suffix " %" r "[value], [%[at]]", "=", v, p); \
		else                                                             \
			GMEM_NOFAULT(fault, "ldar" suffix " %" r "[value], [%[at]]", "=", v, p); \
	} while (0)

#define GMEM_STORE(fault, p, v, order, suffix, r)                                \
	do {                                                                     \
		if ((order) == __ATOMIC_RELAXED)                                 \
			GMEM_NOFAULT(fault, "str" suffix " %" r "[value], [%[at]]", "+", v, p); \
		else                                                             \
			GMEM_NOFAULT(fault, "stlr" suffix " %" r "[value], [%[at]]", "+", v, p); \
	} while (0)

/*
 * Exclusive loads and stores exist on every ARMv8.0. If the store fails, for example
 * because a signal cleared the monitor in between, the loop starts over.
 */
#define GMEM_EXCLUSIVE(fault, p, old, desired, swapped, load, store, r)          \
	do {                                                                     \
		register uint64_t fault_ __asm__(GMEM_FAULT_REGISTER) = 0;       \
		uint64_t wanted_ = (old);                                        \
		uint32_t failed_ = 1;                                            \
		__asm__ volatile("1:	" load " %" r "[seen], [%[at]]\n"        \
				 "	cmp %" r "[seen], %" r "[wanted]\n"      \
				 "	b.ne 3f\n"                               \
				 "2:	" store " %w[failed], %" r "[value], [%[at]]\n" \
				 "	cbnz %w[failed], 1b\n"                   \
				 "3:\n"                                          \
				 GMEM_RECOVERY_ENTRY("1b", "3b")                 \
				 GMEM_RECOVERY_ENTRY("2b", "3b")                 \
				 : "+r"(fault_), [seen] "=&r"(old), [failed] "+&r"(failed_) \
				 : [wanted] "r"(wanted_), [value] "r"(desired), [at] "r"(p) \
				 : "memory", "cc");                              \
		(fault) = fault_;                                                \
		(swapped) = !failed_;                                            \
	} while (0)

#define GMEM_CMPXCHG(fault, p, old, desired, order, swapped, b, r)               \
	do {                                                                     \
		if ((order) == __ATOMIC_RELAXED)                                 \
			GMEM_EXCLUSIVE(fault, p, old, desired, swapped, "ldxr" b, "stxr" b, r); \
		else if ((order) == __ATOMIC_ACQUIRE)                            \
			GMEM_EXCLUSIVE(fault, p, old, desired, swapped, "ldaxr" b, "stxr" b, r); \
		else if ((order) == __ATOMIC_RELEASE)                            \
			GMEM_EXCLUSIVE(fault, p, old, desired, swapped, "ldxr" b, "stlxr" b, r); \
		else                                                             \
			GMEM_EXCLUSIVE(fault, p, old, desired, swapped, "ldaxr" b, "stlxr" b, r); \
	} while (0)

#define GMEM_WORDS(define)                                                       \
	define(8, "b", "w")                                                      \
	define(16, "h", "w")                                                     \
	define(32, "", "w")                                                      \
	define(64, "", "x")

#endif

#define GMEM_DEFINE_WORD(bits, ...)                                              \
static inline int gmem_nofault_load##bits(bool fast, const void *p, int order,   \
					  uint##bits##_t *ret)                   \
{                                                                                \
	uint##bits##_t value;                                                    \
	uint64_t fault;                                                          \
	int err;                                                                 \
                                                                                 \
	if (!fast) {                                                             \
		err = gmem_nofault_probe(p, sizeof(value));                      \
		if (err)                                                         \
			return err;                                              \
	}                                                                        \
                                                                                 \
	GMEM_LOAD(fault, p, value, order, __VA_ARGS__);                          \
	if (__builtin_expect(fault != 0, 0))                                     \
		return gmem_nofault_errno(fault);                                \
                                                                                 \
	GMEM_NOFAULT_ACQUIRED(p, order);                                         \
	*ret = value;                                                            \
	return 0;                                                                \
}                                                                                \
                                                                                 \
static inline int gmem_nofault_store##bits(bool fast, void *p, uint##bits##_t value, \
					   int order)                            \
{                                                                                \
	uint64_t fault;                                                          \
	int err;                                                                 \
                                                                                 \
	if (!fast) {                                                             \
		err = gmem_nofault_probe_write(p, sizeof(value));                \
		if (err)                                                         \
			return err;                                              \
	}                                                                        \
                                                                                 \
	GMEM_NOFAULT_RELEASES(p, order);                                         \
	GMEM_STORE(fault, p, value, order, __VA_ARGS__);                         \
	return gmem_nofault_errno(fault);                                        \
}                                                                                \
                                                                                 \
/* Sets @expected to the value found. Returns 0 also if the values differ. */    \
static inline int gmem_nofault_cmpxchg##bits(bool fast, void *p, uint##bits##_t *expected, \
					     uint##bits##_t desired, int order,  \
					     int *ret_swapped)                   \
{                                                                                \
	uint##bits##_t old = *expected;                                          \
	uint64_t fault;                                                          \
	int swapped, err;                                                        \
                                                                                 \
	if (!fast) {                                                             \
		err = gmem_nofault_probe_write(p, sizeof(old));                  \
		if (err)                                                         \
			return err;                                              \
	}                                                                        \
                                                                                 \
	GMEM_NOFAULT_RELEASES(p, order);                                         \
	GMEM_CMPXCHG(fault, p, old, desired, order, swapped, __VA_ARGS__);       \
	if (__builtin_expect(fault != 0, 0))                                     \
		return gmem_nofault_errno(fault);                                \
                                                                                 \
	GMEM_NOFAULT_ACQUIRED(p, order);                                         \
	*expected = old;                                                         \
	*ret_swapped = swapped;                                                  \
	return 0;                                                                \
}

GMEM_WORDS(GMEM_DEFINE_WORD)

#undef GMEM_DEFINE_WORD
#undef GMEM_WORDS

#endif
