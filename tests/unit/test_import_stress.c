/* SPDX-License-Identifier: MIT */
/*
 * import, peer and peer_recall: readers of an import verify what they see while the
 * exporting side adds, removes and converts regions. The contents of a page tell its
 * address; as soon as it was taken back it is scribbled over: a reader that looks a
 * moment too long, or at the wrong place, sees that. Runs for a number of changes,
 * not for a time: GMEM_STRESS_CHANGES, 150 without.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "unit.h"
#include "unit_share.h"

#define PAGE		((uint64_t)4096)
#define LANES		4
#define LANE_PAGES	16
#define LANE_SIZE	(LANE_PAGES * PAGE)
#define READERS		3
#define GARBAGE		0xdb
#define TAG		UINT64_C(0x7461670000000000)

struct stress {
	struct unit unit;
	struct gmem_plan *plan;
	struct gmem_export *exporter;
	struct gmem_peer *peer;
	struct gmem_import *import;
	struct gmem_region *regions[LANES];
	bool is_private[LANES];		/* its upper half */
	char *hva;
	int memfd;
	int stop;
	int failures;
	uint64_t seen;
};

static bool is_over(struct stress *s)
{
	return __atomic_load_n(&s->stop, __ATOMIC_ACQUIRE);
}

/* Between changes, where only whoever has the memory writes it */
static void write_words(char *memory, uint64_t gpa, uint64_t size, bool garbage)
{
	for (uint64_t at = 0; at < size; at += PAGE) {
		uint64_t word = garbage ? GARBAGE : TAG | (gpa + at) / PAGE;

		/* readers load it whole, and so it is stored */
		__atomic_store_n((uint64_t *)(void *)(memory + at), word, __ATOMIC_RELAXED);
	}
}

static void *answer_all(void *data)
{
	struct stress *s = data;
	struct pollfd fd = { .fd = gmem_import_fd(s->import), .events = POLLIN };

	while (!is_over(s)) {
		poll(&fd, 1, 5);
		if (gmem_import_dispatch(s->import) < 0)
			__atomic_store_n(&s->failures, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

static void *export_all(void *data)
{
	struct stress *s = data;
	struct pollfd fd = { .fd = gmem_export_fd(s->exporter), .events = POLLIN };

	while (!is_over(s)) {
		poll(&fd, 1, 5);
		gmem_export_dispatch(s->exporter);
	}
	return NULL;
}

static void *read_all(void *data)
{
	struct stress *s = data;
	struct gmem_view *view = NULL;
	uint64_t page = 0, value, seen = 0;
	int err;

	if (gmem_import_view_new(s->import, &view))
		return NULL;
	while (!is_over(s)) {
		page = (page * 5 + 3) % (LANES * LANE_PAGES);
		err = gmem_view_load(view, page * PAGE, 8, GMEM_RELAXED, &value);
		if (err ? err != -ENOENT && err != -ESTALE && err != -EACCES : value != (TAG | page))
			__atomic_store_n(&s->failures, 1, __ATOMIC_RELAXED);
		seen += !err;
	}
	gmem_view_free(view);
	__atomic_add_fetch(&s->seen, seen, __ATOMIC_RELAXED);
	return NULL;
}

static void change_region(struct stress *s, uint64_t lane)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = s->plan, .flags = GMEM_REGION_HVA,
		  .hva = s->hva + lane * LANE_SIZE);

	if (s->regions[lane]) {
		assert_ok(gmem_region_remove(s->regions[lane]));
		s->regions[lane] = NULL;
		s->is_private[lane] = false;
		write_words(opts.hva, lane * LANE_SIZE, LANE_SIZE, true);
		return;
	}
	write_words(opts.hva, lane * LANE_SIZE, LANE_SIZE, false);
	assert_ok(gmem_region_add(s->unit.vm, lane * LANE_SIZE, LANE_SIZE, &opts, &s->regions[lane]));
}

static void convert(struct stress *s, uint64_t lane)
{
	GMEM_OPTS(gmem_convert_opts, opts, .discard = GMEM_DISCARD_NEVER);
	uint64_t gpa = lane * LANE_SIZE + LANE_SIZE / 2;

	if (!s->regions[lane])
		return;
	if (s->is_private[lane])
		write_words(s->hva + gpa, gpa, LANE_SIZE / 2, false);
	s->is_private[lane] = !s->is_private[lane];
	assert_ok(gmem_vm_convert(s->unit.vm, gpa, LANE_SIZE / 2,
				  s->is_private[lane] ? GMEM_STATE_PRIVATE : GMEM_STATE_SHARED, &opts,
				  NULL));
	if (s->is_private[lane])
		write_words(s->hva + gpa, gpa, LANE_SIZE / 2, true);
}

static void begin(struct stress *s, int sockets[2])
{
	GMEM_OPTS(gmem_peer_opts, opts, .flags = GMEM_PEER_WHOLE_FILES, .wait_ms = 100000);

	memset(s, 0, sizeof(*s));
	unit_begin_vm(&s->unit, "7.3-swp-t1");
	s->plan = unit_plan(&s->unit, GMEM_BACKING_PRIVATE);
	s->memfd = unit_memfd(LANES * LANE_SIZE, UNIT_SEALED);
	s->hva = mmap(NULL, LANES * LANE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, s->memfd, 0);
	assert_ptr_not_equal(s->hva, MAP_FAILED);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets), 0);
	assert_ok(gmem_export_new(s->unit.vm, NULL, &s->exporter));
	assert_ok(gmem_export_add_memory(s->exporter, s->hva, LANES * LANE_SIZE, s->memfd, 0));
	assert_ok(gmem_peer_add(s->exporter, sockets[0], &opts, &s->peer));
	assert_ok(gmem_import_new(sockets[1], NULL, &s->import));
}

