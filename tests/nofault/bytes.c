/* SPDX-License-Identifier: MIT */
/* nofault: copy, fill, compare and strings where some of the memory is not there. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "harness.h"

#define GUARD 80	/* bytes looked at beyond either end */

/* The slow engine, and the fast one with all that this processor can do */
static const struct engine {
	const char *name;
	bool fast;
	unsigned int width;
	bool strings;
} engines[] = {
	{ "slow", false, 16, false },
	{ "fast, vectors of 16", true, 16, false },
	{ "fast, vectors of 32", true, 32, false },
	{ "fast, vectors of 64", true, 64, false },
	{ "fast, strings", true, 64, true },
	{ "fast, vectors of 16 and strings", true, 16, true },
};

static const struct engine *engine;

static bool use_engine(int *ret_fast)
{
	for (; engine < engines + ARRAY_SIZE(engines); engine++) {
		if (gmem_nofault_choose(engine->width) != engine->width)
			continue;
#if defined(__x86_64__)
		if (!engine->strings)
			gmem_nofault_string_from = SIZE_MAX;
#endif
		*ret_fast = engine->fast;
		return true;
	}
	return false;
}

#define FOR_EACH_ENGINE(fast) \
	for (engine = engines; use_engine(&(fast)); engine++)

/* With step 1 every case is tried, on a slow machine, or with SIGSEGV, fewer of each kind */
static size_t step(void)
{
	return is_slow() ? 7 : hole_kind == PAST_THE_END ? 1 : 3;
}

static void with_recovery(void)
{
	CHECK_EQ(gmem_recovery_enable(), 0);
	CHECK(gmem_nofault_is_recoverable());
}

static void check_bytes(const uint8_t *p, size_t from, size_t done)
{
	size_t i;

	for (i = 0; i < done; i++) {
		if (p[i] != pattern(from + i))
			FAIL("byte %zu is 0x%x, not 0x%x", i, p[i], pattern(from + i));
	}
}

static void check_untouched(const uint8_t *p, size_t size, uint8_t byte)
{
	size_t i;

	for (i = 0; i < size; i++) {
		if (p[i] != byte)
			FAIL("byte %zu outside was written", i);
	}
}

/* ---- all is there ---- */

static void copy_all(bool fast, uint8_t *to, const uint8_t *from, size_t at, size_t source,
		     size_t size)
{
	int err = 1;

	in_case("%s: %zu bytes from %zu to %zu", engine->name, size, source, at);
	memset(to + at - GUARD, 0xee, size + 2 * GUARD);
	CHECK_EQ(gmem_nofault_copy(fast, to + at, from + source, size, &err), size);
	CHECK_EQ(err, 0);
	check_bytes(to + at, source, size);
	check_untouched(to + at - GUARD, GUARD, 0xee);
	check_untouched(to + at + size, GUARD, 0xee);
}

TEST(copy_copies_every_size_and_no_byte_more)
{
	uint8_t *from = malloc(MIB + 256), *to = malloc(MIB + 512);
	static const size_t big[] = { 4095, 4096, 4097, 65535, 65536, 65537, MIB - 1, MIB };
	size_t size, i, shift;
	int fast;

	with_recovery();
	fill_pattern(from, MIB + 256);

	FOR_EACH_ENGINE(fast) {
		for (size = 0; size < 2200; size += fast ? step() : 13) {
			for (shift = 0; shift < 70; shift += size > 300 ? 7 : 1)
				copy_all(fast, to, from, GUARD + shift, shift * 5 % 67, size);
		}
		for (i = 0; i < ARRAY_SIZE(big); i++) {
			for (shift = 0; shift < 70; shift += 23)
				copy_all(fast, to, from, GUARD + shift, shift * 5 % 67, big[i]);
		}
	}
}

