/* SPDX-License-Identifier: MIT */
/*
 * tinyvmm: boots Linux to a serial console, with all its RAM from libgmem.
 *
 *	tinyvmm [OPTION...] KERNEL
 *
 * KERNEL is a bzImage for x86_64. Standard input and output are its console.
 * Ctrl-A begins a command to this program; Ctrl-A h lists the commands.
 *
 * Exit status: 0 if the guest switched itself off or was told to stop, 1 if
 * something failed, 77 if this host cannot run it.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include "tinyvmm.h"

#define KEY 1	/* Ctrl-A */

static const char usage[] =
"usage: tinyvmm [OPTION...] KERNEL\n"
"  --memory MIB        RAM, 256 if not given\n"
"  --initrd FILE       the initial file system\n"
"  --append TEXT       more for the kernel's command line\n"
"  --disk FILE         a virtio block device, written to as well\n"
"  --backing NAME      shared (as if not given), mapped, or host\n"
"  --snapshot FILE     where Ctrl-A s puts a snapshot, and Ctrl-A i the first of several:\n"
"                      what changed since is in FILE.1, FILE.2 and so on\n"
"  --restore FILE      go on from a snapshot; no KERNEL then. For FILE.2 of several,\n"
"                      --restore FILE --restore FILE.1 --restore FILE.2\n"
"  --migrate SOCKET    where Ctrl-A m sends the guest\n"
"  --receive SOCKET    wait there for a guest that another tinyvmm sends; no KERNEL then\n";

static const char keys[] =
"Ctrl-A +  hot-add memory    Ctrl-A -  ask for it back\n"
"Ctrl-A s  snapshot, and stop    Ctrl-A i  snapshot of what changed, and go on\n"
"Ctrl-A m  migrate: send the guest to another tinyvmm\n"
"Ctrl-A x  stop    Ctrl-A Ctrl-A  the key itself\n";

struct options {
	uint64_t memory;
	const char *kernel, *initrd, *append, *disk, *snapshot, *migrate, *receive;
	const char *restore[SNAPSHOTS];
	unsigned int restores;
	uint32_t backing;
};

void say(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	fputs("tinyvmm: ", stderr);
	vfprintf(stderr, format, args);
	/* The terminal is raw, so a newline does not return to column 0. */
	fputs("\r\n", stderr);
	va_end(args);
}

int must(int result, const char *what)
{
	if (result < 0) {
		say("%s: %s", what, strerror(errno));
		exit(EXIT_FAILURE);
	}
	return result;
}

int gmem_must(int result, const char *what)
{
	if (result < 0) {
		say("%s: %s", what, gmem_last_error());
		exit(EXIT_FAILURE);
	}
	return result;
}

void set_irq(struct vmm *vmm, uint32_t irq, bool level)
{
	struct kvm_irq_level line = { .irq = irq, .level = level };

	must(ioctl(vmm->vm_fd, KVM_IRQ_LINE, &line), "KVM_IRQ_LINE");
}

/* ---- the console ---- */

static struct termios cooked;

static void cook_terminal(void)
{
	tcsetattr(STDIN_FILENO, TCSANOW, &cooked);
}

static void make_terminal_raw(void)
{
	struct termios raw;

	if (tcgetattr(STDIN_FILENO, &cooked) < 0)
		return;
	atexit(cook_terminal);
	raw = cooked;
	cfmakeraw(&raw);
	tcsetattr(STDIN_FILENO, TCSANOW, &raw);
}

static void on_kick(int signal_number)
{
	(void)signal_number;	/* the signal only interrupts KVM_RUN */
}

/*
 * The signal interrupts KVM_RUN; the flag is for a thread that is about to call KVM_RUN.
 */
