/* SPDX-License-Identifier: MIT */
#include "share/peer_dirty.h"

#include "base/lock.h"
#include "base/range_map.h"
#include "region/dirty_pages.h"
#include "region/vm_core.h"
#include "share/mark_map.h"

/* ---- what a peer may write ---- */

static void take(const struct gmem_peer *peer, const struct gmem_mark_map *map, const struct gmem_part *part)
{
	if (map && part->start < map->end)
		gmem_mark_map_take(map, peer->exporter->vm, part->start,
				   part->last < map->end ? part->last : map->end - 1);
}

/*
 * Marks below @end are those of the peer's map, and of its next, which it may use before its
 * answer is read; above, all counts as written.
 */
static void mark_part(const struct gmem_peer *peer, const struct gmem_block *block,
		      const struct gmem_part *part, uint64_t end)
{
	const struct gmem_part above = { part->start > end ? part->start : end, part->last };

	if (!block->is_writable)
		return;
	take(peer, peer->marks, part);
	take(peer, peer->next_marks, part);
	if (above.start <= above.last)
		gmem_vm_mark_dirty(peer->exporter->vm, above.start, above.last - above.start + 1);
}

static void mark_blocks(const struct gmem_peer *peer, const struct gmem_range_map *blocks, uint64_t end)
{
	struct gmem_range *gpa = gmem_range_find(blocks, 0, UINT64_MAX);
	struct gmem_part part;

	for (; gpa; gpa = gmem_range_find(blocks, part.last + 1, UINT64_MAX - part.last)) {
		part = (struct gmem_part){ gpa->start, gmem_range_last(gpa) };
		mark_part(peer, gmem_block_of(gpa), &part, end);
	}
}

void gmem_peer_mark_part(const struct gmem_peer *peer, const struct gmem_block *block,
			 const struct gmem_part *part)
{
	if (peer->exporter->is_tracked)
		mark_part(peer, block, part, peer->marks ? peer->marks->end : 0);
}

void gmem_peer_mark_all(const struct gmem_peer *peer)
{
	if (!peer->exporter->is_tracked)
		return;
	mark_blocks(peer, &peer->blocks, 0);
	mark_blocks(peer, &peer->lost, 0);
}

void gmem_peer_collect(struct gmem_peer *peer)
{
	uint64_t end = peer->marks && !peer->has_written_all ? peer->marks->end : 0;

	mark_blocks(peer, &peer->blocks, end);
	mark_blocks(peer, &peer->lost, end);
	peer->has_written_all = false;
}

/* ---- maps ---- */

static uint64_t end_of_memory(const struct gmem_vm *vm)
{
	const struct gmem_range *last = vm->regions.root;

	while (last && last->right)
		last = last->right;
	return last ? gmem_range_last(last) + 1 : 0;
}

uint64_t gmem_peer_needs_marks(const struct gmem_peer *peer)
{
	struct gmem_vm *vm = peer->exporter->vm;
	const struct gmem_export_range *last;
	uint64_t end;

	if (!peer->exporter->is_tracked || !peer->takes_marks || peer->refuses_marks || peer->marks_later)
		return 0;
	gmem_lock_take(&vm->lock);
	end = end_of_memory(vm);
	gmem_lock_drop(&vm->lock);
	if (peer->ranges) {
		last = &peer->ranges[peer->range_count - 1];
		if (last->gpa + last->size - 1 < end)
			end = last->gpa + last->size;
	}
	return !peer->marks || peer->marks->end < end ? end : 0;
}

/* What it wrote before was marked in its old map, or counts as written. */
void gmem_peer_begin_marks(struct gmem_peer *peer)
{
	mark_blocks(peer, &peer->blocks, peer->marks ? peer->marks->end : 0);
	gmem_mark_map_free(peer->marks);
	peer->marks = peer->next_marks;
	peer->next_marks = NULL;
	peer->marks_in_vain = !peer->exporter->is_tracked;
	if (!peer->marks_in_vain)
		return;
	gmem_mark_map_free(peer->marks);
	peer->marks = NULL;
}

/* Which of two maps it uses from now on is not known: as if it had none. */
void gmem_peer_lose_marks(struct gmem_peer *peer)
{
	peer->has_written_all = true;
	if (!peer->next_marks)
		return;
	gmem_peer_drop_next_marks(peer);
	gmem_mark_map_free(peer->marks);
	peer->marks = NULL;
}

void gmem_peer_drop_next_marks(struct gmem_peer *peer)
{
	gmem_mark_map_free(peer->next_marks);
	peer->next_marks = NULL;
}

void gmem_peer_end_marks(struct gmem_peer *peer)
{
	peer->marks_in_vain |= peer->marks != NULL;
	peer->has_written_all = false;
	gmem_mark_map_free(peer->marks);
	peer->marks = NULL;
}
