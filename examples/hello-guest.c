/* SPDX-License-Identifier: MIT */
/*
 * hello-guest: a VM whose only memory is a guest_memfd.
 *
 * The host writes a few instructions and a question into the guest's memory, a
 * vCPU runs the instructions, and the host reads the answer. Then the host tries
 * to read two private files, and is refused. Each numbered line of output says
 * what happened. libgmem does everything that is about memory; vcpu.h and
 * KVM_RUN are plain KVM.
 *
 * Exit status: 0, 1 if something failed, 77 if this host cannot run it.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE	/* pipe2() */
#endif
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <gmem.h>

#include "start.h"
#include "vcpu.h"


static uint64_t page;

static int must(int result, const char *what)
{
	if (result < 0) {
		fprintf(stderr, "hello-guest: %s: %s\n", what, strerror(errno));
		exit(EXIT_FAILURE);
	}
	return result;
}

static void gmem_must(int result, const char *what)
{
	if (result < 0) {
		fprintf(stderr, "hello-guest: %s: %s\n", what, gmem_last_error());
		exit(EXIT_FAILURE);
	}
}

static void expect(int truth, const char *what)
{
	if (!truth) {
		fprintf(stderr, "hello-guest: expected %s\n", what);
		exit(EXIT_FAILURE);
	}
}

/* Adds RAM, backed as the plan says: three pages for code, question and answer. */
static struct gmem_region *add_ram(struct gmem_vm *vm, const struct gmem_plan *plan)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = plan);
	struct gmem_region *ram;

	gmem_must(gmem_region_add(vm, 0, 3 * page, &opts, &ram), "adding RAM");
	printf("1. The VM's only memory is \"%s\": %" PRIu64 " KiB at guest address 0x%" PRIx64 ",\n"
	       "   create flags 0x%" PRIx64 ", memslot %" PRIu32 ", host address %p.\n",
	       gmem_backing_name(gmem_region_backing(ram)), gmem_region_size(ram) / 1024,
	       gmem_region_gpa(ram), gmem_plan_create_flags(plan), gmem_region_slot(ram),
	       gmem_region_hva(ram));
	return ram;
}

