/* SPDX-License-Identifier: MIT */
/*
 * peer_source: what peers write (peer_dirty.h) as a source of the VM's trackers.
 *
 * Collections read what is in the sockets before they read maps: whoever knows that a peer is
 * dead has its last writes collected. An answer that another thread reads is acted on with the
 * export's lock, so what it makes known is marked before the collection goes on.
 */
#ifndef GMEM_PEER_SOURCE_H
#define GMEM_PEER_SOURCE_H

struct gmem_export;

/* Begin and end to be asked by the VM's trackers. */
void gmem_peers_add_source(struct gmem_export *exporter);
void gmem_peers_remove_source(struct gmem_export *exporter);

#endif
