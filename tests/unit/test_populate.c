/* SPDX-License-Identifier: MIT */
/* populate: memory is allocated before the guest asks for it */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "unit.h"
#include "unit_alloc.h"

#define MIB	((uint64_t)1 << 20)
#define POOL	"/sys/kernel/mm/hugepages/hugepages-2048kB/"

static const struct unit_way shared_way = { "6.18", GMEM_BACKING_SHARED };
static const struct unit_way private_way = { "7.3-swp-t1", GMEM_BACKING_PRIVATE };

/* A region from guest address 0 on */
static struct gmem_region *begin(struct unit *unit, const struct unit_way *way, uint64_t size)
{
	unit_begin_vm(unit, way->kernel);
	return unit_region_backed(unit, 0, size / unit->page, way->backing);
}

/* A region from guest address 0 on that is private */
static void begin_private(struct unit *unit, uint64_t size)
{
	begin(unit, &private_way, size);
	assert_ok(gmem_vm_convert(unit->vm, 0, size, GMEM_STATE_PRIVATE, NULL, NULL));
}

/* Sets the contents of /proc/meminfo. */
static void set_available(const char *line)
{
	fake_set_file("/proc/meminfo", line);
}

/* ---- what is populated ---- */

static void every_page_is_there_and_keeps_what_it_has(void **state)
{
	struct gmem_footprint footprint;
	struct gmem_region *region;
	struct unit unit;
	char *hva;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(unit_ways); i++) {
		region = begin(&unit, &unit_ways[i], MIB);
		hva = gmem_region_hva(region);
		hva[unit.page + 5] = 'x';
		assert_ok(gmem_vm_populate(unit.vm, 0, MIB, NULL, &footprint));
		unit_check_footprint(&footprint, MIB, unit.page, MIB);
		assert_int_equal(hva[unit.page + 5], 'x');
		assert_int_equal(hva[MIB - 1], 0);

		/* Again: all of it is there. */
		assert_ok(gmem_vm_populate(unit.vm, unit.page, unit.page, NULL, &footprint));
		unit_check_footprint(&footprint, unit.page, unit.page, unit.page);
		unit_end(&unit);
	}
}

static void files_are_populated_by_reading_and_host_memory_by_writing(void **state)
{
	struct unit unit;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(unit_ways); i++) {
		bool is_host = unit_ways[i].backing == GMEM_BACKING_HOST ||
			       unit_ways[i].backing == GMEM_BACKING_PRIVATE;

		begin(&unit, &unit_ways[i], MIB);
		assert_ok(gmem_vm_populate(unit.vm, 0, MIB, NULL, NULL));
		assert_int_equal(fake_last_advice(),
				 is_host ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);
		unit_end(&unit);
	}
}

static void side_is_the_one_the_guest_uses(void **state)
{
	struct gmem_footprint footprint;
	struct gmem_region *region;
	struct unit unit;
	int fd;

	(void)state;
	region = begin(&unit, &private_way, MIB);
	fd = gmem_file_fd(gmem_region_file(region, NULL));
	assert_ok(gmem_vm_convert(unit.vm, PAGES(&unit, 2), PAGES(&unit, 3), GMEM_STATE_PRIVATE,
				  NULL, NULL));
	assert_ok(gmem_vm_populate(unit.vm, 0, PAGES(&unit, 8), NULL, &footprint));
	unit_check_footprint(&footprint, PAGES(&unit, 8), 0, PAGES(&unit, 8));
	assert_true(fake_is_allocated(fd, PAGES(&unit, 2), PAGES(&unit, 3)));
	assert_false(fake_is_allocated(fd, PAGES(&unit, 1), unit.page));
	assert_false(fake_is_allocated(fd, PAGES(&unit, 5), unit.page));
	unit_end(&unit);
}

