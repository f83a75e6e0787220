/* SPDX-License-Identifier: MIT */
/* wait_budget: what one call waits for in all, and who is not waited for */
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/lock.h"
#include "base/wait_budget.h"
#include "os/sys.h"
#include "region/region.h"
#include "region/vm_core.h"
#include "share/wire.h"
#include "unit.h"
#include "unit_share.h"

#define PAGE	((uint64_t)4096)
#define ALL	64	/* pages */
#define RUNS	16	/* the shared ones of the first 32 pages, every second */
#define PATIENT	60000
#define NEVER	-1

/* A process at the other end that takes its time to give memory back, or never does */
struct slow_peer {
	struct gmem_peer *peer;
	int sock;
	atomic_int delay_ms;
	atomic_int revokes;
	atomic_bool is_over;
	pthread_t thread;
};

#define MOST_PEERS 6

/* A VM with memory that can be converted, from a memfd, its export, and its peers */
struct scene {
	struct unit unit;
	struct gmem_plan *plan;
	struct gmem_region *region;
	struct gmem_export *exporter;
	struct slow_peer peers[MOST_PEERS];
	size_t peer_count;
	char *hva;
	int memfd;
};

static int convert(struct scene *s, uint64_t page, uint64_t pages, uint32_t state, uint32_t wait_ms)
{
	GMEM_OPTS(gmem_convert_opts, opts, .wait_ms = wait_ms);

	return gmem_vm_convert(s->unit.vm, page * PAGE, pages * PAGE, state, &opts, NULL);
}

static uint32_t state_of(const struct scene *s, uint64_t page)
{
	struct gmem_state_range range;

	assert_int_equal(gmem_vm_state(s->unit.vm, page * PAGE, PAGE, &range, 1), 1);
	return range.state;
}

/* @wait_ms: of calls that say nothing themselves */
static void scene_begin_limited(struct scene *s, uint32_t wait_ms)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_HVA);
	GMEM_OPTS(gmem_vm_opts, vm_opts, .wait_ms = wait_ms);

	memset(s, 0, sizeof(*s));
	unit_begin_vm(&s->unit, "7.3-swp-t1");
	gmem_vm_free(s->unit.vm);
	assert_ok(gmem_vm_new(s->unit.vm_fd, &vm_opts, &s->unit.vm));
	s->plan = unit_plan(&s->unit, GMEM_BACKING_PRIVATE);
	s->memfd = unit_memfd(ALL * PAGE, UNIT_SEALED);
	s->hva = mmap(NULL, ALL * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, s->memfd, 0);
	assert_ptr_not_equal(s->hva, MAP_FAILED);
	opts.plan = s->plan;
	opts.hva = s->hva;
	assert_ok(gmem_region_add(s->unit.vm, 0, ALL * PAGE, &opts, &s->region));
	assert_ok(gmem_export_new(s->unit.vm, NULL, &s->exporter));
	assert_ok(gmem_export_add_memory(s->exporter, s->hva, ALL * PAGE, s->memfd, 0));
}

static void scene_begin(struct scene *s)
{
	scene_begin_limited(s, 0);
}

/* Every second one of the first 32 pages becomes private. */
static void fragment(struct scene *s)
{
	for (uint64_t page = 1; page < 2 * RUNS; page += 2)
		assert_ok(convert(s, page, 1, GMEM_STATE_PRIVATE, 0));
}

static void check_fragments(const struct scene *s)
{
	for (uint64_t page = 0; page < 2 * RUNS; page++)
		assert_int_equal(state_of(s, page), page % 2 ? GMEM_STATE_PRIVATE : GMEM_STATE_SHARED);
}

static void answer(struct slow_peer *slow, const struct gmem_message *message)
{
	const struct gmem_message answer = { .type = GMEM_WIRE_ANSWER, .sequence = message->sequence };
	int delay_ms = slow->delay_ms;

	if (message->type == GMEM_WIRE_REVOKE) {
		slow->revokes++;
		if (delay_ms == NEVER)
			return;
		gmem_sys_pause((unsigned int)delay_ms * 1000);
	}
	gmem_wire_send(slow->sock, &answer, -1);
}

