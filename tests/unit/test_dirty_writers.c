/* SPDX-License-Identifier: MIT */
/*
 * view, leased_memory, region_memory and convert, while there is a tracker: what the library
 * itself writes is marked, and nothing else is. The race runs for GMEM_STRESS_SECONDS, 3 without.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "region/dirty_pages.h"
#include "region/peer_marks.h"
#include "region/vm_core.h"
#include "unit.h"
#include "view/view.h"

#define PAGE	((uint64_t)4096)

/*
 * Pages 16..19 are host memory, 20..21 other host memory; a device's range at 22; a hole at 23;
 * 24..27 are mapped from a file of which two pages are there. All far up in the second scene,
 * where the lookup table is of another kind.
 */
struct scene {
	struct unit unit;
	uint64_t base;
	struct gmem_plan *host, *mapped;
	struct gmem_file *file;
	struct gmem_view *view, *late;	/* made before the tracker, and after */
	struct gmem_dirty *dirty;
	uint8_t bytes[8 * PAGE];
};

#define BIT(page)	(UINT64_C(1) << (page))
#define MEMORY		(UINT64_C(0x3f) << 16 | UINT64_C(0xf) << 24)

static struct gmem_region *add(struct scene *s, uint64_t page, uint64_t pages, struct gmem_region_opts opts)
{
	struct gmem_region *region = NULL;

	opts.size = sizeof(opts);
	assert_ok(gmem_region_add(s->unit.vm, s->base + page * PAGE, pages * PAGE, &opts, &region));
	return region;
}

static struct gmem_dirty *track(struct scene *s)
{
	GMEM_OPTS(gmem_dirty_opts, opts, .flags = GMEM_DIRTY_FROM_NOW);
	struct gmem_dirty *dirty;

	assert_ok(gmem_dirty_new(s->unit.vm, &opts, &dirty));
	return dirty;
}

static void begin(struct scene *s, uint64_t base, int membarrier_err)
{
	memset(s, 0, sizeof(*s));
	memset(s->bytes, 7, sizeof(s->bytes));
	s->base = base;
	unit_begin_vm(&s->unit, "6.18");
	if (membarrier_err)
		fake_refuse_membarrier(membarrier_err);
	s->host = unit_plan(&s->unit, GMEM_BACKING_HOST);
	s->mapped = unit_plan(&s->unit, GMEM_BACKING_MAPPED);
	s->file = unit_file(&s->unit, 4);
	add(s, 16, 4, (struct gmem_region_opts){ .plan = s->host });
	add(s, 20, 2, (struct gmem_region_opts){ .plan = s->host });
	add(s, 22, 1, (struct gmem_region_opts){ .flags = GMEM_REGION_DEVICE });
	add(s, 24, 4, (struct gmem_region_opts){ .plan = s->mapped, .file = s->file });
	assert_int_equal(ftruncate(gmem_file_fd(s->file), (off_t)(2 * PAGE)), 0);
	assert_ok(gmem_view_new(s->unit.vm, &s->view));
	s->dirty = track(s);
	assert_ok(gmem_view_new(s->unit.vm, &s->late));
}

static void end(struct scene *s)
{
	gmem_view_free(s->view);
	gmem_view_free(s->late);
	gmem_dirty_free(s->dirty);
	gmem_vm_free(s->unit.vm);
	s->unit.vm = NULL;
	gmem_file_free(s->file);
	gmem_plan_free(s->host);
	gmem_plan_free(s->mapped);
	unit_end(&s->unit);
}

/* The pages that were marked since the last collection */
static uint64_t marked(const struct scene *s)
{
	const struct gmem_dirty_pages *dirty = s->unit.vm->newest.dirty;
	uint64_t found = 0, gpa = s->base, last = s->base + 64 * PAGE - 1;
	struct gmem_part part;

	for (; gmem_dirty_pages_next(dirty, dirty->period, gpa, last, &part); gpa = part.last + 1)
		for (uint64_t at = part.start; at <= part.last; at += PAGE)
			found |= BIT((at - s->base) / PAGE);
	return found;
}

