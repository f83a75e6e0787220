/* SPDX-License-Identifier: MIT */
/* listener: who follows the layout hears of all that changes, once and in order */
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/lock.h"
#include "region/vm_core.h"
#include "unit.h"

#define LOG_SIZE 2048

/* Two files of one VM, and memory that can be private */
struct scene {
	struct unit unit;
	struct gmem_plan *plan;
	struct gmem_file *file;		/* 64 pages */
};

static void scene_begin(struct scene *s)
{
	unit_begin_vm(&s->unit, "7.3-swp-t1");
	s->plan = unit_plan(&s->unit, GMEM_BACKING_PRIVATE);
	assert_ok(gmem_file_new(s->unit.vm_fd, PAGES(&s->unit, 64), s->plan, &s->file));
}

static void scene_end(struct scene *s)
{
	gmem_file_free(s->file);
	gmem_plan_free(s->plan);
	unit_end(&s->unit);
}

static struct gmem_region *add(struct scene *s, uint64_t gpa_page, uint64_t pages, uint64_t file_page)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = s->plan, .file = s->file,
		  .file_offset = PAGES(&s->unit, file_page));
	struct gmem_region *region;

	assert_ok(gmem_region_add(s->unit.vm, PAGES(&s->unit, gpa_page), PAGES(&s->unit, pages), &opts,
				  &region));
	return region;
}

static void make_private(struct scene *s, uint64_t gpa_page, uint64_t pages)
{
	assert_ok(gmem_vm_convert(s->unit.vm, PAGES(&s->unit, gpa_page), PAGES(&s->unit, pages),
				  GMEM_STATE_PRIVATE, NULL, NULL));
}

/* ---- an ear notes what it hears: a sign, its name, and page numbers ---- */

struct ear {
	struct scene *s;
	struct gmem_listener *listener;
	char *log;
	int refusal;
	char name;
};

static void note(struct ear *ear, const char *sign, uint64_t gpa, uint64_t size)
{
	uint64_t page = ear->s->unit.page;
	size_t used = strlen(ear->log);

	snprintf(ear->log + used, LOG_SIZE - used, "%s%c%u-%u ", sign, ear->name, (unsigned)(gpa / page),
		 (unsigned)((gpa + size) / page - 1));
}

static void hear_shared(void *data, uint64_t gpa, uint64_t size)
{
	note(data, "=", gpa, size);
}

static void hear_removed(void *data, uint64_t gpa, uint64_t size)
{
	note(data, "-", gpa, size);
}

/* What is said of the region is so: its memory is there, and where it is said to be. */
static void check_region(const struct gmem_region_info *region, uint64_t gpa, uint64_t size)
{
	volatile char *hva = region->hva;

	assert_true(gpa >= region->gpa && size <= region->size);
	assert_true(gpa - region->gpa <= region->size - size);
	hva[0] = hva[0];
	assert_ptr_equal(region->file, gmem_region_file(region->region, NULL));
	assert_int_equal(region->gmemfd, gmem_file_fd(region->file));
}

static void hear_added(void *data, const struct gmem_region_info *region, uint64_t gpa, uint64_t size)
{
	struct gmem_region_info now;
	struct ear *ear = data;

	note(ear, "+", gpa, size);
	check_region(region, gpa, size);
	/* the layout has it already */
	assert_ok(gmem_vm_find_gpa(ear->s->unit.vm, gpa, &now));
	assert_memory_equal(&now, region, sizeof(now));
}

static void hear_moved(void *data, const struct gmem_region_info *region, uint64_t gpa, uint64_t size)
{
	struct ear *ear = data;

	note(ear, "/", gpa, size);
	note(ear, "to", region->gpa, region->size);
	assert_int_equal(region->size, size);
	check_region(region, region->gpa, size);
}

static void hear_region_removed(void *data, const struct gmem_region_info *region, uint64_t gpa,
				uint64_t size)
{
	struct gmem_region_info now;
	struct ear *ear = data;

	note(ear, "~", gpa, size);
	assert_int_equal(region->gpa, gpa);
	assert_int_equal(region->size, size);
	((volatile char *)region->hva)[0] = 1;
	/* the layout has it no more, or something else is there */
	if (!gmem_vm_find_gpa(ear->s->unit.vm, gpa, &now))
		assert_true(now.region != region->region || now.hva != region->hva ||
			    now.gmemfd_offset != region->gmemfd_offset);
}

