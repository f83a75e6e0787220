/* SPDX-License-Identifier: MIT */
/*
 * What device processes write, and a tracker that is to tell all of it: they scribble with several
 * threads, come and go, are forked, and are killed at any moment. A copy of what is told has to be
 * the memory, byte by byte, whenever nobody writes.
 */
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "lab.h"

#define LOW		(256 * MIB)
#define HIGH		(5 * GIB)
#define LOW_SIZE	(6 * MIB)
#define HIGH_SIZE	(3 * MIB)
#define THREADS		3
#define DEVICES		3
#define PATIENT		60000	/* ms: an answer is to come */

/* Shared with the devices */
struct control {
	uint32_t pauses;	/* is to be 1 while they must not write */
	uint32_t paused;	/* threads that do not, of all */
	uint64_t writes;
};

static struct control *control;

/* ---- a device process ---- */

struct scribbler {
	struct gmem_import *import;
	pthread_t thread;
	uint64_t seed;
};

static uint64_t next(uint64_t *seed)
{
	*seed = *seed * 6364136223846793005 + 1442695040888963407;
	return *seed >> 24;
}

static void scribble_raw(struct gmem_view *view, uint64_t gpa, uint64_t size)
{
	void *hva;

	gmem_view_begin(view);
	if (gmem_view_hva(view, gpa, size, &hva) == 0) {
		memset(hva, (int)size, size);
		gmem_view_mark_dirty(view, gpa, size);
	}
	gmem_view_end(view);
}

static void scribble(struct gmem_view *view, uint64_t *seed)
{
	uint64_t number = next(seed), gpa, size = 1 + next(seed) % 300, bytes[40], expected = 0;
	uint64_t room = number % 4 ? LOW_SIZE : HIGH_SIZE;

	gpa = (number % 4 ? LOW : HIGH) + next(seed) % (room - 20000);
	for (size_t i = 0; i < ARRAY_SIZE(bytes); i++)
		bytes[i] = number + i;
	switch (next(seed) % 7) {
	case 0:
	case 1:
		gmem_view_write(view, gpa, bytes, size, NULL);
		break;
	case 2:
		gmem_view_store(view, gpa & ~7ull, 8, GMEM_RELEASE, number);
		break;
	case 3:
		gmem_view_fill(view, gpa, (uint8_t)number, size * 60, NULL);
		break;
	case 4:
		gmem_view_load(view, gpa & ~7ull, 8, GMEM_RELAXED, &expected);
		gmem_view_compare_exchange(view, gpa & ~7ull, 8, GMEM_RELEASE, &expected, number);
		break;
	case 5:
		scribble_raw(view, gpa, size);
		break;
	default:
		gmem_view_copy(view, gpa, number % 4 ? HIGH : LOW, size, NULL);
	}
}

static void pause_if_told(void)
{
	if (!__atomic_load_n(&control->pauses, __ATOMIC_SEQ_CST))
		return;
	__atomic_add_fetch(&control->paused, 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&control->pauses, __ATOMIC_SEQ_CST))
		usleep(100);
	__atomic_sub_fetch(&control->paused, 1, __ATOMIC_SEQ_CST);
}

static void *scribble_for_ever(void *data)
{
	struct scribbler *scribbler = data;
	struct gmem_view *view;

	if (gmem_import_view_new(scribbler->import, &view))
		_exit(4);
	for (;;) {
		pause_if_told();
		scribble(view, &scribbler->seed);
		/* Those that are to read it have a processor, too. */
		if (__atomic_add_fetch(&control->writes, 1, __ATOMIC_RELAXED) % 16 == 0)
			usleep(50);
	}
	return NULL;
}

/* Ends with its parent, or when it is killed. */
static void run_device(int sock, uint64_t seed)
{
	struct scribbler scribblers[THREADS];
	struct gmem_import *import;
	int ret;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (gmem_recovery_enable() || gmem_import_new(sock, NULL, &import))
		_exit(3);
	close(sock);
	while ((ret = gmem_import_dispatch(import)) == 0)
		gmem_import_wait(import, -1, 10);
	for (int i = 0; i < THREADS && ret > 0; i++) {
		scribblers[i] = (struct scribbler){ .import = import, .seed = seed + (uint64_t)i };
		if (pthread_create(&scribblers[i].thread, NULL, scribble_for_ever, &scribblers[i]))
			_exit(5);
	}
	while (ret >= 0)
		ret = gmem_import_wait(import, -1, 1000);
	/* Removed: it stops as soon as it hears of it, and that is too late. */
	_exit(0);
}

/* ---- the VMM's side ---- */

struct device {
	pid_t pid;		/* 0: there is none */
	struct gmem_peer *peer;
};

struct site {
	struct lab lab;
	struct gmem_region *regions[2];
	char *copies[2];
	struct gmem_export *exporter;
	struct gmem_dirty *dirty;
	struct device devices[DEVICES];
	uint64_t seed;
	uint64_t told;		/* bytes */
};

