/* SPDX-License-Identifier: MIT */
/* rust-vmm's vm-memory as the benchmarks see it: what lib.rs exports. */
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
	/* from where the file is */
	void (*read_from)(const struct peer *peer, uint64_t gpa, int fd, uint64_t size);
	void (*change)(const struct peer *peer, const struct peer_range *range, bool add);
};

/* The peer that get-peer built; NULL where there is none, and says so. */
const struct peer_functions *peer_load(void);

#endif
