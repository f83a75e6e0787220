/* SPDX-License-Identifier: MIT */
/*
 * peer_dirty, peer_source and mark_map: what peers write is collected, whether they mark it, do
 * not know how, refuse, lie, or die.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "os/sys.h"
#include "share/peer_state.h"
#include "share/wire.h"
#include "unit.h"
#include "unit_share.h"

#define PAGE	((uint64_t)4096)
#define CHUNK	((uint64_t)2 << 20)
#define GIB	((uint64_t)1 << 30)
#define PATIENT	60000
#define RW	(GMEM_RIGHT_READ | GMEM_RIGHT_WRITE)

/* A VM with a tracker, its export, and at the far end of one socket an import or a test */
struct scene {
	struct unit unit;
	struct gmem_plan *mapped;
	struct gmem_export *exporter;
	struct gmem_peer *peer;
	struct gmem_import *import;
	struct gmem_view *view;
	struct gmem_dirty *dirty;
	struct unit_answerer answerer;
	int sock;			/* the far end's, if it is a test */
	/* what a far end that is a test was given, and has said */
	uint32_t takes;
	struct gmem_message mark;	/* the last of its kind, and its file */
	int mark_fd;
	unsigned int counts[GMEM_WIRE_END_MARK + 1];
	int refusal;			/* status with which it answers the next messages "mark"; -1: not at all */
	uint32_t unanswered;
};

static void scene_begin(struct scene *s)
{
	memset(s, 0, sizeof(*s));
	unit_begin_vm(&s->unit, "6.18");
	s->mapped = unit_plan(&s->unit, GMEM_BACKING_MAPPED);
	assert_ok(gmem_export_new(s->unit.vm, NULL, &s->exporter));
	s->sock = s->mark_fd = -1;
}

static struct gmem_region *add(struct scene *s, uint64_t gpa, uint64_t size, uint64_t flags)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = s->mapped, .flags = flags);
	struct gmem_region *region;

	assert_ok(gmem_region_add(s->unit.vm, gpa, size, &opts, &region));
	return region;
}

static int connect_peer(struct scene *s, struct gmem_peer_opts opts)
{
	int sockets[2];

	opts.size = sizeof(opts);
	opts.wait_ms = PATIENT;
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets), 0);
	assert_ok(gmem_peer_add(s->exporter, sockets[0], &opts, &s->peer));
	close(sockets[0]);
	return sockets[1];
}

static void connect_import(struct scene *s, struct gmem_peer_opts opts)
{
	int sock = connect_peer(s, opts);

	assert_ok(gmem_import_new(sock, NULL, &s->import));
	assert_ok(gmem_import_view_new(s->import, &s->view));
	close(sock);
}

static void exchange(struct scene *s)
{
	unit_exchange(s->exporter, s->peer, s->import);
}

static void track(struct scene *s)
{
	GMEM_OPTS(gmem_dirty_opts, opts, .flags = GMEM_DIRTY_FROM_NOW | GMEM_DIRTY_ALLOW_UNLOGGED);

	assert_ok(gmem_dirty_new(s->unit.vm, &opts, &s->dirty));
}

static void drop_import(struct scene *s)
{
	gmem_view_free(s->view);
	gmem_import_free(s->import);
	s->view = NULL;
	s->import = NULL;
}

static void scene_end(struct scene *s)
{
	drop_import(s);
	gmem_dirty_free(s->dirty);
	gmem_export_free(s->exporter);
	gmem_plan_free(s->mapped);
	if (s->sock >= 0)
		close(s->sock);
	if (s->mark_fd >= 0)
		close(s->mark_fd);
	unit_end(&s->unit);
}

static uint64_t collect(struct scene *s)
{
	GMEM_OPTS(gmem_dirty_info, info, .bytes = 0);

	assert_ok(gmem_dirty_collect(s->dirty, &info));
	return info.bytes;
}

/* Fails unless exactly this range was collected. */
static void check_collects(struct scene *s, uint64_t gpa, uint64_t size)
{
	struct gmem_dirty_range range;

	assert_int_equal(collect(s), size);
	assert_ok(gmem_dirty_next(s->dirty, 0, &range));
	assert_int_equal(range.gpa, gpa);
	assert_int_equal(range.size, size);
}