/* Ahead of a conversion, or of one back */
static void side_may_be_chosen(void **state)
{
	GMEM_OPTS(gmem_populate_opts, shared, .flags = GMEM_POPULATE_SHARED_SIDE);
	GMEM_OPTS(gmem_populate_opts, private, .flags = GMEM_POPULATE_PRIVATE_SIDE);
	struct gmem_footprint footprint;
	struct gmem_region *region;
	struct unit unit;
	int fd;

	(void)state;
	region = begin(&unit, &private_way, MIB);
	fd = gmem_file_fd(gmem_region_file(region, NULL));
	assert_ok(gmem_vm_convert(unit.vm, 0, PAGES(&unit, 2), GMEM_STATE_PRIVATE, NULL, NULL));
	assert_ok(gmem_vm_populate(unit.vm, 0, PAGES(&unit, 4), &shared, &footprint));
	unit_check_footprint(&footprint, PAGES(&unit, 4), 0, PAGES(&unit, 4));
	assert_false(fake_is_allocated(fd, 0, unit.page));
	assert_ok(gmem_vm_populate(unit.vm, PAGES(&unit, 1), PAGES(&unit, 4), &private, &footprint));
	unit_check_footprint(&footprint, PAGES(&unit, 4), 0, PAGES(&unit, 4));
	assert_false(fake_is_allocated(fd, 0, unit.page));
	assert_true(fake_is_allocated(fd, PAGES(&unit, 1), PAGES(&unit, 4)));

	shared.flags |= GMEM_POPULATE_PRIVATE_SIDE;
	assert_refused(-EINVAL, "the shared side and",
		       gmem_vm_populate(unit.vm, 0, unit.page, &shared, NULL));
	unit_region_backed(&unit, 2 * MIB / unit.page, 1, GMEM_BACKING_HOST);
	assert_refused(-EOPNOTSUPP, "one memory",
		       gmem_vm_populate(unit.vm, 2 * MIB, unit.page, &private, NULL));
	unit_end(&unit);
}

static void reserving_allocates_without_mapping(void **state)
{
	GMEM_OPTS(gmem_populate_opts, reserve, .flags = GMEM_POPULATE_RESERVE);
	struct gmem_footprint footprint;
	struct gmem_region *region;
	unsigned int before;
	struct unit unit;

	(void)state;
	region = begin(&unit, &shared_way, MIB);
	before = fake_count(FAKE_MADVISE);
	assert_ok(gmem_vm_populate(unit.vm, 0, MIB, &reserve, &footprint));
	unit_check_footprint(&footprint, MIB, 0, MIB);
	assert_int_equal(fake_count(FAKE_MADVISE), before);
	assert_true(fake_is_allocated(gmem_file_fd(gmem_region_file(region, NULL)), 0, MIB));
	unit_end(&unit);
}

static void range_must_be_memory_throughout(void **state)
{
	GMEM_OPTS(gmem_region_opts, device, .flags = GMEM_REGION_DEVICE);
	struct gmem_footprint footprint;
	struct gmem_region *other;
	struct unit unit;

	(void)state;
	begin(&unit, &shared_way, MIB);
	assert_refused(-ENOENT, "no region at gpa 0x100000",
		       gmem_vm_populate(unit.vm, 0, 2 * MIB, NULL, &footprint));
	assert_int_equal(footprint.done, 0);
	assert_int_equal(footprint.counted, 0);
	assert_ok(gmem_region_add(unit.vm, MIB, unit.page, &device, &other));
	assert_refused(-ENXIO, "device at gpa 0x100000",
		       gmem_vm_populate(unit.vm, 0, MIB + unit.page, NULL, NULL));
	unit_end(&unit);
}

