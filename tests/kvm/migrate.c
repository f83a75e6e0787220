/* SPDX-License-Identifier: MIT */
/*
 * Memory on its way from one process to another while a guest and threads write to it, on a
 * real kernel. When the migration is done the source sends all memory once more, as it is, and
 * the receiver compares the two byte by byte. And what happens when either side dies, or does not
 * do its part.
 */
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lab.h"

#define BASE	((uint64_t)256 << 20)
#define PAGES	((uint64_t)(8 << 20) / page_size())
#define WRITERS	2

/* Regions that come and go */
#define OLD	(BASE + 2 * PAGES * page_size())
#define NEW	(BASE + 3 * PAGES * page_size())
#define FEW	64

/* ---- the receiver, a process of its own ---- */

struct receiver {
	pid_t pid;
	int sock;		/* the source's end */
};

static void receive_memory(int sock, void *to, uint64_t size)
{
	char *bytes = to;
	ssize_t n;

	for (uint64_t done = 0; done < size; done += (uint64_t)n) {
		n = read(sock, bytes + done, size - done);
		CHECK(n > 0);
	}
}

/* What comes behind the stream is memory as it was at the end. */
static void compare_memory(struct gmem_region *const *regions, unsigned count, int sock)
{
	for (unsigned i = 0; i < count; i++) {
		uint64_t size = gmem_region_size(regions[i]);
		char *expected = malloc(size), *hva = gmem_region_hva(regions[i]);

		CHECK(expected);
		receive_memory(sock, expected, size);
		for (uint64_t at = 0; at < size; at += page_size())
			if (memcmp(hva + at, expected + at, page_size()) != 0)
				FAIL("the page at gpa 0x%llx differs",
				     (unsigned long long)(gmem_region_gpa(regions[i]) + at));
		free(expected);
	}
}

/* Memory of so many regions of this backing, 0: all and a new one */
static void run_receiver(int sock, uint32_t backing, unsigned regions)
{
	bool has_new = !regions;
	struct gmem_region *parts[4 + 1];
	struct lab lab;

	regions += has_new;

	lab_new(&lab, DEFAULT_VM);
	for (unsigned i = 0; i < regions; i++)
		parts[i] = lab_add(&lab, backing, BASE + i * PAGES / regions * lab.page, PAGES / regions, NULL);
	if (has_new)
		parts[regions++] = lab_add(&lab, backing, NEW, FEW, NULL);
	WORKS(write(sock, "", 1));
	OK(gmem_vm_restore(lab.vm, sock, NULL, NULL));
	compare_memory(parts, regions, sock);
	lab_free(&lab);
	end_child(EXIT_SUCCESS);
}

static bool has_network(void)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(9), .sin_addr = { htonl(INADDR_LOOPBACK) } };
	int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	bool has = sock >= 0 && connect(sock, (struct sockaddr *)&at, sizeof(at)) == 0;

	if (sock >= 0)
		close(sock);
	return has;
}

static void make_connection(int domain, int fds[2])
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
	socklen_t length = sizeof(at);
	int listening;

	/* Small machines have no network, not even with themselves. */
	if (domain == AF_INET && !has_network())
		domain = AF_UNIX;
	if (domain == AF_UNIX) {
		WORKS(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds));
		return;
	}
	listening = (int)WORKS(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
	WORKS(bind(listening, (struct sockaddr *)&at, sizeof(at)));
	WORKS(listen(listening, 1));
	WORKS(getsockname(listening, (struct sockaddr *)&at, &length));
	fds[0] = (int)WORKS(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
	/* Smaller than what there is to send */
	WORKS(setsockopt(listening, SOL_SOCKET, SO_RCVBUF, &(int){ 65536 }, sizeof(int)));
	WORKS(setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &(int){ 65536 }, sizeof(int)));
	WORKS(connect(fds[0], (struct sockaddr *)&at, sizeof(at)));
	fds[1] = (int)WORKS(accept4(listening, NULL, NULL, SOCK_CLOEXEC));
	close(listening);
}

/* Before the source has a VM: nothing of it shall live on in the receiver. */
static void begin_receiver(struct receiver *r, uint32_t backing, unsigned regions)
{
	int fds[2];

	make_connection(AF_UNIX, fds);
	fflush(stdout);
	r->pid = (pid_t)WORKS(fork());
	if (!r->pid) {
		close(fds[0]);
		run_receiver(fds[1], backing, regions);
	}
	close(fds[1]);
	r->sock = fds[0];
}

static void await_receiver(const struct receiver *r)
{
	char byte;

	CHECK_EQ(WORKS(read(r->sock, &byte, 1)), 1);
}

