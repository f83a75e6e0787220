/* SPDX-License-Identifier: MIT */
#include "share/peer_io.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/epoll.h>

#include "base/backing.h"
#include "base/error.h"
#include "base/macros.h"
#include "os/sys.h"
#include "region/region.h"
#include "region/regions.h"
#include "share/extent.h"

static struct gmem_block *block_of(struct gmem_range *gpa)
{
	return GMEM_CONTAINER_OF(gpa, struct gmem_block, gpa);
}

/* Needs peer->spare. */
static void free_block(struct gmem_peer *peer, struct gmem_block *block)
{
	gmem_set_remove(&peer->revoked, block->gpa.start, block->gpa.size, &peer->spare);
	gmem_range_remove(&peer->blocks, &block->gpa);
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
	gmem_set_clear(&peer->revoked);
	while (peer->blocks.root)
		free_block(peer, block_of(peer->blocks.root));
}

static bool get_spare(struct gmem_peer *peer)
{
	if (gmem_set_spare(&peer->spare) == 0)
		return true;
	gmem_peer_disconnect(peer, gmem_fail(-ENOMEM, "no memory to record what a peer has"));
	return false;
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
	*ret = (struct piece){ .start = gpa, .last = UINT64_MAX, .rights = GMEM_ALL_RIGHTS };
	if (!peer->ranges)
		return true;

	for (size_t i = 0; i < peer->range_count; i++) {
		const struct gmem_export_range *range = &peer->ranges[i];

		ret->last = range->gpa + range->size - 1;
		ret->rights = range->rights;
		if (range->gpa > gpa)
			ret->start = range->gpa;
		if (gpa <= ret->last)
			return true;
	}
	return false;
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

/* Find the first piece at or above @from that the peer should have and does not have. */
static bool next_piece(const struct gmem_peer *peer, uint64_t from, struct piece *ret)
{
	const struct gmem_range *other;

	do {
		if (!next_allowed(peer, from, ret))
			return false;
		ret->region = gmem_regions_next_memory(peer->exporter->vm, ret->start);
		if (!ret->region)
			return false;

		from = ret->region->gpa.start;
		if (from > ret->last)
			continue;
		if (ret->start < from)
			ret->start = from;
		if (ret->last > gmem_range_last(&ret->region->gpa))
			ret->last = gmem_range_last(&ret->region->gpa);

		other = find_unavailable(peer, ret);
		if (!other)
			return true;
		if (other->start > ret->start) {
			ret->last = other->start - 1;
			return true;
		}
		from = gmem_range_last(other) + 1;
	} while (from);
	return false;
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
	if ((ret->offset | ret->size) & (ret->page_size - 1))
		return gmem_fail(-EOPNOTSUPP,
				 "0x%" PRIx64 " bytes at gpa 0x%" PRIx64 " are not whole pages of the "
				 "file, 0x%" PRIx64 " bytes", ret->size, ret->gpa, ret->page_size);
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
	struct gmem_vm *vm = peer->exporter->vm;
	struct gmem_extent extent;
	struct piece piece = { .last = 0 };
	bool is_there = true;
	uint64_t from = 0;
	int err = 0;

	if (peer->exporter->flags & GMEM_EXPORT_SKIP)
		return 0;

	/* The lock is dropped between pieces: their files are looked at, and there may be many. */
	while (!err && is_there) {
		gmem_lock_take(&vm->lock);
		is_there = next_piece(peer, from, &piece);
		if (is_there)
			err = describe(peer, &piece, &extent);
		gmem_lock_drop(&vm->lock);
		from = piece.last + 1;
		is_there = is_there && from;
	}
	return err;
}

/* ---- messages to a peer ---- */

/* Returns 1 if the message was sent, 0 if not. */
static int transmit(struct gmem_peer *peer, struct gmem_message *message, int fd,
		    struct gmem_block *block)
{
	int err;

	message->sequence = peer->sequence + 1;
	err = gmem_wire_send(peer->sock, message, fd);
	peer->wants_room = err == -EAGAIN;
	/* -ETOOMANYREFS: too many fds are in flight between processes; it is sent later. */
	if (err == -EAGAIN || err == -ETOOMANYREFS)
		return 0;
	if (err) {
		gmem_peer_disconnect(peer, err == -ECONNRESET || err == -ENOTCONN ? -EPIPE : err);
		return 0;
	}

	peer->sequence++;
	peer->awaits_answer = true;
	peer->type = (enum gmem_wire_type)message->type;
	peer->block = block;
	return 1;
}

static int send_hello(struct gmem_peer *peer)
{
	struct gmem_message message = { .type = GMEM_WIRE_HELLO,
					.page_size = (uint32_t)gmem_sys_page_size() };

	peer->sent_hello = transmit(peer, &message, -1, NULL);
	return peer->sent_hello;
}

static int send_unmap(struct gmem_peer *peer)
{
	const struct gmem_export *exporter = peer->exporter;

	for (size_t i = 0; i < exporter->leaving_count && !peer->refusal; i++) {
		const struct gmem_range *leaving = &exporter->leaving_nodes[i];
		struct gmem_range *gpa = gmem_range_find(&peer->blocks, leaving->start, leaving->size);
		struct gmem_message message = { .type = GMEM_WIRE_UNMAP };

		if (!gpa)
			continue;
		if (!get_spare(peer))
			return 0;
		message.id = block_of(gpa)->id;
		return transmit(peer, &message, -1, block_of(gpa));
	}
	return 0;
}

bool gmem_peer_next_usable(const struct gmem_peer *peer, uint64_t start, uint64_t last,
			struct gmem_block **ret_block, struct gmem_part *ret)
{
	struct gmem_range *gpa;
	uint64_t end;

	while ((gpa = gmem_range_find(&peer->blocks, start, last - start + 1))) {
		if (gpa->start > start)
			start = gpa->start;
		end = gmem_range_last(gpa) < last ? gmem_range_last(gpa) : last;
		*ret_block = block_of(gpa);
		if (gmem_set_next(&peer->revoked, false, start, end, ret))
			return true;
		if (end == last)
			break;
		start = end + 1;
	}
	return false;
}

static int send_part(struct gmem_peer *peer, enum gmem_wire_type type, struct gmem_block *block,
		     const struct gmem_part *part)
{
	struct gmem_message message = {
		.type = type,
		.id = block->id,
		.gpa = part->start,
		.size = part->last - part->start + 1,
	};

	if (!get_spare(peer))
		return 0;
	peer->part = *part;
	return transmit(peer, &message, -1, block);
}

static int send_revoke(struct gmem_peer *peer)
{
	const struct gmem_recall *recall;
	struct gmem_part part;
	struct gmem_block *block;

	for (recall = peer->exporter->recalls; recall && !peer->refusal; recall = recall->next)
		if (!recall->is_leaving &&
		    gmem_peer_next_usable(peer, recall->part.start, recall->part.last, &block, &part))
			return send_part(peer, GMEM_WIRE_REVOKE, block, &part);
	return 0;
}

/* Find the first part that is revoked from the peer and shared. */
static bool next_grant(struct gmem_peer *peer, struct gmem_block **ret_block, struct gmem_part *ret)
{
	struct gmem_part revoked;
	uint64_t from = peer->grant_from;

	while (gmem_set_next(&peer->revoked, true, from, UINT64_MAX, &revoked)) {
		if (gmem_set_next(&peer->exporter->withheld, false, revoked.start, revoked.last,
				  ret)) {
			struct gmem_range *gpa = gmem_range_find(&peer->blocks, ret->start, 1);

			*ret_block = block_of(gpa);
			if (ret->last > gmem_range_last(gpa))
				ret->last = gmem_range_last(gpa);
			return true;
		}
		if (revoked.last == UINT64_MAX)
			break;
		from = revoked.last + 1;
	}
	return false;
}

static int send_grant(struct gmem_peer *peer)
{
	struct gmem_part part;
	struct gmem_block *block;

	if (peer->all_granted)
		return 0;
	if (!next_grant(peer, &block, &part)) {
		peer->all_granted = true;
		return 0;
	}
	if (!send_part(peer, GMEM_WIRE_GRANT, block, &part))
		return 0;

	/* The peer may use the part as soon as it reads the message. */
	gmem_set_remove(&peer->revoked, part.start, part.last - part.start + 1, &peer->spare);
	peer->grant_from = part.start;
	peer->sent_ready = false;
	return 1;
}

static int send_block(struct gmem_peer *peer, const struct gmem_extent *extent)
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
	struct gmem_block *block;

	if (gmem_backing_traits(extent->backing)->attributes != GMEM_ATTRIBUTES_NONE)
		message.rights |= GMEM_WIRE_WITHHELD;
	if (!get_spare(peer))
		return 0;
	block = malloc(sizeof(*block));
	if (!block) {
		gmem_peer_disconnect(peer, gmem_fail(-ENOMEM, "no memory to record what a peer has"));
		return 0;
	}

	*block = (struct gmem_block){ .gpa = { .start = extent->gpa, .size = extent->size },
				 .id = message.id };
	if (!transmit(peer, &message, extent->fd, block)) {
		free(block);
		return 0;
	}
	gmem_range_insert(&peer->blocks, &block->gpa);
	if (message.rights & GMEM_WIRE_WITHHELD) {
		gmem_set_add(&peer->revoked, block->gpa.start, block->gpa.size, &peer->spare);
		peer->grant_from = 0;
		peer->all_granted = false;
	}
	peer->last_id++;
	peer->sent_ready = false;
	return 1;
}

