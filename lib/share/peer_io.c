/* SPDX-License-Identifier: MIT */
#include "share/peer_io.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/epoll.h>

#include "gmem.h"
#include "base/backing.h"
#include "base/error.h"
#include "base/lock.h"
#include "base/macros.h"
#include "base/part.h"
#include "base/range_map.h"
#include "os/sys.h"
#include "os/usdt.h"
#include "region/vm_core.h"
#include "share/granted.h"
#include "share/mark_map.h"
#include "share/peer_dirty.h"
#include "share/peer_needs.h"
#include "share/wire.h"

/* After so many refusals in a row, no more of the kind is sent until it is time to try again. */
#define MAX_REFUSED	16
/* When to try again: after the first refusal, and after many */
#define MIN_RETRY_MS	100
#define MAX_RETRY_MS	2000
/* Time after which a dispatch leaves the rest to the next */
#define DISPATCH_TIME	(10 * GMEM_NANOSECONDS_PER_MS)

static void free_block(struct gmem_range_map *blocks, struct gmem_block *block)
{
	gmem_range_remove(blocks, &block->gpa);
	gmem_granted_free(&block->granted);
	free(block);
}

/* How long the answer took; @err 0: the peer did what it was asked */
static void tell_answer(const struct gmem_peer *peer, int err)
{
	GMEM_PROBE(answer, gmem_vm_number(peer->exporter->vm), peer->sock, peer->type,
		   gmem_sys_now() - peer->sent_at, err);
	(void)peer;
	(void)err;
}

void gmem_peer_disconnect(struct gmem_peer *peer, int err)
{
	if (peer->sock < 0)
		return;

	if (peer->awaits_answer)
		tell_answer(peer, err);
	gmem_sys_epoll_watch(peer->exporter->epoll, peer->sock, 0, false);
	gmem_sys_shutdown(peer->sock);
	gmem_sys_close(peer->sock);
	peer->sock = -1;
	peer->status = err;
	peer->awaits_answer = false;
	peer->retry_at = 0;
	gmem_peer_lose_marks(peer);
	peer->lost = peer->blocks;
	peer->blocks.root = NULL;
}

void gmem_peer_forget(struct gmem_peer *peer)
{
	gmem_peer_mark_all(peer);
	gmem_mark_map_free(peer->marks);
	while (peer->lost.root)
		free_block(&peer->lost, gmem_block_of(peer->lost.root));
}