static int hear_discard(void *data, const struct gmem_region_info *region, uint64_t gpa, uint64_t size)
{
	struct ear *ear = data;

	note(ear, "?", gpa, size);
	check_region(region, gpa, size);
	return ear->refusal;
}

static void hear_undone(void *data, const struct gmem_region_info *region, uint64_t gpa, uint64_t size)
{
	note(data, "!", gpa, size);
	check_region(region, gpa, size);
}

static void hear_populated(void *data, const struct gmem_region_info *region, uint64_t gpa, uint64_t size)
{
	note(data, "*", gpa, size);
	check_region(region, gpa, size);
}

static void listen_with(struct ear *ear, struct scene *s, char name, char *log, bool hears_moves)
{
	char text[] = { name, '\0' };
	GMEM_OPTS(gmem_listener_opts, opts, .name = text, .data = ear, .after_shared = hear_shared,
		  .removed = hear_removed, .region_added = hear_added,
		  .region_moved = hears_moves ? hear_moved : NULL,
		  .region_removed = hear_region_removed, .before_discard = hear_discard,
		  .undo_discard = hear_undone, .populated = hear_populated);

	*ear = (struct ear){ .s = s, .name = name, .log = log };
	assert_ok(gmem_listener_new(s->unit.vm, &opts, &ear->listener));
}

#define assert_heard(log, text)								\
	do {										\
		assert_string_equal((log), (text));					\
		(log)[0] = '\0';							\
	} while (0)

/* ---- coming ---- */

static void listener_is_told_what_is_there_when_it_comes(void **state)
{
	GMEM_OPTS(gmem_region_opts, device, .flags = GMEM_REGION_DEVICE);
	struct gmem_region *region;
	char log[LOG_SIZE] = "";
	struct scene s;
	struct ear x;

	(void)state;
	scene_begin(&s);
	add(&s, 16, 8, 8);
	add(&s, 0, 8, 0);
	assert_ok(gmem_region_add(s.unit.vm, PAGES(&s.unit, 40), s.unit.page, &device, &region));
	add(&s, 48, 4, 16);
	make_private(&s, 2, 2);
	make_private(&s, 6, 2);
	make_private(&s, 48, 4);
	listen_with(&x, &s, 'x', log, true);
	assert_heard(log, "+x0-1 +x4-5 +x16-23 ");
	gmem_listener_free(x.listener);

	/* nobody is told that one ends */
	assert_heard(log, "");
	scene_end(&s);
}

static void listener_without_region_added_is_told_nothing(void **state)
{
	char log[LOG_SIZE] = "";
	struct ear x = { .log = log, .name = 'x' };
	GMEM_OPTS(gmem_listener_opts, opts, .data = &x, .region_removed = hear_region_removed);
	struct gmem_region *region;
	struct scene s;

	(void)state;
	scene_begin(&s);
	region = add(&s, 0, 8, 0);
	x.s = &s;
	assert_ok(gmem_listener_new(s.unit.vm, &opts, &x.listener));
	assert_heard(log, "");
	assert_ok(gmem_region_remove(region));
	assert_heard(log, "~x0-7 ");
	gmem_listener_free(x.listener);
	scene_end(&s);
}

/* ---- changes of the layout ---- */

static void listeners_hear_of_each_change(void **state)
{
	GMEM_OPTS(gmem_region_opts, device, .flags = GMEM_REGION_DEVICE);
	struct gmem_region *region, *upper, *hole;
	char log[LOG_SIZE] = "";
	struct ear x, y;
	struct scene s;

	(void)state;
	scene_begin(&s);
	listen_with(&x, &s, 'x', log, true);
	listen_with(&y, &s, 'y', log, false);
	assert_heard(log, "");
	region = add(&s, 4, 4, 0);
	assert_heard(log, "+x4-7 +y4-7 ");
	assert_ok(gmem_region_move(region, PAGES(&s.unit, 8)));
	assert_heard(log, "-x4-7 -y4-7 ~y4-7 /x4-7 tox8-11 +y8-11 ");
	assert_ok(gmem_region_rebind(region, s.file, PAGES(&s.unit, 32)));
	assert_heard(log, "-x8-11 ~x8-11 -y8-11 ~y8-11 +x8-11 +y8-11 ");
	assert_ok(gmem_region_split(region, PAGES(&s.unit, 1), &upper));
	assert_heard(log, "");
	assert_ok(gmem_region_add(s.unit.vm, 0, s.unit.page, &device, &hole));
	assert_ok(gmem_region_move(hole, PAGES(&s.unit, 20)));
	assert_ok(gmem_region_remove(hole));
	assert_heard(log, "");
	make_private(&s, 9, 2);
	assert_ok(gmem_region_remove(upper));
	assert_heard(log, "-x9-11 ~x9-11 -y9-11 ~y9-11 ");
	assert_ok(gmem_region_remove(region));
	assert_heard(log, "-x8-8 ~x8-8 -y8-8 ~y8-8 ");
	gmem_listener_free(x.listener);
	gmem_listener_free(y.listener);
	scene_end(&s);
}