static void bad_arguments_are_refused(void **state)
{
	GMEM_OPTS(gmem_populate_opts, flags, .flags = UNIT_UNKNOWN_BIT);
	GMEM_OPTS(gmem_populate_opts, reserved, .reserved = 1);
	GMEM_OPTS(gmem_populate_opts, workers, .workers = 1025);
	struct gmem_populate *job = UNTOUCHED(struct gmem_populate);
	struct gmem_footprint footprint;
	struct unit unit;

	(void)state;
	begin(&unit, &shared_way, MIB);
	assert_refused(-EINVAL, "vm is NULL", gmem_vm_populate(NULL, 0, MIB, NULL, NULL));
	assert_refused(-EINVAL, "size 0", gmem_vm_populate(unit.vm, 0, 0, NULL, NULL));
	assert_refused(-EINVAL, "multiple", gmem_vm_populate(unit.vm, 0, 100, NULL, NULL));
	assert_refused(-EINVAL, "wraps", gmem_vm_populate(unit.vm, 0 - unit.page,
							  PAGES(&unit, 2), NULL, NULL));
	assert_refused(-EINVAL, "bits", gmem_vm_populate(unit.vm, 0, MIB, &flags, NULL));
	assert_refused(-EINVAL, "reserved", gmem_vm_populate(unit.vm, 0, MIB, &reserved, NULL));
	assert_refused(-EINVAL, "1025", gmem_vm_populate(unit.vm, 0, MIB, &workers, NULL));
	assert_refused(-EINVAL, "ret is NULL", gmem_populate_new(unit.vm, 0, MIB, NULL, NULL));
	assert_refused(-EINVAL, "vm is NULL", gmem_populate_new(NULL, 0, MIB, NULL, &job));
	assert_refused(-EINVAL, "job is NULL", gmem_populate_run(NULL));
	assert_refused(-EINVAL, "job is NULL", gmem_populate_result(NULL, &footprint));
	unit_fail_alloc(1);
	assert_refused(-ENOMEM, "1 lanes", gmem_populate_new(unit.vm, 0, MIB, NULL, &job));
	assert_true(unit_alloc_struck());
	assert_ptr_equal(job, UNTOUCHED(struct gmem_populate));
	gmem_populate_free(NULL);
	gmem_populate_cancel(NULL);
	unit_end(&unit);
}

/* ---- progress and its end ---- */

struct listener {
	pthread_t caller;
	unsigned int calls;
	unsigned int from_others;
	unsigned int unblocked;		/* calls from others with a signal not blocked */
	uint64_t last;
	uint64_t total;
	unsigned int cancel_at;		/* call number; 0: never */
	const char *then_available;
};

static int listen(void *data, uint64_t done, uint64_t total)
{
	struct listener *listener = data;
	sigset_t blocked;

	assert_true(done > listener->last);
	listener->last = done;
	listener->total = total;
	listener->calls++;
	if (!pthread_equal(pthread_self(), listener->caller)) {
		listener->from_others++;
		pthread_sigmask(SIG_BLOCK, NULL, &blocked);
		listener->unblocked += !sigismember(&blocked, SIGUSR1) ||
				       !sigismember(&blocked, SIGTERM) ||
				       sigismember(&blocked, SIGBUS);
	}
	if (listener->then_available)
		set_available(listener->then_available);
	return listener->calls == listener->cancel_at;
}

static void progress_is_told_piece_by_piece(void **state)
{
	struct listener listener = { .caller = pthread_self() };
	GMEM_OPTS(gmem_populate_opts, opts, .progress = listen, .progress_data = &listener);
	struct unit unit;
	unsigned int before;

	(void)state;
	begin(&unit, &shared_way, 9 * MIB);
	before = fake_count(FAKE_MADVISE);
	assert_ok(gmem_vm_populate(unit.vm, 0, 9 * MIB, &opts, NULL));
	assert_int_equal(listener.calls, 5);
	assert_int_equal(listener.last, 9 * MIB);
	assert_int_equal(listener.total, 9 * MIB);
	assert_int_equal(listener.from_others, 0);
	assert_int_equal(fake_count(FAKE_MADVISE), before + 5);
	unit_end(&unit);
}

