/* SPDX-License-Identifier: MIT */
#include "examples.h"

static uint64_t mapped;

static void map_for_device(void *data, const struct gmem_region_info *region,
			   uint64_t gpa, uint64_t size)
{
	(void)data, (void)gpa, (void)region;
	mapped += size;
}

static void unmap_for_device(void *data, const struct gmem_region_info *region,
			     uint64_t gpa, uint64_t size)
{
	(void)data, (void)gpa, (void)region;
	mapped -= size;
}

EXAMPLE(gmem_listener_new)
{
	/* EXAMPLE: Have an IOMMU follow the layout: the two functions map and unmap
	 * [gpa, gpa + size), at region->hva + (gpa - region->gpa). What is there already
	 * is told before the call returns. */
	GMEM_OPTS(gmem_listener_opts, opts, .name = "vfio",
		  .region_added = map_for_device, .region_removed = unmap_for_device);
	struct gmem_listener *listener;

	if (gmem_listener_new(vm, &opts, &listener) < 0)
		errx(1, "%s", gmem_last_error());
	/* END */
	check(mapped == 4 * MIB);
	check(gmem_region_remove(ram) == 0 && mapped == 0);
	gmem_listener_free(listener);
}
