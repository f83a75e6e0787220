/* SPDX-License-Identifier: MIT */
/*
 * The time goes into the kernel's work for each page, so each call covers many pages, and
 * is the cheapest for its memory:
 *   guest_memfd, mapped   MADV_POPULATE_READ, which maps pages writable without the
 *                         bookkeeping of a write
 *   private side          fallocate(), since it has no mapping
 *   host memory           MADV_POPULATE_WRITE: reading would only map the zero page
 *
 * The range is divided into lanes, one for each expected thread, and lanes into chunks. A
 * thread works through its own lane, then helps in the others.
 */
#include "pages/populate.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/check.h"
#include "base/error.h"
#include "base/kind.h"
#include "base/lock.h"
#include "base/numa_thread.h"
#include "base/opts.h"
#include "base/wait_budget.h"
#include "nofault/nofault.h"
#include "os/sys.h"
#include "os/thread.h"
#include "os/usdt.h"
#include "pages/section.h"
#include "region/available.h"
#include "region/region.h"
#include "region/region_memory.h"
#include "region/vm_core.h"
#include "state/claim.h"
#include "state/listener.h"

/* Calls for more than 64 MiB are no faster, calls for less than 2 MiB are slower. */
#define LARGEST_CHUNK	(UINT64_C(64) << 20)
#define SMALLEST_CHUNK	(UINT64_C(2) << 20)
#define CHUNKS_PER_LANE	4

#define BOTH_SIDES	(GMEM_POPULATE_SHARED_SIDE | GMEM_POPULATE_PRIVATE_SIDE)

/* Retries of madvise() after -EINTR */
#define MAX_INTERRUPTIONS 1000

struct lane {
	uint64_t next;	/* offset in the range of the next chunk; atomic */
	uint64_t end;
};

struct gmem_populate {
	struct gmem_vm *vm;
	struct gmem_populate_opts opts;
	uint64_t gpa;
	uint64_t size;
	uint64_t chunk;
	struct gmem_vm_resident before;	/* at first; nothing, unless is_counting */
	bool is_counting;	/* the kernel can count resident bytes */
	uint32_t lane_count;
	uint32_t next_lane;	/* atomic */
	int is_cancelled;	/* atomic */
	int outcome;		/* the first failure; atomic, written with the lock held */
	struct gmem_lock lock;	/* rank POPULATE; guards done, sentence, and calls of progress */
	uint64_t done;
	char sentence[320];
	struct lane lanes[];
};

/* A thread at work */
struct worker {
	struct gmem_populate *job;
	bool is_ours;		/* started by the library, which may change its affinity */
	struct gmem_numa_thread thread;
	struct gmem_wait_budget budget;	/* of its own: workers wait at the same time */
};

/* ---- one section ---- */

/*
 * For kernels before Linux 5.14. A compare-and-exchange of a byte with itself is a write
 * that changes nothing, even if the guest writes there meanwhile.
 */
static int fault_in_for_writing(bool fast, uint8_t *p)
{
	int swapped = 0, err;
	uint8_t seen = 0;

	do {
		err = gmem_nofault_cmpxchg8(fast, p, &seen, seen, __ATOMIC_RELAXED, &swapped);
	} while (!err && !swapped);
	return err;
}

static int fault_in_pages(const struct gmem_region_memory *memory, uint64_t size, bool for_writing)
{
	bool fast = gmem_nofault_is_recoverable();
	uint64_t page = gmem_sys_page_size();
	uint8_t *p = memory->hva, byte;
	int err = 0;

	for (uint64_t done = 0; done < size && !err; done += page)
		err = for_writing ? fault_in_for_writing(fast, p + done)
				  : gmem_nofault_load8(fast, p + done, __ATOMIC_RELAXED, &byte);
	return err;
}

static int advise(const struct gmem_region_memory *memory, uint64_t size, int advice)
{
	int interruptions = 0, err;

	do {
		err = gmem_sys_madvise(memory->hva, size, advice);
	} while (err == -EINTR && ++interruptions < MAX_INTERRUPTIONS);
	return err;
}

/* For the host, too: the caller's mapping, or that of a file which is not for writing */
static bool may_be_read_only(const struct gmem_region *region, const struct gmem_region_memory *memory)
{
	return (memory->is_callers || memory->host_file) && gmem_region_is_read_only(region);
}

