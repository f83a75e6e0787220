/* SPDX-License-Identifier: MIT */
/*
 * Dumps for the tests of gmem-show and of the format: a layout on a scripted
 * kernel, written to standard output. usage: sample KERNEL BACKING
 */
#include <string.h>
#include <unistd.h>

#include "unit.h"

/* a name that has everything in it */
#define NAME "sample \"\\\n\x1b[31m gr\xc3\xbc\xc3\x9f\xff"

static void add(const struct unit *unit, uint64_t gpa_page, uint64_t pages,
		const struct gmem_region_opts *opts)
{
	struct gmem_region *region;
	char *hva;

	assert_ok(gmem_region_add(unit->vm, PAGES(unit, gpa_page), PAGES(unit, pages), opts,
				  &region));
	/* every fourth stretch of it used */
	hva = opts->flags & GMEM_REGION_DEVICE ? NULL : gmem_region_hva(region);
	for (uint64_t at = 0; hva && at + 4 < pages; at += 16)
		memset(hva + PAGES(unit, at), 1, PAGES(unit, 4));
}

static void lay_out(const struct unit *unit, uint32_t backing)
{
	struct gmem_plan *host = unit_plan(unit, GMEM_BACKING_HOST);
	struct gmem_plan *plan = unit_plan(unit, backing);
	GMEM_OPTS(gmem_region_opts, ram, .plan = plan);
	GMEM_OPTS(gmem_region_opts, rom, .flags = GMEM_REGION_READONLY, .plan = host);
	GMEM_OPTS(gmem_region_opts, device, .flags = GMEM_REGION_DEVICE);

	add(unit, 0, 160, &ram);
	add(unit, 192, 16, &rom);
	add(unit, 208, 32, &device);
	add(unit, 256, 1024, &ram);
	if (backing == GMEM_BACKING_PRIVATE)
		assert_ok(gmem_vm_convert(unit->vm, PAGES(unit, 300), PAGES(unit, 333),
					  GMEM_STATE_PRIVATE, NULL, NULL));
	gmem_plan_free(host);
	gmem_plan_free(plan);
}

int main(int argc, char **argv)
{
	GMEM_OPTS(gmem_dump_opts, opts, .flags = GMEM_DUMP_HVA, .name = NAME);
	GMEM_OPTS(gmem_lease_opts, disk, .holder = "disk \"0\"");
	struct gmem_lease *lease;
	struct unit unit;

	if (argc != 3)
		return 2;
	unit_begin_vm(&unit, argv[1]);
	lay_out(&unit, gmem_backing_from_name(argv[2]));
	assert_ok(gmem_lease_new(unit.vm, unit.page, 100, &disk, &lease));
	assert_ok(gmem_vm_dump(unit.vm, STDOUT_FILENO, &opts));
	gmem_lease_free(lease);
	unit_end(&unit);
	return 0;
}
