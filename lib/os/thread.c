/* SPDX-License-Identifier: MIT */
#include "os/thread.h"

#include <errno.h>
#include <link.h>
#include <signal.h>
#include <unistd.h>

#include "os/sys.h"

static int add_tls(struct dl_phdr_info *object, size_t size, void *data)
{
	size_t *sum = data;

	(void)size;
	for (unsigned int i = 0; i < object->dlpi_phnum; i++) {
		if (object->dlpi_phdr[i].p_type == PT_TLS)
			*sum += object->dlpi_phdr[i].p_memsz + object->dlpi_phdr[i].p_align;
	}
	return 0;
}

/*
 * glibc puts the thread-local variables of all objects on the stack, however large they are,
 * and counts them in no public number.
 */
static size_t stack_for(size_t use)
{
	const size_t page = gmem_sys_page_size();
	long least = sysconf(_SC_THREAD_STACK_MIN);
	size_t sum = use + (least > 0 ? (size_t)least : 0);

	dl_iterate_phdr(add_tls, &sum);
	return (sum + page - 1) / page * page;
}

static int start(void *(*run)(void *), void *data, size_t use, pthread_t *ret)
{
	pthread_attr_t attr;
	int err = pthread_attr_init(&attr);

	if (err)
		return err;
	err = pthread_attr_setstacksize(&attr, stack_for(use));
	if (!err)
		err = pthread_create(ret, &attr, run, data);
	pthread_attr_destroy(&attr);
	/* Where a C library wants more than that, its default has it. */
	return err == EINVAL ? pthread_create(ret, NULL, run, data) : err;
}

int gmem_thread_start(void *(*run)(void *), void *data, size_t use, pthread_t *ret)
{
	static const int faults[] = { SIGBUS, SIGSEGV, SIGILL, SIGFPE, SIGTRAP, SIGSYS };
	sigset_t blocked, before;
	int err;

	sigfillset(&blocked);
	for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++)
		sigdelset(&blocked, faults[i]);
	gmem_sys_sigmask(SIG_BLOCK, &blocked, &before);
	err = start(run, data, use, ret);
	gmem_sys_sigmask(SIG_SETMASK, &before, NULL);
	return -err;
}