void ask(struct vmm *vmm, enum request request)
{
	while (vmm->request != REQUEST_NONE && !vmm->stop)
		pthread_cond_wait(&vmm->room, &vmm->lock);
	if (vmm->stop)
		return;
	vmm->request = request;
	__atomic_store_n(&vmm->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	pthread_kill(vmm->vcpu_thread, SIGUSR1);
}

static void obey_key(struct vmm *vmm, uint8_t key)
{
	switch (key) {
	case '+':
		ask(vmm, REQUEST_GROW);
		break;
	case '-':
		ask(vmm, REQUEST_SHRINK);
		break;
	case 's':
		ask(vmm, REQUEST_SNAPSHOT);
		break;
	case 'i':
		ask(vmm, REQUEST_SNAPSHOT_AND_GO_ON);
		break;
	case 'm':
		ask(vmm, REQUEST_MIGRATE);
		break;
	case 'x':
		ask(vmm, REQUEST_QUIT);
		break;
	case KEY:
		if (serial_room(vmm))
			serial_receive(vmm, &key, 1);
		break;
	default:
		fputs(keys, stderr);
	}
}

static void take_input(struct vmm *vmm, uint8_t byte)
{
	static bool key_follows;

	pthread_mutex_lock(&vmm->lock);
	if (key_follows) {
		key_follows = false;
		obey_key(vmm, byte);
	} else if (byte == KEY) {
		key_follows = true;
	} else {
		while (!serial_room(vmm))
			pthread_cond_wait(&vmm->room, &vmm->lock);
		serial_receive(vmm, &byte, 1);
	}
	pthread_mutex_unlock(&vmm->lock);
}

static void *read_console(void *data)
{
	uint8_t bytes[256];
	ssize_t count;

	while ((count = read(STDIN_FILENO, bytes, sizeof(bytes))) > 0 ||
	       (count < 0 && errno == EINTR)) {
		for (ssize_t i = 0; i < count; i++)
			take_input(data, bytes[i]);
	}
	return NULL;
}

/* ---- the vCPU's thread ---- */

static void stop(struct vmm *vmm, int status)
{
	vmm->stop = true;
	vmm->status = status;
	pthread_cond_broadcast(&vmm->room);
}

static void port_out(struct vmm *vmm, uint16_t port, uint32_t value)
{
	if (port >= SERIAL_PORT && port < SERIAL_PORT + 8) {
		serial_out(vmm, port, (uint8_t)value);
	} else if (port >= ACPI_PORT && port < ACPI_PORT + 6 && acpi_out(vmm, port, value)) {
		say("the guest switched itself off");
		stop(vmm, EXIT_SUCCESS);
	}
}

static uint32_t port_in(struct vmm *vmm, uint16_t port)
{
	if (port >= SERIAL_PORT && port < SERIAL_PORT + 8)
		return serial_in(vmm, port);
	if (port >= ACPI_PORT && port < ACPI_PORT + 6)
		return acpi_in(vmm, port);
	return UINT32_MAX;
}

static void handle_io(struct vmm *vmm)
{
	const uint8_t size = vmm->run->io.size;
	uint8_t *data = (uint8_t *)vmm->run + vmm->run->io.data_offset;

	for (uint32_t i = 0; i < vmm->run->io.count; i++, data += size) {
		uint32_t value = 0;

		if (vmm->run->io.direction == KVM_EXIT_IO_OUT) {
			memcpy(&value, data, size);
			port_out(vmm, vmm->run->io.port, value);
		} else {
			value = port_in(vmm, vmm->run->io.port);
			memcpy(data, &value, size);
		}
	}
}

static void handle_mmio(struct vmm *vmm)
{
	const uint64_t gpa = vmm->run->mmio.phys_addr;
	const uint32_t size = vmm->run->mmio.len;
	uint32_t value = 0;

	if (gpa < VIRTIO_BASE || gpa >= VIRTIO_BASE + VIRTIO_COUNT * VIRTIO_PAGE) {
		/* Reads of a bus without a device give all ones. */
		memset(vmm->run->mmio.data, 0xff, sizeof(vmm->run->mmio.data));
	} else if (vmm->run->mmio.is_write) {
		memcpy(&value, vmm->run->mmio.data, size < sizeof(value) ? size : sizeof(value));
		virtio_mmio_write(vmm, gpa, value);
	} else {
		virtio_mmio_read(vmm, gpa, vmm->run->mmio.data, size);
	}
}

static void snapshot(struct vmm *vmm, const char *path, bool goes_on)
{
	if (!path) {
		say("no file for a snapshot: --snapshot names one");
		return;
	}
	snapshot_save(vmm, path, goes_on);
	if (!goes_on)
		stop(vmm, EXIT_SUCCESS);
}

static void handle_request(struct vmm *vmm, const struct options *o)
{
	const enum request request = vmm->request;

	if (request == REQUEST_GROW || request == REQUEST_SHRINK) {
		hotplug_request(vmm, request == REQUEST_GROW);
	} else if (request == REQUEST_SNAPSHOT || request == REQUEST_SNAPSHOT_AND_GO_ON) {
		snapshot(vmm, o->snapshot, request == REQUEST_SNAPSHOT_AND_GO_ON);
	} else if (request == REQUEST_MIGRATE) {
		migrate_begin(vmm, o->migrate);
	} else if (request == REQUEST_MIGRATE_REST) {
		if (migrate_rest(vmm))
			stop(vmm, EXIT_SUCCESS);
	} else if (request == REQUEST_QUIT) {
		stop(vmm, EXIT_SUCCESS);
	}
	__atomic_store_n(&vmm->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
	vmm->request = REQUEST_NONE;
	pthread_cond_broadcast(&vmm->room);
}

/*
 * QEMU's emulation of SVM keeps the type of the last exception that the guest took where
 * KVM, from Linux 6.14 on, looks for an event under delivery. During a delivery it does
 * not emulate an access to a device. The vCPU has not changed, and a second attempt
 * succeeds. On a real processor there is an event, which fails the second time, too.
 */
static bool is_worth_another_try(struct vmm *vmm)
{
	const bool undelivered = vmm->run->exit_reason == KVM_EXIT_INTERNAL_ERROR &&
				 vmm->run->internal.suberror == KVM_INTERNAL_ERROR_DELIVERY_EV;

	vmm->tried_again = undelivered && !vmm->tried_again;
	return vmm->tried_again;
}

static void handle_exit(struct vmm *vmm)
{
	if (is_worth_another_try(vmm))
		return;
	switch (vmm->run->exit_reason) {
	case KVM_EXIT_IO:
		handle_io(vmm);
		break;
	case KVM_EXIT_MMIO:
		handle_mmio(vmm);
		break;
	case KVM_EXIT_SHUTDOWN:
		say("the guest reset itself");
		stop(vmm, EXIT_SUCCESS);
		break;
	case KVM_EXIT_INTERNAL_ERROR:
		say("KVM cannot run the guest: internal error %" PRIu32,
		    vmm->run->internal.suberror);
		stop(vmm, EXIT_FAILURE);
		break;
	default:
		say("the vCPU left with exit reason %" PRIu32 ", and that is the end",
		    vmm->run->exit_reason);
		stop(vmm, EXIT_FAILURE);
	}
}

static void run(struct vmm *vmm, const struct options *o)
{
	while (!vmm->stop) {
		const int result = ioctl(vmm->vcpu_fd, KVM_RUN, 0);
		const int error = errno;

		pthread_mutex_lock(&vmm->lock);
		if (result >= 0) {
			handle_exit(vmm);
		} else if (error == EINTR) {
			handle_request(vmm, o);
		} else if (error != EAGAIN) {
			say("KVM_RUN: %s", strerror(error));
			stop(vmm, EXIT_FAILURE);
		}
		pthread_mutex_unlock(&vmm->lock);
	}
}

/* ---- from options to a machine ---- */

static void parse(int argc, char **argv, struct options *o)
{
	static const struct option known[] = {
		{ "memory", required_argument, NULL, 'm' },
		{ "initrd", required_argument, NULL, 'i' },
		{ "append", required_argument, NULL, 'a' },
		{ "disk", required_argument, NULL, 'd' },
		{ "backing", required_argument, NULL, 'b' },
		{ "snapshot", required_argument, NULL, 's' },
		{ "restore", required_argument, NULL, 'r' },
		{ "migrate", required_argument, NULL, 'g' },
		{ "receive", required_argument, NULL, 'c' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	int option;

	*o = (struct options){ .memory = 256 * MIB, .append = "", .backing = GMEM_BACKING_SHARED };
	while ((option = getopt_long(argc, argv, "", known, NULL)) >= 0) {
		switch (option) {
		case 'm':
			o->memory = strtoull(optarg, NULL, 10) * MIB;
			break;
		case 'i':
			o->initrd = optarg;
			break;
		case 'a':
			o->append = optarg;
			break;
		case 'd':
			o->disk = optarg;
			break;
		case 'b':
			o->backing = gmem_backing_from_name(optarg);
			break;
		case 's':
			o->snapshot = optarg;
			break;
		case 'r':
			if (o->restores < SNAPSHOTS)
				o->restore[o->restores++] = optarg;
			break;
		case 'g':
			o->migrate = optarg;
			break;
		case 'c':
			o->receive = optarg;
			break;
		default:
			fputs(usage, option == 'h' ? stdout : stderr);
			exit(option == 'h' ? EXIT_SUCCESS : EXIT_FAILURE);
		}
	}
	o->kernel = argv[optind];
	if ((o->kernel != NULL) + (o->restores != 0) + (o->receive != NULL) != 1 || argc - optind > 1 ||
	    o->memory < 64 * MIB || o->memory > 32 * GIB ||
	    (o->backing != GMEM_BACKING_SHARED && o->backing != GMEM_BACKING_MAPPED &&
	     o->backing != GMEM_BACKING_HOST)) {
		fputs(usage, stderr);
		exit(EXIT_FAILURE);
	}
}

static void create(struct vmm *vmm, const struct options *o)
{
	vmm->kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (vmm->kvm_fd < 0) {
		say("cannot run here: /dev/kvm: %s", strerror(errno));
		exit(EXIT_CANNOT_RUN);
	}
	vcpu_create_vm(vmm);
	memory_attach(vmm, o->backing);
	vcpu_create(vmm);
	if (o->disk)
		block_open(vmm, o->disk);
	hotplug_init(vmm);
}

static void boot(struct vmm *vmm, const struct options *o)
{
	char command_line[2048];
	struct boot boot;

	memory_add_ram(vmm, o->memory);
	snprintf(command_line, sizeof(command_line),
		 "console=ttyS0 panic=-1 memhp_default_state=online_movable %s", o->append);
	boot_load(vmm, o->kernel, o->initrd, command_line, &boot);
	vcpu_start_at(vmm, &boot);
}

int main(int argc, char **argv)
{
	static struct vmm vmm = {
		.lock = PTHREAD_MUTEX_INITIALIZER, .room = PTHREAD_COND_INITIALIZER,
	};
	const struct sigaction kick = { .sa_handler = on_kick };
	struct options options;
	pthread_t console;

	parse(argc, argv, &options);
	create(&vmm, &options);
	if (options.restores)
		snapshot_restore(&vmm, options.restore, options.restores);
	else if (options.receive)
		migrate_receive(&vmm, options.receive);
	else
		boot(&vmm, &options);

	make_terminal_raw();
	vmm.vcpu_thread = pthread_self();
	must(sigaction(SIGUSR1, &kick, NULL), "sigaction");
	errno = pthread_create(&console, NULL, read_console, &vmm);
	must(errno ? -1 : 0, "the console's thread");
	run(&vmm, &options);
	migrate_end(&vmm);

	gmem_dirty_free(vmm.changes);
	gmem_view_free(vmm.view);
	gmem_plan_free(vmm.plan);
	gmem_vm_free(vmm.memory);
	return vmm.status;
}
