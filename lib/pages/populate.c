/* SPDX-License-Identifier: MIT */
/*
 * Allocating guest memory before the guest asks for it.
 *
 * What costs time is the kernel's work for each page, so there is one call for
 * many pages, the cheapest there is: of a guest_memfd, MADV_POPULATE_READ maps
 * pages writable without the bookkeeping of a write; private sides have no
 * mapping, fallocate() allocates them; host memory has to be written to.
 *
 * The range is cut into lanes, one for each thread that is expected, and these
 * into chunks. A thread works through a lane of its own, then helps in others.
 */
#include "pages/populate.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/check.h"
#include "base/error.h"
#include "base/lock.h"
#include "base/macros.h"
#include "base/opts.h"
#include "nofault/nofault.h"
#include "os/kvm_compat.h"
#include "os/sys.h"
#include "os/usdt.h"
#include "pages/available.h"
#include "pages/numa_thread.h"
#include "pages/section.h"
#include "region/region.h"
#include "region/region_memory.h"
#include "region/vm_core.h"
#include "state/claim.h"

/* Beyond 64 MiB a call gains nothing, below 2 MiB it loses. */
#define LARGEST_CHUNK	(UINT64_C(64) << 20)
#define SMALLEST_CHUNK	(UINT64_C(2) << 20)
#define CHUNKS_PER_LANE	4

#define MAX_WORKERS	1024
#define MAX_INTERRUPTIONS 1000

/* What the kernel needs besides, for page tables and the like, is less than this part */
#define OVERHEAD_PART	256

struct lane {
	uint64_t next;	/* offset in the range; atomic */
	uint64_t end;
};

struct gmem_populate {
	struct gmem_vm *vm;
	struct gmem_populate_opts opts;
	uint64_t gpa;
	uint64_t size;
	uint64_t chunk;
	uint64_t before;
	bool is_counting;
	uint32_t lane_count;
	uint32_t next_lane;	/* atomic */
	int is_cancelled;	/* atomic */
	int outcome;		/* the first failure; atomic, written with the lock held */
	struct gmem_lock lock;	/* rank POPULATE: everything below, and calls of the progress function */
	uint64_t done;
	char sentence[320];
	struct lane lanes[];
};

/* A thread at work */
struct worker {
	struct gmem_populate *job;
	bool is_ours;		/* and may be moved about */
	struct gmem_numa_thread near;
};

/* ---- one piece ---- */

static uint64_t with_overhead(uint64_t size)
{
	return size + size / OVERHEAD_PART;
}

/*
 * For kernels before Linux 5.14. A write that changes nothing: whatever the
 * guest writes meanwhile stays.
 */
static int touch_for_writing(bool fast, uint8_t *p)
{
	int swapped = 0, err;
	uint8_t seen = 0;

	do {
		err = gmem_nofault_cmpxchg8(fast, p, &seen, seen, __ATOMIC_RELAXED, &swapped);
	} while (!err && !swapped);
	return err;
}

static int touch_pages(const struct gmem_region_memory *what, uint64_t size, bool for_writing)
{
	bool fast = gmem_nofault_is_recoverable();
	uint64_t page = gmem_sys_page_size();
	uint8_t *p = what->hva, byte;
	int err = 0;

	for (uint64_t done = 0; done < size && !err; done += page)
		err = for_writing ? touch_for_writing(fast, p + done)
				  : gmem_nofault_load8(fast, p + done, __ATOMIC_RELAXED, &byte);
	return err;
}

static int advise(const struct gmem_region_memory *what, uint64_t size, int advice)
{
	int interruptions = 0, err;

	do {
		err = gmem_sys_madvise(what->hva, size, advice);
	} while (err == -EINTR && ++interruptions < MAX_INTERRUPTIONS);
	return err;
}

static int populate_mapped(const struct gmem_region *region, const struct gmem_region_memory *what,
			   uint64_t size)
{
	bool for_writing = !what->file;
	int err;

	err = advise(what, size, for_writing ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);
	if (err == -EINVAL && what->is_callers && region->slot_flags & KVM_MEM_READONLY) {
		/* Perhaps the host may not write there either. */
		for_writing = false;
		err = advise(what, size, MADV_POPULATE_READ);
	}
	return err == -EINVAL ? touch_pages(what, size, for_writing) : err;
}

