/* SPDX-License-Identifier: MIT */
#include "examples.h"

static bool send_range(const struct gmem_dirty_range *range)
{
	return range->size == 0;
}

EXAMPLE(gmem_dirty_put_back)
{
	GMEM_OPTS(gmem_dirty_info, info, .bytes = 0);
	GMEM_OPTS(gmem_dirty_opts, opts, .flags = GMEM_DIRTY_FROM_NOW);
	struct gmem_dirty *dirty;

	check(gmem_dirty_new(vm, &opts, &dirty) == 0);
	check(gmem_view_write(view, MIB, "x", 1, NULL) == 0);

	/* EXAMPLE: Send what changed, or all of it with the next round if that fails. */
	struct gmem_dirty_range range = { .size = 0 };
	bool sent = true;

	if (gmem_dirty_collect(dirty, NULL) < 0)
		errx(1, "%s", gmem_last_error());
	while (sent && gmem_dirty_next(dirty, range.gpa + range.size, &range) == 0)
		sent = send_range(&range);
	if (!sent)
		gmem_dirty_put_back(dirty);
	/* END */
	check(!sent && gmem_dirty_peek(dirty, &info) == 0 && info.bytes > 0);
	gmem_dirty_free(dirty);
}
