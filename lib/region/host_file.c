/* SPDX-License-Identifier: MIT */
#include "region/host_file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/memfd.h>
#include <stddef.h>
#include <stdlib.h>

#include "base/error.h"
#include "base/huge_pages.h"
#include "base/limit.h"
#include "region/file.h"

/* Linux 6.3; older headers do not name it */
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

/* Linux 5.1 */
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

#define FIXING_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

static int new_handle(int fd, const struct gmem_sys_facts *facts, struct gmem_host_file **ret)
{
	struct gmem_host_file *file = malloc(sizeof(*file));

	if (!file)
		return gmem_fail(-ENOMEM, "no memory for a file handle");

	*file = (struct gmem_host_file){ .fd = fd, .users = 1, .facts = *facts };
	*ret = file;
	return 0;
}

/* ---- files of the library's ---- */

/* Where memory must not be executable (vm.memfd_noexec), a memfd without the flag is refused. */
int gmem_host_file_memfd(unsigned int hugetlb)
{
	const unsigned int flags = MFD_ALLOW_SEALING | hugetlb;
	int fd = gmem_sys_memfd("gmem-host", flags | MFD_NOEXEC_SEAL);

	return fd == -EINVAL ? gmem_sys_memfd("gmem-host", flags) : fd;
}

static int fill_in(int fd, uint64_t size, struct gmem_sys_facts *facts)
{
	int err = gmem_sys_resize(fd, size);

	if (!err)
		err = gmem_sys_seal(fd, FIXING_SEALS);
	return err ? err : gmem_sys_facts(fd, facts);
}

int gmem_host_file_make(uint64_t size, uint64_t huge_page, struct gmem_host_file **ret)
{
	const unsigned int shift = gmem_huge_page_shift(huge_page);
	struct gmem_sys_facts facts;
	int fd, err;

	fd = gmem_host_file_memfd(huge_page ? MFD_HUGETLB | shift << MFD_HUGE_SHIFT : 0);
	if (fd < 0)
		return huge_page ? gmem_fail_by_limit(fd, 0, "no memfd of hugetlb with pages of 0x%" PRIx64
						      " bytes", huge_page) :
				   gmem_fail_by_limit(fd, 0, "no memfd");

	err = fill_in(fd, size, &facts);
	if (err)
		gmem_fail_by_limit(err, size, "a memfd cannot be made 0x%" PRIx64 " bytes large, and sealed", size);
	else
		err = new_handle(fd, &facts, ret);
	if (err)
		gmem_sys_close(fd);
	return err;
}

/* ---- files of the caller's ---- */

static int inspect(int fd, uint64_t offset, uint64_t size, struct gmem_sys_facts *facts)
{
	int err = gmem_sys_facts(fd, facts);

	if (err)
		return gmem_fail(err, "memory_fd %d cannot be looked at: %s", fd, gmem_errno_name(err));
	if (!facts->access.reads)
		return gmem_fail(-EBADF, "memory_fd %d is not open for reading, so it cannot be mapped", fd);
	if (gmem_file_is_gmemfd(facts))
		return gmem_fail(-EINVAL, "memory_fd %d is a guest_memfd: a plan with backing \"mapped\" has "
				 "it as a file of its own", fd);
	if (!facts->is_regular)
		return gmem_fail(-EINVAL, "memory_fd %d is no file of memory", fd);
	if (offset > facts->size || size > facts->size - offset)
		return gmem_fail(-EINVAL, "memory_fd %d has 0x%" PRIx64 " bytes, not 0x%" PRIx64 " + 0x%"
				 PRIx64, fd, facts->size, offset, size);
	return 0;
}

/* Open for the same: a handle for reading does not stand for one for writing. */
static struct gmem_host_file *find(struct gmem_host_file *list, const struct gmem_sys_facts *facts)
{
	while (list && (list->facts.device != facts->device || list->facts.inode != facts->inode ||
			list->facts.access.writes != facts->access.writes))
		list = list->next;
	return list;
}

int gmem_host_file_adopt(struct gmem_host_file **list, int fd, uint64_t offset, uint64_t size,
			 struct gmem_host_file **ret)
{
	struct gmem_host_file *known;
	struct gmem_sys_facts facts;
	int copy, err;

	err = inspect(fd, offset, size, &facts);
	if (err)
		return err;

	known = find(*list, &facts);
	if (known) {
		*ret = gmem_host_file_ref(known);
		return 0;
	}

	copy = gmem_sys_dup(fd);
	if (copy < 0)
		return gmem_fail_by_limit(copy, 0, "memory_fd %d cannot be duplicated", fd);

	err = new_handle(copy, &facts, ret);
	if (err) {
		gmem_sys_close(copy);
		return err;
	}
	(*ret)->list = list;
	(*ret)->next = *list;
	*list = *ret;
	return 0;
}

/* ---- handles ---- */

struct gmem_host_file *gmem_host_file_ref(struct gmem_host_file *file)
{
	if (file)
		file->users++;
	return file;
}

void gmem_host_file_unref(struct gmem_host_file *file)
{
	struct gmem_host_file **at;

	if (!file || --file->users)
		return;

	at = file->list;
	while (at && *at != file)
		at = &(*at)->next;
	if (at)
		*at = file->next;
	gmem_sys_close(file->fd);
	free(file);
}

bool gmem_host_file_same(const struct gmem_host_file *a, const struct gmem_host_file *b)
{
	return a && b && a->facts.device == b->facts.device && a->facts.inode == b->facts.inode;
}

bool gmem_host_file_is_writable(const struct gmem_host_file *file)
{
	return file->facts.access.writes && !(file->facts.seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE));
}

bool gmem_host_file_is_fixed(const struct gmem_host_file *file)
{
	return (file->facts.seals & FIXING_SEALS) == FIXING_SEALS;
}
