/* SPDX-License-Identifier: MIT */
/*
 * ten-lines: the C code of README.md as a program, so that a test compiles and
 * runs it.
 *
 * It prints nothing unless something is wrong. Exit status: 0, 1 if something
 * failed, 77 if this host cannot run it.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <gmem.h>

#define EXIT_CANNOT_RUN 77

/* A guest that only halts (hlt of x86) */
static const unsigned char first_instructions[] = { 0xf4 };

static void ten_lines(int vm_fd)
{
	/* README: begin */
	struct gmem_region *ram;
	struct gmem_vm *vm;

	if (gmem_vm_new(vm_fd, NULL, &vm) < 0)
		errx(1, "%s", gmem_last_error());
	if (gmem_region_add(vm, 0, 64 << 20, NULL, &ram) < 0)
		errx(1, "%s", gmem_last_error());
	memcpy(gmem_region_hva(ram), first_instructions, sizeof(first_instructions));
	/* ... run vCPUs ... */
	gmem_vm_free(vm);
	/* README: end */
}

static int can_run(int vm_fd)
{
	struct gmem_caps *caps;
	struct gmem_plan *plan;
	int error;

	if (gmem_caps_new(vm_fd, NULL, &caps) < 0)
		errx(1, "%s", gmem_last_error());
	error = gmem_plan_new(caps, NULL, &plan);
	gmem_caps_free(caps);
	if (error == 0) {
		gmem_plan_free(plan);
		return 1;
	}
	if (error != -EOPNOTSUPP)
		errx(1, "%s", gmem_last_error());
	printf("ten-lines cannot run here: %s\n", gmem_last_error());
	return 0;
}

int main(void)
{
	int kvm, vm_fd, status = 0;

	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0) {
		printf("ten-lines cannot run here: /dev/kvm: %s\n", strerror(errno));
		return EXIT_CANNOT_RUN;
	}
	do
		vm_fd = ioctl(kvm, KVM_CREATE_VM, 0);
	while (vm_fd < 0 && errno == EINTR);
	if (vm_fd < 0)
		err(1, "KVM_CREATE_VM");

	if (can_run(vm_fd))
		ten_lines(vm_fd);
	else
		status = EXIT_CANNOT_RUN;
	close(vm_fd);
	close(kvm);
	return status;
}
