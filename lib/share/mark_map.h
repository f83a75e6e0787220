/* SPDX-License-Identifier: MIT */
/*
 * mark_map: the map in which a peer marks what it writes (region/peer_marks.h), on both sides.
 *
 * The exporter makes a memfd of it that nobody can shrink, and the importer maps no other: what
 * is stored there never raises SIGBUS because the other side cut it. Of its pages only those
 * are allocated that somebody wrote or looked at, so a lack of memory does raise it.
 *
 * Why no write is missed. W is a thread of the importer that writes, C the exporter's that
 * collects; all bytes are 0 or 1, and marks of the exporter's own pages follow C2.
 *
 *   W1  store to guest memory           C1  exchange the chunk's byte for 0; if it was 1:
 *   W2  store 1 to the page's byte      C2  exchange the page's byte for 0
 *   W3  store 1 to the chunk's byte     C3  if it was 1, read guest memory
 *
 * W2 and W3 release, C1 and C2 acquire. Each side's accesses are thus in their order for all
 * others, because neither architecture has a store that some processors see before others do.
 * If W3 comes after C1, the next collection finds the chunk, and in it the page's byte or, if
 * C2 took that already, nothing new. If W3 comes before C1, so does W2 before C2, whether C1
 * found W3's 1 or one that somebody else stored over it; and whoever finds W2's 1, or one
 * stored over it, sees W1. A write that is known to be complete, by whatever way that was
 * learned, has its W3 before C1. No fence is needed: unlike the marks of a VM (region/
 * dirty_pages.h), W loads nothing, and so decides nothing.
 *
 * A thread that is killed between W1 and W3 has marked nothing. So a peer that ends has
 * written all it could (peer_dirty.h).
 */
#ifndef GMEM_MARK_MAP_H
#define GMEM_MARK_MAP_H

#include <stdint.h>

#include "region/peer_marks.h"
#include "share/wire.h"

struct gmem_vm;

struct gmem_mark_map {
	struct gmem_peer_marks marks;
	uint64_t end;		/* the guest addresses below it have marks */
	void *hva;
	uint64_t bytes;
};

/*
 * The exporter's: make one for guest addresses below @end, at least, and fill in the message
 * that gives @ret_fd to the peer. -errno without a sentence.
 */
int gmem_mark_map_new(uint64_t end, struct gmem_mark_map **ret, struct gmem_message *message, int *ret_fd);
/* The importer's: map what came with a message. On failure nothing is mapped, with a sentence. */
int gmem_mark_map_open(const struct gmem_message *message, int fd, struct gmem_mark_map **ret);
/* NULL is let through. Nobody uses its marks any more. */
void gmem_mark_map_free(struct gmem_mark_map *map);

/*
 * C1 and C2 for the pages of [@gpa, @last], which has whole ones below @map->end, and which are
 * marked in the VM, if it has a tracker. Takes the VM's lock. Takes time for the range, whatever
 * the peer does meanwhile.
 */
void gmem_mark_map_take(const struct gmem_mark_map *map, struct gmem_vm *vm, uint64_t gpa, uint64_t last);

#endif