TEST(fill_fills_every_size_and_no_byte_more)
{
	uint8_t *to = malloc(MIB + 512);
	static const size_t big[] = { 4095, 4096, 4097, 65537, MIB };
	size_t size, i, shift, n;
	int fast, err;

	with_recovery();
	FOR_EACH_ENGINE(fast) {
		for (n = 0; n < 1400 + ARRAY_SIZE(big); n += n < 1390 ? step() : 1) {
			size = n < 1400 ? n : big[n - 1400];
			for (shift = 0; shift < 66; shift += size > 200 ? 7 : 1) {
				in_case("%s: %zu bytes at %zu", engine->name, size, shift);
				memset(to, 0xee, size + shift + 2 * GUARD);
				err = 1;
				CHECK_EQ(gmem_nofault_fill(fast, to + GUARD + shift, 0x1a5, size,
							   &err), size);
				CHECK_EQ(err, 0);
				for (i = 0; i < size; i++)
					CHECK_EQ(to[GUARD + shift + i], 0xa5);
				check_untouched(to, GUARD + shift, 0xee);
				check_untouched(to + GUARD + shift + size, GUARD, 0xee);
			}
		}
	}
}

/* ---- the end is missing ---- */

/* @there bytes of @size are there on each side, and all of both if it is more. */
static void copy_into_hole(bool fast, uint8_t *to, const uint8_t *from, size_t source,
			   size_t to_there, size_t from_there, size_t size)
{
	size_t wanted = to_there < from_there ? to_there : from_there;
	int err = 1;

	in_case("%s: %zu bytes, %zu of dst and %zu of src are there, at %zu and %zu", engine->name,
		size, to_there, from_there, (uintptr_t)to % 64, (uintptr_t)from % 64);
	if (wanted > size)
		wanted = size;
	memset(to, 0xee, to_there < size ? to_there : size);
	CHECK_EQ(gmem_nofault_copy(fast, to, from, size, &err), wanted);
	CHECK_EQ(err, wanted < size ? -EFAULT : 0);
	check_bytes(to, source, wanted);
}

HOLE_TEST(copy_counts_exactly_where_the_source_ends)
{
	size_t page = page_size(), there, size;
	uint8_t *from = map_with_hole(page, page), *to = malloc(4 * page);
	int fast;

	with_recovery();
	fill_pattern(from, page);
	FOR_EACH_ENGINE(fast) {
		for (there = 0; there <= 310; there += step()) {
			for (size = 0; size <= 300; size += step())
				copy_into_hole(fast, to + (there * 11 + size) % 64,
					       from + page - there, page - there, SIZE_MAX, there,
					       size);
		}
	}
}

WRITTEN_HOLE_TEST(copy_counts_exactly_where_the_destination_ends)
{
	size_t page = page_size(), there, size, shift;
	uint8_t *to = map_with_hole(page, page), *from = malloc(4 * page);
	int fast;

	with_recovery();
	fill_pattern(from, 4 * page);
	FOR_EACH_ENGINE(fast) {
		for (there = 0; there <= 310; there += step()) {
			for (size = 0; size <= 300; size += step()) {
				shift = (there * 11 + size) % 64;
				copy_into_hole(fast, to + page - there, from + shift, shift, there,
					       SIZE_MAX, size);
			}
		}
	}
}

HOLE_TEST(copy_counts_exactly_where_both_end)
{
	size_t page = page_size(), to_there, from_there, size;
	uint8_t *to = map_with_hole(page, 2 * page), *from = map_with_hole(page, 2 * page);
	int fast;

	with_recovery();
	fill_pattern(from, page);
	FOR_EACH_ENGINE(fast) {
		for (to_there = 0; to_there <= 140; to_there += 3 * step()) {
			for (from_there = 0; from_there <= 140; from_there += 2 * step()) {
				for (size = 1; size <= 150; size += 7)
					copy_into_hole(fast, to + page - to_there,
						       from + page - from_there,
						       page - from_there, to_there, from_there,
						       size);
				copy_into_hole(fast, to + page - to_there,
					       from + page - from_there, page - from_there,
					       to_there, from_there, 3000);
			}
		}
	}
}