static void *answer_all(void *data)
{
	struct slow_peer *slow = data;
	struct gmem_message message;
	int fd;

	while (!slow->is_over) {
		struct pollfd ready = { .fd = slow->sock, .events = POLLIN };

		if (poll(&ready, 1, 5) <= 0)
			continue;
		if (gmem_wire_receive(slow->sock, &message, &fd) != 1)
			break;
		if (fd >= 0)
			gmem_sys_close(fd);
		answer(slow, &message);
	}
	return NULL;
}

/* Returns when the peer has all memory that it should have. */
static void exchange(struct scene *s, struct slow_peer *slow)
{
	while (gmem_peer_status(slow->peer) == 0) {
		struct pollfd ready = { .fd = gmem_export_fd(s->exporter), .events = POLLIN };

		poll(&ready, 1, 10);
		assert_ok(gmem_export_dispatch(s->exporter));
	}
	assert_int_equal(gmem_peer_status(slow->peer), 1);
}

static struct slow_peer *add_peer(struct scene *s, int delay_ms, struct gmem_peer_opts opts)
{
	struct slow_peer *slow = &s->peers[s->peer_count++];
	int sockets[2];

	opts.size = sizeof(opts);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets), 0);
	assert_ok(gmem_peer_add(s->exporter, sockets[0], &opts, &slow->peer));
	close(sockets[0]);
	slow->sock = sockets[1];
	slow->delay_ms = delay_ms;
	assert_int_equal(pthread_create(&slow->thread, NULL, answer_all, slow), 0);
	exchange(s, slow);
	return slow;
}

static void scene_end(struct scene *s)
{
	gmem_export_free(s->exporter);
	for (size_t i = 0; i < s->peer_count; i++) {
		s->peers[i].is_over = true;
		pthread_join(s->peers[i].thread, NULL);
		close(s->peers[i].sock);
	}
	gmem_vm_free(s->unit.vm);
	s->unit.vm = NULL;
	gmem_plan_free(s->plan);
	munmap(s->hva, ALL * PAGE);
	close(s->memfd);
	unit_end(&s->unit);
}

/* ---- peers ---- */

static void a_peer_has_its_time_for_a_conversion_not_for_each_run(void **state)
{
	struct slow_peer *slow;
	struct scene s;

	(void)state;
	scene_begin(&s);
	fragment(&s);
	slow = add_peer(&s, 40, (struct gmem_peer_opts){ .wait_ms = 100 });
	assert_refused(-ETIMEDOUT, "gave no answer in 100 ms",
		       convert(&s, 0, 2 * RUNS, GMEM_STATE_PRIVATE, 0));
	assert_in_range(slow->revokes, 1, 4);
	check_fragments(&s);

	/* Nothing changed: what it gave back it gets again, and then it can be taken. */
	slow->delay_ms = 0;
	exchange(&s, slow);
	assert_ok(convert(&s, 0, 2, GMEM_STATE_PRIVATE, 0));
	scene_end(&s);
}

static void a_peer_that_is_cut_off_had_its_time_once(void **state)
{
	struct slow_peer *slow;
	struct scene s;

	(void)state;
	scene_begin(&s);
	fragment(&s);
	slow = add_peer(&s, 40, (struct gmem_peer_opts){ .wait_ms = 100, .flags = GMEM_PEER_CUT_OFF });
	assert_ok(convert(&s, 0, 2 * RUNS, GMEM_STATE_PRIVATE, 0));
	assert_in_range(slow->revokes, 1, 4);
	assert_int_equal(gmem_peer_status(slow->peer), -ETIMEDOUT);
	for (uint64_t page = 0; page < 2 * RUNS; page++)
		assert_int_equal(state_of(&s, page), GMEM_STATE_PRIVATE);
	scene_end(&s);
}

