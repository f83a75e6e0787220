/* SPDX-License-Identifier: MIT */
/*
 * jailed-vmm: a VMM that gives up, step by step, the system calls that it no longer needs,
 * and a device process that never had them.
 *
 * gmem-sandbox(7) lists what libgmem calls in each phase of a VM's life; gmem-sandbox.h makes
 * a seccomp filter of it. What is left to a program is to say which phases are still to come,
 * and what it calls itself. The guest multiplies two numbers. The device, in another process,
 * reads the product through the guest's memory that it was given, and answers there.
 *
 * The jail here is only the filter; device-process has namespaces, too.
 *
 * Exit status: 0, 1 if something failed, 77 if this host cannot run it. With --escape the
 * guest has taken over the VMM, which tries to read a file: it dies of SIGSYS.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE	/* memfd_create() */
#endif
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <gmem-sandbox.h>
#include <gmem.h>

#include "start.h"
#include "vcpu.h"

#define HOTPLUG ((uint64_t)1 << 30)

/* What the two programs call, beside libgmem; the last two make the jail narrower */
static const uint32_t own_calls[] = {
	__NR_exit_group, __NR_read, __NR_write, __NR_prctl, __NR_seccomp,
};
static const uint32_t own_requests[] = { KVM_RUN };

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
static const struct gmem_sandbox_own vmm_own = { own_calls, COUNT(own_calls), own_requests, 1 };
static const struct gmem_sandbox_own device_own = { own_calls, COUNT(own_calls) - 2, NULL, 0 };

static uint64_t page;

static int must(int result, const char *what)
{
	if (result < 0)
		err(EXIT_FAILURE, "%s", what);
	return result;
}

static void gmem_must(int result, const char *what)
{
	if (result < 0)
		errx(EXIT_FAILURE, "%s: %s", what, gmem_last_error());
}

static void jail(uint32_t phases, const struct gmem_sandbox_own *own)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	return;		/* sanitizers make calls of their own */
#endif
	int ret = gmem_sandbox_enter(phases, own, 0);

	if (ret == -EINVAL || ret == -ENOSYS)
		errx(EXIT_CANNOT_RUN, "this kernel has no seccomp filters");
	if (ret < 0)
		errx(EXIT_FAILURE, "the jail: %s", strerror(-ret));
}

/* ------------------------------------------------------------ the device -- */

/* For each byte that comes: read the guest's answer, and store its successor beside it. */
static int serve(struct gmem_view *view, int doorbell)
{
	uint64_t answer = 0;
	char byte;

	if (read(doorbell, &byte, 1) != 1)
		return 0;	/* the VMM is gone */
	gmem_must(gmem_view_load(view, 2 * page, 4, GMEM_ACQUIRE, &answer), "the device reads");
	gmem_must(gmem_view_store(view, 2 * page + 4, 4, GMEM_RELEASE, answer + 1), "the device writes");
	return must((int)write(doorbell, &byte, 1), "ringing back");
}

static int run_device(int sock, int doorbell)
{
	struct gmem_import *import;
	struct gmem_view *view;
	int ret;

	gmem_must(gmem_recovery_enable(), "recovery");
	jail(GMEM_SANDBOX_IMPORT, &device_own);
	gmem_must(gmem_import_new(sock, NULL, &import), "the import");
	gmem_must(gmem_import_view_new(import, &view), "a view");
	while ((ret = gmem_import_wait(import, doorbell, -1)) == 1 && serve(view, doorbell))
		;
	if (ret != -EPIPE)
		gmem_must(ret, "the import");
	gmem_view_free(view);
	gmem_import_free(import);
	return EXIT_SUCCESS;
}

/* --------------------------------------------------------------- the VMM -- */

struct vmm {
	struct gmem_vm *vm;
	struct gmem_plan *plan;
	struct gmem_view *view;
	struct gmem_export *exporter;
	struct gmem_peer *device;
	struct kvm_run *run;
	const uint32_t *answer;		/* of the guest */
	int sock, doorbell, image;
	int vm_fd, vcpu;
};

static struct gmem_region *add_memory(struct vmm *vmm, uint64_t gpa)
{
	/* a memfd can be given to the device, if there is no guest_memfd to be mapped */
	GMEM_OPTS(gmem_memory_opts, memory, .flags = GMEM_MEMORY_MEMFD);
	GMEM_OPTS(gmem_region_opts, opts, .plan = vmm->plan);
	struct gmem_region *region;

	if (gmem_plan_backing(vmm->plan) == GMEM_BACKING_HOST)
		opts.memory = &memory;
	gmem_must(gmem_region_add(vmm->vm, gpa, 4 * page, &opts, &region), "adding memory");
	return region;
}

static struct vcpu_addresses addresses(void)
{
	return (struct vcpu_addresses){
		.code = 0, .question = page, .answer = 2 * page, .nowhere = 4 * page,
	};
}

