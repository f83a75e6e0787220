/* SPDX-License-Identifier: MIT */
/* Which VM it is, whose memory it is, and what is left of them at the end */
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "lab.h"

#define SHARED_FLAGS (GMEM_CREATE_MMAP | GMEM_CREATE_INIT_SHARED)
#define BASE	GIB
#define THREADS	2

#ifndef F_DUPFD_QUERY
#define F_DUPFD_QUERY 1027
#endif

static struct gmem_vm *new_handle(const struct machine *m, int vm_fd)
{
	GMEM_OPTS(gmem_vm_opts, opts, .caps = m->caps);
	struct gmem_vm *vm = NULL;

	OK(gmem_vm_new(vm_fd, &opts, &vm));
	return vm;
}

static int add_with(struct gmem_vm *vm, const struct gmem_plan *plan, struct gmem_file *file)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = plan, .file = file);
	struct gmem_region *region = NULL;

	return gmem_region_add(vm, BASE, page_size(), &opts, &region);
}

static bool has_slot(int vm_fd, uint32_t slot, void *hva)
{
	/* a memslot that exists has another size */
	int err = raw_slot(vm_fd, slot, 0, 200 * GIB, page_size(), hva);

	if (err)
		return true;
	CHECK_RESULT(raw_slot(vm_fd, slot, 0, 0, 0, NULL), 0);
	return false;
}

/* ---- a number that is another VM's by now ---- */

static void check_successor(uint32_t backing)
{
	struct gmem_file *file = NULL, *adopted = NULL;
	struct gmem_plan *plan;
	struct gmem_vm *vm;
	struct machine m;
	int number;

	machine_new(&m, DEFAULT_VM);
	require_create_flags(&m, SHARED_FLAGS);
	require_backing(&m, backing, &plan);
	OK(gmem_file_new_raw(m.vm_fd, page_size(), SHARED_FLAGS, &file));
	number = m.vm_fd;
	close(m.vm_fd);
	m.vm_fd = (int)WORKS(raw_vm(m.kvm_fd, vm_argument(m.kvm_fd, DEFAULT_VM)));
	CHECK_EQ(m.vm_fd, number);

	vm = new_handle(&m, m.vm_fd);
	REFUSED(add_with(vm, plan, file), -EXDEV);
	REFUSED(gmem_file_adopt(m.vm_fd, gmem_file_fd(file), NULL, &adopted), -EXDEV);
	gmem_file_free(file);

	/* and its own is its own, with any of its numbers */
	number = dup(m.vm_fd);
	OK(gmem_file_new_raw(number, page_size(), SHARED_FLAGS, &file));
	close(number);
	OK(add_with(vm, plan, file));
	gmem_file_free(file);
	gmem_vm_free(vm);
	gmem_plan_free(plan);
	machine_free(&m);
}

TEST(a_file_of_a_vm_that_is_gone_is_not_bound_to_its_successor)
{
	check_successor(GMEM_BACKING_MAPPED);
}

TEST(a_file_of_a_vm_that_is_gone_is_not_shared_with_its_successor)
{
	check_successor(GMEM_BACKING_SHARED);
}

TEST(a_freed_handle_leaves_the_vm_alone_that_got_its_number)
{
	void *hva = mmap(NULL, 2 * page_size(), PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct lab lab;
	int other;

	lab_new(&lab, DEFAULT_VM);
	lab_add(&lab, GMEM_BACKING_HOST, BASE, 1, NULL);
	guest_free(&lab.guest);
	close(lab.m.vm_fd);
	other = (int)WORKS(raw_vm(lab.m.kvm_fd, vm_argument(lab.m.kvm_fd, DEFAULT_VM)));
	CHECK_EQ(other, lab.m.vm_fd);
	CHECK_RESULT(raw_slot(other, 0, 0, BASE, 2 * page_size(), hva), 0);
	gmem_vm_free(lab.vm);
	CHECK_RESULT(raw_slot(other, 0, 0, 0, 0, NULL), 0);
	munmap(hva, 2 * page_size());
	machine_free(&lab.m);
}

/* ---- where the kernel does not compare fds ---- */

/* kcmp() and fcntl(F_DUPFD_QUERY) are -EPERM from now on, as in a sandbox. */
static void refuse_comparison(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_kcmp, 4, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_fcntl, 0, 2),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, F_DUPFD_QUERY, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
	};
	const struct sock_fprog program = { ARRAY_SIZE(code), code };

	WORKS(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0)
		skip("this kernel is built without seccomp filters");
}