/* Private parts of a rebound region stay private, and are told when they become shared. */
static void only_what_is_shared_is_added(void **state)
{
	struct gmem_region *region;
	char log[LOG_SIZE] = "";
	struct scene s;
	struct ear x;

	(void)state;
	scene_begin(&s);
	region = add(&s, 0, 4, 0);
	listen_with(&x, &s, 'x', log, true);
	assert_heard(log, "+x0-3 ");
	make_private(&s, 1, 2);
	assert_ok(gmem_region_rebind(region, s.file, PAGES(&s.unit, 8)));
	assert_heard(log, "-x0-3 ~x0-3 +x0-0 +x3-3 ");
	assert_ok(gmem_vm_convert(s.unit.vm, 0, PAGES(&s.unit, 4), GMEM_STATE_SHARED, NULL, NULL));
	assert_heard(log, "=x1-2 ");
	gmem_listener_free(x.listener);
	scene_end(&s);
}

static void change_of_several_steps_is_told_as_removed_moved_added(void **state)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_KEEP_STATE);
	struct gmem_region *a, *b, *c, *added;
	struct gmem_change *change;
	char log[LOG_SIZE] = "";
	struct ear x, y;
	struct scene s;

	(void)state;
	scene_begin(&s);
	a = add(&s, 0, 4, 0);
	b = add(&s, 8, 4, 8);
	c = add(&s, 16, 4, 16);
	make_private(&s, 17, 2);
	listen_with(&x, &s, 'x', log, true);
	listen_with(&y, &s, 'y', log, false);
	log[0] = '\0';

	opts.plan = s.plan;
	opts.file = s.file;
	opts.file_offset = PAGES(&s.unit, 16);
	assert_ok(gmem_change_new(s.unit.vm, &change));
	assert_ok(gmem_change_add(change, PAGES(&s.unit, 16), PAGES(&s.unit, 4), &opts, &added));
	assert_ok(gmem_change_move(change, a, PAGES(&s.unit, 8)));
	assert_ok(gmem_change_move(change, b, 0));
	assert_ok(gmem_change_remove(change, c));
	assert_ok(gmem_change_apply(change));
	assert_heard(log, "-x0-3 -y0-3 ~y0-3 -x8-11 -y8-11 ~y8-11 -x16-19 ~x16-19 -y16-19 ~y16-19 "
		     "/x0-3 tox8-11 /x8-11 tox0-3 "
		     "+x16-16 +x19-19 +y16-16 +y19-19 +y8-11 +y0-3 ");
	gmem_change_free(change);
	gmem_listener_free(x.listener);
	gmem_listener_free(y.listener);
	scene_end(&s);
}

static void change_that_fails_is_told_to_nobody(void **state)
{
	struct gmem_region *region, *untouched = UNTOUCHED(struct gmem_region);
	struct gmem_change *change;
	char log[LOG_SIZE] = "";
	struct scene s;
	struct ear x;

	(void)state;
	scene_begin(&s);
	region = add(&s, 0, 4, 0);
	listen_with(&x, &s, 'x', log, true);
	log[0] = '\0';
	fake_fail_next(FAKE_SET_SLOT2, -ENOMEM);
	assert_int_equal(gmem_region_move(region, PAGES(&s.unit, 8)), -ENOMEM);
	fake_fail_next(FAKE_DELETE_SLOT, -EIO);
	assert_int_equal(gmem_region_remove(region), -EIO);
	assert_int_equal(gmem_region_move(region, 1), -EINVAL);

	/* the second step of a change */
	GMEM_OPTS(gmem_region_opts, opts, .plan = s.plan);
	assert_ok(gmem_change_new(s.unit.vm, &change));
	assert_ok(gmem_change_remove(change, region));
	assert_ok(gmem_change_add(change, PAGES(&s.unit, 8), s.unit.page, &opts, &untouched));
	fake_fail_next(FAKE_SET_SLOT2, -ENOMEM);
	assert_int_equal(gmem_change_apply(change), -ENOMEM);
	gmem_change_free(change);
	assert_heard(log, "");
	gmem_listener_free(x.listener);
	scene_end(&s);
}