HOLE_TEST(copy_counts_exactly_in_large_copies)
{
	static const size_t sizes[] = { 700, 1023, 1024, 1025, 4096, 5000, 65536, 100001, MIB };
	size_t page = page_size(), room = 2 * MIB, i, cut, n;
	uint8_t *from = map_with_hole(room, room), *to = map_with_hole(room, room);
	int fast;

	with_recovery();
	fill_pattern(from, room);
	FOR_EACH_ENGINE(fast) {
		for (i = 0; i < ARRAY_SIZE(sizes); i++) {
			/* from "nothing is there" to "all but one byte is" */
			for (n = 0; n < 40; n++) {
				cut = n < 20 ? n * 7 : sizes[i] - 1 - (n - 20) * 13;
				if (cut > sizes[i])
					continue;
				copy_into_hole(fast, to + n % 9, from + room - cut, room - cut,
					       SIZE_MAX, cut, sizes[i]);
				copy_into_hole(fast, to + room - cut, from + n * 3, n * 3, cut,
					       SIZE_MAX, sizes[i]);
			}
			cut = sizes[i] / 2 / page * page + 17;
			copy_into_hole(fast, to + 1, from + room - cut, room - cut, SIZE_MAX, cut,
				       sizes[i]);
		}
	}
}

/* There is memory after the missing page: an access that begins at the end must not count. */
HOLE_TEST(copy_stops_at_the_first_of_the_missing_pages)
{
	size_t page = page_size(), size, before;
	uint8_t *from = map_without_page(4 * page, page), *to = malloc(5 * page);
	uint8_t *holed = map_without_page(4 * page, page);
	int fast;

	with_recovery();
	fill_pattern(from, page);
	FOR_EACH_ENGINE(fast) {
		for (before = 0; before < 200; before += step()) {
			for (size = page; size < page + 260; size += 17) {
				copy_into_hole(fast, to + before % 16, from + page - before,
					       page - before, SIZE_MAX, before, size);
				copy_into_hole(fast, holed + page - before, from, 0, before, page,
					       size);
			}
		}
	}
}

HOLE_TEST(copy_begins_in_a_missing_page)
{
	size_t page = page_size(), size, back;
	uint8_t *from = map_without_page(3 * page, page), *to = malloc(3 * page);
	int fast;

	with_recovery();
	FOR_EACH_ENGINE(fast) {
		for (back = 1; back < 80; back++) {
			for (size = 1; size < 140; size += step()) {
				copy_into_hole(fast, to, from + 2 * page - back, 0, SIZE_MAX, 0,
					       size);
				copy_into_hole(fast, from + 2 * page - back, to, 0, 0, SIZE_MAX,
					       size);
			}
		}
	}
}

WRITTEN_HOLE_TEST(fill_counts_exactly_where_the_destination_ends)
{
	static const size_t big[] = { 1023, 1024, 4097, 65536, MIB };
	size_t page = page_size(), there, size, n, i, wanted;
	uint8_t *to = map_with_hole(page, 2 * MIB);
	int fast, err;

	with_recovery();
	FOR_EACH_ENGINE(fast) {
		for (there = 0; there <= 310; there += step()) {
			for (n = 0; n < 200 + ARRAY_SIZE(big); n++) {
				size = n < 200 ? n : big[n - 200];
				in_case("%s: %zu of %zu bytes are there", engine->name, there,
					size);
				wanted = there < size ? there : size;
				memset(to + page - there, 0xee, wanted);
				err = 1;
				CHECK_EQ(gmem_nofault_fill(fast, to + page - there, 0x5a, size, &err),
					 wanted);
				CHECK_EQ(err, wanted < size ? -EFAULT : 0);
				for (i = 0; i < wanted; i++)
					CHECK_EQ(to[page - there + i], 0x5a);
			}
		}
	}
}