/* Exactly these are, and are told */
static void check_told(struct scene *s, const char *what, uint64_t must, uint64_t may)
{
	uint64_t found = marked(s), bitmap = 0;

	if ((found & must) != must || found & ~(must | may))
		fail_msg("%s: pages 0x%" PRIx64 " are marked, not 0x%" PRIx64, what, found, must);
	assert_ok(gmem_dirty_collect(s->dirty, NULL));
	assert_ok(gmem_dirty_get_bitmap(s->dirty, s->base, 64 * PAGE, &bitmap, 1));
	assert_int_equal(bitmap, found & MEMORY);
	assert_int_equal(marked(s), 0);
}

/* ---- views ---- */

enum access { WRITE, FILL, COPY, STORE, EXCHANGE, SAY, READ, ACCESSES };

static const char *const access_names[] = { "write", "fill", "copy", "store", "exchange", "mark_dirty",
					    "read" };

/* All pages from 16 to 21 have nothing but zeros before. */
static int access_memory(struct scene *s, struct gmem_view *view, enum access access, uint64_t gpa,
			 uint64_t size)
{
	uint64_t expected = 0;
	int err;

	switch (access) {
	case WRITE:
		return gmem_view_write(view, gpa, s->bytes, size, NULL);
	case FILL:
		return gmem_view_fill(view, gpa, 0, size, NULL);
	case COPY:
		return gmem_view_copy(view, gpa, s->base + 16 * PAGE, size, NULL);
	case STORE:
		return gmem_view_store(view, gpa, (uint32_t)size, GMEM_RELEASE, 0);
	case EXCHANGE:
		err = gmem_view_compare_exchange(view, gpa, (uint32_t)size, GMEM_SEQ_CST, &expected, 0);
		return err < 0 ? err : 0;
	case SAY:
		return gmem_view_mark_dirty(view, gpa, size);
	default:
		return gmem_view_read(view, gpa, s->bytes, size, NULL);
	}
}

static const struct access_case {
	uint32_t accesses;	/* bits of enum access */
	uint64_t gpa, size;
	int err;
	uint64_t must, may;
} access_cases[] = {
#define ANY	(1u << WRITE | 1u << FILL | 1u << SAY)
#define WORDS	(1u << STORE | 1u << EXCHANGE)
	{ ANY | 1u << COPY, 18 * PAGE, 0, 0, 0, 0 },
	{ ANY | WORDS | 1u << COPY, 18 * PAGE, 1, 0, BIT(18), 0 },
	{ ANY | WORDS | 1u << COPY, 19 * PAGE - 8, 8, 0, BIT(18), 0 },
	{ ANY | 1u << COPY, 19 * PAGE - 1, 2, 0, BIT(18) | BIT(19), 0 },
	{ ANY | 1u << COPY, 18 * PAGE + 1, 63, 0, BIT(18), 0 },
	{ ANY | 1u << COPY, 20 * PAGE - 40, 64, 0, BIT(19) | BIT(20), 0 },
	{ ANY | 1u << COPY, 20 * PAGE - 4000, 8000, 0, BIT(19) | BIT(20), 0 },
	{ ANY, 16 * PAGE, 6 * PAGE, 0, 0x3f << 16, 0 },
	{ ANY, 17 * PAGE, 2 * PAGE, 0, BIT(17) | BIT(18), 0 },
	{ 1u << READ, 16 * PAGE, 8, 0, 0, 0 },
	{ 1u << READ, 16 * PAGE, 6 * PAGE, 0, 0, 0 },
	/* what is behind can be a device's, nothing, or a page that cannot be reached */
	{ 1u << WRITE | 1u << FILL, 22 * PAGE - 8, 16, -ENXIO, BIT(21), 0 },
	{ 1u << WRITE | 1u << FILL, 21 * PAGE + 1, 2 * PAGE, -ENXIO, BIT(21), 0 },
	{ 1u << WRITE | 1u << FILL | WORDS, 22 * PAGE, 8, -ENXIO, 0, 0 },
	{ 1u << WRITE | 1u << FILL | WORDS, 23 * PAGE, 8, -ENOENT, 0, 0 },
	{ 1u << WRITE | 1u << FILL, 26 * PAGE - 8, 16, -EFAULT, BIT(25), BIT(26) },
	{ 1u << WRITE | 1u << FILL, 24 * PAGE + 9, 3 * PAGE, -EFAULT, BIT(24) | BIT(25), BIT(26) | BIT(27) },
	{ 1u << WRITE | 1u << FILL | WORDS, 26 * PAGE, 8, -EFAULT, 0, BIT(26) },
};