/* ---- memory that goes and comes ---- */

static void listeners_let_go_before_memory_is_discarded(void **state)
{
	char log[LOG_SIZE] = "";
	struct ear x, y;
	struct scene s;

	(void)state;
	scene_begin(&s);
	add(&s, 0, 8, 0);
	add(&s, 8, 8, 8);
	make_private(&s, 2, 1);
	listen_with(&x, &s, 'x', log, true);
	listen_with(&y, &s, 'y', log, true);
	log[0] = '\0';
	/* what is private is none of theirs, and each part is in one region */
	assert_ok(gmem_vm_discard(s.unit.vm, PAGES(&s.unit, 1), PAGES(&s.unit, 9), NULL, NULL));
	assert_heard(log, "?x1-1 ?y1-1 ?x3-7 ?y3-7 ?x8-9 ?y8-9 ");
	assert_ok(gmem_vm_populate(s.unit.vm, PAGES(&s.unit, 1), PAGES(&s.unit, 9), NULL, NULL));
	assert_heard(log, "*x1-1 *y1-1 *x3-7 *y3-7 *x8-9 *y8-9 ");

	/* conversions discard the other side, which nobody has mapped */
	make_private(&s, 4, 1);
	assert_ok(gmem_vm_convert(s.unit.vm, PAGES(&s.unit, 4), s.unit.page, GMEM_STATE_SHARED, NULL, NULL));
	assert_heard(log, "=x4-4 =y4-4 ");
	gmem_listener_free(x.listener);
	gmem_listener_free(y.listener);
	scene_end(&s);
}

static void discard_that_is_refused_is_undone(void **state)
{
	char log[LOG_SIZE] = "";
	struct ear x, y, z;
	struct scene s;
	char *hva;

	(void)state;
	scene_begin(&s);
	hva = gmem_region_hva(add(&s, 0, 8, 0));
	hva[0] = 7;
	listen_with(&x, &s, 'x', log, true);
	listen_with(&y, &s, 'y', log, true);
	listen_with(&z, &s, 'z', log, true);
	log[0] = '\0';
	z.refusal = -EPERM;
	assert_int_equal(gmem_vm_discard(s.unit.vm, 0, PAGES(&s.unit, 4), NULL, NULL), -EPERM);
	assert_non_null(strstr(gmem_last_error(), "\"z\" refuses that gpa 0x0, 0x4000 bytes, is discarded"));
	assert_heard(log, "?x0-3 ?y0-3 ?z0-3 !y0-3 !x0-3 ");
	assert_int_equal(hva[0], 7);

	/* the kernel refuses */
	z.refusal = 0;
	fake_fail_kind(FAKE_MADVISE, 0, 9, -EIO);
	assert_int_equal(gmem_vm_discard(s.unit.vm, 0, PAGES(&s.unit, 4), NULL, NULL), -EIO);
	fake_fail_struck();
	assert_heard(log, "?x0-3 ?y0-3 ?z0-3 !z0-3 !y0-3 !x0-3 ");

	/* not asked if it fails before */
	assert_int_equal(gmem_vm_discard(s.unit.vm, 0, PAGES(&s.unit, 9), NULL, NULL), -ENOENT);
	assert_heard(log, "");
	gmem_listener_free(x.listener);
	gmem_listener_free(y.listener);
	gmem_listener_free(z.listener);
	scene_end(&s);
}

/* ---- what callbacks may call ---- */

struct caller {
	struct scene *s;
	unsigned int called;
};

static void call_from_added(void *data, const struct gmem_region_info *region, uint64_t gpa, uint64_t size)
{
	struct gmem_region_info info[4], one;
	struct gmem_region *untouched = UNTOUCHED(struct gmem_region);
	struct gmem_listener *listener = NULL;
	struct gmem_state_range ranges[4];
	struct caller *caller = data;
	struct gmem_vm *vm = caller->s->unit.vm;
	GMEM_OPTS(gmem_region_opts, opts, .plan = caller->s->plan);

	caller->called++;
	assert_int_equal(gmem_region_add(vm, PAGES(&caller->s->unit, 60), size, &opts, &untouched),
			 -EDEADLK);
	assert_int_equal(gmem_region_remove(region->region), -EDEADLK);
	assert_int_equal(gmem_region_move(region->region, 0), -EDEADLK);
	assert_int_equal(gmem_listener_new(vm, NULL, &listener), -EDEADLK);
	assert_int_equal(gmem_vm_discard(vm, gpa, size, NULL, NULL), -EDEADLK);
	assert_int_equal(gmem_vm_convert(vm, gpa, size, GMEM_STATE_PRIVATE, NULL, NULL), -EDEADLK);

	assert_true(gmem_vm_regions(vm, info, 4) > 0);
	assert_ok(gmem_vm_find_gpa(vm, gpa, &one));
	assert_ok(gmem_vm_find_slot(vm, region->slot, &one));
	assert_int_equal(gmem_vm_state(vm, gpa, size, ranges, 4), 1);
	gmem_region_set_data(region->region, caller);
}

