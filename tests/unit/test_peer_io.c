/* SPDX-License-Identifier: MIT */
/*
 * peer_io, with a far end that knows the protocol and nothing else: which messages come, in
 * which pages, and what a refusal means.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "os/sys.h"
#include "share/peer_io.h"
#include "share/peer_needs.h"
#include "share/peer_state.h"
#include "share/wire.h"
#include "unit.h"
#include "unit_alloc.h"
#include "unit_share.h"

#define PAGE	((uint64_t)4096)
#define HUGE	((uint64_t)2 << 20)
#define SIZE	(4 * HUGE)
#define MOST	(2 * SIZE / PAGE)
#define PATIENT	60000
#define MOST_EXTENTS 128

/* The other process. It knows what it was given, by guest page. */
struct far {
	int sock;
	uint64_t page_size;		/* of the file, in which everything must come */
	/* The status to answer with, 0, or -1: no answer yet */
	int (*decide)(struct far *far, const struct gmem_message *message);
	unsigned int counts[GMEM_WIRE_ANSWER];
	unsigned int refusals;		/* how many more; for decide() */
	int refusal;
	uint32_t refused_type;
	uint64_t refused_gpa;
	uint32_t unanswered;		/* sequence of the message that decide() kept, or 0 */
	struct gmem_message kept;
	struct {
		uint64_t id, gpa, size;
	} extents[MOST_EXTENTS];
	bool has[MOST];
	uint32_t seed;			/* for decide_anything() */
};

static void set_has(struct far *far, uint64_t gpa, uint64_t size, bool has)
{
	for (uint64_t page = gpa / PAGE; page < (gpa + size) / PAGE && page < MOST; page++)
		far->has[page] = has;
}

static void answer(const struct far *far, uint32_t sequence, int status)
{
	const struct gmem_message message = { .type = GMEM_WIRE_ANSWER, .sequence = sequence,
					      .status = (uint32_t)status };

	assert_ok(gmem_wire_send(far->sock, &message, -1));
}

/* The place of an extent; 0: a free one */
static size_t find_extent(const struct far *far, uint64_t id)
{
	size_t i = 0;

	while (i < MOST_EXTENTS && far->extents[i].id != id)
		i++;
	if (i == MOST_EXTENTS)
		fail_msg("there is no extent %" PRIu64, id);
	return i;
}

/* Do what a message asks for. Every part lies in the extent of its id. */
static void perform(struct far *far, const struct gmem_message *message)
{
	size_t i = message->id ? find_extent(far, message->type == GMEM_WIRE_MAP ? 0 : message->id) : 0;

	switch (message->type) {
	case GMEM_WIRE_MAP:
		far->extents[i].id = message->id;
		far->extents[i].gpa = message->gpa;
		far->extents[i].size = message->size;
		set_has(far, message->gpa, message->size, !(message->rights & GMEM_WIRE_WITHHELD));
		break;
	case GMEM_WIRE_UNMAP:
		set_has(far, far->extents[i].gpa, far->extents[i].size, false);
		far->extents[i].id = 0;
		break;
	case GMEM_WIRE_GRANT:
	case GMEM_WIRE_REVOKE:
		assert_true(message->gpa >= far->extents[i].gpa &&
			    message->gpa + message->size <= far->extents[i].gpa + far->extents[i].size);
		set_has(far, message->gpa, message->size, message->type == GMEM_WIRE_GRANT);
		break;
	default:
		break;
	}
}

/* Take all messages that are there. Returns how many. */
static unsigned int serve(struct far *far)
{
	struct gmem_message message;
	unsigned int count = 0;
	int fd, status;

	while (gmem_wire_receive(far->sock, &message, &fd) == 1) {
		if (fd >= 0)
			gmem_sys_close(fd);
		assert_true(message.type < GMEM_WIRE_ANSWER);
		far->counts[message.type]++;
		assert_int_equal((message.gpa | message.size | message.offset) & (far->page_size - 1), 0);
		status = far->decide ? far->decide(far, &message) : 0;
		count++;
		if (status < 0) {
			far->unanswered = message.sequence;
			far->kept = message;
			continue;
		}
		if (!status)
			perform(far, &message);
		answer(far, message.sequence, status);
	}
	return count;
}

/* Answer the message that was kept, late. */
static void answer_late(struct far *far, int status)
{
	uint32_t sequence = far->unanswered;

	if (!sequence)
		return;
	far->unanswered = 0;
	if (!status)
		perform(far, &far->kept);
	answer(far, sequence, status);
}

/* A VM with memory from a memfd at 0, which can be converted, and a far end that has it */
struct scene {
	struct unit unit;
	struct gmem_plan *plan;
	struct gmem_export *exporter;
	struct gmem_peer *peer;
	struct gmem_region *regions[2];
	char *hva;
	int memfd;
	struct far far;
	pthread_t thread;
	int stop;
};

static void scene_begin(struct scene *s, uint64_t page_size)
{
	memset(s, 0, sizeof(*s));
	unit_begin_vm(&s->unit, "7.3-swp-t1");
	s->plan = unit_plan(&s->unit, GMEM_BACKING_PRIVATE);
	s->memfd = unit_memfd(2 * SIZE, UNIT_SEALED);
	if (page_size != PAGE)
		fake_pretend_huge(s->memfd, page_size);
	s->hva = mmap(NULL, 2 * SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, s->memfd, 0);
	assert_ptr_not_equal(s->hva, MAP_FAILED);
	s->far.page_size = page_size;
	s->far.sock = -1;
	assert_ok(gmem_export_new(s->unit.vm, NULL, &s->exporter));
	assert_ok(gmem_export_add_memory(s->exporter, s->hva, 2 * SIZE, s->memfd, 0));
}

static int try_region(struct scene *s, uint64_t gpa, uint64_t offset, uint64_t size, unsigned int n)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = s->plan, .flags = GMEM_REGION_HVA,
		  .hva = s->hva + offset);

	return gmem_region_add(s->unit.vm, gpa, size, &opts, &s->regions[n]);
}

static int try_peer(struct scene *s, struct gmem_peer_opts opts)
{
	int sockets[2], err;

	opts.size = sizeof(opts);
	opts.flags |= GMEM_PEER_WHOLE_FILES;
	if (!opts.wait_ms)
		opts.wait_ms = PATIENT;
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets), 0);
	err = gmem_peer_add(s->exporter, sockets[0], &opts, &s->peer);
	close(sockets[0]);
	if (err)
		close(sockets[1]);
	else
		s->far.sock = sockets[1];
	return err;
}

