/* SPDX-License-Identifier: MIT */
#include "os/thread.h"

#include <signal.h>
#include <stddef.h>

#include "os/sys.h"

int gmem_thread_start(void *(*run)(void *), void *data, pthread_t *ret)
{
	static const int faults[] = { SIGBUS, SIGSEGV, SIGILL, SIGFPE, SIGTRAP, SIGSYS };
	sigset_t blocked, before;
	int err;

	sigfillset(&blocked);
	for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++)
		sigdelset(&blocked, faults[i]);
	gmem_sys_sigmask(SIG_BLOCK, &blocked, &before);
	err = pthread_create(ret, NULL, run, data);
	gmem_sys_sigmask(SIG_SETMASK, &before, NULL);
	return -err;
}
