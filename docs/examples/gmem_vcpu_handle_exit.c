/* SPDX-License-Identifier: MIT */
#include "examples.h"

static bool stopped = true;

static void handle_exit(struct kvm_run *exit_info)
{
	(void)exit_info;
}

EXAMPLE(gmem_vcpu_handle_exit)
{
	struct gmem_vcpu *vcpu;

	check(gmem_vcpu_new(vm, vcpu_fd, NULL, &vcpu) == 0);
	run->immediate_exit = 1;

	/* EXAMPLE: The loop of a vCPU. KVM_RUN fails when it tells of a memory fault. */
	do {
		const int result = ioctl(vcpu_fd, KVM_RUN, 0);
		const int error = errno;
		const int handled = gmem_vcpu_handle_exit(vcpu, run, result, error, NULL);

		if (handled < 0)
			errx(1, "guest memory: %s", gmem_last_error());
		if (handled == 0 && result < 0 && error != EINTR)
			errx(1, "KVM_RUN: %s", strerror(error));
		if (handled == 0 && result == 0)
			handle_exit(run);
	} while (!stopped);
	/* END */
	gmem_vcpu_free(vcpu);
}
