/* SPDX-License-Identifier: MIT */
/* migration: rounds of a stream, what they say, and what ends them */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "unit.h"

#define MIB ((uint64_t)1 << 20)
#define GPA_PAGE 16

/* A VM whose memory is all different, and how it is migrated */
struct source {
	struct unit unit;
	struct gmem_region *region;
	struct gmem_view *view;
	uint64_t gpa, size;
	char *hva;
	struct gmem_migration *migration;
	struct gmem_migration_status status;
};

static void begin_size(struct source *s, uint64_t size)
{
	unit_begin_vm(&s->unit, "6.18");
	s->size = size;
	s->gpa = PAGES(&s->unit, GPA_PAGE);
	s->region = unit_region_backed(&s->unit, GPA_PAGE, size / s->unit.page, GMEM_BACKING_HOST);
	s->hva = gmem_region_hva(s->region);
	assert_ok(gmem_view_new(s->unit.vm, &s->view));
	for (uint64_t at = 0; at < size; at += 8)
		*(uint64_t *)(void *)(s->hva + at) = (at + 1) * 0x9e3779b97f4a7c15;
	s->migration = NULL;
	s->status = (struct gmem_migration_status){ .size = sizeof(s->status) };
}

static void begin(struct source *s)
{
	begin_size(s, 4 * MIB);
}

static void end(struct source *s)
{
	gmem_migration_free(s->migration);
	gmem_view_free(s->view);
	unit_end(&s->unit);
}

static void migrate_with(struct source *s, int fd, uint64_t flags, uint64_t limit)
{
	GMEM_OPTS(gmem_migration_opts, opts, .flags = flags, .max_bytes_per_second = limit);

	assert_ok(gmem_migration_new(s->unit.vm, fd, &opts, &s->migration));
}

static int new_file(void)
{
	int fd = memfd_create("migration", MFD_CLOEXEC);

	assert_true(fd >= 0);
	return fd;
}

/* Change a page, as a device of the VMM does. */
static void scribble(struct source *s, uint64_t page, uint64_t number)
{
	assert_ok(gmem_view_write(s->view, s->gpa + PAGES(&s->unit, page), &number, sizeof(number), NULL));
}

/* The memory as it is, in memory of the test's */
static char *photograph(const struct source *s)
{
	char *copy = malloc(s->size);

	assert_non_null(copy);
	memcpy(copy, s->hva, s->size);
	return copy;
}

/* Restore into the same VM, from other contents. */
static void check_stream(struct source *s, int fd, uint64_t offset, char *expected)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .image_offset = offset);

	memset(s->hva, 0x77, s->size);
	assert_ok(gmem_vm_restore(s->unit.vm, fd, &opts, NULL));
	assert_memory_equal(s->hva, expected, s->size);
	free(expected);
}

/* A thread that reads until the end, and keeps what it read in a file */
struct reader {
	pthread_t thread;
	int from, to;
};

static void *run_reader(void *data)
{
	static const size_t piece = 65536;
	struct reader *reader = data;
	char *bytes = malloc(piece);
	ssize_t n;

	while ((n = read(reader->from, bytes, piece)) > 0)
		if (write(reader->to, bytes, (size_t)n) != n)
			abort();
	free(bytes);
	return NULL;
}

static void begin_reading(struct reader *reader, int from)
{
	reader->from = from;
	reader->to = new_file();
	assert_ok(pthread_create(&reader->thread, NULL, run_reader, reader));
}

static void end_reading(struct reader *reader)
{
	assert_ok(pthread_join(reader->thread, NULL));
	close(reader->from);
}

/* ---- arguments ---- */