TEST(files_are_told_apart_where_fds_cannot_be_compared)
{
	refuse_comparison();
	check_successor(GMEM_BACKING_SHARED);
}

TEST(a_bound_file_is_told_apart_where_fds_cannot_be_compared)
{
	refuse_comparison();
	check_successor(GMEM_BACKING_MAPPED);
}

/* ---- threads ---- */

struct race {
	const struct machine *m;
	int gmemfd;
	struct timespec end;
	unsigned long tries;
	unsigned long wrong;
	char sentence[400];
};

static bool is_over(const struct race *race)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec > race->end.tv_sec ||
	       (now.tv_sec == race->end.tv_sec && now.tv_nsec >= race->end.tv_nsec);
}

static void keep(struct race *race, bool ok, const char *sentence)
{
	race->tries++;
	if (ok)
		return;
	race->wrong++;
	snprintf(race->sentence, sizeof(race->sentence), "%s", sentence);
}

static void *adopt_again_and_again(void *data)
{
	GMEM_OPTS(gmem_adopt_opts, opts,
		  .flags = GMEM_ADOPT_CREATE_FLAGS, .create_flags = SHARED_FLAGS);
	struct race *race = data;
	struct gmem_file *file;

	while (!is_over(race)) {
		int err = gmem_file_adopt(race->m->vm_fd, race->gmemfd, &opts, &file);

		keep(race, !err, gmem_last_error());
		if (!err)
			gmem_file_free(file);
	}
	return NULL;
}

static void *report_again_and_again(void *data)
{
	struct race *race = data;
	struct gmem_finding bind, log;
	struct gmem_caps *caps;

	while (!is_over(race)) {
		if (gmem_caps_new(race->m->vm_fd, NULL, &caps)) {
			keep(race, false, gmem_last_error());
			continue;
		}
		if (gmem_caps_get(caps, GMEM_CAP_BIND, &bind) ||
		    gmem_caps_get(caps, GMEM_CAP_DIRTY_LOG, &log))
			keep(race, false, gmem_last_error());
		else
			keep(race, bind.answer == GMEM_YES && log.answer == GMEM_YES,
			     bind.answer == GMEM_YES ? log.reason : bind.reason);
		gmem_caps_free(caps);
	}
	return NULL;
}

static void run_race(void *(*const work[THREADS])(void *))
{
	struct race races[THREADS];
	pthread_t threads[THREADS];
	struct machine m;

	machine_new(&m, DEFAULT_VM);
	require_create_flags(&m, SHARED_FLAGS);
	for (unsigned int i = 0; i < THREADS; i++) {
		races[i] = (struct race){ .m = &m };
		races[i].gmemfd = (int)WORKS(raw_create(m.vm_fd, MIB, SHARED_FLAGS));
		clock_gettime(CLOCK_MONOTONIC, &races[i].end);
		races[i].end.tv_sec++;
		CHECK_EQ(pthread_create(&threads[i], NULL, work[i], &races[i]), 0);
	}
	for (unsigned int i = 0; i < THREADS; i++) {
		pthread_join(threads[i], NULL);
		close(races[i].gmemfd);
		if (races[i].wrong)
			FAIL("%lu of %lu answers are wrong: %s", races[i].wrong, races[i].tries,
			     races[i].sentence);
		CHECK(races[i].tries > 0);
	}
	machine_free(&m);
}

TEST(threads_adopt_files_of_one_vm_at_once)
{
	run_race((void *(*const[])(void *)){ adopt_again_and_again, adopt_again_and_again });
}

TEST(threads_make_reports_of_one_vm_at_once)
{
	run_race((void *(*const[])(void *)){ report_again_and_again, report_again_and_again });
}

TEST(threads_adopt_and_make_reports_at_once)
{
	run_race((void *(*const[])(void *)){ adopt_again_and_again, report_again_and_again });
}

