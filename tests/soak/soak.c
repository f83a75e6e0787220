/* SPDX-License-Identifier: MIT */
/*
 * soak [--seconds N] [--slack-ms N] [--quiet] : conversions and hotplug while peers of an export
 * come, go, stop answering and die, for a long time. It fails if memory mappings, fds or bytes of
 * the heap grow, or if a call took longer than it may.
 *
 * Eight threads are peers, each with one short life after the other: as an import that reads
 * memory, or as a process that speaks the protocol and then stops, dies, refuses or talks
 * nonsense. One thread dispatches the export. The main thread converts ranges, removes and adds
 * regions, one at a time and several at once.
 *
 * Every second it prints what there is. Every few seconds all peers rest: what is there then
 * is compared with the first such rest after the warm-up, and must be the same but for TOLERANCE.
 *
 * It is built twice: soak-scripted on the scripted kernel of the unit tests, where each system
 * call succeeds; and soak, with the public library on a real kernel with private memory. For an
 * emulated one: a static build, and tests/kernels/run --limit 900 --story x86_64-private --
 * BUILD/tests/soak/soak --seconds 600 --slack-ms 3000
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <malloc.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "gmem.h"
#ifdef SCRIPTED
#include "fake.h"
#else
#include <linux/kvm.h>
#endif

#define PAGE		((uint64_t)4096)
#define LANES		6
#define LANE_PAGES	64
#define LANE_SIZE	(LANE_PAGES * PAGE)
#define LANE_STEP	(2 * LANE_SIZE)		/* from one region to the next */
#define PEERS		8
#define WAIT_MS		50			/* that a peer has for its answer */
#define REST_SECONDS	5
#define TAG		UINT64_C(0x7461670000000000)

/* What may differ between two rests: what the kernel merges, what is allocated just then */
#define TOLERANCE_MAPPINGS	2
#define TOLERANCE_BYTES		(16 << 10)

static struct {
	unsigned seconds, slack_ms;
	bool quiet;
} options = { .seconds = 600, .slack_ms = 500 };

static struct {
	struct gmem_vm *vm;
	struct gmem_view *view;
	struct gmem_export *exporter;
	struct gmem_plan *plan;
	struct gmem_region *regions[LANES];
	char *hva[LANES];
	int stop, rest;			/* atomic: what the peers are to do */
	int resting;			/* atomic: peers that rest */
	uint64_t lives[PEERS];		/* atomic */
	uint64_t reads;			/* atomic: pages that imports read */
} world;

__attribute__((format(printf, 1, 2), noreturn))
static void give_up(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fprintf(stderr, ": %s\n", gmem_last_error());
	_exit(1);
}

