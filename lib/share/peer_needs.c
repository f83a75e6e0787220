/* SPDX-License-Identifier: MIT */
#include "share/peer_needs.h"

#include <errno.h>
#include <inttypes.h>

#include "base/error.h"
#include "base/lock.h"
#include "base/range_map.h"
#include "os/sys.h"
#include "region/page_states.h"
#include "region/regions.h"
#include "share/extent.h"
#include "share/granted.h"

/* Regions, and pages of which not all are in one state, that one step looks at */
#define MAX_REGIONS	64
#define MAX_PAGES	(UINT64_C(1) << 22)
/* Runs of pages that one step looks at; MAX_PAGES in one run take as long */
#define MAX_RUNS	1024

/* ---- where to look ---- */

/* Make @part, unless it @is_empty, reach around [@start, @last], too. */
static struct gmem_part join(const struct gmem_part *part, bool is_empty, uint64_t start,
			     uint64_t last)
{
	if (is_empty)
		return (struct gmem_part){ start, last };
	return (struct gmem_part){ start < part->start ? start : part->start,
				   last > part->last ? last : part->last };
}

void gmem_peer_look_again(struct gmem_todo *todo, uint64_t start, uint64_t last)
{
	todo->part = join(&todo->part, todo->is_done, start, last);
	todo->is_done = false;
	todo->is_again = false;
}

void gmem_peer_go_on_after(struct gmem_todo *todo, uint64_t last)
{
	if (last >= todo->part.last)
		todo->is_done = true;
	else
		todo->part.start = last + 1;
}

void gmem_peer_look_later(struct gmem_todo *todo, uint64_t start, uint64_t last)
{
	todo->again = join(&todo->again, !todo->has_again, start, last);
	todo->has_again = true;
	todo->refused++;
}

void gmem_peer_look_now(struct gmem_todo *todo)
{
	bool was_done = todo->is_done;

	if (todo->has_again) {
		gmem_peer_look_again(todo, todo->again.start, todo->again.last);
		todo->is_again = was_done;
	}
	todo->has_again = false;
	todo->refused = 0;
}

/* ---- what a peer should have ---- */

/* Find the first range at or above @gpa that the peer may have. */
static bool next_allowed(const struct gmem_peer *peer, uint64_t gpa, struct gmem_piece *ret)
{
	size_t low = 0, high = peer->range_count, middle;
	const struct gmem_export_range *range;

	*ret = (struct gmem_piece){ .start = gpa, .last = UINT64_MAX, .rights = GMEM_ALL_RIGHTS };
	if (!peer->ranges)
		return true;

	while (low < high) {
		middle = low + (high - low) / 2;
		range = &peer->ranges[middle];
		if (range->gpa + range->size - 1 < gpa)
			low = middle + 1;
		else
			high = middle;
	}
	if (low == peer->range_count)
		return false;
	range = &peer->ranges[low];
	ret->last = range->gpa + range->size - 1;
	ret->rights = range->rights;
	if (range->gpa > gpa)
		ret->start = range->gpa;
	return true;
}

/* Find the first part of @piece that the peer has already or that is about to be removed. */
static const struct gmem_range *find_unavailable(const struct gmem_peer *peer,
						 const struct gmem_piece *piece)
{
	uint64_t size = piece->last - piece->start + 1;
	const struct gmem_range *block, *leaving;

	block = gmem_range_find(&peer->blocks, piece->start, size);
	leaving = gmem_range_find(&peer->exporter->leaving, piece->start, size);
	if (block && leaving)
		return block->start < leaving->start ? block : leaving;
	return block ? block : leaving;
}

/*
 * Look for memory at or above @gpa that the peer should have and does not have. FOUND:
 * @ret is the first of it. MORE: there is none up to @ret->last.
 */
static enum gmem_search look_at(const struct gmem_peer *peer, uint64_t gpa, struct gmem_piece *ret)
{
	const struct gmem_range *other;