/* ---- compare ---- */

static int sign(int value)
{
	return (value > 0) - (value < 0);
}

TEST(compare_finds_the_first_difference)
{
	size_t size, at, shift;
	uint8_t a[400], b[480];
	int fast, cmp, err, way;

	with_recovery();
	FOR_EACH_ENGINE(fast) {
		for (size = 0; size < 300; size += 11) {
			for (at = 0; at <= size; at++) {
				shift = at % 9;
				way = at % 2 ? 100 : -100;
				fill_pattern(a, sizeof(a));
				memcpy(b + shift, a, sizeof(a));
				b[shift + at] = (uint8_t)(b[shift + at] + way);
				in_case("%s: %zu bytes, differ at %zu", engine->name, size, at);
				cmp = err = 77;
				CHECK_EQ(gmem_nofault_compare(fast, a, b + shift, size, &cmp, &err),
					 at);
				CHECK_EQ(err, 0);
				CHECK_EQ(cmp, sign(memcmp(a, b + shift, size)));
			}
		}
	}
}

HOLE_TEST(compare_counts_exactly_where_a_side_ends)
{
	size_t page = page_size(), a_there, b_there, size, wanted;
	uint8_t *a = map_with_hole(page, 2 * page), *b = map_with_hole(page, 2 * page);
	int fast, cmp, err;

	with_recovery();
	memset(a, 3, page);
	memset(b, 3, page);
	FOR_EACH_ENGINE(fast) {
		for (a_there = 0; a_there < 90; a_there += step()) {
			for (b_there = 0; b_there < 90; b_there += 5) {
				for (size = 0; size < 100; size += 9) {
					in_case("%s: %zu bytes, %zu and %zu are there",
						engine->name, size, a_there, b_there);
					wanted = a_there < b_there ? a_there : b_there;
					if (wanted > size)
						wanted = size;
					cmp = err = 77;
					CHECK_EQ(gmem_nofault_compare(fast, a + page - a_there,
								      b + page - b_there, size, &cmp,
								      &err), wanted);
					CHECK_EQ(err, wanted < size ? -EFAULT : 0);
					CHECK_EQ(cmp, 0);
				}
			}
		}
	}
}

/* A difference before the missing page decides. */
HOLE_TEST(compare_sees_a_difference_before_it_meets_a_missing_page)
{
	size_t page = page_size(), there, at;
	uint8_t *a = map_with_hole(page, page), *b = malloc(page);
	int fast, cmp, err;

	with_recovery();
	memset(b, 3, page);
	FOR_EACH_ENGINE(fast) {
		for (there = 1; there < 70; there++) {
			for (at = 0; at < there; at++) {
				memset(a, 3, page);
				a[page - there + at] = 9;
				in_case("%s: %zu are there, differ at %zu", engine->name, there,
					at);
				CHECK_EQ(gmem_nofault_compare(fast, a + page - there, b, 200, &cmp,
							      &err), at);
				CHECK_EQ(err, 0);
				CHECK_EQ(cmp, 1);
			}
		}
	}
}

/* ---- strings ---- */

TEST(string_ends_at_its_nul_or_the_bound)
{
	char src[400], dst[400];
	size_t length, max, shift, wanted;
	int fast, err;

	with_recovery();
	FOR_EACH_ENGINE(fast) {
		for (length = 0; length < 100; length += step()) {
			for (max = 0; max < 110; max += 3) {
				shift = (length + max) % 9;
				memset(src, 'x', sizeof(src));
				src[shift + length] = '\0';
				memset(dst, 'o', sizeof(dst));
				in_case("%s: %zu long, at most %zu", engine->name, length, max);
				wanted = length < max ? length : max;
				err = 1;
				CHECK_EQ(gmem_nofault_string(fast, dst + 5, src + shift, max, &err),
					 wanted);
				CHECK_EQ(err, 0);
				CHECK_EQ(strspn(dst + 5, "x"), wanted);
				CHECK(dst[4] == 'o');
				CHECK(dst[5 + wanted] == 'o');
			}
		}
	}
}

