/* SPDX-License-Identifier: MIT */
/*
 * Each phase of gmem-sandbox(7) under the filter of gmem-sandbox.h, which is made of its table:
 * whatever else is called ends the test, by name.
 */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "confine.h"

/* ---- what a phase does ---- */

static void use_view_at(struct site *s, uint64_t gpa)
{
	uint8_t bytes[64] = { 1, 2, 3 }, back[64];
	struct iovec iov[2];
	uint64_t done, word;
	void *hva;

	OK(gmem_view_write(s->view, gpa + 8, bytes, sizeof(bytes), &done));
	OK(gmem_view_read(s->view, gpa + 8, back, sizeof(back), &done));
	CHECK_EQ(memcmp(bytes, back, sizeof(bytes)), 0);
	OK(gmem_view_fill(s->view, gpa, 7, s->lab.page, NULL));
	OK(gmem_view_store(s->view, gpa, 8, GMEM_RELEASE, 42));
	OK(gmem_view_load(s->view, gpa, 8, GMEM_ACQUIRE, &word));
	CHECK_EQ(word, 42);
	REFUSED(gmem_view_read(s->view, GIB, back, 1, &done), -ENOENT);

	gmem_view_begin(s->view);
	OK(gmem_view_hva(s->view, gpa, s->lab.page, &hva));
	CHECK_EQ(gmem_view_iovec(s->view, gpa, s->lab.page, iov, 2), 1);
	gmem_view_end(s->view);
}

static void use_view(struct site *s)
{
	use_view_at(s, BASE);
}

static void run_running(struct site *s)
{
	struct gmem_state_range range;
	uint64_t bitmap[1], word;
	struct gmem_view *view;

	use_view(s);
	OK(gmem_vm_thread_view(s->lab.vm, &view));
	OK(gmem_view_load(view, BASE, 8, GMEM_RELAXED, &word));
	OK(gmem_hva_write(gmem_region_hva(s->region), &word, sizeof(word), NULL));
	OK(gmem_hva_read(gmem_region_hva(s->region), &word, sizeof(word), NULL));
	CHECK_RESULT(gmem_hva_read((void *)(uintptr_t)8, &word, sizeof(word), NULL), -EFAULT);
	CHECK_EQ(gmem_vm_state(s->lab.vm, BASE, s->size, &range, 1), 1);
	if (s->backing == GMEM_BACKING_HOST || s->backing == GMEM_BACKING_MAPPED)
		OK(gmem_region_get_dirty_log(s->region, bitmap, ARRAY_SIZE(bitmap)));
}

static struct gmem_dirty *track(struct gmem_vm *vm)
{
	GMEM_OPTS(gmem_dirty_opts, opts, .flags = GMEM_DIRTY_VCPUS_STOPPED | GMEM_DIRTY_ALLOW_UNLOGGED);
	struct gmem_dirty *dirty;

	OK(gmem_dirty_new(vm, &opts, &dirty));
	return dirty;
}

static struct gmem_migration *migrate_to(struct gmem_vm *vm, int fd)
{
	GMEM_OPTS(gmem_migration_opts, opts, .flags = GMEM_MIGRATION_ALLOW_UNLOGGED);
	struct gmem_migration *migration;

	OK(gmem_migration_new(vm, fd, &opts, &migration));
	return migration;
}

/* As much as it takes for threads to be placed near the memory */
#define FOR_THREADS (64 * MIB)

/* alone, and with threads of the library's */
static void populate(struct site *s)
{
	GMEM_OPTS(gmem_region_opts, add, .plan = s->plan);
	GMEM_OPTS(gmem_populate_opts, opts);
	struct gmem_footprint footprint;
	struct gmem_region *large;

	OK(gmem_vm_populate(s->lab.vm, BASE, s->size, &opts, &footprint));
	OK(gmem_vm_discard(s->lab.vm, BASE, s->size, NULL, &footprint));
	OK(gmem_region_add(s->lab.vm, 8 * GIB, FOR_THREADS, &add, &large));
	for (opts.workers = 2; opts.workers <= 8; opts.workers *= 2) {
		OK(gmem_vm_populate(s->lab.vm, 8 * GIB, FOR_THREADS, &opts, &footprint));
		OK(gmem_vm_discard(s->lab.vm, 8 * GIB, FOR_THREADS, NULL, &footprint));
	}
	OK(gmem_region_remove(large));
}

/* Host memory that is a memfd, over a reservation of the program's */
static void run_host_memory(struct site *s)
{
	GMEM_OPTS(gmem_memory_opts, memory, .flags = GMEM_MEMORY_MEMFD);
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_HOST });
	GMEM_OPTS(gmem_region_opts, opts, .memory = &memory, .flags = GMEM_REGION_RESERVED);
	struct gmem_region *region;
	struct gmem_plan *plan;

	opts.hva = mmap(NULL, s->size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	CHECK(opts.hva != MAP_FAILED);
	OK(gmem_plan_new(gmem_vm_caps(s->lab.vm), &request, &plan));
	opts.plan = plan;
	OK(gmem_region_add(s->lab.vm, 3 * GIB, s->size, &opts, &region));
	OK(gmem_region_remove(region));
	gmem_plan_free(plan);
	munmap(opts.hva, s->size);
}

