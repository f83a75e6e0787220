/* SPDX-License-Identifier: MIT */
#include "base/kind.h"

_Static_assert(GMEM_KINDS == 5, "a new kind of memory needs its traits here");

static const struct gmem_kind_traits kinds[GMEM_KINDS] = {
	[GMEM_KIND_RAM] = {
		.name = "ram",
		.uses = GMEM_USE_SAVE | GMEM_USE_LOAD | GMEM_USE_POPULATE | GMEM_USE_DISCARD |
			GMEM_USE_COUNT | GMEM_USE_EXPORT | GMEM_USE_PLACE,
	},
	[GMEM_KIND_ROM] = {
		.name = "rom",
		.uses = GMEM_USE_SAVE | GMEM_USE_LOAD | GMEM_USE_POPULATE | GMEM_USE_COUNT |
			GMEM_USE_EXPORT | GMEM_USE_PLACE,
		.is_compared = true,
	},
	[GMEM_KIND_DEVICE] = {
		.name = "device",
		.is_callers = true,
		.is_never_private = true,
	},
	[GMEM_KIND_EXTERNAL] = {
		.name = "external",
		.uses = GMEM_USE_LOAD | GMEM_USE_EXPORT,
		.is_never_private = true,
	},
};

const struct gmem_kind_traits *gmem_kind_traits(uint32_t kind)
{
	return &kinds[kind < GMEM_KINDS ? kind : GMEM_KIND_DEFAULT];
}

GMEM_API const char *gmem_kind_name(uint32_t kind)
{
	return gmem_kind_traits(kind)->name;
}