static int call_from_discard(void *data, const struct gmem_region_info *region, uint64_t gpa, uint64_t size)
{
	call_from_added(data, region, gpa, size);
	return 0;
}

static void callbacks_get_edeadlk_where_they_would_wait_for_themselves(void **state)
{
	struct caller caller = { .called = 0 };
	GMEM_OPTS(gmem_listener_opts, opts, .data = &caller, .region_added = call_from_added,
		  .before_discard = call_from_discard, .populated = call_from_added);
	struct gmem_listener *listener;
	struct scene s;

	(void)state;
	scene_begin(&s);
	caller.s = &s;
	add(&s, 0, 2, 0);
	assert_ok(gmem_listener_new(s.unit.vm, &opts, &listener));
	assert_int_equal(caller.called, 1);
	add(&s, 4, 2, 4);
	assert_int_equal(caller.called, 2);
	assert_ok(gmem_vm_discard(s.unit.vm, 0, s.unit.page, NULL, NULL));
	assert_ok(gmem_vm_populate(s.unit.vm, 0, s.unit.page, NULL, NULL));
	assert_int_equal(caller.called, 4);
	gmem_listener_free(listener);
	scene_end(&s);
}

struct leaver {
	struct gmem_listener *listener;
	unsigned int called;
};

static void leave(void *data, const struct gmem_region_info *region, uint64_t gpa, uint64_t size)
{
	struct leaver *leaver = data;

	(void)region;
	(void)gpa;
	(void)size;
	leaver->called++;
	gmem_listener_free(leaver->listener);
}

static void listener_may_leave_while_it_is_told_the_layout(void **state)
{
	struct leaver leaver = { .listener = NULL };
	GMEM_OPTS(gmem_listener_opts, opts, .data = &leaver, .region_added = leave);
	struct scene s;

	(void)state;
	scene_begin(&s);
	add(&s, 0, 2, 0);
	add(&s, 4, 2, 4);
	assert_ok(gmem_listener_new(s.unit.vm, &opts, &leaver.listener));
	assert_int_equal(leaver.called, 1);
	add(&s, 8, 2, 8);
	assert_int_equal(leaver.called, 1);
	scene_end(&s);
}

/* ---- coming while others work ---- */

/* A conversion that is under way, in a callback, until it is let go */
struct holdup {
	struct scene *s;
	sem_t is_in, may_go;
	struct ear ear;
};

static int hold_up(void *data, uint64_t gpa, uint64_t size)
{
	struct holdup *h = data;

	(void)gpa;
	(void)size;
	sem_post(&h->is_in);
	sem_wait(&h->may_go);
	return 0;
}

static void *convert_first_page(void *data)
{
	struct holdup *h = data;

	return gmem_vm_convert(h->s->unit.vm, 0, h->s->unit.page, GMEM_STATE_PRIVATE, NULL, NULL) ? h : NULL;
}

static void *convert_all_back(void *data)
{
	struct holdup *h = data;

	return gmem_vm_convert(h->s->unit.vm, 0, PAGES(&h->s->unit, 8), GMEM_STATE_SHARED, NULL, NULL)
		       ? h : NULL;
}

static void *come(void *data)
{
	struct holdup *h = data;

	listen_with(&h->ear, h->s, 'y', h->ear.log, true);
	return NULL;
}

/* Returns when so many claims came in all, or never will: a wrong answer shows that then. */
static void wait_for_claims(struct gmem_vm *vm, uint64_t order)
{
	uint64_t now;

	for (int i = 0; i < 5000; i++) {
		gmem_lock_take(&vm->lock);
		now = vm->claim_order;
		gmem_lock_drop(&vm->lock);
		if (now >= order)
			return;
		usleep(1000);
	}
}