/* Each has another run, and nobody answers. */
static void peers_of_different_runs_are_waited_for_at_once(void **state)
{
	enum { WAIT_MS = 400 };
	struct gmem_export_range range = { .size = PAGE, .rights = GMEM_RIGHT_READ | GMEM_RIGHT_WRITE };
	uint64_t start, took;
	struct scene s;

	(void)state;
	scene_begin(&s);
	fragment(&s);
	for (int i = 0; i < MOST_PEERS; i++, range.gpa += 2 * PAGE)
		add_peer(&s, NEVER, (struct gmem_peer_opts){
			.wait_ms = WAIT_MS, .flags = GMEM_PEER_CUT_OFF | GMEM_PEER_WHOLE_FILES,
			.ranges = &range, .range_count = 1 });
	start = gmem_sys_now();
	assert_ok(convert(&s, 0, 2 * RUNS, GMEM_STATE_PRIVATE, 0));
	took = (gmem_sys_now() - start) / GMEM_NANOSECONDS_PER_MS;
	assert_in_range(took, WAIT_MS, (MOST_PEERS - 1) * WAIT_MS);
	for (int i = 0; i < MOST_PEERS; i++) {
		assert_int_equal(s.peers[i].revokes, 1);
		assert_int_equal(gmem_peer_status(s.peers[i].peer), -ETIMEDOUT);
	}
	scene_end(&s);
}

static void a_call_may_wait_shorter_than_its_peers_could(void **state)
{
	struct slow_peer *slow;
	struct scene s;

	(void)state;
	scene_begin(&s);
	fragment(&s);
	slow = add_peer(&s, 10, (struct gmem_peer_opts){ .wait_ms = PATIENT, .flags = GMEM_PEER_CUT_OFF });
	assert_refused(-ETIMEDOUT, "the call was to wait 25 ms",
		       convert(&s, 0, 2 * RUNS, GMEM_STATE_PRIVATE, 25));
	assert_in_range(slow->revokes, 1, 4);
	check_fragments(&s);
	/* The peer's time was not up. */
	slow->delay_ms = 0;
	exchange(&s, slow);
	assert_ok(convert(&s, 0, 2 * RUNS, GMEM_STATE_PRIVATE, PATIENT));
	scene_end(&s);
}

/* ---- views ---- */

struct ear {
	atomic_int asked, undone;
	atomic_int inside;	/* calls of before_private that wait */
	atomic_int let_go;	/* how many of them may go on */
	bool is_a_gate;
	struct gmem_listener *listener;
};

static int hear_before(void *data, uint64_t gpa, uint64_t size)
{
	struct ear *ear = data;
	int number = ear->asked++;

	(void)gpa;
	(void)size;
	ear->inside++;
	while (ear->is_a_gate && ear->let_go <= number)
		gmem_sys_pause(50);
	ear->inside--;
	return 0;
}

static void hear_undo(void *data, uint64_t gpa, uint64_t size)
{
	struct ear *ear = data;

	(void)gpa;
	(void)size;
	ear->undone++;
}

static void await_inside(const struct ear *gate, int number)
{
	while (gate->asked < number || !gate->inside)
		gmem_sys_pause(50);
}

static void listen_with(struct scene *s, struct ear *ear)
{
	GMEM_OPTS(gmem_listener_opts, opts, .data = ear, .before_private = hear_before,
		  .undo_private = hear_undo);

	assert_ok(gmem_listener_new(s->unit.vm, &opts, &ear->listener));
}

/* A thread that converts pages once */
struct worker {
	struct scene *s;
	uint64_t page, pages;
	uint32_t state, wait_ms;
	int err;
	pthread_t thread;
};

static void *work(void *data)
{
	struct worker *worker = data;

	worker->err = convert(worker->s, worker->page, worker->pages, worker->state, worker->wait_ms);
	return NULL;
}

static void start(struct worker *worker)
{
	assert_int_equal(pthread_create(&worker->thread, NULL, work, worker), 0);
}

static int result(struct worker *worker)
{
	pthread_join(worker->thread, NULL);
	return worker->err;
}

static uint64_t queued(const struct scene *s)
{
	uint64_t count;

	gmem_lock_take(&s->unit.vm->lock);
	count = s->unit.vm->claim_order;
	gmem_lock_drop(&s->unit.vm->lock);
	return count;
}