static void scene_begin_given(struct scene *s, uint64_t page_size, struct gmem_peer_opts opts)
{
	scene_begin(s, page_size);
	assert_ok(try_region(s, 0, 0, SIZE, 0));
	assert_ok(try_peer(s, opts));
}

static void scene_end(struct scene *s)
{
	gmem_export_free(s->exporter);
	gmem_vm_free(s->unit.vm);
	s->unit.vm = NULL;
	gmem_plan_free(s->plan);
	munmap(s->hva, 2 * SIZE);
	close(s->memfd);
	if (s->far.sock >= 0)
		close(s->far.sock);
	unit_end(&s->unit);
}

/* As an event loop does: nothing but the fd says that there is something to do. */
static bool run_once(struct scene *s, int wait_ms)
{
	struct pollfd fd = { .fd = gmem_export_fd(s->exporter), .events = POLLIN };

	if (poll(&fd, 1, wait_ms) == 1) {
		assert_ok(gmem_export_dispatch(s->exporter));
		return serve(&s->far) || true;
	}
	return serve(&s->far);
}

/* Until nothing happens any more for so long */
static void run_until_quiet(struct scene *s, int quiet_ms)
{
	while (run_once(s, quiet_ms))
		;
}

/* The first wait of those who try again is not over, however busy the machine is. */
#define IS_EARLY(start)	(gmem_sys_now() - (start) < 100 * GMEM_NANOSECONDS_PER_MS)

/* Until the peer has everything */
static void settle(struct scene *s)
{
	for (int i = 0; i < 100000 && gmem_peer_status(s->peer) == 0; i++)
		run_once(s, PATIENT);
	assert_int_equal(gmem_peer_status(s->peer), 1);
}

static void *serve_in_thread(void *data)
{
	struct scene *s = data;
	struct pollfd fd = { .fd = s->far.sock, .events = POLLIN };

	while (!__atomic_load_n(&s->stop, __ATOMIC_ACQUIRE)) {
		poll(&fd, 1, 5);
		serve(&s->far);
	}
	return NULL;
}

static void start_serving(struct scene *s)
{
	s->stop = 0;
	assert_int_equal(pthread_create(&s->thread, NULL, serve_in_thread, s), 0);
}

static void stop_serving(struct scene *s)
{
	__atomic_store_n(&s->stop, 1, __ATOMIC_RELEASE);
	assert_int_equal(pthread_join(s->thread, NULL), 0);
}

static int convert(struct scene *s, uint64_t page, uint64_t pages, uint32_t state)
{
	return gmem_vm_convert(s->unit.vm, page * PAGE, pages * PAGE, state, NULL, NULL);
}

static int convert_served(struct scene *s, uint64_t page, uint64_t pages, uint32_t state)
{
	int err;

	start_serving(s);
	err = convert(s, page, pages, state);
	stop_serving(s);
	return err;
}

static bool is_shared(struct scene *s, uint64_t page)
{
	struct gmem_state_range range;

	assert_int_equal(gmem_vm_state(s->unit.vm, page * PAGE, PAGE, &range, 1), 1);
	return range.state == GMEM_STATE_SHARED;
}

/* Fails unless the far end has exactly the pages of the file that are shared as a whole. */
static void compare(struct scene *s)
{
	const uint64_t pages = s->far.page_size / PAGE;

	for (uint64_t first = 0; first < SIZE / PAGE; first += pages) {
		bool shared = true;

		for (uint64_t i = 0; i < pages && shared; i++)
			shared = is_shared(s, first + i);
		for (uint64_t i = 0; i < pages; i++)
			if (s->far.has[first + i] != shared)
				fail_msg("page %" PRIu64 " of %" PRIu64 " is %sgiven", i, first,
					 shared ? "not " : "");
	}
}

/* ---- pages of the file ---- */

static void a_page_of_the_file_is_taken_and_given_as_a_whole(void **state)
{
	struct scene s;

	(void)state;
	scene_begin_given(&s, HUGE, (struct gmem_peer_opts){ .flags = 0 });
	settle(&s);
	compare(&s);
	assert_true(s.far.has[512]);

	/* one guest page in it becomes private, then another one */
	assert_ok(convert_served(&s, 600, 1, GMEM_STATE_PRIVATE));
	assert_false(s.far.has[512] || s.far.has[1023]);
	assert_true(s.far.has[511] && s.far.has[1024]);
	assert_int_equal(s.far.counts[GMEM_WIRE_REVOKE], 1);
	assert_ok(convert_served(&s, 700, 3, GMEM_STATE_PRIVATE));
	assert_int_equal(s.far.counts[GMEM_WIRE_REVOKE], 1);

	/* the first is shared again, but not all of the page */
	assert_ok(convert(&s, 600, 1, GMEM_STATE_SHARED));
	settle(&s);
	compare(&s);
	assert_false(s.far.has[512]);
	assert_ok(convert(&s, 700, 3, GMEM_STATE_SHARED));
	settle(&s);
	compare(&s);
	assert_true(s.far.has[512]);

	/* across pages of the file */
	assert_ok(convert_served(&s, 1023, 2, GMEM_STATE_PRIVATE));
	assert_false(s.far.has[512] || s.far.has[1535]);
	settle(&s);
	compare(&s);
	scene_end(&s);
}

/* far_end checks that each message is in whole pages of the file. */
static void conversions_in_any_pages_end_as_the_states_say(void **state)
{
	static const uint64_t sizes[] = { PAGE, 4 * PAGE, HUGE };
	uint32_t seed = 7;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		struct scene s;

		scene_begin_given(&s, sizes[i], (struct gmem_peer_opts){ .flags = 0 });
		for (int round = 0; round < 60; round++) {
			uint64_t page, pages;

			seed = seed * 1664525 + 1013904223;
			page = (seed >> 8) % (SIZE / PAGE);
			pages = 1 + (seed >> 3) % (round % 2 ? 9 : SIZE / PAGE - page);
			pages = pages > SIZE / PAGE - page ? SIZE / PAGE - page : pages;
			assert_ok(convert_served(&s, page, pages,
						 seed >> 31 ? GMEM_STATE_PRIVATE : GMEM_STATE_SHARED));
			for (uint64_t n = 0; n < SIZE / PAGE; n++)
				assert_true(!s.far.has[n] || is_shared(&s, n));
			if (round % 3)
				continue;
			settle(&s);
			compare(&s);
		}
		scene_end(&s);
	}
}

