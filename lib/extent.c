/* SPDX-License-Identifier: MIT */
/*
 * Files that go from one process to another. Both sides look at them alike:
 * memory, and nothing else. Anything else could hang whoever touches a mapping
 * of it, or do things on being mapped.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>

#include "internal.h"

/* Of a guest_memfd before Linux 6.19, see file.c */
#ifndef ANON_INODE_FS_MAGIC
#define ANON_INODE_FS_MAGIC 0x09041934
#endif

/* Linux 5.1; older C libraries do not name it */
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

/*
 * Before Linux 6.19 a guest_memfd looks like every anonymous inode; its name is
 * out of reach where there is no /proc. No other of them has a size.
 */
static bool is_gmemfd(const struct gmem_sys_facts *facts)
{
	return facts->filesystem_type == GUEST_MEMFD_MAGIC ||
	       facts->filesystem_type == ANON_INODE_FS_MAGIC;
}

static bool is_memory(const struct gmem_sys_facts *facts)
{
	return facts->is_regular &&
	       (is_gmemfd(facts) || facts->filesystem_type == TMPFS_MAGIC ||
		facts->filesystem_type == HUGETLBFS_MAGIC);
}

static struct gmem_extent_file describe(const struct gmem_sys_facts *facts)
{
	const uint32_t no_writing = F_SEAL_WRITE | F_SEAL_FUTURE_WRITE;
	struct gmem_extent_file file = {
		.size = facts->size,
		.page_size = gmem_sys_page_size(),
		.rights = GMEM_RIGHT_READ | GMEM_RIGHT_WRITE,
		.is_gmemfd = is_gmemfd(facts),
	};

	if (facts->filesystem_type == HUGETLBFS_MAGIC)
		file.page_size = facts->block_size;
	if (facts->seals & no_writing)
		file.rights = GMEM_RIGHT_READ;
	/* The size of a guest_memfd never changes. */
	file.can_shrink = !file.is_gmemfd && !(facts->seals & F_SEAL_SHRINK);
	return file;
}

int gmem_extent_inspect(int fd, uint64_t offset, uint64_t size, struct gmem_extent_file *ret)
{
	struct gmem_sys_facts facts;
	int err;

	err = gmem_sys_facts(fd, &facts);
	if (err)
		return gmem_fail(err, "fd %d cannot be looked at: %s", fd, gmem_errno_name(err));

	if (!is_memory(&facts))
		return gmem_fail(-EINVAL,
				 "fd %d is no memfd, hugetlbfs file or guest_memfd (file system type 0x%"
				 PRIx64 ")", fd, facts.filesystem_type);

	if (offset > facts.size || size > facts.size - offset)
		return gmem_fail(-EINVAL,
				 "fd %d has 0x%" PRIx64 " bytes, not 0x%" PRIx64 " + 0x%" PRIx64, fd,
				 facts.size, offset, size);

	*ret = describe(&facts);
	return 0;
}