static void run_layout(struct site *s)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = s->plan);
	struct gmem_region *other, *upper;
	struct gmem_change *change;
	struct gmem_view *view;

	populate(s);
	OK(gmem_view_new(s->lab.vm, &view));
	run_host_memory(s);
	OK(gmem_region_add(s->lab.vm, GIB, s->size, &opts, &other));
	OK(gmem_region_move(other, 2 * GIB));
	OK(gmem_region_split(other, s->lab.page, &upper));
	OK(gmem_change_new(s->lab.vm, &change));
	OK(gmem_change_remove(change, other));
	OK(gmem_change_add(change, GIB, s->size, &opts, &other));
	OK(gmem_change_apply(change));
	gmem_change_free(change);
	REFUSED(gmem_region_add(s->lab.vm, GIB, s->size, &opts, &upper), -EEXIST);
	if (gmem_region_file(s->region, NULL)) {
		OK(gmem_file_allocate(gmem_region_file(s->region, NULL), 0, s->size, NULL));
		OK(gmem_file_punch(gmem_region_file(s->region, NULL), 0, s->lab.page, NULL));
		CHECK_EQ(gmem_fd_is_guest_memfd(gmem_file_fd(gmem_region_file(s->region, NULL))), 1);
	}
	CHECK_EQ(gmem_fd_is_guest_memfd(s->lab.m.vm_fd), 0);
	gmem_view_free(view);
	gmem_view_free(s->view);
	gmem_vm_free(s->lab.vm);
}

static void run_convert(struct site *s)
{
	struct gmem_conversion done;
	struct gmem_lease *lease;
	char byte;

	OK(gmem_lease_new(s->lab.vm, BASE, s->lab.page, NULL, &lease));
	REFUSED(gmem_vm_convert(s->lab.vm, BASE, s->size, GMEM_STATE_PRIVATE, NULL, &done), -EBUSY);
	gmem_lease_free(lease);
	OK(gmem_vm_convert(s->lab.vm, BASE, s->size, GMEM_STATE_PRIVATE, NULL, &done));
	CHECK_EQ(done.converted, s->size);
	CHECK_RESULT(gmem_view_read(s->view, BASE, &byte, 1, NULL), -EACCES);
	OK(gmem_vm_convert(s->lab.vm, BASE, s->size, GMEM_STATE_SHARED, NULL, &done));
	OK(gmem_vm_discard_owed(s->lab.vm, NULL));
	use_view(s);
}

TEST(every_phase_kills_whoever_calls_anything_else)
{
	for (uint32_t phases = GMEM_SANDBOX_SETUP; phases <= GMEM_SANDBOX_SNAPSHOT; phases <<= 1) {
		pid_t child = (pid_t)WORKS(fork());
		int status;

		if (child == 0) {
			install(phases, SECCOMP_RET_KILL_PROCESS);
			syscall(__NR_getppid);
			_exit(0);
		}
		WORKS(waitpid(child, &status, 0));
		if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SUCCESS)
			skip("this kernel is built without seccomp filters");
		CHECK(WIFSIGNALED(status));
		CHECK_EQ(WTERMSIG(status), SIGSYS);
	}
}

/* Of the fault, and not of what the library calls then */
TEST(every_phase_lets_a_fault_of_the_program_kill)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	skip("what a sanitizer calls is in no table");
#endif
	for (uint32_t phases = GMEM_SANDBOX_SETUP; phases <= GMEM_SANDBOX_SNAPSHOT; phases <<= 1) {
		volatile uintptr_t nowhere = 8;
		pid_t child = (pid_t)WORKS(fork());
		int status;

		if (child == 0) {
			OK(gmem_recovery_enable());
			install(phases, SECCOMP_RET_KILL_PROCESS);
			*(volatile char *)nowhere = 1;
			_exit(0);
		}
		WORKS(waitpid(child, &status, 0));
		CHECK(WIFSIGNALED(status));
		CHECK_EQ(WTERMSIG(status), SIGSEGV);
	}
}

