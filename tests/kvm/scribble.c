/* SPDX-License-Identifier: MIT */
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "scribble.h"

#define MAX_PAGE	(64 * KIB)
#define WORDS_SIZE	(4 * MIB)
#define DIRTY_RING_FULL	31	/* KVM_EXIT_DIRTY_RING_FULL, Linux 5.11 */

_Thread_local enum scribble_kind scribble_now;
_Thread_local bool scribble_is_own_thread;

static const char *const names[SCRIBBLE_KINDS] = {
	"nothing", "guest", "view write", "view store", "view fill", "view copy",
	"compare-exchange", "raw write", "write of the kernel", "load", "discard", "conversion",
	"added region", "moved region", "split region", "rebound region", "restore",
	"peer's write", "peer's store", "peer's raw write",
};

const char *scribble_name(enum scribble_kind kind)
{
	return kind < SCRIBBLE_KINDS ? names[kind] : "?";
}

uint64_t scribble_random(uint64_t *state, uint64_t limit)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return (*state >> 11) % limit;
}

/* ---- the table ---- */

static struct scribble_last *last_of(struct scribble_shared *shared, uint64_t gpa)
{
	return gpa - WINDOW_GPA < WINDOW_SIZE ? &shared->last[(gpa - WINDOW_GPA) / 4096] : NULL;
}

uint32_t scribble_begin(struct scribble_shared *shared, enum scribble_kind kind, uint64_t gpa,
			uint64_t size)
{
	static _Thread_local uint32_t number;

	number++;
	scribble_now = kind;
	for (uint64_t at = gpa & ~UINT64_C(4095); at < gpa + size; at += 4096)
		if (last_of(shared, at))
			__atomic_store_n(&last_of(shared, at)->begun, (uint64_t)kind << 32 | number,
					 __ATOMIC_RELAXED);
	return number;
}

void scribble_done(struct scribble_shared *shared, enum scribble_kind kind, uint32_t number,
		   uint64_t gpa, uint64_t size)
{
	for (uint64_t at = gpa & ~UINT64_C(4095); at < gpa + size; at += 4096)
		if (last_of(shared, at))
			__atomic_store_n(&last_of(shared, at)->done, (uint64_t)kind << 32 | number,
					 __ATOMIC_RELAXED);
	scribble_now = SCRIBBLE_NOTHING;
}

const char *scribble_describe(const struct scribble *s, uint64_t gpa)
{
	static char text[200];
	const struct scribble_last *last = last_of(s->shared, gpa);

	if (!last)
		return "outside of the window";
	snprintf(text, sizeof(text), "last begun: %s %u; last done: %s %u",
		 scribble_name((enum scribble_kind)(last->begun >> 32)), (unsigned int)last->begun,
		 scribble_name((enum scribble_kind)(last->done >> 32)), (unsigned int)last->done);
	return text;
}

static uint32_t word_of(enum scribble_kind kind, uint32_t number)
{
	return (uint32_t)kind << 24 | (number & 0xffffff);
}

static void make_words(uint32_t *words, uint64_t size, enum scribble_kind kind, uint32_t number)
{
	for (uint64_t i = 0; i < (size + 3) / 4; i++)
		words[i] = word_of(kind, number);
}

/* ---- waiting ---- */

static void futex_wait(uint32_t *word, uint32_t value)
{
	const struct timespec while_ = { .tv_nsec = 200 * 1000 * 1000 };

	syscall(SYS_futex, word, FUTEX_WAIT, value, &while_, NULL, 0);
}