static void try_access(struct scene *s, struct gmem_view *view, enum access access, const struct access_case *c,
		       bool holds)
{
	char what[100];

	snprintf(what, sizeof(what), "%s of %" PRIu64 " bytes at 0x%" PRIx64 "%s", access_names[access], c->size,
		 c->gpa, holds ? ", held" : "");
	/* The second time the pages are marked already. */
	for (int i = 0; i < 2; i++) {
		if (holds)
			gmem_view_begin(view);
		if (access_memory(s, view, access, s->base + c->gpa, c->size) != c->err)
			fail_msg("%s: %s", what, gmem_last_error());
		if (holds)
			gmem_view_end(view);
	}
	check_told(s, what, c->must, c->may);
}

static void try_all(struct scene *s)
{
	struct gmem_view *own;

	assert_ok(gmem_vm_thread_view(s->unit.vm, &own));
	for (size_t i = 0; i < ARRAY_SIZE(access_cases); i++)
		for (int access = 0; access < ACCESSES; access++) {
			if (!(access_cases[i].accesses & 1u << access))
				continue;
			try_access(s, s->view, (enum access)access, &access_cases[i], false);
			try_access(s, s->late, (enum access)access, &access_cases[i], true);
			try_access(s, own, (enum access)access, &access_cases[i], false);
		}
}

/* Runs the check without recovery and with it, near and far, with membarrier and without. */
static void in_all_ways(void (*check)(struct scene *s))
{
	static const uint64_t bases[] = { 0, UINT64_C(1) << 30, UINT64_C(5) << 40 };
	struct scene s;

	for (int recovers = 0; recovers < 2; recovers++) {
		if (recovers)
			assert_ok(gmem_recovery_enable());
		for (size_t i = 0; i < ARRAY_SIZE(bases); i++)
			for (int refused = 0; refused < 2; refused++) {
				begin(&s, bases[i], refused ? -EPERM : 0);
				check(&s);
				end(&s);
			}
		if (recovers)
			gmem_recovery_disable();
	}
}

static void what_views_write_is_told(void **state)
{
	(void)state;
	in_all_ways(try_all);
}

static void try_late_refusal(struct scene *s)
{
	fake_refuse_membarrier(-EPERM);
	check_told(s, "nothing", 0, 0);
	try_all(s);
}

static void membarrier_may_be_refused_later(void **state)
{
	(void)state;
	in_all_ways(try_late_refusal);
}

static void an_exchange_that_fails_writes_nothing(void **state)
{
	uint64_t expected = 5;
	struct scene s;

	(void)state;
	begin(&s, 0, 0);
	assert_int_equal(gmem_view_compare_exchange(s.view, 16 * PAGE, 8, GMEM_SEQ_CST, &expected, 6), 0);
	check_told(&s, "a failed exchange", 0, 0);
	assert_int_equal(expected, 0);
	assert_int_equal(gmem_view_compare_exchange(s.view, 16 * PAGE, 8, GMEM_SEQ_CST, &expected, 6), 1);
	check_told(&s, "an exchange", BIT(16), 0);
	end(&s);
}