/* Returns 1, 0 if it cannot be sent now, or the reason why the peer cannot have it. */
static int send_piece(struct gmem_peer *peer, const struct piece *piece)
{
	struct gmem_extent extent;
	int err;

	err = describe(peer, piece, &extent);
	return err ? err : send_block(peer, &extent);
}

/* Memory that was added after the peer and cannot be given to it is left out. */
static int send_map(struct gmem_peer *peer)
{
	struct gmem_vm *vm = peer->exporter->vm;
	struct piece piece;
	int sent = 0;

	/* Without the lock, the fd could be closed and reused before it is sent. */
	gmem_lock_take(&vm->lock);
	while (!sent && !peer->at_end && peer->sock >= 0) {
		if (!next_piece(peer, peer->cursor, &piece)) {
			peer->at_end = true;
		} else {
			sent = send_piece(peer, &piece);
			if (!sent)
				break;
			if (sent < 0 && !(peer->exporter->flags & GMEM_EXPORT_SKIP))
				gmem_vm_log_error(vm, sent);
			sent = sent > 0;
		}
		if (!peer->at_end) {
			peer->cursor = piece.last + 1;
			peer->at_end = peer->cursor == 0;
		}
	}
	gmem_lock_drop(&vm->lock);
	return sent;
}

static int send_ready(struct gmem_peer *peer)
{
	struct gmem_message message = { .type = GMEM_WIRE_READY };

	if (peer->sent_ready || !peer->at_end || !peer->all_granted || peer->exporter->leaving_count)
		return 0;
	peer->sent_ready = transmit(peer, &message, -1, NULL);
	return peer->sent_ready;
}