/* Memory as VMMs have it: memfds, their own, with policies, allocated ahead, in threads */
static void set_up_more(struct gmem_vm *vm, const struct gmem_plan *plan, struct gmem_file *file)
{
	GMEM_OPTS(gmem_memory_opts, memory, .flags = GMEM_MEMORY_MEMFD);
	GMEM_OPTS(gmem_region_opts, opts, .plan = plan, .memory = &memory);
	GMEM_OPTS(gmem_numa_opts, numa, .policy = GMEM_NUMA_PREFERRED, .nodes = { 1 });
	GMEM_OPTS(gmem_populate_opts, populate, .workers = 2);
	GMEM_OPTS(gmem_numa_pages, pages);
	struct gmem_region *region;
	struct gmem_dirty *dirty;
	struct gmem_view *view;

	OK(gmem_region_add(vm, 8 * GIB, FOR_THREADS, &opts, &region));
	OK(gmem_vm_set_numa(vm, 8 * GIB, FOR_THREADS, &numa, NULL));
	OK(gmem_vm_populate(vm, 8 * GIB, FOR_THREADS, &populate, NULL));
	OK(gmem_vm_numa(vm, 8 * GIB, FOR_THREADS, &pages));
	opts.memory = NULL;
	opts.flags = GMEM_REGION_HVA;
	opts.hva = mmap(NULL, 16 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(opts.hva != MAP_FAILED);
	OK(gmem_region_add(vm, 9 * GIB, 16 * MIB, &opts, &region));
	if (file) {
		OK(gmem_file_allocate(file, 0, page_size(), NULL));
		CHECK_EQ(gmem_fd_is_guest_memfd(gmem_file_fd(file)), 1);
	}
	OK(gmem_view_new(vm, &view));
	WORKS(mprotect(opts.hva, page_size(), PROT_READ));
	REFUSED(gmem_view_fill(view, 9 * GIB, 1, 8, NULL), -EFAULT);
	dirty = track(vm);
	OK(gmem_dirty_collect(dirty, NULL));
	gmem_dirty_free(dirty);
}

TEST(setup_calls_what_the_table_says)
{
	struct gmem_file *file = NULL;
	GMEM_OPTS(gmem_caps_opts, opts, .flags = GMEM_CAPS_RUN_GUEST);
	struct gmem_plan *plans[GMEM_BACKING_SHARED + 1] = { 0 };
	struct gmem_caps *caps;
	struct gmem_view *view;
	struct gmem_vm *vm;
	struct machine m;

	machine_new(&m, DEFAULT_VM);
	enter(GMEM_SANDBOX_SETUP);
	OK(gmem_caps_new(GMEM_NO_VM, NULL, &caps));
	gmem_caps_free(caps);
	OK(gmem_caps_new(m.vm_fd, &opts, &caps));
	OK(gmem_vm_new(m.vm_fd, NULL, &vm));
	for (uint32_t backing = GMEM_BACKING_HOST; backing <= GMEM_BACKING_SHARED; backing++) {
		GMEM_OPTS(gmem_request, request, .backings = { backing });
		GMEM_OPTS(gmem_region_opts, add);
		struct gmem_region *region;

		if (gmem_plan_new(caps, &request, &plans[backing]) < 0)
			continue;
		add.plan = plans[backing];
		OK(gmem_region_add(vm, backing * GIB, PAGES * page_size(), &add, &region));
		file = gmem_region_file(region, NULL);
	}
	OK(gmem_view_new(vm, &view));
	OK(gmem_recovery_enable());
	OK(gmem_view_fill(view, GIB, 1, page_size(), NULL));
	set_up_more(vm, plans[GMEM_BACKING_HOST], file);
	leave();
}

static void protect(struct site *s)
{
	WORKS(mprotect((char *)gmem_region_hva(s->region) + s->lab.page, s->lab.page, PROT_READ));
}

/* The sentences ask the kernel, too. */
static void use_protected(struct site *s)
{
	uint64_t at = BASE + s->lab.page, expected = 0;

	REFUSED(gmem_view_fill(s->view, at, 7, 100, NULL), -EFAULT);
	REFUSED(gmem_view_store(s->view, at, 8, GMEM_RELEASE, 42), -EFAULT);
	REFUSED(gmem_view_compare_exchange(s->view, at, 4, GMEM_SEQ_CST, &expected, 1), -EFAULT);
}

static void running(uint32_t backing)
{
	struct site s;

	site_new(&s, DEFAULT_VM, backing, PAGES, false);
	protect(&s);
	enter(GMEM_SANDBOX_RUNNING);
	run_running(&s);
	use_protected(&s);
	leave();
}

static void running_tracked(uint32_t backing)
{
	GMEM_OPTS(gmem_dirty_info, info, .bytes = 0);
	struct gmem_dirty_range range;
	struct gmem_dirty *dirty;
	struct site s;

	site_new(&s, DEFAULT_VM, backing, PAGES, false);
	dirty = track(s.lab.vm);
	enter(GMEM_SANDBOX_RUNNING);
	use_view(&s);
	OK(gmem_view_mark_dirty(s.view, BASE, s.size));
	OK(gmem_dirty_peek(dirty, &info));
	OK(gmem_dirty_collect(dirty, &info));
	OK(gmem_dirty_next(dirty, 0, &range));
	leave();
}

static volatile sig_atomic_t passed_on;

static void count_signal(int number)
{
	(void)number;
	passed_on++;
}

static void running_recovered(uint32_t backing)
{
	struct site s;

	CHECK(signal(SIGBUS, count_signal) != SIG_ERR);
	CHECK(signal(SIGSEGV, count_signal) != SIG_ERR);
	site_new(&s, DEFAULT_VM, backing, PAGES, true);
	protect(&s);
	enter(GMEM_SANDBOX_RUNNING);
	run_running(&s);
	use_protected(&s);
	raise(SIGBUS);
	raise(SIGSEGV);
	leave();
	CHECK_EQ(passed_on % 2, 0);
	CHECK(passed_on > 0);
}

TEST(running_calls_what_the_table_says)
{
	each_backing(running);
}

TEST(running_with_a_tracker_calls_what_the_table_says)
{
	each_backing(running_tracked);
}

TEST(running_with_recovery_calls_what_the_table_says)
{
	each_backing(running_recovered);
}

/* With recovery, memory that is there is accessed without system calls. */
static void running_without_calls(uint32_t backing)
{
	struct site s;

	site_new(&s, DEFAULT_VM, backing, PAGES, true);
	OK(gmem_view_fill(s.view, BASE, 0, s.size, NULL));
	enter(0);
	use_view(&s);
	leave();
}

TEST(access_with_recovery_calls_nothing)
{
	each_backing(running_without_calls);
}

/*
 * Whoever enabled recovery before it went into its sandbox: views and transfers ask whether
 * the signal handler is there.
 */
static bool recovers;

static void with_and_without_recovery(void (*phase)(uint32_t backing))
{
	recovers = false;
	each_backing(phase);
	recovers = true;
	each_backing(phase);
}

/* Lists that are short, longer than what sorts without memory, and long */
static uint64_t the_count;

static void with_each_count(void (*phase)(uint32_t backing))
{
	static const uint64_t counts[] = { 64, 256, 4096 };

	recovers = true;
	for (size_t i = 0; i < (getenv("GMEM_TEST_SHORT") ? 1 : ARRAY_SIZE(counts)); i++) {
		the_count = counts[i];
		/* a file of its own for each region, in two processes */
		if (get_fds(2 * the_count + 64))
			each_backing(phase);
	}
}

/* Regions of one page, which come and go in one change */
static struct gmem_region **list;

static void list_new(struct site *s)
{
	list = calloc(s->count + 1, sizeof(struct gmem_region *));
	CHECK(list);
}

static void change_list(struct site *s, bool add)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = s->plan);
	struct gmem_change *change;

	OK(gmem_change_new(s->lab.vm, &change));
	for (uint64_t i = 0; i < s->count; i++) {
		/* downwards, so that the library has to sort */
		uint64_t gpa = 4 * GIB + 2 * (s->count - i) * s->lab.page;

		if (add)
			OK(gmem_change_add(change, gpa, s->lab.page, &opts, &list[i]));
		else
			OK(gmem_change_remove(change, list[i]));
	}
	OK(gmem_change_apply(change));
	gmem_change_free(change);
}