static void listener_is_told_one_moment_after_the_work_before_it(void **state)
{
	struct holdup h = { .s = NULL };
	GMEM_OPTS(gmem_listener_opts, opts, .data = &h, .before_private = hold_up);
	struct gmem_listener *listener;
	char log[LOG_SIZE] = "";
	pthread_t threads[3];
	struct scene s;
	uint64_t order;
	void *failed;

	(void)state;
	scene_begin(&s);
	add(&s, 0, 8, 0);
	make_private(&s, 2, 1);
	h.s = &s;
	h.ear.log = log;
	sem_init(&h.is_in, 0, 0);
	sem_init(&h.may_go, 0, 0);
	assert_ok(gmem_listener_new(s.unit.vm, &opts, &listener));
	order = s.unit.vm->claim_order;

	/* each waits for the one before */
	assert_int_equal(pthread_create(&threads[0], NULL, convert_first_page, &h), 0);
	sem_wait(&h.is_in);
	assert_int_equal(pthread_create(&threads[1], NULL, convert_all_back, &h), 0);
	wait_for_claims(s.unit.vm, order + 2);
	assert_int_equal(pthread_create(&threads[2], NULL, come, &h), 0);
	wait_for_claims(s.unit.vm, order + 3);
	sem_post(&h.may_go);
	for (int i = 0; i < 3; i++) {
		pthread_join(threads[i], &failed);
		assert_null(failed);
	}

	assert_heard(log, "+y0-7 ");
	gmem_listener_free(listener);
	gmem_listener_free(h.ear.listener);
	sem_destroy(&h.is_in);
	sem_destroy(&h.may_go);
	scene_end(&s);
}

static void listener_waits_only_as_long_as_the_vm_says(void **state)
{
	struct holdup h = { .s = NULL };
	GMEM_OPTS(gmem_listener_opts, opts, .data = &h, .before_private = hold_up);
	GMEM_OPTS(gmem_listener_opts, late, .region_added = hear_added);
	struct gmem_listener *listener, *untouched = UNTOUCHED(struct gmem_listener);
	pthread_t thread;
	struct scene s;
	void *failed;

	(void)state;
	scene_begin(&s);
	add(&s, 0, 8, 0);
	h.s = &s;
	sem_init(&h.is_in, 0, 0);
	sem_init(&h.may_go, 0, 0);
	s.unit.vm->wait_ms = 5;
	assert_ok(gmem_listener_new(s.unit.vm, &opts, &listener));
	assert_int_equal(pthread_create(&thread, NULL, convert_first_page, &h), 0);
	sem_wait(&h.is_in);
	assert_int_equal(gmem_listener_new(s.unit.vm, &late, &untouched), -EBUSY);
	assert_ptr_equal(untouched, UNTOUCHED(struct gmem_listener));
	sem_post(&h.may_go);
	pthread_join(thread, &failed);
	assert_null(failed);
	gmem_listener_free(listener);
	sem_destroy(&h.is_in);
	sem_destroy(&h.may_go);
	scene_end(&s);
}

/* ---- mirrors, while threads change everything ---- */

#define PLACES		8	/* of regions; each has room for PLACE pages */
#define PLACE		8
#define ROUNDS		150

/* What a follower has mapped: a byte of each page, by guest address */
struct mirror {
	struct scene *s;
	struct gmem_listener *listener;
	pthread_mutex_t lock;
	char *hva[PLACES * PLACE];	/* NULL: not mapped */
	bool is_discarded[PLACES * PLACE];
	unsigned int doubles;
};

static void map_at(struct mirror *m, uint64_t gpa, uint64_t size, char *hva, bool may_be_there)
{
	uint64_t page = m->s->unit.page;

	pthread_mutex_lock(&m->lock);
	for (uint64_t done = 0; done < size; done += page) {
		uint64_t i = (gpa + done) / page;

		m->doubles += !may_be_there && m->hva[i];
		m->hva[i] = hva + done;
		m->is_discarded[i] = false;
	}
	pthread_mutex_unlock(&m->lock);
}

static void unmap_at(struct mirror *m, uint64_t gpa, uint64_t size, bool is_discarded)
{
	uint64_t page = m->s->unit.page;

	pthread_mutex_lock(&m->lock);
	for (uint64_t done = 0; done < size; done += page) {
		m->hva[(gpa + done) / page] = NULL;
		m->is_discarded[(gpa + done) / page] = is_discarded;
	}
	pthread_mutex_unlock(&m->lock);
}

