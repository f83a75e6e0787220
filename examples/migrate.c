/* SPDX-License-Identifier: MIT */
/*
 * migrate: a running guest and its device go on in another process.
 *
 * There are three processes. In the source, a guest counts, and stores each number in another
 * page of its memory. A device in a process of its own, as in device-process, counts, too, and
 * writes to other pages. The source sends the guest's memory to the receiver while both go
 * on: first all of it, then, round after round, what they have changed meanwhile. When what is
 * left takes no time to speak of, the source stops the two and sends the rest of memory, then
 * what is not memory: the registers, and the device's number. The receiver checks that each
 * page has the last number that was stored there, and lets the guest go on.
 *
 * It prints a line per round, and for how long the guest stood still.
 *
 * Exit status: 0, 1 if something failed, 77 if this host cannot run it.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE	/* memfd_create() */
#endif
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <gmem.h>

#include "scribbler.h"
#include "start.h"

/* How this program starts itself, with these file descriptors */
#define DEVICE_OPTION	"--device"
#define RECEIVER_OPTION	"--receiver"
#define SOCKET_FD	3
#define DOORBELL_FD	4	/* of the device */

#define MIB		((uint64_t)1 << 20)
#define RAM		(64 * MIB)
#define CODE		((uint64_t)0x4000)
#define COUNT		((uint64_t)0x8000)	/* the guest's number */
#define PAGES		(16 * MIB)		/* what it scribbles on, 16 MiB */
#define DEVICE_PAGES	(32 * MIB)		/* and the device */
#define PATTERN		(48 * MIB)		/* what nobody changes, 16 MiB */

/* The limit leaves the network to others, and lets you watch. */
#define MAX_BYTES_PER_SECOND (50 * MIB)
#define MAX_PAUSE_NS	UINT64_C(1000000)
#define MAX_ROUNDS	20

/* All that is not memory */
struct machine_state {
	struct registers registers;
	uint64_t guest_number;
	uint64_t device_number;
};

static const char *program = "migrate";

static int must(int result, const char *what)
{
	if (result < 0) {
		fprintf(stderr, "%s: %s: %s\n", program, what, strerror(errno));
		exit(EXIT_FAILURE);
	}
	return result;
}

static int gmem_must(int result, const char *what)
{
	if (result < 0) {
		fprintf(stderr, "%s: %s: %s\n", program, what, gmem_last_error());
		exit(EXIT_FAILURE);
	}
	return result;
}

static void expect(int truth, const char *what)
{
	if (!truth) {
		fprintf(stderr, "%s: expected %s\n", program, what);
		exit(EXIT_FAILURE);
	}
}

static void send_all(int sock, const void *data, size_t size)
{
	expect(send(sock, data, size, MSG_NOSIGNAL) == (ssize_t)size, "the other process to listen");
}

static void receive_all(int sock, void *data, size_t size)
{
	expect(recv(sock, data, size, MSG_WAITALL) == (ssize_t)size, "the other process to answer");
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void rest(void)
{
	nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
}

static double in_mib(uint64_t bytes)
{
	return (double)bytes / (double)MIB;
}

static double in_ms(uint64_t ns)
{
	return (double)ns / 1e6;
}

/* ------------------------------------------------------------ a machine -- */

struct machine {
	int vm_fd, vcpu, run_size;
	struct kvm_run *run;
	struct gmem_vm *vm;
	struct gmem_view *view;
};

/* The device can map memory that nobody can shrink under it: a guest_memfd, or a sealed memfd. */
static void add_ram(struct machine *m, const struct gmem_plan *plan, uint64_t gpa, uint64_t size,
		    struct gmem_export *exporter)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = plan);
	struct gmem_region *ram;
	int fd;

	if (exporter && gmem_plan_backing(plan) == GMEM_BACKING_HOST) {
		fd = must(memfd_create("guest", MFD_CLOEXEC | MFD_ALLOW_SEALING), "memfd_create");
		must(ftruncate(fd, (off_t)size), "ftruncate");
		must(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), "sealing");
		opts.hva = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		must(opts.hva == MAP_FAILED ? -1 : 0, "mmap");
		opts.flags = GMEM_REGION_HVA;
		gmem_must(gmem_export_add_memory(exporter, opts.hva, size, fd, 0), "naming memory");
		close(fd);
	}
	gmem_must(gmem_region_add(m->vm, gpa, size, &opts, &ram), "adding RAM");
}

/* RAM of so many regions: the receiver may cut it in another way, and back it in another way. */
static void new_machine(int kvm, const struct gmem_request *request, unsigned regions, int exports,
			struct machine *m, struct gmem_export **ret)
{
	struct gmem_plan *plan;

