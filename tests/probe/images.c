/* SPDX-License-Identifier: MIT */
/*
 * images make DIRECTORY COUNT    chains and sequences of images, as the library writes them
 * images dump LIKE FILE...       what a chain restores to in a VM with the regions of LIKE
 *
 * "make" has a VM whose memory and layout change by chance between images, writes each image to
 * 0.img, 1.img and so on, with all of them behind each other in sequence.img, and what the memory
 * was to 0.raw and so on. "dump" writes the same of a VM that a chain was restored to. Needs KVM;
 * without it, exits with 77.
 */
#include <err.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/kvm.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <gmem.h>

#define MIB ((uint64_t)1 << 20)
#define SIZE (4 * MIB)
#define HOTPLUG (64 * MIB)

static struct gmem_vm *vm;
static struct gmem_plan *plan;
static struct gmem_view *view;
static uint64_t seed = 1;

static void check(int err, const char *what)
{
	if (err < 0)
		errx(1, "%s: %s", what, gmem_last_error());
}

static uint64_t chance(uint64_t below)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed % below;
}

static void make_vm(void)
{
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_HOST });
	int kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC), vm_fd;

	if (kvm_fd < 0)
		err(77, "/dev/kvm");
	vm_fd = ioctl(kvm_fd, KVM_CREATE_VM, 0);
	if (vm_fd < 0)
		err(1, "a VM");
	check(gmem_vm_new(vm_fd, NULL, &vm), "a VM");
	check(gmem_plan_new(gmem_vm_caps(vm), &request, &plan), "a plan");
	check(gmem_view_new(vm, &view), "a view");
}

static struct gmem_region *add(uint64_t gpa, uint64_t size)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = plan);
	struct gmem_region *region;

	check(gmem_region_add(vm, gpa, size, &opts, &region), "a region");
	return region;
}

/* All memory, with where it is in front of each region */
static void write_raw(int fd)
{
	struct gmem_region_info regions[16];
	int count = gmem_vm_regions(vm, regions, 16);

	check(count, "regions");
	for (int i = 0; i < count; i++) {
		dprintf(fd, "%" PRIx64 " %" PRIx64 "\n", regions[i].gpa, regions[i].size);
		for (uint64_t at = 0; at < regions[i].size; at += MIB)
			if (write(fd, (char *)regions[i].hva + at, MIB) != (ssize_t)MIB)
				err(1, "memory");
	}
}

static int open_at(const char *directory, int number, const char *end)
{
	char path[4096];
	int fd;

	if (number < 0)
		snprintf(path, sizeof(path), "%s/%s", directory, end);
	else
		snprintf(path, sizeof(path), "%s/%d%s", directory, number, end);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (fd < 0)
		err(1, "%s", path);
	return fd;
}

static void scribble(struct gmem_region **hotplug)
{
	char bytes[20000];
	uint64_t gpa, size;

	if (chance(3) == 0) {
		if (*hotplug)
			check(gmem_region_remove(*hotplug), "removing");
		*hotplug = *hotplug ? NULL : add(HOTPLUG, 2 * MIB);
	}
	for (uint64_t i = chance(30); i > 0; i--) {
		gpa = chance(SIZE - sizeof(bytes));
		if (*hotplug && chance(2))
			gpa = HOTPLUG + chance(2 * MIB - sizeof(bytes));
		size = 1 + chance(sizeof(bytes));
		memset(bytes, (int)chance(3), sizeof(bytes));
		memcpy(bytes, &seed, chance(4) ? sizeof(seed) : 0);
		check(gmem_view_write(view, gpa, bytes, size, NULL), "writing");
	}
	if (chance(4) == 0)
		check(gmem_vm_discard(vm, chance(SIZE / 65536) * 65536, 65536, NULL, NULL), "discarding");
}

static void save(int fd, uint64_t at, uint64_t flags, struct gmem_dirty *dirty,
		 struct gmem_transfer_result *result)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .image_offset = at, .dirty = dirty, .flags = flags);

	check(gmem_vm_save(vm, fd, &opts, result), "a save");
}

static int make(const char *directory, int count)
{
	GMEM_OPTS(gmem_transfer_result, result, .file_bytes = 0);
	struct gmem_region *hotplug = NULL;
	struct gmem_dirty *chain, *sequence;
	int sequence_fd = open_at(directory, -1, "sequence.img"), fd;
	uint64_t end = 0;

	add(0, SIZE);
	check(gmem_dirty_new(vm, NULL, &chain), "a tracker");
	check(gmem_dirty_new(vm, NULL, &sequence), "a tracker");
	for (int i = 0; i < count; i++) {
		scribble(&hotplug);
		fd = open_at(directory, i, ".img");
		save(fd, 0, 0, chain, &result);
		close(fd);
		save(sequence_fd, end, i == count - 1 ? 0 : GMEM_TRANSFER_FOLLOWED, sequence, &result);
		end += result.file_bytes;
		fd = open_at(directory, i, ".raw");
		write_raw(fd);
		close(fd);
	}
	gmem_dirty_free(chain);
	gmem_dirty_free(sequence);
	return 0;
}

static int open_image(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		err(1, "%s", path);
	return fd;
}

static int dump(const char *like, int count, char **paths)
{
	int *fds = calloc((size_t)count, sizeof(*fds));
	GMEM_OPTS(gmem_transfer_opts, opts, .parents = fds, .parent_count = (uint32_t)count - 1);
	struct gmem_image_region regions[16];
	int found;

	for (int i = 0; i < count; i++)
		fds[i] = open_image(paths[i]);
	if (count == 1)
		opts.parents = NULL;
	found = gmem_image_info(open_image(like), NULL, NULL, regions, 16);
	check(found, "an image");
	for (int i = 0; i < found; i++)
		add(regions[i].gpa, regions[i].size);
	for (int i = 0; i < found; i++)
		check(gmem_view_fill(view, regions[i].gpa, 'x', regions[i].size, NULL), "filling");
	check(gmem_vm_restore(vm, fds[count - 1], &opts, NULL), "the restore");
	write_raw(STDOUT_FILENO);
	free(fds);
	return 0;
}

int main(int argc, char **argv)
{
	make_vm();
	if (argc == 4 && !strcmp(argv[1], "make"))
		return make(argv[2], atoi(argv[3]));
	if (argc > 3 && !strcmp(argv[1], "dump"))
		return dump(argv[2], argc - 3, argv + 3);
	errx(2, "usage: images make DIRECTORY COUNT | images dump LIKE FILE...");
}