/* ---- a far end that knows the messages and nothing else ---- */

static void answer(struct scene *s, const struct gmem_message *to, int status)
{
	const struct gmem_message message = {
		.type = GMEM_WIRE_ANSWER, .sequence = to->sequence, .status = (uint32_t)status,
		.rights = to->type == GMEM_WIRE_HELLO ? s->takes : 0,
	};

	assert_ok(gmem_wire_send(s->sock, &message, -1));
}

static void hear(struct scene *s, const struct gmem_message *message, int fd)
{
	int status = 0;

	assert_true(message->type < GMEM_WIRE_ANSWER || s->takes);
	assert_int_equal(fd >= 0, message->type == GMEM_WIRE_MAP || message->type == GMEM_WIRE_MARK);
	s->counts[message->type]++;
	if (message->type == GMEM_WIRE_MARK) {
		if (s->mark_fd >= 0)
			close(s->mark_fd);
		s->mark_fd = dup(fd);
		s->mark = *message;
		status = s->refusal;
	}
	if (fd >= 0)
		gmem_sys_close(fd);
	if (status < 0)
		s->unanswered = message->sequence;
	else
		answer(s, message, status);
}

/* Until neither side has anything to do */
static void settle(struct scene *s)
{
	struct gmem_message message;
	int fd;

	do {
		assert_ok(gmem_export_dispatch(s->exporter));
		while (gmem_wire_receive(s->sock, &message, &fd) == 1)
			hear(s, &message, fd);
		assert_ok(gmem_export_dispatch(s->exporter));
	} while (gmem_peer_status(s->peer) == 0 && !s->unanswered);
}

static void connect_test(struct scene *s, struct gmem_peer_opts opts, uint32_t takes)
{
	s->takes = takes;
	s->sock = connect_peer(s, opts);
	settle(s);
}

static uint8_t *map_marks(struct scene *s)
{
	uint8_t *bytes = mmap(NULL, s->mark.file_size, PROT_READ | PROT_WRITE, MAP_SHARED, s->mark_fd, 0);

	assert_ptr_not_equal(bytes, MAP_FAILED);
	return bytes;
}

/* ---- an import marks ---- */

static void what_views_of_an_import_write_is_collected(void **state)
{
	struct scene s;
	uint64_t value = 0;

	(void)state;
	scene_begin(&s);
	add(&s, 0, 2 * CHUNK, 0);
	add(&s, GIB, 4 * PAGE, 0);
	connect_import(&s, (struct gmem_peer_opts){ .flags = 0 });
	exchange(&s);
	track(&s);
	exchange(&s);
	/* it may have written before it began to mark */
	assert_int_equal(collect(&s), 2 * CHUNK + 4 * PAGE);
	assert_int_equal(collect(&s), 0);

	assert_ok(gmem_view_store(s.view, 3 * PAGE, 8, GMEM_RELEASE, 5));
	check_collects(&s, 3 * PAGE, PAGE);
	assert_ok(gmem_view_write(s.view, 5 * PAGE - 1, "ab", 2, NULL));
	check_collects(&s, 4 * PAGE, 2 * PAGE);
	assert_ok(gmem_view_fill(s.view, CHUNK - PAGE, 7, PAGE + 1, NULL));
	check_collects(&s, CHUNK - PAGE, 2 * PAGE);
	assert_int_equal(gmem_view_compare_exchange(s.view, GIB, 8, GMEM_RELAXED, &value, 9), 1);
	check_collects(&s, GIB, PAGE);
	assert_ok(gmem_view_copy(s.view, GIB + PAGE, 3 * PAGE, 2 * PAGE, NULL));
	check_collects(&s, GIB + PAGE, 2 * PAGE);
	assert_ok(gmem_view_mark_dirty(s.view, 9 * PAGE + 1, 1));
	check_collects(&s, 9 * PAGE, PAGE);
	assert_ok(gmem_view_fill(s.view, 0, 7, 2 * CHUNK, NULL));
	check_collects(&s, 0, 2 * CHUNK);

	/* nothing of that is a write */
	assert_ok(gmem_view_load(s.view, 0, 8, GMEM_RELAXED, &value));
	assert_int_equal(gmem_view_store(s.view, GIB + 4 * PAGE, 8, GMEM_RELEASE, 5), -ENOENT);
	assert_int_equal(collect(&s), 0);
	scene_end(&s);
}

