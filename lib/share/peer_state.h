/* SPDX-License-Identifier: MIT */
/*
 * peer_state: what an export knows of its peers.
 *
 * What a peer has is recorded here: its blocks, and of a block that can be converted the
 * pages that it may use (granted.h). What it should have is recorded nowhere: it follows
 * from the layout, from what is shared there (region/page_states.h; pages of a conversion
 * under way are marked, and count as private), and from what others wait for (recalls).
 *
 * Blocks are never out of date: before a region is removed, the blocks in it are unmapped
 * (peer_recall.h). Splitting a region does not move its memory, so one block may then lie
 * in two regions. A page of a block is one of the file, which may be larger than the
 * guest's: it is granted when all of it is shared.
 */
#ifndef GMEM_PEER_STATE_H
#define GMEM_PEER_STATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gmem.h"
#include "base/lock.h"
#include "base/macros.h"
#include "base/part.h"
#include "base/range_map.h"
#include "dirty/collect.h"
#include "region/vm_core.h"
#include "share/granted.h"
#include "share/mark_map.h"
#include "share/wire.h"

/* A recall that a thread waits for: of the export's leaving ranges, or of one part */
struct gmem_recall {
	struct gmem_recall *next;
	uint64_t number;		/* never used again */
	bool is_leaving;		/* all of exporter->leaving; otherwise part is revoked */
	struct gmem_part part;
	int refusal;			/* -errno with which a peer keeps refused, or 0 */
	struct gmem_part refused;
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
	struct gmem_recall leaving_recall;
	struct gmem_part changing;	/* all of a change under way is in it */
	bool is_changing;
	struct gmem_listener *listener;
	struct gmem_dirty_source source;	/* what peers write */
	bool is_tracked;		/* there is a tracker that wants to know */
	struct gmem_recall *recalls;	/* those that threads wait for */
	uint64_t last_recall;		/* numbers them */
	uint64_t timer_at;		/* what the timer is set to; 0: to no time */
	int event;			/* set when there may be something to send */
	int timer;			/* set while something is to be tried again */
	int epoll;			/* watches event, timer and the peers' sockets */
};

/* Memory the peer has, or that a message under way gives it */
struct gmem_block {
	struct gmem_range gpa;
	uint64_t id;
	uint32_t page_shift;		/* of the file's pages */
	bool is_convertible;
	bool is_writable;		/* by the peer, as far as it was told */
	struct gmem_granted granted;	/* what of it the peer may use, if it is convertible */
};

/* Where to look for something to send */
struct gmem_todo {
	struct gmem_part part;		/* unless is_done */
	bool is_done;
	bool is_again;			/* all of it was looked at before */
	struct gmem_part again;		/* if has_again: what is to be tried again at retry_at */
	bool has_again;
	unsigned int refused;		/* in a row; after too many all of the kind wait */
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
	enum gmem_wire_type refused;	/* the message that it refused with status; 0: none */

	struct gmem_range_map blocks;
	struct gmem_range_map lost;	/* what it had when it was disconnected: it may have it still */
	uint64_t last_id;
	struct gmem_todo maps;
	struct gmem_todo grants;
	uint64_t retry_at;		/* gmem_sys_now(); 0: nothing is to be tried again */
	uint32_t retry_ms;		/* how long the next wait is */
	bool has_to_wait;		/* until retry_at, with all messages */
	bool sent_hello;
	bool sent_ready;
	bool wants_room;		/* the socket had no room for a message */
	bool watches_room;		/* the epoll says when it has */

	/* What it writes, see peer_dirty.h */
	struct gmem_mark_map *marks;	/* it has said that it marks there; NULL: nowhere */
	struct gmem_mark_map *next_marks;	/* of a message under way */
	bool takes_marks;		/* it knows the messages */
	bool refuses_marks;		/* not only for the moment */
	bool marks_later;		/* when something is tried again */
	bool marks_in_vain;		/* nobody reads its marks any more, and it does not know */
	bool has_written_all;		/* at least once since the last collection */

	bool awaits_answer;		/* to the message that the next six fields describe */
	uint32_t sequence;
	uint64_t sent_at;		/* when it was sent */
	enum gmem_wire_type type;
	struct gmem_block *block;
	struct gmem_part part;		/* of REVOKE and GRANT */
	uint64_t recall;		/* number of the one that UNMAP or REVOKE is for */

	/* Recalls are searched one after the other, in the order of their numbers. */
	uint64_t recalls_done;		/* up to this one, the peer has nothing or refused */
	uint64_t searched_recall;	/* of this one, the peer has nothing below recall_from */
	uint64_t recall_from;
};

static inline struct gmem_block *gmem_block_of(struct gmem_range *gpa)
{
	return GMEM_CONTAINER_OF(gpa, struct gmem_block, gpa);
}

#endif
