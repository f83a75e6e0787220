/* SPDX-License-Identifier: MIT */
/* crc32c: every way that this processor has, against known results and against the plain way */
#include <stdlib.h>
#include <string.h>

#include "base/crc32c.h"
#include "unit.h"

#define ROOM ((size_t)1 << 18)

static unsigned char bytes[ROOM + 64];

static uint64_t random_number(void)
{
	static uint64_t x = 88172645463325252u;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return x;
}

static int fill(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(bytes); i++)
		bytes[i] = (unsigned char)(random_number() >> 32);
	return 0;
}

/* RFC 3720, B.4 */
static void known_results(void **state)
{
	unsigned char zeros[32] = { 0 }, ones[32], up[32], down[32];

	(void)state;
	memset(ones, 0xff, sizeof(ones));
	for (unsigned char i = 0; i < 32; i++) {
		up[i] = i;
		down[i] = (unsigned char)(31 - i);
	}
	for (unsigned int way = GMEM_CRC32C_PLAIN; way <= gmem_crc32c_best(); way++) {
		assert_int_equal(gmem_crc32c_by(way, 0, "", 0), 0);
		assert_int_equal(gmem_crc32c_by(way, 0, "123456789", 9), 0xe3069283);
		assert_int_equal(gmem_crc32c_by(way, 0, zeros, sizeof(zeros)), 0x8a9136aa);
		assert_int_equal(gmem_crc32c_by(way, 0, ones, sizeof(ones)), 0x62a8ab43);
		assert_int_equal(gmem_crc32c_by(way, 0, up, sizeof(up)), 0x46dd794e);
		assert_int_equal(gmem_crc32c_by(way, 0, down, sizeof(down)), 0x113fdb5c);
	}
}

static void compare(size_t start, size_t size, uint32_t before)
{
	uint32_t plain = gmem_crc32c_by(GMEM_CRC32C_PLAIN, before, bytes + start, size);

	for (unsigned int way = GMEM_CRC32C_ONE; way <= gmem_crc32c_best(); way++)
		assert_int_equal(gmem_crc32c_by(way, before, bytes + start, size), plain);
	assert_int_equal(gmem_crc32c(before, bytes + start, size), plain);
}

static void all_ways_agree_on_small_sizes(void **state)
{
	(void)state;
	for (size_t size = 0; size < 2200; size++)
		compare(size % 65, size, (uint32_t)random_number());
}

static void all_ways_agree_at_any_alignment(void **state)
{
	(void)state;
	for (size_t start = 0; start < 64; start++)
		compare(start, 4096 + start % 7, (uint32_t)random_number());
	for (unsigned int i = 0; i < 100; i++)
		compare(random_number() % 64, random_number() % ROOM, (uint32_t)random_number());
}

static void pieces_make_the_whole(void **state)
{
	uint32_t whole = gmem_crc32c_by(GMEM_CRC32C_PLAIN, 0, bytes, ROOM), crc;
	size_t now;

	(void)state;
	for (unsigned int way = GMEM_CRC32C_PLAIN; way <= gmem_crc32c_best(); way++) {
		crc = 0;
		for (size_t at = 0; at < ROOM; at += now) {
			now = random_number() % 5000;
			now = now < ROOM - at ? now : ROOM - at;
			crc = gmem_crc32c_by(way, crc, bytes + at, now);
		}
		assert_int_equal(crc, whole);
	}
}

static void checksums_of_pieces_are_joined(void **state)
{
	size_t first, size;

	(void)state;
	for (unsigned int i = 0; i < 300; i++) {
		size = i < 200 ? i : random_number() % ROOM;
		first = i % 3 ? random_number() % (size + 1) : i % 9 ? size : 0;
		assert_int_equal(gmem_crc32c_join(gmem_crc32c(0, bytes, first),
						  gmem_crc32c(0, bytes + first, size - first), size - first),
				 gmem_crc32c(0, bytes, size));
	}
}

/* Nothing past the end is read, nor before the start: valgrind and ASan look at it, too. */
static void only_the_bytes_are_read(void **state)
{
	unsigned char *copy;

	(void)state;
	for (size_t size = 1; size < 1500; size += 1 + size / 9) {
		copy = malloc(size);
		assert_non_null(copy);
		memcpy(copy, bytes, size);
		for (unsigned int way = GMEM_CRC32C_PLAIN; way <= gmem_crc32c_best(); way++)
			assert_int_equal(gmem_crc32c_by(way, 0, copy, size),
					 gmem_crc32c_by(GMEM_CRC32C_PLAIN, 0, bytes, size));
		free(copy);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(known_results),
		cmocka_unit_test(all_ways_agree_on_small_sizes),
		cmocka_unit_test(all_ways_agree_at_any_alignment),
		cmocka_unit_test(pieces_make_the_whole),
		cmocka_unit_test(checksums_of_pieces_are_joined),
		cmocka_unit_test(only_the_bytes_are_read),
	};

	return cmocka_run_group_tests(tests, fill, NULL);
}
