/* SPDX-License-Identifier: MIT */
/* thread: threads of the library's own, which end before or with what they work for. */
#ifndef GMEM_THREAD_H
#define GMEM_THREAD_H

#include <pthread.h>
#include <stddef.h>

/* Bytes of stack: for functions of the library's alone, and with callbacks of the caller's */
#define GMEM_THREAD_PLAIN	((size_t)64 << 10)
#define GMEM_THREAD_CALLBACKS	((size_t)1 << 20)

/*
 * Starts a thread, to be joined, in which functions may use @use bytes of stack: the default
 * stack of 8 MiB counts in full where a program locks its memory or has a limit. The thread
 * leaves signals to the caller's threads, except those that its own faults raise.
 */
int gmem_thread_start(void *(*run)(void *), void *data, size_t use, pthread_t *ret);

#endif
