/* SPDX-License-Identifier: MIT */
/* Views of real memory: they and the guest see each other's stores */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "lab.h"

#define BASE (256 * MIB)
#define NEVER_USED (GIB)

/*
 * The ways a view touches memory: with ordinary instructions, or by asking the
 * kernel, because nobody enabled recovery or because the thread blocks SIGBUS.
 */
enum engine { RECOVERING, ASKING, SIGBUS_BLOCKED, SIGSEGV_BLOCKED, ENGINES };
static const char *const engine_names[] = {
	"recovering", "asking", "SIGBUS blocked", "SIGSEGV blocked",
};

struct site {
	struct lab lab;
	struct gmem_view *view;
	struct gmem_region *region;	/* 4 pages at BASE */
	uint32_t backing;
	enum engine engine;
	uint64_t page;
	void (*run)(struct site *);
};

#define WAY(backing) (1u << (backing))
#define EVERY_WAY (~0u)
#define HOST_MEMORY WAY(GMEM_BACKING_HOST)
#define WITH_SHARED_FILE (WAY(GMEM_BACKING_MAPPED) | WAY(GMEM_BACKING_SHARED))
#define WITH_PLAIN_SLOT (WAY(GMEM_BACKING_HOST) | WAY(GMEM_BACKING_MAPPED))

#define REGION_PAGES 4

/* prepares a site before it has a view */
static void (*prepare_site)(struct site *);

static void *run_with_view(void *data)
{
	struct site *s = data;

	OK(gmem_view_new(s->lab.vm, &s->view));
	s->run(s);
	gmem_view_free(s->view);
	return NULL;
}

static void run_with_blocked(struct site *s, int number)
{
	pthread_t thread;
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, number);
	CHECK_EQ(pthread_sigmask(SIG_BLOCK, &set, NULL), 0);
	CHECK_EQ(pthread_create(&thread, NULL, run_with_view, s), 0);
	CHECK_EQ(pthread_join(thread, NULL), 0);
	CHECK_EQ(pthread_sigmask(SIG_UNBLOCK, &set, NULL), 0);
}

static void run_engine(struct site *s)
{
	if (s->engine != ASKING)
		OK(gmem_recovery_enable());
	if (s->engine == SIGBUS_BLOCKED || s->engine == SIGSEGV_BLOCKED)
		run_with_blocked(s, s->engine == SIGBUS_BLOCKED ? SIGBUS : SIGSEGV);
	else
		run_with_view(s);
	if (s->engine != ASKING)
		gmem_recovery_disable();
}

static void run_in_site(void (*run)(struct site *), int type, uint32_t backing, enum engine engine)
{
	struct site s = { .backing = backing, .engine = engine, .run = run };

	in_case("%s memory, VM type %d, %s", gmem_backing_name(backing), type, engine_names[engine]);
	lab_new(&s.lab, type);
	s.page = s.lab.page;
	s.region = lab_add(&s.lab, backing, BASE, REGION_PAGES, NULL);
	if (prepare_site)
		prepare_site(&s);
	run_engine(&s);
	lab_free(&s.lab);
}

struct check {
	void (*run)(struct site *site);
};

static void run_by_every_engine(int type, uint32_t backing, void *data)
{
	const struct check *check = data;

	for (unsigned int engine = 0; engine < ENGINES; engine++)
		run_in_site(check->run, type, backing, engine);
}

/* in every kind of VM, with each of these ways of backing that it has, by every engine */
static void for_each_way(uint32_t ways, void (*run)(struct site *))
{
	lab_for_each_way(ways, run_by_every_engine, &(struct check){ run });
}

/* ---- helpers ---- */

/*
 * A guest without its MMU looks past the caches: whatever one side wrote into
 * this line has to get to the other.
 */
static void settle(struct site *s, uint64_t gpa)
{
	void *hva;

	gmem_view_begin(s->view);
	OK(gmem_view_hva(s->view, gpa & ~(uint64_t)3, 4, &hva));
	host_load(hva);
	gmem_view_end(s->view);
}

static void guest_stores(struct site *s, uint64_t gpa, uint32_t value)
{
	settle(s, gpa);
	GUEST_STORES(&s->lab.guest, gpa, value);
	settle(s, gpa);
}

static void guest_loads(struct site *s, uint64_t gpa, uint32_t wanted)
{
	settle(s, gpa);
	GUEST_LOADS(&s->lab.guest, gpa, wanted);
}

/* bytes that tell where they are from */
static void fill_pattern(uint8_t *buf, uint64_t size, uint8_t seed)
{
	for (uint64_t i = 0; i < size; i++)
		buf[i] = (uint8_t)(seed + i * 7 + (i >> 8));
}

static void *must_malloc(uint64_t size)
{
	void *buf = malloc(size);

	CHECK(buf);
	return buf;
}

/* ---- what guest and view see of each other ---- */