static void without_a_tracker_there_is_no_map(void **state)
{
	unsigned int memfds, mappings, tracked = 0;
	struct scene s;

	(void)state;
	scene_begin(&s);
	add(&s, 0, CHUNK, 0);
	memfds = fake_count(FAKE_MEMFD);
	connect_import(&s, (struct gmem_peer_opts){ .flags = 0 });
	exchange(&s);
	assert_int_equal(fake_count(FAKE_MEMFD), memfds);
	mappings = fake_open_mappings();

	for (int round = 0; round < 3; round++) {
		track(&s);
		tracked = fake_open_mappings();
		exchange(&s);
		assert_int_equal(fake_count(FAKE_MEMFD), ++memfds);
		/* on both sides */
		assert_int_equal(fake_open_mappings(), tracked + 2);
		assert_int_equal(collect(&s), CHUNK);
		assert_ok(gmem_view_store(s.view, PAGE, 8, GMEM_RELEASE, 5));
		check_collects(&s, PAGE, PAGE);
		gmem_dirty_free(s.dirty);
		exchange(&s);
		assert_int_equal(fake_open_mappings(), mappings);
	}
	/* begun again before the peer has heard of the end */
	track(&s);
	exchange(&s);
	gmem_dirty_free(s.dirty);
	track(&s);
	exchange(&s);
	assert_int_equal(fake_open_mappings(), tracked + 2);
	assert_int_equal(collect(&s), CHUNK);
	assert_int_equal(collect(&s), 0);
	scene_end(&s);
}

static void a_peer_that_comes_later_marks_from_the_start(void **state)
{
	struct scene s;

	(void)state;
	scene_begin(&s);
	add(&s, 0, CHUNK, 0);
	track(&s);
	connect_import(&s, (struct gmem_peer_opts){ .flags = 0 });
	exchange(&s);
	assert_int_equal(collect(&s), 0);
	assert_ok(gmem_view_store(s.view, PAGE, 8, GMEM_RELEASE, 5));
	check_collects(&s, PAGE, PAGE);
	scene_end(&s);
}

static void two_trackers_lose_nothing_to_each_other(void **state)
{
	struct gmem_dirty *first;
	struct scene s;

	(void)state;
	scene_begin(&s);
	add(&s, 0, CHUNK, 0);
	track(&s);
	first = s.dirty;
	connect_import(&s, (struct gmem_peer_opts){ .flags = 0 });
	exchange(&s);
	assert_ok(gmem_view_store(s.view, PAGE, 8, GMEM_RELEASE, 5));
	track(&s);
	assert_int_equal(collect(&s), 0);
	assert_ok(gmem_view_store(s.view, 2 * PAGE, 8, GMEM_RELEASE, 5));
	check_collects(&s, 2 * PAGE, PAGE);
	gmem_dirty_free(s.dirty);
	s.dirty = first;
	check_collects(&s, PAGE, 2 * PAGE);
	scene_end(&s);
}

/* Small regions side by side, in one chunk: a byte of the chunk is for all of them. */
static void regions_in_one_chunk_keep_their_marks(void **state)
{
	struct scene s;

	(void)state;
	scene_begin(&s);
	for (uint64_t i = 0; i < 8; i++)
		add(&s, 3 * i * PAGE, (1 + i % 3) * PAGE, 0);
	track(&s);
	connect_import(&s, (struct gmem_peer_opts){ .flags = 0 });
	exchange(&s);
	for (uint64_t i = 0; i < 8; i++)
		assert_ok(gmem_view_store(s.view, 3 * i * PAGE, 8, GMEM_RELEASE, 5));
	assert_int_equal(collect(&s), 8 * PAGE);
	assert_ok(gmem_view_store(s.view, 21 * PAGE, 8, GMEM_RELEASE, 5));
	check_collects(&s, 21 * PAGE, PAGE);
	assert_ok(gmem_view_store(s.view, 0, 8, GMEM_RELEASE, 5));
	check_collects(&s, 0, PAGE);
	scene_end(&s);
}

