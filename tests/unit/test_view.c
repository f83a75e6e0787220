/* SPDX-License-Identifier: MIT */
/* view, access and atomic: a thread looks up and accesses guest memory */
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "nofault/nofault.h"
#include "region/vm_core.h"
#include "unit.h"
#include "unit_alloc.h"
#include "view/view.h"

#define PAGE	((uint64_t)4096)
#define MIB	((uint64_t)1 << 20)

/*
 * Pages 16..19 of host memory "a"; 20..21 of host memory "b", not beside it on
 * the host; a device at 22; a hole at 23; 24..27 mapped from a file of which
 * two pages are there; 28..29 were removed; 30 is host memory again.
 */
struct scene {
	struct unit unit;
	struct gmem_plan *host;
	struct gmem_plan *mapped;
	struct gmem_file *file;
	struct gmem_view *view;
	char *a;
	char *b;
	char *c;
	char *d;
};

static struct gmem_region *add(struct scene *s, uint64_t page, uint64_t pages,
			       struct gmem_region_opts opts, char **ret_hva)
{
	struct gmem_region *region = NULL;

	opts.size = sizeof(opts);
	assert_ok(gmem_region_add(s->unit.vm, page * PAGE, pages * PAGE, &opts, &region));
	if (ret_hva)
		*ret_hva = gmem_region_hva(region);
	return region;
}

/* Two pieces that are neighbours for the guest only */
static void add_memory(struct scene *s)
{
	const struct gmem_region_opts host = { .plan = s->host };

	add(s, 16, 4, host, &s->a);
	/* wherever the next mapping goes, one in between is in the way */
	add(s, 100, 1, host, NULL);
	add(s, 20, 2, host, &s->b);
	if (s->b == s->a + 4 * PAGE)
		fail_msg("the two are one piece");
}

static void scene_begin(struct scene *s)
{
	struct gmem_region *goes;
	int i;

	memset(s, 0, sizeof(*s));
	unit_begin_vm(&s->unit, "6.18");
	s->host = unit_plan(&s->unit, GMEM_BACKING_HOST);
	s->mapped = unit_plan(&s->unit, GMEM_BACKING_MAPPED);
	s->file = unit_file(&s->unit, 4);
	add_memory(s);
	add(s, 22, 1, (struct gmem_region_opts){ .flags = GMEM_REGION_DEVICE }, NULL);
	add(s, 24, 4, (struct gmem_region_opts){ .plan = s->mapped, .file = s->file }, &s->c);
	add(s, 30, 1, (struct gmem_region_opts){ .plan = s->host }, &s->d);
	goes = add(s, 28, 2, (struct gmem_region_opts){ .plan = s->host }, NULL);
	assert_int_equal(ftruncate(gmem_file_fd(s->file), (off_t)(2 * PAGE)), 0);
	for (i = 0; i < 4; i++)
		memset(s->a + (uint64_t)i * PAGE, 'a' + i, PAGE);
	memset(s->b, 'x', PAGE);
	memset(s->b + PAGE, 'y', PAGE);
	memset(s->c, 'm', 2 * PAGE);
	assert_ok(gmem_view_new(s->unit.vm, &s->view));
	assert_ok(gmem_region_remove(goes));
}

static void scene_end(struct scene *s)
{
	gmem_view_free(s->view);
	gmem_vm_free(s->unit.vm);
	s->unit.vm = NULL;
	gmem_file_free(s->file);
	gmem_plan_free(s->host);
	gmem_plan_free(s->mapped);
	unit_end(&s->unit);
}

/* Runs the check with accesses by system calls, then with recovery. */
static void both_ways(void (*check)(struct scene *s))
{
	struct scene s;

	scene_begin(&s);
	check(&s);
	scene_end(&s);

	assert_ok(gmem_recovery_enable());
	scene_begin(&s);
	check(&s);
	scene_end(&s);
	gmem_recovery_disable();
}

/* ---- lookups ---- */

static int look(struct scene *s, uint64_t gpa, uint64_t size, void **hva)
{
	int err;

	gmem_view_begin(s->view);
	err = gmem_view_hva(s->view, gpa, size, hva);
	gmem_view_end(s->view);
	return err;
}

static void hva_is_where_the_region_is(void **state)
{
	void *hva = NULL;
	struct scene s;

	(void)state;
	scene_begin(&s);
	assert_ok(look(&s, 16 * PAGE, 1, &hva));
	assert_ptr_equal(hva, s.a);
	assert_ok(look(&s, 16 * PAGE, 4 * PAGE, &hva));
	assert_ptr_equal(hva, s.a);
	assert_ok(look(&s, 20 * PAGE - 1, 1, &hva));
	assert_ptr_equal(hva, s.a + 4 * PAGE - 1);
	assert_ok(look(&s, 20 * PAGE, 2 * PAGE, &hva));
	assert_ptr_equal(hva, s.b);
	/* a page that cannot be reached has an address all the same */
	assert_ok(look(&s, 27 * PAGE + 3, 9, &hva));
	assert_ptr_equal(hva, s.c + 3 * PAGE + 3);
	scene_end(&s);
}

static void errors_say_what_is_there_instead(void **state)
{
	static const struct {
		uint64_t gpa;
		uint64_t size;
		int err;
		const char *sentence;
	} cases[] = {
		{ 16 * PAGE - 1, 1, -ENOENT, "no region at gpa 0xffff" },
		{ 16 * PAGE - 1, 2, -ENOENT, "no region at gpa 0xffff" },
		{ 22 * PAGE, 1, -ENXIO, "a device at gpa 0x16000" },
		{ 23 * PAGE, 1, -ENOENT, "no region at gpa 0x17000" },
		{ 28 * PAGE, 1, -ESTALE, "removed or moved at gpa 0x1c000" },
		{ 30 * PAGE - 1, 2, -ESTALE, "removed or moved at gpa 0x1dfff" },
		{ 20 * PAGE - 1, 2, -ERANGE, "0x1 bytes in one piece, not 0x2" },
		{ 16 * PAGE, 4 * PAGE + 1, -ERANGE, "0x4000 bytes in one piece" },
		{ 21 * PAGE, PAGE + 1, -ERANGE, "one piece" },
		{ 30 * PAGE, PAGE + 1, -ERANGE, "one piece" },
		{ 16 * PAGE, 0, -EINVAL, "size 0x0" },
		{ 16 * PAGE, UINT64_MAX, -EINVAL, "is no range" },
		{ UINT64_MAX, 1, -ENOENT, "0xffffffffffffffff" },
		{ UINT64_MAX, 2, -EINVAL, "is no range" },
		{ (uint64_t)1 << 45, 1, -ENOENT, "no region" },
	};
	void *hva = UNTOUCHED(void);
	struct scene s;
	size_t i;

	(void)state;
	scene_begin(&s);
	for (i = 0; i < ARRAY_SIZE(cases); i++)
		assert_refused(cases[i].err, cases[i].sentence,
			       look(&s, cases[i].gpa, cases[i].size, &hva));
	assert_ptr_equal(hva, UNTOUCHED(void));
	assert_refused(-EINVAL, "NULL", gmem_view_hva_slow(NULL, 0, 1, &hva));
	assert_refused(-EINVAL, "NULL", gmem_view_hva_slow(s.view, 0, 1, NULL));
	scene_end(&s);
}

static int look_at_pieces(struct scene *s, uint64_t gpa, uint64_t size, struct iovec *iov,
			  size_t max)
{
	int ret;

	gmem_view_begin(s->view);
	ret = gmem_view_iovec(s->view, gpa, size, iov, max);
	gmem_view_end(s->view);
	return ret;
}

static void iovec_has_one_entry_for_each_piece(void **state)
{
	struct iovec iov[3];
	struct gmem_region *region, *upper;
	struct scene s;

	(void)state;
	scene_begin(&s);
	assert_int_equal(look_at_pieces(&s, 17 * PAGE + 5, 4 * PAGE, iov, 3), 2);
	assert_ptr_equal(iov[0].iov_base, s.a + PAGE + 5);
	assert_int_equal(iov[0].iov_len, 3 * PAGE - 5);
	assert_ptr_equal(iov[1].iov_base, s.b);
	assert_int_equal(iov[1].iov_len, PAGE + 5);

	/* exactly enough room is enough */
	assert_int_equal(look_at_pieces(&s, 16 * PAGE, 6 * PAGE, iov, 2), 2);
	assert_int_equal(look_at_pieces(&s, 16 * PAGE, 4 * PAGE, iov, 1), 1);

	/* two regions that are neighbours on both sides are one entry */
	assert_ok(gmem_vm_find_hva(s.unit.vm, s.a, &region, NULL));
	assert_ok(gmem_region_split(region, PAGE, &upper));
	assert_int_equal(look_at_pieces(&s, 16 * PAGE, 4 * PAGE, iov, 1), 1);
	assert_int_equal(iov[0].iov_len, 4 * PAGE);
	scene_end(&s);
}