/* A migration, slow enough to wait */
static struct gmem_migration *migrate(struct site *s, int fd)
{
	GMEM_OPTS(gmem_migration_opts, opts, .max_bytes_per_second = 4 * MIB,
		  .flags = GMEM_MIGRATION_VCPUS_STOPPED | GMEM_MIGRATION_ALLOW_UNLOGGED);
	struct gmem_migration *migration;

	OK(gmem_migration_new(s->lab.vm, fd, &opts, &migration));
	return migration;
}

static void layout(uint32_t backing)
{
	struct site s;
	int fds[2];

	site_new(&s, DEFAULT_VM, backing, 4096, recovers);
	WORKS(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds));
	enter(GMEM_SANDBOX_LAYOUT);
	gmem_migration_free(migrate(&s, fds[0]));
	OK(gmem_vm_bind_shared(s.lab.vm, NULL));
	run_layout(&s);
	leave();
}

/* Trackers come and go, and add memory that logs. */
static void layout_with_trackers(uint32_t backing)
{
	struct gmem_dirty *dirty;
	struct site s;
	int socks[2];

	site_new(&s, DEFAULT_VM, backing, 4096, recovers);
	WORKS(socketpair(AF_UNIX, SOCK_STREAM, 0, socks));
	enter(GMEM_SANDBOX_LAYOUT);
	gmem_migration_free(migrate_to(s.lab.vm, socks[0]));
	dirty = track(s.lab.vm);
	OK(gmem_dirty_collect(dirty, NULL));
	gmem_dirty_free(dirty);
	OK(gmem_vm_bind_shared(s.lab.vm, NULL));
	dirty = track(s.lab.vm);
	run_layout(&s);
	gmem_dirty_free(dirty);
	leave();
}

TEST(trackers_come_and_go_by_what_the_table_says)
{
	with_and_without_recovery(layout_with_trackers);
}

TEST(layout_calls_what_the_table_says)
{
	with_and_without_recovery(layout);
}

static void layout_lists(uint32_t backing)
{
	struct site s;

	site_new(&s, DEFAULT_VM, backing, PAGES, recovers);
	s.count = the_count;
	list_new(&s);
	enter(GMEM_SANDBOX_LAYOUT);
	change_list(&s, true);
	change_list(&s, false);
	gmem_vm_free(s.lab.vm);
	leave();
}

TEST(layout_of_lists_calls_what_the_table_says)
{
	with_each_count(layout_lists);
}

static void layout_in_a_thread(void *data, unsigned int number)
{
	GMEM_OPTS(gmem_populate_opts, opts, .workers = 2);
	const uint64_t gpa = (8 + number) * GIB;
	struct site *s = data;
	GMEM_OPTS(gmem_region_opts, add, .plan = s->plan);
	struct gmem_region *region;
	struct gmem_view *view;

	for (unsigned int round = 0; round < 20; round++) {
		OK(gmem_region_add(s->lab.vm, gpa, s->size, &add, &region));
		OK(gmem_vm_populate(s->lab.vm, gpa, s->size, &opts, NULL));
		OK(gmem_view_new(s->lab.vm, &view));
		OK(gmem_view_fill(view, gpa, 1, s->size, NULL));
		gmem_view_free(view);
		OK(gmem_vm_thread_view(s->lab.vm, &view));
		OK(gmem_view_fill(view, gpa, 2, s->size, NULL));
		OK(gmem_region_remove(region));
	}
}

