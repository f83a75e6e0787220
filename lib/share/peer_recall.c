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
#include "base/range_map.h"
#include "base/range_set.h"
#include "layout/step.h"
#include "os/sys.h"
#include "region/regions.h"
#include "share/peer_io.h"
#include "region/page_states.h"
#include "state/claim.h"
#include "state/private_state.h"

/* How often to look again: another thread may have read the answer this one waits for */
#define SLICE_MS	10

/* Sockets in one poll(); further peers are looked at every SLICE_MS */
#define MAX_POLLED	16

/* Find memory of the recall that the peer still has. */
static bool still_has(const struct gmem_peer *peer, const struct gmem_recall *recall,
		      struct gmem_part *ret)
{
	const struct gmem_export *exporter = peer->exporter;
	struct gmem_block *block;

	if (!recall->is_leaving)
		return gmem_peer_next_usable(peer, recall->part.start, recall->part.last, &block, ret);

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

/*
 * Decide about a peer that still has memory of a recall. Returns 0 if its time is not up, or
 * if it was disconnected (GMEM_PEER_CUT_OFF); otherwise the -errno that ends the recall.
 */
static int handle_holder(struct gmem_peer *peer, const struct gmem_part *kept, uint64_t waited_ms)
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

	gmem_peer_disconnect(peer, gmem_vm_log_error(peer->exporter->vm, err));
	return 0;
}

/* Fill in @fds with peers that still have memory of the recall; -errno ends the recall. */
static int collect_holders(const struct gmem_export *exporter, const struct gmem_recall *recall,
			   uint64_t waited_ms, struct pollfd fds[MAX_POLLED])
{
	struct gmem_part kept;
	struct gmem_peer *peer;
	int count = 0, err;

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
		gmem_peers_pump(exporter);
		now = gmem_sys_now();
		count = collect_holders(exporter, recall,
					(now - start) / GMEM_NANOSECONDS_PER_MS, fds);
		gmem_lock_drop(&exporter->lock);
		if (count <= 0)
			return count;
		if (now >= end)
			return gmem_fail(-ETIMEDOUT, "%d peers have memory that is taken back, and the call "
					 "was to wait %" PRIu32 " ms", count, budget->wait_ms);

		/* Without the lock, so that other threads can dispatch meanwhile. */
		if (gmem_sys_poll_many(fds, (unsigned int)count, SLICE_MS) < 0)
			gmem_sys_pause(SLICE_MS * 1000);
	}
}

static int take_back(struct gmem_export *exporter, const struct gmem_recall *recall,
		     struct gmem_wait_budget *budget)
{
	uint64_t start = gmem_sys_now();
	int err;

	err = wait_for_peers(exporter, recall, budget, start);
	gmem_wait_spend(budget, start);
	return err;
}

/* ---- before a region is removed ---- */

static bool takes_memory(const struct gmem_step *step)
{
	return !step->region->is_device &&
	       (step->kind == GMEM_STEP_REMOVE || step->kind == GMEM_STEP_MOVE ||
		step->kind == GMEM_STEP_REBIND);
}

int gmem_peers_before(struct gmem_change_hook *hook, const struct gmem_step *steps, size_t count,
		      struct gmem_wait_budget *budget)
{
	struct gmem_export *exporter = GMEM_CONTAINER_OF(hook, struct gmem_export, hook);
	const struct gmem_recall recall = { .is_leaving = true };
	struct gmem_range *nodes;
	size_t taken_count = 0;

	for (size_t i = 0; i < count; i++)
		taken_count += takes_memory(&steps[i]);
	if (!taken_count)
		return 0;
	nodes = calloc(taken_count, sizeof(*nodes));
	if (!nodes)
		return gmem_fail(-ENOMEM, "no memory to take memory back from peers");

	gmem_lock_take(&exporter->lock);
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
	gmem_lock_drop(&exporter->lock);
	return take_back(exporter, &recall, budget);
}