/* Memory above the end of the map counts as written until there is a larger one. */
static void memory_above_the_map_gets_another_map(void **state)
{
	struct scene s;

	(void)state;
	scene_begin(&s);
	add(&s, 0, CHUNK, 0);
	track(&s);
	s.takes = GMEM_WIRE_TAKES_MARK;
	connect_test(&s, (struct gmem_peer_opts){ .flags = 0 }, GMEM_WIRE_TAKES_MARK);
	assert_int_equal(s.counts[GMEM_WIRE_MARK], 1);
	assert_int_equal(s.mark.size, GIB);
	assert_int_equal(collect(&s), 0);

	/* the larger one comes before the memory, and only one that is needed */
	add(&s, GIB - CHUNK, CHUNK, 0);
	settle(&s);
	assert_int_equal(s.counts[GMEM_WIRE_MARK], 1);
	s.refusal = -1;
	add(&s, 5 * GIB, CHUNK, 0);
	settle(&s);
	assert_int_equal(s.counts[GMEM_WIRE_MARK], 2);
	assert_int_equal(s.counts[GMEM_WIRE_MAP], 2);
	assert_int_equal(s.mark.size, 8 * GIB);
	/* added memory counts anyhow */
	assert_int_equal(collect(&s), 2 * CHUNK);
	assert_int_equal(collect(&s), 0);

	/* refused, though: then the new memory counts each time, and the old is marked as before */
	answer(&s, &(struct gmem_message){ .type = GMEM_WIRE_MARK, .sequence = s.unanswered }, ENOSPC);
	s.unanswered = 0;
	settle(&s);
	assert_int_equal(s.counts[GMEM_WIRE_MAP], 3);
	check_collects(&s, 5 * GIB, CHUNK);
	check_collects(&s, 5 * GIB, CHUNK);
	scene_end(&s);
}

/* A larger map may be in use before the answer is read, or for ever if it never is. */
static void the_next_map_is_read_before_it_is_answered(void **state)
{
	struct scene s;
	uint8_t *bytes;

	(void)state;
	for (int is_lost = 0; is_lost < 2; is_lost++) {
		scene_begin(&s);
		add(&s, 0, CHUNK, 0);
		track(&s);
		connect_test(&s, (struct gmem_peer_opts){ .flags = 0 }, GMEM_WIRE_TAKES_MARK);
		s.refusal = -1;
		add(&s, 2 * GIB, CHUNK, 0);
		settle(&s);
		assert_int_equal(s.mark.size, 4 * GIB);
		assert_int_equal(collect(&s), CHUNK);
		bytes = map_marks(&s);
		bytes[3] = bytes[s.mark.offset] = 1;
		check_collects(&s, 3 * PAGE, PAGE);
		assert_int_equal(collect(&s), 0);
		if (is_lost) {
			close(s.sock);
			s.sock = -1;
			for (int round = 0; round < 3; round++)
				check_collects(&s, 0, CHUNK);
		} else {
			answer(&s, &(struct gmem_message){ .type = GMEM_WIRE_MARK, .sequence = s.unanswered }, 0);
			s.unanswered = 0;
			settle(&s);
			assert_int_equal(collect(&s), 0);
			bytes[4] = bytes[s.mark.offset] = 1;
			check_collects(&s, 4 * PAGE, PAGE);
		}
		munmap(bytes, s.mark.file_size);
		scene_end(&s);
	}
}

/* ---- peers that do not mark ---- */