static void memory_in_parts_of_pages_of_its_file_is_refused(void **state)
{
	static const struct {
		uint64_t gpa, offset, size;
	} cases[] = {
		{ 0, PAGE, HUGE }, { 0, 0, HUGE + PAGE }, { 0, HUGE / 2, HUGE }, { PAGE, 0, HUGE },
	};
	const struct gmem_export_range range = { .gpa = HUGE, .size = HUGE / 2,
						 .rights = GMEM_RIGHT_READ | GMEM_RIGHT_WRITE };
	struct scene s;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		scene_begin(&s, HUGE);
		assert_ok(try_region(&s, cases[i].gpa, cases[i].offset, cases[i].size, 0));
		assert_int_equal(try_peer(&s, (struct gmem_peer_opts){ .flags = 0 }), -EOPNOTSUPP);
		assert_non_null(strstr(gmem_last_error(), "are not whole pages of that, which have 0x200000"));
		assert_null(s.peer);

		/* added later, it is left out, and the rest is given */
		assert_ok(gmem_region_remove(s.regions[0]));
		assert_ok(try_peer(&s, (struct gmem_peer_opts){ .flags = 0 }));
		assert_ok(try_region(&s, cases[i].gpa, cases[i].offset, cases[i].size, 0));
		assert_ok(try_region(&s, 4 * HUGE, 4 * HUGE, HUGE, 1));
		settle(&s);
		assert_int_equal(s.far.counts[GMEM_WIRE_MAP], 1);
		scene_end(&s);
	}

	scene_begin(&s, HUGE);
	assert_ok(try_region(&s, 0, 0, SIZE, 0));
	assert_int_equal(try_peer(&s, (struct gmem_peer_opts){ .ranges = &range, .range_count = 1 }),
			 -EOPNOTSUPP);
	assert_non_null(strstr(gmem_last_error(), "0x100000 bytes at gpa 0x200000"));
	scene_end(&s);
}

/* What lies between two pages takes many times what one dispatch may. */
static void large_memory_is_looked_through_in_pieces(struct scene *s, uint64_t pages)
{
	unsigned int dispatches_without_message = 0;

	assert_ok(convert_served(s, 0, pages, GMEM_STATE_PRIVATE));
	assert_int_equal(s->far.counts[GMEM_WIRE_REVOKE], 2);
	settle(s);
	assert_ok(convert(s, 0, 1, GMEM_STATE_SHARED));
	assert_ok(convert(s, pages - 1, 1, GMEM_STATE_SHARED));
	while (gmem_peer_status(s->peer) == 0) {
		struct pollfd fd = { .fd = gmem_export_fd(s->exporter), .events = POLLIN };

		assert_int_equal(poll(&fd, 1, 0), 1);
		assert_ok(gmem_export_dispatch(s->exporter));
		dispatches_without_message += serve(&s->far) == 0;
	}
	assert_int_equal(s->far.counts[GMEM_WIRE_GRANT], 4);
	assert_true(dispatches_without_message > 1);
}

/* 4 TiB are one message, whatever page changes in them, and no bits for the rest. */
static void large_memory_is_one_message(void **state)
{
	const uint64_t size = (uint64_t)4 << 40, middle = size / 2 / PAGE;
	struct scene s;
	int fd, err;
	char *hva;

	(void)state;
	scene_begin(&s, PAGE);
	fd = unit_memfd(size, UNIT_SEALED);
	hva = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
	if (hva == MAP_FAILED)
		goto end;	/* as under a sanitizer */
	assert_ok(gmem_export_add_memory(s.exporter, hva, size, fd, 0));
	GMEM_OPTS(gmem_region_opts, opts, .plan = s.plan, .flags = GMEM_REGION_HVA, .hva = hva);
	err = gmem_region_add(s.unit.vm, 0, size, &opts, &s.regions[0]);
	if (err == -ENOMEM)
		goto unmap;
	assert_ok(err);
	assert_ok(try_peer(&s, (struct gmem_peer_opts){ .flags = 0 }));
	settle(&s);
	assert_int_equal(s.far.counts[GMEM_WIRE_MAP], 1);
	assert_int_equal(s.far.counts[GMEM_WIRE_GRANT], 1);

	assert_ok(convert_served(&s, middle, 1, GMEM_STATE_PRIVATE));
	assert_ok(convert(&s, middle, 1, GMEM_STATE_SHARED));
	settle(&s);
	assert_int_equal(s.far.counts[GMEM_WIRE_REVOKE], 1);
	assert_int_equal(s.far.counts[GMEM_WIRE_GRANT], 2);
	large_memory_is_looked_through_in_pieces(&s, size / PAGE);
	assert_ok(gmem_export_remove_memory(s.exporter, hva));
	gmem_peer_remove(s.peer);
	assert_ok(gmem_region_remove(s.regions[0]));
unmap:
	munmap(hva, size);
end:
	close(fd);
	scene_end(&s);
}

/* ---- refusals of what is given ---- */

static int refuse_some(struct far *far, const struct gmem_message *message)
{
	if (message->type != far->refused_type || !far->refusals ||
	    (far->refused_gpa && message->gpa != far->refused_gpa))
		return 0;
	far->refusals--;
	return far->refusal;
}

static void what_a_peer_has_no_room_for_is_offered_again_by_a_timer(void **state)
{
	static const int errors[] = { EMFILE, ENFILE, ENOMEM, EAGAIN };
	static const uint32_t types[] = { GMEM_WIRE_MAP, GMEM_WIRE_GRANT };
	struct scene s;
	uint64_t start;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(errors) * ARRAY_SIZE(types); i++) {
		scene_begin_given(&s, PAGE, (struct gmem_peer_opts){ .flags = 0 });
		s.far.decide = refuse_some;
		s.far.refusals = i == 0 ? 3 : 1;
		s.far.refusal = errors[i / 2];
		s.far.refused_type = types[i % 2];
		start = gmem_sys_now();
		run_until_quiet(&s, 20);
		assert_true(gmem_peer_status(s.peer) == 0 || !IS_EARLY(start));
		assert_true(s.far.counts[GMEM_WIRE_READY] == 0 || !IS_EARLY(start));
		settle(&s);
		compare(&s);
		/* 100 ms, 200, 400 */
		assert_true(gmem_sys_now() - start >= (i == 0 ? 700 : 100) * GMEM_NANOSECONDS_PER_MS);
		assert_int_equal(s.far.counts[types[i % 2]], i == 0 ? 4 : 2);
		/* and then there is nothing left that wakes anybody */
		assert_false(run_once(&s, 250));
		scene_end(&s);
	}
}

