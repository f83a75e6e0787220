/* SPDX-License-Identifier: MIT */
/* What the rooms share, lowest floor first: a room uses only what stands above it here. */
#ifndef GMEM_INTERNAL_H
#define GMEM_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gmem.h"
#include "kvm.h"
#include "sys.h"

#define GMEM_ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define GMEM_CONTAINER_OF(ptr, type, member) \
	((type *)(void *)((char *)(ptr) - offsetof(type, member)))

/* ---- error: the sentence behind an errno ---- */

/* Remember the sentence for this thread. Returns @err, a negative errno. */
int gmem_fail(int err, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* "EINVAL" and the like, for a negative errno */
const char *gmem_errno_name(int err);

/* ---- check: every argument check ---- */

/* Non-zero size, page-aligned, not wrapping. @what names the range. */
int gmem_check_range(const char *what, uint64_t start, uint64_t size);
/* The same, and inside [0, @limit), which @limit_name names. */
int gmem_check_range_within(const char *what, uint64_t start, uint64_t size,
			    uint64_t limit, const char *limit_name);
int gmem_check_aligned(const char *what, uint64_t value);
/* A power of two not below the page, or 0 */
int gmem_check_alignment(uint64_t align);
int gmem_check_flags(const char *what, uint64_t flags, uint64_t known);

int gmem_import_opts(const char *what, void *dst, size_t dst_size, size_t first_version,
		     const void *src);
/*
 * Fill @dst, this library's idea of struct @type, from the caller's @src: zero
 * what the caller does not know, refuse what we do not know unless it is zero.
 * @last is the last field of the struct's first version.
 */
#define GMEM_IMPORT(type, dst, src, last)                                            \
	gmem_import_opts("struct " #type, (dst), sizeof(struct type),                \
			 offsetof(struct type, last) + sizeof((dst)->last), (src))

/* ---- crc32c ---- */

/* Of the bytes before, or 0, and these */
uint32_t gmem_crc32c(uint32_t crc, const void *bytes, size_t size);
uint32_t gmem_crc32c_plain(uint32_t crc, const void *bytes, size_t size);

/* ---- io: a file or a pipe as a queue of large buffers ---- */

#define GMEM_IO_UNIT ((uint64_t)1 << 20)
#define GMEM_IO_DEPTH 32

struct gmem_io_buffer {
	char *data;
	uint64_t start;		/* of what is asked for in the file */
	uint64_t wanted;	/* of it, without what is read for alignment's sake */
	uint64_t taken;		/* by the user, of a buffer that is read later */
	uint32_t size;
	uint32_t done;
	uint32_t skip;
	int err;
	uint8_t state;
	bool later;		/* read when its turn comes */
	bool direct;
	bool ended;		/* the file did */
};

struct gmem_io {
	int fd;			/* the caller's */
	int direct_fd;		/* the same file past the page cache, or negative */
	struct gmem_ring *ring;
	int no_ring;		/* why there is none */
	bool writing;
	bool serial;		/* no offsets, one at a time */
	bool sparse;
	bool whole;		/* the user wants whole units */
	bool own_ring;
	bool never_blocks;
	bool unsubmitted;
	bool refused_direct;
	bool cancelled;
	bool only_holes;	/* from position on; reading */
	bool ended;
	uint32_t depth, first, count, flying;
	struct gmem_io_buffer buffers[GMEM_IO_DEPTH];
	uint64_t position, end, stretch_end;
	uint64_t file_bytes, direct_bytes;
	uint64_t staging_size;
	void *staging;
	char *small;
};

struct gmem_io_order {
	int fd;
	struct gmem_fd_kind kind;
	bool writing, sparse, whole, no_direct, no_ring;
	uint32_t depth;
	uint64_t position, end;
	struct io_uring *ring;
	uint64_t ring_tag;
};

struct gmem_io_piece {
	char *data;
	uint64_t offset;	/* in the file */
	uint64_t size;		/* 0: the end */
};

/* To be closed also if this fails */
int gmem_io_open(struct gmem_io *io, const struct gmem_io_order *order);
/* false: the caller has still completions to hand over, and then to call again */
bool gmem_io_close(struct gmem_io *io);
/* -EINVAL: not one of these */
int gmem_io_complete(struct gmem_io *io, uint64_t number, int result);
int gmem_io_poll_fd(const struct gmem_io *io, int16_t *ret_events);

/* All of these: -EAGAIN not without waiting; another -errno: to be tried again by calling again */

/* Reading: the next piece, which stays until it is taken */
int gmem_io_next(struct gmem_io *io, bool wait, struct gmem_io_piece *ret);
void gmem_io_take(struct gmem_io *io);
/* From @position again, once nothing is under way any more */
int gmem_io_rewind(struct gmem_io *io, uint64_t position, bool wait);

/* Writing: room for a unit; what was put there; until all is written */
int gmem_io_space(struct gmem_io *io, bool wait, char **ret);
int gmem_io_put(struct gmem_io *io, uint64_t size);
int gmem_io_drain(struct gmem_io *io, bool wait);

/* ---- range: non-overlapping ranges in order ---- */

/* Embed one per map; it is allocated and owned by whoever inserts it. */
struct gmem_range {
	uint64_t start;
	uint64_t size;
	struct gmem_range *left;
	struct gmem_range *right;
};

struct gmem_range_map {
	struct gmem_range *root;
};

/* The lowest range that overlaps [@start, @start + @size), or NULL */
struct gmem_range *gmem_range_find(const struct gmem_range_map *map, uint64_t start,
				   uint64_t size);
/* None of these can fail. @range must overlap nothing in @map. */
void gmem_range_insert(struct gmem_range_map *map, struct gmem_range *range);
void gmem_range_remove(struct gmem_range_map *map, struct gmem_range *range);
/* While @range is in no map; whole for those who look at it without a lock */
void gmem_range_set_start(struct gmem_range *range, uint64_t start);
/* Leave @range what is below @offset, and enter the rest as @upper; and back. */
void gmem_range_split(struct gmem_range_map *map, struct gmem_range *range, uint64_t offset,
		      struct gmem_range *upper);
void gmem_range_join(struct gmem_range_map *map, struct gmem_range *range,
		     struct gmem_range *upper);

/* ---- headroom: what can still be allocated ---- */

/*
 * -ENOMEM, with the numbers, if @need bytes more do not fit into MemAvailable
 * or into a memory cgroup of ours or above. What cannot be read sets no limit.
 */
int gmem_check_headroom(uint64_t need);

/* ---- near: a thread beside the memory it works on ---- */

#define GMEM_NEAR_WORDS 128	/* of 64 processors */

struct gmem_near {
	bool is_known;
	int64_t node;				/* where it is, if known */
	uint64_t allowed[GMEM_NEAR_WORDS];	/* processors it may have */
};

/*
 * Move this thread to the node that memory at @hva comes from, if a policy
 * names one alone. Nothing happens if that is not to be had.
 */
void gmem_near_go(struct gmem_near *near, const void *hva);

/* ---- scratch: a spare memslot and address of a VM, to try things with ---- */

struct gmem_scratch {
	int vm_fd;
	uint32_t slot;
	uint32_t address_bits;	/* found on the way */
	uint64_t gpa;
	uint64_t page;
	void *hva;		/* one page of ordinary memory */
};

/* -EBUSY: no spare place was found */
int gmem_scratch_open(struct gmem_scratch *scratch, int vm_fd);
void gmem_scratch_close(struct gmem_scratch *scratch);
/* Add a one-page memslot and delete it again: 0, or the errno of adding it. */
int gmem_scratch_try_plain(struct gmem_scratch *scratch, uint32_t flags);
int gmem_scratch_try_gmemfd(struct gmem_scratch *scratch, int gmemfd, uint64_t offset);
/* Add a memslot with a dirty log, read the log, delete it again. */
int gmem_scratch_try_dirty_log(struct gmem_scratch *scratch);

/* ---- guest: a few instructions in a VM made for them ---- */

struct gmem_guest_sight {
	bool load_from_file;
	bool load_from_hva;
	bool store_to_file;
	bool store_to_hva;
	bool fault_exit;	/* a memory-fault exit came once the file was gone */
};

/*
 * Bind a file of @create_flags over a host address with other contents, let a
 * guest load and store, and see which of the two it met.
 */
int gmem_guest_look(int kvm_fd, uint64_t vm_type, uint64_t create_flags, bool private_memory,
		    struct gmem_guest_sight *ret);

/* ---- caps: the capability report ---- */

struct gmem_line {
	const char *remedy;
	int64_t value;
	uint32_t answer;
	uint32_t has_value;
	char reason[200];
};

struct gmem_caps {
	bool has_vm;
	struct gmem_line lines[GMEM_CAP_COUNT];
};

bool gmem_caps_says(const struct gmem_caps *caps, enum gmem_cap cap, uint32_t answer);
/* The line's number, 0 if it has none */
uint64_t gmem_caps_value(const struct gmem_caps *caps, enum gmem_cap cap);

/* ---- plan: negotiation ---- */

struct gmem_plan {
	uint32_t backing;
	uint32_t attributes;
	uint64_t create_flags;
	bool region2;
	char passed_over[GMEM_BACKING_INPLACE + 1][160];
};

int gmem_plan_make(const struct gmem_caps *caps, const struct gmem_request *request,
		   struct gmem_plan *ret);

/* ---- file: one guest_memfd ---- */

struct gmem_file {
	pthread_mutex_t lock;
	int fd;
	int vm_fd;			/* number it was made with */
	unsigned int users;		/* its creator, and every region */
	uint64_t size;
	uint64_t create_flags;
	struct gmem_range_map maps;	/* hva: made by gmem_file_map() */
	struct gmem_range_map pinned;	/* hva: a region's own */
	struct gmem_range_map bound;	/* offsets that are in a memslot */
};

struct gmem_map {
	struct gmem_range hva;
	uint64_t offset;
};

/* Where a mapping goes: struct gmem_map_opts, checked, and more */
struct gmem_place {
	uint64_t flags;		/* GMEM_MAP_* */
	void *hva;
	uint64_t align;
	uint64_t remainder;	/* of the address by @align; below it */
};
/* -EXDEV if the file belongs to another VM */
int gmem_file_check_vm(const struct gmem_file *file, int vm_fd);

void gmem_file_hold(struct gmem_file *file);
void gmem_file_release(struct gmem_file *file);

/* Map part of a file for a region, which keeps @map; only gmem_file_unpin() unmaps it. */
int gmem_file_pin(struct gmem_file *file, uint64_t offset, uint64_t size,
		  const struct gmem_place *place, struct gmem_map *map);
void gmem_file_unpin(struct gmem_file *file, struct gmem_map *map);
/* Move what is above @offset of @map, or of @range, over to @upper; and back. */
void gmem_file_split_pin(struct gmem_file *file, struct gmem_map *map, uint64_t offset,
			 struct gmem_map *upper);
void gmem_file_join_pin(struct gmem_file *file, struct gmem_map *map, struct gmem_map *upper);

/* Record that a range is in a memslot: -EEXIST if part of it is already. */
int gmem_file_bind(struct gmem_file *file, struct gmem_range *range);
void gmem_file_unbind(struct gmem_file *file, struct gmem_range *range);
void gmem_file_split_bound(struct gmem_file *file, struct gmem_range *range, uint64_t offset,
			   struct gmem_range *upper);
void gmem_file_join_bound(struct gmem_file *file, struct gmem_range *range,
			  struct gmem_range *upper);

/* Any mapping at the place it should have */
int gmem_map_at(int fd, uint64_t offset, uint64_t size, int prot, int flags,
		const struct gmem_place *place, void **ret);

/* ---- slot: memslot numbers ---- */

struct gmem_slots {
	uint32_t count;
	uint32_t first_free_word;	/* no free number below this word */
	uint64_t *used;
	uint64_t *reserved;
};

int gmem_slots_init(struct gmem_slots *slots, uint32_t count);
void gmem_slots_destroy(struct gmem_slots *slots);
int gmem_slots_take_any(struct gmem_slots *slots, uint32_t *ret);
int gmem_slots_take(struct gmem_slots *slots, uint32_t number);
void gmem_slots_give(struct gmem_slots *slots, uint32_t number);
int gmem_slots_reserve(struct gmem_slots *slots, uint32_t first, uint32_t count);

/* ---- set: addresses that have something in common, such as being private ---- */

/* Ranges that neither overlap nor touch, in nodes of the set's own */
struct gmem_part {
	uint64_t start;
	uint64_t last;
};

/* A node in reserve, if there is none yet: what is done next needs one at most. */
int gmem_set_spare(struct gmem_range **spare);
void gmem_set_add(struct gmem_range_map *set, uint64_t start, uint64_t size,
		  struct gmem_range **spare);
void gmem_set_remove(struct gmem_range_map *set, uint64_t start, uint64_t size,
		     struct gmem_range **spare);
void gmem_set_clear(struct gmem_range_map *set);
/* The first part of [@start, @last] that is in the set, or that is not; false: none */
bool gmem_set_next(const struct gmem_range_map *set, bool inside, uint64_t start, uint64_t last,
		   struct gmem_part *ret);

/* ---- table: from guest address to memory, for readers that never wait ---- */

/* What is behind a guest address, and up to where */
struct gmem_piece {
	uint64_t code;	/* odd: hva - gpa + 1, and more; even: no memory */
	uint64_t last;	/* gpa */
};

/* Of memory: it cannot be written. Pages leave room for it. */
#define GMEM_CODE_READ_ONLY 2

static inline void *gmem_piece_hva(struct gmem_piece piece, uint64_t gpa)
{
	return (void *)(uintptr_t)(gpa + (piece.code & ~(uint64_t)GMEM_CODE_READ_ONLY) - 1);
}

struct gmem_piece gmem_table_piece(const struct gmem_table *table, uint64_t gpa);
/* Why there is no memory: -ENOENT, -ESTALE, -ENXIO or -EACCES; 0 if there is */
int gmem_piece_error(struct gmem_piece piece);

/* The inline part of gmem_view_hva(), which has nothing to say when it cannot answer */
static inline bool gmem_table_hva(const struct gmem_table *table, uint64_t gpa, uint64_t size,
				  void **ret)
{
	const uint64_t within = gpa & 0x1fffff;
	uint64_t entry;

	if (gpa >> 30 >= table->gib_count || size - 1 > 0x1fffff - within)
		return false;

	entry = table->gibs[gpa >> 30][gpa >> 21 & 511];
	*ret = (void *)(uintptr_t)(gpa + entry - 1);
	return entry & 1;
}

/* A new table that shares everything with @old (or NULL), to be refreshed where it changed */
int gmem_table_new(const struct gmem_table *old, const struct gmem_range_map *regions,
		   struct gmem_table **ret);
/* What a table is made from */
struct gmem_layout {
	const struct gmem_range_map *regions;
	const struct gmem_range_map *privates;
};

int gmem_table_refresh(struct gmem_table *table, const struct gmem_table *old,
		       const struct gmem_layout *layout, uint64_t start, uint64_t size);
/* Free what @kept (or NULL) does not share. */
void gmem_table_free(const struct gmem_table *table, const struct gmem_table *kept);

/* ---- counters: what happened, counted where it happens ---- */

enum gmem_counter {
	GMEM_COUNT_MADE_PRIVATE,	/* bytes */
	GMEM_COUNT_MADE_SHARED,		/* bytes */
	GMEM_COUNT_CONVERSIONS,
	GMEM_COUNT_CONVERT_IOCTLS,
	GMEM_COUNT_DISCARDS,
	GMEM_COUNT_DISCARDED,		/* bytes */
	GMEM_COUNT_FAULTS_PRIVATE,
	GMEM_COUNT_FAULTS_SHARED,
	GMEM_COUNT_FAULTS_LATE,
	GMEM_COUNT_FAULTS_STUCK,
	GMEM_COUNT_FAULTS_HOLE,
	GMEM_COUNT_FAULTS_REFUSED,
	GMEM_COUNT_FAULTS_POISON,
	GMEM_COUNT_FAULTS_STRANGE,
	GMEM_COUNT_FAULTS_NOWHERE,
	GMEM_COUNT_REQUESTS,
	GMEM_COUNT_REQUESTS_REFUSED,
	GMEM_COUNTERS
};

/* Relaxed atomics: each is right, several are not of one moment */
struct gmem_counters {
	uint64_t n[GMEM_COUNTERS];
};

static inline void gmem_count(struct gmem_counters *counters, enum gmem_counter which,
			      uint64_t by)
{
	__atomic_fetch_add(&counters->n[which], by, __ATOMIC_RELAXED);
}

/* ---- vm ---- */

/* How a guest_memfd is converted in place, once that was proven; request 0: it is not */
struct gmem_inplace {
	unsigned long request;
	uint64_t create_flags;
};

struct gmem_step;

/* Somebody who must agree before regions go, and hears when a change is over */
struct gmem_watch {
	struct gmem_watch *next;
	int (*before)(struct gmem_watch *watch, const struct gmem_step *steps, size_t count);
	void (*after)(struct gmem_watch *watch);	/* whether it was done or not */
};

struct gmem_vm {
	pthread_mutex_t watch_lock;	/* taken before change_lock: a change, and who watches */
	struct gmem_watch *watches;
	pthread_mutex_t change_lock;	/* one change at a time; taken before lock */
	pthread_mutex_t lock;		/* the books: everything below up to hvas */
	int fd;
	bool has_default_plan;
	struct gmem_caps caps;
	struct gmem_plan default_plan;
	struct gmem_inplace inplace;
	gmem_log_fn log;
	void *log_data;
	struct gmem_slots slots;
	struct gmem_range_map regions;	/* by gpa */
	struct gmem_range_map hvas;	/* by host address */
	struct gmem_region *stuck;	/* their memslots could not be deleted, see change.c */

	/* Written with both locks held, read with either */
	struct gmem_range_map privates;	/* the record: what is private in the kernel */
	/* with lock */
	struct gmem_range_map owed;	/* where the side not in use is yet to be discarded */
	struct gmem_lease *leases;
	struct gmem_claim *claims;	/* in the order they came */
	pthread_cond_t released;	/* a lease, or a claim */
	struct gmem_listener *listeners;	/* see listener.c */

	const struct gmem_table *table;	/* read without a lock; NULL before the first view */
	pthread_mutex_t views_lock;
	struct gmem_reader *views;
	bool fence;			/* membarrier() is not to be had */
	struct gmem_counters counters;
};

/* What a handle has even where there is no VM to manage: locks, books, readers */
void gmem_vm_begin(struct gmem_vm *vm);
void gmem_vm_end(struct gmem_vm *vm);
void gmem_vm_watch(struct gmem_vm *vm, struct gmem_watch *watch);
void gmem_vm_unwatch(struct gmem_vm *vm, struct gmem_watch *watch);
/* Pass the sentence of a failure to the VM's log; returns @err. */
int gmem_vm_report(struct gmem_vm *vm, int err);
/* Readers that begin from now on see @table, NULL if there have been none. */
void gmem_vm_publish(struct gmem_vm *vm, const struct gmem_table *table);
/* Until no reader holds an older table */
void gmem_vm_wait_for_views(struct gmem_vm *vm);

/* ---- state: the record of what is private ---- */

/* Tell the kernel, and try again within bounds; -errno and its sentence. Not the record. */
int gmem_vm_set_private(const struct gmem_vm *vm, const struct gmem_part *part, bool to_private);

/* The same for a part of a region, by the region's own way of backing */
int gmem_region_set_private(const struct gmem_region *region, const struct gmem_part *part,
			    bool to_private, uint32_t wait_ms);

/* ---- inplace: attributes on the guest_memfd itself ---- */

/* Try it in the VM and write the report's line; -EINVAL if the options cannot be right. */
int gmem_inplace_prove(const struct gmem_inplace_opts *opts, int vm_fd,
		       struct gmem_inplace *ret, struct gmem_line *line);
/* Wait for pinned pages, then -EBUSY */
int gmem_inplace_convert(const struct gmem_region *region, const struct gmem_part *part,
			 bool to_private, uint32_t wait_ms);

/*
 * Count what of a range, all of which is memory or has been, is about to change
 * its state. Before the record changes, and with the lock held.
 */
void gmem_state_count(struct gmem_vm *vm, uint64_t gpa, uint64_t size, bool to_private);
/* Bytes of it that are private, with either lock held */
uint64_t gmem_state_private(const struct gmem_vm *vm, uint64_t gpa, uint64_t size);

/* ---- lease: who uses a range; all with the VM's lock held ---- */

struct gmem_lease {
	struct gmem_vm *vm;
	struct gmem_lease *next;
	struct gmem_lease **link;
	uint64_t gpa;
	uint64_t size;
	char holder[64];
};

/* A conversion under way, or waiting to be */
struct gmem_claim {
	uint64_t gpa;
	uint64_t size;
	struct gmem_claim *next;
	bool to_private;		/* or as if: no lease gets along with it */
	bool discards;			/* and not a conversion at all */
	bool is_active;			/* not waiting any more */
};

/* Wait for those ahead, and if @to_private for leases: -EBUSY after @wait_ms of that */
int gmem_claim_take(struct gmem_vm *vm, struct gmem_claim *claim, uint32_t wait_ms);
void gmem_claim_drop(struct gmem_vm *vm, struct gmem_claim *claim);
/* A conversion is at work there: the layout must wait for it, with vm->released. */
bool gmem_claim_is_active(const struct gmem_vm *vm, uint64_t gpa, uint64_t size);
/* -EBUSY, and its sentence, if somebody holds a lease there */
int gmem_lease_check(const struct gmem_vm *vm, uint64_t gpa, uint64_t size);

/* ---- listener: who is told of conversions and removals ---- */

/*
 * With a claim, or with change_lock: the list stands. @runs are the ranges that
 * change, in nodes; those within [@gpa, @last] are told.
 */
/* Before they become private; if one refuses, the others have been told to undo it. */
int gmem_listeners_ask(const struct gmem_vm *vm, const struct gmem_range_map *runs, uint64_t gpa,
		       uint64_t last);
void gmem_listeners_undo(const struct gmem_vm *vm, const struct gmem_range_map *runs,
			 uint64_t gpa, uint64_t last);
void gmem_listeners_shared(const struct gmem_vm *vm, const struct gmem_range_map *runs,
			   uint64_t gpa, uint64_t last);
void gmem_listeners_removed(const struct gmem_vm *vm, uint64_t gpa, uint64_t size);

/* ---- view ---- */

struct gmem_reader {
	struct gmem_view view;
	struct gmem_vm *vm;
	struct gmem_reader *next;
	bool fast;			/* pages that cannot be reached are recovered from */
};

static inline bool gmem_view_is_fast(const struct gmem_view *view)
{
	return GMEM_CONTAINER_OF(view, struct gmem_reader, view)->fast;
}

/* The first piece of a range that lies in one piece for the host; -errno and its sentence */
int gmem_view_piece(const struct gmem_view *view, uint64_t gpa, uint64_t size,
		    struct iovec *ret);
/* The same, to write there: -EROFS where that cannot be */
int gmem_view_piece_to_write(const struct gmem_view *view, uint64_t gpa, uint64_t size,
			     struct iovec *ret);

/* ---- region: what a region is made of ---- */

struct gmem_region {
	struct gmem_range gpa;
	struct gmem_range hva;
	struct gmem_range bound;	/* in file->bound if the memslot has the file */
	struct gmem_map maps[2];	/* of which one, unless a rebind is under way, is */
	struct gmem_map *map;		/* in file->pinned, if the host address is the file's */
	struct gmem_vm *vm;
	struct gmem_file *file;
	struct gmem_region *next_stuck;
	uint64_t file_offset;
	uint64_t align;
	uint32_t slot;
	uint32_t slot_flags;
	uint32_t backing;
	bool congruent;
	bool hva_chosen;		/* by the caller, with GMEM_REGION_HVA */
	bool is_device;
	bool read_only;			/* to the host; only of an import */
	bool has_slot;			/* the kernel has a memslot of this number */
	bool lost;			/* and it is not ours as it should be: -ENOTRECOVERABLE */
	struct gmem_counters counters;	/* of a region that stays what it is meanwhile */
};

/* For the region, and for its VM */
static inline void gmem_region_count(struct gmem_region *region, enum gmem_counter which,
				     uint64_t by)
{
	gmem_count(&region->counters, which, by);
	gmem_count(&region->vm->counters, which, by);
}

/* What an add was asked to do, checked */
struct gmem_order {
	struct gmem_region_opts opts;
	const struct gmem_plan *plan;
};

int gmem_region_check(const struct gmem_vm *vm, uint64_t gpa, uint64_t size,
		      const struct gmem_region_opts *opts, struct gmem_order *order);
int gmem_region_check_gpa(const struct gmem_vm *vm, uint64_t gpa, uint64_t size);

/* A handle that owns nothing yet; free() frees it. */
int gmem_region_new(struct gmem_vm *vm, uint64_t gpa, uint64_t size,
		    const struct gmem_order *order, struct gmem_region **ret);
int gmem_region_acquire(struct gmem_region *region, const struct gmem_order *order);
/* Give back what others may use at once; take it again, if they did not; give back the rest. */
void gmem_region_yield(struct gmem_region *region);
void gmem_region_retake(struct gmem_region *region);
void gmem_region_dispose(struct gmem_region *region);

struct gmem_kvm_slot gmem_region_memslot(const struct gmem_region *region);

int gmem_region_cut(struct gmem_region *region, uint64_t offset, struct gmem_region *upper);
void gmem_region_uncut(struct gmem_region *region, struct gmem_region *upper);

/* Part of a file, for a region to have instead of what it has */
struct gmem_binding {
	struct gmem_file *file;
	uint64_t offset;
	struct gmem_map *map;
};

int gmem_region_check_binding(const struct gmem_region *region, const struct gmem_binding *to);
/* Afterwards @binding is what the region had, until it is swapped back or dropped. */
int gmem_region_swap_file(struct gmem_region *region, struct gmem_binding *binding);
void gmem_region_unswap_file(struct gmem_region *region, struct gmem_binding *binding);
void gmem_region_drop_binding(struct gmem_region *region, struct gmem_binding *binding);

/* ---- side: the memory of a region where it is shared, and where it is private ---- */

#define GMEM_SIDE_SHARED	1u
#define GMEM_SIDE_PRIVATE	2u

/* What a range of a region is made of on one side */
struct gmem_side {
	struct gmem_file *file;		/* NULL: host memory */
	uint64_t offset;		/* in it */
	void *hva;			/* where it is mapped for the region; NULL: nowhere */
	bool is_callers;		/* host memory that the region borrowed */
};

/*
 * The caller of these sees to it that the region keeps its size and its memory
 * meanwhile. @offset is from the start of the region. -ENXIO: a device's range,
 * -EOPNOTSUPP: only backing "private" has a private side.
 */
int gmem_side_get(const struct gmem_region *region, uint32_t side, uint64_t offset,
		  uint64_t size, struct gmem_side *ret);
/*
 * Both sides are the same bytes: a private guest_memfd with GMEM_CREATE_MMAP. What is
 * stale after a conversion is then nothing.
 */
bool gmem_side_is_both(const struct gmem_region *region);
/*
 * Give the memory back to the host. What is there next is zero, except in the
 * caller's own memory if that is locked or a private mapping of a file. Bytes
 * finished in @ret_done (or NULL), also on failure.
 */
int gmem_side_discard(struct gmem_region *region, uint32_t side, uint64_t offset,
		      uint64_t size, uint64_t *ret_done);
/*
 * Bytes that are in memory. Of a file what is allocated, by whomever; of host
 * memory what is mapped here, pages of zeros included. -EOPNOTSUPP: the file
 * cannot be mapped, and this kernel has no cachestat(2).
 */
int gmem_side_resident(const struct gmem_region *region, uint32_t side, uint64_t offset,
		       uint64_t size, uint64_t *ret_bytes);

/* ---- presence: which pages of a side exist ---- */

/* @offset is from the start of the region; anything but 0 ends the walk */
typedef int (*gmem_presence_fn)(void *data, uint64_t offset, uint64_t size);

/*
 * Call @fn, in order, for each run of pages that may hold something else than
 * zero. Allocates none. What cannot be told apart counts as there: the caller's
 * own memory, a file that can neither be mapped nor counted. 0, what @fn
 * returned, or the kernel's errno.
 */
int gmem_side_presence(const struct gmem_region *region, uint32_t side, uint64_t offset,
		       uint64_t size, gmem_presence_fn fn, void *data);

/* ---- piece: a range, region by region and state by state ---- */

struct gmem_vm_piece {
	struct gmem_region *region;
	uint32_t side;		/* the one the guest uses */
	uint64_t offset;	/* in the region */
	uint64_t size;
};

typedef int (*gmem_piece_fn)(void *data, const struct gmem_vm_piece *piece);

/* What @gmem_vm_each_piece() does about others who use the range */
enum gmem_company {
	GMEM_WITH_LEASES,
	GMEM_ALONE,		/* -EBUSY while somebody holds a lease; none is given */
};

/*
 * Call @fn for each, lowest first, with the layout and the states of the range
 * held as they are and no lock held. -ENOENT or -ENXIO where there is no
 * memory, with the pieces before it done, or what @fn returned first.
 */
int gmem_vm_each_piece(struct gmem_vm *vm, uint64_t gpa, uint64_t size,
		       enum gmem_company company, uint32_t wait_ms, gmem_piece_fn fn, void *data);
/* The same error if part of it is no memory, at this moment */
int gmem_vm_check_memory(struct gmem_vm *vm, uint64_t gpa, uint64_t size);
/* Bytes in memory, of the side the guest uses: see gmem_side_resident() */
int gmem_vm_resident(struct gmem_vm *vm, uint64_t gpa, uint64_t size, uint64_t *ret_bytes);

/* ---- hold: the memory of a transfer ---- */

struct gmem_held {
	struct gmem_region *region;
	uint64_t gpa;
	uint64_t size;
	uint64_t offset;	/* from the start of the region */
	char *hva;		/* of gpa */
	bool in_file;
};

/* A region, or as much of it as was asked for */
struct gmem_hold_region {
	uint64_t gpa;
	uint64_t size;
	uint32_t backing;
};

/* All in GPA order */
struct gmem_hold {
	struct gmem_held *all;		/* shared memory, with leases */
	size_t count;
	struct gmem_hold_region *regions;
	size_t region_count;
	struct gmem_part *privates;	/* in these regions: what cannot be held */
	size_t private_count;
	struct gmem_lease **leases;
	size_t lease_count;
	bool fast;			/* pages that cannot be reached are recovered from */
};

struct gmem_stored {
	uint64_t data;
	uint64_t zero;		/* and not written */
};

bool gmem_is_zero(const void *bytes, size_t size);

/* The memory in [@start, @last], as it is until it is dropped */
int gmem_hold_take(struct gmem_vm *vm, uint64_t start, uint64_t last, const char *holder,
		   struct gmem_hold *ret);
void gmem_hold_drop(struct gmem_hold *hold);
bool gmem_hold_is_private(const struct gmem_hold *hold, uint64_t gpa);
uint64_t gmem_hold_bytes(const struct gmem_hold *hold);
uint64_t gmem_hold_private_bytes(const struct gmem_hold *hold);
/* NULL: none of it is there */
const struct gmem_held *gmem_hold_at(const struct gmem_hold *hold, uint64_t gpa);
/* Bytes from @gpa on without a hole */
uint64_t gmem_hold_reach(const struct gmem_hold *hold, uint64_t gpa);
/* Make it zero, or these bytes, of any alignment. */
int gmem_hold_clear(const struct gmem_hold *hold, uint64_t gpa, uint64_t size);
int gmem_hold_store(const struct gmem_hold *hold, uint64_t gpa, const char *bytes,
		       uint64_t size, struct gmem_stored *stored);

/* ---- transfer: between files and guest memory ---- */

struct gmem_transfer {
	struct gmem_vm *vm;		/* NULL: an image that is only looked at */
	struct gmem_transfer_opts opts;
	struct gmem_hold hold;
	struct gmem_io io;
	/* 0, -EAGAIN, or an errno that calling again may not meet again */
	int (*step)(struct gmem_transfer *transfer, bool wait);
	void (*end)(struct gmem_transfer *transfer);
	void *state;			/* of the step's; zero at first, freed at the end */
	uint64_t done, total;
	struct gmem_stored bytes;
	uint64_t private_bytes;
	bool is_done;
};

int gmem_transfer_check(const struct gmem_transfer_opts *user_opts, uint64_t flags,
			struct gmem_transfer_opts *ret);
int gmem_transfer_look_at(const struct gmem_transfer_opts *opts, int fd, bool writing,
			  uint64_t offset, struct gmem_io_order *ret);
/* Without memory and file yet */
int gmem_transfer_new(struct gmem_vm *vm, const struct gmem_transfer_opts *opts,
		      size_t state_size, struct gmem_transfer **ret);
int gmem_transfer_fail_io(const struct gmem_transfer *transfer, int err);
int gmem_transfer_run(int err, struct gmem_transfer *transfer, struct gmem_transfer_result *ret);

/* ---- numa ---- */

/* Add to the counts in @pages. Maps what it looks at for itself; allocates none. */
int gmem_side_count_nodes(const struct gmem_region *region, uint32_t side, uint64_t offset,
			  uint64_t size, struct gmem_numa_pages *pages);

/* ---- change: all of it or nothing ---- */

enum gmem_step_kind {
	GMEM_STEP_ADD,
	GMEM_STEP_REMOVE,
	GMEM_STEP_MOVE,
	GMEM_STEP_SPLIT,
	GMEM_STEP_REBIND,
};

struct gmem_step {
	enum gmem_step_kind kind;
	struct gmem_region *region;
	struct gmem_region **ret;	/* ADD */
	struct gmem_order order;	/* ADD */
	uint64_t gpa;			/* MOVE */
	uint64_t offset;		/* SPLIT */
	struct gmem_region *upper;	/* SPLIT, else NULL */
	struct gmem_binding binding;	/* REBIND */
	struct gmem_range *spares[2];	/* REMOVE, for the record and what is owed */

	/* while it is applied */
	uint64_t old_gpa;
	struct gmem_kvm_slot old, new[2];
	unsigned int new_count, added;
	uint64_t shared_again;		/* REMOVE: bytes from the start that are */
	bool has_old, deleted, failed, stuck;
};

int gmem_apply_steps(struct gmem_vm *vm, struct gmem_step *steps, size_t count);

/* ---- extent: files that may go from one process to another ---- */

/* What of a file matters to whoever gives it away or gets it */
struct gmem_extent_file {
	uint64_t size;
	uint64_t page_size;
	uint32_t rights;	/* GMEM_RIGHT_*: what its seals leave */
	bool can_shrink;
	bool is_gmemfd;
};

/* -EINVAL if it is of a kind that is not exchanged, or not as long as it should be */
int gmem_extent_inspect(int fd, uint64_t offset, uint64_t size, struct gmem_extent_file *ret);

/* ---- wire: messages between an export and an import, see docs/export-protocol.md ---- */

#define GMEM_WIRE_BYTES 64

enum gmem_wire_type {
	GMEM_WIRE_HELLO = 1,
	GMEM_WIRE_MAP = 2,
	GMEM_WIRE_UNMAP = 3,
	GMEM_WIRE_REVOKE = 4,
	GMEM_WIRE_GRANT = 5,
	GMEM_WIRE_READY = 6,
	GMEM_WIRE_ANSWER = 7,
};

/* Beside GMEM_RIGHT_*: nothing of it may be touched before it is granted. */
#define GMEM_WIRE_WITHHELD (1u << 15)

struct gmem_message {
	uint32_t type;
	uint32_t sequence;
	uint32_t status;	/* ANSWER: 0, or a positive errno */
	uint32_t page_size;
	uint64_t id;
	uint64_t gpa;
	uint64_t size;
	uint64_t offset;
	uint64_t file_size;
	uint32_t rights;
	uint32_t backing;
};

const char *gmem_wire_name(uint32_t type);
void gmem_wire_encode(const struct gmem_message *message, uint8_t bytes[GMEM_WIRE_BYTES]);
/* -EPROTO, and a sentence, for all that is not as the protocol has it */
int gmem_wire_decode(const uint8_t *bytes, size_t size, struct gmem_message *ret);

int gmem_wire_check_socket(int fd);
int gmem_wire_send(int sock, const struct gmem_message *message, int passed);
/* 1, or 0 if there is none now, -EPIPE if there will be none; @ret_fd: the caller's, or -1 */
int gmem_wire_receive(int sock, struct gmem_message *ret, int *ret_fd);

/* ---- export: the memory of a VM, for others ---- */

struct gmem_export {
	struct gmem_watch watch;
	struct gmem_vm *vm;
	uint64_t flags;
	pthread_mutex_t lock;		/* after vm->watch_lock, before vm->lock */
	struct gmem_range_map memory;	/* by hva: what gmem_export_add_memory() said */
	struct gmem_peer *peers;
	struct gmem_range_map leaving;	/* by gpa: what a change under way will take */
	struct gmem_range *leaving_nodes;
	size_t leaving_count;
	struct gmem_listener *listener;
	struct gmem_range_map withheld;	/* what is private, or becomes so */
	struct gmem_want *wants;	/* conversions that wait for peers */
	int event;			/* set when there may be something to send */
	int epoll;			/* that, and the peers' sockets */
};

/* The region at or above @gpa that has memory; with the VM's lock held */
const struct gmem_region *gmem_export_next_region(const struct gmem_vm *vm, uint64_t gpa);
/* How a region can be given; with the locks of the export and of its VM held */
int gmem_export_extent(const struct gmem_export *exporter, const struct gmem_region *region,
		       struct gmem_extent *ret);

/* ---- peer: the processes an export gives memory to ---- */

/* For the listener of an export, which @data is */
int gmem_peers_revoke(void *data, uint64_t gpa, uint64_t size);
void gmem_peers_grant(void *data, uint64_t gpa, uint64_t size);
void gmem_peers_forget(void *data, uint64_t gpa, uint64_t size);
int gmem_peers_before(struct gmem_watch *watch, const struct gmem_step *steps, size_t count);
void gmem_peers_after(struct gmem_watch *watch);

#endif