static void what_cannot_be_migrated_is_refused(void **state)
{
	struct gmem_migration *ret = UNTOUCHED(struct gmem_migration);
	GMEM_OPTS(gmem_migration_opts, unknown, .flags = UNIT_UNKNOWN_BIT);
	GMEM_OPTS(gmem_migration_opts, reserved, .reserved = 1);
	GMEM_OPTS(gmem_migration_opts, workers, .workers = 1025);
	GMEM_OPTS(gmem_migration_opts, offset, .image_offset = 4096);
	struct gmem_migration_opts small = { .size = 8 };
	int fds[2], messages[2], readable, file = new_file();
	struct source s;

	(void)state;
	begin(&s);
	assert_int_equal(pipe(fds), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, messages), 0);
	readable = open("/dev/null", O_RDONLY | O_CLOEXEC);
	assert_refused(-EINVAL, "vm is NULL", gmem_migration_new(NULL, file, NULL, &ret));
	assert_refused(-EINVAL, "ret is NULL", gmem_migration_new(s.unit.vm, file, NULL, NULL));
	assert_refused(-EINVAL, "flags", gmem_migration_new(s.unit.vm, file, &unknown, &ret));
	assert_refused(-EINVAL, "reserved", gmem_migration_new(s.unit.vm, file, &reserved, &ret));
	assert_refused(-EINVAL, "1025", gmem_migration_new(s.unit.vm, file, &workers, &ret));
	assert_refused(-EINVAL, "size", gmem_migration_new(s.unit.vm, file, &small, &ret));
	assert_refused(-EBADF, "", gmem_migration_new(s.unit.vm, -1, NULL, &ret));
	assert_refused(-EBADF, "reading only", gmem_migration_new(s.unit.vm, readable, NULL, &ret));
	assert_refused(-ESPIPE, "offset", gmem_migration_new(s.unit.vm, fds[1], &offset, &ret));
	assert_refused(-EPROTOTYPE, "stream", gmem_migration_new(s.unit.vm, messages[0], NULL, &ret));
	assert_ptr_equal(ret, UNTOUCHED(struct gmem_migration));
	assert_refused(-EINVAL, "NULL", gmem_migration_round(NULL, NULL));
	assert_refused(-EINVAL, "NULL", gmem_migration_finish(NULL, NULL));
	gmem_migration_cancel(NULL);
	gmem_migration_set_limit(NULL, 1);
	gmem_migration_free(NULL);
	close(fds[0]);
	close(fds[1]);
	close(messages[0]);
	close(messages[1]);
	close(readable);
	close(file);
	end(&s);
}

static void a_refused_event_or_tracker_leaves_nothing(void **state)
{
	struct gmem_migration *ret = UNTOUCHED(struct gmem_migration);
	int file = new_file();
	struct source s;

	(void)state;
	begin(&s);
	fake_fail_next(FAKE_EVENT, -EMFILE);
	assert_refused(-EMFILE, "", gmem_migration_new(s.unit.vm, file, NULL, &ret));
	fake_fail_next(FAKE_SET_SLOT, -ENOMEM);
	if (gmem_migration_new(s.unit.vm, file, NULL, &ret) == 0)
		gmem_migration_free(ret);
	else
		assert_ptr_equal(ret, UNTOUCHED(struct gmem_migration));
	close(file);
	end(&s);
}

static void a_status_that_is_too_small_is_refused_before_the_round(void **state)
{
	struct gmem_migration_status small = { .size = 16 };
	int file = new_file();
	struct source s;

	(void)state;
	begin(&s);
	migrate_with(&s, file, 0, 0);
	assert_refused(-EINVAL, "status", gmem_migration_round(s.migration, &small));
	assert_ok(gmem_migration_finish(s.migration, &s.status));
	assert_int_equal(s.status.round, 1);
	close(file);
	end(&s);
}

/* ---- rounds ---- */

static void a_file_gets_one_image_after_the_other(void **state)
{
	static const uint64_t offsets[] = { 0, 8192, 5 };
	struct source s;
	int file;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(offsets); i++) {
		GMEM_OPTS(gmem_migration_opts, opts, .image_offset = offsets[i]);

		begin(&s);
		file = new_file();
		assert_ok(gmem_migration_new(s.unit.vm, file, &opts, &s.migration));
		assert_ok(gmem_migration_round(s.migration, &s.status));
		for (uint64_t round = 1; round < 5; round++) {
			scribble(&s, round, round);
			scribble(&s, 0, round);
			assert_ok(gmem_migration_round(s.migration, NULL));
		}
		scribble(&s, 7, 7);
		assert_ok(gmem_migration_finish(s.migration, &s.status));
		assert_int_equal(s.status.round, 6);
		check_stream(&s, file, offsets[i], photograph(&s));
		close(file);
		end(&s);
	}
}

