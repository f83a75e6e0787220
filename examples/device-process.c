/* SPDX-License-Identifier: MIT */
/*
 * device-process: a device in a process of its own serves a ring in guest memory.
 * The process has its own namespaces, a seccomp filter, and no KVM.
 *
 * The VMM exports the guest's memory over a socket. The device imports it and
 * uses the same views as a VMM would. The VMM adds and removes memory while the
 * device runs and, if the VM has private memory, makes some of it private. The
 * library first makes the device stop using that memory; later accesses of the
 * device fail with an error, and the device goes on.
 *
 * There is no guest: the VMM puts requests into the ring as a driver would. Each
 * request asks for a string to be put in capitals. The program prints the
 * result of each request: the string, or why the device could not.
 *
 * Exit status: 0, 1 if something failed, 77 if this host cannot run it.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE	/* unshare(), memfd_create() */
#endif
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/kvm.h>
#include <sched.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <gmem-sandbox.h>
#include <gmem.h>

#include "start.h"

#define DEVICE_OPTION "--device"	/* how this program starts itself as the device */

/* File descriptors of the device process */
#define IMPORT_FD 3
#define DOORBELL_FD 4

#define RAM_SIZE	((uint64_t)2 << 20)
#define BUFFER		((uint64_t)1 << 20)	/* where the string of a request is */
#define HOTPLUG		((uint64_t)64 << 20)
#define RING		((uint64_t)0)

/* A ring of one entry, in guest memory: the driver increments avail, the device used. */
struct ring {
	uint32_t avail;
	uint32_t used;
	uint64_t gpa;
	uint32_t size;
	int32_t  result;
};

#define FIELD(name) (RING + offsetof(struct ring, name))

static void gmem_must(int result, const char *what)
{
	if (result < 0) {
		fprintf(stderr, "device-process: %s: %s\n", what, gmem_last_error());
		exit(EXIT_FAILURE);
	}
}

static int must(int result, const char *what)
{
	if (result < 0) {
		fprintf(stderr, "device-process: %s: %s\n", what, strerror(errno));
		exit(EXIT_FAILURE);
	}
	return result;
}

static void say(const char *what)
{
	printf("%s\n", what);
	fflush(stdout);
}

/* ---------------------------------------------------------- the device -- */

/*
 * The device waits for work itself, rings back, and ends; all other calls are of the library, for
 * importing. Any other system call kills the process.
 */
static int close_the_door(void)
{
	static const uint32_t calls[] = {
		__NR_ppoll, __NR_read, __NR_write, __NR_exit_group,
#ifdef __NR_poll
		__NR_poll,
#endif
	};
	const struct gmem_sandbox_own own = { .calls = calls, .call_count = sizeof(calls) / sizeof(calls[0]) };

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	return -ENOTSUP;	/* sanitizers make calls of their own */
#endif
	return gmem_sandbox_enter(GMEM_SANDBOX_IMPORT, &own, 0);
}

/* Returns 0, or the error of the first access that failed. */
static int serve_request(struct gmem_view *view, uint64_t gpa, uint64_t size)
{
	char text[64];
	int err;

	if (size > sizeof(text))
		return -EINVAL;	/* the guest chose the size */
	err = gmem_view_read(view, gpa, text, size, NULL);
	if (err)
		return err;

	for (uint64_t i = 0; i < size; i++)
		if (text[i] >= 'a' && text[i] <= 'z')
			text[i] = (char)(text[i] - 'a' + 'A');
	return gmem_view_write(view, gpa, text, size, NULL);
}

