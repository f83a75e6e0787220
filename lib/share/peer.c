/* SPDX-License-Identifier: MIT */
#include "share/peer.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "base/check.h"
#include "base/error.h"
#include "base/limit.h"
#include "base/lock.h"
#include "base/opts.h"
#include "base/wait_budget.h"
#include "os/sys.h"
#include "region/vm_core.h"
#include "share/extent.h"
#include "share/peer_io.h"
#include "share/peer_needs.h"
#include "share/peer_state.h"
#include "share/wire.h"

#define DEFAULT_WAIT_MS	1000

static int check_range(const struct gmem_export_range *range, uint64_t above)
{
	int err = gmem_check_range("gpa", range->gpa, range->size);

	if (err)
		return err;
	if (range->gpa < above)
		return gmem_fail(-EINVAL, "the range at gpa 0x%" PRIx64
				 " begins before the one before it ends", range->gpa);
	if (!(range->rights & GMEM_RIGHT_READ) || range->rights & ~GMEM_ALL_RIGHTS)
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
	if (!opts->ranges && opts->range_count)
		return gmem_fail(-EINVAL, "range_count is %zu, but ranges is NULL", opts->range_count);
	if (opts->ranges && !opts->range_count)
		return gmem_fail(-EINVAL, "ranges has no entries, range_count is 0: NULL is all memory");

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

/* Make the peer visible to the export's other threads. Call with the export's lock held. */
static int add_to_export(struct gmem_peer *peer, int sock)
{
	struct gmem_export *exporter = peer->exporter;
	int err;

	err = gmem_peer_check_memory(peer);
	if (err)
		return err;

	peer->sock = gmem_sys_dup(sock);
	if (peer->sock < 0)
		return gmem_fail_by_limit(peer->sock, 0, "fd %d cannot be duplicated", sock);

	err = gmem_sys_epoll_watch(exporter->epoll, peer->sock, EPOLLIN, true);
	if (err) {
		gmem_sys_close(peer->sock);
		return gmem_fail(err, "socket %d cannot be watched: %s", sock, gmem_errno_name(err));
	}

	gmem_peer_look_again(&peer->maps, 0, UINT64_MAX);
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
	peer->maps.is_done = peer->grants.is_done = true;
	err = copy_opts(peer, opts);
	if (err)
		goto free_peer;

	gmem_lock_take(&exporter->lock);
	err = add_to_export(peer, sock);
	gmem_lock_drop(&exporter->lock);
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

	err = GMEM_COPY_OPTS(gmem_peer_opts, &opts, user_opts, reserved);
	if (!err)
		err = check_opts(&opts);
	if (!err)
		err = gmem_vm_check_alive(exporter->vm);
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
	gmem_lock_take(&exporter->lock);
	for (link = &exporter->peers; *link != peer; link = &(*link)->next)
		;
	*link = peer->next;
	gmem_peer_disconnect(peer, -EPIPE);
	gmem_peer_forget(peer);
	gmem_lock_drop(&exporter->lock);
	free(peer->ranges);
	free(peer);
}

GMEM_API int gmem_peer_status(struct gmem_peer *peer)
{
	int status;

	if (!peer)
		return gmem_fail(-EINVAL, "peer is NULL");
	status = gmem_vm_check_alive(peer->exporter->vm);
	if (status)
		return status;

	gmem_lock_take(&peer->exporter->lock);
	status = peer->status;
	if (status && peer->refused)
		gmem_fail(status, "the peer is lost: it refused the message \"%s\": %s",
			  gmem_wire_name(peer->refused), gmem_errno_name(status));
	else if (status)
		gmem_fail(status, "the peer is lost: %s", gmem_errno_name(status));
	else if (peer->sent_ready && peer->maps.is_done && peer->grants.is_done && !peer->awaits_answer)
		status = 1;
	gmem_lock_drop(&peer->exporter->lock);
	return status;
}

GMEM_API int gmem_peer_wait(struct gmem_peer *peer, int ms)
{
	struct pollfd fd = { .events = POLLIN };
	uint64_t end = gmem_wait_end_of_ms(ms);
	unsigned int left;
	int ret;

	if (!peer)
		return gmem_fail(-EINVAL, "peer is NULL");

	fd.fd = peer->exporter->epoll;
	for (;;) {
		ret = gmem_vm_check_alive(peer->exporter->vm);
		if (ret)
			return ret;
		gmem_peers_dispatch(peer->exporter);
		ret = gmem_peer_status(peer);
		left = gmem_wait_left_ms(end);
		if (ret || !left)
			return ret;
		/* Neither another thread's dispatch nor the end of the VM makes the fd readable. */
		ret = gmem_sys_poll_many(&fd, 1, left < GMEM_PEERS_SLICE_MS ? left : GMEM_PEERS_SLICE_MS);
		if (ret < 0)
			return gmem_fail(ret, "the export's fd cannot be waited for: %s", gmem_errno_name(ret));
	}
}