void gmem_peers_after(struct gmem_change_hook *hook)
{
	struct gmem_export *exporter = GMEM_CONTAINER_OF(hook, struct gmem_export, hook);
	struct gmem_peer *peer;

	gmem_lock_take(&exporter->lock);
	free(exporter->leaving_nodes);
	exporter->leaving_nodes = NULL;
	exporter->leaving_count = 0;
	exporter->leaving.root = NULL;
	for (peer = exporter->peers; peer; peer = peer->next) {
		peer->refusal = 0;
		peer->cursor = 0;
		peer->at_end = false;
		peer->sent_ready = false;
	}
	if (exporter->peers)
		gmem_sys_event_set(exporter->event);
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

/* Give all that was taken: the pages in between were private before. */
static void give_again(struct gmem_export *exporter, const struct gmem_part *taken)
{
	struct gmem_part run = { .last = taken->start - 1 };

	while (run.last != taken->last &&
	       gmem_state_find(exporter->vm, GMEM_PAGE_CHANGING, true, run.last + 1, taken->last, &run))
		gmem_peers_grant(exporter, run.start, run.last - run.start + 1);
}

/* Called before the range becomes private. On failure it is not converted. */
int gmem_peers_revoke(void *data, uint64_t gpa, uint64_t size)
{
	struct gmem_export *exporter = data;
	struct gmem_recall recall = { .part = part_to_take(exporter, gpa, size) }, **link;
	struct gmem_range *spare = NULL;
	struct gmem_failure failure;
	struct gmem_peer *peer;
	int err;

	err = gmem_set_spare(&spare);
	if (err)
		return gmem_fail(err, "no memory to take memory back from peers");

	gmem_lock_take(&exporter->lock);
	gmem_set_add(&exporter->withheld, recall.part.start, recall.part.last - recall.part.start + 1,
		     &spare);
	recall.next = exporter->recalls;
	exporter->recalls = &recall;
	gmem_lock_drop(&exporter->lock);
	free(spare);

	err = take_back(exporter, &recall, gmem_claim_own(exporter->vm)->budget);

	gmem_lock_take(&exporter->lock);
	for (link = &exporter->recalls; *link != &recall; link = &(*link)->next)
		;
	*link = recall.next;
	for (peer = exporter->peers; peer; peer = peer->next)
		peer->refusal = 0;
	gmem_lock_drop(&exporter->lock);
	if (err) {
		gmem_failure_keep(&failure, err);
		give_again(exporter, &recall.part);
		gmem_failure_restore(&failure);
	}
	return err;
}

/* Called when the range became shared, or stayed shared because a conversion failed. */
void gmem_peers_grant(void *data, uint64_t gpa, uint64_t size)
{
	struct gmem_export *exporter = data;
	struct gmem_range *spare = NULL;
	struct gmem_peer *peer;

	gmem_lock_take(&exporter->lock);
	if (gmem_set_spare(&spare) == 0) {
		gmem_set_remove(&exporter->withheld, gpa, size, &spare);
		for (peer = exporter->peers; peer; peer = peer->next) {
			peer->all_granted = false;
			if (gpa < peer->grant_from)
				peer->grant_from = gpa;
		}
		gmem_sys_event_set(exporter->event);
	} else {
		/* The range stays withheld from peers until its next conversion. */
		gmem_vm_log_error(exporter->vm, gmem_fail(-ENOMEM, "no memory to give peers 0x%" PRIx64
							  " bytes at gpa 0x%" PRIx64, size, gpa));
	}
	gmem_lock_drop(&exporter->lock);
	free(spare);
}

static bool walk(struct gmem_vm *vm, struct gmem_stretch *at)
{
	bool found;

	gmem_lock_take(&vm->lock);
	found = gmem_regions_walk(at);
	gmem_lock_drop(&vm->lock);
	return found;
}

/* Called with a claim on the range: the memory that was there is gone. */
void gmem_peers_grant_shared(void *data, uint64_t gpa, uint64_t size)
{
	struct gmem_export *exporter = data;
	struct gmem_stretch at = GMEM_REGIONS_WALK(exporter->vm, gpa, gpa + size - 1);

	while (walk(exporter->vm, &at))
		if (!at.is_private)
			gmem_peers_grant(exporter, at.gpa, at.size);
}