static void serve(struct gmem_view *view)
{
	uint64_t avail, used, gpa, size;
	int result;

	/* Accesses that belong together: one layout for all */
	gmem_view_begin(view);
	gmem_must(gmem_view_load(view, FIELD(avail), 4, GMEM_ACQUIRE, &avail), "the ring");
	gmem_must(gmem_view_load(view, FIELD(used), 4, GMEM_RELAXED, &used), "the ring");
	gmem_must(gmem_view_load(view, FIELD(gpa), 8, GMEM_RELAXED, &gpa), "the ring");
	gmem_must(gmem_view_load(view, FIELD(size), 4, GMEM_RELAXED, &size), "the ring");
	gmem_view_end(view);
	if (avail == used)
		return;

	result = serve_request(view, gpa, size);
	if (result < 0)
		say(gmem_last_error());
	gmem_must(gmem_view_store(view, FIELD(result), 4, GMEM_RELAXED, (uint32_t)result), "the ring");
	gmem_must(gmem_view_store(view, FIELD(used), 4, GMEM_RELEASE, avail), "the ring");
}

static int run_device(void)
{
	static char buffer[BUFSIZ];
	struct gmem_import *import;
	struct gmem_view *view;
	char byte;
	int ret;

	/* The first line of output would otherwise ask what kind of file it goes to. */
	setvbuf(stdout, buffer, _IOFBF, sizeof(buffer));
	gmem_must(gmem_recovery_enable(), "recovery");
	gmem_must(gmem_import_new(IMPORT_FD, NULL, &import), "the import");
	gmem_must(gmem_import_view_new(import, &view), "a view");
	ret = close_the_door();
	if (ret < 0)
		fprintf(stderr, "device-process: no seccomp filter here: %s\n", strerror(-ret));

	/* Answers the export while it waits for the doorbell. */
	while ((ret = gmem_import_wait(import, DOORBELL_FD, -1)) == 1 &&
	       read(DOORBELL_FD, &byte, 1) == 1) {
		serve(view);
		must((int)write(DOORBELL_FD, &byte, 1), "ringing back");
	}
	if (ret != -EPIPE)
		gmem_must(ret, "the exporting process");
	gmem_view_free(view);
	gmem_import_free(import);
	return 0;
}

/* -------------------------------------------------- starting the device -- */

static int get_namespaces(void)
{
	const int wanted = CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWNS |
			   CLONE_NEWUTS;

	return unshare(wanted) < 0 ? -errno : 0;
}

/* Executes by fd: in its new namespaces the process may not find the file by path. */
static void exec_device(int self, int import, int doorbell)
{
	char name[] = "device-process", option[] = DEVICE_OPTION;
	char *arguments[] = { name, option, NULL }, *none[] = { NULL };

	/* Duplicate to high numbers, so that neither dup2() below overwrites the other fd. */
	import = must(fcntl(import, F_DUPFD, 10), "dup");
	doorbell = must(fcntl(doorbell, F_DUPFD, 10), "dup");
	self = must(fcntl(self, F_DUPFD_CLOEXEC, 10), "dup");
	must(dup2(import, IMPORT_FD), "dup2");
	must(dup2(doorbell, DOORBELL_FD), "dup2");
	close(import);
	close(doorbell);
	fexecve(self, arguments, none);
	must(-1, "exec");
}

/* The VMM keeps the first end of each, the device gets the second. */
static pid_t start_device(const int sockets[2], const int doorbells[2])
{
	int self = must(open("/proc/self/exe", O_RDONLY | O_CLOEXEC), "/proc/self/exe"), err, status;
	pid_t pid = must(fork(), "fork");

	if (pid) {
		close(self);
		close(sockets[1]);
		close(doorbells[1]);
		return pid;
	}
	/* Else the device would not see the VMM's end: this process had it open. */
	close(sockets[0]);
	close(doorbells[0]);

	err = get_namespaces();
	if (err)
		fprintf(stderr, "device-process: no namespaces of its own here: %s\n", strerror(-err));
	/* The next child will be the first process in the new PID namespace. */
	pid = must(fork(), "fork");
	if (!pid)
		exec_device(self, sockets[1], doorbells[1]);
	close(sockets[1]);
	close(doorbells[1]);
	must(waitpid(pid, &status, 0), "waitpid");
	_exit(WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_FAILURE);
}

