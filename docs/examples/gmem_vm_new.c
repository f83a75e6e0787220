/* SPDX-License-Identifier: MIT */
#include "examples.h"

static int messages;

static void log_message(void *data, int error, const char *message)
{
	(void)data;
	fprintf(stderr, "guest memory: %s (%d)\n", message, error);
	messages++;
}

EXAMPLE(gmem_vm_new)
{
	struct gmem_vm *handle;
	int fd = ioctl(kvm_fd, KVM_CREATE_VM, 0);

	/* EXAMPLE: A handle that waits for nobody longer than 5 s, and logs. */
	GMEM_OPTS(gmem_vm_opts, opts, .log = log_message, .wait_ms = 5000);

	if (gmem_vm_new(fd, &opts, &handle) < 0)
		errx(1, "%s", gmem_last_error());
	/* ... */
	close(fd);
	gmem_vm_free_with_vm(handle);
	/* END */
	check(messages == 0);
}