/* Again, for there may be less than there was when the first page was populated */
static int check_piece_fits(const struct gmem_populate *job, const struct gmem_section *piece)
{
	uint64_t bytes;

	if (job->opts.flags & GMEM_POPULATE_UNCHECKED || !job->is_counting)
		return 0;
	if (gmem_region_memory_resident(piece->region, piece->side, piece->offset, piece->size, &bytes))
		return 0;
	return bytes < piece->size ? gmem_check_available_memory(with_overhead(piece->size - bytes)) : 0;
}

static int populate_piece(void *data, const struct gmem_section *piece)
{
	struct worker *worker = data;
	const struct gmem_populate *job = worker->job;
	struct gmem_region_memory what;
	int err;

	err = gmem_region_memory_get(piece->region, piece->side, piece->offset, piece->size, &what);
	if (!err)
		err = check_piece_fits(job, piece);
	if (err)
		return err;

	if (worker->is_ours)
		gmem_numa_move_thread(&worker->near, what.hva);
	if (what.file && (!what.hva || job->opts.flags & GMEM_POPULATE_RESERVE))
		return gmem_file_allocate(what.file, what.offset, piece->size, NULL);

	err = populate_mapped(piece->region, &what, piece->size);
	if (err)
		return gmem_fail(err, "populating gpa 0x%" PRIx64 ", 0x%" PRIx64 " bytes: %s",
				 piece->region->gpa.start + piece->offset, piece->size,
				 gmem_errno_name(err));
	return 0;
}

/* ---- chunks and lanes ---- */

/* The first failure is everybody's. */
static void stop(struct gmem_populate *job, int err)
{
	gmem_lock_take(&job->lock);
	if (!job->outcome) {
		snprintf(job->sentence, sizeof(job->sentence), "%s", gmem_last_error());
		__atomic_store_n(&job->outcome, err, __ATOMIC_RELAXED);
	}
	gmem_lock_drop(&job->lock);
}

/* Unless it is too late for that */
static void cancel(struct gmem_populate *job)
{
	uint64_t done;

	gmem_lock_take(&job->lock);
	done = job->done;
	gmem_lock_drop(&job->lock);
	if (done == job->size)
		return;
	stop(job, gmem_fail(-ECANCELED, "populating gpa 0x%" PRIx64 " was cancelled after 0x%" PRIx64
			    " of 0x%" PRIx64 " bytes", job->gpa, done, job->size));
}

static bool may_go_on(struct gmem_populate *job)
{
	if (__atomic_load_n(&job->outcome, __ATOMIC_RELAXED))
		return false;
	if (!__atomic_load_n(&job->is_cancelled, __ATOMIC_RELAXED))
		return true;

	cancel(job);
	return false;
}

static void report(struct gmem_populate *job, uint64_t size)
{
	int unwanted = 0;

	gmem_lock_take(&job->lock);
	job->done += size;
	if (job->opts.progress && !job->outcome)
		unwanted = job->opts.progress(job->opts.progress_data, job->done, job->size);
	gmem_lock_drop(&job->lock);
	if (unwanted)
		cancel(job);
}

static bool take_chunk(struct gmem_populate *job, struct lane *lane, uint64_t *start,
		       uint64_t *size)
{
	*start = __atomic_fetch_add(&lane->next, job->chunk, __ATOMIC_RELAXED);
	if (*start >= lane->end)
		return false;

	*size = lane->end - *start < job->chunk ? lane->end - *start : job->chunk;
	return true;
}

static void run_lane(struct worker *worker, struct lane *lane)
{
	struct gmem_populate *job = worker->job;
	uint64_t start, size;
	int err;

	while (may_go_on(job) && take_chunk(job, lane, &start, &size)) {
		err = gmem_vm_each_section(job->vm, job->gpa + start, size, GMEM_CLAIM_SHARED, 0,
					   populate_piece, worker);
		if (err)
			stop(job, err);
		else
			report(job, size);
	}
}

