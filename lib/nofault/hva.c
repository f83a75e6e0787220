/* SPDX-License-Identifier: MIT */
#include "nofault/hva.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>

#include "gmem.h"
#include "base/error.h"
#include "nofault/nofault.h"

static int check(const void *hva, const void *buf, uint64_t size)
{
	uint64_t at = (uintptr_t)hva, from = (uintptr_t)buf;

	if (!hva || !buf)
		return gmem_fail(-EINVAL, "%s is NULL", hva ? "buf" : "hva");
	if (at + size - 1 < at || from + size - 1 < from)
		return gmem_fail(-EINVAL, "0x%" PRIx64 " bytes at hva 0x%" PRIx64 ", or at 0x%" PRIx64
				 ", wrap around", size, at, from);
	return 0;
}

/* If the byte at @hva can be reached after all, it was the other side. */
static int fail(const char *hva, uint64_t done, uint64_t size, bool writes, int err)
{
	const char *why = gmem_nofault_why(hva + done, writes, err);

	return gmem_fail(err, "hva 0x%" PRIxPTR " cannot be %s: %s, %s; 0x%" PRIx64 " bytes of 0x%" PRIx64
			 " were done", (uintptr_t)(hva + done), writes ? "written" : "read",
			 gmem_errno_name(err), why ? why : "but this page can be reached now: it came "
			 "meanwhile, or buf cannot", done, size);
}

static int copy(char *hva, char *buf, uint64_t size, bool writes, uint64_t *ret_done)
{
	uint64_t done = 0;
	int err;

	if (ret_done)
		*ret_done = 0;
	if (!size)
		return 0;
	err = check(hva, buf, size);
	if (err)
		return err;

	done = gmem_nofault_copy(gmem_nofault_was_recoverable(), writes ? hva : buf, writes ? buf : hva,
				 size, &err);
	if (ret_done)
		*ret_done = done;
	return err ? fail(hva, done, size, writes, err) : 0;
}

GMEM_API int gmem_hva_read(const void *hva, void *buf, uint64_t size, uint64_t *ret_done)
{
	return copy((char *)(uintptr_t)hva, buf, size, false, ret_done);
}

GMEM_API int gmem_hva_write(void *hva, const void *buf, uint64_t size, uint64_t *ret_done)
{
	return copy(hva, (char *)(uintptr_t)buf, size, true, ret_done);
}
