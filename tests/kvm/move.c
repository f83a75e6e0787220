/* SPDX-License-Identifier: MIT */
/* Memory that is put in place, and given back: what the kernel says of it, and the guest. */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lab.h"

#define BASE (256 * MIB)
#define SIZE (8 * MIB)

struct site {
	struct lab lab;
	struct gmem_region *region;	/* SIZE at BASE */
	uint32_t backing;
	char *hva;
	uint64_t page;
};

/* ---- every way of backing ---- */

struct check {
	void (*run)(struct site *site);
};

static void run_in_site(int type, uint32_t backing, void *data)
{
	const struct check *check = data;
	struct site s = { .backing = backing };

	lab_new(&s.lab, type);
	s.page = s.lab.page;
	s.region = lab_add(&s.lab, backing, BASE, SIZE / s.page, NULL);
	s.hva = gmem_region_hva(s.region);
	check->run(&s);
	lab_free(&s.lab);
}

#define EVERY_WAY (~0u)
#define SHARED_FILES (1u << GMEM_BACKING_MAPPED | 1u << GMEM_BACKING_SHARED)
#define PRIVATE (1u << GMEM_BACKING_PRIVATE)

static void for_each_way(uint32_t ways, void (*run)(struct site *))
{
	lab_for_each_way(ways, run_in_site, &(struct check){ run });
}

static uint64_t pages_of_file(const struct site *s)
{
	return allocated_pages(gmem_file_fd(gmem_region_file(s->region, NULL)));
}

static bool has_shared_file(const struct site *s)
{
	return SHARED_FILES & 1u << s->backing;
}

static void check_footprint(const struct gmem_footprint *footprint, uint64_t done, uint64_t before,
			    uint64_t after)
{
	CHECK_EQ(footprint->counted, 1);
	CHECK_EQ(footprint->done, done);
	CHECK_EQ(footprint->before, before);
	CHECK_EQ(footprint->after, after);
}

/* ---- populate ---- */

static void populate_everything(struct site *s)
{
	GMEM_OPTS(gmem_populate_opts, opts, .workers = 2);
	struct gmem_footprint footprint;

	host_store(s->hva + 5 * s->page, 0x1234);
	OK(gmem_vm_populate(s->lab.vm, BASE, SIZE, &opts, &footprint));
	check_footprint(&footprint, SIZE, s->page, SIZE);
	if (has_shared_file(s))
		CHECK_EQ(pages_of_file(s), SIZE / s->page);
	CHECK_EQ(host_load(s->hva + 5 * s->page), 0x1234);
	GUEST_LOADS(&s->lab.guest, BASE + 5 * s->page, 0x1234);
	GUEST_STORES(&s->lab.guest, BASE + 6 * s->page, 0x5678);
	CHECK_EQ(host_load(s->hva + 6 * s->page), 0x5678);
}

TEST(populated_memory_is_there_and_keeps_what_it_had)
{
	require_cachestat();
	for_each_way(EVERY_WAY, populate_everything);
}

static void reserve_everything(struct site *s)
{
	GMEM_OPTS(gmem_populate_opts, opts, .flags = GMEM_POPULATE_RESERVE);
	struct gmem_footprint footprint;

	OK(gmem_vm_populate(s->lab.vm, BASE, SIZE, &opts, &footprint));
	check_footprint(&footprint, SIZE, 0, SIZE);
	CHECK_EQ(pages_of_file(s), SIZE / s->page);
	GUEST_LOADS(&s->lab.guest, BASE + 3 * s->page, 0);
}

TEST(reserved_memory_is_there_and_zero)
{
	require_cachestat();
	for_each_way(SHARED_FILES, reserve_everything);
}

static void populate_private(struct site *s)
{
	const uint64_t gpa = BASE + 2 * MIB, size = 3 * MIB;
	struct gmem_footprint footprint;

	OK(gmem_vm_convert(s->lab.vm, gpa, size, GMEM_STATE_PRIVATE, NULL, NULL));
	OK(gmem_vm_populate(s->lab.vm, BASE, SIZE, NULL, &footprint));
	check_footprint(&footprint, SIZE, 0, SIZE);
	CHECK_EQ(pages_of_file(s), size / s->page);
	GUEST_STORES(&s->lab.guest, gpa + s->page, 0x77);
	GUEST_LOADS(&s->lab.guest, gpa + s->page, 0x77);

	/* The whole range is private, and its pages go. */
	OK(gmem_vm_discard(s->lab.vm, gpa, size, NULL, &footprint));
	check_footprint(&footprint, size, size, 0);
	CHECK_EQ(pages_of_file(s), 0);
	GUEST_LOADS(&s->lab.guest, gpa + s->page, 0);
}

