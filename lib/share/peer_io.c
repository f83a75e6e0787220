/* SPDX-License-Identifier: MIT */
#include "share/peer_io.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/epoll.h>

#include "base/backing.h"
#include "base/error.h"
#include "base/macros.h"
#include "os/sys.h"
#include "region/page_states.h"
#include "region/region.h"
#include "region/regions.h"
#include "share/extent.h"

/* Regions, and pages of which not all are in one state, that one step looks at */
#define MAX_REGIONS	64
#define MAX_PAGES	(UINT64_C(1) << 22)
/* Runs of pages that one step looks at; MAX_PAGES in one run take as long */
#define MAX_RUNS	1024
/* After so many refusals in a row, no more of the kind is sent until it is time to try again. */
#define MAX_REFUSED	16
/* When to try again: after the first refusal, and after many */
#define MIN_RETRY_MS	100
#define MAX_RETRY_MS	2000

static struct gmem_block *block_of(struct gmem_range *gpa)
{
	return GMEM_CONTAINER_OF(gpa, struct gmem_block, gpa);
}

static void free_block(struct gmem_peer *peer, struct gmem_block *block)
{
	gmem_range_remove(&peer->blocks, &block->gpa);
	gmem_granted_free(&block->granted);
	free(block);
}

void gmem_peer_disconnect(struct gmem_peer *peer, int err)
{
	if (peer->sock < 0)
		return;

	gmem_sys_epoll_watch(peer->exporter->epoll, peer->sock, 0, false);
	gmem_sys_shutdown(peer->sock);
	gmem_sys_close(peer->sock);
	peer->sock = -1;
	peer->status = err;
	peer->awaits_answer = false;
	peer->retry_at = 0;
	while (peer->blocks.root)
		free_block(peer, block_of(peer->blocks.root));
}

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

/* Everything up to @last has been looked at. */
static void go_on_after(struct gmem_todo *todo, uint64_t last)
{
	if (last >= todo->part.last)
		todo->is_done = true;
	else
		todo->part.start = last + 1;
}

static bool is_all_done(const struct gmem_todo *todo)
{
	return todo->is_done && !todo->has_again;
}

static void schedule_retry(struct gmem_peer *peer)
{
	if (peer->retry_at)
		return;
	if (!peer->retry_ms)
		peer->retry_ms = MIN_RETRY_MS;
	peer->retry_at = gmem_sys_now() + peer->retry_ms * GMEM_NANOSECONDS_PER_MS;
	peer->retry_ms = 2 * peer->retry_ms < MAX_RETRY_MS ? 2 * peer->retry_ms : MAX_RETRY_MS;
}

/* The peer, or this process, is short of something: try [@start, @last] again later. */
static void try_later(struct gmem_peer *peer, struct gmem_todo *todo, uint64_t start, uint64_t last)
{
	todo->again = join(&todo->again, !todo->has_again, start, last);
	todo->has_again = true;
	todo->refused++;
	schedule_retry(peer);
}

static void try_again_now(struct gmem_todo *todo)
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

struct piece {
	const struct gmem_region *region;
	uint64_t start;
	uint64_t last;
	uint32_t rights;
};

/* Find the first range at or above @gpa that the peer may have. */
static bool next_allowed(const struct gmem_peer *peer, uint64_t gpa, struct piece *ret)
{
	size_t low = 0, high = peer->range_count, middle;
	const struct gmem_export_range *range;

	*ret = (struct piece){ .start = gpa, .last = UINT64_MAX, .rights = GMEM_ALL_RIGHTS };
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
						 const struct piece *piece)
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
static enum gmem_search look_at(const struct gmem_peer *peer, uint64_t gpa, struct piece *ret)
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
static enum gmem_search next_piece(const struct gmem_peer *peer, struct gmem_todo *todo,
				   struct piece *ret)
{
	enum gmem_search found;

	for (unsigned int i = 0; i < MAX_REGIONS && !todo->is_done; i++) {
		found = look_at(peer, todo->part.start, ret);
		if (found == GMEM_SEARCH_FOUND && ret->start <= todo->part.last)
			return found;
		go_on_after(todo, found == GMEM_SEARCH_MORE ? ret->last : UINT64_MAX);
	}
	return todo->is_done ? GMEM_SEARCH_OVER : GMEM_SEARCH_MORE;
}

