/* SPDX-License-Identifier: MIT */
/* vm_identity, and what files and handles do with it; foreign_slot */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "region/vm_core.h"
#include "unit.h"

#define MAPPABLE	(GMEM_CREATE_MMAP | GMEM_CREATE_INIT_SHARED)
#define NO_FILE		UNTOUCHED(struct gmem_file)
#define NO_REGION	UNTOUCHED(struct gmem_region)

static int add(struct gmem_vm *vm, const struct unit *unit, uint64_t gpa_page,
	       struct gmem_file *file, const struct gmem_plan *plan, struct gmem_region **ret)
{
	GMEM_OPTS(gmem_region_opts, opts, .file = file, .plan = plan);

	return gmem_region_add(vm, PAGES(unit, gpa_page), unit->page, &opts, ret);
}

/* Memslots set and deleted since the boot */
static unsigned slot_calls(void)
{
	return fake_count(FAKE_SET_SLOT) + fake_count(FAKE_SET_SLOT2) + fake_count(FAKE_DELETE_SLOT);
}

/* ---- fds ---- */

static void all_of_a_vm_share_one_duplicate(void **state)
{
	struct gmem_file *before, *after;
	struct gmem_region *region;
	struct unit unit;
	unsigned calls;
	int other;

	(void)state;
	unit_begin(&unit, "6.18");
	GMEM_OPTS(gmem_vm_opts, opts, .caps = unit.caps);
	before = unit_file(&unit, 1);
	assert_ok(gmem_vm_new(unit.vm_fd, &opts, &unit.vm));
	other = dup(unit.vm_fd);
	assert_ok(gmem_file_new_raw(unit.vm_fd, unit.page, MAPPABLE, &after));
	unit_region(&unit, 8, 1, NULL);
	assert_int_equal(fake_count(FAKE_DUP), 1);

	/* so the VM of both is known, and only their own memslots are set */
	calls = slot_calls();
	assert_ok(add(unit.vm, &unit, 0, before, NULL, &region));
	assert_ok(add(unit.vm, &unit, 1, after, NULL, &region));
	assert_int_equal(slot_calls(), calls + 2);

	gmem_vm_free(unit.vm);
	unit.vm = NULL;
	gmem_file_free(before);
	/* the VM's, the last file's, and the duplicate */
	assert_int_equal(fake_open_fds(), 3);
	gmem_file_free(after);
	assert_int_equal(fake_open_fds(), 1);
	close(other);
	unit_end(&unit);
}

static void each_vm_has_its_own_duplicate(void **state)
{
	struct gmem_file *a, *b;
	struct unit unit;
	int other;

	(void)state;
	unit_begin(&unit, "6.18");
	other = fake_new_vm();
	assert_ok(gmem_file_new_raw(unit.vm_fd, unit.page, MAPPABLE, &a));
	assert_ok(gmem_file_new_raw(other, unit.page, MAPPABLE, &b));
	assert_int_equal(fake_count(FAKE_DUP), 2);
	gmem_file_free(a);
	gmem_file_free(b);
	fake_close(other);
	unit_end(&unit);
}

static void failed_duplicate_is_told_with_the_number(void **state)
{
	struct gmem_file *file = NO_FILE;
	struct gmem_vm *vm = UNTOUCHED(struct gmem_vm);
	struct unit unit;

	(void)state;
	unit_begin(&unit, "6.18");
	GMEM_OPTS(gmem_vm_opts, opts, .caps = unit.caps);
	fake_fail_next(FAKE_DUP, -EMFILE);
	assert_refused(-EMFILE, "duplicated", gmem_vm_new(unit.vm_fd, &opts, &vm));
	fake_fail_next(FAKE_DUP, -EMFILE);
	assert_refused(-EMFILE, "duplicated",
		       gmem_file_new_raw(unit.vm_fd, unit.page, MAPPABLE, &file));
	assert_refused(-EBADF, "900", gmem_file_new_raw(900, unit.page, MAPPABLE, &file));
	assert_refused(-EBADF, "900", gmem_vm_new(900, &opts, &vm));
	unit_end(&unit);
}

/* ---- files ---- */