/* Across granules, and from small pieces to whole entries */
static void large_region_is_one_piece(void **state)
{
	struct iovec iov[1];
	struct scene s;
	void *hva;
	char *big;

	(void)state;
	scene_begin(&s);
	add(&s, 511, 1026, (struct gmem_region_opts){ .plan = s.host }, &big);
	assert_ok(look(&s, 511 * PAGE, 1026 * PAGE, &hva));
	assert_ptr_equal(hva, big);
	assert_ok(look(&s, 2 * MIB, 2 * MIB, &hva));
	assert_ptr_equal(hva, big + PAGE);
	assert_ok(look(&s, 3 * MIB, 2 * MIB, &hva));
	assert_int_equal(look(&s, 2 * MIB, 1026 * PAGE, &hva), -ERANGE);
	assert_int_equal(look_at_pieces(&s, 511 * PAGE + 1, 1026 * PAGE - 2, iov, 1), 1);
	assert_int_equal(iov[0].iov_len, 1026 * PAGE - 2);
	scene_end(&s);
}

static void iovec_stays_within_its_maximum(void **state)
{
	static const struct {
		uint64_t gpa;
		uint64_t size;
		size_t max;
		int err;
		const char *sentence;
	} cases[] = {
		{ 16 * PAGE, 6 * PAGE, 1, -ENOSPC, "more than 1" },
		{ 16 * PAGE, 6 * PAGE, 0, -ENOSPC, "more than 0" },
		{ 16 * PAGE, 7 * PAGE, 3, -ENXIO, "device at gpa 0x16000" },
		{ 15 * PAGE, 2 * PAGE, 3, -ENOENT, "0xf000" },
		{ 27 * PAGE, 2 * PAGE, 3, -ESTALE, "0x1c000" },
		{ 16 * PAGE, 0, 3, -EINVAL, "is no range" },
		{ 16 * PAGE, 0 - 16 * PAGE + 1, 3, -EINVAL, "is no range" },
	};
	struct iovec iov[3], before[3];
	struct scene s;
	size_t i;

	(void)state;
	scene_begin(&s);
	memset(iov, 0x5a, sizeof(iov));
	memcpy(before, iov, sizeof(iov));
	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		assert_refused(cases[i].err, cases[i].sentence,
			       look_at_pieces(&s, cases[i].gpa, cases[i].size, iov, cases[i].max));
		assert_memory_equal(iov + cases[i].max, before, (3 - cases[i].max) * sizeof(*iov));
		memcpy(iov, before, sizeof(iov));
	}
	assert_refused(-EINVAL, "NULL", gmem_view_iovec(NULL, 0, 1, iov, 1));
	assert_refused(-EINVAL, "NULL", gmem_view_iovec(s.view, 0, 1, NULL, 1));
	scene_end(&s);
}

/* ---- the view itself ---- */

static void layout_is_held_from_begin_to_end(void **state)
{
	struct gmem_region *region = NULL, *found;
	void *hva = NULL;
	struct scene s;

	(void)state;
	scene_begin(&s);
	/* an inner end lets go of nothing */
	gmem_view_begin(s.view);
	gmem_view_begin(s.view);
	gmem_view_end(s.view);
	assert_ok(gmem_view_hva(s.view, 16 * PAGE, 1, &hva));
	assert_int_not_equal(s.view->period, 0);
	gmem_view_end(s.view);
	assert_int_equal(s.view->period, 0);

	/* and an access inside uses what is held */
	gmem_view_begin(s.view);
	assert_ok(gmem_view_write(s.view, 16 * PAGE, "inside", 7, NULL));
	assert_int_not_equal(s.view->period, 0);
	gmem_view_end(s.view);
	assert_string_equal(s.a, "inside");

	/* what comes and goes in between is seen at the next begin */
	assert_int_equal(look(&s, 23 * PAGE, 1, &hva), -ENOENT);
	region = add(&s, 23, 1, (struct gmem_region_opts){ .plan = s.host }, NULL);
	assert_ok(look(&s, 23 * PAGE, 1, &hva));
	assert_ok(gmem_region_move(region, 40 * PAGE));
	assert_int_equal(look(&s, 23 * PAGE, 1, &hva), -ESTALE);
	assert_ok(look(&s, 40 * PAGE, 1, &hva));
	assert_ok(gmem_vm_find_hva(s.unit.vm, s.c, &found, NULL));
	assert_ok(gmem_region_rebind(found, s.file, 0));
	assert_ok(look(&s, 24 * PAGE, 1, &hva));
	assert_ptr_equal(hva, gmem_region_hva(found));
	scene_end(&s);
}

/* What the handler of a signal may do at any moment: it finds the newest, and leaves nothing behind. */
static void handle(struct scene *s, char *newest)
{
	struct gmem_view before = *s->view;
	void *hva = NULL;
	char bytes[200];
	uint64_t word;

	gmem_view_begin(s->view);
	assert_ok(gmem_view_hva(s->view, 23 * PAGE, 1, &hva));
	assert_ptr_equal(hva, newest);
	gmem_view_begin(s->view);
	gmem_view_end(s->view);
	assert_ok(gmem_view_hva(s->view, 23 * PAGE, 1, &hva));
	gmem_view_end(s->view);
	if (before.period)
		assert_memory_equal(s->view, &before, sizeof(before));

	assert_ok(gmem_view_write(s->view, 23 * PAGE, "handler", 8, NULL));
	assert_ok(gmem_view_load(s->view, 23 * PAGE, 8, GMEM_ACQUIRE, &word));
	assert_ok(gmem_view_store(s->view, 23 * PAGE + 8, 8, GMEM_RELEASE, word));
	assert_ok(gmem_view_read(s->view, 23 * PAGE, bytes, sizeof(bytes), NULL));
	assert_memory_equal(bytes, "handler\0handler", 16);
	if (before.period)
		assert_memory_equal(s->view, &before, sizeof(before));
}

static void handle_everywhere(struct scene *s)
{
	struct gmem_region *region;
	char *newest;

	/* the table of the last use is not that of the next */
	gmem_view_begin(s->view);
	gmem_view_end(s->view);
	region = add(s, 23, 1, (struct gmem_region_opts){ .plan = s->host }, &newest);
	handle(s, newest);

	gmem_view_enter(s->view);
	handle(s, newest);
	gmem_view_leave(s->view);

	gmem_view_begin(s->view);
	handle(s, newest);
	gmem_view_begin(s->view);
	handle(s, newest);
	gmem_view_end(s->view);
	gmem_view_end(s->view);
	assert_ok(gmem_region_remove(region));
}

static void handler_may_interrupt_any_use(void **state)
{
	(void)state;
	both_ways(handle_everywhere);
}

/* The first view finds what was added before it, up to the last page there can be. */
static void first_view_knows_all_regions(void **state)
{
	GMEM_OPTS(gmem_vm_opts, opts, .flags = GMEM_VM_NO_SELFTEST);
	GMEM_OPTS(gmem_region_opts, device, .flags = GMEM_REGION_DEVICE);
	static const uint64_t gpas[] = { 0, 2 * MIB, (uint64_t)1 << 43, (uint64_t)1 << 44,
					 ((uint64_t)1 << 52) - PAGE };
	struct gmem_region *region;
	struct gmem_view *view;
	struct unit unit;
	void *hva = NULL;
	size_t i;

	(void)state;
	unit_begin(&unit, "6.18");
	/* without a self-test the VM's address bits are unknown */
	assert_ok(gmem_vm_new(unit.vm_fd, &opts, &unit.vm));
	for (i = 0; i < ARRAY_SIZE(gpas); i++)
		assert_ok(gmem_region_add(unit.vm, gpas[i], PAGE, &device, &region));
	assert_ok(gmem_view_new(unit.vm, &view));
	gmem_view_begin(view);
	for (i = 0; i < ARRAY_SIZE(gpas); i++) {
		assert_int_equal(gmem_view_hva(view, gpas[i], PAGE, &hva), -ENXIO);
		assert_int_equal(gmem_view_hva(view, gpas[i] + PAGE, PAGE, &hva), -ENOENT);
	}
	gmem_view_end(view);
	gmem_view_free(view);
	unit_end(&unit);
}

static void view_needs_a_vm_and_memory(void **state)
{
	struct gmem_view *view = UNTOUCHED(struct gmem_view);
	struct unit unit;
	unsigned n;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	unit_region(&unit, 0, 1, NULL);
	assert_refused(-EINVAL, "vm is NULL", gmem_view_new(NULL, &view));
	assert_refused(-EINVAL, "ret is NULL", gmem_view_new(unit.vm, NULL));
	for (n = 1; n <= 3; n++) {
		unit_fail_alloc(n);
		assert_refused(-ENOMEM, "no memory for", gmem_view_new(unit.vm, &view));
		assert_true(unit_alloc_struck());
	}
	assert_ptr_equal(view, UNTOUCHED(struct gmem_view));
	gmem_view_free(NULL);
	assert_ok(gmem_view_new(unit.vm, &view));
	gmem_view_free(view);
	unit_end(&unit);
}

/* ---- the VM's end, and views of threads ---- */