static void end_receiver(struct receiver *r, int expected_status)
{
	int status;

	close(r->sock);
	WORKS(waitpid(r->pid, &status, 0));
	CHECK_EQ(status, expected_status);
}

/* ---- the source ---- */

struct source {
	struct lab lab;
	struct gmem_region *region;
	uint64_t size;
	char *hva;
	pthread_t threads[WRITERS];
	atomic_bool stops;
	struct gmem_migration *migration;
	struct gmem_migration_status status;
};

static bool begin_source(struct source *s, uint32_t backing)
{
	if (!(expect_vm(DEFAULT_VM)->backings & 1u << backing))
		return false;
	lab_new(&s->lab, DEFAULT_VM);
	s->region = lab_add(&s->lab, backing, BASE, PAGES, NULL);
	s->size = gmem_region_size(s->region);
	s->hva = gmem_region_hva(s->region);
	for (uint64_t at = 0; at < s->size; at += s->lab.page)
		host_store(s->hva + at, (uint32_t)(at + 1));
	s->migration = NULL;
	s->status = (struct gmem_migration_status){ .size = sizeof(s->status) };
	atomic_store(&s->stops, false);
	return true;
}

static void end_source(struct source *s)
{
	gmem_migration_free(s->migration);
	s->migration = NULL;
	lab_free(&s->lab);
}

static void migrate_with(struct source *s, int fd, uint64_t flags, uint64_t limit)
{
	GMEM_OPTS(gmem_migration_opts, opts, .max_bytes_per_second = limit,
		  .flags = flags | GMEM_MIGRATION_VCPUS_STOPPED);

	gmem_migration_free(s->migration);
	s->migration = NULL;
	OK(gmem_migration_new(s->lab.vm, fd, &opts, &s->migration));
}

static void *scribble(void *data)
{
	struct source *s = data;
	struct gmem_view *view;
	uint64_t number = 1;

	OK(gmem_view_new(s->lab.vm, &view));
	while (!atomic_load(&s->stops)) {
		for (unsigned i = 0; i < 16; i++, number++) {
			uint64_t at = number * 0x9e3779b97f4a7c15 % (s->size - 64);

			OK(gmem_view_write(view, BASE + at, &number, sizeof(number), NULL));
			OK(gmem_view_store(view, BASE + at / 4 * 4, 4, GMEM_RELAXED, (uint32_t)number));
		}
		usleep(1000);
	}
	gmem_view_free(view);
	return NULL;
}

static void begin_writers(struct source *s)
{
	for (unsigned i = 0; i < WRITERS; i++)
		CHECK_EQ(pthread_create(&s->threads[i], NULL, scribble, s), 0);
}

static void end_writers(struct source *s)
{
	atomic_store(&s->stops, true);
	for (unsigned i = 0; i < WRITERS; i++)
		CHECK_EQ(pthread_join(s->threads[i], NULL), 0);
}

/* What the library does itself, and the guest */
static void disturb(struct source *s, unsigned round)
{
	uint64_t page = s->lab.page;

	GUEST_STORES(&s->lab.guest, BASE + (round * 77 + 1) % PAGES * page, round * 3 + 1);
	OK(gmem_vm_discard(s->lab.vm, BASE + (round * 31 + 7) % PAGES * page, page, NULL, NULL));
}

static void send_bytes(int sock, const char *bytes, uint64_t size)
{
	ssize_t n;

	for (uint64_t done = 0; done < size; done += (uint64_t)n)
		n = WORKS(send(sock, bytes + done, size - done, MSG_NOSIGNAL));
}

static void send_memory(const struct source *s, int sock)
{
	send_bytes(sock, s->hva, s->size);
}

static void send_rounds(struct source *s, unsigned rounds)
{
	begin_writers(s);
	for (unsigned round = 1; round <= rounds; round++) {
		OK(gmem_migration_round(s->migration, &s->status));
		CHECK_EQ(s->status.round, round);
		disturb(s, round);
	}
	end_writers(s);
	disturb(s, 100);
	OK(gmem_migration_finish(s->migration, &s->status));
	CHECK_EQ(s->status.left_bytes, 0);
}