/* The number of a VM that is gone is that of another one. */
static void check_successor(bool comparable, uint32_t backing)
{
	struct gmem_region *region = NO_REGION;
	struct gmem_file *file, *adopted = NO_FILE;
	struct gmem_plan *plan;
	struct unit unit;
	int number;

	unit_begin(&unit, "6.18");
	fake.no_same_file = !comparable;
	plan = unit_plan(&unit, backing);
	file = unit_file(&unit, 2);
	number = unit.vm_fd;
	fake_close(unit.vm_fd);
	unit.vm_fd = fake_new_vm();
	assert_int_equal(unit.vm_fd, number);

	GMEM_OPTS(gmem_vm_opts, opts, .caps = unit.caps);
	assert_ok(gmem_vm_new(unit.vm_fd, &opts, &unit.vm));
	assert_refused(-EXDEV, "another VM", add(unit.vm, &unit, 0, file, plan, &region));
	assert_refused(-EXDEV, "another VM",
		       gmem_file_adopt(unit.vm_fd, gmem_file_fd(file), NULL, &adopted));
	assert_int_equal(fake_slot_count(unit.vm_fd), 0);
	gmem_file_free(file);

	file = unit_file(&unit, 2);
	assert_ok(add(unit.vm, &unit, 0, file, plan, &region));
	gmem_file_free(file);
	gmem_plan_free(plan);
	unit_end(&unit);
}

static void file_of_a_vm_that_is_gone_is_not_its_successor_s(void **state)
{
	(void)state;
	check_successor(true, GMEM_BACKING_SHARED);
	check_successor(true, GMEM_BACKING_MAPPED);
	check_successor(false, GMEM_BACKING_SHARED);
	check_successor(false, GMEM_BACKING_MAPPED);
}

/* One trial of a memslot, which one file and one handle need once at most */
static void check_trials(const struct unit *unit, struct gmem_file *file, unsigned trials)
{
	struct gmem_region *a, *b;
	unsigned calls = slot_calls(), first;

	assert_ok(add(unit->vm, unit, 0, file, NULL, &a));
	first = slot_calls() - calls - 1;
	assert_true(trials ? first > 0 : first == 0);
	GMEM_OPTS(gmem_region_opts, opts, .file = file, .file_offset = unit->page);
	calls = slot_calls();
	assert_ok(gmem_region_add(unit->vm, PAGES(unit, 1), unit->page, &opts, &b));
	assert_int_equal(slot_calls(), calls + 1);
	assert_ok(gmem_region_remove(a));
	assert_ok(gmem_region_remove(b));
}

static void file_is_tried_once_where_fds_cannot_be_compared(void **state)
{
	struct gmem_file *file;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	file = unit_file(&unit, 2);
	check_trials(&unit, file, 0);
	gmem_file_free(file);

	fake.no_same_file = true;
	file = unit_file(&unit, 2);
	check_trials(&unit, file, 1);
	check_trials(&unit, file, 0);
	gmem_file_free(file);
	unit_end(&unit);
}

static void adopted_file_is_tried_once(void **state)
{
	struct gmem_file *file;
	struct unit unit;
	int fd;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	fd = fake_new_gmemfd(unit.vm_fd, PAGES(&unit, 2), MAPPABLE);
	assert_ok(gmem_file_adopt(unit.vm_fd, fd, NULL, &file));
	check_trials(&unit, file, 0);
	gmem_file_free(file);

	/* without a VM, when it is used first */
	assert_ok(gmem_file_adopt(GMEM_NO_VM, fd, NULL, &file));
	check_trials(&unit, file, 1);
	check_trials(&unit, file, 0);
	gmem_file_free(file);
	fake_close(fd);
	unit_end(&unit);
}

/* ---- the end ---- */

/* Nothing runs any more, so the contents of memslots may be lost. */
static void end_vm(const struct unit *unit)
{
	fake_kill_vm(unit->vm_fd);
	fake_close(unit->vm_fd);
}

static void handle_that_ends_with_its_vm_asks_for_nothing(void **state)
{
	struct unit unit;
	unsigned deletions;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	unit_region(&unit, 0, 1, NULL);
	unit_region_backed(&unit, 1, 1, GMEM_BACKING_MAPPED);
	unit_region_backed(&unit, 2, 1, GMEM_BACKING_HOST);
	deletions = fake_count(FAKE_DELETE_SLOT);
	end_vm(&unit);
	assert_true(fake_vm_exists(unit.vm_fd));
	gmem_vm_free_with_vm(unit.vm);
	assert_int_equal(fake_count(FAKE_DELETE_SLOT), deletions);
	assert_false(fake_vm_exists(unit.vm_fd));
	assert_int_equal(fake_open_fds(), 0);
	assert_int_equal(fake_open_mappings(), 0);
	gmem_vm_free_with_vm(NULL);
	unit.vm = NULL;
	unit.vm_fd = -1;
	unit_end(&unit);
}

static void file_outlives_a_handle_that_ends_with_its_vm(void **state)
{
	struct gmem_region *region;
	struct gmem_file *file;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	file = unit_file(&unit, 1);
	assert_ok(add(unit.vm, &unit, 0, file, NULL, &region));
	end_vm(&unit);
	gmem_vm_free_with_vm(unit.vm);
	assert_true(fake_vm_exists(unit.vm_fd));
	gmem_file_free(file);
	assert_false(fake_vm_exists(unit.vm_fd));
	unit.vm = NULL;
	unit.vm_fd = -1;
	unit_end(&unit);
}

