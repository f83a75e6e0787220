/* SPDX-License-Identifier: MIT */
#include "examples.h"

#include <pthread.h>

static struct gmem_peer *peer;

/* In a VMM, another process */
static void *serve(void *exporter)
{
	while (gmem_peer_status(peer) == 0) {
		struct pollfd p = { .fd = gmem_export_fd(exporter), .events = POLLIN };

		poll(&p, 1, 100);
		check(gmem_export_dispatch(exporter) == 0);
	}
	return NULL;
}

EXAMPLE(gmem_import_new)
{
	struct gmem_export *exporter;
	pthread_t server;
	int sock[2];

	check(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sock) == 0);
	check(gmem_export_new(vm, NULL, &exporter) == 0);
	check(gmem_peer_add(exporter, sock[0], NULL, &peer) == 0);
	check(gmem_view_fill(view, 0, 'x', 4, NULL) == 0);
	check(pthread_create(&server, NULL, serve, exporter) == 0);

	/* EXAMPLE: In the device process: wait for memory, then use it as the VMM does. */
	struct gmem_import *import;
	struct gmem_view *imported;
	char request[4];
	int complete = 0;

	if (gmem_recovery_enable() < 0 || gmem_import_new(sock[1], NULL, &import) < 0 ||
	    gmem_import_view_new(import, &imported) < 0)
		errx(1, "%s", gmem_last_error());
	while (complete == 0) {
		struct pollfd p = { .fd = gmem_import_fd(import), .events = POLLIN };

		poll(&p, 1, -1);
		complete = gmem_import_dispatch(import);
	}
	if (complete < 0 || gmem_view_read(imported, 0, request, sizeof(request), NULL) < 0)
		errx(1, "%s", gmem_last_error());
	/* END */
	check(pthread_join(server, NULL) == 0);
	check(memcmp(request, "xxxx", 4) == 0);
}
