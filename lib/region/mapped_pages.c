/* SPDX-License-Identifier: MIT */
#include "region/mapped_pages.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "os/sys.h"

/* Pages of a walk that are worth opening a file of /proc for, which takes 2 us */
#define WORTHWHILE 256
/* Ranges that are asked for at once, on the stack */
#define RANGES 128

int gmem_mapped_pages_open(uint64_t size)
{
	if (size < WORTHWHILE * gmem_sys_page_size())
		return -ENODATA;
	return gmem_sys_open("/proc/self/pagemap", O_RDONLY);
}

/* Where nothing is mapped at all, the kernel does not say that a page is absent. */
static int find_absent(int fd, uint64_t hva, uint64_t size, uint32_t kinds, uint64_t *ret)
{
	int err = fd < 0 ? fd : gmem_sys_find_absent(fd, hva, hva + size, kinds, ret);

	if (!err && *ret == hva + size)
		err = gmem_sys_check_mapped((void *)(uintptr_t)hva, size);
	return err;
}

bool gmem_mapped_pages_are_all(int fd, uint64_t hva, uint64_t size, uint32_t kinds)
{
	uint64_t absent;

	return find_absent(fd, hva, size, kinds, &absent) == 0 && absent == hva + size;
}

int64_t gmem_mapped_pages_mark(int fd, uint64_t hva, uint64_t size, uint32_t kinds, unsigned char *marks)
{
	const uint64_t page = gmem_sys_page_size(), end = hva + size;
	struct gmem_sys_pages ranges[RANGES];
	uint64_t at, count;
	int n, err;

	/* The first page that is absent is found in a quarter of the time that ranges take. */
	err = find_absent(fd, hva, size, kinds, &at);
	if (err)
		return err;
	count = (at - hva) / page;
	memset(marks, 1, count);
	memset(marks + count, 0, (end - at) / page);
	while (at < end) {
		n = gmem_sys_find_mapped(fd, at, end, kinds, ranges, RANGES, &at);
		if (n < 0)
			return n;
		for (int i = 0; i < n; i++) {
			memset(marks + (ranges[i].start - hva) / page, 1,
			       (ranges[i].end - ranges[i].start) / page);
			count += (ranges[i].end - ranges[i].start) / page;
		}
	}
	return (int64_t)count;
}
