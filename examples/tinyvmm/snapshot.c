/* SPDX-License-Identifier: MIT */
/*
 * A snapshot is a file with a head, which has the vCPU and the devices, and from
 * IMAGE_OFFSET on memory, as an image of libgmem. It can be restored on the same
 * host, by the same program, with the same disk.
 *
 * Snapshots of a guest that goes on are a chain: the first has all memory, and each
 * later one what has changed since the one before it. To restore one of them, all
 * before it are needed, but of these only memory is used.
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

_Static_assert(sizeof(struct machine_state) <= IMAGE_OFFSET, "the image is behind it");

static struct machine_state head;

static void fail(const char *path, const char *why)
{
	say("%s: %s", path, why);
	exit(EXIT_FAILURE);
}

/* Called while the vCPU does not run and no device has I/O under way. */
void state_save(struct vmm *vmm, struct machine_state *ret)
{
	memcpy(ret->magic, MAGIC, sizeof(ret->magic));
	ret->vcpu_size = sizeof(ret->vcpu);
	ret->devices_size = sizeof(ret->devices);
	ret->ram_size = 0;
	for (int i = 0; i < vmm->ram_ranges; i++)
		ret->ram_size += vmm->ram[i].size;
	vcpu_save(vmm, &ret->vcpu);
	ret->devices = vmm->devices;
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

const char *state_fault(const struct machine_state *state)
{
	if (memcmp(state->magic, MAGIC, sizeof(state->magic)) ||
	    state->vcpu_size != sizeof(state->vcpu) || state->devices_size != sizeof(state->devices))
		return "it is no state of this program";
	if (state->vcpu.msr_count > 512 || !is_sound(&state->devices))
		return "it contradicts itself";
	return NULL;
}

/* An image of another layout would be refused. */
void state_add_memory(struct vmm *vmm, const struct machine_state *state)
{
	vmm->devices = state->devices;
	memory_add_ram(vmm, state->ram_size);
	hotplug_restore(vmm);
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

/*
 * Has libgmem track which memory changes, from the first snapshot of a guest that goes on. The
 * vCPU does not run now, so memory without a dirty log can be exchanged for memory that has one.
 */
static void track_changes(struct vmm *vmm)
{
	GMEM_OPTS(gmem_dirty_opts, opts, .flags = GMEM_DIRTY_VCPUS_STOPPED);

	if (!vmm->changes)
		gmem_must(gmem_dirty_new(vmm->memory, &opts, &vmm->changes), "tracking changes");
}

/* Called while the vCPU does not run and no device has I/O under way. */
void snapshot_save(struct vmm *vmm, const char *path, bool goes_on)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .image_offset = IMAGE_OFFSET, .flags = GMEM_TRANSFER_SYNC);
	GMEM_OPTS(gmem_transfer_result, result, .engine = 0);
	char name[PATH_MAX], unfinished[PATH_MAX + 16];
	int fd;

	if (goes_on)
		track_changes(vmm);
	opts.dirty = vmm->changes;
	snprintf(name, sizeof(name), vmm->snapshots ? "%s.%u" : "%s", path, vmm->snapshots);
	snprintf(unfinished, sizeof(unfinished), "%s.unfinished", name);
	fd = must(open(unfinished, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600), unfinished);

	state_save(vmm, &head);
	if (pwrite(fd, &head, sizeof(head), 0) != (ssize_t)sizeof(head))
		fail(name, "it cannot be written");
	gmem_must(gmem_vm_save(vmm->memory, fd, &opts, &result), name);
	must(close(fd), name);
	publish(unfinished, name);
	say("snapshot in %s: %" PRIu64 " KiB of memory that is not zero", name, result.data_bytes / 1024);
	vmm->snapshots++;
}

static int open_snapshot(const char *path)
{
	const int fd = must(open(path, O_RDONLY | O_CLOEXEC), path);

	if (pread(fd, &head, sizeof(head), 0) != (ssize_t)sizeof(head))
		fail(path, "it is no snapshot of this program");
	if (state_fault(&head))
		fail(path, state_fault(&head));
	return fd;
}

/* The last of @paths is restored; it is based on those before it. */
void snapshot_restore(struct vmm *vmm, const char *const *paths, unsigned int count)
{
	const char *path = paths[count - 1];
	int files[SNAPSHOTS];
	GMEM_OPTS(gmem_transfer_opts, opts, .image_offset = IMAGE_OFFSET, .parents = files,
		  .parent_count = count - 1);

	for (unsigned int i = 0; i < count; i++)
		files[i] = open_snapshot(paths[i]);
	/* The head is now that of the last one. */
	state_add_memory(vmm, &head);
	gmem_must(gmem_vm_restore(vmm->memory, files[count - 1], &opts, NULL), path);
	for (unsigned int i = 0; i < count; i++)
		close(files[i]);
	vcpu_restore(vmm, &head.vcpu);
	say("restored from %s", path);
}