static void check_stale(struct gmem_view *view)
{
	uint64_t value = 0, done = 7;
	const void *to_read;
	struct iovec iov[2];
	char bytes[8] = "";
	void *hva;
	int order;

	gmem_view_begin(view);
	assert_refused(-ESTALE, "handle was freed", gmem_view_hva(view, 0, 1, &hva));
	assert_refused(-ESTALE, "handle was freed", gmem_view_hva(view, UINT64_MAX, 1, &hva));
	assert_refused(-ESTALE, "handle was freed", gmem_view_hva_read(view, PAGE, 8, &to_read));
	assert_refused(-ESTALE, "handle was freed", gmem_view_iovec(view, 0, MIB, iov, 2));
	assert_refused(-ESTALE, "handle was freed", gmem_view_iovec_read(view, 0, MIB, iov, 2));
	gmem_view_end(view);
	assert_refused(-ESTALE, "handle was freed", gmem_view_read(view, 0, bytes, 8, &done));
	assert_int_equal(done, 0);
	assert_refused(-ESTALE, "handle was freed", gmem_view_write(view, 0, bytes, 8, NULL));
	assert_refused(-ESTALE, "handle was freed", gmem_view_copy(view, 0, PAGE, 8, NULL));
	assert_refused(-ESTALE, "handle was freed", gmem_view_fill(view, 0, 1, 8, NULL));
	assert_refused(-ESTALE, "handle was freed",
		       gmem_view_compare(view, 0, bytes, 8, &order, NULL));
	assert_refused(-ESTALE, "handle was freed", gmem_view_string(view, 0, bytes, 8, &done));
	assert_refused(-ESTALE, "handle was freed", gmem_view_load(view, 0, 8, 0, &value));
	assert_refused(-ESTALE, "handle was freed", gmem_view_store(view, 0, 8, 0, value));
	assert_refused(-ESTALE, "handle was freed",
		       gmem_view_compare_exchange(view, 0, 8, 0, &value, 1));
}

static void view_that_outlives_its_vm_is_stale(void **state)
{
	struct gmem_view *view, *second;
	struct unit unit;
	void *hva;
	int with_vm;

	(void)state;
	for (with_vm = 0; with_vm < 2; with_vm++) {
		unit_begin_vm(&unit, "6.18");
		unit_region(&unit, 0, 4, NULL);
		assert_ok(gmem_view_new(unit.vm, &view));
		assert_ok(gmem_view_new(unit.vm, &second));
		gmem_view_begin(view);
		assert_ok(gmem_view_hva(view, 0, 1, &hva));
		gmem_view_end(view);
		unit_free_vm(&unit, with_vm);
		check_stale(view);
		gmem_view_free(view);
		check_stale(second);
		gmem_view_free(second);
		unit_end(&unit);
	}
}

/* A thread may have died between begin and end. */
static void end_of_a_vm_does_not_wait_for_ever(void **state)
{
	GMEM_OPTS(gmem_vm_opts, opts, .wait_ms = 1);
	struct gmem_view *view;
	struct unit unit;

	(void)state;
	unit_begin(&unit, "6.18");
	opts.caps = unit.caps;
	assert_ok(gmem_vm_new(unit.vm_fd, &opts, &unit.vm));
	unit_region(&unit, 0, 4, NULL);
	assert_ok(gmem_view_new(unit.vm, &view));
	gmem_view_begin(view);
	gmem_vm_free(unit.vm);
	unit.vm = NULL;
	gmem_view_end(view);
	check_stale(view);
	gmem_view_free(view);
	unit_end(&unit);
}

struct entries {
	int count;
	char last[200];
};

static void note_entry(void *data, int error, const char *message)
{
	struct entries *entries = data;

	assert_int_equal(error, -EBUSY);
	entries->count++;
	strncpy(entries->last, message, sizeof(entries->last) - 1);
}

/* The memory is not the next VM's, which has its memslots and guest addresses already. */
static void check_next_vm_has_memory_of_its_own(struct unit *unit, uint32_t backing, void *hva)
{
	struct gmem_region *region;
	struct gmem_view *view;
	uint64_t value = 1;

	GMEM_OPTS(gmem_vm_opts, opts, .caps = unit->caps);
	assert_ok(gmem_vm_new(unit->vm_fd, &opts, &unit->vm));
	region = unit_region_backed(unit, 0, 4, backing);
	assert_ptr_not_equal(gmem_region_hva(region), hva);
	assert_ok(gmem_view_new(unit->vm, &view));
	assert_ok(gmem_view_load(view, 8, 8, 0, &value));
	assert_int_equal(value, 0);
	gmem_view_free(view);
	gmem_vm_free(unit->vm);
	unit->vm = NULL;
}

/* @view, which the VM's end has waited for in vain, between begin and end */
static void check_goes_on(struct gmem_view *view, void *hva)
{
	uint64_t value = 0;
	void *again;

	assert_ok(gmem_view_hva(view, 0, 16, &again));
	assert_ptr_equal(again, hva);
	assert_ok(gmem_view_load(view, 0, 8, 0, &value));
	assert_int_equal(value, 0x600d);
	assert_ok(gmem_view_store(view, 8, 8, 0, 0xbad));
	assert_ok(gmem_view_load(view, 8, 8, 0, &value));
	assert_int_equal(value, 0xbad);
}

static void check_end_during_sections(const struct unit_way *way, bool with_vm)
{
	struct entries entries = { .count = 0 };
	struct gmem_view *views[3];
	struct unit unit;
	void *hva;

	unit_begin(&unit, way->kernel);
	GMEM_OPTS(gmem_vm_opts, opts, .caps = unit.caps, .log = note_entry, .log_data = &entries,
		  .wait_ms = 1);
	assert_ok(gmem_vm_new(unit.vm_fd, &opts, &unit.vm));
	unit_region_backed(&unit, 0, 4, way->backing);
	unit_region_backed(&unit, 8, 1, way->backing);
	for (size_t i = 0; i < ARRAY_SIZE(views); i++)
		assert_ok(gmem_view_new(unit.vm, &views[i]));
	gmem_view_begin(views[0]);
	gmem_view_begin(views[2]);
	assert_ok(gmem_view_store(views[0], 0, 8, 0, 0x600d));
	assert_ok(gmem_view_hva(views[0], 0, 16, &hva));

	unit_free_vm(&unit, with_vm);
	assert_int_equal(entries.count, 1);
	assert_non_null(strstr(entries.last, "still after 1 ms"));
	assert_non_null(strstr(entries.last, "2 of them"));
	check_goes_on(views[0], hva);
	check_stale(views[1]);
	gmem_view_free(views[1]);
	if (!with_vm)
		check_next_vm_has_memory_of_its_own(&unit, way->backing, hva);

	gmem_view_end(views[0]);
	check_stale(views[0]);
	gmem_view_free(views[0]);
	check_goes_on(views[2], hva);
	gmem_view_end(views[2]);
	gmem_view_free(views[2]);
	assert_int_equal(entries.count, 1);
	unit_end(&unit);
}

/* The memory goes with the last view that was waited for: unit_end() finds nothing left. */
static void section_that_outlives_its_vm_keeps_the_memory(void **state)
{
	(void)state;
	for (size_t i = 0; i < 2 * UNIT_WAYS; i++)
		check_end_during_sections(&unit_ways[i / 2], i % 2);
}

struct other_thread {
	struct gmem_vm *vm;
	struct gmem_view *view;
	pthread_barrier_t turns;
	int length;
	int failures;
};

static void *use_own_view(void *data)
{
	struct other_thread *other = data;
	struct gmem_view *again;
	uint64_t value;

	other->failures += gmem_vm_thread_view(other->vm, &other->view) != 0;
	other->failures += gmem_vm_thread_view(other->vm, &again) != 0 || again != other->view;
	other->failures += gmem_view_load(other->view, 0, 8, 0, &value) != 0;
	pthread_barrier_wait(&other->turns);
	/* the VM ends */
	pthread_barrier_wait(&other->turns);
	other->failures += gmem_view_load(other->view, 0, 8, 0, &value) != -ESTALE;
	return NULL;
}

static void thread_has_a_view_of_its_own(void **state)
{
	struct other_thread other = { .failures = 0 };
	struct gmem_view *view, *again;
	struct unit unit;
	pthread_t thread;
	uint64_t value;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	unit_region(&unit, 0, 4, NULL);
	assert_refused(-EINVAL, "vm is NULL", gmem_vm_thread_view(NULL, &view));
	assert_refused(-EINVAL, "ret is NULL", gmem_vm_thread_view(unit.vm, NULL));
	assert_ok(gmem_vm_thread_view(unit.vm, &view));
	assert_ok(gmem_vm_thread_view(unit.vm, &again));
	assert_ptr_equal(view, again);
	assert_ok(gmem_view_load(view, 0, 8, 0, &value));

	other.vm = unit.vm;
	pthread_barrier_init(&other.turns, NULL, 2);
	assert_int_equal(pthread_create(&thread, NULL, use_own_view, &other), 0);
	pthread_barrier_wait(&other.turns);
	assert_ptr_not_equal(other.view, view);
	gmem_vm_free(unit.vm);
	unit.vm = NULL;
	pthread_barrier_wait(&other.turns);
	pthread_join(thread, NULL);
	pthread_barrier_destroy(&other.turns);
	assert_int_equal(other.failures, 0);
	unit_end(&unit);
}

static void *make_a_view(void *vm)
{
	struct gmem_view *view;

	return gmem_vm_thread_view(vm, &view) ? vm : NULL;
}