	if (!next_allowed(peer, gpa, ret))
		return GMEM_SEARCH_OVER;
	ret->region = gmem_regions_next_memory(peer->exporter->vm, ret->start);
	if (!ret->region)
		return GMEM_SEARCH_OVER;
	if (ret->region->gpa.start > ret->last)
		return GMEM_SEARCH_MORE;

	if (ret->start < ret->region->gpa.start)
		ret->start = ret->region->gpa.start;
	if (ret->last > gmem_range_last(&ret->region->gpa))
		ret->last = gmem_range_last(&ret->region->gpa);
	if (!gmem_extent_is_offered(&peer->exporter->memory, ret->region))
		return GMEM_SEARCH_MORE;
	other = find_unavailable(peer, ret);
	if (other && other->start <= ret->start) {
		ret->last = gmem_range_last(other);
		return GMEM_SEARCH_MORE;
	}
	if (other)
		ret->last = other->start - 1;
	return GMEM_SEARCH_FOUND;
}

/* Find the first piece in @todo that the peer should have and does not have. */
enum gmem_search gmem_peer_next_piece(const struct gmem_peer *peer, struct gmem_todo *todo,
				      struct gmem_piece *ret)
{
	enum gmem_search found;

	for (unsigned int i = 0; i < MAX_REGIONS && !todo->is_done; i++) {
		found = look_at(peer, todo->part.start, ret);
		if (found == GMEM_SEARCH_FOUND && ret->start <= todo->part.last)
			return found;
		gmem_peer_go_on_after(todo, found == GMEM_SEARCH_MORE ? ret->last : UINT64_MAX);
	}
	return todo->is_done ? GMEM_SEARCH_OVER : GMEM_SEARCH_MORE;
}

/* That the fd is open for reading only enforces nothing: the peer can open it anew. */
static int check_rights(const struct gmem_piece *piece, struct gmem_extent *extent,
			uint32_t max_rights)
{
	if (!(piece->rights & GMEM_RIGHT_WRITE) && max_rights & GMEM_RIGHT_WRITE)
		return gmem_fail(-EOPNOTSUPP,
				 "the memory at gpa 0x%" PRIx64 " cannot be given for reading only: seal "
				 "its file, if it is a memfd, with F_SEAL_FUTURE_WRITE before F_SEAL_SEAL",
				 piece->start);
	extent->rights &= piece->rights;
	return 0;
}

int gmem_peer_describe(const struct gmem_peer *peer, const struct gmem_piece *piece,
		       struct gmem_extent *ret)
{
	uint64_t within = piece->start - piece->region->gpa.start;
	const struct gmem_export *exporter = peer->exporter;
	struct gmem_extent_file file;
	int err;

	err = gmem_extent_of_region(&exporter->memory, exporter->flags & GMEM_EXPORT_UNSEALED,
				    piece->region, ret, &file);
	if (err)
		return err;

	ret->gpa += within;
	ret->offset += within;
	ret->size = piece->last - piece->start + 1;
	if ((ret->gpa | ret->offset | ret->size) & (ret->page_size - 1))
		return gmem_fail(-EOPNOTSUPP,
				 "0x%" PRIx64 " bytes at gpa 0x%" PRIx64 ", offset 0x%" PRIx64 " in their file, "
				 "are not whole pages of that, which have 0x%" PRIx64 " bytes", ret->size,
				 ret->gpa, ret->offset, ret->page_size);
	if (ret->size != ret->file_size && !(peer->flags & GMEM_PEER_WHOLE_FILES))
		return gmem_fail(-EACCES,
				 "the peer may have 0x%" PRIx64 " bytes at gpa 0x%" PRIx64 ", but with "
				 "their file it has all 0x%" PRIx64 " of that: allow it with "
				 "GMEM_PEER_WHOLE_FILES, or use a file of just that size", ret->size,
				 ret->gpa, ret->file_size);
	return check_rights(piece, ret, file.max_rights);
}