static void a_round_says_what_it_did_and_what_is_left(void **state)
{
	int file = new_file();
	uint64_t total;
	struct source s;

	(void)state;
	begin(&s);
	migrate_with(&s, file, 0, 0);
	assert_ok(gmem_migration_round(s.migration, &s.status));
	assert_int_equal(s.status.round, 1);
	assert_int_equal(s.status.memory_bytes, s.size);
	assert_true(s.status.sent_bytes >= s.size);
	assert_int_equal(s.status.total_bytes, s.status.sent_bytes);
	assert_int_equal(s.status.left_bytes, 0);
	assert_int_equal(s.status.dirty_rate, 0);
	assert_true(s.status.send_rate > 0 && s.status.ns > 0);

	scribble(&s, 1, 1);
	scribble(&s, 5, 1);
	total = s.status.total_bytes;
	assert_ok(gmem_migration_round(s.migration, &s.status));
	assert_int_equal(s.status.round, 2);
	assert_int_equal(s.status.memory_bytes, PAGES(&s.unit, 2));
	assert_int_equal(s.status.total_bytes, total + s.status.sent_bytes);
	assert_int_equal(s.status.left_bytes, 0);

	/* Nothing changed: what is sent says so. */
	assert_ok(gmem_migration_finish(s.migration, &s.status));
	assert_int_equal(s.status.memory_bytes, 0);
	assert_int_equal(s.status.left_bytes, 0);
	assert_int_equal(s.status.pause_ns, 0);
	check_stream(&s, file, 0, photograph(&s));
	close(file);
	end(&s);
}

/* Changes memory while a round is under way. */
static int change_pages(void *data, uint64_t done, uint64_t total)
{
	struct source *s = data;

	(void)done;
	(void)total;
	for (uint64_t page = 10; page < 13; page++)
		scribble(s, page, page);
	return 0;
}

static void what_changes_during_a_round_is_left(void **state)
{
	struct source s;
	GMEM_OPTS(gmem_migration_opts, opts, .progress = change_pages, .progress_data = &s);
	int file = new_file();

	(void)state;
	begin(&s);
	assert_ok(gmem_migration_new(s.unit.vm, file, &opts, &s.migration));
	for (uint64_t round = 1; round < 4; round++) {
		assert_ok(gmem_migration_round(s.migration, &s.status));
		assert_int_equal(s.status.round, round);
		assert_int_equal(s.status.left_bytes, PAGES(&s.unit, 3));
		assert_true(s.status.dirty_rate > 0 && s.status.pause_ns > 0);
	}
	close(file);
	end(&s);
}

/* Changes all memory, which is zero again. */
static int write_zeros(void *data, uint64_t done, uint64_t total)
{
	struct source *s = data;
	char *zeros = calloc(1, s->size);

	(void)done;
	(void)total;
	assert_non_null(zeros);
	assert_ok(gmem_view_write(s->view, s->gpa, zeros, s->size, NULL));
	free(zeros);
	return 0;
}

/* Next to nothing is written of it: what was takes too long for each byte to tell how long all takes. */
static void what_is_zero_takes_no_longer_than_it_took(void **state)
{
	struct source s;
	GMEM_OPTS(gmem_migration_opts, opts, .progress = write_zeros, .progress_data = &s);
	int file = new_file();

	(void)state;
	begin(&s);
	memset(s.hva, 0, s.size);
	assert_ok(gmem_migration_new(s.unit.vm, file, &opts, &s.migration));
	for (uint64_t round = 1; round < 3; round++) {
		assert_ok(gmem_migration_round(s.migration, &s.status));
		assert_int_equal(s.status.memory_bytes, s.size);
		assert_int_equal(s.status.left_bytes, s.size);
		assert_true(s.status.pause_ns <= s.status.ns);
	}
	close(file);
	end(&s);
}

/* A newer header's, with fields that this library does not know, and an older one's later on */
static void a_longer_status_is_filled_as_far_as_it_is_known(void **state)
{
	struct { struct gmem_migration_status status; uint64_t more; } longer = { .more = 7 };
	int file = new_file();
	struct source s;

	(void)state;
	begin(&s);
	longer.status.size = sizeof(longer);
	migrate_with(&s, file, 0, 0);
	assert_ok(gmem_migration_round(s.migration, &longer.status));
	assert_int_equal(longer.status.size, sizeof(longer));
	assert_int_equal(longer.status.round, 1);
	assert_int_equal(longer.more, 7);
	close(file);
	end(&s);
}

