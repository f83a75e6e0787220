/* SPDX-License-Identifier: MIT */
#include "share/granted.h"

#include <errno.h>
#include <stdlib.h>

#include "base/bits.h"

int gmem_granted_new(struct gmem_granted *granted, uint64_t pages)
{
	/* What is never written of a large array is never allocated. */
	*granted = (struct gmem_granted){
		.differs = calloc(gmem_bits_words(pages), sizeof(granted->differs[0])),
		.pages = pages,
	};
	return granted->differs ? 0 : -ENOMEM;
}

void gmem_granted_free(struct gmem_granted *granted)
{
	free(granted->differs);
	granted->differs = NULL;
}

void gmem_granted_set(struct gmem_granted *granted, uint64_t first, uint64_t end, bool value)
{
	bool differs = value != granted->usual;
	uint64_t changed;

	if (!granted->differing && first == 0 && end == granted->pages) {
		granted->usual = value;
		return;
	}
	if (!granted->differing && !differs)
		return;

	changed = gmem_bits_set(granted->differs, first, end, differs);
	if (differs)
		granted->differing += changed;
	else
		granted->differing -= changed;
}

uint64_t gmem_granted_find(const struct gmem_granted *granted, bool value, uint64_t first,
			   uint64_t end)
{
	bool differs = value != granted->usual;

	if (!granted->differing)
		return differs ? end : first;
	return gmem_bits_find(granted->differs, differs, first, end);
}
