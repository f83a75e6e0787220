/* SPDX-License-Identifier: MIT */
#include "vma.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* linux/fs.h of Linux 6.11 */
struct query {
	uint64_t size;
	uint64_t flags;
	uint64_t address;
	uint64_t start;
	uint64_t end;
	uint64_t vma_flags;
	uint64_t page_size;
	uint64_t offset;
	uint64_t inode;
	uint32_t major;
	uint32_t minor;
	uint32_t name_size;
	uint32_t build_id_size;
	uint64_t name;
	uint64_t build_id;
};

#define QUERY			_IOWR('f', 17, struct query)
#define QUERY_READABLE		0x01
#define QUERY_WRITABLE		0x02
#define QUERY_SHARED		0x08
#define QUERY_COVERING_OR_NEXT	0x10

static bool find_in_text(uint64_t address, struct vma *ret)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	char line[512], rights[5];
	bool found = false;

	if (!maps)
		abort();
	while (!found && fgets(line, sizeof(line), maps)) {
		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %*x:%*x %" SCNu64, &ret->start,
			   &ret->end, rights, &ret->offset, &ret->inode) != 5)
			continue;
		ret->is_readable = rights[0] == 'r';
		ret->is_writable = rights[1] == 'w';
		ret->is_shared = rights[3] == 's';
		found = ret->end > address;
	}
	fclose(maps);
	return found;
}

bool vma_find(uint64_t address, struct vma *ret)
{
	struct query query = { .size = sizeof(query), .flags = QUERY_COVERING_OR_NEXT, .address = address };
	static enum { NOT_TRIED, THERE, MISSING } state;
	static int maps;

	if (state == NOT_TRIED) {
		struct query first = query;

		first.address = 0;
		maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
		state = ioctl(maps, QUERY, &first) == 0 ? THERE : MISSING;
	}
	if (state == MISSING)
		return find_in_text(address, ret);

	if (ioctl(maps, QUERY, &query) != 0)
		return false;
	*ret = (struct vma){
		.start = query.start,
		.end = query.end,
		.offset = query.offset,
		.inode = query.inode,
		.is_readable = query.vma_flags & QUERY_READABLE,
		.is_writable = query.vma_flags & QUERY_WRITABLE,
		.is_shared = query.vma_flags & QUERY_SHARED,
	};
	return true;
}