static void guest_writes_view_reads(struct site *s)
{
	uint32_t words[2] = { 0 };
	uint64_t done = 0, number = 0;
	uint8_t bytes[3];

	guest_stores(s, BASE, 0x11223344);
	guest_stores(s, BASE + 4, 0x55667788);
	OK(gmem_view_read(s->view, BASE, words, sizeof(words), &done));
	CHECK_EQ(done, 8);
	CHECK_EQ(words[0], 0x11223344);
	CHECK_EQ(words[1], 0x55667788);
	OK(gmem_view_read(s->view, BASE + 3, bytes, sizeof(bytes), NULL));
	CHECK(bytes[0] == 0x11 && bytes[1] == 0x88 && bytes[2] == 0x77);

	OK(gmem_view_load(s->view, BASE, 8, GMEM_ACQUIRE, &number));
	CHECK_EQ(number, 0x5566778811223344);
	OK(gmem_view_load(s->view, BASE + 4, 4, GMEM_RELAXED, &number));
	CHECK_EQ(number, 0x55667788);
	OK(gmem_view_load(s->view, BASE + 6, 2, GMEM_SEQ_CST, &number));
	CHECK_EQ(number, 0x5566);
	OK(gmem_view_load(s->view, BASE + 7, 1, GMEM_ACQUIRE, &number));
	CHECK_EQ(number, 0x55);
}

TEST(a_view_reads_what_the_guest_stored)
{
	for_each_way(EVERY_WAY, guest_writes_view_reads);
}

static void view_writes_guest_loads(struct site *s)
{
	const uint32_t words[2] = { 0xdeadbeef, 0xcafe };
	uint64_t done = 0;

	OK(gmem_view_write(s->view, BASE + s->page - 4, words, sizeof(words), &done));
	CHECK_EQ(done, 8);
	guest_loads(s, BASE + s->page - 4, 0xdeadbeef);
	guest_loads(s, BASE + s->page, 0xcafe);

	OK(gmem_view_fill(s->view, BASE + 1, 0xee, s->page, &done));
	CHECK_EQ(done, s->page);
	guest_loads(s, BASE, 0xeeeeee00);
	guest_loads(s, BASE + s->page, 0xcaee);

	OK(gmem_view_copy(s->view, BASE + 2 * s->page + 1, BASE + s->page, 4, &done));
	CHECK_EQ(done, 4);
	guest_loads(s, BASE + 2 * s->page, 0x00caee00);

	OK(gmem_view_store(s->view, BASE + 8, 4, GMEM_RELEASE, 0x1234));
	guest_loads(s, BASE + 8, 0x1234);
	OK(gmem_view_store(s->view, BASE + 10, 1, GMEM_RELAXED, 0x56));
	guest_loads(s, BASE + 8, 0x561234);
	OK(gmem_view_store(s->view, BASE + 16, 8, GMEM_SEQ_CST, 0x1111222233334444));
	guest_loads(s, BASE + 20, 0x11112222);
}

TEST(a_guest_loads_what_a_view_wrote)
{
	for_each_way(EVERY_WAY, view_writes_guest_loads);
}

static void numbers_are_exchanged(struct site *s)
{
	uint64_t expected = 5;

	guest_stores(s, BASE, 7);
	CHECK_RESULT(gmem_view_compare_exchange(s->view, BASE, 4, GMEM_SEQ_CST, &expected, 9), 0);
	CHECK_EQ(expected, 7);
	guest_loads(s, BASE, 7);
	CHECK_RESULT(gmem_view_compare_exchange(s->view, BASE, 4, GMEM_SEQ_CST, &expected, 9), 1);
	guest_loads(s, BASE, 9);

	guest_stores(s, BASE + 8, 0xaabbccdd);
	expected = 0xaabb;
	CHECK_RESULT(gmem_view_compare_exchange(s->view, BASE + 10, 2, GMEM_ACQUIRE, &expected, 1), 1);
	guest_loads(s, BASE + 8, 0x1ccdd);
	expected = 0xdd;
	CHECK_RESULT(gmem_view_compare_exchange(s->view, BASE + 8, 1, GMEM_RELAXED, &expected, 2), 1);
	expected = 0x1cc02;
	CHECK_RESULT(gmem_view_compare_exchange(s->view, BASE + 8, 8, GMEM_RELEASE, &expected, 3), 1);
	guest_loads(s, BASE + 8, 3);
	guest_loads(s, BASE + 12, 0);
}

TEST(a_view_exchanges_numbers_with_the_guest)
{
	for_each_way(EVERY_WAY, numbers_are_exchanged);
}