static int populate_mapped(const struct gmem_region *region,
			   const struct gmem_region_memory *memory, uint64_t size)
{
	bool for_writing = !memory->file;
	int err;

	/* A sandbox that does not know the advice is as a kernel before Linux 5.14. */
	err = advise(memory, size, for_writing ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);
	if (err == -EINVAL && may_be_read_only(region, memory)) {
		for_writing = false;
		err = advise(memory, size, MADV_POPULATE_READ);
	}
	return err == -EINVAL || err == -EPERM || err == -ENOSYS ? fault_in_pages(memory, size, for_writing) : err;
}

/*
 * Returns 0 or the error of one page. If memory ran out, to try again would take more: then
 * only what is not mapped counts, for which madvise() has the same errno.
 */
static int try_page(const struct gmem_region *region, const struct gmem_region_memory *page, int err)
{
	uint64_t size = gmem_sys_page_size();
	unsigned char in_memory;

	if (err != -ENOMEM)
		return populate_mapped(region, page, size);
	return gmem_sys_mincore(page->hva, size, &in_memory) == -ENOMEM ? -EFAULT : 0;
}

/*
 * The kernel does not say which page it could not provide, so this tries one after the
 * other: those before it are there by now.
 */
static int fail_populating(const struct gmem_section *section,
			   const struct gmem_region_memory *memory, int err)
{
	const struct gmem_region *region = section->region;
	bool writes = !memory->file && !may_be_read_only(region, memory);
	uint64_t gpa = region->gpa.start + section->offset, page = gmem_sys_page_size(), done;
	struct gmem_region_memory at = *memory;
	const char *why;
	int now = 0;

	for (done = 0; done < section->size && err != -EINTR; done += page) {
		at.hva = (char *)memory->hva + done;
		now = try_page(region, &at, err);
		if (now)
			break;
	}
	if (!now)
		return gmem_fail(err, "populating gpa 0x%" PRIx64 ", 0x%" PRIx64 " bytes: %s", gpa,
				 section->size, gmem_errno_name(err));

	why = gmem_nofault_why(at.hva, writes, now);
	if (now == -EFAULT && memory->page_size > page)
		why = "as where no huge page is free";
	return gmem_fail(now, "populating gpa 0x%" PRIx64 ", hva 0x%" PRIxPTR ": %s%s%s", gpa + done,
			 (uintptr_t)at.hva, gmem_errno_name(now), why ? ", " : "", why ? why : "");
}

/* Check again before each section: others may have allocated memory meanwhile. */
static int check_section_fits(const struct gmem_populate *job, const struct gmem_section *section)
{
	if (job->opts.flags & GMEM_POPULATE_UNCHECKED || !job->is_counting)
		return 0;
	return gmem_region_check_fits(section->region, section->side, section->offset, section->size);
}

static int populate_section(struct worker *worker, const struct gmem_section *section)
{
	const struct gmem_populate *job = worker->job;
	struct gmem_region_memory memory;
	int err;

	err = gmem_region_memory_get(section->region, section->side, section->offset,
				     section->size, &memory);
	if (!err)
		err = check_section_fits(job, section);
	if (err)
		return err;

	if (worker->is_ours)
		gmem_numa_move_thread(&worker->thread, memory.hva);
	if (memory.file &&
	    (!memory.hva || section->is_private || job->opts.flags & GMEM_POPULATE_RESERVE))
		return gmem_file_allocate(memory.file, memory.offset, section->size, NULL);

	err = populate_mapped(section->region, &memory, section->size);
	return err ? fail_populating(section, &memory, err) : 0;
}

/* The side that the caller chose; 0: the one that the guest uses */
static uint32_t side_of(const struct gmem_populate *job)
{
	if (job->opts.flags & GMEM_POPULATE_SHARED_SIDE)
		return GMEM_SIDE_SHARED;
	return job->opts.flags & GMEM_POPULATE_PRIVATE_SIDE ? GMEM_SIDE_PRIVATE : 0;
}

/* Which memory is populated */
static uint32_t uses_of(const struct gmem_populate *job)
{
	return job->opts.flags & GMEM_POPULATE_ALL_KINDS ? 0 : GMEM_USE_POPULATE;
}

static int populate_and_tell(void *data, const struct gmem_section *found)
{
	struct gmem_section section = *found;
	struct worker *worker = data;
	struct gmem_region_info region;
	struct gmem_listener_part part;
	int err;

	err = gmem_section_take_side(&section, side_of(worker->job));
	if (!err)
		err = populate_section(worker, &section);
	if (!err && gmem_section_part(&section, 0, &region, &part))
		gmem_listeners_populated(section.claim, &part);
	return err;
}