HOLE_TEST(string_meets_a_missing_page_only_without_a_nul_before)
{
	size_t page = page_size(), there, nul;
	char *src = map_with_hole(page, page), *dst = malloc(page);
	int fast, err;

	with_recovery();
	memset(src, 'x', page);
	FOR_EACH_ENGINE(fast) {
		for (there = 0; there < 90; there++) {
			in_case("%s: %zu are there", engine->name, there);
			CHECK_EQ(gmem_nofault_string(fast, dst, src + page - there, 1000, &err),
				 there);
			CHECK_EQ(err, -EFAULT);
			CHECK_EQ(gmem_nofault_string(fast, dst, src + page - there, there, &err),
				 there);
			CHECK_EQ(err, 0);
			for (nul = 0; nul < there; nul++) {
				src[page - there + nul] = '\0';
				CHECK_EQ(gmem_nofault_string(fast, dst, src + page - there, 1000,
							     &err), nul);
				CHECK_EQ(err, 0);
				src[page - there + nul] = 'x';
			}
		}
	}
}

WRITTEN_HOLE_TEST(string_counts_exactly_where_the_destination_ends)
{
	size_t page = page_size(), there, i;
	char *dst = map_with_hole(page, page), src[200];
	int fast, err;

	with_recovery();
	memset(src, 'x', sizeof(src));
	FOR_EACH_ENGINE(fast) {
		for (there = 0; there < 90; there++) {
			memset(dst, 'o', page);
			in_case("%s: %zu are there", engine->name, there);
			CHECK_EQ(gmem_nofault_string(fast, dst + page - there, src + there % 11, 120,
						     &err), there);
			CHECK_EQ(err, -EFAULT);
			for (i = 0; i < there; i++)
				CHECK(dst[page - there + i] == 'x');
		}
	}
}

/* ---- numbers that others read and write meanwhile ---- */

struct shared_number {
	uint64_t memory;
	size_t width;
	bool stop;
	size_t torn;
};

static bool is_whole(uint64_t number, size_t width)
{
	const uint64_t all = ~(uint64_t)0 >> (64 - 8 * width);

	return (number & all) == 0 || (number & all) == all;
}

/* What the copies and fills of the other thread leave there */
static void *watch_number(void *data)
{
	struct shared_number *shared = data;

	while (!__atomic_load_n(&shared->stop, __ATOMIC_RELAXED))
		if (!is_whole(__atomic_load_n(&shared->memory, __ATOMIC_RELAXED), shared->width))
			shared->torn++;
	return NULL;
}

TEST(a_number_is_copied_and_filled_as_a_whole)
{
	static const uint64_t numbers[] = { 0, ~(uint64_t)0 };
	struct shared_number shared = { .width = 1 };
	const size_t rounds = is_slow() ? 2000 : 10000000;
	pthread_t watcher;
	size_t i;
	int err;

	with_recovery();
	for (; shared.width <= sizeof(shared.memory); shared.width *= 2) {
		in_case("%zu bytes", shared.width);
		shared.stop = false;
		shared.memory = 0;	/* What is left of a narrower number is torn. */
		CHECK_EQ(pthread_create(&watcher, NULL, watch_number, &shared), 0);
		for (i = 0; i < rounds; i++)
			gmem_nofault_copy(true, &shared.memory, &numbers[i % 2], shared.width, &err);
		for (i = 0; i < rounds; i++)
			gmem_nofault_fill(true, &shared.memory, i % 2 ? 0xff : 0, shared.width, &err);
		__atomic_store_n(&shared.stop, true, __ATOMIC_RELAXED);
		CHECK_EQ(pthread_join(watcher, NULL), 0);
		CHECK_EQ(shared.torn, 0);
	}
}

