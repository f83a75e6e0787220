/* SPDX-License-Identifier: MIT */
#include "base/backing.h"

#include <string.h>

_Static_assert(GMEM_BACKINGS == 6, "a new way of backing needs its traits here");

const struct gmem_backing_traits gmem_backings[GMEM_BACKINGS] = {
	[GMEM_BACKING_HOST] = {
		.name = "host",
		.hva_source = GMEM_HVA_MEMORY,
		.has_dirty_log = true,
		.has_read_only = true,
	},
	[GMEM_BACKING_MAPPED] = {
		.name = "mapped",
		.hva_source = GMEM_HVA_FILE,
		.has_file = true,
		.has_dirty_log = true,
		.has_read_only = true,
	},
	[GMEM_BACKING_SHARED] = {
		.name = "shared",
		.hva_source = GMEM_HVA_FILE,
		.has_file = true,
		.is_bound = true,
	},
	[GMEM_BACKING_PRIVATE] = {
		.name = "private",
		.hva_source = GMEM_HVA_MEMORY,
		.has_file = true,
		.is_bound = true,
		.has_sides = true,
		.attributes = GMEM_ATTRIBUTES_VM,
	},
	[GMEM_BACKING_INPLACE] = {
		.name = "in-place",
		.hva_source = GMEM_HVA_FILE,
		.has_file = true,
		.is_bound = true,
		.attributes = GMEM_ATTRIBUTES_FILE,
	},
};

const struct gmem_backing_traits *gmem_backing_traits(uint32_t backing)
{
	return &gmem_backings[backing < GMEM_BACKINGS ? backing : GMEM_BACKING_NONE];
}

GMEM_API const char *gmem_backing_name(uint32_t backing)
{
	return gmem_backing_traits(backing)->name;
}

GMEM_API uint32_t gmem_backing_from_name(const char *name)
{
	for (uint32_t i = 1; name && i < GMEM_BACKINGS; i++)
		if (strcmp(name, gmem_backings[i].name) == 0)
			return i;
	return GMEM_BACKING_NONE;
}