static int check_rights(const struct piece *piece, struct gmem_extent *extent)
{
	if (!(piece->rights & GMEM_RIGHT_WRITE) && extent->rights & GMEM_RIGHT_WRITE)
		return gmem_fail(-EOPNOTSUPP,
				 "the memory at gpa 0x%" PRIx64 " cannot be given for reading only: seal "
				 "its file, if it is a memfd, with F_SEAL_FUTURE_WRITE before F_SEAL_SEAL",
				 piece->start);
	extent->rights &= piece->rights;
	return 0;
}

static int describe(const struct gmem_peer *peer, const struct piece *piece,
		    struct gmem_extent *ret)
{
	uint64_t within = piece->start - piece->region->gpa.start;
	int err;

	err = gmem_extent_of_region(&peer->exporter->memory, piece->region, ret);
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
	return check_rights(piece, ret);
}

int gmem_peer_check_memory(const struct gmem_peer *peer)
{
	struct gmem_todo todo = { .part = { 0, UINT64_MAX } };
	struct gmem_vm *vm = peer->exporter->vm;
	enum gmem_search found = GMEM_SEARCH_MORE;
	struct gmem_extent extent;
	struct piece piece;
	int err = 0;

	if (peer->exporter->flags & GMEM_EXPORT_SKIP)
		return 0;

	/* The lock is dropped between pieces, of which there may be many. */
	while (!err && found != GMEM_SEARCH_OVER) {
		gmem_lock_take(&vm->lock);
		found = next_piece(peer, &todo, &piece);
		if (found == GMEM_SEARCH_FOUND) {
			err = describe(peer, &piece, &extent);
			go_on_after(&todo, piece.last);
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

static void set_granted(struct gmem_block *block, const struct gmem_part *part, bool value)
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

enum gmem_search gmem_peer_find_recalled(struct gmem_peer *peer, const struct gmem_recall *recall,
					 struct gmem_block **ret_block, struct gmem_part *ret)
{
	uint64_t last = recall->part.last, first, end;
	struct gmem_block *block;
	struct gmem_range *gpa;

	if (peer->searched_recall != recall->number) {
		peer->searched_recall = recall->number;
		peer->recall_from = recall->part.start;
	}
	if (peer->recall_from > last)
		return GMEM_SEARCH_OVER;
	gpa = gmem_range_find(&peer->blocks, peer->recall_from, last - peer->recall_from + 1);
	if (!gpa) {
		peer->recall_from = last + 1;
		return GMEM_SEARCH_OVER;
	}

	/* Whole pages of the file, which may begin before the recall and end after it */
	*ret_block = block = block_of(gpa);
	first = gpa->start > peer->recall_from ? 0 : page_of(block, peer->recall_from);
	end = page_of(block, last < gmem_range_last(gpa) ? last : gmem_range_last(gpa)) + 1;
	end = end_of_step(block, first, end);
	if (block->is_convertible)
		first = gmem_granted_find(&block->granted, true, first, end);
	if (!block->is_convertible || first == end) {
		peer->recall_from = block->is_convertible ? gpa_of(block, end) : gmem_range_last(gpa) + 1;
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
static enum gmem_search find_grant(struct gmem_peer *peer, struct gmem_block **ret_block,
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
		*ret_block = block_of(gpa);
		if (find_grant_in(vm, *ret_block, todo, &runs, ret) == GMEM_SEARCH_FOUND)
			return GMEM_SEARCH_FOUND;
		/* Looking through pages in one state takes time, too, if not much. */
		if ((*ret_block)->is_convertible)
			runs += (ret->last - (from > gpa->start ? from : gpa->start)) / bytes_of_run;
		runs++;
		go_on_after(todo, ret->last);
	}
	return todo->is_done ? GMEM_SEARCH_OVER : GMEM_SEARCH_MORE;
}

/* ---- messages to a peer ---- */

/* What came of looking for a message of one kind */
enum sent {
	NOTHING_TO_SEND,
	DID_SOMETHING,		/* a message was sent, or there is more to look at */
	CANNOT_SEND,		/* now */
};

/*
 * -EAGAIN: its socket has no room. -ENOMEM, -ENOBUFS: the kernel is short of memory.
 * -ETOOMANYREFS: too many fds are in flight between processes; messages without one can be
 * sent.
 */
static enum sent not_sent(struct gmem_peer *peer, int err)
{
	if (err == -ETOOMANYREFS) {
		peer->maps.refused = MAX_REFUSED;
		schedule_retry(peer);
		return NOTHING_TO_SEND;
	}
	if (err == -ENOMEM || err == -ENOBUFS) {
		peer->has_to_wait = true;
		schedule_retry(peer);
	} else if (err != -EAGAIN) {
		gmem_peer_disconnect(peer, err == -ECONNRESET || err == -ENOTCONN ? -EPIPE : err);
	}
	return CANNOT_SEND;
}

static enum sent transmit(struct gmem_peer *peer, struct gmem_message *message, int fd,
			  struct gmem_block *block)
{
	int err;

	message->sequence = peer->sequence + 1;
	err = gmem_wire_send(peer->sock, message, fd);
	peer->wants_room = err == -EAGAIN;
	if (err)
		return not_sent(peer, err);

	peer->sequence++;
	peer->awaits_answer = true;
	peer->type = (enum gmem_wire_type)message->type;
	peer->block = block;
	return DID_SOMETHING;
}

static enum sent send_hello(struct gmem_peer *peer)
{
	struct gmem_message message = { .type = GMEM_WIRE_HELLO,
					.page_size = (uint32_t)gmem_sys_page_size() };
	enum sent sent = transmit(peer, &message, -1, NULL);

	peer->sent_hello = sent == DID_SOMETHING;
	return sent;
}

static enum sent send_unmap(struct gmem_peer *peer, const struct gmem_recall *recall)
{
	const struct gmem_export *exporter = peer->exporter;

	for (size_t i = 0; i < exporter->leaving_count; i++) {
		const struct gmem_range *leaving = &exporter->leaving_nodes[i];
		struct gmem_range *gpa = gmem_range_find(&peer->blocks, leaving->start, leaving->size);
		struct gmem_message message = { .type = GMEM_WIRE_UNMAP };

		if (!gpa)
			continue;
		message.id = block_of(gpa)->id;
		peer->recall = recall->number;
		return transmit(peer, &message, -1, block_of(gpa));
	}
	return NOTHING_TO_SEND;
}

static enum sent send_part(struct gmem_peer *peer, enum gmem_wire_type type, struct gmem_block *block,
			   const struct gmem_part *part)
{
	struct gmem_message message = {
		.type = type,
		.id = block->id,
		.gpa = part->start,
		.size = part->last - part->start + 1,
	};

	peer->part = *part;
	return transmit(peer, &message, -1, block);
}

static enum sent send_revoke(struct gmem_peer *peer, const struct gmem_recall *recall)
{
	struct gmem_block *block;
	struct gmem_part part;

	switch (gmem_peer_find_recalled(peer, recall, &block, &part)) {
	case GMEM_SEARCH_FOUND:
		peer->recall = recall->number;
		return send_part(peer, GMEM_WIRE_REVOKE, block, &part);
	case GMEM_SEARCH_MORE:
		return DID_SOMETHING;
	default:
		return NOTHING_TO_SEND;
	}
}

/* A recall that was refused is over, but for its thread, which does not know it yet. */
static enum sent send_recalls(struct gmem_peer *peer)
{
	enum sent sent = NOTHING_TO_SEND;
	const struct gmem_recall *recall;

	for (recall = peer->exporter->recalls; recall && !sent; recall = recall->next)
		if (!recall->refusal)
			sent = recall->is_leaving ? send_unmap(peer, recall) : send_revoke(peer, recall);
	return sent;
}

static enum sent send_grant(struct gmem_peer *peer)
{
	struct gmem_vm *vm = peer->exporter->vm;
	struct gmem_block *block;
	enum gmem_search found;
	struct gmem_part part;
	enum sent sent;

	if (peer->grants.is_done || peer->grants.refused >= MAX_REFUSED)
		return NOTHING_TO_SEND;

	gmem_lock_take(&vm->lock);
	found = find_grant(peer, &block, &part);
	gmem_lock_drop(&vm->lock);
	if (found != GMEM_SEARCH_FOUND)
		return found == GMEM_SEARCH_MORE ? DID_SOMETHING : NOTHING_TO_SEND;

	sent = send_part(peer, GMEM_WIRE_GRANT, block, &part);
	if (sent != DID_SOMETHING)
		return sent;
	/* The peer may use the part as soon as it reads the message. */
	set_granted(block, &part, true);
	go_on_after(&peer->grants, part.last);
	peer->sent_ready = false;
	return sent;
}

static struct gmem_block *new_block(const struct gmem_extent *extent, uint64_t id)
{
	struct gmem_block *block = malloc(sizeof(*block));

	if (!block)
		return NULL;
	*block = (struct gmem_block){
		.gpa = { .start = extent->gpa, .size = extent->size },
		.id = id,
		.page_shift = (uint32_t)__builtin_ctzll(extent->page_size),
		.is_convertible = gmem_backing_traits(extent->backing)->attributes !=
				  GMEM_ATTRIBUTES_NONE,
	};
	if (block->is_convertible &&
	    gmem_granted_new(&block->granted, extent->size >> block->page_shift)) {
		free(block);
		return NULL;
	}
	return block;
}

static enum sent send_block(struct gmem_peer *peer, const struct gmem_extent *extent)
{
	struct gmem_message message = {
		.type = GMEM_WIRE_MAP,
		.id = peer->last_id + 1,
		.gpa = extent->gpa,
		.size = extent->size,
		.offset = extent->offset,
		.file_size = extent->file_size,
		.page_size = (uint32_t)extent->page_size,
		.rights = extent->rights,
		.backing = extent->backing,
	};
	struct gmem_block *block = new_block(extent, message.id);
	enum sent sent;

	if (!block) {
		try_later(peer, &peer->maps, extent->gpa, extent->gpa + extent->size - 1);
		return DID_SOMETHING;
	}
	if (block->is_convertible)
		message.rights |= GMEM_WIRE_WITHHELD;
	sent = transmit(peer, &message, extent->fd, block);
	if (sent != DID_SOMETHING) {
		gmem_granted_free(&block->granted);
		free(block);
		return sent;
	}
	gmem_range_insert(&peer->blocks, &block->gpa);
	peer->last_id++;
	peer->sent_ready = false;
	return sent;
}

/* Memory that was added after the peer and cannot be given to it is left out, and logged once. */
static enum sent send_piece(struct gmem_peer *peer, const struct piece *piece)
{
	struct gmem_export *exporter = peer->exporter;
	enum sent sent = DID_SOMETHING;
	struct gmem_extent extent;
	int err;

	err = describe(peer, piece, &extent);
	if (!err)
		sent = send_block(peer, &extent);
	else if (!(exporter->flags & GMEM_EXPORT_SKIP) && !peer->maps.is_again)
		gmem_vm_log_error(exporter->vm, err);
	if (sent == DID_SOMETHING)
		go_on_after(&peer->maps, piece->last);
	return sent;
}

static enum sent send_map(struct gmem_peer *peer)
{
	struct gmem_vm *vm = peer->exporter->vm;
	enum sent sent = NOTHING_TO_SEND;
	enum gmem_search found;
	struct piece piece;

	if (peer->maps.is_done || peer->maps.refused >= MAX_REFUSED)
		return sent;

	/* Without the lock, the fd could be closed and reused before it is sent. */
	gmem_lock_take(&vm->lock);
	found = next_piece(peer, &peer->maps, &piece);
	if (found == GMEM_SEARCH_FOUND)
		sent = send_piece(peer, &piece);
	else if (found == GMEM_SEARCH_MORE)
		sent = DID_SOMETHING;
	gmem_lock_drop(&vm->lock);
	return sent;
}

static enum sent send_ready(struct gmem_peer *peer)
{
	struct gmem_message message = { .type = GMEM_WIRE_READY };
	enum sent sent;

	if (peer->sent_ready || !is_all_done(&peer->maps) || !is_all_done(&peer->grants) ||
	    peer->exporter->leaving_count)
		return NOTHING_TO_SEND;
	sent = transmit(peer, &message, -1, NULL);
	peer->sent_ready = sent == DID_SOMETHING;
	if (peer->sent_ready)
		peer->retry_ms = MIN_RETRY_MS;
	return sent;
}

static enum sent send_next(struct gmem_peer *peer)
{
	static enum sent (*const kinds[])(struct gmem_peer *peer) = {
		send_recalls, send_map, send_grant, send_ready,
	};
	enum sent sent = NOTHING_TO_SEND;

	if (!peer->sent_hello)
		return send_hello(peer);
	for (size_t i = 0; i < GMEM_ARRAY_SIZE(kinds) && !sent; i++)
		sent = kinds[i](peer);
	return sent;
}

/* ---- answers of a peer ---- */

static struct gmem_recall *recall_of_answer(const struct gmem_peer *peer)
{
	struct gmem_recall *recall;

	for (recall = peer->exporter->recalls; recall; recall = recall->next)
		if (recall->number == peer->recall)
			return recall;
	return NULL;
}

/* The peer keeps memory: the recall fails if its thread still waits, or the peer is cut off. */
static void refuse_recall(struct gmem_peer *peer, const struct gmem_part *part, int refusal)
{
	struct gmem_recall *recall = recall_of_answer(peer);

	if (!recall)
		return;
	if (peer->flags & GMEM_PEER_CUT_OFF) {
		gmem_fail(refusal, "a peer refuses to give back 0x%" PRIx64 " bytes at gpa 0x%" PRIx64
			  ": %s", part->last - part->start + 1, part->start, gmem_errno_name(refusal));
		gmem_peer_disconnect(peer, gmem_vm_log_error(peer->exporter->vm, refusal));
		return;
	}
	recall->refusal = refusal;
	recall->refused = *part;
}

/* Nobody waits for an answer that comes late: what the peer gave back it gets again. */
static void record_given_back(struct gmem_peer *peer, struct gmem_block *block,
			      const struct gmem_part *part)
{
	bool is_late = !recall_of_answer(peer);

	if (peer->type == GMEM_WIRE_REVOKE)
		set_granted(block, part, false);
	else
		free_block(peer, block);
	if (is_late)
		gmem_peer_look_again(peer->type == GMEM_WIRE_REVOKE ? &peer->grants : &peer->maps,
				     part->start, part->last);
}

/* The peer is short of something, which may pass. */
static bool may_try_again(int refusal)
{
	return refusal == -EMFILE || refusal == -ENFILE || refusal == -ENOMEM || refusal == -EAGAIN;
}

static void be_refused(struct gmem_peer *peer, struct gmem_block *block, const struct gmem_part *part,
		       int refusal)
{
	const bool is_grant = peer->type == GMEM_WIRE_GRANT;

	if ((!is_grant && peer->type != GMEM_WIRE_MAP) || !may_try_again(refusal)) {
		gmem_fail(refusal, "a peer refuses the message \"%s\": %s", gmem_wire_name(peer->type),
			  gmem_errno_name(refusal));
		gmem_peer_disconnect(peer, gmem_vm_log_error(peer->exporter->vm, refusal));
		return;
	}
	try_later(peer, is_grant ? &peer->grants : &peer->maps, part->start, part->last);
	if (is_grant)
		set_granted(block, part, false);
	else
		free_block(peer, block);
}

static void be_accepted(struct gmem_peer *peer, const struct gmem_part *part)
{
	if (peer->type == GMEM_WIRE_GRANT)
		peer->grants.refused = 0;
	if (peer->type != GMEM_WIRE_MAP)
		return;
	peer->maps.refused = 0;
	if (peer->block->is_convertible)
		gmem_peer_look_again(&peer->grants, part->start, part->last);
}

static void take_answer(struct gmem_peer *peer, int refusal)
{
	struct gmem_part part = peer->part;

	peer->awaits_answer = false;
	if (peer->type == GMEM_WIRE_MAP || peer->type == GMEM_WIRE_UNMAP)
		part = (struct gmem_part){ peer->block->gpa.start, gmem_range_last(&peer->block->gpa) };

	if (peer->type == GMEM_WIRE_UNMAP || peer->type == GMEM_WIRE_REVOKE) {
		if (refusal)
			refuse_recall(peer, &part, refusal);
		else
			record_given_back(peer, peer->block, &part);
	} else if (refusal) {
		be_refused(peer, peer->block, &part, refusal);
	} else {
		be_accepted(peer, &part);
	}
}

/* Returns whether a message came. */
static bool receive(struct gmem_peer *peer)
{
	struct gmem_message message;
	int fd = -1, n;

	n = gmem_wire_receive(peer->sock, &message, &fd);
	if (n > 0 && (!peer->awaits_answer || message.type != GMEM_WIRE_ANSWER ||
		      message.sequence != peer->sequence)) {
		/* Only a message "map" may carry a file. */
		if (fd >= 0)
			gmem_sys_close(fd);
		n = gmem_fail(-EPROTO, "a peer sent a message \"%s\", number %" PRIu32
			      ", which is no answer to number %" PRIu32,
			      gmem_wire_name(message.type), message.sequence, peer->sequence);
	}
	if (n < 0)
		gmem_peer_disconnect(peer, gmem_vm_log_error(peer->exporter->vm, n));
	if (n <= 0)
		return false;

	take_answer(peer, -(int)message.status);
	return true;
}

/* ---- all that can be done without waiting ---- */

/* Send or receive one message. Returns whether there may be more to do. */
static bool pump_one(struct gmem_peer *peer)
{
	if (peer->sock < 0)
		return false;
	peer->wants_room = false;
	if (!peer->awaits_answer && !peer->has_to_wait && send_next(peer) == DID_SOMETHING)
		return true;
	return peer->sock >= 0 && receive(peer);
}

/* One after the other, so that none keeps the others waiting. */
static void pump_all(struct gmem_export *exporter, uint64_t nanoseconds)
{
	uint64_t end = gmem_sys_now() + nanoseconds;
	struct gmem_peer *peer;
	bool more = true;

	while (more && gmem_sys_now() < end) {
		more = false;
		for (peer = exporter->peers; peer; peer = peer->next)
			more |= pump_one(peer);
	}
	if (more)
		gmem_sys_event_set(exporter->event);
}

static void retry(struct gmem_peer *peer)
{
	if (!peer->retry_at || gmem_sys_now() < peer->retry_at)
		return;
	peer->retry_at = 0;
	peer->has_to_wait = false;
	try_again_now(&peer->maps);
	try_again_now(&peer->grants);
}

static void watch_for_room(struct gmem_peer *peer)
{
	if (peer->sock < 0 || peer->wants_room == peer->watches_room)
		return;
	gmem_sys_epoll_watch(peer->exporter->epoll, peer->sock,
			     EPOLLIN | (peer->wants_room ? EPOLLOUT : 0), false);
	peer->watches_room = peer->wants_room;
}

/* Set the timer for the peer whose time to try again comes first. */
static void set_timer(struct gmem_export *exporter)
{
	const struct gmem_peer *peer;
	uint64_t at = 0;

	for (peer = exporter->peers; peer; peer = peer->next)
		if (peer->retry_at && (!at || peer->retry_at < at))
			at = peer->retry_at;
	if (at != exporter->timer_at)
		gmem_sys_timer_set(exporter->timer, at);
	exporter->timer_at = at;
}

void gmem_peers_pump(struct gmem_export *exporter, uint64_t nanoseconds)
{
	struct gmem_peer *peer;

	for (peer = exporter->peers; peer; peer = peer->next)
		retry(peer);
	pump_all(exporter, nanoseconds);
	for (peer = exporter->peers; peer; peer = peer->next)
		watch_for_room(peer);
	set_timer(exporter);
}
