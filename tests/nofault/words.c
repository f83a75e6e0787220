/* SPDX-License-Identifier: MIT */
/* nofault: loads, stores and compare-exchange of 8 to 64 bits. */
#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "harness.h"

static const int orders[] = {
	__ATOMIC_RELAXED, __ATOMIC_ACQUIRE, __ATOMIC_RELEASE, __ATOMIC_SEQ_CST,
};

static void with_recovery(void)
{
	CHECK_EQ(gmem_recovery_enable(), 0);
	CHECK(gmem_nofault_is_recoverable());
}

/* Values with all bits in use, so that a wrong width or extension shows */
#define ONE 0x8192a3b4c5d6e7f8u
#define TWO 0xfedcba9876543210u

#define DEFINE_TESTS(bits)                                                \
static void values_##bits(bool fast, int order)                           \
{                                                                         \
	uint##bits##_t words[3], got = 1, expected;                       \
	int swapped = 77;                                                 \
                                                                          \
	memset(words, 0xee, sizeof(words));                               \
	CHECK_EQ(gmem_nofault_store##bits(fast, &words[1], (uint##bits##_t)ONE, order), 0); \
	CHECK(words[1] == (uint##bits##_t)ONE);                           \
	CHECK_EQ(gmem_nofault_load##bits(fast, &words[1], order, &got), 0); \
	CHECK(got == (uint##bits##_t)ONE);                                \
                                                                          \
	expected = (uint##bits##_t)TWO;                                   \
	CHECK_EQ(gmem_nofault_cmpxchg##bits(fast, &words[1], &expected, 5, order, &swapped), 0); \
	CHECK_EQ(swapped, 0);                                             \
	CHECK(expected == (uint##bits##_t)ONE);                           \
	CHECK(words[1] == (uint##bits##_t)ONE);                           \
	CHECK_EQ(gmem_nofault_cmpxchg##bits(fast, &words[1], &expected,     \
					    (uint##bits##_t)TWO, order, &swapped), 0); \
	CHECK_EQ(swapped, 1);                                             \
	CHECK(expected == (uint##bits##_t)ONE);                           \
	CHECK(words[1] == (uint##bits##_t)TWO);                           \
	CHECK((uint8_t)words[0] == 0xee && (uint8_t)words[2] == 0xee);    \
}                                                                         \
                                                                          \
static void missing_##bits(bool fast, int order, char *missing)           \
{                                                                         \
	uint##bits##_t got = 17, expected = 18, *last = (void *)(missing - bits / 8); \
	int swapped = 77;                                                 \
                                                                          \
	CHECK_EQ(gmem_nofault_load##bits(fast, missing, order, &got), -EFAULT); \
	CHECK(got == 17);                                                 \
	CHECK_EQ(gmem_nofault_store##bits(fast, missing, 3, order), -EFAULT); \
	CHECK_EQ(gmem_nofault_cmpxchg##bits(fast, missing, &expected, 5, order, &swapped), \
		 -EFAULT);                                                \
	CHECK(expected == 18);                                            \
	CHECK_EQ(swapped, 77);                                            \
                                                                          \
	CHECK_EQ(gmem_nofault_store##bits(fast, last, 33, order), 0);       \
	CHECK_EQ(gmem_nofault_load##bits(fast, last, order, &got), 0);      \
	CHECK(got == 33);                                                 \
}                                                                         \
                                                                          \
static void read_only_##bits(bool fast, int order, char *p)               \
{                                                                         \
	uint##bits##_t got = 17, expected = 0;                            \
	int swapped = 77;                                                 \
                                                                          \
	CHECK_EQ(gmem_nofault_load##bits(fast, p, order, &got), 0);       \
	CHECK(got == 0);                                                  \
	CHECK_EQ(gmem_nofault_store##bits(fast, p, 3, order), -EFAULT);   \
	CHECK_EQ(gmem_nofault_cmpxchg##bits(fast, p, &expected, 5, order, &swapped), \
		 -EFAULT);                                                \
	CHECK(expected == 0);                                             \
	CHECK_EQ(swapped, 77);                                            \
}                                                                         \
                                                                          \
TEST(words_of_##bits##_bits_have_their_values_in_every_order)             \
{                                                                         \
	size_t i;                                                         \
                                                                          \
	with_recovery();                                                  \
	for (i = 0; i < 2 * ARRAY_SIZE(orders); i++) {                    \
		in_case("fast %zu, order %d", i % 2, orders[i / 2]);      \
		values_##bits(i % 2, orders[i / 2]);                      \
	}                                                                 \
}                                                                         \
                                                                          \
HOLE_TEST(words_of_##bits##_bits_survive_a_missing_page)                  \
{                                                                         \
	char *p = map_with_hole(page_size(), page_size());                \
	size_t i;                                                         \
                                                                          \
	with_recovery();                                                  \
	for (i = 0; i < 2 * ARRAY_SIZE(orders); i++) {                    \
		in_case("fast %zu, order %d", i % 2, orders[i / 2]);      \
		missing_##bits(i % 2, orders[i / 2], p + page_size());    \
	}                                                                 \
}                                                                         \
                                                                          \
TEST(words_of_##bits##_bits_are_not_stored_where_they_may_only_be_read)   \
{                                                                         \
	char *p;                                                          \
	size_t i;                                                         \
                                                                          \
	hole_kind = READ_ONLY;                                            \
	p = map_with_hole(page_size(), page_size());                      \
	with_recovery();                                                  \
	for (i = 0; i < 2 * ARRAY_SIZE(orders); i++) {                    \
		in_case("fast %zu, order %d", i % 2, orders[i / 2]);      \
		read_only_##bits(i % 2, orders[i / 2], p + 2 * page_size() - 8); \
	}                                                                 \
}

DEFINE_TESTS(8)
DEFINE_TESTS(16)
DEFINE_TESTS(32)
DEFINE_TESTS(64)

/* ---- probes ---- */

static unsigned int rounds(void)
{
	return is_slow() ? 5000 : 200000;
}

static void *add_to_it(void *word)
{
	unsigned int i;

	for (i = 0; i < rounds(); i++)
		__atomic_fetch_add((uint32_t *)word, 1, __ATOMIC_RELAXED);
	return NULL;
}

TEST(asking_whether_a_word_can_be_written_changes_nothing)
{
	static uint32_t word;
	pthread_t thread;
	unsigned int i;

	CHECK_EQ(pthread_create(&thread, NULL, add_to_it, &word), 0);
	for (i = 0; i < rounds() / 10; i++)
		CHECK_EQ(gmem_nofault_probe_write(&word, sizeof(word)), 0);
	CHECK_EQ(pthread_join(thread, NULL), 0);
	CHECK_EQ(word, rounds());
}

/* ---- between threads ---- */

static void run_threads(void *(*run)(void *), void *const *args, unsigned int n)
{
	pthread_t threads[8];
	unsigned int i;

	for (i = 0; i < n; i++)
		CHECK_EQ(pthread_create(&threads[i], NULL, run, args ? args[i] : NULL), 0);
	for (i = 0; i < n; i++)
		CHECK_EQ(pthread_join(threads[i], NULL), 0);
}

static uint64_t counter;

static void *count_up(void *unused)
{
	uint64_t seen = 0;
	unsigned int i;
	int swapped = 0;

	(void)unused;
	for (i = 0; i < rounds(); i++) {
		do {
			CHECK_EQ(gmem_nofault_cmpxchg64(true, &counter, &seen, seen + 1,
							orders[i % 4], &swapped), 0);
		} while (!swapped);
	}
	return NULL;
}

TEST(cmpxchg_loses_no_count)
{
	uint64_t total = 0;

	with_recovery();
	run_threads(count_up, NULL, 4);
	CHECK_EQ(gmem_nofault_load64(true, &counter, __ATOMIC_RELAXED, &total), 0);
	CHECK_EQ(total, 4 * (uint64_t)rounds());
}

static uint64_t message[64];
static uint32_t turn;

static void *tell(void *unused)
{
	uint32_t i, now = 0;

	(void)unused;
	for (i = 1; i <= rounds(); i++) {
		do {
			CHECK_EQ(gmem_nofault_load32(true, &turn, __ATOMIC_ACQUIRE, &now), 0);
		} while (now & 1);
		message[i % 64] = i;
		CHECK_EQ(gmem_nofault_store32(true, &turn, 2 * i - 1, __ATOMIC_RELEASE), 0);
	}
	return NULL;
}

static void *hear(void *unused)
{
	uint32_t i, now = 0;

	(void)unused;
	for (i = 1; i <= rounds(); i++) {
		do {
			CHECK_EQ(gmem_nofault_load32(true, &turn, __ATOMIC_ACQUIRE, &now), 0);
		} while (now != 2 * i - 1);
		CHECK_EQ(message[i % 64], i);
		CHECK_EQ(gmem_nofault_store32(true, &turn, 2 * i, __ATOMIC_RELEASE), 0);
	}
	return NULL;
}

static void *speak(void *who)
{
	return who ? tell(NULL) : hear(NULL);
}

TEST(release_and_acquire_pass_a_message)
{
	void *args[] = { NULL, &turn };

	with_recovery();
	run_threads(speak, args, 2);
}

/* Each stores its own and looks at the other's: one of them must see a 1. */
struct side {
	uint64_t flag;
	uint64_t saw;
	struct side *other;
};

static pthread_barrier_t barrier;

static void *store_and_look(void *arg)
{
	struct side *side = arg;
	unsigned int i;

	for (i = 0; i < rounds() / 20; i++) {
		CHECK_EQ(gmem_nofault_store64(true, &side->flag, 0, __ATOMIC_SEQ_CST), 0);
		pthread_barrier_wait(&barrier);
		CHECK_EQ(gmem_nofault_store64(true, &side->flag, 1, __ATOMIC_SEQ_CST), 0);
		CHECK_EQ(gmem_nofault_load64(true, &side->other->flag, __ATOMIC_SEQ_CST,
					     &side->saw), 0);
		pthread_barrier_wait(&barrier);
		CHECK(side->saw || side->other->saw);
		pthread_barrier_wait(&barrier);
	}
	return NULL;
}

TEST(sequential_consistency_lets_nobody_miss_both_stores)
{
	static struct side sides[2] __attribute__((aligned(64)));
	void *args[] = { &sides[0], &sides[1] };

	with_recovery();
	sides[0].other = &sides[1];
	sides[1].other = &sides[0];
	CHECK_EQ(pthread_barrier_init(&barrier, NULL, 2), 0);
	run_threads(store_and_look, args, 2);
}

static uint64_t half_word;
static bool over;

static void *store_halves(void *unused)
{
	unsigned int i;

	(void)unused;
	for (i = 0; i < rounds(); i++)
		CHECK_EQ(gmem_nofault_store64(true, &half_word, i % 2 ? ~(uint64_t)0 : 0,
					      __ATOMIC_RELAXED), 0);
	__atomic_store_n(&over, true, __ATOMIC_RELEASE);
	return NULL;
}

static void *look_for_halves(void *unused)
{
	uint64_t seen = 0;

	(void)unused;
	while (!__atomic_load_n(&over, __ATOMIC_ACQUIRE)) {
		CHECK_EQ(gmem_nofault_load64(true, &half_word, __ATOMIC_RELAXED, &seen), 0);
		CHECK(seen == 0 || ~seen == 0);
	}
	return NULL;
}

static void *halves(void *who)
{
	return who ? store_halves(NULL) : look_for_halves(NULL);
}

TEST(a_word_is_never_seen_half_stored)
{
	void *args[] = { NULL, &half_word };

	with_recovery();
	run_threads(halves, args, 2);
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