static void progress_can_cancel(void **state)
{
	struct listener listener = { .caller = pthread_self(), .cancel_at = 2 };
	GMEM_OPTS(gmem_populate_opts, opts, .progress = listen, .progress_data = &listener);
	struct gmem_footprint footprint;
	struct unit unit;

	(void)state;
	begin(&unit, &shared_way, 8 * MIB);
	assert_int_equal(gmem_vm_populate(unit.vm, 0, 8 * MIB, &opts, &footprint), -ECANCELED);
	assert_non_null(strstr(gmem_last_error(), "after 0x400000 of 0x800000"));
	unit_check_footprint(&footprint, 4 * MIB, 0, 4 * MIB);
	assert_int_equal(listener.calls, 2);

	/* Too late: it is done. */
	listener = (struct listener){ .caller = pthread_self(), .cancel_at = 4 };
	assert_ok(gmem_vm_populate(unit.vm, 0, 8 * MIB, &opts, &footprint));
	unit_check_footprint(&footprint, 8 * MIB, 4 * MIB, 8 * MIB);
	unit_end(&unit);
}

static void workers_do_all_of_it_once(void **state)
{
	struct listener listener;
	GMEM_OPTS(gmem_populate_opts, opts, .progress = listen, .progress_data = &listener);
	struct gmem_footprint footprint;
	unsigned int before;
	struct unit unit;

	(void)state;
	for (opts.workers = 1; opts.workers <= 9; opts.workers += 4) {
		listener = (struct listener){ .caller = pthread_self() };
		begin(&unit, &shared_way, 15 * MIB);
		before = fake_count(FAKE_MADVISE);
		assert_ok(gmem_vm_populate(unit.vm, 0, 15 * MIB, &opts, &footprint));
		unit_check_footprint(&footprint, 15 * MIB, 0, 15 * MIB);
		assert_int_equal(listener.last, 15 * MIB);
		assert_int_equal(listener.calls, 8);
		assert_int_equal(fake_count(FAKE_MADVISE), before + 8);
		assert_int_equal(listener.unblocked, 0);
		unit_end(&unit);
	}
}

static void no_memory_for_threads_means_no_threads(void **state)
{
	struct listener listener = { .caller = pthread_self() };
	GMEM_OPTS(gmem_populate_opts, opts, .workers = 4, .progress = listen,
		  .progress_data = &listener);
	struct unit unit;

	(void)state;
	begin(&unit, &shared_way, 8 * MIB);
	unit_fail_alloc(2);
	assert_ok(gmem_vm_populate(unit.vm, 0, 8 * MIB, &opts, NULL));
	assert_true(unit_alloc_struck());
	assert_int_equal(listener.last, 8 * MIB);
	assert_int_equal(listener.from_others, 0);
	unit_end(&unit);
}

static void first_failure_of_a_worker_ends_the_job(void **state)
{
	GMEM_OPTS(gmem_populate_opts, opts, .workers = 3);
	struct gmem_footprint footprint;
	struct unit unit;

	(void)state;
	begin(&unit, &shared_way, 12 * MIB);
	fake_fail_kind(FAKE_MADVISE, 2, UINT_MAX, -EHWPOISON);
	assert_int_equal(gmem_vm_populate(unit.vm, 0, 12 * MIB, &opts, &footprint), -EHWPOISON);
	assert_non_null(strstr(gmem_last_error(), "populating gpa 0x"));
	assert_non_null(strstr(gmem_last_error(), "EHWPOISON, the hardware lost the page"));
	assert_true(footprint.done < 12 * MIB);
	assert_int_equal(footprint.after, footprint.done);
	unit_end(&unit);
}

/* ---- threads of the caller ---- */

static void *run(void *job)
{
	return (void *)(intptr_t)gmem_populate_run(job);
}

