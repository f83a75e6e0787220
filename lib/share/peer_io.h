/* SPDX-License-Identifier: MIT */
/*
 * peer_io: the messages to peers, and their answers.
 *
 * A peer answers one message at a time. The next message is found by comparing what the
 * peer has with what it should have (peer_needs.h). Messages are not queued, so a peer that
 * does not read costs no memory. A peer that sends anything but the answer is disconnected.
 */
#ifndef GMEM_PEER_IO_H
#define GMEM_PEER_IO_H

#include <stdint.h>

#include "share/peer_state.h"

/* How often a thread that waits looks again: another one may have read what it waits for. */
#define GMEM_PEERS_SLICE_MS	10

/* Call the functions below with the export's lock held. */

/* Disconnect the peer. Memory it has mapped stays mapped there. */
void gmem_peer_disconnect(struct gmem_peer *peer, int err);
/* Forget what a peer had that is disconnected: it goes. */
void gmem_peer_forget(struct gmem_peer *peer);
/*
 * Receive what is there, for every peer, and send nothing: more than one answer from each is
 * the end of its connection, and so is the end.
 */
void gmem_peers_receive(struct gmem_export *exporter);
/*
 * Send and receive as much as is possible without waiting, for every peer, in about
 * @nanoseconds; if more is left, the event stays set.
 */
void gmem_peers_pump(struct gmem_export *exporter, uint64_t nanoseconds);
/* The same with the export's lock taken, for a user: about 10 ms of it. */
void gmem_peers_dispatch(struct gmem_export *exporter);

#endif