/* Returns when it is in the queue. */
static void start_and_queue(struct worker *worker)
{
	uint64_t before = queued(worker->s);

	start(worker);
	while (queued(worker->s) == before)
		gmem_sys_pause(50);
}

static void a_view_that_does_not_end_is_waited_for_in_time(void **state)
{
	struct worker worker = { .page = 3, .pages = 4, .state = GMEM_STATE_PRIVATE, .wait_ms = 20 };
	struct ear ear = { .asked = 0 };
	struct gmem_view *view;
	uint64_t value;
	struct scene s;

	(void)state;
	scene_begin(&s);
	worker.s = &s;
	listen_with(&s, &ear);
	assert_ok(gmem_view_new(s.unit.vm, &view));
	gmem_view_begin(view);
	start(&worker);
	assert_int_equal(result(&worker), -EBUSY);
	/* Nothing changed, and the view sees it. */
	assert_int_equal(state_of(&s, 3), GMEM_STATE_SHARED);
	assert_int_equal(ear.asked, 1);
	assert_int_equal(ear.undone, 1);
	gmem_view_end(view);
	assert_ok(gmem_view_load(view, 3 * PAGE, 8, GMEM_RELAXED, &value));
	start(&worker);
	assert_ok(result(&worker));
	assert_int_equal(gmem_view_load(view, 3 * PAGE, 8, GMEM_RELAXED, &value), -EACCES);
	gmem_view_free(view);
	gmem_listener_free(ear.listener);
	scene_end(&s);
}

/* ---- earlier work ---- */

static void earlier_work_is_waited_for_in_time(void **state)
{
	struct worker first = { .page = 3, .pages = 4, .state = GMEM_STATE_PRIVATE };
	struct worker patient = { .page = 5, .pages = 8, .state = GMEM_STATE_PRIVATE };
	GMEM_OPTS(gmem_discard_opts, discard, .wait_ms = 20);
	struct ear gate = { .is_a_gate = true };
	struct scene s;

	(void)state;
	scene_begin(&s);
	first.s = patient.s = &s;
	listen_with(&s, &gate);
	start(&first);
	while (!gate.inside)
		gmem_sys_pause(50);
	start_and_queue(&patient);
	assert_refused(-EBUSY, "other work on gpa", convert(&s, 6, 1, GMEM_STATE_PRIVATE, 20));
	assert_refused(-EBUSY, "for 20 ms",
		       gmem_vm_discard(s.unit.vm, 3 * PAGE, PAGE, &discard, NULL));
	/* elsewhere nobody waits */
	assert_ok(gmem_vm_discard(s.unit.vm, 30 * PAGE, PAGE, &discard, NULL));
	assert_int_equal(state_of(&s, 12), GMEM_STATE_SHARED);
	gate.let_go = 2;
	assert_ok(result(&first));
	assert_ok(result(&patient));
	assert_int_equal(state_of(&s, 12), GMEM_STATE_PRIVATE);
	gmem_listener_free(gate.listener);
	scene_end(&s);
}

static int change_of_several(struct gmem_region *region)
{
	struct gmem_change *change;
	int err;

	assert_ok(gmem_change_new(region->vm, &change));
	assert_ok(gmem_change_remove(change, region));
	err = gmem_change_apply(change);
	gmem_change_free(change);
	return err;
}

