/* SPDX-License-Identifier: MIT */
/*
 * peer_dirty: what peers write, brought into the marks of the VM's pages.
 *
 * While there is a tracker, a peer has a map in which it marks what it writes (mark_map.h). Until
 * it says that it does so, and wherever it has memory above the map's end, all that it may write
 * counts as written at each collection: its blocks, where it has the right to write. That is
 * never taken from the map, where a peer can store anything. What of a block is granted makes
 * no difference: memory that can be converted has no log, and counts as written anyhow.
 *
 * A peer that gives memory back has ended its writes when it answers: its marks there are read
 * then. One that ends without an answer may have been killed between a write and its mark. A
 * process closes its socket when its last thread is gone, so whoever reads the end of the
 * connection comes after all its writes: all that it could write counts as written once more.
 *
 * But a connection can end before the process, and memory can be mapped longer. So until
 * gmem_peer_remove() what the peer had is remembered (peer->lost) and its map read; without a map
 * all of that counts at each collection. The removal itself counts it for the last time.
 */
#ifndef GMEM_PEER_DIRTY_H
#define GMEM_PEER_DIRTY_H

#include <stdint.h>

#include "base/part.h"
#include "share/peer_state.h"

/* Call the functions below with the export's lock held. They take the VM's lock. */

/* The peer ends its use of a part of a block: mark what it wrote there. */
void gmem_peer_mark_part(const struct gmem_peer *peer, const struct gmem_block *block,
			 const struct gmem_part *part);
/* Mark all that the peer can write, or could when it was disconnected. */
void gmem_peer_mark_all(const struct gmem_peer *peer);
/* Mark what it may have written since the last time. */
void gmem_peer_collect(struct gmem_peer *peer);
/* Where the marks of the peer should end; 0: it needs none, or none but those it has. */
uint64_t gmem_peer_needs_marks(const struct gmem_peer *peer);

/* The peer answered the message with its next map: with 0 that it uses it, */
void gmem_peer_begin_marks(struct gmem_peer *peer);
/* or that it refuses. */
void gmem_peer_drop_next_marks(struct gmem_peer *peer);
/* Its connection ends. */
void gmem_peer_lose_marks(struct gmem_peer *peer);
/* There is no tracker any more. */
void gmem_peer_end_marks(struct gmem_peer *peer);

#endif