/* ---- what is tried again ---- */

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
	gmem_peer_look_later(todo, start, last);
	schedule_retry(peer);
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
static enum sent not_sent(struct gmem_peer *peer, int err, bool has_fd)
{
	if (err == -ETOOMANYREFS && has_fd) {
		peer->maps.refused = MAX_REFUSED;
		peer->marks_later = true;
		schedule_retry(peer);
		return NOTHING_TO_SEND;
	}
	if (err == -ENOMEM || err == -ENOBUFS || err == -ETOOMANYREFS) {
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
		return not_sent(peer, err, fd >= 0);

	peer->sequence++;
	peer->awaits_answer = true;
	peer->sent_at = gmem_sys_now();
	peer->type = (enum gmem_wire_type)message->type;
	peer->block = block;
	GMEM_PROBE(ask, gmem_vm_number(peer->exporter->vm), peer->sock, peer->type, message->gpa, message->size);
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

/* Tell the peer where to mark what it writes, or that nobody looks there any more. */
static enum sent send_marks(struct gmem_peer *peer)
{
	struct gmem_message message = { .type = GMEM_WIRE_END_MARK };
	uint64_t end = gmem_peer_needs_marks(peer);
	enum sent sent;
	int fd = -1;

	if (!end && (peer->exporter->is_tracked || !peer->marks_in_vain))
		return NOTHING_TO_SEND;
	if (end && gmem_mark_map_new(end, &peer->next_marks, &message, &fd)) {
		peer->marks_later = true;
		schedule_retry(peer);
		return NOTHING_TO_SEND;
	}

	sent = transmit(peer, &message, fd, NULL);
	if (fd >= 0)
		gmem_sys_close(fd);
	if (sent != DID_SOMETHING)
		gmem_peer_drop_next_marks(peer);
	else if (!end)
		peer->marks_in_vain = false;
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
		message.id = gmem_block_of(gpa)->id;
		peer->recall = recall->number;
		return transmit(peer, &message, -1, gmem_block_of(gpa));
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

	if (peer->searched_recall != recall->number) {
		peer->searched_recall = recall->number;
		peer->recall_from = recall->part.start;
	}
	switch (gmem_peer_find_recalled(peer, recall, &peer->recall_from, &block, &part)) {
	case GMEM_SEARCH_FOUND:
		peer->recall = recall->number;
		return send_part(peer, GMEM_WIRE_REVOKE, block, &part);
	case GMEM_SEARCH_MORE:
		return DID_SOMETHING;
	default:
		return NOTHING_TO_SEND;
	}
}

/* The first that is not searched. One that was refused is over, though its thread does not know. */
static const struct gmem_recall *next_recall(const struct gmem_peer *peer)
{
	const struct gmem_recall *recall, *next = NULL;

	for (recall = peer->exporter->recalls; recall; recall = recall->next)
		if (!recall->refusal && recall->number > peer->recalls_done &&
		    (!next || recall->number < next->number))
			next = recall;
	return next;
}

static enum sent send_recalls(struct gmem_peer *peer)
{
	const struct gmem_recall *recall;
	enum sent sent;

	while ((recall = next_recall(peer))) {
		sent = recall->is_leaving ? send_unmap(peer, recall) : send_revoke(peer, recall);
		if (sent != NOTHING_TO_SEND)
			return sent;
		/* While it lasts, the peer gets nothing of it. */
		peer->recalls_done = recall->number;
	}
	return NOTHING_TO_SEND;
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
	found = gmem_peer_next_grant(peer, &block, &part);
	gmem_lock_drop(&vm->lock);
	if (found != GMEM_SEARCH_FOUND)
		return found == GMEM_SEARCH_MORE ? DID_SOMETHING : NOTHING_TO_SEND;

	sent = send_part(peer, GMEM_WIRE_GRANT, block, &part);
	if (sent != DID_SOMETHING)
		return sent;
	/* The peer may use the part as soon as it reads the message. */
	gmem_block_set_granted(block, &part, true);
	gmem_peer_go_on_after(&peer->grants, part.last);
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
		.is_writable = extent->rights & GMEM_RIGHT_WRITE,
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
static enum sent send_piece(struct gmem_peer *peer, const struct gmem_piece *piece)
{
	struct gmem_export *exporter = peer->exporter;
	enum sent sent = DID_SOMETHING;
	struct gmem_extent extent;
	int err;

	err = gmem_peer_describe(peer, piece, &extent);
	if (!err)
		sent = send_block(peer, &extent);
	else if (!(exporter->flags & GMEM_EXPORT_SKIP) && !peer->maps.is_again)
		gmem_vm_log_error(exporter->vm, err);
	if (sent == DID_SOMETHING)
		gmem_peer_go_on_after(&peer->maps, piece->last);
	return sent;
}

static enum sent send_map(struct gmem_peer *peer)
{
	struct gmem_vm *vm = peer->exporter->vm;
	enum sent sent = NOTHING_TO_SEND;
	enum gmem_search found;
	struct gmem_piece piece;

	if (peer->maps.is_done || peer->maps.refused >= MAX_REFUSED)
		return sent;

	/* Without the lock, the fd could be closed and reused before it is sent. */
	gmem_lock_take(&vm->lock);
	found = gmem_peer_next_piece(peer, &peer->maps, &piece);
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
		send_recalls, send_marks, send_map, send_grant, send_ready,
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
		peer->refused = peer->type;
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

	gmem_peer_mark_part(peer, block, part);
	if (peer->type == GMEM_WIRE_REVOKE)
		gmem_block_set_granted(block, part, false);
	else
		free_block(&peer->blocks, block);
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
		peer->refused = peer->type;
		gmem_fail(refusal, "a peer refuses the message \"%s\": %s", gmem_wire_name(peer->type),
			  gmem_errno_name(refusal));
		gmem_peer_disconnect(peer, gmem_vm_log_error(peer->exporter->vm, refusal));
		return;
	}
	try_later(peer, is_grant ? &peer->grants : &peer->maps, part->start, part->last);
	if (is_grant)
		gmem_block_set_granted(block, part, false);
	else
		free_block(&peer->blocks, block);
}

/* Without marks all else goes on. */
static void take_answer_to_marks(struct gmem_peer *peer, int refusal)
{
	if (peer->type == GMEM_WIRE_END_MARK)
		return;
	if (!refusal) {
		gmem_peer_begin_marks(peer);
		return;
	}
	gmem_peer_drop_next_marks(peer);
	peer->marks_later = may_try_again(refusal);
	peer->refuses_marks = !peer->marks_later;
	if (peer->marks_later)
		schedule_retry(peer);
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

static void take_answer(struct gmem_peer *peer, int refusal, uint32_t takes)
{
	struct gmem_part part = peer->part;

	peer->awaits_answer = false;
	tell_answer(peer, refusal);
	if (peer->type == GMEM_WIRE_HELLO)
		peer->takes_marks = takes & GMEM_WIRE_TAKES_MARK;
	if (peer->type == GMEM_WIRE_MARK || peer->type == GMEM_WIRE_END_MARK) {
		take_answer_to_marks(peer, refusal);
		return;
	}
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
		      message.sequence != peer->sequence || (message.rights && peer->type != GMEM_WIRE_HELLO))) {
		/* Only messages "map" and "mark" may carry a file. */
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

	take_answer(peer, -(int)message.status, message.rights);
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

void gmem_peers_receive(struct gmem_export *exporter)
{
	for (struct gmem_peer *peer = exporter->peers; peer; peer = peer->next)
		while (peer->sock >= 0 && receive(peer))
			gmem_sys_event_set(exporter->event);
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
	peer->marks_later = false;
	gmem_peer_look_now(&peer->maps);
	gmem_peer_look_now(&peer->grants);
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

void gmem_peers_dispatch(struct gmem_export *exporter)
{
	gmem_lock_take(&exporter->lock);
	gmem_sys_event_clear(exporter->event);
	gmem_peers_pump(exporter, DISPATCH_TIME);
	gmem_lock_drop(&exporter->lock);
}