static void count_lines(void *data, int err, const char *sentence)
{
	(void)err;
	*(unsigned int *)data += strstr(sentence, "no other process can map") != NULL;
}

/* A region between two that are refused for now, which cannot be given at all */
static void what_cannot_be_given_is_logged_once(void **state)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = 0);
	struct gmem_region *region;
	unsigned int lines = 0;
	struct scene s;

	(void)state;
	scene_begin(&s, PAGE);
	s.unit.vm->log = count_lines;
	s.unit.vm->log_data = &lines;
	assert_ok(try_peer(&s, (struct gmem_peer_opts){ .flags = 0 }));
	settle(&s);
	s.far.decide = refuse_some;
	s.far.refusals = 6;
	s.far.refusal = ENOMEM;
	s.far.refused_type = GMEM_WIRE_MAP;
	opts.plan = s.plan;
	assert_ok(try_region(&s, 0, 0, PAGE, 0));
	assert_ok(gmem_region_add(s.unit.vm, 4 * PAGE, PAGE, &opts, &region));
	assert_ok(try_region(&s, 8 * PAGE, PAGE, PAGE, 1));
	settle(&s);
	assert_int_equal(s.far.counts[GMEM_WIRE_MAP], 8);
	assert_int_equal(lines, 1);
	scene_end(&s);
}

static void any_other_refusal_ends_a_peer(void **state)
{
	static const struct {
		uint32_t type;
		int refusal;
	} cases[] = {
		{ GMEM_WIRE_HELLO, EAGAIN }, { GMEM_WIRE_READY, ENOMEM }, { GMEM_WIRE_MAP, ENOSPC },
		{ GMEM_WIRE_MAP, EPERM }, { GMEM_WIRE_GRANT, EINVAL }, { GMEM_WIRE_GRANT, ENODEV },
	};
	struct scene s;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		scene_begin_given(&s, PAGE, (struct gmem_peer_opts){ .flags = 0 });
		s.far.decide = refuse_some;
		s.far.refusals = 1;
		s.far.refusal = cases[i].refusal;
		s.far.refused_type = cases[i].type;
		run_until_quiet(&s, 20);
		assert_refused(-cases[i].refusal, gmem_wire_name(cases[i].type), gmem_peer_status(s.peer));
		assert_refused(-cases[i].refusal, "refused the message", gmem_peer_status(s.peer));
		scene_end(&s);
	}
}

/* Two regions; the second is refused for ever. The first comes, changes and goes. */
static void while_memory_is_refused_all_else_goes_on(void **state)
{
	struct scene s;

	(void)state;
	scene_begin(&s, PAGE);
	s.far.decide = refuse_some;
	s.far.refusals = UINT32_MAX;
	s.far.refusal = EMFILE;
	s.far.refused_type = GMEM_WIRE_MAP;
	s.far.refused_gpa = 2 * SIZE;
	assert_ok(try_region(&s, 2 * SIZE, SIZE, SIZE, 1));
	assert_ok(try_region(&s, 0, 0, SIZE, 0));
	assert_ok(try_peer(&s, (struct gmem_peer_opts){ .flags = 0 }));
	run_until_quiet(&s, 20);
	compare(&s);
	assert_true(s.far.has[0]);
	assert_ok(convert_served(&s, 5, 7, GMEM_STATE_PRIVATE));
	assert_false(s.far.has[5]);
	assert_ok(convert(&s, 5, 7, GMEM_STATE_SHARED));
	run_until_quiet(&s, 20);
	compare(&s);
	start_serving(&s);
	assert_ok(gmem_region_remove(s.regions[0]));
	assert_ok(gmem_region_remove(s.regions[1]));
	stop_serving(&s);
	assert_int_equal(s.far.counts[GMEM_WIRE_UNMAP], 1);
	settle(&s);
	scene_end(&s);
}

/* A peer that refuses everything is asked for little, and not for each region again and again. */
static void a_peer_that_refuses_everything_is_asked_seldom(void **state)
{
	uint64_t start, waits;
	struct scene s;

	(void)state;
	scene_begin(&s, PAGE);
	for (uint64_t i = 0; i < 100; i++)
		assert_ok(try_region(&s, 2 * i * PAGE, 2 * i * PAGE, PAGE, 0));
	assert_ok(try_peer(&s, (struct gmem_peer_opts){ .flags = 0 }));
	s.far.decide = refuse_some;
	s.far.refusals = UINT32_MAX;
	s.far.refusal = ENOMEM;
	s.far.refused_type = GMEM_WIRE_MAP;
	start = gmem_sys_now();
	run_until_quiet(&s, 50);
	waits = (gmem_sys_now() - start) / (100 * GMEM_NANOSECONDS_PER_MS);
	assert_in_range(s.far.counts[GMEM_WIRE_MAP], 1, 16 * (1 + waits));
	assert_int_equal(gmem_peer_status(s.peer), 0);
	s.far.refusals = 0;
	settle(&s);
	for (uint64_t i = 0; i < 100; i++)
		assert_true(s.far.has[2 * i]);
	scene_end(&s);
}

/* ---- refusals of the kernel ---- */

static void what_the_kernel_does_not_let_through_is_sent_later(void **state)
{
	static const struct {
		int err;
		unsigned int skip;	/* messages: hello, map, grant */
	} cases[] = {
		{ -ETOOMANYREFS, 1 }, { -ENOBUFS, 0 }, { -ENOMEM, 1 }, { -ENOBUFS, 2 },
	};
	struct scene s;
	uint64_t start;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		scene_begin_given(&s, PAGE, (struct gmem_peer_opts){ .flags = 0 });
		fake_fail_kind(FAKE_SEND, 2 * cases[i].skip, 1, cases[i].err);
		start = gmem_sys_now();
		run_until_quiet(&s, 20);
		assert_true(gmem_peer_status(s.peer) == 0 || !IS_EARLY(start));
		assert_true(fake_fail_struck());
		settle(&s);
		compare(&s);
		assert_false(run_once(&s, 250));
		scene_end(&s);
	}
}

