/* SPDX-License-Identifier: MIT */
#include "region/memory_users.h"

#include <errno.h>
#include <inttypes.h>
#include <stddef.h>

#include "base/error.h"
#include "base/macros.h"

static const struct gmem_memory_user *user_of(const struct gmem_interval *at)
{
	return at ? GMEM_CONTAINER_OF(at, const struct gmem_memory_user, at) : NULL;
}

const struct gmem_memory_user *gmem_memory_find_lease(const struct gmem_memory_users *users,
						      uint64_t start, uint64_t last)
{
	return user_of(gmem_interval_find(&users->leases, start, last));
}

int gmem_memory_fail_leased(const struct gmem_memory_user *lease, const char *what,
			    uint64_t start, uint64_t size)
{
	return gmem_fail(-EBUSY,
			 "\"%s\" holds a lease on gpa 0x%" PRIx64 ", 0x%" PRIx64
			 " bytes, which has memory of %s 0x%" PRIx64 ", 0x%" PRIx64 " bytes",
			 lease->name, lease->gpa, lease->size, what, start, size);
}

int gmem_memory_check_discards(const struct gmem_memory_users *users,
			       const struct gmem_memory_user *lease)
{
	const struct gmem_memory_user *other;

	other = user_of(gmem_interval_find(&users->discards, lease->at.start, lease->at.last));
	if (!other)
		return 0;
	if (!other->size)
		return gmem_fail(-EBUSY, "the memory of gpa 0x%" PRIx64 ", 0x%" PRIx64
				 " bytes, is being %s", lease->gpa, lease->size, other->name);
	return gmem_fail(-EBUSY, "gpa 0x%" PRIx64 ", 0x%" PRIx64
			 " bytes, which has memory of 0x%" PRIx64 ", 0x%" PRIx64 " bytes, is being %s",
			 other->gpa, other->size, lease->gpa, lease->size, other->name);
}