static void move_guest(uint32_t from, uint32_t to, unsigned regions, uint64_t flags)
{
	struct receiver r;
	struct source s;

	in_case("from %s to %u of %s", gmem_backing_name(from), regions, gmem_backing_name(to));
	if (!(expect_vm(DEFAULT_VM)->backings & 1u << to))
		return;
	begin_receiver(&r, to, regions);
	if (begin_source(&s, from)) {
		await_receiver(&r);
		migrate_with(&s, r.sock, flags, 0);
		send_rounds(&s, 5);
		send_memory(&s, r.sock);
		end_receiver(&r, 0);
		end_source(&s);
	} else {
		kill(r.pid, SIGKILL);
		end_receiver(&r, SIGKILL);
	}
}

/* ---- what arrives ---- */

TEST(what_is_written_while_it_migrates_arrives)
{
	move_guest(GMEM_BACKING_HOST, GMEM_BACKING_HOST, 1, 0);
}

TEST(the_receiver_may_have_other_regions_and_other_memory)
{
	move_guest(GMEM_BACKING_HOST, GMEM_BACKING_SHARED, 2, 0);
	move_guest(GMEM_BACKING_MAPPED, GMEM_BACKING_HOST, 4, 0);
}

TEST(shared_memory_gets_a_log_and_migrates)
{
	move_guest(GMEM_BACKING_SHARED, GMEM_BACKING_HOST, 2, 0);
}

TEST(without_threads_it_migrates_too)
{
	move_guest(GMEM_BACKING_SHARED, GMEM_BACKING_MAPPED, 1, GMEM_MIGRATION_NO_THREADS);
}

/* The receiver has what there is at the end. */
TEST(regions_may_come_and_go_between_rounds)
{
	struct gmem_region *old, *new;
	struct receiver r;
	struct source s;

	begin_receiver(&r, GMEM_BACKING_HOST, 0);
	CHECK(begin_source(&s, GMEM_BACKING_HOST));
	await_receiver(&r);
	old = lab_add(&s.lab, GMEM_BACKING_HOST, OLD, FEW, NULL);
	memset(gmem_region_hva(old), 5, FEW * s.lab.page);
	migrate_with(&s, r.sock, 0, 0);
	OK(gmem_migration_round(s.migration, NULL));
	OK(gmem_region_remove(old));
	new = lab_add(&s.lab, GMEM_BACKING_HOST, NEW, FEW, NULL);
	memset(gmem_region_hva(new), 6, FEW * s.lab.page);
	OK(gmem_migration_round(s.migration, &s.status));
	CHECK(s.status.memory_bytes >= FEW * s.lab.page);
	GUEST_STORES(&s.lab.guest, NEW + s.lab.page, 99);
	OK(gmem_migration_round(s.migration, &s.status));
	GUEST_STORES(&s.lab.guest, NEW, 98);
	disturb(&s, 1);
	OK(gmem_migration_finish(s.migration, NULL));
	send_memory(&s, r.sock);
	send_bytes(r.sock, gmem_region_hva(new), FEW * s.lab.page);
	end_receiver(&r, 0);
	end_source(&s);
}

/* With timers that interrupt whatever waits, and a socket that never does */
static void on_alarm(int number)
{
	(void)number;
}

TEST(signals_and_sockets_that_never_block_change_nothing)
{
	const struct sigaction action = { .sa_handler = on_alarm };	/* without SA_RESTART */
	const struct itimerval often = { { 0, 700 }, { 0, 700 } }, never = { { 0, 0 }, { 0, 0 } };
	struct receiver r;
	struct source s;

	begin_receiver(&r, GMEM_BACKING_HOST, 1);
	CHECK(begin_source(&s, GMEM_BACKING_HOST));
	await_receiver(&r);
	WORKS(fcntl(r.sock, F_SETFL, O_RDWR | O_NONBLOCK));
	WORKS(sigaction(SIGALRM, &action, NULL));
	migrate_with(&s, r.sock, 0, 256 * MIB);
	WORKS(setitimer(ITIMER_REAL, &often, NULL));
	for (unsigned round = 1; round <= 3; round++)
		OK(gmem_migration_round(s.migration, &s.status));
	WORKS(setitimer(ITIMER_REAL, &never, NULL));
	OK(gmem_migration_finish(s.migration, &s.status));
	WORKS(fcntl(r.sock, F_SETFL, O_RDWR));
	send_memory(&s, r.sock);
	end_receiver(&r, 0);
	end_source(&s);
}

TEST(a_snapshot_of_a_running_vm_is_one_file)
{
	struct source s;
	char *expected;
	int fd = (int)WORKS(memfd_create("snapshot", MFD_CLOEXEC));

	CHECK(begin_source(&s, GMEM_BACKING_HOST));
	migrate_with(&s, fd, 0, 0);
	send_rounds(&s, 5);
	expected = malloc(s.size);
	CHECK(expected);
	memcpy(expected, s.hva, s.size);
	OK(gmem_image_verify(fd, NULL, NULL));
	memset(s.hva, 0x77, s.size);
	OK(gmem_vm_restore(s.lab.vm, fd, NULL, NULL));
	CHECK(!memcmp(s.hva, expected, s.size));
	free(expected);
	close(fd);
	end_source(&s);
}