TEST(private_memory_is_populated_and_freed_in_its_file)
{
	require_cachestat();
	for_each_way(PRIVATE, populate_private);
}

struct watch {
	uint64_t done;
	unsigned int calls;
	unsigned int cancel_at;
};

static int watch(void *data, uint64_t done, uint64_t total)
{
	struct watch *w = data;

	CHECK_EQ(total, SIZE);
	CHECK(done > w->done);
	w->done = done;
	return ++w->calls == w->cancel_at;
}

static void cancel_in_the_middle(struct site *s)
{
	struct watch w = { .cancel_at = 2 };
	GMEM_OPTS(gmem_populate_opts, opts, .progress = watch, .progress_data = &w);
	struct gmem_footprint footprint;

	REFUSED(gmem_vm_populate(s->lab.vm, BASE, SIZE, &opts, &footprint), -ECANCELED);
	CHECK(w.done < SIZE);
	check_footprint(&footprint, w.done, 0, w.done);
}

TEST(cancelling_tells_exactly_what_is_there)
{
	require_cachestat();
	for_each_way(EVERY_WAY, cancel_in_the_middle);
}

static void *run_job(void *job)
{
	OK(gmem_populate_run(job));
	return NULL;
}

static void populate_with_own_threads(struct site *s)
{
	GMEM_OPTS(gmem_populate_opts, opts, .workers = 3);
	struct gmem_footprint footprint;
	struct gmem_populate *job;
	pthread_t threads[3];

	OK(gmem_populate_new(s->lab.vm, BASE, SIZE, &opts, &job));
	for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
		CHECK_EQ(pthread_create(&threads[i], NULL, run_job, job), 0);
	for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
		CHECK_EQ(pthread_join(threads[i], NULL), 0);
	OK(gmem_populate_result(job, &footprint));
	check_footprint(&footprint, SIZE, 0, SIZE);
	gmem_populate_free(job);
}

TEST(threads_of_the_callers_do_it_together)
{
	require_cachestat();
	for_each_way(EVERY_WAY, populate_with_own_threads);
}

static volatile sig_atomic_t signals;

static void count_signal(int number)
{
	(void)number;
	signals++;
}

static void populate_and_discard_under_fire(struct site *s)
{
	const struct itimerval often = { { 0, 500 }, { 0, 500 } }, never = { { 0, 0 }, { 0, 0 } };
	struct sigaction action = { .sa_handler = count_signal };	/* no SA_RESTART */
	struct gmem_footprint footprint;
	int rounds = 0;

	signals = 0;
	WORKS(sigaction(SIGALRM, &action, NULL));
	WORKS(setitimer(ITIMER_REAL, &often, NULL));
	do {
		OK(gmem_vm_populate(s->lab.vm, BASE, SIZE, NULL, &footprint));
		check_footprint(&footprint, SIZE, 0, SIZE);
		OK(gmem_vm_discard(s->lab.vm, BASE, SIZE, NULL, &footprint));
		check_footprint(&footprint, SIZE, SIZE, 0);
	} while (++rounds < 3 || signals < 5);
	WORKS(setitimer(ITIMER_REAL, &never, NULL));
}

TEST(signals_do_not_get_in_the_way)
{
	require_cachestat();
	for_each_way(EVERY_WAY, populate_and_discard_under_fire);
}

/* ---- what does not fit ---- */

static uint64_t memory_of_machine(void)
{
	return (uint64_t)sysconf(_SC_PHYS_PAGES) * page_size();
}

TEST(more_than_the_machine_has_is_refused)
{
	const uint64_t size = (memory_of_machine() / GIB + 1) * GIB;
	struct gmem_footprint footprint;
	struct lab lab;

	if (size > 64 * GIB)
		skip("KVM keeps books of each page, too many with 0x%llx bytes of memory",
		     (unsigned long long)size);
	lab_new(&lab, DEFAULT_VM);
	lab_add(&lab, GMEM_BACKING_HOST, 4 * GIB, size / lab.page, NULL);
	REFUSED(gmem_vm_populate(lab.vm, 4 * GIB, size, NULL, &footprint), -ENOMEM);
	note("%s", gmem_last_error());
	CHECK_EQ(footprint.done, 0);
	lab_free(&lab);
}

static bool write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool written = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	if (fd >= 0)
		close(fd);
	return written;
}

#define GROUP "/sys/fs/cgroup/gmem-test"
#define GROUP_MIB 96