/* ---- memslots of somebody else ---- */

TEST(a_second_handle_is_told_whose_memslots_are_in_the_way)
{
	struct gmem_region *region = NULL;
	struct gmem_plan *plan;
	struct gmem_vm *second;
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	require_backing(&lab.m, GMEM_BACKING_HOST, &plan);
	lab_add(&lab, GMEM_BACKING_HOST, BASE, 2, NULL);
	second = new_handle(&lab.m, lab.m.vm_fd);
	GMEM_OPTS(gmem_region_opts, opts, .plan = plan);

	/* both begin with memslot 0 */
	REFUSED(gmem_region_add(second, 2 * GIB, lab.page, &opts, &region), -EEXIST);
	CHECK(strstr(gmem_last_error(), "memslot 0"));
	CHECK(strstr(gmem_last_error(), "another handle"));

	OK(gmem_vm_reserve_slots(second, 0, 1));
	REFUSED(gmem_region_add(second, BASE, lab.page, &opts, &region), -EEXIST);
	CHECK(strstr(gmem_last_error(), "another handle"));
	OK(gmem_region_add(second, 2 * GIB, lab.page, &opts, &region));
	gmem_vm_free(second);
	gmem_plan_free(plan);
	lab_free(&lab);
}

/* ---- mappings ---- */

TEST(a_freed_file_leaves_what_was_mapped_over_it)
{
	GMEM_OPTS(gmem_map_opts, opts, .flags = GMEM_MAP_REPLACE);
	struct gmem_file *below = NULL, *above = NULL;
	void *hva = NULL, *middle = NULL;
	struct machine m;

	machine_new(&m, DEFAULT_VM);
	require_create_flags(&m, SHARED_FLAGS);
	OK(gmem_file_new_raw(m.vm_fd, 3 * page_size(), SHARED_FLAGS, &below));
	OK(gmem_file_new_raw(m.vm_fd, page_size(), SHARED_FLAGS, &above));
	hva = map_file(below);
	opts.hva = (char *)hva + page_size();
	OK(gmem_file_map(above, 0, page_size(), &opts, &middle));
	host_store(middle, 7);
	gmem_file_free(below);
	CHECK_EQ(host_load(middle), 7);
	EXPECT_SIGNAL(SIGSEGV, hva, host_load(hva));
	CHECK_EQ(count_mappings("kvm-gmem"), 1);
	gmem_file_free(above);
	CHECK_EQ(count_mappings("kvm-gmem"), 0);
	machine_free(&m);
}

/* ---- the end ---- */

TEST(a_handle_that_ends_with_its_vm_leaves_the_memslots)
{
	void *hva = mmap(NULL, 2 * page_size(), PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct gmem_region *region;
	void *memory;
	struct lab lab;

	lab_new(&lab, DEFAULT_VM);
	region = lab_add(&lab, GMEM_BACKING_HOST, BASE, 1, NULL);
	memory = gmem_region_hva(region);
	gmem_vm_free_with_vm(lab.vm);
	EXPECT_SIGNAL(SIGSEGV, memory, host_load(memory));
	CHECK(has_slot(lab.m.vm_fd, 0, hva));
	CHECK(!has_slot(lab.m.vm_fd, 1, hva));
	guest_free(&lab.guest);
	machine_free(&lab.m);
	munmap(hva, 2 * page_size());
}

TEST(a_vm_ends_with_its_handle_if_nothing_else_holds_it)
{
	int before = count_vms();
	struct lab lab;

	if (before < 0)
		skip("debugfs does not show VMs");
	lab_new(&lab, DEFAULT_VM);
	lab_add(&lab, GMEM_BACKING_HOST, BASE, 1, NULL);
	if (expect_vm(DEFAULT_VM)->backings & (1u << GMEM_BACKING_SHARED))
		lab_add(&lab, GMEM_BACKING_SHARED, 2 * GIB, 1, NULL);
	guest_free(&lab.guest);
	machine_free(&lab.m);
	CHECK_EQ(count_vms(), before + 1);
	gmem_vm_free_with_vm(lab.vm);
	CHECK_EQ(count_vms(), before);
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
