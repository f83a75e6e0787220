/* SPDX-License-Identifier: MIT */
/*
 * small_copy: copies of 1 to 64 bytes by the fast engine of nofault.h, inline.
 *
 * A call that saves and restores registers costs more than such a copy. Each size takes the
 * fewest instructions: 1, 2, 4 and 8 bytes are one load and one store, so that nobody sees
 * a part of a number that is naturally aligned. Everything is loaded before anything is
 * stored.
 *
 * Not supported: counts. After a fault @dst may have been written to, and the caller copies
 * from the start with gmem_nofault_copy(), which meets the same fault and counts.
 */
#ifndef GMEM_SMALL_COPY_H
#define GMEM_SMALL_COPY_H

#include <stdbool.h>
#include <stddef.h>

#include "nofault/nofault.h"

#define GMEM_SMALL_COPY 64	/* bytes at most */

/* One instruction between memory and a register; if it faults, it goes on at the label "fault". */
#define GMEM_TRY(insn) "1:	" insn "\n" GMEM_RECOVERY_ENTRY("1b", "%l[fault]")

/*
 * These name their registers: an asm that jumps has no outputs. The register that the
 * handler sets carries data until there is a fault. No other that is not a vector is used, to
 * leave them to the code around: see view/access.c.
 */
#if defined(__x86_64__)