/* Into a cgroup of our own with a limit, where the whole tree is ours */
static void enter_group(const char *file)
{
	char text[64] = "", limit[32];
	int fd = open("/proc/self/cgroup", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd >= 0 ? read(fd, text, sizeof(text) - 1) : -1;

	if (fd >= 0)
		close(fd);
	if (n > 0 && strcmp(text, "0::/\n") != 0)
		skip("this process is in no cgroup2 tree of its own");
	if (!write_file("/sys/fs/cgroup/cgroup.subtree_control", "+memory"))
		skip("no memory controller for cgroups: %s", strerror(errno));
	if (mkdir(GROUP, 0755) && errno != EEXIST)
		skip("no cgroup can be made: %s", strerror(errno));

	snprintf(limit, sizeof(limit), "%d", GROUP_MIB << 20);
	CHECK(write_file(file, limit));
	CHECK(write_file(GROUP "/cgroup.procs", "0"));
}

static void leave_group(void)
{
	CHECK(write_file("/sys/fs/cgroup/cgroup.procs", "0"));
	rmdir(GROUP);
}

static const char *group_limit;
static int group_file;

/* A file with twice what the limit is; written outside of the group */
static void make_group_file(void)
{
	char *bytes = malloc(MIB);

	CHECK(bytes);
	memset(bytes, 1, MIB);
	group_file = (int)WORKS(memfd_create("file", MFD_CLOEXEC));
	for (int i = 0; i < 2 * GROUP_MIB; i++)
		CHECK_EQ(write(group_file, bytes, MIB), MIB);
	free(bytes);
}

static void fill_group(struct site *s)
{
	struct gmem_footprint footprint;

	/* Twice what the limit is, of which the machine has enough */
	lab_add(&s->lab, s->backing, 2 * BASE, 2 * GROUP_MIB * MIB / s->page, NULL);
	REFUSED(gmem_vm_populate(s->lab.vm, 2 * BASE, 2 * GROUP_MIB * MIB, NULL, &footprint),
		-ENOMEM);
	CHECK(strstr(gmem_last_error(), group_limit));
	CHECK_EQ(footprint.done, 0);
	REFUSED(gmem_vm_load(s->lab.vm, 2 * BASE, group_file, 0, 2 * GROUP_MIB * MIB, NULL, NULL),
		-ENOMEM);
	CHECK(strstr(gmem_last_error(), group_limit));
	OK(gmem_vm_populate(s->lab.vm, BASE, SIZE, NULL, &footprint));
	check_footprint(&footprint, SIZE, 0, SIZE);
}

static void check_group(const char *file, const char *words)
{
	make_group_file();
	enter_group(file);
	group_limit = words;
	for_each_way(EVERY_WAY, fill_group);
	note("%s", gmem_last_error());
	close(group_file);
	leave_group();
}

TEST(more_than_a_memory_cgroup_may_have_is_refused)
{
	check_group(GROUP "/memory.max", "memory.max of " GROUP);
}

/* The kernel would not kill, but put the process to sleep for seconds at a time. */
TEST(more_than_a_memory_cgroup_has_before_it_is_throttled_is_refused)
{
	check_group(GROUP "/memory.high", "memory.high of " GROUP);
}

static void overfill_group(void)
{
	GMEM_OPTS(gmem_populate_opts, opts, .flags = GMEM_POPULATE_UNCHECKED);
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	lab_add(&lab, GMEM_BACKING_HOST, BASE, 2 * GROUP_MIB * MIB / lab.page, NULL);
	gmem_vm_populate(lab.vm, BASE, 2 * GROUP_MIB * MIB, &opts, NULL);
	_exit(0);
}

/* Why there is a check at all: nobody gets to see an error. */
TEST(without_the_check_the_kernel_kills)
{
	int status = 0;
	pid_t child;

	enter_group(GROUP "/memory.max");
	if (!write_file(GROUP "/memory.swap.max", "0"))
		note("no limit for swap");
	child = (pid_t)WORKS(fork());
	if (child == 0)
		overfill_group();
	WORKS(waitpid(child, &status, 0));
	CHECK(WIFSIGNALED(status));
	CHECK_EQ(WTERMSIG(status), SIGKILL);
	leave_group();
}

/* ---- discard ---- */

static void discard_the_middle(struct site *s)
{
	const uint64_t gpa = BASE + MIB, size = 2 * MIB;
	struct gmem_footprint footprint;

	memset(s->hva, 0x5a, SIZE);
	GUEST_LOADS(&s->lab.guest, gpa, 0x5a5a5a5a);
	GUEST_LOADS(&s->lab.guest, gpa - s->page, 0x5a5a5a5a);
	OK(gmem_vm_discard(s->lab.vm, gpa, size, NULL, &footprint));
	check_footprint(&footprint, size, size, 0);
	if (has_shared_file(s))
		CHECK_EQ(pages_of_file(s), (SIZE - size) / s->page);

	/* Host and guest find zero, and find each other's stores again. */
	GUEST_LOADS(&s->lab.guest, gpa, 0);
	CHECK_EQ(host_load(s->hva + MIB + s->page), 0);
	GUEST_STORES(&s->lab.guest, gpa + s->page, 0x99);
	CHECK_EQ(host_load(s->hva + MIB + s->page), 0x99);
	GUEST_LOADS(&s->lab.guest, gpa - s->page, 0x5a5a5a5a);
	GUEST_LOADS(&s->lab.guest, gpa + size, 0x5a5a5a5a);
}

TEST(discarded_memory_is_gone_for_guest_and_host)
{
	require_cachestat();
	for_each_way(EVERY_WAY, discard_the_middle);
}

/* Pages of 4 KiB, every second one, then the rest: whole host pages only at the end */
static void inflate(struct site *s)
{
	GMEM_OPTS(gmem_discard_opts, inward, .flags = GMEM_DISCARD_INWARD);
	const size_t count = MIB / 4096;
	struct gmem_gpa_range *ranges = calloc(count, sizeof(*ranges));
	struct gmem_footprint footprint;
	uint64_t whole = 0;

	CHECK(ranges);
	memset(s->hva, 0x5a, SIZE);
	for (size_t i = 0; i < count; i++)
		ranges[i] = (struct gmem_gpa_range){ BASE + i * 101 % count * 4096, 4096 };
	OK(gmem_vm_discard_list(s->lab.vm, ranges, count, &inward, &footprint));
	check_footprint(&footprint, MIB, MIB, 0);

	for (size_t i = 0; i < count / 2; i++)
		ranges[i] = (struct gmem_gpa_range){ BASE + MIB + 2 * i * 4096, 4096 };
	if (s->page == 4096)
		whole = MIB / 2;
	OK(gmem_vm_discard_list(s->lab.vm, ranges, count / 2, &inward, &footprint));
	check_footprint(&footprint, whole, whole, 0);
	CHECK_EQ((unsigned char)s->hva[MIB + 4096], 0x5a);
	free(ranges);
}

TEST(pages_of_a_balloon_are_freed_where_they_make_up_pages_of_the_host)
{
	require_cachestat();
	for_each_way(EVERY_WAY, inflate);
}

static void discard_under_a_lease(struct site *s)
{
	GMEM_OPTS(gmem_lease_opts, holder, .holder = "disk 0");
	struct gmem_lease *lease;

	memset(s->hva, 0x5a, SIZE);
	OK(gmem_lease_new(s->lab.vm, BASE + MIB, 1, &holder, &lease));
	REFUSED(gmem_vm_discard(s->lab.vm, BASE, SIZE, NULL, NULL), -EBUSY);
	CHECK(strstr(gmem_last_error(), "disk 0"));
	CHECK_EQ(s->hva[0], 0x5a);
	gmem_lease_free(lease);
	OK(gmem_vm_discard(s->lab.vm, BASE, SIZE, NULL, NULL));
	CHECK_EQ(s->hva[0], 0);
}

TEST(leased_memory_is_not_discarded)
{
	for_each_way(EVERY_WAY, discard_under_a_lease);
}

/* The same memory at a second guest address, as the caller's own, and through its file */
static void discard_leased_alias(struct site *s)
{
	const uint64_t other = BASE + 64 * MIB;
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_HVA, .hva = s->hva);
	bool is_file = 1u << s->backing & SHARED_FILES;
	struct gmem_region *alias;
	struct gmem_lease *lease;
	uint64_t offset;

	alias = lab_add(&s->lab, GMEM_BACKING_HOST, other, SIZE / s->page, &opts);
	memset(s->hva, 0x5a, SIZE);

	OK(gmem_lease_new(s->lab.vm, BASE + MIB, 1, NULL, &lease));
	REFUSED(gmem_vm_discard(s->lab.vm, other, SIZE, NULL, NULL), -EBUSY);
	if (is_file)
		REFUSED(gmem_file_punch(gmem_region_file(s->region, &offset), MIB, s->page, NULL), -EBUSY);
	OK(gmem_region_remove(alias));
	gmem_lease_free(lease);

	alias = lab_add(&s->lab, GMEM_BACKING_HOST, other, SIZE / s->page, &opts);
	OK(gmem_lease_new(s->lab.vm, other + MIB, 1, NULL, &lease));
	REFUSED(gmem_vm_discard(s->lab.vm, BASE, SIZE, NULL, NULL), -EBUSY);
	CHECK_EQ(s->hva[0], 0x5a);
	OK(gmem_vm_discard(s->lab.vm, BASE, MIB, NULL, NULL));
	CHECK_EQ(s->hva[MIB], 0x5a);
	gmem_lease_free(lease);
	OK(gmem_vm_discard(s->lab.vm, BASE, SIZE, NULL, NULL));
	CHECK_EQ(s->hva[MIB], 0);
	OK(gmem_region_remove(alias));
}

