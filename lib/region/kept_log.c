/* SPDX-License-Identifier: MIT */
#include "region/kept_log.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "os/sys.h"

#define BITS 64

static uint64_t words_of(uint64_t size)
{
	return (size / gmem_sys_page_size() + BITS - 1) / BITS;
}

uint64_t *gmem_kept_log_new(uint64_t size)
{
	uint64_t *bits = calloc(words_of(size), sizeof(*bits));

	if (!bits)
		gmem_fail(-ENOMEM, "no memory to keep the dirty log of 0x%" PRIx64 " bytes", size);
	return bits;
}

/* Returns 64 bits from @first on; words behind the last one that is needed are not read. */
static uint64_t get_bits(const uint64_t *bits, uint64_t first, uint64_t count)
{
	uint64_t shift = first % BITS, word = bits[first / BITS] >> shift;

	if (shift && count > BITS - shift)
		word |= bits[first / BITS + 1] << (BITS - shift);
	return count < BITS ? word & ((UINT64_C(1) << count) - 1) : word;
}

static void set_bits(uint64_t *bits, uint64_t first, uint64_t count, uint64_t word)
{
	uint64_t shift = first % BITS;

	bits[first / BITS] |= word << shift;
	if (shift && count > BITS - shift)
		bits[first / BITS + 1] |= word >> (BITS - shift);
}

void gmem_kept_log_merge(uint64_t *to, uint64_t to_first, const uint64_t *from,
			 uint64_t from_first, uint64_t pages)
{
	for (uint64_t done = 0, now; done < pages; done += now) {
		now = pages - done < BITS ? pages - done : BITS;
		set_bits(to, to_first + done, now, get_bits(from, from_first + done, now));
	}
}

void gmem_kept_log_fill(uint64_t *bits, uint64_t first, uint64_t pages)
{
	static const uint64_t all = UINT64_MAX;

	for (uint64_t done = 0, now; done < pages; done += now) {
		now = pages - done < BITS ? pages - done : BITS;
		set_bits(bits, first + done, now, get_bits(&all, 0, now));
	}
}

void gmem_kept_log_deliver(uint64_t **kept, uint64_t size, uint64_t *bitmap)
{
	/* The last word may have bits behind the region's end, after a split. */
	if (*kept)
		gmem_kept_log_merge(bitmap, 0, *kept, 0, size / gmem_sys_page_size());
	gmem_kept_log_drop(kept);
}

void gmem_kept_log_drop(uint64_t **kept)
{
	free(*kept);
	*kept = NULL;
}

void gmem_kept_log_trim(uint64_t **kept, uint64_t size)
{
	uint64_t words = words_of(size);

	for (uint64_t i = 0; *kept && i < words; i++)
		if ((*kept)[i])
			return;
	gmem_kept_log_drop(kept);
}