static void run_guest(int kvm, int vm_fd, struct gmem_region *ram)
{
	const struct vcpu_addresses at = {
		.code = 0, .question = page, .answer = 2 * page, .nowhere = 3 * page,
	};
	char *hva = gmem_region_hva(ram);
	uint32_t *question = (void *)(hva + at.question);
	int vcpu, result, run_size, as_planned;
	struct kvm_run *run;
	uint32_t answer;

	memcpy(hva + at.code, instructions, sizeof(instructions));
	__builtin___clear_cache(hva + at.code, hva + at.code + sizeof(instructions));
	question[0] = 6;
	question[1] = 7;
	printf("2. The host wrote %zu bytes of instructions there, and a question at 0x%" PRIx64 ":\n"
	       "   %" PRIu32 " x %" PRIu32 "?\n",
	       sizeof(instructions), at.question, question[0], question[1]);

	vcpu = must(ioctl(vm_fd, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	run_size = must(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
	run = mmap(NULL, (size_t)run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	must(run == MAP_FAILED ? -1 : 0, "mapping the vCPU");
	must(set_up_vcpu(vm_fd, vcpu, &at), "setting up the vCPU");
	do
		result = ioctl(vcpu, KVM_RUN, 0);
	while (result < 0 && errno == EINTR);
	must(result, "KVM_RUN");
	as_planned = is_expected_exit(run, &at);
	printf("3. The guest ran, and left with exit reason %" PRIu32 ", %s.\n",
	       run->exit_reason, as_planned ? exit_name : "something else than planned");
	expect(as_planned, exit_name);

	answer = read_answer((void *)(hva + at.answer));
	printf("4. The host reads the guest's answer at 0x%" PRIx64 ": %" PRIu32 ".\n",
	       at.answer, answer);
	expect(answer == 6 * 7, "42");

	must(munmap(run, (size_t)run_size), "unmapping the vCPU");
	must(close(vcpu), "closing the vCPU");
}

/* Shows that the host cannot read private files, without a crash. */
static void show_private(int vm_fd)
{
	struct gmem_file *mappable, *unmappable;
	int pipes[2], error;
	ssize_t written;
	void *hva;

	gmem_must(gmem_file_new_raw(vm_fd, page, GMEM_CREATE_MMAP, &mappable), "private file");
	gmem_must(gmem_file_map(mappable, 0, page, NULL, &hva), "mapping the private file");
	must(pipe2(pipes, O_CLOEXEC), "pipe");

	/* A load from hva would raise SIGBUS; a system call fails with EFAULT instead. */
	written = write(pipes[1], hva, 1);
	error = errno;
	expect(written == -1 && error == EFAULT, "EFAULT from write(2) of private memory");
	printf("5. A private file, create flags 0x%" PRIx64 ", can be mapped but not read:\n"
	       "   write(2) of its first byte into a pipe fails with EFAULT.\n",
	       gmem_file_create_flags(mappable));

	gmem_must(gmem_file_new_raw(vm_fd, page, 0, &unmappable), "private file");
	error = gmem_file_map(unmappable, 0, page, NULL, &hva);
	expect(error == -ENODEV, "-ENODEV when mapping a file without GMEM_CREATE_MMAP");
	printf("6. A private file, create flags 0x%" PRIx64 ", cannot even be mapped:\n"
	       "   \"%s\".\n", gmem_file_create_flags(unmappable), gmem_last_error());

	must(close(pipes[0]), "close");
	must(close(pipes[1]), "close");
	gmem_file_free(unmappable);
	gmem_file_free(mappable);
}

/* Parses ways of backing, most wanted first, such as "shared,host". */
static void parse_backings(char *list, struct gmem_request *request)
{
	unsigned int n = 0;
	char *name;

	while ((name = strsep(&list, ","))) {
		uint32_t backing = gmem_backing_from_name(name);

		expect(backing != GMEM_BACKING_NONE && n < GMEM_REQUEST_BACKINGS,
		       "ways of backing after --backing, such as shared,host");
		request->backings[n++] = backing;
	}
}

static const char help[] =
"usage: hello-guest [--backing NAME[,NAME...]]\n"
"Runs a guest in memory backed the first of these ways that this host can:\n"
"shared (the default), mapped, or host, which is no guest_memfd.\n";

int main(int argc, char **argv)
{
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_SHARED });
	int kvm, vm_fd, error;
	struct gmem_plan *plan;
	struct gmem_vm *vm;
	const char *why;

	if (argc == 3 && !strcmp(argv[1], "--backing"))
		parse_backings(argv[2], &request);
	else
		no_arguments(argc, argv, help);
	page = (uint64_t)sysconf(_SC_PAGESIZE);

	kvm = open_kvm("hello-guest");
	vm_fd = must(create_vm(kvm, 0), "KVM_CREATE_VM");

	/* Find out what this VM supports, then choose how its memory is backed. */
	gmem_must(gmem_vm_new(vm_fd, NULL, &vm), "attaching to the VM");
	error = gmem_plan_new(gmem_vm_caps(vm), &request, &plan);
	if (error == -EOPNOTSUPP) {
		printf("hello-guest cannot run here: %s\n"
		       "Ordinary memory may do: --backing shared,host\n", gmem_last_error());
		gmem_vm_free(vm);
		return EXIT_CANNOT_RUN;
	}
	gmem_must(error, "planning");
	why = gmem_plan_passed_over(plan, request.backings[0]);
	if (why)
		printf("Not \"%s\": %s\n", gmem_backing_name(request.backings[0]), why);

	printf("hello-guest: a host asks a guest a question.\n");
	run_guest(kvm, vm_fd, add_ram(vm, plan));

	if (gmem_plan_create_flags(plan) & GMEM_CREATE_MMAP)
		show_private(vm_fd);
	else
		printf("5. Without guest_memfd there is no private file to show.\n");

	gmem_plan_free(plan);
	gmem_vm_free(vm);
	must(close(vm_fd), "close");
	must(close(kvm), "close");
	return exit_status();
}
