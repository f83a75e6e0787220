/* SPDX-License-Identifier: MIT */
#include "examples.h"

EXAMPLE(gmem_migration_round)
{
	const int fd = temporary_file();

	check(gmem_view_fill(view, MIB, 'x', 65536, NULL) == 0);

	/* EXAMPLE: Send memory until the pause would be short, or ten times; then stop the VM. */
	GMEM_OPTS(gmem_migration_status, status, .round = 0);
	struct gmem_migration *migration;

	if (gmem_migration_new(vm, fd, NULL, &migration) < 0)
		errx(1, "%s", gmem_last_error());
	do {
		if (gmem_migration_round(migration, &status) < 0)
			errx(1, "the migration: %s", gmem_last_error());
		printf("%" PRIu64 " MiB are left, at %" PRIu64 " MiB/s\n", status.left_bytes / MIB,
		       status.send_rate / MIB);
	} while (status.pause_ns > 20 * 1000 * 1000 && status.round < 10);

	/* ... stop vCPUs and devices ... */
	if (gmem_migration_finish(migration, &status) < 0)
		errx(1, "the migration: %s", gmem_last_error());
	gmem_migration_free(migration);
	/* END */
	check(gmem_vm_restore(vm, fd, NULL, NULL) == 0);
}