/* More VMs than there are keys, and more threads than a list should have */
static void views_of_threads_end_with_them(void **state)
{
	struct gmem_vm *vm;
	struct unit unit;
	pthread_t thread;
	void *failed;

	(void)state;
	unit_begin(&unit, "6.18");
	GMEM_OPTS(gmem_vm_opts, opts, .caps = unit.caps);
	for (int i = 0; i < 1100; i++) {
		assert_ok(gmem_vm_new(unit.vm_fd, &opts, &vm));
		assert_null(make_a_view(vm));
		assert_int_equal(pthread_create(&thread, NULL, make_a_view, vm), 0);
		assert_int_equal(pthread_join(thread, &failed), 0);
		assert_null(failed);
		assert_null(vm->views->next);
		gmem_vm_free(vm);
	}
	unit_end(&unit);
}

static void *view_and_end(void *data)
{
	struct other_thread *other = data;
	uint64_t value;

	other->failures += gmem_vm_thread_view(other->vm, &other->view) != 0;
	pthread_barrier_wait(&other->turns);
	/* Before the VM's end, or after it */
	other->failures += gmem_view_load(other->view, PAGE, 8, 0, &value) != 0 &&
			   gmem_view_load(other->view, PAGE, 8, 0, &value) != -ESTALE;
	return NULL;
}

static void threads_and_their_vm_end_at_once(void **state)
{
	struct other_thread other = { .failures = 0 };
	struct unit unit;
	pthread_t thread;

	(void)state;
	unit_begin(&unit, "6.18");
	GMEM_OPTS(gmem_vm_opts, opts, .caps = unit.caps);
	pthread_barrier_init(&other.turns, NULL, 2);
	for (int i = 0; i < 200; i++) {
		assert_ok(gmem_vm_new(unit.vm_fd, &opts, &unit.vm));
		unit_region(&unit, 0, 4, NULL);
		other.vm = unit.vm;
		assert_int_equal(pthread_create(&thread, NULL, view_and_end, &other), 0);
		pthread_barrier_wait(&other.turns);
		gmem_vm_free(unit.vm);
		pthread_join(thread, NULL);
		assert_int_equal(other.failures, 0);
	}
	unit.vm = NULL;
	pthread_barrier_destroy(&other.turns);
	unit_end(&unit);
}

static void *use_after_the_end(void *data)
{
	struct other_thread *other = data;
	uint64_t value;

	other->failures += gmem_view_new(other->vm, &other->view) != 0;
	gmem_view_begin(other->view);
	other->failures += gmem_view_store(other->view, 0, 8, 0, 7) != 0;
	pthread_barrier_wait(&other->turns);
	for (int i = 0; i < other->length; i++) {
		other->failures += gmem_view_load(other->view, 0, 8, 0, &value) != 0 || value != 7;
		usleep(50);
	}
	gmem_view_end(other->view);
	gmem_view_free(other->view);
	return NULL;
}

/* The VM's end waits for 1 ms, some of the sections are shorter. */
static void sections_and_their_vm_end_at_once(void **state)
{
	struct other_thread others[2] = { { .failures = 0 } };
	pthread_t threads[2];
	struct unit unit;

	(void)state;
	unit_begin(&unit, "6.18");
	GMEM_OPTS(gmem_vm_opts, opts, .caps = unit.caps, .wait_ms = 1);
	for (int i = 0; i < 100; i++) {
		assert_ok(gmem_vm_new(unit.vm_fd, &opts, &unit.vm));
		unit_region(&unit, 0, 4, NULL);
		for (int n = 0; n < 2; n++) {
			others[n].vm = unit.vm;
			others[n].length = (i + n) % 20;
			pthread_barrier_init(&others[n].turns, NULL, 2);
			assert_int_equal(pthread_create(&threads[n], NULL, use_after_the_end, &others[n]), 0);
			pthread_barrier_wait(&others[n].turns);
		}
		gmem_vm_free(unit.vm);
		for (int n = 0; n < 2; n++) {
			pthread_join(threads[n], NULL);
			pthread_barrier_destroy(&others[n].turns);
			assert_int_equal(others[n].failures, 0);
		}
	}
	unit.vm = NULL;
	unit_end(&unit);
}

/* One for all VMs: this is the first test, because a later one would find it. */
static void views_of_threads_need_one_key_and_memory(void **state)
{
	struct gmem_view *view = UNTOUCHED(struct gmem_view), *other;
	pthread_key_t keys[PTHREAD_KEYS_MAX];
	struct gmem_vm *vm;
	struct unit unit;
	int count = 0;

	(void)state;
	unit_begin_vm(&unit, "6.18");
	GMEM_OPTS(gmem_vm_opts, opts, .caps = unit.caps);
	while (count < PTHREAD_KEYS_MAX && !pthread_key_create(&keys[count], NULL))
		count++;
	assert_refused(-EAGAIN, "no key", gmem_vm_thread_view(unit.vm, &view));
	assert_ptr_equal(view, UNTOUCHED(struct gmem_view));
	pthread_key_delete(keys[--count]);
	assert_ok(gmem_vm_new(unit.vm_fd, &opts, &vm));
	assert_ok(gmem_vm_thread_view(vm, &other));
	unit_fail_alloc(1);
	assert_refused(-ENOMEM, "no memory for a view", gmem_vm_thread_view(unit.vm, &view));
	assert_true(unit_alloc_struck());
	assert_ptr_equal(view, UNTOUCHED(struct gmem_view));
	assert_ok(gmem_vm_thread_view(unit.vm, &view));
	assert_ptr_not_equal(view, other);
	while (count)
		pthread_key_delete(keys[--count]);
	gmem_vm_free(vm);
	unit_end(&unit);
}

struct worker {
	struct gmem_vm *vm;	/* NULL: that was all */
	pthread_barrier_t turns;
	int failures;
};

static void *work_for_each(void *data)
{
	struct worker *worker = data;
	struct gmem_view *view, *again;

	for (;;) {
		pthread_barrier_wait(&worker->turns);
		if (!worker->vm)
			return NULL;
		worker->failures += gmem_vm_thread_view(worker->vm, &view) != 0;
		worker->failures += gmem_vm_thread_view(worker->vm, &again) != 0 || again != view;
		pthread_barrier_wait(&worker->turns);
	}
}

/* More VMs than there are keys. The last one's view and table are there until the next. */
static void thread_that_outlives_its_vms_keeps_nothing(void **state)
{
	struct worker worker = { .failures = 0 };
	struct unit unit;
	pthread_t thread;
	unsigned maps;

	(void)state;
	unit_begin(&unit, "6.18");
	GMEM_OPTS(gmem_vm_opts, opts, .caps = unit.caps);
	pthread_barrier_init(&worker.turns, NULL, 2);
	assert_int_equal(pthread_create(&thread, NULL, work_for_each, &worker), 0);
	maps = fake_count(FAKE_MMAP) - fake_count(FAKE_MUNMAP);
	for (int i = 0; i < 1100; i++) {
		assert_ok(gmem_vm_new(unit.vm_fd, &opts, &worker.vm));
		pthread_barrier_wait(&worker.turns);
		pthread_barrier_wait(&worker.turns);
		assert_int_equal(worker.failures, 0);
		gmem_vm_free(worker.vm);
		assert_int_equal(fake_count(FAKE_MMAP) - fake_count(FAKE_MUNMAP), maps + 1);
	}
	worker.vm = NULL;
	pthread_barrier_wait(&worker.turns);
	pthread_join(thread, NULL);
	pthread_barrier_destroy(&worker.turns);
	assert_int_equal(fake_count(FAKE_MMAP) - fake_count(FAKE_MUNMAP), maps);
	unit_end(&unit);
}

/* Each asked for in turn, and one of them while a view of one that ended is in use */
static void *work_for_all(void *data)
{
	struct gmem_vm **vms = data;
	struct gmem_view *views[4], *view;

	for (unsigned i = 0; i < 3; i++)
		if (gmem_vm_thread_view(vms[i], &views[i]))
			return data;
	for (unsigned i = 0; i < 9; i++)
		if (gmem_vm_thread_view(vms[i * 2 % 3], &view) || view != views[i * 2 % 3])
			return data;
	gmem_vm_free(vms[1]);
	gmem_view_begin(views[2]);
	__atomic_store_n(&vms[2]->is_over, true, __ATOMIC_RELEASE);
	if (gmem_vm_thread_view(vms[3], &views[3]))
		return data;
	gmem_view_end(views[2]);
	__atomic_store_n(&vms[2]->is_over, false, __ATOMIC_RELEASE);
	if (gmem_vm_thread_view(vms[2], &view) || view != views[2] ||
	    gmem_vm_thread_view(vms[0], &view) || view != views[0] ||
	    gmem_vm_thread_view(vms[3], &view) || view != views[3])
		return data;
	return NULL;
}

static void thread_has_a_view_of_each_vm(void **state)
{
	struct gmem_vm *vms[4];
	struct unit unit;
	pthread_t thread;
	void *failed;

	(void)state;
	unit_begin(&unit, "6.18");
	GMEM_OPTS(gmem_vm_opts, opts, .caps = unit.caps);
	for (unsigned i = 0; i < ARRAY_SIZE(vms); i++)
		assert_ok(gmem_vm_new(unit.vm_fd, &opts, &vms[i]));
	assert_int_equal(pthread_create(&thread, NULL, work_for_all, vms), 0);
	assert_int_equal(pthread_join(thread, &failed), 0);
	assert_null(failed);
	for (unsigned i = 0; i < ARRAY_SIZE(vms); i++) {
		if (i == 1)
			continue;
		assert_null(vms[i]->views);
		gmem_vm_free(vms[i]);
	}
	unit_end(&unit);
}