static void layout_with_threads(uint32_t backing)
{
	struct site s;

	site_new(&s, DEFAULT_VM, backing, PAGES, recovers);
	enter_with_threads(GMEM_SANDBOX_LAYOUT, 4, layout_in_a_thread, &s);
	leave();
}

TEST(layout_in_threads_calls_what_the_table_says)
{
	with_and_without_recovery(layout_with_threads);
}

static void run_in_a_thread(void *data, unsigned int number)
{
	struct site *s = data, own = *s;
	struct gmem_state_range range;

	/* A view is of one thread at a time; its making is layout's. */
	own.view = s->views[number];
	for (unsigned int round = 0; round < 100; round++) {
		use_view_at(&own, BASE + number * s->lab.page);
		CHECK_EQ(gmem_vm_state(s->lab.vm, BASE, s->size, &range, 1), 1);
	}
}

static void running_with_threads(uint32_t backing)
{
	struct site s;

	site_new(&s, DEFAULT_VM, backing, PAGES, recovers);
	for (size_t i = 0; i < ARRAY_SIZE(s.views); i++)
		OK(gmem_view_new(s.lab.vm, &s.views[i]));
	enter_with_threads(GMEM_SANDBOX_RUNNING, ARRAY_SIZE(s.views), run_in_a_thread, &s);
	leave();
}

TEST(running_in_threads_calls_what_the_table_says)
{
	with_and_without_recovery(running_with_threads);
}

/* ---- convert: discards, which every VM has ---- */

/* The same as 4 KiB pages of a balloon, of which more than one may be one of the host's */
static void discard_pfns(struct site *s, uint64_t count)
{
	uint32_t *pfns = calloc(count, sizeof(*pfns));

	CHECK(pfns);
	for (uint64_t i = 0; i < count; i++)
		pfns[i] = (uint32_t)((BASE >> 12) + (i * 7919 % count));
	OK(gmem_vm_discard_pfns(s->lab.vm, pfns, count, NULL, NULL));
	free(pfns);
}

/* Every other page of the region, in no order */
static void discard_list(struct site *s, uint64_t count)
{
	struct gmem_gpa_range *ranges = calloc(count, sizeof(*ranges));
	struct gmem_footprint footprint;

	CHECK(ranges);
	for (uint64_t i = 0; i < count; i++)
		ranges[i] = (struct gmem_gpa_range){ BASE + (i * 7919 % count) * 2 * s->lab.page, s->lab.page };
	OK(gmem_vm_discard_list(s->lab.vm, ranges, count, NULL, &footprint));
	free(ranges);
	OK(gmem_vm_discard_pfns(s->lab.vm, &(uint32_t){ BASE >> 12 }, 1, NULL, NULL));
}

static void discard_lists(uint32_t backing)
{
	struct gmem_listener *listener;
	struct gmem_lease *lease;
	struct site s;

	site_new(&s, DEFAULT_VM, backing, 2 * the_count, recovers);
	OK(gmem_view_fill(s.view, BASE, 1, s.size, NULL));
	enter(GMEM_SANDBOX_CONVERT);
	OK(gmem_listener_new(s.lab.vm, NULL, &listener));
	discard_list(&s, the_count);
	discard_pfns(&s, the_count);
	OK(gmem_lease_new(s.lab.vm, BASE, s.size, NULL, &lease));
	REFUSED(gmem_vm_discard(s.lab.vm, BASE, s.size, NULL, NULL), -EBUSY);
	gmem_lease_free(lease);
	gmem_listener_free(listener);
	protect(&s);
	REFUSED(gmem_view_fill(s.view, BASE + s.lab.page, 7, 100, NULL), -EFAULT);
	leave();
}

TEST(discards_of_lists_call_what_the_table_says)
{
	with_each_count(discard_lists);
}

static void discard_in_a_thread(void *data, unsigned int number)
{
	struct site *s = data;
	struct gmem_lease *lease;

	for (unsigned int round = 0; round < 50; round++) {
		uint64_t gpa = BASE + number * s->lab.page;

		OK(gmem_lease_new(s->lab.vm, gpa, s->lab.page, NULL, &lease));
		gmem_lease_free(lease);
		OK(gmem_vm_discard(s->lab.vm, gpa, s->lab.page, NULL, NULL));
	}
}

static void discard_with_threads(uint32_t backing)
{
	struct site s;

	site_new(&s, DEFAULT_VM, backing, PAGES, recovers);
	enter_with_threads(GMEM_SANDBOX_CONVERT, 4, discard_in_a_thread, &s);
	leave();
}

TEST(discards_in_threads_call_what_the_table_says)
{
	with_and_without_recovery(discard_with_threads);
}

/* ---- convert ---- */

static void convert(bool recovery)
{
	struct site s;

	site_new(&s, PRIVATE_VM, GMEM_BACKING_PRIVATE, PAGES, recovery);
	enter(GMEM_SANDBOX_CONVERT);
	run_convert(&s);
	leave();
}

