/* SPDX-License-Identifier: MIT */
/* fence: a full barrier, which ThreadSanitizer's build lacks as a built-in of the compiler. */
#ifndef GMEM_FENCE_H
#define GMEM_FENCE_H

/* Orders all accesses before it, by instructions of whatever kind, with all that follow. */
static inline void gmem_fence(void)
{
#if defined(__x86_64__)
	/* Sooner done than mfence */
	__asm__ volatile("lock orl $0, -4(%%rsp)" : : : "memory", "cc");
#elif defined(__aarch64__)
	__asm__ volatile("dmb ish" : : : "memory");
#endif
}

#endif
