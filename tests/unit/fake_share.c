/* SPDX-License-Identifier: MIT */
/* What one process sees of another's files */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statfs.h>

#include "fake_internal.h"

static int do_facts(int fd, struct gmem_sys_facts *ret)
{
	const struct handle *h = handle_of(fd);
	struct statfs fs;
	struct stat st;
	int seals;

	if (fstat(fd, &st) < 0 || fstatfs(fd, &fs) < 0)
		return -errno;

	seals = fcntl(fd, F_GET_SEALS);
	*ret = (struct gmem_sys_facts){
		.size = (uint64_t)st.st_size,
		.filesystem_type = (uint64_t)fs.f_type,
		.block_size = (uint64_t)fs.f_bsize,
		.device = st.st_dev,
		.inode = st.st_ino,
		.seals = seals < 0 ? 0 : (uint32_t)seals,
		.is_regular = S_ISREG(st.st_mode),
	};
	if (h && h->kind == GMEM) {
		ret->size = h->file->size;
		ret->filesystem_type = fake.filesystem_type;
		ret->seals = 0;
	}
	return 0;
}

int gmem_sys_facts(int fd, struct gmem_sys_facts *ret)
{
	int err;

	enter();
	err = attempt(FAKE_FACTS);
	if (!err)
		err = do_facts(fd, ret);
	return leave(err);
}