static void guest_text_is_read(struct site *s)
{
	uint64_t done = 0, length = 0;
	char text[12];
	int order = 9;

	memset(text, 'x', sizeof(text));
	guest_stores(s, BASE + s->page - 4, 0x6c6c6568);	/* hell */
	guest_stores(s, BASE + s->page, 0x0000216f);		/* o! */
	OK(gmem_view_string(s->view, BASE + s->page - 4, text, sizeof(text), &length));
	CHECK_EQ(length, 6);
	CHECK_STR(text, "hello!");
	REFUSED(gmem_view_string(s->view, BASE + s->page - 4, text, 6, &length), -ENAMETOOLONG);

	OK(gmem_view_compare(s->view, BASE + s->page - 4, "hello!", 7, &order, &done));
	CHECK(order == 0 && done == 7);
	OK(gmem_view_compare(s->view, BASE + s->page - 4, "help", 4, &order, &done));
	CHECK(order < 0 && done == 3);
	OK(gmem_view_compare(s->view, BASE + s->page - 4, "heaps", 5, &order, &done));
	CHECK(order > 0 && done == 2);
}

TEST(a_view_reads_and_compares_text_of_the_guest)
{
	for_each_way(EVERY_WAY, guest_text_is_read);
}

static void large_ranges_are_copied(struct site *s)
{
	uint64_t size = 2 * s->page - 3, done = 0;
	uint8_t *in = must_malloc(size), *out = must_malloc(size);
	int order = 1;

	fill_pattern(in, size, 1);
	for (uint64_t skew = 0; skew < 3; skew++) {
		OK(gmem_view_write(s->view, BASE + skew, in, size, &done));
		CHECK_EQ(done, size);
		OK(gmem_view_copy(s->view, BASE + 2 * s->page, BASE + skew, size, &done));
		CHECK_EQ(done, size);
		OK(gmem_view_read(s->view, BASE + 2 * s->page, out, size, &done));
		CHECK(!memcmp(in, out, size));
		OK(gmem_view_compare(s->view, BASE + skew, in, size, &order, &done));
		CHECK(order == 0 && done == size);
	}
	guest_loads(s, BASE + 2 * s->page, in[0] | (uint32_t)in[1] << 8 | (uint32_t)in[2] << 16 |
		    (uint32_t)in[3] << 24);
	free(in);
	free(out);
}

TEST(ranges_of_any_alignment_arrive_whole)
{
	for_each_way(EVERY_WAY, large_ranges_are_copied);
}

/* ---- across regions ---- */

static void ranges_cross_regions(struct site *s)
{
	uint64_t edge = BASE + REGION_PAGES * s->page, length = 0, done = 0;
	char in[64] = "across", out[64] = "";
	int order = 1;

	lab_add(&s->lab, s->backing, edge, 2, NULL);
	OK(gmem_view_write(s->view, edge - 3, in, sizeof(in), &done));
	CHECK_EQ(done, sizeof(in));
	guest_loads(s, edge - 4, 0x72636100);	/* acr */
	guest_loads(s, edge, 0x0073736f);	/* oss */
	OK(gmem_view_read(s->view, edge - 3, out, sizeof(out), NULL));
	CHECK(!memcmp(in, out, sizeof(in)));
	OK(gmem_view_compare(s->view, edge - 3, in, sizeof(in), &order, NULL));
	CHECK_EQ(order, 0);
	OK(gmem_view_string(s->view, edge - 3, out, sizeof(out), &length));
	CHECK_EQ(length, 6);
	OK(gmem_view_copy(s->view, BASE, edge - 3, 7, NULL));
	OK(gmem_view_string(s->view, BASE, out, sizeof(out), &length));
	CHECK_STR(out, "across");
	OK(gmem_view_fill(s->view, edge - 2, 0x77, 4, NULL));
	guest_loads(s, edge - 4, 0x77776100);
	guest_loads(s, edge, 0x737777);
}

TEST(accesses_cross_from_region_to_region)
{
	for_each_way(EVERY_WAY, ranges_cross_regions);
}

static void check_ends(struct site *s, uint64_t gpa, uint64_t size, int error, uint64_t wanted)
{
	uint8_t *buf = must_malloc(size);
	uint64_t done = 99, length = 99;
	int order = 99;

	CHECK_RESULT(gmem_view_fill(s->view, gpa, 0x41, size, &done), error);
	CHECK_EQ(done, wanted);
	CHECK_RESULT(gmem_view_read(s->view, gpa, buf, size, &done), error);
	CHECK_EQ(done, wanted);
	memset(buf, 0x41, size);
	CHECK_RESULT(gmem_view_compare(s->view, gpa, buf, size, &order, &done), error);
	CHECK_EQ(done, wanted);
	CHECK_EQ(order, 99);
	memset(buf, 0x42, size);
	CHECK_RESULT(gmem_view_write(s->view, gpa, buf, size, &done), error);
	CHECK_EQ(done, wanted);
	CHECK_RESULT(gmem_view_copy(s->view, BASE, gpa, size, &done), error);
	CHECK_EQ(done, wanted);
	CHECK_RESULT(gmem_view_copy(s->view, gpa, BASE, size, &done), error);
	CHECK_EQ(done, wanted);
	CHECK_RESULT(gmem_view_string(s->view, gpa, (char *)buf, size, &length), error);
	CHECK_EQ(length, 99);

	/* the bytes reported as done were copied; later ones may have been */
	CHECK_RESULT(gmem_view_read(s->view, gpa, buf, size, &done), error);
	for (uint64_t i = 0; i < wanted; i++)
		CHECK_EQ(buf[i], 0x42);
	free(buf);
}

