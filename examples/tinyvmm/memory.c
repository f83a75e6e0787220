/* SPDX-License-Identifier: MIT */
/* Guest memory: reports, plans and the layout. Devices access it through views. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "tinyvmm.h"

/* Finds out what the VM supports, and decides how its memory is backed. */
void memory_attach(struct vmm *vmm, uint32_t backing)
{
	GMEM_OPTS(gmem_request, request, .backings = { backing });
	int error;

	/* Accesses to pages that cannot be reached now fail, instead of raising SIGBUS. */
	gmem_must(gmem_recovery_enable(), "recovery");
	gmem_must(gmem_vm_new(vmm->vm_fd, NULL, &vmm->memory), "attaching to the VM");
	error = gmem_plan_new(gmem_vm_caps(vmm->memory), &request, &vmm->plan);
	if (error == -EOPNOTSUPP) {
		say("cannot run here: %s", gmem_last_error());
		exit(EXIT_CANNOT_RUN);
	}
	gmem_must(error, "planning");
	gmem_must(gmem_view_new(vmm->memory, &vmm->view), "a view");
}

/* Adds RAM from 0 on, with a hole for devices below 4 GiB: all of it or nothing. */
void memory_add_ram(struct vmm *vmm, uint64_t size)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = vmm->plan);
	GMEM_OPTS(gmem_region_opts, device, .flags = GMEM_REGION_DEVICE);
	struct gmem_region *region;
	struct gmem_change *change;

	vmm->ram_ranges = gmem_must(gmem_ram_layout(size, NULL, vmm->ram, 2), "RAM layout");
	gmem_must(gmem_change_new(vmm->memory, &change), "a change");
	for (int i = 0; i < vmm->ram_ranges; i++)
		gmem_must(gmem_change_add(change, vmm->ram[i].gpa, vmm->ram[i].size, &opts,
					  &region), "adding RAM");
	/* No memory can be added at this range, and a lookup there returns -ENXIO. */
	gmem_must(gmem_change_add(change, VIRTIO_BASE, VIRTIO_COUNT * VIRTIO_PAGE, &device,
				  &region), "devices");
	gmem_must(gmem_change_apply(change), "adding RAM");
	gmem_change_free(change);

	say("%" PRIu64 " MiB of RAM, backing \"%s\"", size / MIB,
	    gmem_backing_name(gmem_plan_backing(vmm->plan)));
}

/* Hot-adds one piece of memory; the guest may run meanwhile. */
int memory_add_piece(struct vmm *vmm, unsigned int piece)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = vmm->plan);

	return gmem_region_add(vmm->memory, HOTPLUG_BASE + piece * PIECE_SIZE, PIECE_SIZE, &opts,
			       &vmm->pieces[piece]);
}

/* Gives a piece's memory back to the host. The guest has promised not to use it. */
void memory_remove_piece(struct vmm *vmm, unsigned int piece)
{
	gmem_must(gmem_region_remove(vmm->pieces[piece]), "hot-removing memory");
	vmm->pieces[piece] = NULL;
}

/* Writes at an address that this program chose, which therefore has memory. */
void memory_write(struct vmm *vmm, uint64_t gpa, const void *bytes, uint64_t size)
{
	gmem_must(gmem_view_write(vmm->view, gpa, bytes, size, NULL), "writing guest memory");
}