/* Files that cannot be sent now do not keep other messages from being sent. */
static void memory_is_taken_back_while_no_file_can_be_sent(void **state)
{
	struct scene s;
	uint64_t start;

	(void)state;
	scene_begin_given(&s, PAGE, (struct gmem_peer_opts){ .flags = 0 });
	settle(&s);
	assert_ok(try_region(&s, 2 * SIZE, SIZE, SIZE, 1));
	fake_fail_kind(FAKE_SEND, 0, 1, -ETOOMANYREFS);
	s.peer->retry_ms = 2000;
	start = gmem_sys_now();
	run_until_quiet(&s, 20);
	assert_true(s.far.counts[GMEM_WIRE_MAP] == 1 || !IS_EARLY(start));
	assert_true(fake_fail_struck());
	assert_ok(convert_served(&s, 5, 7, GMEM_STATE_PRIVATE));
	assert_ok(convert(&s, 5, 7, GMEM_STATE_SHARED));
	settle(&s);
	compare(&s);
	assert_int_equal(s.far.counts[GMEM_WIRE_MAP], 2);
	scene_end(&s);
}

static void a_block_without_memory_to_record_it_is_sent_later(void **state)
{
	struct scene s;
	uint64_t start;

	(void)state;
	for (unsigned int n = 1; n <= 2; n++) {
		scene_begin_given(&s, PAGE, (struct gmem_peer_opts){ .flags = 0 });
		unit_fail_alloc(n);
		start = gmem_sys_now();
		run_until_quiet(&s, 20);
		assert_true(s.far.counts[GMEM_WIRE_MAP] == 0 || !IS_EARLY(start));
		assert_true(gmem_peer_status(s.peer) == 0 || !IS_EARLY(start));
		assert_true(unit_alloc_struck());
		settle(&s);
		compare(&s);
		scene_end(&s);
	}
}

/* The fd is ready when the socket has room, and not any more when nothing is left to send. */
static void room_in_a_socket_is_waited_for_as_long_as_it_is_wanted(void **state)
{
	struct scene s;

	(void)state;
	scene_begin_given(&s, PAGE, (struct gmem_peer_opts){ .wait_ms = 1 });
	fake_fail_kind(FAKE_SEND, 2, 1, -EAGAIN);
	settle(&s);
	assert_true(fake_fail_struck());
	assert_false(run_once(&s, 20));

	/* no room for as long as a conversion waits */
	fake_fail_kind(FAKE_SEND, 0, 1000, -EAGAIN);
	assert_int_equal(convert(&s, 5, 7, GMEM_STATE_PRIVATE), -ETIMEDOUT);
	assert_true(fake_fail_struck());
	run_once(&s, 0);
	assert_false(run_once(&s, 20));
	assert_int_equal(gmem_peer_status(s.peer), 1);
	scene_end(&s);
}

/* ---- answers count for those who wait for them ---- */

static int keep_revokes(struct far *far, const struct gmem_message *message)
{
	(void)far;
	return message->type == GMEM_WIRE_REVOKE ? -1 : 0;
}

static void a_late_refusal_fails_no_other_conversion(void **state)
{
	struct scene s;

	(void)state;
	scene_begin_given(&s, PAGE, (struct gmem_peer_opts){ .wait_ms = 50 });
	settle(&s);
	s.far.decide = keep_revokes;
	assert_int_equal(convert_served(&s, 0, 1, GMEM_STATE_PRIVATE), -ETIMEDOUT);
	assert_true(is_shared(&s, 0));
	serve(&s.far);
	s.far.decide = NULL;
	s.peer->wait_ms = PATIENT;
	answer_late(&s.far, EAGAIN);
	run_until_quiet(&s, 20);
	assert_int_equal(gmem_peer_status(s.peer), 1);
	/* nothing was given back, so nothing is given again */
	compare(&s);
	assert_int_equal(s.far.counts[GMEM_WIRE_GRANT], 1);

	assert_ok(convert_served(&s, 8, 1, GMEM_STATE_PRIVATE));
	assert_ok(convert_served(&s, 0, 1, GMEM_STATE_PRIVATE));
	settle(&s);
	compare(&s);
	scene_end(&s);
}

/* The same, but the next conversion, of the very page, waits already when the refusal comes. */
static void a_refusal_is_not_for_the_next_recall_of_the_same_page(void **state)
{
	struct scene s;

	(void)state;
	scene_begin_given(&s, PAGE, (struct gmem_peer_opts){ .wait_ms = 50 });
	settle(&s);
	s.far.decide = keep_revokes;
	assert_int_equal(convert_served(&s, 0, 1, GMEM_STATE_PRIVATE), -ETIMEDOUT);
	serve(&s.far);
	s.far.decide = NULL;
	s.peer->wait_ms = PATIENT;
	answer_late(&s.far, EBUSY);
	/* not dispatched: the conversion reads it */
	assert_ok(convert_served(&s, 0, 1, GMEM_STATE_PRIVATE));
	assert_false(is_shared(&s, 0));
	assert_false(s.far.has[0]);
	scene_end(&s);
}

static void what_is_given_back_too_late_is_given_again(void **state)
{
	struct scene s;

	(void)state;
	scene_begin_given(&s, PAGE, (struct gmem_peer_opts){ .wait_ms = 50 });
	settle(&s);
	s.far.decide = keep_revokes;
	assert_int_equal(convert_served(&s, 3, 2, GMEM_STATE_PRIVATE), -ETIMEDOUT);
	serve(&s.far);
	s.far.decide = NULL;
	s.peer->wait_ms = PATIENT;
	answer_late(&s.far, 0);
	run_until_quiet(&s, 20);
	compare(&s);
	assert_true(s.far.has[3]);
	assert_int_equal(s.far.counts[GMEM_WIRE_GRANT], 2);
	scene_end(&s);
}

/* Pages that a thread of their own makes private; its result is that of the conversion. */
struct conversion {
	struct scene *s;
	uint64_t page, pages;
	pthread_t thread;
};

static void *make_private(void *data)
{
	struct conversion *c = data;

	return (void *)(intptr_t)convert(c->s, c->page, c->pages, GMEM_STATE_PRIVATE);
}

static void start_conversion(struct conversion *c, struct scene *s)
{
	c->s = s;
	assert_int_equal(pthread_create(&c->thread, NULL, make_private, c), 0);
}

static int end_conversion(struct conversion *c)
{
	void *result;

	assert_int_equal(pthread_join(c->thread, &result), 0);
	return (int)(intptr_t)result;
}