/* -------------------------------------------------------------- the VMM -- */

struct vmm {
	struct gmem_vm *vm;
	struct gmem_plan *plan;
	struct gmem_export *exporter;
	struct gmem_peer *device;
	struct gmem_view *view;
	int doorbell;
	uint32_t requests;
};

/* Adds memory that can be exported: a guest_memfd, or a memfd whose seals cannot change. */
static struct gmem_region *add_memory(struct vmm *vmm, uint64_t gpa)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = vmm->plan);
	struct gmem_region *region;
	int fd;

	if (gmem_plan_backing(vmm->plan) == GMEM_BACKING_HOST ||
	    gmem_plan_backing(vmm->plan) == GMEM_BACKING_PRIVATE) {
		fd = must(memfd_create("guest", MFD_CLOEXEC | MFD_ALLOW_SEALING), "memfd_create");
		must(ftruncate(fd, (off_t)RAM_SIZE), "ftruncate");
		must(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), "sealing");
		opts.hva = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		must(opts.hva == MAP_FAILED ? -1 : 0, "mmap");
		opts.flags = GMEM_REGION_HVA;
		gmem_must(gmem_export_add_memory(vmm->exporter, opts.hva, RAM_SIZE, fd, 0), "naming memory");
		close(fd);
	}
	gmem_must(gmem_region_add(vmm->vm, gpa, RAM_SIZE, &opts, &region), "adding memory");
	return region;
}

/* Waits until the device has all memory. */
static void wait_for_device(struct vmm *vmm)
{
	gmem_must(gmem_peer_wait(vmm->device, -1), "the device");
}

/* Makes a request as a driver in the guest would, and checks the device's answer. */
static void request(struct vmm *vmm, const char *what, uint64_t gpa, int expected)
{
	char text[] = "hello from the guest", byte;
	uint64_t result;

	if (!expected)
		gmem_must(gmem_view_write(vmm->view, gpa, text, sizeof(text), NULL), "writing");
	gmem_must(gmem_view_store(vmm->view, FIELD(gpa), 8, GMEM_RELAXED, gpa), "the ring");
	gmem_must(gmem_view_store(vmm->view, FIELD(size), 4, GMEM_RELAXED, sizeof(text)), "the ring");
	gmem_must(gmem_view_store(vmm->view, FIELD(avail), 4, GMEM_RELEASE, ++vmm->requests),
		  "the ring");
	printf("%s: ", what);
	fflush(stdout);	/* the device says why it cannot */
	must((int)write(vmm->doorbell, "", 1), "ringing");
	if (read(vmm->doorbell, &byte, 1) != 1) {
		fprintf(stderr, "device-process: the device is gone\n");
		exit(EXIT_FAILURE);
	}

	gmem_must(gmem_view_load(vmm->view, FIELD(result), 4, GMEM_ACQUIRE, &result), "the ring");
	if (!expected)
		gmem_must(gmem_view_read(vmm->view, gpa, text, sizeof(text), NULL), "reading");
	/* The device may have written anything, without an end or to steer a terminal. */
	if ((int32_t)result != expected ||
	    (!expected && memcmp(text, "HELLO FROM THE GUEST", sizeof(text)) != 0)) {
		fprintf(stderr, "device-process: %s: result %" PRId32 ", or not the right bytes\n",
			what, (int32_t)result);
		exit(EXIT_FAILURE);
	}
	if (!expected)
		say(text);
}

static void show_hotplug(struct vmm *vmm)
{
	struct gmem_region *more = add_memory(vmm, HOTPLUG);

	wait_for_device(vmm);
	request(vmm, "memory that was added", HOTPLUG + BUFFER, 0);
	gmem_must(gmem_region_remove(more), "removing memory");
	request(vmm, "memory that was removed", HOTPLUG + BUFFER, -ESTALE);
}

