/* SPDX-License-Identifier: MIT */
/*
 * ten-lines: the C code of README.md as a program, so that a test compiles and
 * runs it.
 *
 * It gives a VM 64 MiB of memory, and prints how they are backed. The request names
 * a fallback, so it runs on every kernel with KVM; no vCPU runs.
 *
 * Exit status: 0, 1 if something failed, 77 if this host cannot run it.
 */
#include <err.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <gmem.h>

#include "start.h"

/* A guest that only halts (hlt of x86) */
static const unsigned char first_instructions[] = { 0xf4 };

static void ten_lines(int vm_fd)
{
	/* README: begin */
	/* Preferred first: a guest_memfd, or ordinary memory where the kernel is older. */
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_SHARED, GMEM_BACKING_HOST });
	struct gmem_region *ram;
	struct gmem_plan *plan;
	struct gmem_vm *vm;

	if (gmem_vm_new(vm_fd, NULL, &vm) < 0 ||
	    gmem_plan_new(gmem_vm_caps(vm), &request, &plan) < 0)
		errx(1, "%s", gmem_last_error());
	GMEM_OPTS(gmem_region_opts, opts, .plan = plan);
	if (gmem_region_add(vm, 0, 64 << 20, &opts, &ram) < 0)
		errx(1, "%s", gmem_last_error());
	memcpy(gmem_region_hva(ram), first_instructions, sizeof(first_instructions));
	/* ... run vCPUs ... */
	/* README: end */

	printf("The guest's 64 MiB are backed by \"%s\" memory.\n",
	       gmem_backing_name(gmem_region_backing(ram)));
	/* README: begin */
	gmem_plan_free(plan);
	gmem_vm_free(vm);
	/* README: end */
}

static const char help[] =
"usage: ten-lines\n"
"Gives a VM 64 MiB of memory, and says how they are backed.\n";

int main(int argc, char **argv)
{
	int kvm, vm_fd;

	no_arguments(argc, argv, help);
	kvm = open_kvm("ten-lines");
	vm_fd = create_vm(kvm, 0);
	if (vm_fd < 0)
		err(1, "KVM_CREATE_VM");
	ten_lines(vm_fd);
	close(vm_fd);
	close(kvm);
	return exit_status();
}
