/* SPDX-License-Identifier: MIT */
/*
 * describe: dumps the memory layout of a VM for gmem-show(1).
 *
 *     describe | gmem-show
 *     describe --serve /tmp/vm.sock & gmem-show --socket /tmp/vm.sock --watch 1
 *
 * It lays out 96 MiB of RAM around the hole for devices below 4 GiB, with
 * firmware and a device's range in the hole, and writes some of the memory as a
 * guest would. Then it prints a dump in the format of gmem-dump(5), or, until Ctrl-C,
 * gives one to whoever connects to a socket, while the "guest" goes on writing. A VMM
 * needs only these last steps.
 *
 * Exit status: 0, 1 if something failed, 77 if this host cannot run it.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <gmem.h>

#include "start.h"

#define MIB ((uint64_t)1 << 20)

#define HOLE (64 * MIB)		/* RAM ends here and continues at 4 GiB */
#define FIRMWARE ((uint64_t)4096 * MIB - 2 * MIB)
#define DEVICE ((uint64_t)3328 * MIB)

static void must(int result, const char *what)
{
	if (result < 0)
		errx(1, "%s: %s", what, gmem_last_error());
}

static struct gmem_region *add(struct gmem_vm *vm, uint64_t gpa, uint64_t size,
			       const struct gmem_region_opts *opts)
{
	struct gmem_region *region;

	must(gmem_region_add(vm, gpa, size, opts, &region), "adding a region");
	return region;
}

static struct gmem_plan *plan(const struct gmem_vm *vm, uint32_t first, uint32_t second)
{
	GMEM_OPTS(gmem_request, request, .backings = { first, second });
	struct gmem_plan *made;

	must(gmem_plan_new(gmem_vm_caps(vm), &request, &made), "planning");
	return made;
}

static void lay_out(struct gmem_vm *vm)
{
	struct gmem_plan *for_ram = plan(vm, GMEM_BACKING_SHARED, GMEM_BACKING_HOST);
	struct gmem_plan *for_firmware = plan(vm, GMEM_BACKING_HOST, 0);
	GMEM_OPTS(gmem_ram_layout_opts, where, .machine = GMEM_MACHINE_X86_64, .hole_start = HOLE);
	GMEM_OPTS(gmem_region_opts, ram, .plan = for_ram);
	GMEM_OPTS(gmem_region_opts, firmware, .plan = for_firmware);
	GMEM_OPTS(gmem_region_opts, device, .flags = GMEM_REGION_DEVICE);
	struct gmem_ram_range ranges[2];
	int count;

	count = gmem_ram_layout(96 * MIB, &where, ranges, 2);
	must(count, "laying out RAM");
	for (int i = 0; i < count; i++) {
		char *hva = gmem_region_hva(add(vm, ranges[i].gpa, ranges[i].size, &ram));

		/* As if a kernel had been loaded */
		memset(hva + ranges[i].size / 8, 0x90, ranges[i].size / 4);
	}
	memset(gmem_region_hva(add(vm, FIRMWARE, 2 * MIB, &firmware)), 0xf4, 2 * MIB);
	add(vm, DEVICE, 16 * MIB, &device);

	gmem_plan_free(for_ram);
	gmem_plan_free(for_firmware);
}

/* ---- dumps for whoever connects ---- */

static volatile sig_atomic_t stopped;

static void stop(int number)
{
	(void)number;
	stopped = 1;
}

static int listen_at(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	mode_t before;

	if (strlen(path) >= sizeof(address.sun_path))
		errx(1, "%s: too long for a socket", path);
	strcpy(address.sun_path, path);
	/* Only this user may connect: a dump tells where the guest's memory is. */
	before = umask(077);
	if (sock < 0 || bind(sock, (struct sockaddr *)&address, sizeof(address)) < 0 ||
	    listen(sock, 8) < 0)
		err(1, "%s%s", path, errno == EADDRINUSE ? " is there already: remove it if nobody listens" : "");
	umask(before);
	return sock;
}

/* The loop of a VMM: dumps are one of the things that it waits for. */
static void serve(struct gmem_vm *vm, const char *path, const struct gmem_dump_opts *opts)
{
	const struct sigaction action = { .sa_handler = stop };
	struct pollfd pollfd = { .fd = listen_at(path), .events = POLLIN };
	struct gmem_region_info ram;
	uint64_t at = 0;

	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	must(gmem_vm_find_gpa(vm, 0, &ram), "finding RAM");
	while (!stopped) {
		if (poll(&pollfd, 1, 100) > 0 && gmem_vm_serve_dump(vm, pollfd.fd, opts, 1000) < 0)
			warnx("%s", gmem_last_error());
		/* As if the guest went on */
		memset((char *)ram.hva + at, 0x90, MIB / 4);
		at = (at + MIB / 4) % ram.size;
	}
	unlink(path);
	close(pollfd.fd);
}

static const char help[] =
"usage: describe | gmem-show\n"
"       describe --serve SOCKET & gmem-show --socket SOCKET --watch 1\n"
"Lays out the memory of a VM, and writes where it is as JSON, for gmem-show.\n";

int main(int argc, char **argv)
{
	GMEM_OPTS(gmem_dump_opts, opts, .name = "describe");
	int kvm, vm_fd;
	struct gmem_vm *vm;

	if (argc != 3 || strcmp(argv[1], "--serve") != 0)
		no_arguments(argc, argv, help);
	kvm = open_kvm("describe");
	vm_fd = create_vm(kvm, 0);
	if (vm_fd < 0)
		err(1, "KVM_CREATE_VM");

	must(gmem_vm_new(vm_fd, NULL, &vm), "attaching to the VM");
	lay_out(vm);
	if (argc == 3)
		serve(vm, argv[2], &opts);
	else
		must(gmem_vm_dump(vm, STDOUT_FILENO, &opts), "dumping");
	gmem_vm_free(vm);
	close(vm_fd);
	close(kvm);
	return 0;
}