TEST(convert_calls_what_the_table_says)
{
	convert(false);
}

TEST(convert_with_recovery_calls_what_the_table_says)
{
	convert(true);
}

/* Every other page, then all */
static void convert_in_parts(struct site *s, uint64_t gpa, uint64_t count)
{
	struct gmem_conversion done;

	for (uint64_t i = 0; i < count; i++)
		OK(gmem_vm_convert(s->lab.vm, gpa + 2 * i * s->lab.page, s->lab.page, GMEM_STATE_PRIVATE, NULL, &done));
	OK(gmem_vm_convert(s->lab.vm, gpa, 2 * count * s->lab.page, GMEM_STATE_PRIVATE, NULL, &done));
	CHECK_EQ(done.converted, count * s->lab.page);
	OK(gmem_vm_convert(s->lab.vm, gpa, 2 * count * s->lab.page, GMEM_STATE_SHARED, NULL, &done));
}

static void convert_lists(uint64_t count)
{
	struct site s;

	site_new(&s, PRIVATE_VM, GMEM_BACKING_PRIVATE, 2 * count, true);
	enter(GMEM_SANDBOX_CONVERT);
	convert_in_parts(&s, BASE, count);
	discard_list(&s, count);
	leave();
}

TEST(convert_of_64_parts_calls_what_the_table_says)
{
	convert_lists(64);
}

TEST(convert_of_256_parts_calls_what_the_table_says)
{
	convert_lists(256);
}

TEST(convert_of_4096_parts_calls_what_the_table_says)
{
	convert_lists(4096);
}

static void convert_in_a_thread(void *data, unsigned int number)
{
	struct site *s = data;

	for (unsigned int round = 0; round < 20; round++)
		convert_in_parts(s, BASE + number * 8 * s->lab.page, 4);
}

TEST(convert_in_threads_calls_what_the_table_says)
{
	struct site s;

	site_new(&s, PRIVATE_VM, GMEM_BACKING_PRIVATE, 32, true);
	enter_with_threads(GMEM_SANDBOX_CONVERT, 4, convert_in_a_thread, &s);
	leave();
}

/* ---- snapshot ---- */

static int image_fd(uint64_t size)
{
	int fd = (int)WORKS(memfd_create("image", MFD_CLOEXEC));

	WORKS(ftruncate(fd, (off_t)(2 * size)));
	for (uint64_t at = 0; at < size; at += 4)
		CHECK_EQ(pwrite(fd, "abcd", 4, (off_t)at), 4);
	return fd;
}

static void load(struct gmem_vm *vm, int fd, uint64_t size, uint64_t flags)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .flags = flags);
	GMEM_OPTS(gmem_transfer_result, result);

	OK(gmem_vm_load(vm, BASE, fd, 0, size, &opts, &result));
	CHECK_EQ(result.data_bytes + result.zero_bytes, size);
}

/* Increments, and a migration to a file, of trackers that there are */
static void snapshot_tracked(uint32_t backing)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .dirty = NULL);
	GMEM_OPTS(gmem_dirty_opts, replacing, .flags = 0);
	struct gmem_migration *migration;
	struct gmem_dirty *dirty;
	int fd, parent, stream;
	struct site s;

	site_new(&s, DEFAULT_VM, backing, PAGES, recovers);
	fd = image_fd(0);
	parent = image_fd(0);
	stream = image_fd(0);
	dirty = opts.dirty = track(s.lab.vm);
	migration = migrate_to(s.lab.vm, stream);
	enter(GMEM_SANDBOX_SNAPSHOT);
	OK(gmem_vm_save(s.lab.vm, parent, &opts, NULL));
	OK(gmem_view_fill(s.view, BASE, 7, 100, NULL));
	OK(gmem_vm_save(s.lab.vm, fd, &opts, NULL));
	OK(gmem_migration_round(migration, NULL));
	OK(gmem_migration_finish(migration, NULL));
	opts.dirty = NULL;
	OK(gmem_vm_restore(s.lab.vm, stream, &opts, NULL));
	opts.parents = &parent;
	opts.parent_count = 1;
	OK(gmem_vm_restore(s.lab.vm, fd, &opts, NULL));
	gmem_migration_free(migration);
	gmem_dirty_free(dirty);
	replacing.flags = GMEM_DIRTY_VCPUS_STOPPED | GMEM_DIRTY_ALLOW_UNLOGGED;
	OK(gmem_dirty_new(s.lab.vm, &replacing, &dirty));
	gmem_dirty_free(dirty);
	OK(gmem_vm_bind_shared(s.lab.vm, NULL));
	leave();
}

TEST(increments_and_migrations_call_what_the_table_says)
{
	with_and_without_recovery(snapshot_tracked);
}