static void check_number_ends(struct site *s, uint64_t gpa, uint32_t width, int error)
{
	uint64_t number = 77, expected = 0;

	CHECK_RESULT(gmem_view_load(s->view, gpa, width, GMEM_ACQUIRE, &number), error);
	CHECK_EQ(number, 77);
	CHECK_RESULT(gmem_view_store(s->view, gpa, width, GMEM_RELEASE, 1), error);
	CHECK_RESULT(gmem_view_compare_exchange(s->view, gpa, width, GMEM_SEQ_CST, &expected, 1), error);
	CHECK_EQ(expected, 0);
}

static void ranges_end_in_holes(struct site *s)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_DEVICE);
	uint64_t edge = BASE + REGION_PAGES * s->page, beyond = edge + 2 * s->page;
	struct gmem_region *device = NULL, *removed;

	check_ends(s, edge - 13, 40, -ENOENT, 13);
	check_ends(s, edge, 40, -ENOENT, 0);
	check_number_ends(s, NEVER_USED, 8, -ENOENT);

	removed = lab_add(&s->lab, s->backing, edge, 2, NULL);
	check_ends(s, beyond - 9, s->page, -ENOENT, 9);
	OK(gmem_region_remove(removed));
	check_ends(s, edge - 13, 40, -ESTALE, 13);
	check_number_ends(s, edge, 4, -ESTALE);

	OK(gmem_region_add(s->lab.vm, edge, s->page, &opts, &device));
	check_ends(s, edge - 1, 2, -ENXIO, 1);
	check_number_ends(s, edge, 2, -ENXIO);
}

TEST(holes_devices_and_removed_regions_end_an_access_where_they_begin)
{
	for_each_way(EVERY_WAY, ranges_end_in_holes);
}

/* ---- translation ---- */

static void addresses_are_the_regions(struct site *s)
{
	uint64_t edge = BASE + REGION_PAGES * s->page;
	char *hva = gmem_region_hva(s->region);
	struct gmem_region *other = lab_add(&s->lab, s->backing, edge, 2, NULL);
	struct gmem_region *upper = NULL;
	struct iovec iov[4];
	void *found = NULL;

	OK(gmem_region_split(s->region, s->page, &upper));
	gmem_view_begin(s->view);
	OK(gmem_view_hva(s->view, BASE + 5, s->page, &found));
	CHECK((char *)found == hva + 5);
	REFUSED(gmem_view_hva(s->view, edge - 1, 2 * s->page + 2, &found), -ERANGE);

	/* A split changes nothing for the host. */
	CHECK_RESULT(gmem_view_iovec(s->view, BASE + 1, edge - BASE - 1, iov, 4), 1);
	CHECK(iov[0].iov_base == hva + 1 && iov[0].iov_len == edge - BASE - 1);
	REFUSED(gmem_view_iovec(s->view, BASE, edge - BASE + 3 * s->page, iov, 4), -ENOENT);
	CHECK(gmem_view_iovec(s->view, BASE, edge - BASE + s->page, iov, 4) <= 2);
	CHECK(iov[0].iov_base == hva);
	OK(gmem_view_hva(s->view, edge, 2 * s->page, &found));
	CHECK(found == gmem_region_hva(other));
	gmem_view_end(s->view);
}

TEST(a_view_gives_the_host_addresses_of_the_regions)
{
	for_each_way(EVERY_WAY, addresses_are_the_regions);
}

static void files_are_read_into_the_guest(struct site *s)
{
	uint64_t edge = BASE + REGION_PAGES * s->page;
	const uint32_t words[2] = { 0x600d, 0xf00d };
	struct iovec iov[2];
	int pipes[2], count;

	lab_add(&s->lab, s->backing, edge, 1, NULL);
	WORKS(pipe2(pipes, O_CLOEXEC));
	WORKS(write(pipes[1], words, sizeof(words)));
	gmem_view_begin(s->view);
	count = gmem_view_iovec(s->view, edge - 4, sizeof(words), iov, 2);
	CHECK(count > 0);
	CHECK_RESULT(SYS(readv(pipes[0], iov, count)), sizeof(words));
	gmem_view_end(s->view);
	close(pipes[0]);
	close(pipes[1]);
	guest_loads(s, edge - 4, 0x600d);
	guest_loads(s, edge, 0xf00d);
}