static void threads_of_the_callers_share_a_job(void **state)
{
	GMEM_OPTS(gmem_populate_opts, opts, .workers = 2);
	struct gmem_footprint footprint;
	struct gmem_populate *job;
	pthread_t threads[3];
	struct unit unit;
	void *result;
	size_t i;

	(void)state;
	begin(&unit, &shared_way, 10 * MIB);
	assert_ok(gmem_populate_new(unit.vm, 0, 10 * MIB, &opts, &job));
	assert_ok(gmem_populate_result(job, &footprint));
	unit_check_footprint(&footprint, 0, 0, 0);

	for (i = 0; i < ARRAY_SIZE(threads); i++)
		assert_int_equal(pthread_create(&threads[i], NULL, run, job), 0);
	for (i = 0; i < ARRAY_SIZE(threads); i++) {
		assert_int_equal(pthread_join(threads[i], &result), 0);
		assert_null(result);
	}
	assert_ok(gmem_populate_result(job, &footprint));
	unit_check_footprint(&footprint, 10 * MIB, 0, 10 * MIB);
	assert_ok(gmem_populate_run(job));
	gmem_populate_free(job);
	unit_end(&unit);
}

static void cancelled_job_stays_cancelled(void **state)
{
	struct gmem_footprint footprint;
	struct gmem_populate *job;
	struct unit unit;

	(void)state;
	begin(&unit, &shared_way, 4 * MIB);
	assert_ok(gmem_populate_new(unit.vm, 0, 4 * MIB, NULL, &job));
	gmem_populate_cancel(job);
	assert_refused(-ECANCELED, "after 0x0 of 0x400000", gmem_populate_run(job));
	assert_refused(-ECANCELED, "after 0x0 of 0x400000", gmem_populate_run(job));
	assert_ok(gmem_populate_result(job, &footprint));
	unit_check_footprint(&footprint, 0, 0, 0);
	gmem_populate_free(job);

	/* Cancelling a job that is done has no effect. */
	assert_ok(gmem_populate_new(unit.vm, 0, 4 * MIB, NULL, &job));
	assert_ok(gmem_populate_run(job));
	gmem_populate_cancel(job);
	assert_ok(gmem_populate_run(job));
	gmem_populate_free(job);
	unit_end(&unit);
}

/* ---- what does not fit ---- */

static void size_that_does_not_fit_is_refused_before_the_first_page(void **state)
{
	GMEM_OPTS(gmem_populate_opts, unchecked, .flags = GMEM_POPULATE_UNCHECKED);
	struct gmem_footprint footprint;
	struct unit unit;

	(void)state;
	begin(&unit, &shared_way, 4 * MIB);
	/* 4 MiB, and what the kernel needs besides: not quite 16 KiB */
	set_available("MemTotal: 1 kB\nMemAvailable: 4111 kB\n");
	assert_refused(-ENOMEM, "0x404000 bytes more, with page tables, do not fit: the machine has 0x403c00",
		       gmem_vm_populate(unit.vm, 0, 4 * MIB, NULL, &footprint));
	assert_int_equal(footprint.done, 0);
	assert_int_equal(footprint.counted, 0);

	assert_ok(gmem_vm_populate(unit.vm, 0, 4 * MIB, &unchecked, &footprint));
	unit_check_footprint(&footprint, 4 * MIB, 0, 4 * MIB);

	/* Pages that exist already need no room. */
	set_available("MemTotal: 1 kB\nMemAvailable: 0 kB\n");
	assert_ok(gmem_vm_populate(unit.vm, 0, 4 * MIB, NULL, &footprint));
	unit_end(&unit);
}

/* Half of a file of hugetlb is there, which only its count of pages tells. */
static struct gmem_region *begin_huge(struct unit *unit, uint64_t size, int *ret_fd)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_MEMORY_FD);
	struct gmem_region *region;
	struct gmem_plan *plan;

	unit_begin_vm(unit, private_way.kernel);
	opts.memory_fd = *ret_fd = memfd_create("huge", MFD_CLOEXEC);
	assert_int_equal(ftruncate(opts.memory_fd, (off_t)size), 0);
	assert_int_equal(posix_fallocate(opts.memory_fd, 0, (off_t)size / 2), 0);
	fake_pretend_huge(opts.memory_fd, 2 * MIB);
	plan = unit_plan(unit, GMEM_BACKING_HOST);
	opts.plan = plan;
	assert_ok(gmem_region_add(unit->vm, 0, size, &opts, &region));
	gmem_plan_free(plan);
	fake_mark_mapping(gmem_region_hva(region), size, 2 * MIB, "ht", 0);
	fake_set_file(POOL "free_hugepages", "32\n");
	fake_set_file(POOL "resv_hugepages", "0\n");
	return region;
}