static void mirror_added(void *data, const struct gmem_region_info *region, uint64_t gpa, uint64_t size)
{
	map_at(data, gpa, size, (char *)region->hva + (gpa - region->gpa), false);
}

static void mirror_mapped_again(void *data, const struct gmem_region_info *region, uint64_t gpa,
				uint64_t size)
{
	map_at(data, gpa, size, (char *)region->hva + (gpa - region->gpa), true);
}

static void mirror_removed(void *data, const struct gmem_region_info *region, uint64_t gpa, uint64_t size)
{
	(void)region;
	unmap_at(data, gpa, size, false);
}

static int mirror_discard(void *data, const struct gmem_region_info *region, uint64_t gpa, uint64_t size)
{
	(void)region;
	unmap_at(data, gpa, size, true);
	return 0;
}

static int mirror_private(void *data, uint64_t gpa, uint64_t size)
{
	unmap_at(data, gpa, size, false);
	return 0;
}

static void mirror_shared(void *data, uint64_t gpa, uint64_t size)
{
	struct gmem_region_info region;
	struct mirror *m = data;
	uint64_t now;

	for (; size; gpa += now, size -= now) {
		if (gmem_vm_find_gpa(m->s->unit.vm, gpa, &region))
			abort();
		now = region.gpa + region.size - gpa;
		now = now < size ? now : size;
		map_at(m, gpa, now, (char *)region.hva + (gpa - region.gpa), false);
	}
}

static void mirror_new(struct mirror *m, struct scene *s)
{
	GMEM_OPTS(gmem_listener_opts, opts, .data = m, .before_private = mirror_private,
		  .undo_private = mirror_shared, .after_shared = mirror_shared,
		  .region_added = mirror_added, .region_removed = mirror_removed,
		  .before_discard = mirror_discard, .undo_discard = mirror_mapped_again,
		  .populated = mirror_mapped_again);

	*m = (struct mirror){ .s = s };
	pthread_mutex_init(&m->lock, NULL);
	if (gmem_listener_new(s->unit.vm, &opts, &m->listener))
		abort();
}

/* Returns the number of pages that it has wrong; nothing changes meanwhile. */
static unsigned int mirror_faults(struct mirror *m)
{
	uint64_t page = m->s->unit.page;
	struct gmem_state_range range;
	struct gmem_region_info region;
	unsigned int faults;
	char *right;

	pthread_mutex_lock(&m->lock);
	faults = m->doubles;
	for (uint64_t i = 0; i < PLACES * PLACE; i++) {
		right = NULL;
		if (gmem_vm_state(m->s->unit.vm, i * page, page, &range, 1) != 1)
			abort();
		if (range.state == GMEM_STATE_SHARED && !m->is_discarded[i]) {
			if (gmem_vm_find_gpa(m->s->unit.vm, i * page, &region))
				abort();
			right = (char *)region.hva + (i * page - region.gpa);
		}
		faults += m->hva[i] != right;
	}
	pthread_mutex_unlock(&m->lock);
	return faults;
}

static void mirror_free(struct mirror *m)
{
	gmem_listener_free(m->listener);
	pthread_mutex_destroy(&m->lock);
}

struct worker {
	struct scene *s;
	pthread_t thread;
	unsigned int seed;
	unsigned int number;
	struct mirror *mirror;
	unsigned int looks;
	unsigned int faults;
};

/* Each of these has two places and one part of the file: it adds, moves, rebinds, splits, removes. */
static void *change_layout(void *data)
{
	struct worker *w = data;
	uint64_t page = w->s->unit.page, place = 2 * w->number * PLACE * page;
	GMEM_OPTS(gmem_region_opts, opts, .plan = w->s->plan, .file = w->s->file);
	struct gmem_region *region, *upper;

	for (int i = 0; i < ROUNDS; i++) {
		opts.file_offset = 2 * w->number * PLACE * page;
		if (gmem_region_add(w->s->unit.vm, place, PLACE * page, &opts, &region))
			abort();
		/* these fail where part of it is private */
		if (rand_r(&w->seed) % 2)
			gmem_region_move(region, place + PLACE * page);
		if (rand_r(&w->seed) % 2)
			gmem_region_rebind(region, w->s->file, opts.file_offset + PLACE * page);
		if (rand_r(&w->seed) % 2 && !gmem_region_split(region, 3 * page, &upper))
			gmem_region_remove(upper);
		gmem_region_remove(region);
	}
	return NULL;
}