static void marking_checks_its_arguments(void **state)
{
	struct scene s;

	(void)state;
	begin(&s, 0, 0);
	assert_refused(-EINVAL, "view is NULL", gmem_view_mark_dirty(NULL, 0, 1));
	assert_refused(-EINVAL, "wraps", gmem_view_mark_dirty(s.view, UINT64_MAX, 2));
	assert_ok(gmem_view_mark_dirty(s.view, 0, UINT64_MAX));
	check_told(&s, "all", UINT64_MAX, 0);
	assert_ok(gmem_view_mark_dirty(s.view, UINT64_MAX, 1));
	check_told(&s, "nothing", 0, 0);
	end(&s);
}

static void views_mark_only_while_there_is_a_tracker(void **state)
{
	struct gmem_dirty *other;
	struct scene s;

	(void)state;
	assert_ok(gmem_recovery_enable());
	begin(&s, 0, 0);
	other = track(&s);
	gmem_dirty_free(s.dirty);
	s.dirty = other;
	assert_non_null(s.unit.vm->newest.dirty);
	assert_ok(gmem_view_write(s.view, 16 * PAGE, s.bytes, 8, NULL));
	check_told(&s, "another's", BIT(16), 0);

	for (int i = 0; i < 3; i++) {
		gmem_dirty_free(s.dirty);
		assert_null(s.unit.vm->newest.dirty);
		assert_ok(gmem_view_write(s.view, 17 * PAGE, s.bytes, 8, NULL));
		assert_ok(gmem_view_mark_dirty(s.view, 17 * PAGE, 8));
		s.dirty = track(&s);
		assert_ok(gmem_view_write(s.late, 18 * PAGE, s.bytes, 8, NULL));
		check_told(&s, "since the tracker", BIT(18), 0);
	}
	end(&s);
	gmem_recovery_disable();
}

/* ---- handlers ---- */

static struct scene *interrupted;

static void write_in_handler(int signal)
{
	(void)signal;
	assert_ok(gmem_view_write(interrupted->view, interrupted->base + 17 * PAGE, interrupted->bytes, 8, NULL));
	assert_ok(gmem_view_store(interrupted->view, interrupted->base + 18 * PAGE, 8, GMEM_RELEASE, 1));
}

static void handlers_mark_what_they_write(void **state)
{
	struct sigaction action = { .sa_handler = write_in_handler }, old;
	struct scene s;

	(void)state;
	assert_ok(gmem_recovery_enable());
	begin(&s, 0, 0);
	interrupted = &s;
	sigaction(SIGUSR1, &action, &old);
	raise(SIGUSR1);
	check_told(&s, "a handler", BIT(17) | BIT(18), 0);
	gmem_view_begin(s.view);
	raise(SIGUSR1);
	assert_ok(gmem_view_write(s.view, 16 * PAGE, s.bytes, 8, NULL));
	gmem_view_end(s.view);
	check_told(&s, "a handler in between", BIT(16) | BIT(17) | BIT(18), 0);
	/* as if it had come inside of an access, which has a period and no table */
	s.view->period = s.unit.vm->newest.period;
	raise(SIGUSR1);
	s.view->period = 0;
	check_told(&s, "a handler inside of an access", BIT(17) | BIT(18), 0);
	sigaction(SIGUSR1, &old, NULL);
	end(&s);
	gmem_recovery_disable();
}

/* ---- imports ---- */

