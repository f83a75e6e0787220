/* SPDX-License-Identifier: MIT */
/*
 * slots: which memslot numbers of a VM are in use, a bit each.
 *
 * All with the hook lock held. Failures have a sentence: -ENOSPC no number is left,
 * -EINVAL the number is beyond the last, -EEXIST it is in use or reserved.
 */
#ifndef GMEM_SLOTS_H
#define GMEM_SLOTS_H

#include <stdint.h>

struct gmem_slots {
	uint32_t count;
	uint32_t first_free_word;	/* no free number below this word */
	uint64_t *used;
	uint64_t *reserved;		/* in the allocation of @used */
};

int gmem_slots_init(struct gmem_slots *slots, uint32_t count);
void gmem_slots_destroy(struct gmem_slots *slots);
/* What the functions below would say; they take nothing. */
int gmem_slots_check_any(const struct gmem_slots *slots);
int gmem_slots_check(const struct gmem_slots *slots, uint32_t number);
int gmem_slots_take_any(struct gmem_slots *slots, uint32_t *ret);
int gmem_slots_take(struct gmem_slots *slots, uint32_t number);
void gmem_slots_give(struct gmem_slots *slots, uint32_t number);
int gmem_slots_reserve(struct gmem_slots *slots, uint32_t first, uint32_t count);

#endif