TEST(the_kernel_reads_into_guest_memory_through_a_list)
{
	for_each_way(EVERY_WAY, files_are_read_into_the_guest);
}

/* Between begin and end the memory stays, whoever removes its region. */
static void *remove_region(void *data)
{
	OK(gmem_region_remove(data));
	return NULL;
}

static void memory_stays_until_the_end(struct site *s)
{
	volatile uint32_t *word;
	uint64_t number = 0;
	pthread_t thread;
	void *hva;

	gmem_view_begin(s->view);
	OK(gmem_view_hva(s->view, BASE, s->page, &hva));
	CHECK_EQ(pthread_create(&thread, NULL, remove_region, s->region), 0);
	word = hva;
	for (uint32_t i = 0; i < 50; i++) {
		*word = i;
		usleep(1000);
		CHECK_EQ(*word, i);
	}
	gmem_view_begin(s->view);
	gmem_view_end(s->view);
	*word = 1;
	gmem_view_end(s->view);
	CHECK_EQ(pthread_join(thread, NULL), 0);
	CHECK_RESULT(gmem_view_load(s->view, BASE, 4, GMEM_RELAXED, &number), -ESTALE);
	GUEST_GETS(&s->lab.guest, BASE, GUEST_MMIO);
}

TEST(memory_is_not_unmapped_while_a_view_holds_it)
{
	for_each_way(EVERY_WAY, memory_stays_until_the_end);
}

/* ---- pages that cannot be reached ---- */

static void punched_pages_are_zero(struct site *s)
{
	struct gmem_file *file = gmem_region_file(s->region, NULL);
	uint64_t done = 0, number = 1;
	uint8_t *buf = must_malloc(3 * s->page);

	OK(gmem_view_fill(s->view, BASE, 0xff, 3 * s->page, NULL));
	guest_loads(s, BASE + s->page, 0xffffffff);
	OK(gmem_file_punch(file, s->page, s->page, NULL));
	OK(gmem_view_read(s->view, BASE, buf, 3 * s->page, &done));
	CHECK_EQ(done, 3 * s->page);
	for (uint64_t i = 0; i < 3 * s->page; i++)
		CHECK_EQ(buf[i], i / s->page == 1 ? 0 : 0xff);
	free(buf);
	guest_loads(s, BASE + s->page, 0);

	OK(gmem_file_punch(file, 0, s->page, NULL));
	OK(gmem_view_load(s->view, BASE, 8, GMEM_ACQUIRE, &number));
	CHECK_EQ(number, 0);
	guest_stores(s, BASE, 6);
	OK(gmem_view_load(s->view, BASE, 4, GMEM_ACQUIRE, &number));
	CHECK_EQ(number, 6);
}

TEST(punched_pages_read_as_zero_and_can_be_used_again)
{
	for_each_way(WITH_SHARED_FILE, punched_pages_are_zero);
}

/* Memory of our own behind a region, of which the file will get shorter */
struct shrinking {
	int fd;
	void *hva;
	uint64_t size;
};

#define SHRINKING_GPA (512 * MIB)

static void shrinking_new(struct site *s, struct shrinking *m)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_HVA);

	m->size = REGION_PAGES * s->page;
	m->fd = (int)WORKS(memfd_create("guest", MFD_CLOEXEC));
	WORKS(ftruncate(m->fd, (off_t)m->size));
	m->hva = mmap(NULL, m->size, PROT_READ | PROT_WRITE, MAP_SHARED, m->fd, 0);
	CHECK(m->hva != MAP_FAILED);
	opts.hva = m->hva;
	lab_add(&s->lab, GMEM_BACKING_HOST, SHRINKING_GPA, REGION_PAGES, &opts);
}

static void shrinking_free(struct shrinking *m)
{
	munmap(m->hva, m->size);
	close(m->fd);
}

static void shrunk_memory_ends(struct site *s)
{
	static const uint64_t before[] = { 1, 7, 8, 13, 64, 257, 4095 };
	uint64_t edge = SHRINKING_GPA + 2 * s->page;
	struct shrinking m;

	shrinking_new(s, &m);
	guest_stores(s, edge, 5);
	WORKS(ftruncate(m.fd, (off_t)(2 * s->page)));
	for (size_t i = 0; i < ARRAY_SIZE(before); i++) {
		check_ends(s, edge - before[i], before[i] + 100, -EFAULT, before[i]);
		check_ends(s, edge - before[i], before[i] + 1, -EFAULT, before[i]);
	}
	check_ends(s, SHRINKING_GPA, 2 * s->page + 1, -EFAULT, 2 * s->page);
	check_ends(s, edge, 2 * s->page, -EFAULT, 0);
	check_ends(s, edge + s->page + 3, 5, -EFAULT, 0);
	for (uint32_t width = 1; width <= 8; width *= 2)
		check_number_ends(s, edge, width, -EFAULT);

	/* The file is as long as before: all pages are there again. */
	WORKS(ftruncate(m.fd, (off_t)m.size));
	guest_loads(s, edge, 0);
	OK(gmem_view_fill(s->view, SHRINKING_GPA, 1, m.size, NULL));
	guest_loads(s, edge, 0x01010101);
	shrinking_free(&m);
}