/* ---- addresses that are none ---- */

static void reach_nothing(bool fast, uint8_t *nowhere, uint8_t *p, size_t size)
{
	int err, cmp;

	in_case("%s: %zu bytes at %p", engine->name, size, (void *)nowhere);
	err = cmp = 1;
	CHECK_EQ(gmem_nofault_copy(fast, p, nowhere, size, &err), 0);
	CHECK_EQ(err, -EFAULT);
	err = 1;
	CHECK_EQ(gmem_nofault_copy(fast, nowhere, p, size, &err), 0);
	CHECK_EQ(err, -EFAULT);
	err = 1;
	CHECK_EQ(gmem_nofault_fill(fast, nowhere, 1, size, &err), 0);
	CHECK_EQ(err, -EFAULT);
	err = 1;
	CHECK_EQ(gmem_nofault_compare(fast, p, nowhere, size, &cmp, &err), 0);
	CHECK_EQ(err, -EFAULT);
	err = 1;
	CHECK_EQ(gmem_nofault_string(fast, (char *)p, (char *)nowhere, size, &err), 0);
	CHECK_EQ(err, -EFAULT);
}

/* NULL, an address that no page can have, one of the kernel's */
TEST(wild_pointers_are_errors_of_every_function)
{
	static const uintptr_t wild[] = {
		0, 1, 4095, UINT64_C(0x8000) << 32, UINT64_C(0xa5a5a5a5a5a5a5a5),
		UINT64_C(0xffff888000000000), UINTPTR_MAX - 40000,
	};
	static const size_t sizes[] = { 1, 3, 8, 17, 60, 100, 200, 500, 5000, 20000 };
	uint8_t *p = malloc(20000);
	size_t i, j;
	int fast;

	with_recovery();
	memset(p, 1, 20000);
	FOR_EACH_ENGINE(fast) {
		for (i = 0; i < ARRAY_SIZE(wild); i++) {
			for (j = 0; j < ARRAY_SIZE(sizes); j++)
				reach_nothing(fast, (uint8_t *)wild[i], p, sizes[j]);
		}
	}
}

/* ---- what stays behind ---- */

#define SECRET 0x5e
#define STACK  (256 << 10)

static void *compare_and_read_secrets(void *secrets)
{
	const char *a = secrets, *b = a + 10000;
	char *text = (char *)secrets + 20000;
	int cmp, err, fast;

	FOR_EACH_ENGINE(fast) {
		CHECK_EQ(gmem_nofault_compare(fast, a, b, 10000, &cmp, &err), 10000);
		CHECK_EQ(cmp | err, 0);
		CHECK_EQ(gmem_nofault_string(fast, text, a, 10000, &err), 10000);
		CHECK_EQ(gmem_nofault_string(fast, text, a, 100, &err), 100);
		CHECK_EQ(err, 0);
	}
	return NULL;
}

/* A core dump has the stack. */
TEST(nothing_stays_on_the_stack)
{
	char *secrets = malloc(30000), *stack = aligned_alloc(4096, STACK);
	pthread_attr_t attr;
	pthread_t thread;
	size_t left = 0;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	skip("a sanitizer's stacks are not looked at");
#endif
	with_recovery();
	memset(secrets, SECRET, 30000);
	memset(stack, 0, STACK);
	CHECK_EQ(pthread_attr_init(&attr), 0);
	CHECK_EQ(pthread_attr_setstack(&attr, stack, STACK), 0);
	CHECK_EQ(pthread_create(&thread, &attr, compare_and_read_secrets, secrets), 0);
	CHECK_EQ(pthread_join(thread, NULL), 0);
	for (size_t i = 0; i < STACK; i++)
		left += stack[i] == SECRET;
	/* registers that were saved */
	if (left > 256)
		FAIL("%zu bytes stay on the stack", left);
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
