/* SPDX-License-Identifier: MIT */
#include "share/peer_recall.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>

#include "gmem.h"
#include "base/error.h"
#include "base/lock.h"
#include "base/macros.h"
#include "base/part.h"
#include "base/range_map.h"
#include "layout/step.h"
#include "os/sys.h"
#include "region/page_states.h"
#include "share/peer_io.h"
#include "share/peer_needs.h"
#include "share/peer_state.h"
#include "state/claim.h"
#include "state/private_state.h"

/* Nanoseconds for messages each time; other peers' messages, which go on meanwhile, are in it */
#define PUMP_TIME	GMEM_NANOSECONDS_PER_MS

/* Sockets in one poll(); further peers are looked at every GMEM_PEERS_SLICE_MS */
#define MAX_POLLED	16

/* Find memory of the recall that the peer still has. */
static bool still_has(const struct gmem_peer *peer, const struct gmem_recall *recall,
		      struct gmem_part *ret)
{
	const struct gmem_export *exporter = peer->exporter;
	enum gmem_search found = GMEM_SEARCH_MORE;
	uint64_t from = recall->part.start;
	struct gmem_block *block;

	if (recall->number <= peer->recalls_done)
		return false;
	if (!recall->is_leaving) {
		if (recall->number == peer->searched_recall)
			from = peer->recall_from;
		while (found == GMEM_SEARCH_MORE)
			found = gmem_peer_find_recalled(peer, recall, &from, &block, ret);
		return found == GMEM_SEARCH_FOUND;
	}

	for (size_t i = 0; i < exporter->leaving_count; i++) {
		const struct gmem_range *leaving = &exporter->leaving_nodes[i], *kept;

		kept = gmem_range_find(&peer->blocks, leaving->start, leaving->size);
		if (kept) {
			*ret = (struct gmem_part){ kept->start, gmem_range_last(kept) };
			return true;
		}
	}
	return false;
}

/* A peer must not choose an errno that means something else of the call that waits. */
static int errno_of_refusal(int refusal)
{
	return refusal == -ENOMEM || refusal == -EAGAIN || refusal == -EBUSY ? refusal : -EREMOTEIO;
}

static int fail_refused(const struct gmem_recall *recall)
{
	return gmem_fail(errno_of_refusal(recall->refusal),
			 "a peer refuses to give back 0x%" PRIx64 " bytes at gpa 0x%" PRIx64 ": %s",
			 recall->refused.last - recall->refused.start + 1, recall->refused.start,
			 gmem_errno_name(recall->refusal));
}

/*
 * Decide about a peer that still has memory of a recall. Returns 0 if its time is not up, or
 * if it was disconnected (GMEM_PEER_CUT_OFF); otherwise the -errno that ends the recall.
 */
static int handle_holder(struct gmem_peer *peer, const struct gmem_part *kept, uint64_t waited_ms)
{
	bool is_cut_off = peer->flags & GMEM_PEER_CUT_OFF;

	/* Calls that wait less than that do not let it keep memory for ever. */
	if (is_cut_off && peer->awaits_answer &&
	    gmem_sys_now() - peer->sent_at >= peer->wait_ms * GMEM_NANOSECONDS_PER_MS)
		waited_ms = peer->wait_ms;
	if (waited_ms < peer->wait_ms)
		return 0;

	gmem_fail(-ETIMEDOUT, "a peer has 0x%" PRIx64 " bytes at gpa 0x%" PRIx64 " and gave no answer "
		  "in %" PRIu32 " ms", kept->last - kept->start + 1, kept->start, peer->wait_ms);
	if (!is_cut_off)
		return -ETIMEDOUT;

	gmem_peer_disconnect(peer, gmem_vm_log_error(peer->exporter->vm, -ETIMEDOUT));
	return 0;
}

/* Fill in @fds with peers that still have memory of the recall; -errno ends the recall. */
static int collect_holders(const struct gmem_export *exporter, const struct gmem_recall *recall,
			   uint64_t waited_ms, struct pollfd fds[MAX_POLLED])
{
	struct gmem_part kept;
	struct gmem_peer *peer;
	int count = 0, err;

	if (recall->refusal)
		return fail_refused(recall);
	for (peer = exporter->peers; peer; peer = peer->next) {
		if (!still_has(peer, recall, &kept))
			continue;
		err = handle_holder(peer, &kept, waited_ms);
		if (err)
			return err;
		if (peer->sock >= 0 && count < MAX_POLLED)
			fds[count++] = (struct pollfd){
				.fd = peer->sock,
				.events = POLLIN | (peer->wants_room ? POLLOUT : 0),
			};
	}
	return count;
}