static void snapshot(uint32_t backing)
{
	int fd, pipes[2], sock, reader;
	struct gmem_migration *migration;
	struct site s;

	site_new(&s, DEFAULT_VM, backing, PAGES, recovers);
	fd = image_fd(s.size / 2);
	migration = migrate(&s, image_fd(0));
	WORKS(pipe(pipes));
	sock = lab_listen();
	reader = lab_connect(sock);
	CHECK_EQ(write(pipes[1], "0123456789", 10), 10);
	enter(GMEM_SANDBOX_SNAPSHOT);
	load(s.lab.vm, fd, s.size, 0);
	load(s.lab.vm, fd, s.size, GMEM_TRANSFER_NO_RING);
	OK(gmem_vm_load(s.lab.vm, BASE, pipes[0], 0, 10, NULL, NULL));
	OK(gmem_vm_dump(s.lab.vm, pipes[1], NULL));
	CHECK_RESULT(gmem_vm_serve_dump(s.lab.vm, sock, NULL, 1000), 1);
	CHECK_RESULT(gmem_vm_serve_dump(s.lab.vm, sock, NULL, 1000), 0);
	close(reader);
	OK(gmem_vm_save(s.lab.vm, fd, NULL, NULL));
	CHECK(gmem_image_info(fd, NULL, NULL, NULL, 0) > 0);
	OK(gmem_vm_restore(s.lab.vm, fd, NULL, NULL));
	OK(gmem_migration_round(migration, NULL));
	OK(gmem_migration_round(migration, NULL));
	OK(gmem_migration_finish(migration, NULL));
	gmem_migration_cancel(migration);
	leave();
}

TEST(snapshot_calls_what_the_table_says)
{
	with_and_without_recovery(snapshot);
}

/* Save, restore, load and count memory of which every other page is there. */
static void snapshot_of(struct site *s, int fd, uint64_t flags)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .flags = flags);
	GMEM_OPTS(gmem_stats, stats, .flags = GMEM_STATS_RESIDENT);
	static uint64_t bitmap[2 * 4096 / 64];

	OK(gmem_vm_save(s->lab.vm, fd, &opts, NULL));
	opts.flags &= ~GMEM_TRANSFER_SYNC;
	OK(gmem_vm_restore(s->lab.vm, fd, &opts, NULL));
	OK(gmem_vm_stats(s->lab.vm, &stats));
	if (s->backing != GMEM_BACKING_SHARED)
		OK(gmem_region_get_dirty_log(s->region, bitmap, ARRAY_SIZE(bitmap)));
	protect(s);
	REFUSED(gmem_view_fill(s->view, BASE + s->lab.page, 7, 100, NULL), -EFAULT);
}

static uint64_t the_flags;

static void snapshot_lists(uint32_t backing)
{
	struct site s;
	int fd;

	site_new(&s, DEFAULT_VM, backing, 2 * the_count, recovers);
	for (uint64_t i = 0; i < the_count; i++)
		OK(gmem_view_fill(s.view, BASE + 2 * i * s.lab.page, (uint8_t)(1 + i % 200), s.lab.page, NULL));
	fd = image_fd(0);
	enter(GMEM_SANDBOX_SNAPSHOT);
	snapshot_of(&s, fd, the_flags);
	leave();
}

TEST(snapshots_of_many_parts_call_what_the_table_says)
{
	the_flags = GMEM_TRANSFER_SYNC;
	with_each_count(snapshot_lists);
	the_flags |= GMEM_TRANSFER_NO_RING;
	with_each_count(snapshot_lists);
}

struct snapshots {
	struct site s;
	int fds[4];
};

static void snapshot_in_a_thread(void *data, unsigned int number)
{
	struct snapshots *all = data;
	GMEM_OPTS(gmem_transfer_opts, opts, .flags = number % 2 ? GMEM_TRANSFER_NO_RING : 0);

	for (unsigned int round = 0; round < 3; round++)
		OK(gmem_vm_save(all->s.lab.vm, all->fds[number], &opts, NULL));
	OK(gmem_vm_dump(all->s.lab.vm, all->fds[number], NULL));
}

static void snapshot_with_threads(uint32_t backing)
{
	struct snapshots all;

	site_new(&all.s, DEFAULT_VM, backing, 64, recovers);
	OK(gmem_view_fill(all.s.view, BASE, 1, all.s.size, NULL));
	for (size_t i = 0; i < ARRAY_SIZE(all.fds); i++)
		all.fds[i] = image_fd(0);
	enter_with_threads(GMEM_SANDBOX_SNAPSHOT, ARRAY_SIZE(all.fds), snapshot_in_a_thread, &all);
	leave();
}

TEST(snapshots_in_threads_call_what_the_table_says)
{
	with_and_without_recovery(snapshot_with_threads);
}

/* A file that is dense but for one page, large enough for threads */
static int dense_file(uint64_t size, uint64_t page)
{
	char *bytes = malloc(page);
	int fd = lab_new_file();

	CHECK(bytes);
	for (uint64_t at = 0; at < size; at += page) {
		memset(bytes, at != size - 4 * page, page);
		CHECK_EQ(pwrite(fd, bytes, page, (off_t)at), page);
	}
	free(bytes);
	return fd;
}

/* The load reads to guest memory itself and gives the page of zeros back. */
static void snapshot_on_a_disk(uint32_t backing)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .workers = 2);
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	int fd = dense_file(24 * MIB, page);
	struct site s;

	site_new(&s, DEFAULT_VM, backing, 24 * MIB / page, recovers);
	enter(GMEM_SANDBOX_SNAPSHOT);
	OK(gmem_vm_load(s.lab.vm, BASE, fd, 0, s.size, &opts, NULL));
	OK(gmem_vm_save(s.lab.vm, fd, &opts, NULL));
	OK(gmem_vm_restore(s.lab.vm, fd, &opts, NULL));
	leave();
}