/* A conversion that stays in its callback is in the way of all that concerns its range. */
static void a_limit_of_the_vm_is_for_calls_that_have_none(void **state)
{
	struct worker first = { .page = 3, .pages = 4, .state = GMEM_STATE_PRIVATE, .wait_ms = PATIENT };
	GMEM_OPTS(gmem_stats, stats, .flags = GMEM_STATS_RESIDENT);
	struct ear gate = { .is_a_gate = true };
	struct gmem_region *upper;
	uint64_t on_node[2];
	GMEM_OPTS(gmem_numa_pages, pages, .on_node = on_node, .nodes = 2);
	struct scene s;

	(void)state;
	scene_begin_limited(&s, 15);
	first.s = &s;
	listen_with(&s, &gate);
	start(&first);
	await_inside(&gate, 1);
	assert_refused(-EBUSY, "other work on gpa", convert(&s, 6, 1, GMEM_STATE_PRIVATE, 0));
	assert_refused(-EBUSY, "other work on gpa", gmem_region_split(s.region, 32 * PAGE, &upper));
	assert_refused(-EBUSY, "other work on gpa", gmem_region_remove(s.region));
	assert_refused(-EBUSY, "other work on gpa", change_of_several(s.region));
	assert_refused(-EBUSY, "other work on gpa", gmem_vm_populate(s.unit.vm, 0, ALL * PAGE, NULL, NULL));
	assert_refused(-EBUSY, "other work on gpa", gmem_vm_stats(s.unit.vm, &stats));
	assert_refused(-EBUSY, "other work on gpa", gmem_vm_numa(s.unit.vm, 0, ALL * PAGE, &pages));
	assert_refused(-EBUSY, "other work on gpa", gmem_vm_discard(s.unit.vm, 0, ALL * PAGE, NULL, NULL));
	gate.let_go = 1;
	assert_ok(result(&first));
	assert_ok(gmem_vm_stats(s.unit.vm, &stats));
	assert_int_equal(stats.bytes_private, 4 * PAGE);
	gmem_listener_free(gate.listener);
	scene_end(&s);
}

/* A lease is in the way at once all the same, and a change waits in time for another change. */
static void a_limit_of_the_vm_is_not_for_leases(void **state)
{
	struct gmem_wait_budget none = { .wait_ms = 0 };
	struct gmem_region *upper;
	struct gmem_lease *held;
	struct scene s;

	(void)state;
	scene_begin_limited(&s, PATIENT);
	assert_ok(gmem_lease_new(s.unit.vm, 0, PAGE, NULL, &held));
	assert_refused(-EBUSY, "holds a lease", convert(&s, 0, 1, GMEM_STATE_PRIVATE, 0));
	assert_refused(-EBUSY, "holds a lease", gmem_vm_discard(s.unit.vm, 0, PAGE, NULL, NULL));
	gmem_lease_free(held);
	scene_end(&s);

	scene_begin_limited(&s, 15);
	assert_ok(gmem_vm_begin_change(s.unit.vm, &none));
	__atomic_store_n(&s.unit.vm->changer, 0, __ATOMIC_RELAXED);	/* as if it were another thread */
	assert_refused(-EBUSY, "another change of the layout",
		       gmem_region_split(s.region, 32 * PAGE, &upper));
	gmem_vm_end_change(s.unit.vm);
	assert_ok(gmem_region_split(s.region, 32 * PAGE, &upper));
	scene_end(&s);
}

/* ---- listeners and exports ---- */

struct coming {
	struct scene *s;
	struct ear ear;
	pthread_t thread;
};

static void *come(void *data)
{
	struct coming *coming = data;

	listen_with(coming->s, &coming->ear);
	return NULL;
}

static void *go(void *data)
{
	struct coming *coming = data;

	gmem_listener_free(coming->ear.listener);
	return NULL;
}

static void await_work_wait(const struct scene *s)
{
	bool waits;

	do {
		gmem_sys_pause(50);
		gmem_lock_take(&s->unit.vm->lock);
		waits = s->unit.vm->work_waits != NULL;
		gmem_lock_drop(&s->unit.vm->lock);
	} while (!waits);
}