TEST(memory_that_ends_early_ends_an_access_with_the_exact_count)
{
	for_each_way(HOST_MEMORY, shrunk_memory_ends);
}

static void strings_end_before(struct site *s)
{
	uint64_t edge = SHRINKING_GPA + 2 * s->page, length = 0;
	struct shrinking m;
	char text[64];

	memset(text, 'x', sizeof(text));
	shrinking_new(s, &m);
	WORKS(ftruncate(m.fd, (off_t)(2 * s->page)));
	OK(gmem_view_write(s->view, edge - 6, "hello", 6, NULL));
	OK(gmem_view_string(s->view, edge - 6, text, sizeof(text), &length));
	CHECK_EQ(length, 5);
	CHECK_STR(text, "hello");
	OK(gmem_view_string(s->view, edge - 1, text, sizeof(text), &length));
	CHECK_EQ(length, 0);
	OK(gmem_view_write(s->view, edge - 6, "hello!", 6, NULL));
	REFUSED(gmem_view_string(s->view, edge - 6, text, sizeof(text), &length), -EFAULT);
	REFUSED(gmem_view_string(s->view, edge - 6, text, 6, &length), -ENAMETOOLONG);
	shrinking_free(&m);
}

TEST(a_string_that_ends_before_memory_does_is_read)
{
	for_each_way(HOST_MEMORY, strings_end_before);
}

static void differences_come_first(struct site *s)
{
	uint64_t edge = SHRINKING_GPA + 2 * s->page, done = 0;
	struct shrinking m;
	char buf[64] = "";
	int order = 0;

	shrinking_new(s, &m);
	WORKS(ftruncate(m.fd, (off_t)(2 * s->page)));
	buf[29] = 1;
	OK(gmem_view_compare(s->view, edge - 30, buf, sizeof(buf), &order, &done));
	CHECK(order < 0);
	CHECK_EQ(done, 29);
	shrinking_free(&m);
}

TEST(a_difference_before_memory_ends_is_found)
{
	for_each_way(HOST_MEMORY, differences_come_first);
}

/* Two pages in the middle that are not there, and memory on both sides */
static void holes_in_mappings_end_accesses(struct site *s)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_HVA);
	uint64_t size = REGION_PAGES * s->page, done = 0;
	int fd = (int)WORKS(memfd_create("guest", MFD_CLOEXEC));
	char *hva = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK((void *)hva != MAP_FAILED);
	CHECK(mmap(hva + s->page, 2 * s->page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd,
		   0) == hva + s->page);
	opts.hva = hva;
	lab_add(&s->lab, GMEM_BACKING_HOST, SHRINKING_GPA, REGION_PAGES, &opts);
	check_ends(s, SHRINKING_GPA, size, -EFAULT, s->page);
	check_ends(s, SHRINKING_GPA + 2 * s->page, s->page, -EFAULT, 0);
	OK(gmem_view_fill(s->view, SHRINKING_GPA + 3 * s->page, 3, s->page, &done));
	CHECK_EQ(done, s->page);
	guest_loads(s, SHRINKING_GPA + 3 * s->page, 0x03030303);
	munmap(hva, size);
	close(fd);
}

TEST(missing_pages_in_the_middle_leave_the_others_in_use)
{
	for_each_way(HOST_MEMORY, holes_in_mappings_end_accesses);
}

/* ---- memory that is protected, or not mapped ---- */

static void protect(struct site *s, int prot)
{
	WORKS(mprotect((char *)gmem_region_hva(s->region) + s->page, s->page, prot));
}

static void check_not_written(struct site *s, uint64_t gpa, uint64_t size, uint64_t wanted)
{
	uint64_t done = 99, expected = 0, number = 0;
	uint8_t *buf = must_malloc(size);

	OK(gmem_view_read(s->view, gpa, buf, size, NULL));
	CHECK_RESULT(gmem_view_write(s->view, gpa, buf, size, &done), -EFAULT);
	CHECK_EQ(done, wanted);
	CHECK(strstr(gmem_last_error(), "cannot be written: EFAULT, it is mapped for reading only"));
	CHECK_RESULT(gmem_view_fill(s->view, gpa, 5, size, &done), -EFAULT);
	CHECK_EQ(done, wanted);
	CHECK_RESULT(gmem_view_copy(s->view, gpa, BASE + 3 * s->page, size, &done), -EFAULT);
	CHECK_EQ(done, wanted);
	CHECK(strstr(gmem_last_error(), "written"));
	for (uint32_t width = 1; width <= 8; width *= 2) {
		OK(gmem_view_load(s->view, BASE + s->page, width, GMEM_ACQUIRE, &number));
		CHECK_RESULT(gmem_view_store(s->view, BASE + s->page, width, GMEM_SEQ_CST, 1), -EFAULT);
		CHECK_RESULT(gmem_view_compare_exchange(s->view, BASE + s->page, width, GMEM_SEQ_CST,
							&expected, 1), -EFAULT);
		CHECK_EQ(expected, 0);
	}
	free(buf);
}