TEST(snapshots_on_a_disk_call_what_the_table_says)
{
	with_and_without_recovery(snapshot_on_a_disk);
}

/* ---- share, import ---- */

/* What the device tells, in memory that both have: its filter has no other way */
enum news { DEVICE_WORKS, DEVICE_HAS_USED, DEVICE_IS_DONE };
static int *device_news;

static void tell(enum news news)
{
	__atomic_store_n(device_news, (int)news, __ATOMIC_RELEASE);
}

static void hear(enum news news)
{
	for (unsigned int i = 0; i < 5000 && __atomic_load_n(device_news, __ATOMIC_ACQUIRE) < (int)news; i++)
		poll(NULL, 0, 1);
	CHECK(__atomic_load_n(device_news, __ATOMIC_ACQUIRE) >= (int)news);
}

/* The device process: it uses what the VMM gives, gives it back, and ends with the VMM. */
__attribute__((noreturn)) static void be_device(int socket)
{
	struct site s = { .lab = { .page = page_size() }, .size = PAGES * page_size() };
	GMEM_OPTS(gmem_import_opts, opts, .max_extents = 1 << 16);
	struct gmem_import *import;
	int ret;

	if (recovers)
		OK(gmem_recovery_enable());
	enter(GMEM_SANDBOX_IMPORT);
	OK(gmem_import_new(socket, &opts, &import));
	while ((ret = gmem_import_wait(import, -1, 10)) >= 0) {
		if (!s.view)
			OK(gmem_import_view_new(import, &s.view));
		if (gmem_view_store(s.view, BASE, 8, GMEM_RELEASE, 42) == 0) {
			use_view(&s);
			tell(DEVICE_HAS_USED);
		}
	}
	CHECK_RESULT(ret, -EPIPE);
	gmem_view_free(s.view);
	gmem_import_free(import);
	tell(DEVICE_IS_DONE);
	leave();
}

static int start_device(void)
{
	int sockets[2];

	device_news = mmap(NULL, page_size(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(device_news != MAP_FAILED);
	WORKS(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets));
	fflush(stdout);
	if (WORKS(fork()) == 0) {
		close(sockets[0]);
		be_device(sockets[1]);
	}
	close(sockets[1]);
	return sockets[0];
}

static void give_all(struct gmem_export *exporter, struct gmem_peer *peer)
{
	OK(gmem_export_dispatch(exporter));
	CHECK_RESULT(gmem_peer_wait(peer, 10000), 1);
}

/*
 * @more: a list of regions that come, go and come while the device has them; without, it marks
 * what it writes, because there is a tracker.
 */
static void share_with_device(uint32_t backing, uint64_t more)
{
	GMEM_OPTS(gmem_dirty_opts, tracking, .flags = GMEM_DIRTY_ALLOW_UNLOGGED);
	GMEM_OPTS(gmem_peer_opts, opts, .wait_ms = 30000);
	struct gmem_dirty *dirty;
	struct gmem_export *exporter;
	struct gmem_peer *peer;
	struct site s;
	int socket = start_device();

	site_new(&s, DEFAULT_VM, backing, PAGES, recovers);
	s.count = more;
	list_new(&s);
	if (!more)
		OK(gmem_dirty_new(s.lab.vm, &tracking, &dirty));
	enter(more ? GMEM_SANDBOX_SHARE | GMEM_SANDBOX_LAYOUT : GMEM_SANDBOX_SHARE);
	OK(gmem_export_new(s.lab.vm, NULL, &exporter));
	OK(gmem_peer_add(exporter, socket, &opts, &peer));
	/* Each region is a message and its answer, which takes a while on a busy machine. */
	for (unsigned int round = 0; round < (more && more <= 256 ? 3 : 1); round++) {
		if (more)
			change_list(&s, round != 1);
		give_all(exporter, peer);
	}
	hear(DEVICE_HAS_USED);
	gmem_peer_remove(peer);
	gmem_export_free(exporter);
	hear(DEVICE_IS_DONE);
	leave();
}

/* Anonymous memory cannot be given: nothing names it. */
static void share(uint32_t backing)
{
	if (backing == GMEM_BACKING_HOST)
		leave();
	share_with_device(backing, 0);
}

TEST(share_and_import_call_what_the_tables_say)
{
	with_and_without_recovery(share);
}

static void share_lists(uint32_t backing)
{
	if (backing == GMEM_BACKING_HOST || (the_count > 256 && backing != GMEM_BACKING_SHARED))
		leave();
	share_with_device(backing, the_count);
}

TEST(share_of_lists_calls_what_the_tables_say)
{
	with_each_count(share_lists);
}

int main(int argc, char **argv)
{
	static char buffer[1 << 16];

	/* Otherwise the first message asks what the file is. */
	setvbuf(stdout, buffer, _IOFBF, sizeof(buffer));
	return run_tests(argc, argv);
}