int gmem_peer_check_memory(const struct gmem_peer *peer)
{
	struct gmem_todo todo = { .part = { 0, UINT64_MAX } };
	struct gmem_vm *vm = peer->exporter->vm;
	enum gmem_search found = GMEM_SEARCH_MORE;
	struct gmem_extent extent;
	struct gmem_piece piece;
	int err = 0;

	if (peer->exporter->flags & GMEM_EXPORT_SKIP)
		return 0;

	/* The lock is dropped between pieces, of which there may be many. */
	while (!err && found != GMEM_SEARCH_OVER) {
		gmem_lock_take(&vm->lock);
		found = gmem_peer_next_piece(peer, &todo, &piece);
		if (found == GMEM_SEARCH_FOUND) {
			err = gmem_peer_describe(peer, &piece, &extent);
			gmem_peer_go_on_after(&todo, piece.last);
		}
		gmem_lock_drop(&vm->lock);
	}
	return err;
}

/* ---- pages of a block ---- */

static uint64_t page_of(const struct gmem_block *block, uint64_t gpa)
{
	return (gpa - block->gpa.start) >> block->page_shift;
}

static uint64_t gpa_of(const struct gmem_block *block, uint64_t page)
{
	return block->gpa.start + (page << block->page_shift);
}

void gmem_block_set_granted(struct gmem_block *block, const struct gmem_part *part, bool value)
{
	gmem_granted_set(&block->granted, page_of(block, part->start), page_of(block, part->last) + 1,
			 value);
}

/* Where a search that begins at page @first of [@first, @end) stops */
static uint64_t end_of_step(const struct gmem_block *block, uint64_t first, uint64_t end)
{
	if (gmem_granted_is_uniform(&block->granted) || end - first <= MAX_PAGES)
		return end;
	return first + MAX_PAGES;
}

enum gmem_search gmem_peer_find_recalled(const struct gmem_peer *peer,
					 const struct gmem_recall *recall, uint64_t *from,
					 struct gmem_block **ret_block, struct gmem_part *ret)
{
	uint64_t last = recall->part.last, first, end;
	struct gmem_block *block;
	struct gmem_range *gpa;

	if (*from > last)
		return GMEM_SEARCH_OVER;
	gpa = gmem_range_find(&peer->blocks, *from, last - *from + 1);
	if (!gpa)
		return GMEM_SEARCH_OVER;

	/* Whole pages of the file, which may begin before the recall and end after it */
	*ret_block = block = gmem_block_of(gpa);
	first = gpa->start > *from ? 0 : page_of(block, *from);
	end = page_of(block, last < gmem_range_last(gpa) ? last : gmem_range_last(gpa)) + 1;
	end = end_of_step(block, first, end);
	if (block->is_convertible)
		first = gmem_granted_find(&block->granted, true, first, end);
	if (!block->is_convertible || first == end) {
		*from = block->is_convertible ? gpa_of(block, end) : gmem_range_last(gpa) + 1;
		return GMEM_SEARCH_MORE;
	}
	ret->start = gpa_of(block, first);
	ret->last = gpa_of(block, gmem_granted_find(&block->granted, false, first, end)) - 1;
	return GMEM_SEARCH_FOUND;
}

/* Whether the page at @gpa is shared, and up to where in [@gpa, @last] that goes on */
static bool is_shared_at(const struct gmem_vm *vm, uint64_t gpa, uint64_t last, uint64_t *ret_last)
{
	struct gmem_stretch at = GMEM_REGIONS_WALK(vm, gpa, last);
	struct gmem_part marked;
	uint64_t start;

	gmem_regions_walk(&at);
	*ret_last = at.gpa + at.size - 1;
	if (!at.region || at.is_private)
		return false;

	/* A conversion under way may make them private; when it is over, we look again. */
	start = at.region->gpa.start;
	if (!gmem_states_find(&at.region->states, GMEM_PAGE_CHANGING, true, gpa - start,
			      *ret_last - start, &marked))
		return true;
	*ret_last = start + (start + marked.start == gpa ? marked.last : marked.start - 1);
	return start + marked.start != gpa;
}

/*
 * Find the first pages of @page bytes in @part, which has whole ones, that are shared as a
 * whole. MORE: there is none up to @ret->last. @runs counts what was looked at.
 */