static void show_conversion(struct vmm *vmm)
{
	const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);

	if (gmem_plan_backing(vmm->plan) != GMEM_BACKING_PRIVATE) {
		say("This VM has no private memory: nothing to take back.");
		return;
	}
	gmem_must(gmem_vm_convert(vmm->vm, BUFFER, page, GMEM_STATE_PRIVATE, NULL, NULL), "converting");
	request(vmm, "memory that is private", BUFFER, -EACCES);
	gmem_must(gmem_vm_convert(vmm->vm, BUFFER, page, GMEM_STATE_SHARED, NULL, NULL), "converting");
	wait_for_device(vmm);
	request(vmm, "memory that is shared again", BUFFER, 0);
}

/* Makes a VM with private memory, if the host has such a type of VM. */
static int create_vm_of_best_type(int kvm_fd)
{
	const int types = ioctl(kvm_fd, KVM_CHECK_EXTENSION, 235 /* KVM_CAP_VM_TYPES */);
	int fd = types > 0 && types & 2 ? create_vm(kvm_fd, 1) : -1;

	return fd >= 0 ? fd : must(create_vm(kvm_fd, 0), "KVM_CREATE_VM");
}

static void begin(struct vmm *vmm, int vm_fd, int sock)
{
	GMEM_OPTS(gmem_request, want, .backings = { GMEM_BACKING_PRIVATE, GMEM_BACKING_SHARED,
						    GMEM_BACKING_MAPPED, GMEM_BACKING_HOST });
	GMEM_OPTS(gmem_peer_opts, opts, .wait_ms = 10000);

	gmem_must(gmem_vm_new(vm_fd, NULL, &vmm->vm), "the VM");
	gmem_must(gmem_plan_new(gmem_vm_caps(vmm->vm), &want, &vmm->plan), "a plan");
	gmem_must(gmem_export_new(vmm->vm, NULL, &vmm->exporter), "the export");
	add_memory(vmm, 0);
	gmem_must(gmem_view_new(vmm->vm, &vmm->view), "a view");
	gmem_must(gmem_peer_add(vmm->exporter, sock, &opts, &vmm->device), "the device");
}

static int run_vmm(void)
{
	int kvm_fd = open_kvm("device-process"), vm_fd, sockets[2], doorbells[2], status;
	struct vmm vmm = { .requests = 0 };
	pid_t pid;

	must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets), "socketpair");
	must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, doorbells), "socketpair");
	/* Start the device before there is a VM or anything else that it could inherit. */
	pid = start_device(sockets, doorbells);
	vmm.doorbell = doorbells[0];

	vm_fd = create_vm_of_best_type(kvm_fd);
	begin(&vmm, vm_fd, sockets[0]);
	close(sockets[0]);
	printf("The device runs as another process; guest memory has backing \"%s\".\n",
	       gmem_backing_name(gmem_plan_backing(vmm.plan)));
	wait_for_device(&vmm);
	request(&vmm, "memory that was there", BUFFER, 0);
	show_hotplug(&vmm);
	show_conversion(&vmm);

	gmem_view_free(vmm.view);
	gmem_export_free(vmm.exporter);
	gmem_vm_free(vmm.vm);
	gmem_plan_free(vmm.plan);
	must(waitpid(pid, &status, 0), "waitpid");
	if (!WIFEXITED(status) || WEXITSTATUS(status)) {
		fprintf(stderr, "device-process: the device ended with status 0x%x\n", (unsigned)status);
		return EXIT_FAILURE;
	}
	close(vm_fd);
	close(kvm_fd);
	return exit_status();
}

static const char help[] =
"usage: device-process\n"
"Has a device in a sandboxed process serve requests in guest memory that comes and goes.\n";

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], DEVICE_OPTION))
		return run_device();
	no_arguments(argc, argv, help);
	return run_vmm();
}