static struct gmem_region *add_memory(struct site *s, uint64_t gpa, uint64_t size)
{
	GMEM_OPTS(gmem_memory_opts, memory, .flags = GMEM_MEMORY_MEMFD);
	GMEM_OPTS(gmem_region_opts, opts, .memory = &memory);

	return lab_add(&s->lab, GMEM_BACKING_HOST, gpa, size / s->lab.page, &opts);
}

static void track(struct site *s)
{
	GMEM_OPTS(gmem_dirty_opts, opts);

	OK(gmem_dirty_new(s->lab.vm, &opts, &s->dirty));
}

static void site_new(struct site *s)
{
	static const uint64_t sizes[] = { LOW_SIZE, HIGH_SIZE };

	memset(s, 0, sizeof(*s));
	control = mmap(NULL, sizeof(*control), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(control != MAP_FAILED);
	lab_new(&s->lab, DEFAULT_VM);
	s->regions[0] = add_memory(s, LOW, LOW_SIZE);
	s->regions[1] = add_memory(s, HIGH, HIGH_SIZE);
	for (int i = 0; i < 2; i++) {
		s->copies[i] = calloc(1, sizes[i]);
		CHECK(s->copies[i]);
	}
	OK(gmem_export_new(s->lab.vm, NULL, &s->exporter));
	s->seed = (uint64_t)time(NULL);
	in_case("seed %llu", (unsigned long long)s->seed);
}

static void come(struct site *s, struct device *device)
{
	GMEM_OPTS(gmem_peer_opts, opts, .wait_ms = PATIENT);
	int sockets[2];

	WORKS(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets));
	device->pid = (pid_t)WORKS(fork());
	if (!device->pid) {
		close(sockets[0]);
		run_device(sockets[1], next(&s->seed));
	}
	next(&s->seed);
	close(sockets[1]);
	OK(gmem_peer_add(s->exporter, sockets[0], &opts, &device->peer));
	close(sockets[0]);
	OK(gmem_export_dispatch(s->exporter));
}

static void kill_device(struct device *device)
{
	WORKS(kill(device->pid, SIGKILL));
	WORKS(waitpid(device->pid, NULL, 0));
	device->pid = 0;
}

static void site_free(struct site *s)
{
	for (int i = 0; i < DEVICES; i++)
		if (s->devices[i].pid)
			kill_device(&s->devices[i]);
	gmem_dirty_free(s->dirty);
	gmem_export_free(s->exporter);
	lab_free(&s->lab);
	free(s->copies[0]);
	free(s->copies[1]);
	munmap(control, sizeof(*control));
}

/* Copy what is told. */
static void collect(struct site *s)
{
	struct gmem_dirty_range range;
	uint64_t gpa = 0;

	OK(gmem_dirty_collect(s->dirty, NULL));
	while (gmem_dirty_next(s->dirty, gpa, &range) == 0) {
		int i = range.gpa >= HIGH;
		uint64_t offset = range.gpa - (i ? HIGH : LOW);

		CHECK(range.flags == 0);
		memcpy(s->copies[i] + offset, (char *)gmem_region_hva(s->regions[i]) + offset, range.size);
		s->told += range.size;
		gpa = range.gpa + range.size;
	}
}

static void check_copy(const struct site *s)
{
	static const uint64_t sizes[] = { LOW_SIZE, HIGH_SIZE };

	for (int i = 0; i < 2; i++) {
		const char *memory = gmem_region_hva(s->regions[i]);

		for (uint64_t at = 0; at < sizes[i]; at += s->lab.page)
			if (memcmp(memory + at, s->copies[i] + at, s->lab.page) != 0)
				FAIL("page 0x%llx of region %d was missed", (unsigned long long)at, i);
	}
}

/* Devices that have begun to write have stopped, when it returns; others do not begin. */
static void pause_devices(uint32_t threads)
{
	__atomic_store_n(&control->pauses, 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&control->paused, __ATOMIC_SEQ_CST) < threads)
		usleep(100);
}

static void go_on(void)
{
	__atomic_store_n(&control->pauses, 0, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&control->paused, __ATOMIC_SEQ_CST))
		usleep(100);
}

static void let_them_write(struct site *s, uint64_t writes)
{
	uint64_t until = __atomic_load_n(&control->writes, __ATOMIC_RELAXED) + writes;

	while (__atomic_load_n(&control->writes, __ATOMIC_RELAXED) < until) {
		OK(gmem_export_dispatch(s->exporter));
		usleep(200);
	}
}

static void settle(struct site *s)
{
	for (int i = 0; i < DEVICES; i++)
		if (s->devices[i].pid)
			CHECK_RESULT(gmem_peer_wait(s->devices[i].peer, PATIENT), 1);
}