static void after_the_last_round_there_is_none(void **state)
{
	int file = new_file();
	struct source s;

	(void)state;
	begin(&s);
	migrate_with(&s, file, 0, 0);
	assert_ok(gmem_migration_finish(s.migration, NULL));
	assert_refused(-EALREADY, "last round", gmem_migration_round(s.migration, NULL));
	assert_refused(-EALREADY, "last round", gmem_migration_finish(s.migration, NULL));
	check_stream(&s, file, 0, photograph(&s));
	close(file);
	end(&s);
}

static void a_stream_goes_through_pipes_and_sockets_of_all_kinds(void **state)
{
	static const uint64_t flags[] = { 0, GMEM_MIGRATION_NO_THREADS };
	struct reader reader;
	struct source s;
	int fds[2];

	(void)state;
	for (unsigned kind = 0; kind < 6; kind++) {
		begin(&s);
		if (kind % 3 == 0)
			assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
		else
			assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
		if (kind % 3 == 2)
			assert_int_equal(fcntl(fds[1], F_SETFL, O_RDWR | O_NONBLOCK), 0);
		/* The scripted ring has no thread of its own: it would be polled for in vain. */
		migrate_with(&s, fds[1], flags[1], kind < 3 ? 0 : 64 * MIB);
		begin_reading(&reader, fds[0]);
		assert_ok(gmem_migration_round(s.migration, &s.status));
		scribble(&s, 3, 3);
		assert_ok(gmem_migration_finish(s.migration, &s.status));
		close(fds[1]);
		end_reading(&reader);
		check_stream(&s, reader.to, 0, photograph(&s));
		close(reader.to);
		end(&s);
	}
}

/* ---- the limit ---- */

static void the_limit_holds_a_round_but_not_the_last(void **state)
{
	const uint64_t limit = 4 * MIB;
	int file = new_file();
	unsigned waits;
	struct source s;

	(void)state;
	begin(&s);
	migrate_with(&s, file, GMEM_MIGRATION_NO_THREADS, limit);
	assert_ok(gmem_migration_round(s.migration, &s.status));
	assert_true(fake_count(FAKE_POLL_MANY) > 0);
	/* The last step is not waited for, nor what 10 ms allow. */
	assert_true(s.status.ns >= (s.status.sent_bytes - 2 * MIB) * 1000 / limit * 1000000);

	waits = fake_count(FAKE_POLL_MANY);
	for (uint64_t page = 0; page < s.size / s.unit.page; page++)
		scribble(&s, page, page);
	assert_ok(gmem_migration_finish(s.migration, &s.status));
	assert_int_equal(fake_count(FAKE_POLL_MANY), waits);
	check_stream(&s, file, 0, photograph(&s));
	close(file);
	end(&s);
}

/* A call in another thread, once the round waits */
struct call {
	pthread_t thread;
	struct gmem_migration *migration;
	unsigned waits;
	void (*function)(struct gmem_migration *migration);
};

static void *run_call(void *data)
{
	struct call *call = data;

	while (fake_count(FAKE_POLL_MANY) <= call->waits)
		usleep(100);
	call->function(call->migration);
	return NULL;
}

static void begin_call(struct call *call, struct gmem_migration *migration,
		       void (*function)(struct gmem_migration *migration))
{
	*call = (struct call){ .migration = migration, .waits = fake_count(FAKE_POLL_MANY),
			       .function = function };
	assert_ok(pthread_create(&call->thread, NULL, run_call, call));
}

static void end_limit(struct gmem_migration *migration)
{
	gmem_migration_set_limit(migration, 0);
}

/* It would take 12 days. */
static void a_limit_that_changes_counts_at_once(void **state)
{
	int file = new_file();
	struct call call;
	struct source s;

	(void)state;
	begin(&s);
	migrate_with(&s, file, GMEM_MIGRATION_NO_THREADS, 4);
	begin_call(&call, s.migration, end_limit);
	assert_ok(gmem_migration_round(s.migration, NULL));
	assert_ok(pthread_join(call.thread, NULL));
	close(file);
	end(&s);
}