static void imports_mark_for_their_exporter(void **state)
{
	static uint8_t chunks[2], pages[1024];
	struct gmem_peer_marks marks = { .pages_end = 1024, .page_shift = 12, .chunks = chunks, .pages = pages };
	struct scene s;

	(void)state;
	for (int recovers = 0; recovers < 2; recovers++) {
		if (recovers)
			assert_ok(gmem_recovery_enable());
		begin(&s, 0, 0);
		gmem_dirty_free(s.dirty);
		memset(pages, 0, sizeof(pages));
		memset(chunks, 0, sizeof(chunks));
		gmem_vm_mark_for_peer(s.unit.vm, &marks);
		gmem_vm_wait_for_views(s.unit.vm, NULL);
		assert_ok(gmem_view_write(s.view, 19 * PAGE, s.bytes, 8, NULL));
		assert_ok(gmem_view_write(s.view, 20 * PAGE, s.bytes, 2 * PAGE, NULL));
		assert_ok(gmem_view_store(s.late, 17 * PAGE, 4, GMEM_RELAXED, 1));
		assert_ok(gmem_view_mark_dirty(s.view, 511 * PAGE, 2 * PAGE));
		assert_ok(gmem_view_mark_dirty(s.view, 1024 * PAGE, PAGE));
		for (size_t i = 0; i < sizeof(pages); i++)
			assert_int_equal(pages[i], (i >= 19 && i <= 21) || i == 17 || i == 511 || i == 512);
		assert_int_equal(chunks[0], 1);
		assert_int_equal(chunks[1], 1);
		gmem_vm_mark_for_peer(s.unit.vm, NULL);
		gmem_vm_wait_for_views(s.unit.vm, NULL);
		assert_ok(gmem_view_write(s.view, 16 * PAGE, s.bytes, 8, NULL));
		assert_int_equal(pages[16], 0);
		s.dirty = track(&s);
		end(&s);
		if (recovers)
			gmem_recovery_disable();
	}
}

/* ---- other writers ---- */

static void check_collected(struct scene *s, const char *what, uint64_t must)
{
	uint64_t bitmap = 0;

	assert_ok(gmem_dirty_collect(s->dirty, NULL));
	assert_ok(gmem_dirty_get_bitmap(s->dirty, s->base, 64 * PAGE, &bitmap, 1));
	if (bitmap != must)
		fail_msg("%s: pages 0x%" PRIx64 " are told, not 0x%" PRIx64, what, bitmap, must);
}

static void loads_and_discards_are_told(void **state)
{
	static const uint32_t pfns[] = { 20, 17 };
	int fd = memfd_create("contents", MFD_CLOEXEC);
	struct gmem_lease *lease;
	struct scene s;

	(void)state;
	begin(&s, 0, 0);
	assert_int_equal(write(fd, s.bytes, sizeof(s.bytes)), sizeof(s.bytes));
	assert_ok(gmem_vm_load(s.unit.vm, 19 * PAGE, fd, 0, 2 * PAGE, NULL, NULL));
	check_told(&s, "a load", BIT(19) | BIT(20), 0);
	assert_ok(gmem_vm_load(s.unit.vm, 16 * PAGE + 5, fd, 0, 9, NULL, NULL));
	check_told(&s, "a load of some bytes", BIT(16), 0);
	assert_true(gmem_vm_load(s.unit.vm, 25 * PAGE, fd, 0, 2 * PAGE, NULL, NULL) < 0);
	check_told(&s, "a load that fails behind a page", BIT(25), BIT(26));
	assert_true(gmem_vm_load(s.unit.vm, 21 * PAGE, fd, 0, 2 * PAGE, NULL, NULL) < 0);
	check_told(&s, "a load that is refused", 0, 0);

	assert_ok(gmem_vm_discard(s.unit.vm, 18 * PAGE, PAGE, NULL, NULL));
	check_told(&s, "a discard", BIT(18), 0);
	assert_ok(gmem_vm_discard(s.unit.vm, 24 * PAGE, 2 * PAGE, NULL, NULL));
	check_told(&s, "a discard of a file's", BIT(24) | BIT(25), 0);
	assert_ok(gmem_vm_discard_pfns(s.unit.vm, pfns, 2, NULL, NULL));
	check_told(&s, "a discard of two pages", BIT(17) | BIT(20), 0);
	assert_ok(gmem_lease_new(s.unit.vm, 18 * PAGE, PAGE, NULL, &lease));
	assert_int_equal(gmem_vm_discard(s.unit.vm, 18 * PAGE, PAGE, NULL, NULL), -EBUSY);
	check_told(&s, "a discard that is refused", 0, 0);
	gmem_lease_free(lease);

	/* of a file directly, whichever region has it; from the first hole to the last */
	assert_ok(gmem_file_punch(s.file, PAGE, PAGE, NULL));
	check_collected(&s, "a hole in a file", BIT(25));
	check_collected(&s, "nothing", 0);
	assert_ok(gmem_file_punch(s.file, 0, PAGE, NULL));
	check_collected(&s, "another hole", BIT(24) | BIT(25));
	check_collected(&s, "nothing", 0);

	fake_fail_next(FAKE_MADVISE, -EIO);
	assert_true(gmem_vm_discard(s.unit.vm, 16 * PAGE, PAGE, NULL, NULL) < 0);
	fake_fail_struck();
	check_told(&s, "a discard that fails", 0, BIT(16));
	close(fd);
	end(&s);
}