TEST(leased_memory_is_not_discarded_through_an_alias)
{
	for_each_way(EVERY_WAY, discard_leased_alias);
}

/* Memory of a VMM that shares it with other processes */
TEST(a_memfd_of_the_callers_is_punched)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_HVA);
	struct gmem_footprint footprint;
	struct lab lab;
	struct stat st;
	char *hva;
	int fd;

	lab_new(&lab, DEFAULT_VM);
	fd = (int)WORKS(memfd_create("guest", MFD_CLOEXEC));
	WORKS(ftruncate(fd, (off_t)SIZE));
	hva = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(hva != MAP_FAILED);
	opts.hva = hva;
	lab_add(&lab, GMEM_BACKING_HOST, BASE, SIZE / lab.page, &opts);

	OK(gmem_vm_populate(lab.vm, BASE, SIZE, NULL, &footprint));
	check_footprint(&footprint, SIZE, 0, SIZE);
	WORKS(fstat(fd, &st));
	CHECK_EQ(st.st_blocks * 512, SIZE);

	hva[0] = 1;
	OK(gmem_vm_discard(lab.vm, BASE, SIZE / 2, NULL, &footprint));
	check_footprint(&footprint, SIZE / 2, SIZE / 2, 0);
	WORKS(fstat(fd, &st));
	CHECK_EQ(st.st_blocks * 512, SIZE / 2);
	CHECK_EQ(hva[0], 0);

	lab_free(&lab);
	WORKS(munmap(hva, SIZE));
	WORKS(close(fd));
}