/* Three conversions of one page, each at the gate in its turn */
static void listeners_do_not_wait_for_those_who_wait(void **state)
{
	struct worker workers[3];
	struct ear gate = { .is_a_gate = true };
	struct coming other = { .ear = { .asked = 0 } };
	struct scene s;

	(void)state;
	scene_begin(&s);
	other.s = &s;
	listen_with(&s, &gate);
	for (int i = 0; i < 3; i++) {
		workers[i] = (struct worker){ .s = &s, .page = (uint64_t)(2 - i), .pages = 3,
					      .state = GMEM_STATE_PRIVATE };
		start_and_queue(&workers[i]);
	}
	await_inside(&gate, 1);
	assert_int_equal(pthread_create(&other.thread, NULL, come, &other), 0);
	await_work_wait(&s);
	gate.let_go = 1;
	pthread_join(other.thread, NULL);	/* while the second one is inside */
	await_inside(&gate, 2);

	assert_int_equal(pthread_create(&other.thread, NULL, go, &other), 0);
	await_work_wait(&s);
	gate.let_go = 2;
	pthread_join(other.thread, NULL);	/* while the third one is inside */
	await_inside(&gate, 3);
	gate.let_go = 3;
	for (int i = 0; i < 3; i++)
		assert_ok(result(&workers[i]));
	/* It came after the first conversion had begun, and ended before the third one did. */
	assert_int_equal(other.ear.asked, 1);
	gmem_listener_free(gate.listener);
	scene_end(&s);
}

struct storm {
	struct scene *s;
	atomic_bool is_over;
	atomic_ulong conversions;
	atomic_uint threads;
};

/* One half converts to private what the other half has just made shared. */
static void *convert_back_and_forth(void *data)
{
	struct storm *storm = data;
	bool to_private = storm->threads++ % 2;

	for (; !storm->is_over; to_private = !to_private) {
		assert_ok(convert(storm->s, 0, 1, to_private ? GMEM_STATE_PRIVATE : GMEM_STATE_SHARED, 0));
		storm->conversions++;
	}
	return NULL;
}

/* The peer gets again what is shared again. */
static void *dispatch(void *data)
{
	struct storm *storm = data;

	while (!storm->is_over) {
		struct pollfd ready = { .fd = gmem_export_fd(storm->s->exporter), .events = POLLIN };

		poll(&ready, 1, 5);
		assert_ok(gmem_export_dispatch(storm->s->exporter));
	}
	return NULL;
}

static void change_layout(struct scene *s, int turn)
{
	struct gmem_region *upper;

	assert_ok(gmem_region_split(s->region, (uint64_t)(ALL - 1 - turn) * PAGE, &upper));
}

static void come_and_go(struct scene *s, int turn)
{
	struct ear ear = { .asked = 0 };

	(void)turn;
	listen_with(s, &ear);
	gmem_listener_free(ear.listener);
}

static void export_and_end(struct scene *s, int turn)
{
	struct gmem_export *exporter;

	(void)turn;
	assert_ok(gmem_export_new(s->unit.vm, NULL, &exporter));
	gmem_export_free(exporter);
}

/*
 * Conversions that were made during a call, the fewest of several times: a machine that is busy
 * lets others overtake by chance, but not each time.
 */
static unsigned long least_overtaken(struct storm *storm, void (*call)(struct scene *s, int turn))
{
	unsigned long least = ULONG_MAX, before, during;

	for (int turn = 0; turn < 8; turn++) {
		before = storm->conversions;
		call(storm->s, turn);
		during = storm->conversions - before;
		least = during < least ? during : least;
	}
	return least;
}

/* Each conversion to private takes the peer 5 ms; 16 threads wait for the page. */
static void a_storm_holds_up_one_conversion_at_most(void **state)
{
	enum { THREADS = 16 };
	pthread_t threads[THREADS], dispatcher;
	struct storm storm = { .is_over = false };
	unsigned long layout, listener, exporter;
	struct scene s;

	(void)state;
	scene_begin(&s);
	add_peer(&s, 5, (struct gmem_peer_opts){ .wait_ms = PATIENT });
	storm.s = &s;
	assert_int_equal(pthread_create(&dispatcher, NULL, dispatch, &storm), 0);
	for (unsigned int i = 0; i < THREADS; i++) {
		uint64_t before = queued(&s);

		assert_int_equal(pthread_create(&threads[i], NULL, convert_back_and_forth, &storm), 0);
		while (queued(&s) == before)
			gmem_sys_pause(50);
	}
	while (storm.conversions < 2 * THREADS)
		gmem_sys_pause(1000);
	layout = least_overtaken(&storm, change_layout);
	listener = least_overtaken(&storm, come_and_go);
	exporter = least_overtaken(&storm, export_and_end);
	storm.is_over = true;
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	pthread_join(dispatcher, NULL);
	scene_end(&s);
	print_message("# %lu, %lu and %lu conversions meanwhile\n", layout, listener, exporter);
	/* Behind the queue it would be all threads, for each of two calls. */
	assert_in_range(layout, 0, THREADS / 2);
	assert_in_range(listener, 0, THREADS);
	assert_in_range(exporter, 0, THREADS);
}