static void make_vcpu(struct vmm *vmm, int kvm)
{
	const struct vcpu_addresses at = addresses();
	int size = must(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
	const uint32_t question[] = { 6, 7 };

	vmm->vcpu = must(ioctl(vmm->vm_fd, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	vmm->run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, vmm->vcpu, 0);
	must(vmm->run == MAP_FAILED ? -1 : 0, "mapping the vCPU");
	must(set_up_vcpu(vmm->vm_fd, vmm->vcpu, &at), "setting up the vCPU");
	gmem_must(gmem_view_write(vmm->view, at.code, instructions, sizeof(instructions), NULL), "the code");
	gmem_must(gmem_view_write(vmm->view, at.question, question, sizeof(question), NULL), "the question");
}

/* Phase setup: the only one that needs /dev/kvm, and paths */
static void set_up(struct vmm *vmm, int kvm)
{
	GMEM_OPTS(gmem_request, want, .backings = { GMEM_BACKING_SHARED, GMEM_BACKING_HOST });

	vmm->vm_fd = must(create_vm(kvm, 0), "KVM_CREATE_VM");
	vmm->image = must(memfd_create("image", MFD_CLOEXEC), "an image");
	gmem_must(gmem_recovery_enable(), "recovery");
	gmem_must(gmem_vm_new(vmm->vm_fd, NULL, &vmm->vm), "the VM");
	gmem_must(gmem_plan_new(gmem_vm_caps(vmm->vm), &want, &vmm->plan), "a plan");
	vmm->answer = (void *)((char *)gmem_region_hva(add_memory(vmm, 0)) + 2 * page);
	gmem_must(gmem_view_new(vmm->vm, &vmm->view), "a view");
	make_vcpu(vmm, kvm);
}

static void run_guest(struct vmm *vmm)
{
	const struct vcpu_addresses at = addresses();
	int ret;

	do
		ret = ioctl(vmm->vcpu, KVM_RUN, 0);
	while (ret < 0 && errno == EINTR);
	must(ret, "KVM_RUN");
	if (!is_expected_exit(vmm->run, &at) || read_answer(vmm->answer) != 6 * 7)
		errx(EXIT_FAILURE, "the guest did not do as it was told");
}

static void give_to_device(struct vmm *vmm)
{
	gmem_must(gmem_export_new(vmm->vm, NULL, &vmm->exporter), "an export");
	gmem_must(gmem_peer_add(vmm->exporter, vmm->sock, NULL, &vmm->device), "the device");
	gmem_must(gmem_peer_wait(vmm->device, -1), "the device");
}

static uint64_t ask_device(struct vmm *vmm)
{
	uint64_t answer;
	char byte = 0;

	must((int)write(vmm->doorbell, &byte, 1), "ringing");
	if (read(vmm->doorbell, &byte, 1) != 1)
		errx(EXIT_FAILURE, "the device is gone");
	gmem_must(gmem_view_load(vmm->view, 2 * page + 4, 4, GMEM_ACQUIRE, &answer), "the answer");
	return answer;
}

static void work(struct vmm *vmm, int escapes)
{
	jail(GMEM_SANDBOX_LAYOUT | GMEM_SANDBOX_RUNNING | GMEM_SANDBOX_SHARE | GMEM_SANDBOX_SNAPSHOT, &vmm_own);
	give_to_device(vmm);
	add_memory(vmm, HOTPLUG);
	gmem_must(gmem_peer_wait(vmm->device, -1), "the device");
	printf("layout is over: the device has the memory, also what was hot-added\n");

	jail(GMEM_SANDBOX_RUNNING | GMEM_SANDBOX_SHARE | GMEM_SANDBOX_SNAPSHOT, &vmm_own);
	run_guest(vmm);
	if (ask_device(vmm) != 6 * 7 + 1)
		errx(EXIT_FAILURE, "the device did not do as it was asked");
	printf("the guest says 42, and the device 43\n");
	gmem_must(gmem_vm_save(vmm->vm, vmm->image, NULL, NULL), "saving");
	printf("snapshot is over: the guest is saved\n");
	gmem_peer_remove(vmm->device);
	gmem_export_free(vmm->exporter);

	jail(GMEM_SANDBOX_RUNNING, &vmm_own);
	gmem_must(gmem_view_fill(vmm->view, 2 * page, 0, 8, NULL), "clearing");
	printf("the guest has run: only what phase running needs is still allowed\n");
	if (escapes)
		printf("opening a file, for which the kernel kills this process: SIGSYS\n");
	fflush(stdout);
	if (escapes)
		must(open("/etc/passwd", O_RDONLY | O_CLOEXEC), "escaping");
}

int main(int argc, char **argv)
{
	int escapes = argc == 2 && !strcmp(argv[1], "--escape");
	int kvm, socks[2], doorbells[2];
	static char buffer[BUFSIZ];
	struct vmm vmm;

	no_arguments(argc - escapes, argv, "usage: jailed-vmm [--escape]\n"
		     "Runs a guest and a device in processes with few system calls. With --escape the\n"
		     "VMM tries to open a file in the end, and is killed.\n");
	kvm = open_kvm("jailed-vmm");
	/* The first line of output would otherwise ask what kind of file it goes to. */
	setvbuf(stdout, buffer, _IOFBF, sizeof(buffer));
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	if (escapes)
		return EXIT_CANNOT_RUN;	/* there is no jail, see above */
#endif
	page = (uint64_t)sysconf(_SC_PAGESIZE);
	must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, socks), "socketpair");
	must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, doorbells), "socketpair");
	if (must(fork(), "fork") == 0) {
		close(kvm);
		close(socks[0]);
		close(doorbells[0]);
		return run_device(socks[1], doorbells[1]);
	}
	close(socks[1]);
	close(doorbells[1]);

	vmm.sock = socks[0];
	vmm.doorbell = doorbells[0];
	set_up(&vmm, kvm);
	work(&vmm, escapes);
	return exit_status();
}