static uint64_t marked_by(struct scene *s, int err, int expected)
{
	uint64_t found = marked(s);

	assert_int_equal(err, expected);
	assert_ok(gmem_dirty_collect(s->dirty, NULL));
	return found;
}

static void conversions_are_told(void **state)
{
	GMEM_OPTS(gmem_dirty_opts, opts, .flags = GMEM_DIRTY_FROM_NOW | GMEM_DIRTY_ALLOW_UNLOGGED);
	struct scene s = { .base = 0 };
	struct gmem_plan *plan;
	struct gmem_vm *vm;

	(void)state;
	unit_begin_vm(&s.unit, "7.3-swp-t1");
	vm = s.unit.vm;
	plan = unit_plan(&s.unit, GMEM_BACKING_PRIVATE);
	add(&s, 0, 8, (struct gmem_region_opts){ .plan = plan });
	add(&s, 8, 8, (struct gmem_region_opts){ .plan = plan });
	assert_ok(gmem_dirty_new(vm, &opts, &s.dirty));

	assert_int_equal(marked_by(&s, gmem_vm_convert(vm, 0, 16 * PAGE, GMEM_STATE_SHARED, NULL, NULL), 0), 0);
	assert_int_equal(marked_by(&s, gmem_vm_convert(vm, 2 * PAGE, PAGE, GMEM_STATE_PRIVATE, NULL, NULL), 0),
			 BIT(2));
	/* across regions; what was private has its shared side discarded, too */
	assert_int_equal(marked_by(&s, gmem_vm_convert(vm, PAGE, 8 * PAGE, GMEM_STATE_PRIVATE, NULL, NULL), 0),
			 0x1fe);
	assert_int_equal(marked_by(&s, gmem_vm_convert(vm, 8 * PAGE, PAGE, GMEM_STATE_SHARED, NULL, NULL), 0),
			 BIT(8));
	assert_int_equal(marked_by(&s, gmem_vm_adopt_private(vm, 12 * PAGE, PAGE), 0), BIT(12));
	/* undone or not */
	fake_fail_kind(FAKE_SET_ATTRIBUTES, 0, 1, -EIO);
	assert_int_equal(marked_by(&s, gmem_vm_convert(vm, 9 * PAGE, PAGE, GMEM_STATE_PRIVATE, NULL, NULL), -EIO) &
			 ~BIT(9), 0);
	assert_true(fake_fail_struck());
	assert_int_equal(marked_by(&s, gmem_vm_convert(vm, PAGE, PAGE, GMEM_STATE_SHARED, NULL, NULL), 0), BIT(1));

	gmem_dirty_free(s.dirty);
	gmem_plan_free(plan);
	unit_end(&s.unit);
}

