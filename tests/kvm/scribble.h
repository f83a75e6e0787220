/* SPDX-License-Identifier: MIT */
/*
 * scribble: everybody who writes to a VM's memory, at the same time, until told to stop.
 *
 * A guest, threads with views, one that loads, discards and converts, one that changes the
 * layout, and another process. Each word that is written says who wrote it, and the how
 * manieth of his it is, and a table beside the memory says what was done last to each page.
 */
#ifndef TESTS_KVM_SCRIBBLE_H
#define TESTS_KVM_SCRIBBLE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "guest.h"
#include "harness.h"

/* Ways of changing memory, each of which a tracker must see */
enum scribble_kind {
	SCRIBBLE_NOTHING,
	SCRIBBLE_GUEST,
	SCRIBBLE_WRITE,
	SCRIBBLE_STORE,
	SCRIBBLE_FILL,
	SCRIBBLE_COPY,
	SCRIBBLE_EXCHANGE,
	SCRIBBLE_RAW,		/* through a pointer, and marked */
	SCRIBBLE_KERNEL,	/* by read(2), and marked */
	SCRIBBLE_LOAD,
	SCRIBBLE_DISCARD,
	SCRIBBLE_CONVERT,
	SCRIBBLE_ADD,
	SCRIBBLE_MOVE,
	SCRIBBLE_SPLIT,
	SCRIBBLE_REBIND,
	SCRIBBLE_RESTORE,
	SCRIBBLE_PEER_WRITE,
	SCRIBBLE_PEER_STORE,
	SCRIBBLE_PEER_RAW,
	SCRIBBLE_KINDS,
};

const char *scribble_name(enum scribble_kind kind);
/* What this thread does at the moment */
extern _Thread_local enum scribble_kind scribble_now;
/* False in threads of the library's own */
extern _Thread_local bool scribble_is_own_thread;

/* All memory is in a window of guest addresses, around the end of the first GiB. */
#define WINDOW_GPA	(GIB - 4 * MIB)
#define WINDOW_SIZE	(10 * MIB)
#define HOT_GPA		WINDOW_GPA		/* regions that come and go */
#define HOT_PLACES	6
#define HOT_PAGES	8
#define BIG_GPA		(GIB + 2 * MIB)		/* a chunk of 2 MiB, and a page on each side */
#define PEER_GPA	(GIB + 5 * MIB)
#define HOTS		3
#define VIEW_THREADS	2
#define MAX_DEVICES	3

struct scribble_last {
	uint64_t begun, done;	/* kind << 32 | sequence number */
};

/* Shared with the other process */
struct scribble_shared {
	uint32_t generation;	/* odd: all are to wait */
	uint32_t waiting;
	uint32_t device;	/* the one that writes */
	uint32_t device_failed;
	bool is_over;
	struct scribble_last last[WINDOW_SIZE / 4096];
};

struct scribble {
	struct machine m;
	struct gmem_vm *vm;
	struct guest guest;
	uint64_t page;
	uint64_t half;		/* bytes of the middle region on each side of the GiB's end */
	uint64_t seed;
	uint64_t kinds;		/* 1 << enum scribble_kind, of those that are done */
	uint64_t ring_bytes;	/* of dirty rings; 0: there are none */
	bool is_native;
	bool can_convert;
	bool has_devices;	/* other processes */
	struct gmem_vcpu *vcpu;
	struct gmem_region *hot[HOTS];
	struct gmem_file *hot_file;	/* twice as large as its region, or NULL */
	void *own_memory;		/* behind hot[0] */
	bool hot_stays;			/* atomic: no change of the layout for now */
	struct scribble_shared *shared;
	struct gmem_export *exporter;
	struct gmem_peer *peer;
	pid_t devices[MAX_DEVICES];
	int device_socks[MAX_DEVICES];
	uint32_t scribblers;		/* who is waited for */
	pthread_t threads[8];
	uint32_t thread_count;
	int words_fd;			/* a file of words to load from */
};

/* Processes first: they are to inherit nothing of the VM. */
void scribble_prepare(struct scribble *s);
/* With the VM and its memory there: everybody begins to wait, so scribble_go() it is then. */
void scribble_start(struct scribble *s);
void scribble_go(struct scribble *s);
/* Returns when nobody writes any more. */
void scribble_stop(struct scribble *s);
/* Between go and stop: the process that writes is killed, if there is another one, */
bool scribble_kill_device(struct scribble *s);
/* which takes over between stop and go. */
void scribble_next_device(struct scribble *s);
/* Between stop and go: threads and processes end. */
void scribble_end(struct scribble *s);

/* What is noted of a page in words, in a static buffer */
const char *scribble_describe(const struct scribble *s, uint64_t gpa);

/* In the table: a change of a range begins, and is done. Returns its sequence number. */
uint32_t scribble_begin(struct scribble_shared *shared, enum scribble_kind kind, uint64_t gpa,
			uint64_t size);
void scribble_done(struct scribble_shared *shared, enum scribble_kind kind, uint32_t number,
		   uint64_t gpa, uint64_t size);

/* xorshift64 */
uint64_t scribble_random(uint64_t *state, uint64_t limit);

#endif