	m->vm_fd = must(create_vm(kvm, 0), "KVM_CREATE_VM");
	gmem_must(gmem_vm_new(m->vm_fd, NULL, &m->vm), "attaching to the VM");
	gmem_must(gmem_plan_new(gmem_vm_caps(m->vm), request, &plan), "planning");
	*ret = NULL;
	if (exports)
		gmem_must(gmem_export_new(m->vm, NULL, ret), "the export");
	for (unsigned i = 0; i < regions; i++)
		add_ram(m, plan, i * RAM / regions, RAM / regions, *ret);
	gmem_plan_free(plan);
	gmem_must(gmem_view_new(m->vm, &m->view), "a view");

	m->vcpu = must(ioctl(m->vm_fd, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	m->run_size = must(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
	m->run = mmap(NULL, (size_t)m->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, m->vcpu, 0);
	must(m->run == MAP_FAILED ? -1 : 0, "mapping the vCPU");
}

static void free_machine(struct machine *m)
{
	must(munmap(m->run, (size_t)m->run_size), "unmapping the vCPU");
	must(close(m->vcpu), "closing the vCPU");
	gmem_view_free(m->view);
	gmem_vm_free(m->vm);
	must(close(m->vm_fd), "closing the VM");
}

static uint64_t read_memory(const struct machine *m, uint64_t gpa)
{
	uint32_t number;

	gmem_must(gmem_view_read(m->view, gpa, &number, sizeof(number), NULL), "reading memory");
	return number;
}

static void count_once(struct machine *m)
{
	int result;

	do
		result = ioctl(m->vcpu, KVM_RUN, 0);
	while (result < 0 && errno == EINTR);
	must(result, "KVM_RUN");
	expect(is_counted(m->run, RAM), "the guest to leave when it has counted");
}

/* ----------------------------------------------------------- the device -- */

/*
 * The device writes through views of an import, so the library knows what it has changed. One
 * that writes by other means says so: gmem_view_mark_dirty().
 */
static int run_device(void)
{
	struct gmem_import *import;
	struct gmem_view *view;
	uint32_t number = 0;
	char byte;

	program = "migrate, the device";
	gmem_must(gmem_recovery_enable(), "recovery");
	gmem_must(gmem_import_new(SOCKET_FD, NULL, &import), "the import");
	gmem_must(gmem_import_view_new(import, &view), "a view");
	/* It answers the export meanwhile: when the doorbell rings first, all memory is there. */
	gmem_must(gmem_import_wait(import, DOORBELL_FD, -1), "the VMM");
	expect(read(DOORBELL_FD, &byte, 1) == 1, "the doorbell to be rung");
	/* Counts each millisecond, until it rings again. */
	while (gmem_must(gmem_import_wait(import, DOORBELL_FD, 1), "the VMM") == 0) {
		number++;
		gmem_must(gmem_view_write(view, DEVICE_PAGES + number % SCRIBBLED_PAGES * SCRIBBLED_PAGE,
					  &number, sizeof(number), NULL), "writing");
	}
	expect(read(DOORBELL_FD, &byte, 1) == 1, "the doorbell to be rung");
	/* It has stopped. What a device has that ends now would count as changed, all of it. */
	send_all(DOORBELL_FD, &number, sizeof(number));
	gmem_must(gmem_import_wait(import, DOORBELL_FD, -1), "the VMM");
	gmem_view_free(view);
	gmem_import_free(import);
	return 0;
}

/* ---------------------------------------------------------- the receiver -- */

/* A page has the last number that was stored there. */
static void check_pages(const struct machine *m, uint64_t pages, uint64_t number, const char *what)
{
	for (uint64_t page = 0; page < SCRIBBLED_PAGES; page++) {
		uint64_t behind = (number - page) % SCRIBBLED_PAGES;

		expect(read_memory(m, pages + page * SCRIBBLED_PAGE) ==
		       (number >= behind ? number - behind : 0), what);
	}
}

static void check_machine(const struct machine *m, const struct machine_state *state)
{
	expect(read_memory(m, COUNT) == state->guest_number, "the guest's number in its memory");
	check_pages(m, PAGES, state->guest_number, "the guest's last number in each of its pages");
	check_pages(m, DEVICE_PAGES, state->device_number, "the device's last number in each of its pages");
	for (uint64_t at = PATTERN; at < RAM; at += SCRIBBLED_PAGE)
		expect(read_memory(m, at) == (uint32_t)at + 1, "what nobody changed");
}

static int run_receiver(void)
{
	/* Only memory's addresses must be the source's: it is of another kind, and in one piece. */
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_SHARED, GMEM_BACKING_HOST });
	int kvm = open_kvm("migrate");
	struct gmem_export *none;
	struct machine_state state;
	struct machine m;

	program = "migrate, the receiver";
	new_machine(kvm, &request, 1, 0, &m, &none);
	/* Returns when all of it is there. If it fails, so did the migration. */
	gmem_must(gmem_vm_restore(m.vm, SOCKET_FD, NULL, NULL), "receiving memory");
	receive_all(SOCKET_FD, &state, sizeof(state));
	must(set_registers(m.vm_fd, m.vcpu, &state.registers), "setting the registers");
	/* From here on the guest is ours, and the source may let go of it. */
	send_all(SOCKET_FD, "", 1);

	check_machine(&m, &state);
	for (unsigned i = 0; i < 3; i++)
		count_once(&m);
	state.guest_number += 3;
	check_machine(&m, &state);
	printf("The receiver: memory is as it was, and the guest has counted on to %" PRIu64 ".\n",
	       state.guest_number);
	free_machine(&m);
	return exit_status();
}

/* -------------------------------------------------- starting the others -- */

static pid_t start_self(char *option, int sock, int doorbell)
{
	char name[] = "migrate", *arguments[] = { name, option, NULL };
	pid_t pid = must(fork(), "fork");

	if (pid)
		return pid;
	/* Duplicate to high numbers first, so that neither dup2() overwrites the other. */
	sock = must(fcntl(sock, F_DUPFD_CLOEXEC, 10), "dup");
	doorbell = doorbell < 0 ? -1 : must(fcntl(doorbell, F_DUPFD_CLOEXEC, 10), "dup");
	must(dup2(sock, SOCKET_FD), "dup2");
	if (doorbell >= 0)
		must(dup2(doorbell, DOORBELL_FD), "dup2");
	execv("/proc/self/exe", arguments);
	must(-1, "exec");
	return -1;
}

static void end_process(pid_t pid, const char *what)
{
	int status;

	must(waitpid(pid, &status, 0), "waitpid");
	if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_CANNOT_RUN)
		exit(EXIT_CANNOT_RUN);
	expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, what);
}