/* ---- races ---- */

#define WRITERS		2
#define RACE_PAGES	6

struct race {
	struct scene scene;
	uint64_t done[RACE_PAGES][WRITERS];
	int stop;
};

struct racer {
	pthread_t thread;
	struct race *race;
	unsigned number;
	uint64_t count;
	char failure[160];
};

static bool stopped(struct race *race)
{
	return __atomic_load_n(&race->stop, __ATOMIC_RELAXED);
}

static int write_number(struct gmem_view *view, uint64_t gpa, uint64_t number)
{
	uint64_t expected = 0;
	int err;

	switch (number % 4) {
	case 0:
		return gmem_view_write(view, gpa, &number, 8, NULL);
	case 1:
		return gmem_view_store(view, gpa, 8, GMEM_RELEASE, number);
	case 2:
		return gmem_view_store(view, gpa, 8, GMEM_SEQ_CST, number);
	}
	do
		err = gmem_view_compare_exchange(view, gpa, 8, GMEM_RELEASE, &expected, number);
	while (err == 0);
	return err < 0 ? err : 0;
}

static void *write_numbers(void *data)
{
	struct racer *racer = data;
	struct race *race = racer->race;
	struct gmem_view *view;

	if (gmem_vm_thread_view(race->scene.unit.vm, &view))
		return NULL;
	while (!stopped(race)) {
		uint64_t page = __atomic_add_fetch(&racer->count, 1, __ATOMIC_RELAXED) * 7 % RACE_PAGES;

		if (write_number(view, (16 + page) * PAGE + racer->number * 8, racer->count))
			snprintf(racer->failure, sizeof(racer->failure), "%s", gmem_last_error());
		__atomic_store_n(&race->done[page][racer->number], racer->count, __ATOMIC_RELEASE);
	}
	return NULL;
}

static void copy_page(struct gmem_view *view, uint64_t page, uint64_t *copy)
{
	for (unsigned i = 0; i < WRITERS; i++)
		gmem_view_load(view, (16 + page) * PAGE + i * 8, 8, GMEM_ACQUIRE, &copy[i]);
}

static void compare(struct racer *racer, uint64_t copies[RACE_PAGES][WRITERS],
		    uint64_t done[RACE_PAGES][WRITERS])
{
	for (uint64_t i = 0; i < RACE_PAGES * WRITERS; i++)
		if (copies[i / WRITERS][i % WRITERS] < done[i / WRITERS][i % WRITERS] && !racer->failure[0])
			snprintf(racer->failure, sizeof(racer->failure), "page %" PRIu64 ": %" PRIu64
				 " was done, %" PRIu64 " is copied, round %" PRIu64, i / WRITERS,
				 done[i / WRITERS][i % WRITERS], copies[i / WRITERS][i % WRITERS], racer->count);
}

static void collect_and_compare(struct racer *racer, struct gmem_view *view, struct gmem_dirty *dirty,
				uint64_t copies[RACE_PAGES][WRITERS])
{
	uint64_t done[RACE_PAGES][WRITERS];
	struct gmem_dirty_range range = { 0 };

	for (uint64_t i = 0; i < RACE_PAGES * WRITERS; i++)
		done[i / WRITERS][i % WRITERS] =
			__atomic_load_n(&racer->race->done[i / WRITERS][i % WRITERS], __ATOMIC_ACQUIRE);
	if (gmem_dirty_collect(dirty, NULL))
		snprintf(racer->failure, sizeof(racer->failure), "%s", gmem_last_error());
	while (gmem_dirty_next(dirty, range.gpa + range.size, &range) == 0)
		for (uint64_t gpa = range.gpa; gpa < range.gpa + range.size; gpa += PAGE)
			if (gpa < (16 + RACE_PAGES) * PAGE)
				copy_page(view, gpa / PAGE - 16, copies[gpa / PAGE - 16]);
	compare(racer, copies, done);
}