static void end(struct stress *s, const int sockets[2])
{
	gmem_import_free(s->import);
	gmem_export_free(s->exporter);
	gmem_vm_free(s->unit.vm);
	s->unit.vm = NULL;
	gmem_plan_free(s->plan);
	munmap(s->hva, LANES * LANE_SIZE);
	close(s->memfd);
	close(sockets[0]);
	close(sockets[1]);
	unit_end(&s->unit);
}

static void readers_see_only_what_is_there(void **state)
{
	const char *wanted = getenv("GMEM_STRESS_CHANGES");
	unsigned changes = wanted ? (unsigned)atoi(wanted) : 150, seed = 1;
	pthread_t threads[READERS + 2];
	struct stress s;
	int sockets[2];

	(void)state;
	assert_ok(gmem_recovery_enable());
	begin(&s, sockets);
	for (int i = 0; i < READERS; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, read_all, &s), 0);
	assert_int_equal(pthread_create(&threads[READERS], NULL, answer_all, &s), 0);
	assert_int_equal(pthread_create(&threads[READERS + 1], NULL, export_all, &s), 0);

	for (unsigned i = 0; i < changes && !__atomic_load_n(&s.failures, __ATOMIC_RELAXED); i++) {
		seed = seed * 1103515245 + 12345;
		if (seed >> 16 & 1)
			change_region(&s, (seed >> 17) % LANES);
		else
			convert(&s, (seed >> 17) % LANES);
		/* now and then let everything arrive */
		while (i % 8 == 0 && gmem_peer_status(s.peer) == 0)
			usleep(100);
	}
	__atomic_store_n(&s.stop, 1, __ATOMIC_RELEASE);
	for (int i = 0; i < READERS + 2; i++)
		assert_int_equal(pthread_join(threads[i], NULL), 0);
	assert_int_equal(s.failures, 0);
	assert_true(s.seen > 0);
	end(&s, sockets);
	gmem_recovery_disable();
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(readers_see_only_what_is_there),
};

UNIT_MAIN(tests)