/* ---- what does not ---- */

TEST(a_stream_that_begins_in_the_middle_is_refused)
{
	GMEM_OPTS(gmem_transfer_opts, second, .image_offset = 0);
	struct source s;
	int fd = (int)WORKS(memfd_create("snapshot", MFD_CLOEXEC));

	CHECK(begin_source(&s, GMEM_BACKING_HOST));
	migrate_with(&s, fd, 0, 0);
	OK(gmem_migration_round(s.migration, &s.status));
	second.image_offset = (s.status.sent_bytes + 4095) / 4096 * 4096;
	disturb(&s, 1);
	OK(gmem_migration_finish(s.migration, NULL));
	OK(gmem_vm_restore(s.lab.vm, fd, NULL, NULL));
	REFUSED(gmem_vm_restore(s.lab.vm, fd, &second, NULL), -ENOLINK);
	close(fd);
	end_source(&s);
}

TEST(a_stream_without_its_last_round_is_refused)
{
	struct source s;
	int fd = (int)WORKS(memfd_create("snapshot", MFD_CLOEXEC));

	CHECK(begin_source(&s, GMEM_BACKING_HOST));
	migrate_with(&s, fd, 0, 0);
	OK(gmem_migration_round(s.migration, NULL));
	REFUSED(gmem_vm_restore(s.lab.vm, fd, NULL, NULL), -ENODATA);
	close(fd);
	end_source(&s);
}

/* ---- who dies ---- */

static void *kill_soon(void *data)
{
	usleep(20000);
	kill(*(pid_t *)data, SIGKILL);
	return NULL;
}

/* SIGPIPE would end this test. */
TEST(a_receiver_that_is_killed_leaves_the_source_as_it_was)
{
	GMEM_OPTS(gmem_dirty_info, info, .bytes = 0);
	struct receiver doomed, next;
	struct gmem_dirty *other;
	pthread_t killer;
	struct source s;
	int err;

	begin_receiver(&doomed, GMEM_BACKING_HOST, 1);
	begin_receiver(&next, GMEM_BACKING_HOST, 2);
	CHECK(begin_source(&s, GMEM_BACKING_HOST));
	await_receiver(&doomed);
	await_receiver(&next);
	OK(gmem_dirty_new(s.lab.vm, NULL, &other));
	OK(gmem_dirty_collect(other, NULL));
	GUEST_STORES(&s.lab.guest, BASE, 0xabcd);

	migrate_with(&s, doomed.sock, 0, 4 * MIB);
	CHECK_EQ(pthread_create(&killer, NULL, kill_soon, &doomed.pid), 0);
	err = gmem_migration_round(s.migration, &s.status);
	pthread_join(killer, NULL);
	CHECK(err == -EPIPE || err == -ECONNRESET);
	note("%s", gmem_last_error());
	CHECK_EQ(s.status.round, 0);
	REFUSED(gmem_migration_round(s.migration, NULL), -ENOTCONN);
	REFUSED(gmem_migration_finish(s.migration, NULL), -ENOTCONN);
	end_receiver(&doomed, SIGKILL);

	OK(gmem_dirty_collect(other, &info));
	CHECK_EQ(info.bytes, s.lab.page);
	gmem_dirty_free(other);
	migrate_with(&s, next.sock, 0, 0);
	send_rounds(&s, 3);
	send_memory(&s, next.sock);
	end_receiver(&next, 0);
	end_source(&s);
}

/* In a process of its own, which is killed while it sends the second round, or the first */
static void run_source(int sock, unsigned rounds)
{
	struct source s;

	CHECK(begin_source(&s, GMEM_BACKING_HOST));
	migrate_with(&s, sock, 0, 0);
	for (unsigned round = 0; round < rounds; round++)
		OK(gmem_migration_round(s.migration, NULL));
	gmem_migration_set_limit(s.migration, 4096);
	for (uint64_t at = 0; at < s.size; at += s.lab.page)
		GUEST_STORES(&s.lab.guest, BASE + at, 7);
	gmem_migration_round(s.migration, NULL);
	gmem_migration_round(s.migration, NULL);
	FAIL("nobody has killed the source");
}

