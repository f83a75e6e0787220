/* SPDX-License-Identifier: MIT */
/* rust-vmm's vm-memory and virtio-queue as the benchmarks see them: what lib.rs exports. */
#ifndef PEER_H
#define PEER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct peer_range {
	uint64_t gpa;
	uint64_t size;
	void *hva;
};

struct peer;

/* A virtqueue: guest addresses of its parts, and how far its device is */
struct peer_virtqueue {
	uint64_t descriptors;
	uint64_t avail;
	uint64_t used;
	uint16_t next;	/* in both rings: chains are used in order */
	uint16_t size;
};

struct peer_queue;	/* the same as virtio-queue has it */

/* Filled in by peer_load(); sizes and counts as in lib.rs */
struct peer_functions {
	struct peer *(*new)(const struct peer_range *ranges, size_t count);
	void (*free)(struct peer *peer);
	uint64_t (*translate)(const struct peer *peer, const uint64_t *gpas, size_t count,
			      size_t size);
	uint64_t (*translate_atomic)(const struct peer *peer, const uint64_t *gpas, size_t count,
				     size_t size);
	void (*read_slice)(const struct peer *peer, const uint64_t *gpas, size_t count, void *buf,
			   size_t size);
	void (*write_slice)(const struct peer *peer, const uint64_t *gpas, size_t count,
			    const void *buf, size_t size);
	uint64_t (*read_obj)(const struct peer *peer, const uint64_t *gpas, size_t count);
	void (*write_obj)(const struct peer *peer, const uint64_t *gpas, size_t count, uint64_t value);
	/* the same with one access each: an acquiring load, a releasing store */
	uint64_t (*load)(const struct peer *peer, const uint64_t *gpas, size_t count);
	void (*store)(const struct peer *peer, const uint64_t *gpas, size_t count, uint64_t value);
	/* all that is available: reads each chain's one buffer, and uses it */
	void (*serve)(const struct peer *peer, struct peer_virtqueue *queue, void *buf);
	void (*serve_queue)(const struct peer *peer, struct peer_queue *queue, void *buf);
	struct peer_queue *(*queue_new)(const struct peer_virtqueue *from);
	void (*queue_free)(struct peer_queue *queue);
	/* from where the file is */
	void (*read_from)(const struct peer *peer, uint64_t gpa, int fd, uint64_t size);
	void (*change)(const struct peer *peer, const struct peer_range *range, bool add);
};

/* The peer that get-peer built; NULL where there is none, and says so. */
const struct peer_functions *peer_load(void);

#endif