/* ---- what ends it ---- */

static void cancelled_while_it_waits(struct source *s, int fd, uint64_t flags, uint64_t limit)
{
	struct call call;

	migrate_with(s, fd, flags, limit);
	begin_call(&call, s->migration, gmem_migration_cancel);
	assert_int_equal(gmem_migration_round(s->migration, &s->status), -ECANCELED);
	assert_non_null(strstr(gmem_last_error(), "gmem_migration_cancel()"));
	assert_int_equal(s->status.round, 0);
	assert_ok(pthread_join(call.thread, NULL));
	assert_refused(-ECANCELED, "gmem_migration_cancel()", gmem_migration_round(s->migration, NULL));
	assert_refused(-ECANCELED, "gmem_migration_cancel()", gmem_migration_finish(s->migration, NULL));
}

static void a_round_is_cancelled_where_nobody_reads(void **state)
{
	static const uint64_t flags[] = { 0, GMEM_MIGRATION_NO_THREADS };
	struct source s;
	int fds[2];

	(void)state;
	for (unsigned kind = 0; kind < 4; kind++) {
		begin(&s);
		assert_int_equal(kind / 2 ? pipe2(fds, O_NONBLOCK)
					  : socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
		cancelled_while_it_waits(&s, fds[1], flags[kind % 2], 0);
		close(fds[0]);
		close(fds[1]);
		end(&s);
	}
}

static void a_round_is_cancelled_where_the_limit_holds_it(void **state)
{
	int file = new_file();
	struct source s;

	(void)state;
	begin(&s);
	cancelled_while_it_waits(&s, file, GMEM_MIGRATION_NO_THREADS, 4);
	close(file);
	end(&s);
}

static int stop(void *data, uint64_t done, uint64_t total)
{
	(void)data;
	(void)done;
	(void)total;
	return 1;
}

static void a_round_that_failed_breaks_the_stream(void **state)
{
	GMEM_OPTS(gmem_migration_opts, opts, .progress = stop);
	GMEM_OPTS(gmem_dirty_info, info, .bytes = 0);
	struct gmem_dirty *other;
	int file = new_file();
	struct source s;

	(void)state;
	begin(&s);
	assert_ok(gmem_dirty_new(s.unit.vm, NULL, &other));
	assert_ok(gmem_dirty_collect(other, NULL));
	scribble(&s, 2, 2);
	assert_ok(gmem_migration_new(s.unit.vm, file, &opts, &s.migration));
	assert_int_equal(gmem_migration_round(s.migration, NULL), -ECANCELED);
	assert_refused(-ENOTCONN, "new migration", gmem_migration_round(s.migration, NULL));
	assert_refused(-ENOTCONN, "round 1", gmem_migration_finish(s.migration, NULL));
	gmem_migration_free(s.migration);

	/* Others have lost nothing, and another migration sends all. */
	assert_ok(gmem_dirty_collect(other, &info));
	assert_int_equal(info.bytes, s.unit.page);
	gmem_dirty_free(other);
	migrate_with(&s, file, 0, 0);
	assert_ok(gmem_migration_finish(s.migration, &s.status));
	assert_int_equal(s.status.memory_bytes, s.size);
	check_stream(&s, file, 0, photograph(&s));
	close(file);
	end(&s);
}

/* Not begun: the next call sends it. */
static void a_round_that_could_not_begin_breaks_nothing(void **state)
{
	int file = new_file();
	struct source s;

	(void)state;
	begin(&s);
	migrate_with(&s, file, 0, 0);
	assert_ok(gmem_migration_round(s.migration, NULL));
	scribble(&s, 9, 9);
	fake_fail_next(FAKE_FD_KIND, -EINTR);
	assert_int_equal(gmem_migration_round(s.migration, &s.status), -EINTR);
	assert_int_equal(s.status.round, 1);
	assert_ok(gmem_migration_finish(s.migration, &s.status));
	assert_int_equal(s.status.memory_bytes, s.unit.page);
	check_stream(&s, file, 0, photograph(&s));
	close(file);
	end(&s);
}

static void a_receiver_that_is_gone_is_told_without_a_signal(void **state)
{
	static const uint64_t flags[] = { 0, GMEM_MIGRATION_NO_THREADS };
	struct source s;
	int fds[2];

	(void)state;
	for (unsigned kind = 0; kind < 4; kind++) {
		if (kind % 2 == 0)
			continue;	/* the scripted ring writes in this thread */
		begin(&s);
		assert_int_equal(kind / 2 ? pipe(fds) : socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
		close(fds[0]);
		migrate_with(&s, fds[1], flags[kind % 2], 0);
		signal(SIGPIPE, SIG_IGN);
		assert_int_equal(gmem_migration_round(s.migration, &s.status), -EPIPE);
		signal(SIGPIPE, SIG_DFL);
		assert_int_equal(s.status.round, 0);
		assert_refused(-ENOTCONN, "round 1", gmem_migration_round(s.migration, NULL));
		close(fds[1]);
		end(&s);
	}
}

static void a_wait_that_the_kernel_refuses_is_told(void **state)
{
	struct source s;
	int fds[2];

	(void)state;
	begin(&s);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
	migrate_with(&s, fds[1], GMEM_MIGRATION_NO_THREADS, 0);
	fake_fail_next(FAKE_POLL_MANY, -ENOMEM);
	assert_int_equal(gmem_migration_round(s.migration, NULL), -ENOMEM);
	assert_non_null(strstr(gmem_last_error(), "ENOMEM"));
	close(fds[0]);
	close(fds[1]);
	end(&s);
}

static void a_full_disk_is_told(void **state)
{
	int file = new_file();
	struct source s;

	(void)state;
	begin(&s);
	migrate_with(&s, file, 0, 0);
	fake_set_limit(RLIMIT_FSIZE, MIB);
	assert_int_equal(gmem_migration_round(s.migration, &s.status), -EFBIG);
	assert_int_equal(s.status.memory_bytes, 0);
	assert_refused(-ENOTCONN, "round 1", gmem_migration_round(s.migration, NULL));
	fake_set_limit(RLIMIT_FSIZE, UINT64_MAX);
	close(file);
	end(&s);
}

static void it_may_outlive_the_vm(void **state)
{
	int file = new_file();
	struct source s;

	(void)state;
	begin(&s);
	migrate_with(&s, file, 0, 0);
	gmem_view_free(s.view);
	unit_free_vm(&s.unit, false);
	assert_int_equal(gmem_migration_round(s.migration, NULL), -ESTALE);
	gmem_migration_cancel(s.migration);
	gmem_migration_free(s.migration);
	close(file);
	unit_end(&s.unit);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_cannot_be_migrated_is_refused),
		cmocka_unit_test(a_refused_event_or_tracker_leaves_nothing),
		cmocka_unit_test(a_status_that_is_too_small_is_refused_before_the_round),
		cmocka_unit_test(a_file_gets_one_image_after_the_other),
		cmocka_unit_test(a_round_says_what_it_did_and_what_is_left),
		cmocka_unit_test(what_changes_during_a_round_is_left),
		cmocka_unit_test(what_is_zero_takes_no_longer_than_it_took),
		cmocka_unit_test(a_longer_status_is_filled_as_far_as_it_is_known),
		cmocka_unit_test(after_the_last_round_there_is_none),
		cmocka_unit_test(a_stream_goes_through_pipes_and_sockets_of_all_kinds),
		cmocka_unit_test(the_limit_holds_a_round_but_not_the_last),
		cmocka_unit_test(a_limit_that_changes_counts_at_once),
		cmocka_unit_test(a_round_is_cancelled_where_nobody_reads),
		cmocka_unit_test(a_round_is_cancelled_where_the_limit_holds_it),
		cmocka_unit_test(a_round_that_failed_breaks_the_stream),
		cmocka_unit_test(a_round_that_could_not_begin_breaks_nothing),
		cmocka_unit_test(a_receiver_that_is_gone_is_told_without_a_signal),
		cmocka_unit_test(a_wait_that_the_kernel_refuses_is_told),
		cmocka_unit_test(a_full_disk_is_told),
		cmocka_unit_test(it_may_outlive_the_vm),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