static int outcome(struct gmem_populate *job)
{
	int err;

	gmem_lock_take(&job->lock);
	err = job->outcome;
	if (err)
		gmem_fail(err, "%s", job->sentence);
	gmem_lock_drop(&job->lock);
	return err;
}

static int run(struct gmem_populate *job, bool is_ours)
{
	struct worker worker = { .job = job, .is_ours = is_ours };
	uint32_t home = __atomic_fetch_add(&job->next_lane, 1, __ATOMIC_RELAXED);

	for (uint32_t i = 0; i < job->lane_count; i++)
		run_lane(&worker, &job->lanes[(home + i) % job->lane_count]);
	return outcome(job);
}

GMEM_API int gmem_populate_run(struct gmem_populate *job)
{
	if (!job)
		return gmem_fail(-EINVAL, "job is NULL");

	return run(job, false);
}

GMEM_API void gmem_populate_cancel(struct gmem_populate *job)
{
	/* Nothing else: it may be called by a signal handler. */
	if (job)
		__atomic_store_n(&job->is_cancelled, 1, __ATOMIC_RELAXED);
}

/* ---- the job ---- */

static void make_lanes(struct gmem_populate *job)
{
	uint64_t share = job->size / job->lane_count, at = 0;

	job->chunk = share / CHUNKS_PER_LANE / SMALLEST_CHUNK * SMALLEST_CHUNK;
	if (job->chunk < SMALLEST_CHUNK)
		job->chunk = SMALLEST_CHUNK;
	if (job->chunk > LARGEST_CHUNK)
		job->chunk = LARGEST_CHUNK;

	/* Whole chunks each; the last ones may have less, or nothing. */
	share = (share / job->chunk + 1) * job->chunk;
	for (uint32_t i = 0; i < job->lane_count; i++) {
		job->lanes[i].next = at;
		at = job->size - at > share ? at + share : job->size;
		job->lanes[i].end = at;
	}
}

/* All that can be found wrong before a page is populated */
static int prepare(struct gmem_populate *job)
{
	uint64_t need = job->size;
	int err;

	err = gmem_vm_check_memory(job->vm, job->gpa, job->size);
	if (err)
		return err;

	err = gmem_vm_resident(job->vm, job->gpa, job->size, &job->before);
	job->is_counting = !err;
	if (err && err != -EOPNOTSUPP)
		return err;
	if (job->opts.flags & GMEM_POPULATE_UNCHECKED)
		return 0;

	/* Some of it may have come and gone meanwhile. */
	if (job->is_counting)
		need = job->before < need ? need - job->before : 0;
	return need ? gmem_check_available_memory(with_overhead(need)) : 0;
}

static int check_opts(const struct gmem_populate_opts *opts)
{
	int err;

	err = gmem_check_flags("flags", opts->flags, GMEM_POPULATE_RESERVE | GMEM_POPULATE_UNCHECKED);
	if (err)
		return err;
	if (opts->reserved)
		return gmem_fail(-EINVAL, "reserved is %" PRIu32 ", not 0", opts->reserved);
	if (opts->workers > MAX_WORKERS)
		return gmem_fail(-EINVAL, "%" PRIu32 " workers are more than %d", opts->workers,
				 MAX_WORKERS);
	return 0;
}

static int new_job(struct gmem_vm *vm, uint64_t gpa, uint64_t size,
		   const struct gmem_populate_opts *user_opts, struct gmem_populate **ret)
{
	struct gmem_populate_opts opts;
	struct gmem_populate *job;
	uint32_t lanes;
	int err;

	err = GMEM_COPY_OPTS(gmem_populate_opts, &opts, user_opts, progress_data);
	if (!err)
		err = check_opts(&opts);
	if (!err)
		err = gmem_check_range("gpa", gpa, size);
	if (err)
		return err;

	lanes = opts.workers ? opts.workers : 1;
	job = calloc(1, sizeof(*job) + lanes * sizeof(job->lanes[0]));
	if (!job)
		return gmem_fail(-ENOMEM, "no memory for a job of %" PRIu32 " lanes", lanes);

	job->vm = vm;
	job->opts = opts;
	job->gpa = gpa;
	job->size = size;
	job->lane_count = lanes;
	make_lanes(job);
	err = prepare(job);
	if (err) {
		free(job);
		return err;
	}

	gmem_lock_init(&job->lock, GMEM_RANK_POPULATE);
	*ret = job;
	return 0;
}