/* ------------------------------------------------------------ the source -- */

struct source {
	struct machine m;
	struct gmem_export *exporter;
	struct gmem_peer *device;
	int doorbell, receiver;
	pthread_t vcpu_thread;
	int stops;		/* atomic */
	uint32_t number;	/* the guest's, once its thread has ended */
};

/* The vCPU's thread. The guest writes some 16 MiB in a second. */
static void *run_guest(void *data)
{
	struct source *s = data;

	while (!__atomic_load_n(&s->stops, __ATOMIC_RELAXED)) {
		for (unsigned i = 0; i < 4; i++, s->number++)
			count_once(&s->m);
		rest();
	}
	return NULL;
}

static void begin_guest(struct source *s)
{
	struct machine *m = &s->m;
	void *code;

	gmem_must(gmem_view_write(m->view, CODE, scribbling, sizeof(scribbling), NULL), "the code");
	gmem_view_begin(m->view);
	gmem_must(gmem_view_hva(m->view, CODE, sizeof(scribbling), &code), "the code");
	__builtin___clear_cache((char *)code, (char *)code + sizeof(scribbling));
	gmem_view_end(m->view);
	for (uint64_t at = PATTERN; at < RAM; at += SCRIBBLED_PAGE) {
		uint32_t number = (uint32_t)at + 1;

		gmem_must(gmem_view_write(m->view, at, &number, sizeof(number), NULL), "the pattern");
	}
	must(start_scribbling(m->vm_fd, m->vcpu, CODE, COUNT, PAGES, RAM), "setting up the vCPU");
	expect(pthread_create(&s->vcpu_thread, NULL, run_guest, s) == 0, "a thread");
}

/* Nothing may write to guest memory after this. */
static void stop_guest_and_device(struct source *s, struct machine_state *state)
{
	uint32_t number;

	__atomic_store_n(&s->stops, 1, __ATOMIC_RELAXED);
	send_all(s->doorbell, "", 1);
	pthread_join(s->vcpu_thread, NULL);
	receive_all(s->doorbell, &number, sizeof(number));

	/* Let KVM complete the last exit, so that the registers are final. */
	s->m.run->immediate_exit = 1;
	expect(ioctl(s->m.vcpu, KVM_RUN, 0) < 0 && errno == EINTR, "the vCPU to stop");
	memset(state, 0, sizeof(*state));
	must(get_registers(s->m.vcpu, &state->registers), "reading the registers");
	state->guest_number = s->number;
	state->device_number = number;
}

