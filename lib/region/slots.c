/* SPDX-License-Identifier: MIT */
#include "region/slots.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/error.h"

#define BITS 64

static bool test_bit(const uint64_t *bits, uint32_t number)
{
	return bits[number / BITS] >> (number % BITS) & 1;
}

static void set_bit(uint64_t *bits, uint32_t number)
{
	bits[number / BITS] |= UINT64_C(1) << (number % BITS);
}

int gmem_slots_init(struct gmem_slots *slots, uint32_t count)
{
	size_t words = (count + BITS - 1) / BITS;

	/* one allocation, two bitmaps */
	slots->used = calloc(2 * words, sizeof(*slots->used));
	if (!slots->used)
		return gmem_fail(-ENOMEM, "no memory for %" PRIu32 " memslot numbers", count);

	slots->reserved = slots->used + words;
	slots->count = count;
	slots->first_free_word = 0;
	return 0;
}

void gmem_slots_destroy(struct gmem_slots *slots)
{
	free(slots->used);
}

/* Returns @slots->count if there is none. */
static uint32_t find_free(const struct gmem_slots *slots)
{
	uint32_t words = (slots->count + BITS - 1) / BITS;

	for (uint32_t i = slots->first_free_word; i < words; i++) {
		uint64_t free_bits = ~(slots->used[i] | slots->reserved[i]);
		uint32_t number;

		if (!free_bits)
			continue;
		number = i * BITS + (uint32_t)__builtin_ctzll(free_bits);
		return number < slots->count ? number : slots->count;
	}
	return slots->count;
}

static int fail_full(const struct gmem_slots *slots)
{
	return gmem_fail(-ENOSPC, "none of the VM's %" PRIu32 " memslots is free", slots->count);
}

int gmem_slots_check_any(const struct gmem_slots *slots)
{
	return find_free(slots) < slots->count ? 0 : fail_full(slots);
}

int gmem_slots_take_any(struct gmem_slots *slots, uint32_t *ret)
{
	uint32_t number = find_free(slots);

	slots->first_free_word = number / BITS;
	if (number == slots->count)
		return fail_full(slots);
	set_bit(slots->used, number);
	*ret = number;
	return 0;
}

int gmem_slots_check(const struct gmem_slots *slots, uint32_t number)
{
	if (number >= slots->count)
		return gmem_fail(-EINVAL, "memslot %" PRIu32 " is past the VM's last, %" PRIu32,
				 number, slots->count - 1);

	if (test_bit(slots->used, number))
		return gmem_fail(-EEXIST, "memslot %" PRIu32 " is in use by another region", number);
	return 0;
}

int gmem_slots_take(struct gmem_slots *slots, uint32_t number)
{
	int err = gmem_slots_check(slots, number);

	if (!err)
		set_bit(slots->used, number);
	return err;
}

void gmem_slots_give(struct gmem_slots *slots, uint32_t number)
{
	slots->used[number / BITS] &= ~(UINT64_C(1) << (number % BITS));
	if (number / BITS < slots->first_free_word)
		slots->first_free_word = number / BITS;
}

int gmem_slots_reserve(struct gmem_slots *slots, uint32_t first, uint32_t count)
{
	if (count == 0 || first >= slots->count || count > slots->count - first)
		return gmem_fail(-EINVAL,
				 "memslots from %" PRIu32 ", %" PRIu32
				 " of them, are not inside the VM's %" PRIu32,
				 first, count, slots->count);

	for (uint32_t i = 0; i < count; i++)
		if (test_bit(slots->used, first + i))
			return gmem_fail(-EEXIST, "memslot %" PRIu32 " is in use by a region",
					 first + i);

	for (uint32_t i = 0; i < count; i++)
		set_bit(slots->reserved, first + i);
	return 0;
}
