/* SPDX-License-Identifier: MIT */
#include "region/host_discard.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <stdbool.h>
#include <sys/mman.h>

#include "gmem.h"
#include "base/error.h"
#include "base/limit.h"
#include "os/sys.h"
#include "region/host_look.h"
#include "region/host_mapping.h"

/* Bytes of one call: enough for its cost not to show, few enough to tell how far it got */
#define MADVISE_CHUNK (UINT64_C(1) << 30)
/* Pages that are looked at in one call */
#define PAGES_AT_ONCE 4096

struct discard {
	struct gmem_host_look *look;
	uint64_t flags;
	uint64_t hva;		/* all that was asked for */
	uint64_t size;
	uint64_t done;
	int unknown;		/* why it is not known what is mapped */
};

static void *at(uint64_t hva)
{
	return (void *)(uintptr_t)hva;
}

/* ---- refusals ---- */

static int refuse(const struct discard *discard, int err, uint64_t hva, const char *why)
{
	return gmem_fail(err, "hva 0x%" PRIx64 ", 0x%" PRIx64 " bytes, was given back only up to 0x%" PRIx64
			 " bytes: %s%s%s", discard->hva, discard->size, hva - discard->hva,
			 gmem_errno_name(err), *why ? ", " : "", why);
}

/* Of all seals these two alone forbid it; F_SEAL_EXEC adds them to a memfd that is executable. */
static int refuse_sealed(const struct discard *discard, uint64_t hva)
{
	struct gmem_sys_facts facts = { .seals = 0 };
	int err = gmem_host_look_file(discard->look);

	if (!err)
		err = gmem_sys_facts(discard->look->file, &facts);
	if (facts.seals & F_SEAL_WRITE)
		return refuse(discard, -EPERM, hva, "the file is sealed with F_SEAL_WRITE: its pages cannot be freed");
	if (facts.seals & F_SEAL_FUTURE_WRITE)
		return refuse(discard, -EPERM, hva,
			      "the file is sealed with F_SEAL_FUTURE_WRITE: its pages cannot be freed");
	if (!err)
		return refuse(discard, -EPERM, hva, "says the kernel of MADV_REMOVE and fallocate(2), although the "
			      "file is not sealed: a sandbox refuses them");
	return refuse(discard, -EPERM, hva, "as for a file that is sealed with F_SEAL_FUTURE_WRITE or "
		      "F_SEAL_WRITE: its pages cannot be freed");
}

static int refuse_private(const struct discard *discard, uint64_t hva)
{
	return refuse(discard, -EOPNOTSUPP, hva,
		      "a private mapping of a file: it would show the file again, not zeros "
		      "(GMEM_DISCARD_NOT_ZERO allows that)");
}

static int refuse_owed(const struct discard *discard, uint64_t hva)
{
	return refuse(discard, -EOPNOTSUPP, hva,
		      "userfaultfd would ask its handler for the pages again, and they need not be zeros "
		      "(GMEM_DISCARD_NOT_ZERO allows that)");
}

static int refuse_gap(const struct discard *discard, uint64_t hva)
{
	return refuse(discard, -EFAULT, hva, "nothing is mapped there");
}

/* What could not be done for now */
static int refuse_limit(const struct discard *discard, uint64_t hva, int err, const char *what)
{
	return gmem_fail_by_limit(err, 0, "hva 0x%" PRIx64 ", 0x%" PRIx64 " bytes, was given back only up to 0x%"
				  PRIx64 " bytes: %s", discard->hva, discard->size, hva - discard->hva, what);
}

static int refuse_to_guess(const struct discard *discard, uint64_t hva, int err)
{
	return refuse_limit(discard, hva, err, "what is mapped there cannot be asked");
}

/* @err: why the file behind locked memory, through which it is freed, cannot be had */
static int refuse_locked(const struct discard *discard, uint64_t hva, int err)
{
	if (gmem_is_about_limit(err))
		return refuse_limit(discard, hva, err, "the file of locked memory cannot be opened");
	return refuse(discard, -EOPNOTSUPP, hva, "shared memory that is locked with mlock(): it stays allocated");
}

/* ---- one mapping ---- */

/* Memory locked with mlock() takes an advice of its own. */
int gmem_host_drop(uint64_t hva, uint64_t size)
{
	int err = gmem_sys_madvise(at(hva), size, MADV_DONTNEED);

	return err == -EINVAL ? gmem_sys_madvise(at(hva), size, MADV_DONTNEED_LOCKED) : err;
}