TEST(what_devices_write_is_told)
{
	uint64_t told;
	struct site s;

	site_new(&s);
	for (int i = 0; i < DEVICES; i++)
		come(&s, &s.devices[i]);
	settle(&s);
	let_them_write(&s, 1000);
	/* also what is written while tracking begins */
	track(&s);
	for (int round = 0; round < 60; round++) {
		let_them_write(&s, 1 + next(&s.seed) % 300);
		collect(&s);
		if (round % 3)
			continue;
		settle(&s);
		pause_devices(THREADS * DEVICES);
		collect(&s);
		check_copy(&s);
		/* They all mark, so nothing is told that was not written. */
		told = s.told;
		collect(&s);
		CHECK_EQ(s.told, told);
		go_on();
	}
	site_free(&s);
}

/* Each of them may have been between a write and its mark. */
TEST(what_killed_devices_wrote_is_told)
{
	struct site s;

	site_new(&s);
	track(&s);
	for (int round = 0; round < 30; round++) {
		for (int i = 0; i < DEVICES; i++)
			come(&s, &s.devices[i]);
		if (round % 2)
			settle(&s);
		let_them_write(&s, 1 + next(&s.seed) % 500);
		if (round % 3 == 0)
			collect(&s);
		for (int i = 0; i < DEVICES; i++)
			kill_device(&s.devices[i]);
		/* Nobody has read the ends of their connections. */
		collect(&s);
		check_copy(&s);
		for (int i = 0; i < DEVICES; i++)
			gmem_peer_remove(s.devices[i].peer);
		collect(&s);
		check_copy(&s);
	}
	site_free(&s);
}

TEST(devices_and_trackers_come_and_go)
{
	struct site s;

	site_new(&s);
	for (int round = 0; round < 60; round++) {
		struct device *device = &s.devices[next(&s.seed) % DEVICES];
		uint64_t how = next(&s.seed) % 8;
		uint32_t count = 0;

		if (how < 3 && !device->pid) {
			come(&s, device);
		} else if (how < 6 && device->pid) {
			kill_device(device);
			if (how % 2)
				OK(gmem_export_dispatch(s.exporter));
			if (s.dirty && how > 3)
				collect(&s);
			gmem_peer_remove(device->peer);
		} else if (s.dirty && how == 6) {
			gmem_dirty_free(s.dirty);
			s.dirty = NULL;
		} else if (!s.dirty) {
			track(&s);
		}
		OK(gmem_export_dispatch(s.exporter));
		if (!s.dirty)
			continue;
		collect(&s);
		settle(&s);
		if (round % 4)
			continue;
		for (int i = 0; i < DEVICES; i++)
			count += s.devices[i].pid != 0;
		if (count)
			let_them_write(&s, 200);
		pause_devices(THREADS * count);
		collect(&s);
		check_copy(&s);
		go_on();
	}
	site_free(&s);
}

/* ---- forks ---- */

/* A child of an importer has its views and its map: what it writes is marked, too. */
static void run_forking_device(int sock, int ready)
{
	struct gmem_import *import;
	struct gmem_view *view;
	pid_t child;
	char byte;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (gmem_import_new(sock, NULL, &import) || gmem_import_view_new(import, &view))
		_exit(3);
	while (gmem_import_dispatch(import) == 0)
		gmem_import_wait(import, -1, 10);
	child = fork();
	if (child == 0)
		_exit(gmem_view_store(view, LOW + 5 * (uint64_t)sysconf(_SC_PAGESIZE), 8, GMEM_RELEASE, 7) != 0);
	if (waitpid(child, NULL, 0) != child || write(ready, "", 1) != 1)
		_exit(4);
	(void)!read(ready, &byte, 1);
	_exit(0);
}

TEST(what_a_child_of_a_device_writes_is_told)
{
	GMEM_OPTS(gmem_dirty_info, info);
	int sockets[2], ready[2];
	struct gmem_peer *peer;
	struct site s;
	pid_t pid;
	char byte;

	site_new(&s);
	track(&s);
	OK(gmem_dirty_collect(s.dirty, NULL));
	WORKS(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets));
	WORKS(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ready));
	pid = (pid_t)WORKS(fork());
	if (!pid) {
		close(sockets[0]);
		close(ready[0]);
		run_forking_device(sockets[1], ready[1]);
	}
	close(sockets[1]);
	close(ready[1]);
	OK(gmem_peer_add(s.exporter, sockets[0], NULL, &peer));
	close(sockets[0]);
	CHECK_RESULT(gmem_peer_wait(peer, PATIENT), 1);
	CHECK_EQ(WORKS(read(ready[0], &byte, 1)), 1);
	OK(gmem_dirty_collect(s.dirty, &info));
	CHECK_EQ(info.bytes, s.lab.page);
	close(ready[0]);
	WORKS(waitpid(pid, NULL, 0));
	site_free(&s);
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
