/* SPDX-License-Identifier: MIT */
/*
 * balloon: how a VMM gives a guest's unused memory back to the host.
 *
 * It shows what two devices of a VMM do with memory. A balloon gets single pages
 * of 4 KiB, in any order, that the guest promises not to use. Free page
 * reporting gets large ranges, and answers when they are freed. In a VMM both
 * get their lists from the guest's driver through a virtqueue; here the lists
 * are made up.
 *
 * For each step it prints how much memory was done, and how much of that was
 * allocated before and after, as the kernel counts it.
 *
 * Exit status: 0, 1 if something failed, 77 if this host cannot run it.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <gmem.h>

#include "start.h"

#define MIB		((uint64_t)1 << 20)
#define RAM		(64 * MIB)

#define BALLOON_PAGES	256	/* most pages in one message of the driver, each of 4 KiB */

static void must(int result, const char *what)
{
	if (result < 0)
		errx(1, "%s: %s", what, gmem_last_error());
}

static void expect(int truth, const char *what)
{
	if (!truth)
		errx(1, "expected %s", what);
}

static void say(const char *who, const struct gmem_footprint *footprint)
{
	printf("%-20s %2" PRIu64 " MiB done", who, footprint->done / MIB);
	if (footprint->counted)
		printf(", of it in memory %2" PRIu64 " MiB before, %2" PRIu64 " MiB after",
		       footprint->before / MIB, footprint->after / MIB);
	printf("\n");
}

/*
 * The guest reports free pages. If somebody holds a lease on the range, it is in
 * use after all and stays; the guest is told that the report was handled.
 */
static int report_free(struct gmem_vm *vm, const struct gmem_gpa_range *range,
		       struct gmem_footprint *ret)
{
	int err = gmem_vm_discard(vm, range->gpa, range->size, NULL, ret);

	if (err != -EBUSY)
		must(err, "reporting free pages");
	return err;
}

static void run_devices(struct gmem_vm *vm, char *ram)
{
	const struct gmem_gpa_range free_range = { 32 * MIB, 16 * MIB };
	GMEM_OPTS(gmem_lease_opts, disk, .holder = "disk 0");
	struct gmem_footprint footprint;
	uint32_t pfns[BALLOON_PAGES];
	struct gmem_lease *lease;

	/* The pages of 1 MiB, from 8 MiB on, not in order */
	for (uint32_t i = 0; i < BALLOON_PAGES; i++)
		pfns[i] = (uint32_t)(8 * MIB / 4096) + i * 101 % BALLOON_PAGES;
	/* Of host pages larger than 4 KiB, those are freed of which all parts are in the list. */
	must(gmem_vm_discard_pfns(vm, pfns, BALLOON_PAGES, NULL, &footprint), "inflating");
	say("balloon:", &footprint);
	expect(footprint.done == MIB, "all of the balloon's pages done");
	expect(ram[8 * MIB] == 0 && ram[9 * MIB - 1] == 0, "zeroes in the balloon");
	expect(ram[8 * MIB - 1] == 1 && ram[9 * MIB] == 1, "its neighbours as they were");

	must(gmem_lease_new(vm, 40 * MIB, 4096, &disk, &lease), "a lease for the disk");
	expect(report_free(vm, &free_range, &footprint) == -EBUSY, "the disk in the way");
	printf("%-20s refused: %s\n", "free page report:", gmem_last_error());
	gmem_lease_free(lease);

	expect(report_free(vm, &free_range, &footprint) == 0, "the free range freed");
	say("free page report:", &footprint);
	expect(!footprint.counted || footprint.before - footprint.after == free_range.size,
	       "all of it in memory before, and none after");

	/* The guest gets pages back when it touches them. The VMM can allocate them before: */
	must(gmem_vm_populate(vm, 8 * MIB, MIB, NULL, &footprint), "deflating");
	say("deflated:", &footprint);
}

static const char help[] =
"usage: balloon\n"
"Gives memory of a guest back to the host, as a balloon and free page reporting do.\n";

int main(int argc, char **argv)
{
	GMEM_OPTS(gmem_request, request,
		  .backings = { GMEM_BACKING_SHARED, GMEM_BACKING_HOST });
	GMEM_OPTS(gmem_region_opts, opts, .flags = 0);
	struct gmem_region *region;
	struct gmem_plan *plan;
	struct gmem_vm *vm;
	int kvm, vm_fd;

	no_arguments(argc, argv, help);
	kvm = open_kvm("balloon");
	vm_fd = create_vm(kvm, 0);
	if (vm_fd < 0)
		err(1, "KVM_CREATE_VM");

	must(gmem_vm_new(vm_fd, NULL, &vm), "looking at the VM");
	must(gmem_plan_new(gmem_vm_caps(vm), &request, &plan), "planning");
	opts.plan = plan;
	must(gmem_region_add(vm, 0, RAM, &opts, &region), "adding RAM");
	printf("%" PRIu64 " MiB of RAM, backed by \"%s\"\n", RAM / MIB,
	       gmem_backing_name(gmem_region_backing(region)));
	memset(gmem_region_hva(region), 1, RAM);

	run_devices(vm, gmem_region_hva(region));
	gmem_plan_free(plan);
	gmem_vm_free(vm);
	close(vm_fd);
	close(kvm);
	return exit_status();
}