static void huge_pages_are_not_checked_against_ordinary_memory(void **state)
{
	const uint64_t size = 128 * MIB, ordinary = 4 * MIB;
	struct unit unit;
	int fd;

	(void)state;
	begin_huge(&unit, size, &fd);
	set_available("MemTotal: 9 kB\nMemAvailable: 1024 kB\n");
	assert_ok(gmem_vm_populate(unit.vm, 0, size, NULL, NULL));
	assert_ok(gmem_vm_populate(unit.vm, 0, size, NULL, NULL));

	/* Nor does what is there in huge pages stand for ordinary memory that is missing. */
	unit_region_backed(&unit, size / unit.page, ordinary / unit.page, GMEM_BACKING_PRIVATE);
	assert_refused(-ENOMEM, "0x404000 bytes more",
		       gmem_vm_populate(unit.vm, 0, size + ordinary, NULL, NULL));

	/* All the same if ordinary memory cannot be counted */
	fake.no_cachestat = true;
	assert_ok(gmem_vm_convert(unit.vm, size, ordinary, GMEM_STATE_PRIVATE, NULL, NULL));
	assert_refused(-ENOMEM, "0x404000 bytes more",
		       gmem_vm_populate(unit.vm, 0, size + ordinary, NULL, NULL));
	unit_end(&unit);
	close(fd);
}

static void huge_pages_that_are_missing_are_counted_by_their_pool(void **state)
{
	const uint64_t size = 128 * MIB;
	struct unit unit;
	int fd;

	(void)state;
	begin_huge(&unit, size, &fd);
	fake_set_file(POOL "free_hugepages", "31\n");
	assert_refused(-ENOMEM, "32 huge pages of 2 MiB are missing: 31 are free",
		       gmem_vm_populate(unit.vm, 0, size, NULL, NULL));
	unit_end(&unit);
	close(fd);
}

static void memory_cgroup_sets_the_limit_too(void **state)
{
	struct unit unit;

	(void)state;
	begin_private(&unit, 4 * MIB);
	fake_set_file("/proc/self/cgroup", "0::/vm\n");
	fake_set_file("/sys/fs/cgroup/vm/memory.max", "4194304\n");
	fake_set_file("/sys/fs/cgroup/vm/memory.current", "1048576\n");
	assert_refused(-ENOMEM, "memory.max of /sys/fs/cgroup/vm is 0x400000",
		       gmem_vm_populate(unit.vm, 0, 4 * MIB, NULL, NULL));
	assert_ok(gmem_vm_populate(unit.vm, 0, 2 * MIB, NULL, NULL));
	unit_end(&unit);
}

/* Others took the memory meanwhile: an error is better than the OOM killer. */
static void available_memory_is_checked_again_on_the_way(void **state)
{
	struct listener listener = {
		.caller = pthread_self(),
		.then_available = "MemTotal: 1 kB\nMemAvailable: 1024 kB\n",
	};
	GMEM_OPTS(gmem_populate_opts, opts, .progress = listen, .progress_data = &listener);
	struct gmem_footprint footprint;
	struct unit unit;

	(void)state;
	begin(&unit, &shared_way, 8 * MIB);
	set_available("MemTotal: 1 kB\nMemAvailable: 65536 kB\n");
	assert_int_equal(gmem_vm_populate(unit.vm, 0, 8 * MIB, &opts, &footprint), -ENOMEM);
	assert_non_null(strstr(gmem_last_error(), "the machine has 0x100000"));
	unit_check_footprint(&footprint, 2 * MIB, 0, 2 * MIB);
	unit_end(&unit);
}

