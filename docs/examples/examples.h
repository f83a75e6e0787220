/* SPDX-License-Identifier: MIT */
/*
 * The EXAMPLES of the pages of section 3.
 *
 * FUNCTION.c has the example of FUNCTION's page: what is between the two marks. Around
 * it are declarations, and checks that it does what it is there for; it runs as a test,
 * in a process of its own, with what is declared here. To add one, name it in meson.build.
 */
#ifndef DOCS_EXAMPLES_H
#define DOCS_EXAMPLES_H

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/kvm.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <gmem.h>

#define MIB ((uint64_t)1 << 20)

/* A VM with 4 MiB of host memory at 0, in a memfd, and a view of it */
extern int kvm_fd, vm_fd, vcpu_fd;
extern struct kvm_run *run;
extern struct gmem_vm *vm;
extern struct gmem_plan *plan;
extern struct gmem_region *ram;
extern struct gmem_view *view;

/* An empty file of which nobody else has the name */
int temporary_file(void);

#define EXAMPLE(name) void example_##name(void); void example_##name(void)

#define check(condition) \
	do { \
		if (!(condition)) \
			errx(1, "%s:%d: %s", __FILE__, __LINE__, #condition); \
	} while (0)

/* What cannot be tried on this host */
#define skip(reason) \
	do { \
		puts(reason); \
		exit(77); \
	} while (0)

#endif
