/* SPDX-License-Identifier: MIT */
/*
 * The request's number changed from posting to posting, so the caller, who has headers
 * of the running kernel, gives it, and it is believed once it was tried.
 */
#include "state/inplace.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/mman.h>

#include "base/error.h"
#include "base/opts.h"
#include "os/kvm.h"
#include "os/kvm_compat.h"
#include "os/sys.h"
#include "region/file.h"

/* How often a conversion of pinned pages, or an interrupted one, is tried again */
#define MAX_TRIES 16
#define RETRY_MICROSECONDS 50

/* ---- proof: a page of a file turns private and back ---- */

static int set_page(const struct gmem_inplace *inplace, int fd, uint64_t size, bool to_private)
{
	uint64_t error_offset;

	return gmem_kvm_set_file_attributes(fd, inplace->request, 0, size,
					    to_private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0,
					    &error_offset);
}

/* Proof is whether the host reaches the page: 0 if private and shared are told apart. */
static int try_page(const struct gmem_inplace *inplace, int fd, void *hva, uint64_t size,
		    const char **what)
{
	int err;

	*what = "the host cannot reach the file at first";
	err = gmem_sys_madvise(hva, size, MADV_POPULATE_READ);
	if (err)
		return err;

	*what = "it cannot be made private";
	err = set_page(inplace, fd, size, true);
	if (err)
		return err;
	*what = "the host reaches what was made private";
	if (!gmem_sys_madvise(hva, size, MADV_POPULATE_READ))
		return -EPROTO;

	*what = "it cannot be made shared";
	err = set_page(inplace, fd, size, false);
	if (err)
		return err;
	*what = "the host cannot reach what was made shared again";
	return gmem_sys_madvise(hva, size, MADV_POPULATE_READ);
}

static int try_file(const struct gmem_inplace *inplace, int vm_fd, const char **what)
{
	uint64_t page = gmem_sys_page_size();
	void *hva;
	int fd, err;

	*what = "no guest_memfd can be made for it";
	fd = gmem_kvm_create_gmemfd(vm_fd, page, inplace->create_flags);
	if (fd < 0)
		return fd;

	*what = "the file cannot be mapped";
	err = gmem_sys_mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0, &hva);
	if (!err) {
		err = try_page(inplace, fd, hva, page, what);
		gmem_sys_munmap(hva, page);
	}
	gmem_sys_close(fd);
	return err;
}

int gmem_inplace_prove(const struct gmem_inplace_opts *user_opts, int vm_fd,
		       struct gmem_inplace *ret, struct gmem_line *line)
{
	struct gmem_inplace_opts opts;
	const char *what;
	int err;

	err = GMEM_COPY_OPTS(gmem_inplace_opts, &opts, user_opts, create_flags);
	if (err)
		return err;
	if (opts.request > UINT32_MAX ||
	    _IOC_SIZE((unsigned long)opts.request) != sizeof(struct gmem_kvm_file_attributes))
		return gmem_fail(-EINVAL,
				 "request 0x%" PRIx64 " does not have %zu bytes, the struct of the proposal",
				 opts.request, sizeof(struct gmem_kvm_file_attributes));

	ret->request = (unsigned long)opts.request;
	ret->create_flags = opts.create_flags;
	err = try_file(ret, vm_fd, &what);
	line->answer = err ? GMEM_NO : GMEM_YES;
	line->remedy = err ? "the numbers of a kernel that has it" : NULL;
	line->value = err ? 0 : (int64_t)opts.create_flags;
	line->has_value = !err;
	if (err)
		snprintf(line->reason, sizeof(line->reason), "request 0x%" PRIx64 ": %s: %s",
			 opts.request, what, gmem_errno_name(err));
	else
		snprintf(line->reason, sizeof(line->reason),
			 "request 0x%" PRIx64 " made a page private and shared again", opts.request);
	return 0;
}

/* ---- conversion ---- */

static int refuse(const struct gmem_region *region, const struct gmem_part *part, bool to_private,
		  int err, uint64_t error_offset)
{
	uint64_t at = error_offset - region->file_offset;

	if (err == -EAGAIN && at < region->gpa.size)
		return gmem_fail(-EBUSY,
				 "gpa 0x%" PRIx64 " cannot become %s: somebody without a lease has it pinned",
				 region->gpa.start + at, to_private ? "private" : "shared");
	return gmem_fail(err == -EAGAIN ? -EBUSY : err,
			 "guest_memfd fd %d refuses to make offset 0x%" PRIx64 ", 0x%" PRIx64
			 " bytes, %s: %s",
			 region->file->fd, region->file_offset + (part->start - region->gpa.start),
			 part->last - part->start + 1, to_private ? "private" : "shared",
			 gmem_errno_name(err));
}

int gmem_inplace_convert(const struct gmem_region *region, const struct gmem_part *part,
			 bool to_private, uint32_t wait_ms)
{
	uint64_t until = gmem_sys_now() + wait_ms * GMEM_NANOSECONDS_PER_MS;
	uint64_t error_offset = UINT64_MAX;
	int err, tries = 0;

	/* The kernel checks all of the range first: it converts all of it or nothing. */
	for (;;) {
		err = gmem_kvm_set_file_attributes(region->file->fd, region->vm->inplace.request,
						   region->file_offset + (part->start - region->gpa.start),
						   part->last - part->start + 1,
						   to_private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0,
						   &error_offset);
		if (err != -EINTR && err != -EAGAIN)
			break;
		if (++tries >= MAX_TRIES && (err == -EINTR || gmem_sys_now() >= until))
			break;
		gmem_sys_pause(RETRY_MICROSECONDS);
	}
	return err ? refuse(region, part, to_private, err, error_offset) : 0;
}
