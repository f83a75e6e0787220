/* SPDX-License-Identifier: MIT */
/*
 * The processes an export gives memory to. A peer has one message at a time to
 * answer, and the next one is found by looking at what it has (its blocks) and
 * what it should have. So nothing is queued, and a peer that does not read
 * costs nothing. What it sends besides the one answer ends it.
 *
 * Blocks are never out of date: before a region goes, what covers it is taken
 * back, see gmem_peers_before(). A split leaves memory where it is, and so the
 * block that is now behind two regions.
 *
 * Of a block that can be converted the peer has what is not in its set of
 * revoked ranges. Before memory becomes private it is revoked, and the
 * conversion waits for the answer; what is revoked and not private is granted.
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "internal.h"

#define DEFAULT_WAIT_MS	1000
/* Another thread may have read the answer we wait for: look again that often. */
#define SLICE_MS	10
#define MOST_POLLED	16
#define NANOSECONDS_PER_MS UINT64_C(1000000)
#define ALL_RIGHTS	(GMEM_RIGHT_READ | GMEM_RIGHT_WRITE)

/* Memory the peer has, or is being told of */
struct block {
	struct gmem_range gpa;
	uint64_t id;
};

/* What somebody waits for: ranges that are leaving, or one that is to be revoked */
struct gmem_want {
	struct gmem_want *next;
	bool is_leaving;
	struct gmem_part part;
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
	uint64_t cursor;		/* below it all has been looked at */
	bool at_end;			/* and so has everything else */
	bool told_hello;
	bool told_ready;
	bool wants_room;		/* in the socket */

	bool awaits;			/* an answer, to this: */
	uint32_t sequence;
	enum gmem_wire_type type;
	struct block *block;
	struct gmem_part part;		/* REVOKE */
	int refusal;			/* with which it kept memory */

	struct gmem_range_map revoked;
	struct gmem_range *spare;	/* for the change of that set which is under way */
	uint64_t grant_from;		/* below it nothing is to be granted */
	bool all_granted;
};

static uint64_t last_of(const struct gmem_range *range)
{
	return range->start + range->size - 1;
}

static struct block *block_of(struct gmem_range *gpa)
{
	return GMEM_CONTAINER_OF(gpa, struct block, gpa);
}

/* Needs the spare node. */
static void free_block(struct gmem_peer *peer, struct block *block)
{
	gmem_set_remove(&peer->revoked, block->gpa.start, block->gpa.size, &peer->spare);
	gmem_range_remove(&peer->blocks, &block->gpa);
	free(block);
}


/* No more to do with it: whatever it has it may keep. */
static void lose(struct gmem_peer *peer, int err)
{
	if (peer->sock < 0)
		return;

	gmem_sys_epoll_watch(peer->exporter->epoll, peer->sock, 0, false);
	gmem_sys_shutdown(peer->sock);
	gmem_sys_close(peer->sock);
	peer->sock = -1;
	peer->status = err;
	peer->awaits = false;
	gmem_set_clear(&peer->revoked);
	while (peer->blocks.root)
		free_block(peer, block_of(peer->blocks.root));
}

static bool get_spare(struct gmem_peer *peer)
{
	if (gmem_set_spare(&peer->spare) == 0)
		return true;
	lose(peer, gmem_fail(-ENOMEM, "no memory for what a peer has"));
	return false;
}

/* ---- what a peer should have ---- */

struct piece {
	const struct gmem_region *region;
	uint64_t start;
	uint64_t last;
	uint32_t rights;
};

