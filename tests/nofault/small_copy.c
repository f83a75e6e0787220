/* SPDX-License-Identifier: MIT */
/* small_copy: 1 to 64 bytes copied inline, with a page missing on either side. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "nofault/small_copy.h"

#include "harness.h"

#define GUARD 80	/* bytes looked at beyond either end */
#define NOTHING 0xee

static void with_recovery(void)
{
	CHECK_EQ(gmem_recovery_enable(), 0);
	CHECK(gmem_nofault_is_recoverable());
}

static void check_all(const uint8_t *p, size_t size, uint8_t byte)
{
	size_t i;

	for (i = 0; i < size; i++) {
		if (p[i] != byte)
			FAIL("byte %zu was written", i);
	}
}

TEST(small_copy_copies_every_size_and_no_byte_more)
{
	uint8_t from[256], to[512];
	size_t size, at, source, i;

	with_recovery();
	fill_pattern(from, sizeof(from));
	for (size = 1; size <= GMEM_SMALL_COPY; size++) {
		for (at = GUARD; at < GUARD + 70; at++) {
			source = at * 5 % 67;
			in_case("%zu bytes from %zu to %zu", size, source, at);
			memset(to, NOTHING, sizeof(to));
			CHECK(gmem_small_copy(to + at, from + source, size));
			for (i = 0; i < size; i++)
				CHECK_EQ(to[at + i], pattern(source + i));
			check_all(to, at, NOTHING);
			check_all(to + at + size, GUARD, NOTHING);
		}
	}
}

/* All is loaded before anything is stored. */
HOLE_TEST(small_copy_stores_nothing_if_the_source_ends)
{
	size_t page = page_size(), size, there;
	uint8_t *from = map_with_hole(page, page), to[3 * GUARD];

	with_recovery();
	fill_pattern(from, page);
	for (size = 1; size <= GMEM_SMALL_COPY; size++) {
		for (there = 0; there <= size; there++) {
			in_case("%zu bytes, %zu are there", size, there);
			memset(to, NOTHING, sizeof(to));
			CHECK_EQ(gmem_small_copy(to + GUARD + there % 9, from + page - there, size),
				 there == size);
			if (there < size)
				check_all(to, sizeof(to), NOTHING);
		}
	}
}

HOLE_TEST(small_copy_stores_nothing_if_the_source_begins_late)
{
	size_t page = page_size(), size, back;
	uint8_t *from = map_without_page(3 * page, page), to[3 * GUARD];

	with_recovery();
	for (size = 1; size <= GMEM_SMALL_COPY; size++) {
		for (back = 1; back <= size; back++) {
			in_case("%zu bytes, %zu are missing", size, back);
			memset(to, NOTHING, sizeof(to));
			CHECK(!gmem_small_copy(to + GUARD, from + 2 * page - back, size));
			check_all(to, sizeof(to), NOTHING);
		}
	}
}

WRITTEN_HOLE_TEST(small_copy_fails_if_the_destination_ends)
{
	size_t page = page_size(), size, there;
	uint8_t *to = map_with_hole(page, page), from[GUARD];

	with_recovery();
	fill_pattern(from, sizeof(from));
	for (size = 1; size <= GMEM_SMALL_COPY; size++) {
		for (there = 0; there <= size; there++) {
			in_case("%zu bytes, %zu are there", size, there);
			memset(to + page - GUARD, NOTHING, GUARD);
			CHECK_EQ(gmem_small_copy(to + page - there, from + there % 9, size),
				 there == size);
			check_all(to + page - GUARD, GUARD - there, NOTHING);
		}
	}
}

WRITTEN_HOLE_TEST(small_copy_fails_if_the_destination_begins_late)
{
	size_t page = page_size(), size, back;
	uint8_t *to = map_without_page(3 * page, page), from[GUARD];

	with_recovery();
	fill_pattern(from, sizeof(from));
	for (size = 1; size <= GMEM_SMALL_COPY; size++) {
		for (back = 1; back <= size; back++) {
			in_case("%zu bytes, %zu are missing", size, back);
			memset(to + 2 * page, NOTHING, GUARD);
			CHECK(!gmem_small_copy(to + 2 * page - back, from, size));
			check_all(to + 2 * page + (size - back), GUARD - (size - back), NOTHING);
		}
	}
}

TEST(small_copy_fails_at_wild_pointers)
{
	static const uintptr_t wild[] = {
		0, 1, 4095, UINT64_C(0x8000) << 32, UINT64_C(0xa5a5a5a5a5a5a5a5),
		UINT64_C(0xffff888000000000), UINTPTR_MAX - 40000,
	};
	uint8_t p[GMEM_SMALL_COPY] = { 0 };
	size_t size, i;

	with_recovery();
	for (size = 1; size <= GMEM_SMALL_COPY; size++) {
		for (i = 0; i < ARRAY_SIZE(wild); i++) {
			in_case("%zu bytes at %p", size, (void *)wild[i]);
			CHECK(!gmem_small_copy(p, (void *)wild[i], size));
			CHECK(!gmem_small_copy((void *)wild[i], p, size));
		}
	}
}

/* ---- numbers are whole ---- */

struct shared_number {
	uint64_t memory;
	size_t width;
	bool stop;
};

/* Stores 0 and all ones in turn, as the guest does. */
static void *change_number(void *data)
{
	struct shared_number *shared = data;
	uint64_t number = 0;

	while (!__atomic_load_n(&shared->stop, __ATOMIC_RELAXED)) {
		gmem_small_copy(&shared->memory, &number, shared->width);
		number = ~number;
	}
	return NULL;
}

TEST(small_copy_copies_a_number_as_a_whole)
{
	struct shared_number shared = { .width = 1 };
	const size_t rounds = is_slow() ? 2000 : 5000000;
	uint64_t seen, all;
	pthread_t thread;
	size_t i;

	with_recovery();
	for (; shared.width <= sizeof(shared.memory); shared.width *= 2) {
		in_case("%zu bytes", shared.width);
		shared.stop = false;
		shared.memory = 0;	/* What is left of a narrower number is torn. */
		all = ~(uint64_t)0 >> (64 - 8 * shared.width);
		CHECK_EQ(pthread_create(&thread, NULL, change_number, &shared), 0);
		for (i = 0; i < rounds; i++) {
			seen = 0;
			CHECK(gmem_small_copy(&seen, &shared.memory, shared.width));
			if (seen && seen != all)
				FAIL("0x%llx is torn", (unsigned long long)seen);
		}
		__atomic_store_n(&shared.stop, true, __ATOMIC_RELAXED);
		CHECK_EQ(pthread_join(thread, NULL), 0);
	}
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