/* ---- memslots of others ---- */

static void refusal_names_memslots_that_the_handle_did_not_set(void **state)
{
	struct gmem_region *region = NO_REGION;
	struct fake_snapshot *before;
	struct gmem_plan *plan;
	struct gmem_vm *second;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	plan = unit_plan(&unit, GMEM_BACKING_HOST);
	unit_region(&unit, 0, 2, plan);
	GMEM_OPTS(gmem_vm_opts, opts, .caps = unit.caps);
	assert_ok(gmem_vm_new(unit.vm_fd, &opts, &second));

	before = fake_snapshot();
	assert_refused(-EEXIST, "memslot 0, for gpa 0x8000",
		       add(second, &unit, 8, NULL, plan, &region));
	assert_non_null(strstr(gmem_last_error(), "another handle"));
	assert_true(fake_equal(before));

	/* a file's, too */
	before = fake_snapshot();
	assert_refused(-EEXIST, "another handle", add(second, &unit, 8, NULL, NULL, &region));
	assert_true(fake_equal(before));

	assert_ok(gmem_vm_reserve_slots(second, 0, 1));
	before = fake_snapshot();
	assert_refused(-EEXIST, "another handle", add(second, &unit, 1, NULL, plan, &region));
	assert_true(fake_equal(before));
	gmem_vm_free(second);
	gmem_plan_free(plan);
	unit_end(&unit);
}

static void other_refusals_keep_their_sentence(void **state)
{
	static const uint32_t slots[] = { 0, 7, 32763, 32760 };
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_SLOT);
	struct gmem_region *region = NO_REGION;
	struct unit unit;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	for (size_t i = 0; i < ARRAY_SIZE(slots); i++) {
		opts.slot = slots[i];
		fake_fail_next(FAKE_SET_SLOT2, -EINVAL);
		assert_refused(-EINVAL, "refuses memslot",
			       gmem_region_add(unit.vm, 0, unit.page, &opts, &region));
		assert_int_equal(fake_slot_count(unit.vm_fd), 0);
	}
	unit_end(&unit);
}

/* Who stands between a program and KVM may know the VM by the caller's number alone. */
static void number_is_asked_if_the_duplicate_is_no_vm(void **state)
{
	struct gmem_region *region;
	struct unit unit;

	(void)state;
	unit_begin(&unit, "6.18");
	GMEM_OPTS(gmem_vm_opts, opts, .caps = unit.caps);
	assert_ok(gmem_vm_new(unit.vm_fd, &opts, &unit.vm));
	assert_int_not_equal(unit.vm->fd, unit.vm_fd);
	gmem_vm_free(unit.vm);

	fake_fail_kind(FAKE_CHECK_EXTENSION, 0, 1, -ENOTTY);
	assert_ok(gmem_vm_new(unit.vm_fd, &opts, &unit.vm));
	assert_true(fake_fail_struck());
	assert_int_equal(unit.vm->fd, unit.vm_fd);
	assert_ok(gmem_region_add(unit.vm, 0, unit.page, NULL, &region));
	gmem_vm_free(unit.vm);
	unit.vm = NULL;

	/* Any other errno, such as a sandbox's, tells nothing about it. */
	fake_fail_kind(FAKE_CHECK_EXTENSION, 0, 1, -EPERM);
	assert_ok(gmem_vm_new(unit.vm_fd, &opts, &unit.vm));
	assert_true(fake_fail_struck());
	assert_int_not_equal(unit.vm->fd, unit.vm_fd);
	unit_end(&unit);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(number_is_asked_if_the_duplicate_is_no_vm),
	cmocka_unit_test(all_of_a_vm_share_one_duplicate),
	cmocka_unit_test(each_vm_has_its_own_duplicate),
	cmocka_unit_test(failed_duplicate_is_told_with_the_number),
	cmocka_unit_test(file_of_a_vm_that_is_gone_is_not_its_successor_s),
	cmocka_unit_test(file_is_tried_once_where_fds_cannot_be_compared),
	cmocka_unit_test(adopted_file_is_tried_once),
	cmocka_unit_test(handle_that_ends_with_its_vm_asks_for_nothing),
	cmocka_unit_test(file_outlives_a_handle_that_ends_with_its_vm),
	cmocka_unit_test(refusal_names_memslots_that_the_handle_did_not_set),
	cmocka_unit_test(other_refusals_keep_their_sentence),
};

int main(void)
{
	return cmocka_run_group_tests(tests, NULL, NULL);
}