/* ---- chunks and lanes ---- */

/* Make all threads stop; the first failure is the outcome of the job. */
static void stop(struct gmem_populate *job, int err)
{
	gmem_lock_take(&job->lock);
	if (!job->outcome) {
		snprintf(job->sentence, sizeof(job->sentence), "%s", gmem_last_error());
		__atomic_store_n(&job->outcome, err, __ATOMIC_RELAXED);
	}
	gmem_lock_drop(&job->lock);
}

/* Does nothing if all is populated already. */
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

/* Called after each chunk, at most LARGEST_CHUNK bytes, by the thread that populated it. */
static void report(struct gmem_populate *job, uint64_t size)
{
	struct gmem_locks_aside aside;
	int unwanted = 0;

	gmem_lock_take(&job->lock);
	job->done += size;
	gmem_locks_set_aside(&aside);
	if (job->opts.progress && !job->outcome)
		unwanted = job->opts.progress(job->opts.progress_data, job->done, job->size);
	gmem_locks_restore(&aside);
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
		err = gmem_vm_each_section(job->vm, job->gpa + start, size, uses_of(job),
					   GMEM_CLAIM_SHARED, &worker->budget, populate_and_tell,
					   worker);
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
	struct worker worker = { .job = job, .is_ours = is_ours, .budget = gmem_vm_budget(job->vm, 0) };
	uint32_t home = __atomic_fetch_add(&job->next_lane, 1, __ATOMIC_RELAXED);

	for (uint32_t i = 0; i < job->lane_count; i++)
		run_lane(&worker, &job->lanes[(home + i) % job->lane_count]);
	return outcome(job);
}

GMEM_API int gmem_populate_run(struct gmem_populate *job)
{
	int err;

	if (!job)
		return gmem_fail(-EINVAL, "job is NULL");

	err = gmem_vm_enter(job->vm);
	return err ? err : gmem_vm_leave(job->vm, run(job, false));
}

GMEM_API void gmem_populate_cancel(struct gmem_populate *job)
{
	/* Only an atomic store, since a signal handler may call this. */
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

	/* All lanes have whole chunks, but the last ones may have less, or be empty. */
	share = (share / job->chunk + 1) * job->chunk;
	for (uint32_t i = 0; i < job->lane_count; i++) {
		job->lanes[i].next = at;
		at = job->size - at > share ? at + share : job->size;
		job->lanes[i].end = at;
	}
}

/* What is needed of huge pages, of which a range can have several sizes */
#define MAX_HUGE_SIZES 4

struct huge_need {
	uint32_t side;		/* as gmem_section_take_side() */
	uint64_t bytes;		/* also those that are there */
	struct {
		uint64_t page_size;
		uint64_t pages;
		const void *hva;
	} sizes[MAX_HUGE_SIZES];
};

static int add_huge_need(void *data, const struct gmem_section *found)
{
	struct gmem_section section = *found;
	struct huge_need *need = data;
	struct gmem_region_memory memory;
	struct gmem_resident bytes;
	uint64_t missing;
	int err;

	err = gmem_section_take_side(&section, need->side);
	if (!err)
		err = gmem_region_memory_get(section.region, section.side, section.offset, section.size,
					     &memory);
	if (err || memory.pool_page <= gmem_sys_page_size())
		return err;
	err = gmem_region_memory_bounds(section.region, section.side, section.offset, section.size,
					&bytes);
	if (err)
		return err;

	need->bytes += section.size;
	/* What may be there after all is no reason to refuse. */
	missing = gmem_count_missing_huge_pages(memory.hva, section.size, memory.page_size, bytes.most);
	for (size_t i = 0; i < MAX_HUGE_SIZES; i++) {
		if (need->sizes[i].page_size && need->sizes[i].page_size != memory.page_size)
			continue;
		need->sizes[i].page_size = memory.page_size;
		/* Of several mappings, some may have pages reserved and some not. */
		need->sizes[i].hva = need->sizes[i].pages ? NULL : memory.hva;
		need->sizes[i].pages += missing;
		break;
	}
	return 0;
}

static int check_huge_need(struct gmem_populate *job, uint64_t *ret_bytes)
{
	struct huge_need need = { .side = side_of(job) };
	int err = gmem_vm_look_at_sections(job->vm, job->gpa, job->size, uses_of(job), add_huge_need, &need);

	for (size_t i = 0; i < MAX_HUGE_SIZES && !err; i++)
		if (need.sizes[i].pages)
			err = gmem_check_huge_pages_fit(need.sizes[i].page_size, need.sizes[i].pages,
							need.sizes[i].hva);
	*ret_bytes = need.bytes;
	return err;
}

