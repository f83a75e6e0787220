/* SPDX-License-Identifier: MIT */
#include "examples.h"

EXAMPLE(gmem_vm_convert)
{
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_PRIVATE },
		  .needs = GMEM_NEED_CONVERSION);
	GMEM_OPTS(gmem_region_opts, private);
	struct gmem_plan *private_plan;
	struct gmem_region *region;
#ifdef __x86_64__
	int fd = ioctl(kvm_fd, KVM_CREATE_VM, 1);	/* KVM_X86_SW_PROTECTED_VM */
#else
	int fd = -1;
#endif

	if (fd < 0)
		skip("this host has no VM with private memory that needs no firmware");
	gmem_view_free(view);
	gmem_vm_free(vm);
	check(gmem_vm_new(fd, NULL, &vm) == 0);
	if (gmem_plan_new(gmem_vm_caps(vm), &request, &private_plan) < 0)
		skip(gmem_last_error());
	private.plan = private_plan;
	check(gmem_region_add(vm, 0, 4 * MIB, &private, &region) == 0);

	/* EXAMPLE: Make 1 MiB private, which frees what the host has of it; wait for I/O
	 * that is under way there, but not longer than 100 ms. */
	GMEM_OPTS(gmem_convert_opts, opts, .wait_ms = 100);
	struct gmem_conversion conversion;

	if (gmem_vm_convert(vm, 0x100000, 0x100000, GMEM_STATE_PRIVATE, &opts, &conversion) < 0)
		warnx("it stays shared: %s", gmem_last_error());
	/* END */
	check(conversion.converted == MIB);
	check(gmem_view_new(vm, &view) == 0);
	check(gmem_view_fill(view, MIB, 0, 1, NULL) == -EACCES);
}