TEST(a_source_that_is_killed_is_told_to_the_receiver)
{
	for (unsigned rounds = 0; rounds < 2; rounds++) {
		struct lab lab;
		pid_t source;
		int fds[2], status;
		pthread_t killer;

		in_case("%u rounds before", rounds);
		make_connection(AF_UNIX, fds);
		fflush(stdout);
		source = (pid_t)WORKS(fork());
		if (!source) {
			close(fds[1]);
			run_source(fds[0], rounds);
		}
		close(fds[0]);
		lab_new(&lab, DEFAULT_VM);
		lab_add(&lab, GMEM_BACKING_HOST, BASE, PAGES, NULL);
		/* After it has begun to send */
		WORKS(poll(&(struct pollfd){ .fd = fds[1], .events = POLLIN }, 1, -1));
		CHECK_EQ(pthread_create(&killer, NULL, kill_soon, &source), 0);
		REFUSED(gmem_vm_restore(lab.vm, fds[1], NULL, NULL), -ENODATA);
		pthread_join(killer, NULL);
		WORKS(waitpid(source, &status, 0));
		CHECK_EQ(status, SIGKILL);
		lab_free(&lab);
		close(fds[1]);
	}
}

/* ---- who does not do its part ---- */

struct call {
	pthread_t thread;
	struct gmem_migration *migration;
	void (*function)(struct gmem_migration *migration);
};

static void *call_soon(void *data)
{
	struct call *call = data;

	usleep(30000);
	call->function(call->migration);
	return NULL;
}

static void end_limit(struct gmem_migration *migration)
{
	gmem_migration_set_limit(migration, 0);
}

static void begin_call(struct call *call, struct gmem_migration *migration,
		       void (*function)(struct gmem_migration *migration))
{
	*call = (struct call){ .migration = migration, .function = function };
	CHECK_EQ(pthread_create(&call->thread, NULL, call_soon, call), 0);
}

/* By a ring and without one, in sockets and pipes */
TEST(a_round_that_nobody_reads_can_be_cancelled)
{
	static const uint64_t flags[] = { 0, GMEM_MIGRATION_NO_THREADS };

	for (unsigned kind = 0; kind < 6; kind++) {
		struct source s;
		struct call call;
		int fds[2];

		in_case("kind %u", kind);
		if (kind / 2 == 2) {
			WORKS(pipe2(fds, O_CLOEXEC));
		} else {
			int ends[2];

			make_connection(kind / 2 ? AF_INET : AF_UNIX, ends);
			fds[0] = ends[1];
			fds[1] = ends[0];
		}
		CHECK(begin_source(&s, GMEM_BACKING_HOST));
		memset(s.hva, 1, s.size);
		migrate_with(&s, fds[1], flags[kind % 2], 0);
		begin_call(&call, s.migration, gmem_migration_cancel);
		REFUSED(gmem_migration_round(s.migration, &s.status), -ECANCELED);
		CHECK_EQ(pthread_join(call.thread, NULL), 0);
		REFUSED(gmem_migration_round(s.migration, NULL), -ECANCELED);
		close(fds[1]);
		REFUSED(gmem_vm_restore(s.lab.vm, fds[0], NULL, NULL), -ENODATA);
		close(fds[0]);
		end_source(&s);
	}
}

TEST(a_limit_holds_and_can_be_taken_away)
{
	const uint64_t limit = 16 * MIB;
	struct receiver r;
	struct source s;
	struct call call;

	begin_receiver(&r, GMEM_BACKING_HOST, 1);
	CHECK(begin_source(&s, GMEM_BACKING_HOST));
	await_receiver(&r);
	memset(s.hva, 1, s.size);
	migrate_with(&s, r.sock, 0, limit);
	OK(gmem_migration_round(s.migration, &s.status));
	CHECK(s.status.sent_bytes > s.size);
	/* But for what the buffers take at once, and 10 ms */
	CHECK(s.status.ns >= (s.status.sent_bytes - 4 * MIB) * 1000 / limit * 1000000);

	/* It would take two hours. */
	gmem_migration_set_limit(s.migration, 1024);
	memset(s.hva, 3, s.size);
	for (uint64_t at = 0; at < s.size; at += s.lab.page)
		GUEST_STORES(&s.lab.guest, BASE + at, (uint32_t)at);
	begin_call(&call, s.migration, end_limit);
	OK(gmem_migration_round(s.migration, &s.status));
	CHECK_EQ(pthread_join(call.thread, NULL), 0);
	OK(gmem_migration_finish(s.migration, NULL));
	send_memory(&s, r.sock);
	end_receiver(&r, 0);
	end_source(&s);
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
