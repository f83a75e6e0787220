/* SPDX-License-Identifier: MIT */
/*
 * A snapshot: a header, the vCPU, the devices, then every page of memory that
 * is not zero, behind its address. It is restored on the same host, by the
 * same program, with the same disk.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tinyvmm.h"

#define MAGIC "tinyvmm1"
#define PAGE 4096

struct head {
	char magic[8];
	uint64_t vcpu_size, devices_size, ram_size;
};

struct page {
	uint64_t gpa;
	uint8_t bytes[PAGE];
};

static const uint8_t zeros[PAGE];

static void fail(const char *path, const char *why)
{
	say("%s: %s", path, why);
	exit(EXIT_FAILURE);
}

static void put(FILE *file, const char *path, const void *bytes, size_t size)
{
	must(fwrite(bytes, size, 1, file) == 1 ? 0 : -1, path);
}

static void get(FILE *file, const char *path, void *bytes, size_t size)
{
	if (fread(bytes, size, 1, file) != 1)
		fail(path, "it ends too early");
}

static uint64_t put_range(struct vmm *vmm, FILE *file, const char *path, uint64_t gpa,
			  uint64_t size)
{
	struct page page;
	uint64_t pages = 0;

	for (page.gpa = gpa; page.gpa < gpa + size; page.gpa += PAGE) {
		gmem_must(gmem_view_read(vmm->view, page.gpa, page.bytes, PAGE, NULL),
			  "reading guest memory");
		if (!memcmp(page.bytes, zeros, PAGE))
			continue;
		put(file, path, &page, sizeof(page));
		pages++;
	}
	return pages;
}

void snapshot_save(struct vmm *vmm, const char *path)
{
	static struct vcpu_state vcpu;
	struct head head = {
		.vcpu_size = sizeof(vcpu), .devices_size = sizeof(vmm->devices),
	};
	uint64_t pages = 0;
	FILE *file;

	memcpy(head.magic, MAGIC, sizeof(head.magic));
	for (int i = 0; i < vmm->ram_ranges; i++)
		head.ram_size += vmm->ram[i].size;
	vcpu_save(vmm, &vcpu);

	file = fopen(path, "we");
	must(file ? 0 : -1, path);
	put(file, path, &head, sizeof(head));
	put(file, path, &vcpu, sizeof(vcpu));
	put(file, path, &vmm->devices, sizeof(vmm->devices));
	for (int i = 0; i < vmm->ram_ranges; i++)
		pages += put_range(vmm, file, path, vmm->ram[i].gpa, vmm->ram[i].size);
	for (unsigned int i = 0; i < PIECES; i++)
		if (vmm->pieces[i])
			pages += put_range(vmm, file, path, HOTPLUG_BASE + i * PIECE_SIZE, PIECE_SIZE);
	must(fclose(file), path);
	say("snapshot in %s, with %" PRIu64 " pages", path, pages);
}

/* What the devices take for granted of their own state */
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
	static struct vcpu_state vcpu;
	FILE *file = fopen(path, "re");
	struct head head;
	struct page page;

	must(file ? 0 : -1, path);
	get(file, path, &head, sizeof(head));
	if (memcmp(head.magic, MAGIC, sizeof(head.magic)) || head.vcpu_size != sizeof(vcpu) ||
	    head.devices_size != sizeof(vmm->devices))
		fail(path, "it is no snapshot of this program");
	get(file, path, &vcpu, sizeof(vcpu));
	get(file, path, &vmm->devices, sizeof(vmm->devices));
	if (vcpu.msr_count > 512 || !is_sound(&vmm->devices))
		fail(path, "it contradicts itself");

	memory_add_ram(vmm, head.ram_size);
	hotplug_restore(vmm);
	while (fread(&page, sizeof(page), 1, file) == 1)
		memory_write(vmm, page.gpa, page.bytes, PAGE);
	if (ferror(file) || !feof(file))
		fail(path, "it cannot be read");
	fclose(file);
	vcpu_restore(vmm, &vcpu);
	say("restored from %s", path);
}
