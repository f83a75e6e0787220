/* SPDX-License-Identifier: MIT */
/*
 * How the examples begin: their arguments, /dev/kvm, a VM. All of it is plain KVM, and a
 * VMM has its own.
 */
#ifndef START_H
#define START_H

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#define EXIT_CANNOT_RUN 77

/* For an example without arguments: answers --help, refuses all else. */
static inline void no_arguments(int argc, char **argv, const char *help)
{
	if (argc == 2 && !strcmp(argv[1], "--help")) {
		fputs(help, stdout);
		exit(EXIT_SUCCESS);
	}
	if (argc > 1) {
		fputs("unexpected or incomplete:", stderr);
		for (int i = 1; i < argc; i++)
			fprintf(stderr, " %s", argv[i]);
		fprintf(stderr, "\n%s", help);
		exit(2);
	}
}

/* Ends the program where KVM is out of reach. */
static inline int open_kvm(const char *example)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (kvm < 0 && errno == ENOENT)
		printf("%s cannot run here: there is no /dev/kvm. The kernel has no KVM, the\n"
		       "processor's virtualization is off, or a container was not given the device.\n",
		       example);
	else if (kvm < 0 && (errno == EACCES || errno == EPERM))
		printf("%s cannot run here: no permission to open /dev/kvm.\n"
		       "gmem-probe says which command gives it.\n", example);
	else if (kvm < 0)
		printf("%s cannot run here: /dev/kvm cannot be opened: %s.\n", example,
		       strerror(errno));
	else if (ioctl(kvm, KVM_GET_API_VERSION, 0) >= 0)
		return kvm;
	else if (errno == EACCES || errno == EPERM)
		printf("%s cannot run here: a security policy forbids to use /dev/kvm: %s.\n", example,
		       strerror(errno));
	else
		printf("%s cannot run here: /dev/kvm is not KVM.\n", example);
	exit(EXIT_CANNOT_RUN);
}

/* A VM of KVM's @type, or -1. KVM_CREATE_VM can fail with EINTR even if no signal was sent. */
static inline int create_vm(int kvm, unsigned long type)
{
	int vm;

	do
		vm = ioctl(kvm, KVM_CREATE_VM, type);
	while (vm < 0 && errno == EINTR);
#ifdef __aarch64__
	/* Type 0 means 40 bits of guest address, which some hosts do not support. */
	if (vm < 0 && errno == EINVAL && type == 0)
		return create_vm(kvm, (unsigned long)ioctl(kvm, KVM_CHECK_EXTENSION,
							   KVM_CAP_ARM_VM_IPA_SIZE));
#endif
	return vm;
}

#endif