#define GMEM_COPY_WHOLE(load, store, a, ...)                                     \
	__asm__ goto(GMEM_TRY(load " (%[from]), " a)                             \
		     GMEM_TRY(store ", (%[to])")                                 \
		     : : [to] "r"(dst), [from] "r"(src)                          \
		     : "memory", GMEM_FAULT_REGISTER, ##__VA_ARGS__ : fault)

/* Loads from both ends, which may overlap in the middle. */
#define GMEM_COPY_ENDS(move, width, a, b, ...)                                   \
	__asm__ goto(GMEM_TRY(move " (%[from]), " a)                             \
		     GMEM_TRY(move " -" width "(%[from],%[size]), " b)           \
		     GMEM_TRY(move " " a ", (%[to])")                            \
		     GMEM_TRY(move " " b ", -" width "(%[to],%[size])")          \
		     : : [to] "r"(dst), [from] "r"(src), [size] "r"(size)        \
		     : "memory", GMEM_FAULT_REGISTER, __VA_ARGS__ : fault)

#define GMEM_COPY_1	GMEM_COPY_WHOLE("movzbl", "movb %%r11b", "%%r11d")
#define GMEM_COPY_2	GMEM_COPY_WHOLE("movzwl", "movw %%r11w", "%%r11d")
#define GMEM_COPY_4	GMEM_COPY_WHOLE("movl", "movl %%r11d", "%%r11d")
#define GMEM_COPY_8	GMEM_COPY_WHOLE("movq", "movq %%r11", "%%r11")
#define GMEM_COPY_16	GMEM_COPY_WHOLE("movups", "movups %%xmm0", "%%xmm0", "xmm0")
/* The second word of the register has the last two bytes, before and after. */
#define GMEM_COPY_3                                                              \
	__asm__ goto(GMEM_TRY("pinsrw $0, (%[from]), %%xmm0")                    \
		     GMEM_TRY("pinsrw $1, 1(%[from]), %%xmm0")                   \
		     "movd %%xmm0, %%r11d\n"                                     \
		     GMEM_TRY("movw %%r11w, (%[to])")                            \
		     "shrl $16, %%r11d\n"                                        \
		     GMEM_TRY("movw %%r11w, 1(%[to])")                           \
		     : : [to] "r"(dst), [from] "r"(src)                          \
		     : "memory", "cc", GMEM_FAULT_REGISTER, "xmm0" : fault)
#define GMEM_COPY_5_7	GMEM_COPY_ENDS("movd", "4", "%%xmm0", "%%xmm1", "xmm0", "xmm1")
#define GMEM_COPY_9_15	GMEM_COPY_ENDS("movq", "8", "%%xmm0", "%%xmm1", "xmm0", "xmm1")
#define GMEM_COPY_17_32 GMEM_COPY_ENDS("movups", "16", "%%xmm0", "%%xmm1", "xmm0", "xmm1")
#define GMEM_COPY_33_64                                                          \
	__asm__ goto(GMEM_TRY("movups (%[from]), %%xmm0")                        \
		     GMEM_TRY("movups 16(%[from]), %%xmm1")                      \
		     GMEM_TRY("movups -32(%[from],%[size]), %%xmm2")             \
		     GMEM_TRY("movups -16(%[from],%[size]), %%xmm3")             \
		     GMEM_TRY("movups %%xmm0, (%[to])")                          \
		     GMEM_TRY("movups %%xmm1, 16(%[to])")                        \
		     GMEM_TRY("movups %%xmm2, -32(%[to],%[size])")               \
		     GMEM_TRY("movups %%xmm3, -16(%[to],%[size])")               \
		     : : [to] "r"(dst), [from] "r"(src), [size] "r"(size)        \
		     : "memory", GMEM_FAULT_REGISTER, "xmm0", "xmm1", "xmm2", "xmm3" : fault)

#elif defined(__aarch64__)

#define GMEM_COPY_WHOLE(load, store, a, ...)                                     \
	__asm__ goto(GMEM_TRY(load " " a ", [%[from]]")                          \
		     GMEM_TRY(store " " a ", [%[to]]")                           \
		     : : [to] "r"(dst), [from] "r"(src)                          \
		     : "memory", GMEM_FAULT_REGISTER, ##__VA_ARGS__ : fault)

/* Loads from both ends, which may overlap in the middle. */
#define GMEM_COPY_ENDS(width, a, b, ...)                                         \
	__asm__ goto(GMEM_TRY("ldr " a ", [%[from]]")                            \
		     GMEM_TRY("ldur " b ", [%[from_end], #-" width "]")          \
		     GMEM_TRY("str " a ", [%[to]]")                              \
		     GMEM_TRY("stur " b ", [%[to_end], #-" width "]")            \
		     : : [to] "r"(dst), [to_end] "r"((char *)dst + size),        \
			 [from] "r"(src), [from_end] "r"((const char *)src + size) \
		     : "memory", GMEM_FAULT_REGISTER, __VA_ARGS__ : fault)

#define GMEM_COPY_1	GMEM_COPY_WHOLE("ldrb", "strb", "w9")
#define GMEM_COPY_2	GMEM_COPY_WHOLE("ldrh", "strh", "w9")
#define GMEM_COPY_4	GMEM_COPY_WHOLE("ldr", "str", "w9")
#define GMEM_COPY_8	GMEM_COPY_WHOLE("ldr", "str", "x9")
#define GMEM_COPY_16	GMEM_COPY_WHOLE("ldr", "str", "q0", "v0")
#define GMEM_COPY_3                                                              \
	__asm__ goto(GMEM_TRY("ldrh w9, [%[from]]")                              \
		     GMEM_TRY("ldrb w10, [%[from], #2]")                         \
		     GMEM_TRY("strh w9, [%[to]]")                                \
		     GMEM_TRY("strb w10, [%[to], #2]")                           \
		     : : [to] "r"(dst), [from] "r"(src)                          \
		     : "memory", GMEM_FAULT_REGISTER, "x10" : fault)
#define GMEM_COPY_5_7	GMEM_COPY_ENDS("4", "w9", "w10", "x10")
#define GMEM_COPY_9_15	GMEM_COPY_ENDS("8", "x9", "x10", "x10")
#define GMEM_COPY_17_32 GMEM_COPY_ENDS("16", "q0", "q1", "v0", "v1")
#define GMEM_COPY_33_64                                                          \
	__asm__ goto(GMEM_TRY("ldp q0, q1, [%[from]]")                           \
		     GMEM_TRY("ldp q2, q3, [%[from_end], #-32]")                 \
		     GMEM_TRY("stp q0, q1, [%[to]]")                             \
		     GMEM_TRY("stp q2, q3, [%[to_end], #-32]")                   \
		     : : [to] "r"(dst), [to_end] "r"((char *)dst + size),        \
			 [from] "r"(src), [from_end] "r"((const char *)src + size) \
		     : "memory", GMEM_FAULT_REGISTER, "v0", "v1", "v2", "v3" : fault)

#endif

/* Copies 1 to GMEM_SMALL_COPY bytes. Returns false if one of them could not be reached. */
static inline __attribute__((always_inline)) bool gmem_small_copy(void *dst, const void *src,
								  size_t size)
{
	if (size <= 8) {
		if (size == 8)
			GMEM_COPY_8;
		else if (size == 4)
			GMEM_COPY_4;
		else if (size == 2)
			GMEM_COPY_2;
		else if (size == 1)
			GMEM_COPY_1;
		else if (size > 4)
			GMEM_COPY_5_7;
		else
			GMEM_COPY_3;
	} else if (size <= 16) {
		if (size == 16)
			GMEM_COPY_16;
		else
			GMEM_COPY_9_15;
	} else if (size <= 32) {
		GMEM_COPY_17_32;
	} else {
		GMEM_COPY_33_64;
	}
	return true;
fault:
	return false;
}

#undef GMEM_COPY_33_64
#undef GMEM_COPY_17_32
#undef GMEM_COPY_9_15
#undef GMEM_COPY_5_7
#undef GMEM_COPY_3
#undef GMEM_COPY_16
#undef GMEM_COPY_8
#undef GMEM_COPY_4
#undef GMEM_COPY_2
#undef GMEM_COPY_1
#undef GMEM_COPY_ENDS
#undef GMEM_COPY_WHOLE
#undef GMEM_TRY

#endif