static int send_next(struct gmem_peer *peer)
{
	if (!peer->sent_hello)
		return send_hello(peer);
	return send_unmap(peer) || send_revoke(peer) || send_map(peer) || send_grant(peer) ||
	       send_ready(peer);
}

/* ---- answers of a peer ---- */

static void take_answer(struct gmem_peer *peer, int refusal)
{
	peer->awaits_answer = false;
	if (refusal && (peer->type == GMEM_WIRE_UNMAP || peer->type == GMEM_WIRE_REVOKE)) {
		peer->refusal = refusal;
	} else if (peer->type == GMEM_WIRE_UNMAP) {
		free_block(peer, peer->block);
	} else if (peer->type == GMEM_WIRE_REVOKE) {
		gmem_set_add(&peer->revoked, peer->part.start,
			     peer->part.last - peer->part.start + 1, &peer->spare);
		peer->all_granted = false;
		if (peer->part.start < peer->grant_from)
			peer->grant_from = peer->part.start;
	} else if (refusal) {
		gmem_fail(refusal, "a peer refuses the message \"%s\": %s", gmem_wire_name(peer->type),
			  gmem_errno_name(refusal));
		gmem_peer_disconnect(peer, gmem_vm_log_error(peer->exporter->vm, refusal));
	}
}

static int receive(struct gmem_peer *peer)
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
		return 0;

	take_answer(peer, -(int)message.status);
	return 1;
}

/* ---- all that can be done without waiting ---- */

static void pump(struct gmem_peer *peer)
{
	bool wanted_room = peer->wants_room;

	while (peer->sock >= 0) {
		if (!peer->awaits_answer && send_next(peer))
			continue;
		if (peer->sock < 0 || !receive(peer))
			break;
	}

	if (peer->sock >= 0 && peer->wants_room != wanted_room)
		gmem_sys_epoll_watch(peer->exporter->epoll, peer->sock,
				     EPOLLIN | (peer->wants_room ? EPOLLOUT : 0), false);
}

void gmem_peers_pump(struct gmem_export *exporter)
{
	struct gmem_peer *peer;

	for (peer = exporter->peers; peer; peer = peer->next)
		pump(peer);
}