/* MADV_REMOVE does not take locked memory; the same call on the file does. */
static int punch(const struct discard *discard, uint64_t hva, uint64_t size)
{
	struct gmem_host_look *look = discard->look;
	int fd, err = gmem_host_look_file(look);

	fd = err ? err : gmem_sys_reopen(look->file, O_RDWR);
	if (fd < 0)
		return refuse_locked(discard, hva, fd);
	err = gmem_sys_fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				 look->mapping.offset + (hva - look->mapping.start), size);
	gmem_sys_close(fd);
	if (err == -EPERM)
		return refuse_sealed(discard, hva);
	return err ? refuse(discard, err, hva, "says fallocate(2)") : 0;
}

/*
 * MADV_DONTNEED of shared memory alone would only drop this mapping of it. Without it, a page
 * that the hardware lost stays marked in the mapping when its file has let it go.
 */
static int free_pages(const struct discard *discard, uint64_t hva, uint64_t size)
{
	int err;

	if (!(discard->look->mapping.flags & GMEM_MAPPING_SHARED)) {
		err = gmem_host_drop(hva, size);
		return err ? refuse(discard, err, hva, "says madvise(2) with MADV_DONTNEED") : 0;
	}

	gmem_sys_madvise(at(hva), size, MADV_DONTNEED);
	err = gmem_sys_madvise(at(hva), size, MADV_REMOVE);
	if (err == -EINVAL)
		return punch(discard, hva, size);
	if (err == -EPERM)
		return refuse_sealed(discard, hva);
	return err ? refuse(discard, err, hva, "says madvise(2) with MADV_REMOVE") : 0;
}

/* A page that is absent, and that the kernel does not just make */
static int check_owed(const struct discard *discard, uint64_t hva)
{
	bool is_owed = gmem_host_look_is_owed(discard->look, hva);

	if (gmem_is_about_limit(discard->look->owed_err))
		return refuse_to_guess(discard, hva, discard->look->owed_err);
	return is_owed ? refuse_owed(discard, hva) : 0;
}

/*
 * Does userfaultfd ask for pages here? Only a page that is absent tells, by a read that fails at
 * once; so the first page goes before the others. What the read allocates goes with them.
 */
static int try_owed(const struct discard *discard, uint64_t hva)
{
	const struct gmem_host_mapping *mapping = &discard->look->mapping;
	bool may_be_device = mapping->flags & GMEM_MAPPING_FILE && !(mapping->known & GMEM_MAPPING_DEVICE);
	int err;

	/* A read of a device is not to be tried. */
	if (may_be_device && !gmem_host_mapping_is_ordinary(hva))
		return check_owed(discard, hva);

	err = free_pages(discard, hva, mapping->page_size);
	if (err)
		return err;
	err = gmem_sys_try_read(at(hva));
	if (gmem_is_about_limit(err))
		return refuse_to_guess(discard, hva, err);
	return err == -EIO ? check_owed(discard, hva) : 0;
}

static int check_mapping(const struct discard *discard, uint64_t hva)
{
	int err;

	if (discard->flags & GMEM_DISCARD_NOT_ZERO)
		return 0;
	if (gmem_host_mapping_is_private_file(&discard->look->mapping))
		return refuse_private(discard, hva);
	if (discard->look->is_tried)
		return 0;

	err = try_owed(discard, hva);
	discard->look->is_tried = !err;
	return err;
}

/* The whole pages of [@start, @end) in one mapping */
static int discard_mapping(struct discard *discard, uint64_t start, uint64_t end)
{
	uint64_t page = discard->look->mapping.page_size, now;
	int err;

	page = page ? page : gmem_sys_page_size();
	start = (start + page - 1) / page * page;
	end = end / page * page;
	if (start >= end)
		return 0;

	err = check_mapping(discard, start);
	for (; start < end && !err; start += now) {
		now = end - start < MADVISE_CHUNK ? end - start : MADVISE_CHUNK;
		err = free_pages(discard, start, now);
		if (!err)
			discard->done += now;
	}
	return err;
}

/* ---- without /proc ---- */

static bool is_there(uint64_t hva)
{
	unsigned char mark = 1;

	return gmem_sys_mincore(at(hva), gmem_sys_page_size(), &mark) || mark & 1;
}

/* The first page of [@start, @end) where nothing is mapped, or @end */
static uint64_t find_gap(uint64_t start, uint64_t end)
{
	const uint64_t page = gmem_sys_page_size();
	uint64_t pages = PAGES_AT_ONCE, now;
	unsigned char marks[PAGES_AT_ONCE];

	for (; start < end; start += now) {
		now = end - start < pages * page ? end - start : pages * page;
		if (gmem_sys_mincore(at(start), now, marks) != -ENOMEM)
			continue;
		if (pages == 1)
			return start;
		pages = 1;
		now = 0;
	}
	return end;
}