/* What is there at the moment is converted, discarded or populated; or it is not there. */
static void *change_memory(void *data)
{
	struct worker *w = data;
	struct gmem_vm *vm = w->s->unit.vm;
	uint64_t page = w->s->unit.page;

	for (int i = 0; i < 4 * ROUNDS; i++) {
		uint64_t gpa = (unsigned int)rand_r(&w->seed) % (PLACES * PLACE) * page;
		uint64_t size = (1 + (unsigned int)rand_r(&w->seed) % 3) * page;

		switch (rand_r(&w->seed) % 4) {
		case 0:
			gmem_vm_convert(vm, gpa, size, GMEM_STATE_PRIVATE, NULL, NULL);
			break;
		case 1:
			gmem_vm_convert(vm, gpa, size, GMEM_STATE_SHARED, NULL, NULL);
			break;
		case 2:
			gmem_vm_discard(vm, gpa, size, NULL, NULL);
			break;
		default:
			gmem_vm_populate(vm, gpa, size, NULL, NULL);
		}
	}
	return NULL;
}

/* While one comes, nothing else is under way: all others must be right. */
static __thread bool is_coming;

static void look_at_mirror(void *data, const struct gmem_region_info *region, uint64_t gpa, uint64_t size)
{
	struct worker *w = data;

	(void)region;
	(void)gpa;
	(void)size;
	if (!is_coming)
		return;	/* the thread of a change that came since */
	w->looks++;
	w->faults += mirror_faults(w->mirror);
}

static void *come_and_go(void *data)
{
	struct worker *w = data;
	GMEM_OPTS(gmem_listener_opts, opts, .data = w, .region_added = look_at_mirror);
	struct mirror *m = malloc(sizeof(*m));
	struct gmem_listener *listener;

	for (int i = 0; i < ROUNDS; i++) {
		mirror_new(m, w->s);
		is_coming = true;
		if (gmem_listener_new(w->s->unit.vm, &opts, &listener))
			abort();
		is_coming = false;
		gmem_listener_free(listener);
		mirror_free(m);
		w->faults += m->doubles;
	}
	free(m);
	return NULL;
}

static void mirrors_are_right_whatever_threads_do(void **state)
{
	static void *(*const jobs[])(void *) = {
		change_layout, change_layout, change_layout, change_memory, change_memory, come_and_go,
	};
	struct worker workers[ARRAY_SIZE(jobs)];
	struct mirror *first = malloc(sizeof(*first)), *late = malloc(sizeof(*late));
	struct scene s;

	(void)state;
	scene_begin(&s);
	/* one region stays */
	add(&s, 6 * PLACE, PLACE, 6 * PLACE);
	mirror_new(first, &s);
	for (unsigned int i = 0; i < ARRAY_SIZE(jobs); i++) {
		workers[i] = (struct worker){ .s = &s, .seed = i, .number = i, .mirror = first };
		assert_int_equal(pthread_create(&workers[i].thread, NULL, jobs[i], &workers[i]), 0);
	}
	mirror_new(late, &s);
	for (unsigned int i = 0; i < ARRAY_SIZE(jobs); i++)
		pthread_join(workers[i].thread, NULL);

	assert_true(workers[ARRAY_SIZE(jobs) - 1].looks > 0);
	assert_int_equal(workers[ARRAY_SIZE(jobs) - 1].faults, 0);
	assert_int_equal(mirror_faults(first), 0);
	assert_int_equal(mirror_faults(late), 0);
	mirror_free(first);
	mirror_free(late);
	free(first);
	free(late);
	scene_end(&s);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(listener_is_told_what_is_there_when_it_comes),
	cmocka_unit_test(listener_without_region_added_is_told_nothing),
	cmocka_unit_test(listeners_hear_of_each_change),
	cmocka_unit_test(only_what_is_shared_is_added),
	cmocka_unit_test(change_of_several_steps_is_told_as_removed_moved_added),
	cmocka_unit_test(change_that_fails_is_told_to_nobody),
	cmocka_unit_test(listeners_let_go_before_memory_is_discarded),
	cmocka_unit_test(discard_that_is_refused_is_undone),
	cmocka_unit_test(callbacks_get_edeadlk_where_they_would_wait_for_themselves),
	cmocka_unit_test(listener_may_leave_while_it_is_told_the_layout),
	cmocka_unit_test(listener_is_told_one_moment_after_the_work_before_it),
	cmocka_unit_test(listener_waits_only_as_long_as_the_vm_says),
	cmocka_unit_test(mirrors_are_right_whatever_threads_do),
};

UNIT_MAIN(tests)
