/* SPDX-License-Identifier: MIT */
#include "base/huge_pages.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/kernel_number.h"

/* From the smallest size to the largest that any architecture has */
#define SMALLEST	(UINT64_C(1) << 14)
#define LARGEST		(UINT64_C(1) << 34)

/* Room for the directory of a pool */
#define PATH_SIZE 128

static void path_of(uint64_t page_size, char path[PATH_SIZE])
{
	snprintf(path, PATH_SIZE, "/sys/kernel/mm/hugepages/hugepages-%" PRIu64 "kB", page_size / 1024);
}

/* The kernel makes surplus pages of ordinary memory, if it is allowed to. */
static uint64_t surplus_left(const char *path)
{
	uint64_t most, now;

	if (!gmem_kernel_number(path, "nr_overcommit_hugepages", "\n", &most) ||
	    !gmem_kernel_number(path, "surplus_hugepages", "\n", &now))
		return 0;
	return most > now ? most - now : 0;
}

bool gmem_huge_pool_get(uint64_t page_size, struct gmem_huge_pool *ret)
{
	struct gmem_huge_pool pool = { .page_size = page_size };
	char path[PATH_SIZE];

	path_of(page_size, path);
	if (!gmem_kernel_number(path, "free_hugepages", "\n", &pool.is_free))
		return false;

	(void)gmem_kernel_number(path, "resv_hugepages", "\n", &pool.reserved);
	if (pool.reserved > pool.is_free)
		pool.reserved = pool.is_free;
	pool.extra = surplus_left(path);
	*ret = pool;
	return true;
}

uint64_t gmem_huge_pool_room(const struct gmem_huge_pool *pool)
{
	return pool->is_free - pool->reserved + pool->extra;
}

int gmem_huge_pool_fail(const struct gmem_huge_pool *pool, uint64_t pages)
{
	char size[GMEM_SIZE_TEXT], path[PATH_SIZE];

	gmem_size_text(pool->page_size, size);
	path_of(pool->page_size, path);
	return gmem_fail(-ENOMEM, "%" PRIu64 " huge pages of %s are missing: %" PRIu64 " are free, %" PRIu64
			 " of them reserved for other mappings (free_hugepages, resv_hugepages), and %" PRIu64
			 " may be made (nr_overcommit_hugepages): raise %s/nr_hugepages", pages, size,
			 pool->is_free, pool->reserved, pool->extra, path);
}

unsigned int gmem_huge_page_shift(uint64_t page_size)
{
	unsigned int shift = 0;

	while (UINT64_C(1) << shift < page_size)
		shift++;
	return shift;
}

const char *gmem_huge_page_sizes(char text[GMEM_HUGE_SIZES_TEXT])
{
	struct gmem_huge_pool pool;
	char size[GMEM_SIZE_TEXT];
	size_t length = 0;

	text[0] = '\0';
	for (uint64_t page_size = SMALLEST; page_size <= LARGEST; page_size *= 2) {
		if (!gmem_huge_pool_get(page_size, &pool))
			continue;
		gmem_size_text(page_size, size);
		if (length + strlen(size) + sizeof(", ") > GMEM_HUGE_SIZES_TEXT)
			break;
		length += (size_t)snprintf(text + length, GMEM_HUGE_SIZES_TEXT - length, "%s%s",
					   length ? ", " : "", size);
	}
	return text;
}