static void without_marks_all_that_a_peer_may_write_counts(void **state)
{
	static const uint32_t takes[] = { 0, GMEM_WIRE_TAKES_MARK };
	const struct gmem_export_range range = { .gpa = 0, .size = 16 * PAGE, .rights = RW };
	struct scene s;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(takes); i++) {
		scene_begin(&s);
		add(&s, 0, 8 * PAGE, 0);
		add(&s, 8 * PAGE, 8 * PAGE, GMEM_REGION_READONLY);
		add(&s, 16 * PAGE, 8 * PAGE, 0);
		s.refusal = ENOSPC;
		connect_test(&s, (struct gmem_peer_opts){ .ranges = &range, .range_count = 1 }, takes[i]);
		track(&s);
		settle(&s);
		for (int round = 0; round < 3; round++)
			check_collects(&s, 0, 8 * PAGE);
		/* It is asked once, until tracking begins anew. */
		assert_int_equal(s.counts[GMEM_WIRE_MARK], takes[i]);
		gmem_dirty_free(s.dirty);
		settle(&s);
		track(&s);
		settle(&s);
		assert_int_equal(s.counts[GMEM_WIRE_MARK], 2 * takes[i]);
		/* It has no map that it would have to be told to leave. */
		assert_int_equal(s.counts[GMEM_WIRE_END_MARK], 0);
		check_collects(&s, 0, 8 * PAGE);
		scene_end(&s);
	}
}

static void a_peer_that_is_short_of_something_is_asked_again(void **state)
{
	struct scene s;

	(void)state;
	scene_begin(&s);
	add(&s, 0, 8 * PAGE, 0);
	track(&s);
	s.refusal = ENOMEM;
	connect_test(&s, (struct gmem_peer_opts){ .flags = 0 }, GMEM_WIRE_TAKES_MARK);
	check_collects(&s, 0, 8 * PAGE);
	check_collects(&s, 0, 8 * PAGE);
	s.refusal = 0;
	while (s.counts[GMEM_WIRE_MARK] < 2) {
		usleep(10000);
		settle(&s);
	}
	check_collects(&s, 0, 8 * PAGE);
	assert_int_equal(collect(&s), 0);
	scene_end(&s);
}

/* ---- peers that lie ---- */

