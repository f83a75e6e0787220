/* SPDX-License-Identifier: MIT */
#include "share/peer_source.h"

#include "base/lock.h"
#include "base/macros.h"
#include "dirty/collect.h"
#include "os/sys.h"
#include "share/peer_dirty.h"
#include "share/peer_io.h"
#include "share/peer_state.h"

static struct gmem_export *export_of(struct gmem_dirty_source *source)
{
	return GMEM_CONTAINER_OF(source, struct gmem_export, source);
}

/* Peers hear of it in the next dispatch. */
static void begin(struct gmem_dirty_source *source)
{
	struct gmem_export *exporter = export_of(source);

	gmem_lock_take(&exporter->lock);
	exporter->is_tracked = true;
	for (struct gmem_peer *peer = exporter->peers; peer; peer = peer->next)
		peer->refuses_marks = false;
	if (exporter->peers)
		gmem_sys_event_set(exporter->event);
	gmem_lock_drop(&exporter->lock);
}

static void end(struct gmem_dirty_source *source)
{
	struct gmem_export *exporter = export_of(source);

	gmem_lock_take(&exporter->lock);
	exporter->is_tracked = false;
	for (struct gmem_peer *peer = exporter->peers; peer; peer = peer->next)
		gmem_peer_end_marks(peer);
	if (exporter->peers)
		gmem_sys_event_set(exporter->event);
	gmem_lock_drop(&exporter->lock);
}

static void collect(struct gmem_dirty_source *source)
{
	struct gmem_export *exporter = export_of(source);

	gmem_lock_take(&exporter->lock);
	if (exporter->is_tracked) {
		gmem_peers_receive(exporter);
		for (struct gmem_peer *peer = exporter->peers; peer; peer = peer->next)
			gmem_peer_collect(peer);
	}
	gmem_lock_drop(&exporter->lock);
}

void gmem_peers_add_source(struct gmem_export *exporter)
{
	exporter->source = (struct gmem_dirty_source){ .begin = begin, .end = end, .collect = collect };
	gmem_vm_add_dirty_source(exporter->vm, &exporter->source);
}

void gmem_peers_remove_source(struct gmem_export *exporter)
{
	gmem_vm_remove_dirty_source(exporter->vm, &exporter->source);
}
