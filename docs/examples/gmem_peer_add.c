/* SPDX-License-Identifier: MIT */
#include "examples.h"

EXAMPLE(gmem_peer_add)
{
	int sock[2];
	struct gmem_export *exporter;
	struct gmem_peer *peer;
	struct gmem_import *import;

	check(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sock) == 0);

	/* EXAMPLE: Give all memory, now and later, to a device process that has the other end. */
	if (gmem_export_new(vm, NULL, &exporter) < 0 ||
	    gmem_peer_add(exporter, sock[0], NULL, &peer) < 0)
		errx(1, "%s", gmem_last_error());
	close(sock[0]);
	/* ... and whenever gmem_export_fd(exporter) is readable: */
	if (gmem_export_dispatch(exporter) < 0)
		errx(1, "%s", gmem_last_error());
	/* END */
	check(gmem_import_new(sock[1], NULL, &import) == 0);
	for (int i = 0; i < 100 && gmem_peer_status(peer) == 0; i++)
		check(gmem_import_dispatch(import) >= 0 && gmem_export_dispatch(exporter) == 0);
	check(gmem_peer_status(peer) == 1);
	gmem_import_free(import);
	gmem_export_free(exporter);
}
