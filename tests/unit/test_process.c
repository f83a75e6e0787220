/* SPDX-License-Identifier: MIT */
/* process: a child of fork() is told from its parent */
#include <errno.h>
#include <sched.h>
#include <stdbool.h>
#include <sys/wait.h>
#include <unistd.h>

#include "os/process.h"
#include "unit.h"

static struct gmem_process process;

/* Forks; the child ends with what @check returns, its threads being this one alone. */
static int in_child(int (*check)(uint32_t parents), uint32_t parents)
{
	int status = -1;
	pid_t child = fork();

	if (child == 0)
		_exit(check(parents));
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static int is_another(uint32_t parents)
{
	uint32_t number = gmem_process_number(&process);

	return number && number != parents && gmem_process_number(&process) == number ? 0 : 1;
}

static int is_another_and_so_is_its_child(uint32_t parents)
{
	uint32_t number = gmem_process_number(&process);
	int status;

	if (is_another(parents) || is_another(number) == 0)
		return 1;
	status = in_child(is_another, number);
	return status || is_another(parents) || gmem_process_number(&process) != number;
}

/* A child that never asks */
static int child_is_another(uint32_t parents)
{
	return in_child(is_another, parents);
}

static void check_numbers(void)
{
	uint32_t number;

	gmem_process_begin(&process);
	number = gmem_process_number(&process);
	assert_true(number);
	assert_int_equal(in_child(is_another, number), 0);
	assert_int_equal(in_child(child_is_another, number), 0);
	assert_int_equal(in_child(is_another_and_so_is_its_child, number), 0);
	assert_int_equal(gmem_process_number(&process), number);
	gmem_process_end(&process);
	gmem_process_end(&process);
}

static void child_has_another_number(void **state)
{
	struct unit unit;

	(void)state;
	unit_begin(&unit, "6.18");
	check_numbers();
	unit_end(&unit);
}

/* By a sandbox, a kernel before Linux 4.14, or without memory */
static void pid_tells_where_the_page_is_refused(void **state)
{
	static const struct {
		enum fake_call call;
		int err;
	} refusals[] = { { FAKE_MADVISE, -EINVAL }, { FAKE_MADVISE, -EPERM }, { FAKE_MMAP, -ENOMEM } };
	struct unit unit;

	(void)state;
	unit_begin(&unit, "6.18");
	for (size_t i = 0; i < ARRAY_SIZE(refusals); i++) {
		fake_fail_next(refusals[i].call, refusals[i].err);
		check_numbers();
		assert_true(fake_fail_struck());
	}
	unit_end(&unit);
}

static int have_namespace(void)
{
	return unshare(CLONE_NEWPID);
}

static int is_another_process_1(uint32_t parents)
{
	return getpid() == 1 ? is_another(parents) : 2;
}

static int be_process_1(uint32_t unused)
{
	(void)unused;
	if (getpid() != 1 || have_namespace())
		return 3;
	gmem_process_begin(&process);
	return in_child(is_another_process_1, gmem_process_number(&process));
}

static int in_a_namespace(uint32_t unused)
{
	return have_namespace() ? 77 : in_child(be_process_1, unused);
}

static void pids_may_be_the_same(void **state)
{
	struct unit unit;
	int status;

	(void)state;
	unit_begin(&unit, "6.18");
	status = in_child(in_a_namespace, 0);
	/* 77: only root has namespaces here */
	assert_true(status == 0 || status == 77);
	unit_end(&unit);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(child_has_another_number),
		cmocka_unit_test(pid_tells_where_the_page_is_refused),
		cmocka_unit_test(pids_may_be_the_same),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