/* ---- a crowd: listeners come and go while others convert ---- */

#define CROWD_PAGES	4
#define CROWD_TURNS	300

struct crowd {
	struct scene *s;
	atomic_bool is_over;
	atomic_uint heard, undone;
};

/* What a listener knows; freed as soon as it may be */
struct member {
	struct crowd *crowd;
	struct gmem_listener *listener;
	atomic_int inside;
	atomic_bool asked[CROWD_PAGES];
	bool frees_itself;
	atomic_bool is_freed, has_freed_itself;
};

static int member_before(void *data, uint64_t gpa, uint64_t size)
{
	struct member *member = data;

	(void)size;
	member->inside++;
	member->asked[gpa / PAGE] = ++member->crowd->heard % 3 != 0;
	if (member->frees_itself && !atomic_exchange(&member->is_freed, true)) {
		gmem_listener_free(member->listener);
		member->has_freed_itself = true;
	}
	member->inside--;
	return member->asked[gpa / PAGE] ? 0 : -EPERM;
}

/* Only of what it was asked about: it hears a conversion as a whole, or nothing of it. */
static void member_undo(void *data, uint64_t gpa, uint64_t size)
{
	struct member *member = data;

	(void)size;
	member->inside++;
	member->crowd->undone++;
	assert_true(atomic_exchange(&member->asked[gpa / PAGE], false));
	member->inside--;
}

static void *come_and_go_often(void *data)
{
	struct crowd *crowd = data;
	struct member *before = NULL, *member;
	int turn = 0;

	while (!crowd->is_over) {
		GMEM_OPTS(gmem_listener_opts, opts, .before_private = member_before,
			  .undo_private = member_undo);

		member = calloc(1, sizeof(*member));
		assert_non_null(member);
		member->crowd = crowd;
		member->frees_itself = turn++ % 4 == 0;
		opts.data = member;
		assert_ok(gmem_listener_new(crowd->s->unit.vm, &opts, &member->listener));
		/* What one that ended itself had is needed until the next one came. */
		free(before);
		before = NULL;
		gmem_sys_pause(100);
		if (!atomic_exchange(&member->is_freed, true)) {
			gmem_listener_free(member->listener);
			assert_int_equal(member->inside, 0);
			free(member);
		} else {
			while (!member->has_freed_itself)
				gmem_sys_pause(50);
			before = member;
		}
	}
	return before;
}

static void *convert_often(void *data)
{
	struct crowd *crowd = data;

	for (int i = 0; i < CROWD_TURNS; i++) {
		for (uint64_t page = 0; page < CROWD_PAGES; page++) {
			(void)!convert(crowd->s, page, 1, GMEM_STATE_PRIVATE, 0);
			(void)!convert(crowd->s, page, 1, GMEM_STATE_SHARED, 0);
		}
	}
	return NULL;
}

static void listeners_come_and_go_in_a_crowd(void **state)
{
	pthread_t converting[4], coming[4];
	struct crowd crowd = { .heard = 0 };
	struct scene s;
	void *left[4];

	(void)state;
	scene_begin(&s);
	crowd.s = &s;
	for (int i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&coming[i], NULL, come_and_go_often, &crowd), 0);
	for (int i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&converting[i], NULL, convert_often, &crowd), 0);
	for (int i = 0; i < 4; i++)
		pthread_join(converting[i], NULL);
	crowd.is_over = true;
	for (int i = 0; i < 4; i++)
		pthread_join(coming[i], &left[i]);
	for (int i = 0; i < 4; i++)
		free(left[i]);
	print_message("# %u asked, %u undone\n", crowd.heard, crowd.undone);
	assert_true(crowd.undone > 0);
	scene_end(&s);
}