static void running_out_tells_what_was_populated(void **state)
{
	struct gmem_footprint footprint;
	struct unit unit;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(unit_ways); i++) {
		begin(&unit, &unit_ways[i], 8 * MIB);
		fake_fail_kind(FAKE_MADVISE, 2, 1, -ENOMEM);
		assert_int_equal(gmem_vm_populate(unit.vm, 0, 8 * MIB, NULL, &footprint), -ENOMEM);
		assert_true(fake_fail_struck());
		unit_check_footprint(&footprint, 4 * MIB, 0, 4 * MIB);
		unit_end(&unit);
	}

	/* Allocating may get part of a piece; the kernel's count has it. */
	begin_private(&unit, 4 * MIB);
	fake_fail_kind(FAKE_FALLOCATE, 1, 1, -ENOMEM);
	assert_int_equal(gmem_vm_populate(unit.vm, 0, 4 * MIB, NULL, &footprint), -ENOMEM);
	unit_check_footprint(&footprint, 2 * MIB, 0, 2 * MIB);
	unit_end(&unit);
}

static void pages_that_cannot_be_counted_are_populated_all_the_same(void **state)
{
	struct gmem_footprint footprint;
	struct unit unit;

	(void)state;
	begin_private(&unit, 2 * MIB);
	fake.no_cachestat = true;
	set_available("MemTotal: 1 kB\nMemAvailable: 1024 kB\n");
	assert_refused(-ENOMEM, "0x202000 bytes more", gmem_vm_populate(unit.vm, 0, 2 * MIB, NULL,
									&footprint));
	set_available("MemTotal: 1 kB\nMemAvailable: 65536 kB\n");
	assert_ok(gmem_vm_populate(unit.vm, 0, 2 * MIB, NULL, &footprint));
	assert_int_equal(footprint.done, 2 * MIB);
	assert_int_equal(footprint.counted, 0);
	unit_end(&unit);
}

/* ---- kernels and signals ---- */

static void signals_do_not_stop_populating(void **state)
{
	struct gmem_footprint footprint;
	struct unit unit;

	(void)state;
	begin(&unit, &shared_way, 2 * MIB);
	fake_fail_kind(FAKE_MADVISE, 0, 5, -EINTR);
	assert_ok(gmem_vm_populate(unit.vm, 0, 2 * MIB, NULL, &footprint));
	unit_check_footprint(&footprint, 2 * MIB, 0, 2 * MIB);
	fake_fail_kind(FAKE_MADVISE, 0, UINT32_MAX, -EINTR);
	assert_int_equal(gmem_vm_populate(unit.vm, 0, 2 * MIB, NULL, NULL), -EINTR);
	unit_end(&unit);
}

/* Before Linux 5.14 there is no such advice. */
static void pages_are_touched_where_the_kernel_knows_no_better(void **state)
{
	struct gmem_footprint footprint;
	struct gmem_region *region;
	struct unit unit;
	char *hva;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(unit_ways); i++) {
		region = begin(&unit, &unit_ways[i], 2 * MIB);
		hva = gmem_region_hva(region);
		hva[unit.page] = 'y';
		fake_fail_kind(FAKE_MADVISE, 0, UINT32_MAX, -EINVAL);
		assert_ok(gmem_vm_populate(unit.vm, 0, 2 * MIB, NULL, &footprint));
		assert_true(fake_fail_struck());
		unit_check_footprint(&footprint, 2 * MIB, unit.page, 2 * MIB);
		assert_int_equal(hva[unit.page], 'y');
		unit_end(&unit);
	}
}