/*
 * Free what is alike: MADV_FREE is refused for all but private anonymous memory, MADV_REMOVE for
 * all that is not shared: by -EACCES if it is a file's, and by -EINVAL if it is locked. What
 * is refused for a part may have been done to the memory in front of that.
 */
static int free_alike(uint64_t hva, uint64_t size)
{
	if (gmem_sys_madvise(at(hva), size, MADV_FREE) == 0)
		return gmem_sys_madvise(at(hva), size, MADV_DONTNEED);
	return gmem_sys_madvise(at(hva), size, MADV_REMOVE);
}

/* A page that is refused by @err; @dropped: what the kernel said when it was to be dropped */
static int settle(const struct discard *discard, uint64_t hva, int err, int dropped)
{
	if (err == -EPERM)
		return refuse_sealed(discard, hva);
	if (err != -EACCES && err != -EINVAL)
		return refuse(discard, err, hva, "says madvise(2)");
	if (discard->flags & GMEM_DISCARD_NOT_ZERO) {
		if (dropped)
			return refuse(discard, dropped, hva, "says madvise(2) with MADV_DONTNEED");
		return err == -EINVAL && is_there(hva) ? refuse_locked(discard, hva, discard->unknown) : 0;
	}
	if (err == -EACCES)
		return refuse_private(discard, hva);
	return refuse(discard, -EOPNOTSUPP, hva, "memory that is locked with mlock(), and whether it would "
		      "read as zero only /proc tells");
}

/*
 * The pieces double where memory is alike, and halve where it is not. Of pages that are refused each
 * is asked about alone: the refusal of many does not tell whether there is shared memory behind.
 */
static int discard_alike(struct discard *discard, uint64_t start, uint64_t end)
{
	const uint64_t page = gmem_sys_page_size();
	uint64_t size = MADVISE_CHUNK;
	int err, refused, dropped = -EINVAL;

	if (discard->flags & GMEM_DISCARD_NOT_ZERO)
		dropped = gmem_host_drop(start, end - start);

	while (start < end) {
		size = end - start < size ? end - start : size;
		refused = free_alike(start, size);
		if (refused && size > page) {
			size = size / page / 2 * page;
			continue;
		}
		err = refused ? settle(discard, start, refused, dropped) : 0;
		if (err)
			return err;
		discard->done += size;
		start += size;
		if (!refused && size < MADVISE_CHUNK)
			size *= 2;
	}
	return 0;
}

static int discard_unknown(struct discard *discard, uint64_t start, uint64_t end)
{
	uint64_t gap;
	int err;

	/* The next call may learn what this one cannot. */
	if (gmem_is_about_limit(discard->unknown) && !(discard->flags & GMEM_DISCARD_NOT_ZERO))
		return refuse_to_guess(discard, start, discard->unknown);

	gap = find_gap(start, end);
	err = discard_alike(discard, start, gap);
	if (!err && gap < end)
		err = refuse_gap(discard, gap);
	return err;
}

/*
 * Of a page alone, as conversions discard it, an advice that only private anonymous memory takes
 * tells in 1 us what /proc tells in 4, and the discard itself takes 2. What the advice does is to
 * be done, unless the page has to be zero afterwards.
 */
static void look_at_page(const struct discard *discard)
{
	const uint64_t hva = discard->hva, size = discard->size;
	struct gmem_host_look *look = discard->look;

	if (!(discard->flags & GMEM_DISCARD_NOT_ZERO) || look->mapping.end ||
	    size != gmem_sys_page_size() || gmem_sys_madvise(at(hva), size, MADV_FREE))
		return;
	look->mapping = (struct gmem_host_mapping){
		.start = hva,
		.end = hva + size,
		.page_size = size,
		.known = GMEM_MAPPING_SHARED | GMEM_MAPPING_FILE | GMEM_MAPPING_NAMELESS |
			 GMEM_MAPPING_HUGETLB | GMEM_MAPPING_DEVICE | GMEM_MAPPING_LOCKED,
	};
}

int gmem_host_discard(struct gmem_host_look *look, void *hva, uint64_t size, uint64_t flags,
		      uint64_t *ret_done)
{
	struct discard discard = { .look = look, .flags = flags, .hva = (uintptr_t)hva, .size = size };
	uint64_t start, next, end = discard.hva + size;
	int err = 0;

	look_at_page(&discard);
	for (start = discard.hva; start < end && !err; start = next) {
		err = gmem_host_look_at(look, start, &next);
		if (!err) {
			next = look->mapping.end < end ? look->mapping.end : end;
			err = discard_mapping(&discard, start, next);
		} else if (err == -ENOENT) {
			err = refuse_gap(&discard, start);
		} else {
			next = end;
			discard.unknown = err;
			err = discard_unknown(&discard, start, end);
		}
	}
	*ret_done = discard.done;
	return err;
}