/*
 * Conversions wait for one peer, which refuses one of them. Any of the threads may ask for the
 * page and read the refusal, even before the one it is for has looked at all.
 */
static void a_refusal_fails_the_conversion_it_answers_alone(void **state)
{
	struct conversion all[] = {
		{ .page = 2, .pages = 1 }, { .page = 4, .pages = 1 },
		{ .page = 6, .pages = 1 }, { .page = 9, .pages = 1 },
	};
	struct scene s;

	(void)state;
	scene_begin_given(&s, PAGE, (struct gmem_peer_opts){ .flags = 0 });
	settle(&s);
	s.far.decide = refuse_some;
	s.far.refused_type = GMEM_WIRE_REVOKE;
	s.far.refusal = EBUSY;
	for (unsigned int round = 0; round < 50; round++) {
		const uint64_t refused = all[round % ARRAY_SIZE(all)].page;

		s.far.refused_gpa = refused * PAGE;
		s.far.refusals = 1;
		start_serving(&s);
		for (size_t i = 0; i < ARRAY_SIZE(all); i++)
			start_conversion(&all[i], &s);
		for (size_t i = 0; i < ARRAY_SIZE(all); i++)
			assert_int_equal(end_conversion(&all[i]), all[i].page == refused ? -EBUSY : 0);
		stop_serving(&s);
		settle(&s);
		compare(&s);
		assert_ok(convert(&s, 2, 8, GMEM_STATE_SHARED));
		settle(&s);
		compare(&s);
	}
	scene_end(&s);
}

struct told {
	struct scene *s;
	unsigned int undone;
};

static void count_undone(void *data, uint64_t gpa, uint64_t size)
{
	struct told *told = data;

	(void)size;
	told->undone++;
	assert_true(gpa >= 8 * PAGE);
}

static int agree(void *data, uint64_t gpa, uint64_t size)
{
	(void)data;
	(void)gpa;
	(void)size;
	return 0;
}

/* GMEM_CONVERT_ALL tells the kernel of everything, but what was private did not change. */
static void a_refused_conversion_of_everything_gives_nobody_private_memory(void **state)
{
	GMEM_OPTS(gmem_convert_opts, all, .flags = GMEM_CONVERT_ALL);
	struct told told = { .s = NULL };
	GMEM_OPTS(gmem_listener_opts, opts, .data = &told, .before_private = agree,
		  .undo_private = count_undone, .after_shared = count_undone);
	struct gmem_listener *listener;
	struct scene s;

	(void)state;
	for (int refuse_by_kernel = 0; refuse_by_kernel <= 1; refuse_by_kernel++) {
		scene_begin(&s, PAGE);
		assert_ok(try_region(&s, 0, 0, SIZE, 0));
		assert_ok(convert(&s, 0, 8, GMEM_STATE_PRIVATE));
		assert_ok(try_peer(&s, (struct gmem_peer_opts){ .flags = 0 }));
		assert_ok(gmem_listener_new(s.unit.vm, &opts, &listener));
		settle(&s);
		told.undone = 0;
		if (refuse_by_kernel) {
			fake_fail_next(FAKE_SET_ATTRIBUTES, -ENOMEM);
		} else {
			s.far.decide = refuse_some;
			s.far.refused_type = GMEM_WIRE_REVOKE;
			s.far.refusals = 1;
			s.far.refusal = ENOMEM;
		}
		start_serving(&s);
		assert_int_equal(gmem_vm_convert(s.unit.vm, 0, 16 * PAGE, GMEM_STATE_PRIVATE, &all, NULL),
				 -ENOMEM);
		stop_serving(&s);
		settle(&s);
		compare(&s);
		assert_false(is_shared(&s, 7));
		assert_false(s.far.has[7]);
		assert_true(s.far.has[8]);
		assert_int_equal(told.undone, refuse_by_kernel);
		gmem_listener_free(listener);
		scene_end(&s);
	}
}

/* -ENOTRECOVERABLE, for one, says that the kernel lost something. */
static void a_peer_does_not_choose_the_errno_of_a_call(void **state)
{
	static const struct { int refusal, err; } cases[] = {
		{ ENOMEM, -ENOMEM }, { EAGAIN, -EAGAIN }, { EBUSY, -EBUSY }, { ENOTRECOVERABLE, -EREMOTEIO },
		{ EDEADLK, -EREMOTEIO }, { EINVAL, -EREMOTEIO }, { 4095, -EREMOTEIO },
	};
	struct scene s;

	(void)state;
	scene_begin_given(&s, PAGE, (struct gmem_peer_opts){ .flags = 0 });
	settle(&s);
	s.far.decide = refuse_some;
	s.far.refused_type = GMEM_WIRE_REVOKE;
	s.far.refused_gpa = 9 * PAGE;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		s.far.refusal = cases[i].refusal;
		s.far.refusals = 1;
		assert_int_equal(convert_served(&s, 9, 1, GMEM_STATE_PRIVATE), cases[i].err);
		settle(&s);
		compare(&s);
	}
	scene_end(&s);
}

/* Calls that wait for less time than the peer has do not let it keep memory for ever. */
static void an_overdue_answer_is_counted_from_its_message_on(void **state)
{
	GMEM_OPTS(gmem_convert_opts, opts, .wait_ms = 1);
	uint64_t start;
	struct scene s;
	int err;

	(void)state;
	scene_begin_given(&s, PAGE, (struct gmem_peer_opts){ .flags = GMEM_PEER_CUT_OFF, .wait_ms = 300 });
	settle(&s);
	s.far.decide = keep_revokes;
	start = gmem_sys_now();
	while ((err = gmem_vm_convert(s.unit.vm, 9 * PAGE, PAGE, GMEM_STATE_PRIVATE, &opts, NULL)) ==
	       -ETIMEDOUT)
		serve(&s.far);
	assert_int_equal(err, 0);
	assert_true(gmem_sys_now() - start >= 300 * GMEM_NANOSECONDS_PER_MS);
	assert_int_equal(gmem_peer_status(s.peer), -ETIMEDOUT);
	scene_end(&s);
}

/* The peer's time runs, so what the kernel did not send is tried again sooner than otherwise. */
static void a_call_that_waits_tries_again_at_once(void **state)
{
	struct scene s;

	(void)state;
	scene_begin_given(&s, PAGE, (struct gmem_peer_opts){ .flags = 0 });
	settle(&s);
	s.peer->retry_ms = 2 * PATIENT;
	fake_fail_kind(FAKE_SEND, 0, 3, -ENOBUFS);
	assert_ok(convert_served(&s, 9, 1, GMEM_STATE_PRIVATE));
	compare(&s);
	scene_end(&s);
}

