/* SPDX-License-Identifier: MIT */
/*
 * A snapshot is a file with a head, which has the vCPU and the devices, and from
 * IMAGE_OFFSET on memory, as an image of libgmem. It can be restored on the same
 * host, by the same program, with the same disk.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tinyvmm.h"

#define MAGIC		"tinyvmm1"
#define IMAGE_OFFSET	65536

struct head {
	char magic[8];
	uint64_t vcpu_size, devices_size, ram_size;
	struct vcpu_state vcpu;
	struct device_state devices;
};

_Static_assert(sizeof(struct head) <= IMAGE_OFFSET, "the image is behind it");

static struct head head;

static void fail(const char *path, const char *why)
{
	say("%s: %s", path, why);
	exit(EXIT_FAILURE);
}

/*
 * Gives the file its name when it is complete and on its disk: until then there is the
 * older one, if any.
 */
static void publish(const char *unfinished, const char *path)
{
	char directory[PATH_MAX];
	int fd;

	must(rename(unfinished, path), path);
	snprintf(directory, sizeof(directory), "%s", path);
	fd = must(open(dirname(directory), O_RDONLY | O_DIRECTORY | O_CLOEXEC), path);
	must(fsync(fd), path);
	must(close(fd), path);
}

/* Called while the vCPU does not run and no device has I/O under way. */
void snapshot_save(struct vmm *vmm, const char *path)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .image_offset = IMAGE_OFFSET, .flags = GMEM_TRANSFER_SYNC);
	GMEM_OPTS(gmem_transfer_result, result, .engine = 0);
	char unfinished[PATH_MAX];
	int fd;

	snprintf(unfinished, sizeof(unfinished), "%s.unfinished", path);
	fd = must(open(unfinished, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600), unfinished);
	memcpy(head.magic, MAGIC, sizeof(head.magic));
	head.vcpu_size = sizeof(head.vcpu);
	head.devices_size = sizeof(head.devices);
	head.ram_size = 0;
	for (int i = 0; i < vmm->ram_ranges; i++)
		head.ram_size += vmm->ram[i].size;
	vcpu_save(vmm, &head.vcpu);
	head.devices = vmm->devices;

	if (pwrite(fd, &head, sizeof(head), 0) != (ssize_t)sizeof(head))
		fail(path, "it cannot be written");
	gmem_must(gmem_vm_save(vmm->memory, fd, &opts, &result), path);
	must(close(fd), path);
	publish(unfinished, path);
	say("snapshot in %s: %" PRIu64 " MiB of memory that is not zero", path,
	    result.data_bytes / MIB);
}

/* Checks what the devices assume of their own state. */
static bool is_sound(const struct device_state *d)
{
	const struct virtio_mem_config *config = &d->hotplug.config;

	for (unsigned int i = 0; i < VIRTIO_COUNT; i++)
		if (d->virtio[i].queue_size > 64 ||
		    (d->virtio[i].queue_ready && !d->virtio[i].queue_size))
			return false;
	return d->serial.received_to - d->serial.received_from <= sizeof(d->serial.received) &&
	       config->usable_region_size <= PIECES * PIECE_SIZE &&
	       config->requested_size <= config->usable_region_size &&
	       !(config->usable_region_size % PIECE_SIZE) && !(config->requested_size % PIECE_SIZE);
}

void snapshot_restore(struct vmm *vmm, const char *path)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .image_offset = IMAGE_OFFSET);
	const int fd = must(open(path, O_RDONLY | O_CLOEXEC), path);

	if (pread(fd, &head, sizeof(head), 0) != (ssize_t)sizeof(head) ||
	    memcmp(head.magic, MAGIC, sizeof(head.magic)) ||
	    head.vcpu_size != sizeof(head.vcpu) || head.devices_size != sizeof(head.devices))
		fail(path, "it is no snapshot of this program");
	if (head.vcpu.msr_count > 512 || !is_sound(&head.devices))
		fail(path, "it contradicts itself");

	/* Add the same layout first: an image of another layout is refused. */
	vmm->devices = head.devices;
	memory_add_ram(vmm, head.ram_size);
	hotplug_restore(vmm);
	gmem_must(gmem_vm_restore(vmm->memory, fd, &opts, NULL), path);
	close(fd);
	vcpu_restore(vmm, &head.vcpu);
	say("restored from %s", path);
}