static void protected_pages_end_accesses(struct site *s)
{
	static const uint64_t sizes[] = { 1, 8, 16, 40, 100, 1000, 4096 };
	uint64_t edge = BASE + s->page, hva = (uintptr_t)gmem_region_hva(s->region) + s->page;
	char text[80];

	memset(gmem_region_hva(s->region), 0, REGION_PAGES * s->page);
	protect(s, PROT_READ);
	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		check_not_written(s, edge - 1, sizes[i] + 1, 1);
		check_not_written(s, edge + 3, sizes[i] - (sizes[i] == 4096 ? 3 : 0), 0);
	}
	guest_stores(s, BASE + 2 * s->page, 7);

	protect(s, PROT_NONE);
	for (size_t i = 0; sizes[i] < 4096; i++) {
		check_ends(s, edge - 1, sizes[i] + 1, -EFAULT, 1);
		check_ends(s, edge - 70, sizes[i] + 70, -EFAULT, 70);
		check_ends(s, edge + 3, sizes[i], -EFAULT, 0);
	}
	for (uint32_t width = 1; width <= 8; width *= 2)
		check_number_ends(s, edge, width, -EFAULT);
	CHECK_RESULT(gmem_view_fill(s->view, edge, 1, 4, NULL), -EFAULT);
	snprintf(text, sizeof(text), "gpa 0x%llx + 0x0, hva 0x%llx, cannot be written: EFAULT, no page",
		 (unsigned long long)edge, (unsigned long long)hva);
	CHECK(strstr(gmem_last_error(), text));

	protect(s, PROT_READ | PROT_WRITE);
	OK(gmem_view_fill(s->view, BASE, 3, 3 * s->page, NULL));
	guest_loads(s, edge, 0x03030303);
}

TEST(protected_pages_end_an_access_with_the_exact_count)
{
	for_each_way(EVERY_WAY, protected_pages_end_accesses);
}

static void unmapped_pages_end_accesses(struct site *s)
{
	uint64_t edge = SHRINKING_GPA + s->page;
	struct shrinking m;

	shrinking_new(s, &m);
	WORKS(munmap((char *)m.hva + s->page, s->page));
	check_ends(s, edge - 300, 900, -EFAULT, 300);
	check_ends(s, edge, 9, -EFAULT, 0);
	for (uint32_t width = 1; width <= 8; width *= 2)
		check_number_ends(s, edge, width, -EFAULT);
	OK(gmem_view_fill(s->view, edge + s->page, 1, s->page, NULL));
	shrinking_free(&m);
}

TEST(memory_that_was_unmapped_ends_an_access_with_the_exact_count)
{
	for_each_way(HOST_MEMORY, unmapped_pages_end_accesses);
}