/* ---- while the guest runs ---- */

/*
 * Either may get nowhere while the other is at it, and where processors take
 * turns every meeting of the two takes a turn: so both have little to do.
 */
struct stress {
	struct site *site;
	int is_over;	/* atomic: the guest has done what it had to */
};

static unsigned int rounds(unsigned int emulated)
{
	return emulated_machine() ? emulated : 20 * emulated;
}

static void *discard_again_and_again(void *data)
{
	struct stress *stress = data;

	for (unsigned int i = 0; i < rounds(2); i++) {
		if (__atomic_load_n(&stress->is_over, __ATOMIC_RELAXED))
			break;
		OK(gmem_vm_discard(stress->site->lab.vm, BASE, MIB, NULL, NULL));
		OK(gmem_vm_populate(stress->site->lab.vm, BASE, 2 * MIB, NULL, NULL));
	}
	return NULL;
}

/* In discarded pages the guest finds what it stored, or zero; the others keep their contents. */
static void run_guest_meanwhile(struct site *s)
{
	struct stress stress = { .site = s };
	struct guest_access access;
	pthread_t thread;

	CHECK_EQ(pthread_create(&thread, NULL, discard_again_and_again, &stress), 0);
	for (uint32_t i = 1; i <= rounds(5); i++) {
		uint64_t gpa = BASE + i * 7 % (MIB / s->page) * s->page;

		GUEST_STORES(&s->lab.guest, gpa, i);
		access = guest_load(&s->lab.guest, gpa);
		CHECK_EQ(access.outcome, GUEST_DONE);
		CHECK(access.value == 0 || access.value == i);
		GUEST_STORES(&s->lab.guest, gpa + MIB, i);
		GUEST_LOADS(&s->lab.guest, gpa + MIB, i);
	}
	__atomic_store_n(&stress.is_over, 1, __ATOMIC_RELAXED);
	CHECK_EQ(pthread_join(thread, NULL), 0);
}

TEST(a_running_guest_goes_on)
{
	for_each_way(EVERY_WAY, run_guest_meanwhile);
}

int main(int argc, char **argv)
{
	/* With huge pages, touching one page brings in hundreds. */
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	return run_tests(argc, argv);
}
