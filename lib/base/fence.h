/* SPDX-License-Identifier: MIT */
/* fence: barriers, which ThreadSanitizer's build lacks as built-ins of the compiler. */
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
#else
#error "a fence for this processor"
#endif
}

/* Orders all accesses before it with the stores that follow. */
static inline void gmem_release_fence(void)
{
#if defined(__x86_64__)
	__asm__ volatile("" : : : "memory");
#elif defined(__aarch64__)
	__asm__ volatile("dmb ish" : : : "memory");
#else
#error "a fence for this processor"
#endif
}

#endif