GMEM_API int gmem_populate_new(struct gmem_vm *vm, uint64_t gpa, uint64_t size,
			       const struct gmem_populate_opts *opts, struct gmem_populate **ret)
{
	if (!vm || !ret)
		return gmem_fail(-EINVAL, "%s is NULL", vm ? "ret" : "vm");

	return gmem_vm_log_error(vm, new_job(vm, gpa, size, opts, ret));
}

GMEM_API void gmem_populate_free(struct gmem_populate *job)
{
	if (!job)
		return;

	GMEM_PROBE(populate, job->vm->fd, job->gpa, job->size, job->done);
	gmem_lock_destroy(&job->lock);
	free(job);
}

GMEM_API int gmem_populate_result(struct gmem_populate *job, struct gmem_footprint *ret)
{
	struct gmem_footprint result = { .done = 0 };

	if (!job || !ret)
		return gmem_fail(-EINVAL, "%s is NULL", job ? "ret" : "job");

	gmem_lock_take(&job->lock);
	result.done = job->done;
	gmem_lock_drop(&job->lock);

	result.before = job->before;
	result.counted = job->is_counting &&
			 gmem_vm_resident(job->vm, job->gpa, job->size, &result.after) == 0;
	*ret = result;
	return 0;
}

/* ---- threads for the duration of a call ---- */

static void *work(void *data)
{
	run(data, true);
	return NULL;
}

/* Signals are for the caller's threads. Those of faults are the thread's own. */
static void block_signals(sigset_t *ret_old)
{
	static const int faults[] = { SIGBUS, SIGSEGV, SIGILL, SIGFPE, SIGTRAP, SIGSYS };
	sigset_t blocked;

	sigfillset(&blocked);
	for (size_t i = 0; i < GMEM_ARRAY_SIZE(faults); i++)
		sigdelset(&blocked, faults[i]);
	gmem_sys_sigmask(SIG_BLOCK, &blocked, ret_old);
}

/* As many as can be had: this thread alone can do it all. */
static size_t start_threads(struct gmem_populate *job, pthread_t *threads, size_t count)
{
	size_t started = 0;
	sigset_t old;

	if (!threads)
		return 0;
	block_signals(&old);
	while (started < count && pthread_create(&threads[started], NULL, work, job) == 0)
		started++;
	gmem_sys_sigmask(SIG_SETMASK, &old, NULL);
	return started;
}

static int run_with_threads(struct gmem_populate *job)
{
	uint64_t chunks = job->size / job->chunk + 1;
	size_t count = job->lane_count < chunks ? job->lane_count : chunks;
	pthread_t *threads = malloc(count * sizeof(*threads));
	size_t started = start_threads(job, threads, count - 1);
	int err = run(job, false);

	while (started > 0)
		pthread_join(threads[--started], NULL);
	free(threads);

	/* Others may have failed after this one was done. */
	return err ? err : outcome(job);
}

GMEM_API int gmem_vm_populate(struct gmem_vm *vm, uint64_t gpa, uint64_t size,
			      const struct gmem_populate_opts *opts, struct gmem_footprint *ret)
{
	struct gmem_populate *job;
	int err;

	if (ret)
		*ret = (struct gmem_footprint){ .done = 0 };
	if (!vm)
		return gmem_fail(-EINVAL, "vm is NULL");

	err = new_job(vm, gpa, size, opts, &job);
	if (err)
		return gmem_vm_log_error(vm, err);

	err = run_with_threads(job);
	if (ret)
		gmem_populate_result(job, ret);
	if (err)
		outcome(job);	/* the sentence again */
	gmem_populate_free(job);
	return gmem_vm_log_error(vm, err);
}