static size_t count_recalls(struct scene *s)
{
	const struct gmem_recall *recall;
	size_t count = 0;

	gmem_lock_take(&s->exporter->lock);
	for (recall = s->exporter->recalls; recall; recall = recall->next)
		count++;
	gmem_lock_drop(&s->exporter->lock);
	return count;
}

static bool has_work(struct scene *s)
{
	struct pollfd fd = { .fd = gmem_export_fd(s->exporter), .events = POLLIN };

	return poll(&fd, 1, 0) == 1;
}

/* They wait for a peer that is silent; another one, which gave back at once, is no work. */
static void conversions_that_wait_are_no_work_for_others(void **state)
{
	struct far quick = { .page_size = PAGE }, silent;
	struct gmem_peer *first;
	struct conversion others[] = { { .page = 9, .pages = 1 }, { .page = 4, .pages = 4 } };
	struct scene s;

	(void)state;
	scene_begin_given(&s, PAGE, (struct gmem_peer_opts){ .flags = 0 });
	settle(&s);
	silent = s.far;
	silent.decide = keep_revokes;
	first = s.peer;
	assert_ok(try_peer(&s, (struct gmem_peer_opts){ .flags = 0 }));
	quick.sock = s.far.sock;
	s.far = quick;
	settle(&s);

	for (int i = 0; i < 2; i++)
		start_conversion(&others[i], &s);
	while (s.far.has[4] || s.far.has[9] || count_recalls(&s) < 2) {
		serve(&s.far);
		serve(&silent);
		usleep(1000);
	}
	/* in a few calls all is done that can be done */
	for (int i = 0; i < 20 && has_work(&s); i++)
		assert_ok(gmem_export_dispatch(s.exporter));
	assert_false(has_work(&s));

	/* and who comes now gets all it should have */
	quick = s.far;
	memset(&s.far, 0, sizeof(s.far));
	s.far.page_size = PAGE;
	assert_ok(try_peer(&s, (struct gmem_peer_opts){ .flags = 0 }));
	settle(&s);
	assert_true(s.far.has[3] && !s.far.has[4] && !s.far.has[9] && s.far.has[10]);

	silent.decide = NULL;
	answer_late(&silent, 0);
	while (count_recalls(&s)) {
		serve(&silent);
		usleep(1000);
	}
	for (int i = 0; i < 2; i++)
		assert_ok(end_conversion(&others[i]));
	gmem_peer_remove(first);
	close(silent.sock);
	close(quick.sock);
	scene_end(&s);
}

static void a_peer_that_is_removed_is_not_waited_for(void **state)
{
	struct conversion other = { .page = 9, .pages = 1 };
	struct scene s;

	(void)state;
	scene_begin_given(&s, PAGE, (struct gmem_peer_opts){ .flags = 0 });
	settle(&s);
	start_conversion(&other, &s);
	while (!serve(&s.far))
		s.far.decide = keep_revokes;
	gmem_peer_remove(s.peer);
	assert_ok(end_conversion(&other));
	scene_end(&s);
}

/* ---- everything at once ---- */

#define FARS	3
#define LANES	4	/* regions, of SIZE / LANES bytes each */
#define LANE	(SIZE / LANES)

/* Three far ends that refuse, delay and fail as they like */
struct crowd {
	struct scene s;
	struct far fars[FARS];
	struct gmem_peer *peers[FARS];
	struct gmem_region *lanes[LANES];
	pthread_t thread;
	int stop;
	uint32_t seed, second_seed;
};

static uint32_t chance(uint32_t *seed, uint32_t below)
{
	*seed = *seed * 1664525 + 1013904223;
	return (*seed >> 8) % below;
}

static int decide_anything(struct far *far, const struct gmem_message *message)
{
	static const int shortages[] = { EMFILE, ENFILE, ENOMEM, EAGAIN };
	bool is_taken = message->type == GMEM_WIRE_REVOKE || message->type == GMEM_WIRE_UNMAP;
	bool is_given = message->type == GMEM_WIRE_MAP || message->type == GMEM_WIRE_GRANT;

	if ((is_given || is_taken) && far->refusals && chance(&far->seed, 8) == 0)
		return -1;
	if (is_given && far->refusals && chance(&far->seed, 4) == 0)
		return shortages[chance(&far->seed, 4)];
	if (is_taken && far->refusals && chance(&far->seed, 6) == 0)
		return EBUSY;
	return 0;
}

static void *serve_crowd(void *data)
{
	struct crowd *c = data;

	while (!__atomic_load_n(&c->stop, __ATOMIC_ACQUIRE)) {
		for (int i = 0; i < FARS; i++)
			serve(&c->fars[i]);
		usleep(100);
	}
	return NULL;
}

static void lane_comes_or_goes(struct crowd *c, uint32_t n)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = c->s.plan, .flags = GMEM_REGION_HVA,
		  .hva = c->s.hva + n * LANE);

	if (!c->lanes[n])
		assert_ok(gmem_region_add(c->s.unit.vm, n * LANE, LANE, &opts, &c->lanes[n]));
	else if (gmem_region_remove(c->lanes[n]) == 0)
		c->lanes[n] = NULL;
}

static void convert_something(struct crowd *c, uint32_t *seed)
{
	uint64_t page = chance(seed, SIZE / PAGE), pages = 1 + chance(seed, LANE / PAGE);

	pages = page + pages > SIZE / PAGE ? SIZE / PAGE - page : pages;
	/* Where a lane is missing or a far end refuses, nothing changes. */
	convert(&c->s, page, pages, chance(seed, 2) ? GMEM_STATE_PRIVATE : GMEM_STATE_SHARED);
}

/* What it is answered, the other thread may read, and the other way round. */
static void *convert_beside(void *data)
{
	struct crowd *c = data;

	for (int n = 0; n < 8; n++)
		convert_something(c, &c->second_seed);
	return NULL;
}

static bool is_anybody_without(const struct crowd *c)
{
	for (int i = 0; i < FARS; i++)
		if (gmem_peer_status(c->peers[i]) == 0)
			return true;
	return false;
}