static void marks_count_only_where_a_peer_may_write(void **state)
{
	const struct gmem_export_range ranges[] = {
		{ .gpa = 0, .size = CHUNK, .rights = RW }, { .gpa = GIB, .size = GIB, .rights = RW },
	};
	struct scene s;
	uint8_t *bytes;

	(void)state;
	scene_begin(&s);
	add(&s, 0, 8 * PAGE, 0);
	add(&s, 8 * PAGE, 8 * PAGE, GMEM_REGION_READONLY);
	add(&s, CHUNK, 8 * PAGE, 0);
	add(&s, GIB + 3 * PAGE, 8 * PAGE, 0);
	track(&s);
	connect_test(&s, (struct gmem_peer_opts){ .ranges = ranges, .range_count = 2 }, GMEM_WIRE_TAKES_MARK);
	assert_int_equal(collect(&s), 0);

	/* nobody can change its size, or keep others from writing it */
	assert_int_equal(s.mark.file_size, lseek(s.mark_fd, 0, SEEK_END));
	assert_int_equal(ftruncate(s.mark_fd, 0), -1);
	assert_int_equal(ftruncate(s.mark_fd, (off_t)s.mark.file_size + 1), -1);
	assert_int_equal(fcntl(s.mark_fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
	bytes = map_marks(&s);
	for (int round = 0; round < 3; round++) {
		memset(bytes, 0xff, s.mark.file_size);
		assert_int_equal(collect(&s), 16 * PAGE);
	}
	/* Chunks without pages, and pages without chunks, are no marks. */
	memset(bytes, 0, s.mark.file_size);
	memset(bytes + s.mark.offset, 1, s.mark.file_size - s.mark.offset);
	assert_int_equal(collect(&s), 0);
	assert_int_equal(fallocate(s.mark_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
				   (off_t)s.mark.file_size), 0);
	assert_int_equal(collect(&s), 0);
	munmap(bytes, s.mark.file_size);
	scene_end(&s);
}

static void answers_that_are_none_end_the_peer(void **state)
{
	struct gmem_message message = { .type = GMEM_WIRE_ANSWER };
	struct scene s;

	(void)state;
	/* what it takes is said once, twice is no answer, and so is a file */
	for (int how = 0; how < 3; how++) {
		scene_begin(&s);
		add(&s, 0, 8 * PAGE, 0);
		track(&s);
		s.refusal = -1;
		connect_test(&s, (struct gmem_peer_opts){ .flags = 0 }, GMEM_WIRE_TAKES_MARK);
		message.sequence = s.unanswered;
		message.rights = how == 0;
		assert_ok(gmem_wire_send(s.sock, &message, how == 2 ? s.mark_fd : -1));
		if (how == 1)
			assert_ok(gmem_wire_send(s.sock, &message, -1));
		/* The collection reads it: it has no memory yet, so nothing counts. */
		assert_int_equal(collect(&s), 0);
		assert_int_equal(gmem_peer_status(s.peer), -EPROTO);
		scene_end(&s);
	}
}

/* ---- ends ---- */

static void a_peer_that_ends_has_written_all_once_more(void **state)
{
	struct scene s;

	(void)state;
	scene_begin(&s);
	add(&s, 0, 8 * PAGE, 0);
	connect_import(&s, (struct gmem_peer_opts){ .flags = 0 });
	exchange(&s);
	track(&s);
	exchange(&s);
	collect(&s);
	assert_int_equal(collect(&s), 0);

	/* The end is in the socket, and nobody has looked. */
	drop_import(&s);
	check_collects(&s, 0, 8 * PAGE);
	assert_int_equal(gmem_peer_status(s.peer), -EPIPE);
	assert_int_equal(collect(&s), 0);
	gmem_peer_remove(s.peer);
	check_collects(&s, 0, 8 * PAGE);
	assert_int_equal(collect(&s), 0);
	scene_end(&s);
}

static void a_peer_that_ends_without_a_map_counts_until_it_is_removed(void **state)
{
	struct scene s;

	(void)state;
	scene_begin(&s);
	add(&s, 0, 8 * PAGE, 0);
	connect_test(&s, (struct gmem_peer_opts){ .flags = 0 }, 0);
	close(s.sock);
	s.sock = -1;
	assert_ok(gmem_export_dispatch(s.exporter));
	assert_int_equal(gmem_peer_status(s.peer), -EPIPE);
	track(&s);
	for (int round = 0; round < 3; round++)
		check_collects(&s, 0, 8 * PAGE);
	gmem_peer_remove(s.peer);
	check_collects(&s, 0, 8 * PAGE);
	assert_int_equal(collect(&s), 0);
	scene_end(&s);
}

/* Its connection is over, but not its life: what it marks counts. */
static void a_peer_that_is_lost_goes_on_marking(void **state)
{
	struct scene s;
	int sock;

	(void)state;
	scene_begin(&s);
	add(&s, 0, 8 * PAGE, 0);
	sock = connect_peer(&s, (struct gmem_peer_opts){ .flags = 0 });
	assert_ok(gmem_import_new(sock, NULL, &s.import));
	assert_ok(gmem_import_view_new(s.import, &s.view));
	exchange(&s);
	track(&s);
	exchange(&s);
	/* what no import sends */
	assert_int_equal(send(sock, "", 1, 0), 1);
	close(sock);
	check_collects(&s, 0, 8 * PAGE);
	assert_int_equal(gmem_peer_status(s.peer), -EPROTO);
	assert_ok(gmem_view_store(s.view, 3 * PAGE, 8, GMEM_RELEASE, 5));
	check_collects(&s, 3 * PAGE, PAGE);
	assert_int_equal(collect(&s), 0);
	scene_end(&s);
}

static void an_export_that_ends_counts_its_peers_once_more(void **state)
{
	struct scene s;

	(void)state;
	scene_begin(&s);
	add(&s, 0, 8 * PAGE, 0);
	track(&s);
	connect_import(&s, (struct gmem_peer_opts){ .flags = 0 });
	exchange(&s);
	assert_int_equal(collect(&s), 0);
	gmem_export_free(s.exporter);
	check_collects(&s, 0, 8 * PAGE);
	assert_int_equal(collect(&s), 0);
	assert_ok(gmem_export_new(s.unit.vm, NULL, &s.exporter));
	scene_end(&s);
}

/* ---- memory that is taken back ---- */

/* The second peer refuses, so the region stays: what the first wrote must not be forgotten. */
static void marks_in_memory_that_is_taken_back_are_collected(void **state)
{
	struct gmem_region *region;
	struct scene s;
	struct gmem_import *first;
	struct gmem_view *first_view;
	struct gmem_peer *first_peer;

	(void)state;
	scene_begin(&s);
	add(&s, GIB, PAGE, 0);
	region = add(&s, 0, 8 * PAGE, 0);
	track(&s);
	connect_import(&s, (struct gmem_peer_opts){ .flags = 0 });
	exchange(&s);
	assert_int_equal(collect(&s), 0);
	first = s.import;
	first_view = s.view;
	first_peer = s.peer;
	s.import = NULL;
	s.view = NULL;

	/* The other has no connection any more once the first has given the region back. */
	assert_ok(gmem_view_store(first_view, 3 * PAGE, 8, GMEM_RELEASE, 5));
	unit_start_answering(&s.answerer, first);
	fake_fail_next(FAKE_DELETE_SLOT, -EIO);
	assert_int_equal(gmem_region_remove(region), -EIO);
	unit_stop_answering(&s.answerer);
	check_collects(&s, 3 * PAGE, PAGE);
	unit_exchange(s.exporter, first_peer, first);
	assert_ok(gmem_view_store(first_view, 4 * PAGE, 8, GMEM_RELEASE, 5));
	check_collects(&s, 4 * PAGE, PAGE);

	/* and with a region that goes, so do its marks */
	assert_ok(gmem_view_store(first_view, 5 * PAGE, 8, GMEM_RELEASE, 5));
	unit_start_answering(&s.answerer, first);
	assert_ok(gmem_region_remove(region));
	unit_stop_answering(&s.answerer);
	assert_int_equal(collect(&s), 0);
	gmem_view_free(first_view);
	gmem_import_free(first);
	scene_end(&s);
}

/* ---- failures ---- */

/* Whatever the kernel refuses: what the peer writes is collected, and at last it marks. */
static void every_failure_is_survived(void **state)
{
	bool struck = true;
	struct scene s;

	(void)state;
	for (unsigned int n = 1; struck; n++) {
		scene_begin(&s);
		add(&s, 0, 8 * PAGE, 0);
		connect_import(&s, (struct gmem_peer_opts){ .flags = 0 });
		exchange(&s);
		track(&s);
		fake_fail_call(n, -ENOMEM);
		assert_ok(gmem_export_dispatch(s.exporter));
		(void)gmem_import_dispatch(s.import);
		assert_ok(gmem_export_dispatch(s.exporter));
		struck = fake_fail_struck();
		assert_ok(gmem_view_store(s.view, 3 * PAGE, 8, GMEM_RELEASE, 5));
		collect(&s);
		assert_int_not_equal(gmem_dirty_next(s.dirty, 3 * PAGE, &(struct gmem_dirty_range){ 0 }), -ENOENT);
		while (gmem_peer_status(s.peer) >= 0 && collect(&s)) {
			usleep(10000);
			(void)gmem_export_dispatch(s.exporter);
			(void)gmem_import_dispatch(s.import);
		}
		scene_end(&s);
	}
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(what_views_of_an_import_write_is_collected),
	cmocka_unit_test(without_a_tracker_there_is_no_map),
	cmocka_unit_test(a_peer_that_comes_later_marks_from_the_start),
	cmocka_unit_test(two_trackers_lose_nothing_to_each_other),
	cmocka_unit_test(regions_in_one_chunk_keep_their_marks),
	cmocka_unit_test(memory_above_the_map_gets_another_map),
	cmocka_unit_test(the_next_map_is_read_before_it_is_answered),
	cmocka_unit_test(without_marks_all_that_a_peer_may_write_counts),
	cmocka_unit_test(a_peer_that_is_short_of_something_is_asked_again),
	cmocka_unit_test(marks_count_only_where_a_peer_may_write),
	cmocka_unit_test(answers_that_are_none_end_the_peer),
	cmocka_unit_test(a_peer_that_ends_has_written_all_once_more),
	cmocka_unit_test(a_peer_that_ends_without_a_map_counts_until_it_is_removed),
	cmocka_unit_test(a_peer_that_is_lost_goes_on_marking),
	cmocka_unit_test(an_export_that_ends_counts_its_peers_once_more),
	cmocka_unit_test(marks_in_memory_that_is_taken_back_are_collected),
	cmocka_unit_test(every_failure_is_survived),
};

UNIT_MAIN(tests)
