/* SPDX-License-Identifier: MIT */
/*
 * peer_io: finds out what memory a peer should have, and sends the messages for it.
 *
 * A peer answers one message at a time. The next message is found by comparing what the
 * peer has (its blocks) with what it should have. Messages are not queued, so a peer that
 * does not read costs no memory. A peer that sends anything but the answer is disconnected.
 *
 * Blocks are never out of date: before a region is removed, the blocks in it are unmapped
 * (peer_recall.h). Splitting a region does not move its memory, so one block may then lie
 * in two regions.
 *
 * In a block that can be converted, the peer may use all but its set of revoked ranges.
 * Before memory becomes private it is revoked, and the conversion waits for the answer.
 * Memory that is revoked but not private is granted again.
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

/* A recall that a thread waits for: of the export's leaving ranges, or of one part */
struct gmem_recall {
	struct gmem_recall *next;
	bool is_leaving;		/* all of exporter->leaving; otherwise part is revoked */
	struct gmem_part part;
};

struct gmem_export {
	struct gmem_change_hook hook;
	struct gmem_vm *vm;
	uint64_t flags;
	struct gmem_lock lock;		/* rank EXPORT; guards all below, and the peers' fields */
	struct gmem_range_map memory;	/* the caller's own, see extent.h */
	struct gmem_peer *peers;
	struct gmem_range_map leaving;	/* by gpa: memory that a change under way will remove */
	struct gmem_range *leaving_nodes;
	size_t leaving_count;
	struct gmem_listener *listener;
	struct gmem_range_map withheld;	/* memory that is private or is becoming private */
	struct gmem_recall *recalls;	/* conversions that wait for peers */
	int event;			/* set when there may be something to send */
	int epoll;			/* watches event and the peers' sockets */
};

/* Memory the peer has, or that a message under way gives it */
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
	int sock;			/* -1 once disconnected */
	int status;			/* 0, or the -errno that disconnected it */

	struct gmem_range_map blocks;
	uint64_t last_id;
	uint64_t cursor;		/* everything below it has been considered */
	bool at_end;			/* all memory has been considered */
	bool sent_hello;
	bool sent_ready;
	bool wants_room;		/* the socket had no room for a message */

	bool awaits_answer;		/* to the message that the next four fields describe */
	uint32_t sequence;
	enum gmem_wire_type type;
	struct gmem_block *block;
	struct gmem_part part;		/* of REVOKE and GRANT */
	int refusal;			/* -errno with which the peer kept memory, or 0 */

	struct gmem_range_map revoked;
	struct gmem_range *spare;	/* node for the change of revoked that is under way */
	uint64_t grant_from;		/* no memory below it is to be granted */
	bool all_granted;
};

/* Call the functions below with the export's lock held. */

/* Check that all present memory can be given to the peer. */
int gmem_peer_check_memory(const struct gmem_peer *peer);
/* Disconnect the peer. Memory it has mapped stays mapped there. */
void gmem_peer_disconnect(struct gmem_peer *peer, int err);
/* Send and receive as much as is possible without waiting, for every peer. */
void gmem_peers_pump(struct gmem_export *exporter);
/* Find the first part of [@start, @last], in one block, that the peer may use; false: none. */
bool gmem_peer_next_usable(const struct gmem_peer *peer, uint64_t start, uint64_t last,
			   struct gmem_block **ret_block, struct gmem_part *ret);

#endif