/* ---- fork ---- */

static void *stay_between_begin_and_end(void *data)
{
	struct other_thread *other = data;

	other->failures += gmem_vm_thread_view(other->vm, &other->view) != 0;
	gmem_view_begin(other->view);
	pthread_barrier_wait(&other->turns);
	/* whatever is to happen meanwhile */
	pthread_barrier_wait(&other->turns);
	gmem_view_end(other->view);
	return NULL;
}

static pthread_t start_reader(struct other_thread *reader, struct gmem_vm *vm)
{
	pthread_t thread;

	*reader = (struct other_thread){ .vm = vm };
	if (pthread_barrier_init(&reader->turns, NULL, 2) ||
	    pthread_create(&thread, NULL, stay_between_begin_and_end, reader))
		_exit(9);
	pthread_barrier_wait(&reader->turns);
	return thread;
}

static void end_reader(struct other_thread *reader, pthread_t thread)
{
	pthread_barrier_wait(&reader->turns);
	pthread_join(thread, NULL);
	pthread_barrier_destroy(&reader->turns);
	assert_int_equal(reader->failures, 0);
}

static int make_private(struct gmem_vm *vm, uint64_t page)
{
	struct gmem_conversion done;

	return gmem_vm_convert(vm, page * PAGE, PAGE, GMEM_STATE_PRIVATE, NULL, &done);
}

static int do_without_the_parents_threads(struct gmem_vm *vm, struct gmem_region *region)
{
	struct other_thread reader;
	pthread_t thread;

	if (make_private(vm, 0))
		return 1;
#ifndef __SANITIZE_THREAD__
	/* ThreadSanitizer has no threads in children. */
	thread = start_reader(&reader, vm);
	if (make_private(vm, 1) != -EBUSY)
		return 2;
	end_reader(&reader, thread);
#else
	(void)reader;
	(void)thread;
#endif
	/* These would wait as long as it takes. */
	if (gmem_region_remove(region))
		return 3;
	gmem_vm_free_with_vm(vm);
	return 0;
}