/* ---- change hooks ---- */

struct gate_hook {
	struct gmem_change_hook hook;
	atomic_int before, after;
	atomic_bool may_go_on;
};

static int hook_before(struct gmem_change_hook *hook, const struct gmem_step *steps, size_t count,
		       struct gmem_wait_budget *budget)
{
	struct gate_hook *gate = (struct gate_hook *)hook;

	(void)steps;
	(void)count;
	(void)budget;
	gate->before++;
	while (!gate->may_go_on)
		gmem_sys_pause(50);
	return 0;
}

static void hook_after(struct gmem_change_hook *hook)
{
	((struct gate_hook *)hook)->after++;
}

static void *change(void *data)
{
	struct gmem_vm *vm = data;
	struct gmem_wait_budget budget = { .wait_ms = 0 };

	assert_ok(gmem_vm_begin_change(vm, &budget));
	assert_ok(gmem_vm_ask_change_hooks(vm, NULL, 0, &budget));
	gmem_vm_tell_change_hooks(vm);
	gmem_vm_end_change(vm);
	return NULL;
}

static void *let_go_later(void *data)
{
	struct gate_hook *gate = data;

	gmem_sys_pause(3000);
	gate->may_go_on = true;
	return NULL;
}

static void a_hook_goes_while_a_change_is_with_another(void **state)
{
	struct gate_hook hooks[3];
	pthread_t changer, opener;
	struct gmem_vm vm;

	(void)state;
	memset(&vm, 0, sizeof(vm));
	memset(hooks, 0, sizeof(hooks));
	gmem_vm_begin(&vm);
	for (int i = 0; i < 3; i++) {
		hooks[i].hook.before = hook_before;
		hooks[i].hook.after = hook_after;
		assert_ok(gmem_vm_add_change_hook(&vm, &hooks[i].hook));
	}
	/* The last that came is called first. */
	hooks[2].may_go_on = true;
	assert_int_equal(pthread_create(&changer, NULL, change, &vm), 0);
	while (!hooks[1].before)
		gmem_sys_pause(50);
	gmem_vm_remove_change_hook(&vm, &hooks[0].hook);
	gmem_vm_remove_change_hook(&vm, &hooks[2].hook);
	/* That one is waited for. */
	assert_int_equal(pthread_create(&opener, NULL, let_go_later, &hooks[1]), 0);
	gmem_vm_remove_change_hook(&vm, &hooks[1].hook);
	assert_true(hooks[1].may_go_on);
	pthread_join(opener, NULL);
	pthread_join(changer, NULL);
	assert_int_equal(hooks[0].before, 0);
	assert_int_equal(hooks[2].before, 1);
	for (int i = 0; i < 3; i++)
		assert_int_equal(hooks[i].after, 0);
	gmem_vm_end(&vm);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(a_peer_has_its_time_for_a_conversion_not_for_each_run),
	cmocka_unit_test(a_peer_that_is_cut_off_had_its_time_once),
	cmocka_unit_test(peers_of_different_runs_are_waited_for_at_once),
	cmocka_unit_test(a_call_may_wait_shorter_than_its_peers_could),
	cmocka_unit_test(a_view_that_does_not_end_is_waited_for_in_time),
	cmocka_unit_test(earlier_work_is_waited_for_in_time),
	cmocka_unit_test(a_limit_of_the_vm_is_for_calls_that_have_none),
	cmocka_unit_test(a_limit_of_the_vm_is_not_for_leases),
	cmocka_unit_test(listeners_do_not_wait_for_those_who_wait),
	cmocka_unit_test(a_storm_holds_up_one_conversion_at_most),
	cmocka_unit_test(listeners_come_and_go_in_a_crowd),
	cmocka_unit_test(a_hook_goes_while_a_change_is_with_another),
};

UNIT_MAIN(tests)