/* A count can exceed the size if pages came and went while it was taken. */
static uint64_t minus(uint64_t a, uint64_t b)
{
	return a > b ? a - b : 0;
}

/* Make all checks that are possible before the first page is populated. */
static int prepare(struct gmem_populate *job)
{
	uint64_t need, huge, there;
	int err;

	err = gmem_vm_check_memory(job->vm, job->gpa, job->size, uses_of(job),
				   "which only GMEM_POPULATE_ALL_KINDS populates", &need);
	if (err)
		return err;

	err = gmem_vm_resident(job->vm, job->gpa, job->size, side_of(job), &job->before);
	job->is_counting = !err;
	/* A sandbox that refuses mincore(2) is as a file that cannot be counted. */
	if (err && err != -EOPNOTSUPP && err != -EPERM && err != -ENOSYS)
		return err;
	if (job->opts.flags & GMEM_POPULATE_UNCHECKED)
		return 0;

	err = check_huge_need(job, &huge);
	if (err)
		return err;

	/* Huge pages take no ordinary memory, be they there or not: their counts are all left out. */
	need = minus(need, huge);
	there = minus(job->before.bytes, job->before.in_huge_pages);
	return gmem_check_memory_fits(minus(need, there));
}

static int check_opts(const struct gmem_populate_opts *opts)
{
	int err;

	err = gmem_check_flags("flags", opts->flags, GMEM_POPULATE_RESERVE | GMEM_POPULATE_UNCHECKED |
			       GMEM_POPULATE_ALL_KINDS | BOTH_SIDES);
	if (err)
		return err;
	if ((opts->flags & BOTH_SIDES) == BOTH_SIDES)
		return gmem_fail(-EINVAL, "the flags ask for the shared side and for the private one");
	if (opts->reserved)
		return gmem_fail(-EINVAL, "reserved is %" PRIu32 ", not 0", opts->reserved);
	return gmem_check_workers(opts->workers);
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

	job->vm = gmem_vm_ref(vm);
	job->opts = opts;
	job->gpa = gpa;
	job->size = size;
	job->lane_count = lanes;
	make_lanes(job);
	err = prepare(job);
	if (err) {
		gmem_vm_unref(vm);
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

	GMEM_PROBE(populate, gmem_vm_number(job->vm), job->gpa, job->size, job->done);
	gmem_lock_destroy(&job->lock);
	gmem_vm_unref(job->vm);
	free(job);
}

GMEM_API int gmem_populate_result(struct gmem_populate *job, struct gmem_footprint *ret)
{
	struct gmem_footprint result = { .done = 0 };
	struct gmem_vm_resident now;

	if (!job || !ret)
		return gmem_fail(-EINVAL, "%s is NULL", job ? "ret" : "job");

	gmem_lock_take(&job->lock);
	result.done = job->done;
	gmem_lock_drop(&job->lock);

	result.before = job->before.bytes;
	result.counted = job->is_counting &&
			 gmem_vm_resident(job->vm, job->gpa, job->size, side_of(job), &now) == 0;
	if (result.counted)
		result.after = now.bytes;
	*ret = result;
	return 0;
}

/* ---- threads for the duration of a call ---- */

static void *work(void *data)
{
	run(data, true);
	return NULL;
}

/* Start as many threads as possible: the calling thread can do all the work alone. */
static size_t start_threads(struct gmem_populate *job, pthread_t *threads, size_t count)
{
	size_t started = 0;

	while (threads && started < count &&
	       gmem_thread_start(work, job, GMEM_THREAD_CALLBACKS, &threads[started]) == 0)
		started++;
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

	/* Other threads may have failed after this one was done. */
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

	/* The claims of other threads are not known to wait for this one. */
	err = job->lane_count > 1 ? gmem_claim_check_not_owner(vm) : 0;
	if (err) {
		gmem_populate_free(job);
		return gmem_vm_log_error(vm, err);
	}

	err = run_with_threads(job);
	if (ret)
		gmem_populate_result(job, ret);
	if (err)
		outcome(job);	/* gmem_populate_result() may have replaced the sentence */
	gmem_populate_free(job);
	return gmem_vm_log_error(vm, err);
}