static void a_bad_buffer_is_blamed(struct site *s)
{
	char *page = mmap(NULL, s->page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t done = 99;

	CHECK(page != MAP_FAILED);
	CHECK_RESULT(gmem_view_read(s->view, BASE, page, 100, &done), -EFAULT);
	CHECK_EQ(done, 0);
	CHECK(strstr(gmem_last_error(), "your buffer cannot be "));
	CHECK_RESULT(gmem_view_write(s->view, BASE, page, 100, &done), -EFAULT);
	CHECK(strstr(gmem_last_error(), "your buffer cannot be "));
	munmap(page, s->page);
}

TEST(a_buffer_that_cannot_be_reached_is_an_error_too)
{
	for_each_way(HOST_MEMORY, a_bad_buffer_is_blamed);
}

/* ---- poison ---- */

static bool is_poison_error(const struct site *s, int err)
{
	/* The kernel, asked to copy, does not tell poison from other pages it cannot reach. */
	return err == -EHWPOISON || (s->engine != RECOVERING && err == -EFAULT);
}

#define CHECK_POISONED(s, call)                                                   \
	do {                                                                      \
		int err_ = (call);                                                \
		if (!is_poison_error((s), err_))                                  \
			FAIL("%s: %d, not -EHWPOISON", #call, err_);              \
	} while (0)

static void poisoned_pages_end_accesses(struct site *s)
{
	uint64_t bad = BASE + s->page, done = 0, number = 77;
	uint8_t *buf = must_malloc(REGION_PAGES * s->page);

	CHECK_POISONED(s, gmem_view_read(s->view, bad - 17, buf, 100, &done));
	CHECK_EQ(done, 17);
	CHECK_POISONED(s, gmem_view_read(s->view, BASE, buf, 3 * s->page, &done));
	CHECK_EQ(done, s->page);
	CHECK_POISONED(s, gmem_view_write(s->view, bad - 17, buf, 100, &done));
	CHECK_EQ(done, 17);
	CHECK_POISONED(s, gmem_view_fill(s->view, bad + 5, 0, 6, &done));
	CHECK_EQ(done, 0);
	CHECK_POISONED(s, gmem_view_load(s->view, bad, 8, GMEM_ACQUIRE, &number));
	CHECK_EQ(number, 77);
	CHECK_POISONED(s, gmem_view_store(s->view, bad, 4, GMEM_RELEASE, 1));
	OK(gmem_view_read(s->view, bad + s->page, buf, 2 * s->page, &done));
	CHECK_EQ(buf[0], 1);
	guest_loads(s, bad + s->page, 0x01010101);
	free(buf);
}

/* Before anything blocks or handles SIGBUS */
static void poison_second_page(struct site *s)
{
	char *hva = gmem_region_hva(s->region);

	memset(hva, 1, REGION_PAGES * s->page);
	CHECK_RESULT(lab_poison(hva + s->page, s->page), 0);
}

TEST(poisoned_pages_end_an_access_with_the_exact_count)
{
	lab_require_poison();
	prepare_site = poison_second_page;
	for_each_way(EVERY_WAY, poisoned_pages_end_accesses);
}

/* ---- where host and guest differ ---- */

static void only_the_host_writes(struct site *s)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_READONLY);
	uint64_t gpa = SHRINKING_GPA;

	lab_add(&s->lab, s->backing, gpa, 1, &opts);
	OK(gmem_view_store(s->view, gpa, 4, GMEM_RELEASE, 0x4711));
	guest_loads(s, gpa, 0x4711);
	OK(gmem_view_fill(s->view, gpa, 0x22, s->page, NULL));
	guest_loads(s, gpa + s->page - 4, 0x22222222);
}

TEST(a_view_writes_where_the_guest_may_only_read)
{
	for_each_way(WITH_PLAIN_SLOT, only_the_host_writes);
}

static void the_private_side_is_not_seen(struct site *s)
{
	uint64_t number = 0;

	OK(gmem_view_store(s->view, BASE, 4, GMEM_RELEASE, 0x11));
	CHECK_RESULT(lab_convert(&s->lab, BASE, s->page, KVM_MEMORY_ATTRIBUTE_PRIVATE), 0);
	GUEST_STORES(&s->lab.guest, BASE, 0x22);
	OK(gmem_view_load(s->view, BASE, 4, GMEM_ACQUIRE, &number));
	CHECK_EQ(number, 0x11);
	OK(gmem_view_fill(s->view, BASE, 0x33, s->page, NULL));
	GUEST_LOADS(&s->lab.guest, BASE, 0x22);
	CHECK_RESULT(lab_convert(&s->lab, BASE, s->page, 0), 0);
	guest_loads(s, BASE, 0x33333333);
}

TEST(a_view_sees_the_shared_side_of_private_memory)
{
	for_each_way(WAY(GMEM_BACKING_PRIVATE), the_private_side_is_not_seen);
}

/* ---- recovery is for the library alone ---- */

static void *volatile handled_address;

static void on_sigbus(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)context;
	handled_address = info->si_addr;
	siglongjmp(catch_point, 1);
}

static void other_faults_are_passed_on(struct site *s)
{
	struct sigaction action = { .sa_flags = SA_SIGINFO }, old;
	struct gmem_view *view = NULL;
	struct shrinking m;
	uint8_t byte;

	shrinking_new(s, &m);
	action.sa_sigaction = on_sigbus;
	WORKS(sigaction(SIGBUS, &action, &old));
	OK(gmem_recovery_enable());
	OK(gmem_view_new(s->lab.vm, &view));
	WORKS(ftruncate(m.fd, 0));

	for (unsigned int i = 0; i < 3; i++) {
		handled_address = NULL;
		CHECK_RESULT(gmem_view_read(view, SHRINKING_GPA, &byte, 1, NULL), -EFAULT);
		CHECK(!handled_address);
		if (!sigsetjmp(catch_point, 1))
			host_load(m.hva);
		CHECK(handled_address == m.hva);
	}
	gmem_view_free(view);
	gmem_recovery_disable();
	WORKS(sigaction(SIGBUS, &old, NULL));
	shrinking_free(&m);
}

TEST(faults_that_are_not_the_librarys_go_to_the_handler_from_before)
{
	run_in_site(other_faults_are_passed_on, DEFAULT_VM, GMEM_BACKING_HOST, ASKING);
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
