/* SPDX-License-Identifier: MIT */
/*
 * peer_io: what a peer should have, and the messages that bring it there.
 *
 * A peer has one message at a time to answer, and the next one is found by comparing
 * what it has (its blocks) with what it should have. Nothing is queued, so a peer
 * that does not read costs nothing. Whatever it sends besides the one answer ends it.
 *
 * Blocks are never out of date: before a region goes, what covers it is taken back
 * (peer_recall.h). A split leaves memory where it is, and so the block that is then
 * behind two regions.
 *
 * Of a block that can be converted the peer may use what is not in its set of revoked
 * ranges. Before memory becomes private it is revoked, and the conversion waits for
 * the answer; what is revoked and not private is granted.
 */
#ifndef GMEM_PEER_IO_H
#define GMEM_PEER_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gmem.h"
#include "base/lock.h"
#include "base/range_map.h"
#include "base/range_set.h"
#include "region/vm_core.h"
#include "share/wire.h"

/* What somebody waits for: ranges that are leaving, or one that is to be revoked */
struct gmem_want {
	struct gmem_want *next;
	bool is_leaving;
	struct gmem_part part;
};

struct gmem_export {
	struct gmem_change_hook hook;
	struct gmem_vm *vm;
	uint64_t flags;
	struct gmem_lock lock;		/* rank EXPORT: everything below, and the peers' fields */
	struct gmem_range_map memory;	/* the caller's, see extent.h */
	struct gmem_peer *peers;
	struct gmem_range_map leaving;	/* by gpa: what a change under way will take */
	struct gmem_range *leaving_nodes;
	size_t leaving_count;
	struct gmem_listener *listener;
	struct gmem_range_map withheld;	/* what is private, or becomes so */
	struct gmem_want *wants;	/* conversions that wait for peers */
	int event;			/* set when there may be something to send */
	int epoll;			/* that, and the peers' sockets */
};

/* Memory the peer has, or is being told of */
struct gmem_block {
	struct gmem_range gpa;
	uint64_t id;
};

struct gmem_peer {
	struct gmem_peer *next;
	struct gmem_export *exporter;
	struct gmem_export_range *ranges;
	size_t range_count;
	uint64_t flags;
	uint32_t wait_ms;
	int sock;			/* -1 once it is lost */
	int status;			/* 0, or why it is lost */

	struct gmem_range_map blocks;
	uint64_t last_id;
	uint64_t cursor;		/* everything below it has been considered */
	bool at_end;			/* and so has everything else */
	bool told_hello;
	bool told_ready;
	bool wants_room;		/* in the socket */

	bool awaits;			/* an answer to the message that these describe: */
	uint32_t sequence;
	enum gmem_wire_type type;
	struct gmem_block *block;
	struct gmem_part part;		/* REVOKE */
	int refusal;			/* with which the peer kept memory */

	struct gmem_range_map revoked;
	struct gmem_range *spare;	/* for the change of that set which is under way */
	uint64_t grant_from;		/* below it nothing is to be granted */
	bool all_granted;
};

/* All of these with the export's lock held. */

/* What is there now must be such as can be given to the peer. */
int gmem_peer_check_memory(const struct gmem_peer *peer);
/* Disconnect the peer: whatever it has it may keep. */
void gmem_peer_lose(struct gmem_peer *peer, int err);
/* Send and receive everything that takes no waiting, for every peer. */
void gmem_peers_pump(struct gmem_export *exporter);
/* The first part of [@start, @last] in one block that the peer can use; false: none */
bool gmem_peer_next_usable(const struct gmem_peer *peer, uint64_t start, uint64_t last,
			   struct gmem_block **ret_block, struct gmem_part *ret);

#endif