static void report(const struct gmem_migration_status *status)
{
	printf("round %2" PRIu64 ": %5.1f MiB sent in %4.0f ms; %5.1f MiB left, +%3.0f MiB/s; pause %4.1f ms\n",
	       status->round, in_mib(status->sent_bytes), in_ms(status->ns), in_mib(status->left_bytes),
	       in_mib(status->dirty_rate), in_ms(status->pause_ns));
	fflush(stdout);
}

/* A loop that ends: when the pause is short, but also when what is left does not get less. */
static void send_rounds(struct source *s, struct gmem_migration *migration)
{
	GMEM_OPTS(gmem_migration_status, status, .round = 0);
	uint64_t least = UINT64_MAX;

	do {
		if (status.round)
			least = status.left_bytes;
		/* A VMM's event loop does this: the device answers that it marks what it writes. */
		gmem_must(gmem_export_dispatch(s->exporter), "the device");
		gmem_must(gmem_migration_round(migration, &status), "migrating");
		report(&status);
	} while (status.pause_ns > MAX_PAUSE_NS && status.left_bytes < least && status.round < MAX_ROUNDS);
}

static void migrate(struct source *s)
{
	GMEM_OPTS(gmem_migration_opts, opts, .max_bytes_per_second = MAX_BYTES_PER_SECOND);
	GMEM_OPTS(gmem_migration_status, status, .round = 0);
	struct gmem_migration *migration;
	struct machine_state state;
	uint64_t stopped;
	char byte;

	gmem_must(gmem_migration_new(s->m.vm, s->receiver, &opts, &migration), "the migration");
	send_rounds(s, migration);

	stopped = now_ns();
	stop_guest_and_device(s, &state);
	gmem_must(gmem_migration_finish(migration, &status), "migrating");
	send_all(s->receiver, &state, sizeof(state));
	receive_all(s->receiver, &byte, 1);
	printf("The guest stood still for %.1f ms, of which %.1f ms for the last %.1f MiB of memory.\n"
	       "It had counted to %" PRIu64 ", and the device to %" PRIu64 ".\n",
	       in_ms(now_ns() - stopped), in_ms(status.ns), in_mib(status.sent_bytes), state.guest_number,
	       state.device_number);
	fflush(stdout);
	gmem_migration_free(migration);
}

static int run_source(void)
{
	/* KVM logs the guest's writes to both. For GMEM_BACKING_SHARED there is a flag: see gmem_dirty_new() */
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_MAPPED, GMEM_BACKING_HOST });
	char device_option[] = DEVICE_OPTION, receiver_option[] = RECEIVER_OPTION;
	GMEM_OPTS(gmem_peer_opts, peer_opts, .wait_ms = 10000);
	int kvm = open_kvm("migrate"), peers[2], doorbells[2], network[2];
	struct source s = { .number = 0 };
	pid_t device, receiver;

	must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, peers), "socketpair");
	must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, doorbells), "socketpair");
	must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, network), "socketpair");
	device = start_self(device_option, peers[1], doorbells[1]);
	receiver = start_self(receiver_option, network[1], -1);
	close(peers[1]);
	close(doorbells[1]);
	close(network[1]);
	s.doorbell = doorbells[0];
	s.receiver = network[0];

	gmem_must(gmem_recovery_enable(), "recovery");
	new_machine(kvm, &request, 2, 1, &s.m, &s.exporter);
	gmem_must(gmem_peer_add(s.exporter, peers[0], &peer_opts, &s.device), "the device");
	close(peers[0]);
	gmem_must(gmem_peer_wait(s.device, -1), "the device");
	send_all(s.doorbell, "", 1);
	begin_guest(&s);
	migrate(&s);

	/* The receiver has said that the guest is its own. */
	close(s.doorbell);
	end_process(device, "the device to end");
	gmem_export_free(s.exporter);
	free_machine(&s.m);
	end_process(receiver, "the receiver to find all as it was");
	return exit_status();
}

static const char help[] =
"usage: migrate\n"
"Moves a running guest, on whose memory a device in another process works, to another process.\n";

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], DEVICE_OPTION))
		return run_device();
	if (argc == 2 && !strcmp(argv[1], RECEIVER_OPTION))
		return run_receiver();
	no_arguments(argc, argv, help);
	return run_source();
}
