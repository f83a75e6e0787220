/* SPDX-License-Identifier: MIT */
/* thread: threads of the library's own, which end before or with what they work for. */
#ifndef GMEM_THREAD_H
#define GMEM_THREAD_H

#include <pthread.h>

/*
 * Starts a thread, to be joined. It leaves signals to the caller's threads, except those
 * that its own faults raise.
 */
int gmem_thread_start(void *(*run)(void *), void *data, pthread_t *ret);

#endif