/* All late answers come, nobody refuses any more, and the fd says what there is to do. */
static void calm_down(struct crowd *c)
{
	struct pollfd fd = { .fd = gmem_export_fd(c->s.exporter), .events = POLLIN };
	bool busy = true;

	for (int i = 0; i < FARS; i++) {
		c->fars[i].refusals = 0;
		serve(&c->fars[i]);
		answer_late(&c->fars[i], chance(&c->seed, 2) ? EAGAIN : 0);
	}
	while (busy || is_anybody_without(c)) {
		busy = poll(&fd, 1, busy ? 0 : PATIENT) == 1;
		if (busy)
			assert_ok(gmem_export_dispatch(c->s.exporter));
		for (int i = 0; i < FARS; i++)
			busy |= serve(&c->fars[i]) > 0;
	}
}

static void compare_crowd(struct crowd *c)
{
	const uint64_t pages = c->s.far.page_size / PAGE;

	for (int i = 0; i < FARS; i++) {
		assert_int_equal(gmem_peer_status(c->peers[i]), 1);
		for (uint64_t page = 0; page < SIZE / PAGE; page += pages) {
			bool shared = c->lanes[page * PAGE / LANE] != NULL;

			for (uint64_t n = page; n < page + pages && shared; n++)
				shared = is_shared(&c->s, n);
			for (uint64_t n = page; n < page + pages; n++)
				if (c->fars[i].has[n] != shared)
					fail_msg("peer %d, page %" PRIu64 ": %s", i, n,
						 shared ? "not given" : "given");
		}
	}
}

static void crowd_begin(struct crowd *c, uint64_t page_size, uint32_t seed)
{
	memset(c, 0, sizeof(*c));
	scene_begin(&c->s, page_size);
	c->seed = seed;
	c->second_seed = seed + FARS;
	for (uint32_t i = 0; i < LANES; i++)
		lane_comes_or_goes(c, i);
	for (uint32_t i = 0; i < FARS; i++) {
		assert_ok(try_peer(&c->s, (struct gmem_peer_opts){ .wait_ms = 4 }));
		c->peers[i] = c->s.peer;
		c->fars[i].sock = c->s.far.sock;
		c->fars[i].page_size = page_size;
		c->fars[i].decide = decide_anything;
		c->fars[i].seed = seed + i;
	}
	c->s.far.sock = -1;
}

static void crowd_end(struct crowd *c)
{
	for (int i = 0; i < FARS; i++)
		close(c->fars[i].sock);
	scene_end(&c->s);
}

static void peers_end_with_what_is_shared_whatever_they_answered(void **state)
{
	pthread_t beside;
	struct crowd c;

	(void)state;
	for (uint32_t i = 0; i < 6; i++) {
		crowd_begin(&c, i % 2 ? HUGE / 2 : PAGE, i + 1);
		for (int round = 0; round < 12; round++) {
			for (int n = 0; n < FARS; n++) {
				c.fars[n].refusals = 1;
				/* not to wait for long */
				c.peers[n]->retry_ms = 1;
			}
			c.stop = 0;
			assert_int_equal(pthread_create(&c.thread, NULL, serve_crowd, &c), 0);
			assert_int_equal(pthread_create(&beside, NULL, convert_beside, &c), 0);
			for (int n = 0; n < 8; n++) {
				if (chance(&c.seed, 4) == 0)
					lane_comes_or_goes(&c, chance(&c.seed, LANES));
				else
					convert_something(&c, &c.seed);
				assert_ok(gmem_export_dispatch(c.s.exporter));
			}
			assert_int_equal(pthread_join(beside, NULL), 0);
			__atomic_store_n(&c.stop, 1, __ATOMIC_RELEASE);
			assert_int_equal(pthread_join(c.thread, NULL), 0);
			calm_down(&c);
			compare_crowd(&c);
		}
		crowd_end(&c);
	}
}

static void numbers_of_messages_begin_again(void **state)
{
	struct scene s;

	(void)state;
	scene_begin_given(&s, PAGE, (struct gmem_peer_opts){ .flags = 0 });
	settle(&s);
	s.peer->sequence = UINT32_MAX - 3;
	for (int i = 0; i < 4; i++) {
		assert_ok(convert_served(&s, 3, 2, GMEM_STATE_PRIVATE));
		compare(&s);
		assert_ok(convert(&s, 3, 2, GMEM_STATE_SHARED));
		settle(&s);
		compare(&s);
	}
	assert_true(s.peer->sequence < 100);
	scene_end(&s);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(a_page_of_the_file_is_taken_and_given_as_a_whole),
	cmocka_unit_test(conversions_in_any_pages_end_as_the_states_say),
	cmocka_unit_test(memory_in_parts_of_pages_of_its_file_is_refused),
	cmocka_unit_test(large_memory_is_one_message),
	cmocka_unit_test(what_a_peer_has_no_room_for_is_offered_again_by_a_timer),
	cmocka_unit_test(what_cannot_be_given_is_logged_once),
	cmocka_unit_test(any_other_refusal_ends_a_peer),
	cmocka_unit_test(while_memory_is_refused_all_else_goes_on),
	cmocka_unit_test(a_peer_that_refuses_everything_is_asked_seldom),
	cmocka_unit_test(what_the_kernel_does_not_let_through_is_sent_later),
	cmocka_unit_test(memory_is_taken_back_while_no_file_can_be_sent),
	cmocka_unit_test(a_block_without_memory_to_record_it_is_sent_later),
	cmocka_unit_test(room_in_a_socket_is_waited_for_as_long_as_it_is_wanted),
	cmocka_unit_test(a_late_refusal_fails_no_other_conversion),
	cmocka_unit_test(a_refusal_is_not_for_the_next_recall_of_the_same_page),
	cmocka_unit_test(what_is_given_back_too_late_is_given_again),
	cmocka_unit_test(a_refusal_fails_the_conversion_it_answers_alone),
	cmocka_unit_test(a_refused_conversion_of_everything_gives_nobody_private_memory),
	cmocka_unit_test(a_peer_does_not_choose_the_errno_of_a_call),
	cmocka_unit_test(an_overdue_answer_is_counted_from_its_message_on),
	cmocka_unit_test(a_call_that_waits_tries_again_at_once),
	cmocka_unit_test(conversions_that_wait_are_no_work_for_others),
	cmocka_unit_test(a_peer_that_is_removed_is_not_waited_for),
	cmocka_unit_test(numbers_of_messages_begin_again),
	cmocka_unit_test(peers_end_with_what_is_shared_whatever_they_answered),
};

UNIT_MAIN(tests)
