/* SPDX-License-Identifier: MIT */
#include "examples.h"

#include <pthread.h>

static struct gmem_migration *migration;

static void *migrate(void *data)
{
	struct gmem_migration_status *status = data;

	return (void *)(intptr_t)gmem_migration_round(migration, status);
}

EXAMPLE(gmem_migration_cancel)
{
	GMEM_OPTS(gmem_migration_status, status, .round = 0);
	pthread_t thread;
	int socks[2];
	void *err;

	check(gmem_view_fill(view, 0, 'x', 4 * MIB, NULL) == 0);
	check(socketpair(AF_UNIX, SOCK_STREAM, 0, socks) == 0);
	check(gmem_migration_new(vm, socks[0], NULL, &migration) == 0);
	check(pthread_create(&thread, NULL, migrate, &status) == 0);

	/* EXAMPLE: End a migration whose receiver does not read. The VM goes on. */
	gmem_migration_cancel(migration);
	pthread_join(thread, &err);
	gmem_migration_free(migration);
	/* END */
	check((intptr_t)err == -ECANCELED);
}
