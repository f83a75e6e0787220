/* SPDX-License-Identifier: MIT */
/*
 * peer_needs: what a peer should have and does not have, and what it has and should not.
 *
 * Where to look is a range, for memory to map and for pages to grant each (struct
 * gmem_todo), so that looking takes time for what changed, not for all there is. It is done
 * in steps, and what does not fit into one dispatch is left to the next.
 *
 * Call the functions with the export's lock held.
 */
#ifndef GMEM_PEER_NEEDS_H
#define GMEM_PEER_NEEDS_H

#include <stdbool.h>
#include <stdint.h>

#include "gmem.h"
#include "base/part.h"
#include "region/region.h"
#include "share/peer_state.h"

/* Part of a region that a peer should have, and its rights there */
struct gmem_piece {
	const struct gmem_region *region;
	uint64_t start;
	uint64_t last;
	uint32_t rights;
};

enum gmem_search {
	GMEM_SEARCH_OVER,	/* there is none */
	GMEM_SEARCH_FOUND,
	GMEM_SEARCH_MORE,	/* none so far; the next call goes on */
};

/* Have a peer look at [@start, @last] for memory to map, or for pages to grant. */
void gmem_peer_look_again(struct gmem_todo *todo, uint64_t start, uint64_t last);
/* Everything up to @last has been looked at. */
void gmem_peer_go_on_after(struct gmem_todo *todo, uint64_t last);
/* Have a peer look at [@start, @last] again, but not now. */
void gmem_peer_look_later(struct gmem_todo *todo, uint64_t start, uint64_t last);
/* Now is the time for that. */
void gmem_peer_look_now(struct gmem_todo *todo);

/* Check that all present memory can be given to the peer. */
int gmem_peer_check_memory(const struct gmem_peer *peer);
/* With the VM's lock held: find the first piece in @todo that the peer should have and has not. */
enum gmem_search gmem_peer_next_piece(const struct gmem_peer *peer, struct gmem_todo *todo,
				      struct gmem_piece *ret);
/* With the VM's lock held: as an extent; -errno if it cannot be given as the peer's options ask. */
int gmem_peer_describe(const struct gmem_peer *peer, const struct gmem_piece *piece,
		       struct gmem_extent *ret);
/* With the VM's lock held: find the first pages that are shared and not granted. */
enum gmem_search gmem_peer_next_grant(struct gmem_peer *peer, struct gmem_block **ret_block,
				      struct gmem_part *ret);
/*
 * Find the first part of a recall, in one block, that the peer may still use. @from: where to
 * go on, at first the start of the recall.
 */
enum gmem_search gmem_peer_find_recalled(const struct gmem_peer *peer,
					 const struct gmem_recall *recall, uint64_t *from,
					 struct gmem_block **ret_block, struct gmem_part *ret);
/* Record that pages of a block are granted, or not. */
void gmem_block_set_granted(struct gmem_block *block, const struct gmem_part *part, bool value);

#endif