/* The first range at or above @gpa the peer may have */
static bool next_allowed(const struct gmem_peer *peer, uint64_t gpa, struct piece *ret)
{
	*ret = (struct piece){ .start = gpa, .last = UINT64_MAX, .rights = ALL_RIGHTS };
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

/* What is no piece to give: it has it already, or it is about to go. */
static const struct gmem_range *taken(const struct gmem_peer *peer, const struct piece *piece)
{
	uint64_t size = piece->last - piece->start + 1;
	const struct gmem_range *block, *leaving;

	block = gmem_range_find(&peer->blocks, piece->start, size);
	leaving = gmem_range_find(&peer->exporter->leaving, piece->start, size);
	if (block && leaving)
		return block->start < leaving->start ? block : leaving;
	return block ? block : leaving;
}

/* The first piece from @from on that the peer should have, and has not */
static bool next_piece(const struct gmem_peer *peer, uint64_t from, struct piece *ret)
{
	const struct gmem_range *other;

	do {
		if (!next_allowed(peer, from, ret))
			return false;
		ret->region = gmem_export_next_region(peer->exporter->vm, ret->start);
		if (!ret->region)
			return false;

		from = ret->region->gpa.start;
		if (from > ret->last)
			continue;
		if (ret->start < from)
			ret->start = from;
		if (ret->last > last_of(&ret->region->gpa))
			ret->last = last_of(&ret->region->gpa);

		other = taken(peer, ret);
		if (!other)
			return true;
		if (other->start > ret->start) {
			ret->last = other->start - 1;
			return true;
		}
		from = last_of(other) + 1;
	} while (from);
	return false;
}

static int check_rights(const struct piece *piece, struct gmem_extent *extent)
{
	if (!(piece->rights & GMEM_RIGHT_WRITE) && extent->rights & GMEM_RIGHT_WRITE)
		return gmem_fail(-EOPNOTSUPP,
				 "the memory at gpa 0x%" PRIx64 " cannot be given for reading only: seal "
				 "its file with F_SEAL_FUTURE_WRITE, if it is a memfd", piece->start);
	extent->rights &= piece->rights;
	return 0;
}

static int describe(const struct gmem_peer *peer, const struct piece *piece,
		    struct gmem_extent *ret)
{
	uint64_t within = piece->start - piece->region->gpa.start;
	int err;

	err = gmem_export_extent(peer->exporter, piece->region, ret);
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

/* ---- messages to a peer ---- */

/* 1 if it is on its way, 0 if it is not */
static int transmit(struct gmem_peer *peer, struct gmem_message *message, int fd,
		    struct block *block)
{
	int err;

	message->sequence = peer->sequence + 1;
	err = gmem_wire_send(peer->sock, message, fd);
	peer->wants_room = err == -EAGAIN;
	/* Too many fds are on their way between processes; later, then. */
	if (err == -EAGAIN || err == -ETOOMANYREFS)
		return 0;
	if (err) {
		lose(peer, err == -ECONNRESET || err == -ENOTCONN ? -EPIPE : err);
		return 0;
	}

	peer->sequence++;
	peer->awaits = true;
	peer->type = (enum gmem_wire_type)message->type;
	peer->block = block;
	return 1;
}

static int send_hello(struct gmem_peer *peer)
{
	struct gmem_message message = { .type = GMEM_WIRE_HELLO,
					.page_size = (uint32_t)gmem_sys_page_size() };

	peer->told_hello = transmit(peer, &message, -1, NULL);
	return peer->told_hello;
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

/* Of [@start, @last], the first part in one block that it can use; false: none */
static bool next_usable(const struct gmem_peer *peer, uint64_t start, uint64_t last,
			struct block **ret_block, struct gmem_part *ret)
{
	struct gmem_range *gpa;
	uint64_t end;

	while ((gpa = gmem_range_find(&peer->blocks, start, last - start + 1))) {
		if (gpa->start > start)
			start = gpa->start;
		end = last_of(gpa) < last ? last_of(gpa) : last;
		*ret_block = block_of(gpa);
		if (gmem_set_next(&peer->revoked, false, start, end, ret))
			return true;
		if (end == last)
			break;
		start = end + 1;
	}
	return false;
}

static int send_part(struct gmem_peer *peer, enum gmem_wire_type type, struct block *block,
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
	const struct gmem_want *want;
	struct gmem_part part;
	struct block *block;

	for (want = peer->exporter->wants; want && !peer->refusal; want = want->next)
		if (!want->is_leaving &&
		    next_usable(peer, want->part.start, want->part.last, &block, &part))
			return send_part(peer, GMEM_WIRE_REVOKE, block, &part);
	return 0;
}

/* The first part it was told to leave alone, and which is shared all the same */
static bool next_grant(struct gmem_peer *peer, struct block **ret_block, struct gmem_part *ret)
{
	struct gmem_part revoked;
	uint64_t from = peer->grant_from;

	while (gmem_set_next(&peer->revoked, true, from, UINT64_MAX, &revoked)) {
		if (gmem_set_next(&peer->exporter->withheld, false, revoked.start, revoked.last,
				  ret)) {
			struct gmem_range *gpa = gmem_range_find(&peer->blocks, ret->start, 1);

			*ret_block = block_of(gpa);
			if (ret->last > last_of(gpa))
				ret->last = last_of(gpa);
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
	struct block *block;

	if (peer->all_granted)
		return 0;
	if (!next_grant(peer, &block, &part)) {
		peer->all_granted = true;
		return 0;
	}
	if (!send_part(peer, GMEM_WIRE_GRANT, block, &part))
		return 0;

	/* From now on it may use it. */
	gmem_set_remove(&peer->revoked, part.start, part.last - part.start + 1, &peer->spare);
	peer->grant_from = part.start;
	peer->told_ready = false;
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
	struct block *block;

	if (extent->backing == GMEM_BACKING_PRIVATE || extent->backing == GMEM_BACKING_INPLACE)
		message.rights |= GMEM_WIRE_WITHHELD;
	if (!get_spare(peer))
		return 0;
	block = malloc(sizeof(*block));
	if (!block) {
		lose(peer, gmem_fail(-ENOMEM, "no memory for memory a peer has"));
		return 0;
	}

	*block = (struct block){ .gpa = { .start = extent->gpa, .size = extent->size },
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
	peer->told_ready = false;
	return 1;
}

/* What comes later and cannot be given is left out. */
static int send_map(struct gmem_peer *peer)
{
	struct gmem_vm *vm = peer->exporter->vm;
	struct gmem_extent extent;
	struct piece piece;
	int sent = 0;

	/* The lock is kept while its fd is sent, so that it is that fd. */
	pthread_mutex_lock(&vm->lock);
	while (!sent && !peer->at_end && peer->sock >= 0) {
		if (!next_piece(peer, peer->cursor, &piece)) {
			peer->at_end = true;
		} else if (describe(peer, &piece, &extent) == 0) {
			sent = send_block(peer, &extent);
			if (!sent)
				break;
		} else if (!(peer->exporter->flags & GMEM_EXPORT_SKIP)) {
			gmem_vm_report(vm, -EOPNOTSUPP);
		}
		if (!peer->at_end) {
			peer->cursor = piece.last + 1;
			peer->at_end = peer->cursor == 0;
		}
	}
	pthread_mutex_unlock(&vm->lock);
	return sent;
}

static int send_ready(struct gmem_peer *peer)
{
	struct gmem_message message = { .type = GMEM_WIRE_READY };

	if (peer->told_ready || !peer->at_end || !peer->all_granted || peer->exporter->leaving_count)
		return 0;
	peer->told_ready = transmit(peer, &message, -1, NULL);
	return peer->told_ready;
}

static int send_next(struct gmem_peer *peer)
{
	if (!peer->told_hello)
		return send_hello(peer);
	return send_unmap(peer) || send_revoke(peer) || send_map(peer) || send_grant(peer) ||
	       send_ready(peer);
}

/* ---- answers of a peer ---- */

static void take_answer(struct gmem_peer *peer, int refusal)
{
	peer->awaits = false;
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
		lose(peer, gmem_vm_report(peer->exporter->vm,
					  gmem_fail(refusal, "a peer refuses the message \"%s\": %s",
						    gmem_wire_name(peer->type),
						    gmem_errno_name(refusal))));
	}
}

static int receive(struct gmem_peer *peer)
{
	struct gmem_message message;
	int fd = -1, n;

	n = gmem_wire_receive(peer->sock, &message, &fd);
	if (n > 0 && (!peer->awaits || message.type != GMEM_WIRE_ANSWER ||
		      message.sequence != peer->sequence)) {
		/* Only a message "map" comes with one. */
		if (fd >= 0)
			gmem_sys_close(fd);
		n = gmem_fail(-EPROTO, "a peer sent a message \"%s\", number %" PRIu32
			      ", which is no answer to number %" PRIu32,
			      gmem_wire_name(message.type), message.sequence, peer->sequence);
	}
	if (n < 0)
		lose(peer, gmem_vm_report(peer->exporter->vm, n));
	if (n <= 0)
		return 0;

	take_answer(peer, -(int)message.status);
	return 1;
}

/* All that can be done without waiting */
static void pump(struct gmem_peer *peer)
{
	bool wanted_room = peer->wants_room;

	while (peer->sock >= 0) {
		if (!peer->awaits && send_next(peer))
			continue;
		if (peer->sock < 0 || !receive(peer))
			break;
	}

	if (peer->sock >= 0 && peer->wants_room != wanted_room)
		gmem_sys_epoll_watch(peer->exporter->epoll, peer->sock,
				     EPOLLIN | (peer->wants_room ? EPOLLOUT : 0), false);
}

static void pump_all(struct gmem_export *exporter)
{
	struct gmem_peer *peer;

	for (peer = exporter->peers; peer; peer = peer->next)
		pump(peer);
}

GMEM_API int gmem_export_fd(const struct gmem_export *exporter)
{
	return exporter ? exporter->epoll : gmem_fail(-EINVAL, "exporter is NULL");
}

GMEM_API int gmem_export_dispatch(struct gmem_export *exporter)
{
	if (!exporter)
		return gmem_fail(-EINVAL, "exporter is NULL");

	pthread_mutex_lock(&exporter->lock);
	gmem_sys_event_clear(exporter->event);
	pump_all(exporter);
	pthread_mutex_unlock(&exporter->lock);
	return 0;
}

/* ---- taking memory back ---- */

/* What a peer still has of what is wanted */
static bool keeps(const struct gmem_peer *peer, const struct gmem_want *want,
		  struct gmem_part *ret)
{
	const struct gmem_export *exporter = peer->exporter;
	struct block *block;

	if (!want->is_leaving)
		return next_usable(peer, want->part.start, want->part.last, &block, ret);

	for (size_t i = 0; i < exporter->leaving_count; i++) {
		const struct gmem_range *leaving = &exporter->leaving_nodes[i], *kept;

		kept = gmem_range_find(&peer->blocks, leaving->start, leaving->size);
		if (kept) {
			*ret = (struct gmem_part){ kept->start, last_of(kept) };
			return true;
		}
	}
	return false;
}

/* It keeps memory that is to go: what its options say about that */
static int insist(struct gmem_peer *peer, const struct gmem_part *kept, uint64_t waited_ms)
{
	int err = peer->refusal ? peer->refusal : -ETIMEDOUT;
	uint64_t size = kept->last - kept->start + 1;

	if (!peer->refusal && waited_ms < peer->wait_ms)
		return 0;

	if (peer->refusal)
		gmem_fail(err, "a peer refuses to give back 0x%" PRIx64 " bytes at gpa 0x%" PRIx64
			  ": %s", size, kept->start, gmem_errno_name(err));
	else
		gmem_fail(err, "a peer has 0x%" PRIx64 " bytes at gpa 0x%" PRIx64 " and gave no answer "
			  "in %" PRIu32 " ms", size, kept->start, peer->wait_ms);
	if (!(peer->flags & GMEM_PEER_CUT_OFF))
		return err;

	lose(peer, gmem_vm_report(peer->exporter->vm, err));
	return 0;
}

/* Peers that keep something, for poll(); -errno if one keeps it too long */
static int collect_keepers(const struct gmem_export *exporter, const struct gmem_want *want,
			   uint64_t waited_ms, struct pollfd fds[MOST_POLLED])
{
	struct gmem_part kept;
	struct gmem_peer *peer;
	int count = 0, err;

	for (peer = exporter->peers; peer; peer = peer->next) {
		if (!keeps(peer, want, &kept))
			continue;
		err = insist(peer, &kept, waited_ms);
		if (err)
			return err;
		if (peer->sock >= 0 && count < MOST_POLLED)
			fds[count++] = (struct pollfd){
				.fd = peer->sock,
				.events = POLLIN | (peer->wants_room ? POLLOUT : 0),
			};
	}
	return count;
}

static int take_back(struct gmem_export *exporter, const struct gmem_want *want)
{
	uint64_t start = gmem_sys_now();
	struct pollfd fds[MOST_POLLED];
	int count;

	for (;;) {
		pthread_mutex_lock(&exporter->lock);
		pump_all(exporter);
		count = collect_keepers(exporter, want,
					(gmem_sys_now() - start) / NANOSECONDS_PER_MS, fds);
		pthread_mutex_unlock(&exporter->lock);
		if (count <= 0)
			return count;

		/* Not locked: others may dispatch meanwhile. */
		if (gmem_sys_poll_many(fds, (unsigned int)count, SLICE_MS) < 0)
			gmem_sys_pause(SLICE_MS * 1000);
	}
}

static bool takes_memory(const struct gmem_step *step)
{
	return !step->region->is_device &&
	       (step->kind == GMEM_STEP_REMOVE || step->kind == GMEM_STEP_MOVE ||
		step->kind == GMEM_STEP_REBIND);
}

int gmem_peers_before(struct gmem_watch *watch, const struct gmem_step *steps, size_t count)
{
	struct gmem_export *exporter = GMEM_CONTAINER_OF(watch, struct gmem_export, watch);
	const struct gmem_want want = { .is_leaving = true };
	struct gmem_range *nodes;
	size_t taken_count = 0;

	for (size_t i = 0; i < count; i++)
		taken_count += takes_memory(&steps[i]);
	if (!taken_count)
		return 0;
	nodes = calloc(taken_count, sizeof(*nodes));
	if (!nodes)
		return gmem_fail(-ENOMEM, "no memory to take memory back from peers");

	pthread_mutex_lock(&exporter->lock);
	exporter->leaving_nodes = nodes;
	for (size_t i = 0; i < count; i++) {
		struct gmem_range *node = &nodes[exporter->leaving_count];

		if (!takes_memory(&steps[i]))
			continue;
		*node = (struct gmem_range){ .start = steps[i].region->gpa.start,
					     .size = steps[i].region->gpa.size };
		gmem_range_insert(&exporter->leaving, node);
		exporter->leaving_count++;
	}
	pthread_mutex_unlock(&exporter->lock);
	return take_back(exporter, &want);
}

void gmem_peers_after(struct gmem_watch *watch)
{
	struct gmem_export *exporter = GMEM_CONTAINER_OF(watch, struct gmem_export, watch);
	struct gmem_peer *peer;

	pthread_mutex_lock(&exporter->lock);
	free(exporter->leaving_nodes);
	exporter->leaving_nodes = NULL;
	exporter->leaving_count = 0;
	exporter->leaving.root = NULL;
	for (peer = exporter->peers; peer; peer = peer->next) {
		peer->refusal = 0;
		peer->cursor = 0;
		peer->at_end = false;
		peer->told_ready = false;
	}
	if (exporter->peers)
		gmem_sys_event_set(exporter->event);
	pthread_mutex_unlock(&exporter->lock);
}

/* ---- conversion ---- */

/* Before the range becomes private; and without an answer it does not. */
int gmem_peers_revoke(void *data, uint64_t gpa, uint64_t size)
{
	struct gmem_want want = { .part = { gpa, gpa + size - 1 } }, **link;
	struct gmem_export *exporter = data;
	struct gmem_range *spare = NULL;
	struct gmem_peer *peer;
	int err;

	err = gmem_set_spare(&spare);
	if (err)
		return gmem_fail(err, "no memory to take memory back from peers");

	pthread_mutex_lock(&exporter->lock);
	gmem_set_add(&exporter->withheld, gpa, size, &spare);
	want.next = exporter->wants;
	exporter->wants = &want;
	pthread_mutex_unlock(&exporter->lock);
	free(spare);

	err = take_back(exporter, &want);

	pthread_mutex_lock(&exporter->lock);
	for (link = &exporter->wants; *link != &want; link = &(*link)->next)
		;
	*link = want.next;
	for (peer = exporter->peers; peer; peer = peer->next)
		peer->refusal = 0;
	pthread_mutex_unlock(&exporter->lock);
	if (err)
		gmem_peers_grant(exporter, gpa, size);
	return err;
}

/* It is shared, again or all the same. */
void gmem_peers_grant(void *data, uint64_t gpa, uint64_t size)
{
	struct gmem_export *exporter = data;
	struct gmem_range *spare = NULL;
	struct gmem_peer *peer;

	pthread_mutex_lock(&exporter->lock);
	if (gmem_set_spare(&spare) == 0) {
		gmem_set_remove(&exporter->withheld, gpa, size, &spare);
		for (peer = exporter->peers; peer; peer = peer->next) {
			peer->all_granted = false;
			if (gpa < peer->grant_from)
				peer->grant_from = gpa;
		}
		gmem_sys_event_set(exporter->event);
	} else {
		/* It stays withheld from peers until it is converted once more. */
		gmem_vm_report(exporter->vm, gmem_fail(-ENOMEM, "no memory to give peers 0x%" PRIx64
						       " bytes at gpa 0x%" PRIx64, size, gpa));
	}
	pthread_mutex_unlock(&exporter->lock);
	free(spare);
}

/* With the VM's change_lock: a region went, or has other memory. What of it is shared? */
void gmem_peers_forget(void *data, uint64_t gpa, uint64_t size)
{
	struct gmem_export *exporter = data;
	uint64_t last = gpa + size - 1;
	struct gmem_part part;

	while (gmem_set_next(&exporter->vm->privates, false, gpa, last, &part)) {
		gmem_peers_grant(exporter, part.start, part.last - part.start + 1);
		if (part.last == last)
			break;
		gpa = part.last + 1;
	}
}

/* ---- peers come and go ---- */

static int check_range(const struct gmem_export_range *range, uint64_t above)
{
	int err = gmem_check_range("gpa", range->gpa, range->size);

	if (err)
		return err;
	if (range->gpa < above)
		return gmem_fail(-EINVAL, "the range at gpa 0x%" PRIx64
				 " begins before the one before it ends", range->gpa);
	if (!(range->rights & GMEM_RIGHT_READ) || range->rights & ~ALL_RIGHTS)
		return gmem_fail(-EINVAL, "rights 0x%" PRIx32 " for gpa 0x%" PRIx64
				 " are not to read, or to read and write", range->rights, range->gpa);
	if (range->reserved)
		return gmem_fail(-EINVAL, "reserved is %" PRIu32 ", not 0", range->reserved);
	return 0;
}

static int check_opts(const struct gmem_peer_opts *opts)
{
	uint64_t above = 0;
	int err;

	err = gmem_check_flags("flags", opts->flags, GMEM_PEER_WHOLE_FILES | GMEM_PEER_CUT_OFF);
	if (err)
		return err;
	if (opts->reserved)
		return gmem_fail(-EINVAL, "reserved is %" PRIu32 ", not 0", opts->reserved);
	if (!opts->ranges != !opts->range_count)
		return gmem_fail(-EINVAL, "%zu ranges at %p", opts->range_count,
				 (const void *)opts->ranges);

	for (size_t i = 0; i < opts->range_count; i++) {
		err = check_range(&opts->ranges[i], above);
		if (err)
			return err;
		above = opts->ranges[i].gpa + opts->ranges[i].size;
		if (!above && i + 1 < opts->range_count)
			return gmem_fail(-EINVAL, "nothing can follow the range at gpa 0x%" PRIx64,
					 opts->ranges[i].gpa);
	}
	return 0;
}

static int copy_opts(struct gmem_peer *peer, const struct gmem_peer_opts *opts)
{
	peer->flags = opts->flags;
	peer->wait_ms = opts->wait_ms ? opts->wait_ms : DEFAULT_WAIT_MS;
	if (!opts->range_count)
		return 0;

	peer->ranges = calloc(opts->range_count, sizeof(*peer->ranges));
	if (!peer->ranges)
		return gmem_fail(-ENOMEM, "no memory for %zu ranges", opts->range_count);
	memcpy(peer->ranges, opts->ranges, opts->range_count * sizeof(*peer->ranges));
	peer->range_count = opts->range_count;
	return 0;
}

/* What is there now must be such as can be given. */
static int check_all(const struct gmem_peer *peer)
{
	struct gmem_extent extent;
	struct piece piece;
	uint64_t from = 0;
	int err = 0;

	if (peer->exporter->flags & GMEM_EXPORT_SKIP)
		return 0;

	pthread_mutex_lock(&peer->exporter->vm->lock);
	while (!err && next_piece(peer, from, &piece)) {
		err = describe(peer, &piece, &extent);
		from = piece.last + 1;
		if (!from)
			break;
	}
	pthread_mutex_unlock(&peer->exporter->vm->lock);
	return err;
}

/* With the lock held, in which nobody else has it yet */
static int join(struct gmem_peer *peer, int sock)
{
	struct gmem_export *exporter = peer->exporter;
	int err;

	err = check_all(peer);
	if (err)
		return err;

	peer->sock = gmem_sys_dup(sock);
	if (peer->sock < 0)
		return gmem_fail(peer->sock, "fd %d cannot be duplicated: %s", sock,
				 gmem_errno_name(peer->sock));

	err = gmem_sys_epoll_watch(exporter->epoll, peer->sock, EPOLLIN, true);
	if (err) {
		gmem_sys_close(peer->sock);
		return gmem_fail(err, "socket %d cannot be watched: %s", sock, gmem_errno_name(err));
	}

	peer->next = exporter->peers;
	exporter->peers = peer;
	gmem_sys_event_set(exporter->event);
	return 0;
}

static int new_peer(struct gmem_export *exporter, int sock, const struct gmem_peer_opts *opts,
		    struct gmem_peer **ret)
{
	struct gmem_peer *peer = calloc(1, sizeof(*peer));
	int err;

	if (!peer)
		return gmem_fail(-ENOMEM, "no memory for a peer");

	peer->exporter = exporter;
	err = copy_opts(peer, opts);
	if (err)
		goto free_peer;

	pthread_mutex_lock(&exporter->lock);
	err = join(peer, sock);
	pthread_mutex_unlock(&exporter->lock);
	if (err)
		goto free_ranges;

	*ret = peer;
	return 0;

free_ranges:
	free(peer->ranges);
free_peer:
	free(peer);
	return err;
}

GMEM_API int gmem_peer_add(struct gmem_export *exporter, int sock,
			   const struct gmem_peer_opts *user_opts, struct gmem_peer **ret)
{
	struct gmem_peer_opts opts;
	int err;

	if (!exporter || !ret)
		return gmem_fail(-EINVAL, "%s is NULL", exporter ? "ret" : "exporter");

	err = GMEM_IMPORT(gmem_peer_opts, &opts, user_opts, reserved);
	if (!err)
		err = check_opts(&opts);
	if (!err)
		err = gmem_wire_check_socket(sock);
	if (err)
		return err;
	return new_peer(exporter, sock, &opts, ret);
}

GMEM_API void gmem_peer_remove(struct gmem_peer *peer)
{
	struct gmem_export *exporter;
	struct gmem_peer **link;

	if (!peer)
		return;

	exporter = peer->exporter;
	pthread_mutex_lock(&exporter->lock);
	for (link = &exporter->peers; *link != peer; link = &(*link)->next)
		;
	*link = peer->next;
	lose(peer, -EPIPE);
	pthread_mutex_unlock(&exporter->lock);
	free(peer->spare);
	free(peer->ranges);
	free(peer);
}

GMEM_API int gmem_peer_status(struct gmem_peer *peer)
{
	int status;

	if (!peer)
		return gmem_fail(-EINVAL, "peer is NULL");

	pthread_mutex_lock(&peer->exporter->lock);
	status = peer->status;
	if (status)
		gmem_fail(status, "the peer is lost: %s", gmem_errno_name(status));
	else if (peer->told_ready && peer->all_granted && !peer->awaits)
		status = 1;
	pthread_mutex_unlock(&peer->exporter->lock);
	return status;
}