static enum gmem_search find_shared(const struct gmem_vm *vm, const struct gmem_part *part,
				    uint64_t page, uint64_t *runs, struct gmem_part *ret)
{
	uint64_t start = part->start, gpa = start, last;

	while (gpa <= part->last && *runs < MAX_RUNS) {
		/* It may go on in the next region. */
		if (is_shared_at(vm, gpa, part->last, &last)) {
			gpa = last + 1;
			continue;
		}
		if (gpa / page > start / page)
			break;
		start = gpa = (last / page + 1) * page;
		++*runs;
	}
	*ret = (struct gmem_part){ start, gpa / page * page - 1 };
	if (ret->last > start && start <= part->last)
		return GMEM_SEARCH_FOUND;
	ret->last = start > part->last ? part->last : start - 1;
	return GMEM_SEARCH_MORE;
}

/* The whole block is one region's, and in one state: it costs nothing to look at. */
static bool is_in_one_state(const struct gmem_vm *vm, const struct gmem_block *block)
{
	const struct gmem_region *region = gmem_regions_at(vm, block->gpa.start);
	uint64_t private_bytes;

	if (!region || gmem_range_last(&block->gpa) > gmem_region_last(region))
		return false;
	private_bytes = gmem_states_total(&region->states, GMEM_PAGE_PRIVATE);
	return gmem_granted_is_uniform(&block->granted) &&
	       !gmem_states_total(&region->states, GMEM_PAGE_CHANGING) &&
	       (!private_bytes || private_bytes == region->gpa.size);
}

/* Find the first pages of @block in @todo that are shared and not granted. */
static enum gmem_search find_grant_in(const struct gmem_vm *vm, const struct gmem_block *block,
				      const struct gmem_todo *todo, uint64_t *runs,
				      struct gmem_part *ret)
{
	uint64_t max_pages = MAX_PAGES * gmem_sys_page_size() >> block->page_shift;
	uint64_t last = gmem_range_last(&block->gpa), first, end;
	struct gmem_part part;

	ret->last = last;
	if (!block->is_convertible)
		return GMEM_SEARCH_MORE;

	first = todo->part.start > block->gpa.start ? page_of(block, todo->part.start) : 0;
	end = page_of(block, todo->part.last < last ? todo->part.last : last) + 1;
	if (!is_in_one_state(vm, block) && end - first > max_pages)
		end = first + max_pages;
	ret->last = gpa_of(block, end) - 1;
	first = gmem_granted_find(&block->granted, false, first, end);
	if (first == end)
		return GMEM_SEARCH_MORE;
	end = gmem_granted_find(&block->granted, true, first, end);
	part = (struct gmem_part){ gpa_of(block, first), gpa_of(block, end) - 1 };
	return find_shared(vm, &part, UINT64_C(1) << block->page_shift, runs, ret);
}

/* Find the first pages that are shared and not granted. With the VM's lock held. */
enum gmem_search gmem_peer_next_grant(struct gmem_peer *peer, struct gmem_block **ret_block,
				      struct gmem_part *ret)
{
	const uint64_t bytes_of_run = MAX_PAGES * gmem_sys_page_size() / MAX_RUNS;
	const struct gmem_vm *vm = peer->exporter->vm;
	struct gmem_todo *todo = &peer->grants;
	uint64_t runs = 0, from;
	struct gmem_range *gpa;

	while (!todo->is_done && runs < MAX_RUNS) {
		from = todo->part.start;
		gpa = gmem_range_find(&peer->blocks, from, todo->part.last - from + 1);
		if (!gpa) {
			todo->is_done = true;
			break;
		}
		*ret_block = gmem_block_of(gpa);
		if (find_grant_in(vm, *ret_block, todo, &runs, ret) == GMEM_SEARCH_FOUND)
			return GMEM_SEARCH_FOUND;
		/* Looking through pages in one state takes time, too, if not much. */
		if ((*ret_block)->is_convertible)
			runs += (ret->last - (from > gpa->start ? from : gpa->start)) / bytes_of_run;
		runs++;
		gmem_peer_go_on_after(todo, ret->last);
	}
	return todo->is_done ? GMEM_SEARCH_OVER : GMEM_SEARCH_MORE;
}