static void futex_wake(uint32_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

static _Noreturn void fail_device(struct scribble_shared *shared, uint32_t step)
{
	fprintf(stderr, "# device: step %u: %s\n", (unsigned int)step, gmem_last_error());
	__atomic_store_n(&shared->device_failed, step, __ATOMIC_SEQ_CST);
	futex_wake(&shared->waiting);
	_exit(1);
}

/* A change of the layout may wait for it. */
static void serve(struct scribble_shared *shared, struct gmem_import *import)
{
	if (gmem_import_dispatch(import) < 0)
		fail_device(shared, 4);
	usleep(100);
}

/* Waits as long as all are to wait, and serves @import meanwhile, if there is one. False: it is over. */
static bool may_go_on(struct scribble_shared *shared, struct gmem_import *import)
{
	uint32_t now = __atomic_load_n(&shared->generation, __ATOMIC_SEQ_CST);

	while (now & 1) {
		__atomic_fetch_add(&shared->waiting, 1, __ATOMIC_SEQ_CST);
		futex_wake(&shared->waiting);
		while (__atomic_load_n(&shared->generation, __ATOMIC_SEQ_CST) == now)
			if (!import)
				futex_wait(&shared->generation, now);
			else
				serve(shared, import);
		now = __atomic_load_n(&shared->generation, __ATOMIC_SEQ_CST);
	}
	return !__atomic_load_n(&shared->is_over, __ATOMIC_SEQ_CST);
}

/* It has said why. */
static void check_device(struct scribble *s)
{
	pid_t pid = s->exporter ? s->devices[s->shared->device] : 0;
	int status;

	if (pid && waitpid(pid, &status, WNOHANG) == pid)
		FAIL("the device process has ended with 0x%x, step %u", (unsigned int)status,
		     (unsigned int)s->shared->device_failed);
}

static void wait_for_all(struct scribble *s)
{
	uint32_t waiting;

	while ((waiting = __atomic_load_n(&s->shared->waiting, __ATOMIC_SEQ_CST)) < s->scribblers) {
		check_device(s);
		futex_wait(&s->shared->waiting, waiting);
	}
}

void scribble_go(struct scribble *s)
{
	__atomic_store_n(&s->shared->waiting, 0, __ATOMIC_SEQ_CST);
	__atomic_fetch_add(&s->shared->generation, 1, __ATOMIC_SEQ_CST);
	futex_wake(&s->shared->generation);
}

void scribble_stop(struct scribble *s)
{
	__atomic_fetch_add(&s->shared->generation, 1, __ATOMIC_SEQ_CST);
	wait_for_all(s);
}

/* ---- where ---- */

struct scribbler {
	struct scribble *s;
	struct scribble_shared *shared;
	uint64_t random;
	uint64_t page, half;
	struct gmem_view *view;
	uint32_t *words;		/* of 2 MiB */
	bool is_peer;
};

static uint64_t pick(struct scribbler *by, uint64_t limit)
{
	return scribble_random(&by->random, limit);
}

struct place {
	uint64_t gpa, size;
};

static struct place middle(const struct scribbler *by)
{
	return (struct place){ GIB - by->half, 2 * by->half };
}

static struct place big(const struct scribbler *by)
{
	return (struct place){ BIG_GPA - by->page, 2 * MIB + 2 * by->page };
}

static struct place hot(struct scribbler *by)
{
	return (struct place){ HOT_GPA + pick(by, HOT_PLACES) * 2 * HOT_PAGES * by->page,
			       HOT_PAGES * by->page };
}

static struct place exported(const struct scribbler *by)
{
	return (struct place){ PEER_GPA, by->half };
}

static struct place pick_area(struct scribbler *by)
{
	uint64_t dice = by->is_peer && pick(by, 2) ? 9 : pick(by, 10);

	return dice < 5 ? middle(by) : dice < 7 ? big(by) : dice < 9 ? hot(by) : exported(by);
}

/* Somewhere in an area, at most @most bytes at a multiple of @align */
static struct place pick_place(struct scribbler *by, struct place area, uint64_t most, uint64_t align)
{
	struct place place;

	place.gpa = area.gpa + pick(by, area.size / align) * align;
	place.size = align * (1 + pick(by, most / align));
	if (place.size > area.gpa + area.size - place.gpa)
		place.size = area.gpa + area.size - place.gpa;
	return place;
}

/* Memory may be private, or gone for now. */
static void check_done(int ret)
{
	if (ret < 0 && ret != -ENOENT && ret != -ESTALE && ret != -EACCES && ret != -EBUSY)
		FAIL("a %s: %d (%s): %s", scribble_name(scribble_now), ret, result_text(ret),
		     gmem_last_error());
}

/* ---- views, here and in the other process ---- */

static enum scribble_kind as_peer(const struct scribbler *by, enum scribble_kind kind)
{
	if (!by->is_peer)
		return kind;
	return kind == SCRIBBLE_STORE || kind == SCRIBBLE_EXCHANGE ? SCRIBBLE_PEER_STORE :
	       kind == SCRIBBLE_RAW || kind == SCRIBBLE_KERNEL ? SCRIBBLE_PEER_RAW : SCRIBBLE_PEER_WRITE;
}

static int do_write(struct scribbler *by, struct place to, uint32_t word)
{
	(void)word;
	return gmem_view_write(by->view, to.gpa, by->words, to.size, NULL);
}

static int do_fill(struct scribbler *by, struct place to, uint32_t word)
{
	return gmem_view_fill(by->view, to.gpa, (uint8_t)(word | 0x80), to.size, NULL);
}

/* From behind or before it: the ranges must not overlap. */
static int do_copy(struct scribbler *by, struct place to, uint32_t word)
{
	struct place area = by->is_peer ? exported(by) : middle(by), from = pick_place(by, area, to.size, 1);

	(void)word;
	if (from.size > to.size)
		from.size = to.size;
	if (from.gpa < to.gpa + to.size && to.gpa < from.gpa + from.size)
		return 0;
	return gmem_view_copy(by->view, to.gpa, from.gpa, from.size, NULL);
}

static int do_store(struct scribbler *by, struct place to, uint32_t word)
{
	uint32_t width = 1u << pick(by, 4);

	return gmem_view_store(by->view, to.gpa & ~UINT64_C(7), width, GMEM_RELEASE,
			       width < 4 ? word & ((1u << 8 * width) - 1) : word);
}

static int do_exchange(struct scribbler *by, struct place to, uint32_t word)
{
	uint64_t expected;
	int err = gmem_view_load(by->view, to.gpa & ~UINT64_C(7), 4, GMEM_ACQUIRE, &expected);

	return err ? err : gmem_view_compare_exchange(by->view, to.gpa & ~UINT64_C(7), 4, GMEM_SEQ_CST,
						      &expected, word);
}

/* Private memory may be so from now on, but not before gmem_view_end(). */
static int do_raw(struct scribbler *by, struct place to, uint32_t word)
{
	void *hva;
	int err;

	(void)word;
	gmem_view_begin(by->view);
	err = gmem_view_hva(by->view, to.gpa, to.size, &hva);
	if (!err) {
		memcpy(hva, by->words, to.size);
		err = gmem_view_mark_dirty(by->view, to.gpa, to.size);
	}
	gmem_view_end(by->view);
	return err == -ERANGE ? 0 : err;
}

static int do_kernel(struct scribbler *by, struct place to, uint32_t word)
{
	struct iovec iov[4];
	int count, err;

	(void)word;
	gmem_view_begin(by->view);
	count = gmem_view_iovec(by->view, to.gpa, to.size, iov, ARRAY_SIZE(iov));
	err = count;
	if (count > 0) {
		preadv(by->s->words_fd, iov, count, (off_t)pick(by, MIB));
		err = gmem_view_mark_dirty(by->view, to.gpa, to.size);
	}
	gmem_view_end(by->view);
	return err == -ENOSPC ? 0 : err;
}

static const struct view_act {
	enum scribble_kind kind;
	int (*act)(struct scribbler *by, struct place to, uint32_t word);
} view_acts[] = {
	{ SCRIBBLE_WRITE, do_write },
	{ SCRIBBLE_WRITE, do_write },
	{ SCRIBBLE_STORE, do_store },
	{ SCRIBBLE_FILL, do_fill },
	{ SCRIBBLE_COPY, do_copy },
	{ SCRIBBLE_EXCHANGE, do_exchange },
	{ SCRIBBLE_RAW, do_raw },
	{ SCRIBBLE_KERNEL, do_kernel },
};

static struct place pick_size(struct scribbler *by, const struct view_act *act)
{
	/* Few are large, and seldom is one a whole chunk. */
	uint64_t most = pick(by, 4) ? 64 : pick(by, 8) ? by->page : 3 * by->page;

	if (!by->is_peer && act->kind <= SCRIBBLE_FILL && pick(by, 8000) == 0)
		return (struct place){ BIG_GPA, 2 * MIB };
	return pick_place(by, pick_area(by), most, act->kind == SCRIBBLE_STORE ||
						     act->kind == SCRIBBLE_EXCHANGE ? 8 : 1);
}

static void scribble_in_view(struct scribbler *by)
{
	const struct view_act *act = &view_acts[pick(by, ARRAY_SIZE(view_acts))];
	enum scribble_kind kind = as_peer(by, act->kind);
	struct place to = pick_size(by, act);
	uint32_t number;

	if (!(by->s->kinds >> kind & 1))
		return;
	if (!to.size)
		return;
	number = scribble_begin(by->shared, kind, to.gpa, to.size);
	if (act->kind == SCRIBBLE_WRITE || act->kind == SCRIBBLE_RAW)
		make_words(by->words, to.size, kind, number);
	check_done(act->act(by, to, word_of(kind, number)));
	scribble_done(by->shared, kind, number, to.gpa, to.size);
}

static void begin_scribbler(struct scribbler *by, struct scribble *s, uint64_t salt)
{
	*by = (struct scribbler){ .s = s, .shared = s->shared, .page = s->page, .half = s->half };
	by->random = (s->seed + 1) * 0x9e3779b97f4a7c15 + salt * 0xd1342543de82ef95 + 1;
	by->words = aligned_alloc(4096, 2 * MIB + MAX_PAGE);
	CHECK(by->words);
	scribble_is_own_thread = true;
}

static void end_scribbler(struct scribbler *by)
{
	gmem_view_free(by->view);
	free(by->words);
}

static void *run_views(void *data)
{
	struct scribble *s = data;
	static uint32_t count;
	struct scribbler by;

	begin_scribbler(&by, s, 100 + __atomic_fetch_add(&count, 1, __ATOMIC_RELAXED));
	OK(gmem_view_new(s->vm, &by.view));
	while (may_go_on(s->shared, NULL))
		scribble_in_view(&by);
	end_scribbler(&by);
	return NULL;
}

/* ---- the guest ---- */

/* Memory of the hot regions may be gone, and others' private. */
static void check_guest(struct scribble *s, const struct guest_access *access)
{
	bool is_usual = access->outcome == GUEST_DONE || access->outcome == GUEST_MMIO ||
			access->outcome == GUEST_FAULT || access->exit_reason == KVM_EXIT_MMIO ||
			access->exit_reason == DIRTY_RING_FULL;

	/* See tests/kernels/README.md: the emulator remembers an exception too long. */
	if (!is_usual && (s->is_native || access->exit_reason != KVM_EXIT_INTERNAL_ERROR))
		FAIL("the guest's stores: %s", guest_describe(access));
}

static void scribble_as_guest(struct scribbler *by)
{
	uint32_t count = 1 + (uint32_t)pick(by, 24), number, stride;
	struct place at = pick_place(by, pick_area(by), 4, 4);
	struct scribble *s = by->s;
	struct guest_access access;
	struct gmem_exit exit_;

	stride = pick(by, 3) ? (uint32_t)s->page : 4 * (1 + (uint32_t)pick(by, 16));
	number = scribble_begin(s->shared, SCRIBBLE_GUEST, at.gpa, 4);
	for (uint32_t i = 1; i < count; i++)
		if (at.gpa + i * stride < WINDOW_GPA + WINDOW_SIZE)
			scribble_begin(s->shared, SCRIBBLE_GUEST, at.gpa + i * stride, 4);
	access = guest_burst(&s->guest, at.gpa, word_of(SCRIBBLE_GUEST, number), count, stride);
	while (access.exit_reason == DIRTY_RING_FULL) {
		OK(gmem_vcpu_handle_exit(s->vcpu, s->guest.run, access.error ? -1 : 0, -access.error, &exit_) < 0);
		access = guest_run_on(&s->guest);
	}
	check_guest(s, &access);
	for (uint32_t i = 0; i < count; i++)
		scribble_done(s->shared, SCRIBBLE_GUEST, number + i, at.gpa + i * stride, 4);
}

static void *run_guest_thread(void *data)
{
	struct scribble *s = data;
	struct scribbler by;

	begin_scribbler(&by, s, 1);
	while (may_go_on(s->shared, NULL))
		scribble_as_guest(&by);
	end_scribbler(&by);
	return NULL;
}

/* ---- loads, discards, populates, conversions ---- */

static int do_load(struct scribbler *by, struct place at)
{
	uint64_t offset = pick(by, WORDS_SIZE - 2 * MIB);

	return gmem_vm_load(by->s->vm, at.gpa, by->s->words_fd, offset, at.size, NULL, NULL);
}

static int do_discard(struct scribbler *by, struct place at)
{
	GMEM_OPTS(gmem_discard_opts, opts, .flags = GMEM_DISCARD_NOT_ZERO);
	int err = gmem_vm_discard(by->s->vm, at.gpa, at.size, &opts, NULL);

	return err == -EOPNOTSUPP ? 0 : err;
}

static int do_populate(struct scribbler *by, struct place at)
{
	return gmem_vm_populate(by->s->vm, at.gpa, at.size, NULL, NULL);
}

static int do_convert(struct scribbler *by, struct place at)
{
	return gmem_vm_convert(by->s->vm, at.gpa, at.size,
			       pick(by, 2) ? GMEM_STATE_PRIVATE : GMEM_STATE_SHARED, NULL, NULL);
}

static const struct memory_act {
	enum scribble_kind kind;
	int (*act)(struct scribbler *by, struct place at);
} memory_acts[] = {
	{ SCRIBBLE_LOAD, do_load },
	{ SCRIBBLE_DISCARD, do_discard },
	{ SCRIBBLE_NOTHING, do_populate },
	{ SCRIBBLE_CONVERT, do_convert },
};

static void scribble_in_memory(struct scribbler *by)
{
	const struct memory_act *act = &memory_acts[pick(by, ARRAY_SIZE(memory_acts))];
	struct place at = pick(by, 4) ? middle(by) : pick(by, 2) ? big(by) : exported(by);
	uint32_t number;

	if (act->kind == SCRIBBLE_CONVERT && !by->s->can_convert)
		return;
	if (act->kind && !(by->s->kinds >> act->kind & 1))
		return;
	if (act->kind == SCRIBBLE_CONVERT)
		at = middle(by);
	at = pick_place(by, at, 3 * by->page, act->kind == SCRIBBLE_LOAD ? 1 : by->page);
	if (act->kind != SCRIBBLE_CONVERT && pick(by, 400) == 0)
		at = (struct place){ BIG_GPA, 2 * MIB };
	if (!act->kind) {
		check_done(act->act(by, at));	/* it changes nothing */
		return;
	}
	number = scribble_begin(by->shared, act->kind, at.gpa, at.size);
	check_done(act->act(by, at));
	scribble_done(by->shared, act->kind, number, at.gpa, at.size);
}

static void *run_memory(void *data)
{
	struct scribble *s = data;
	struct scribbler by;

	begin_scribbler(&by, s, 2);
	while (may_go_on(s->shared, NULL))
		scribble_in_memory(&by);
	end_scribbler(&by);
	return NULL;
}

/* ---- changes of the layout ---- */

/* A save that is made meanwhile may be in the way: then nothing has changed. */
static bool is_changed(int err)
{
	if (err == -EBUSY)
		return false;
	OK(err);
	return true;
}

/* A place for hot memory in which there is none */
static uint64_t free_place(struct scribbler *by)
{
	uint64_t gpa, first = pick(by, HOT_PLACES);
	struct gmem_region_info info;

	for (uint64_t i = 0; i < HOT_PLACES; i++) {
		gpa = HOT_GPA + (first + i) % HOT_PLACES * 2 * HOT_PAGES * by->page;
		if (gmem_vm_find_gpa(by->s->vm, gpa, &info) == -ENOENT)
			return gpa;
	}
	FAIL("no place is free");
}

static bool is_done(struct scribbler *by, enum scribble_kind kind)
{
	return by->s->kinds >> kind & 1;
}

/* hot[0] is the test's own memory, with what it had; hot[1] has a file, where that can be had. */
static void add_hot(struct scribbler *by, unsigned int i)
{
	GMEM_OPTS(gmem_region_opts, opts);
	struct gmem_plan *plan = NULL;
	struct scribble *s = by->s;
	uint64_t gpa = free_place(by);
	uint32_t number;

	require_backing(&s->m, i == 1 && s->hot_file ? GMEM_BACKING_MAPPED : GMEM_BACKING_HOST, &plan);
	opts.plan = plan;
	if (i == 0) {
		opts.flags = GMEM_REGION_HVA;
		opts.hva = s->own_memory;
	} else if (i == 1 && s->hot_file) {
		opts.file = s->hot_file;
		opts.file_offset = pick(by, 2) * HOT_PAGES * s->page;
	}
	number = scribble_begin(s->shared, SCRIBBLE_ADD, gpa, HOT_PAGES * s->page);
	OK(gmem_region_add(s->vm, gpa, HOT_PAGES * s->page, &opts, &s->hot[i]));
	scribble_done(s->shared, SCRIBBLE_ADD, number, gpa, HOT_PAGES * s->page);
	gmem_plan_free(plan);
}

static void move_hot(struct scribbler *by, unsigned int i)
{
	uint64_t gpa = free_place(by), size = gmem_region_size(by->s->hot[i]);
	uint32_t number = scribble_begin(by->shared, SCRIBBLE_MOVE, gpa, size);

	is_changed(gmem_region_move(by->s->hot[i], gpa));
	scribble_done(by->shared, SCRIBBLE_MOVE, number, gpa, size);
}

/* Two trade places. */
static void swap_hot(struct scribbler *by, unsigned int i, unsigned int j)
{
	struct gmem_region **hot = by->s->hot;
	uint64_t at_i = gmem_region_gpa(hot[i]), at_j = gmem_region_gpa(hot[j]);
	uint64_t size = HOT_PAGES * by->page;
	struct gmem_change *change;
	uint32_t number;

	number = scribble_begin(by->shared, SCRIBBLE_MOVE, at_i, size);
	scribble_begin(by->shared, SCRIBBLE_MOVE, at_j, size);
	OK(gmem_change_new(by->s->vm, &change));
	OK(gmem_change_move(change, hot[i], at_j));
	OK(gmem_change_move(change, hot[j], at_i));
	is_changed(gmem_change_apply(change));
	gmem_change_free(change);
	scribble_done(by->shared, SCRIBBLE_MOVE, number, at_i, size);
	scribble_done(by->shared, SCRIBBLE_MOVE, number + 1, at_j, size);
}

/* In two, which are written for a while, and gone at the next turn: there is no way to join them. */
static void split_hot(struct scribbler *by, unsigned int i)
{
	struct scribble *s = by->s;
	struct gmem_region *upper;
	uint64_t gpa = gmem_region_gpa(s->hot[i]), size = HOT_PAGES * s->page;
	uint32_t number = scribble_begin(s->shared, SCRIBBLE_SPLIT, gpa, size);

	if (!is_changed(gmem_region_split(s->hot[i], (1 + pick(by, HOT_PAGES - 1)) * s->page, &upper)))
		return;
	scribble_done(s->shared, SCRIBBLE_SPLIT, number, gpa, size);
	while (may_go_on(s->shared, NULL) && __atomic_load_n(&s->hot_stays, __ATOMIC_SEQ_CST))
		usleep(300);
	while (!is_changed(gmem_region_remove(s->hot[i])))
		usleep(100);
	s->hot[i] = NULL;
	while (!is_changed(gmem_region_remove(upper)))
		usleep(100);
}

static void rebind_hot(struct scribbler *by)
{
	struct gmem_region *region = by->s->hot[1];
	struct gmem_region_info info;
	uint64_t gpa = gmem_region_gpa(region), size = HOT_PAGES * by->page;
	uint32_t number;

	OK(gmem_vm_find_gpa(by->s->vm, gpa, &info));
	number = scribble_begin(by->shared, SCRIBBLE_REBIND, gpa, size);
	is_changed(gmem_region_rebind(region, by->s->hot_file, info.gmemfd_offset ? 0 : size));
	scribble_done(by->shared, SCRIBBLE_REBIND, number, gpa, size);
}

static void remove_hot(struct scribbler *by, unsigned int i)
{
	if (is_changed(gmem_region_remove(by->s->hot[i])))
		by->s->hot[i] = NULL;
}

static void change_layout(struct scribbler *by)
{
	struct gmem_region **hot = by->s->hot;
	unsigned int i = (unsigned int)pick(by, HOTS), other = (i + 1) % HOTS;

	if (!hot[i]) {
		if (is_done(by, SCRIBBLE_ADD))
			add_hot(by, i);
		return;
	}
	switch (pick(by, 8)) {
	case 0:
	case 1:
		if (is_done(by, SCRIBBLE_ADD))
			remove_hot(by, i);
		break;
	case 2:
	case 3:
		if (is_done(by, SCRIBBLE_MOVE))
			move_hot(by, i);
		break;
	case 4:
		if (is_done(by, SCRIBBLE_MOVE) && hot[other])
			swap_hot(by, i, other);
		break;
	case 5:
		if (is_done(by, SCRIBBLE_SPLIT) && is_done(by, SCRIBBLE_ADD))
			split_hot(by, i);
		break;
	default:
		if (is_done(by, SCRIBBLE_REBIND) && hot[1] && by->s->hot_file)
			rebind_hot(by);
	}
}

static void *run_layout(void *data)
{
	struct scribble *s = data;
	struct scribbler by;

	begin_scribbler(&by, s, 3);
	while (may_go_on(s->shared, NULL)) {
		if (!__atomic_load_n(&s->hot_stays, __ATOMIC_SEQ_CST))
			change_layout(&by);
		usleep((useconds_t)pick(&by, 300));
	}
	end_scribbler(&by);
	return NULL;
}

/* ---- the other process ---- */

static _Noreturn void run_device(struct scribble *s, uint32_t number, int sock)
{
	struct gmem_import *import;
	struct scribbler by;
	char byte;
	int ret;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	/* Its turn is when it gets the first message. */
	if (recv(sock, &byte, 1, MSG_PEEK) < 1)
		_exit(0);
	if (gmem_recovery_enable() || gmem_import_new(sock, NULL, &import))
		fail_device(s->shared, 1);
	begin_scribbler(&by, s, 50 + number);
	by.is_peer = true;
	if (gmem_import_view_new(import, &by.view))
		fail_device(s->shared, 2);
	while ((ret = gmem_import_dispatch(import)) == 0)
		usleep(1000);
	if (ret < 0)
		fail_device(s->shared, 3);
	while (may_go_on(s->shared, import)) {
		if (gmem_import_dispatch(import) < 0)
			fail_device(s->shared, 5);
		scribble_in_view(&by);
	}
	_exit(0);
}

void scribble_prepare(struct scribble *s)
{
	int sockets[2];

	s->shared = mmap(NULL, sizeof(*s->shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(s->shared != MAP_FAILED);
	s->shared->generation = 1;
	for (uint32_t i = 0; i < MAX_DEVICES; i++)
		s->device_socks[i] = -1;
	for (uint32_t i = 0; i < MAX_DEVICES && s->has_devices; i++) {
		WORKS(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets));
		s->devices[i] = (pid_t)WORKS(fork());
		if (!s->devices[i]) {
			for (uint32_t j = 0; j < i; j++)
				close(s->device_socks[j]);
			close(sockets[0]);
			run_device(s, i, sockets[1]);
		}
		close(sockets[1]);
		s->device_socks[i] = sockets[0];
	}
}

static void give_to_device(struct scribble *s, uint32_t number)
{
	__atomic_store_n(&s->shared->device, number, __ATOMIC_SEQ_CST);
	OK(gmem_peer_add(s->exporter, s->device_socks[number], NULL, &s->peer));
	close(s->device_socks[number]);
	s->device_socks[number] = -1;
	CHECK_RESULT(gmem_peer_wait(s->peer, 60000), 1);
}

static void *run_export(void *data)
{
	struct scribble *s = data;

	scribble_is_own_thread = true;
	while (!__atomic_load_n(&s->shared->is_over, __ATOMIC_SEQ_CST)) {
		gmem_export_dispatch(s->exporter);
		usleep(500);
	}
	return NULL;
}

static void wait_for_device(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
}

bool scribble_kill_device(struct scribble *s)
{
	uint32_t now = s->shared->device;

	if (!s->exporter || now + 1 >= MAX_DEVICES)
		return false;
	kill(s->devices[now], SIGKILL);
	wait_for_device(s->devices[now]);
	s->devices[now] = 0;
	s->scribblers--;
	return true;
}

void scribble_next_device(struct scribble *s)
{
	gmem_peer_remove(s->peer);
	give_to_device(s, s->shared->device + 1);
	s->scribblers++;
	wait_for_all(s);
}

/* ---- all ---- */

static void start_thread(struct scribble *s, void *(*run)(void *))
{
	CHECK_EQ(pthread_create(&s->threads[s->thread_count++], NULL, run, s), 0);
	s->scribblers++;
}

void scribble_start(struct scribble *s)
{
	uint32_t *words = aligned_alloc(4096, WORDS_SIZE);
	uint64_t random = s->seed + 7;

	CHECK(words);
	for (uint64_t i = 0; i < WORDS_SIZE / 4; i++)
		words[i] = scribble_random(&random, 8) ? (uint32_t)random : 0;
	s->words_fd = (int)WORKS(memfd_create("words", MFD_CLOEXEC));
	CHECK_EQ(WORKS(write(s->words_fd, words, WORDS_SIZE)), WORDS_SIZE);
	free(words);

	if (s->exporter) {
		give_to_device(s, 0);
		s->scribblers++;
		CHECK_EQ(pthread_create(&s->threads[s->thread_count++], NULL, run_export, s), 0);
	}
	start_thread(s, run_guest_thread);
	for (unsigned int i = 0; i < VIEW_THREADS; i++)
		start_thread(s, run_views);
	start_thread(s, run_memory);
	start_thread(s, run_layout);
	wait_for_all(s);
}

void scribble_end(struct scribble *s)
{
	__atomic_store_n(&s->shared->is_over, true, __ATOMIC_SEQ_CST);
	scribble_go(s);
	for (uint32_t i = 0; i < s->thread_count; i++)
		CHECK_EQ(pthread_join(s->threads[i], NULL), 0);
	for (uint32_t i = 0; i < MAX_DEVICES; i++) {
		if (s->device_socks[i] >= 0)
			close(s->device_socks[i]);
		if (!s->devices[i])
			continue;
		kill(s->devices[i], SIGKILL);
		wait_for_device(s->devices[i]);
	}
	close(s->words_fd);
	munmap(s->shared, sizeof(*s->shared));
}