/* A tracker of its own each time: views begin to mark, and end. */
static void *track_again_and_again(void *data)
{
	struct racer *racer = data;
	struct scene *s = &racer->race->scene;
	GMEM_OPTS(gmem_dirty_opts, opts, .flags = GMEM_DIRTY_FROM_NOW);
	uint64_t copies[RACE_PAGES][WRITERS];
	struct gmem_dirty *dirty;
	struct gmem_view *view;

	if (gmem_view_new(s->unit.vm, &view))
		return NULL;
	while (!stopped(racer->race) && !racer->failure[0]) {
		if (gmem_dirty_new(s->unit.vm, &opts, &dirty)) {
			snprintf(racer->failure, sizeof(racer->failure), "%s", gmem_last_error());
			break;
		}
		for (uint64_t i = 0; i < RACE_PAGES; i++)
			copy_page(view, i, copies[i]);
		for (int i = 0; i < 3; i++)
			collect_and_compare(racer, view, dirty, copies);
		gmem_dirty_free(dirty);
		__atomic_add_fetch(&racer->count, 1, __ATOMIC_RELAXED);
	}
	gmem_view_free(view);
	return NULL;
}

static void run_race(int trackers, int membarrier_err)
{
	static struct race race;
	struct racer racers[WRITERS + 2] = { 0 };
	const char *seconds = getenv("GMEM_STRESS_SECONDS");
	unsigned count = WRITERS + (unsigned)trackers;

	memset(&race, 0, sizeof(race));
	begin(&race.scene, 0, membarrier_err);
	gmem_dirty_free(race.scene.dirty);
	race.scene.dirty = NULL;
	for (unsigned i = 0; i < count; i++) {
		racers[i] = (struct racer){ .race = &race, .number = i };
		assert_int_equal(pthread_create(&racers[i].thread, NULL,
						i < WRITERS ? write_numbers : track_again_and_again,
						&racers[i]), 0);
	}
	/* All come to their turn, also on a machine that does not run them side by side. */
	for (unsigned i = 0; i < count; i++)
		while (__atomic_load_n(&racers[i].count, __ATOMIC_RELAXED) < 4 && !racers[i].failure[0])
			usleep(1000);
	usleep((useconds_t)((seconds ? strtod(seconds, NULL) : 3) * 1e6 / 4));
	__atomic_store_n(&race.stop, 1, __ATOMIC_RELAXED);
	for (unsigned i = 0; i < count; i++)
		pthread_join(racers[i].thread, NULL);
	for (unsigned i = 0; i < count; i++) {
		if (racers[i].failure[0])
			fail_msg("thread %u: %s", i, racers[i].failure);
	}
	print_message("# %" PRIu64 " writes, %" PRIu64 " trackers\n", racers[0].count, racers[WRITERS].count);
	end(&race.scene);
}

static void no_write_is_missed_while_trackers_come_and_go(void **state)
{
	(void)state;
	for (int recovers = 0; recovers < 2; recovers++) {
		if (recovers)
			assert_ok(gmem_recovery_enable());
		run_race(1, 0);
		run_race(2, -EPERM);
		if (recovers)
			gmem_recovery_disable();
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_views_write_is_told),
		cmocka_unit_test(membarrier_may_be_refused_later),
		cmocka_unit_test(an_exchange_that_fails_writes_nothing),
		cmocka_unit_test(marking_checks_its_arguments),
		cmocka_unit_test(views_mark_only_while_there_is_a_tracker),
		cmocka_unit_test(handlers_mark_what_they_write),
		cmocka_unit_test(imports_mark_for_their_exporter),
		cmocka_unit_test(loads_and_discards_are_told),
		cmocka_unit_test(conversions_are_told),
		cmocka_unit_test(no_write_is_missed_while_trackers_come_and_go),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