/* Returns 0 as soon as no peer has memory of the recall any more, whatever time it is. */
static int wait_for_peers(struct gmem_export *exporter, const struct gmem_recall *recall,
			  const struct gmem_wait_budget *budget, uint64_t start)
{
	uint64_t end = gmem_wait_end(budget, start), now;
	struct pollfd fds[MAX_POLLED];
	int count;

	for (;;) {
		gmem_lock_take(&exporter->lock);
		/* This call's time is the peers': what could not be sent is tried again now. */
		for (struct gmem_peer *peer = exporter->peers; peer; peer = peer->next)
			peer->has_to_wait = false;
		gmem_peers_pump(exporter, PUMP_TIME);
		now = gmem_sys_now();
		count = collect_holders(exporter, recall,
					(now - start) / GMEM_NANOSECONDS_PER_MS, fds);
		gmem_lock_drop(&exporter->lock);
		if (count <= 0)
			return count;
		if (now >= end)
			return gmem_fail(-ETIMEDOUT, "the call was to wait %" PRIu32 " ms in all, and peers "
					 "still have memory that is taken back: %d of them", budget->wait_ms,
					 count);

		/* Without the lock, so that other threads can dispatch meanwhile. */
		if (gmem_sys_poll_many(fds, (unsigned int)count, GMEM_PEERS_SLICE_MS) < 0)
			gmem_sys_pause(GMEM_PEERS_SLICE_MS * 1000);
	}
}

/* Most conversions are of memory that no peer has: they need not do the work of a dispatch. */
static bool has_holder(const struct gmem_export *exporter, const struct gmem_recall *recall)
{
	const struct gmem_peer *peer;
	struct gmem_part kept;

	for (peer = exporter->peers; peer; peer = peer->next)
		if (still_has(peer, recall, &kept))
			return true;
	return false;
}

/*
 * From now on any thread asks for the memory, and reads the answers. Returns whether there is
 * something to wait for, found before a peer can have refused it: peers are done with a recall
 * they refused, too.
 */
static bool begin_recall(struct gmem_export *exporter, struct gmem_recall *recall)
{
	recall->number = ++exporter->last_recall;
	recall->next = exporter->recalls;
	exporter->recalls = recall;
	return has_holder(exporter, recall);
}

/* Answers that come later are to no recall. */
static void end_recall(struct gmem_export *exporter, const struct gmem_recall *recall)
{
	struct gmem_recall **link;

	for (link = &exporter->recalls; *link && *link != recall; link = &(*link)->next)
		;
	if (*link)
		*link = recall->next;
}

static int take_back(struct gmem_export *exporter, const struct gmem_recall *recall,
		     struct gmem_wait_budget *budget)
{
	uint64_t start = gmem_sys_now();
	int err = wait_for_peers(exporter, recall, budget, start);

	gmem_wait_spend(budget, start, GMEM_WAIT_PEERS);
	return err;
}

/* ---- before a region is removed ---- */

static bool takes_memory(const struct gmem_step *step)
{
	return !step->region->is_device &&
	       (step->kind == GMEM_STEP_REMOVE || step->kind == GMEM_STEP_MOVE ||
		step->kind == GMEM_STEP_REBIND);
}

/* Note what of the layout changes, for peers to look at it afterwards. */
static void note_change(struct gmem_export *exporter, uint64_t gpa, uint64_t size)
{
	struct gmem_part *all = &exporter->changing;
	uint64_t last = gpa + size - 1;

	if (!exporter->is_changing)
		*all = (struct gmem_part){ gpa, last };
	exporter->is_changing = true;
	all->start = gpa < all->start ? gpa : all->start;
	all->last = last > all->last ? last : all->last;
}

static void note_step(struct gmem_export *exporter, const struct gmem_step *step)
{
	const struct gmem_range *gpa = &step->region->gpa;
	struct gmem_range *node;

	note_change(exporter, gpa->start, gpa->size);
	if (step->kind == GMEM_STEP_MOVE)
		note_change(exporter, step->gpa, gpa->size);
	if (!takes_memory(step))
		return;
	node = &exporter->leaving_nodes[exporter->leaving_count];
	*node = (struct gmem_range){ .start = gpa->start, .size = gpa->size };
	gmem_range_insert(&exporter->leaving, node);
	exporter->leaving_count++;
}