static void must(int ret, const char *what)
{
	if (ret < 0)
		give_up("%s: %d", what, ret);
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static uint64_t take(uint64_t *random)
{
	*random ^= *random << 13;
	*random ^= *random >> 7;
	*random ^= *random << 17;
	return *random;
}

static void sleep_ms(uint64_t milliseconds)
{
	usleep((useconds_t)milliseconds * 1000);
}

static bool flag(int *which)
{
	return __atomic_load_n(which, __ATOMIC_ACQUIRE);
}

/* ---- the longest of each kind of call ---- */

enum call { CONVERT, HOTPLUG, CHANGE, ADD_PEER, REMOVE_PEER, DISPATCH_EXPORT, DISPATCH_IMPORT, CALLS };

static const struct {
	const char *name;
	unsigned wait_ms;		/* that the caller allowed */
} calls[] = {
	[CONVERT] = { "convert", WAIT_MS }, [HOTPLUG] = { "hotplug", WAIT_MS }, [CHANGE] = { "change", WAIT_MS },
	[ADD_PEER] = { "peer-add", 0 }, [REMOVE_PEER] = { "peer-remove", 0 },
	[DISPATCH_EXPORT] = { "dispatch-export", 0 }, [DISPATCH_IMPORT] = { "dispatch-import", 0 },
};

static uint64_t longest[CALLS], count[CALLS];	/* atomic */

static void note(enum call call, uint64_t start)
{
	uint64_t took = now_ns() - start, most = __atomic_load_n(&longest[call], __ATOMIC_RELAXED);

	__atomic_fetch_add(&count[call], 1, __ATOMIC_RELAXED);
	while (took > most && !__atomic_compare_exchange_n(&longest[call], &most, took, false,
							   __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		;
}

/* ---- what there is ---- */

struct census {
	long mappings, fds, resident_kib;
	uint64_t heap;
};

static long count_lines(const char *path)
{
	FILE *file = fopen(path, "re");
	long lines = 0;
	int c;

	if (!file)
		give_up("%s", path);
	while ((c = getc(file)) != EOF)
		lines += c == '\n';
	fclose(file);
	return lines;
}

static long count_fds(void)
{
	long fds = 0;

	for (int fd = 0; fd < 4096; fd++)
		fds += fcntl(fd, F_GETFD) >= 0;
	return fds;
}

static struct census look(void)
{
	struct census ret = {
		.mappings = count_lines("/proc/self/maps"),
		.fds = count_fds(),
		.heap = mallinfo2().uordblks + mallinfo2().hblkhd,
	};
	FILE *file = fopen("/proc/self/statm", "re");
	long pages = 0;

	if (!file || fscanf(file, "%*d %ld", &pages) != 1)
		give_up("/proc/self/statm");
	fclose(file);
	ret.resident_kib = pages * 4;
	return ret;
}

/* ---- peers ---- */

struct message {
	uint32_t magic;
	uint16_t version, type;
	uint32_t sequence, status;
	uint64_t rest[6];
};

#define ANSWER 7

/* Answers until @until, or until there is nothing to answer any more. Returns false then. */
static bool answer_until(int sock, uint64_t until, uint32_t status)
{
	struct pollfd fd = { .fd = sock, .events = POLLIN };
	char control[CMSG_SPACE(sizeof(int))];
	struct message message;
	int passed;

	while (now_ns() < until && !flag(&world.stop) && !flag(&world.rest)) {
		struct iovec iov = { .iov_base = &message, .iov_len = sizeof(message) };
		struct msghdr header = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
					 .msg_controllen = sizeof(control) };

		if (poll(&fd, 1, 5) <= 0)
			continue;
		if (recvmsg(sock, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) != sizeof(message))
			return false;
		if (CMSG_FIRSTHDR(&header)) {
			memcpy(&passed, CMSG_DATA(CMSG_FIRSTHDR(&header)), sizeof(passed));
			close(passed);
		}
		message = (struct message){ .magic = message.magic, .version = message.version, .type = ANSWER,
					    .sequence = message.sequence, .status = status };
		if (send(sock, &message, sizeof(message), MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
			return false;
	}
	return true;
}

/* A page has its tag, or nothing since it was given back, or cannot be read now. */
static void read_some(struct gmem_view *view, uint64_t *random)
{
	for (unsigned n = 0; n < 32; n++) {
		uint64_t page = take(random) % (LANES * LANE_STEP / PAGE), value = 0;
		int err = gmem_view_load(view, page * PAGE, 8, GMEM_RELAXED, &value);

		if (!err && value && value != (TAG | page))
			give_up("an import reads 0x%" PRIx64 " at page %" PRIu64, value, page);
		__atomic_fetch_add(&world.reads, !err, __ATOMIC_RELAXED);
	}
}

static void live_as_import(int sock, uint64_t until, uint64_t *random)
{
	struct gmem_import *import;
	struct gmem_view *view;
	struct pollfd fd;
	int ret = 0;

	must(gmem_import_new(sock, NULL, &import), "an import");
	must(gmem_import_view_new(import, &view), "its view");
	fd = (struct pollfd){ .fd = gmem_import_fd(import), .events = POLLIN };
	while (ret >= 0 && now_ns() < until && !flag(&world.stop) && !flag(&world.rest)) {
		if (poll(&fd, 1, 2) > 0) {
			uint64_t start = now_ns();

			ret = gmem_import_dispatch(import);
			note(DISPATCH_IMPORT, start);
		}
		read_some(view, random);
	}
	gmem_view_free(view);
	gmem_import_free(import);
}

static void one_life(uint64_t *random)
{
	static const uint32_t nothing[16];
	GMEM_OPTS(gmem_peer_opts, opts, .flags = GMEM_PEER_CUT_OFF, .wait_ms = WAIT_MS);
	uint64_t start = now_ns(), until = start + take(random) % 1000 * 1000000;
	struct gmem_peer *peer;
	int sockets[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) < 0)
		give_up("a socket");
	must(gmem_peer_add(world.exporter, sockets[0], &opts, &peer), "a peer");
	note(ADD_PEER, start);
	close(sockets[0]);

	switch (take(random) % 8) {
	case 0:
		/* Stops answering. */
		if (answer_until(sockets[1], until, 0))
			sleep_ms(WAIT_MS * (1 + take(random) % 4));
		break;
	case 1:
		/* Dies, as far as the export can tell. */
		answer_until(sockets[1], until, 0);
		close(sockets[1]);
		sockets[1] = -1;
		sleep_ms(take(random) % 50);
		break;
	case 2:
		answer_until(sockets[1], until, ENOMEM);
		break;
	case 3:
		if (answer_until(sockets[1], until, 0))
			(void)send(sockets[1], nothing, take(random) % sizeof(nothing), MSG_NOSIGNAL);
		sleep_ms(take(random) % 50);
		break;
	default:
		live_as_import(sockets[1], until, random);
	}
	start = now_ns();
	gmem_peer_remove(peer);
	note(REMOVE_PEER, start);
	if (sockets[1] >= 0)
		close(sockets[1]);
}

static void *be_peers(void *data)
{
	unsigned number = (unsigned)(uintptr_t)data;
	uint64_t random = 0x9e3779b97f4a7c15u * (number + 1);

	while (!flag(&world.stop)) {
		if (flag(&world.rest)) {
			__atomic_fetch_add(&world.resting, 1, __ATOMIC_ACQ_REL);
			while (flag(&world.rest) && !flag(&world.stop))
				usleep(1000);
			__atomic_fetch_sub(&world.resting, 1, __ATOMIC_ACQ_REL);
			continue;
		}
		one_life(&random);
		__atomic_fetch_add(&world.lives[number], 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

static void *dispatch(void *data)
{
	struct pollfd fd = { .fd = gmem_export_fd(world.exporter), .events = POLLIN };

	while (!flag(&world.stop)) {
		uint64_t start;

		if (poll(&fd, 1, 20) <= 0)
			continue;
		start = now_ns();
		must(gmem_export_dispatch(world.exporter), "dispatching");
		note(DISPATCH_EXPORT, start);
	}
	return data;
}

/* ---- the VMM ---- */

static uint64_t lane_gpa(unsigned lane)
{
	return lane * LANE_STEP;
}

static void tag(uint64_t gpa, uint64_t size)
{
	for (uint64_t at = gpa; at < gpa + size; at += PAGE)
		(void)gmem_view_store(world.view, at, 8, GMEM_RELAXED, TAG | at / PAGE);
}

static struct gmem_region_opts region_opts(unsigned lane)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_HVA, .plan = world.plan, .hva = world.hva[lane]);

	return opts;
}

static void add_lane(unsigned lane)
{
	struct gmem_region_opts opts = region_opts(lane);

	must(gmem_region_add(world.vm, lane_gpa(lane), LANE_SIZE, &opts, &world.regions[lane]), "a region");
	tag(lane_gpa(lane), LANE_SIZE);
}

static void convert(uint64_t *random)
{
	unsigned lane = (unsigned)(take(random) % LANES);
	uint64_t page = take(random) % LANE_PAGES, pages = 1 + take(random) % (LANE_PAGES - page);
	uint64_t gpa = lane_gpa(lane) + page * PAGE, start = now_ns();
	bool to_private = take(random) & 1;

	if (!world.regions[lane])
		return;
	must(gmem_vm_convert(world.vm, gpa, pages * PAGE, to_private ? GMEM_STATE_PRIVATE : GMEM_STATE_SHARED,
			     NULL, NULL), "a conversion");
	note(CONVERT, start);
	if (!to_private)
		tag(gpa, pages * PAGE);
}

static void plug(uint64_t *random)
{
	unsigned lane = (unsigned)(take(random) % LANES);
	uint64_t start = now_ns();

	if (world.regions[lane]) {
		must(gmem_region_remove(world.regions[lane]), "removing a region");
		world.regions[lane] = NULL;
	} else {
		add_lane(lane);
	}
	note(HOTPLUG, start);
}

/* Removes what is there of two regions, and adds what is not, at once. */
static void change(uint64_t *random)
{
	unsigned first = (unsigned)(take(random) % LANES);
	struct gmem_region *next[LANES];
	struct gmem_region_opts opts[2];
	struct gmem_change *steps;
	uint64_t start;

	memcpy(next, world.regions, sizeof(next));
	must(gmem_change_new(world.vm, &steps), "a change");
	for (unsigned n = 0; n < 2; n++) {
		unsigned lane = (first + n) % LANES;

		opts[n] = region_opts(lane);
		if (next[lane]) {
			must(gmem_change_remove(steps, next[lane]), "a step");
			next[lane] = NULL;
		} else {
			must(gmem_change_add(steps, lane_gpa(lane), LANE_SIZE, &opts[n], &next[lane]), "a step");
		}
	}
	start = now_ns();
	must(gmem_change_apply(steps), "applying a change");
	note(CHANGE, start);
	gmem_change_free(steps);
	memcpy(world.regions, next, sizeof(next));
	for (unsigned n = 0; n < 2; n++)
		if (next[(first + n) % LANES])
			tag(lane_gpa((first + n) % LANES), LANE_SIZE);
}

static void work_until(uint64_t until, uint64_t *random)
{
	while (now_ns() < until) {
		unsigned what = (unsigned)(take(random) % 32);

		if (what == 0)
			change(random);
		else if (what < 4)
			plug(random);
		else
			convert(random);
		/* A guest does something with its memory, too. */
		usleep(200);
	}
}

/* ---- the world ---- */

static int new_vm(void)
{
#ifdef SCRIPTED
	fake_boot("7.3-swp-t1");
	return fake_new_vm();
#else
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), vm;

	if (kvm < 0)
		return -1;
	do
		vm = ioctl(kvm, KVM_CREATE_VM, 1UL);	/* KVM_X86_SW_PROTECTED_VM */
	while (vm < 0 && errno == EINTR);
	close(kvm);
	return vm;
#endif
}

static void begin(void)
{
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_PRIVATE });
	int vm_fd = new_vm();

	if (vm_fd < 0) {
		printf("soak cannot run here: no VM with private memory\n");
		exit(77);
	}
	must(gmem_vm_new(vm_fd, NULL, &world.vm), "a handle");
	if (gmem_plan_new(gmem_vm_caps(world.vm), &request, &world.plan) < 0) {
		printf("soak cannot run here: %s\n", gmem_last_error());
		exit(77);
	}
	must(gmem_view_new(world.vm, &world.view), "a view");
	must(gmem_recovery_enable(), "recovery");
	must(gmem_export_new(world.vm, NULL, &world.exporter), "an export");
	for (unsigned lane = 0; lane < LANES; lane++) {
		int fd = memfd_create("soak", MFD_ALLOW_SEALING | MFD_CLOEXEC);

		if (fd < 0 || ftruncate(fd, (off_t)LANE_SIZE) < 0 ||
		    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
			give_up("a memfd");
		world.hva[lane] = mmap(NULL, LANE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (world.hva[lane] == MAP_FAILED)
			give_up("mapping a memfd");
		must(gmem_export_add_memory(world.exporter, world.hva[lane], LANE_SIZE, fd, 0), "memory");
		close(fd);
		add_lane(lane);
	}
}

static void print_second(unsigned second, const struct census *census, bool rests)
{
	printf("%4u s%s: %ld mappings, %ld fds, %ld KiB resident, %" PRIu64 " bytes of heap; longest ms:", second,
	       rests ? ", at rest" : "", census->mappings, census->fds, census->resident_kib, census->heap);
	for (int i = 0; i < CALLS; i++)
		printf(" %s %.1f", calls[i].name, (double)longest[i] / 1e6);
	printf("\n");
	fflush(stdout);
}

/* All peers rest, and all regions are there and shared: what is left is the export's. */
static struct census rest(void)
{
	struct census census;

	__atomic_store_n(&world.rest, 1, __ATOMIC_RELEASE);
	while (__atomic_load_n(&world.resting, __ATOMIC_ACQUIRE) < PEERS)
		usleep(1000);
	for (unsigned lane = 0; lane < LANES; lane++) {
		if (!world.regions[lane])
			add_lane(lane);
		must(gmem_vm_convert(world.vm, lane_gpa(lane), LANE_SIZE, GMEM_STATE_SHARED, NULL, NULL),
		     "a conversion");
		tag(lane_gpa(lane), LANE_SIZE);
	}
	malloc_trim(0);
	census = look();
	__atomic_store_n(&world.rest, 0, __ATOMIC_RELEASE);
	return census;
}

static bool is_flat(const struct census *first, const struct census *now)
{
	return now->mappings <= first->mappings + TOLERANCE_MAPPINGS && now->fds <= first->fds &&
	       now->heap <= first->heap + TOLERANCE_BYTES;
}

/* Returns whether nothing grew. */
static bool run(void)
{
	uint64_t start = now_ns(), random = 42;
	struct census first = { 0 }, census;
	bool flat = true;
	unsigned rests = 0;

	for (unsigned second = 1; second <= options.seconds; second++) {
		bool is_rest = second % REST_SECONDS == 0 || second == options.seconds;

		work_until(start + second * UINT64_C(1000000000), &random);
		census = is_rest ? rest() : look();
		if (!options.quiet || is_rest)
			print_second(second, &census, is_rest);
		if (!is_rest)
			continue;
		/* The first is after the warm-up. */
		if (rests++ == 0)
			first = census;
		if (!is_flat(&first, &census)) {
			printf("not flat: %ld mappings, %ld fds and %" PRIu64 " bytes of heap at the first rest\n",
			       first.mappings, first.fds, first.heap);
			flat = false;
		}
	}
	return flat;
}

static bool was_in_time(void)
{
	bool in_time = true;

	for (int i = 0; i < CALLS; i++) {
		double most = (double)longest[i] / 1e6, allowed = calls[i].wait_ms + options.slack_ms;

		printf("%-16s %8" PRIu64 " calls, the longest %.1f ms%s\n", calls[i].name, count[i], most,
		       most > allowed ? ": TOO LONG" : "");
		in_time &= most <= allowed;
	}
	return in_time;
}

static void parse(int argc, char **argv)
{
	static const struct option known[] = {
		{ "seconds", required_argument, NULL, 's' }, { "slack-ms", required_argument, NULL, 'l' },
		{ "quiet", no_argument, NULL, 'q' }, { NULL, 0, NULL, 0 },
	};
	int option;

	while ((option = getopt_long(argc, argv, "", known, NULL)) != -1) {
		if (option == 's')
			options.seconds = (unsigned)atoi(optarg);
		else if (option == 'l')
			options.slack_ms = (unsigned)atoi(optarg);
		else if (option == 'q')
			options.quiet = true;
		else
			exit(2);
	}
}

/*
 * The C library counts what threads keep to be allocated again as in use. It keeps nothing, and
 * has one heap, when told so before the program starts.
 */
static void start_over_with_a_plain_heap(char **argv)
{
	static const char tunables[] = "glibc.malloc.tcache_count=0:glibc.malloc.arena_max=1";

	if (getenv("GLIBC_TUNABLES"))
		return;
	setenv("GLIBC_TUNABLES", tunables, 1);
	execv("/proc/self/exe", argv);
}

int main(int argc, char **argv)
{
	pthread_t peers[PEERS], dispatcher;
	uint64_t lives = 0;
	bool flat, in_time;

	parse(argc, argv);
	start_over_with_a_plain_heap(argv);
	begin();
	pthread_create(&dispatcher, NULL, dispatch, NULL);
	for (uintptr_t i = 0; i < PEERS; i++)
		pthread_create(&peers[i], NULL, be_peers, (void *)i);

	flat = run();
	__atomic_store_n(&world.stop, 1, __ATOMIC_RELEASE);
	for (unsigned i = 0; i < PEERS; i++) {
		pthread_join(peers[i], NULL);
		lives += world.lives[i];
	}
	pthread_join(dispatcher, NULL);
	in_time = was_in_time();
	printf("%u s, %" PRIu64 " lives of peers, %" PRIu64 " pages read by imports: %s\n", options.seconds,
	       lives, world.reads, !flat ? "NOT FLAT" : !in_time ? "NOT IN TIME" : "flat, and in time");
	gmem_export_free(world.exporter);
	gmem_view_free(world.view);
	gmem_vm_free(world.vm);
	gmem_plan_free(world.plan);
	return !(flat && in_time);
}