/* Memory that the host, too, may only read, is read. */
static void memory_nobody_writes_is_populated_by_reading(void **state)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_HVA | GMEM_REGION_READONLY);
	struct gmem_region *region;
	struct gmem_plan *plan;
	struct unit unit;
	void *hva;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	hva = mmap(NULL, MIB, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_true(hva != MAP_FAILED);
	plan = unit_plan(&unit, GMEM_BACKING_HOST);
	opts.plan = plan;
	opts.hva = hva;
	assert_ok(gmem_region_add(unit.vm, 0, MIB, &opts, &region));
	gmem_plan_free(plan);
	assert_ok(gmem_vm_populate(unit.vm, 0, MIB, NULL, NULL));
	fake_fail_kind(FAKE_MADVISE, 0, UINT32_MAX, -EINVAL);
	assert_ok(gmem_vm_populate(unit.vm, 0, MIB, NULL, NULL));
	assert_true(fake_fail_struck());
	unit_end(&unit);
	munmap(hva, MIB);
}

/* ---- with others at work ---- */

static void *discard_again_and_again(void *vm)
{
	for (int i = 0; i < 20; i++)
		if (gmem_vm_discard(vm, MIB, 3 * MIB, NULL, NULL))
			return vm;
	return NULL;
}

static void *convert_to_and_fro(void *vm)
{
	for (int i = 0; i < 20; i++)
		if (gmem_vm_convert(vm, 2 * MIB, 4 * MIB, i % 2 ? GMEM_STATE_SHARED
								: GMEM_STATE_PRIVATE, NULL, NULL))
			return vm;
	return NULL;
}

static void discards_and_conversions_take_turns_with_populating(void **state)
{
	GMEM_OPTS(gmem_populate_opts, opts, .workers = 2);
	pthread_t discarding, converting;
	struct unit unit;
	void *failed;
	int i;

	(void)state;
	begin(&unit, &private_way, 8 * MIB);
	assert_int_equal(pthread_create(&discarding, NULL, discard_again_and_again, unit.vm), 0);
	assert_int_equal(pthread_create(&converting, NULL, convert_to_and_fro, unit.vm), 0);
	for (i = 0; i < 5; i++)
		assert_ok(gmem_vm_populate(unit.vm, 0, 8 * MIB, &opts, NULL));
	assert_int_equal(pthread_join(discarding, &failed), 0);
	assert_null(failed);
	assert_int_equal(pthread_join(converting, &failed), 0);
	assert_null(failed);
	unit_end(&unit);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(every_page_is_there_and_keeps_what_it_has),
	cmocka_unit_test(files_are_populated_by_reading_and_host_memory_by_writing),
	cmocka_unit_test(side_is_the_one_the_guest_uses),
	cmocka_unit_test(side_may_be_chosen),
	cmocka_unit_test(reserving_allocates_without_mapping),
	cmocka_unit_test(range_must_be_memory_throughout),
	cmocka_unit_test(bad_arguments_are_refused),
	cmocka_unit_test(progress_is_told_piece_by_piece),
	cmocka_unit_test(progress_can_cancel),
	cmocka_unit_test(workers_do_all_of_it_once),
	cmocka_unit_test(no_memory_for_threads_means_no_threads),
	cmocka_unit_test(first_failure_of_a_worker_ends_the_job),
	cmocka_unit_test(threads_of_the_callers_share_a_job),
	cmocka_unit_test(cancelled_job_stays_cancelled),
	cmocka_unit_test(size_that_does_not_fit_is_refused_before_the_first_page),
	cmocka_unit_test(huge_pages_are_not_checked_against_ordinary_memory),
	cmocka_unit_test(huge_pages_that_are_missing_are_counted_by_their_pool),
	cmocka_unit_test(memory_cgroup_sets_the_limit_too),
	cmocka_unit_test(available_memory_is_checked_again_on_the_way),
	cmocka_unit_test(running_out_tells_what_was_populated),
	cmocka_unit_test(pages_that_cannot_be_counted_are_populated_all_the_same),
	cmocka_unit_test(signals_do_not_stop_populating),
	cmocka_unit_test(pages_are_touched_where_the_kernel_knows_no_better),
	cmocka_unit_test(memory_nobody_writes_is_populated_by_reading),
	cmocka_unit_test(discards_and_conversions_take_turns_with_populating),
};

UNIT_MAIN_SMALL_PAGES(tests)