int gmem_peers_before(struct gmem_change_hook *hook, const struct gmem_step *steps, size_t count,
		      struct gmem_wait_budget *budget)
{
	struct gmem_export *exporter = GMEM_CONTAINER_OF(hook, struct gmem_export, hook);
	struct gmem_recall *recall = &exporter->leaving_recall;
	struct gmem_range *nodes = NULL;
	size_t taken_count = 0;
	bool is_held = false;

	for (size_t i = 0; i < count; i++)
		taken_count += takes_memory(&steps[i]);
	if (taken_count) {
		nodes = calloc(taken_count, sizeof(*nodes));
		if (!nodes)
			return gmem_fail(-ENOMEM, "no memory to take memory back from peers");
	}

	gmem_lock_take(&exporter->lock);
	exporter->leaving_nodes = nodes;
	for (size_t i = 0; i < count; i++)
		note_step(exporter, &steps[i]);
	if (taken_count) {
		*recall = (struct gmem_recall){ .is_leaving = true };
		is_held = begin_recall(exporter, recall);
	}
	gmem_lock_drop(&exporter->lock);
	return is_held ? take_back(exporter, recall, budget) : 0;
}

void gmem_peers_after(struct gmem_change_hook *hook)
{
	struct gmem_export *exporter = GMEM_CONTAINER_OF(hook, struct gmem_export, hook);

	gmem_lock_take(&exporter->lock);
	end_recall(exporter, &exporter->leaving_recall);
	free(exporter->leaving_nodes);
	exporter->leaving_nodes = NULL;
	exporter->leaving_count = 0;
	exporter->leaving.root = NULL;
	for (struct gmem_peer *peer = exporter->peers; peer && exporter->is_changing; peer = peer->next)
		gmem_peer_look_again(&peer->maps, exporter->changing.start, exporter->changing.last);
	if (exporter->peers && exporter->is_changing)
		gmem_sys_event_set(exporter->event);
	exporter->is_changing = false;
	gmem_lock_drop(&exporter->lock);
}

/* ---- conversion ---- */

/*
 * What the first call for a conversion, for its lowest run, takes back: all that becomes private.
 * Peers are asked for it at once, so that each of them has its time for the conversion, not
 * anew for each run, and no peer's answer is waited for after another's.
 */
static struct gmem_part part_to_take(const struct gmem_export *exporter, uint64_t gpa, uint64_t size)
{
	const struct gmem_claim *claim = gmem_claim_own(exporter->vm);
	uint64_t last = claim->gpa + claim->size - 1;
	struct gmem_part first;

	if (gmem_state_find(exporter->vm, GMEM_PAGE_CHANGING, true, claim->gpa, last, &first) &&
	    first.start == gpa)
		return (struct gmem_part){ gpa, last };
	return (struct gmem_part){ gpa, gpa + size - 1 };
}

/* Called before the range becomes private, with its pages marked. On failure it is not converted. */
int gmem_peers_revoke(void *data, uint64_t gpa, uint64_t size)
{
	struct gmem_export *exporter = data;
	struct gmem_recall recall = { .part = part_to_take(exporter, gpa, size) };
	bool is_held;
	int err = 0;

	gmem_lock_take(&exporter->lock);
	is_held = begin_recall(exporter, &recall);
	gmem_lock_drop(&exporter->lock);

	if (is_held)
		err = take_back(exporter, &recall, gmem_claim_own(exporter->vm)->budget);

	gmem_lock_take(&exporter->lock);
	end_recall(exporter, &recall);
	gmem_lock_drop(&exporter->lock);
	return err;
}

/* Called when pages of the range became shared, or stayed shared because a conversion failed. */
void gmem_peers_look_again(void *data, uint64_t gpa, uint64_t size)
{
	struct gmem_export *exporter = data;
	struct gmem_peer *peer;

	gmem_lock_take(&exporter->lock);
	for (peer = exporter->peers; peer; peer = peer->next)
		gmem_peer_look_again(&peer->grants, gpa, gpa + size - 1);
	if (exporter->peers)
		gmem_sys_event_set(exporter->event);
	gmem_lock_drop(&exporter->lock);
}