static void child_waits_for_its_own_views_alone(void **state)
{
	struct gmem_region *region;
	struct other_thread reader;
	struct unit unit;
	pthread_t thread;
	int status = -1;
	pid_t child;

	(void)state;
	unit_begin(&unit, "7.3-swp-t1");
	GMEM_OPTS(gmem_vm_opts, opts, .caps = unit.caps, .wait_ms = 300);
	assert_ok(gmem_vm_new(unit.vm_fd, &opts, &unit.vm));
	region = unit_region_backed(&unit, 0, 4, GMEM_BACKING_PRIVATE);
	thread = start_reader(&reader, unit.vm);
	child = fork();
	if (child == 0) {
		alarm(20);
		_exit(do_without_the_parents_threads(unit.vm, region));
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
	assert_int_equal(make_private(unit.vm, 0), -EBUSY);
	end_reader(&reader, thread);
	unit_end(&unit);
}

/* Without membarrier() readers have fences of their own, and it is not tried again. */
static void views_fence_where_membarrier_is_forbidden(void **state)
{
	struct gmem_region *region;
	struct gmem_view *view;
	struct unit unit;
	unsigned calls;
	void *hva;
	int forbidden;

	(void)state;
	for (forbidden = 0; forbidden < 2; forbidden++) {
		unit_begin_vm(&unit, "6.18");
		fake_refuse_membarrier(forbidden ? -EPERM : 0);
		region = unit_region(&unit, 0, 1, NULL);
		calls = fake_count(FAKE_MEMBARRIER);
		assert_ok(gmem_view_new(unit.vm, &view));
		assert_int_equal(fake_count(FAKE_MEMBARRIER), calls + 1);
		assert_int_equal(view->newest->period % 2, forbidden);
		gmem_view_begin(view);
		assert_ok(gmem_view_hva(view, 0, 1, &hva));
		gmem_view_end(view);
		assert_ok(gmem_region_remove(region));
		assert_int_equal(fake_count(FAKE_MEMBARRIER), calls + (forbidden ? 1 : 2));
		/* without readers there is nothing to order */
		gmem_view_free(view);
		unit_region(&unit, 0, 1, NULL);
		assert_int_equal(fake_count(FAKE_MEMBARRIER), calls + (forbidden ? 1 : 2));
		unit_end(&unit);
	}
}

/* ---- access ---- */

static char buf[8 * 4096];

static void check_reads_and_writes(struct scene *s)
{
	uint64_t done = 77;

	assert_ok(gmem_view_read(s->view, 19 * PAGE + 100, buf, 2 * PAGE, &done));
	assert_int_equal(done, 2 * PAGE);
	assert_int_equal(buf[0], 'd');
	assert_int_equal(buf[PAGE - 101], 'd');
	assert_int_equal(buf[PAGE - 100], 'x');
	assert_int_equal(buf[2 * PAGE - 1], 'y');

	memset(buf, 'W', 3 * PAGE);
	assert_ok(gmem_view_write(s->view, 18 * PAGE + 7, buf, 3 * PAGE, &done));
	assert_int_equal(done, 3 * PAGE);
	assert_int_equal(s->a[2 * PAGE + 6], 'c');
	assert_int_equal(s->a[2 * PAGE + 7], 'W');
	assert_int_equal(s->a[4 * PAGE - 1], 'W');
	assert_int_equal(s->b[PAGE + 6], 'W');
	assert_int_equal(s->b[PAGE + 7], 'y');

	assert_ok(gmem_view_fill(s->view, 20 * PAGE - 1, 'F', 2, &done));
	assert_int_equal(done, 2);
	assert_int_equal(s->a[4 * PAGE - 1], 'F');
	assert_int_equal(s->b[0], 'F');
	assert_int_equal(s->b[1], 'W');

	assert_ok(gmem_view_copy(s->view, 20 * PAGE - 3, 17 * PAGE - 2, 5, &done));
	assert_int_equal(done, 5);
	assert_memory_equal(s->a + 4 * PAGE - 3, "aab", 3);
	assert_memory_equal(s->b, "bb", 2);

	/* nothing is nothing, wherever */
	done = 77;
	assert_ok(gmem_view_read(s->view, 23 * PAGE, NULL, 0, &done));
	assert_int_equal(done, 0);
	assert_ok(gmem_view_write(s->view, UINT64_MAX, NULL, 0, NULL));
	assert_ok(gmem_view_fill(s->view, 0, 1, 0, NULL));
	assert_ok(gmem_view_copy(s->view, 5, 5, 0, NULL));
}

static void accesses_span_regions(void **state)
{
	(void)state;
	both_ways(check_reads_and_writes);
}

/* ---- small accesses ---- */

#define SMALL 70	/* some bytes more than are copied inline */

/* Across the end of a region: @before bytes are in it. */
static void write_and_read(struct scene *s, uint64_t before, uint64_t size)
{
	const uint64_t gpa = 20 * PAGE - before;
	const uint64_t here = before < size ? before : size;
	char bytes[SMALL], back[SMALL + 1];
	uint64_t i, done = 77;

	for (i = 0; i < size; i++)
		bytes[i] = (char)(1 + before + i);
	memset(s->a + 4 * PAGE - SMALL - 1, 0, SMALL + 1);
	memset(s->b, 0, SMALL + 1);
	assert_ok(gmem_view_write(s->view, gpa, bytes, size, &done));
	assert_int_equal(done, size);
	assert_memory_equal(s->a + 4 * PAGE - before, bytes, here);
	assert_memory_equal(s->b, bytes + here, size - here);
	assert_int_equal(s->a[4 * PAGE - before - 1], 0);
	assert_int_equal(before > size ? s->a[4 * PAGE - before + size] : s->b[size - here], 0);

	memset(back, 0x5a, sizeof(back));
	done = 77;
	assert_ok(gmem_view_read(s->view, gpa, back, size, &done));
	assert_int_equal(done, size);
	assert_memory_equal(back, bytes, size);
	assert_int_equal(back[size], 0x5a);
	assert_ok(gmem_view_read(s->view, gpa, back, size, NULL));
	assert_ok(gmem_view_write(s->view, gpa, bytes, size, NULL));
}

/* @there bytes of @size are there: of the guest's memory at first, then of the caller's. */
static void stop_early(struct scene *s, char *end_of_buf, uint64_t there, uint64_t size)
{
	const int err = there < size ? -EFAULT : 0;
	uint64_t done = 77;

	memset(s->c + 2 * PAGE - SMALL, 'm', SMALL);
	memset(buf, 0x5a, SMALL + 1);
	assert_int_equal(gmem_view_read(s->view, 26 * PAGE - there, buf, size, &done), err);
	assert_int_equal(done, there);
	assert_memory_equal(buf, s->c + 2 * PAGE - there, there);
	assert_int_equal(buf[size], 0x5a);
	done = 77;
	assert_int_equal(gmem_view_write(s->view, 26 * PAGE - there, buf, size, &done), err);
	assert_int_equal(done, there);

	done = 77;
	assert_int_equal(gmem_view_read(s->view, 16 * PAGE, end_of_buf - there, size, &done), err);
	assert_int_equal(done, there);
	assert_memory_equal(end_of_buf - there, s->a, there);
	done = 77;
	assert_int_equal(gmem_view_write(s->view, 17 * PAGE, end_of_buf - there, size, &done), err);
	assert_int_equal(done, there);
	assert_memory_equal(s->a + PAGE, s->a, there);
}

/* A page, and one behind it that its file does not have */
static char *map_short_buf(void)
{
	int file = memfd_create("short", MFD_CLOEXEC);
	char *short_buf;

	assert_int_equal(ftruncate(file, (off_t)PAGE), 0);
	short_buf = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	assert_ptr_not_equal(short_buf, MAP_FAILED);
	close(file);
	return short_buf;
}

static void check_small_accesses(struct scene *s)
{
	char *short_buf = map_short_buf();
	uint64_t size, at, period = s->view->period;

	for (size = 1; size <= SMALL; size++) {
		for (at = 0; at <= SMALL; at++)
			write_and_read(s, at, size);
		for (at = 0; at <= size; at++)
			stop_early(s, short_buf + PAGE, at, size);
	}
	assert_int_equal(munmap(short_buf, 2 * PAGE), 0);
	assert_int_equal(s->view->period, period);

	assert_refused(-EINVAL, "buf is NULL", gmem_view_read(s->view, 16 * PAGE, NULL, 8, NULL));
	assert_refused(-EINVAL, "buf is NULL", gmem_view_write(s->view, 16 * PAGE, NULL, 8, NULL));
}

static void check_small_accesses_held(struct scene *s)
{
	gmem_view_begin(s->view);
	assert_int_not_equal(s->view->period, 0);
	check_small_accesses(s);
	gmem_view_end(s->view);
	assert_int_equal(s->view->period, 0);
}

static void small_accesses_of_every_size_and_place(void **state)
{
	(void)state;
	both_ways(check_small_accesses);
	both_ways(check_small_accesses_held);
}

/* An access leaves the view as it was, with fences, too, and if it fails. */
static void small_accesses_leave_the_view_as_it_was(void **state)
{
	struct gmem_view *view;
	char *short_buf = map_short_buf();
	uint64_t value = 0, before;
	struct unit unit;
	int forbidden, held;

	(void)state;
	assert_ok(gmem_recovery_enable());
	for (forbidden = 0; forbidden < 2; forbidden++) {
		unit_begin_vm(&unit, "6.18");
		fake_refuse_membarrier(forbidden ? -EPERM : 0);
		unit_region(&unit, 0, 1, NULL);
		assert_ok(gmem_view_new(unit.vm, &view));
		for (held = 0; held < 2; held++) {
			if (held)
				gmem_view_begin(view);
			before = view->period;
			assert_int_equal(before % 2, held && forbidden);
			assert_ok(gmem_view_store(view, 8, 8, GMEM_RELEASE, 5));
			assert_int_equal(view->period, before);
			assert_ok(gmem_view_load(view, 8, 8, GMEM_ACQUIRE, &value));
			assert_int_equal(value, 5);
			assert_int_equal(view->period, before);
			assert_ok(gmem_view_write(view, 9, &value, 3, NULL));
			assert_ok(gmem_view_read(view, 9, &value, 3, NULL));
			assert_int_equal(view->period, before);
			assert_int_equal(gmem_view_read(view, 8 * MIB, &value, 3, NULL), -ENOENT);
			assert_int_equal(gmem_view_read(view, 0, short_buf + PAGE, 3, NULL), -EFAULT);
			assert_int_equal(gmem_view_load(view, 8 * MIB, 4, GMEM_RELAXED, &value), -ENOENT);
			assert_int_equal(view->period, before);
			if (held)
				gmem_view_end(view);
		}
		assert_int_equal(view->period, 0);
		gmem_view_free(view);
		unit_end(&unit);
	}
	assert_int_equal(munmap(short_buf, 2 * PAGE), 0);
	gmem_recovery_disable();
}

static void *remove_region(void *region)
{
	assert_ok(gmem_region_remove(region));
	return NULL;
}

/* Several accesses between begin and end are of one layout, while who changes it waits. */
static void accesses_of_a_held_view_are_of_one_layout(void **state)
{
	struct gmem_region *region;
	pthread_t thread;
	uint64_t period, value = 0;
	char byte = 0;
	struct scene s;

	(void)state;
	assert_ok(gmem_recovery_enable());
	scene_begin(&s);
	assert_ok(gmem_vm_find_hva(s.unit.vm, s.b, &region, NULL));
	gmem_view_begin(s.view);
	period = s.view->period;
	assert_int_equal(pthread_create(&thread, NULL, remove_region, region), 0);
	while (__atomic_load_n(&s.view->newest->period, __ATOMIC_RELAXED) == period)
		usleep(100);

	assert_ok(gmem_view_read(s.view, 20 * PAGE, &byte, 1, NULL));
	assert_int_equal(byte, 'x');
	assert_ok(gmem_view_write(s.view, 20 * PAGE, "y", 1, NULL));
	assert_ok(gmem_view_load(s.view, 20 * PAGE, 1, GMEM_ACQUIRE, &value));
	assert_int_equal(value, 'y');
	assert_ok(gmem_view_store(s.view, 20 * PAGE, 1, GMEM_RELEASE, 'z'));
	assert_int_equal(s.b[0], 'z');
	assert_int_equal(s.view->period, period);
	gmem_view_end(s.view);

	assert_int_equal(pthread_join(thread, NULL), 0);
	assert_int_equal(gmem_view_read(s.view, 20 * PAGE, &byte, 1, NULL), -ESTALE);
	assert_int_equal(gmem_view_load(s.view, 20 * PAGE, 1, GMEM_ACQUIRE, &value), -ESTALE);
	scene_end(&s);
	gmem_recovery_disable();
}

/* Each access, from the same place, stops at the same byte for the same reason. */
static const struct {
	uint64_t gpa;
	uint64_t size;
	int err;
	uint64_t done;
} stops[] = {
	{ 15 * PAGE, 2 * PAGE, -ENOENT, 0 },
	{ 21 * PAGE + 1, PAGE, -ENXIO, PAGE - 1 },
	{ 18 * PAGE, 5 * PAGE, -ENXIO, 4 * PAGE },
	{ 22 * PAGE, 1, -ENXIO, 0 },
	{ 23 * PAGE + 9, 9, -ENOENT, 0 },
	{ 24 * PAGE, 3 * PAGE, -EFAULT, 2 * PAGE },
	{ 26 * PAGE - 1, 2, -EFAULT, 1 },
	{ 26 * PAGE, 1, -EFAULT, 0 },
	{ 27 * PAGE + 5, 3 * PAGE, -EFAULT, 0 },
	{ 28 * PAGE, 1, -ESTALE, 0 },
	{ 30 * PAGE + 1, PAGE, -ENOENT, PAGE - 1 },
};

static struct gmem_view *counted_view;
static uint64_t counted_period, spans;

/* Somebody waits for views before each copy; so a view that begins after it is of a new period. */
static void count_span(void)
{
	uint64_t *newest = (uint64_t *)(uintptr_t)&counted_view->newest->period;

	assert_int_not_equal(counted_view->period, 0);
	spans += counted_view->period != counted_period;
	counted_period = counted_view->period;
	*newest += 2;
}

/* The times that the view began since the last call, if the kernel copies; else @expected */
static uint64_t take_spans(uint64_t expected)
{
	uint64_t count = spans;

	spans = 0;
	return gmem_nofault_is_recoverable() ? expected : count;
}

/* Who converts waits for what has begun, so that must not last. */
static void check_spans(struct scene *s)
{
	const uint64_t gpa = 512 * PAGE + 100, size = 6 * MIB;
	char *big, *bytes = malloc(size + 1);
	uint64_t done, length;
	int order;

	assert_non_null(bytes);
	add(s, 512, 4096, (struct gmem_region_opts){ .plan = s->host }, &big);
	counted_view = s->view;
	fake_before_copy = count_span;
	assert_ok(gmem_view_fill(s->view, gpa, 'z', size, &done));
	assert_int_equal(done, size);
	assert_int_equal(take_spans(4), 4);	/* 2 MiB less 100 bytes, 2 MiB twice, 100 bytes */

	assert_ok(gmem_view_read(s->view, gpa, bytes, size, &done));
	assert_int_equal(done, size);
	assert_int_equal(take_spans(4), 4);
	assert_memory_equal(bytes, big + 100, size);
	assert_int_equal(big[99], 0);
	assert_int_equal(big[100 + size], 0);

	assert_ok(gmem_view_write(s->view, gpa, bytes, size, NULL));
	assert_int_equal(take_spans(4), 4);
	assert_ok(gmem_view_compare(s->view, gpa, bytes, size, &order, NULL));
	assert_int_equal(take_spans(4), 4);
	assert_int_equal(order, 0);
	assert_ok(gmem_view_string(s->view, gpa, bytes, size + 1, &length));
	assert_int_equal(take_spans(4), 4);
	assert_int_equal(length, size);
	assert_ok(gmem_view_copy(s->view, 2560 * PAGE, gpa, size, &done));
	assert_int_equal(take_spans(3), 3);
	assert_int_equal(done, size);
	assert_memory_equal(big + 2048 * PAGE, bytes, size);

	/* Between begin and end it is one. */
	gmem_view_begin(s->view);
	assert_ok(gmem_view_read(s->view, gpa, bytes, size, NULL));
	assert_int_equal(take_spans(1), 1);
	gmem_view_end(s->view);
	fake_before_copy = NULL;
	free(bytes);
}

static void long_accesses_begin_anew(void **state)
{
	(void)state;
	both_ways(check_spans);
}

static void check_stops(struct scene *s)
{
	uint64_t done, length = 77, room = 64 * PAGE;
	int order = 77;
	size_t i;

	add(s, 64, 8, (struct gmem_region_opts){ .plan = s->host }, NULL);
	memset(s->d, 'd', PAGE);
	for (i = 0; i < ARRAY_SIZE(stops); i++) {
		const uint64_t gpa = stops[i].gpa, size = stops[i].size;
		const int err = stops[i].err;

		done = 77;
		memset(buf, 0x5a, sizeof(buf));
		assert_int_equal(gmem_view_read(s->view, gpa, buf, size, &done), err);
		assert_int_equal(done, stops[i].done);
		done = 77;
		assert_int_equal(gmem_view_compare(s->view, gpa, buf, size, &order, &done), err);
		assert_int_equal(done, stops[i].done);
		assert_int_equal(order, 77);
		assert_int_equal(gmem_view_string(s->view, gpa, buf, size, &length), err);
		assert_int_equal(length, 77);
		assert_int_equal(gmem_view_copy(s->view, room, gpa, size, &done), err);
		assert_int_equal(done, stops[i].done);
		done = 77;
		assert_int_equal(gmem_view_copy(s->view, gpa, room, size, &done), err);
		assert_int_equal(done, stops[i].done);
		/* the copy left zeros, where a string would end before the stop */
		assert_int_equal(gmem_view_fill(s->view, gpa, 'd', size, &done), err);
		assert_int_equal(done, stops[i].done);
		done = 77;
		assert_int_equal(gmem_view_write(s->view, gpa, buf, size, &done), err);
		assert_int_equal(done, stops[i].done);
		assert_int_equal(gmem_view_fill(s->view, gpa, 'd', size, NULL), err);
	}
}

static void stops_are_exact(void **state)
{
	(void)state;
	both_ways(check_stops);
}

static void check_arguments(struct scene *s)
{
	uint64_t done = 77, length = 77;
	int order = 77;

	assert_refused(-EINVAL, "view is NULL", gmem_view_read(NULL, 0, buf, 1, &done));
	assert_int_equal(done, 0);
	assert_refused(-EINVAL, "buf is NULL", gmem_view_read(s->view, 0, NULL, 1, &done));
	assert_refused(-EINVAL, "wraps", gmem_view_read(s->view, UINT64_MAX, buf, 2, &done));
	assert_refused(-EINVAL, "view is NULL", gmem_view_write(NULL, 0, buf, 1, &done));
	assert_refused(-EINVAL, "buf is NULL", gmem_view_write(s->view, 0, NULL, 1, &done));
	assert_refused(-EINVAL, "wraps", gmem_view_write(s->view, 2, buf, UINT64_MAX, &done));
	assert_refused(-EINVAL, "view is NULL", gmem_view_fill(NULL, 0, 0, 1, &done));
	assert_refused(-EINVAL, "wraps", gmem_view_fill(s->view, UINT64_MAX, 0, 2, &done));
	assert_refused(-EINVAL, "view is NULL", gmem_view_compare(NULL, 0, buf, 1, &order, &done));
	assert_refused(-EINVAL, "NULL", gmem_view_compare(s->view, 0, buf, 1, NULL, &done));
	assert_refused(-EINVAL, "NULL", gmem_view_compare(s->view, 0, NULL, 1, &order, &done));
	assert_refused(-EINVAL, "NULL", gmem_view_string(NULL, 0, buf, 1, &length));
	assert_refused(-EINVAL, "NULL", gmem_view_string(s->view, 0, NULL, 1, &length));
	assert_refused(-EINVAL, "NULL", gmem_view_string(s->view, 0, buf, 1, NULL));
	assert_refused(-EINVAL, "max is 0", gmem_view_string(s->view, 0, buf, 0, &length));
	assert_refused(-EINVAL, "view is NULL", gmem_view_copy(NULL, 0, 8, 1, &done));
	assert_refused(-EINVAL, "wraps", gmem_view_copy(s->view, UINT64_MAX, 0, 2, &done));
	assert_refused(-EINVAL, "wraps", gmem_view_copy(s->view, 0, UINT64_MAX, 2, &done));
	assert_refused(-EINVAL, "overlap", gmem_view_copy(s->view, 16 * PAGE, 17 * PAGE, PAGE + 1,
							  &done));
	assert_refused(-EINVAL, "overlap", gmem_view_copy(s->view, 17 * PAGE, 16 * PAGE, PAGE + 1,
							  &done));
	assert_int_equal(done, 0);
	assert_int_equal(length, 77);
	assert_int_equal(order, 77);
	assert_ok(gmem_view_copy(s->view, 16 * PAGE, 17 * PAGE, PAGE, NULL));
}

static void accesses_check_their_arguments(void **state)
{
	(void)state;
	both_ways(check_arguments);
}

static void check_compare(struct scene *s)
{
	uint64_t done = 77;
	int order = 77;

	assert_ok(gmem_view_read(s->view, 17 * PAGE, buf, 5 * PAGE, NULL));
	assert_ok(gmem_view_compare(s->view, 17 * PAGE, buf, 5 * PAGE, &order, &done));
	assert_int_equal(order, 0);
	assert_int_equal(done, 5 * PAGE);
	buf[3 * PAGE] ^= 0x7f;		/* 'x' to 7 */
	assert_ok(gmem_view_compare(s->view, 17 * PAGE, buf, 5 * PAGE, &order, &done));
	assert_true(order > 0);
	assert_int_equal(done, 3 * PAGE);
	buf[PAGE + 1] = (char)0xff;	/* bytes have no sign */
	assert_ok(gmem_view_compare(s->view, 17 * PAGE, buf, 5 * PAGE, &order, &done));
	assert_true(order < 0);
	assert_int_equal(done, PAGE + 1);

	/* a difference found is an answer, whatever comes behind it */
	memset(buf, 'm', 3 * PAGE);
	buf[2 * PAGE - 1] = 'n';
	assert_ok(gmem_view_compare(s->view, 24 * PAGE, buf, 3 * PAGE, &order, &done));
	assert_true(order < 0);
	assert_int_equal(done, 2 * PAGE - 1);
	order = 77;
	assert_ok(gmem_view_compare(s->view, 0, NULL, 0, &order, NULL));
	assert_int_equal(order, 0);
}

static void compare_orders_like_memcmp(void **state)
{
	(void)state;
	both_ways(check_compare);
}

static void check_string(struct scene *s)
{
	uint64_t length = 77;

	/* across two pieces, terminated, and not a byte more */
	memcpy(s->a + 4 * PAGE - 5, "across", 5);
	memcpy(s->b, "s the border", 13);
	memset(buf, 0x5a, 64);
	assert_ok(gmem_view_string(s->view, 20 * PAGE - 5, buf, 64, &length));
	assert_string_equal(buf, "across the border");
	assert_int_equal(length, 17);
	assert_int_equal(buf[18], 0x5a);

	/* just room enough, and one too few */
	assert_ok(gmem_view_string(s->view, 20 * PAGE - 5, buf, 18, &length));
	length = 77;
	assert_refused(-ENAMETOOLONG, "0x11 bytes",
		       gmem_view_string(s->view, 20 * PAGE - 5, buf, 17, &length));
	assert_int_equal(length, 77);

	/* an end before the page that cannot be reached, and before the hole */
	s->c[2 * PAGE - 1] = '\0';
	assert_ok(gmem_view_string(s->view, 26 * PAGE - 4, buf, PAGE, &length));
	assert_string_equal(buf, "mmm");
	s->b[2 * PAGE - 1] = '\0';
	assert_ok(gmem_view_string(s->view, 22 * PAGE - 2, buf, PAGE, &length));
	assert_string_equal(buf, "y");
	assert_ok(gmem_view_string(s->view, 22 * PAGE - 1, buf, 1, &length));
	assert_string_equal(buf, "");
	assert_int_equal(length, 0);
}

static void string_ends_where_it_ends(void **state)
{
	(void)state;
	both_ways(check_string);
}

/* ---- single numbers ---- */

static void check_numbers(struct scene *s)
{
	static const uint32_t widths[] = { 1, 2, 4, 8 };
	static const uint32_t loads[] = { GMEM_RELAXED, GMEM_ACQUIRE, GMEM_SEQ_CST };
	static const uint32_t stores[] = { GMEM_RELAXED, GMEM_RELEASE, GMEM_SEQ_CST };
	const uint64_t gpa = 16 * PAGE + 64, pattern = UINT64_C(0x8877665544332211);
	uint64_t value, expected, cut;
	size_t i, j;

	for (i = 0; i < ARRAY_SIZE(widths); i++) {
		const uint32_t width = widths[i];

		cut = width == 8 ? pattern : pattern & (((uint64_t)1 << 8 * width) - 1);
		for (j = 0; j < 3; j++) {
			memset(s->a + 56, 0xee, 24);
			assert_ok(gmem_view_store(s->view, gpa, width, stores[j], cut));
			assert_memory_equal(s->a + 64, &pattern, width);
			assert_int_equal((uint8_t)s->a[63], 0xee);
			assert_int_equal((uint8_t)s->a[64 + width], 0xee);
			value = ~(uint64_t)0;
			assert_ok(gmem_view_load(s->view, gpa, width, loads[j], &value));
			assert_int_equal(value, cut);
		}
		for (j = 0; j <= GMEM_SEQ_CST; j++) {
			assert_ok(gmem_view_store(s->view, gpa, width, GMEM_RELAXED, cut));
			expected = cut ^ 1;
			assert_int_equal(gmem_view_compare_exchange(s->view, gpa, width, (uint32_t)j,
								    &expected, 5), 0);
			assert_int_equal(expected, cut);
			assert_int_equal(gmem_view_compare_exchange(s->view, gpa, width, (uint32_t)j,
								    &expected, 5), 1);
			assert_int_equal(expected, cut);
			assert_ok(gmem_view_load(s->view, gpa, width, GMEM_RELAXED, &value));
			assert_int_equal(value, 5);
		}
	}
}

static void numbers_are_whole_in_every_width_and_order(void **state)
{
	(void)state;
	both_ways(check_numbers);
}

static void check_number_arguments(struct scene *s)
{
	const uint64_t gpa = 16 * PAGE;
	uint64_t value = 77, old = 77;
	uint32_t width;

	for (width = 0; width < 20; width++) {
		if (width == 1 || width == 2 || width == 4 || width == 8)
			continue;
		assert_refused(-EINVAL, "width", gmem_view_load(s->view, gpa, width, 0, &value));
		assert_refused(-EINVAL, "width", gmem_view_store(s->view, gpa, width, 0, 0));
		assert_refused(-EINVAL, "width", gmem_view_compare_exchange(s->view, gpa, width, 0, &old, 0));
	}
	for (width = 2; width <= 8; width *= 2) {
		assert_refused(-EINVAL, "multiple", gmem_view_load(s->view, gpa + 1, width, 0, &value));
		assert_refused(-EINVAL, "multiple", gmem_view_store(s->view, gpa + width / 2, width, 0, 0));
		assert_refused(-EINVAL, "multiple",
			       gmem_view_compare_exchange(s->view, gpa + 1, width, 0, &old, 0));
	}
	for (width = 1; width <= 4; width *= 2) {
		const uint64_t large = (uint64_t)1 << 8 * width;

		assert_refused(-EINVAL, "fit", gmem_view_store(s->view, gpa, width, 0, large));
		assert_refused(-EINVAL, "fit", gmem_view_compare_exchange(s->view, gpa, width, 0, &old, large));
		old = large;
		assert_refused(-EINVAL, "fit", gmem_view_compare_exchange(s->view, gpa, width, 0, &old, 0));
		assert_int_equal(old, large);
		old = 77;
	}
	assert_refused(-EINVAL, "order", gmem_view_load(s->view, gpa, 8, GMEM_RELEASE, &value));
	assert_refused(-EINVAL, "order", gmem_view_load(s->view, gpa, 8, 4, &value));
	assert_refused(-EINVAL, "order", gmem_view_load(s->view, gpa, 8, UINT32_MAX, &value));
	assert_refused(-EINVAL, "order", gmem_view_store(s->view, gpa, 8, GMEM_ACQUIRE, 0));
	assert_refused(-EINVAL, "order", gmem_view_store(s->view, gpa, 8, 32, 0));
	assert_refused(-EINVAL, "order", gmem_view_compare_exchange(s->view, gpa, 8, 4, &old, 0));
	assert_refused(-EINVAL, "NULL", gmem_view_load(NULL, gpa, 8, 0, &value));
	assert_refused(-EINVAL, "NULL", gmem_view_load(s->view, gpa, 8, 0, NULL));
	assert_refused(-EINVAL, "NULL", gmem_view_store(NULL, gpa, 8, 0, 0));
	assert_refused(-EINVAL, "NULL", gmem_view_compare_exchange(NULL, gpa, 8, 0, &old, 0));
	assert_refused(-EINVAL, "NULL", gmem_view_compare_exchange(s->view, gpa, 8, 0, NULL, 0));

	/* nowhere, and where nothing can be reached */
	assert_refused(-ENOENT, "0x17000", gmem_view_load(s->view, 23 * PAGE, 8, 0, &value));
	assert_refused(-ENXIO, "0x16000", gmem_view_store(s->view, 22 * PAGE, 8, 0, 0));
	assert_refused(-ESTALE, "0x1c000", gmem_view_compare_exchange(s->view, 28 * PAGE, 8, 0, &old, 0));
	assert_refused(-EFAULT, "0x1a000", gmem_view_load(s->view, 26 * PAGE, 8, 0, &value));
	assert_refused(-EFAULT, "0x1a000", gmem_view_store(s->view, 26 * PAGE, 4, 0, 0));
	assert_refused(-EFAULT, "0x1a008", gmem_view_compare_exchange(s->view, 26 * PAGE + 8, 8, 0, &old, 0));
	assert_int_equal(value, 77);
	assert_int_equal(old, 77);
	assert_int_equal(s->a[0], 'a');
}

static void numbers_check_their_arguments(void **state)
{
	(void)state;
	both_ways(check_number_arguments);
}

/* ---- which way ---- */

static void system_calls_are_made_only_without_recovery(void **state)
{
	struct scene s;
	uint64_t copies, value;

	(void)state;
	scene_begin(&s);
	copies = fake_copies();
	assert_ok(gmem_view_read(s.view, 16 * PAGE, buf, 8, NULL));
	assert_ok(gmem_view_load(s.view, 16 * PAGE, 8, GMEM_RELAXED, &value));
	assert_int_equal(fake_copies(), copies + 2);

	/* refused by a filter, say: then it says so */
	fake_refuse_copies(-EPERM);
	assert_refused(-EPERM, "EPERM", gmem_view_read(s.view, 16 * PAGE, buf, 8, NULL));
	assert_refused(-EPERM, "EPERM", gmem_view_load(s.view, 16 * PAGE, 8, 0, &value));
	fake_refuse_copies(0);
	scene_end(&s);

	assert_ok(gmem_recovery_enable());
	scene_begin(&s);
	fake_refuse_copies(-EPERM);
	copies = fake_copies();
	assert_ok(gmem_view_read(s.view, 16 * PAGE, buf, 6 * PAGE, NULL));
	assert_ok(gmem_view_load(s.view, 16 * PAGE, 8, GMEM_RELAXED, &value));
	assert_int_equal(fake_copies(), copies);
	/* Only a failure asks the kernel, for its sentence. */
	assert_int_equal(gmem_view_read(s.view, 26 * PAGE, buf, 1, NULL), -EFAULT);
	scene_end(&s);
	gmem_recovery_disable();
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(views_of_threads_need_one_key_and_memory),
	cmocka_unit_test(hva_is_where_the_region_is),
	cmocka_unit_test(errors_say_what_is_there_instead),
	cmocka_unit_test(iovec_has_one_entry_for_each_piece),
	cmocka_unit_test(large_region_is_one_piece),
	cmocka_unit_test(iovec_stays_within_its_maximum),
	cmocka_unit_test(layout_is_held_from_begin_to_end),
	cmocka_unit_test(handler_may_interrupt_any_use),
	cmocka_unit_test(first_view_knows_all_regions),
	cmocka_unit_test(view_needs_a_vm_and_memory),
	cmocka_unit_test(views_fence_where_membarrier_is_forbidden),
	cmocka_unit_test(view_that_outlives_its_vm_is_stale),
	cmocka_unit_test(end_of_a_vm_does_not_wait_for_ever),
	cmocka_unit_test(section_that_outlives_its_vm_keeps_the_memory),
	cmocka_unit_test(sections_and_their_vm_end_at_once),
	cmocka_unit_test(thread_has_a_view_of_its_own),
	cmocka_unit_test(views_of_threads_end_with_them),
	cmocka_unit_test(threads_and_their_vm_end_at_once),
	cmocka_unit_test(thread_that_outlives_its_vms_keeps_nothing),
	cmocka_unit_test(thread_has_a_view_of_each_vm),
	cmocka_unit_test(child_waits_for_its_own_views_alone),
	cmocka_unit_test(accesses_span_regions),
	cmocka_unit_test(small_accesses_of_every_size_and_place),
	cmocka_unit_test(small_accesses_leave_the_view_as_it_was),
	cmocka_unit_test(accesses_of_a_held_view_are_of_one_layout),
	cmocka_unit_test(long_accesses_begin_anew),
	cmocka_unit_test(stops_are_exact),
	cmocka_unit_test(accesses_check_their_arguments),
	cmocka_unit_test(compare_orders_like_memcmp),
	cmocka_unit_test(string_ends_where_it_ends),
	cmocka_unit_test(numbers_are_whole_in_every_width_and_order),
	cmocka_unit_test(numbers_check_their_arguments),
	cmocka_unit_test(system_calls_are_made_only_without_recovery),
};

UNIT_MAIN(tests)
